"""Strict validation: the provider's word at each check, what ends a session, and what is only not known."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from authservice.authn.strict import MOST_ASKED, StrictValidation
from authservice.check import NeedsIO, Reach
from authservice.errors import ProviderDown, SessionOver, StoreDown, TooManyChecks, Unavailable
from authservice.ops import Counts
from authservice.sessions import Session
from authservice.sessions.copies import LiveSession
from authservice.sessions.lease import Leases
from authservice.sessions.live import Sessions
from authservice.sessions.seal import store_key
from authservice.sessions.sqlite import SqliteStore
from tests.contracts import Clock
from tests.sample_sessions import WatchedStore, a_session
from tests.waiting import until

NET, MEMORY = Reach.NETWORK, Reach.MEMORY
DAY = timedelta(days=1)


class Userinfo:
    """The userinfo endpoint as a function."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.over: set[str] = set()
        self.error: Exception | None = None
        self.meanwhile: Callable[[], object] = lambda: None
        self.open = threading.Event()
        self.open.set()

    def ask(self, session: Session) -> None:
        self.asked.append(session.access_token)
        assert self.open.wait(10)
        if self.error:
            raise self.error
        self.meanwhile()
        if session.access_token in self.over:
            raise SessionOver("userinfo: status 401")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[WatchedStore]:
    with closing(SqliteStore(tmp_path / "sessions.db", clock)) as store:
        yield WatchedStore(store)


@pytest.fixture
def sessions(store: WatchedStore, clock: Clock) -> Iterator[Sessions]:
    sessions = Sessions(store, now=clock, max_age=DAY, cache_size=100)
    sessions.start()
    yield sessions
    sessions.stop()


@pytest.fixture
def userinfo() -> Iterator[Userinfo]:
    userinfo = Userinfo()
    yield userinfo
    userinfo.open.set()


Strict = Callable[..., Callable[..., LiveSession | None]]


@pytest.fixture
def counts() -> Counts:
    return Counts()


@pytest.fixture
def strict(sessions: Sessions, store: WatchedStore, userinfo: Userinfo, clock: Clock, counts: Counts) -> Strict:
    """Makes the check of a strict service."""

    def make(remember: timedelta | None = None) -> Callable[..., LiveSession | None]:
        validation = StrictValidation(
            sessions, Leases(store, clock), userinfo.ask, now=clock, remember=remember, counts=counts
        )

        def check(secret: str, reach: Reach = NET) -> LiveSession | None:
            live = sessions.load(secret, reach)
            return validation.keep(secret, live, reach) if live else None

        return check

    return make


@pytest.fixture
def secret(sessions: Sessions, clock: Clock) -> str:
    return sessions.begin(a_session(clock))


def test_each_check_asks_and_memory_never_answers(strict: Strict, userinfo: Userinfo, secret: str) -> None:
    check = strict()
    for asked in range(1, 4):
        assert check(secret) is not None
        assert userinfo.asked == ["the-access-token"] * asked
        with pytest.raises(NeedsIO):
            check(secret, MEMORY)


def test_an_answer_stands_for_its_time_in_memory_too(
    strict: Strict, userinfo: Userinfo, secret: str, clock: Clock
) -> None:
    check = strict(timedelta(seconds=5))
    first = check(secret)
    userinfo.error = ProviderDown("500")
    clock.advance(timedelta(seconds=4.9))
    for reach in (NET, MEMORY):
        assert check(secret, reach) == first
    clock.advance(timedelta(seconds=0.1))
    with pytest.raises(NeedsIO):
        check(secret, MEMORY)
    with pytest.raises(ProviderDown):
        check(secret)
    assert len(userinfo.asked) == 2


def test_a_refusal_ends_the_session(
    strict: Strict, sessions: Sessions, userinfo: Userinfo, secret: str, counts: Counts
) -> None:
    userinfo.over = {"the-access-token"}
    assert strict()(secret) is None
    assert sessions.load(secret, NET) is None
    assert counts.counters()['authservice_sessions_ended_by_provider_total{question="validation"}'] == 1
    assert counts.counters()['authservice_session_validations_total{outcome="over"}'] == 1


@pytest.mark.parametrize("error", [ProviderDown("500"), Unavailable("?"), StoreDown("?")])
def test_whatever_else_comes_is_not_known_and_ends_nothing(
    strict: Strict, sessions: Sessions, userinfo: Userinfo, secret: str, error: Exception, counts: Counts
) -> None:
    check = strict()
    userinfo.error = error
    for _ in range(2):
        with pytest.raises(type(error)):
            check(secret)
    assert counts.counters()['authservice_session_validations_total{outcome="unknown"}'] == 2
    userinfo.error = None
    assert check(secret) is not None


def test_who_ask_together_share_the_answer(strict: Strict, userinfo: Userinfo, secret: str) -> None:
    check = strict()
    userinfo.open.clear()
    with ThreadPoolExecutor(10) as pool:
        waiting = [pool.submit(check, secret) for _ in range(10)]
        until(lambda: userinfo.asked)
        userinfo.open.set()
        assert all(one.result(10) for one in waiting)
    assert len(userinfo.asked) < 10  # one, unless a thread came after the answer


def test_only_so_many_are_asked_about_at_once(
    strict: Strict, sessions: Sessions, userinfo: Userinfo, clock: Clock
) -> None:
    check = strict()
    userinfo.open.clear()
    secrets = [sessions.begin(a_session(clock)) for _ in range(MOST_ASKED + 1)]
    with ThreadPoolExecutor(MOST_ASKED) as pool:
        waiting = [pool.submit(check, secret) for secret in secrets[:-1]]
        until(lambda: len(userinfo.asked) == MOST_ASKED)
        with pytest.raises(TooManyChecks):
            check(secrets[-1])
        userinfo.open.set()
        assert all(one.result(10) for one in waiting)


def test_a_token_withdrawn_because_it_was_refreshed_ends_nothing(
    strict: Strict, sessions: Sessions, userinfo: Userinfo, secret: str, clock: Clock
) -> None:
    def refresh() -> None:
        userinfo.meanwhile = lambda: None
        record = sessions.record(secret)
        assert record is not None
        new = a_session(clock, access_token="new", refresh_token="new")
        assert sessions.replace(secret, record, new) is not None

    userinfo.over = {"the-access-token"}
    userinfo.meanwhile = refresh
    assert strict()(secret) is not None
    assert userinfo.asked == ["the-access-token", "new"]


def test_during_a_refresh_a_refusal_says_nothing(
    strict: Strict, sessions: Sessions, store: WatchedStore, userinfo: Userinfo, secret: str, clock: Clock
) -> None:
    check = strict()
    lease = Leases(store, clock).take(store_key(secret))
    assert lease is not None
    userinfo.over = {"the-access-token"}
    with pytest.raises(ProviderDown):
        check(secret)
    assert sessions.record(secret) is not None
    lease.release()
    assert check(secret) is None


def test_an_expired_token_that_can_be_refreshed_is_not_asked_about(
    strict: Strict, sessions: Sessions, userinfo: Userinfo, secret: str, clock: Clock
) -> None:
    check = strict()
    clock.advance(timedelta(minutes=5))
    with pytest.raises(ProviderDown):
        check(secret)
    plain = sessions.begin(a_session(clock, refresh_token="", access_token_expires=clock()))
    assert check(plain) is not None
    assert userinfo.asked == ["the-access-token"]


def test_a_session_that_ended_elsewhere_passes_no_longer(
    strict: Strict, sessions: Sessions, userinfo: Userinfo, secret: str
) -> None:
    check = strict(timedelta(minutes=5))
    assert check(secret) is not None
    sessions.end(secret)
    assert check(secret) is None
    assert len(userinfo.asked) == 1


def test_a_store_that_cannot_end_it_lets_nobody_pass(
    strict: Strict, sessions: Sessions, store: WatchedStore, userinfo: Userinfo, secret: str
) -> None:
    check = strict()
    userinfo.over = {"the-access-token"}
    store.failing = {"save"}
    with pytest.raises(StoreDown):
        check(secret)
    store.failing.clear()
    assert check(secret) is None
