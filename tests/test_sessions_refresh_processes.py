"""One refresh for all, over real workers and services: fifty checks at once, a slow provider, a killed worker."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from authservice.sessions import Session, Store
from authservice.sessions.lease import LIFETIME
from authservice.sessions.live import Sessions
from authservice.sessions.redis import RedisStore
from authservice.sessions.sqlite import SqliteStore
from tests.contracts import at_once
from tests.provider import FakeProvider
from tests.relying_party import RelyingParty
from tests.served import Served, exchange, request, serving
from tests.servers import any_redis, running_redis
from tests.waiting import until

pytestmark = pytest.mark.slow

SLOW = 6
GATEWAY_PATIENCE = 5.0


def now() -> datetime:
    return datetime.now(timezone.utc)


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as provider:
        yield provider


@pytest.fixture
def environ(fake: FakeProvider) -> dict[str, str]:
    return {
        "OIDC_PROVIDER": fake.issuer,
        "CLIENT_ID": fake.client_id,
        "CLIENT_SECRET": fake.client_secret,
        "AUTHSERVICE_URL_PREFIX": "/authservice/",
        "WEB_CONCURRENCY": "2",
    }


def an_expired_session(fake: FakeProvider) -> Session:
    """Of a real login, with tokens that the provider knows."""
    done = RelyingParty(fake).login()
    return Session(
        user_id="alice@example.com",
        groups=("admins",),
        claims=dict(done.claims),
        issuer=fake.issuer,
        subject=done.claims["sub"],
        id_token=done.id_token,
        access_token=done.access_token,
        refresh_token=done.refresh_token,
        access_token_expires=now() - timedelta(seconds=1),
        created=now(),
        last_seen=now(),
        expires=now() + timedelta(hours=1),
    )


def check(served: Served, secret: str) -> Any:
    return exchange(served.judge, request("/", f"Cookie: authservice_session={secret}", close=True))[0]


def refreshes(fake: FakeProvider) -> int:
    return sum(call.form.get("grant_type") == "refresh_token" for call in fake.calls("token"))


def fifty_at_once(fake: FakeProvider, services: list[Served], store: Store) -> None:
    """And one refresh, with nobody's session lost."""
    sessions = Sessions(store, now=now, max_age=timedelta(hours=1))
    session = an_expired_session(fake)
    secret = sessions.begin(session)
    fake.claims["groups"] = ["new"]
    fake.misbehave("slow_refresh", SLOW)
    took: list[float] = []

    def one(number: int) -> bool:
        began = time.monotonic()
        answer = check(services[number % len(services)], secret)
        took.append(time.monotonic() - began)
        return answer.status == 200 and answer.headers["kubeflow-userid"] == "alice@example.com"

    assert at_once(50, one) == 50
    assert max(took) < GATEWAY_PATIENCE
    assert (refreshes(fake), fake.refreshes) == (1, 0)  # it is still under way

    def everybody_knows() -> bool:
        return all(check(served, secret).headers["kubeflow-groups"] == "new" for served in services for _ in range(4))

    until(everybody_knows, SLOW + 5)
    assert (refreshes(fake), fake.refreshes, fake.spent_refreshes) == (1, 1, 0)
    assert at_once(50, one) == 50
    assert refreshes(fake) == 1
    record = sessions.record(secret)
    assert record is not None
    assert record.session.refresh_token != session.refresh_token
    assert fake.calls("revoke") == []
    print(f"the slowest of fifty: {max(took):.2f} s")


def test_s21_p10_four_workers_over_one_file_refresh_once(
    fake: FakeProvider, environ: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "sessions.db"
    environ |= {"SESSION_STORE_PATH": str(file), "WEB_CONCURRENCY": "4"}
    with serving(environ, tmp_path) as served, closing(SqliteStore(file, now)) as store:
        fifty_at_once(fake, [served], store)


@pytest.mark.external
def test_s21_p10_two_services_of_two_workers_over_one_redis_refresh_once(
    fake: FakeProvider, environ: dict[str, str], tmp_path: Path
) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(running_redis(any_redis(), tmp_path))
        environ |= {"SESSION_STORE_TYPE": "redis", "SESSION_STORE_REDIS_ADDR": server.address}
        services = []
        for name in ("one", "two"):
            folder = tmp_path / name
            folder.mkdir()
            services.append(stack.enter_context(serving(environ, folder)))
        store = stack.enter_context(closing(RedisStore(server.address, now=now)))
        fifty_at_once(fake, services, store)


def test_s22_when_the_worker_that_refreshes_is_killed_another_one_takes_over(
    fake: FakeProvider, environ: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "sessions.db"
    environ |= {"SESSION_STORE_PATH": str(file), "WEB_CONCURRENCY": "1"}
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    with (
        serving(environ, folders[0]) as one,
        serving(environ, folders[1]) as other,
        closing(SqliteStore(file, now)) as store,
    ):
        sessions = Sessions(store, now=now, max_age=timedelta(hours=1))
        secret = sessions.begin(an_expired_session(fake))
        # A provider that does not rotate: of one that does, the killed worker takes the new token with it.
        fake.misbehave("refresh_no_refresh_token")
        fake.misbehave("slow_refresh", 60)
        assert check(one, secret).status == 200
        assert refreshes(fake) == 1
        for pid in one.workers():
            os.kill(pid, signal.SIGKILL)
        killed_at = time.monotonic()
        fake.behave("slow_refresh")
        for _ in range(3):
            assert check(other, secret).status == 200
            assert refreshes(fake) == 1  # the dead one's lease holds
        until(lambda: check(other, secret).status == 200 and refreshes(fake) == 2, LIFETIME.total_seconds() + 5, every=0.1)
        assert time.monotonic() - killed_at < LIFETIME.total_seconds() + 3

        def saved() -> bool:
            record = sessions.record(secret)
            return record is not None and (record.session.access_token_expires or now()) > now()

        until(saved)
        assert check(other, secret).status == 200
        assert refreshes(fake) == 2


def test_a_graceful_end_waits_for_what_the_provider_is_about_to_give(
    fake: FakeProvider, environ: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "sessions.db"
    environ |= {"SESSION_STORE_PATH": str(file)}
    with serving(environ, tmp_path) as served, closing(SqliteStore(file, now)) as store:
        sessions = Sessions(store, now=now, max_age=timedelta(hours=1))
        session = an_expired_session(fake)
        secret = sessions.begin(session)
        fake.misbehave("slow_refresh", 4)
        assert check(served, secret).status == 200
        assert served.stop() == 0
        record = sessions.record(secret)
        assert record is not None
        assert record.session.access_token != session.access_token
        assert fake.spent_refreshes == 0
