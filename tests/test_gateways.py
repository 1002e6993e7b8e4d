"""Dialects: what each gateway sends becomes the same question, and what a client adds is not believed."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from authservice.check import RequestParts
from authservice.errors import Misdirected
from authservice.gateways import (
    EnvoyDialect,
    ForwardAuthDialect,
    Gateways,
    OwnPaths,
    VerifyDialect,
)
from authservice.trust import Trust

OWN = OwnPaths(
    callback="/authservice/oidc/callback",
    login="/authservice/login",
    logout="/authservice/logout",
    verify="/authservice/verify",
    forward_auth="/authservice/forward-auth",
)
NOBODY = Trust((), None)
LOCAL = Trust([ip_network("127.0.0.0/8"), ip_network("10.0.0.0/8")], None)


def parts(target: str = "/", method: str = "GET", peer: str | None = "127.0.0.1", **headers: str) -> RequestParts:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return RequestParts(method, target, {"host": "App.Example:8443", **named}, peer)


FORGED = {
    "x_forwarded_uri": "/public/",
    "x_original_url": "/public/",
    "x_original_uri": "/public/",
    "x_forwarded_method": "OPTIONS",
    "x_original_method": "OPTIONS",
    "x_rewrite_url": "/public/",
    "x_http_method_override": "OPTIONS",
    "x_forwarded_host": "evil.example",
    "x_auth_request_redirect": "/public/",
}


def test_of_the_peers_asked_about_few_are_remembered() -> None:
    trust = Trust([ip_network("10.0.0.0/8")], None)
    for number in range(5000):
        assert trust.trusts(f"10.0.{number >> 8}.{number & 255}") and not trust.trusts(f"hop {number}")
        assert not trust.trusts("10.0.0.1%" + "x" * number if number > 60 else None)
    assert trust._is_proxy.cache_info().currsize <= 4096


class TestEnvoy:
    def test_the_request_line_and_host_are_the_question(self) -> None:
        check = EnvoyDialect(NOBODY).read(parts("/a%20b//c;p=1?q=1&next=%2Fx", "PROPFIND"))
        assert (check.method, check.host, check.target) == ("PROPFIND", "app.example:8443", "/a%20b//c;p=1?q=1&next=%2Fx")
        assert check.path is None, "a path with // and ; is not canonical without doubt"

    @pytest.mark.parametrize("trust", [NOBODY, LOCAL], ids=["untrusted", "trusted"])
    def test_s07_spoofed_origin_headers_are_ignored_even_from_a_trusted_peer(self, trust: Trust) -> None:
        check = EnvoyDialect(trust).read(parts("/secret?x=1", **FORGED))
        assert (check.method, check.target, check.path, check.host) == ("GET", "/secret?x=1", "/secret", "app.example:8443")

    def test_h04_the_scheme_is_believed_from_trusted_proxies_only(self) -> None:
        sent = parts(x_forwarded_proto="https")
        assert EnvoyDialect(NOBODY).read(sent).scheme is None
        assert EnvoyDialect(LOCAL).read(sent).scheme == "https"
        assert EnvoyDialect(LOCAL).read(parts(x_forwarded_proto="https", peer="192.0.2.1")).scheme is None
        assert EnvoyDialect(LOCAL).read(parts(x_forwarded_proto="gopher")).scheme is None

    def test_g15_the_settings_outrank_every_header(self) -> None:
        trust = Trust([ip_network("127.0.0.1")], "https")
        assert EnvoyDialect(trust).read(parts(x_forwarded_proto="http")).scheme == "https"

    @pytest.mark.parametrize(
        ("prefix", "sent", "original"),
        [
            ("/check", "/check/app?q=/check", "/app?q=/check"),
            ("/check", "/check/check/app", "/check/app"),
            ("/check", "/check//app", "//app"),
            ("/check", "/check", "/"),
            ("/check", "/check?a=b", "/?a=b"),
            ("/check/", "/check//app", "/app"),
            ("", "/check/app", "/check/app"),
        ],
    )
    def test_g11_the_check_prefix_is_cut_exactly(self, prefix: str, sent: str, original: str) -> None:
        assert EnvoyDialect(NOBODY, prefix).read(parts(sent)).target == original

    @pytest.mark.parametrize("sent", ["/app", "/checkpoint", "/CHECK/app", "/x/check/app"])
    def test_g11_what_does_not_come_through_the_check_prefix_is_misdirected(self, sent: str) -> None:
        with pytest.raises(Misdirected):
            EnvoyDialect(NOBODY, "/check").read(parts(sent))

    def test_a_target_that_the_server_did_not_keep_is_protected(self) -> None:
        sent = RequestParts("GET", None, {}, None)
        assert EnvoyDialect(NOBODY).read(sent).path is None


class TestClientAddress:
    def test_b27_forwarded_for_counts_from_trusted_proxies_only(self) -> None:
        forged = parts(x_forwarded_for="203.0.113.9, 198.51.100.7, 10.1.1.1")
        assert NOBODY.client(forged) == "127.0.0.1"
        assert LOCAL.client(forged) == "198.51.100.7"

    @pytest.mark.parametrize("value", ["", "garbage", "1.2.3.4<script>", ",,,"])
    def test_b27_garbage_gives_the_peer(self, value: str) -> None:
        assert LOCAL.client(parts(x_forwarded_for=value)) == "127.0.0.1"

    def test_b27_ipv6_is_kept_whole(self) -> None:
        assert NOBODY.client(parts(peer="2001:db8::1")) == "2001:db8::1"
        assert Trust([ip_network("127.0.0.0/8")], None).trusts("::ffff:127.0.0.1")


class TestVerify:
    @pytest.mark.parametrize(
        ("sent", "original"),
        [
            ("/authservice/verify/app/x?q=%2F&r", "/app/x?q=%2F&r"),
            ("/authservice/verify//x", "//x"),
            ("/authservice/verify", ""),
            ("/authservice/verify?x=/public/", ""),
        ],
    )
    def test_the_original_path_follows_the_endpoint(self, sent: str, original: str) -> None:
        check = VerifyDialect(NOBODY, OWN.verify, nginx=False).read(parts(sent, **FORGED))
        assert check.target == original
        assert check.path in (original.partition("?")[0], None)

    def test_without_an_original_path_no_rule_can_open_it(self) -> None:
        assert VerifyDialect(NOBODY, OWN.verify, nginx=False).read(parts("/authservice/verify?/public")).path is None

    def test_nginx_tells_in_headers(self) -> None:
        check = VerifyDialect(NOBODY, OWN.verify, nginx=True).read(
            parts(OWN.verify, x_original_uri="/deep/link?a=b%2Fc", x_original_method="POST", x_forwarded_proto="https")
        )
        assert (check.method, check.scheme, check.target, check.path) == ("POST", "https", "/deep/link?a=b%2Fc", "/deep/link")

    def test_ingress_nginx_tells_an_absolute_address(self) -> None:
        check = VerifyDialect(NOBODY, OWN.verify, nginx=True).read(
            parts(OWN.verify, x_original_url="https://Other.Example/x?y=1", x_original_method="GET")
        )
        assert (check.scheme, check.host, check.target) == ("https", "other.example", "/x?y=1")

    def test_a_path_behind_the_endpoint_outranks_headers_that_nobody_overwrites(self) -> None:
        check = VerifyDialect(NOBODY, OWN.verify, nginx=True).read(parts(OWN.verify + "/secret", **FORGED))
        assert (check.target, check.method) == ("/secret", "GET")

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"x_original_uri": "/a"},
            {"x_original_method": "GET"},
            {"x_original_uri": "/a,/b", "x_original_method": "GET"},
            {"x_original_uri": "/a, https://x/b", "x_original_method": "GET"},
            {"x_original_uri": "/a", "x_original_method": "GET,POST"},
            {"x_original_uri": "/a", "x_original_url": "https://x/b", "x_original_method": "GET"},
            {"x_original_uri": "a", "x_original_method": "GET"},
            {"x_original_uri": "", "x_original_method": "GET"},
            {"x_original_url": "ftp://x/b", "x_original_method": "GET"},
            {"x_original_uri": "/a", "x_forwarded_uri": "/b", "x_original_method": "GET"},
            {"x_original_url": "https://x/a", "x_forwarded_uri": "/b", "x_original_method": "GET"},
            {"x_original_uri": "/a", "x_original_method": "GET", "x_forwarded_method": "PUT"},
            {"x_original_uri": "/a", "x_original_method": "post"},
            # One of the two is the client's own, and nobody says which.
            {"x_original_url": "https://x/a", "x_forwarded_uri": "/a", "x_original_method": "GET"},
        ],
    )
    def test_missing_doubled_or_contradicting_headers_are_a_misconfiguration(self, headers: dict[str, str]) -> None:
        with pytest.raises(Misdirected):
            VerifyDialect(NOBODY, OWN.verify, nginx=True).read(parts(OWN.verify, **headers))

    def test_headers_that_tell_the_same_may_all_be_there(self) -> None:
        told = {"x_original_url": "https://app.example:8443/a?b", "x_original_method": "PUT"}
        sent = parts(OWN.verify, x_forwarded_uri="/a?b", x_forwarded_method="PUT", **told)
        check = VerifyDialect(NOBODY, OWN.verify, nginx=True).read(sent)
        assert (check.target, check.host, check.method) == ("/a?b", "app.example:8443", "PUT")

    def test_a_comma_in_a_path_is_no_second_copy(self) -> None:
        check = VerifyDialect(NOBODY, OWN.verify, nginx=True).read(
            parts(OWN.verify, x_original_uri="/map/@52.1,4.3", x_original_method="GET")
        )
        assert check.target == "/map/@52.1,4.3"

    @pytest.mark.parametrize("target", ["/a?urls=http://a,http://b", "/a?x=1,/2", "/public/?x,/admin"])
    def test_s07_a_query_that_looks_like_a_second_copy_is_judged_but_opens_nothing(self, target: str) -> None:
        check = VerifyDialect(NOBODY, OWN.verify, nginx=True).read(
            parts(OWN.verify, x_original_uri=target, x_original_method="GET")
        )
        assert (check.target, check.path) == (target, None)

    @pytest.mark.parametrize("address", ["http://[x/", "http://", "https:///x", "ftp://x/y"])
    def test_an_address_that_is_none_is_a_misconfiguration(self, address: str) -> None:
        with pytest.raises(Misdirected):
            VerifyDialect(NOBODY, OWN.verify, nginx=True).read(
                parts(OWN.verify, x_original_url=address, x_original_method="GET")
            )

    def test_named_proxies_are_the_only_ones_believed(self) -> None:
        sent = parts(OWN.verify, peer="192.0.2.1", x_original_uri="/a", x_original_method="GET")
        with pytest.raises(Misdirected):
            VerifyDialect(LOCAL, OWN.verify, nginx=True).read(sent)


class TestForwardAuth:
    GOOD = {
        "x_forwarded_method": "DELETE",
        "x_forwarded_proto": "https",
        "x_forwarded_host": "App.Example",
        "x_forwarded_uri": "/x?y=//z",
    }

    def test_the_four_headers_are_the_question(self) -> None:
        sent = parts("/authservice/forward-auth?appended=by-caddy", **self.GOOD)
        check = ForwardAuthDialect("traefik", NOBODY).read(sent)
        assert (check.method, check.scheme, check.host, check.target) == ("DELETE", "https", "app.example", "/x?y=//z")

    @pytest.mark.parametrize("missing", list(GOOD))
    def test_each_must_be_there(self, missing: str) -> None:
        headers = {name: value for name, value in self.GOOD.items() if name != missing}
        with pytest.raises(Misdirected):
            ForwardAuthDialect("caddy", NOBODY).read(parts(OWN.forward_auth, **headers))

    @pytest.mark.parametrize("doubled", list(GOOD))
    def test_none_may_be_there_twice(self, doubled: str) -> None:
        headers = {**self.GOOD, doubled: f"{self.GOOD[doubled]},{self.GOOD[doubled]}"}
        with pytest.raises(Misdirected):
            ForwardAuthDialect("caddy", NOBODY).read(parts(OWN.forward_auth, **headers))


class TestChoice:
    def test_a_dialect_that_is_not_chosen_is_not_there(self) -> None:
        only_nginx = Gateways(["nginx"], NOBODY, OWN)
        assert isinstance(only_nginx.dialect(parts(OWN.verify)), VerifyDialect)
        for target in ("/", OWN.forward_auth, "/authservice/verifyfoo"):
            with pytest.raises(Misdirected):
                only_nginx.dialect(parts(target))
        envoy = Gateways(["envoy"], NOBODY, OWN)
        assert isinstance(envoy.dialect(parts("/authservice/verifyfoo")), EnvoyDialect)

    @pytest.mark.parametrize("tells", ["x_forwarded_method", "x_forwarded_uri", "x_original_uri", "x_original_url"])
    @pytest.mark.parametrize("target", ["/authservice/forward-auth", "/authservice/forwardauth?via=caddy", "/authservice"])
    def test_our_own_open_paths_are_no_answer_to_a_gateway_whose_dialect_was_not_chosen(
        self, target: str, tells: str
    ) -> None:
        for envoy in (Gateways(["envoy"], NOBODY, OWN), Gateways(["envoy", "nginx"], LOCAL, OWN)):
            with pytest.raises(Misdirected):
                envoy.dialect(parts(target, **{tells: "/secret"}))
            with pytest.raises(Misdirected):
                envoy.dialect(parts(OWN.forward_auth))
            assert isinstance(envoy.dialect(parts("/authservice/site/homepage")), EnvoyDialect)
            assert isinstance(envoy.dialect(parts("/authservices", **{tells: "/x"})), EnvoyDialect)

    def test_several_dialects_live_side_by_side(self) -> None:
        both = Gateways(["envoy", "traefik", "caddy"], NOBODY, OWN)
        assert isinstance(both.dialect(parts("/app")), EnvoyDialect)
        assert isinstance(both.dialect(parts(OWN.forward_auth + "?via=caddy")), ForwardAuthDialect)
        assert isinstance(both.dialect(parts(OWN.verify + "/x")), VerifyDialect)
        assert isinstance(both.dialect(parts(OWN.verify + "/x/../y")), VerifyDialect)

    @pytest.mark.parametrize(
        ("target", "door"),
        [
            ("/authservice/oidc/callback?code=c&state=s", "callback"),
            ("/authservice/logout", "logout"),
            ("/authservice/login?rd=%2F", "login"),
            ("/check/authservice/logout", "logout"),
            ("/authservice/logout/x", None),
            ("/authservice/verify/authservice/logout", None),
            ("/x?/authservice/logout", None),
            ("/authservice//logout", None),
        ],
    )
    def test_h09_doors_are_found_by_path_and_not_through_another_dialect(self, target: str, door: str | None) -> None:
        assert Gateways(["envoy", "nginx", "caddy"], NOBODY, OWN, "/check").place(target).door == door
