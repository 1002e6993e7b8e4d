"""Strict validation in the whole service, with a real provider on its socket."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from authservice.app import Service
from tests.conftest import Browser, Clock
from tests.contracts import at_once
from tests.provider import FakeProvider


@pytest.fixture
def logged_in(make_browser: Callable[..., Browser], provider: FakeProvider) -> Callable[..., Browser]:
    def make(**changes: str) -> Browser:
        browser = make_browser(STRICT_SESSION_VALIDATION="true", **changes)
        assert browser.log_in().status == 302
        provider.forget_calls()
        return browser

    return make


def service(browser: Browser) -> Service:
    found = browser.app.extensions["authservice"]
    assert isinstance(found, Service)
    return found


def test_the_sessions_own_token_is_sent_over_one_connection(
    logged_in: Callable[..., Browser], provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = logged_in()
    server = provider._server
    assert server is not None
    accepted: list[object] = []
    accept = server.get_request

    def counted() -> object:
        accepted.append(None)
        return accept()

    monkeypatch.setattr(server, "get_request", counted)
    record = service(browser).sessions.record(browser.session or "")
    assert record is not None
    for _ in range(5):
        assert browser.get("/").status == 200
    assert browser.send("GET", "/", Authorization=f"Bearer {browser.session}", Cookie="").status == 200
    calls = provider.calls("userinfo")
    assert [call.headers["authorization"] for call in calls] == [f"Bearer {record.session.access_token}"] * 6
    assert len(accepted) <= 1


@pytest.mark.parametrize("wrong", ["revoked", "userinfo_other_sub"])
def test_401_or_another_person_ends_the_session(
    logged_in: Callable[..., Browser], provider: FakeProvider, wrong: str
) -> None:
    browser = logged_in()
    record = service(browser).sessions.record(browser.session or "")
    assert record is not None
    if wrong == "revoked":
        provider.revoke(record.session.access_token)
    else:
        provider.misbehave(wrong)
    assert browser.get("/").status == 302
    assert service(browser).sessions.record(browser.session or "") is None


@pytest.mark.parametrize(
    "wrong",
    ["userinfo_refused", "userinfo_missing_sub", "userinfo_error_500", "userinfo_error_404", "userinfo_html",
     "silent_userinfo", "cut_off_userinfo", "userinfo_utf16"],
)
def test_everything_else_is_503_and_ends_nothing(
    logged_in: Callable[..., Browser], provider: FakeProvider, wrong: str
) -> None:
    browser = logged_in()
    provider.misbehave(wrong)
    answer = browser.get("/")
    assert (answer.status, answer.all("Set-Cookie")) == (503, [])
    provider.behave()
    assert browser.get("/").status == 200


def test_a_provider_without_userinfo_is_not_ready(
    make_browser: Callable[..., Browser], provider: FakeProvider
) -> None:
    provider.metadata["userinfo_endpoint"] = None
    provider.id_token_claims["email"] = "alice@example.com"
    browser = make_browser(STRICT_SESSION_VALIDATION="true")
    ready = browser.send("GET", "/readyz", port=Browser.SITE)
    assert (ready.status, ready.json["userinfo"]) == (503, "not_ready")
    assert browser.log_in().status == 302
    assert browser.get("/").status == 503


def test_refreshed_first_and_then_asked_about(
    logged_in: Callable[..., Browser], provider: FakeProvider, clock: Clock
) -> None:
    browser = logged_in()
    clock.advance(seconds=3600)
    assert browser.get("/").status == 200
    record = service(browser).sessions.record(browser.session or "")
    assert record is not None
    asked = [call.headers["authorization"] for call in provider.calls("userinfo")]
    assert asked == [f"Bearer {record.session.access_token}"] * 2  # by the refresh, and by the check
    provider.misbehave("refresh_error_500")
    clock.advance(seconds=3600)
    assert browser.get("/").status == 503  # the grace is no answer to a strict question
    assert service(browser).sessions.record(browser.session or "") is not None


def test_many_people_at_once(logged_in: Callable[..., Browser], provider: FakeProvider) -> None:
    browsers = [logged_in()]
    for _ in range(5):
        browsers.append(Browser(browsers[0].app, provider))
        browsers[-1].log_in()
    assert at_once(12, lambda number: browsers[number % 6].get("/").status == 200) == 12
