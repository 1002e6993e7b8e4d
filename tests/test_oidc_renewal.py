"""Renewing a session's tokens: what is believed of the answer, what ends a session and what does not."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from authservice.errors import ProviderSilent, ProviderWrong, SessionOver, Unavailable
from authservice.oidc import renewal
from authservice.oidc.answers import read_refresh_response
from authservice.oidc.claims import follow_claims
from authservice.oidc.client import Credentials
from authservice.oidc.metadata import Overrides
from authservice.oidc.renewal import Held
from authservice.outbound import Http, Response
from tests.provider import FakeProvider, nasty_sid
from tests.relying_party import RelyingParty, held, held_on

NOW = datetime(2026, 7, 1, tzinfo=timezone.utc)


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as provider:
        yield provider


@pytest.fixture
def rp(fake: FakeProvider) -> RelyingParty:
    return RelyingParty(fake)


@pytest.fixture
def session(fake: FakeProvider, rp: RelyingParty) -> Held:
    """A session just begun; only what comes after it is counted."""
    session = held(rp.login())
    fake.forget_calls()
    return session


def asked(fake: FakeProvider) -> list[str]:
    return [call.endpoint for call in fake.calls()]


class TestTheRequest:
    def test_a_refresh_then_userinfo_with_the_new_token(
        self, fake: FakeProvider, rp: RelyingParty, session: Held
    ) -> None:
        renewed = rp.renewal.renew(session)
        assert asked(fake) == ["token", "userinfo"]
        token, userinfo = fake.calls()
        assert token.form == {"grant_type": "refresh_token", "refresh_token": session.refresh_token}
        assert token.headers["authorization"].startswith("Basic ")
        assert userinfo.headers["authorization"] == f"Bearer {renewed.access_token}"
        assert renewed.refresh_token not in ("", session.refresh_token)
        assert renewed.id_token not in ("", session.id_token)
        assert renewed.access_token_expires is not None
        left = renewed.access_token_expires - rp.clock()
        assert timedelta(seconds=3590) < left <= timedelta(seconds=3600)
        assert fake.refreshes == 1

    def test_again_and_again_with_each_new_token(self, fake: FakeProvider, rp: RelyingParty) -> None:
        session = held(rp.login())
        for _ in range(3):
            session = held_on(session, rp.renewal.renew(session))
        assert fake.refreshes == 3 and fake.spent_refreshes == 0
        # What the login said of itself outlives ID tokens that say it no longer.
        assert session.claims["nonce"] and session.claims["email"] == "alice@example.com"

    def test_a_spent_token_ends_the_session(self, fake: FakeProvider, rp: RelyingParty, session: Held) -> None:
        rp.renewal.renew(session)
        with pytest.raises(SessionOver):
            rp.renewal.renew(session)
        assert fake.refreshes == 1 and fake.spent_refreshes == 1

    def test_odd_characters_of_a_token_arrive_as_they_are(
        self, fake: FakeProvider, rp: RelyingParty, session: Held
    ) -> None:
        odd = "a+b/c=&d%41 e\"f'g"
        with pytest.raises(SessionOver):
            rp.renewal.renew(Held(session.issuer, session.subject, {}, session.id_token, odd))
        assert fake.calls("token")[0].form["refresh_token"] == odd

    def test_every_way_to_authenticate_the_client(self) -> None:
        for credentials, secret in (
            (Credentials("authservice", "s", "client_secret_post"), "s"),
            (Credentials("authservice"), ""),
        ):
            with FakeProvider(client_secret=secret) as fake:
                rp = RelyingParty(fake, credentials=credentials)
                assert rp.renewal.renew(held(rp.login())).access_token

    def test_a_token_of_another_issuer_is_sent_nowhere(
        self, fake: FakeProvider, rp: RelyingParty, session: Held
    ) -> None:
        other = Held("https://other.example", session.subject, {}, session.id_token, session.refresh_token)
        with pytest.raises(SessionOver):
            rp.renewal.renew(other)
        assert asked(fake) == []


class TestTheAnswer:
    def test_without_a_new_refresh_token_the_old_one_stays(
        self, fake: FakeProvider, rp: RelyingParty, session: Held
    ) -> None:
        fake.misbehave("refresh_no_refresh_token")
        for _ in range(2):
            renewed = rp.renewal.renew(session)
            assert renewed.refresh_token == session.refresh_token
            session = held_on(session, renewed)

    @pytest.mark.parametrize("empty", [None, ""])
    def test_empty_members_are_left_out_ones(self, empty: str | None) -> None:
        body = {"access_token": "a", "token_type": "bearer", "refresh_token": empty, "id_token": empty}
        answer = Response(200, {}, json.dumps(body).encode())
        tokens = read_refresh_response(answer, NOW, "old")
        assert (tokens.access_token, tokens.id_token, tokens.refresh_token) == ("a", "", "old")
        assert tokens.access_token_expires is None

    @pytest.mark.parametrize("member", ["access_token", "refresh_token", "id_token"])
    def test_a_member_that_is_no_text_is_refused(self, member: str) -> None:
        body = {"access_token": "a", "token_type": "bearer", member: 7}
        with pytest.raises(ProviderWrong):
            read_refresh_response(Response(200, {}, json.dumps(body).encode()), NOW, "old")

    def test_without_an_id_token_the_old_one_stays_and_userinfo_tells(
        self, fake: FakeProvider, rp: RelyingParty, session: Held
    ) -> None:
        fake.misbehave("refresh_no_id_token")
        fake.claims["groups"] = ["dev"]
        renewed = rp.renewal.renew(session)
        assert renewed.id_token == session.id_token and renewed.claims["groups"] == ["dev"]
        assert renewed.claims["iss"] == fake.issuer

    def test_groups_follow_the_new_tokens(self, fake: FakeProvider, rp: RelyingParty, session: Held) -> None:
        assert session.claims["groups"] == ["admins", "dev"]
        fake.claims["groups"] = ["dev"]
        assert rp.renewal.renew(session).claims["groups"] == ["dev"]
        fake.claims.pop("groups")
        assert "groups" not in rp.renewal.renew(held(rp.login())).claims

    @pytest.mark.parametrize("id_token", [True, False])
    def test_a_provider_without_userinfo(self, fake: FakeProvider, id_token: bool) -> None:
        fake.metadata["userinfo_endpoint"] = None
        fake.id_token_claims["groups"] = ["admins"]
        rp = RelyingParty(fake)
        session = held(rp.login())
        fake.id_token_claims["groups"] = ["dev"]
        if not id_token:
            fake.misbehave("refresh_no_id_token")
        assert rp.renewal.renew(session).claims["groups"] == (["dev"] if id_token else ["admins"])
        assert rp.called("userinfo") == 0

    @pytest.mark.parametrize("id_token", [True, False])
    def test_d20_the_sid_of_the_login_stays(self, fake: FakeProvider, rp: RelyingParty, id_token: bool) -> None:
        fake.new_sid = nasty_sid
        finished = rp.login()
        if not id_token:
            fake.misbehave("refresh_no_id_token")
        renewed = rp.renewal.renew(held(finished))
        assert renewed.provider_sid == finished.provider_sid == renewed.claims["sid"] != ""

    def test_a_key_that_is_new_is_fetched(self, fake: FakeProvider, rp: RelyingParty, session: Held) -> None:
        fake.rotate_keys()
        assert rp.renewal.renew(session).id_token != session.id_token
        assert "jwks" in asked(fake)

    def test_nothing_secret_in_text(self, rp: RelyingParty, session: Held) -> None:
        renewed = rp.renewal.renew(session)
        for text in (repr(session), repr(renewed)):
            for secret in (renewed.access_token, renewed.refresh_token, session.refresh_token, "alice@"):
                assert secret not in text and session.id_token not in text


class TestAnotherLogin:
    """OpenID Connect Core 1.0 §12.2."""

    @pytest.mark.parametrize(
        "name", ["refresh_other_iss", "refresh_other_sub", "refresh_other_aud", "refresh_other_nonce"]
    )
    def test_a37_an_id_token_about_somebody_else(
        self, fake: FakeProvider, rp: RelyingParty, session: Held, name: str
    ) -> None:
        fake.misbehave(name)
        with pytest.raises(SessionOver):
            rp.renewal.renew(session)
        assert asked(fake) == ["token"], "userinfo is not called"

    @pytest.mark.parametrize("name", ["refresh_other_iss", "refresh_other_sub"])
    def test_a37_also_by_a_key_that_nobody_knows(
        self, fake: FakeProvider, rp: RelyingParty, session: Held, name: str
    ) -> None:
        fake.misbehave(name)
        fake.misbehave("unknown_kid")
        with pytest.raises(SessionOver):
            rp.renewal.renew(session)
        assert "userinfo" not in asked(fake)

    def test_the_nonce_of_the_login_may_be_there(
        self, fake: FakeProvider, rp: RelyingParty, session: Held
    ) -> None:
        fake.misbehave("refresh_same_nonce")
        assert rp.renewal.renew(session).claims["nonce"] == session.claims["nonce"]

    def test_auth_time_is_that_of_the_login(self, fake: FakeProvider, rp: RelyingParty) -> None:
        fake.id_token_claims["auth_time"] = 1_700_000_000
        session = held(rp.login())
        session = held_on(session, rp.renewal.renew(session))
        fake.misbehave("refresh_other_auth_time")
        with pytest.raises(SessionOver):
            rp.renewal.renew(session)

    def test_auth_time_that_only_one_token_tells(self, fake: FakeProvider, rp: RelyingParty) -> None:
        session = held(rp.login())
        fake.id_token_claims["auth_time"] = 1_700_000_000
        session = held_on(session, rp.renewal.renew(session))
        del fake.id_token_claims["auth_time"]
        assert rp.renewal.renew(session).claims["auth_time"] == 1_700_000_000

    def test_userinfo_about_somebody_else(self, fake: FakeProvider, rp: RelyingParty, session: Held) -> None:
        fake.misbehave("userinfo_other_sub")
        with pytest.raises(SessionOver):
            rp.renewal.renew(session)

    @pytest.mark.parametrize(
        "name", ["bad_signature", "alg_none", "expired", "missing_iat", "wrong_at_hash", "refresh_old_iat"]
    )
    def test_an_id_token_that_does_not_hold_is_a_fault_of_the_provider(
        self, fake: FakeProvider, rp: RelyingParty, session: Held, name: str
    ) -> None:
        fake.misbehave(name)
        with pytest.raises(ProviderWrong):
            rp.renewal.renew(session)
        assert asked(fake) == ["token"], "userinfo is not called"


class TestOutages:
    @pytest.mark.parametrize("name", ["refresh_invalid_grant", "token_invalid_grant", "token_200_error"])
    def test_invalid_grant_ends_the_session(
        self, fake: FakeProvider, rp: RelyingParty, session: Held, name: str
    ) -> None:
        fake.misbehave(name)
        with pytest.raises(SessionOver) as caught:
            rp.renewal.renew(session)
        assert "secret detail" not in str(caught.value) and asked(fake) == ["token"]

    @pytest.mark.parametrize(
        ("name", "error"),
        [
            ("refresh_invalid_client", ProviderWrong),
            ("refresh_error_500", ProviderWrong),  # whose body says invalid_grant
            ("token_error_404", ProviderWrong),
            ("token_html", ProviderWrong),
            ("token_no_access_token", ProviderWrong),
            ("silent_token", ProviderSilent),
            ("refresh_lost", ProviderSilent),
            ("cut_off_token", ProviderSilent),
        ],
    )
    def test_everything_else_does_not(
        self, fake: FakeProvider, rp: RelyingParty, session: Held, name: str, error: type[Exception]
    ) -> None:
        fake.misbehave(name)
        with pytest.raises(error):
            rp.renewal.renew(session)
        assert "userinfo" not in asked(fake)

    def test_a_provider_that_is_slower_than_a_call_may_take(self, fake: FakeProvider) -> None:
        rp = RelyingParty(fake, http=Http(timeout=timedelta(seconds=0.3)))
        session = held(rp.login())
        fake.misbehave("slow_refresh", 5)
        with pytest.raises(ProviderSilent):
            rp.renewal.renew(session)

    def test_a_provider_that_is_not_known_yet(self, fake: FakeProvider, session: Held) -> None:
        fake.misbehave("discovery_error_500")
        with pytest.raises(Unavailable):
            RelyingParty(fake).renewal.renew(session)
        assert "token" not in asked(fake)

    @pytest.mark.parametrize(
        "name",
        [
            "userinfo_error_500", "silent_userinfo", "userinfo_html", "userinfo_missing_sub",
            "userinfo_refused", "huge_userinfo",
        ],
    )  # fmt: skip
    def test_userinfo_out_of_order_loses_no_tokens(
        self, fake: FakeProvider, rp: RelyingParty, session: Held, name: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        fake.misbehave(name)
        with caplog.at_level(logging.WARNING):
            renewed = rp.renewal.renew(session)
        assert renewed.refresh_token != session.refresh_token and renewed.id_token != session.id_token
        assert renewed.claims["groups"] == ["admins", "dev"] and renewed.claims["nonce"]
        assert "renewed_in_part" in caplog.text and renewed.refresh_token not in caplog.text
        fake.behave()
        assert rp.renewal.renew(held_on(session, renewed)).access_token

    def test_slow_userinfo_loses_no_tokens(
        self, fake: FakeProvider, rp: RelyingParty, session: Held, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(renewal, "USERINFO_TIMEOUT", timedelta(seconds=0.2))
        fake.misbehave("slow_userinfo", 5)
        assert rp.renewal.renew(session).refresh_token != session.refresh_token

    @pytest.mark.parametrize("email", [7, ["a@example.com"]])
    def test_claims_that_no_login_would_take(
        self, fake: FakeProvider, rp: RelyingParty, session: Held, email: Any
    ) -> None:
        fake.misbehave("userinfo_answer", {"sub": session.subject, "email": email})
        assert rp.renewal.renew(session).claims["email"] == "alice@example.com"

    @pytest.mark.parametrize("userinfo", [True, False])
    def test_claims_of_an_id_token_that_no_login_would_take(self, fake: FakeProvider, userinfo: bool) -> None:
        if not userinfo:
            fake.metadata["userinfo_endpoint"] = None
        rp = RelyingParty(fake)
        session = held(rp.login())
        fake.id_token_claims["email"] = 7
        with pytest.raises(ProviderWrong):
            rp.renewal.renew(session)

    @pytest.mark.parametrize("names", [("unknown_kid",), ("rotated_key", "jwks_error_500")])
    def test_keys_that_are_not_to_be_had_lose_no_tokens(
        self, fake: FakeProvider, rp: RelyingParty, session: Held, names: tuple[str, ...]
    ) -> None:
        for name in names:
            fake.misbehave(name)
        renewed = rp.renewal.renew(session)
        assert "userinfo" not in asked(fake), "what is not verified is not believed any further"
        assert renewed.id_token == session.id_token and dict(renewed.claims) == dict(session.claims)
        assert renewed.refresh_token != session.refresh_token

    def test_other_endpoints_of_the_operators_choice(self, fake: FakeProvider) -> None:
        rp = RelyingParty(fake, overrides=Overrides(token_endpoint=fake.address("token")))
        assert rp.renewal.renew(held(rp.login()))


class TestFollowingClaims:
    """While userinfo does not answer, each claim follows where it came from."""

    def test_what_the_id_token_said_follows_it(self) -> None:
        known = {"sub": "a", "groups": ["x"], "name": "A", "nick": "n", "iat": 1}
        old = {"sub": "a", "groups": ["x"], "nick": "n", "iat": 1}
        new = {"sub": "a", "groups": ["y"], "iat": 2, "extra": 1}
        assert follow_claims(known, old, new) == {
            "sub": "a", "groups": ["y"], "name": "A", "iat": 2, "extra": 1,
        }  # fmt: skip

    def test_what_userinfo_said_stays(self) -> None:
        known = {"groups": ["from userinfo"], "name": "A"}
        old = {"groups": ["short"], "name": "A"}
        assert follow_claims(known, old, {"groups": ["other"], "name": "B"}) == {
            "groups": ["from userinfo"], "name": "B",
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("known", "old", "new", "wanted"),
        [
            # A new address of the token with what the token says of it, or with nothing.
            (("a", True), ("a", True), ("b", False), ("b", False)),
            (("a", True), ("a", True), ("b", None), ("b", None)),
            (("a", True), ("a", None), ("b", None), ("b", None)),
            (("a", True), ("a", None), ("b", False), ("b", False)),
            # An address of userinfo keeps what userinfo said, whatever the token says of its own.
            (("u", False), ("t", False), ("t", True), ("u", False)),
            (("u", None), ("t", True), ("t", True), ("u", None)),
            (("u", True), ("t", False), ("t2", False), ("u", True)),
        ],
    )
    def test_an_address_keeps_its_own_verification(
        self, known: tuple[Any, Any], old: tuple[Any, Any], new: tuple[Any, Any], wanted: tuple[Any, Any]
    ) -> None:
        assert follow_claims(mail(*known), mail(*old), mail(*new)) == mail(*wanted)


def mail(address: str, verified: bool | None) -> dict[str, Any]:
    return {"email": address} | ({} if verified is None else {"email_verified": verified})
