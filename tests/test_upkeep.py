"""Refresh from end to end, at the fake provider: what of its answer reaches checks, and what ends a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from authservice.app import Service
from authservice.check import NeedsIO, Reach, RequestParts
from authservice.sessions.outage import BackOff
from authservice.sessions.refresh import Patience, Refresher
from tests.conftest import Browser, Clock
from tests.provider import FakeProvider
from tests.waiting import until

NEARLY = 3600 - 30
"""Seconds after which a token of an hour is to be refreshed."""


@pytest.fixture
def logged_in(make_browser: Callable[..., Browser], provider: FakeProvider) -> Callable[..., Browser]:
    def make(**changes: str) -> Browser:
        browser = make_browser(**changes)
        assert browser.log_in().status == 302
        assert browser.get("/").status == 200
        provider.forget_calls()
        hurry(service(browser).refresher)
        return browser

    return make


def hurry(refresher: Refresher) -> None:
    """Pauses as short as tests want them."""
    refresher._patience = Patience(rest=0.02, settling=0.02)
    refresher._back_off = refresher._outage._back_off = BackOff(0.05, 0.2)


def service(browser: Browser) -> Service:
    found = browser.app.extensions["authservice"]
    assert isinstance(found, Service)
    return found


def record(browser: Browser) -> Any:
    found = service(browser).sessions.record(browser.session or "")
    return found.session if found else None


def settle(browser: Browser) -> None:
    until(lambda: not service(browser).refresher._flights)


def told(browser: Browser, name: str) -> int:
    return service(browser).counts.counters()[f"authservice_{name}"]


def asked(provider: FakeProvider) -> list[str]:
    """Metadata and keys apart, which are asked for again when they are old."""
    return [call.endpoint for call in provider.calls() if call.endpoint not in ("discovery", "jwks")]


def test_groups_and_claims_follow_the_new_tokens(
    logged_in: Callable[..., Browser], provider: FakeProvider, clock: Clock
) -> None:
    browser = logged_in()
    provider.claims |= {"groups": ["new"], "email": "alice@new.example"}
    before = record(browser)
    clock.advance(seconds=NEARLY)
    answer = browser.get("/")
    assert (answer.status, answer.header("kubeflow-userid")) == (200, "alice@example.com")
    settle(browser)
    answer = browser.get("/")
    assert (answer.header("kubeflow-userid"), answer.header("kubeflow-groups")) == ("alice@new.example", "new")
    after = record(browser)
    assert after.created == before.created and after.expires == before.expires
    assert after.access_token != before.access_token and after.refresh_token != before.refresh_token
    assert after.id_token != before.id_token
    assert asked(provider) == ["token", "userinfo"]
    assert told(browser, "refreshes_total") == 1


def test_somebody_without_the_wanted_group_any_more_passes_no_longer(
    logged_in: Callable[..., Browser], provider: FakeProvider, clock: Clock
) -> None:
    browser = logged_in(GROUPS_ALLOWLIST="admins")
    provider.claims["groups"] = ["dev"]
    clock.advance(seconds=3600)
    assert browser.get("/").status == 403


def test_the_way_in_which_a_session_is_found_follows_its_sid(
    logged_in: Callable[..., Browser], provider: FakeProvider, clock: Clock
) -> None:
    provider.id_token_claims["sid"] = "one"
    browser = logged_in()
    directory = service(browser).directory
    assert len(directory.of_provider_session(provider.issuer, "one")) == 1
    provider.id_token_claims["sid"] = "two"
    clock.advance(seconds=3600)
    assert browser.get("/").status == 200
    assert len(directory.of_provider_session(provider.issuer, "two")) == 1
    assert directory.of_provider_session(provider.issuer, "one") == []


@pytest.mark.parametrize("wrong", ["refresh_other_iss", "refresh_other_sub", "refresh_other_nonce", "refresh_other_aud"])
def test_a37_a_refreshed_id_token_about_somebody_else_ends_the_session(
    logged_in: Callable[..., Browser], provider: FakeProvider, clock: Clock, wrong: str
) -> None:
    browser = logged_in()
    provider.misbehave(wrong)
    clock.advance(seconds=3600)
    assert browser.get("/").status == 302
    assert record(browser) is None
    assert asked(provider) == ["token"]


def test_s25_p10_invalid_grant_ends_the_session(
    logged_in: Callable[..., Browser], provider: FakeProvider, clock: Clock
) -> None:
    browser = logged_in()
    provider.misbehave("refresh_invalid_grant")
    clock.advance(seconds=3600)
    assert browser.get("/").status == 302
    assert record(browser) is None
    assert told(browser, 'sessions_ended_by_provider_total{question="refresh"}') == 1


@pytest.mark.parametrize(
    "wrong,reason",
    [
        ("refresh_error_500", "provider_down"),
        ("refresh_invalid_client", "client_refused"),
        ("token_error_404", "provider_down"),
        ("token_error_500", "provider_down"),
        ("silent_token", "provider_silent"),
        ("token_html", "provider_answer_unacceptable"),
        ("redirect_token", "provider_down"),
    ],
)
def test_s23_p09_whatever_else_goes_wrong_ends_nothing(
    logged_in: Callable[..., Browser], provider: FakeProvider, clock: Clock, wrong: str, reason: str
) -> None:
    browser = logged_in()
    before = record(browser)
    provider.misbehave(wrong, "http://127.0.0.1:1/" if wrong.startswith("redirect") else True)
    clock.advance(seconds=3600)
    for _ in range(5):
        assert browser.get("/").status == 200
    settle(browser)
    assert told(browser, f'refresh_failures_total{{reason="{reason}"}}') >= 1
    clock.advance(seconds=3600)
    assert browser.get("/").status == 302
    after = record(browser)
    assert (after.access_token, after.refresh_token) == (before.access_token, before.refresh_token)
    provider.behave()
    until(lambda: browser.get("/").status == 200)


def test_a_rotated_token_that_is_lost_on_its_way_costs_the_session(
    logged_in: Callable[..., Browser], provider: FakeProvider, clock: Clock
) -> None:
    """Nobody can help that: the provider has spent the one that we hold."""
    browser = logged_in()
    provider.misbehave("refresh_lost")
    clock.advance(seconds=3600)
    assert browser.get("/").status == 200
    settle(browser)
    provider.behave()
    until(lambda: browser.get("/").status == 302)
    assert record(browser) is None


def test_p10_without_a_new_refresh_token_the_old_one_stays(
    logged_in: Callable[..., Browser], provider: FakeProvider, clock: Clock
) -> None:
    browser = logged_in()
    before = record(browser)
    provider.misbehave("refresh_no_refresh_token")
    for refreshes in (1, 2):
        clock.advance(seconds=3600)
        until(lambda: browser.get("/").status == 200 and provider.refreshes == refreshes)
        settle(browser)
        assert record(browser).refresh_token == before.refresh_token


def test_a_rotated_token_is_kept_before_anything_else_is_asked(
    logged_in: Callable[..., Browser], provider: FakeProvider, clock: Clock
) -> None:
    browser = logged_in()
    before = record(browser)
    provider.misbehave("slow_userinfo", 30)
    clock.advance(seconds=NEARLY)
    assert browser.get("/").status == 200
    until(lambda: "userinfo" in asked(provider))
    now = record(browser)
    assert now.refresh_token != before.refresh_token and now.access_token == before.access_token
    assert service(browser).refresher._flights
    provider.stop()
    settle(browser)
    assert record(browser).access_token != before.access_token


@pytest.mark.parametrize("claims", [{"email_verified": False}, {"groups": [f"{number:0100}" for number in range(1000)]}], ids=["nobody", "too much"])
def test_new_claims_of_which_nobody_can_be_made_end_the_session_and_its_tokens(
    logged_in: Callable[..., Browser], provider: FakeProvider, clock: Clock, claims: dict[str, object]
) -> None:
    browser = logged_in(REQUIRE_VERIFIED_EMAIL="true")
    provider.claims.update(claims)
    clock.advance(seconds=3600)
    assert browser.get("/").status == 302
    assert record(browser) is None
    revoked = [call.form["token_type_hint"] for call in provider.calls("revoke")]
    assert revoked == ["refresh_token", "access_token"]


def test_s22_a_logout_during_a_refresh_wins(
    logged_in: Callable[..., Browser], provider: FakeProvider, clock: Clock
) -> None:
    browser = logged_in()
    provider.misbehave("slow_refresh", 0.5)
    clock.advance(seconds=NEARLY)
    assert browser.get("/").status == 200
    until(lambda: asked(provider) == ["token"])
    assert browser.send("POST", "/authservice/logout", Sec_Fetch_Site="same-origin").status in (201, 303)
    settle(browser)
    assert record(browser) is None
    # The revoked refresh token brought no new ones.
    assert (len(provider.calls("revoke")), provider.refreshes) == (2, 0)


def test_without_copies_in_memory_all_is_the_same(
    logged_in: Callable[..., Browser], provider: FakeProvider, clock: Clock
) -> None:
    browser = logged_in(SESSION_CACHE_SIZE="0")
    clock.advance(seconds=NEARLY)
    assert browser.get("/").status == 200
    settle(browser)
    assert provider.refreshes == 1
    clock.advance(seconds=3600)
    assert browser.get("/").status == 200
    assert provider.refreshes == 2


def test_a_session_ends_with_its_token_where_that_is_wanted(
    logged_in: Callable[..., Browser], provider: FakeProvider, clock: Clock
) -> None:
    provider.misbehave("token_answer", {"refresh_token": None})
    browser = logged_in(SESSION_ENDS_WITH_TOKEN="true")
    clock.advance(seconds=3590)
    assert browser.get("/").status == 200
    clock.advance(seconds=11)
    assert browser.get("/").status == 302
    assert asked(provider) == []


def test_what_memory_answers_the_full_path_answers_too(
    logged_in: Callable[..., Browser], provider: FakeProvider, clock: Clock
) -> None:
    """Through the ahead window, an outage with grace, and its end: where memory answers, byte for byte."""
    browser = logged_in()
    judging = service(browser).judge
    provider.misbehave("refresh_error_500")
    answered = 0
    for seconds in (0, NEARLY, 20, 20, 1000, 1000, 1550, 100):
        clock.advance(seconds=seconds)
        for _ in range(3):
            headers = {"host": "app.example", "cookie": f"authservice_session={browser.session}"}
            parts = RequestParts("GET", "/", headers, "127.0.0.1")
            full = judging.answer(parts, Reach.NETWORK)
            try:
                quick = judging.answer(parts, Reach.MEMORY)
            except NeedsIO:
                continue
            if full.status == 200:
                answered += 1
                assert (quick.status, quick.headers, quick.body) == (full.status, full.headers, full.body)
            else:
                assert quick.status == full.status
    assert answered >= 18


def test_no_former_providers_token_is_shown_to_the_present_one(
    logged_in: Callable[..., Browser], provider: FakeProvider
) -> None:
    """A session of other settings before, on the same store."""
    browser = logged_in(STRICT_SESSION_VALIDATION="true")
    sessions = service(browser).sessions
    old = sessions.record(browser.session or "")
    assert old is not None
    former = msgspec.structs.replace(old.session, issuer="https://former.example.com")
    assert sessions.replace(browser.session or "", old, former) is not None
    provider.forget_calls()
    assert browser.get("/").status == 302
    assert asked(provider) == []
    assert record(browser) is None
