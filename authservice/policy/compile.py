"""Resources and workloads become the set that is asked: for each workload the policies that select it.

`compile` finds what cannot work before anybody is judged by it. `PolicySet` and `Selected` answer live
checks and explanations with the same tests: a check asks the few rules that could match its method and
host, an explanation all of them.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from authservice.policy import conditions
from authservice.policy.conjuncts import SettledBy
from authservice.policy.question import Explanation, Question, Step, Verdict
from authservice.policy.resources import (
    Action,
    AuthorizationPolicy,
    JwtRule,
    Place,
    PolicyErrors,
    RequestAuthentication,
    Resource,
    Rule,
)
from authservice.policy.rules import CompiledPolicy, compile_policy
from authservice.policy.selection import Selections
from authservice.policy.verdicts import UNKNOWN_WORKLOAD, Lane, decide, lane
from authservice.policy.workloads import Workloads
from authservice.urls import MAX_AUTHORITY

MOST_LANES = 128
"""Of one workload: clients name hosts as they like."""
MOST_RULES = 1 << 16
"""In all lanes of one workload, once they are more than `FEWEST_LANES`: a rule takes half a kilobyte in each."""
FEWEST_LANES = 8
MOST_ADDRESSES = 1024
"""Hosts, or hosts and paths, of which the workload is known already."""
_ORDER = (Action.DENY, Action.ALLOW, Action.AUDIT)
_USUAL_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
_ANY_OTHER = ""
"""Methods of which clients could invent one for each check: a lane costs as much as many checks, so that all of
them have one, whose rules ask for the method."""
_BY_HOST: frozenset[SettledBy] = frozenset({"host"})
_BY_BOTH: frozenset[SettledBy] = frozenset({"host", "method"})

K = TypeVar("K")
V = TypeVar("V")


class _Memory(dict[K, V], Generic[K, V]):
    """What ``make`` made of a key, for the last few keys that were new: ``most`` of them, and fewer where together
    they ``weigh`` more than `MOST_RULES`. Safe for threads."""

    def __init__(self, make: Callable[[K], V], most: int, weigh: Callable[[V], int] = lambda value: 0) -> None:
        super().__init__()
        self._make = make
        self._most = most
        self._weigh = weigh
        self._weight = 0
        self._lock = threading.Lock()

    def __missing__(self, key: K) -> V:
        value = self._make(key)
        with self._lock:
            if key in self:  # another thread was faster
                return self[key]
            self._weight += self._weigh(value)
            while len(self) >= self._most or (self._weight > MOST_RULES and len(self) >= FEWEST_LANES):
                self._weight -= self._weigh(self.pop(next(iter(self))))
            self[key] = value
        return value


class Selected:
    """The policies of one workload. Made by `compile`."""

    def __init__(
        self, name: str, policies: Sequence[CompiledPolicy], authentications: Sequence[RequestAuthentication]
    ) -> None:
        self.name = name
        self.jwt_rules: tuple[JwtRule, ...] = tuple(
            rule for authentication in authentications for rule in authentication.rules
        )
        """Of all that select the workload, as one list (M65)."""
        self._policies = tuple(sorted(policies, key=lambda policy: (_ORDER.index(policy.action), policy.name)))
        self.allowing = tuple(
            policy.name for policy in self._policies if policy.action is Action.ALLOW and not policy.dry_run
        )
        """The ALLOW policies of which a rule has to match, once there is one."""
        self._by_host = any(rule.looks_at_host for policy in self._policies for rule in policy.rules)
        self._all = lane(self._policies, lambda rule: rule.matches)
        self._lanes: _Memory[tuple[str, str], Lane] = _Memory(self._lane, MOST_LANES, _rules_in)
        self._split = {rule.issuer: self._split_names(rule.issuer) for rule in self.jwt_rules}
        self._split_by_anybody = self._split_names("")

    def judge(self, question: Question) -> Verdict:
        """What the policies say of a request."""
        method = question.method if question.method in _USUAL_METHODS else _ANY_OTHER
        return decide(self._lanes[question.host if self._by_host else "", method], question)

    def explain(self, question: Question) -> Explanation:
        """The same verdict, with every rule and why it did not match."""
        steps = tuple(step for policy in self._policies for step in _steps(policy, question))
        return Explanation(decide(self._all, question), self.name, steps)

    def split_for(self, issuer: str) -> frozenset[str]:
        """The claims in tokens of an issuer that are split at blanks besides the usual ones (M45)."""
        return self._split.get(issuer, self._split_by_anybody)

    def _split_names(self, issuer: str) -> frozenset[str]:
        fitting = (rule for rule in self.jwt_rules if rule.issuer in ("", issuer))
        return frozenset(name for rule in fitting for name in rule.space_delimited_claims)

    def _lane(self, key: tuple[str, str]) -> Lane:
        host, method = key
        probe = Question(method=method, host=host, path=None, port=None, headers={})
        settled = _BY_HOST if method == _ANY_OTHER else _BY_BOTH
        return lane(self._policies, lambda rule: rule.narrowed(probe, settled))


def _rules_in(rules: Lane) -> int:
    return sum(map(len, (rules.deny, rules.allow, rules.trial_deny, rules.trial_allow, rules.audit)))


def _steps(policy: CompiledPolicy, question: Question) -> Iterable[Step]:
    if not policy.rules:
        words = "the policy has no rules, so it matches nothing"
        yield Step(policy.name, policy.action.value, None, False, words, policy.dry_run)
    for rule in policy.rules:
        failure = rule.failure(question)
        yield Step(policy.name, policy.action.value, rule.hit.rule, not failure, failure, policy.dry_run)


class PolicySet:
    """All policies, by workload. Never changes; safe for threads. Made by `compile`."""

    def __init__(self, resources: Sequence[Resource], workloads: Workloads, selected: Sequence[Selected]) -> None:
        policies = [resource for resource in resources if isinstance(resource, AuthorizationPolicy)]
        self.policies = len(resources)
        """How many resources there are, of both kinds."""
        self.uses_addresses = any(_address_problems(policy) for policy in policies)
        self.uses_peers = any(_peer_problems(policy) for policy in policies)
        self.jwt_rules: tuple[JwtRule, ...] = tuple(
            rule for resource in resources if isinstance(resource, RequestAuthentication) for rule in resource.rules
        )
        """Of all workloads."""
        self._workloads = workloads
        self._selected = {one.name: one for one in selected}
        self._only = None if workloads.named else selected[0]
        self._by_path = any("/" in workload.name for workload in workloads.all)
        self._found: _Memory[tuple[str, str | None], Selected | None] = _Memory(self._find, MOST_ADDRESSES)

    def workload(self, host: str, path: str | None) -> Selected | None:
        """The policies for a request to ``host`` (lower-case, with its port as sent) and canonical ``path``;
        ``None`` when no workload is known by them, and so nobody may pass."""
        if self._only is not None:
            return self._only
        if len(host) > MAX_AUTHORITY:
            return None  # No workload's, and not worth remembering.
        return self._found[host, path if self._by_path else ""]

    def judge(self, question: Question) -> Verdict:
        """What the policies of the question's workload say."""
        selected = self.workload(question.host, question.path)
        return UNKNOWN_WORKLOAD if selected is None else selected.judge(question)

    def explain(self, question: Question) -> Explanation:
        """The same verdict, and how it came about."""
        selected = self.workload(question.host, question.path)
        return Explanation(UNKNOWN_WORKLOAD, "", ()) if selected is None else selected.explain(question)

    def _find(self, key: tuple[str, str | None]) -> Selected | None:
        found = self._workloads.find(*key)
        return None if found is None else self._selected[found.name]


def compile(
    resources: Iterable[Resource],
    workloads: Workloads,
    *,
    root_namespace: str = "istio-system",
    knows_addresses: bool,
    knows_peers: bool,
) -> PolicySet:
    """The set that resources make for workloads. Raises `resources.PolicyErrors` with every problem: two
    resources of one name, a policy that would count nowhere, one that asks for addresses or for identities
    in the mesh which nobody tells. Their values are as `read` has checked them."""
    ordered = sorted(resources, key=lambda resource: (resource.full_name, resource.place))
    selections = Selections(workloads, root_namespace)
    problems = _same_names(ordered)
    policies: dict[str, list[CompiledPolicy]] = defaultdict(list)
    authentications: dict[str, list[RequestAuthentication]] = defaultdict(list)
    for resource in ordered:
        chosen = selections.of(resource)
        if not chosen:
            problems.append((resource.place, selections.missing(resource)))
        if isinstance(resource, RequestAuthentication):
            for name in chosen:
                authentications[name].append(resource)
            continue
        problems += [] if knows_addresses else _address_problems(resource)
        problems += [] if knows_peers else _peer_problems(resource)
        compiled = compile_policy(resource)
        for name in chosen:
            policies[name].append(compiled)
    if problems:
        raise PolicyErrors(sorted(problems))
    names = [workload.name for workload in workloads.all]
    return PolicySet(ordered, workloads, [Selected(name, policies[name], authentications[name]) for name in names])


Problems = list[tuple[Place, str]]


def _same_names(resources: Sequence[Resource]) -> Problems:
    names = Counter((type(resource), resource.full_name) for resource in resources)
    first = {(type(resource), resource.full_name): resource.place for resource in reversed(resources)}
    return [
        (resource.place, f"{resource.full_name} is there already, at {first[type(resource), resource.full_name]}")
        for resource in resources
        if names[type(resource), resource.full_name] > 1 and resource.place != first[type(resource), resource.full_name]
    ]


def _address_problems(policy: AuthorizationPolicy) -> Problems:
    """Where a policy asks for addresses (M33)."""
    words = "the addresses of callers are known only where TRUSTED_PROXIES names the gateway"
    places = _places(policy, conditions.asks_for_addresses, conditions.ADDRESS_KEYS)
    return [(place, words) for place in places]


def _peer_problems(policy: AuthorizationPolicy) -> Problems:
    """Where a policy asks for identities in the mesh (M37)."""
    words = "callers' identities in the mesh are known only where POLICY_PEER_HEADER names the header that tells them"
    return [(place, words) for place in _places(policy, conditions.asks_for_peers, conditions.PEER_KEYS)]


def _places(policy: AuthorizationPolicy, asks: Callable[..., bool], keys: frozenset[str]) -> list[Place]:
    return [place for rule in policy.rules for place in _places_in_rule(rule, asks, keys)]


def _places_in_rule(rule: Rule, asks: Callable[..., bool], keys: frozenset[str]) -> list[Place]:
    fields = [f"from[{number}].source" for number, source in enumerate(rule.sources) if asks(source)]
    fields += [f"when[{number}].key" for number, when in enumerate(rule.conditions) if when.key in keys]
    return [replace(rule.place, field=f"{rule.place.field}.{field}") for field in fields]
