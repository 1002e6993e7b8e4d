"""A session that was ended at one service is dead at another one over the same store, at once."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from authservice.sessions import Store
from authservice.sessions.live import Sessions
from authservice.sessions.redis import RedisStore
from authservice.sessions.seal import store_key
from authservice.sessions.sqlite import SqliteStore
from tests.sample_sessions import a_session
from tests.served import serving
from tests.servers import any_redis, running_redis
from tests.waiting import by_then, until

pytestmark = pytest.mark.slow  # real processes

AT_ONCE = 0.05
ROUNDS = 10


def now() -> datetime:
    return datetime.now(timezone.utc)


@pytest.fixture(params=["filesystem", pytest.param("redis", marks=pytest.mark.external)])
def shared(
    request: pytest.FixtureRequest, environ: dict[str, str], tmp_path: Path
) -> Iterator[tuple[dict[str, str], Store]]:
    """The settings of services that share one store, and that store."""
    settings = {**environ, "SESSION_STORE_TYPE": request.param, "WEB_CONCURRENCY": "1", "LOG_LEVEL": "INFO",
                "UNAUTHENTICATED_RESPONSE": "401"}
    if request.param == "filesystem":
        with closing(SqliteStore(environ["SESSION_STORE_PATH"], now)) as store:
            yield settings, store
        return
    with running_redis(any_redis(), tmp_path) as server:
        with closing(RedisStore(server.address, now=now)) as store:
            yield {**settings, "SESSION_STORE_REDIS_ADDR": server.address}, store


class Gateway:
    """Asks one service again and again over one connection, as a gateway does."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def allows(self, secret: str) -> bool:
        status = self._ask("GET", "/notebooks", {"Cookie": f"authservice_session={secret}"})
        assert status in (200, 401)
        return status == 200

    def logs_out(self, secret: str) -> bool:
        return self._ask("POST", "/authservice/logout", {"Authorization": f"Bearer {secret}"}) == 201

    def _ask(self, method: str, target: str, headers: dict[str, str]) -> int:
        self._connection.request(method, target, headers={"Host": "app.example", **headers})
        answer = self._connection.getresponse()
        answer.read()
        return answer.status

    def close(self) -> None:
        self._connection.close()


def test_k09_s13_a_logout_at_one_service_is_refused_by_another_within_50_ms(
    shared: tuple[dict[str, str], Store], tmp_path: Path
) -> None:
    settings, store = shared
    sessions = Sessions(store, now=now, max_age=timedelta(days=1))
    with ExitStack() as stack:
        folders = [tmp_path / "one", tmp_path / "other"]
        for folder in folders:
            folder.mkdir()
        one, other = [stack.enter_context(serving(settings, folder)) for folder in folders]
        here = stack.enter_context(closing(Gateway(one.judge)))
        there = stack.enter_context(closing(Gateway(other.judge)))
        ends: list[Callable[[str], bool]] = [here.logs_out, lambda secret: store.delete(store_key(secret))]
        for end in ends * ROUNDS:
            secret, stays = sessions.begin(a_session(now)), sessions.begin(a_session(now))
            for _ in range(5):
                assert here.allows(secret) and there.allows(secret)
            until(lambda: there.allows(stays))
            assert end(secret)
            by_then(lambda secret=secret: not there.allows(secret), AT_ONCE)  # type: ignore[misc]
            asked = time.monotonic()
            while time.monotonic() - asked < AT_ONCE:
                assert not there.allows(secret)
            assert not here.allows(secret)
            assert there.allows(stays) and here.allows(stays)
