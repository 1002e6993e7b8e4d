"""The machine under the benchmark: which cores are used, how busy they are, and what it is.

Owns what is read from /proc and /sys and the pinning of processes; knows nothing of what is measured.
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CALM = 1.2
"""How many times as long as at best a fixed piece of work may take on a core that counts as calm."""

DISTURBED = 0.15
"""Which part of a core others may use (of two) before a measurement counts as disturbed."""

_TICKS = os.sysconf("SC_CLK_TCK")
_PIECES = 60
_WORD = re.compile(r"\w+")
_LINES = "\r\n".join(f"X-Field-{number}: {'some words of a value, ' * (1 + number % 5)}" for number in range(20))


@dataclass(frozen=True, slots=True)
class Cores:
    """One core for what is measured, another one for the load generator and this process."""

    server: int
    load: int

    @property
    def shared(self) -> bool:
        """There is only one; figures then say little."""
        return self.server == self.load


def choose_cores() -> Cores:
    """Two cores that are no threads of one, where there are two."""
    ours = sorted(os.sched_getaffinity(0))
    server = ours[0]
    apart = [core for core in ours if _siblings(core) != _siblings(server)]
    return Cores(server, apart[0] if apart else ours[-1])


def _siblings(core: int) -> str:
    file = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    return file.read_text().strip() if file.is_file() else str(core)


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What this thread starts meanwhile runs on that core alone, and so do its children."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def tree(pid: int) -> list[int]:
    """A process and everything below it; empty when it is gone."""
    found = [pid]
    for parent in found:
        try:
            tasks = list(Path(f"/proc/{parent}/task").iterdir())
        except OSError:
            continue
        for task in tasks:
            try:
                found += map(int, (task / "children").read_text().split())
            except OSError:
                continue  # ended meanwhile
    return found


def cpu_seconds(pids: list[int]) -> float:
    """Processor time that these processes have used so far."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS


def busy_seconds(core: int) -> float:
    """Processor time that anybody has used on this core so far, and what the host kept from it.
    Interrupts are left out: those of our own packets are on nobody's account."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _wait, _irq, _softirq, steal = map(int, fields[:8])
            return (user + nice + system + steal) / _TICKS
    return 0.0


def slowness(core: int) -> float:
    """The processor time, in seconds, that a fixed piece of work takes on this core just now. It grows when the
    host lends parts of the core to others (its caches, its second thread), which no account here shows."""
    with on_core(core):
        began = time.thread_time()
        for _ in range(_PIECES):
            fields = dict(line.split(": ", 1) for line in _LINES.split("\r\n"))
            json.loads(json.dumps({name.lower(): _WORD.findall(value) for name, value in fields.items()}))
        return time.thread_time() - began


def resident_bytes(pid: int) -> int:
    """The memory of a process that is in use now (VmRSS)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def shape() -> str:
    """One line about the machine, for whoever compares figures."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{len(os.sched_getaffinity(0))} cores ({model}), {memory:.0f} GB, {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}"
    )
