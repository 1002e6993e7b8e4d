"""Tokens of a cluster, judged by its API server: a real one in all that matters here, over TLS."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import jwt
import pytest
import trustme

from authservice import startup
from authservice.authn import kubernetes
from authservice.authn.bearer import FromHeader
from authservice.authn.kubernetes import KubernetesAuthenticator
from authservice.check import Allow, CheckRequest, Deny, Login, NeedsIO, Reach
from authservice.errors import ClusterDown, Reason, Refused
from authservice.identity import AuthMethod, Identity, IdentityHeaders, Transformers
from authservice.kubernetes import cluster as cluster_module
from authservice.kubernetes.access import NoAccess
from authservice.kubernetes.cluster import find_cluster
from authservice.kubernetes.reviews import ReviewsForbidden
from authservice.logs import Event
from authservice.pipeline import INVALID_TOKEN, Pipeline
from authservice.sessions.seal import new_secret
from authservice.settings import Settings, load
from authservice.urls import PathPrefixes, ReturnAddresses
from tests.conftest import Browser
from tests.provider import FakeProvider
from tests.test_settings import REQUIRED
from tests.tokenreview import AUTHSERVICE, FOR_US, ISSUER, FakeCluster
from tests.waiting import until

pytestmark = pytest.mark.slow  # real processes, or real time limits

PROVIDER = "https://provider.example"
GROUPS = ("system:serviceaccounts", "system:serviceaccounts:jobs", "system:authenticated")

Make = Callable[..., KubernetesAuthenticator]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as fake:
        yield fake


@pytest.fixture
def mounted(cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of our own pod's service account."""
    folder = cluster.mount(tmp_path)
    monkeypatch.setattr(cluster_module, "MOUNTED", folder)
    return folder


@pytest.fixture
def make(cluster: FakeCluster, mounted: Path) -> Make:
    def made(environ: dict[str, str] | None = None, **changes: Any) -> KubernetesAuthenticator:
        plain: dict[str, Any] = {
            "audiences": [FOR_US], "known_issuers": [PROVIDER], "timeout": timedelta(seconds=5), **changes
        }  # fmt: skip
        found = kubernetes.build(None, cluster.environ() if environ is None else environ, **plain)
        assert found is not None
        return found

    return made


@pytest.fixture
def authenticator(make: Make) -> KubernetesAuthenticator:
    return make()


def check(**headers: str) -> CheckRequest:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return CheckRequest("GET", "https", "app.example", "/", "/", named, None, "envoy")


def decide(authenticator: KubernetesAuthenticator, **headers: str) -> Allow | Deny | Login:
    """The service's own rules, with this one authenticator."""
    pipeline = Pipeline(
        open_paths=PathPrefixes([]),
        preflights_pass=False,
        authenticators=[FromHeader(authenticator, "Authorization")],
        authorizers=[],
        headers=IdentityHeaders(
            "kubeflow-userid", "kubeflow-groups", "Auth-Method", "", Transformers.parse("[]")
        ),
        ready=lambda reach: None,
        redirects=lambda check: True,
        return_addresses=ReturnAddresses("https", "app.example", [], default="/"),
    )
    return pipeline.decide(check(**headers), Reach.NETWORK)


def judge(authenticator: KubernetesAuthenticator, token: str) -> Identity | None:
    return authenticator.judge(token, Reach.NETWORK)


# --- a good token -------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_E1_a_service_account_passes_with_its_token(
    scheme: str, cluster: FakeCluster, authenticator: KubernetesAuthenticator
) -> None:
    answer = decide(authenticator, authorization=f"{scheme} {cluster.token()}")
    assert isinstance(answer, Allow)
    assert dict(answer.set_headers) == {
        "kubeflow-userid": "system:serviceaccount:jobs:nightly",
        "kubeflow-groups": ",".join(GROUPS),
        "Auth-Method": "header",
    }


def test_the_identity_is_what_the_api_server_says(
    cluster: FakeCluster, authenticator: KubernetesAuthenticator
) -> None:
    token = cluster.token(lifetime=timedelta(minutes=10))
    identity = judge(authenticator, token)
    assert identity is not None
    assert (identity.user_id, identity.groups) == ("system:serviceaccount:jobs:nightly", GROUPS)
    assert (identity.method, identity.issuer) == (AuthMethod.HEADER, ISSUER)
    exp = jwt.decode(token, options={"verify_signature": False})["exp"]
    assert identity.expires == datetime.fromtimestamp(exp, timezone.utc)
    # For the external authorizer: what was vouched for, and nothing that the token merely says.
    assert set(identity.claims) == {"username", "uid", "groups", "extra"}
    assert identity.uid == identity.claims["uid"] != ""
    assert identity.claims["extra"]["authentication.kubernetes.io/pod-name"] == ["nightly-0"]


def test_the_question_is_a_token_review_for_our_audiences(cluster: FakeCluster, make: Make) -> None:
    token = cluster.token(audiences=["second", "third"])
    identity = judge(make(audiences=["first", "second"]), token)
    assert identity is not None
    (seen,) = cluster.seen
    assert (seen.method, seen.path, seen.caller) == (
        "POST", "/apis/authentication.k8s.io/v1/tokenreviews", AUTHSERVICE
    )  # fmt: skip
    assert seen.body == {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": ["first", "second"]},
    }


@pytest.mark.parametrize(
    "user,groups",
    [
        ({"username": "ci", "groups": ["a"]}, ("a", "system:authenticated")),
        ({"username": "ci"}, ("system:authenticated",)),
        ({"username": "ci", "groups": None}, ("system:authenticated",)),
        ({"username": "ci", "groups": ["system:authenticated", "a"]}, ("system:authenticated", "a")),
        ({"username": "ci", "groups": ["system:unauthenticated"]}, ("system:unauthenticated",)),
        ({"username": "system:anonymous", "groups": ["a"]}, ("a",)),
        ({"username": "Ada@Example.com", "groups": []}, ("system:authenticated",)),
    ],
)
def test_everybody_who_is_somebody_is_in_system_authenticated(
    user: dict[str, Any], groups: tuple[str, ...], cluster: FakeCluster,
    authenticator: KubernetesAuthenticator,
) -> None:
    cluster.misbehave("user", user)
    identity = judge(authenticator, cluster.token())
    assert identity is not None
    assert (identity.user_id, identity.groups) == (user["username"], groups)


def test_an_error_beside_a_yes_is_another_authenticators(
    cluster: FakeCluster, authenticator: KubernetesAuthenticator
) -> None:
    cluster.misbehave("error_beside_yes")
    assert judge(authenticator, cluster.token()) is not None


def test_a_token_without_issuer_and_with_an_absurd_expiry_still_counts(
    cluster: FakeCluster, authenticator: KubernetesAuthenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the API server says yes to; an older cluster's tokens have no ``exp`` at all."""
    yes = {"authenticated": True, "user": {"username": "old"}, "audiences": [FOR_US]}
    monkeypatch.setattr(cluster, "authenticate", _yes_to_others(cluster, yes))
    for claims in ({}, {"exp": 1e300}, {"exp": "soon"}):
        token = jwt.encode({"sub": "old", **claims}, "a-key-that-is-long-enough-for-hs256", "HS256")
        identity = judge(authenticator, token)
        assert identity is not None
        assert (identity.user_id, identity.issuer, identity.expires) == ("old", "kubernetes", None)


def _yes_to_others(cluster: FakeCluster, yes: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    strictly = cluster.authenticate
    return lambda token, audiences: strictly(token, audiences) if not audiences else dict(yes)


@pytest.mark.parametrize("uid", [None, 7, ["x"]])
def test_a_uid_that_is_no_text_is_none(
    uid: Any, cluster: FakeCluster, authenticator: KubernetesAuthenticator
) -> None:
    cluster.misbehave("user", {"username": "ci", "uid": uid})
    identity = judge(authenticator, cluster.token())
    assert identity is not None and identity.uid == ""


# --- a bad one ----------------------------------------------------------------------------------


def bad_tokens(cluster: FakeCluster) -> dict[str, str]:
    good = cluster.token()
    revoked = cluster.token()
    cluster.revoke(revoked)
    header, payload, signature = good.split(".")
    return {
        "expired": cluster.token(lifetime=timedelta(minutes=-5)),
        "wrong key": cluster.token(key=1),
        "wrong issuer": cluster.token(iss="https://other.cluster"),
        "other audience": cluster.token(audiences=["somebody-else"]),
        "for the API server only": cluster.token(audiences=[ISSUER]),
        "revoked": revoked,
        "no signature": f"{header}.{payload}.",
        "alg none": jwt.encode(jwt.decode(good, options={"verify_signature": False}), "", "none"),
    }


@pytest.mark.parametrize(
    "kind",
    ["expired", "wrong key", "wrong issuer", "other audience", "for the API server only", "revoked",
     "no signature", "alg none"],
)  # fmt: skip
def test_B68_a_service_accounts_token_that_is_bad_is_refused(
    kind: str, cluster: FakeCluster, authenticator: KubernetesAuthenticator
) -> None:
    """Whatever the wording of the API server: 401, no login, no rescue by anything else."""
    answer = decide(authenticator, authorization=f"Bearer {bad_tokens(cluster)[kind]}")
    assert isinstance(answer, Deny)
    assert (answer.status, answer.reason, answer.challenge) == (401, Reason.INVALID_TOKEN, INVALID_TOKEN)


@pytest.mark.parametrize("how", ["no_audiences", "other_audiences", "truthy"])
def test_B23_a_yes_for_nobody_in_particular_is_none(
    how: str, cluster: FakeCluster, authenticator: KubernetesAuthenticator
) -> None:
    token = cluster.token()
    assert judge(authenticator, token) is not None
    cluster.misbehave(how)
    with pytest.raises(Refused):
        judge(authenticator, token)


@pytest.mark.parametrize("audiences", [None, FOR_US, [], [None], {FOR_US: 1}])
def test_B23_audiences_that_are_no_list_of_ours(
    audiences: Any, cluster: FakeCluster, authenticator: KubernetesAuthenticator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    yes = {"authenticated": True, "user": {"username": "x"}, "audiences": audiences}
    monkeypatch.setattr(cluster, "authenticate", _yes_to_others(cluster, yes))
    with pytest.raises(Refused):
        judge(authenticator, cluster.token())


@pytest.mark.parametrize(
    "user", [{}, {"username": ""}, {"username": 7}, {"username": "a\nb"}, {"username": "x" * 256}, [], "ada"]
)
def test_a_user_without_a_usable_name_is_refused(
    user: Any, cluster: FakeCluster, authenticator: KubernetesAuthenticator
) -> None:
    cluster.misbehave("user", user)
    with pytest.raises(Refused):
        judge(authenticator, cluster.token())


def test_a_token_of_somebody_else_that_the_cluster_does_not_know_is_left_to_others(
    cluster: FakeCluster, authenticator: KubernetesAuthenticator
) -> None:
    stranger = cluster.token(sub="ada", key=1)
    assert judge(authenticator, stranger) is None
    assert isinstance(decide(authenticator, authorization=f"Bearer {stranger}"), Login)
    assert len(cluster.seen) == 2


def test_B21_only_what_may_be_the_clusters_is_sent_there(
    cluster: FakeCluster, authenticator: KubernetesAuthenticator
) -> None:
    of_provider = jwt.encode({"iss": PROVIDER, "sub": "system:serviceaccount:a:b"}, "k" * 40, "HS256")
    for authorization in (
        f"Bearer {new_secret()}", "Bearer opaque", "Bearer a.b.c", "Basic YTpi", f"Basic {cluster.token()}",
        f"Negotiate {cluster.token()}", cluster.token(), f"Bearer {of_provider}", "Bearer", "",
    ):  # fmt: skip
        assert isinstance(decide(authenticator, authorization=authorization), Login), authorization
    assert cluster.seen == []


def test_two_headers_are_refused_and_sent_nowhere(
    cluster: FakeCluster, authenticator: KubernetesAuthenticator
) -> None:
    answer = decide(authenticator, authorization=f"Bearer {cluster.token()},Bearer {cluster.token()}")
    assert isinstance(answer, Deny) and answer.status == 401
    assert cluster.seen == []


def test_B22_a_websockets_sub_protocol_is_no_credential(
    cluster: FakeCluster, authenticator: KubernetesAuthenticator
) -> None:
    hidden = f"base64url.bearer.authorization.k8s.io.{cluster.token()}, chat"
    answer = decide(authenticator, upgrade="websocket", connection="Upgrade", sec_websocket_protocol=hidden)
    assert isinstance(answer, Login)
    assert cluster.seen == []


def test_nothing_is_asked_in_memory(cluster: FakeCluster, authenticator: KubernetesAuthenticator) -> None:
    with pytest.raises(NeedsIO):
        authenticator.judge(cluster.token(), Reach.MEMORY)
    assert authenticator.judge("opaque", Reach.MEMORY) is None
    assert cluster.seen == []


def test_without_audiences_nobody_is_asked(cluster: FakeCluster, make: Make) -> None:
    """An empty list in a review would mean the API server's own audiences."""
    assert judge(make(audiences=[]), cluster.token()) is None
    assert cluster.seen == []


# --- the API server cannot be asked -------------------------------------------------------------


@pytest.mark.parametrize(
    "how,value",
    [
        ("status_401", True), ("status_429", True), ("status_500", True), ("status_503", True),
        ("reset", 9), ("code", 500), ("code", 302),
        ("body", b""), ("body", b"<html>"), ("body", b"[]"), ("body", b"{}"), ("body", b'{"status": true}'),
        ("body", b'{"status": {"authenticated": false, "authenticated": true}}'), ("body", b" " * 2_000_000),
    ],
)  # fmt: skip
def test_no_usable_answer_is_503_and_says_nothing_about_the_token(
    how: str, value: Any, cluster: FakeCluster, authenticator: KubernetesAuthenticator
) -> None:
    cluster.misbehave(how, value)
    token = cluster.token()
    answer = decide(authenticator, authorization=f"Bearer {token}")
    assert isinstance(answer, Deny)
    assert (answer.status, answer.reason, answer.challenge) == (503, Reason.CLUSTER_DOWN, None)
    assert token not in answer.cause and token[-20:] not in answer.cause
    cluster.behave()
    assert judge(authenticator, token) is not None


@pytest.mark.parametrize("how,value", [("slow", 20), ("drip", 0.1)])
def test_the_time_limit_holds_for_the_whole_review(
    how: str, value: float, cluster: FakeCluster, make: Make
) -> None:
    cluster.misbehave(how, value)
    began = time.monotonic()
    with pytest.raises(ClusterDown):
        judge(make(timeout=timedelta(seconds=0.5)), cluster.token())
    assert time.monotonic() - began < 3
    assert len(cluster.seen) == 1


def test_the_second_try_gets_what_the_first_has_left(cluster: FakeCluster, make: Make) -> None:
    cluster.misbehave("status_401")
    cluster.misbehave("slow", 0.7)
    with pytest.raises(ClusterDown) as caught:
        judge(make(timeout=timedelta(seconds=1)), cluster.token())
    assert len(cluster.seen) == 2
    assert "does not accept" not in str(caught.value)


def test_a_review_may_also_be_answered_with_200(
    cluster: FakeCluster, authenticator: KubernetesAuthenticator
) -> None:
    cluster.misbehave("code", 200)
    assert judge(authenticator, cluster.token()) is not None


def test_nobody_there(cluster: FakeCluster, make: Make) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = make({**cluster.environ(), "KUBERNETES_SERVICE_PORT": str(closed.getsockname()[1])})
        with pytest.raises(ClusterDown):
            judge(nobody, cluster.token())


def test_a_broken_connection_is_tried_once_more(
    cluster: FakeCluster, authenticator: KubernetesAuthenticator
) -> None:
    cluster.misbehave("reset", 1)
    assert judge(authenticator, cluster.token()) is not None
    assert len(cluster.seen) == 1


def test_connections_are_kept(cluster: FakeCluster, authenticator: KubernetesAuthenticator) -> None:
    for _ in range(5):
        assert judge(authenticator, cluster.token()) is not None
    assert cluster.connections == 1


def test_many_at_once(cluster: FakeCluster, authenticator: KubernetesAuthenticator) -> None:
    tokens = [cluster.token("jobs", f"job-{number}") for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda token: judge(authenticator, token), tokens))
    assert [one and one.user_id for one in found] == [
        f"system:serviceaccount:jobs:job-{number}" for number in range(24)
    ]


def test_another_server_in_its_place_is_told_nothing(
    cluster: FakeCluster, mounted: Path, authenticator: KubernetesAuthenticator
) -> None:
    """Only the cluster's own authority counts."""
    (mounted / "ca.crt").write_bytes(trustme.CA().cert_pem.bytes())
    with pytest.raises(ClusterDown, match="Certificate|SSL"):
        judge(authenticator, cluster.token())
    assert cluster.seen == []


def test_the_systems_authorities_do_not_count_for_the_cluster(
    cluster: FakeCluster, mounted: Path, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = tmp_path / "system.pem"
    system.write_bytes(cluster.authority.cert_pem.bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(system))
    (mounted / "ca.crt").write_bytes(trustme.CA().cert_pem.bytes())
    with pytest.raises(ClusterDown):
        judge(make(), cluster.token())
    assert cluster.seen == []


# --- our own rights -----------------------------------------------------------------------------


def test_a_missing_role_is_named_and_tokens_of_others_pass_by(
    cluster: FakeCluster, authenticator: KubernetesAuthenticator, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.delegators.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with pytest.raises(ReviewsForbidden, match="system:auth-delegator"):
                judge(authenticator, cluster.token())
        assert judge(authenticator, cluster.token(sub="ada")) is None
    (line,) = [record for record in caplog.records if record.message == Event.REVIEWS_FORBIDDEN.value]
    assert "system:auth-delegator" in line.note  # type: ignore[attr-defined]

    cluster.delegators.add(AUTHSERVICE)
    assert judge(authenticator, cluster.token()) is not None
    cluster.delegators.clear()
    with caplog.at_level(logging.WARNING), pytest.raises(ReviewsForbidden):
        judge(authenticator, cluster.token())
    assert len([record for record in caplog.records if record.message == Event.REVIEWS_FORBIDDEN.value]) == 2


def test_a_missing_role_is_503_for_a_service_account(
    cluster: FakeCluster, authenticator: KubernetesAuthenticator
) -> None:
    cluster.misbehave("status_403")
    answer = decide(authenticator, authorization=f"Bearer {cluster.token()}")
    assert isinstance(answer, Deny) and (answer.status, answer.reason) == (503, Reason.CLUSTER_DOWN)
    assert "system:auth-delegator" in answer.cause


def test_our_own_token_is_read_again_when_it_rotates(
    cluster: FakeCluster, mounted: Path, authenticator: KubernetesAuthenticator
) -> None:
    for _ in range(3):
        assert judge(authenticator, cluster.token()) is not None
        cluster.rotate(mounted)
    assert len(cluster.seen) == 3


def test_a_token_that_rotates_under_way_costs_nobody_their_request(
    cluster: FakeCluster, mounted: Path, authenticator: KubernetesAuthenticator
) -> None:
    cluster.misbehave("slow", 0.3)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(judge, authenticator, cluster.token())
        until(lambda: cluster.seen)
        cluster.misbehave("status_401")
        cluster.rotate(mounted)
        until(lambda: len(cluster.seen) == 2)
        cluster.behave()
        assert found.result(10) is not None


def test_the_clusters_authority_may_be_renewed(
    cluster: FakeCluster, mounted: Path, authenticator: KubernetesAuthenticator
) -> None:
    assert judge(authenticator, cluster.token()) is not None
    cluster.renew_authority(mounted)
    assert judge(authenticator, cluster.token()) is not None


@pytest.mark.parametrize("spoil", ["token", "ca.crt"])
@pytest.mark.parametrize("content", [None, "", "\u00fc", "a\nb"])
def test_unreadable_credentials_are_503_until_they_are_there(
    spoil: str, content: str | None, cluster: FakeCluster, mounted: Path,
    authenticator: KubernetesAuthenticator,
) -> None:
    file = mounted / spoil
    kept = file.read_bytes()
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(ClusterDown):
        judge(authenticator, cluster.token())
    assert cluster.seen == []
    file.write_bytes(kept)
    assert judge(authenticator, cluster.token()) is not None


def test_what_we_hold_is_in_no_text(cluster: FakeCluster, mounted: Path) -> None:
    found = find_cluster(cluster.environ())
    assert found is not None
    assert (mounted / "token").read_text() not in repr(found) + repr(found.access())


# --- in the whole service -----------------------------------------------------------------------


@pytest.mark.usefixtures("mounted")
def test_a_token_beats_the_cookie_and_a_bad_one_is_not_rescued_by_it(
    cluster: FakeCluster, make_browser: Callable[..., Browser], provider: FakeProvider
) -> None:
    browser = make_browser(**cluster.environ())
    assert browser.log_in().status == 302
    good = browser.get("/", Authorization=f"Bearer {cluster.token()}")
    assert (good.status, good.header("kubeflow-userid")) == (200, "system:serviceaccount:jobs:nightly")
    assert good.header("Auth-Method") == "header"
    bad = browser.get("/", Authorization=f"Bearer {cluster.token(key=1)}")
    assert (bad.status, bad.header("WWW-Authenticate")) == (401, INVALID_TOKEN)
    assert bad.all("Set-Cookie") == bad.all("Location") == []
    of_others = browser.get("/", Authorization=f"Bearer {cluster.token(sub='ada', key=1)}")
    assert (of_others.status, of_others.header("Auth-Method")) == (200, "cookie")
    cluster.misbehave("status_500")
    assert browser.get("/", Authorization=f"Bearer {cluster.token()}").status == 503
    # The session's own secret as bearer, and the provider's tokens, are nothing for the cluster.
    asked = len(cluster.seen)
    assert browser.get("/", Authorization=f"Bearer {browser.session}").status == 200
    assert len(cluster.seen) == asked


# --- which cluster ------------------------------------------------------------------------------


def test_no_cluster() -> None:
    assert find_cluster({}) is None
    assert find_cluster({"HOME": "/nonexistent"}) is None


def test_a_pod_without_a_service_account_is_in_no_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "MOUNTED", tmp_path)
    environ = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    assert find_cluster(environ) is None


@pytest.mark.usefixtures("mounted")
@pytest.mark.parametrize(
    "host,address", [("10.96.0.1", "https://10.96.0.1:443"), ("fd00::1", "https://[fd00::1]:443")]
)
def test_a_pods_cluster(host: str, address: str) -> None:
    found = find_cluster({"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": "443"})
    assert found is not None
    assert found.access().address == address
    assert find_cluster({"KUBERNETES_SERVICE_HOST": host}) is None
    assert find_cluster({"KUBERNETES_SERVICE_PORT": "443"}) is None


def test_a_kubeconfig_that_is_named_comes_first_and_the_usual_one_last(
    cluster: FakeCluster, mounted: Path, tmp_path: Path
) -> None:
    named = cluster.kubeconfig(tmp_path / "named", {"token": "of-the-named"})
    usual = cluster.kubeconfig(tmp_path / ".kube" / "config", {"token": "of-the-usual"})

    def authorization(**environ: str) -> str:
        found = find_cluster(environ)
        assert found is not None
        return found.access().authorization

    everything = {**cluster.environ(), "HOME": str(tmp_path), "KUBECONFIG": str(named)}
    assert authorization(**everything) == "Bearer of-the-named"
    del everything["KUBECONFIG"]
    assert authorization(**everything) == f"Bearer {(mounted / 'token').read_text()}"
    del everything["KUBERNETES_SERVICE_HOST"]
    assert usual.is_file() and authorization(**everything) == "Bearer of-the-usual"


def test_a_kubeconfig_with_a_client_certificate(cluster: FakeCluster, make: Make, tmp_path: Path) -> None:
    cluster.delegators = {"operator"}
    file = cluster.kubeconfig(tmp_path / "config", cluster.certificate_user("operator"))
    assert judge(make({"KUBECONFIG": str(file)}), cluster.token()) is not None
    assert cluster.seen[0].caller == "operator"


def test_a_kubeconfig_with_a_login_helper(cluster: FakeCluster, make: Make, tmp_path: Path) -> None:
    """The helper is not run before it is needed, and again when the API server refuses what it gave."""
    runs, given = tmp_path / "runs", tmp_path / "given"
    given.write_text("expired")
    helper = tmp_path / "helper"
    helper.write_text(
        f"#!/bin/sh\necho run >> {runs}\n"
        'echo \'{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", '
        f"\"status\": {{\"token\": \"'$(cat {given})'\"}}}}'\n"
    )
    helper.chmod(0o755)
    login = {
        "apiVersion": "client.authentication.k8s.io/v1", "command": str(helper), "interactiveMode": "Never"
    }  # fmt: skip
    file = cluster.kubeconfig(tmp_path / "config", {"exec": login})
    authenticator = make({"KUBECONFIG": str(file)})
    assert not runs.exists()
    with pytest.raises(ClusterDown, match="does not accept our own credential"):
        judge(authenticator, cluster.token())
    given.write_text(cluster.token("auth", "authservice", audiences=[ISSUER]))
    for _ in range(3):
        assert judge(authenticator, cluster.token()) is not None
    assert runs.read_text().count("run") == 3


def test_a_kubeconfig_that_gives_no_credential(cluster: FakeCluster, make: Make, tmp_path: Path) -> None:
    file = cluster.kubeconfig(tmp_path / "config", {})
    with pytest.raises(ClusterDown, match="neither a token nor a certificate"):
        judge(make({"KUBECONFIG": str(file)}), cluster.token())
    assert cluster.seen == []


@pytest.mark.parametrize(
    "text",
    [None, "", "{", "[]", "a: b", "{current-context: x, contexts: [], clusters: []}", "contexts: 7",
     "{current-context: x, contexts: [{name: x, context: 7}], clusters: []}", "\0"],
)  # fmt: skip
def test_a_kubeconfig_that_is_none(text: str | None, tmp_path: Path) -> None:
    file = tmp_path / "config"
    if text is not None:
        file.write_text(text)
    with pytest.raises(NoAccess, match="cannot be used"):
        find_cluster({"KUBECONFIG": str(file)})


@pytest.mark.parametrize(
    "member",
    [{"insecure-skip-tls-verify": True}, {"tls-server-name": "other"}, {"proxy-url": "http://proxy:3128"},
     {"server": "http://127.0.0.1:8001"}],
)  # fmt: skip
def test_a_kubeconfig_that_asks_for_less_than_tls(
    member: dict[str, Any], cluster: FakeCluster, tmp_path: Path
) -> None:
    file = cluster.kubeconfig(tmp_path / "config", {"token": "x"}, **member)
    with pytest.raises(NoAccess, match="not supported"):
        find_cluster({"KUBECONFIG": str(file)})


# --- the setting --------------------------------------------------------------------------------


def settings(tmp_path: Path, **environ: str) -> Settings:
    return load({**REQUIRED, "SESSION_STORE_PATH": str(tmp_path / "data.db"), **environ})


def built(settings: Settings) -> KubernetesAuthenticator | None:
    return kubernetes.build(
        settings.kubernetes_authn_enabled, settings.kubernetes_environ,
        audiences=settings.audiences, known_issuers=[settings.oidc_provider], timeout=timedelta(seconds=5),
    )  # fmt: skip


@pytest.mark.parametrize(
    "wanted,inside,outside", [("auto", True, False), ("true", True, None), ("false", False, False)]
)
def test_the_switch(
    wanted: str, inside: bool, outside: bool | None, cluster: FakeCluster, mounted: Path, tmp_path: Path
) -> None:
    """By default on where there is a cluster; ``true`` without one is a problem of the start."""
    here = settings(tmp_path, KUBERNETES_AUTHN_ENABLED=wanted, **cluster.environ())
    assert (built(here) is not None) is inside
    assert startup.problems(here) == startup.warnings(here) == ()
    elsewhere = settings(tmp_path, KUBERNETES_AUTHN_ENABLED=wanted)
    if outside is not None:
        assert (built(elsewhere) is not None) is outside
        assert startup.problems(elsewhere) == startup.warnings(elsewhere) == ()
        return
    (problem,) = startup.problems(elsewhere)
    assert problem.startswith("KUBERNETES_AUTHN_ENABLED: true, but there is no cluster to ask")
    for place in ("/var/run/secrets/kubernetes.io/serviceaccount", "KUBECONFIG", "~/.kube/config"):
        assert place in problem


def test_a_kubeconfig_is_a_cluster_too(cluster: FakeCluster, tmp_path: Path) -> None:
    cluster.kubeconfig(tmp_path / ".kube" / "config", {"token": "x"})
    assert built(settings(tmp_path, HOME=str(tmp_path))) is not None


def test_a_kubeconfig_that_cannot_be_used_is_a_problem_or_a_warning(
    cluster: FakeCluster, tmp_path: Path
) -> None:
    wanted = settings(tmp_path, KUBERNETES_AUTHN_ENABLED="true", KUBECONFIG="/nonexistent")
    (problem,) = startup.problems(wanted)
    assert problem.startswith("KUBERNETES_AUTHN_ENABLED: true, but the kubeconfig /nonexistent cannot")
    by_itself = settings(tmp_path, KUBECONFIG="/nonexistent")
    assert startup.problems(by_itself) == ()
    (warning,) = startup.warnings(by_itself)
    assert "the kubeconfig /nonexistent cannot be used" in warning
    assert built(by_itself) is None
    unwanted = settings(tmp_path, KUBERNETES_AUTHN_ENABLED="false", KUBECONFIG="/nonexistent")
    assert startup.problems(unwanted) == startup.warnings(unwanted) == ()


def test_a_missing_extra_is_named(
    cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "kubernetes"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    file = cluster.kubeconfig(tmp_path / "config", {"token": "x"})
    wanted = settings(tmp_path, KUBERNETES_AUTHN_ENABLED="true", KUBECONFIG=str(file))
    (problem,) = startup.problems(wanted)
    assert "authservice[kubernetes]" in problem
    (warning,) = startup.warnings(settings(tmp_path, KUBECONFIG=str(file)))
    assert "authservice[kubernetes]" in warning


def test_an_empty_list_of_audiences_is_a_problem_where_tokens_are_wanted(
    cluster: FakeCluster, mounted: Path, tmp_path: Path
) -> None:
    both = {"AUDIENCES": "", **cluster.environ()}
    (problem,) = startup.problems(settings(tmp_path, KUBERNETES_AUTHN_ENABLED="true", **both))
    assert problem.startswith("AUDIENCES: ")
    assert startup.problems(settings(tmp_path, **both)) == ()


def test_the_environment_of_a_cluster_is_kept_apart(tmp_path: Path) -> None:
    """Only what tells of a cluster, and never as a setting of ours."""
    found = settings(tmp_path, HOME="/h", KUBECONFIG="/k", KUBERNETES_PORT="tcp://10.96.0.1:443")
    assert dict(found.kubernetes_environ) == {"HOME": "/h", "KUBECONFIG": "/k"}
    assert found.warnings == settings(tmp_path).warnings
