"""Policies ready to be asked: each rule as tests that live checks run and explanations put into words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from authservice.policy import conditions
from authservice.policy.conjuncts import Conjunct, SettledBy, Test
from authservice.policy.question import Hit, Question
from authservice.policy.resources import Action, AuthorizationPolicy, Rule

MOST_ALTERNATIVES = 4
"""Entries of ``from`` or ``to`` whose failure is put into words."""

Group = tuple[Conjunct, ...]


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """One rule: it matches when one of ``sources``, one of ``operations`` and all ``conditions`` hold; no
    source or no operation at all is no constraint (M13, M14)."""

    hit: Hit
    sources: tuple[Group, ...]
    operations: tuple[Group, ...]
    conditions: Group

    @property
    def looks_at_host(self) -> bool:
        """Whether the host matters to it."""
        groups = (*self.operations, self.conditions)
        return any(conjunct.settled_by == "host" for group in groups for conjunct in group)

    def matches(self, question: Question) -> bool:
        """Whether the rule matches."""
        return not self.failure(question)

    def failure(self, question: Question) -> str:
        """In words the first condition that does not hold, in the order of reading; empty when the rule
        matches."""
        for side in (self.sources, self.operations):
            failure = _failure_of_all(side, question)
            if failure:
                return failure
        return _failure(self.conditions, question)

    def narrowed(self, probe: Question, settled: frozenset[SettledBy]) -> Test | None:
        """What is left to be asked of questions that share with the probe what is ``settled``, its method, its host
        or both; ``None`` when the rule cannot match one of them."""
        operations = [_unsettled(group, settled) for group in self.operations if _may_hold(group, probe, settled)]
        if (self.operations and not operations) or not _may_hold(self.conditions, probe, settled):
            return None
        tests = _unsettled(self.conditions, settled)
        if operations and all(operations):
            tests.append(_any_of([_all_of(group) for group in operations]))
        if self.sources:
            tests.append(_any_of([_all_of([conjunct.holds for conjunct in group]) for group in self.sources]))
        return _all_of(tests)


def _may_hold(group: Group, probe: Question, settled: frozenset[SettledBy]) -> bool:
    return all(conjunct.holds(probe) for conjunct in group if conjunct.settled_by in settled)


def _unsettled(group: Group, settled: frozenset[SettledBy]) -> list[Test]:
    return [conjunct.holds for conjunct in group if conjunct.settled_by not in settled]


def _failure(group: Group, question: Question) -> str:
    for conjunct in group:
        if not conjunct.holds(question):
            return conjunct.why_not(question)
    return ""


def _failure_of_all(side: Sequence[Group], question: Question) -> str:
    """Why none of the entries holds; empty when one does, or when there are none."""
    failures = []
    for group in side:
        failure = _failure(group, question)
        if not failure:
            return ""
        failures.append(failure)
    more = [f"and {len(failures) - MOST_ALTERNATIVES} more"] if len(failures) > MOST_ALTERNATIVES else []
    return "; ".join(failures[:MOST_ALTERNATIVES] + more)


def _always(_: Question) -> bool:
    return True


def _all_of(tests: Sequence[Test]) -> Test:
    """One test of several, shaped so that a check pays for those that there are and for nothing else."""
    if not tests:
        return _always
    if len(tests) == 1:
        return tests[0]
    if len(tests) == 2:
        one, two = tests
        return lambda question: one(question) and two(question)
    if len(tests) == 3:
        one, two, three = tests
        return lambda question: one(question) and two(question) and three(question)
    several = tuple(tests)

    def all_hold(question: Question) -> bool:
        for test in several:
            if not test(question):
                return False
        return True

    return all_hold


def _any_of(tests: Sequence[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]
    several = tuple(tests)

    def one_holds(question: Question) -> bool:
        for test in several:
            if test(question):
                return True
        return False

    return one_holds


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """An `AuthorizationPolicy` with its rules; ``name`` is the full one."""

    name: str
    action: Action
    dry_run: bool
    rules: tuple[CompiledRule, ...]


def compile_policy(policy: AuthorizationPolicy) -> CompiledPolicy:
    """The policy ready to be asked. Raises `ValueError` for what `read` refuses.

    What is in doubt matches no rule that grants and every rule that denies or records (M26).
    """
    doubt = policy.action is not Action.ALLOW
    rules = tuple(_compile_rule(rule, number, policy, doubt) for number, rule in enumerate(policy.rules))
    return CompiledPolicy(policy.full_name, policy.action, policy.dry_run, rules)


def _compile_rule(rule: Rule, number: int, policy: AuthorizationPolicy, doubt: bool) -> CompiledRule:
    space = policy.namespace
    return CompiledRule(
        hit=Hit(policy.full_name, number),
        sources=tuple(
            conditions.of_source(source, space, f"from[{index}].source", doubt)
            for index, source in enumerate(rule.sources)
        ),
        operations=tuple(
            conditions.of_operation(operation, f"to[{index}].operation", doubt)
            for index, operation in enumerate(rule.operations)
        ),
        conditions=tuple(
            conditions.of_condition(condition, space, f"when[{index}]", doubt)
            for index, condition in enumerate(rule.conditions)
        ),
    )
