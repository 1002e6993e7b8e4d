"""Keeping a process from forking while something that cannot cross a fork is in use.

SQLite counts a process's locks in memory; a child that inherits those counts believes in locks
that it does not hold, and damages the file, even through connections of its own
(https://www.sqlite.org/howtocorrupt.html §2.6). So nothing may be open at the moment of a fork.
Used by `sessions.sqlite` and its watch; it matters only where an application is loaded before its workers are
forked, and costs nothing else anywhere.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ForkGuard:
    """Holds `os.fork` up until nobody is inside, then lets go of what is open, then lets it be.

    ``let_go`` is called in the parent before each fork; it must not enter the guard. When
    somebody stays inside for longer than ``patience`` (seconds) the fork happens all the same,
    and entering is a RuntimeError in that child for ever.
    """

    def __init__(self, let_go: Callable[[], None], patience: float) -> None:
        self._let_go = let_go
        self._patience = patience
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._forking = False
        self._crossed = False
        _watch_forks(self)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Between these two moments the process does not fork."""
        with self._changed:
            while self._forking:
                self._changed.wait()
            if self._crossed:
                raise RuntimeError("the process was forked while this was in use")
            self._inside += 1
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def inside_now(self) -> Iterator[bool]:
        """As `inside`, but never waits for a fork and raises nothing: ``False`` is no entrance."""
        entered = self._changed.acquire(blocking=False)
        if entered:
            entered = not self._forking and not self._crossed
            self._inside += entered
            self._changed.release()
        try:
            yield entered
        finally:
            if entered:
                self._leave()

    def _leave(self) -> None:
        with self._changed:
            self._inside -= 1
            if not self._inside:
                self._changed.notify_all()

    def before_fork(self) -> None:
        """In the parent; keeps the condition's lock until one of the other two."""
        self._changed.acquire()
        self._forking = True
        self._changed.wait_for(lambda: self._inside == 0, self._patience)
        self._let_go()

    def after_fork_in_parent(self) -> None:
        self._forking = False
        self._changed.notify_all()
        self._changed.release()

    def after_fork_in_child(self) -> None:
        """The lock is a new one: the old one's waiters do not exist here."""
        self._changed = threading.Condition(threading.Lock())
        self._crossed = self._crossed or self._inside > 0
        self._inside = 0
        self._forking = False


def _watch_forks(guard: ForkGuard) -> None:
    """Handlers cannot be taken back, so they must not keep the guard alive; between the moment
    before and the moment after a fork they do."""
    known = weakref.ref(guard)
    forking: list[ForkGuard] = []

    def before() -> None:
        guard = known()
        if guard is not None:
            guard.before_fork()
            forking.append(guard)

    def after_in_parent() -> None:
        if forking:
            forking.pop().after_fork_in_parent()

    def after_in_child() -> None:
        if forking:
            forking.pop().after_fork_in_child()

    os.register_at_fork(before=before, after_in_parent=after_in_parent, after_in_child=after_in_child)
