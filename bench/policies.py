"""Policies for the benchmark: five for each host, of the shapes that people write.

The check that is measured is the same, and so is its host: alone with a single policy, or in the midst of
`MANY_HOSTS` hosts with `MANY` policies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANY_HOSTS = 200
POLICIES_OF_A_HOST = 5
MANY = MANY_HOSTS * POLICIES_OF_A_HOST
MEASURED = "app.example"

ISSUER = "https://login.example.com/realms/bench"


def write(folder: Path, hosts: int = 0) -> dict[str, str]:
    """Files with the policies of so many hosts (0: with a single policy), and the settings that name them."""
    folder.mkdir(parents=True)
    names = [
        MEASURED if number == hosts // 2 else f"app-{number:03}.example" for number in range(max(hosts, 1))
    ]
    for number, name in enumerate(names):
        policies = of_host(f"app-{number:03}")
        documents = "\n---\n".join(map(json.dumps, policies if hosts else policies[:1]))
        (folder / f"{name}.yaml").write_text(documents, "utf-8")  # JSON is YAML, too
    workloads = {
        name: {"namespace": "default", "labels": {"app": f"app-{number:03}"}}
        for number, name in enumerate(names)
    }
    return {"POLICY_PATH": str(folder), "POLICY_WORKLOADS": json.dumps(workloads)}


def of_host(app: str) -> list[Mapping[str, Any]]:
    """The policies of one application; the first one is what lets the measured check pass."""
    made = [
        _policy(app, "read", "ALLOW", [
            {"to": [{"operation": {"methods": ["GET", "HEAD"]}}], "when": [_claim("[groups]", "dev", "admins")]},
        ]),
        _policy(app, "write", "ALLOW", [
            {"to": [{"operation": {"methods": ["POST", "PUT", "DELETE"]}}], "when": [_claim("[groups]", "admins")]},
        ]),
        _policy(app, "services", "ALLOW", [
            {
                "from": [{"source": {"requestPrincipals": [f"{ISSUER}/{app}-*"]}}],
                "to": [{"operation": {"paths": ["/api/{*}/orders/{**}", "/api/health"]}}],
                "when": [_claim("[realm_access][roles]", "service")],
            },
        ]),
        _policy(app, "admin-paths", "DENY", [
            {
                "to": [{"operation": {"paths": ["/admin", "/admin/*", "/internal/*"]}}],
                "when": [{"key": "request.auth.claims[groups]", "notValues": ["admins"]}],
            },
        ]),
        _policy(app, "odd-methods", "DENY", [{"to": [{"operation": {"methods": ["TRACE", "CONNECT"]}}]}]),
    ]  # fmt: skip
    assert len(made) == POLICIES_OF_A_HOST
    return made


def _claim(path: str, *values: str) -> dict[str, Any]:
    return {"key": f"request.auth.claims{path}", "values": list(values)}


def _policy(app: str, name: str, action: str, rules: list[dict[str, Any]]) -> Mapping[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": f"{app}-{name}", "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": app}}, "action": action, "rules": rules},
    }
