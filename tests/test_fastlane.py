"""The fast lane: the same answers as the full path where nothing is waited for, and else none."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from authservice.check import NeedsIO, Reach, Reply, RequestParts
from authservice.errors import AuthServiceError
from authservice.fastlane import Answer, FastLane
from authservice.gateways import Place
from authservice.logs import JsonLines
from authservice.sessions.seal import new_secret
from tests.conftest import Browser, ask

CHROME = {
    "user-agent": "Mozilla/5.0 (X11; Linux x86_64)",
    "accept": "text/html,application/xhtml+xml",
    "sec-fetch-mode": "navigate",
}


def parts(target: str | None = "/", method: str = "GET", **headers: str) -> RequestParts:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return RequestParts(method, target, {"host": "app.example", **named}, "127.0.0.1")


def lane_of(browser: Browser) -> FastLane:
    return FastLane(browser.app.extensions["authservice"].judge)


def lines(answer: Answer) -> list[tuple[str, str]]:
    pairs = [line.partition(b": ") for line in answer.head.split(b"\r\n")[:-1]]
    return [(name.decode(), value.decode("latin-1")) for name, _, value in pairs]


def saying(reply: Reply | Exception) -> FastLane:
    """A lane in front of a judge that has one answer for everything."""

    def answer(parts: RequestParts, reach: Reach, place: Place) -> Reply:
        assert reach is Reach.MEMORY
        if isinstance(reply, Exception):
            raise reply
        return reply

    judge: Any = SimpleNamespace(answer=answer, gateways=SimpleNamespace(place=lambda target: Place(None, None)))
    return FastLane(judge)


class TestTheSameAnswer:
    """One by one; that it is so for whatever is asked is `test_two_lanes`' work."""

    QUESTIONS = [
        ("GET", "/notebooks/7?x=1", {}),
        ("HEAD", "/", {}),
        ("BREW", "/a%2Fb", {}),
        ("GET", "/open/x", {}),
        ("POST", "/", {"Cookie": ""}),
        ("OPTIONS", "*", {"Cookie": ""}),
        ("GET", "/", {"Cookie": "", "X-Requested-With": "x"}),
    ]

    @pytest.mark.parametrize("method,target,headers", QUESTIONS)
    @pytest.mark.parametrize("gateway", ["envoy", "envoy,nginx"])
    def test_in_status_headers_and_body(
        self, make_browser: Callable[..., Browser], gateway: str, method: str, target: str, headers: dict[str, str]
    ) -> None:
        browser = make_browser(SKIP_AUTH_URLS="/open", GATEWAY=gateway)
        browser.log_in()
        sent = {"Host": "app.example", "Cookie": f"authservice_session={browser.session}", **headers}
        full = ask(browser.app, method, target, port=8080, headers=sent)
        quick = lane_of(browser).ask(parts(target, method, **{name.lower(): value for name, value in sent.items()}))
        assert quick is not None
        assert quick.status == full.status
        assert lines(quick) == [(name.lower(), value) for name, value in full.headers]
        assert full.body in (quick.body, b"") and (full.body == quick.body or method == "HEAD")

    def test_a_verdict_without_a_body_has_no_length_either(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(GATEWAY="nginx", SKIP_AUTH_URLS="/open")
        quick = lane_of(browser).ask(parts("/authservice/verify/open"))
        full = ask(browser.app, "GET", "/authservice/verify/open", port=8080)
        assert quick is not None and quick.status == full.status == 204
        assert "content-length" not in dict(lines(quick)) and full.header("Content-Length") is None

    def test_a_login_is_begun_and_a_refusal_shown_without_waiting(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(GROUPS_ALLOWLIST="others")
        until_known = browser.get("/")
        assert until_known.status == 302
        begun = lane_of(browser).ask(parts(**CHROME))
        assert begun is not None and begun.status == 302
        assert dict(lines(begun))["location"].startswith(browser.provider.issuer)
        browser.jar.clear()
        browser.log_in()
        assert browser.get("/").status == 403
        denied = lane_of(browser).ask(parts(cookie=f"authservice_session={browser.session}", **CHROME))
        assert denied is not None and denied.status == 403 and b"others" in denied.body

    def test_an_identitys_answer_is_made_once(self, browser: Browser) -> None:
        browser.log_in()
        browser.get("/")
        asked = parts(cookie=f"authservice_session={browser.session}")
        judge = browser.app.extensions["authservice"].judge
        assert judge.answer(asked) is judge.answer(parts("/other", "POST", **asked.headers))
        assert judge.answer(asked).written is FastLane(judge).ask(asked)


class TestNoAnswer:
    @pytest.mark.parametrize("target", [
        "/authservice/oidc/callback?code=1", "/authservice/login", "/authservice/logout", "/authservice/log%6fut",
    ])
    def test_at_a_door(self, browser: Browser, target: str) -> None:
        browser.log_in()
        assert lane_of(browser).ask(parts(target, cookie=f"authservice_session={browser.session}")) is None

    def test_for_what_would_have_to_wait(self, browser: Browser) -> None:
        unknown = parts(cookie=f"authservice_session={new_secret()}")
        assert lane_of(browser).ask(unknown) is None
        assert saying(NeedsIO()).ask(parts()) is None

    @pytest.mark.parametrize("error", [RuntimeError("a fault"), AuthServiceError("a fault"), RecursionError()])
    def test_for_the_unexpected(self, error: Exception) -> None:
        assert saying(error).ask(parts()) is None

    @pytest.mark.parametrize("name,value", [
        ("X-A", "1\r\nX-B: 2"), ("X-A", "1\nX-B: 2"), ("X-A", "1\rX-B: 2"), ("X-A", "1\x00"), ("X-A", "1\x7f"),
        ("X-A", "\u010a"),
        ("X-A\r\nX-B", "1"), ("X-A: 1\r\nX-B", "2"), ("X A", "1"), ("", "1"), ("X-\u00c4", "1"),
    ])
    def test_with_a_header_that_could_be_read_as_two(self, name: str, value: str) -> None:
        assert saying(Reply(200, ((name, value),))).ask(parts()) is None


class TestTheBytes:
    def test_names_in_lower_case_and_the_length_behind(self) -> None:
        reply = Reply(403, (("X-Name", "Value, ä"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")), b"four")
        head = "x-name: Value, ä\r\nset-cookie: a=1\r\nset-cookie: b=2\r\ncontent-length: 4\r\n"
        assert saying(reply).ask(parts()) == Answer(403, head.encode("latin-1"), b"four")

    def test_nothing_at_all(self) -> None:
        assert saying(Reply(204)).ask(parts()) == Answer(204, b"", b"")


class TestTheLog:
    @pytest.fixture
    def told(self) -> Iterator[Callable[[], list[dict[str, Any]]]]:
        found: list[str] = []
        handler = logging.Handler()
        handler.setFormatter(JsonLines())
        handler.emit = lambda record: found.append(handler.format(record))  # type: ignore[method-assign]
        logger = logging.getLogger("authservice.judge")
        logger.addHandler(handler)

        def take() -> list[dict[str, Any]]:
            taken, found[:] = list(map(json.loads, found)), []
            return taken

        yield take
        logger.removeHandler(handler)

    def both(self, browser: Browser) -> None:
        cookie = f"authservice_session={browser.session}"
        judge = browser.app.extensions["authservice"].judge
        asked = parts("/a/b?secret=1", cookie=cookie, x_request_id="r-1")
        assert judge.answer(asked).status == 200
        quick = FastLane(judge).ask(asked)
        assert quick is not None and quick.status == 200

    def test_what_passes_leaves_no_line(
        self, browser: Browser, told: Callable[[], list[dict[str, Any]]]
    ) -> None:
        browser.log_in()
        told()
        self.both(browser)
        assert told() == []

    def test_unless_it_is_asked_for_then_one_alike_in_both_lanes(
        self, make_browser: Callable[..., Browser], told: Callable[[], list[dict[str, Any]]]
    ) -> None:
        browser = make_browser(LOG_ALLOWED="true")
        browser.log_in()
        told()
        self.both(browser)
        full, quick = told()
        assert full.pop("time") and quick.pop("time")
        assert full == quick == {
            "level": "info", "logger": "authservice.judge", "event": "check_allowed", "request_id": "r-1",
            "method": "GET", "host": "app.example", "path": "/a/b", "client": "127.0.0.1", "dialect": "envoy",
            "auth_method": "cookie",
        }
