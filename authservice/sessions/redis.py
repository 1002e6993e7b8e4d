"""A store in Redis (6.2 or later) or Valkey: for several hosts.

Owns the client, its time-outs and the form of a value; knows nothing of what the bytes mean.
Every entry is one key with the server's own expiry, so there is nothing to sweep. Built by the
composition root; called by `sessions.live`.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection
from redis.retry import Retry

from authservice.errors import StoreDown
from authservice.sessions import Entry, Forget, Inspection, Label, Labelled, from_microseconds, to_microseconds
from authservice.sessions.tracking import SILENCE, Tracking

KEY_PREFIX = "authservice:"

TIMEOUT = timedelta(seconds=1)
"""For connecting, and again for each answer: a dead server costs a call at most about twice that."""

REST = timedelta(seconds=1)
"""How long a server that did not answer in time is not asked again."""

_DEFAULT_PORT = 6379
_PROBE_LIFETIME_MS = 60_000
_HOST = re.compile(r"[a-z0-9._:%-]+")

# A value is b"1 <version> <expiry in microseconds>\n" and then the entry's bytes. The expiry is
# kept beside Redis's own because the service's clock decides, not the server's.
_FORMAT = b"1"
_VALUE = re.compile(rb"1 (\d{1,19}) (\d{1,17})\n")

# KEYS[1]; ARGV: value with header, its version, milliseconds to live, condition, now (microseconds).
# The version is random, so finding our own means that this very call was carried out before, and
# that its answer was lost with the connection: a repeated call gets the same answer.
_SAVE = """
local version, expires = nil, nil
if ARGV[4] ~= '' then
  local old = redis.call('GET', KEYS[1])
  if old then
    version, expires = string.match(old, '^1 (%d+) (%d+)\\n')
    if not version then return 0 end
    if version == ARGV[2] then return 1 end
    if tonumber(expires) <= tonumber(ARGV[5]) then version = nil end
  end
  if ARGV[4] == 'absent' then
    if version then return 0 end
  elseif version ~= ARGV[4] then
    return 0
  end
end
if tonumber(ARGV[3]) <= 0 then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
end
return 1
"""


class RedisStore:
    """The `Store` contract over one server. Every failure of it is `errors.StoreDown`, and it is
    used again as soon as it answers, or about a second later when it was silent; nothing connects
    before the first call."""

    notices: tuple[str, ...] = ()

    def __init__(
        self,
        address: str,
        *,
        now: Callable[[], datetime],
        username: str = "",
        password: str = "",
        db: int = 0,
        ca_bundle: str = "",
        prefix: str = KEY_PREFIX,
    ) -> None:
        """``address`` is ``host:port`` or a ``redis://``, ``rediss://`` or ``unix://`` URL; what a
        URL says about user, password and database goes before the other arguments. ``ca_bundle``
        is a PEM file for ``rediss://``. ValueError when the address is none of these."""
        url, self._where = _parse(address)
        options: dict[str, Any] = (
            {"ssl_ca_certs": ca_bundle} if ca_bundle and url.startswith("rediss:") else {}
        )
        self._client = redis.Redis.from_url(
            url,
            username=username or None,
            password=password or None,
            db=db,
            protocol=2,
            socket_connect_timeout=TIMEOUT.total_seconds(),
            socket_timeout=TIMEOUT.total_seconds(),
            # A connection that the server closed meanwhile is made anew at once; silence is not
            # waited for twice.
            retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            **options,
        )
        pool = self._client.connection_pool
        try:
            pool.connection_class(**pool.connection_kwargs)
        except TypeError as error:
            raise ValueError("an option in the URL is not known") from error
        self._prefix = prefix
        self._now = now
        self._breaker = _Breaker()

    def load(self, key: str) -> Entry | None:
        with self._answers():
            value = self._client.get(self._prefix + key)
        entry = _read(value) if value else None
        return entry if entry and entry.expires > self._now() else None

    def save(
        self,
        key: str,
        value: bytes,
        expires: datetime,
        *,
        if_absent: bool = False,
        if_version: int | None = None,
        label: Label | None = None,
    ) -> bool:
        if if_absent and if_version is not None:
            raise ValueError("if_absent and if_version exclude each other")
        condition = "absent" if if_absent else "" if if_version is None else str(if_version)
        now, version = self._now(), secrets.randbits(62)
        header = b"%s %d %d\n" % (_FORMAT, version, to_microseconds(expires))
        milliseconds = -((now - expires) // timedelta(milliseconds=1))
        arguments = (header + value, version, milliseconds, condition, to_microseconds(now))
        with self._answers():
            if label is not None and milliseconds > 0:
                for tag in label.tags:
                    self._client.zadd(f"{self._prefix}tag:{tag}", {key: to_microseconds(expires)})
                self._client.set(f"{self._prefix}label:{key}", label.metadata, px=milliseconds)
            return bool(self._client.eval(_SAVE, 1, self._prefix + key, *arguments))

    def delete(self, key: str) -> bool:
        with self._answers():
            value = self._client.getdel(self._prefix + key)
        entry = _read(value) if value else None
        return entry is not None and entry.expires > self._now()

    def find(self, tag: str) -> list[str]:
        with self._answers():
            members = self._client.zrange(f"{self._prefix}tag:{tag}", 0, -1)
        return [key for key in (member.decode() for member in members) if self.label(key)]

    def label(self, key: str) -> Labelled | None:
        entry = self.load(key)
        with self._answers():
            metadata = self._client.get(f"{self._prefix}label:{key}") if entry else None
        return Labelled(key, metadata, entry.expires) if entry and metadata is not None else None

    def labels(self) -> Iterator[Labelled]:
        with self._answers():
            names = list(self._client.scan_iter(f"{self._prefix}label:*"))
        for name in names:
            found = self.label(name.decode().removeprefix(f"{self._prefix}label:"))
            if found:
                yield found

    def inspect(self, *, thorough: bool | None = None) -> Inspection:
        return Inspection({"sessions": sum(1 for _ in self.labels())}, ())

    def sweep(self) -> int:
        return 0

    def ping(self) -> None:
        """Writes a key, so that a replica, a full server or a missing permission shows, and reads."""
        key = self._prefix + "probe"
        with self._answers():
            self._client.set(key, b"1", px=_PROBE_LIFETIME_MS)
            self._client.get(key)

    def watch(self, forget: Forget) -> Tracking:
        return Tracking(self._connection_beside_the_pool, self._prefix, forget, self._where)

    def close(self) -> None:
        self._client.connection_pool.disconnect()

    def _connection_beside_the_pool(self) -> AbstractConnection:
        """To the same server as the same user. Neither waits for the pool's, nor counts for the breaker."""
        pool = self._client.connection_pool
        own = {
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "socket_connect_timeout": SILENCE.total_seconds(),
            "socket_timeout": SILENCE.total_seconds(),
        }
        connection: AbstractConnection = pool.connection_class(**pool.connection_kwargs | own)
        return connection

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Only the error's class is told on: the text may come from the server."""
        if not self._breaker.lets_through():
            raise StoreDown(f"session store {self._where}: did not answer in time a moment ago")
        try:
            yield
        except (redis.TimeoutError, TimeoutError) as error:
            self._breaker.trip()
            raise StoreDown(f"session store {self._where}: {type(error).__name__}") from error
        except (redis.RedisError, OSError, UnicodeError) as error:
            self._breaker.reset()
            raise StoreDown(f"session store {self._where}: {type(error).__name__}") from error
        self._breaker.reset()


class _Breaker:
    """Keeps a server that hangs from holding every thread of this process for the whole time-out.

    After a time-out nobody is let through for `REST`, and then one caller, whose luck decides;
    a server that fails at once needs none of this.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until: float | None = None

    def lets_through(self) -> bool:
        """Whether this caller may ask. The first one after the rest may, and has as long as one call
        can take: were its thread to die, another one would follow."""
        if self._until is None:
            return True
        with self._lock:
            now = time.monotonic()
            if self._until is None:
                return True
            if now < self._until:
                return False
            self._until = now + 2 * TIMEOUT.total_seconds() + REST.total_seconds()
            return True

    def trip(self) -> None:
        with self._lock:
            self._until = time.monotonic() + REST.total_seconds()

    def reset(self) -> None:
        if self._until is not None:
            with self._lock:
                self._until = None


def _parse(address: str) -> tuple[str, str]:
    """The URL to connect to, and the same place without credentials, for the log."""
    url = address if "://" in address else f"redis://{address}"
    parts = urlsplit(url)
    if parts.scheme == "unix" and parts.path:
        return url, f"unix:{parts.path}"
    if parts.scheme not in ("redis", "rediss") or not _HOST.fullmatch(parts.hostname or ""):
        raise ValueError("not host:port, and not a redis://, rediss:// or unix:// URL")
    if not re.fullmatch(r"(/\d*)?", parts.path):
        raise ValueError("what follows the port is not the number of a database")
    return url, f"{parts.hostname}:{parts.port or _DEFAULT_PORT}"  # .port raises ValueError by itself


def _read(value: bytes) -> Entry | None:
    """``None`` for bytes that this store did not write."""
    header = _VALUE.match(value)
    if header is None:
        return None
    return Entry(value[header.end() :], int(header[1]), from_microseconds(int(header[2])))
