"""The doctor: each of these set-ups is broken in one way; it is found, and its remedy named. A good one is
all green."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import trustme

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
    (token_endpoint_gone, Part.CLIENT, "cannot be reached", "OIDC_TOKEN_URL"),
    (issuer_gone, Part.ISSUERS, "discovery", "BEARER_ISSUERS"),
    (redis_gone, Part.STORE, "does not answer", "SESSION_STORE_REDIS_ADDR"),
    (damaged_store, Part.STORE, "does not answer", "authservice sessions check"),
    (faulty_policy, Part.POLICIES, "policy.yaml:3", "authservice policy check"),
    (gateway_gone, Part.GATEWAY, "does not answer", "the gateway runs"),
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
        "found": "A service with these settings would start.",
        "remedy": "",
    }
    assert {line["state"] for line in lines} == {"ok", "skipped"}


def test_no_secret_is_printed(
    set_up: SetUp, examined: Callable[[SetUp], list[Finding]], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong_secret(set_up)
    examined(set_up)
    main(["doctor"], set_up.environ)
    assert "the-secret-of-another-client" not in capsys.readouterr().out
