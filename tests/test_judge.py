"""The judge as a gateway meets it: statuses, headers and bodies on the judge port."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask

from authservice.sessions.seal import new_secret
from tests.conftest import Answer, Browser, Clock, ask, path_of

IDENTITY = {"kubeflow-userid": "alice@example.com", "kubeflow-groups": "admins,dev", "Auth-Method": "cookie"}
REMOVE = "x-envoy-auth-headers-to-remove"


def identity_of(answer: Answer) -> dict[str, str | None]:
    return {name: answer.header(name) for name in IDENTITY}


def path_exactly(landed: Answer) -> str:
    location = landed.header("Location") or ""
    assert location.startswith("/"), location
    return location


def assert_forbids_caching(answer: Answer) -> None:
    assert answer.header("Cache-Control") == "no-store"


class TestAllowed:
    def test_e5_a_person_who_logged_in_passes_with_their_identity(self, browser: Browser) -> None:
        landed = browser.log_in("/notebooks/7?x=1")
        assert (landed.status, path_of(landed.header("Location"))) == (302, "/notebooks/7?x=1")
        answer = browser.get("/notebooks/7?x=1")
        assert answer.status == 200 and answer.body == b""
        assert identity_of(answer) == IDENTITY

    def test_g40_an_allow_carries_identity_headers_and_nothing_else(self, browser: Browser) -> None:
        browser.log_in()
        names = sorted(name.lower() for name, _ in browser.get("/").headers)
        assert names == ["auth-method", "content-length", "kubeflow-groups", "kubeflow-userid", REMOVE]

    def test_g39_no_header_is_both_set_and_removed(self, browser: Browser) -> None:
        browser.log_in()
        answer = browser.get("/")
        removed = (answer.header(REMOVE) or "").split(",")
        assert "kubeflow_userid" in removed and "KUBEFLOW_USERID" in removed
        assert not {name.lower() for name in removed} & {name.lower() for name, _ in answer.headers}

    @pytest.mark.parametrize("target", ["/public/x", "/authservice/site/homepage", "/authservice"])
    def test_h03_b7_on_open_paths_every_identity_header_is_named_for_removal(
        self, make_browser: Callable[..., Browser], target: str
    ) -> None:
        visitor = make_browser(SKIP_AUTH_URLS="/public/")
        for answer in (visitor.get(target, kubeflow_userid="admin"), visitor.send("POST", target)):
            assert answer.status == 200 and not answer.all("kubeflow-userid")
            removed = (answer.header(REMOVE) or "").split(",")
            assert {"kubeflow-userid", "kubeflow_userid", "kubeflow-groups", "auth-method", "auth_method"} <= set(removed)

    def test_s12_on_an_open_path_a_denied_person_is_nobody(self, make_browser: Callable[..., Browser]) -> None:
        denied = make_browser(SKIP_AUTH_URLS="/public", GROUPS_ALLOWLIST="others")
        denied.log_in()
        assert denied.get("/private").status == 403
        answer = denied.get("/public")
        assert answer.status == 200 and not answer.all("kubeflow-userid")

    def test_the_session_is_accepted_as_bearer_value(self, browser: Browser) -> None:
        browser.log_in()
        secret = browser.session
        for scheme in ("Bearer", "bearer", "BEARER "):
            answer = ask(browser.app, "GET", "/", port=8080, headers={"Authorization": f"{scheme} {secret}"})
            assert answer.status == 200 and answer.header("Auth-Method") == "header"

    def test_s02_o12_every_character_of_a_deep_link_comes_back(self, browser: Browser) -> None:
        for target in ("/p?", "/?q=[1]", "/a|b?c={d}^`", "/x?y=\\z"):
            browser.jar.clear()
            assert path_exactly(browser.log_in(target)) == target

    def test_the_header_of_the_session_can_be_another(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(AUTH_HEADER="X-Auth-Token")
        browser.log_in()
        for value in (browser.session or "", f"Bearer {browser.session}"):
            assert ask(browser.app, "GET", "/", port=8080, headers={"X-Auth-Token": value}).status == 200
        assert ask(browser.app, "GET", "/", port=8080,
                   headers={"Authorization": f"Bearer {browser.session}"}).status == 401

    def test_empty_header_settings_switch_headers_off(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(GROUPS_HEADER="", AUTH_METHOD_HEADER="")
        browser.log_in()
        answer = browser.get("/")
        assert answer.header("kubeflow-userid") == "alice@example.com"
        assert not answer.all("kubeflow-groups") and not answer.all("Auth-Method")


class TestAnyRequest:
    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "BREW"])
    @pytest.mark.parametrize(
        "target", ["/", "/a", "/a/", "/a%2Fb", "//a//b", "/a/../b", "/a;b=c", "/%00", "/x%0Ay", "/a%", "/ä".encode().decode("latin-1"), "*"]
    )
    def test_s35_every_method_and_path_gets_an_answer_of_ours(self, browser: Browser, method: str, target: str) -> None:
        anonymous = browser.send(method, target)
        assert anonymous.status == (302 if method in ("GET", "HEAD") else 401)
        assert anonymous.status == 401 or "/authorize" in (anonymous.header("Location") or "")
        assert_forbids_caching(anonymous)

    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "TRACE", "PROPFIND", "BREW"])
    def test_s35_and_lets_a_known_person_pass(self, browser: Browser, method: str) -> None:
        browser.log_in()
        for target in ("/", "/a%2Fb", "//a//b", "/a/../b", "/a;b=c", "*"):
            assert browser.send(method, target).status == 200

    def test_two_cookie_lines_arrive_joined_by_a_comma(self, browser: Browser) -> None:
        browser.log_in()
        cookie = f"authservice_session={browser.session}"
        for joined in (f"a=1; b=2,{cookie}; c=3", f"{cookie},a=1", f"a=1,{cookie},b=2"):
            assert browser.get("/", Cookie=joined).status == 200

    def test_k02_a_planted_cookie_beside_ours_locks_nobody_out(self, browser: Browser) -> None:
        browser.log_in()
        planted = new_secret()
        header = f"authservice_session={planted}; authservice_session=x; authservice_session={browser.session}"
        assert browser.get("/", Cookie=header).status == 200

    @pytest.mark.parametrize(
        "cookie",
        ["authservice_session=", "authservice_session", "=", ";;;", "authservice_session=\"", "$Version=1", "AUTHSERVICE_SESSION=x",
         "authservice_session=" + "A" * 43, "authservice_session=" + "A" * 5000, "authservice_session=\xff\xfe"],
    )
    def test_k08_odd_cookies_are_nobody(self, browser: Browser, cookie: str) -> None:
        assert browser.get("/", Cookie=cookie).status == 302

    def test_k05_a_changed_cut_or_extended_value_is_nobody(self, browser: Browser) -> None:
        browser.log_in()
        secret = browser.session or ""
        swapped = "B" if secret[5] != "B" else "C"
        for value in (secret[:5] + swapped + secret[6:], secret[:-1], secret + "A", secret.swapcase(), secret + "="):
            assert browser.get("/", Cookie=f"authservice_session={value}").status == 302

    def test_a_port_decides_who_answers_and_the_host_header_never_does(self, browser: Browser) -> None:
        assert browser.get("/site/homepage", Host="app.example:8082").status == 302
        assert browser.get("/site/homepage", port=8082, Host="app.example:8080").status == 200
        assert browser.get("/anything", port=8082).status == 404
        assert browser.get("/authservice/site/homepage", port=9999).status == 404


class TestNotAuthenticated:
    def test_a_page_navigation_goes_to_the_login(self, browser: Browser) -> None:
        answer = browser.get("/x", Sec_Fetch_Mode="navigate")
        assert answer.status == 302
        assert_forbids_caching(answer)
        assert len(browser.pending) == 1

    def test_s30_a_program_is_told_how_to_log_in_and_gets_no_cookie(self, browser: Browser) -> None:
        answer = browser.get("/api", Accept="application/json")
        assert answer.status == 401 and not answer.all("Set-Cookie")
        assert (answer.header("WWW-Authenticate") or "").startswith("Bearer")
        assert answer.json == {"error": "not_authenticated", "login_url": "/authservice/login"}
        assert_forbids_caching(answer)

    def test_s31_500_background_calls_leave_no_login_cookie(self, browser: Browser) -> None:
        for _ in range(500):
            browser.get("/poll", Sec_Fetch_Mode="cors")
        assert browser.jar == {}

    @pytest.mark.parametrize(("setting", "page", "program"), [("redirect", 302, 302), ("401", 401, 401), ("auto", 302, 401)])
    def test_the_setting_decides(
        self, make_browser: Callable[..., Browser], setting: str, page: int, program: int
    ) -> None:
        browser = make_browser(UNAUTHENTICATED_RESPONSE=setting)
        assert browser.get("/x", Accept="text/html").status == page
        assert browser.get("/x", X_Requested_With="XMLHttpRequest").status == program
        assert browser.send("POST", "/x").status == program

    def test_s29_an_unknown_bearer_token_is_anonymous_and_a_program(self, browser: Browser) -> None:
        answer = browser.get("/x", Authorization="Bearer of-the-application")
        assert (answer.status, answer.header("WWW-Authenticate")) == (401, "Bearer")
        assert not answer.all("Set-Cookie")
        assert browser.get("/x", Authorization="Basic YTpi").status == 302

    def test_two_bearer_credentials_are_refused(self, browser: Browser) -> None:
        browser.log_in()
        answer = browser.get("/x", Authorization=f"Bearer {browser.session},Bearer other")
        assert answer.status == 401
        assert answer.header("WWW-Authenticate") == 'Bearer error="invalid_token"'
        assert not answer.all("Set-Cookie")

    def test_a_relative_authorization_endpoint_stays_on_the_own_host(self, make_browser: Callable[..., Browser]) -> None:
        answer = make_browser(OIDC_AUTH_URL="/dex/auth?prompt=login").get("/x")
        assert (answer.header("Location") or "").startswith("/dex/auth?prompt=login&")
        absolute = make_browser(OIDC_AUTH_URL="/dex/auth", AUTHSERVICE_URL_PREFIX="https://app.example/authservice/")
        assert (absolute.get("/x").header("Location") or "").startswith("https://app.example/dex/auth?")

    @pytest.mark.parametrize("host", ["app.example:99999", "a b", "app.example,evil.example", "[x"])
    def test_s02_a_host_that_cannot_be_read_does_not_become_part_of_an_address(
        self, make_browser: Callable[..., Browser], host: str
    ) -> None:
        visitor = make_browser(OIDC_AUTH_URL="/dex/auth", AUTHSERVICE_URL_PREFIX="https://app.example/authservice/")
        answer = visitor.get("/x", Host=host)
        assert answer.status == 302 and path_exactly(answer).startswith("/dex/auth?")


class TestDenied:
    def test_e3_b40_a_denial_is_a_page_and_the_session_stays(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(GROUPS_ALLOWLIST="operators,sre")
        browser.log_in()
        for _ in range(2):
            answer = browser.get("/")
            assert answer.status == 403 and not answer.all("Set-Cookie")
            assert "operators" in answer.text and "alice@example.com" in answer.text
            assert_forbids_caching(answer)
        assert browser.session

    def test_a_program_is_denied_in_json(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(GROUPS_ALLOWLIST="operators")
        browser.log_in()
        answer = browser.get("/", Accept="application/json")
        assert (answer.status, answer.json["error"]) == (403, "groups_not_allowed")

    def test_b20_h12_everything_on_the_page_is_escaped(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(GROUPS_ALLOWLIST="<script>alert(1)</script>")
        browser.provider.claims["email"] = "<img/src=x>@example.com"
        browser.log_in()
        answer = browser.get("/")
        assert answer.status == 403
        assert "<script>alert" not in answer.text and "<img/src" not in answer.text
        assert "default-src 'none'" in (answer.header("Content-Security-Policy") or "")

    def test_an_identity_that_fits_in_no_header_is_denied(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(USERID_TRANSFORMERS='[{"matches": ".*", "replaces": ""}]')
        assert browser.log_in().status == 403
        assert browser.session is None


class TestVerify:
    @pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "DELETE", "PROPFIND"])
    def test_b2_every_method_gets_a_verdict_and_never_a_redirect(self, browser: Browser, method: str) -> None:
        answer = browser.send(method, "/authservice/verify/app/x?y=1")
        assert answer.status == 401 and answer.header("Location") is None and not answer.all("Set-Cookie")
        assert answer.header("X-Login-URL") == "/authservice/login?rd=%2Fapp%2Fx%3Fy%3D1"
        browser.log_in()
        passed = browser.send(method, "/authservice/verify/app/x?y=1")
        assert passed.status == 204 and identity_of(passed) == IDENTITY

    def test_403_without_the_group(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(GROUPS_ALLOWLIST="nobody")
        browser.log_in()
        assert browser.get("/authservice/verify/app").status == 403

    def test_open_paths_behind_the_endpoint(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(SKIP_AUTH_URLS="/public/")
        assert browser.get("/authservice/verify/public/x").status == 204
        for target in ("/public", "/x?/public/", "/public/../x", "", "?/public/x", "/"):
            assert browser.get(f"/authservice/verify{target}").status == 401

    @pytest.mark.parametrize("prefix", ["https://app.example/authservice/", "/authservice/"])
    def test_b3_an_absolute_prefix_opens_nothing(self, make_browser: Callable[..., Browser], prefix: str) -> None:
        browser = make_browser(AUTHSERVICE_URL_PREFIX=prefix)
        assert browser.get("/authservice/verify/app").status == 401

    def test_nginx_asks_in_headers(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(GATEWAY="nginx", SKIP_AUTH_URLS="/public/")
        told = {"X-Original-Method": "GET"}
        assert browser.get("/authservice/verify", X_Original_URI="/public/x", **told).status == 204
        denied = browser.get("/authservice/verify", X_Original_URI="/deep?a=b", **told)
        assert (denied.status, denied.header("X-Login-URL")) == (401, "/authservice/login?rd=%2Fdeep%3Fa%3Db")
        assert browser.get("/authservice/verify").status == 403
        assert browser.get("/authservice/verify", X_Original_URI="/public/,/private", **told).status == 403
        assert browser.get("/public/x").status == 403, "the envoy dialect was not chosen"


class TestForwardAuth:
    TOLD = {"X-Forwarded-Method": "GET", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "app.example",
            "X-Forwarded-Uri": "/deep?a=b"}

    def ask(self, browser: Browser, **changes: str) -> Answer:
        return browser.get("/authservice/forward-auth?via=caddy", **{**self.TOLD, **changes})

    def test_a_login_and_back(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(GATEWAY="traefik,caddy", REDIRECT_URL="https://app.example/authservice/oidc/callback")
        sent = self.ask(browser)
        assert sent.status == 302
        landed = browser.get(browser.at_provider(sent))
        assert landed.header("Location") == "https://app.example/deep?a=b"
        passed = self.ask(browser)
        assert passed.status == 200 and identity_of(passed) == IDENTITY

    def test_beside_envoy_the_headers_are_named_for_removal_too(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(GATEWAY="envoy,traefik", SKIP_AUTH_URLS="/deep")
        assert "kubeflow-userid" in (self.ask(browser).header(REMOVE) or "")

    def test_open_paths_send_the_identity_headers_empty(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(GATEWAY="caddy", SKIP_AUTH_URLS="/deep")
        passed = self.ask(browser)
        assert passed.status == 200 and passed.header("kubeflow-userid") == "" and passed.header("auth-method") == ""

    def test_missing_headers_are_a_misconfiguration(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(GATEWAY="caddy")
        assert browser.get("/authservice/forward-auth").status == 403


class TestCheckPathPrefix:
    def test_the_prefix_is_cut_for_checks_and_doors(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(CHECK_PATH_PREFIX="/check")
        sent = browser.get("/check/app?x=1")
        landed = browser.get("/check" + browser.at_provider(sent))
        assert path_of(landed.header("Location")) == "/app?x=1"
        assert browser.get("/check/app").status == 200
        assert browser.get("/app").status == 403


class TestDown:
    def test_a20_the_service_starts_without_its_provider_and_recovers(
        self, make_browser: Callable[..., Browser]
    ) -> None:
        browser = make_browser(SKIP_AUTH_URLS="/public")
        browser.log_in()
        browser.provider.stop()
        cold = make_browser(SKIP_AUTH_URLS="/public")
        assert cold.get("/public").status == 200
        waiting = cold.get("/app")
        assert (waiting.status, waiting.text) == (503, "OIDC Setup is not complete yet.")
        assert not waiting.all("Set-Cookie") and waiting.header("Retry-After")
        assert cold.get("/authservice/verify/app").status == 503
        assert cold.get("/authservice/verify/public").status == 204
        assert cold.get("/authservice/oidc/callback?code=x&state=y").status == 503
        cold.jar = dict(browser.jar)
        assert cold.get("/app").status == 200, "sessions are judged without the provider"

    def test_an_unexpected_error_is_a_denial_with_a_request_id(
        self, browser: Browser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object) -> None:
            raise RuntimeError("internal words")

        monkeypatch.setattr(browser.app.extensions["authservice"].judge._pipeline, "decide", broken)
        answer = browser.get("/", X_Request_Id="abc-123")
        assert answer.status == 500 and "internal words" not in answer.text and "abc-123" in answer.text


class TestSessionLimits:
    def test_the_absolute_limit_is_on_the_servers_clock(
        self, make_browser: Callable[..., Browser], clock: Clock
    ) -> None:
        browser = make_browser(SESSION_MAX_AGE="3600")
        browser.log_in()
        clock.advance(seconds=3590)
        assert browser.get("/").status == 200
        clock.advance(seconds=20)
        assert browser.get("/").status == 302

    def test_the_idle_limit_slides_without_a_new_cookie(
        self, make_browser: Callable[..., Browser], clock: Clock
    ) -> None:
        browser = make_browser(SESSION_IDLE_TIMEOUT="600")
        browser.log_in()
        for _ in range(5):
            clock.advance(seconds=500)
            answer = browser.get("/")
            assert answer.status == 200 and not answer.all("Set-Cookie")
        clock.advance(seconds=700)
        assert browser.get("/").status == 302


def test_k13_a_login_that_never_sticks_stops_with_a_page(browser: Browser) -> None:
    rounds = 0
    while True:
        browser.jar.pop("authservice_session", None)
        sent = browser.get("/x")
        if sent.status != 302:
            break
        rounds += 1
        assert rounds < 10
        browser.get(browser.at_provider(sent))
    assert sent.status == 403 and "cookies" in sent.text and rounds == 5


def test_k14_a_flood_of_login_starts_writes_nothing(browser: Browser, app_store: Callable[[Flask], int]) -> None:
    before = app_store(browser.app)
    for index in range(300):
        browser.jar.clear()
        assert browser.get(f"/{index}").status == 302
    assert app_store(browser.app) == before == 0


@pytest.fixture
def app_store(environ: dict[str, str]) -> Callable[[Flask], int]:
    """How many entries the SQLite store of an application holds."""
    import sqlite3

    def count(app: Flask) -> int:
        with sqlite3.connect(environ["SESSION_STORE_PATH"]) as connection:
            (table,) = connection.execute("SELECT name FROM sqlite_master WHERE type='table' LIMIT 1").fetchone()
            return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    return count


def test_an_identity_header_with_an_underscore_is_neutralised_too(make_browser: Callable[..., Browser]) -> None:
    browser = make_browser(GATEWAY="caddy", SKIP_AUTH_URLS="/deep", GROUPS_HEADER="x_groups")
    passed = browser.get("/authservice/forward-auth", **TestForwardAuth.TOLD)
    assert passed.status == 200 and passed.header("x_groups") == "" and passed.header("kubeflow-userid") == ""
