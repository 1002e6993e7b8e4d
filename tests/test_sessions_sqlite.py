"""The SQLite store: the contract, the file it lives in, and what becomes of it in bad times."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from authservice.errors import StoreDown
from authservice.sessions import Label, Labelled, sqlite_file, sqlite_sweep, to_microseconds
from authservice.sessions.filesystems import network_file_system
from authservice.sessions.sqlite import SqliteStore
from authservice.sessions.sqlite_file import BUSY_TIMEOUT
from tests.contracts import MINUTE, ROOT, Clock, StoreContract, WatchContract, output, run_python
from tests.waiting import until

RECIPE = "from authservice.sessions.sqlite import SqliteStore\nstore = SqliteStore({!r}, now)"
SCRIPT = (
    "import os, sys\n"
    "from datetime import datetime, timedelta, timezone\n"
    "from authservice.errors import StoreDown\n"
    "from authservice.sessions.sqlite import SqliteStore\n"
    "now = lambda: datetime.now(timezone.utc)\n"
    "soon = now() + timedelta(minutes=1)\n"
)


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> Callable[[Clock], SqliteStore]:
        return lambda clock: SqliteStore(tmp_path / "sessions.db", clock)

    @pytest.fixture
    def recipe(self, tmp_path: Path) -> str:
        return RECIPE.format(str(tmp_path / "sessions.db"))


class TestSqliteWatch(WatchContract):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> Callable[[Clock], SqliteStore]:
        return lambda clock: SqliteStore(tmp_path / "sessions.db", clock)

    @pytest.fixture
    def recipe(self, tmp_path: Path) -> str:
        return RECIPE.format(str(tmp_path / "sessions.db"))


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def works(store: SqliteStore) -> bool:
    store.ping()
    store.save("works", b"value", Clock()() + timedelta(hours=1))
    return store.load("works") is not None and store.delete("works")


# --- the file ---------------------------------------------------------------------------------


def test_the_file_its_log_and_its_index_are_ours_alone(tmp_path: Path) -> None:
    file = tmp_path / "state" / "deep" / "sessions.db"
    printed = output(
        run_python(
            SCRIPT + "os.umask(0)\nstore = SqliteStore(sys.argv[1], now)\nstore.ping()\nos._exit(0)",
            str(file),
        )
    )
    assert printed == ""
    store = SqliteStore(file, Clock())
    for _ in range(2):
        store.save("key", b"value", Clock()() + MINUTE)
    assert {one.name: mode(one) for one in file.parent.iterdir()} == {
        "sessions.db": 0o600,
        "sessions.db-generation": 0o600,
        "sessions.db-wal": 0o600,
        "sessions.db-shm": 0o600,
    }
    assert mode(file.parent) == 0o700


def test_an_existing_file_loses_the_rights_of_others(tmp_path: Path) -> None:
    file = tmp_path / "sessions.db"
    file.touch()
    file.chmod(0o664)
    store = SqliteStore(file, Clock())
    assert works(store) and store.path == file and store.notices == ()
    assert mode(file) == 0o600


@pytest.mark.skipif(os.getuid() != 0, reason="only root may change the files of others")
def test_root_leaves_a_file_to_the_group_that_shares_it(tmp_path: Path) -> None:
    """Else a command run by root would lock a service out that reaches its file through a group."""
    file = tmp_path / "sessions.db"
    file.touch()
    os.chown(file, 12345, 12346)
    file.chmod(0o660)
    store = SqliteStore(file, Clock(), create=False)
    assert works(store) and "belongs to another user" in store.notices[0]
    assert {mode(one) for one in tmp_path.iterdir()} == {0o660}


@pytest.mark.parametrize(
    "name", ["a b.db", "100%.db", "what?.db", "no#1.db", "ünï.db", "it's.db", "file:x.db", "&a=b"]
)
def test_any_file_name_is_that_file(tmp_path: Path, name: str) -> None:
    assert works(SqliteStore(tmp_path / name, Clock()))
    assert (tmp_path / name).read_bytes().startswith(b"SQLite format 3\0")


def test_b61_a_relative_path_is_the_same_file_wherever_the_process_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = SqliteStore("state/../sessions.db", Clock())
    monkeypatch.chdir("/")
    assert works(store)
    assert store.path == tmp_path / "sessions.db"


def test_b61_a_symbolic_link_leads_to_the_file_also_before_there_is_one(tmp_path: Path) -> None:
    real = tmp_path / "volume" / "sessions.db"
    (tmp_path / "link.db").symlink_to(real)
    assert works(SqliteStore(tmp_path / "link.db", Clock()))
    assert real.is_file() and (tmp_path / "link.db").is_symlink()


def test_a_circle_of_links_or_a_path_that_is_none_is_store_down(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "a", tmp_path / "file" / "sessions.db", "nul\0.db", tmp_path / ("long" * 100)):
        store = SqliteStore(path, Clock())
        with pytest.raises(StoreDown):
            store.ping()


def bolt() -> bytes:
    """The first page of a BoltDB file: page header (meta), magic 0xED0CDAED, version 2, page size."""
    header = bytes(8) + (4).to_bytes(2, "little") + bytes(6)
    return (
        header + bytes.fromhex("edda0ced") + (2).to_bytes(4, "little") + (4096).to_bytes(4, "little")
    ).ljust(32768)


def anothers_database(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE people (name TEXT)")
        connection.execute("INSERT INTO people VALUES ('alice')")
        connection.commit()


@pytest.mark.parametrize("what", ["bolt", "text", "short", "zeros", "anothers"])
def test_a_foreign_file_is_left_untouched_and_another_is_used(tmp_path: Path, what: str) -> None:
    file = tmp_path / "data.db"
    if what == "anothers":
        anothers_database(file)
    else:
        file.write_bytes({"bolt": bolt(), "text": b"hello\n" * 99, "short": b"x", "zeros": bytes(8192)}[what])
    file.chmod(0o640)
    before = file.read_bytes(), file.stat().st_mtime_ns, mode(file)
    clock = Clock()
    store = SqliteStore(file, clock)
    assert store.path == tmp_path / "data.db.sqlite"
    assert len(store.notices) == 1
    assert str(file) in store.notices[0] and str(store.path) in store.notices[0]
    assert ("BoltDB" in store.notices[0]) is (what == "bolt")
    store.save("key", b"value", clock() + MINUTE)
    store.close()
    again = SqliteStore(file, clock)
    assert again.path == store.path and again.notices == store.notices
    assert again.load("key") is not None
    assert (file.read_bytes(), file.stat().st_mtime_ns, mode(file)) == before
    assert not (tmp_path / "data.db-wal").exists()


def test_a_folder_at_the_path_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data.db").mkdir()
    store = SqliteStore(tmp_path / "data.db", Clock())
    assert works(store) and store.path == tmp_path / "data.db.sqlite"
    assert "not a file" in store.notices[0]
    assert list((tmp_path / "data.db").iterdir()) == []


def test_foreign_files_at_both_places_are_store_down_and_untouched(tmp_path: Path) -> None:
    for name in ("data.db", "data.db.sqlite"):
        (tmp_path / name).write_bytes(bolt())
    store = SqliteStore(tmp_path / "data.db", Clock())
    with pytest.raises(StoreDown):
        store.ping()
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == {
        "data.db": bolt(),
        "data.db.sqlite": bolt(),
    }


def test_a_file_whose_set_up_was_cut_short_is_ours(tmp_path: Path) -> None:
    file = tmp_path / "sessions.db"
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    store = SqliteStore(file, Clock())
    assert works(store) and store.path == file


def test_a_file_of_a_newer_version_is_not_written(tmp_path: Path) -> None:
    file = tmp_path / "sessions.db"
    SqliteStore(file, Clock()).close()
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 1000")
    store = SqliteStore(file, Clock())
    assert store.path == file
    with pytest.raises(StoreDown, match="newer.*start that version again"):
        store.ping()


def test_b62_many_processes_may_start_at_once_on_a_new_file(tmp_path: Path) -> None:
    code = SCRIPT + (
        "sys.stdin.readline()\n"
        "store = SqliteStore(sys.argv[1], now)\n"
        "store.ping()\n"
        "print(store.save('one', b'x', soon, if_absent=True))\n"
    )
    processes = [run_python(code, str(tmp_path / "sessions.db")) for _ in range(6)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert sorted(output(process) for process in processes) == ["False"] * 5 + ["True"]


def test_b61_a_start_waits_for_another_start_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT", timedelta(milliseconds=50))
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    store = SqliteStore(tmp_path / "sessions.db", Clock())
    with pytest.raises(StoreDown):
        store.ping()
    assert list(tmp_path.iterdir()) == []
    os.close(other)
    assert works(store)


# --- an earlier version's file ------------------------------------------------------------------

EARLIER = (
    "CREATE TABLE entries"
    " (key TEXT PRIMARY KEY, value BLOB NOT NULL, version INTEGER NOT NULL, expires INTEGER NOT NULL)",
    "CREATE INDEX entries_by_expiry ON entries (expires)",
    "CREATE TABLE probe (id INTEGER PRIMARY KEY CHECK (id = 1), at INTEGER NOT NULL)",
    f"PRAGMA application_id = {int.from_bytes(b'AuSv', 'big')}",
    "PRAGMA user_version = 1",
)
EARLIER_SAVES = (
    "INSERT INTO entries (key, value, version, expires) VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE"
    " SET value = excluded.value, version = excluded.version, expires = excluded.expires"
)


@contextlib.contextmanager
def earlier(file: Path) -> Iterator[sqlite3.Connection]:
    """A process of the first version: its file, and a connection that it keeps."""
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        for statement in EARLIER:
            connection.execute(statement)
        yield connection


def test_an_earlier_versions_file_is_brought_up_to_date_under_its_running_process(tmp_path: Path) -> None:
    """Sessions stay, and the earlier process goes on; what it ends and lets expire takes labels along."""
    clock = Clock()
    soon = to_microseconds(clock() + MINUTE)
    with earlier(tmp_path / "sessions.db") as before:
        before.execute(EARLIER_SAVES, ("old", b"value", 1, soon))
        store = SqliteStore(tmp_path / "sessions.db", clock)
        entry = store.load("old")
        assert entry is not None and (entry.value, entry.version) == (b"value", 1)
        store.save("new", b"value", clock() + MINUTE, label=Label(b"about", ("tag",)))
        before.execute(EARLIER_SAVES, ("theirs", b"value", 2, soon))
        before.execute(EARLIER_SAVES, ("new", b"newer", 3, soon + 1_000_000))
        assert store.label("new") == Labelled("new", b"about", clock() + MINUTE + timedelta(seconds=1))
        assert store.load("theirs") is not None and store.find("tag") == ["new"]
        before.execute("DELETE FROM entries WHERE key = 'new' AND expires > 0")
        assert store.find("tag") == [] and store.label("new") is None
    assert rows(store.path, "labels") == rows(store.path, "tags") == 0
    with contextlib.closing(sqlite3.connect(store.path)) as there:
        assert there.execute("PRAGMA user_version").fetchone() == (sqlite_file.SCHEMA_VERSION,)
    assert works(store)


def test_b62_many_processes_may_bring_one_file_up_to_date_at_once(tmp_path: Path) -> None:
    with earlier(tmp_path / "sessions.db") as before:
        before.execute(EARLIER_SAVES, ("old", b"value", 1, to_microseconds(Clock()() + MINUTE)))
        code = SCRIPT + (
            "sys.stdin.readline()\n"
            "store = SqliteStore(sys.argv[1], now)\n"
            "store.ping()\n"
            "print(store.load('old').value.decode(), store.save('one', b'x', soon, if_absent=True))\n"
        )
        processes = [run_python(code, str(tmp_path / "sessions.db")) for _ in range(5)]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        assert sorted(output(process) for process in processes) == ["value False"] * 4 + ["value True"]
    assert sound(tmp_path / "sessions.db")


def test_an_earlier_file_that_is_put_back_is_brought_up_to_date_as_well(tmp_path: Path) -> None:
    clock = Clock()
    store = SqliteStore(tmp_path / "sessions.db", clock)
    with earlier(tmp_path / "backup.db") as before:
        before.execute(EARLIER_SAVES, ("old", b"value", 1, to_microseconds(clock() + MINUTE)))
    store.close()
    os.replace(tmp_path / "backup.db", store.path)
    assert store.load("old") is not None
    store.save("new", b"value", clock() + MINUTE, label=Label(b"about", ("tag",)))
    assert store.find("tag") == ["new"]


# --- what an operator is told -------------------------------------------------------------------


def test_an_inspection_tells_what_is_there(tmp_path: Path) -> None:
    clock = Clock()
    store = SqliteStore(tmp_path / "sessions.db", clock)
    store.save("session", b"value", clock() + MINUTE, label=Label(b"about", ("tag",)))
    store.save("mark", b"value", clock() + MINUTE)
    put(store.path, 3)
    inspection = store.inspect()
    facts = inspection.facts
    assert (facts["file"], facts["schema"]) == (str(store.path), sqlite_file.SCHEMA_VERSION)
    assert (facts["sessions with a label"], facts["entries (sessions, used-up login marks)"]) == (1, 2)
    assert facts["expired and not yet removed"] == 3
    assert facts["examination"] == "integrity_check"
    assert store.inspect(thorough=False).facts["examination"] == "quick_check"
    (problem,) = inspection.problems
    assert "still there" in problem, "nobody has swept since 1970"
    while store.sweep():
        pass
    assert store.inspect().problems == ()


def test_an_entry_that_a_save_ended_is_gone_at_once(tmp_path: Path) -> None:
    """So is its label, and an inspection sees nothing that nobody swept."""
    clock = Clock()
    store = SqliteStore(tmp_path / "sessions.db", clock)
    for condition in (True, False):
        store.save("session", b"value", clock() + MINUTE, label=Label(b"about", ("tag",)))
        entry = store.load("session")
        assert entry
        assert store.save("session", b"", clock() - MINUTE, if_version=entry.version if condition else None)
        assert [rows(store.path, table) for table in ("entries", "labels", "tags")] == [0, 0, 0]
        assert store.inspect().problems == ()


def test_an_inspection_finds_what_is_damaged(tmp_path: Path) -> None:
    clock = Clock()
    store = SqliteStore(tmp_path / "sessions.db", clock)
    for number in range(300):
        store.save(f"key-{number}", os.urandom(500), clock() + MINUTE)
    store.close()
    content = bytearray(store.path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 40_960] = random.Random(1).randbytes(40_960)
    store.path.write_bytes(content)
    problems = SqliteStore(store.path, clock).inspect().problems
    assert problems and all("restore or recover" in problem for problem in problems)


def test_every_failure_says_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "sessions.db"
    words = {
        sqlite3.OperationalError("database or disk is full"): "make room",
        sqlite3.OperationalError("attempt to write a readonly database"): "let the service write",
        sqlite3.OperationalError("unable to open database file"): "read and write",
        sqlite3.OperationalError("database is locked"): "another program",
        sqlite3.DatabaseError("database disk image is malformed"): "recover",
        OSError(errno.EROFS, "Read-only file system"): "mount",
        OSError(errno.ENOSPC, "No space left on device"): "make room",
    }
    for error, advice in words.items():
        assert advice in str(sqlite_file.store_down(file, error))
    assert str(sqlite_file.store_down(file, ValueError("odd"))).endswith("odd")


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:40 / /data rw,relatime - nfs4 server:/export rw,vers=4.2
41 22 0:41 / /data/local rw,relatime shared:2 master:3 - xfs /dev/vdb rw
42 22 0:42 / /with\\040blank rw - fuse.sshfs me@host: rw
43 22 0:43 / /over rw - cifs //server/share rw
44 22 0:44 / /over rw - tmpfs tmpfs rw
nonsense
"""


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("/var/lib/sessions.db", ""),
        ("/data/sessions.db", "nfs4"),
        ("/data/deep/er/sessions.db", "nfs4"),
        ("/data/local/sessions.db", ""),
        ("/database/sessions.db", ""),
        ("/with blank/sessions.db", "sshfs"),
        ("/over/sessions.db", ""),
    ],
)
def test_a_network_file_system_is_known_as_one(tmp_path: Path, file: str, kind: str) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS)
    assert network_file_system(Path(file), tmp_path / "mountinfo") == kind
    assert network_file_system(Path(file), tmp_path / "nothing") == ""


def test_an_operator_is_told_that_the_file_is_on_a_network_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "network_file_system", lambda file: "nfs4")
    store = SqliteStore(tmp_path / "sessions.db", Clock())
    (notice,) = store.notices
    assert "nfs4" in notice and "does not support" in notice and str(store.path) in notice
    assert works(store)


# --- bad times --------------------------------------------------------------------------------


def test_no_folder_yet_is_store_down_until_there_is_one(tmp_path: Path) -> None:
    """A volume that is mounted late: the start is not stopped, and no restart is needed."""
    (tmp_path / "volume").write_text("not mounted yet")
    store = SqliteStore(tmp_path / "volume" / "sessions.db", Clock())
    with pytest.raises(StoreDown):
        store.ping()
    (tmp_path / "volume").unlink()
    (tmp_path / "volume").mkdir()
    assert works(store)


@pytest.mark.slow
def test_a_locked_file_is_waited_for_a_bounded_time_and_read_meanwhile(tmp_path: Path) -> None:
    clock = Clock()
    store = SqliteStore(tmp_path / "sessions.db", clock)
    store.save("key", b"value", clock() + MINUTE)
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with pytest.raises(StoreDown):
            store.save("key", b"new", clock() + MINUTE)
        assert (
            BUSY_TIMEOUT.total_seconds() * 0.9 < time.monotonic() - began < BUSY_TIMEOUT.total_seconds() + 1
        )
        entry = store.load("key")
        assert entry is not None and entry.value == b"value"
        other.execute("ROLLBACK")
    assert works(store)


def test_b60_reading_what_has_expired_writes_nothing(tmp_path: Path) -> None:
    clock = Clock()
    store = SqliteStore(tmp_path / "sessions.db", clock)
    store.save("key", b"value", clock() + MINUTE)
    clock.advance(2 * MINUTE)
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        assert store.load("key") is None
        assert time.monotonic() - began < 1
        other.execute("ROLLBACK")
    assert works(store)


def put(file: Path, expired: int, labelled: bool = True) -> None:
    """Entries that expired long ago, as many as asked, beside the store's back."""
    with contextlib.closing(sqlite3.connect(file)) as other:
        rows = [(f"old-{number}", b"", number, 1000 + number) for number in range(expired)]
        other.executemany("INSERT INTO entries VALUES (?, ?, ?, ?)", rows)
        if labelled:
            other.executemany(
                "INSERT INTO labels VALUES (?, ?, ?, x'00')", [(number + 100, key, end) for key, _, number, end in rows]
            )
            other.executemany("INSERT INTO tags VALUES ('tag', ?)", [(number + 100,) for number in range(expired)])
        other.commit()


def rows(file: Path, table: str) -> int:
    with contextlib.closing(sqlite3.connect(file)) as other:
        count: int = other.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        return count


def test_b60_a_sweep_is_bounded_and_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_sweep, "TURN", 0.02)
    store = SqliteStore(tmp_path / "sessions.db", Clock())
    store.save("young", b"value", Clock()() + timedelta(hours=1), label=Label(b"about", ("tag",)))
    put(store.path, 3000)
    first = store.sweep()
    assert 0 < first < 3000
    assert rows(store.path, "entries") == 3001 - first
    swept = [first]
    while swept[-1]:
        swept.append(store.sweep())
    assert sum(swept) == 3000 and len(swept) > 3
    assert store.load("young") is not None


def test_one_process_sweeps_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_sweep, "TURN", 0.0)
    clock = Clock()
    one, other = SqliteStore(tmp_path / "sessions.db", clock), SqliteStore(tmp_path / "sessions.db", clock)
    put(one.path, 3000)
    step, seen = sqlite_sweep.sweep_step, []

    def watched_step(*arguments: Any) -> int:
        seen.append(other.sweep())
        return step(*arguments)

    monkeypatch.setattr("authservice.sessions.sqlite.sweep_step", watched_step)
    assert one.sweep() > 0
    assert seen == [0]
    monkeypatch.setattr("authservice.sessions.sqlite.sweep_step", step)
    assert other.sweep() > 0
    with contextlib.closing(sqlite3.connect(one.path, isolation_level=None)) as third:
        until_now = clock() + timedelta(seconds=3)  # the turn of a process that died
        third.execute("UPDATE state SET value = ? WHERE name = 'sweeping until'", (to_microseconds(until_now),))
    assert one.sweep() == 0
    clock.advance(timedelta(seconds=4))
    assert one.sweep() > 0


def test_a_sweep_takes_labels_and_tags_with_it(tmp_path: Path) -> None:
    clock = Clock()
    store = SqliteStore(tmp_path / "sessions.db", clock)
    store.save("young", b"value", clock() + timedelta(hours=1), label=Label(b"about", ("tag", "own")))
    put(store.path, 300)
    assert store.sweep() == 300
    assert (rows(store.path, "entries"), rows(store.path, "labels"), rows(store.path, "tags")) == (1, 1, 2)
    assert store.find("tag") == store.find("own") == ["young"]
    assert store.sweep() == 0


FULL_DISK = (
    SCRIPT
    + """
import resource
store = SqliteStore(sys.argv[1], now)
store.save("first", b"first", soon)
store.ping()
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
limit = os.stat(sys.argv[1] + "-wal").st_size + 20_000
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
kept, refused = ["first"], 0
for number in range(100):
    try:
        store.save(f"key-{number}", os.urandom(1000), soon)
        kept.append(f"key-{number}")
    except StoreDown:
        refused += 1
print(len(kept) > 1 and refused > 50)
try:
    for _ in range(100):
        store.ping()  # the smallest write there is takes the last room
except StoreDown:
    pass
mark = lambda: store.save("mark", b"x", soon, if_absent=True)
for call in (store.ping, mark, lambda: store.delete("first")):
    try:
        call()
        print("worked on a full disk")
    except StoreDown:
        pass
print(all(store.load(key) for key in kept), store.load("first").value, store.load("mark"))
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
store.ping()
print(all(store.load(key) for key in kept), mark(), store.delete("first"))
"""
)


def test_a_full_disk_is_store_down_for_writes_and_loses_nothing(tmp_path: Path) -> None:
    """The system refuses to let the files grow, as a full disk does; later it allows it again."""
    printed = output(run_python(FULL_DISK, str(tmp_path / "sessions.db"))).splitlines()
    assert printed == ["True", "True b'first' None", "True True True"]
    assert sound(tmp_path / "sessions.db")


def test_a_full_database_is_store_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLITE_FULL by its own name: the database may have no more pages than it has."""
    clock = Clock()
    store = SqliteStore(tmp_path / "sessions.db", clock)
    store.save("key", b"value", clock() + MINUTE)
    file, file_id = store._ready()
    connection = store._connections.take(file, file_id)
    connection.execute("PRAGMA max_page_count = 1")
    store._connections.give_back(connection)
    with pytest.raises(StoreDown):
        store.save("large", bytes(1_000_000), clock() + MINUTE)
    assert store.load("key") is not None
    assert store.load("large") is None


READ_ONLY = (
    SCRIPT
    + """
store = SqliteStore(sys.argv[1], now)
for call in (store.ping, lambda: store.save("key", b"x", soon), lambda: store.delete("key"), store.sweep):
    try:
        call()
        print("wrote")
    except StoreDown:
        print("StoreDown")
try:
    print(store.load("key") is not None)
except StoreDown:
    print("StoreDown")
"""
)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can take rights away from itself")
def test_a_read_only_file_and_folder_are_store_down(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    store = SqliteStore(folder / "sessions.db", Clock())
    store.save("key", b"value", Clock()() + MINUTE)
    store.close()
    for one in [tmp_path, *tmp_path.parents][:3]:
        one.chmod(0o755)
    folder.chmod(0o555)
    (folder / "sessions.db").chmod(0o444)
    drop = "import os\nos.setgid(65534)\nos.setuid(65534)\n"
    code = READ_ONLY.replace("store = SqliteStore", drop + "store = SqliteStore", 1)
    assert output(run_python(code, str(folder / "sessions.db"))).splitlines() == ["StoreDown"] * 5
    assert output(run_python(code, str(folder / "new.db"))).splitlines() == ["StoreDown"] * 5


REMOUNTED = (
    SCRIPT
    + """
import subprocess
def mount(*options):
    subprocess.run(["mount", *options, sys.argv[1]], check=True)
mount("-t", "tmpfs", "tmpfs")
file = sys.argv[1] + "/sessions.db"
if os.fork() == 0:
    SqliteStore(file, now).save("key", b"value", soon)
    os._exit(0)  # with the file open, as a process that was killed leaves it
os.wait()
mount("-o", "remount,ro")
store = SqliteStore(file, now)
print(store.load("key").value)
for call in (store.ping, lambda: store.save("key", b"x", soon), lambda: store.delete("key")):
    try:
        call()
        print("wrote")
    except StoreDown as error:
        print("mounted read-only" in str(error))
print(store.load("key").value)
"""
)


@pytest.mark.external
def test_s24_on_a_volume_that_turned_read_only_sessions_are_still_read(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-m", "true"], capture_output=True).returncode:
        pytest.skip("a mount of our own is not allowed here")
    command = [unshare, "-m", sys.executable, "-c", REMOUNTED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stdout.splitlines() == ["b'value'", "True", "True", "True", "b'value'"], done.stderr


def test_a_damaged_file_is_store_down_and_kept_for_whoever_repairs_it(tmp_path: Path) -> None:
    clock = Clock()
    store = SqliteStore(tmp_path / "sessions.db", clock)
    for number in range(200):
        store.save(f"key-{number}", os.urandom(500), clock() + MINUTE)
    store.close()
    content = bytearray(store.path.read_bytes())
    content[4096:] = random.Random(1).randbytes(len(content) - 4096)
    store.path.write_bytes(content)
    again = SqliteStore(store.path, clock)
    for call in (
        lambda: again.load("key-1"),
        lambda: again.save("key-1", b"x", clock() + MINUTE),
        lambda: again.delete("key-1"),
        again.ping,
        again.sweep,
    ):
        with pytest.raises(StoreDown):
            call()
    assert again.path == store.path
    assert store.path.read_bytes()[4096:] == content[4096:]


def test_a_row_of_another_shape_is_store_down(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "sessions.db", Clock())
    with contextlib.closing(sqlite3.connect(store.path)) as other:
        other.execute("INSERT INTO entries VALUES ('key', 'text', 'text', 'text')")
        other.commit()
    with pytest.raises(StoreDown):
        store.load("key")


@pytest.mark.parametrize("ends", [("", "-wal", "-shm"), ("",)])
def test_a_file_taken_away_is_made_anew_and_every_process_moves_to_it(
    tmp_path: Path, ends: tuple[str, ...]
) -> None:
    """As when somebody deletes the file to log everybody out, with or without what belongs to it."""
    clock = Clock()
    file = tmp_path / "sessions.db"
    one, other = SqliteStore(file, clock), SqliteStore(file, clock)
    one.save("old", b"value" * 1000, clock() + MINUTE)
    assert other.load("old") is not None
    process = run_python(
        SCRIPT + "store = SqliteStore(sys.argv[1], now)\n"
        "print(store.load('old') is not None, flush=True)\n"
        "sys.stdin.readline()\n"
        "print(store.load('old'), store.load('new') is not None, store.save('theirs', b'x' * 9000, soon))\n",
        str(file),
    )
    assert process.stdout is not None and process.stdout.readline() == "True\n"
    for end in ends:
        (tmp_path / f"sessions.db{end}").unlink()
    assert one.load("old") is None
    one.save("new", b"value" * 1000, clock() + MINUTE)
    assert output(process, "go\n") == "None True True"
    assert other.load("old") is None
    assert other.load("new") is not None and one.load("theirs") is not None
    assert mode(file) == 0o600
    assert sound(file)


WRITER = (
    SCRIPT
    + """
store = SqliteStore(sys.argv[1], now)
number = int(sys.argv[2])
while True:
    store.save(f"key-{number}", b"%d " % number * 400, soon)
    print(number, flush=True)
    number += 1
    if number % 7 == 0:
        store.delete(f"key-{number - 5}")
        print(-(number - 5), flush=True)
"""
)


def sound(file: Path) -> bool:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_sigkill_in_the_middle_of_writing_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    file = tmp_path / "sessions.db"
    kept: set[int] = set()
    for begin in (1000, 2000, 3000):
        writer = run_python(WRITER, str(file), str(begin))
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(30)]
        writer.kill()
        lines += writer.communicate(timeout=10)[0].splitlines()
        said = [int(line) for line in lines if line.strip()]
        kept |= {number for number in said if number > 0}
        kept -= {-number for number in said if number < 0}
        assert sound(file)
    store = SqliteStore(file, Clock())
    # The newest of each round may have been deleted a moment before its deletion was said.
    missing = [
        n for n in kept if (entry := store.load(f"key-{n}")) is None or entry.value != b"%d " % n * 400
    ]
    assert len(missing) <= 3 and all((n + 5) % 7 == 0 for n in missing)
    assert works(store)


def test_threads_that_end_leave_no_open_files(tmp_path: Path) -> None:
    clock = Clock()
    store = SqliteStore(tmp_path / "sessions.db", clock)

    def opened() -> int:
        links = (os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if exists(fd))
        return sum(link.startswith(str(tmp_path)) for link in links)

    def exists(fd: str) -> bool:
        return os.path.lexists(f"/proc/self/fd/{fd}")

    store.ping()
    before = opened()
    for number in range(30):
        thread = Thread(target=store.save, args=(f"key-{number}", b"value", clock() + MINUTE))
        thread.start()
        thread.join()
    assert opened() == before
    store.close()
    until(lambda: opened() == 0)


FORKS = (
    SCRIPT
    + """
from threading import Event, Thread
store = SqliteStore(sys.argv[1], now)
done = Event()

def work(name):
    number = 0
    while not done.is_set():
        store.save(f"{name}-{number}", b"x", soon)
        assert store.load(f"{name}-{number}") is not None
        number += 1
    counts[name] = number

counts = {}
threads = [Thread(target=work, args=(f"thread-{n}",)) for n in range(3)]
for thread in threads:
    thread.start()
children = []
for child in range(6):
    pid = os.fork()
    if pid == 0:
        for turn in range(20):
            store.save(f"child-{child}-{turn}", b"x", soon)
            assert store.load(f"child-{child}-{turn}") is not None
        os._exit(0)
    children.append(pid)
    store.ping()
print(all(os.waitpid(pid, 0)[1] == 0 for pid in children))
done.set()
for thread in threads:
    thread.join()
said = [f"{name}-{n}" for name, count in counts.items() for n in range(count)]
print(len(counts) == 3 and all(store.load(key) for key in said))
print(all(store.load(f"child-{child}-{turn}") for child in range(6) for turn in range(20)))
"""
)


def test_forking_while_threads_write_loses_nothing_on_either_side(tmp_path: Path) -> None:
    """A worker's master may hold the store open when it forks: SQLite alone loses writes then."""
    assert output(run_python(FORKS, str(tmp_path / "sessions.db"))).splitlines() == ["True"] * 3
    assert sound(tmp_path / "sessions.db")


FORKED_INSIDE = """
import os
from authservice.sessions.forks import ForkGuard

let_go = []

def forking():
    with guard.inside_now() as entered:
        let_go.append(not entered)

guard = ForkGuard(forking, patience=0.05)
with guard.inside_now() as entered, guard.inside():
    assert entered
with guard.inside():
    child = os.fork()
if child == 0:
    with guard.inside_now() as entered:
        if entered:
            os._exit(2)
    try:
        with guard.inside():
            os._exit(1)
    except RuntimeError:
        os._exit(7)
with guard.inside():
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), let_go)
"""


def test_a_child_that_was_forked_in_the_middle_of_a_call_stays_out() -> None:
    assert output(run_python(FORKED_INSIDE)) == "7 [True]"
