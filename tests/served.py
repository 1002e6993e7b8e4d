"""The service as it is really served: gunicorn with our configuration, on free ports, in its own process.

`Served` starts and ends one, `exchange` sends bytes and gives back what came. Used wherever the
server itself is under test; what is asked in-process needs none of this.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.ports import free_port
from tests.waiting import until

ROOT = Path(__file__).parent.parent
LIMIT = 30.0


class Served:
    """One gunicorn with its ports, and everything that it wrote. ``options`` are gunicorn's own and
    come before its configuration file's."""

    def __init__(
        self, environ: Mapping[str, str], log: Path, *, app: str = "wsgi:app", options: Sequence[str] = ()
    ) -> None:
        self.judge, self.site, self.probe = free_port(), free_port(), free_port()
        self.log = log
        ports = {"SERVER_PORT": str(self.judge), "WEB_SERVER_PORT": str(self.site),
                 "READINESS_PROBE_PORT": str(self.probe), "SERVER_HOSTNAME": "127.0.0.1"}
        command = [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", *options, app]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **ports, **environ}, stdout=output, stderr=subprocess.STDOUT
            )

    def ready(self) -> bool:
        """Whether it answers; AssertionError with its log when it ended instead."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            answers = exchange(self.site, request("/healthz", close=True), limit=2)
        except (ConnectionError, TimeoutError):
            return False
        return bool(answers)

    def workers(self) -> set[int]:
        """The pids of its workers now."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return {int(pid) for pid in children.read_text().split()}

    def stop(self) -> int:
        """SIGTERM; gives its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            for pid in (*self.workers(), self.process.pid):
                os.kill(pid, 9)
            raise


@contextmanager
def serving(
    environ: Mapping[str, str], folder: Path, *, app: str = "wsgi:app", options: Sequence[str] = ()
) -> Iterator[Served]:
    """One that answers, and is ended afterwards."""
    served = Served(environ, folder / "gunicorn.log", app=app, options=options)
    try:
        until(served.ready, LIMIT)
        yield served
    finally:
        served.stop()


def request(target: str = "/", *fields: str, method: str = "GET", close: bool = False) -> bytes:
    """A request without body."""
    lines = [f"{method} {target} HTTP/1.1", "Host: app.example", *fields, *(["Connection: close"] if close else [])]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1")


@dataclass(frozen=True, slots=True)
class Got:
    """One answer as it came over the wire, names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def read_answers(data: bytes, bodiless: Callable[[Got], bool] = lambda got: False) -> list[Got]:
    """The whole answers in ``data``, without interim ones. AssertionError for what is no answer, for a
    header that stands there twice, and for one that says nothing of its length.

    ``bodiless`` says of an answer whether it belongs to a HEAD."""
    answers: list[Got] = []
    while data:
        head, blank, rest = data.partition(b"\r\n\r\n")
        assert blank, f"half an answer: {data[:200]!r}"
        first, *lines = head.decode("latin-1").split("\r\n")
        assert first.startswith("HTTP/1.1 "), f"not an answer: {data[:200]!r}"
        pairs = [line.split(":", 1) for line in lines]
        headers = {name.lower(): value.strip() for name, value in pairs}
        assert len(headers) == len(pairs), f"a header twice: {head!r}"
        got = Got(int(first.split()[1]), headers, b"")
        if got.status < 200:
            data = rest
            continue
        length = 0
        if got.status not in (204, 304) and not bodiless(got):
            length = int(headers["content-length"])
        assert len(rest) >= length, f"half a body: {data[:200]!r}"
        answers.append(Got(got.status, headers, rest[:length]))
        data = rest[length:]
    return answers


def exchange(
    port: int, pieces: bytes | Iterable[bytes], *, end: bool = False, limit: float = LIMIT,
    bodiless: Callable[[Got], bool] = lambda got: False,
) -> list[Got]:
    """Sends pieces on a new connection, each in a segment of its own as far as the kernel goes along, and
    reads until the server closes. With ``end`` this side ends its sending. TimeoutError after ``limit`` seconds
    of silence."""
    with socket.create_connection(("127.0.0.1", port), timeout=limit) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for piece in [pieces] if isinstance(pieces, bytes) else pieces:
                connection.sendall(piece)
            if end:
                connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # Refused before all was said; why is still to be read.
        return read_answers(b"".join(received(connection)), bodiless)


def received(connection: socket.socket) -> Iterator[bytes]:
    """What comes until the other side closes, however it does so."""
    while True:
        try:
            data = connection.recv(65536)
        except ConnectionResetError:
            return
        if not data:
            return
        yield data
