"""A store in one SQLite file, in WAL mode: for one host, with any number of workers.

Owns the file (created with mode 0600, never one that is not ours), its schema and its
connections; several processes may use it at once, a network file system may not. It knows
nothing of what the bytes mean. Built by the composition root; called by `sessions.live`.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from urllib.parse import quote
from weakref import WeakSet

from authservice.errors import StoreDown
from authservice.sessions import Entry, Forget, Inspection, Label, Labelled, from_microseconds, generation, to_microseconds
from authservice.sessions.forks import ForkGuard
from authservice.sessions.sqlite_watch import SqliteWatch

BUSY_TIMEOUT = timedelta(seconds=2)
"""How long a statement waits for another process's write."""

SWEEP_LIMIT = 1000
"""How many expired entries one sweep removes at most."""

_APPLICATION_ID = int.from_bytes(b"AuSv", "big")
_SCHEMA_VERSION = 1
_SMALLEST_DATABASE = 512
_SQLITE_MAGIC = b"SQLite format 3\0"
_BOLT_MAGIC = (0xED0CDAED).to_bytes(4, "little")
_BOLT_MAGIC_AT = 16

_FAILURES = (sqlite3.Error, OSError, RuntimeError, ValueError, OverflowError)
"""What comes of a file that cannot be used: SQLite's own, the system's; a loop of links or a fork
in mid-use (RuntimeError), no path at all (ValueError), a moment beyond the years (OverflowError)."""

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS entries"
    " (key TEXT PRIMARY KEY, value BLOB NOT NULL, version INTEGER NOT NULL, expires INTEGER NOT NULL)",
    "CREATE INDEX IF NOT EXISTS entries_by_expiry ON entries (expires)",
    "CREATE TABLE IF NOT EXISTS probe (id INTEGER PRIMARY KEY CHECK (id = 1), at INTEGER NOT NULL)",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_SCHEMA_VERSION}",
)

_UPSERT = (
    "INSERT INTO entries (key, value, version, expires) VALUES (:key, :value, :version, :expires)"
    " ON CONFLICT (key) DO UPDATE"
    " SET value = excluded.value, version = excluded.version, expires = excluded.expires"
)
_INSERT_IF_ABSENT = _UPSERT + " WHERE entries.expires <= :now"
_UPDATE_IF_VERSION = (
    "UPDATE entries SET value = :value, version = :version, expires = :expires"
    " WHERE key = :key AND version = :if_version AND expires > :now"
)
_SWEEP = (
    "DELETE FROM entries WHERE key IN (SELECT key FROM entries WHERE expires <= ? ORDER BY expires LIMIT ?)"
)


class SqliteStore:
    """The `Store` contract over one file. Every failure is `errors.StoreDown`; the constructor
    raises nothing: a file that cannot be used yet is tried again at each call."""

    def __init__(self, path: str | os.PathLike[str], now: Callable[[], datetime]) -> None:
        self._asked = Path(path)
        self._now = now
        self._prepare_lock = threading.Lock()
        self._connections = _Connections()
        self._watches: WeakSet[SqliteWatch] = WeakSet()
        self._guard = ForkGuard(partial(_let_go, self._connections, self._watches), 2 * BUSY_TIMEOUT.total_seconds())
        self._file: Path | None = None
        self.notices: tuple[str, ...] = ()
        try:
            with self._guard.inside():
                self._ready()
        except _FAILURES:
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
        statement = _UPSERT
        if if_absent:
            statement = _INSERT_IF_ABSENT
        elif if_version is not None:
            statement = _UPDATE_IF_VERSION
        row = {
            "key": key,
            "value": value,
            "version": secrets.randbits(62),
            "expires": to_microseconds(expires),
            "now": to_microseconds(self._now()),
            "if_version": if_version,
        }
        with self._connection() as connection:
            return self._told(connection.execute(statement, row).rowcount) == 1

    def delete(self, key: str) -> bool:
        """As the contract says; it is on the disk when this returns, so that no power cut brings
        an ended session back (every other write may lose the last moments before one)."""
        with self._connection() as connection:
            connection.execute("PRAGMA synchronous = FULL")
            deleted = connection.execute(
                "DELETE FROM entries WHERE key = ? AND expires > ?", (key, to_microseconds(self._now()))
            )
            connection.execute("PRAGMA synchronous = NORMAL")
            return self._told(deleted.rowcount) == 1

    def find(self, tag: str) -> list[str]:
        return []

    def label(self, key: str) -> Labelled | None:
        return None

    def labels(self) -> Iterator[Labelled]:
        return iter(())

    def inspect(self, *, thorough: bool | None = None) -> Inspection:
        return Inspection({}, ())

    def sweep(self) -> int:
        with self._connection() as connection:
            return self._told(connection.execute(_SWEEP, (to_microseconds(self._now()), SWEEP_LIMIT)).rowcount)

    def ping(self) -> None:
        """Writes one row, so that a full disk or a file turned read-only shows, and reads."""
        with self._connection() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO probe (id, at) VALUES (1, ?)", (to_microseconds(self._now()),)
            )
            connection.execute("SELECT key FROM entries LIMIT 1").fetchone()

    def watch(self, forget: Forget) -> SqliteWatch:
        """Needs no ``forget``: after every change it is asked which versions still hold."""
        watch = SqliteWatch(lambda: self._file, partial(_connect, patience=timedelta(0)), self._guard)
        self._watches.add(watch)
        return watch

    def close(self) -> None:
        _let_go(self._connections, self._watches)

    def _told(self, changed: int) -> int:
        """Lets every watching process know at once that so many entries changed, which is committed.
        Where that fails they see it a few milliseconds later."""
        if changed and self._file is not None:
            generation.advance(self._file)
        return changed

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection that no other thread uses meanwhile."""
        try:
            with self._guard.inside():
                file, file_id = self._ready()
                connection = self._connections.take(file, file_id)
                try:
                    yield connection
                except BaseException:
                    self._connections.renew(file, connection)
                    raise
                self._connections.give_back(connection)
        except _FAILURES as error:
            raise _store_down(self.path, error) from error

    def _ready(self) -> tuple[Path, tuple[int, int]]:
        """The file to use and which one it is on the disk; made ready the first time, and again
        when somebody took it away. Raises what `_prepare` raises."""
        if self._file is not None:
            try:
                return self._file, _file_id(self._file)
            except FileNotFoundError:
                pass
        if not self._prepare_lock.acquire(timeout=BUSY_TIMEOUT.total_seconds()):
            raise TimeoutError("still being made ready")
        try:
            if self._file is None or not self._file.exists():
                self._file, self.notices = _prepare(self._asked)
            return self._file, _file_id(self._file)
        finally:
            self._prepare_lock.release()


def _let_go(connections: _Connections, watches: Iterable[SqliteWatch]) -> None:
    """Closes what is open; not a method of the store, which is gone then without a collector."""
    connections.close()
    for watch in watches:
        watch.let_go()


class _Connection(sqlite3.Connection):
    """Remembers which file on the disk it was opened on."""

    file_id: tuple[int, int]


class _Connections:
    """The idle connections, newest first. No lock: a deque's two ends are safe for threads."""

    def __init__(self) -> None:
        self._idle: deque[_Connection] = deque()

    def take(self, file: Path, file_id: tuple[int, int]) -> _Connection:
        """One that was opened on this very file; sqlite3.Error when none can be opened."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return _connect(file, file_id)
            if connection.file_id == file_id:
                return connection
            _close_quietly(connection)

    def give_back(self, connection: _Connection) -> None:
        self._idle.append(connection)

    def renew(self, file: Path, failed: _Connection) -> None:
        """Puts a new connection in the place of one that failed: what it was opened with may be
        the reason. The failed one is closed last, and only if there is a new one: with the last
        connection SQLite takes its log and index away, and a full disk has no room for others."""
        try:
            self._idle.append(_connect(file, failed.file_id))
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


def _connect(
    file: Path, file_id: tuple[int, int] = (0, 0), mode: str = "rw", patience: timedelta = BUSY_TIMEOUT
) -> _Connection:
    connection = sqlite3.connect(
        f"file:{quote(str(file))}?mode={mode}",
        uri=True,
        timeout=patience.total_seconds(),
        isolation_level=None,
        check_same_thread=False,
        factory=_Connection,
    )
    connection.file_id = file_id
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def _file_id(file: Path) -> tuple[int, int]:
    there = file.stat()
    return there.st_dev, there.st_ino


def _entry(row: tuple[bytes, int, int]) -> Entry:
    value, version, expires = row
    if not (isinstance(value, bytes) and isinstance(version, int) and isinstance(expires, int)):
        raise sqlite3.DatabaseError("a row of another shape than ours")
    return Entry(value, version, from_microseconds(expires))


def _close_quietly(connection: sqlite3.Connection) -> None:
    try:
        connection.close()
    except sqlite3.Error:
        pass  # what was committed is in the log file, and the next connection reads it


def _store_down(file: Path, error: Exception) -> StoreDown:
    code = getattr(error, "sqlite_errorname", None) or type(error).__name__
    return StoreDown(f"session store {file}: {code}: {error}")


def _prepare(asked: Path) -> tuple[Path, tuple[str, ...]]:
    """Finds or creates the file to use and makes it ours: name, mode, schema.

    The file's own name if that is free or ours; else the name with ``.sqlite`` behind, and a
    notice. One process at a time. Raises `_FAILURES`.
    """
    file = asked.resolve()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    notices = []
    with _alone_in(file.parent):
        foreign = _foreign(file)
        if foreign:
            beside = file.with_name(file.name + ".sqlite")
            if _foreign(beside):
                raise OSError(f"neither {file} nor {beside} is a session database")
            notices.append(f"{file} is {foreign} and is left untouched; sessions are kept in {beside}")
            file = beside
        if not _create(file):
            notices.append(f"{file} belongs to another user, so its mode was not brought to 0600")
        _set_up(file)
    return file, tuple(notices)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keeps other processes that prepare a file in this folder waiting; TimeoutError (an OSError)
    when it had to wait for too long itself. The lock ends with the process that holds it."""
    deadline = time.monotonic() + BUSY_TIMEOUT.total_seconds()
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError("another process is making the file ready") from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def foreign_content(head: bytes) -> str:
    """What a file is that begins with these (at least 64) bytes; empty for an SQLite database."""
    if head.startswith(_SQLITE_MAGIC):
        return ""
    bolt = head[_BOLT_MAGIC_AT : _BOLT_MAGIC_AT + 4] == _BOLT_MAGIC
    return "a BoltDB file of the former service" if bolt else "not an SQLite file"


def _foreign(file: Path) -> str:
    """What the file is, when it is not ours to use; empty when it is, or is not there.

    SQLite itself looks first: opening the file by hand and closing it again would let go of the
    locks that another connection of this process may hold on it
    (https://www.sqlite.org/howtocorrupt.html §2.2).
    """
    try:
        there = file.stat()
    except FileNotFoundError:
        return ""
    if not stat.S_ISREG(there.st_mode):
        return "not a file"
    if there.st_size == 0:
        return ""
    if there.st_size < _SMALLEST_DATABASE:
        return "not an SQLite file"  # SQLite itself would take it for an empty one
    try:
        with closing(_connect(file, mode="ro")) as connection:
            owner = connection.execute("PRAGMA application_id").fetchone()[0]
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    except sqlite3.DatabaseError as error:
        head = b"" if isinstance(error, sqlite3.OperationalError) else file.read_bytes()[:64]
        foreign = foreign_content(head) if head else ""
        if not foreign:
            raise
        return foreign
    return "" if owner == _APPLICATION_ID or (owner == 0 and tables == 0) else "another program's SQLite file"


def _create(file: Path) -> bool:
    """Makes an empty file that only we may read (SQLite gives ``-wal`` and ``-shm`` the same
    mode), or takes other people's rights off the existing ones. ``False`` when we may not: the
    files belong to somebody else, as on a volume shared through a group."""
    attached = [file.with_name(file.name + end) for end in ("-wal", "-shm", generation.SUFFIX)]
    if not file.exists():
        for one in attached:
            one.unlink(missing_ok=True)  # of a file that was taken away alone; worse than none
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        return True
    try:
        for one in (file, *attached):
            if one.exists() and stat.S_IMODE(one.stat().st_mode) != 0o600:
                one.chmod(0o600)
    except FileNotFoundError:
        pass  # the last process that used it closed it between the two calls
    except PermissionError:
        return False
    return True


def _set_up(file: Path) -> None:
    """WAL mode and the schema; writes nothing when they are there, since the disk may be full."""
    with closing(_connect(file)) as connection:
        if connection.execute("PRAGMA user_version").fetchone()[0] != _SCHEMA_VERSION:
            _install(connection)


def _install(connection: sqlite3.Connection) -> None:
    if connection.execute("PRAGMA user_version").fetchone()[0] > _SCHEMA_VERSION:
        raise sqlite3.DatabaseError("the file was written by a newer version of this service")
    if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        raise sqlite3.DatabaseError("this file system does not support SQLite's WAL mode")
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in _SCHEMA:
            connection.execute(statement)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
