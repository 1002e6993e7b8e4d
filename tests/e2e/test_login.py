"""Logging in at the strict provider, through real gateways."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from joserfc.jwk import ECKey, RSAKey

from authservice.sessions.seal import new_secret
from tests.e2e.conftest import Shared, StartStack
from tests.e2e.person import NAVIGATION, Person
from tests.e2e.stack import Stack
from tests.waiting import until

pytestmark = pytest.mark.external

CALLBACK = "/oidc/callback?"
DEEP = "/notebooks/a%2Fb;v=1/?q=%C3%A9&next=https://other.example/x%26y&z=//w&empty="


def pending(person: Person, stack: Stack) -> list[str]:
    """The names of the cookies of logins that have begun and not ended."""
    apart = {"authservice_session", "authservice_session_rounds"}
    return [name for name in person.cookies(stack.url + "/") if name not in apart]


def test_E5_login_steps(gated: Stack, marker: str) -> None:
    person = gated.person()
    begun = person.send(gated.url + "/")
    assert begun.answer.status == 302
    asked = parse_qs(urlsplit(begun.location).query)
    assert begun.location.startswith(gated.provider.issuer + "/auth?")
    assert asked["response_type"] == ["code"] and asked["code_challenge_method"] == ["S256"]
    assert asked["redirect_uri"] == [gated.url + "/authservice/oidc/callback"]
    assert len(pending(person, gated)) == 1

    returned = person.log_in(begun.location, until=CALLBACK)
    finished = person.send(returned.location)
    assert finished.answer.status == 302
    assert finished.location == gated.url + "/"
    assert "authservice_session" in person.cookies(gated.url + "/")
    assert pending(person, gated) == []

    there = person.send(finished.location, headers=[("X-Marker", marker)])
    assert there.answer.status == 200
    (seen,) = gated.reached(marker)
    assert seen.values("kubeflow-userid") == ["alice@example.org"]
    assert seen.values("kubeflow-groups") == ["a,b"]
    assert seen.values("auth-method") == ["cookie"]


def test_S02_O12_a_deep_link_is_kept_byte_for_byte(gated: Stack) -> None:
    person = gated.person()
    person.log_in(gated.url + DEEP)
    last = person.history[-1]
    assert last.answer.status == 200
    assert last.url == gated.url + DEEP


def test_E3_groups(gated: Stack) -> None:
    assert gated.logged_in("alice").history[-1].answer.status == 200
    carol = gated.person("carol")
    assert carol.log_in(gated.url + "/").answer.status == 403
    assert "authservice_session" in carol.cookies(gated.url + "/")
    again = carol.send(gated.url + "/")
    assert again.answer.status == 403  # the denial did not log her out
    assert again.answer.values("set-cookie") == []


def test_the_session_is_a_bearer_value_too(gated: Stack, marker: str) -> None:
    person = gated.one_logged_in()
    value = person.cookies(gated.url + "/")["authservice_session"]
    answer = gated.request("GET", "/", [("X-Marker", marker), ("Authorization", f"Bearer {value}")])
    assert answer.status == 200
    (seen,) = gated.reached(marker)
    assert seen.values("auth-method") == ["header"]
    assert seen.values("kubeflow-userid") == ["alice@example.org"]


def test_the_callback_works_on_both_ports(gated: Stack) -> None:
    for port in (gated.service.judge_port, gated.service.site_port):
        person = gated.person()
        returned = person.log_in(gated.url + "/page", until=CALLBACK)
        person.connect = {gated.host: port}
        finished = person.send(returned.location)
        assert (finished.answer.status, finished.location) == (302, gated.url + "/page")
        assert "authservice_session" in person.cookies(gated.url + "/")


@pytest.mark.xdist_group("e2e-envoy")
def test_F04_S18_a_callback_that_comes_again_leads_to_the_page(enveloped: Stack) -> None:
    person = enveloped.person()
    returned = person.log_in(enveloped.url + "/page?x=1", until=CALLBACK)
    before = enveloped.provider.calls("/token")
    assert person.send(returned.location).answer.status == 302
    session = person.cookies(enveloped.url + "/")["authservice_session"]
    again = person.send(returned.location)
    assert (again.answer.status, again.location) == (302, enveloped.url + "/page?x=1")
    assert person.cookies(enveloped.url + "/")["authservice_session"] == session
    assert enveloped.provider.calls("/token") == before + 1


@pytest.mark.xdist_group("e2e-envoy")
def test_F02_F03_S17_somebody_elses_callback_logs_nobody_in(enveloped: Stack) -> None:
    attacker, victim = enveloped.person("bob"), enveloped.person("alice")
    link = attacker.log_in(enveloped.url + "/", until=CALLBACK).location
    before = enveloped.provider.calls("/token")
    assert victim.send(link).answer.status == 400  # no pending login at all
    victim.send(enveloped.url + "/")
    assert victim.send(link).answer.status == 400  # a pending login of her own
    assert enveloped.provider.calls("/token") == before
    assert "authservice_session" not in victim.cookies(enveloped.url + "/")
    assert victim.send(enveloped.url + "/").answer.status == 302


@pytest.mark.xdist_group("e2e-envoy")
@pytest.mark.parametrize("attempt", range(3))
def test_F05_two_callbacks_at_once_redeem_the_code_once(enveloped: Stack, attempt: int) -> None:
    provider = enveloped.provider
    person = enveloped.person()
    returned = person.log_in(enveloped.url + "/", until=CALLBACK)
    twin = enveloped.person()
    twin.jar = {host: list(cookies) for host, cookies in person.jar.items()}
    before = provider.calls("/token")
    provider.hold("/token")
    try:
        with ThreadPoolExecutor(2) as pool:
            visits = [pool.submit(one.send, returned.location) for one in (person, twin)]
            until(lambda: any(visit.done() for visit in visits))  # the second one, refused meanwhile
            assert provider.calls("/token") == before + 1
            provider.release("/token")
            statuses = sorted(visit.result().answer.status for visit in visits)
    finally:
        provider.release("/token")
    assert statuses == [302, 400]
    assert provider.calls("/token") == before + 1


@pytest.mark.xdist_group("e2e-envoy")
def test_F05_many_callbacks_at_once_over_both_workers(enveloped: Stack) -> None:
    person = enveloped.person()
    returned = person.log_in(enveloped.url + "/", until=CALLBACK)
    before = enveloped.provider.calls("/token")
    twins = []
    for _ in range(8):
        twin = enveloped.person()
        twin.jar = {host: list(cookies) for host, cookies in person.jar.items()}
        twins.append(twin)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda one: one.send(returned.location).answer, twins))
    assert enveloped.provider.calls("/token") == before + 1
    sessions = {twin.cookies(enveloped.url + "/").get("authservice_session") for twin in twins} - {None}
    assert len(sessions) == 1
    assert sorted(answer.status for answer in answers) == [302] + [400] * 7


@pytest.mark.xdist_group("e2e-envoy")
def test_F16_two_tabs_with_two_logins_at_once(enveloped: Stack) -> None:
    person = enveloped.person()
    first = person.log_in(enveloped.url + "/one?a=1", until=CALLBACK)
    second = person.log_in(enveloped.url + "/two?b=2", until=CALLBACK)
    assert 1 <= len(pending(person, enveloped)) <= 6
    assert person.send(second.location).location == enveloped.url + "/two?b=2"
    assert person.send(first.location).location == enveloped.url + "/one?a=1"
    assert person.send(enveloped.url + "/").answer.status == 200


@pytest.mark.xdist_group("e2e-envoy")
def test_K01_S16_a_planted_session_is_never_the_one_after_login(enveloped: Stack) -> None:
    planted = (
        enveloped.logged_in("bob", "/public/x")
        .cookies(enveloped.url + "/")
        .get("authservice_session", new_secret())
    )
    person = enveloped.person()
    person.keep(enveloped.url, "authservice_session", planted)
    assert person.log_in(enveloped.url + "/").answer.status in (200, 302)
    fresh = person.cookies(enveloped.url + "/")["authservice_session"]
    assert fresh != planted
    stale = enveloped.person()
    stale.keep(enveloped.url, "authservice_session", planted)
    assert stale.send(enveloped.url + "/").answer.status == 302


@pytest.mark.xdist_group("e2e-envoy")
def test_a_new_login_ends_the_old_session_of_that_browser(enveloped: Stack) -> None:
    person = enveloped.logged_in()
    old = person.cookies(enveloped.url + "/")["authservice_session"]
    person.log_in(enveloped.url + "/authservice/login?rd=/after")
    assert person.cookies(enveloped.url + "/")["authservice_session"] != old
    stale = enveloped.person()
    stale.keep(enveloped.url, "authservice_session", old)
    assert stale.send(enveloped.url + "/").answer.status == 302


@pytest.mark.xdist_group("e2e-envoy")
@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("access_denied", 403),
        ("login_required", 403),
        ("interaction_required", 403),
        ("server_error", 502),
        ("temporarily_unavailable", 503),
    ],
)
def test_A23_the_provider_says_no(enveloped: Stack, error: str, status: int) -> None:
    person = enveloped.person()
    before = enveloped.provider.calls("/token")
    refused = person.log_in(enveloped.url + "/", answer="no", error=error)
    assert refused.answer.status == status
    assert "<script>alert" not in refused.answer.text
    assert refused.answer.header("cache-control") == "no-store"
    assert enveloped.provider.calls("/token") == before
    assert "authservice_session" not in person.cookies(enveloped.url + "/")


def test_claims_may_stand_in_the_id_token_as_well(own_stack: StartStack, marker: str) -> None:
    stack = own_stack("envoy", claims_in_userinfo_only=False)
    person = stack.logged_in()
    person.send(stack.url + "/", headers=[("X-Marker", marker)])
    assert stack.reached(marker)[0].values("kubeflow-groups") == ["a,b"]


def test_the_client_secret_may_go_in_the_body(own_stack: StartStack) -> None:
    method = "client_secret_post"
    stack = own_stack(
        "envoy", {"OIDC_CLIENT_AUTH_METHOD": method}, client={"token_endpoint_auth_method": method}
    )
    assert_logs_in_and_revokes(stack)


@pytest.mark.parametrize(("kind", "algorithm"), [("RSA", "RS256"), ("EC", "ES256")])
def test_a_private_key_in_place_of_a_client_secret(
    own_stack: StartStack, tmp_path: Path, kind: str, algorithm: str
) -> None:
    key = RSAKey.generate_key(2048) if kind == "RSA" else ECKey.generate_key("P-256")
    file = tmp_path / "client.pem"
    file.write_bytes(key.as_pem(private=True))
    method = "private_key_jwt"
    stack = own_stack(
        "envoy",
        {"OIDC_CLIENT_AUTH_METHOD": method, "CLIENT_PRIVATE_KEY_FILE": str(file)},
        client={
            "token_endpoint_auth_method": method,
            "token_endpoint_auth_signing_alg": algorithm,
            "jwks": {"keys": [key.as_dict(private=False)]},
        },
    )
    assert_logs_in_and_revokes(stack)
    assert "PRIVATE KEY" not in stack.service.program.log_text()


def assert_logs_in_and_revokes(stack: Stack) -> None:
    """The provider takes our word for who we are, at both endpoints that ask."""
    person = stack.logged_in()
    access = stack.provider.tokens()[0]
    visit = person.send(
        stack.url + "/authservice/logout", "POST", headers=[("Sec-Fetch-Site", "same-origin")]
    )
    assert list(visit.answer.json()) == ["afterLogoutURL"]
    assert not stack.provider.accepts(access)


def test_A18_A19_the_signing_key_changes_between_two_logins(own_stack: StartStack) -> None:
    stack = own_stack("envoy")
    stack.logged_in("alice")
    for drop in (False, True):
        fetched = stack.provider.calls("/jwks")
        stack.provider.rotate(drop=drop)
        stack.logged_in("bob")
        assert stack.provider.calls("/jwks") - fetched <= 2  # once in each worker at most


@pytest.mark.xdist_group("e2e-nginx")
def test_nginx_verify_never_redirects_and_tells_the_login(shared_stack: Shared) -> None:
    stack = shared_stack("nginx")
    asked = [("X-Original-URI", "/page?x=1"), ("X-Original-Method", "GET"), ("X-Forwarded-Proto", "http")]
    answer = stack.service.check("/authservice/verify", host=stack.host, headers=[*asked, *NAVIGATION])
    assert answer.status == 401
    assert answer.values("location") == []
    assert answer.header("x-login-url").startswith(f"{stack.url}/authservice/login?rd=")
    begun = stack.person().send(answer.header("x-login-url"))
    assert begun.answer.status == 302
    assert begun.location.startswith(stack.provider.issuer)
