"""From figures to what is said of them: medians, spreads, ratios, and whether what is wanted holds.

Ratios are taken within a round, where both sides met the same machine, and their median is said with
the smallest and the largest. Of all rounds the calm ones count. Knows the rows by name; measures nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench import bearer, listing, sweeping
from bench.listing import Listing
from bench.load import Figures
from bench.machine import CALM, DISTURBED
from bench.memory import MANY_CHECKS, SETTLED, Memory
from bench.policies import MANY, MANY_HOSTS
from bench.rows import Group, Pair, Row
from bench.stage import IN_TURN, STRANGERS
from bench.sweeping import Sweeping

MARKS = ("<!-- bench:begin -->", "<!-- bench:end -->")


@dataclass(frozen=True, slots=True)
class Spread:
    """A median between the smallest and the largest of its values, and how many rounds they are of, if of any."""

    middle: float
    low: float
    high: float
    rounds: int = field(default=0, compare=False)

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values), len(values))

    def __str__(self) -> str:
        places = 2 if self.middle < 9.95 else 1
        return f"{self.middle:.{places}f} ({self.low:.{places}f}–{self.high:.{places}f})"


@dataclass(frozen=True, slots=True)
class Compared:
    """The rounds of a `rows.Pair`: each time plain, and with the check."""

    rounds: Sequence[tuple[Figures, Figures]]

    def times(self, figure: Callable[[Figures], float]) -> list[float]:
        """How many times as much it is with the check, in each round."""
        return [figure(checked) / figure(plain) for plain, checked in self.rounds]

    def added(self, figure: Callable[[Figures], float]) -> list[float]:
        """How much more it is with the check, in each round."""
        return [figure(checked) - figure(plain) for plain, checked in self.rounds]

    def both(self, figure: Callable[[Figures], float], places: int) -> str:
        """The medians of both sides."""
        sides = (statistics.median(map(figure, side)) for side in zip(*self.rounds))
        return " → ".join(f"{middle:,.{places}f}" for middle in sides)


def _unrest(one: Figures) -> float:
    """How slow the cores were; beyond all bounds when others used them."""
    return one.slowness if one.disturbed <= DISTURBED else math.inf


@dataclass(slots=True)
class Results:
    """Everything that one run measured."""

    machine: str
    groups: Sequence[Group]
    rows: Mapping[str, Row]
    figures: dict[str, dict[str, list[Figures]]] = field(default_factory=dict)
    bearer: dict[str, list[float]] = field(default_factory=dict)
    memory: Memory | None = None
    sweeping: Sweeping | None = None
    listing: Listing | None = None

    def calm(self, group: str, *rows: str) -> list[int]:
        """The rounds that count for these rows of a group: those in which the cores were about as fast as in the
        group's best moment, and nobody else used them, while these rows had their turn; and the calmest quarter at
        least. What came of them plays no part. When the host lends a core to others, an interpreter loses much and
        the kernel next to nothing."""
        here = self.figures.get(group, {})
        unrest = [max(map(_unrest, figures)) for figures in zip(*(here.get(row, ()) for row in rows))]
        if not unrest:
            return []
        best = min(one.slowness for taken in here.values() for one in taken)
        bound = max(CALM * best, sorted(unrest)[(len(unrest) - 1) // 4])
        return [number for number, slow in enumerate(unrest) if slow <= bound]

    def together(self, group: str, row: str, other: str) -> list[tuple[Figures, Figures]]:
        """What was measured of two rows in the rounds that count for both."""
        here = self.figures.get(group, {})
        return [(here[row][number], here[other][number]) for number in self.calm(group, row, other)]

    def counted(self, group: str, row: str) -> list[Figures]:
        """What was measured of a row in the rounds that count for it, or for its `rows.Pair`."""
        here = self.figures.get(group, {})
        pairs = [(pair.plain, pair.checked) for one in self.groups if one.name == group for pair in one.pairs]
        rows = next((pair for pair in pairs if row in pair and set(pair) <= set(here)), (row,))
        return [here[row][number] for number in self.calm(group, *rows)]

    def ratio(self, group: str, row: str, base: str) -> Spread | None:
        """How much more of the row's requests are answered than of the base's."""
        pairs = self.together(group, row, base)
        return Spread.of([one.rate / other.rate for one, other in pairs]) if pairs else None

    def pair(self, group: str, pair: Pair) -> Compared | None:
        """What the check adds; None when one of the two was not measured."""
        rounds = self.together(group, pair.plain, pair.checked)
        return Compared(rounds) if rounds else None

    def tail(self, group: str, row: str) -> Spread | None:
        """p99 divided by p50."""
        tails = [one.p99 / one.p50 for one in self.counted(group, row) if one.p50]
        return Spread.of(tails) if tails else None

    def disturbed(self) -> float:
        """The median of what others took of the two cores."""
        shares = [one.disturbed for rows in self.figures.values() for taken in rows.values() for one in taken]
        return statistics.median(shares) if shares else 0.0


@dataclass(frozen=True, slots=True)
class Target:
    """Something that is wanted: at least (or at most) ``bound``."""

    text: str
    value: Callable[[Results], Spread | None]
    bound: float
    at_least: bool = True

    def holds(self, value: Spread) -> bool:
        return value.middle >= self.bound if self.at_least else value.middle <= self.bound


def _times(group: str, row: str, base: str) -> Callable[[Results], Spread | None]:
    return lambda results: results.ratio(group, row, base)


def _in_process(row: str, base: str) -> Callable[[Results], Spread | None]:
    def value(results: Results) -> Spread | None:
        pairs = list(zip(results.bearer.get(row, ()), results.bearer.get(base, ())))
        if not pairs:
            return None
        low, middle, high = statistics.quantiles([one / other for one, other in pairs], n=4)
        return Spread(middle, low, high, len(pairs))

    return value


def _live(results: Results) -> Spread | None:
    return _single(results.memory.live if results.memory else None)


def _growth(results: Results) -> Spread | None:
    return _single(results.memory.growth if results.memory else None)


def _single(value: float | None) -> Spread | None:
    return None if value is None else Spread(value, value, value)


def _added(kind: str) -> Callable[[Results], Spread | None]:
    def value(results: Results) -> Spread | None:
        rounds = results.sweeping.rounds[kind] if results.sweeping else ()
        return Spread.of([one.added * 1e3 for one in rounds]) if rounds else None

    return value


def _found(store: str) -> Callable[[Results], Spread | None]:
    """Among as many sessions as the target says; a quick run has fewer."""

    def value(results: Results) -> Spread | None:
        full = results.listing if results.listing and results.listing.sessions == STRANGERS else None
        took = full.seconds.get(store) if full else None
        return Spread.of(took) if took else None

    return value


TARGETS: tuple[Target, ...] = (
    Target("cookie check / bare responder", _times("beside", "cookie", "bare"), 0.5),
    Target("cookie check / Flask under gthread", _times("beside", "cookie", "flask"), 10),
    Target("cookie check / Apache with mod_auth_openidc", _times("beside", "cookie", "apache"), 5),
    Target("with 15 headers and 4 KB of cookies / bare responder", _times("kinds", "browser", "bare"), 0.35),
    Target("sessions in Redis / in SQLite", _times("stores", "redis", "cookie"), 0.95),
    Target("1,000,000 sessions in SQLite / one", _times("stores", "full", "cookie"), 0.9),
    Target("1,000,000 sessions in Redis / one in Redis", _times("stores", "full-redis", "redis"), 0.9),
    Target(f"{MANY:,} policies on {MANY_HOSTS} hosts / one, time of a check",
           _times("policies", "policy-one", "policy-many"), 1.3, False),
    Target("p99 / p50 of the cookie check, 16 connections", lambda results: results.tail("beside", "cookie"), 4, False),
    Target(f"MB of a worker with {IN_TURN:,} live sessions", _live, 150, False),
    Target(f"MB that {MANY_CHECKS:,} checks add to it, after the first {SETTLED:,}", _growth, 1, False),
    *(Target(f"ms that a sweep adds to the longest check {kind}", _added(kind), sweeping.MOST_SECONDS * 1e3, False)
      for kind in sweeping.KINDS),
    *(Target(f"s that «sessions list --user» takes among {STRANGERS:,} sessions in {store}", _found(store),
             listing.MOST_SECONDS, False)
      for store in (listing.SQLITE, listing.REDIS)),
    *(Target(f"{row} / {base}, time in the process", _in_process(row, base), most, False)
      for row, base, most in bearer.WANTED),
)  # fmt: skip


def verdicts(results: Results) -> list[tuple[Target, Spread, bool]]:
    """The targets of which something was measured, and whether each is met."""
    found = ((target, target.value(results)) for target in TARGETS)
    return [(target, value, target.holds(value)) for target, value in found if value is not None]


def _cells(results: Results, group: Group, name: str) -> list[str]:
    taken = results.counted(group.name, name)
    rate = Spread.of([one.rate for one in taken])
    ratios = {base: results.ratio(group.name, name, base) for base in group.bases_of(name)}
    own = group.own_base.get(name)
    return [
        results.rows[name].title,
        f"{rate.middle:,.0f}",
        f"±{(rate.high - rate.low) / 2 / rate.middle:.0%}",
        f"{len(taken)}/{len(results.figures[group.name][name])}",
        f"{statistics.median(one.p50 for one in taken) * 1e3:.2f}",
        f"{statistics.median(one.p99 for one in taken) * 1e3:.2f}",
        f"{statistics.median(one.cpu for one in taken) * 1e6:.1f}" if taken[0].cpu else "",
        *(str(ratios.get(own or base) or "") for base in group.bases),
    ]


def _head(results: Results, group: Group) -> list[str]:
    own = bool(set(group.own_base) & set(results.figures[group.name]))
    named = [f"× {base}" for base in group.bases]
    bases = ["× its base"] if own and named else named
    return ["", "requests/s", "spread", "calm", "p50 ms", "p99 ms", "CPU µs", *bases]


_COMPARED = ("", "calm", "requests/s", "× requests/s", "p50 ms", "× p50", "+ p50 ms", "p99 ms", "× p99", "+ p99 ms", "CPU µs")


def _compared_cells(results: Results, group: Group, pair: Pair, found: Compared) -> list[str]:
    calm = f"{len(found.rounds)}/{len(results.figures[group.name][pair.plain])}"
    cells = [pair.title, calm, found.both(lambda one: one.rate, 0), str(Spread.of(found.times(lambda one: one.rate)))]
    latencies: tuple[Callable[[Figures], float], ...] = (lambda one: one.p50 * 1e3, lambda one: one.p99 * 1e3)
    for figure in latencies:
        cells += [found.both(figure, 2), str(Spread.of(found.times(figure))), str(Spread.of(found.added(figure)))]
    return [*cells, found.both(lambda one: one.cpu * 1e6, 1)]


def tables(results: Results) -> list[tuple[str, list[list[str]]]]:
    """A title and lines of cells, the head first, for each group that was measured."""
    made = []
    for group in results.groups:
        measured = results.figures.get(group.name)
        if not measured:
            continue
        compared = [(pair, found) for pair in group.pairs if (found := results.pair(group.name, pair))]
        if compared:
            lines = [_compared_cells(results, group, pair, found) for pair, found in compared]
            made.append((f"{group.title}: without the check → with it", [list(_COMPARED), *lines]))
        told = {name for pair, _ in compared for name in (pair.plain, pair.checked)}
        lines = [_cells(results, group, name) for name in group.rows if name in measured and name not in told]
        if lines:
            made.append((group.title, [_head(results, group), *lines]))
    if results.bearer:
        lines = [
            [name, f"{1 / statistics.median(times):,.0f}", f"{statistics.median(times) * 1e6:.1f}"]
            for name, times in results.bearer.items()
        ]
        made.append(("In the process, without sockets", [["", "per second", "CPU µs"], *lines]))
    if results.sweeping:
        head = ["a check …", "p99 ms", "p99 ms, swept", "longest ms", "longest ms, swept"]
        lines = [_swept(kind, rounds) for kind, rounds in results.sweeping.rounds.items()]
        made.append((f"While {results.sweeping.sessions:,} expired sessions are swept (SQLite)", [head, *lines]))
    if results.listing and results.listing.seconds:
        head = ["«authservice sessions list --user»", "seconds"]
        lines = [[f"sessions in {store}", str(Spread.of(took))] for store, took in results.listing.seconds.items()]
        made.append((f"One person's sessions among {results.listing.sessions:,}", [head, *lines]))
    return made


def _swept(kind: str, rounds: Sequence[sweeping.Round]) -> list[str]:
    p99 = [one.quiet.p99 for one in rounds], [one.swept.p99 for one in rounds]
    longest = [one.quiet.longest for one in rounds], [one.swept.longest for one in rounds]
    return [f"… {kind}", *(str(Spread.of([second * 1e3 for second in values])) for values in (*p99, *longest))]


def text(results: Results) -> str:
    """For a terminal."""
    out = []
    for title, lines in tables(results):
        widths = [max(map(len, column)) for column in zip(*lines)]
        out += ["", title]
        for line in lines:
            first, *rest = zip(line, widths)
            cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
            out.append("  " + "  ".join(cells).rstrip())
    out += ["", f"Others used {results.disturbed():.0%} of a core meanwhile (median).", "", "Wanted"]
    for target, value, met in verdicts(results):
        bound = f"{target.bound:g} at {'least' if target.at_least else 'most'}"
        rounds = f" in {value.rounds} rounds" if value.rounds else ""
        out.append(f"  {'met    ' if met else 'NOT met'}  {target.text}: {value}{rounds}, wanted {bound}")
    return "\n".join(out)


def markdown(results: Results, date: str) -> str:
    """For docs/performance.md, between its markers."""
    out = [f"Measured {date} on {results.machine}; others used {results.disturbed():.0%} of a core meanwhile.", ""]
    for title, lines in tables(results):
        head, *rest = lines
        out += [f"**{title}**", "", _line(head), _line(["---", *(["---:"] * (len(head) - 1))]), *map(_line, rest), ""]
    head = ["", "measured", "rounds", "wanted", ""]
    out += ["**Wanted**", "", _line(head), _line(["---", "---:", "---:", "---:", "---"])]
    for target, value, met in verdicts(results):
        sign = "≥" if target.at_least else "≤"
        verdict = "met" if met else "**not met**"
        out.append(_line([target.text, str(value), f"{value.rounds or ''}", f"{sign} {target.bound:g}", verdict]))
    return "\n".join(out)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def written(document: str, table: str) -> str:
    """The document with this between its markers; ValueError when it has none."""
    begin, end = MARKS
    front, found, rest = document.partition(begin)
    _, closed, back = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the document lacks {begin} … {end}")
    return f"{front}{begin}\n\n{table}\n\n{end}{back}"


def as_json(results: Results, date: str) -> dict[str, Any]:
    """Every single figure, also of rounds that do not count, for whoever draws or compares. ``slowness`` is in
    seconds; ``calm`` are the rounds, from 0 on, that count."""
    return {
        "date": date,
        "machine": results.machine,
        "others": results.disturbed(),
        "groups": {
            group: {
                name: [
                    {"rate": one.rate, "p50": one.p50, "p99": one.p99, "cpu": one.cpu, "others": one.disturbed,
                     "slowness": one.slowness}
                    for one in taken
                ]
                for name, taken in rows.items()
            }
            for group, rows in results.figures.items()
        },
        "pairs": {
            group.name: [
                {"title": pair.title, "plain": pair.plain, "checked": pair.checked,
                 "calm": results.calm(group.name, pair.plain, pair.checked),
                 "rate": found.times(lambda one: one.rate),
                 "p50": found.times(lambda one: one.p50), "p50_added": found.added(lambda one: one.p50),
                 "p99": found.times(lambda one: one.p99), "p99_added": found.added(lambda one: one.p99)}
                for pair in group.pairs if (found := results.pair(group.name, pair))
            ]
            for group in results.groups if group.pairs
        },
        "process": results.bearer,
        "memory": None if results.memory is None else {
            "live": results.memory.live, "sessions": results.memory.sessions,
            "checks": results.memory.checks, "growth": results.memory.growth,
        },
        "sweeping": None if results.sweeping is None else {
            "sessions": results.sweeping.sessions,
            "rounds": {
                kind: [
                    {"p99": one.quiet.p99, "longest": one.quiet.longest,
                     "p99_swept": one.swept.p99, "longest_swept": one.swept.longest}
                    for one in rounds
                ]
                for kind, rounds in results.sweeping.rounds.items()
            },
        },
        "listing": None if results.listing is None else {
            "sessions": results.listing.sessions, "seconds": dict(results.listing.seconds),
        },
        "wanted": [
            {"text": target.text, "bound": target.bound, "at_least": target.at_least, "value": value.middle,
             "low": value.low, "high": value.high, "rounds": value.rounds, "met": met}
            for target, value, met in verdicts(results)
        ],
    }  # fmt: skip
