"""A person's own session: what the page tells, what its forms end, and who scripts are told they are."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from authservice import account
from authservice.errors import StoreDown
from authservice.pages import Page
from authservice.sessions.live import Sessions
from authservice.sessions.seal import public_id, store_key
from tests.conftest import Answer, Browser, Clock, ask
from tests.provider import with_bad_signature
from tests.sample_sessions import a_session
from tests.test_pages import Markup

PAGE, USERINFO = "/authservice/site/session", "/authservice/userinfo"
SITE = Browser.SITE
AGENT = "Mozilla/5.0 (X11; Linux x86_64) <script>alert(1)</script>"


@pytest.fixture
def alice(browser: Browser) -> Browser:
    browser.log_in(User_Agent=AGENT)
    return browser


def look(browser: Browser, **headers: str) -> Answer:
    return browser.get(PAGE, port=SITE, **headers)


def markup(answer: Answer) -> Markup:
    return Markup(Page(answer.body, answer.headers))


def words(answer: Answer) -> str:
    return " ".join(markup(answer).text.split())


def form(browser: Browser, end: str, **headers: str) -> Answer:
    """The form as a browser sends it."""
    headers = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "navigate", **headers}
    headers["Content-Type"] = "application/x-www-form-urlencoded"
    return send(browser, f"end={end}".encode(), **headers)


def send(browser: Browser, body: bytes, **headers: str) -> Answer:
    named = {"Host": browser.host, **{name.replace("_", "-"): value for name, value in headers.items()}}
    named["Cookie"] = "; ".join(f"{name}={value}" for name, value in browser.jar.items())
    answer = ask(browser.app, "POST", PAGE, port=SITE, headers=named, body=body)
    browser._keep(answer)
    return answer


def begin_elsewhere(browser: Browser, clock: Clock, **more: Any) -> None:
    """Another session of the person at the provider."""
    who = {"issuer": browser.provider.issuer, "subject": browser.provider.claims["sub"], **more}
    browser.app.extensions["authservice"].sessions.begin(a_session(clock, **who))


def alive(browser: Browser) -> bool:
    return browser.get("/", Sec_Fetch_Mode="cors").status == 200


class TestPage:
    def test_it_tells_since_when_from_where_and_until_when(self, alice: Browser, clock: Clock) -> None:
        clock.advance(hours=3, minutes=5)
        answer = look(alice)
        assert answer.status == 200 and answer.header("Cache-Control") == "no-store"
        assert "Cookie" in (answer.header("Vary") or "")
        text = words(answer)
        assert "Logged in as alice@example.com" in text
        assert "Since 3 hours ago" in text and "UTC" in text
        assert "Logged in from 127.0.0.1 Mozilla/5.0 (X11; Linux x86_64) <script>" in text
        assert "Ends in 20 hours" in text and "No other session" in text
        assert "<script" not in answer.text.replace("&lt;script", "")
        assert markup(answer).values("button", "value") == ["this"]

    def test_no_secret_stands_on_it(self, alice: Browser) -> None:
        secret = alice.session or ""
        assert secret not in look(alice).text and public_id(store_key(secret)) not in look(alice).text

    def test_the_idle_limit_is_told(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(SESSION_IDLE_TIMEOUT="1800")
        browser.log_in()
        assert "or 30 minutes after you were last here" in words(look(browser))

    def test_their_other_sessions_are_counted_and_nobody_elses(
        self, alice: Browser, make_browser: Callable[..., Browser]
    ) -> None:
        for count, told in ((1, "1 other session "), (2, "2 other sessions ")):
            make_browser(alice.app).log_in()
            assert told in words(look(alice)), count
        alice.provider.claims.update(sub="bob")
        make_browser(alice.app).log_in()  # another account of the same address
        assert "2 other sessions " in words(look(alice))

    def test_what_is_over_is_not_counted(self, make_browser: Callable[..., Browser], clock: Clock) -> None:
        browser = make_browser(SESSION_IDLE_TIMEOUT="1800")
        browser.log_in()
        long_ago = clock() - timedelta(minutes=31)
        begin_elsewhere(browser, clock, created=long_ago, last_seen=long_ago)
        assert "No other session" in words(look(browser))

    def test_who_is_not_logged_in_is_told_so_and_led_there_and_back(self, browser: Browser) -> None:
        answer = look(browser)
        assert answer.status == 401 and "You are not logged in." in answer.text
        assert answer.header("WWW-Authenticate") and answer.header("Cache-Control") == "no-store"
        [way] = markup(answer).values("a", "href")
        assert way == "/authservice/login?rd=%2Fauthservice%2Fsite%2Fsession"
        landed = browser.get(browser.at_provider(browser.get(way, port=SITE)), port=SITE)
        assert (landed.header("Location") or "").endswith(PAGE)
        assert look(browser).status == 200

    def test_h12_it_cannot_be_framed_and_its_forms_prove_where_they_stand(self, alice: Browser) -> None:
        answer = look(alice)
        policy = answer.header("Content-Security-Policy") or ""
        assert "frame-ancestors 'none'" in policy and "script-src 'none'" in policy and "form-action 'self'" in policy
        assert answer.header("Referrer-Policy") == "same-origin"

    def test_it_is_not_on_the_judge_port(self, alice: Browser) -> None:
        answer = alice.get(PAGE)
        assert answer.status == 200 and answer.body == b"", "a check, and an allowed one"

    @pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH"])
    def test_other_methods(self, alice: Browser, method: str) -> None:
        answer = alice.send(method, PAGE, port=SITE)
        assert (answer.status, answer.header("Allow")) == (405, "GET, HEAD, POST")

    def test_head(self, alice: Browser) -> None:
        answer = alice.send("HEAD", PAGE, port=SITE)
        assert answer.status == 200 and answer.body == b""

    def test_a_label_under_another_key_leaves_the_rest(self, make_browser: Callable[..., Browser]) -> None:
        """As another replica makes one in the midst of a change of keys."""
        old, new = "an-old-key-of-the-service", "a-new-key-of-the-service"
        begun = make_browser(SECRET_KEYS=f"{new},{old}")
        behind = make_browser(SECRET_KEYS=old)
        begun.log_in()
        behind.jar = dict(begun.jar)
        answer = look(behind)
        assert answer.status == 200
        assert "Logged in as alice@example.com Ends in 23 hours" in words(answer)


class TestEnding:
    def test_this_one(self, alice: Browser, make_browser: Callable[..., Browser]) -> None:
        other = make_browser(alice.app)
        other.log_in()
        cookie = alice.session
        answer = form(alice, "this")
        assert answer.status in (201, 303) and alice.session is None
        assert alice.get("/", Cookie=f"authservice_session={cookie}", Sec_Fetch_Mode="cors").status == 401
        assert alive(other)
        assert alice.provider.calls("revoke")

    def test_all_of_theirs_and_nobody_elses(self, alice: Browser, make_browser: Callable[..., Browser]) -> None:
        phone, bob = make_browser(alice.app), make_browser(alice.app)
        phone.log_in()
        alice.provider.claims.update(sub="bob")
        bob.log_in()
        assert markup(look(alice)).values("button", "value") == ["this", "all"]
        answer = form(alice, "all")
        assert answer.status in (201, 303) and alice.session is None
        assert not alive(alice) and not alive(phone) and alive(bob)

    @pytest.mark.parametrize(
        "headers",
        [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Sec-Fetch-Site": "none"},
         {"Sec-Fetch-Site": "cross-site", "Origin": "http://app.example"}],
    )
    def test_csrf_a_form_of_another_site_ends_nothing(self, alice: Browser, headers: dict[str, str]) -> None:
        for end in ("this", "all"):
            answer = form(alice, end, **headers)
            assert answer.status == 403 and answer.header("Set-Cookie") is None
        assert alive(alice)

    @pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://app.example.evil", "http://["])
    def test_csrf_without_fetch_metadata_the_origin_counts(self, alice: Browser, origin: str | None) -> None:
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        sent = kind | ({"Origin": origin} if origin else {})
        assert send(alice, b"end=all", **sent).status == 403 and alive(alice)
        assert send(alice, b"end=this", **kind, Origin="http://app.example", Accept="text/html").status in (201, 303)

    @pytest.mark.parametrize(
        "body", [b"", b"end=", b"end=everybody", b"end=this&end=all", b"END=all", b"end[]=all", b"end=all%00"]
    )
    def test_a_form_that_says_nothing_known(self, alice: Browser, body: bytes) -> None:
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        assert send(alice, body, Sec_Fetch_Site="same-origin", **kind).status == 400 and alive(alice)

    def test_a_form_that_is_too_long_or_none(self, alice: Browser) -> None:
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        long = b"end=all&x=" + b"x" * 100_000
        assert send(alice, long, Sec_Fetch_Site="same-origin", **kind).status == 413
        assert send(alice, b'{"end": "all"}', Sec_Fetch_Site="same-origin",
                    Content_Type="application/json").status == 400
        assert alive(alice)

    def test_who_is_not_logged_in_any_more_lands_where_others_do(self, alice: Browser) -> None:
        jar = dict(alice.jar)
        form(alice, "all")
        alice.jar = jar
        assert form(alice, "all").status in (201, 303)

    def test_l11_a_store_that_fails_ends_nothing_of_their_own(
        self, alice: Browser, make_browser: Callable[..., Browser], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = make_browser(alice.app)
        other.log_in()
        directory = alice.app.extensions["authservice"].directory

        def fails(*_: Any) -> int:
            raise StoreDown("told to fail")

        with monkeypatch.context() as patched:
            patched.setattr(type(directory), "end", fails)
            answer = form(alice, "all")
        assert answer.status == 503 and answer.header("Retry-After") and answer.header("Set-Cookie") is None
        assert alive(alice) and alive(other)


class TestUserinfo:
    def test_who_they_are(self, alice: Browser) -> None:
        answer = alice.get(USERINFO, port=SITE)
        assert answer.status == 200 and (answer.header("Content-Type") or "").startswith("application/json")
        assert answer.header("Cache-Control") == "no-store" and "Cookie" in (answer.header("Vary") or "")
        assert not [name for name, _ in answer.headers if name.lower().startswith("access-control-")]
        told = answer.json
        assert told["user"] == "alice@example.com" and isinstance(told["groups"], list)
        assert set(told) <= {"user", "groups", "name", "email", "picture"}

    def test_standard_claims_only_where_they_are_what_they_should_be(self, browser: Browser) -> None:
        browser.provider.claims.update(name="Älice", picture="javascript:alert(1)", groups=["a", "b,c"])
        browser.log_in()
        told = browser.get(USERINFO, port=SITE).json
        assert told == {
            "user": "alice@example.com", "email": "alice@example.com", "name": "Älice", "groups": ["a", "b,c"],
        }
        browser.jar.clear()
        browser.provider.claims.update(name=["Älice"], picture="https://img.example/a.png", phone_number="+1")
        browser.log_in()
        told = browser.get(USERINFO, port=SITE).json
        assert "name" not in told and told["picture"] == "https://img.example/a.png" and "phone_number" not in told
        assert "sub" not in told

    def test_nobody(self, browser: Browser) -> None:
        answer = browser.get(USERINFO, port=SITE, Origin="https://evil.example", Sec_Fetch_Mode="navigate")
        assert answer.status == 401 and answer.json["error"] == "not_authenticated"
        assert answer.json["login_url"].endswith("/authservice/login") and answer.header("WWW-Authenticate") == "Bearer"
        assert answer.header("Cache-Control") == "no-store" and "Cookie" in (answer.header("Vary") or "")
        assert answer.header("Location") is None

    def test_a_session_that_ended(self, alice: Browser) -> None:
        jar = dict(alice.jar)
        form(alice, "this")
        alice.jar = jar
        assert alice.get(USERINFO, port=SITE).status == 401

    def test_a_sessions_value_as_bearer(self, alice: Browser) -> None:
        secret = alice.session
        alice.jar.clear()
        answer = alice.get(USERINFO, port=SITE, Authorization=f"Bearer {secret}")
        assert answer.json["user"] == "alice@example.com"

    def test_a_programs_token_good_and_bad(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(AUDIENCES="api")
        token = browser.provider.access_token()
        answer = browser.get(USERINFO, port=SITE, Authorization=f"Bearer {token}")
        assert answer.json["user"] == "alice@example.com"
        answer = browser.get(USERINFO, port=SITE, Authorization=f"Bearer {with_bad_signature(token)}")
        assert answer.status == 401 and answer.json["error"] == "invalid_token"
        assert "invalid_token" in (answer.header("WWW-Authenticate") or "")

    def test_head_and_other_methods(self, alice: Browser) -> None:
        answer = alice.send("HEAD", USERINFO, port=SITE)
        assert answer.status == 200 and answer.body == b""
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            refused = alice.send(method, USERINFO, port=SITE, Origin="https://evil.example",
                                 Access_Control_Request_Method="GET")
            assert (refused.status, refused.header("Allow")) == (405, "GET, HEAD")
            assert not [name for name, _ in refused.headers if name.lower().startswith("access-control-")]

    def test_a_store_that_is_down(self, alice: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(*_: Any) -> None:
            raise StoreDown("told to fail")

        monkeypatch.setattr(Sessions, "load", fails)
        answer = alice.get(USERINFO, port=SITE)
        assert (answer.status, answer.json["error"]) == (503, "store_down") and answer.header("Retry-After")
        shown = look(alice)
        assert shown.status == 503 and shown.header("Set-Cookie") is None


def test_they_may_not_be_in_the_groups_and_still_know_who_they_are(make_browser: Callable[..., Browser]) -> None:
    browser = make_browser(GROUPS_ALLOWLIST="nobody-is-in-this")
    browser.log_in()
    assert browser.get("/", Sec_Fetch_Mode="cors").status == 403
    assert browser.get(USERINFO, port=SITE).status == 200 and look(browser).status == 200


def test_more_than_are_looked_at_are_counted_all_the_same(
    alice: Browser, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account, "MOST_LOOKED_AT", 2)
    for _ in range(4):
        begin_elsewhere(alice, clock)
    assert "4 other sessions" in words(look(alice))


def test_a_login_at_the_site_can_be_found_and_ended(browser: Browser) -> None:
    browser.log_in(User_Agent="Firefox/140")
    directory = browser.app.extensions["authservice"].directory
    (known,) = directory.everyone()
    assert known.about.user_agent == "Firefox/140" and known.about.address == "127.0.0.1"
    assert directory.of_user(known.about.user_id) == [known]
    assert browser.get("/").status == 200
    assert directory.end([known.id]) == 1
    assert browser.get("/", Sec_Fetch_Mode="cors").status == 401
