"""The unverified look at a token: it recognises whose a token may be, and never breaks."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authservice.oidc.jws import MAX_TOKEN, Glance, Jws, NotJws, decode, glance, take_apart
from tests.test_oidc_tokens import b64, sign

SEEN = {"iss": "https://i.example", "sub": "a", "aud": ["x", "y"], "exp": 1000}


def token(claims: Any, header: Any = None, signature: str = "AAAA") -> str:
    parts = [{"alg": "RS256"} if header is None else header, claims]
    return ".".join([*(b64(part if isinstance(part, bytes) else json.dumps(part)) for part in parts), signature])


def seen(claims: Any, header: Any = None) -> Glance:
    found = glance(token(claims, header))
    assert found is not None
    return found


def test_what_a_token_says_of_itself() -> None:
    found = seen(SEEN, {"alg": "RS256", "typ": "application/AT+JWT"})
    assert (found.issuer, found.subject, found.audiences) == ("https://i.example", "a", ("x", "y"))
    assert found.type == "at+jwt" and found.expires == 1000.0 and not found.is_logout and not found.is_id_token


def test_one_audience_is_a_list_of_one() -> None:
    assert seen({"aud": "x"}).audiences == ("x",)


@pytest.mark.parametrize("odd", [None, 1, True, {}, {"x": 1}, [[1]], 1.5])
def test_s20_members_of_other_types_are_as_if_missing(odd: Any) -> None:
    found = seen({"iss": odd, "sub": odd, "aud": odd, "exp": [odd]}, {"alg": "RS256", "typ": [odd]})
    assert (found.issuer, found.subject, found.audiences, found.type, found.expires) == ("", "", (), "", None)


def test_s20_a_mixed_audience_still_tells_that_the_token_is_meant_for_us() -> None:
    assert seen({"aud": ["x", 1, None, ["y"]]}).audiences == ("x",)


@pytest.mark.parametrize("exp", [-1, True, 10**12, "1000", None, 1e300])
def test_c06_an_expiry_that_is_none(exp: Any) -> None:
    assert seen({"exp": exp}).expires is None


@pytest.mark.parametrize("signature", ["", "AAAA", "!!", "A"])
def test_j01_the_third_part_does_not_count(signature: str) -> None:
    """An unsigned token says all the same whose it is, and that one refuses it."""
    found = glance(token(SEEN, {"alg": "none"}, signature))
    assert found is not None and found.issuer == "https://i.example"


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "..", "...", "a", "a.b", "a.b.c", "a.b.c.d", "." * 10_000, "opaque-token", "ya29.a0AfH6SMBx",
        "a.b.c.d.e", "e30.e30", "e30.e30.x.x", "e30.e30.x.x.x", ".e30.x", "e30..x", "e30.W10.x", "W10.e30.x",
        "e30=.e30.x", "e30.e30 .x", "e3+.e30.x", "e30.e30\n.x", "é30.e30.x", "e30.e31.x",
    ],
)  # fmt: skip
def test_j16_what_is_no_token_in_this_form(text: str) -> None:
    assert glance(text) is None


@pytest.mark.parametrize(
    "part", [b'{"iss":"x","iss":"y"}', b'{"a":NaN}', b"[]", b"null", b"\xff", b'{"a":' * 10_000, b'{"a":1e400}']
)
def test_j18_j19_parts_that_are_no_object(part: bytes) -> None:
    assert glance(token(part)) is None
    assert glance(token(SEEN, part)) is None


def test_j20_large_ones_are_cheap() -> None:
    began = time.process_time()
    assert glance("a" * 10_000_000) is None
    assert glance("a." * 5_000_000) is None
    assert glance(token(SEEN, {"alg": "x" * 20_000})) is None
    assert glance(token({"x": "y" * MAX_TOKEN})) is None
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("claims", "header", "kind"),
    [
        ({}, {}, ""),
        ({"nonce": "n"}, {}, "id"),
        ({"at_hash": "h"}, {}, "id"),
        ({"c_hash": "h"}, {"typ": "JWT"}, "id"),
        ({"s_hash": "h", "scope": "openid"}, {}, "id"),
        ({"nonce": "n", "scope": "openid"}, {}, ""),
        ({"nonce": "n", "client_id": "c"}, {}, ""),
        ({"typ": "ID"}, {}, "id"),
        ({"typ": "Bearer", "nonce": "n"}, {}, "access"),
        ({"typ": "Refresh"}, {}, "refresh"),
        ({"typ": "Offline"}, {}, "refresh"),
        ({"typ": "Logout"}, {}, "logout"),
        ({"typ": 1, "token_use": ["id"]}, {}, ""),
        ({"token_use": "id"}, {}, "id"),
        ({"token_use": "access", "at_hash": "h"}, {}, "access"),
        ({"token_use": "refresh_token"}, {}, "refresh"),
        ({"at_hash": "h"}, {"typ": "at+jwt"}, "access"),
        ({"events": {}}, {}, "logout"),
        ({"events": {}, "typ": "Bearer"}, {}, "logout"),
        ({}, {"typ": "logout+jwt"}, "logout"),
        ({}, {"typ": "application/LOGOUT+jwt"}, "logout"),
        ({}, {"typ": "secevent+jwt"}, "logout"),
    ],
)
def test_j15_kinds_that_can_be_told_apart(claims: Any, header: Any, kind: str) -> None:
    found = seen(claims, {"alg": "RS256", **header})
    assert found.kind == kind
    assert (found.is_logout, found.is_id_token) == (kind == "logout", kind == "id")


def test_nothing_of_the_token_is_in_its_text() -> None:
    assert "geheim" not in repr(glance(token({"x": "geheim"}, None, "geheim")))


@given(st.text(max_size=80) | st.lists(st.sampled_from(["e30", "", "W10", "=", "a", "eyJ9"]), max_size=5).map(".".join))
def test_no_text_breaks_it(text: str) -> None:
    found = glance(text)
    assert found is None or text.count(".") == 2


@given(st.binary(max_size=40))
def test_base64url_has_one_spelling(data: bytes) -> None:
    right = b64(data).encode()
    assert decode(right) == data
    for wrong in (right + b"=", right + b"\n", b" " + right, right + b"+", right[:-1] + b"*"):
        with pytest.raises(NotJws):
            decode(wrong)


@given(st.binary(min_size=1, max_size=8))
def test_whatever_is_decoded_is_spelled_the_one_way(text: bytes) -> None:
    try:
        data = decode(text)
    except NotJws:
        return
    assert b64(data).encode() == text


def test_the_parts_of_a_signed_token() -> None:
    text = sign(SEEN)
    jws = take_apart(text)
    assert isinstance(jws, Jws) and dict(jws.claims()) == SEEN and jws.signed.decode() == text.rpartition(".")[0]
