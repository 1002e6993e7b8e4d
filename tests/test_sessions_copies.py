"""Copies of live sessions in memory: when they are used, when not, and that nobody can tell."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from authservice import app
from authservice.check import NeedsIO, Reach
from authservice.clock import utc_now
from authservice.errors import StoreDown
from authservice.sessions import generation, sqlite_watch
from authservice.sessions.copies import LiveSession
from authservice.sessions.live import Sessions
from authservice.sessions.seal import new_secret, store_key
from authservice.sessions.sqlite import SqliteStore
from authservice.settings import load
from tests.contracts import MICROSECOND, MINUTE, Clock, at_once, output, run_python
from tests.sample_sessions import WatchedStore, a_session
from tests.waiting import by_then, until

DAY = timedelta(days=1)
NET = Reach.NETWORK
MEMORY = Reach.MEMORY
AT_ONCE = 0.05


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[WatchedStore]:
    with closing(SqliteStore(tmp_path / "sessions.db", clock)) as store:
        yield WatchedStore(store)


@pytest.fixture
def keep(store: WatchedStore, clock: Clock) -> Iterator[Callable[..., Sessions]]:
    """Makes sessions that keep copies."""
    made: list[Sessions] = []

    def make(cache_size: int = 100, max_age: timedelta = DAY, idle_timeout: timedelta | None = None) -> Sessions:
        sessions = Sessions(store, now=clock, max_age=max_age, idle_timeout=idle_timeout, cache_size=cache_size)
        sessions.start()
        made.append(sessions)
        return sessions

    yield make
    for sessions in made:
        sessions.stop()


@pytest.fixture
def sessions(keep: Callable[..., Sessions]) -> Sessions:
    return keep()


@pytest.fixture
def elsewhere(tmp_path: Path, clock: Clock) -> Iterator[Sessions]:
    """Another worker's sessions, over the same file."""
    with closing(SqliteStore(tmp_path / "sessions.db", clock)) as store:
        yield Sessions(store, now=clock, max_age=DAY)


def known(sessions: Sessions, secret: str) -> LiveSession | None:
    """What a check gets without waiting, or ``None`` where it has to ask the store."""
    with suppress(NeedsIO):
        return sessions.load(secret, MEMORY)
    return None


# --- when a copy is used ----------------------------------------------------------------------


def test_a_session_that_was_read_once_is_known_without_the_store(
    sessions: Sessions, store: WatchedStore, clock: Clock
) -> None:
    secret = sessions.begin(a_session(clock))
    with pytest.raises(NeedsIO):
        sessions.load(secret, MEMORY)
    loaded = sessions.load(secret, NET)
    store.calls.clear()
    for reach in (MEMORY, NET) * 5:
        assert sessions.load(secret, reach) is loaded
    assert store.calls == []


def test_a_login_elsewhere_costs_a_copy_no_read_of_the_store(
    sessions: Sessions, store: WatchedStore, elsewhere: Sessions, clock: Clock
) -> None:
    secret = sessions.begin(a_session(clock))
    loaded = sessions.load(secret, NET)
    store.calls.clear()
    for _ in range(5):
        elsewhere.begin(a_session(clock))
        assert sessions.load(secret, MEMORY) is loaded
    assert store.calls == []


def test_no_copy_holds_a_token(sessions: Sessions, clock: Clock) -> None:
    session = a_session(clock)
    loaded = sessions.load(sessions.begin(session), NET)
    assert loaded is not None
    held = [getattr(identity, name) for identity in (loaded.by_cookie, loaded.by_header)
            for name in identity.__dataclass_fields__]
    for token in (session.id_token, session.access_token, session.refresh_token):
        assert token not in repr([*map(repr, held), [dict(loaded.by_cookie.claims)]])


@pytest.mark.parametrize("when", ["never started", "size 0", "stopped"])
def test_nothing_is_kept_where_nothing_may_be(
    keep: Callable[..., Sessions], store: WatchedStore, clock: Clock, when: str
) -> None:
    if when == "never started":
        sessions = Sessions(store, now=clock, max_age=DAY, cache_size=100)
    else:
        sessions = keep(0 if when == "size 0" else 100)
    secret = sessions.begin(a_session(clock))
    sessions.load(secret, NET)
    if when == "stopped":
        assert known(sessions, secret)
        sessions.stop()
    for _ in range(3):
        assert sessions.load(secret, NET) is not None
        assert known(sessions, secret) is None


def test_the_least_recently_used_copy_goes_first(keep: Callable[..., Sessions], clock: Clock) -> None:
    sessions = keep(cache_size=3)
    first, second, third, fourth = [sessions.begin(a_session(clock)) for _ in range(4)]
    for secret in (first, second, third):
        sessions.load(secret, NET)
    clock.advance(MINUTE)
    assert known(sessions, first)
    sessions.load(fourth, NET)
    assert [known(sessions, secret) is not None for secret in (first, second, third, fourth)] == [
        True, False, True, True,
    ]  # fmt: skip


def test_many_sessions_take_no_more_than_their_number(keep: Callable[..., Sessions], clock: Clock) -> None:
    sessions = keep(cache_size=10)
    secrets = [sessions.begin(a_session(clock)) for _ in range(50)]
    for secret in secrets * 2:
        assert sessions.load(secret, NET) is not None
    assert sum(known(sessions, secret) is not None for secret in secrets) == 10
    assert len(sessions._copies) == 10


# --- when it is not ---------------------------------------------------------------------------


def test_k09_s13_a_session_that_was_ended_here_is_dead_at_once(
    sessions: Sessions, store: WatchedStore, clock: Clock
) -> None:
    secret = sessions.begin(a_session(clock))
    sessions.load(secret, NET)
    ended = sessions.end(secret)
    assert ended is not None
    assert ended.refresh_token == "the-refresh-token"
    assert known(sessions, secret) is None
    assert sessions.load(secret, NET) is None


def test_k09_s13_a_session_that_was_ended_by_another_worker_is_dead_at_once(
    sessions: Sessions, elsewhere: Sessions, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_watch, "LOOK_EVERY", 3600.0)
    for _ in range(20):
        secret = sessions.begin(a_session(clock))
        sessions.load(secret, NET)
        assert known(sessions, secret)
        elsewhere.end(secret)
        assert known(sessions, secret) is None
        assert sessions.load(secret, NET) is None


def test_of_a_session_that_ended_elsewhere_nothing_is_kept(
    sessions: Sessions, elsewhere: Sessions, clock: Clock
) -> None:
    secret = sessions.begin(a_session(clock))
    sessions.load(secret, NET)
    assert len(sessions._copies) == 1
    elsewhere.end(secret)
    assert sessions.load(secret, NET) is None
    assert len(sessions._copies) == 0


def test_a_session_that_was_deleted_by_another_program_is_dead_soon(
    sessions: Sessions, tmp_path: Path, clock: Clock
) -> None:
    secret = sessions.begin(a_session(clock))
    sessions.load(secret, NET)
    with closing(sqlite3.connect(tmp_path / "sessions.db", isolation_level=None)) as other:
        other.execute("DELETE FROM entries")
    by_then(lambda: not known(sessions, secret), AT_ONCE)
    assert sessions.load(secret, NET) is None


def test_an_end_that_cannot_be_kept_leaves_no_copy(sessions: Sessions, store: WatchedStore, clock: Clock) -> None:
    secret = sessions.begin(a_session(clock))
    sessions.load(secret, NET)
    store.failing = {"delete"}
    with pytest.raises(StoreDown):
        sessions.end(secret)
    assert known(sessions, secret) is None


@pytest.mark.parametrize("who", ["here", "another worker", "another program"])
def test_an_end_during_a_load_leaves_no_copy(
    sessions: Sessions, store: WatchedStore, elsewhere: Sessions, tmp_path: Path, clock: Clock, who: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sqlite_watch, "LOOK_EVERY", 0.0)
    secret = sessions.begin(a_session(clock))

    def end() -> None:
        store.after_load = lambda: None
        if who == "another program":
            with closing(sqlite3.connect(tmp_path / "sessions.db", isolation_level=None)) as other:
                other.execute("DELETE FROM entries")
        else:
            (sessions if who == "here" else elsewhere).end(secret)

    store.after_load = end
    assert sessions.load(secret, NET) is not None  # it was live when it was asked for
    assert known(sessions, secret) is None
    assert sessions.load(secret, NET) is None


def test_a_load_is_kept_again_after_one_was_forgotten(sessions: Sessions, store: WatchedStore, clock: Clock) -> None:
    secret = sessions.begin(a_session(clock))
    forget = sessions._copies.forget
    for key in (store_key(secret), None):
        store.after_load = lambda key=key: forget(key)  # type: ignore[misc]
        assert sessions.load(secret, NET) is not None
        assert known(sessions, secret) is None
    store.after_load = lambda: forget("another key")
    assert sessions.load(secret, NET) is not None
    assert known(sessions, secret) is not None


def test_k09_b36_a_copy_ends_at_the_absolute_limit(sessions: Sessions, clock: Clock) -> None:
    secret = sessions.begin(a_session(clock))
    sessions.load(secret, NET)
    clock.advance(DAY - MICROSECOND)
    assert known(sessions, secret)
    assert sessions.load(secret, MEMORY) is sessions.load(secret, NET)
    clock.advance(MICROSECOND)
    assert known(sessions, secret) is None
    assert sessions.load(secret, NET) is None


def test_a_copy_ends_with_its_entry(sessions: Sessions, store: WatchedStore, clock: Clock) -> None:
    """Whoever keeps the store may have given the entry less time than the record has."""
    secret = sessions.begin(a_session(clock))
    entry = store.load(store_key(secret))
    assert entry is not None
    store.save(store_key(secret), entry.value, clock() + MINUTE)
    sessions.load(secret, NET)
    clock.advance(MINUTE - MICROSECOND)
    assert known(sessions, secret)
    clock.advance(MICROSECOND)
    assert known(sessions, secret) is None
    assert sessions.load(secret, NET) is None


def test_k09_a_copy_ends_at_the_idle_limit_and_steps_are_written(
    keep: Callable[..., Sessions], store: WatchedStore, clock: Clock
) -> None:
    sessions = keep(idle_timeout=timedelta(minutes=30))
    secret = sessions.begin(a_session(clock))
    for _ in range(3):
        sessions.load(secret, NET)
        store.calls.clear()
        clock.advance(MINUTE - MICROSECOND)
        assert known(sessions, secret)
        assert store.calls == []
        clock.advance(MICROSECOND)
        loaded = known(sessions, secret)  # nobody waits until it is written
        assert loaded is not None
        assert loaded.last_seen == clock()
        until(lambda: not sessions._touches, every=0.002)
        assert store.calls == ["load", "save", "load"]
        assert known(sessions, secret) is not None
        record = sessions.record(secret)
        assert record is not None
        assert record.session.last_seen == clock()
    clock.advance(timedelta(minutes=30))
    assert known(sessions, secret) is None
    assert sessions.load(secret, NET) is None


def test_s24_a_store_that_vanished_vouches_for_no_copy(
    sessions: Sessions, store: WatchedStore, tmp_path: Path, clock: Clock
) -> None:
    secret = sessions.begin(a_session(clock))
    sessions.load(secret, NET)
    for one in tmp_path.iterdir():
        one.unlink()
    by_then(lambda: not known(sessions, secret), AT_ONCE)
    store.failing = {"load"}
    with pytest.raises(StoreDown):
        sessions.load(secret, NET)


def test_garbage_is_nobody_without_waiting(sessions: Sessions, store: WatchedStore) -> None:
    for text in ("", "x", "A" * 49):
        assert sessions.load(text, MEMORY) is None
    with pytest.raises(NeedsIO):
        sessions.load(new_secret(), MEMORY)
    assert store.calls == []


# --- nobody can tell --------------------------------------------------------------------------


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "nothing", "end", "end elsewhere", "delete", "new version", "wait", "sweep"]),
        st.integers(0, 3),
        st.sampled_from([MICROSECOND, timedelta(seconds=5), MINUTE, 10 * MINUTE, timedelta(hours=2)]),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, idle=st.sampled_from([None, timedelta(minutes=20)]), size=st.sampled_from([1, 2, 100]))
def test_with_and_without_copies_the_answers_are_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[str, int, timedelta]], idle: timedelta | None, size: int,
) -> None:
    """Two lanes over one store: what is answered from memory is what the store would say."""
    clock, file = Clock(), tmp_path_factory.mktemp("law") / "sessions.db"
    with closing(SqliteStore(file, clock)) as ours, closing(SqliteStore(file, clock)) as theirs:
        with pytest.MonkeyPatch.context() as patch, closing(sqlite3.connect(file, isolation_level=None)) as other:
            patch.setattr(sqlite_watch, "LOOK_EVERY", 0.0)  # so that no moment passes in which it may be old
            quick = Sessions(ours, now=clock, max_age=DAY, idle_timeout=idle, cache_size=size)
            plain = Sessions(theirs, now=clock, max_age=DAY, idle_timeout=idle)
            quick.start()
            secrets = [quick.begin(a_session(clock, expires=clock() + timedelta(hours=1))) for _ in range(4)]
            for step, number, by in steps:
                secret = secrets[number]
                if step == "begin":
                    secrets[number] = quick.begin(a_session(clock, user_id=f"user{number}"))
                elif step == "end":
                    quick.end(secret)
                elif step == "end elsewhere":
                    plain.end(secret)
                elif step == "delete":
                    other.execute("DELETE FROM entries WHERE key = ?", (store_key(secret),))
                elif step == "new version":
                    other.execute("UPDATE entries SET version = version + 1")
                elif step == "wait":
                    clock.advance(by)
                elif step == "sweep":
                    theirs.sweep()
                for one in secrets:
                    try:
                        answer = quick.load(one, MEMORY)
                    except NeedsIO:
                        answer = quick.load(one, NET)
                    expected = plain.load(one, NET)
                    assert (answer is None) == (expected is None)
                    assert answer is None or expected is None or answer == expected
            quick.stop()


def test_an_ended_session_is_nobody_for_every_thread_from_then_on(
    sessions: Sessions, elsewhere: Sessions, clock: Clock
) -> None:
    secrets = [sessions.begin(a_session(clock)) for _ in range(40)]
    gone: set[str] = set()
    done = False
    wrong: list[str] = []

    def ask() -> None:
        while not done:
            for secret in secrets:
                ended = secret in gone  # before it is asked for
                if sessions.load(secret, NET) is not None and ended:
                    wrong.append("live after its end")

    threads = [Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for number, secret in enumerate(secrets):
        (sessions if number % 2 else elsewhere).end(secret)
        gone.add(secret)
    done = True
    for thread in threads:
        thread.join()
    assert wrong == []
    assert not any(sessions.load(secret, NET) for secret in secrets)


def test_many_threads_get_one_answer(sessions: Sessions, clock: Clock) -> None:
    secret = sessions.begin(a_session(clock))
    first = sessions.load(secret, NET)
    assert at_once(16, lambda _: all(sessions.load(secret, NET) == first for _ in range(500))) == 16


FORKS = """
import os, sys
from datetime import datetime, timedelta, timezone
from threading import Thread
from authservice.check import NeedsIO, Reach
from authservice.sessions import Session
from authservice.sessions.live import Sessions
from authservice.sessions.sqlite import SqliteStore
now = lambda: datetime.now(timezone.utc)
sessions = Sessions(SqliteStore(sys.argv[1], now), now=now, max_age=timedelta(days=1), cache_size=50)
sessions.start()
limit = now() + timedelta(days=1)
record = Session(user_id="a", issuer="i", subject="s", created=now(), last_seen=now(), expires=limit)
secrets = [sessions.begin(record) for _ in range(20)]
done = False

def ask():
    while not done:
        for secret in secrets:
            sessions.load(secret, Reach.NETWORK)

threads = [Thread(target=ask) for _ in range(4)]
for thread in threads:
    thread.start()
for secret in secrets:
    pid = os.fork()
    if pid == 0:
        sessions.start()
        try:
            sessions.load(secret, Reach.MEMORY)
            os._exit(2)
        except NeedsIO:
            pass
        assert sessions.load(secret, Reach.NETWORK) is sessions.load(secret, Reach.NETWORK)
        assert sessions.end(secret) is not None
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert sessions.load(secret, Reach.NETWORK) is None
done = True
for thread in threads:
    thread.join()
print("ended", len(secrets))
"""


@pytest.mark.slow
def test_a_forked_child_begins_with_no_copy_and_may_end_what_the_parent_knows(tmp_path: Path) -> None:
    assert output(run_python(FORKS, str(tmp_path / "sessions.db"))) == "ended 20"


# --- another process, by the clock ------------------------------------------------------------


ANOTHER_WORKER = """
import sys, time
from datetime import datetime, timedelta, timezone
from authservice.check import NeedsIO, Reach
from authservice.sessions.live import Sessions
from authservice.sessions.sqlite import SqliteStore
now = lambda: datetime.now(timezone.utc)
sessions = Sessions(SqliteStore(sys.argv[1], now), now=now, max_age=timedelta(days=1), cache_size=50)
sessions.start()
for line in sys.stdin:
    secret = line.strip()
    sessions.load(secret, Reach.NETWORK)
    print(sessions.load(secret, Reach.MEMORY) is not None, flush=True)
    passed = 0.0
    while True:
        asked = time.monotonic()
        try:
            sessions.load(secret, Reach.MEMORY)
        except NeedsIO:
            if sessions.load(secret, Reach.NETWORK) is None:
                break
        passed = asked
    print(passed, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ended", "ended without the number", "deleted"])
def test_k09_s13_an_end_in_one_process_is_refused_in_another_within_50_ms(
    how: str, sessions: Sessions, tmp_path: Path, clock: Clock
) -> None:
    worker = run_python(ANOTHER_WORKER, str(tmp_path / "sessions.db"))
    assert worker.stdin is not None
    assert worker.stdout is not None
    late = []
    with closing(sqlite3.connect(tmp_path / "sessions.db", isolation_level=None)) as other:
        for _ in range(30):
            if how == "ended without the number":
                generation.beside(tmp_path / "sessions.db").unlink(missing_ok=True)
            secret = sessions.begin(a_session(clock))
            worker.stdin.write(secret + "\n")
            worker.stdin.flush()
            assert worker.stdout.readline() == "True\n"
            if how == "deleted":
                other.execute("DELETE FROM entries")
            else:
                sessions.end(secret)
            ended = time.monotonic()
            late.append(float(worker.stdout.readline()) - ended)
    assert output(worker) == ""
    assert max(late) < 0.05, sorted(late)


def test_in_memory_too_a_session_ends_by_the_clock_of_the_service(environ: dict[str, str]) -> None:
    """The service as it is put together, on its own clock."""
    service = app.build(load(environ))
    sessions = service.sessions
    sessions.start()
    try:
        end = utc_now() + timedelta(seconds=1.5)
        secret = sessions.begin(a_session(utc_now, expires=end, refresh_token=""))
        assert sessions.load(secret, NET) is not None
        answered = 0
        while (asked := utc_now()) < end + timedelta(seconds=0.1):
            if sessions.quick(secret) is not None:
                assert asked < end
                answered += 1
        assert answered
    finally:
        service.stop()
