"""From the provider's answer into the store: new tokens are in nobody's hands but ours until they are kept.

`Keeping` writes what becomes of one session, over nobody else's change. What a store that is down
does not take stays with `Unsaved`, which tries again for as long as the process lives, and says
meanwhile what the session is. It also extends the leases under which all of this is done. Called by
`sessions.refresh`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import msgspec

from authservice.errors import AuthServiceError, ProviderWrong, SessionOver, StoreDown
from authservice.logs import Event
from authservice.ops import Counts, Metric
from authservice.sessions import Session
from authservice.sessions.copies import LiveSession
from authservice.sessions.lease import Lease, Leases
from authservice.sessions.live import Record, Sessions
from authservice.sessions.seal import public_id

log = logging.getLogger(__name__)

EVERY_SECONDS = 0.5
MOST_UNSAVED = 10_000

Revoke = Callable[[str, str], object]
"""Ends a refresh token and an access token at the provider. Never raises."""


class Keeping:
    """One session on its way into the store. ``record`` is what the store held when it began."""

    def __init__(self, unsaved: Unsaved, secret: str, key: str, record: Record) -> None:
        self.key = key
        self.live: LiveSession | None = None
        """What checks are told while it is not saved; ``None`` when it has ended."""
        self.changed = False
        """Whether the provider gave a new refresh token in place of the one in ``record``."""
        self.wanted: Session | None = record.session
        """What the session is to be; ``None`` when it is to end."""
        self._unsaved = unsaved
        self._sessions = unsaved.sessions
        self._secret = secret
        self._record = record
        self._cause = ""
        self._lock = threading.Lock()

    def save_refresh_token(self, token: str) -> None:
        """Keeps the successor of the refresh token that was just spent, before its answer is looked at:
        nothing of that is believed yet, and a process that dies now loses nothing."""
        if token != self._record.session.refresh_token:
            self.changed = True
            self._keep(msgspec.structs.replace(self._record.session, refresh_token=token), last=False)

    def save(self, session: Session) -> AuthServiceError | None:
        """Keeps what the session is from now on. What could not be done, after it was left to `Unsaved`.
        Where the session ended meanwhile it stays so, and its new tokens are revoked."""
        return self._keep(session, last=True)

    def end(self, over: SessionOver) -> AuthServiceError | None:
        """Ends the session, unless somebody replaced it meanwhile; as `save`."""
        self._cause = str(over)
        return self._keep(None, last=True)

    def write(self, last: bool = True) -> None:
        """Does what is left to do. Raises `errors.StoreDown`, and `errors.ProviderWrong` as
        `Sessions.replace`."""
        with self._lock:
            wanted = self.wanted
            if wanted is None:
                self._end()
                return
            while True:
                kept = self._sessions.replace(self._secret, self._record, wanted)
                if kept is not None:
                    self._record = kept
                    return
                found = self._sessions.record(self._secret)
                ours = found is not None and found.session.refresh_token == wanted.refresh_token
                if found is None and last:
                    self._unsaved.revoke(wanted.refresh_token, wanted.access_token)
                if found is None or not ours or found.version == self._record.version:
                    return
                # An earlier attempt of ours was carried out, though nobody told us.
                self._record = found

    def _end(self) -> None:
        if self._sessions.end_unchanged(self._secret, self._record):
            self._unsaved.counts.add(Metric.SESSIONS_ENDED, "refresh")
            log.warning(Event.SESSION_OVER.value, extra={"session": public_id(self.key), "cause": self._cause})

    def _keep(self, wanted: Session | None, last: bool) -> AuthServiceError | None:
        with self._lock:
            self.wanted = wanted
        try:
            self.write(last)
        except StoreDown as error:
            self.live = self._sessions.live(wanted, self.key) if wanted else None
            self._unsaved.add(self)
            return error
        except ProviderWrong as error:
            return error
        self._unsaved.discard(self, wanted)
        return None


class Unsaved:
    """What this process knows of sessions, and the store does not. Safe for threads."""

    def __init__(self, sessions: Sessions, leases: Leases, revoke: Revoke, counts: Counts) -> None:
        self.sessions = sessions
        self.revoke = revoke
        self.counts = counts
        self._often = min(EVERY_SECONDS, leases.lifetime.total_seconds() / 8)
        self._extends = leases.lifetime.total_seconds() / 4
        counts.gauge(Metric.SESSIONS_UNSAVED, lambda: len(self._waiting))
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forgets everything, also after a fork in the middle of another thread's call."""
        self._lock = threading.Lock()
        self._waiting: dict[str, Keeping] = {}
        self._held: dict[str, Lease] = {}
        self._working: set[str] = set()
        self._something = threading.Event()
        self._stopping = threading.Event()

    def start(self) -> None:
        """Begins extending leases and trying again, from a thread of its own."""
        threading.Thread(
            target=self._run, args=(self._something, self._stopping), name="session keeper", daemon=True
        ).start()

    def stop(self) -> None:
        """Tries once more, and tells what is lost then."""
        self._stopping.set()
        self._something.set()
        self._try_again()
        if self._waiting:
            log.error(Event.SESSIONS_LOST.value, extra={"sessions": len(self._waiting)})

    def instead_of(self, live: LiveSession) -> LiveSession | None:
        """What a session of the store really is; ``None`` when it has ended."""
        keeping = self._waiting.get(live.key)
        return live if keeping is None else keeping.live

    def failure(self, key: str) -> StoreDown | None:
        """Why nothing can be done about this session now, if so."""
        return StoreDown("new tokens are not saved yet") if key in self._waiting else None

    @contextmanager
    def tending(self, key: str, lease: Lease) -> Iterator[None]:
        """Extends a lease meanwhile, and then releases it as soon as nothing is left to be saved."""
        with self._lock:
            self._held[key] = lease
            self._working.add(key)
        self._something.set()
        try:
            yield
        finally:
            with self._lock:
                self._working.discard(key)
            self._release(key)

    def keeping(self, secret: str, key: str, record: Record) -> Keeping:
        """Begins to keep what becomes of a session."""
        return Keeping(self, secret, key, record)

    def add(self, keeping: Keeping) -> None:
        """Tries again later. Where too many wait already, this one is lost."""
        with self._lock:
            full = len(self._waiting) >= MOST_UNSAVED and keeping.key not in self._waiting
            if not full:
                self._waiting[keeping.key] = keeping
        if full:
            log.error(Event.SESSIONS_LOST.value, extra={"sessions": 1})
        self._something.set()

    def discard(self, keeping: Keeping, saved: Session | None) -> None:
        """This is saved; something later may not be."""
        with self._lock:
            if self._waiting.get(keeping.key) is keeping and keeping.wanted is saved:
                del self._waiting[keeping.key]

    def _release(self, key: str) -> None:
        with self._lock:
            needed = key in self._waiting or key in self._working
            lease = None if needed else self._held.pop(key, None)
        if lease is not None:
            with suppress(StoreDown):  # it ends by itself
                lease.release()

    def _run(self, something: threading.Event, stopping: threading.Event) -> None:
        extended = time.monotonic()
        while True:
            something.wait()
            if stopping.wait(self._often):
                return
            self._try_again()
            if time.monotonic() - extended >= self._extends:
                extended = time.monotonic()
                self._extend()
            with self._lock:
                if not self._waiting and not self._held:
                    something.clear()

    def _try_again(self) -> None:
        for key, keeping in list(self._waiting.items()):
            wanted = keeping.wanted
            try:
                keeping.write()
            except StoreDown:
                return
            except ProviderWrong as error:
                log.error(Event.SESSIONS_LOST.value, extra={"sessions": 1, "cause": str(error)})
            self.discard(keeping, wanted)
            self._release(key)

    def _extend(self) -> None:
        for lease in list(self._held.values()):
            try:
                lease.extend()
            except StoreDown:
                return
