"""The application behind the gateway, which sees who is calling.

A threaded server on raw sockets that keeps the head and body of every request exactly as they
came, so that doubled headers, their order and letter case can be seen; libraries hide all that.
"""

from __future__ import annotations

import html
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Seen:
    """One request as it reached the application."""

    head: bytes
    body: bytes

    @property
    def request_line(self) -> str:
        return self.head.split(b"\r\n", 1)[0].decode("latin-1")

    @property
    def method(self) -> str:
        return self.request_line.split(" ", 1)[0]

    @property
    def target(self) -> str:
        return self.request_line.split(" ")[1]

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Name (as sent) and value of each line, in order."""
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines if line)]

    def values(self, name: str) -> list[str]:
        """The values of all lines of one header, by its exact name in any letter case."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def like(self, name: str) -> list[tuple[str, str]]:
        """All lines that a lenient application (WSGI, CGI, PHP) would read as this header."""
        folded = name.lower().replace("-", "_")
        return [
            (key, value)
            for key, value in self.headers
            if key.strip().lower().replace("-", "_").replace(".", "_") == folded
        ]


def ok(body: str, *, content_type: str = "text/html; charset=utf-8", extra: str = "") -> bytes:
    """A 200 answer with a body, not to be stored."""
    data = body.encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nCache-Control: no-store\r\n{extra}"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def greeting(seen: Seen) -> bytes:
    """The default answer: a page that tells who called, and with what."""
    who = ", ".join(seen.values("kubeflow-userid")) or "nobody"
    return ok(
        f"<!doctype html><html lang=en><title>Application</title><p id=who>{html.escape(who)}</p>"
        f"<p id=target>{html.escape(seen.target)}</p></html>"
    )


class _Stream:
    """What comes on a connection, by lines and by numbers of bytes."""

    def __init__(self, connection: socket.socket, pending: bytes) -> None:
        self._connection = connection
        self.pending = bytearray(pending)

    def _more(self) -> None:
        part = self._connection.recv(1 << 20)
        if not part:
            raise ConnectionError("the body ends in the middle")
        self.pending += part

    def take(self, length: int) -> bytes:
        while len(self.pending) < length:
            self._more()
        taken = bytes(self.pending[:length])
        del self.pending[:length]
        return taken

    def line(self) -> bytes:
        while b"\r\n" not in self.pending:
            self._more()
        return self.take(self.pending.index(b"\r\n") + 2)[:-2]


def _body(head: Seen, stream: _Stream) -> bytes:
    if head.values("transfer-encoding") != ["chunked"]:
        return stream.take(int((head.values("content-length") or ["0"])[0]))
    pieces = []
    while length := int(stream.line().partition(b";")[0], 16):
        pieces.append(stream.take(length))
        assert stream.line() == b""
    while stream.line():
        pass  # fields after the last piece
    return b"".join(pieces)


class Recorder:
    """Listens on 127.0.0.1 from construction to `stop`. ``answer`` can be replaced at any time."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.answer: Callable[[Seen], bytes] = greeting
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept()
        self._listener.close()

    def clear(self) -> None:
        self.seen.clear()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        """Answers the requests of one connection, one after the other."""
        pending = b""
        with connection:
            try:
                while True:
                    while b"\r\n\r\n" not in pending:
                        part = connection.recv(65536)
                        if not part:
                            return
                        pending += part
                    head, pending = pending.split(b"\r\n\r\n", 1)
                    stream = _Stream(connection, pending)
                    try:
                        seen = Seen(head, _body(Seen(head, b""), stream))
                    except ConnectionError:
                        self.seen.append(Seen(head, b""))  # it reached us, although not to its end
                        raise
                    pending = bytes(stream.pending)
                    self.seen.append(seen)
                    answer = self.answer(seen)
                    if seen.method == "HEAD":
                        answer = answer.split(b"\r\n\r\n", 1)[0] + b"\r\n\r\n"
                    connection.sendall(answer)
                    if seen.values("connection") == ["close"]:
                        return
            except OSError:
                return
