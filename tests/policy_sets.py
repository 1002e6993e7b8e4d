"""Policy sets for tests, from the plain values of their YAML, and questions to ask them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from authservice.policy.compile import PolicySet, compile
from authservice.policy.question import Question
from authservice.policy.read import read_text
from authservice.policy.resources import Resource
from authservice.policy.workloads import Workloads, parse

Json = dict[str, Any]


def document(kind: str, name: str, spec: Json, namespace: str = "default", **annotations: str) -> Json:
    """One document of a policy file."""
    metadata: Json = {"name": name, "namespace": namespace}
    if annotations:
        metadata["annotations"] = {"istio.io/dry-run": annotations["dry_run"]}
    return {"apiVersion": "security.istio.io/v1", "kind": kind, "metadata": metadata, "spec": spec}


def policy(
    *rules: Json, name: str = "p", action: str = "", namespace: str = "default", dry_run: str = "", **spec: Any
) -> Json:
    """An AuthorizationPolicy with rules; without any it has no ``rules``."""
    whole = {**({"action": action} if action else {}), **({"rules": list(rules)} if rules else {}), **spec}
    annotations = {"dry_run": dry_run} if dry_run else {}
    return document("AuthorizationPolicy", name, whole, namespace, **annotations)


def authentication(*rules: Json, name: str = "r", namespace: str = "default", **spec: Any) -> Json:
    """A RequestAuthentication with rules."""
    return document("RequestAuthentication", name, {"jwtRules": list(rules), **spec}, namespace)


def resources(*documents: Json) -> list[Resource]:
    """What a file with these documents holds."""
    return read_text("\n---\n".join(map(json.dumps, documents)), "policies.yaml")


def policy_set(
    *documents: Json,
    workloads: Mapping[str, Any] | None = None,
    root: str = "istio-system",
    addresses: bool = True,
    peers: bool = True,
) -> PolicySet:
    """The set of these documents."""
    named = Workloads.single() if workloads is None else parse(json.dumps(workloads))
    return compile(resources(*documents), named, root_namespace=root, knows_addresses=addresses, knows_peers=peers)


def ask(
    method: str = "GET",
    host: str = "app.example",
    path: str | None = "/",
    port: int | None = 443,
    headers: Mapping[str, str] | None = None,
    claims: Mapping[str, Any] | None = None,
    **others: Any,
) -> Question:
    """A question."""
    return Question(method=method, host=host, path=path, port=port, headers=headers or {}, claims=claims, **others)


def matches(rule: Json, question: Question, action: str = "ALLOW") -> bool:
    """Whether a rule of a policy with this action matches, which `explain` has to confirm."""
    chosen = policy_set(policy(rule, action=action))
    verdict, explanation = chosen.judge(question), chosen.explain(question)
    assert explanation.verdict == verdict
    matched = bool(verdict.audited) if action == "AUDIT" else verdict.hit is not None
    assert [step.matched for step in explanation.steps] == [matched]
    assert all(bool(step.failed) is not step.matched for step in explanation.steps)
    return matched


def to(**operation: Sequence[str]) -> Json:
    """A rule with one operation."""
    return {"to": [{"operation": {name: list(values) for name, values in operation.items()}}]}


def sent_by(**source: Sequence[str]) -> Json:
    """A rule with one source."""
    return {"from": [{"source": {name: list(values) for name, values in source.items()}}]}


def when(key: str, *values: str, not_values: Sequence[str] = ()) -> Json:
    """A rule with one condition."""
    condition: Json = {"key": key}
    if values:
        condition["values"] = list(values)
    if not_values:
        condition["notValues"] = list(not_values)
    return {"when": [condition]}
