"""The doctor: each of these set-ups is broken in one way; it is found, and its remedy named. A good one is
all green."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from authservice import doctor
from authservice.cli import main
from authservice.doctor import Finding, Part, State
from tests.conftest import Answer, Clock
from tests.ports import free_port
from tests.provider import FakeProvider
from tests.small_gateway import SmallGateway

BUILT_IN = {"SESSION_STORE_TYPE": "filesystem"}


@dataclass
class SetUp:
    """A deployment: its settings, and everything around it. Broken before anybody looks at it."""

    environ: dict[str, str]
    provider: FakeProvider
    gateway: SmallGateway
    folder: Path
    clock: Clock
    url: str = ""
    serving: dict[str, str] = field(default_factory=dict)


Break = Callable[[SetUp], None]


@pytest.fixture
def set_up(
    environ: dict[str, str], provider: FakeProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SetUp]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with SmallGateway() as gateway:
        settings = {**environ, "REDIRECT_URL": f"{gateway.origin}/authservice/oidc/callback"}
        # The provider's clock is the machine's; only ours is moved by hand.
        provider.clock = lambda: datetime.now(timezone.utc)
        yield SetUp(settings, provider, gateway, tmp_path, Clock())


def settings_at_fault(made: SetUp) -> None:
    del made.environ["CLIENT_ID"]


def provider_gone(made: SetUp) -> None:
    made.environ["OIDC_PROVIDER"] = f"http://127.0.0.1:{free_port()}"


def other_issuer(made: SetUp) -> None:
    made.provider.misbehave("other_issuer")


def no_metadata(made: SetUp) -> None:
    made.provider.misbehave("discovery_error_404")


def other_client_authentication(made: SetUp) -> None:
    made.provider.metadata["token_endpoint_auth_methods_supported"] = ["tls_client_auth"]


def clock_ahead(made: SetUp) -> None:
    made.clock.advance(minutes=7)


def keys_gone(made: SetUp) -> None:
    made.provider.misbehave("jwks_error_500")


def no_usable_key(made: SetUp) -> None:
    made.provider.misbehave("key_set", {"keys": [{"kty": "oct", "k": "c2VjcmV0"}]})


def other_algorithms(made: SetUp) -> None:
    made.environ["OIDC_SIGNING_ALGS"] = "PS512"


def userinfo_gone(made: SetUp) -> None:
    made.provider.metadata["userinfo_endpoint"] = f"http://127.0.0.1:{free_port()}/userinfo"


def unregistered_address(made: SetUp) -> None:
    made.provider.misbehave("authorize_error_404")


def refused_scope(made: SetUp) -> None:
    made.provider.misbehave("authorize_error", "invalid_scope")


def wrong_secret(made: SetUp) -> None:
    made.environ["CLIENT_SECRET"] = made.serving["CLIENT_SECRET"] = "the-secret-of-another-client"


def wrong_secret_at_keycloak(made: SetUp) -> None:
    made.provider.misbehave("token_refused", (401, "unauthorized_client"))


def wrong_secret_at_an_older_keycloak(made: SetUp) -> None:
    made.provider.misbehave("token_refused", (400, "unauthorized_client"))


def token_endpoint_gone(made: SetUp) -> None:
    made.environ["OIDC_TOKEN_URL"] = f"http://127.0.0.1:{free_port()}/token"


def issuer_gone(made: SetUp) -> None:
    made.environ["BEARER_ISSUERS"] = json.dumps(
        [{"issuer": f"http://127.0.0.1:{free_port()}", "audiences": ["api"]}]
    )


def redis_gone(made: SetUp) -> None:
    made.environ |= {"SESSION_STORE_TYPE": "redis", "SESSION_STORE_REDIS_ADDR": f"127.0.0.1:{free_port()}"}
    made.serving |= BUILT_IN


def damaged_store(made: SetUp) -> None:
    file = made.folder / "damaged.db"
    file.write_bytes(b"SQLite format 3\0" + b"\xff" * 4096)
    made.environ["SESSION_STORE_PATH"] = str(file)
    made.serving["SESSION_STORE_PATH"] = str(made.folder / "good.db")


def faulty_policy(made: SetUp) -> None:
    file = made.folder / "policy.yaml"
    file.write_text("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nspec: {rule: []}\n")
    made.environ["POLICY_PATH"] = str(file)
    made.serving["POLICY_PATH"] = ""


def gateway_gone(made: SetUp) -> None:
    made.url = f"http://127.0.0.1:{free_port()}"


def authority_unreadable(made: SetUp) -> None:
    made.environ["CA_BUNDLE"] = str(made.folder / "missing.pem")
    made.serving["CA_BUNDLE"] = ""


def only_https(made: SetUp) -> None:
    https = made.gateway.origin.replace("http:", "https:")
    made.gateway.answers = Answer(301, (("Location", f"{https}/page"),), b"")


def unprotected(made: SetUp) -> None:
    made.gateway.protects = False


def service_down(made: SetUp) -> None:
    made.gateway.answers = Answer(503, (), b"no healthy upstream")


def gateway_forbids(made: SetUp) -> None:
    made.gateway.answers = Answer(403, (), b"")


def callback_is_checked(made: SetUp) -> None:
    made.gateway.routes = False
    made.gateway.path = lambda target: target.replace("/authservice/", "/other/")


def prefix_not_routed(made: SetUp) -> None:
    made.gateway.routes = False
    made.environ["SKIP_AUTH_URLS"] = "/authservice/"
    made.gateway.path = lambda target: target.replace("/authservice/oidc/callback", "/authservice/nothing")


def no_cookie(made: SetUp) -> None:
    made.gateway.drops = {"cookie"}


def no_accept(made: SetUp) -> None:
    made.gateway.drops = {"accept"}


def no_authorization(made: SetUp) -> None:
    made.gateway.drops = {"authorization"}


def no_scheme(made: SetUp) -> None:
    made.gateway.sends_scheme = False
    made.environ |= {"REDIRECT_URL": "", "TRUSTED_PROXIES": "127.0.0.1/32"}
    made.url = made.gateway.origin


def one_path_for_all(made: SetUp) -> None:
    made.gateway.path = lambda target: "/check"


def other_gateway(made: SetUp) -> None:
    made.environ["GATEWAY"] = "traefik"


def other_keys(made: SetUp) -> None:
    made.serving["SECRET_KEYS"] = "of-another-service-" + "k" * 32


BROKEN: list[tuple[Break, Part, str, str]] = [
    (settings_at_fault, Part.SETTINGS, "CLIENT_ID: not set", "Change CLIENT_ID."),
    (provider_gone, Part.PROVIDER, "cannot be had", "OIDC_PROVIDER"),
    (other_issuer, Part.PROVIDER, "issuer is not the configured one", "/other"),
    (no_metadata, Part.PROVIDER, "status 404", "a realm or tenant is part of it"),
    (other_client_authentication, Part.PROVIDER, "lacks client_secret_basic", "It offers tls_client_auth."),
    (clock_ahead, Part.CLOCK, "tokens are refused from 60 s", "NTP"),
    (keys_gone, Part.KEYS, "status 500", "OIDC_JWKS_URL"),
    (no_usable_key, Part.KEYS, "no key among them", "RSA of 2048 bits"),
    (other_algorithms, Part.KEYS, "signs with PS512", "OIDC_SIGNING_ALGS"),
    (userinfo_gone, Part.ENDPOINTS, "userinfo endpoint cannot be reached", "OIDC_USERINFO_URL"),
    (
        unregistered_address,
        Part.AUTHORIZATION,
        "status 404",
        "/authservice/oidc/callback as redirect address",
    ),
    (refused_scope, Part.AUTHORIZATION, "invalid_scope", "may ask for openid"),
    (wrong_secret, Part.CLIENT, "does not accept our credentials", "CLIENT_SECRET"),
    (wrong_secret_at_keycloak, Part.CLIENT, "does not accept our credentials", "CLIENT_SECRET"),
    (wrong_secret_at_an_older_keycloak, Part.CLIENT, "does not let us redeem codes", "CLIENT_SECRET"),
    (token_endpoint_gone, Part.CLIENT, "cannot be reached", "OIDC_TOKEN_URL"),
    (issuer_gone, Part.ISSUERS, "discovery", "BEARER_ISSUERS"),
    (redis_gone, Part.STORE, "does not answer", "SESSION_STORE_REDIS_ADDR"),
    (damaged_store, Part.STORE, "does not answer", "authservice sessions check"),
    (faulty_policy, Part.POLICIES, "policy.yaml:3", "authservice policy check"),
    (gateway_gone, Part.GATEWAY, "does not answer", "the gateway runs"),
    (authority_unreadable, Part.SETTINGS, "missing.pem cannot be read", "Change CA_BUNDLE."),
    (only_https, Part.GATEWAY, "only leads to https://127.0.0.1", "--url https://127.0.0.1"),
    (unprotected, Part.GATEWAY, "status 200: the gateway does not ask", "Put the check in front"),
    (service_down, Part.GATEWAY, "status 503", "/readyz on port 8082"),
    (gateway_forbids, Part.GATEWAY, "refuses everybody", "check_denied"),
    (callback_is_checked, Part.CALLBACK, "asks for a login itself", "to port 8082"),
    (prefix_not_routed, Part.CALLBACK, "this is not AuthService", "to port 8082"),
    (no_cookie, Part.WIRING, "does not send Cookie", "{exact: cookie, ignore_case: true}"),
    (no_accept, Part.WIRING, "does not send Accept", "{exact: accept, ignore_case: true}"),
    (no_authorization, Part.WIRING, "does not send Authorization", "disallowed_headers"),
    (
        no_scheme,
        Part.WIRING,
        "does not send X-Forwarded-Proto",
        "{exact: x-forwarded-proto, ignore_case: true}",
    ),
    (one_path_for_all, Part.WIRING, "does not send the original address", "path_override"),
    (other_gateway, Part.WIRING, "which address a check is about", "GATEWAY (traefik) names"),
    (other_keys, Part.WIRING, "other keys", "the same SECRET_KEYS"),
]


@pytest.fixture
def examined(make_app: Callable[..., object]) -> Callable[[SetUp], list[Finding]]:
    """Looks at a deployment that serves, as far as its settings let it."""

    def examine(made: SetUp) -> list[Finding]:
        made.gateway.app = made.gateway.app or make_app(**serving(made))  # type: ignore[assignment]
        return list(doctor.examine(made.environ, made.clock, made.url))

    return examine


def serving(made: SetUp) -> dict[str, str]:
    """The settings of the service: with those in which a start would fail or wait as they should be."""
    required = {name: made.environ[name] for name in ("REDIRECT_URL",) if name in made.environ}
    chosen = ("GATEWAY", "TRUSTED_PROXIES", "SKIP_AUTH_URLS")
    return {
        **required,
        **{name: made.environ[name] for name in chosen if name in made.environ},
        **made.serving,
    }


def problems(found: list[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.state is State.PROBLEM]


def test_a_good_set_up_is_all_green(set_up: SetUp, examined: Callable[[SetUp], list[Finding]]) -> None:
    set_up.provider.has_end_session = True
    found = examined(set_up)
    assert [finding for finding in found if finding.state in (State.PROBLEM, State.WARNING)] == []
    looked_at = {finding.part for finding in found if finding.state is State.OK}
    assert looked_at == set(Part) - {Part.POLICIES, Part.TLS, Part.ISSUERS, Part.NOTICED}
    (wiring,) = (finding for finding in found if finding.part is Part.WIRING)
    assert wiring.sentence == "The gateway passes on: Accept, Cookie, the original address, Authorization."


@pytest.mark.parametrize("broken,part,sentence,remedy", BROKEN, ids=[row[0].__name__ for row in BROKEN])
def test_a_broken_set_up_is_found_and_its_remedy_named(
    set_up: SetUp,
    examined: Callable[[SetUp], list[Finding]],
    broken: Break,
    part: Part,
    sentence: str,
    remedy: str,
) -> None:
    broken(set_up)
    found = problems(examined(set_up))
    matching = [
        one for one in found if one.part is part and sentence in one.sentence and remedy in one.remedy
    ]
    assert matching, found


def test_there_are_enough_of_them() -> None:
    assert len(BROKEN) >= 15
    assert {part for _, part, _, _ in BROKEN} >= set(Part) - {Part.TLS, Part.PAGES, Part.NOTICED}


def of(part: Part, found: list[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.part is part]


def test_a_gateway_that_leads_to_the_login_itself(
    set_up: SetUp, examined: Callable[[SetUp], list[Finding]]
) -> None:
    """As ingress-nginx does, with programs and bad tokens too: what it passes on shows less."""
    set_up.environ["GATEWAY"] = "nginx"
    set_up.gateway.signs_in = True
    found = examined(set_up)
    assert problems(found) == []
    assert [one.state for one in of(Part.GATEWAY, found)] == [State.OK]
    told, seen = of(Part.WIRING, found)
    assert told.state is State.SKIPPED and "status 302" in told.sentence
    assert seen.sentence == "The gateway passes on: the original address."
    set_up.gateway.routes = False
    (callback,) = of(Part.CALLBACK, examined(set_up))
    assert callback.state is State.PROBLEM and "this is not AuthService" in callback.sentence


def test_a_gateway_that_leads_to_the_login_of_another_host(
    set_up: SetUp, examined: Callable[[SetUp], list[Finding]]
) -> None:
    """Several sites, one of which people log in on."""
    with SmallGateway() as site:
        set_up.environ |= {
            "GATEWAY": "nginx", "ALLOWED_REDIRECT_HOSTS": site.origin.removeprefix("http://")
        }  # fmt: skip
        set_up.serving["ALLOWED_REDIRECT_HOSTS"] = set_up.environ["ALLOWED_REDIRECT_HOSTS"]
        site.signs_in, site.login_origin, set_up.url = True, set_up.gateway.origin, site.origin
        examined(set_up)  # makes the application
        site.app = set_up.gateway.app
        found = examined(set_up)
    assert problems(found) == []
    assert "The gateway passes on: the original address." in [one.sentence for one in of(Part.WIRING, found)]


def test_a_401_of_the_application_is_not_taken_for_ours(
    set_up: SetUp, examined: Callable[[SetUp], list[Finding]]
) -> None:
    set_up.environ["UNAUTHENTICATED_RESPONSE"] = set_up.serving["UNAUTHENTICATED_RESPONSE"] = "401"
    assert [one.state for one in of(Part.GATEWAY, examined(set_up))] == [State.OK]
    set_up.gateway.answers = Answer(401, (("WWW-Authenticate", 'Basic realm="app"'),), b"{}")
    (gateway,) = of(Part.GATEWAY, examined(set_up))
    assert gateway.state is State.WARNING and "without a word of AuthService" in gateway.sentence
    # What gateways leave that have an error page of their own.
    set_up.gateway.answers = Answer(401, (("WWW-Authenticate", "Bearer"),), b"<html>401</html>")
    assert [one.state for one in of(Part.GATEWAY, examined(set_up))] == [State.OK]


def test_a_service_that_is_not_ready_is_not_taken_for_another(
    set_up: SetUp, examined: Callable[[SetUp], list[Finding]]
) -> None:
    keys_gone(set_up)
    (callback,) = of(Part.CALLBACK, examined(set_up))
    assert callback.state is State.WARNING and "is not ready" in callback.sentence


def test_a_token_that_cannot_be_judged_tells_nothing(
    set_up: SetUp, examined: Callable[[SetUp], list[Finding]]
) -> None:
    """The check itself is answered; only what comes with a token is not."""
    down, asked = Answer(503, (), b""), set_up.gateway.answer

    def answer(target: str, headers: dict[str, str]) -> Answer:
        return down if "authorization" in headers else asked(target, headers)

    set_up.gateway.answer = answer  # type: ignore[method-assign]
    found = examined(set_up)
    assert problems(found) == []
    assert [one.state for one in of(Part.WIRING, found)] == [State.SKIPPED, State.OK]


def test_the_redirect_address_is_asked_for_where_the_provider_sends_browsers(
    set_up: SetUp, examined: Callable[[SetUp], list[Finding]]
) -> None:
    set_up.url, set_up.gateway.routes = set_up.gateway.origin, False
    set_up.environ["SKIP_AUTH_URLS"] = "/authservice/"
    with SmallGateway() as people_log_in_here:
        people_log_in_here.app = set_up.gateway.app
        set_up.environ["REDIRECT_URL"] = f"{people_log_in_here.origin}/authservice/oidc/callback"
        examined(set_up)
        people_log_in_here.app = set_up.gateway.app
        (callback,) = of(Part.CALLBACK, examined(set_up))
    assert (callback.state, people_log_in_here.origin in callback.sentence) == (State.OK, True)
    (callback,) = of(Part.CALLBACK, examined(set_up))
    assert callback.state is State.WARNING and "cannot be reached from here" in callback.sentence


def test_a_login_that_ends_on_a_page_about_an_error(
    set_up: SetUp, examined: Callable[[SetUp], list[Finding]]
) -> None:
    set_up.provider.misbehave("redirect_authorize", "https://login.example/oauth/error?authError=x")
    (login,) = of(Part.AUTHORIZATION, examined(set_up))
    assert login.state is State.WARNING and "login.example/oauth/error" in login.sentence
    assert "Register" in login.remedy


@pytest.mark.parametrize(
    "location", ["http://[x", "https://login.example/%00?state=\xe9", "/authservice/login?rd=\xff"]
)
def test_a_redirect_that_leads_nowhere_is_no_end(
    set_up: SetUp, examined: Callable[[SetUp], list[Finding]], location: str
) -> None:
    set_up.provider.misbehave("redirect_authorize", location)
    for status in (302, 401):
        set_up.gateway.answers = Answer(status, (("Location", location),), b"")
        assert problems(examined(set_up))


class TestTheProvidersClock:
    def test_an_answer_that_a_cache_kept_is_as_old_as_it_says(
        self, set_up: SetUp, examined: Callable[[SetUp], list[Finding]]
    ) -> None:
        set_up.provider.misbehave("kept_discovery", 3000)
        assert [one.state for one in of(Part.CLOCK, examined(set_up))] == [State.OK]

    @pytest.mark.parametrize("date", ["yesterday", "Mon, 01 Jan 99999999999 00:00:00 GMT", "Mon, 01 Jan 1 1:1:1 -0000"])
    def test_a_date_that_is_none(
        self, set_up: SetUp, examined: Callable[[SetUp], list[Finding]], date: str
    ) -> None:
        set_up.provider.misbehave("dated_discovery", date)
        assert [one.state for one in of(Part.CLOCK, examined(set_up))] == [State.SKIPPED]


def test_algorithms_that_are_none_are_passed_over(
    set_up: SetUp, examined: Callable[[SetUp], list[Finding]]
) -> None:
    set_up.provider.metadata["id_token_signing_alg_values_supported"] = [{"alg": "RS256"}, 7, "RS256"]
    assert [one.state for one in of(Part.KEYS, examined(set_up))] == [State.OK]


@pytest.mark.parametrize("name", ["CA_BUNDLE", "BEARER_ISSUERS", "CLIENT_PRIVATE_KEY"])
def test_what_cannot_be_asked_without_its_file_is_left_out(set_up: SetUp, name: str) -> None:
    missing = str(set_up.folder / "missing.pem")
    with_a_file = {
        "CA_BUNDLE": missing,
        "BEARER_ISSUERS": json.dumps([{"issuer": "https://ci.example", "audiences": ["x"], "ca_bundle": missing}]),
        "CLIENT_PRIVATE_KEY": X25519PrivateKey.generate()
        .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        .decode(),
    }
    set_up.environ |= {name: with_a_file[name], "SECRET_KEYS": "k" * 40}
    if name == "CLIENT_PRIVATE_KEY":
        set_up.environ |= {"OIDC_CLIENT_AUTH_METHOD": "private_key_jwt", "CLIENT_SECRET": ""}
    found = provider_findings(set_up)
    (problem,) = problems(found)
    assert problem.part is Part.SETTINGS and problem.remedy.startswith(f"Change {name}.")
    left_out = Part.ISSUERS if name == "BEARER_ISSUERS" else Part.PROVIDER
    assert [one.state for one in of(left_out, found)][-1:] == [State.SKIPPED]
    assert of(Part.NOTICED, found), "it goes on to the end"


@pytest.mark.parametrize(
    "url",
    ["http://[x", "https://app.example:99999", "https://user:passw0rd@app.example/", "app.example", "https:///x"],
)
def test_an_address_that_is_none(set_up: SetUp, url: str) -> None:
    set_up.url = url
    (gateway,) = of(Part.GATEWAY, list(doctor.examine(set_up.environ, set_up.clock, url)))
    assert gateway.state is State.PROBLEM and "--url" in gateway.sentence + gateway.remedy
    assert "passw0rd" not in gateway.sentence + gateway.remedy


@pytest.mark.parametrize("fault", ["authority", "name", "end"])
def test_a_certificate_that_is_not_trusted(set_up: SetUp, fault: str) -> None:
    authority = trustme.CA()
    ends = datetime.now(timezone.utc) + timedelta(days=-1 if fault == "end" else 90)
    certificate = authority.issue_cert("other.example" if fault == "name" else "127.0.0.1", not_after=ends)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    if fault != "authority":
        authority.cert_pem.write_to_path(str(set_up.folder / "authority.pem"))
        set_up.environ["CA_BUNDLE"] = str(set_up.folder / "authority.pem")
    with FakeProvider(tls=context) as provider:
        set_up.environ["OIDC_PROVIDER"] = provider.issuer
        found = [one for one in provider_findings(set_up) if one.part is Part.TLS]
    remedies = {"authority": "CA_BUNDLE", "name": "a name that its certificate has", "end": "Renew"}
    assert [one.state for one in found] == [State.PROBLEM]
    assert "is not trusted" in found[0].sentence and remedies[fault] in found[0].remedy


@pytest.mark.parametrize("days,state", [(90, State.OK), (3, State.WARNING)])
def test_a_certificate_that_is_trusted_and_when_it_ends(set_up: SetUp, days: int, state: State) -> None:
    authority = trustme.CA()
    ends = datetime.now(timezone.utc) + timedelta(days=days, hours=1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", not_after=ends).configure_cert(context)
    authority.cert_pem.write_to_path(str(set_up.folder / "authority.pem"))
    set_up.environ["CA_BUNDLE"] = str(set_up.folder / "authority.pem")
    with FakeProvider(tls=context) as provider:
        set_up.environ["OIDC_PROVIDER"] = provider.issuer
        found = [one for one in provider_findings(set_up) if one.part is Part.TLS]
    assert [one.state for one in found] == [state]
    assert f"{days} days" in found[0].sentence


def provider_findings(made: SetUp) -> list[Finding]:
    made.environ["REDIRECT_URL"] = ""
    return list(doctor.examine(made.environ, made.clock))


def test_without_an_address_the_gateway_is_left_out(set_up: SetUp) -> None:
    found = provider_findings(set_up)
    (gateway,) = (one for one in found if one.part is Part.GATEWAY)
    assert gateway.state is State.SKIPPED and "--url" in gateway.remedy
    assert set_up.gateway.checks == 0


def test_a_store_that_is_not_there_is_not_made(set_up: SetUp) -> None:
    provider_findings(set_up)
    assert not Path(set_up.environ["SESSION_STORE_PATH"]).exists()


def test_the_former_services_file_is_no_fault_of_the_store(set_up: SetUp) -> None:
    former = set_up.folder / "data.db"
    former.write_bytes(bytes(16) + (0xED0CDAED).to_bytes(4, "little") + bytes(4096))
    set_up.environ["SESSION_STORE_PATH"] = str(former)
    (store,) = of(Part.STORE, provider_findings(set_up))
    assert store.state is State.SKIPPED and "data.db.sqlite is not there yet" in store.sentence
    assert [file.name for file in set_up.folder.iterdir() if file.name.startswith("data")] == ["data.db"]


@pytest.fixture
def closed() -> Iterator[Path]:
    """A folder of somebody else's, as the service's own is under systemd; root is somebody else meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if root:
                os.seteuid(0)
            Path(folder).chmod(0o700)


def test_a_folder_of_somebody_else_is_a_finding(set_up: SetUp, closed: Path) -> None:
    set_up.environ["SESSION_STORE_PATH"] = str(closed / "data.db")
    (store,) = of(Part.STORE, provider_findings(set_up))
    assert store.state is State.PROBLEM and "Permission denied" in store.sentence


def test_nothing_is_left_behind(set_up: SetUp, examined: Callable[[SetUp], list[Finding]]) -> None:
    examined(set_up)
    service = set_up.gateway.app.extensions["authservice"]  # type: ignore[union-attr]
    assert list(service.store.labels()) == []
    assert service.store.inspect().problems == ()


def test_the_command_prints_and_tells_by_its_exit_status(
    set_up: SetUp, examined: Callable[[SetUp], list[Finding]], capsys: pytest.CaptureFixture[str]
) -> None:
    examined(set_up)
    assert main(["doctor"], set_up.environ) == 0
    printed = capsys.readouterr().out
    assert "PROBLEM" not in printed and printed.rstrip().endswith("ok.") and "0 problems" in printed
    assert all(len(line) <= 118 for line in printed.splitlines())
    set_up.gateway.drops = {"cookie"}
    assert main(["doctor"], set_up.environ) == 1
    printed = capsys.readouterr().out
    assert (
        "PROBLEM  wiring" in printed and "-> Envoy: `- {exact: cookie" in printed and "1 problem, " in printed
    )


def test_json_has_one_object_a_line(
    set_up: SetUp, examined: Callable[[SetUp], list[Finding]], capsys: pytest.CaptureFixture[str]
) -> None:
    examined(set_up)
    assert main(["doctor", "--json", "--url", set_up.gateway.origin], set_up.environ) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == {
        "part": "settings",
        "state": "ok",
        "found": "All settings can be used.",
        "remedy": "",
    }
    assert {line["state"] for line in lines} == {"ok", "skipped"}


def test_nothing_but_findings_is_printed(set_up: SetUp) -> None:
    issuer_gone(set_up)
    set_up.environ["REDIRECT_URL"] = ""
    command = [sys.executable, "-m", "authservice.cli", "doctor"]
    ended = subprocess.run(command, env=set_up.environ, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (1, "")
    assert "PROBLEM  further issuers" in ended.stdout


def test_no_secret_is_printed(
    set_up: SetUp, examined: Callable[[SetUp], list[Finding]], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong_secret(set_up)
    examined(set_up)
    main(["doctor"], set_up.environ)
    assert "the-secret-of-another-client" not in capsys.readouterr().out
