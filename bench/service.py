"""AuthService as it is installed, with one worker, and people who are logged in at it.

Started by gunicorn with its own settings file; sessions are made by the service's own classes in
this process, on the store that the worker uses. Filling a store with very many strangers' sessions
goes past them, in bulk.
"""

from __future__ import annotations

import os
import random
import secrets
import sqlite3
import string
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import redis

from authservice import app, settings
from authservice.sessions import Session, to_microseconds
from bench.load import Request
from bench.programs import Program, ask
from tests.servers import free_port

USER = "alice@example.com"
GROUPS = ("admins", "dev")
TARGET = "/notebooks/7?x=1"
HOST = ("Host", "app.example")
TOLD = ("kubeflow-userid", USER)
COOKIE_NAME = "authservice_session"

_RECORD_BYTES = 400
_TOKEN = string.ascii_letters + string.digits + "-_"
_PIECE = 10_000
_FILL_REDIS = """
for number = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  local key = 'authservice:session-' .. redis.sha1hex(number) .. string.format('%024x', number)
  redis.call('SET', key, ARGV[3], 'PX', ARGV[4])
end
"""


class Service:
    """One started AuthService. ``changes`` are settings on top of those that every one has."""

    def __init__(self, name: str, folder: Path, core: int, issuer: str, changes: Mapping[str, str]) -> None:
        folder.mkdir()
        self.port, site = free_port(), free_port()
        self._site = site
        self.settings = {
            "OIDC_PROVIDER": issuer,
            "OIDC_SIGNING_ALGS": "RS256,ES256",
            "CLIENT_ID": "authservice",
            "CLIENT_SECRET": "a-client-secret",
            "AUTHSERVICE_URL_PREFIX": "/authservice/",
            "AUDIENCES": "bench",
            "KUBERNETES_AUTHN_ENABLED": "false",
            "SESSION_COOKIE_SECURE": "false",
            "SESSION_STORE_PATH": str(folder / "sessions.db"),
            "SKIP_AUTH_URLS": "/public",
            "SERVER_HOSTNAME": "127.0.0.1",
            "SERVER_PORT": str(self.port),
            "WEB_SERVER_PORT": str(site),
            "WEB_CONCURRENCY": "1",
            **changes,
        }
        self._name, self._folder, self._core = name, folder, core
        self.program: Program | None = None

    def start(self) -> None:
        """Begins to start; `wait` returns when it is there."""
        command = [sys.executable, "-m", "gunicorn", "-c", "python:authservice.gunicorn_conf", "authservice.wsgi:app"]
        self.program = Program(self._name, command, self._folder, self._core, self.settings)

    def wait(self) -> None:
        assert self.program is not None
        self.program.wait(lambda: ask(self._site, "/readyz")[0] == 200)

    def worker(self) -> int:
        """The process id of its one worker."""
        assert self.program is not None
        return self.program.pids()[1]

    def log_in(self, count: int = 1, *, tokens: bool = False) -> list[str]:
        """Cookies of so many people; with the tokens that a provider gives with a login if asked."""
        service = app.build(settings.load(self.settings))
        try:
            return [
                f"{COOKIE_NAME}={service.sessions.begin(new_session(self.settings['OIDC_PROVIDER'], number, tokens))}"
                for number in range(count)
            ]
        finally:
            service.stop()

    def request(self, *headers: tuple[str, str], target: str = TARGET, status: int = 200,
                tells: tuple[str, str] | None = TOLD) -> Request:  # fmt: skip
        """A check as Envoy asks it."""
        assert self.program is not None
        return Request(self.port, target, (HOST, *headers), status, tells, (self.program,))

    def fill_file(self, count: int) -> None:
        """So many sessions of strangers in its SQLite file, in one transaction."""
        app.build(settings.load(self.settings)).stop()  # makes the file
        expires = to_microseconds(_in_a_day())

        def rows() -> Iterator[tuple[str, bytes, int, int]]:
            for _ in range(count):
                # Sealed bytes look random, behind the number of their form.
                sealed = b"\x01" + os.urandom(_RECORD_BYTES)
                yield "session-" + secrets.token_hex(32), sealed, secrets.randbits(62), expires

        with closing(sqlite3.connect(self.settings["SESSION_STORE_PATH"])) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            with connection:
                connection.executemany(
                    "INSERT INTO entries (key, value, version, expires) VALUES (?, ?, ?, ?)", rows()
                )

    def fill_redis(self, count: int) -> None:
        """So many sessions of strangers in its Redis."""
        expires = _in_a_day()
        value = b"1 %d %d\n\x01" % (secrets.randbits(62), to_microseconds(expires)) + os.urandom(_RECORD_BYTES)
        host, port = self.settings["SESSION_STORE_REDIS_ADDR"].split(":")
        with redis.Redis(host=host, port=int(port)) as client:
            fill = client.register_script(_FILL_REDIS)
            for begin in range(0, count, _PIECE):
                fill(args=[begin, min(begin + _PIECE, count) - 1, value, 86_400_000])


def new_session(issuer: str, number: int = 0, tokens: bool = False) -> Session:
    """What a login of a person makes; with the tokens that come with it, if asked."""
    now = datetime.now(timezone.utc)
    subject = f"248289761{number:06}"
    token = secrets.token_urlsafe(750) if tokens else ""  # 1000 characters, as providers' are
    return Session(
        user_id=USER,
        groups=GROUPS,
        claims={"sub": subject, "email": USER, "email_verified": True, "name": "Alice", "groups": list(GROUPS)},
        issuer=issuer,
        subject=subject,
        id_token=token,
        access_token=token[::-1],
        refresh_token=token[:40],
        created=now,
        last_seen=now,
        expires=now + timedelta(hours=20),
    )


def _in_a_day() -> datetime:
    return datetime.fromtimestamp(time.time() + 86_400, timezone.utc)


def browser(cookie: str, cookie_bytes: int = 4096) -> tuple[tuple[str, str], ...]:
    """15 headers as a browser and Envoy send them, and a Cookie header of so many bytes, in which
    the session's cookie stands among others: values of letters and digits, the same in each run."""
    filler = cookie_bytes - len(cookie) - 2
    draw = random.Random("cookies of other applications").choices
    values = ("".join(draw(_TOKEN, k=192)) for _ in range(filler // 202 + 1))
    others = "; ".join(f"_app{number:02}={value}" for number, value in enumerate(values))[: filler - 2]
    front, back = others[: len(others) // 2].rpartition("; ")[0], others[len(others) // 2 :].partition("; ")[2]
    joined = f"{front}; {cookie}; {back}"
    joined += "v" * (cookie_bytes - len(joined))
    return (
        ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0"),
        ("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"),
        ("Accept-Language", "en-GB,en;q=0.9,de;q=0.8"),
        ("Accept-Encoding", "gzip, deflate, br, zstd"),
        ("Cookie", joined),
        ("Referer", "https://app.example/notebooks/"),
        ("Sec-Ch-Ua", '"Chromium";v="142", "Not=A?Brand";v="24"'),
        ("Sec-Ch-Ua-Mobile", "?0"),
        ("Sec-Ch-Ua-Platform", '"Linux"'),
        ("Sec-Fetch-Site", "same-origin"),
        ("Sec-Fetch-Mode", "cors"),
        ("Sec-Fetch-Dest", "empty"),
        ("X-Forwarded-For", "203.0.113.7"),
        ("X-Forwarded-Proto", "https"),
        ("X-Request-Id", "5b1f6d9e-7f6e-4a3b-9c39-6c5d2a7f10b3"),
    )


NAVIGATION = (
    ("Accept", "text/html,application/xhtml+xml"),
    ("Sec-Fetch-Site", "none"),
    ("Sec-Fetch-Mode", "navigate"),
    ("Sec-Fetch-Dest", "document"),
)
"""Somebody opens a page."""
