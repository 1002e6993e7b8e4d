"""The fields of one file being read: each value taken by name and type, each problem kept with its place.

`policy.read` and its siblings, and `policy.workloads`, walk a file as `Spot` values. Nothing is raised on
the way, so that one reading finds every problem; whoever began it asks `Problems` at the end.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from authservice.policy.resources import Place
from authservice.policy.yaml_lines import Kind, Node, shown

__all__ = ["Problems", "Spot", "header_name", "namespace_name", "nearest", "seen_header_name", "shown"]

Value = TypeVar("Value")

_SIMPLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TRUE, _FALSE = frozenset({"true", "yes", "on"}), frozenset({"false", "no", "off"})
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NAMESPACE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NEAR = 0.7


class Problems:
    """What is wrong with one file, in the order in which it was found."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[tuple[Place, str]] = []

    def add(self, line: int, field: str, sentence: str) -> None:
        self.found.append((Place(self.file, line, field), sentence))


@dataclass(frozen=True, slots=True)
class Spot:
    """One value of a file, the path of its field, and the problems that it may add to."""

    node: Node
    field: str
    problems: Problems

    @property
    def place(self) -> Place:
        return Place(self.problems.file, self.node.line, self.field)

    def refuse(self, sentence: str) -> None:
        self.problems.add(self.node.line, self.field, sentence)

    def path(self, name: str) -> str:
        """The path of a member."""
        if not _SIMPLE.fullmatch(name):
            return f"{self.field}[{shown(name)[1:-1]}]"
        return f"{self.field}.{name}" if self.field else name

    def is_a(self, kind: Kind) -> bool:
        """Whether this is of a kind; says so where it is not."""
        if self.node.kind is kind:
            return True
        quotes = kind is Kind.TEXT and bool(self.node.text)
        written = f" ({shown(self.node.text)})" if quotes else ""
        remedy = "; put it in quotes" if quotes else ""
        if kind is Kind.BOOLEAN and self.node.text.lower() in _TRUE | _FALSE:
            remedy = "; leave out the quotes"
        self.refuse(f"{kind.value} is taken here, and this is {self.node.kind.value}{written}{remedy}")
        return False

    def member(self, name: str) -> Spot | None:
        """What stands under a name. To Kubernetes nothing (``null``) is the same as no such member."""
        member = self.node.members.get(name)
        if member is None or member.node.kind is Kind.NOTHING:
            return None
        return Spot(member.node, self.path(name), self.problems)

    def members(self) -> Iterator[tuple[str, Spot]]:
        for name, member in self.node.members.items():
            yield name, Spot(member.node, self.path(name), self.problems)

    def items(self) -> list[Spot]:
        """The entries of a list; none, and a problem, where this is no list."""
        if not self.is_a(Kind.LIST):
            return []
        return [Spot(node, f"{self.field}[{i}]", self.problems) for i, node in enumerate(self.node.items)]

    def text(self, name: str) -> str:
        """A member that is text; empty without it."""
        spot = self.member(name)
        return spot.node.text if spot is not None and spot.is_a(Kind.TEXT) else ""

    def mapping(self, name: str) -> Spot | None:
        """A member that is a mapping; ``None`` without it."""
        spot = self.member(name)
        return spot if spot is not None and spot.is_a(Kind.MAPPING) else None

    def mappings(self, name: str) -> list[Spot]:
        """A member that is a list of mappings; none without it."""
        spot = self.member(name)
        return [entry for entry in spot.items() if entry.is_a(Kind.MAPPING)] if spot is not None else []

    def texts(self, name: str) -> tuple[str, ...]:
        """A member that is a list of texts, none of them empty."""
        return self.values(name, str)

    def values(self, name: str, parse: Callable[[str], Value]) -> tuple[Value, ...]:
        """A member that is a list of texts, each of them parsed; ValueError is a problem of that place."""
        spot = self.member(name)
        parsed = [entry.parsed(parse) for entry in spot.items()] if spot is not None else []
        return tuple(value for value in parsed if value is not None)

    def value(self, name: str, parse: Callable[[str], Value]) -> Value | None:
        """A member that is text, parsed; ``None`` without it, or where it cannot be."""
        spot = self.member(name)
        return spot.parsed(parse) if spot is not None else None

    def required_value(self, name: str, parse: Callable[[str], Value]) -> Value | None:
        """The same of a member that has to be there."""
        if self.member(name) is None:
            self.refuse(f"{name} is missing")
        return self.value(name, parse)

    def at(self, name: str) -> Spot:
        """Where a problem of a member is told: there, or here when it is missing."""
        return self.member(name) or self

    def parsed(self, parse: Callable[[str], Value]) -> Value | None:
        """This text, parsed; ``None``, and a problem, where it cannot be."""
        if not self.is_a(Kind.TEXT):
            return None
        if not self.node.text:
            self.refuse("an empty text is no value")
            return None
        try:
            return parse(self.node.text)
        except ValueError as error:
            self.refuse(str(error))
            return None

    def boolean(self, name: str) -> bool:
        """A member that is true or false; false without it."""
        spot = self.member(name)
        if spot is None or not spot.is_a(Kind.BOOLEAN):
            return False
        if spot.node.text.lower() not in _TRUE | _FALSE:
            spot.refuse("true or false is taken here")
        return spot.node.text.lower() in _TRUE

    def refuse_others(
        self, known: Sequence[str], hints: Mapping[str, str] | None = None, *, may_be_nothing: bool = False
    ) -> bool:
        """A problem for each member that is not known: with a hint of its own, or the name that was
        probably meant, or all names that are taken. Also for each that is known and nothing: Istio takes
        ``from:`` without a value for «from anybody», which nobody means who writes it. Whether there is
        any problem: then something else may be missing here for that reason alone."""
        before = len(self.problems.found)
        for name, member in self.node.members.items():
            if name not in known:
                hint = (hints or {}).get(name) or _instead(name, known)
                sentence = f"there is no field {shown(name)} here; {hint}"
                self.problems.add(member.line, self.path(name), sentence)
            elif member.node.kind is Kind.NOTHING and not may_be_nothing:
                sentence = f"{name} has no value; give it one, or leave it out"
                self.problems.add(member.line, self.path(name), sentence)
        return len(self.problems.found) > before


def namespace_name(text: str) -> str:
    """A namespace, as it is. Raises `ValueError` for what cannot be one (RFC 1123)."""
    if not _NAMESPACE.fullmatch(text):
        raise ValueError(f"{shown(text)} is no namespace: at most 63 lower-case letters, digits and -")
    return text


def header_name(text: str) -> str:
    """A header's name, as it is. Raises `ValueError` for what cannot be one (RFC 9110 §5.1)."""
    if not _HEADER_NAME.fullmatch(text):
        raise ValueError(f"{shown(text)} cannot be a header's name")
    return text


def seen_header_name(text: str) -> str:
    """The name of a header that a check can have. Raises `ValueError` for others: one with ``_`` in its name is
    dropped on the way, as it is one with ``-`` to many applications, and so nothing would ever be found in it."""
    if "_" in header_name(text):
        raise ValueError(f"a header with _ in its name, such as {shown(text)}, does not get here")
    return text


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that this one is probably meant to be."""
    plain = {_plain(candidate): candidate for candidate in reversed(known)}  # of two spellings the first
    matches = difflib.get_close_matches(_plain(name[:80]), plain, n=1, cutoff=_NEAR)
    return plain[matches[0]] if matches else None


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _instead(name: str, known: Sequence[str]) -> str:
    near = nearest(name, known)
    if near:
        return f"did you mean {near}?"
    return f"taken {'is' if len(known) == 1 else 'are'} {', '.join(known)}"
