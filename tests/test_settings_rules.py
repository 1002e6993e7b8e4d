"""Settings against each other: contradictions, remarks, names that are none, deployments that start."""

from __future__ import annotations

from datetime import datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from authservice.sessions.redis import RedisStore
from authservice.settings import examine, load
from authservice.settings.names import strange_names
from authservice.settings.table import ROWS
from tests.test_settings import (
    BY_NAME,
    PEM,
    REFUSED,
    REQUIRED,
    SECRETS,
    loaded,
    only_problem,
    problems,
    value,
    warnings,
)

ASSERTION = {
    "UPSTREAM_ASSERTION_HEADER": "X-Auth-Assertion",
    "SECRET_KEYS": "a-key-of-our-own-that-nobody-knows",
    "REDIRECT_URL": "https://h.example/cb",
}
OURS = "https://h.example/authservice"

# --- keys ------------------------------------------------------------------------------------


def test_the_key_of_logins_comes_from_what_is_there() -> None:
    assert loaded().sealing_key_material() == [REQUIRED["CLIENT_SECRET"].encode()]
    two = f"{'k' * 16}, {'l' * 16}"
    assert loaded(SECRET_KEYS=two).sealing_key_material() == [b"k" * 16, b"l" * 16]
    assert loaded(SECRET_KEYS=two.replace(", ", "\n")).sealing_key_material() == [b"k" * 16, b"l" * 16]
    private = load(
        {
            **{name: text for name, text in REQUIRED.items() if name != "CLIENT_SECRET"},
            "OIDC_CLIENT_AUTH_METHOD": "private_key_jwt",
            "CLIENT_PRIVATE_KEY": PEM,
        }
    )
    assert private.client_secret.reveal() == ""
    assert private.sealing_key_material() == [PEM.encode()]


def test_s34_the_previous_client_secret_still_opens() -> None:
    both = loaded(CLIENT_SECRET_PREVIOUS="the-one-before").sealing_key_material()
    assert both == [REQUIRED["CLIENT_SECRET"].encode(), b"the-one-before"]
    assert loaded(CLIENT_SECRET_PREVIOUS=REQUIRED["CLIENT_SECRET"]).sealing_key_material() == both[:1]
    (line,) = warnings(CLIENT_SECRET_PREVIOUS="the-one-before", SECRET_KEYS="k" * 16)
    assert line.startswith("CLIENT_SECRET_PREVIOUS: has no effect")


def test_nothing_to_derive_the_key_of_logins_from_is_a_problem() -> None:
    line = only_problem(CLIENT_SECRET="")
    assert line.startswith("SECRET_KEYS: ") and "CLIENT_SECRET" in line


def test_a_short_client_secret_is_a_weak_key() -> None:
    assert any(line.startswith("CLIENT_SECRET: shorter") for line in warnings(CLIENT_SECRET="secret"))
    assert warnings(CLIENT_SECRET="secret", SECRET_KEYS="k" * 16) == ()


@pytest.mark.parametrize("known", ["pUBnBOY80SnXgjibTYM9ZWNzY2xreNGQok", "ZXhhbXBsZS1hcHAtc2VjcmV0"])
def test_a_client_secret_out_of_public_examples_is_a_weak_key(known: str) -> None:
    (line,) = warnings(CLIENT_SECRET=known)
    assert line.startswith("CLIENT_SECRET: an example") and "SECRET_KEYS" in line and known not in line
    assert warnings(CLIENT_SECRET=known, SECRET_KEYS="k" * 16) == ()


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL], ids=str)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_real_private_keys_are_taken(form: PrivateFormat, ending: str) -> None:
    keys = (ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048))
    for key in keys:
        pem = key.private_bytes(Encoding.PEM, form, NoEncryption()).decode().replace("\n", ending)
        assert value("CLIENT_PRIVATE_KEY", pem).reveal() == pem
        locked = key.private_bytes(Encoding.PEM, form, BestAvailableEncryption(b"pw")).decode()
        assert "passphrase" in only_problem(CLIENT_PRIVATE_KEY=locked)


def test_private_key_jwt_needs_a_private_key() -> None:
    lines = problems(OIDC_CLIENT_AUTH_METHOD="private_key_jwt")
    assert [line.partition(":")[0] for line in lines] == ["CLIENT_PRIVATE_KEY"]


# --- rules between settings ------------------------------------------------------------------


@pytest.mark.parametrize(
    "environ,name",
    [
        ({"SERVER_PORT": "8082"}, "WEB_SERVER_PORT"),
        ({"READINESS_PROBE_PORT": "8080"}, "READINESS_PROBE_PORT"),
        ({"READINESS_PROBE_PORT": "8082"}, "READINESS_PROBE_PORT"),
        ({"USERID_HEADER": "Kubeflow-Groups"}, "GROUPS_HEADER"),
        ({"USERID_HEADER": "auth_method"}, "AUTH_METHOD_HEADER"),
        ({"USERID_HEADER": "authorization"}, "USERID_HEADER"),
        ({"GROUPS_HEADER": "X-Token", "ID_TOKEN_HEADER": "x-token"}, "GROUPS_HEADER"),
        ({"USERID_HEADER": "Host"}, "USERID_HEADER"),
        ({"UPSTREAM_HEADERS": '{"Kubeflow_UserID": "sub"}'}, "UPSTREAM_HEADERS"),
        ({"UPSTREAM_HEADERS": '{"X-1-2-3-4_5_6": "sub"}'}, "UPSTREAM_HEADERS"),
        ({"USERID_HEADER": "x-1-2-3-4_5_6"}, "USERID_HEADER"),
        ({"UPSTREAM_HEADERS": '{"authorization": "sub"}'}, "UPSTREAM_HEADERS"),
        ({"UPSTREAM_HEADERS": '{"X-Forwarded-For": "sub"}'}, "UPSTREAM_HEADERS"),
        ({"UPSTREAM_HEADERS": '{"X-Token": "sub"}', "AUTH_HEADER": "x_token"}, "UPSTREAM_HEADERS"),
        (
            {"UPSTREAM_HEADERS": '{"Authorization": "sub"}', "AUTH_HEADER": "a", "ID_TOKEN_HEADER": ""},
            "UPSTREAM_HEADERS",
        ),
        ({"UPSTREAM_HEADERS": "oauth2-proxy", "USERID_HEADER": "X-Auth-Request-User"}, "UPSTREAM_HEADERS"),
        ({**ASSERTION, "UPSTREAM_ASSERTION_HEADER": "Kubeflow_UserID"}, "UPSTREAM_ASSERTION_HEADER"),
        ({**ASSERTION, "UPSTREAM_ASSERTION_HEADER": "X-Forwarded-Proto"}, "UPSTREAM_ASSERTION_HEADER"),
        (
            {**ASSERTION, "UPSTREAM_ASSERTION_HEADER": "authorization", "AUTH_HEADER": "a", "ID_TOKEN_HEADER": ""},
            "UPSTREAM_ASSERTION_HEADER",
        ),
        ({**ASSERTION, "UPSTREAM_HEADERS": '{"x_auth_assertion": "sub"}'}, "UPSTREAM_ASSERTION_HEADER"),
        ({**ASSERTION, "SECRET_KEYS": ""}, "UPSTREAM_ASSERTION_HEADER"),
        ({**ASSERTION, "REDIRECT_URL": "/cb"}, "UPSTREAM_ASSERTION_HEADER"),
        ({**ASSERTION, "REDIRECT_URL": "https://h.example/authservice/jwks.json"}, "REDIRECT_URL"),
        ({**ASSERTION, "VERIFY_AUTH_URL": "/authservice/jwks.json"}, "VERIFY_AUTH_URL"),
        ({**ASSERTION, "OIDC_PROVIDER": OURS}, "OIDC_PROVIDER"),
        ({**ASSERTION, "BEARER_ISSUERS": f'[{{"issuer": "{OURS}", "audiences": ["a"]}}]'}, "BEARER_ISSUERS"),
        ({"UPSTREAM_ACCESS_TOKEN_HEADER": "kubeflow_groups"}, "UPSTREAM_ACCESS_TOKEN_HEADER"),
        ({"UPSTREAM_ACCESS_TOKEN_HEADER": "cookie"}, "UPSTREAM_ACCESS_TOKEN_HEADER"),
        ({"UPSTREAM_ID_TOKEN_HEADER": "X-T", "UPSTREAM_HEADERS": '{"x_t": "sub"}'}, "UPSTREAM_ID_TOKEN_HEADER"),
        ({"UPSTREAM_ID_TOKEN_HEADER": "X-T", "AUTH_HEADER": "x-t"}, "UPSTREAM_ID_TOKEN_HEADER"),
        (
            {"UPSTREAM_ACCESS_TOKEN_HEADER": "authorization", "UPSTREAM_ID_TOKEN_HEADER": "Authorization"},
            "UPSTREAM_ID_TOKEN_HEADER",
        ),
        ({"GROUPS_HEADER": "set-cookie"}, "GROUPS_HEADER"),
        ({"USERID_HEADER": "x-envoy-auth-headers-to-remove"}, "USERID_HEADER"),
        ({"USERID_HEADER": "X-Forwarded-Host"}, "USERID_HEADER"),
        ({"USERID_HEADER": "x_forwarded_for"}, "USERID_HEADER"),
        ({"USERID_HEADER": "X-Original-URI"}, "USERID_HEADER"),
        ({"USERID_HEADER": "X-Envoy-Original-Path"}, "USERID_HEADER"),
        ({"USERID_HEADER": "X-Request-Id"}, "USERID_HEADER"),
        ({"USERID_HEADER": "X-Real-IP"}, "USERID_HEADER"),
        ({"USERID_HEADER": "User-Agent"}, "USERID_HEADER"),
        ({"GROUPS_HEADER": "Forwarded"}, "GROUPS_HEADER"),
        ({"GROUPS_HEADER": "Sec-Fetch-Mode"}, "GROUPS_HEADER"),
        ({"AUTH_METHOD_HEADER": "Origin"}, "AUTH_METHOD_HEADER"),
        ({"AUTH_METHOD_HEADER": "X-Requested-With"}, "AUTH_METHOD_HEADER"),
        ({"REDIRECT_URL": "/authservice/logout"}, "REDIRECT_URL"),
        ({"REDIRECT_URL": "/authservice/site/homepage"}, "REDIRECT_URL"),
        ({"REDIRECT_URL": "https://h.example/authservice/site/themes/cb"}, "REDIRECT_URL"),
        ({"REDIRECT_URL": "/authservice/site"}, "REDIRECT_URL"),
        ({"REDIRECT_URL": "/site/after_logout"}, "REDIRECT_URL"),
        ({"VERIFY_AUTH_URL": "/authservice/site"}, "VERIFY_AUTH_URL"),
        ({"REDIRECT_URL": "https://h.example/authservice/"}, "REDIRECT_URL"),
        ({"REDIRECT_URL": "/authservice/verify"}, "REDIRECT_URL"),
        ({"REDIRECT_URL": "/authservice/verify/cb"}, "REDIRECT_URL"),
        ({"REDIRECT_URL": "/healthz"}, "REDIRECT_URL"),
        ({"VERIFY_AUTH_URL": "/authservice/login"}, "VERIFY_AUTH_URL"),
        ({"CHECK_PATH_PREFIX": "/authservice"}, "CHECK_PATH_PREFIX"),
        ({"CHECK_PATH_PREFIX": "/login/", "REDIRECT_URL": "/login/oidc"}, "CHECK_PATH_PREFIX"),
        ({"CHECK_PATH_PREFIX": "/verify", "VERIFY_AUTH_URL": "/verify"}, "CHECK_PATH_PREFIX"),
        ({"CHECK_PATH_PREFIX": "/authservice/verify"}, "CHECK_PATH_PREFIX"),
        ({"CHECK_PATH_PREFIX": "/authservice/verify/"}, "CHECK_PATH_PREFIX"),
        ({"CHECK_PATH_PREFIX": "/authservice/verify/check"}, "CHECK_PATH_PREFIX"),
        ({"CHECK_PATH_PREFIX": "/v/check", "VERIFY_AUTH_URL": "/v"}, "CHECK_PATH_PREFIX"),
        ({"CHECK_PATH_PREFIX": "/cb/check", "REDIRECT_URL": "/cb"}, "CHECK_PATH_PREFIX"),
        ({"CHECK_PATH_PREFIX": "/authservice/login"}, "CHECK_PATH_PREFIX"),
        ({"CHECK_PATH_PREFIX": "/authservice/logout/x"}, "CHECK_PATH_PREFIX"),
        ({"CHECK_PATH_PREFIX": "/authservice/forward-auth"}, "CHECK_PATH_PREFIX"),
        ({"CHECK_PATH_PREFIX": "/authservice/site/x"}, "CHECK_PATH_PREFIX"),
        ({"CHECK_PATH_PREFIX": "/healthz"}, "CHECK_PATH_PREFIX"),
        ({"SESSION_COOKIE_NAME": "__Host-session", "SESSION_COOKIE_SECURE": "false"}, "SESSION_COOKIE_NAME"),
        ({"SESSION_COOKIE_NAME": "__host-session"}, "SESSION_COOKIE_NAME"),
        ({"SESSION_COOKIE_NAME": "__Secure-s", "REDIRECT_URL": "http://h.example/cb"}, "SESSION_COOKIE_NAME"),
        (
            {
                "SESSION_COOKIE_NAME": "__Host-s",
                "SESSION_COOKIE_SECURE": "true",
                "SESSION_COOKIE_DOMAIN": "h.example",
            },
            "SESSION_COOKIE_NAME",
        ),
        ({"SESSION_SAME_SITE": "None", "SESSION_COOKIE_SECURE": "false"}, "SESSION_SAME_SITE"),
        ({"SESSION_SAME_SITE": "none", "AUTHSERVICE_URL_PREFIX": "http://h.example/a"}, "SESSION_SAME_SITE"),
        (
            {"SESSION_COOKIE_DOMAIN": "other.example", "REDIRECT_URL": "https://h.example/cb"},
            "SESSION_COOKIE_DOMAIN",
        ),
        (
            {"SESSION_COOKIE_DOMAIN": "app.example", "REDIRECT_URL": "https://myapp.example/cb"},
            "SESSION_COOKIE_DOMAIN",
        ),
        ({"SESSION_STORE_TYPE": "redis", "SESSION_STORE_REDIS_ADDR": ""}, "SESSION_STORE_REDIS_ADDR"),
        (
            {"SESSION_STORE_REDIS_ADDR": "redis://:one@h", "SESSION_STORE_REDIS_PWD": "two"},
            "SESSION_STORE_REDIS_PWD",
        ),
        (
            {"SESSION_STORE_REDIS_ADDR": "redis://h/1", "SESSION_STORE_REDIS_DB": "2"},
            "SESSION_STORE_REDIS_DB",
        ),
        ({"SESSION_STORE_REDIS_ADDR": "a:1,b:1"}, "SESSION_STORE_REDIS_ADDR"),
        ({"SESSION_STORE_REDIS_MODE": "cluster", "SESSION_STORE_REDIS_ADDR": "unix:///s"}, "SESSION_STORE_REDIS_ADDR"),
        (
            {"SESSION_STORE_REDIS_MODE": "cluster", "SESSION_STORE_REDIS_ADDR": "redis://a,b/1"},
            "SESSION_STORE_REDIS_DB",
        ),
        (
            {"SESSION_STORE_REDIS_ADDR": "rediss://a", "SESSION_STORE_REDIS_CLIENT_KEY": "/key.pem"},
            "SESSION_STORE_REDIS_CLIENT_CERT",
        ),
    ],
    ids=str,
)
def test_settings_that_contradict_each_other(environ: dict[str, str], name: str) -> None:
    assert only_problem(**environ).startswith(f"{name}: ")


@pytest.mark.parametrize(
    "environ",
    [
        {"SESSION_COOKIE_NAME": "__Host-session", "SESSION_COOKIE_SECURE": "true"},
        {"SESSION_COOKIE_NAME": "__Host-session", "REDIRECT_URL": "https://h.example/cb"},
        {"SESSION_COOKIE_NAME": "__Secure-session", "TRUSTED_PROXIES": "10.0.0.0/8"},
        {
            "SESSION_COOKIE_NAME": "__Secure-s",
            "SESSION_COOKIE_SECURE": "true",
            "SESSION_COOKIE_DOMAIN": "h.example",
        },
        {"SESSION_SAME_SITE": "None", "REDIRECT_URL": "https://h.example/cb"},
        {"SESSION_SAME_SITE": "None", "SESSION_COOKIE_SECURE": "true"},
        {"SESSION_COOKIE_DOMAIN": "example.com", "REDIRECT_URL": "https://app.example.com:8443/cb"},
        {"GROUPS_HEADER": "", "AUTH_METHOD_HEADER": ""},
        ASSERTION,
        {**ASSERTION, "REDIRECT_URL": "/cb", "AUTHSERVICE_URL_PREFIX": "https://h.example/authservice/"},
        {**ASSERTION, "UPSTREAM_ASSERTION_AUDIENCE": "https://apps.example"},
        {"REDIRECT_URL": "/authservice/jwks.json"},
        {"UPSTREAM_HEADERS": "oauth2-proxy"},
        {"USERID_HEADER": "X-1-2-3_4_5", "AUTH_HEADER": "X-1-2-3-4-5-6"},
        {"UPSTREAM_ID_TOKEN_HEADER": "Authorization", "UPSTREAM_ACCESS_TOKEN_HEADER": "X-Auth-Request-Access-Token"},
        {"UPSTREAM_ACCESS_TOKEN_HEADER": "authorization", "AUTH_HEADER": "X-Session", "ID_TOKEN_HEADER": ""},
        {"UPSTREAM_ACCESS_TOKEN_HEADER": "X-Forwarded-Access-Token"},
        {"UPSTREAM_HEADERS": '{"X-Forwarded-User": "sub", "X-Forwarded-Preferred-Username": "preferred_username"}'},
        {"REDIRECT_URL": "/login/oidc"},
        {"REDIRECT_URL": "/authservice/sites/callback"},
        {"AUTHSERVICE_URL_PREFIX": "/site/"},
        {"USERID_HEADER": "X-Auth-Request-User", "GROUPS_HEADER": "Remote-Groups"},
        {"CHECK_PATH_PREFIX": "/authservice/check"},
        {"CHECK_PATH_PREFIX": "/authservice/verifying"},
        {"CHECK_PATH_PREFIX": "/log", "REDIRECT_URL": "/login/oidc"},
        {"KUBERNETES_AUTHN_ENABLED": "false", "CACHE_ENABLED": "false", "IDTOKEN_AUTHN_ENABLED": "false"},
        {"VERIFY_AUTH_URL": "/verify"},
        {"SESSION_STORE_TYPE": "redis", "SESSION_STORE_PATH": ""},
        {"SESSION_STORE_TYPE": "filesystem", "SESSION_STORE_REDIS_ADDR": ""},
        {"SESSION_STORE_REDIS_ADDR": "redis://h/1", "SESSION_STORE_REDIS_DB": "1"},
        {"SESSION_STORE_REDIS_MODE": "sentinel", "SESSION_STORE_REDIS_ADDR": "redis://a,b,c/3"},
        {"SESSION_STORE_REDIS_MODE": "cluster", "SESSION_STORE_REDIS_ADDR": "a:1,b:1"},
        {"SESSION_STORE_REDIS_ADDR": "rediss://a", "SESSION_STORE_REDIS_CLIENT_CERT": "/both.pem"},
    ],
    ids=str,
)
def test_settings_that_go_together(environ: dict[str, str]) -> None:
    assert loaded(**environ).warnings == ()


@pytest.mark.parametrize(
    "address,wanted",
    [
        ("redis.example:6379", ("redis.example:6379", "", "", 0)),
        ("[::1]:6379", ("[::1]:6379", "", "", 0)),
        ("redis://redis.example", ("redis://redis.example", "", "", 0)),
        ("rediss://ann:p%40ss@redis.example:6380/5", ("rediss://redis.example:6380", "ann", "p@ss", 5)),
        ("redis://:pw@redis.example/", ("redis://redis.example", "", "pw", 0)),
        (
            "redis://h?db=4&password=pw&username=ann&ssl_cert_reqs=none",
            ("redis://h?ssl_cert_reqs=none", "ann", "pw", 4),
        ),
        ("redis://ann:p,w@h", ("redis://h", "ann", "p,w", 0)),
        ("unix:///run/redis.sock", ("unix:///run/redis.sock", "", "", 0)),
        ("unix://ann:pw@/run/redis.sock?db=2", ("unix:///run/redis.sock", "ann", "pw", 2)),
    ],
)
def test_redis_addresses_are_freed_of_credentials(address: str, wanted: tuple[str, str, str, int]) -> None:
    settings = loaded(SESSION_STORE_TYPE="redis", SESSION_STORE_REDIS_ADDR=address)
    assert wanted == (
        settings.session_store_redis_addr,
        settings.session_store_redis_username,
        settings.session_store_redis_pwd.reveal(),
        settings.session_store_redis_db,
    )


@pytest.mark.parametrize(
    "address,wanted",
    [
        ("a:1, [::1]:2 ,c:3", ("a:1,[::1]:2,c:3", "", "", 0)),
        ("redis://a,b:7000", ("redis://a,b:7000", "", "", 0)),
        ("rediss://ann:pw@a:1,b:2,c:3/4", ("rediss://a:1,b:2,c:3", "ann", "pw", 4)),
        ("rediss://a:1,rediss://b:2?ssl_check_hostname=false", ("rediss://a:1,b:2?ssl_check_hostname=false", "", "", 0)),
    ],
)
def test_several_redis_addresses(address: str, wanted: tuple[str, str, str, int]) -> None:
    settings = loaded(
        SESSION_STORE_TYPE="redis", SESSION_STORE_REDIS_MODE="sentinel", SESSION_STORE_REDIS_ADDR=address
    )
    assert wanted == (
        settings.session_store_redis_addr,
        settings.session_store_redis_username,
        settings.session_store_redis_pwd.reveal(),
        settings.session_store_redis_db,
    )
    assert RedisStore(settings.session_store_redis_addr, now=datetime.now, mode="sentinel")


# --- warnings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environ,beginning",
    [
        ({"PORT": '"8080"'}, "PORT: not read any more. Today's setting is SERVER_PORT."),
        ({"STORE_PATH": "/x"}, "STORE_PATH: not read any more. Today's setting is SESSION_STORE_PATH."),
        ({"SKIP_AUTH_URI": "/a /b"}, "SKIP_AUTH_URI: not read any more. Today's setting is SKIP_AUTH_URLS"),
        ({"SKIP_AUTH_URL": "/a"}, "SKIP_AUTH_URL: not read any more. Today's setting is SKIP_AUTH_URLS."),
        (
            {"STATIC_DESTINATION_URL": "/"},
            "STATIC_DESTINATION_URL: not read any more. Today's setting is AFTER_LOGOUT_URL",
        ),
        ({"TOKEN_HEADER": "X"}, "TOKEN_HEADER: not read any more. Today's setting is ID_TOKEN_HEADER."),
        ({"TOKEN_SCHEME": "X"}, "TOKEN_SCHEME: not read any more."),
        ({"LOGOUT_URL": "X"}, "LOGOUT_URL: not read any more."),
        ({"WEB_SERVER_THEME": "X"}, "WEB_SERVER_THEME: not read any more. Today's setting is THEME."),
        (
            {"WEB_SERVER_THEMES_URL": "X"},
            "WEB_SERVER_THEMES_URL: not read any more. Today's setting is THEMES_URL.",
        ),
        (
            {"UPSTREAM_ASSERTION_AUDIENCE": "apps"},
            "UPSTREAM_ASSERTION_AUDIENCE: has no effect without UPSTREAM_ASSERTION_HEADER.",
        ),
        ({"SESSION_STORE_REDIS_MASTER": "m"}, "SESSION_STORE_REDIS_MASTER: has no effect without SESSION_STORE_REDIS_MODE"),
        ({"SESSION_STORE_REDIS_CA_BUNDLE": "/ca"}, "SESSION_STORE_REDIS_CA_BUNDLE: has no effect without a rediss://"),
        ({"SESSION_MAXAGE": "1"}, "SESSION_MAXAGE: has no effect. Did you mean SESSION_MAX_AGE?"),
        ({"OIDC_SCOPE": "a"}, "OIDC_SCOPE: has no effect. Did you mean OIDC_SCOPES?"),
        ({"REDIRECT_URI": "/"}, "REDIRECT_URI: has no effect. Did you mean REDIRECT_URL?"),
        ({"userid_header": "a"}, "userid_header: has no effect. Did you mean USERID_HEADER?"),
        (
            {"SESSION_STORE_REDIS_PASSWORD": "x"},
            "SESSION_STORE_REDIS_PASSWORD: has no effect. Did you mean SESSION_STORE_RE",
        ),
        ({"SECRET_KEY": "x"}, "SECRET_KEY: has no effect. Did you mean SECRET_KEYS?"),
        ({"CLIENT_ID_FILE": "/x"}, "CLIENT_ID_FILE: has no effect. Only secrets can come from a file"),
        (
            {"CLIENT_SECRETS_FILE": "/x"},
            "CLIENT_SECRETS_FILE: has no effect. Did you mean CLIENT_SECRET_FILE?",
        ),
        ({"OIDC_STATE_STORE_PATH": "/x"}, "OIDC_STATE_STORE_PATH: accepted, without effect."),
        ({"USERID_TOKEN_HEADER": "x"}, "USERID_TOKEN_HEADER: accepted, without effect."),
        ({"SESSION_STORE_TYPE": "boltdb"}, "SESSION_STORE_TYPE: boltdb now means filesystem"),
        ({"SKIP_AUTH_URLS": "https://idp/,/idp,/dex"}, "SKIP_AUTH_URLS: 'https://idp/' never matches"),
        ({"SKIP_AUTH_URLS": "/dex,dex"}, "SKIP_AUTH_URLS: 'dex' never matches"),
        ({"GROUPS_ALLOWLIST": ""}, "GROUPS_ALLOWLIST: empty"),
        ({"TRUSTED_PROXIES": "0.0.0.0/0"}, "TRUSTED_PROXIES: every address"),
        ({"ALLOWED_REDIRECT_HOSTS": ".com"}, "ALLOWED_REDIRECT_HOSTS: .com covers"),
        ({"CLIENT_ID": ""}, "CLIENT_ID: set to nothing"),
        ({"CLIENT_SECRET": "a secret of length\n"}, "CLIENT_SECRET: begins or ends"),
        (
            {"REDIRECT_URL": "https://a.example/cb", "AUTHSERVICE_URL_PREFIX": "https://b.example/a"},
            "REDIRECT_URL: names",
        ),
        ({"SESSION_SAME_SITE": "None"}, "SESSION_SAME_SITE: None needs"),
        (
            {"SESSION_COOKIE_SECURE": "true", "REDIRECT_URL": "http://h.example/cb"},
            "SESSION_COOKIE_SECURE: true, but",
        ),
        ({"STRICT_SESSION_VALIDATION_SECONDS": "5"}, "STRICT_SESSION_VALIDATION_SECONDS: has no effect"),
        (
            {"STRICT_SESSION_VALIDATION": "true", "PROVIDER_OUTAGE_GRACE_SECONDS": "60"},
            "PROVIDER_OUTAGE_GRACE_SECONDS: has no effect",
        ),
        ({"REFRESH_AHEAD_SECONDS": "3600", "SESSION_MAX_AGE": "3600"}, "REFRESH_AHEAD_SECONDS: not shorter"),
        ({"SESSION_IDLE_TIMEOUT": "86400"}, "SESSION_IDLE_TIMEOUT: not shorter"),
        ({"GATEWAY": "nginx", "CHECK_PATH_PREFIX": "/check"}, "CHECK_PATH_PREFIX: has no effect"),
        ({"POLICY_WORKLOADS": '{"a.example": {}}'}, "POLICY_WORKLOADS: has no effect without POLICY_PATH."),
        ({"POLICY_ROOT_NAMESPACE": "mesh"}, "POLICY_ROOT_NAMESPACE: has no effect without POLICY_PATH."),
        ({"POLICY_PEER_HEADER": "x-peer"}, "POLICY_PEER_HEADER: has no effect without POLICY_PATH."),
        ({"POLICY_ALLOWS_ANONYMOUS": "true"}, "POLICY_ALLOWS_ANONYMOUS: has no effect without POLICY_PATH."),
        ({"POLICY_DRY_RUN": "true"}, "POLICY_DRY_RUN: has no effect without POLICY_PATH."),
        ({"EXPLAIN_DENIALS": "true"}, "EXPLAIN_DENIALS: has no effect without POLICY_PATH."),
        (
            {"POLICY_PATH": "/policies", "POLICY_ALLOWS_ANONYMOUS": "true", "POLICY_DRY_RUN": "true"},
            "POLICY_ALLOWS_ANONYMOUS: has no effect with POLICY_DRY_RUN.",
        ),
        (
            {"POLICY_PATH": "/policies", "POLICY_PEER_HEADER": "x-peer"},
            "POLICY_PEER_HEADER: has no effect without TRUSTED_PROXIES",
        ),
    ],
    ids=str,
)
def test_what_is_said_and_does_not_stop_a_start(environ: dict[str, str], beginning: str) -> None:
    (line,) = warnings(**environ)
    assert line.startswith(beginning)
    for name, text in environ.items():
        assert name in BY_NAME or text not in line.replace(name, "").split()


def test_former_names_never_change_a_value() -> None:
    settings = loaded(PORT="9999", STORE_PATH="/elsewhere", SKIP_AUTH_URI="/open", USERID_TOKEN_HEADER="x")
    plain = loaded()
    assert all(
        getattr(settings, row.name.lower()) == getattr(plain, row.name.lower())
        for row in ROWS
        if row.name not in ("USERID_TOKEN_HEADER", "USERID_TRANSFORMERS")
    )


UNRELATED = """
    PATH HOME HOSTNAME LANG LC_ALL PWD SHLVL TERM USER LOGNAME MAIL SHELL TZ TMPDIR EDITOR PAGER DISPLAY
    _ OLDPWD KUBERNETES_SERVICE_HOST KUBERNETES_SERVICE_PORT KUBERNETES_SERVICE_PORT_HTTPS
    KUBERNETES_PORT KUBERNETES_PORT_443_TCP KUBERNETES_PORT_443_TCP_PROTO KUBERNETES_PORT_443_TCP_PORT
    KUBERNETES_PORT_443_TCP_ADDR AUTHSERVICE_SERVICE_HOST AUTHSERVICE_SERVICE_PORT AUTHSERVICE_PORT
    AUTHSERVICE_PORT_8080_TCP AUTHSERVICE_PORT_8080_TCP_ADDR AUTHSERVICE_SERVICE_PORT_HTTP_AUTHSERVICE
    REDIS_SERVICE_HOST REDIS_PORT_6379_TCP SERVER_PORT_8080_TCP SESSION_STORE_SERVICE_HOST HTTP_PROXY
    HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy KUBECONFIG SSL_CERT_FILE SSL_CERT_DIR
    REQUESTS_CA_BUNDLE CURL_CA_BUNDLE GUNICORN_CMD_ARGS PYTHONPATH PYTHONUNBUFFERED
    PYTHONDONTWRITEBYTECODE PYTHON_VERSION PYTHON_PIP_VERSION GPG_KEY VIRTUAL_ENV FLASK_ENV FLASK_APP
    PIP_CACHE_DIR POD_NAME POD_NAMESPACE POD_IP NODE_NAME HOST_IP INVOCATION_ID JOURNAL_STREAM
    LISTEN_FDS LISTEN_PID NOTIFY_SOCKET STATE_DIRECTORY CREDENTIALS_DIRECTORY SYSTEMD_EXEC_PID MAINPID
    XDG_SESSION_ID XDG_SESSION_TYPE XDG_SESSION_CLASS XDG_RUNTIME_DIR SESSION_MANAGER DESKTOP_SESSION
    SSH_CLIENT SSH_CONNECTION SSH_AUTH_SOCK SSH_TTY DBUS_SESSION_BUS_ADDRESS SERVER_NAME SERVER_SOFTWARE
    SERVER_PROTOCOL GATEWAY_INTERFACE REMOTE_ADDR REQUEST_METHOD AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
    GOOGLE_APPLICATION_CREDENTIALS CI GITHUB_TOKEN PYTEST_CURRENT_TEST PYTEST_XDIST_WORKER
    DEBIAN_FRONTEND LESS LS_COLORS WINDOWID COLORTERM
""".split()


@pytest.mark.parametrize("name", UNRELATED)
def test_variables_of_others_are_never_mentioned(name: str) -> None:
    assert list(strange_names([name], BY_NAME, SECRETS)) == []


def test_every_setting_is_known_to_the_warnings() -> None:
    assert list(strange_names([*BY_NAME, *(f"{name}_FILE" for name in SECRETS)], BY_NAME, SECRETS)) == []


# --- deployments -----------------------------------------------------------------------------

KUBEFLOW_1_8 = {
    "OIDC_PROVIDER": "http://dex.auth.svc.cluster.local:5556/dex",
    "OIDC_AUTH_URL": "/dex/auth",
    "OIDC_SCOPES": "profile email groups",
    "AUTHSERVICE_URL_PREFIX": "/authservice/",
    "SKIP_AUTH_URLS": "/dex",
    "AFTER_LOGOUT_URL": "/",
    "USERID_HEADER": "kubeflow-userid",
    "USERID_PREFIX": "",
    "USERID_CLAIM": "email",
    "PORT": '"8080"',
    "STORE_PATH": "/var/lib/authservice/data.db",
    "CLIENT_ID": "kubeflow-oidc-authservice",
    "CLIENT_SECRET": "pUBnBOY80SnXgjibTYM9ZWNzY2xreNGQok",
    "KUBERNETES_SERVICE_HOST": "10.96.0.1",
    "AUTHSERVICE_SERVICE_PORT": "8080",
    "AUTHSERVICE_PORT": "tcp://10.96.0.9:8080",
}


def test_kubeflows_own_configuration_starts() -> None:
    """Hazards 1, 2, 4, 6 and 7: quoted PORT, STORE_PATH, blanks in scopes, /dex, relative addresses."""
    settings = load(KUBEFLOW_1_8)
    assert settings.server_port == 8080
    assert settings.oidc_scopes == ("openid", "profile", "email", "groups")
    assert settings.skip_prefixes == ("/authservice", "/dex")
    assert settings.redirect_url == "/authservice/oidc/callback"
    assert settings.oidc_auth_url == "/dex/auth"
    assert settings.after_logout_url == "/"
    assert settings.outside_scheme is None
    assert [line.partition(":")[0] for line in settings.warnings] == ["PORT", "STORE_PATH", "CLIENT_SECRET"]


def test_the_originals_end_to_end_configuration_starts() -> None:
    settings = load(
        {
            "OIDC_PROVIDER": "http://dex.auth.svc.cluster.local:5556/dex",
            "OIDC_AUTH_URL": "/dex/auth",
            "OIDC_SCOPES": "profile,email,groups",
            "AUTHSERVICE_URL_PREFIX": "/authservice/",
            "SKIP_AUTH_URLS": "/dex/",
            "GROUPS_ALLOWLIST": "a,d,e,system:serviceaccounts",
            "STRICT_SESSION_VALIDATION": "true",
            "USERID_CLAIM": "email",
            "CLIENT_ID": "authservice",
            "CLIENT_SECRET": "pUBnBOY80SnXgjibTYM9ZWNzY2xreNGQok",
            "SECRET_KEYS": "k" * 16,
        }
    )
    assert settings.strict_session_validation and settings.groups_allowlist[-1] == "system:serviceaccounts"
    assert settings.warnings == ()


def test_an_absolute_callback_outside_the_prefix_starts() -> None:
    settings = load({**KUBEFLOW_1_8, "REDIRECT_URL": "https://kf.example.com/login/oidc"})
    assert (settings.callback_path, settings.prefix_path) == ("/login/oidc", "/authservice")
    assert (settings.outside_scheme, settings.outside_host) == ("https", "kf.example.com")


@pytest.mark.parametrize(
    "environ",
    [
        {"SKIP_AUTH_URI": "/a /b"},
        {"SKIP_AUTH_URLS": "https://idp/,/idp,/dex"},
        {"GROUPS_HEADER": "", "GROUPS_CLAIM": ""},
        {
            "USERID_PREFIX": "",
            "OIDC_AUTH_URL": "",
            "REDIRECT_URL": "",
            "CA_BUNDLE": "",
            "SKIP_AUTH_URLS": "",
            "AFTER_LOGIN_URL": "",
            "HOMEPAGE_URL": "",
            "AFTER_LOGOUT_URL": "",
            "VERIFY_AUTH_URL": "",
            "SERVER_HOSTNAME": "",
            "TEMPLATE_PATH": "",
            "THEME": "",
            "THEMES_URL": "",
            "EXTERNAL_AUTHZ_URL": "",
            "SESSION_STORE_REDIS_ADDR": "",
            "SESSION_STORE_REDIS_PWD": "",
            "SESSION_SAME_SITE": "",
            "AUDIENCES": "",
            "USERID_TOKEN_HEADER": "",
            "CLIENT_NAME": "",
            "OIDC_STATE_STORE_PATH": "",
            "AUTH_HEADER": "",
            "ID_TOKEN_HEADER": "",
        },
        {"TEMPLATE_PATH": "/home/authservice/web/templates/gitlab/auto_logout"},
        {"SESSION_STORE_TYPE": "boltdb", "OIDC_STATE_STORE_PATH": "/var/lib/authservice/data.db"},
        {
            "SESSION_STORE_TYPE": "redis",
            "SESSION_STORE_REDIS_ADDR": "redis.ns.svc:6379",
            "SESSION_STORE_REDIS_PWD": "pw",
        },
        {"SESSION_SAME_SITE": "None"},
        {"READINESS_PROBE_PORT": "8081"},
        {"OIDC_PROVIDER": "https://accounts.google.com"},
        {"CACHE_ENABLED": "true", "CACHE_EXPIRATION_MINUTES": "10"},
        {"USERID_TRANSFORMERS": '[{"matches": "user@domain\\\\.com", "replaces": "internal"}]'},
    ],
    ids=str,
)
def test_settings_seen_in_real_deployments_start(environ: dict[str, str]) -> None:
    assert load({**KUBEFLOW_1_8, **environ})


# --- all at once -----------------------------------------------------------------------------


def test_every_setting_wrong_at_once_is_told_at_once() -> None:
    wrong = {name: texts[-1] for name, texts in REFUSED.items()}
    found = examine(wrong)
    told = {line.partition(":")[0] for line in found.problems}
    assert found.settings is None
    # An empty path is wrong only for one of the stores, and which one is meant cannot be read here.
    assert told == wrong.keys() - {"SESSION_STORE_PATH"} | {"CLIENT_ID", "CLIENT_SECRET"}


@pytest.mark.parametrize("name", ["X-Forwarded-User", "X-Forwarded-Email", "X-Auth-Request-User", "Remote-User"])
def test_headers_by_which_others_name_the_person_may_be_ours(name: str) -> None:
    assert examine({**REQUIRED, "USERID_HEADER": name}).problems == ()


def test_the_provider_is_no_further_issuer() -> None:
    issuers = f'[{{"issuer": "{REQUIRED["OIDC_PROVIDER"]}", "audiences": ["ci"]}}]'
    (problem,) = examine({**REQUIRED, "BEARER_ISSUERS": issuers}).problems
    assert problem.startswith("BEARER_ISSUERS: ") and "AUDIENCES" in problem
