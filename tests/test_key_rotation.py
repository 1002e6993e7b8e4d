"""S-34, K05: the service's own keys change, and nobody notices who need not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import CLIENT_SECRET, Answer, Browser, Clock

OLD, NEW = "the-old-key-of-the-service", "the-new-key-of-the-service"
COOKIE = "authservice_session"

Make = Callable[..., Browser]


def moved(person: Browser, to: Browser) -> Browser:
    """The same browser, in front of a service that was started with other settings."""
    person.app = to.app
    return person


def deletions(answer: Answer) -> list[str]:
    lines = answer.all("Set-Cookie")
    return [line.partition("=")[0] for line in lines if "max-age=0" in line.lower()]


def test_s34_a_rotation_in_two_steps_logs_nobody_out(make_browser: Make, clock: Clock) -> None:
    early = make_browser(SECRET_KEYS=OLD)
    early.log_in()
    both = make_browser(SECRET_KEYS=f"{NEW},{OLD}")
    assert moved(early, both).get("/").status == 200
    clock.advance(seconds=1)
    late = moved(Browser(both.app, both.provider), both)
    late.log_in()
    # Whoever is seen meanwhile is sealed anew: that is what the second step waits for.
    clock.advance(hours=2)
    assert early.get("/").status == 200 and late.get("/").status == 200
    clock.advance(seconds=1)
    alone = make_browser(SECRET_KEYS=NEW)
    assert moved(early, alone).get("/").status == 200
    assert moved(late, alone).get("/").status == 200


def test_s34_an_old_key_that_is_taken_away_ends_only_its_own_sessions(make_browser: Make, clock: Clock) -> None:
    early = make_browser(SECRET_KEYS=OLD)
    early.log_in()
    clock.advance(seconds=1)
    late = make_browser(SECRET_KEYS=f"{NEW},{OLD}")
    late.log_in()
    clock.advance(seconds=1)
    alone = make_browser(SECRET_KEYS=NEW)
    assert moved(late, alone).get("/").status == 200
    assert moved(early, alone).get("/").status == 302


def test_s34_a_login_that_began_under_the_old_key_is_finished_under_the_new_one(make_browser: Make) -> None:
    person = make_browser(SECRET_KEYS=OLD)
    callback = person.begin("/notebooks/7")
    moved(person, make_browser(SECRET_KEYS=f"{NEW},{OLD}"))
    assert person.get(callback).status == 302
    assert person.get("/").status == 200


def test_s34_the_client_secret_changes_and_nobody_is_logged_out(make_browser: Make, clock: Clock) -> None:
    person = make_browser()
    person.log_in()
    clock.advance(seconds=1)
    changed = make_browser(CLIENT_SECRET="another-secret-of-good-length", CLIENT_SECRET_PREVIOUS=CLIENT_SECRET)
    assert moved(person, changed).get("/").status == 200


def test_s34_cookies_under_unknown_keys_are_taken_away(make_browser: Make) -> None:
    person = make_browser(SECRET_KEYS=OLD)
    person.begin()
    (pending,) = [name for name in person.jar if "_login_" in name]
    moved(person, make_browser(SECRET_KEYS=NEW))
    assert deletions(person.get("/")) == [pending]


def test_s34_a_session_cookie_that_opens_nothing_is_taken_away_with_the_next_login(browser: Browser) -> None:
    browser.log_in()
    value = browser.jar[COOKIE]
    browser.app.extensions["authservice"].sessions.end(value)
    answer = browser.get("/")
    assert answer.status == 302 and COOKIE in deletions(answer)
    assert COOKIE not in deletions(browser.get("/")), "it went with the answer before"
    # A program is told 401 and keeps what it has: it is no browser that forgets.
    told = browser.get("/", Cookie=f"{COOKIE}={value}", Accept="application/json", Sec_Fetch_Mode="cors")
    assert told.status == 401 and not told.all("Set-Cookie")


@pytest.mark.parametrize("target", ["/authservice/login", "/authservice/login?rd=%2Fx"])
def test_s34_a_login_begun_on_purpose_keeps_the_live_session(browser: Browser, target: str) -> None:
    browser.log_in()
    answer = browser.get(target)
    assert answer.status == 302 and COOKIE not in deletions(answer)
    assert browser.get("/").status == 200


def test_s34_more_cookies_of_our_name_than_are_tried_all_stay(browser: Browser) -> None:
    planted = "; ".join(f"{COOKIE}={'x' * 48}{number}" for number in range(5))
    assert COOKIE not in deletions(browser.get("/", Cookie=planted))
