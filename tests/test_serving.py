"""The service as it is really served: gunicorn, two ports, real sockets, with either class of worker."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.conftest import CLIENT_SECRET
from tests.ports import free_port
from tests.waiting import until

pytestmark = pytest.mark.slow  # real processes, or real time limits

ROOT = Path(__file__).parent.parent
LIMIT = 30


class Served:
    """One gunicorn with its ports, and everything that it wrote."""

    def __init__(self, environ: dict[str, str], log: Path) -> None:
        self.judge, self.site, self.probe = free_port(), free_port(), free_port()
        self.log = log
        ports = {"SERVER_PORT": str(self.judge), "WEB_SERVER_PORT": str(self.site),
                 "READINESS_PROBE_PORT": str(self.probe), "SERVER_HOSTNAME": "127.0.0.1"}
        command = [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "wsgi:app"]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **ports, **environ}, stdout=output, stderr=subprocess.STDOUT
            )

    def url(self, path: str = "/", port: int | None = None) -> str:
        return f"http://127.0.0.1:{port or self.judge}{path}"

    def get(self, path: str = "/", port: int | None = None, **headers: str) -> requests.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return requests.get(self.url(path, port), headers=named, allow_redirects=False, timeout=LIMIT)

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.get("/healthz", self.site).ok
        except requests.ConnectionError:
            return False

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(LIMIT)


@pytest.fixture(params=["fast", "gthread"])
def worker_class(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def serve(environ: dict[str, str], tmp_path: Path, worker_class: str) -> Iterator[Callable[..., Served]]:
    running: list[Served] = []

    def start(**changes: str) -> Served:
        chosen = {"WORKER_CLASS": worker_class, "WEB_CONCURRENCY": "2"}
        served = Served({**environ, **chosen, **changes}, tmp_path / f"gunicorn-{len(running)}.log")
        running.append(served)
        until(served.answers, LIMIT)
        return served

    yield start
    for served in running:
        if served.process.poll() is None:
            served.stop()
        assert CLIENT_SECRET not in served.log.read_text()


def raw(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_two_ports_and_the_readiness_listener(serve: Callable[..., Served]) -> None:
    served = serve(SKIP_AUTH_URLS="/open")
    assert served.get("/anything").status_code == 302
    assert served.get("/open").status_code == 200 and served.get("/open").content == b""
    assert served.get("/site/homepage", served.site).status_code == 200
    assert served.get("/site/homepage", served.judge, Host=f"x:{served.site}").status_code == 302
    assert served.get("/", served.site, Host=f"x:{served.judge}").status_code == 404
    until(lambda: served.get("/readyz", served.site).ok)
    assert served.get("/any", served.probe).status_code == 200


def test_s35_no_method_or_path_meets_an_answer_of_the_server(serve: Callable[..., Served]) -> None:
    served = serve(UNAUTHENTICATED_RESPONSE="401")
    targets = ("/", "//", "//a//b", "/a%2Fb", "/a/../b", "/a;b?c=%zz", "/%00")
    questions = [(method, target) for method in ("GET", "HEAD", "TRACE", "PROPFIND", "BREW", "M-SEARCH")
                 for target in targets]
    # The asterisk is for OPTIONS alone (RFC 9112 §3.2.4).
    for method, target in [*questions, ("OPTIONS", "/"), ("OPTIONS", "*")]:
        head = f"{method} {target} HTTP/1.1\r\nHost: app.example\r\nConnection: close\r\n\r\n"
        answer = raw(served.judge, head.encode())
        assert answer.startswith(b"HTTP/1.1 401 "), (method, target, answer[:80])


def test_h11_32_kb_of_headers_pass_and_larger_ones_cost_no_worker(serve: Callable[..., Served]) -> None:
    served = serve(UNAUTHENTICATED_RESPONSE="401")
    before = worker_pids(served)
    assert served.get("/", Cookie="a=" + "x" * 32768).status_code == 401
    many = {f"X-Header-{number}": "v" * 300 for number in range(100)}
    assert served.get("/", **many).status_code == 401
    assert served.get("/", **{f"X-Header-{number}": "v" * 7000 for number in range(30)}).status_code == 431
    for size in (70_000, 400_000):
        answer = raw(served.judge, b"GET / HTTP/1.1\r\nHost: h\r\nCookie: " + b"x" * size + b"\r\n\r\n")
        assert answer[:13] in (b"HTTP/1.1 431 ", b"HTTP/1.1 400 "), answer[:80]
    assert served.get("/").status_code == 401 and worker_pids(served) == before


def test_nothing_that_a_client_sends_changes_scheme_path_or_peer(serve: Callable[..., Served]) -> None:
    served = serve(SKIP_AUTH_URLS="/open")
    head = ("GET /secret HTTP/1.1\r\nHost: h\r\nConnection: close\r\nSCRIPT_NAME: /secret\r\nPATH_INFO: /open\r\n"
            "X-Forwarded-Proto: https\r\nX-Forwarded-Ssl: on\r\nForwarded: proto=https\r\n\r\n")
    answer = raw(served.judge, head.encode())
    assert answer.startswith(b"HTTP/1.1 302 ") and b"Secure" not in answer


def test_connections_that_stop_in_mid_head_keep_nobody_waiting_for_ever(serve: Callable[..., Served]) -> None:
    served = serve(WEB_CONCURRENCY="1")
    idle = [socket.create_connection(("127.0.0.1", served.judge), timeout=LIMIT) for _ in range(20)]
    try:
        for connection in idle:
            connection.sendall(b"GET / HT")
        assert served.get("/healthz", served.site).ok, "answered within the time limit of this request"
    finally:
        for connection in idle:
            connection.close()


def test_both_workers_refuse_the_same_requests_with_the_same_words(serve: Callable[..., Served]) -> None:
    served = serve(UNAUTHENTICATED_RESPONSE="401")
    shapes = {
        b"GET / HTTP/1.1\r\nHost: h\r\nHost: h": 400, b"GET / HTTP/1.1\r\nHost: h\r\nA : b": 400,
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked": 400,
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: br": 501, b"GET / HTTP/1.1\r\nHost: h\r\nExpect: x": 417,
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: h": 414, b"GET / HTTP/1.1\r\nHost: h" + b"\r\nA: b" * 201: 431,
        b"GET / HTTP/1.1\r\nHost: h" + (b"\r\nA: " + b"b" * 30_000) * 3: 431,
        b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999": 413,
        b"POST / HTTP/1.1\r\nHost: h\r\nX_Y: z\r\nContent-Length: 3": 401,
    }
    for head, status in shapes.items():
        answer = raw(served.judge, head + b"\r\n\r\nabc")
        assert answer.startswith(b"HTTP/1.1 %d " % status), (head[:90], answer[:90])


def test_the_heartbeat_goes_on_and_a_worker_that_hangs_is_replaced(serve: Callable[..., Served]) -> None:
    served = serve(WEB_CONCURRENCY="1", GUNICORN_CMD_ARGS="--timeout 3")
    [worker] = worker_pids(served)
    asked = time.monotonic()
    until(lambda: time.monotonic() > asked + 5 or worker_pids(served) != {worker}, LIMIT)
    assert worker_pids(served) == {worker}, "idle, and well"
    os.kill(worker, signal.SIGSTOP)
    until(lambda: worker not in worker_pids(served) and served.answers(), LIMIT)


def test_a_worker_that_has_answered_enough_is_replaced(serve: Callable[..., Served]) -> None:
    served = serve(WEB_CONCURRENCY="1", GUNICORN_CMD_ARGS="--max-requests 20", SKIP_AUTH_URLS="/open")
    before = worker_pids(served)
    for _ in range(30):
        assert served.get("/open").status_code == 200
    until(lambda: worker_pids(served) and not worker_pids(served) & before, LIMIT)
    assert served.get("/open").status_code == 200


def test_a_reload_under_load_fails_no_check(serve: Callable[..., Served]) -> None:
    served = serve(SKIP_AUTH_URLS="/open")
    before = worker_pids(served)
    over = threading.Event()

    def ask() -> int:
        count = 0
        with requests.Session() as session:
            while not over.is_set():
                answer = session.get(served.url("/open"), timeout=LIMIT)
                assert answer.status_code == 200
                count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        served.process.send_signal(signal.SIGHUP)
        try:
            until(lambda: len(worker_pids(served)) == 2 and not worker_pids(served) & before, LIMIT)
        finally:
            over.set()
        assert sum(each.result(LIMIT) for each in asking) > 0


def worker_pids(served: Served) -> set[int]:
    tasks = Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children")
    if not tasks.exists():
        pytest.skip("needs /proc")
    return {int(pid) for pid in tasks.read_text().split()}


def test_a_killed_worker_is_replaced_and_sigterm_ends_all(serve: Callable[..., Served]) -> None:
    served = serve()
    before = worker_pids(served)
    os.kill(min(before), signal.SIGKILL)
    until(lambda: len(worker_pids(served)) == 2 and worker_pids(served) != before, LIMIT)
    assert served.get("/x").status_code == 302
    assert served.stop() == 0


def test_acceptance_every_setting_wrong_at_once_prints_them_all_and_exits_2(tmp_path: Path) -> None:
    wrong = {
        "OIDC_PROVIDER": "not a url", "CLIENT_SECRET": "a-secret-value-to-hide", "AUTHSERVICE_URL_PREFIX": "/",
        "SERVER_PORT": "eighty", "SESSION_MAX_AGE": "24h", "SESSION_STORE_TYPE": "mongo", "GATEWAY": "apache",
        "SESSION_SAME_SITE": "sometimes", "USERID_TRANSFORMERS": "[{", "LOG_LEVEL": "loud", "CACHE_ENABLED": "on",
        "TRUSTED_PROXIES": "everybody", "OIDC_SIGNING_ALGS": "none", "CA_BUNDLE": "/does/not/exist",
    }
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OIDC", "CLIENT"))}
    run = subprocess.run(
        [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "wsgi:app"],
        cwd=ROOT, env={**environ, **wrong}, capture_output=True, text=True, timeout=LIMIT, check=False,
    )
    assert run.returncode == 2
    for name in {*wrong, "CLIENT_ID"} - {"CLIENT_SECRET", "CA_BUNDLE"}:
        assert re.search(rf"^\W*{name}:", run.stderr, re.MULTILINE), f"{name} is not named"
    assert "a-secret-value-to-hide" not in run.stdout + run.stderr
    assert "Traceback" not in run.stderr
