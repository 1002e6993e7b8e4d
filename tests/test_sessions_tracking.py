"""The watch over a real Redis or Valkey: what is told, how soon, and what a broken line costs.

The last part asks whole `Sessions`, because what counts is that nobody passes with an ended session.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
import timeit
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.connection import AbstractConnection

from authservice.check import NeedsIO, Reach
from authservice.errors import StoreDown
from authservice.logs import Event
from authservice.sessions import Entry, Forget, Watch, tracking
from authservice.sessions.live import Sessions
from authservice.sessions.redis import RedisStore
from authservice.sessions.redis_access import Place
from authservice.sessions.seal import store_key
from tests.contracts import output, run_python
from tests.programs import require
from tests.sample_sessions import a_session
from tests.ports import free_port
from tests.servers import RedisServer, Wire, any_redis, running_redis
from tests.test_sessions_redis import SERVERS
from tests.waiting import by_then, until

pytestmark = pytest.mark.external

MINUTE = timedelta(minutes=1)
AT_ONCE = 0.050


def now() -> datetime:
    return datetime.now(timezone.utc)


class Told:
    """Collects what a watch tells, and the stamps that it gives."""

    def __init__(self, store: RedisStore) -> None:
        self.keys: list[str | None] = []
        self.watch = store.watch(self.keys.append)

    def next_stamp(self) -> object:
        return until(self.watch.stamp, every=0.001)

    def until_told(self, key: str | None) -> None:
        until(lambda: key in self.keys, every=0.001)


@contextlib.contextmanager
def watching(store: RedisStore) -> Iterator[Told]:
    told = Told(store)
    told.watch.start()
    try:
        told.next_stamp()
        told.keys.clear()
        yield told
    finally:
        told.watch.stop()


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(require(request.param), tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=server.port) as client:
        yield client


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    return f"{request.node.name}:"


@pytest.fixture
def store(server: RedisServer, prefix: str) -> RedisStore:
    return RedisStore(server.address, now=now, prefix=prefix)


@pytest.fixture
def other(server: RedisServer, prefix: str) -> RedisStore:
    """Another service on the same Redis."""
    return RedisStore(server.address, now=now, prefix=prefix)


@pytest.fixture
def wire(server: RedisServer) -> Iterator[Wire]:
    with contextlib.closing(Wire(server.port)) as wire:
        yield wire


# --- what is told -----------------------------------------------------------------------------


def test_every_change_by_anybody_is_told(
    store: RedisStore, other: RedisStore, client: redis.Redis, prefix: str
) -> None:
    soon = now() + MINUTE
    with watching(store) as told:
        stamp = told.next_stamp()
        changes: list[Callable[[], object]] = [
            lambda: other.save("key", b"value", soon),
            lambda: other.save("key", b"again", soon),
            lambda: other.save("key", b"again", soon + MINUTE),
            lambda: other.delete("key"),
            lambda: store.save("key", b"our own", soon),
            lambda: client.expire(f"{prefix}key", 30),
            lambda: client.rename(f"{prefix}key", f"{prefix}other"),
            lambda: client.copy(f"{prefix}other", f"{prefix}key"),
            lambda: client.set(f"{prefix}key", b"by hand", px=30_000),
            lambda: client.eval("redis.call('DEL', KEYS[1])", 1, f"{prefix}key"),
            lambda: other.save("key", b"short", now() + timedelta(milliseconds=30)),
        ]
        for change in changes:
            told.keys.clear()
            change()
            told.until_told("key")
            assert None not in told.keys
        told.keys.clear()
        told.until_told("key")  # its time is over, and nobody asks for it
        assert told.next_stamp() == stamp


@pytest.mark.parametrize("command", ["FLUSHDB", "FLUSHALL"])
def test_an_emptied_server_makes_everything_forgotten(
    store: RedisStore, client: redis.Redis, command: str
) -> None:
    with watching(store) as told:
        client.execute_command(command)
        told.until_told(None)


def test_other_peoples_keys_are_not_told_and_strange_ones_harm_nobody(
    store: RedisStore, client: redis.Redis, prefix: str
) -> None:
    with watching(store) as told:
        stamp = told.next_stamp()
        client.set(f"other-{prefix}key", b"x", px=1000)
        client.set(prefix.encode() + b"\xff\r\n+OK", b"x", px=1000)
        client.set(prefix, b"x", px=1000)
        client.set(f"{prefix}last", b"x", px=1000)
        told.until_told("last")
        assert told.keys == ["\ufffd\r\n+OK", "", "last"]
        assert told.next_stamp() == stamp


def test_a_thousand_changes_at_once_are_all_told(store: RedisStore, client: redis.Redis, prefix: str) -> None:
    with watching(store) as told:
        with client.pipeline(transaction=True) as pipeline:
            for number in range(1000):
                pipeline.set(f"{prefix}{number}", b"x", px=60_000)
            pipeline.execute()
        until(lambda: len(told.keys) >= 1000)
        assert set(told.keys) == {str(number) for number in range(1000)}
        client.delete(*(f"{prefix}{number}" for number in range(1000)))


def test_two_services_with_different_prefixes_do_not_hear_each_other(server: RedisServer, prefix: str) -> None:
    ours = RedisStore(server.address, now=now, prefix=f"{prefix}a:")
    theirs = RedisStore(server.address, now=now, prefix=f"{prefix}b:")
    with watching(ours) as we, watching(theirs) as they:
        theirs.save("key", b"x", now() + MINUTE)
        ours.save("mark", b"x", now() + MINUTE)
        they.until_told("key")
        we.until_told("mark")
        assert (we.keys, they.keys) == (["mark"], ["key"])


# --- what is known, and when ------------------------------------------------------------------


def test_nothing_is_known_before_the_start_and_after_the_stop(store: RedisStore) -> None:
    told = Told(store)
    assert told.watch.stamp() is None
    told.watch.stop()
    told.watch.start()
    first = told.next_stamp()
    told.watch.stop()
    assert told.watch.stamp() is None
    told.watch.stop()
    told.watch.start()
    assert told.next_stamp() != first
    told.watch.start()  # a second start takes the place of the first
    until(lambda: len(watching_threads()) == 1)
    told.next_stamp()
    told.watch.stop()
    until(lambda: not watching_threads())


def watching_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "session-watch"]


def test_one_stamp_stands_for_one_connection(store: RedisStore, client: redis.Redis) -> None:
    with watching(store) as told:
        stamp = told.next_stamp()
        assert not told.watch.holds("key", 1)
        quiet = time.monotonic() + 0.3
        until(lambda: (told.next_stamp() == stamp and time.monotonic() > quiet) or None, every=0.005)
        client.client_kill_filter(_type="pubsub")
        until(lambda: told.watch.stamp() != stamp, every=0.0001)
        told.next_stamp()
        assert told.keys == [None]
        assert told.next_stamp() != stamp


def test_a_stamp_costs_next_to_nothing(store: RedisStore) -> None:
    with watching(store) as told:
        seconds = min(timeit.repeat(told.watch.stamp, number=10_000, repeat=20)) / 10_000
    print(f"stamp: {seconds * 1e6:.2f} µs")
    assert seconds < 1e-6  # measured on a quiet machine: 0.08 µs


@pytest.mark.slow
def test_a_quiet_connection_costs_little(store: RedisStore) -> None:
    with watching(store):
        until(lambda: len(watching_threads()) == 1)  # the test before this one may have left one that is stopping
        (thread,) = watching_threads()
        assert thread.ident is not None
        clock = time.pthread_getcpuclockid(thread.ident)
        wall, spent = time.monotonic(), time.clock_gettime(clock)
        until(lambda: time.monotonic() > wall + 2, every=0.5)
        share = (time.clock_gettime(clock) - spent) / (time.monotonic() - wall)
    print(f"idle: {share:.2%} of a core")
    assert share < 0.02  # measured on a quiet machine: below 1 %


def test_a_server_that_hangs_is_noticed_within_50_ms_and_used_again(tmp_path: Path) -> None:
    with running_redis(any_redis(), tmp_path) as server:
        with watching(RedisStore(server.address, now=now)) as told:
            stamp = told.next_stamp()
            server.pause()
            by_then(lambda: told.watch.stamp() is None, AT_ONCE)
            server.resume()
            # A short silence loses nothing: the same connection goes on where it was.
            assert told.next_stamp() == stamp
            server.pause()
            until(lambda: told.watch._run._connection is None)  # given up after SILENCE
            server.resume()
            assert told.next_stamp() != stamp
            assert told.keys == [None]


def attempts_of(store: RedisStore) -> list[float]:
    """When the watch began to connect, each time."""
    attempts: list[float] = []
    connection = store._access.connection

    def connect(place: Place, timeout: timedelta) -> AbstractConnection:
        attempts.append(time.monotonic())
        return connection(place, timeout)

    store._access.connection = connect  # type: ignore[method-assign]
    return attempts


def test_a_dead_server_is_tried_again_but_not_all_the_time(tmp_path: Path) -> None:
    with running_redis(any_redis(), tmp_path) as server:
        store = RedisStore(server.address, now=now)
        attempts = attempts_of(store)
        with watching(store) as told:
            stamp = told.next_stamp()
            server.kill()
            until(lambda: told.watch.stamp() is None, every=0.0005)
            until(lambda: len(attempts) >= 8, 15)
            rests = [later - earlier for earlier, later in zip(attempts[1:], attempts[2:])]
            assert 0.02 < min(rests) and max(rests) < 1.2
            assert max(rests) > 0.4
            server.start()
            assert told.next_stamp() != stamp
            assert told.keys[0] is None


def test_stopping_does_not_wait_for_a_dead_server() -> None:
    told = Told(RedisStore(f"127.0.0.1:{free_port()}", now=now))
    until(lambda: not watching_threads())
    told.watch.start()
    (thread,) = watching_threads()
    until(lambda: told.watch._run._failures > 3)
    began = time.monotonic()
    told.watch.stop()
    assert time.monotonic() - began < 0.3  # an attempt and the rest behind it would take longer
    thread.join(2)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    "answer", [b"", b"+OK\r\n" * 1000, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$x\r\n", b"-ERR no\r\n"]
)
def test_what_is_no_redis_server_is_never_believed(
    answer: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "REST_AFTER_REFUSAL", timedelta(milliseconds=20))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        told = Told(RedisStore("127.0.0.1:{}".format(listener.getsockname()[1]), now=now))
        told.watch.start()
        for _ in range(4):
            near, _ = listener.accept()
            with near, contextlib.suppress(OSError):
                near.sendall(answer)
                near.recv(65536)
                assert told.watch.stamp() is None
        told.watch.stop()
        until(lambda: not watching_threads())


def test_a_watch_that_broke_begins_anew(
    server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By whatever nobody foresaw: it says so, knows nothing, and is not gone for good."""
    monkeypatch.setattr(tracking, "REST_AFTER_FAULT", timedelta(milliseconds=20))
    store = RedisStore(server.address, now=now, prefix=prefix)
    broken = threading.Event()
    keys: list[str | None] = []

    def forget(key: str | None) -> None:
        if broken.is_set():
            broken.clear()
            raise MemoryError
        keys.append(key)

    watch = store.watch(forget)
    watch.start()
    try:
        before = until(watch.stamp, every=0.001)
        broken.set()
        store.save("key", b"value", now() + MINUTE)
        until(lambda: watch.stamp() not in (None, before))
        assert keys == [None, None]
        assert Event.UNEXPECTED.value in caplog.messages
    finally:
        watch.stop()


# --- who may, and how it connects -------------------------------------------------------------

STORE_RIGHTS = "~authservice:* +get +set +eval +getdel +del +select"
WATCH_RIGHTS = "+ping +client|id +client|tracking +subscribe &__redis__:invalidate"


def refusals(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record for record in caplog.records if record.message == Event.INVALIDATION_REFUSED.value]


def test_exactly_the_rights_that_the_warning_names_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "REST_AFTER_REFUSAL", timedelta(milliseconds=20))
    with running_redis(require("redis-server"), tmp_path) as server, redis.Redis(port=server.port) as client:
        client.execute_command("ACL", "SETUSER", "sessions", "on", ">password", "resetchannels", *STORE_RIGHTS.split())
        store = RedisStore(server.address, now=now, username="sessions", password="password", db=1)
        attempts = attempts_of(store)
        told = Told(store)
        told.watch.start()
        with caplog.at_level(logging.WARNING):
            for right in WATCH_RIGHTS.split():
                made = len(attempts)
                until(lambda made=made: len(attempts) >= made + 2, every=0.005)  # one from its beginning to its end
                assert told.watch.stamp() is None
                store.ping()
                client.execute_command("ACL", "SETUSER", "sessions", right)
            stamp = told.next_stamp()
            (warning,) = refusals(caplog)
            assert warning.note.endswith(f"The user needs {WATCH_RIGHTS}")
            assert "password" not in warning.note
            store.save("key", b"value", now() + MINUTE)
            told.until_told("key")
            # Taken away again while it works: Redis ends the connection, and it is told again.
            client.execute_command("ACL", "SETUSER", "sessions", "resetchannels")
            until(lambda: told.watch.stamp() is None, every=0.005)
            until(lambda: len(refusals(caplog)) == 2)
            client.execute_command("ACL", "SETUSER", "sessions", *WATCH_RIGHTS.split())
            assert told.next_stamp() != stamp
        told.watch.stop()


def test_a_wrong_password_is_as_a_server_that_is_down(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running_redis(any_redis(), tmp_path, options=["--requirepass", "right"]) as server:
        told = Told(RedisStore(server.address, now=now, password="S3cr3t-wrong"))
        with caplog.at_level(logging.DEBUG):
            told.watch.start()
            until(lambda: told.watch._run._failures > 1)
            assert told.watch.stamp() is None
            told.watch.stop()
        assert "S3cr3t" not in caplog.text
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
        with watching(RedisStore(server.address, now=now, password="right")) as told:
            told.next_stamp()


def test_over_a_unix_socket_and_in_another_database(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with running_redis(any_redis(), tmp_path, options=["--unixsocket", str(path)]):
        store = RedisStore(f"unix://{path}?protocol=3", now=now, db=3)
        with watching(store) as told:
            store.save("key", b"value", now() + MINUTE)
            told.until_told("key")


def test_over_tls(tmp_path: Path) -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    port = free_port()
    options = ["--tls-port", str(port), "--tls-auth-clients", "no", "--tls-ca-cert-file", str(tmp_path / "ca.pem")]
    options += ["--tls-cert-file", str(tmp_path / "cert.pem"), "--tls-key-file", str(tmp_path / "key.pem")]
    with running_redis(require("redis-server"), tmp_path, options=options) as server:
        store = RedisStore(f"rediss://localhost:{port}", now=now, ca_bundle=str(tmp_path / "ca.pem"))
        with watching(store) as told:
            with redis.Redis(port=server.port) as client:
                with client.pipeline(transaction=True) as pipeline:  # more than one TLS record holds
                    for number in range(2000):
                        pipeline.set(f"authservice:{number}", b"x", px=60_000)
                    pipeline.execute()
                until(lambda: len(told.keys) >= 2000)
            server.pause()
            by_then(lambda: told.watch.stamp() is None, AT_ONCE)
            server.resume()
            told.next_stamp()
        untrusted = Told(RedisStore(f"rediss://localhost:{port}", now=now))
        untrusted.watch.start()
        until(lambda: untrusted.watch._run._failures > 1)
        assert untrusted.watch.stamp() is None
        untrusted.watch.stop()


def test_a_forked_process_watches_on_a_connection_of_its_own(server: RedisServer, prefix: str) -> None:
    code = f"""
import os, sys, time
from datetime import datetime, timedelta, timezone
from authservice.sessions.redis import RedisStore
from tests.waiting import until
now = lambda: datetime.now(timezone.utc)
store = RedisStore({server.address!r}, now=now, prefix={prefix!r})
told = []
watch = store.watch(told.append)
os.register_at_fork(after_in_child=watch.start)
watch.start()
stamp = until(watch.stamp)
sockets = lambda: [fd for fd in os.listdir('/proc/self/fd') if is_socket(fd)]
def is_socket(fd):
    try:
        return os.readlink(f'/proc/self/fd/{{fd}}').startswith('socket:')
    except OSError:
        return False
ready, go = os.pipe(), os.pipe()
child = os.fork()
mine = until(watch.stamp)
assert (mine == stamp) is (child != 0)
assert len(sockets()) == 1, sockets()
if child == 0:
    os.write(ready[1], b'.')
    until(lambda: 'key' in told)
    os._exit(0)
os.read(ready[0], 1)
store.save('key', b'value', now() + timedelta(minutes=1))
until(lambda: 'key' in told)
assert os.waitpid(child, 0)[1] == 0
assert watch.stamp() == stamp
print('both')
"""
    assert output(run_python(code)) == "both"


# --- nobody passes with an ended session ------------------------------------------------------


class Recording:
    """A store that notes what its watch told, and does something between reading and answering."""

    notices: tuple[str, ...] = ()

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self.told: list[str | None] = []
        self.loads = 0
        self.after_load: Callable[[], object] = lambda: None

    def load(self, key: str) -> Entry | None:
        entry = self._store.load(key)
        self.loads += 1
        self.after_load()
        return entry

    def watch(self, forget: Forget) -> Watch:
        def tell(key: str | None) -> None:
            forget(key)
            self.told.append(key)

        return self._store.watch(tell)

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


@contextlib.contextmanager
def remembering(store: RedisStore | Recording) -> Iterator[Sessions]:
    sessions = Sessions(store, now=now, max_age=timedelta(days=1), cache_size=100)  # type: ignore[arg-type]
    sessions.start()
    try:
        yield sessions
    finally:
        sessions.stop()


def passes(sessions: Sessions, secret: str, reach: Reach = Reach.MEMORY) -> bool:
    """Whether a check lets the bearer of this secret pass; what would have to wait is no."""
    try:
        return sessions.load(secret, reach) is not None
    except NeedsIO:
        return False


def passes_from_memory(sessions: Sessions, secret: str) -> None:
    def quickly() -> bool:
        return sessions.load(secret, Reach.NETWORK) is not None and passes(sessions, secret)

    until(quickly, every=0.005)


def test_a_known_session_is_judged_without_the_store(store: RedisStore, other: RedisStore) -> None:
    recording = Recording(store)
    with remembering(recording) as sessions:
        secret = sessions.begin(a_session(now))
        passes_from_memory(sessions, secret)
        loads = recording.loads
        passed = sum(passes(sessions, secret) for _ in range(1000))
        assert recording.loads == loads
        assert passed > 900  # when the machine is busy a proof may be late, and that is no harm


def test_a_session_ended_by_another_process_is_refused_within_50_ms(
    server: RedisServer, store: RedisStore, prefix: str
) -> None:
    code = f"""
import sys, time
from datetime import datetime, timedelta, timezone
from authservice.sessions.live import Sessions
from authservice.sessions.redis import RedisStore
store = RedisStore({server.address!r}, now=lambda: datetime.now(timezone.utc), prefix={prefix!r})
sessions = Sessions(store, now=lambda: datetime.now(timezone.utc), max_age=timedelta(days=1))
for line in sys.stdin:
    assert sessions.end(line.strip()) is not None
    print(time.monotonic(), flush=True)
"""
    late = []
    with remembering(store) as sessions, run_python(code) as process:
        assert process.stdin is not None and process.stdout is not None
        for _ in range(20):
            secret = sessions.begin(a_session(now))
            passes_from_memory(sessions, secret)
            passed: list[float] = []
            done = threading.Event()

            def check(secret: str = secret, passed: list[float] = passed, done: threading.Event = done) -> None:
                while not done.is_set():
                    began = time.monotonic()  # judged at this moment or later
                    if passes(sessions, secret, Reach.NETWORK):
                        passed.append(began)

            checking = threading.Thread(target=check)
            checking.start()
            until(lambda passed=passed: passed, every=0.001)
            process.stdin.write(secret + "\n")
            process.stdin.flush()
            ended = float(process.stdout.readline())
            until(lambda ended=ended: time.monotonic() > ended + 2 * AT_ONCE)
            done.set()
            checking.join()
            assert passed and passed[0] < ended
            late.append(max(0.0, passed[-1] - ended))
            assert not passes(sessions, secret, Reach.NETWORK)
        process.stdin.close()
    print(f"refused after {max(late) * 1000:.1f} ms at most, median {sorted(late)[10] * 1000:.2f} ms")
    assert max(late) < AT_ONCE


@pytest.mark.parametrize("how", ["deleted", "unlinked", "expired", "overwritten", "emptied"])
def test_what_is_done_to_the_server_by_hand_counts_too(
    store: RedisStore, client: redis.Redis, prefix: str, how: str
) -> None:
    with remembering(store) as sessions:
        secret = sessions.begin(a_session(now))
        key = prefix + store_key(secret)
        passes_from_memory(sessions, secret)
        {
            "deleted": lambda: client.delete(key),
            "unlinked": lambda: client.unlink(key),
            "expired": lambda: client.pexpire(key, 1),
            "overwritten": lambda: client.set(key, b"1 1 99999999999999999\ngarbage"),
            "emptied": client.flushdb,
        }[how]()
        # Among many keys Redis may find one that has expired only when somebody asks for it.
        until(lambda: how == "overwritten" or not client.exists(key))
        by_then(lambda: not passes(sessions, secret, Reach.NETWORK), AT_ONCE)
        assert not passes(sessions, secret)


def test_a_session_that_ends_while_it_is_loaded_is_not_kept(store: RedisStore, other: RedisStore) -> None:
    recording = Recording(store)
    with remembering(recording) as sessions, remembering(other) as elsewhere:
        secret = sessions.begin(a_session(now))
        passes_from_memory(sessions, secret)
        sessions._copies.forget(store_key(secret))
        recording.told.clear()

        def end_meanwhile() -> None:
            recording.after_load = lambda: None
            elsewhere.end(secret)
            until(lambda: store_key(secret) in recording.told, every=0.001)
            until(sessions._watch.stamp, every=0.001)

        recording.after_load = end_meanwhile
        assert sessions.load(secret, Reach.NETWORK) is not None  # it lived when it was read
        assert not passes(sessions, secret)
        assert not passes(sessions, secret, Reach.NETWORK)


def test_a_load_across_a_new_connection_is_not_kept(store: RedisStore, client: redis.Redis, prefix: str) -> None:
    recording = Recording(store)
    with remembering(recording) as sessions:
        secret = sessions.begin(a_session(now))
        passes_from_memory(sessions, secret)
        sessions._copies.forget(store_key(secret))

        def break_meanwhile() -> None:
            recording.after_load = lambda: None
            recording.told.clear()
            stamp = until(sessions._watch.stamp, every=0.001)
            client.client_kill_filter(_type="pubsub")
            client.delete(prefix + store_key(secret))  # nobody is there to be told
            until(lambda: sessions._watch.stamp() not in (None, stamp), every=0.001)

        recording.after_load = break_meanwhile
        assert sessions.load(secret, Reach.NETWORK) is not None
        assert not passes(sessions, secret)
        assert not passes(sessions, secret, Reach.NETWORK)


def test_a_cut_connection_makes_the_next_check_read_the_store(
    store: RedisStore, client: redis.Redis, prefix: str
) -> None:
    recording = Recording(store)
    with remembering(recording) as sessions:
        for _ in range(10):
            secret = sessions.begin(a_session(now))
            passes_from_memory(sessions, secret)
            with client.pipeline(transaction=True) as pipeline:  # the line is cut before the change could be told
                pipeline.client_kill_filter(_type="pubsub")
                pipeline.delete(prefix + store_key(secret))
                pipeline.execute()
            by_then(lambda secret=secret: not passes(sessions, secret, Reach.NETWORK), AT_ONCE)
            until(sessions._watch.stamp, every=0.005)


def test_a_silent_line_is_believed_no_longer_than_its_proof(
    server: RedisServer, wire: Wire, other: RedisStore, prefix: str
) -> None:
    near = RedisStore(wire.address, now=now, prefix=prefix)
    with remembering(near) as sessions, remembering(other) as elsewhere:
        for _ in range(3):
            secret, stays = sessions.begin(a_session(now)), sessions.begin(a_session(now))
            passes_from_memory(sessions, secret)
            passes_from_memory(sessions, stays)
            near.close()  # so that only the watch's connection falls silent
            stamp = until(sessions._watch.stamp)
            wire.fall_silent()
            assert elsewhere.end(secret) is not None
            by_then(lambda secret=secret: not passes(sessions, secret, Reach.NETWORK), AT_ONCE)
            assert not passes(sessions, stays)
            assert passes(sessions, stays, Reach.NETWORK)
            until(lambda stamp=stamp: sessions._watch.stamp() not in (None, stamp))
            passes_from_memory(sessions, stays)


def test_a_dead_server_denies_and_a_restarted_one_knows_nobody(tmp_path: Path) -> None:
    with running_redis(any_redis(), tmp_path) as server:
        with remembering(RedisStore(server.address, now=now)) as sessions:
            secret = sessions.begin(a_session(now))
            passes_from_memory(sessions, secret)
            server.kill()
            by_then(lambda: not passes(sessions, secret), AT_ONCE)
            with pytest.raises(StoreDown):
                sessions.load(secret, Reach.NETWORK)
            server.start()
            until(sessions._watch.stamp)
            assert not passes(sessions, secret)
            assert not passes(sessions, secret, Reach.NETWORK)
            passes_from_memory(sessions, sessions.begin(a_session(now)))


def test_a_user_who_may_not_follow_changes_is_judged_by_the_store(tmp_path: Path) -> None:
    options = ["--user", "sessions", "on", ">password", *STORE_RIGHTS.split()]
    with running_redis(require("redis-server"), tmp_path, options=options) as server:
        recording = Recording(RedisStore(server.address, now=now, username="sessions", password="password"))
        with remembering(recording) as sessions:
            secret = sessions.begin(a_session(now))
            for number in range(1, 4):
                assert not passes(sessions, secret)
                assert passes(sessions, secret, Reach.NETWORK)
                assert recording.loads == number
