"""Where the rest of the service asks for sessions: secrets in, records out.

Owns the life of a session (begin, load, end), its absolute and idle limits on our own clock, and
one-time marks. Sealing is `sessions.seal`'s work, keeping is the `Store`'s. Called by the session
authenticator and by `sessions.interface`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

import msgspec

from authservice.check import NeedsIO, Reach
from authservice.errors import ProviderWrong, StoreDown
from authservice.sessions import Entry, Session, Store
from authservice.sessions.seal import is_secret, mark_key, new_secret, open_record, seal_record, store_key

_LONGEST_STEP = timedelta(seconds=60)

log = logging.getLogger(__name__)


class Sessions:
    """Live sessions over one store. ``idle_timeout`` is ``None`` when there is no idle limit."""

    def __init__(
        self,
        store: Store,
        *,
        now: Callable[[], datetime],
        max_age: timedelta,
        idle_timeout: timedelta | None = None,
    ) -> None:
        self._store = store
        self._now = now
        self._max_age = max_age
        self._idle = idle_timeout
        self._step = min(_LONGEST_STEP, idle_timeout / 10) if idle_timeout else None
        self._decoder = msgspec.json.Decoder(Session)

    def load(self, secret: str, reach: Reach) -> Session | None:
        """The live session of this secret, or ``None``: not a secret, unknown, ended, past a
        limit, or a record that cannot be read (which is left where it is).

        Raises `errors.StoreDown`, and `check.NeedsIO` under `Reach.MEMORY` (except for what
        does not even have a secret's form: that is known without waiting).
        """
        if not is_secret(secret):
            return None
        if reach is Reach.MEMORY:
            raise NeedsIO
        entry = self._store.load(store_key(secret))
        session = self._open(secret, entry) if entry else None
        if entry is None or session is None:
            return None
        now = self._now()
        if now >= self._deadline(session):
            return None
        if self._step and now - session.last_seen >= self._step:
            return self._touch(secret, session, entry, now)
        return session

    def begin(self, session: Session) -> str:
        """Keeps a new session and gives its secret, which is never one that was used before.
        ``expires`` is brought down to ``SESSION_MAX_AGE`` from now when it lies beyond.

        Raises `errors.StoreDown`, and `errors.ProviderWrong` when the claims hold what no
        encoding can keep (half a surrogate pair, endless nesting).
        """
        secret = new_secret()
        session = msgspec.structs.replace(session, expires=min(session.expires, self._now() + self._max_age))
        self._store.save(store_key(secret), seal_record(secret, _encode(session)), session.expires)
        return secret

    def end(self, secret: str) -> Session | None:
        """Removes the session, and gives it when it was live. Ending it again is no error.

        Raises `errors.StoreDown`: it may then still be there.
        """
        if not is_secret(secret):
            return None
        key = store_key(secret)
        entry = self._store.load(key)
        if entry is None:
            return None
        self._store.delete(key)
        session = self._open(secret, entry)
        return session if session and self._now() < self._deadline(session) else None

    def spend(self, name: str, lifetime: timedelta) -> bool:
        """Marks a name as used: ``True`` for the first caller within ``lifetime``, ``False`` for
        every other one, across all workers and replicas. Raises `errors.StoreDown`."""
        return self._store.save(mark_key(name), b"\x01", self._now() + lifetime, if_absent=True)

    def _open(self, secret: str, entry: Entry) -> Session | None:
        plaintext = open_record(secret, entry.value)
        if plaintext is None:
            return None
        try:
            return self._decoder.decode(plaintext)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return None

    def _deadline(self, session: Session) -> datetime:
        """When this session ends if nobody is seen again. Counted from the record's beginning as
        well as from its own limit, so that a shorter ``SESSION_MAX_AGE`` holds at once."""
        limit = min(session.expires, session.created + self._max_age)
        return min(limit, session.last_seen + self._idle) if self._idle else limit

    def _touch(self, secret: str, session: Session, entry: Entry, now: datetime) -> Session:
        """Moves ``last_seen``, once in a step and not at every check. Only over the version that
        was read: a session that was ended meanwhile is not brought back, and of many checks at
        once one writes. A store that cannot be written does not fail the check."""
        seen = msgspec.structs.replace(session, last_seen=now)
        try:
            self._store.save(
                store_key(secret), seal_record(secret, _encode(seen)), entry.expires, if_version=entry.version
            )
        except StoreDown as error:
            log.warning("session not marked as seen: %s", error)
            return session
        return seen


def _encode(session: Session) -> bytes:
    """The record's plaintext. JSON, because claims come from JSON: msgpack has no integers
    beyond 64 bits."""
    try:
        return msgspec.json.encode(session)
    except (TypeError, UnicodeError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise ProviderWrong(f"the claims cannot be stored ({type(error).__name__})") from None
