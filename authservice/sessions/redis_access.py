"""How one Redis server is reached: its address, who we are there, TLS, and how long a call may wait.

Owns the forms of an address, the clients and lone connections made from it, and the gate in front of
each server, which keeps one that hangs from holding every thread. Which servers there are is
`sessions.redis_servers`' question; what is asked of them is `sessions.redis`'.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection
from redis.retry import Retry

from authservice.errors import StoreDown

TIMEOUT = timedelta(seconds=1)
"""For connecting, and again for each answer. Only one caller at a time waits so long for a server."""

BRIEF = timedelta(milliseconds=200)
"""The same for those who ask while another one is waiting already."""

REST = timedelta(seconds=1)
"""How long a server that did not answer in time is not asked again."""

_DEFAULT_PORT = 6379
_HOST = re.compile(r"[a-z0-9._:%-]+")


class Place(NamedTuple):
    """Where a server listens; without a port, ``host`` is the path of a Unix socket."""

    host: str
    port: int

    def __str__(self) -> str:
        if not self.port:
            return f"unix:{self.host}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address. ``before`` and ``after`` are what a URL says beside the places: scheme and
    credentials, and database and options."""

    before: str
    places: tuple[Place, ...]
    path: str
    options: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """``host:port`` or a ``redis://``, ``rediss://`` or ``unix://`` URL; after the first host more
        of them may follow, separated by commas. ValueError for anything else."""
        url = text if "://" in text else f"redis://{text}"
        parts = urlsplit(url)
        options = f"?{parts.query}" if parts.query else ""
        if parts.scheme == "unix" and parts.path:
            return cls(f"unix://{parts.netloc}", (Place(parts.path, 0),), "", options)
        if parts.scheme not in ("redis", "rediss"):
            raise ValueError("not host:port, and not a redis://, rediss:// or unix:// URL")
        if not re.fullmatch(r"(/\d*)?", parts.path):
            raise ValueError("what follows the port is not the number of a database")
        credentials, at, hosts = parts.netloc.rpartition("@")
        places = tuple(_place(host) for host in hosts.split(","))
        return cls(f"{parts.scheme}://{credentials}{at}", places, parts.path, options)

    @property
    def encrypted(self) -> bool:
        return self.before.startswith("rediss:")

    def url(self, place: Place) -> str:
        return f"{self.before}{place if place.port else place.host}{self.path}{self.options}"

    def without_credentials(self) -> Address:
        return Address(self.before.partition("://")[0] + "://", self.places, "", self.options)

    def __str__(self) -> str:
        """The places, for the log."""
        return ",".join(map(str, self.places))


def _place(text: str) -> Place:
    parts = urlsplit(f"redis://{text}")
    if not _HOST.fullmatch(parts.hostname or ""):
        raise ValueError("not host:port, and not a redis://, rediss:// or unix:// URL")
    return Place(parts.hostname or "", parts.port or _DEFAULT_PORT)  # .port raises ValueError by itself


class Gate:
    """Keeps a server that hangs from holding every thread of this process for the whole time-out.

    One caller at a time is patient, those beside it are not; after a time-out nobody is let through
    for ``rest``, and then one, whose luck decides. A server that fails at once needs none of this.
    """

    def __init__(
        self, where: str, patient: timedelta = TIMEOUT, brief: timedelta = BRIEF, rest: timedelta = REST
    ) -> None:
        self._where = where
        self._patient, self._brief, self._rest = (each.total_seconds() for each in (patient, brief, rest))
        self.begin_anew()

    def begin_anew(self) -> None:
        """As in the beginning, also after a fork in the middle of another thread's call."""
        self._lock = threading.Lock()
        self._until: float | None = None
        self._waiting: object | None = None
        self._mine = threading.local()

    def patience(self) -> float:
        """How many seconds this thread waits for an answer."""
        return self._patient if getattr(self._mine, "patient", False) else self._brief

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Around one call. Raises `errors.StoreDown` when nobody is let through."""
        call = object()
        self._mine.patient = self._enter(call)
        silent = False
        try:
            yield
        except (redis.TimeoutError, TimeoutError):
            silent = True
            raise
        finally:
            self._mine.patient = False
            if silent or self._until is not None or self._waiting is call:
                with self._lock:
                    self._until = time.monotonic() + self._rest if silent else None
                    if self._waiting is call:
                        self._waiting = None

    def _enter(self, call: object) -> bool:
        with self._lock:
            if self._until is not None:
                now = time.monotonic()
                if now < self._until:
                    raise StoreDown(f"session store {self._where}: did not answer in time a moment ago")
                # The first one after the rest has as long as a call can take: were its thread to die,
                # another one would follow.
                self._until = now + 2 * self._patient + self._rest
                self._waiting = call
            elif self._waiting is None:
                self._waiting = call
            return self._waiting is call


class Names:
    """Looks names up without ever waiting longer than asked: the system's resolver knows no time-out."""

    def __init__(self) -> None:
        self._running: dict[tuple[int, str], _LookUp] = {}

    def look_up(self, host: str, seconds: float) -> tuple[str, ...]:
        """The host's addresses, in the system's order. Raises OSError when it has none, and
        redis.TimeoutError when nobody says in time."""
        if _is_address(host):
            return (host,)
        key = (os.getpid(), host)  # a thread does not survive a fork
        ours = _LookUp(host, lambda: self._running.pop(key, None))
        look_up = self._running.setdefault(key, ours)
        if look_up is ours:
            ours.start()
        if not look_up.done.wait(seconds):
            raise redis.TimeoutError("the name was not found in time")
        if look_up.failure:
            raise look_up.failure
        return look_up.addresses


class _LookUp:
    def __init__(self, host: str, finished: Callable[[], object]) -> None:
        self._host = host
        self._finished = finished
        self.done = threading.Event()
        self.addresses: tuple[str, ...] = ()
        self.failure: OSError | None = None

    def start(self) -> None:
        try:
            threading.Thread(target=self._run, name="redis-name", daemon=True).start()
        except RuntimeError:  # there are as many as the system allows
            self._end(OSError("no thread can be started"))

    def _run(self) -> None:
        try:
            found = socket.getaddrinfo(self._host, None, 0, socket.SOCK_STREAM)
            self.addresses = tuple(dict.fromkeys(str(address[0]) for *_, address in found))
        except OSError as error:
            self._end(error)
        except UnicodeError:
            self._end(OSError("no name of a host"))
        else:
            self._end(None)

    def _end(self, failure: OSError | None) -> None:
        self.failure = failure
        self._finished()
        self.done.set()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


class Access:
    """Makes clients and connections for servers of one kind. Nothing connects before it is used."""

    def __init__(
        self,
        address: Address,
        *,
        username: str = "",
        password: str = "",
        db: int = 0,
        ca_bundle: str = "",
        client_cert: str = "",
        client_key: str = "",
        masters_only: bool = False,
    ) -> None:
        """What the URL says of user, password, database and TLS goes before the other arguments.
        With ``masters_only`` a connection to a replica fails (redis.ReadOnlyError).
        ValueError for an option in the URL that is none, or has a value that is none."""
        self._address = address
        self._options: dict[str, Any] = {
            "username": username or None,
            "password": password or None,
            "db": db,
            "protocol": 2,
        }
        if address.encrypted:
            files = {"ssl_ca_certs": ca_bundle, "ssl_certfile": client_cert, "ssl_keyfile": client_key}
            self._options.update({name: file for name, file in files.items() if file})
        if masters_only:
            self._options["redis_connect_func"] = _connect_to_master
        self._names = Names()
        try:
            self.connection(address.places[0], TIMEOUT)
        except (TypeError, ValueError, redis.RedisError):
            raise ValueError("an option in the URL is not known, or has a value that it does not take") from None

    def client(self, place: Place, gate: Gate) -> redis.Redis:
        """A client whose calls wait as long as the gate says."""
        client = self._client(place, TIMEOUT)
        pool = client.connection_pool
        pool.connection_class = _patient(pool.connection_class, gate, self._names)
        return client

    def connection(self, place: Place, timeout: timedelta) -> AbstractConnection:
        """One connection, not yet opened, that speaks RESP2 and retries nothing."""
        pool = self._client(place, timeout).connection_pool
        own = {"protocol": 2, "retry": Retry(NoBackoff(), 0)}
        own.update(socket_connect_timeout=timeout.total_seconds(), socket_timeout=timeout.total_seconds())
        connection: AbstractConnection = pool.connection_class(**pool.connection_kwargs | own)
        return connection

    def _client(self, place: Place, timeout: timedelta) -> redis.Redis:
        return redis.Redis.from_url(
            self._address.url(place),
            socket_connect_timeout=timeout.total_seconds(),
            socket_timeout=timeout.total_seconds(),
            # A connection that the server closed meanwhile is made anew at once; silence is not
            # waited for twice.
            retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            **self._options,
        )


def _connect_to_master(connection: AbstractConnection) -> None:
    connection.on_connect()
    connection.send_command("ROLE", check_health=False)
    if connection.read_response(disable_decoding=True)[0] != b"master":
        raise redis.ReadOnlyError("a replica")


def _patient(base: type[AbstractConnection], gate: Gate, names: Names) -> type[AbstractConnection]:
    class Patient(base):  # type: ignore[valid-type, misc]
        """A connection that waits as long as the gate allows the thread that uses it."""

        def _connect(self) -> socket.socket:
            whole, patience = self.socket_timeout, gate.patience()
            self._name = getattr(self, "host", "")
            if not self._name:
                return self._open("", patience, whole)
            # redis-py would look the name up once more, for as long as that takes.
            *others, last = names.look_up(self._name, patience)
            for address in others:
                try:
                    return self._open(address, patience, whole)
                except OSError:
                    pass  # nobody listens there, as on one of the two addresses of localhost
            return self._open(last, patience, whole)

        def _open(self, address: str, patience: float, whole: float) -> socket.socket:
            self.socket_connect_timeout = self.socket_timeout = patience
            if address:
                self.host = address
            try:
                opened: socket.socket = super()._connect()
            finally:
                self.socket_timeout = whole
                if address:
                    self.host = self._name
            opened.settimeout(whole)
            return opened

        def _wrap_socket_with_ssl(self, sock: socket.socket) -> socket.socket:
            self.host = self._name  # which the certificate has to hold
            wrapped: socket.socket = super()._wrap_socket_with_ssl(sock)
            return wrapped

        def read_response(self, *arguments: Any, **options: Any) -> Any:
            if not self.can_read(gate.patience()):
                self.disconnect()
                raise redis.TimeoutError("no answer in time")
            return super().read_response(*arguments, **options)

    return Patient
