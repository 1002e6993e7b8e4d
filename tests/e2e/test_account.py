"""A person's own session behind each gateway: the page, its forms, and who scripts are told they are."""

from __future__ import annotations

import pytest

from tests.e2e.person import NAVIGATION
from tests.e2e.stack import Stack

pytestmark = pytest.mark.external

PAGE, USERINFO = "/authservice/site/session", "/authservice/userinfo"
SCRIPT = [("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Mode", "cors"), ("Accept", "*/*")]
FORM = [
    *(line for line in NAVIGATION if line[0] != "Sec-Fetch-Site"),
    ("Sec-Fetch-Site", "same-origin"),
    ("Content-Type", "application/x-www-form-urlencoded"),
]
OUTSIDER = "bob"
"""Whose sessions no other test needs to last. He may not pass here, and is told who he is all the same."""


def test_scripts_are_told_who_is_logged_in_or_where_to_log_in(gated: Stack) -> None:
    told = gated.one_logged_in().send(gated.url + USERINFO, headers=SCRIPT).answer
    assert told.status == 200 and told.json()["user"], told
    assert told.header("cache-control") == "no-store" and "Cookie" in told.header("vary")
    nobody = gated.person("nobody").send(gated.url + USERINFO, headers=SCRIPT).answer
    assert nobody.status == 401 and nobody.json()["login_url"].endswith("/authservice/login")


def test_logging_out_everywhere_by_the_form(gated: Stack) -> None:
    laptop, phone = gated.person(OUTSIDER), gated.person(OUTSIDER)
    for person in (laptop, phone):
        assert person.log_in(gated.url + "/").answer.status == 403
    shown = laptop.send(gated.url + PAGE).answer
    assert shown.status == 200 and "1 other session" in shown.text and OUTSIDER in shown.text
    cross = [("Sec-Fetch-Site", "cross-site") if name == "Sec-Fetch-Site" else (name, value) for name, value in FORM]
    assert laptop.send(gated.url + PAGE, "POST", headers=cross, body=b"end=all").answer.status == 403
    assert phone.send(gated.url + USERINFO, headers=SCRIPT).answer.status == 200
    assert laptop.send(gated.url + PAGE, "POST", headers=FORM, body=b"end=all").answer.status in (201, 303)
    for person in (laptop, phone):
        for _ in range(8):  # spread over the workers
            assert person.send(gated.url + "/").answer.status == 302
        assert person.send(gated.url + USERINFO, headers=SCRIPT).answer.status == 401
