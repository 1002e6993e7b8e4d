"""Starting programs, waiting until each answers, and ending them all together."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import requests

START_SECONDS = 60
STOP_SECONDS = 8
TAIL_LINES = 25


class ChildFailed(Exception):
    """One of the programs ended, or never answered. The text holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Child:
    """A running program and the file that its output goes to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        return "\n".join(f"  | {line}" for line in lines) or "  | (it printed nothing)"


class Children:
    """The programs of the demo, in the order in which they were started."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._say = say
        self._all: list[Child] = []

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str], answers: str) -> None:
        """Starts a program and returns when ``answers``, an address, gives status 200.

        The program gets a session of its own, so that Ctrl-C reaches only the demo, which then
        ends everything in order. Raises `ChildFailed`.
        """
        began = time.monotonic()
        log = self._folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=dict(env),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        child = Child(name, process, log)
        self._all.append(child)
        while not _answers(answers):
            self.look()
            if time.monotonic() - began > START_SECONDS:
                raise ChildFailed(f"{name} does not answer at {answers}:\n{child.tail()}")
            time.sleep(0.05)
        self._say(f"  {name:<12} ready after {time.monotonic() - began:.1f} s")

    def look(self) -> None:
        """Raises `ChildFailed` when a program has ended."""
        for child in self._all:
            status = child.process.poll()
            if status is not None:
                raise ChildFailed(f"{child.name} ended with status {status}:\n{child.tail()}")

    def tails(self) -> str:
        return "\n".join(f"the end of {child.name}'s log:\n{child.tail()}" for child in self._all)

    def stop(self) -> None:
        """Ends the programs, the last one first; the stubborn are killed."""
        for child in reversed(self._all):
            if child.process.poll() is None:
                child.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for child in self._all:
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()


def _answers(address: str) -> bool:
    with requests.Session() as session:
        session.trust_env = False
        try:
            return session.get(address, timeout=2, allow_redirects=False).status_code == 200
        except requests.RequestException:
            return False
