"""A listener between a gateway and AuthService, which hears every check and every answer.

It passes the bytes on as they come, so nothing about the checks is changed by it. It can also stand
for a service that is down, and for one that takes its time over some requests.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

ALLOWS = (b"200", b"204")


class Tap:
    """Listens on 127.0.0.1 from construction to `stop`. Requests that hold ``slow`` somewhere in
    their head wait until `release`. ``service_port`` may be changed while it is `down`."""

    def __init__(self, service_port: int, slow: bytes) -> None:
        self.service_port = service_port
        self._slow = slow
        self._released = threading.Event()
        self._connections: list[socket.socket] = []
        self._answers: list[bytearray] = []
        self.port = 0
        self.up()

    def up(self) -> None:
        """Accepts connections, again on the same port."""
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=256)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def down(self) -> None:
        """Refuses connections and closes those that there are: nobody is there any more."""
        _close([self._listener, *self._connections])
        self._connections.clear()

    def release(self) -> None:
        self._released.set()

    def stop(self) -> None:
        self.release()
        self.down()

    def heads_of_allows(self) -> list[bytes]:
        """The head of each answer so far that lets a request pass, in lower case."""
        found = []
        for answers in list(self._answers):
            for piece in bytes(answers).split(b"HTTP/1.1 ")[1:]:
                if piece.startswith(ALLOWS):
                    found.append(piece.split(b"\r\n\r\n", 1)[0].lower())
        return found

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                gateway, _ = listener.accept()
                service = socket.create_connection(("127.0.0.1", self.service_port))
            except OSError:
                return
            self._connections += [gateway, service]
            answers = bytearray()
            self._answers.append(answers)
            for way in ((gateway, service, self._wait), (service, gateway, answers.extend)):
                threading.Thread(target=_pass_on, args=way, daemon=True).start()

    def _wait(self, part: bytes) -> None:
        if self._slow in part:
            self._released.wait()


def _pass_on(source: socket.socket, target: socket.socket, first: Callable[[bytes], None]) -> None:
    with suppress(OSError):
        while part := source.recv(65536):
            first(part)
            target.sendall(part)
    _close([source, target])


def _close(sockets: Iterable[socket.socket]) -> None:
    for end in sockets:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in it
        end.close()
