"""Renewing sessions' tokens: when, once for all who ask, and what becomes of the session.

`Refresher` looks after each session that is about to outlive its access token. The work is done on
threads of its own, detached from the check that began it, and under a lease in the store, so that a
rotating refresh token is sent once and its successor is never lost with a caller who gave up. How
the provider is asked is a function that it is given; what is verified there is not known here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from copy import copy
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec
from cachetools import LRUCache

from authservice.check import NeedsIO, Reach
from authservice.errors import (
    AuthServiceError,
    ProviderDown,
    ProviderSilent,
    ProviderWrong,
    SessionOver,
    StoreDown,
    TooManyChecks,
    Unavailable,
)
from authservice.logs import Event
from authservice.ops import Counts, Metric
from authservice.sessions import Session
from authservice.sessions.copies import LiveSession
from authservice.sessions.lease import Leases
from authservice.sessions.live import Record, Sessions
from authservice.sessions.outage import BackOff, Outage
from authservice.sessions.unsaved import Revoke, Unsaved

log = logging.getLogger(__name__)

Renew = Callable[[Session, Callable[[str], object]], Session]
"""Asks the provider for new tokens and gives the session as it is with them. The second argument is
told a new refresh token as soon as there is one, before anything that may fail or wait. Raises
`errors.SessionOver` when the session is to be ended; `errors.ProviderWrong` when this session's
answer cannot be used; `errors.ProviderSilent` or `errors.Unavailable` when the provider does not
work, for whomever it is asked."""

BEING_RENEWED = "Your session is being renewed. Please try again shortly."

_THREADS = 16
_MOST_UNDER_WAY = 1000
_MOST_WAITERS = 8
"""Of one process. Who waits holds a thread, and checks need the rest of them."""
_MOST_RESTS = 10_000


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. ``checks`` is how long a check waits for a refresh while it may pass without, ``longest``
    how long it waits while it may not; ``looks`` lies between two looks at what another process does,
    and ``rest`` between two beginnings for one session. A refused token is believed after ``settling``:
    somebody may be about to save its successor. ``end`` is for what is under way when all ends."""

    checks: float = 2.0
    longest: float = 10.0
    looks: float = 0.05
    rest: float = 0.5
    settling: float = 1.0
    end: float = 12.0


@dataclass(frozen=True, slots=True)
class _Rest:
    """Until when (monotonic) nothing is begun for a session, after what pause, and why."""

    until: float
    pause: float
    error: AuthServiceError | None


class Refresher:
    """An upkeep of the session authenticator. Safe for threads, workers and replicas.

    ``grace`` is for how long after its access token's end a session goes on while the provider does
    not work. A session without refresh token, or whose token's end nobody knows, is left alone.
    """

    at_every_check = False

    def __init__(
        self,
        sessions: Sessions,
        leases: Leases,
        renew: Renew,
        revoke: Revoke,
        *,
        now: Callable[[], datetime],
        grace: timedelta,
        counts: Counts | None = None,
        patience: Patience = Patience(),
        back_off: BackOff = BackOff(),
    ) -> None:
        self._sessions = sessions
        self._leases = leases
        self._renew = renew
        self._now = now
        self._grace = grace
        self._counts = counts or Counts()
        self._patience = patience
        self._back_off = back_off
        self._outage = Outage(back_off, self._counts)
        self._unsaved = Unsaved(sessions, leases, revoke, self._counts)
        self._begin_anew()

    def start(self) -> None:
        """Begins anew in this process, and again in each process forked from it."""
        self._begin_anew()
        self._unsaved.start()

    def stop(self) -> None:
        """Begins nothing any more, and waits a while for what is under way. Doing so again is no error."""
        with self._lock:
            self._stopped.set()
            under_way = list(self._flights.values())
        # Those that wait for a thread are not cancelled: nobody who waits for one would be told.
        self._threads.shutdown(wait=False)
        wait_for(under_way, self._patience.end)
        self._unsaved.stop()

    def _begin_anew(self) -> None:
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads = ThreadPoolExecutor(_THREADS, "refresh")
        self._waiters = threading.BoundedSemaphore(_MOST_WAITERS)
        self._flights: dict[str, Future[None]] = {}
        self._rests: LRUCache[str, _Rest] = LRUCache(_MOST_RESTS)
        self._outage.begin_anew()
        self._unsaved.begin_anew()

    # --- what a check is told -----------------------------------------------------------------

    def keep(self, secret: str, live: LiveSession, reach: Reach) -> LiveSession | None:
        """The session as it is to be used now: refreshed, as it was, or ``None`` when it does not
        authenticate (it may again later). Under `Reach.MEMORY` nothing waits; a refresh is begun all
        the same. Raises `check.NeedsIO`, and `errors.Unavailable` when it cannot be known."""
        kept = self._unsaved.instead_of(live)
        if kept is None or kept.refresh_due is None:
            return kept
        now = self._now()
        if now < kept.refresh_due:
            return kept
        if self._is_current(kept, now):
            self._begin(secret, kept.key)
            return kept
        if self._may_pass(kept, now) and self._failure(kept.key):
            self._begin(secret, kept.key)
            return kept
        if reach is Reach.MEMORY:
            raise NeedsIO
        if not self._waiters.acquire(blocking=False):
            self._begin(secret, kept.key)
            too_many = TooManyChecks("too many wait for their sessions' refresh", public=BEING_RENEWED)
            return self._as_it_was(kept, too_many)
        try:
            return self._wait(secret, kept)
        finally:
            self._waiters.release()

    def _wait(self, secret: str, live: LiveSession) -> LiveSession | None:
        """For the refresh, by whichever process; what the session is then."""
        began = time.monotonic()
        while True:
            flight = self._begin(secret, live.key)
            patience = self._patience.checks if self._may_pass(live, self._now()) else self._patience.longest
            left = max(0.0, patience - (time.monotonic() - began))
            if flight is not None:
                wait_for((flight,), left)
            found = self._sessions.load(secret, Reach.NETWORK)
            fresh = self._unsaved.instead_of(found) if found else None
            if fresh is None or self._is_current(fresh, self._now()):
                return fresh
            failure = self._failure(live.key)
            if failure is None and time.monotonic() - began >= patience:
                failure = TooManyChecks("the session is being refreshed", public=BEING_RENEWED)
            if failure is not None:
                return self._as_it_was(fresh, failure)
            if flight is None or flight.done():
                self._stopped.wait(min(left, self._patience.looks))
            live = fresh

    def _as_it_was(self, live: LiveSession, failure: AuthServiceError) -> LiveSession | None:
        if self._may_pass(live, self._now()):
            return live
        if isinstance(failure, (StoreDown, TooManyChecks)):
            # A copy: an exception collects the frames of every thread that raises it.
            raise copy(failure)
        return None

    def _may_pass(self, live: LiveSession, now: datetime) -> bool:
        """Whether it may be used without a refresh."""
        return live.access_token_expires is None or now < live.access_token_expires + self._grace

    @staticmethod
    def _is_current(live: LiveSession, now: datetime) -> bool:
        return live.access_token_expires is None or now < live.access_token_expires

    def _failure(self, key: str) -> AuthServiceError | None:
        """Why no refresh of this session is to be expected now; ``None`` when one is."""
        with self._lock:
            rest = self._rests.get(key)
        if rest is not None and rest.error is not None and time.monotonic() < rest.until:
            return rest.error
        if self._stopped.is_set():
            return ProviderDown("the service is ending")
        return self._unsaved.failure(key) or self._outage.failure()

    # --- the work -----------------------------------------------------------------------------

    def _begin(self, secret: str, key: str) -> Future[None] | None:
        """The refresh under way in this process, begun if it may; ``None`` when nothing may be done now."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None:
                return flight
            rest = self._rests.get(key)
            if self._stopped.is_set() or self._unsaved.failure(key) or len(self._flights) >= _MOST_UNDER_WAY:
                return None
            ticket = None if rest and time.monotonic() < rest.until else self._outage.ticket()
            if ticket is None:
                return None
            flight = self._flights[key] = self._threads.submit(self._fly, secret, key, ticket)
            return flight

    def _fly(self, secret: str, key: str, ticket: int) -> None:
        error: AuthServiceError | None = Unavailable("a refresh ended in a fault")
        try:
            # Many may have waited for a thread when the provider ceased to work, or this process began to end.
            may = self._outage.is_good(ticket) and not self._stopped.is_set()
            error = self._try(secret, key) if may else None
        except Exception as fault:
            self._counts.add(Metric.UNEXPECTED)
            log.error(Event.UNEXPECTED.value, exc_info=fault)
            raise
        finally:
            if error is not None:
                self._counts.add(Metric.REFRESH_FAILURES, error.reason.value)
            with self._lock:
                before = self._rests.get(key)
                self._rests[key] = self._rest_after(before, error)
                del self._flights[key]

    def _rest_after(self, before: _Rest | None, error: AuthServiceError | None) -> _Rest:
        """A session whose refresh failed rests for longer than the provider: so another one asks next,
        and an account of which the provider dies does not keep all the others out."""
        now = time.monotonic()
        if error is None:
            return _Rest(now + self._patience.rest, 0.0, None)
        pause = before.pause if before else 0.0
        # A store that is back has no reason to be spared any longer.
        pause = self._back_off.first if isinstance(error, StoreDown) else self._back_off.after(pause)
        # A copy: an exception keeps the frames that it went through, with all tokens in them.
        return _Rest(now + 2 * pause, pause, copy(error))

    def _try(self, secret: str, key: str) -> AuthServiceError | None:
        """Load, lease, load again, refresh, save, release. What went wrong, or ``None``: it was
        refreshed, needed none, ended, or another process is at it."""
        try:
            lease = self._leases.take(key)
            if lease is None:
                self._outage.not_asked()
                return None
            with self._unsaved.tending(key, lease):
                record = self._sessions.record(secret)
                if record is None or not self._needs_refresh(record.session, key):
                    self._outage.not_asked()
                    return None
                return self._refresh(secret, key, record)
        except StoreDown as error:
            self._outage.not_asked()
            return error

    def _needs_refresh(self, session: Session, key: str) -> bool:
        due = self._sessions.live(session, key).refresh_due
        return due is not None and self._now() >= due

    def _refresh(self, secret: str, key: str, record: Record) -> AuthServiceError | None:
        keeping = self._unsaved.keeping(secret, key, record)
        try:
            renewed = self._renew(record.session, keeping.save_refresh_token)
        except SessionOver as over:
            self._outage.answered()
            if not keeping.changed and self._stopped.wait(self._patience.settling):
                # There is no time to be sure. Whoever asks next is told the same.
                return ProviderDown("the service is ending")
            return keeping.end(over)
        except ProviderWrong as wrong:
            self._outage.not_asked()
            return wrong
        except (ProviderSilent, Unavailable) as error:
            self._outage.failed(copy(error))
            return error
        self._outage.answered()
        self._counts.add(Metric.REFRESHES)
        return keeping.save(msgspec.structs.replace(renewed, access_token_issued=self._now()))
