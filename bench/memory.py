"""What a worker keeps in memory: with many live sessions, and after very many checks.

Reads the worker's resident memory while people with all their tokens ask in turn. Growth is from when
the worker has settled to the largest reading after that, so that a peak between two others counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.load import Request, until_count
from bench.machine import Cores, resident_bytes
from bench.rows import PEOPLE_SERVICE, people_in_turn
from bench.stage import IN_TURN, Stage

SETTLED = 100_000
"""Checks after which whatever is made once has been made."""

MANY_CHECKS = 5_000_000
"""Checks after those."""

_MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class Memory:
    """Megabytes of one worker. ``growth`` is what ``checks`` added; ``None`` when that was not measured."""

    live: float
    sessions: int
    checks: int = 0
    growth: float | None = None


def measure_memory(stage: Stage, say: Callable[[str], None], *, many: bool) -> Memory:
    """``many`` measures the growth over `MANY_CHECKS` too, which takes some minutes."""
    say("\nMemory of a worker")
    service = stage.service(PEOPLE_SERVICE)
    worker = service.worker()
    request = people_in_turn(stage)
    live = resident_bytes(worker) / _MEGABYTE
    say(f"  {live:.0f} MB with {IN_TURN:,} live sessions")
    checks, growth = grown(request, worker, stage.cores, say) if many else (0, None)
    return Memory(live, IN_TURN, checks, growth)


def grown(request: Request, worker: int, cores: Cores, say: Callable[[str], None]) -> tuple[int, float]:
    """How many checks were sent once it had settled, and the megabytes that they added."""
    until_count(request, SETTLED, cores, lambda count: None, piece=1)
    settled = resident_bytes(worker)
    most = settled
    say(f"  {settled / _MEGABYTE:.2f} MB after the first {SETTLED:,} checks")

    def note(count: int) -> None:
        nonlocal most
        reading = resident_bytes(worker)
        most = max(most, reading)
        say(f"  {reading / _MEGABYTE:.2f} MB after {count:,} more")

    checks = until_count(request, MANY_CHECKS, cores, note)
    return checks, (most - settled) / _MEGABYTE
