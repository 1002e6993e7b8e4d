"""The table of requests and expected verdicts that ``authservice policy test`` reads.

Owns the file's form: what a case may say, and that each slip is told with its line. Asking is `Rehearsal`'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from authservice.policy.fields import Problems, Spot
from authservice.policy.resources import Place, PolicyErrors
from authservice.policy.yaml_lines import Kind, Node, Unreadable, content, documents
from authservice.rehearsal import asked
from authservice.rehearsal.asked import Asked

VERDICTS = ("allow", "deny", "authenticate")
SETTINGS = (
    "POLICY_PATH", "POLICY_WORKLOADS", "POLICY_ALLOWS_ANONYMOUS", "POLICY_ROOT_NAMESPACE", "POLICY_PEER_HEADER",
)  # fmt: skip
"""The settings that change a verdict, and that a file of cases may bring with it."""

_RULE = re.compile(r"[0-9]{1,9}")
_PATHS = ("POLICY_PATH", "POLICY_WORKLOADS")
_CASE = (
    "name", "method", "url", "claims", "anonymous", "headers", "source", "remote", "peer", "expect", "policy", "rule",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """One request and the verdict that is expected: with ``policy`` (as ``namespace/name``) and ``rule``
    also what has to have decided; empty and ``None`` where that is all one."""

    name: str
    asked: Asked
    expect: str
    policy: str
    rule: int | None
    place: Place


@dataclass(frozen=True, slots=True)
class Cases:
    """A whole file. ``settings`` are the texts of settings, with paths as seen from here."""

    settings: Mapping[str, str]
    cases: tuple[Case, ...]


def read_cases(path: Path) -> Cases:
    """The cases of a file. Raises `policy.resources.PolicyErrors` with every problem."""
    problems = Problems(str(path))
    try:
        trees, faults = documents(content(path))
    except Unreadable as unreadable:
        raise PolicyErrors([(Place(str(path), unreadable.fault.line), unreadable.fault.sentence)]) from None
    for fault in faults:
        problems.add(fault.line, "", fault.sentence)
    if len(trees) > 1:
        problems.add(trees[1].line, "", "a file of cases is a single document")
    elif not trees and not faults:
        problems.add(1, "", "there are no cases")
    read = _Reading(path.parent, problems).whole(Spot(trees[0], "", problems)) if trees else Cases({}, ())
    if problems.found:
        raise PolicyErrors(sorted(problems.found, key=lambda found: found[0]))
    return read


class _Reading:
    """One file; ``folder`` is what its paths are relative to."""

    def __init__(self, folder: Path, problems: Problems) -> None:
        self._folder = folder
        self._problems = problems
        self._names: dict[str, int] = {}

    def whole(self, spot: Spot) -> Cases:
        if spot.node.kind is Kind.LIST:  # nothing but the cases
            return Cases({}, self._cases(replace(spot, field="cases")))
        if not spot.is_a(Kind.MAPPING):
            return Cases({}, ())
        spot.refuse_others(("settings", "cases"))
        settings, cases = spot.mapping("settings"), spot.member("cases")
        if cases is None:
            spot.refuse("cases are missing")
        return Cases(self._settings(settings) if settings else {}, self._cases(cases) if cases else ())

    def _settings(self, spot: Spot) -> Mapping[str, str]:
        spot.refuse_others(SETTINGS)
        texts: dict[str, str] = {}
        for name, value in spot.members():
            if name == "POLICY_WORKLOADS" and value.node.kind is Kind.MAPPING:
                texts[name] = json.dumps(plain(value.node))
            elif value.node.kind in (Kind.TEXT, Kind.BOOLEAN):
                texts[name] = self._from_here(value.node.text) if name in _PATHS else value.node.text
            else:
                value.refuse("a setting's text is taken here")
        return texts

    def _from_here(self, text: str) -> str:
        """A path is the cases' neighbour; what is no path that there is stays as it is."""
        inline = not text or "\n" in text or "{" in text or ": " in text
        return text if inline else str(self._folder / text)

    def _cases(self, spot: Spot) -> tuple[Case, ...]:
        entries = [entry for entry in spot.items() if entry.is_a(Kind.MAPPING)]
        if spot.node.kind is Kind.LIST and not spot.node.items:
            spot.refuse("there are no cases")
        return tuple(case for case in map(self._case, entries) if case is not None)

    def _case(self, spot: Spot) -> Case | None:
        before = len(self._problems.found)
        spot.refuse_others(_CASE)
        name, expect = spot.required_value("name", str) or "", spot.required_value("expect", _expected) or ""
        if name in self._names:
            spot.at("name").refuse(f"the case of line {self._names[name]} has this name, too")
        self._names.setdefault(name, spot.node.line)
        policy = spot.value("policy", _full_name) or ""
        case = Case(name, _asked(spot), expect, policy, _rule(spot), spot.place)
        return case if len(self._problems.found) == before else None


def _asked(spot: Spot) -> Asked:
    claims, anonymous = spot.mapping("claims"), spot.boolean("anonymous")
    if claims and anonymous:
        spot.at("anonymous").refuse("who is anonymous has no claims")
    return Asked(
        method=spot.required_value("method", asked.method) or "",
        url=spot.required_value("url", asked.url) or "",
        headers=_headers(spot.mapping("headers")),
        claims=plain(claims.node) if claims else None,
        source=spot.value("source", asked.address),
        remote=spot.value("remote", asked.address),
        peer=spot.value("peer", str) or "",
    )


def _expected(text: str) -> str:
    if text not in VERDICTS:
        raise ValueError(f"taken are {', '.join(VERDICTS)}")
    return text


def _full_name(text: str) -> str:
    if "/" not in text:
        raise ValueError("a policy is named with its namespace, as in default/backend-authz")
    return text


def plain(node: Node) -> Any:
    """What a node stands for, as JSON would have it."""
    match node.kind:
        case Kind.MAPPING:
            return {name: plain(member.node) for name, member in node.members.items()}
        case Kind.LIST:
            return [plain(item) for item in node.items]
        case Kind.NUMBER:
            return _number(node.text)
        case Kind.BOOLEAN:
            return node.text.lower() in ("true", "yes", "on")
        case Kind.NOTHING:
            return None
    return node.text


def _number(text: str) -> int | float:
    digits = text.replace("_", "")
    try:
        return int(digits, 0)
    except ValueError:
        pass
    try:
        return float(digits)
    except ValueError:
        return 0  # YAML has more spellings; to policies all numbers are the same (M41)


def _headers(spot: Spot | None) -> Mapping[str, str]:
    lines: list[tuple[str, str]] = []
    for name, value in spot.members() if spot else ():
        if value.is_a(Kind.TEXT):
            try:
                lines.append(asked.header(name, value.node.text))
            except ValueError as error:
                value.refuse(str(error))
    return asked.joined(lines)


def _rule(spot: Spot) -> int | None:
    rule = spot.member("rule")
    if rule is None:
        return None
    if rule.node.kind is not Kind.NUMBER or not _RULE.fullmatch(rule.node.text):
        rule.refuse("the number of a rule, from 0, is taken here")
        return None
    return int(rule.node.text)
