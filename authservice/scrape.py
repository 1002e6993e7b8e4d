"""The numbers of all workers of one server as one text that Prometheus reads.

Each process writes its `ops.Counts` about once a second, and when it ends, into a small file of its
own in a private folder that the server's workers share; whoever is asked adds them up. What ended
workers had counted stays, folded into one file. Without a folder a process tells its own numbers.
Nothing here is on the path of a check.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from authservice.ops import Counts, Metric, Numbers

log = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
INTERVAL = 1.0
"""Seconds between two writings of the same process's numbers."""

SHARED_FOLDER = "AUTHSERVICE_SHARED_FOLDER"
"""The variable by which workers learn of the folder that they share."""

_LIVE = "live-"
_ENDED = "ended.json"
_LOCK = "lock"
_MEMORY = Path("/dev/shm")


class Ledger:
    """The numbers of this process, and of its fellows once it has joined them in a folder."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._folder: Path | None = None
        self._publisher: _Publisher | None = None
        self._pid = os.getpid()

    def join(self, folder: Path) -> None:
        """Shares this process's numbers with the others in ``folder`` from now on."""
        self._folder = folder
        self.start()

    def start(self) -> None:
        """Begins publishing where there is a folder, and again in a process forked from this one,
        whose numbers begin at nothing."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._publisher = None
            self._counts.forget()
        if self._folder is not None and self._publisher is None:
            self._publisher = _Publisher(self._counts, self._folder)
            self._publisher.start()

    def stop(self) -> None:
        """Publishes for the last time. Doing so again is no error."""
        publisher, self._publisher = self._publisher, None
        if publisher is not None and self._pid == os.getpid():
            publisher.stop()

    def text(self) -> str:
        """Everybody's numbers in Prometheus's text format, version 0.0.4."""
        total: Counter[str] = Counter(self._counts.counters())
        total.update(self._counts.gauges())
        if self._folder is not None:
            own = self._publisher.path if self._publisher else None
            for numbers in _published(self._folder, own):
                total.update(numbers)
        return exposition(total)


def exposition(numbers: Numbers) -> str:
    """Numbers in Prometheus's text format: all of `Metric`, in its order."""
    lines = []
    for metric in Metric:
        lines += [f"# HELP {metric.full_name} {metric.help}.", f"# TYPE {metric.full_name} {metric.kind}"]
        lines += [f"{name} {numbers.get(name, 0)}" for name in metric.series()]
    return "\n".join(lines) + "\n"


def new_folder(user: int = -1, group: int = -1) -> Path | None:
    """A private folder for one server's workers, which run as ``user`` and ``group`` (-1: as this
    process), in memory where that is possible; ``None`` when there is no place for it. Who makes it
    removes it."""
    where = str(_MEMORY) if os.access(_MEMORY, os.W_OK | os.X_OK) else None
    try:
        folder = tempfile.mkdtemp(prefix="authservice-", dir=where)
        os.chown(folder, user, group)
    except OSError:
        return None
    return Path(folder)


def fold(folder: Path, pid: int) -> None:
    """Adds what a process that has ended counted to what the ended ones had. What it held, it
    holds no more. For the one process that waits for its workers' ends, and that must go on
    whatever became of the folder: raises nothing."""
    try:
        with _locked(folder, fcntl.LOCK_EX):
            total = Counter(_read(folder / _ENDED))
            left = list(folder.glob(f"{_LIVE}{pid}-*"))
            for path in left:
                total.update(_read(path, counters_only=True))
            if left:
                _write(folder / _ENDED, {"counters": total})
            for path in left:
                path.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        log.warning("numbers of an ended worker are lost: %s", type(error).__name__)


class _Publisher:
    """Writes one process's numbers into its file, from a thread of its own."""

    def __init__(self, counts: Counts, folder: Path) -> None:
        self.path = folder / f"{_LIVE}{os.getpid()}-{secrets.token_hex(4)}"
        self._counts = counts
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._ended.wait(INTERVAL):
                self._publish()
            self._publish()
        except OSError as error:
            # The folder went away with the server that made it, or is full. Checks go on.
            log.warning("numbers are not shared any more: %s", type(error).__name__)

    def _publish(self) -> None:
        _write(self.path, {"counters": self._counts.counters(), "gauges": self._counts.gauges()})


def _published(folder: Path, own: Path | None) -> Iterator[Numbers]:
    """What each other process has written, and what the ended ones had. A file goes away only
    together with its numbers' move, so under the lock none is missed and none is met twice."""
    try:
        with _locked(folder, fcntl.LOCK_SH):
            yield _read(folder / _ENDED)
            for path in folder.glob(f"{_LIVE}*"):
                if path != own:
                    yield _read(path)
    except OSError as error:
        log.warning("numbers of other workers cannot be read: %s", type(error).__name__)


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    with open(folder / _LOCK, "ab") as lock:
        fcntl.flock(lock, how)
        yield


def _read(path: Path, *, counters_only: bool = False) -> Numbers:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    return content["counters"] if counters_only else {**content["counters"], **content.get("gauges", {})}


def _write(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all, for whoever reads at the same time."""
    fresh = path.with_name(f"new-{path.name}")
    fresh.write_text(json.dumps(content))
    fresh.replace(path)
