"""Our verdicts beside those of a real Envoy: 10 000 policies, requests and claims at random.

What is compared is the whole way: policies as YAML text through reader and compiler, against the same
policies translated to Envoy's jwt_authn and rbac filters (`tests.policy_envoy`). Both see the path as it was
sent. In every triple the status (200, 401, 403) is equal; so is whether an AUDIT rule matched, that a
DENY rule which Envoy names matched for us, too, and what would be if dry runs were enforced.

Stricter on purpose, and therefore only shown never to be laxer: a header that comes twice or holds a comma
(lines and lists look alike when they have been joined, so both readings must allow). Not generated are
``Bearer`` in other spellings, two good tokens at a time, mesh identities other than none at all, the header
``host`` (any letter case for us, as in ``hosts``), and paths in policies spelled otherwise than canonically.

``POLICY_SEED`` chooses other policies, requests and claims; a disagreement names its own.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from authservice.policy.compile import PolicySet as Compiled
from authservice.policy.compile import compile as compile_policies
from authservice.policy.question import Ground, Question, Verdict
from authservice.policy.read import read_text
from authservice.policy.workloads import Workloads
from tests.policy_envoy import JudgingEnvoy, Said
from tests.policy_generator import ISSUERS, PolicySet, Sent, as_text, document, policy_set
from tests.policy_tokens import Placed, key_set, sent_with

pytestmark = pytest.mark.external

SEED = int(os.environ.get("POLICY_SEED", "1"))
SHARDS, TRIPLES = 4, 2_500
REQUESTS = 25


def question(sent: Sent, compiled: Compiled) -> Question:
    """What policies are asked about a request: all of it as it was sent."""
    headers: dict[str, str] = {}
    for name, value in (("host", sent.host), *sent.headers):
        value = value.encode().decode("latin-1")
        lower = name.lower()
        headers[lower] = f"{headers[lower]},{value}" if lower in headers else value
    host = sent.host.lower()
    workload = compiled.workload(host, sent.path)
    assert workload is not None
    rules, claims = workload.jwt_rules, sent.claims
    return Question(
        method=sent.method, host=host, path=sent.path, port=sent.port, headers=headers, claims=claims,
        split=workload.split_for(str(claims["iss"])) if claims and rules else frozenset(),
        source=sent.source, remote=sent.remote, peer="",
    )


def forms(field_name: str, values: list[str]) -> Iterator[str]:
    """The forms of a field's values, as words to count."""
    for value in values:
        if "{" in value:
            yield f"{field_name} template"
        elif value == "*":
            yield f"{field_name} present"
        elif value.startswith("*"):
            yield f"{field_name} suffix"
        else:
            yield f"{field_name} prefix" if value.endswith("*") else f"{field_name} exact"


def features(rule: dict[str, Any]) -> set[str]:
    """What a rule consists of: its fields with the forms of their values."""
    found: set[str] = set()
    for part, entry in (("from", "source"), ("to", "operation")):
        for one in rule.get(part, ()):
            for name, values in one[entry].items():
                found.update(forms(name, values))
    for condition in rule.get("when", ()):
        key = condition["key"]
        kind = key.partition("[")[0]
        if kind == "request.auth.claims" and key.count("[") > 1:
            kind += " nested"
        for side in ("values", "notValues"):
            found.update(forms(f"{kind} {side}", condition.get(side, [])))
    return found or {"empty rule"}


@dataclass
class Tally:
    """What was compared so far. ``decided`` counts each feature of the rules that matched, or did not."""

    statuses: Counter[int] = field(default_factory=Counter)
    grounds: Counter[str] = field(default_factory=Counter)
    decided: Counter[tuple[str, bool]] = field(default_factory=Counter)
    audited: int = 0
    stricter: int = 0

    @property
    def triples(self) -> int:
        return self.statuses.total()


def differences(said: Said, verdict: Verdict, matched: set[str]) -> Iterator[str]:
    """In which ways a verdict is another than Envoy's."""
    ours = 200 if verdict.allowed else 403
    if ours != said.status:
        yield f"ours is {ours} ({verdict.ground.value} {verdict.hit}), Envoy's is {said.status} ({said.refused_by})"
    elif (said.refused_by == "none") != (verdict.ground is Ground.NO_ALLOW_RULE):
        yield f"our ground is {verdict.ground.value}, Envoy's is {said.refused_by!r}"
    elif said.refused_by not in ("", "none", *matched):
        yield f"Envoy is refused by {said.refused_by!r}, which did not match for us"
    if bool(verdict.audited) != said.audited:
        yield f"ours is audited by {verdict.audited}, Envoy says {said.audited}"


class Comparison:
    """One policy set beside its translation."""

    def __init__(self, drawn: PolicySet, envoy: JudgingEnvoy, tally: Tally) -> None:
        self.drawn, self.envoy, self.tally = drawn, envoy, tally
        self.text = yaml.dump_all(drawn.documents, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True)
        self.ours = compile_policies(
            read_text(self.text, "generated.yaml"), Workloads.single(), knows_addresses=True, knows_peers=True
        )
        self.features = {
            (f"default/{document['metadata']['name']}", number): features(rule)
            for document in drawn.documents if document["kind"] == "AuthorizationPolicy"
            for number, rule in enumerate(document["spec"].get("rules", ()))
        }

    def ask_envoy(self, sent: Sent, suffix: str = "") -> Said:
        tokens = [] if sent.claims is None else [Placed("authorization", sent.claims)]
        request = sent_with(sent, tokens).bytes()
        return self.envoy.ask(f"{self.drawn.seed}{suffix}", request, source=sent.source, port=sent.port)

    def compare(self, sent: Sent) -> list[str]:
        """The differences, in words; counts what was compared."""
        asked = question(sent, self.ours)
        verdict, explained = self.ours.judge(asked), self.ours.explain(asked)
        assert explained.verdict == verdict
        said = self.ask_envoy(sent)
        if not sent.is_plain:
            self.tally.stricter += 1
            return ["laxer than Envoy"] if verdict.allowed and said.status != 200 else []
        matched = {f"{step.policy}#{step.rule}" for step in explained.steps if step.matched}
        self.tally.statuses[said.status] += 1
        self.tally.grounds[verdict.ground.value] += 1
        self.tally.audited += said.audited
        for step in explained.steps:
            if step.rule is not None:
                for feature in self.features[step.policy, step.rule]:
                    self.tally.decided[feature, step.matched] += 1
        found = list(differences(said, verdict, matched))
        if self.drawn.on_trial:
            would = (verdict.would or verdict).allowed
            enforced = self.ask_envoy(sent, "+")
            if would != (enforced.status == 200):
                found.append(f"with dry runs enforced ours would be {would}, Envoy's {enforced.status}")
        return found

    def report(self, sent: Sent, found: list[str]) -> str:
        """All that is needed to look at a disagreement."""
        claims = as_text(sent.claims)
        request = sent.bytes().decode().replace("\r\n", "\n").rstrip()
        return "\n".join([
            f"POLICY_SEED={SEED}, set {self.drawn.seed}:", *found, "--- policies", self.text.rstrip(),
            f"--- request from {sent.source} to port {sent.port}", request, f"--- claims {claims}",
        ])


def compare_all(sets: list[PolicySet], folder: Path, tally: Tally) -> list[str]:
    """The reports of all disagreements."""
    reports = []
    with JudgingEnvoy(folder, {str(drawn.seed): drawn.documents for drawn in sets}) as envoy:
        for drawn in sets:
            comparison = Comparison(drawn, envoy, tally)
            for sent in drawn.requests:
                found = comparison.compare(sent)
                if found:
                    reports.append(comparison.report(sent, found))
    return reports


@pytest.mark.parametrize("shard", range(SHARDS))
def test_verdicts_are_those_of_envoy(shard: int, tmp_path: Path) -> None:
    # Some more than needed, for those that may differ on purpose.
    count = TRIPLES * 11 // 10 // REQUESTS
    first = SEED * 1_000_000 + shard * count
    tally = Tally()
    sets = [policy_set(seed, key_set, REQUESTS) for seed in range(first, first + count)]
    reports = compare_all(sets, tmp_path, tally)
    assert not reports, f"{len(reports)} disagreements, for example\n\n" + "\n\n".join(reports[:3])
    assert tally.triples >= TRIPLES


def path(value: str) -> dict[str, Any]:
    return {"to": [{"operation": {"paths": [value]}}]}


def to(**fields: list[str]) -> dict[str, Any]:
    return {"to": [{"operation": fields}]}


def claim(name: str, value: str = "", *, but_not: str = "") -> dict[str, Any]:
    values = {"values": [value]} if value else {}
    return {"when": [{"key": f"request.auth.claims{name}", **values, **({"notValues": [but_not]} if but_not else {})}]}


def principal(value: str) -> dict[str, Any]:
    return {"from": [{"source": {"requestPrincipals": [value]}}]}


PLAIN = Sent("GET", "/", "app.example", (), "127.0.0.1", 80)
IDENTITY = {"iss": ISSUERS[0], "sub": "alice"}

MEASURED: list[tuple[str, dict[str, Any], dict[str, Any], bool]] = [
    ("M09", {}, {}, True),
    ("M17", claim("[x]", "a*n"), {"claims": {"x": "a*n"}}, True),
    ("M17", claim("[x]", "a*n"), {"claims": {"x": "aXn"}}, False),
    ("M17", claim("[x]", "*a*"), {"claims": {"x": "ba*"}}, True),
    ("M17", claim("[x]", "*a*"), {"claims": {"x": "bab"}}, False),
    ("M20", claim("[x]", "*"), {"claims": {"x": ""}}, False),
    ("M20", claim("[x]", "*"), {"claims": {"x": "a\nb"}}, False),
    ("M20", {"when": [{"key": "request.headers[x-e]", "values": ["*"]}]}, {"headers": (("X-E", ""),)}, True),
    ("M22", to(hosts=["app.example"]), {"host": "APP.example"}, True),
    ("M22", to(hosts=["app.example"]), {"host": "app.example:8443"}, False),
    ("M22", to(hosts=["app.example:*"]), {"host": "app.example"}, False),
    ("M22", to(hosts=["app.example"]), {"host": "app.example."}, False),
    ("M22", to(hosts=["*.wild.ex"]), {"host": "wild.ex"}, False),
    ("M22", to(hosts=["*.wild.ex"]), {"host": "a.wild.ex:80"}, False),
    ("M23", to(methods=["GET"]), {"method": "HEAD"}, False),
    ("M25", path("/a/b"), {"target": "/a/b?x=1"}, True),
    *[("M25", path("/a/b"), {"target": target}, False)
      for target in ("/a%2Fb", "/a//b", "/a/./b", "/a/b/", "/a/b;x=1", "/A/b")],
    *[("M28", path("/a/{*}/c"), {"target": target}, True)
      for target in ("/a/b/c", "/a/b%2Fx/c", "/a/b=1/c", "/a/b;1/c", "/a/../c")],
    *[("M28", path("/a/{*}/c"), {"target": target}, False) for target in ("/a//c", "/a/b/d/c", "/a/b/c/")],
    *[("M28", path("/a/{**}"), {"target": target}, target != "/a") for target in ("/a/", "/a/b/c", "/a//b", "/a")],
    *[("M28", path("/a/{**}/c"), {"target": target}, target not in ("/a/c", "/a/b/c/"))
      for target in ("/a/b/c", "/a/b/d/c", "/a//c", "/a/c", "/a/b/c/")],
    *[("M28", path("/a/{*}.txt"), {"target": target}, target == "/a/b.txt")
      for target in ("/a/b.txt", "/a/.txt", "/a/b/c.txt")],
    *[("M29", path("/a/{*}"), {"target": f"/a/{character}"}, character not in "[|")
      for character in "-._~%!$&'()*+,;=:@[|"],
    ("M32", {"from": [{"source": {"remoteIpBlocks": ["203.0.113.0/24"]}}]},
     {"forwarded": "10.0.0.1, 203.0.113.7"}, True),
    ("M37", {"from": [{"source": {"notPrincipals": ["*"]}}]}, {}, True),
    ("M38", principal("*"), {"claims": {"sub": None}}, False),
    ("M40", claim("[a][b]", "x"), {"claims": {"a": {"b": "x"}}}, True),
    ("M40", claim("[a][b]", "x"), {"claims": {"a": [{"b": "x"}]}}, False),
    ("M40", claim("[a.b]", "x"), {"claims": {"a.b": "x"}}, True),
    ("M40", claim("[a]b]", "x"), {"claims": {"a]b": "x"}}, True),
    ("M41", claim("[x]", "1"), {"claims": {"x": 1}}, False),
    ("M41", claim("[x]", "a"), {"claims": {"x": [1, "a"]}}, True),
    ("M41", claim("[x]", "a"), {"claims": {"x": [["a"]]}}, False),
    *[("M42", claim("[x]", "*"), {"claims": {"x": value}}, value == ["", "a"])
      for value in ([], [""], 1, True, None, {}, ["", "a"])],
    *[("M43", claim("[x]", but_not="a"), {"claims": {"x": value}}, value != ["b", "a"])
      for value in (1, [], None, ["b"], ["b", "a"])],
    ("M43", claim("[x]", but_not="a"), {"claims": None}, True),
    ("M45", claim("[scope]", "read"), {"claims": {"scope": " read  write "}}, True),
    ("M45", claim("[scope]", "read write"), {"claims": {"scope": "read write"}}, False),
    ("M45", claim("[scope]", "read write"), {"claims": {"scope": ["read write"]}}, True),
    *[("M45", claim("[scope]", "*"), {"claims": {"scope": value}}, value != "") for value in ("", " ", "a")],
    ("M45", principal(f"{ISSUERS[0]}/"), {"claims": {"sub": ""}}, True),
    ("M45", claim("[a][scope]", "read"), {"claims": {"a": {"scope": "read write"}}}, False),
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JudgingEnvoy]:
    """One Envoy for all measured rules: the number of each names its set."""
    sets = {str(number): one_rule(rule) for number, (_, rule, _, _) in enumerate(MEASURED)}
    with JudgingEnvoy(tmp_path_factory.mktemp("measured"), sets) as envoy:
        yield envoy


def one_rule(rule: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """An ALLOW policy of this rule, and where tokens come from."""
    issuer = {"issuer": ISSUERS[0], "jwks": json.dumps(key_set(ISSUERS[0]))}
    return (document("AuthorizationPolicy", "p0", {"rules": [rule]}),
            document("RequestAuthentication", "r0", {"jwtRules": [issuer]}))


@pytest.mark.parametrize("number", range(len(MEASURED)), ids=lambda number: f"{number}-{MEASURED[number][0]}")
def test_what_was_measured_is_so_for_both(measured: JudgingEnvoy, number: int) -> None:
    """The translation itself is held to what is known of Envoy."""
    _, rule, changes, allowed = MEASURED[number]
    claims = changes.get("claims", {})
    claims = None if claims is None else {k: v for k, v in {**IDENTITY, **claims}.items() if (k, v) != ("sub", None)}
    sent = replace(PLAIN, **{**changes, "claims": claims})
    found = Comparison(PolicySet(number, one_rule(rule), (sent,)), measured, Tally())
    assert found.compare(sent) == []
    assert found.ask_envoy(sent).status == (200 if allowed else 403)
