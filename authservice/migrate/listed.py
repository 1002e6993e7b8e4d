"""Options that need no thought: what became of each, by name."""

from __future__ import annotations

from collections.abc import Mapping

from authservice.migrate.options import Options
from authservice.migrate.plan import Plan

_LOG = "the log is one line of JSON for each event, on standard error."
_PASSING_ON = "requests are passed on by the gateway."
_PAGES = "pages are replaced one by one with TEMPLATE_PATH (docs/templates.md)."
_STATE = "a login on its way is a sealed cookie of its own, one for each tab."
_VERSION = "discovery tells what the provider can."

UNNEEDED: Mapping[str, str] = {
    "allow_query_semicolons": _PASSING_ON,
    "auth_logging": _LOG,
    "auth_logging_format": _LOG,
    "auth_request_response_mode": _VERSION,
    "approval_prompt": "Google's older word for prompt.",
    "cookie_csrf_expire": _STATE,
    "cookie_csrf_per_request": _STATE,
    "cookie_csrf_per_request_limit": _STATE,
    "display_htpasswd_form": "nobody logs in with a password here.",
    "encode_state": _STATE,
    "errors_to_info_log": _LOG,
    "exclude_logging_path": _LOG,
    "exclude_logging_paths": _LOG,
    "flush_interval": _PASSING_ON,
    "force_code_challenge_method": "PKCE is always S256.",
    "gcp_healthchecks": "GET /healthz on the site port.",
    "google_admin_api_user_scope": "Google's groups are not asked for.",
    "google_admin_email": "Google's groups are not asked for.",
    "google_service_account_json": "Google's groups are not asked for.",
    "google_target_principal": "Google's groups are not asked for.",
    "google_use_application_default_credentials": "Google's groups are not asked for.",
    "github_token": "GitHub is not asked.",
    "config_test": "authservice check-config.",
    "convert_config_to_alpha": "there is one form only.",
    "https_address": "the gateway speaks TLS.",
    "logging_compress": _LOG,
    "logging_filename": _LOG,
    "logging_local_time": _LOG,
    "logging_max_age": _LOG,
    "logging_max_backups": _LOG,
    "logging_max_size": _LOG,
    "pass_host_header": _PASSING_ON,
    "ping_user_agent": "GET /healthz on the site port.",
    "provider_display_name": "there is no page with a button that would show it.",
    "proxy_websockets": _PASSING_ON,
    "real_client_ip_header": "X-Forwarded-For of TRUSTED_PROXIES tells.",
    "redis_connection_idle_timeout": "connections that Redis closed are made again.",
    "request_logging": _LOG,
    "request_logging_format": _LOG,
    "session_cookie_minimal": "the cookie holds nothing but 32 random bytes.",
    "silence_ping_logging": _LOG,
    "skip_claims_from_profile_url": "userinfo is asked where it has more claims.",
    "standard_logging": _LOG,
    "standard_logging_format": _LOG,
    "ssl_upstream_insecure_skip_verify": _PASSING_ON,
    "tls_cipher_suites": "the gateway speaks TLS.",
    "tls_key_file": "the gateway speaks TLS.",
    "tls_min_version": "the gateway speaks TLS.",
    "upstream_timeout": _PASSING_ON,
    "use_system_trust_store": "CA_BUNDLE is trusted beside the system's authorities.",
    "validate_url": "a token's signature is verified; STRICT_SESSION_VALIDATION asks userinfo at each check.",
    "version": "authservice --version.",
}

LOST: Mapping[str, str] = {
    "azure_graph_group_field": "groups come from the token.",
    "azure_tenant": "OIDC_PROVIDER names the tenant: https://login.microsoftonline.com/<tenant>/v2.0.",
    "backend_logout_url": "nobody calls it. A logout leads the browser on to the provider's own logout page, where "
    "discovery names one (OIDC_END_SESSION_URL).",
    "banner": _PAGES,
    "custom_sign_in_logo": _PAGES,
    "custom_templates_dir": _PAGES,
    "entra_id_federated_token_auth": "OIDC_CLIENT_AUTH_METHOD=private_key_jwt with a key of its own.",
    "footer": _PAGES,
    "google_use_organization_id": "preferred_username is the claim of that name.",
    "htpasswd_user_groups": "nobody logs in with a password here.",
    "jwt_key": "CLIENT_PRIVATE_KEY with OIDC_CLIENT_AUTH_METHOD=private_key_jwt.",
    "jwt_key_file": "CLIENT_PRIVATE_KEY_FILE with OIDC_CLIENT_AUTH_METHOD=private_key_jwt.",
    "metrics_secure_address": "numbers are told without TLS, on READINESS_PROBE_PORT.",
    "metrics_tls_cert_file": "numbers are told without TLS, on READINESS_PROBE_PORT.",
    "metrics_tls_key_file": "numbers are told without TLS, on READINESS_PROBE_PORT.",
    "oidc_audience_claims": "the audience is aud, as the standard has it.",
    "oidc_public_key_files": "keys are fetched from OIDC_JWKS_URL.",
    "ping_path": "GET /healthz, and with OAUTH2_PROXY_COMPAT /ping, on the site port.",
    "pubjwk_url": "login.gov's own; register the public key there.",
    "ready_path": "GET /readyz, and with OAUTH2_PROXY_COMPAT /ready, on the site port.",
    "request_id_header": "the gateway's X-Request-Id is taken.",
    "resource": "no resource is asked for.",
    "show_debug_on_error": "pages tell nothing internal; the log does.",
    "skip_auth_strip_headers": "identity headers that a client sent never reach the application.",
}

_AS_OURS: Mapping[str, frozenset[str]] = {
    "banner": frozenset({"-"}),
    "footer": frozenset({"-"}),
    "oidc_audience_claims": frozenset({"aud"}),
    "ping_path": frozenset({"/ping"}),
    "ready_path": frozenset({"/ready"}),
    "request_id_header": frozenset({"x-request-id"}),
    "skip_auth_strip_headers": frozenset({"true"}),
    "azure_tenant": frozenset({"common"}),
}
"""Values with which nothing is lost, in small letters."""


def rest(options: Options, plan: Plan) -> None:
    """What became of every option that no other part asked about. An unknown one may be a restriction."""
    if "alpha_config" in options:
        plan.close(
            "alpha_config",
            "The structured configuration is not read, and may say who passes. Say the same in plain options first.",
        )
    for name, value in options.unread():
        small = value.lower()
        if name in UNNEEDED:
            plan.unneeded(name, UNNEEDED[name])
        elif name in LOST and (small in ("", "false") or small in _AS_OURS.get(name, ())):
            plan.unneeded(name, "as it is here, it changes nothing.")
        elif name in LOST:
            plan.lost(name, LOST[name])
        elif name in _ONLY_WITH:
            plan.unneeded(name, f"has no effect without {_ONLY_WITH[name]}.")
        else:
            plan.close(name, "No option of oauth2-proxy that is known here. Is it spelt right?")


_ONLY_WITH: Mapping[str, str] = {
    name: "session_store_type=redis, and of the kind that it is for"
    for name in (
        "redis_ca_path",
        "redis_cluster_connection_urls",
        "redis_connection_url",
        "redis_insecure_skip_tls_verify",
        "redis_password",
        "redis_sentinel_connection_urls",
        "redis_sentinel_master_name",
        "redis_sentinel_password",
        "redis_use_cluster",
        "redis_use_sentinel",
        "redis_username",
    )
} | {
    "pass_access_token": "set_xauthrequest",
    "pass_authorization_header": "upstreams",
    "pass_basic_auth": "upstreams",
    "pass_user_headers": "upstreams",
    "prefer_email_to_user": "upstreams",
}
