"""Settings: how each text is read, what is refused, what is only said, and which deployments start."""

from __future__ import annotations

import copy
import os
import pickle
from dataclasses import FrozenInstanceError, fields
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authservice.errors import SettingsError
from authservice.oidc.keys import SIGNING_ALGORITHMS
from authservice.settings import Secret, Settings, examine, load
from authservice.settings.addresses import derive, join_path
from authservice.settings.issuers import BearerIssuer
from authservice.settings.kinds import ASYMMETRIC
from authservice.settings.table import ROWS
from authservice.upstream import UpstreamHeader, UpstreamHeaders

REQUIRED = {
    "OIDC_PROVIDER": "https://idp.example.com/realms/main/",
    "CLIENT_ID": "authservice",
    "CLIENT_SECRET": "a-client-secret-of-good-length",
    "AUTHSERVICE_URL_PREFIX": "/authservice/",
}
BY_NAME = {row.name: row for row in ROWS}
PEM = "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----"


def loaded(**environ: str) -> Settings:
    return load({**REQUIRED, **environ})


def value(name: str, text: str, **environ: str) -> Any:
    return getattr(loaded(**{name: text}, **environ), name.lower())


def problems(**environ: str) -> list[str]:
    return list(examine({**REQUIRED, **environ}).problems)


def only_problem(**environ: str) -> str:
    lines = problems(**environ)
    assert len(lines) == 1, lines
    return lines[0]


def warnings(**environ: str) -> tuple[str, ...]:
    return loaded(**environ).warnings


# --- the table -------------------------------------------------------------------------------


def test_each_setting_is_declared_once_with_help_and_has_an_attribute() -> None:
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names))
    for row in ROWS:
        assert row.name == row.name.upper() and row.help.endswith("."), row.name
        assert row.name.lower() in {one.name for one in fields(Settings)}


def test_every_setting_of_the_original_is_there_with_its_default() -> None:
    originals = {
        "OIDC_PROVIDER": None,
        "CLIENT_ID": None,
        "CLIENT_SECRET": None,
        "AUTHSERVICE_URL_PREFIX": None,
        "OIDC_AUTH_URL": "",
        "REDIRECT_URL": "",
        "OIDC_SCOPES": "openid,email",
        "STRICT_SESSION_VALIDATION": "false",
        "STRICT_SESSION_VALIDATION_SECONDS": "0",
        "REFRESH_AHEAD_SECONDS": "60",
        "PROVIDER_OUTAGE_GRACE_SECONDS": "3600",
        "SESSION_ENDS_WITH_TOKEN": "false",
        "OIDC_STATE_STORE_PATH": "",
        "SKIP_AUTH_URLS": "",
        "AUTH_HEADER": "Authorization",
        "AUTH_METHOD_HEADER": "Auth-Method",
        "AUDIENCES": "istio-ingressgateway.istio-system.svc.cluster.local",
        "HOMEPAGE_URL": "",
        "AFTER_LOGIN_URL": "",
        "AFTER_LOGOUT_URL": "",
        "VERIFY_AUTH_URL": "",
        "LOG_LEVEL": "INFO",
        "USERID_HEADER": "kubeflow-userid",
        "GROUPS_HEADER": "kubeflow-groups",
        "USERID_PREFIX": "",
        "USERID_TRANSFORMERS": "[]",
        "USERID_CLAIM": "email",
        "USERID_TOKEN_HEADER": "",
        "GROUPS_CLAIM": "groups",
        "ID_TOKEN_HEADER": "Authorization",
        "SERVER_HOSTNAME": "",
        "SERVER_PORT": "8080",
        "WEB_SERVER_PORT": "8082",
        "READINESS_PROBE_PORT": "",
        "CA_BUNDLE": "",
        "SESSION_STORE_TYPE": "filesystem",
        "SESSION_STORE_PATH": "/var/lib/authservice/data.db",
        "SESSION_STORE_REDIS_ADDR": "127.0.0.1:6379",
        "SESSION_STORE_REDIS_PWD": "",
        "SESSION_STORE_REDIS_DB": "0",
        "SESSION_MAX_AGE": "86400",
        "SESSION_SAME_SITE": "Lax",
        "CLIENT_NAME": "AuthService",
        "THEMES_URL": "themes",
        "THEME": "kubeflow",
        "TEMPLATE_PATH": "",
        "CACHE_ENABLED": "false",
        "CACHE_EXPIRATION_MINUTES": "5",
        "IDTOKEN_AUTHN_ENABLED": "true",
        "KUBERNETES_AUTHN_ENABLED": "auto",
        "ACCESS_TOKEN_AUTHN_ENABLED": "true",
        "ACCESS_TOKEN_AUTHN": "jwt",
        "GROUPS_ALLOWLIST": "*",
        "EXTERNAL_AUTHZ_URL": "",
    }
    assert {name: BY_NAME[name].default for name in originals} == originals


def test_examples_can_be_read_and_choices_have_typed_values() -> None:
    for row in ROWS:
        if row.example:
            row.kind.parse(row.example)


def test_settings_cannot_be_changed() -> None:
    settings = loaded(TEMPLATE_CONTEXT_A="1")
    with pytest.raises(FrozenInstanceError):
        settings.client_id = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.template_context["A"] = "2"  # type: ignore[index]


# --- U1 and derived addresses ----------------------------------------------------------------


def test_u1_given_addresses_are_kept() -> None:
    settings = loaded(
        REDIRECT_URL="http://redirect.example.com/login/oidc",
        AFTER_LOGIN_URL="http://afterlogin.example.com",
        AFTER_LOGOUT_URL="http://afterlogout.example.com",
    )
    assert settings.redirect_url == "http://redirect.example.com/login/oidc"
    assert settings.after_login_url == "http://afterlogin.example.com"
    assert settings.after_logout_url == "http://afterlogout.example.com"
    assert settings.callback_path == "/login/oidc"


@pytest.mark.parametrize(
    "prefix,base",
    [
        ("/authservice/", "/authservice"),
        ("/authservice", "/authservice"),
        ("/a//b/", "/a/b"),
        ("https://App.example.com:8443/authservice/", "https://App.example.com:8443/authservice"),
        ("http://host/deep/er", "http://host/deep/er"),
    ],
)
def test_derived_addresses(prefix: str, base: str) -> None:
    settings = loaded(AUTHSERVICE_URL_PREFIX=prefix)
    path = "/" + base.split("://")[-1].partition("/")[2]
    assert settings.redirect_url == f"{base}/oidc/callback"
    assert settings.homepage_url == f"{base}/site/homepage"
    assert settings.after_logout_url == f"{base}/site/after_logout"
    assert settings.after_login_url == ""
    assert settings.prefix_path == path
    assert settings.callback_path == f"{path}/oidc/callback"
    assert settings.verify_path == f"{path}/verify"
    assert settings.login_path == f"{path}/login"
    assert settings.logout_path == f"{path}/logout"
    assert settings.forward_auth_path == f"{path}/forward-auth"


@pytest.mark.parametrize(
    "environ,address",
    [
        ({}, "/authservice/site/after_logout"),
        ({"REDIRECT_URL": "https://App.example/cb"}, "https://app.example/authservice/site/after_logout"),
        ({"AUTHSERVICE_URL_PREFIX": "https://app.example/a/"}, "https://app.example/a/site/after_logout"),
        ({"AFTER_LOGOUT_URL": "https://elsewhere.example/bye"}, "https://elsewhere.example/bye"),
        ({"AFTER_LOGOUT_URL": "/bye", "POST_LOGOUT_REDIRECT_URL": ""}, "/bye"),
        ({"AFTER_LOGOUT_URL": "/bye", "POST_LOGOUT_REDIRECT_URL": "https://app.example/"}, "https://app.example/"),
        ({"REDIRECT_URL": "http://app.example:81/cb", "POST_LOGOUT_REDIRECT_URL": "/x?y"}, "http://app.example:81/x?y"),
    ],
)
def test_where_the_provider_leads_back_to(environ: dict[str, str], address: str) -> None:
    assert loaded(**environ).post_logout_address == address


@pytest.mark.parametrize(
    "environ,scheme,host",
    [
        ({}, None, None),
        ({"AUTHSERVICE_URL_PREFIX": "https://app.example.com/a/"}, "https", "app.example.com"),
        ({"REDIRECT_URL": "http://App.example.com:8080/cb"}, "http", "app.example.com:8080"),
        (
            {
                "REDIRECT_URL": "https://one.example.com/cb",
                "AUTHSERVICE_URL_PREFIX": "http://two.example.com/a",
            },
            "https",
            "one.example.com",
        ),
    ],
)
def test_the_outside_as_the_settings_know_it(
    environ: dict[str, str], scheme: str | None, host: str | None
) -> None:
    settings = loaded(**environ)
    assert (settings.outside_scheme, settings.outside_host) == (scheme, host)


def test_only_the_path_of_an_absolute_prefix_and_verify_url_is_routed() -> None:
    """B3: the original compared the whole URL with paths, and let everybody in."""
    settings = loaded(
        AUTHSERVICE_URL_PREFIX="https://host.example/auth/", VERIFY_AUTH_URL="https://host.example/check/"
    )
    assert (settings.prefix_path, settings.verify_path) == ("/auth", "/check")
    assert settings.skip_prefixes == ("/auth",)


def test_a_query_of_the_prefix_stays_on_what_is_derived() -> None:
    assert derive("https://h/auth/?tenant=a", "oidc/callback") == "https://h/auth/oidc/callback?tenant=a"


@given(st.lists(st.text("ab/.", max_size=6), min_size=1, max_size=4))
@settings(deadline=None)
def test_joined_paths_have_no_doubled_slash_and_no_slash_at_the_end(parts: list[str]) -> None:
    joined = join_path("/", *parts)
    assert joined == "/" or (joined.startswith("/") and not joined.endswith("/") and "//" not in joined)
    assert not {".", ".."} & set(joined.split("/"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "//",
        "https://host",
        "https://host/",
        "authservice/",
        "//host/path",
        "ftp://host/a",
        "/a/../b",
        "/a%2fb",
        "/a b",
        "/a;b",
        "/a#b",
        "https:///a",
        "https://user:pw@host/a",
        "https://[::1/a",
        "/ä",
        "/a\\b",
        "https://host:99999/a",
        "https://ho st/a",
        "/./",
        "https://a..b/c",
        "https://%41/b",
    ],
)
def test_b5_prefixes_that_would_open_everything_or_never_match_are_refused(text: str) -> None:
    assert only_problem(AUTHSERVICE_URL_PREFIX=text).startswith("AUTHSERVICE_URL_PREFIX: ")


@pytest.mark.parametrize(
    "text", ["https://host", "/", "http://redirect.example.com/", "oidc/callback", "a:b:c"]
)
def test_a_callback_that_no_request_could_reach_or_that_every_one_would_is_refused(text: str) -> None:
    assert only_problem(REDIRECT_URL=text).startswith("REDIRECT_URL: ")


def test_empty_optional_addresses_mean_their_defaults() -> None:
    names = ("REDIRECT_URL", "VERIFY_AUTH_URL", "HOMEPAGE_URL", "AFTER_LOGOUT_URL", "AFTER_LOGIN_URL")
    empty, unset = loaded(**dict.fromkeys(names, "")), loaded()
    assert all(getattr(empty, name.lower()) == getattr(unset, name.lower()) for name in names)


# --- how texts are read ----------------------------------------------------------------------

TAKEN: list[tuple[str, str, Any]] = [
    ("OIDC_PROVIDER", "http://dex:5556/dex", "http://dex:5556/dex"),
    ("OIDC_PROVIDER", "https://idp/", "https://idp/"),
    ("CLIENT_ID", " spaced ", " spaced "),
    ("CLIENT_ID", "", ""),
    ("OIDC_CLIENT_AUTH_METHOD", "client_secret_post", "client_secret_post"),
    ("OIDC_AUTH_URL", "/dex/auth", "/dex/auth"),
    ("OIDC_AUTH_URL", "https://idp/auth?tenant=1", "https://idp/auth?tenant=1"),
    ("OIDC_AUTH_URL", "", ""),
    ("OIDC_TOKEN_URL", "http://idp:8080/token", "http://idp:8080/token"),
    ("OIDC_SCOPES", "openid,email", ("openid", "email")),
    ("OIDC_SCOPES", "profile email groups", ("openid", "profile", "email", "groups")),
    ("OIDC_SCOPES", " email , profile,,openid ", ("openid", "email", "profile")),
    ("OIDC_SCOPES", "email,email", ("openid", "email")),
    ("OIDC_SIGNING_ALGS", "ES256, RS256,ES256", ("ES256", "RS256")),
    ("CA_BUNDLE", "", None),
    ("CA_BUNDLE", "/etc/ca.pem", Path("/etc/ca.pem")),
    ("PROVIDER_TIMEOUT_SECONDS", "30", timedelta(seconds=30)),
    ("PROVIDER_MAX_BYTES", "0x10000", 65536),
    ("STRICT_SESSION_VALIDATION", "T", True),
    ("GATEWAY", "nginx,envoy", ("nginx", "envoy")),
    ("CHECK_PATH_PREFIX", "/check", "/check"),
    ("CHECK_PATH_PREFIX", "/check/", "/check/"),
    ("TRUSTED_PROXIES", "", ()),
    (
        "TRUSTED_PROXIES",
        "10.0.0.0/8, ::1 192.168.1.7",
        (ip_network("10.0.0.0/8"), ip_network("::1"), ip_network("192.168.1.7")),
    ),
    ("SKIP_AUTH_URLS", "", ()),
    ("SKIP_AUTH_URLS", " , ", ()),
    ("SKIP_AUTH_URLS", "/dex, /healthz/ ,", ("/dex", "/healthz/")),
    ("SKIP_AUTH_URLS", "https://idp/,/idp,/dex", ("/idp", "/dex")),
    ("SKIP_AUTH_URLS", "dex,/a?b=c", ()),
    ("UNAUTHENTICATED_RESPONSE", "401", "401"),
    ("USERID_HEADER", "", ""),
    ("GROUPS_HEADER", "", ""),
    ("GROUPS_CLAIM", "", ""),
    ("AUTH_METHOD_HEADER", "", ""),
    ("AUTH_HEADER", "", ""),
    ("UPSTREAM_ID_TOKEN_HEADER", "Authorization", "Authorization"),
    ("UPSTREAM_HEADERS", "", UpstreamHeaders()),
    ("UPSTREAM_HEADERS", '{"X-Name": "name"}', UpstreamHeaders((UpstreamHeader("X-Name", "name"),))),
    ("UPSTREAM_ASSERTION_HEADER", "", ""),
    ("UPSTREAM_ASSERTION_AUDIENCE", "https://apps.example", "https://apps.example"),
    ("USERID_HEADER", "X-Auth-User", "X-Auth-User"),
    ("USERID_PREFIX", "", ""),
    ("USERID_PREFIX", "accounts.google.com:", "accounts.google.com:"),
    ("USERID_CLAIM", "realm_access.user", "realm_access.user"),
    ("GROUPS_ALLOWLIST", "", ()),
    ("GROUPS_ALLOWLIST", "a, b ,,c", ("a", "b", "c")),
    ("GROUPS_ALLOWLIST", "*", ("*",)),
    ("AUDIENCES", "a, b", ("a", "b")),
    ("SESSION_STORE_TYPE", "boltdb", "filesystem"),
    ("SESSION_STORE_TYPE", "redis", "redis"),
    ("SESSION_STORE_PATH", "/data/sessions.db", Path("/data/sessions.db")),
    ("SESSION_MAX_AGE", "315576000", timedelta(days=3652.5)),
    ("SESSION_IDLE_TIMEOUT", "0", None),
    ("STRICT_SESSION_VALIDATION_SECONDS", "0", None),
    ("STRICT_SESSION_VALIDATION_SECONDS", "5", timedelta(seconds=5)),
    ("REFRESH_AHEAD_SECONDS", "0", timedelta(0)),
    ("PROVIDER_OUTAGE_GRACE_SECONDS", "0", timedelta(0)),
    ("SESSION_ENDS_WITH_TOKEN", "true", True),
    ("SESSION_IDLE_TIMEOUT", "900", timedelta(minutes=15)),
    ("SESSION_COOKIE_DOMAIN", ".Apps.example.com", "apps.example.com"),
    ("SESSION_COOKIE_SECURE", "auto", None),
    ("SESSION_COOKIE_SECURE", "false", False),
    ("SESSION_COOKIE_HTTPONLY", "F", False),
    ("SESSION_SAME_SITE", "strict", "Strict"),
    ("SESSION_SAME_SITE", "LAX", "Lax"),
    ("SESSION_SAME_SITE", "", "Lax"),
    ("KUBERNETES_AUTHN_ENABLED", "auto", None),
    ("KUBERNETES_AUTHN_ENABLED", "0", False),
    ("ACCESS_TOKEN_AUTHN", "both", "both"),
    ("CACHE_EXPIRATION_MINUTES", "5", timedelta(minutes=5)),
    ("POLICY_PATH", "", None),
    ("POLICY_PATH", "/etc/authservice/policies", Path("/etc/authservice/policies")),
    ("POLICY_WORKLOADS", "", ""),
    ("POLICY_WORKLOADS", "/etc/workloads.yaml", "/etc/workloads.yaml"),
    ("POLICY_WORKLOADS", '{"*.x.example/api/": {"labels": {}}}', '{"*.x.example/api/": {"labels": {}}}'),
    ("POLICY_WORKLOADS", "x.example:\n  namespace: a\n", "x.example:\n  namespace: a\n"),
    ("POLICY_ROOT_NAMESPACE", "mesh", "mesh"),
    ("POLICY_PEER_HEADER", "", ""),
    ("POLICY_PEER_HEADER", "X-Forwarded-Client-Cert", "X-Forwarded-Client-Cert"),
    ("POLICY_ALLOWS_ANONYMOUS", "true", True),
    ("POLICY_DRY_RUN", "true", True),
    ("EXPLAIN_DENIALS", "true", True),
    ("EXTERNAL_AUTHZ_CACHE_SECONDS", "0", None),
    ("EXTERNAL_AUTHZ_CACHE_SECONDS", "30", timedelta(seconds=30)),
    ("CACHE_MAX_ENTRIES", "500", 500),
    ("INTROSPECTION_URL", "https://idp.example/introspect", "https://idp.example/introspect"),
    ("BEARER_ISSUERS", "", ()),
    (
        "BEARER_ISSUERS",
        '[{"issuer": "https://a.example/", "audiences": ["x", "y", "x"], "userid_claim": "sub"}]',
        (BearerIssuer("https://a.example/", ("x", "y"), userid_claim="sub"),),
    ),
    ("EXTERNAL_AUTHZ_URL", "http://authz.ns.svc:80/v1", "http://authz.ns.svc:80/v1"),
    (
        "ALLOWED_REDIRECT_HOSTS",
        "App.example.com,.apps.example.com *.x.example:* localhost:3000",
        ("app.example.com", ".apps.example.com", "*.x.example:*", "localhost:3000"),
    ),
    ("ALLOWED_REDIRECT_HOSTS", "[::1]:8080", ("[::1]:8080",)),
    ("THEME", "", ""),
    ("THEMES_URL", "https://cdn.example.com/themes", "https://cdn.example.com/themes"),
    (
        "TEMPLATE_PATH",
        "web/templates/default, /my/templates,",
        (Path("web/templates/default"), Path("/my/templates")),
    ),
    ("SERVER_HOSTNAME", "", ""),
    ("SERVER_HOSTNAME", "[::1]", "::1"),
    ("SERVER_HOSTNAME", "127.0.0.1", "127.0.0.1"),
    ("SERVER_PORT", "9090", 9090),
    ("READINESS_PROBE_PORT", "8081", 8081),
    ("READINESS_PROBE_PORT", "", None),
    ("WEB_CONCURRENCY", "8", 8),
    ("LOG_LEVEL", "DEBUG", "DEBUG"),
]


@pytest.mark.parametrize("name,text,wanted", TAKEN, ids=lambda part: str(part)[:40] or "empty")
def test_texts_that_are_taken(name: str, text: str, wanted: Any) -> None:
    assert value(name, text) == wanted


REFUSED: dict[str, tuple[str, ...]] = {
    "OIDC_PROVIDER": (
        "",
        "example.local",
        "dex:5556",
        "ftp://idp",
        "https://",
        "https://idp?x=1",
        "https://idp#a",
        "https://u:p@idp",
        " https://idp",
        "https://idp/\n",
    ),
    "OIDC_CLIENT_AUTH_METHOD": ("", "none", "Client_Secret_Basic", "tls_client_auth"),
    "OIDC_SCOPES": ("", "openid", "groups", 'email,"x"', "email,ä"),
    "OIDC_AUTH_URL": ("dex/auth", "//idp/auth", "javascript:alert(1)", "https://idp/auth#x"),
    "OIDC_TOKEN_URL": ("/token", "idp/token"),
    "OIDC_USERINFO_URL": ("/userinfo",),
    "OIDC_JWKS_URL": ("file:///etc/passwd",),
    "OIDC_REVOCATION_URL": ("revoke",),
    "OIDC_END_SESSION_URL": ("logout",),
    "OIDC_SIGNING_ALGS": ("", "none", "HS256", "RS256,HS256", "rs256", "RS257"),
    "PROVIDER_TIMEOUT_SECONDS": ("", "0", "-1", "301", "10s", "1.5"),
    "PROVIDER_MAX_BYTES": ("", "0", "1MB"),
    "STRICT_SESSION_VALIDATION_SECONDS": ("", "-1", "off"),
    "REFRESH_AHEAD_SECONDS": ("", "-1", "1m", "86401"),
    "PROVIDER_OUTAGE_GRACE_SECONDS": ("", "-1", "off"),
    "SESSION_ENDS_WITH_TOKEN": ("", "on", "yes"),
    "STRICT_SESSION_VALIDATION": ("", "on", "yes", "TrUe", " true", '"true"'),
    "REDIRECT_URL": ("cb",),
    "AUTHSERVICE_URL_PREFIX": ("/",),
    "VERIFY_AUTH_URL": ("/", "verify", "https://host"),
    "HOMEPAGE_URL": ("homepage", "javascript:alert(1)", "//elsewhere.example", "\\\\elsewhere", "/a b"),
    "AFTER_LOGIN_URL": ("app.example.com", "mailto:a@b"),
    "AFTER_LOGOUT_URL": ("data:text/html,x",),
    "POST_LOGOUT_REDIRECT_URL": ("after_logout", "//elsewhere.example/", "javascript:alert(1)"),
    "ALLOWED_REDIRECT_HOSTS": (
        "https://app",
        "app/",
        "*",
        "*.*",
        "a..b",
        "app:0",
        "app:65536",
        "app:x",
        "ä.example",
        "*.[::1]",
        "u@h",
    ),
    "GATEWAY": ("", "Envoy", "haproxy", "envoy,haproxy"),
    "CHECK_PATH_PREFIX": ("check", "/", "//a", "/a?b", "/a%2fb", "/a/../b"),
    "TRUSTED_PROXIES": ("localhost", "10.0.0.1/8", "10.0.0.0/33", "*"),
    "SKIP_AUTH_URLS": ("/", "/a,/", "//", "/a/../b", "/a%2Fb", "/a;b", "/a\\b"),
    "UNAUTHENTICATED_RESPONSE": ("", "302", "Auto", "403"),
    "ALLOW_CORS_PREFLIGHT": ("", "maybe"),
    "OAUTH2_PROXY_COMPAT": ("", "maybe"),
    "USERID_CLAIM": ("",),
    "USERID_HEADER": ("a b", "a:b", "kubeflow-userid ", "ä", "a\r\nb"),
    "GROUPS_HEADER": ("a,b",),
    "AUTH_METHOD_HEADER": ("a/b",),
    "AUTH_HEADER": ("a b",),
    "ID_TOKEN_HEADER": ("(x)",),
    "UPSTREAM_ACCESS_TOKEN_HEADER": ("a b",),
    "UPSTREAM_ID_TOKEN_HEADER": ("a:b",),
    "UPSTREAM_ASSERTION_HEADER": ("a b", "a:b"),
    "UPSTREAM_ASSERTION_AUDIENCE": ("a\nb", "ü"),
    "UPSTREAM_HEADERS": ("oauth2", "[]", '{"a b": "c"}', '{"X-A": ""}', '{"X-A": "b", "x_a": "c"}'),
    "USERID_PREFIX": ("a\nb", "ü", "\x7f"),
    "USERID_TRANSFORMERS": (
        "",
        "[{",
        '{"matches": "a"}',
        '[{"matches": "a"}]',
        '[{"replaces": "a"}]',
        '[{"matches": "[", "replaces": ""}]',
        '[{"matches": null, "replaces": ""}]',
    ),
    "USERID_LOWERCASE": ("",),
    "REQUIRE_VERIFIED_EMAIL": ("on",),
    "EXTERNAL_AUTHZ_URL": ("authz:8080", "/authz"),
    "SESSION_STORE_TYPE": ("", "Redis", "memory"),
    "SESSION_STORE_PATH": ("",),
    "SESSION_STORE_REDIS_ADDR": (
        "redis",
        "redis:",
        "redis:x",
        ":6379",
        "redis:6379/0",
        "http://redis:6379",
        "redis://",
        "unix://",
        "redis://h/x",
        "redis://h/-1",
        "redis://h:99999",
        "a:1,b",
        "a:1,,b:1",
        "redis://a,b:x",
        "redis://a,b@c,",
        "redis://a,rediss://b",
    ),
    "SESSION_STORE_REDIS_MODE": ("", "Sentinel", "sharded"),
    "SESSION_STORE_REDIS_MASTER": ("",),
    "SESSION_STORE_REDIS_KEY_PREFIX": ("", "a b", "{a}:", "a*", "ä:", "x" * 65),
    "SESSION_STORE_REDIS_DB": ("", "-1", "a"),
    "SESSION_MAX_AGE": ("", "0", "-1", "24h", "1e3", "315576001"),
    "SESSION_IDLE_TIMEOUT": ("", "-1", "off"),
    "SESSION_COOKIE_NAME": ("", "a b", "a=b", "a;b", "ä"),
    "SESSION_COOKIE_DOMAIN": ("https://a", "a b", "10.0.0.1", "-a.example", "a..b"),
    "SESSION_COOKIE_SECURE": ("", "Auto", "yes"),
    "SESSION_COOKIE_HTTPONLY": ("",),
    "SESSION_SAME_SITE": ("Loose", "lax ", "false"),
    "SESSION_CACHE_SIZE": ("", "-1", "many"),
    "SECRET_KEYS": ("short", "fifteen-letters", "sixteen-letters!,short", "sixteen-letters!,sixteen-letters!"),
    "CLIENT_PRIVATE_KEY": (
        "not a key",
        PEM.replace("\n", " "),
        PEM.replace("MIIE", "AAAA"),
        PEM.replace("MIIE", "MIIEA"),
        PEM.replace("PRIVATE", "ENCRYPTED PRIVATE"),
        PEM.replace("PRIVATE", "PUBLIC"),
        PEM.removesuffix("-"),
    ),
    "IDTOKEN_AUTHN_ENABLED": ("",),
    "KUBERNETES_AUTHN_ENABLED": ("", "Auto"),
    "ACCESS_TOKEN_AUTHN_ENABLED": ("",),
    "ACCESS_TOKEN_AUTHN": ("", "JWT", "Opaque"),
    "CACHE_ENABLED": ("",),
    "CACHE_EXPIRATION_MINUTES": ("", "0", "-5", "5m"),
    "CACHE_MAX_ENTRIES": ("", "0", "-1", "many"),
    "INTROSPECTION_URL": ("/introspect", "idp:8080"),
    "EXTERNAL_AUTHZ_CACHE_SECONDS": ("", "-1", "5s"),
    "POLICY_WORKLOADS": ("a: []", '{"x.example": 1}', '{"x.example": {}, "X.example.": {}}', "a b: {}", "x.example:"),
    "POLICY_ROOT_NAMESPACE": ("", "a.b", "A", "-a", "a" * 64),
    "POLICY_PEER_HEADER": ("x forwarded", "xfcc:", "x_peer"),
    "POLICY_ALLOWS_ANONYMOUS": ("yes",),
    "POLICY_DRY_RUN": ("",),
    "EXPLAIN_DENIALS": ("on",),
    "BEARER_ISSUERS": (
        "https://issuer.example", "{}", "[1]", "[", "[[]]", '[{"issuer": "https://a.example"}]', '[{"audiences": ["a"]}]',
        '[{"issuer": "a", "audiences": ["a"]}]', '[{"issuer": "https://a.example", "audiences": []}]',
        '[{"issuer": "https://a.example", "audiences": "a"}]', '[{"issuer": "https://a.example", "audiences": [1]}]',
        '[{"issuer": "https://a.example", "audiences": ["a"], "jwks": "x"}]',
        '[{"issuer": "https://a.example", "audiences": ["a"], "jwks_url": "/keys"}]',
    ),
    "THEME": ("../x", "a/../b", "a b", "/a"),
    "THEMES_URL": ("javascript:alert(1)", "data:,x", "https://", "a b"),
    "SERVER_HOSTNAME": ("http://localhost", "localhost:8080", "a b"),
    "SERVER_PORT": (
        "",
        '"8080"',
        "'8080'",
        " 8080",
        "8080 ",
        "http",
        "0",
        "-1",
        "65536",
        "8080.0",
        "٨٠٨٠",
        "08080",
    ),
    "WEB_SERVER_PORT": ("", "70000"),
    "READINESS_PROBE_PORT": ("0", "none"),
    "WEB_CONCURRENCY": ("", "0", "many"),
    "WORKER_CLASS": ("", "sync", "Fast"),
    "LOG_ALLOWED": ("", "yes"),
    "LOG_LEVEL": ("", "info", "TRACE", "Warn"),
}
TAKES_ANYTHING = {
    "CLIENT_ID",
    "CLIENT_SECRET",
    "CLIENT_SECRET_PREVIOUS",
    "GROUPS_CLAIM",
    "GROUPS_ALLOWLIST",
    "AUDIENCES",
    "CA_BUNDLE",
    "POLICY_PATH",
    "CLIENT_NAME",
    "TEMPLATE_PATH",
    "SESSION_STORE_REDIS_USERNAME",
    "SESSION_STORE_REDIS_PWD",
    "SESSION_STORE_REDIS_SENTINEL_USERNAME",
    "SESSION_STORE_REDIS_SENTINEL_PWD",
    "SESSION_STORE_REDIS_CA_BUNDLE",
    "SESSION_STORE_REDIS_CLIENT_CERT",
    "SESSION_STORE_REDIS_CLIENT_KEY",
    "OIDC_STATE_STORE_PATH",
    "USERID_TOKEN_HEADER",
}


def test_every_setting_is_covered_here() -> None:
    assert REFUSED.keys() | TAKES_ANYTHING == BY_NAME.keys()
    assert not REFUSED.keys() & TAKES_ANYTHING


@pytest.mark.parametrize(
    "name,text",
    [(name, text) for name, texts in REFUSED.items() for text in texts],
    ids=lambda part: ascii(part)[:40],
)
def test_texts_that_are_refused(name: str, text: str) -> None:
    line = only_problem(**{name: text})
    assert line.startswith(f"{name}: ")
    assert len(line.splitlines()) == 1
    assert "Takes " in line or "Set " in line


@pytest.mark.parametrize(
    "text,number",
    [
        ("8080", 8080),
        ("+8080", 8080),
        ("0x1F90", 8080),
        ("0o17620", 8080),
        ("017620", 8080),
        ("8_080", 8080),
        ("0b1111110010000", 8080),
        ("0X1f_90", 8080),
        ("1", 1),
        ("65535", 65535),
    ],
)
def test_numbers_are_read_as_go_reads_them(text: str, number: int) -> None:
    assert value("SERVER_PORT", text) == number


@pytest.mark.parametrize("text", ["1", "t", "T", "TRUE", "true", "True"])
def test_go_spellings_of_true(text: str) -> None:
    assert value("USERID_LOWERCASE", text) is True


@pytest.mark.parametrize("text", ["0", "f", "F", "FALSE", "false", "False"])
def test_go_spellings_of_false(text: str) -> None:
    assert value("USERID_LOWERCASE", text) is False


@given(
    st.sampled_from(sorted(BY_NAME)), st.text(max_size=12) | st.from_regex(r"[a-z]*://?[a-z@:/?#\[\]%]{0,8}")
)
@settings(deadline=None, max_examples=300)
def test_no_text_makes_reading_crash(name: str, text: str) -> None:
    """Whatever stands in a variable, the outcome is settings or a list of problems."""
    found = examine({**REQUIRED, name: text})
    assert (found.settings is None) == bool(found.problems)


def test_userid_transformers_are_those_of_identity() -> None:
    settings = loaded(USERID_TRANSFORMERS='[{"matches": "@example[.]com$", "replaces": ""}]')
    assert settings.userid_transformers.apply("ann@example.com") == "ann"
    assert loaded().userid_transformers.apply("ann@example.com") == "ann@example.com"
    assert loaded(USERID_TRANSFORMERS="null").userid_transformers.apply("a") == "a"


def test_faulty_transformers_are_told_in_one_line_each_with_its_position() -> None:
    line = only_problem(USERID_TRANSFORMERS='[{"matches": "[", "replaces": ""}, {"matches": "a"}]')
    assert "1" in line and "2" in line and "\n" not in line


def test_template_context_is_kept_whole() -> None:
    """B66: the original cut values at their first equals sign."""
    settings = loaded(
        TEMPLATE_CONTEXT_Link="https://x/?a=b", TEMPLATE_CONTEXT_EMPTY="", TEMPLATE_CONTEXT_="no"
    )
    assert settings.template_context == {"Link": "https://x/?a=b", "EMPTY": ""}
    assert settings.warnings == ()


# --- U2 to U6 --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case,enabled,kind,fine",
    [
        ("U2", "true", "jwt", True),
        ("U3", "true", "opaque", True),
        ("U4", "false", "whatever", True),
        ("U5", "true", "JWT", False),
        ("U6", "true", "Opaque", False),
    ],
)
def test_u2_to_u6_kinds_of_access_tokens(case: str, enabled: str, kind: str, fine: bool) -> None:
    found = examine({**REQUIRED, "ACCESS_TOKEN_AUTHN_ENABLED": enabled, "ACCESS_TOKEN_AUTHN": kind})
    assert bool(found.settings) is fine
    assert fine or found.problems[0].startswith("ACCESS_TOKEN_AUTHN: ")


# --- required, secrets, files ----------------------------------------------------------------


def test_nothing_set_lists_all_four() -> None:
    found = examine({})
    assert [line.partition(":")[0] for line in found.problems] == list(REQUIRED)[:3] + [
        "AUTHSERVICE_URL_PREFIX"
    ]
    with pytest.raises(SettingsError) as error:
        load({"OIDC_CLIENT_ID": "x"})
    assert len(error.value.problems) == 4
    assert error.value.warnings == ["OIDC_CLIENT_ID: has no effect. The setting is called CLIENT_ID."]


def test_set_but_empty_satisfies_required() -> None:
    settings = load({**REQUIRED, "CLIENT_ID": "", "CLIENT_SECRET": "", "SECRET_KEYS": "sixteen-letters!"})
    assert (settings.client_id, settings.client_secret.reveal()) == ("", "")


SECRETS = [row.name for row in ROWS if row.secret]


def test_which_settings_are_secrets() -> None:
    assert SECRETS == [
        "CLIENT_SECRET",
        "CLIENT_PRIVATE_KEY",
        "SESSION_STORE_REDIS_ADDR",
        "SESSION_STORE_REDIS_PWD",
        "SESSION_STORE_REDIS_SENTINEL_PWD",
        "SECRET_KEYS",
        "CLIENT_SECRET_PREVIOUS",
    ]


def a_secret(name: str, body: str = "0123456789abcdef") -> str:
    return {
        "CLIENT_PRIVATE_KEY": f"-----BEGIN PRIVATE KEY-----\nMIIE{body}\n-----END PRIVATE KEY-----",
        "SESSION_STORE_REDIS_ADDR": f"redis://ann:{body}@redis.example:6379/3",
    }.get(name, f"secret {body}")


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_each_secret_can_come_from_a_file(name: str, ending: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes((a_secret(name) + ending).encode())
    environ = {key: text for key, text in REQUIRED.items() if key != name}
    from_file = load({**environ, f"{name}_FILE": str(file)})
    from_variable = load({**environ, name: a_secret(name)})
    assert getattr(from_file, name.lower()) == getattr(from_variable, name.lower())
    assert from_file.session_store_redis_pwd == from_variable.session_store_redis_pwd


def test_only_one_line_break_is_stripped(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b" secret of sixteen \n\n")
    environ = {key: text for key, text in REQUIRED.items() if key != "CLIENT_SECRET"}
    settings = load({**environ, "CLIENT_SECRET_FILE": str(file)})
    assert settings.client_secret.reveal() == " secret of sixteen \n"
    assert any(line.startswith("CLIENT_SECRET: begins or ends") for line in settings.warnings)


@pytest.mark.parametrize("name", SECRETS)
def test_variable_and_file_together_are_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(a_secret(name, "1111111111111111"))
    line = only_problem(**{name: a_secret(name), f"{name}_FILE": str(file)})
    assert line == f"{name}: both {name} and {name}_FILE are set. Set one of them."


@pytest.mark.parametrize(
    "content,reason",
    [
        (None, "No such file"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"a\0b", "not text"),
        (b"x" * 65537, "65536"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_problem(content: bytes | None, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    environ = {key: text for key, text in REQUIRED.items() if key != "CLIENT_SECRET"}
    found = examine({**environ, "CLIENT_SECRET_FILE": str(file)})
    (line,) = found.problems
    assert line.startswith("CLIENT_SECRET_FILE: the file cannot be used") and reason in line


def test_a_folder_is_no_file_and_the_value_of_a_file_variable_is_never_shown(tmp_path: Path) -> None:
    environ = {key: text for key, text in REQUIRED.items() if key != "CLIENT_SECRET"}
    for misplaced in (str(tmp_path), "the-secret-itself-by-mistake"):
        (line,) = examine({**environ, "CLIENT_SECRET_FILE": misplaced}).problems
        assert line.startswith("CLIENT_SECRET_FILE: ") and misplaced not in line


def test_an_empty_file_variable_counts_as_not_given() -> None:
    assert loaded(CLIENT_SECRET_FILE="").client_secret.reveal() == REQUIRED["CLIENT_SECRET"]


def test_secrets_do_not_show() -> None:
    secret = Secret("hidden")
    assert (repr(secret), str(secret), f"{secret}", f"{secret!r}", "%s" % secret) == ("***",) * 5
    assert "hidden" not in repr([secret]) + repr({"a": secret})
    assert secret.reveal() == "hidden" and secret == Secret("hidden") and secret != Secret("other")
    assert secret != "hidden" and not Secret("") and len({secret, Secret("hidden")}) == 1
    assert copy.deepcopy(secret) == pickle.loads(pickle.dumps(secret)) == secret


def test_no_secret_in_the_settings_as_text() -> None:
    environ = {name: a_secret(name, f"{number}" * 20) for number, name in enumerate(SECRETS, start=1)}
    del environ["SESSION_STORE_REDIS_PWD"]  # the address has one
    settings = loaded(**environ, SESSION_STORE_TYPE="redis")
    for number in range(1, 6):
        assert str(number) * 20 not in repr(settings)
    assert settings.session_store_redis_pwd == Secret("3" * 20)


def test_a_value_is_never_shown_when_it_is_a_secret_in_the_wrong_place() -> None:
    secret = REQUIRED["CLIENT_SECRET"]
    for misplaced in (secret, f"x{secret}x", secret[4:-4]):
        for name in (
            "SERVER_PORT",
            "OIDC_AUTH_URL",
            "LOG_LEVEL",
            "SESSION_STORE_REDIS_ADDR",
            "TRUSTED_PROXIES",
        ):
            line = only_problem(**{name: misplaced})
            assert misplaced not in line and f"{len(misplaced)} characters" in line
    assert "pw" not in only_problem(OIDC_PROVIDER="https://u:pw@idp.example")
    assert "MIIE" not in only_problem(LOG_LEVEL=PEM)


def test_values_are_shown_short_and_in_ascii() -> None:
    line = only_problem(LOG_LEVEL="x" * 5000)
    assert "5000 characters" in line and len(line) < 200
    assert only_problem(LOG_LEVEL="ä\n").isascii()
    assert "set to nothing" in only_problem(LOG_LEVEL="")


@pytest.mark.parametrize(
    "text,hint",
    [
        ('"8080"', "quotes"),
        ("8080 ", "blanks"),
        ("8080\n", "blanks"),
        ("tcp://10.96.0.9:80", "Kubernetes Service"),
    ],
)
def test_what_hides_in_a_value_is_said(text: str, hint: str) -> None:
    assert hint in only_problem(SERVER_PORT=text)


def test_bytes_that_are_no_text_are_a_problem() -> None:
    text = os.fsdecode(b"\xff\xfe")
    for name in ("CLIENT_NAME", "CLIENT_SECRET", "GROUPS_ALLOWLIST"):
        assert "not UTF-8" in only_problem(**{name: text})


def test_the_algorithms_that_can_be_chosen_are_those_that_tokens_are_checked_with() -> None:
    assert set(ASYMMETRIC) == set(SIGNING_ALGORITHMS)


def test_further_issuers_can_stand_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "issuers.json"
    file.write_text('[{"issuer": "https://ci.example", "audiences": ["a"], "ca_bundle": "/etc/ci.pem"}]')
    (issuer,) = load({**REQUIRED, "BEARER_ISSUERS": str(file)}).bearer_issuers
    assert issuer == BearerIssuer("https://ci.example", ("a",), ca_bundle=Path("/etc/ci.pem"))


def test_every_problem_of_further_issuers_is_told_with_its_place() -> None:
    line = only_problem(BEARER_ISSUERS='[{"audiences": ["a"]}, {"issuer": "x", "audiences": ["a"]}, 5]')
    for problem in ("entry 1: issuer is missing", "entry 2: issuer: ", "entry 3: no object"):
        assert problem in line
    twice = '[{"issuer": "https://a.example", "audiences": ["a"]}, {"issuer": "https://a.example", "audiences": ["b"]}]'
    assert "an issuer is there 2 times" in only_problem(BEARER_ISSUERS=twice)
