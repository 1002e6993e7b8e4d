"""What a check costs by the credential it comes with: `make bench`.

Builds the service as `authservice.app` does, from settings, and asks `Judge.answer` in this process:
everything but the server's sockets is measured. The provider is a thread that answers discovery and
keys once; tokens are made here. Time is this thread's processor time. Rows take turns in rounds, so
that a busy moment hits all of them, and ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from authservice import app, settings
from authservice.check import RequestParts
from authservice.sessions import Session

AUDIENCE = "bench"
USER = "alice@example.com"


@dataclass
class Keys:
    """A signing key of each algorithm, by its name; the name is also the key id."""

    private: dict[str, Any] = field(
        default_factory=lambda: {
            "RS256": rsa.generate_private_key(65537, 2048),
            "ES256": ec.generate_private_key(ec.SECP256R1()),
        }
    )

    def key_set(self) -> dict[str, Any]:
        makers = {"RS256": jwt.algorithms.RSAAlgorithm, "ES256": jwt.algorithms.ECAlgorithm}
        public = [
            {**json.loads(makers[name].to_jwk(key.public_key())), "kid": name, "alg": name, "use": "sig"}
            for name, key in self.private.items()
        ]
        return {"keys": public}

    def token(self, algorithm: str, issuer: str) -> str:
        now = int(time.time())
        claims = {
            "iss": issuer, "sub": "8b1f", "aud": AUDIENCE, "client_id": "ci", "jti": "1", "scope": "read",
            "iat": now, "exp": now + 3600, "email": USER, "groups": ["developers", "admins"],
        }  # fmt: skip
        return jwt.encode(claims, self.private[algorithm], algorithm, headers={"kid": algorithm, "typ": "at+jwt"})


@contextmanager
def provider(keys: Keys) -> Iterator[str]:
    """Answers discovery and keys; gives the issuer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer = f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]
            metadata = {
                "issuer": issuer, "authorization_endpoint": issuer + "/auth", "token_endpoint": issuer + "/token",
                "jwks_uri": issuer + "/keys", "response_types_supported": ["code"],
                "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["RS256", "ES256"],
            }  # fmt: skip
            body = json.dumps(keys.key_set() if self.path == "/keys" else metadata).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def build(issuer: str, folder: Path, **changes: str) -> app.Service:
    return app.build(
        settings.load(
            {
                "OIDC_PROVIDER": issuer,
                "OIDC_SIGNING_ALGS": "RS256,ES256",
                "CLIENT_ID": "bench",
                "CLIENT_SECRET": "a-secret-of-the-benchmark",
                "AUTHSERVICE_URL_PREFIX": "/authservice/",
                "SESSION_STORE_PATH": str(folder / "sessions.db"),
                "AUDIENCES": AUDIENCE,
                "KUBERNETES_AUTHN_ENABLED": "false",
                **changes,
            }
        )
    )


def session_of(service: app.Service, issuer: str) -> str:
    now = datetime.now(timezone.utc)
    return service.sessions.begin(
        Session(
            user_id=USER, groups=("developers", "admins"), claims={"email": USER, "sub": "8b1f"}, issuer=issuer,
            subject="8b1f", created=now, last_seen=now, expires=now + timedelta(hours=1),
        )  # fmt: skip
    )


def checking(service: app.Service, headers: Mapping[str, str]) -> Callable[[], None]:
    """One check, which must be allowed."""
    parts = RequestParts("GET", "/notebooks/7?x=1", {"host": "app.example", **headers}, "127.0.0.1")
    told = ("kubeflow-userid", USER)

    def check() -> None:
        reply = service.judge.answer(parts)
        if reply.status != 200 or told not in reply.headers:
            raise SystemExit(f"the check was answered with {reply.status} {reply.body[:200]!r}")

    return check


def bare(keys: Keys, algorithm: str, issuer: str, token: str) -> Callable[[], None]:
    """PyJWT's verification and nothing else, with the key at hand."""
    key = keys.private[algorithm].public_key()

    def verify() -> None:
        jwt.decode(token, key, algorithms=[algorithm], audience=AUDIENCE, issuer=issuer)

    return verify


def measure(rows: Mapping[str, Callable[[], None]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of this thread for one call, by row, one figure for each round."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    repeats = {}
    for name, call in rows.items():
        call()
        began, count = time.thread_time(), 0
        while time.thread_time() - began < seconds:
            call()
            count += 1
        repeats[name] = count
    for _ in range(rounds):
        for name, call in rows.items():
            began = time.thread_time()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.thread_time() - began) / repeats[name])
    return times


COOKIE, CACHED = "cookie", "bearer token, cached"
JUDGED, BARE = "JWT {}, not cached", "PyJWT alone, {}"
TARGETS = (
    (CACHED, COOKIE, 1.5),
    (JUDGED.format("RS256"), BARE.format("RS256"), 1.3),
    (JUDGED.format("ES256"), BARE.format("ES256"), 1.3),
)


def report(times: Mapping[str, list[float]]) -> bool:
    """Prints rates and ratios; whether all targets are met."""
    print(f"{'':26}{'per second':>12}{'each':>12}")
    for name, figures in times.items():
        middle = statistics.median(figures)
        print(f"{name:26}{1 / middle:12,.0f}{middle * 1e6:9.1f} µs")
    print()
    met = True
    for name, base, most in TARGETS:
        ratio = statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))
        met &= ratio <= most
        print(f"{name} / {base}: {ratio:.2f}, wanted {most:.1f} at most: {'met' if ratio <= most else 'NOT met'}")
    return met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=0.02, help="for one row of one round")
    parser.add_argument("--check", action="store_true", help="exit status 1 when a target is not met")
    given = parser.parse_args()
    keys = Keys()
    with provider(keys) as issuer, tempfile.TemporaryDirectory() as folder:
        plain = build(issuer, Path(folder))
        caching = build(issuer, Path(folder), CACHE_ENABLED="true")
        rows = {COOKIE: checking(plain, {"cookie": f"authservice_session={session_of(plain, issuer)}"})}
        for algorithm in keys.private:
            token = keys.token(algorithm, issuer)
            bearer = {"authorization": f"Bearer {token}"}
            if CACHED not in rows:
                rows[CACHED] = checking(caching, bearer)
            rows[JUDGED.format(algorithm)] = checking(plain, bearer)
            rows[BARE.format(algorithm)] = bare(keys, algorithm, issuer, token)
        times = measure(rows, given.rounds, given.seconds)
        for service in (plain, caching):
            service.stop()
    if not report(times) and given.check:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
