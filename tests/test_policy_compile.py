"""The compiled set: what it refuses, that its index, its explanations and every order agree, and its words."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from authservice.policy import compile as compiling
from authservice.policy.compile import FEWEST_LANES, MOST_ADDRESSES, MOST_LANES, PolicySet
from authservice.policy.question import Ground, Hit, Question, Step, Verdict
from authservice.policy.resources import PolicyErrors
from authservice.policy.rules import CompiledRule
from authservice.policy.verdicts import decide, lane
from authservice.urls import MAX_AUTHORITY
from tests.policy_sets import Json, ask, authentication, matches, policy, policy_set, sent_by, to, when

EVERY: Json = {}

# ---- rules, questions and sets that meet often

METHODS = st.sampled_from(["GET", "PURGE", "Pick", "POST", "PUT"])
HOSTS = st.sampled_from(["a.ex", "b.ex", "a.ex:80"])
PATHS = st.sampled_from(["/", "/a", "/a/b", None])
CLAIM = st.sampled_from(["x", "y", ["x", "y"], [], "", 1, None, {"x": "x"}])
VALUES = st.lists(st.sampled_from(["x", "y", "*", "x*", "*y"]), min_size=1, max_size=2)


def lists(*values: str) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=2)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    """At least one of the fields."""
    return st.fixed_dictionaries({}, optional=fields).filter(bool)


METHOD_VALUES = lists("GET", "POST", "P*", "*")
HOST_VALUES = lists("a.ex", "A.ex:*", "*.ex", "*")
PATH_VALUES = lists("/a", "/a/*", "/{*}", "/{**}", "*")
OPERATIONS = some(
    methods=METHOD_VALUES, notMethods=METHOD_VALUES, hosts=HOST_VALUES, notHosts=HOST_VALUES, paths=PATH_VALUES,
    notPaths=PATH_VALUES, ports=lists("80"), notPorts=lists("443"),
)  # fmt: skip
SOURCES = some(
    requestPrincipals=lists("i/x", "*", "i/*", "j*"), notRequestPrincipals=lists("i/y", "*/x"),
    ipBlocks=lists("10.0.0.0/8"), notRemoteIpBlocks=lists("10.0.0.1"), principals=lists("td/ns/a/sa/b", "*"),
)  # fmt: skip
KEYS = st.sampled_from([
    "request.auth.claims[c]", "request.auth.claims[c][x]", "request.auth.claims[scope]", "request.headers[h]",
    "request.headers[host]", "request.auth.audiences",
])  # fmt: skip
CONDITIONS = st.one_of(
    st.fixed_dictionaries({"key": KEYS, "values": VALUES}, optional={"notValues": VALUES}),
    st.fixed_dictionaries({"key": KEYS, "notValues": VALUES}),
)
RULES = st.fixed_dictionaries(
    {},
    optional={
        "from": st.lists(SOURCES.map(lambda source: {"source": source}), min_size=1, max_size=2),
        "to": st.lists(OPERATIONS.map(lambda operation: {"operation": operation}), min_size=1, max_size=2),
        "when": st.lists(CONDITIONS, min_size=1, max_size=2),
    },
)
POLICIES = st.builds(
    lambda action, rules, dry_run: (action, rules or ([{}] if action == "DENY" else []), dry_run),
    st.sampled_from(["ALLOW", "ALLOW", "DENY", "AUDIT"]), st.lists(RULES, max_size=3), st.sampled_from(["", "", "true"]),
)  # fmt: skip
QUESTIONS = st.builds(
    Question,
    method=METHODS, host=HOSTS, path=PATHS, port=st.sampled_from([80, 443, None]),
    headers=st.fixed_dictionaries({}, optional={"h": st.sampled_from(["x", "y", "", "x, y"])}),
    claims=st.none() | st.fixed_dictionaries(
        {}, optional={"iss": st.sampled_from(["i", "j"]), "sub": CLAIM, "c": CLAIM, "scope": CLAIM, "aud": CLAIM}
    ),
    split=st.sampled_from([frozenset[str](), frozenset({"c"})]),
    source=st.sampled_from([None, "10.0.0.1", "::1"]), remote=st.sampled_from([None, "10.0.0.1", "::1"]),
    peer=st.sampled_from([None, "", "td/ns/a/sa/b"]),
)  # fmt: skip


@st.composite
def documents(draw: st.DrawFn) -> list[Json]:
    drawn = draw(st.lists(POLICIES, max_size=5))
    return [
        policy(*rules, name=f"p{number}", action=action, dry_run=dry_run)
        for number, (action, rules, dry_run) in enumerate(drawn)
    ]


SLOWLY = settings(suppress_health_check=[HealthCheck.too_slow])


@SLOWLY
@given(documents(), st.lists(QUESTIONS, min_size=1, max_size=6))
def test_explanations_and_verdicts_agree(found: list[Json], questions: list[Question]) -> None:
    chosen = policy_set(*found)
    for question in questions:
        verdict, explanation = chosen.judge(question), chosen.explain(question)
        assert explanation.verdict == verdict
        matched = {(step.policy, step.rule): step for step in explanation.steps if step.matched}
        hits = [verdict.hit, *verdict.audited, verdict.would.hit if verdict.would else None]
        assert all((hit.policy, hit.rule) in matched for hit in hits if hit is not None)
        assert verdict == plainly(explanation.steps)
        assert all(step.matched is not bool(step.failed) for step in explanation.steps)


def hits(steps: Sequence[Step], action: str, *, enforced: bool = False, trial: bool = False) -> list[Hit]:
    """The rules that matched, of the policies that are enforced, or on trial, or both."""
    wanted = {False} if enforced else {True} if trial else {False, True}
    fitting = (step for step in steps if step.action == action and step.matched and step.dry_run in wanted)
    return [Hit(step.policy, step.rule) for step in fitting if step.rule is not None]


def plainly(steps: Sequence[Step]) -> Verdict:
    """The verdict of an explanation's steps, by the order in which policies count and nothing else."""
    allowing = [step for step in steps if step.action == "ALLOW"]
    otherwise = Verdict(True, Ground.NO_POLICY), Verdict(False, Ground.NO_ALLOW_RULE)
    now = otherwise[any(not step.dry_run for step in allowing)]
    for action in ("ALLOW", "DENY"):
        found = hits(steps, action, enforced=True)
        if found:
            now = Verdict(action == "ALLOW", Ground[f"{action}_RULE"], found[0])
    then = otherwise[bool(allowing)]
    for action in ("ALLOW", "DENY"):
        if hits(steps, action):
            trial = hits(steps, action, trial=True)
            then = Verdict(action == "ALLOW", Ground[f"{action}_RULE"], trial[0] if trial else None)
    would = then if then.allowed is not now.allowed else None
    return Verdict(now.allowed, now.ground, now.hit, would, tuple(hits(steps, "AUDIT", enforced=True)))


@SLOWLY
@given(documents(), st.randoms(use_true_random=False), st.lists(QUESTIONS, min_size=1, max_size=6))
def test_M11_the_order_of_policies_changes_nothing(found: list[Json], random: Any, questions: list[Question]) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)
    one, other = policy_set(*found), policy_set(*shuffled)
    for question in questions:
        assert one.judge(question) == other.judge(question)
        assert one.explain(question) == other.explain(question)


@SLOWLY
@given(documents(), st.lists(QUESTIONS, min_size=1, max_size=6))
def test_the_rules_left_for_a_method_and_host_say_what_all_rules_say(
    found: list[Json], questions: list[Question]
) -> None:
    selected = policy_set(*found).workload("a.ex", "/")
    assert selected is not None
    every_rule = lane(selected._policies, lambda rule: rule.matches)
    for question in questions:
        assert selected.judge(question) == decide(every_rule, question)


@SLOWLY
@given(RULES, QUESTIONS)
def test_M26_a_doubt_grants_nothing_that_some_reading_would_not(rule: Json, question: Question) -> None:
    """Whatever is not known: an ALLOW rule matches only where it would for each value, a DENY rule where
    it would for one."""
    readings = [replaced(question, path=path) for path in ("/", "/a", "/a/b", "/x/y")]
    unknown = replaced(question, path=None)
    known = [matches(rule, reading, "ALLOW") for reading in readings]
    if matches(rule, unknown, "ALLOW"):
        assert all(known)
    if any(matches(rule, reading, "DENY") for reading in readings):
        assert matches(rule, unknown, "DENY")


def replaced(question: Question, **changes: Any) -> Question:
    fields = {name: getattr(question, name) for name in question.__struct_fields__}
    return Question(**{**fields, **changes})


# ---- the index


def rules_left(chosen: PolicySet, question: Question) -> int:
    selected = chosen.workload(question.host, question.path)
    assert selected is not None
    key = (question.host if selected._by_host else "", question.method)
    found = selected._lanes[key]
    return len(found.deny) + len(found.allow)


def test_a_check_asks_only_the_rules_that_its_method_and_host_leave() -> None:
    chosen = policy_set(
        *(policy(to(methods=["GET"], hosts=[f"h{number}.ex"]), name=f"a{number}") for number in range(50)),
        policy(to(methods=["DELETE"]), action="DENY", name="d"),
        policy(to(notHosts=["h1.ex"]), action="DENY", name="e"),
        policy(when("request.headers[host]", "h2.ex"), name="f"),
    )
    assert rules_left(chosen, ask("GET", host="h1.ex")) == 1
    assert rules_left(chosen, ask("GET", host="h2.ex")) == 3
    assert rules_left(chosen, ask("PUT", host="h1.ex")) == 0
    assert rules_left(chosen, ask("DELETE", host="h1.ex")) == 1


def test_one_operation_of_several_is_left_with_its_own_conditions() -> None:
    rule = {"to": [{"operation": {"methods": ["GET"], "paths": ["/a"]}}, {"operation": {"methods": ["PUT"]}}]}
    assert matches(rule, ask("PUT", path="/b"))
    assert matches(rule, ask("GET", path="/a"))
    assert not matches(rule, ask("GET", path="/b"))


def test_what_is_remembered_has_an_end() -> None:
    chosen = policy_set(policy(to(hosts=["*.ex"])), workloads={"*.ex": {}, "x.ex/a/": {}})
    for number in range(2 * MOST_ADDRESSES):
        assert chosen.judge(ask(f"M{number}", host=f"h{number}.ex", path=f"/{number}")).allowed
    selected = chosen.workload("h.ex", "/")
    assert selected is not None
    assert len(selected._lanes) == MOST_LANES
    assert len(chosen._found) == MOST_ADDRESSES
    assert all(chosen.workload(f"h{number}.ex" + "." * 1000, "/") is None for number in range(9))
    assert max(len(host) for host, _ in chosen._found) < MAX_AUTHORITY


def test_methods_that_clients_invent_are_remembered_as_one() -> None:
    chosen = policy_set(policy(to(methods=["GET", "X*"])), policy(to(notMethods=["*9"]), action="DENY", name="d"))
    for number in range(50):
        assert chosen.judge(ask(f"X{number}")).allowed is (number % 10 == 9)
        assert not chosen.judge(ask(f"Y{number}")).allowed
    selected = chosen.workload("h.ex", "/")
    assert selected is not None
    assert len(selected._lanes) == 1


def test_lanes_of_many_rules_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "MOST_RULES", 100)
    chosen = policy_set(*(policy(to(notHosts=[f"h{number}.ex"]), name=f"p{number}") for number in range(10)))
    selected = chosen.workload("h.ex", "/")
    assert selected is not None
    for number in range(60):
        assert chosen.judge(ask(host=f"a{number}.ex")).allowed
        assert len(selected._lanes) == min(number + 1, 10)
    monkeypatch.setattr(compiling, "MOST_RULES", 1)
    assert chosen.judge(ask(host="a.ex")).allowed
    assert len(selected._lanes) == FEWEST_LANES


def test_hosts_are_remembered_only_where_a_rule_looks_at_them() -> None:
    chosen = policy_set(policy(to(methods=["GET"])))
    for number in range(10):
        assert chosen.judge(ask(host=f"h{number}.ex")).allowed
    selected = chosen.workload("h.ex", "/")
    assert selected is not None
    assert len(selected._lanes) == 1


def test_threads_may_ask_at_the_same_time() -> None:
    chosen = policy_set(policy(to(hosts=["*7.ex"])), workloads={"*.ex": {}})
    wrong: list[int] = []

    def judge_many(start: int) -> None:
        for number in range(start, start + 3000):
            if chosen.judge(ask(f"M{number % 300}", host=f"h{number}.ex")).allowed is not (number % 10 == 7):
                wrong.append(number)

    threads = [threading.Thread(target=judge_many, args=(start,)) for start in (0, 1500, 3000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_paths_tell_workloads_apart_and_a_path_in_doubt_is_none_of_them() -> None:
    chosen = policy_set(
        policy(to(methods=["GET"]), name="site", namespace="site"), policy(name="api", namespace="api"),
        workloads={"a.ex": {"namespace": "site"}, "a.ex/api/": {"namespace": "api"}},
    )  # fmt: skip
    assert chosen.judge(ask(host="a.ex", path="/")).allowed
    assert chosen.judge(ask(host="a.ex:443", path="/apis")).allowed
    assert not chosen.judge(ask(host="a.ex", path="/api/x")).allowed
    assert chosen.judge(ask(host="a.ex", path=None)).ground is Ground.UNKNOWN_WORKLOAD
    assert chosen.explain(ask(host="a.ex", path="/api/x")).workload == "a.ex/api/"


# ---- what is refused


def problems(*found: Json, **others: Any) -> list[str]:
    with pytest.raises(PolicyErrors) as caught:
        policy_set(*found, **others)
    return [f"{place}: {sentence}" for place, sentence in caught.value.problems]


def test_two_policies_of_one_name_are_refused() -> None:
    found = problems(policy(EVERY), policy(EVERY, name="q"), policy(EVERY))
    assert found == ["policies.yaml:5: default/p is there already, at policies.yaml:1"]
    policy_set(policy(EVERY, name="p"), authentication(name="p"), workloads={"*": {}})
    policy_set(policy(EVERY), policy(EVERY, namespace="other"))


def test_every_problem_is_told_at_once() -> None:
    found = problems(
        policy(EVERY, namespace="nowhere"),
        policy(sent_by(ipBlocks=["10.0.0.1"], principals=["a"])),
        authentication({"issuer": "i", "jwksUri": "https://k.ex/"}, namespace="nowhere"),
        workloads={"a.ex": {}}, addresses=False, peers=False,
    )  # fmt: skip
    assert len(found) == 4
    assert "namespace nowhere" in found[0]
    assert "policies.yaml:3: spec.rules[0].from[0].source" in found[1]
    assert "namespace nowhere" in found[3]


def test_the_issuers_of_all_that_select_a_workload_are_one_list() -> None:
    """M65."""
    issuers = {"b": ["one", "two"], "a": ["three"]}
    chosen = policy_set(
        *(
            authentication(*({"issuer": one, "jwksUri": "https://k.ex/"} for one in listed), name=name)
            for name, listed in issuers.items()
        ),
        authentication({"issuer": "four", "jwksUri": "https://k.ex/"}, namespace="other"),
        workloads={"a.ex": {}, "b.ex": {"namespace": "other"}},
    )
    selected = chosen.workload("a.ex", "/")
    assert selected is not None
    assert [rule.issuer for rule in selected.jwt_rules] == ["three", "one", "two"]
    assert [rule.issuer for rule in chosen.jwt_rules] == ["three", "one", "two", "four"]
    assert chosen.policies == 3


# ---- words


@pytest.mark.parametrize(
    ("rule", "question", "words"),
    [
        (to(methods=["GET"]), ask("POST"), 'to[0].operation.methods: "POST" is none of "GET"'),
        (to(notMethods=["GET", "P*"]), ask("PUT"), 'to[0].operation.notMethods: "PUT" is one of "P*"'),
        (to(hosts=["a.ex", "b.ex"]), ask(host="c.ex"), 'to[0].operation.hosts: "c.ex" is none of "a.ex", "b.ex"'),
        (to(ports=["80"]), ask(port=443), "to[0].operation.ports: 443 is none of 80"),
        (to(ports=["80"]), ask(port=None), "to[0].operation.ports: the port is not known"),
        (
            to(paths=["/a"]),
            ask(path=None),
            "to[0].operation.paths: the path can be read in more than one way, or is not known",
        ),
        (
            when("request.auth.claims[aud]", "my-backend-client"),
            ask(claims={"aud": "other"}),
            'when[0] request.auth.claims[aud]: "other" is none of "my-backend-client"',
        ),
        (
            when("request.auth.claims[groups]", "admins"),
            ask(claims={"groups": ["a", "größe"]}),
            'when[0] request.auth.claims[groups]: ["a", "größe"] is none of "admins"',
        ),
        (when("request.auth.claims[x]", "a"), ask(claims={}), "when[0] request.auth.claims[x]: there is no such claim"),
        (when("request.auth.claims[x]", "1"), ask(claims={"x": 1}), 'when[0] request.auth.claims[x]: 1 is none of "1"'),
        (
            when("request.auth.claims[x]", not_values=["a"]),
            ask(claims={"x": ["b", "a"]}),
            'when[0] request.auth.claims[x] (notValues): ["b", "a"] is one of "a"',
        ),
        (
            sent_by(requestPrincipals=["i/a"]),
            ask(claims={"iss": "i", "sub": "b"}),
            'from[0].source.requestPrincipals: "i/b" is none of "i/a"',
        ),
        (
            sent_by(requestPrincipals=["*"]),
            ask(),
            "from[0].source.requestPrincipals: there is no token with an issuer and a subject",
        ),
        (
            sent_by(ipBlocks=["10.0.0.0/8"]),
            ask(source="192.0.2.1"),
            'from[0].source.ipBlocks: "192.0.2.1" is none of "10.0.0.0/8"',
        ),
        (
            sent_by(remoteIpBlocks=["10.0.0.0/8"]),
            ask(),
            "from[0].source.remoteIpBlocks: the client's address is not known",
        ),
        (
            when("request.headers[x-role]", "admin"),
            ask(headers={"x-role": "guest"}),
            'when[0] request.headers[x-role]: "guest" is none of "admin"',
        ),
        (
            when("request.headers[x-role]", "a"),
            ask(headers={"x-role": "a, b"}),
            'when[0] request.headers[x-role]: "a, b" can be read in more than one way, and is not the same to all of them',
        ),
        (
            {"to": [{"operation": {"methods": ["GET"]}}, {"operation": {"paths": ["/b"]}}]},
            ask("PUT", path="/a"),
            'to[0].operation.methods: "PUT" is none of "GET"; to[1].operation.paths: "/a" is none of "/b"',
        ),
        (
            to(methods=[f"M{number}" for number in range(10)]),
            ask(),
            'to[0].operation.methods: "GET" is none of "M0", "M1", "M2", "M3", "M4", "M5", "M6", "M7" and 2 more',
        ),
        (
            {"to": [{"operation": {"methods": [f"M{number}"]}} for number in range(6)]},
            ask(),
            "; ".join(f'to[{number}].operation.methods: "GET" is none of "M{number}"' for number in range(4))
            + "; and 2 more",
        ),
    ],
)
def test_an_explanation_says_what_a_person_understands(rule: Json, question: Question, words: str) -> None:
    (step,) = policy_set(policy(rule)).explain(question).steps
    assert step.failed == words


SECRET = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    "rule",
    [
        when("request.headers[authorization]", "other"),
        when("request.headers[authorization]", f"Bearer {SECRET}", not_values=["*"]),
        when("request.headers[x-forwarded]", "other"),
        when("request.headers[cookie]", "other"),
        when("request.headers[x-api-key]", "other", f"Bearer {SECRET}x"),
        when("request.auth.claims[id_token]", "other"),
        when("request.auth.claims[nested]", "other"),
    ],
)
def test_no_token_is_ever_shown(rule: Json) -> None:
    headers = {
        "authorization": f"Bearer {SECRET}", "cookie": f"session={SECRET}", "x-api-key": "hunter2", "x-forwarded": SECRET,
    }  # fmt: skip
    question = ask(headers=headers, claims={"id_token": SECRET, "nested": ["a", SECRET]})
    explanation = repr(policy_set(policy(rule)).explain(question))
    assert "hunter2" not in explanation
    assert SECRET[:12] not in explanation
    assert "not shown" in explanation


def test_verdicts_hold_nothing_of_the_request() -> None:
    question = ask(claims={"email": "somebody@example.com"}, headers={"x": "value-of-a-header"})
    found = policy_set(policy(when("request.auth.claims[email]", "somebody@example.com")))
    verdict = repr(found.judge(question))
    assert "somebody" not in verdict
    assert "value-of-a-header" not in verdict


def test_what_is_long_or_strange_is_shortened_and_escaped() -> None:
    rule = when("request.auth.claims[x]", "a")
    strange = "\x1b[31m\n\x7f\x9b\u202e\u2028\ud800größe"
    (step,) = policy_set(policy(rule)).explain(ask(claims={"x": strange + "y" * 5000})).steps
    assert len(step.failed) < 250
    assert step.failed.isprintable()
    assert "größe" in step.failed
    (step,) = policy_set(policy(rule)).explain(ask(claims={"x": {"a": "b"}})).steps
    assert "an object is none of" in step.failed


def test_an_explanation_names_every_policy_of_the_workload_those_that_deny_first() -> None:
    chosen = policy_set(
        policy(EVERY, name="z"), policy(name="a"), policy(to(methods=["GET"]), name="m", action="DENY", dry_run="true"),
        policy(EVERY, name="b", action="AUDIT"), policy(EVERY, name="other", namespace="elsewhere"),
        workloads={"a.ex": {}, "b.ex": {"namespace": "elsewhere"}},
    )  # fmt: skip
    explanation = chosen.explain(ask(host="a.ex"))
    told = [(step.policy, step.action, step.rule, step.matched, step.dry_run) for step in explanation.steps]
    assert told == [
        ("default/m", "DENY", 0, True, True),
        ("default/a", "ALLOW", None, False, False),
        ("default/z", "ALLOW", 0, True, False),
        ("default/b", "AUDIT", 0, True, False),
    ]
    assert chosen.explain(ask(host="c.ex")).steps == ()


def test_the_policy_of_a_keycloak_realm_says_what_it_says() -> None:
    issuer = "http://keycloak.keycloak.svc.cluster.local/realms/myrealm"
    wanted = {"iss": issuer, "aud": "my-backend-client", "email": "user@example.com"}
    conditions = [{"key": f"request.auth.claims[{name}]", "values": [value]} for name, value in wanted.items()]
    rule = {**to(methods=["GET"]), "when": conditions}
    chosen = policy_set(
        policy(rule, action="ALLOW", selector={"matchLabels": {"app": "backend"}}),
        workloads={"backend.example.com": {"labels": {"app": "backend"}}},
    )
    claims = {**wanted, "aud": ["account", "my-backend-client"], "sub": "1"}
    here: Json = {"host": "backend.example.com"}
    assert chosen.judge(ask(claims=claims, **here)).allowed
    assert not chosen.judge(ask("POST", claims=claims, **here)).allowed
    assert not chosen.judge(ask("HEAD", claims=claims, **here)).allowed
    for name, other in (("aud", "account"), ("email", "other@example.com"), ("iss", issuer + "/")):
        assert not chosen.judge(ask(claims={**claims, name: other}, **here)).allowed
    assert not chosen.judge(ask(**here)).allowed


def test_a_thousand_policies_are_compiled_quickly_and_each_host_asks_its_own() -> None:
    hosts = {f"h{number}.ex": {"labels": {"app": f"a{number}"}} for number in range(200)}
    found = [
        policy(
            to(methods=["GET"], paths=[f"/{number}/*"]),
            name=f"p{number}",
            selector={"matchLabels": {"app": f"a{number % 200}"}},
        )
        for number in range(1000)
    ]
    chosen = policy_set(*found, workloads=hosts)
    assert chosen.judge(ask(host="h7.ex", path="/207/x")).allowed
    assert not chosen.judge(ask(host="h7.ex", path="/208/x")).allowed
    assert rules_left(chosen, ask(host="h7.ex")) == 5
    assert len(json.dumps([step.policy for step in chosen.explain(ask(host="h7.ex")).steps])) < 200


def test_a_rule_says_whether_the_host_matters_to_it() -> None:
    def matters(rule: Json) -> bool:
        selected = policy_set(policy(rule)).workload("a.ex", "/")
        assert selected is not None
        (compiled,) = selected._policies[0].rules
        assert isinstance(compiled, CompiledRule)
        return compiled.looks_at_host

    assert matters(to(notHosts=["a.ex"]))
    assert matters(when("request.headers[host]", "a.ex"))
    assert not matters(to(methods=["GET"], paths=["/"]))
