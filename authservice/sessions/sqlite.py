"""A store in one SQLite file, in WAL mode: for one host, with any number of workers.

Owns the statements and the connections; several processes may use the file at once, a network file
system may not hold it. It knows nothing of what the bytes mean. The file itself is
`sessions.sqlite_file`'s. Built by the composition root; called by `sessions.live`.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from weakref import WeakSet

from authservice.sessions import (
    Entry,
    Forget,
    Inspection,
    Label,
    Labelled,
    from_microseconds,
    generation,
    to_microseconds,
)
from authservice.sessions.forks import ForkGuard
from authservice.sessions.sqlite_file import (
    BUSY_TIMEOUT,
    FAILURES,
    Connection,
    FileId,
    connect,
    file_id,
    prepare,
    store_down,
    transaction,
)
from authservice.sessions.sqlite_inspection import inspect
from authservice.sessions.sqlite_sweep import Pace, end_turn, sweep_step, take_turn
from authservice.sessions.sqlite_watch import SqliteWatch

LABELS_AT_ONCE = 500
"""How many labels one statement reads: between two of them others may write and the log may start anew."""

_INSERT_IF_ABSENT = (
    "INSERT INTO entries (key, value, version, expires) SELECT :key, :value, :version, :expires"
    " WHERE NOT EXISTS (SELECT 1 FROM entries WHERE key = :key)"
)
_UPDATE = "UPDATE entries SET value = :value, version = :version, expires = :expires WHERE key = :key"
_UPDATE_IF_VERSION = _UPDATE + " AND version = :if_version AND expires > :now"
_DELETE_EXPIRED = "DELETE FROM entries WHERE key = :key AND expires <= :now"
_LABEL = (
    "INSERT INTO labels (key, expires, metadata) VALUES (?, ?, ?)"
    " ON CONFLICT (key) DO UPDATE SET expires = excluded.expires, metadata = excluded.metadata"
)


class SqliteStore:
    """The `Store` contract over one file. Every failure is `errors.StoreDown`; the constructor
    raises nothing: a file that cannot be used yet is tried again at each call. Without ``create`` a
    file that is not there is such a failure, and stays away."""

    def __init__(
        self, path: str | os.PathLike[str], now: Callable[[], datetime], *, create: bool = True
    ) -> None:
        self._asked = Path(path)
        self._create = create
        self._now = now
        self._prepare_lock = threading.Lock()
        self._connections = _Connections()
        self._watches: WeakSet[SqliteWatch] = WeakSet()
        self._guard = ForkGuard(partial(_let_go, self._connections, self._watches), 2 * BUSY_TIMEOUT.total_seconds())
        self._file: Path | None = None
        self._prepared: FileId | None = None
        self._pace = Pace()
        self.notices: tuple[str, ...] = ()
        try:
            with self._guard.inside():
                self._ready()
        except FAILURES:
            pass  # said by every call, `ping` first of all

    @property
    def path(self) -> Path:
        """The file that is used; the one that was asked for until that is known."""
        return self._file or self._asked

    def load(self, key: str) -> Entry | None:
        with self._connection() as connection:
            row = connection.execute(
                "SELECT value, version, expires FROM entries WHERE key = ? AND expires > ?",
                (key, to_microseconds(self._now())),
            ).fetchone()
            return _entry(row) if row else None

    def save(
        self,
        key: str,
        value: bytes,
        expires: datetime,
        *,
        if_absent: bool = False,
        if_version: int | None = None,
        label: Label | None = None,
    ) -> bool:
        if if_absent and if_version is not None:
            raise ValueError("if_absent and if_version exclude each other")
        end, now = to_microseconds(expires), to_microseconds(self._now())
        row = {
            "key": key,
            "value": value,
            "version": secrets.randbits(62),
            "expires": end,
            "now": now,
            "if_version": if_version,
        }
        ends = end <= now
        with self._connection() as connection:
            with _on_the_disk(connection) if ends else nullcontext(), transaction(connection):
                inserted = if_version is None and _insert(connection, row)
                updated = False
                if not inserted and not if_absent:
                    update = _UPDATE if if_version is None else _UPDATE_IF_VERSION
                    updated = connection.execute(update, row).rowcount == 1
                if ends:
                    connection.execute(_DELETE_EXPIRED, row)
                elif label and (inserted or updated):
                    _keep_label(connection, key, end, label)
            if updated:
                self._told()
            return inserted or updated

    def delete(self, key: str) -> bool:
        with self._connection() as connection:
            with _on_the_disk(connection):
                deleted = connection.execute(
                    "DELETE FROM entries WHERE key = ? AND expires > ?", (key, to_microseconds(self._now()))
                )
            if deleted.rowcount == 1:
                self._told()
            return deleted.rowcount == 1

    def find(self, tag: str) -> list[str]:
        with self._connection() as connection:
            rows = connection.execute(
                "SELECT labels.key FROM tags CROSS JOIN labels ON labels.id = tags.label"
                " WHERE tags.tag = ? AND labels.expires > ?",
                (tag, to_microseconds(self._now())),
            ).fetchall()
            return [key for (key,) in rows]

    def label(self, key: str) -> Labelled | None:
        with self._connection() as connection:
            row = connection.execute(
                "SELECT id, key, metadata, expires FROM labels WHERE key = ? AND expires > ?",
                (key, to_microseconds(self._now())),
            ).fetchone()
            return _labelled(row) if row else None

    def labels(self) -> Iterator[Labelled]:
        """The oldest ones first."""
        last = 0
        while True:
            with self._connection() as connection:
                rows = connection.execute(
                    "SELECT id, key, metadata, expires FROM labels WHERE id > ? ORDER BY id LIMIT ?",
                    (last, LABELS_AT_ONCE),
                ).fetchall()
                found = [_labelled(row) for row in rows]
            if not found:
                return
            last = rows[-1][0]
            now = self._now()
            yield from (one for one in found if one.expires > now)

    def inspect(self, *, thorough: bool | None = None) -> Inspection:
        with self._connection() as connection:
            return inspect(connection, self.path, self._now(), thorough)

    def sweep(self) -> int:
        """Removes in small steps what has expired, for about half a second, one process at a time.
        No step holds the file for longer than a few milliseconds, and others come first in between."""
        with self._connection() as connection:
            turn = take_turn(connection, to_microseconds(self._now()))
        if turn is None:
            return 0
        swept = 0
        for _ in self._pace.steps():
            with self._connection() as connection:
                removed = sweep_step(connection, to_microseconds(self._now()), self._pace)
            swept += removed
            if not removed:
                break
        with self._connection() as connection:
            end_turn(connection, turn)
        return swept

    def ping(self) -> None:
        """Writes one row, so that a full disk or a file turned read-only shows, and reads."""
        with self._connection() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO probe (id, at) VALUES (1, ?)", (to_microseconds(self._now()),)
            )
            connection.execute("SELECT key FROM entries LIMIT 1").fetchone()

    def watch(self, forget: Forget) -> SqliteWatch:
        """Needs no ``forget``: after every change it is asked which versions still hold."""
        watch = SqliteWatch(lambda: self._file, partial(connect, patience=timedelta(0)), self._guard)
        self._watches.add(watch)
        return watch

    def close(self) -> None:
        _let_go(self._connections, self._watches)

    def _told(self) -> None:
        """Lets every watching process know at once that an entry is another one now, or none, which
        is committed. Where that fails they see it a few milliseconds later."""
        if self._file is not None:
            generation.advance(self._file)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection that no other thread uses meanwhile."""
        try:
            with self._guard.inside():
                file, opened = self._ready()
                connection = self._connections.take(file, opened)
                try:
                    yield connection
                except BaseException:
                    self._connections.renew(file, connection)
                    raise
                self._connections.give_back(connection)
        except FAILURES as error:
            raise store_down(self.path, error) from error

    def _ready(self) -> tuple[Path, FileId]:
        """The file to use and which one it is on the disk; made ready the first time, and again
        when somebody took it away or put another one there. Raises what `prepare` raises."""
        there = self._there()
        if self._file is not None and there is not None and there == self._prepared:
            return self._file, there
        if not self._prepare_lock.acquire(timeout=BUSY_TIMEOUT.total_seconds()):
            raise TimeoutError("still being made ready")
        try:
            there = self._there()
            if self._file is None or there is None or there != self._prepared:
                self._file, self.notices = prepare(self._asked, self._create)
                there = self._prepared = file_id(self._file)
            return self._file, there
        finally:
            self._prepare_lock.release()

    def _there(self) -> FileId | None:
        try:
            return file_id(self._file) if self._file is not None else None
        except FileNotFoundError:
            return None


def _let_go(connections: _Connections, watches: Iterable[SqliteWatch]) -> None:
    """Closes what is open; not a method of the store, which is gone then without a collector."""
    connections.close()
    for watch in watches:
        watch.let_go()


@contextmanager
def _on_the_disk(connection: sqlite3.Connection) -> Iterator[None]:
    """What is committed inside has reached the disk then, so that no power cut brings an ended session
    back; every other write may lose the last moments before one. A connection that fails is not used on."""
    connection.execute("PRAGMA synchronous = FULL")
    yield
    connection.execute("PRAGMA synchronous = NORMAL")


def _insert(connection: sqlite3.Connection, row: dict[str, object]) -> bool:
    """Whether it was written: not where there is a live entry. One that has expired goes first, and
    its label with it."""
    connection.execute(_DELETE_EXPIRED, row)
    return connection.execute(_INSERT_IF_ABSENT, row).rowcount == 1


def _keep_label(connection: sqlite3.Connection, key: str, expires: object, label: Label) -> None:
    """Writes no more than is new: mostly the tags are those that are there."""
    connection.execute(_LABEL, (key, expires, label.metadata))
    (number,) = connection.execute("SELECT id FROM labels WHERE key = ?", (key,)).fetchone()
    there = {tag for (tag,) in connection.execute("SELECT tag FROM tags WHERE label = ?", (number,)).fetchall()}
    asked = set(label.tags)
    connection.executemany("DELETE FROM tags WHERE tag = ? AND label = ?", [(tag, number) for tag in there - asked])
    connection.executemany("INSERT INTO tags (tag, label) VALUES (?, ?)", [(tag, number) for tag in asked - there])


class _Connections:
    """The idle connections, newest first. No lock: a deque's two ends are safe for threads."""

    def __init__(self) -> None:
        self._idle: deque[Connection] = deque()

    def take(self, file: Path, opened: FileId) -> Connection:
        """One that was opened on this very file; sqlite3.Error when none can be opened."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return connect(file, opened)
            if connection.file_id == opened:
                return connection
            _close_quietly(connection)

    def give_back(self, connection: Connection) -> None:
        self._idle.append(connection)

    def renew(self, file: Path, failed: Connection) -> None:
        """Puts a new connection in the place of one that failed: what it was opened with may be
        the reason. The failed one is closed last, and only if there is a new one: with the last
        connection SQLite takes its log and index away, and a full disk has no room for others."""
        try:
            self._idle.append(connect(file, failed.file_id))
        except sqlite3.Error:
            if not failed.in_transaction:
                self._idle.append(failed)
                return
        _close_quietly(failed)

    def close(self) -> None:
        while True:
            try:
                _close_quietly(self._idle.pop())
            except IndexError:
                return


def _entry(row: tuple[bytes, int, int]) -> Entry:
    value, version, expires = row
    if not (isinstance(value, bytes) and isinstance(version, int) and isinstance(expires, int)):
        raise sqlite3.DatabaseError("a row of another shape than ours")
    return Entry(value, version, from_microseconds(expires))


def _labelled(row: tuple[int, str, bytes, int]) -> Labelled:
    _, key, metadata, expires = row
    if not (isinstance(key, str) and isinstance(metadata, bytes) and isinstance(expires, int)):
        raise sqlite3.DatabaseError("a row of another shape than ours")
    return Labelled(key, metadata, from_microseconds(expires))


def _close_quietly(connection: sqlite3.Connection) -> None:
    try:
        connection.close()
    except sqlite3.Error:
        pass  # what was committed is in the log file, and the next connection reads it
