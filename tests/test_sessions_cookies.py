"""The session cookie's two headers: what is read out of Cookie, and how Set-Cookie is written."""

from __future__ import annotations

import re
import time
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authservice.sessions.cookies import MOST_TRIED, CookieRules, candidates, read_cookies, session_secrets
from authservice.sessions.seal import is_secret, new_secret

NAME = "authservice_session"

patiently = settings(deadline=None)  # two cores, and other tests beside this one
NAMES = st.text(
    st.characters(codec="ascii", exclude_characters="=;, \t", min_codepoint=33), min_size=1, max_size=12
)
VALUES = st.text(st.characters(codec="latin-1", exclude_characters=";, \t"), max_size=20)
PAIRS = st.lists(st.tuples(NAMES, VALUES), max_size=8)


@patiently
@given(PAIRS)
def test_pairs_come_back_in_order(pairs: list[tuple[str, str]]) -> None:
    assert read_cookies("; ".join(f"{name}={value}" for name, value in pairs)) == pairs


@patiently
@given(PAIRS, PAIRS)
def test_two_cookie_lines_joined_by_a_comma_are_all_read(
    one: list[tuple[str, str]], two: list[tuple[str, str]]
) -> None:
    lines = ["; ".join(f"{name}={value}" for name, value in pairs) for pairs in (one, two)]
    for joint in (",", ", "):
        assert read_cookies(joint.join(lines)) == one + two


@patiently
@given(st.text())
def test_reading_never_raises_and_never_invents(header: str) -> None:
    for name, value in read_cookies(header):
        assert name
        assert name in header
        assert value in header
    assert session_secrets(header, NAME) == []


@pytest.mark.parametrize(
    ("header", "pairs"),
    [
        ("", []),
        ("a=1", [("a", "1")]),
        ("a=1; b=2,c=3", [("a", "1"), ("b", "2"), ("c", "3")]),
        (" a = 1 ;\tb\t=\t2 ", [("a", "1"), ("b", "2")]),
        ("a==x=;b=", [("a", "=x="), ("b", "")]),
        ("alone; =nameless; ;;,,=; a=1", [("a", "1")]),
        ('$Version=1; a="1"; $Path="/"', [("$Version", "1"), ("a", '"1"'), ("$Path", '"/"')]),
        ("A=1; a=2; a=3", [("A", "1"), ("a", "2"), ("a", "3")]),
        ("\xe9=\xff; a=1", [("\xe9", "\xff"), ("a", "1")]),
    ],
)
def test_k08_the_reading_of_odd_headers(header: str, pairs: list[tuple[str, str]]) -> None:
    assert read_cookies(header) == pairs


def test_k07_a_long_header_is_read_once_through() -> None:
    secret = new_secret()
    header = "; ".join(f"c{number}={'x' * 50}" for number in range(1200)) + f"; {NAME}={secret}"
    assert len(header) > 64 * 1024
    assert session_secrets(header, NAME) == [secret]
    assert session_secrets(";," * 50_000 + f"{NAME}={secret}", NAME) == [secret]


def test_k02_every_different_well_formed_value_is_given_up_to_a_limit() -> None:
    secrets = [new_secret() for _ in range(9)]
    header = f"{NAME}=garbage; {NAME}={secrets[0]}, {NAME}={secrets[1]}; {NAME}={secrets[0]}; x={secrets[5]}"
    assert session_secrets(header, NAME) == secrets[:2]
    many = "; ".join(f"{NAME}={secret}" for secret in secrets)
    assert session_secrets(many, NAME) == secrets[:MOST_TRIED]
    assert MOST_TRIED == 4


@pytest.mark.parametrize(
    "form",
    [
        '{name}="{secret}"',
        "{name}={secret}x",
        "{name}={secret}=",
        "{name}={cut}",
        "{name}=",
        "{name}",
        "={secret}",
        "{upper}={secret}",
        "x{name}={secret}",
        "{name}x={secret}",
        "__Host-{name}={secret}",
        "{name}=\xe9{cut}",
        "{name}=a{secret}",
        "x=y {name}={secret}",
        "{name}%3D{secret}",
        "{shorter}={secret}; x",
        "{name}x; {shorter}={secret}",
    ],
)
def test_k08_what_is_not_quite_our_cookie_is_none(form: str) -> None:
    secret = new_secret()
    header = form.format(name=NAME, upper=NAME.upper(), shorter=NAME[1:], secret=secret, cut=secret[:42])
    assert session_secrets(header, NAME) == []
    first = candidates(NAME)(header)
    assert first is None or not is_secret(first)


SECRETS = [new_secret() for _ in range(3)]
PIECES = st.sampled_from(
    [NAME, NAME[:5], "x", "=", "==", ";", ",", "; ", " ", "\t", '"', "\xe9", "\n", "\x0b", "\xa0", "_"]
    + ["A" * 48, "A" * 49]
    + [f"{NAME}={secret}" for secret in SECRETS]
    + SECRETS
)


@settings(deadline=None, max_examples=500)
@given(st.lists(PIECES, max_size=14).map("".join))
def test_the_quick_search_finds_what_reading_every_cookie_finds(header: str) -> None:
    shaped = re.compile(r"[A-Za-z0-9_-]{49}")
    read = [value for cookie, value in read_cookies(header) if cookie == NAME and shaped.fullmatch(value)]
    first = candidates(NAME)(header)
    if first is None or shaped.fullmatch(first):
        assert first == (read[0] if read else None)
    secrets = session_secrets(header, NAME)
    assert secrets[:1] == [first] if first is not None and is_secret(first) else set(secrets) <= set(read)


def test_k07_the_quick_search_is_quick_whatever_it_is_given() -> None:
    secret = new_secret()
    blanks = " " * 60_000
    for evil in (f"{NAME} " * 3000, f"x{NAME}={secret};" * 900, f"{NAME}={blanks}", blanks + NAME, NAME * 3000):
        began = time.thread_time()
        assert candidates(NAME)(f"{evil};{NAME}={secret}") == secret
        assert time.thread_time() - began < 0.1


RULES = CookieRules(name=NAME, max_age=timedelta(hours=24))


def attributes(line: str) -> tuple[str, dict[str, str]]:
    pair, *rest = line.split("; ")
    return pair, {name: value for name, _, value in (part.partition("=") for part in rest)}


def test_k10_the_cookie_as_it_is_set() -> None:
    pair, rest = attributes(RULES.set_cookie("value", secure=True))
    assert pair == f"{NAME}=value"
    assert rest == {"Path": "/", "HttpOnly": "", "Secure": "", "SameSite": "Lax", "Max-Age": "86400"}


def test_k10_s13_its_deletion_has_the_same_attributes() -> None:
    rules = CookieRules(
        name="__Secure-s",
        max_age=timedelta(seconds=90),
        domain="example.com",
        http_only=False,
        same_site="None",
    )
    for secure in (True, False):
        pair, rest = attributes(rules.set_cookie("value", secure))
        gone, rest_gone = attributes(rules.delete_cookie(secure))
        assert (pair, gone) == ("__Secure-s=value", "__Secure-s=")
        assert rest_gone.pop("Expires") == "Thu, 01 Jan 1970 00:00:00 GMT"
        assert (rest.pop("Max-Age"), rest_gone.pop("Max-Age")) == ("90", "0")
        assert (
            rest
            == rest_gone
            == {"Path": "/", "Domain": "example.com", "SameSite": "None"} | ({"Secure": ""} if secure else {})
        )


@pytest.mark.parametrize("domain", [None, ""])
def test_no_domain_makes_a_host_only_cookie(domain: str | None) -> None:
    rules = CookieRules(name="__Host-s", max_age=timedelta(hours=1), domain=domain)
    assert "Domain" not in rules.set_cookie("value", True) + rules.delete_cookie(True)


def test_a_secret_goes_into_the_cookie_and_comes_back_as_it_is() -> None:
    secret = new_secret()
    pair, _ = attributes(RULES.set_cookie(secret, True))
    assert session_secrets(pair, NAME) == [secret]
