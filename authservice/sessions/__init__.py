"""Sessions: the record of one login, and the contract of the stores that keep it.

A store handles bytes under hashed keys and knows no meaning; `sessions.seal` makes records
unreadable without the cookie; `sessions.live` is where the rest of the service asks for a
session; `sessions.interface` are Flask-Session's hooks over the two. This room knows no token
endpoint and no gateway.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import msgspec


class Session(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One login, as it is kept. Times are aware UTC datetimes.

    ``claims`` are the verified claims of ID token and userinfo; ``id_token`` is kept byte for
    byte as the provider sent it (OpenID Connect RP-Initiated Logout 1.0 §2, ``id_token_hint``).
    ``expires`` is the absolute limit; ``last_seen`` moves in steps, for the idle limit.
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
    access_token_expires: datetime | None = None
    created: datetime
    last_seen: datetime
    expires: datetime


@dataclass(frozen=True, slots=True)
class Entry:
    """What a store holds under one key: the bytes, a version that changes with every save, and
    when the entry ceases to exist (aware UTC)."""

    value: bytes
    version: int
    expires: datetime


class Store(Protocol):
    """Bytes under keys, each with an expiry. Every method raises `errors.StoreDown` when the
    store does not answer in time, and nothing else. Safe for threads and for several processes."""

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
    ) -> bool:
        """Writes, and says whether it did: ``False`` when ``if_absent`` found a live entry, or
        ``if_version`` another version or none. Atomic across threads and processes."""

    def delete(self, key: str) -> bool:
        """Removes the entry; ``False`` when there was no live one."""

    def sweep(self) -> int:
        """Removes a bounded number of expired entries and says how many."""

    def ping(self) -> None:
        """Returns when the store can be read *and* written."""

    def close(self) -> None:
        """Lets go of files and connections."""
