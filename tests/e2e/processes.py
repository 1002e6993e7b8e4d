"""Child processes of the end-to-end tests: a free port, a start that waits, a log file, an end.

Every program is started in the foreground and held by its pid; nothing is ever ended by name.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from tests.waiting import until

# Below the range from which the kernel takes the ports of outgoing connections (Linux: 32768).
_PORTS = range(20_000, 32_000)
_reserved: list[IO[str]] = []


def free_port() -> int:
    """A port that nobody listens on, and that no other test process will be given.

    The programs bind it themselves, some time after this returned, and may be stopped and started
    again on it. So it stays reserved, by a lock on a small file, until this process ends.
    """
    folder = Path(tempfile.gettempdir()) / f"authservice-test-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for port in random.sample(_PORTS, 200):
        lock = (folder / str(port)).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            lock.close()
            continue
        _reserved.append(lock)
        return port
    raise RuntimeError("no free port found")


def listens(port: int) -> bool:
    """Whether somebody accepts connections on 127.0.0.1 at this port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Program:
    """One program: its command, its log file, and, while it runs, its process."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        self.env = {"PATH": os.environ["PATH"], "HOME": str(log.parent), "LANG": "C.UTF-8", **(env or {})}
        self.cwd = cwd
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, ready: Callable[[], object] = lambda: True, seconds: float = 30) -> None:
        """Starts it and returns when ``ready`` holds; fails with the log's end when it dies first."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self.env,
                cwd=self.cwd,
                start_new_session=True,
            )

        def is_ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"{self.name} ended at once:\n{self.log_text()[-4000:]}"
            return bool(ready())

        try:
            until(is_ready, seconds)
        except AssertionError as late:
            self.stop()
            raise AssertionError(f"{self.name}: {late}\n{self.log_text()[-4000:]}") from None

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} was not started"
        return self.process.pid

    def stop(self) -> None:
        """SIGTERM, and SIGKILL to one that does not go in time. Harmless when it is gone already."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: no time to say good-bye."""
        self._end(signal.SIGKILL)

    def kill_with_children(self) -> None:
        """SIGKILL to it and to whatever it started: the fastest end there is."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.kill()

    def _end(self, sign: signal.Signals) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(sign)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(15)
        self.process = None

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def children(pid: int) -> list[int]:
    """The pids of a process's direct children (Linux)."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]
