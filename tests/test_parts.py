"""One raw request, three readers: what the event loop hands to the fast lane, what the full path behind it
makes of the same bytes, and what gunicorn's own workers would have made of them are the same question.

The bytes are generated and come in any pieces. What is refused, and how, is `test_smuggling`'s subject.
"""

from __future__ import annotations

import asyncio
import os
import runpy
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from gunicorn.config import Config as GunicornConfig
from gunicorn.http import RequestParser
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.http.wsgi import create
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st
from uvicorn.config import Config

from authservice.check import RequestParts
from authservice.fastlane import Answer, FastLane
from authservice.judge import parts_of
from authservice.pool import Pool
from authservice.protocol import CheckProtocol, Serving

PORT = 8080
PEER = ("192.0.2.7", 50000)


class Lane:
    """Hears what the lane is asked, and answers it or not."""

    def __init__(self, answers: bool) -> None:
        self.asked: list[RequestParts] = []
        self._answer = Answer(204, b"", b"") if answers else None

    def ask(self, parts: RequestParts) -> Answer | None:
        self.asked.append(parts)
        return self._answer


class Wire(asyncio.Transport):
    """A connection's other end; what is written to it goes nowhere."""

    def __init__(self) -> None:
        super().__init__({"peername": PEER, "sockname": ("127.0.0.1", PORT)})
        self._closing = False

    def write(self, data: Any) -> None:
        pass

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True

    abort = close

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


class Readers:
    """The three of them."""

    def __init__(self, gunicorn: GunicornConfig) -> None:
        self._gunicorn = gunicorn
        self._loop = asyncio.new_event_loop()
        # A thread of its own: in the tests' thread another loop (a browser's) may be running.
        self._thread = ThreadPoolExecutor(1)
        self._environs: list[dict[str, Any]] = []
        self._pool = Pool(self._application, 1)
        self._config = Config(self._pool, interface="asgi3", lifespan="off", ws="none", log_config=None)
        self._config.load()

    def close(self) -> None:
        self._pool.close()
        self._thread.shutdown()
        self._loop.close()

    def _application(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self._environs.append(environ)
        start_response("204 No Content", [])
        return []

    def on_the_loop(self, pieces: list[bytes]) -> list[RequestParts]:
        """What the fast lane is asked, and answers."""
        lane = Lane(answers=True)
        self._run(self._receive(lane, pieces))
        return lane.asked

    def behind_the_loop(self, pieces: list[bytes]) -> tuple[list[RequestParts], list[RequestParts]]:
        """What the lane is asked and leaves, and what the application makes of that."""
        lane = Lane(answers=False)
        self._environs.clear()
        self._run(self._receive(lane, pieces))
        return lane.asked, [parts_of(environ) for environ in self._environs]

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self._thread.submit(self._loop.run_until_complete, work).result()

    async def _receive(self, lane: Lane, pieces: list[bytes]) -> None:
        serving = Serving(cast(FastLane, lane), lambda port: port == PORT)
        protocol = CheckProtocol(self._config, serving, {}, asyncio.get_running_loop())
        wire = Wire()
        protocol.connection_made(wire)
        for piece in pieces:
            if not wire.is_closing():
                protocol.data_received(piece)
            while serving.tasks or protocol._resting:
                await asyncio.gather(*serving.tasks)
                await asyncio.sleep(0)  # their callbacks, and on a busy machine another turn
        protocol.connection_lost(None)

    def in_gunicorn(self, data: bytes) -> list[RequestParts]:
        """As gunicorn's own workers do it: parser, environ, and then as the full path."""
        seen = []
        try:
            for message in RequestParser(self._gunicorn, iter([data]), PEER):
                environ = create(message, Silent(), PEER, ("127.0.0.1", PORT), self._gunicorn)[1]
                seen.append(parts_of(environ))
                message.body.read()
        except (ParseException, NoMoreData, StopIteration):
            pass
        return seen


class Silent:
    """Where gunicorn would write its interim answers."""

    def send(self, data: bytes) -> None:
        assert data.startswith(b"HTTP/1.1 100 ")


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Readers]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "OIDC_PROVIDER": "https://id.example", "CLIENT_ID": "c", "CLIENT_SECRET": "s" * 20,
            "AUTHSERVICE_URL_PREFIX": "/authservice/",
            "SESSION_STORE_PATH": os.fspath(tmp_path_factory.mktemp("parts") / "data.db"),
        }.items():
            patch.setenv(name, value)
        ours = runpy.run_path(str(Path(__file__).parent.parent / "gunicorn.conf.py"))
    config = GunicornConfig()
    for name in config.settings.keys() & ours.keys():
        config.set(name, ours[name])
    readers = Readers(config)
    try:
        yield readers
    finally:
        readers.close()


# --- what is sent ------------------------------------------------------------------------------

METHODS = [b"GET", b"GET", b"GET", b"HEAD", b"POST", b"OPTIONS", b"PROPFIND", b"BREW", b"X-1Y", b"CONNECT", b"get"]
TARGETS = [b"/", b"/app?q=1&next=%2Fy", b"//evil.example/x", b"/a/../b;c\\d", b"/%00", b"/?", b"/x#y", b"*",
           b"http://app.example/x", b"http://[x/", b"/\xff", b"/" + b"x" * 3000, b"/[]{}|^`\"<>", b"app.example:443"]
NAMES = [b"Cookie", b"Cookie", b"cookie", b"COOKIE", b"Accept", b"X-Forwarded-For", b"x-forwarded-for", b"X-Forwarded-Uri",
         b"X_Forwarded_Uri", b"X-Original-Method", b"Authorization", b"Content-Type", b"content-type", b"X-Request-Id",
         b"Kubeflow-Userid", b"KUBEFLOW_USERID", b"Forwarded", b"Connection", b"Proxy", b"X-A!#$%&'*+.^`|~", b"Upgrade",
         b"Expect", b"Te", b"Script-Name", b"SCRIPT_NAME", b"Remote-User", b"Path-Info", b"X-Forwarded-Proto", b"Origin"]
VALUES = [b"", b" ", b"a=1; b=2", b"s=\xc3\xbc\xff", b"\t x \t", b"a,b", b"keep-alive", b"close", b"text/plain", b"https",
          b"Bearer x", b"a\x80b", b"100-continue", b"x" * 2000, b"a:b", b"upgrade", b"websocket", b'"q\\"']
HOSTS = [b"app.example", b"app.example", b"App.Example:8443", b"[::1]", b""]

lines = st.tuples(
    st.sampled_from(NAMES),
    st.sampled_from([b": ", b":", b":\t", b":  "]),
    st.one_of(st.sampled_from(VALUES), st.sampled_from(VALUES), st.binary(max_size=6)),
).map(b"".join)
bodies = st.sampled_from([
    ([], b""), ([], b""), ([], b""), ([b"Content-Length: 0"], b""), ([b"Content-Length: 5"], b"a\r\n\r\n"),
    ([b"Transfer-Encoding: chunked"], b"3\r\nabc\r\n0\r\n\r\n"), ([b"content-length:  2 "], b"ab"),
])


@st.composite
def requests(draw: Callable[..., Any]) -> bytes:
    more, body = draw(bodies)
    host = [b"Host: " + draw(st.sampled_from(HOSTS))]
    fields = [*host, *draw(st.lists(lines, max_size=6)), *more]
    order = draw(st.permutations(range(len(fields))))
    line = b" ".join((draw(st.sampled_from(METHODS)), draw(st.sampled_from(TARGETS)), b"HTTP/1.1"))
    return b"\r\n".join((line, *(fields[place] for place in order), b"", b"")) + body


sent = st.lists(requests(), min_size=1, max_size=3)


def check(readers: Readers, messages: list[bytes], step: int) -> int:
    """One connection; how many requests came through."""
    data = b"".join(messages)
    # Either each request arrives by itself, as from a gateway, or all of them in pieces of one length.
    pieces = [data[start : start + step] for start in range(0, len(data), step)] if step else messages
    asked = readers.on_the_loop(pieces)
    left, behind = readers.behind_the_loop(pieces)
    theirs = readers.in_gunicorn(data)
    assert left == asked, "the pieces' way changed the question"
    assert behind == asked, "the full path behind the loop hears another question than the lane"
    assert theirs[: len(asked)] == asked, "gunicorn reads another question"
    return len(asked)


def tell(readers: Readers, examples: int, number: int) -> None:
    came = []

    @seed(number)
    @settings(max_examples=examples, database=None, deadline=None, phases=[Phase.generate, Phase.shrink])
    @given(sent, st.sampled_from([0, 0, 7, 1000]))
    def the_readers_agree(messages: list[bytes], step: int) -> None:
        came.append(check(readers, messages, step))

    the_readers_agree()
    assert sum(came) >= len(came) / 3, "most of what is sent is refused"


def test_three_readers_of_the_same_bytes(readers: Readers) -> None:
    tell(readers, 300, 1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
def test_three_readers_of_the_same_bytes_at_length(readers: Readers, number: int) -> None:
    tell(readers, 2000, number)
