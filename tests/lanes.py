"""Asks the fast lane beside the full path, so that the two can be compared and nobody notices.

`probe` gives the lane's answer to one request and holds back what the lane wrote into the log and
counted; `Tape` lets the full path draw the same random bytes as the lane did, so that sealed values, and
with them redirects to the login, come out byte for byte the same. Both work for the asking thread
only: what other threads do meanwhile stays as it is.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flask import Flask

from authservice import ops
from authservice.app import JUDGE, MOST_HEADER_BYTES
from authservice.fastlane import FastLane
from authservice.judge import parts_of
from authservice.logs import Event
from authservice.ops import Counts, Metric

Lines = list[dict[str, Any]]
Headers = Sequence[tuple[str, str]]

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Tape(threading.local):
    """`secrets.token_bytes`, which everything that is unguessable comes from; per thread, what
    was drawn can be kept and drawn a second time."""

    def __init__(self, draw: Callable[..., bytes]) -> None:
        self._draw = draw
        self._kept: list[bytes] | None = None
        self._again: list[bytes] = []

    def __call__(self, nbytes: int | None = None) -> bytes:
        lengths = [len(drawn) for drawn in self._again]
        drawn = self._again.pop(lengths.index(nbytes)) if nbytes in lengths else self._draw(nbytes)
        if self._kept is not None:
            self._kept.append(drawn)
        return drawn

    @contextmanager
    def keeping(self) -> Iterator[list[bytes]]:
        """What this thread draws within."""
        self._kept = []
        try:
            yield self._kept
        finally:
            self._kept = None

    @contextmanager
    def again(self, drawn: Sequence[bytes]) -> Iterator[None]:
        """This thread draws these again, in their order among those of the length asked for."""
        self._again = list(drawn)
        try:
            yield
        finally:
            self._again = []


TAPE = Tape(secrets.token_bytes)
secrets.token_bytes = TAPE  # token_hex and token_urlsafe draw from it, too


class _Ear(logging.Filter, threading.local):  # type: ignore[misc]
    """Hears what this thread's service logs, and can keep it from being told."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[logging.LogRecord] | None = None
        self.tells = True

    def filter(self, record: logging.LogRecord) -> bool:
        if self.heard is not None:
            self.heard.append(record)
        return self.tells


_EAR = _Ear()


@contextmanager
def listening(*, tells: bool) -> Iterator[list[logging.LogRecord]]:
    """What this thread's service logs within; handed on to the log or not."""
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.startswith("authservice") and isinstance(logger, logging.Logger):
            logger.addFilter(_EAR)  # once: it looks whether it is there
    before = _EAR.heard, _EAR.tells
    _EAR.heard, _EAR.tells = [], tells
    try:
        yield _EAR.heard
    finally:
        _EAR.heard, _EAR.tells = before


def told_by_the_judge(records: Sequence[logging.LogRecord]) -> Lines:
    """The judge's own lines, each with its fields."""
    return [
        {"event": record.getMessage(), "level": record.levelname,
         **{key: value for key, value in vars(record).items() if key not in _STANDARD}}
        for record in records if record.name == "authservice.judge"
    ]


class _Overheard(ops._Counter):
    """A counter that counts also, or only, for a thread while that listens."""

    def __init__(self) -> None:
        super().__init__()
        self.add = self._add

    def _add(self) -> int:
        name = _OWN.names.get(self)
        if name is None:
            return self._next()
        _OWN.counted[name] += 1
        return self._next() if _OWN.tells else 0


class _Own(threading.local):
    """What one thread listens to: counters of one service, by their names."""

    names: Mapping[object, str] = {}
    counted: Counter[str] = Counter()
    tells = True


_OWN = _Own()
ops._Counter = _Overheard  # before any service is built: they hold on to what counts


@contextmanager
def counting(counts: Counts, *, tells: bool) -> Iterator[Counter[str]]:
    """What this thread's service counts within; really counted, too, or not."""
    before = _OWN.names, _OWN.counted, _OWN.tells
    names = {counter: name for name, counter in counts._counters.items()}
    _OWN.names, _OWN.counted, _OWN.tells = names, Counter(), tells
    try:
        yield _OWN.counted
    finally:
        _OWN.names, _OWN.counted, _OWN.tells = before


_LOOKED_UP = {metric.one() for metric in (Metric.SESSION_HITS, Metric.BEARER_HITS, Metric.SESSION_INVALIDATIONS)}
_BY_THE_JUDGE = tuple(
    metric.full_name for metric in (Metric.ALLOWED, Metric.DENIED, Metric.LOGINS_BEGUN, Metric.POLICY_VERDICTS)
)


def counted_by_the_judge(counted: Counter[str]) -> dict[str, int]:
    """Each answer once; sessions and verdicts that were found or not are no answers."""
    return {name: times for name, times in counted.items() if name.startswith(_BY_THE_JUDGE)}


@dataclass
class Probe:
    """What the lane said to one request, with what it drew, logged and counted. ``status`` is ``None``
    when it left the request to the full path."""

    status: int | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    drawn: list[bytes] = field(default_factory=list)
    records: list[logging.LogRecord] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)

    @property
    def left_a_trace(self) -> bool:
        """Whether more was recorded than what was found in memory on the way."""
        return bool(self.records) or bool(set(self.counted) - _LOOKED_UP)

    @property
    def answered(self) -> bool:
        return self.status is not None


def probe(app: Flask, environ: dict[str, Any]) -> Probe:
    """Asks the lane of this application, silently."""
    service = app.extensions["authservice"]
    lane = app.extensions.setdefault("lane", None) or FastLane(service.judge)
    app.extensions["lane"] = lane
    with (
        TAPE.keeping() as drawn, listening(tells=False) as records, counting(service.counts, tells=False) as counted,
    ):
        answer = lane.ask(parts_of(environ))
    if answer is None:
        return Probe(None, drawn=drawn, records=records, counted=counted)
    # Said once in the life of a service: then the lane has said it, and the log must have it.
    for record in records:
        if record.getMessage() in (Event.SCHEME_UNKNOWN.value, Event.GATEWAY_LACKS.value):
            logging.getLogger(record.name).handle(record)
    body = b"" if environ["REQUEST_METHOD"] == "HEAD" else answer.body
    return Probe(answer.status, read_head(answer.head), body, drawn, records, counted)


def read_head(head: bytes) -> list[tuple[str, str]]:
    """Header lines as pairs of name and value; fails on anything but `name: value` lines."""
    if not head:
        return []
    assert head.endswith(b"\r\n"), head
    pairs = []
    for line in head[:-2].split(b"\r\n"):
        name, colon, value = line.decode("latin-1").partition(": ")
        assert colon and name == name.lower() and name.strip() == name and not set("\r\n\0") & set(value), line
        pairs.append((name, value))
    return pairs


def assert_same(told: Probe, status: int, headers: Headers, body: bytes) -> None:
    """Status, headers (names in any letter case, lines of one name in their order) and body."""
    assert told.status == status, (told.status, status, told.headers, headers)
    assert in_order(told.headers) == in_order(headers)
    assert told.body == body


def in_order(headers: Headers) -> list[tuple[str, str]]:
    return sorted(((name.lower(), value) for name, value in headers), key=lambda pair: pair[0])


def is_for_the_lane(app: Flask, environ: dict[str, Any]) -> bool:
    """Whether the server would ask the lane about this: on the judge's port, and not too large."""
    ports: dict[str, str] = getattr(app, "_ports", {})
    size = sum(len(name) + len(value) for name, value in environ.items() if name.startswith("HTTP_"))
    return ports.get(environ["SERVER_PORT"]) == JUDGE and size <= MOST_HEADER_BYTES


@contextmanager
def on_both_lanes(app: Flask, environ: dict[str, Any]) -> Iterator[Callable[[int, Headers, bytes], None]]:
    """Asks the lane, then lets the full path be asked within, with the clock held and the same random
    bytes; gives what compares the full path's answer with the lane's.

    Not for applications whose clock cannot be held, and nothing is compared while another thread asks the
    same application: what it does may come in between.
    """
    clock = app.extensions.get("clock")
    if clock is None or not is_for_the_lane(app, environ):
        yield lambda status, headers, body: None
        return
    with _alone(app) as is_alone, clock.held():
        told = probe(app, environ)

        def compare(status: int, headers: Headers, body: bytes) -> None:
            if not is_alone():
                return
            if told.answered:
                assert_same(told, status, headers, body)
                assert told_by_the_judge(told.records) == told_by_the_judge(records)
                assert counted_by_the_judge(told.counted) == counted_by_the_judge(counted)
            else:
                assert not told.left_a_trace, (told.records, told.counted)

        counts = app.extensions["authservice"].counts
        with (
            TAPE.again(told.drawn), listening(tells=True) as records, counting(counts, tells=True) as counted,
        ):
            yield compare


@contextmanager
def _alone(app: Flask) -> Iterator[Callable[[], bool]]:
    """Tells afterwards whether this application was asked nothing else meanwhile."""
    mine = object()
    asking: dict[object, bool] = app.extensions.setdefault("asking", {})
    asking[mine] = not asking
    for other in list(asking):
        asking[other] = asking[other] and other is mine
    try:
        yield lambda: asking[mine]
    finally:
        del asking[mine]
