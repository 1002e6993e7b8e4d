"""Server-assisted client-side caching: which keys of one Redis server changed, and is that all.

Owns one connection beside the store's, the thread that reads it, and the proof that it lives; keeps
no copies and reads no keys. The server names changed keys on a channel, in order with its other
answers, so a PONG says that whatever happened before its PING has been told. Made by
`sessions.redis`, one for each server that holds entries.
"""

from __future__ import annotations

import logging
import math
import os
import random
import threading
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from time import monotonic
from typing import Any

import redis
from redis.connection import AbstractConnection

from authservice.logs import Event
from authservice.sessions import Forget

PROOF_LASTS = timedelta(milliseconds=45)
"""How long a PONG proves that nothing is missing, from when its PING was sent. An ended session is
to be refused within 50 ms, and the answer itself takes time too."""

PING_EVERY = timedelta(milliseconds=25)
"""Leaves 20 ms for the round trip: where the server is farther away, some checks read the store."""

SILENCE = timedelta(seconds=1)
"""For connecting, and again for each answer; then the connection is given up and made anew."""

REST_AFTER_REFUSAL = timedelta(seconds=10)

REST_AFTER_FAULT = timedelta(seconds=5)
"""After something that nobody foresaw: what is watched goes unwatched meanwhile, but not for good."""

_SHORTEST_REST, _LONGEST_REST = 0.05, 1.0
_PROVEN_FOR = PROOF_LASTS.total_seconds()
_BETWEEN_PINGS = PING_EVERY.total_seconds()

_CHANNEL = "__redis__:invalidate"
_REFUSED = (
    "Redis at {} does not let the service follow changes ({}), so every check reads the session store. "
    "The user needs +ping +client|id +client|tracking +subscribe &" + _CHANNEL
)

log = logging.getLogger(__name__)


class Tracking:
    """The `Watch` over those keys of one server that begin with a prefix.

    A stamp stands for one connection. When a connection is lost nothing is known, and before
    another one counts everything is forgotten; so `holds` is always ``False``. Redis tells nothing of
    SWAPDB, and of an expiry only when it removes the entry: copies keep their own.
    """

    def __init__(self, connect: Callable[[], AbstractConnection], prefix: str, forget: Forget, where: str) -> None:
        """``connect`` makes a connection, not yet opened, that speaks RESP2 and retries nothing; it
        is called in the watch's own thread and may wait. ``where`` names the server in the log."""
        self._make_run = lambda: _Run(connect, prefix.encode(), forget, where)
        self._run = self._make_run()

    def stamp(self) -> object | None:
        connection, proven = self._run.known
        return connection if monotonic() - proven < _PROVEN_FOR else None

    def holds(self, key: str, version: int) -> bool:
        return False

    def start(self) -> None:
        self.stop()
        threading.Thread(target=self._run.follow, name="session-watch", daemon=True).start()

    def stop(self) -> None:
        """Waits for nobody: the thread ends a moment later, and nothing that it still learns counts."""
        ended, self._run = self._run, self._make_run()
        ended.end()


class _Run:
    """What one thread does between `Tracking.start` and `Tracking.stop`. Shares no lock with
    anybody, since a fork may happen while the thread holds it."""

    def __init__(
        self, connect: Callable[[], AbstractConnection], prefix: bytes, forget: Forget, where: str
    ) -> None:
        self._connect = connect
        self._prefix = prefix
        self._forget = forget
        self._where = where
        self._process = os.getpid()
        self._stopping = threading.Event()
        self._connection: AbstractConnection | None = None
        self._failures = 0
        self._told = False
        self.known: tuple[object | None, float] = _NOTHING
        """What stands for the connection, and the moment up to which everything has been told. One
        value, so that a reader never sees half of a change."""

    def end(self) -> None:
        """The event is not touched in a forked child: the thread may have held its lock at that
        moment. There is no thread there, only the parent's connection, which must not stay open."""
        if os.getpid() == self._process:
            self._stopping.set()
        else:
            self._hang_up()

    def follow(self) -> None:
        """Follows one connection after the other until `end`."""
        while not self._stopping.is_set():
            rest = 0.0
            try:
                self._follow_one()
            except _Refused as refused:
                rest = REST_AFTER_REFUSAL.total_seconds()
                self._tell(refused)
            # A ValueError is what redis-py makes of a length that is none, and of a host's name that is none.
            except (redis.RedisError, OSError, ValueError) as error:
                rest = min(_LONGEST_REST, _SHORTEST_REST * 2.0**self._failures) * random.uniform(0.5, 1.0)
                self._failures = min(self._failures + 1, 10)
                # The text may come from the server, or name the user.
                log.debug("not following the session store %s: %s", self._where, type(error).__name__)
            except Exception as fault:
                rest = REST_AFTER_FAULT.total_seconds()
                log.error(Event.UNEXPECTED.value, exc_info=fault)
            finally:
                self.known = _NOTHING
                self._hang_up()
            self._stopping.wait(rest)

    def _follow_one(self) -> None:
        connection = self._connection = self._connect()
        connection.connect()
        _subscribe(connection, self._prefix)
        self._forget(None)
        ping, epoch, due = connection.pack_command("PING"), object(), monotonic()
        unanswered: deque[float] = deque()
        while not self._stopping.is_set():
            now = monotonic()
            if now >= due:
                unanswered.append(now)
                connection.send_packed_command(ping, check_health=False)
                due = now + _BETWEEN_PINGS
            if connection.can_read(max(0.0, due - monotonic())):
                self._hear(connection.read_response(disable_decoding=True), epoch, unanswered)
            elif unanswered and monotonic() - unanswered[0] > SILENCE.total_seconds():
                raise redis.TimeoutError("no PONG")

    def _hear(self, message: Any, epoch: object, unanswered: deque[float]) -> None:
        match message:
            case [b"message", b"__redis__:invalidate", None]:
                self._forget(None)
            case [b"message", b"__redis__:invalidate", [*names]]:
                for name in names:
                    # What is not UTF-8 is no key of ours, and what is put in its place neither.
                    self._forget(name.removeprefix(self._prefix).decode(errors="replace"))
            case [b"pong", _] if unanswered:
                self.known = (epoch, unanswered.popleft())
                self._failures, self._told = 0, False
            case _:
                raise redis.InvalidResponse("neither a change nor a PONG that is due")

    def _tell(self, refused: _Refused) -> None:
        """Once, and again only when it had worked in between."""
        if not self._told:
            self._told = True
            note = _REFUSED.format(self._where, type(refused.__cause__).__name__)
            log.warning(Event.INVALIDATION_REFUSED.value, extra={"note": note})

    def _hang_up(self) -> None:
        """In a forked child too: redis-py then closes the descriptor only, and tells the server nothing."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()


class _Refused(redis.RedisError):
    """The server answered, and will not let us follow."""


_NOTHING: tuple[object | None, float] = (None, -math.inf)


def _subscribe(connection: AbstractConnection, prefix: bytes) -> None:
    """Turns tracking on, in the form that RESP2 knows: the connection redirects to itself. Nothing
    is told before the subscription stands. Raises `_Refused` when one of the steps is not allowed.
    https://redis.io/docs/latest/develop/reference/client-side-caching/"""

    def ask(*command: str | bytes | int) -> Any:
        connection.send_command(*command, check_health=False)
        return connection.read_response(disable_decoding=True)

    try:
        ask("PING")
        number = ask("CLIENT", "ID")
        ask("CLIENT", "TRACKING", "ON", "REDIRECT", number, "BCAST", "PREFIX", prefix)
        ask("SUBSCRIBE", _CHANNEL)
    except redis.ResponseError as error:
        raise _Refused from error
