"""Headers with claims and tokens, as applications behind real gateways see them. To each shipped configuration the
lines are added that docs/headers.md names, read from there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from textwrap import indent

import pytest

from tests.e2e import gateways
from tests.e2e.conftest import StartStack, each_of
from tests.e2e.stack import Stack

pytestmark = [pytest.mark.external]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "headers.md"
SETTINGS = {
    "UPSTREAM_HEADERS": "oauth2-proxy",
    "UPSTREAM_ACCESS_TOKEN_HEADER": "X-Auth-Request-Access-Token",
    "UPSTREAM_ID_TOKEN_HEADER": "Authorization",
}
WHO = {
    "x-auth-request-user": ["alice"],
    "x-auth-request-email": ["alice@example.org"],
    "x-auth-request-preferred-username": ["alice"],
    "x-auth-request-groups": ["a,b"],
}
TOKENS = ("x-auth-request-access-token", "authorization")


def spellings(name: str) -> list[str]:
    """All that an application behind CGI or WSGI takes for this header, in all cases by turns."""
    first, *words = name.split("-")
    found = [first]
    for word in words:
        found = [f"{before}{joint}{word}" for before in found for joint in "-_"]
    return [case(one) for one, case in zip(found, cycle((str.lower, str.title, str.upper)), strict=False)]


EVIL = [
    ("Authorization", "Basic ZXZpbA=="),
    *((spelt, "evil") for name in (*WHO, TOKENS[0]) for spelt in spellings(name)),
]

Change = tuple[str, bool]

PLACES: Mapping[str, tuple[str, Sequence[Change]]] = {
    "envoy": ("envoy/envoy.yaml", [(r" *- \{exact: auth-method, ignore_case: true\}\n", True)] * 2),
    "nginx": ("nginx/authservice.conf", [(r" *proxy_set_header Auth-Method \$authservice_method;\n", True)] * 2),
    "traefik": ("traefik/dynamic.yml", [(r" *authResponseHeaders: .*\n", False)] * 2),
    "caddy": ("caddy/Caddyfile", [(r"\t*copy_headers .*\n", False)] * 2),
}
"""For each gateway the file, and for each block of the page the line in it where it belongs, and whether that line stays
before the block."""


def blocks_of_the_page(kind: str) -> list[str]:
    section = re.split(r"(?m)^### ", PAGE.read_text("utf-8"))
    (text,) = [part for part in section if part.lower().startswith(kind + "\n")]
    return re.findall(r"```\w+\n(.*?)```", text, re.DOTALL)


def told_of_the_headers(kind: str, text: str) -> str:
    """The gateway's file with the blocks of the page."""
    changes = PLACES[kind][1]
    for (line, stays), block in zip(changes, blocks_of_the_page(kind), strict=True):
        (found,) = re.findall(line, text)
        added = indent(block, found[: len(found) - len(found.lstrip())])
        text = text.replace(found, found + added if stays else added)
    return text


@pytest.fixture(params=each_of(*gateways.KINDS, "lenient envoy"))
def gated(
    request: pytest.FixtureRequest, own_stack: StartStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Stack:
    """A stack behind each gateway in turn, told of the headers."""
    kind = request.param.removeprefix("lenient ")
    shutil.copytree(gateways.FILES, tmp_path / "deploy")
    changed = tmp_path / "deploy" / PLACES[kind][0]
    changed.write_text(told_of_the_headers(kind, changed.read_text()))
    monkeypatch.setattr(gateways, "FILES", tmp_path / "deploy")
    stack: Stack = own_stack(request.param, SETTINGS, claims_in_userinfo_only=False)
    return stack


def told(stack: Stack, marker: str) -> dict[str, list[str]]:
    """What an application might take for these headers, of the one request that reached it."""
    (seen,) = stack.reached(marker)
    return {name: [value for _, value in seen.like(name) if value] for name in (*WHO, *TOKENS)}


def test_claims_and_tokens_reach_the_application_and_forged_ones_do_not(gated: Stack, marker: str) -> None:
    person = gated.logged_in()
    assert person.send(gated.url + "/app", headers=[("X-Marker", marker), *EVIL]).answer.status == 200
    seen = told(gated, marker)
    given = gated.provider.tokens()
    (access,), (bearer,) = (seen.pop(name) for name in TOKENS)
    assert seen == WHO
    assert access in given and gated.provider.accepts(access)
    scheme, _, id_token = bearer.partition(" ")
    assert scheme == "Bearer" and id_token in given and id_token.count(".") == 2 and id_token != access

    nobody = marker + "-nobody"
    assert gated.request("GET", "/public/x", [("X-Marker", nobody), *EVIL]).status == 200
    assert told(gated, nobody) == {name: [] for name in (*WHO, *TOKENS)}

    program = marker + "-program"
    forged = [line for line in EVIL if line[0] != "Authorization"]
    headers = [("X-Marker", program), ("Authorization", f"Bearer {id_token}"), *forged]
    assert gated.request("GET", "/app", headers).status == 200
    assert told(gated, program) == {**WHO, TOKENS[0]: [], TOKENS[1]: [bearer]}

    carol, hers = gated.person("carol"), marker + "-hers"
    carol.log_in(gated.url + "/")
    assert carol.send(gated.url + "/app", headers=[("X-Marker", hers), *EVIL]).answer.status == 200
    seen = told(gated, hers)
    assert seen["x-auth-request-user"] == ["carol"] and seen["x-auth-request-groups"] == []
