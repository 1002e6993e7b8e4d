"""Bearer tokens against their issuer's keys: JOSE (J), claims (C) and S-20 for programs' tokens."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authservice.check import NeedsIO, Reach
from authservice.errors import NotReady, Unavailable
from authservice.oidc.issuers import FurtherIssuer
from authservice.oidc.jws import glance
from authservice.oidc.keys import KeySet, read_key_set
from authservice.oidc.provider import Provider
from authservice.oidc.source import KEY_FETCH_BURST, METADATA_LIFETIME
from authservice.oidc.tokens import ACCESS_TOKEN, BEARER_ID_TOKEN, ID_TOKEN, Expected, KeyUnknown, Profile, TokenRefused
from authservice.oidc.verifier import Verifier
from authservice.outbound import Http
from tests.provider import FakeProvider, ec_key, public_jwk, rsa_key
from tests.relying_party import MovableClock
from tests.test_oidc_tokens import (
    CLIENT,
    FORGED,
    GOOD,
    ISSUER,
    KEYS,
    NOW,
    ODD_VALUES,
    b64,
    claims,
    hs256,
    sign,
)

AUDIENCES = frozenset({"api", "api-2"})
AT_JWT = {"alg": "RS256", "kid": "k1", "typ": "at+jwt"}


class FixedKeys:
    """A source that knows its keys and never has newer ones."""

    issuer = ISSUER

    def __init__(self, keys: KeySet = KEYS) -> None:
        self._keys = keys
        self.asked = 0

    def keys(self, reach: Reach) -> KeySet:
        return self._keys

    def newer_keys(self, than: KeySet, reach: Reach) -> KeySet | None:
        self.asked += 1
        return None


def expected(issuer: str = ISSUER, audiences: frozenset[str] = AUDIENCES, **more: Any) -> Expected:
    return Expected(issuer=issuer, client_id=CLIENT, audiences=audiences, **more)


def verifier(profile: Profile = ACCESS_TOKEN, keys: KeySet = KEYS, **more: Any) -> Verifier:
    audiences = AUDIENCES if profile is ACCESS_TOKEN else frozenset({CLIENT})
    return Verifier(FixedKeys(keys), profile, expected(audiences=audiences, **more), lambda: NOW)


def access(**changes: Any) -> dict[str, Any]:
    """The claims of a good access token (RFC 9068 §2.2) with changes; `...` removes one."""
    base = {**GOOD, "aud": "api", "client_id": "ci", "jti": "j-1", "scope": "read", "nonce": ..., **changes}
    return {name: value for name, value in base.items() if value is not ...}


def refused(token: str, by: str | None = None, profile: Profile = ACCESS_TOKEN, **more: Any) -> None:
    for sent in (token, glance(token) or token):
        with pytest.raises(TokenRefused) as caught:
            verifier(profile, **more).verify(sent)
        assert by is None or caught.value.check == by
        assert len(str(caught.value)) < 20, "a refusal quotes nothing"


class TestAccessTokens:
    @pytest.mark.parametrize("typ", ["at+jwt", "application/at+jwt", "AT+JWT", "JWT", "jwt", ...])
    def test_rfc9068_its_type_and_those_that_say_nothing(self, typ: Any) -> None:
        header = {"alg": "RS256", "kid": "k1"} if typ is ... else {**AT_JWT, "typ": typ}
        token = sign(access(), header)
        assert dict(verifier().verify(token)) == access()
        seen = glance(token)
        assert seen is not None and dict(verifier().verify(seen)) == access()

    @pytest.mark.parametrize("typ", ["logout+jwt", "secevent+jwt", "dpop+jwt", "JOSE", "id+jwt", 1, None, ["at+jwt"]])
    def test_j15_types_of_other_tokens(self, typ: Any) -> None:
        refused(sign(access(), {**AT_JWT, "typ": typ}), "typ")

    @pytest.mark.parametrize("header", [AT_JWT, {"alg": "RS256", "kid": "k1"}])
    def test_j15_a_logout_token(self, header: dict[str, Any]) -> None:
        events = {"http://schemas.openid.net/event/backchannel-logout": {}}
        refused(sign(access(events=events), header), "events")

    @pytest.mark.parametrize(
        "sign_of_another",
        [{"at_hash": "x"}, {"c_hash": "x"}, {"nonce": "n", "scope": ..., "client_id": ...}, {"typ": "ID"},
         {"typ": "Refresh"}, {"token_use": "id"}, {"token_use": "refresh"}],
        ids=str,
    )  # fmt: skip
    def test_b17_an_id_token_or_refresh_token_that_can_be_told(self, sign_of_another: dict[str, Any]) -> None:
        refused(sign(access(**sign_of_another)), "kind")

    def test_b17_some_providers_repeat_the_nonce_in_access_tokens(self) -> None:
        assert verifier().verify(sign(access(nonce="n")))

    @pytest.mark.parametrize("name", ["iss", "aud", "exp"])
    def test_c06_what_it_cannot_do_without(self, name: str) -> None:
        refused(sign(access(**{name: ...})), name)

    @pytest.mark.parametrize("name", ["sub", "iat", "jti", "client_id", "scope", "nbf"])
    def test_rfc9068_what_may_be_missing(self, name: str) -> None:
        assert verifier().verify(sign(access(**{name: ...})))

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("jti", 1), ("jti", None), ("client_id", ["ci"]), ("client_id", None), ("sub", None), ("sub", 1),
            ("sub", ""), ("sub", "x" * 256), ("sub", "a\r\nb"), ("iat", "1"), ("iat", None), ("nbf", True),
            ("cnf", {"jkt": "x"}), ("cnf", None), ("iat", NOW.timestamp() + 61), ("nbf", NOW.timestamp() + 61),
        ],
    )  # fmt: skip
    def test_c07_c08_rfc9068_what_is_there_is_checked(self, name: str, value: Any) -> None:
        refused(sign(access(**{name: value})), name)

    def test_a_token_may_be_old_as_long_as_it_is_not_over(self) -> None:
        assert verifier().verify(sign(access(iat=0)))

    @pytest.mark.parametrize("aud", ["api", "api-2", ["api"], ["other", "api-2"], ["api", "api"]])
    def test_any_of_the_audiences(self, aud: Any) -> None:
        assert verifier().verify(sign(access(aud=aud)))
        assert verifier().verify(sign(access(aud=aud, azp="somebody-else")))

    @pytest.mark.parametrize(
        "aud",
        [..., None, "", [], "other", ["other"], "API", "api ", "api,api-2", [["api"]], ["api", 1], ["api", None],
         {"api": 1}, 1, CLIENT],
        ids=str,
    )  # fmt: skip
    def test_s20_audiences_that_are_not_ours(self, aud: Any) -> None:
        refused(sign(access(aud=aud)), "aud")

    @pytest.mark.parametrize(
        "iss", [ISSUER[:-1], ISSUER + "/", ISSUER.upper(), "http" + ISSUER[5:], [ISSUER], None, ..., ""]
    )
    def test_c01_s20_issuers(self, iss: Any) -> None:
        refused(sign(access(iss=iss)), "iss")

    @pytest.mark.parametrize("seconds", [-59, 0, 300])
    def test_c06_within_the_skew(self, seconds: int) -> None:
        assert verifier().verify(sign(access(exp=NOW.timestamp() + seconds)))

    @pytest.mark.parametrize(
        "exp", [None, "9999999999", True, -1, 10**12, 1e300, NOW.timestamp() - 60, NOW.timestamp() - 3600]
    )
    def test_c06_s20_expiries(self, exp: Any) -> None:
        refused(sign(access(exp=exp)), "exp")


class TestIdTokens:
    def test_one_sent_by_a_program_may_be_old(self) -> None:
        token = sign(claims(iat=int(NOW.timestamp()) - 36_000))
        assert verifier(BEARER_ID_TOKEN).verify(token)["sub"] == "Alice-1"
        refused(token, "iat", ID_TOKEN)

    def test_no_nonce_is_needed(self) -> None:
        assert verifier(BEARER_ID_TOKEN).verify(sign(claims(nonce=...)))

    @pytest.mark.parametrize("aud", [[CLIENT, "other"], ["other"], "other"])
    def test_c02_c03_other_audiences(self, aud: Any) -> None:
        refused(sign(claims(aud=aud)), "aud", BEARER_ID_TOKEN)

    @pytest.mark.parametrize("azp", ["other", "", None, 1])
    def test_c04_azp(self, azp: Any) -> None:
        refused(sign(claims(azp=azp)), "azp", BEARER_ID_TOKEN)

    @pytest.mark.parametrize("name", ["iss", "sub", "aud", "exp", "iat"])
    def test_what_it_cannot_do_without(self, name: str) -> None:
        refused(sign(claims(**{name: ...})), name, BEARER_ID_TOKEN)

    def test_j15_an_access_token_or_a_logout_token_is_none(self) -> None:
        refused(sign(claims(), AT_JWT), "typ", BEARER_ID_TOKEN)
        refused(sign(claims(typ="Bearer")), "kind", BEARER_ID_TOKEN)
        refused(sign(claims(token_use="access")), "kind", BEARER_ID_TOKEN)
        refused(sign(claims(events={})), "events", BEARER_ID_TOKEN)

    def test_it_is_not_taken_for_an_access_token_though_the_audience_fits(self) -> None:
        both = Verifier(FixedKeys(), ACCESS_TOKEN, expected(audiences=frozenset({CLIENT})), lambda: NOW)
        with pytest.raises(TokenRefused) as caught:
            both.verify(sign(claims(at_hash="x")))
        assert caught.value.check == "kind"


BOTH = pytest.mark.parametrize("profile", [ACCESS_TOKEN, BEARER_ID_TOKEN], ids=lambda profile: profile.name)


def good_for(profile: Profile, **changes: Any) -> dict[str, Any]:
    return access(**changes) if profile is ACCESS_TOKEN else claims(**changes)


@BOTH
class TestJose:
    @pytest.mark.parametrize("alg", ["none", "None", "nOnE", "", None, 0, ["RS256"], ...])
    def test_j01_s20_none(self, profile: Profile, alg: Any) -> None:
        header = {"kid": "k1"} if alg is ... else {"alg": alg, "kid": "k1"}
        token = sign(good_for(profile), header)
        refused(token, "alg", profile)
        refused(token.rpartition(".")[0] + ".", None, profile)

    def test_j02_j03_s20_symmetric(self, profile: Profile) -> None:
        public = rsa_key(0).public_key().public_numbers()
        for secret in (str(public.n).encode(), json.dumps(public_jwk(rsa_key(0))).encode(), b"a-client-secret"):
            refused(hs256(good_for(profile), {"alg": "HS256", "kid": "k1"}, secret), "alg", profile)

    @pytest.mark.parametrize("alg", ["RS384", "PS256"])
    def test_j05_another_algorithm(self, profile: Profile, alg: str) -> None:
        keys = read_key_set({"keys": [public_jwk(rsa_key(0), kid="k1", alg=None)]})
        token = jwt.encode(good_for(profile), rsa_key(0), algorithm=alg, headers={"kid": "k1"})
        refused(token, "alg", profile, keys=keys)
        assert verifier(profile, keys, algorithms=("RS256", alg)).verify(token)

    def test_j06_a_key_for_something_else(self, profile: Profile) -> None:
        for members in ({"use": "enc"}, {"alg": "RS512"}, {"key_ops": ["sign"]}):
            keys = read_key_set({"keys": [public_jwk(rsa_key(0), kid="k1", **members)]})
            refused(sign(good_for(profile)), None, profile, keys=keys)

    def test_j09_j10_keys_in_the_header(self, profile: Profile) -> None:
        evil = rsa_key(1)
        for extra in ({"jwk": public_jwk(evil)}, {"jku": "http://127.0.0.1:9/"}, {"x5c": ["MIIB"]}):
            refused(sign(good_for(profile), {"alg": "RS256", "kid": "k1", **extra}, evil), "signature", profile)

    @pytest.mark.parametrize("kid", ["../../dev/null", "' OR 1=1 --", "https://x.example/k", "K1", 1, None, "", ["k1"]])
    def test_j11_kids(self, profile: Profile, kid: Any) -> None:
        refused(sign(good_for(profile), {"alg": "RS256", "kid": kid}), None, profile)

    def test_j14_critical_members(self, profile: Profile) -> None:
        for extra in ({"crit": ["x"]}, {"crit": []}, {"b64": False}, {"zip": "DEF"}):
            refused(sign(good_for(profile), {"alg": "RS256", "kid": "k1", **extra}), "crit", profile)

    def test_j16_j21_shapes(self, profile: Profile) -> None:
        head, payload, signature = sign(good_for(profile)).split(".")
        for token in (
            f"{head}.{payload}", f"{head}.{payload}.", f"{head}..{signature}", f"{head}.{payload}.{signature}.x",
            f"{head}.{payload}.{signature}.x.y", "." * 10_000, f"{head}.{payload}.{signature}=",
        ):  # fmt: skip
            refused(token, None, profile)

    @pytest.mark.parametrize(
        "payload", [b'{"iss":"x","iss":"y"}', b'{"a":NaN}', b'{"a":1e400}', b"[]", b"\xff", b'{"a":' * 1_000]
    )
    def test_j18_j19_claims_that_are_no_object(self, profile: Profile, payload: bytes) -> None:
        refused(sign(payload), "claims", profile)
        refused(sign(good_for(profile), payload), "header", profile)

    def test_j20_ten_megabytes(self, profile: Profile) -> None:
        began = time.process_time()
        refused(sign(good_for(profile, x="y" * 300_000)), "size", profile)
        refused("a" * 10_000_000, "size", profile)
        assert time.process_time() - began < 1

    def test_each_byte_of_the_signature_counts(self, profile: Profile) -> None:
        signed, _, signature = sign(good_for(profile)).rpartition(".")
        for index in range(0, len(signature) - 1, 31):
            flipped = "A" if signature[index] != "A" else "B"
            refused(f"{signed}.{signature[:index]}{flipped}{signature[index + 1:]}", "signature", profile)

    def test_one_part_of_another_good_token(self, profile: Profile) -> None:
        """A glance keeps parts: they must be those of the very token that is verified."""
        mine, other = sign(good_for(profile)).split("."), sign(good_for(profile, sub="Bob")).split(".")
        refused(".".join([mine[0], other[1], mine[2]]), "signature", profile)


@given(
    st.dictionaries(
        st.sampled_from(["iss", "sub", "aud", "azp", "exp", "iat", "nbf", "jti", "client_id", "events", "typ", "cnf"]),
        ODD_VALUES,
        min_size=1,
    )
)
@settings(max_examples=150)
def test_s20_claims_of_any_type_are_a_clean_refusal(odd: dict[str, Any]) -> None:
    token = sign({**access(), **odd})
    for sent in (token, glance(token) or token):
        try:
            found = verifier().verify(sent)
        except TokenRefused:
            continue
        assert found["iss"] == ISSUER and found["exp"] > 0


def test_nobody_verifies_with_the_keys_of_another_issuer() -> None:
    with pytest.raises(ValueError):
        Verifier(FixedKeys(), ACCESS_TOKEN, expected("https://other.example"), lambda: NOW)


@pytest.mark.parametrize("curve", ["secp256r1"])
def test_es256_where_it_is_allowed(curve: str) -> None:
    keys = read_key_set({"keys": [public_jwk(ec_key(0, curve), kid="es", alg="ES256")]})
    token = jwt.encode(access(), ec_key(0, curve), algorithm="ES256", headers={"kid": "es", "typ": "at+jwt"})
    assert verifier(keys=keys, algorithms=("RS256", "ES256")).verify(token)
    refused(token, "alg", keys=keys)
    refused(token[:-8] + "AAAAAAAA", "signature", keys=keys, algorithms=("ES256",))


def test_an_expired_token_causes_no_fetch_of_keys() -> None:
    source = FixedKeys()
    with pytest.raises(TokenRefused):
        Verifier(source, ACCESS_TOKEN, expected(), lambda: NOW).verify(sign(access(exp=1)))
    assert source.asked == 0
    with pytest.raises(KeyUnknown):
        Verifier(source, ACCESS_TOKEN, expected(), lambda: NOW).verify(sign(access(), {"alg": "RS256", "kid": "k2"}))
    assert source.asked == 1


# --- with an issuer on a real socket ------------------------------------------------------------


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as provider:
        yield provider


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


MakeSource = Callable[..., Any]


@pytest.fixture(params=["provider", "further issuer", "further issuer with jwks_url"])
def source(request: pytest.FixtureRequest, fake: FakeProvider, clock: MovableClock) -> Any:
    http = Http(timeout=timedelta(seconds=5))
    if request.param == "provider":
        return Provider(fake.issuer, http, now=clock)
    jwks_url = fake.address("jwks") if "jwks_url" in request.param else ""
    return FurtherIssuer(fake.issuer, http, now=clock, jwks_url=jwks_url)


@pytest.fixture
def verify(source: Any, fake: FakeProvider, clock: MovableClock) -> Verifier:
    return Verifier(source, ACCESS_TOKEN, expected(fake.issuer), clock)


def test_a_good_token(verify: Verifier, fake: FakeProvider) -> None:
    token = fake.access_token(["api", "other"])
    with pytest.raises(NeedsIO):
        verify.verify(token, Reach.MEMORY)
    assert verify.verify(token)["groups"] == ["admins", "dev"]
    assert verify.verify(token, Reach.MEMORY)["sub"] == fake.claims["sub"]
    assert len(fake.calls("jwks")) == 1


def test_keys_out_of_reach_are_not_a_bad_token(verify: Verifier, fake: FakeProvider) -> None:
    token = fake.access_token()
    fake.misbehave("jwks_error_500")
    with pytest.raises(NotReady) as caught:
        verify.verify(token)
    assert isinstance(caught.value, Unavailable)
    with pytest.raises(NotReady):
        verify.verify(token, Reach.MEMORY)


def test_an_issuer_that_is_gone_later_is_not_missed(
    verify: Verifier, fake: FakeProvider, clock: MovableClock
) -> None:
    verify.verify(fake.access_token())
    fake.stop()
    clock.advance(hours=5)
    fake.clock = clock
    assert verify.verify(fake.access_token())


def test_d10_new_keys_just_before_signing(verify: Verifier, fake: FakeProvider) -> None:
    verify.verify(fake.access_token())
    fake.rotate_keys()
    token = fake.access_token()
    with pytest.raises(NeedsIO):
        verify.verify(token, Reach.MEMORY)
    seen = glance(token)
    assert seen is not None and verify.verify(seen)
    assert verify.verify(token, Reach.MEMORY)
    assert len(fake.calls("jwks")) == 2


def test_j23_a_dropped_key_ends_with_the_lifetime(
    verify: Verifier, fake: FakeProvider, clock: MovableClock
) -> None:
    token = fake.access_token(exp=int(clock().timestamp()) + 100_000)
    verify.verify(token)
    fake.rotate_keys()
    assert verify.verify(token), "within the documented window"
    clock.advance(seconds=METADATA_LIFETIME.total_seconds() + 1)
    with pytest.raises(NeedsIO):
        verify.verify(token, Reach.MEMORY)
    with pytest.raises(KeyUnknown):
        verify.verify(token)


def test_j23_a_dropped_key_ends_with_a_refetch(verify: Verifier, fake: FakeProvider) -> None:
    token = fake.access_token()
    verify.verify(token)
    fake.rotate_keys()
    verify.verify(fake.access_token())
    with pytest.raises(KeyUnknown):
        verify.verify(token)


def test_j13_a_thousand_unknown_kids_and_good_tokens_go_on_passing(
    verify: Verifier, source: Any, fake: FakeProvider, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flood may fill every thread of a worker: neither the issuer nor good tokens feel it."""
    # Whoever waits for a fetch is told, however busy the machine.
    monkeypatch.setattr("authservice.oidc.source.PATIENCE", timedelta(minutes=1))
    stopped = clock()
    verify = Verifier(source, ACCESS_TOKEN, expected(fake.issuer), lambda: stopped)
    good, evil = fake.access_token(), rsa_key(3)
    verify.verify(good)
    fake.forget_calls()
    tokens = [fake.access_token(key=evil, header={"kid": f"unknown-{number}"}) for number in range(20)]
    heads = [
        ".".join([b64(json.dumps({"alg": "RS256", "kid": f"unknown-{number}"})), *tokens[number % 20].split(".")[1:]])
        for number in range(1000)
    ]

    def ask(number: int) -> bool:
        with pytest.raises(KeyUnknown):
            verify.verify(heads[number])
        return number % 10 != 0 or verify.verify(good)["sub"] == fake.claims["sub"]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(1000)))
    assert 1 <= len(fake.calls("jwks")) <= KEY_FETCH_BURST + 1
    assert len(fake.calls()) <= 2 * (KEY_FETCH_BURST + 1)
    with pytest.raises(KeyUnknown):
        verify.verify(heads[0], Reach.MEMORY)


def test_j13_after_a_flood_real_new_keys_are_found_within_seconds(
    verify: Verifier, fake: FakeProvider, clock: MovableClock
) -> None:
    verify.verify(fake.access_token())
    for number in range(KEY_FETCH_BURST + 5):
        with pytest.raises(KeyUnknown):
            verify.verify(fake.access_token(key=rsa_key(3), header={"kid": f"unknown-{number}"}))
    fake.rotate_keys()
    with pytest.raises(KeyUnknown):
        verify.verify(fake.access_token())
    clock.advance(seconds=11)
    assert verify.verify(fake.access_token())


NOT_FOR_BEARERS = {
    # a program's token may be old, and belongs to no code and no access token of ours
    "c07_iat_old", "c10_at_hash", "c10_at_hash_number", "c11_c_hash",
}  # fmt: skip
ONLY_ID_TOKENS = {"c03_others", "c04_azp"}


@pytest.mark.parametrize("name", sorted(FORGED.keys() - NOT_FOR_BEARERS))
@BOTH
def test_what_the_callback_refuses_is_refused_here_too(fake: FakeProvider, profile: Profile, name: str) -> None:
    source = FurtherIssuer(fake.issuer, Http(), now=MovableClock())
    wanted = Expected(issuer=fake.issuer, client_id=fake.client_id, audiences=frozenset({fake.client_id}))
    checked = Verifier(source, profile, wanted, MovableClock())
    good = fake.good_claims("248289761001", None)
    assert checked.verify(sign(good, {"alg": "RS256", "kid": fake.kid}, fake.signing_key))
    token = FORGED[name](fake, good)
    if profile is ACCESS_TOKEN and name in ONLY_ID_TOKENS:
        assert checked.verify(token)
        return
    for sent in (token, glance(token) or token):
        with pytest.raises(TokenRefused):
            checked.verify(sent)
    assert not fake.calls("unknown") and len(fake.calls("jwks")) <= 3
