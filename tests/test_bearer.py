"""Programs with tokens, through the whole service: each authenticator against each kind of token.

One table says for every authenticator and every kind of token which answer it gets and whether it
is remembered; the cases of single checks inside a token are the verifier's own tests.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from flask import Flask

from authservice.authn.cache import MOST_ASKED
from authservice.kubernetes import cluster as cluster_module
from authservice.sessions.seal import new_secret
from tests.conftest import CLIENT_ID, Answer, Browser, Clock, ask
from tests.provider import FakeProvider, rsa_key
from tests.tokenreview import FOR_US, FakeCluster
from tests.waiting import until

API = "api"
ASKED = ("introspect", "userinfo")


def passes(answer: Answer) -> bool:
    return answer.status == 200 and bool(answer.header("kubeflow-userid")) and answer.header("Auth-Method") == "header"


def is_refused(answer: Answer) -> bool:
    """Ours and bad (RFC 6750 §3): no redirect, no cookie."""
    return (
        (answer.status, answer.header("WWW-Authenticate")) == (401, 'Bearer error="invalid_token"')
        and answer.header("Location") is None
        and not answer.all("Set-Cookie")
    )


def is_nobodys(answer: Answer) -> bool:
    """No authenticator knows the token: a program is told to authenticate."""
    return (answer.status, answer.header("WWW-Authenticate")) == (401, "Bearer") and not answer.all("Set-Cookie")


def is_anonymous(answer: Answer) -> bool:
    return answer.status == 302


def unsigned(token: str) -> str:
    claims = jwt.decode(token, options={"verify_signature": False})
    return jwt.encode(claims, "", algorithm="none", headers={"typ": jwt.get_unverified_header(token).get("typ", "JWT")})


def signed_with_the_public_key(token: str) -> str:
    """HS256 with what everybody knows as its secret. PyJWT will not make one, so by hand."""
    public = rsa_key(0).public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    header = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "typ": "JWT"}).encode()).rstrip(b"=")
    message = header + b"." + token.split(".")[1].encode()
    signature = base64.urlsafe_b64encode(hmac.new(public, message, hashlib.sha256).digest()).rstrip(b"=")
    return (message + b"." + signature).decode()


@dataclass
class World:
    """The parties that judge tokens, and how tokens of each kind are made."""

    provider: FakeProvider
    other: FakeProvider
    cluster: FakeCluster
    asked: dict[str, int] = field(default_factory=dict)

    def id_token(self, **changes: Any) -> str:
        claims = {**self.provider.good_claims("1", None), **self.provider.claims, **changes}
        return self.provider.sign({name: value for name, value in claims.items() if value is not None})

    def make(self, kind: str, case: str) -> str:
        return {
            "jwt": self._access, "further": self._further, "id_token": self._id, "opaque": self._opaque,
            "kubernetes": self._kubernetes,
        }[kind](case)

    def _signed(self, case: str, make: Callable[..., str], audience: str, wrong_issuer: str, clock: datetime) -> str:
        past = int((clock - timedelta(hours=1)).timestamp())
        match case:
            case "expired":
                return make(exp=past, iat=past - 60)
            case "wrong issuer":
                return make(iss=wrong_issuer)
            case "wrong audience":
                return make(aud="somebody-else")
            case "alg none":
                return unsigned(make())
            case "HS256 with the public key":
                return signed_with_the_public_key(make())
        return make()

    def _access(self, case: str) -> str:
        provider = self.provider

        def make(**changes: Any) -> str:
            return provider.access_token(API, **changes)

        if case == "wrong key":
            return provider.access_token(API, key=rsa_key(9))
        if case == "unknown kid":
            return provider.access_token(API, key=rsa_key(9), header={"kid": "nobody-knows"})
        return self._signed(case, make, API, "https://elsewhere.example", provider.clock())

    def _further(self, case: str) -> str:
        other = self.other
        if case == "wrong key":
            # Signed with a good key of ours: no token is ever tried with another issuer's keys.
            return self.provider.access_token("ci", iss=other.issuer, header={"kid": other.kid}, key=rsa_key(8))
        if case == "unknown kid":
            return other.access_token("ci", key=rsa_key(9), header={"kid": "nobody-knows"})

        def make(**changes: Any) -> str:
            return other.access_token("ci", **changes)

        return self._signed(case, make, "ci", "https://elsewhere.example", other.clock())

    def _id(self, case: str) -> str:
        if case in ("wrong key", "unknown kid"):
            claims = jwt.decode(self.id_token(), options={"verify_signature": False})
            kid = self.provider.kid if case == "wrong key" else "nobody-knows"
            return jwt.encode(claims, rsa_key(9), algorithm="RS256", headers={"kid": kid})
        return self._signed(case, self.id_token, CLIENT_ID, "https://elsewhere.example", self.provider.clock())

    def _opaque(self, case: str) -> str:
        faults = {"wrong issuer": "introspect_wrong_iss", "wrong audience": "introspect_wrong_aud",
                  "expired": "introspect_expired", "wrong key": "introspect_inactive",
                  "unknown kid": "introspect_inactive"}
        if case in faults:
            self.provider.misbehave(faults[case])
        if case in ("alg none", "HS256 with the public key"):
            return self._further(case)
        return self.provider.opaque_token(**{
            name: value for name, value in self.provider.claims.items() if name in ("email", "groups", "sub")
        })

    def _kubernetes(self, case: str) -> str:
        cluster = self.cluster
        match case:
            case "expired":
                return cluster.token(lifetime=-timedelta(hours=1))
            case "wrong issuer":
                return cluster.token(iss="https://another.cluster.example", key=1)
            case "wrong audience":
                return cluster.token(audiences=["somebody-else"])
            case "wrong key" | "unknown kid":
                return cluster.token(key=1)
            case "alg none":
                return unsigned(cluster.token())
            case "HS256 with the public key":
                return signed_with_the_public_key(cluster.token())
        return cluster.token()

    def questions(self) -> int:
        """How often anybody was asked about a token so far."""
        return sum(len(self.provider.calls(name)) for name in ASKED) + len(self.cluster.seen)


SETTINGS = {
    "jwt": {"ACCESS_TOKEN_AUTHN": "jwt", "AUDIENCES": API, "IDTOKEN_AUTHN_ENABLED": "false"},
    "further": {"ACCESS_TOKEN_AUTHN_ENABLED": "false", "IDTOKEN_AUTHN_ENABLED": "false"},
    "id_token": {"ACCESS_TOKEN_AUTHN_ENABLED": "false"},
    "opaque": {"ACCESS_TOKEN_AUTHN": "opaque", "IDTOKEN_AUTHN_ENABLED": "false"},
    "kubernetes": {"ACCESS_TOKEN_AUTHN_ENABLED": "false", "AUDIENCES": FOR_US},
}

Judged = Callable[[Answer], bool]
SIGNED: dict[str, Judged] = {
    "good": passes, "expired": is_refused, "wrong issuer": is_nobodys, "wrong audience": is_nobodys,
    "wrong key": is_refused, "alg none": is_refused, "HS256 with the public key": is_refused,
    "unknown kid": is_refused, "not a token": is_nobodys, "two headers": is_refused, "empty": is_anonymous,
}
TABLE: dict[str, dict[str, Judged]] = {
    "jwt": SIGNED,
    "further": SIGNED,
    "id_token": SIGNED,
    # The provider alone can tell: whatever is no token of a known other kind is asked about.
    "opaque": {**SIGNED, "wrong issuer": is_refused, "wrong audience": is_refused, "not a token": is_refused,
               "alg none": is_nobodys, "HS256 with the public key": is_nobodys},
    # What says that it is a service account's token is the cluster's to judge, whoever issued it.
    "kubernetes": {**SIGNED, "wrong issuer": is_refused, "wrong audience": is_refused},
}
REMOTE = ("opaque", "kubernetes")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    with FakeCluster() as fake:
        monkeypatch.setattr(cluster_module, "MOUNTED", fake.mount(tmp_path / "mounted"))
        yield fake


@pytest.fixture
def world(provider: FakeProvider, cluster: FakeCluster, clock: Clock) -> Iterator[World]:
    provider.metadata["introspection_endpoint"] = provider.address("introspect")
    provider.clock = clock
    with FakeProvider() as other:
        other.clock = clock
        yield World(provider, other, cluster)


@pytest.fixture
def service(make_app: Callable[..., Flask], world: World) -> Callable[..., Flask]:
    def make(kind: str, **changes: str) -> Flask:
        settings = {"KUBERNETES_AUTHN_ENABLED": "false", "CACHE_ENABLED": "true", **SETTINGS[kind]}
        if kind == "kubernetes":
            settings |= {"KUBERNETES_AUTHN_ENABLED": "true", **world.cluster.environ()}
        if kind == "further":
            settings["BEARER_ISSUERS"] = json.dumps([{"issuer": world.other.issuer, "audiences": ["ci"]}])
        return make_app(**{**settings, **changes})

    return make


def credential(world: World, kind: str, case: str) -> dict[str, str]:
    match case:
        case "empty":
            return {"Authorization": ""}
        case "not a token":
            return {"Authorization": "Bearer not-a-token-at-all"}
        case "two headers":
            token = world.make(kind, "good")
            return {"Authorization": f"Bearer {token},Bearer {token}"}
    return {"Authorization": f"Bearer {world.make(kind, case)}"}


@pytest.mark.parametrize("case", list(SIGNED))
@pytest.mark.parametrize("kind", list(TABLE))
def test_each_authenticator_against_each_token(
    service: Callable[..., Flask], world: World, kind: str, case: str
) -> None:
    app = service(kind)
    headers = credential(world, kind, case)
    for scheme in ("Bearer", "bearer"):
        headers = {name: value.replace("Bearer", scheme) for name, value in headers.items()}
        answer = ask(app, "GET", "/api/x", port=8080, headers=headers)
        assert TABLE[kind][case](answer), (answer.status, answer.headers, answer.text)
        if scheme == "Bearer":
            before = world.questions()
    assert world.questions() == before, "the second time nobody is asked again"
    if case == "good":
        assert (before > 0) is (kind in REMOTE)


@pytest.mark.parametrize("kind", list(TABLE))
def test_s29_a_bad_token_is_not_rescued_by_a_cookie_and_an_unknown_one_is(
    service: Callable[..., Flask], world: World, make_browser: Callable[..., Browser], kind: str
) -> None:
    browser = make_browser(service(kind))
    browser.log_in()
    bad = browser.get("/x", Authorization=f"Bearer {world.make(kind, 'wrong key')}")
    # The session comes before ID tokens, as it always did.
    assert passes_as_cookie(bad) if kind == "id_token" else is_refused(bad)
    unknown = browser.get("/x", Authorization="Bearer " + jwt.encode({"iss": "https://x"}, rsa_key(9), "RS256"))
    assert passes_as_cookie(unknown)


def passes_as_cookie(answer: Answer) -> bool:
    return answer.status == 200 and answer.header("Auth-Method") == "cookie"


@pytest.mark.parametrize("kind", ["jwt", "further", "opaque", "kubernetes"])
def test_a_good_token_beats_the_cookie(
    service: Callable[..., Flask], world: World, make_browser: Callable[..., Browser], kind: str
) -> None:
    browser = make_browser(service(kind))
    browser.log_in()
    assert passes(browser.get("/x", Authorization=f"Bearer {world.make(kind, 'good')}"))


@pytest.mark.parametrize("kind", REMOTE)
def test_b71_what_cannot_be_asked_is_503_and_remembered_by_nobody(
    service: Callable[..., Flask], world: World, kind: str
) -> None:
    app = service(kind, PROVIDER_TIMEOUT_SECONDS="2")
    headers = credential(world, kind, "good")
    assert ask(app, "GET", "/", port=8080, headers={}).status == 302
    if kind == "opaque":
        world.provider.misbehave("introspect_error_500")
    else:
        world.cluster.misbehave("status_500")
    down = ask(app, "GET", "/x", port=8080, headers=headers)
    assert down.status == 503 and not down.all("Set-Cookie") and down.header("WWW-Authenticate") is None
    world.provider.behave()
    world.cluster.behave()
    assert passes(ask(app, "GET", "/x", port=8080, headers=headers))


@pytest.mark.parametrize(("cached", "still_passes"), [("true", True), ("false", False)])
@pytest.mark.parametrize("kind", REMOTE)
def test_b13_a_revoked_token_stops_within_the_cache_time_and_at_once_without_a_cache(
    service: Callable[..., Flask], world: World, clock: Clock, kind: str, cached: str, still_passes: bool
) -> None:
    app = service(kind, CACHE_ENABLED=cached, CACHE_EXPIRATION_MINUTES="2")
    headers = credential(world, kind, "good")
    token = headers["Authorization"].removeprefix("Bearer ")
    assert passes(ask(app, "GET", "/x", port=8080, headers=headers))
    world.provider.revoke(token)
    world.cluster.revoke(token)
    assert passes(ask(app, "GET", "/x", port=8080, headers=headers)) is still_passes
    clock.advance(minutes=2, seconds=1)
    assert not passes(ask(app, "GET", "/x", port=8080, headers=headers))


def test_b11_the_cache_is_filled_and_read_by_every_endpoint_alike(
    service: Callable[..., Flask], world: World
) -> None:
    app = service("opaque", GATEWAY="envoy,caddy")
    headers = credential(world, "opaque", "good")
    assert ask(app, "GET", "/authservice/verify/x", port=8080, headers=headers).status == 204
    told = {"X-Forwarded-Method": "GET", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "h", "X-Forwarded-Uri": "/"}
    assert passes(ask(app, "GET", "/authservice/forward-auth", port=8080, headers={**headers, **told}))
    assert passes(ask(app, "GET", "/x", port=8080, headers=headers))
    assert len(world.provider.calls("introspect")) == 1


def test_b11_another_header_by_setting_takes_the_bare_token_and_authorization_is_nobodys(
    service: Callable[..., Flask], world: World
) -> None:
    app = service("jwt", ID_TOKEN_HEADER="X-Token")
    token = world.make("jwt", "good")
    for value in (token, f"Bearer {token}"):
        assert passes(ask(app, "GET", "/x", port=8080, headers={"X-Token": value}))
    assert is_nobodys(ask(app, "GET", "/x", port=8080, headers={"Authorization": f"Bearer {token}"}))


def test_both_reads_jwts_first_and_asks_about_the_rest(service: Callable[..., Flask], world: World) -> None:
    app = service("jwt", ACCESS_TOKEN_AUTHN="both")
    assert passes(ask(app, "GET", "/x", port=8080, headers=credential(world, "jwt", "good")))
    assert not world.provider.calls("introspect")
    assert passes(ask(app, "GET", "/x", port=8080, headers=credential(world, "opaque", "good")))
    assert len(world.provider.calls("introspect")) == 1


def test_b21_a_sessions_secret_is_never_sent_to_anybody(service: Callable[..., Flask], world: World) -> None:
    for kind in REMOTE:
        app = service(kind)
        ask(app, "GET", "/x", port=8080, headers={"Authorization": f"Bearer {new_secret()}"})
    assert world.questions() == 0


def test_an_opaque_token_as_long_as_a_sessions_random_part_is_a_token(
    service: Callable[..., Flask], world: World
) -> None:
    """Some providers issue opaque tokens of 43 characters."""
    app = service("opaque")
    ask(app, "GET", "/x", port=8080, headers={"Authorization": "Bearer " + "A" * 43})
    assert len(world.provider.calls("introspect")) == 1


def test_s28_an_empty_audience_list_accepts_nobody(service: Callable[..., Flask], world: World) -> None:
    headers = credential(world, "jwt", "good")
    assert is_nobodys(ask(service("jwt", AUDIENCES=""), "GET", "/x", port=8080, headers=headers))


@pytest.mark.parametrize("groups", ["one,string", ["one,string"]])
def test_u24_b72_groups_by_one_rule_and_never_required(
    service: Callable[..., Flask], world: World, groups: object
) -> None:
    app = service("jwt")
    token = world.provider.access_token(API, groups=groups)
    answer = ask(app, "GET", "/x", port=8080, headers={"Authorization": f"Bearer {token}"})
    assert answer.header("kubeflow-groups") == "one%2Cstring"
    token = world.provider.access_token(API, groups=None)
    assert ask(app, "GET", "/x", port=8080, headers={"Authorization": f"Bearer {token}"}).header("kubeflow-groups") == ""


@pytest.mark.parametrize("changes", [{"email": None}, {"email": ""}, {"email": 7}, {"email": "a b@example.com"}])
def test_u21_u22_u23_without_a_user_id_a_token_is_refused(
    service: Callable[..., Flask], world: World, changes: dict[str, object]
) -> None:
    token = world.provider.access_token(API, **changes)
    assert is_refused(ask(service("jwt"), "GET", "/x", port=8080, headers={"Authorization": f"Bearer {token}"}))


def test_e1_a_service_account_passes_with_its_groups(service: Callable[..., Flask], world: World) -> None:
    app = service("kubernetes", GROUPS_ALLOWLIST="a,d,e,system:serviceaccounts")
    answer = ask(app, "GET", "/", port=8080, headers=credential(world, "kubernetes", "good"))
    assert answer.status == 200
    assert answer.header("kubeflow-userid") == "system:serviceaccount:jobs:nightly"
    assert "system:authenticated" in (answer.header("kubeflow-groups") or "").split(",")


@pytest.mark.slow
def test_no_token_reaches_the_log(
    service: Callable[..., Flask], world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = []
    for kind in TABLE:
        app = service(kind)
        for case in ("good", "expired", "wrong key"):
            headers = credential(world, kind, case)
            sent.append(headers["Authorization"].removeprefix("Bearer "))
            ask(app, "GET", "/x", port=8080, headers=headers)
            world.provider.behave()
    text = capsys.readouterr().err
    assert text and not [token for token in sent if token in text or token.rpartition(".")[2] in text]


class TestLocalChecks:
    """Whose token it may be is read from the token itself, before anything is verified."""

    THREE = {"AUDIENCES": "aud1,aud2,aud3"}

    def ask(self, app: Flask, token: str) -> Answer:
        return ask(app, "GET", "/x", port=8080, headers={"Authorization": f"Bearer {token}"})

    def test_u17_an_undecodable_payload_is_nobodys(self, service: Callable[..., Flask], world: World) -> None:
        header, _, signature = world.provider.access_token("aud1").split(".")
        app = service("jwt", **self.THREE)
        for payload in ("!!!!", "e30x", base64.urlsafe_b64encode(b"no json").decode().rstrip("="), ""):
            assert is_nobodys(self.ask(app, f"{header}.{payload}.{signature}"))

    def test_u18_another_issuer_is_nobodys(self, service: Callable[..., Flask], world: World) -> None:
        token = world.provider.access_token("aud1", iss=world.provider.issuer + "/")
        assert is_nobodys(self.ask(service("jwt", **self.THREE), token))

    def test_u19_without_a_common_audience_it_is_nobodys(self, service: Callable[..., Flask], world: World) -> None:
        for audience in ("aud4", ["aud4", "aud"], []):
            assert is_nobodys(self.ask(service("jwt", **self.THREE), world.provider.access_token(audience)))

    def test_u20_a_fitting_one_is_judged_and_the_verdict_is_expired(
        self, service: Callable[..., Flask], world: World, clock: Clock, capsys: pytest.CaptureFixture[str]
    ) -> None:
        app = service("jwt", **self.THREE)
        past = int((clock() - timedelta(hours=1)).timestamp())
        assert passes(self.ask(app, world.provider.access_token("aud2")))
        assert is_refused(self.ask(app, world.provider.access_token("aud2", exp=past, iat=past - 60)))
        assert '"cause": "jwt: exp"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("claims", "groups"),
    [
        ({}, None),
        ({"groups": ["a"]}, None),
        ({"email": "alice@example.com"}, ""),
        ({"email": "alice@example.com", "groups": ["a", "b"]}, "a,b"),
    ],
    ids=["u25_no_claims", "u26_no_user_claim", "u27_user_without_groups", "u28_both"],
)
def test_opaque_claims(
    service: Callable[..., Flask], world: World, claims: dict[str, object], groups: str | None
) -> None:
    app = service("opaque", OIDC_USERINFO_URL=world.provider.address("userinfo"))
    world.provider.misbehave("introspect_answer", claims)
    world.provider.misbehave("userinfo_refused")
    headers = {"Authorization": f"Bearer {world.provider.opaque_token(sub='1')}"}
    answer = ask(app, "GET", "/x", port=8080, headers=headers)
    assert is_refused(answer) if groups is None else passes(answer) and answer.header("kubeflow-groups") == groups


def test_j13_a_thousand_unknown_keys_cause_a_handful_of_fetches_and_good_tokens_go_on_passing(
    service: Callable[..., Flask], world: World
) -> None:
    app = service("jwt")
    good = {"Authorization": f"Bearer {world.provider.access_token(API)}"}
    assert passes(ask(app, "GET", "/x", port=8080, headers=good))
    fetches = len(world.provider.calls("jwks"))
    claims = world.provider.access_token(API).split(".")[1]
    for number in range(1000):
        header = json.dumps({"alg": "RS256", "typ": "at+jwt", "kid": f"unknown-{number}"}).encode()
        head = base64.urlsafe_b64encode(header).decode().rstrip("=")
        bad = {"Authorization": f"Bearer {head}.{claims}.c2lnbmF0dXJl"}
        assert is_refused(ask(app, "GET", "/x", port=8080, headers=bad))
        if number % 100 == 0:
            assert passes(ask(app, "GET", "/x", port=8080, headers=good))
    assert len(world.provider.calls("jwks")) - fetches <= 5


def test_one_bad_opaque_token_a_thousand_times_is_asked_about_once(
    service: Callable[..., Flask], world: World
) -> None:
    app = service("opaque", CACHE_ENABLED="false")
    for _ in range(1000):
        assert is_refused(ask(app, "GET", "/x", port=8080, headers={"Authorization": "Bearer the-same-bad-one"}))
    assert len(world.provider.calls("introspect")) == 1


@pytest.mark.slow
def test_a_party_that_hangs_does_not_take_every_thread(
    service: Callable[..., Flask], world: World, make_browser: Callable[..., Browser]
) -> None:
    app = service("opaque")
    browser = make_browser(app)
    browser.log_in()
    world.provider.misbehave("slow_introspect", 3)
    began = time.monotonic()

    def junk(number: int) -> tuple[int, float]:
        headers = {"Authorization": f"Bearer junk-{number % 9}"}
        return ask(app, "GET", "/x", port=8080, headers=headers).status, time.monotonic() - began

    with ThreadPoolExecutor(16) as pool:
        waiting = [pool.submit(junk, number) for number in range(16)]
        until(lambda: sum(future.done() for future in waiting) >= 16 - MOST_ASKED, 5)
        assert all(future.result()[0] == 503 for future in waiting if future.done())
        assert len(world.provider.calls("introspect")) <= MOST_ASKED
        assert browser.get("/x").status == 200
        world.provider.behave()


@pytest.mark.parametrize("kind", ["jwt", "further", "id_token"])
def test_b71_new_keys_out_of_reach_are_503_and_the_token_passes_when_they_come(
    service: Callable[..., Flask], world: World, kind: str
) -> None:
    app = service(kind)
    party = world.other if kind == "further" else world.provider
    good = credential(world, kind, "good")
    assert passes(ask(app, "GET", "/x", port=8080, headers=good))
    party.rotate_keys()
    fresh = credential(world, kind, "good")
    party.misbehave("jwks_error_500")
    assert ask(app, "GET", "/x", port=8080, headers=fresh).status == 503
    party.behave()
    assert passes(ask(app, "GET", "/x", port=8080, headers=fresh))


@pytest.mark.parametrize("other", ["Basic YTpi", "Digest username=x", "Negotiate abc", "bearer x"])
def test_two_authorization_headers_are_refused_whichever_comes_first(
    service: Callable[..., Flask], world: World, other: str
) -> None:
    token = f"Bearer {world.make('jwt', 'good')}"
    app = service("jwt")
    for value in (f"{token},{other}", f"{other}, {token}"):
        assert is_refused(ask(app, "GET", "/x", port=8080, headers={"Authorization": value}))


def test_b16_an_opaque_token_of_another_client_is_refused_though_nobody_says_for_whom(
    service: Callable[..., Flask], world: World
) -> None:
    app = service("opaque")
    for answer, judged in (
        ({"aud": None, "client_id": "another-application"}, is_refused),
        ({"aud": None, "client_id": None}, is_refused),
        ({"aud": None, "client_id": CLIENT_ID}, passes),
    ):
        world.provider.misbehave("introspect_answer", answer)
        assert judged(ask(app, "GET", "/x", port=8080, headers=credential(world, "opaque", "good"))), answer


def test_b17_kinds_that_can_be_told_apart_do_not_pass_for_each_other(
    service: Callable[..., Flask], world: World
) -> None:
    world.provider.misbehave("introspect_answer", {"email": "alice@example.com"})
    app = service("opaque")
    id_token = world.id_token(at_hash="x")
    refresh = world.provider.access_token(CLIENT_ID, typ="Refresh", header={"typ": None})
    for token in (id_token, refresh):
        assert is_nobodys(ask(app, "GET", "/x", port=8080, headers={"Authorization": f"Bearer {token}"}))
    assert not world.provider.calls("introspect")
    issued_to_another = world.provider.access_token(CLIENT_ID, client_id="another", header={"typ": None})
    headers = {"Authorization": f"Bearer {issued_to_another}"}
    assert is_refused(ask(service("id_token"), "GET", "/x", port=8080, headers=headers))


def test_an_absurd_expiry_is_no_error(service: Callable[..., Flask], world: World) -> None:
    world.provider.metadata["introspection_endpoint"] = None
    app = service("opaque", INTROSPECTION_URL="")
    for number, absurd in enumerate((10**15, -1, "soon", True)):
        claims = {"sub": "1", "email": "alice@example.com", "exp": absurd}
        token = world.provider.opaque_token(**claims)
        world.provider.misbehave("userinfo_answer", claims)
        answer = ask(app, "GET", "/x", port=8080, headers={"Authorization": f"Bearer {token}"})
        assert answer.status in (200, 401), (number, answer)
