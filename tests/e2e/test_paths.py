"""Paths and methods through real gateways: judged as they are, never opened by a trick, never
answered by a framework."""

from __future__ import annotations

import re

import pytest

from tests.e2e.person import NAVIGATION
from tests.e2e.stack import Stack

pytestmark = pytest.mark.external

# /public/ is skipped; each of these leads somewhere else, under one reading or another.
TRICKS = [
    "/public/../admin",
    "/public/..;/admin",
    "/public/..;x=1/admin",
    "/public%2f..%2fadmin",
    "/public/..%2fadmin",
    "/public/..%2Fadmin",
    "/public/..%5cadmin",
    "/public/%5c../admin",
    "/public/%2e%2e/admin",
    "/public/.%2e/admin",
    "/public/%2E%2E%2Fadmin",
    "/public/%252e%252e/admin",
    "/public/%252e%252e%252fadmin",
    "/public/%c0%ae%c0%ae/admin",
    "/public/%ff/../admin",
    "/public/\xff/../../admin",
    "/public/..%00/admin",
    "/public/%00/../../admin",
    "/public/..\\admin",
    "/public\\..\\admin",
    "\\public\\",
    "//admin",
    "//public/../admin",
    "/./public/../admin",
    "/public//../../admin",
    "/public/./../admin",
    "/x/../public/../admin",
    "/ADMIN",
    "/PUBLIC/x",
    "/Public/x",
    "/publicity",
    "/public.txt",
    "/public;/x",
    "/admin%00",
    "/admin%00/public/",
    "/admin%20",
    "/admin;x=/public",
    "/admin;/public/",
    "/admin?x=/public/",
    "/admin?/public/",
    "/admin#/public/",
    "/admin%23/public/",
    "/admin%3f/public/",
    "/admin/public/",
    "http://app.localhost/admin",
    "http://public/../admin",
]

# What is beyond doubt below /public/, however an application reads it.
PLAINLY_PUBLIC = re.compile(r"/public/(?!\.)[A-Za-z0-9_-][A-Za-z0-9._~-]*")


@pytest.mark.parametrize("trick", TRICKS)
def test_H06_S05_S06_no_path_trick_gets_round_the_check(gated: Stack, marker: str, trick: str) -> None:
    answer = gated.request("GET", trick, [("X-Marker", marker), *NAVIGATION])
    # A gateway may clean the path first; then it is the cleaned one that counts.
    assert [seen.target for seen in gated.reached(marker) if not PLAINLY_PUBLIC.fullmatch(seen.target)] == []
    if not gated.reached(marker):
        assert answer.status in (302, 307, 400, 401, 403), answer
        if answer.status == 302:
            assert answer.header("location").startswith(gated.provider.issuer + "/")


@pytest.mark.xdist_group("e2e-envoy")
@pytest.mark.parametrize("trick", TRICKS)
def test_H06_S06_nor_at_the_judge_port_itself(enveloped: Stack, trick: str) -> None:
    answer = enveloped.service.check(trick, headers=NAVIGATION)
    assert answer.status in (302, 400, 401, 403), answer
    if answer.status == 302:
        assert answer.header("location").startswith(enveloped.provider.issuer + "/")


RAW = [
    "/a%2Fb",
    "/a%2fb/c",
    "/a;p=1?q=1&next=%2Fx",
    "/a/b;v=2;w",
    "/a%20b?x=%C3%A9",
    "/a/%7Eb",
    "/a/b/",
    "/a?",
    "/?x=//y&z=https://other.example/",
    "/a%25b",
    "/%E2%82%AC/caf%C3%A9",
    "/a=b&c,d:e@f!g$h'(i)*+",
]


@pytest.mark.parametrize("target", RAW)
def test_S35_a_raw_path_reaches_the_application_as_it_was_sent(
    gated: Stack, marker: str, target: str
) -> None:
    person = gated.one_logged_in()
    visit = person.send(gated.url + target, headers=[("X-Marker", marker)])
    assert visit.answer.status == 200
    assert [normal(seen.target) for seen in gated.reached(marker)] == [normal(target)]


def normal(target: str) -> str:
    """Some gateways write percent escapes their own way; letter case of the digits, and `~`."""
    return re.sub(r"%[0-9a-fA-F]{2}", lambda found: found[0].upper(), target).replace("%7E", "~").rstrip("?")


AWKWARD = [
    "//a",
    "//",
    "/a//b",
    "/a/../b",
    "/a/..",
    "/.",
    "/a/.",
    "/a;",
    "/a%2F",
    "/a/",
    "/%2e%2e/",
    "/a%20b",
    "/a%0Ab",
    "/%0D%0A",
    "/a%00b",
    "/%ff",
    "/index.html/",
    "/site",
    "/site/homepage/",
    "/static/x",
    "/favicon.ico",
    "/?",
    "/a?/",
]
METHODS = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "OPTIONS",
    "PROPFIND",
    "REPORT",
    "TRACE",
    "BREW",
    "X-Y",
]


@pytest.mark.xdist_group("e2e-envoy")
@pytest.mark.parametrize("method", METHODS)
def test_S35_H07_every_method_on_every_path_gets_an_authorization_answer(
    enveloped: Stack, method: str
) -> None:
    alice = enveloped.one_logged_in()
    cookie = "; ".join(f"{k}={v}" for k, v in alice.cookies(enveloped.url + "/").items())
    for target in [*AWKWARD, *RAW]:
        anonymous = enveloped.service.check(target, method=method, host=enveloped.host)
        assert anonymous.status == (302 if method in ("GET", "HEAD") else 401), (target, anonymous)
        known = enveloped.service.check(
            target, method=method, host=enveloped.host, headers=[("Cookie", cookie)]
        )
        assert known.status == 200, (target, known)
        assert known.body == b""
        assert known.header("kubeflow-userid") == "alice@example.org"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
def test_S35_H07_every_method_is_judged_behind_the_gateway(gated: Stack, marker: str, method: str) -> None:
    known = [("X-Marker", marker)]
    anonymous = gated.request(method, "/any/where", known)
    # nginx asks with GET and then sends everybody to the login by its error_page.
    wanted = {302} if method in ("GET", "HEAD") else {401}
    assert anonymous.status in wanted, anonymous
    assert gated.reached(marker) == []
    visit = gated.one_logged_in().send(gated.url + "/any/where", method, headers=known)
    assert visit.answer.status == 200
    assert [seen.method for seen in gated.reached(marker)] == [method]


def test_body_and_length_of_a_post_reach_the_application(gated: Stack, marker: str) -> None:
    person = gated.one_logged_in()
    body = b"x" * 100_000
    visit = person.send(
        gated.url + "/form", "POST", headers=[("X-Marker", marker), ("Content-Type", "text/x")], body=body
    )
    assert visit.answer.status == 200
    (seen,) = gated.reached(marker)
    assert seen.body == body
    assert seen.values("content-type") == ["text/x"]


WEBSOCKET = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
]
NOT_PAGES = {
    "websocket": WEBSOCKET,
    "grpc": [("Content-Type", "application/grpc"), ("TE", "trailers")],
    "event-stream": [
        ("Accept", "text/event-stream"),
        ("Sec-Fetch-Mode", "cors"),
        ("Sec-Fetch-Dest", "empty"),
    ],
    "fetch": [("Sec-Fetch-Mode", "cors"), ("Sec-Fetch-Dest", "empty"), ("Accept", "*/*")],
    "xhr": [("X-Requested-With", "XMLHttpRequest")],
    "json": [("Accept", "application/json")],
    "image": [("Sec-Fetch-Mode", "no-cors"), ("Sec-Fetch-Dest", "image"), ("Accept", "image/*,*/*;q=0.8")],
}


@pytest.mark.parametrize("kind", NOT_PAGES)
def test_H08_S30_what_is_no_page_gets_401_and_no_cookie(gated: Stack, marker: str, kind: str) -> None:
    method = "POST" if kind == "grpc" else "GET"
    answer = gated.request(method, "/stream", [("X-Marker", marker), *NOT_PAGES[kind]])
    if kind == "grpc" and gated.kind == "envoy":  # Envoy says it in gRPC's own words: UNAUTHENTICATED
        assert (answer.status, answer.header("grpc-status")) == (200, "16")
    else:
        assert answer.status == 401, answer
    assert answer.values("www-authenticate")
    assert answer.values("location") == []
    assert answer.values("set-cookie") == []
    assert gated.reached(marker) == []


def test_a_websocket_of_a_logged_in_person_is_let_through(gated: Stack, marker: str) -> None:
    person = gated.one_logged_in()
    switching = (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )
    plain = gated.application.answer
    gated.application.answer = lambda seen: switching if seen.values("upgrade") else plain(seen)
    try:
        visit = person.send(gated.url + "/socket", headers=[("X-Marker", marker), *WEBSOCKET])
    finally:
        gated.application.answer = plain
    (seen,) = gated.reached(marker)
    assert seen.values("kubeflow-userid") == ["alice@example.org"]
    assert visit.answer.status == 101


def test_H09_the_check_endpoints_give_nothing_away_from_outside(gated: Stack) -> None:
    alice = gated.one_logged_in()
    for target in (
        "/authservice/verify",
        "/authservice/verify/x",
        "/authservice/forward-auth",
        "/_authservice",
    ):
        for headers in (NAVIGATION, [("X-Forwarded-Uri", "/public/x"), ("X-Original-URI", "/public/x")]):
            visit = alice.send(gated.url + target, headers=headers)
            for name in (
                "kubeflow-userid",
                "kubeflow-groups",
                "auth-method",
                "x-envoy-auth-headers-to-remove",
            ):
                assert visit.answer.values(name) == [], (target, name)
