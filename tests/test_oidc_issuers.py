"""Further issuers: what is asked of them, when, and what is kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from authservice.check import NeedsIO, Reach
from authservice.errors import NotReady, ProviderMisdescribed, Unavailable
from authservice.oidc.issuers import FurtherIssuer, KeySource
from authservice.oidc.metadata import MetadataWrong, read_key_address
from authservice.oidc.provider import Provider
from authservice.oidc.source import COOL_DOWN, KEY_FETCH_BURST, METADATA_LIFETIME
from authservice.outbound import Http, Zone
from tests.provider import FakeProvider
from tests.relying_party import MovableClock


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as provider:
        yield provider


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


Make = Callable[..., FurtherIssuer]


@pytest.fixture
def make(fake: FakeProvider, clock: MovableClock) -> Make:
    def make_issuer(issuer: str = "", seconds: float = 5, **more: Any) -> FurtherIssuer:
        return FurtherIssuer(issuer or fake.issuer, Http(timeout=timedelta(seconds=seconds)), now=clock, **more)

    return make_issuer


def endpoints(fake: FakeProvider) -> list[str]:
    return [call.endpoint for call in fake.calls()]


def test_nothing_is_asked_before_it_is_needed(fake: FakeProvider, make: Make) -> None:
    issuer: KeySource = make()
    assert not fake.calls()
    with pytest.raises(NeedsIO):
        issuer.keys(Reach.MEMORY)
    assert not fake.calls()
    assert issuer.keys(Reach.NETWORK).names(fake.kid)
    assert issuer.keys(Reach.MEMORY) is issuer.keys(Reach.NETWORK)
    assert endpoints(fake) == ["discovery", "jwks"]


def test_the_provider_is_such_a_source_too(fake: FakeProvider, clock: MovableClock) -> None:
    source: KeySource = Provider(fake.issuer, Http(), now=clock)
    assert source.keys(Reach.NETWORK).names(fake.kid)


def test_with_the_address_of_its_keys_no_discovery(fake: FakeProvider, make: Make) -> None:
    fake.misbehave("discovery_error_500")
    issuer = make(issuer="https://ci.example", jwks_url=fake.address("jwks"))
    assert issuer.keys().names(fake.kid)
    assert endpoints(fake) == ["jwks"]


def test_only_two_members_of_its_discovery_document_count(fake: FakeProvider, make: Make) -> None:
    """The issuer of a cluster has neither a token endpoint nor an authorization endpoint."""
    fake.metadata.update(
        authorization_endpoint=None, token_endpoint=None, userinfo_endpoint=[], revocation_endpoint="x",
        token_endpoint_auth_methods_supported=["private_key_jwt"], response_types_supported=1,
    )  # fmt: skip
    assert make().keys().names(fake.kid)


ISSUER = "https://i.example"


@pytest.mark.parametrize(
    "document",
    [
        {}, {"jwks_uri": f"{ISSUER}/k"}, {"issuer": ISSUER}, {"issuer": ISSUER + "/", "jwks_uri": f"{ISSUER}/k"},
        {"issuer": [ISSUER], "jwks_uri": f"{ISSUER}/k"}, {"issuer": ISSUER.upper(), "jwks_uri": f"{ISSUER}/k"},
        {"issuer": ISSUER, "jwks_uri": "http://i.example/k"}, {"issuer": ISSUER, "jwks_uri": ""},
        {"issuer": ISSUER, "jwks_uri": "file:///etc/passwd"}, {"issuer": ISSUER, "jwks_uri": None},
        {"issuer": ISSUER, "jwks_uri": "https://169.254.169.254/"}, {"issuer": ISSUER, "jwks_uri": 1},
    ],
)  # fmt: skip
def test_p07_p08_d13_documents_that_are_wrong(document: dict[str, Any]) -> None:
    with pytest.raises(MetadataWrong):
        read_key_address(document, ISSUER, Zone.PUBLIC)


def test_p07_the_key_set_may_lie_as_far_inside_as_the_issuer() -> None:
    found = read_key_address({"issuer": ISSUER, "jwks_uri": "https://10.0.0.1/k"}, ISSUER, Zone.PRIVATE)
    assert found.farthest(found.jwks_uri) is Zone.PRIVATE


def test_c01_a_document_of_another_issuer_gives_no_keys(fake: FakeProvider, make: Make) -> None:
    fake.misbehave("other_issuer")
    with pytest.raises(ProviderMisdescribed) as caught:
        make().keys()
    assert isinstance(caught.value, Unavailable) and not fake.calls("jwks")


@pytest.mark.parametrize("fault", ["discovery_error_500", "silent_discovery", "jwks_error_404", "jwks_html"])
def test_out_of_reach_is_asked_again_after_the_cool_down(
    fake: FakeProvider, make: Make, clock: MovableClock, fault: str
) -> None:
    fake.misbehave(fault)
    issuer = make()
    for _ in range(20):
        with pytest.raises(NotReady):
            issuer.keys()
    with pytest.raises(NotReady):
        issuer.keys(Reach.MEMORY)
    assert len(fake.calls()) <= 3, "a failure is not repeated at each request"
    fake.behave()
    clock.advance(seconds=COOL_DOWN.total_seconds() + 1)
    with pytest.raises(NeedsIO):
        issuer.keys(Reach.MEMORY)
    assert issuer.keys().names(fake.kid)


@pytest.mark.parametrize("jwks_url", [False, True])
def test_j23_old_keys_are_fetched_again_even_by_who_asks_memory_first(
    fake: FakeProvider, make: Make, clock: MovableClock, jwks_url: bool
) -> None:
    issuer = make(jwks_url=fake.address("jwks") if jwks_url else "")
    dropped = fake.kid
    assert issuer.keys().names(dropped)
    fake.rotate_keys()
    assert issuer.keys(Reach.MEMORY).names(dropped), "within the documented window"
    clock.advance(seconds=METADATA_LIFETIME.total_seconds() + 1)
    with pytest.raises(NeedsIO):
        issuer.keys(Reach.MEMORY)
    keys = issuer.keys()
    assert keys.names(fake.kid) and not keys.names(dropped)


@pytest.mark.parametrize("fault", ["jwks_error_500", "jwks_html", "discovery_error_500", "other_issuer"])
def test_p09_j24_the_last_good_keys_are_kept(
    fake: FakeProvider, make: Make, clock: MovableClock, fault: str
) -> None:
    issuer = make()
    keys = issuer.keys()
    fake.misbehave(fault)
    clock.advance(hours=2)
    assert issuer.keys() is keys
    asked = len(fake.calls())
    assert issuer.keys(Reach.MEMORY) is keys and issuer.keys() is keys and len(fake.calls()) == asked


def test_j13_the_budget_is_each_issuer_s_own(fake: FakeProvider, make: Make, clock: MovableClock) -> None:
    first, second = make(), make()
    keys, others = first.keys(), second.keys()
    fake.forget_calls()
    for _ in range(50):
        assert first.newer_keys(keys) is None
    assert len(fake.calls("jwks")) == KEY_FETCH_BURST
    fake.rotate_keys()
    newer = second.newer_keys(others)
    assert newer is not None and newer.names(fake.kid)
    clock.advance(seconds=11)
    assert first.newer_keys(keys) is not None


def test_p02_redirects_are_not_followed(fake: FakeProvider, make: Make) -> None:
    with FakeProvider() as other:
        fake.misbehave("redirect_jwks", other.address("jwks"))
        with pytest.raises(ProviderMisdescribed):
            make(jwks_url=fake.address("jwks")).keys()
        assert not other.calls()


def test_a_process_forked_while_it_was_being_asked_can_ask(fake: FakeProvider, make: Make) -> None:
    issuer = make()
    with issuer._fetching:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = 0 if issuer.keys().names(fake.kid) else 1
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
    assert issuer.keys()
