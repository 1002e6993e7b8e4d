"""What a client says of itself never reaches the application: through every gateway, on protected
paths, on skipped ones, and on preflights."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Shared, each_of
from tests.e2e.gateways import KINDS
from tests.e2e.stack import Stack

pytestmark = pytest.mark.external

EVIL = "evil-admin"
OURS = ("kubeflow-userid", "kubeflow-groups", "auth-method")


def spellings(name: str) -> dict[str, list[tuple[str, str]]]:
    """Ways to write one identity header, by what is odd about them."""
    under, title = name.replace("-", "_"), name.title()
    return {
        "lower": [(name, EVIL)],
        "title": [(title, EVIL)],
        "capitals": [(name.upper(), EVIL)],
        "underscore": [(under, EVIL)],
        "underscore-capitals": [(under.upper(), EVIL)],
        "underscore-title": [(title.replace("-", "_"), EVIL)],
        "dot": [(name.replace("-", "."), EVIL)],
        "dot-title": [(title.replace("-", "."), EVIL)],
        "doubled": [(name, EVIL), (name, EVIL + "-2")],
        "doubled-mixed": [(name, EVIL), (title, EVIL + "-2"), (under, EVIL + "-3")],
        "blank-before-colon": [(name + " ", EVIL)],
        "tab-before-colon": [(name + "\t", EVIL)],
        "folded": [("X-Other", f"1\r\n {name}: {EVIL}")],
        "empty-then-evil": [(name, ""), (name, EVIL)],
        "hop-by-hop": [("Connection", f"close, {name}"), (name, EVIL)],
    }


@pytest.fixture(params=each_of(*KINDS, "lenient envoy"))
def gated(request: pytest.FixtureRequest, shared_stack: Shared) -> Stack:
    """Each gateway, and an Envoy that lets underscores pass, so that our own list has to do it all."""
    return shared_stack(request.param)


CASES = [(name, oddity) for name in OURS for oddity in spellings(name)]


def forged(name: str, oddity: str, marker: str) -> list[tuple[str, str]]:
    return [("X-Marker", marker), ("Accept", "text/html"), *spellings(name)[oddity]]


def assert_not_fooled(stack: Stack, marker: str, name: str) -> None:
    """Nothing of what the client claimed is in any line that an application might take for ours."""
    for seen in stack.reached(marker):
        for key, value in seen.like(name):
            assert EVIL not in value, f"forged {key!r} reached the application"


@pytest.mark.parametrize(("name", "oddity"), CASES)
def test_H03_S10_a_forged_header_on_a_protected_path_is_replaced_by_ours(
    gated: Stack, marker: str, name: str, oddity: str
) -> None:
    person = gated.one_logged_in()
    visit = person.send(gated.url + "/protected/page", headers=forged(name, oddity, marker))
    assert_not_fooled(gated, marker, name)
    if visit.answer.status == 400:  # the gateway itself refuses malformed lines
        assert oddity in ("blank-before-colon", "tab-before-colon", "folded")
        return
    assert visit.answer.status == 200
    (seen,) = gated.reached(marker)
    lines = {header: [value for _, value in seen.like(header)] for header in OURS}
    if oddity == "hop-by-hop":  # a client may strip what it is entitled to, and gains nothing by it
        assert lines[name] in ([], [WHO[name]])
        return
    assert lines == {header: [value] for header, value in WHO.items()}


WHO = {"kubeflow-userid": "alice@example.org", "kubeflow-groups": "a,b", "auth-method": "cookie"}


@pytest.mark.parametrize(("name", "oddity"), CASES)
def test_S11_a_forged_header_on_a_skipped_path_is_taken_off(
    gated: Stack, marker: str, name: str, oddity: str
) -> None:
    answer = gated.request("GET", "/public/page", forged(name, oddity, marker))
    assert_not_fooled(gated, marker, name)
    if answer.status == 400:
        assert oddity in ("blank-before-colon", "tab-before-colon", "folded")
        return
    assert answer.status == 200
    (seen,) = gated.reached(marker)
    for header in OURS:
        assert [value for _, value in seen.like(header) if value] == []


def test_S11_the_skipped_path_is_open_to_everybody_and_tells_nobody(gated: Stack, marker: str) -> None:
    answer = gated.request("GET", "/public/page?x=1", [("X-Marker", marker)])
    assert answer.status == 200
    (seen,) = gated.reached(marker)
    assert seen.target == "/public/page?x=1"
    assert [value for header in OURS for _, value in seen.like(header) if value] == []


def test_S12_a_person_who_may_not_still_gets_a_skipped_path(gated: Stack, marker: str) -> None:
    bob = gated.person("bob")
    assert bob.log_in(gated.url + "/").answer.status == 403
    visit = bob.send(gated.url + "/public/page", headers=[("X-Marker", marker), ("kubeflow-userid", EVIL)])
    assert visit.answer.status == 200
    (seen,) = gated.reached(marker)
    assert [value for header in OURS for _, value in seen.like(header) if value] == []


@pytest.mark.parametrize("kind", each_of("envoy", "lenient envoy"))
def test_H03_a_preflight_that_is_let_pass_carries_no_forged_identity(
    shared_stack: Shared, kind: str, marker: str
) -> None:
    enveloped = shared_stack(kind)
    preflight = [("Origin", "https://elsewhere.example"), ("Access-Control-Request-Method", "PUT")]
    for name in OURS:
        for oddity in spellings(name):
            answer = enveloped.request("OPTIONS", "/api", [*preflight, *forged(name, oddity, marker)])
            assert answer.status in (200, 400), oddity
            assert_not_fooled(enveloped, marker, name)
    assert enveloped.reached(marker)


@pytest.mark.xdist_group("e2e-envoy")
def test_H07_only_a_true_preflight_passes(enveloped: Stack, marker: str) -> None:
    known = [("X-Marker", marker)]
    for headers in ([], [("Origin", "https://x.example")], [("Access-Control-Request-Method", "GET")]):
        assert enveloped.request("OPTIONS", "/api", [*known, *headers]).status == 401
    both = [("Origin", "https://x.example"), ("Access-Control-Request-Method", "GET")]
    for method in ("GET", "POST", "HEAD", "PROPFIND"):
        override = [("X-HTTP-Method-Override", "OPTIONS"), ("X-Method-Override", "OPTIONS")]
        assert enveloped.request(method, "/api", [*known, *both, *override]).status in (302, 401)
    assert enveloped.reached(marker) == []
