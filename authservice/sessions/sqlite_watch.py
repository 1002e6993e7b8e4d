"""Knowing without waiting whether an SQLite file is still as it was: the `Watch` of `SqliteStore`.

Owns one connection that only reads. Two signs are read: the number that every writer of ours
changes (`sessions.generation`), at each question; and SQLite's own count of changes, the mark that
says whether they concern an entry that was there, and the file's identity, every few milliseconds,
which also shows what other programs did, a writer that died half-way, and a file that was replaced.
The store makes one and tells it of forks.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from authservice.sessions import generation
from authservice.sessions.forks import ForkGuard
from authservice.sessions.generation import FileId
from authservice.sessions.sqlite_file import MARKING

LOOK_EVERY = 0.005
"""Seconds for which the number alone is believed."""

LOOK_TAKES = 4 * LOOK_EVERY
"""For how much longer, while another thread looks already: nobody waits for it."""

_MARK = (
    "SELECT value FROM state WHERE name = 'mark' AND"
    f" (SELECT count(*) FROM sqlite_master WHERE type = 'trigger' AND name IN {MARKING}) = {len(MARKING)}"
)

_NEVER = float("-inf")
_NO_NUMBER: tuple[Sequence[int], FileId | None] = ((0,), None)
_UNKNOWN = (sqlite3.Error, OSError, RuntimeError, ValueError)
"""What comes of a file that cannot be read just now, and of a fork at this moment."""


@dataclass(frozen=True, slots=True)
class _Sight:
    """What was seen last: while ``number[0]`` is ``seen``, ``stamp`` holds ``until`` then."""

    number: Sequence[int]
    seen: int
    until: float
    stamp: object
    signs: tuple[object, ...]
    mark: object
    changes: object


class SqliteWatch:
    """``file`` tells the file in use, or ``None`` before there is one; ``connect`` opens it without
    any patience and may raise sqlite3.Error. `let_go` must run before each fork, when nobody is
    inside ``guard``."""

    def __init__(
        self, file: Callable[[], Path | None], connect: Callable[[Path], sqlite3.Connection], guard: ForkGuard
    ) -> None:
        self._file = file
        self._connect = connect
        self._guard = guard
        self._running = False
        self._lock = threading.Lock()
        self._sight: _Sight | None = None
        self._connection: sqlite3.Connection | None = None
        self._opened: FileId | None = None
        self._number = _NO_NUMBER

    def stamp(self) -> object | None:
        sight = self._sight
        if sight is not None and sight.number[0] == sight.seen and monotonic() < sight.until:
            return sight.stamp
        with self._alone() as alone:
            if not alone:
                return self._seen_lately()
            try:
                self._sight = self._look()
            except _UNKNOWN:
                self._sight = None
                self._close()
            return self._sight.stamp if self._sight else None

    def holds(self, key: str, version: int) -> bool:
        with self._alone() as alone:
            if not alone or self._connection is None:
                return False
            try:
                rows = self._connection.execute("SELECT version FROM entries WHERE key = ?", (key,)).fetchall()
            except _UNKNOWN:
                return False
            return rows == [(version,)]

    def start(self) -> None:
        self.let_go()
        self._lock = threading.Lock()
        self._sight = None
        self._running = True

    def stop(self) -> None:
        with self._lock:
            self._running = False
            self._sight = None
            self._number = _NO_NUMBER
            self._close()

    def let_go(self) -> None:
        """Closes what is open, unless it is in use at this very moment; the next look opens it
        again."""
        if self._lock.acquire(blocking=False):
            self._close()
            self._lock.release()

    def _seen_lately(self) -> object | None:
        sight = self._sight
        if sight is None or sight.number[0] != sight.seen or monotonic() >= sight.until + LOOK_TAKES:
            return None
        return sight.stamp

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether this thread alone may use the connection, now: ``False`` where it would have to
        wait for another thread, or for a fork, or where nothing is watched."""
        with self._guard.inside_now() as inside:
            if not inside or not self._lock.acquire(blocking=False):
                yield False
                return
            try:
                yield self._running
            finally:
                self._lock.release()

    def _look(self) -> _Sight | None:
        """Reads every sign: the number first, so that a change between it and the rest is seen
        twice rather than never. Every statement is read to its end: one that is not keeps SQLite
        from ever starting its log anew."""
        file = self._file()
        if file is None:
            return None
        number, number_id = self._follow(file)
        seen = number[0]
        file_id = _file_id(file)
        if self._connection is None or self._opened != file_id:
            self._close()
            self._connection, self._opened = self._connect(file), file_id
        before = self._sight
        # SQLite's count says something only beside an earlier one of the same connection. It counts
        # what harms no copy too, such as sweeps and logins; the mark beside the entries does not.
        count = self._connection.execute("PRAGMA data_version").fetchall()
        mark = before.mark if before and before.changes == (self._connection, count) else self._read_mark()
        signs = (self._connection, file_id, mark, number_id, seen)
        stamp = before.stamp if before and before.signs == signs else object()
        until = monotonic() + LOOK_EVERY if number_id else _NEVER
        return _Sight(number, seen, until, stamp, signs, mark, (self._connection, count))

    def _read_mark(self) -> object:
        """What every change of an entry that was there makes another one, in whatever program: our
        triggers write it. That they stay there is what the schema's own count tells."""
        assert self._connection is not None
        mark = self._connection.execute(_MARK).fetchall()
        if not mark:
            raise sqlite3.DatabaseError("nothing marks changes in this file")
        return mark, self._connection.execute("PRAGMA schema_version").fetchall()

    def _follow(self, file: Path) -> tuple[Sequence[int], FileId | None]:
        """The number; again where another file has taken its place, and none where it cannot be had."""
        try:
            there = _file_id(generation.beside(file))
        except FileNotFoundError:
            there = None
        if there is None or there != self._number[1]:
            self._number = generation.follow(file) or _NO_NUMBER
        return self._number

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()


def _file_id(file: Path) -> FileId:
    there = os.stat(file)
    return there.st_dev, there.st_ino
