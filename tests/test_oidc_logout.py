"""Logout at the level of its protocol: our address to the provider, and the provider's notices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authservice.errors import NotReady
from authservice.oidc.logout import (
    MAX_FORM,
    MAX_JTI,
    MAX_SID,
    MAX_URL,
    BackChannel,
    LogoutRefused,
    end_session_url,
    provider_origins,
    read_front_channel,
    read_logout_form,
)
from authservice.oidc.metadata import Metadata
from authservice.oidc.source import KEY_FETCH_BURST
from authservice.outbound import Zone
from tests.provider import EVENT, LOGOUT_TOKENS, FakeProvider, nasty_sid
from tests.relying_party import RelyingParty

FORM = "application/x-www-form-urlencoded"
ISSUER = "https://provider.example/realm/"
HINT = "e30.e30.c2lnbmF0dXJl-_"


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeProvider]:
    with FakeProvider(path="/realm/") as provider:
        yield provider


@pytest.fixture
def fake(shared: FakeProvider) -> FakeProvider:
    shared.behave()
    shared.forget_calls()
    shared.has_end_session = False
    return shared


@pytest.fixture
def rp(fake: FakeProvider) -> RelyingParty:
    return RelyingParty(fake)


def described(end_session: str | None = "https://provider.example/end") -> Metadata:
    return Metadata(
        issuer=ISSUER,
        authorization_endpoint="https://login.provider.example:8443/authorize",
        token_endpoint="https://provider.example/token",
        jwks_uri="https://provider.example/jwks",
        userinfo_endpoint=None,
        revocation_endpoint=None,
        introspection_endpoint=None,
        end_session_endpoint=end_session,
        announces_iss=False,
        zone=Zone.PUBLIC,
        set_by_operator=frozenset(),
    )


class TestEndSessionUrl:
    GIVEN = {"client_id": "authservice", "id_token": HINT, "return_to": "https://app.example/out?x=1&y=ü",
             "state": "a state+&="}  # fmt: skip

    def test_a25_d16_d17_what_is_sent(self) -> None:
        url = end_session_url(described(), **self.GIVEN)
        assert url is not None and url.startswith("https://provider.example/end?") and url.isascii()
        assert parse_qsl(urlsplit(url).query, strict_parsing=True) == [
            ("id_token_hint", HINT),
            ("client_id", "authservice"),
            ("post_logout_redirect_uri", "https://app.example/out?x=1&y=ü"),
            ("state", "a state+&="),
        ]
        assert f"id_token_hint={HINT}&" in url, "byte for byte"

    def test_l12_a_provider_without_the_endpoint(self) -> None:
        assert end_session_url(described(None), **self.GIVEN) is None

    @pytest.mark.parametrize(
        ("endpoint", "start"),
        [
            ("https://p.example/end?a=1&b=%2F&c", "https://p.example/end?a=1&b=%2F&c&id_token_hint="),
            ("https://p.example/end?", "https://p.example/end?id_token_hint="),
            ("https://p.example/end?a=1&", "https://p.example/end?a=1&id_token_hint="),
            ("/dex/end", "/dex/end?id_token_hint="),
            ("https://p.example/end?a=x+y%20z", "https://p.example/end?a=x+y%20z&id_token_hint="),
        ],
    )
    def test_l12_the_endpoints_own_query_is_kept(self, endpoint: str, start: str) -> None:
        assert (end_session_url(described(endpoint), **self.GIVEN) or "").startswith(start)

    def test_l12_nothing_is_there_twice(self) -> None:
        url = end_session_url(described("https://p.example/end?client_id=theirs"), **self.GIVEN) or ""
        names = [name for name, _ in parse_qsl(urlsplit(url).query)]
        assert len(set(names)) == len(names) and "client_id=theirs&" in url

    def test_what_is_empty_is_left_out(self) -> None:
        url = end_session_url(described(), client_id="c", id_token="", return_to="", state="s")
        assert url == "https://provider.example/end?client_id=c"

    @pytest.mark.parametrize(("size", "kept"), [(6000, True), (7100, False), (60_000, False)])
    def test_a_hint_that_is_too_long_is_left_out(self, size: int, kept: bool) -> None:
        url = end_session_url(described(), **{**self.GIVEN, "id_token": "x" * size}) or ""
        assert ("id_token_hint" in url) is kept and len(url) <= MAX_URL
        assert "client_id=authservice&" in url and "state=" in url

    def test_the_provider_of_the_tests_takes_it(self, fake: FakeProvider) -> None:
        fake.has_end_session = True
        fake.post_logout_addresses = {"https://app.example/out"}
        rp = RelyingParty(fake)
        finished = rp.login()
        url = end_session_url(
            rp.provider.metadata(), client_id=fake.client_id, id_token=finished.id_token,
            return_to="https://app.example/out", state="s-1",
        )  # fmt: skip
        assert fake.authorize_location(url or "") == "https://app.example/out?state=s-1"


class TestLogoutToken:
    def test_a27_a33_d19_a_good_one(self, fake: FakeProvider, rp: RelyingParty) -> None:
        """Without ``typ``, and with a claim that nobody knows."""
        notice = rp.back_channel.read(fake.logout_token(sub="alice", sid="s-1", jti="j-1"))
        assert (notice.issuer, notice.subject, notice.sid, notice.jti) == (fake.issuer, "alice", "s-1", "j-1")
        assert "alice" not in repr(notice) and "s-1" not in repr(notice)

    @pytest.mark.parametrize("typ", [None, "JWT", "jwt", "logout+jwt", "LOGOUT+JWT", "application/logout+jwt"])
    def test_a33_types_that_are_right(self, fake: FakeProvider, rp: RelyingParty, typ: str | None) -> None:
        assert rp.back_channel.read(fake.logout_token(sid="s", header={"typ": typ}))

    @pytest.mark.parametrize("typ", ["at+jwt", "secevent+jwt", "id+jwt", "dpop+jwt", "logout"])
    def test_l02_types_of_another_kind(self, fake: FakeProvider, rp: RelyingParty, typ: str) -> None:
        self.refused(rp, fake.logout_token(sid="s", header={"typ": typ}), "typ")

    @pytest.mark.parametrize(
        ("wrong", "check"),
        [
            ("alg_none", "alg"), ("wrong_alg", "alg"), ("bad_signature", "signature"), ("unknown_kid", "key"),
            ("typ_id", "typ"), ("no_iss", "iss"), ("wrong_iss", "iss"), ("no_aud", "aud"),
            ("wrong_aud", "aud"), ("no_iat", "iat"), ("old_iat", "iat"), ("future_iat", "iat"),
            ("expired", "exp"), ("no_jti", "jti"), ("no_event", "events"), ("wrong_event", "events"),
            ("events_list", "events"), ("event_text", "events"), ("with_nonce", "nonce"),
            ("null_nonce", "nonce"), ("nobody", "sub or sid"),
        ],
    )  # fmt: skip
    def test_a29_a30_a31_a32_l04_wrong_ones(
        self, fake: FakeProvider, rp: RelyingParty, wrong: str, check: str
    ) -> None:
        self.refused(rp, fake.logout_token(wrong, sub="alice", sid="s-1"), check)

    def test_every_wrong_token_of_the_provider_is_refused(self, fake: FakeProvider, rp: RelyingParty) -> None:
        for wrong in LOGOUT_TOKENS:
            self.refused(rp, fake.logout_token(wrong, sub="alice", sid="s-1"))

    @pytest.mark.parametrize(
        "changes",
        [
            {"jti": ""}, {"jti": 7}, {"jti": ["j"]}, {"jti": "j" * (MAX_JTI + 1)},
            {"sid": ""}, {"sid": 7}, {"sid": "s" * (MAX_SID + 1)}, {"sid": ["s-1"]},
            {"sub": ""}, {"sub": 7}, {"sub": "a" * 256}, {"sub": "a\nb"},
            {"iss": ""}, {"aud": []}, {"aud": {}}, {"aud": [7]}, {"aud": ["authservice", "another"]},
            {"events": {}}, {"events": "x"}, {"events": {EVENT: None}}, {"events": {EVENT: []}},
            {"events": {EVENT.upper(): {}}}, {"events": {EVENT + "/": {}}},
            {"iat": "1"}, {"iat": True}, {"exp": "soon"}, {"exp": -1}, {"azp": "another"}, {"nonce": ""},
        ],
    )  # fmt: skip
    def test_a30_claims_of_a_wrong_form(
        self, fake: FakeProvider, rp: RelyingParty, changes: dict[str, Any]
    ) -> None:
        self.refused(rp, fake.logout_token(**{"sub": "alice", "sid": "s-1", **changes}))

    @pytest.mark.parametrize("events", [{EVENT: {}}, {EVENT: {"x": 1}}, {EVENT: {}, "urn:other": 1}])
    def test_a30_events_that_are_right(
        self, fake: FakeProvider, rp: RelyingParty, events: dict[str, Any]
    ) -> None:
        assert rp.back_channel.read(fake.logout_token(sid="s", events=events))

    def test_l02_tokens_of_other_kinds(self, fake: FakeProvider, rp: RelyingParty) -> None:
        finished = rp.login()
        for token in (finished.id_token, fake.access_token(fake.client_id), finished.access_token):
            self.refused(rp, token)

    @pytest.mark.parametrize("token", ["", "a", "a.b.c", "..", "e30.e30.", "é", "x" * 300_000])
    def test_l01_no_tokens_at_all(self, rp: RelyingParty, token: str) -> None:
        self.refused(rp, token)

    @pytest.mark.parametrize(
        ("given", "wanted"), [({"sub": "a"}, ("a", "")), ({"sid": "s"}, ("", "s"))]
    )
    def test_l05_one_of_sub_and_sid(
        self, fake: FakeProvider, rp: RelyingParty, given: dict[str, str], wanted: tuple[str, str]
    ) -> None:
        notice = rp.back_channel.read(fake.logout_token(**given))
        assert (notice.subject, notice.sid) == wanted

    def test_a34_d20_a_sid_of_any_printable_characters(self, fake: FakeProvider, rp: RelyingParty) -> None:
        for _ in range(5):
            sid = nasty_sid()
            assert rp.back_channel.read(fake.logout_token(sid=sid)).sid == sid

    def test_l04_clocks_that_differ_a_little(self, fake: FakeProvider, rp: RelyingParty) -> None:
        now = int(rp.clock().timestamp())
        for good in ({"exp": now - 30}, {"iat": now + 30}, {"iat": now - 300, "exp": None}, {"exp": None}):
            assert rp.back_channel.read(fake.logout_token(sid="s", **good))
        for bad in ({"exp": now - 90}, {"iat": now + 90}, {"iat": now - 400}, {"iat": now - 400, "exp": None}):
            self.refused(rp, fake.logout_token(sid="s", **bad))

    @pytest.mark.parametrize("lifetime", [None, 120, 86_400])
    def test_l04_its_jti_is_remembered_as_long_as_it_is_good(
        self, fake: FakeProvider, rp: RelyingParty, lifetime: int | None
    ) -> None:
        now = int(rp.clock().timestamp())
        token = fake.logout_token(sid="s", iat=now, exp=None if lifetime is None else now + lifetime)
        until = rp.back_channel.read(token).remember_until
        assert timedelta(minutes=3) < until - rp.clock() < timedelta(minutes=8), "and not much longer"
        rp.clock.advance(seconds=(until - rp.clock()).total_seconds() + 1)
        self.refused(rp, token)

    def test_the_latest_date_there_is(self, fake: FakeProvider, rp: RelyingParty) -> None:
        assert rp.back_channel.read(fake.logout_token(sid="s", exp=253_402_300_799)).remember_until

    def test_d12_the_algorithm_of_id_tokens_and_no_other(self, fake: FakeProvider, rp: RelyingParty) -> None:
        es256 = BackChannel(rp.provider, fake.client_id, now=rp.clock, algorithms=("ES256",))
        assert es256.read(fake.logout_token("wrong_alg", sid="s")).sid == "s"
        with pytest.raises(LogoutRefused):
            es256.read(fake.logout_token(sid="s"))
        with pytest.raises(ValueError):
            BackChannel(rp.provider, fake.client_id, now=rp.clock, algorithms=("HS256",))

    def test_a_key_that_is_new_is_fetched(self, fake: FakeProvider, rp: RelyingParty) -> None:
        rp.back_channel.read(fake.logout_token(sid="s"))
        fake.rotate_keys()
        assert rp.back_channel.read(fake.logout_token(sid="s")).sid == "s"
        assert rp.called("jwks") == 2

    def test_l07_a_flood_of_unknown_keys(self, fake: FakeProvider, rp: RelyingParty) -> None:
        rp.provider.metadata()
        fake.forget_calls()
        for _ in range(50):
            self.refused(rp, fake.logout_token("unknown_kid", sid="s"), "key")
        assert rp.called("jwks") == KEY_FETCH_BURST
        assert rp.back_channel.read(fake.logout_token(sid="s")).sid == "s", "good ones still hold"

    def test_a_provider_that_is_not_to_be_had(self, fake: FakeProvider, rp: RelyingParty) -> None:
        fake.misbehave("discovery_error_500")
        with pytest.raises(NotReady):
            rp.back_channel.read(fake.logout_token(sid="s"))

    @staticmethod
    def refused(rp: RelyingParty, token: str, check: str | None = None) -> None:
        with pytest.raises(LogoutRefused) as caught:
            rp.back_channel.read(token)
        assert check in (None, caught.value.check)
        assert len(str(caught.value)) < 20, "a refusal quotes nothing"


class TestLogoutForm:
    @pytest.mark.parametrize(
        "content_type", [FORM, FORM.upper(), f"{FORM};charset=utf-8", f"{FORM} ; charset=UTF-8"]
    )
    @pytest.mark.parametrize(
        "body",
        [b"logout_token=a.b-_.c", b"x=1&logout_token=a.b-_.c&x=2&", b"logout%5Ftoken=a%2Eb-%5F.c&y"],
    )
    def test_a33_d19_one_token_and_other_fields(self, content_type: str, body: bytes) -> None:
        assert read_logout_form(content_type, body) == "a.b-_.c"

    @pytest.mark.parametrize(
        "content_type",
        ["", "application/json", "multipart/form-data; boundary=x", "text/plain", f"{FORM}x", "application/jwt"],
    )
    def test_l01_another_kind_of_body(self, content_type: str) -> None:
        with pytest.raises(LogoutRefused):
            read_logout_form(content_type, b"logout_token=a")

    @pytest.mark.parametrize(
        "body",
        [
            b"", b"x=1", b"logout_token=", b"logout_token", b"Logout_Token=a",
            b"logout_token=a&logout_token=a", b"logout_token=a&logout_token=", b"logout_token=a&logout%5ftoken=b",
            b"logout_token=\xff", b"logout_token=%ff", b"\xef\xbb\xbflogout_token=a",
            b"logout_token=a;logout_token=b;" + b"&x=1" * 40, b'{"logout_token": "a"}',
            b"logout_token=" + b"a" * MAX_FORM, b"x" * (10 << 20),
        ],
        ids=lambda body: repr(body[:40]),
    )  # fmt: skip
    def test_l01_no_token_two_tokens_or_too_much(self, body: bytes) -> None:
        with pytest.raises(LogoutRefused):
            read_logout_form(FORM, body)

    @given(st.binary(max_size=200))
    def test_l01_any_bytes_are_read_or_refused(self, body: bytes) -> None:
        try:
            assert read_logout_form(FORM, b"logout_token=" + body)
        except LogoutRefused as refused:
            assert refused.check


class TestFrontChannel:
    @pytest.mark.parametrize("query", ["", "&", "x=1&y=%ff", "x=1&x=2"])
    def test_a35_d21_without_parameters_the_cookies_session_ends(self, query: str) -> None:
        notice = read_front_channel(query, ISSUER)
        assert notice.ends("s-1") and notice.ends("")

    def test_a36_only_the_session_of_this_sid(self) -> None:
        notice = read_front_channel(f"iss={quote(ISSUER, safe='')}&sid=s-1&x=1", ISSUER)
        assert notice.ends("s-1")
        assert not notice.ends("s-2") and not notice.ends("") and not notice.ends("S-1")

    @pytest.mark.parametrize("encode", [lambda sid: quote(sid, safe=""), quote_plus, lambda sid: quote(sid, "+")])
    def test_a36_d20_any_sid_in_each_encoding(self, encode: Any) -> None:
        sid = nasty_sid()
        notice = read_front_channel(f"iss={quote(ISSUER)}&sid={encode(sid)}", ISSUER)
        assert notice.ends(sid) and not notice.ends(sid + "x")

    def test_d21_a_sid_that_arrives_cut_ends_nothing_else(self) -> None:
        sid = nasty_sid()
        raw = sid.partition("#")[0]
        notice = read_front_channel(f"iss={ISSUER}&sid={raw}", ISSUER)
        assert not notice.ends(sid) and not notice.ends("")

    @pytest.mark.parametrize(
        "query",
        [
            "iss={iss}", "sid=s-1", "iss={iss}&sid=", "iss=&sid=s-1", "iss={iss}1&sid=s-1",
            "iss=https%3A%2F%2Fother.example&sid=s-1", "iss={bare}&sid=s-1", "iss={iss}&sid=a&sid=b",
            "iss={iss}&iss={iss}&sid=a&sid=a", "iss={iss}&iss={iss}&sid=a", "iss={iss}&sid=%ff",
            "iss={iss}&sid=é", "iss={iss}&sid=" + "s" * (MAX_SID + 1), "x=" + "s" * 9000, "%69ss={iss}",
        ],
    )  # fmt: skip
    def test_a36_l13_what_is_refused(self, query: str) -> None:
        query = query.format(iss=quote(ISSUER, safe=""), bare=quote(ISSUER.rstrip("/"), safe=""))
        with pytest.raises(LogoutRefused):
            read_front_channel(query, ISSUER)

    @given(st.text(max_size=60))
    def test_l13_any_query_is_read_or_refused(self, query: str) -> None:
        try:
            assert read_front_channel(query, ISSUER).ends("s-1") in (True, False)
        except LogoutRefused as refused:
            assert refused.check


class TestProviderOrigins:
    def test_d21_where_the_providers_pages_come_from(self) -> None:
        assert provider_origins(described()) == (
            "https://provider.example", "https://login.provider.example:8443",
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("address", "origin"),
        [
            ("https://P.example/x?y", "https://p.example"),
            ("https://[2001:db8::1]:8443/x", "https://[2001:db8::1]:8443"),
            ("https://[2001:db8::1]/x", "https://[2001:db8::1]"),
            ("http://127.0.0.1:5556/dex", "http://127.0.0.1:5556"),
            ("/dex/auth", ""),
            ("https://user@p.example/", ""),
            ("https://p.example;script-src%20*/", ""),
            ("https://*/", ""),
            ("javascript://p.example/", ""),
        ],
    )
    def test_d21_only_what_is_an_origin_gets_into_a_policy(self, address: str, origin: str) -> None:
        metadata = replace(described(), authorization_endpoint=address, end_session_endpoint=None)
        assert provider_origins(metadata) == tuple(filter(None, ("https://provider.example", origin)))


def test_remembered_times_know_their_zone(fake: FakeProvider, rp: RelyingParty) -> None:
    until = rp.back_channel.read(fake.logout_token(sid="s")).remember_until
    assert until.tzinfo is timezone.utc and until > datetime.now(timezone.utc)
