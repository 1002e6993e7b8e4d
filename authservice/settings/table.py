"""The table: every setting, declared once.

A field of `Declared` is a setting. Its name in lower case is the attribute's, its annotation the
type of the value; the rest of the row (how the text is read, the default's text, what it is for)
stands in the field's metadata. Documentation, ``check-config`` and the rules about secrets all
come from here. A default of ``None`` means that the variable must be set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Literal

from authservice.identity import Transformers
from authservice.settings import addresses, kinds
from authservice.settings.issuers import BEARER_ISSUERS, BearerIssuer
from authservice.settings.policies import PEER_HEADER, WORKLOADS
from authservice.settings.rows import Row, section
from authservice.settings.secret import Secret
from authservice.settings.table_sessions import OfSessions
from authservice.upstream import UpstreamHeaders

_SECTIONS = (
    "The OpenID provider", "Where AuthService is", "The gateway and its checks", "What the application is told",
    "Who may pass", "Sessions and their cookie", "Tokens of programs", "Pages", "The server",
    "Accepted, without effect",
)
(
    _provider, _address, _gateway, _identity, _access, _, _bearer, _page, _server, _ignored,
) = map(section, _SECTIONS)

ClientAuthMethod = Literal["client_secret_basic", "client_secret_post", "private_key_jwt"]

CONTEXT_PREFIX = "TEMPLATE_CONTEXT_"


@dataclass(frozen=True, kw_only=True)
class Declared(OfSessions):
    """The values of all settings, each under its variable's name in lower case."""

    # --- provider ---
    oidc_provider: str = _provider(
        addresses.ISSUER, None,
        "The issuer. Compared exactly with what the provider says of itself: a trailing slash counts.",
        example="https://login.example.com/realms/main",
    )
    client_id: str = _provider(kinds.TEXT, None, "Our client id at the provider.", example="authservice")
    client_secret: Secret = _provider(
        kinds.SECRET, None,
        "Our client secret at the provider; may be set to nothing for a public client. Not required "
        "with `OIDC_CLIENT_AUTH_METHOD=private_key_jwt`.",
        secret=True,
    )
    oidc_client_auth_method: ClientAuthMethod = _provider(
        kinds.choice("client_secret_basic", "client_secret_post", "private_key_jwt"), "client_secret_basic",
        "How we authenticate at the provider's token endpoint.",
    )
    client_private_key: Secret = _provider(
        kinds.PRIVATE_KEY, "", "The private key (PEM, without passphrase) for `private_key_jwt`.",
        secret=True,
    )
    oidc_scopes: tuple[str, ...] = _provider(
        kinds.SCOPES, "openid,email", "What is asked for at login.", example="openid,profile,email,groups",
    )
    oidc_auth_url: str = _provider(
        addresses.BROWSER_ENDPOINT, "",
        "The authorization endpoint as browsers reach it. May be a path on our own host.",
        otherwise="discovered", example="/dex/auth",
    )
    oidc_token_url: str = _provider(addresses.ENDPOINT, "", "The token endpoint.", otherwise="discovered")
    oidc_userinfo_url: str = _provider(
        addresses.ENDPOINT, "", "The userinfo endpoint.", otherwise="discovered"
    )
    oidc_jwks_url: str = _provider(addresses.ENDPOINT, "", "The provider's keys.", otherwise="discovered")
    oidc_revocation_url: str = _provider(
        addresses.ENDPOINT, "", "The token revocation endpoint.", otherwise="discovered"
    )
    oidc_end_session_url: str = _provider(
        addresses.BROWSER_ENDPOINT, "", "The provider's logout page.", otherwise="discovered"
    )
    oidc_signing_algs: tuple[str, ...] = _provider(
        kinds.some_of(*kinds.ASYMMETRIC), "RS256",
        "Signature algorithms accepted on the provider's tokens. Anything else is refused, whatever the "
        "token or the provider's metadata say.",
    )
    ca_bundle: Path | None = _provider(
        kinds.optional(kinds.PATH, None), "",
        "Certificates (PEM) trusted in addition to the system's, for every call to the provider, to Redis "
        "and to the external authorizer.",
        otherwise="the system's only", example="/etc/ssl/our-ca.pem",
    )
    provider_timeout_seconds: timedelta = _provider(
        kinds.seconds(high=300), "10", "How long one whole exchange with the provider may take.",
    )
    provider_max_bytes: int = _provider(
        kinds.whole(1024, 1 << 30, "bytes"), "1048576", "The largest answer accepted from the provider.",
    )
    strict_session_validation: bool = _provider(
        kinds.SWITCH, "false",
        "Ask the provider's userinfo endpoint about the session at every check. A refusal (401) ends the "
        "session; while the provider does not tell, nobody passes with one.",
    )
    strict_session_validation_seconds: timedelta | None = _provider(
        kinds.SECONDS_OR_OFF, "0", "For how long its answer that a session holds is taken for the next checks.",
        otherwise="it is asked each time",
    )
    refresh_ahead_seconds: timedelta = _provider(
        kinds.seconds(0, 86400), "60",
        "How long before its access token ends a session with a refresh token gets new tokens.",
    )
    provider_outage_grace_seconds: timedelta = _provider(
        kinds.seconds(0), "3600",
        "How long after its access token's end a session goes on while the provider gives no new one. "
        "Nothing is deleted afterwards. `0`: not at all.",
    )

    # --- our addresses ---
    authservice_url_prefix: str = _address(
        addresses.ROUTE, None,
        "Where our own pages are, as browsers see it. Only its path takes part in routing; everything "
        "below it passes without authentication.",
        example="/authservice/",
    )
    redirect_url: str = _address(
        addresses.OPTIONAL_ROUTE, "",
        "The callback: sent as `redirect_uri`, and its path is where we answer. Most providers need a "
        "full URL here.",
        otherwise="prefix + `/oidc/callback`", example="https://app.example.com/authservice/oidc/callback",
    )
    verify_auth_url: str = _address(
        addresses.OPTIONAL_ROUTE, "",
        "Where gateways that only want a verdict ask (204, 401 or 403). Only the path counts.",
        otherwise="prefix + `/verify`",
    )
    homepage_url: str = _address(
        addresses.PAGE, "", "Where a login without a page to come back to ends, and where pages lead.",
        otherwise="prefix + `/site/homepage`",
    )
    after_login_url: str = _address(
        addresses.PAGE, "",
        "Where every login ends; the page that was asked for is added as query parameter `next`.",
        otherwise="the page that was asked for",
    )
    after_logout_url: str = _address(
        addresses.PAGE, "", "Where logging out leads.", otherwise="prefix + `/site/after_logout`",
    )
    post_logout_redirect_url: str = _address(
        addresses.PAGE, "",
        "Where the provider's logout page leads back to; has to be registered there.",
        otherwise="the address of `AFTER_LOGOUT_URL`, made absolute",
        example="https://app.example.com/authservice/site/after_logout",
    )
    allowed_redirect_hosts: tuple[str, ...] = _address(
        kinds.REDIRECT_HOSTS, "", "Further hosts that a login may lead back to.",
        otherwise="our own only", example="app.example.com,.apps.example.com",
    )

    # --- gateway ---
    gateway: tuple[str, ...] = _gateway(
        kinds.some_of("envoy", "nginx", "traefik", "caddy"), "envoy",
        "Who asks. A dialect that is not named is not there. `envoy` is also for Istio, Ambassador and "
        "Envoy Gateway.",
    )
    check_path_prefix: str = _gateway(
        addresses.CHECK_PREFIX, "",
        "What Envoy puts before the original path (its `path_prefix`); cut off exactly.", example="/check",
    )
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = _gateway(
        kinds.NETWORKS, "", "Whose `X-Forwarded-*` headers are believed.",
        otherwise="nobody's", example="10.0.0.0/8,fd00::/8",
    )
    skip_auth_urls: tuple[str, ...] = _gateway(
        kinds.SKIP_LIST, "",
        "Path prefixes that pass without authentication, besides our own. `/dex` covers `/dex` and what "
        "is below it, `/dex/` only what is below it.",
        example="/dex,/healthz",
    )
    unauthenticated_response: Literal["auto", "redirect", "401"] = _gateway(
        kinds.choice("auto", "redirect", "401"), "auto",
        "What those get who are not logged in: `redirect` always sends to the login, `401` never, `auto` "
        "sends page navigations there and tells programs 401.",
    )
    allow_cors_preflight: bool = _gateway(
        kinds.SWITCH, "false",
        "Let CORS preflights pass without authentication. Weakens: applications see such requests from "
        "everybody.",
    )

    oauth2_proxy_compat: bool = _gateway(
        kinds.SWITCH, "false",
        "Answer oauth2-proxy's endpoints, below `/oauth2` and below the prefix: `auth` (202, 401 or 403), `start`, "
        "`sign_in`, `sign_out`, `userinfo`; `/ping` and `/ready` on the site port.",
    )

    # --- identity ---
    userid_claim: str = _identity(
        kinds.SOME_TEXT, "email", "The claim that is the user id. Dots lead into nested claims.",
        example="preferred_username",
    )
    userid_header: str = _identity(
        kinds.HEADER_OR_OFF, "kubeflow-userid",
        "The header that tells the user id. Set to nothing: not sent.",
    )
    userid_prefix: str = _identity(kinds.HEADER_TEXT, "", "Put before the user id in the header.")
    userid_transformers: Transformers = _identity(
        kinds.TRANSFORMERS, "[]",
        "Rules that rewrite the user id for the header, before the prefix. The first whose expression is "
        "found applies, to all its matches; `$1`, `${1}` and `${name}` stand for groups.",
        example='[{"matches": "@example[.]com$", "replaces": ""}]',
    )
    userid_lowercase: bool = _identity(
        kinds.SWITCH, "false", "Turn the user id into lower case when a person logs in.",
    )
    groups_claim: str = _identity(
        kinds.TEXT, "groups",
        "The claim that holds the groups. Dots lead into nested claims. Set to nothing: no groups.",
        example="realm_access.roles",
    )
    groups_header: str = _identity(
        kinds.HEADER_OR_OFF, "kubeflow-groups", "The header that tells the groups. Set to nothing: not sent.",
    )
    auth_method_header: str = _identity(
        kinds.HEADER_OR_OFF, "Auth-Method",
        "The header that tells how the credential came, `cookie` or `header`. Set to nothing: not sent.",
    )
    upstream_headers: UpstreamHeaders = _identity(
        kinds.UPSTREAM_HEADERS, "",
        "Further headers, each with the value of a claim; a client's own never pass. Gateways have to be told of them.",
        otherwise="none", example='{"X-Auth-Name": "name", "X-Auth-Roles": "realm_access.roles"}',
    )
    upstream_access_token_header: str = _identity(
        kinds.HEADER_OR_OFF, "",
        "The header that passes the access token on. In `Authorization` it stands behind `Bearer`. Tokens of sessions "
        "are then kept in memory.",
        otherwise="not sent", example="X-Auth-Request-Access-Token",
    )
    upstream_id_token_header: str = _identity(
        kinds.HEADER_OR_OFF, "", "The header that passes the ID token on, in the same manner.",
        otherwise="not sent", example="Authorization",
    )

    upstream_assertion_header: str = _identity(
        kinds.HEADER_OR_OFF, "",
        "The header with a signed assertion of who is calling, a JWT (ES256) of five minutes; its keys are at "
        "`jwks.json` below the prefix. Gateways have to be told of it. Needs `SECRET_KEYS`.",
        otherwise="not sent", example="X-Auth-Assertion",
    )
    upstream_assertion_audience: str = _identity(
        kinds.HEADER_TEXT, "", "For whom assertions are (`aud`).", otherwise="the host that was asked",
        example="https://apps.example.com",
    )

    # --- access ---
    groups_allowlist: tuple[str, ...] = _access(
        kinds.LIST, "*",
        "Groups of which a person needs at least one. `*` lets every logged-in person pass; set to "
        "nothing, nobody passes.",
        example="admins,developers",
    )
    require_verified_email: bool = _access(
        kinds.SWITCH, "false", "Refuse logins whose mail address the provider has not verified.",
    )
    external_authz_url: str = _access(
        addresses.ENDPOINT, "", "A service of yours that is asked whether a logged-in person may pass.",
        otherwise="nobody is asked",
    )
    external_authz_cache_seconds: timedelta | None = _access(
        kinds.SECONDS_OR_OFF, "0", "For how long its word about the same person and request is remembered.",
        otherwise="it is asked each time",
    )
    policy_path: Path | None = _access(
        kinds.optional(kinds.PATH, None), "",
        "A file of Istio's `AuthorizationPolicy` and `RequestAuthentication` resources (YAML), or a folder of such "
        "files. Read again when it changes; a faulty change is refused and the old policies stay.",
        otherwise="no policies", example="/etc/authservice/policies",
    )
    policy_workloads: str = _access(
        WORKLOADS, "",
        "What each host stands for, so that policies with a selector, a target or a namespace find it. A host "
        "that is not there is denied.",
        otherwise="every host is one and the same, and policies select by nothing",
        example='{"app.example.com": {"namespace": "default", "labels": {"app": "backend"}}}',
    )
    policy_root_namespace: str = _access(
        kinds.NAMESPACE, "istio-system", "The namespace whose policies are for all namespaces.",
    )
    policy_peer_header: str = _access(
        PEER_HEADER, "",
        "The header in which the gateway tells who its peer in the mesh is (`principals`, `namespaces`, "
        "`serviceAccounts`), believed from `TRUSTED_PROXIES` only. The gateway has to take a client's own away.",
        otherwise="nobody tells, and policies cannot ask", example="x-forwarded-client-cert",
    )
    policy_allows_anonymous: bool = _access(
        kinds.SWITCH, "false",
        "Let requests without any credential pass where a rule of an ALLOW policy matches them. Neither groups "
        "nor the external authorizer are asked about nobody.",
    )
    policy_dry_run: bool = _access(
        kinds.SWITCH, "false",
        "Evaluate, count and log policies, and answer as if there were none.",
    )
    explain_denials: bool = _access(
        kinds.SWITCH, "false",
        "Tell a person whom a policy refuses which policy it was. The log always tells.",
    )

    # --- bearer ---
    auth_header: str = _bearer(
        kinds.HEADER_OR_OFF, "Authorization", "The header in which a session's value is accepted as bearer.",
    )
    id_token_header: str = _bearer(
        kinds.HEADER_OR_OFF, "Authorization",
        "The header in which ID tokens and access tokens are looked for.",
    )
    audiences: tuple[str, ...] = _bearer(
        kinds.LIST, "istio-ingressgateway.istio-system.svc.cluster.local",
        "Audiences of Kubernetes tokens and JWT access tokens.",
    )
    idtoken_authn_enabled: bool = _bearer(kinds.SWITCH, "true", "Accept the provider's ID tokens.")
    kubernetes_authn_enabled: bool | None = _bearer(
        kinds.SWITCH_OR_AUTO, "auto",
        "Accept Kubernetes tokens. `auto`: where a cluster's credentials are found; `true` requires them.",
    )
    kubernetes_environ: Mapping[str, str] = field()
    access_token_authn_enabled: bool = _bearer(kinds.SWITCH, "true", "Accept the provider's access tokens.")
    access_token_authn: Literal["jwt", "opaque", "both"] = _bearer(
        kinds.choice("jwt", "opaque", "both"), "jwt", "What kind of access tokens the provider issues.",
    )
    bearer_issuers: tuple[BearerIssuer, ...] = _bearer(
        BEARER_ISSUERS, "",
        "Further issuers whose JWT access tokens are accepted, each with its own keys and audiences.",
        otherwise="the provider only",
        example='[{"issuer": "https://ci.example.com", "audiences": ["authservice"]}]',
    )
    introspection_url: str = _bearer(
        addresses.ENDPOINT, "",
        "The provider's token introspection endpoint (RFC 7662), for opaque access tokens. Without any, "
        "userinfo is asked, which cannot tell for whom a token was issued.",
        otherwise="discovered",
    )
    cache_enabled: bool = _bearer(kinds.SWITCH, "false", "Remember verdicts about tokens.")
    cache_expiration_minutes: timedelta = _bearer(
        kinds.MINUTES, "5", "For how long at most, in minutes; never past the token's own expiry.",
    )
    cache_max_entries: int = _bearer(
        kinds.whole(1, 10_000_000, "entries"), "10000", "How many tokens are remembered at most.",
    )

    # --- pages ---
    client_name: str = _page(kinds.TEXT, "AuthService", "The name shown on the pages.")
    theme: str = _page(addresses.THEME_NAME, "kubeflow", "The theme's folder below `THEMES_URL`.")
    themes_url: str = _page(addresses.THEME_BASE, "themes", "Where themes are served from.")
    template_path: tuple[Path, ...] = _page(
        kinds.PATHS, "",
        "Folders whose templates replace the built-in ones of the same name; the last one wins.",
        otherwise="built-in ones only", example="/etc/authservice/templates",
    )
    template_context: Mapping[str, str] = field()

    # --- server ---
    server_hostname: str = _server(
        kinds.BIND_HOST, "", "The address that checks and pages are answered on.", otherwise="all interfaces",
    )
    server_port: int = _server(kinds.PORT, "8080", "The port on which gateways ask.")
    web_server_port: int = _server(kinds.PORT, "8082", "The port of pages, `/healthz` and `/readyz`.")
    readiness_probe_port: int | None = _server(
        kinds.optional(kinds.PORT, None), "",
        "A further port, for those who run the service: whether we are ready, and `/metrics`.",
        otherwise="none", example="8081",
    )
    web_concurrency: int = _server(kinds.whole(1, 512), "2", "The number of worker processes.")
    worker_class: Literal["fast", "gthread"] = _server(
        kinds.choice("fast", "gthread"), "fast",
        "How requests are served. `fast`: what is known in memory is answered at once, the rest by "
        "threads. `gthread`: everything by gunicorn's own threads, with the same answers.",
    )
    log_allowed: bool = _server(
        kinds.SWITCH, "false", "Log requests that pass, too, one line each.",
    )
    log_level: Literal["FATAL", "ERROR", "WARN", "INFO", "DEBUG"] = _server(
        kinds.choice("FATAL", "ERROR", "WARN", "INFO", "DEBUG"), "INFO", "The least important lines to log.",
    )

    # --- ignored ---
    oidc_state_store_path: str = _ignored(
        kinds.TEXT, "", "A login on its way needs no store: it is kept in the browser, sealed.",
    )
    userid_token_header: str = _ignored(
        kinds.TEXT, "", "The header that carries the ID token to the application is that of `UPSTREAM_ID_TOKEN_HEADER`.",
    )

    warnings: tuple[str, ...] = field()


ROWS: tuple[Row, ...] = tuple(sorted(
    (one.metadata["row"](one.name.upper()) for one in fields(Declared) if "row" in one.metadata),
    key=lambda row: _SECTIONS.index(row.section),
))
"""All settings, section by section in the order of their declaration."""
