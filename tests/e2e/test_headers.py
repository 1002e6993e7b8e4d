"""Headers through real gateways: cookies on several lines, forged origins, line breaks, sizes."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Shared
from tests.e2e.person import NAVIGATION, Person
from tests.e2e.stack import Stack
from tests.e2e.wire import Answer, exchange

pytestmark = pytest.mark.external


def cookie_of(person: Person, stack: Stack) -> str:
    return "; ".join(f"{name}={value}" for name, value in person.cookies(stack.url + "/").items())


def test_two_cookie_lines_are_both_read(gated: Stack, marker: str) -> None:
    ours = cookie_of(gated.one_logged_in(), gated)
    for lines in (
        [("Cookie", "a=1; b=2"), ("Cookie", ours)],
        [("Cookie", ours), ("Cookie", "a=1; b=2")],
        [("Cookie", "a=1"), ("Cookie", f"x=y; {ours}; z=1"), ("Cookie", "c=3")],
    ):
        answer = gated.request("GET", "/", [("X-Marker", marker), *lines])
        assert answer.status == 200, lines
    assert [seen.values("kubeflow-userid") for seen in gated.reached(marker)] == [["alice@example.org"]] * 3


def test_K02_a_planted_cookie_of_our_name_beside_the_real_one_neither_helps_nor_harms(gated: Stack) -> None:
    name, value = next(
        (name, value)
        for name, value in gated.one_logged_in().cookies(gated.url + "/").items()
        if name == "authservice_session"
    )
    planted = "A" * len(value)
    assert gated.request("GET", "/", [("Cookie", f"{name}={planted}; {name}={value}")]).status == 200
    assert (
        gated.request("GET", "/", [("Cookie", f"{name}={planted}"), ("Cookie", f"{name}={value}")]).status
        == 200
    )
    assert gated.request("GET", "/", [("Cookie", f"{name}={planted}"), *NAVIGATION]).status == 302


SPOOFS = [
    ("X-Forwarded-Uri", "/public/x"),
    ("X-Original-URL", "/public/x"),
    ("X-Original-Url", "http://app.localhost/public/x"),
    ("X-Original-URI", "/public/x"),
    ("X-Forwarded-Method", "OPTIONS"),
    ("X-Forwarded-Path", "/public/x"),
    ("X-Forwarded-Prefix", "/public"),
    ("X-Envoy-Original-Path", "/public/x"),
    ("X-Rewrite-URL", "/public/x"),
    ("X-HTTP-Method-Override", "OPTIONS"),
    ("X-Auth-Request-Redirect", "/public/x"),
    ("X-Forwarded-Host", "evil.example"),
    ("X-Forwarded-Proto", "https"),
    ("Forwarded", "for=127.0.0.1;host=evil.example;proto=https"),
    ("X-Real-IP", "127.0.0.1"),
    ("X-Forwarded-For", "127.0.0.1"),
]


@pytest.mark.parametrize("spoof", SPOOFS, ids=lambda spoof: spoof[0])
def test_S07_H04_a_spoofed_original_address_opens_nothing_and_leads_nowhere(
    gated: Stack, marker: str, spoof: tuple[str, str]
) -> None:
    for lines in ([spoof], [spoof, spoof]):
        answer = gated.request("GET", "/admin?deep=1", [("X-Marker", marker), *NAVIGATION, *lines])
        assert gated.reached(marker) == []
        assert answer.status in (302, 400, 403), answer
        if answer.status == 302:
            place = answer.header("location")
            assert place.startswith(gated.provider.issuer + "/auth?")
            assert "evil" not in place
            assert f"redirect_uri=http%3A%2F%2F{gated.host.replace(':', '%3A')}%2Fauthservice" in place


@pytest.mark.parametrize("spoof", SPOOFS, ids=lambda spoof: spoof[0])
def test_S07_nor_does_it_change_where_the_login_ends(gated: Stack, spoof: tuple[str, str]) -> None:
    person = gated.person()
    begun = person.send(gated.url + "/deep?x=1", headers=[*NAVIGATION, spoof])
    done = person.log_in(begun.location)
    assert done.url == gated.url + "/deep?x=1"
    assert done.answer.status == 200


@pytest.mark.xdist_group("e2e-nginx")
@pytest.mark.parametrize(
    "headers",
    [
        [("X-Original-URI", "/admin"), ("X-Original-URI", "/public/x")],
        [("X-Original-URI", "/public/x"), ("X-Original-URI", "/admin")],
        [("X-Original-URI", "/public/x, /admin")],
        [("X-Original-URI", "/public/x"), ("X-Original-URL", "http://app.localhost/admin")],
        [("X-Original-Method", "GET")],
        [],
    ],
)
def test_S07_in_the_nginx_dialect_a_doubled_or_missing_origin_is_denied(
    shared_stack: Shared, headers: list[tuple[str, str]]
) -> None:
    service = shared_stack("nginx").service
    for method in ([("X-Original-Method", "GET")], []):
        lines = headers if headers and headers[0][0] == "X-Original-Method" else [*headers, *method]
        answer = service.check("/authservice/verify", headers=lines)
        assert answer.status in (401, 403), answer
    single = [("X-Original-URI", "/public/x"), ("X-Original-Method", "GET")]
    assert service.check("/authservice/verify", headers=single).status == 204


BREAKS = [
    "/a%0d%0aSet-Cookie:%20evil=1",
    "/a%0aLocation:%20http://evil.example/",
    "/a?x=%0d%0aSet-Cookie:%20evil=1%0d%0a%0d%0a<script>alert(1)</script>",
    "/%E5%98%8A%E5%98%8DSet-Cookie:%20evil=1",
    "/a\xc4\x8d\xc4\x8aSet-Cookie:%20evil=1",
]


@pytest.mark.parametrize("target", BREAKS)
def test_H01_line_breaks_split_no_answer_and_no_log_line(gated: Stack, target: str) -> None:
    agent = [("User-Agent", 'x" 200 "GET /forged HTTP/1.1" \x1b[31m %0d%0aforged: line')]
    answer = gated.request("GET", target, [*NAVIGATION[:-1], *agent])
    assert_one_answer(answer)
    if answer.status == 302:  # and after the login no more than before
        person = gated.person()
        done = person.log_in(gated.url + target, until=gated.url + "/a") if target.isascii() else None
        for visit in person.history:
            assert_one_answer(visit.answer)
        assert done is not None or not target.isascii()
    for line in gated.service.program.log_text().splitlines():
        assert not line.lower().startswith(("set-cookie:", "location:", "forged"))
        assert "\x1b" not in line


def test_H01_nor_do_they_in_what_comes_to_the_callback(gated: Stack) -> None:
    for query in (
        "state=%0d%0aSet-Cookie:%20evil=1&code=x",
        "code=%0d%0aSet-Cookie:%20evil=1&state=x",
        "error=%0d%0aSet-Cookie:%20evil=1&error_description=%0d%0a<script>alert(1)</script>",
    ):
        answer = gated.request("GET", f"/authservice/oidc/callback?{query}", NAVIGATION)
        assert answer.status == 400
        assert_one_answer(answer)
        assert "<script>alert" not in answer.text


def assert_one_answer(answer: Answer) -> None:
    assert not any("evil=1" in line.split(";")[0] for line in answer.values("set-cookie"))
    assert "evil.example" not in "".join(answer.values("location")).split("?")[0]
    assert b"HTTP/1.1 " not in answer.body


# --- sizes -----------------------------------------------------------------------------------


def many(total: int, each: int) -> list[tuple[str, str]]:
    return [(f"X-Filler-{number}", "f" * each) for number in range(total // (each + 16))]


BIG = {
    "one cookie line": [("Cookie", "other=" + "v" * 20_000)],
    "many lines": many(30_000, 450),
    "few long lines": many(30_000, 7_000),
    "many cookies": [("Cookie", "; ".join(f"cookie{number}=value{number}" for number in range(1_200)))],
}
TOO_BIG = {
    "one line of 70 kB": [("Cookie", "other=" + "v" * 70_000)],
    "many lines of 200 kB": many(200_000, 7_000),
    "2,000 lines": many(2_000 * 26, 10),
}


@pytest.mark.parametrize("shape", BIG)
def test_H11_32_kB_of_headers_pass(gated: Stack, marker: str, shape: str) -> None:
    ours = ("Cookie", cookie_of(gated.one_logged_in(), gated))
    answer = gated.request("GET", "/", [("X-Marker", marker), *BIG[shape], ours])
    assert answer.status == 200, answer
    assert gated.reached(marker)[0].values("kubeflow-userid") == ["alice@example.org"]
    long_path = "/" + "p" * 3_000 + "?" + "q" * 3_000
    assert gated.request("GET", long_path, [("X-Marker", marker), ours]).status == 200


@pytest.mark.parametrize("shape", TOO_BIG)
def test_H11_larger_ones_are_refused_and_no_worker_is_lost(gated: Stack, marker: str, shape: str) -> None:
    ours = ("Cookie", cookie_of(gated.one_logged_in(), gated))
    before = gated.service.workers()
    for _ in range(4):
        assert gated.request("GET", "/", [("X-Marker", marker), ours, *TOO_BIG[shape]]).status in (400, 431)
    assert gated.reached(marker) == []
    assert gated.service.workers() == before
    assert gated.request("GET", "/", [ours]).status == 200


@pytest.mark.xdist_group("e2e-envoy")
@pytest.mark.parametrize("shape", TOO_BIG)
def test_H11_K07_the_same_at_the_ports_themselves(enveloped: Stack, shape: str) -> None:
    service = enveloped.service
    before = service.workers()
    for ask in (service.check, service.site):
        for _ in range(4):
            assert ask("/site/homepage", headers=TOO_BIG[shape]).status in (400, 431)
    assert service.workers() == before
    assert service.probe("/healthz") == 200


@pytest.mark.xdist_group("e2e-envoy")
def test_H11_a_request_that_is_not_http_costs_no_worker(enveloped: Stack) -> None:
    before = enveloped.service.workers()
    rubbish = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"\r\n\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x00" * 100,
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\n: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
    ]
    for data in rubbish:
        for port in (enveloped.service.judge_port, enveloped.service.site_port):
            answer = exchange(port, data, half_close=True)
            assert answer.status in (0, 400, 501, 505), (data, answer)
    assert enveloped.service.workers() == before
