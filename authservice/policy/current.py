"""The policies that count now: read at the start, and again whenever their files change.

`Policies` looks at the files about once a second, by their stamps first and by their content where those
do not tell. What changed is taken only when it is the same twice in a row, so that no file is read while
somebody writes it, and only as a whole: a set with any problem is refused, and the old one stays.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from authservice.logs import Event
from authservice.ops import Counts, Metric
from authservice.policy.compile import PolicySet
from authservice.policy.resources import PolicyErrors

log = logging.getLogger(__name__)

INTERVAL = 1.0
"""Seconds between two looks at the files."""
UNSETTLED = 2.0
"""Seconds for which a file's stamp says too little: a second change may come within the same tick."""
MOST_BYTES = 64 << 20
"""Of one file are compared. What may be read is `policy.read`'s to say, and less."""
MOST_TOLD = 20
"""Problems in one line of the log."""

Stamp = tuple[tuple[str, int, int, int, int], ...]


class Kept(Protocol):
    """A copy of the last good policies, shared by the processes of one server."""

    def save(self, files: Sequence[Path], unchanged: Callable[[], bool]) -> None:
        """Copies the files, unless they changed meanwhile. That there is no room is no fault."""
        ...

    def load(self) -> PolicySet | None:
        """What was saved last, if anything was."""
        ...


class Policies:
    """The set that counts, as ``current``, which others read at every check.

    ``load`` makes a set of what is there now, and raises `PolicyErrors`: here at once, and never again later.
    ``files`` names what it reads; an OSError or `PolicyErrors` of it counts as a change, too. ``kept`` has
    the last good set for whoever begins while faulty policies are there. Safe for threads, and for processes
    forked before `start`.
    """

    def __init__(
        self,
        load: Callable[[], PolicySet],
        files: Callable[[], Sequence[Path]],
        *,
        counts: Counts | None = None,
        kept: Kept | None = None,
    ) -> None:
        self._load = load
        self._files = files
        self._kept = kept
        self._counts = counts or Counts()
        self._stamp: Stamp | None = None
        self._judged = self._content()
        self._waiting: bytes | None = None
        self.problem = ""
        """Why the last change was refused; empty when it was not."""
        self.current = self._first()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._counts.gauge(Metric.POLICIES, lambda: self.current.policies)
        self._counts.gauge(Metric.POLICIES_REFUSED, lambda: int(bool(self.problem)))

    def _first(self) -> PolicySet:
        try:
            first = self._load()
        except PolicyErrors as errors:
            former = self._kept.load() if self._kept is not None else None
            if former is None:
                raise
            self._refuse(_sentences(errors))
            return former
        self._keep()
        return first

    def start(self) -> None:
        """Begins to look, and again in a process forked from this one."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._ended,), name="policies", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Looks no more. Doing so again is no error."""
        self._ended.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread.is_alive():
            thread.join()

    def _run(self, ended: threading.Event) -> None:
        while not ended.wait(INTERVAL):
            self.look()

    def look(self) -> None:
        """Takes, or refuses, what has changed and was the same at the last look."""
        stamp = self._stamps()
        if stamp == self._stamp and self._waiting is None and _settled(stamp):
            return
        self._stamp = stamp
        content = self._content()
        if content == self._judged:
            self._waiting = None
        elif content != self._waiting:
            self._waiting = content
        else:
            self._judge(content)

    def _judge(self, content: bytes) -> None:
        fresh: PolicySet | None = None
        problems: list[str] = []
        try:
            fresh = self._load()
        except PolicyErrors as errors:
            problems = _sentences(errors)
        except Exception as error:
            # A fault of ours, and no reason never to look again.
            problems = [f"these policies cannot be judged ({type(error).__name__})"]
        if self._content() != content:
            self._waiting = None
            return  # Changed while it was read: what was made of it may be half of each.
        self._judged, self._waiting = content, None
        if fresh is None:
            self._refuse(problems)
        else:
            self._take(fresh)

    def _take(self, fresh: PolicySet) -> None:
        self.current = fresh
        self.problem = ""
        self._keep()
        self._counts.add(Metric.POLICY_RELOADS, "taken")
        log.info(Event.POLICIES_TAKEN.value, extra={"policies": fresh.policies})

    def _keep(self) -> None:
        if self._kept is not None:
            self._kept.save(self._named(), lambda: self._content() == self._judged)

    def _refuse(self, problems: Sequence[str]) -> None:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        self.problem = f"refused, the old policies stay: {problems[0]}{more}"
        self._counts.add(Metric.POLICY_RELOADS, "refused")
        log.error(
            Event.POLICIES_REFUSED.value, extra={"problems": len(problems), "cause": "; ".join(problems[:MOST_TOLD])}
        )

    def _named(self) -> Sequence[Path]:
        try:
            return self._files()
        except (OSError, PolicyErrors):
            return ()

    def _stamps(self) -> Stamp:
        return tuple(map(_stamp, self._named()))

    def _content(self) -> bytes:
        """What all files hold, as a digest."""
        whole = hashlib.sha256()
        for file in self._named():
            whole.update(hashlib.sha256(str(file).encode("utf-8", "surrogateescape")).digest())
            try:
                if file.exists() and not file.is_file():  # a pipe would have to be waited for
                    whole.update(b"no file")
                    continue
                with file.open("rb") as opened:
                    whole.update(hashlib.sha256(opened.read(MOST_BYTES)).digest())
            except OSError as error:
                whole.update(f"unreadable {error.errno}".encode())
        return whole.digest()


def _sentences(errors: PolicyErrors) -> list[str]:
    return [f"{place}: {sentence}" for place, sentence in errors.problems]


def _stamp(file: Path) -> tuple[str, int, int, int, int]:
    """What changes with a file, wherever links to it lead, without reading it."""
    try:
        found = os.stat(file)
    except OSError as error:
        return str(file), -1, error.errno or 0, 0, 0
    return str(file), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _settled(stamp: Stamp) -> bool:
    newest = max((max(one[3], one[4]) for one in stamp), default=0)
    return abs(time.time() - newest / 1e9) > UNSETTLED
