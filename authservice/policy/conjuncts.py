"""One thing that a rule asks for: a field with its ``not…``, or one condition of ``when``, ready to be asked.

A `Subject` says what is looked at and how values are compared; `conjunct` makes one test of it and of the
values, which decides live checks and explanations alike, and words for why it does not hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from authservice.policy.question import Question

Test = Callable[[Question], bool]
ValueTest = Callable[[Any], "bool | None"]
SettledBy = Literal["method", "host"]

MOST_SHOWN = 120  # characters of one value in an explanation
MOST_LISTED = 8  # values of one field

_SECRET_NAME = re.compile(r"auth|cookie|token|jwt|secret|passw|key|session|assertion|cert", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"eyJ[\w-]+\.[\w-]*\.|bearer |basic ", re.IGNORECASE)
_HIDDEN = "(not shown)"


def _as_it_is(found: Any) -> Any:
    return found


@dataclass(frozen=True, slots=True)
class Subject:
    """What values are compared with.

    ``look`` finds it, ``None`` when it is not there, which is a doubt where ``doubtful`` says so and
    otherwise simply no value's. ``compare`` makes of values a test of what was found, whose ``None`` is a
    doubt as well. ``none`` says in words what it means that there is none. What the method or the host
    decides by itself is ``settled_by`` it. In explanations what was found stands as ``told`` makes it,
    unless it is ``hidden``.
    """

    look: Callable[[Question], Any]
    compare: Callable[[Sequence[Any]], ValueTest]
    none: str
    doubtful: bool = False
    settled_by: SettledBy | None = None
    hidden: bool = False
    told: Callable[[Any], Any] = _as_it_is


@dataclass(frozen=True, slots=True)
class Label:
    """Where a condition stands in its rule, and where its ``not…`` does."""

    values: str
    not_values: str


@dataclass(frozen=True, slots=True)
class Conjunct:
    """One condition: whether it ``holds``, and, where it does not, ``why_not`` in words."""

    holds: Test
    why_not: Callable[[Question], str]
    settled_by: SettledBy | None


def conjunct(
    subject: Subject, values: Sequence[Any], not_values: Sequence[Any], label: Label, *, doubt: bool
) -> Conjunct:
    """Holds when what is found is one of the values, where there are any, and none of ``not_values``
    (M15, M43, M44). ``doubt`` is the answer for what is in doubt (M26)."""
    wants = subject.compare(values) if values else None
    refuses = subject.compare(not_values) if not_values else None
    without = doubt if subject.doubtful else not values

    def why_not(question: Question) -> str:
        return _why_not(subject, values, not_values, label, question)

    return Conjunct(_test(subject.look, wants, refuses, without, doubt), why_not, subject.settled_by)


def _test(
    look: Callable[[Question], Any], wants: ValueTest | None, refuses: ValueTest | None, without: bool, doubt: bool
) -> Test:
    if refuses is None and wants is not None:

        def is_one(question: Question) -> bool:
            found = look(question)
            if found is None:
                return without
            answer = wants(found)
            return doubt if answer is None else answer

        return is_one

    def is_one_but_none(question: Question) -> bool:
        found = look(question)
        if found is None:
            return without
        wanted = True if wants is None else wants(found)
        refused = False if refuses is None else refuses(found)
        if wanted is False or refused is True:
            return False
        return doubt if wanted is None or refused is None else True

    return is_one_but_none


def _why_not(
    subject: Subject, values: Sequence[Any], not_values: Sequence[Any], label: Label, question: Question
) -> str:
    found = subject.look(question)
    if found is None:
        return f"{label.values if values else label.not_values}: {subject.none}"
    shown = _HIDDEN if subject.hidden else show(subject.told(found))
    wanted = subject.compare(values)(found) if values else True
    if wanted is False:
        return f"{label.values}: {shown} is none of {_listed(subject, values)}"
    hit = [value for value in not_values if subject.compare([value])(found)]
    if hit:
        return f"{label.not_values}: {shown} is one of {_listed(subject, hit)}"
    unsure = label.values if wanted is None else label.not_values
    return f"{unsure}: {shown} can be read in more than one way, and is not the same to all of them"


def _listed(subject: Subject, values: Sequence[Any]) -> str:
    if subject.hidden:
        return "the values of the policy (not shown)"
    more = f" and {len(values) - MOST_LISTED} more" if len(values) > MOST_LISTED else ""
    return ", ".join(map(show, values[:MOST_LISTED])) + more


def show(value: Any) -> str:
    """A value as an operator reads it: texts in quotes, others as JSON, shortened, and escaped wherever a
    terminal would not simply show it. Whatever looks like a credential is not shown."""
    if isinstance(value, Mapping):
        text = "an object"
    elif isinstance(value, (str, int, float, bool, list, tuple)):
        text = json.dumps(value, ensure_ascii=False, default=str)
    else:
        text = f'"{value}"'
    if _SECRET_VALUE.search(text):
        return _HIDDEN
    shortened = text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "…"
    return "".join(map(_printable, shortened))


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def is_secret(name: str) -> bool:
    """Whether a header of this name is likely to hold a credential."""
    return _SECRET_NAME.search(name) is not None
