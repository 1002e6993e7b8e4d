"""A table of raw requests, through the real worker and through gunicorn's own parser: the same verdict or a
stricter one, the same requests in the same places, and nothing else on the connection.

Whoever reads one byte differently from the gateway in front could be made to answer somebody else's request.
"""

from __future__ import annotations

import base64
import json
import runpy
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http import RequestParser
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.http.wsgi import create as gunicorns_environ

from authservice.incoming import Incoming
from authservice.judge import parts_of
from tests.echo_app import HEARD, SEEN, of_environ, of_parts
from tests.raw_requests import RawRequest, read_all
from tests.served import LIMIT, Got, Served, exchange, read_answers, received, request, serving
from tests.waiting import until

# Real processes; and one server for all rows, wherever the tests are shared out.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("smuggling")]

TABLE = read_all()
NEXT = request("/next", "X-Next: yes", close=True)
"""What follows each row on its connection. Whether it is answered, and as what, shows where the row ended."""

_ABSOLUTE = "RFC 9112 §3.2.2, RFC 9110 §4.2: no address without a host, with a user or with such a port"
_CONNECT = "RFC 9112 §3.2.3, RFC 9110 §9.3.6: host and port, and no content"
_BAD_HOST = "RFC 9112 §3.2: a Host that is no host must be refused; gunicorn leaves that to applications"
_HOST = "RFC 9112 §3.2: a request without Host must be refused; gunicorn leaves that to applications"
_VERSION = "a minor version that does not exist is nobody's; gunicorn takes any"
_CUT = "gunicorn hands on what came of a body that never becomes complete; here the application is not asked"
_LENGTH = "more than any check's body may have is refused before it is sent; gunicorn has no limit"
_CODING = "nobody compresses a check; what the application cannot read is not handed to it"
_SUM = "all fields of a request are limited together; gunicorn limits each, and counts no dropped ones"
STRICTER = {
    "target-absolute-user": _ABSOLUTE,
    "target-absolute-without-host": _ABSOLUTE,
    "target-absolute-without-scheme": _ABSOLUTE,
    "target-absolute-port-not-a-number": _ABSOLUTE,
    "target-absolute-other-scheme": _ABSOLUTE,
    "connect-with-path": _CONNECT,
    "connect-without-port": _CONNECT,
    "connect-with-body": _CONNECT,
    "connect-with-chunks": _CONNECT,
    "host-list": _BAD_HOST,
    "host-blank-inside": _BAD_HOST,
    "host-path": _BAD_HOST,
    "host-user": _BAD_HOST,
    "host-query": _BAD_HOST,
    "host-fragment": _BAD_HOST,
    "host-address": _BAD_HOST,
    "host-backslash": _BAD_HOST,
    "host-high-byte": _BAD_HOST,
    "host-markup": _BAD_HOST,
    "host-port-not-a-number": _BAD_HOST,
    "host-missing": _HOST,
    "host-missing-no-fields": _HOST,
    "host-missing-with-absolute-target": _HOST,
    "pair-second-without-host": _HOST,
    "version-1-2": _VERSION,
    "version-1-9": _VERSION,
    "length-too-large": _CUT,
    "length-huge": _LENGTH,
    "length-largest-signed": _LENGTH,
    "length-largest-unsigned": _LENGTH,
    "length-overflow-to-zero": _LENGTH,
    "length-overflow-to-five": _LENGTH,
    "length-thousand-digits": _LENGTH,
    "chunks-tab-behind-coding": "llhttp takes the tab for a part of the coding's name, and nobody sends one",
    "coding-gzip-chunked": _CODING,
    "coding-gzip-chunked-two-lines": _CODING,
    "coding-identity-chunked": _CODING,
    "chunk-extension-endless": "an extension means nothing to us, so a long one is only a burden",
    "limit-fields-dropped": _SUM,
    "limit-fields-together": _SUM,
}
"""Where we refuse what gunicorn takes, and why."""


def settings(folder: Path) -> dict[str, str]:
    """Enough for a start; nobody is asked to log in."""
    return {"OIDC_PROVIDER": "http://127.0.0.1:1/", "CLIENT_ID": "authservice", "CLIENT_SECRET": "x" * 32,
            "AUTHSERVICE_URL_PREFIX": "/authservice/", "SESSION_STORE_PATH": str(folder / "data.db"),
            "WEB_CONCURRENCY": "1", "WORKER_CLASS": "fast"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("echo")
    with serving(settings(folder), folder, app="tests.echo_app:make()") as started:
        pids = started.workers()
        everything_heard(started)
        yield started
        assert started.workers() == pids, started.log.read_text()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """gunicorn's configuration as our file makes it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings(tmp_path_factory.mktemp("config")).items():
            patch.setenv(name, value)
        ours = runpy.run_module("authservice.gunicorn_conf")
    made = Config()
    for name in made.settings.keys() & ours.keys():
        made.set(name, ours[name])
    return made


class Silent:
    """Where gunicorn would write its interim answers."""

    def send(self, data: bytes) -> None:
        assert data.startswith(b"HTTP/1.1 100 ")


def gunicorns_reading(data: bytes, config: Config, port: int) -> list[dict[str, Any]]:
    """The requests that gunicorn's parser takes out of a connection, as its application would see them."""
    seen = []
    here = ("127.0.0.1", port)
    parser = RequestParser(config, iter([data]), ("127.0.0.1", 1))
    try:
        for message in parser:
            body = message.body.read()
            seen.append(of_environ(gunicorns_environ(message, Silent(), ("127.0.0.1", 1), here, config)[1], body))
    except (ParseException, NoMoreData, StopIteration):
        pass
    return seen


def heard_in(got: Got) -> dict[str, Any] | None:
    told = got.headers.get(HEARD)
    return json.loads(base64.b64decode(told)) if told else None


def was_head(got: Got) -> bool:
    heard = heard_in(got) or {}
    return "HEAD" in (heard.get("method"), heard.get("REQUEST_METHOD"))


def as_heard(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """What gunicorn's application saw, in the form in which the lane that answered us tells it."""
    return theirs if ours["lane"] == "full" else of_parts(parts_of(theirs))


def everything_heard(served: Served) -> list[dict[str, Any]]:
    """What reached either lane since this was asked last, answered or not."""

    def told() -> dict[str, Any] | None:
        answer = json.loads(exchange(served.site, request(SEEN, close=True))[0].body)
        return None if answer["running"] else answer

    return until(told)["heard"]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_raw_request_gets_the_verdict_of_gunicorns_parser_or_a_stricter_one(
    row: RawRequest, served: Served, config: Config
) -> None:
    incomplete = row.verdict[-1] == "silence"
    data = row.data if incomplete else row.data + NEXT
    for port in (served.judge, served.site):
        theirs = gunicorns_reading(data, config, port)
        for step in (len(data), 1 if len(data) < 1000 else 1000):
            pieces = [data[start:start + step] for start in range(0, len(data), step)]
            answers = exchange(port, pieces, end=incomplete, bodiless=was_head)
            compare(row, answers, theirs, everything_heard(served))


def compare(
    row: RawRequest, answers: list[Got], theirs: list[dict[str, Any]], heard: list[dict[str, Any]]
) -> None:
    """Holds what was answered and what was heard against gunicorn's reading and the row's verdict."""
    ours = [told for answer in answers if (told := heard_in(answer))]
    assert ours == [as_heard(*both) for both in zip(theirs, ours, strict=False)], "another request than gunicorn's"
    assert heard == ours, "heard more or less than was answered, or in another order"

    words = [word for word in row.verdict if word not in ("close", "silence")] + ["ok"] * row.goes_on
    said = ["ok" if HEARD in answer.headers else str(answer.status) for answer in answers]
    assert len(said) == len(words) and all(one in word.split("|") for one, word in zip(said, words, strict=True)), said
    if row.verdict[-1] != "silence":
        assert answers[-1].headers["connection"] == "close"

    # An end of the connection that was announced with an answer takes nothing away from anybody.
    announced = bool(said) and said[-1] == "ok" and not row.goes_on
    stricter = len(ours) < len(theirs) and not announced
    assert stricter == (row.name in STRICTER), f"{len(theirs)} requests to gunicorn, {len(ours)} here"


def test_an_expected_body_is_asked_for_once_and_only_when_it_may_come(served: Served) -> None:
    for port in (served.judge, served.site):
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as connection:
            connection.sendall(request("/", "Expect: 100-continue", "Content-Length: 5", method="PUT", close=True))
            assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(b"abcde")
            (answer,) = read_answers(b"".join(received(connection)))
        assert answer.status == 200
        refused = exchange(port, request("/", "Expect: 100-continue", "Content-Length: 99999999999", method="PUT"))
        assert [answer.status for answer in refused] == [413]
    everything_heard(served)


def test_the_table_is_large_and_every_reason_belongs_to_a_row() -> None:
    assert len(TABLE) >= 150
    assert STRICTER.keys() <= {row.name for row in TABLE}


def test_a_request_that_comes_early_gets_nothing_of_the_one_before_it() -> None:
    """Gateways send the next person's request as soon as they have the answer: we may not have noticed yet."""

    def sent(who: bytes) -> bytes:
        return b"GET / HTTP/1.1\r\nCookie: who=%s\r\nHost: app.example\r\n\r\n" % who

    incoming = Incoming("127.0.0.1")
    incoming.feed(sent(b"ann"))
    assert incoming.next()
    alice = incoming.whole(sent(b"alice"))
    incoming.feed(sent(b"bob"))
    bob = incoming.next()
    assert alice and alice.headers == {"cookie": "who=alice", "host": "app.example"}
    assert bob and bob.headers == {"cookie": "who=bob", "host": "app.example"}
