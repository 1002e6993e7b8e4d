"""What the server withstands: nonsense, slow senders, reloads, deaths, a stuck loop, more work than threads.

All of it happens while people who are logged in go on having their requests checked, on real connections.
"""

from __future__ import annotations

import os
import random
import resource
import select
import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from flask import Flask

from tests.conftest import Clock
from tests.load_app import GATE, HOLD, SECONDS, STUCK
from tests.raw_requests import read_all
from tests.sample_sessions import a_session
from tests.served import LIMIT, Got, Served, exchange, read_answers, received, request, serving
from tests.test_smuggling import NEXT, as_heard, everything_heard, gunicorns_reading, heard_in, settings, was_head
from tests.test_smuggling import config as gunicorns_config
from tests.waiting import until

# Real processes; and not beside each other, as some of them measure.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("load")]

config = gunicorns_config
SENDERS = 500


def readable(connections: Iterable[socket.socket]) -> set[socket.socket]:
    """Those at which something has arrived. By poll: there may be more files than select can number."""
    by_number = {connection.fileno(): connection for connection in connections}
    poll = select.poll()
    for number in by_number:
        poll.register(number, select.POLLIN)
    return {by_number[number] for number, _ in poll.poll(0)}


# --- people who are checked all the time


class Person:
    """One keep-alive connection with the same check again and again."""

    def __init__(self, port: int, check: bytes) -> None:
        self._port = port
        self._check = check
        self._connection: socket.socket | None = None
        self.passed = 0
        self.failures: list[tuple[int, str]] = []
        """Each with the port of this side."""

    @property
    def own_port(self) -> int:
        return int(self._connection.getsockname()[1]) if self._connection else 0

    def send(self) -> None:
        try:
            if self._connection is None:
                self._connection = socket.create_connection(("127.0.0.1", self._port), timeout=LIMIT)
            self._connection.sendall(self._check)
        except OSError as error:
            self._fail(repr(error))

    def read(self) -> None:
        if self._connection is None:
            return
        data = b""
        try:
            while not whole(data):
                more = self._connection.recv(65536)
                if not more:
                    raise ConnectionError("closed without an answer")
                data += more
        except OSError as error:
            self._fail(repr(error))
            return
        if data.startswith(b"HTTP/1.1 200 "):
            self.passed += 1
            if b"\r\nconnection: close\r\n" in data:
                self.leave()
        else:
            self._fail(repr(data[:200]))

    def _fail(self, why: str) -> None:
        self.failures.append((self.own_port, why))
        self.leave()

    def leave(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def whole(answer: bytes) -> bool:
    """Whether an answer is there to its end."""
    head, blank, body = answer.partition(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
    return bool(blank) and len(body) == int(length)


def ask_all(people: Sequence[Person]) -> None:
    for person in people:
        person.send()
    for person in people:
        person.read()


@contextmanager
def going_on(people: Sequence[Person]) -> Iterator[None]:
    """All of them ask while the body runs, each at their own pace, and once more after it."""
    over = threading.Event()

    def run(person: Person) -> None:
        last = False
        while not last:
            last = over.is_set()
            ask_all([person])

    threads = [threading.Thread(target=run, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    try:
        until(lambda: all(person.passed or person.failures for person in people), LIMIT)
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
        for person in people:
            person.leave()


@pytest.fixture
def check(make_app: Callable[..., Flask], clock: Clock) -> bytes:
    """The check of somebody who is logged in at every service with this test's store."""
    secret = make_app().extensions["authservice"].sessions.begin(a_session(clock))
    return request("/app", f"Cookie: authservice_session={secret}")


@pytest.fixture
def serve(environ: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts the service of `tests.load_app`, with two workers unless told otherwise."""
    open_now = []

    def start(*options: str, workers: int = 2) -> Served:
        changes = {"WEB_CONCURRENCY": str(workers), "LOG_LEVEL": "WARN", GATE: str(tmp_path / "gate")}
        changes["WORKER_CLASS"] = "fast"
        context = serving({**environ, **changes}, tmp_path, app="tests.load_app:make()", options=options)
        open_now.append(context)
        return context.__enter__()

    yield start
    for context in open_now:
        context.__exit__(None, None, None)


def everybody(served: Served, check: bytes) -> list[Person]:
    """Checks and pages; half of them stay on their connections, half come on a new one each time."""
    asked = ((served.judge, check), (served.site, request("/healthz")))
    stay = [Person(port, text) for port, text in asked for _ in range(6)]
    return stay + [Person(port, text[:-2] + b"Connection: close\r\n\r\n") for port, text in asked for _ in range(6)]


def failures(people: Sequence[Person]) -> list[tuple[int, str]]:
    return [failure for person in people for failure in person.failures]


# --- nonsense, and order


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("fuzz")
    with serving(settings(folder), folder, app="tests.echo_app:make()") as started:
        everything_heard(started)
        yield started


WORDS = (
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b";", b",", b"0", b"\xff", b"\x7f", b"\x0b", b"//", b"#", b"*",
    b"\r\n\r\n", b"0\r\n\r\n", b"5\r\nabcde\r\n", b"GET / HTTP/1.1\r\n", b"HTTP/1.0", b"http://", b"chunked",
    b"Content-Length", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: b.example\r\n",
    b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"Upgrade: websocket\r\n", b"X_A: b\r\n",
)


def mutated(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """``data`` with one or two changes: bytes, words, pieces of itself or of another request."""
    text = bytearray(data)
    for _ in range(chance.randint(1, 2)):
        at = chance.randrange(len(text) + 1)
        upto = min(len(text), at + chance.randint(1, 20))
        from_other = chance.randrange(len(other))
        put = chance.choice((b"", bytes([chance.randrange(256)]), chance.choice(WORDS), bytes(text[at:upto]) * 2,
                             bytes(text[at:upto]).swapcase(), other[from_other:from_other + 30]))
        text[at:chance.choice((at, at, at + 1, upto))] = put
    return bytes(text)


def test_10_000_fuzzed_requests_cost_no_worker_and_none_is_read_otherwise_than_by_gunicorn(
    echo: Served, config: object
) -> None:
    chance = random.Random(20_261_122)
    rows = [row.data for row in read_all() if len(row.data) < 1000]
    good = [row.data for row in read_all() if len(row.data) < 1000 and row.goes_on]
    before = echo.workers()
    answered = refused = 0
    for _ in range(100):
        expected = []
        for number in range(100):
            data = mutated(chance.choice(good), chance.choice(rows), chance) + NEXT
            port = (echo.judge, echo.site)[number % 2]
            answers = exchange(port, data, end=True, bodiless=was_head)
            ours = [heard for answer in answers if (heard := heard_in(answer))]
            theirs = gunicorns_reading(data, config, port)
            assert ours == [as_heard(*both) for both in zip(theirs, ours, strict=False)], data
            assert {answer.status for answer in answers} <= {200, 400, 413, 414, 417, 431, 501, 505}, data
            expected += ours
            answered += len(ours)
            refused += len(answers) - len(ours)
        assert everything_heard(echo) == expected
    assert echo.workers() == before
    assert answered > 3000 and refused > 3000, "the changes leave some of both"


def test_200_pipelined_requests_of_both_lanes_are_answered_in_order(echo: Served) -> None:
    chance = random.Random(4)
    targets = [f"/{number}" + chance.choice(("", "/2")) for number in range(200)]
    sent = b"".join(
        request(target, method="PUT", *["Content-Length: 3"]) + b"abc" if chance.random() < 0.2 else request(target)
        for target in targets
    )
    everything_heard(echo)
    answers = exchange(echo.judge, sent + NEXT)
    heard = [heard_in(answer) or {} for answer in answers]
    assert [told.get("target") or told.get("RAW_URI") for told in heard] == [*targets, "/next"]
    assert len({told["lane"] for told in heard}) == 2
    assert everything_heard(echo) == heard


# --- slow senders


class Crowd:
    """Connections on which a head, or a body, comes byte by byte and never to its end."""

    HEAD = b"GET /" + b"a" * 5000
    BODY = b"PUT /b HTTP/1.1\r\nHost: app.example\r\nContent-Length: 5000\r\n\r\n" + b"b" * 5000
    BYTES_A_SECOND = 1000

    def __init__(self, served: Served) -> None:
        self.all: list[socket.socket] = []
        for number in range(SENDERS):
            port = (served.judge, served.site)[number % 4 // 2]
            self.all.append(socket.create_connection(("127.0.0.1", port), timeout=LIMIT))
        self._texts = [self.HEAD if number % 2 else self.BODY for number in range(SENDERS)]
        self._sent = [0] * SENDERS
        self._next = 0
        self._began = time.monotonic()
        for number, connection in enumerate(self.all):
            begin = 5 if number % 2 else self.BODY.index(b"bbb")
            connection.sendall(self._texts[number][:begin])
            self._sent[number] = begin

    def trickle(self) -> None:
        """Sends as many single bytes as are due now, each on another connection."""
        due = int((time.monotonic() - self._began) * self.BYTES_A_SECOND)
        while self._next < due:
            number = self._next % SENDERS
            at = self._sent[number]
            try:
                self.all[number].sendall(self._texts[number][at:at + 1])
            except OSError:
                pass  # Sent away already; what it was told is read in the end.
            self._sent[number] = at + 1
            self._next += 1

    def leave(self) -> None:
        for connection in self.all:
            connection.close()


def rate(people: Sequence[Person], meanwhile: Callable[[], None], seconds: float = 0.5) -> float:
    """Checks a second that pass."""
    before = sum(person.passed for person in people)
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        ask_all(people)
        meanwhile()
    return (sum(person.passed for person in people) - before) / (time.monotonic() - began)


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard < 4096 and hard > 0 else 4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_500_slow_senders_leave_checks_four_fifths_of_their_rate_and_are_sent_away(
    serve: Callable[..., Served], check: bytes, many_files: None
) -> None:
    served = serve(workers=1)
    people = [Person(served.judge, check) for _ in range(16)]
    rate(people, lambda: None)
    ratios: list[float] = []

    def enough() -> bool:
        # Beside each other, as the machine is not always equally busy.
        without = rate(people, lambda: None)
        crowd = Crowd(served)
        ratios.append(rate(people, crowd.trickle) / without)
        crowd.leave()
        return len(ratios) >= 5 and statistics.median(ratios) >= 0.8

    until(enough, 25)
    assert not failures(people)

    crowd = Crowd(served)
    deadline = time.monotonic() + SECONDS + 5
    waiting = set(crowd.all)
    while waiting:
        assert time.monotonic() < deadline, f"{len(waiting)} slow senders are still there"
        crowd.trickle()
        ask_all(people)
        waiting -= readable(waiting)
    for connection in crowd.all:
        (answer,) = read_answers(b"".join(received(connection)))
        assert answer.status == 408 and answer.headers["connection"] == "close"
    crowd.leave()
    assert not failures(people)


# --- ends and beginnings


def test_a_reload_under_load_fails_no_check(serve: Callable[..., Served], check: bytes) -> None:
    served = serve()
    people = everybody(served, check)
    with going_on(people):
        before = served.workers()
        served.process.send_signal(signal.SIGHUP)
        until(lambda: len(served.workers()) == 2 and not served.workers() & before, LIMIT)
        passed = sum(person.passed for person in people)
        until(lambda: sum(person.passed for person in people) > passed + 100, LIMIT)
    assert not failures(people)


def owners(port: int, own_ports: set[int], workers: set[int]) -> dict[int, int]:
    """Which worker has the other end of which connection, by this side's port (Linux)."""
    inodes = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        here, there, inode = (line.split()[column] for column in (1, 2, 9))
        if int(here[-4:], 16) == port and int(there[-4:], 16) in own_ports:
            inodes[f"socket:[{inode}]"] = int(there[-4:], 16)
    found = {}
    for pid in workers:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            inode = os.readlink(link)
            if inode in inodes:
                found[inodes[inode]] = pid
    return found


def test_a_killed_worker_takes_only_its_own_connections_with_it(serve: Callable[..., Served], check: bytes) -> None:
    served = serve()
    before = served.workers()
    people: list[Person] = []
    owned: dict[int, int] = {}

    def both_have_some() -> bool:
        people.extend(Person(served.judge, check) for _ in range(8))
        ask_all(people)
        owned.update(owners(served.judge, {person.own_port for person in people}, before))
        return len(owned) == len(people) and min(list(owned.values()).count(pid) for pid in before) >= 2

    until(both_have_some, LIMIT)
    victim = min(before)
    with going_on(people):
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(served.workers()) == 2 and victim not in served.workers(), LIMIT)
        passed = sum(person.passed for person in people)
        until(lambda: sum(person.passed for person in people) > passed + 100, LIMIT)
    lost = [port for port, _ in failures(people)]
    assert {owned.get(port) for port in lost} <= {victim}
    assert len(lost) == len(set(lost)) <= list(owned.values()).count(victim)


def test_a_stuck_loop_is_killed_and_replaced(serve: Callable[..., Served], check: bytes) -> None:
    served = serve("--timeout", "3", workers=1)
    (stuck,) = served.workers()
    with socket.create_connection(("127.0.0.1", served.judge), timeout=LIMIT) as connection:
        connection.sendall(request(STUCK))
        assert connection.recv(65536) == b"", "it answers nothing until it is killed"
    until(lambda: len(served.workers()) == 1 and stuck not in served.workers(), LIMIT)
    person = Person(served.judge, check)
    ask_all([person])
    assert person.passed == 1


def test_workers_that_end_after_max_requests_fail_no_check(serve: Callable[..., Served], check: bytes) -> None:
    served = serve("--max-requests", "500")
    people = everybody(served, check)
    before = served.workers()
    with going_on(people):
        until(lambda: len(served.workers()) == 2 and not served.workers() & before, LIMIT)
    assert not failures(people)


def test_what_is_under_way_is_finished_before_the_end(serve: Callable[..., Served], tmp_path: Path) -> None:
    served = serve("--graceful-timeout", "20", workers=1)
    held = socket.create_connection(("127.0.0.1", served.judge), timeout=LIMIT)
    held.sendall(request(HOLD))
    # The worker is at it when it answers who came later.
    assert exchange(served.judge, request("/", close=True))[0].status == 302
    served.process.terminate()

    def nobody_listens() -> bool:
        try:
            socket.create_connection(("127.0.0.1", served.judge), timeout=1).close()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:  # accepted in the moment of the end
            return False
        return False

    until(nobody_listens, LIMIT)
    assert served.process.poll() is None
    (tmp_path / "gate").touch()
    (answer,) = read_answers(b"".join(received(held)))
    held.close()
    assert answer.status == 302 and answer.headers["connection"] == "close"
    assert served.process.wait(LIMIT) == 0


def test_more_work_than_threads_and_queue_hold_is_refused_and_checks_go_on(
    serve: Callable[..., Served], check: bytes, tmp_path: Path
) -> None:
    served = serve("--threads", "2", workers=1)
    person = Person(served.judge, check)
    ask_all([person])
    connections = [socket.create_connection(("127.0.0.1", served.judge), timeout=LIMIT) for _ in range(100)]
    for connection in connections:
        connection.sendall(request(HOLD, close=True))

    def answered() -> set[socket.socket]:
        return readable(connections)

    until(lambda: len(answered()) >= 50, LIMIT)
    for _ in range(100):
        ask_all([person])
    assert person.passed == 101 and not person.failures
    refused = answered()
    for connection in refused:
        (answer,) = read_answers(b"".join(received(connection)))
        assert answer.status == 503 and int(answer.headers["retry-after"]) > 0
    (tmp_path / "gate").touch()
    held = [connection for connection in connections if connection not in refused]
    assert len(held) >= 2
    for connection in held:
        assert read_answers(b"".join(received(connection)))[0].status == 302
    for connection in connections:
        connection.close()
    person.leave()


def statuses(answers: list[Got]) -> list[int]:
    return [answer.status for answer in answers]


def test_h11_32_kb_of_headers_pass_both_lanes_and_larger_ones_are_431(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    served = serve(workers=1)
    (tmp_path / "gate").touch()
    before = served.workers()
    for port, target, status in ((served.judge, "/", 302), (served.judge, HOLD, 302), (served.site, "/healthz", 200)):
        for fields in (["Cookie: a=" + "x" * 32768], [f"X-{number}: {'v' * 300}" for number in range(100)]):
            assert statuses(exchange(port, request(target, *fields, close=True))) == [status]
        for fields in (["Cookie: a=" + "x" * 70_000], [f"X-{number}: {'v' * 7000}" for number in range(30)],
                       [f"X-{number}: v" for number in range(1000)]):
            assert statuses(exchange(port, request(target, *fields))) == [431]
    assert served.workers() == before
