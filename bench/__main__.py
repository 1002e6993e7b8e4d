"""``python -m bench``: measure, say what came out, and whether what is wanted holds."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import urlsplit

from bench import bearer, listing, machine, plot, report, sweeping
from bench.load import Request
from bench.memory import measure_memory
from bench.programs import INSTALL, ROOT, BenchError
from bench.rows import GROUPS, ROWS, Group, Row
from bench.run import Pace, Patience, measure_group, select
from bench.stage import STRANGERS, Stage

FULL = Pace(rounds=20, seconds=0.2, warm_up=0.4, patience=60)
QUICK = Pace(rounds=2, seconds=0.4, warm_up=0.2, patience=0)
DOCUMENT, PICTURE = ROOT / "docs" / "performance.md", ROOT / "docs" / "performance.svg"
PROCESS, MEMORY, SWEEP, LIST = "process", "memory", "sweep", "list"
APART = (PROCESS, MEMORY, SWEEP, LIST)
"""Groups that are not measured with the load generator's rows."""

SWEPT = 400_000
"""Expired sessions in the file that is swept; in a quick run a tenth of them."""

LISTED, LISTED_QUICKLY = STRANGERS, 50_000
"""Sessions among which one person's are looked for."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--list", action="store_true", help="say which rows and groups there are, and end")
    parser.add_argument("--rows", default="", metavar="NAME,…", help="only these rows or groups (with * and ?)")
    parser.add_argument("--quick", action="store_true", help="less often and shorter, without the heavy rows")
    parser.add_argument("--long", action="store_true", help="also the memory after 5,000,000 checks")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"how often each row has its turn ({FULL.rounds})")
    parser.add_argument("--seconds", type=float, metavar="S", help=f"how long each time ({FULL.seconds:g})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw throughput and latency there")
    parser.add_argument("--write", action="store_true", help="write picture and tables into docs/")
    parser.add_argument("--check", action="store_true", help="exit status 1 when something wanted is not met")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=URL",
                        help="another service that is running already; may be given several times")
    parser.add_argument("--peer-cookie", action="append", default=[], metavar="COOKIE",
                        help="the Cookie header of somebody who is logged in there, peer by peer")  # fmt: skip
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, 1 under ``--check`` when a target is missed, 2 when nothing can be measured."""
    given = parse(arguments)
    try:
        if given.rounds is not None and given.rounds < 1:
            raise ValueError("--rounds takes 1 or more")
        peers = [_peer(text, given.peer_cookie[at : at + 1]) for at, text in enumerate(given.peer)]
        rows = {row.name: row for row in (*ROWS, *peers)}
        groups = _with_peers(GROUPS, [peer.name for peer in peers])
        if given.list:
            return _list(groups, rows)
        wanted = _wanted(given.rows, groups)
        chosen = select(groups, [word for word in wanted if word not in APART], rows, heavy=not given.quick)
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    if shutil.which("wrk") is None:
        print(f"bench: wrk is not installed: {INSTALL['wrk']}", file=sys.stderr)
        return 2
    if wanted and not set(wanted) - set(APART):
        chosen = []
    pace = QUICK if given.quick else FULL
    pace = Pace(given.rounds or pace.rounds, given.seconds or pace.seconds, pace.warm_up, pace.patience)
    results = _run(chosen, rows, pace, given, [word for word in APART if not wanted or word in wanted])
    return _tell(results, given)


def _run(
    groups: list[Group], rows: dict[str, Row], pace: Pace, given: argparse.Namespace, others: list[str]
) -> report.Results:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    cores = machine.choose_cores()
    results = report.Results(machine.shape(), groups, rows)
    _say(f"{results.machine}; servers on core {cores.server}, load on core {cores.load}")
    if cores.shared:
        _say("There is one core only: servers and load generator take turns on it, and figures say little.")
    os.sched_setaffinity(0, {cores.load})
    logging.getLogger("authservice").setLevel(logging.ERROR)  # of services in this process; who runs it knows
    patience = Patience(cores, pace.patience)
    with Stage(cores, _say) as stage:
        for group in groups:
            results.figures[group.name] = measure_group(group, rows, stage, pace, patience, _say)
        if PROCESS in others:
            _say("\nIn the process, by credential and by policies")
            with tempfile.TemporaryDirectory(prefix="authservice-bench-") as folder:
                results.bearer = bearer.measure(stage.provider, Path(folder), bearer.ROUNDS if not given.quick else 5)
        if MEMORY in others and (given.long or not given.quick):
            try:
                results.memory = measure_memory(stage, _say, many=given.long)
            except BenchError as error:
                _say(f"  without: {error}")
    if SWEEP in others:
        results.sweeping = _sweep(cores, quick=given.quick)
    if LIST in others:
        _say("\nOne person's sessions among very many")
        results.listing = listing.measure(LISTED_QUICKLY if given.quick else LISTED, 5, _say, cores)
    return results


def _sweep(cores: machine.Cores, *, quick: bool) -> sweeping.Sweeping | None:
    _say("\nSweeping")
    count, rounds, seconds = (SWEPT // 10, 3, 0.5) if quick else (SWEPT, 20, 1.0)
    with tempfile.TemporaryDirectory(prefix="authservice-bench-") as folder:
        try:
            return sweeping.measure(Path(folder), count, rounds, seconds, _say, cores)
        except BenchError as error:
            _say(f"  without: {error}")
            return None


def _tell(results: report.Results, given: argparse.Namespace) -> int:
    today = date.today().isoformat()
    _say(report.text(results))
    picture = plot.svg(results, today)
    if given.json:
        given.json.write_text(json.dumps(report.as_json(results, today), indent=1), "utf-8")
    if given.plot:
        given.plot.write_text(picture, "utf-8")
    if given.write:
        PICTURE.write_text(picture, "utf-8")
        document = DOCUMENT.read_text("utf-8")
        DOCUMENT.write_text(report.written(document, report.markdown(results, today)), "utf-8")
    return int(given.check and not all(met for _, _, met in report.verdicts(results)))


def _peer(text: str, cookie: Sequence[str]) -> Row:
    """``NAME=URL``; ValueError for anything else."""
    name, _, url = text.partition("=")
    parts = urlsplit(url)
    if not name or parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"--peer takes NAME=http://HOST:PORT/PATH, not {text}")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = tuple(("Cookie", value) for value in cookie)
    request = Request(parts.port or 80, target, headers, host=parts.hostname)
    return Row(f"peer:{name}", f"{name} (already running, on any core)", lambda stage: request)


def _with_peers(groups: Sequence[Group], peers: list[str]) -> list[Group]:
    beside, *others = groups
    return [Group(beside.name, beside.title, (*beside.rows, *peers), beside.bases), *others]


def _wanted(text: str, groups: Sequence[Group]) -> list[str]:
    """The words of ``--rows``, with patterns replaced by the names that they fit."""
    known = [*APART, *(name for group in groups for name in (group.name, *group.rows))]
    wanted: list[str] = []
    for word in filter(None, text.replace(",", " ").split()):
        wanted += sorted({name for name in known if fnmatch(name, word)}) or [word]
    return wanted


def _list(groups: Sequence[Group], rows: dict[str, Row]) -> int:
    for group in groups:
        print(f"{group.name}: {group.title}")
        for name in group.rows:
            print(f"  {name:16}{rows[name].title}{' (not in a quick run)' if rows[name].heavy else ''}")
    print(f"{PROCESS}: checks by credential and by policies in this process, without sockets")
    print(f"{MEMORY}: what a worker keeps in memory (not in a quick run)")
    print(f"{SWEEP}: what checks take while expired sessions are removed")
    print(f"{LIST}: how long «authservice sessions list --user» takes among very many sessions")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
