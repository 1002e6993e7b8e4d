"""Signed assertions behind real gateways: the application gets one and nobody else's, and finds the keys there. To each
shipped configuration the lines are added that docs/assertion.md names, read from there."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from textwrap import indent

import jwt
import pytest

from tests.e2e import gateways
from tests.e2e.conftest import StartStack, each_of
from tests.e2e.stack import Stack
from tests.e2e.test_upstream import spellings

pytestmark = [pytest.mark.external]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "assertion.md"
HEADER = "x-auth-assertion"
SETTINGS = {"UPSTREAM_ASSERTION_HEADER": "X-Auth-Assertion", "SECRET_KEYS": "a-key-of-our-own-that-nobody-knows"}
EVIL = [(spelt, "evil") for spelt in spellings(HEADER)]

PLACES: Mapping[str, tuple[str, str, bool]] = {
    "envoy": ("envoy/envoy.yaml", r" *- \{exact: auth-method, ignore_case: true\}\n", True),
    "nginx": ("nginx/authservice.conf", r" *proxy_set_header Auth-Method \$authservice_method;\n", True),
    "traefik": ("traefik/dynamic.yml", r" *authResponseHeaders: .*\n", False),
    "caddy": ("caddy/Caddyfile", r"\t*copy_headers .*\n", False),
}
"""For each gateway the file, the line in it, and whether that line stays before those of the page."""


def lines_of_the_page(kind: str) -> str:
    section = re.split(r"(?m)^### ", PAGE.read_text("utf-8"))
    (text,) = [part for part in section if part.lower().startswith(kind + "\n")]
    (block,) = re.findall(r"```\w+\n(.*?)```", text, re.DOTALL)
    return str(block)


@pytest.fixture(params=each_of(*gateways.KINDS, "lenient envoy"))
def gated(
    request: pytest.FixtureRequest, own_stack: StartStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Stack:
    """A stack behind each gateway in turn, told of the header."""
    kind = request.param.removeprefix("lenient ")
    file, line, stays = PLACES[kind]
    shutil.copytree(gateways.FILES, tmp_path / "deploy")
    changed = tmp_path / "deploy" / file
    text = changed.read_text()
    (found,) = re.findall(line, text)
    added = indent(lines_of_the_page(kind), found[: len(found) - len(found.lstrip())])
    changed.write_text(text.replace(found, found + added if stays else added))
    monkeypatch.setattr(gateways, "FILES", tmp_path / "deploy")
    stack: Stack = own_stack(request.param, SETTINGS)
    return stack


def told(stack: Stack, marker: str) -> list[str]:
    """What an application might take for an assertion, of the one request that reached it."""
    (seen,) = stack.reached(marker)
    return [value for _, value in seen.like(HEADER) if value]


def test_an_application_verifies_who_is_calling(gated: Stack, marker: str) -> None:
    published = gated.request("GET", "/authservice/jwks.json")
    assert published.status == 200
    person = gated.logged_in()
    assert person.send(gated.url + "/app", headers=[("X-Marker", marker), *EVIL]).answer.status == 200
    (assertion,) = told(gated, marker)
    key = jwt.PyJWKSet.from_dict(json.loads(published.text))[jwt.get_unverified_header(assertion)["kid"]]
    claims = jwt.decode(
        assertion, key, algorithms=["ES256"], issuer=gated.url + "/authservice", audience=gated.host, leeway=5
    )
    assert (claims["sub"], claims["groups"]) == ("alice@example.org", ["a", "b"])
    nobody = marker + "-nobody"
    assert gated.request("GET", "/public/x", [("X-Marker", nobody), *EVIL]).status == 200
    assert told(gated, nobody) == []
