"""``authservice migrate oauth2-proxy``: nothing that was refused before is let in, and nothing is lost silently."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from authservice.cli import main
from authservice.migrate.listed import LOST, UNNEEDED
from authservice.migrate.oauth2_proxy import POLICY_PATH, migrate
from authservice.migrate.options import (
    LISTS,
    MOST_READ,
    SWITCHES,
    Options,
    OptionsError,
    from_environment,
    from_file,
    from_flags,
)
from authservice.migrate.plan import Kind, Plan
from authservice.migrate.routes import Route, read_route
from authservice.policy.read import read
from authservice.settings import examine
from authservice.settings.table import ROWS

ROOT = Path(__file__).parent.parent
KUBEFLOW = Path(__file__).parent / "data" / "migrate" / "kubeflow.cfg"
KUBEFLOW_ENVIRONMENT = {
    "OAUTH2_PROXY_CLIENT_ID": "kubeflow-oidc-authservice",
    "OAUTH2_PROXY_CLIENT_SECRET": "a-client-secret-of-32-characters",
    "OAUTH2_PROXY_COOKIE_SECRET": "7d16fee92f8d11b8940b081b3f8b8acb",
    "OAUTH2_PROXY_COOKIE_SECURE": "false",
    "OAUTH2_PROXY_SSL_INSECURE_SKIP_VERIFY": "true",
    "OAUTH2_PROXY_SKIP_JWT_BEARER_TOKENS": "true",
    "OAUTH2_PROXY_EXTRA_JWT_ISSUERS": "",
}
MINIMAL = {
    "provider": "oidc",
    "oidc_issuer_url": "https://login.example.com",
    "client_id": "app",
    "client_secret": "0123456789abcdef0123",
    "email_domains": "*",
    "upstreams": "static://200",
    "redirect_url": "https://app.example.com/oauth2/callback",
}


def plan_of(**options: str) -> Plan:
    found = Options()
    found.add(
        from_flags(shlex.join(f"--{_flag(name)}={value}" for name, value in {**MINIMAL, **options}.items()))
    )
    return migrate(found)


def _flag(name: str) -> str:
    return LISTS.get(name, name).replace("_", "-")


def values(plan: Plan) -> dict[str, str]:
    return dict(plan.environment())


def lost(plan: Plan) -> set[str]:
    return {note.options for note in plan.notes if note.kind is Kind.LOST}


def run(capsys: pytest.CaptureFixture[str], *argv: str, **environ: str) -> tuple[int, str, str]:
    status = main(["migrate", "oauth2-proxy", *argv], environ)
    printed = capsys.readouterr()
    return status, printed.out, printed.err


# --- sources ----------------------------------------------------------------------------------


def test_the_command_line_outranks_the_environment_and_that_the_file(tmp_path: Path) -> None:
    file = tmp_path / "proxy.cfg"
    file.write_text('client_id = "file"\nscope = "file"\nprompt = "file"\nemail_domains = ["a", "b"]\n')
    found = Options()
    found.add(from_file(file))
    found.add(
        from_environment({"OAUTH2_PROXY_CLIENT_ID": "env", "OAUTH2_PROXY_SCOPE": "env", "CLIENT_ID": "ours"})
    )
    found.add(from_flags("--client-id flag"))
    assert (found.text("client_id"), found.text("scope"), found.text("prompt")) == ("flag", "env", "file")
    assert found.many("email_domains") == ("a", "b")


def test_every_way_to_write_a_list() -> None:
    flags = from_flags("--email-domain=a --email-domain b,c -skip-auth-preflight --cookie-secure=false")
    assert flags == {
        "email_domains": ("a", "b", "c"),
        "skip_auth_preflight": ("true",),
        "cookie_secure": ("false",),
    }
    assert from_environment({"OAUTH2_PROXY_EMAIL_DOMAINS": "a,b,"}) == {"email_domains": ("a", "b")}
    assert from_environment({"OAUTH2_PROXY_EXTRA_JWT_ISSUERS": "", "OAUTH2_PROXY_COMPAT": "true"}) == {}


def test_a_switch_takes_no_word_and_everything_else_takes_the_next_one() -> None:
    """As oauth2-proxy's own command line: ``--cookie-secure false`` is on, and a secret may begin with a dash."""
    assert from_flags("--client-secret -abc --cookie-secure --cookie-expire 1h") == {
        "client_secret": ("-abc",),
        "cookie_secure": ("true",),
        "cookie_expire": ("1h",),
    }
    for line in ("--cookie-secure false", "--client-secret"):
        with pytest.raises(OptionsError) as error:
            from_flags(line)
        assert "-abc" not in str(error.value)


@pytest.mark.parametrize("text", ["a, b", " a", "a ,b"])
def test_blanks_in_a_list_are_an_error(text: str, tmp_path: Path) -> None:
    """oauth2-proxy compares them as they are, so that ``example.com, *`` lets not everybody pass."""
    file = tmp_path / "proxy.cfg"
    file.write_text(f"allowed_groups = {json.dumps(text.split(','))}\n")
    for read_it in (
        lambda: from_environment({"OAUTH2_PROXY_ALLOWED_GROUPS": text}),
        lambda: from_flags(shlex.join([f"--allowed-group={text}"])),
        lambda: from_file(file),
    ):
        with pytest.raises(OptionsError, match="blanks"):
            read_it()


def test_what_kubernetes_tells_of_a_service_is_no_option() -> None:
    names = ("PORT", "PORT_4180_TCP", "PORT_4180_TCP_ADDR", "SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP")
    assert from_environment({f"OAUTH2_PROXY_{name}": "10.0.0.1" for name in names}) == {}


def test_a_file_that_is_too_large_is_not_read_by_half(tmp_path: Path) -> None:
    file = tmp_path / "proxy.cfg"
    file.write_text("#" * MOST_READ + '\nallowed_groups = ["staff"]\n')
    with pytest.raises(OptionsError, match="larger"):
        from_file(file)
    emails = tmp_path / "emails"
    emails.write_text("#" * (MOST_READ - 14) + "\nann@example.com\n")  # cut off, it would say example.co
    with pytest.raises(OptionsError, match="larger"):
        plan_of(email_domains="", authenticated_emails_file=str(emails))


def test_a_file_that_the_command_line_names_has_to_be_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--flags=--config=/etc/oauth2-proxy.cfg --email-domain=*"
    status, out, err = run(capsys, flags)
    assert (status, out) == (2, "") and "FILE" in err
    file = tmp_path / "proxy.cfg"
    file.write_text('allowed_groups = ["staff"]\n')
    assert "GROUPS_ALLOWLIST=staff" in run(capsys, str(file), flags)[1]


@pytest.mark.parametrize(
    "text,seconds",
    [
        ("168h0m0s", 604800),
        ("24h", 86400),
        ("1h30m", 5400),
        ("90s", 90),
        ("1.5h", 5400),
        ("0", 0),
        ("2000000000", 2),
    ],
)
def test_durations_are_those_of_go(text: str, seconds: int) -> None:
    found = Options()
    found.add({"cookie_expire": (text,)})
    assert found.duration("cookie_expire", "").total_seconds() == seconds


@pytest.mark.parametrize(
    "content,says",
    [
        ("client_id = \n", "not TOML"),
        ("client_id: a\n", "structured configuration"),
        ("a = 1\na = 2\n", "not TOML"),
        ("[table]\nx = 1\n", "neither a text"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error(
    content: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "proxy.cfg"
    file.write_text(content)
    status, out, err = run(capsys, str(file))
    assert (status, out) == (2, "") and says in err and str(file) in err


@pytest.mark.parametrize("flags", ["--cookie-secure=maybe", "--cookie-expire=soon", "word", "--a='"])
def test_values_that_mean_nothing_are_an_error(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, f"--flags={flags}")
    assert (status, out) == (2, "") and err.startswith("authservice migrate: ")


def test_some_source_has_to_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run(capsys)
    assert left.value.code == 2
    assert "FILE, --env or --flags" in capsys.readouterr().err


# --- Kubeflow ---------------------------------------------------------------------------------


def test_kubeflows_configuration_becomes_settings_with_which_a_start_succeeds() -> None:
    found = Options()
    found.add(from_file(KUBEFLOW))
    found.add(from_environment(KUBEFLOW_ENVIRONMENT))
    found.add(from_flags("--http-address=0.0.0.0:4180"))
    plan = migrate(found)
    environ = values(plan)
    assert not examine(environ).problems
    assert {
        name: environ[name]
        for name in (
            "OIDC_PROVIDER",
            "OIDC_AUTH_URL",
            "OIDC_TOKEN_URL",
            "OIDC_JWKS_URL",
            "CLIENT_ID",
            "USERID_CLAIM",
            "GATEWAY",
            "AUTHSERVICE_URL_PREFIX",
            "REDIRECT_URL",
            "SKIP_AUTH_URLS",
            "SESSION_COOKIE_NAME",
            "SESSION_MAX_AGE",
            "SESSION_COOKIE_SECURE",
            "IDTOKEN_AUTHN_ENABLED",
            "SERVER_PORT",
            "OAUTH2_PROXY_COMPAT",
            "UPSTREAM_HEADERS",
            "UPSTREAM_ID_TOKEN_HEADER",
        )
    } == {
        "OIDC_PROVIDER": "http://dex.auth.svc.cluster.local:5556/dex",
        "OIDC_AUTH_URL": "/dex/auth",
        "OIDC_TOKEN_URL": "http://dex.auth.svc.cluster.local:5556/dex/token",
        "OIDC_JWKS_URL": "http://dex.auth.svc.cluster.local:5556/dex/keys",
        "CLIENT_ID": "kubeflow-oidc-authservice",
        "USERID_CLAIM": "email",
        "GATEWAY": "envoy",
        "AUTHSERVICE_URL_PREFIX": "/oauth2/",
        "REDIRECT_URL": "/oauth2/callback",
        "SKIP_AUTH_URLS": "/dex/",
        "SESSION_COOKIE_NAME": "oauth2_proxy_kubeflow",
        "SESSION_MAX_AGE": "86400",
        "SESSION_COOKIE_SECURE": "false",
        "IDTOKEN_AUTHN_ENABLED": "true",
        "SERVER_PORT": "4180",
        "OAUTH2_PROXY_COMPAT": "true",
        "UPSTREAM_HEADERS": "oauth2-proxy",
        "UPSTREAM_ID_TOKEN_HEADER": "Authorization",
    }
    assert not plan.policy and not plan.closed
    assert lost(plan) == {"ssl_insecure_skip_verify", "custom_sign_in_logo"}


def test_every_setting_that_is_printed_exists() -> None:
    known = {row.name for row in ROWS} | {"CLIENT_SECRET_FILE"}
    for folder in (ROOT / "authservice" / "migrate").glob("*.py"):
        named = set(re.findall(r'plan\.set\(\s*"([A-Z0-9_]+)"', folder.read_text("utf-8")))
        assert named <= known, folder


# --- who may pass -----------------------------------------------------------------------------


def policy_of(plan: Plan, tmp_path: Path) -> list[dict[str, object]]:
    """The rules, after the service's own reader has taken the file."""
    file = tmp_path / "policy.yaml"
    file.write_text(plan.policy)
    assert len(read([file])) == 1
    return [
        json.loads(line.removeprefix("  - ")) for line in plan.policy.splitlines() if line.startswith("  - ")
    ]


def test_mail_domains_become_a_policy_without_which_the_service_does_not_start(tmp_path: Path) -> None:
    plan = plan_of(email_domains="Example.com,.example.org,*.example.net")
    assert values(plan)["POLICY_PATH"] == POLICY_PATH
    assert "POLICY_ALLOWS_ANONYMOUS" not in values(plan)
    assert policy_of(plan, tmp_path) == [
        {
            "from": [{"source": {"requestPrincipals": ["*"]}}],
            "when": [
                {
                    "key": "request.auth.claims[email]",
                    "values": ["*@example.com", "*.example.org", "*.example.net"],
                }
            ],
        }
    ]


def test_a_file_of_addresses_goes_into_the_policy(tmp_path: Path) -> None:
    file = tmp_path / "emails"
    file.write_text("# people\nann@example.com\n\n bob@example.org \n")
    plan = plan_of(email_domains="", authenticated_emails_file=str(file), oidc_email_claim="a.mail")
    (rule,) = policy_of(plan, tmp_path)
    assert rule["when"] == [
        {"key": "request.auth.claims[a][mail]", "values": ["ann@example.com", "bob@example.org"]}
    ]
    assert values(plan)["USERID_CLAIM"] == "a.mail"


@pytest.mark.parametrize(
    "options",
    [
        {"email_domains": ""},
        {"email_domains": "", "authenticated_emails_file": "/does/not/exist"},
        {"allowed_roles": "admin"},
        {"github_org": "acme"},
        {"google_groups": "a@example.com"},
        {"google_group": "a@example.com"},
        {"alpha_config": "/etc/alpha.yaml"},
        {"alpha_config": "/etc/alpha.yaml", "allowed_groups": "staff"},
        {"only_on_tuesdays": "true"},
        {"allowed_groups": "*"},
        {"allowed_roles": "admin", "allowed_groups": "staff"},
    ],
)
def test_a_restriction_that_cannot_be_said_closes_the_service(options: dict[str, str]) -> None:
    plan = plan_of(**options)
    assert plan.closed and values(plan)["GROUPS_ALLOWLIST"] == ""
    assert any("nobody passes" in note.text for note in plan.notes if note.kind is Kind.LOST)


def test_groups_are_carried_over() -> None:
    plan = plan_of(allowed_groups="a,b")
    assert values(plan)["GROUPS_ALLOWLIST"] == "a,b"
    assert not lost(plan)


@pytest.mark.parametrize("provider,counts", [("oidc", "a"), ("keycloak-oidc", "a"), ("keycloak", "/b")])
def test_of_two_lists_of_groups_the_provider_looks_at_one(provider: str, counts: str) -> None:
    plan = plan_of(provider=provider, allowed_groups="a", keycloak_groups="/b")
    assert values(plan)["GROUPS_ALLOWLIST"] == counts


@pytest.mark.parametrize("domain", ["*example.com", "@example.com", "a@example.com", "exa*mple.com"])
def test_what_oauth2_proxy_takes_for_no_domain_is_none_here(domain: str) -> None:
    with pytest.raises(OptionsError, match="email_domains"):
        plan_of(email_domains=domain)


def test_a_star_in_the_file_of_addresses_is_no_pattern(tmp_path: Path) -> None:
    file = tmp_path / "emails"
    file.write_text('*@example.com\n*\nann@example.com\n"bob@example.com",staff\n')
    plan = plan_of(email_domains="", authenticated_emails_file=str(file))
    (rule,) = policy_of(plan, tmp_path)
    assert rule["when"] == [{"key": "request.auth.claims[email]", "values": ["ann@example.com"]}]
    assert "authenticated_emails_file" in lost(plan)


def test_what_is_closed_lets_nobody_pass() -> None:
    for given in ({"allowed_roles": "admin"}, {"only_on_tuesdays": "true"}):
        settings = examine(values(plan_of(**given))).settings
        assert settings is not None and settings.groups_allowlist == ()


@pytest.mark.parametrize(
    "text,routes",
    [
        ("^/dex/", [Route("", "/dex/", False)]),
        ("^/dex/.*", [Route("", "/dex/", False)]),
        ("^/dex", [Route("", "/dex", False)]),
        ("GET=^/healthz$", [Route("GET", "/healthz", True)]),
        ("get=^/a/b$", [Route("GET", "/a/b", True)]),
        (r"^/a\.b\/c$", [Route("", "/a.b/c", True)]),
        ("^/a/?$", [Route("", "/a", True), Route("", "/a/", True)]),
        *(
            (text, None)
            for text in (
                "/api/",
                "^/a.b$",
                "^/(a|b)",
                "!=^/a",
                "POST!=^/a",
                "^/",
                ".*",
                "^/a[0-9]",
                "^/a//b",
                "^/a/../b",
                r"^/a\d",
                "",
                "^",
                "^/a$|^/b",
                "^/a(",
                "^/a%2fb",
            )
        ),
    ],
)
def test_routes_that_are_plain_paths(text: str, routes: list[Route] | None) -> None:
    found = read_route(text, methods=True)
    assert (list(found) if found is not None else None) == routes


def test_folders_are_skipped_and_other_routes_become_rules_for_nobody_in_particular(tmp_path: Path) -> None:
    plan = plan_of(skip_auth_routes="^/dex/,GET=^/healthz$,^/pub,/api/", skip_auth_regex="^/old/")
    settings = values(plan)
    assert settings["SKIP_AUTH_URLS"] == "/dex/,/old/"
    assert settings["POLICY_ALLOWS_ANONYMOUS"] == "true"
    assert policy_of(plan, tmp_path) == [
        {"to": [{"operation": {"methods": ["GET"], "paths": ["/healthz"]}}]},
        {"to": [{"operation": {"paths": ["/pub*"]}}]},
        {"from": [{"source": {"requestPrincipals": ["*"]}}]},
    ]
    assert lost(plan) == {"skip_auth_routes"}
    assert not examine(settings).problems


# --- the rest ---------------------------------------------------------------------------------


def test_what_programs_may_do_without_a_browser() -> None:
    strict = values(plan_of())
    assert {strict[name] for name in strict if name.endswith("_AUTHN_ENABLED")} == {"false"}
    plan = plan_of(
        skip_jwt_bearer_tokens="true",
        oidc_extra_audiences="api",
        extra_jwt_issuers="https://ci.example.com=x,https://kubernetes.default.svc=https://kubernetes.default.svc",
    )
    settings = values(plan)
    assert settings["IDTOKEN_AUTHN_ENABLED"] == settings["ACCESS_TOKEN_AUTHN_ENABLED"] == "true"
    assert settings["KUBERNETES_AUTHN_ENABLED"] == "true"
    assert settings["AUDIENCES"] == "api,https://kubernetes.default.svc"
    assert json.loads(settings["BEARER_ISSUERS"]) == [
        {"issuer": "https://ci.example.com", "audiences": ["x"], "userid_claim": "sub"}
    ]
    assert not examine(settings).problems


@pytest.mark.parametrize("entry", ["https://ci.example.com", "https://ci.example.com=", "=x"])
def test_an_issuer_without_audience_is_an_error(entry: str) -> None:
    with pytest.raises(OptionsError, match="extra_jwt_issuers"):
        plan_of(skip_jwt_bearer_tokens="true", extra_jwt_issuers=entry)


def test_an_audience_may_have_an_equals_sign() -> None:
    plan = plan_of(skip_jwt_bearer_tokens="true", extra_jwt_issuers="https://ci.example.com=a=b")
    (issuer,) = json.loads(values(plan)["BEARER_ISSUERS"])
    assert (issuer["issuer"], issuer["audiences"]) == ("https://ci.example.com", ["a=b"])


def test_algorithms_are_carried_over() -> None:
    settings = values(plan_of(oidc_enabled_signing_algs="ES256,PS256"))
    assert settings["OIDC_SIGNING_ALGS"] == "ES256,PS256" and not examine(settings).problems
    assert examine(values(plan_of(oidc_enabled_signing_algs="HS256"))).problems


def test_the_secret_goes_before_its_file(tmp_path: Path) -> None:
    settings = values(plan_of(client_secret_file="/run/secret"))
    assert "CLIENT_SECRET" in settings and "CLIENT_SECRET_FILE" not in settings


def test_the_address_may_be_the_name_of_the_user() -> None:
    settings = values(plan_of(upstreams="http://app:80", prefer_email_to_user="true"))
    told = json.loads(settings["UPSTREAM_HEADERS"])
    assert told["X-Forwarded-User"] == "email" and "X-Forwarded-Email" not in told


def test_endpoints_count_only_without_discovery() -> None:
    urls = {"login_url": "https://x/a", "redeem_url": "https://x/t", "oidc_jwks_url": "https://x/k"}
    assert not {"OIDC_AUTH_URL", "OIDC_TOKEN_URL", "OIDC_JWKS_URL"} & set(values(plan_of(**urls)))
    settings = values(plan_of(skip_oidc_discovery="true", **urls))
    assert [settings[name] for name in ("OIDC_AUTH_URL", "OIDC_TOKEN_URL", "OIDC_JWKS_URL")] == list(
        urls.values()
    )


@pytest.mark.parametrize(
    "given,callback,prefix",
    [
        ({}, "https://app.example.com/oauth2/callback", "/oauth2/"),
        ({"redirect_url": "https://a.example.com"}, "https://a.example.com/oauth2/callback", "/oauth2/"),
        ({"redirect_url": "", "proxy_prefix": "/_o"}, "/_o/callback", "/_o/"),
    ],
)
def test_our_own_addresses(given: dict[str, str], callback: str, prefix: str) -> None:
    settings = values(plan_of(**given))
    assert (settings["REDIRECT_URL"], settings["AUTHSERVICE_URL_PREFIX"]) == (callback, prefix)
    assert not examine(settings).problems


def test_what_the_application_is_told() -> None:
    checked = values(plan_of(set_xauthrequest="true", pass_access_token="true"))
    assert checked["UPSTREAM_HEADERS"] == "oauth2-proxy"
    assert checked["UPSTREAM_ACCESS_TOKEN_HEADER"] == "X-Auth-Request-Access-Token"
    passing = plan_of(
        upstreams="http://app:80",
        oidc_email_claim="mail",
        pass_access_token="true",
        pass_authorization_header="true",
    )
    settings = values(passing)
    assert json.loads(settings["UPSTREAM_HEADERS"]) == {
        "X-Forwarded-User": "sub",
        "X-Forwarded-Email": "mail",
        "X-Forwarded-Preferred-Username": "preferred_username",
        "X-Forwarded-Groups": "groups",
    }
    assert settings["UPSTREAM_ACCESS_TOKEN_HEADER"] == "X-Forwarded-Access-Token"
    assert settings["UPSTREAM_ID_TOKEN_HEADER"] == "Authorization"
    assert "upstreams" in lost(passing)
    assert not examine(checked).problems and not examine(settings).problems
    assert not {name for name in values(plan_of()) if name.startswith("UPSTREAM_")}


def test_where_redis_is() -> None:
    one = values(
        plan_of(session_store_type="redis", redis_connection_url="redis://r:6379/2", redis_password="s3cr3t")
    )
    assert (
        one["SESSION_STORE_REDIS_ADDR"] == "redis://r:6379/2" and one["SESSION_STORE_REDIS_PWD"] == "s3cr3t"
    )
    several = values(
        plan_of(
            session_store_type="redis",
            redis_use_sentinel="true",
            redis_sentinel_master_name="main",
            redis_sentinel_connection_urls="redis://a:26379,redis://b:26379",
            redis_sentinel_password="s",
        )
    )
    assert (
        several["SESSION_STORE_REDIS_MODE"] == "sentinel" and several["SESSION_STORE_REDIS_MASTER"] == "main"
    )
    assert several["SESSION_STORE_REDIS_ADDR"] == "redis://a:26379,redis://b:26379"
    assert not examine(one).problems and not examine(several).problems


def test_a_provider_that_is_none_and_insecure_switches_are_listed() -> None:
    plan = plan_of(provider="github", oidc_issuer_url="", ssl_insecure_skip_verify="true", cookie_expire="0")
    assert {"provider", "ssl_insecure_skip_verify", "cookie_expire"} <= lost(plan)
    assert "OIDC_PROVIDER" not in values(plan) and "SESSION_MAX_AGE" not in values(plan)


def test_every_option_is_accounted_for() -> None:
    """What no part asked about is in one of the two lists, or is said to be unknown."""
    plan = plan_of(cookie_samesit="lax", auth_logging="true", banner="-", footer="hello")
    told = {note.options: note.kind for note in plan.notes}
    assert told["cookie_samesit"] is Kind.LOST and told["footer"] is Kind.LOST
    assert told["auth_logging"] is Kind.UNNEEDED and told["banner"] is Kind.UNNEEDED
    assert not set(LOST) & set(UNNEEDED)


OPTIONS = """
acr-values allow-query-semicolons allowed-groups allowed-roles alpha-config api-routes approval-prompt
auth-logging auth-logging-format auth-request-response-mode authenticated-emails-file azure-graph-group-field
azure-tenant backend-logout-url banner basic-auth-password bearer-token-login-fallback bitbucket-repository
bitbucket-team client-id client-secret client-secret-file code-challenge-method config-test
convert-config-to-alpha cookie-csrf-expire cookie-csrf-per-request cookie-csrf-per-request-limit cookie-domains
cookie-expire cookie-httponly cookie-name cookie-path cookie-refresh cookie-samesite cookie-secret
cookie-secret-file cookie-secure custom-sign-in-logo custom-templates-dir display-htpasswd-form email-domains
encode-state entra-id-allowed-tenants entra-id-federated-token-auth errors-to-info-log exclude-logging-path
exclude-logging-paths extra-jwt-issuers flush-interval footer force-code-challenge-method force-https
force-json-errors gcp-healthchecks github-org github-repo github-team github-token github-users gitlab-groups
gitlab-projects google-admin-api-user-scope google-admin-email google-group google-groups
google-service-account-json google-target-principal google-use-application-default-credentials
google-use-organization-id htpasswd-file htpasswd-user-groups http-address https-address
insecure-oidc-allow-unverified-email insecure-oidc-skip-issuer-verification insecure-oidc-skip-nonce jwt-key
jwt-key-file keycloak-groups logging-compress logging-filename logging-local-time logging-max-age
logging-max-backups logging-max-size login-url metrics-address metrics-secure-address metrics-tls-cert-file
metrics-tls-key-file oidc-audience-claims oidc-email-claim oidc-enabled-signing-algs oidc-extra-audiences
oidc-groups-claim oidc-issuer-url oidc-jwks-url oidc-public-key-files pass-access-token
pass-authorization-header pass-basic-auth pass-host-header pass-user-headers ping-path ping-user-agent
prefer-email-to-user profile-url prompt provider provider-ca-files provider-display-name proxy-prefix
proxy-websockets pubjwk-url ready-path real-client-ip-header redeem-url redirect-url redis-ca-path
redis-cluster-connection-urls redis-connection-idle-timeout redis-connection-url redis-insecure-skip-tls-verify
redis-password redis-sentinel-connection-urls redis-sentinel-master-name redis-sentinel-password
redis-use-cluster redis-use-sentinel redis-username relative-redirect-url request-id-header request-logging
request-logging-format resource reverse-proxy scope session-cookie-minimal session-store-type
set-authorization-header set-basic-auth set-xauthrequest show-debug-on-error signature-key silence-ping-logging
skip-auth-preflight skip-auth-regex skip-auth-routes skip-auth-strip-headers skip-claims-from-profile-url
skip-jwt-bearer-tokens skip-oidc-discovery skip-provider-button ssl-insecure-skip-verify
ssl-upstream-insecure-skip-verify standard-logging standard-logging-format tls-cert-file tls-cipher-suites
tls-key-file tls-min-version trusted-ips trusted-proxy-ips upstream-timeout upstreams use-system-trust-store
user-id-claim validate-url version whitelist-domains
""".replace("-", "_").split()
"""All of oauth2-proxy's options, by their names in its file."""

_OF_A_KIND = {
    "authenticated_emails_file": "/does/not/exist", "http_address": "127.0.0.1:1", "metrics_address": ":2",
    "extra_jwt_issuers": "https://ci.example.com=x", "session_store_type": "redis", "provider": "oidc",
    "cookie_expire": "1h", "cookie_refresh": "1h", "skip_auth_routes": "^/a$", "upstreams": "http://app:80",
}  # fmt: skip


@pytest.mark.parametrize("on", ["true", "false"])
@pytest.mark.parametrize(
    "beside",
    [
        {},
        {"upstreams": "http://app:80", "set_xauthrequest": "true"},
        {"session_store_type": "redis"},
        {"session_store_type": "redis", "redis_use_sentinel": "true"},
        {"session_store_type": "redis", "redis_use_cluster": "true"},
        {"skip_oidc_discovery": "true", "skip_jwt_bearer_tokens": "true"},
    ],
)
def test_no_option_is_dropped(on: str, beside: dict[str, str]) -> None:
    """Each becomes a setting, or is told of; alone, and with all others."""

    def seen(found: dict[str, str]) -> tuple[set[str], set[str]]:
        plan = plan_of(**{**found, **beside})
        strange = {note.options for note in plan.notes if "Is it spelt right?" in note.text}
        told = {setting.origin for setting in plan.settings.values()} | {note.options for note in plan.notes}
        return strange, told

    every = {name: _OF_A_KIND.get(name, on if name in SWITCHES else "x") for name in OPTIONS}
    assert not seen(every)[0]
    for name, value in every.items():
        strange, told = seen({name: value})
        assert not strange, name
        if name not in SWITCHES:  # one that is as it is with us needs no word
            assert any(name in origin for origin in told) or name in _SILENT, name


_SILENT = {"keycloak_groups", "user_id_claim", "cookie_secret_file", "code_challenge_method"}
"""Told of by the name of another option; the last one as the documents say."""


# --- what is printed --------------------------------------------------------------------------


def test_a_shell_reads_what_is_printed_as_it_is_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "proxy.cfg"
    quoted = {**MINIMAL, "client_secret": 'it\'s $HOME `x` "y"', "client_id": "a b\nEVIL=1"}
    file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in quoted.items()))
    status, out, _ = run(capsys, str(file), "--secrets")
    assert status == 0, out
    (tmp_path / "env").write_text(out)
    shell = f"set -a; . {tmp_path}/env; env -0"
    read_back = subprocess.run(["sh", "-c", shell], env={}, capture_output=True, check=True, text=True).stdout
    seen = dict(line.partition("=")[::2] for line in read_back.split("\0") if line)
    found = Options()
    found.add(from_file(file))
    assert values(migrate(found)).items() <= seen.items()
    assert "EVIL" not in seen


def test_secrets_are_printed_only_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    flags = shlex.join(
        [
            *(f"--{_flag(name)}={value}" for name, value in MINIMAL.items()),
            "--session-store-type=redis",
            "--redis-connection-url=redis://u:hunter2@r:6379",
            "--cookie-secret=topsecret",
        ]
    )
    for form in ("env", "kubernetes"):
        out = run(capsys, f"--flags={flags}", f"--format={form}")[1]
        assert "hunter2" not in out and MINIMAL["client_secret"] not in out and "topsecret" not in out
        assert "CLIENT_SECRET" in out and "SESSION_STORE_REDIS_ADDR" in out
        shown = run(capsys, f"--flags={flags}", f"--format={form}", "--secrets")[1]
        assert "hunter2" in shown and MINIMAL["client_secret"] in shown


def test_the_policy_is_written_once_and_never_over_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "policy.yaml"
    flags = shlex.join(
        f"--{_flag(name)}={value}" for name, value in {**MINIMAL, "email_domains": "example.com"}.items()
    )
    for _ in range(2):
        status, out, _ = run(capsys, f"--flags={flags}", f"--policy={file}")
        assert status == 0 and f"POLICY_PATH={file}" in out and "AuthorizationPolicy" not in out
    assert len(read([file])) == 1
    file.write_text("mine")
    status, out, err = run(capsys, f"--flags={flags}", f"--policy={file}")
    assert (status, out) == (2, "") and "says something else" in err and file.read_text() == "mine"


def test_for_kubernetes_everything_is_a_resource(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    flags = shlex.join(
        f"--{_flag(name)}={value}" for name, value in {**MINIMAL, "email_domains": "example.com"}.items()
    )
    status, out, _ = run(capsys, f"--flags={flags}", "--format=kubernetes", "--secrets")
    assert status == 0
    config, secret, policies = yaml.safe_load_all(out)
    assert config["data"]["OIDC_PROVIDER"] == MINIMAL["oidc_issuer_url"]
    assert secret["stringData"] == {"CLIENT_SECRET": MINIMAL["client_secret"]}
    hidden = list(yaml.safe_load_all(run(capsys, f"--flags={flags}", "--format=kubernetes")[1]))[1]
    assert hidden["stringData"] == {}  # a stand-in would be a secret that everybody knows
    ((name, text),) = policies["data"].items()
    assert config["data"]["POLICY_PATH"].endswith("/" + name)
    (tmp_path / name).write_text(text)
    assert len(read([tmp_path / name])) == 1


def test_for_kubernetes_every_character_stays_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    odd = "a\x85b\u2028c\x7fd\ufeffe\N{GRINNING FACE}"
    flags = shlex.join(f"--{_flag(name)}={value}" for name, value in {**MINIMAL, "client_id": odd}.items())
    out = run(capsys, f"--flags={flags}", "--format=kubernetes")[1]
    assert next(yaml.safe_load_all(out))["data"]["CLIENT_ID"] == odd


def test_no_name_of_an_option_becomes_a_line_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "proxy.cfg"
    file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in MINIMAL.items()) + '"x\\nevil=1" = 1\n')
    for form in ("env", "kubernetes"):
        out = run(capsys, str(file), f"--format={form}")[1]
        assert "evil" in out and "\nevil" not in out


def test_what_a_start_would_complain_of_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--flags=--provider=oidc --email-domain=*")
    assert status == 1
    assert "OIDC_PROVIDER: not set." in out and "CLIENT_ID: not set." in out


def test_texts_from_elsewhere_move_no_cursor() -> None:
    with pytest.raises(OptionsError):
        from_flags("'\x1b[2J'")


# --- the documents ----------------------------------------------------------------------------

DOCUMENTS = sorted((ROOT / "docs" / "migrate").glob("*.md"))


def test_there_is_a_document_for_each_way_here_and_the_readme_leads_to_it() -> None:
    assert [path.stem for path in DOCUMENTS] == ["envoyfilter", "oauth2-proxy", "oidc-authservice"]
    readme = (ROOT / "README.md").read_text("utf-8")
    for path in DOCUMENTS:
        assert f"(docs/migrate/{path.name})" in readme, path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_documents_name_settings_and_files_that_exist(document: Path) -> None:
    text = document.read_text("utf-8")
    known = {row.name for row in ROWS} | {f"{row.name}_FILE" for row in ROWS if row.secret}
    former = {"STORE_PATH", "SKIP_AUTH_URI", "OIDC_STATE_STORE_PATH", "USERID_TOKEN_HEADER"}
    named = {
        name
        for name in re.findall(r"`([A-Z][A-Z0-9]+(?:_[A-Z0-9]+)+)(?:=[^`]*)?`", text)
        if not name.startswith("OAUTH2_PROXY_")
    }
    assert named <= known | former
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (document.parent / link).exists(), link


def test_the_table_of_options_names_options_only() -> None:
    text = (ROOT / "docs" / "migrate" / "oauth2-proxy.md").read_text("utf-8")
    text = text.partition("## What the options become")[2].partition("\n## ")[0]
    table = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    named = {name for cell in table for name in re.findall(r"`([a-z_0-9]+)`", cell) if not name.endswith("_")}
    found = Options()
    found.add({name: ("",) for name in named})
    found.add({"email_domains": ("*",), "session_store_type": ("redis",), "cookie_expire": ("24h",)})
    strange = {note.options for note in migrate(found).notes if "Is it spelt right?" in note.text}
    assert len(named) > 30 and not strange


def test_the_commands_of_the_documents_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "oauth2_proxy.cfg").write_bytes(KUBEFLOW.read_bytes())
    lines = "\n".join(path.read_text("utf-8") for path in DOCUMENTS).splitlines()
    commands = [line.partition(" > ")[0] for line in lines if line.startswith("authservice migrate ")]
    assert len(commands) >= 2
    for command in commands:
        assert main(shlex.split(command)[1:], {}) == 1, command
        assert "OIDC_PROVIDER" in capsys.readouterr().out
