"""The contract table behind what results from the files for gateways in Kubernetes: the same rows as for
the gateways that run here, and by gateway what its page says is otherwise."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace

import pytest

from tests.contract_table import (
    BAD,
    CHALLENGED,
    FORBIDDEN,
    ROWS,
    TO_THE_LOGIN,
    UNAVAILABLE,
    Gets,
    Outcome,
    Row,
    Service,
)
from tests.e2e import stack as stacks
from tests.e2e.conftest import SHARED
from tests.e2e.tap import Tap
from tests.e2e.test_contract import (
    SLOW,
    SWITCHING,
    World,
    asked,
    assert_gets,
    assert_sees,
)
from tests.e2e.wire import Answer
from tests.programs import require
from tests.resulting_envoy import DEPLOY, Places
from tests.test_deploy_resulting import ALL, ENVOYS, start

pytestmark = [
    pytest.mark.external,
    pytest.mark.slow,
    pytest.mark.xdist_group("resulting-contract"),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are watched through /proc"),
]

SIGN_IN = Gets(302, "302 to the login on the site", (("Location", "http://app.localhost:"),))
PAGE_OF_NGINX = Gets(403, "403, nginx's own page", (("Set-Cookie", ""),))
DOWN_IS_REFUSED = {"service down": Outcome(replace(UNAVAILABLE, status=403))}

OTHERWISE: Mapping[str, Mapping[str, Outcome | None]] = {
    "gateway-api": DOWN_IS_REFUSED,
    "envoy-gateway": DOWN_IS_REFUSED,
    "ingress-nginx": {
        "service down": Outcome(replace(UNAVAILABLE, status=500)),
        # Passed on to the application, as everything that asks for an upgrade.
        "upgrade to h2c": None,
        # Addresses with an "&" need the controller's own module for escaping.
        "login from a deep link": None,
        "after a logout": None,
    },
}
"""What is otherwise, by gateway and row; ``None`` where the row cannot be asked."""


def outcome_at(kind: str, row: Row) -> Outcome | None:
    told = OTHERWISE.get(kind, {})
    if row.name in told:
        return told[row.name]
    if kind == "envoy-gateway" and any("_" in name for name, _ in row.headers):
        return Outcome(Gets(400, "400: a header's name has an underscore"))
    if kind == "envoy-gateway" and "%2F" in row.target.partition("?")[0]:
        # A login from there comes back to the address that this leads to.
        return None if row.before else Outcome(Gets(307, "redirected to the path with a plain slash"))
    if kind == "ingress-nginx":
        usual = row.outcome
        if usual.gets in (TO_THE_LOGIN, CHALLENGED, BAD):
            return Outcome(SIGN_IN)
        return Outcome(PAGE_OF_NGINX) if usual.gets == FORBIDDEN else usual
    return row.outcome_at("envoy" if kind in ENVOYS else "traefik")


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Everything behind the gateways, which take turns on one port, and people who are logged in already."""
    for program in ("envoy", "nginx", "traefik"):
        require(program)
    settings = {**SHARED, "GATEWAY": "envoy,nginx,traefik", "WEB_CONCURRENCY": "1"}
    with ExitStack() as ending:
        folder = tmp_path_factory.mktemp("resulting-contract")
        stack = stacks.prepare("envoy", folder, settings, claims_in_userinfo_only=False)
        ending.callback(stack.stop)
        stack.provider.start()
        stack.service.start()
        tap = Tap(stack.service.judge_port, SLOW.target.encode())
        ending.callback(tap.stop)
        plain = stack.application.answer
        stack.application.answer = lambda seen: SWITCHING if seen.values("upgrade") else plain(seen)
        nobody_waits: Future[Answer] = Future()
        nobody_waits.set_result(Answer(0, (), b""))
        yield World(stack, tap, nobody_waits)


@pytest.fixture(scope="module", params=ALL)
def world(request: pytest.FixtureRequest, behind: World) -> Iterator[World]:
    """The same behind each gateway in turn."""
    stack = behind.stack
    places = Places(stack.port, behind.tap.port, stack.service.site_port, stack.application.port, stack.host)
    gateway = start(request.param, stack.folder / request.param, places)
    try:
        yield replace(behind, stack=replace(stack, kind=request.param))
    finally:
        gateway.kill_with_children()


ASKED = [row for row in ROWS if row.service is not Service.SLOW]


@pytest.mark.parametrize("row", ASKED, ids=lambda row: row.name)
def test_contract(world: World, row: Row) -> None:
    outcome = outcome_at(world.stack.kind, row)
    if outcome is None:
        return
    marker = uuid.uuid4().hex
    answer = asked(row, world, marker)
    assert_gets(answer, row, outcome, world.stack)
    assert_sees(world.stack.reached(marker), row, outcome)
    for head in world.tap.heads_of_allows():
        assert b"set-cookie" not in head, "an allow that depends on the gateway to pass a cookie on"


SAID: Mapping[str, tuple[str, ...]] = {
    "envoy-gateway": ("| service down | 403", "| encoded slashes |", "| header names with underscores |"),
    "ingress-nginx": (
        "| a page for a person, a 401 for a program |",
        "| the page that says «not allowed» |",
        "| service down | 500",
        "| an upgrade to h2c |",
    ),
}


@pytest.mark.parametrize("page", SAID)
def test_the_pages_say_what_is_otherwise(page: str) -> None:
    text = (DEPLOY.parent / "docs" / "gateways" / f"{page}.md").read_text()
    assert [row for row in SAID[page] if row not in text] == []


def test_every_row_that_is_otherwise_is_one_of_the_table() -> None:
    named = {name for rows in OTHERWISE.values() for name in rows}
    assert named <= {row.name for row in ASKED}
    assert set(OTHERWISE) <= set(ALL)
