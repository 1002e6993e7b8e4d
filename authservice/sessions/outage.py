"""What one process knows of a provider that fails: whether it may be asked now, and since when it fails.

One refusal to work is the provider's, not a session's, so all sessions back off together: for a
second at first, then for twice as long each time, up to half a minute. When that is over one asks,
and the others wait for what becomes of it. Told by `sessions.refresh`; asks nobody itself.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import dataclass

from authservice.errors import AuthServiceError
from authservice.logs import Event
from authservice.ops import Counts, Metric

log = logging.getLogger(__name__)

PROBE_SECONDS = 15.0
"""For how long the others wait for the one who asks."""


@dataclass(frozen=True, slots=True)
class BackOff:
    """Seconds: the first pause, and the longest one."""

    first: float = 1.0
    longest: float = 30.0

    def after(self, pause: float) -> float:
        """The pause that follows this one, without jitter."""
        return min(self.longest, max(self.first, 2 * pause))


class Outage:
    """Safe for threads; nothing here waits."""

    def __init__(self, back_off: BackOff, counts: Counts) -> None:
        self._back_off = back_off
        counts.gauge(Metric.PROVIDER_OUTAGE, lambda: int(self.failure() is not None))
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forgets everything, also after a fork in the middle of another thread's call."""
        self._lock = threading.Lock()
        self._error: AuthServiceError | None = None
        self._probing = False
        self._generation = 0
        self._pause = 0.0
        self._began = self._last = self._until = 0.0

    def failure(self) -> AuthServiceError | None:
        """Why the provider is known to fail; ``None`` also where the last failure is so long ago
        that nobody can say how it is now."""
        if self._error is None or time.monotonic() > self._last + 2 * self._back_off.longest + PROBE_SECONDS:
            return None
        return self._error

    def ticket(self) -> int | None:
        """A leave to ask it, or ``None``. While it fails, one at a time gets one, who tells what came
        of it: `failed`, `answered` or `not_asked`."""
        with self._lock:
            if self._error is not None:
                now = time.monotonic()
                if now < self._until:
                    return None
                self._until, self._probing = now + PROBE_SECONDS, True
            return self._generation

    def is_good(self, ticket: int) -> bool:
        """Whether it may still be asked with a ticket that was got a while ago: not when an outage began
        since."""
        return ticket == self._generation

    def not_asked(self) -> None:
        """Who was allowed to ask did not, so the next one may."""
        with self._lock:
            if self._probing:
                self._until, self._probing = 0.0, False

    def failed(self, error: AuthServiceError) -> None:
        """It was asked and did not work."""
        with self._lock:
            now = time.monotonic()
            begins = self._error is None
            if begins:
                self._began = now
            if begins or self._probing:
                # Not for others that had asked before the first failure was known.
                self._probing = False
                self._generation += 1
                self._pause = self._back_off.after(self._pause)
                self._until = now + self._pause * random.uniform(0.75, 1.25)
            self._error, self._last = error, now
        if begins:
            log.error(Event.OUTAGE_BEGAN.value, extra={"reason": error.reason, "cause": str(error)})

    def answered(self) -> None:
        """It works."""
        with self._lock:
            over = self._error is not None
            seconds = time.monotonic() - self._began
            self._error, self._pause, self._until, self._probing = None, 0.0, 0.0, False
        if over:
            log.warning(Event.OUTAGE_OVER.value, extra={"seconds": round(seconds, 1)})
