"""Programs that the benchmark starts: found, pinned, waited for, ended.

Each runs in a folder of its own with its output in a file there. Knows nothing of what they are.
"""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench import machine
from tests.programs import INSTALL, find
from tests.waiting import until

START_SECONDS = 60
STOP_SECONDS = 5
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV")
"""What programs need of the surrounding environment: somebody's settings must not change a figure."""

ROOT = Path(__file__).resolve().parent.parent


class Missing(Exception):
    """A program or module that a row needs is not installed. The text says how to get it."""


class BenchError(Exception):
    """Something does not do what is to be measured, so there is no figure."""


def found(name: str) -> str:
    """The path of a program; `Missing` with its install line."""
    path = find(name)
    if path is None:
        raise Missing(f"{name} is not installed: {INSTALL[name]}")
    return path


class Program:
    """A running program, on one core with its children."""

    def __init__(
        self, name: str, command: Sequence[str], folder: Path, core: int, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        surrounding = {key: os.environ[key] for key in PASSED_ON if key in os.environ}
        with machine.on_core(core), self._log.open("wb") as log:
            self._process = subprocess.Popen(
                list(command),
                cwd=folder,
                env=surrounding | {"PYTHONPATH": str(ROOT)} | dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, ready: Callable[[], bool]) -> None:
        """Returns when it is ready; ends it and raises `BenchError` when it never is."""
        try:
            until(lambda: self._process.poll() is not None or ready(), START_SECONDS)
            if self._process.poll() is None:
                return
            why = f"ended with status {self._process.returncode}"
        except AssertionError:
            why = "does not answer as it should"
        except BaseException:
            self.stop()
            raise
        self.stop()
        raise BenchError(f"{self.name} {why}:\n{self.tail()}")

    def tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])

    def pids(self) -> list[int]:
        return machine.tree(self._process.pid)

    def stop(self) -> None:
        """Asks it to end; whatever of it is still there after a while is killed."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def ask(port: int, target: str, headers: Sequence[tuple[str, str]] = ()) -> tuple[int, dict[str, str]]:
    """Status and headers (lower-case names) of one GET; status 0 when nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", target, headers=dict(headers))
        answer = connection.getresponse()
        answer.read()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}
    except OSError:
        return 0, {}
    finally:
        connection.close()
