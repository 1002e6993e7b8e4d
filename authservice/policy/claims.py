"""What policies see of verified claims, and of the request principal that two of them make (M38 to M45).

An absent token has absent claims. Claims in objects are named by brackets, ``request.auth.claims[a][b]``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from authservice.policy.match import TextTest, any_text, texts
from authservice.policy.question import Question

ALWAYS_SPLIT = frozenset({"scope", "permission"})
"""Claims whose text is a list with blanks between, wherever the token comes from (M45)."""

_BRACKETS = re.compile(r"(?:\[[^\[\]]*\])+")

Principal = tuple[str, str]
PrincipalTest = Callable[[Principal], bool]


def claim_path(brackets: str) -> tuple[str, ...]:
    """The names in ``[a][b]``, one a level. Brackets that are not well formed hold one name: all that is
    between the first and the last of them (M40)."""
    if _BRACKETS.fullmatch(brackets):
        return tuple(brackets[1:-1].split("]["))
    return (brackets[1:-1],)


def claim_at(path: tuple[str, ...]) -> Callable[[Question], Any]:
    """What finds the claim in a question: its value, ``None`` when there is none. A list on the way has no
    members (M40)."""
    if len(path) > 1:
        return lambda question: _below(question.claims, path)
    (name,) = path
    always = name in ALWAYS_SPLIT

    def find(question: Question) -> Any:
        claims = question.claims
        if claims is None:
            return None
        value = claims.get(name)
        if isinstance(value, str) and (always or name in question.split):
            return [part for part in value.split(" ") if part] or value  # a text of blanks alone stays one
        return value

    return find


def _below(claims: Any, path: tuple[str, ...]) -> Any:
    value = claims
    for number, name in enumerate(path):
        if value is None or (number and not isinstance(value, dict)):
            return None
        value = value.get(name)
    return value


def claim_values(values: Sequence[str]) -> Callable[[Any], bool]:
    """Whether a claim is any of the values: a text by itself, a list by any text in it, nothing else
    (M41, M42)."""
    matches = texts(values)

    def holds(claim: Any) -> bool:
        if isinstance(claim, str):
            return matches(claim)
        if isinstance(claim, (list, tuple)):
            for element in claim:
                if isinstance(element, str) and matches(element):
                    return True
        return False

    return holds


def principal_of(question: Question) -> Principal | None:
    """Issuer and subject, ``None`` unless both are text (M38). One that is split at blanks is a list, unless
    it is empty or of blanks alone."""
    claims = question.claims
    if claims is None:
        return None
    issuer, subject = claims.get("iss"), claims.get("sub")
    if not isinstance(issuer, str) or not isinstance(subject, str):
        return None
    split = question.split
    if split and (("iss" in split and issuer.strip(" ")) or ("sub" in split and subject.strip(" "))):
        return None
    return issuer, subject


def principals(values: Sequence[str]) -> PrincipalTest:
    """Whether a request principal is any of the values."""
    exact = {(issuer, subject) for issuer, subject in map(_exact, values) if issuer is not None}
    tests = [_principal_test(value) for value in values if _exact(value)[0] is None]

    def holds(principal: Principal) -> bool:
        if principal in exact:
            return True
        for issuer_is, subject_is in tests:
            if issuer_is(principal[0]) and subject_is(principal[1]):
                return True
        return False

    return holds


def _exact(value: str) -> tuple[str | None, str]:
    """Issuer and subject of a value without ``*`` at either end."""
    if value.startswith("*") or value.endswith("*"):
        return None, ""
    issuer, _, subject = value.rpartition("/") if "/" in value else (value, "", "")
    return issuer, subject


def _principal_test(value: str) -> tuple[TextTest, TextTest]:
    """What issuer and subject must be for one value with ``*`` at an end. It is split at its last slash;
    a ``*`` in front has its meaning, and takes it from one at the end."""
    issuer, slash, subject = value.rpartition("/")
    if value == "*":
        return any_text, any_text
    if not slash:
        return (any_text, texts([value])) if value.startswith("*") else (texts([value]), any_text)
    if value.startswith("*"):
        return texts([issuer]), subject.__eq__
    return issuer.__eq__, texts([subject])
