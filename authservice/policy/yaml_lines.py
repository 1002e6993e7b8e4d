"""YAML with line numbers: a text's documents as trees of nodes that know where they stand.

The only door to PyYAML of this room. Plain data alone is taken: no tags that make objects, no key twice, a
bounded size and depth, and aliases (also as ``<<``) only as long as what they stand for stays small. What is
wrong with one document hides nothing of the next.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import yaml
from yaml.resolver import Resolver

MAX_BYTES = 32 << 20
"""Of one file; of a text so many characters. What ``kubectl get -A -o yaml`` prints of ten thousand
policies stays below it."""
MAX_NODES = 2_000_000
"""Of one file, each alias counted as all that it stands for."""
MAX_DEPTH = 64
MOST_SHOWN = 60  # characters of a value that a sentence quotes
MOST_BROKEN = 20
"""Documents of one file that are no YAML; whoever sends more gets to see these."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where there is one, as in every wheel
_TAG = "tag:yaml.org,2002:"
_DOCUMENT = re.compile(r"^---(?=[ \t\r\n]|\Z)", re.MULTILINE)
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Kind(str, Enum):
    """What a node is; the words are those of sentences."""

    TEXT = "text"
    NUMBER = "a number"
    BOOLEAN = "a boolean"
    NOTHING = "nothing"
    LIST = "a list"
    MAPPING = "a mapping"


@dataclass(frozen=True, slots=True)
class Node:
    """One value and the line that it begins in. ``text`` is a scalar's, as written (without quotes)."""

    kind: Kind
    line: int
    text: str = ""
    items: tuple[Node, ...] = ()
    members: Mapping[str, Member] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Member:
    """What a mapping holds under one key, and the key's line."""

    line: int
    node: Node


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with the YAML itself, and in which line."""

    line: int
    sentence: str


def shown(text: str) -> str:
    """A text of the file in a sentence: short, in quotes, on one line."""
    cut = text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "…"
    return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in cut) + '"'


class Unreadable(Exception):
    """Nothing more can be read of this file, or of this document."""

    def __init__(self, line: int, sentence: str) -> None:
        super().__init__(sentence)
        self.fault = Fault(line, sentence)


class _TooMuch(Unreadable):
    """Nor of the documents after it."""


def content(file: Path) -> str:
    """A file's text. Raises `Unreadable` for what is no regular file, too large, or not UTF-8."""
    try:
        if file.exists() and not file.is_file():  # a pipe would have to be waited for
            raise Unreadable(1, "this is no regular file")
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise Unreadable(1, f"this file cannot be read ({error.strerror})") from None
    except ValueError:
        raise Unreadable(1, "this is no file's name") from None
    if len(data) > MAX_BYTES:
        raise Unreadable(1, f"this file has more than {MAX_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(data.count(b"\n", 0, error.start) + 1, "this is not UTF-8") from None


def documents(text: str) -> tuple[list[Node], list[Fault]]:
    """The documents of a text, empty ones left out, and every fault in the order of the lines. A
    document with a fault that leaves its shape clear (a key twice) is among the documents, too."""
    if len(text) > MAX_BYTES:
        return [], [Fault(1, f"this text has more than {MAX_BYTES} characters")]
    strange = _UNPRINTABLE.search(text)
    if strange:
        line = text.count("\n", 0, strange.start()) + 1
        return [], [Fault(line, f"the character U+{ord(strange.group()):04X} cannot stand in YAML")]
    reading = _Reading()
    start = 0
    for _ in range(MOST_BROKEN):
        before = text.count("\n", 0, start)
        broken = reading.read(text[start:], before)
        following = _DOCUMENT.search(text, _start_of_line(text, broken, start, before)) if broken else None
        if following is None:
            break
        start = following.start()
    return reading.documents, reading.faults


def _start_of_line(text: str, line: int, start: int, before: int) -> int:
    """Where ``line`` begins, but after the marker at ``start`` at any rate: what is read gets less."""
    position = start
    for _ in range(line - 1 - before):
        position = text.find("\n", position) + 1 or len(text)
    return max(position, start + 1)


class _Reading:
    """What has been read of one text so far."""

    def __init__(self) -> None:
        self.documents: list[Node] = []
        self.faults: list[Fault] = []
        self._nodes = 0
        self._before = 0

    def read(self, text: str, before: int) -> int:
        """Reads from a document's beginning, with so many lines before it; the line in which it had to give
        up, or 0."""
        self._before = before
        try:
            events = yaml.parse(text, Loader=_LOADER)
            for event in events:
                if isinstance(event, yaml.DocumentStartEvent):
                    node = self._document(events)
                    if node.kind is not Kind.NOTHING:
                        self.documents.append(node)
        except Unreadable as broken:
            self.faults.append(broken.fault)
            return 0 if isinstance(broken, _TooMuch) else broken.fault.line
        except yaml.MarkedYAMLError as error:
            line = before + 1 + (error.problem_mark.line if error.problem_mark else 0)
            begun = before + 1 + error.context_mark.line if error.context_mark else line
            told = f" for what begins in line {begun}" if begun < line else ""
            self.faults.append(Fault(line, f"this is not YAML: {_words(error.problem)}{told}"))
            return line
        except (yaml.YAMLError, OverflowError, ValueError):
            # Without libyaml also for an escape of a character that there is not.
            self.faults.append(Fault(before + 1, "this is not YAML"))
            return before + 1
        return 0

    def _document(self, events: Iterator[yaml.Event]) -> Node:
        """The document whose start was the last event. Not recursive: depth is anybody's to choose."""
        tree = _Tree(self.faults)
        for event in events:
            if isinstance(event, yaml.DocumentEndEvent):
                break
            line = self._before + event.start_mark.line + 1
            self._nodes += tree.take(event, line)
            if self._nodes > MAX_NODES:
                raise _TooMuch(line, f"with its aliases this file has more than {MAX_NODES} values")
        return tree.root


def _words(problem: str | None) -> str:
    """The parser's own words, which may quote a character of the text."""
    return "".join(c if c.isprintable() else "?" for c in problem or "it cannot be read")


@dataclass(slots=True)
class _Open:
    """A list or mapping that has not ended yet, and what it holds so far."""

    kind: Kind
    line: int
    anchor: str | None
    before: int
    children: list[Node] = field(default_factory=list)


class _Tree:
    """One document as it grows, event by event."""

    def __init__(self, faults: list[Fault]) -> None:
        self.root = Node(Kind.NOTHING, 1)
        self._faults = faults
        self._open: list[_Open] = []
        self._anchors: dict[str, tuple[Node, int]] = {}  # with how many values it stands for
        self._merges: dict[int, Node] = {}  # by id, which is a node's as long as the node is kept
        self._nodes = 0

    def take(self, event: yaml.Event, line: int) -> int:
        """Adds what the event stands for; the number of values that it brings."""
        before = self._nodes
        if isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            self._close()
        elif isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            self._begin(event, line)
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event.anchor, line)
        elif isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event, line)
            self._nodes += 1
            if event.anchor:
                self._anchors[event.anchor] = (node, 1)
            self._add(node)
        return self._nodes - before

    def _add(self, node: Node) -> None:
        if self._open:
            self._open[-1].children.append(node)
        else:
            self.root = node

    def _begin(self, event: yaml.CollectionStartEvent, line: int) -> None:
        is_list = isinstance(event, yaml.SequenceStartEvent)
        kind, tag = (Kind.LIST, "seq") if is_list else (Kind.MAPPING, "map")
        if event.tag not in (None, "!", _TAG + tag):
            raise Unreadable(line, f"the tag {_tag(event.tag)} is not taken; leave it out")
        if len(self._open) >= MAX_DEPTH:
            raise Unreadable(line, f"this is nested deeper than {MAX_DEPTH} levels")
        if event.anchor:
            self._anchors.pop(event.anchor, None)  # no alias to what is not complete
        self._open.append(_Open(kind, line, event.anchor, self._nodes))
        self._nodes += 1

    def _close(self) -> None:
        ended = self._open.pop()
        if ended.kind is Kind.LIST:
            node = Node(Kind.LIST, ended.line, items=tuple(ended.children))
        else:
            node = Node(Kind.MAPPING, ended.line, members=self._members(ended.children))
        if ended.anchor:
            self._anchors[ended.anchor] = (node, self._nodes - ended.before)
        self._add(node)

    def _alias(self, anchor: str, line: int) -> None:
        if anchor not in self._anchors:
            raise Unreadable(line, f"no anchor of the name {anchor[:40]} ends before this alias")
        node, size = self._anchors[anchor]
        self._nodes += size
        self._add(node)

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> Node:
        tag = event.tag
        if tag in (None, "!"):
            tag = _RESOLVER.resolve(yaml.ScalarNode, event.value, (event.implicit[0] and tag is None, True))
        kind = _KINDS.get(tag.removeprefix(_TAG)) if tag.startswith(_TAG) else None
        if kind is None:
            raise Unreadable(line, f"the tag {_tag(tag)} is not taken; leave it out")
        node = Node(kind, line, event.value)
        if tag == _TAG + "merge":
            self._merges[id(node)] = node
        return node

    def _members(self, children: list[Node]) -> Mapping[str, Member]:
        members: dict[str, Member] = {}
        merged: list[Node] = []
        for key, node in zip(children[::2], children[1::2], strict=True):
            if id(key) in self._merges:
                merged += node.items if node.kind is Kind.LIST else [node]
            elif key.kind is not Kind.TEXT:
                hint = "; put it in quotes" if key.kind in (Kind.NUMBER, Kind.BOOLEAN) else ""
                self._faults.append(Fault(key.line, f"a key is text, and this is {key.kind.value}{hint}"))
            elif key.text in members:
                sentence = f"the key {shown(key.text)} stands in line {members[key.text].line} already"
                self._faults.append(Fault(key.line, sentence))
            else:
                members[key.text] = Member(key.line, node)
        for node in merged:
            if node.kind is not Kind.MAPPING:
                self._faults.append(Fault(node.line, "<< takes an alias of a mapping, or a list of such"))
            for name, member in node.members.items():
                members.setdefault(name, member)
        return members


_RESOLVER = Resolver()
_KINDS = {
    "str": Kind.TEXT,
    "timestamp": Kind.TEXT,  # JSON, and so Kubernetes, has no dates
    "value": Kind.TEXT,
    "merge": Kind.TEXT,
    "int": Kind.NUMBER,
    "float": Kind.NUMBER,
    "bool": Kind.BOOLEAN,
    "null": Kind.NOTHING,
}


def _tag(tag: str) -> str:
    return shown(tag.replace(_TAG, "!!"))
