"""Redis's primary is killed under a load of checks: who is answered how until a replica has taken over.

The service as it is served, with two workers, behind three real Sentinels. Nobody may pass whose
session ended or never was, and nobody as somebody else; live sessions may be denied (503) meanwhile.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import redis

from authservice.scrape import INTERVAL
from authservice.sessions.live import Sessions
from authservice.sessions.redis import RedisStore
from authservice.sessions.seal import new_secret
from tests.provider import FakeProvider
from tests.sample_sessions import a_session
from tests.served import Served, exchange, request, serving
from tests.servers import RedisFamily, any_redis, running_sentinels
from tests.waiting import until

pytestmark = [pytest.mark.external, pytest.mark.slow, pytest.mark.xdist_group("redis-topologies")]

RATE = 2000
"""Checks a second, over all clients together."""
PEOPLE = 8
AT_ONCE = 0.05
HITS = "live_session_hits_total"
DAY = timedelta(days=1)


def now() -> datetime:
    return datetime.now(timezone.utc)


@pytest.fixture
def family(tmp_path: Path) -> Iterator[RedisFamily]:
    folder = tmp_path / "sentinels"
    folder.mkdir()
    with running_sentinels(any_redis(), folder) as family:
        yield family


@pytest.fixture
def served(family: RedisFamily, tmp_path: Path) -> Iterator[Served]:
    with FakeProvider() as fake:
        environ = {
            "OIDC_PROVIDER": fake.issuer,
            "CLIENT_ID": fake.client_id,
            "CLIENT_SECRET": fake.client_secret,
            "AUTHSERVICE_URL_PREFIX": "/authservice/",
            "SESSION_STORE_TYPE": "redis",
            "SESSION_STORE_REDIS_MODE": "sentinel",
            "SESSION_STORE_REDIS_ADDR": family.address,
            "WEB_CONCURRENCY": "2",
        }
        with serving(environ, tmp_path) as served:
            until(lambda: exchange(served.site, request("/readyz", close=True))[0].status == 200, 30)
            yield served


class Client(threading.Thread):
    """One kept connection of one person, who asks again and again. ``user`` is who it is; nobody when
    the session does not live. ``answers`` are (when the question began, how long it took, what came)."""

    ALLOWED, REFUSED, DENIED, BROKEN = "allowed", "not logged in", "denied (503)", "no answer"
    WRONG = "WRONG"

    def __init__(self, port: int, secret: str, user: str, rate: float, done: threading.Event) -> None:
        super().__init__()
        self.user, self.answers = user, list[tuple[float, float, str]]()
        self._port, self._rate, self._done = port, rate, done
        self._question = request("/", f"Cookie: authservice_session={secret}", "Accept: application/json")
        self._connection: socket.socket | None = None

    def run(self) -> None:
        next_at = time.monotonic()
        while not self._done.wait(max(0.0, next_at - time.monotonic())):
            began = time.monotonic()
            what = self._ask()
            self.answers.append((began, time.monotonic() - began, what))
            # Who was kept waiting does not make up for it.
            next_at = max(next_at + 1 / self._rate, began)
        if self._connection is not None:
            self._connection.close()

    def _ask(self) -> str:
        try:
            if self._connection is None:
                self._connection = socket.create_connection(("127.0.0.1", self._port), timeout=10)
            self._connection.sendall(self._question)
            status, headers = self._read(self._connection)
        except (OSError, ValueError):
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            return self.BROKEN
        if headers.get("connection") == "close":
            self._connection.close()
            self._connection = None
        if status == 200:
            return self.ALLOWED if headers.get("kubeflow-userid") == (self.user or "-") else self.WRONG
        return {401: self.REFUSED, 503: self.DENIED}.get(status, self.WRONG)

    @staticmethod
    def _read(connection: socket.socket) -> tuple[int, dict[str, str]]:
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(65536) or _closed()
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        while len(body) < int(headers.get("content-length", "0")):
            body += connection.recv(65536) or _closed()
        return int(first.split()[1]), headers

    def last(self) -> str:
        return self.answers[-1][2] if self.answers else ""


def _closed() -> bytes:
    raise ConnectionResetError


def metric(served: Served, name: str) -> int:
    text = exchange(served.probe, request("/metrics", close=True))[0].body.decode()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith(f"authservice_{name} ")))


def settled(served: Served, name: str) -> int:
    """What a number is when nothing adds to it any more: the workers tell theirs once a second."""
    found, since = metric(served, name), time.monotonic()
    while time.monotonic() - since < 2 * INTERVAL:
        latest = metric(served, name)
        if latest != found:
            found, since = latest, time.monotonic()
        threading.Event().wait(0.1)
    return found


def in_step(family: RedisFamily) -> None:
    """Waits until both replicas have everything: what they lack at the kill, Redis itself loses."""
    with redis.Redis(port=family.master().port) as client:
        assert client.execute_command("WAIT", 2, 5000) == 2


def test_k11_the_primary_is_killed_under_2000_checks_a_second(family: RedisFamily, served: Served) -> None:
    with closing(RedisStore(family.address, now=now, mode="sentinel")) as store:
        elsewhere = Sessions(store, now=now, max_age=DAY)
        names = [f"person{number}@example.com" for number in range(PEOPLE)]
        secrets = {name: elsewhere.begin(a_session(now, user_id=name, access_token_expires=None)) for name in names}
        ended = elsewhere.begin(a_session(now, user_id="ended@example.com", access_token_expires=None))
        done = threading.Event()
        rate = RATE / (PEOPLE + 2)

        live = [Client(served.judge, secrets[name], name, rate, done) for name in names]
        refused = [Client(served.judge, secret, "", rate, done) for secret in (ended, new_secret())]
        leaver = Client(served.judge, ended, "ended@example.com", rate, done)
        everybody = [*live, *refused]
        try:
            # The session that is to end is in the memory of the workers before it does.
            leaver.start()
            until(lambda: len(leaver.answers) > 100)
            assert {what for *_, what in leaver.answers} == {Client.ALLOWED}
            assert elsewhere.end(ended)
            until(lambda: leaver.last() == Client.REFUSED)
            for client in everybody:
                client.start()
            began = time.monotonic()
            until(lambda: all(len(client.answers) > rate for client in everybody), 30)
            in_step(family)
            family.master().kill()
            killed = time.monotonic()
            until(lambda: any(client.last() == Client.DENIED for client in live), 20)

            def quiet_for_a_second() -> bool:
                recent = time.monotonic() - 1
                late = [what for client in live for at, _, what in client.answers[-int(rate) :] if at > recent]
                return len(late) > RATE / 4 and set(late) == {Client.ALLOWED}

            until(quiet_for_a_second, 60)
            hits = metric(served, HITS)
            until(lambda: metric(served, HITS) > hits + RATE / 2, 20)
            # Who logs out now is out at once, as before.
            going = time.monotonic()
            assert elsewhere.end(secrets[names[0]])
            out = time.monotonic()
            until(lambda: live[0].last() == Client.REFUSED)
        finally:
            done.set()
            for client in (leaver, *everybody):
                if client.ident is not None:
                    client.join()
        memory = settled(served, HITS)

    after = [answer for client in live for answer in client.answers if answer[0] > killed]
    denied = sorted(at for at, _, what in after if what == Client.DENIED)
    report(began, killed, memory, [leaver, *everybody], after, denied)
    assert Client.WRONG not in {what for client in (leaver, *everybody) for *_, what in client.answers}
    leaving = [what for at, _, what in leaver.answers]
    assert leaving.index(Client.REFUSED) == leaving.count(Client.ALLOWED)  # refused once, refused for good
    for client in refused:
        assert {what for *_, what in client.answers} <= {Client.REFUSED, Client.DENIED}
    for client in live[1:]:
        assert {what for *_, what in client.answers} <= {Client.ALLOWED, Client.DENIED}
    assert all(what != Client.REFUSED for at, took, what in live[0].answers if at + took < going)
    assert all(what != Client.ALLOWED for at, _, what in live[0].answers if at > out + AT_ONCE)


def report(
    began: float,
    killed: float,
    memory: int,
    clients: list[Client],
    after: list[tuple[float, float, str]],
    denied: list[float],
) -> None:
    answers = [answer for client in clients for answer in client.answers]
    before = [at for at, *_ in answers if began < at < killed]
    counted = Counter(what for at, _, what in answers)
    print(f"\n{len(answers)} checks, {len(before) / (killed - began):.0f} a second until the kill")
    print(f"wrong: {counted[Client.WRONG]}; " + ", ".join(f"{what}: {counted[what]}" for what in sorted(counted)))
    outage = [what for at, _, what in after if at <= denied[-1]]
    print(f"denied from {denied[0] - killed:.3f} s to {denied[-1] - killed:.3f} s after the kill; meanwhile "
          f"{outage.count(Client.ALLOWED)} checks of live sessions passed, {outage.count(Client.DENIED)} were denied")
    slowest = max(took for _, took, _ in after)
    print(f"answered from memory: {memory} of {counted[Client.ALLOWED]} that passed; slowest {slowest * 1000:.0f} ms")
