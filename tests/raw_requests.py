r"""Reads the table of raw HTTP requests in ``tests/data/requests/*.http``.

A request begins with a line ``### name -> verdict``; the lines below it, put together without their line
breaks, are its bytes. What does not show is escaped: ``\r \n \t \0 \\ \xHH``, ``\{8190*a}`` for 8190 times
``a`` (escapes count there too), and ``\_`` for a blank at the end of a line. A line that begins with ``# ``
is a comment.

A verdict is what comes back, one word for each answer in order:

- ``ok``: it reached the application;
- a status such as ``400``, or several as in ``400|431``: the server itself refused it, and closed;
- ``close``, in the end: nothing that follows on the connection is looked at, though nothing was refused;
- ``silence``: it is not complete, and the end of the connection gets no answer.

After ``ok`` the connection goes on, and the next request on it is answered.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "data" / "requests"

_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|\{(\d+)\*((?:[^}\\]|\\.)*)\}|(.))")
_SINGLE = {"r": "\r", "n": "\n", "t": "\t", "0": "\0", "\\": "\\", "_": " "}


@dataclass(frozen=True, slots=True)
class RawRequest:
    """One row: ``verdict`` has the words after the arrow."""

    name: str
    data: bytes
    verdict: tuple[str, ...]

    @property
    def goes_on(self) -> bool:
        """Whether a request that follows on the same connection is answered."""
        return self.verdict[-1] == "ok"

    @property
    def accepted(self) -> int:
        """How many of its requests reach the application."""
        return self.verdict.count("ok")


def read_all() -> list[RawRequest]:
    """The whole table, in the order of the files' names. AssertionError for a name that stands there twice."""
    requests = [request for path in sorted(FOLDER.glob("*.http")) for request in _read(path)]
    names = [request.name for request in requests]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)
    return requests


def _read(path: Path) -> list[RawRequest]:
    found: list[tuple[str, str]] = []
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith("### "):
            found.append((line[4:], ""))
        elif found and not line.startswith("# "):
            head, text = found[-1]
            found[-1] = (head, text + line)
    return [_request(head, text) for head, text in found]


def _request(head: str, text: str) -> RawRequest:
    name, arrow, verdict = head.partition(" -> ")
    assert arrow and verdict, f"no verdict: {head}"
    return RawRequest(name.strip(), unescape(text).encode("latin-1"), tuple(verdict.split()))


def unescape(text: str) -> str:
    """The text with its escapes made into what they stand for."""

    def put(match: re.Match[str]) -> str:
        code, times, repeated, single = match.groups()
        if code:
            return chr(int(code, 16))
        return unescape(repeated) * int(times) if times else _SINGLE[single]

    return _ESCAPE.sub(put, text)
