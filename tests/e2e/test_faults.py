"""Things that break while people are logged in: nobody gets in who should not, and nobody is
logged out who should not."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from authservice.sessions.seal import new_secret
from tests.e2e.conftest import StartStack
from tests.e2e.person import NAVIGATION, Person
from tests.e2e.stack import Stack, start_gateway
from tests.programs import require
from tests.servers import RedisServer
from tests.waiting import until

pytestmark = pytest.mark.external

CALLBACK = "/oidc/callback?"
# The pip package with Valkey wants Python 3.11; before that it is the system's Redis.
REDIS = "valkey-server" if sys.version_info >= (3, 11) else "redis-server"
SAME_ORIGIN = [("Sec-Fetch-Site", "same-origin")]


def get(stack: Stack, person: Person, target: str = "/") -> int:
    return person.send(stack.url + target).answer.status


def gets_in(stack: Stack, person: Person) -> bool:
    return get(stack, person) == 200


def logs_in(stack: Stack, person: Person) -> bool:
    return person.log_in(stack.url + "/").answer.status == 200


def assert_kept(stack: Stack, person: Person) -> None:
    """The session cookie is still there, is the same, and works."""
    assert get(stack, person) == 200


def assert_outside(stack: Stack, marker: str) -> None:
    """Somebody without a session, and somebody with a made-up one, get nothing."""
    stranger = stack.person()
    forger = stack.person()
    forger.keep(stack.url, "authservice_session", new_secret())
    for person in (stranger, forger):
        visit = person.send(stack.url + "/secret", headers=[("X-Marker", marker), *NAVIGATION])
        assert visit.answer.status in (302, 403, 503), visit
    bearer = stack.request("GET", "/secret", [("X-Marker", marker), ("Authorization", "Bearer " + new_secret())])
    assert bearer.status in (302, 401, 403, 503)
    assert stack.reached(marker) == []


# --- Redis ----------------------------------------------------------------------------------


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(require(REDIS), folder, durable=True)
    server.start()
    yield server
    server.stop()


def test_K11_S24_redis_killed_and_restarted(own_stack: StartStack, redis: RedisServer, marker: str) -> None:
    stack = own_stack("envoy", {"SESSION_STORE_TYPE": "redis", "SESSION_STORE_REDIS_ADDR": redis.address})
    alice = stack.logged_in("alice")
    bob = stack.person("bob")
    returned = bob.log_in(stack.url + "/page", until=CALLBACK)

    redis.kill()
    # For less than 50 ms what is in memory is still vouched for, by each of the workers.
    until(lambda: all(get(stack, alice) == 503 for _ in range(20)))
    while_down = alice.send(stack.url + "/", headers=[("X-Marker", marker), *NAVIGATION])
    assert while_down.answer.status == 503
    assert while_down.answer.values("set-cookie") == []
    cookie = [("Cookie", "; ".join(f"{n}={v}" for n, v in alice.cookies(stack.url + "/").items()))]
    for page in (NAVIGATION, [("Accept", "application/json")]):
        direct = stack.service.check("/", host=stack.host, headers=[*cookie, *page])
        assert direct.status == 503
        assert direct.values("set-cookie") == [] and direct.header("kubeflow-userid") == ""
    assert_outside(stack, marker)
    assert stack.service.probe("/readyz") == 503
    assert stack.service.probe("/healthz") == 200
    assert stack.request("GET", "/public/page").status == 200
    calls = stack.provider.calls("/token")
    callback = bob.send(returned.location)
    assert callback.answer.status == 503
    assert callback.answer.values("retry-after")
    assert "authservice_session" not in bob.cookies(stack.url + "/")
    assert alice.send(stack.url + "/authservice/logout", "POST", headers=SAME_ORIGIN).answer.status == 503

    redis.start()
    until(lambda: stack.service.probe("/readyz") == 200)
    assert_kept(stack, alice)
    if stack.provider.calls("/token") == calls:  # nothing was lost: the very same callback works now
        assert bob.send(returned.location).location == stack.url + "/page"
    assert bob.log_in(stack.url + "/").answer.status == 200
    assert_outside(stack, marker)


def test_K11_redis_that_does_not_answer_lets_nobody_in(
    own_stack: StartStack, redis: RedisServer, marker: str
) -> None:
    stack = own_stack("envoy", {"SESSION_STORE_TYPE": "redis", "SESSION_STORE_REDIS_ADDR": redis.address})
    alice = stack.logged_in("alice")
    redis.pause()
    try:
        # For less than 50 ms what is in memory is still vouched for.
        until(lambda: all(get(stack, alice) == 503 for _ in range(20)))
        with ThreadPoolExecutor(4) as pool:  # and the service as a whole goes on
            waiting = [pool.submit(get, stack, alice) for _ in range(4)]
            assert stack.service.probe("/healthz") == 200
            assert {status.result() for status in waiting} == {503}
    finally:
        redis.resume()
    # Each worker leaves a silent store alone for a moment.
    until(lambda: [get(stack, alice) for _ in range(4)] == [200] * 4)
    assert_kept(stack, alice)
    assert_outside(stack, marker)


# --- the provider ---------------------------------------------------------------------------


def test_A20_provider_down_before_the_start(own_stack: StartStack, marker: str) -> None:
    stack = own_stack("envoy", start=False)
    stack.service.start(until_ready=False)
    start_gateway(stack)
    for _ in range(4):
        assert stack.request("GET", "/secret", [("X-Marker", marker), *NAVIGATION]).status == 503
    assert stack.reached(marker) == []
    direct = stack.service.check("/secret", headers=NAVIGATION)
    assert (direct.status, direct.text.rstrip(".\n")) == (503, "OIDC Setup is not complete yet")
    assert direct.values("set-cookie") == []
    assert stack.service.probe("/readyz") == 503
    assert stack.service.probe("/healthz") == 200
    assert stack.request("GET", "/public/page", [("X-Marker", marker)]).status == 200
    assert stack.request("GET", "/authservice/oidc/callback?code=x&state=y").status in (400, 503)
    assert stack.request("GET", "/authservice/site/homepage").status == 200
    assert (
        stack.request("POST", "/authservice/logout", [("Authorization", "Bearer " + new_secret())]).status == 401
    )

    stack.provider.start()
    until(lambda: stack.service.probe("/readyz") == 200, 60)  # by itself, each worker in its own time
    until(partial(logs_in, stack, stack.person("alice")), 30, every=0.5)


def test_A20_a_provider_that_answers_errors_before_the_start(own_stack: StartStack) -> None:
    stack = own_stack("envoy", start=False)
    stack.provider.start()
    for path in ("/.well-known/openid-configuration", "/jwks"):
        stack.provider.fail(path, 404)
    stack.service.start(until_ready=False)
    start_gateway(stack)
    assert stack.request("GET", "/secret", NAVIGATION).status == 503
    stack.provider.mend("/.well-known/openid-configuration")
    stack.provider.mend("/jwks")
    until(partial(logs_in, stack, stack.person("alice")), 60, every=0.5)


def test_provider_killed_during_use(own_stack: StartStack, marker: str) -> None:
    stack = own_stack("envoy")
    alice = stack.logged_in("alice")
    bob = stack.person("bob")
    returned = bob.log_in(stack.url + "/page", until=CALLBACK)
    workers = len(stack.service.workers())
    until(lambda: stack.service.program.log_text().count('"provider_ready"') >= workers)  # each for itself

    stack.provider.kill()
    assert_kept(stack, alice)
    callback = bob.send(returned.location)
    assert callback.answer.status in (502, 504)
    assert "authservice_session" not in bob.cookies(stack.url + "/")
    assert stack.person().send(stack.url + "/").answer.status == 302
    assert_outside(stack, marker)
    assert stack.service.probe("/readyz") == 200  # what is known stays known

    stack.provider.start()  # it forgot everybody, and signs with a new key
    assert_kept(stack, alice)
    assert bob.send(returned.location).answer.status in (400, 502)  # its code is worth nothing
    bob.forget(stack.provider.issuer)
    assert bob.log_in(stack.url + "/").answer.status == 200
    assert_kept(stack, alice)


def test_P01_provider_in_trouble_during_a_login(own_stack: StartStack) -> None:
    stack = own_stack("envoy")
    alice = stack.logged_in("alice")
    for path, status in (("/token", 500), ("/token", 503), ("/me", 500), ("/jwks", 500)):
        stack.provider.fail(path, status)
        if path == "/jwks":
            stack.provider.rotate()  # so that the key set is asked for again
        bob = stack.person("bob")
        assert bob.log_in(stack.url + "/").answer.status == 502, path
        assert "authservice_session" not in bob.cookies(stack.url + "/")
        assert_kept(stack, alice)
        stack.provider.mend(path)
        # An unknown key is not asked for again at once, so that nobody can make us ask all the time.
        until(partial(logs_in, stack, bob), 30, every=0.5)


# --- SQLite without room --------------------------------------------------------------------


@contextmanager
def full_disk_by_limit(stack: Stack) -> Iterator[None]:
    """No worker can write behind where its files end now (SIGXFSZ is ignored by Python)."""
    workers = stack.service.workers()
    for pid in workers:
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, hard))
    yield
    for pid in workers:
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))


@contextmanager
def full_disk(stack: Stack) -> Iterator[None]:
    """The file system of the session store has not one free block."""
    filler = Path(stack.service.settings["SESSION_STORE_PATH"]).parent / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 512)
        except OSError:
            pass
    yield
    filler.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of one megabyte."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    place = tmp_path / "disk"
    place.mkdir()
    if os.getuid() != 0 or not mount or not umount:
        pytest.skip("only root can mount a small file system")
    if subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True
    ).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    yield place
    subprocess.run([umount, "--lazy", place], check=True)


def out_of_room(stack: Stack, marker: str, full: object) -> None:
    alice = stack.logged_in("alice")
    bob = stack.person("bob")
    returned = bob.log_in(stack.url + "/page", until=CALLBACK)
    with full(stack):  # type: ignore[operator]
        assert get(stack, alice) == 200  # reading goes on
        callback = bob.send(returned.location)
        assert callback.answer.status == 503
        assert "authservice_session" not in bob.cookies(stack.url + "/")
        assert_outside(stack, marker)
        assert stack.service.probe("/readyz") == 503
        assert stack.service.probe("/healthz") == 200
        ended = alice.send(stack.url + "/authservice/logout", "POST", headers=SAME_ORIGIN).answer.status
        assert ended in (201, 503)
        gone = ended == 201
        assert get(stack, alice) == (302 if gone else 200)
    until(lambda: stack.service.probe("/readyz") == 200)
    if not gone:
        assert_kept(stack, alice)
    assert bob.log_in(stack.url + "/").answer.status == 200
    assert_outside(stack, marker)


def test_a_full_disk_lets_nobody_in_and_logs_nobody_out(
    own_stack: StartStack, small_disk: Path, marker: str
) -> None:
    stack = own_stack("envoy", {"SESSION_STORE_PATH": str(small_disk / "sessions.db")})
    try:
        out_of_room(stack, marker, full_disk)
    finally:
        stack.service.stop()


def test_a_file_size_limit_lets_nobody_in_and_logs_nobody_out(own_stack: StartStack, marker: str) -> None:
    out_of_room(own_stack("envoy"), marker, full_disk_by_limit)


# --- AuthService itself ---------------------------------------------------------------------


def test_a_worker_killed_in_mid_login(own_stack: StartStack, marker: str) -> None:
    stack = own_stack("envoy")
    alice = stack.logged_in("alice")
    bob = stack.person("bob")
    returned = bob.log_in(stack.url + "/page", until=CALLBACK)
    before = stack.provider.calls("/token")
    stack.provider.hold("/token")
    with ThreadPoolExecutor(1) as pool:
        callback = pool.submit(bob.send, returned.location)
        until(lambda: stack.provider.waiting("/token") == 1)
        stack.service.kill_workers()
        assert callback.result().answer.status in (0, 502, 503)
    stack.provider.release("/token")
    assert "authservice_session" not in bob.cookies(stack.url + "/")
    assert get(stack, bob) == 302
    assert_kept(stack, alice)
    assert_outside(stack, marker)

    again = bob.send(returned.location)  # reload: this login was used up
    assert again.answer.status == 400
    assert stack.provider.calls("/token") == before + 1
    assert bob.log_in(stack.url + "/page").answer.status == 200
    assert_kept(stack, alice)


def test_a_login_begun_before_a_restart_ends_after_it(own_stack: StartStack) -> None:
    stack = own_stack("envoy")
    alice = stack.logged_in("alice")
    bob = stack.person("bob")
    returned = bob.log_in(stack.url + "/page?x=1", until=CALLBACK)
    stack.service.stop()
    stack.service.start()
    assert_kept(stack, alice)
    assert bob.send(returned.location).location == stack.url + "/page?x=1"
    assert_kept(stack, bob)


def test_a_graceful_stop_finishes_the_login_in_progress(own_stack: StartStack) -> None:
    stack = own_stack("envoy")
    bob = stack.person("bob")
    returned = bob.log_in(stack.url + "/page", until=CALLBACK)
    stack.provider.hold("/token")
    with ThreadPoolExecutor(1) as pool:
        callback = pool.submit(bob.send, returned.location)
        until(lambda: stack.provider.waiting("/token") == 1)
        os.kill(stack.service.program.pid, signal.SIGTERM)
        until(lambda: stack.service.probe("/healthz") == 0)
        stack.provider.release("/token")
        assert callback.result().location == stack.url + "/page"
    stack.service.stop()
    stack.service.start()
    assert_kept(stack, bob)


def replaced(stack: Stack, worker: int) -> bool:
    now = stack.service.workers()
    return worker not in now and len(now) == 2


def test_workers_killed_under_load_log_nobody_out(own_stack: StartStack) -> None:
    stack = own_stack("envoy")
    people = [stack.logged_in(name) for name in ("alice", "bob", "carol")]
    for _ in range(3):
        with ThreadPoolExecutor(6) as pool:
            statuses = [pool.submit(get, stack, person) for person in people * 8]
            victim = stack.service.workers()[0]
            os.kill(victim, signal.SIGKILL)
            assert {status.result() for status in statuses} <= {200, 403, 503}
        until(partial(replaced, stack, victim))
        for person in people:
            until(partial(gets_in, stack, person))


def test_H10_without_authservice_every_gateway_denies(gated: Stack, marker: str) -> None:
    alice = gated.logged_in("alice")
    gated.service.program.kill_with_children()
    try:
        for person in (alice, gated.person()):
            visit = person.send(gated.url + "/", headers=[("X-Marker", marker), ("kubeflow-userid", "evil")])
            assert visit.answer.status in (403, 500, 502, 503)
        assert gated.reached(marker) == []
    finally:
        gated.service.start()
    assert_kept(gated, alice)
