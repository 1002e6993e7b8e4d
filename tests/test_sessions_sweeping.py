"""Sweeping: expired entries go by themselves, and a store that is down ends nothing."""

from __future__ import annotations

import threading
from datetime import timedelta

from authservice.errors import StoreDown
from authservice.sessions.sweeping import Sweeper
from tests.waiting import until


class Swept:
    """Stands for a store: what each sweep answers is given, the last answer for ever."""

    def __init__(self, *answers: int | StoreDown) -> None:
        self.answers = list(answers)
        self.calls = 0
        self.last = threading.Event()

    def sweep(self) -> int:
        self.calls += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, StoreDown):
            raise answer
        if answer == 0:
            self.last.set()
        return answer


def test_it_sweeps_until_nothing_is_left_and_outlives_a_store_that_is_down() -> None:
    store = Swept(StoreDown("down"), StoreDown("down"), 100, 100, 7, 0)
    sweeper = Sweeper(store, every=timedelta(milliseconds=5))  # type: ignore[arg-type]
    sweeper.start()
    try:
        assert store.last.wait(10) and store.calls >= 6
    finally:
        sweeper.stop()
    until(lambda: not any(thread.name == "sweeper" for thread in threading.enumerate()))
