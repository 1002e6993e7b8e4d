"""What each host stands for (``POLICY_WORKLOADS``): namespace, labels, targets, by which policies select it.

In a mesh the proxy knows its own workload; here the map says it, by host and path prefix. Owns the map's
text and which of its entries counts for a request. Called by `settings` (`parse`) and `policy.compile`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from authservice.policy.fields import Problems, Spot, namespace_name, shown
from authservice.policy.resources import TARGETS
from authservice.policy.yaml_lines import Kind, Unreadable, content, documents
from authservice.urls import Authority, canonical_prefix, parse_authority

DEFAULT_NAMESPACE = "default"
EVERY_HOST = "*"
_FIELDS = ("namespace", "labels", "targets")
_TARGET = re.compile(rf"(?:{'|'.join(TARGETS)})/[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?")
_WILD = re.compile(r"[^*]|\*(?:\.[^.:]|:|\Z)")
_INLINE = re.compile(r"\{|.*(?:\n|:\s|:\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Workload:
    """One entry of the map. ``name`` is its key as written; ``targets`` are ``kind/name``, for policies that
    are attached to a Service or Gateway instead of selecting labels."""

    name: str
    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Key:
    """A key of the map, read: a host (or what follows ``*``, or nothing for every host), whether it is a
    wildcard, a port (``None``: any), and a path prefix (empty: all paths)."""

    host: str
    wild: bool
    port: int | None
    prefix: str


class Workloads:
    """Which workload a request is for. Made by `parse` or `single`; never changes.

    ``named`` says whether hosts are told apart at all. Where they are not there is one workload, without
    namespace and labels, and only policies without selector and target can be resolved.
    """

    def __init__(self, entries: Iterable[tuple[_Key, Workload]], *, named: bool = True) -> None:
        self.named = named
        found = list(entries)
        self.all: tuple[Workload, ...] = tuple(workload for _, workload in found)
        self._groups: dict[tuple[str, bool, int | None], _Paths] = {}
        for key, workload in found:
            group = self._groups.setdefault((key.host, key.wild, key.port), _Paths())
            group.add(key.prefix, workload)

    @classmethod
    def single(cls) -> Workloads:
        """Nothing is named: every host, readable or not, is the one workload ``*``."""
        return cls([(_Key("", True, None, ""), Workload(EVERY_HOST, ""))], named=False)

    def find(self, host: str, path: str | None) -> Workload | None:
        """The workload of a ``Host`` as sent and a canonical path (``None``: in doubt), or ``None`` when it
        is not named or cannot be told. The most specific host that has a fitting entry counts, and of its
        entries the one with the longest prefix; a port in a key is more specific than none."""
        if not self.named:
            return self.all[0]
        authority = parse_authority(host)
        if authority is None:
            return None
        for group in self._candidates(authority):
            if path is None and group.has_prefixes:
                return None
            workload = group.find(path)
            if workload is not None:
                return workload
        return None

    def _candidates(self, authority: Authority) -> Iterable[_Paths]:
        """The entries' groups that the host fits, the most specific first."""
        ports = (None,) if authority.port is None else (authority.port, None)
        rest, wild = authority.host, False
        while True:
            for port in ports:
                group = self._groups.get((rest, wild, port))
                if group is not None:
                    yield group
            if wild and not rest:
                return
            dot = -1 if rest.startswith("[") else rest.find(".", 1)
            rest, wild = (rest[dot:] if dot > 0 else ""), True


class _Paths:
    """The entries of one host: by path prefix, as `urls.PathPrefixes` understands it, and the one without."""

    def __init__(self) -> None:
        self._rest: Workload | None = None
        self._whole: dict[str, Workload] = {}
        self._below: dict[str, Workload] = {}
        self._depth = 0

    @property
    def has_prefixes(self) -> bool:
        return self._depth > 0

    def add(self, prefix: str, workload: Workload) -> None:
        if not prefix:
            self._rest = workload
            return
        if prefix.endswith("/"):
            self._below[prefix] = workload
        else:
            self._whole[prefix] = workload
            prefix += "/"
            self._below.setdefault(prefix, workload)
        self._depth = max(self._depth, prefix.count("/"))

    def find(self, path: str | None) -> Workload | None:
        if path is None or not self._depth:
            return self._rest
        if path in self._whole:
            return self._whole[path]
        found, end = self._rest, 0
        for _ in range(self._depth):
            end = path.find("/", end) + 1
            if not end:
                break
            found = self._below.get(path[:end], found)
        return found


def parse(text: str) -> Workloads:
    """The map, as JSON or YAML, inline or in the file that the text names; `Workloads.single` for an empty
    text. Raises `ValueError` with every problem, one a line: ``line 3: backend.labels: …``."""
    if not text.strip():
        return Workloads.single()
    file, problems = file_of(text), Problems("")
    try:
        trees, faults = documents(text if file is None else content(file))
    except Unreadable as unreadable:
        raise ValueError(f"neither a mapping of hosts nor a file that can be read: {unreadable}") from None
    for fault in faults:
        problems.add(fault.line, "", fault.sentence)
    entries: list[tuple[_Key, Workload]] = []
    if len(trees) == 1:
        entries = _entries(Spot(trees[0], "", problems))
    elif not faults:
        problems.add(1, "", "one mapping of hosts is taken here")
    if not entries and not problems.found:
        problems.add(1, "", "no host is named here; leave it empty where hosts need not be told apart")
    if problems.found:
        raise ValueError("\n".join(_told(problems)))
    return Workloads(entries)


def file_of(text: str) -> Path | None:
    """The file that a text names; ``None`` for one that is the map itself, or empty."""
    text = text.strip()
    return None if not text or _INLINE.match(text) else Path(text)


def _told(problems: Problems) -> list[str]:
    """Each problem with its line; the file, if there is one, is the setting's to name."""
    found = sorted(dict.fromkeys(problems.found), key=lambda problem: problem[0].line)
    fields = (f"{place.field}: " if place.field else "" for place, _ in found)
    return [f"line {place.line}: {field}{told}" for field, (place, told) in zip(fields, found, strict=True)]


def _entries(hosts: Spot) -> list[tuple[_Key, Workload]]:
    if not hosts.is_a(Kind.MAPPING):
        return []
    entries: list[tuple[_Key, Workload]] = []
    seen: dict[_Key, str] = {}
    for name, spot in hosts.members():
        try:
            key = _key(name)
        except ValueError as error:
            spot.refuse(str(error))
            continue
        if key in seen:
            spot.refuse(f"this is the same as {shown(seen[key])}")
        seen[key] = name
        if spot.is_a(Kind.MAPPING):
            entries.append((key, _workload(name, spot)))
    return entries


def _key(text: str) -> _Key:
    """Raises `ValueError` with a sentence for what is no host with an optional prefix."""
    host, slash, rest = text.partition("/")
    prefix = canonical_prefix(slash + rest) if slash else ""
    wild = host.startswith("*")
    authority = parse_authority("x" + host[1:] if wild else host)
    if authority is None or not _WILD.match(host):
        raise ValueError("a host looks like app.example.com, *.example.com, * or host:8443, then a path")
    return _Key(authority.host[1:] if wild else authority.host, wild, authority.port, prefix)


def _workload(name: str, spot: Spot) -> Workload:
    spot.refuse_others(_FIELDS)
    labels = spot.mapping("labels")
    pairs = list(labels.members()) if labels is not None else []
    return Workload(
        name=name,
        namespace=spot.value("namespace", namespace_name) or DEFAULT_NAMESPACE,
        labels={key: label.node.text for key, label in pairs if label.is_a(Kind.TEXT)},
        targets=spot.values("targets", _target),
    )


def _target(text: str) -> str:
    if not _TARGET.fullmatch(text):
        raise ValueError(f"{shown(text)} is no target; one looks like Service/backend or Gateway/public")
    return text
