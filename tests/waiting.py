"""Waiting for a condition, never for a length of time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], seconds: float = 10.0, *, every: float = 0.02) -> T:
    """The first truthy value of ``condition``; AssertionError when it takes longer than ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"still not so after {seconds} s: {getattr(condition, '__name__', condition)}")
        time.sleep(every)


def by_then(condition: Callable[[], object], seconds: float) -> None:
    """Waits for ``condition``; AssertionError when it was not so though it was asked later than
    ``seconds`` from now. However late the asking itself may be on a busy machine."""
    began = time.monotonic()
    while True:
        asked = time.monotonic()
        if condition():
            return
        if asked - began > seconds:
            raise AssertionError(f"not so {asked - began:.3f} s later: {getattr(condition, '__name__', condition)}")
        time.sleep(0.0005)
