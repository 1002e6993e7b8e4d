"""The OpenID Foundation's relying-party modules, each under its own name.

The provider judges as the certification suite does: a token is taken for refused when userinfo is
not called, and every call to it must be one that it published. Beyond that, the outcome of the
login itself is looked at. The suite's issuers have a path and end in a slash, and so does ours.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator

import pytest

from authservice.errors import NotReady, ProviderWrong
from tests.provider import FakeProvider, public_jwk, rsa_key
from tests.relying_party import RelyingParty


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(path="/test/a/authservice/") as provider:
        yield provider
        assert not provider.calls("unknown"), "nothing was called that was not published (D9)"


def accepted(rp: RelyingParty) -> None:
    """The module ends with a userinfo call, the token in the header, and the login holds."""
    before = rp.called("userinfo")
    assert rp.login().claims["sub"] == rp.fake.claims["sub"]
    assert rp.called("userinfo") == before + 1
    _judge_requests(rp)


def rejected(rp: RelyingParty, *misbehaviours: str) -> None:
    """No userinfo call after the token request, and the login does not hold."""
    assert rp.refused_login(ProviderWrong, *misbehaviours).status == 502
    assert rp.called("token") == 1 and rp.called("userinfo") == 0
    _judge_requests(rp)


def _judge_requests(rp: RelyingParty) -> None:
    """What the suite checks in every module."""
    for call in rp.fake.calls("authorize"):
        asked = call.query
        assert asked["response_type"] == "code" and asked["client_id"] == rp.fake.client_id
        assert (
            "openid" in asked["scope"].split() and "request" not in asked and "#" not in asked["redirect_uri"]
        )
        assert not (asked.get("max_age") == "0" and asked.get("prompt") == "none")
        assert asked["code_challenge_method"] == "S256" and len(asked["nonce"]) <= 43
    for call in rp.fake.calls("token"):
        assert call.method == "POST" and call.form["grant_type"] == "authorization_code"
        assert call.form.get("client_id", rp.fake.client_id) == rp.fake.client_id
        assert call.form["redirect_uri"] and call.headers["authorization"].startswith("Basic ")
    for call in rp.fake.calls("userinfo"):
        assert call.headers["authorization"].startswith("Bearer ") and not call.query and not call.form
    challenges = [call.query["code_challenge"] for call in rp.fake.calls("authorize")]
    assert len(set(challenges)) == len(challenges), "a fresh verifier each time (D5)"


def client_test(fake: FakeProvider) -> None:
    accepted(RelyingParty(fake))


def kid_absent_single(fake: FakeProvider) -> None:
    fake.misbehave("no_kid")
    accepted(RelyingParty(fake))


def kid_absent_multiple(fake: FakeProvider) -> None:
    """Accepting and rejecting both pass; ours tries each fitting key."""
    fake.misbehave("no_kid")
    others = [public_jwk(rsa_key(number), use="sig", alg="RS256") for number in (1, 2)]
    fake.misbehave("key_set", {"keys": [*others, *fake.key_set()["keys"]]})
    accepted(RelyingParty(fake))


def sig_rs256(fake: FakeProvider) -> None:
    fake.metadata["id_token_signing_alg_values_supported"] = ["RS256"]
    accepted(RelyingParty(fake))


def rejection(name: str) -> Callable[[FakeProvider], None]:
    return lambda fake: rejected(RelyingParty(fake), name)


def userinfo_invalid_sub(fake: FakeProvider) -> None:
    rp = RelyingParty(fake)
    assert rp.refused_login(ProviderWrong, "userinfo_other_sub").status == 502
    assert rp.called("userinfo") == 1


def scope_userinfo_claims(fake: FakeProvider) -> None:
    rp = RelyingParty(fake)
    accepted(rp)
    (call,) = fake.calls("authorize")
    assert {"profile", "email", "phone", "address"} & set(call.query["scope"].split())


def client_secret_basic(fake: FakeProvider) -> None:
    fake.metadata["token_endpoint_auth_methods_supported"] = ["client_secret_basic"]
    accepted(RelyingParty(fake))


def discovery_openid_config(fake: FakeProvider) -> None:
    """The metadata is fetched before anything else, and nothing follows unasked."""
    rp = RelyingParty(fake)
    rp.begin()
    (call,) = fake.calls("discovery")
    assert call.path == "/test/a/authservice/.well-known/openid-configuration"
    assert [call.endpoint for call in fake.calls()] == ["discovery", "jwks"]


def discovery_jwks_uri(fake: FakeProvider) -> None:
    fake.jwks_path = f"jwks{secrets.token_hex(6)}"
    rp = RelyingParty(fake)
    rp.begin()
    assert [call.endpoint for call in fake.calls()] == ["discovery", "jwks"]
    assert fake.calls("jwks")[0].path.endswith(fake.jwks_path)
    accepted(rp)


def discovery_issuer_mismatch(fake: FakeProvider) -> None:
    fake.misbehave("other_issuer")
    rp = RelyingParty(fake)
    with pytest.raises(NotReady):
        rp.begin()
    rp.clock.advance(minutes=5)
    assert [call.endpoint for call in fake.calls()] == ["discovery"], "no redirect, no retry by the clock"


def rotation_just_before_signing(fake: FakeProvider) -> None:
    fake.misbehave("rotated_key")
    rp = RelyingParty(fake)
    accepted(rp)
    assert rp.called("jwks") == 2


def rotation(fake: FakeProvider) -> None:
    rp = RelyingParty(fake)
    accepted(rp)
    fake.rotate_keys()
    accepted(rp)
    assert rp.called("jwks") == 2 and rp.called("userinfo") == 2


Module = Callable[[FakeProvider], None]

BASIC: dict[str, Module] = {
    "oidcc-client-test": client_test,
    "oidcc-client-test-invalid-iss": rejection("wrong_issuer"),
    "oidcc-client-test-missing-sub": rejection("missing_sub"),
    "oidcc-client-test-invalid-aud": rejection("wrong_audience"),
    "oidcc-client-test-missing-iat": rejection("missing_iat"),
    "oidcc-client-test-kid-absent-single-jwks": kid_absent_single,
    "oidcc-client-test-kid-absent-multiple-jwks": kid_absent_multiple,
    "oidcc-client-test-idtoken-sig-rs256": sig_rs256,
    "oidcc-client-test-idtoken-sig-none": rejection("alg_none"),
    "oidcc-client-test-invalid-sig-rs256": rejection("bad_signature"),
    "oidcc-client-test-userinfo-invalid-sub": userinfo_invalid_sub,
    "oidcc-client-test-nonce-invalid": rejection("wrong_nonce"),
    "oidcc-client-test-scope-userinfo-claims": scope_userinfo_claims,
    "oidcc-client-test-client-secret-basic": client_secret_basic,
}
CONFIG: dict[str, Module] = {
    "oidcc-client-test-discovery-openid-config": discovery_openid_config,
    "oidcc-client-test-discovery-jwks-uri-keys": discovery_jwks_uri,
    "oidcc-client-test-discovery-issuer-mismatch": discovery_issuer_mismatch,
    "oidcc-client-test-idtoken-sig-none": rejection("alg_none"),
    "oidcc-client-test-signing-key-rotation-just-before-signing": rotation_just_before_signing,
    "oidcc-client-test-signing-key-rotation": rotation,
}


@pytest.mark.parametrize("module", BASIC)
def test_basic_rp(fake: FakeProvider, module: str) -> None:
    BASIC[module](fake)


@pytest.mark.parametrize("module", CONFIG)
def test_config_rp(fake: FakeProvider, module: str) -> None:
    CONFIG[module](fake)
