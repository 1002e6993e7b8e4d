"""What a gateway does not send is noticed, said once, counted, and never on suspicion alone."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from authservice.check import CheckRequest
from authservice.doctor import State, running
from authservice.ops import Counts, Metric, Sent
from authservice.sessions.seal import Keyring
from authservice.settings import load
from authservice.urls import canonical_path
from authservice.wiring import NAMES, SIGNS, WITHOUT, Wiring, lines, marked_path
from tests.conftest import Browser, ask
from tests.ports import free_port
from tests.served import LIMIT, exchange, request, serving
from tests.waiting import until

CHROME = {"user-agent": "Mozilla/5.0 (X11; Linux x86_64)", "sec-fetch-mode": "navigate"}
ALL = (Sent.COOKIE, Sent.ACCEPT, Sent.AUTHORIZATION)


class Seen:
    """One `Wiring`, checks for it, and what it said."""

    def __init__(self, caplog: pytest.LogCaptureFixture, *, wants_scheme: bool = False) -> None:
        self.now = datetime.now(timezone.utc)
        self.keyring = Keyring([b"a key of this test, long enough"])
        self.counts = Counts()
        self._caplog = caplog
        self.wiring = Wiring(
            ["envoy"],
            "/authservice",
            sealer=self.keyring,
            session_cookie="authservice_session",
            wants_scheme=wants_scheme,
            now=lambda: self.now,
            counts=self.counts,
        )

    def check(
        self, headers: dict[str, str], *, times: int = 1, target: str = "/x", scheme: str | None = None
    ) -> None:
        for _ in range(times):
            path = canonical_path(target)
            self.wiring.look(CheckRequest("GET", scheme, "app.example", target, path, headers, None, "envoy"))

    @property
    def told(self) -> list[str]:
        return [
            str(vars(record)["what"].value)
            for record in self._caplog.records
            if record.getMessage() == "gateway_lacks"
        ]

    @property
    def counted(self) -> list[str]:
        counted = self.counts.counters()
        return [sent.value for sent in Sent if counted[Metric.GATEWAY_LACKS.one(sent.value)]]


@pytest.fixture
def seen(caplog: pytest.LogCaptureFixture) -> Seen:
    caplog.set_level(logging.INFO, "authservice")
    logging.getLogger("authservice").propagate = True
    return Seen(caplog)


def test_a_gateway_that_sends_everything_is_never_mentioned(seen: Seen) -> None:
    seen.wiring.logged_in(3)
    seen.check({**CHROME, "cookie": "a=1", "accept": "text/html", "authorization": "Bearer x"}, times=9)
    seen.check(CHROME, times=9)
    assert (seen.told, seen.counted) == ([], [])


def test_no_cookie_after_logins_in_a_row(seen: Seen) -> None:
    seen.wiring.logged_in(0)
    seen.check({**CHROME, "accept": "*/*"}, times=9)
    assert seen.told == [], "people who log in for the first time bring none"
    seen.wiring.logged_in(1)
    seen.check({**CHROME, "accept": "*/*"}, times=SIGNS - 1)
    assert seen.told == []
    seen.check({**CHROME, "accept": "*/*"}, times=9)
    assert (seen.told, seen.counted) == (["cookie"], ["cookie"]), "said once"


def test_one_cookie_is_enough_to_know_that_they_come(seen: Seen) -> None:
    seen.check({"cookie": "theme=dark"})
    seen.wiring.logged_in(4)
    seen.check({**CHROME, "accept": "*/*"}, times=9)
    assert seen.told == []


def test_no_accept_of_browsers(seen: Seen) -> None:
    seen.check({"user-agent": "Go-http-client/1.1"}, times=9)
    assert seen.told == [], "programs may leave it out"
    seen.check(CHROME, times=SIGNS)
    assert seen.told == ["accept"]


def test_scanners_that_call_themselves_browsers_are_no_sign(seen: Seen) -> None:
    """Nobody is there yet, and what comes from the internet sends no Accept."""
    seen.check({"user-agent": "Mozilla/5.0 (compatible; Scanner/1.0)"}, times=9)
    assert seen.told == []
    seen.wiring.logged_in(0)
    seen.check({"user-agent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0"}, times=SIGNS)
    assert seen.told == ["accept"]


def test_programs_that_keep_cookies_may_leave_accept_out(seen: Seen) -> None:
    session = {"cookie": "authservice_session=x"}
    seen.check({"user-agent": "Go-http-client/1.1", **session}, times=9)
    assert seen.told == []
    seen.check(session, times=SIGNS)
    assert seen.told == ["accept"]


def test_no_accept_where_next_to_nothing_comes(seen: Seen) -> None:
    seen.check({}, times=9)
    assert seen.told == []
    seen.wiring.logged_in(0)
    seen.check({}, times=SIGNS)
    assert seen.told == ["accept"]


@pytest.mark.parametrize("headers", [
    {"cookie": "authservice_session=x"},
    {"cookie": "authservice_session=x", "accept": "*/*", "x-forwarded-proto": "https"},
])  # fmt: skip
def test_what_came_or_was_told_is_not_looked_for_any_more(
    caplog: pytest.LogCaptureFixture, seen: Seen, headers: dict[str, str]
) -> None:
    """Every check pays for what is looked for in it."""
    looked: list[str] = []

    class Watched(dict[str, str]):
        def __contains__(self, name: object) -> bool:
            looked.append(str(name))
            return super().__contains__(name)

        def get(self, name: str, default: Any = None) -> Any:
            looked.append(name)
            return super().get(name, default)

    seen = Seen(caplog, wants_scheme=True)
    seen.check(Watched(headers), times=SIGNS)
    assert {"cookie", "accept", "x-forwarded-proto"} <= set(looked)
    looked.clear()
    seen.check(Watched(headers))
    assert looked == []


def test_no_scheme_where_nothing_else_tells_it(caplog: pytest.LogCaptureFixture, seen: Seen) -> None:
    seen.check({}, times=9)
    assert seen.told == []
    wanting = Seen(caplog, wants_scheme=True)
    wanting.check({}, times=SIGNS)
    assert wanting.told == ["x_forwarded_proto"]


def test_a_probe_that_passes_no_gateway_is_no_sign(caplog: pytest.LogCaptureFixture, seen: Seen) -> None:
    wanting = Seen(caplog, wants_scheme=True)
    for probe in ("kube-probe/1.34", "curl/8.14.1", "ELB-HealthChecker/2.0"):
        wanting.check({"user-agent": probe, "accept": "*/*"}, times=9)
    assert wanting.told == []
    wanting.check(CHROME, times=SIGNS)
    assert wanting.told == ["x_forwarded_proto"]


def test_a_scheme_that_came_and_is_not_believed_was_sent(
    caplog: pytest.LogCaptureFixture, seen: Seen
) -> None:
    wanting = Seen(caplog, wants_scheme=True)
    wanting.check({"x-forwarded-proto": "https"})
    wanting.check({}, times=9)
    assert wanting.told == []


def test_nothing_that_tells_the_original_address(seen: Seen) -> None:
    for _ in range(SIGNS):
        seen.wiring.not_understood()
    assert seen.told == ["original_url"]


def test_whoever_asks_wrongly_beside_a_good_gateway_is_no_sign(seen: Seen) -> None:
    seen.check({})
    for _ in range(9):
        seen.wiring.not_understood()
    assert seen.told == []


class TestTheDoctorsOwnRequests:
    def test_what_was_sent_and_did_not_come_is_known_at_once(self, seen: Seen) -> None:
        target = marked_path(seen.keyring, ALL, seen.now) + "/page?page=2"
        seen.check({"cookie": "a=1", "accept": "*/*"}, target=target)
        assert (seen.told, seen.counted) == (["authorization"], ["authorization"])

    def test_what_was_not_sent_is_not_missed(self, seen: Seen) -> None:
        seen.check({"accept": "*/*"}, target=marked_path(seen.keyring, [Sent.ACCEPT], seen.now))
        assert seen.told == []

    def test_nobody_else_can_make_one(self, seen: Seen) -> None:
        foreign = Keyring([b"another key, which is long enough, too"])
        for target in (marked_path(foreign, ALL, seen.now), "/authservice-doctor-x", "/authservice-doctor-"):
            seen.check({}, target=target)
        assert seen.told == []

    def test_an_old_one_is_worth_nothing(self, seen: Seen) -> None:
        target = marked_path(seen.keyring, ALL, seen.now)
        seen.now += timedelta(minutes=2)
        seen.check({}, target=target)
        assert seen.told == []


def test_every_gateway_has_a_line_for_everything() -> None:
    for gateway in ("envoy", "nginx", "traefik", "caddy"):
        for sent in Sent:
            assert lines(sent, [gateway]), (gateway, sent)
        # None of them tells a check what a proxy in front of it knows, unless it is set up to.
        assert "AUTHSERVICE_URL_PREFIX" in lines(Sent.SCHEME, [gateway])
    assert set(NAMES) == set(WITHOUT) == set(Sent)
    assert "/sso/forward-auth" in lines(Sent.ORIGINAL_URL, ["traefik"], "/sso")
    both = lines(Sent.COOKIE, ["envoy", "nginx"])
    assert "{exact: cookie, ignore_case: true}" in both and "nginx: " in both


def test_the_lines_are_those_of_the_shipped_files() -> None:
    """What somebody looks for in them stands there, by the same names."""
    deploy = Path(__file__).parent.parent / "deploy"

    def shipped(*names: str) -> str:
        return "\n".join((deploy / name).read_text() for name in names)

    nginx = shipped("nginx/authservice.conf")
    said = " ".join(lines(sent, ["nginx"]) for sent in Sent)
    for setting in re.findall(r"`(proxy_set_header [^`.]+;)`", said):
        assert nginx.count(setting) >= 3, setting
    for place in set(re.findall(r"@\w+", said)):
        assert f"location {place} {{" in nginx, place
    envoys = {
        "envoy/envoy.yaml": "allowed_headers",
        "istio/mesh-config.yaml": "includeRequestHeadersInCheck",
        "envoy-gateway/authservice.yaml": "headersToExtAuth",
        "gateway-api/authservice.yaml": "allowedHeaders",
        "ambassador/authservice.yaml": "allowed_request_headers",
    }
    for file, name in envoys.items():
        assert f"{name}:" in shipped(file) and f"`{name}" in lines(Sent.ACCEPT, ["envoy"]), name
    for sent in (Sent.COOKIE, Sent.ACCEPT, Sent.SCHEME):
        (pattern,) = re.findall(r"`- ({exact[^`]*})`", lines(sent, ["envoy"]))
        assert f"- {pattern}" in shipped("envoy/envoy.yaml"), pattern


class TestInTheService:
    def test_the_doctor_is_told_by_the_running_service(self, environ: dict[str, str], tmp_path: Path) -> None:
        """All its workers, by the numbers that they share."""
        sealer = Keyring([environ["CLIENT_SECRET"].encode()])
        with serving(environ, tmp_path) as served:
            asked = load({**environ, "READINESS_PROBE_PORT": str(served.probe)})
            assert [one.state for one in running.examine(asked)] == [State.OK]
            path = marked_path(sealer, [Sent.ACCEPT], datetime.now(timezone.utc))
            (answer,) = exchange(served.judge, request(path, close=True))
            assert answer.status in (302, 503)

            remedies: list[str] = []

            def noticed() -> bool:
                remedies[:] = [one.remedy for one in running.examine(asked) if one.state is State.WARNING]
                return bool(remedies)

            until(noticed, LIMIT)
            (remedy,) = remedies
            assert "{exact: accept, ignore_case: true}" in remedy
            assert served.log.read_text().count('"gateway_lacks"') == 1

    def test_this_machine_is_asked_past_the_proxy(
        self, environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with serving(environ, tmp_path) as served:
            asked = load({**environ, "READINESS_PROBE_PORT": str(served.probe)})
            monkeypatch.delenv("NO_PROXY", raising=False)
            monkeypatch.delenv("no_proxy", raising=False)
            monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
            assert [one.state for one in running.examine(asked)] == [State.OK]

    def test_without_a_port_to_ask_the_doctor_looks_no_further(self, environ: dict[str, str]) -> None:
        for settings in (environ, {**environ, "READINESS_PROBE_PORT": str(free_port())}):
            assert [one.state for one in running.examine(load(settings))] == [State.SKIPPED]

    def test_a_login_that_goes_round_in_circles_says_why(
        self,
        make_app: Callable[..., Flask],
        make_browser: Callable[..., Browser],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """As behind Envoy without `allowed_headers`: no check brings a cookie, the callback does."""
        app = make_app()
        logging.getLogger("authservice").propagate = True
        browser = make_browser(app)
        for _ in range(SIGNS + 1):
            sent = ask(app, "GET", "/page", port=Browser.JUDGE, headers={"Host": "app.example"})
            browser._keep(sent)
            assert browser.get(browser.at_provider(sent), port=Browser.SITE).status == 302
        told = [record for record in caplog.records if record.getMessage() == "gateway_lacks"]
        assert {vars(record)["what"] for record in told} >= {Sent.COOKIE, Sent.ACCEPT}
        (line,) = (record for record in told if vars(record)["what"] is Sent.COOKIE)
        assert "{exact: cookie, ignore_case: true}" in vars(line)["remedy"]

    def test_a_forward_auth_without_its_headers_says_which(
        self, make_app: Callable[..., Flask], caplog: pytest.LogCaptureFixture
    ) -> None:
        app = make_app(GATEWAY="traefik")
        logging.getLogger("authservice").propagate = True
        for _ in range(SIGNS):
            answer = ask(app, "GET", "/authservice/forward-auth", port=Browser.JUDGE)
            assert answer.status == 403
        told = [record for record in caplog.records if record.getMessage() == "gateway_lacks"]
        assert [vars(record)["what"] for record in told] == [Sent.ORIGINAL_URL]

    def test_answers_do_not_depend_on_it(self, browser: Browser) -> None:
        first = browser.get("/page", Sec_Fetch_Mode="navigate")
        for _ in range(2 * SIGNS):
            assert browser.get("/page", Sec_Fetch_Mode="navigate").status == first.status == 302
