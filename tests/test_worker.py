"""The event loop's side of the service over real sockets: protocol, pool, limits of time and memory.

A lane and an application that only say what they were asked stand in for the judge; the clock that
time limits are measured by is turned by hand. How a whole gunicorn behaves: `test_serving`.
"""

from __future__ import annotations

import asyncio
import gc
import runpy
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop
from uvicorn.config import Config

from authservice import protocol
from authservice.bodies import KEPT_BODY, MOST_BODY
from authservice.check import RequestParts
from authservice.fastlane import Answer
from authservice.judge import parts_of
from authservice.pool import WAITING_PER_THREAD, Pool
from authservice.protocol import CheckProtocol, Serving
from tests.waiting import until

LIMIT = 10


class Lane:
    """Answers every check at once, but for the targets that begin with ``/app``."""

    def __init__(self) -> None:
        self.asked: list[RequestParts] = []

    def ask(self, parts: RequestParts) -> Answer | None:
        self.asked.append(parts)
        if (parts.target or "").startswith("/app"):
            return None
        size = 100_000 if parts.target == "/large" else 2
        return Answer(200, b"x-lane: fast\r\ncontent-length: %d\r\n" % size, b"o" * size)


class Loop:
    """An event loop in a thread of its own, serving one listener."""

    def __init__(self, threads: int = 2, access: protocol.Access | None = None) -> None:
        self.lane = Lane()
        self.environs: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.go_on = threading.Event()
        self.pool = Pool(self.application, threads)
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        config = Config(app=self.pool, http=CheckProtocol, ws="none", lifespan="off", interface="asgi3",
                        log_config=None, proxy_headers=False, server_header=False)
        config.load()

        async def listen() -> tuple[Serving, int]:
            serving = Serving(self.lane, lambda port: True, 75, access)  # type: ignore[arg-type]
            server = await self._loop.create_server(lambda: CheckProtocol(config, serving, {}), "127.0.0.1", 0)
            return serving, server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]

        self.serving, self.port = asyncio.run_coroutine_threadsafe(listen(), self._loop).result(LIMIT)

    def application(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["RAW_URI"].startswith("/app/wait"):
            assert self.go_on.wait(LIMIT)
        self.bodies.append(environ["wsgi.input"].read())
        self.environs.append(environ)
        start_response("200 OK", [("X-Lane", "full"), ("Content-Length", "2")])
        return [b"ok"]

    def on_loop(self, work: Callable[[], Any]) -> Any:
        """The result of ``work``, called on the loop."""
        result: Future[Any] = Future()
        self._loop.call_soon_threadsafe(lambda: result.set_result(work()))
        return result.result(LIMIT)

    def seconds(self, count: int) -> None:
        """Lets the loop believe that so many seconds have passed."""
        for _ in range(count):
            self.on_loop(self.serving.sweep)

    def connected(self, count: int) -> bool:
        """Whether that many connections are open, as the server sees it."""
        return bool(self.on_loop(lambda: len(self.serving.connections)) == count)

    def connection(self) -> Any:
        """The server's side of the one connection."""
        return until(lambda: self.on_loop(lambda: next(iter(self.serving.connections), None)))

    def close(self) -> None:
        self.go_on.set()
        until(lambda: self.on_loop(lambda: not self.serving.tasks))
        self.pool.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT)


@pytest.fixture
def loop() -> Iterator[Loop]:
    served = Loop()
    yield served
    served.close()


class Client:
    """One connection."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=LIMIT)
        self.file = self.socket.makefile("rb")

    def send(self, data: bytes) -> Client:
        self.socket.sendall(data)
        return self

    def answer(self, *, head: bool = False) -> tuple[int, dict[str, str], bytes]:
        """The next answer: status, headers, body."""
        status = int(self.file.readline().split(b" ")[1])
        headers = {}
        while (line := self.file.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name] = value.strip()
        size = int(headers.get("content-length", 0))
        return status, headers, b"" if head else self.file.read(size)

    def ended(self) -> bool:
        """Whether the server has said that nothing more comes."""
        return self.file.read(1) == b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()


def get(target: str = "/", *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = [f"{method} {target} HTTP/{version}", "Host: app.example", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def test_a_check_is_answered_on_the_loop_and_the_connection_goes_on(loop: Loop) -> None:
    with Client(loop.port) as client:
        for _ in range(3):
            status, headers, body = client.send(get("/a?b=%zz")).answer()
            assert (status, body) == (200, b"oo") and headers["x-lane"] == "fast"
            assert headers.keys() == {"date", "x-lane", "content-length"}
        assert client.send(get(method="HEAD")).answer(head=True)[0] == 200
        assert client.send(get(method="BREW")).answer()[0] == 200
    assert loop.lane.asked[0] == RequestParts("GET", "/a?b=%zz", {"host": "app.example"}, "127.0.0.1")
    assert [parts.method for parts in loop.lane.asked[3:]] == ["HEAD", "BREW"]


def test_both_ways_see_the_same_request(loop: Loop) -> None:
    fields = ("Cookie: a=1", "X_Forged: 1", "Cookie: b=2", "X-Latin: \xe9", "Content-Type: text/plain",
              "Content-Length: 3", "Accept:")
    with Client(loop.port) as client:
        client.send(get("/app//x%2Fy;z?q=%41#f", *fields, method="POST") + b"abc")
        assert client.answer()[1]["x-lane"] == "full"
    [environ], [asked] = loop.environs, loop.lane.asked
    assert parts_of(environ) == asked and loop.bodies == [b"abc"]
    assert environ["PATH_INFO"] == "/app//x/y;z" and environ["QUERY_STRING"] == "q=%41"
    assert environ["SERVER_PORT"] == str(loop.port) and environ["SERVER_PROTOCOL"] == "HTTP/1.1"
    assert environ["SCRIPT_NAME"] == "" and environ["wsgi.url_scheme"] == "http"
    assert "HTTP_X_FORGED" not in environ and environ["CONTENT_LENGTH"] == "3"


def test_answers_come_in_the_order_of_requests(loop: Loop) -> None:
    with Client(loop.port) as client:
        client.send(get("/app/wait/1") + get("/2") + get("/app/3") + get("/4") * 200)
        until(lambda: loop.on_loop(lambda: loop.pool.in_flight) == 1)
        assert len(loop.lane.asked) == 1
        loop.go_on.set()
        lanes = [client.answer()[1]["x-lane"] for _ in range(203)]
    assert lanes == ["full", "fast", "full"] + ["fast"] * 200
    assert [parts.target for parts in loop.lane.asked[:4]] == ["/app/wait/1", "/2", "/app/3", "/4"]


def test_what_waits_behind_a_pending_request_is_bounded(loop: Loop) -> None:
    with Client(loop.port) as client:
        client.send(get("/app/wait"))
        until(lambda: loop.on_loop(lambda: loop.pool.in_flight) == 1)
        requests = get("/x", "Cookie: " + "a" * 10_000) * 2000
        sending = threading.Thread(target=client.send, args=(requests,))
        sending.start()
        connection = loop.connection()
        until(lambda: loop.on_loop(lambda: connection.flow.read_paused))
        waiting = loop.on_loop(lambda: connection._incoming.waiting)
        assert waiting <= protocol.MOST_WAITING + 256 * 1024 < len(requests)
        loop.go_on.set()
        assert client.answer()[1]["x-lane"] == "full"
        assert all(client.answer()[1]["x-lane"] == "fast" for _ in range(2000))
        sending.join(LIMIT)


def test_a_client_that_reads_nothing_is_not_written_to_for_ever(loop: Loop) -> None:
    with Client(loop.port) as client:
        client.send(get("/large") * 300)
        connection = loop.connection()
        until(lambda: loop.on_loop(lambda: connection.flow.write_paused))
        assert len(loop.lane.asked) < 300
        loop.seconds(protocol.UNREAD_SECONDS + 1)
        until(lambda: loop.connected(0))


def test_a_slow_reader_gets_everything(loop: Loop) -> None:
    with Client(loop.port) as client:
        client.send(get("/large") * 100)
        connection = loop.connection()
        until(lambda: loop.on_loop(lambda: connection.flow.write_paused))
        assert all(len(client.answer()[2]) == 100_000 for _ in range(100))


def test_bodies_are_read_before_anybody_is_asked(loop: Loop) -> None:
    with Client(loop.port) as client:
        client.send(get("/app", f"Content-Length: {KEPT_BODY * 3}", method="POST") + b"x" * KEPT_BODY)
        loop.on_loop(lambda: None)
        assert not loop.lane.asked
        assert client.send(b"x" * KEPT_BODY * 2).answer()[0] == 200
        assert len(loop.bodies[0]) == KEPT_BODY + 1
        client.send(get("/", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n0\r\n\r\n" + get("/next"))
        assert [client.answer()[0] for _ in range(2)] == [200, 200]
        assert client.send(get("/", f"Content-Length: {MOST_BODY + 1}", method="PUT")).answer()[0] == 413
        assert client.ended()


def test_who_waits_to_be_told_is_told_to_go_on(loop: Loop) -> None:
    with Client(loop.port) as client:
        client.send(get("/", "Content-Length: 3", "Expect: 100-continue", method="POST"))
        assert client.file.readline() == b"HTTP/1.1 100 Continue\r\n" and client.file.readline() == b"\r\n"
        assert client.send(b"abc").answer()[0] == 200
        client.send(get("/", "Content-Length: 99999999", "Expect: 100-continue", method="POST"))
        assert client.answer()[0] == 413


@pytest.mark.parametrize("begun, seconds", [
    (b"GET / HTTP/1.1\r\nHost", protocol.HEAD_SECONDS),
    (get("/", "Content-Length: 3", method="POST") + b"a", protocol.BODY_SECONDS),
])
def test_slow_senders_get_408_and_hold_no_thread(loop: Loop, begun: bytes, seconds: int) -> None:
    with Client(loop.port) as client:
        client.send(begun)
        connection = loop.connection()
        until(lambda: connection._stage)
        loop.seconds(seconds)
        client.send(b"a")
        loop.seconds(1)
        status, headers, _ = client.answer()
        assert status == 408 and headers["connection"] == "close" and client.ended()
        assert loop.on_loop(lambda: loop.pool.in_flight) == 0 and not loop.lane.asked


def test_idle_connections_are_closed_and_busy_ones_are_not(loop: Loop) -> None:
    with Client(loop.port) as idle, Client(loop.port) as busy:
        assert idle.send(get()).answer()[0] == 200
        busy.send(get("/app/wait"))
        until(lambda: loop.on_loop(lambda: loop.pool.in_flight) == 1)
        loop.seconds(74)
        assert loop.connected(2)
        loop.seconds(1)
        assert idle.ended()
        loop.seconds(200)
        loop.go_on.set()
        assert busy.answer()[0] == 200


def test_what_is_refused_is_read_to_its_end_for_a_while(loop: Loop) -> None:
    with Client(loop.port) as client:
        client.send(b"GET / HTTP/1.1\r\nX: " + b"y" * 400_000)
        assert client.answer()[0] == 431 and client.ended()
        client.send(b"y" * 400_000)
        loop.seconds(protocol.LINGER_SECONDS + 1)
        until(lambda: loop.connected(0))


def test_who_has_sent_everything_still_gets_the_answers(loop: Loop) -> None:
    with Client(loop.port) as client:
        client.send(get("/app/wait") + get("/2"))
        client.socket.shutdown(socket.SHUT_WR)
        until(lambda: loop.on_loop(lambda: loop.pool.in_flight) == 1)
        loop.go_on.set()
        assert [client.answer()[1]["x-lane"] for _ in range(2)] == ["full", "fast"]
        assert client.ended()


@pytest.mark.parametrize("target", ["/", "/app"])
def test_old_clients_stay_connected_only_when_they_ask(loop: Loop, target: str) -> None:
    with Client(loop.port) as client:
        for _ in range(2):
            client.send(get(target, "Connection: keep-alive", version="1.0"))
            assert client.answer()[1]["connection"] == "keep-alive"
        assert client.send(get(target, version="1.0")).answer()[1]["connection"] == "close"
        assert client.ended()


@pytest.mark.parametrize("target", ["/", "/app"])
def test_while_the_worker_ends_each_answer_is_the_last(loop: Loop, target: str) -> None:
    with Client(loop.port) as asking, Client(loop.port) as idle:
        assert idle.send(get()).answer()[0] == 200
        loop.on_loop(lambda: setattr(loop.serving, "draining", True))
        status, headers, _ = asking.send(get(target)).answer()
        assert status == 200 and headers["connection"] == "close" and asking.ended()
        assert loop.connected(2) or loop.connected(1)
        loop.seconds(protocol.LEAVE_SECONDS)
        assert idle.ended()


def test_a_full_queue_is_told_to_come_back(loop: Loop) -> None:
    room = 2 * (1 + WAITING_PER_THREAD)
    clients = [Client(loop.port).send(get("/app/wait")) for _ in range(room)]
    until(lambda: loop.on_loop(lambda: loop.pool.in_flight) == room)
    with Client(loop.port) as late:
        status, headers, _ = late.send(get("/app/late")).answer()
        assert status == 503 and int(headers["retry-after"]) > 0
        assert late.send(get("/")).answer()[0] == 200, "what needs no thread is answered"
        loop.go_on.set()
        assert [client.answer()[0] for client in clients] == [200] * room
        assert late.send(get("/app/late")).answer()[0] == 200
    for client in clients:
        client.__exit__()


def test_more_connections_than_there_is_room_for_are_told_so(loop: Loop) -> None:
    loop.serving.most_connections = 1
    with Client(loop.port) as first, Client(loop.port) as second:
        assert first.send(get()).answer()[0] == 200
        assert second.answer()[0] == 503 and second.ended()
        assert first.send(get()).answer()[0] == 200


def test_far_too_many_connections_hold_no_open_files(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MOST_TURNED_AWAY", 1)
    loop.serving.most_connections = 1
    with Client(loop.port) as first, Client(loop.port) as second, Client(loop.port) as third:
        assert second.answer()[0] == 503
        assert third.ended(), "nothing is said"
        assert loop.connected(2) and first.send(get()).answer()[0] == 200


def test_many_requests_of_one_connection_let_others_have_their_turn(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = loop.lane.ask

    def slow(parts: RequestParts) -> Answer | None:
        time.sleep(0.002)
        return ask(parts)

    monkeypatch.setattr(loop.lane, "ask", slow)
    with Client(loop.port) as greedy, Client(loop.port) as modest:
        greedy.send(get("/many") * 1000)
        until(lambda: loop.lane.asked)
        assert modest.send(get("/one")).answer()[0] == 200
        assert len(loop.lane.asked) < 900
        assert all(greedy.answer()[0] == 200 for _ in range(1000))
    assert sum(parts.target == "/many" for parts in loop.lane.asked) == 1000


def test_the_access_log_has_every_request_and_no_query() -> None:
    lines: list[tuple[str, str, int]] = []
    loop = Loop(access=lambda *line: lines.append(line))
    with Client(loop.port) as client:
        client.send(get("/a?b") + get("/app?c") + b"nonsense\r\n\r\n")
        assert [client.answer()[0] for _ in range(3)] == [200, 200, 400]
    loop.close()
    assert lines == [("GET", "/a?b", 200), ("GET", "/app?c", 200), ("-", "-", 400)]
    assert loop.serving.total_requests == 3


def test_full_collections_leave_the_application_itself_out(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    configuration = runpy.run_module("authservice.gunicorn_conf")
    try:
        configuration["post_worker_init"](SimpleNamespace(numbers=None))
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()
