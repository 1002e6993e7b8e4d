"""Very many sessions of strangers: random bytes of the usual size under random tags, which nobody opens.

Written into a SQLite file or a Redis by the shortest way. Measures nothing.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import redis

from authservice.sessions import Label, to_microseconds
from authservice.sessions.redis import RedisStore
from authservice.sessions.sqlite import SqliteStore

ISSUER = "https://id.example.com/"

_RECORD_BYTES, _METADATA_BYTES, _TAG_CHARACTERS = 400, 600, 64
_PIECE = 2_000


def now() -> datetime:
    return datetime.now(timezone.utc)


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
