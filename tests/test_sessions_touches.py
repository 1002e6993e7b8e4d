"""Marks of last use that checks leave to a thread: nobody waits, nothing is lost, nothing comes back."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from authservice.check import NeedsIO, Reach
from authservice.errors import StoreDown
from authservice.ops import Counts
from authservice.sessions import Store, touches
from authservice.sessions.copies import LiveSession
from authservice.sessions.labels import Labels
from authservice.sessions.live import Sessions
from authservice.sessions.redis import RedisStore
from authservice.sessions.seal import Keyring, store_key
from authservice.sessions.sqlite import SqliteStore
from authservice.sessions.touches import Noted, Touch, Touches
from tests.contracts import MICROSECOND, MINUTE, Clock, output, run_python
from tests.sample_sessions import WatchedStore, a_session
from tests.served import serving
from tests.servers import any_redis, running_redis
from tests.test_ends_everywhere import Gateway
from tests.waiting import until

DAY = timedelta(days=1)
IDLE = timedelta(minutes=30)
NET, MEMORY = Reach.NETWORK, Reach.MEMORY
AT_ONCE = 0.05
"""Seconds in which a check is answered that waits for nobody, on a machine with other things to do; a
store that is held keeps whoever waits for it for 2 s."""

LABELS = Labels(Keyring([b"a key of the service's"]))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
def new_worker(file: Path, clock: Clock) -> Iterator[Callable[..., Worker]]:
    """Makes workers that share the file."""
    made: list[Worker] = []

    def make(**settings: Any) -> Worker:
        made.append(Worker(WatchedStore(SqliteStore(file, clock)), clock, **settings))
        return made[-1]

    yield make
    for worker in made:
        worker.store.failing = set()
        worker.sessions.stop()
        worker.store.close()


class Worker:
    """What one process has of it."""

    def __init__(self, store: WatchedStore, clock: Clock, *, idle: timedelta | None = IDLE, start: bool = True,
                 labels: Labels | None = None, cache_size: int = 100) -> None:
        self.store = store
        self.counts = Counts()
        self.sessions = Sessions(
            store, now=clock, max_age=DAY, idle_timeout=idle, cache_size=cache_size, labels=labels, counts=self.counts
        )
        if start:
            self.sessions.start()

    @property
    def marks(self) -> Touches:
        return self.sessions._touches

    def check(self, secret: str) -> LiveSession | None:
        """As both lanes ask, one after the other."""
        with suppress(NeedsIO):
            return self.sessions.quick(secret) or self.sessions.load(secret, MEMORY)
        return self.sessions.load(secret, NET)

    def at_once(self, secret: str) -> LiveSession | None:
        """What the fast lane says, or ``None``; it never takes long."""
        began = time.monotonic()
        with suppress(NeedsIO):
            found = self.sessions.quick(secret) or self.sessions.load(secret, MEMORY)
            assert time.monotonic() - began < AT_ONCE
            return found
        return None

    def settle(self) -> None:
        until(lambda: not self.marks, every=0.001)

    def told(self, name: str) -> int:
        return {**self.counts.counters(), **self.counts.gauges()}[f"authservice_{name}"]


@contextmanager
def held(file: Path) -> Iterator[None]:
    """Somebody else writes meanwhile, and does not come to an end."""
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def last_seen(store: Store, secret: str, clock: Callable[[], datetime]) -> object:
    """As it is in the store."""
    record = Sessions(store, now=clock, max_age=DAY).record(secret)
    return record.session.last_seen if record else None


# --- nobody waits -------------------------------------------------------------------------------


def test_checks_are_answered_while_the_file_is_held_and_the_mark_is_written_later(
    new_worker: Callable[..., Worker], file: Path, clock: Clock
) -> None:
    worker, elsewhere = new_worker(), new_worker()
    known, unknown = worker.sessions.begin(a_session(clock)), worker.sessions.begin(a_session(clock))
    assert worker.check(known)
    began = clock()
    clock.advance(MINUTE)
    with held(file):
        live = worker.at_once(known)
        assert live is not None
        assert live.last_seen == clock()
        asked = time.monotonic()
        cold = worker.sessions.load(unknown, NET)
        assert time.monotonic() - asked < AT_ONCE
        assert cold is not None
        assert cold.last_seen == clock()
        assert worker.at_once(unknown) is cold
        for secret in (known, unknown):
            assert last_seen(elsewhere.store, secret, clock) == began
    worker.settle()
    for secret in (known, unknown):
        assert last_seen(elsewhere.store, secret, clock) == clock()


def test_the_time_of_the_check_is_written_and_not_that_of_writing(
    new_worker: Callable[..., Worker], file: Path, clock: Clock
) -> None:
    worker = new_worker()
    secret = worker.sessions.begin(a_session(clock))
    worker.check(secret)
    seen = clock.advance(MINUTE)
    with held(file):
        assert worker.at_once(secret)
        clock.advance(MINUTE - MICROSECOND)
    worker.settle()
    assert last_seen(worker.store, secret, clock) == seen


def test_our_own_mark_leaves_the_copy_in_use(new_worker: Callable[..., Worker], clock: Clock) -> None:
    worker = new_worker()
    secret = worker.sessions.begin(a_session(clock))
    worker.check(secret)
    for _ in range(3):
        clock.advance(MINUTE)
        assert worker.at_once(secret)
        worker.settle()
        worker.store.calls.clear()
        assert worker.at_once(secret)
        assert worker.store.calls == []


def test_to_read_it_again_ourselves_is_no_use_of_it(new_worker: Callable[..., Worker], clock: Clock) -> None:
    worker = new_worker()
    secret = worker.sessions.begin(a_session(clock))
    worker.check(secret)
    seen = clock.advance(MINUTE)
    assert worker.at_once(secret)
    worker.settle()
    clock.advance(MINUTE)
    worker.sessions.forget(store_key(secret))  # as word of our own write does, where it comes late
    worker.sessions._renew(secret)
    assert worker.sessions._copies.find(secret)
    assert not worker.marks
    assert last_seen(worker.store, secret, clock) == seen
    assert worker.at_once(secret)
    worker.settle()
    assert last_seen(worker.store, secret, clock) == clock()


def test_another_workers_copy_follows(new_worker: Callable[..., Worker], clock: Clock) -> None:
    worker, other = new_worker(), new_worker()
    secret = worker.sessions.begin(a_session(clock))
    worker.check(secret)
    other.check(secret)
    seen = clock.advance(MINUTE)
    worker.check(secret)
    worker.settle()
    other.store.calls.clear()
    live = other.check(secret)
    assert live is not None
    assert live.last_seen == seen
    assert other.store.calls == ["load"]  # which the first one marked, so this one need not


def test_labels_follow_the_mark(new_worker: Callable[..., Worker], clock: Clock) -> None:
    worker = new_worker(labels=LABELS)
    secret = worker.sessions.begin(a_session(clock), address="203.0.113.7")
    worker.check(secret)
    seen = clock.advance(MINUTE)
    worker.check(secret)
    worker.settle()
    label = worker.store.label(store_key(secret))
    about = LABELS.read(label) if label else None
    assert about is not None
    assert (about.last_seen, about.address) == (seen, "203.0.113.7")


def test_where_nothing_is_kept_in_memory_marks_are_left_to_the_thread_too(
    new_worker: Callable[..., Worker], file: Path, clock: Clock
) -> None:
    worker = new_worker(cache_size=0)
    secret = worker.sessions.begin(a_session(clock))
    clock.advance(MINUTE)
    with held(file):
        for _ in range(3):
            began = time.monotonic()
            live = worker.sessions.load(secret, NET)
            assert time.monotonic() - began < AT_ONCE
            assert live is not None
            assert live.last_seen == clock()
        assert len(worker.marks) == 1
    worker.settle()
    assert last_seen(worker.store, secret, clock) == clock()


# --- the idle limit -------------------------------------------------------------------------------


def test_a_session_in_use_outlives_a_store_that_takes_nothing(
    new_worker: Callable[..., Worker], clock: Clock
) -> None:
    worker = new_worker()
    secret = worker.sessions.begin(a_session(clock))
    worker.check(secret)
    worker.store.failing = {"save"}
    for _ in range(9):
        clock.advance(10 * MINUTE)
        assert worker.check(secret)
    worker.store.failing = set()
    until(lambda: not worker.marks)
    assert last_seen(worker.store, secret, clock) == clock()
    other = new_worker()
    assert other.check(secret)


def test_an_unused_session_ends_though_its_mark_waits(new_worker: Callable[..., Worker], clock: Clock) -> None:
    worker = new_worker()
    secret = worker.sessions.begin(a_session(clock))
    worker.check(secret)
    worker.store.failing = {"save"}
    clock.advance(10 * MINUTE)
    assert worker.check(secret)
    clock.advance(IDLE - MICROSECOND)
    worker.store.calls.clear()
    assert worker.check(secret)  # so late that it is tried before it is answered
    assert "save" in worker.store.calls
    clock.advance(IDLE)
    assert worker.check(secret) is None
    assert worker.sessions.record(secret) is None
    worker.store.failing = set()
    until(lambda: not worker.marks)
    assert worker.check(secret) is None
    assert new_worker().check(secret) is None


def test_a_mark_that_comes_after_the_limit_that_the_store_knows_still_counts(
    new_worker: Callable[..., Worker], file: Path, clock: Clock
) -> None:
    worker = new_worker(idle=timedelta(seconds=2))
    secret = worker.sessions.begin(a_session(clock))
    worker.check(secret)
    with held(file):
        for _ in range(8):  # each well within the limit after the one before
            seen = clock.advance(timedelta(seconds=0.6))
            assert worker.at_once(secret)
    worker.settle()
    assert last_seen(worker.store, secret, clock) == seen
    assert new_worker(idle=timedelta(seconds=2)).check(secret)


def test_late_marks_are_written_before_the_answer(new_worker: Callable[..., Worker], clock: Clock) -> None:
    """Another worker must not end what was let pass here just now."""
    worker, other = new_worker(), new_worker()
    secret = worker.sessions.begin(a_session(clock))
    worker.check(secret)
    clock.advance(IDLE - timedelta(seconds=5))
    assert worker.at_once(secret) is None
    assert worker.check(secret)
    clock.advance(timedelta(seconds=5))
    assert other.check(secret)


@pytest.mark.parametrize("ask", [lambda one, secret: one.load(secret, NET), Sessions.record, Sessions.end])
def test_a_mark_that_is_written_while_a_session_is_read_counts(
    new_worker: Callable[..., Worker], clock: Clock, ask: Callable[[Sessions, str], object]
) -> None:
    """The store's answer is of before, and nothing waits any more."""
    worker = new_worker(cache_size=0)
    secret = worker.sessions.begin(a_session(clock))
    worker.store.failing = {"save"}
    for _ in range(4):
        clock.advance(10 * MINUTE)
        assert worker.check(secret)

    def written() -> None:
        if threading.current_thread().name != "session marks":
            worker.store.after_load = lambda: None
            worker.store.failing = set()
            worker.settle()

    worker.store.after_load = written
    assert ask(worker.sessions, secret)


def test_a_late_mark_is_written_though_somebody_changes_the_session(
    new_worker: Callable[..., Worker], clock: Clock
) -> None:
    worker, other = new_worker(), new_worker()
    secret = worker.sessions.begin(a_session(clock))

    def change() -> None:
        if threading.current_thread().name != "session marks":
            worker.store.after_load = lambda: None
            record = other.sessions.record(secret)
            assert record is not None
            assert other.sessions.replace(secret, record, a_session(clock, access_token="newer", last_seen=began))

    began = clock()
    clock.advance(IDLE - timedelta(seconds=5))
    worker.store.after_load = change
    assert worker.check(secret)
    worker.settle()
    record = worker.sessions.record(secret)
    assert record is not None
    assert (record.session.access_token, record.session.last_seen) == ("newer", clock())


def test_a_clock_that_went_back_moves_no_mark_back(new_worker: Callable[..., Worker], clock: Clock) -> None:
    worker = new_worker()
    secret = worker.sessions.begin(a_session(clock))
    worker.check(secret)
    seen = clock.advance(2 * MINUTE)
    worker.check(secret)
    worker.settle()
    clock.advance(-timedelta(hours=1))
    assert worker.check(secret)
    worker.settle()
    assert last_seen(worker.store, secret, clock) == seen


# --- nothing comes back, nothing is undone -----------------------------------------------------------


@pytest.mark.parametrize("how", ["here", "another worker", "another program", "between reading and writing"])
def test_an_ended_session_is_not_brought_back(
    new_worker: Callable[..., Worker], file: Path, clock: Clock, how: str
) -> None:
    worker, other = new_worker(), new_worker()
    secret = worker.sessions.begin(a_session(clock))
    worker.check(secret)
    worker.store.failing = {"save"}
    clock.advance(MINUTE)
    assert worker.at_once(secret)
    until(lambda: worker.store.calls.count("save") >= 2)  # the login's own, and a mark that is not taken
    if how == "here":
        worker.sessions.end(secret)
    elif how == "another worker":
        other.sessions.end(secret)
    elif how == "another program":
        with closing(sqlite3.connect(file, isolation_level=None)) as program:
            program.execute("DELETE FROM entries")
    else:
        worker.store.after_load = lambda: other.store.delete(store_key(secret))
    worker.store.failing = set()
    worker.settle()
    worker.store.after_load = lambda: None
    assert worker.store.load(store_key(secret)) is None
    until(lambda: worker.check(secret) is None)
    assert other.check(secret) is None


def test_a_change_at_the_same_time_stays(new_worker: Callable[..., Worker], clock: Clock) -> None:
    """As of a refresh: its tokens are kept, and so is the mark."""
    worker, other = new_worker(), new_worker()
    secret = worker.sessions.begin(a_session(clock))
    worker.check(secret)
    clock.advance(MINUTE)

    def change() -> None:
        if threading.current_thread().name == "session marks":
            worker.store.after_load = lambda: None
            record = other.sessions.record(secret)
            assert record is not None
            session = a_session(clock, access_token="newer", last_seen=record.session.last_seen)
            assert other.sessions.replace(secret, record, session)

    worker.store.after_load = change
    assert worker.at_once(secret)
    worker.settle()
    record = worker.sessions.record(secret)
    assert record is not None
    assert (record.session.access_token, record.session.last_seen) == ("newer", clock())


def test_a_change_that_is_kept_here_brings_the_mark_with_it(
    new_worker: Callable[..., Worker], clock: Clock
) -> None:
    worker = new_worker()
    secret = worker.sessions.begin(a_session(clock))
    worker.check(secret)
    worker.store.failing = {"save"}
    seen = clock.advance(MINUTE)
    assert worker.at_once(secret)
    until(lambda: worker.store.calls.count("save") >= 2)
    record = worker.sessions.record(secret)
    assert record is not None
    assert record.session.last_seen == seen
    worker.store.failing = set()
    assert worker.sessions.replace(secret, record, a_session(clock, access_token="newer", last_seen=seen - MINUTE))
    assert last_seen(worker.store, secret, clock) == seen


def test_somebody_elses_newer_mark_is_as_good(new_worker: Callable[..., Worker], clock: Clock) -> None:
    worker, other = new_worker(), new_worker()
    secret = worker.sessions.begin(a_session(clock))
    for one in (worker, other):
        one.check(secret)
        one.store.failing = {"save"}
    clock.advance(MINUTE)
    assert worker.at_once(secret)
    newer = clock.advance(timedelta(seconds=30))
    assert other.at_once(secret)
    other.store.failing = set()
    other.settle()
    worker.store.calls.clear()
    worker.store.failing = set()
    worker.settle()
    assert "save" not in worker.store.calls
    assert last_seen(worker.store, secret, clock) == newer


# --- bounds, and the end ---------------------------------------------------------------------------


def test_one_mark_waits_for_each_session(new_worker: Callable[..., Worker], file: Path, clock: Clock) -> None:
    worker = new_worker()
    secret = worker.sessions.begin(a_session(clock))
    worker.check(secret)
    with held(file):
        for _ in range(5):
            seen = clock.advance(MINUTE)
            assert worker.at_once(secret)
        assert worker.told("session_marks_waiting") == 1
    worker.settle()
    assert last_seen(worker.store, secret, clock) == seen


def test_beyond_the_bound_a_check_writes_its_mark_itself(
    new_worker: Callable[..., Worker], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(touches, "MOST_WAITING", 0)
    worker = new_worker()
    secret = worker.sessions.begin(a_session(clock))
    worker.check(secret)
    clock.advance(MINUTE)
    assert worker.at_once(secret) is None
    assert worker.check(secret)
    assert last_seen(worker.store, secret, clock) == clock()


def test_beyond_the_bound_while_the_store_is_down_a_mark_is_lost_and_counted(
    new_worker: Callable[..., Worker], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(touches, "MOST_WAITING", 1)
    worker = new_worker()
    waits, lost = worker.sessions.begin(a_session(clock)), worker.sessions.begin(a_session(clock))
    for secret in (waits, lost):
        worker.check(secret)
    worker.store.failing = {"save"}
    clock.advance(MINUTE)
    assert worker.at_once(waits)
    until(lambda: worker.marks._failing)
    live = worker.at_once(lost)  # not in memory alone: what nobody will write does not count
    assert live is not None
    assert live.last_seen == clock() - MINUTE
    assert worker.told("session_marks_lost_total") == 1
    worker.store.failing = set()
    worker.settle()
    assert worker.at_once(lost)
    worker.settle()
    assert last_seen(worker.store, lost, clock) == clock()


def test_a_part_of_the_store_that_is_down_keeps_nobody_elses_marks(clock: Clock) -> None:
    written: list[str] = []

    def write(touch: Touch) -> bool:
        if touch.secret == "down":
            raise StoreDown("told to fail")
        written.append(touch.secret)
        return False

    marks = Touches(write, lambda secret: None, Counts())
    marks.start()
    for number in range(20):
        assert marks.note("down", "down", clock()) is Noted.TAKEN
        assert marks.note(f"{number}", f"{number}", clock()) is Noted.TAKEN
    until(lambda: len(written) == 20)
    assert len(marks) == 1
    marks.stop()


def test_a_part_of_the_store_that_is_down_is_told_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    failing = threading.Event()
    failing.set()
    tries: list[str] = []

    def write(touch: Touch) -> bool:
        tries.append(touch.secret)
        if touch.secret.startswith("down") and failing.is_set():
            raise StoreDown("told to fail")
        return False

    marks = Touches(write, lambda secret: None, Counts())
    marks.start()
    for _ in range(2):
        for number in range(20):
            assert marks.note(f"down{number}", f"down{number}", clock()) is Noted.TAKEN
            assert marks.note(f"up{number}", f"up{number}", clock()) is Noted.TAKEN
        until(lambda: len(marks) == 20 and tries.count("down0") >= 3)
        failing.clear()
        until(lambda: not marks)
        failing.set()
        tries.clear()
    marks.stop()
    assert len(caplog.records) == 2


def test_many_marks_that_fail_at_once_keep_no_processor_busy(clock: Clock) -> None:
    spent: list[float] = []

    def write(touch: Touch) -> bool:
        began = time.monotonic()
        time.sleep(0.0005)
        spent.append(time.monotonic() - began)
        raise StoreDown("told to fail")

    marks = Touches(write, lambda secret: None, Counts())
    marks.start()
    for number in range(5000):
        assert marks.note(f"{number}", f"{number}", clock()) is Noted.TAKEN
    time.sleep(1.2)
    assert sum(spent) < 0.6
    marks.stop()


def test_a_thread_that_died_leaves_marks_to_the_checks(
    new_worker: Callable[..., Worker], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda told: None)
    worker = new_worker()
    secret = worker.sessions.begin(a_session(clock))
    worker.check(secret)

    def fault(touch: Touch) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(worker.marks, "_write", fault)
    clock.advance(MINUTE)
    assert worker.at_once(secret)
    until(lambda: worker.told("unexpected_errors_total") == 1)
    clock.advance(MINUTE)
    until(lambda: worker.at_once(secret) is None)
    assert worker.check(secret)
    assert last_seen(worker.store, secret, clock) == clock()


def test_the_end_writes_what_is_left(new_worker: Callable[..., Worker], file: Path, clock: Clock) -> None:
    worker = new_worker()
    secrets = [worker.sessions.begin(a_session(clock)) for _ in range(20)]
    for secret in secrets:
        worker.check(secret)
    clock.advance(MINUTE)
    with held(file):
        for secret in secrets:
            assert worker.at_once(secret)
    worker.sessions.stop()
    assert [last_seen(worker.store, secret, clock) for secret in secrets] == [clock()] * 20
    clock.advance(MINUTE)
    assert worker.sessions.load(secrets[0], NET)  # marks itself from now on
    assert last_seen(worker.store, secrets[0], clock) == clock()


def test_the_end_does_not_wait_for_ever(
    new_worker: Callable[..., Worker], file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(touches, "DRAIN_SECONDS", 0.2)
    worker = new_worker()
    secret = worker.sessions.begin(a_session(clock))
    worker.check(secret)
    clock.advance(MINUTE)
    with held(file):
        assert worker.at_once(secret)
        began = time.monotonic()
        worker.sessions.stop()
        assert time.monotonic() - began < 1
    assert worker.told("session_marks_lost_total") == 1


# --- processes -------------------------------------------------------------------------------------


PROCESS = """
import os, sys
from datetime import datetime, timedelta, timezone
from authservice.check import Reach
from authservice.sessions.live import Sessions
from authservice.sessions.sqlite import SqliteStore
file, secret, how = sys.argv[1:]
ahead = timedelta(seconds=90)
now = lambda: datetime.now(timezone.utc) + ahead
store = SqliteStore(file, now)
sessions = Sessions(store, now=now, max_age=timedelta(days=1), idle_timeout=timedelta(minutes=30), cache_size=9)
sessions.start()
if how == "fork":
    assert sessions.load(secret, Reach.NETWORK)
    while sessions._touches:
        pass
    pid = os.fork()
    if pid:
        assert os.waitpid(pid, 0)[1] == 0
        sys.exit()
    sessions.start()
    ahead *= 2
assert sessions.load(secret, Reach.NETWORK)
if how == "kill":
    os.kill(os.getpid(), 9)
sessions.stop()
os._exit(0)
"""


def test_a_killed_process_loses_its_last_marks_and_the_next_check_brings_them(
    new_worker: Callable[..., Worker], file: Path, clock: Clock
) -> None:
    worker = new_worker(start=False)
    secret = worker.sessions.begin(a_session(clock))
    began = clock()
    with held(file):
        process = run_python(PROCESS, str(file), secret, "kill")
        process.communicate(timeout=30)
        assert process.returncode == -9
    assert last_seen(worker.store, secret, clock) == began
    clock.advance(2 * MINUTE)
    restarted = new_worker()
    assert restarted.sessions.load(secret, NET)
    restarted.settle()
    assert last_seen(worker.store, secret, clock) == clock()


@pytest.mark.parametrize(("how", "seconds"), [("end", 90), ("fork", 180)])
def test_each_process_writes_its_own_marks(
    new_worker: Callable[..., Worker], file: Path, clock: Clock, how: str, seconds: int
) -> None:
    worker = new_worker(start=False)
    secret = worker.sessions.begin(a_session(clock))
    began = clock()
    output(run_python(PROCESS, str(file), secret, how))
    found = last_seen(worker.store, secret, clock)
    assert found is not None
    assert found - began >= timedelta(seconds=seconds)  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["loop", "gthread"])
def test_a_service_that_ends_has_answered_at_once_and_written_its_marks(
    environ: dict[str, str], tmp_path: Path, kind: str
) -> None:
    def now() -> datetime:
        return datetime.now(timezone.utc)

    settings = {**environ, "SESSION_IDLE_TIMEOUT": "600", "WEB_CONCURRENCY": "1", "UNAUTHENTICATED_RESPONSE": "401"}
    if kind == "gthread":
        settings["WORKER_CLASS"] = kind
    file = Path(environ["SESSION_STORE_PATH"])
    with closing(SqliteStore(file, now)) as store:
        sessions = Sessions(store, now=now, max_age=DAY)
        began = now()
        before = began - 5 * MINUTE
        others, secret = (sessions.begin(a_session(now, last_seen=before)) for _ in range(2))
        with serving(settings, tmp_path) as served, closing(Gateway(served.judge)) as gateway:
            until(lambda: gateway.allows(others))
            with held(file):
                for _ in range(3):
                    asked = time.monotonic()
                    assert gateway.allows(secret)
                    assert time.monotonic() - asked < 1  # who waits for the file waits for two
                assert last_seen(store, secret, now) == before
                gateway.close()
                served.process.terminate()
        for one in (others, secret):
            record = sessions.record(one)
            assert record is not None
            assert began <= record.session.last_seen <= now()


# --- Redis -----------------------------------------------------------------------------------------


@pytest.mark.external
def test_on_redis_too_nobody_waits_and_the_copy_comes_back(tmp_path: Path, clock: Clock) -> None:
    with running_redis(any_redis(), tmp_path) as server:
        with closing(RedisStore(server.address, now=clock)) as ours, closing(RedisStore(server.address, now=clock)) as theirs:
            worker = Worker(WatchedStore(ours), clock)
            secret = worker.sessions.begin(a_session(clock))
            until(lambda: worker.sessions.load(secret, NET) and worker.at_once(secret), every=0.005)
            for _ in range(3):
                clock.advance(MINUTE)
                until(lambda: worker.at_once(secret), every=0.001)
                worker.settle()
                assert last_seen(theirs, secret, clock) == clock()
                until(lambda: _in_memory(worker, secret), every=0.001)  # without a check that asks for it
            clock.advance(MINUTE)
            until(lambda: worker.at_once(secret), every=0.001)
            theirs.delete(store_key(secret))
            worker.settle()
            assert theirs.load(store_key(secret)) is None
            until(lambda: worker.check(secret) is None, 5)
            worker.sessions.stop()


@pytest.mark.external
def test_a_silent_redis_keeps_no_mark_for_ever_and_loses_none(tmp_path: Path, clock: Clock) -> None:
    with running_redis(any_redis(), tmp_path, durable=True) as server:
        with closing(RedisStore(server.address, now=clock)) as store:
            worker = Worker(WatchedStore(store), clock)
            secret = worker.sessions.begin(a_session(clock))
            until(lambda: worker.sessions.load(secret, NET) and worker.at_once(secret), every=0.005)
            worker.store.failing = {"save"}
            clock.advance(MINUTE)
            until(lambda: worker.at_once(secret), every=0.001)
            server.kill()
            worker.store.failing = set()
            until(lambda: worker.at_once(secret) is None)  # nobody passes out of memory then
            with pytest.raises(StoreDown):
                worker.sessions.load(secret, NET)
            assert len(worker.marks) == 1
            server.start()
            until(lambda: not worker.marks)
            assert last_seen(store, secret, clock) == clock()
            worker.sessions.stop()


def _in_memory(worker: Worker, secret: str) -> bool:
    copy = worker.sessions._copies.find(secret)
    return copy is not None and copy.stamp == worker.sessions._watch.stamp()
