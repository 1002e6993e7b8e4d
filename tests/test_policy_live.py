"""Policies in the whole service: who passes, what those see whom they refuse, and what the log and numbers tell.

What single conditions mean is said elsewhere; here they meet sessions, tokens, gateways and settings. Every
request is asked on both lanes (`tests.conftest.ask`).
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from authservice import cli
from authservice.app import create_app
from authservice.authz.policy import peer_of
from authservice.errors import SettingsError
from authservice.trust import Trust
from authservice.settings.kinds import NETWORKS
from tests.conftest import Answer, Browser, ask
from tests.policy_sets import authentication, policy
from tests.provider import FakeProvider
from tests.served import ROOT
from tests.test_authz_external import running as running_authorizer

Json = dict[str, Any]
House = Callable[..., Browser]

READS: Json = {"to": [{"operation": {"methods": ["GET"]}}]}
CALLBACK: Json = {"to": [{"operation": {"paths": ["/secret/*"]}}]}
ALICE: Json = {"when": [{"key": "request.auth.claims[email]", "values": ["alice@example.com"]}]}
HER_READS: Json = {**READS, **ALICE}
HAS_IDENTITY: Json = {"from": [{"source": {"requestPrincipals": ["*"]}}]}


def write(path: Path, *documents: Json) -> None:
    path.write_text("\n---\n".join(json.dumps(document, indent=1) for document in documents))


@pytest.fixture
def house(make_browser: Callable[..., Browser], tmp_path: Path) -> House:
    """A browser in front of a service with these policies."""

    def make(*documents: Json, **changes: str) -> Browser:
        path = tmp_path / "policies.yaml"
        write(path, *documents)
        return make_browser(
            **{"POLICY_PATH": str(path), "AUDIENCES": "api", "KUBERNETES_AUTHN_ENABLED": "false", **changes}
        )

    return make


def hears(browser: Browser) -> list[logging.LogRecord]:
    """What this service logs from now on, until another one is made: `logs.configure` sends all others away."""
    records: list[logging.LogRecord] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    logging.getLogger("authservice").addHandler(Ear())
    return records


def events(records: list[logging.LogRecord], event: str) -> list[dict[str, Any]]:
    return [vars(record) for record in records if record.getMessage() == event]


def numbers(browser: Browser) -> dict[str, int]:
    """The verdicts of policies so far, by outcome."""
    counters = browser.app.extensions["authservice"].counts.counters()
    beginning = 'authservice_policy_verdicts_total{outcome="'
    return {
        name[len(beginning):-2]: number for name, number in counters.items() if name.startswith(beginning) and number
    }


def logged_in(browser: Browser) -> Browser:
    browser.app.extensions["authservice"].provider.ensure_known()
    assert browser.log_in("/").status == 302
    return browser


def with_token(browser: Browser, token: str, target: str = "/", method: str = "GET", **headers: Any) -> Answer:
    return browser.send(method, target, Authorization=f"Bearer {token}", Cookie="", **headers)


# --- sessions and tokens -------------------------------------------------------------------------


def test_one_policy_is_for_cookie_sessions_and_bearer_tokens_alike(house: House, provider: FakeProvider) -> None:
    browser = logged_in(house(policy(HER_READS)))
    assert browser.get("/x").status == 200
    assert browser.send("POST", "/x", Accept="application/json").status == 403
    assert with_token(browser, provider.access_token()).status == 200
    assert with_token(browser, provider.access_token(), method="POST").status == 403
    assert with_token(browser, provider.access_token(email="bob@example.com")).status == 403
    assert with_token(browser, provider.access_token() + "x").status == 401


def test_the_policy_of_a_keycloak_realm_as_it_is(house: House, provider: FakeProvider) -> None:
    text = f"""
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: {{name: backend-authz, namespace: default}}
spec:
  selector: {{matchLabels: {{app: backend}}}}
  action: ALLOW
  rules:
  - to:
    - operation: {{methods: ["GET"]}}
    when:
    - {{key: "request.auth.claims[iss]", values: ["{provider.issuer}"]}}
    - {{key: "request.auth.claims[aud]", values: ["my-backend-client", "authservice"]}}
    - {{key: "request.auth.claims[email]", values: ["user@example.com"]}}
"""
    provider.claims["email"] = "user@example.com"
    browser = house(
        policy(READS), AUDIENCES="my-backend-client,another",
        POLICY_WORKLOADS='{"app.example": {"namespace": "default", "labels": {"app": "backend"}}}',
    )
    path = Path(browser.app.extensions["authservice"].policies._files()[0])
    path.write_text(text)
    reload(browser)
    assert with_token(browser, provider.access_token("my-backend-client")).status == 200
    assert with_token(browser, provider.access_token(["x", "my-backend-client"])).status == 200
    assert with_token(browser, provider.access_token("my-backend-client"), method="POST").status == 403
    assert with_token(browser, provider.access_token("another")).status == 403
    assert with_token(browser, provider.access_token("my-backend-client", email="bob@example.com")).status == 403
    logged_in(browser)
    assert browser.get("/").status == 200
    assert browser.send("POST", "/").status == 403


def reload(browser: Browser) -> None:
    """What the thread does within two looks."""
    policies = browser.app.extensions["authservice"].policies
    policies.look()
    policies.look()


def test_a_list_claim_of_a_session_counts_as_in_a_token(house: House, provider: FakeProvider) -> None:
    rule = {"when": [{"key": "request.auth.claims[groups]", "values": ["dev"]}]}
    browser = logged_in(house(policy(rule)))
    assert browser.get("/").status == 200
    assert with_token(browser, provider.access_token(groups=["ops"])).status == 403
    assert with_token(browser, provider.access_token(groups=["dev", "ops"])).status == 200


# --- what a refused person sees ------------------------------------------------------------------

PLAIN = "You are logged in, but the rules of this site do not let you do this."


@pytest.mark.parametrize(
    ("explain", "sentence"),
    [
        ("false", PLAIN),
        ("true", "Rule 1 of the policy default/no-secrets does not let you do this."),
    ],
)
def test_explain_denials_decides_who_learns_the_policy(house: House, explain: str, sentence: str) -> None:
    deny = policy({"to": [{"operation": {"methods": ["PUT"]}}]}, CALLBACK, action="DENY", name="no-secrets")
    browser = logged_in(house(deny, EXPLAIN_DENIALS=explain))
    heard = hears(browser)
    page = browser.get("/secret/1", Accept="text/html")
    assert page.status == 403 and sentence in page.text and "alice@example.com" in page.text
    assert ("no-secrets" in page.text) is (explain == "true")
    answer = browser.get("/secret/1", X_Requested_With="XMLHttpRequest")
    assert answer.status == 403 and answer.json == {"error": "policy_denied", "message": sentence}
    causes = {(line["cause"], line["reason"].value) for line in events(heard, "check_denied")}
    assert causes == {("policy default/no-secrets rule 1 (deny_rule)", "policy_denied")}
    assert numbers(browser) == {"deny": 2}


def test_where_no_rule_allows_the_allow_policies_are_told(house: House) -> None:
    browser = logged_in(house(
        policy(CALLBACK, name="a"), policy(name="b"), policy(READS, name="tried", dry_run="true"),
        policy(CALLBACK, name="c", action="DENY"), EXPLAIN_DENIALS="true",
    ))
    heard = hears(browser)
    answer = browser.send("POST", "/x")
    assert answer.json["message"] == "No rule of these policies lets you do this: default/a, default/b."
    (line,) = events(heard, "check_denied")
    assert line["cause"] == "no rule of default/a, default/b (no_allow_rule)"


def test_a_host_that_is_no_workload_is_denied_for_everybody(house: House, provider: FakeProvider) -> None:
    browser = house(
        policy({}), POLICY_WORKLOADS='{"app.example": {}, "api.example/v1/": {}}', POLICY_ALLOWS_ANONYMOUS="true",
        EXPLAIN_DENIALS="true",
    )
    browser.app.extensions["authservice"].provider.ensure_known()
    assert browser.get(browser.begin("/", Host="other.example")).status == 302
    heard = hears(browser)
    assert browser.get("/x").status == 200
    assert browser.get("/v1/x", Host="api.example").status == 200
    elsewhere = (("other.example", "/"), ("api.example", "/v2/x"), ("api.example", "/v1/%2e%2e%2fx"), ("a,b", "/"))
    for host, target in elsewhere:
        assert browser.send("POST", target, Host=host).status == 403, (host, target)
        assert browser.send("POST", target, Host=host, Cookie="").status == 401
    assert {line["cause"] for line in events(heard, "check_denied") if line["status"] == 403} == {
        "the host is no workload (unknown_workload)"
    }
    assert browser.send("POST", "/", Host="other.example").json["message"] == (
        "No policy knows this address, so nobody may do this."
    )


# --- paths -----------------------------------------------------------------------------------------

AMBIGUOUS = ["/secret%2f1", "/a/..%2fsecret/1", "//secret/1", "/secret/1;x", "/a//../secret/1", "/../secret/1", "/x%ff"]


@pytest.mark.parametrize("target", AMBIGUOUS)
def test_an_ambiguous_path_matches_no_allow_and_every_deny(house: House, target: str) -> None:
    rules = ({"to": [{"operation": operation}]} for operation in ({"paths": ["*"]}, {"notPaths": ["/none"]}))
    allowing = logged_in(house(policy(*rules)))
    assert allowing.get("/plain").status == 200
    assert allowing.get(target).status == 403
    denying = logged_in(house(policy({"to": [{"operation": {"paths": ["/none"]}}]}, action="DENY")))
    assert denying.get("/plain").status == 200
    assert denying.get(target).status == 403


@pytest.mark.parametrize("target", ["/secret/1", "/a/../secret/1", "/a/%2e%2e/secret/1", "/secret\\1", "/%73ecret/1?x"])
def test_every_spelling_of_a_path_is_the_same(house: House, target: str) -> None:
    browser = logged_in(house(policy(CALLBACK, action="DENY")))
    assert browser.get(target).status == 403


@pytest.mark.parametrize("target", ["/x?urls=/a,/secret/1", "/x?a,http://app.example/secret/1"])
def test_a_target_that_might_be_two_is_in_doubt(house: House, target: str) -> None:
    deny = policy(CALLBACK, action="DENY")
    browser = logged_in(house(deny, GATEWAY="envoy,nginx"))
    told = {"X-Original-Method": "GET", "X-Forwarded-Proto": "https"}
    assert browser.get("/authservice/verify", **told, **{"X-Original-Uri": "/x?urls=a"}).status == 204
    assert browser.get("/authservice/verify", **told, **{"X-Original-Uri": target}).status == 403
    assert browser.get(f"/authservice/verify{target}").status == 204


def test_skipped_paths_and_preflights_pass_before_any_policy(house: House) -> None:
    browser = house(policy(), SKIP_AUTH_URLS="/open/", ALLOW_CORS_PREFLIGHT="true")
    assert browser.get("/open/x").status == 200
    preflight: Json = {"Origin": "https://x.example", "Access-Control-Request-Method": "PUT"}
    assert browser.send("OPTIONS", "/x", **preflight).status == 200
    assert numbers(browser) == {}


def test_groups_are_asked_first_and_the_external_authorizer_last(house: House) -> None:
    browser = logged_in(house(policy(), GROUPS_ALLOWLIST="ops"))
    assert browser.send("POST", "/").json["error"] == "groups_not_allowed"
    assert numbers(browser) == {}
    with running_authorizer() as authorizer:
        authorizer.says(403, b"no")
        browser = logged_in(house(policy(READS), EXTERNAL_AUTHZ_URL=authorizer.url))
        assert browser.send("POST", "/").json["error"] == "policy_denied"
        assert not authorizer.seen
        assert browser.get("/", X_Requested_With="XMLHttpRequest").json["error"] == "authorizer_refused"
        assert numbers(browser) == {"deny": 1, "allow": 1}


# --- nobody in particular --------------------------------------------------------------------------


@pytest.mark.parametrize("anonymous", ["false", "true"])
def test_without_a_credential_everybody_is_asked_to_authenticate_unless_an_allow_rule_matches(
    house: House, anonymous: str
) -> None:
    strangers = {
        "to": [{"operation": {"paths": ["/members/*"]}}], "from": [{"source": {"notRequestPrincipals": ["*"]}}],
    }
    browser = house(
        policy({"to": [{"operation": {"methods": ["GET"], "paths": ["/public/*", "/members/*"]}}]}),
        policy(strangers, name="d", action="DENY"),
        POLICY_ALLOWS_ANONYMOUS=anonymous,
    )
    answer = browser.get("/public/x")
    assert answer.status == (200 if anonymous == "true" else 302)
    if anonymous == "true":
        assert answer.header("kubeflow-userid") is None
        assert "kubeflow-userid" in (answer.header("x-envoy-auth-headers-to-remove") or "").lower()
        assert numbers(browser) == {"allow": 1}
    # Never «denied»: who is asked to authenticate may be somebody who may.
    assert browser.get("/members/x").status == 302
    assert browser.get("/elsewhere").status == 302
    assert browser.send("POST", "/public/x").status == 401
    assert browser.send("POST", "/public/x").json["error"] == "not_authenticated"
    logged_in(browser)
    assert browser.get("/members/x").status == 200
    assert browser.get("/public/x").header("kubeflow-userid") == "alice@example.com"
    assert browser.get("/elsewhere").status == 403


def test_nobody_passes_where_policies_are_silent_or_only_do_not_deny(house: House) -> None:
    browser = house(policy(CALLBACK, action="DENY"), POLICY_ALLOWS_ANONYMOUS="true")
    assert browser.get("/x").status == 302
    browser = house(policy({}, dry_run="true"), POLICY_ALLOWS_ANONYMOUS="true")
    assert browser.get("/x").status == 302


def test_nobody_is_not_let_in_by_the_presence_of_an_identity(house: House) -> None:
    browser = house(policy({**READS, **HAS_IDENTITY}), POLICY_ALLOWS_ANONYMOUS="true")
    assert browser.get("/x").status == 302
    assert logged_in(browser).get("/x").status == 200


def test_a_bad_credential_is_not_nobody(house: House, provider: FakeProvider) -> None:
    browser = house(policy({}), POLICY_ALLOWS_ANONYMOUS="true")
    assert browser.get("/").status == 200
    assert with_token(browser, provider.access_token() + "x").status == 401
    assert with_token(browser, provider.access_token(), target="/").header("kubeflow-userid") == "alice@example.com"


def test_nobody_passes_while_the_provider_is_unknown_only_where_a_rule_says_so(house: House) -> None:
    browser = house(
        policy({"to": [{"operation": {"paths": ["/public"]}}]}), POLICY_ALLOWS_ANONYMOUS="true",
        OIDC_PROVIDER="http://127.0.0.1:1/",
    )
    assert browser.get("/public").status == 200
    assert browser.get("/x").status == 503


# --- trial -----------------------------------------------------------------------------------------


def test_policy_dry_run_changes_no_answer_and_tells_what_it_would(house: House, provider: FakeProvider) -> None:
    browser = logged_in(house(
        policy(CALLBACK, action="DENY", name="no-secrets"), POLICY_DRY_RUN="true",
        POLICY_WORKLOADS='{"app.example": {}}',
    ))
    heard = hears(browser)
    assert browser.get("/secret/1").status == 200
    assert browser.get("/x").status == 200
    assert browser.get("/x", Host="other.example").status == 200
    assert browser.get("/x", Cookie="").status == 302
    assert [(line["outcome"], line["cause"], line["path"]) for line in events(heard, "policy_trial")] == [
        ("trial_deny", "policy default/no-secrets rule 0 (deny_rule)", "/secret/1"),
        ("trial_deny", "the host is no workload (unknown_workload)", "/x"),
    ]
    assert numbers(browser) == {"trial_deny": 2, "trial_allow": 1}


def test_nobody_is_admitted_by_policies_on_trial(house: House) -> None:
    browser = house(policy({}), POLICY_DRY_RUN="true", POLICY_ALLOWS_ANONYMOUS="true")
    assert browser.get("/x").status == 302


def test_a_policy_on_trial_by_its_annotation_is_counted_and_not_enforced(house: House) -> None:
    browser = logged_in(house(
        policy(CALLBACK, action="DENY", name="tried", dry_run="true"),
        policy({"to": [{"operation": {"methods": ["PUT"]}}]}, name="more", dry_run="true"),
        policy(READS, name="reads"),
    ))
    heard = hears(browser)
    assert browser.get("/x").status == 200
    assert browser.get("/secret/1").status == 200
    assert browser.send("PUT", "/x").status == 403
    assert browser.send("POST", "/x").status == 403
    assert [(line["outcome"], line["cause"]) for line in events(heard, "policy_trial")] == [
        ("trial_deny", "policy default/tried rule 0 (deny_rule)"),
        ("trial_allow", "policy default/more rule 0 (allow_rule)"),
    ]
    assert numbers(browser) == {"allow": 2, "deny": 2, "trial_deny": 1, "trial_allow": 1}


def test_audited_requests_are_told_whatever_becomes_of_them(house: House) -> None:
    browser = logged_in(house(policy(READS, name="reads"), policy(CALLBACK, name="watch", action="AUDIT")))
    heard = hears(browser)
    assert browser.get("/secret/1", X_Request_Id="r-1").status == 200
    assert browser.send("POST", "/secret/1").status == 403
    assert browser.get("/x").status == 200
    lines = events(heard, "policy_audit")
    assert [(line["cause"], line["method"]) for line in lines] == [
        ("policy default/watch rule 0", "GET"), ("policy default/watch rule 0", "POST"),
    ]
    assert lines[0]["request_id"] == "r-1"
    assert numbers(browser) == {"allow": 2, "deny": 1, "audit": 2}


# --- what gateways tell ------------------------------------------------------------------------------

INSIDE: Json = {"from": [{"source": {"remoteIpBlocks": ["203.0.113.0/24", "2001:db8::/32"]}}]}
BY_THE_GATEWAY: Json = {"from": [{"source": {"ipBlocks": ["10.1.0.0/16"]}}]}
PROXIES = {"TRUSTED_PROXIES": "127.0.0.0/8,10.0.0.0/8"}


@pytest.mark.parametrize(
    ("forwarded", "status"),
    [
        ("203.0.113.9", 200),
        ("203.0.113.9, 10.1.1.1", 200),
        ("2001:db8::7", 200),
        ("::ffff:203.0.113.9", 200),
        ("198.51.100.7, 203.0.113.9", 200),
        ("203.0.113.9, 198.51.100.7", 403),  # what a client wrote itself stands further left
        ("198.51.100.7", 403),
        ("garbage", 403),
        ("203.0.113.9:4711", 403),
        ("garbage, 127.0.0.1", 403),
        (None, 403),
    ],
)  # fmt: skip
def test_the_clients_address_is_what_trusted_proxies_tell(house: House, forwarded: str | None, status: int) -> None:
    browser = logged_in(house(policy(INSIDE), **PROXIES))
    assert browser.get("/", **({"X-Forwarded-For": forwarded} if forwarded else {})).status == status


@pytest.mark.parametrize(
    ("forwarded", "status"),
    [("203.0.113.9, 10.1.1.1", 200), ("10.1.1.1", 200), ("10.1.1.1, 203.0.113.9", 403), ("", 403)],
)
def test_the_peers_address_is_the_last_one(house: House, forwarded: str, status: int) -> None:
    browser = logged_in(house(policy(BY_THE_GATEWAY), **PROXIES))
    assert browser.get("/", **({"X-Forwarded-For": forwarded} if forwarded else {})).status == status


def test_addresses_that_nobody_trusted_tells_match_no_allow_and_every_deny(house: House) -> None:
    elsewhere = {"from": [{"source": {"remoteIpBlocks": ["192.0.2.0/24"]}}]}
    for documents, trusted in (((policy(INSIDE),), 200), ((policy(elsewhere, action="DENY"),), 200)):
        browser = logged_in(house(*documents, **PROXIES))
        headers = {
            "Host": "app.example", "X-Forwarded-For": "203.0.113.9", "Cookie": f"authservice_session={browser.session}",
        }
        assert ask(browser.app, "GET", "/", port=8080, headers=headers).status == trusted
        assert ask(browser.app, "GET", "/", port=8080, headers=headers, peer="192.0.2.77").status == 403


def test_policies_that_need_addresses_or_peers_need_somebody_who_tells_them(
    environ: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "p.yaml"
    write(path, policy(INSIDE, name="a"), policy({"from": [{"source": {"principals": ["*"]}}]}, name="b"))

    def sentences(**changes: str) -> list[str]:
        try:
            create_app({**environ, "POLICY_PATH": str(path), **changes})
        except SettingsError as error:
            return error.problems
        return []

    both = sentences()
    assert len(both) == 2 and all(line.startswith(f"POLICY_PATH: {path}:") for line in both)
    assert "TRUSTED_PROXIES" in both[0] and "POLICY_PEER_HEADER" in both[1]
    assert len(sentences(**PROXIES)) == 1
    assert len(sentences(POLICY_PEER_HEADER="x-peer")) == 2
    assert sentences(**PROXIES, POLICY_PEER_HEADER="x-peer") == []


FRONTEND = "spiffe://cluster.local/ns/default/sa/frontend"
FROM_FRONTEND: Json = {"from": [{"source": {"principals": ["cluster.local/ns/default/sa/frontend"]}}]}
NOT_BATCH: Json = {"from": [{"source": {"notPrincipals": ["cluster.local/ns/default/sa/batch"]}}]}


@pytest.mark.parametrize(
    ("xfcc", "status"),
    [
        (f"By=spiffe://x/ns/a/sa/b;Hash=0f;Subject=\"CN=a,O=b;c\";URI={FRONTEND}", 200),
        (f"URI=spiffe://cluster.local/ns/default/sa/evil,By=x;URI={FRONTEND}", 200),
        (f"URI={FRONTEND},By=x;URI=spiffe://cluster.local/ns/default/sa/evil", 403),
        (f"URI={FRONTEND};URI=spiffe://cluster.local/ns/default/sa/evil", 403),
        (f"URI={FRONTEND},", 403),
        ("By=x;Hash=0f", 403),
        ("nonsense", 403),
        (None, 403),
    ],
)  # fmt: skip
def test_the_gateways_peer_in_the_mesh_is_the_last_of_xfcc(house: House, xfcc: str | None, status: int) -> None:
    browser = logged_in(house(policy(FROM_FRONTEND), POLICY_PEER_HEADER="X-Forwarded-Client-Cert", **PROXIES))
    assert browser.get("/", **({"X-Forwarded-Client-Cert": xfcc} if xfcc else {})).status == status


def test_a_forged_xfcc_of_an_untrusted_peer_counts_neither_for_nor_against(house: House) -> None:
    for rule, action, trusted in ((FROM_FRONTEND, "ALLOW", 200), (NOT_BATCH, "ALLOW", 200)):
        browser = logged_in(house(
            policy(rule, action=action), POLICY_PEER_HEADER="X-Forwarded-Client-Cert", **PROXIES
        ))
        headers = {
            "Host": "app.example", "X-Forwarded-Client-Cert": f"URI={FRONTEND}",
            "Cookie": f"authservice_session={browser.session}",
        }
        assert ask(browser.app, "GET", "/", port=8080, headers=headers).status == trusted
        assert ask(browser.app, "GET", "/", port=8080, headers=headers, peer="192.0.2.77").status == 403
    batch = {"from": [{"source": {"principals": ["cluster.local/ns/default/sa/batch"]}}]}
    browser = logged_in(house(policy(batch, action="DENY"), POLICY_PEER_HEADER="X-Forwarded-Client-Cert", **PROXIES))
    assert browser.get("/", **{"X-Forwarded-Client-Cert": f"URI={FRONTEND}"}).status == 200
    headers = {**headers, "Cookie": f"authservice_session={browser.session}"}
    assert ask(browser.app, "GET", "/", port=8080, headers=headers, peer="192.0.2.77").status == 403


@pytest.mark.parametrize(
    ("value", "xfcc", "peer"),
    [
        ("", True, ""),
        (f"uri={FRONTEND}", True, FRONTEND[9:]),
        (f'Hash=a;Subject="/C=\\"x\\",Y";URI="{FRONTEND}"', True, FRONTEND[9:]),
        ("Hash=a;URI=", True, ""),
        ("URI=https://app.example", True, None),
        ("Hash=a;;URI=b", True, None),
        ('Subject="open;URI=spiffe://a', True, None),
        (f"Hash=a, URI={FRONTEND}", True, FRONTEND[9:]),
        ("", False, ""),
        (FRONTEND, False, FRONTEND[9:]),
        (f"{FRONTEND},{FRONTEND}", False, None),
        ("cluster.local/ns/default/sa/frontend", False, None),
        (f"URI={FRONTEND}", False, None),
    ],
)  # fmt: skip
def test_what_a_peer_header_says(value: str, xfcc: bool, peer: str | None) -> None:
    assert peer_of(value, xfcc=xfcc) == peer


@pytest.mark.parametrize("value", [f'URI={" " * 60_000}"', f'URI="a"{" " * 60_000}"', f"{' ' * 60_000}x"])
def test_no_peer_header_takes_long_to_read(value: str) -> None:
    begun = time.process_time()
    assert peer_of(value, xfcc=True) is None
    assert time.process_time() - begun < 1


@pytest.mark.parametrize(
    ("forwarded", "addresses"),
    [
        ("", (None, None)), (",,", (None, None)), ("1.2.3.4", ("1.2.3.4", "1.2.3.4")),
        ("1.2.3.4, 10.0.0.1", ("10.0.0.1", "1.2.3.4")), ("10.0.0.2,10.0.0.1", ("10.0.0.1", "10.0.0.2")),
        ("x, 10.0.0.1", ("10.0.0.1", None)), ("1.2.3.4, x", (None, None)),
    ],
)  # fmt: skip
def test_what_forwarded_addresses_say(forwarded: str, addresses: tuple[str | None, str | None]) -> None:
    trust = Trust(NETWORKS.parse("10.0.0.0/8"), None)
    assert trust.addresses({"x-forwarded-for": forwarded}) == addresses


# --- ports ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "changes", "status"),
    [
        ("app.example", {"REDIRECT_URL": "https://app.example/authservice/oidc/callback"}, 200),
        ("app.example", {"REDIRECT_URL": "http://app.example/authservice/oidc/callback"}, 403),
        ("app.example:443", {}, 200),
        ("app.example:8443", {}, 403),
        ("app.example", {}, 403),  # nothing tells the scheme
    ],
)
def test_m24_the_port_is_the_hosts_or_the_schemes(
    house: House, host: str, changes: dict[str, str], status: int
) -> None:
    browser = logged_in(house(policy({"to": [{"operation": {"ports": ["443"]}}]}), **changes))
    assert browser.get("/", Host=host).status == status


# --- the start -----------------------------------------------------------------------------------------


def test_faulty_policies_keep_the_service_from_starting_and_all_of_them_are_told(
    environ: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "a.yaml").write_text("kind: AuthorizationPolicy\n")
    write(folder / "b.yaml", policy({"nonsense": 1}), policy({"when": [{"key": "x", "values": ["y"]}]}, name="q"))
    (folder / "c.yml").write_text("a: [\n")
    with pytest.raises(SettingsError) as error:
        create_app({**environ, "POLICY_PATH": str(folder), "SERVER_PORT": "8080"})
    lines = error.value.problems
    assert len(lines) >= 4
    for name in ("a.yaml", "b.yaml", "c.yml"):
        assert any(line.startswith(f"POLICY_PATH: {folder / name}:") for line in lines), lines


def test_gunicorn_does_not_start_with_faulty_policies(environ: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    write(path, policy({"nonsense": 1}), policy({"rubbish": 1}, name="q"))
    started = subprocess.run(
        [sys.executable, "-c", "import authservice.gunicorn_conf"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, **environ, "POLICY_PATH": str(path)}, timeout=60,
    )
    assert started.returncode == 2
    assert "2 problems" in started.stderr and started.stderr.count(f"  - POLICY_PATH: {path}:") == 2


def test_check_config_says_the_same(
    environ: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.yaml"
    write(path, policy({"nonsense": 1}))
    assert cli.check_config({**environ, "POLICY_PATH": str(path)}) == 2
    assert f"  - POLICY_PATH: {path}:" in capsys.readouterr().out
    write(path, policy({}))
    assert cli.check_config({**environ, "POLICY_PATH": str(path)}) == 0


@pytest.mark.parametrize("kind", ["missing", "empty folder", "empty file", "only a comment"])
def test_there_have_to_be_policies(environ: dict[str, str], tmp_path: Path, kind: str) -> None:
    path = tmp_path / "policies"
    if kind == "empty folder":
        path.mkdir()
    elif kind != "missing":
        path.write_text("# nothing yet\n" if kind == "only a comment" else "")
    with pytest.raises(SettingsError) as error:
        create_app({**environ, "POLICY_PATH": str(path)})
    (line,) = error.value.problems
    assert line.startswith(f"POLICY_PATH: {path}:1: ")


@pytest.mark.parametrize(
    ("content", "beginning"),
    [(None, ":1: "), ("a.example: {}\nb.example: 1\n", ":2: "), ("", ":1: ")],
)
def test_a_faulty_file_of_workloads_is_told_with_its_line(
    environ: dict[str, str], tmp_path: Path, content: str | None, beginning: str
) -> None:
    path, named = tmp_path / "p.yaml", tmp_path / "workloads.yaml"
    write(path, policy({}))
    if content is not None:
        named.write_text(content)
    with pytest.raises(SettingsError) as error:
        create_app({**environ, "POLICY_PATH": str(path), "POLICY_WORKLOADS": str(named)})
    (line,) = error.value.problems
    assert line.startswith(f"POLICY_WORKLOADS: {named}{beginning}") and line.count(str(named)) == 1, line


def test_request_authentication_alone_is_a_set_of_policies(house: House, provider: FakeProvider) -> None:
    browser = logged_in(house(authentication({"issuer": provider.issuer})))
    assert browser.get("/").status == 200
