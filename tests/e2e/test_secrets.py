"""S-33: after a run through everything that can go right and wrong, no secret stands in a log.

Every other stack of the end-to-end tests is searched in the same way when it stops; here the
search itself is shown to find what it looks for.
"""

from __future__ import annotations

import pytest

from tests.e2e.conftest import StartStack
from tests.e2e.person import NAVIGATION

pytestmark = pytest.mark.external

SAME_ORIGIN = [("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Mode", "cors")]


def test_S33_no_log_holds_a_secret(own_stack: StartStack) -> None:
    stack = own_stack("envoy", {"GROUPS_ALLOWLIST": "a"})
    alice, bob = stack.logged_in("alice"), stack.person("bob")
    assert bob.log_in(stack.url + "/").answer.status == 403
    value = alice.cookies(stack.url + "/")["authservice_session"]
    for target in ("/", f"/page?session={value}&token={value}"):
        stack.request("GET", target, [("Authorization", f"Bearer {value}")])
        stack.request("GET", target, [*NAVIGATION, ("Cookie", f"authservice_session={value}x")])
    callback = next(visit.url for visit in alice.history if "/oidc/callback?" in visit.url)
    for broken in (
        callback,
        callback + "&code=again",
        callback + "&state=again",
        callback.replace("state=", "state=x"),
    ):
        alice.send(broken)
        stack.person().send(broken)
    stack.provider.fail("/token", 401)
    carol = stack.person("carol")
    assert carol.log_in(stack.url + "/").answer.status == 502
    stack.provider.mend("/token")
    stack.provider.fail("/me", 500)
    assert carol.log_in(stack.url + "/").answer.status == 502
    stack.provider.mend("/me")
    stack.provider.fail("/token/revocation", 500)
    assert alice.send(stack.url + "/authservice/logout", "POST", headers=SAME_ORIGIN).answer.status == 201
    stack.provider.kill()
    assert stack.person("bob").send(callback).answer.status == 400

    secrets = stack.secrets()
    assert value in secrets and len(secrets) > 15
    log = stack.service.program.log_text()
    assert len(log.splitlines()) > 15, "nothing was logged, so nothing was shown"
    assert [secret for secret in secrets if secret in log] == []


def test_S33_one_line_for_each_refusal_names_its_reason(own_stack: StartStack) -> None:
    stack = own_stack("envoy")
    before = len(stack.service.program.log_text().splitlines())
    stack.request("GET", "/authservice/oidc/callback?code=x&state=y", NAVIGATION)
    told = stack.service.program.log_text().splitlines()[before:]
    assert sum("login_not_ours" in line for line in told) == 1
