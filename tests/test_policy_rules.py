"""The matching rules of policies, each under its number: order, rules, values, identities, selection."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network
from itertools import permutations
from typing import Any

import pytest

from authservice.trust import Trust
from authservice.policy.question import Ground, Hit, Question
from authservice.policy.resources import PolicyErrors
from tests.policy_sets import (
    Json, ask, authentication, matches, policy, policy_set, resources, sent_by, to, when,
)  # fmt: skip

EVERY: Json = {}
NEVER = to(methods=["NONE"])
BOTH = pytest.mark.parametrize("action", ["ALLOW", "DENY"])


def refused(*documents: Json, **others: Any) -> str:
    """What is wrong with a set of these documents."""
    with pytest.raises(PolicyErrors) as caught:
        policy_set(*documents, **others)
    return str(caught.value)


# ---- in which order policies count


def test_M01_without_a_policy_everything_is_allowed() -> None:
    verdict = policy_set().judge(ask())
    assert (verdict.allowed, verdict.ground) == (True, Ground.NO_POLICY)


def test_M02_one_rule_that_denies_is_enough() -> None:
    chosen = policy_set(
        policy(EVERY, name="all"),
        policy(NEVER, action="DENY", name="no1"),
        policy(NEVER, to(methods=["GET"]), action="DENY", name="no2"),
    )
    verdict = chosen.judge(ask("GET"))
    assert (verdict.allowed, verdict.ground, verdict.hit) == (False, Ground.DENY_RULE, Hit("default/no2", 1))
    assert chosen.judge(ask("POST")).allowed


def test_M03_without_an_allow_policy_what_is_not_denied_is_allowed() -> None:
    chosen = policy_set(policy(to(methods=["GET"]), action="DENY"))
    assert not chosen.judge(ask("GET")).allowed
    verdict = chosen.judge(ask("POST"))
    assert (verdict.allowed, verdict.ground) == (True, Ground.NO_POLICY)


def test_M04_with_allow_policies_only_what_a_rule_of_theirs_matches_is_allowed() -> None:
    chosen = policy_set(policy(NEVER, name="one"), policy(to(methods=["PUT"]), to(methods=["GET"]), name="two"))
    verdict = chosen.judge(ask("GET"))
    assert (verdict.allowed, verdict.ground, verdict.hit) == (True, Ground.ALLOW_RULE, Hit("default/two", 1))
    verdict = chosen.judge(ask("POST"))
    assert (verdict.allowed, verdict.ground, verdict.hit) == (False, Ground.NO_ALLOW_RULE, None)


@pytest.mark.parametrize(
    "others", [[], [policy(NEVER, name="a")], [policy(EVERY, name="a")], [policy(EVERY, action="DENY", name="a")]]
)
def test_M05_audit_marks_and_changes_nothing(others: list[Json]) -> None:
    plain = policy_set(*others).judge(ask())
    marked = policy_set(*others, policy(NEVER, EVERY, action="AUDIT", name="audit")).judge(ask())
    assert marked.audited == (Hit("default/audit", 1),)
    assert (marked.allowed, marked.ground, marked.hit, marked.would) == (plain.allowed, plain.ground, plain.hit, None)


def test_M06_custom_is_refused_with_the_reason() -> None:
    problems = refused(policy(EVERY, action="CUSTOM", provider={"name": "other"}))
    assert "this service is the custom authorizer" in problems


def test_M07_without_an_action_a_policy_allows() -> None:
    assert policy_set(policy(EVERY)).explain(ask()).steps[0].action == "ALLOW"


@pytest.mark.parametrize("empty", [policy(), policy(rules=[]), policy(action="ALLOW")])
def test_M08_without_rules_a_policy_never_matches(empty: Json) -> None:
    chosen = policy_set(empty)
    assert chosen.judge(ask()).ground is Ground.NO_ALLOW_RULE
    (step,) = chosen.explain(ask()).steps
    assert (step.rule, step.matched) == (None, False)
    assert policy_set(empty, policy(EVERY, name="other")).judge(ask()).allowed


def test_M08_denying_without_rules_is_an_error() -> None:
    assert "rules" in refused(policy(action="DENY"))


@pytest.mark.parametrize("question", [ask(), ask("", "", None, None), ask(claims={"a": 1}, headers={"a": "b"})])
def test_M09_the_empty_rule_matches_every_request(question: Question) -> None:
    assert policy_set(policy(EVERY)).judge(question).ground is Ground.ALLOW_RULE
    assert policy_set(policy(EVERY, action="DENY")).judge(question).ground is Ground.DENY_RULE


@pytest.mark.parametrize(
    ("documents", "allowed", "would"),
    [
        ([policy(EVERY, action="DENY", dry_run="true")], True, Ground.DENY_RULE),
        ([policy(NEVER, action="DENY", dry_run="true")], True, None),
        ([policy(EVERY, action="DENY", dry_run="false")], False, None),
        ([policy(NEVER, dry_run="t")], True, Ground.NO_ALLOW_RULE),
        ([policy(dry_run="1")], True, Ground.NO_ALLOW_RULE),
        ([policy(EVERY, dry_run="True")], True, None),
        ([policy(NEVER), policy(EVERY, name="q", dry_run="true")], False, Ground.ALLOW_RULE),
        ([policy(NEVER), policy(NEVER, name="q", dry_run="true")], False, None),
        ([policy(EVERY), policy(EVERY, name="q", action="DENY", dry_run="true")], True, Ground.DENY_RULE),
        ([policy(NEVER), policy(EVERY, name="q", action="DENY", dry_run="true")], False, None),
        ([policy(EVERY, action="DENY"), policy(EVERY, name="q", dry_run="true")], False, None),
    ],
)  # fmt: skip
def test_M10_on_trial_a_policy_is_evaluated_and_not_enforced(
    documents: list[Json], allowed: bool, would: Ground | None
) -> None:
    chosen = policy_set(*documents)
    verdict = chosen.judge(ask())
    assert verdict.allowed is allowed
    assert (verdict.would.ground if verdict.would else None) is would
    assert verdict.would is None or verdict.would.allowed is not allowed
    assert chosen.explain(ask()).verdict == verdict


def test_M10_on_trial_an_audit_marks_nothing() -> None:
    chosen = policy_set(policy(EVERY, action="AUDIT", dry_run="true"))
    assert chosen.judge(ask()).audited == ()
    assert [(step.matched, step.dry_run) for step in chosen.explain(ask()).steps] == [(True, True)]


def test_M10_a_value_that_is_no_boolean_is_an_error() -> None:
    assert "dry-run" in refused(policy(EVERY, dry_run="yes"))


def test_M11_the_order_of_policies_does_not_matter() -> None:
    documents = [
        policy(to(methods=["GET"]), name="a"), policy(to(paths=["/x"]), name="b"),
        policy(to(paths=["/y"]), name="c", action="DENY"), policy(to(methods=["GET"]), name="d", action="AUDIT"),
    ]  # fmt: skip
    questions = [ask(method, path=path) for method in ("GET", "POST") for path in ("/x", "/y", "/z")]
    answers = {tuple(map(policy_set(*order).explain, questions)) for order in permutations(documents)}
    assert len(answers) == 1


def test_M12_a_denial_rests_on_a_rule_or_on_the_lack_of_one() -> None:
    grounds = {ground for ground in Ground if ground not in (Ground.NO_POLICY, Ground.ALLOW_RULE)}
    assert grounds == {Ground.DENY_RULE, Ground.NO_ALLOW_RULE, Ground.UNKNOWN_WORKLOAD}


# ---- how rules are put together


@BOTH
@pytest.mark.parametrize(
    ("method", "claims", "matched"),
    [
        ("GET", {"iss": "i", "sub": "a", "x": "1", "y": "1"}, True),
        ("PUT", {"iss": "i", "sub": "b", "x": "1", "y": "1"}, True),
        ("POST", {"iss": "i", "sub": "a", "x": "1", "y": "1"}, False),
        ("GET", {"iss": "i", "sub": "c", "x": "1", "y": "1"}, False),
        ("GET", {"iss": "i", "sub": "a", "x": "1"}, False),
        ("GET", {"iss": "i", "sub": "a", "y": "1"}, False),
    ],
)
def test_M13_one_source_one_operation_and_every_condition(
    action: str, method: str, claims: Json, matched: bool
) -> None:
    rule = {
        "from": [{"source": {"requestPrincipals": ["i/a"]}}, {"source": {"requestPrincipals": ["i/b"]}}],
        "to": [{"operation": {"methods": ["GET"]}}, {"operation": {"methods": ["PUT"]}}],
        "when": [{"key": f"request.auth.claims[{name}]", "values": ["1"]} for name in "xy"],
    }
    assert matches(rule, ask(method, claims=claims), action) is matched


@BOTH
@pytest.mark.parametrize("missing", ["from", "to", "when"])
def test_M14_a_part_that_is_absent_asks_for_nothing(action: str, missing: str) -> None:
    rule = {**sent_by(requestPrincipals=["i/a"]), **to(methods=["GET"]), **when("request.auth.presenter", "p")}
    claims = {"iss": "i", "sub": "a", "azp": "p"}
    lacking = {
        "from": ask(claims={"azp": "p"}),
        "to": ask("POST", claims=claims),
        "when": ask(claims={**claims, "azp": "q"}),
    }
    assert not matches(rule, lacking[missing], action)
    del rule[missing]
    assert matches(rule, lacking[missing], action)


@BOTH
@pytest.mark.parametrize(
    ("path", "method", "matched"),
    [
        ("/a/x", "GET", True),
        ("/b/x", "PUT", True),
        ("/c/x", "GET", False),
        ("/a/x", "POST", False),
        ("/a/secret", "GET", False),
    ],
)
def test_M15_all_fields_any_value_and_no_value_of_a_not(action: str, path: str, method: str, matched: bool) -> None:
    rule = to(paths=["/a/*", "/b/*"], notPaths=["/b/secret", "*/secret"], methods=["GET", "PUT"])
    assert matches(rule, ask(method, path=path), action) is matched


@BOTH
@pytest.mark.parametrize(
    ("value", "path", "matched"),
    [
        ("/abc", "/abc", True), ("/abc", "/abcd", False),
        ("/abc*", "/abc", True), ("/abc*", "/abcd", True), ("/abc*", "/ab", False),
        ("*abc", "/abc", True), ("*/abc", "/abc", True), ("*abc", "/abcd", False),
        ("*", "/", True),
    ],
)  # fmt: skip
def test_M16_forms_of_values(action: str, value: str, path: str, matched: bool) -> None:
    assert matches(to(paths=[value]), ask(path=path), action) is matched


@pytest.mark.parametrize(
    ("value", "claim", "matched"),
    [("*a*", "xa*", True), ("*a*", "a", False), ("*a*", "xax", False), ("a*n", "a*n", True), ("a*n", "abn", False)],
)
def test_M17_only_the_first_or_last_star_has_a_meaning(value: str, claim: str, matched: bool) -> None:
    assert matches(when("request.auth.claims[x]", value), ask(claims={"x": claim})) is matched


@pytest.mark.parametrize("key", ["request.regex.headers[a]", "request.auth.regex[a]", "nothing"])
def test_M18_there_are_no_regular_expressions_and_no_unknown_keys(key: str) -> None:
    assert key in refused(policy(when(key, "a")))
    assert not matches(to(paths=["/a.c"]), ask(path="/abc"))
    assert not matches(when("request.auth.claims[x]", "^a.*$"), ask(claims={"x": "abc"}))


@pytest.mark.parametrize(
    ("rule", "question", "matched"),
    [
        (to(hosts=["App.Example"]), ask(host="app.example"), True),
        (when("request.headers[X-Role]", "admin"), ask(headers={"x-role": "admin"}), True),
        (when("request.headers[x-role]", "admin"), ask(headers={"x-role": "Admin"}), False),
        (when("request.auth.claims[role]", "admin"), ask(claims={"role": "Admin"}), False),
        (when("request.auth.claims[Role]", "admin"), ask(claims={"role": "admin"}), False),
        (to(paths=["/A"]), ask(path="/a"), False),
        (to(methods=["get"]), ask("GET"), False),
        (sent_by(requestPrincipals=["I/s"]), ask(claims={"iss": "i", "sub": "s"}), False),
        (sent_by(principals=["td/ns/A/sa/x"]), ask(peer="td/ns/a/sa/x"), False),
    ],
)
def test_M19_case_matters_but_for_hosts_and_names_of_headers(rule: Json, question: Question, matched: bool) -> None:
    assert matches(rule, question) is matched


@pytest.mark.parametrize(
    ("rule", "question", "matched"),
    [
        (when("request.auth.claims[x]", "*"), ask(claims={"x": "a"}), True),
        (when("request.auth.claims[x]", "*"), ask(claims={"x": ""}), False),
        (when("request.auth.claims[x]", "*"), ask(claims={"x": "a\nb"}), False),
        (sent_by(requestPrincipals=["*"]), ask(claims={"iss": "i", "sub": "s"}), True),
        (sent_by(requestPrincipals=["*"]), ask(claims={"iss": "i", "sub": ""}), False),
        (sent_by(requestPrincipals=["*"]), ask(claims={"iss": "i", "sub": "a\nb"}), False),
        (sent_by(principals=["*"]), ask(peer=""), False),
        (to(paths=["*"]), ask(path="/"), True),
        (when("request.headers[x]", "*"), ask(headers={"x": "a"}), True),
        (when("request.headers[x]", "*"), ask(headers={"x": ""}), True),
        (when("request.headers[x]", "*"), ask(headers={}), False),
        (to(hosts=["*"]), ask(host=""), True),
        (to(methods=["*"]), ask("ANY"), True),
    ],
)
def test_M20_presence(rule: Json, question: Question, matched: bool) -> None:
    assert matches(rule, question) is matched


@pytest.mark.parametrize(
    "rule", [to(paths=[""]), to(hosts=["a", ""]), when("request.headers[a]", ""), sent_by(principals=[""])]
)
def test_M21_an_empty_value_is_an_error(rule: Json) -> None:
    assert "empty" in refused(policy(rule))


# ---- hosts, methods, ports, paths


@BOTH
@pytest.mark.parametrize(
    ("value", "host", "matched"),
    [
        ("host.ex", "host.ex", True), ("Host.EX", "host.ex", True),
        ("host.ex", "host.ex:8443", False), ("host.ex:*", "host.ex", False), ("host.ex:*", "host.ex:8443", True),
        ("host.ex:8443", "host.ex:8443", True), ("host.ex", "host.ex.", False), ("host.ex.", "host.ex.", True),
        ("*.wild.ex", "a.wild.ex", True), ("*.wild.ex", "a.b.wild.ex", True), ("*.wild.ex", "wild.ex", False),
        ("*.wild.ex", "a.wild.ex:80", False), ("*.WILD.ex", "a.wild.ex", True),
    ],
)  # fmt: skip
def test_M22_hosts_are_compared_whole_with_their_port(action: str, value: str, host: str, matched: bool) -> None:
    assert matches(to(hosts=[value]), ask(host=host), action) is matched
    assert matches(to(notHosts=[value]), ask(host=host), action) is not matched
    assert matches(when("request.headers[Host]", value), ask(host=host), action) is matched


@BOTH
@pytest.mark.parametrize(
    ("value", "method", "matched"),
    [("GET", "GET", True), ("GET", "HEAD", False), ("GET", "get", False), ("P*", "PUT", True), ("POST", "POST", True)],
)
def test_M23_methods_are_exact(action: str, value: str, method: str, matched: bool) -> None:
    assert matches(to(methods=[value]), ask(method), action) is matched
    assert matches(to(notMethods=[value]), ask(method), action) is not matched


@BOTH
@pytest.mark.parametrize(
    ("values", "port", "matched"), [(["443"], 443, True), (["80", "8443"], 8443, True), (["443"], 80, False)]
)
def test_M24_ports_are_numbers(action: str, values: list[str], port: int, matched: bool) -> None:
    assert matches(to(ports=values), ask(port=port), action) is matched
    assert matches(to(notPorts=values), ask(port=port), action) is not matched


@pytest.mark.parametrize("value", ["*", "80*", "65536", "-1", "http"])
def test_M24_there_are_no_wildcards_in_ports(value: str) -> None:
    assert "port" in refused(policy(to(ports=[value])))


def test_M24_a_port_that_is_not_known_is_in_doubt() -> None:
    for rule in (to(ports=["443"]), to(notPorts=["443"]), when("destination.port", "443")):
        assert not matches(rule, ask(port=None), "ALLOW")
        assert matches(rule, ask(port=None), "DENY")


@BOTH
@pytest.mark.parametrize("path", ["/a/b/", "/A/b", "/a/b.", "/a"])
def test_M25_paths_are_compared_as_they_are(action: str, path: str) -> None:
    assert matches(to(paths=["/a/b"]), ask(path="/a/b"), action)
    assert not matches(to(paths=["/a/b"]), ask(path=path), action)


@pytest.mark.parametrize(
    "operation",
    [
        {"paths": ["/a"]},
        {"paths": ["*"]},
        {"notPaths": ["/a"]},
        {"paths": ["/{**}"]},
        {"paths": ["/a"], "notPaths": ["/b"]},
    ],
)
def test_M26_a_path_in_doubt_matches_no_allow_and_every_deny(operation: Json) -> None:
    assert not matches(to(**operation), ask(path=None), "ALLOW")
    assert matches(to(**operation), ask(path=None), "DENY")
    assert matches(to(**operation), ask(path=None), "AUDIT")
    assert not matches(to(**operation, methods=["PUT"]), ask(path=None), "DENY")


@BOTH
@pytest.mark.parametrize(
    ("value", "path", "matched"),
    [
        ("/a/{*}", "/a/b", True), ("/a/{*}", "/a/", False), ("/a/{*}", "/a/b/c", False),
        ("/a/{**}", "/a/", True), ("/a/{**}", "/a/b/c", True), ("/a/{**}", "/a", False),
        ("/{*}/b", "/a/b", True), ("/{*}/b", "/a/b/b", False),
    ],
)  # fmt: skip
def test_M27_templates_are_over_the_whole_path(action: str, value: str, path: str, matched: bool) -> None:
    assert matches(to(paths=[value]), ask(path=path), action) is matched
    assert matches(to(notPaths=[value]), ask(path=path), action) is not matched


def test_M30_a_template_that_envoy_reads_otherwise_is_an_error() -> None:
    assert "beginning of a segment" in refused(policy(to(paths=["/a/b{*}"])))


# ---- addresses and identities in the mesh


@BOTH
@pytest.mark.parametrize(
    ("values", "address", "matched"),
    [
        (["10.0.0.0/8"], "10.1.2.3", True), (["10.1.2.3"], "10.1.2.3", True), (["10.1.2.3/8"], "10.9.9.9", True),
        (["10.0.0.0/8", "2001:db8::/32"], "2001:db8::1", True), (["10.0.0.0/8"], "192.0.2.1", False),
    ],
)  # fmt: skip
def test_M31_blocks_of_addresses(action: str, values: list[str], address: str, matched: bool) -> None:
    source, remote = ask(source=address, remote="198.51.100.1"), ask(source="198.51.100.1", remote=address)
    assert matches(sent_by(ipBlocks=values), source, action) is matched
    assert matches(sent_by(notIpBlocks=values), source, action) is not matched
    assert matches(when("source.ip", *values), source, action) is matched
    assert matches(sent_by(remoteIpBlocks=values), remote, action) is matched
    assert matches(sent_by(notRemoteIpBlocks=values), remote, action) is not matched
    assert matches(when("remote.ip", *values), remote, action) is matched
    assert not matches(sent_by(ipBlocks=values), remote, action)
    assert not matches(sent_by(remoteIpBlocks=values), source, action)


@pytest.mark.parametrize(
    ("forwarded", "source", "remote"),
    [
        ("203.0.113.7", "203.0.113.7", "203.0.113.7"),
        ("6.6.6.6, 203.0.113.7", "203.0.113.7", "203.0.113.7"),
        ("6.6.6.6, 203.0.113.7, 10.0.0.2", "10.0.0.2", "203.0.113.7"),
        ("6.6.6.6,unknown", None, None),
        ("", None, None),
    ],
)
def test_M32_the_client_is_the_last_that_no_trusted_proxy_added(
    forwarded: str, source: str | None, remote: str | None
) -> None:
    trust = Trust([ip_network("127.0.0.1"), ip_network("10.0.0.0/8")], None)
    assert trust.addresses({"x-forwarded-for": forwarded}) == (source, remote)


@pytest.mark.parametrize("unknown", [None, "", "unix"])
def test_M32_an_address_that_is_not_known_is_in_doubt(unknown: str | None) -> None:
    for rule in (sent_by(ipBlocks=["0.0.0.0/0"]), sent_by(notIpBlocks=["10.0.0.0/8"]), when("source.ip", "10.0.0.0/8")):
        assert not matches(rule, ask(source=unknown), "ALLOW")
        assert matches(rule, ask(source=unknown), "DENY")


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        (sent_by(ipBlocks=["10.0.0.0/8"]), "spec.rules[1].from[0].source"),
        (sent_by(notRemoteIpBlocks=["10.0.0.0/8"]), "spec.rules[1].from[0].source"),
        (when("remote.ip", "10.0.0.0/8"), "spec.rules[1].when[0].key"),
        (when("source.ip", not_values=["10.0.0.0/8"]), "spec.rules[1].when[0].key"),
    ],
)
def test_M33_addresses_need_a_gateway_that_is_trusted(rule: Json, field: str) -> None:
    problems = refused(policy(EVERY, rule), addresses=False)
    assert field in problems
    assert "TRUSTED_PROXIES" in problems
    assert policy_set(policy(EVERY, rule)).uses_addresses
    assert not policy_set(policy(EVERY)).uses_addresses


PEER = "cluster.local/ns/shop/sa/cart"


@BOTH
@pytest.mark.parametrize(
    ("value", "matched"),
    [
        (PEER, True),
        ("cluster.local/ns/shop/*", True),
        ("*/sa/cart", True),
        ("*", True),
        ("cluster.local/ns/other/*", False),
    ],
)
def test_M34_principals(action: str, value: str, matched: bool) -> None:
    assert matches(sent_by(principals=[value]), ask(peer=PEER), action) is matched
    assert matches(sent_by(notPrincipals=[value]), ask(peer=PEER), action) is not matched
    assert matches(when("source.principal", value), ask(peer=PEER), action) is matched


@BOTH
@pytest.mark.parametrize(
    ("value", "matched"), [("shop", True), ("s*p", True), ("*", True), ("sho", False), ("other", False)]
)
def test_M35_namespaces(action: str, value: str, matched: bool) -> None:
    assert matches(sent_by(namespaces=[value]), ask(peer=PEER), action) is matched
    assert matches(sent_by(notNamespaces=[value]), ask(peer=PEER), action) is not matched
    assert matches(when("source.namespace", value), ask(peer=PEER), action) is matched


@pytest.mark.parametrize(
    ("value", "namespace", "matched"),
    [("cart", "shop", True), ("cart", "default", False), ("shop/cart", "default", True), ("other/cart", "shop", False)],
)
def test_M36_service_accounts_are_those_of_the_policys_namespace(value: str, namespace: str, matched: bool) -> None:
    for rule, expected in (
        (sent_by(serviceAccounts=[value]), matched),
        (sent_by(notServiceAccounts=[value]), not matched),
        (when("source.serviceAccount", value), matched),
    ):
        verdict = policy_set(policy(rule, namespace=namespace)).judge(ask(peer=PEER))
        assert verdict.allowed is expected


def test_M36_service_accounts_stand_alone_in_a_source() -> None:
    assert "serviceAccounts" in refused(policy(sent_by(serviceAccounts=["a"], namespaces=["b"])))


MESH = [
    (sent_by(principals=["*"]), sent_by(notPrincipals=["*"])),
    (sent_by(namespaces=["*"]), sent_by(notNamespaces=["*"])),
    (sent_by(serviceAccounts=["a"]), sent_by(notServiceAccounts=["a"])),
    (when("source.principal", "*"), when("source.principal", not_values=["*"])),
    (when("source.namespace", "*"), when("source.namespace", not_values=["*"])),
]


@pytest.mark.parametrize(("is_one", "is_none"), MESH)
def test_M37_an_absent_identity_is_no_value_and_one_that_is_not_known_a_doubt(is_one: Json, is_none: Json) -> None:
    for action in ("ALLOW", "DENY"):
        assert not matches(is_one, ask(peer=""), action)
        assert matches(is_none, ask(peer=""), action)
        assert matches(is_one, ask(peer=None), action) is (action == "DENY")
        assert matches(is_none, ask(peer=None), action) is (action == "DENY")


@pytest.mark.parametrize("rule", [rule for pair in MESH for rule in pair])
def test_M37_identities_in_the_mesh_need_a_header_that_tells_them(rule: Json) -> None:
    assert "POLICY_PEER_HEADER" in refused(policy(rule), peers=False)
    assert policy_set(policy(rule)).uses_peers
    assert not policy_set(policy(EVERY)).uses_peers


# ---- request identity


@BOTH
@pytest.mark.parametrize(
    ("value", "claims", "matched"),
    [
        ("https://i.ex/a/sub", {"iss": "https://i.ex/a", "sub": "sub"}, True),
        ("https://i.ex/a/*", {"iss": "https://i.ex/a", "sub": "x"}, True),
        ("https://i.ex/a/*", {"iss": "https://i.ex/a"}, False),
        ("*", {"sub": "x"}, False),
        ("*", {"iss": 1, "sub": "x"}, False),
        ("*", {"iss": "i", "sub": ["x"]}, False),
        ("*", {"iss": "i", "sub": None}, False),
        ("*", None, False),
    ],
)
def test_M38_request_principals(action: str, value: str, claims: Json | None, matched: bool) -> None:
    question = ask(claims=claims)
    assert matches(sent_by(requestPrincipals=[value]), question, action) is matched
    assert matches(sent_by(notRequestPrincipals=[value]), question, action) is not matched
    assert matches(when("request.auth.principal", value), question, action) is matched
    assert matches(when("request.auth.principal", not_values=[value]), question, action) is not matched


@BOTH
@pytest.mark.parametrize(
    ("claims", "audience", "presenter"),
    [
        ({"aud": "a", "azp": "p"}, True, True), ({"aud": ["x", "b"], "azp": "q"}, True, False),
        ({"aud": ["x"]}, False, False), ({"aud": [], "azp": ["p"]}, False, True), ({}, False, False), (None, False, False),
    ],
)  # fmt: skip
def test_M39_audiences_and_presenter(action: str, claims: Json | None, audience: bool, presenter: bool) -> None:
    assert matches(when("request.auth.audiences", "a", "b"), ask(claims=claims), action) is audience
    assert matches(when("request.auth.claims[aud]", "a", "b"), ask(claims=claims), action) is audience
    assert matches(when("request.auth.presenter", "p"), ask(claims=claims), action) is presenter


@pytest.mark.parametrize(
    ("key", "claims", "matched"),
    [
        ("[a]", {"a": "v"}, True),
        ("[a][b]", {"a": {"b": "v"}}, True),
        ("[a][b]", {"a": {"b": ["u", "v"]}}, True),
        ("[a][b]", {"a": [{"b": "v"}]}, False),
        ("[a][b]", {"a": "v"}, False),
        ("[a][b]", {"a": None}, False),
        ("[a][b]", {"a.b": "v"}, False),
        ("[a.b]", {"a.b": "v"}, True),
        ("[a.b]", {"a": {"b": "v"}}, False),
        ("[https://x.ex/role]", {"https://x.ex/role": "v"}, True),
        ("[a]b]", {"a]b": "v"}, True),
        ("[[a]]", {"[a]": "v"}, True),
        ("[resource_access][my-api][roles]", {"resource_access": {"my-api": {"roles": ["v"]}}}, True),
        ("[resource_access][my-api][roles]", {"resource_access": {"other": {"roles": ["v"]}}}, False),
    ],
)
def test_M40_each_bracket_is_one_level(key: str, claims: Json, matched: bool) -> None:
    assert matches(when(f"request.auth.claims{key}", "v"), ask(claims=claims)) is matched


@pytest.mark.parametrize(
    ("claim", "matched"),
    [
        ("1", True), (["1"], True), (["2", "1"], True), ([2, "1", None, {}], True),
        (1, False), (True, False), (None, False), ({"1": "1"}, False), ([1], False), ([["1"]], False), ([], False), ("", False),
    ],
)  # fmt: skip
def test_M41_texts_and_texts_in_lists_match(claim: Any, matched: bool) -> None:
    assert matches(when("request.auth.claims[x]", "1", "true"), ask(claims={"x": claim})) is matched


@pytest.mark.parametrize(
    ("claim", "matched"),
    [
        ("a", True),
        (["a"], True),
        (["", "a"], True),
        ("", False),
        ([], False),
        ([""], False),
        (1, False),
        (True, False),
        ({}, False),
    ],
)
def test_M42_presence_of_a_claim_is_a_text_that_is_not_empty(claim: Any, matched: bool) -> None:
    assert matches(when("request.auth.claims[x]", "*"), ask(claims={"x": claim})) is matched


@BOTH
@pytest.mark.parametrize(
    ("claims", "matched"),
    [
        ({"x": "b"}, True), ({"x": ["b"]}, True), ({}, True), (None, True), ({"x": 1}, True), ({"x": []}, True),
        ({"x": "a"}, False), ({"x": ["b", "a"]}, False),
    ],
)  # fmt: skip
def test_M43_not_values_hold_unless_a_value_matches(action: str, claims: Json | None, matched: bool) -> None:
    assert matches(when("request.auth.claims[x]", not_values=["a"]), ask(claims=claims), action) is matched


@BOTH
@pytest.mark.parametrize(
    ("claim", "matched"), [(["a"], True), (["a", "b"], False), (["c"], False), (["b"], False), ([], False)]
)
def test_M44_values_and_not_values_must_both_hold(action: str, claim: list[str], matched: bool) -> None:
    rule = when("request.auth.claims[x]", "a", not_values=["b"])
    assert matches(rule, ask(claims={"x": claim}), action) is matched


@pytest.mark.parametrize(
    ("key", "value", "claims", "matched"),
    [
        ("[scope]", "read", {"scope": "read write"}, True),
        ("[scope]", "read", {"scope": "  read  "}, True),
        ("[scope]", "read write", {"scope": "read write"}, False),
        ("[scope]", "re*", {"scope": "write read"}, True),
        ("[scope]", "*", {"scope": "  "}, True),  # nothing to split: it stays a text, in Envoy too
        ("[scope]", "*", {"scope": ""}, False),
        ("[scope]", "read", {"scope": ["read write"]}, False),
        ("[scope]", "read write", {"scope": ["read write"]}, True),
        ("[permission]", "b", {"permission": "a b"}, True),
        ("[permissions]", "b", {"permissions": "a b"}, False),
        ("[a][scope]", "read", {"a": {"scope": "read write"}}, False),
        ("[mine]", "b", {"mine": "a b"}, True),
        ("[mine]", "a b", {"mine": "a b"}, False),
        ("[other]", "b", {"other": "a b"}, False),
        ("[scope]", "read\twrite", {"scope": "read\twrite"}, True),
    ],
)
def test_M45_scopes_are_split_at_blanks(key: str, value: str, claims: Json, matched: bool) -> None:
    question = ask(claims=claims, split=frozenset({"mine"}))
    assert matches(when(f"request.auth.claims{key}", value), question) is matched


def test_M45_more_names_come_with_the_issuers_rule() -> None:
    chosen = policy_set(
        authentication(
            {"issuer": "a", "jwksUri": "https://k.example/", "spaceDelimitedClaims": ["x"]},
            {"issuer": "b", "jwksUri": "https://k.example/", "spaceDelimitedClaims": ["y"]},
            {"jwksUri": "https://k.example/", "spaceDelimitedClaims": ["z"]},
        )
    )
    selected = chosen.workload("any.example", "/")
    assert selected is not None
    assert [selected.split_for(issuer) for issuer in "abc"] == [{"x", "z"}, {"y", "z"}, {"z"}]


@pytest.mark.parametrize(
    ("split", "subject", "matched"),
    [({"sub"}, "s", False), ({"iss"}, "s", False), ({"sub"}, " ", True), ({"x"}, "s", True)],
)
def test_M45_an_issuer_or_subject_that_is_split_is_no_text(split: set[str], subject: str, matched: bool) -> None:
    question = ask(claims={"iss": "i", "sub": subject}, split=frozenset(split))
    assert matches(sent_by(requestPrincipals=["*"]), question) is matched


# ---- headers and other keys


@BOTH
@pytest.mark.parametrize(
    ("headers", "is_one", "is_none"),
    [
        ({"x": "a"}, True, False), ({"x": "b"}, False, True), ({"x": "b, c"}, False, True), ({"x": ""}, False, True), ({}, False, True),
    ],
)  # fmt: skip
def test_M46_a_header_is_one_of_the_values_or_none(
    action: str, headers: Mapping[str, str], is_one: bool, is_none: bool
) -> None:
    assert matches(when("request.headers[X]", "a"), ask(headers=headers), action) is is_one
    assert matches(when("request.headers[X]", not_values=["a"]), ask(headers=headers), action) is is_none


@pytest.mark.parametrize("header", ["a, b", "b,a", "a,a"])
def test_M46_lines_and_lists_cannot_be_told_apart_so_they_are_in_doubt(header: str) -> None:
    for rule in (when("request.headers[x]", "a"), when("request.headers[x]", not_values=["a"])):
        assert not matches(rule, ask(headers={"x": header}), "ALLOW")
        assert matches(rule, ask(headers={"x": header}), "DENY")
    assert not matches(when("request.headers[x]", "c"), ask(headers={"x": header}), "DENY")
    assert matches(when("request.headers[x]", not_values=["c"]), ask(headers={"x": header}), "ALLOW")


@pytest.mark.parametrize(
    ("values", "not_values", "port", "matched"),
    [
        (["443"], [], 443, True),
        (["443", "80"], [], 80, True),
        (["443"], [], 80, False),
        ([], ["80"], 443, True),
        ([], ["80"], 80, False),
    ],
)
def test_M47_destination_port(values: list[str], not_values: list[str], port: int, matched: bool) -> None:
    assert matches(when("destination.port", *values, not_values=not_values), ask(port=port)) is matched


@pytest.mark.parametrize(
    "key", ["destination.ip", "connection.sni", "experimental.envoy.filters.network.mysql_proxy[db.t]"]
)
def test_M47_what_a_check_service_cannot_see_is_an_error(key: str) -> None:
    assert "check service" in refused(policy(when(key, "10.0.0.1")))


def test_M48_whoever_verified_the_claims_they_count() -> None:
    rule = when("request.auth.claims[email]", "a@example.com")
    assert matches(rule, ask(claims={"email": "a@example.com"}))
    assert not matches(rule, ask(claims=None))


# ---- selection

SHOP: Json = {
    "cart.example": {"namespace": "shop", "labels": {"app": "cart", "tier": "web"}, "targets": ["Service/cart"]},
    "pay.example": {"namespace": "shop", "labels": {"app": "pay"}},
    "cart.other": {"namespace": "other", "labels": {"app": "cart"}},
}


def selected_by(**spec: Any) -> set[str]:
    """The hosts of `SHOP` that a policy with this selection is for."""
    chosen = policy_set(policy(EVERY, action="DENY", **spec), workloads=SHOP)
    return {host for host in SHOP if not chosen.judge(ask(host=host)).allowed}


@pytest.mark.parametrize(
    ("labels", "namespace", "hosts"),
    [
        ({"app": "cart"}, "shop", {"cart.example"}),
        ({"app": "cart", "tier": "web"}, "shop", {"cart.example"}),
        ({"app": "cart"}, "other", {"cart.other"}),
        ({"app": "cart"}, "istio-system", {"cart.example", "cart.other"}),
        ({}, "shop", {"cart.example", "pay.example"}),
    ],
)
def test_M66_a_selector_asks_for_all_labels_in_its_namespace(labels: Json, namespace: str, hosts: set[str]) -> None:
    assert selected_by(selector={"matchLabels": labels}, namespace=namespace) == hosts


@pytest.mark.parametrize(
    ("namespace", "hosts"),
    [("shop", {"cart.example", "pay.example"}), ("other", {"cart.other"}), ("istio-system", set(SHOP))],
)
def test_M67_without_selector_a_policy_is_for_its_namespace_or_from_the_root_for_all(
    namespace: str, hosts: set[str]
) -> None:
    assert selected_by(namespace=namespace) == hosts


def test_M67_the_root_namespace_can_have_another_name() -> None:
    chosen = policy_set(policy(EVERY, action="DENY", namespace="mesh"), workloads=SHOP, root="mesh")
    assert not chosen.judge(ask(host="pay.example")).allowed
    assert "istio-system" in refused(policy(EVERY, namespace="istio-system"), workloads=SHOP, root="mesh")


@pytest.mark.parametrize(
    "spec",
    [
        {"targetRef": {"kind": "Service", "name": "cart", "group": ""}},
        {"targetRefs": [{"kind": "Service", "name": "cart", "group": ""}]},
    ],
)
def test_M68_a_target_is_one_of_the_policys_namespace(spec: Json) -> None:
    assert selected_by(namespace="shop", **spec) == {"cart.example"}
    assert "Service/cart" in refused(policy(EVERY, namespace="other", **spec), workloads=SHOP)


def test_M68_there_is_at_most_one_kind_of_selection() -> None:
    target = {"kind": "Service", "name": "cart", "group": ""}
    assert "targetRef" in refused(policy(EVERY, selector={"matchLabels": {"a": "b"}}, targetRef=target))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"namespace": "nowhere"}, "is in the namespace nowhere, so"),
        ({"namespace": "shop", "selector": {"matchLabels": {"app": "stock"}}}, "with the label app: stock"),
        (
            {"namespace": "istio-system", "selector": {"matchLabels": {"app": "stock"}}},
            "in any namespace with the label",
        ),
    ],
)
def test_M69_what_cannot_be_resolved_is_an_error(spec: Json, words: str) -> None:
    assert words in refused(policy(EVERY, **spec), workloads=SHOP)


def test_M69_without_workloads_every_host_is_one_and_nothing_can_be_chosen() -> None:
    chosen = policy_set(policy(to(methods=["GET"]), namespace="anything"))
    assert chosen.judge(ask(host="whoever.example")).allowed
    assert "POLICY_WORKLOADS names none" in refused(policy(EVERY, selector={"matchLabels": {"app": "cart"}}))


def test_M69_a_host_that_is_named_nowhere_is_denied() -> None:
    verdict = policy_set(policy(EVERY, namespace="shop"), workloads=SHOP).judge(ask(host="else.example"))
    assert (verdict.allowed, verdict.ground) == (False, Ground.UNKNOWN_WORKLOAD)


def test_the_policies_of_the_tests_are_those_that_people_write() -> None:
    assert [
        resource.full_name for resource in resources(policy(EVERY, namespace="a"), authentication(namespace="b"))
    ] == ["a/p", "b/r"]
