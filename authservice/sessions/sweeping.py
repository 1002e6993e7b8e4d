"""Removing what has expired, in the background, so that a store's size follows its live sessions.

Redis does this by itself and answers that there is nothing to do. Started and stopped by the
composition root in each process that serves; two processes sweeping at once harm nobody.
"""

from __future__ import annotations

import logging
import threading
from datetime import timedelta

from authservice.errors import StoreDown
from authservice.sessions import Store

log = logging.getLogger(__name__)

EVERY = timedelta(minutes=1)


class Sweeper:
    """Sweeps one store again and again. `start` must run again in a forked process."""

    def __init__(self, store: Store, every: timedelta = EVERY) -> None:
        self._store = store
        self._every = every
        self._stopping = threading.Event()

    def start(self) -> None:
        """Begins sweeping, first after one interval: a start has other things to do."""
        self._stopping = threading.Event()
        threading.Thread(target=self._run, args=(self._stopping,), name="sweeper", daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()

    def _run(self, stopping: threading.Event) -> None:
        while not stopping.wait(self._every.total_seconds()):
            try:
                # A sweep is bounded, so that it never holds up a login; what is left comes next.
                while self._store.sweep() and not stopping.is_set():
                    pass
            except StoreDown as error:
                log.debug("not swept: %s", error)
