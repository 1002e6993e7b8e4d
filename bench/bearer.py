"""What a check costs by the credential it comes with, and by policies, without the server's sockets.

Builds the service as `authservice.app` does, from settings, and asks `Judge.answer` in this process.
Tokens are of the tests' provider, of which the service asks discovery and keys once. Time is this
thread's processor time. Rows take turns in rounds, so that a busy moment hits all of them, and
ratios are medians over the rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jwt

from authservice import app, settings
from authservice.check import RequestParts
from bench import policies
from bench.service import COOKIE_NAME, USER, new_session
from tests.provider import FakeProvider, ec_key

AUDIENCE = "bench"
ROUNDS, SECONDS = 40, 0.02

COOKIE, CACHED = "cookie", "bearer token, cached"
ONE_POLICY = "cookie, one policy"
MANY_POLICIES = f"cookie, {policies.MANY:,} policies on {policies.MANY_HOSTS} hosts"
JUDGED, BARE = "JWT {}, not cached", "PyJWT alone, {}"
WANTED = (
    (CACHED, COOKIE, 1.5),
    (MANY_POLICIES, ONE_POLICY, 1.3),
    (JUDGED.format("RS256"), BARE.format("RS256"), 1.3),
    (JUDGED.format("ES256"), BARE.format("ES256"), 1.3),
)
"""A row, what it is divided by, and the ratio of their times that is wanted at most."""


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


def checking(service: app.Service, headers: Mapping[str, str]) -> Callable[[], None]:
    """One check, which must be allowed."""
    parts = RequestParts("GET", "/notebooks/7?x=1", {"host": "app.example", **headers}, "127.0.0.1")
    told = ("kubeflow-userid", USER)

    def check() -> None:
        reply = service.judge.answer(parts)
        if reply.status != 200 or told not in reply.headers:
            raise SystemExit(f"the check was answered with {reply.status} {reply.body[:200]!r}")

    return check


def bare(key: Any, algorithm: str, issuer: str, token: str) -> Callable[[], None]:
    """PyJWT's verification and nothing else, with the key at hand."""

    def verify() -> None:
        jwt.decode(token, key, algorithms=[algorithm], audience=AUDIENCE, issuer=issuer)

    return verify


def measure(provider: FakeProvider, folder: Path, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds of this thread for one check, by row, one figure for each round."""
    issuer = provider.issuer
    until = int(time.time()) + 3600
    # Before any service asks for the keys: two threads that make one at once make two.
    tokens: dict[str, tuple[Any, str]] = {
        "RS256": (provider.signing_key, provider.access_token(AUDIENCE, exp=until)),
        "ES256": (ec_key(0), provider.access_token(AUDIENCE, exp=until, key=ec_key(0), header={"kid": "es"})),
    }
    plain, caching = build(issuer, folder), build(issuer, folder, CACHE_ENABLED="true")
    one_policy = build(issuer, folder, **policies.write(folder / "one"))
    many_policies = build(issuer, folder, **policies.write(folder / "many", policies.MANY_HOSTS))
    services = (plain, caching, one_policy, many_policies)
    for service in services:
        service.start()  # without its watch on the store, it would read it at every check
    secret = plain.sessions.begin(new_session(issuer))
    cookie = {"cookie": f"{COOKIE_NAME}={secret}"}
    rows = {
        COOKIE: checking(plain, cookie),
        ONE_POLICY: checking(one_policy, cookie),
        MANY_POLICIES: checking(many_policies, cookie),
    }
    for algorithm, (key, token) in tokens.items():
        bearer = {"authorization": f"Bearer {token}"}
        rows.setdefault(CACHED, checking(caching, bearer))
        rows[JUDGED.format(algorithm)] = checking(plain, bearer)
        rows[BARE.format(algorithm)] = bare(key.public_key(), algorithm, issuer, token)
    try:
        return _in_turns(rows, rounds)
    finally:
        for service in services:
            service.stop()


def _in_turns(rows: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in rows}
    repeats = {}
    for name, call in rows.items():
        call()
        began, count = time.thread_time(), 0
        while time.thread_time() - began < SECONDS:
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
