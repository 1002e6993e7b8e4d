"""What is asked of a policy set, and what it answers, as values.

`authz.policy` makes a `Question` of a live check, ``authservice policy`` of its arguments, the tests of
what they send to Envoy; `policy.compile` answers all of them with the same code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec


class Question(msgspec.Struct, frozen=True):
    """One request as policies see it. ``None`` stands for what is not known, or in doubt: it matches no
    ALLOW rule and every DENY rule, whether a field or its ``not…`` asks (M26).

    ``host`` is lower-case with its port as sent. ``path`` is without query and fragment. ``port`` is the
    destination's. ``headers`` maps lower-case names to values, lines of one name joined by a comma.
    ``claims`` are verified, ``None`` without an identity; ``split`` names the claims besides ``scope`` and
    ``permission`` that are split at blanks (M45). ``source`` is the address of the gateway's peer, ``remote``
    the client's. ``peer`` is the peer's identity in the mesh without ``spiffe://``; empty: it has none.
    """

    method: str
    host: str
    path: str | None
    port: int | None
    headers: Mapping[str, str]
    claims: Mapping[str, Any] | None = None
    split: frozenset[str] = frozenset()
    source: str | None = None
    remote: str | None = None
    peer: str | None = None


class Ground(str, Enum):
    """What a verdict rests on: the word in logs, explanations and tests."""

    NO_POLICY = "no_policy"  # none selects the workload, or no ALLOW policy that is enforced (M01, M03)
    ALLOW_RULE = "allow_rule"  # a rule of an ALLOW policy matches (M04)
    DENY_RULE = "deny_rule"  # a rule of a DENY policy matches (M02)
    NO_ALLOW_RULE = "no_allow_rule"  # there are ALLOW policies, and no rule of theirs matches (M04)
    UNKNOWN_WORKLOAD = "unknown_workload"  # workloads are named, and none of them is this host


@dataclass(frozen=True, slots=True)
class Hit:
    """A rule that matched: its policy's full name and its number in the file, from 0."""

    policy: str
    rule: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the set says of a question.

    ``hit`` is the rule that decided, for the grounds that have one. ``would`` is the verdict that counts when
    policies on trial (dry run) are enforced, too; ``None`` when that changes nothing. ``audited`` are the
    matching rules of AUDIT policies.
    """

    allowed: bool
    ground: Ground
    hit: Hit | None = None
    would: Verdict | None = None
    audited: tuple[Hit, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One rule in an explanation: whether it matched, and the first condition that did not hold, in
    words (``to[0].operation.methods: "POST" is none of "GET"``). A policy without rules is one step with
    ``rule`` ``None``."""

    policy: str
    action: str
    rule: int | None
    matched: bool
    failed: str = ""
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Explanation:
    """A verdict with how it came about: every rule of every policy that selects the workload."""

    verdict: Verdict
    workload: str
    steps: tuple[Step, ...]
