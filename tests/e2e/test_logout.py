"""Logging out, on real sockets: what ends, what is revoked, who may ask for it."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

import pytest

from authservice.sessions.seal import new_secret
from tests.e2e.conftest import StartStack
from tests.e2e.person import NAVIGATION, Person
from tests.e2e.stack import Stack
from tests.e2e.wire import request

pytestmark = pytest.mark.external

SAME_ORIGIN = [("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Mode", "cors"), ("Accept", "application/json")]


def session_of(person: Person, stack: Stack) -> str:
    return person.cookies(stack.url + "/").get("authservice_session", "")


def assert_session_is_gone(stack: Stack, value: str) -> None:
    """The value opens nothing any more: as a cookie, as a bearer, on any worker, on either port."""
    stale = Person("stale", {stack.host: stack.port})
    stale.keep(stack.url, "authservice_session", value)
    for _ in range(8):  # spread over the workers
        assert stale.send(stack.url + "/").answer.status == 302
    bearer = [("Authorization", f"Bearer {value}")]
    assert stack.service.check("/", headers=bearer).header("kubeflow-userid") == ""
    assert stack.request("POST", "/authservice/logout", bearer).status == 401


def assert_leads_to_the_provider(stack: Stack, told: dict[str, str]) -> None:
    """The provider takes the address: it knows its own ID token, and where to lead back to."""
    assert list(told) == ["afterLogoutURL"]
    url = urlsplit(told["afterLogoutURL"])
    assert f"{url.scheme}://{url.netloc}{url.path}" == f"{stack.provider.issuer}/session/end"
    asked = dict(parse_qsl(url.query))
    assert asked["post_logout_redirect_uri"] == f"{stack.url}/authservice/site/after_logout"
    assert asked["id_token_hint"] in stack.provider.issued() and asked["state"]
    answer = request(stack.provider.port, "GET", f"{url.path}?{url.query}")
    assert answer.status == 200, answer


def test_E2_S13_logout_by_bearer_ends_the_session(gated: Stack) -> None:
    person = gated.logged_in()
    value = session_of(person, gated)
    bare = person.send(gated.url + "/authservice/logout", "POST", headers=[])
    assert bare.answer.status == 401  # a bare cookie proves nothing
    assert person.send(gated.url + "/").answer.status == 200
    answer = gated.request("POST", "/authservice/logout", [("Authorization", f"Bearer {value}")])
    assert answer.status == 201
    assert_leads_to_the_provider(gated, answer.json())
    assert person.send(gated.url + "/").answer.status == 302
    assert_session_is_gone(gated, value)


def test_S13_logout_by_cookie_from_the_own_origin(gated: Stack) -> None:
    person = gated.logged_in()
    value = session_of(person, gated)
    visit = person.send(gated.url + "/authservice/logout", "POST", headers=SAME_ORIGIN)
    assert visit.answer.status == 201
    assert_leads_to_the_provider(gated, visit.answer.json())
    assert session_of(person, gated) == ""  # the deletion fits the cookie that was set
    assert_session_is_gone(gated, value)


def test_B43_a_form_is_led_over_the_provider(gated: Stack) -> None:
    """Through every gateway: the header with the ID token has to fit."""
    person = gated.logged_in()
    headers = [*(line for line in NAVIGATION if line[0] != "Sec-Fetch-Site"), ("Sec-Fetch-Site", "same-origin")]
    visit = person.send(gated.url + "/authservice/logout", "POST", headers=headers)
    assert visit.answer.status == 201 and session_of(person, gated) == ""
    assert_leads_to_the_provider(gated, {"afterLogoutURL": visit.answer.header("refresh").removeprefix("0; url=")})


@pytest.mark.xdist_group("e2e-envoy")
def test_S13_logout_works_on_both_ports(enveloped: Stack) -> None:
    for port in (enveloped.service.judge_port, enveloped.service.site_port):
        person = enveloped.logged_in()
        value = session_of(person, enveloped)
        person.connect = {enveloped.host: port}
        assert (
            person.send(enveloped.url + "/authservice/logout", "POST", headers=SAME_ORIGIN).answer.status
            == 201
        )
        assert_session_is_gone(enveloped, value)


@pytest.mark.parametrize(
    "headers",
    [
        [("Sec-Fetch-Site", "cross-site")],
        [("Sec-Fetch-Site", "same-site")],
        [("Sec-Fetch-Site", "none")],
        [("Sec-Fetch-Site", "cross-site"), ("Origin", "OWN")],
        [("Origin", "https://evil.example")],
        [("Origin", "null")],
        [("Referer", "OWN/x")],
        [("Authorization", "Bearer " + new_secret())],
        [("Authorization", "Bearer garbage")],
    ],
)
def test_S27_nobody_else_can_log_a_person_out(gated: Stack, headers: list[tuple[str, str]]) -> None:
    person = gated.one_logged_in()
    lines = [(name, value.replace("OWN", gated.url)) for name, value in headers]
    visit = person.send(gated.url + "/authservice/logout", "POST", headers=lines)
    assert visit.answer.status == 401
    assert visit.answer.values("set-cookie") == []
    assert person.send(gated.url + "/").answer.status == 200


def test_S27_get_never_logs_out(gated: Stack) -> None:
    person = gated.one_logged_in()
    for method in ("GET", "HEAD", "PUT", "DELETE"):
        for headers in (NAVIGATION, SAME_ORIGIN):
            visit = person.send(gated.url + "/authservice/logout", method, headers=headers)
            assert visit.answer.status == 405
            assert visit.answer.values("set-cookie") == []
    assert person.send(gated.url + "/").answer.status == 200


def test_the_tokens_are_revoked_at_the_provider(own_stack: StartStack) -> None:
    stack = own_stack("envoy")
    person = stack.logged_in()
    access, _refresh, _id = stack.provider.tokens()
    assert stack.provider.accepts(access)
    assert person.send(stack.url + "/authservice/logout", "POST", headers=SAME_ORIGIN).answer.status == 201
    assert not stack.provider.accepts(access)
    assert stack.provider.calls("/token/revocation") == 2


def test_an_unreachable_provider_keeps_no_session_alive(own_stack: StartStack) -> None:
    stack = own_stack("envoy")
    person = stack.logged_in()
    value = session_of(person, stack)
    stack.provider.fail("/token/revocation", 503)
    visit = person.send(stack.url + "/authservice/logout", "POST", headers=SAME_ORIGIN)
    assert visit.answer.status == 201
    told = visit.answer.json()
    assert told.pop("notRevoked"), "the answer must say that the tokens could not be revoked"
    assert_leads_to_the_provider(stack, told)
    assert_session_is_gone(stack, value)

    person = stack.logged_in("bob")
    stack.provider.kill()
    visit = person.send(stack.url + "/authservice/logout", "POST", headers=SAME_ORIGIN)
    assert visit.answer.status == 201
    assert len(visit.answer.json()) > 1
    assert person.cookies(stack.url + "/").get("authservice_session") is None
