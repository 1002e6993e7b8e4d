"""The site's doors and pages: callback, login, and what a browser keeps of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from authservice.errors import SettingsError
from authservice.sessions.seal import new_secret
from authservice.settings.table import ROWS
from authservice.site import MOST_LOGINS_AT_ONCE
from tests.conftest import Answer, Browser, Clock, path_of
from tests.sample_sessions import a_session
from tests.waiting import until

JUDGE, SITE = 8080, 8082
CALLBACK = "/authservice/oidc/callback"
BOTH_PORTS = pytest.mark.parametrize("port", [JUDGE, SITE], ids=["judge", "site"])


def assert_refused(browser: Browser, answer: Answer, status: int) -> None:
    """The rules for every refusal (R1 to R3, R6): status, page, no session, no caching."""
    assert answer.status == status
    assert browser.session is None
    assert answer.header("Cache-Control") == "no-store"
    assert answer.header("Referrer-Policy") == "no-referrer"
    assert "default-src 'none'" in (answer.header("Content-Security-Policy") or "")
    assert "<title>" in answer.text and re.search(r"[0-9a-f]{16}", answer.text), "a page with a request id"
    assert browser.get("/", Sec_Fetch_Mode="cors").status == 401


class TestCallback:
    @BOTH_PORTS
    def test_a01_a_login_leads_back_with_a_new_session(self, browser: Browser, port: int) -> None:
        landed = browser.log_in("/deep/link?next=https://other/x&y=//z", port=port)
        assert (landed.status, path_of(landed.header("Location"))) == (302, "/deep/link?next=https://other/x&y=//z")
        assert landed.header("Cache-Control") == "no-store"
        assert browser.session and len(browser.session) == 49 and not browser.pending
        assert len(browser.provider.calls("userinfo")) == 1

    def test_a21_unknown_parameters_are_ignored(self, browser: Browser) -> None:
        assert browser.get(browser.begin() + "&session_state=abc&more=1").status == 302
        assert browser.session

    @pytest.mark.parametrize(
        "query",
        ["", "?code=x", "?code=x&state=", "?code=x&state=unknown", "?state=x", "?code=&state=x",
         "?code=x&state=y&state=y", "?STATE=x&code=y", "?state[]=x&code=y", "?error=access_denied",
         "?error=access_denied&state=unknown&error_description=%3Cscript%3E", "?code=x&state=" + "A" * 8192,
         "?code=x&state=%00", "?code=x&state=%0d%0aSet-Cookie:x", "?code=x&state=%ff%fe"],
    )
    def test_f01_f07_f08_f10_a24_what_was_never_begun_is_400(self, browser: Browser, query: str) -> None:
        answer = browser.get(CALLBACK + query)
        assert_refused(browser, answer, 400)
        assert "<script>" not in answer.text and "access_denied" not in answer.text
        assert not browser.provider.calls("token")

    def test_s17_f02_the_callback_of_another_browser_is_refused_before_any_call(
        self, browser: Browser, make_browser: Callable[..., Browser]
    ) -> None:
        theirs = browser.begin()
        victim = make_browser(browser.app)
        assert_refused(victim, victim.get(theirs), 400)
        assert not browser.provider.calls("token")

    def test_f03_another_logins_cookie_does_not_bind(
        self, browser: Browser, make_browser: Callable[..., Browser]
    ) -> None:
        attackers = browser.begin()
        victim = make_browser(browser.app)
        victim.begin()
        assert_refused(victim, victim.get(attackers), 400)
        (own,) = victim.pending
        (theirs,) = browser.pending
        victim.jar[theirs] = victim.jar[own]
        assert_refused(victim, victim.get(attackers), 400)
        assert not browser.provider.calls("token")

    def test_f04_s18_the_same_callback_again_leads_a_logged_in_person_to_their_page(self, browser: Browser) -> None:
        callback = browser.begin("/page?x=1")
        browser.get(callback)
        secret = browser.session
        again = browser.get(callback)
        assert (again.status, path_of(again.header("Location"))) == (302, "/page?x=1")
        assert browser.session == secret and len(browser.provider.calls("token")) == 1

    def test_f04_and_is_400_for_everybody_else(self, browser: Browser) -> None:
        callback = browser.begin()
        browser.get(callback)
        browser.jar.clear()
        assert_refused(browser, browser.get(callback), 400)
        assert len(browser.provider.calls("token")) == 1

    def test_f05_a_kept_pending_cookie_does_not_redeem_a_code_twice(self, browser: Browser) -> None:
        callback = browser.begin()
        kept = dict(browser.jar)
        browser.get(callback)
        browser.jar = kept
        assert_refused(browser, browser.get(callback), 400)
        assert len(browser.provider.calls("token")) == 1

    def test_f06_a_login_that_took_too_long_starts_again(self, browser: Browser, clock: Clock) -> None:
        callback = browser.begin()
        clock.advance(minutes=11)
        answer = browser.get(callback)
        assert_refused(browser, answer, 400)
        assert "/authservice/login" in answer.text

    def test_f09_code_and_error_together(self, browser: Browser) -> None:
        assert_refused(browser, browser.get(browser.begin() + "&error=access_denied"), 400)
        assert not browser.provider.calls("token")

    @pytest.mark.parametrize(
        ("error", "status"),
        [("access_denied", 403), ("login_required", 403), ("consent_required", 403), ("made_up", 403),
         ("server_error", 502), ("temporarily_unavailable", 503)],
    )
    def test_a23_the_providers_errors(self, browser: Browser, error: str, status: int) -> None:
        sent = browser.get("/x")
        state = parse_qs(urlsplit(sent.header("Location") or "").query)["state"][0]
        answer = browser.get(f"{CALLBACK}?error={error}&error_description=%3Cb%3Eboo%C3%A9%0A&state={quote(state)}")
        assert_refused(browser, answer, status)
        assert "<b>boo" not in answer.text and "boo" not in answer.text
        assert not browser.provider.calls("token")
        assert (answer.header("Retry-After") is not None) is (status == 503)

    @pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
    @BOTH_PORTS
    def test_f17_a22_other_methods_are_405_and_use_nothing_up(self, browser: Browser, method: str, port: int) -> None:
        callback = browser.begin()
        answer = browser.send(method, callback, port=port)
        assert (answer.status, answer.header("Allow")) == (405, "GET")
        assert browser.get(callback).status == 302 and browser.session

    def test_f16_two_tabs_each_come_back_to_their_own_page(self, browser: Browser) -> None:
        first, second = browser.begin("/one"), browser.begin("/two")
        assert path_of(browser.get(second).header("Location")) == "/two"
        assert path_of(browser.get(first).header("Location")) == "/one"
        assert browser.get("/").status == 200

    def test_s31_k07_thirty_tabs_and_never_more_than_six_login_cookies(self, browser: Browser) -> None:
        callbacks = [browser.begin(f"/tab/{number}") for number in range(30)]
        assert len(browser.pending) == 1, "one cookie binds them all"
        for number, callback in enumerate(callbacks):
            assert path_of(browser.get(callback).header("Location")) == f"/tab/{number}"
        assert browser.get("/").status == 200

    def test_s31_any_of_thirty_tabs_can_be_the_one_that_logs_in(self, browser: Browser) -> None:
        callbacks = [browser.begin(f"/tab/{number}") for number in range(30)]
        assert path_of(browser.get(callbacks[0]).header("Location")) == "/tab/0"
        assert browser.get("/").status == 200

    def test_s31_tabs_that_started_without_seeing_each_others_cookie(self, browser: Browser) -> None:
        sent = []
        for number in range(30):
            jar, browser.jar = browser.jar, {}
            sent.append(browser.begin(f"/tab/{number}"))
            browser.jar = {**jar, **browser.jar}
        callback = browser.begin("/last")
        assert len(browser.pending) <= 6
        assert path_of(browser.get(callback).header("Location")) == "/last"
        for number, late in enumerate(sent):
            assert path_of(browser.get(late).header("Location")) == f"/tab/{number}"
        assert not browser.pending or len(browser.pending) <= 6

    def test_s31_a_tab_that_logs_in_leaves_alone_what_another_tab_just_began(self, browser: Browser) -> None:
        """Browsers choose a request's cookies before it waits for a connection: it may bear what an answer
        that came meanwhile has replaced."""
        first, third = browser.begin("/tab/1"), browser.begin("/tab/3")
        jar, browser.jar = browser.jar, {}
        second = browser.begin("/tab/2")
        browser.jar = {**jar, **browser.jar}
        assert path_of(browser.get(first).header("Location")) == "/tab/1"
        waiting = "; ".join(f"{name}={value}" for name, value in browser.jar.items())
        assert path_of(browser.get(second).header("Location")) == "/tab/2"
        assert path_of(browser.get(third, Cookie=waiting).header("Location")) == "/tab/3"
        assert browser.get("/tab/1", Cookie=waiting).status == 200
        assert browser.session not in waiting and browser.get("/tab/2").status == 200

    def test_a_session_that_was_there_before_the_login_ends_with_it(self, browser: Browser) -> None:
        browser.log_in()
        before = browser.session
        browser.get(browser.begin("/authservice/login?rd=%2F"))
        assert browser.session != before and browser.get("/").status == 200
        assert browser.get("/", Cookie=f"authservice_session={before}").status == 302

    def test_another_persons_session_that_came_during_the_login_ends_with_it(
        self, browser: Browser, clock: Clock
    ) -> None:
        """Somebody planted it."""
        sessions = browser.app.extensions["authservice"].sessions
        person = {"issuer": browser.provider.issuer, "subject": browser.provider.claims["sub"]}
        for changes, spared in (({}, True), ({"subject": "somebody-else"}, False), ({"issuer": "https://x"}, False)):
            browser.jar = {}
            callback = browser.begin()
            planted = sessions.begin(a_session(clock, **{**person, **changes}))
            browser.jar["authservice_session"] = planted
            assert browser.get(callback).status == 302 and browser.session != planted
            assert (sessions.record(planted) is not None) is spared

    def test_a_refused_login_can_start_again_to_the_same_page(self, browser: Browser, clock: Clock) -> None:
        callback = browser.begin("/page?x=1")
        clock.advance(minutes=11)
        assert "/authservice/login?rd=%2Fpage%3Fx%3D1" in browser.get(callback).text

    def test_s02_a_long_deep_link_comes_back_whole(self, browser: Browser) -> None:
        target = "/long?" + "x=%2F&" * 300
        callback = browser.begin(target)
        browser.begin("/another")
        assert max(len(name) + len(value) for name, value in browser.jar.items()) < 4096
        other = browser.begin("/short")
        assert path_of(browser.get(other).header("Location")) == "/short"
        assert path_of(browser.get(callback).header("Location")) == target
        assert not browser.pending, "nothing needs the cookie any more"

    @pytest.mark.slow
    def test_p05_a_provider_that_hangs_does_not_take_every_thread(
        self, browser: Browser, make_browser: Callable[..., Browser]
    ) -> None:
        browser.provider.misbehave("slow_token", 3)
        strangers = [make_browser(browser.app) for _ in range(MOST_LOGINS_AT_ONCE + 1)]
        callbacks = [stranger.begin() for stranger in strangers]
        with ThreadPoolExecutor(len(strangers)) as pool:
            waiting = [pool.submit(s.get, c) for s, c in zip(strangers[:-1], callbacks[:-1], strict=True)]
            until(lambda: len(browser.provider.calls("token")) == MOST_LOGINS_AT_ONCE)
            answer = strangers[-1].get(callbacks[-1])
            assert (answer.status, answer.header("Refresh")) == (503, "2") and answer.header("Retry-After")
            browser.provider.behave()
            assert {future.result().status for future in waiting} == {302}
        assert strangers[-1].get(callbacks[-1]).status == 302, "nothing was used up"

    def test_f18_a_login_over_another_persons_session_replaces_it(self, browser: Browser) -> None:
        browser.log_in()
        before = browser.session
        browser.provider.claims.update(sub="bob", email="bob@example.com")
        callback = browser.get("/authservice/login?rd=%2Fx")
        browser.get(browser.at_provider(callback))
        assert browser.get("/").header("kubeflow-userid") == "bob@example.com"
        assert browser.get("/", Cookie=f"authservice_session={before}").status == 302, "the old session has ended"

    def test_k01_s16_a_planted_value_is_never_adopted(self, browser: Browser) -> None:
        planted = new_secret()
        browser.jar["authservice_session"] = planted
        browser.log_in()
        assert browser.session != planted
        assert browser.get("/", Cookie=f"authservice_session={planted}").status == 302

    def test_f19_tokens_in_the_query_are_never_used(self, browser: Browser) -> None:
        answer = browser.get(CALLBACK + "?id_token=x.y.z&access_token=t&state=s")
        assert_refused(browser, answer, 400)

    @pytest.mark.parametrize(
        ("misbehaviour", "status"),
        [("wrong_nonce", 502), ("wrong_issuer", 502), ("userinfo_other_sub", 502), ("token_error_500", 502)],
    )
    def test_r1_to_r7_a_wrong_answer_of_the_provider_is_refused(
        self, browser: Browser, misbehaviour: str, status: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        browser.provider.misbehave(misbehaviour)
        callback = browser.begin()
        assert_refused(browser, browser.get(callback), status)
        assert browser.get(callback).status == 400, "the pending login is used up (R5)"
        assert len(browser.provider.calls("token")) == 1

    def test_keys_that_do_not_come_are_502_at_the_callback(self, browser: Browser) -> None:
        callback = browser.begin()
        browser.provider.rotate_keys()
        browser.provider.misbehave("rotated_key")
        browser.provider.misbehave("jwks_error_500")
        assert_refused(browser, browser.get(callback), 502)

    def test_a_missing_user_id_claim_is_502(self, browser: Browser) -> None:
        del browser.provider.claims["email"]
        assert_refused(browser, browser.log_in(), 502)

    def test_c13_an_unverified_address_is_403_where_it_must_be_verified(
        self, make_browser: Callable[..., Browser]
    ) -> None:
        browser = make_browser(REQUIRE_VERIFIED_EMAIL="true")
        browser.provider.claims["email_verified"] = "true"
        assert_refused(browser, browser.log_in(), 403)
        browser.provider.claims["email_verified"] = True
        assert browser.log_in().status == 302

    def test_s14_no_setting_decides_by_mail_address_and_an_ambiguous_one_is_refused(self, browser: Browser) -> None:
        deciding = {row.name for row in ROWS if re.search("MAIL|DOMAIN", row.name)}
        assert deciding == {"REQUIRE_VERIFIED_EMAIL", "SESSION_COOKIE_DOMAIN"}
        for address in ("a@evil.org@example.com", '"a@b"@example.com', "a@example.com ", "a b@example.com"):
            browser.provider.claims["email"] = address
            assert_refused(browser, browser.log_in(), 403)

    def test_r2_a_refused_login_leaves_an_earlier_session_alone(self, browser: Browser) -> None:
        browser.log_in()
        secret = browser.session
        started = browser.get("/authservice/login")
        browser.provider.misbehave("wrong_nonce")
        assert browser.get(browser.at_provider(started)).status == 502
        assert browser.session == secret and browser.get("/").status == 200

    def test_b28_strict_lands_by_a_page_of_our_own(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(SESSION_SAME_SITE="strict")
        landed = browser.log_in("/page?x=1&y=2")
        assert landed.status == 201 and "/page?x=1" in landed.text
        assert landed.header("Location") is None
        assert "SameSite=Strict" in browser.attributes["authservice_session"]

    def test_nested_claims_and_groups_as_one_string(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(USERID_CLAIM="profile.name", GROUPS_CLAIM="realm_access.roles", USERID_LOWERCASE="true")
        browser.provider.claims.update(profile={"name": "Alice"}, realm_access={"roles": "one,group"})
        browser.log_in()
        answer = browser.get("/")
        assert answer.header("kubeflow-userid") == "alice"
        assert answer.header("kubeflow-groups") == "one%2Cgroup"


class TestCookies:
    def test_k10_attributes_of_every_cookie_also_on_deletion(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(REDIRECT_URL="https://app.example/authservice/oidc/callback")
        browser.log_in()
        browser.send("POST", "/authservice/logout", Sec_Fetch_Site="same-origin")
        assert set(browser.attributes) >= {"authservice_session", "authservice_session_rounds"}
        for name, attributes in browser.attributes.items():
            lowered = attributes.lower()
            for wanted in ("secure", "httponly", "samesite=lax", "path=/"):
                assert wanted in lowered, (name, attributes)
            assert "domain" not in lowered

    @pytest.mark.parametrize(
        ("changes", "forwarded", "secure"),
        [
            ({}, "https", False),
            ({"TRUSTED_PROXIES": "127.0.0.1"}, "https", True),
            ({"TRUSTED_PROXIES": "127.0.0.1"}, "http", False),
            ({"TRUSTED_PROXIES": "10.0.0.0/8"}, "https", False),
            ({"REDIRECT_URL": "https://app.example/authservice/oidc/callback"}, "http", True),
            ({"SESSION_COOKIE_SECURE": "true"}, "http", True),
            ({"SESSION_COOKIE_SECURE": "false", "TRUSTED_PROXIES": "127.0.0.1"}, "https", False),
        ],
    )
    def test_h04_secure_follows_the_outside(
        self, make_browser: Callable[..., Browser], changes: dict[str, str], forwarded: str, secure: bool
    ) -> None:
        browser = make_browser(**changes)
        browser.get(browser.begin(X_Forwarded_Proto=forwarded), X_Forwarded_Proto=forwarded)
        assert {("secure" in attributes.lower()) for attributes in browser.attributes.values()} == {secure}

    def test_name_domain_and_scripts_by_setting(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(SESSION_COOKIE_NAME="sid", SESSION_COOKIE_DOMAIN="example.com",
                               SESSION_COOKIE_HTTPONLY="false", SESSION_MAX_AGE="600")
        browser.log_in()
        attributes = browser.attributes["sid"]
        assert "Domain=example.com" in attributes and "HttpOnly" not in attributes and "Max-Age=600" in attributes
        assert browser.get("/").status == 200

    def test_k04_a_host_cookie_cannot_be_tossed_from_a_sibling(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(SESSION_COOKIE_NAME="__Host-session",
                               REDIRECT_URL="https://app.example/authservice/oidc/callback")
        browser.log_in()
        for name, attributes in browser.attributes.items():
            assert name.startswith("__Host-session")
            assert "Secure" in attributes and "Path=/" in attributes and "Domain" not in attributes
        assert browser.get("/").status == 200
        for refused in ({"SESSION_COOKIE_DOMAIN": "example.com"}, {"SESSION_COOKIE_SECURE": "false"}):
            with pytest.raises(SettingsError, match="__Host-"):
                make_browser(SESSION_COOKIE_NAME="__Host-session", **refused)

    def test_k06_no_cookies_size_depends_on_claims(self, browser: Browser) -> None:
        browser.provider.claims["groups"] = [f"group-{number}" for number in range(300)]
        browser.log_in()
        assert len(browser.session or "") == 49


class TestLogin:
    @BOTH_PORTS
    def test_it_begins_a_login_and_leads_back(self, browser: Browser, port: int) -> None:
        started = browser.get("/authservice/login?rd=%2Fpage%3Fa%3Db", port=port)
        assert started.status == 302
        landed = browser.get(browser.at_provider(started), port=port)
        assert path_of(landed.header("Location")) == "/page?a=b"

    @pytest.mark.parametrize(
        "query", ["", "?rd=", "?rd=https%3A%2F%2Fevil.example%2F", "?rd=%2F%2Fevil.example", "?rd=/a&rd=/b", "?next=/a"]
    )
    def test_o10_hostile_or_missing_addresses_lead_to_the_homepage(self, browser: Browser, query: str) -> None:
        landed = browser.get(browser.at_provider(browser.get("/authservice/login" + query)))
        assert landed.header("Location") == "/authservice/site/homepage"

    def test_nginx_tells_the_address_in_a_header(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(GATEWAY="nginx")
        started = browser.get("/authservice/login", X_Original_URI="/deep?a=b", X_Original_Method="GET")
        landed = browser.get(browser.at_provider(started))
        assert path_of(landed.header("Location")) == "/deep?a=b"

    def test_other_methods_are_405(self, browser: Browser) -> None:
        assert browser.send("POST", "/authservice/login").status == 405

    @pytest.mark.parametrize(
        "headers", [{"Sec_Fetch_Dest": "image"}, {"Sec_Fetch_Mode": "cors"}, {"X_Requested_With": "XMLHttpRequest"}]
    )
    @BOTH_PORTS
    def test_f21_what_opens_no_page_begins_no_login(self, browser: Browser, headers: dict[str, str], port: int) -> None:
        answer = browser.get("/authservice/login", port=port, **headers)
        assert answer.status == 401 and not answer.all("Set-Cookie")
        assert answer.json["login_url"] == "/authservice/login"

    def test_k07_many_parameters_are_no_error(self, browser: Browser) -> None:
        assert browser.get("/authservice/login?" + "&".join(f"a{n}=b" for n in range(1500))).status == 302

    def test_after_login_url_takes_the_page_as_next(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(AFTER_LOGIN_URL="/welcome?a=1")
        assert path_of(browser.log_in("/x?y=1").header("Location")) == "/welcome?a=1&next=%2Fx%3Fy%3D1"


class TestPages:
    @pytest.mark.parametrize("prefix", ["", "/authservice"])
    def test_u50_u51_u52_pages_and_theme_with_and_without_the_prefix(self, browser: Browser, prefix: str) -> None:
        for path in ("/site/homepage", "/site/after_logout"):
            answer = browser.get(prefix + path, port=SITE)
            assert answer.status == 200 and (answer.header("Content-Type") or "").startswith("text/html")
            assert answer.header("Cache-Control") == "no-store"
            head = browser.send("HEAD", prefix + path, port=SITE)
            assert head.status == 200 and head.body == b""
            assert browser.send("POST", prefix + path, port=SITE).status == 405
        style = browser.get(prefix + "/site/themes/kubeflow/styles.css", port=SITE)
        assert style.status == 200 and (style.header("Content-Type") or "").startswith("text/css")
        etag = style.header("ETag") or ""
        assert browser.get(prefix + "/site/themes/kubeflow/styles.css", port=SITE, If_None_Match=etag).status == 304

    @pytest.mark.parametrize(
        "path",
        ["", "kubeflow", "kubeflow/", "../default/base.html", "kubeflow/../../default/base.html",
         "kubeflow/%2e%2e/%2e%2e/default/base.html", "/etc/passwd", "..%2f..%2fsetup.cfg", "kubeflow/.hidden", "\\..\\x"],
    )
    def test_theme_files_cannot_be_used_to_read_anything_else(self, browser: Browser, path: str) -> None:
        assert browser.get(f"/site/themes/{path}", port=SITE).status == 404

    def test_unknown_pages_are_404_with_a_page(self, browser: Browser) -> None:
        answer = browser.get("/authservice/nothing", port=SITE)
        assert answer.status == 404 and "<title>" in answer.text

    def test_no_error_page_has_internal_words(self, browser: Browser) -> None:
        texts = [
            browser.get("/authservice/nothing", port=SITE).text,
            browser.get(CALLBACK + "?code=x&state=y").text,
            browser.send("PUT", "/authservice/logout").text,
            browser.get("/authservice/verify/x", port=SITE).text,
        ]
        for word in ("Traceback", "authservice.", ".py", "sqlite", "redis", "Exception", "Error:", "werkzeug", "flask"):
            assert not any(word in text for text in texts), word


class TestProbes:
    def test_alive_and_ready(self, browser: Browser) -> None:
        assert browser.get("/healthz", port=SITE).status == 200
        answer = until(lambda: (got := browser.get("/readyz", port=SITE)).status == 200 and got)
        assert answer.json == {"provider": "ok", "store": "ok"}

    def test_not_ready_while_the_provider_was_never_reached(self, make_browser: Callable[..., Browser]) -> None:
        waiting = make_browser(OIDC_PROVIDER="http://127.0.0.1:1/")
        answer = waiting.get("/readyz", port=SITE)
        assert (answer.status, answer.json["provider"]) == (503, "not_ready")
        assert waiting.get("/healthz", port=SITE).status == 200

    def test_the_readiness_listener_answers_on_any_path(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(READINESS_PROBE_PORT="8081")
        until(lambda: browser.get("/", port=8081).status == 200)
        for target in ("/", "/any/path"):
            answer = browser.get(target, port=8081)
            assert (answer.status, answer.body) == (200, b"")
        waiting = make_browser(READINESS_PROBE_PORT="8081", OIDC_PROVIDER="http://127.0.0.1:1/")
        assert waiting.get("/", port=8081).status == 503

    def test_without_the_setting_there_is_no_such_listener(self, browser: Browser) -> None:
        assert browser.get("/", port=8081).status == 404
