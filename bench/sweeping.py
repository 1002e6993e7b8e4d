"""What sweeping adds to checks: of sessions in memory, of those read from the store, and of those marked as seen.

Rounds without and with another process that removes expired sessions from the same SQLite file take
turns, and a difference is taken within a round, where both sides met the same machine. Checks are asked
as a worker asks: of memory first, of the store where memory does not do. As a program
(``python -m bench.sweeping FILE``) it is that other process.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from authservice.check import NeedsIO, Reach
from authservice.ops import Counts, Metric
from authservice.sessions.live import Sessions
from authservice.sessions.sqlite import SqliteStore
from bench.machine import Cores, on_core
from bench.programs import ROOT, BenchError
from bench.service import new_session
from bench.strangers import ISSUER, fill_file, now

MEMORY, READING, MARKING = "answered from memory", "that reads the store", "that marks its session as seen"
KINDS = (MEMORY, READING, MARKING)

MOST_SECONDS = 0.005
"""What a sweep may add to any check."""

_PAUSE = 0.0005
_MARKED = 200
_IDLE = timedelta(seconds=20)
_STEP = _IDLE / 10


@dataclass(frozen=True, slots=True)
class Tail:
    """Seconds that checks of one kind took in one half of a round."""

    p99: float
    longest: float

    @classmethod
    def of(cls, took: Sequence[float]) -> Tail:
        ordered = sorted(took)
        return cls(ordered[int(len(ordered) * 0.99)], ordered[-1])


@dataclass(frozen=True, slots=True)
class Round:
    """The two halves of a round."""

    quiet: Tail
    swept: Tail

    @property
    def added(self) -> float:
        """Seconds by which the longest check is longer with a sweep."""
        return self.swept.longest - self.quiet.longest


@dataclass(frozen=True, slots=True)
class Sweeping:
    """What one run found: the rounds of each kind, among so many sessions, all but a few expired."""

    sessions: int
    rounds: Mapping[str, Sequence[Round]]


def measure(
    folder: Path, count: int, rounds: int, seconds: float, say: Callable[[str], None], cores: Cores | None = None
) -> Sweeping:
    """``seconds`` for each half of a round. With ``cores``, the checks run on the one for the load and
    the process that sweeps on the other one. Raises `programs.BenchError`."""
    file = folder / "sessions.db"
    began = time.monotonic()
    fill_file(file, count, expired=count)
    say(f"  a file of {count:,} expired sessions: {time.monotonic() - began:.0f} s")
    found: dict[str, list[Round]] = {kind: [] for kind in KINDS}
    with closing(SqliteStore(file, now)) as store, _checked(store) as checks, _sweeper(file, cores) as sweeper:
        checks.run(0.3)
        for number in range(rounds):
            quiet = checks.run(seconds)
            with sweeper.sweeping(seconds) as swept:
                busy = checks.run(seconds)
            if not swept():
                raise BenchError("nothing was left to sweep")
            said = []
            for kind in KINDS:
                one = Round(Tail.of(quiet[kind]), Tail.of(busy[kind]))
                found[kind].append(one)
                said.append(f"{one.quiet.longest * 1e3:.2f} → {one.swept.longest * 1e3:.2f} ms")
            say(f"  {number + 1}/{rounds}  longest, without and with ({swept():,} swept): {', '.join(said)}")
        told = checks.told()
    say(f"  asked a second time, with leave to wait: {told[0]:,} of {told[1]:,} that marked")
    return Sweeping(count, found)


class _Checks:
    """Checks of each kind in turn. Those that mark are of `_MARKED` sessions in turn, by a clock that goes
    on meanwhile so that each is due when it is asked for."""

    def __init__(self, store: SqliteStore) -> None:
        self._ahead = timedelta(0)
        self._counts = Counts()
        day = timedelta(days=1)
        self._plain = Sessions(store, now=now, max_age=day)
        self._known = Sessions(store, now=now, max_age=day, cache_size=10)
        self._marked = Sessions(
            store, now=self._later, max_age=100 * day, idle_timeout=_IDLE, cache_size=_MARKED, counts=self._counts
        )
        self._secret = self._plain.begin(new_session(ISSUER))
        self._seen = itertools.cycle([self._marked.begin(new_session(ISSUER)) for _ in range(_MARKED)])
        self._again = self._asked = 0

    def _later(self) -> datetime:
        return now() + self._ahead

    def start(self) -> None:
        for sessions in (self._known, self._marked):
            sessions.start()
        for _ in range(_MARKED):
            self._marked.load(next(self._seen), Reach.NETWORK)

    def stop(self) -> None:
        for sessions in (self._known, self._marked):
            sessions.stop()

    def told(self) -> tuple[int, int]:
        lost = Metric.MARKS_LOST.full_name
        if self._counts.counters()[lost]:
            raise BenchError("a mark was lost")
        return self._again, self._asked

    def run(self, seconds: float) -> dict[str, list[float]]:
        took: dict[str, list[float]] = {kind: [] for kind in KINDS}
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            took[MEMORY].append(self._timed(self._known, self._secret))
            took[READING].append(self._timed(self._plain, self._secret))
            self._ahead += _STEP / (_MARKED - 1)
            took[MARKING].append(self._timed(self._marked, next(self._seen)))
        return took

    def _timed(self, sessions: Sessions, secret: str) -> float:
        began = time.monotonic()
        found = sessions.quick(secret)
        try:
            found = found or sessions.load(secret, Reach.MEMORY)
        except NeedsIO:
            self._again += sessions is self._marked
            found = sessions.load(secret, Reach.NETWORK)
        took = time.monotonic() - began
        self._asked += sessions is self._marked
        if found is None:
            raise BenchError("the session is gone")
        time.sleep(_PAUSE)  # a load of checks, not as many as can be
        return took


@contextmanager
def _checked(store: SqliteStore) -> Iterator[_Checks]:
    checks = _Checks(store)
    checks.start()
    try:
        yield checks
    finally:
        checks.stop()


@contextmanager
def _sweeper(file: Path, cores: Cores | None) -> Iterator[Sweeper]:
    command = [sys.executable, "-m", "bench.sweeping", str(file)]
    with on_core(cores.server) if cores else nullcontext():
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        yield Sweeper(process)


class Sweeper:
    """The other process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @contextmanager
    def sweeping(self, seconds: float) -> Iterator[Callable[[], int]]:
        """It begins to sweep for so long; afterwards it has said how many it removed."""
        assert self._process.stdout is not None and self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        self._process.stdout.readline()  # it has begun
        said: list[str] = []
        yield lambda: int(said[0])
        said.append(self._process.stdout.readline())


def main() -> None:
    """Sweeps for as many seconds as each line of its input says."""
    with closing(SqliteStore(Path(sys.argv[1]), now)) as store:
        for line in sys.stdin:
            end = time.monotonic() + float(line)
            print("sweeping", flush=True)
            swept = store.sweep()
            while time.monotonic() < end:
                swept += store.sweep()
            print(swept, flush=True)


if __name__ == "__main__":
    main()
