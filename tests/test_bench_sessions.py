"""The benchmark of very many sessions: it fills, asks, sweeps, and says whether what is wanted holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import sessions, sweeping
from bench.report import Spread
from bench.sessions import Found

pytestmark = pytest.mark.slow


def test_one_persons_sessions_are_listed_among_many(tmp_path: Path) -> None:
    (found,) = sessions.in_a_file(tmp_path, 1000, 1)
    assert "1,000 sessions in SQLite" in found.text and found.seconds.middle > 0


@pytest.mark.external
def test_and_in_redis(tmp_path: Path) -> None:
    (found,) = sessions.in_redis(tmp_path, 1000, 1)
    assert "1,000 sessions in Redis" in found.text


def test_checks_are_measured_while_another_process_sweeps(tmp_path: Path) -> None:
    said: list[str] = []
    found = sessions.sweeps(tmp_path, 3000, 1, 0.6, said.append)
    assert [kind for one in found for kind in sweeping.KINDS if one.text.endswith(kind)] == list(sweeping.KINDS)
    assert "without and with (" in said[1]


def test_what_is_wanted_is_the_median_of_the_rounds() -> None:
    slow, quick = sweeping.Tail(0.004, 0.009), sweeping.Tail(0.001, 0.002)
    assert sweeping.Round(quick, slow).added == pytest.approx(0.007)
    assert sweeping.Tail.of([0.001] * 98 + [0.002, 0.003]) == sweeping.Tail(0.003, 0.003)
    spread = Spread.of([0.004, 0.006, 0.007])
    assert str(Found("so", spread, 0.005)) == "NOT met  so: 6.00 ms (4.00–7.00), wanted 5 ms at most"
    assert Found("so", Spread.of([-0.002, 0.004, 0.007]), 0.005).met
