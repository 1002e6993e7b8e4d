"""A store in Redis (6.2 or later) or Valkey: for several hosts.

Owns the keys, the form of a value and the commands; knows nothing of what the bytes mean, nor of
which servers there are (`sessions.redis_servers`). An entry, with its label, is one key with the
server's own expiry, so there is nothing to sweep and every change is one server's. Built by the
composition root; called by `sessions.live`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple, TypeVar

from authservice.errors import StoreDown
from authservice.sessions import (
    Entry,
    Forget,
    Inspection,
    Label,
    Labelled,
    Watch,
    from_microseconds,
    to_microseconds,
)
from authservice.sessions.redis_access import Access, Address
from authservice.sessions.redis_finders import ClusterFinder, SentinelFinder
from authservice.sessions.redis_servers import Finder, Node, OneServer, Servers
from authservice.sessions.tracking import SILENCE, Tracking
from authservice.sessions.tracking_masters import TrackingMasters

KEY_PREFIX = "authservice:"

Mode = Literal["standalone", "sentinel", "cluster"]
_Item = TypeVar("_Item")

_PROBE_LIFETIME_MS = 60_000
_BATCH = 500
_READ_AT_ONCE = 1536
"""Bytes of a value that are asked for when only its label is wanted; most labels lie within."""

_SAVE_TAKES_AT_MOST = timedelta(minutes=5)
"""A tag's member that is younger may be of a save under way, so it is not yet taken away."""

_SCAN_MARKS = re.compile(r"[][*?\\]")

# A value is b"1 <version> <expiry in microseconds>\n" and then the entry's bytes; with a label it is
# b"2 <version> <expiry> <length of the label>\n", the label, and the entry's bytes. The expiry is kept
# beside Redis's own because the service's clock decides, not the server's. A label is
# b"<mark> <tagged until> <tags, separated by commas>\n" and then its metadata. Its key stands in the
# sorted set of each tag as "<key> <mark>", scored by <tagged until>, before the entry is written.
_VALUE = re.compile(rb"(?:1 (\d{1,19}) (\d{1,17})|2 (\d{1,19}) (\d{1,17}) (\d{1,9}))\n")
_LABEL = re.compile(rb"([0-9a-f]+-[0-9a-f]+) (\d{1,17}) ([A-Za-z0-9_,-]*)\n")

# One key, so that it works in a slot that is moving to another server of a cluster.
# KEYS[1]; ARGV: bytes, version, expiry, milliseconds to live, condition, now (both in microseconds),
# new label (empty: the one that is there stays), mark of the label whose tags stand until the expiry.
# Answers 1 (written), 0 (condition not met) or 2 (its tags must stand longer first), and what the label
# that was there says of its tags.
# The version is random, so finding our own means that this very call was carried out before, and
# that its answer was lost with the connection: a repeated call gets the same answer.
_SAVE = """
local old, live, label, was = redis.call('GET', KEYS[1]), nil, ARGV[7], ''
if old then
  local _, stop, version, expires = string.find(old, '^1 (%d+) (%d+)\\n')
  local length = nil
  if not version then
    _, stop, version, expires, length = string.find(old, '^2 (%d+) (%d+) (%d+)\\n')
  end
  if not version then
    if ARGV[5] ~= '' then return {0, ''} end
  else
    if version == ARGV[2] then return {1, ''} end
    if tonumber(expires) > tonumber(ARGV[6]) then
      live = version
      if length then
        local there = string.sub(old, stop + 1, stop + tonumber(length))
        local mark, tagged, rest = string.match(there, '^(%S+) (%d+)( .*)$')
        was = string.match(there, '^[^\\n]*')
        if label == '' and mark then
          if ARGV[8] == mark then tagged = ARGV[3] end
          label = mark .. ' ' .. tagged .. rest
          if tonumber(ARGV[4]) > 0 and tonumber(tagged) < tonumber(ARGV[3]) then
            if ARGV[5] == '' or ARGV[5] == live then return {2, was} end
          end
        end
      end
    end
  end
end
if ARGV[5] == 'absent' then
  if live then return {0, ''} end
elseif ARGV[5] ~= '' and ARGV[5] ~= live then
  return {0, ''}
end
if tonumber(ARGV[4]) <= 0 then
  redis.call('DEL', KEYS[1])
  return {1, was}
end
local value = '1 ' .. ARGV[2] .. ' ' .. ARGV[3] .. '\\n' .. ARGV[1]
if label ~= '' then
  value = '2 ' .. ARGV[2] .. ' ' .. ARGV[3] .. ' ' .. #label .. '\\n' .. label .. ARGV[1]
end
redis.call('SET', KEYS[1], value, 'PX', ARGV[4])
return {1, was}
"""

# KEYS[1]; ARGV: member, its score, now (both in microseconds), milliseconds for which it stands.
_TAG = """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[3])
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[4]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
end
"""


class RedisStore:
    """The `Store` contract over one server, over the master that Sentinels name, or over a cluster.
    Every failure is `errors.StoreDown`, and a server is used again as soon as it answers, or about a
    second later when it was silent; nothing connects before the first call."""

    notices: tuple[str, ...] = ()

    def __init__(
        self,
        address: str,
        *,
        now: Callable[[], datetime],
        mode: Mode = "standalone",
        username: str = "",
        password: str = "",
        db: int = 0,
        master: str = "mymaster",
        sentinel_username: str = "",
        sentinel_password: str = "",
        ca_bundle: str = "",
        client_cert: str = "",
        client_key: str = "",
        prefix: str = KEY_PREFIX,
    ) -> None:
        """``address`` is ``host:port`` or a ``redis://``, ``rediss://`` or ``unix://`` URL; for the
        other modes several Sentinels, or nodes of the cluster, separated by commas. What a URL says
        about user, password and database goes before the other arguments; the Sentinels' user and
        password are apart. The files (PEM) are for ``rediss://``. No two services on one Redis may
        have prefixes of which one begins with the other. ValueError when the address is none."""
        places = Address.parse(address)
        if mode == "standalone" and len(places.places) > 1:
            raise ValueError("several addresses, but one server")
        tls: dict[str, Any] = {"ca_bundle": ca_bundle, "client_cert": client_cert, "client_key": client_key}
        us: dict[str, Any] = {"username": username, "password": password, **tls}
        finder: Finder = OneServer(places.places[0])
        if mode == "sentinel":
            theirs = Access(
                places.without_credentials(), username=sentinel_username, password=sentinel_password, **tls
            )
            finder = SentinelFinder(theirs, places.places, master)
        elif mode == "cluster":
            finder = ClusterFinder(Access(places, **us), places.places)
        self._access = Access(places, db=db, masters_only=mode != "standalone", **us)
        self._servers = Servers(str(places), self._access, finder)
        self._mode = mode
        self._prefix = prefix
        self._now = now

    def load(self, key: str) -> Entry | None:
        value = self._ask(self._prefix + key, "GET")
        found = _read(value) if value else None
        return found.entry if found and found.entry.expires > self._now() else None

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
        now, version, end = self._now(), secrets.randbits(62), to_microseconds(expires)
        milliseconds = -((now - expires) // timedelta(milliseconds=1))
        tags = _Tags.new(label.tags, now, end) if label else None
        if tags and milliseconds > 0:
            self._tag(key, tags, now, milliseconds)
        new_label = tags.text + label.metadata if tags and label else b""
        extended = ""
        for _ in range(3):
            arguments = (value, version, end, milliseconds, condition, to_microseconds(now), new_label, extended)
            written, was = self._ask(self._prefix + key, "EVAL", _SAVE, 1, after=arguments)
            there = _Tags.read(was + b"\n") if was else None
            if written != 2 or there is None:
                break
            self._tag(key, there.until(end), now, milliseconds)
            extended = there.mark
        else:
            raise StoreDown(f"session store {self._servers.where}: others keep changing the label")
        if tags and not written:
            self._untag(key, tags)
        elif there and (tags or milliseconds <= 0):
            self._untag(key, there)
        return bool(written)

    def delete(self, key: str) -> bool:
        value = self._ask(self._prefix + key, "GETDEL")
        found = _read(value) if value else None
        if found and found.tags:
            self._untag(key, found.tags)
        return found is not None and found.entry.expires > self._now()

    def find(self, tag: str) -> list[str]:
        name, now, found = f"{self._prefix}tag:{tag}", self._now(), set()
        oldest, stale = to_microseconds(now - _SAVE_TAKES_AT_MOST), []
        members = [_Member.read(member) for member in self._ask(name, "ZRANGE", after=(0, -1))]
        for batch in _batches(members):
            for member, value in zip(batch, self._heads([member.key for member in batch])):
                if value and value.tags and tag in value.tags.tags and value.entry.expires > now:
                    found.add(member.key)
                if (not value or not value.tags or value.tags.mark != member.mark) and member.since < oldest:
                    stale.append(member.text)
        with suppress(StoreDown):  # they harm nobody
            for gone in _batches(stale):
                self._ask(name, "ZREM", after=gone)
        return list(found)

    def label(self, key: str) -> Labelled | None:
        (value,) = self._heads([key])
        return self._labelled(key, value)

    def labels(self) -> Iterator[Labelled]:
        seen: set[int] = set()  # hashes: Redis may name a key twice, and there may be millions
        for keys in self._keys():
            new = [key for key in keys if hash(key) not in seen]
            seen.update(map(hash, new))
            for batch in _batches(list(dict.fromkeys(new))):
                for key, value in zip(batch, self._heads(batch)):
                    labelled = self._labelled(key, value)
                    if labelled:
                        yield labelled

    def inspect(self, *, thorough: bool | None = None) -> Inspection:
        facts: dict[str, str | int] = {"sessions": sum(1 for _ in self.labels()), "mode": self._mode}
        problems = []
        for node in self._servers.masters():
            said = self._servers.ask_master(node, "INFO")
            facts[f"{node.place} version"] = str(said.get("valkey_version") or said.get("redis_version", ""))
            facts[f"{node.place} memory (bytes)"] = int(said.get("used_memory", 0))
            facts[f"{node.place} replicas"] = int(said.get("connected_slaves", 0))
            policy = str(said.get("maxmemory_policy", "noeviction"))
            if said.get("maxmemory") and policy != "noeviction":
                problems.append(
                    f"{node.place} may drop live sessions when its memory is full (maxmemory-policy {policy}): "
                    "set it to noeviction."
                )
        return Inspection(facts, tuple(problems))

    def sweep(self) -> int:
        return 0

    def ping(self) -> None:
        """Writes a key, so that a replica, a full server or a missing permission shows, and reads."""
        name = self._prefix + "probe"
        self._ask(name, "SET", after=(b"1", "PX", _PROBE_LIFETIME_MS))
        self._ask(name, "GET")

    def watch(self, forget: Forget) -> Watch:
        def track(node: Node) -> Tracking:
            return Tracking(lambda: self._access.connection(node.place, SILENCE), self._prefix, forget, str(node.place))

        if self._mode == "standalone":
            (node,) = self._servers.masters()
            return track(node)
        return TrackingMasters(self._servers, track)

    def close(self) -> None:
        self._servers.close()

    def _ask(self, name: str, *command: object, after: Sequence[object] = ()) -> Any:
        """What the key's server answers to the command: ``after`` are its arguments behind the key."""
        return self._servers.ask(name, *command, name, *after)

    # --- labels and their tags ------------------------------------------------------------------

    def _tag(self, key: str, tags: _Tags, now: datetime, milliseconds: int) -> None:
        after = (tags.member(key), tags.tagged, to_microseconds(now), milliseconds)
        self._servers.ask_each([(name, ("EVAL", _TAG, 1, name, *after)) for name in self._names(tags)])

    def _untag(self, key: str, tags: _Tags) -> None:
        """What stays behind harms nobody: `find` looks at the entry."""
        with suppress(StoreDown):
            self._servers.ask_each([(name, ("ZREM", name, tags.member(key))) for name in self._names(tags)])

    def _names(self, tags: _Tags) -> list[str]:
        return [f"{self._prefix}tag:{tag}" for tag in tags.tags]

    def _heads(self, keys: Sequence[str]) -> list[_Value | None]:
        """Of each entry as much as its label needs; the bytes of the entry itself are cut off."""
        names = [self._prefix + key for key in keys]
        heads = self._servers.ask_each([(name, ("GETRANGE", name, 0, _READ_AT_ONCE - 1)) for name in names])
        values = [_read(head) for head in heads]
        for index, value in enumerate(values):
            if value and value.label_ends > len(heads[index]):
                values[index] = _read(self._ask(names[index], "GETRANGE", after=(0, value.label_ends - 1)))
        return values

    def _labelled(self, key: str, value: _Value | None) -> Labelled | None:
        if value is None or value.tags is None or value.entry.expires <= self._now():
            return None
        return Labelled(key, value.metadata, value.entry.expires)

    def _keys(self) -> Iterator[list[str]]:
        """The keys of all entries, in batches; one may come twice. No key of ours has a colon: what has
        one belongs to a service whose prefix begins with ours."""
        pattern = _SCAN_MARKS.sub(r"\\\g<0>", self._prefix) + "*"
        start = len(self._prefix.encode())
        for node in self._servers.masters():
            cursor = 0
            while True:
                cursor, names = self._servers.ask_master(
                    node, "SCAN", cursor, "MATCH", pattern, "COUNT", 2 * _BATCH, "TYPE", "string"
                )
                yield [name[start:].decode(errors="replace") for name in names if b":" not in name[start:]]
                if not cursor:
                    break


@dataclass(frozen=True, slots=True)
class _Tags:
    """What a label says of its tags."""

    mark: str
    tagged: int
    tags: tuple[str, ...]

    @classmethod
    def new(cls, tags: tuple[str, ...], now: datetime, end: int) -> _Tags:
        return cls(f"{to_microseconds(now):x}-{secrets.randbits(48):x}", end, tags)

    @classmethod
    def read(cls, label: bytes) -> _Tags | None:
        told = _LABEL.match(label)
        if told is None:
            return None
        return cls(told[1].decode(), int(told[2]), tuple(filter(None, told[3].decode().split(","))))

    @property
    def text(self) -> bytes:
        return f"{self.mark} {self.tagged} {','.join(self.tags)}\n".encode()

    def until(self, end: int) -> _Tags:
        return _Tags(self.mark, end, self.tags)

    def member(self, key: str) -> bytes:
        return f"{key} {self.mark}".encode()


class _Member(NamedTuple):
    """One member of a tag's sorted set: an entry's key, and the label that put it there."""

    text: bytes
    key: str
    mark: str

    @classmethod
    def read(cls, text: bytes) -> _Member:
        key, _, mark = text.decode(errors="replace").rpartition(" ")
        return cls(text, key, mark)

    @property
    def since(self) -> int:
        """When, in microseconds since 1970."""
        try:
            return int(self.mark.partition("-")[0], 16)
        except ValueError:
            return 0


@dataclass(frozen=True, slots=True)
class _Value:
    """A value taken apart. ``label_ends`` is where its label ends, in bytes; without one, 0."""

    entry: Entry
    tags: _Tags | None = None
    metadata: bytes = b""
    label_ends: int = 0


def _read(value: bytes) -> _Value | None:
    """``None`` for bytes that this store did not write."""
    header = _VALUE.match(value)
    if header is None:
        return None
    start = header.end()
    if header[1]:
        return _Value(Entry(value[start:], int(header[1]), from_microseconds(int(header[2]))))
    end = start + int(header[5])
    label = value[start:end]
    head = label.find(b"\n") + 1
    entry = Entry(value[end:], int(header[3]), from_microseconds(int(header[4])))
    return _Value(entry, _Tags.read(label), label[head:], end)


def _batches(items: Sequence[_Item]) -> Iterable[Sequence[_Item]]:
    return (items[start : start + _BATCH] for start in range(0, len(items), _BATCH))
