"""Who may pass: addresses, groups, roles, and paths for everybody."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from authservice.migrate.options import Options, OptionsError, read_text
from authservice.migrate.plan import Plan
from authservice.migrate.routes import Route, read_route

_RESTRICTS: Mapping[str, str] = {
    "allowed_roles": "A policy on the claim with the roles, such as request.auth.claims[realm_access][roles].",
    "entra_id_allowed_tenants": "A policy on request.auth.claims[tid].",
    "github_org": "No OpenID Connect provider tells it of itself; Dex puts it into groups.",
    "github_team": "Dex puts teams into groups: GROUPS_ALLOWLIST.",
    "github_repo": "No OpenID Connect provider tells who may push.",
    "github_users": "A policy on the claim with the name.",
    "gitlab_groups": "GitLab tells groups in the claim groups_direct: GROUPS_CLAIM and GROUPS_ALLOWLIST.",
    "gitlab_projects": "GitLab tells no projects in its tokens.",
    "google_group": "Google tells no groups in its tokens; Dex can ask for them.",
    "google_groups": "Google tells no groups in its tokens; Dex can ask for them.",
    "bitbucket_team": "Dex puts teams into groups: GROUPS_ALLOWLIST.",
    "bitbucket_repository": "No OpenID Connect provider tells who may push.",
}
"""Restrictions that our settings do not have, and what does the same."""


def email_claim(options: Options) -> str:
    """Which claim is the mail address. ``user_id_claim`` is the option's older name."""
    older = options.text("user_id_claim", "email")
    return options.text("oidc_email_claim", "email" if older == "email" else older)


def people(options: Options, plan: Plan, policy_path: str) -> None:
    """Settings, and the policy for what they cannot say."""
    _groups(options, plan)
    for option, way in _RESTRICTS.items():
        if option in options:
            plan.close(option, way)
    addresses = _addresses(options, plan)
    anonymous = _open_paths(options, plan)
    if options.flag("skip_auth_preflight"):
        plan.set("ALLOW_CORS_PREFLIGHT", "true", "skip_auth_preflight")
        plan.changed("skip_auth_preflight", "only true preflights pass, not every OPTIONS request.")
    if "htpasswd_file" in options:
        plan.lost("htpasswd_file", "nobody logs in with a password here. Move these people to the provider.")
    if "trusted_ips" in options:
        plan.lost("trusted_ips", "an address is no login. Programs at these addresses need a token.")
    if (anonymous or "SKIP_AUTH_URLS" in plan.settings) and plan.settings["GATEWAY"].value != "envoy":
        plan.changed(
            "skip_auth_routes",
            "open where the gateway asks in its own way (deploy/). Where it asks oauth2-proxy's auth, every path needs "
            "a login: what tells the path there may come from the client.",
        )
    if addresses is None and not anonymous:
        return
    plan.policy = _policy(addresses, email_claim(options), anonymous)
    origins = [
        name
        for name, there in (("email_domains", addresses is not None), ("skip_auth_routes", bool(anonymous)))
        if there
    ]
    plan.set("POLICY_PATH", policy_path, ", ".join(origins))
    if anonymous:
        plan.set("POLICY_ALLOWS_ANONYMOUS", "true", "skip_auth_routes")


def _groups(options: Options, plan: Plan) -> None:
    groups, of_keycloak = options.many("allowed_groups"), options.many("keycloak_groups")
    if groups and of_keycloak:
        # One of the two counts, by the provider; never both.
        passed_over = "allowed_groups" if options.text("provider") == "keycloak" else "keycloak_groups"
        plan.unneeded(passed_over, "passed over, as before: with this provider the other option counts.")
        groups = of_keycloak if passed_over == "allowed_groups" else groups
    groups = groups or of_keycloak
    if any("," in group for group in groups):
        plan.close("allowed_groups", "A group's name has a comma, which GROUPS_ALLOWLIST cannot say.")
    elif "*" in groups:
        plan.close("allowed_groups", "A group is called *, which means everybody in GROUPS_ALLOWLIST.")
    elif groups:
        plan.set("GROUPS_ALLOWLIST", ",".join(dict.fromkeys(groups)), "allowed_groups")


# --- mail addresses ---------------------------------------------------------------------------


def _addresses(options: Options, plan: Plan) -> Sequence[str] | None:
    """What the address claim has to be like, as policies write it; ``None`` for anything at all."""
    domains, file = options.many("email_domains"), options.text("authenticated_emails_file")
    if "*" in domains:
        if file:
            plan.unneeded("authenticated_emails_file", "has no effect, as before: email_domains lets everybody pass.")
        return None
    if not domains and not file:
        plan.close(
            "email_domains",
            "not set here, and oauth2-proxy does not start without it or a file of addresses.",
        )
        return None
    wanted = []
    for domain in domains:
        domain = domain.lower()
        domain = domain[1:] if domain.startswith("*.") else domain
        wanted.append(f"*{domain}" if domain.startswith(".") else f"*@{domain}")
    if any(not re.fullmatch(r"\*(@|\.)[^*@\s]+", value) for value in wanted):
        raise OptionsError("email_domains: not a domain, and oauth2-proxy lets nobody pass for it")
    if file:
        wanted += _addresses_in(Path(file), plan)
    plan.changed(
        "email_domains",
        "a policy says it, which compares letter by letter: Ann@Example.com is none of example.com.",
    )
    return list(dict.fromkeys(wanted))


def _addresses_in(file: Path, plan: Plan) -> list[str]:
    try:
        lines = read_text(file).splitlines()
    except (OSError, UnicodeDecodeError):
        plan.close(
            "authenticated_emails_file", f"{file} cannot be read here: its addresses belong into the policy."
        )
        return ["nobody"]
    plan.changed(
        "authenticated_emails_file", "its addresses are in the policy, which is what changes from now on."
    )
    entries = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    odd = [entry for entry in entries if not re.fullmatch(r"[^*\s,\"]+", entry)]
    if odd:
        # A star would be a pattern in the policy.
        plan.lost("authenticated_emails_file", f"{len(odd)} of its lines are no plain addresses, and left out.")
    return [entry for entry in entries if entry not in odd] or ["nobody"]


# --- paths for everybody ----------------------------------------------------------------------


def _open_paths(options: Options, plan: Plan) -> list[Route]:
    """Sets ``SKIP_AUTH_URLS``; what it cannot say is given back, for a policy."""
    skipped: list[str] = []
    anonymous: list[Route] = []
    for option, methods in (("skip_auth_routes", True), ("skip_auth_regex", False)):
        for entry in options.many(option):
            routes = read_route(entry, methods=methods)
            if routes is None:
                plan.lost(option, f"{entry!r} is no plain path; paths that it opened need a login now.")
                continue
            skipped += [route.path for route in routes if route.skippable]
            anonymous += [route for route in routes if not route.skippable]
    if skipped:
        plan.set("SKIP_AUTH_URLS", ",".join(dict.fromkeys(skipped)), "skip_auth_routes")
    return anonymous


def _policy(addresses: Sequence[str] | None, claim: str, anonymous: Sequence[Route]) -> str:
    """One ALLOW policy: paths for everybody, and for the rest whoever is logged in and has such an address."""
    rules: list[Mapping[str, Any]] = [
        {
            "to": [
                {
                    "operation": {
                        **({"methods": [route.method]} if route.method else {}),
                        "paths": [route.pattern],
                    }
                }
            ]
        }
        for route in anonymous
    ]
    person: dict[str, Any] = {"from": [{"source": {"requestPrincipals": ["*"]}}]}
    if addresses is not None:
        key = "request.auth.claims" + "".join(f"[{part}]" for part in claim.split("."))
        person["when"] = [{"key": key, "values": list(addresses)}]
    head = (
        "apiVersion: security.istio.io/v1\n"
        "kind: AuthorizationPolicy\n"
        "metadata: {name: from-oauth2-proxy, namespace: default}\n"
        "spec:\n"
        "  action: ALLOW\n"
        "  rules:\n"
    )
    return head + "".join(f"  - {json.dumps(rule, ensure_ascii=False)}\n" for rule in [*rules, person])
