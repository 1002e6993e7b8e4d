"""The file of the SQLite store: found or created, made ours, given its tables, and opened.

Owns the file's name, mode and schema, and the words for what is wrong with it. Tables of an earlier
version are brought up to date in place: nothing of them changes, so that a process of that version
which still runs goes on. Used by `sessions.sqlite`; knows nothing of sessions.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

from authservice.errors import StoreDown
from authservice.sessions import generation
from authservice.sessions.filesystems import network_file_system

BUSY_TIMEOUT = timedelta(seconds=2)
"""How long a statement waits for another process's write."""

AUTOCHECKPOINT = 1000
"""Pages in the log from which on whoever commits carries them into the database (SQLite's own default)."""

SCHEMA_VERSION = 2

FileId = tuple[int, int]

FAILURES = (sqlite3.Error, OSError, RuntimeError, ValueError, OverflowError)
"""What comes of a file that cannot be used: SQLite's own, the system's; a loop of links or a fork
in mid-use (RuntimeError), no path at all (ValueError), a moment beyond the years (OverflowError)."""

_APPLICATION_ID = int.from_bytes(b"AuSv", "big")
_SMALLEST_DATABASE = 512
_SQLITE_MAGIC = b"SQLite format 3\0"
_BOLT_MAGIC = (0xED0CDAED).to_bytes(4, "little")
_BOLT_MAGIC_AT = 16

NEWER = "the file was written by a newer version of this service"

_ADVICE = {
    "database or disk is full": "make room on its volume; who is logged in stays so meanwhile",
    "readonly database": "let the service write the file and its folder: rights, or a volume mounted read-only?",
    "unable to open database file": "let the service read and write the file and its folder, and mount the volume"
    " so that it can be written",
    "database is locked": "another program holds the file: is it being copied or examined?",
    "malformed": "stop the service, keep the file, and restore or recover it (or start with a new one)",
    "disk I/O error": "look at the volume's health in the system's log",
    NEWER: "start that version again, or move the file away: everybody then logs in once more",
}
"""What to do, by a part of SQLite's own words (which are the same in every version of it)."""

_ADVICE_BY_ERRNO = {
    errno.ENOSPC: _ADVICE["database or disk is full"],
    errno.EDQUOT: _ADVICE["database or disk is full"],
    errno.ENOENT: "nobody has logged in yet, or it is another file that the service uses",
    errno.EROFS: "mount its volume so that it can be written",
    errno.EACCES: _ADVICE["unable to open database file"],
    errno.EPERM: _ADVICE["unable to open database file"],
    errno.EIO: _ADVICE["disk I/O error"],
}

MARKING = ("update_is_marked", "delete_is_marked", "replace_is_marked")
"""The triggers without which a change may leave no mark."""

_CHANGED = "UPDATE state SET value = random() WHERE name = 'mark';"

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS entries"
    " (key TEXT PRIMARY KEY, value BLOB NOT NULL, version INTEGER NOT NULL, expires INTEGER NOT NULL)",
    "CREATE INDEX IF NOT EXISTS entries_by_expiry ON entries (expires)",
    "CREATE TABLE IF NOT EXISTS probe (id INTEGER PRIMARY KEY CHECK (id = 1), at INTEGER NOT NULL)",
    # A label's expiry is its entry's, kept here too so that looking through labels reads no values.
    "CREATE TABLE IF NOT EXISTS labels"
    " (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, expires INTEGER NOT NULL, metadata BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS tags"
    " (tag TEXT NOT NULL, label INTEGER NOT NULL, PRIMARY KEY (tag, label)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS tags_by_label ON tags (label)",
    # Triggers and not foreign keys: they bind every program that writes here, older ones of ours too.
    "CREATE TRIGGER IF NOT EXISTS label_goes AFTER DELETE ON entries BEGIN"
    " DELETE FROM tags WHERE label = (SELECT id FROM labels WHERE key = OLD.key);"
    " DELETE FROM labels WHERE key = OLD.key; END",
    "CREATE TRIGGER IF NOT EXISTS label_follows AFTER UPDATE OF expires ON entries"
    " WHEN OLD.expires <> NEW.expires BEGIN"
    " UPDATE labels SET expires = NEW.expires WHERE key = NEW.key; END",
    # 'mark' is another number after every change that some copy of an entry might not outlive: not
    # when an entry is new, nor when one goes that had expired.
    "CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    "INSERT OR IGNORE INTO state VALUES ('mark', random()), ('sweeping until', 0)",
    f"CREATE TRIGGER IF NOT EXISTS update_is_marked AFTER UPDATE ON entries BEGIN {_CHANGED} END",
    "CREATE TRIGGER IF NOT EXISTS delete_is_marked AFTER DELETE ON entries"
    f" WHEN OLD.expires > CAST(strftime('%s', 'now') AS INTEGER) * 1000000 BEGIN {_CHANGED} END",
    "CREATE TRIGGER IF NOT EXISTS replace_is_marked BEFORE INSERT ON entries"
    f" WHEN EXISTS (SELECT 1 FROM entries WHERE key = NEW.key) BEGIN {_CHANGED} END",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


class Connection(sqlite3.Connection):
    """Remembers which file on the disk it was opened on."""

    file_id: FileId


def connect(
    file: Path, opened: FileId = (0, 0), mode: str = "rw", patience: timedelta = BUSY_TIMEOUT
) -> Connection:
    connection = sqlite3.connect(
        f"file:{quote(str(file))}?mode={mode}",
        uri=True,
        timeout=patience.total_seconds(),
        isolation_level=None,
        check_same_thread=False,
        factory=Connection,
    )
    connection.file_id = opened
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def file_id(file: Path) -> FileId:
    there = file.stat()
    return there.st_dev, there.st_ino


def store_down(file: Path, error: Exception) -> StoreDown:
    """What is wrong with the file, and what to do about it where that is known."""
    code = getattr(error, "sqlite_errorname", None) or type(error).__name__
    text = str(error)
    advice = next((advice for words, advice in _ADVICE.items() if words in text), "")
    if isinstance(error, OSError):
        advice = _ADVICE_BY_ERRNO.get(error.errno or 0, "")
    return StoreDown(f"session store {file}: {code}: {text}" + (f" ({advice})" if advice else ""))


def prepare(asked: Path, create: bool = True) -> tuple[Path, tuple[str, ...]]:
    """Finds or creates the file to use and makes it ours: name, mode, schema.

    The file's own name if that is free or ours; else the name with ``.sqlite`` behind, and a
    notice. One process at a time. Without ``create``, FileNotFoundError where there is none yet.
    Raises `FAILURES`.
    """
    file = asked.resolve()
    if create:
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
        if not create and not file.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))
        if not _create(file):
            notices.append(f"{file} belongs to another user, so its mode was not brought to 0600")
        _set_up(file)
    network = network_file_system(file)
    if network:
        notices.append(
            f"{file} is on a network file system ({network}), which SQLite does not support: sessions may be lost,"
            " and ended ones may live on. Keep the file on a disk of this host, or use Redis."
        )
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
        with closing(connect(file, mode="ro")) as connection:
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
    mode), or takes other people's rights off the existing ones. ``False`` when they belong to somebody
    else, as on a volume shared through a group: root then leaves them as the service needs them."""
    attached = [file.with_name(file.name + end) for end in ("-wal", "-shm", generation.SUFFIX)]
    if not file.exists():
        for one in attached:
            one.unlink(missing_ok=True)  # of a file that was taken away alone; worse than none
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        return True
    try:
        for one in (file, *attached):
            if one.exists() and stat.S_IMODE((there := one.stat()).st_mode) != 0o600:
                if there.st_uid != os.geteuid():
                    return False
                one.chmod(0o600)
    except FileNotFoundError:
        pass  # the last process that used it closed it between the two calls
    except PermissionError:
        return False
    return True


def _set_up(file: Path) -> None:
    """WAL mode and the schema; writes nothing when they are there, since the disk may be full."""
    with closing(connect(file)) as connection:
        if schema_version(connection) != SCHEMA_VERSION:
            _install(connection)


def schema_version(connection: sqlite3.Connection) -> int:
    """The version of the tables, 0 where there are none of ours."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def _install(connection: sqlite3.Connection) -> None:
    """The tables that are missing; those of an earlier version are part of them as they are."""
    if schema_version(connection) > SCHEMA_VERSION:
        raise sqlite3.DatabaseError(NEWER)
    if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        raise sqlite3.DatabaseError("this file system does not support SQLite's WAL mode")
    with transaction(connection):
        for statement in _SCHEMA:
            connection.execute(statement)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing of what is written inside; waits for another writer before it begins."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            with suppress(sqlite3.Error):  # what went wrong first is what is told
                connection.execute("ROLLBACK")
        raise
