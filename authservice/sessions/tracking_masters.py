"""One watch over several masters, or over one that may be replaced: a `Tracking` for each.

Owns the thread that goes on finding out which masters there are, and the combined stamp: it stands
for the masters of the present view together, and is not known while one of them is not followed, or
while an answer may have come from a server that is none of them. Made by `sessions.redis`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from datetime import timedelta

from authservice.errors import StoreDown
from authservice.logs import Event
from authservice.sessions import tracking
from authservice.sessions.redis_servers import Node, Servers, Vouched
from authservice.sessions.tracking import Tracking

LOOK_EVERY = timedelta(milliseconds=100)
"""How often it is asked who the masters are: how long a master that was replaced, but still answers,
is taken for one."""

log = logging.getLogger(__name__)


class TrackingMasters:
    """The `Watch` over the entries of all masters of some servers. `holds` is always ``False``."""

    def __init__(self, servers: Servers, track: Callable[[Node], Tracking]) -> None:
        """``track`` makes the watch over one master, not yet started."""
        self._servers = servers
        self._track = track
        self._run = _Run(servers, track)

    def stamp(self) -> object | None:
        vouched, trackings = self._run.following
        if vouched is None or self._servers.vouched is not vouched:
            return None
        stamps = [each.stamp() for each in trackings]
        return None if None in stamps else (vouched, *stamps)

    def holds(self, key: str, version: int) -> bool:
        return False

    def start(self) -> None:
        self.stop()
        threading.Thread(target=self._run.follow, name="session-masters", daemon=True).start()

    def stop(self) -> None:
        """Waits for nobody, like `Tracking.stop`."""
        ended, self._run = self._run, _Run(self._servers, self._track)
        ended.end()


_NOBODY: tuple[Vouched | None, tuple[Tracking, ...]] = (None, ())


class _Run:
    """What happens between `TrackingMasters.start` and `TrackingMasters.stop`. Shares no lock with
    anybody, since a fork may happen while the thread holds it."""

    def __init__(self, servers: Servers, track: Callable[[Node], Tracking]) -> None:
        self._servers = servers
        self._track = track
        self._process = os.getpid()
        self._stopping = threading.Event()
        self._trackings: dict[Node, Tracking] = {}
        self.following = _NOBODY
        """What is vouched for, and the watches over its masters. One value, so that a reader never
        sees half of a change."""

    def end(self) -> None:
        """In a forked child too, where there is no thread but its parent's connections."""
        self.following = _NOBODY
        if os.getpid() == self._process:
            self._stopping.set()
        else:
            self._let_go()

    def follow(self) -> None:
        try:
            while not self._stopping.is_set():
                rest = LOOK_EVERY
                try:
                    self._look()
                except StoreDown:
                    self.following = _NOBODY
                except Exception as fault:
                    rest = tracking.REST_AFTER_FAULT
                    self._let_go()  # one of them may not have begun
                    log.error(Event.UNEXPECTED.value, exc_info=fault)
                self._stopping.wait(rest.total_seconds())
        finally:  # whatever ended it: nobody looks any more, so nothing is known
            self._let_go()

    def _look(self) -> None:
        vouched = self._servers.look()
        if vouched is None or vouched is self.following[0]:
            return
        nodes = vouched.view.nodes
        for node in nodes:
            if node not in self._trackings:
                self._trackings[node] = self._track(node)
                self._trackings[node].start()
        self.following = (vouched, tuple(self._trackings[node] for node in nodes))
        for node in set(self._trackings).difference(nodes):
            self._trackings.pop(node).stop()

    def _let_go(self) -> None:
        self.following = _NOBODY
        while self._trackings:
            self._trackings.popitem()[1].stop()
