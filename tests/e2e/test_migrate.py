"""Kubeflow's oauth2-proxy configuration, migrated by the command: same application, same identity headers.

Real Envoy holds the rules that Kubeflow's mesh configuration and policies come to: the check as
`envoyExtAuthzHttp` with its lists of headers, the provider and ``/oauth2/`` unchecked, both from one port. Once
with AuthService's own identity headers in the list, and once to the letter: there the check is asked only without
an ``Authorization`` header, and Envoy verifies the ID token that the check answers with and takes the headers out
of it.
"""

from __future__ import annotations

import base64
import getpass
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.person import NAVIGATION, Person
from tests.e2e.processes import Program, listens
from tests.e2e.recorder import Recorder, Seen
from tests.e2e.service import CHECKOUT, Service
from tests.e2e.wire import Answer, Headers, request
from tests.ports import free_port
from tests.programs import require
from tests.provider import FakeProvider, public_jwk, with_bad_signature

pytestmark = [pytest.mark.external, pytest.mark.xdist_group("e2e-migrate")]

CONFIGURATION = CHECKOUT / "tests" / "data" / "migrate" / "kubeflow.cfg"
DEX = "http://dex.auth.svc.cluster.local:5556"
ENVIRONMENT = {
    "OAUTH2_PROXY_CLIENT_ID": "kubeflow-oidc-authservice",
    "OAUTH2_PROXY_CLIENT_SECRET": "a-client-secret-of-32-characters",
    "OAUTH2_PROXY_COOKIE_SECRET": "7d16fee92f8d11b8940b081b3f8b8acb",
    "OAUTH2_PROXY_COOKIE_SECURE": "false",
    "OAUTH2_PROXY_SKIP_JWT_BEARER_TOKENS": "true",
    "OAUTH2_PROXY_EXTRA_JWT_ISSUERS": "",
}
PERSON = {"email": "ann@example.com", "groups": ["staff", "ops"], "preferred_username": "ann"}

SENT = ("authorization", "cookie")
TAKEN_OVER = (
    "authorization", "path", "x-auth-request-email", "x-auth-request-groups", "x-auth-request-user",
)  # fmt: skip
DOWNSTREAM = ("content-type", "set-cookie")
"""Kubeflow's ``includeRequestHeadersInCheck``, ``headersToUpstreamOnAllow``, ``headersToDownstreamOnDeny``."""

OURS = ("kubeflow-userid", "kubeflow-groups", "auth-method")
FILTERS = "envoy.extensions.filters.http"


@dataclass
class Kubeflow:
    """One deployment: everything that answers below ``url``."""

    url: str
    port: int
    service: Service
    application: Recorder
    provider: FakeProvider
    to_the_letter: bool

    def ask(self, target: str, headers: Headers, method: str = "GET") -> Answer:
        return request(self.port, method, target, host=urlsplit(self.url).netloc, headers=headers)

    def person(self) -> Person:
        return Person("ann", {urlsplit(self.url).netloc: self.port})

    def logged_in(self) -> Person:
        person = self.person()
        done = person.visit(f"{self.url}/pipeline/?ns=1")
        assert done.answer.status == 200 and done.url == f"{self.url}/pipeline/?ns=1", done
        return person

    def seen(self, person: Person, *extra: tuple[str, str]) -> Seen:
        """What reaches the application of a page that this person opens."""
        before = len(self.application.seen)
        visit = person.send(f"{self.url}/pipeline/", headers=[*NAVIGATION, *extra])
        assert visit.answer.status == 200 and len(self.application.seen) == before + 1, visit
        return self.application.seen[-1]

    def groups_in(self, seen: Seen) -> list[str]:
        """Envoy tells a list as base64 of its JSON, AuthService with commas."""
        (value,) = seen.values("kubeflow-groups")
        if not self.to_the_letter:
            return value.split(",")
        padded = value + "=" * (-len(value) % 4)
        return list(json.loads(base64.b64decode(padded)))


def migrated(folder: Path, provider: FakeProvider, port: int) -> dict[str, str]:
    """The settings that the command prints, read by a shell."""
    text = CONFIGURATION.read_text("utf-8")
    for written, there in (
        (DEX, provider.origin),
        ("/dex/auth", "/dex/authorize"),
        ("/dex/keys", "/dex/jwks"),
    ):
        assert written in text
        text = text.replace(written, there)
    (folder / "oauth2_proxy.cfg").write_text(text)
    return printed(folder, ["oauth2_proxy.cfg", "--env", f"--flags=--http-address=127.0.0.1:{port}"])


def printed(folder: Path, arguments: Sequence[str]) -> dict[str, str]:
    command = [sys.executable, "-m", "authservice.cli", "migrate", "oauth2-proxy", "--secrets", *arguments]
    env = {**ENVIRONMENT, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 1), done.stderr
    (folder / "authservice.env").write_text(done.stdout)
    shell = ["sh", "-c", "set -a; . ./authservice.env; env -0"]
    read = subprocess.run(shell, cwd=folder, env={}, capture_output=True, text=True, check=True).stdout
    found = dict(line.partition("=")[::2] for line in read.split("\0") if line)
    return {name: value for name, value in found.items() if name not in ("PWD", "_", "SHLVL")}


# --- Envoy --------------------------------------------------------------------------------------


def patterns(names: Sequence[str]) -> Mapping[str, Any]:
    return {"patterns": [{"exact": name, "ignore_case": True} for name in names]}


def ext_authz(*, sent: Sequence[str], taken_over: Sequence[str]) -> Mapping[str, Any]:
    return {
        "name": "envoy.filters.http.ext_authz",
        "typed_config": {
            "@type": f"type.googleapis.com/{FILTERS}.ext_authz.v3.ExtAuthz",
            "allowed_headers": patterns(sent),
            "http_service": {
                "server_uri": {"uri": "http://oauth2-proxy", "cluster": "service", "timeout": "5s"},
                "authorization_response": {
                    "allowed_upstream_headers": patterns(taken_over),
                    "allowed_client_headers": patterns(DOWNSTREAM),
                },
            },
        },
    }


def request_authentication(provider: FakeProvider) -> list[Mapping[str, Any]]:
    """RequestAuthentication for Dex, and the policy that denies requests without a principal."""
    keys = {"keys": [public_jwk(provider.signing_key, kid=provider.kid, use="sig", alg="RS256")]}
    dex = {
        "issuer": provider.issuer,
        "forward": True,
        "payload_in_metadata": "payload",
        "local_jwks": {"inline_string": json.dumps(keys)},
        "claim_to_headers": [
            {"header_name": "kubeflow-userid", "claim_name": "email"},
            {"header_name": "kubeflow-groups", "claim_name": "groups"},
        ],
    }
    somebody = {
        "filter": "envoy.filters.http.jwt_authn",
        "path": [{"key": "payload"}, {"key": "iss"}],
        "value": {"string_match": {"exact": provider.issuer}},
    }
    elsewhere = [{"not_rule": {"url_path": {"path": {"prefix": path}}}} for path in ("/dex/", "/oauth2/")]
    without = {
        "permissions": [{"and_rules": {"rules": elsewhere}}],
        "principals": [{"not_id": {"metadata": somebody}}],
    }
    either = {"requires_any": {"requirements": [{"provider_name": "dex"}, {"allow_missing": {}}]}}
    return [
        {
            "name": "envoy.filters.http.jwt_authn",
            "typed_config": {
                "@type": f"type.googleapis.com/{FILTERS}.jwt_authn.v3.JwtAuthentication",
                "providers": {"dex": dex},
                "rules": [{"match": {"prefix": "/"}, "requires": either}],
            },
        },
        {
            "name": "envoy.filters.http.rbac",
            "typed_config": {
                "@type": f"type.googleapis.com/{FILTERS}.rbac.v3.RBAC",
                "rules": {"action": "DENY", "policies": {"require-jwt": without}},
            },
        },
    ]


UNCHECKED: Mapping[str, Any] = {
    "typed_per_filter_config": {
        "envoy.filters.http.ext_authz": {
            "@type": f"type.googleapis.com/{FILTERS}.ext_authz.v3.ExtAuthzPerRoute",
            "disabled": True,
        }
    }
}


def envoy(
    port: int, clusters: Mapping[str, int], filters: Sequence[Mapping[str, Any]], bearers_unchecked: bool
) -> str:
    routes: list[Mapping[str, Any]] = [
        {"match": {"prefix": "/dex/"}, "route": {"cluster": "provider"}, **UNCHECKED},
        {"match": {"prefix": "/oauth2/"}, "route": {"cluster": "service"}, **UNCHECKED},
    ]
    if bearers_unchecked:
        with_token = {"prefix": "/", "headers": [{"name": "authorization", "present_match": True}]}
        routes.append({"match": with_token, "route": {"cluster": "application"}, **UNCHECKED})
    routes.append({"match": {"prefix": "/"}, "route": {"cluster": "application"}})
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"type.googleapis.com/{FILTERS}.router.v3.Router"},
    }
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "people",
        "use_remote_address": True,
        "normalize_path": True,
        "merge_slashes": True,
        "http_filters": [*filters, router],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    listener = {"name": "people", "address": address(port), "filter_chains": [chain]}
    resources = {"listeners": [listener], "clusters": [cluster(*named) for named in clusters.items()]}
    return json.dumps({"static_resources": resources})


def address(port: int) -> Mapping[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def cluster(name: str, port: int) -> Mapping[str, Any]:
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
    }


# --- the deployments ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    names = {"client_id": "OAUTH2_PROXY_CLIENT_ID", "client_secret": "OAUTH2_PROXY_CLIENT_SECRET"}
    with FakeProvider(path="/dex", **{name: ENVIRONMENT[known] for name, known in names.items()}) as running:
        running.claims = {**running.claims, **PERSON}
        running.id_token_claims = {"email_verified": True, **PERSON}
        yield running


@pytest.fixture(scope="module", params=["own headers", "to the letter"])
def kubeflow(
    request: pytest.FixtureRequest, provider: FakeProvider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Kubeflow]:
    program, folder = require("envoy"), tmp_path_factory.mktemp("kubeflow")
    to_the_letter = request.param == "to the letter"
    port, judge_port = free_port(), free_port()
    with ExitStack() as ending:
        application = Recorder()
        ending.callback(application.stop)
        service = Service(folder, migrated(folder, provider, judge_port))
        assert service.judge_port == judge_port
        ending.callback(service.stop)
        service.start()
        checked = (
            [ext_authz(sent=SENT, taken_over=TAKEN_OVER), *request_authentication(provider)]
            if to_the_letter
            else [ext_authz(sent=(*SENT, "accept", "sec-fetch-mode"), taken_over=(*TAKEN_OVER, *OURS))]
        )
        of_provider = urlsplit(provider.origin).port
        assert of_provider
        clusters = {"service": judge_port, "provider": of_provider, "application": application.port}
        config = folder / "envoy.json"
        config.write_text(envoy(port, clusters, checked, bearers_unchecked=to_the_letter))
        command = [program, "-c", str(config), "--concurrency", "1", "--use-dynamic-base-id", "-l", "warn"]
        gateway = Program("envoy", command, folder / "envoy.log")
        ending.callback(gateway.stop)
        gateway.start(lambda: listens(port))
        url = f"http://kubeflow.localhost:{port}"
        yield Kubeflow(url, port, service, application, provider, to_the_letter)


# --- what holds ---------------------------------------------------------------------------------


def test_a_login_leads_to_the_page_and_the_application_knows_the_person(kubeflow: Kubeflow) -> None:
    person = kubeflow.logged_in()
    places = [urlsplit(visit.url).path for visit in person.history]
    assert places == ["/pipeline/", "/dex/authorize", "/oauth2/callback", "/pipeline/"]
    seen = kubeflow.seen(person)
    assert seen.values("kubeflow-userid") == [PERSON["email"]]
    assert kubeflow.groups_in(seen) == PERSON["groups"]


def test_the_names_of_oauth2_proxy_are_there_as_well(kubeflow: Kubeflow) -> None:
    seen = kubeflow.seen(kubeflow.logged_in())
    assert seen.values("x-auth-request-email") == [PERSON["email"]]
    assert seen.values("x-auth-request-user") == [kubeflow.provider.claims["sub"]]
    assert seen.values("x-auth-request-groups") == [",".join(PERSON["groups"])]


def test_nobody_makes_up_who_they_are(kubeflow: Kubeflow) -> None:
    forged = [
        ("kubeflow-userid", "root@example.com"),
        ("kubeflow-groups", "admins"),
        ("x-auth-request-user", "root"),
    ]
    before = len(kubeflow.application.seen)
    assert kubeflow.ask("/pipeline/", [*NAVIGATION, *forged]).status == 302
    assert len(kubeflow.application.seen) == before
    seen = kubeflow.seen(kubeflow.logged_in(), *forged)
    assert seen.values("kubeflow-userid") == [PERSON["email"]]
    assert kubeflow.groups_in(seen) == PERSON["groups"]
    assert seen.values("x-auth-request-user") == [kubeflow.provider.claims["sub"]]


def test_a_programs_token_passes_and_a_bad_one_does_not(kubeflow: Kubeflow) -> None:
    provider = kubeflow.provider
    token = provider.sign(
        {**provider.good_claims("ci", None), "email": "ci@example.com", "groups": ["robots"]},
        {"kid": provider.kid},
    )
    before = len(kubeflow.application.seen)
    assert kubeflow.ask("/apis/v1", [("Authorization", f"Bearer {token}")]).status == 200
    seen = kubeflow.application.seen[-1]
    assert seen.values("kubeflow-userid") == ["ci@example.com"] and kubeflow.groups_in(seen) == ["robots"]
    assert kubeflow.ask("/apis/v1", [("Authorization", f"Bearer {with_bad_signature(token)}")]).status == 401
    assert len(kubeflow.application.seen) == before + 1


def test_dexs_own_pages_need_no_login(kubeflow: Kubeflow) -> None:
    assert kubeflow.ask("/dex/.well-known/openid-configuration", []).status == 200


def test_who_signs_out_is_logged_out(kubeflow: Kubeflow) -> None:
    person = kubeflow.logged_in()
    asked = [*(line for line in NAVIGATION if line[0] != "Sec-Fetch-Site"), ("Sec-Fetch-Site", "same-origin")]
    assert person.send(f"{kubeflow.url}/oauth2/sign_out?rd=%2Fbye", headers=asked).location.endswith("/bye")
    assert person.send(f"{kubeflow.url}/pipeline/").answer.status == 302


def test_who_asks_oauth2_proxys_endpoint_gets_its_answer(kubeflow: Kubeflow) -> None:
    person = kubeflow.logged_in()
    assert person.send(f"{kubeflow.url}/oauth2/auth").answer.status == 202
    assert person.send(f"{kubeflow.url}/oauth2/auth?allowed_groups=nobody").answer.status == 403
    assert kubeflow.person().send(f"{kubeflow.url}/oauth2/auth").answer.status == 401


# --- nginx, as oauth2-proxy's own documents have it -----------------------------------------------

NGINX = """
daemon off; worker_processes 1; {user} pid {folder}/nginx.pid; error_log stderr;
events {{}}
http {{
  access_log off;
  {scratch}
  server {{
    listen 127.0.0.1:{port};
    location /oauth2/ {{
      proxy_pass http://127.0.0.1:{judge};
      proxy_set_header Host $http_host;
      proxy_set_header X-Auth-Request-Redirect $request_uri;
    }}
    location = /oauth2/auth {{
      proxy_pass http://127.0.0.1:{judge};
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-Uri $request_uri;
      proxy_set_header Content-Length "";
      proxy_pass_request_body off;
    }}
    location = /staff-only {{
      internal;
      proxy_pass http://127.0.0.1:{judge}/oauth2/auth?allowed_groups=staff,admins;
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-Uri $request_uri;
      proxy_set_header Content-Length "";
      proxy_pass_request_body off;
    }}
    location /staff/ {{
      auth_request /staff-only;
      error_page 401 = /oauth2/sign_in;
      auth_request_set $user $upstream_http_x_auth_request_user;
      proxy_set_header X-User $user;
      proxy_pass http://127.0.0.1:{application};
    }}
    location / {{
      auth_request /oauth2/auth;
      error_page 401 = /oauth2/sign_in;
      auth_request_set $email $upstream_http_x_auth_request_email;
      proxy_set_header X-Email $email;
      proxy_pass http://127.0.0.1:{application};
    }}
  }}
}}
"""


def test_nginx_goes_on_asking_as_it_did(provider: FakeProvider, tmp_path: Path) -> None:
    program, port, judge_port = require("nginx"), free_port(), free_port()
    url = f"http://app.localhost:{port}"
    flags = [
        "--provider=oidc",
        f"--oidc-issuer-url={provider.issuer}",
        "--email-domain=*",
        "--set-xauthrequest",
    ]
    flags += [f"--http-address=127.0.0.1:{judge_port}", f"--redirect-url={url}/oauth2/callback"]
    flags += [
        f"--client-id={provider.client_id}",
        f"--client-secret={provider.client_secret}",
        "--cookie-secure=false",
    ]
    with ExitStack() as ending:
        application = Recorder()
        ending.callback(application.stop)
        service = Service(tmp_path, printed(tmp_path, [f"--flags={' '.join(flags)}"]))
        ending.callback(service.stop)
        service.start()
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        config = tmp_path / "nginx.conf"
        config.write_text(
            NGINX.format(
                folder=tmp_path,
                port=port,
                judge=judge_port,
                application=application.port,
                user=f"user {getpass.getuser()};" if os.getuid() == 0 else "",
                scratch="".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in kinds),
            )
        )
        gateway = Program(
            "nginx", [program, "-p", str(tmp_path), "-e", "stderr", "-c", str(config)], tmp_path / "log"
        )
        ending.callback(gateway.stop)
        gateway.start(lambda: listens(port))
        ann = Person("ann", {urlsplit(url).netloc: port})
        done = ann.visit(f"{url}/page?x=1")
        assert done.answer.status == 200 and done.url == f"{url}/page?x=1"
        assert application.seen[-1].values("x-email") == [PERSON["email"]]
        assert ann.send(f"{url}/staff/", headers=[*NAVIGATION, ("X-User", "root")]).answer.status == 200
        assert application.seen[-1].values("x-user") == [provider.claims["sub"]]
        provider.claims["groups"] = ["guests"]
        guest = Person("guest", {urlsplit(url).netloc: port})
        assert guest.visit(f"{url}/page").answer.status == 200
        for target in ("/staff/", "/staff/?allowed_groups=guests"):
            assert guest.send(f"{url}{target}").answer.status == 403
        provider.claims["groups"] = PERSON["groups"]
