"""Real Redis and Valkey servers for tests: on a free port of 127.0.0.1, ended by their own pid.

Used by the store tests and by the end-to-end tests.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.programs import require
from tests.waiting import until


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now. Somebody may by the time it is used."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def any_redis() -> str:
    """The program of whichever Redis-like server is here; skips, or fails, as `require` does."""
    return require("redis-server" if shutil.which("redis-server") else "valkey-server")


class RedisServer:
    """One server. ``durable`` writes every change to the disk, so that a killed and restarted
    server knows what it knew; without it a restart begins empty."""

    def __init__(
        self, program: str, folder: Path, *, durable: bool = False, options: Sequence[str] = ()
    ) -> None:
        self._program = program
        self._folder = folder
        self._options = [*(("--appendonly", "yes", "--appendfsync", "always") if durable else ()), *options]
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it, on the same port as before if it ran before, and waits until it answers."""
        for _ in range(5):
            port = self.port or free_port()
            self._process = self._spawn(port)
            process = self._process
            until(lambda: process.poll() is not None or _answers(port))
            if process.poll() is None:
                self.port = port
                return
        raise AssertionError(f"{self._program} does not start: {self._log().read_text()[-2000:]}")

    def kill(self) -> None:
        """SIGKILL: no good-bye to clients, nothing written that is not written yet."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM; harmless when it does not run."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """The server stops answering without closing anything, until `resume`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        command = [self._program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--dir", str(self._folder), *self._options]
        with self._log().open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env={"PATH": os.environ.get("PATH", "")})

    def _log(self) -> Path:
        return self._folder / "server.log"

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            self._process.send_signal(signal.SIGCONT)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _answers(port: int) -> bool:
    """Whether it takes questions: a server with data to load listens before it has them."""
    with socket.socket() as client:
        client.settimeout(1)
        try:
            client.connect(("127.0.0.1", port))
            client.sendall(b"PING\r\n")
            reply = client.recv(64)
        except OSError:
            return False
    return bool(reply) and not reply.startswith(b"-LOADING")


@contextmanager
def running_redis(
    program: str, folder: Path, *, durable: bool = False, options: Sequence[str] = ()
) -> Iterator[RedisServer]:
    """A started server, which is stopped in the end whatever happened to it meanwhile."""
    server = RedisServer(program, folder, durable=durable, options=options)
    server.start()
    try:
        yield server
    finally:
        server.stop()
