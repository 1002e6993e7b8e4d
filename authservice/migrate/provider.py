"""The provider, and tokens that programs bring."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

from authservice.migrate.options import Options, OptionsError
from authservice.migrate.people import email_claim
from authservice.migrate.plan import Plan

WELL_KNOWN = {"google": "https://accounts.google.com", "gitlab": "https://gitlab.com"}
OPENID = frozenset(
    {"oidc", "keycloak-oidc", "adfs", "azure", "entra-id", "login.gov", "cidaas", "sourcehut", *WELL_KNOWN}
)

_ENDPOINTS = {
    "login_url": "OIDC_AUTH_URL",
    "redeem_url": "OIDC_TOKEN_URL",
    "oidc_jwks_url": "OIDC_JWKS_URL",
    "profile_url": "OIDC_USERINFO_URL",
}


def provider(options: Options, plan: Plan) -> None:
    """Which provider, who we are there, and what is asked of it."""
    kind = options.text("provider", "google")
    issuer = options.text("oidc_issuer_url") or WELL_KNOWN.get(kind, "")
    if issuer:
        plan.set("OIDC_PROVIDER", issuer, "oidc_issuer_url" if "oidc_issuer_url" in options else "provider")
    if kind not in OPENID:
        plan.lost(
            "provider", f"{kind} is no OpenID Connect provider. Put one in front of it, Dex for example."
        )
    elif not issuer:
        plan.lost("oidc_issuer_url", "not set, and nothing else tells the issuer. Set OIDC_PROVIDER.")
    _client(options, plan)
    _endpoints(options, plan)
    if kind == "keycloak-oidc":
        plan.changed(
            "provider",
            "groups are those of the claim alone: Keycloak's roles are not among them (role:…), neither for the "
            "application nor in allowed_groups.",
        )
    asked = ["openid", "email", "profile", *(["groups"] if "allowed_groups" in options else [])]
    plan.set("OIDC_SCOPES", ",".join(options.text("scope").split() or asked), "scope")
    plan.set("USERID_CLAIM", email_claim(options), "oidc_email_claim")
    plan.set("GROUPS_CLAIM", options.text("oidc_groups_claim", "groups"), "oidc_groups_claim")
    _trust(options, plan)
    _prompt(options, plan)


def _client(options: Options, plan: Plan) -> None:
    if "client_id" in options:
        plan.set("CLIENT_ID", options.text("client_id"), "client_id")
    file, secret = options.text("client_secret_file"), options.text("client_secret")
    if secret:
        plan.set("CLIENT_SECRET", secret, "client_secret")
        if file:
            plan.unneeded("client_secret_file", "client_secret is set, too, and goes before it.")
    elif file:
        plan.set("CLIENT_SECRET_FILE", file, "client_secret_file")
    method = options.text("code_challenge_method")
    if method == "plain":
        plan.changed(
            "code_challenge_method", "PKCE is always S256. Every provider that knows PKCE takes that."
        )


def _endpoints(options: Options, plan: Plan) -> None:
    """With discovery, oauth2-proxy takes what is discovered and passes over what is set."""
    without_discovery = options.flag("skip_oidc_discovery")
    for option, name in _ENDPOINTS.items():
        if option not in options:
            continue
        if without_discovery:
            plan.set(name, options.text(option), option)
        else:
            plan.unneeded(option, "discovered from the issuer, as before.")
    if without_discovery:
        plan.changed(
            "skip_oidc_discovery",
            "what is set goes before what is discovered, and the rest is discovered: the service has to reach "
            "the issuer's /.well-known/openid-configuration.",
        )


def _trust(options: Options, plan: Plan) -> None:
    algorithms = options.many("oidc_enabled_signing_algs")
    if algorithms:
        plan.set("OIDC_SIGNING_ALGS", ",".join(algorithms), "oidc_enabled_signing_algs")
    files = options.many("provider_ca_files")
    if len(files) == 1:
        plan.set("CA_BUNDLE", files[0], "provider_ca_files")
    elif files:
        plan.lost("provider_ca_files", "CA_BUNDLE is one file: put the certificates of these into it.")
    weak = {
        "ssl_insecure_skip_verify": "The provider's certificate is always verified. Its authority goes into CA_BUNDLE.",
        "insecure_oidc_skip_issuer_verification": "The issuer is always compared. Name the tenant's own in OIDC_PROVIDER.",
    }
    for option, text in weak.items():
        if options.flag(option):
            plan.lost(option, text)
    options.flag("insecure_oidc_skip_nonce")
    allows = options.flag("insecure_oidc_allow_unverified_email")
    if not allows:
        plan.changed(
            "insecure_oidc_allow_unverified_email",
            "REQUIRE_VERIFIED_EMAIL takes true only: an account whose provider says nothing of email_verified is "
            "refused, too. If yours does not say, set it to false.",
        )
    plan.set("REQUIRE_VERIFIED_EMAIL", "false" if allows else "true", "insecure_oidc_allow_unverified_email")


def _prompt(options: Options, plan: Plan) -> None:
    prompt = options.text("prompt")
    if prompt in ("", "none"):
        if prompt:
            plan.changed(
                "prompt",
                "no prompt is sent: who is logged in at the provider is not asked again, others are.",
            )
    else:
        plan.lost(
            "prompt",
            f"no prompt is sent, {prompt} neither. The client at the provider may have a setting for it.",
        )
    if "acr_values" in options:
        plan.lost(
            "acr_values", "none are asked for. A policy on request.auth.claims[acr] refuses who has less."
        )


# --- tokens of programs -----------------------------------------------------------------------


def programs(options: Options, plan: Plan) -> None:
    """Whose tokens pass without a browser."""
    on = options.flag("skip_jwt_bearer_tokens")
    further, audiences = options.many("extra_jwt_issuers"), options.many("oidc_extra_audiences")
    fallback = options.flag("bearer_token_login_fallback")
    plan.set("IDTOKEN_AUTHN_ENABLED", "true" if on else "false", "skip_jwt_bearer_tokens")
    jwt = on and bool(audiences)
    plan.set(
        "ACCESS_TOKEN_AUTHN_ENABLED",
        "true" if jwt else "false",
        "oidc_extra_audiences" if jwt else "skip_jwt_bearer_tokens",
    )
    named = list(audiences) if jwt else []
    pairs = [_issuer_and_audience(entry) for entry in further] if on else []
    cluster = [audience for issuer, audience in pairs if _is_the_cluster(issuer)]
    others = [
        {"issuer": issuer, "audiences": [audience], "userid_claim": "sub"}
        for issuer, audience in pairs
        if not _is_the_cluster(issuer)
    ]
    plan.set(
        "KUBERNETES_AUTHN_ENABLED",
        "true" if cluster else "false",
        "extra_jwt_issuers" if cluster else "skip_jwt_bearer_tokens",
    )
    if named or cluster:
        plan.set("AUDIENCES", ",".join(dict.fromkeys([*named, *cluster])), "extra_jwt_issuers")
    if others:
        plan.set("BEARER_ISSUERS", json.dumps(others), "extra_jwt_issuers")
        plan.changed(
            "extra_jwt_issuers",
            "the user id of such a token is its sub. Where it has an address, take userid_claim out of BEARER_ISSUERS. "
            "REQUIRE_VERIFIED_EMAIL counts for it, too.",
        )
    if cluster:
        plan.changed(
            "extra_jwt_issuers",
            "the cluster's tokens are reviewed by its API server, which ends them with their pod. The service "
            "account of the service needs the right to create tokenreviews (deploy/kubernetes/).",
        )
    for option, there in (("extra_jwt_issuers", further), ("oidc_extra_audiences", audiences)):
        if there and not on:
            plan.unneeded(option, "tokens of programs do not pass without skip_jwt_bearer_tokens.")
    if on and fallback and "bearer_token_login_fallback" in options:
        plan.changed(
            "bearer_token_login_fallback", "a bad token is answered 401 and never leads to the login."
        )


def _issuer_and_audience(entry: str) -> tuple[str, str]:
    issuer, _, audience = entry.partition("=")
    if not issuer or not audience:
        raise OptionsError("extra_jwt_issuers: not issuer=audience")
    return issuer, audience


def _is_the_cluster(issuer: str) -> bool:
    host = (urlsplit(issuer).hostname or "") if "://" in issuer else ""
    return host.split(".")[:2] == ["kubernetes", "default"]
