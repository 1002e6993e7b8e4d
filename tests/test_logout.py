"""Logging out: asked for by people and programs, at the provider too, and told by the provider."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import pytest
from flask import Flask

import authservice.app
from authservice.bodies import MOST_BODY
from authservice.logout import MOST_ASKING_AT_ONCE, MOST_NOTICES_AT_ONCE, PATIENCE
from authservice.oidc.logout import MAX_FORM
from authservice.oidc.source import KEY_FETCH_BURST
from authservice.ops import EndedBy, Metric
from authservice.sessions.seal import new_secret
from tests.conftest import Answer, Browser, Clock, Told, ask
from tests.provider import LOGOUT_TOKENS, FakeProvider, nasty_sid
from tests.sample_sessions import WatchedStore, a_session
from tests.served import exchange, request, serving
from tests.servers import any_redis, running_redis
from tests.waiting import by_then, until

JUDGE, SITE = 8080, 8082
BOTH_PORTS = pytest.mark.parametrize("port", [JUDGE, SITE], ids=["judge", "site"])
LOGOUT = "/authservice/logout"
BACK_CHANNEL = "/authservice/backchannel-logout"
FRONT_CHANNEL = "/authservice/frontchannel-logout"
AFTER = "/authservice/site/after_logout"
FORM = "application/x-www-form-urlencoded"
OURS = "https://app.example"
CALLBACK = OURS + "/authservice/oidc/callback"
SUBJECT = "248289761001"


@pytest.fixture
def provider(provider: FakeProvider) -> FakeProvider:
    """Says which of its sessions a login is of, as those do that end sessions."""
    provider.new_sid = nasty_sid
    provider.post_logout_addresses = {OURS + AFTER}
    return provider


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Callable[[], WatchedStore]:
    """The store of the application that was made last; fails when it is told to."""
    made: list[WatchedStore] = []
    build = authservice.app.build_store

    def watched(*given: Any, **more: Any) -> WatchedStore:
        made.append(WatchedStore(build(*given, **more)))
        return made[-1]

    monkeypatch.setattr(authservice.app, "build_store", watched)
    return lambda: made[-1]


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What the applications log."""
    told = Told()
    logging.getLogger("authservice").addHandler(told)
    yield told.lines
    logging.getLogger("authservice").removeHandler(told)


def notify(app: Flask, token: str, *, method: str = "POST", target: str = BACK_CHANNEL, port: int = SITE,
           content_type: str = FORM, body: bytes | None = None) -> Answer:
    """The provider sends a logout token, with a field beside it that means nothing."""
    form = urlencode({"extra": "field", "logout_token": token}).encode() if body is None else body
    return ask(app, method, target, port=port, body=form,
               headers={"Host": "app.example", "Content-Type": content_type})


def assert_heeded(answer: Answer) -> None:
    assert (answer.status, answer.body, answer.header("Cache-Control")) == (200, b"", "no-store")


def assert_bad(answer: Answer) -> None:
    assert (answer.status, answer.header("Cache-Control")) == (400, "no-store")
    assert answer.json == {"error": "invalid_request"}


def assert_not_now(answer: Answer) -> None:
    assert (answer.status, answer.header("Cache-Control")) == (503, "no-store")
    assert answer.header("Retry-After")


def sid_of(browser: Browser) -> str:
    """The ``sid`` of the login that was the last one at the provider."""
    return list(browser.provider._refresh_tokens.values())[-1].sid or ""


def is_in(browser: Browser) -> bool:
    answer = browser.get("/", Sec_Fetch_Mode="cors")
    assert answer.status in (200, 401)
    return answer.status == 200


def count(app: Flask, metric: Metric, by: EndedBy) -> int:
    return int(app.extensions["authservice"].counts.counters()[metric.one(by.value)])


class TestAskedForHere:
    @BOTH_PORTS
    def test_e2_cookie_alone_401_then_bearer_201_then_the_cookie_is_dead(self, browser: Browser, port: int) -> None:
        browser.log_in()
        secret = browser.session
        refused = browser.send("POST", "/authservice/logout", port=port)
        assert refused.status == 401 and not refused.all("Set-Cookie")
        assert browser.get("/").status == 200
        done = ask(browser.app, "POST", "/authservice/logout", port=port, headers={"Authorization": f"Bearer {secret}"})
        assert (done.status, done.json) == (201, {"afterLogoutURL": "/authservice/site/after_logout"})
        assert any(line.startswith("authservice_session=;") for line in done.all("Set-Cookie"))
        assert browser.get("/", Cookie=f"authservice_session={secret}").status == 302
        again = ask(browser.app, "POST", "/authservice/logout", port=port, headers={"Authorization": f"Bearer {secret}"})
        assert again.status == 401

    @pytest.mark.parametrize("value", ["", "garbage", "A" * 43, "well formed", "Bearer", "Basic YTpi", "\xff"])
    def test_b42_garbage_is_401_on_every_store(self, browser: Browser, value: str) -> None:
        value = f"Bearer {new_secret()}" if value == "well formed" else value
        answer = ask(browser.app, "POST", "/authservice/logout", port=JUDGE, headers={"Authorization": value})
        assert answer.status == 401 and not answer.all("Set-Cookie")

    @pytest.mark.parametrize(
        "proof",
        [{"Sec_Fetch_Site": "same-origin"}, {"Origin": "http://app.example"}, {"Origin": "https://app.example"}],
    )
    def test_s27_the_cookie_counts_with_same_origin_proof(self, browser: Browser, proof: dict[str, str]) -> None:
        browser.log_in()
        answer = browser.send("POST", "/authservice/logout", **proof)
        assert answer.status == 201 and browser.session is None
        assert browser.get("/").status == 302

    @pytest.mark.parametrize(
        "proof",
        [{}, {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}, {"Sec_Fetch_Site": "none"},
         {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "https://app.example.evil.example"},
         {"Sec_Fetch_Site": "cross-site", "Origin": "https://app.example"}, {"Referer": "https://app.example/"}],
    )
    def test_s27_and_not_without(self, browser: Browser, proof: dict[str, str]) -> None:
        browser.log_in()
        assert browser.send("POST", "/authservice/logout", **proof).status == 401
        assert browser.get("/").status == 200

    def test_the_scheme_of_the_origin_counts_where_it_is_known(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(AUTHSERVICE_URL_PREFIX="https://app.example/authservice/")
        browser.log_in()
        assert browser.send("POST", "/authservice/logout", Origin="http://app.example").status == 401
        assert browser.send("POST", "/authservice/logout", Origin="https://app.example").status == 201

    @pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
    @BOTH_PORTS
    def test_get_never_logs_out(self, browser: Browser, method: str, port: int) -> None:
        browser.log_in()
        answer = browser.send(method, "/authservice/logout", port=port, Sec_Fetch_Site="same-origin")
        assert (answer.status, answer.header("Allow")) == (405, "POST")
        assert browser.get("/").status == 200

    def test_a_form_goes_to_the_after_logout_page(self, browser: Browser) -> None:
        browser.log_in()
        form = {"Sec_Fetch_Site": "same-origin", "Sec_Fetch_Mode": "navigate", "Accept": "text/html"}
        answer = browser.send("POST", "/authservice/logout", **form)
        assert (answer.status, answer.header("Location")) == (303, "/authservice/site/after_logout")
        again = browser.send("POST", "/authservice/logout", **form)
        assert again.status == 303, "a person whose session is gone already is logged out as well"

    @pytest.mark.parametrize("address", ["https://elsewhere.example/bye", "/"])
    def test_a_form_that_ends_elsewhere_is_led_on_by_a_page(
        self, make_browser: Callable[..., Browser], address: str
    ) -> None:
        browser = make_browser(AFTER_LOGOUT_URL=address)
        browser.log_in()
        answer = browser.send("POST", "/authservice/logout", Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="navigate")
        assert answer.status == 201 and browser.session is None
        assert answer.header("Refresh") == f"0; url={address}" and "You are logged out" in answer.text

    def test_s13_the_deletion_has_the_cookies_own_attributes(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(SESSION_COOKIE_DOMAIN="example.com", SESSION_COOKIE_SECURE="true", SESSION_SAME_SITE="None")
        browser.log_in()
        given = browser.attributes["authservice_session"]
        answer = browser.send("POST", "/authservice/logout", Sec_Fetch_Site="same-origin")
        (deletion,) = [line for line in answer.all("Set-Cookie") if line.startswith("authservice_session=;")]
        for attribute in ("Domain=example.com", "Secure", "HttpOnly", "SameSite=None", "Path=/"):
            assert attribute in given and attribute in deletion

    def test_b41_tokens_are_revoked_and_a_failing_provider_keeps_nobody_logged_in(self, browser: Browser) -> None:
        browser.log_in()
        browser.send("POST", "/authservice/logout", Sec_Fetch_Site="same-origin")
        assert browser.provider.calls("revoke")
        browser.log_in()
        browser.provider.stop()
        answer = browser.send("POST", "/authservice/logout", Sec_Fetch_Site="same-origin")
        assert answer.status == 201 and answer.json["notRevoked"]
        assert answer.json["afterLogoutURL"] == "/authservice/site/after_logout"
        assert browser.session is None

    @pytest.mark.parametrize("origin", ["http://[x", "://", "x" * 9000])
    def test_an_origin_that_is_none_proves_nothing(self, browser: Browser, origin: str) -> None:
        browser.log_in()
        assert browser.send("POST", "/authservice/logout", Origin=origin).status == 401

    def test_only_the_bearers_session_ends(self, browser: Browser, make_browser: Callable[..., Browser]) -> None:
        browser.log_in()
        other = make_browser(browser.app)
        other.log_in()
        answer = browser.send("POST", "/authservice/logout", Authorization=f"Bearer {other.session}")
        assert answer.status == 201
        assert other.get("/").status == 302
        assert browser.session and browser.get("/").status == 200


class TestAtTheProviderToo:
    @pytest.fixture(autouse=True)
    def ends_sessions(self, provider: FakeProvider) -> None:
        provider.has_end_session = True

    @pytest.fixture
    def browser(self, make_browser: Callable[..., Browser]) -> Browser:
        return make_browser(REDIRECT_URL=CALLBACK)

    def leave(self, browser: Browser, **headers: str) -> str:
        """Logs out by a script, and says where that leads."""
        answer = browser.send("POST", LOGOUT, Sec_Fetch_Site="same-origin", **headers)
        assert (answer.status, list(answer.json)) == (201, ["afterLogoutURL"])
        assert answer.header("Cache-Control") == "no-store"
        return str(answer.json["afterLogoutURL"])

    def test_a25_ours_ends_first_and_then_the_providers(self, browser: Browser) -> None:
        browser.log_in()
        secret, provider = browser.session, browser.provider
        url = self.leave(browser)
        assert browser.session is None
        assert browser.get("/", Cookie=f"authservice_session={secret}", Sec_Fetch_Mode="cors").status == 401
        assert not provider.calls("end_session"), "that is the browser's way"
        assert url.startswith(provider.address("end_session") + "?")
        asked = dict(parse_qsl(urlsplit(url).query))
        state = asked.pop("state")
        assert asked == {
            "id_token_hint": next(iter(provider._issued)), "client_id": provider.client_id,
            "post_logout_redirect_uri": OURS + AFTER,
        }
        assert provider.authorize_location(url) == f"{OURS}{AFTER}?state={state}"
        assert len(provider.calls("revoke")) == 2

    def test_a25_a_form_is_led_there_by_a_page(self, browser: Browser) -> None:
        browser.log_in()
        answer = browser.send("POST", LOGOUT, Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="navigate")
        assert answer.status == 201 and browser.session is None
        url = (answer.header("Refresh") or "").removeprefix("0; url=")
        assert browser.provider.authorize_location(url).startswith(OURS + AFTER)
        assert (answer.header("Cache-Control"), answer.header("Referrer-Policy")) == ("no-store", "no-referrer")
        again = browser.send("POST", LOGOUT, Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="navigate")
        assert (again.status, again.header("Location")) == (303, AFTER), "nothing to hint at"

    def test_a25_a_program_is_told_as_ever(self, browser: Browser) -> None:
        browser.log_in()
        bearer = {"Authorization": f"Bearer {browser.session}"}
        answer = ask(browser.app, "POST", LOGOUT, port=JUDGE, headers={"Host": "app.example", **bearer})
        assert (answer.status, list(answer.json)) == (201, ["afterLogoutURL"])
        assert browser.provider.authorize_location(answer.json["afterLogoutURL"]).startswith(OURS + AFTER)

    def test_the_state_is_a_new_one_each_time(self, browser: Browser) -> None:
        states = set()
        for _ in range(3):
            browser.log_in()
            states.add(dict(parse_qsl(urlsplit(self.leave(browser)).query))["state"])
        assert len(states) == 3 and all(len(state) >= 20 for state in states)

    @pytest.mark.parametrize("query", ["", "?state=ours", "?state=other&state=two", "?state=%0d%0aSet-Cookie:x",
                                       "?post_logout_redirect_uri=https://evil.example/&rd=//evil.example"])
    def test_a26_l11_the_way_back_is_a_page_whatever_it_brings(self, browser: Browser, query: str) -> None:
        answer = browser.get(AFTER + query, port=SITE)
        assert answer.status == 200 and "logged out" in answer.text
        assert not answer.all("Location") and not answer.all("Set-Cookie") and "evil" not in answer.text
        assert not is_in(browser)

    @pytest.mark.parametrize("name", ["post_logout_redirect_uri", "rd", "next", "afterLogoutURL", "returnTo", "url"])
    @pytest.mark.parametrize("address", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:x"])
    def test_l11_no_address_is_taken_from_the_request(self, browser: Browser, name: str, address: str) -> None:
        browser.log_in()
        target = f"{LOGOUT}?{name}={quote(address, safe='')}"
        answer = browser.send("POST", target, Sec_Fetch_Site="same-origin", Referer=address)
        url = answer.json["afterLogoutURL"]
        assert "evil" not in unquote(unquote(url)) and "javascript" not in url
        assert browser.provider.authorize_location(url).startswith(OURS + AFTER)

    def test_l12_without_such_an_endpoint_our_own_page_is_the_end(
        self, make_browser: Callable[..., Browser], provider: FakeProvider
    ) -> None:
        provider.has_end_session = False
        browser = make_browser()
        browser.log_in()
        assert self.leave(browser) == AFTER
        assert browser.session is None

    def test_l12_an_address_of_the_settings_keeps_its_query(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser(OIDC_END_SESSION_URL="/logout?tenant=a%20b", REDIRECT_URL=CALLBACK)
        browser.log_in()
        url = self.leave(browser)
        assert url.startswith("/logout?tenant=a%20b&id_token_hint=")
        browser.log_in()
        answer = browser.send("POST", LOGOUT, Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="navigate")
        assert answer.status == 201 and (answer.header("Refresh") or "").startswith("0; url=/logout?tenant=a%20b&")

    def test_without_a_known_origin_no_address_is_given(self, make_browser: Callable[..., Browser]) -> None:
        browser = make_browser()
        browser.log_in()
        assert set(dict(parse_qsl(urlsplit(self.leave(browser)).query))) == {"id_token_hint", "client_id"}

    def test_the_origin_may_come_from_a_proxy_that_is_trusted(
        self, make_browser: Callable[..., Browser], provider: FakeProvider
    ) -> None:
        browser = make_browser(TRUSTED_PROXIES="127.0.0.1")
        browser.log_in()
        url = self.leave(browser, X_Forwarded_Proto="https")
        assert provider.authorize_location(url).startswith(OURS + AFTER)

    def test_the_address_has_a_setting(self, make_browser: Callable[..., Browser], provider: FakeProvider) -> None:
        provider.post_logout_addresses = {"https://elsewhere.example/bye"}
        browser = make_browser(POST_LOGOUT_REDIRECT_URL="https://elsewhere.example/bye")
        browser.log_in()
        assert provider.authorize_location(self.leave(browser)).startswith("https://elsewhere.example/bye?state=")

    @pytest.mark.parametrize("changes", [{"id_token": ""}, {"issuer": "https://former.example"}])
    def test_without_an_id_token_of_this_provider_nothing_is_asked_of_it(
        self, browser: Browser, clock: Clock, changes: dict[str, str]
    ) -> None:
        given = {"issuer": browser.provider.issuer, **changes}
        service = browser.app.extensions["authservice"]
        service.provider.metadata()
        browser.jar["authservice_session"] = service.sessions.begin(a_session(clock, **given))
        assert self.leave(browser) == AFTER
        assert len(browser.provider.calls("revoke")) == (0 if "issuer" in changes else 2), "nor another's tokens shown"

    def test_a_provider_that_is_away_keeps_nobody_in(self, browser: Browser) -> None:
        browser.log_in()
        browser.provider.stop()
        answer = browser.send("POST", LOGOUT, Sec_Fetch_Site="same-origin")
        assert answer.status == 201 and answer.json["notRevoked"]
        assert answer.json["afterLogoutURL"].startswith(browser.provider.address("end_session"))
        assert browser.session is None and not is_in(browser)

    def test_a_provider_that_was_never_reached_keeps_nobody_in(
        self, browser: Browser, make_browser: Callable[..., Browser]
    ) -> None:
        browser.log_in()
        browser.provider.stop()
        later = make_browser(REDIRECT_URL=CALLBACK)
        later.jar.update(browser.jar)
        answer = later.send("POST", LOGOUT, Sec_Fetch_Site="same-origin")
        assert (answer.status, answer.json["afterLogoutURL"]) == (201, AFTER)
        assert later.session is None

    def test_l14_nothing_of_ours_is_there_for_the_back_button(self, browser: Browser) -> None:
        browser.log_in()
        cookies = "; ".join(f"{name}={value}" for name, value in browser.jar.items())
        self.leave(browser)
        pages = [browser.get(AFTER, port=SITE), browser.get("/authservice/site/homepage", port=SITE), browser.get("/")]
        assert [page.header("Cache-Control") for page in pages] == ["no-store"] * 3
        assert browser.get("/", Cookie=cookies, Sec_Fetch_Mode="cors").status == 401

    def test_no_id_token_is_logged(self, browser: Browser, lines: list[str]) -> None:
        browser.log_in()
        self.leave(browser)
        assert lines and not [line for line in lines if next(iter(browser.provider._issued)) in line]


class TestBackChannel:
    def test_a27_a33_a34_it_ends_the_session_at_once(
        self, browser: Browser, make_browser: Callable[..., Browser]
    ) -> None:
        other = make_browser(browser.app)
        other.log_in()
        browser.log_in()
        assert is_in(browser) and is_in(browser), "from memory, too"
        token = browser.provider.logout_token(sub=SUBJECT, sid=sid_of(browser))
        assert_heeded(notify(browser.app, token))
        assert not is_in(browser) and is_in(other)
        assert count(browser.app, Metric.LOGOUTS, EndedBy.BACK_CHANNEL) == 1

    def test_a28_a_session_that_is_not_there_is_logged_out(self, browser: Browser) -> None:
        browser.log_in()
        sid = sid_of(browser)
        assert_heeded(notify(browser.app, browser.provider.logout_token(sid="unknown")))
        assert_heeded(notify(browser.app, browser.provider.logout_token(sub="unknown")))
        assert is_in(browser)
        browser.send("POST", LOGOUT, Sec_Fetch_Site="same-origin")
        assert_heeded(notify(browser.app, browser.provider.logout_token(sub=SUBJECT, sid=sid)))

    @pytest.mark.parametrize("wrong", LOGOUT_TOKENS)
    def test_a29_a30_a31_a32_l02_l04_what_is_no_good_notice_ends_nothing(self, browser: Browser, wrong: str) -> None:
        browser.log_in()
        token = browser.provider.logout_token(wrong, sub=SUBJECT, sid=sid_of(browser))
        assert_bad(notify(browser.app, token))
        assert is_in(browser)
        assert count(browser.app, Metric.NOTICES_REFUSED, EndedBy.BACK_CHANNEL) == 1
        assert count(browser.app, Metric.LOGOUTS, EndedBy.BACK_CHANNEL) == 0

    def test_l02_an_id_token_is_no_notice(self, browser: Browser) -> None:
        browser.log_in()
        assert_bad(notify(browser.app, next(iter(browser.provider._issued))))
        assert is_in(browser)

    @pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
    def test_l01_any_other_method_is_405(self, browser: Browser, method: str) -> None:
        browser.log_in()
        token = browser.provider.logout_token(sid=sid_of(browser))
        answer = notify(browser.app, token, method=method, target=f"{BACK_CHANNEL}?logout_token={token}")
        assert (answer.status, answer.header("Allow"), answer.header("Cache-Control")) == (405, "POST", "no-store")
        assert is_in(browser)

    def test_l01_what_is_not_one_token_in_a_form_is_400(self, browser: Browser) -> None:
        browser.log_in()
        app, token = browser.app, browser.provider.logout_token(sid=sid_of(browser))
        one = f"logout_token={token}".encode()
        assert_bad(notify(app, token, content_type="application/json", body=b'{"logout_token": "%s"}' % token.encode()))
        assert_bad(notify(app, token, content_type="multipart/form-data; boundary=x"))
        assert_bad(notify(app, token, content_type=""))
        assert_bad(notify(app, token, target=f"{BACK_CHANNEL}?logout_token={token}", body=b""))
        assert_bad(notify(app, token, body=b"logout_token="))
        assert_bad(notify(app, token, body=one + b"&" + one))
        assert_bad(notify(app, token, body=one + b"&x=%ff\xff"))
        assert_bad(notify(app, token, body=one + b"&x=" + b"x" * MAX_FORM))
        assert_bad(notify(app, token, body=(one + b"&x=").ljust(MOST_BODY, b"x")))
        assert notify(app, token, body=(one + b"&x=").ljust(MOST_BODY + 1, b"x")).status == 413  # by the server itself
        assert is_in(browser)
        assert_heeded(notify(app, token, content_type=FORM + "; charset=utf-8"))  # and it was not used up
        assert not is_in(browser)

    def test_it_is_not_on_the_port_of_checks(self, browser: Browser) -> None:
        browser.log_in()
        token = browser.provider.logout_token(sid=sid_of(browser))
        assert notify(browser.app, token, port=JUDGE).body == b""
        assert is_in(browser)

    def test_l05_by_subject_all_of_a_person_and_by_sid_one(
        self, browser: Browser, make_browser: Callable[..., Browser]
    ) -> None:
        provider, people = browser.provider, [browser, *(make_browser(browser.app) for _ in range(4))]
        sids = []
        for person in people:
            person.log_in()
            sids.append(sid_of(person))
        provider.claims["sub"] = "another"
        stranger = make_browser(browser.app)
        stranger.log_in()
        assert_heeded(notify(browser.app, provider.logout_token(sid=sids[0])))
        assert [is_in(person) for person in people] == [False, True, True, True, True]
        assert_heeded(notify(browser.app, provider.logout_token(sub="another", sid=sids[1])))  # they do not fit
        assert [is_in(person) for person in (*people, stranger)] == [False, True, True, True, True, True]
        assert_heeded(notify(browser.app, provider.logout_token(sub=SUBJECT)))
        assert [is_in(person) for person in (*people, stranger)] == [False] * 5 + [True]

    def test_l07_a_flood_of_unknown_keys_asks_no_more_often_than_anybody_may(self, browser: Browser) -> None:
        browser.log_in()
        provider, sid = browser.provider, sid_of(browser)
        provider.forget_calls()
        with ThreadPoolExecutor(20) as threads:
            tokens = [provider.logout_token("unknown_kid", sid=sid) for _ in range(60)]
            answers = list(threads.map(lambda token: notify(browser.app, token), tokens))
        assert {answer.status for answer in answers} <= {400, 503}
        assert len(provider.calls("jwks")) <= KEY_FETCH_BURST
        assert is_in(browser)
        assert_heeded(notify(browser.app, provider.logout_token(sid=sid)))

    def test_l07_and_does_not_keep_true_notices_waiting(self, browser: Browser) -> None:
        browser.log_in()
        provider, sid = browser.provider, sid_of(browser)
        provider.misbehave("slow_jwks", 30)
        with ThreadPoolExecutor(MOST_ASKING_AT_ONCE + 5) as threads:
            try:
                tokens = [provider.logout_token("unknown_kid", sid=sid) for _ in range(MOST_ASKING_AT_ONCE + 5)]
                asking = [threads.submit(notify, browser.app, token) for token in tokens]
                until(lambda: sum(one.done() for one in asking) >= 5)
                assert {one.result().status for one in asking if one.done()} <= {400, 503}
                began = time.monotonic()
                assert_heeded(notify(browser.app, provider.logout_token(sid=sid)))
                assert time.monotonic() - began < 1
            finally:
                provider.behave()
                provider.stop()
        assert not is_in(browser)

    def test_new_keys_are_fetched_for_a_notice(self, browser: Browser) -> None:
        browser.log_in()
        browser.provider.rotate_keys()
        assert_heeded(notify(browser.app, browser.provider.logout_token(sid=sid_of(browser))))
        assert not is_in(browser)

    @pytest.mark.parametrize("size", ["20000", "0"], ids=["cached", "not cached"])
    def test_l09_it_reaches_every_other_service_on_the_store(
        self, make_browser: Callable[..., Browser], size: str
    ) -> None:
        first, second = make_browser(SESSION_CACHE_SIZE=size), make_browser(SESSION_CACHE_SIZE=size)
        self.ends_elsewhere(first, second)

    @pytest.mark.external
    @pytest.mark.parametrize("size", ["20000", "0"], ids=["cached", "not cached"])
    def test_l09_also_on_redis(self, make_browser: Callable[..., Browser], tmp_path: Path, size: str) -> None:
        with running_redis(any_redis(), tmp_path) as server:
            changes = {
                "SESSION_STORE_TYPE": "redis", "SESSION_STORE_REDIS_ADDR": server.address, "SESSION_CACHE_SIZE": size,
            }
            first, second = make_browser(**changes), make_browser(**changes)
            self.ends_elsewhere(first, second)
            for browser in (first, second):
                browser.app.extensions["authservice"].stop()

    def ends_elsewhere(self, first: Browser, second: Browser) -> None:
        first.log_in()
        second.jar.update(first.jar)
        for _ in range(5):
            assert is_in(first) and is_in(second)
        if second.app.extensions["authservice"].sessions._cache_size:
            until(lambda: is_in(second) and second.app.extensions["authservice"].counts.counters()[
                Metric.SESSION_HITS.one()] > 0)
        assert_heeded(notify(first.app, first.provider.logout_token(sub=SUBJECT, sid=sid_of(first))))
        by_then(lambda: not is_in(second), 0.05)  # L09: 50 ms
        assert not is_in(first)

    def test_the_same_notice_is_good_once(self, browser: Browser, make_browser: Callable[..., Browser]) -> None:
        browser.log_in()
        token = browser.provider.logout_token(sub=SUBJECT)
        assert_heeded(notify(browser.app, token))
        browser.log_in()
        assert_bad(notify(browser.app, token))
        assert_bad(notify(make_browser().app, token))  # also elsewhere
        assert is_in(browser)

    def test_no_notice_is_remembered_longer_than_it_could_be_believed(
        self, browser: Browser, clock: Clock, store: Callable[[], WatchedStore]
    ) -> None:
        token = browser.provider.logout_token(sid="unknown", exp=None)
        assert_heeded(notify(browser.app, token))
        service = browser.app.extensions["authservice"]
        clock.advance(minutes=6, seconds=-1)
        assert_bad(notify(browser.app, token))
        clock.advance(minutes=3)
        assert service.store.sweep() == 1
        assert_bad(notify(browser.app, token))

    @pytest.mark.parametrize("call", ["load", "find", "delete", "save"])
    def test_what_the_store_could_not_do_can_be_asked_for_again(
        self, store: Callable[[], WatchedStore], make_browser: Callable[..., Browser], call: str
    ) -> None:
        browser = make_browser()
        browser.log_in()
        token = browser.provider.logout_token(sub=SUBJECT, sid=sid_of(browser))
        store().failing = {call}
        assert_not_now(notify(browser.app, token))
        store().failing = set()
        assert is_in(browser) is (call != "save")
        assert_heeded(notify(browser.app, token))
        assert not is_in(browser)
        assert_bad(notify(browser.app, token))

    def test_without_the_providers_keys_nothing_ends(
        self, browser: Browser, make_browser: Callable[..., Browser]
    ) -> None:
        browser.log_in()
        token = browser.provider.logout_token(sub=SUBJECT, sid=sid_of(browser))
        browser.provider.stop()
        later = make_browser()
        later.jar.update(browser.jar)
        assert_not_now(notify(later.app, token))
        assert is_in(browser)
        assert_heeded(notify(browser.app, token))

    def test_notices_do_not_take_every_thread(
        self, store: Callable[[], WatchedStore], make_browser: Callable[..., Browser], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        browser = make_browser()
        browser.log_in()
        waiting, go_on = threading.Semaphore(0), threading.Event()
        find = WatchedStore.find

        def slow(self: WatchedStore, tag: str) -> list[str]:
            waiting.release()
            assert go_on.wait(30)
            return find(self, tag)

        monkeypatch.setattr(WatchedStore, "find", slow)
        tokens = [browser.provider.logout_token(sub=SUBJECT) for _ in range(MOST_NOTICES_AT_ONCE + 1)]
        with ThreadPoolExecutor(MOST_NOTICES_AT_ONCE) as threads:
            try:
                heeded = [threads.submit(notify, browser.app, token) for token in tokens[1:]]
                for _ in heeded:
                    assert waiting.acquire(timeout=30)
                began = time.monotonic()
                assert_not_now(notify(browser.app, tokens[0]))
                assert time.monotonic() - began < PATIENCE + 1
                assert is_in(browser)
            finally:
                go_on.set()
            for one in heeded:
                assert_heeded(one.result())
        assert_heeded(notify(browser.app, tokens[0]))  # it was not used up
        assert not is_in(browser)

    def test_sessions_of_a_key_before_are_found(self, make_browser: Callable[..., Browser]) -> None:
        before = make_browser(SECRET_KEYS="an-old-key-of-sixteen-letters")
        before.log_in()
        after = make_browser(SECRET_KEYS="a-new-key-of-sixteen-letters,an-old-key-of-sixteen-letters")
        assert_heeded(notify(after.app, after.provider.logout_token(sid=sid_of(after))))
        assert not is_in(before)

    def test_nothing_of_a_notice_is_logged(self, browser: Browser, lines: list[str]) -> None:
        browser.log_in()
        sid = sid_of(browser)
        token = browser.provider.logout_token(sub=SUBJECT, sid=sid)
        notify(browser.app, token)
        notify(browser.app, token)
        notify(browser.app, browser.provider.logout_token("wrong_aud", sub=SUBJECT, sid=sid))
        text = "\n".join(lines)
        assert '"by": "back_channel", "sessions": 1' in text and '"cause": "jti"' in text and '"cause": "aud"' in text
        assert SUBJECT not in text and sid[:16] not in text and token not in text


class TestFrontChannel:
    @pytest.fixture(autouse=True)
    def ends_sessions(self, provider: FakeProvider) -> None:
        provider.has_end_session = True

    def frame(self, browser: Browser, query: str = "", **headers: str) -> Answer:
        headers = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "iframe", **headers}
        target = f"{FRONT_CHANNEL}?{query}" if query else FRONT_CHANNEL
        return browser.get(target, port=SITE, **headers)

    def about(self, browser: Browser, sid: str | None = None) -> str:
        return urlencode({"iss": browser.provider.issuer, "sid": sid_of(browser) if sid is None else sid})

    def assert_ended(self, browser: Browser, answer: Answer) -> None:
        assert answer.status == 200 and answer.header("Cache-Control") == "no-store"
        assert "logged out" in answer.text and len(answer.body) < 200 and "<script" not in answer.text
        assert browser.session is None
        assert count(browser.app, Metric.LOGOUTS, EndedBy.FRONT_CHANNEL) == 1

    def assert_passed_over(self, browser: Browser, answer: Answer) -> None:
        assert (answer.status, answer.body, answer.header("Cache-Control")) == (200, b"", "no-store")
        assert not answer.all("Set-Cookie")

    def test_a35_d21_without_parameters_the_cookies_session_ends(self, browser: Browser) -> None:
        browser.log_in()
        secret = browser.session
        self.assert_ended(browser, self.frame(browser))
        assert browser.get("/", Cookie=f"authservice_session={secret}", Sec_Fetch_Mode="cors").status == 401

    def test_a36_with_parameters_when_it_is_the_one(self, browser: Browser) -> None:
        browser.log_in()
        self.assert_ended(browser, self.frame(browser, self.about(browser)))

    def test_d21_a_sid_that_was_put_in_as_it_is(self, browser: Browser) -> None:
        browser.provider.new_sid = lambda: "a+b'=;,/?:@c"
        browser.log_in()
        raw = f"iss={quote(browser.provider.issuer)}&sid={sid_of(browser)}"
        self.assert_ended(browser, self.frame(browser, raw))

    def test_a36_and_not_otherwise(self, browser: Browser) -> None:
        browser.log_in()
        self.assert_passed_over(browser, self.frame(browser, self.about(browser, "another")))
        foreign = urlencode({"iss": "https://evil.example", "sid": sid_of(browser)})
        assert_bad(self.frame(browser, foreign))
        assert is_in(browser) and browser.session

    def test_l13_what_is_doubled_or_half_ends_nothing(self, browser: Browser) -> None:
        browser.log_in()
        about = self.about(browser)
        iss, _, sid = about.partition("&")
        for query in (f"{about}&{sid}", f"{about}&{iss}", f"{about}&sid=", iss, sid, f"{iss}&sid=", "sid=%ff&iss=%ff"):
            assert_bad(self.frame(browser, query))
        assert is_in(browser)
        assert count(browser.app, Metric.NOTICES_REFUSED, EndedBy.FRONT_CHANNEL) == 7

    def test_l13_without_the_cookie_nothing_ends(self, browser: Browser, make_browser: Callable[..., Browser]) -> None:
        browser.log_in()
        blocked = make_browser(browser.app)
        self.assert_passed_over(blocked, self.frame(blocked))
        self.assert_passed_over(blocked, self.frame(blocked, self.about(browser)))
        blocked.jar["authservice_session"] = new_secret()
        self.assert_passed_over(blocked, self.frame(blocked))
        assert is_in(browser)

    def test_only_the_providers_pages_may_frame_it(
        self, make_browser: Callable[..., Browser], provider: FakeProvider
    ) -> None:
        browser = make_browser(OIDC_END_SESSION_URL="https://login.example:8443/end")
        browser.log_in()
        answer = self.frame(browser)
        directives = (answer.header("Content-Security-Policy") or "").split("; ")
        policy = dict(directive.split(" ", 1) for directive in directives)
        assert policy["frame-ancestors"] == f"{provider.origin} https://login.example:8443"
        assert policy["default-src"] == "'none'"
        assert not answer.all("X-Frame-Options"), "it cannot name an origin"
        for page in (AFTER, "/authservice/site/homepage"):
            assert browser.get(page, port=SITE).header("X-Frame-Options") == "DENY"

    @pytest.mark.parametrize("destination", ["document", "image", "empty", "script", "object"])
    def test_l10_no_link_and_no_image_logs_anybody_out(self, browser: Browser, destination: str) -> None:
        browser.log_in()
        assert_bad(self.frame(browser, Sec_Fetch_Dest=destination))
        assert is_in(browser)
        self.assert_ended(browser, self.frame(browser, self.about(browser), Sec_Fetch_Dest=destination))

    @pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
    def test_other_methods_are_405(self, browser: Browser, method: str) -> None:
        browser.log_in()
        answer = browser.send(method, FRONT_CHANNEL, port=SITE, Sec_Fetch_Dest="iframe")
        assert (answer.status, answer.header("Allow"), answer.header("Cache-Control")) == (405, "GET", "no-store")
        assert is_in(browser)

    def test_it_is_not_on_the_port_of_checks(self, browser: Browser) -> None:
        browser.log_in()
        assert browser.get(FRONT_CHANNEL, port=JUDGE).body == b""
        assert is_in(browser)

    def test_what_cannot_be_known_now_ends_nothing(
        self, store: Callable[[], WatchedStore], make_browser: Callable[..., Browser]
    ) -> None:
        browser = make_browser()
        browser.log_in()
        store().failing = {"load"}
        assert_not_now(self.frame(browser))
        store().failing = set()
        assert is_in(browser) and browser.session
        browser.provider.stop()
        later = make_browser()
        later.jar.update(browser.jar)
        assert_not_now(self.frame(later))
        assert is_in(browser)

    def test_of_several_cookies_the_one_that_is_meant(
        self, browser: Browser, make_browser: Callable[..., Browser]
    ) -> None:
        browser.log_in()
        other = make_browser(browser.app)
        other.log_in()
        both = f"authservice_session={browser.session}; authservice_session={other.session}"
        answer = self.frame(other, self.about(other), Cookie=both)
        assert "logged out" in answer.text
        assert is_in(browser) and not is_in(other)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fast", "gthread"])
def test_l01_notices_on_a_real_server(environ: dict[str, str], provider: FakeProvider, tmp_path: Path, kind: str) -> None:
    good = urlencode({"logout_token": provider.logout_token(sid=nasty_sid())}).encode()
    chunked = urlencode({"logout_token": provider.logout_token(sid=nasty_sid())}).encode()
    bad = urlencode({"logout_token": provider.logout_token("bad_signature", sid=nasty_sid())}).encode()

    def post(body: bytes, *more: str) -> bytes:
        head = ["POST /authservice/backchannel-logout HTTP/1.1", "Host: app.example", f"Content-Type: {FORM}",
                "Connection: close", *more, "", ""]
        return "\r\n".join(head).encode() + body

    def whole(body: bytes) -> bytes:
        return post(body, f"Content-Length: {len(body)}")

    with serving({**environ, "WORKER_CLASS": kind}, tmp_path) as served:
        for data, status in [
            (whole(good), 200), (whole(good), 400), (whole(bad), 400), (whole(b"x=" + b"x" * MAX_FORM), 400),
            (post(b"%x\r\n%s\r\n0\r\n\r\n" % (len(chunked), chunked), "Transfer-Encoding: chunked"), 200),
            (whole(b"logout_token=" + b"x" * (10 << 20)), 413),
            (request("/authservice/backchannel-logout", close=True), 405),
            (request("/authservice/frontchannel-logout?iss=x&sid=y", close=True), 400),
            (request("/authservice/frontchannel-logout", close=True), 200),
        ]:
            (answer,) = exchange(served.site, data)
            assert answer.status == status, (data[:300], answer)
