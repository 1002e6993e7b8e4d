"""Opaque tokens: what is asked of the provider about them, and what is believed of its answers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authservice.errors import NotReady, ProviderBusy, ProviderWrong, Unavailable
from authservice.identity import ClaimRules
from authservice.oidc.answers import is_sendable
from authservice.oidc.client import Credentials
from authservice.oidc.introspection import Introspection, read_introspection
from authservice.oidc.metadata import Overrides
from authservice.oidc.opaque import OpaqueTokens
from authservice.oidc.tokens import TokenRefused
from authservice.outbound import Http, Response
from tests.provider import FakeProvider, rsa_key
from tests.relying_party import RelyingParty
from tests.test_oidc_client import pem
from tests.test_oidc_tokens import ODD_VALUES

NOW = datetime(2026, 7, 1, 12, 0, tzinfo=timezone.utc)
SECONDS = int(NOW.timestamp())
ISSUER = "https://provider.example"
ACTIVE: dict[str, Any] = {
    "active": True, "sub": "a-1", "iss": ISSUER, "aud": ["authservice"], "exp": SECONDS + 300, "client_id": "ci",
    "token_type": "Bearer", "email": "alice@example.com",
}  # fmt: skip


def read(body: Any = None, /, **changes: Any) -> Introspection:
    """The verdict on an active answer with changes; `...` removes a member."""
    given_members = {name: value for name, value in {**ACTIVE, **changes}.items() if value is not ...}
    raw = body if isinstance(body, bytes) else json.dumps(given_members).encode()
    return read_introspection(
        Response(200, {}, raw), issuer=ISSUER, audiences=frozenset({"authservice", "api"}), now=NOW
    )


class TestAnswer:
    def test_its_claims(self) -> None:
        found = read()
        assert found.active and found.expires == NOW + timedelta(seconds=300)
        assert dict(found.claims) == {name: value for name, value in ACTIVE.items() if name != "active"}

    def test_inactive_says_nothing_else(self) -> None:
        found = read(active=False)
        assert not found.active and not found.claims and found.expires is None

    @pytest.mark.parametrize("active", [..., None, "true", "false", 1, 0, [], {}, [True]])
    def test_active_is_true_or_false_and_nothing_that_looks_like_it(self, active: Any) -> None:
        with pytest.raises(ProviderWrong):
            read(active=active)

    @pytest.mark.parametrize(
        "body",
        [b"", b"null", b"[]", b"true", b"<html>", b'{"active":true,"active":false}', b'{"active":tru', b"\xff",
         b'{"active":true,"x":NaN}', b'{"active":' * 10_000, b"eyJhbGciOiJub25lIn0.eyJhY3RpdmUiOnRydWV9."],
        ids=lambda body: repr(body)[:30],
    )  # fmt: skip
    def test_what_is_no_introspection(self, body: bytes) -> None:
        with pytest.raises(ProviderWrong):
            read(body)

    @pytest.mark.parametrize("name", ["sub", "iss", "exp", "client_id", "token_type"])
    def test_rfc7662_what_may_be_missing(self, name: str) -> None:
        assert read(**{name: ...}).active

    @pytest.mark.parametrize(("client", "good"), [("authservice", True), ("api", True), ("ci", False), (..., False)])
    def test_b16_without_an_audience_the_client_says_for_whom(self, client: Any, good: bool) -> None:
        if good:
            assert read(aud=..., client_id=client).active
        else:
            with pytest.raises(TokenRefused, match="client_id"):
                read(aud=..., client_id=client)

    def test_without_expiry_nothing_is_known_of_it(self) -> None:
        assert read(exp=...).expires is None

    @pytest.mark.parametrize("aud", ["authservice", "api", ["api"], ["other", "authservice"]])
    def test_the_client_or_one_of_the_audiences(self, aud: Any) -> None:
        assert read(aud=aud).active

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("aud", aud) for aud in ("other", [], ["other"], "", None, 1, {}, ["api", 1], [["api"]], "API")),
            *(("iss", iss) for iss in (ISSUER + "/", ISSUER.upper(), "", None, [ISSUER], "provider.example")),
            *(("exp", exp) for exp in (SECONDS - 60, 0, -1, "9999999999", None, True, 10**12, 1e300)),
            *(("nbf", nbf) for nbf in (SECONDS + 61, "1", None)),
            *(("iat", iat) for iat in (SECONDS + 61, "1", None)),
            *(("sub", sub) for sub in ("", None, 1, ["a"], "x" * 256, "a\r\nb")),
            *(("token_type", kind) for kind in ("DPoP", "PoP", "refresh_token", "Refresh", "", None, 1, "mac")),
            ("cnf", {"jkt": "x"}),
        ],
    )  # fmt: skip
    def test_b16_active_but_not_good_here(self, name: str, value: Any) -> None:
        with pytest.raises(TokenRefused) as caught:
            read(**{name: value})
        assert caught.value.check == name

    @pytest.mark.parametrize(
        "members",
        [{"typ": "Refresh"}, {"typ": "ID"}, {"token_use": "refresh_token"}, {"token_use": "id"}, {"events": {}}],
    )
    def test_b17_tokens_of_other_kinds_are_active_too(self, members: dict[str, Any]) -> None:
        with pytest.raises(TokenRefused) as caught:
            read(**members)
        assert caught.value.check == "kind"

    @pytest.mark.parametrize("kind", ["bearer", "BEARER", "access_token"])
    def test_types_that_mean_the_same(self, kind: str) -> None:
        assert read(token_type=kind).active

    def test_c06_within_the_skew(self) -> None:
        assert read(exp=SECONDS - 59, nbf=SECONDS + 60, iat=SECONDS + 60).active

    @given(st.dictionaries(st.sampled_from([*ACTIVE, "nbf", "iat", "cnf", "typ"]), ODD_VALUES, min_size=1))
    def test_s20_members_of_any_type(self, odd: dict[str, Any]) -> None:
        try:
            found = read(**odd)
        except (TokenRefused, ProviderWrong):
            return
        assert found.active is (odd.get("active", True) is True)
        assert not found.active or found.claims.get("iss", ISSUER) == ISSUER


# --- against a provider -------------------------------------------------------------------------


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as provider:
        yield provider


@pytest.fixture
def rp(fake: FakeProvider) -> RelyingParty:
    return RelyingParty(fake)


class TestIntrospection:
    def test_what_is_sent(self, rp: RelyingParty, fake: FakeProvider) -> None:
        token = fake.opaque_token()
        assert rp.client.can_introspect and rp.client.introspect(token).active
        (call,) = fake.calls("introspect")
        assert call.method == "POST" and call.query == {} and call.headers["accept"] == "application/json"
        assert call.form == {"token": token, "token_type_hint": "access_token"}
        assert call.headers["authorization"].startswith("Basic ")

    @pytest.mark.parametrize("method", ["client_secret_post", "private_key_jwt"])
    def test_the_client_authenticates_as_elsewhere(self, fake: FakeProvider, method: str) -> None:
        key = rsa_key(1)
        fake.client_key = key.public_key() if method == "private_key_jwt" else None
        credentials = Credentials(fake.client_id, fake.client_secret, method, pem(key))
        assert RelyingParty(fake, credentials=credentials).client.introspect(fake.opaque_token()).active

    def test_its_address_can_be_set(self, fake: FakeProvider) -> None:
        address = fake.address("introspect") + "?tenant=1"
        fake.metadata["introspection_endpoint"] = None
        client = RelyingParty(fake, overrides=Overrides(introspection_endpoint=address)).client
        assert client.can_introspect and client.introspect(fake.opaque_token()).active
        assert fake.calls("introspect")[0].query == {"tenant": "1"}

    def test_revoked_expired_and_made_up_tokens(self, rp: RelyingParty, fake: FakeProvider) -> None:
        token = fake.opaque_token()
        assert rp.client.introspect(token).active
        fake.revoke(token)
        assert not rp.client.introspect(token).active
        assert not rp.client.introspect(fake.opaque_token(lifetime=-1)).active
        assert not rp.client.introspect("made-up").active

    @pytest.mark.parametrize(
        ("fault", "check"), [("wrong_aud", "aud"), ("wrong_iss", "iss"), ("expired", "exp")]
    )
    def test_b16_answers_that_do_not_hold(
        self, rp: RelyingParty, fake: FakeProvider, fault: str, check: str
    ) -> None:
        fake.misbehave(f"introspect_{fault}")
        with pytest.raises(TokenRefused) as caught:
            rp.client.introspect(fake.opaque_token())
        assert caught.value.check == check

    def test_audiences_besides_the_client(self, rp: RelyingParty, fake: FakeProvider) -> None:
        fake.introspection_claims["aud"] = "api"
        with pytest.raises(TokenRefused):
            rp.client.introspect(fake.opaque_token())
        assert rp.client.introspect(fake.opaque_token(), frozenset({"api"})).active

    @pytest.mark.parametrize(
        "fault",
        ["introspect_error_500", "introspect_error_404", "introspect_html", "introspect_deep", "introspect_twice",
         "silent_introspect", "cut_off_introspect", "huge_introspect", "gzip_bomb_introspect",
         "introspect_utf16"],
    )  # fmt: skip
    def test_faults_of_the_provider_are_not_the_token_s(
        self, rp: RelyingParty, fake: FakeProvider, fault: str
    ) -> None:
        fake.misbehave(fault)
        with pytest.raises(Unavailable) as caught:
            rp.client.introspect(fake.opaque_token())
        assert caught.value.status == 503 and "secret detail" not in str(caught.value)
        fake.behave()
        assert rp.client.introspect(fake.opaque_token()).active

    @pytest.mark.parametrize("fault", ["slow_introspect", "drip_introspect"])
    def test_p05_no_answer_in_time(self, fake: FakeProvider, fault: str) -> None:
        rp = RelyingParty(fake, http=Http(timeout=timedelta(seconds=0.4)))
        assert rp.client.can_introspect
        fake.misbehave(fault, 30 if "slow" in fault else 0.1)
        with pytest.raises(Unavailable):
            rp.client.introspect(fake.opaque_token())
        assert len(fake.calls("introspect")) == 1

    def test_a_provider_that_is_busy(self, rp: RelyingParty, fake: FakeProvider) -> None:
        fake.misbehave("introspect_busy")
        with pytest.raises(ProviderBusy):
            rp.client.introspect(fake.opaque_token())

    def test_a_refused_client_is_our_fault_and_not_the_token_s(
        self, fake: FakeProvider, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        client = RelyingParty(fake, credentials=Credentials(fake.client_id, "geheim-wrong")).client
        token = fake.opaque_token()
        with pytest.raises(Unavailable) as caught:
            client.introspect(token)
        assert str(caught.value) == "introspection: status 401, invalid_client"
        assert "geheim" not in caplog.text and token not in caplog.text

    def test_p02_redirects_are_not_followed(self, rp: RelyingParty, fake: FakeProvider) -> None:
        with FakeProvider() as other:
            fake.misbehave("redirect_introspect", other.address("introspect"))
            with pytest.raises(Unavailable):
                rp.client.introspect(fake.opaque_token())
            assert not other.calls()

    def test_a_provider_that_was_never_reached(self, rp: RelyingParty, fake: FakeProvider) -> None:
        fake.stop()
        with pytest.raises(NotReady):
            rp.client.introspect("a-token")

    @pytest.mark.parametrize("token", ["", "a b", "a\nb", "ä", "x" * 70_000, "a\x00"], ids=lambda text: repr(text)[:10])
    def test_b21_what_can_be_no_access_token_is_sent_nowhere(
        self, rp: RelyingParty, fake: FakeProvider, token: str
    ) -> None:
        assert not rp.client.introspect(token).active and rp.client.bearer_userinfo(token) is None
        assert not fake.calls("introspect") and not fake.calls("userinfo")

    @pytest.mark.parametrize("token", ["a&b=c%2B+", "~._-/==", "token=x&token_type_hint=y", "\"'<>;|", "%", "+", "&"])
    def test_the_token_arrives_as_it_is(self, rp: RelyingParty, fake: FakeProvider, token: str) -> None:
        assert not rp.client.introspect(token).active
        (call,) = fake.calls("introspect")
        assert call.form == {"token": token, "token_type_hint": "access_token"}


@given(st.text(max_size=30))
def test_only_visible_ascii_is_ever_sent(text: str) -> None:
    assert is_sendable(text) == (text != "" and all("!" <= letter <= "~" for letter in text))


class TestUserinfo:
    def test_the_claims(self, rp: RelyingParty, fake: FakeProvider) -> None:
        assert rp.client.bearer_userinfo(fake.opaque_token()) == fake.claims

    def test_u29_a_refused_token(self, rp: RelyingParty, fake: FakeProvider) -> None:
        assert rp.client.bearer_userinfo("made-up") is None
        token = fake.opaque_token()
        fake.revoke(token)
        assert rp.client.bearer_userinfo(token) is None
        assert rp.client.bearer_userinfo(fake.opaque_token(lifetime=-1)) is None

    @pytest.mark.parametrize(
        "fault",
        ["userinfo_error_500", "userinfo_error_404", "userinfo_html", "silent_userinfo", "userinfo_missing_sub"],
    )
    def test_c17_faults_of_the_provider_are_not_the_token_s(
        self, rp: RelyingParty, fake: FakeProvider, fault: str
    ) -> None:
        fake.misbehave(fault)
        with pytest.raises(Unavailable):
            rp.client.bearer_userinfo(fake.opaque_token())

    @pytest.mark.parametrize(
        "body", [b"eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.", b"[]", b'{"sub":"a","sub":"b"}', b'{"sub":1}']
    )
    def test_c17_bodies_that_are_no_claims(self, rp: RelyingParty, fake: FakeProvider, body: bytes) -> None:
        fake.misbehave("userinfo_answer", body)
        with pytest.raises(Unavailable):
            rp.client.bearer_userinfo(fake.opaque_token())

    def test_c17_a_redirect_does_not_carry_the_token_away(self, rp: RelyingParty, fake: FakeProvider) -> None:
        with FakeProvider() as other:
            fake.misbehave("redirect_userinfo", other.address("userinfo"))
            with pytest.raises(Unavailable):
                rp.client.bearer_userinfo(fake.opaque_token())
            assert not other.calls()

    def test_neither_endpoint_exists(self, fake: FakeProvider) -> None:
        fake.metadata.update(userinfo_endpoint=None, introspection_endpoint=None)
        client = RelyingParty(fake).client
        assert not client.can_introspect and not client.has_userinfo
        with pytest.raises(Unavailable):
            client.bearer_userinfo("a-token")


Make = Callable[..., OpaqueTokens]


@pytest.fixture
def make(rp: RelyingParty) -> Make:
    def make_opaque(userid: str = "email", groups: str = "groups", **rules: bool) -> OpaqueTokens:
        return OpaqueTokens(rp.client, frozenset({"api"}), ClaimRules(userid, groups, **rules))

    return make_opaque


class TestAsking:
    def test_one_call_when_introspection_says_it_all(self, make: Make, fake: FakeProvider) -> None:
        fake.introspection_claims.update(email="alice@example.com", groups=["dev"])
        found = make().ask(fake.opaque_token())
        assert found is not None and (found["email"], found["groups"]) == ("alice@example.com", ["dev"])
        assert not fake.calls("userinfo")

    def test_groups_that_nobody_wants_are_not_asked_for(self, make: Make, fake: FakeProvider) -> None:
        found = make("sub", "").ask(fake.opaque_token())
        assert found is not None and found["sub"] == fake.claims["sub"] and not fake.calls("userinfo")

    @pytest.mark.parametrize("given_claims", [{}, {"email": "alice@example.com"}, {"groups": ["dev"]}])
    def test_userinfo_completes_what_is_missing(
        self, make: Make, fake: FakeProvider, given_claims: dict[str, Any]
    ) -> None:
        fake.introspection_claims.update(given_claims)
        token = fake.opaque_token()
        found = make().ask(token)
        assert found is not None and found["email"] == "alice@example.com" and found["groups"] == ["admins", "dev"]
        assert found["client_id"] == "ci" and "exp" in found, "the protocol's claims are the introspection's"
        (call,) = fake.calls("userinfo")
        assert call.headers["authorization"] == f"Bearer {token}"

    def test_whether_the_address_is_verified_is_asked_for_where_it_counts(
        self, make: Make, fake: FakeProvider
    ) -> None:
        fake.introspection_claims.update(email="alice@example.com", groups=[])
        assert "email_verified" not in (make().ask(fake.opaque_token()) or {})
        found = make(require_verified_email=True).ask(fake.opaque_token())
        assert found is not None and found["email_verified"] is True

    def test_b14_userinfo_about_somebody_else(self, make: Make, fake: FakeProvider) -> None:
        fake.misbehave("userinfo_other_sub")
        with pytest.raises(TokenRefused) as caught:
            make().ask(fake.opaque_token())
        assert caught.value.check == "sub"

    def test_without_a_sub_nothing_is_completed(self, make: Make, fake: FakeProvider) -> None:
        fake.misbehave("introspect_answer", {"sub": None})
        found = make().ask(fake.opaque_token())
        assert found is not None and "email" not in found and not fake.calls("userinfo")

    def test_without_userinfo_it_stays_as_introspected(self, make: Make, fake: FakeProvider) -> None:
        fake.metadata["userinfo_endpoint"] = None
        found = make("sub").ask(fake.opaque_token())
        assert found is not None and found["sub"] == fake.claims["sub"] and "groups" not in found

    def test_a_token_that_userinfo_does_not_take_stays_as_introspected(
        self, make: Make, fake: FakeProvider
    ) -> None:
        """A client's own token (``client_credentials``) opens no person's claims."""
        fake.misbehave("userinfo_refused")
        found = make("sub").ask(fake.opaque_token())
        assert found is not None and found["sub"] == fake.claims["sub"] and len(fake.calls("userinfo")) == 1

    def test_not_active_is_nobody(self, make: Make, fake: FakeProvider) -> None:
        fake.misbehave("introspect_inactive")
        assert make().ask(fake.opaque_token()) is None
        assert not fake.calls("userinfo"), "what introspection refuses is not tried elsewhere"

    def test_b16_a_token_for_somebody_else_is_not_tried_at_userinfo(self, make: Make, fake: FakeProvider) -> None:
        fake.misbehave("introspect_wrong_aud")
        with pytest.raises(TokenRefused):
            make().ask(fake.opaque_token())
        assert not fake.calls("userinfo")

    def test_failing_userinfo_is_not_left_out(self, make: Make, fake: FakeProvider) -> None:
        """Somebody's groups would be missing, and nobody could tell why."""
        fake.misbehave("userinfo_error_500")
        with pytest.raises(Unavailable):
            make("sub").ask(fake.opaque_token())

    def test_a_failing_introspection_is_not_replaced_by_userinfo(self, make: Make, fake: FakeProvider) -> None:
        fake.misbehave("introspect_error_500")
        with pytest.raises(Unavailable):
            make().ask(fake.opaque_token())
        assert not fake.calls("userinfo")

    def test_without_introspection_userinfo_decides(self, make: Make, fake: FakeProvider) -> None:
        fake.metadata["introspection_endpoint"] = None
        token = fake.opaque_token()
        found = make().ask(token)
        assert found is not None and found["email"] == "alice@example.com" and not fake.calls("introspect")
        fake.revoke(token)
        assert make().ask(token) is None

    @pytest.mark.parametrize("claims", [{"email": 1}, {"email_verified": 42}, {"email_verified": "fals"}])
    @pytest.mark.parametrize("introspects", [True, False])
    def test_u30_u36_addresses_that_are_none(
        self, make: Make, fake: FakeProvider, claims: dict[str, Any], introspects: bool
    ) -> None:
        if not introspects:
            fake.metadata["introspection_endpoint"] = None
        with pytest.raises(Unavailable):
            make().ask(fake.opaque_token(**claims))

    @pytest.mark.parametrize("verified", [True, False, "true", "false"])
    def test_u30_u33_addresses(self, make: Make, fake: FakeProvider, verified: Any) -> None:
        found = make().ask(fake.opaque_token(email_verified=verified))
        assert found is not None and found["email_verified"] == verified
