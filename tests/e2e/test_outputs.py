"""What rules of RequestAuthentications pass on and take away (M61 to M63), as applications behind real gateways
see it. To each shipped configuration the lines are added that docs/policies.md names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.e2e import gateways
from tests.e2e.conftest import StartStack, each_of
from tests.e2e.stack import Stack
from tests.policy_sets import authentication
from tests.request_rules import Issuer

pytestmark = [pytest.mark.external]

ANNA = Issuer("anna", 11)
RULE = ANNA.rule(outputClaimToHeaders=[{"header": "X-Mail", "claim": "email"}, {"header": "X-Plan", "claim": "plan"}])
FORGED = [("X-Mail", "forged"), ("x-plan", "forged"), ("X_Mail", "forged")]

ADDED: Mapping[str, tuple[str, str, str]] = {
    "envoy": (
        "envoy/envoy.yaml",
        "- {exact: auth-method, ignore_case: true}",
        """- {exact: auth-method, ignore_case: true}
                    - {exact: x-mail, ignore_case: true}
                    - {exact: x-plan, ignore_case: true}""",
    ),
    "nginx": (
        "nginx/authservice.conf",
        "proxy_set_header Auth-Method $authservice_method;",
        """proxy_set_header Auth-Method $authservice_method;
    auth_request_set $authservice_mail $upstream_http_x_mail;
    auth_request_set $authservice_plan $upstream_http_x_plan;
    proxy_set_header X-Mail $authservice_mail;
    proxy_set_header X-Plan $authservice_plan;
    proxy_set_header Authorization "";""",
    ),
    "caddy": ("caddy/Caddyfile", "groups Auth-Method", "groups Auth-Method X-Mail X-Plan Authorization"),
    "traefik": ("traefik/dynamic.yml", "Auth-Method]", "Auth-Method, X-Mail, X-Plan, Authorization]"),
}
"""For each gateway the file, and what in it becomes what."""


@pytest.fixture(params=each_of(*gateways.KINDS))
def gated(
    request: pytest.FixtureRequest, own_stack: StartStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Stack:
    """A stack behind each gateway in turn, with one rule."""
    file, old, new = ADDED[request.param]
    shutil.copytree(gateways.FILES, tmp_path / "deploy")
    changed = tmp_path / "deploy" / file
    text = changed.read_text()
    assert text.count(old) == 1
    changed.write_text(text.replace(old, new))
    monkeypatch.setattr(gateways, "FILES", tmp_path / "deploy")
    policies = tmp_path / "policies.json"
    policies.write_text(json.dumps(authentication(RULE)))
    stack: Stack = own_stack(request.param, {"POLICY_PATH": str(policies), "SKIP_AUTH_URLS": "/public"})
    return stack


def told(stack: Stack, marker: str, name: str) -> list[str]:
    """What an application might take for this header, of the one request that reached it."""
    (seen,) = stack.reached(marker)
    return [value for _, value in seen.like(name) if value]


def test_M61_M63_outputs_reach_the_application_and_forged_ones_and_the_token_do_not(gated: Stack, marker: str) -> None:
    token = ANNA.token(email="anna@example.com")
    gated.more_secrets.add(token)
    answer = gated.request("GET", "/app", [("X-Marker", marker), ("Authorization", f"Bearer {token}"), *FORGED])
    assert answer.status == 200
    assert told(gated, marker, "x-mail") == ["anna@example.com"]
    assert told(gated, marker, "x-plan") == []
    assert told(gated, marker, "authorization") == []
    nobody = marker + "-nobody"
    assert gated.request("GET", "/public/x", [("X-Marker", nobody), *FORGED]).status == 200
    assert told(gated, nobody, "x-mail") == told(gated, nobody, "x-plan") == []
    person = gated.logged_in()
    hers = marker + "-hers"
    assert person.send(gated.url + "/app", headers=[("X-Marker", hers), *FORGED]).answer.status == 200
    assert told(gated, hers, "x-mail") == told(gated, hers, "x-plan") == []
