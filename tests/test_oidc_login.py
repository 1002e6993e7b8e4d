"""A login from end to end of the protocol: acceptance (A), binding to the browser (F), claims.

What the person sees is tested with the site; here it is the kind of the refusal, what was called,
and what was believed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from authservice.check import NeedsIO, Reach
from authservice.errors import (
    AuthServiceError,
    LoginNotOurs,
    LoginRefused,
    NotReady,
    ProviderBusy,
    ProviderSaidNo,
    ProviderSilent,
    ProviderWrong,
    StoreDown,
    Unavailable,
)
from authservice.identity import VerifiedClaims
from authservice.oidc.answers import EndpointRefused
from authservice.oidc.claims import merge_claims
from authservice.oidc.login import Begun, LoginFlow
from authservice.outbound import Http
from authservice.sessions.seal import Keyring
from tests.provider import FakeProvider, public_jwk, rsa_key
from tests.relying_party import DEEP_LINK, RelyingParty, cookie


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as provider:
        yield provider


@pytest.fixture
def rp(fake: FakeProvider) -> RelyingParty:
    return RelyingParty(fake)


def parameters(query: str) -> dict[str, str]:
    return dict(parse_qsl(query, keep_blank_values=True))


def state_of(begun: Begun) -> str:
    return parameters(urlsplit(begun.url).query)["state"]


def refuse(
    rp: RelyingParty, query: str, cookies: list[tuple[str, str]], kind: type[AuthServiceError] = LoginNotOurs
) -> AuthServiceError:
    with pytest.raises(AuthServiceError) as caught:
        rp.flow.finish(query, cookies)
    assert type(caught.value) is kind, repr(caught.value)
    return caught.value


class TestAcceptance:
    def test_a01_d1_a_login(self, rp: RelyingParty) -> None:
        finished = rp.login()
        assert isinstance(finished.claims, VerifiedClaims)
        assert finished.claims["sub"] == rp.fake.claims["sub"] and finished.claims["iss"] == rp.fake.issuer
        assert finished.claims["email"] == "alice@example.com" and finished.claims["groups"] == [
            "admins",
            "dev",
        ]
        assert finished.return_to == DEEP_LINK
        assert finished.id_token.count(".") == 2 and finished.access_token and finished.refresh_token
        assert finished.access_token_expires is not None and finished.access_token_expires.tzinfo is not None
        assert [call.endpoint for call in rp.fake.calls()] == [
            "discovery",
            "jwks",
            "authorize",
            "token",
            "userinfo",
        ]
        (call,) = rp.fake.calls("userinfo")
        assert call.headers["authorization"] == f"Bearer {finished.access_token}"

    @pytest.mark.parametrize(
        "fault",
        [
            "wrong_issuer", "missing_sub", "empty_sub", "numeric_sub", "wrong_audience", "missing_aud",
            "empty_aud", "foreign_aud",
            "missing_iat", "expired", "alg_none", "bad_signature", "wrong_nonce", "missing_nonce",
            "wrong_at_hash", "unknown_kid",
            "token_no_id_token", "token_no_access_token",
        ],
    )  # fmt: skip
    def test_a02_a03_a04_a05_a09_a10_a12_d2_userinfo_is_not_called(
        self, rp: RelyingParty, fault: str
    ) -> None:
        error = rp.refused_login(ProviderWrong, fault)
        assert error.status == 502 and rp.called("token") == 1 and rp.called("userinfo") == 0

    def test_a06_no_kid_and_one_fitting_key_among_others(self, rp: RelyingParty) -> None:
        rp.fake.misbehave("no_kid")
        assert rp.login()

    def test_a07_no_kid_and_three_fitting_keys(self, rp: RelyingParty) -> None:
        rp.fake.misbehave("no_kid")
        wrong = [public_jwk(rsa_key(number), use="sig") for number in (1, 2)]
        rp.fake.misbehave("key_set", {"keys": [*wrong, *rp.fake.key_set()["keys"]]})
        assert rp.login()

    def test_a08_rs256_alone(self, rp: RelyingParty) -> None:
        rp.fake.metadata["id_token_signing_alg_values_supported"] = ["RS256"]
        assert rp.login()

    @pytest.mark.parametrize("fault", ["userinfo_other_sub", "userinfo_missing_sub"])
    def test_a11_b14_userinfo_about_somebody_else(self, rp: RelyingParty, fault: str) -> None:
        assert rp.refused_login(ProviderWrong, fault).status == 502
        assert rp.called("userinfo") == 1

    @pytest.mark.parametrize(
        "sub", ["248289761001 ", "248289761002", "", None, 248289761001, ["248289761001"]]
    )
    def test_a11_any_other_sub(self, rp: RelyingParty, sub: Any) -> None:
        rp.fake.misbehave("userinfo_answer", {**rp.fake.claims, "sub": sub})
        rp.refused_login(ProviderWrong)

    @pytest.mark.parametrize(
        "fault",
        [
            "userinfo_error_500",
            "userinfo_error_404",
            "userinfo_html",
            "userinfo_deep",
            "userinfo_twice",
            "huge_userinfo",
            "gzip_bomb_userinfo",
        ],
    )
    def test_c17_userinfo_fails(self, rp: RelyingParty, fault: str) -> None:
        assert rp.refused_login(ProviderWrong, fault).status == 502

    @pytest.mark.parametrize(
        "body", [b"[]", b"eyJhbGciOiJub25lIn0.eyJzdWIiOiIyNDgyODk3NjEwMDEifQ.", b'{"sub":"248289761001"} x']
    )
    def test_c17_userinfo_in_another_form(self, rp: RelyingParty, body: bytes) -> None:
        rp.fake.misbehave("userinfo_answer", body)
        rp.refused_login(ProviderWrong)

    def test_c17_p02_the_token_does_not_follow_a_redirect(self, rp: RelyingParty) -> None:
        with FakeProvider() as other:
            rp.fake.misbehave("redirect_userinfo", other.address("userinfo"))
            rp.refused_login(ProviderWrong)
            assert not other.calls()

    @pytest.mark.parametrize(
        "fault,value", [("drip_userinfo", 0.1), ("cut_off_userinfo", True), ("slow_userinfo", 60)]
    )
    def test_p05_userinfo_does_not_answer(self, fake: FakeProvider, fault: str, value: Any) -> None:
        fake.misbehave(fault, value)
        rp = RelyingParty(fake, http=Http(timeout=timedelta(seconds=0.4)))
        assert rp.refused_login(ProviderSilent).status == 504

    def test_b53_a_provider_without_userinfo(self, rp: RelyingParty) -> None:
        rp.fake.metadata["userinfo_endpoint"] = None
        rp.fake.id_token_claims["email"] = "from@id.token"
        assert rp.login().claims["email"] == "from@id.token"
        assert rp.called("userinfo") == 0

    def test_b56_an_access_token_about_to_expire_and_no_refresh_token(self, rp: RelyingParty) -> None:
        rp.fake.misbehave("token_answer", {"expires_in": 1, "refresh_token": None})
        finished = rp.login()
        assert finished.refresh_token == "" and rp.called("token") == 1

    def test_a21_d15_parameters_that_nobody_knows(self, rp: RelyingParty) -> None:
        begun = rp.begin()
        query = rp.at_provider(begun)
        assert rp.finish(f"session_state=a.b&x=%FF&{query}&y&=&scope=openid&scope=email", begun)

    @pytest.mark.parametrize(
        ("error", "kind", "status"),
        [
            ("login_required", ProviderSaidNo, 403), ("access_denied", ProviderSaidNo, 403),
            ("interaction_required", ProviderSaidNo, 403),
            ("consent_required", ProviderSaidNo, 403), ("something_else", ProviderSaidNo, 403),
            ("invalid_scope", ProviderSaidNo, 403),
            ("server_error", ProviderWrong, 502), ("temporarily_unavailable", ProviderBusy, 503),
        ],
    )  # fmt: skip
    def test_a23_b51_the_provider_s_errors(
        self, rp: RelyingParty, error: str, kind: type[AuthServiceError], status: int
    ) -> None:
        rp.fake.misbehave("authorize_error", error)
        begun = rp.begin()
        refused = refuse(rp, rp.at_provider(begun), [cookie(begun)], kind)
        assert refused.status == status and not rp.called("token")
        assert "script" not in str(refused) and "something" not in str(refused)

    @pytest.mark.parametrize("description", ["%C3%A9t%C3%A9", "%0a%0d", "%FF", "x" * 2000, "%3Cscript%3E"])
    def test_a23_a_description_in_any_language_does_not_matter(
        self, rp: RelyingParty, description: str
    ) -> None:
        begun = rp.begin()
        refuse(
            rp,
            f"error=access_denied&error_description={description}&state={state_of(begun)}",
            [cookie(begun)],
            ProviderSaidNo,
        )

    @pytest.mark.parametrize("state", ["", "&state=", "&state=unknown"])
    def test_a24_s18_an_error_without_a_state_of_ours(self, rp: RelyingParty, state: str) -> None:
        begun = rp.begin()
        error = refuse(rp, f"error=access_denied&error_description=%3Cscript%3E{state}", [cookie(begun)])
        assert error.status == 400 and "script" not in str(error)

    def test_r5_a_refused_login_is_used_up(self, rp: RelyingParty) -> None:
        begun = rp.begin()
        state = state_of(begun)
        refuse(rp, f"error=access_denied&state={state}", [cookie(begun)], ProviderSaidNo)
        refuse(rp, rp.at_provider(begun), [cookie(begun)])
        assert not rp.called("token")


class TestBinding:
    @pytest.mark.parametrize(
        "query",
        [
            "",
            "state=",
            "state=unknown",
            "code=x",
            "code=x&state=",
            "code=x&state=unknown",
            "code=x&STATE={}",
            "code=x&state[]={}",
        ],
    )
    def test_f01_f08_no_state_of_ours(self, rp: RelyingParty, query: str) -> None:
        begun = rp.begin()
        error = refuse(rp, query.format(state_of(begun)), [cookie(begun)])
        assert error.status == 400 and not rp.called("token") and not rp.spent

    def test_f01_a_state_of_another_deployment(self, fake: FakeProvider, rp: RelyingParty) -> None:
        other = LoginFlow(
            rp.provider, rp.client, Keyring([b"another key altogether, 32 bytes"]), spend=lambda *_: True,
            now=rp.clock,
            cookie_prefix="authservice_session",
        )  # fmt: skip
        begun = other.begin(DEEP_LINK, [])
        refuse(rp, fake.authorize(begun.url), [cookie(begun)])
        assert not rp.called("token")

    def test_f02_s17_without_the_browser_s_own_cookie(self, rp: RelyingParty) -> None:
        query = rp.at_provider(rp.begin())
        for cookies in ([], [("authservice_session", "x")], [cookie(rp.begin())]):
            refuse(rp, query, cookies)
        assert not rp.called("token") and not rp.spent

    def test_f03_the_attacker_s_state_with_the_victim_s_cookie(self, rp: RelyingParty) -> None:
        attacker, victim = rp.begin(), rp.begin()
        query = rp.at_provider(attacker)
        moved = (attacker.set_cookie[0], victim.set_cookie[1])
        for cookies in ([cookie(victim)], [moved], [cookie(victim), moved]):
            refuse(rp, query, cookies)
        assert not rp.called("token")
        assert rp.finish(rp.at_provider(victim), victim), "and the victim's login is not used up"

    def test_f04_the_same_callback_twice(self, rp: RelyingParty) -> None:
        begun = rp.begin()
        query = rp.at_provider(begun)
        rp.finish(query, begun)
        assert refuse(rp, query, [cookie(begun)]).status == 400
        assert rp.called("token") == 1
        assert rp.flow.return_address(query, [cookie(begun)]) == DEEP_LINK
        assert rp.flow.return_address(query) == DEEP_LINK

    def test_f05_two_callbacks_at_once(self, fake: FakeProvider) -> None:
        marks: set[str] = set()
        lock = threading.Lock()

        def spend(name: str, lifetime: timedelta) -> bool:
            with lock:
                return not (name in marks or marks.add(name))

        one, two = RelyingParty(fake, spend=spend), RelyingParty(fake, spend=spend)
        begun = one.begin()
        two.provider.metadata()
        query = one.at_provider(begun)

        def finish(rp: RelyingParty) -> bool:
            try:
                return bool(rp.finish(query, begun))
            except LoginNotOurs:
                return False

        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(finish, [one, two] * 4)) == [False] * 7 + [True]
        assert len(fake.calls("token")) == 1

    def test_f06_too_late(self, rp: RelyingParty) -> None:
        begun = rp.begin()
        query = rp.at_provider(begun)
        rp.clock.advance(seconds=601)
        assert refuse(rp, query, [cookie(begun)]).status == 400
        assert not rp.called("token") and rp.flow.return_address(query) == DEEP_LINK

    @pytest.mark.parametrize(
        "change",
        [
            lambda s: s[:-1] + ("A" if s[-1] != "A" else "B"), lambda s: s[:-4], lambda s: s + "A",
            lambda s: s * 40, lambda s: "x" * 8192,
            lambda s: s + "%00", lambda s: "%00" + s, lambda s: s + "%0a", lambda s: s + "%FF",
            lambda s: s + "%C3%A9", lambda s: s + "+",
            lambda s: s.upper(), lambda s: quote(quote(s + "=")), lambda s: "%",
        ],
    )  # fmt: skip
    def test_f07_a_changed_state(self, rp: RelyingParty, change: Callable[[str], str]) -> None:
        begun = rp.begin()
        answer = parameters(rp.at_provider(begun))
        assert (
            refuse(rp, f"code={answer['code']}&state={change(answer['state'])}", [cookie(begun)]).status
            == 400
        )
        assert not rp.called("token")

    @pytest.mark.parametrize(
        "name", ["state", "code", "error", "iss", "st%61te", "c%6fde", "session_state", "error_description"]
    )
    @pytest.mark.parametrize("first", [True, False])
    def test_f08_repeated_parameters(self, rp: RelyingParty, name: str, first: bool) -> None:
        begun = rp.begin()
        answer = parameters(rp.at_provider(begun))
        twice = [f"{name}={quote(answer.get(unquote(name), 'x'))}"] * 2
        rest = [urlencode({key: value}) for key, value in answer.items()]
        refuse(rp, "&".join([*twice, *rest] if first else [*rest, *twice]), [cookie(begun)])
        assert not rp.called("token")

    @pytest.mark.parametrize(
        "query",
        [
            "code=x&error=access_denied",
            "error=access_denied&code=x",
            "",
            "code=",
            "error=",
            "code=" + "x" * 65536,
            "code=x%00",
            "code=%0d%0a",
            "code=%FF",
            "error=%00",
        ],
    )
    def test_f09_f10_code_and_error_or_neither(self, rp: RelyingParty, query: str) -> None:
        begun = rp.begin()
        state = state_of(begun)
        assert refuse(rp, f"{query}&state={state}", [cookie(begun)]).status == 400
        assert not rp.called("token")
        refuse(rp, rp.at_provider(begun), [cookie(begun)])
        assert not rp.called("token"), "used up (R5)"

    def test_f11_a_code_of_somebody_else_s_login(self, rp: RelyingParty) -> None:
        attacker, victim = rp.begin(), rp.begin()
        stolen = parameters(rp.at_provider(attacker))["code"]
        refuse(rp, f"code={stolen}&state={state_of(victim)}", [cookie(victim)], EndpointRefused)
        assert rp.called("token") == 1 and rp.called("userinfo") == 0

    def test_f11_the_nonce_holds_where_a_provider_ignores_pkce(
        self, rp: RelyingParty, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rp.fake, "_redeemed", lambda call: rp.fake._codes.pop(call.form["code"]))
        attacker, victim = rp.begin(), rp.begin()
        stolen = parameters(rp.at_provider(attacker))["code"]
        error = refuse(rp, f"code={stolen}&state={state_of(victim)}", [cookie(victim)], ProviderWrong)
        assert str(error) == "ID token: nonce"

    def test_f12_f19_tokens_that_nobody_asked_for(self, rp: RelyingParty) -> None:
        rp.provider.metadata()
        token = rp.fake.sign(rp.fake.good_claims("248289761001", None))
        for query in (
            f"id_token={token}",
            f"id_token={token}&access_token=x&code=x",
            f"id_token={token}&state=x",
            "code=x",
        ):
            refuse(rp, query, [])
        begun = rp.begin()
        query = rp.at_provider(begun)
        finished = rp.finish(f"{query}&id_token={token}&access_token=planted", begun)
        assert finished.id_token != token and finished.access_token != "planted"

    @pytest.mark.parametrize(
        "iss", [None, "", "https://other.example", "{}/", "{}x", "upper", "{}%20", "{}&iss={}"]
    )
    def test_f13_iss_when_it_is_announced(self, fake: FakeProvider, iss: str | None) -> None:
        fake.announces_iss = True
        rp = RelyingParty(fake)
        begun = rp.begin()
        answer = parameters(rp.at_provider(begun))
        assert answer.pop("iss") == fake.issuer
        query = urlencode(answer)
        if iss is not None:
            query += "&iss=" + (
                fake.issuer.upper() if iss == "upper" else iss.format(fake.issuer, fake.issuer)
            )
        assert refuse(rp, query, [cookie(begun)]).status == 400
        assert not rp.called("token")

    def test_f13_right(self, fake: FakeProvider) -> None:
        fake.announces_iss = True
        assert RelyingParty(fake).login()

    def test_f13_an_error_must_have_it_too(self, fake: FakeProvider) -> None:
        fake.announces_iss = True
        fake.misbehave("authorize_error", "access_denied")
        rp = RelyingParty(fake)
        begun = rp.begin()
        refuse(rp, rp.at_provider(begun), [cookie(begun)], ProviderSaidNo)
        fake.misbehave("missing_iss_parameter")
        begun = rp.begin()
        refuse(rp, rp.at_provider(begun), [cookie(begun)])

    def test_f14_iss_when_it_is_not_announced(self, rp: RelyingParty) -> None:
        rp.fake.misbehave("wrong_iss_parameter", "https://other.example")
        begun = rp.begin()
        assert refuse(rp, rp.at_provider(begun), [cookie(begun)]).status == 400
        assert not rp.called("token")
        rp.fake.misbehave("wrong_iss_parameter", rp.fake.issuer)
        assert rp.login()

    def test_f16_two_tabs(self, rp: RelyingParty) -> None:
        one = rp.begin("https://app.example/one")
        two = rp.begin("https://app.example/two", [cookie(one)])
        jar = [*dict([cookie(one), cookie(two)]).items()]
        assert rp.flow.finish(rp.at_provider(two), jar).return_to == "https://app.example/two"
        assert rp.flow.finish(rp.at_provider(one), jar).return_to == "https://app.example/one"

    def test_f20_an_id_token_of_an_earlier_login(self, rp: RelyingParty) -> None:
        earlier = rp.login().id_token
        rp.fake.misbehave("token_id_token", earlier)
        assert str(rp.refused_login(ProviderWrong)) in ("ID token: nonce",)
        assert rp.called("userinfo") == 1

    def test_a_login_under_a_key_that_was_rotated_out_or_in(self, rp: RelyingParty) -> None:
        old, new = b"the old key of the service, long", b"the new key of the service, long"
        made = {
            name: LoginFlow(
                rp.provider, rp.client, Keyring(keys), spend=lambda *_: True, now=rp.clock, cookie_prefix="s"
            )
            for name, keys in {"before": [old], "rotating": [new, old], "after": [new]}.items()
        }
        begun = made["before"].begin(DEEP_LINK, [])
        assert made["rotating"].finish(rp.at_provider(begun), [cookie(begun)])
        with pytest.raises(LoginNotOurs):
            made["after"].finish(rp.at_provider(begun), [cookie(begun)])


class TestAvailability:
    def test_b59_before_the_provider_is_known(self, rp: RelyingParty) -> None:
        rp.fake.misbehave("discovery_error_500")
        with pytest.raises(NotReady):
            rp.begin()
        for query in ("", "code=x&state=y", "error=access_denied"):
            assert refuse(rp, query, [], NotReady).status == 503
        with pytest.raises(NotReady):
            rp.flow.begin(DEEP_LINK, [], Reach.MEMORY)

    def test_memory_reach(self, rp: RelyingParty) -> None:
        with pytest.raises(NeedsIO):
            rp.flow.begin(DEEP_LINK, [], Reach.MEMORY)
        rp.provider.metadata()
        calls = len(rp.fake.calls())
        assert rp.flow.begin(DEEP_LINK, [], Reach.MEMORY).url
        assert len(rp.fake.calls()) == calls

    def test_s24_a_store_that_is_down(self, fake: FakeProvider) -> None:
        def down(name: str, lifetime: timedelta) -> bool:
            raise StoreDown("no answer")

        rp = RelyingParty(fake, spend=down)
        begun = rp.begin()
        with pytest.raises(Unavailable) as caught:
            rp.finish(rp.at_provider(begun), begun)
        assert caught.value.status == 503 and not rp.called("token")

    def test_nothing_is_spent_for_what_is_not_bound_to_a_browser(self, rp: RelyingParty) -> None:
        for _ in range(50):
            refuse(rp, f"code=x&state={state_of(rp.begin())}", [])
        assert not rp.spent

    def test_k14_beginning_costs_the_server_nothing(self, rp: RelyingParty) -> None:
        rp.provider.metadata()
        calls = len(rp.fake.calls())
        for _ in range(500):
            rp.begin()
        assert not rp.spent and len(rp.fake.calls()) == calls


class TestReturnAddress:
    def test_o12_s02_byte_for_byte(self, rp: RelyingParty) -> None:
        for address in (
            "https://app.example/app?next=https://other/x&y=//z%2F%20a",
            "/relative;x?y",
            "https://app.example/" + "%41" * 300,
        ):
            begun = rp.begin(address)
            assert rp.finish(rp.at_provider(begun), begun).return_to == address

    def test_o10_one_that_is_too_long_is_the_default_page(self, rp: RelyingParty) -> None:
        begun = rp.begin("https://app.example/" + "x" * 65536)
        assert len(begun.url) < 2048 and len(begun.set_cookie[1]) < 1024
        assert rp.finish(rp.at_provider(begun), begun).return_to == ""

    def test_a_long_one_comes_back_through_the_cookie(self, rp: RelyingParty) -> None:
        address = "https://app.example/" + "x" * 1800
        begun = rp.begin(address)
        query = rp.at_provider(begun)
        assert rp.flow.return_address(query, [cookie(begun)]) == address
        assert rp.flow.return_address(query) == ""
        assert rp.finish(query, begun).return_to == address

    def test_s18_of_a_state_that_is_not_ours_there_is_none(self, rp: RelyingParty) -> None:
        begun = rp.begin()
        for query in ("", "state=x", f"state={state_of(begun)}x", f"STATE={state_of(begun)}"):
            assert rp.flow.return_address(query, [cookie(begun)]) is None


class TestClaims:
    def test_the_protocol_s_claims_come_from_the_id_token_alone(self) -> None:
        id_token = {"iss": "i", "sub": "s", "aud": "a", "exp": 1, "iat": 2, "nonce": "n"}
        forged = {
            name: "forged"
            for name in (
                *id_token,
                "sid",
                "azp",
                "acr",
                "amr",
                "auth_time",
                "at_hash",
                "events",
                "jti",
                "nbf",
            )
        }
        assert merge_claims(id_token, forged) == id_token

    def test_everything_else_comes_from_userinfo_first(self) -> None:
        id_token = {"sub": "s", "sid": "1", "email": "old@x", "groups": ["a"], "name": "N", "department": "d"}
        userinfo = {
            "sub": "s",
            "email": "new@x",
            "groups": ["b"],
            "name": None,
            "realm_access": {"roles": ["r"]},
            "nickname": None,
        }
        assert merge_claims(id_token, userinfo) == {
            "sub": "s", "sid": "1", "email": "new@x", "groups": ["b"], "name": "N", "department": "d",
            "realm_access": {"roles": ["r"]}, "nickname": None,
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("id_token", "userinfo", "verified"),
        [
            ({"email": "a@x", "email_verified": True}, {"email": "b@x"}, None),
            ({"email": "a@x", "email_verified": True}, {"email": "a@x"}, True),
            ({"email": "a@x", "email_verified": True}, {"email": "b@x", "email_verified": False}, False),
            ({"email": "a@x", "email_verified": False}, {"email": "a@x", "email_verified": True}, True),
            ({"email": "a@x", "email_verified": True}, {}, True),
            ({"email": "a@x", "email_verified": True}, {"email": None}, True),
            ({"email_verified": True}, {"email": "b@x"}, None),
        ],
    )
    def test_b15_an_address_is_not_vouched_for_by_another_source(
        self, id_token: dict[str, Any], userinfo: dict[str, Any], verified: bool | None
    ) -> None:
        assert merge_claims(id_token, userinfo).get("email_verified") is verified

    def test_through_a_login(self, rp: RelyingParty) -> None:
        rp.fake.id_token_claims.update(
            email="id@token.example", email_verified=True, sid="S 1&'", department="d"
        )
        rp.fake.claims.update(iss="forged", aud="forged", sid="forged", exp=1)
        del rp.fake.claims["email_verified"]
        finished = rp.login()
        assert finished.claims["iss"] == rp.fake.issuer and finished.claims["aud"] == rp.fake.client_id
        assert finished.claims["email"] == "alice@example.com" and "email_verified" not in finished.claims
        assert finished.claims["department"] == "d" and finished.provider_sid == "S 1&'"

    @pytest.mark.parametrize("value", [True, False, "true", "false", ...])
    def test_u30_to_u34_email_verified(self, rp: RelyingParty, value: Any) -> None:
        rp.fake.claims["email_verified"] = value
        if value is ...:
            del rp.fake.claims["email_verified"]
        claims = rp.login().claims
        assert claims.get("email_verified", ...) is value or claims["email_verified"] == value
        assert type(claims.get("email_verified", ...)) is type(value), (
            "text stays text, and does not count as verified"
        )

    @pytest.mark.parametrize("value", [42, "fals", "True", "", 0, 1, [], [True], {"a": 1}])
    def test_u35_u36_email_verified_that_is_neither(self, rp: RelyingParty, value: Any) -> None:
        rp.fake.claims["email_verified"] = value
        assert rp.refused_login(ProviderWrong).status == 502

    @pytest.mark.parametrize("value", [42, ["a@x"], {"a": 1}, True])
    def test_b55_an_address_that_is_no_text(self, rp: RelyingParty, value: Any) -> None:
        rp.fake.claims["email"] = value
        rp.refused_login(ProviderWrong)

    def test_the_id_token_s_own_address_is_checked_alike(self, rp: RelyingParty) -> None:
        rp.fake.metadata["userinfo_endpoint"] = None
        rp.fake.id_token_claims["email_verified"] = 42
        rp.refused_login(ProviderWrong)

    def test_d20_sid_is_opaque(self, rp: RelyingParty) -> None:
        for sid in ("a b\"'\\&#%+<", "x" * 35):
            rp.fake.id_token_claims["sid"] = sid
            assert rp.login().provider_sid == sid
        rp.fake.id_token_claims["sid"] = 5
        assert rp.login().provider_sid == ""


def test_s33_no_secret_in_a_log_an_error_or_a_repr(
    rp: RelyingParty, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    finished = rp.login()
    texts = [repr(finished), repr(rp.client), repr(rp.provider), repr(rp.http)]
    for fault in (
        "wrong_nonce",
        "bad_signature",
        "token_invalid_client",
        "token_error_500",
        "userinfo_other_sub",
        "userinfo_error_500",
        "unknown_kid",
    ):
        texts.append(str(rp.refused_login(LoginRefused, fault)))
        rp.fake.behave()
    rp.fake.stop()
    rp.client.revoke(finished.refresh_token, finished.access_token)
    texts.append(caplog.text + str([vars(record) for record in caplog.records]))
    secrets = [
        rp.fake.client_secret, finished.access_token, finished.refresh_token, finished.id_token,
        *finished.id_token.split(".")[1:],
        *(call.form.get("code", "-----") for call in rp.fake.calls("token")),
        *(call.form.get("code_verifier", "-----") for call in rp.fake.calls("token")),
        rp.fake.claims["email"], rp.fake.claims["sub"],
    ]  # fmt: skip
    for text in texts:
        assert not [secret for secret in secrets if secret in text]


@pytest.fixture(scope="module")
def still() -> Iterator[RelyingParty]:
    with FakeProvider() as fake:
        rp = RelyingParty(fake)
        rp.provider.metadata()
        yield rp


PIECES = ["state", "code", "error", "iss", "=", "&", "%", "%00", "%FF", "+", ";", "x", "#", "?"]


@given(st.text(st.characters(max_codepoint=255)) | st.lists(st.sampled_from(PIECES)).map("".join))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_f07_no_query_is_more_than_a_refusal(still: RelyingParty, query: str) -> None:
    with pytest.raises(LoginNotOurs):
        still.flow.finish(query, [("authservice_session_login_x", "y")])
    assert still.flow.return_address(query) is None
    assert not still.called("token") and not still.spent
