"""Headers with claims, as applications behind real gateways see them. To each shipped configuration the lines are
added that docs/headers.md names, read from there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from textwrap import indent

import pytest

from tests.e2e import gateways
from tests.e2e.conftest import StartStack, each_of
from tests.e2e.stack import Stack

pytestmark = [pytest.mark.external]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "headers.md"
SETTINGS = {"UPSTREAM_HEADERS": "oauth2-proxy"}
WHO = {
    "x-auth-request-user": ["alice"],
    "x-auth-request-email": ["alice@example.org"],
    "x-auth-request-preferred-username": ["alice"],
    "x-auth-request-groups": ["a,b"],
}
EVIL = [(spelt, "evil") for name in WHO for spelt in (name, name.title(), name.replace("-", "_").upper())]

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
    """A stack behind each gateway in turn, told of the headers."""
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


def told(stack: Stack, marker: str) -> dict[str, list[str]]:
    """What an application might take for these headers, of the one request that reached it."""
    (seen,) = stack.reached(marker)
    return {name: [value for _, value in seen.like(name) if value] for name in WHO}


def test_claims_reach_the_application_and_forged_ones_do_not(gated: Stack, marker: str) -> None:
    person = gated.logged_in()
    assert person.send(gated.url + "/app", headers=[("X-Marker", marker), *EVIL]).answer.status == 200
    assert told(gated, marker) == WHO
    nobody = marker + "-nobody"
    assert gated.request("GET", "/public/x", [("X-Marker", nobody), *EVIL]).status == 200
    assert told(gated, nobody) == {name: [] for name in WHO}
    carol, hers = gated.person("carol"), marker + "-hers"
    carol.log_in(gated.url + "/")
    assert carol.send(gated.url + "/app", headers=[("X-Marker", hers), *EVIL]).answer.status == 200
    assert told(gated, hers) == {
        "x-auth-request-user": ["carol"],
        "x-auth-request-email": ["carol@example.org"],
        "x-auth-request-preferred-username": ["carol"],
        "x-auth-request-groups": [],
    }
