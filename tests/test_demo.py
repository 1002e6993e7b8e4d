"""The demo: its provider keeps the protocol's rules, and its programs come and go together."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import pytest
from authservice_demo.application import create_app as create_application
from authservice_demo.ports import Ports, any_free, choose_ports
from authservice_demo.provider.app import create_app as create_provider
from authservice_demo.provider.records import Client
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from werkzeug.test import Client as Browser
from werkzeug.test import TestResponse

from tests.programs import require
from tests.waiting import until

ROOT = Path(__file__).parent.parent
ISSUER = "http://provider.test"
CALLBACK = "http://site.test/authservice/oidc/callback"
AFTER = "http://site.test/authservice/site/after_logout"
SECRET = "a secret of the demo's tests"
VERIFIER = "v" * 64
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).decode().rstrip("=")


class Provider:
    """The provider in this process, with one browser and the client's side of the protocol."""

    def __init__(self, backchannel: str = "") -> None:
        client = Client("demo", SECRET, (CALLBACK,), (AFTER,), backchannel)
        self.app = create_provider(ISSUER, client)
        self.browser = Browser(self.app)

    def address(self, **changes: str | None) -> str:
        asked: dict[str, str | None] = {
            "response_type": "code",
            "client_id": "demo",
            "redirect_uri": CALLBACK,
            "state": "s",
            "nonce": "n",
            "scope": "openid profile email groups",
            "code_challenge": CHALLENGE,
            "code_challenge_method": "S256",
        }
        return "/authorize?" + urlencode({key: value for key, value in (asked | changes).items() if value})

    def log_in(self, **form: str) -> dict[str, str]:
        """The callback's parameters."""
        return callback(self.browser.post(self.address(), data=form or {"person": "alice"}))

    def token(self, **form: str) -> TestResponse:
        return self.post("/token", **form)

    def post(self, path: str, **form: str) -> TestResponse:
        """The client's own request, with its secret."""
        return Browser(self.app).post(path, data=form, auth=("demo", SECRET))

    def redeem(self, code: str, verifier: str = VERIFIER) -> TestResponse:
        return self.token(
            grant_type="authorization_code", code=code, redirect_uri=CALLBACK, code_verifier=verifier
        )

    def tokens(self) -> dict[str, Any]:
        return self.redeem(self.log_in()["code"]).get_json()

    def refresh(self, refresh_token: str) -> TestResponse:
        return self.token(grant_type="refresh_token", refresh_token=refresh_token)

    def claims(self, token: str) -> dict[str, Any]:
        return self.read(token).claims

    def read(self, token: str) -> Any:
        keys = KeySet.import_key_set(self.browser.get("/jwks").get_json())
        return jwt.decode(token, keys, algorithms=["RS256"])

    def userinfo(self, access_token: str) -> TestResponse:
        return Browser(self.app).get("/userinfo", headers={"Authorization": f"Bearer {access_token}"})


def callback(answer: TestResponse) -> dict[str, str]:
    assert answer.status_code == 302, answer.get_data(as_text=True)
    location = answer.headers["Location"]
    assert location.startswith(CALLBACK + "?"), location
    return dict(parse_qsl(urlsplit(location).query))


@pytest.fixture
def provider() -> Provider:
    return Provider()


# --- the provider -------------------------------------------------------------------------------


def test_what_is_announced_is_there(provider: Provider) -> None:
    told = provider.browser.get("/.well-known/openid-configuration").get_json()
    assert told["issuer"] == ISSUER
    routes = {rule.rule for rule in provider.app.url_map.iter_rules()}
    endpoints = [value for key, value in told.items() if key.endswith(("_endpoint", "_uri"))]
    assert len(endpoints) == 7
    assert {urlsplit(address).path for address in endpoints} <= routes


def test_a_login_gives_tokens_and_claims(provider: Provider) -> None:
    back = provider.log_in()
    assert (back["state"], back["iss"]) == ("s", ISSUER)
    tokens = provider.redeem(back["code"]).get_json()
    token = provider.read(tokens["id_token"])
    assert (token.header["alg"], bool(token.header["kid"])) == ("RS256", True)
    claims = token.claims
    assert (claims["iss"], claims["aud"], claims["nonce"]) == (ISSUER, "demo", "n")
    assert (claims["email"], claims["groups"]) == ("alice@example.com", ["staff"])
    assert provider.userinfo(tokens["access_token"]).get_json()["sub"] == claims["sub"]
    known = provider.post("/introspection", token=tokens["access_token"]).get_json()
    assert (known["active"], known["sub"]) == (True, claims["sub"])


def test_scopes_open_claims(provider: Provider) -> None:
    sent = provider.browser.post(provider.address(scope="openid email"), data={"person": "alice"})
    claims = provider.claims(provider.redeem(callback(sent)["code"]).get_json()["id_token"])
    assert "email" in claims and "groups" not in claims and "name" not in claims


def test_the_password_form(provider: Provider) -> None:
    assert "code" in provider.log_in(login="Bob", password="bob")
    refused = provider.browser.post(provider.address(), data={"login": "alice", "password": "bob"})
    assert refused.status_code == 401
    assert "do not belong together" in refused.get_data(as_text=True)


def test_refusing_is_an_error_for_the_client(provider: Provider) -> None:
    back = provider.log_in(refuse="1")
    assert (back["error"], back["state"], back["iss"]) == ("access_denied", "s", ISSUER)


@pytest.mark.parametrize(
    "changes",
    [{"code_challenge": None, "code_challenge_method": None}, {"code_challenge_method": "plain"},
     {"code_challenge_method": None}],
)  # fmt: skip
def test_pkce_with_s256_is_required(provider: Provider, changes: dict[str, str | None]) -> None:
    back = callback(provider.browser.get(provider.address(**changes)))
    assert (back["error"], back["state"], back["iss"]) == ("invalid_request", "s", ISSUER)


def test_a_wrong_verifier_is_refused_and_spends_the_code(provider: Provider) -> None:
    code = provider.log_in()["code"]
    assert provider.redeem(code, "w" * 64).get_json()["error"] == "invalid_grant"
    assert provider.redeem(code).get_json()["error"] == "invalid_grant"


def test_a_code_works_once(provider: Provider) -> None:
    code = provider.log_in()["code"]
    assert provider.redeem(code).status_code == 200
    assert provider.redeem(code).get_json()["error"] == "invalid_grant"


def test_another_redirect_address_gets_no_redirect(provider: Provider) -> None:
    answer = provider.browser.get(provider.address(redirect_uri="http://evil.test/"))
    assert answer.status_code == 400
    assert "Location" not in answer.headers


def test_the_client_must_know_its_secret(provider: Provider) -> None:
    code = provider.log_in()["code"]
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK}
    form["code_verifier"] = VERIFIER
    answer = Browser(provider.app).post("/token", data=form, auth=("demo", "wrong"))
    assert (answer.status_code, answer.get_json()["error"]) == (401, "invalid_client")


def test_a_refresh_token_works_once_and_its_theft_ends_the_session(provider: Provider) -> None:
    first = provider.tokens()
    second = provider.refresh(first["refresh_token"]).get_json()
    assert second["refresh_token"] != first["refresh_token"]
    assert provider.claims(second["id_token"])["sub"] == provider.claims(first["id_token"])["sub"]
    assert provider.refresh(first["refresh_token"]).get_json()["error"] == "invalid_grant"
    assert provider.refresh(second["refresh_token"]).get_json()["error"] == "invalid_grant"
    assert provider.userinfo(second["access_token"]).status_code == 401


def test_a_revoked_token_is_worth_nothing(provider: Provider) -> None:
    tokens = provider.tokens()
    assert provider.post("/revocation", token=tokens["refresh_token"]).status_code == 200
    assert provider.userinfo(tokens["access_token"]).status_code == 401
    assert provider.post("/introspection", token=tokens["access_token"]).get_json() == {"active": False}
    assert provider.refresh(tokens["refresh_token"]).get_json()["error"] == "invalid_grant"


def test_rotating_the_key_keeps_the_previous_one_published(provider: Provider) -> None:
    old = provider.tokens()["id_token"]
    provider.browser.post("/rotate-keys")
    new = provider.tokens()["id_token"]
    assert provider.read(old).header["kid"] != provider.read(new).header["kid"]
    provider.browser.post("/rotate-keys")
    with pytest.raises(JoseError):
        provider.read(old)


def test_who_is_logged_in_need_not_say_it_again(provider: Provider) -> None:
    assert callback(provider.browser.get(provider.address(prompt="none")))["error"] == "login_required"
    provider.log_in()
    assert "code" in callback(provider.browser.get(provider.address(prompt="none")))
    assert "Continue as Alice" in provider.browser.get(provider.address()).get_data(as_text=True)
    assert "code" in provider.log_in(**{"continue": "1"})


def test_logging_out_at_the_provider(provider: Provider) -> None:
    """OpenID Connect RP-Initiated Logout 1.0: at once with a hint, after a click without."""
    tokens = provider.tokens()
    asked = {"id_token_hint": tokens["id_token"], "post_logout_redirect_uri": AFTER, "state": "x"}
    answer = provider.browser.get("/end_session", query_string=asked)
    assert answer.headers["Location"] == f"{AFTER}?state=x"
    assert provider.userinfo(tokens["access_token"]).status_code == 401
    again = provider.tokens()
    elsewhere = {"post_logout_redirect_uri": "http://evil.test/"}
    page = provider.browser.get("/end_session", query_string=elsewhere)
    assert page.status_code == 200
    assert provider.userinfo(again["access_token"]).status_code == 200
    provider.browser.post("/end_session")
    assert provider.userinfo(again["access_token"]).status_code == 401


def test_another_site_cannot_log_anybody_in(provider: Provider) -> None:
    answer = provider.browser.post(
        provider.address(), data={"person": "bob"}, headers={"Origin": "http://evil.test"}
    )
    assert answer.status_code == 403


@pytest.fixture
def told() -> Iterator[tuple[str, list[dict[str, list[str]]]]]:
    """An address for back-channel notices, and what was sent there."""
    notices: list[dict[str, list[str]]] = []

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            notices.append(parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Listener)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/backchannel", notices
    server.shutdown()
    thread.join()
    server.server_close()


def test_ending_a_session_tells_the_application(told: tuple[str, list[dict[str, list[str]]]]) -> None:
    """OpenID Connect Back-Channel Logout 1.0 §2.4: sub, sid, jti, events, and never a nonce."""
    address, notices = told
    provider = Provider(backchannel=address)
    claims = provider.claims(provider.tokens()["id_token"])
    page = provider.browser.post("/log-out-person", data={"sid": claims["sid"]}, follow_redirects=True)
    assert "answered 204" in page.get_data(as_text=True)
    token = provider.read(notices[0]["logout_token"][0])
    assert token.header["typ"] == "logout+jwt"
    assert token.claims["events"] == {"http://schemas.openid.net/event/backchannel-logout": {}}
    assert (token.claims["sid"], token.claims["sub"]) == (claims["sid"], claims["sub"])
    assert token.claims["jti"] and "nonce" not in token.claims


def test_an_application_that_cannot_be_told_is_said(provider: Provider) -> None:
    provider = Provider(backchannel=f"http://127.0.0.1:{any_free()}/")
    sid = provider.claims(provider.tokens()["id_token"])["sid"]
    page = provider.browser.post("/log-out-person", data={"sid": sid}, follow_redirects=True)
    assert "could not be told" in page.get_data(as_text=True)


# --- the application and the ports --------------------------------------------------------------


def test_the_application_shows_who_calls_and_escapes_it() -> None:
    browser = Browser(create_application(ISSUER))
    forged = {"kubeflow-userid": "<script>alert(1)</script>"}
    page = browser.get("/x?<b>", headers=forged).get_data(as_text=True)
    assert "&lt;script&gt;" in page and "<script>" not in page
    assert browser.get("/public/headers.json", headers={"X-Me": "you"}).get_json()[-1] == ["X-Me", "you"]


def test_taken_ports_are_replaced() -> None:
    usual = Ports()
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", usual.judge))
            taken.listen()
        except OSError:
            pass  # somebody else has it: as good
        assert choose_ports().judge != usual.judge


# --- all of it ----------------------------------------------------------------------------------

ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}/deploy/demo:{ROOT}"}


@pytest.mark.external
def test_demo_check_drives_everything_through_envoy() -> None:
    """A proxy or a setting in the environment does not change it."""
    require("envoy")
    done = subprocess.run(
        [sys.executable, "-m", "authservice_demo", "--check", "--free-ports"],
        capture_output=True, text=True, timeout=120,
        env={**ENVIRONMENT, "HTTP_PROXY": "http://127.0.0.1:9", "GROUPS_ALLOWLIST": "nobody"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything holds." in done.stdout
    assert "0 problems, 0 warnings" in done.stdout
    assert "WRONG" not in done.stdout
    assert len(re.findall(r"^  ok ", done.stdout, re.M)) >= 15


class Demo:
    """A demo that was started and says what there is to see."""

    def __init__(self, log: Path, scratch: Path) -> None:
        require("envoy")
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "authservice_demo", "--free-ports"], stdout=output, stderr=output,
                env={**ENVIRONMENT, "TMPDIR": str(scratch)},
            )  # fmt: skip
        until(lambda: "Ctrl-C ends everything" in self.said() or self.process.poll() is not None, 90)
        assert self.process.poll() is None, self.said()

    def said(self) -> str:
        return self._log.read_text()

    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    started = Demo(tmp_path / "log", scratch)
    yield started
    if started.process.poll() is None:
        started.process.terminate()
    started.process.wait(20)
    assert list(scratch.iterdir()) == [], "nothing is left behind"


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.external
def test_the_demo_tells_what_to_try_and_ctrl_c_ends_all(demo: Demo) -> None:
    said = demo.said()
    for name in ("alice", "bob", "provider", "application", "authservice", "envoy"):
        assert name in said
    assert re.search(r"^Open  http://localhost:\d+/$", said, re.M)
    children = demo.children()
    assert len(children) == 4
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(20) == 0
    assert gone(children)


@pytest.mark.external
def test_a_program_that_dies_ends_all_and_is_named(demo: Demo) -> None:
    children = demo.children()
    os.kill(children[0], signal.SIGKILL)
    assert demo.process.wait(20) == 1
    assert "provider ended with status -9" in demo.said()
    assert gone(children)
