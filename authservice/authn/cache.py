"""What is known about bearer tokens already, so that nobody is asked twice in a short time.

`BearerCache` is the memory of one process, `CachedAuthenticator` puts it in front of one
authenticator. Verified identities are kept for ``CACHE_EXPIRATION_MINUTES`` where ``CACHE_ENABLED``
says so, and never past the token's own expiry. That a party elsewhere refused a token, or did not
know it, is always kept for a moment, and one token is never asked about twice at the same time: a
flood of bad tokens costs the provider next to nothing. An error is never kept.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from copy import copy
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cachetools import TLRUCache, TTLCache

from authservice.authn import BearerAuthenticator
from authservice.check import NeedsIO, Reach
from authservice.clock import seconds_of
from authservice.errors import AuthServiceError, Refused, TooManyChecks
from authservice.identity import Identity
from authservice.ops import Counts, Metric

MOST_ASKED = 4
"""Of one authenticator at once. Each question may wait for a party that hangs, and checks need the
rest of the threads."""
PATIENCE = timedelta(seconds=1)
"""How old a question may be while others wait for its answer, or for their turn."""
REFUSED_LIFETIME = timedelta(seconds=10)
"""For how long a verdict against a token is kept. A token that its provider accepts a moment later
(copies of a provider that lag behind) has to wait for so long."""

_RECENT = timedelta(seconds=10)
"""How exactly it is known which identities were asked for least recently: to note it costs more than a hit."""

Key = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Refusal:
    """The verdict «this kind's, and bad», with the text for the log."""

    detail: str


Verdict = Identity | Refusal | None


@dataclass(frozen=True, slots=True)
class _Kept:
    """An identity, until when it is kept, and until when (in seconds since 1970, no later) a hit need not be noted
    again."""

    identity: Identity
    end: datetime
    noted: float


@dataclass(frozen=True, slots=True)
class _Flight:
    """A question under way: when it began, by the monotonic clock, and what will come of it."""

    began: float
    verdict: Future[Verdict]

    def patience(self) -> float:
        """Seconds for which others wait for it yet."""
        return max(0.0, PATIENCE.total_seconds() - (time.monotonic() - self.began))


class BearerCache:
    """Verdicts about tokens, shared by all authenticators of a process. Safe for threads.

    ``lifetime`` is for identities, ``None`` keeps none. Of identities and of verdicts against a
    token at most ``max_entries`` are kept each, apart from each other, so that bad tokens cannot
    push out good ones; of identities that were asked for lately, as many again. All times are those of
    ``now``, on which also expiry is judged.
    """

    def __init__(
        self,
        max_entries: int,
        lifetime: timedelta | None,
        now: Callable[[], datetime],
        *,
        refused_lifetime: timedelta = REFUSED_LIFETIME,
        most_asked: int = MOST_ASKED,
        counts: Counts | None = None,
    ) -> None:
        def until(key: Key, kept: _Kept, kept_at: datetime) -> datetime:
            return kept.end

        self._now, self._seconds = now, seconds_of(now)
        self._lifetime = lifetime
        self._most = max_entries
        self._count_hit = (counts or Counts()).adder(Metric.BEARER_HITS)
        self._most_asked = most_asked
        # Any clock will do for cachetools, though its types speak of numbers.
        self._identities: TLRUCache[Key, _Kept] = TLRUCache(max_entries, until, timer=now)  # type: ignore[arg-type]
        self._lately: dict[Key, _Kept] = {}
        """Those that were asked for lately, thrown away at ``_renewal``. Read without the lock."""
        self._renewal = now()
        self._against: TTLCache[Key, Refusal | None] = TTLCache(
            max_entries, refused_lifetime, timer=now  # type: ignore[arg-type]
        )
        self._lock = threading.Lock()
        self._landed = threading.Condition(self._lock)
        self._flights: dict[Key, _Flight] = {}

    def find(self, key: Key) -> Verdict:
        """What is known. Raises KeyError when nothing is."""
        kept = self._lately.get(key)
        if kept is not None and self._seconds() < kept.noted:
            self._count_hit()
            return kept.identity
        with self._lock:
            verdict = self._find(key)
        self._count_hit()
        return verdict

    def keep(self, key: Key, verdict: Verdict) -> None:
        """Remembers a verdict that nothing was known of before."""
        with self._lock:
            # What was known once would come back with a clock that goes back.
            self._lately.pop(key, None)
            if not isinstance(verdict, Identity):
                self._against[key] = verdict
            elif self._lifetime is not None:
                end = self._now() + self._lifetime
                if verdict.expires:
                    end = min(end, verdict.expires)
                self._identities[key] = _Kept(verdict, end, 0.0)

    def once(self, key: Key, ask: Callable[[], Verdict]) -> Verdict:
        """What ``ask`` says, kept; of all who ask about one key at the same time only the first
        does, and the others get its verdict or its `errors.AuthServiceError`. Should the first
        end in any other way, the next one asks.

        At most ``most_asked`` questions of one authenticator are under way at once, and nobody waits
        for one that is older than `PATIENCE`: raises `errors.TooManyChecks` instead.
        """
        while True:
            with self._lock:
                try:
                    return self._find(key)
                except KeyError:
                    pass
                flight = self._flights.get(key)
                leads = flight is None
                if flight is None:
                    others = [other for (name, _), other in self._flights.items() if name == key[0]]
                    if len(others) >= self._most_asked:
                        self._wait_for_a_landing(others)
                        continue
                    flight = self._flights[key] = _Flight(time.monotonic(), Future())
            if leads:
                return self._lead(key, ask, flight.verdict)
            try:
                return flight.verdict.result(flight.patience())
            except AuthServiceError as error:
                # A copy: an exception collects the frames of every thread that raises it.
                raise copy(error) from None
            except _Abandoned:
                continue
            except FutureTimeout:
                raise TooManyChecks("this token is being asked about") from None

    def _wait_for_a_landing(self, others: list[_Flight]) -> None:
        """Needs the lock, and lets go of it while waiting."""
        left = min(other.patience() for other in others)
        if left <= 0 or not self._landed.wait(left):
            raise TooManyChecks("too many tokens are being asked about")

    def _find(self, key: Key) -> Verdict:
        """Needs the lock."""
        kept = self._identities.get(key) if self._lifetime is not None else None
        if kept is None:
            return self._against[key]
        now = self._now()
        if now >= self._renewal or len(self._lately) >= self._most:
            self._lately.clear()
            self._renewal = now + _RECENT
        self._lately[key] = replace(kept, noted=min(kept.end, now + _RECENT).timestamp())
        return kept.identity

    def _lead(self, key: Key, ask: Callable[[], Verdict], flight: Future[Verdict]) -> Verdict:
        outcome: Verdict | BaseException = _Abandoned()
        try:
            outcome = ask()
            self.keep(key, outcome)
            return outcome
        except AuthServiceError as error:
            outcome = copy(error)
            raise
        finally:
            # Kept, then forgotten, then told: who comes later finds what was kept, or asks anew.
            with self._lock:
                del self._flights[key]
                self._landed.notify_all()
            if isinstance(outcome, BaseException):
                flight.set_exception(outcome)
            else:
                flight.set_result(outcome)


class CachedAuthenticator:
    """A `BearerAuthenticator` in front of another one, of the same name.

    What the inner one can tell without waiting it is asked each time that no identity is kept:
    only its identities are worth keeping then, since forged tokens cost nobody else anything.
    """

    def __init__(self, inner: BearerAuthenticator, cache: BearerCache) -> None:
        self.name = inner.name
        self._inner = inner
        self._cache = cache

    def judge(self, token: str, reach: Reach) -> Identity | None:
        """As the inner one; under `Reach.MEMORY` also what only the network could tell it, when
        that is kept."""
        key = (self.name, hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest())
        try:
            return _told(self._cache.find(key))
        except KeyError:
            pass
        try:
            identity = self._inner.judge(token, Reach.MEMORY)
        except NeedsIO:
            if reach is Reach.MEMORY:
                raise
            return _told(self._cache.once(key, lambda: self._ask(token)))
        if identity is not None:
            self._cache.keep(key, identity)
        return identity

    def _ask(self, token: str) -> Verdict:
        try:
            return self._inner.judge(token, Reach.NETWORK)
        except Refused as refused:
            return Refusal(str(refused))


class _Abandoned(Exception):
    """Who asked for everybody went away without an answer."""


def _told(verdict: Verdict) -> Identity | None:
    if isinstance(verdict, Refusal):
        raise Refused(verdict.detail)
    return verdict
