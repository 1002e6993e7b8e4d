"""The one verification of signed tokens: JOSE (J) and claims (C), at the level of one function.

The same cases go through a whole login, as the ID token at the callback, in the second half.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from authservice.errors import ProviderWrong
from authservice.oidc.jws import MAX_TOKEN
from authservice.oidc.keys import KeySet, read_key_set
from authservice.oidc.tokens import (
    ID_TOKEN,
    Expected,
    KeyUnknown,
    Profile,
    TokenRefused,
    half_hash,
    verify,
)
from tests.provider import FakeProvider, ec_key, public_jwk, rsa_key
from tests.relying_party import RelyingParty

ISSUER = "https://provider.example/realm/"
CLIENT = "client-1"
NOW = datetime(2026, 7, 1, 12, 0, tzinfo=timezone.utc)
EXPECTED = Expected(issuer=ISSUER, client_id=CLIENT, audiences=frozenset({CLIENT}))
KEY = rsa_key(0)
JWK = public_jwk(KEY, kid="k1", use="sig", alg="RS256")
KEYS = read_key_set({"keys": [JWK]})
GOOD: dict[str, Any] = {
    "iss": ISSUER, "sub": "Alice-1", "aud": CLIENT, "nonce": "n-1",
    "iat": int(NOW.timestamp()), "exp": int(NOW.timestamp()) + 300,
}  # fmt: skip


def b64(data: bytes | str) -> str:
    raw = data.encode() if isinstance(data, str) else data
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def claims(**changes: Any) -> dict[str, Any]:
    """Good claims with changes; `...` removes one."""
    return {name: value for name, value in {**GOOD, **changes}.items() if value is not ...}


def sign(
    payload: dict[str, Any] | bytes, header: dict[str, Any] | bytes | None = None, key: Any = KEY
) -> str:
    """RS256 over exactly these bytes, whatever they are."""
    head = {"alg": "RS256", "kid": "k1"} if header is None else header
    parts = [b64(part if isinstance(part, bytes) else json.dumps(part)) for part in (head, payload)]
    signed = ".".join(parts)
    return f"{signed}.{b64(jwt.get_algorithm_by_name('RS256').sign(signed.encode(), key))}"


def check(token: object, keys: KeySet = KEYS, expected: Expected = EXPECTED, **more: Any) -> Any:
    return verify(token, keys, ID_TOKEN, expected, NOW, **more)


def refused(token: object, by: str | None = None, **more: Any) -> None:
    with pytest.raises(TokenRefused) as caught:
        check(token, **more)
    if by is not None:
        assert caught.value.check == by
    assert len(str(caught.value)) < 20, "a refusal quotes nothing"


def test_a_good_token_gives_its_claims() -> None:
    assert dict(check(sign(GOOD), nonce="n-1")) == GOOD


class TestAlgorithm:
    @pytest.mark.parametrize("signature", ["", "kept"])
    @pytest.mark.parametrize(
        "alg", ["none", "None", "nOnE", "NONE", "", None, 0, 1.5, ["RS256"], {"a": 1}, True, ...]
    )
    def test_j01_none_in_all_its_spellings(self, alg: Any, signature: str) -> None:
        header = {"kid": "k1"} if alg is ... else {"alg": alg, "kid": "k1"}
        token = sign(GOOD, header)
        refused(token if signature else token.rpartition(".")[0] + ".")
        refused(token, "alg")

    def test_j02_the_public_key_as_a_secret(self) -> None:
        public = KEY.public_key()
        encodings, formats = serialization.Encoding, serialization.PublicFormat
        pem = public.public_bytes(encodings.PEM, formats.SubjectPublicKeyInfo)
        pkcs1 = public.public_bytes(encodings.PEM, formats.PKCS1)
        der = public.public_bytes(encodings.DER, formats.SubjectPublicKeyInfo)
        modulus = public.public_numbers().n.to_bytes(256, "big")
        for secret in (
            pem,
            pem.rstrip(b"\n"),
            pkcs1,
            pkcs1.rstrip(b"\n"),
            der,
            json.dumps(JWK).encode(),
            modulus,
            JWK["n"].encode(),
        ):
            for header in ({"alg": "HS256", "kid": "k1"}, {"alg": "HS256"}):
                refused(hs256(GOOD, header, secret), "alg")

    def test_j03_the_client_secret(self) -> None:
        refused(hs256(GOOD, {"alg": "HS256"}, b"a-client-secret"), "alg")

    def test_j04_symmetric_keys_of_a_key_set_are_never_used(self) -> None:
        secret = b"0123456789abcdef0123456789abcdef"
        keys = read_key_set(
            {"keys": [{"kty": "oct", "k": b64(secret), "kid": "s", "alg": "HS256", "use": "sig"}, JWK]}
        )
        assert len(keys) == 1
        refused(hs256(GOOD, {"alg": "HS256", "kid": "s"}, secret), "alg", keys=keys)

    def test_hs256_cannot_be_allowed_at_all(self) -> None:
        for algorithms in (("HS256",), ("RS256", "none"), ()):
            with pytest.raises(ValueError):
                Expected(
                    issuer=ISSUER, client_id=CLIENT, audiences=frozenset({CLIENT}), algorithms=algorithms
                )

    @pytest.mark.parametrize("alg", ["RS384", "RS512", "PS256", "ES256"])
    def test_d12_j05_another_algorithm_correctly_signed_with_a_published_key(self, alg: str) -> None:
        key = ec_key(0) if alg == "ES256" else KEY
        keys = read_key_set({"keys": [public_jwk(key, kid="k1", use="sig")]})
        token = jwt.encode(GOOD, key, algorithm=alg, headers={"kid": "k1"})
        refused(token, "alg", keys=keys)
        allowed = Expected(
            issuer=ISSUER, client_id=CLIENT, audiences=frozenset({CLIENT}), algorithms=("RS256", alg)
        )
        assert check(token, keys, allowed)["sub"] == "Alice-1"

    def test_eddsa_where_it_is_allowed(self) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        key = Ed25519PrivateKey.generate()
        keys = read_key_set({"keys": [public_jwk(key, kid="e")]})
        allowed = Expected(
            issuer=ISSUER, client_id=CLIENT, audiences=frozenset({CLIENT}), algorithms=("EdDSA",)
        )
        token = jwt.encode(GOOD, key, algorithm="EdDSA", headers={"kid": "e"})
        assert check(token, keys, allowed)["sub"] == "Alice-1"
        refused(token[:-4] + "AAAA", "signature", keys=keys, expected=allowed)


def hs256(payload: dict[str, Any], header: dict[str, Any], secret: bytes) -> str:
    signed = f"{b64(json.dumps(header))}.{b64(json.dumps(payload))}"
    return f"{signed}.{b64(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"


class TestKeys:
    @pytest.mark.parametrize(
        "members",
        [
            {"use": "enc"},
            {"use": 1},
            {"alg": "RS512"},
            {"alg": "RSA-OAEP"},
            {"alg": 7},
            {"key_ops": ["sign"]},
            {"key_ops": []},
            {"key_ops": "verify"},
        ],
    )
    def test_j06_the_right_kid_on_a_key_for_something_else(self, members: dict[str, Any]) -> None:
        refused(sign(GOOD), keys=read_key_set({"keys": [{**JWK, **members}]}))

    def test_j06_the_right_kid_on_a_key_of_another_type(self) -> None:
        refused(sign(GOOD), keys=read_key_set({"keys": [public_jwk(ec_key(0), kid="k1", use="sig")]}))

    @pytest.mark.parametrize("curve", ["secp384r1", "secp256k1"])
    def test_j06_a_key_of_another_curve(self, curve: str) -> None:
        names = {"secp384r1": "P-384", "secp256k1": "secp256k1"}
        key = ec_key(0, curve)
        keys = read_key_set({"keys": [public_jwk(key, kid="k1", crv=names[curve])]})
        allowed = Expected(
            issuer=ISSUER, client_id=CLIENT, audiences=frozenset({CLIENT}), algorithms=("ES256",)
        )
        signed = f"{b64(json.dumps({'alg': 'ES256', 'kid': 'k1'}))}.{b64(json.dumps(GOOD))}"
        signature = jwt.get_algorithm_by_name("ES256K" if "k1" in curve else "ES384").sign(
            signed.encode(), key
        )
        refused(f"{signed}.{b64(signature)}", keys=keys, expected=allowed)

    @pytest.mark.parametrize("bits", [1024, 16384])
    def test_j08_weak_and_endless_rsa_keys_are_not_used(self, bits: int) -> None:
        if bits == 1024:
            key = rsa.generate_private_key(65537, bits)
            jwk, token = public_jwk(key, kid="k1"), sign(GOOD, key=key)
        else:
            modulus = (1 << (bits - 1)) + 9
            jwk = {"kty": "RSA", "kid": "k1", "e": "AQAB", "n": b64(modulus.to_bytes(bits // 8, "big"))}
            token = sign(GOOD)
        began = time.process_time()
        keys = read_key_set({"keys": [jwk]})
        assert len(keys) == 0
        refused(token, keys=keys)
        assert time.process_time() - began < 1

    def test_j08_a_512_bit_key(self) -> None:
        numbers = {"n": b64(bytes([0xC1]) + b"\x11" * 63), "e": "AQAB"}
        assert len(read_key_set({"keys": [{"kty": "RSA", "kid": "k1", **numbers}]})) == 0

    @pytest.mark.parametrize("exponent", [1, 2, 65536, 0, 1 << 64, (1 << 40) + 1])
    def test_j08_exponents(self, exponent: int) -> None:
        encoded = b64(exponent.to_bytes(max(1, (exponent.bit_length() + 7) // 8), "big"))
        keys = read_key_set({"keys": [{**JWK, "e": encoded}]})
        refused(sign(GOOD), keys=keys)
        assert len(keys) == 0

    def test_j24_broken_keys_are_put_aside_and_the_others_used(self) -> None:
        broken: list[Any] = [
            None, 1, "key", [], {}, {"kty": None}, {"kty": "RSA"}, {"kty": ["RSA"]},
            {"kty": "XYZ", "kid": "k1"},
            {**JWK, "n": "!!"}, {**JWK, "n": 5}, {**JWK, "n": ""}, {**JWK, "e": None}, {**JWK, "kid": 5},
            {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "k1"},
            {"kty": "EC", "crv": ["P-256"], "x": "AA", "y": "AA"},
            {"kty": "OKP", "crv": "Ed25519", "x": "AA"},
            {"kty": "OKP", "crv": "X25519", "x": b64(b"x" * 32)},
        ]  # fmt: skip
        assert check(sign(GOOD), read_key_set({"keys": [*broken, JWK]}))["sub"] == "Alice-1"

    def test_j24_private_parts_are_not_looked_at(self) -> None:
        private = jwt.get_algorithm_by_name("RS256").to_jwk(KEY, as_dict=True)
        keys = read_key_set(
            {"keys": [{**private, "kid": "k1", "use": "sig", "key_ops": ["sign", "verify"], "d": "garbage"}]}
        )
        assert check(sign(GOOD), keys)["sub"] == "Alice-1"
        (key,) = keys.candidates("RS256", "k1")
        assert not key.public.is_private

    @pytest.mark.parametrize("document", [{}, {"keys": None}, {"keys": {}}, {"keys": "k"}, {"jwks": [JWK]}])
    def test_j24_no_key_set(self, document: dict[str, Any]) -> None:
        with pytest.raises(ValueError):
            read_key_set(document)

    def test_j24_a_thousand_keys(self) -> None:
        others = [{**public_jwk(ec_key(n % 2)), "kid": f"e{n}"} for n in range(999)]
        began = time.process_time()
        keys = read_key_set({"keys": [*others, JWK]})
        assert check(sign(GOOD), keys)["sub"] == "Alice-1"
        assert time.process_time() - began < 3

    def test_a_flood_of_fitting_keys_is_not_tried_to_its_end(self) -> None:
        keys = read_key_set({"keys": [public_jwk(rsa_key(1))] * 500 + [JWK]})
        refused(sign(GOOD, {"alg": "RS256"}), "signature", keys=keys)

    def test_j11_kids_that_are_none(self) -> None:
        for kid in (1, 1.5, ["k1"], {"k": 1}, None, "", True, "x" * 100_000):
            refused(sign(GOOD, {"alg": "RS256", "kid": kid}))

    @pytest.mark.parametrize(
        "kid", ["../../dev/null", "' OR 1=1 --", "https://evil.example/key", "k1\x00", "K1", "k1 "]
    )
    def test_j11_hostile_kids_are_names_and_nothing_else(self, kid: str) -> None:
        with pytest.raises(KeyUnknown):
            check(sign(GOOD, {"alg": "RS256", "kid": kid}))

    def test_d11_without_kid_the_one_fitting_key_is_used(self) -> None:
        others = [
            public_jwk(ec_key(0), kid="ec"),
            public_jwk(rsa_key(1), kid="enc", use="enc"),
            {"kty": "XX"},
        ]
        keys = read_key_set({"keys": [*others, {**JWK, "kid": None}]})
        assert check(sign(GOOD, {"alg": "RS256"}), keys)["sub"] == "Alice-1"

    def test_a_key_without_kid_may_have_signed_a_token_with_one(self) -> None:
        assert check(sign(GOOD), read_key_set({"keys": [{**JWK, "kid": None}]}))["sub"] == "Alice-1"

    def test_j23_a_key_that_is_not_in_the_set(self) -> None:
        with pytest.raises(KeyUnknown):
            check(sign(GOOD), read_key_set({"keys": [public_jwk(rsa_key(1), kid="k2")]}))


class TestHeader:
    def test_j09_a_key_in_the_header_is_not_used(self) -> None:
        attacker = rsa_key(1)
        for kid in ({"kid": "k1"}, {}, {"kid": "evil"}):
            refused(sign(GOOD, {"alg": "RS256", "jwk": public_jwk(attacker), **kid}, attacker))

    def test_j14_critical_members(self) -> None:
        for extra in (
            {"crit": ["exp"]},
            {"crit": []},
            {"crit": ["b64"], "b64": False},
            {"b64": False},
            {"b64": True},
            {"crit": None},
        ):
            refused(sign(GOOD, {"alg": "RS256", "kid": "k1", **extra}), "crit")

    @pytest.mark.parametrize(
        "typ",
        ["logout+jwt", "at+jwt", "application/at+jwt", "secevent+jwt", "AT+JWT", "JOSE", 1, None, ["JWT"]],
    )
    def test_j15_another_kind_of_token(self, typ: Any) -> None:
        refused(sign(GOOD, {"alg": "RS256", "kid": "k1", "typ": typ}), "typ")

    @pytest.mark.parametrize("typ", ["JWT", "jwt", "application/jwt"])
    def test_j15_the_kind_that_says_nothing(self, typ: str) -> None:
        assert check(sign(GOOD, {"alg": "RS256", "kid": "k1", "typ": typ}))

    def test_j15_a_logout_token(self) -> None:
        events = {"http://schemas.openid.net/event/backchannel-logout": {}}
        refused(sign(claims(events=events)), "events")

    @pytest.mark.parametrize(
        "token",
        [
            "",
            ".",
            "..",
            "...",
            "a",
            "a.b",
            "a.b.c.d",
            "a.b.c.d.e",
            "." * 10_000,
            ".b.c",
            "a..c",
            "a.b.",
            None,
            1,
            b"a.b.c",
            ["a.b.c"],
            "ä.b.c",
        ],
    )
    def test_j16_shapes(self, token: object) -> None:
        refused(token)

    def test_j16_parts_of_a_good_token_taken_away(self) -> None:
        head, payload, signature = sign(GOOD).split(".")
        for token in (
            f"{head}.{payload}",
            f"{head}.{payload}.",
            f"{head}..{signature}",
            f".{payload}.{signature}",
            f"{head}.{payload}.{signature}.",
            f".{head}.{payload}.{signature}",
        ):
            refused(token, "parts")

    def test_j20_ten_megabytes(self) -> None:
        began = time.process_time()
        refused("a" * 10_000_000, "size")
        refused(f"{b64(b'{' * 20_000)}.e30.e30", "parts")
        refused(sign({**GOOD, "x": "y" * MAX_TOKEN}), "size")
        assert time.process_time() - began < 1

    def test_j21_encrypted_or_packed(self) -> None:
        header = b64(json.dumps({"alg": "PBES2-HS256+A128KW", "p2c": 2**31, "enc": "A128GCM"}))
        refused(f"{header}.e30.e30.e30.e30", "parts")
        refused(f"{header}.e30.e30", "alg")
        packed = zlib.compress(b" " * 1_000_000)[2:-4]
        refused(sign(packed, {"alg": "RS256", "kid": "k1", "zip": "DEF"}), "crit")

    def test_base64_has_one_spelling(self) -> None:
        head, payload, signature = sign(GOOD).split(".")
        last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        other = (
            signature[:-1]
            + last[(last.index(signature[-1]) & 0b111100) | ((last.index(signature[-1]) + 1) & 0b11)]
        )
        for token in (
            f"{head}.{payload}.{other}",
            f"{head}.{payload}.{signature}==",
            f"{head}=.{payload}.{signature}",
            f"{head}.{payload}.{signature}\n",
            f"{head} .{payload}.{signature}",
        ):
            refused(token)


class TestJson:
    @pytest.mark.parametrize(
        "text",
        [
            b'{"iss":"x","iss":"y"}', b'{"a":NaN}', b'{"a":Infinity}', b'{"a":1e400}',
            b'{"a":' + b"9" * 5000 + b"}",
            b'{"a":"\\ud800"}', b'{"a":"\xff"}', b"[]", b'"text"', b"null", b"1", b"", b"{", b"[" * 100_000,
        ],
    )  # fmt: skip
    def test_j18_j19_in_header_and_claims(self, text: bytes) -> None:
        good = json.dumps(GOOD).encode()
        refused(sign(text))
        refused(sign(GOOD, text))
        refused(
            sign(good[:-1] + b"," + text[1:] if text.startswith(b"{") else text), "claims" if text else None
        )

    def test_j18_a_member_twice_in_both_orders(self) -> None:
        good, bad = json.dumps(GOOD)[1:-1], '"sub":"mallory"'
        for pair in (f"{{{good},{bad}}}", f"{{{bad},{good}}}"):
            refused(sign(pair.encode()), "claims")
        head = '"alg":"RS256"'
        refused(sign(GOOD, f'{{{head},"alg":"none"}}'.encode()), "header")
        refused(sign(GOOD, f'{{"alg":"none",{head}}}'.encode()), "header")


class TestSignature:
    def test_a10_each_byte_of_the_signature_counts(self) -> None:
        signed, _, signature = sign(GOOD).rpartition(".")
        raw = base64.urlsafe_b64decode(signature + "==")
        for index in range(0, len(raw), 5):
            changed = raw[:index] + bytes([raw[index] ^ 1]) + raw[index + 1 :]
            refused(f"{signed}.{b64(changed)}", "signature")
        for other in (raw[:-1], raw + b"\0", b"\0" * 256, raw * 2):
            refused(f"{signed}.{b64(other)}", "signature")

    def test_each_byte_of_header_and_claims_counts(self) -> None:
        token = sign(GOOD)
        signed_length = token.rindex(".")
        for index in range(0, signed_length, 7):
            flipped = "A" if token[index] != "A" else "B"
            refused(token[:index] + flipped + token[index + 1 :])

    def test_a07_without_kid_each_fitting_key_is_tried(self) -> None:
        keys = read_key_set({"keys": [public_jwk(rsa_key(n)) for n in (1, 2, 0)]})
        assert check(sign(GOOD, {"alg": "RS256"}), keys)["sub"] == "Alice-1"


class TestClaims:
    @pytest.mark.parametrize(
        "iss",
        [
            ISSUER[:-1], ISSUER + "/", ISSUER.upper(), "HTTPS" + ISSUER[5:], "https://Provider.example/realm/",
            "https://provider.example:443/realm/", "http" + ISSUER[5:], ISSUER + "x", ISSUER + "1",
            " " + ISSUER,
            "https://provider.example.evil/realm/", "https://provid\u0435r.example/realm/", [ISSUER],
            {"a": ISSUER}, None, 1, "", ...,
        ],
    )  # fmt: skip
    def test_c01_iss(self, iss: Any) -> None:
        refused(sign(claims(iss=iss)), "iss")

    def test_c01_google_without_scheme_is_another_issuer(self) -> None:
        google = Expected(
            issuer="https://accounts.google.com", client_id=CLIENT, audiences=frozenset({CLIENT})
        )
        refused(sign(claims(iss="accounts.google.com")), "iss", expected=google)

    @pytest.mark.parametrize("aud", [CLIENT, [CLIENT], [CLIENT, CLIENT]])
    def test_c02_us_alone(self, aud: Any) -> None:
        assert check(sign(claims(aud=aud)))
        assert check(sign(claims(aud=aud, azp=CLIENT)))

    def test_c02_others_besides_us_must_be_trusted(self) -> None:
        token = sign(claims(aud=[CLIENT, "other"], azp=CLIENT))
        refused(token, "aud")
        trusting = Expected(
            issuer=ISSUER,
            client_id=CLIENT,
            audiences=frozenset({CLIENT}),
            trusted_audiences=frozenset({"other"}),
        )
        assert check(token, KEYS, trusting)
        refused(sign(claims(aud=[CLIENT, "third"], azp=CLIENT)), "aud", expected=trusting)
        for azp in (..., "other", None, [CLIENT]):
            refused(sign(claims(aud=[CLIENT, "other"], azp=azp)), "azp", expected=trusting)

    @pytest.mark.parametrize("azp", ["other", CLIENT.upper(), "", None, 1, [CLIENT]])
    def test_c03_c04_azp(self, azp: Any) -> None:
        refused(sign(claims(azp=azp)), "azp")
        refused(sign(claims(aud=[CLIENT], azp=azp)), "azp")
        refused(sign(claims(aud=[CLIENT, "other"], azp=azp)))
        refused(sign(claims(aud=[CLIENT, "other"])))

    @pytest.mark.parametrize(
        "aud",
        [
            ...,
            None,
            "",
            [],
            ["other"],
            "other",
            CLIENT + "1",
            [[CLIENT]],
            [CLIENT, 1],
            [CLIENT, None],
            {CLIENT: 1},
            1,
            ["x"] * 30_000,
        ],
        ids=lambda value: str(value)[:20],
    )
    def test_a04_s20_aud(self, aud: Any) -> None:
        refused(sign(claims(aud=aud)), "aud")

    @pytest.mark.parametrize("seconds", [-59, 0, 1, 0.5])
    def test_c06_exp_within_the_skew(self, seconds: float) -> None:
        assert check(sign(claims(exp=NOW.timestamp() + seconds)))

    @pytest.mark.parametrize(
        "exp",
        [
            ...,
            None,
            "1",
            "9999999999",
            True,
            [],
            {},
            -1,
            10**12,
            10**30,
            1e300,
            NOW.timestamp() - 61,
            NOW.timestamp() - 60,
        ],
    )
    def test_c06_exp_refused(self, exp: Any) -> None:
        refused(sign(claims(exp=exp)), "exp")

    def test_c06_ten_to_the_four_hundredth(self) -> None:
        text = json.dumps(GOOD).replace(str(GOOD["exp"]), "1" + "0" * 400)
        refused(sign(text.encode()))

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("nbf", 61), ("nbf", "x"), ("nbf", None), ("nbf", True), ("nbf", 10**12), ("iat", 61),
            ("iat", "x"),
            ("iat", None),
            ("iat", True), ("iat", -3661), ("iat", -(10**9)), ("iat", ...),
        ],
    )  # fmt: skip
    def test_c07_nbf_and_iat(self, name: str, value: Any) -> None:
        shifted = int(NOW.timestamp()) + value if type(value) is int and value < 10**12 else value
        refused(sign(claims(**{name: shifted})), name)

    def test_c07_within_the_skew(self) -> None:
        assert check(sign(claims(iat=int(NOW.timestamp()) + 60, nbf=int(NOW.timestamp()) + 60)))
        assert check(sign(claims(iat=int(NOW.timestamp()) - 3600)))

    @pytest.mark.parametrize(
        "sub",
        [
            ...,
            None,
            "",
            1,
            ["a"],
            {"a": 1},
            True,
            "x" * 256,
            "a\r\nb",
            "a\x00",
            "a\x7f",
            "\u202ea",
            "a\u2028",
            "\x85",
        ],
    )
    def test_a03_c08_sub(self, sub: Any) -> None:
        refused(sign(claims(sub=sub)), "sub")

    @pytest.mark.parametrize("sub", ["alice", "ALICE", "x" * 255, "a b|c", "1234"])
    def test_c08_case_is_kept(self, sub: str) -> None:
        assert check(sign(claims(sub=sub)))["sub"] == sub

    def test_a12_s19_nonce(self) -> None:
        assert check(sign(GOOD), nonce="n-1")
        for nonce in ("n-11", "n-", "", None, 1, ["n-1"], ..., "N-1"):
            refused(sign(claims(nonce=nonce)), "nonce", nonce="n-1")

    def test_c10_at_hash(self) -> None:
        right = half_hash("token", "RS256")
        assert right == b64(hashlib.sha256(b"token").digest()[:16])
        hashed = {"at_hash": "token"}
        assert check(sign(claims(at_hash=right)), hashed=hashed)
        assert check(sign(GOOD), hashed=hashed), "missing is accepted in the code flow"
        for wrong in (
            right[:-1],
            right + "A",
            half_hash("other", "RS256"),
            half_hash("token", "RS512"),
            b64(hashlib.sha256(b"token").digest()),
            "",
            None,
            1,
            [right],
        ):
            refused(sign(claims(at_hash=wrong)), "at_hash", hashed=hashed)

    def test_c10_the_example_of_the_specification(self) -> None:
        # OpenID Connect Core 1.0, appendix A.3 and A.4
        assert half_hash("jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y", "RS256") == "77QmUPtjPfzWtF2AnpK9RQ"
        assert (
            half_hash("Qcb0Orv1zh30vL1MPRsbm-diHiMwcLyZvn1arpZv-Jxf_11jnpEX3Tgfvk", "RS256")
            == "LDktKdoQak3Pk0cnXxCltA"
        )

    def test_c11_c_hash_is_checked_when_it_is_there(self) -> None:
        hashed = {"c_hash": "code"}
        assert check(sign(claims(c_hash=half_hash("code", "RS256"))), hashed=hashed)
        refused(sign(claims(c_hash=half_hash("other", "RS256"))), "c_hash", hashed=hashed)

    def test_profiles_are_data(self) -> None:
        access = Profile("access_token", frozenset({"at+jwt"}), ("exp",), sole_audience=False)
        expected = Expected(issuer=ISSUER, client_id=CLIENT, audiences=frozenset({"api-1", "api-2"}))
        token = sign(
            claims(aud=["api-2", "other"], azp="somebody"), {"alg": "RS256", "kid": "k1", "typ": "at+jwt"}
        )
        assert verify(token, KEYS, access, expected, NOW)["sub"] == "Alice-1"
        with pytest.raises(TokenRefused):
            verify(sign(claims(aud="api-2")), KEYS, access, expected, NOW)


@given(st.text(max_size=60) | st.binary(max_size=60) | st.none() | st.lists(st.integers(), max_size=2))
def test_no_input_gets_past_or_breaks_it(token: object) -> None:
    refused(token)


ODD_VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.lists(st.text(max_size=3), max_size=3)
    | st.dictionaries(st.text(max_size=2), st.integers(), max_size=2)
)


@given(
    st.dictionaries(
        st.sampled_from(["iss", "sub", "aud", "azp", "exp", "iat", "nbf", "nonce", "at_hash", "events"]),
        ODD_VALUES,
        min_size=1,
    )
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_claims_of_any_type_are_a_clean_refusal(odd: dict[str, Any]) -> None:
    try:
        found = check(sign({**GOOD, **odd}), nonce="n-1", hashed={"at_hash": "t"})
    except TokenRefused:
        return
    assert found["iss"] == ISSUER and found["nonce"] == "n-1"


# --- the same at the callback -------------------------------------------------------------------


@pytest.fixture
def rp() -> Iterator[RelyingParty]:
    with FakeProvider() as fake:
        yield RelyingParty(fake)


Forge = Callable[[FakeProvider, dict[str, Any]], str]


def signed_as(
    header: Callable[[FakeProvider], Any], payload: Callable[[dict[str, Any]], Any] = dict
) -> Forge:
    return lambda fake, good: sign(payload(good), header(fake), fake.signing_key)


def with_claims(**changes: Any) -> Forge:
    def forge(fake: FakeProvider, good: dict[str, Any]) -> str:
        changed = {name: value for name, value in {**good, **changes}.items() if value is not ...}
        return sign(changed, {"alg": "RS256", "kid": fake.kid}, fake.signing_key)

    return forge


def plain(fake: FakeProvider) -> dict[str, Any]:
    return {"alg": "RS256", "kid": fake.kid}


FORGED: dict[str, Forge] = {
    "j01_none": lambda fake, good: sign(good, {"alg": "none"}).rpartition(".")[0] + ".",
    "j02_public_key_as_secret": lambda fake, good: hs256(
        good,
        {"alg": "HS256", "kid": fake.kid},
        fake.signing_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
    ),
    "j03_client_secret": lambda fake, good: hs256(good, {"alg": "HS256"}, fake.client_secret.encode()),
    "j05_es256": lambda fake, good: jwt.encode(good, ec_key(0), algorithm="ES256", headers={"kid": "es"}),
    "j05_ps256": lambda fake, good: jwt.encode(
        good, fake.signing_key, algorithm="PS256", headers={"kid": fake.kid}
    ),
    "j06_encryption_key": lambda fake, good: sign(good, {"alg": "RS256", "kid": "enc"}, rsa_key(3)),
    "j09_embedded_key": lambda fake, good: sign(
        good, {"alg": "RS256", "kid": fake.kid, "jwk": public_jwk(rsa_key(3))}, rsa_key(3)
    ),
    "j11_kid_a_list": signed_as(lambda fake: {"alg": "RS256", "kid": [fake.kid]}),
    "j11_kid_100k": signed_as(lambda fake: {"alg": "RS256", "kid": "k" * 100_000}),
    "j14_crit": signed_as(lambda fake: {**plain(fake), "crit": ["x"], "x": 1}),
    "j15_typ": signed_as(lambda fake: {**plain(fake), "typ": "logout+jwt"}),
    "j15_events": with_claims(events={}),
    "j16_dots": lambda fake, good: "." * 10_000,
    "j18_nan": signed_as(plain, lambda good: json.dumps({**good, "x": float("nan")}).encode()),
    "j18_a_list": signed_as(plain, lambda good: json.dumps([good]).encode()),
    "j19_deep": signed_as(plain, lambda good: b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    "j20_large": with_claims(x="y" * 300_000),
    "j21_encrypted": lambda fake, good: "eyJhbGciOiJkaXIiLCJlbmMiOiJBMTI4R0NNIn0.e30.e30.e30.e30",
    "c01_slash": lambda fake, good: with_claims(iss=good["iss"] + "/")(fake, good),
    "c03_others": with_claims(aud=["authservice", "other"]),
    "c04_azp": with_claims(azp="other"),
    "c06_exp_text": with_claims(exp="9999999999"),
    "c06_exp_huge": with_claims(exp=10**12),
    "c07_iat_future": lambda fake, good: with_claims(iat=good["iat"] + 120)(fake, good),
    "c07_iat_old": lambda fake, good: with_claims(iat=good["iat"] - 4000)(fake, good),
    "c08_sub_long": with_claims(sub="x" * 256),
    "c10_at_hash": with_claims(at_hash="AAAAAAAAAAAAAAAAAAAAAA"),
    "c10_at_hash_number": with_claims(at_hash=5),
    "c11_c_hash": with_claims(c_hash="AAAAAAAAAAAAAAAAAAAAAA"),
}


@pytest.mark.parametrize("name", FORGED)
def test_at_the_callback(rp: RelyingParty, name: str) -> None:
    rp.fake.misbehave("id_token", lambda good, header: FORGED[name](rp.fake, good))
    error = rp.refused_login(ProviderWrong)
    assert error.status == 502
    assert rp.called("token") == 1 and rp.called("userinfo") == 0 and rp.called("unknown") == 0
    assert rp.called("jwks") <= 2


def test_j10_addresses_of_keys_are_never_followed(rp: RelyingParty) -> None:
    with FakeProvider() as listener:
        header = {
            "jku": listener.address("jwks"),
            "x5u": listener.address("x5u"),
            "x5c": ["MIIB"],
            "alg": "RS256",
        }
        for full in ({**header, "kid": listener.kid}, header):
            rp.fake.misbehave("id_token", lambda good, _, full=full: sign(good, full, rsa_key(3)))
            rp.refused_login(ProviderWrong)
        assert not listener.calls()


def test_j04_a_symmetric_key_in_the_provider_s_set(rp: RelyingParty) -> None:
    secret = b"0123456789abcdef0123456789abcdef"
    rp.fake.misbehave(
        "key_set", {"keys": [*rp.fake.key_set()["keys"], {"kty": "oct", "kid": "s", "k": b64(secret)}]}
    )
    rp.fake.misbehave("id_token", lambda good, _: hs256(good, {"alg": "HS256", "kid": "s"}, secret))
    rp.refused_login(ProviderWrong)


def test_c02_one_audience_in_a_list_is_accepted(rp: RelyingParty) -> None:
    rp.fake.id_token_claims["aud"] = [rp.fake.client_id]
    rp.fake.id_token_claims["azp"] = rp.fake.client_id
    assert rp.login().claims["aud"] == [rp.fake.client_id]


def test_c02_a_trusted_audience(rp: RelyingParty) -> None:
    trusting = RelyingParty(rp.fake, trusted_audiences=frozenset({"other"}))
    rp.fake.id_token_claims.update(aud=[rp.fake.client_id, "other"], azp=rp.fake.client_id)
    assert trusting.login().claims["sub"]
    assert rp.refused_login(ProviderWrong).status == 502


def test_c12_no_age_and_no_class_of_authentication_is_asked_for(rp: RelyingParty) -> None:
    url = rp.begin().url
    assert "max_age" not in url and "acr_values" not in url


def test_es256_where_it_is_allowed(rp: RelyingParty) -> None:
    allowing = RelyingParty(rp.fake, algorithms=("ES256",))
    rp.fake.misbehave(
        "id_token", lambda good, _: jwt.encode(good, ec_key(0), algorithm="ES256", headers={"kid": "es"})
    )
    assert allowing.login().claims["sub"] == rp.fake.claims["sub"]
    rp.fake.behave()
    assert allowing.refused_login(ProviderWrong).status == 502


def test_the_skew_is_a_minute(rp: RelyingParty) -> None:
    rp.login()
    late = datetime.now(timezone.utc) - timedelta(seconds=50)
    rp.fake.clock = lambda: late
    assert rp.login()
    early = datetime.now(timezone.utc) + timedelta(seconds=50)
    rp.fake.clock = lambda: early
    assert rp.login()
