"""One connection: requests in, answers out, in order, within limits of time and memory.

`CheckProtocol` asks the fast lane as soon as a request is complete and nothing is pending, and writes
its answer at once; everything else goes through uvicorn's own cycle to the application. What is a
request is decided by `authservice.incoming`, what is answered by `authservice.fastlane`. `Serving` is
what the connections of one process share; its owner is `authservice.worker`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from time import monotonic
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from authservice.bodies import Refusal
from authservice.check import RequestParts
from authservice.fastlane import FastLane
from authservice.incoming import Incoming

log = logging.getLogger(__name__)

HEAD_SECONDS = 10
"""How long a head may take from its first byte; then 408."""

BODY_SECONDS = 30
"""How long a body may take; then 408."""

UNREAD_SECONDS = 30
"""How long a client may leave its answers unread; then the connection is cut."""

LINGER_SECONDS = 2
"""How long, after a refusal, bytes are still thrown away: closing at once could lose the answer."""

LEAVE_SECONDS = 3
"""How long a connection must have been silent to be closed while the worker ends."""

MOST_WAITING = 65536
"""Bytes that may wait behind a pending request before reading is paused."""

TURN_SECONDS = 0.005
"""How long one connection's requests are answered in a row; then the others have their turn."""

MOST_TURNED_AWAY = 100
"""How many of too many connections are told so at once; whoever comes beyond is cut off without a word,
as they, too, hold an open file until they have read it."""

Access = Callable[[str, str, int], None]


class Serving(ServerState):
    """What all connections of one process share.

    ``tick`` counts seconds; time limits are kept by one `sweep` a second over all connections instead
    of a timer for each. ``lane`` is given to connections for whose port ``judges`` is true; whoever
    connects beyond ``most_connections`` is answered 503.
    """

    def __init__(
        self,
        lane: FastLane | None = None,
        judges: Callable[[int], bool] = lambda port: False,
        keep_alive: int = 75,
        access: Access | None = None,
        most_connections: int = 1000,
    ) -> None:
        super().__init__()
        self.lane = lane
        self.judges = judges
        self.keep_alive = keep_alive
        self.access = access
        self.most_connections = most_connections
        self.draining = False
        self.tick = 0
        self.starts: dict[int, bytes] = {}
        self._date = b""
        self.renew_date()

    def renew_date(self) -> None:
        """Makes the ``date`` line of the answers from now on (RFC 9110 §6.6.1)."""
        self._date = formatdate(usegmt=True).encode()
        self.default_headers = [(b"date", self._date)]
        self.starts.clear()

    def start(self, status: int) -> bytes:
        """An answer's first bytes: status line and default headers."""
        start = self.starts[status] = STATUS_LINE[status] + b"date: " + self._date + b"\r\n"
        return start

    def sweep(self) -> None:
        """One second has passed: every connection looks at its time limits."""
        self.tick += 1
        self.renew_date()
        for connection in tuple(self.connections):
            connection.sweep()  # type: ignore[union-attr]


class _LoggedCycle(RequestResponseCycle):
    """A cycle that remembers its status for the access log."""

    status = 500

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await super().send(message)


class CheckProtocol(HttpToolsProtocol):
    """uvicorn's protocol for httptools, with its own way in and a short way out."""

    server_state: Serving
    cycle: Any

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        serving = self.server_state
        port = self.server[1] if self.server else None
        self._lane = serving.lane if port and serving.judges(port) else None
        self._incoming = Incoming(self.client[0] if self.client else None)
        self._pending: RequestParts | None = None
        self._busy = False
        self._resting = False
        self._leaving = False
        self._ended = False
        self._stage = ""
        self._since = serving.tick
        too_many = len(self.connections) - serving.most_connections
        if too_many > MOST_TURNED_AWAY:
            self._busy = self._leaving = True
            transport.abort()
        elif too_many > 0:
            self._refuse(503)

    def data_received(self, data: bytes) -> None:
        if not self._busy:
            parts = self._incoming.whole(data)
            if parts is not None:
                self._serve(parts)
                return
        elif self._leaving:
            return
        self._incoming.feed(data)
        self._advance()

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that has sent everything may still wait for its answers."""
        self._ended = True
        return self._busy and not self._leaving

    def _advance(self) -> None:
        """Serves what is complete, as long as nothing is pending."""
        incoming = self._incoming
        until = monotonic() + TURN_SECONDS
        while not self._busy:
            try:
                parts = incoming.next()
            except Refusal as refusal:
                self._refuse(refusal.status)
                return
            if parts is None:
                self._await_more()
                return
            self._stage = ""
            self._serve(parts)
            if self.transport.is_closing():
                return
            if not self._busy and incoming.waiting and monotonic() >= until:
                self._busy = self._resting = True
                self.loop.call_soon(self._go_on)
        if incoming.waiting > MOST_WAITING:
            self.flow.pause_reading()

    def _go_on(self) -> None:
        """The other connections had their turn."""
        self._resting = False
        self._busy = self.flow.write_paused
        if not self._busy and not self.transport.is_closing():
            self.flow.resume_reading()
            self._advance()

    def _await_more(self) -> None:
        incoming = self._incoming
        if self._ended:
            self.transport.close()
            return
        if incoming.wants_continue:
            incoming.wants_continue = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        stage = "body" if incoming.in_body else "head" if incoming.in_head else ""
        if stage != self._stage:
            self._stage = stage
            self._since = self.server_state.tick

    def _serve(self, parts: RequestParts) -> None:
        """Answers a complete request, or has the application do it."""
        lane = self._lane
        answer = lane.ask(parts) if lane is not None else None
        if answer is None:
            self._hand_on(parts)
            return
        serving = self.server_state
        serving.total_requests += 1
        self._since = serving.tick
        status = answer.status
        start = serving.starts.get(status) or serving.start(status)
        body = answer.body if parts.method != "HEAD" else b""
        incoming = self._incoming
        if incoming.keep_alive and not incoming.http10 and not serving.draining:
            self.transport.write(b"".join((start, answer.head, b"\r\n", body)))
        else:
            goes_on = self._goes_on()
            how = b"connection: keep-alive\r\n\r\n" if goes_on else b"connection: close\r\n\r\n"
            self.transport.write(b"".join((start, answer.head, how, body)))
            if not goes_on and incoming.keep_alive:
                self._leave()
            elif not goes_on:
                self.transport.close()
        if serving.access is not None:
            serving.access(parts.method, parts.target or "", status)

    def _goes_on(self) -> bool:
        """Whether the connection stays open behind the answer to the request just taken."""
        incoming = self._incoming
        return incoming.keep_alive and not (self.server_state.draining and not incoming.waiting)

    def _hand_on(self, parts: RequestParts) -> None:
        """Starts the application with a request that is complete: it never waits for a sender."""
        serving = self.server_state
        incoming = self._incoming
        self._pending = parts
        self._busy = True
        goes_on = self._goes_on()
        default_headers = serving.default_headers
        if goes_on and incoming.http10:
            default_headers = [*default_headers, (b"connection", b"keep-alive")]
        received = asyncio.Event()
        received.set()
        cycle = (RequestResponseCycle if serving.access is None else _LoggedCycle)(
            scope=self._scope(parts),
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=default_headers,
            message_event=received,
            expect_100_continue=False,
            keep_alive=goes_on,
            on_response=self.on_response_complete,
        )
        cycle.body = bytearray(incoming.body)
        cycle.more_body = False
        self.cycle = cycle
        task = self.loop.create_task(cycle.run_asgi(self.app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _scope(self, parts: RequestParts) -> Any:
        return {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.0" if self._incoming.http10 else "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": "http",
            "root_path": "",
            "method": parts.method,
            # The pool makes path and query itself, from the target as it was sent.
            "path": "",
            "query_string": b"",
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in parts.headers.items()],
            "extensions": {"authservice.target": parts.target},
            "state": {},
        }

    def on_response_complete(self) -> None:
        """The application's answer is written: on to what came in meanwhile."""
        serving = self.server_state
        serving.total_requests += 1
        parts, self._pending = self._pending, None
        if serving.access is not None and parts is not None:
            serving.access(parts.method, parts.target or "", self.cycle.status)
        if self.transport.is_closing():
            return
        self._since = serving.tick
        self._busy = self.flow.write_paused
        if not self._busy:
            self.flow.resume_reading()
            self._advance()

    def _refuse(self, status: int) -> None:
        """Answers what is no request, and ends the connection."""
        serving = self.server_state
        text = HTTPStatus(status).phrase.encode() + b"\n"
        self.transport.write(
            b"%scontent-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
            % (serving.starts.get(status) or serving.start(status), len(text), text)
        )
        serving.total_requests += 1
        if serving.access is not None:
            serving.access("-", "-", status)
        self._leave()

    def _leave(self) -> None:
        """Says that nothing more will come, and closes when the client has had time to read what did:
        closing while it still sends could destroy that on its way."""
        self._busy = self._leaving = True
        self._since = self.server_state.tick
        self.flow.resume_reading()
        if self._ended or not self.transport.can_write_eof():
            self.transport.close()
        else:
            self.transport.write_eof()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._busy = True
        self._since = self.server_state.tick

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._resting or self._leaving or self._pending is not None:
            return
        if self._busy and not self.transport.is_closing():
            self._busy = False
            self.flow.resume_reading()
            self._advance()

    def sweep(self) -> None:
        """Once a second: ends what takes too long."""
        silent = self.server_state.tick - self._since
        if self._leaving:
            if silent > LINGER_SECONDS:
                self.transport.abort()
        elif self.flow.write_paused:
            if silent > UNREAD_SECONDS:
                self.transport.abort()
        elif self._pending is not None:
            return
        elif self._stage:
            if silent > (HEAD_SECONDS if self._stage == "head" else BODY_SECONDS):
                self._refuse(408)
        elif silent >= (LEAVE_SECONDS if self.server_state.draining else self.server_state.keep_alive):
            self._leave()

    def shutdown(self) -> None:
        """The worker ends: what is pending is answered and is the last, what is idle may go on a little."""
        # Where the answer's head has left already, nobody would be told: the next answer will say it.
        if self._pending is not None and not self._incoming.waiting and not self.cycle.response_started:
            self.cycle.keep_alive = False
