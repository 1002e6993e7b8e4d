"""The picture of a run: throughput and latency of the same rows beside each other, as one SVG file.

Bars say requests per second; a line goes from p50 to p99 on a logarithmic scale. Every mark has its
figure as text beside it, colours come in a light and a dark set, and no script or font is loaded.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from html import escape

from bench.load import FILLING
from bench.report import Results
from bench.rows import GATEWAYS

_GATEWAYS = tuple(pair for (_, connections), pair in GATEWAYS.items() if connections == FILLING)

PICTURED = (
    ("beside", ("bare", "nginx", "cookie", "gthread", "granian", "apache", "flask")),
    ("kinds", ("browser", "skip", "redirect", "bearer", "denied", "rules")),
    ("stores", ("redis", "full", "full-redis", "people")),
    ("gateways", tuple(name for pair in _GATEWAYS for name in (pair.plain, pair.checked))),
)
"""Groups and those of their rows that are drawn; the tables have all."""

OURS_NOT = {"bare", "nginx", "granian", "apache", "flask", *(pair.plain for pair in _GATEWAYS)}

WIDTH, TOP, LINE, GAP, FOOT = 1180, 104, 26, 44, 36
NAMES, BARS, BARS_END, TIMES, TIMES_END = 336, 352, 680, 780, 1040
DECADES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)

STYLE = """
  .ground { fill: #ffffff; } .ours { fill: #2563c9; } .other { fill: #8a96a6; }
  .grid { stroke: #d9dfe7; stroke-width: 1; } .our-line { stroke: #2563c9; } .other-line { stroke: #8a96a6; }
  line.time { stroke-width: 3; }
  text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #1c2430; }
  .title { font-size: 18px; font-weight: 600; } .head { font-weight: 600; } .small { font-size: 12px; fill: #566172; }
  .end { text-anchor: end; } .mid { text-anchor: middle; }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #12161c; } .ours { fill: #6ba4ff; } .other { fill: #78859a; }
    .grid { stroke: #2c3542; } .our-line { stroke: #6ba4ff; } .other-line { stroke: #78859a; }
    text { fill: #e8ecf2; } .small { fill: #a5b0bf; }
  }
"""


@dataclass(frozen=True, slots=True)
class Mark:
    """One row of the picture: medians."""

    title: str
    ours: bool
    rate: float
    p50: float
    p99: float


def marks(results: Results) -> list[tuple[str, list[Mark]]]:
    """What there is to draw, by group."""
    titles = {group.name: group.title for group in results.groups}
    drawn = []
    for group, names in PICTURED:
        measured = results.figures.get(group, {})
        peers = tuple(name for name in measured if name.startswith("peer:"))
        rows = [
            Mark(
                results.rows[name].title,
                name not in OURS_NOT and name not in peers,
                statistics.median(one.rate for one in taken),
                statistics.median(one.p50 for one in taken),
                statistics.median(one.p99 for one in taken),
            )
            for name in (*names, *peers)
            if (taken := results.counted(group, name))
        ]
        if rows:
            drawn.append((titles[group], rows))
    return drawn


def svg(results: Results, date: str) -> str:
    """The whole file."""
    groups = marks(results)
    if not groups:
        return ""
    rows = [mark for _, marked in groups for mark in marked]
    height = TOP + sum(GAP + LINE * len(marked) for _, marked in groups) + FOOT
    scale = _Scale(max(mark.rate for mark in rows), [time for mark in rows for time in (mark.p50, mark.p99)])
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="t d">',
        '<title id="t">Checks per second and how long one takes</title>',
        f'<desc id="d">{escape(_described(groups))}</desc>',
        f"<style>{STYLE}</style>",
        f'<rect class="ground" width="{WIDTH}" height="{height}" rx="10"/>',
        _text(24, 36, "Checks per second on one core, and how long one takes", "title"),
        _text(24, 58, f"{date}; {results.machine}. Medians of calm rounds.", "small"),
        _text(BARS, 88, "requests per second", "head"),
        _text(TIMES, 88, "milliseconds from p50 to p99, logarithmic", "head"),
        *scale.grid(TOP, height - FOOT),
    ]
    y = TOP
    for title, marked in groups:
        y += GAP
        out.append(_text(24, y - 8, title, "head"))
        for mark in marked:
            out += scale.draw(mark, y)
            y += LINE
    out.append("</svg>")
    return "\n".join(out) + "\n"


class _Scale:
    """Where a figure is on the paper."""

    def __init__(self, most: float, times: list[float]) -> None:
        self._step = _round_step(most / 4)
        self._most = max(most, self._step)
        self._low = max((bound for bound in DECADES if bound <= min(times)), default=DECADES[0])
        self._high = min((bound for bound in DECADES if bound >= max(times)), default=DECADES[-1])
        if self._low >= self._high:
            self._high = self._low * 10

    def _bar(self, rate: float) -> float:
        return BARS + (BARS_END - BARS) * rate / self._most

    def _time(self, seconds: float) -> float:
        within = min(max(seconds, self._low), self._high)
        part = math.log10(within / self._low) / math.log10(self._high / self._low)
        return TIMES + (TIMES_END - TIMES) * part

    def grid(self, top: int, bottom: int) -> list[str]:
        out = []
        tick = 0.0
        while tick <= self._most:
            out += _tick(self._bar(tick), top, bottom, f"{tick:,.0f}")
            tick += self._step
        for bound in DECADES:
            if self._low <= bound <= self._high * 1.0001:
                out += _tick(self._time(bound), top, bottom, f"{bound * 1e3:g}")
        return out

    def draw(self, mark: Mark, y: int) -> list[str]:
        kind, line = ("ours", "our-line") if mark.ours else ("other", "other-line")
        left, right = self._time(mark.p50), self._time(mark.p99)
        middle, width = y + LINE / 2, max(1.0, self._bar(mark.rate) - BARS)
        return [
            _text(NAMES, y + 17, mark.title, "end"),
            f'<rect class="{kind}" x="{BARS}" y="{y + 5}" width="{width:.1f}" height="{LINE - 10}" rx="2"/>',
            _text(self._bar(mark.rate) + 8, y + 17, f"{mark.rate:,.0f}", ""),
            f'<line class="time {line}" x1="{left:.1f}" y1="{middle}" x2="{right:.1f}" y2="{middle}"/>',
            f'<circle class="{kind}" cx="{left:.1f}" cy="{middle}" r="5"/>',
            f'<circle class="{kind}" cx="{right:.1f}" cy="{middle}" r="3"/>',
            _text(right + 12, y + 17, f"{_short(mark.p50)} … {_short(mark.p99)}", ""),
        ]


def _tick(x: float, top: int, bottom: int, label: str) -> list[str]:
    return [
        f'<line class="grid" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}"/>',
        _text(x, bottom + 18, label, "small mid"),
    ]


def _text(x: float, y: float, text: str, kind: str) -> str:
    kinds = f' class="{kind}"' if kind else ""
    return f'<text{kinds} x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _short(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}" if seconds < 0.01 else f"{seconds * 1e3:.1f}"


def _round_step(least: float) -> float:
    """1, 2 or 5 times a power of ten, at least so much."""
    power = 10 ** math.floor(math.log10(max(least, 1)))
    return next(power * times for times in (1, 2, 5, 10) if power * times >= least)


def _described(groups: list[tuple[str, list[Mark]]]) -> str:
    return " ".join(
        f"{title}: " + "; ".join(
            f"{mark.title}, {mark.rate:,.0f} requests per second, p50 {_short(mark.p50)} ms, p99 {_short(mark.p99)} ms"
            for mark in marked
        ) + "."
        for title, marked in groups
    )  # fmt: skip
