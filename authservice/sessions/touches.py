"""Marks of last use on their way into the store: a check notes one and does not wait, a thread writes it.

Owns which sessions were seen and are not marked so yet, one mark for each and a bounded number of
them, and when a mark that the store did not take is tried again. What writing means is a function that
it is given by `sessions.live`, which also counts what waits here as seen.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from time import monotonic

from authservice.errors import ProviderWrong, StoreDown
from authservice.logs import Event
from authservice.ops import Counts, Metric

MOST_WAITING = 10_000
EVERY_SECONDS = 0.5
"""Between two tries while the store takes nothing."""
DRAIN_SECONDS = 3.0
"""How long an end waits for what is left."""

_PATIENCE = 0.1
"""Seconds of failures after which the rest of the marks is left for the next try: ten thousand that fail
one after the other must not keep a processor busy."""
_SETTLES = 0.05
"""Seconds after which word of our own write has come back and dropped what it drops."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Touch:
    """A session in use: when it was seen last, and at the ``first`` check of which the store knows
    nothing. That one was within the limit that the store knows, each later one within the limit
    after its predecessor."""

    secret: str
    first: datetime
    last: datetime

    def __repr__(self) -> str:
        """Says when, never which: text ends up in logs."""
        return f"<Touch at {self.last}>"


class Noted(Enum):
    """What became of a mark."""

    TAKEN = "it will be written"
    REFUSED = "whoever brings it writes it himself"
    LOST = "the store takes none, and too many wait already"


class Touches:
    """The marks of one process, between ``start`` and ``stop``. Safe for threads.

    ``write`` puts one into the store and says whether a copy is kept here of that session; it raises
    `errors.StoreDown` when it is to be tried again. ``renew`` is called for such a copy when the store's
    own word of the write must have come: it may have dropped the copy.
    """

    def __init__(self, write: Callable[[Touch], bool], renew: Callable[[str], object], counts: Counts) -> None:
        self._write = write
        self._renew = renew
        self._counts = counts
        self._begin_anew()
        counts.gauge(Metric.MARKS_WAITING, lambda: len(self._waiting))

    def _begin_anew(self) -> None:
        """Forgets everything, also after a fork in the middle of another thread's call."""
        self._lock = threading.Lock()
        self._waiting: dict[str, Touch] = {}
        self._taking = self._failing = self._told = False
        self._something = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins in this process, and again in each process forked from it: the marks of the parent are
        the parent's."""
        self._begin_anew()
        self._taking = True
        self._thread = threading.Thread(
            target=self._run, args=(self._something, self._stopping), name="session marks", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Takes no more, and waits a while until what is left is written."""
        with self._lock:
            self._taking = False
        self._stopping.set()
        self._something.set()
        if self._thread is not None:
            self._thread.join(DRAIN_SECONDS)
            self._thread = None
        if self._waiting:
            log.warning("sessions not marked as seen at the end: %s", len(self._waiting))
            for _ in range(len(self._waiting)):
                self._counts.add(Metric.MARKS_LOST)

    def note(self, key: str, secret: str, now: datetime) -> Noted:
        """A session is in use. Never waits."""
        with self._lock:
            if not self._taking:
                return Noted.REFUSED
            before = self._waiting.get(key)
            if before is None and len(self._waiting) >= MOST_WAITING:
                if not self._failing:
                    return Noted.REFUSED
                self._counts.add(Metric.MARKS_LOST)
                return Noted.LOST
            if before is None:
                self._waiting[key] = Touch(secret, now, now)
            else:
                self._waiting[key] = Touch(secret, before.first, max(before.last, now))
        self._something.set()
        return Noted.TAKEN

    def waiting(self, key: str) -> Touch | None:
        """What the store does not know yet of the session under this key."""
        return self._waiting.get(key)

    def __len__(self) -> int:
        return len(self._waiting)

    # --- the thread ---------------------------------------------------------------------------

    def _run(self, something: threading.Event, stopping: threading.Event) -> None:
        settling: deque[tuple[float, str]] = deque(maxlen=MOST_WAITING)
        try:
            while not stopping.is_set():
                something.wait(max(0.0, settling[0][0] - monotonic()) if settling else None)
                something.clear()
                if not self._write_all(settling):
                    stopping.wait(EVERY_SECONDS)
                    something.set()
                while settling and settling[0][0] <= monotonic():
                    self._renew(settling.popleft()[1])
            self._write_all(settling)
        except Exception as fault:
            self._counts.add(Metric.UNEXPECTED)
            log.error(Event.UNEXPECTED.value, exc_info=fault)
            raise
        finally:
            with self._lock:
                if something is self._something:
                    self._taking = False  # from now on checks write their marks themselves

    def _write_all(self, settling: deque[tuple[float, str]]) -> bool:
        """Each mark that waits, once; ``False`` when some are left. One that fails is the next time the
        last, so that a part of the store which is down keeps nobody else's."""
        left = False
        patience = _PATIENCE
        with self._lock:
            waiting = list(self._waiting.items())
        for key, touch in waiting:
            began = monotonic()
            try:
                kept = self._write(touch)
            except StoreDown as error:
                if not self._told:
                    log.warning("sessions not marked as seen for now: %s", error)
                self._failing = self._told = left = True
                self._to_the_end(key)
                patience -= monotonic() - began
                if patience <= 0:
                    return False
                continue
            except ProviderWrong as error:
                log.warning("session not marked as seen: %s", error)
                self._counts.add(Metric.MARKS_LOST)
                kept = False
            self._failing = False
            self._discard(key, touch)
            if kept:
                settling.append((monotonic() + _SETTLES, touch.secret))
        self._told = left  # once for each time, also where only a part of the store is down
        return not left

    def _to_the_end(self, key: str) -> None:
        with self._lock:
            self._waiting[key] = self._waiting.pop(key)

    def _discard(self, key: str, written: Touch) -> None:
        """This one is written; a later one may have come meanwhile."""
        with self._lock:
            if self._waiting.get(key) is written:
                del self._waiting[key]
