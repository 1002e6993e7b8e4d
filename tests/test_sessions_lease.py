"""The contract of a lease, over each store: one owner, who alone extends and releases it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from authservice.errors import StoreDown
from authservice.sessions import Store
from authservice.sessions.lease import LIFETIME, Leases
from authservice.sessions.redis import RedisStore
from authservice.sessions.sqlite import SqliteStore
from tests.contracts import MICROSECOND, MINUTE, Clock, at_once, output, run_python
from tests.sample_sessions import WatchedStore
from tests.servers import RedisServer, any_redis, running_redis


class LeaseContract:
    """Subclasses give the fixtures ``store`` and ``recipe`` (as `tests.contracts.StoreContract`)."""

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def leases(self, store: Store, clock: Clock) -> Leases:
        return Leases(store, clock)

    @pytest.fixture
    def others(self, store: Store, clock: Clock) -> Leases:
        return Leases(store, clock)

    def test_one_owner_at_a_time(self, leases: Leases, others: Leases) -> None:
        mine = leases.take("session")
        assert mine is not None
        assert others.take("session") is None
        assert leases.take("session") is None
        assert others.take("another session") is not None
        assert mine.release()
        assert others.take("session") is not None

    def test_of_many_at_once_one_gets_it(self, leases: Leases) -> None:
        for turn in range(5):
            assert at_once(8, lambda _, turn=turn: leases.take(f"session {turn}") is not None) == 1  # type: ignore[misc]

    def test_an_extended_lease_lasts_as_long_as_its_owner_extends_it(
        self, leases: Leases, others: Leases, clock: Clock
    ) -> None:
        mine = leases.take("session")
        assert mine is not None
        for _ in range(5):
            clock.advance(LIFETIME - MICROSECOND)
            assert others.take("session") is None
            assert mine.extend()

    def test_a_dead_owner_holds_it_for_its_lifetime(self, leases: Leases, others: Leases, clock: Clock) -> None:
        assert leases.take("session") is not None
        clock.advance(LIFETIME - MICROSECOND)
        assert others.take("session") is None
        clock.advance(MICROSECOND)
        assert others.take("session") is not None

    def test_who_lost_it_neither_extends_nor_releases_what_another_holds(
        self, leases: Leases, others: Leases, clock: Clock
    ) -> None:
        mine = leases.take("session")
        clock.advance(LIFETIME)
        theirs = others.take("session")
        assert mine is not None and theirs is not None
        assert not mine.extend()
        assert not mine.release()
        assert leases.take("session") is None
        assert theirs.extend()
        assert theirs.release()

    def test_a_released_or_ended_lease_is_nobodys(self, leases: Leases, clock: Clock) -> None:
        mine, late = leases.take("session"), leases.take("other")
        assert mine is not None and late is not None
        assert mine.release()
        assert not mine.release()
        assert not mine.extend()
        clock.advance(LIFETIME)
        assert not late.extend()
        assert leases.take("other") is not None

    @pytest.mark.parametrize("back", [timedelta(seconds=15), timedelta(hours=1), timedelta(days=400)])
    def test_after_the_clock_went_back_a_dead_owner_holds_up_nobody_for_long(
        self, leases: Leases, others: Leases, clock: Clock, back: timedelta
    ) -> None:
        mine = leases.take("session")
        assert mine is not None
        clock.advance(-back)
        if others.take("session") is None:
            clock.advance(2 * LIFETIME)
            assert others.take("session") is not None
        assert not mine.extend()

    def test_after_the_clock_went_back_a_living_owner_keeps_it_by_extending(
        self, leases: Leases, others: Leases, clock: Clock
    ) -> None:
        mine = leases.take("session")
        assert mine is not None
        clock.advance(-60 * MINUTE)
        assert mine.extend()
        assert others.take("session") is None

    def test_another_process_is_kept_out_and_follows(self, store: Store, recipe: str) -> None:
        code = (
            "from datetime import datetime, timezone\n"
            "from authservice.sessions.lease import Leases\n"
            "now = lambda: datetime.now(timezone.utc)\n" + recipe + "\n"
            "print(Leases(store, now).take('session') is not None)\n"
        )
        mine = Leases(store, Clock()).take("session")
        assert mine is not None
        assert output(run_python(code)) == "False"
        assert mine.release()
        assert output(run_python(code)) == "True"

    def test_a_store_that_is_down_gives_no_lease(self, store: Store, clock: Clock) -> None:
        watched = WatchedStore(store)
        leases = Leases(watched, clock)
        mine = leases.take("session")
        assert mine is not None
        watched.failing = {"load", "save"}
        for call in (lambda: leases.take("other"), mine.extend, mine.release):
            with pytest.raises(StoreDown):
                call()

    def test_nothing_of_a_released_lease_can_be_loaded(self, leases: Leases, store: Store) -> None:
        mine = leases.take("session")
        assert mine is not None and store.load(mine._key) is not None
        mine.release()
        assert store.load(mine._key) is None


class TestSqlite(LeaseContract):
    @pytest.fixture
    def store(self, tmp_path: Path, clock: Clock) -> Iterator[Store]:
        with closing(SqliteStore(tmp_path / "sessions.db", clock)) as store:
            yield store

    @pytest.fixture
    def recipe(self, tmp_path: Path) -> str:
        return (
            "from authservice.sessions.sqlite import SqliteStore\n"
            f"store = SqliteStore({str(tmp_path / 'sessions.db')!r}, now)"
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(any_redis(), tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.mark.external
class TestRedis(LeaseContract):
    @pytest.fixture
    def prefix(self, request: pytest.FixtureRequest) -> str:
        return f"{request.node.name}:"

    @pytest.fixture
    def store(self, server: RedisServer, clock: Clock, prefix: str) -> Iterator[Store]:
        with closing(RedisStore(server.address, now=clock, prefix=prefix)) as store:
            yield store

    @pytest.fixture
    def recipe(self, server: RedisServer, prefix: str) -> str:
        return (
            "from authservice.sessions.redis import RedisStore\n"
            f"store = RedisStore({server.address!r}, now=now, prefix={prefix!r})"
        )
