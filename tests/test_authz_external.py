"""The external authorizer: what it is asked, and what its answers mean, over real sockets."""

from __future__ import annotations

import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
import trustme

from authservice.authz import Refusal, external
from authservice.authz.external import MAX_REASON, ExternalAuthorizer, request_info, user_info
from authservice.check import CheckRequest, NeedsIO, Reach
from authservice.errors import AuthorizerDown, Reason
from authservice.identity import AuthMethod, Identity, VerifiedClaims
from authservice.outbound import Http
from authservice.urls import canonical_path
from tests.conftest import Browser, Clock

SENTENCE = "Error while authorizing the request"


class Deputy(ThreadingHTTPServer):
    """An authorizer that says what it is told to, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.server_port}/authorize"
        self.seen: list[tuple[str, str, dict[str, str], Any]] = []
        self.connections: set[Any] = set()
        self.says(200)

    def says(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.answer = status, body, headers

    @property
    def questions(self) -> list[Any]:
        return [body for _, _, _, body in self.seen]

    def handle_error(self, *args: Any) -> None:
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Deputy

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        named = {name.lower(): value for name, value in self.headers.items()}
        self.server.seen.append((self.command, self.path, named, json.loads(body or b"null")))
        self.server.connections.add(self.client_address)
        status, answer, headers = self.server.answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status >= 200 and status != 204:
            self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST


@contextmanager
def running(tls: ssl.SSLContext | None = None) -> Iterator[Deputy]:
    server = Deputy(tls)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def deputy() -> Iterator[Deputy]:
    with running() as server:
        yield server


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def check(target: str = "/test?secret=1", method: str = "GET", host: str = "app.example", scheme: str | None = "https",
          **headers: str) -> CheckRequest:
    return CheckRequest(method, scheme, host, target, canonical_path(target), headers, None, "envoy")


def identity(user_id: str = "alice@example.com", *groups: str, uid: str = "", **claims: Any) -> Identity:
    return Identity(user_id, groups, VerifiedClaims(claims), AuthMethod.COOKIE, "https://issuer.example", uid=uid)


def ask(url: str, asked: CheckRequest | None = None, who: Identity | None = None, *, http: Http | None = None,
        reach: Reach = Reach.NETWORK) -> Refusal | None:
    authorizer = ExternalAuthorizer(url, http or Http(), now=lambda: datetime.now(timezone.utc))
    return authorizer.authorize(asked or check(), who or identity(), reach)


class TestVerdicts:
    def test_u41_an_ok_allows_and_is_asked_for_exactly_once(self, deputy: Deputy) -> None:
        assert ask(deputy.url) is None
        ((method, path, headers, _),) = deputy.seen
        assert (method, path, headers["content-type"]) == ("POST", "/authorize", "application/json")

    @pytest.mark.parametrize("status", [200, 201, 204, 299])
    def test_every_success_allows_whatever_its_body(self, deputy: Deputy, status: int) -> None:
        deputy.says(status, b"" if status == 204 else b'{"allowed": false}')
        assert ask(deputy.url) is None

    @pytest.mark.parametrize("status", [401, 403])
    def test_u42_a_denial_has_the_body_as_its_reason(self, deputy: Deputy, status: int) -> None:
        deputy.says(status, b"not on Sundays")
        assert ask(deputy.url) == Refusal(Reason.AUTHORIZER_REFUSED, "not on Sundays")
        assert len(deputy.seen) == 1

    def test_a_denial_without_a_word_has_ours(self, deputy: Deputy) -> None:
        deputy.says(403, b" \n")
        refusal = ask(deputy.url)
        assert refusal is not None and refusal.public == "You are logged in, but you may not see this page."

    def test_a_reason_is_one_line_of_limited_length(self, deputy: Deputy) -> None:
        deputy.says(403, b"no\r\n  \tand\xff no " + "é".encode() * 5000)
        refusal = ask(deputy.url)
        assert refusal is not None and refusal.public.startswith("no and\ufffd no é")
        assert len(refusal.public) == MAX_REASON + 1 and refusal.public.endswith("…")

    @pytest.mark.parametrize("status", [300, 304, 400, 402, 404, 407, 409, 429, 500, 502, 503])
    def test_u43_b77_everything_else_is_a_failure_and_closed(self, deputy: Deputy, status: int) -> None:
        deputy.says(status, b"" if status == 304 else b"words of the authorizer")
        with pytest.raises(AuthorizerDown) as down:
            ask(deputy.url)
        assert str(down.value) == f"the external authorizer answered {status}"
        assert (down.value.status, down.value.reason, down.value.public) == (503, Reason.AUTHORIZER_DOWN, SENTENCE)

    def test_u44_nobody_there_is_the_same_sentence(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port = unused.getsockname()[1]
        with pytest.raises(AuthorizerDown) as down:
            ask(f"http://user:pass@127.0.0.1:{port}/a?token=secret")
        assert down.value.public == SENTENCE
        assert f"127.0.0.1:{port}/a" in str(down.value)
        assert "pass" not in str(down.value) and "secret" not in str(down.value)

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_b10_a_redirect_to_a_page_that_says_ok_is_not_followed(self, deputy: Deputy, status: int) -> None:
        with running() as elsewhere:
            deputy.says(status, Location=elsewhere.url)
            with pytest.raises(AuthorizerDown):
                ask(deputy.url)
            assert not elsewhere.seen

    def test_the_connection_is_kept(self, deputy: Deputy) -> None:
        authorizer = ExternalAuthorizer(deputy.url, Http(), now=lambda: datetime.now(timezone.utc))
        for _ in range(10):
            authorizer.authorize(check(), identity(), Reach.NETWORK)
        assert len(deputy.seen) == 10 and len(deputy.connections) == 1


class TestLimits:
    def talk(self, answer: Callable[[socket.socket, threading.Event], None]) -> tuple[str, list[bytes], Callable[[], None]]:
        listening = socket.create_server(("127.0.0.1", 0))
        asked: list[bytes] = []
        over = threading.Event()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    asked.append(connection.recv(65536))
                    try:
                        answer(connection, over)
                    except OSError:
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()

        def stop() -> None:
            over.set()
            listening.shutdown(socket.SHUT_RDWR)
            listening.close()
            thread.join(5)

        return f"http://127.0.0.1:{listening.getsockname()[1]}/", asked, stop

    def test_b65_an_answer_that_drips_is_given_up_in_time(self) -> None:
        def drip(connection: socket.socket, over: threading.Event) -> None:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
            while not over.wait(0.05):
                connection.sendall(b"x")

        url, asked, stop = self.talk(drip)
        began = time.monotonic()
        with pytest.raises(AuthorizerDown):
            ask(url, http=Http(timeout=timedelta(seconds=0.4), connect_retries=2))
        assert time.monotonic() - began < 3
        stop()
        assert len(asked) == 1

    def test_b65_an_endless_answer_is_not_read(self, deputy: Deputy) -> None:
        deputy.says(403, b"x" * 5000)
        with pytest.raises(AuthorizerDown):
            ask(deputy.url, http=Http(max_bytes=4096))

    def test_what_was_asked_is_not_asked_again(self) -> None:
        url, asked, stop = self.talk(lambda connection, over: None)
        with pytest.raises(AuthorizerDown):
            ask(url, http=Http(connect_retries=2))
        stop()
        assert len(asked) == 1

    @pytest.mark.parametrize("failures,passes", [(1, True), (2, True), (3, False)])
    def test_a_connection_is_tried_for_again(
        self, deputy: Deputy, monkeypatch: pytest.MonkeyPatch, failures: int, passes: bool
    ) -> None:
        from authservice.outbound import exchange

        connect, tries = exchange.connected, []

        def flaky(*where: Any) -> socket.socket:
            tries.append(where)
            if len(tries) <= failures:
                raise ConnectionRefusedError
            return connect(*where)

        monkeypatch.setattr(exchange, "connected", flaky)
        http = Http(connect_retries=external.CONNECT_RETRIES)
        if passes:
            assert ask(deputy.url, http=http) is None and len(deputy.seen) == 1
        else:
            with pytest.raises(AuthorizerDown):
                ask(deputy.url, http=http)
        assert len(tries) == min(failures + 1, 3)


class TestQuestion:
    def test_the_body_is_the_originals(self, deputy: Deputy) -> None:
        who = identity("alice@example.com", "a", "b", sub="1", level=3.5)
        ask(deputy.url, check("/test%20x?secret=1", "PUT", "App.Example:8443"), who)
        (question,) = deputy.questions
        asked_at = datetime.strptime(question.pop("timestamp"), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
        assert abs(datetime.now(timezone.utc) - asked_at) < timedelta(seconds=10)
        assert question == {
            "user": {
                "name": "alice@example.com",
                "id": "",
                "groups": ["a", "b"],
                "extra": {"auth-method": ["cookie"]},
                "claims": {"sub": "1", "level": 3.5},
            },
            "request": {"host": "app.example", "port": 8443, "path": "/test x", "method": "PUT"},
        }

    def test_nothing_of_the_clients_request_goes_along(self, deputy: Deputy) -> None:
        ask(deputy.url, check(authorization="Bearer s3cret", cookie="a=s3cret", traceparent="s3cret"))
        ((_, _, headers, question),) = deputy.seen
        assert "s3cret" not in str(headers) + str(question)
        assert headers.keys() <= {
            "host", "content-type", "content-length", "user-agent", "accept", "accept-encoding", "connection"
        }

    @pytest.mark.parametrize(
        "host,scheme,told",
        [
            ("host:443", None, ("host", 443)),
            ("host", None, ("host", 80)),
            ("host", "http", ("host", 80)),
            ("host", "https", ("host", 443)),
            ("host:8080", "https", ("host", 8080)),
            ("[2001:DB8::1]:8443", "https", ("2001:db8::1", 8443)),
            ("[2001:db8:0:0::1]", "https", ("2001:db8::1", 443)),
            ("Host.Example.", "https", ("host.example", 443)),
            ("", "https", ("", 443)),
        ],
    )
    def test_u45_u46_b75_host_and_port(self, host: str, scheme: str | None, told: tuple[str, int]) -> None:
        assert request_info(check("/test", host=host, scheme=scheme)) == {
            "host": told[0], "port": told[1], "path": "/test", "method": "GET"
        }

    @pytest.mark.parametrize("target,path", [("/a%2Db/%C3%A9?x=%2F", "/a-b/é"), ("/", "/"), ("", "")])
    def test_the_path_is_decoded_once_and_has_no_query(self, target: str, path: str) -> None:
        info = request_info(check(target))
        assert info is not None and info["path"] == path

    @pytest.mark.parametrize("target", ["//admin", "/public/../admin", "/public%2f..%2fadmin", "/a;x", "/%2561", "*"])
    def test_a_path_that_two_could_read_differently_is_refused_unasked(self, deputy: Deputy, target: str) -> None:
        refusal = ask(deputy.url, check(target))
        assert refusal is not None and refusal.reason is Reason.AUTHORIZER_REFUSED
        assert not deputy.seen

    @pytest.mark.parametrize("host", ["a@b", "host:port", "host:0", "a b", "[::1", "x/y"])
    def test_a_host_that_is_none_is_refused_unasked(self, deputy: Deputy, host: str) -> None:
        assert ask(deputy.url, check(host=host)) is not None and not deputy.seen

    def test_u47_without_claims_there_are_none(self) -> None:
        assert user_info(identity()) == {
            "name": "alice@example.com", "id": "", "groups": [], "extra": {"auth-method": ["cookie"]}, "claims": None
        }

    def test_u48_verified_claims_are_told(self) -> None:
        assert user_info(identity(sub="1", n=4.5, deep={"a": [1]}))["claims"] == {"sub": "1", "n": 4.5, "deep": {"a": [1]}}

    def test_only_an_identity_that_has_one_has_an_id(self) -> None:
        assert user_info(identity(uid="7f3a"))["id"] == "7f3a"
        claims = VerifiedClaims({"uid": "a claim of the provider's"})
        other = Identity("alice", (), claims, AuthMethod.HEADER, "https://issuer.example")
        assert user_info(other)["id"] == ""


class TestMemory:
    @pytest.fixture
    def remembering(self, deputy: Deputy, clock: Clock) -> ExternalAuthorizer:
        return ExternalAuthorizer(deputy.url, Http(), now=clock, remember=timedelta(seconds=30))

    def test_a_grant_is_remembered_until_its_time_is_over(
        self, deputy: Deputy, clock: Clock, remembering: ExternalAuthorizer
    ) -> None:
        for step in (0, 10, 19):
            clock.advance(seconds=step)
            assert remembering.authorize(check(), identity(), Reach.NETWORK) is None
        assert len(deputy.seen) == 1
        clock.advance(seconds=1.5)
        deputy.says(403, b"no more")
        assert remembering.authorize(check(), identity(), Reach.NETWORK) is not None
        assert len(deputy.seen) == 2

    def test_a_denial_is_remembered_too(self, deputy: Deputy, clock: Clock, remembering: ExternalAuthorizer) -> None:
        deputy.says(403, b"no")
        refusals = [remembering.authorize(check(), identity(), Reach.NETWORK) for _ in range(3)]
        assert refusals == [Refusal(Reason.AUTHORIZER_REFUSED, "no")] * 3 and len(deputy.seen) == 1

    def test_a_failure_is_not(self, deputy: Deputy, remembering: ExternalAuthorizer) -> None:
        deputy.says(500)
        with pytest.raises(AuthorizerDown):
            remembering.authorize(check(), identity(), Reach.NETWORK)
        deputy.says(200)
        assert remembering.authorize(check(), identity(), Reach.NETWORK) is None

    @pytest.mark.parametrize(
        "asked,who",
        [
            (check("/other"), identity("u", "g", sub="1")),
            (check(method="POST"), identity("u", "g", sub="1")),
            (check(host="other.example"), identity("u", "g", sub="1")),
            (check(scheme="http"), identity("u", "g", sub="1")),
            (check(), identity("v", "g", sub="1")),
            (check(), identity("u", "g", "h", sub="1")),
            (check(), identity("u", "g", sub="2")),
            (check(), identity("u", "g", uid="2", sub="1")),
        ],
    )
    def test_another_question_is_another_answer(
        self, deputy: Deputy, remembering: ExternalAuthorizer, asked: CheckRequest, who: Identity
    ) -> None:
        assert remembering.authorize(check(), identity("u", "g", sub="1"), Reach.NETWORK) is None
        deputy.says(403, b"no")
        assert remembering.authorize(asked, who, Reach.NETWORK) is not None

    def test_in_memory_only_what_is_remembered_is_answered(
        self, deputy: Deputy, remembering: ExternalAuthorizer
    ) -> None:
        with pytest.raises(NeedsIO):
            remembering.authorize(check(), identity(), Reach.MEMORY)
        with pytest.raises(NeedsIO):
            ask(deputy.url, reach=Reach.MEMORY)
        assert not deputy.seen
        remembering.authorize(check(), identity(), Reach.NETWORK)
        assert remembering.authorize(check(), identity(), Reach.MEMORY) is None

    def test_without_the_setting_nothing_is_remembered(self, deputy: Deputy) -> None:
        authorizer = ExternalAuthorizer(deputy.url, Http(), now=lambda: datetime.now(timezone.utc))
        for _ in range(3):
            authorizer.authorize(check(), identity(), Reach.NETWORK)
        assert len(deputy.seen) == 3

    def test_what_is_remembered_is_bounded(
        self, deputy: Deputy, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(external, "MOST_REMEMBERED", 3)
        authorizer = ExternalAuthorizer(deputy.url, Http(), now=clock, remember=timedelta(hours=1))
        for number in range(5):
            authorizer.authorize(check(f"/{number}"), identity(), Reach.NETWORK)
        with pytest.raises(NeedsIO):
            authorizer.authorize(check("/0"), identity(), Reach.MEMORY)
        assert authorizer.authorize(check("/4"), identity(), Reach.MEMORY) is None

    def test_many_threads_at_once(self, deputy: Deputy, remembering: ExternalAuthorizer) -> None:
        def one(number: int) -> Refusal | None:
            return remembering.authorize(check(f"/{number % 5}"), identity(), Reach.NETWORK)

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(one, range(80))) == [None] * 80
        assert 5 <= len(deputy.seen) <= 40


class TestService:
    """The authorizer behind the whole service."""

    @pytest.fixture
    def person(self, deputy: Deputy, make_browser: Callable[..., Browser]) -> Browser:
        browser = make_browser(EXTERNAL_AUTHZ_URL=deputy.url, USERID_PREFIX="prefix-", REDIRECT_URL=(
            "https://app.example/authservice/oidc/callback"))
        browser.log_in()
        return browser

    def test_it_is_asked_about_who_is_logged_in_and_only_then(self, deputy: Deputy, person: Browser) -> None:
        deputy.seen.clear()
        assert person.get("/notebooks/7?x=1").status == 200
        (question,) = deputy.questions
        assert question["user"]["name"] == "alice@example.com"
        assert question["user"]["groups"] == ["admins", "dev"]
        assert question["user"]["claims"]["email"] == "alice@example.com"
        assert question["request"] == {"host": "app.example", "port": 443, "path": "/notebooks/7", "method": "GET"}
        person.jar.clear()
        assert person.get("/notebooks/7").status == 302
        assert person.get("/authservice/site/homepage").status == 200
        assert len(deputy.seen) == 1

    def test_u49_b09_a_forged_token_beside_the_cookie_tells_nothing(self, deputy: Deputy, person: Browser) -> None:
        forged = jwt.encode({"sub": "root", "groups": ["root"]}, "k" * 32, algorithm="HS256")
        deputy.seen.clear()
        for value in (f"Bearer {forged}", f"Bearer: {forged}", forged):
            assert person.get("/", Authorization=value).status == 200
        assert len(deputy.seen) == 3
        for question in deputy.questions:
            assert question["user"]["claims"]["sub"] != "root" and "root" not in str(question)

    def test_b75_on_verify_the_original_request_is_told(self, deputy: Deputy, person: Browser) -> None:
        deputy.seen.clear()
        assert person.get("/authservice/verify/app/x?y=1").status == 204
        assert deputy.questions[0]["request"]["path"] == "/app/x"

    def test_b75_nginx_tells_the_original_method(self, deputy: Deputy, make_browser: Callable[..., Browser]) -> None:
        person = make_browser(EXTERNAL_AUTHZ_URL=deputy.url, GATEWAY="nginx,envoy")
        person.log_in()
        deputy.seen.clear()
        answer = person.get("/authservice/verify", X_Original_URI="/app?x", X_Original_Method="DELETE")
        assert answer.status == 204
        assert deputy.questions[0]["request"] == {
            "host": "app.example", "port": 80, "path": "/app", "method": "DELETE"
        }

    def test_b20_its_words_are_text_on_the_page(self, deputy: Deputy, person: Browser) -> None:
        deputy.says(403, b"<script>alert(1)</script> & <b>no</b>", **{"Content-Type": "text/html"})
        answer = person.get("/")
        assert answer.status == 403
        assert "<script>alert" not in answer.text and "<b>no</b>" not in answer.text
        assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &lt;b&gt;no&lt;/b&gt;" in answer.text
        told = person.get("/", Accept="application/json")
        assert told.json["error"] == "authorizer_refused" and told.json["message"].startswith("<script>")
        assert told.header("Content-Type") == "application/json"

    def test_b40_a_denial_does_not_end_the_session(self, deputy: Deputy, person: Browser) -> None:
        deputy.says(403, b"not this page")
        denied = person.get("/one")
        assert denied.status == 403 and not denied.all("Set-Cookie")
        deputy.says(200)
        assert person.get("/two").status == 200

    def test_b77_a_failure_is_told_apart_and_ends_nothing(self, deputy: Deputy, person: Browser) -> None:
        deputy.says(500, b"stack trace")
        answer = person.get("/")
        assert (answer.status, answer.text, answer.header("Retry-After")) == (503, SENTENCE, "5")
        assert not answer.all("Set-Cookie") and not answer.all("kubeflow-userid")
        deputy.says(200)
        assert person.get("/").status == 200

    def test_its_connection_is_tried_for_again(
        self, deputy: Deputy, person: Browser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from authservice.outbound import exchange

        connect, tries = exchange.connected, []

        def flaky(host: str, port: int, *more: Any) -> socket.socket:
            tries.append(port)
            if tries == [deputy.server_port]:
                raise ConnectionRefusedError
            return connect(host, port, *more)

        monkeypatch.setattr(exchange, "connected", flaky)
        assert person.get("/").status == 200 and tries.count(deputy.server_port) == 2

    def test_groups_are_judged_first(self, deputy: Deputy, make_browser: Callable[..., Browser]) -> None:
        person = make_browser(EXTERNAL_AUTHZ_URL=deputy.url, GROUPS_ALLOWLIST="others")
        person.log_in()
        assert person.get("/").status == 403 and not deputy.seen

    def test_the_setting_for_remembering_is_used(
        self, deputy: Deputy, make_browser: Callable[..., Browser], clock: Clock
    ) -> None:
        person = make_browser(EXTERNAL_AUTHZ_URL=deputy.url, EXTERNAL_AUTHZ_CACHE_SECONDS="30")
        person.log_in()
        deputy.seen.clear()
        assert [person.get("/").status for _ in range(3)] == [200] * 3 and len(deputy.seen) == 1
        clock.advance(seconds=31)
        assert person.get("/").status == 200 and len(deputy.seen) == 2

    def test_the_ca_bundle_is_trusted_for_it(self, make_browser: Callable[..., Browser], tmp_path: Path) -> None:
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        bundle = tmp_path / "ca.pem"
        authority.cert_pem.write_to_path(str(bundle))
        with running(context) as deputy:
            trusting = make_browser(EXTERNAL_AUTHZ_URL=deputy.url, CA_BUNDLE=str(bundle))
            trusting.log_in()
            assert trusting.get("/").status == 200 and deputy.seen
            deputy.seen.clear()
            wary = make_browser(EXTERNAL_AUTHZ_URL=deputy.url)
            wary.log_in()
            assert wary.get("/").status == 503 and not deputy.seen
