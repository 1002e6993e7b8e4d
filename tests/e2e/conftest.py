"""Fixtures of the end-to-end tests: stacks that a test process starts once and shares.

Tests that share a stack carry its ``xdist_group``, so that they run in one process.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import gateways, stack
from tests.e2e.stack import Stack

# Processes are watched through /proc, and limited with prlimit.
collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]

# What every shared stack adds to the defaults of `stack.prepare`.
SHARED: Mapping[str, str] = {
    "GROUPS_ALLOWLIST": "a,d,e,system:serviceaccounts",
    "ALLOW_CORS_PREFLIGHT": "true",
}

Shared = Callable[[str], Stack]


@pytest.fixture(scope="session")
def shared_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """Gives the running stack behind a kind of gateway, started when first asked for."""
    running: dict[str, Stack] = {}
    with ExitStack() as ending:

        def get(kind: str) -> Stack:
            if kind not in running:
                running[kind] = stack.start(kind, tmp_path_factory.mktemp(kind), SHARED)
                ending.callback(running[kind].stop)
            return running[kind]

        yield get


def each_of(*kinds: str) -> list[Any]:
    """Parameters for a fixture: one kind of gateway each, marked with its group."""
    return [pytest.param(kind, marks=pytest.mark.xdist_group(f"e2e-{kind}")) for kind in kinds]


@pytest.fixture(params=each_of(*gateways.KINDS))
def gated(request: pytest.FixtureRequest, shared_stack: Shared) -> Stack:
    """A stack behind each gateway in turn."""
    return shared_stack(request.param)


@pytest.fixture
def enveloped(shared_stack: Shared) -> Stack:
    """The stack behind Envoy. Its users carry ``xdist_group("e2e-envoy")``."""
    return shared_stack("envoy")


StartStack = Callable[..., Stack]


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[StartStack]:
    """Starts stacks that belong to one test alone, which may break them. Arguments as `stack.start`."""
    numbers = count()
    with ExitStack() as ending:

        def make(kind: str = "envoy", settings: Mapping[str, str] | None = None, **options: Any) -> Stack:
            make_it = stack.start if options.pop("start", True) else stack.prepare
            made = make_it(kind, tmp_path / f"stack-{next(numbers)}", settings, **options)
            ending.callback(made.stop)
            return made

        yield make


@pytest.fixture
def marker() -> str:
    """A value for the header ``X-Marker``, by which one test's requests are known at the application."""
    return uuid.uuid4().hex
