"""Programs with the token they have, through real Envoy: each authenticator with a good and a bad one.

Tokens come from the strict provider (ID token, opaque and JWT access tokens), from a further issuer,
and from a cluster whose API server is asked.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote_plus, urlencode

import pytest

from tests.e2e import stack as stacks
from tests.e2e.provider import CLIENT_ID, CLIENT_SECRET
from tests.e2e.stack import Stack
from tests.e2e.wire import Answer, request
from tests.provider import FakeProvider, rsa_key
from tests.tokenreview import FOR_US, ISSUER, FakeCluster

pytestmark = [pytest.mark.external, pytest.mark.xdist_group("e2e-bearer")]

API = "urn:api"


@dataclass
class World:
    """A stack whose AuthService accepts every kind of token, and who issues them."""

    stack: Stack
    other: FakeProvider
    cluster: FakeCluster

    def ask(self, token: str, marker: str) -> Answer:
        headers = [("Authorization", f"Bearer {token}"), ("X-Marker", marker)]
        return self.stack.request("GET", "/api/things", headers)

    def call(self, path: str, **form: str) -> Answer:
        """A request of the client itself to the strict provider."""
        secret = f"{quote_plus(CLIENT_ID)}:{quote_plus(CLIENT_SECRET)}"
        basic = base64.b64encode(secret.encode()).decode()
        headers = [("Authorization", f"Basic {basic}"), ("Content-Type", "application/x-www-form-urlencoded")]
        return request(self.stack.provider.port, "POST", path, headers=headers, body=urlencode(form).encode())

    def from_login(self, *, jwt: bool) -> str:
        """A token that alice's login brought: her ID token, or her opaque access token."""
        before = self.stack.provider.issued()
        self.stack.logged_in("alice")
        issued = self.stack.provider.issued() - before
        if jwt:
            return next(token for token in issued if token.count(".") == 2)
        opaque = [token for token in issued if "." not in token]
        return next(token for token in opaque if self.is_active(token))

    def is_active(self, token: str) -> bool:
        answer = self.call("/token/introspection", token=token).json()
        return answer.get("active") is True and answer.get("token_type") == "Bearer"

    def access_token(self) -> str:
        answer = self.call("/token", grant_type="client_credentials", resource=API, scope="api:read")
        assert answer.status == 200, answer
        return str(answer.json()["access_token"])

    def make(self, kind: str) -> str:
        makers: dict[str, Callable[[], str]] = {
            "id_token": lambda: self.from_login(jwt=True),
            "opaque": lambda: self.from_login(jwt=False),
            "jwt": self.access_token,
            "further": lambda: self.other.access_token("ci", sub="pipeline"),
            "kubernetes": self.cluster.token,
        }
        return makers[kind]()

    def make_bad(self, kind: str) -> str:
        if kind == "opaque":
            return "never-issued-by-anybody"
        if kind == "further":
            return self.other.access_token("ci", key=rsa_key(9))
        if kind == "kubernetes":
            return self.cluster.token(lifetime=-timedelta(hours=1))
        head, _, signature = self.make(kind).rpartition(".")
        return f"{head}.{signature[::-1]}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder: Path = tmp_path_factory.mktemp("bearer")
    with FakeProvider() as other, FakeCluster() as cluster:
        ours = {"token": cluster.token("auth", "authservice", audiences=[ISSUER])}
        settings = {
            "USERID_CLAIM": "sub",
            "AUDIENCES": f"{API},{FOR_US}",
            "ACCESS_TOKEN_AUTHN": "both",
            "BEARER_ISSUERS": json.dumps([{"issuer": other.issuer, "audiences": ["ci"]}]),
            "KUBERNETES_AUTHN_ENABLED": "true",
            "KUBECONFIG": str(cluster.kubeconfig(folder / "kubeconfig", ours)),
        }
        stack = stacks.start("envoy", folder / "stack", settings)
        try:
            yield World(stack, other, cluster)
        finally:
            stack.stop()


WHO = {
    "id_token": "alice", "opaque": "alice", "jwt": CLIENT_ID, "further": "pipeline",
    "kubernetes": "system:serviceaccount:jobs:nightly",
}


@pytest.mark.parametrize("kind", list(WHO))
def test_a_good_token_reaches_the_application_with_its_identity(world: World, marker: str, kind: str) -> None:
    answer = world.ask(world.make(kind), marker)
    assert answer.status == 200, answer
    (seen,) = world.stack.reached(marker)
    assert seen.values("kubeflow-userid") == [WHO[kind]]
    assert seen.values("auth-method") == ["header"]


@pytest.mark.parametrize("kind", list(WHO))
def test_s29_a_bad_token_is_401_with_its_challenge_and_reaches_nobody(world: World, marker: str, kind: str) -> None:
    answer = world.ask(world.make_bad(kind), marker)
    assert (answer.status, answer.header("www-authenticate")) == (401, 'Bearer error="invalid_token"'), answer
    assert answer.header("location") == "" and answer.header("set-cookie") == ""
    assert world.stack.reached(marker) == []


def test_a_revoked_opaque_token_stops_at_once_without_a_cache(world: World, marker: str) -> None:
    token = world.make("opaque")
    assert world.ask(token, marker).status == 200
    assert world.call("/token/revocation", token=token).status == 200
    assert world.ask(token, marker).status == 401


def test_one_bad_opaque_token_repeated_is_asked_about_once_in_a_worker(world: World, marker: str) -> None:
    before = world.stack.provider.calls("/token/introspection")
    for _ in range(100):
        assert world.ask("the-same-bad-token-every-time", marker).status == 401
    assert world.stack.provider.calls("/token/introspection") - before <= 2, "the number of workers"
