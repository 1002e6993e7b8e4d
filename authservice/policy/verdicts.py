"""The order in which policies count, and so what a workload's policies say together (M01 to M11).

A `Lane` holds the rules that could match certain questions, `decide` asks them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from authservice.policy.conjuncts import Test
from authservice.policy.question import Ground, Hit, Question, Verdict
from authservice.policy.resources import Action
from authservice.policy.rules import CompiledPolicy, CompiledRule

NO_POLICY = Verdict(True, Ground.NO_POLICY)
NO_ALLOW_RULE = Verdict(False, Ground.NO_ALLOW_RULE)
UNKNOWN_WORKLOAD = Verdict(False, Ground.UNKNOWN_WORKLOAD)

Ruled = tuple[tuple[Test, Verdict], ...]


@dataclass(frozen=True, slots=True)
class Lane:
    """The rules that could match, each with the verdict that it leads to, and the verdict when none does.
    ``trial…`` are those of policies on trial; ``trial_otherwise`` counts with their ALLOW policies."""

    deny: Ruled
    allow: Ruled
    otherwise: Verdict
    trial_deny: Ruled
    trial_allow: Ruled
    trial_otherwise: Verdict
    audit: tuple[tuple[Test, Hit], ...]
    plain: bool
    """Neither trial nor audit: the first verdict is the last word."""


def lane(policies: Sequence[CompiledPolicy], narrow: Callable[[CompiledRule], Test | None]) -> Lane:
    """The lane of the rules of which ``narrow`` leaves something to be asked."""

    def ruled(action: Action, dry_run: bool) -> tuple[tuple[Test, Hit], ...]:
        chosen = (policy for policy in policies if policy.action is action and policy.dry_run is dry_run)
        tests = ((narrow(rule), rule.hit) for policy in chosen for rule in policy.rules)
        return tuple((test, hit) for test, hit in tests if test is not None)

    def leading(action: Action, dry_run: bool) -> Ruled:
        allowed = action is Action.ALLOW
        ground = Ground.ALLOW_RULE if allowed else Ground.DENY_RULE
        return tuple((test, Verdict(allowed, ground, hit)) for test, hit in ruled(action, dry_run))

    grants = [policy for policy in policies if policy.action is Action.ALLOW]
    otherwise = NO_POLICY if all(policy.dry_run for policy in grants) else NO_ALLOW_RULE
    audit = ruled(Action.AUDIT, False)
    return Lane(
        deny=leading(Action.DENY, False),
        allow=leading(Action.ALLOW, False),
        otherwise=otherwise,
        trial_deny=leading(Action.DENY, True),
        trial_allow=leading(Action.ALLOW, True),
        trial_otherwise=NO_ALLOW_RULE if grants else NO_POLICY,
        audit=audit,
        plain=not audit and not any(policy.dry_run for policy in policies),
    )


def decide(rules: Lane, question: Question) -> Verdict:
    """What the rules say: one that denies first, then one that allows, then what is left (M02 to M04)."""
    verdict = _first(rules.deny, question) or _first(rules.allow, question) or rules.otherwise
    if rules.plain:
        return verdict
    would = _on_trial(rules, question, verdict)
    audited = tuple(hit for test, hit in rules.audit if test(question))
    if would.allowed is verdict.allowed:
        return Verdict(verdict.allowed, verdict.ground, verdict.hit, None, audited) if audited else verdict
    return Verdict(verdict.allowed, verdict.ground, verdict.hit, would, audited)


def _first(ruled: Ruled, question: Question) -> Verdict | None:
    for test, verdict in ruled:
        if test(question):
            return verdict
    return None


def _on_trial(rules: Lane, question: Question, verdict: Verdict) -> Verdict:
    """The verdict when policies on trial count, too (M10)."""
    if verdict.ground is Ground.DENY_RULE:
        return verdict
    denied = _first(rules.trial_deny, question)
    if denied is not None or verdict.ground is Ground.ALLOW_RULE:
        return denied or verdict
    return _first(rules.trial_allow, question) or rules.trial_otherwise
