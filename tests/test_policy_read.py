"""Reading policies: what Istio takes becomes a value, and all else is named with file, line and field.

Each file of ``data/policies/malformed`` begins with what has to be said of it, a line for each problem.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from datetime import timedelta
from ipaddress import ip_network
from itertools import takewhile
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from authservice.policy import yaml_lines
from authservice.policy.read import files_of, read, read_text
from authservice.policy.resources import (
    Action,
    AuthorizationPolicy,
    Condition,
    JwtRule,
    Operation,
    PolicyErrors,
    RequestAuthentication,
    Resource,
    Selection,
    Source,
)

MALFORMED = Path(__file__).parent / "data" / "policies" / "malformed"

REALM = """\
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: {name: backend-authz, namespace: default}
spec:
  selector: {matchLabels: {app: backend}}
  action: ALLOW
  rules:
  - to:
    - operation: {methods: ["GET"]}
    when:
    - {key: "request.auth.claims[iss]", values: ["http://keycloak.keycloak.svc.cluster.local/realms/myrealm"]}
    - {key: "request.auth.claims[aud]", values: ["my-backend-client"]}
    - {key: "request.auth.claims[email]", values: ["user@example.com"]}
"""

KEYS = """{"keys": [{"kty": "EC", "crv": "P-256", "kid": "a", "x":
"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"""


def policy(spec: str, metadata: str = "{name: a}") -> str:
    body = "".join(f"  {line}\n" for line in spec.strip("\n").splitlines())
    return f"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {metadata}\nspec:\n{body}"


def tokens(rule: str) -> JwtRule:
    lines = "".join(f"    {line}\n" for line in rule.strip("\n").splitlines())
    head = "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: t}\n"
    (resource,) = read_text(f"{head}spec:\n  jwtRules:\n  -\n{lines}", "t.yaml")
    assert isinstance(resource, RequestAuthentication)
    return resource.rules[0]


def one(text: str) -> AuthorizationPolicy:
    (resource,) = read_text(text, "a.yaml")
    assert isinstance(resource, AuthorizationPolicy)
    return resource


def complaints(text: str) -> list[str]:
    with pytest.raises(PolicyErrors) as raised:
        read_text(text, "a.yaml")
    return [f"{place}: {sentence}" for place, sentence in raised.value.problems]


# What is taken


def test_a_policy_written_for_a_realm_is_read_as_it_is() -> None:
    read_ = one(REALM)
    assert (read_.full_name, read_.action, read_.dry_run) == ("default/backend-authz", Action.ALLOW, False)
    assert read_.selection == Selection(labels=(("app", "backend"),))
    (rule,) = read_.rules
    assert (rule.sources, rule.operations) == ((), (Operation(methods=("GET",)),))
    assert rule.conditions[1] == Condition("request.auth.claims[aud]", ("my-backend-client",))
    assert str(rule.place) == "a.yaml:8: spec.rules[0]"


def test_every_field_of_a_source_is_read() -> None:
    texts = ["principals", "requestPrincipals", "namespaces"]
    blocks = ["ipBlocks", "remoteIpBlocks"]
    fields = {f: [f] for f in (*texts, *(f"not{t[0].upper()}{t[1:]}" for t in texts))}
    fields |= {f: ["10.1.2.3/8", "::1"] for f in (*blocks, *(f"not{b[0].upper()}{b[1:]}" for b in blocks))}
    (rule,) = one(policy(f"rules: [{{from: [{{source: {json.dumps(fields)}}}]}}]")).rules
    networks = (ip_network("10.0.0.0/8"), ip_network("::1"))
    assert rule.sources == (
        Source(
            principals=("principals",), not_principals=("notPrincipals",),
            request_principals=("requestPrincipals",), not_request_principals=("notRequestPrincipals",),
            namespaces=("namespaces",), not_namespaces=("notNamespaces",),
            ip_blocks=networks, not_ip_blocks=networks, remote_ip_blocks=networks, not_remote_ip_blocks=networks,
        ),
    )  # fmt: skip
    (rule,) = one(policy("rules: [{from: [{source: {serviceAccounts: [a, n/b], notServiceAccounts: [c]}}]}]")).rules
    assert rule.sources == (Source(service_accounts=("a", "n/b"), not_service_accounts=("c",)),)


def test_every_field_of_an_operation_is_read() -> None:
    text = policy(
        "rules: [{to: [{operation: {hosts: ['*'], notHosts: [a], ports: ['80', '0'], notPorts: ['65535'],"
        " methods: [GET], notMethods: ['PUT'], paths: ['/a/{*}/b', '/c*'], notPaths: ['/a/{**}']}}]}]"
    )
    assert one(text).rules[0].operations == (
        Operation(("*",), ("a",), (80, 0), (65535,), ("GET",), ("PUT",), ("/a/{*}/b", "/c*"), ("/a/{**}",)),
    )


@pytest.mark.parametrize(
    "key,value",
    [
        ("request.headers[X-Tenant]", "a"), ("request.auth.claims[realm_access][roles]", "admin"),
        ("request.auth.claims[https://example.com/a.b]", "x"), ("request.auth.claims[a]b[c]", "x"),
        ("request.auth.principal", "https://idp.example.com/*"), ("request.auth.audiences", "a"),
        ("request.auth.presenter", "a"), ("source.ip", "10.0.0.1"), ("remote.ip", "2001:db8::/32"),
        ("source.principal", "cluster.local/ns/a/sa/b"), ("source.namespace", "a*"),
        ("source.serviceAccount", "a/b"), ("destination.port", "8443"),
    ],
)  # fmt: skip
def test_every_key_of_a_condition_is_taken(key: str, value: str) -> None:
    (rule,) = one(policy(f"rules: [{{when: [{{key: '{key}', values: ['{value}'], notValues: ['{value}']}}]}}]")).rules
    assert rule.conditions == (Condition(key, (value,), (value,)),)


def test_every_field_of_a_token_rule_is_read() -> None:
    rule = tokens(
        f"""
issuer: https://idp.example.com/
audiences: [a, b]
jwksUri: https://idp.example.com/keys
jwks: |
  {KEYS.replace(chr(10), " ")}
fromHeaders: [{{name: X-Token, prefix: "Token "}}, {{name: x-plain}}]
fromParams: [token]
fromCookies: [tok]
outputPayloadToHeader: x-payload
outputClaimToHeaders: [{{header: X-Mail, claim: profile.email}}]
forwardOriginalToken: true
spaceDelimitedClaims: [roles]
timeout: 1.5s
"""
    )
    assert rule.issuer == "https://idp.example.com/" and rule.audiences == ("a", "b")
    assert rule.jwks_uri == "https://idp.example.com/keys"
    assert rule.jwks is not None and rule.jwks["keys"][0]["kid"] == "a"
    assert rule.from_headers == (("x-token", "Token "), ("x-plain", ""))
    assert (rule.from_params, rule.from_cookies) == (("token",), ("tok",))
    assert (rule.output_payload_header, rule.output_claims) == ("x-payload", (("X-Mail", "profile.email"),))
    assert rule.forward_original_token and rule.space_delimited_claims == ("roles",)
    assert rule.timeout == timedelta(seconds=1.5)


def test_a_token_rule_needs_little() -> None:
    rule = tokens("issuer: https://idp.example.com")
    assert (rule.audiences, rule.jwks_uri, rule.jwks, rule.forward_original_token) == ((), "", None, False)
    assert rule.timeout == timedelta(seconds=5)
    assert tokens("jwks_uri: http://idp/keys").jwks_uri == "http://idp/keys"


@pytest.mark.parametrize(
    "text,seconds", [("5s", 5), ("0.25s", 0.25), ("500ms", 0.5), ("1m", 60), ("1m30s", 90), ("1h", 3600)]
)
def test_a_duration_is_read_as_istio_reads_it(text: str, seconds: float) -> None:
    assert tokens(f"issuer: https://i\ntimeout: {text}").timeout == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "s", "5", "-5s", "+5s", "5 s", "1e3s", "1h1ms", "0.1ms", "５s", "9" * 50 + "s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(PolicyErrors):
        tokens(f"issuer: https://i\ntimeout: '{text}'")


@pytest.mark.parametrize("spec", ["spec: {}", "spec:", "spec: {rules: []}", ""])
def test_a_policy_without_rules_allows_nothing(spec: str) -> None:
    read_ = one(f"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a}}\n{spec}\n")
    assert (read_.action, read_.rules, read_.selection) == (Action.ALLOW, (), Selection())


def test_an_empty_rule_is_a_rule() -> None:
    (rule,) = one(policy("action: DENY\nrules: [{}]")).rules
    assert (rule.sources, rule.operations, rule.conditions) == ((), (), ())


@pytest.mark.parametrize("text", ["1", "t", "T", "TRUE", "true", "True"])
def test_a_policy_can_be_on_trial(text: str) -> None:
    metadata = "{name: a, annotations: {istio.io/dry-run: '%s'}}"
    assert one(policy("rules: [{}]", metadata % text)).dry_run
    assert not one(policy("rules: [{}]", metadata % "false")).dry_run


def test_targets_are_named_by_kind_and_name() -> None:
    text = policy(
        "targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: public}, {kind: Service, name: b},"
        " {kind: Service, group: core, name: c, namespace: default}, {kind: ServiceEntry, group: networking.istio.io,"
        " name: d}, {kind: HTTPRoute, group: gateway.networking.k8s.io, name: e.f}]\nrules: [{}]"
    )
    assert one(text).selection.targets == (
        "Gateway/public", "Service/b", "Service/c", "ServiceEntry/d", "HTTPRoute/e.f"
    )  # fmt: skip
    assert one(policy("targetRef: {kind: Service, name: b}")).selection.targets == ("Service/b",)


def test_what_kubectl_prints_is_read() -> None:
    text = """\
apiVersion: v1
kind: List
metadata: {resourceVersion: ""}
items:
- apiVersion: security.istio.io/v1
  kind: AuthorizationPolicy
  metadata:
    annotations:
      kubectl.kubernetes.io/last-applied-configuration: |
        {"apiVersion":"security.istio.io/v1","kind":"AuthorizationPolicy"}
    creationTimestamp: 2024-01-01T00:00:00Z
    finalizers: [a]
    generation: 1
    labels: {app: web}
    managedFields: [{manager: kubectl, fieldsV1: {"f:spec": {}}}]
    name: web
    namespace: shop
    ownerReferences: [{kind: Application, name: b, uid: c}]
    resourceVersion: "7"
    uid: 5e8bc10c-2b1c-4fa1-9f0c-000000000000
  spec:
    rules: [{}]
  status: {conditions: [1]}
- apiVersion: security.istio.io/v1
  kind: RequestAuthentication
  metadata: {name: idp, namespace: shop}
  spec:
    jwtRules:
    - issuer: https://idp.example.com
"""
    first, second = read_text(text, "all.yaml")
    assert (first.full_name, second.full_name) == ("shop/web", "shop/idp")
    assert str(second.rules[0].place) == "all.yaml:29: items[1].spec.jwtRules[0]"


def test_documents_that_are_empty_are_passed_over() -> None:
    assert len(read_text(f"---\n# nothing\n---\n{REALM}---\n\n--- # end\n{REALM}...\n---\n", "a.yaml")) == 2
    assert read_text("", "a.yaml") == [] == read_text("# nothing\n", "a.yaml")


def test_lines_may_end_as_windows_ends_them() -> None:
    assert one(REALM.replace("\n", "\r\n")).rules == one(REALM).rules
    assert complaints(REALM.replace("ALLOW", "allow").replace("\n", "\r\n"))[0].startswith("a.yaml:6: spec.action:")


def test_json_is_read_as_well() -> None:
    assert one(json.dumps(yaml.safe_load(REALM), indent="\t")).rules[0].conditions == one(REALM).rules[0].conditions


def test_anchors_aliases_and_merges_stand_for_what_they_name() -> None:
    text = policy(
        """
rules:
- to: &read
  - operation: &get {methods: [GET], paths: [/a]}
  when: [{key: "request.auth.claims[a]", values: &who [x, y]}]
- to: *read
  when: [{key: "request.auth.claims[b]", values: *who}]
- to:
  - operation: {<<: *get, paths: [/b]}
- to:
  - operation: {<<: [{hosts: [h]}, *get], methods: [PUT]}
"""
    )
    first, second, third, fourth = one(text).rules
    assert first.operations == second.operations == (Operation(methods=("GET",), paths=("/a",)),)
    assert second.conditions[0].values == ("x", "y")
    assert third.operations == (Operation(methods=("GET",), paths=("/b",)),)
    assert fourth.operations == (Operation(hosts=("h",), methods=("PUT",), paths=("/a",)),)


@pytest.mark.parametrize(
    "written,meant",
    [("'no'", "no"), ('"1"', "1"), ("!!str 8", "8"), ("2024-01-01", "2024-01-01"), ("=", "="), ("<<", "<<"),
     ("y", "y"), ("! 7", "7"), ("'a: b'", "a: b"), ("größer", "größer")],
)  # fmt: skip
def test_text_is_what_is_written(written: str, meant: str) -> None:
    text = policy(f"rules: [{{when: [{{key: 'request.auth.claims[a]', values: [{written}]}}]}}]")
    assert one(text).rules[0].conditions[0].values == (meant,)


# What is not


@pytest.mark.parametrize("file", sorted(MALFORMED.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_malformed_policy_is_told_with_its_line(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    expected = [line[2:] for line in takewhile(lambda line: line.startswith("# "), text.splitlines())]
    with pytest.raises(PolicyErrors) as raised:
        read([file])
    told = [f"{place}: {sentence}".removeprefix(f"{file}:") for place, sentence in raised.value.problems]
    assert told == expected


def test_there_are_many_malformed_policies() -> None:
    assert len(list(MALFORMED.glob("*.yaml"))) >= 60


def test_all_problems_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(policy("action: deny\nrule: []"))
    (tmp_path / "b.yml").write_text(REALM)
    (tmp_path / "c.json").write_text('{"kind": "AuthorizationPolicy"}')
    (tmp_path / "d.yaml").write_bytes(REALM.encode().replace(b"user@", b"\xff@"))
    with pytest.raises(PolicyErrors) as raised:
        read([tmp_path, tmp_path / "e.yaml"])
    assert str(raised.value).replace(f"{tmp_path}/", "").splitlines() == [
        'a.yaml:5: spec.action: "deny" is no action; taken are ALLOW, DENY, AUDIT',
        'a.yaml:6: spec.rule: there is no field "rule" here; did you mean rules?',
        "c.json:1: apiVersion is missing",
        "c.json:1: metadata is missing, and with it the name",
        "d.yaml:13: this is not UTF-8",
        "e.yaml:1: this file cannot be read (No such file or directory)",
    ]


def test_a_document_that_is_no_yaml_hides_nothing_of_the_others() -> None:
    text = f"a: b: c\n---\n{policy('action: x')}---\n[\n---\n{policy('action: y')}"
    assert [said.split(": ")[0] for said in complaints(text)] == ["a.yaml:1", "a.yaml:7", "a.yaml:10", "a.yaml:15"]


@pytest.mark.parametrize(
    "text,told",
    [
        ("a: \x00\n", "a.yaml:1: the character U+0000 cannot stand in YAML"),
        ("a\nb: \ud800\n", "a.yaml:2: the character U+D800 cannot stand in YAML"),
        ("%YAML 9.9\n---\n", "a.yaml:1: this is not YAML: found incompatible YAML document"),
        ('a: "\\ud800"', "a.yaml:1: this is not YAML: found invalid Unicode character escape code for what begins"),
        ("- " * 5000, "a.yaml:1: this is nested deeper than 64 levels"),
        ("[" * 100_000, "a.yaml:1: this is nested deeper than 64 levels"),
        ("{a: " * 100_000, "a.yaml:1: this is nested deeper than 64 levels"),
    ],
)  # fmt: skip
def test_text_that_no_reader_could_bear_is_refused(text: str, told: str) -> None:
    assert complaints(text)[0].startswith(told[:60])


def test_a_text_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(yaml_lines, "MAX_BYTES", 1000)
    assert complaints("# ä\n" * 400) == ["a.yaml:1: this text has more than 1000 characters"]
    (tmp_path / "a.yaml").write_text(REALM + "# ä\n" * 150)
    with pytest.raises(PolicyErrors, match="a.yaml:1: this file has more than 1000 bytes"):
        read([tmp_path])


def test_what_has_very_many_broken_documents_is_soon_put_aside() -> None:
    began = time.monotonic()
    assert len(complaints("a: b: c\n---\n" * 20_000)) == yaml_lines.MOST_BROKEN
    assert len(complaints(f"- {'a: *b'}\n---\n" * 20_000)) == yaml_lines.MOST_BROKEN
    assert time.monotonic() - began < 20


def test_a_value_is_quoted_shortly_and_on_one_line() -> None:
    (said,) = complaints(policy(f"action: \"{'x' * 500}\\n\\u2028\""))
    assert len(said) < 160
    assert complaints(policy('action: "a\\nb\\e[1m"')) == [
        'a.yaml:5: spec.action: "a\\u000ab\\u001b[1m" is no action; taken are ALLOW, DENY, AUDIT'
    ]


# Files


def test_a_file_stands_for_itself_and_a_folder_for_what_is_visible_in_it(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yml", "c.json", ".hidden.yaml", "notes.txt", "b.yaml~"):
        (tmp_path / name).write_text(REALM)
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "d.yaml").write_text(REALM)
    assert [file.name for file in files_of(tmp_path)] == ["a.yml", "b.yaml", "c.json"]
    assert files_of(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]


def test_a_config_map_is_read_once_through_its_visible_links(tmp_path: Path) -> None:
    version = tmp_path / "..2024_01_01_00_00_00.1"
    version.mkdir()
    (version / "a.yaml").write_text(REALM)
    (tmp_path / "..data").symlink_to(version.name)
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    assert len(read([tmp_path])) == 1


def refused(path: Path) -> str:
    with pytest.raises(PolicyErrors) as raised:
        read([path])
    return str(raised.value).replace(str(path), "PATH")


def test_an_empty_folder_is_a_problem(tmp_path: Path) -> None:
    assert refused(tmp_path) == "PATH:1: this folder has no file *.yaml, *.yml or *.json"


@pytest.mark.parametrize("text", ["", "---\n", "# later\n", "apiVersion: v1\nkind: List\nitems: []\n"])
def test_a_file_without_any_policy_is_a_problem(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    assert refused(tmp_path) == "PATH/a.yaml:1: there is no policy in this file"


def _link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("make,told", [
    (_link, "this file cannot be read (No such file or directory)"),
    (os.mkfifo, "this is no regular file"),
])  # fmt: skip
def test_what_looks_like_a_policy_and_is_none_is_not_passed_over(
    tmp_path: Path, make: Callable[[Path], None], told: str
) -> None:
    make(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text(REALM)
    assert refused(tmp_path) == f"PATH/a.yaml:1: {told}"


@pytest.mark.parametrize("escape", ["\\UFFFFFFFF", "\\U00110000"])
@pytest.mark.parametrize("loader", [yaml_lines._LOADER, yaml.SafeLoader], ids=["libyaml", "python"])
def test_an_escape_of_no_character_is_a_problem_with_either_parser(
    escape: str, loader: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml_lines, "_LOADER", loader)
    [told] = complaints(f'a: "{escape}"')
    assert "this is not YAML" in told


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(REALM, encoding="utf-8-sig")
    assert len(read([tmp_path])) == 1


# Whatever the text


_BREAK = re.compile("[\n\r\x85\u2028\u2029]")  # all that end a line to YAML


def _read_or_refused(text: str) -> list[Resource]:
    """What is read. Lets only `PolicyErrors` pass, each with a place in the text and a sentence."""
    try:
        return read_text(text, "a.yaml")
    except PolicyErrors as errors:
        assert errors.problems
        for place, sentence in errors.problems:
            assert place.file == "a.yaml" and 1 <= place.line <= len(re.findall(_BREAK, text)) + 2
            assert sentence and sentence.isprintable() and str(place).isprintable()
        return []


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    _read_or_refused(text)


@given(st.text(alphabet="ab:-[]{}&*<!?|>'\"#%@`,=~ \n\t.\\0123é\u2028\x85", max_size=200))
def test_any_text_of_yaml_s_own_characters_is_read_or_refused(text: str) -> None:
    _read_or_refused(text)


_NAMES = st.sampled_from([
    "apiVersion", "kind", "metadata", "spec", "items", "name", "namespace", "annotations", "labels", "selector",
    "matchLabels", "targetRef", "targetRefs", "action", "rules", "from", "to", "when", "source", "operation",
    "principals", "ipBlocks", "serviceAccounts", "paths", "ports", "methods", "hosts", "key", "values", "notValues",
    "jwtRules", "issuer", "jwks", "jwksUri", "fromHeaders", "timeout", "outputClaimToHeaders", "claim", "header",
    "forwardOriginalToken", "istio.io/dry-run",
])  # fmt: skip
_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(),
    st.sampled_from([
        "security.istio.io/v1", "AuthorizationPolicy", "RequestAuthentication", "List", "v1", "ALLOW", "DENY", "CUSTOM",
        "request.headers[a]", "request.auth.claims[a][b]", "source.ip", "destination.port", "10.0.0.1/8", "8080",
        "/a/{*}", "/{**}/b", "https://idp.example.com", "https://[::1", '{"keys": []}', KEYS, "5s", "true",
    ]),
)  # fmt: skip
_TREES = st.recursive(
    _VALUES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES | st.text(max_size=4), inner, max_size=5),
)


@given(_TREES)
def test_any_tree_is_read_or_refused(tree: object) -> None:
    _read_or_refused(yaml.safe_dump(tree, allow_unicode=True))


def _documents(kind: str, spec: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    head = {"apiVersion": st.just("security.istio.io/v1"), "kind": st.just(kind)}
    return st.fixed_dictionaries({**head, "metadata": st.just({"name": "a"}), "spec": spec})


_ENTRIES = st.dictionaries(_NAMES, _TREES, max_size=3)
_RULES = st.fixed_dictionaries({}, optional={
    "from": st.lists(st.fixed_dictionaries({"source": _ENTRIES}), max_size=2),
    "to": st.lists(st.fixed_dictionaries({"operation": _ENTRIES}), max_size=2),
    "when": st.lists(_ENTRIES, max_size=2),
})  # fmt: skip
_SPECS = _documents("AuthorizationPolicy", st.fixed_dictionaries({"rules": st.lists(_RULES, max_size=2)})) | _documents(
    "RequestAuthentication", st.fixed_dictionaries({"jwtRules": st.lists(_ENTRIES, max_size=2)})
)


@given(_SPECS)
def test_any_spec_is_read_or_refused(document: object) -> None:
    _read_or_refused(yaml.safe_dump(document))


@given(st.data())
@settings(max_examples=300)
def test_a_policy_with_anything_changed_is_read_or_refused(data: st.DataObject) -> None:
    whole = REALM + "---\n" + policy("rules: [{from: [{source: {ipBlocks: [10.0.0.1]}}]}]")
    begin = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(begin, min(len(whole), begin + 20)))
    _read_or_refused(whole[:begin] + data.draw(st.text(max_size=10)) + whole[end:])


def test_a_thousand_policies_are_read_in_seconds() -> None:
    began = time.monotonic()
    assert len(read_text("---\n".join([REALM] * 1000), "a.yaml")) == 1000
    assert time.monotonic() - began < 20
