"""Tokens and the rules of RequestAuthentications: M49 to M60, M64 and M65, with real signatures."""

from __future__ import annotations

import itertools
import json
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any, ClassVar

import jwt
import pytest

from authservice.authn import Authenticator
from authservice.authn.places import places_of
from authservice.authn.request import Sources, verification
from authservice.authz import Refusal
from authservice.check import Allow, CheckRequest, Deny, Login, NeedsIO, Reach
from authservice.errors import Reason, Refused
from authservice.identity import AuthMethod, Identity
from authservice.oidc.issuers import FurtherIssuer
from authservice.outbound import Http
from authservice.pipeline import INVALID_TOKEN
from authservice.sessions.seal import new_secret
from tests.conftest import Clock
from tests.policy_sets import authentication, policy_set
from tests.provider import EVENT, FakeProvider, ec_key, public_jwk, rsa_key, with_bad_signature
from tests.request_rules import Front, Issuer, Session, bearer, check, person, utc_now
from tests.test_bearer import signed_with_the_public_key, unsigned

ANNA, BERT = Issuer("anna", 11), Issuer("bert", 12)
FOREVER = timedelta(days=4000)


def denial(front: Front, asked: CheckRequest) -> Deny:
    decision = front.decide(asked)
    assert isinstance(decision, Deny), decision
    return decision


@pytest.fixture
def keys_elsewhere(clock: Clock) -> Iterator[FakeProvider]:
    with FakeProvider() as provider:
        provider.clock = clock
        yield provider


class TestNoToken:
    def test_M49_without_a_token_nobody_is_identified_and_the_next_authenticator_is_asked(self) -> None:
        front = Front(ANNA.rule())
        assert isinstance(front.decide(check()), Login)
        assert front.session.asked == 1
        front = Front(ANNA.rule(), session=Session(person(ANNA.issuer)))
        assert front.user(check()) == "alice@example.com"

    def test_M49_a_set_without_rules_asks_nothing_of_tokens(self) -> None:
        front = Front()
        assert isinstance(front.decide(bearer("anything")), Login)

    def test_a_verified_token_is_an_identity_of_its_issuer(self) -> None:
        front = Front(ANNA.rule())
        decision = front.decide(bearer(ANNA.token(email="anna@example.com", groups=["a", "b"])))
        assert isinstance(decision, Allow) and decision.identity is not None
        identity = decision.identity
        assert (identity.user_id, identity.groups, identity.issuer) == ("anna@example.com", ("a", "b"), ANNA.issuer)
        assert identity.method is AuthMethod.HEADER and identity.expires is not None
        assert dict(decision.set_headers)["kubeflow-userid"] == "anna@example.com"
        assert front.session.asked == 0

    @pytest.mark.parametrize("claims", [{}, {"email": None}, {"email": ""}])
    def test_a_program_without_the_user_id_claim_is_its_subject(self, claims: dict[str, Any]) -> None:
        assert Front(ANNA.rule()).user(bearer(ANNA.token(sub="robot", **claims))) == "robot"

    @pytest.mark.parametrize("claims", [{"sub": None}, {"email": 7}, {"email": "a b@example.com"}])
    def test_a_token_that_names_nobody_is_refused(self, claims: dict[str, Any]) -> None:
        assert Front(ANNA.rule()).outcome(bearer(ANNA.token(**claims))) == 401


class TestBadTokens:
    @pytest.mark.parametrize("spoil", [
        with_bad_signature, unsigned, lambda token: "no.token", lambda token: "x", lambda token: token[:-1],
        lambda token: token + "." + token, signed_with_the_public_key,
    ])  # fmt: skip
    def test_M50_a_bad_token_is_401_with_a_challenge_and_rescued_by_nobody(self, spoil: Callable[[str], str]) -> None:
        front = Front(ANNA.rule(), session=Session(person(ANNA.issuer)))
        refused = denial(front, bearer(spoil(ANNA.token())))
        assert (refused.status, refused.reason, refused.challenge) == (401, Reason.INVALID_TOKEN, INVALID_TOKEN)
        assert front.session.asked == 0

    @pytest.mark.parametrize("audience", ["other", ["other", "another"], None, [], 7])
    def test_M50_a_wrong_or_missing_audience_is_403(self, audience: object) -> None:
        front = Front(ANNA.rule(audiences=["api"]))
        refused = denial(front, bearer(ANNA.token(aud=audience)))
        assert (refused.status, refused.reason, refused.challenge) == (403, Reason.WRONG_AUDIENCE, None)
        assert front.session.asked == 0

    def test_M50_what_is_wrong_besides_the_audience_comes_first(self) -> None:
        front = Front(ANNA.rule(audiences=["api"]))
        assert front.outcome(bearer(with_bad_signature(ANNA.token(aud="other")))) == 401
        assert front.outcome(bearer(ANNA.token(aud="other", exp=1))) == 401

    def test_nothing_of_a_token_is_told(self, caplog: pytest.LogCaptureFixture) -> None:
        front = Front(ANNA.rule(audiences=["secret-audience-of-ours"]))
        marked: dict[str, Any] = {"sub": "marked-subject", "aud": "marked-audience", "email": "marked@example.com"}
        tokens = [ANNA.token(**marked), with_bad_signature(ANNA.token(**marked)), ANNA.token(iss="marked", **marked),
                  ANNA.token(header={"kid": "marked"}, **marked), ANNA.token(**{**marked, "email": "marked @x"})]
        with caplog.at_level(logging.DEBUG):
            told = [repr(denial(front, bearer(token))) for token in tokens]
        for text in (*told, caplog.text):
            assert "marked" not in text and not any(token[-20:] in text for token in tokens)
        assert "policies.yaml:1: spec.jwtRules[0]: signature" in told[1]

    def test_a_token_that_is_bound_to_a_key_or_reports_an_event_proves_nobody(self) -> None:
        front = Front(ANNA.rule())
        assert front.outcome(bearer(ANNA.token(cnf={"jkt": "x"}))) == 401
        assert front.outcome(bearer(ANNA.token(events={EVENT: {}}))) == 401


class TestPlaces:
    def test_M51_the_usual_places_are_the_bearer_header_and_access_token(self) -> None:
        front = Front(ANNA.rule())
        token = ANNA.token(sub="anna")
        assert front.user(bearer(token)) == "anna"
        for target in (f"/app?access_token={token}", f"/app?x=1&access_token={token}&y", f"/?access%5Ftoken={token}"):
            assert front.user(check(target)) == "anna"
        for elsewhere in (check(f"/app?token={token}"), check(f"/app?xaccess_token={token}"),
                          check(f"/app?x=access_token={token}"), check(x_token=token),
                          check(cookie=f"access_token={token}"), check(f"/access_token={token}")):
            assert front.outcome(elsewhere) == 302

    @pytest.mark.parametrize("fields,asked", [
        ({"fromHeaders": [{"name": "X-Token"}]}, lambda token: check(x_token=token)),
        ({"fromHeaders": [{"name": "x-token", "prefix": "JWT "}]}, lambda token: check(x_token=f"JWT {token}")),
        ({"fromParams": ["t"]}, lambda token: check(f"/app?t={token}")),
        ({"fromCookies": ["jwt"]}, lambda token: check(cookie=f"a=b; jwt={token}; c=d")),
        ({"fromCookies": ["jwt"]}, lambda token: check(cookie=f'jwt="{token}"')),
    ])
    def test_M51_a_rule_with_places_of_its_own_looks_only_there(
        self, fields: dict[str, Any], asked: Callable[[str], CheckRequest]
    ) -> None:
        front = Front(ANNA.rule(**fields))
        good = ANNA.token(sub="anna")
        assert front.user(asked(good)) == "anna"
        assert front.outcome(asked("bad")) == 401
        for elsewhere in (bearer(good), check(f"/app?access_token={good}"), bearer("bad")):
            assert front.outcome(elsewhere) == 302

    @pytest.mark.parametrize(
        "value", ["", "Bearer", "Bearer ", "Basic x", "{token}", "Token {token}", "Bearer\t{token}"]
    )
    def test_M52_a_value_without_the_prefix_holds_no_token(self, value: str) -> None:
        held = value.format(token=ANNA.token())
        assert Front(ANNA.rule()).outcome(check(authorization=held)) == 302

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
    def test_M52_bearer_is_recognised_in_any_case(self, scheme: str) -> None:
        for fields in ({}, {"fromHeaders": [{"name": "Authorization", "prefix": "Bearer "}]}):
            asked = check(authorization=f"{scheme} {ANNA.token(sub='anna')}")
            assert Front(ANNA.rule(**fields)).user(asked) == "anna"
        elsewhere = Front(ANNA.rule(fromHeaders=[{"name": "x-auth", "prefix": "Bearer "}]))
        assert elsewhere.user(check(x_auth=f"{scheme} {ANNA.token(sub='anna')}")) == "anna"

    def test_M52_any_other_prefix_is_searched_as_it_is_written(self) -> None:
        front = Front(ANNA.rule(fromHeaders=[{"name": "x-token", "prefix": "Jwt:"}]))
        token = ANNA.token(sub="anna")
        for value in (f"Jwt:{token}", f"Jwt: {token}", f"for you Jwt:{token}"):
            assert front.user(check(x_token=value)) == "anna"
        for value in (f"jwt:{token}", f"Jwt {token}", token):
            assert front.outcome(check(x_token=value)) == 302
        assert front.outcome(check(x_token="Jwt:")) == 401

    @pytest.mark.parametrize("value", ["Bearer {0},Bearer {0}", "Bearer {0}, Bearer {1}", "Basic x,Bearer {0}",
                                       "Bearer {0},Basic x", "Bearer {0},x"])
    def test_M53_two_authorization_lines_are_refused(self, value: str) -> None:
        front = Front(ANNA.rule())
        assert front.outcome(check(authorization=value.format(ANNA.token(), ANNA.token(sub="other")))) == 401

    def test_M53_so_are_two_lines_of_any_other_header(self) -> None:
        for field in ({"name": "x-token"}, {"name": "x-token", "prefix": "JWT "}):
            front = Front(ANNA.rule(fromHeaders=[field]))
            assert front.outcome(check(x_token=f"JWT {ANNA.token()},JWT {ANNA.token()}")) == 401

    def test_an_empty_place_holds_a_bad_token_as_in_envoy(self) -> None:
        assert Front(ANNA.rule()).outcome(check("/app?access_token=")) == 401
        assert Front(ANNA.rule(fromHeaders=[{"name": "x-token"}])).outcome(check(x_token="")) == 401
        assert Front(ANNA.rule(fromCookies=["jwt"])).outcome(check(cookie="jwt=")) == 401

    def test_a_sessions_secret_is_left_to_the_session_wherever_it_stands(self) -> None:
        secret = new_secret()
        everywhere = {"fromHeaders": [{"name": "authorization"}, {"name": "x-token"}], "fromParams": ["t"],
                      "fromCookies": ["authservice_session"]}
        for front in (Front(ANNA.rule(), session=Session(person(ANNA.issuer))),
                      Front(ANNA.rule(**everywhere), session=Session(person(ANNA.issuer)))):
            for asked in (bearer(secret), check(x_token=secret), check(f"/?t={secret}&access_token={secret}"),
                          check(cookie=f"authservice_session={secret}")):
                assert front.user(asked) == "alice@example.com"

    def test_cost_of_many_parameters_and_cookies_is_that_of_reading_them(self) -> None:
        front = Front(ANNA.rule(fromParams=["t"], fromCookies=["t"]))
        many = "&".join(f"p{number}=%41" for number in range(5000))
        assert front.outcome(check(f"/app?{many}", cookie=many.replace("&", "; "))) == 302


class TestSeveralTokens:
    def test_M54_every_token_found_for_a_rule_must_verify(self) -> None:
        front = Front(ANNA.rule())
        good = ANNA.token(sub="anna")
        assert front.user(bearer(good, f"/app?access_token={good}")) == "anna"
        for bad in ("x", with_bad_signature(good), BERT.token(), ""):
            assert front.outcome(bearer(good, f"/app?access_token={bad}")) == 401
            assert front.outcome(bearer(bad or "x", f"/app?access_token={good}")) == 401
        assert front.outcome(check(f"/app?access_token={good}&access_token=x")) == 401

    def test_M54_two_good_tokens_that_differ_are_refused(self) -> None:
        front = Front(ANNA.rule())
        asked = bearer(ANNA.token(sub="anna"), f"/app?access_token={ANNA.token(sub='other')}")
        assert front.outcome(asked) == 401
        asked = check(f"/app?access_token={ANNA.token(sub='anna')}&access_token={ANNA.token(sub='other')}")
        assert front.outcome(asked) == 401

    def test_M55_one_rule_that_verifies_is_enough(self) -> None:
        front = Front(policies=policy_set(authentication(ANNA.rule(), BERT.rule())))
        assert front.user(bearer(ANNA.token(sub="anna"))) == "anna"
        assert front.user(bearer(BERT.token(sub="bert"))) == "bert"
        assert front.outcome(bearer(with_bad_signature(BERT.token()))) == 401
        assert front.outcome(check()) == 302

    def test_M55_a_good_token_passes_beside_a_bad_one_in_another_rules_own_place(self) -> None:
        own = BERT.rule(fromHeaders=[{"name": "x-bert"}])
        front = Front(policies=policy_set(authentication(ANNA.rule(), own)))
        assert front.user(bearer(ANNA.token(sub="anna"), x_bert="bad")) == "anna"
        assert front.user(check(authorization="Bearer bad", x_bert=BERT.token(sub="bert"))) == "bert"
        assert front.outcome(bearer("bad", x_bert="worse")) == 401
        assert front.outcome(bearer("bad")) == 401

    def test_M55_two_good_tokens_of_two_issuers_are_refused(self) -> None:
        own = BERT.rule(fromHeaders=[{"name": "x-bert"}])
        front = Front(policies=policy_set(authentication(ANNA.rule(), own)))
        assert front.outcome(bearer(ANNA.token(), x_bert=BERT.token())) == 401
        usual = Front(policies=policy_set(authentication(ANNA.rule(), BERT.rule())))
        assert usual.outcome(bearer(ANNA.token(), f"/app?access_token={BERT.token()}")) == 401

    def test_M55_of_several_objections_the_one_of_the_tokens_own_rule_counts(self) -> None:
        for order in ((ANNA.rule(audiences=["api"]), BERT.rule()), (BERT.rule(), ANNA.rule(audiences=["api"]))):
            front = Front(policies=policy_set(authentication(*order)))
            assert front.outcome(bearer(ANNA.token(aud="other"))) == 403
            assert front.outcome(bearer(BERT.token(exp=1))) == 401

    def test_M55_a_rule_whose_keys_cannot_be_had_spoils_nothing_that_another_verifies(self) -> None:
        silent = Issuer("anna", 13).rule(jwks=None, jwksUri="http://127.0.0.1:9/keys")
        front = Front(policies=policy_set(authentication(silent, ANNA.rule())))
        assert front.user(bearer(ANNA.token(sub="anna"))) == "anna"
        assert front.outcome(bearer(with_bad_signature(ANNA.token()))) == 503
        assert front.outcome(bearer(BERT.token())) == 401

    def test_M65_rules_of_all_that_select_the_workload_count_together(self) -> None:
        resources = (authentication(ANNA.rule(), name="a"), authentication(BERT.rule(), name="b"))
        front = Front(policies=policy_set(*resources))
        assert [front.user(bearer(one.token(sub=one.name))) for one in (ANNA, BERT)] == ["anna", "bert"]
        assert front.outcome(bearer(Issuer("carl", 13).token())) == 401

    def test_M65_and_on_no_other_workload(self) -> None:
        workloads = {
            "a.example": {"namespace": "default", "labels": {"app": "a"}},
            "b.example": {"namespace": "default", "labels": {"app": "b"}},
            "b.example/api/": {"namespace": "default", "labels": {"app": "a"}},
        }
        selected = authentication(ANNA.rule(), selector={"matchLabels": {"app": "a"}})
        front = Front(policies=policy_set(selected, workloads=workloads))
        asked = bearer("bad")
        for host, target, status in (("a.example", "/", 401), ("a.example:8443", "/", 401), ("b.example", "/", 302),
                                     ("b.example", "/api/x", 401), ("c.example", "/", 302)):
            assert front.outcome(check(target, host=host, **asked.headers)) == status, (host, target)


class TestIssuers:
    @pytest.mark.parametrize("issuer", ["https://anna.example/", "http://anna.example", "https://ANNA.example",
                                        "https://anna.example:443", "", None])
    def test_M56_the_issuer_is_compared_exactly(self, issuer: str | None) -> None:
        assert Front(ANNA.rule()).outcome(bearer(ANNA.token(iss=issuer))) == 401

    def test_M56_a_trailing_slash_is_the_issuers_own(self) -> None:
        slashed = ANNA.issuer + "/"
        front = Front(ANNA.rule(issuer=slashed))
        assert front.user(bearer(ANNA.token(iss=slashed, sub="anna"))) == "anna"
        assert front.outcome(bearer(ANNA.token())) == 401

    def test_M56_a_rule_without_issuer_takes_any_by_its_own_keys(self, keys_elsewhere: FakeProvider) -> None:
        anybody = {"jwksUri": keys_elsewhere.address("jwks")}
        front = Front(policies=policy_set(authentication(anybody, ANNA.rule())))
        for issuer in ("https://one.example", "https://two.example", None):
            assert front.user(bearer(keys_elsewhere.access_token(iss=issuer, email="robot@x"))) == "robot@x"
        assert front.user(bearer(ANNA.token(sub="anna"))) == "anna"
        assert front.outcome(bearer(BERT.token())) == 401

    def test_a_token_for_one_issuer_is_never_tried_with_anothers_keys(self, keys_elsewhere: FakeProvider) -> None:
        elsewhere = {"issuer": "https://elsewhere.example", "jwksUri": keys_elsewhere.address("jwks")}
        front = Front(policies=policy_set(authentication(ANNA.rule(), elsewhere)))
        said_to_be_annas = keys_elsewhere.access_token(iss=ANNA.issuer)
        assert front.outcome(bearer(said_to_be_annas)) == 401
        assert front.outcome(bearer(ANNA.token(iss="https://elsewhere.example", header={}))) == 401
        assert front.user(bearer(keys_elsewhere.access_token(iss="https://elsewhere.example", email="e@x"))) == "e@x"

    def test_a_cached_identity_of_one_rule_counts_for_no_other(self) -> None:
        audience = ANNA.rule(audiences=["api"])
        front = Front(ANNA.rule())
        token = ANNA.token(aud="other", sub="anna")
        assert front.user(bearer(token)) == "anna"
        front.holder.current = policy_set(authentication(audience))
        assert front.outcome(bearer(token)) == 403
        front.holder.current = policy_set(authentication(ANNA.rule(jwks=Issuer("anna", 13).jwks)))
        assert front.outcome(bearer(token)) == 401
        front.holder.current = policy_set(authentication(ANNA.rule()))
        assert front.user(bearer(token)) == "anna"


class TestKeys:
    def test_M57_inline_keys_are_used_and_nobody_is_asked(self) -> None:
        front = Front(ANNA.rule(jwksUri="http://127.0.0.1:9/keys"))
        assert front.decide(bearer(ANNA.token()), Reach.MEMORY)
        assert front.made == []

    def test_M57_else_the_address_named(self, keys_elsewhere: FakeProvider) -> None:
        front = Front({"issuer": keys_elsewhere.issuer, "jwksUri": keys_elsewhere.address("jwks")})
        assert front.user(bearer(keys_elsewhere.access_token(email="a@x"))) == "a@x"
        assert [call.endpoint for call in keys_elsewhere.calls()] == ["jwks"]

    def test_M57_else_discovery(self, keys_elsewhere: FakeProvider) -> None:
        front = Front({"issuer": keys_elsewhere.issuer})
        assert front.user(bearer(keys_elsewhere.access_token(email="a@x"))) == "a@x"
        assert [call.endpoint for call in keys_elsewhere.calls()] == ["discovery", "jwks"]

    def test_M57_the_time_out_is_five_seconds_or_the_rules(self, keys_elsewhere: FakeProvider) -> None:
        keys_elsewhere.misbehave("slow_jwks", 30)
        front = Front({"issuer": keys_elsewhere.issuer, "timeout": "0.2s"})
        assert front.outcome(bearer(keys_elsewhere.access_token())) == 503
        assert front.made[0].timeout == timedelta(seconds=0.2)
        keys_elsewhere.behave()
        assert Front(ANNA.rule()).holder.current.jwt_rules[0].timeout == timedelta(seconds=5)

    def test_keys_that_cannot_be_had_are_no_verdict_and_asked_for_in_the_full_path_only(self) -> None:
        front = Front(ANNA.rule(jwks=None, jwksUri="http://127.0.0.1:9/keys"))
        with pytest.raises(NeedsIO):
            front.decide(bearer(ANNA.token()), Reach.MEMORY)
        assert front.outcome(bearer(ANNA.token())) == 503
        assert front.outcome(bearer(BERT.token())) == 401
        assert front.outcome(bearer("x")) == 401

    def test_both_lanes_agree_whatever_is_known(self, keys_elsewhere: FakeProvider) -> None:
        front = Front(policies=policy_set(authentication(ANNA.rule(), {"issuer": keys_elsewhere.issuer})))
        theirs = keys_elsewhere.access_token(email="a@x")
        with pytest.raises(NeedsIO):
            front.decide(bearer(theirs), Reach.MEMORY)
        for token in (theirs, ANNA.token(), "bad", with_bad_signature(theirs), with_bad_signature(ANNA.token())):
            full = front.outcome(bearer(token))
            decision = front.decide(bearer(token), Reach.MEMORY)
            assert (200 if isinstance(decision, Allow) else getattr(decision, "status", None)) == full

    def test_a_new_key_is_found_and_an_unknown_one_is_401(self, keys_elsewhere: FakeProvider, clock: Clock) -> None:
        front = Front({"issuer": keys_elsewhere.issuer}, now=clock)
        assert front.user(bearer(keys_elsewhere.access_token(email="a@x"))) == "a@x"
        keys_elsewhere.rotate_keys()
        assert front.user(bearer(keys_elsewhere.access_token(email="b@x"))) == "b@x"
        stranger = keys_elsewhere.access_token(key=rsa_key(9), header={"kid": "nobody"})
        assert front.outcome(bearer(stranger)) == 401

    def test_sources_outlive_a_reload_as_long_as_a_rule_needs_them(self, keys_elsewhere: FakeProvider) -> None:
        rule = {"issuer": keys_elsewhere.issuer}
        front = Front(rule)
        front.user(bearer(keys_elsewhere.access_token()))
        front.holder.current = policy_set(authentication({**rule, "audiences": ["api"]}, BERT.rule()))
        assert front.outcome(bearer(keys_elsewhere.access_token("api"))) == 200
        assert len(front.made) == 1 and len(keys_elsewhere.calls("jwks")) == 1
        front.holder.current = policy_set(authentication({**rule, "timeout": "1s"}))
        assert front.outcome(bearer(keys_elsewhere.access_token("api"))) == 200
        assert len(front.made) == 2
        front.holder.current = policy_set(authentication(BERT.rule()))
        front.outcome(bearer(BERT.token()))
        front.holder.current = policy_set(authentication(rule))
        assert front.outcome(bearer(keys_elsewhere.access_token())) == 200
        assert len(front.made) == 3

    def test_sources_are_let_go_while_another_check_makes_one(self) -> None:
        rule = policy_set(authentication({"issuer": "https://a.example"})).jwt_rules[0]
        source = FurtherIssuer(rule.issuer, Http(), now=utc_now)
        sources = Sources({}, lambda rule: source)
        others = iter([replace(rule, issuer=f"https://{number}.example") for number in range(9)])

        class Slow(str):
            """An issuer at which another thread comes in between when it is looked up."""

            def __hash__(self) -> int:
                for other in others:
                    sources.of(other)
                return super().__hash__()

        slow = replace(rule, issuer=Slow(rule.issuer))
        kept, others = others, iter(())
        sources.of(slow)
        others = kept
        sources.keep_only([rule])
        assert sources.of(rule) is source

    def test_a_source_that_the_service_has_is_shared(self, keys_elsewhere: FakeProvider, clock: Clock) -> None:
        ours = FurtherIssuer(keys_elsewhere.issuer, Http(), now=clock)
        known = {(keys_elsewhere.issuer, ""): ours}
        front = Front({"issuer": keys_elsewhere.issuer}, known=known)
        assert front.outcome(bearer(keys_elsewhere.access_token())) == 200
        assert front.made == [] and ours.ready
        own = Front({"issuer": keys_elsewhere.issuer, "jwksUri": keys_elsewhere.address("jwks")}, known=known)
        assert own.outcome(bearer(keys_elsewhere.access_token())) == 200
        assert len(own.made) == 1

    def test_a_verified_token_is_remembered_and_its_identity_with_it(self) -> None:
        front = Front(ANNA.rule())
        asked = bearer(ANNA.token())
        first, second = front.decide(asked), front.decide(asked, Reach.MEMORY)
        assert isinstance(first, Allow) and isinstance(second, Allow) and first.identity is second.identity
        forgetful = Front(ANNA.rule(), lifetime=None)
        third, fourth = forgetful.decide(asked), forgetful.decide(asked)
        assert isinstance(third, Allow) and isinstance(fourth, Allow) and third.identity is not fourth.identity


class TestAudiences:
    FORMS = ("api.ex", "http://api.ex", "https://api.ex", "api.ex/", "http://api.ex/", "https://api.ex/")

    @pytest.mark.parametrize("wanted", FORMS)
    @pytest.mark.parametrize("given", FORMS)
    def test_M58_scheme_and_one_trailing_slash_do_not_count(self, wanted: str, given: str) -> None:
        assert Front(ANNA.rule(audiences=["x", wanted])).outcome(bearer(ANNA.token(aud=given))) == 200
        assert Front(ANNA.rule(audiences=[wanted])).outcome(bearer(ANNA.token(aud=["y", given]))) == 200

    @pytest.mark.parametrize("given", ["https://api.ex//", "api.ex/x", "ftp://api.ex", "API.EX", "HTTPS://api.ex",
                                       "api.e", "http://https://api.ex", " api.ex"])
    def test_M58_everything_else_does(self, given: str) -> None:
        assert Front(ANNA.rule(audiences=["https://api.ex"])).outcome(bearer(ANNA.token(aud=given))) == 403

    @pytest.mark.parametrize("audience", [None, "whoever", ["a", "b"], []])
    def test_M58_none_wanted_none_looked_at(self, audience: object) -> None:
        assert Front(ANNA.rule()).outcome(bearer(ANNA.token(aud=audience))) == 200


class TestTimes:
    @pytest.mark.parametrize("claims,status", [
        ({"exp": None}, 200), ({"exp": -30}, 200), ({"exp": -90}, 401), ({"exp": "soon"}, 401),
        ({"nbf": 30}, 200), ({"nbf": 90}, 401), ({"nbf": -90}, 200), ({"nbf": "x"}, 401),
        ({"iat": 100000}, 200), ({"iat": "x"}, 200), ({"iat": None}, 200), ({"iat": -10**9}, 200),
    ])
    def test_M59_exp_and_nbf_with_a_minute_of_skew_and_nothing_else(self, claims: dict[str, Any], status: int,
                                                                   clock: Clock) -> None:
        front = Front(ANNA.rule(), now=clock)
        now = int(clock().timestamp())
        said: dict[str, Any] = {
            name: now + value if isinstance(value, int) else value for name, value in claims.items()
        }
        assert front.outcome(bearer(ANNA.token(**said))) == status

    def test_M59_without_exp_it_never_expires_and_is_still_not_remembered_for_ever(self, clock: Clock) -> None:
        front = Front(ANNA.rule(), now=clock)
        asked = bearer(ANNA.token(exp=None))
        assert front.outcome(asked) == 200
        clock.advance(days=3000)
        assert front.outcome(asked) == 200

    def test_M59_a_remembered_token_expires_all_the_same(self, clock: Clock) -> None:
        front = Front(ANNA.rule(), now=clock, lifetime=FOREVER)
        asked = bearer(ANNA.token(now=clock()))
        assert front.outcome(asked) == 200
        clock.advance(seconds=300 + 61)
        assert front.outcome(asked) == 401


class TestSignatures:
    def test_M60_a_kid_that_is_unknown_is_401(self) -> None:
        assert Front(ANNA.rule()).outcome(bearer(ANNA.token(header={"kid": "other"}))) == 401

    def test_M60_without_kid_each_key_is_tried(self) -> None:
        keys = {"keys": [public_jwk(rsa_key(number), kid=f"k{number}") for number in (12, 13, 11)]}
        front = Front(ANNA.rule(jwks=json.dumps(keys)))
        assert front.outcome(bearer(ANNA.token(header={}))) == 200
        assert front.outcome(bearer(ANNA.token(header={"kid": "k11"}))) == 200
        assert front.outcome(bearer(ANNA.token(header={"kid": "k12"}))) == 401

    def test_M60_a_key_without_kid_serves_any(self) -> None:
        nameless = Issuer("anna", 11, kid=None)
        assert Front(nameless.rule()).outcome(bearer(ANNA.token(header={"kid": "whatever"}))) == 200

    def test_M60_no_signature_and_symmetric_ones_are_401(self) -> None:
        front = Front(ANNA.rule())
        assert front.outcome(bearer(unsigned(ANNA.token()))) == 401
        claims = jwt.decode(ANNA.token(), options={"verify_signature": False})
        for algorithm in ("HS256", "HS384", "HS512"):
            assert front.outcome(bearer(jwt.encode(claims, "s" * 64, algorithm=algorithm))) == 401

    def test_M60_whatever_asymmetric_algorithm_the_key_is_for(self) -> None:
        front = Front(ANNA.rule())
        for algorithm in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"):
            assert front.outcome(bearer(ANNA.token(algorithm=algorithm))) == 200
        curve = json.dumps({"keys": [public_jwk(ec_key(1), kid="key")]})
        front = Front(ANNA.rule(jwks=curve))
        assert front.outcome(bearer(ANNA.token(key=ec_key(1), algorithm="ES256"))) == 200
        assert front.outcome(bearer(ANNA.token())) == 401

    @pytest.mark.parametrize("kind", ["JWT", "at+jwt", "anything", 7])
    def test_the_type_is_not_looked_at(self, kind: object) -> None:
        assert Front(ANNA.rule()).outcome(bearer(ANNA.token(header={"kid": "key", "typ": kind}))) == 200


class TestPreflights:
    PREFLIGHT: ClassVar = {"origin": "https://x.example", "access_control_request_method": "POST"}

    def test_M64_a_preflight_skips_the_token_check(self) -> None:
        front = Front(ANNA.rule())
        for token in ("bad", with_bad_signature(ANNA.token())):
            asked = check("/app", method="OPTIONS", authorization=f"Bearer {token}", **self.PREFLIGHT)
            assert front.outcome(asked) == 302

    def test_M64_what_only_looks_like_one_does_not(self) -> None:
        front = Front(ANNA.rule())
        for method, headers in (("OPTIONS", {"origin": "x"}), ("OPTIONS", {}), ("POST", self.PREFLIGHT)):
            assert front.outcome(check(method=method, authorization="Bearer bad", **headers)) == 401

    def test_M64_authorization_is_not_skipped(self) -> None:
        class Nobody:
            name = "nobody"

            def authorize(self, check: CheckRequest, identity: Identity, reach: Reach) -> Refusal:
                return Refusal(Reason.GROUPS, "No.")

        front = Front(ANNA.rule(), session=Session(person(ANNA.issuer)), authorizers=(Nobody(),))
        asked = check(method="OPTIONS", authorization="Bearer bad", **self.PREFLIGHT)
        assert front.outcome(asked) == 403


class TestOthers:
    def test_on_a_workload_with_rules_no_other_authenticator_sees_the_token(self) -> None:
        class TakesAll:
            name = "takes-all"

            def authenticate(self, check: CheckRequest, reach: Reach) -> Identity | None:
                return person("https://elsewhere.example")

        taker: Authenticator = TakesAll()
        assert Front(ANNA.rule(), others=(taker,)).outcome(bearer(BERT.token())) == 401
        assert Front(ANNA.rule(), others=(taker,)).outcome(check(x_other=BERT.token())) == 200
        assert Front(others=(taker,)).outcome(bearer(BERT.token())) == 200

    def test_an_unknown_host_has_no_rules(self) -> None:
        workloads = {"a.example": {"namespace": "default"}}
        front = Front(policies=policy_set(authentication(ANNA.rule()), workloads=workloads))
        assert front.outcome(bearer("bad")) == 302

    def test_what_a_rule_verifies_has_a_name_of_its_own(self) -> None:
        rules = policy_set(authentication(
            ANNA.rule(), ANNA.rule(fromParams=["t"], outputPayloadToHeader="x-p"), ANNA.rule(audiences=["a"]),
            ANNA.rule(jwks=BERT.jwks), BERT.rule(),
        )).jwt_rules
        names = [verification(rule) for rule in rules]
        assert names[0] == names[1] and len(set(names)) == 4
        assert places_of(rules[0]) != places_of(rules[1])

    def test_rules_change_under_many_threads_and_every_answer_is_that_of_one_of_the_sets(self) -> None:
        sets = [
            policy_set(authentication(ANNA.rule(outputClaimToHeaders=[{"header": f"x-{name}", "claim": "sub"}])))
            for name in "ab"
        ]
        front = Front(policies=sets[0])
        asked = bearer(ANNA.token(sub="anna"))
        over = threading.Event()

        def flip() -> None:
            for number in itertools.count():
                if over.is_set():
                    return
                front.holder.current = sets[number % 2]

        def answers() -> set[tuple[str, ...]]:
            decisions = [front.decide(asked) for _ in range(300)]
            return {tuple(name for name, _ in one.set_headers[3:]) for one in decisions if isinstance(one, Allow)}

        flipping = threading.Thread(target=flip)
        flipping.start()
        try:
            with ThreadPoolExecutor(4) as pool:
                seen = [asking.result() for asking in [pool.submit(answers) for _ in range(4)]]
        finally:
            over.set()
            flipping.join()
        assert frozenset().union(*seen) <= {("x-a",), ("x-b",)}

    def test_a_refusal_of_the_family_is_raised_not_answered(self) -> None:
        front = Front(ANNA.rule())
        with pytest.raises(Refused):
            front.authenticator.authenticate(bearer("x"), Reach.MEMORY)
