"""What a worker keeps in memory: with many live sessions, and after very many checks.

Reads the worker's resident memory while people with all their tokens ask in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.load import until_count
from bench.machine import resident_bytes
from bench.rows import PEOPLE_SERVICE, people_in_turn
from bench.stage import IN_TURN, Stage

MANY_CHECKS = 5_000_000
_SETTLED = MANY_CHECKS // 10
_MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class Memory:
    """Megabytes of one worker. ``growth`` is between the first tenth and the end of ``checks``,
    and ``None`` when that was not measured."""

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
    if not many:
        return Memory(live, IN_TURN)
    seen: list[tuple[int, float]] = []

    def note(count: int) -> None:
        seen.append((count, resident_bytes(worker) / _MEGABYTE))
        say(f"  {seen[-1][1]:.1f} MB after {count:,} checks")

    until_count(request, MANY_CHECKS, stage.cores, note)
    settled = next(size for count, size in seen if count >= _SETTLED)
    return Memory(live, IN_TURN, seen[-1][0], seen[-1][1] - settled)
