"""Refreshing sessions: once for all who ask, detached from them, through outages, and never lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from authservice.check import NeedsIO, Reach
from authservice.errors import (
    ClientRefused,
    ProviderDown,
    ProviderSilent,
    ProviderWrong,
    SessionOver,
    StoreDown,
    TooManyChecks,
)
from authservice.logs import Event
from authservice.ops import Counts
from authservice.sessions import Session
from authservice.sessions.lease import Leases
from authservice.sessions.live import LiveSession, Sessions
from authservice.sessions.outage import BackOff, Outage
from authservice.sessions.refresh import Patience, Refresher
from authservice.sessions.seal import store_key
from authservice.sessions.sqlite import SqliteStore
from authservice.sessions.unsaved import Unsaved
from tests.contracts import MICROSECOND, Clock, at_once
from tests.sample_sessions import WatchedStore, a_session
from tests.waiting import until

NET, MEMORY = Reach.NETWORK, Reach.MEMORY
LIFETIME = timedelta(minutes=5)
AHEAD = timedelta(seconds=60)
GRACE = timedelta(hours=1)
DAY = timedelta(days=1)


class Provider:
    """The token endpoint as a function: rotates refresh tokens, fails when told to, waits when held."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.asked: list[str] = []
        self.revoked: list[tuple[str, str]] = []
        self.lifetime: timedelta | None = LIFETIME
        self.changes: dict[str, object] = {}
        self.error: Exception | None = None
        self.error_after_rotation: Exception | None = None
        self.rotates = True
        self.open = threading.Event()
        self.open.set()
        self.good = "the-refresh-token"
        self._lock = threading.Lock()

    def renew(self, session: Session, rotated: Callable[[str], object]) -> Session:
        with self._lock:
            self.asked.append(session.refresh_token)
        assert self.open.wait(10)
        if self.error:
            raise self.error
        with self._lock:
            if session.refresh_token != self.good:
                raise SessionOver("token endpoint: status 400, invalid_grant")
            number = len(self.asked)
            if self.rotates:
                self.good = f"refresh-{number}"
        rotated(self.good)
        if self.error_after_rotation:
            raise self.error_after_rotation
        changes = {
            "access_token": f"access-{number}",
            "refresh_token": self.good,
            "access_token_expires": self.clock() + self.lifetime if self.lifetime else None,
            **self.changes,
        }
        return msgspec.structs.replace(session, **changes)

    def revoke(self, refresh_token: str, access_token: str) -> list[str]:
        self.revoked.append((refresh_token, access_token))
        return []


class Process:
    """What one worker has of it, over a store that others share."""

    def __init__(self, store: WatchedStore, provider: Provider, clock: Clock, *, grace: timedelta = GRACE,
                 patience: Patience, back_off: BackOff, max_age: timedelta = DAY,
                 idle_timeout: timedelta | None = None, ahead: timedelta = AHEAD) -> None:
        self.store = store
        self.counts = Counts()
        self.clock = clock
        self.sessions = Sessions(
            store, now=clock, max_age=max_age, idle_timeout=idle_timeout, cache_size=100, refresh_ahead=ahead
        )
        self.refresher = Refresher(
            self.sessions, Leases(store, clock), provider.renew, provider.revoke,
            now=clock, grace=grace, counts=self.counts, patience=patience, back_off=back_off,
        )
        self.sessions.start()
        self.refresher.start()

    def check(self, secret: str, reach: Reach = NET) -> LiveSession | None:
        """As the authenticator asks."""
        live = self.sessions.quick(secret) or self.sessions.load(secret, reach)
        return self.refresher.keep(secret, live, reach) if live else None

    def told(self, name: str) -> int:
        numbers = {**self.counts.counters(), **self.counts.gauges()}
        return numbers[f"authservice_{name}"]

    def settle(self) -> None:
        """Until nothing is under way."""
        until(lambda: not self.refresher._flights, every=0.002)

    def token(self, secret: str) -> str | None:
        record = self.sessions.record(secret)
        return record.session.access_token if record else None


def is_current(live: LiveSession | None, clock: Clock) -> bool:
    return live is not None and live.access_token_expires is not None and live.access_token_expires > clock()


QUICK = Patience(checks=0.3, longest=1.0, looks=0.005, rest=0.03, settling=0.02, end=5.0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def provider(clock: Clock) -> Iterator[Provider]:
    provider = Provider(clock)
    yield provider
    provider.open.set()


@pytest.fixture
def new_process(
    tmp_path: Path, clock: Clock, provider: Provider
) -> Iterator[Callable[..., Process]]:
    made: list[Process] = []

    def make(**changes: object) -> Process:
        store = WatchedStore(SqliteStore(tmp_path / "sessions.db", clock))
        options: dict[str, object] = {"patience": QUICK, "back_off": BackOff(0.02, 0.2), **changes}
        made.append(Process(store, provider, clock, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    provider.open.set()
    for process in made:
        process.store.failing.clear()
        process.refresher.stop()
        process.sessions.stop()
        process.store.close()


@pytest.fixture
def process(new_process: Callable[..., Process]) -> Process:
    return new_process()


@pytest.fixture
def secret(process: Process, clock: Clock) -> str:
    return process.sessions.begin(a_session(clock))


def test_until_it_is_due_a_session_is_left_alone(process: Process, provider: Provider, secret: str, clock: Clock) -> None:
    clock.advance(LIFETIME - AHEAD - MICROSECOND)
    for reach in (NET, MEMORY, NET):
        live = process.check(secret, reach)
        assert live is not None and live.access_token_expires == clock() + AHEAD + MICROSECOND
    process.settle()
    assert provider.asked == []


def test_ahead_of_expiry_it_is_refreshed_behind_checks_that_do_not_wait(
    process: Process, provider: Provider, secret: str, clock: Clock
) -> None:
    process.check(secret)
    clock.advance(LIFETIME - AHEAD)
    provider.open.clear()
    for reach in (MEMORY, NET) * 10:
        assert process.check(secret, reach) is not None
    until(lambda: provider.asked)
    assert process.check(secret, MEMORY) is not None
    provider.open.set()
    process.settle()
    assert process.token(secret) == "access-1"
    assert provider.asked == ["the-refresh-token"]
    fresh = process.check(secret)
    assert fresh is not None and fresh.access_token_expires == clock() + LIFETIME
    assert process.check(secret, MEMORY) == fresh
    assert process.sessions.quick(secret) == fresh
    assert process.told("refreshes_total") == 1


def test_an_expired_one_waits_for_the_refresh_and_is_answered_with_the_new_claims(
    process: Process, provider: Provider, secret: str, clock: Clock
) -> None:
    process.check(secret)
    clock.advance(LIFETIME)
    provider.changes = {"user_id": "alice2", "groups": ("new",), "provider_sid": "sid 2", "claims": {"email": "alice2"}}
    with pytest.raises(NeedsIO):
        process.check(secret, MEMORY)
    live = process.check(secret)
    assert live is not None
    assert (live.by_cookie.user_id, live.by_header.groups, live.by_cookie.claims["email"]) == ("alice2", ("new",), "alice2")
    assert len(provider.asked) == 1


def test_without_refresh_token_or_known_end_nothing_is_asked(process: Process, provider: Provider, clock: Clock) -> None:
    for changes in ({"refresh_token": ""}, {"access_token_expires": None}):
        secret = process.sessions.begin(a_session(clock, **changes))
        clock.advance(2 * LIFETIME)
        assert process.check(secret) is not None
    process.settle()
    assert provider.asked == []


def test_a_session_ends_with_its_token_where_that_is_wanted(process: Process, clock: Clock) -> None:
    ending = Sessions(process.store, now=clock, max_age=DAY, ends_with_token=True)
    plain, refreshed, unknown = (
        ending.begin(a_session(clock, **changes))
        for changes in ({"refresh_token": ""}, {}, {"refresh_token": "", "access_token_expires": None})
    )
    clock.advance(LIFETIME - MICROSECOND)
    assert all(ending.load(secret, NET) for secret in (plain, refreshed, unknown))
    clock.advance(MICROSECOND)
    assert ending.load(plain, NET) is None
    assert ending.load(refreshed, NET) is not None
    assert ending.load(unknown, NET) is not None


def test_short_lived_tokens_are_refreshed_at_half_their_life(
    new_process: Callable[..., Process], provider: Provider, clock: Clock
) -> None:
    process = new_process(patience=Patience(rest=0.0))
    secret = process.sessions.begin(a_session(clock, access_token_expires=clock() + timedelta(seconds=30)))
    provider.lifetime = timedelta(seconds=30)
    for turn in range(1, 4):
        clock.advance(timedelta(seconds=15) - MICROSECOND)
        process.check(secret)
        process.settle()
        assert len(provider.asked) == turn - 1
        clock.advance(MICROSECOND)
        until(lambda: process.check(secret) and process.token(secret) == f"access-{turn}")
        process.settle()


# --- once -------------------------------------------------------------------------------------


def test_s21_p10_k12_of_fifty_checks_over_four_workers_one_refreshes(
    new_process: Callable[..., Process], process: Process, provider: Provider, secret: str, clock: Clock
) -> None:
    workers = [process, *(new_process() for _ in range(3))]
    for worker in workers:
        worker.check(secret)
    clock.advance(LIFETIME)
    provider.open.clear()

    def ask(number: int) -> bool:
        live = workers[number % 4].check(secret)
        return live is not None and live.by_cookie.user_id == "alice@example.com"

    assert at_once(50, ask) == 50
    assert provider.asked == ["the-refresh-token"]
    provider.open.set()
    for worker in workers:
        worker.settle()
    for worker in workers:
        live = worker.check(secret)
        assert live is not None and live.access_token_expires == clock() + LIFETIME
    assert provider.asked == ["the-refresh-token"]
    assert provider.revoked == []


def test_a_waiter_takes_what_another_worker_got(
    new_process: Callable[..., Process], process: Process, provider: Provider, secret: str, clock: Clock
) -> None:
    other = new_process(patience=Patience(checks=10, looks=0.005, rest=0.03))
    other.check(secret)
    clock.advance(LIFETIME)
    provider.open.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(process.check, secret)
        until(lambda: provider.asked)
        second = pool.submit(other.check, secret)
        provider.open.set()
        for waiting in (first, second):
            live = waiting.result(10)
            assert live is not None and live.access_token_expires == clock() + LIFETIME
    assert len(provider.asked) == 1


def test_s22_who_gives_up_changes_nothing(process: Process, provider: Provider, secret: str, clock: Clock) -> None:
    clock.advance(LIFETIME)
    provider.open.clear()
    live = process.check(secret)  # returns when its patience is over, as if the gateway had gone
    assert live is not None and live.access_token_expires == clock()
    provider.open.set()
    process.settle()
    assert process.token(secret) == "access-1"


def test_at_most_eight_wait_and_the_others_pass_at_once(
    new_process: Callable[..., Process], process: Process, provider: Provider, secret: str, clock: Clock
) -> None:
    patient = new_process(patience=Patience(checks=10, looks=0.005, rest=0.03))
    clock.advance(LIFETIME)
    provider.open.clear()
    with ThreadPoolExecutor(12) as pool:
        waiting = [pool.submit(patient.check, secret) for _ in range(12)]
        until(lambda: sum(one.done() for one in waiting) == 4)
        provider.open.set()
        assert all(one.result(10) for one in waiting)
    assert len(provider.asked) == 1


def test_a_lease_is_extended_for_as_long_as_the_provider_takes(
    tmp_path: Path, provider: Provider, clock: Clock
) -> None:
    with closing(SqliteStore(tmp_path / "sessions.db", clock)) as inner:
        store = WatchedStore(inner)
        sessions = Sessions(store, now=clock, max_age=DAY, refresh_ahead=AHEAD)
        leases = Leases(store, clock, lifetime=timedelta(seconds=0.4))
        refresher = Refresher(sessions, leases, provider.renew, provider.revoke, now=clock, grace=GRACE, patience=QUICK)
        refresher.start()
        secret = sessions.begin(a_session(clock))
        clock.advance(LIFETIME)
        provider.open.clear()
        live = sessions.load(secret, NET)
        assert live is not None and refresher.keep(secret, live, NET) is not None
        key = store_key(secret)
        for _ in range(4):
            saves = store.calls.count("save")
            until(lambda saves=saves: store.calls.count("save") > saves, every=0.005)  # type: ignore[misc]
            clock.advance(timedelta(seconds=0.3))
            until(lambda saves=saves: store.calls.count("save") > saves + 1, every=0.005)  # type: ignore[misc]
            assert Leases(inner, clock).take(key) is None
        provider.open.set()
        until(lambda: Leases(inner, clock).take(key), every=0.005)
        refresher.stop()


# --- ends -------------------------------------------------------------------------------------


def test_s23_s25_p10_a_refused_refresh_token_ends_the_session(
    process: Process, provider: Provider, secret: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    provider.good = "another"
    clock.advance(LIFETIME)
    assert process.check(secret) is None
    assert process.sessions.load(secret, NET) is None
    assert process.told('sessions_ended_by_provider_total{question="refresh"}') == 1
    assert process.told("refreshes_total") == 0
    lines = [record for record in caplog.records if record.message == Event.SESSION_OVER.value]
    assert len(lines) == 1 and lines[0].session == store_key(secret).removeprefix("session-")  # type: ignore[attr-defined]
    assert secret not in caplog.text


def test_p10_a_token_refused_because_another_was_faster_ends_nothing(
    process: Process, provider: Provider, secret: str, clock: Clock
) -> None:
    """Two at once, because the clock jumped over a lease's end: the slower one's token is spent."""
    clock.advance(LIFETIME)
    record = process.sessions.record(secret)
    assert record is not None
    provider.open.clear()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(process.check, secret)
        until(lambda: provider.asked)
        provider.good = "their-refresh-token"
        theirs = msgspec.structs.replace(
            record.session, refresh_token="their-refresh-token", access_token="theirs",
            access_token_expires=clock() + LIFETIME,
        )
        assert process.sessions.replace(secret, record, theirs) is not None
        provider.open.set()
        live = waiting.result(10)
    assert live is not None and live.access_token_expires == clock() + LIFETIME
    assert process.token(secret) == "theirs"


def test_a37_an_answer_about_somebody_else_ends_the_session_though_its_token_was_rotated(
    process: Process, provider: Provider, secret: str, clock: Clock
) -> None:
    provider.error_after_rotation = SessionOver("refreshed ID token: sub")
    clock.advance(LIFETIME)
    assert process.check(secret) is None
    assert process.sessions.load(secret, NET) is None


def test_a_session_ended_during_its_refresh_stays_so_and_its_new_tokens_are_revoked(
    process: Process, provider: Provider, secret: str, clock: Clock
) -> None:
    clock.advance(LIFETIME)
    provider.open.clear()
    assert process.check(secret) is not None
    process.sessions.end(secret)
    provider.open.set()
    process.settle()
    assert process.sessions.load(secret, NET) is None
    assert provider.revoked == [("refresh-1", "access-1")]


def test_s25_absolute_and_idle_limits_hold_under_refresh(
    new_process: Callable[..., Process], provider: Provider, clock: Clock
) -> None:
    process = new_process(max_age=timedelta(minutes=20), idle_timeout=timedelta(minutes=10))
    begun = clock()
    secret, idle = process.sessions.begin(a_session(clock)), process.sessions.begin(a_session(clock))
    for refreshes in range(1, 5):
        clock.advance(timedelta(minutes=4))
        until(lambda: process.check(secret) and len(provider.asked) == refreshes)
        process.settle()
    clock.advance(begun + timedelta(minutes=20) - clock() - MICROSECOND)
    assert process.check(secret) is not None
    clock.advance(MICROSECOND)
    assert process.check(secret) is None
    assert process.check(idle) is None


def test_s25_whoever_reads_the_whole_record_is_held_to_the_limits_too(
    new_process: Callable[..., Process], clock: Clock
) -> None:
    """The store's own end is the absolute limit of the login; shorter ones may have come since."""
    process = new_process()
    shorter = Sessions(process.store, now=clock, max_age=timedelta(minutes=20), idle_timeout=timedelta(minutes=10))
    secret = process.sessions.begin(a_session(clock))
    clock.advance(timedelta(minutes=10) - MICROSECOND)
    assert shorter.record(secret) is not None
    clock.advance(MICROSECOND)
    assert shorter.record(secret) is None and process.sessions.record(secret) is not None


# --- a provider that does not work ------------------------------------------------------------


@pytest.mark.parametrize("error", [ProviderDown("500"), ProviderSilent("no answer"), ClientRefused("invalid_client")])
def test_s23_p09_sessions_live_on_through_an_outage_and_work_again_after_it(
    process: Process, provider: Provider, secret: str, clock: Clock, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    process.check(secret)
    provider.error = error
    clock.advance(LIFETIME)
    for _ in range(20):
        for reach in (NET, MEMORY):
            live = process.check(secret, reach)
            assert live is not None and live.by_cookie.user_id == "alice@example.com"
        process.settle()
    assert 1 <= len(provider.asked) < 20
    assert process.told("provider_outage") == 1
    clock.advance(GRACE - MICROSECOND)
    assert process.check(secret) is not None
    clock.advance(MICROSECOND)
    assert process.check(secret) is None  # not authenticated
    process.settle()
    assert process.token(secret) == "the-access-token"  # and not deleted
    clock.advance(timedelta(hours=2))
    assert process.check(secret) is None
    provider.error = None
    live = until(lambda: process.check(secret), every=0.02)
    assert live is not None and live.access_token_expires == clock() + LIFETIME
    assert process.told("provider_outage") == 0
    assert process.told(f'refresh_failures_total{{reason="{error.reason.value}"}}') == len(provider.asked) - 1  # type: ignore[attr-defined]
    events = [record.message for record in caplog.records]
    assert events.count(Event.OUTAGE_BEGAN.value) == events.count(Event.OUTAGE_OVER.value) == 1


def test_s23_without_grace_an_outage_lets_nobody_pass(
    new_process: Callable[..., Process], provider: Provider, secret: str, clock: Clock
) -> None:
    strict = new_process(grace=timedelta(0))
    provider.error = ProviderDown("500")
    clock.advance(LIFETIME - MICROSECOND)
    assert strict.check(secret) is not None
    strict.settle()
    clock.advance(MICROSECOND)
    assert strict.check(secret) is None
    strict.settle()
    provider.error = None
    assert until(lambda: strict.check(secret))


def test_without_grace_a_slow_provider_means_that_nobody_knows(
    new_process: Callable[..., Process], provider: Provider, secret: str, clock: Clock
) -> None:
    strict = new_process(grace=timedelta(0), patience=Patience(checks=0.05, longest=0.1, looks=0.005, rest=0.01))
    clock.advance(LIFETIME)
    provider.open.clear()
    for _ in range(2):
        with pytest.raises(TooManyChecks):
            strict.check(secret)
    provider.open.set()
    strict.settle()
    assert strict.check(secret) is not None
    assert len(provider.asked) == 1


def test_during_an_outage_one_asks_for_all(process: Process, provider: Provider, clock: Clock) -> None:
    secrets = [process.sessions.begin(a_session(clock)) for _ in range(20)]
    clock.advance(LIFETIME)
    provider.error = ProviderDown("500")
    assert process.check(secrets[0]) is not None
    process.settle()
    until(lambda: (process.check(secrets[1]), provider.asked)[1][1:])  # the back-off is over for the next one
    provider.open.clear()
    asked = len(provider.asked)
    for _ in range(3):
        for secret in secrets:
            assert process.check(secret) is not None
    assert len(provider.asked) <= asked + 1


def test_who_waited_for_a_thread_when_an_outage_began_asks_nothing(
    process: Process, provider: Provider, clock: Clock
) -> None:
    secrets = [process.sessions.begin(a_session(clock)) for _ in range(40)]
    clock.advance(LIFETIME - AHEAD)
    provider.open.clear()
    for secret in secrets:
        assert process.check(secret) is not None
    until(lambda: len(provider.asked) == 16)
    assert len(process.refresher._flights) == 40
    provider.error = ProviderDown("500")
    provider.open.set()
    process.settle()
    assert len(provider.asked) <= 20  # a few began before the first one had failed


def test_an_answer_that_cannot_be_used_holds_up_its_own_session_only(
    process: Process, provider: Provider, clock: Clock
) -> None:
    one = process.sessions.begin(a_session(clock))
    other = process.sessions.begin(a_session(clock, refresh_token="theirs"))
    clock.advance(LIFETIME)
    provider.error = ProviderWrong("refreshed ID token: iat")
    assert process.check(one) is not None
    process.settle()
    assert process.told("provider_outage") == 0
    provider.error = None
    provider.good = "theirs"
    live = process.check(other)
    assert live is not None and live.access_token_expires == clock() + LIFETIME


def test_a_rotated_token_of_an_answer_that_cannot_be_used_is_kept(
    process: Process, provider: Provider, secret: str, clock: Clock
) -> None:
    clock.advance(LIFETIME)
    provider.error_after_rotation = ProviderWrong("refreshed ID token: exp")
    assert process.check(secret) is not None
    process.settle()
    record = process.sessions.record(secret)
    assert record is not None
    assert (record.session.refresh_token, record.session.access_token) == ("refresh-1", "the-access-token")
    provider.error_after_rotation = None
    until(lambda: is_current(process.check(secret), clock))
    assert provider.asked[-1] == "refresh-1"


def test_a_fault_of_our_own_is_told_and_holds_nobody_up_for_ever(
    process: Process, provider: Provider, secret: str, clock: Clock
) -> None:
    clock.advance(LIFETIME)
    provider.error = ZeroDivisionError()
    assert process.check(secret) is not None
    process.settle()
    assert process.told("unexpected_errors_total") == 1
    provider.error = None
    until(lambda: is_current(process.check(secret), clock))


# --- a store in bad times ---------------------------------------------------------------------


def test_without_a_lease_nothing_is_asked(process: Process, provider: Provider, secret: str, clock: Clock) -> None:
    process.check(secret)
    process.store.failing = {"save"}
    clock.advance(LIFETIME)
    assert process.check(secret) is not None
    process.settle()
    assert provider.asked == []
    clock.advance(GRACE)
    with pytest.raises(StoreDown):
        process.check(secret)
    process.store.failing.clear()
    assert until(lambda: process_check_quietly(process, secret))


def test_s24_a_store_that_takes_nothing_for_a_while_holds_nobody_up_afterwards(
    new_process: Callable[..., Process], provider: Provider, clock: Clock
) -> None:
    process = new_process(back_off=BackOff(0.01, 60.0), grace=timedelta(0))
    secret = process.sessions.begin(a_session(clock))
    clock.advance(LIFETIME)
    process.store.failing = {"save"}
    tries = 'refresh_failures_total{reason="store_down"}'
    until(lambda: process_check_quietly(process, secret) or process.told(tries) >= 6, every=0.002)
    process.settle()
    rest = process.refresher._rests[store_key(secret)]
    process.store.failing.clear()
    assert rest.until - time.monotonic() < 0.1
    assert until(lambda: process_check_quietly(process, secret))


def process_check_quietly(process: Process, secret: str) -> LiveSession | None:
    try:
        return process.check(secret)
    except StoreDown:
        return None


def test_tokens_that_the_store_does_not_take_are_used_from_memory_and_saved_when_it_does(
    process: Process, provider: Provider, secret: str, clock: Clock
) -> None:
    process.check(secret)
    clock.advance(LIFETIME)
    provider.changes = {"groups": ("new",)}
    provider.open.clear()
    assert process.check(secret) is not None
    process.store.failing = {"save"}
    provider.open.set()
    process.settle()
    for _ in range(3):
        for reach in (NET, MEMORY):
            live = process.check(secret, reach)
            assert live is not None and live.by_cookie.groups == ("new",)
            assert live.access_token_expires == clock() + LIFETIME
    assert process.token(secret) == "the-access-token"
    assert process.told("sessions_unsaved") == 1
    process.store.failing.clear()
    until(lambda: process.token(secret) == "access-1")
    until(lambda: process.told("sessions_unsaved") == 0)
    assert provider.asked == ["the-refresh-token"]
    assert until(lambda: Leases(process.store, clock).take(store_key(secret)))


def test_what_comes_while_something_before_it_is_saved_late_is_not_taken_for_saved(
    process: Process, provider: Provider, secret: str, clock: Clock
) -> None:
    """The refresh token is saved at another try, and in the same moment the rest of its answer is not."""
    unsaved = Unsaved(process.sessions, Leases(process.store, clock), provider.revoke, process.counts)
    record = process.sessions.record(secret)
    assert record is not None
    keeping = unsaved.keeping(secret, store_key(secret), record)
    process.store.failing = {"save"}
    keeping.save_refresh_token("refresh-1")
    write = keeping.write

    def write_and_go_on() -> None:
        process.store.failing.clear()
        write()
        process.store.failing = {"save"}
        keeping.write = write  # type: ignore[method-assign]
        renewed = msgspec.structs.replace(record.session, refresh_token="refresh-1", access_token="access-1")
        assert isinstance(keeping.save(renewed), StoreDown)

    keeping.write = write_and_go_on  # type: ignore[assignment,method-assign]
    unsaved._try_again()
    process.store.failing.clear()
    unsaved._try_again()
    assert process.token(secret) == "access-1"


def test_only_so_much_is_kept_unsaved_and_what_is_lost_is_told(
    process: Process, provider: Provider, clock: Clock, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("authservice.sessions.unsaved.MOST_UNSAVED", 1)
    secrets = [process.sessions.begin(a_session(clock)) for _ in range(2)]
    clock.advance(LIFETIME)
    provider.rotates = False
    provider.open.clear()
    for secret in secrets:
        assert process.check(secret) is not None
    until(lambda: len(provider.asked) == 2)
    process.store.failing = {"save"}
    provider.open.set()
    process.settle()
    assert process.told("sessions_unsaved") == 1
    lost = [record for record in caplog.records if record.message == Event.SESSIONS_LOST.value]
    assert len(lost) == 1 and lost[0].sessions == 1  # type: ignore[attr-defined]


def test_what_the_store_took_without_saying_so_is_gone_on_from(
    process: Process, provider: Provider, secret: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, silent = process.store.save, [True]

    def told_late(key: str, *rest: object, **options: object) -> bool:
        saved = save(key, *rest, **options)  # type: ignore[arg-type]
        if key == store_key(secret) and silent:
            silent.clear()
            raise StoreDown("no answer in time")
        return saved

    process.check(secret)
    clock.advance(LIFETIME)
    monkeypatch.setattr(process.store, "save", told_late)
    assert process.check(secret) is not None
    until(lambda: process.told("sessions_unsaved") == 0 and not process.refresher._flights)
    assert not silent and process.token(secret) == "access-1"
    assert provider.asked == ["the-refresh-token"] and provider.revoked == []


def test_a_session_ended_while_its_tokens_could_not_be_saved_stays_so(
    process: Process, provider: Provider, secret: str, clock: Clock
) -> None:
    process.check(secret)
    clock.advance(LIFETIME)
    provider.open.clear()
    assert process.check(secret) is not None
    process.store.failing = {"save"}
    provider.open.set()
    process.settle()
    process.sessions.end(secret)
    assert process.check(secret) is None
    process.store.failing.clear()
    until(lambda: provider.revoked == [("refresh-1", "access-1")])
    assert process.sessions.load(secret, NET) is None


def test_s25_a_refused_session_is_dead_though_the_store_cannot_be_told(
    process: Process, provider: Provider, secret: str, clock: Clock
) -> None:
    process.check(secret)
    clock.advance(LIFETIME)
    provider.good = "another"
    provider.open.clear()
    assert process.check(secret) is not None
    process.store.failing = {"save"}
    provider.open.set()
    process.settle()
    assert process.check(secret) is None
    assert process.check(secret, MEMORY) is None
    process.store.failing.clear()
    until(lambda: process.sessions.load(secret, NET) is None)


def test_a_graceful_end_waits_for_the_refresh_under_way(
    process: Process, provider: Provider, secret: str, clock: Clock
) -> None:
    clock.advance(LIFETIME)
    provider.open.clear()
    assert process.check(secret) is not None
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(process.refresher.stop)
        until(process.refresher._stopped.is_set)
        assert not ending.done()
        assert process.check(secret) is not None  # and still nobody waits
        provider.open.set()
        ending.result(10)
    assert process.token(secret) == "access-1"


def test_a_graceful_end_does_not_wait_for_what_was_not_begun(
    new_process: Callable[..., Process], provider: Provider, clock: Clock
) -> None:
    process = new_process()
    secrets = [process.sessions.begin(a_session(clock)) for _ in range(20)]
    clock.advance(LIFETIME - AHEAD)
    provider.open.clear()
    for secret in secrets:
        assert process.check(secret) is not None
    until(lambda: len(provider.asked) == 16)
    under_way = list(process.refresher._flights.values())
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(process.refresher.stop)
        until(process.refresher._stopped.is_set)
        began = time.monotonic()
        provider.open.set()
        ending.result(10)
    assert time.monotonic() - began < QUICK.end
    assert len(provider.asked) == 16 and all(one.done() for one in under_way)


def test_a_graceful_end_is_bounded(new_process: Callable[..., Process], provider: Provider, clock: Clock) -> None:
    process = new_process(patience=Patience(checks=0.02, looks=0.005, rest=0.01, end=0.05))
    secret = process.sessions.begin(a_session(clock))
    clock.advance(LIFETIME)
    provider.open.clear()
    assert process.check(secret) is not None
    process.refresher.stop()
    assert process.token(secret) == "the-access-token"


def test_a_graceful_end_believes_no_refusal_that_it_cannot_wait_to_be_sure_of(
    new_process: Callable[..., Process], provider: Provider, clock: Clock
) -> None:
    process = new_process(patience=Patience(checks=0.05, looks=0.005, rest=0.01, settling=5.0))
    secret = process.sessions.begin(a_session(clock))
    clock.advance(LIFETIME)
    provider.good = "another"
    assert process.check(secret) is not None
    until(lambda: provider.asked)
    process.refresher.stop()
    assert process.token(secret) == "the-access-token"


def test_what_is_known_of_a_failure_holds_on_to_nobodys_tokens(
    process: Process, provider: Provider, clock: Clock
) -> None:
    """An exception keeps the frames that it went through, and all that is in them."""
    for error in (ProviderWrong("no JSON"), ProviderDown("500")):
        provider.error = error
        secret = process.sessions.begin(a_session(clock, access_token_expires=clock()))
        assert process.check(secret) is not None
        process.settle()
        rest = process.refresher._rests[store_key(secret)]
        known = [rest.error, process.refresher._outage._error]
        assert rest.error is not None and not any(one.__traceback__ for one in known if one)


# --- the outage -------------------------------------------------------------------------------


def test_the_pauses_of_an_outage_double_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    time = [1000.0]
    monkeypatch.setattr("authservice.sessions.outage.time.monotonic", lambda: time[0])
    outage = Outage(BackOff(1, 30), Counts())
    assert outage.ticket() == 0 == outage.ticket() and outage.failure() is None
    pauses = []
    for _ in range(8):
        outage.failed(ProviderDown("500"))
        begun = time[0]
        while outage.ticket() is None:
            time[0] += 0.05
        pauses.append(time[0] - begun)
        assert outage.ticket() is None  # one at a time
        assert outage.failure() is not None
    for pause, expected in zip(pauses, (1, 2, 4, 8, 16, 30, 30, 30), strict=True):
        assert 0.75 * expected <= pause <= 1.25 * expected + 0.05
    outage.not_asked()
    ticket = outage.ticket()
    assert ticket is not None and outage.is_good(ticket) and not outage.is_good(0)
    outage.answered()
    assert outage.failure() is None and outage.ticket() == ticket == outage.ticket()
    outage.failed(ProviderDown("500"))
    time[0] += 1.3
    assert outage.ticket() is not None  # the pauses of a new outage are short again
    time[0] += 100
    assert outage.failure() is None  # nobody has asked for so long


def test_failures_that_were_on_their_way_together_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("authservice.sessions.outage.time.monotonic", lambda: 1000.0)
    outage = Outage(BackOff(1, 30), Counts())
    for _ in range(8):
        outage.failed(ProviderDown("500"))
    monkeypatch.setattr("authservice.sessions.outage.time.monotonic", lambda: 1001.3)
    assert outage.ticket() is not None
