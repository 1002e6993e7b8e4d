"""How the SQLite watch learns of changes: the number beside the file, and SQLite's own signs."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import pytest

from authservice.sessions import Label, generation, sqlite_file, sqlite_watch
from authservice.sessions.sqlite import SqliteStore
from tests.contracts import MINUTE, Clock, Watched, output, run_python
from tests.waiting import by_then, until

AT_ONCE = 0.05


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[SqliteStore]:
    with closing(SqliteStore(tmp_path / "sessions.db", clock)) as store:
        store.save("key", b"value", clock() + MINUTE)
        yield store


@pytest.fixture
def watched(store: SqliteStore) -> Iterator[Watched]:
    with Watched(store, "key") as watched:
        yield watched


def seen_soon(watched: Watched) -> bool:
    """Whether the copy's end is noticed within 50 ms, and for good."""
    by_then(lambda: not watched.usable(), AT_ONCE)
    return not any(watched.usable() for _ in range(20))


def usable_soon(watched: Watched) -> bool:
    by_then(watched.usable, AT_ONCE)
    return True


# --- the number beside the file ---------------------------------------------------------------


@pytest.fixture
def only_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no time passed between one question and the next."""
    monkeypatch.setattr(sqlite_watch, "LOOK_EVERY", 3600.0)


def test_a_writers_change_is_seen_by_the_very_next_question(
    only_the_number: None, store: SqliteStore, tmp_path: Path, clock: Clock
) -> None:
    with closing(SqliteStore(tmp_path / "sessions.db", clock)) as elsewhere, Watched(store, "key") as watched:
        for writer in (store, elsewhere) * 20:
            writer.save("key", b"value", clock() + MINUTE)
            assert not watched.usable()
            watched.copy()
            assert watched.usable()
        assert elsewhere.delete("key")
        assert not watched.usable()


@pytest.mark.parametrize("number", [True, False], ids=["number", "count"])
def test_logins_marks_probes_and_sweeps_move_nothing(
    store: SqliteStore, tmp_path: Path, clock: Clock, number: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come all the time, and no copy is another one after them."""
    if number:
        monkeypatch.setattr(sqlite_watch, "LOOK_EVERY", 3600.0)
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.executemany("INSERT INTO entries VALUES (?, x'00', 1, 1)", [(f"old-{n}",) for n in range(100)])
    with closing(SqliteStore(tmp_path / "sessions.db", clock)) as elsewhere, Watched(store, "key") as watched:
        stamp = watched.stamp
        for turn, writer in enumerate((store, elsewhere)):
            assert writer.save(f"new-{turn}", b"value", clock() + MINUTE, label=Label(b"about", ("tag",)))
            assert writer.save(f"mark-{turn}", b"value", clock() + MINUTE, if_absent=True)
            assert not writer.save("key", b"value", clock() + MINUTE, if_absent=True)
            writer.ping()
        assert sum(iter(elsewhere.sweep, 0)) == 100
        assert until(watched.watch.stamp, every=0.0005) is stamp
        elsewhere.save("key", b"value", clock() + MINUTE)
        assert seen_soon(watched)


def test_a_history_that_was_put_back_is_another_one(store: SqliteStore, watched: Watched, tmp_path: Path) -> None:
    """SQLite's backup writes pages through the same file: nothing of ours runs then."""
    with closing(sqlite3.connect(tmp_path / "backup.db")) as backup, closing(sqlite3.connect(store.path)) as there:
        there.backup(backup)
        for _ in range(2):
            store.delete("key")
            assert seen_soon(watched)
            backup.backup(there)
            watched.copy()
            assert usable_soon(watched)


def test_what_changed_nothing_moves_nothing(only_the_number: None, store: SqliteStore, clock: Clock) -> None:
    with Watched(store, "key") as watched:
        stamp = watched.watch.stamp()
        store.save("key", b"value", clock() + MINUTE, if_absent=True)
        store.delete("other")
        store.sweep()
        store.ping()
        assert watched.watch.stamp() is stamp is watched.stamp


def test_the_number_is_another_one_each_time(tmp_path: Path) -> None:
    database = tmp_path / "sessions.db"
    database.touch(mode=0o640)
    followed = generation.follow(database)
    assert followed is not None
    number, file_id = followed
    seen = {number[0]}
    for _ in range(100):
        assert generation.advance(database)
        seen.add(number[0])
    assert len(seen) == 101
    there = generation.beside(database).stat()
    assert (there.st_dev, there.st_ino) == file_id
    assert (there.st_size, there.st_mode & 0o777) == (8, 0o640)


@pytest.mark.parametrize("what", ["folder", "link", "pipe", "nothing"])
def test_where_the_number_cannot_be_had_every_question_asks_sqlite(
    only_the_number: None, store: SqliteStore, clock: Clock, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = generation.beside(store.path)
    place.unlink(missing_ok=True)
    if what == "folder":
        place.mkdir()
    elif what == "link":
        place.symlink_to(store.path)
    elif what == "pipe":
        os.mkfifo(place)
    else:
        monkeypatch.setattr(generation, "follow", lambda database: None)
    before = store.path.read_bytes()
    with Watched(store, "key") as watched:
        for _ in range(3):
            assert watched.usable()
            store.save("key", b"value", clock() + MINUTE)
            assert not watched.usable()
            watched.copy()
        store.delete("key")
        assert not watched.usable()
    assert store.path.read_bytes()[:16] == before[:16]


@pytest.mark.parametrize("how", ["removed", "replaced", "empty"])
def test_a_number_that_is_taken_away_is_followed_anew(
    store: SqliteStore, watched: Watched, clock: Clock, how: str
) -> None:
    place = generation.beside(store.path)
    place.unlink()
    if how != "removed":
        place.write_bytes(b"" if how == "empty" else bytes(8))
    until(lambda: watched.usable() and place.exists() and place.stat().st_size == 8)
    for _ in range(10):
        store.save("key", b"value", clock() + MINUTE)
        assert seen_soon(watched)
        watched.copy()
        assert usable_soon(watched)


# --- SQLite's own signs -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "ends"),
    [
        ("DELETE FROM entries WHERE key = 'key'", True),
        ("DELETE FROM entries", True),
        ("UPDATE entries SET version = version + 1", True),
        ("DROP TABLE entries", True),
        ("DELETE FROM entries WHERE key = 'other'", False),
        ("INSERT INTO entries VALUES ('other', x'00', 1, 1)", False),
        ("VACUUM", False),
    ],
)
def test_what_another_program_does_is_seen(
    store: SqliteStore, watched: Watched, statement: str, ends: bool
) -> None:
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute(statement)
    assert seen_soon(watched) if ends else usable_soon(watched)


@pytest.mark.parametrize("trigger", sqlite_file.MARKING)
def test_a_file_in_which_changes_leave_no_mark_vouches_for_nothing(
    store: SqliteStore, watched: Watched, trigger: str
) -> None:
    assert watched.usable()
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute(f"DROP TRIGGER {trigger}")
        by_then(lambda: watched.watch.stamp() is None, AT_ONCE)
        other.execute("UPDATE entries SET version = version + 1")
    assert seen_soon(watched)
    assert watched.watch.stamp() is None


def test_a_writer_that_dies_before_it_says_so_is_seen(store: SqliteStore, watched: Watched) -> None:
    code = (
        "import os, sys\n"
        "from datetime import datetime, timezone\n"
        "from authservice.sessions import generation\n"
        "from authservice.sessions.sqlite import SqliteStore\n"
        "generation.advance = lambda database: os._exit(9)\n"
        "SqliteStore(sys.argv[1], lambda: datetime.now(timezone.utc)).delete('key')\n"
    )
    process = run_python(code, str(store.path))
    assert process.wait(30) == 9
    process.communicate()
    assert seen_soon(watched)


def test_a_file_that_was_taken_away_holds_nothing(store: SqliteStore, watched: Watched, clock: Clock) -> None:
    for name in ("", "-wal", "-shm"):
        Path(f"{store.path}{name}").unlink()
    assert seen_soon(watched)
    assert watched.watch.stamp() is None
    assert store.load("key") is None
    assert not watched.usable()
    store.save("key", b"value", clock() + MINUTE)
    watched.copy()
    assert usable_soon(watched)


def test_a_file_that_was_replaced_is_another_one(
    store: SqliteStore, watched: Watched, tmp_path: Path, clock: Clock
) -> None:
    with closing(SqliteStore(tmp_path / "other.db", clock)) as other:
        other.save("key", b"value", clock() + MINUTE)
    store.close()
    for name in ("-wal", "-shm"):
        Path(f"{store.path}{name}").unlink(missing_ok=True)
    os.replace(tmp_path / "other.db", store.path)
    assert seen_soon(watched)
    watched.copy()
    assert usable_soon(watched)
    store.delete("key")
    assert seen_soon(watched)


def test_a_file_that_cannot_be_read_vouches_for_nothing(store: SqliteStore, watched: Watched) -> None:
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        watched.watch.stop()
        store.close()
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        watched.watch.start()
        assert watched.watch.stamp() is None
        assert not watched.watch.holds("key", watched.version)
        other.execute("ROLLBACK")
    assert usable_soon(watched)


def test_watching_does_not_keep_sqlite_from_starting_its_log_anew(
    store: SqliteStore, watched: Watched, clock: Clock
) -> None:
    assert watched.usable()
    store.save("other", b"value", clock() + MINUTE)
    assert watched.usable()
    with closing(sqlite3.connect(store.path, timeout=0)) as other:
        assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall() == [(0, 0, 0)]
    assert usable_soon(watched)


def test_a_store_that_is_not_ready_yet_vouches_for_nothing(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "volume").write_text("not mounted yet")
    store = SqliteStore(tmp_path / "volume" / "sessions.db", clock)
    told = store.watch(lambda key: None)
    told.start()
    assert told.stamp() is None
    (tmp_path / "volume").unlink()
    store.save("key", b"value", clock() + MINUTE)
    by_then(told.stamp, AT_ONCE)
    told.stop()
    store.close()


def test_a_closed_store_is_watched_on(store: SqliteStore, watched: Watched) -> None:
    for _ in range(3):
        store.close()
        assert usable_soon(watched)
    store.delete("key")
    store.close()
    assert seen_soon(watched)


def test_a_watch_lets_go_of_its_files(store: SqliteStore, watched: Watched, tmp_path: Path) -> None:
    assert watched.usable()
    watched.watch.stop()
    store.close()
    links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
             if os.path.lexists(f"/proc/self/fd/{fd}")]
    assert not [link for link in links if link.startswith(str(tmp_path))]
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can take rights away from itself")
def test_on_a_read_only_volume_changes_are_still_seen(clock: Clock) -> None:
    """A process that may write nothing reads what others write, through files that they opened."""
    with TemporaryDirectory() as folder, closing(SqliteStore(Path(folder) / "sessions.db", clock)) as store:
        store.save("key", b"value", clock() + MINUTE)
        Path(folder).chmod(0o755)  # tmp_path has parents that pytest closes to others when it begins
        generation.beside(store.path).unlink(missing_ok=True)
        for one in Path(folder).iterdir():
            one.chmod(0o644)
        _watch_as_somebody_else(store.path)


def _watch_as_somebody_else(file: Path) -> None:
    code = (
        "import os, sys\n"
        "from datetime import datetime, timezone\n"
        "from tests.contracts import Watched\n"
        "from tests.waiting import by_then\n"
        "from authservice.sessions.sqlite import SqliteStore\n"
        "os.setgid(65534)\nos.setuid(65534)\n"
        "store = SqliteStore(sys.argv[1], lambda: datetime.now(timezone.utc))\n"
        "with Watched(store, 'key') as watched:\n"
        "    print(watched.usable(), flush=True)\n"
        "    sys.stdin.readline()\n"
        "    by_then(lambda: not watched.usable(), 0.05)\n"
        "    print(os.listdir(os.path.dirname(sys.argv[1])))\n"
    )
    process = run_python(code, str(file))
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n", process.communicate()
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("DELETE FROM entries")
    assert "sessions.db-generation" not in output(process, "go\n")


def test_without_room_for_the_number_changes_are_still_seen(tmp_path: Path) -> None:
    """The system refuses to let files grow beyond what they have, as a full disk does."""
    code = (
        "import os, resource, signal, sys\n"
        "from datetime import datetime, timedelta, timezone\n"
        "from authservice.sessions import generation\n"
        "from authservice.sessions.sqlite import SqliteStore\n"
        "from tests.contracts import Watched\n"
        "now = lambda: datetime.now(timezone.utc)\n"
        "store = SqliteStore(sys.argv[1], now)\n"
        "store.save('key', b'value', now() + timedelta(minutes=1))\n"
        "generation.beside(store.path).write_bytes(b'')\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))\n"
        "print(generation.advance(store.path), generation.follow(store.path))\n"
        "with Watched(store, 'key') as watched:\n"
        "    print(watched.usable())\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))\n"
        "    print(store.delete('key'), watched.usable())\n"
    )
    printed = output(run_python(code, str(tmp_path / "sessions.db"))).splitlines()
    assert printed == ["False None", "True", "True False"]


FORKS = """
import os, sys
from contextlib import closing
from datetime import datetime, timedelta, timezone
from threading import Event, Thread
from authservice.sessions.sqlite import SqliteStore
from tests.contracts import Watched
from tests.waiting import by_then, until
now = lambda: datetime.now(timezone.utc)
store = SqliteStore(sys.argv[1], now)
store.save("key", b"value", now() + timedelta(minutes=1))
done = Event()
with Watched(store, "key") as watched:
    def ask():
        while not done.is_set():
            watched.usable()
    threads = [Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(10):
        until(watched.usable, every=0.0005)
        pid = os.fork()
        if pid == 0:
            watched.watch.start()
            until(watched.usable, every=0.0005)
            assert store.delete("key") is True
            assert not watched.usable()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        by_then(lambda: not watched.usable(), 0.05)
        store.save("key", b"value", now() + timedelta(minutes=1))
        watched.copy()
    done.set()
    for thread in threads:
        thread.join()
    print("both sides")
"""


@pytest.mark.slow
def test_parent_and_child_watch_on_after_a_fork(tmp_path: Path) -> None:
    assert output(run_python(FORKS, str(tmp_path / "sessions.db"))) == "both sides"
    with closing(sqlite3.connect(tmp_path / "sessions.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("takes", [0.0, 3600.0])
def test_while_one_thread_looks_the_others_believe_what_it_saw_last_but_not_for_long(
    store: SqliteStore, watched: Watched, clock: Clock, takes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_watch, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(sqlite_watch, "LOOK_TAKES", takes)
    store.save("key", b"value", clock() + MINUTE)
    watched.copy()
    with watched.watch._lock:  # type: ignore[attr-defined]
        assert watched.usable() is (takes > 0)
        store.save("key", b"value", clock() + MINUTE)
        assert not watched.usable()
    assert not watched.usable()


def test_no_thread_waits_for_another_and_none_is_told_what_is_not_so(
    store: SqliteStore, watched: Watched, clock: Clock
) -> None:
    """Of threads that look at the same moment some learn nothing; none sees an end undone."""
    ended = False
    wrong: list[str] = []

    def ask() -> None:
        while not ended:
            watched.usable()
        if any(watched.usable() for _ in range(100)):
            wrong.append("usable after its end")

    threads = [Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        store.save("other", b"value", clock() + MINUTE)
    store.delete("key")
    ended = True
    for thread in threads:
        thread.join()
    assert wrong == []
