"""The benchmark: it runs, says ratios and verdicts, and its picture can be read."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from flask import Flask
from werkzeug.test import create_environ

from bench import machine, memory, plot, policies, report
from bench.__main__ import main
from bench.gateways import KINDS
from bench.load import Figures, Request
from bench.programs import BenchError
from bench.rows import GROUPS, ROWS, Group, Row
from bench.run import Pace, Patience, in_turn, measure_group, select
from bench.service import COOKIE_NAME, TARGET, browser, new_session
from bench.stage import Stage
from tests.conftest import ask
from tests.lanes import probe
from tests.programs import require

ROOT = Path(__file__).parent.parent
ROWS_BY_NAME = {row.name: row for row in ROWS}
SVG = "{http://www.w3.org/2000/svg}"
WIDEST_LETTER = 7.6
"""Pixels of one letter, on average and generously, at 13 pixels' size."""


def figures(rate: float, p50: float = 0.0002, p99: float = 0.0006, slowness: float = 0.0) -> Figures:
    return Figures(rate, p50, p99, cpu=1 / rate, disturbed=0.0, slowness=slowness)


def results(**rates: list[float]) -> report.Results:
    """Results of the group «beside», with these rates by row."""
    made = report.Results("a machine", GROUPS, ROWS_BY_NAME)
    made.figures["beside"] = {name: [figures(rate) for rate in taken] for name, taken in rates.items()}
    return made


@pytest.fixture(scope="module")
def everything() -> report.Results:
    """Every row measured, with figures as far apart as they can be expected."""
    made = report.Results("2 cores (an example)", GROUPS, ROWS_BY_NAME)
    extremes = itertools.cycle([(180_000, 0.00006, 0.0001), (35_000, 0.0004, 0.3), (310, 0.05, 0.9)])
    for group in GROUPS:
        made.figures[group.name] = {name: [figures(*next(extremes))] * 3 for name in group.rows}
    return made


class TestReport:
    def test_a_ratio_is_the_median_of_the_rounds_own(self) -> None:
        ratio = results(cookie=[10, 40, 90], bare=[20, 50, 100]).ratio("beside", "cookie", "bare")
        assert ratio == report.Spread(0.8, 0.5, 0.9)

    @pytest.mark.parametrize("slow,disturbed,counted", [
        ([3.0, 1.15, 2.0, 1.1, 1.0, 4.0], {}, [1, 3, 4]),
        ([1.0] * 4, {}, [0, 1, 2, 3]),
        ([2.0, 2.1, 2.2, 2.3], {}, [0]),
        ([2.8, 2.1, 2.2, 2.3, 2.0, 2.5, 2.6, 2.7], {}, [1, 4]),
        ([1.0, 1.0, 1.1, 2.0], {1: 0.16, 2: 0.15}, [0, 2]),
        ([2.0], {}, [0]),
        ([], {}, []),
    ])  # fmt: skip
    def test_calm_rounds_count_and_a_quarter_at_least_whatever_their_figures(
        self, slow: list[float], disturbed: dict[int, float], counted: list[int]
    ) -> None:
        """Calm is what is near the group's best moment, which was in another row's turn."""
        made = results()
        made.figures["beside"] = {
            "cookie": [replace(figures(1, slowness=each), disturbed=disturbed.get(number, 0.0))
                       for number, each in enumerate(slow)],
            "nginx": [figures(1, slowness=1.0)],
        }  # fmt: skip
        assert made.calm("beside", "cookie") == counted

    def test_a_row_and_a_ratio_have_calm_rounds_of_their_own(self) -> None:
        made = results()
        made.figures["beside"] = {
            "cookie": [figures(10, 0.1, 0.2, 1.0), figures(20, 0.1, 0.3, 2.0), figures(30, 0.1, 0.4, 3.0)],
            "bare": [figures(100, slowness=3.0), figures(100, slowness=1.0), figures(100, slowness=3.0)],
        }
        assert made.ratio("beside", "cookie", "bare") == report.Spread(0.2, 0.2, 0.2)
        assert made.tail("beside", "cookie") == report.Spread(2.0, 2.0, 2.0)
        (_, (head, *lines)), = report.tables(made)
        cells = [dict(zip(head, line)) for line in lines]
        assert [(each["requests/s"], each["calm"]) for each in cells] == [("100", "1/3"), ("10", "1/3")]
        assert "0.20 (0.20–0.20) in 1 rounds" in report.text(made)
        assert "| 0.20 (0.20–0.20) | 1 |" in report.markdown(made, "")
        told = report.as_json(made, "")
        assert [one["slowness"] for one in told["groups"]["beside"]["cookie"]] == [1.0, 2.0, 3.0]
        assert [one["rounds"] for one in told["wanted"]] == [1, 1]

    def test_what_the_check_adds_is_of_rounds_that_were_calm_on_both_sides_in_table_and_picture(self) -> None:
        made = results()
        made.figures["gateways"] = {
            "envoy-open": [figures(100, slowness=1.0), figures(200, slowness=1.0)],
            "envoy-check": [figures(10, slowness=3.0), figures(20, slowness=1.0)],
        }
        (_, (head, line)), = report.tables(made)
        assert dict(zip(head, line))["requests/s"] == "200 → 20"
        assert report.as_json(made, "")["pairs"]["gateways"][0]["calm"] == [1]
        assert [mark.rate for _, marked in plot.marks(made) for mark in marked] == [200, 20]

    def test_what_was_not_measured_has_no_verdict(self) -> None:
        texts = [target.text for target, _, _ in report.verdicts(results(cookie=[60], bare=[100]))]
        assert texts == ["cookie check / bare responder", "p99 / p50 of the cookie check, 16 connections"]

    @pytest.mark.parametrize("rate,met", [(49, False), (51, True)])
    def test_a_verdict_says_whether_it_is_met(self, rate: float, met: bool) -> None:
        assert report.verdicts(results(cookie=[rate], bare=[100]))[0][2] is met

    def test_the_tables_have_every_row_and_as_many_cells_as_their_heads(self, everything: report.Results) -> None:
        tables = report.tables(everything)
        assert len(tables) == len(GROUPS)
        for (_, lines), group in zip(tables, GROUPS):
            titles = [pair.title for pair in group.pairs] or [ROWS_BY_NAME[name].title for name in group.rows]
            assert [line[0] for line in lines[1:]] == titles
            assert {len(line) for line in lines} == {len(lines[0])}

    def test_what_the_check_adds_is_taken_within_a_round(self) -> None:
        made = report.Results("a machine", GROUPS, ROWS_BY_NAME)
        made.figures["gateways"] = {
            "caddy-open-1": [figures(8000, 0.0001, 0.001), figures(4000, 0.0002, 0.002)],
            "caddy-check-1": [figures(4000, 0.0003, 0.002), figures(1000, 0.0005, 0.005)],
            "envoy-open": [figures(1)],
        }
        (title, (head, line)), (_, (_, alone)) = report.tables(made)
        assert title == "Through a gateway, in front of an application: without the check → with it"
        assert dict(zip(head, line)) == {
            "": "Caddy, 1 connection",
            "calm": "2/2",
            "requests/s": "6,000 → 2,500",
            "× requests/s": "0.38 (0.25–0.50)",
            "p50 ms": "0.15 → 0.40",
            "× p50": "2.75 (2.50–3.00)",
            "+ p50 ms": "0.25 (0.20–0.30)",
            "p99 ms": "1.50 → 3.50",
            "× p99": "2.25 (2.00–2.50)",
            "+ p99 ms": "2.00 (1.00–3.00)",
            "CPU µs": "187.5 → 625.0",
        }
        assert alone[0] == "Envoy, 16 connections, without the check"
        (told,) = report.as_json(made, "")["pairs"]["gateways"]
        assert (told["plain"], told["checked"]) == ("caddy-open-1", "caddy-check-1")
        assert (told["rate"], told["p50_added"]) == ([0.5, 0.25], pytest.approx([0.0002, 0.0003]))

    def test_only_what_is_between_the_marks_is_replaced(self) -> None:
        begin, end = report.MARKS
        assert report.written(f"a\n{begin}\nold\n{end}\nz\n", "new") == f"a\n{begin}\n\nnew\n\n{end}\nz\n"
        with pytest.raises(ValueError):
            report.written("no marks", "new")


class TestTurns:
    NAMES = ["bare", "one", "other"]

    def test_a_row_is_before_each_other_one_as_often_as_after_it(self) -> None:
        for count in range(1, 9):
            names = [*map(str, range(count))]
            rounds = [in_turn(names, number) for number in range(10)]
            assert all(sorted(order) == names for order in rounds)
            for one, other in itertools.combinations(names, 2):
                assert sum(order.index(one) < order.index(other) for order in rounds) == 5
        assert in_turn([], 3) == []

    def test_each_row_begins_a_round(self) -> None:
        assert {in_turn(self.NAMES, number)[0] for number in range(6)} == {*self.NAMES}

    def test_a_ratio_is_of_the_same_round_whatever_its_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every measurement is ten per second faster than the one before, and every look at the core finds it
        slower than the one before."""
        asked: list[int] = []
        pieces = itertools.count()

        def measure(request: Request, seconds: float, cores: machine.Cores) -> Figures:
            asked.append(request.port)
            return figures(10 * len(asked))

        monkeypatch.setattr("bench.run.measure", measure)
        monkeypatch.setattr("bench.run.slowness", lambda core: float(next(pieces)) if core == 0 else 0.0)
        monkeypatch.setattr(Request, "verify", lambda request: None)
        ports = {name: number for number, name in enumerate(self.NAMES)}
        rows = {name: Row(name, name, lambda stage, port=port: Request(port, "/")) for name, port in ports.items()}
        group = Group("group", "A group", tuple(self.NAMES), ("bare",))
        pace = Pace(rounds=4, seconds=0.1, warm_up=0.1, patience=0)
        cores = machine.Cores(0, 1)
        with Stage(cores, lambda line: None) as stage:
            taken = measure_group(group, rows, stage, pace, Patience(cores, 0), lambda line: None)
        warm, *rounds = [asked[at : at + 3] for at in range(0, len(asked), 3)]
        assert warm == [0, 1, 2]
        assert rounds == [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1]]
        assert [one.rate for one in taken["bare"]] == [40, 90, 120, 130]
        assert [one.rate for one in taken["other"]] == [60, 70, 110, 140]
        assert [one.slowness for one in taken["bare"]] == [2, 12, 18, 20], "the one behind it"

    @pytest.fixture
    def looks(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[float]]:
        """Sets what looks at the two cores find, one after the other, and gives a clock that only waiting moves."""

        def set_up(server: list[float], load: list[float]) -> list[float]:
            clock = [0.0]
            found = {0: iter(server), 1: iter(load)}
            monkeypatch.setattr("bench.run.slowness", lambda core: next(found[core]))
            monkeypatch.setattr("bench.run.time", SimpleNamespace(
                monotonic=lambda: clock[0], sleep=lambda seconds: clock.__setitem__(0, clock[0] + seconds)
            ))  # fmt: skip
            return clock

        return set_up

    def test_a_measurement_begins_when_both_cores_are_calm_or_patience_is_at_its_end(
        self, looks: Callable[..., list[float]]
    ) -> None:
        clock = looks([1.5, 1.0, 1.5, 1.3, 1.1, *[1.0] * 99], [1.0, 1.0, 1.0, 1.0, 1.0, *[1.5] * 99])
        patience = Patience(machine.Cores(0, 1), 1.0)
        assert (patience.wait(), clock[0]) == (1.0, 0.0)
        assert (patience.wait(), clock[0]) == (1.1, pytest.approx(0.2))
        assert (patience.wait(), clock[0]) == (1.5, pytest.approx(1.0, abs=0.11))
        assert not patience.lasts()
        assert (patience.wait(), clock[0]) == (1.5, pytest.approx(1.0, abs=0.11))

    @pytest.mark.parametrize("tries,patience,counted,slowness,took", [
        ([(1.0, 1.0, 0.0)], 9, 1, 1.0, 0.1),
        ([(1.0, 2.0, 0.0), (1.0, 1.1, 0.0)], 9, 2, 1.1, 0.2),
        ([(1.0, 2.0, 0.0), (1.0, 3.0, 0.0), (1.0, 2.5, 0.0)], 9, 1, 2.0, 0.3),
        ([(1.0, 2.0, 0.0), (1.0, 1.5, 0.0)], 0.1, 2, 1.5, 0.2),
        ([(2.0, 1.0, 0.0)], 0, 1, 2.0, 0.1),
        ([(1.0, 1.0, 0.5), (1.0, 1.0, 0.1)], 9, 2, 1.0, 0.4),
        ([(1.0, 1.0, 0.5), (1.0, 3.0, 0.1), (1.0, 2.0, 0.12)], 9, 3, 2.0, 0.5),
        ([(1.0, 1.0, 0.5), (1.0, 1.0, 0.3), (1.0, 1.0, 0.4)], 9, 2, 1.0, 0.9),
    ])  # fmt: skip
    def test_what_was_not_measured_on_calm_cores_of_ours_is_measured_again(
        self, tries: list[tuple[float, float, float]], patience: float, counted: int, slowness: float, took: float,
        looks: Callable[..., list[float]], monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """Each try has a look before it, one behind it, and the others' share of the cores. The one of the number
        ``counted`` counts."""
        clock = looks([1.0, *itertools.chain.from_iterable(each[:2] for each in tries)], [1.0] * 99)
        asked: list[int] = []
        said: list[str] = []

        def measure(request: Request, seconds: float, cores: machine.Cores) -> Figures:
            clock[0] += seconds
            asked.append(1)
            return Figures(len(asked), 0.001, 0.002, cpu=0.0, disturbed=tries[len(asked) - 1][2])

        monkeypatch.setattr("bench.run.measure", measure)
        monkeypatch.setattr(Request, "verify", lambda request: None)
        rows = {"one": Row("one", "one", lambda stage: Request(1, "/"))}
        pace = Pace(rounds=1, seconds=0.1, warm_up=0.1, patience=patience)
        group = Group("group", "A group", ("one",), ())
        with Stage(machine.Cores(0, 1), lambda line: None) as stage:
            stage.once(("warm", "one"), lambda: None)
            left = Patience(stage.cores, patience)
            left.use(-99)  # by the group before
            (one,) = measure_group(group, rows, stage, pace, left, said.append)["one"]
        assert (one.rate, one.slowness, len(asked)) == (counted, slowness, len(tries))
        assert clock[0] == pytest.approx(took)
        assert f"pace {slowness * 1000:.1f} ms" in said[-1]

    def test_each_group_has_all_of_the_patience_and_knows_the_best_moment_of_the_others(
        self, looks: Callable[..., list[float]]
    ) -> None:
        clock = looks([1.0, *[1.5] * 999], [1.0] * 999)
        patience = Patience(machine.Cores(0, 1), 7.0)
        assert [(patience.wait(), round(clock[0])) for _ in range(3)] == [(1.5, 5), (1.5, 7), (1.5, 7)]
        assert not patience.lasts()
        patience.renew()
        assert (patience.wait(), round(clock[0])) == (1.5, 12)

    def test_a_row_that_fails_in_the_middle_leaves_the_others_their_rounds(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[int] = []
        said: list[str] = []

        def measure(request: Request, seconds: float, cores: machine.Cores) -> Figures:
            asked.append(request.port)
            if request.port == 1 and asked.count(1) == 3:
                raise BenchError("another status")
            return figures(asked.count(request.port))

        monkeypatch.setattr("bench.run.measure", measure)
        monkeypatch.setattr("bench.run.slowness", lambda core: 1.0)
        monkeypatch.setattr(Request, "verify", lambda request: None)
        ports = {name: number for number, name in enumerate(self.NAMES)}
        rows = {name: Row(name, name, lambda stage, port=port: Request(port, "/")) for name, port in ports.items()}
        group = Group("group", "A group", tuple(self.NAMES), ("bare",))
        with Stage(machine.Cores(0, 1), lambda line: None) as stage:
            taken = measure_group(group, rows, stage, Pace(4, 0.1, 0.1, 0), Patience(stage.cores, 0), said.append)
        # The first measurement of each is to warm up.
        assert {name: [one.rate for one in each] for name, each in taken.items()} == {
            "bare": [2, 3, 4, 5], "other": [2, 3, 4, 5],
        }
        assert asked.count(1) == 3 and "  without «one»: another status" in said

    def test_the_pace_of_a_core_is_taken_on_that_core(self) -> None:
        core = min(os.sched_getaffinity(0))
        before = os.sched_getaffinity(0)
        assert 0 < machine.slowness(core) < 1
        assert os.sched_getaffinity(0) == before


class TestRows:
    def test_names_are_there_once(self) -> None:
        names = [row.name for row in ROWS] + [group.name for group in GROUPS]
        assert len(set(names)) == len(names)

    def test_every_row_is_in_a_group_and_every_base_in_its_own(self) -> None:
        assert {name for group in GROUPS for name in group.rows} == set(ROWS_BY_NAME)
        for group in GROUPS:
            assert {*group.bases, *group.own_base, *group.own_base.values()} <= set(group.rows)
            assert {name for pair in group.pairs for name in (pair.plain, pair.checked)} <= set(group.rows)

    def test_a_row_brings_what_it_is_divided_by(self) -> None:
        (group,) = select(GROUPS, ["apache"], ROWS_BY_NAME, heavy=True)
        assert group.rows == ("bare", "cookie", "apache")

    def test_a_quick_run_leaves_heavy_rows_out_unless_they_are_named(self) -> None:
        def rows(wanted: list[str]) -> set[str]:
            return {name for group in select(GROUPS, wanted, ROWS_BY_NAME, heavy=False) for name in group.rows}

        assert "full" not in rows([]) and "full" in rows(["full"])

    def test_an_unknown_row_is_said(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--rows", "cookie,coockie"]) == 2
        assert "coockie" in capsys.readouterr().err

    def test_a_run_without_rounds_is_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--rounds", "0"]) == 2
        assert "--rounds" in capsys.readouterr().err

    @pytest.mark.parametrize("words,patient", [([], True), (["--rounds", "3"], True), (["--quick"], False)])
    def test_a_quick_run_alone_waits_for_nothing(
        self, words: list[str], patient: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        paces: list[Pace] = []

        def run(groups: object, rows: object, pace: Pace, *others: object) -> report.Results:
            paces.append(pace)
            return results()

        require("wrk")
        monkeypatch.setattr("bench.__main__._run", run)
        assert main(["--rows", "cookie", *words]) == 0
        assert [pace.patience > 0 for pace in paces] == [patient]

    def test_the_list_has_every_row(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--list"]) == 0
        assert set(ROWS_BY_NAME) <= set(capsys.readouterr().out.split())

    def test_a_browser_sends_15_headers_and_4_kb_of_cookies(self) -> None:
        headers = dict(browser("authservice_session=" + "s" * 49))
        assert len(headers) == 15 and len(headers["Cookie"]) == 4096
        assert f"; authservice_session={'s' * 49}; " in headers["Cookie"]


class TestPolicies:
    def test_there_are_as_many_as_the_row_says(self, tmp_path: Path) -> None:
        named = policies.write(tmp_path / "many", policies.MANY_HOSTS)
        documents = [file.read_text().count('"kind"') for file in Path(named["POLICY_PATH"]).iterdir()]
        assert (len(documents), sum(documents)) == (policies.MANY_HOSTS, policies.MANY) == (200, 1000)
        assert len(json.loads(named["POLICY_WORKLOADS"])) == policies.MANY_HOSTS

    @pytest.mark.parametrize("hosts", [0, policies.MANY_HOSTS])
    def test_the_check_is_decided_by_a_policy_in_the_fast_lane(
        self, hosts: int, tmp_path: Path, make_app: Callable[..., Flask]
    ) -> None:
        app = make_app(**policies.write(tmp_path / "policies", hosts))
        begun = app.extensions["authservice"].sessions.begin(new_session("https://idp.example"))
        headers = {"Host": policies.MEASURED, "Cookie": f"{COOKIE_NAME}={begun}"}
        for method, status in (("GET", 200), ("OPTIONS", 403)):
            answer = ask(app, method, TARGET, port=8080, headers=headers)
            environ = create_environ(path="/", method=method, headers=headers)
            environ.update(RAW_URI=TARGET, REMOTE_ADDR="127.0.0.1", SERVER_PORT="8080")
            assert (answer.status, probe(app, environ).status) == (status, status)


class TestMemory:
    @pytest.mark.parametrize(
        "readings,growth,met", [([138, 138, 138.5, 138], 0.5, True), ([138, 138, 140, 139], 2, False)]
    )
    def test_what_many_checks_add_is_the_most_since_the_first_ones(
        self, readings: list[float], growth: float, met: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sent: list[float] = []
        left = iter(readings)

        def measure(request: Request, seconds: float, cores: machine.Cores) -> Figures:
            sent.append(seconds)
            return figures(200_000 if seconds == 10 else 60_000)

        def resident(pid: int) -> int:
            assert pid == 7
            return round(next(left) * 1_000_000)

        monkeypatch.setattr("bench.load.measure", measure)
        monkeypatch.setattr(memory, "resident_bytes", resident)
        checks, added = memory.grown(Request(1, "/"), 7, machine.Cores(0, 0), lambda line: None)
        assert sent == [1, 1, 10, 10, 10] and (checks, added) == (6_000_000, growth)
        found = report.Results("a machine", GROUPS, {}, memory=memory.Memory(138, 20_000, checks, added))
        assert [(target.bound, kept) for target, _, kept in report.verdicts(found)] == [(150, True), (1, met)]

    def test_without_long_there_is_no_verdict_on_growth(self) -> None:
        found = report.Results("a machine", GROUPS, {}, memory=memory.Memory(138, 20_000))
        assert [target.bound for target, _, _ in report.verdicts(found)] == [150]


class TestPicture:
    def test_no_two_texts_lie_on_each_other_or_beyond_the_edge(self, everything: report.Results) -> None:
        drawn = ElementTree.fromstring(plot.svg(everything, "2026-01-01"))
        height = float(drawn.attrib["viewBox"].split()[3])
        boxes = []
        for text in drawn.iter(f"{SVG}text"):
            width = len(text.text or "") * WIDEST_LETTER * (1.3 if "title" in text.get("class", "") else 1)
            kinds = text.get("class", "").split()
            left = float(text.attrib["x"]) - width * (1 if "end" in kinds else 0.5 if "mid" in kinds else 0)
            boxes.append((left, left + width, float(text.attrib["y"]), text.text))
        for left, right, y, content in boxes:
            assert left >= 0 and right <= plot.WIDTH and 12 <= y <= height, content
        for (a, b, y, one), (c, d, z, other) in itertools.combinations(boxes, 2):
            assert abs(y - z) >= 13 or b <= c or d <= a, (one, other)

    def test_what_is_drawn_is_also_told(self, everything: report.Results) -> None:
        drawn = ElementTree.fromstring(plot.svg(everything, "2026-01-01"))
        told = drawn.findtext(f"{SVG}desc") or ""
        for _, marks in plot.marks(everything):
            for mark in marks:
                assert f"{mark.title}, {mark.rate:,.0f} requests per second" in told

    def test_there_is_a_light_and_a_dark_set_of_colours(self) -> None:
        assert "prefers-color-scheme: dark" in plot.STYLE

    def test_nothing_measured_is_no_picture(self) -> None:
        assert plot.svg(report.Results("", GROUPS, ROWS_BY_NAME), "") == ""


@pytest.mark.slow
@pytest.mark.external
def test_the_runner_measures_compares_and_writes(tmp_path: Path) -> None:
    """One short round; the figures of a busy machine mean nothing, so only their being there is looked at."""
    for program in ("wrk", "nginx", "apache2", "redis-server", *KINDS):
        require(program)
    rows = ("nginx", "granian", "apache", "flask", "browser", "redis", "cookie-close", "envoy-check-1")
    rows += tuple(f"{kind}-check" for kind in KINDS)
    command = [sys.executable, "-m", "bench", "--quick", "--rounds", "1", "--seconds", "0.2"]
    command += ["--rows", ",".join((*rows, "process")), "--json", str(tmp_path / "j"), "--plot", str(tmp_path / "p.svg")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=dict(os.environ))
    assert run.returncode == 0, run.stdout + run.stderr
    assert "without" not in run.stdout.replace("without the check", "").replace("without sockets", ""), run.stdout
    said = json.loads((tmp_path / "j").read_text())
    measured = {name: taken for group in said["groups"].values() for name, taken in group.items()}
    assert {*rows, "bare", "cookie", "envoy-open-1", *(f"{kind}-open" for kind in KINDS)} <= set(measured)
    assert all(one["rate"] > 0 and 0 < one["p50"] <= one["p99"] for taken in measured.values() for one in taken)
    assert len(said["wanted"]) == 10
    ElementTree.parse(tmp_path / "p.svg")
