"""The contract table, through each gateway with its shipped configuration."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from authservice.app import build_store
from authservice.oidc.jws import glance
from authservice.sessions.labels import Labels
from authservice.sessions.live import Sessions
from authservice.sessions.seal import Keyring
from authservice.settings import load
from tests import contract_table
from tests.contract_table import ROWS, Identity, Outcome, Row, Service, Who
from tests.e2e import gateways
from tests.e2e import stack as stacks
from tests.e2e.conftest import SHARED
from tests.e2e.person import Person
from tests.e2e.recorder import Seen
from tests.e2e.service import Service as RunningService
from tests.e2e.stack import Stack
from tests.e2e.tap import Tap
from tests.e2e.test_logout import SAME_ORIGIN
from tests.e2e.test_paths import normal
from tests.e2e.wire import Answer
from tests.ports import free_port
from tests.sample_sessions import a_session

pytestmark = pytest.mark.external

IDENTITY = ("kubeflow-userid", "kubeflow-groups", "auth-method")
WHO = {
    Identity.COOKIE: [["alice@example.org"], ["a,b"], ["cookie"]],
    Identity.MANY_GROUPS: [["carol@example.org"], [",".join(contract_table.GROUPS_OF_15_KB)], ["cookie"]],
    Identity.HEADER: [["alice@example.org"], ["a,b"], ["header"]],
    Identity.NONE: [[], [], []],
    Identity.EMPTY: [[""], [""], [""]],
}
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
SLOW = next(row for row in ROWS if row.service is Service.SLOW)


@dataclass
class World:
    """A stack behind one gateway, with a tap on its checks, and one request that the service is slow with."""

    stack: Stack
    tap: Tap
    slow: Future[Answer] = field(default_factory=Future)
    _people: dict[Who, Person] = field(default_factory=dict)

    def cookies(self, who: Who) -> list[str]:
        if who not in self._people:
            self._people[who] = self._make(who)
        return [f"{name}={value}" for name, value in self._people[who].cookies(self.stack.url + "/").items()]

    def _make(self, who: Who) -> Person:
        if who is Who.LOGGED_IN:
            return self.stack.logged_in()
        if who is Who.MANY_GROUPS:
            self.stack.provider.regroup("carol", contract_table.GROUPS_OF_15_KB)
            return self.stack.logged_in("carol")
        person = self.stack.person("bob")
        if who is Who.NOT_ALLOWED:
            assert person.log_in(self.stack.url + "/").answer.status == 403
        if who is Who.EXPIRED:
            person.keep(self.stack.url, "authservice_session", an_expired_session(self.stack))
        return person

    def late(self) -> Answer:
        """The answer to the request that the service is slow with. Who waits for longer than a test
        can is answered now."""
        if self.stack.kind == "traefik":
            self.tap.release()
        return self.slow.result()

    def token(self, who: Who) -> str:
        self.cookies(Who.LOGGED_IN)
        good = next(token for token in self.stack.provider.tokens() if email_in(token) == "alice@example.org")
        head, _, signature = good.rpartition(".")
        return good if who is Who.TOKEN else f"{head}.{signature[::-1]}"

    def ask(self, row: Row, marker: str, cookies: list[str]) -> Answer:
        headers = [("X-Marker", marker), *row.headers]
        if row.who in (Who.TOKEN, Who.BAD_TOKEN):
            headers.append(("Authorization", f"Bearer {self.token(row.who)}"))
        pairs = [f"{name}={value}" for name, value in row.cookies] + cookies
        cut = len(pairs) if row.pieces == 1 else len(row.cookies)
        headers += [("Cookie", "; ".join(line)) for line in (pairs[:cut], pairs[cut:]) if line]
        return self.stack.request(row.method, row.target, headers, row.body, chunk=row.chunk)


def email_in(token: str) -> str:
    """Whose ID token this is; empty for any other token."""
    seen = glance(token)
    return str(seen.jws.claims().get("email", "")) if seen else ""


def an_expired_session(stack: Stack) -> str:
    """The cookie of somebody who logged in longer ago than sessions last, and whose record is there still."""
    settings = load(stack.service.settings)

    def then() -> datetime:
        return datetime.now(timezone.utc) - settings.session_max_age - timedelta(minutes=1)

    labels = Labels(Keyring(settings.sealing_key_material()))
    session = a_session(then, expires=then() + settings.session_max_age)
    with closing(build_store(settings, then)) as store:
        return Sessions(store, now=then, max_age=settings.session_max_age, labels=labels).begin(session)


def start(kind: str, folder: Path, ending: ExitStack, *, tls: bool = False) -> World:
    settings = {**SHARED, "WEB_CONCURRENCY": "1"}
    stack = stacks.prepare(kind, folder, settings, tls=tls, claims_in_userinfo_only=False)
    ending.callback(stack.stop)
    pool = ThreadPoolExecutor(1)
    ending.callback(pool.shutdown)
    stack.provider.start()
    stack.service.start()
    tap = Tap(stack.service.judge_port, SLOW.target.encode())
    ending.callback(tap.stop)
    ports = gateways.Ports(stack.port, tap.port, stack.service.site_port, stack.application.port)
    stack.gateway = gateways.start(kind, folder, ports, stack.tls)
    plain = stack.application.answer
    stack.application.answer = lambda seen: SWITCHING if seen.values("upgrade") else plain(seen)
    world = World(stack, tap)
    cookies = world.cookies(SLOW.who)
    world.slow = pool.submit(world.ask, SLOW, "slow", cookies)
    return world


EACH = [pytest.param(kind, marks=pytest.mark.xdist_group(f"contract-{kind}")) for kind in gateways.KINDS]


@pytest.fixture(scope="module", params=EACH)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as ending:
        yield start(request.param, tmp_path_factory.mktemp(f"contract-{request.param}"), ending)


def asked(row: Row, world: World, marker: str) -> Answer:
    """Brings about the situation, and gives the answer in it."""
    stack = world.stack
    if row.service is Service.SLOW:
        return world.late()
    if row.service is Service.DOWN:
        cookies = world.cookies(row.who)
        world.late()  # which would be cut short
        world.tap.down()
        try:
            return world.ask(row, marker, cookies)
        finally:
            world.tap.up()
    if not row.before:
        identified_by_cookie = row.who not in (Who.NOBODY, Who.TOKEN, Who.BAD_TOKEN)
        return world.ask(row, marker, world.cookies(row.who) if identified_by_cookie else [])
    person = stack.logged_in(target=row.target)  # and is led back to this very address
    cookies = [f"{name}={value}" for name, value in person.cookies(stack.url + "/").items()]
    if row.before == "log out":
        ended = person.send(stack.url + "/authservice/logout", "POST", headers=SAME_ORIGIN)
        assert ended.answer.status == 201 and "afterLogoutURL" in ended.answer.json()
    return world.ask(row, marker, cookies)


def assert_gets(answer: Answer, row: Row, outcome: Outcome, stack: Stack) -> None:
    gets = outcome.gets
    assert answer.status == gets.status, answer
    for name, beginning in gets.headers:
        wanted = beginning.replace("{provider}", stack.provider.issuer)
        values = answer.values(name)
        assert [value[: len(wanted)] for value in values] == [wanted] if wanted else values == [], answer
    assert gets.holds in answer.text or row.method == "HEAD", answer


def assert_sees(seen: list[Seen], row: Row, outcome: Outcome) -> None:
    sees = outcome.sees
    if sees is None:
        assert seen == []
        return
    (one,) = seen
    assert (one.method, normal(one.target)) == (row.method, normal(sees.target or row.target))
    assert one.body == row.body
    assert [[value for _, value in one.like(name)] for name in IDENTITY] == WHO[sees.identity]
    assert one.values("set-cookie") == []
    assert one.values("upgrade") in ([], ["websocket"])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_contract(world: World, row: Row, marker: str) -> None:
    outcome = row.outcome_at(world.stack.kind)
    answer = asked(row, world, marker)
    assert_gets(answer, row, outcome, world.stack)
    assert_sees(world.stack.reached("slow" if row is SLOW else marker), row, outcome)
    for head in world.tap.heads_of_allows():
        assert b"set-cookie" not in head, "an allow that depends on the gateway to pass a cookie on"


def test_a_gateway_that_GATEWAY_does_not_name_lets_nobody_pass(
    world: World, marker: str, tmp_path: Path
) -> None:
    """Our own paths are open, and an endpoint that was not chosen is one of them no more than any other."""
    settings = {**world.stack.service.settings}
    settings["GATEWAY"] = "nginx" if world.stack.kind == "envoy" else "envoy"
    settings.update(SERVER_PORT=str(free_port()), WEB_SERVER_PORT=str(free_port()))
    other = RunningService(tmp_path, settings)
    world.late()  # which would be cut short
    world.tap.down()
    try:
        other.start()
        world.tap.service_port = other.judge_port
        world.tap.up()
        for target in ("/page", "/authservices/x", "/public"):
            for headers in (contract_table.PAGE, contract_table.SCRIPT):
                answer = world.stack.request("GET", target, [("X-Marker", marker), *headers])
                assert answer.status in (302, 401, 403), answer
    finally:
        world.tap.down()
        other.program.kill_with_children()
        world.tap.service_port = world.stack.service.judge_port
        world.tap.up()
    assert world.stack.reached(marker) == []
