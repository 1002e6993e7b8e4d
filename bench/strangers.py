"""Very many sessions of strangers: random bytes of the usual size under random tags, which nobody opens.

In a SQLite file and in a Redis by the shortest way: SQLite and Redis make them up themselves, so that a
million take half a minute. Measures nothing.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import redis

from authservice.sessions import Label, to_microseconds
from authservice.sessions.redis import KEY_PREFIX, RedisStore
from authservice.sessions.sqlite import SqliteStore

ISSUER = "https://id.example.com/"

_RECORD_BYTES, _METADATA_BYTES, _TAGS = 400, 600, 3
_PIECE = 2_000

_EXPIRES = "CASE WHEN number <= :expired THEN :past - number ELSE :future END"
_FILL_FILE = (
    "CREATE TEMP TABLE strangers (number INTEGER PRIMARY KEY, key TEXT)",
    "INSERT INTO strangers (key)"
    " WITH RECURSIVE numbers (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < :count)"
    " SELECT 'session-' || lower(hex(randomblob(32))) FROM numbers ORDER BY 1",
    "INSERT INTO entries (key, value, version, expires)"
    f" SELECT key, randomblob({_RECORD_BYTES}), number, {_EXPIRES} FROM strangers ORDER BY number",
    "INSERT INTO labels (id, key, expires, metadata)"
    f" SELECT number, key, {_EXPIRES}, randomblob({_METADATA_BYTES}) FROM strangers ORDER BY number",
    "INSERT INTO tags (tag, label) WITH RECURSIVE numbers (each) AS"
    f" (SELECT 1 UNION ALL SELECT each + 1 FROM numbers WHERE each < {_TAGS})"
    " SELECT lower(hex(randomblob(32))), number FROM strangers, numbers ORDER BY 1",
)
"""In the order of the keys and of the tags, which is how tables are filled quickly."""

# Copies one session that the store itself wrote, with other tags under another key. ARGV: the prefix of
# all keys, the session's key, something random, the first number and the last one, and the session's tags.
_FILL_REDIS = """
local prefix, key, seed, tags = ARGV[1], ARGV[2], ARGV[3], {unpack(ARGV, 6)}
local value, lives = redis.call('GET', prefix .. key), redis.call('PTTL', prefix .. key)
local member = redis.call('ZRANGE', prefix .. 'tag:' .. tags[1], 0, 0, 'WITHSCORES')
local mark, score = string.sub(member[1], #key + 1), member[2]
local all = table.concat(tags, ',')
local at = string.find(value, all, 1, true)
local front, back = string.sub(value, 1, at - 1), string.sub(value, at + #all)
local function random(number)
  return redis.sha1hex(seed .. number) .. string.sub(seed, 1, 24)
end
for number = tonumber(ARGV[4]), tonumber(ARGV[5]) do
  local copy, its = 'session-' .. random(number), {}
  for each = 1, #tags do
    its[each] = random(each .. '.' .. number)
    local name = prefix .. 'tag:' .. its[each]
    redis.call('ZADD', name, score, copy .. mark)
    redis.call('PEXPIRE', name, lives)
  end
  redis.call('SET', prefix .. copy, front .. table.concat(its, ',') .. back, 'PX', lives)
end
"""


def now() -> datetime:
    return datetime.now(timezone.utc)


def fill_file(file: Path, count: int, expired: int = 0) -> None:
    """So many sessions; the first ``expired`` of them, by their keys, ended within the last hour."""
    SqliteStore(file, now).close()  # makes the tables
    ends = {
        "future": to_microseconds(now() + timedelta(days=1)),
        "past": to_microseconds(now() - timedelta(seconds=1)),
    }
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for setting in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -400000", "temp_store = MEMORY"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute("BEGIN")
        # Indexes are made at once in the end; triggers have nothing to do for what is new.
        beside = connection.execute(
            "SELECT type, name, sql FROM sqlite_master WHERE type IN ('index', 'trigger') AND sql IS NOT NULL"
        ).fetchall()
        for kind, name, _ in beside:
            connection.execute(f"DROP {kind} {name}")
        for statement in _FILL_FILE:
            connection.execute(statement, {"count": count, "expired": expired, **ends})
        for _, _, sql in beside:
            connection.execute(sql)
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")


def fill_redis(address: str, count: int) -> None:
    """So many sessions."""
    key, *tags = f"session-{secrets.token_hex(32)}", *(secrets.token_hex(32) for _ in range(_TAGS))
    label = Label(os.urandom(_METADATA_BYTES), tuple(tags))
    with closing(RedisStore(address, now=now)) as store:
        store.save(key, os.urandom(_RECORD_BYTES), now() + timedelta(days=1), label=label)
    host, port = address.split(":")
    with redis.Redis(host=host, port=int(port)) as client:
        fill, seed = client.register_script(_FILL_REDIS), secrets.token_hex(32)
        for first in range(1, count, _PIECE):
            fill(args=[KEY_PREFIX, key, seed, first, min(first + _PIECE, count) - 1, *tags])
