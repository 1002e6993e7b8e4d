"""The only HTTP client, against real sockets that behave as badly as sockets can."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from authservice.outbound import BadAnswer, Http, NoAnswer, OutboundFault, TooLarge, Zone
from authservice.strictjson import BadJson
from tests.provider import FakeProvider
from tests.waiting import until

pytestmark = pytest.mark.slow  # real processes, or real time limits

SECOND = timedelta(seconds=1)
SHORT = timedelta(seconds=0.4)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as provider:
        yield provider


class _Recorder(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server: Any = self.server
        server.seen.append((self.command, self.path, dict(self.headers), self.client_address, body))
        answer: bytes = server.body
        self.send_response(200)
        self.send_header("Set-Cookie", "session=planted; Path=/")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET

    def do_CONNECT(self) -> None:
        """A tunnel for one exchange, as a proxy makes it."""
        server: Any = self.server
        server.seen.append((self.command, self.path, dict(self.headers), self.client_address, b""))
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port))) as inner:
            self.send_response(200)
            self.end_headers()
            self.wfile.flush()
            back = threading.Thread(target=_pump, args=(inner, self.connection), daemon=True)
            back.start()
            _pump(self.connection, inner)
            back.join(timeout=5)
        self.close_connection = True


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@contextmanager
def recorder(tls: ssl.SSLContext | None = None, body: bytes = b"{}") -> Iterator[Any]:
    """A server that keeps what it saw in ``seen``."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Recorder)
    server.daemon_threads = True
    server.seen, server.body = [], body
    server.handle_error = lambda *args: None
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def raw_server(talk: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """A socket that speaks as ``talk`` does with each connection, until the test is over."""
    over = threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []

    def one(connection: socket.socket) -> None:
        try:
            talk(connection, over)
        except OSError:
            pass

    def accept() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            connections.append(connection)
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        over.set()
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        for connection in connections:
            connection.close()


def send_slowly(data: bytes, pause: float) -> Callable[[socket.socket, threading.Event], None]:
    def talk(connection: socket.socket, over: threading.Event) -> None:
        for byte in data:
            if over.wait(pause):
                return
            connection.sendall(bytes([byte]))
        over.wait()

    return talk


class TestExchange:
    def test_an_answer_is_a_plain_value(self, fake: FakeProvider) -> None:
        answer = Http().get(fake.address("jwks"), {"X-Mine": "1"})
        assert answer.status == 200 and answer.headers["content-type"] == "application/json"
        assert len(answer.json()["keys"]) == 6
        (call,) = fake.calls()
        assert call.headers["x-mine"] == "1" and call.headers["accept-encoding"] == "identity"

    def test_a_post_sends_its_body_as_it_is(self) -> None:
        with recorder() as server:
            Http().post(
                server.url + "/x?y=1", b"a=%20&b", {"Content-Type": "application/x-www-form-urlencoded"}
            )
            method, path, headers, _, body = server.seen[0]
        assert (method, path, body) == ("POST", "/x?y=1", b"a=%20&b")
        assert headers["Content-Type"] == "application/x-www-form-urlencoded"

    def test_b63_b64_one_connection_serves_many_exchanges(self) -> None:
        http = Http()
        with recorder() as server:
            for _ in range(30):
                http.get(server.url)
                http.post(server.url, b"x")
            assert len({client for _, _, _, client, _ in server.seen}) == 1

    def test_many_threads_at_once(self, fake: FakeProvider) -> None:
        http = Http()
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: http.get(fake.address("jwks")).status, range(80)))
        assert answers == [200] * 80

    def test_a_forked_process_opens_its_own_connections(self) -> None:
        http = Http()
        with recorder() as server:
            http.get(server.url)
            child = os.fork()
            if child == 0:
                try:
                    status = http.get(server.url).status
                except BaseException:
                    status = 0
                os._exit(0 if status == 200 else 1)
            assert os.waitpid(child, 0)[1] == 0
            http.get(server.url)
            mine, childs, again = (client for _, _, _, client, _ in server.seen)
        assert mine == again != childs

    def test_p02_a_redirect_is_an_answer_and_is_not_followed(self, fake: FakeProvider) -> None:
        with recorder() as other:
            fake.misbehave("redirect_userinfo", other.url)
            fake.misbehave("redirect_token", other.url)
            answer = Http().get(fake.address("userinfo"), {"Authorization": "Bearer secret"})
            assert answer.status == 302 and answer.headers["location"] == other.url
            assert Http().post(fake.address("token"), b"code=x").status == 302
            assert not other.seen

    def test_cookies_are_not_kept(self) -> None:
        http = Http()
        with recorder() as server:
            for _ in range(2):
                http.get(server.url)
            assert all("Cookie" not in headers for _, _, headers, _, _ in server.seen)

    def test_credentials_in_files_are_not_used(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password something\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        with recorder() as server:
            Http().get(server.url)
            assert "Authorization" not in server.seen[0][2]

    def test_what_is_not_json_is_told_in_one_way(self, fake: FakeProvider) -> None:
        for name in ("jwks_html", "jwks_deep", "jwks_twice", "jwks_utf16"):
            fake.misbehave(name)
            with pytest.raises(BadJson):
                Http().get(fake.address("jwks")).json()
            fake.behave()

    def test_p04_the_content_type_is_not_asked(self, fake: FakeProvider) -> None:
        fake.misbehave("jwks_html_type")
        answer = Http().get(fake.address("jwks"))
        assert answer.headers["content-type"] == "text/html" and answer.json()["keys"]

    def test_a_connection_that_breaks_before_an_answer_is_tried_once_more_for_get_only(
        self, fake: FakeProvider
    ) -> None:
        fake.misbehave("silent_jwks")
        with pytest.raises(NoAnswer):
            Http().get(fake.address("jwks"))
        assert len(fake.calls("jwks")) == 2
        fake.misbehave("silent_token")
        with pytest.raises(NoAnswer):
            Http().post(fake.address("token"), b"")
        assert len(fake.calls("token")) == 1


class TestTime:
    """P05: the limit is on the whole exchange, not on single reads."""

    @pytest.mark.parametrize(
        "talk",
        [
            send_slowly(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", 0.3),
            send_slowly(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1000, 0.3),
            send_slowly(b"", 1),
            lambda connection, over: (
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"),
                over.wait(),
            ),
            lambda connection, over: [
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                for _ in iter(lambda: over.wait(0.1), True)
            ],
        ],
        ids=["byte-by-byte", "header-without-end", "nothing", "no-body", "continue-for-ever"],
    )
    @pytest.mark.parametrize("method", ["get", "post"])
    def test_p05_a_slow_answer_ends_at_the_total_time(self, talk: Any, method: str) -> None:
        http = Http(timeout=SHORT)
        with raw_server(talk) as url:
            began = time.monotonic()
            with pytest.raises(NoAnswer):
                http.get(url) if method == "get" else http.post(url, b"x=1")
            assert 0.3 < time.monotonic() - began < 2

    @pytest.mark.parametrize(
        "fault,value", [("drip_jwks", 0.1), ("endless_headers_jwks", True), ("slow_jwks", 30)]
    )
    def test_p05_slow_bodies_and_headers(self, fake: FakeProvider, fault: str, value: Any) -> None:
        fake.misbehave(fault, value)
        began = time.monotonic()
        with pytest.raises(NoAnswer):
            Http(timeout=SHORT).get(fake.address("jwks"))
        assert time.monotonic() - began < 3

    def test_p05_broken_off_in_the_middle(self, fake: FakeProvider) -> None:
        fake.misbehave("cut_off_jwks")
        with pytest.raises(NoAnswer):
            Http().get(fake.address("jwks"))

    def test_a_single_call_can_have_less_time(self, fake: FakeProvider) -> None:
        fake.misbehave("slow_jwks", 30)
        began = time.monotonic()
        with pytest.raises(NoAnswer):
            Http().get(fake.address("jwks"), timeout=timedelta(seconds=0.3))
        assert time.monotonic() - began < 2

    def test_time_that_a_connection_waited_in_the_pool_does_not_count(self, fake: FakeProvider) -> None:
        http = Http(timeout=SECOND)
        fake.misbehave("slow_jwks", 0.4)
        assert [http.get(fake.address("jwks")).status for _ in range(4)] == [200] * 4

    def test_a_server_that_stops_reading(self) -> None:
        def talk(connection: socket.socket, over: threading.Event) -> None:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            over.wait()

        http = Http(timeout=10 * SECOND)
        with raw_server(talk) as url:
            http.get(url)
            began = time.monotonic()
            with pytest.raises(NoAnswer):
                http.post(url, b"x" * 30_000_000, timeout=SHORT)
            assert time.monotonic() - began < 3

    def test_a_tls_handshake_that_never_ends(self) -> None:
        with raw_server(send_slowly(b"", 1)) as url:
            began = time.monotonic()
            with pytest.raises(NoAnswer):
                Http(timeout=SHORT).get(url.replace("http:", "https:"))
            assert time.monotonic() - began < 2

    def test_a_name_look_up_that_never_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        release = threading.Event()
        real = socket.getaddrinfo

        def stuck(host: Any, *args: Any, **kwargs: Any) -> Any:
            if host == "provider.example" and not kwargs.get("flags"):
                release.wait(20)
            return real(host, *args, **kwargs)

        monkeypatch.setattr(socket, "getaddrinfo", stuck)
        began = time.monotonic()
        with pytest.raises(NoAnswer):
            Http(timeout=SHORT).get("http://provider.example/")
        assert time.monotonic() - began < 2
        release.set()

    def test_an_address_that_does_not_answer_leaves_time_for_the_next(
        self, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        full = socket.create_server(("127.0.0.2", int(fake.origin.rpartition(":")[2])), backlog=0)
        fillers = []
        for _ in range(8):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
            fillers.append(filler)
        port = full.getsockname()[1]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ("127.0.0.2", "127.0.0.1")]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
        assert Http(timeout=2 * SECOND).get(f"http://provider.example:{port}/jwks").status == 200
        for open_socket in (*fillers, full):
            open_socket.close()

    def test_nobody_there(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        for url in (f"http://127.0.0.1:{port}/", "http://name.invalid/"):
            with pytest.raises(NoAnswer):
                Http().get(url)


class TestSize:
    """J20: reading ends at the limit, and memory stays flat."""

    @pytest.mark.parametrize("fault", ["huge_jwks", "gzip_bomb_jwks"])
    def test_j20_bodies_without_end(self, fake: FakeProvider, fault: str) -> None:
        http = Http(max_bytes=1_000_000)
        http.get(fake.address("jwks"))
        fake.misbehave(fault)
        tracemalloc.start()
        try:
            with pytest.raises(TooLarge):
                http.get(fake.address("jwks"))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        # The fake provider shares this process and holds its megabyte of bomb.
        assert peak < 12_000_000

    def test_j20_the_limit_is_exact(self) -> None:
        http = Http(max_bytes=1000)
        with recorder(body=b"x" * 1000) as server:
            assert len(http.get(server.url).body) == 1000
            server.body = b"x" * 1001
            with pytest.raises(TooLarge):
                http.get(server.url)

    def test_a_compressed_body_within_the_limit_is_read(self) -> None:
        import gzip

        packed = gzip.compress(b'{"a": 1}')
        head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
        with raw_server(lambda connection, over: (connection.sendall(head + packed), over.wait())) as url:
            assert Http().get(url).json() == {"a": 1}

    @pytest.mark.parametrize(
        "answer",
        [
            b"HTTP/1.1 200 OK\r\nX: " + b"y" * 5_000_000,
            b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 60_000) for n in range(99)),
            b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 5_000_000,
        ],
        ids=["one-long-header", "long-headers", "many-headers", "chunk-size-without-end"],
    )
    def test_headers_and_framing_without_end(self, answer: bytes) -> None:
        with raw_server(lambda connection, over: (connection.sendall(answer), over.wait())) as url:
            began = time.monotonic()
            with pytest.raises(OutboundFault):
                Http(timeout=5 * SECOND).get(url)
            assert time.monotonic() - began < 4

    def test_s33_nothing_that_a_server_sends_gets_into_a_log(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        answer = b"HTTP/1.1 200 OK\r\nforged line: without sense\r\n\x00\r\nContent-Length: 2\r\n\r\n{}"
        with raw_server(lambda connection, over: (connection.sendall(answer), connection.close())) as url:
            for _ in range(2):
                with contextlib.suppress(OutboundFault):
                    Http(timeout=SECOND).get(f"{url}/?token=geheim")
        assert not caplog.records

    @pytest.mark.parametrize(
        "answer",
        [
            b"hello\r\n\r\n",
            b"SSH-2.0-OpenSSH\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nxyz",
        ],
    )
    def test_what_is_not_http_is_a_bad_answer(self, answer: bytes) -> None:
        with raw_server(lambda connection, over: (connection.sendall(answer), over.wait())) as url:
            with pytest.raises(BadAnswer):
                Http(timeout=2 * SECOND).get(url)


class TestAddresses:
    @pytest.mark.parametrize(
        "url",
        [
            "file:///etc/passwd",
            "ftp://127.0.0.1/",
            "gopher://127.0.0.1/",
            "127.0.0.1",
            "",
            "http://",
            "http://[::1/",
            "http://a b/",
            "/path",
            "http:///x",
        ],
    )
    def test_p07_nothing_but_http(self, url: str) -> None:
        with pytest.raises(BadAnswer):
            Http().get(url)

    @pytest.mark.parametrize(
        ("address", "zone"),
        [
            ("8.8.8.8", Zone.PUBLIC), ("2001:4860:4860::8888", Zone.PUBLIC),
            ("10.1.2.3", Zone.PRIVATE), ("192.168.1.1", Zone.PRIVATE), ("100.64.0.1", Zone.PRIVATE),
            ("fd00:ec2::254", Zone.PRIVATE), ("::ffff:10.0.0.1", Zone.PRIVATE),
            ("127.0.0.1", Zone.LOOPBACK), ("::1", Zone.LOOPBACK), ("0.0.0.0", Zone.LOOPBACK),
            ("::ffff:127.0.0.1", Zone.LOOPBACK),
            ("169.254.169.254", Zone.LINK_LOCAL), ("fe80::1", Zone.LINK_LOCAL),
            ("::ffff:169.254.169.254", Zone.LINK_LOCAL),
        ],
    )  # fmt: skip
    def test_p07_zones(self, address: str, zone: Zone) -> None:
        assert Zone.of(address) is zone
        assert Http().zone(f"https://{'[' + address + ']' if ':' in address else address}/x") is zone

    def test_p07_a_name_is_judged_by_the_addresses_it_has_when_the_connection_is_made(
        self, fake: FakeProvider
    ) -> None:
        port = fake.origin.rpartition(":")[2]
        for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1"):
            with pytest.raises(BadAnswer):
                Http().get(f"http://{host}:{port}/jwks", farthest=Zone.PRIVATE)
        assert not fake.calls()
        assert Http().get(f"http://127.0.0.1:{port}/jwks", farthest=Zone.LOOPBACK).status == 200

    def test_a_fault_names_the_address_without_user_and_query(self) -> None:
        with pytest.raises(NoAnswer) as caught:
            Http().get("http://user:geheim@127.0.0.1:1/path?token=geheim")
        assert str(caught.value).startswith("http://127.0.0.1:1/path: ") and "geheim" not in str(caught.value)


class TestProxies:
    """B63: proxies from the environment are honoured, with and without further authorities."""

    @pytest.mark.parametrize("with_bundle", [False, True])
    def test_b63_http_and_https_through_a_proxy(
        self, with_bundle: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        if not with_bundle:
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        http = Http(tmp_path / "ca.pem" if with_bundle else None)
        with recorder() as proxy, recorder(server_tls(authority)) as target:
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            assert http.get("http://provider.example/x", farthest=Zone.PUBLIC).status == 200
            assert http.get(target.url + "/y").status == 200
            assert [seen[:2] for seen in proxy.seen] == [
                ("GET", "http://provider.example/x"),
                ("CONNECT", target.url.removeprefix("https://")),
            ]
            assert [seen[1] for seen in target.seen] == ["/y"]

    def test_no_proxy_is_honoured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with recorder() as proxy, recorder() as target:
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
            monkeypatch.setenv("NO_PROXY", "127.0.0.1")
            Http().get(target.url)
            assert len(target.seen) == 1 and not proxy.seen

    def test_the_total_time_holds_through_a_proxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with raw_server(send_slowly(b"HTTP/1.1 200 OK\r\n" * 100, 0.2)) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy)
            began = time.monotonic()
            with pytest.raises(OutboundFault):
                Http(timeout=SHORT).get("https://provider.example/")
            assert time.monotonic() - began < 2.5


def server_tls(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def own_certificate(folder: Path, *, bits: int = 2048, days: int = 1) -> ssl.SSLContext:
    """A self-signed certificate for 127.0.0.1, as bad as asked; its PEM is ``self.pem`` there."""
    import ipaddress

    key = rsa.generate_private_key(65537, bits)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=10))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    (folder / "self.pem").write_bytes(pem)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    (folder / "pair.pem").write_bytes(private + pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.load_cert_chain(folder / "pair.pem")
    return context


class TestCertificates:
    """P06: 502 by `BadAnswer`; the only way round is to trust the authority explicitly."""

    def test_p06_an_unknown_authority(self) -> None:
        with recorder(server_tls(trustme.CA())) as server:
            with pytest.raises(BadAnswer):
                Http().get(server.url)
            assert not server.seen

    def test_a_bundle_is_trusted_besides_the_system(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours, systems = trustme.CA(), trustme.CA()
        ours.cert_pem.write_to_path(tmp_path / "ours.pem")
        systems.cert_pem.write_to_path(tmp_path / "system.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))
        http = Http(tmp_path / "ours.pem")
        with recorder(server_tls(ours)) as one, recorder(server_tls(systems)) as two:
            assert http.get(one.url).status == 200
            assert http.get(two.url).status == 200
            with pytest.raises(BadAnswer):
                Http().get(one.url)

    def test_p06_another_host(self, tmp_path: Path) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        with recorder(server_tls(authority, "provider.example")) as server:
            with pytest.raises(BadAnswer):
                Http(tmp_path / "ca.pem").get(server.url)

    def test_p06_self_signed_is_accepted_only_when_it_is_named(self, tmp_path: Path) -> None:
        with recorder(own_certificate(tmp_path)) as server:
            with pytest.raises(BadAnswer):
                Http().get(server.url)
            assert Http(tmp_path / "self.pem").get(server.url).status == 200

    @pytest.mark.parametrize("fault", [{"days": -1}, {"bits": 1024}], ids=["expired", "weak"])
    def test_p06_expired_or_weak_even_when_it_is_named(self, tmp_path: Path, fault: dict[str, int]) -> None:
        with recorder(own_certificate(tmp_path, **fault)) as server:
            with pytest.raises(BadAnswer):
                Http(tmp_path / "self.pem").get(server.url)
            assert not server.seen

    def test_neither_variables_nor_lists_of_requests_change_whom_we_trust(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        monkeypatch.setattr("requests.adapters.DEFAULT_CA_BUNDLE_PATH", str(tmp_path / "ca.pem"))
        for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            monkeypatch.setenv(name, str(tmp_path / "ca.pem"))
        with recorder(server_tls(authority)) as server:
            with pytest.raises(BadAnswer):
                Http().get(server.url)

    def test_a_bundle_that_is_none_is_told_at_once(self, tmp_path: Path) -> None:
        (tmp_path / "ca.pem").write_text("no certificate")
        for path in (tmp_path / "ca.pem", tmp_path / "missing.pem"):
            with pytest.raises(OSError):
                Http(path)


def test_threads_for_name_look_ups_do_not_pile_up(fake: FakeProvider) -> None:
    http = Http()
    for _ in range(20):
        http.get(fake.address("jwks"))
        http.close()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "name-look-up"])
