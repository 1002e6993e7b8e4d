"""A lease: who of all threads, workers and replicas does a piece of work about one session.

It is an entry of the session store with an end of its own, so that a dead owner holds up nobody for
long. Only its owner extends or releases it. Whoever works under a lease must still write with
``if_version``: a process that stood still for longer than its lease has lost it without knowing.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime, timedelta

from authservice.sessions import Store, from_microseconds
from authservice.sessions.seal import mark_key

LIFETIME = timedelta(seconds=10)
"""For how long a dead owner holds up the others; a living one extends it in time."""


class Leases:
    """The leases in one store, on the store's clock. Safe for threads, processes and replicas."""

    def __init__(self, store: Store, now: Callable[[], datetime], lifetime: timedelta = LIFETIME) -> None:
        self._store = store
        self._now = now
        self.lifetime = lifetime

    def take(self, name: str) -> Lease | None:
        """The lease of this name, or ``None`` while somebody else holds it. Raises
        `errors.StoreDown` (it may then be held by nobody who knows, until it ends)."""
        key, owner = mark_key(f"lease {name}"), secrets.token_bytes(16)
        if self._store.save(key, owner, self._end(), if_absent=True):
            return Lease(self._store, key, owner, self._end)
        entry = self._store.load(key)
        if entry is None or entry.expires <= self._now() + 2 * self.lifetime:
            return None
        # Nobody takes a lease for so long: the clock went back, and its owner may be dead.
        taken = self._store.save(key, owner, self._end(), if_version=entry.version)
        return Lease(self._store, key, owner, self._end) if taken else None

    def _end(self) -> datetime:
        return self._now() + self.lifetime


class Lease:
    """One that was taken. Each method raises `errors.StoreDown`."""

    def __init__(self, store: Store, key: str, owner: bytes, end: Callable[[], datetime]) -> None:
        self._store = store
        self._key = key
        self._owner = owner
        self._end = end

    def extend(self) -> bool:
        """Holds it for another lifetime from now; ``False`` when it was lost, to whomever."""
        return self._save(self._end())

    def release(self) -> bool:
        """Lets the next one have it; ``False`` when it was lost before."""
        return self._save(from_microseconds(0))

    def _save(self, expires: datetime) -> bool:
        entry = self._store.load(self._key)
        if entry is None or entry.value != self._owner:
            return False
        return self._store.save(self._key, self._owner, expires, if_version=entry.version)
