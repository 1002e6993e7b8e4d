"""Bytes to requests: the head, its limits, how long the body is, and what is refused.

`Incoming` takes the bytes of one connection and gives `check.RequestParts`, one at a time and only when
a request is complete, the same as the full path makes from a WSGI environ. llhttp (httptools) reads
names, values and bodies; where requests begin and end is decided here, so nothing is ever read past
the end of one. Knows no socket and no clock; `authservice.protocol` asks it.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import httptools

from authservice.check import RequestParts

MOST_LINE = 8190
"""Bytes of a request line; more is 414."""

MOST_HEADER_BYTES = 65536
"""Bytes of all header fields; more is 431. Counted like the application's own limit."""

MOST_FIELDS = 200
"""Header fields of one request; more is 431."""

MOST_BODY = 10 * 1024 * 1024
"""Bytes of a body that are read at all; more is 413."""

KEPT_BODY = 65536
"""Bytes of a body that an application may see. One more is kept, so that it can tell."""

_PLAIN_SIZE = 32768
_MOST_HEAD = MOST_LINE + MOST_HEADER_BYTES + 4 * MOST_FIELDS
_HEAD_END = b"\r\n\r\n"
_VERSIONS = {b"HTTP/1.1": False, b"HTTP/1.0": True}
_METHODS = {
    name.encode(): name
    for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND", "REPORT")
}
# What gunicorn takes for a method: a token of 3 to 20 characters, without lower case and without "#".
_METHOD = re.compile(rb"[A-Z0-9!$%&'*+\-.^_`|~]{3,20}")
_TARGET = re.compile(rb"[\x21-\x7e]+")
_ONCE = frozenset(("host", "content-type", "content-length"))
# RFC 9110 §6.5.1: what alters framing, routing or authentication has no place in a trailer.
_NEVER_IN_TRAILERS = frozenset(
    ("host", "content-length", "transfer-encoding", "trailer", "authorization", "te")
)
_FRAMING = frozenset(("content-length", "transfer-encoding", "connection", "upgrade", "expect", "content-type"))
_USUAL = (
    "Host Cookie User-Agent Accept Accept-Encoding Accept-Language Authorization Cache-Control Pragma Origin "
    "Referer Priority DNT TE Via Forwarded If-None-Match If-Modified-Since Range Sec-Fetch-Mode Sec-Fetch-Site "
    "Sec-Fetch-Dest Sec-Fetch-User Sec-CH-UA Sec-CH-UA-Mobile Sec-CH-UA-Platform Upgrade-Insecure-Requests "
    "X-Forwarded-For X-Forwarded-Proto X-Forwarded-Host X-Forwarded-Port X-Forwarded-Uri X-Forwarded-Method "
    "X-Forwarded-Server X-Real-Ip X-Request-Id X-Original-Uri X-Original-Url X-Original-Method X-Requested-With "
    "X-Envoy-Expected-Rq-Timeout-Ms X-Envoy-Internal X-Envoy-External-Address X-B3-Traceid X-B3-Spanid X-B3-Sampled "
    "Traceparent Tracestate"
)
# The names of most lines, so that each costs one look-up; any other is made lower-case when it comes.
_NAMES = {spelt.encode(): name.lower() for name in _USUAL.split() for spelt in (name, name.lower(), name.title())}


class Refusal(Exception):
    """The connection's bytes are no request that is served; ``status`` is what to answer before closing."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _Message:
    """What llhttp says about one message. Its callbacks are this class's methods."""

    __slots__ = ("headers", "special", "complete", "refusal", "body", "size", "since_data")

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.special = False
        self.complete = 0
        self.refusal = 400
        self.body = bytearray()
        self.size = 0
        self.since_data = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        key = _NAMES.get(name)
        text = value.decode("latin-1").strip(" \t")
        if key is None:
            # llhttp has seen that a name is a token, so it is ASCII.
            key = name.decode("ascii").lower()
            if key in _FRAMING:
                self._note(key, text)
            elif "_" in key:
                # X_A and X-A are one name to WSGI: gunicorn's header_map="drop".
                return
        headers = self.headers
        if key in headers:
            if key in _ONCE:
                raise Refusal(400)
            text = headers[key] + "," + text
        headers[key] = text

    def _note(self, key: str, text: str) -> None:
        if key == "content-length":
            self.special |= text != "0"
        elif key == "connection":
            self.special |= text.lower() != "keep-alive"
        else:
            self.special = True
            if key == "transfer-encoding" and _unknown_codings(text):
                self.refusal = 501

    def on_message_complete(self) -> None:
        self.complete += 1

    def on_body(self, data: bytes) -> None:
        self.since_data = 0
        self.size += len(data)
        if len(self.body) <= KEPT_BODY:
            self.body += data[: KEPT_BODY + 1 - len(self.body)]


def _unknown_codings(value: str) -> bool:
    known = {"chunked", "identity", "compress", "deflate", "gzip"}
    return any(coding.strip(" \t").lower() not in known for coding in value.split(","))


class Incoming:
    """The requests of one connection from ``peer`` (see `check.RequestParts`), in their order.

    After `whole` or `next` gave a request, ``keep_alive`` says whether the connection may go on after its
    answer, ``http10`` whether that has to be said, and ``body`` holds at most `KEPT_BODY` + 1 bytes.
    """

    def __init__(self, peer: str | None) -> None:
        self.keep_alive = True
        self.http10 = False
        self.body = b""
        self.wants_continue = False
        self._peer = peer
        self._buffer = bytearray()
        self._scanned = 0
        self._blank_line = False
        self._parts: RequestParts | None = None
        self._left: int | None = 0
        self._tail = b""
        self._begin()

    def _begin(self) -> None:
        self._message = _Message()
        self._parser = httptools.HttpRequestParser(self._message)

    @property
    def waiting(self) -> int:
        """How many bytes are here that no request has taken yet."""
        return len(self._buffer)

    @property
    def in_head(self) -> bool:
        """Whether a request's head has begun."""
        return self._parts is None and (bool(self._buffer) or self._blank_line)

    @property
    def in_body(self) -> bool:
        """Whether a request's head is complete and its body is not."""
        return self._parts is not None

    def whole(self, data: bytes) -> RequestParts | None:
        """The request, where nothing is waiting and ``data`` is exactly one plain request without a
        body; ``None`` otherwise, and then nothing was taken. The short way for almost all checks."""
        if self._buffer or self._parts is not None or self._blank_line:
            return None
        method = _METHODS.get(data[: data.find(b" ")])
        if method is None or data[-4:] != _HEAD_END:
            return None
        end = data.find(b"\r\n")
        size = len(data)
        if data[end - 9 : end] != b" HTTP/1.1" or end > MOST_LINE or size > _PLAIN_SIZE:
            return None
        target = data[len(method) + 1 : end - 9]
        if target[:1] != b"/" or (size > 4 * MOST_FIELDS and data.count(b"\n") > MOST_FIELDS + 2):
            return None
        message = self._message
        message.headers = headers = {}
        message.complete = 0
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._begin()
            return None
        if message.complete != 1 or message.special or "host" not in headers:
            # Something more than one plain request: `next` takes it apart from the start.
            self._begin()
            return None
        self.keep_alive = True
        self.http10 = False
        self.body = b""
        return RequestParts(method, target.decode("ascii"), headers, self._peer)

    def feed(self, data: bytes) -> None:
        """Takes more bytes, for `next`."""
        self._buffer += data

    def next(self) -> RequestParts | None:
        """The next complete request, or ``None`` while there is none. Raises `Refusal`."""
        if self._parts is None and not self._take_head():
            return None
        if not self._message.complete and not self._take_body():
            return None
        parts, self._parts = self._parts, None
        self.body = bytes(self._message.body)
        self.wants_continue = False
        self._begin()
        return parts

    def _take_head(self) -> bool:
        buffer = self._buffer
        if not self._blank_line and buffer[:2] == b"\r\n":
            # One empty line before a request line is let pass (RFC 9112 §2.2).
            del buffer[:2]
            self._blank_line = True
        end = buffer.find(_HEAD_END, max(0, self._scanned - 3))
        if end < 0:
            self._look_at_part()
            return False
        head = bytes(buffer[: end + 4])
        del buffer[: end + 4]
        self._scanned = 0
        self._blank_line = False
        self._parts = self._read_head(head)
        return True

    def _look_at_part(self) -> None:
        """Refuses what cannot become a head any more. Raises `Refusal`."""
        buffer = self._buffer
        begin = max(0, self._scanned - 1)
        if buffer.count(b"\n", begin) != buffer.count(b"\r\n", begin) + (buffer[begin : begin + 1] == b"\n" != b""):
            raise Refusal(400)
        self._scanned = len(buffer)
        if len(buffer) <= MOST_LINE:
            return
        line = buffer.find(b"\r\n", 0, MOST_LINE + 2)
        if line < 0:
            raise Refusal(414)
        if len(buffer) > _MOST_HEAD:
            raise Refusal(431)

    def _read_head(self, head: bytes) -> RequestParts:
        end = head.find(b"\r\n")
        if end > MOST_LINE:
            raise Refusal(414)
        method, target, version = _request_line(head[:end])
        self.http10 = _VERSIONS[version]
        message = self._message
        # The line is read; llhttp knows neither every method nor every target that is one.
        self._execute(b"POST / " + version + head[end:])
        headers, message.headers = message.headers, {}
        if head.count(b"\n") > MOST_FIELDS + 2 or _size(headers) > MOST_HEADER_BYTES:
            raise Refusal(431)
        if not self.http10 and "host" not in headers:
            raise Refusal(400)
        self._frame(headers)
        connection = headers.get("connection", "").lower()
        tokens = {token.strip(" \t") for token in connection.split(",")}
        self.keep_alive = "close" not in tokens and (not self.http10 or "keep-alive" in tokens)
        if method == "CONNECT":
            # What follows would be a tunnel's bytes, whatever is answered (RFC 9931 §8).
            self.keep_alive = False
        if headers.get("content-type") == "":
            del headers["content-type"]
        return RequestParts(method, target, headers, self._peer)

    def _frame(self, headers: dict[str, str]) -> None:
        """How the body is delimited, and what its sender expects. Raises `Refusal`."""
        length = headers.get("content-length")
        chunked = "transfer-encoding" in headers
        if chunked and (self.http10 or length is not None or headers["transfer-encoding"].lower() != "chunked"):
            raise Refusal(400)
        self._left = None if chunked else int(length or 0)
        if not chunked and self._left and self._left > MOST_BODY:
            raise Refusal(413)
        announced = chunked or bool(self._left)
        if announced and self._message.complete:
            # llhttp takes an upgrade's body for the upgraded protocol. Nobody sends one with a check.
            raise Refusal(400)
        expectation = headers.get("expect", "")
        if expectation and expectation.lower() != "100-continue":
            raise Refusal(417)
        self.wants_continue = bool(expectation) and announced and not self.http10

    def _take_body(self) -> bool:
        """Feeds what is there of the body; whether it is complete. Raises `Refusal`."""
        message = self._message
        buffer = self._buffer
        while buffer and not message.complete:
            if self._left is None:
                end = self._end_of_piece()
            else:
                end = min(len(buffer), self._left)
                self._left -= end
            piece = bytes(buffer[:end])
            del buffer[:end]
            message.since_data += len(piece)
            self._execute(piece)
            if message.size > MOST_BODY:
                raise Refusal(413)
            # Chunk extensions and trailers: nobody needs long ones.
            if self._left is None and message.since_data > 2 * MOST_HEADER_BYTES:
                raise Refusal(431)
        if message.complete and not _NEVER_IN_TRAILERS.isdisjoint(message.headers):
            raise Refusal(400)
        return bool(message.complete)

    def _end_of_piece(self) -> int:
        """Where a chunked body may end: every body ends with an empty line, and is fed up to each."""
        known = len(self._tail)
        found = (self._tail + self._buffer).find(_HEAD_END)
        end = len(self._buffer) if found < 0 else found + 4 - known
        self._tail = (self._tail + self._buffer[:end])[-3:]
        return end

    def _execute(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return
        except httptools.HttpParserError:
            raise Refusal(self._message.refusal) from None


def _request_line(line: bytes) -> tuple[str, str, bytes]:
    """Method, target and version of a request line (RFC 9112 §3), as strict as gunicorn. Raises `Refusal`."""
    pieces = line.split(b" ")
    if len(pieces) != 3:
        raise Refusal(400)
    method, target, version = pieces
    if not _METHOD.fullmatch(method) or not _TARGET.fullmatch(target) or version not in _VERSIONS:
        raise Refusal(400)
    if target == b"*":
        known = method == b"OPTIONS"
    else:
        known = target.startswith(b"/") or method == b"CONNECT" or b"://" in target
    if not known:
        raise Refusal(400)
    if not target.startswith(b"/"):
        try:
            urlsplit(target.decode("ascii"))
        except ValueError:
            raise Refusal(400) from None
    return method.decode("ascii"), target.decode("ascii"), version


def _size(headers: dict[str, str]) -> int:
    """The size of the header fields as the application counts them in its environ."""
    return sum(
        len("HTTP_") + len(name) + len(value)
        for name, value in headers.items()
        if name not in ("content-type", "content-length")
    )
