"""A policy set of ours beside the same set in a real Envoy: what is asked, and what is held against what.

The whole way is compared: the policies go as YAML text through reader and compiler here, and through
`tests.policy_envoy` there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NoReturn

import yaml

from authservice.authn.cache import BearerCache
from authservice.authn.request import RequestAuthenticator, Sources
from authservice.check import CheckRequest, Reach
from authservice.errors import Refused, WrongAudience
from authservice.identity import ClaimRules
from authservice.pipeline import is_preflight
from authservice.policy.compile import compile as compile_policies
from authservice.policy.question import Ground, Question, Verdict
from authservice.policy.read import read_text
from authservice.policy.resources import JwtRule
from authservice.policy.workloads import Workloads
from tests.policy_envoy import JudgingEnvoy, Said
from tests.policy_generator import PolicySet, Sent, as_text
from tests.policy_tokens import Placed, sent_with


def as_sent(target: str) -> str | None:
    """The path for policies where nothing normalises it."""
    return target.partition("?")[0]


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
    on_trial: int = 0
    stricter: int = 0

    @property
    def triples(self) -> int:
        return self.statuses.total()


def differences(said: Said, verdict: Verdict, matched: set[str]) -> Iterator[str]:
    """In which ways a verdict is another than Envoy's."""
    ours = 200 if verdict.allowed else 403
    if ours != said.status:
        yield f"ours {ours} ({verdict.ground.value} {verdict.hit}), Envoy {said.status} ({said.refused_by})"
    elif said.refused_by == "token":
        yield "Envoy refuses the token"
    elif (said.refused_by == "none") != (verdict.ground is Ground.NO_ALLOW_RULE):
        yield f"our ground is {verdict.ground.value}, Envoy's is {said.refused_by!r}"
    elif said.refused_by not in ("", "none", *matched):
        yield f"Envoy is refused by {said.refused_by!r}, which did not match for us"
    if bool(verdict.audited) != said.audited:
        yield f"ours is audited by {verdict.audited}, Envoy says {said.audited}"


class Comparison:
    """One policy set beside its translation. ``path_of`` gives what policies see of a request's target."""

    def __init__(
        self,
        drawn: PolicySet,
        envoy: JudgingEnvoy,
        tally: Tally,
        path_of: Callable[[str], str | None] = as_sent,
    ) -> None:
        self.drawn, self.envoy, self.tally, self.path_of = drawn, envoy, tally, path_of
        self.text = yaml.dump_all(
            drawn.documents, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True
        )
        self.ours = compile_policies(
            read_text(self.text, "generated.yaml"), Workloads.single(), knows_addresses=True, knows_peers=True
        )
        self.features = {
            (f"default/{one['metadata']['name']}", number): features(rule)
            for one in drawn.documents
            if one["kind"] == "AuthorizationPolicy"
            for number, rule in enumerate(one["spec"].get("rules", ()))
        }

    def claims_of(self, sent: Sent) -> Mapping[str, Any] | None:
        """The claims of the request's token: those that were put into it."""
        return sent.claims

    def on_the_wire(self, sent: Sent) -> Sent:
        """The request with its token."""
        return sent if sent.claims is None else sent_with(sent, [Placed("authorization", sent.claims)])

    def ask_envoy(self, sent: Sent, suffix: str = "") -> Said:
        request = self.on_the_wire(sent).bytes()
        return self.envoy.ask(f"{self.drawn.seed}{suffix}", request, source=sent.source, port=sent.port)

    def question(self, sent: Sent, claims: Mapping[str, Any] | None) -> Question:
        """What policies are asked about the request."""
        host, path = sent.host.lower(), self.path_of(sent.target)
        selected = self.ours.workload(host, path)
        assert selected is not None
        return Question(
            method=sent.method,
            host=host,
            path=path,
            port=sent.port,
            headers=joined(sent),
            claims=claims,
            split=selected.split_for(str(claims["iss"])) if claims else frozenset(),
            source=sent.source,
            remote=sent.remote,
            peer="",
        )

    def compare(self, sent: Sent) -> list[str]:
        """The differences, in words; counts what was compared."""
        said = self.ask_envoy(sent)
        try:
            claims = self.claims_of(sent)
        except (Refused, WrongAudience) as problem:
            status = 403 if isinstance(problem, WrongAudience) else 401
            self.tally.statuses[status] += 1
            self.tally.grounds["token"] += 1
            # Of several bad ones, each may have been looked at first.
            agreed = said.refused_by == "token" and (said.status == status or sent.tokens > 1)
            return (
                []
                if agreed
                else [f"ours is {status} ({problem}), Envoy's is {said.status} ({said.refused_by})"]
            )
        asked = self.question(sent, claims)
        verdict, explained = self.ours.judge(asked), self.ours.explain(asked)
        assert explained.verdict == verdict
        if not sent.is_plain or asked.path is None:
            self.tally.stricter += 1
            return ["laxer than Envoy"] if verdict.allowed and said.status != 200 else []
        self.tally.statuses[said.status] += 1
        self.tally.grounds[verdict.ground.value] += 1
        for step in explained.steps:
            if step.rule is not None:
                for feature in self.features[step.policy, step.rule]:
                    self.tally.decided[feature, step.matched] += 1
        matched = {f"{step.policy}#{step.rule}" for step in explained.steps if step.matched}
        return [*differences(said, verdict, matched), *self.differences_on_trial(sent, verdict)]

    def differences_on_trial(self, sent: Sent, verdict: Verdict) -> Iterator[str]:
        """What is different when the policies on trial are enforced, too."""
        if self.drawn.on_trial:
            self.tally.on_trial += 1
            ours, enforced = (verdict.would or verdict).allowed, self.ask_envoy(sent, "+")
            if ours != (enforced.status == 200):
                yield f"with dry runs enforced ours would be {ours}, Envoy's {enforced.status}"

    def report(self, sent: Sent, found: Sequence[str]) -> str:
        """All that is needed to look at a disagreement."""
        request = sent.bytes().decode().replace("\r\n", "\n").rstrip()
        return "\n".join(
            [
                f"set {self.drawn.seed}:",
                *found,
                "--- policies",
                self.text.rstrip(),
                f"--- request from {sent.source} to port {sent.port}",
                request,
                f"--- claims {as_text(sent.claims)}",
            ]
        )


class TokenComparison(Comparison):
    """One whose requests have their tokens in them already, for our authenticator to find and to judge."""

    def __init__(self, drawn: PolicySet, envoy: JudgingEnvoy, tally: Tally) -> None:
        super().__init__(drawn, envoy, tally)
        self.current = self.ours
        self.authenticator = RequestAuthenticator(
            self,
            BearerCache(100, timedelta(minutes=1), utc_now),
            Sources({}, no_source),
            ClaimRules("sub", ""),
            now=utc_now,
            skips=is_preflight,
        )

    def on_the_wire(self, sent: Sent) -> Sent:
        return sent

    def claims_of(self, sent: Sent) -> Mapping[str, Any] | None:
        check = CheckRequest(
            sent.method, "http", sent.host.lower(), sent.target, None, joined(sent), sent.remote, "envoy"
        )
        identity = self.authenticator.authenticate(check, Reach.NETWORK)
        return None if identity is None else identity.claims


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


def no_source(rule: JwtRule) -> NoReturn:
    raise AssertionError("every rule has its keys in it")


def joined(sent: Sent) -> dict[str, str]:
    """The headers as a server gives them: lower-case names, lines of one name joined, octets as letters."""
    headers: dict[str, str] = {}
    for name, value in (("host", sent.host), *sent.headers):
        value, lower = value.encode().decode("latin-1"), name.lower()
        headers[lower] = f"{headers[lower]},{value}" if lower in headers else value
    return headers


def compare_all(
    sets: Sequence[PolicySet],
    folder: Path,
    tally: Tally,
    *,
    normalises: bool = False,
    beside: Callable[[PolicySet, JudgingEnvoy, Tally], Comparison] = Comparison,
) -> list[str]:
    """The reports of all disagreements with one Envoy, which knows all these sets."""
    reports = []
    documents = {str(drawn.seed): drawn.documents for drawn in sets}
    with JudgingEnvoy(folder, documents, normalises=normalises) as envoy:
        for drawn in sets:
            comparison = beside(drawn, envoy, tally)
            for sent in drawn.requests:
                found = comparison.compare(sent)
                if found:
                    reports.append(comparison.report(sent, found))
    return reports
