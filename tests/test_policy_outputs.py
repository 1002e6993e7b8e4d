"""What rules of RequestAuthentications pass on and take away: M61 to M63, at each gateway."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authservice.authn.outputs import MOST_VARIANTS, Outputs
from authservice.check import Allow, CheckRequest, Deny, Reach, Reply, RequestParts
from authservice.errors import IdentityUnusable, Reason, SettingsError
from authservice.gateways import PASSES_ANSWERS_ON, VERDICTS_ONLY
from authservice.identity import MAX_HEADER
from authservice.judge import REMOVE, allowed
from authservice.policy.outputs import output_headers, output_names, output_problems
from authservice.policy.resources import JwtRule
from tests.conftest import Answer, Browser, ask
from tests.policy_sets import authentication, policy_set
from tests.provider import FakeProvider
from tests.request_rules import IDENTITY_HEADERS, Front, Holder, Issuer, Session, bearer, check, person
from tests.waiting import until

ANNA, BERT = Issuer("anna", 11), Issuer("bert", 12)
MAIL = {"header": "X-Mail", "claim": "email"}
MAIL_NAMES = {"x-mail", "x_mail", "X_MAIL"}


def allow(front: Front, asked: CheckRequest) -> Allow:
    decision = front.decide(asked)
    assert isinstance(decision, Allow), decision
    assert_one_word_for_each_header(decision)
    return decision


def assert_one_word_for_each_header(decision: Allow) -> None:
    names = [name.lower() for name, _ in decision.set_headers]
    assert len(set(names)) == len(names)
    assert not set(names) & {name.lower() for name in decision.remove_headers}
    if decision.variant is not None:
        assert set(decision.variant.emptied) <= set(decision.remove_headers)


def told(decision: Allow) -> dict[str, str]:
    """What the application gets besides the identity headers."""
    return {name: value for name, value in decision.set_headers if name.lower() not in IDENTITY_HEADERS.names}


def taken(decision: Allow) -> set[str]:
    return set(decision.remove_headers) - set(IDENTITY_HEADERS.names)


def rule(**fields: Any) -> JwtRule:
    return policy_set(authentication(ANNA.rule(**fields))).jwt_rules[0]


@pytest.fixture
def keys_elsewhere() -> Iterator[FakeProvider]:
    with FakeProvider() as provider:
        yield provider


class TestForwarding:
    def test_M61_the_header_of_a_verified_token_is_taken_away(self) -> None:
        front = Front(ANNA.rule())
        assert taken(allow(front, bearer(ANNA.token()))) == {"authorization"}
        own = Front(ANNA.rule(fromHeaders=[{"name": "X-Token"}, {"name": "x-spare", "prefix": "JWT "}]))
        token = ANNA.token()
        assert taken(allow(own, check(x_token=token))) == {"x-token"}
        assert taken(allow(own, check(x_token=token, x_spare=f"JWT {token}"))) == {"x-token", "x-spare"}
        assert taken(allow(own, check(x_spare=f"JWT {token}", authorization="Basic x"))) == {"x-spare"}

    def test_M61_unless_it_is_forwarded(self) -> None:
        assert taken(allow(Front(ANNA.rule(forwardOriginalToken=True)), bearer(ANNA.token()))) == set()

    def test_M61_a_token_in_a_query_or_cookie_stays(self) -> None:
        front = Front(ANNA.rule(fromParams=["t"], fromCookies=["t"]))
        assert taken(allow(front, check(f"/?t={ANNA.token()}", authorization="Basic x"))) == set()
        assert taken(allow(front, check(cookie=f"t={ANNA.token()}"))) == set()

    def test_M61_what_is_no_verified_token_of_the_rule_stays(self) -> None:
        front = Front(ANNA.rule(), session=Session(person(ANNA.issuer)))
        assert taken(allow(front, check(authorization="Basic x"))) == set()
        both = Front(policies=policy_set(authentication(ANNA.rule(), BERT.rule(fromHeaders=[{"name": "x-bert"}]))))
        assert taken(allow(both, bearer(ANNA.token(), x_bert="bad"))) == {"authorization"}
        assert taken(allow(both, check(authorization="Basic x", x_bert=BERT.token()))) == {"x-bert"}


class TestPayload:
    def test_M62_the_payload_is_base64url_without_padding(self) -> None:
        claims: dict[str, Any] = {"name": "Zoë Ünïcode 日本", "n": 1, "list": ["a"], "deep": {"x": None}, "is": True}
        front = Front(ANNA.rule(outputPayloadToHeader="X-Payload"))
        for extra in ("", "a", "ab", "abc"):
            token = ANNA.token(extra=extra, **claims)
            value = told(allow(front, bearer(token)))["X-Payload"]
            assert "=" not in value and "+" not in value and "/" not in value
            payload = json.loads(base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)))
            part = token.split(".")[1]
            assert payload == json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))

    def test_M62_the_clients_own_header_is_taken_off(self) -> None:
        front = Front(ANNA.rule(outputPayloadToHeader="X-Payload"), session=Session(person(BERT.issuer)))
        names = {"x-payload", "x_payload", "X_PAYLOAD"}
        assert taken(allow(front, check(x_payload="forged"))) == names
        assert taken(allow(front, check("/public/x", x_payload="forged"))) == names
        known = allow(front, bearer(ANNA.token(), x_payload="forged"))
        assert taken(known) == {"x_payload", "X_PAYLOAD", "authorization"}

    def test_M62_a_payload_that_fits_in_no_header_is_refused_not_cut(self) -> None:
        front = Front(ANNA.rule(outputPayloadToHeader="x-payload"))
        decision = front.decide(bearer(ANNA.token(much="x" * MAX_HEADER)))
        assert isinstance(decision, Deny) and (decision.status, decision.reason) == (403, Reason.IDENTITY)


class TestClaims:
    @pytest.mark.parametrize("value,written", [
        ("text", "text"), (42, "42"), (0, "0"), (1.5, "1.500000"), (42.0, "42"), (-1, "-1.000000"), (2**53, str(2**53)),
        (1e20, "100000000000000000000.000000"), (True, "true"), (False, "false"),
        (["a", "b"], base64.b64encode(b'["a","b"]').decode()), ([], base64.b64encode(b"[]").decode()),
        ({"a": 1}, base64.b64encode(b'{"a":1}').decode()),
    ])
    def test_M63_values_are_written_as_envoy_does(self, value: object, written: str) -> None:
        assert output_headers([rule(outputClaimToHeaders=[{"header": "x-c", "claim": "c"}])], {"c": value}) == (
            ("x-c", written),
        )

    @pytest.mark.parametrize("claims", [{}, {"c": None}, {"c": ""}, {"d": "x"}])
    def test_M63_an_absent_claim_sets_no_header(self, claims: dict[str, Any]) -> None:
        assert output_headers([rule(outputClaimToHeaders=[{"header": "x-c", "claim": "c"}])], claims) == ()

    def test_M63_dots_lead_inwards(self) -> None:
        names = {"a.b": "deep", "realm_access.roles": base64.b64encode(b'["x"]').decode(), "https://x.ex/y": "whole"}
        claims = {"a": {"b": "deep"}, "realm_access": {"roles": ["x"]}, "https://x.ex/y": "whole"}
        for claim, value in names.items():
            assert output_headers([rule(outputClaimToHeaders=[{"header": "x-c", "claim": claim}])], claims) == (
                ("x-c", value),
            )

    @pytest.mark.parametrize("value,written", [
        ("a\nb", "a%0Ab"), ("a\r\nX-Admin: 1", "a%0D%0AX-Admin: 1"), ("Zoë", "Zo%C3%AB"), (" x ", "%20x%20"),
        ("100%", "100%25"), ("\x00", "%00"), ("x" * MAX_HEADER, "x" * MAX_HEADER),
    ])
    def test_M63_values_are_on_one_line_as_identity_headers_are(self, value: str, written: str) -> None:
        ((_, said),) = output_headers([rule(outputClaimToHeaders=[MAIL])], {"email": value})
        assert said == written
        Reply(200, (("X-Mail", said),)).written  # noqa: B018

    @pytest.mark.parametrize("value", ["x" * (MAX_HEADER + 1), "\n" * (MAX_HEADER // 2), ["x" * MAX_HEADER], "\ud800"])
    def test_M63_and_refused_when_they_fit_in_none(self, value: object) -> None:
        with pytest.raises(IdentityUnusable):
            output_headers([rule(outputClaimToHeaders=[MAIL])], {"email": value})

    def test_M63_the_named_headers_are_taken_off_first_for_everybody_everywhere(self) -> None:
        workloads = {
            "a.example": {"namespace": "default", "labels": {"app": "a"}},
            "b.example": {"namespace": "default", "labels": {"app": "b"}},
        }
        selected = authentication(ANNA.rule(outputClaimToHeaders=[MAIL]), selector={"matchLabels": {"app": "a"}})
        front = Front(policies=policy_set(selected, workloads=workloads), session=Session(person(BERT.issuer)))
        preflight = {"origin": "https://x", "access_control_request_method": "PUT"}
        for asked in (check(host="a.example"), check(host="b.example"), check(host="c.example"), check("/public"),
                      check(host="a.example", x_mail="forged"), check(method="OPTIONS", host="a.example", **preflight)):
            assert taken(allow(front, asked)) == MAIL_NAMES
        front.session.identity = person(ANNA.issuer, email="alice@example.com")
        assert told(allow(front, check(host="a.example"))) == {"X-Mail": "alice@example.com"}
        assert taken(allow(front, check(host="b.example"))) == MAIL_NAMES
        token = ANNA.token(email="anna@example.com")
        assert told(allow(front, bearer(token, host="a.example"))) == {"X-Mail": "anna@example.com"}

    def test_M63_a_sessions_claims_count_for_the_rules_of_its_issuer(self) -> None:
        rules = authentication(ANNA.rule(outputClaimToHeaders=[MAIL]), BERT.rule(outputPayloadToHeader="x-bert"))
        front = Front(policies=policy_set(rules), session=Session(person(ANNA.issuer, email="a@x")))
        decision = allow(front, check())
        assert told(decision) == {"X-Mail": "a@x"} and {"x-bert", "x_bert"} <= taken(decision)

    def test_M63_a_token_gets_what_the_rule_says_that_verified_it(self, keys_elsewhere: FakeProvider) -> None:
        said = [{"header": "x-any", "claim": "sub"}]
        anybody = {"jwksUri": keys_elsewhere.address("jwks"), "outputClaimToHeaders": said}
        front = Front(policies=policy_set(authentication(anybody, ANNA.rule(outputClaimToHeaders=[MAIL]))))
        theirs = allow(front, bearer(keys_elsewhere.access_token(iss=ANNA.issuer, sub="x", email="forged@x")))
        assert told(theirs) == {"x-any": "x"}
        assert told(allow(front, bearer(ANNA.token(email="a@x")))) == {"X-Mail": "a@x"}
        front.session.identity = person("https://whoever.example", email="w@x")
        assert told(allow(front, check())) == {}

    def test_of_two_rules_that_name_one_header_the_first_sets_it(self) -> None:
        other = ANNA.rule(outputClaimToHeaders=[{"header": "x-MAIL", "claim": "sub"}, {"header": "x-n", "claim": "n"}])
        front = Front(policies=policy_set(authentication(ANNA.rule(outputClaimToHeaders=[MAIL]), other)))
        assert told(allow(front, bearer(ANNA.token(email="a@x", sub="s", n=3)))) == {"X-Mail": "a@x", "x-n": "3"}
        assert told(allow(front, bearer(ANNA.token(sub="s", n=3)))) == {"x-MAIL": "s", "x-n": "3"}


class TestGateways:
    FIELDS: ClassVar = {"outputClaimToHeaders": [MAIL, {"header": "x-n", "claim": "n"}]}

    def made(self, dialect: str, asked: CheckRequest) -> dict[str, str]:
        front = Front(ANNA.rule(**self.FIELDS), session=Session(person(BERT.issuer)))
        style = VERDICTS_ONLY if dialect in ("nginx", "verify") else PASSES_ANSWERS_ON
        reply = allowed(allow(front, asked), style, dialect)
        names = [name.lower() for name, _ in reply.headers]
        assert len(set(names)) == len(names)
        return {name.lower(): value for name, value in reply.headers if name.lower() not in IDENTITY_HEADERS.names}

    def test_envoy_is_told_to_remove(self) -> None:
        said = self.made("envoy", bearer(ANNA.token(email="a@x"), x_n="forged"))
        removed = set(said.pop(REMOVE).split(","))
        assert said == {"x-mail": "a@x"}
        assert {"x-n", "x_n", "x_mail", "authorization"} <= removed and "x-mail" not in removed
        nobody = self.made("envoy", check("/public"))
        assert {"x-mail", "x-n"} <= set(nobody.pop(REMOVE).split(",")) and not nobody

    @pytest.mark.parametrize("dialect", ["traefik", "caddy", "traefik+caddy"])
    def test_traefik_and_caddy_copy_empty_values(self, dialect: str) -> None:
        said = self.made(dialect, bearer(ANNA.token(email="a@x"), x_n="forged"))
        said.pop(REMOVE)
        assert said == {"x-mail": "a@x", "x_mail": "", "x-n": "", "x_n": "", "authorization": ""}
        for asked in (check("/public"), check()):
            said = self.made(dialect, asked)
            assert {said["x-mail"], said["x-n"]} == {""} and "authorization" not in said

    @pytest.mark.parametrize("dialect", ["nginx", "verify"])
    def test_nginx_sets_what_is_there_and_removes_what_is_not(self, dialect: str) -> None:
        assert self.made(dialect, bearer(ANNA.token(email="a@x"), x_n="forged")) == {"x-mail": "a@x"}
        assert self.made(dialect, check("/public")) == {}


NAMES = st.sampled_from(["x-a", "x_a", "X-A", "X_A", "x-b", "x_b", "X-B_c", "x_b-C", "xa"])
CLAIMS = st.dictionaries(st.sampled_from("abc"), st.one_of(st.text(), st.none(), st.lists(st.text()), st.booleans()))


class TestNeverBoth:
    @given(
        rules=st.lists(st.lists(st.tuples(NAMES, st.sampled_from("abc")), max_size=3), min_size=1, max_size=3),
        claims=CLAIMS,
        known=st.booleans(),
        dialect=st.sampled_from(["envoy", "traefik", "caddy"]),
    )
    def test_no_name_is_both_set_and_removed_and_none_is_forgotten(
        self, rules: list[list[tuple[str, str]]], claims: dict[str, Any], known: bool, dialect: str
    ) -> None:
        made = policy_set(authentication(*(
            ANNA.rule(outputClaimToHeaders=[{"header": name, "claim": claim} for name, claim in rule]) for rule in rules
        )))
        given_allow = Allow(person(ANNA.issuer, **claims) if known else None, *IDENTITY_HEADERS.render(None))
        decision = Outputs(Holder(made))(check(), given_allow)
        assert_one_word_for_each_header(decision)
        reply = allowed(decision, PASSES_ANSWERS_ON, dialect)
        headers = {name.lower(): value for name, value in reply.headers}
        assert len(headers) == len(reply.headers)
        removed = headers.pop(REMOVE).split(",")
        for name in (name for rule in rules for name, _ in rule):
            for spelling in {name.lower(), name.lower().replace("-", "_"), name.lower().replace("_", "-")}:
                assert (spelling in removed) != bool(headers.get(spelling))
                assert dialect == "envoy" or spelling in headers
        assert reply.written.status == 200


class TestMemory:
    def test_what_is_made_for_an_identity_is_made_once(self) -> None:
        front = Front(ANNA.rule(outputClaimToHeaders=[MAIL]))
        asked = bearer(ANNA.token(email="a@x"))
        first, second = allow(front, asked), allow(front, asked)
        assert first.variant is second.variant and first.set_headers is second.set_headers
        assert allow(front, check("/public")).variant is allow(front, check("/public")).variant

    def test_another_set_counts_at_once_and_the_old_ones_are_let_go(self) -> None:
        front = Front(session=Session(person(ANNA.issuer, email="a@x")))
        assert allow(front, check()).variant is None
        for number in range(100):
            front.holder.current = policy_set(
                authentication(ANNA.rule(outputClaimToHeaders=[{"header": f"x-{number}", "claim": "email"}]))
            )
            decision = allow(front, check())
            assert told(decision) == {f"x-{number}": "a@x"}
            assert taken(allow(front, check("/public"))) >= {f"x-{number}"}
        identity = front.session.identity
        assert identity is not None and len(identity.made) <= 2
        front.holder.current = policy_set(authentication())
        assert told(allow(front, check())) == {} and taken(allow(front, check())) == set()

    def test_variants_of_one_identity_are_bounded(self) -> None:
        numbers = range(3 * MOST_VARIANTS)
        hosts = {f"h{n}.example": {"namespace": "default", "labels": {"app": f"a{n}"}} for n in numbers}
        resources = [
            authentication(ANNA.rule(outputClaimToHeaders=[{"header": f"x-{n}", "claim": "email"}]), name=f"r{n}",
                           selector={"matchLabels": {"app": f"a{n}"}})
            for n in numbers
        ]  # fmt: skip
        holder = Holder(policy_set(*resources, workloads=hosts))
        outputs, identity = Outputs(holder), person(ANNA.issuer, email="a@x")
        for n in numbers:
            decision = outputs(check(host=f"h{n}.example"), Allow(identity))
            assert dict(decision.set_headers) == {f"x-{n}": "a@x"}
        assert len(identity.made[outputs][1]) <= MOST_VARIANTS

    def test_without_rules_the_allow_is_the_same(self) -> None:
        outputs = Outputs(Holder(policy_set(authentication())))
        given = Allow(person(ANNA.issuer), (("a", "b"),), ("c",))
        assert outputs(check(), given) is given


class TestProblems:
    def problems(self, **fields: Any) -> list[str]:
        made = policy_set(authentication(ANNA.rule(**fields)))
        return [f"{place}: {sentence}" for place, sentence in output_problems(made.jwt_rules, IDENTITY_HEADERS.names)]

    @pytest.mark.parametrize(
        "name", ["kubeflow-userid", "KUBEFLOW-USERID", "kubeflow_userid", "Auth_Method", "kubeflow-groups"]
    )
    def test_no_output_is_an_identity_header_in_any_spelling(self, name: str) -> None:
        sentence = f"{name} is an identity header, which nothing else may set"
        assert self.problems(outputPayloadToHeader=name) == [
            f"policies.yaml:1: spec.jwtRules[0].outputPayloadToHeader: {sentence}"
        ]
        claims = [MAIL, {"header": name, "claim": "sub"}]
        assert self.problems(outputClaimToHeaders=claims) == [
            f"policies.yaml:1: spec.jwtRules[0].outputClaimToHeaders[1].header: {sentence}"
        ]

    @pytest.mark.parametrize("name", ["Host", "content-length", "Content_Length", "Transfer-Encoding", "connection",
                                      "cookie", "Set-Cookie", "Authorization", "X-Forwarded-For", "TE",
                                      "x-envoy-original-path", "x-envoy-auth-headers-to-remove"])
    def test_nor_one_that_gateways_go_by(self, name: str) -> None:
        (problem,) = self.problems(outputPayloadToHeader=name)
        assert problem.endswith(f"{name} is a header that gateways and applications go by, and no policy's to set")

    def test_nor_twice_the_same(self) -> None:
        claims = [MAIL, {"header": "x_mail", "claim": "sub"}]
        (problem,) = self.problems(outputClaimToHeaders=claims)
        assert problem.endswith("outputClaimToHeaders[1].header: x_mail is set by this rule already")

    def test_nor_one_of_more_spellings_than_can_be_taken_off(self) -> None:
        assert self.problems(outputPayloadToHeader="a-b_c-d_e-f") == []
        (problem,) = self.problems(outputPayloadToHeader="a-b_c-d_e-f-g")
        assert problem.endswith("a-b_c-d_e-f-g has more than 5 dashes, and so too many spellings to be taken off")

    def test_everything_else_is_fine(self) -> None:
        assert self.problems(outputPayloadToHeader="x-jwt-payload", outputClaimToHeaders=[MAIL]) == []
        assert self.problems() == []

    def test_names_come_in_all_spellings(self) -> None:
        assert set(output_names([rule(outputPayloadToHeader="X-A", outputClaimToHeaders=[MAIL])])) == {
            "x-a", "x_a", "X_A", *MAIL_NAMES,
        }


@pytest.fixture
def service(make_browser: Callable[..., Browser], provider: FakeProvider, tmp_path: Path) -> Callable[..., Browser]:
    """A browser in front of a service with one rule for its provider; every check is asked on both lanes."""

    def make(rule: dict[str, Any], **changes: str) -> Browser:
        path = tmp_path / "policies.json"
        path.write_text(json.dumps(authentication({"issuer": provider.issuer, **rule})))
        return make_browser(**{"POLICY_PATH": str(path), "KUBERNETES_AUTHN_ENABLED": "false", **changes})

    return make


def asked_with(browser: Browser, token: str, target: str = "/app", **headers: str) -> Answer:
    named = {"Host": "app.example", "Authorization": f"Bearer {token}", **headers}
    return ask(browser.app, "GET", target, port=browser.JUDGE, headers=named)


class TestService:
    OUTPUTS: ClassVar = {"outputClaimToHeaders": [MAIL, {"header": "x-plan", "claim": "plan"}]}

    def test_a_token_and_a_session_of_one_person_are_told_alike(
        self, service: Callable[..., Browser], provider: FakeProvider
    ) -> None:
        browser = service(self.OUTPUTS)
        for _ in range(2):
            answer = asked_with(browser, provider.access_token("whoever"), **{"X-Plan": "forged"})
            assert answer.status == 200 and answer.header("x-mail") == "alice@example.com"
            assert answer.header("kubeflow-userid") == "alice@example.com" and answer.header("Auth-Method") == "header"
            removed = (answer.header(REMOVE) or "").split(",")
            assert {"x-plan", "authorization", "x_mail"} <= set(removed) and "x-mail" not in removed
        browser.log_in()
        for _ in range(2):
            answer = browser.get("/app")
            assert answer.status == 200 and answer.header("x-mail") == "alice@example.com"
            assert answer.header("Auth-Method") == "cookie"
            assert "authorization" not in (answer.header(REMOVE) or "").split(",")

    def test_the_provider_is_asked_for_its_keys_in_one_place(
        self, service: Callable[..., Browser], provider: FakeProvider
    ) -> None:
        browser = service({})
        browser.log_in()
        ready = browser.app.extensions["authservice"].provider
        until(lambda: ready.ready and not ready._fetching.locked())
        asked = len(provider.calls("jwks"))
        assert asked_with(browser, provider.access_token("whoever")).status == 200
        assert len(provider.calls("jwks")) == asked

    def test_bad_tokens_and_wrong_audiences(self, service: Callable[..., Browser], provider: FakeProvider) -> None:
        browser = service({"audiences": ["https://api.example/"]}, AUDIENCES="other")
        assert asked_with(browser, provider.access_token("api.example")).status == 200
        refused = asked_with(browser, provider.access_token("other"))
        assert refused.status == 403 and refused.json["error"] == "invalid_audience"
        refused = asked_with(browser, "bad")
        assert (refused.status, refused.header("WWW-Authenticate")) == (401, 'Bearer error="invalid_token"')
        assert ask(browser.app, "GET", "/", port=browser.JUDGE, headers={"Host": "app.example"}).status == 302

    def test_on_open_paths_and_before_traefik_nobody_can_forge_an_output(
        self, service: Callable[..., Browser], provider: FakeProvider
    ) -> None:
        browser = service(self.OUTPUTS, SKIP_AUTH_URLS="/public", GATEWAY="traefik")
        headers = {"X-Forwarded-Method": "GET", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "app.example",
                   "X-Forwarded-Uri": "/public/x", "X-Mail": "forged"}
        answer = ask(browser.app, "GET", "/authservice/forward-auth", port=browser.JUDGE, headers=headers)
        assert answer.status == 200 and answer.header("x-mail") == "" and answer.header("x-plan") == ""
        known = {**headers, "X-Forwarded-Uri": "/app", "Authorization": f"Bearer {provider.access_token()}"}
        answer = ask(browser.app, "GET", "/authservice/forward-auth", port=browser.JUDGE, headers=known)
        assert answer.header("x-mail") == "alice@example.com" and answer.header("authorization") == ""

    def test_a_clash_with_an_identity_header_keeps_the_service_from_starting(
        self, service: Callable[..., Browser]
    ) -> None:
        with pytest.raises(SettingsError, match="x-me is an identity header"):
            service({"outputPayloadToHeader": "x-me"}, USERID_HEADER="X-Me")

    def test_in_a_dry_run_rules_change_nothing(self, service: Callable[..., Browser], provider: FakeProvider) -> None:
        browser = service(self.OUTPUTS, POLICY_DRY_RUN="true", AUDIENCES="api")
        answer = asked_with(browser, provider.access_token("api"))
        assert answer.status == 200 and not answer.all("x-mail")
        assert "authorization" not in (answer.header(REMOVE) or "").split(",")
        assert asked_with(browser, provider.access_token("whoever")).status == 401

    def test_the_second_check_is_answered_in_memory(
        self, service: Callable[..., Browser], provider: FakeProvider
    ) -> None:
        browser = service(self.OUTPUTS, CACHE_ENABLED="true")
        token = provider.access_token()
        assert asked_with(browser, token).status == 200
        judge = browser.app.extensions["authservice"].judge
        parts = RequestParts("GET", "/app", {"host": "app.example", "authorization": f"Bearer {token}"}, "127.0.0.1")
        assert judge.answer(parts, Reach.MEMORY) is judge.answer(parts, Reach.MEMORY)
