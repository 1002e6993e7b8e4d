"""What is known about the provider: discovery, keys, retry, lifetime, and the rules for addresses."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from authservice.check import NeedsIO, Reach
from authservice.errors import NotReady, ProviderMisdescribed, ProviderWrong
from authservice.oidc import source
from authservice.oidc.metadata import MetadataWrong, Overrides, discovery_address, read_metadata
from authservice.oidc.provider import Provider
from authservice.oidc.source import COOL_DOWN, KEY_FETCH_BURST, METADATA_LIFETIME
from authservice.outbound import Http, Zone
from tests.provider import FakeProvider, public_jwk, rsa_key
from tests.relying_party import MovableClock, RelyingParty
from tests.waiting import until


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as provider:
        yield provider


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def make(fake: FakeProvider, clock: MovableClock) -> Iterator[Callable[..., Provider]]:
    made: list[Provider] = []

    def make_provider(issuer: str = "", seconds: float = 5, **more: Any) -> Provider:
        http = Http(timeout=timedelta(seconds=seconds))
        made.append(Provider(issuer or fake.issuer, http, now=clock, jitter=lambda: 0, **more))
        return made[-1]

    yield make_provider
    for provider in made:
        provider.stop()


def endpoints(fake: FakeProvider) -> list[str]:
    return [call.endpoint for call in fake.calls()]


class TestDiscovery:
    def test_d14_keys_are_fetched_together_with_the_metadata(
        self, fake: FakeProvider, make: Callable[..., Provider]
    ) -> None:
        provider = make()
        assert not provider.ready
        metadata = provider.metadata()
        assert provider.ready and endpoints(fake) == ["discovery", "jwks"]
        assert metadata.token_endpoint == fake.address("token") and metadata.issuer == fake.issuer
        assert len(provider.keys()) >= 1
        provider.metadata(), provider.keys(), provider.ensure_known()
        assert endpoints(fake) == ["discovery", "jwks"]

    @pytest.mark.parametrize(
        ("issuer", "address"),
        [
            ("https://a.example", "https://a.example/.well-known/openid-configuration"),
            ("https://a.example/", "https://a.example/.well-known/openid-configuration"),
            ("https://a.example/x/y/", "https://a.example/x/y/.well-known/openid-configuration"),
            ("https://a.example/x", "https://a.example/x/.well-known/openid-configuration"),
        ],
    )
    def test_d7_one_slash(self, issuer: str, address: str) -> None:
        assert discovery_address(issuer) == address

    def test_a16_an_issuer_with_a_path_and_a_trailing_slash(self) -> None:
        with FakeProvider(path="/realms/one/") as fake:
            rp = RelyingParty(fake)
            assert fake.issuer.endswith("/realms/one/")
            assert rp.login().claims["iss"] == fake.issuer
            (call,) = fake.calls("discovery")
            assert call.path == "/realms/one/.well-known/openid-configuration" and not fake.calls("unknown")
            fake.metadata["issuer"] = fake.issuer.rstrip("/")
            with pytest.raises(ProviderMisdescribed):
                RelyingParty(fake).begin()

    def test_a15_d13_another_issuer_is_refused_and_right_again_when_it_is_mended(
        self, fake: FakeProvider, clock: MovableClock
    ) -> None:
        fake.misbehave("other_issuer")
        rp = RelyingParty(fake, clock=clock)
        with pytest.raises(ProviderMisdescribed) as caught:
            rp.begin()
        assert caught.value.status == 502 and fake.calls("authorize") == [] and fake.calls("jwks") == []
        fake.behave()
        with pytest.raises(NotReady):
            rp.begin()
        assert len(fake.calls("discovery")) == 1, "not again within the cool-down"
        clock.advance(seconds=2)
        assert rp.login()

    def test_a15_a_wrong_document_is_not_asked_again_by_the_clock(
        self, fake: FakeProvider, make: Callable[..., Provider]
    ) -> None:
        fake.misbehave("other_issuer")
        provider = make()
        provider.start()
        until(lambda: not any(thread.name == "provider" for thread in threading.enumerate()))
        assert len(fake.calls("discovery")) == 1

    @pytest.mark.parametrize(
        "fault", ["discovery_error_404", "discovery_error_500", "jwks_error_500", "silent_discovery"]
    )
    def test_a20_d8_recovers_by_itself_from_a_bad_start(
        self, fake: FakeProvider, make: Callable[..., Provider], monkeypatch: pytest.MonkeyPatch, fault: str
    ) -> None:
        monkeypatch.setattr("authservice.oidc.provider.FIRST_PAUSE", 0.05)
        fake.misbehave(fault)
        provider = make()
        provider.start()
        until(lambda: len(fake.calls()) >= 4)
        with pytest.raises(NotReady) as caught:
            provider.metadata(Reach.MEMORY)
        assert caught.value.status == 503
        fake.behave()
        until(lambda: provider.ready)

    def test_a20_nobody_there_at_first(
        self, fake: FakeProvider, make: Callable[..., Provider], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("authservice.oidc.provider.FIRST_PAUSE", 0.05)
        fake.stop()
        provider = make()
        provider.start()
        with pytest.raises(NotReady):
            provider.metadata()
        fake.start()
        until(lambda: provider.ready)

    def test_d8_asked_at_the_next_request_too(
        self, fake: FakeProvider, make: Callable[..., Provider], clock: MovableClock
    ) -> None:
        fake.misbehave("discovery_error_500")
        provider = make()
        with pytest.raises(NotReady):
            provider.metadata()
        fake.behave()
        clock.advance(seconds=COOL_DOWN.total_seconds() + 1)
        assert provider.metadata()

    def test_pauses_grow_and_have_an_end(
        self, fake: FakeProvider, make: Callable[..., Provider], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake.misbehave("discovery_error_500")
        provider = make()
        pauses: list[float] = []

        def wait(pause: float) -> bool:
            pauses.append(pause)
            if len(pauses) == 8:
                provider._stopping.set()
            return False

        monkeypatch.setattr(provider._stopping, "wait", wait)
        provider._keep_asking()
        assert pauses == [0.5, 1, 2, 4, 8, 15, 15, 15]

    def test_d9_once_known_nothing_is_called_that_no_request_needs(
        self, fake: FakeProvider, make: Callable[..., Provider], clock: MovableClock
    ) -> None:
        provider = make()
        provider.start()
        until(lambda: provider.ready)
        clock.advance(days=3)
        until(lambda: not any(thread.name == "provider" for thread in threading.enumerate()))
        with pytest.raises(NeedsIO):
            provider.metadata(Reach.MEMORY)
        provider.ensure_known()
        assert endpoints(fake) == ["discovery", "jwks"]

    def test_many_requests_at_once_ask_once(self, fake: FakeProvider, make: Callable[..., Provider]) -> None:
        fake.misbehave("slow_discovery", 0.3)
        provider = make()
        with ThreadPoolExecutor(10) as pool:
            found = list(pool.map(lambda _: provider.metadata(), range(10)))
        assert len(found) == 10 and len(fake.calls("discovery")) == 1

    @pytest.mark.slow
    def test_a_provider_that_hangs_holds_up_one_request_and_not_all(
        self, fake: FakeProvider, make: Callable[..., Provider]
    ) -> None:
        """As many callers as a worker has threads wait for the fetch's first second, and none later."""
        threads = 20
        fake.misbehave("slow_discovery", 60)
        provider = make(seconds=4)

        def ask(_: int = 0) -> float:
            began = time.monotonic()
            with pytest.raises(NotReady):
                provider.metadata()
            return time.monotonic() - began

        with ThreadPoolExecutor(threads + 1) as pool:
            asking = pool.submit(ask)
            until(lambda: fake.calls("discovery"))
            assert max(pool.map(ask, range(threads))) < 1.5
            assert max(pool.map(ask, range(threads))) < 0.5
            assert not asking.done()
            assert asking.result() < 8
        assert ask() < 0.5
        assert len(fake.calls("discovery")) == 1

    def test_memory_reach_never_waits(
        self, fake: FakeProvider, make: Callable[..., Provider], clock: MovableClock
    ) -> None:
        provider = make()
        with pytest.raises(NeedsIO):
            provider.metadata(Reach.MEMORY)
        assert not fake.calls()
        fake.misbehave("discovery_error_500")
        with pytest.raises(NotReady):
            provider.metadata()
        with pytest.raises(NotReady):
            provider.metadata(Reach.MEMORY)
        fake.behave()
        clock.advance(seconds=2)
        provider.metadata()
        assert provider.metadata(Reach.MEMORY)
        clock.advance(days=1)
        with pytest.raises(NeedsIO):
            provider.metadata(Reach.MEMORY)
        assert len(fake.calls("discovery")) == 2
        fake.misbehave("discovery_error_500")
        assert provider.metadata() is provider.metadata(Reach.MEMORY), "the last good one, as it was asked in vain"

    def test_a_clock_that_is_set_back_does_not_stop_it(
        self, fake: FakeProvider, make: Callable[..., Provider], clock: MovableClock
    ) -> None:
        fake.misbehave("discovery_error_500")
        provider = make()
        with pytest.raises(NotReady):
            provider.metadata()
        fake.behave()
        clock.advance(days=-3)
        assert provider.metadata()

    def test_start_twice_and_after_a_fork(self, fake: FakeProvider, make: Callable[..., Provider]) -> None:
        fake.misbehave("discovery_error_500")
        provider = make()
        provider.start()
        provider.start()
        assert sum(thread.name == "provider" for thread in threading.enumerate()) == 1
        with provider._fetching:
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    provider.start()
                    alive = any(thread.name == "provider" for thread in threading.enumerate())
                    status = 0 if alive and provider._fetching.acquire(timeout=5) else 1
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0

    def test_state_changes_are_logged_once_and_without_the_provider_s_words(
        self,
        fake: FakeProvider,
        make: Callable[..., Provider],
        clock: MovableClock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.DEBUG, "authservice")
        fake.misbehave("discovery_error_500")
        provider = make()
        for _ in range(3):
            with pytest.raises(NotReady):
                provider.metadata()
            clock.advance(minutes=1)
        fake.behave()
        provider.metadata()
        assert [record.getMessage() for record in caplog.records] == [
            "provider_unreachable",
            "provider_ready",
        ]
        assert caplog.records[0].issuer == fake.issuer and "status 500" in caplog.records[0].cause
        assert "secret detail" not in caplog.text


class TestLifetime:
    def test_a17_old_metadata_is_fetched_again_when_a_request_needs_it(
        self, fake: FakeProvider, make: Callable[..., Provider], clock: MovableClock
    ) -> None:
        provider = make()
        provider.metadata()
        fake.jwks_path = "jwks-elsewhere"
        fake.metadata["userinfo_endpoint"] = None
        clock.advance(seconds=METADATA_LIFETIME.total_seconds() + 1)
        assert provider.metadata().userinfo_endpoint is None
        assert [call.path for call in fake.calls("jwks")] == ["/jwks", "/jwks-elsewhere"]

    @pytest.mark.parametrize(
        "fault", ["discovery_error_500", "other_issuer", "jwks_error_500", "discovery_html", "jwks_html"]
    )
    def test_p09_the_last_good_one_is_kept(
        self, fake: FakeProvider, make: Callable[..., Provider], clock: MovableClock, fault: str
    ) -> None:
        provider = make()
        before, keys = provider.metadata(), provider.keys()
        fake.misbehave(fault)
        clock.advance(hours=2)
        assert provider.metadata() is before and provider.keys() is keys
        asked = len(fake.calls())
        assert provider.metadata() is before and len(fake.calls()) == asked, "not at every request"
        fake.behave()
        clock.advance(seconds=5)
        assert provider.metadata() is not before

    def test_j24_an_empty_key_set_never_replaces_a_good_one(
        self, fake: FakeProvider, make: Callable[..., Provider], clock: MovableClock
    ) -> None:
        provider = make()
        keys = provider.keys()
        for given in (
            {"keys": []},
            {"keys": [{"kty": "oct", "k": "AAAA"}]},
            b"not json",
            {"keys": "none"},
            {},
        ):
            fake.misbehave("key_set", given)
            clock.advance(hours=2)
            assert provider.keys() is keys
            with pytest.raises(NotReady):
                provider.newer_keys(keys)

    def test_j24_an_empty_key_set_at_first(self, fake: FakeProvider, make: Callable[..., Provider]) -> None:
        fake.misbehave("key_set", {"keys": []})
        with pytest.raises(ProviderMisdescribed):
            make().metadata()

    def test_j23_a_dropped_key_ends_with_the_lifetime_or_a_refetch(
        self, fake: FakeProvider, clock: MovableClock
    ) -> None:
        rp = RelyingParty(fake, clock=clock)
        rp.login()
        old_key, old_kid = fake.signing_key, fake.kid
        fake.rotate_keys()

        def by_the_old_key(good: dict[str, Any], _: object) -> str:
            import jwt

            return jwt.encode(good, old_key, algorithm="RS256", headers={"kid": old_kid})

        fake.misbehave("id_token", by_the_old_key)
        assert rp.login(), "within the documented window"
        clock.advance(hours=2)
        fake.clock = clock
        rp.refused_login(ProviderWrong)


class TestRotation:
    def test_d10_a18_new_keys_just_before_signing(self, fake: FakeProvider) -> None:
        rp = RelyingParty(fake)
        rp.begin()
        fake.misbehave("rotated_key")
        assert rp.login()
        assert len(fake.calls("jwks")) == 2 and len(fake.calls("discovery")) == 1

    def test_a19_two_logins_with_new_keys_between_them(self, fake: FakeProvider) -> None:
        rp = RelyingParty(fake)
        rp.login()
        fake.rotate_keys()
        assert rp.login()
        assert len(fake.calls("jwks")) == 2 and len(fake.calls("userinfo")) == 2

    def test_a17_an_unknown_key_finds_the_new_address(self, fake: FakeProvider) -> None:
        rp = RelyingParty(fake)
        rp.login()
        fake.rotate_keys()
        fake.jwks_path = "jwks-moved"
        assert rp.login()

    def test_a10_a_bad_signature_refetches_at_most_once(self, fake: FakeProvider) -> None:
        rp = RelyingParty(fake)
        rp.refused_login(ProviderWrong, "bad_signature")
        assert len(fake.calls("jwks")) <= 2 and not fake.calls("userinfo")

    def test_rotation_without_kids(self, fake: FakeProvider) -> None:
        fake.misbehave("no_kid")
        rp = RelyingParty(fake)
        rp.login()
        fake.rotate_keys()
        assert rp.login()

    def test_j13_unknown_kids_cause_few_fetches_and_good_logins_go_on(
        self, fake: FakeProvider, clock: MovableClock
    ) -> None:
        rp = RelyingParty(fake, clock=clock)
        rp.login()
        fake.forget_calls()
        for number in range(40):
            rp.refused_login(ProviderWrong, "unknown_kid")
            if number % 10 == 0:
                fake.behave()
                assert rp.login()
        assert len(fake.calls("jwks")) == KEY_FETCH_BURST
        clock.advance(seconds=11)
        rp.refused_login(ProviderWrong, "unknown_kid")
        rp.refused_login(ProviderWrong, "unknown_kid")
        assert len(fake.calls("jwks")) == KEY_FETCH_BURST + 1

    def test_j13_a_thousand_unknown_kids(
        self, fake: FakeProvider, make: Callable[..., Provider], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(source, "PATIENCE", timedelta(minutes=1))  # whoever waits is told, however busy the machine
        provider = make()
        keys = provider.keys()
        with ThreadPoolExecutor(8) as pool:
            assert not any(pool.map(lambda _: provider.newer_keys(keys), range(1000)))
        assert len(fake.calls("jwks")) <= 1 + KEY_FETCH_BURST

    def test_many_tokens_by_a_new_key_at_once_cause_one_fetch(
        self, fake: FakeProvider, make: Callable[..., Provider], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(source, "PATIENCE", timedelta(minutes=1))
        provider = make()
        keys = provider.keys()
        fake.rotate_keys()
        fake.misbehave("slow_jwks", 0.3)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: provider.newer_keys(keys), range(8)))
        assert len(fake.calls("jwks")) == 2
        assert all(new is not None and new.names(fake.kid) for new in found)

    def test_newer_keys_under_memory_reach(self, fake: FakeProvider, make: Callable[..., Provider]) -> None:
        provider = make()
        keys = provider.keys()
        with pytest.raises(NeedsIO):
            provider.newer_keys(keys, Reach.MEMORY)
        fake.rotate_keys()
        newer = provider.newer_keys(keys)
        assert newer is not None and provider.newer_keys(keys, Reach.MEMORY) is newer
        for _ in range(KEY_FETCH_BURST):
            provider.newer_keys(newer)
        assert provider.newer_keys(newer, Reach.MEMORY) is None, "nothing would be asked any more"

    def test_before_the_provider_is_known_there_are_no_newer_keys(
        self, make: Callable[..., Provider]
    ) -> None:
        from authservice.oidc.keys import KeySet

        assert make().newer_keys(KeySet(())) is None


class TestTransport:
    @pytest.mark.parametrize("endpoint", ["discovery", "jwks"])
    def test_p02_redirects_are_not_followed(
        self, fake: FakeProvider, make: Callable[..., Provider], endpoint: str
    ) -> None:
        with FakeProvider() as other:
            fake.misbehave(f"redirect_{endpoint}", other.address(".well-known/openid-configuration"))
            with pytest.raises(ProviderMisdescribed):
                make().metadata()
            assert not other.calls()

    @pytest.mark.parametrize("endpoint", ["discovery", "jwks"])
    @pytest.mark.parametrize(
        "fault", ["{}_html", "{}_deep", "{}_twice", "{}_utf16", "huge_{}", "gzip_bomb_{}"]
    )
    def test_p04_j19_j20_bodies_that_are_no_answer(
        self, fake: FakeProvider, make: Callable[..., Provider], endpoint: str, fault: str
    ) -> None:
        fake.misbehave(fault.format(endpoint))
        with pytest.raises(ProviderMisdescribed):
            make().metadata()

    @pytest.mark.parametrize(
        "fault,value",
        [("drip_{}", 0.05), ("endless_headers_{}", True), ("cut_off_{}", True), ("slow_{}", 30)],
    )
    @pytest.mark.parametrize("endpoint", ["discovery", "jwks"])
    def test_p05_slow_or_broken_off(
        self, fake: FakeProvider, make: Callable[..., Provider], endpoint: str, fault: str, value: Any
    ) -> None:
        fake.misbehave(fault.format(endpoint), value)
        began = time.monotonic()
        with pytest.raises(NotReady) as caught:
            make(seconds=0.4).metadata()
        assert caught.value.status == 503 and time.monotonic() - began < 3.5

    def test_p04_the_content_type_does_not_count(
        self, fake: FakeProvider, make: Callable[..., Provider]
    ) -> None:
        fake.misbehave("discovery_html_type")
        assert make().metadata()


ISSUER = "https://provider.example"
DOCUMENT: dict[str, Any] = {
    "issuer": ISSUER,
    "authorization_endpoint": f"{ISSUER}/authorize",
    "token_endpoint": f"{ISSUER}/token",
    "jwks_uri": "https://keys.example/jwks",
    "userinfo_endpoint": f"{ISSUER}/userinfo",
}


def read(
    issuer: str = ISSUER, overrides: Overrides = Overrides(), zone: Zone = Zone.PUBLIC, **changes: Any
) -> Any:
    document = {
        name: value for name, value in {**DOCUMENT, "issuer": issuer, **changes}.items() if value is not ...
    }
    return read_metadata(document, issuer, overrides, "client_secret_basic", zone)


class TestDocument:
    def test_what_is_optional_may_be_missing(self) -> None:
        metadata = read(userinfo_endpoint=...)
        assert metadata.userinfo_endpoint is None and metadata.revocation_endpoint is None
        assert metadata.announces_iss is False

    @pytest.mark.parametrize(
        "issuer", [ISSUER + "/", ISSUER.upper(), None, [ISSUER], 1, ..., "http://provider.example"]
    )
    def test_d13_the_issuer_is_compared_exactly(self, issuer: Any) -> None:
        with pytest.raises(MetadataWrong):
            read_metadata(
                {**DOCUMENT, "issuer": issuer}, ISSUER, Overrides(), "client_secret_basic", Zone.PUBLIC
            )

    @pytest.mark.parametrize("name", ["authorization_endpoint", "token_endpoint", "jwks_uri"])
    @pytest.mark.parametrize("value", [..., None, "", 1, [], {}, True, ["https://provider.example/x"]])
    def test_p08_needed_members(self, name: str, value: Any) -> None:
        with pytest.raises(MetadataWrong) as caught:
            read(**{name: value})
        assert name in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("userinfo_endpoint", 1), ("userinfo_endpoint", ""), ("revocation_endpoint", []),
            ("end_session_endpoint", {}),
            ("introspection_endpoint", False), ("authorization_response_iss_parameter_supported", "true"),
            ("authorization_response_iss_parameter_supported", 1),
            ("token_endpoint_auth_methods_supported", "client_secret_basic"),
            ("token_endpoint_auth_methods_supported", {}),
        ],
    )  # fmt: skip
    def test_p08_wrong_types(self, name: str, value: Any) -> None:
        with pytest.raises(MetadataWrong) as caught:
            read(**{name: value})
        assert name in str(caught.value)

    @pytest.mark.parametrize("methods", [["client_secret_post"], [], ["CLIENT_SECRET_BASIC"]])
    def test_p08_our_way_to_authenticate_is_not_among_those_supported(self, methods: list[str]) -> None:
        with pytest.raises(MetadataWrong) as caught:
            read(token_endpoint_auth_methods_supported=methods)
        assert "client_secret_basic" in str(caught.value)
        assert read(token_endpoint_auth_methods_supported=[*methods, "client_secret_basic"])

    @pytest.mark.parametrize(
        "name",
        [
            "authorization_endpoint",
            "token_endpoint",
            "jwks_uri",
            "userinfo_endpoint",
            "revocation_endpoint",
            "end_session_endpoint",
        ],
    )
    @pytest.mark.parametrize(
        "address",
        [
            "http://provider.example/x", "file:///etc/passwd", "ftp://provider.example/",
            "javascript:alert(1)", "data:,x",
            "//provider.example/x", "/x", "x", "https://", "https:///x", "https://user@provider.example/", "https://a:b@provider.example/",
            "https://provider.example/#f", "https://provider.example/\r\nX: y",
            "https://provider.example/ x", "https://provider.example\\@evil.example/",
            "https://provider.example:99999/", "https://[::1/", "https://" + "a" * 3000, "https://pröv.example/",
            "https://169.254.169.254/latest/meta-data", "https://127.0.0.1/", "https://localhost/", "https://x.localhost/",
            "https://[::1]/", "https://10.0.0.1/", "https://192.168.0.1/", "https://[fd00::1]/",
            "https://0.0.0.0/", "https://[::ffff:127.0.0.1]/",
        ],
        ids=lambda value: value[:34].replace("\r\n", "CRLF"),
    )  # fmt: skip
    def test_p07_addresses(self, name: str, address: str) -> None:
        with pytest.raises(MetadataWrong) as caught:
            read(**{name: address})
        assert name in str(caught.value) and "evil" not in str(caught.value)

    def test_p07_an_http_issuer_may_have_http_endpoints(self) -> None:
        assert read("http://provider.example", token_endpoint="http://provider.example/t").token_endpoint

    @pytest.mark.parametrize(
        ("zone", "host", "fits"),
        [
            (Zone.PUBLIC, "8.8.8.8", True), (Zone.PRIVATE, "10.0.0.1", True), (Zone.PRIVATE, "8.8.8.8", True),
            (Zone.PRIVATE, "127.0.0.1", False), (Zone.PRIVATE, "169.254.169.254", False),
            (Zone.LOOPBACK, "127.0.0.1", True), (Zone.LOOPBACK, "10.0.0.1", True),
            (Zone.LOOPBACK, "169.254.169.254", False),
        ],
    )  # fmt: skip
    def test_p07_as_far_inside_as_the_issuer_and_no_further(self, zone: Zone, host: str, fits: bool) -> None:
        if fits:
            assert read(zone=zone, token_endpoint=f"https://{host}/t").farthest(f"https://{host}/t") is zone
            return
        with pytest.raises(MetadataWrong):
            read(zone=zone, token_endpoint=f"https://{host}/t")

    def test_p07_a_name_that_leads_inside_is_refused_when_it_is_called(self, fake: FakeProvider) -> None:
        rp = RelyingParty(fake)
        rp.http.zone = lambda url: Zone.PRIVATE  # as if the issuer lay in another network
        fake.metadata.update({
            name: fake.address(path).replace("127.0.0.1", "localtest.example")
            for name, path in {"token_endpoint": "token", "authorization_endpoint": "authorize",
                               "userinfo_endpoint": "userinfo", "revocation_endpoint": "revoke"}.items()
        })  # fmt: skip
        fake.metadata["jwks_uri"] = fake.address("jwks").replace("127.0.0.1", "2130706433")
        with pytest.raises(ProviderMisdescribed):
            rp.begin()
        assert not fake.calls("jwks")

    def test_overrides_replace_and_are_taken_as_they_are(self) -> None:
        overrides = Overrides(
            authorization_endpoint="/dex/auth?connector=x", token_endpoint="http://dex.auth.svc/token",
            jwks_uri="http://127.0.0.1/keys", userinfo_endpoint="http://10.0.0.1/me", revocation_endpoint="http://x/revoke",
        )  # fmt: skip
        metadata = read(
            overrides=overrides, authorization_endpoint=..., token_endpoint="file:///x", jwks_uri=...
        )
        assert metadata.authorization_endpoint == "/dex/auth?connector=x"
        assert metadata.token_endpoint == "http://dex.auth.svc/token"
        assert metadata.farthest("http://127.0.0.1/keys") is Zone.LINK_LOCAL
        assert metadata.farthest("https://keys.example/jwks") is Zone.PUBLIC


def test_p08_the_reason_is_in_the_log(fake: FakeProvider, caplog: pytest.LogCaptureFixture) -> None:
    fake.metadata["token_endpoint_auth_methods_supported"] = ["client_secret_post"]
    with pytest.raises(ProviderMisdescribed):
        RelyingParty(fake).begin()
    (record,) = caplog.records
    assert record.getMessage() == "provider_misdescribed"
    assert (
        record.cause == "discovery document: token_endpoint_auth_methods_supported lacks client_secret_basic"
    )


def test_overrides_reach_every_endpoint(fake: FakeProvider) -> None:
    with FakeProvider() as elsewhere:
        elsewhere.claims = fake.claims
        overrides = Overrides(
            authorization_endpoint=fake.address("authorize") + "?kc_idp_hint=x",
            jwks_uri=fake.address("jwks") + "?a=b",
        )
        fake.metadata.update(
            authorization_endpoint=elsewhere.address("authorize"), jwks_uri=elsewhere.address("jwks")
        )
        rp = RelyingParty(fake, overrides=overrides)
        assert "?kc_idp_hint=x&response_type=code" in rp.begin().url
        assert rp.login()
        assert not elsewhere.calls() and fake.calls("jwks")[0].path == "/jwks?a=b"


def test_several_rsa_keys_and_rotation_with_overlap(fake: FakeProvider) -> None:
    keys = [*fake.key_set()["keys"], public_jwk(rsa_key(2), kid="older", use="sig")]
    fake.misbehave("key_set", {"keys": keys})
    assert RelyingParty(fake).login()
