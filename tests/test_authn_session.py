"""The session as a credential: which of a request's secrets counts, with copies and without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from authservice.authn.bearer import bearer_credential
from authservice.authn.session import SessionAuthenticator
from authservice.check import CheckRequest, NeedsIO, Reach
from authservice.errors import Refused
from authservice.identity import AuthMethod, Identity
from authservice.sessions.cookies import session_secrets
from authservice.sessions.copies import LiveSession
from authservice.sessions.live import Sessions
from authservice.sessions.seal import new_secret
from authservice.sessions.sqlite import SqliteStore
from tests.contracts import Clock
from tests.sample_sessions import a_session
from tests.waiting import until

NAME = "authservice_session"
DEAD = [new_secret(), new_secret()]


def a_check(**headers: str) -> CheckRequest:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return CheckRequest("GET", "https", "app.example", "/", "/", named, None, "envoy")


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory, clock: Clock) -> Iterator[Sessions]:
    file: Path = tmp_path_factory.mktemp("authn") / "sessions.db"
    with closing(SqliteStore(file, clock)) as store:
        sessions = Sessions(store, now=clock, max_age=timedelta(days=1), cache_size=100)
        sessions.start()
        yield sessions
        sessions.stop()


@pytest.fixture(scope="module")
def live(sessions: Sessions, clock: Clock) -> list[str]:
    return [sessions.begin(a_session(clock, user_id=f"user{number}")) for number in range(3)]


def slowly(sessions: Sessions, check: CheckRequest, header: str) -> Identity | None:
    """What it comes to, said in the plainest way."""
    secret = bearer_credential(header, check.header(header))
    if secret is not None and (session := sessions.load(secret, Reach.NETWORK)):
        return session.by_header
    for secret in session_secrets(check.header("cookie"), NAME):
        if session := sessions.load(secret, Reach.NETWORK):
            return session.by_cookie
    return None


COOKIES = st.lists(
    st.tuples(
        st.sampled_from(["", "x", " ", "\t"]),
        st.sampled_from([NAME, NAME, NAME, "other", NAME.upper()]),
        st.sampled_from(["=", "=", " = ", ""]),
        st.sampled_from([0, 1, 2, "dead", "dead too", "malformed", "short", "long"]),
        st.sampled_from(["; ", ";", ", ", ",", " ", ""]),
    ),
    max_size=7,
)
CREDENTIALS = st.sampled_from(["", "", "Bearer {0}", "Bearer {dead}", "Bearer {malformed}", "{1}", "Basic x", "a,b"])


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cookies=COOKIES, credential=CREDENTIALS, header=st.sampled_from(["authorization", "x-auth-token"]))
def test_quick_or_slow_the_same_secret_counts(
    sessions: Sessions, live: list[str],
    cookies: list[tuple[str, str, str, int | str, str]], credential: str, header: str,
) -> None:
    values: dict[int | str, str] = {**dict(enumerate(live)), "dead": DEAD[0], "dead too": DEAD[1]}
    values |= {"malformed": "A" * 49, "short": live[0][:-1], "long": live[0] + "x"}
    line = "".join(f"{before}{name}{equals}{values[value]}{end}" for before, name, equals, value, end in cookies)
    sent = credential.format(*live, dead=DEAD[0], malformed="A" * 49)
    check = a_check(cookie=line, **{header.replace("-", "_"): sent})
    authenticator = SessionAuthenticator(sessions, auth_header=header.title(), cookie_name=NAME)
    try:
        expected = slowly(sessions, check, header)
    except Refused:
        with pytest.raises(Refused):
            authenticator.authenticate(check, Reach.MEMORY)
        return
    assert authenticator.authenticate(check, Reach.NETWORK) == expected
    try:
        assert authenticator.authenticate(check, Reach.MEMORY) == expected
    except NeedsIO:
        pass  # which is no answer


def test_one_copy_gives_one_identity_for_each_way_it_came(sessions: Sessions, live: list[str]) -> None:
    authenticator = SessionAuthenticator(sessions, auth_header="Authorization", cookie_name=NAME)
    by_cookie, by_header = a_check(cookie=f"{NAME}={live[0]}"), a_check(authorization=f"Bearer {live[0]}")
    sessions.load(live[0], Reach.NETWORK)
    seen = {id(authenticator.authenticate(by_cookie, Reach.MEMORY)) for _ in range(20)}
    identity = authenticator.authenticate(by_cookie, Reach.MEMORY)
    assert identity is not None
    assert seen == {id(identity)}
    assert identity.method is AuthMethod.COOKIE
    other = authenticator.authenticate(by_header, Reach.MEMORY)
    assert other is authenticator.authenticate(by_header, Reach.MEMORY)
    assert other is not None
    assert other.method is AuthMethod.HEADER
    assert other.claims is identity.claims


def test_k02_a_planted_cookie_before_ours_costs_nobody_the_session(sessions: Sessions, live: list[str]) -> None:
    authenticator = SessionAuthenticator(sessions, auth_header="Authorization", cookie_name=NAME)
    line = f"{NAME}={'A' * 49}; {NAME}={DEAD[0]}; {NAME}=x; {NAME}={live[1]}"
    identity = authenticator.authenticate(a_check(cookie=line), Reach.NETWORK)
    assert identity is not None
    assert identity.user_id == "user1"


class Keeper:
    """An upkeep that says what it is told to say, and notes who asked."""

    def __init__(self, name: str, asked: list[str], *, at_every_check: bool = False, keeps: bool = True) -> None:
        self.name = name
        self.asked = asked
        self.at_every_check = at_every_check
        self.keeps = keeps

    def keep(self, secret: str, live: LiveSession, reach: Reach) -> LiveSession | None:
        self.asked.append(self.name)
        return live if self.keeps else None


def test_upkeep_is_asked_in_its_order_and_who_lets_go_ends_it(sessions: Sessions, live: list[str]) -> None:
    asked: list[str] = []
    first, second = Keeper("first", asked), Keeper("second", asked, at_every_check=True)
    authenticator = SessionAuthenticator(
        sessions, auth_header="Authorization", cookie_name=NAME, upkeep=[first, second]
    )
    by_cookie, by_header = a_check(cookie=f"{NAME}={live[0]}"), a_check(authorization=f"Bearer {live[0]}")
    for check in (by_cookie, by_header) * 2:
        assert authenticator.authenticate(check, Reach.NETWORK) is not None
    assert asked == ["first", "second"] * 4
    first.keeps = False
    asked.clear()
    assert authenticator.authenticate(by_cookie, Reach.NETWORK) is None
    assert asked == ["first"]


def test_a_session_far_from_its_tokens_end_is_nobodys_business(sessions: Sessions, live: list[str]) -> None:
    asked: list[str] = []
    authenticator = SessionAuthenticator(
        sessions, auth_header="Authorization", cookie_name=NAME, upkeep=[Keeper("refresh", asked)]
    )
    check = a_check(cookie=f"{NAME}={live[0]}")
    until(lambda: sessions.load(live[0], Reach.NETWORK) and sessions.quick(live[0]))
    for _ in range(20):
        assert authenticator.authenticate(check, Reach.MEMORY) is not None
    assert asked == []


def test_none_of_several_cookies_passes_without_upkeep(sessions: Sessions, live: list[str]) -> None:
    asked: list[str] = []
    authenticator = SessionAuthenticator(
        sessions, auth_header="Authorization", cookie_name=NAME,
        upkeep=[Keeper("strict", asked, at_every_check=True, keeps=False)],
    )
    line = f"{NAME}={DEAD[0]}; {NAME}={live[0]}; {NAME}={live[1]}"
    assert authenticator.authenticate(a_check(cookie=line), Reach.NETWORK) is None
    assert asked == ["strict"] * 2
