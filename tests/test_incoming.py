"""What of a connection's bytes is a request, and where it ends: without sockets, in any pieces."""

from __future__ import annotations

import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authservice import incoming as incoming_module
from authservice.bodies import KEPT_BODY, MOST_BODY, MOST_CHUNK_LINE, MOST_TRAILERS, Refusal
from authservice.check import RequestParts
from authservice.incoming import MOST_FIELDS, MOST_HEADER_BYTES, MOST_LINE, Incoming

PEER = "192.0.2.7"
GET = b"GET /a HTTP/1.1\r\nHost: app.example\r\n\r\n"
CHUNKED = b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


def sized(length: int) -> bytes:
    return b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % length


Heard = tuple[RequestParts, bool, bool, bytes]


def read(data: bytes, step: int = 0, *, short_way: bool = True) -> tuple[list[Heard], int | None]:
    """The requests in these bytes, fed in pieces, and the status with which the rest was refused."""
    incoming = Incoming(PEER)
    heard: list[Heard] = []
    for start in range(0, len(data), step or len(data) or 1):
        piece = data[start : start + (step or len(data) or 1)]
        parts = incoming.whole(piece) if short_way else None
        if parts is None:
            incoming.feed(piece)
        try:
            while parts is not None or (parts := incoming.next()) is not None:
                heard.append((parts, incoming.keep_alive, incoming.http10, incoming.body))
                parts = None
        except Refusal as refusal:
            return heard, refusal.status
    return heard, None


def refused(data: bytes) -> int | None:
    """The status that these bytes are refused with, in one piece and in many alike."""
    heard, status = read(data)
    assert read(data, 7) == (heard, status)
    assert not heard
    return status


def test_a_plain_request_is_taken_the_short_way() -> None:
    incoming = Incoming(PEER)
    assert incoming.whole(GET) == RequestParts("GET", "/a", {"host": "app.example"}, PEER)
    incoming.feed(GET)
    assert incoming.next() == RequestParts("GET", "/a", {"host": "app.example"}, PEER)
    assert incoming.next() is None and not incoming.in_head
    assert incoming.whole(GET) is not None
    assert incoming.whole(GET + GET) is None and incoming.waiting == 0
    assert incoming.whole(GET[:-1]) is None and incoming.whole(sized(3) + b"abc") is None


@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "BREW", "get", "G", "GET\t", "CONNECT", ""]),
    target=st.binary(max_size=6).map(lambda tail: b"/" + tail) | st.binary(max_size=6),
    version=st.sampled_from([b" HTTP/1.1", b" HTTP/1.0", b" HTTP/1.2", b"  HTTP/1.1", b" http/1.1", b""]),
    name=st.sampled_from([b"X-A", b"x_a", b"COOKIE", b"Connection", b"Content-Length", b"Upgrade", b"Host", b"A ", b""]),
    value=st.binary(max_size=6) | st.sampled_from([b"0", b"close", b"upgrade", b" a\t"]),
    end=st.sampled_from([b"\r\n\r\n", b"\n\n", b"\r\n\n", b"\r\n \r\n\r\n", b"\r\n\r\n" + GET]),
)
def test_the_short_way_takes_only_what_the_long_way_takes(
    method: str, target: bytes, version: bytes, name: bytes, value: bytes, end: bytes
) -> None:
    line = method.encode() + b" " + target + version
    data = line + b"\r\nHost: app.example\r\n" + name + b": " + value + end
    incoming = Incoming(PEER)
    first, parts = incoming.whole(GET), incoming.whole(data)
    if parts is not None:
        heard, status = read(GET + data, short_way=False)
        assert status is None and [each[0] for each in heard] == [first, parts]
        assert heard[1][1:] == (incoming.keep_alive, incoming.http10, incoming.body)


@given(st.lists(st.sampled_from([
    GET, sized(0), sized(5) + b"a\r\n\r\n", CHUNKED + b"3\r\n\r\n\r\r\n0\r\n\r\n",
    CHUNKED + b"1 ; a=b;c=\"d;\"\r\nx\r\n0;e\r\nX-T: y\r\n\r\n", b"\r\n" + GET,
    b"BREW http://h/x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", b"GET / HTTP/1.1\n\n", b"\r\n\r\n" + GET,
    CHUNKED + b"g\r\n", sized(3) + b"abc" + GET[:9],
]), max_size=5).map(b"".join), st.integers(1, 40))
def test_pieces_make_no_difference(data: bytes, step: int) -> None:
    assert read(data, step) == read(data, short_way=False)


def test_repeated_fields_are_joined_and_underscores_dropped() -> None:
    data = b"GET / HTTP/1.1\r\nHost: h\r\nCookie: a=1\r\nX_A: no\r\ncookie: b=2 \t\r\nX-A: \xe9\r\nContent-Type:\r\n\r\n"
    [(parts, *_)], status = read(data)
    assert status is None and parts.headers == {"host": "h", "cookie": "a=1,b=2", "x-a": "é"}


@pytest.mark.parametrize(("line", "fields", "keep_alive"), [
    ("GET / HTTP/1.1", "", True), ("GET / HTTP/1.1", "Connection: close\r\n", False),
    ("GET / HTTP/1.1", "Connection: TE, Close\r\n", False), ("GET / HTTP/1.0", "", False),
    ("GET / HTTP/1.0", "Connection: Keep-Alive\r\n", True), ("CONNECT h:1 HTTP/1.1", "", False),
    ("GET / HTTP/1.1", "Connection: Upgrade\r\nUpgrade: websocket\r\n", True),
])
def test_who_may_go_on(line: str, fields: str, keep_alive: bool) -> None:
    [(_, goes_on, http10, _)], _ = read(f"{line}\r\nHost: h\r\n{fields}\r\n".encode())
    assert goes_on is keep_alive and http10 is line.endswith("1.0")


def with_fields(*lines: str) -> bytes:
    return ("GET / HTTP/1.1\r\nHost: h\r\n" + "".join(line + "\r\n" for line in lines) + "\r\n").encode("latin-1")


def test_limits_of_the_head() -> None:
    line = "GET /" + "a" * (MOST_LINE - len("GET / HTTP/1.1")) + " HTTP/1.1"
    assert read(f"{line}\r\nHost: h\r\n\r\n".encode())[1] is None
    assert refused(f"{line}1\r\nHost: h\r\n\r\n".replace("GET /", "GET /a").encode()) in (400, 414)
    assert refused(b"GET /" + b"a" * 10000) == 414
    assert read(with_fields(*["X: y"] * (MOST_FIELDS - 1)))[1] is None
    assert refused(with_fields(*["X: y"] * MOST_FIELDS)) == 431
    most = MOST_HEADER_BYTES - len("HTTP_host" + "h" + "HTTP_x")
    assert read(with_fields("x: " + "y" * most))[1] is None
    assert refused(with_fields("x: " + "y" * (most + 1))) == 431
    assert refused(b"GET / HTTP/1.1\r\nx: " + b"y" * 100_000) == 431


def test_bodies_are_counted_and_kept_only_in_part() -> None:
    [(_, _, _, body)], _ = read(sized(5) + b"hello")
    assert body == b"hello"
    [(_, _, _, body)], _ = read(sized(3 * KEPT_BODY) + b"x" * 3 * KEPT_BODY, 5000)
    assert len(body) == KEPT_BODY + 1
    assert refused(sized(MOST_BODY + 1)) == 413
    chunks = b"".join(b"%x\r\n%s\r\n" % (100_000, b"x" * 100_000) for _ in range(MOST_BODY // 100_000))
    assert read(CHUNKED + chunks + b"0\r\n\r\n", 30_000)[1] is None
    assert read(CHUNKED + chunks + b"%x\r\n" % 100_000, 30_000)[1] == 413
    assert refused(CHUNKED + b"f" * 400 + b"\r\n") == 413


@pytest.mark.parametrize("body", [
    b"5\r\nhello", b"5\nhello\r\n0\r\n\r\n", b"5\r\nhello\n0\r\n\r\n", b"\r\n", b"-1\r\n", b"0x1\r\na\r\n", b"1 \r\na\r\n",
    b"1;\r\na\r\n", b"1;=a\r\na\r\n", b"1;a=\r\na\r\n", b"1;a b\r\na\r\n", b'1;a="b\r\na\r\n', b"1;a\x01\r\na\r\n",
    b"1;" + b"a" * (MOST_CHUNK_LINE + 3), b"0\r\nHost: other\r\n\r\n", b"0\r\nbad name: x\r\n\r\n", b"0\r\n folded\r\n\r\n",
    b"0\r\nX: y\n\r\n", b"5\r\nhelloGET",
])
def test_chunks_that_are_none_are_refused(body: bytes) -> None:
    status = refused(CHUNKED + body)
    assert status == (None if body == b"5\r\nhello" else 400)


def test_trailers_have_limits_of_their_own() -> None:
    assert refused(CHUNKED + b"0\r\nX: " + b"y" * MOST_TRAILERS) == 431
    assert refused(CHUNKED + b"0\r\n" + b"X: y\r\n" * (MOST_FIELDS + 1) + b"\r\n") == 431


@pytest.mark.parametrize(("fields", "status"), [
    (["Content-Length: 3", "Transfer-Encoding: chunked"], 400), (["Content-Length: 3", "Content-Length: 3"], 400),
    (["Host: h"], 400), (["Transfer-Encoding: x"], 501), (["Transfer-Encoding: gzip"], 400),
    (["Transfer-Encoding: chunked, chunked"], 400), (["X: a", " folded"], 400), (["X : a"], 400), (["X: a\0"], 400),
    (["X: a\nY: b"], 400), (["X: a\rY: b"], 400), (["Expect: coffee"], 417), (["Content-Length: +3"], 400),
    (["Content-Length: ٣"], 400), ([": a"], 400), (["X"], 400), (["Content-Type: a", "Content-Type: b"], 400),
])
def test_shapes_that_two_readers_could_read_differently_are_refused(fields: list[str], status: int) -> None:
    assert refused("".join(["POST / HTTP/1.1\r\nHost: h\r\n", *(f + "\r\n" for f in fields), "\r\n"]).encode()) == status


@pytest.mark.parametrize("host", ["a b", "a/b", "a,b c", "user@h", "h:x", "h?q", "h#f", "<h>", "[::1", "é"])
def test_a_host_that_is_none_is_refused(host: str) -> None:
    assert refused(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()) == 400


@pytest.mark.parametrize("line", [
    "GET /", "GET / HTTP/2.0", "GET / HTTP/1.2", "GET  / HTTP/1.1", "GET / HTTP/1.1 ", " GET / HTTP/1.1", "GET * HTTP/1.1",
    "GET a HTTP/1.1", "GET ftp://h/ HTTP/1.1", "GET http:///a HTTP/1.1", "CONNECT / HTTP/1.1", "get / HTTP/1.1",
    "G / HTTP/1.1", "GET /\x7f HTTP/1.1", "GET /é HTTP/1.1", "A" * 21 + " / HTTP/1.1", "PRI * HTTP/2.0",
])
def test_a_request_line_that_is_none_is_refused(line: str) -> None:
    assert refused(f"{line}\r\nHost: h\r\n\r\n".encode()) == 400


def test_a_head_that_cannot_become_one_is_refused_before_it_ends() -> None:
    assert refused(b"\x16\x03\x01\x02\x00\x01\x00") == 400
    assert refused(b"GET / HTTP/1.1\nHost: h\n") == 400
    assert refused(b"\n") == 400 and refused(b"\r\n\r\n" + GET) == 400


def test_who_expects_to_be_told_is_told_only_when_the_body_may_come() -> None:
    incoming = Incoming(PEER)
    incoming.feed(sized(5).replace(b"\r\n\r\n", b"\r\nExpect: 100-Continue\r\n\r\n"))
    assert incoming.next() is None and incoming.wants_continue and incoming.in_body
    incoming.feed(b"hello")
    assert incoming.next() is not None and not incoming.wants_continue
    assert refused(sized(MOST_BODY + 1).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")) == 413


@pytest.mark.parametrize("host", ["[:::]", "[1.2]"])
@pytest.mark.skipif(sys.version_info < (3, 11), reason="takes any brackets for an address")
def test_a_target_that_the_application_cannot_take_apart_is_refused(host: str) -> None:
    assert refused(f"GET http://{host}/ HTTP/1.1\r\nHost: a\r\n\r\n".encode()) == 400


def test_a_body_of_single_bytes_is_not_taken_apart_for_ever() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert refused(head + b"1\r\nx\r\n" * 2000) == 413
    requests, status = read(head + b"1\r\nx\r\n" * 1000 + b"0\r\n\r\n")
    assert (len(requests), status) == (1, None)
    requests, status = read(head + (b"40\r\n" + b"x" * 64 + b"\r\n") * 5000 + b"0\r\n\r\n")
    assert (len(requests), status) == (1, None)


def test_names_of_fields_are_learnt_up_to_a_number_and_stay_right_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict(incoming_module._NAMES)
    monkeypatch.setattr(incoming_module, "_NAMES", known)
    monkeypatch.setattr(incoming_module, "_MOST_NAMES", len(known) + 3)
    names = ["X-One", "x-one", "X-Two", "X-Three", "Y-" + "n" * 100, "X-One"]
    for name in names:
        data = with_fields(f"{name}:  a value\t")
        assert read(data) == read(data, short_way=False)
        assert Incoming(PEER).whole(data) == RequestParts("GET", "/", {"host": "h", name.lower(): "a value"}, PEER)
    assert len(known) == len(incoming_module._NAMES) == incoming_module._MOST_NAMES
    assert known[b"X-One"] == known[b"x-one"] == "x-one" and b"X-Three" not in known


@pytest.mark.parametrize("room", [0, 1])
def test_a_new_name_takes_the_short_way_beside_what_frames_no_body(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Envoy sends a length of 0 with every check."""
    known = dict(incoming_module._NAMES)
    monkeypatch.setattr(incoming_module, "_NAMES", known)
    monkeypatch.setattr(incoming_module, "_MOST_NAMES", len(known) + room)
    data = with_fields("Content-Length: 0", "Connection: keep-alive", "X-Never-Seen: 1")
    for _ in range(2):
        parts = Incoming(PEER).whole(data)
        assert parts is not None and parts.headers["x-never-seen"] == "1"
    assert (b"X-Never-Seen" in known) is bool(room)
    for framed in ("Content-Length: 1", "Connection: keep-alive, x-never-seen"):
        assert Incoming(PEER).whole(with_fields(framed, "X-Not-Seen-Either: 1")) is None


@pytest.mark.parametrize("line", ["X_One: 1", "CONTENT-LENGTH: 3", "Transfer-encoding: chunked", "uPGRADE: h2c"])
def test_names_that_say_more_than_their_value_are_not_learnt(line: str) -> None:
    data = with_fields(line)
    for _ in range(2):
        assert Incoming(PEER).whole(data) is None
        assert line.partition(":")[0].encode() not in incoming_module._NAMES
    assert read(data) == read(data, short_way=False)


def test_names_of_hosts_cannot_fill_the_memory() -> None:
    incoming = Incoming("192.0.2.7")
    tracemalloc.start()
    try:
        for number in range(90):
            assert incoming.whole(f"GET / HTTP/1.1\r\nHost: {number:030000}\r\n\r\n".encode()) is not None
        assert tracemalloc.get_traced_memory()[0] < 500_000
    finally:
        tracemalloc.stop()
