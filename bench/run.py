"""Taking turns: the rows of a group one after the other, round after round, in another order each time.

Gives one `Figures` for each row and round. A measurement during which others kept the cores busy is
repeated, whatever its figure was; which part they had is kept with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.load import Figures, Request, measure
from bench.machine import slowness
from bench.programs import BenchError, Missing
from bench.rows import Group, Row
from bench.stage import Stage

DISTURBED = 0.15
"""Which part of a core others may use (of two) before a measurement counts as disturbed."""

SLOWER = 1.2
"""How many times as long as at best a fixed piece of work may take on a core that counts as calm."""

TRIES = 3
"""How often a disturbed measurement is made at most."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long and how often; ``patience`` is how many seconds of the whole run may go into trying
    disturbed measurements again, and ``calm`` how many of each group into waiting for a calm core."""

    rounds: int
    seconds: float
    warm_up: float
    patience: float
    calm: float


class Patience:
    """What is left of it."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds

    def lasts(self) -> bool:
        return self._left > 0

    def wait(self, began: float, seconds: float) -> None:
        """Pauses for so long; the time since ``began`` is used up with it."""
        time.sleep(seconds)  # somebody else's burst; no condition of ours says when it is over
        self._left -= time.monotonic() - began


def measure_group(
    group: Group, rows: Mapping[str, Row], stage: Stage, pace: Pace, patience: Patience, say: Callable[[str], None]
) -> dict[str, list[Figures]]:
    """The figures of each row that can be measured here; what is missing is said."""
    say(f"\n{group.title}")
    requests: dict[str, Request] = {}
    for name in group.rows:
        try:
            requests[name] = _ready(name, rows[name], stage, pace)
        except (Missing, BenchError) as error:
            say(f"  without «{rows[name].title}»: {error}")
    taken: dict[str, list[Figures]] = {name: [] for name in requests}
    slowest: list[float] = []
    calm = Calm(stage.cores.server, pace.calm)
    for number in range(pace.rounds):
        slow = [calm.wait()]
        for name in in_turn(list(requests), number):
            try:
                figures = _undisturbed(requests[name], stage, pace, patience)
            except BenchError as error:
                say(f"  without «{rows[name].title}»: {error}")
                del requests[name], taken[name]
                continue
            taken[name].append(figures)
            others = f"  others {figures.disturbed:.0%}" if figures.disturbed > DISTURBED else ""
            say(
                f"  {number + 1}/{pace.rounds}  {rows[name].title:48}{figures.rate:10,.0f}/s"
                f"  p50 {figures.p50 * 1e3:7.2f} ms  p99 {figures.p99 * 1e3:7.2f} ms{others}"
            )
            slow.append(slowness(stage.cores.server))
        slowest.append(max(slow))
    kept = quietest(slowest)
    say(f"  counted: {', '.join(str(number + 1) for number in kept)}")
    return {name: [figures[number] for number in kept] for name, figures in taken.items()}


class Calm:
    """Waits, ``seconds`` in all, for moments in which a core is about as fast as it was in its best one."""

    def __init__(self, core: int, seconds: float) -> None:
        self._core = core
        self._left = seconds
        self._best = slowness(core)

    def wait(self) -> float:
        """How slow the core is when the wait is over."""
        began = time.monotonic()
        while True:
            slow = slowness(self._core)
            self._best = min(self._best, slow)
            waited = time.monotonic() - began
            if slow <= SLOWER * self._best or waited >= self._left:
                self._left = max(0.0, self._left - waited)
                return slow
            time.sleep(0.1)  # somebody else's work; no condition of ours says when it is over


def quietest(slowest: Sequence[float]) -> list[int]:
    """The third of the rounds in which a fixed piece of work was never slow on the server's core, whatever their
    figures: when the host lends the core to others, an interpreter loses much and the kernel next to nothing."""
    order = sorted(range(len(slowest)), key=lambda number: slowest[number])
    return sorted(order[: -(-len(order) // 3)])


def in_turn(names: Sequence[str], number: int) -> list[str]:
    """The order of a round. Each row is the first one at times, and every second round goes backwards:
    what a row gains or loses by the one just before it, it loses or gains in the next round."""
    first = number // 2 % len(names) if names else 0
    order = [*names[first:], *names[:first]]
    return order[::-1] if number % 2 else order


def _ready(name: str, row: Row, stage: Stage, pace: Pace) -> Request:
    """The row's request, once answered as it should be and then for a while: what is slow only at
    first (imports, empty caches, an interpreter that learns) is no row's figure."""
    request = row.make(stage)
    request.verify()
    stage.once(("warm", name), lambda: measure(request, pace.warm_up, stage.cores))
    return request


def _undisturbed(request: Request, stage: Stage, pace: Pace, patience: Patience) -> Figures:
    """The least disturbed of up to `TRIES`; the first one, when nobody disturbs."""
    tries: list[Figures] = []
    while True:
        began = time.monotonic()
        tries.append(measure(request, pace.seconds, stage.cores))
        if tries[-1].disturbed <= DISTURBED or len(tries) == TRIES or not patience.lasts():
            return min(tries, key=lambda one: one.disturbed)
        patience.wait(began, 0.2 * len(tries))


def select(groups: Sequence[Group], wanted: Sequence[str], rows: Mapping[str, Row], *, heavy: bool) -> list[Group]:
    """The groups that hold wanted rows (all of them by default), with those rows and what they are
    divided by. A word is a row's name or a group's; ValueError for any other."""
    known = {name for group in groups for name in (group.name, *group.rows)}
    unknown = sorted(set(wanted) - known)
    if unknown:
        raise ValueError(f"there is no row or group {', '.join(unknown)}; --list says what there is")
    kept: list[Group] = []
    taken: set[str] = set()
    for group in groups:
        named = [
            name
            for name in group.rows
            if (group.name in wanted or (name in wanted and name not in taken) if wanted else True)
            and (heavy or not rows[name].heavy or name in wanted)
        ]
        if not named:
            continue
        taken |= set(named)
        needed = {base for name in named for base in group.bases_of(name)} | set(named)
        kept.append(group.only(needed))
    return kept
