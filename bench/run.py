"""Taking turns: the rows of a group one after the other, round after round, in another order each time.

Gives one `Figures` for each row and round. A measurement during which others kept the cores busy, or
that was not made on calm cores, is repeated, whatever its figure was; what is known of the cores is
kept with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.load import Figures, Request, measure
from bench.machine import CALM, DISTURBED, Cores, slowness
from bench.programs import BenchError, Missing
from bench.rows import Group, Row
from bench.stage import Stage

TRIES = 3
"""How often a measurement is made at most."""

LONGEST_WAIT = 5.0
"""Seconds for a calm moment at once; other moments may be worth more."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long and how often; ``patience`` is how many seconds of each group may go into waiting for calm
    cores and into trying again what was measured on others."""

    rounds: int
    seconds: float
    warm_up: float
    patience: float


class Patience:
    """Waits, ``seconds`` in all until `renew`, for moments in which both cores are about as fast as they were in
    their best one."""

    def __init__(self, cores: Cores, seconds: float) -> None:
        self._cores = cores
        self._seconds = self._left = seconds
        self._best = self.look()

    def renew(self) -> None:
        """There is as much of it as at the beginning. The best moment is remembered."""
        self._left = self._seconds

    def look(self) -> float:
        """How slow the slower core is: a slow one for the load generator would flatter what is slower than it."""
        return max(slowness(core) for core in {self._cores.server, self._cores.load})

    def lasts(self) -> bool:
        return self._left > 0

    def is_calm(self, slow: float) -> bool:
        self._best = min(self._best, slow)
        return slow <= CALM * self._best

    def wait(self) -> float:
        """How slow the slower core is when the wait is over."""
        began = time.monotonic()
        while True:
            slow = self.look()
            if self.is_calm(slow) or time.monotonic() - began >= min(self._left, LONGEST_WAIT):
                self.use(began)
                return slow
            time.sleep(0.1)  # somebody else's work; no condition of ours says when it is over

    def use(self, began: float) -> None:
        """What went by since then is used up."""
        self._left = max(0.0, self._left - (time.monotonic() - began))


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
    patience.renew()
    for number in range(pace.rounds):
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
                f"  p50 {figures.p50 * 1e3:7.2f} ms  p99 {figures.p99 * 1e3:7.2f} ms"
                f"  pace {figures.slowness * 1e3:.1f} ms{others}"
            )
    return taken


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
    """A measurement on calm cores that nobody else used; or, of up to `TRIES`, the one that comes nearest to that,
    whatever its figure."""
    tries: list[Figures] = []
    while True:
        before, began = patience.wait(), time.monotonic()
        one = measure(request, pace.seconds, stage.cores)
        one = replace(one, slowness=max(before, patience.look()))
        tries.append(one)
        good = one.disturbed <= DISTURBED and patience.is_calm(one.slowness)
        if good or len(tries) == TRIES or not patience.lasts():
            return min(tries, key=lambda each: (max(each.disturbed, DISTURBED), each.slowness))
        if one.disturbed > DISTURBED:
            time.sleep(0.2 * len(tries))  # somebody else's burst; no condition of ours says when it is over
        patience.use(began)


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
