"""The pending login: two sealed halves, of one login and of one browser, small and few."""

from __future__ import annotations

import re
import secrets
from datetime import timedelta
from inspect import signature

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from authservice.oidc.login import LoginFlow
from authservice.oidc.pending import (
    MAX_BORNE, MAX_COOKIES, MAX_DROPPED, PENDING_LIFETIME, Pending, PendingLogins,
)
from authservice.sessions.seal import Keyring
from tests.relying_party import KEYRING, MovableClock

PREFIX = "authservice_session"
Pair = tuple[str, str]


def logins(
    clock: MovableClock | None = None, keyring: Keyring = KEYRING, prefix: str = PREFIX
) -> PendingLogins:
    return PendingLogins(keyring, prefix, clock or MovableClock(), secrets.token_urlsafe)


def pair(made: PendingLogins, pending: Pending) -> Pair:
    return made.cookie_name(pending), made.seal_cookie(pending)


def test_both_halves_find_each_other() -> None:
    made = logins()
    pending = made.new("https://app.example/a?b=c", [])
    state = made.open_state(made.seal_state(pending))
    assert state is not None and state == pending.state
    found = made.find(state, [("other", "x"), pair(made, pending)])
    assert found is not None and found.return_to == "https://app.example/a?b=c"
    assert (found.nonce, found.verifier) == (pending.nonce, pending.verifier)


def test_u13_u16_d4_d5_values_come_from_the_operating_system_and_none_is_like_another() -> None:
    made = logins()
    many = [made.new("", []) for _ in range(300)]
    one = pair(made, many[0])
    many += [made.new("", [one]) for _ in range(300)]
    for values in ([p.nonce for p in many], [p.verifier for p in many], [p.state.id for p in many]):
        assert len(set(values)) == 600
        assert all(re.fullmatch(r"[A-Za-z0-9_-]+", value) for value in values)
    assert {len(p.nonce) for p in many} == {43} and {len(p.verifier) for p in many} == {43}
    assert {p.nonce for p in many}.isdisjoint(p.verifier for p in many)
    assert signature(LoginFlow.__init__).parameters["new_token"].default is secrets.token_urlsafe


def test_nothing_that_travels_in_the_open_tells_nonce_or_verifier() -> None:
    made = logins()
    pending = made.new("/x", [])
    travelling = made.cookie_name(pending) + made.seal_state(pending) + repr(pending) + pending.state.binding
    for secret in (pending.verifier, pending.nonce, pending.browser.secret):
        assert secret not in travelling and secret not in made.seal_cookie(pending)


def test_a_login_remembers_which_sessions_the_browser_bore() -> None:
    made = logins()
    few = made.new("/x", [(PREFIX, "one"), ("other", "two"), (PREFIX, "\udcff")])
    state = made.open_state(made.seal_state(few))
    assert state == few.state and "one" not in repr(state)
    assert [few.bore(secret) for secret in ("one", "two", "\udcff", "three")] == [True, False, True, False]
    many = made.new("/x", [(PREFIX, str(number)) for number in range(500)])
    assert len(many.state.borne) == MAX_BORNE and many.bore("three"), "whatever was not counted may have been there"


def test_a_state_of_a_version_that_did_not_remember_is_one() -> None:
    pending = logins().new("/x", [])
    fields = [pending.state.id, pending.state.issued, pending.state.binding, pending.state.return_to]
    state = logins().open_state(KEYRING.seal("login-state", msgspec.msgpack.encode(fields)))
    assert state == pending.state


class TestState:
    @pytest.mark.parametrize("bad", ["", "x", "\x00", "é", "a" * 100_000, "..", "Ab" * 50])
    def test_f07_what_is_no_state(self, bad: str) -> None:
        assert logins().open_state(bad) is None

    @given(st.data())
    def test_f07_one_character_changed_or_cut_off(self, data: st.DataObject) -> None:
        made = logins()
        sealed = made.seal_state(made.new("/x", []))
        index = data.draw(st.integers(0, len(sealed) - 1))
        letter = data.draw(st.characters(codec="ascii").filter(lambda c: c != sealed[index]))
        assert made.open_state(sealed[:index] + letter + sealed[index + 1 :]) is None
        assert made.open_state(sealed[:index]) is None

    def test_a_cookie_s_value_is_no_state_and_the_reverse(self) -> None:
        made = logins()
        pending = made.new("/x", [])
        assert made.open_state(made.seal_cookie(pending)) is None
        assert made.find(pending.state, [(made.cookie_name(pending), made.seal_state(pending))]) is None

    def test_another_deployment_s_state_and_cookie(self) -> None:
        other = logins(keyring=Keyring([b"another key, 32 bytes long......"]))
        foreign = other.new("/x", [])
        assert logins().open_state(other.seal_state(foreign)) is None
        assert logins().find(foreign.state, [pair(other, foreign)]) is None

    def test_a_long_return_address_is_in_the_cookie_only_and_a_longer_one_nowhere(self) -> None:
        made = logins()
        long, longer = "https://app.example/" + "x" * 1500, "https://app.example/" + "x" * 2100
        pending = made.new(long, [])
        assert pending.return_to == long and pending.state.return_to == ""
        assert len(made.seal_state(pending)) < 250
        assert made.new(longer, []).return_to == ""

    def test_sizes(self) -> None:
        made = logins()
        cookies: list[Pair] = []
        for number in range(5):
            pending = made.new(f"https://app.example/{number}" + "x" * 2000, cookies)
            cookies = [pair(made, pending)]
            assert pending.return_to
            assert sum(map(len, cookies[0])) < 4096, "browsers keep cookies up to 4096 bytes"
        assert len(made.seal_state(made.new("/" + "x" * 511, []))) < 1000
        assert len(made.seal_state(made.new("/notebooks/7?x=1", []))) < 250


class TestBinding:
    def test_f03_another_browser_s_cookie(self) -> None:
        made = logins()
        attacker, victim = made.new("/a", []), made.new("/v", [])
        assert made.find(attacker.state, [pair(made, victim)]) is None
        assert made.find(attacker.state, [(made.cookie_name(attacker), made.seal_cookie(victim))]) is None
        assert made.find(attacker.state, []) is None

    def test_k02_a_planted_cookie_of_the_same_name_changes_nothing(self) -> None:
        made = logins()
        pending = made.new("/x", [])
        name, value = pair(made, pending)
        orders: list[list[Pair]] = [
            [(name, "planted"), (name, value)],
            [(name, value), (name, "planted")],
            [(name, ""), (name, value)],
        ]
        for cookies in orders:
            found = made.find(pending.state, cookies)
            assert found is not None and found.nonce == pending.nonce

    @pytest.mark.parametrize(
        "seconds,found", [(0, True), (599, True), (601, False), (86400, False), (-30, True), (-120, False)]
    )
    def test_f06_age(self, seconds: int, found: bool) -> None:
        clock = MovableClock()
        made = logins(clock)
        pending = made.new("/x", [])
        cookies = [pair(made, pending)]
        clock.advance(seconds=seconds)
        assert (made.find(pending.state, cookies) is not None) is found
        assert PENDING_LIFETIME == timedelta(minutes=10)

    def test_f06_a_younger_login_of_the_same_browser_does_not_make_an_old_one_young(self) -> None:
        clock = MovableClock()
        made = logins(clock)
        old = made.new("/old", [])
        clock.advance(minutes=9)
        young = made.new("/young", [pair(made, old)])
        clock.advance(minutes=2)
        assert made.find(old.state, [pair(made, young)]) is None
        assert made.find(young.state, [pair(made, young)]) is not None

    def test_names_have_their_case(self) -> None:
        made = logins()
        pending = made.new("/x", [])
        name, value = pair(made, pending)
        assert made.find(pending.state, [(name.upper(), value)]) is None


class TestNumber:
    """S-31, K07: a handful of cookies, bounded bytes."""

    def test_s31_f16_the_tabs_of_one_browser_share_its_cookie(self) -> None:
        made = logins()
        jar: dict[str, str] = {"other": "cookie", PREFIX: "s"}
        begun = []
        for number in range(30):
            pending = made.new(f"/tab/{number}", list(jar.items()))
            name, value = pair(made, pending)
            assert made.to_drop(list(jar.items()), name) == ()
            jar[name] = value
            begun.append(pending)
        assert len(jar) == 3
        for number, pending in enumerate(begun):
            found = made.find(pending.state, list(jar.items()))
            assert (
                found is not None
                and found.return_to == f"/tab/{number}"
                and found.verifier == pending.verifier
            )

    def test_s31_what_began_at_once_without_a_cookie_is_cut_to_a_handful(self) -> None:
        clock = MovableClock()
        made = logins(clock)
        jar: dict[str, str] = {}
        order = []
        for _ in range(30):
            clock.advance(seconds=1)
            name, value = pair(made, made.new("/", []))
            jar[name] = value
            order.append(name)
        pending = made.new("/", list(jar.items()))
        name, value = pair(made, pending)
        assert name == order[-1], "the newest is used on"
        for stale in made.to_drop(list(jar.items()), name):
            del jar[stale]
        assert list(jar) == order[-MAX_COOKIES:], "the oldest go"

    def test_k07_a_thousand_cookies(self) -> None:
        made = logins()
        good = [pair(made, made.new("/", [])) for _ in range(3)]
        planted = [(f"{PREFIX}_login_{number:022d}", "planted") for number in range(1000)]
        jar = dict([*planted, *good])
        for _ in range(26):
            dropped = made.to_drop(list(jar.items()), good[0][0])
            assert len(dropped) <= MAX_DROPPED
            for name in dropped:
                del jar[name]
        assert good[0][0] in jar and set(jar) <= {name for name, _ in good}

    def test_k07_unauthentic_and_old_ones_go(self) -> None:
        clock = MovableClock()
        made = logins(clock)
        old = pair(made, made.new("/old", []))
        clock.advance(minutes=11)
        good = [pair(made, made.new("/", [])) for _ in range(4)]
        odd = [(f"{PREFIX}_login_", "x"), (f"{PREFIX}_login_a b", "x"), (f"{PREFIX}_login_" + "x" * 500, "y")]
        moved = [(f"{PREFIX}_login_{'A' * 22}", good[0][1])]
        dropped = made.to_drop([old, *good, *odd, *moved], good[0][0])
        assert set(dropped) == {name for name, _ in (old, *odd, *moved)}

    def test_cookies_of_other_names_are_never_touched(self) -> None:
        made = logins()
        others = [
            (PREFIX, "x"),
            (f"{PREFIX}_rounds", "x"),
            ("x" + PREFIX + "_login_1", "x"),
            (f"{PREFIX}_LOGIN_1", "x"),
        ]
        assert made.to_drop(others * 30, "v") == ()
