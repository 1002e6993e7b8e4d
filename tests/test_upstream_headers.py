"""Headers with claims and tokens for the application: what they hold, and that nobody else can send them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authservice.check import Allow, RequestParts
from authservice.errors import IdentityUnusable, SettingsError
from authservice.fastlane import FastLane
from authservice.identity import (
    MAX_HEADER, AuthMethod, Identity, IdentityHeaders, VerifiedClaims, other_spellings,
)
from authservice.sessions.copies import live_session
from authservice.upstream import MOST_HEADERS, TOKENS, TokenHeaders, Tokens, UpstreamHeaders, claim_value
from tests.conftest import Answer, Browser, Clock, ask
from tests.policy_sets import authentication
from tests.provider import FakeProvider
from tests.request_rules import Issuer
from tests.sample_sessions import a_session
from tests.waiting import until

REMOVE = "x-envoy-auth-headers-to-remove"
PRESET = ("X-Auth-Request-User", "X-Auth-Request-Email", "X-Auth-Request-Preferred-Username", "X-Auth-Request-Groups")
ALICE = {
    "x-auth-request-user": "248289761001",
    "x-auth-request-email": "alice@example.com",
    "x-auth-request-groups": "admins,dev",
}
OURS = ("kubeflow-userid", "kubeflow-groups", "auth-method")


def person(user_id: str = "ann", having: tuple[str, ...] = (), **claims: Any) -> Identity:
    return Identity(user_id, having, VerifiedClaims(claims), AuthMethod.COOKIE, "https://idp.example")


def told(text: str, identity: Identity) -> dict[str, str]:
    return dict(UpstreamHeaders.parse(text).values(identity))


def further(answer: Answer) -> dict[str, str]:
    """What an answer sets besides the identity headers."""
    names = [name.lower() for name, _ in answer.headers]
    assert len(set(names)) == len(names)
    return {
        name.lower(): value for name, value in answer.headers if name.lower() not in (*OURS, REMOVE, "content-length")
    }


def removed(answer: Answer) -> set[str]:
    return set((answer.header(REMOVE) or "").split(","))


def bearing(browser: Browser, token: str, **headers: str) -> Answer:
    named = {"Host": browser.host, "Authorization": f"Bearer {token}", **headers}
    return ask(browser.app, "GET", "/app", port=browser.JUDGE, headers=named)


# --- values ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "header"),
    [
        ("a b", "a b"),
        (" a%\r\nX: y é", "%20a%25%0D%0AX: y %C3%A9"),
        ("a,b", "a,b"),
        (["a", "b,c", "", None, 3, True], "a,b%2Cc,3,true"),
        (42, "42"),
        (1.5, "1.5"),
        (2**70, str(2**70)),
        (False, "false"),
        (0, "0"),
        ({"é": [1, "x"]}, '{"%C3%A9":[1,"x"]}'),
        (["a", {"b": None}], '["a",{"b":null}]'),
        (None, ""),
        ("", ""),
        ([], ""),
        ([""], ""),
    ],
)
def test_a_claim_as_a_header(value: Any, header: str) -> None:
    assert claim_value(value) == header


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("aé ,%"), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(JSON)
def test_whatever_the_claim_it_is_one_line_of_printable_ascii(value: Any) -> None:
    header = claim_value(value)
    assert re.fullmatch(r"(?:[!-~](?:[ -~]*[!-~])?)?", header)
    if isinstance(value, str):
        assert unquote(header, errors="strict") == value
    elif isinstance(value, dict):
        assert json.loads(unquote(header, errors="strict")) == value


def test_names_and_dotted_paths_as_for_the_user_id() -> None:
    text = '{"X-Roles": "realm_access.roles", "X-Url": "https://x.example/plan", "X-None": "a.b.c"}'
    claims: dict[str, Any] = {"realm_access": {"roles": ["r", "s"]}, "https://x.example/plan": "gold", "a": {"b": "x"}}
    assert told(text, person(**claims)) == {"X-Roles": "r,s", "X-Url": "gold"}


def test_the_names_of_oauth2_proxy() -> None:
    assert UpstreamHeaders.parse(" oauth2-proxy ").names == PRESET
    identity = person("a@x", ("g", "h,i"), sub="7", email="a@x", preferred_username="ann")
    assert tuple(told("oauth2-proxy", identity).values()) == ("7", "a@x", "ann", "g,h%2Ci")
    # In a cluster nobody has a subject.
    nightly = person("system:serviceaccount:jobs:nightly", username="system:serviceaccount:jobs:nightly")
    assert told("oauth2-proxy", nightly) == {"X-Auth-Request-User": "system:serviceaccount:jobs:nightly"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("oauth2", "not JSON"),
        ("{", "not JSON"),
        ("[]", "JSON object"),
        ('"oauth2-proxy"', "JSON object"),
        ("null", "JSON object"),
        ('{"a b": "c"}', "header 1: not a header name"),
        ('{"": "c"}', "header 1: not a header name"),
        ('{"X-A": "c", "x_a": "d"}', "header 2: its name is there already"),
        ('{"X-A": "c", "X-A": "d"}', "header 2: its name is there already"),
        ('{"X-A": ""}', "header 1: its claim"),
        ('{"X-A": ["b"]}', "header 1: its claim"),
        ('{"X-A": {"b": "c"}}', "header 1: its claim"),
        (json.dumps({f"X-{n}": "c" for n in range(MOST_HEADERS + 1)}), "more than 32 headers"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_setting(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        UpstreamHeaders.parse(text)


def test_nothing_and_all_problems_at_once() -> None:
    assert UpstreamHeaders.parse("") == UpstreamHeaders() == UpstreamHeaders.parse("{}")
    with pytest.raises(ValueError) as caught:
        UpstreamHeaders.parse('{"a b": "c", "X": 1}')
    assert len(str(caught.value).splitlines()) == 2


# --- with the identity headers ---------------------------------------------------------------


def headers_with(text: str) -> IdentityHeaders:
    return IdentityHeaders("kubeflow-userid", "kubeflow-groups", "Auth-Method", further=[UpstreamHeaders.parse(text)])


def test_what_has_no_value_is_removed_in_every_spelling() -> None:
    shown = headers_with('{"X-Name": "name", "X-Plan": "plan"}')
    headers, gone = shown.render(person(name="Ann"))
    assert headers[3:] == (("X-Name", "Ann"),)
    assert {"x-plan", "x_plan", "X_PLAN", "x_name", "X_NAME"} <= set(gone) and "x-name" not in gone
    nobody, all_gone = shown.render(None)
    assert nobody == () and {"x-name", "x-plan", "x_name", "kubeflow-userid"} <= set(all_gone) == set(shown.names)


def test_without_the_setting_nothing_is_different() -> None:
    plain, none = IdentityHeaders("a-b", "c", "d"), IdentityHeaders("a-b", "c", "d", further=[UpstreamHeaders()])
    for identity in (None, person(having=("x",))):
        assert plain.render(identity) == none.render(identity)


def test_a_name_that_is_there_already_is_refused() -> None:
    with pytest.raises(ValueError):
        headers_with('{"KUBEFLOW-userid": "sub"}')


@pytest.mark.parametrize("value", ["x" * (MAX_HEADER + 1), ["é" * MAX_HEADER], {"a": "\n" * MAX_HEADER}, "\ud800"])
def test_what_fits_in_no_header_is_refused(value: Any) -> None:
    with pytest.raises(IdentityUnusable):
        headers_with('{"X-A": "a"}').render(person(a=value))


def test_emptied_are_those_without_any_value() -> None:
    allow = Allow(person(), (("X-Name", "Ann"),), ("x_name", "X_NAME", "x-plan", "x_plan", "X_PLAN"))
    assert allow.unset() == ("x-plan", "x_plan", "X_PLAN")
    assert Allow(None, (), ("x-plan", "x_plan")).unset() == ("x-plan", "x_plan")


def test_a_sessions_claims_are_not_kept_as_objects_for_it(clock: Clock) -> None:
    live = live_session(a_session(clock), "key")
    assert dict(headers_with('{"X-R": "nested.roles"}').render(live.by_cookie)[0])["X-R"] == "x,1.5,true"
    with pytest.raises(AttributeError):
        _ = live.by_cookie.claims._claims


# --- the service -----------------------------------------------------------------------------


def test_a_person_and_nobody(make_browser: Callable[..., Browser]) -> None:
    browser = make_browser(UPSTREAM_HEADERS="oauth2-proxy", SKIP_AUTH_URLS="/public", ALLOW_CORS_PREFLIGHT="true")
    forged: Any = {name.replace("-", "_"): "forged" for name in PRESET}
    preflight: Any = {"Origin": "https://x.example", "Access_Control_Request_Method": "PUT"}
    for answer in (browser.get("/public", **forged), browser.send("OPTIONS", "/x", **forged, **preflight)):
        assert answer.status == 200 and further(answer) == {}
        for name in map(str.lower, PRESET):
            assert {name, name.replace("-", "_"), name.replace("-", "_").upper()} <= removed(answer)
    browser.log_in()
    answer = browser.get("/app", **forged)
    assert answer.status == 200 and further(answer) == ALICE
    assert "x-auth-request-preferred-username" in removed(answer) and "x_auth_request_email" in removed(answer)
    assert not removed(answer) & set(ALICE)
    assert further(browser.get("/public", **forged)) == {}


def test_programs(make_browser: Callable[..., Browser], provider: FakeProvider) -> None:
    browser = make_browser(UPSTREAM_HEADERS='{"X-Client": "client_id", "X-Name": "name"}', AUDIENCES="api")
    answer = bearing(browser, provider.access_token("api", name=None), **{"X-Name": "forged"})
    assert answer.status == 200 and further(answer) == {"x-client": "ci"}
    assert {"x-name", "x_name", "x_client"} <= removed(answer)


@pytest.mark.parametrize("gateway", ["traefik", "caddy"])
def test_traefik_and_caddy_get_empty_values_for_what_is_not_set(
    make_browser: Callable[..., Browser], gateway: str
) -> None:
    browser = make_browser(UPSTREAM_HEADERS="oauth2-proxy", GATEWAY=gateway, SKIP_AUTH_URLS="/public")

    def asked(target: str) -> Answer:
        forwarded = {
            "X_Forwarded_Method": "GET", "X_Forwarded_Proto": "https", "X_Forwarded_Host": "app.example",
            "X_Forwarded_Uri": target,
        }  # fmt: skip
        return browser.get("/authservice/forward-auth", **forwarded)

    sent = asked("/app")
    browser.get(browser.at_provider(sent))
    said = further(asked("/app"))
    nameless = {"x-auth-request-preferred-username"}
    nameless.update(map(str.lower, other_spellings(nameless)))
    assert len(nameless) == 16 and said == {**ALICE, **dict.fromkeys(nameless, "")}
    nobody = further(asked("/public"))
    assert {nobody[name.lower()] for name in PRESET} == {""}


def test_nginx_sets_what_is_there(make_browser: Callable[..., Browser]) -> None:
    browser = make_browser(UPSTREAM_HEADERS="oauth2-proxy", GATEWAY="envoy,nginx")
    browser.log_in()
    original = {"X_Original_URI": "/app", "X_Original_Method": "GET"}
    answer = browser.get("/authservice/verify", **original)
    assert answer.status == 204 and further(answer) == ALICE


def test_an_identity_that_no_header_can_hold_is_refused_at_login(
    make_browser: Callable[..., Browser], provider: FakeProvider
) -> None:
    browser = make_browser(UPSTREAM_HEADERS='{"X-Name": "name"}')
    provider.claims["name"] = "x" * (MAX_HEADER + 1)
    assert browser.log_in().status == 403
    assert browser.session is None


# --- settings --------------------------------------------------------------------------------


def test_the_names_of_outputs_of_policies_are_others(make_browser: Callable[..., Browser], tmp_path: Path) -> None:
    rule = Issuer("anna", 11).rule(outputClaimToHeaders=[{"header": "X_Plan", "claim": "plan"}])
    (tmp_path / "policies.json").write_text(json.dumps(authentication(rule)))
    with pytest.raises(SettingsError, match="X_Plan is an identity header"):
        make_browser(UPSTREAM_HEADERS='{"x-plan": "plan"}', POLICY_PATH=str(tmp_path / "policies.json"))


# --- tokens ----------------------------------------------------------------------------------

BOTH = {"UPSTREAM_ACCESS_TOKEN_HEADER": "X-Access-Token", "UPSTREAM_ID_TOKEN_HEADER": "Authorization"}
NAMED = {"x-access-token", "authorization"}


def in_memory(live: Any) -> list[Any]:
    return [live.by_cookie.made.get(TOKENS), live.by_header.made.get(TOKENS)]


def test_only_the_tokens_that_are_told_are_kept(clock: Clock) -> None:
    session = a_session(clock)
    for headers, kept in (
        (TokenHeaders("a", "i"), Tokens(session.access_token, session.id_token)),
        (TokenHeaders("a", ""), Tokens(session.access_token, "")),
        (TokenHeaders("", "i"), Tokens("", session.id_token)),
        (TokenHeaders(), None),
    ):
        live = live_session(session, "key", keep_tokens=headers.keep_those_of)
        assert in_memory(live) == [kept, kept]
        assert session.access_token not in repr(live.by_cookie) + repr(in_memory(live))
    assert in_memory(live_session(session, "key")) == [None, None]


def test_a_token_is_told_by_itself_and_behind_bearer_in_authorization() -> None:
    identity = person()
    TokenHeaders("x-a", "AUTHORIZATION").keep(identity, access="a", id="i")
    assert dict(TokenHeaders("x-a", "AUTHORIZATION").values(identity)) == {"x-a": "a", "AUTHORIZATION": "Bearer i"}
    assert dict(TokenHeaders("authorization", "").values(identity)) == {"authorization": "Bearer a"}
    assert dict(TokenHeaders("x-a", "x-i").values(person())) == {}


@pytest.mark.parametrize("token", ["a b", "a\r\nb", "é", "\x00", "x" * (MAX_HEADER + 1)])
def test_what_is_no_token_or_fits_in_no_header_is_refused(token: str) -> None:
    identity = person()
    shown = IdentityHeaders("u", "", "", further=[TokenHeaders("x-a", "")])
    TokenHeaders("x-a", "").keep(identity, access=token)
    with pytest.raises(IdentityUnusable) as caught:
        shown.render(identity)
    assert token not in str(caught.value)


def latest_id_token(browser: Browser) -> str:
    """Of the session, as the record has it."""
    record = browser.app.extensions["authservice"].sessions.record(browser.session)
    return str(record.session.id_token)


def latest_access_token(browser: Browser) -> str:
    record = browser.app.extensions["authservice"].sessions.record(browser.session)
    return str(record.session.access_token)


@pytest.mark.parametrize("cache", ["20000", "0"])
def test_tokens_of_a_session_and_of_nobody(make_browser: Callable[..., Browser], cache: str) -> None:
    browser = make_browser(**BOTH, SKIP_AUTH_URLS="/public", SESSION_CACHE_SIZE=cache)
    forged: Any = {"Authorization": "Basic Zm9yZ2Vk", "X_Access_Token": "forged"}
    assert NAMED <= removed(browser.get("/public", **forged))
    browser.log_in()
    for _ in range(2):
        said = further(browser.get("/app", **forged))
        assert said == {
            "x-access-token": latest_access_token(browser),
            "authorization": "Bearer " + latest_id_token(browser),
        }
    assert further(browser.get("/public", **forged)) == {}


def test_the_fast_lane_stays(make_browser: Callable[..., Browser], provider: FakeProvider) -> None:
    browser = make_browser(**BOTH, UPSTREAM_HEADERS="oauth2-proxy", AUDIENCES="api", SKIP_AUTH_URLS="/public")
    browser.log_in()
    browser.get("/app")  # makes the copy
    lane = FastLane(browser.app.extensions["authservice"].judge)
    cookie = {"cookie": f"authservice_session={browser.session}"}
    bearer = {"authorization": "Bearer " + provider.access_token("api")}
    for target, sent in (("/app", cookie), ("/app", bearer), ("/public", {})):
        told = lane.ask(RequestParts("GET", target, {"host": "app.example", **sent}, "127.0.0.1"))
        assert told is not None and told.status == 200, target


def test_a_sessions_value_as_bearer_never_goes_further(make_browser: Callable[..., Browser]) -> None:
    browser = make_browser(UPSTREAM_ACCESS_TOKEN_HEADER="Authorization")
    browser.log_in()
    answer = bearing(browser, browser.session or "")
    assert answer.status == 200 and further(answer) == {"authorization": "Bearer " + latest_access_token(browser)}


def test_refreshed_tokens_follow(make_browser: Callable[..., Browser], clock: Clock) -> None:
    browser = make_browser(**BOTH)
    browser.log_in()
    first = further(browser.get("/app"))
    clock.advance(seconds=3590)
    until(lambda: further(browser.get("/app"))["x-access-token"] != first["x-access-token"])
    assert further(browser.get("/app")) == {
        "x-access-token": latest_access_token(browser),
        "authorization": "Bearer " + latest_id_token(browser),
    }


def test_a_provider_without_a_token_has_none_to_tell(
    make_browser: Callable[..., Browser], provider: FakeProvider
) -> None:
    provider.misbehave("token_answer", {"access_token": "not a token"})
    browser = make_browser(**BOTH)
    assert browser.log_in().status in (403, 502)
    assert browser.session is None
    provider.behave("token_answer")
    assert make_browser(**BOTH).log_in().status == 302


def test_a_programs_token_counts_by_its_kind(make_browser: Callable[..., Browser], provider: FakeProvider) -> None:
    browser = make_browser(**BOTH, AUDIENCES="api", CACHE_ENABLED="true")
    provider.id_token_claims["email"] = "alice@example.com"
    browser.log_in()
    id_token, access = latest_id_token(browser), provider.access_token("api")
    visitor = make_browser(browser.app)
    for _ in range(2):
        answer = bearing(visitor, access, **{"X-Access-Token": "forged"})
        assert answer.status == 200 and further(answer) == {"x-access-token": access}
        assert "authorization" in removed(answer)  # what stands in it is an ID token, or nothing
        answer = bearing(visitor, id_token, **{"X-Access-Token": "forged"})
        assert answer.status == 200 and further(answer) == {"authorization": f"Bearer {id_token}"}
        assert {"x-access-token", "x_access_token"} <= removed(answer)


def test_opaque_tokens_are_access_tokens(make_browser: Callable[..., Browser], provider: FakeProvider) -> None:
    browser = make_browser(UPSTREAM_ACCESS_TOKEN_HEADER="Authorization", ACCESS_TOKEN_AUTHN="opaque")
    token = provider.opaque_token()
    answer = bearing(browser, token)
    assert answer.status == 200 and further(answer) == {"authorization": f"Bearer {token}"}


@pytest.mark.parametrize("forwards", [False, True])
def test_a_token_that_a_rule_verified_is_told_although_the_rule_takes_its_header_away(
    make_browser: Callable[..., Browser], tmp_path: Path, forwards: bool
) -> None:
    anna = Issuer("anna", 11)
    policies = tmp_path / "policies.json"
    policies.write_text(json.dumps(authentication(anna.rule(forwardOriginalToken=forwards))))
    browser = make_browser(POLICY_PATH=str(policies), UPSTREAM_ACCESS_TOKEN_HEADER="X-Access-Token")
    access, id_token = anna.token(email="a@x"), anna.token(email="a@x", nonce="n")
    answer = bearing(browser, access)
    assert answer.status == 200 and further(answer) == {"x-access-token": access}
    assert ("authorization" in removed(answer)) is not forwards
    assert further(bearing(browser, id_token)) == {}
    browser = make_browser(POLICY_PATH=str(policies), UPSTREAM_ID_TOKEN_HEADER="Authorization")
    assert further(bearing(browser, id_token)) == {"authorization": f"Bearer {id_token}"}
    assert "authorization" in removed(bearing(browser, access))


def test_without_the_settings_no_token_is_kept(make_browser: Callable[..., Browser], provider: FakeProvider) -> None:
    browser = make_browser(AUDIENCES="api")
    browser.log_in()
    browser.get("/app")
    live = browser.app.extensions["authservice"].sessions.quick(browser.session)
    assert live is not None and in_memory(live) == [None, None]


@pytest.mark.parametrize("gateway", ["traefik", "caddy"])
def test_a_token_that_there_is_none_of_is_sent_empty_to_traefik_and_caddy(
    make_browser: Callable[..., Browser], gateway: str
) -> None:
    browser = make_browser(**BOTH, GATEWAY=gateway, SKIP_AUTH_URLS="/public")
    forwarded: Any = {
        "X_Forwarded_Method": "GET", "X_Forwarded_Proto": "https", "X_Forwarded_Host": "app.example",
        "X_Forwarded_Uri": "/public",
    }  # fmt: skip
    said = further(browser.get("/authservice/forward-auth", **forwarded))
    assert said["authorization"] == said["x-access-token"] == ""
