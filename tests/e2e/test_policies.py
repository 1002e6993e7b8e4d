"""A policy that was written for a mesh, in front of an application that is in none: same file, same verdicts.

The policy is one by hand for a realm, with the issuer's address replaced and nothing else. Asked through real
Envoy, through real nginx, and directly, by programs with tokens and by people with a cookie session.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e import gateways
from tests.e2e.person import NAVIGATION, Person
from tests.e2e.recorder import Recorder
from tests.e2e.service import Service
from tests.e2e.wire import Answer, Headers, request
from tests.ports import free_port
from tests.provider import FakeProvider, rsa_key, with_bad_signature

pytestmark = [pytest.mark.external, pytest.mark.xdist_group("e2e-policies")]

AUTHORIZATION = """
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: {name: backend-authz, namespace: default}
spec:
  selector: {matchLabels: {app: backend}}
  action: ALLOW
  rules:
  - to:
    - operation: {methods: ["GET"]}
    when:
    - {key: "request.auth.claims[iss]", values: ["http://keycloak.keycloak.svc.cluster.local/realms/myrealm"]}
    - {key: "request.auth.claims[aud]", values: ["my-backend-client"]}
    - {key: "request.auth.claims[email]", values: ["user@example.com"]}
"""
AUTHENTICATION = """
apiVersion: security.istio.io/v1beta1
kind: RequestAuthentication
metadata: {name: backend-tokens, namespace: default}
spec:
  selector: {matchLabels: {app: backend}}
  jwtRules:
  - issuer: "http://keycloak.keycloak.svc.cluster.local/realms/myrealm"
"""
WRITTEN_ISSUER = "http://keycloak.keycloak.svc.cluster.local/realms/myrealm"
CLIENT = "my-backend-client"
USER = "user@example.com"


@dataclass
class Deployment:
    """A gateway, a service and an application; the provider is everybody's."""

    kind: str
    port: int
    service: Service
    application: Recorder
    provider: FakeProvider

    @property
    def url(self) -> str:
        return f"http://app.localhost:{self.port}"

    def logged_in(self, email: str = USER) -> Person:
        """Somebody with this address who went through the login."""
        self.provider.claims = {**self.provider.claims, "sub": email, "email": email}
        person = Person(email, {urlsplit(self.url).netloc: self.port})
        done = person.visit(f"{self.url}/")
        assert any("/oidc/callback" in visit.url for visit in person.history), done
        assert person.cookies(self.url), done
        return person


@dataclass
class Door:
    """One way in: through the gateway, or to the service as the gateway would ask it."""

    deployment: Deployment
    direct: bool

    def ask(self, method: str, headers: Headers) -> Answer:
        deployment = self.deployment
        host = urlsplit(deployment.url).netloc
        port = deployment.service.judge_port if self.direct else deployment.port
        return request(port, method, "/api/things?id=7", host=host, headers=headers)

    def with_token(self, token: str, method: str = "GET") -> Answer:
        return self.ask(method, [("Authorization", f"Bearer {token}"), ("Accept", "application/json")])

    def as_person(self, person: Person, method: str = "GET") -> Answer:
        cookies = person.cookies(self.deployment.url)
        line = "; ".join(f"{name}={value}" for name, value in cookies.items())
        return self.ask(method, [*NAVIGATION, ("Cookie", line)])


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider(client_id=CLIENT) as running:
        yield running


@pytest.fixture(scope="module")
def deployments(
    provider: FakeProvider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Deployment]]:
    """One deployment behind Envoy and one behind nginx."""
    with ExitStack() as ending:
        yield {
            kind: started(kind, provider, tmp_path_factory.mktemp(kind), ending)
            for kind in ("envoy", "nginx")
        }


def started(kind: str, provider: FakeProvider, folder: Path, ending: ExitStack) -> Deployment:
    gateways.require_program(kind)
    policies = folder / "policies"
    policies.mkdir()
    for name, text in (("authorization.yaml", AUTHORIZATION), ("authentication.yaml", AUTHENTICATION)):
        assert WRITTEN_ISSUER in text
        (policies / name).write_text(text.replace(WRITTEN_ISSUER, provider.issuer))
    port = free_port()
    workloads: dict[str, Any] = {"app.localhost": {"namespace": "default", "labels": {"app": "backend"}}}
    service = Service(
        folder,
        {
            "GATEWAY": kind,
            "OIDC_PROVIDER": provider.issuer,
            "CLIENT_ID": provider.client_id,
            "CLIENT_SECRET": provider.client_secret,
            "AUTHSERVICE_URL_PREFIX": f"http://app.localhost:{port}/authservice/",
            "TRUSTED_PROXIES": "127.0.0.1",
            "POLICY_PATH": str(policies),
            "POLICY_WORKLOADS": json.dumps(workloads),
        },
    )
    application = Recorder()
    ending.callback(application.stop)
    ending.callback(service.stop)
    service.start()
    ports = gateways.Ports(port, service.judge_port, service.site_port, application.port)
    gateway = gateways.start(kind, folder, ports)
    ending.callback(gateway.stop)
    return Deployment(kind, port, service, application, provider)


@pytest.fixture(params=["envoy", "nginx", "directly"])
def door(request: pytest.FixtureRequest, deployments: Mapping[str, Deployment]) -> Door:
    direct = request.param == "directly"
    return Door(deployments["envoy" if direct else request.param], direct)


def test_a_token_with_those_claims_may_get(door: Door, provider: FakeProvider) -> None:
    token = provider.access_token(CLIENT, email=USER)
    assert door.with_token(token).status == 200


@pytest.mark.parametrize(
    "method,audience,email",
    [
        ("POST", CLIENT, USER),
        ("HEAD", CLIENT, USER),
        ("GET", "another-client", USER),
        ("GET", CLIENT, "other@example.com"),
    ],
)
def test_another_method_audience_or_address_is_forbidden(
    door: Door, provider: FakeProvider, method: str, audience: str, email: str
) -> None:
    assert door.with_token(provider.access_token(audience, email=email), method).status == 403


def test_one_of_several_audiences_is_enough(door: Door, provider: FakeProvider) -> None:
    assert door.with_token(provider.access_token(["account", CLIENT], email=USER)).status == 200


def test_a_token_without_the_address_is_forbidden(door: Door, provider: FakeProvider) -> None:
    token = provider.access_token(CLIENT, email=None)
    assert door.with_token(token).status == 403


def test_a_bad_signature_is_401(door: Door, provider: FakeProvider) -> None:
    bad = with_bad_signature(provider.access_token(CLIENT, email=USER))
    strangers = provider.access_token(CLIENT, email=USER, key=rsa_key(9))
    for token in (bad, strangers):
        answer = door.with_token(token)
        assert answer.status == 401 and answer.header("www-authenticate").startswith("Bearer"), answer


def test_a_token_of_another_issuer_is_401(door: Door, provider: FakeProvider) -> None:
    token = provider.access_token(CLIENT, email=USER, iss="https://somebody.else")
    assert door.with_token(token).status == 401


def test_nobody_is_asked_to_authenticate(door: Door) -> None:
    answer = door.ask("GET", [])
    assert answer.status in (302, 401), answer


def test_the_same_person_in_a_cookie_session_gets_the_same_verdicts(door: Door) -> None:
    person = door.deployment.logged_in()
    assert door.as_person(person).status == 200
    assert door.as_person(person, "POST").status == 403
    other = door.deployment.logged_in("other@example.com")
    assert door.as_person(other).status == 403


@pytest.mark.parametrize("kind", ["envoy", "nginx"])
def test_what_is_refused_reaches_no_application(
    deployments: Mapping[str, Deployment], provider: FakeProvider, kind: str
) -> None:
    door = Door(deployments[kind], direct=False)
    before = len(door.deployment.application.seen)
    for token in (provider.access_token("another-client", email=USER), "no.such.token"):
        assert door.with_token(token).status in (401, 403)
    assert door.with_token(provider.access_token(CLIENT, email=USER), "DELETE").status == 403
    assert len(door.deployment.application.seen) == before
