"""Sessions: the record of one login, and the contract of the stores that keep it.

A store handles bytes under hashed keys and knows no meaning, and its watch says what changed in
it; `sessions.seal` makes records unreadable without the cookie; `sessions.live` is where the rest
of the service asks for a session, of which `sessions.copies` keeps some decoded;
`sessions.cookies` reads and writes the cookie's two headers; `sessions.interface` are
Flask-Session's hooks over them. This room knows no token endpoint and no gateway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Annotated, Any, Protocol

import msgspec

Moment = Annotated[datetime, msgspec.Meta(tz=True)]
"""A point in time that knows its zone; a naive one is refused when a record is read."""

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)


class Session(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One login, as it is kept. Times are aware UTC datetimes.

    ``claims`` are the verified claims of ID token and userinfo; ``id_token`` is kept byte for
    byte as the provider sent it (OpenID Connect RP-Initiated Logout 1.0 §2, ``id_token_hint``).
    ``access_token_issued`` is when it came, ``None`` for the one that came with the login.
    ``expires`` is the absolute limit; ``last_seen`` moves in steps, for the idle limit.
    ``label_key`` names the service's key under which the store's label of this session was sealed at
    ``labelled``; empty while it has none.
    """

    user_id: str
    groups: tuple[str, ...] = ()
    claims: dict[str, Any] = {}
    issuer: str
    subject: str
    provider_sid: str = ""
    id_token: str = ""
    access_token: str = ""
    refresh_token: str = ""
    access_token_expires: Moment | None = None
    access_token_issued: Moment | None = None
    created: Moment
    last_seen: Moment
    expires: Moment
    label_key: str = ""
    labelled: Moment | None = None

    def __repr__(self) -> str:
        """Says when, never who and with what: a record holds tokens, and text ends up in logs."""
        return f"<Session until {self.expires.isoformat()}>"


@dataclass(frozen=True, slots=True)
class Entry:
    """What a store holds under one key: the bytes, a version that changes with every save (and
    is compared for equality only), and when the entry ceases to exist (aware UTC)."""

    value: bytes
    version: int
    expires: datetime


@dataclass(frozen=True, slots=True)
class Label:
    """What a store is told of an entry beside its value, for those who look it up without the secret
    that opens it. Both are opaque: ``metadata`` is sealed by whoever gives it, ``tags`` are the names
    (letters, digits, ``-`` and ``_``; no two alike) under which `Store.find` finds the entry's key."""

    metadata: bytes
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A live entry that has a label: its key, the label's metadata, and its end (aware UTC)."""

    key: str
    metadata: bytes
    expires: datetime


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a store is found to be like: named facts in the order in which to print them (counts,
    bytes, seconds, versions), and what is wrong, each with what to do; empty when nothing is."""

    facts: Mapping[str, str | int]
    problems: tuple[str, ...]


Forget = Callable[[str | None], None]
"""Told a store key whose entry changed, or ``None`` when everything may have. Called from any thread."""


class Watch(Protocol):
    """Says whether copies of a store's entries are still what the store holds, for one process.

    Nothing here waits for another process or for the network, and nothing raises. Safe for
    threads. Before ``start``, after ``stop`` and in doubt, nothing is known.
    """

    def stamp(self) -> object | None:
        """Equal (``==``) to an earlier stamp: since that one was given, nothing changed in the
        store except what ``forget`` was told before this one is given. ``None``: it cannot be
        known now whether something changed, so the store must be read."""

    def holds(self, key: str, version: int) -> bool:
        """Whether the store still holds this version, asked when the stamp is another one than
        the copy's. ``False`` also when that cannot be told without waiting."""

    def start(self) -> None:
        """Begins the work in this process, and again in each process forked from it."""

    def stop(self) -> None:
        """Ends the work and lets go of files and connections. Doing so again is no error."""


class Store(Protocol):
    """Bytes under keys, each with an expiry on the clock that the store was given. Every method
    but ``close`` raises `errors.StoreDown` when the store does not answer in time, and nothing
    else. Safe for threads, for several processes, and for use after a fork."""

    notices: tuple[str, ...]
    """What an operator should be told about where the data are; empty when all is as asked."""

    def load(self, key: str) -> Entry | None:
        """The live entry, or ``None`` when there is none or it has expired."""

    def save(
        self,
        key: str,
        value: bytes,
        expires: datetime,
        *,
        if_absent: bool = False,
        if_version: int | None = None,
        label: Label | None = None,
    ) -> bool:
        """Writes, and says whether it did: ``False`` when ``if_absent`` found a live entry, or
        ``if_version`` another version or none. Atomic across threads and processes. Giving both
        conditions is a ValueError.

        ``label`` takes the place of the entry's label, tags and all, and ends with the entry;
        without one a live entry keeps the label it has. From the moment in which the entry can be
        loaded it can be found under its tags.
        """

    def delete(self, key: str) -> bool:
        """Removes the entry and its label; ``False`` when there was no live one."""

    def find(self, tag: str) -> list[str]:
        """The keys of the live entries that bear this tag, in no order. Its cost follows their
        number and not the store's size."""

    def label(self, key: str) -> Labelled | None:
        """The label of a live entry; ``None`` when there is no such entry, or it has no label."""

    def labels(self) -> Iterator[Labelled]:
        """Every live entry that has a label, in no order and none twice, read in bounded batches: an
        entry that comes or goes meanwhile may be among them or not. Raises `errors.StoreDown` at
        any step."""

    def inspect(self, *, thorough: bool | None = None) -> Inspection:
        """Looks the whole store over, which may take minutes; ``thorough`` asks for the store's
        longest examination or for a shorter one, and ``None`` leaves that to its size."""

    def sweep(self) -> int:
        """Removes a bounded number of expired entries and says how many; call it again while it
        removes something."""

    def ping(self) -> None:
        """Returns when the store can be read *and* written."""

    def watch(self, forget: Forget) -> Watch:
        """A new watch over this store's entries, not yet started. Waits for nothing."""

    def close(self) -> None:
        """Lets go of files and connections; a later call opens them anew."""


def to_microseconds(moment: datetime) -> int:
    """Whole microseconds since 1970 UTC, without passing through a float."""
    return (moment - _EPOCH) // _MICROSECOND


def from_microseconds(count: int) -> datetime:
    """The aware UTC moment that many microseconds after 1970; OverflowError far outside years."""
    return _EPOCH + timedelta(microseconds=count)
