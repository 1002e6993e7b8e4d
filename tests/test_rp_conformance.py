"""The OpenID Foundation's relying-party modules, each under its own name.

The provider judges as the certification suite does: a token is taken for refused when userinfo is
not called, and every call to it must be one that it published. Beyond that, the outcome of the
login itself is looked at. The suite's issuers have a path and end in a slash, and so does ours.
In the modules about logout the whole service is asked, as a browser and the provider ask it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from urllib.parse import urlencode

import jwt
import pytest

from authservice.errors import NotReady, ProviderWrong, SessionOver
from tests.conftest import CLIENT_ID, CLIENT_SECRET, Answer, Browser, ask
from tests.provider import Call, FakeProvider, nasty_sid, public_jwk, rsa_key
from tests.relying_party import RelyingParty, held


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(path="/test/a/authservice/") as provider:
        yield provider
        assert not provider.calls("unknown"), "nothing was called that was not published (D9)"


Module = Callable[[FakeProvider], None]


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
        assert call.method == "POST" and call.headers["authorization"].startswith("Basic ")
        assert call.form.get("client_id", rp.fake.client_id) == rp.fake.client_id
        if call.form["grant_type"] == "refresh_token":
            assert set(call.form) == {"grant_type", "refresh_token"}
        else:
            assert call.form["grant_type"] == "authorization_code" and call.form["redirect_uri"]
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


# --- §3.3: logout -----------------------------------------------------------------------------

AFTER_LOGOUT = "https://app.example/authservice/site/after_logout"
SITE = 8082
ServiceModule = Callable[[Browser], None]


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    """The provider of the whole service. Its ``sid`` are as nasty as the suite's (D20)."""
    with FakeProvider(client_id=CLIENT_ID, client_secret=CLIENT_SECRET, path="/test/a/authservice/") as fake:
        fake.has_end_session = True
        fake.new_sid = nasty_sid
        fake.post_logout_addresses = {AFTER_LOGOUT}
        yield fake
        assert not fake.calls("unknown"), "nothing was called that was not published (D9)"


@pytest.fixture
def person(provider: FakeProvider, make_browser: Callable[..., Browser]) -> Browser:
    """A person's browser in front of the service."""
    return make_browser(REDIRECT_URL="https://app.example/authservice/oidc/callback")


def log_out(person: Browser) -> str:
    """A login, and a logout that we begin: where the browser lands."""
    person.log_in()
    answer = person.send("POST", "/authservice/logout", Sec_Fetch_Site="same-origin")
    assert answer.status == 201 and person.session is None
    landed = person.provider.authorize_location(answer.json["afterLogoutURL"])
    (call,) = person.provider.calls("end_session")
    assert call.query["id_token_hint"] in person.provider._issued
    assert call.query["post_logout_redirect_uri"] == AFTER_LOGOUT and call.query["state"]
    page = person.get(landed.removeprefix("https://app.example"), port=SITE)
    assert page.status == 200 and "logged out" in page.text and not page.all("Location")
    assert person.get("/", Sec_Fetch_Mode="cors").status == 401
    return landed


def rp_init_logout(answered: str, *misbehaviours: str) -> ServiceModule:
    """The state that comes back decides nothing: the page that is landed on is the same."""

    def module(person: Browser) -> None:
        for name in misbehaviours:
            person.provider.misbehave(name)
        landed = log_out(person)
        (call,) = person.provider.calls("end_session")
        assert landed == AFTER_LOGOUT + answered.format(call.query["state"])

    return module


def back_channel(wrong: str = "") -> ServiceModule:
    """The logout token comes while our end-session request is still open."""

    def module(person: Browser) -> None:
        answers: list[Answer] = []

        def notify(call: Call) -> None:
            claims = jwt.decode(call.query["id_token_hint"], options={"verify_signature": False})
            token = person.provider.logout_token(wrong, sub=claims["sub"], sid=claims["sid"])
            form = urlencode({"logout_token": token, "extra": "field"}).encode()
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            answers.append(ask(
                person.app, "POST", "/authservice/backchannel-logout", port=SITE, headers=headers, body=form
            ))  # fmt: skip

        person.provider.on_end_session = notify
        log_out(person)
        (answer,) = answers
        assert answer.status == (400 if wrong else 200)
        assert answer.header("Cache-Control") == "no-store"

    return module


def framed(person: Browser, query: str) -> Answer:
    """The provider's page shows our logout address in a frame; that it loads is what counts."""
    answer = person.get(f"/authservice/frontchannel-logout{query}", port=SITE, Sec_Fetch_Dest="iframe")
    assert (answer.status, answer.header("Cache-Control")) == (200, "no-store")
    assert not answer.all("X-Frame-Options")
    policy = answer.header("Content-Security-Policy") or ""
    assert f"frame-ancestors {person.provider.origin}" in policy
    return answer


def front_channel_after_ours(person: Browser) -> None:
    """The frame comes between our end-session request and the way back."""
    log_out(person)
    framed(person, "")


def front_channel_begun_by_the_provider(person: Browser) -> None:
    """Without parameters, as the suite has it by default, and with them, put in as they are."""
    for parameters in (False, True):
        person.log_in()
        sid = list(person.provider._refresh_tokens.values())[-1].sid or ""
        query = "?" + urlencode({"iss": person.provider.issuer, "sid": sid}) if parameters else ""
        assert "logged out" in framed(person, query).text
        assert person.session is None and person.get("/", Sec_Fetch_Mode="cors").status == 401


# --- §3.4: refresh and others -----------------------------------------------------------------


def refresh_token(fake: FakeProvider) -> None:
    rp = RelyingParty(fake)
    session = held(rp.login())
    renewed = rp.renewal.renew(session)
    assert rp.called("userinfo") == 2
    assert fake.calls("userinfo")[1].headers["authorization"] == f"Bearer {renewed.access_token}"
    _judge_requests(rp)


def refused_refresh(name: str) -> Module:
    def module(fake: FakeProvider) -> None:
        rp = RelyingParty(fake)
        session = held(rp.login())
        fake.misbehave(name)
        with pytest.raises(SessionOver):
            rp.renewal.renew(session)
        assert rp.called("token") == 2 and rp.called("userinfo") == 1, "no userinfo call after it"
        _judge_requests(rp)

    return module



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
_BACK_CHANNEL = "oidcc-client-test-rp-backchannel-rpinitlogout"
RP_INITIATED: dict[str, ServiceModule] = {
    "oidcc-client-test-rp-init-logout": rp_init_logout("?state={}"),
    "oidcc-client-test-rp-init-logout-other-state": rp_init_logout("?state={}-other", "end_session_other_state"),
    "oidcc-client-test-rp-init-logout-no-state": rp_init_logout("", "end_session_no_state"),
}
BACK_CHANNEL: dict[str, ServiceModule] = {
    _BACK_CHANNEL: back_channel(),
    f"{_BACK_CHANNEL}-alg-none": back_channel("alg_none"),
    f"{_BACK_CHANNEL}-no-event": back_channel("no_event"),
    f"{_BACK_CHANNEL}-with-nonce": back_channel("with_nonce"),
    f"{_BACK_CHANNEL}-wrong-alg": back_channel("wrong_alg"),
    f"{_BACK_CHANNEL}-wrong-aud": back_channel("wrong_aud"),
    f"{_BACK_CHANNEL}-wrong-event": back_channel("wrong_event"),
    f"{_BACK_CHANNEL}-wrong-iss": back_channel("wrong_iss"),
}
FRONT_CHANNEL: dict[str, ServiceModule] = {
    "oidcc-client-test-rp-frontchannel-rpinitlogout": front_channel_after_ours,
    "oidcc-client-test-rp-frontchannel-opinitlogout": front_channel_begun_by_the_provider,
}
REFRESH: dict[str, Module] = {
    "oidcc-client-test-refresh-token": refresh_token,
    "oidcc-client-test-refresh-token-invalid-issuer": refused_refresh("refresh_other_iss"),
    "oidcc-client-test-refresh-token-invalid-sub": refused_refresh("refresh_other_sub"),
    "oidcc-client-test-missing-aud": rejection("missing_aud"),
}


@pytest.mark.parametrize("module", BASIC)
def test_basic_rp(fake: FakeProvider, module: str) -> None:
    BASIC[module](fake)


@pytest.mark.parametrize("module", CONFIG)
def test_config_rp(fake: FakeProvider, module: str) -> None:
    CONFIG[module](fake)


@pytest.mark.parametrize("module", RP_INITIATED)
def test_rp_initiated_logout(person: Browser, module: str) -> None:
    RP_INITIATED[module](person)


@pytest.mark.parametrize("module", BACK_CHANNEL)
def test_back_channel_logout(person: Browser, module: str) -> None:
    BACK_CHANNEL[module](person)


@pytest.mark.parametrize("module", FRONT_CHANNEL)
def test_front_channel_logout(person: Browser, module: str) -> None:
    FRONT_CHANNEL[module](person)


@pytest.mark.parametrize("module", REFRESH)
def test_refresh_and_others(fake: FakeProvider, module: str) -> None:
    REFRESH[module](fake)
