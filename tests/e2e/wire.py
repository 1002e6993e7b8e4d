"""A client that sends exactly the bytes it is given, and shows exactly what came back.

``http.client`` and ``requests`` clean paths, fold headers and keep connections; none of that is
wanted where the question is what reaches the other side.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any

Headers = Iterable[tuple[str, str]]


@dataclass(frozen=True)
class Answer:
    """One HTTP answer. ``headers`` keeps order, letter case and repeated lines."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def header(self, name: str) -> str:
        """The value of a header that must be there at most once; empty when it is not."""
        values = self.values(name)
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0] if values else ""

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        return json.loads(self.body)


def exchange(
    port: int,
    request: bytes,
    *,
    seconds: float = 20,
    half_close: bool = False,
    tls: tuple[ssl.SSLContext, str] | None = None,
) -> Answer:
    """Sends the bytes to 127.0.0.1 and reads one answer to its end.

    Status 0 stands for a connection that was closed without any answer. ``half_close`` says
    that nothing more will be sent. ``tls``: inside of that, to a server of this name.
    """
    with ExitStack() as ending:
        connection = ending.enter_context(socket.create_connection(("127.0.0.1", port), timeout=seconds))
        if tls is not None:
            connection = ending.enter_context(tls[0].wrap_socket(connection, server_hostname=tls[1]))
        try:
            connection.sendall(request)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused while we were still sending: its answer may be waiting all the same
        answer = HTTPResponse(connection, method=request.split(b" ", 1)[0].decode("latin-1"))
        try:
            answer.begin()
            return Answer(answer.status, tuple(answer.getheaders()), answer.read())
        except ConnectionError:  # http.client's RemoteDisconnected is one, too
            return Answer(0, (), b"")


def build(
    method: str, target: str, host: str, headers: Headers = (), body: bytes = b"", *, chunk: int = 0
) -> bytes:
    """The bytes of a request; ``target`` and header lines are taken as they are (latin-1). ``chunk``:
    the body comes in pieces of that size, and nobody is told how many (RFC 9112 §7.1)."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body and chunk:
        lines.append("Transfer-Encoding: chunked")
        parts = (body[start : start + chunk] for start in range(0, len(body), chunk))
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    elif body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def request(
    port: int,
    method: str,
    target: str,
    *,
    host: str = "127.0.0.1",
    headers: Headers = (),
    body: bytes = b"",
    chunk: int = 0,
    seconds: float = 20,
) -> Answer:
    """One request on a connection of its own."""
    return exchange(port, build(method, target, host, headers, body, chunk=chunk), seconds=seconds)
