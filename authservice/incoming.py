"""Bytes to requests: the head, its limits, and what is refused.

`Incoming` takes the bytes of one connection and gives `check.RequestParts`, one at a time and only when
a request is complete, the same as the full path makes from a WSGI environ. llhttp (httptools) reads
names and values, `authservice.bodies` the bodies; where requests begin and end is decided here, so that
nothing is ever read past the end of one. Knows no socket and no clock; `authservice.protocol` asks it.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import httptools

from authservice.bodies import Body, Chunked, Refusal, Sized, refuse_bare_line_feeds
from authservice.check import RequestParts

MOST_LINE = 8190
"""Bytes of a request line; more is 414."""

MOST_HEADER_BYTES = 65536
"""Bytes of all header fields, counted as in a WSGI environ; more is 431. What a gateway passes on fits
(Envoy: 60 KiB in all)."""

MOST_FIELDS = 200
"""Header fields of one request; more is 431."""

_PLAIN_SIZE = 32768
_MOST_HOSTS = 100
_LONGEST_HOST_KEPT = 255
_MOST_HEAD = MOST_LINE + MOST_HEADER_BYTES + 4 * MOST_FIELDS
_HEAD_END = b"\r\n\r\n"
_VERSIONS = {b"HTTP/1.1": False, b"HTTP/1.0": True}
_METHODS = {
    name.encode(): name
    for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND", "REPORT")
}
# What gunicorn takes for a method: a token of 3 to 20 characters, without lower case and without "#".
_METHOD = re.compile(rb"[A-Z0-9!$%&'*+\-.^_`|~]{3,20}")
_METHOD_BEGINS = re.compile(rb"[A-Z0-9!$%&'*+\-.^_`|~]{1,20}(?: |$)")
_TARGET = re.compile(rb"[\x21-\x7e]+")
# A host and its port (RFC 3986 §3.2.2), in a Host field and in targets that name one (RFC 9112 §3.2).
_HOST = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=%]*|\[[0-9A-Fa-f:.]+\])"
_HOST_FIELD = re.compile(_HOST + r"(?::[0-9]*)?")
_ABSOLUTE = re.compile(rf"(?i:https?)://(?=[^/?:]){_HOST}(?::[0-9]*)?(?:[/?#].*)?")
_AUTHORITY = re.compile(rf"(?=[^:]){_HOST}:[0-9]+")
_ONCE = frozenset(("host", "content-type", "content-length"))
# RFC 9110 §6.5.1: what alters framing, routing or authentication has no place in a trailer.
_NEVER_IN_TRAILERS = frozenset(
    ("host", "content-length", "transfer-encoding", "trailer", "authorization", "te")
)
_PLAIN_CONNECTIONS = ("close", "keep-alive")
_FRAMING = frozenset(("content-length", "transfer-encoding", "connection", "upgrade", "expect", "content-type"))
_USUAL = (
    "Host Cookie User-Agent Accept Accept-Encoding Accept-Language Authorization Cache-Control Pragma Origin "
    "Referer Priority DNT TE Via Forwarded If-None-Match If-Modified-Since Range Sec-Fetch-Mode Sec-Fetch-Site "
    "Sec-Fetch-Dest Sec-Fetch-User Sec-CH-UA Sec-CH-UA-Mobile Sec-CH-UA-Platform Upgrade-Insecure-Requests "
    "X-Forwarded-For X-Forwarded-Proto X-Forwarded-Host X-Forwarded-Port X-Forwarded-Uri X-Forwarded-Method "
    "X-Forwarded-Server X-Real-Ip X-Request-Id X-Original-Uri X-Original-Url X-Original-Method X-Requested-With "
    "X-Envoy-Expected-Rq-Timeout-Ms X-Envoy-Internal X-Envoy-External-Address X-B3-Traceid X-B3-Spanid X-B3-Sampled "
    "Traceparent Tracestate Content-Length Connection"
)
# The names of most lines, so that each costs one look-up. Others are added when they come, as long as there is
# room: applications and gateways have few of their own, and a stranger's are told apart without this table.
_NAMES = {spelt.encode(): name.lower() for name in _USUAL.split() for spelt in (name, name.lower(), name.title())}
_MOST_NAMES = 2000
_LONGEST_NAME_KEPT = 64


class _Plain:
    """What llhttp says about bytes that may be one plain request. A field that comes twice is there
    once: who counts the lines knows. ``awaited`` has one item until the request is complete, and a
    second request finds nothing to take out. Callbacks cost more than all else, so both are C."""

    __slots__ = ("fields", "on_header", "awaited", "on_message_complete")

    def __init__(self) -> None:
        self.fields: dict[bytes, bytes] = {}
        self.on_header = self.fields.setdefault
        self.awaited: list[None] = []
        self.on_message_complete = self.awaited.pop


class _Message:
    """What llhttp says about one head. Its callback is this class's method."""

    __slots__ = ("headers", "refusal")

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.refusal = 400

    def on_header(self, name: bytes, value: bytes) -> None:
        # llhttp has seen that a name is a token, so it is ASCII.
        key = name.decode("ascii").lower()
        text = value.decode("latin-1").strip(" \t")
        if "_" in key:
            # X_A and X-A are one name to WSGI: gunicorn's header_map="drop".
            return
        if key == "transfer-encoding" and _unknown_codings(text):
            self.refusal = 501
        headers = self.headers
        if key in headers:
            if key in _ONCE:
                raise Refusal(400)
            text = headers[key] + "," + text
        headers[key] = text


def _plain_fields(fields: dict[bytes, bytes]) -> dict[str, str]:
    """Fields with names that are not in the table yet; empty when one says more than its value, or when WSGI
    would take its name for another one. llhttp has seen that names are tokens, so they are ASCII."""
    headers: dict[str, str] = {}
    for name, value in fields.items():
        key = _NAMES.get(name)
        if key is None:
            key = name.decode("ascii").lower()
            if key in _FRAMING or "_" in key:
                return {}
            if len(_NAMES) < _MOST_NAMES and len(name) <= _LONGEST_NAME_KEPT:
                _NAMES[name] = key
        headers[key] = value.strip().decode("latin-1")
    return headers


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
        self._body: Body = Sized(0)
        self._hosts: set[str | None] = set()
        self._renew()

    def _renew(self) -> None:
        """A parser for the short way; after anything but one plain request it is of no more use."""
        self._plain = _Plain()
        self._parser = httptools.HttpRequestParser(self._plain)

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
        if data[-4:] != _HEAD_END or len(data) > _PLAIN_SIZE:
            return None
        end = data.find(b"\r\n")
        try:
            verb, target, version = data[:end].split(b" ", 3)
            method = _METHODS[verb]
        except (ValueError, KeyError):
            return None
        if version != b"HTTP/1.1" or target[:1] != b"/" or end > MOST_LINE:
            return None
        plain = self._plain
        fields = plain.fields
        fields.clear()
        plain.awaited.append(None)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._renew()
            return None
        names = _NAMES
        headers = {}
        try:
            for name, value in fields.items():
                headers[names[name]] = value.strip().decode("latin-1")
        except KeyError:
            headers = _plain_fields(fields)
        # To take them out is several times faster than to count them.
        lines = len(data) - len(data.replace(b"\n", b"")) - 2
        connection = headers.get("connection")
        # More than one request, empty lines behind it (llhttp passes over them without a word), or one that
        # is not plain: `next` takes the bytes apart from the start.
        if (
            plain.awaited
            or len(headers) != lines
            or lines > MOST_FIELDS
            or headers.get("content-length", "0") != "0"
            or not (connection is None or connection.lower() in _PLAIN_CONNECTIONS)
            or not (headers.get("host") in self._hosts or self._knows(headers.get("host")))
        ):
            self._renew()
            return None
        self.keep_alive = connection is None or connection.lower() != "close"
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
        if not self._body.take(self._buffer):
            return None
        if isinstance(self._body, Chunked) and self._body.trailers:
            _look_at_trailers(self._body.trailers)
        parts, self._parts = self._parts, None
        self.body = bytes(self._body.kept)
        self.wants_continue = False
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
        refuse_bare_line_feeds(buffer, self._scanned)
        self._scanned = len(buffer)
        if buffer[:1] and not _METHOD_BEGINS.match(buffer) and (self._blank_line or buffer != b"\r"):
            raise Refusal(400)
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
        self.http10 = http10 = _VERSIONS[version]
        # The line has been read; llhttp knows neither every method nor every target that is one.
        headers = _fields(b"POST / " + version + head[end:])
        if head.count(b"\n") > MOST_FIELDS + 2 or _size(headers) > MOST_HEADER_BYTES:
            raise Refusal(431)
        if not self._knows(headers.get("host", "" if http10 else None)):
            raise Refusal(400)
        self._frame(headers)
        tokens = {token.strip(" \t") for token in headers.get("connection", "").lower().split(",")}
        # A client of 1.0 that says anything besides keeping alive may mean something else by it.
        self.keep_alive = "close" not in tokens and (not http10 or tokens == {"keep-alive"})
        if method == "CONNECT":
            # What follows would be a tunnel's bytes, whatever is answered (RFC 9931 §8).
            self.keep_alive = False
            if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
                raise Refusal(400)
        if headers.get("content-type") == "":
            del headers["content-type"]
        return RequestParts(method, target, headers, self._peer)

    def _knows(self, host: str | None) -> bool:
        """Whether this is a host (RFC 9112 §3.2). Most connections name the same few again and again."""
        if host in self._hosts:
            return True
        if host is None or not _HOST_FIELD.fullmatch(host):
            return False
        if len(host) > _LONGEST_HOST_KEPT:
            return True
        if len(self._hosts) >= _MOST_HOSTS:
            self._hosts.clear()
        self._hosts.add(host)
        return True

    def _frame(self, headers: dict[str, str]) -> None:
        """How the body is delimited, and what its sender expects. Raises `Refusal`."""
        length = headers.get("content-length")
        coding = headers.get("transfer-encoding")
        if coding is None:
            self._body = Sized(int(length or 0))
        elif self.http10 or length is not None or coding.lower() != "chunked":
            raise Refusal(400)
        else:
            self._body = Chunked()
        expectation = headers.get("expect")
        if expectation is None:
            self.wants_continue = False
        elif expectation.lower() != "100-continue":
            raise Refusal(417)
        else:
            self.wants_continue = not self.http10


def _fields(head: bytes) -> dict[str, str]:
    """The header fields of a head, by llhttp. Raises `Refusal`."""
    message = _Message()
    try:
        httptools.HttpRequestParser(message).feed_data(head)
    except httptools.HttpParserUpgrade:
        # Only its word: nothing is ever upgraded here.
        return message.headers
    except httptools.HttpParserError:
        raise Refusal(message.refusal) from None
    return message.headers


def _look_at_trailers(trailers: bytes) -> None:
    """Nobody is told of trailers, but they must be fields (RFC 9112 §7.1.2). Raises `Refusal`."""
    if trailers.count(b"\n") > MOST_FIELDS:
        raise Refusal(431)
    fields = _fields(b"POST / HTTP/1.1\r\n" + trailers + b"\r\n")
    if not _NEVER_IN_TRAILERS.isdisjoint(fields):
        raise Refusal(400)


def _request_line(line: bytes) -> tuple[str, str, bytes]:
    """Method, target and version of a request line (RFC 9112 §3). Raises `Refusal`."""
    pieces = line.split(b" ")
    if len(pieces) != 3 or not _METHOD.fullmatch(pieces[0]) or not _TARGET.fullmatch(pieces[1]):
        raise Refusal(400)
    method, target = pieces[0].decode("ascii"), pieces[1].decode("ascii")
    if pieces[2] not in _VERSIONS:
        raise Refusal(400)
    if method == "CONNECT":
        known = bool(_AUTHORITY.fullmatch(target))
    else:
        known = target.startswith("/") or (target == "*" and method == "OPTIONS") or _is_absolute(target)
    if not known:
        raise Refusal(400)
    return method, target, pieces[2]


def _is_absolute(target: str) -> bool:
    """Whether this is an address that the application, too, can take apart."""
    try:
        return bool(_ABSOLUTE.fullmatch(target)) and urlsplit(target) is not None
    except ValueError:
        return False


def _size(headers: dict[str, str]) -> int:
    """The size of the header fields as the application counts them in its environ."""
    return sum(
        len("HTTP_") + len(name) + len(value)
        for name, value in headers.items()
        if name not in ("content-type", "content-length")
    )
