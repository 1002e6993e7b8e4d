"""Child processes of the end-to-end tests: a start that waits, a log file, an end.

Every program is started in the foreground and held by its pid; nothing is ever ended by name.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests.waiting import until


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
