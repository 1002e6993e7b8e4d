"""The limits of one exchange, kept where the bytes pass: at the sockets under urllib3.

requests and urllib3 know time-outs for single reads only. Here each connect, send and read gets
what is left of the time for the whole exchange, reading ends at a number of bytes, and a
connection is made only to addresses that the caller allows. Used by `authservice.outbound` alone.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

_HEADER_ALLOWANCE = 256 * 1024


class OutboundFault(Exception):
    """No usable answer came. The text names the address, without its query, and the fault."""


class NoAnswer(OutboundFault):
    """Nothing complete came in time: no connection, a time-out, broken off in the middle."""


class BadAnswer(OutboundFault):
    """Something is there that must not be used: a wrong certificate, no HTTP, a bad address."""


class TooLarge(BadAnswer):
    """The answer is larger than anybody needs."""


class Zone(IntEnum):
    """How far inside the network an address lies."""

    PUBLIC = 0
    PRIVATE = 1
    LOOPBACK = 2
    LINK_LOCAL = 3

    @classmethod
    def of(cls, address: str) -> Zone:
        """The zone of an IP address. ValueError when it is none."""
        ip = ipaddress.ip_address(address)
        ip = getattr(ip, "ipv4_mapped", None) or ip
        if ip.is_link_local:
            return cls.LINK_LOCAL
        if ip.is_loopback or ip.is_unspecified:
            return cls.LOOPBACK
        return cls.PUBLIC if ip.is_global else cls.PRIVATE


@dataclass(slots=True)
class Exchange:
    """The limits of one request and its answer."""

    deadline: float
    bytes_left: int
    farthest: Zone

    def remaining(self) -> float:
        """Seconds left, more than 0. Raises TimeoutError when there are none."""
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("the time for the whole exchange is over")
        return seconds


# urllib3 makes and reuses connections out of our sight; this is how the limits of the exchange
# that is going on in this thread find the socket.
_current: ContextVar[Exchange] = ContextVar("exchange")


@contextmanager
def exchanging(seconds: float, max_bytes: int, farthest: Zone) -> Iterator[Exchange]:
    exchange = Exchange(time.monotonic() + seconds, max_bytes + _HEADER_ALLOWANCE, farthest)
    token = _current.set(exchange)
    try:
        yield exchange
    finally:
        _current.reset(token)


class _Metered(io.RawIOBase):
    """Reads from a socket within the exchange's limits, however small the pieces come."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        exchange = _current.get()
        if exchange.bytes_left <= 0:
            raise TooLarge("too many bytes in headers and body")
        self._sock.settimeout(exchange.remaining())
        count = self._raw.readinto(buffer)
        exchange.bytes_left -= count or 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _MeteredResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        raw = self.fp.detach()  # type: ignore[attr-defined]
        self.fp = io.BufferedReader(_Metered(raw, sock))


class _Limited:
    """Mixed into urllib3's connections: connect and receive within the current exchange. Sending
    needs nothing: urllib3 gives a whole request the time-out of the call."""

    response_class = _MeteredResponse

    def _new_conn(self) -> socket.socket:
        try:
            return connected(self._dns_host, self.port, bool(self.proxy))  # type: ignore[attr-defined]
        except TimeoutError as error:
            raise ConnectTimeoutError(self, "no connection in time") from error  # type: ignore[arg-type]
        except OSError as error:
            raise NewConnectionError(self, "no connection") from error  # type: ignore[arg-type]


class _Connection(_Limited, HTTPConnection):
    pass


class _TlsConnection(_Limited, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


POOLS: dict[str, type] = {"http": _Pool, "https": _TlsPool}
"""What urllib3's pool managers make their pools from, by scheme."""


def connected(host: str, port: int, to_proxy: bool = False) -> socket.socket:
    """A connection to the first address that answers. Each gets its share of the time left, so
    that a black hole in front does not use it up."""
    exchange = _current.get()
    found = addresses_of(host, port, exchange.remaining())
    if not to_proxy:
        found = [(family, address) for family, address in found if Zone.of(address[0]) <= exchange.farthest]
        if not found:
            raise BadAnswer("the name leads to an address inside the network")
    failure: OSError = OSError("no address")
    for index, (family, address) in enumerate(found):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(exchange.remaining() / (len(found) - index))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect(address)
            sock.settimeout(exchange.remaining())
            return sock
        except OSError as error:
            sock.close()
            failure = error
    raise failure


Address = tuple[int, tuple[Any, ...]]


def addresses_of(host: str, port: int, seconds: float) -> list[Address]:
    """What a name stands for. The system's resolver knows no time limit, so it works in a thread
    that is left behind when it takes longer than ``seconds``. Raises OSError."""
    try:
        return _resolve(host, port, socket.AI_NUMERICHOST)
    except OSError:
        pass
    answer: queue.SimpleQueue[list[Address] | OSError] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answer.put(_resolve(host, port, 0))
        except OSError as error:
            answer.put(error)

    threading.Thread(target=look_up, name="name-look-up", daemon=True).start()
    try:
        found = answer.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError("no answer to the name look-up in time") from None
    if isinstance(found, OSError):
        raise found
    return found


def _resolve(host: str, port: int, flags: int) -> list[Address]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError:
        raise OSError("no host name") from None
    return [(entry[0], entry[4]) for entry in found]
