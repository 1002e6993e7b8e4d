"""Headers with claims for the application: what they hold, and that nobody else can send them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authservice.check import Allow
from authservice.errors import IdentityUnusable
from authservice.identity import MAX_HEADER, AuthMethod, Identity, IdentityHeaders, VerifiedClaims
from authservice.sessions.copies import live_session
from authservice.upstream import MOST_HEADERS, UpstreamHeaders, claim_value
from tests.conftest import Answer, Browser, Clock, ask
from tests.provider import FakeProvider
from tests.sample_sessions import a_session

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
    nameless = "x-auth-request-preferred-username"
    assert said == {**ALICE, nameless: "", nameless.replace("-", "_"): ""}
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


def test_the_names_of_outputs_of_policies_are_others(make_browser: Callable[..., Browser], tmp_path: Any) -> None:
    from authservice.errors import SettingsError
    from tests.policy_sets import authentication
    from tests.request_rules import Issuer

    rule = Issuer("anna", 11).rule(outputClaimToHeaders=[{"header": "X_Plan", "claim": "plan"}])
    (tmp_path / "policies.json").write_text(json.dumps(authentication(rule)))
    with pytest.raises(SettingsError, match="X_Plan is an identity header"):
        make_browser(UPSTREAM_HEADERS='{"x-plan": "plan"}', POLICY_PATH=str(tmp_path / "policies.json"))
