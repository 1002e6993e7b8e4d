"""Where the rest of the service asks for sessions: secrets in, records out.

Owns the life of a session (begin, load, end), its absolute and idle limits on our own clock, the
question whether a copy in memory may be used, and one-time marks. Sealing is `sessions.seal`'s
work, keeping is the `Store`'s, and knowing what changed in it its `Watch`'s. Called by the session
authenticator and by `sessions.interface`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import msgspec

from authservice.check import NeedsIO, Reach
from authservice.errors import ProviderWrong, StoreDown
from authservice.identity import AuthMethod, Identity, VerifiedClaims
from authservice.ops import Counts, Metric
from authservice.sessions import Entry, Session, Store
from authservice.sessions.copies import Copies, Copy, LiveSession
from authservice.sessions.seal import is_secret, mark_key, new_secret, open_record, seal_record, store_key

_LONGEST_STEP = timedelta(seconds=60)
_RECENT = timedelta(seconds=10)
"""How exactly it is known which copies were used least recently: to note it costs more than a hit."""

_CLAIMS = msgspec.json.Decoder(dict[str, Any])

log = logging.getLogger(__name__)


class Sessions:
    """Live sessions over one store. ``idle_timeout`` is ``None`` when there is no idle limit.

    At most ``cache_size`` sessions are kept decoded in memory, between ``start`` and ``stop``. A
    session that ended anywhere is dead here as soon as the store's `Watch` can know.
    """

    def __init__(
        self,
        store: Store,
        *,
        now: Callable[[], datetime],
        max_age: timedelta,
        idle_timeout: timedelta | None = None,
        cache_size: int = 0,
        counts: Counts | None = None,
    ) -> None:
        self._store = store
        self._now = now
        self._max_age = max_age
        self._idle = idle_timeout
        self._step = min(_LONGEST_STEP, idle_timeout / 10) if idle_timeout else None
        self._decoder = msgspec.json.Decoder(Session)
        self._cache_size = cache_size
        counts = counts or Counts()
        self._count_hit = counts.adder(Metric.SESSION_HITS)
        self._count_miss = counts.adder(Metric.SESSION_MISSES)
        self._copies = Copies(cache_size, counts.adder(Metric.SESSION_INVALIDATIONS))
        counts.gauge(Metric.SESSIONS_HELD, lambda: len(self._copies))
        self._watch = store.watch(self._copies.forget)

    def start(self) -> None:
        """Begins keeping copies in this process, and again in each process forked from it."""
        self._copies.begin_anew()
        if self._cache_size:
            self._watch.start()

    def stop(self) -> None:
        """From now on every load asks the store."""
        self._watch.stop()
        self._copies.forget(None)

    def load(self, secret: str, reach: Reach) -> LiveSession | None:
        """The live session of this secret, or ``None``: not a secret, unknown, ended, past a
        limit, or a record that cannot be read (which is left where it is).

        Raises `errors.StoreDown`, and `check.NeedsIO` under `Reach.MEMORY` when no copy may be
        used (except for what does not even have a secret's form: that is known without waiting).
        """
        stamp = self._watch.stamp()
        copy = self._copies.find(secret)  # after the stamp: what it vouches for is not forgotten then
        if copy is not None and copy.stamp == stamp and self._now() < copy.quick:
            self._count_hit()
            return copy.session
        if not is_secret(secret):
            return None
        if copy is not None and stamp is not None and self._still_holds(copy, stamp):
            self._count_hit()
            return copy.session
        if reach is Reach.MEMORY:
            raise NeedsIO
        session = self._read(secret)
        if session is None and copy is not None:
            self._copies.forget(copy.key)  # it ended: nobody needs to hold on to whose it was
        return session

    def _still_holds(self, copy: Copy, stamp: object) -> bool:
        """The second look at a copy, which makes the next ones quick again."""
        now = self._now()
        if now >= copy.limit or (copy.stamp != stamp and not self._watch.holds(copy.key, copy.version)):
            return False
        copy.stamp = stamp
        copy.quick = min(copy.limit, now + _RECENT)
        self._copies.used(copy.key)
        return True

    def _read(self, secret: str) -> LiveSession | None:
        """The session as the store holds it; kept as a copy where that may be used later."""
        self._count_miss()
        key = store_key(secret)
        with self._copies.expecting(key) as keep:
            stamp = self._watch.stamp()  # before the store is asked: what changes from here on shows
            entry = self._store.load(key)
            session = self._open(secret, entry) if entry else None
            if entry is None or session is None:
                return None
            now = self._now()
            limit = self._deadline(session)
            if now >= limit:
                return None
            if self._step and now - session.last_seen >= self._step:
                return live_session(self._touch(secret, session, entry, now))
            live = live_session(session)
            if stamp is not None:
                limit = min(limit, entry.expires)
                if self._step:
                    limit = min(limit, session.last_seen + self._step)
                quick = min(limit, now + _RECENT)
                keep(secret, Copy(live, key, entry.version, limit, quick, stamp))
            return live

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
        self._copies.forget(key)
        try:
            entry = self._store.load(key)
            if entry is None:
                return None
            self._store.delete(key)
        finally:
            self._copies.forget(key)  # a check may have read it meanwhile
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


def live_session(session: Session) -> LiveSession:
    """What checks see of a record, in little memory: there may be many thousands, whose groups
    are the same few."""
    groups, issuer = tuple(map(sys.intern, session.groups)), sys.intern(session.issuer)
    claims = _EncodedClaims(msgspec.json.encode(session.claims))

    def by(method: AuthMethod) -> Identity:
        return Identity(session.user_id, groups, claims, method, issuer, session.expires)

    return LiveSession(by(AuthMethod.COOKIE), by(AuthMethod.HEADER), session.last_seen)


class _EncodedClaims(VerifiedClaims):
    """A stored session's claims, decoded when somebody asks for them: few do, and as objects they
    take three times the memory."""

    __slots__ = ("_encoded",)

    def __init__(self, encoded: bytes) -> None:
        self._encoded = encoded

    def _decoded(self) -> dict[str, Any]:
        return _CLAIMS.decode(self._encoded)

    def __getitem__(self, name: str) -> Any:
        return self._decoded()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decoded())

    def __len__(self) -> int:
        return len(self._decoded())


def _encode(session: Session) -> bytes:
    """The record's plaintext. JSON, because claims come from JSON: msgpack has no integers
    beyond 64 bits."""
    try:
        return msgspec.json.encode(session)
    except (TypeError, UnicodeError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise ProviderWrong(f"the claims cannot be stored ({type(error).__name__})") from None
