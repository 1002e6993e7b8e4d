"""K10: the attributes of every ``Set-Cookie`` line that a deployment behind https ever sends."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import StartStack
from tests.e2e.person import Person
from tests.e2e.stack import Stack

pytestmark = pytest.mark.external

OUTSIDE = "https://app.localhost"


def every_line(person: Person) -> list[str]:
    """Each Set-Cookie value that came from our side of the world."""
    return [
        line
        for visit in person.history
        if visit.url.startswith(OUTSIDE)
        for line in visit.answer.values("set-cookie")
    ]


def walk_through_everything(stack: Stack) -> Person:
    """A login refused, a wrong callback, many pending logins, a login, a denial, a logout."""
    person = stack.person("alice")
    person.log_in(stack.url + "/", answer="no")
    person.send(stack.url + "/authservice/oidc/callback?code=x&state=y")
    for number in range(12):
        person.send(f"{stack.url}/tab/{number}")
    stack.provider.fail("/token", 500)
    assert person.log_in(stack.url + "/broken").answer.status == 502
    stack.provider.mend("/token")
    assert person.log_in(stack.url + "/page").answer.status == 200
    person.send(stack.url + "/authservice/oidc/callback?code=x&state=y")
    person.send(stack.url + "/authservice/logout", "POST", headers=[("Sec-Fetch-Site", "same-origin")])
    person.send(stack.url + "/authservice/login?rd=/x")
    return person


@pytest.mark.parametrize("name", ["authservice_session", "__Host-authservice_session"])
def test_K10_every_cookie_is_secure_http_only_lax_and_host_only(own_stack: StartStack, name: str) -> None:
    stack = own_stack("envoy", {"SESSION_COOKIE_NAME": name}, outside=OUTSIDE)
    person = walk_through_everything(stack)
    lines = every_line(person)
    assert sum(line.startswith(f"{name}=") for line in lines) >= 2  # set, and deleted
    assert any("max-age=0" in line.lower() for line in lines)
    assert len(lines) > 12
    for line in lines:
        attributes = {part.strip().lower() for part in line.split(";")[1:]}
        assert {"secure", "httponly", "samesite=lax", "path=/"} <= attributes, line
        assert not any(attribute.startswith("domain") for attribute in attributes), line
        if name.startswith("__Host-"):
            assert line.startswith("__Host-"), line


def test_S31_K14_the_pending_logins_of_one_browser_are_few_and_small(own_stack: StartStack) -> None:
    stack = own_stack("envoy")
    person = stack.person()
    for number in range(40):
        person.send(f"{stack.url}/tab/{number}?" + "q" * 900)
    cookies = person.cookies(stack.url + "/")
    assert 1 <= len(cookies) <= 6
    assert sum(len(name) + len(value) for name, value in cookies.items()) < 16_000
    for visit in person.history:
        assert len(visit.answer.values("set-cookie")) <= 40
