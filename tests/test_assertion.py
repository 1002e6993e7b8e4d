"""Signed assertions: what they say, who can verify them, and that all replicas say the same."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from authservice.assertion.allows import LIFE, MOST_HOSTS, STEP, Assertions
from authservice.assertion.header import AssertionHeader
from authservice.assertion.keys import PERIOD, Keys
from authservice.check import Allow, CheckRequest, Variant
from authservice.errors import IdentityUnusable
from authservice.identity import AuthMethod, Identity, IdentityHeaders, Transformers, VerifiedClaims
from authservice.sessions.seal import Keyring
from tests.conftest import Answer, Browser, Clock, ask
from tests.policy_envoy import JudgingEnvoy
from tests.policy_sets import authentication, policy
from tests.provider import FakeProvider
from tests.request_rules import Front
from tests.request_rules import check as request

SECRET = "a-key-of-the-service-that-nobody-knows"
NEW = "another-key-of-the-service-for-later"
HEADER = "X-Auth-Assertion"
ISSUER = "https://app.example/authservice"
SET = {"UPSTREAM_ASSERTION_HEADER": HEADER, "SECRET_KEYS": SECRET,
       "REDIRECT_URL": "https://app.example/authservice/oidc/callback"}  # fmt: skip
REMOVE = "x-envoy-auth-headers-to-remove"
MOMENT = datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


def keys(*secrets: str) -> Keys:
    return Keys(Keyring([secret.encode() for secret in secrets or (SECRET,)]).derive)


def person(user_id: str = "ann@example.com", *groups: str, expires: datetime | None = None, **claims: Any) -> Identity:
    return Identity(user_id, groups, VerifiedClaims(claims), AuthMethod.COOKIE, "https://idp.example", expires)


def check(host: str = "app.example") -> CheckRequest:
    return CheckRequest("GET", "https", host, "/", "/", {}, None, "envoy")


class Made:
    """Assertions with a clock that stands still, and how many were signed."""

    def __init__(self, audience: str = "", headers: IdentityHeaders | None = None, signing: Keys | None = None) -> None:
        self.moment = MOMENT
        further = [AssertionHeader(HEADER)]
        self.headers = headers or IdentityHeaders("kubeflow-userid", "groups", "", further=further)
        self.keys = signing or keys()
        self.assertions = Assertions(
            HEADER, self.keys, issuer=ISSUER, audience=audience, told_user_id=self.headers.told_user_id,
            now=lambda: self.moment,
        )

    def __call__(self, identity: Identity | None, host: str = "app.example", variant: Variant | None = None) -> Allow:
        set_headers, removed = self.headers.render(identity)
        return self.assertions(check(host), Allow(identity, set_headers, removed, variant=variant))

    def claims(self, identity: Identity, host: str = "app.example") -> dict[str, Any]:
        token = dict(self(identity, host).set_headers)[HEADER]
        return verified(token, self.keys.published(int(self.moment.timestamp())))


def verified(token: str, published: bytes) -> dict[str, Any]:
    """What PyJWT makes of an assertion; times are not looked at."""
    key = jwt.PyJWKSet.from_json(published.decode())[jwt.get_unverified_header(token)["kid"]]
    claims: dict[str, Any] = jwt.decode(
        token, key, algorithms=["ES256"], options={"verify_exp": False, "verify_iat": False, "verify_aud": False}
    )
    return claims


def names(published: bytes) -> list[str]:
    return [key["kid"] for key in json.loads(published)["keys"]]


# --- keys ------------------------------------------------------------------------------------


def test_a_key_is_published_a_period_before_it_signs_and_a_period_after() -> None:
    ours, start = keys(), 20_000 * PERIOD
    signs = [ours.signing(start + period * PERIOD).public["kid"] for period in range(4)]
    assert len(set(signs)) == 4
    for moment in (start + PERIOD, start + 2 * PERIOD - 1):
        assert set(names(ours.published(moment))) == set(signs[:3])
        assert ours.signing(moment).public["kid"] == signs[1]
    # A verifier that keeps the set for a period still knows what signs at that period's end.
    assert signs[2] in names(ours.published(start + PERIOD))


def test_all_replicas_sign_and_publish_the_same_and_nobody_else_does() -> None:
    one, other, stranger = keys(), keys(), keys(NEW)
    moment = 20_000 * PERIOD + 7
    assert one.published(moment) == other.published(moment)
    assert one.signing(moment).signed({"a": 1}) == other.signing(moment).signed({"a": 1})
    assert not set(names(one.published(moment))) & set(names(stranger.published(moment)))


def test_all_of_the_services_keys_are_published_and_the_first_signs() -> None:
    moment = 20_000 * PERIOD
    before, with_new_behind, with_new_in_front = keys(SECRET), keys(SECRET, NEW), keys(NEW, SECRET)
    assert with_new_behind.signing(moment).public == before.signing(moment).public
    assert with_new_in_front.signing(moment).public["kid"] in names(with_new_behind.published(moment))
    assert before.signing(moment).public["kid"] in names(with_new_in_front.published(moment))
    assert len(set(names(with_new_behind.published(moment)))) == 6


def test_only_public_parts_are_published_under_their_thumbprints() -> None:
    for key in json.loads(keys().published(0))["keys"]:
        assert set(key) == {"kty", "crv", "x", "y", "alg", "use", "kid"}
        told = {name: key[name] for name in ("crv", "kty", "x", "y")}
        digest = hashlib.sha256(json.dumps(told, separators=(",", ":")).encode()).digest()
        assert key["kid"] == base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    assert "private" not in repr(keys().signing(0)).lower()


def test_few_keys_are_remembered() -> None:
    ours = keys()
    for period in range(50):
        ours.published(period * PERIOD)
    assert len(ours._known) <= 6


# --- what an assertion says ------------------------------------------------------------------


def test_who_is_calling_whom_and_until_when() -> None:
    made = Made()
    claims = made.claims(person("ann@example.com", "admins", "dev,ünï", email="ann@example.com"))
    begun = claims.pop("iat")
    assert 0 <= MOMENT.timestamp() - begun < STEP
    assert claims == {
        "iss": ISSUER, "sub": "ann@example.com", "aud": "app.example", "exp": begun + LIFE,
        "groups": ["admins", "dev,ünï"], "email": "ann@example.com",
    }  # fmt: skip
    assert made.claims(person("ann"), host="other.example:8443")["aud"] == "other.example:8443"
    assert Made(audience="apps").claims(person("ann"))["aud"] == "apps"


@pytest.mark.parametrize("email", [None, "", 7, ["a@x"]])
def test_no_address_is_said_where_there_is_none(email: Any) -> None:
    assert "email" not in Made().claims(person(email=email))


def test_the_user_id_is_the_one_that_the_application_knows() -> None:
    rules = Transformers.parse('[{"matches": "@example[.]com$", "replaces": ""}]')
    shown = IdentityHeaders("", "groups", "", "oidc:", rules, further=[AssertionHeader(HEADER)])
    assert Made(headers=shown).claims(person("änn@example.com"))["sub"] == "oidc:änn"
    with pytest.raises(IdentityUnusable):
        Made(headers=shown)(person("@example.com"))


def test_it_ends_with_the_identity() -> None:
    ends = MOMENT + timedelta(seconds=20)
    assert Made().claims(person(expires=ends))["exp"] == int(ends.timestamp())
    late = Made().claims(person(expires=MOMENT + timedelta(days=1)))
    assert late["exp"] - late["iat"] == LIFE


@pytest.mark.parametrize("host", ["", "x" * 300])
def test_none_for_nobody_and_none_for_nowhere(host: str) -> None:
    nobodys = Made()(None)
    assert not nobodys.set_headers and HEADER.lower() in nobodys.remove_headers and nobodys.variant is None
    nowhere = Made()(person(), host)
    assert HEADER not in dict(nowhere.set_headers) and HEADER.lower() in nowhere.remove_headers
    assert HEADER in dict(Made(audience="apps")(person(), host).set_headers)


def test_what_fits_in_no_header_is_refused() -> None:
    with pytest.raises(IdentityUnusable):
        Made()(person("ann", *(f"group-{number}-{'x' * 100}" for number in range(110))))
    with pytest.raises(IdentityUnusable):
        Made()(person("ann", email="\ud800"))


def test_it_is_set_and_not_removed_and_its_other_spellings_are() -> None:
    allow = Made()(person())
    assert [name for name, _ in allow.set_headers].count(HEADER) == 1
    assert HEADER.lower() not in allow.remove_headers
    assert {"x_auth_assertion", "X_AUTH_ASSERTION"} <= set(allow.remove_headers)
    assert allow.variant is not None and allow.variant.emptied == ()
    # What policies left to be emptied is emptied still.
    before = Variant(("x-plan", HEADER.lower(), "x_auth_assertion"))
    after = Made()(person(), variant=before)
    assert after.variant is not before and after.variant is not None and after.variant.emptied == ("x-plan",)


# --- how often one is signed -----------------------------------------------------------------


def test_one_for_each_identity_host_and_step() -> None:
    made, ann = Made(), person("ann")
    made.moment = datetime.fromtimestamp(int(MOMENT.timestamp()) // STEP * STEP, timezone.utc)
    first = made(ann)
    made.moment += timedelta(seconds=STEP - 0.001)
    again = made(ann)
    assert again.variant is first.variant and again.set_headers is first.set_headers
    assert made(ann, "other.example").set_headers != first.set_headers
    made.moment += timedelta(seconds=0.001)
    assert made(ann).set_headers != first.set_headers


def test_few_hosts_are_remembered() -> None:
    made, ann = Made(), person("ann")
    for number in range(3 * MOST_HOSTS):
        made(ann, f"{number}.example")
    assert len(ann.made[made.assertions][1]) <= MOST_HOSTS


@given(st.integers(0, 4_000_000_000), st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40))
def test_whatever_the_moment_and_name_it_verifies_with_what_is_published(moment: int, name: str) -> None:
    made = Made(signing=_SHARED)
    made.moment = datetime.fromtimestamp(moment, timezone.utc)
    claims = made.claims(person(name, name))
    assert claims["sub"] == name and claims["groups"] == [name]
    assert claims["iat"] <= moment < claims["iat"] + STEP


_SHARED = keys()


# --- the service -----------------------------------------------------------------------------


def assertion(answer: Answer) -> str:
    return answer.header(HEADER) or ""


def removed(answer: Answer) -> set[str]:
    return set((answer.header(REMOVE) or "").split(","))


def published(browser: Browser) -> bytes:
    answer = browser.get("/authservice/jwks.json", port=Browser.SITE)
    assert answer.status == 200 and answer.header("Content-Type") == "application/json"
    assert answer.header("Cache-Control") == "public, max-age=600" and not answer.all("Set-Cookie")
    return answer.body


def test_a_person_a_program_and_nobody(make_browser: Callable[..., Browser], provider: FakeProvider) -> None:
    browser = make_browser(**SET, SKIP_AUTH_URLS="/public", AUDIENCES="api")
    forged: Any = {"X_Auth_Assertion": "forged"}
    nobody = browser.get("/public", **forged)
    assert nobody.status == 200 and assertion(nobody) == ""
    assert {"x-auth-assertion", "x_auth_assertion", "X_AUTH_ASSERTION"} <= removed(nobody)
    browser.log_in()
    answer = browser.get("/app", **forged)
    assert answer.status == 200 and not answer.all("Set-Cookie") and "x-auth-assertion" not in removed(answer)
    known = jwt.PyJWKSet.from_json(published(browser).decode())
    key = known[jwt.get_unverified_header(assertion(answer))["kid"]]
    claims = jwt.decode(assertion(answer), key, algorithms=["ES256"], audience="app.example", issuer=ISSUER)
    assert (claims["sub"], claims["email"]) == ("alice@example.com", "alice@example.com")
    assert claims["groups"] == ["admins", "dev"]
    assert assertion(browser.get("/elsewhere")) == assertion(answer)
    token = provider.access_token("api")
    program = ask(browser.app, "GET", "/app", port=Browser.JUDGE,
                  headers={"Host": "app.example", "Authorization": f"Bearer {token}"})  # fmt: skip
    told = program.header("kubeflow-userid")
    assert program.status == 200 and verified(assertion(program), published(browser))["sub"] == told


def test_it_is_made_anew_while_a_session_goes_on(make_browser: Callable[..., Browser], clock: Clock) -> None:
    browser = make_browser(**SET)
    browser.log_in()
    first = assertion(browser.get("/app"))
    clock.advance(seconds=STEP + 1)
    second = assertion(browser.get("/app"))
    assert second != first
    assert verified(second, published(browser))["exp"] > verified(first, published(browser))["exp"]


def test_two_replicas_say_the_same(
    make_app: Callable[..., Any], make_browser: Callable[..., Browser], clock: Clock
) -> None:
    browser = make_browser(**SET)
    browser.log_in()
    other = Browser(make_app(**SET), browser.provider, jar=browser.jar)
    with clock.held():
        assert assertion(browser.get("/app")) == assertion(other.get("/app")) != ""
        assert published(browser) == published(other)


def test_no_client_chooses_whom_it_is_for(make_browser: Callable[..., Browser]) -> None:
    """A page may send what it likes to its own host, and its server sees the answer."""

    def audience(browser: Browser, **headers: Any) -> str | None:
        answer = browser.get("/oauth2/auth", **headers)
        assert answer.status == 202 and answer.header("kubeflow-userid") == "alice@example.com"
        return verified(assertion(answer), published(browser))["aud"] if assertion(answer) else None

    compat = make_browser(**SET, OAUTH2_PROXY_COMPAT="true", GATEWAY="envoy,nginx")
    compat.log_in()
    other: Any = {"X_Original_URL": "https://other.example/app", "X_Original_Method": "GET"}
    told: Any = {"X_Forwarded_Uri": "/app"}
    assert audience(compat) == audience(compat, **told) == audience(compat, **told, **other) == "app.example"
    assert audience(compat, **other) is None
    assert compat.get("/authservice/verify", **told, **other).status == 403

    named = make_browser(**SET, OAUTH2_PROXY_COMPAT="true", UPSTREAM_ASSERTION_AUDIENCE="us")
    named.log_in()
    assert audience(named, **other) == "us"


@pytest.mark.parametrize("gateway", ["traefik", "caddy"])
def test_traefik_and_caddy_get_an_empty_one_for_nobody(make_browser: Callable[..., Browser], gateway: str) -> None:
    browser = make_browser(**SET, GATEWAY=gateway, SKIP_AUTH_URLS="/public")

    def asked(target: str) -> Answer:
        forwarded = {
            "X_Forwarded_Method": "GET", "X_Forwarded_Proto": "https", "X_Forwarded_Host": "app.example",
            "X_Forwarded_Uri": target,
        }  # fmt: skip
        return browser.get("/authservice/forward-auth", **forwarded)

    browser.get(browser.at_provider(asked("/app")))
    assert verified(assertion(asked("/app")), published(browser))["aud"] == "app.example"
    assert asked("/public").all(HEADER) == [""]


def test_with_outputs_of_policies(make_browser: Callable[..., Browser], provider: FakeProvider, tmp_path: Path) -> None:
    tells = {"issuer": provider.issuer, "outputClaimToHeaders": [{"header": "x-mail", "claim": "email"}]}
    document = authentication(tells)
    (tmp_path / "policies.json").write_text(json.dumps(document))
    browser = make_browser(**SET, POLICY_PATH=str(tmp_path / "policies.json"))
    browser.log_in()
    answer = browser.get("/app")
    assert answer.header("x-mail") == "alice@example.com"
    assert verified(assertion(answer), published(browser))["sub"] == "alice@example.com"
    assert not removed(answer) & {"x-mail", "x-auth-assertion"}


def test_the_key_set_takes_get_and_head_only_and_is_not_there_without_the_setting(
    make_browser: Callable[..., Browser],
) -> None:
    browser = make_browser(**SET)
    assert browser.send("HEAD", "/authservice/jwks.json", port=Browser.SITE).status == 200
    refused = browser.send("POST", "/authservice/jwks.json", port=Browser.SITE)
    assert refused.status == 405 and refused.header("Allow") == "GET, HEAD"
    assert make_browser().get("/authservice/jwks.json", port=Browser.SITE).status == 404


# --- others that verify it -------------------------------------------------------------------


def rule(made: Made) -> dict[str, Any]:
    """What Istio's RequestAuthentication says of these assertions."""
    return {
        "issuer": ISSUER,
        "audiences": ["app.example"],
        "jwks": made.keys.published(int(made.moment.timestamp())).decode(),
        "fromHeaders": [{"name": HEADER}],
    }


def tokens(made: Made) -> tuple[str, dict[str, str]]:
    """A good one, and some that are not."""
    good = dict(made(person("ann@example.com", "admins")).set_headers)[HEADER]
    head, claims, signature = good.split(".")
    said = json.loads(base64.urlsafe_b64decode(claims + "=="))
    other = base64.urlsafe_b64encode(json.dumps({**said, "sub": "root"}).encode()).rstrip(b"=").decode()
    stale = Made()
    stale.moment = made.moment - timedelta(seconds=LIFE + STEP)
    stranger = Made(signing=keys(NEW))
    stranger.moment = made.moment
    return good, {
        "changed": f"{head}.{other}.{signature}",
        "unsigned": f"{head}.{claims}.",
        "for another host": dict(made(person(), "other.example").set_headers)[HEADER],
        "of another service": dict(stranger(person()).set_headers)[HEADER],
        "stale": dict(stale(person()).set_headers)[HEADER],
    }


def test_a_request_authentication_verifies_it() -> None:
    made = Made()
    made.moment = datetime.now(timezone.utc)
    front = Front(rule(made), userid_claim="sub")
    good, bad = tokens(made)
    assert front.user(request(x_auth_assertion=good)) == "ann@example.com"
    for what, token in bad.items():
        assert front.outcome(request(x_auth_assertion=token)) in (401, 403), what


@pytest.mark.external
def test_envoy_verifies_it(tmp_path: Path) -> None:
    made = Made()
    made.moment = datetime.now(timezone.utc)
    good, bad = tokens(made)
    somebody = policy({"from": [{"source": {"requestPrincipals": [f"{ISSUER}/ann@example.com"]}}]})

    def sent(token: str) -> bytes:
        line = f"{HEADER}: {token}\r\n" if token else ""
        return f"GET /app HTTP/1.1\r\nHost: app.example\r\n{line}\r\n".encode()

    with JudgingEnvoy(tmp_path, {"ours": [authentication(rule(made)), somebody]}) as envoy:

        def status(token: str) -> int:
            return envoy.ask("ours", sent(token), source="127.0.0.1", port=80).status

        assert status(good) == 200 and status("") == 403
        for what, token in bad.items():
            assert status(token) in (401, 403), what
