"""The calls to the provider: what is sent, and what is believed of the answers."""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from authservice.check import Reach
from authservice.errors import ProviderSilent, ProviderWrong
from authservice.oidc import client
from authservice.oidc.answers import EndpointRefused, read_token_response, read_userinfo
from authservice.oidc.client import Client, Credentials
from authservice.oidc.metadata import Overrides
from authservice.outbound import Response
from tests.provider import FakeProvider, ec_key, rsa_key
from tests.relying_party import CALLBACK, RelyingParty

NOW = datetime(2026, 7, 1, tzinfo=timezone.utc)


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as provider:
        yield provider


@pytest.fixture
def rp(fake: FakeProvider) -> RelyingParty:
    return RelyingParty(fake)


def sent(url: str) -> dict[str, str]:
    pairs = parse_qs(urlsplit(url).query, keep_blank_values=True, strict_parsing=True)
    assert all(len(values) == 1 for values in pairs.values())
    return {name: values[0] for name, values in pairs.items()}


class TestAuthorizationRequest:
    def test_d3_d4_d5_s19_what_is_always_sent(self, rp: RelyingParty) -> None:
        asked = sent(rp.begin().url)
        assert set(asked) == {
            "response_type", "client_id", "redirect_uri", "scope", "state", "nonce", "code_challenge",
            "code_challenge_method",
        }  # fmt: skip
        assert asked["response_type"] == "code" and asked["code_challenge_method"] == "S256"
        assert asked["scope"].split()[0] == "openid" and asked["redirect_uri"] == CALLBACK
        assert len(asked["nonce"]) == 43 and len(asked["code_challenge"]) == 43

    def test_a13_scopes(self, fake: FakeProvider) -> None:
        rp = RelyingParty(fake, scopes=("openid", "profile", "email", "groups"))
        assert sent(rp.begin().url)["scope"] == "openid profile email groups"

    @pytest.mark.parametrize(
        ("endpoint", "start"),
        [
            ("/dex/auth", "/dex/auth?response_type=code"),
            ("/dex/auth?connector=ldap", "/dex/auth?connector=ldap&response_type=code"),
            ("https://p.example/a?x=1&y=", "https://p.example/a?x=1&y=&response_type=code"),
        ],
    )
    def test_a_relative_endpoint_and_one_with_a_query(
        self, fake: FakeProvider, endpoint: str, start: str
    ) -> None:
        rp = RelyingParty(fake, overrides=Overrides(authorization_endpoint=endpoint))
        assert rp.begin().url.startswith(start)

    def test_a_relative_redirect_address_is_sent_as_it_is(self, fake: FakeProvider) -> None:
        rp = RelyingParty(fake, redirect_uri="/authservice/oidc/callback")
        assert sent(rp.begin().url)["redirect_uri"] == "/authservice/oidc/callback"
        assert rp.login()
        assert fake.calls("token")[0].form["redirect_uri"] == "/authservice/oidc/callback"


class TestClientAuthentication:
    @pytest.mark.parametrize(
        "secret", ["p:a%s+s w", "ünïcödé€", "a=b&c", "%2B", "~._-*", "'\"\\<>", "x" * 500, "a\tb"]
    )
    @pytest.mark.parametrize("name", ["client", "cli:ent id+ü%"])
    def test_a14_d6_basic_with_any_characters(self, name: str, secret: str) -> None:
        with FakeProvider(client_id=name, client_secret=secret) as fake:
            assert RelyingParty(fake).login()
            (call,) = fake.calls("token")
            header = call.headers["authorization"]
            decoded = base64.b64decode(header.removeprefix("Basic ")).decode("ascii")
            assert decoded.count(":") == 1 and secret not in json.dumps(call.form)
            assert "client_id" not in call.form and "client_secret" not in call.form
            assert call.form["redirect_uri"] == CALLBACK and call.query == {}

    @pytest.mark.parametrize("secret", ["p:a%s+s w", "ünïcödé€"])
    def test_post(self, secret: str) -> None:
        with FakeProvider(client_secret=secret) as fake:
            credentials = Credentials(fake.client_id, secret, auth_method="client_secret_post")
            assert RelyingParty(fake, credentials=credentials).login()
            (call,) = fake.calls("token")
            assert call.form["client_secret"] == secret and "authorization" not in call.headers

    def test_a_public_client_only_names_itself(self) -> None:
        with FakeProvider(client_secret="") as fake:
            assert RelyingParty(fake).login()
            (call,) = fake.calls("token")
            assert call.form["client_id"] == fake.client_id and "authorization" not in call.headers
            assert "client_secret" not in call.form

    @pytest.mark.parametrize("kind", ["rsa", "ec", "ed25519"])
    def test_private_key_jwt(self, fake: FakeProvider, kind: str) -> None:
        key: Any = {"rsa": rsa_key(1), "ec": ec_key(1), "ed25519": ed25519.Ed25519PrivateKey.generate()}[kind]
        fake.client_key = key.public_key()
        rp = RelyingParty(fake, credentials=Credentials(fake.client_id, "", "private_key_jwt", pem(key)))
        assert rp.login()
        assert rp.login()
        first, second = (call.form for call in fake.calls("token"))
        assert first["client_assertion_type"] == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
        assert first["client_assertion"] != second["client_assertion"]
        assert "client_secret" not in first
        finished = rp.login()
        assert rp.client.revoke(finished.refresh_token, finished.access_token) == []

    def test_private_keys_that_cannot_sign_are_told_at_once(self, fake: FakeProvider) -> None:
        weak = rsa.generate_private_key(65537, 1024)
        curve = ec_key(0, "secp256k1")
        locked = (
            rsa_key(1)
            .private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"x"),
            )
            .decode()
        )
        public = (
            rsa_key(1)
            .public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            .decode()
        )
        for text in ("", "no key", pem(weak), pem(curve), locked, public):
            with pytest.raises(ValueError) as caught:
                RelyingParty(fake, credentials=Credentials("c", "", "private_key_jwt", text))
            assert "PRIVATE KEY-----" not in str(caught.value)

    def test_no_other_method(self, fake: FakeProvider) -> None:
        with pytest.raises(ValueError):
            RelyingParty(fake, credentials=Credentials("c", "s", "client_secret_jwt"))

    def test_secrets_are_not_in_any_repr(self) -> None:
        text = repr(Credentials("c", "geheim", "private_key_jwt", "geheim-key"))
        assert "geheim" not in text


def pem(key: Any) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def answer(body: Any, status: int = 200) -> Response:
    return Response(status, {}, body if isinstance(body, bytes) else json.dumps(body).encode())


GOOD = {"access_token": "at", "token_type": "Bearer", "id_token": "a.b.c"}


class TestTokenAnswer:
    def test_a_good_one(self) -> None:
        tokens = read_token_response(
            answer({**GOOD, "refresh_token": "rt", "expires_in": 60, "scope": "x"}), NOW
        )
        assert (tokens.access_token, tokens.id_token, tokens.refresh_token) == ("at", "a.b.c", "rt")
        assert tokens.access_token_expires == NOW + timedelta(seconds=60)
        assert "at" not in repr(tokens).replace("access_token_expires", "").replace("datetime", "").replace(
            "Tokens", ""
        )

    def test_the_least(self) -> None:
        tokens = read_token_response(answer(GOOD), NOW)
        assert tokens.refresh_token == "" and tokens.access_token_expires is None

    @pytest.mark.parametrize("kind", ["bearer", "BEARER", "Bearer"])
    def test_the_type_has_no_case(self, kind: str) -> None:
        assert read_token_response(answer({**GOOD, "token_type": kind}), NOW)

    @pytest.mark.parametrize(
        "expires_in,expected",
        [
            ("60", 60),
            (60.5, 60.5),
            (0, 0),
            (-1, None),
            (1e300, None),
            ("soon", None),
            (None, None),
            ([], None),
            ("nan", None),
            ("inf", None),
        ],
    )
    def test_expires_in_is_advice(self, expires_in: Any, expected: float | None) -> None:
        found = read_token_response(answer({**GOOD, "expires_in": expires_in}), NOW).access_token_expires
        assert found == (None if expected is None else NOW + timedelta(seconds=expected))

    @pytest.mark.parametrize(
        "change",
        [
            {"id_token": ...}, {"id_token": None}, {"id_token": 1}, {"id_token": ""}, {"access_token": ...},
            {"access_token": ""},
            {"access_token": ["at"]}, {"access_token": "a\r\nX-Evil: 1"}, {"access_token": "ä"},
            {"access_token": "x" * 70_000},
            {"token_type": "DPoP"}, {"token_type": "mac"}, {"token_type": None}, {"token_type": 1},
            {"refresh_token": 5},
            {"refresh_token": "a\nb"}, {"error": "invalid_grant"}, {"error": None},
        ],
        ids=lambda value: str(value)[:40],
    )  # fmt: skip
    def test_p01_what_is_not_usable(self, change: dict[str, Any]) -> None:
        body = {name: value for name, value in {**GOOD, **change}.items() if value is not ...}
        with pytest.raises(ProviderWrong):
            read_token_response(answer(body), NOW)

    @pytest.mark.parametrize(
        "body", [b"", b"null", b"[]", b"access_token=at&id_token=x", b"<html>", b"{" * 100_000, b"\xff"]
    )
    def test_p01_p04_what_is_no_json_object(self, body: bytes) -> None:
        with pytest.raises(ProviderWrong):
            read_token_response(answer(body), NOW)

    @pytest.mark.parametrize("status", [201, 204, 301, 302, 400, 401, 403, 404, 429, 500, 502, 503])
    def test_p01_any_other_status_even_with_good_tokens(self, status: int) -> None:
        with pytest.raises(EndpointRefused) as caught:
            read_token_response(answer(GOOD, status), NOW)
        assert caught.value.answered == status and caught.value.status == 502

    def test_p01_the_error_s_code_is_told_and_its_text_is_not(self) -> None:
        with pytest.raises(EndpointRefused) as caught:
            read_token_response(answer({"error": "invalid_grant", "error_description": "geheim"}, 400), NOW)
        assert (
            caught.value.code == "invalid_grant"
            and str(caught.value) == "token endpoint: status 400, invalid_grant"
        )
        with pytest.raises(EndpointRefused) as caught:
            read_token_response(answer({"error": "<b>geheim</b>"}, 400), NOW)
        assert caught.value.code == "" and "geheim" not in str(caught.value)


class TestUserinfo:
    def test_u29_a_401_is_told_apart(self) -> None:
        with pytest.raises(EndpointRefused) as caught:
            read_userinfo(answer(b"", 401))
        assert (caught.value.endpoint, caught.value.answered) == ("userinfo", 401)

    def test_u29_against_a_provider(self, rp: RelyingParty) -> None:
        with pytest.raises(EndpointRefused) as caught:
            rp.client.userinfo(rp.provider.metadata(), "not-a-token")
        assert caught.value.answered == 401

    @pytest.mark.parametrize("status", [201, 204, 302, 400, 403, 404, 500, 503])
    def test_c17_any_other_status(self, status: int) -> None:
        with pytest.raises(EndpointRefused):
            read_userinfo(answer({"sub": "a"}, status))

    @pytest.mark.parametrize(
        "body",
        [
            b"", b"<html></html>", b'["sub"]', b"null", b'"sub"', b"{}", b'{"sub":null}', b'{"sub":1}',
            b'{"sub":["a"]}',
            b'{"sub":"a","sub":"b"}', b'{"a":' * 100_000, b'{"sub":"a","x":NaN}',
            b"eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.", b"eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.AAAA",
        ],
        ids=lambda value: str(value)[:30],
    )  # fmt: skip
    def test_c17_j19_what_is_no_object_about_somebody(self, body: bytes) -> None:
        with pytest.raises(ProviderWrong):
            read_userinfo(answer(body))

    def test_d6_the_access_token_travels_in_the_header_only(self, rp: RelyingParty) -> None:
        rp.login()
        (call,) = rp.fake.calls("userinfo")
        assert call.method == "GET" and call.headers["authorization"].startswith("Bearer ")
        assert call.query == {} and call.form == {}


class TestRevocation:
    @pytest.fixture(autouse=True)
    def less_patience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert client.REVOCATION_TIMEOUT <= timedelta(seconds=3)
        monkeypatch.setattr(client, "REVOCATION_TIMEOUT", timedelta(seconds=0.4))

    def test_b41_the_refresh_token_first_then_the_access_token(self, rp: RelyingParty) -> None:
        finished = rp.login()
        assert rp.client.revoke(finished.refresh_token, finished.access_token) == []
        first, second = rp.fake.calls("revoke")
        assert (first.form["token"], first.form["token_type_hint"]) == (
            finished.refresh_token,
            "refresh_token",
        )
        assert (second.form["token"], second.form["token_type_hint"]) == (
            finished.access_token,
            "access_token",
        )
        assert first.headers["authorization"].startswith("Basic ") and first.query == {}

    def test_what_there_is_not_is_not_revoked(self, rp: RelyingParty) -> None:
        rp.begin()
        assert rp.client.revoke("", "at") == []
        assert rp.client.revoke("", "") == []
        (call,) = rp.fake.calls("revoke")
        assert call.form["token_type_hint"] == "access_token"

    def test_b41_any_2xx_is_success(self, rp: RelyingParty) -> None:
        rp.begin()
        rp.fake.misbehave("revoke_204")
        assert rp.client.revoke("rt", "at") == []

    def test_an_access_token_that_cannot_be_revoked_is_no_failure(self, rp: RelyingParty) -> None:
        rp.begin()
        rp.fake.misbehave("revoke_unsupported")
        assert rp.client.revoke("rt", "at") == ["refresh_token"]

    @pytest.mark.parametrize(
        "fault",
        [
            "revoke_error_500",
            "revoke_error_404",
            "silent_revoke",
            "cut_off_revoke",
            "huge_revoke",
            "endless_headers_revoke",
        ],
    )
    def test_b41_b57_b58_failures_are_values(
        self, rp: RelyingParty, fault: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "authservice")
        rp.begin()
        rp.fake.misbehave(fault)
        assert rp.client.revoke("geheim-rt", "geheim-at") == ["refresh_token", "access_token"]
        assert "geheim" not in caplog.text and rp.fake.client_secret not in caplog.text
        assert [record.getMessage() for record in caplog.records].count("revocation_failed") == 2

    def test_b57_a_redirect_is_not_followed(self, rp: RelyingParty) -> None:
        rp.begin()
        with FakeProvider() as other:
            rp.fake.misbehave("redirect_revoke", other.address("revoke"))
            assert rp.client.revoke("rt", "at") == ["refresh_token", "access_token"]
            assert not other.calls()

    def test_a_slow_endpoint_does_not_hold_up_a_logout_for_long(self, rp: RelyingParty) -> None:
        rp.begin()
        rp.fake.misbehave("slow_revoke", 60)
        began = time.monotonic()
        assert rp.client.revoke("", "at") == ["access_token"]
        assert time.monotonic() - began < 2

    def test_no_endpoint_nothing_to_tell(self, fake: FakeProvider) -> None:
        fake.metadata["revocation_endpoint"] = None
        rp = RelyingParty(fake)
        rp.begin()
        assert rp.client.revoke("rt", "at") == [] and not fake.calls("revoke")

    def test_a_provider_that_was_never_reached(self, rp: RelyingParty) -> None:
        assert rp.client.revoke("rt", "at") == ["refresh_token", "access_token"]
        assert rp.client.revoke("rt", "") == ["refresh_token"]
        assert not rp.fake.calls(), "a logout waits for no discovery"

    def test_a_provider_that_is_gone(self, rp: RelyingParty) -> None:
        finished = rp.login()
        rp.fake.stop()
        assert rp.client.revoke(finished.refresh_token, finished.access_token) == [
            "refresh_token",
            "access_token",
        ]


class TestRedeeming:
    @pytest.mark.parametrize(
        "fault",
        [
            "token_invalid_grant",
            "token_invalid_client",
            "token_error_500",
            "token_error_404",
            "token_200_error",
            "token_html",
            "token_deep",
            "token_twice",
            "token_utf16",
            "huge_token",
            "gzip_bomb_token",
        ],
    )
    def test_p01_p04_j20_is_refused_once_and_for_all(
        self, rp: RelyingParty, fault: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        error = rp.refused_login(ProviderWrong, fault)
        assert error.status == 502 and rp.called("token") == 1 and rp.called("userinfo") == 0
        assert "secret detail" not in str(error)
        assert rp.fake.client_secret not in caplog.text

    @pytest.mark.parametrize(
        "fault,value",
        [
            ("drip_token", 0.1),
            ("slow_token", 60),
            ("endless_headers_token", True),
            ("cut_off_token", True),
            ("silent_token", True),
        ],
    )
    def test_p05_no_answer_in_time_is_504(self, fake: FakeProvider, fault: str, value: Any) -> None:
        from authservice.outbound import Http

        rp = RelyingParty(fake, http=Http(timeout=timedelta(seconds=0.4)))
        begun = rp.begin()
        query = rp.at_provider(begun)
        fake.misbehave(fault, value)
        began = time.monotonic()
        with pytest.raises(ProviderSilent) as caught:
            rp.finish(query, begun)
        assert caught.value.status == 504 and time.monotonic() - began < 3
        assert len(fake.calls("token")) == 1, "a code is never sent twice"

    def test_p05_nobody_there(self, rp: RelyingParty) -> None:
        begun = rp.begin()
        query = rp.at_provider(begun)
        rp.fake.stop()
        with pytest.raises(ProviderSilent):
            rp.finish(query, begun)

    def test_p02_no_credential_reaches_another_host(self, rp: RelyingParty) -> None:
        with FakeProvider() as other:
            rp.fake.misbehave("redirect_token", other.address("token"))
            rp.refused_login(ProviderWrong)
            assert not other.calls() and not rp.called("userinfo")

    def test_p04_one_rule_for_content_types(self, rp: RelyingParty) -> None:
        for name in ("token_html_type", "userinfo_html_type"):
            rp.fake.misbehave(name)
        assert rp.login()


def test_metadata_of_the_provider_can_be_read_from_memory_after_a_login(rp: RelyingParty) -> None:
    rp.login()
    assert rp.provider.metadata(Reach.MEMORY).revocation_endpoint == rp.fake.address("revoke")
    assert isinstance(rp.client, Client)
