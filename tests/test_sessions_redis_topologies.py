"""The Redis store and its watch behind Sentinels and in a cluster: the contracts, failovers, who may
look on, and that nobody passes with a session that ended, whichever server is the master.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis

from authservice.check import Reach
from authservice.errors import StoreDown
from authservice.logs import Event
from authservice.sessions import Label, tracking
from authservice.sessions.live import Sessions
from authservice.sessions.redis import RedisStore
from authservice.sessions.redis_access import Place
from authservice.sessions.redis_finders import SentinelFinder
from authservice.sessions.seal import store_key
from tests.contracts import MINUTE, Clock, StoreContract, WatchContract, output, run_python
from tests.sample_sessions import a_session
from tests.ports import free_port
from tests.servers import RedisCluster, RedisFamily, RedisServer, any_redis, running_cluster, running_sentinels
from tests.test_sessions_tracking import AT_ONCE, now, passes, passes_from_memory, remembering, watching
from tests.waiting import by_then, until

pytestmark = [pytest.mark.external, pytest.mark.slow, pytest.mark.xdist_group("redis-topologies")]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisFamily]:
    with running_sentinels(any_redis(), tmp_path_factory.mktemp("sentinels")) as family:
        yield family


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with running_cluster(any_redis(), tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    return f"{request.node.name}:"


class _Behind:
    """Fixtures for the contracts; subclasses say in which mode."""

    mode = ""
    servers = ""

    @pytest.fixture
    def address(self, request: pytest.FixtureRequest) -> str:
        return request.getfixturevalue(self.servers).address

    @pytest.fixture
    def open_store(self, address: str, prefix: str) -> Callable[[Clock], RedisStore]:
        return lambda clock: RedisStore(address, now=clock, mode=self.mode, prefix=prefix)  # type: ignore[arg-type]

    @pytest.fixture
    def recipe(self, address: str, prefix: str) -> str:
        return (
            "from authservice.sessions.redis import RedisStore\n"
            f"store = RedisStore({address!r}, now=now, mode={self.mode!r}, prefix={prefix!r})"
        )


class _BehindSentinels(_Behind):
    mode, servers = "sentinel", "family"


class _InACluster(_Behind):
    mode, servers = "cluster", "cluster"


class TestStoreBehindSentinels(_BehindSentinels, StoreContract):
    pass


class TestWatchBehindSentinels(_BehindSentinels, WatchContract):
    pass


class TestStoreInACluster(_InACluster, StoreContract):
    pass


class TestWatchInACluster(_InACluster, WatchContract):
    pass


class TestWatchOfOneServer(_Behind, WatchContract):
    mode = "standalone"

    @pytest.fixture
    def address(self, family: RedisFamily) -> str:
        return family.master().address


@pytest.fixture(params=["standalone", "sentinel", "cluster"])
def make(request: pytest.FixtureRequest, prefix: str) -> Callable[[], RedisStore]:
    """Makes a store of one replica of the service, in each of the three modes."""
    mode = request.param
    servers = request.getfixturevalue("cluster" if mode == "cluster" else "family")
    address = servers.master().address if mode == "standalone" else servers.address
    return lambda: RedisStore(address, now=now, mode=mode, prefix=prefix)


def test_l05_a_session_ended_elsewhere_is_refused_within_50_ms(make: Callable[[], RedisStore]) -> None:
    late = []
    with remembering(make()) as sessions, remembering(make()) as elsewhere:
        for _ in range(15):  # in a cluster their keys are on all masters
            secret = sessions.begin(a_session(now))
            passes_from_memory(sessions, secret)
            assert elsewhere.end(secret) is not None
            ended = time.monotonic()
            until(lambda secret=secret: not passes(sessions, secret), 5, every=0.0002)
            late.append(time.monotonic() - ended)
            assert not passes(sessions, secret)
    print(f"refused after {max(late) * 1000:.1f} ms at most, median {sorted(late)[7] * 1000:.2f} ms")
    assert max(late) < AT_ONCE


# --- failover ---------------------------------------------------------------------------------


class Load:
    """Threads that go on asking for sessions that live, and for some that ended; counts the answers."""

    def __init__(self, sessions: Sessions, alive: list[str], ended: list[str]) -> None:
        self.right, self.wrong, self.down, self.slowest = 0, [], 0, 0.0
        self._done = threading.Event()
        work = [(sessions, secret, True) for secret in alive] + [(sessions, secret, False) for secret in ended]
        self._threads = [threading.Thread(target=self._ask, args=(work,)) for _ in range(4)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, work: list[tuple[Sessions, str, bool]]) -> None:
        while not self._done.is_set():
            for sessions, secret, lives in work:
                began = time.monotonic()
                try:
                    found = sessions.load(secret, Reach.NETWORK) is not None
                except StoreDown:
                    self.down += 1
                else:
                    self.right += 1
                    if found is not lives:
                        self.wrong.append((secret[:4], lives))
                self.slowest = max(self.slowest, time.monotonic() - began)
            self._done.wait(0.002)


def after_failover(sessions: Sessions, elsewhere: Sessions, alive: list[str]) -> None:
    """All is as before, without a restart: what was acknowledged is there, copies are kept, and
    sessions that end elsewhere are refused at once."""
    for secret in alive:
        until(lambda secret=secret: passes_now(sessions, secret), 20)
    for secret in alive:
        passes_from_memory(sessions, secret)
        until(lambda secret=secret: has_ended(elsewhere, secret), 20)
        by_then(lambda secret=secret: not passes(sessions, secret), AT_ONCE)
    secret = sessions.begin(a_session(now))
    passes_from_memory(sessions, secret)


def passes_now(sessions: Sessions, secret: str) -> bool:
    try:
        return sessions.load(secret, Reach.NETWORK) is not None
    except StoreDown:
        return False


def has_ended(sessions: Sessions, secret: str) -> bool:
    try:
        return sessions.end(secret) is not None
    except StoreDown:
        return False


def in_step(server: RedisServer, replicas: int) -> None:
    """Waits until that many replicas have all that was written, as an operator's WAIT would."""
    with redis.Redis(port=server.port) as client:
        assert client.execute_command("WAIT", replicas, 5000) >= replicas


def test_k11_a_planned_failover_leaves_nobody_with_the_old_master(family: RedisFamily, prefix: str) -> None:
    """For some ten seconds the old master answers on, and takes itself for one."""
    family.settle()
    one, other = (RedisStore(family.address, now=now, mode="sentinel", prefix=prefix) for _ in range(2))
    with remembering(one) as sessions, remembering(other) as elsewhere:
        alive, ended = ([sessions.begin(a_session(now)) for _ in range(5)] for _ in range(2))
        for secret in ended:
            assert elsewhere.end(secret)
        old = family.master()
        in_step(old, 1)
        with Load(sessions, alive, ended) as load:
            family.fail_over()
            named = time.monotonic()
            (master,) = [family.master()]
            until(lambda: [node.place.port for node in one._servers.masters()] == [master.port], 1, every=0.005)
            print(f"the new master is used after {(time.monotonic() - named) * 1000:.0f} ms")
            with redis.Redis(port=old.port) as client:
                assert client.execute_command("ROLE")[0] == b"master"  # the old one still answers
                until(lambda: not [each for each in client.client_list() if "t" in each["flags"]], 2)  # tracking
            after_failover(sessions, elsewhere, alive[:3])
        assert [entry for entry in load.wrong if not entry[1]] == []
        print(f"right {load.right}, store down {load.down}, slowest {load.slowest * 1000:.0f} ms")


def test_k11_a_killed_master_behind_sentinels(family: RedisFamily, prefix: str) -> None:
    family.settle()
    one, other = (RedisStore(family.address, now=now, mode="sentinel", prefix=prefix) for _ in range(2))
    with remembering(one) as sessions, remembering(other) as elsewhere:
        alive, ended = ([sessions.begin(a_session(now)) for _ in range(5)] for _ in range(2))
        for secret in ended:
            assert elsewhere.end(secret)
        in_step(family.master(), 1)
        with Load(sessions, alive, ended) as load:
            family.master().kill()
            killed = time.monotonic()
            until(lambda: passes_now(sessions, alive[0]) and load.down, 20)
            print(f"back after {time.monotonic() - killed:.1f} s")
        assert load.wrong == []
        print(f"right {load.right}, store down {load.down}, slowest {load.slowest * 1000:.0f} ms")
        assert load.slowest < 1.5
        after_failover(sessions, elsewhere, alive)


@pytest.mark.parametrize("how", ["killed", "hanging"])
def test_k11_a_master_of_a_cluster_is_gone(cluster: RedisCluster, prefix: str, how: str) -> None:
    cluster.settle()
    one, other = (RedisStore(cluster.address, now=now, mode="cluster", prefix=prefix) for _ in range(2))
    with remembering(one) as sessions, remembering(other) as elsewhere:
        alive, ended = ([sessions.begin(a_session(now)) for _ in range(12)] for _ in range(2))
        for secret in ended:
            assert elsewhere.end(secret)
        master = cluster.holder(prefix + store_key(alive[0]))
        for server in cluster.servers:
            if cluster.ask(server, "ROLE")[0] == b"master":
                in_step(server, 1)
        with Load(sessions, alive, ended) as load:
            if how == "killed":
                master.kill()
            else:
                master.pause()
            gone = time.monotonic()
            until(lambda: load.down, 20)
            until(lambda: all(passes_now(sessions, secret) for secret in alive), 30)
            print(f"back after {time.monotonic() - gone:.1f} s")
        assert load.wrong == []
        print(f"right {load.right}, store down {load.down}, slowest {load.slowest * 1000:.0f} ms")
        after_failover(sessions, elsewhere, alive)
        master.resume()
    cluster.settle()


def test_a_slot_that_moves_takes_its_sessions_along(cluster: RedisCluster, prefix: str) -> None:
    cluster.settle()
    one, other = (RedisStore(cluster.address, now=now, mode="cluster", prefix=prefix) for _ in range(2))
    with remembering(one) as sessions, remembering(other) as elsewhere:
        secret = sessions.begin(a_session(now))
        passes_from_memory(sessions, secret)
        key = prefix + store_key(secret)
        source = cluster.holder(key)
        ask = cluster.ask
        target = next(s for s in cluster.servers if s is not source and ask(s, "ROLE")[0] == b"master")
        slot = int(ask(source, "CLUSTER", "KEYSLOT", key))
        ids = {server: ask(server, "CLUSTER", "MYID").decode() for server in (source, target)}
        ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
        ask(source, "MIGRATE", "127.0.0.1", target.port, key, 0, 2000)
        assert passes_now(sessions, secret)  # by way of ASK
        assert one.save("k", b"new", now() + MINUTE, label=Label(b"", ("t",)))
        for server in (target, source):
            ask(server, "CLUSTER", "SETSLOT", slot, "NODE", ids[target])
        assert passes_now(sessions, secret)  # by way of MOVED
        passes_from_memory(sessions, secret)
        assert elsewhere.end(secret)
        by_then(lambda: not passes(sessions, secret), AT_ONCE)
    cluster.settle()


def test_an_answer_from_a_server_that_nobody_follows_is_not_kept(cluster: RedisCluster, prefix: str) -> None:
    """The view lacks a master: what it answers by redirection puts every copy in doubt."""
    cluster.settle()
    store = RedisStore(cluster.address, now=now, mode="cluster", prefix=prefix)
    with watching(store) as told:
        stamp = told.next_stamp()
        store.save("key", b"value", now() + MINUTE)
        assert told.watch.stamp() == stamp
        servers = store._servers
        view, vouched = servers._view, servers.vouched
        assert view is not None and vouched is not None
        holder = view.holder(prefix + "key")
        assert holder is not None
        there = servers._redirected(view, Place("127.0.0.1", free_port()))
        assert there is not holder
        assert told.watch.stamp() is None  # before the server there is asked
        assert told.next_stamp() != stamp
        stamp = told.next_stamp()
        servers._redirected(view, holder.place)
        assert told.next_stamp() == stamp  # it is followed


# --- Sentinels that disagree, or are silent -----------------------------------------------------


class Said:
    """A Sentinel that says what it is told to say. ``promoting`` is the port of the server that it is
    just making the master."""

    def __init__(self, answer: tuple[int, int] | None) -> None:
        self.answer = answer
        self.promoting = 0

    def ask(self, *command: object) -> list[bytes]:
        if self.answer is None:
            raise redis.ConnectionError
        epoch, port = self.answer
        if command[1] == "GET-MASTER-ADDR-BY-NAME":
            return [b"10.0.0.1", b"%d" % (self.promoting or port)]
        return [b"ip", b"10.0.0.1", b"port", b"%d" % port, b"config-epoch", b"%d" % epoch]


def test_the_sentinel_that_knows_most_is_believed() -> None:
    finder = SentinelFinder(RedisStore("h:1", now=now)._access, (), "mymaster")
    first, second, third = said = [Said(None), Said(None), Said(None)]
    finder._sentinels = said  # type: ignore[assignment]
    with pytest.raises(StoreDown):
        finder.find()
    first.answer = (3, 1)
    assert finder.find().masters == (Place("10.0.0.1", 1),)
    second.answer = (4, 2)
    assert finder.find().masters == (Place("10.0.0.1", 2),)  # a failover that the first one has not heard of
    second.answer = None
    assert finder.find().masters == (Place("10.0.0.1", 2),)  # is not taken back by it
    first.answer = None
    assert finder.find().masters == (Place("10.0.0.1", 2),)  # nor by nobody
    second.answer = third.answer = (1, 3)
    assert finder.find().masters == (Place("10.0.0.1", 3),)  # all set up anew
    first.answer = (1, 3)
    first.promoting = 4
    assert finder.find().masters == (Place("10.0.0.1", 4),)  # one knows more than its epoch tells
    second.answer = (2, 4)
    assert finder.find().masters == (Place("10.0.0.1", 4),)


def test_a_silent_sentinel_and_a_dead_one_hold_nobody_up(family: RedisFamily, prefix: str) -> None:
    family.settle()
    silent, *_ = family.sentinels
    address = f"127.0.0.1:{free_port()},{family.address}"
    silent.pause()
    try:
        store = RedisStore(address, now=now, mode="sentinel", prefix=prefix)
        began = time.monotonic()
        store.save("key", b"value", now() + MINUTE)
        assert time.monotonic() - began < 1
        slow = []
        until_then = time.monotonic() + 2.5
        while time.monotonic() < until_then:
            began = time.monotonic()
            assert store.load("key")
            slow.append(time.monotonic() - began)
        assert max(slow) < 0.5
        with watching(store) as told:
            assert told.next_stamp()
    finally:
        silent.resume()


@pytest.mark.parametrize("mode", ["sentinel", "cluster"])
def test_nobody_there_is_store_down_at_once_and_knows_nothing(mode: Any) -> None:
    store = RedisStore(f"127.0.0.1:{free_port()},127.0.0.1:{free_port()}", now=now, mode=mode)
    watch = store.watch(lambda key: None)
    watch.start()
    began = time.monotonic()
    for _ in range(50):
        with pytest.raises(StoreDown):
            store.load("key")
        assert watch.stamp() is None
    assert time.monotonic() - began < 2
    watch.stop()


def test_a_server_that_is_no_cluster_is_store_down(family: RedisFamily) -> None:
    store = RedisStore(family.master().address, now=now, mode="cluster")
    with pytest.raises(StoreDown):
        store.load("key")


def test_a_replica_that_a_sentinel_names_is_not_read(family: RedisFamily, prefix: str) -> None:
    """A Sentinel that has not heard yet: a replica may lag behind, so it is no master to ask."""
    family.settle()
    master = family.master()
    with contextlib.closing(RedisStore(family.address, now=now, mode="sentinel", prefix=prefix)) as store:
        store.save("key", b"value", now() + MINUTE)
        for server in family.servers:
            if server is not master and RedisFamily._ask(server, "ROLE")[0] == b"slave":
                node = store._servers._node(Place("127.0.0.1", server.port))
                with pytest.raises(redis.ReadOnlyError):
                    node.ask("GET", f"{prefix}key")


def test_a_forked_process_follows_on_connections_of_its_own(cluster: RedisCluster, prefix: str) -> None:
    cluster.settle()
    code = f"""
import os
from datetime import datetime, timedelta, timezone
from authservice.sessions.redis import RedisStore
from tests.waiting import until
now = lambda: datetime.now(timezone.utc)
store = RedisStore({cluster.address!r}, now=now, mode="cluster", prefix={prefix!r})
told = []
watch = store.watch(told.append)
os.register_at_fork(after_in_child=watch.start)
watch.start()
until(watch.stamp)
store.save('before', b'value', now() + timedelta(minutes=1))
ready = os.pipe()
child = os.fork()
until(watch.stamp)
assert store.load('before')
if child == 0:
    os.write(ready[1], b'.')
    until(lambda: 'key' in told)
    watch.stop()
    os._exit(0)
os.read(ready[0], 1)
store.save('key', b'value', now() + timedelta(minutes=1))
until(lambda: 'key' in told)
assert os.waitpid(child, 0)[1] == 0
assert watch.stamp()
print('both')
"""
    assert output(run_python(code)) == "both"


def test_whatever_breaks_the_look_for_the_master_is_over_when_it_is_over(
    family: RedisFamily, prefix: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where no thread can be started just now: nothing is known meanwhile, and nobody is left behind."""
    family.settle()
    monkeypatch.setattr(tracking, "REST_AFTER_FAULT", timedelta(milliseconds=50))
    store = RedisStore(family.address, now=now, mode="sentinel", prefix=prefix)
    with watching(store) as told:
        with monkeypatch.context() as broken:
            broken.setattr(tracking.Tracking, "start", lambda self: [][0])
            store._servers._nodes.clear()  # as if another master were there
            store._servers._view = None
            until(lambda: Event.UNEXPECTED.value in caplog.messages)
            assert told.watch.stamp() is None
        told.next_stamp()
        assert len([one for one in threading.enumerate() if one.name == "session-masters"]) == 1
        until(lambda: len([one for one in threading.enumerate() if one.name == "session-watch"]) == 1)
