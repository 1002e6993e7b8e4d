"""Sessions at the strict provider while they live and when they end: refresh with rotating refresh tokens,
keys that change, logout from either side, and strict validation, through a real gateway.

What the log may not hold is searched for when each stack stops.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from tests.e2e import stack as stacks
from tests.e2e.conftest import StartStack
from tests.e2e.person import Person
from tests.e2e.service import Service
from tests.e2e.stack import Stack
from tests.servers import any_redis, running_redis
from tests.waiting import until

pytestmark = [pytest.mark.external, pytest.mark.slow, pytest.mark.xdist_group("e2e-sessions")]

SAME_ORIGIN = [("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Mode", "cors"), ("Accept", "application/json")]
SCOPES = "openid,profile,email,groups,offline_access"
LIFE, AHEAD = 3, 1
"""Seconds: of an access token, and how long before its end it is refreshed."""
AT_ONCE = 0.05


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Whose access tokens are short-lived. The provider rotates refresh tokens, and takes everything
    back that came from a login when one is used twice (RFC 9700 §4.14.2)."""
    settings = {"OIDC_SCOPES": SCOPES, "REFRESH_AHEAD_SECONDS": str(AHEAD)}
    stack = stacks.start("envoy", tmp_path_factory.mktemp("short"), settings, access_token_seconds=LIFE)
    try:
        yield stack
    finally:
        stack.stop()


def passes(person: Person, stack: Stack) -> bool:
    """Whether the application is reached; everything else is the way to a login, never an error."""
    status = person.send(stack.url + "/").answer.status
    assert status in (200, 302), person.history[-1]
    return status == 200


def told(person: Person, stack: Stack, marker: str) -> dict[str, str]:
    """Who the application hears that this is."""
    visit = person.send(stack.url + "/", headers=[("X-Marker", marker)])
    assert visit.answer.status == 200, visit
    seen = stack.reached(marker)[-1]
    return {name: "".join(seen.values(f"kubeflow-{name}")) for name in ("userid", "groups")}


def last_tokens(stack: Stack) -> tuple[str, str]:
    """The access and the refresh token that the provider gave last."""
    access, refresh, _ = stack.provider.tokens()[-3:]
    return access, refresh


def grants(stack: Stack) -> int:
    """How often the provider gave tokens: at logins and refreshes."""
    return len(stack.provider.tokens()) // 3


# --- refresh ------------------------------------------------------------------------------------


def test_s21_somebody_stays_logged_in_while_tokens_end(short: Stack, marker: str) -> None:
    alice = short.logged_in()
    access, refresh = last_tokens(short)
    begun = grants(short)
    assert told(alice, short, marker) == {"userid": "alice@example.org", "groups": "a,b"}
    short.provider.regroup("alice", ["c"])
    began = time.monotonic()
    until(lambda: passes(alice, short) and grants(short) >= begun + 2, 30)
    assert time.monotonic() - began > LIFE - AHEAD  # ahead of the end, but not at once
    until(lambda: passes(alice, short) and not short.provider.accepts(access), 10)
    assert told(alice, short, marker) == {"userid": "alice@example.org", "groups": "c"}
    # Each refresh token was used once: a second time would have ended the login at the provider.
    assert last_tokens(short)[1] != refresh and short.provider.accepts(last_tokens(short)[0])

    # Nobody comes for longer than the token lives: the next check waits for new ones.
    access, _ = last_tokens(short)
    until(lambda: not short.provider.accepts(access), 10)
    short.provider.regroup("alice", ["a", "b"])
    begun = grants(short)
    assert told(alice, short, marker) == {"userid": "alice@example.org", "groups": "a,b"}
    assert grants(short) == begun + 1


def test_s25_a_login_that_ended_at_the_provider_ends_here_with_its_token(short: Stack) -> None:
    carol = short.logged_in("carol")
    bob = short.logged_in("bob")
    short.provider.revoke("carol")
    until(lambda: not passes(carol, short), LIFE + 10)
    assert passes(bob, short)


def test_k05_the_provider_changes_its_signing_key_under_logged_in_people(short: Stack) -> None:
    alice, bob = short.logged_in("alice"), short.logged_in("bob")
    for drop in (False, True):
        short.provider.rotate(drop=drop)
        begun = grants(short)
        until(lambda begun=begun: passes(alice, short) and passes(bob, short) and grants(short) >= begun + 2, 20)
    # The next key is first seen in a logout notice.
    short.provider.rotate()
    before = len(short.provider.notices())
    bob.log_out_at_provider(f"{short.provider.issuer}/session/end")
    (notice,) = short.provider.notices()[before:]
    assert notice["login"] == "bob" and "error" not in notice, notice
    assert not passes(bob, short) and passes(alice, short)
    # The key under which her ID token was signed at first is gone; the one that she has now is good.
    leave(alice, short)


# --- logout -------------------------------------------------------------------------------------


def leave(person: Person, stack: Stack) -> None:
    """Logs out here, confirms at the provider, and comes back with the state that was sent."""
    answer = person.send(stack.url + "/authservice/logout", "POST", headers=SAME_ORIGIN).answer
    assert answer.status == 201 and list(answer.json()) == ["afterLogoutURL"]
    url = answer.json()["afterLogoutURL"]
    back = person.log_out_at_provider(url)
    asked = dict(parse_qsl(urlsplit(url).query))
    assert asked["state"]
    assert back.location == f"{stack.url}/authservice/site/after_logout?state={asked['state']}"
    page = person.visit(back.location)
    assert page.answer.status == 200 and "logged out" in page.answer.text


def test_logout_takes_the_tokens_back_and_ends_the_login_at_the_provider(short: Stack) -> None:
    alice = short.logged_in()
    access, refresh = last_tokens(short)
    revoked = short.provider.calls("/token/revocation")
    answer = alice.send(short.url + "/authservice/logout", "POST", headers=SAME_ORIGIN).answer
    assert short.provider.calls("/token/revocation") == revoked + 2
    assert not short.provider.accepts(access) and not short.provider.redeems(refresh)
    assert not passes(alice, short)
    assert alice.log_in(short.url + "/").answer.status == 200  # the provider still knows her
    assert answer.json()["afterLogoutURL"]

    leave(alice, short)
    asked = alice.visit(short.url + "/")
    assert asked.url.startswith(f"{short.provider.issuer}/login/")  # and not any more


class Poll:
    """Goes on asking one service about one session over a few kept connections; keeps when each
    question began (seconds since 1970) and whether somebody passed."""

    def __init__(self, service: Service, cookie: str) -> None:
        self.answers: list[tuple[float, bool]] = []
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(service, cookie)) for _ in range(3)]

    def __enter__(self) -> Poll:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, service: Service, cookie: str) -> None:
        connection = HTTPConnection("127.0.0.1", service.judge_port, timeout=10)
        with suppress(HTTPException, OSError):  # a question unanswered is missed by `since`
            while not self._done.is_set():
                began = time.time()
                connection.request("GET", "/", headers={"Cookie": cookie, "Accept": "text/html"})
                answer = connection.getresponse()
                answer.read()
                passed = answer.status == 200 and answer.getheader("kubeflow-userid") == "alice@example.org"
                assert passed or answer.status in (302, 401), answer.status
                self.answers.append((began, passed))
                self._done.wait(0.001)
        connection.close()

    def since(self, moment: float) -> list[bool]:
        """The answers to what was asked after this moment."""
        return [passed for began, passed in list(self.answers) if began > moment]


@contextmanager
def settings_of(store: str, folder: Path) -> Iterator[Mapping[str, str]]:
    with running_redis(any_redis(), folder) if store == "redis" else nullcontext() as server:
        redis = {"SESSION_STORE_TYPE": "redis", "SESSION_STORE_REDIS_ADDR": server.address} if server else {}
        yield {"OIDC_SCOPES": SCOPES, **redis}


@pytest.mark.parametrize("store", ["redis", "sqlite"])
def test_l05_the_providers_notice_ends_a_session_everywhere(
    own_stack: StartStack, tmp_path: Path, store: str
) -> None:
    with settings_of(store, tmp_path) as settings:
        stack = own_stack("envoy", settings)
        other = stack.replica()
        alice, elsewhere, bob = stack.logged_in(), stack.logged_in(), stack.logged_in("bob")
        cookie = "authservice_session=" + alice.cookies(stack.url + "/")["authservice_session"]
        with Poll(stack.service, cookie) as here, Poll(other, cookie) as there:
            until(lambda: len(here.answers) > 100 and len(there.answers) > 100, 30)
            assert all(passed for _, passed in here.answers + there.answers)
            alice.log_out_at_provider(f"{stack.provider.issuer}/session/end")
            (notice,) = stack.provider.notices()
            assert "error" not in notice, notice
            at = notice["at"]
            until(lambda: min(len(here.since(at + AT_ONCE)), len(there.since(at + AT_ONCE))) > 50, 30)
        late = [began - at for began, passed in here.answers + there.answers if passed]
        print(f"{store}: the last check that passed began {max(late) * 1000:.1f} ms after the notice's 200")
        assert max(late) < AT_ONCE
        # This login's session ended, and no other: not her own from another browser either (its sid differs).
        assert passes(elsewhere, stack) and passes(bob, stack)
        assert not passes(alice, stack)


# --- strict validation --------------------------------------------------------------------------


def test_strict_validation_hears_of_what_was_taken_back(own_stack: StartStack) -> None:
    stack = own_stack("envoy", {"OIDC_SCOPES": SCOPES, "STRICT_SESSION_VALIDATION": "true"})
    alice, bob = stack.logged_in(), stack.logged_in("bob")
    before = stack.provider.calls("/me")
    assert passes(alice, stack) and stack.provider.calls("/me") == before + 1
    stack.provider.revoke("alice")
    assert not passes(alice, stack)
    assert not passes(alice, stack)
    assert passes(bob, stack)
    stack.provider.fail("/me", 500)
    assert bob.send(stack.url + "/").answer.status == 503
    stack.provider.mend("/me")
    assert passes(bob, stack)  # nothing was ended
    stack.provider.kill()
    assert bob.send(stack.url + "/").answer.status == 503
