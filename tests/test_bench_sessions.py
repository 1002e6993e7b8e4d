"""The benchmark of very many sessions: it fills, asks, sweeps, and says whether what is wanted holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import sessions
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
    reading, writing = sessions.sweeping(tmp_path, 6000, 1, 0.3, said.append)
    assert "reads" in reading.text and "marks as seen" in writing.text
    assert [line for line in said if line.strip().startswith("swept ")]


def test_what_the_machine_does_now_and_then_is_not_what_the_service_does() -> None:
    spread = Spread.of([0.004, 0.006, 0.007])
    assert not Found("typically", spread, 0.005).met
    assert Found("in every round", spread, 0.005, every_round=True).met
    assert str(Found("so", spread, 0.005)) == "NOT met  so: 6.00 ms (4.00–7.00), wanted 5 ms at most"
