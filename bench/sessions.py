"""``python -m bench.sessions``: what very many sessions cost those who look for one, and what sweeping costs checks.

Fills a SQLite file and a Redis with strangers' sessions, asks the command line for one person's, and loads
sessions from the file while another process removes expired ones. Strangers' records and metadata are
random bytes of the usual size under random tags: nobody opens them.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import redis

from authservice import app, settings
from authservice.check import Reach
from authservice.sessions import Label, to_microseconds
from authservice.sessions.live import Sessions
from authservice.sessions.redis import RedisStore
from authservice.sessions.sqlite import SqliteStore
from bench.programs import INSTALL, ROOT, BenchError, Missing
from bench.report import Spread
from bench.service import USER, new_session
from tests.servers import running_redis

MANY, FEW = 1_000_000, 50_000
OF_ONE = 3
"""Sessions of the person who is looked for."""

LIST_SECONDS = 2.0
HELD_SECONDS = 0.005

_RECORD_BYTES, _METADATA_BYTES, _TAG_CHARACTERS = 400, 600, 64
_PIECE = 2_000
_PAUSE = 0.001
_ISSUER = "https://id.example.com/"
_LIST = "import sys; from authservice.cli import main; sys.exit(main(sys.argv[1:]))"


@dataclass(frozen=True, slots=True)
class Found:
    """One thing that is wanted: ``seconds`` over the rounds, and at most ``bound`` of them. What the
    service itself does it does in every round, and what others on the machine do it does not: where
    ``every_round`` is asked for the longest, the round that was least so counts."""

    text: str
    seconds: Spread
    bound: float
    every_round: bool = False

    @property
    def met(self) -> bool:
        return (self.seconds.low if self.every_round else self.seconds.middle) <= self.bound

    def __str__(self) -> str:
        verdict = "met    " if self.met else "NOT met"
        return f"{verdict}  {self.text}: {_ms(self.seconds)}, wanted {self.bound * 1e3:g} ms at most"


def _ms(spread: Spread) -> str:
    return f"{spread.middle * 1e3:.2f} ms ({spread.low * 1e3:.2f}–{spread.high * 1e3:.2f})"


def now() -> datetime:
    return datetime.now(timezone.utc)


def environment(folder: Path, **changes: str) -> dict[str, str]:
    """Settings of a service that is looked into and not served."""
    return {
        "OIDC_PROVIDER": _ISSUER,
        "CLIENT_ID": "bench",
        "CLIENT_SECRET": "a-secret-of-the-benchmark",
        "AUTHSERVICE_URL_PREFIX": "/authservice/",
        "SESSION_STORE_PATH": str(folder / "sessions.db"),
        **changes,
    }


def log_in(environ: Mapping[str, str], count: int) -> list[str]:
    """Cookies' values of one person's sessions, made as the service makes them."""
    service = app.build(settings.load(environ))
    try:
        return [service.sessions.begin(new_session(_ISSUER)) for _ in range(count)]
    finally:
        service.stop()


def _strangers(count: int) -> Iterator[tuple[str, bytes, Label]]:
    """In the order of their keys, which is how a file is filled quickly."""
    for key in sorted(secrets.token_hex(32) for _ in range(count)):
        tags = tuple(secrets.token_hex(_TAG_CHARACTERS // 2) for _ in range(3))
        yield f"session-{key}", os.urandom(_RECORD_BYTES), Label(os.urandom(_METADATA_BYTES), tags)


def fill_file(file: Path, count: int, expired: int = 0) -> None:
    """So many sessions in one transaction; the first ``expired`` of them ended within the last hour."""
    SqliteStore(file, now).close()  # makes the tables
    ends = to_microseconds(now() + timedelta(days=1)), to_microseconds(now() - timedelta(seconds=1))
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -400000")
        tags: list[tuple[str, int]] = []
        with connection:
            for number, (key, value, label) in enumerate(_strangers(count), start=1):
                end = ends[1] - number if number <= expired else ends[0]
                connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", (key, value, number, end))
                connection.execute("INSERT INTO labels VALUES (?, ?, ?, ?)", (number, key, end, label.metadata))
                tags += [(tag, number) for tag in label.tags]
            tags.sort()
            connection.executemany("INSERT INTO tags VALUES (?, ?)", tags)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


class _InPieces:
    """Stands where a store keeps its servers: commands go off many at a time, and nobody waits for
    what each is answered. Good for keys that are new."""

    def __init__(self, address: str) -> None:
        host, port = address.split(":")
        self._client = redis.Redis(host=host, port=int(port))
        self._commands = self._client.pipeline(transaction=False)

    def ask(self, name: str, *command: Any) -> tuple[int, bytes]:
        self._commands.execute_command(*command)
        if len(self._commands) >= _PIECE:
            self._commands.execute()
        return 1, b""

    def ask_each(self, commands: Sequence[tuple[str, Sequence[Any]]]) -> None:
        for name, command in commands:
            self.ask(name, *command)

    def close(self) -> None:
        self._commands.execute()
        self._client.close()


def fill_redis(address: str, count: int) -> None:
    with closing(RedisStore(address, now=now)) as store:
        store._servers = _InPieces(address)  # type: ignore[assignment]
        expires = now() + timedelta(days=1)
        for key, value, label in _strangers(count):
            store.save(key, value, expires, label=label)


# --- one person's sessions among many -------------------------------------------------------------


def list_user(environ: Mapping[str, str], rounds: int) -> Spread:
    """Seconds of ``authservice sessions list --user``, from the start of its process to its end."""
    command = [sys.executable, "-c", _LIST, "sessions", "list", "--user", USER, "--json"]
    took = []
    for _ in range(rounds):
        began = time.monotonic()
        done = subprocess.run(
            command, cwd=ROOT, env={**environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        took.append(time.monotonic() - began)
        listed = [json.loads(line) for line in done.stdout.splitlines()]
        if done.returncode or len(listed) != OF_ONE or any(line["user"] != USER for line in listed):
            raise BenchError(f"sessions list --user: {done.returncode}, {done.stdout[:300]} {done.stderr[-300:]}")
    return Spread.of(took)


def in_a_file(folder: Path, count: int, rounds: int) -> list[Found]:
    environ = environment(folder)
    fill_file(folder / "sessions.db", count)
    log_in(environ, OF_ONE)
    return [Found(f"list --user among {count:,} sessions in SQLite", list_user(environ, rounds), LIST_SECONDS)]


def in_redis(folder: Path, count: int, rounds: int) -> list[Found]:
    program = next(filter(None, map(shutil.which, ("redis-server", "valkey-server"))), None)
    if program is None:
        raise Missing(f"redis-server is not installed: {INSTALL['redis-server']}")
    with running_redis(program, folder) as server:
        environ = environment(folder, SESSION_STORE_TYPE="redis", SESSION_STORE_REDIS_ADDR=server.address)
        fill_redis(server.address, count)
        log_in(environ, OF_ONE)
        return [Found(f"list --user among {count:,} sessions in Redis", list_user(environ, rounds), LIST_SECONDS)]


# --- sweeping ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Held:
    """Seconds that checks took which asked the store, the longest last: of those that only read, and
    of those that also mark the session as seen."""

    reading: list[float]
    writing: list[float]


def sweeping(folder: Path, count: int, rounds: int, seconds: float, say: Callable[[str], None]) -> list[Found]:
    """Rounds without and with a process that sweeps, in turns."""
    file = folder / "sessions.db"
    fill_file(file, count, expired=count // 2)
    environ = environment(folder)
    (secret,) = log_in(environ, 1)
    with closing(SqliteStore(file, now)) as store:
        sessions = Sessions(store, now=now, max_age=timedelta(days=1))
        quiet, busy = [], []
        for _ in range(rounds):
            quiet.append(_checks(sessions, secret, seconds))
            with _sweeper(file) as swept:
                busy.append(_checks(sessions, secret, seconds))
            if not swept():
                raise BenchError("nothing was left to sweep")
            say(f"    swept {swept():,} sessions meanwhile")
    found = []
    for kind, of in (("reads", lambda held: held.reading), ("marks as seen", lambda held: held.writing)):
        for name, held in (("without", quiet), ("with", busy)):
            took = [of(one) for one in held]
            often = Spread.of([one[int(len(one) * 0.999)] for one in took])
            longest = Spread.of([one[-1] for one in took])
            say(f"    a check that {kind}, {name} sweeping: p99.9 {_ms(often)}, longest {_ms(longest)}")
        text = f"longest check that {kind}, while half of {count:,} sessions is swept"
        found.append(Found(text, longest, HELD_SECONDS, every_round=True))
    return found


def _checks(sessions: Sessions, secret: str, seconds: float) -> Held:
    reading, writing = [], []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(9):
            began = time.monotonic()
            if sessions.load(secret, Reach.NETWORK) is None:
                raise BenchError("the session is gone")
            reading.append(time.monotonic() - began)
            time.sleep(_PAUSE)  # a load of checks, not as many as can be
        began = time.monotonic()
        record = sessions.record(secret)
        if record is None or not sessions.replace(secret, record, record.session):
            raise BenchError("the session cannot be saved")
        writing.append(time.monotonic() - began)
        time.sleep(_PAUSE)
    return Held(sorted(reading), sorted(writing))


@contextmanager
def _sweeper(file: Path) -> Iterator[Callable[[], int]]:
    """A process that sweeps until the end of the ``with``; then it has said how many it removed."""
    command = [sys.executable, "-m", "bench.sessions", "--sweep", str(file)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()  # it has begun
        said: list[str] = []
        yield lambda: int(said[0])
        process.stdin.close()
        said.append(process.stdout.read())


def sweep(file: Path) -> None:
    """The process of `_sweeper`: sweeps until its input ends."""
    over = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait, daemon=True).start()
    with closing(SqliteStore(file, now)) as store:
        swept = store.sweep()
        print("sweeping", flush=True)
        while not over.is_set():
            swept += store.sweep()
    print(swept, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 1 under ``--check`` when something wanted is not met."""
    parser = argparse.ArgumentParser(prog="python -m bench.sessions", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"with {FEW:,} sessions instead of {MANY:,}, and shorter")
    parser.add_argument("--check", action="store_true", help="exit status 1 when something wanted is not met")
    parser.add_argument("--sweep", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.sweep:
        sweep(given.sweep)
        return 0
    count, rounds, seconds = (FEW, 3, 2.0) if given.quick else (MANY, 5, 5.0)
    found: list[Found] = []
    for name, measure in (
        ("SQLite", in_a_file),
        ("Redis", in_redis),
        ("Sweeping", lambda folder, count, rounds: sweeping(folder, count, rounds, seconds, _say)),
    ):
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="authservice-bench-") as folder:
            try:
                found += measure(Path(folder), count, rounds)
            except (Missing, BenchError) as error:
                _say(f"  without {name}: {error}")
        _say(f"  {name}: measured in {time.monotonic() - began:.0f} s")
    _say("\nWanted")
    for one in found:
        _say(f"  {one}")
    return int(given.check and not all(one.met for one in found))


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
