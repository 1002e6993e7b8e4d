"""The most important rows of the contract table as browsers ask: over TLS and HTTP/2, through each gateway
with its shipped configuration and the lines for a certificate that its page shows."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.contract_table import HTTP_2, ROWS, Row
from tests.e2e import gateways
from tests.e2e.test_contract import World, asked, assert_gets, assert_sees, start
from tests.e2e.wire import build, exchange

pytestmark = [pytest.mark.external, pytest.mark.slow]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, WEBSOCKETS = 4, 8
"""A type of frame (RFC 9113 §6.5), and what it offers with ``CONNECT`` (RFC 8441 §3)."""

EACH = [pytest.param(kind, marks=pytest.mark.xdist_group(f"secure-{kind}")) for kind in gateways.KINDS]
IN_HTTP_2 = [row for row in ROWS if row.name in HTTP_2]
IN_HTTP_1 = [row for row in ROWS if row.name.startswith("WebSocket")]


@pytest.fixture(scope="module", params=EACH)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as ending:
        yield start(request.param, tmp_path_factory.mktemp(f"secure-{request.param}"), ending, tls=True)


@pytest.mark.parametrize("row", IN_HTTP_2, ids=lambda row: row.name)
def test_over_http_2(world: World, row: Row, marker: str) -> None:
    outcome = row.outcome_at(world.stack.kind)
    answer = asked(row, world, marker)
    # Who is refused in the middle of a body may have to go without the answer, which HTTP/1.1 shows.
    if not (row.body and outcome.sees is None and answer.status == 0):
        assert_gets(answer, row, outcome, world.stack)
    assert_sees(world.stack.reached(marker), row, outcome)


@pytest.mark.parametrize("row", IN_HTTP_1, ids=lambda row: row.name)
def test_a_websocket_is_opened_with_the_http_1_beside_it(world: World, row: Row, marker: str) -> None:
    stack, outcome = world.stack, row.outcome_at(world.stack.kind)
    assert stack.tls is not None
    cookies = world.cookies(row.who) if outcome.sees else []
    headers = [("X-Marker", marker), *row.headers, *((("Cookie", "; ".join(cookies)),) if cookies else ())]
    name = stack.host.partition(":")[0]
    asking = build(row.method, row.target, stack.host, headers)
    answer = exchange(stack.port, asking, tls=(stack.tls.client, name))
    assert_gets(answer, row, outcome, stack)
    assert_sees(stack.reached(marker), row, outcome)


def test_http_2_itself_opens_none(world: World) -> None:
    """What opens a WebSocket there is a CONNECT: neither of these rows, nor a check, would be about it."""
    stack = world.stack
    assert stack.tls is not None
    client = stack.tls.client
    client.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", stack.port), timeout=20) as plain,
        client.wrap_socket(plain, server_hostname=stack.host.partition(":")[0]) as connection,
    ):
        assert connection.selected_alpn_protocol() == "h2"
        connection.sendall(PREFACE + frame(SETTINGS))
        received = connection.makefile("rb")
        length, kind = struct.unpack(">I", b"\0" + received.read(3))[0], received.read(1)[0]
        received.read(5)
        assert kind == SETTINGS
        offered = dict(struct.iter_unpack(">HI", received.read(length)))
    assert offered.get(WEBSOCKETS, 0) == 0


def frame(kind: int) -> bytes:
    """One without content, about the whole connection."""
    return b"\0\0\0" + struct.pack(">BBI", kind, 0, 0)


def test_every_row_is_one_of_the_table() -> None:
    assert len(IN_HTTP_2) == len(HTTP_2)
