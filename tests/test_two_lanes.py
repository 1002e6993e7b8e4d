"""The law of the two lanes: whenever the fast lane answers, the full path gives the same answer.

Stories are generated: settings, sessions that begin and end here and elsewhere, a clock that moves, and
requests of every shape. Each request is asked on both lanes and of a twin that has no lane and remembers no
session, with the clock held and the same random bytes; status, headers, body and log lines are compared. A lane
without an answer must leave no trace. The whole suite asks both lanes, too (`tests.conftest.ask`).
"""

from __future__ import annotations

import json
import logging
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import hypothesis
import pytest
from flask import Flask
from hypothesis import strategies as st
from werkzeug.test import create_environ, run_wsgi_app

from authservice import outbound, startup
from authservice.app import create_app
from authservice.check import NeedsIO, Reach
from authservice.errors import NotReady, SettingsError
from authservice.sessions import Session
from authservice.sessions.live import Sessions
from authservice.sessions.seal import new_secret, store_key
from tests.conftest import CLIENT_ID, CLIENT_SECRET
from tests.lanes import (
    TAPE, Lines, assert_same, counted_by_the_judge, counting, listening, probe, told_by_the_judge,
)
from tests.policy_sets import authentication, policy
from tests.provider import FakeProvider, public_jwk, rsa_key
from tests.sample_sessions import checked
from tests.ports import free_port
from tests.servers import RedisServer, any_redis, running_redis
from tests.test_authz_external import running as running_authorizer
from tests.waiting import until

DATA = Path(__file__).parent / "data"
SHARDS = 8
HOUSES_PER_SHARD = 5
STORIES_PER_SHARD = 280
REQUESTS = (8, 12)
"""How many requests a story has, at least and at most: more than 20 000 in all shards together."""

SEED = int(os.environ.get("TWO_LANES_SEED", "0"))
"""Another number tells other stories."""


class Held:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.moment = datetime(2031, 5, 6, 7, 8, 9, 123456, tzinfo=timezone.utc)

    def __call__(self) -> datetime:
        return self.moment


# --- settings ----------------------------------------------------------------------------------

CHOICES: dict[str, list[str | None]] = {
    "GATEWAY": ["envoy", "envoy", "nginx", "traefik", "caddy", "envoy,nginx", "envoy,traefik,caddy",
                "nginx,caddy", "envoy,nginx,traefik,caddy"],
    "CHECK_PATH_PREFIX": [None, None, None, "/check", "/check/", "/authservice/check"],
    "SKIP_AUTH_URLS": [None, "/public/,/open", "/public/,/open", "/", "/dex,/a%20b,/ü", "https://x.example/y,/public/"],
    "UNAUTHENTICATED_RESPONSE": [None, None, "redirect", "401"],
    "ALLOW_CORS_PREFLIGHT": [None, "true"],
    "OAUTH2_PROXY_COMPAT": [None, "true"],
    "GROUPS_ALLOWLIST": [None, None, None, None, "admins", "dev,ünï", ""],
    "USERID_CLAIM": [None, "preferred_username"],
    "USERID_HEADER": [None, None, "X-Forwarded-User", ""],
    "GROUPS_HEADER": [None, None, "x-auth-groups", ""],
    "AUTH_METHOD_HEADER": [None, None, ""],
    "USERID_PREFIX": [None, None, "oidc:", "a%b "],
    "UPSTREAM_ACCESS_TOKEN_HEADER": [None, None, None, "X-Auth-Request-Access-Token", "Authorization"],
    "UPSTREAM_ID_TOKEN_HEADER": [None, None, None, "x-id-token"],
    "UPSTREAM_HEADERS": [None, None, "oauth2-proxy", '{"X-Name": "name", "X-Plan": "plan.of", "X-Groups": "groups"}'],
    "UPSTREAM_ASSERTION_HEADER": [None, "X-Assertion"],
    "UPSTREAM_ASSERTION_AUDIENCE": [None, None, "apps"],
    "SECRET_KEYS": [None, "a-key-of-the-house-that-nobody-knows"],
    "USERID_TRANSFORMERS": [None, None, None, None, '[{"matches": "@example[.]com$", "replaces": ""}]',
                            '[{"matches": "^.*$", "replaces": ""}]', '[{"matches": "(a)", "replaces": "${1}é\\n$1"}]'],
    "TRUSTED_PROXIES": [None, None, None, None, "127.0.0.0/8", "127.0.0.0/8", "10.0.0.0/8,fd00::/8", "0.0.0.0/0,::/0"],
    "SESSION_IDLE_TIMEOUT": [None, None, "600", "30", "1"],
    "SESSION_MAX_AGE": [None, None, "3600"],
    "SESSION_CACHE_SIZE": [None, None, None, "0", "1", "2"],
    "SESSION_COOKIE_NAME": [None, None, "s"],
    "SESSION_COOKIE_SECURE": [None, None, "true", "false"],
    "SESSION_COOKIE_DOMAIN": [None, None, "app.example"],
    "SESSION_SAME_SITE": [None, None, "Strict", "None"],
    "CACHE_ENABLED": [None, "true"],
    "ACCESS_TOKEN_AUTHN": [None, "opaque", "both"],
    "IDTOKEN_AUTHN_ENABLED": [None, None, "false"],
    "AUTH_HEADER": [None, None, "X-Auth-Token", ""],
    "ID_TOKEN_HEADER": [None, None, "X-Auth-Token", ""],
    "EXTERNAL_AUTHZ_URL": [None, None, None, None, "<grants>", "<refuses>"],
    "EXTERNAL_AUTHZ_CACHE_SECONDS": [None, "60"],
    "REDIRECT_URL": [None, None, "https://app.example/authservice/oidc/callback", "http://app.example:8080/cb"],
    "ALLOWED_REDIRECT_HOSTS": [None, ".app.example,other.example:*"],
    "AFTER_LOGIN_URL": [None, None, "/landing?x=1#top"],
    "HOMEPAGE_URL": [None, None, "https://home.example/"],
    "OIDC_AUTH_URL": [None, None, "/dex/auth?x=1", "https://idp.example/authorize"],
    "OIDC_PROVIDER": [None, None, None, None, None, None, "<nobody>"],
    "AUTHSERVICE_URL_PREFIX": ["/authservice/", "/authservice/", "/", "https://app.example/a/"],
    "LOG_ALLOWED": [None, "true"],
    "LOG_LEVEL": ["DEBUG", "DEBUG", "INFO", "ERROR"],
    "POLICY_PATH": [None, None, None, "<reads>", "<public>", "<tokens>", "<trial>", "<addresses>"],
    "POLICY_WORKLOADS": [None, None, '{"*.example": {}, "app.example/app/": {}, "[::1]": {"namespace": "other"}}'],
    "POLICY_PEER_HEADER": ["X-Forwarded-Client-Cert", "X-Forwarded-Client-Cert", None, "x-peer"],
    "POLICY_ALLOWS_ANONYMOUS": [None, "true"],
    "POLICY_DRY_RUN": [None, None, None, "true"],
    "EXPLAIN_DENIALS": [None, "true"],
}


def policies(issuer: str) -> dict[str, list[dict[str, Any]]]:
    """The sets that a house can have."""
    keys = json.dumps({"keys": [public_jwk(rsa_key(9), kid="other")]})
    changes = {"paths": ["/app/*", "*x"], "notMethods": ["GET"]}
    secret = policy({"to": [{"operation": changes}]}, name="secret", action="DENY")
    person = policy({"when": [{"key": "request.auth.claims[email]", "notValues": ["*"]}]}, name="person", action="DENY")
    watch = policy({"to": [{"operation": {"hosts": ["app.example*"]}}]}, name="watch", action="AUDIT")
    elsewhere = {"notRemoteIpBlocks": ["203.0.113.0/24"], "notIpBlocks": ["10.0.0.0/8"]}
    places = {
        "fromHeaders": [{"name": "Authorization", "prefix": "Bearer "}, {"name": "X-Auth-Token"}],
        "fromParams": ["access_token"],
        "fromCookies": ["theme"],
    }
    tells = {"outputPayloadToHeader": "x-payload", "outputClaimToHeaders": [{"header": "x-mail", "claim": "email"}]}
    return {
        "<reads>": [policy({"to": [{"operation": {"methods": ["GET", "HEAD"]}}]}, name="reads"), secret],
        "<public>": [policy({"to": [{"operation": {"paths": ["/public/*", "/open", "/app/{**}"]}}]}), watch],
        "<tokens>": [
            authentication(
                {"issuer": issuer, "audiences": ["api"], **places, **tells},
                {"issuer": "https://other.example", "jwks": keys},
            ),
            policy({"from": [{"source": {"requestPrincipals": ["*"]}}]}, name="somebody"), watch,
        ],
        "<trial>": [
            policy({}, name="all"), {**person, "metadata": {**person["metadata"], **ON_TRIAL}}, watch,
            policy({"to": [{"operation": {"ports": ["443"]}}]}, name="port", dry_run="true"),
        ],
        "<addresses>": [
            policy({"from": [{"source": elsewhere}]}, name="there"),
            policy({"from": [{"source": {"notNamespaces": ["default"]}}]}, name="mesh"),
        ],
    }


ON_TRIAL = {"annotations": {"istio.io/dry-run": "true"}}


def plan(number: int) -> dict[str, str]:
    """The settings of one house."""
    chance = random.Random(f"house {number}")
    return {name: value for name, values in CHOICES.items() if (value := chance.choice(values)) is not None}


# --- sessions ----------------------------------------------------------------------------------

USER_IDS = ["alice@example.com", "bob", "ünï@example.com", "名前", "a b%20,c", "x" * 255, " ", "é" * 200, "<script>"]
GROUPS = [(), (), ("admins",), ("dev", "admins"), ("a,b", "100%", " x ", "ünï"), ("g" * 1024,) * 1,
          tuple(f"group-{n:04}" for n in range(400)), ("n" * 900 + str(1), *(f"{n}" * 50 for n in range(400)))]
CLAIMS: list[dict[str, Any]] = [{}, {"email": "alice@example.com"}, {"n": 2**70, "nested": {"roles": ["x", None, 1.5]}},
                                {"preferred_username": "名前", "list": [["deep"]]}]
LIVES = [1.0, 29.0, 86_400.0, 600.0]


@dataclass(frozen=True)
class Begin:
    """A session begins, with so many seconds to live."""

    user_id: str
    groups: tuple[str, ...]
    claims: Mapping[str, Any]
    life: float


@dataclass(frozen=True)
class End:
    """One of the story's sessions ends: by its own service, by another one on the same store, or
    it is taken out of the store by that one."""

    which: int
    how: str


@dataclass(frozen=True)
class Move:
    """Time passes, in seconds."""

    seconds: float


# --- requests ----------------------------------------------------------------------------------

METHODS = ["GET", "GET", "GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PROPFIND", "get", "X-1"]


def _from_file(name: str) -> list[str]:
    lines = (DATA / name).read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line) for line in lines if line.startswith('"')]
    return [text for text in texts if all(ord(character) < 256 for character in text)]


TARGETS = [
    "/", "/app", "/app/x?q=1&next=%2Fy", "/public/x", "/public", "/open", "/open/", "/dex/auth", "/a%20b", "/%C3%BC/x",
    "*", "http://app.example/x", "app.example:443", "", "/" + "x" * 2100, "/" + "y" * 9000, "/x?" + "é" * 300,
    "/x?ürl=\xff", "/a?urls=/1,/2", "/favicon.ico", "/themes/x.css", "/authservice/site/homepage",
]
TRICKS = [*_from_file("path_tricks.txt"), *_from_file("open_redirects.txt")]
PIECES = ["/", "a", "..", "%2f", "%", "?", "public", ";", "\\", "%c3%bc", "é"]
IN_FRONT = ["", "", "", "", "/check", "/check/", "/authservice/check", "/authservice/verify", "/authservice/verify",
            "/a/verify", "/verify", "/public", "/authservice"]
OWN = ["/authservice/verify", "/verify", "/a/verify", "/authservice/forward-auth", "/forward-auth", "/a/forward-auth",
       "/authservice/forward-auth?x=1", "/authservice/verify?y", "/authservice/login", "/authservice/logout",
       "/authservice/oidc/callback?code=c&state=s", "/check/authservice/logout", "/cb", "/authservice/verify/../x",
       "/oauth2/auth", "/oauth2/auth?allowed_groups=a,b", "/oauth2/auth?allowed_groups=", "/oauth2/sign_in?rd=/x"]

PLAIN: list[tuple[str, str]] = [
    *[("Host", value) for value in ("app.example", "App.Example:8443", "evil.example", "[::1]:80", "a b", "",
                                    "x.app.example",
                                    "app.example,evil.example", "é.example", "other.example:99999")],
    *[("Accept", value) for value in ("text/html,application/xhtml+xml", "application/json", "*/*", "text/event-stream",
                                      "TEXT/HTML", "application/problem+json, text/html")],
    *[("Sec-Fetch-Mode", value) for value in ("navigate", "cors", "no-cors", "NAVIGATE", "")],
    *[("Sec-Fetch-Dest", value) for value in ("document", "empty", "iframe", "image")],
    ("X-Requested-With", "XMLHttpRequest"), ("Upgrade", "websocket"), ("Sec-WebSocket-Key", "x"),
    ("Content-Type", "application/grpc+proto"), ("Content-Type", "text/plain"), ("Content-Length", "0"),
    ("Origin", "https://app.example"), ("Origin", "null"), ("Origin", ""),
    ("Access-Control-Request-Method", "PUT"), ("Access-Control-Request-Method", ""),
    *[("X-Request-Id", value) for value in ("a-1", "x" * 64, "x" * 65, "<b>", "", "a,b")],
    *[(name, value) for name in ("X-Forwarded-Client-Cert", "X-Peer")
      for value in ("spiffe://a/ns/default/sa/b", "URI=spiffe://a/ns/x/sa/b,By=c;URI=spiffe://a/ns/default/sa/b",
                    "Hash=a", "")],
    *[("X-Forwarded-For", value) for value in ("203.0.113.9, 10.1.1.1", "garbage", "::1", "1.2.3.4,127.0.0.1", ",,,")],
    *[("X-Forwarded-Proto", value) for value in ("https", "https", "http", "HTTPS", "ftp", "https,http", "")],
    *[("X-Forwarded-Host", value) for value in ("app.example", "Evil.example", "a,b", "", "é")],
    *[("X-Forwarded-Uri", value)
      for value in ("/app?x=1", "/public/x", "/x,/y", "", "x", "/é", "https://x/y", "//evil.example")],
    *[("X-Forwarded-Method", value) for value in ("GET", "POST", "OPTIONS", "", "GET,POST", "HEAD")],
    *[("X-Original-Uri", value) for value in ("/app?x=1", "/public/x", "/x,/y", "", "/é", "/open")],
    *[("X-Original-Url", value) for value in ("https://app.example/x?y=1", "http://", "http://[x/", "ftp://x/y", "/x")],
    *[("X-Original-Method", value) for value in ("GET", "POST", "OPTIONS", "")],
    *[(name, value) for name in ("kubeflow-userid", "Kubeflow-Groups", "Auth-Method", "X-Forwarded-User", "x-auth-groups")
      for value in ("admin", "")],
    ("X-Rewrite-Url", "/public/"), ("X-Http-Method-Override", "OPTIONS"), ("X-Auth-Request-Redirect", "/public/"),
    ("Cookie", ""), ("Cookie", ";;=;a"), ("Accept-Language", "é"), ("Referer", "https://evil.example/"),
]
SECRETS = ["live", "live", "live", "newest", "ended", "expired", "forged", "cut", "long", "malformed", "empty"]
COOKIES = [*SECRETS, "latest", "pending", "planted", "rounds", "other", "nameless"]
BEARERS = ["id token", "access token", "opaque", "unknown opaque", "expired token", "wrong audience", "wrong key",
           "unsigned", "garbage", "a.b.c", *SECRETS[:8]]
SCHEMES = ["Bearer ", "Bearer ", "bearer ", "BEARER  ", "Basic ", "", "Bearer"]
PEERS = ["127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.1", "10.1.2.3", "192.0.2.1", "::1", "::ffff:127.0.0.1", ""]


@dataclass(frozen=True)
class Ask:
    """A request. ``via`` chooses one of the house's gateways, which asks as it would about ``target``;
    without it the request is sent as it stands. ``cookies`` and ``tokens`` name what the house knows;
    ``full_first`` asks the full path before the lane, too."""

    method: str
    target: str | None
    headers: tuple[tuple[str, str], ...]
    cookies: tuple[tuple[str, int], ...]
    separator: str
    tokens: tuple[tuple[str, str, str, int], ...]
    peer: str
    via: int | None
    full_first: bool


one_of = st.sampled_from
number = st.integers(0, 7)
free_text = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=12)
targets = st.one_of(
    one_of(TARGETS),
    one_of(TARGETS),
    one_of(OWN),
    st.builds("".join, st.tuples(one_of(IN_FRONT), one_of([*TRICKS, *TARGETS]))),
    st.builds("".join, st.tuples(one_of(IN_FRONT), st.lists(one_of(PIECES), max_size=8).map("".join))),
    st.just(None),
)
headers = st.one_of(
    st.lists(one_of(PLAIN), max_size=5),
    st.lists(one_of(PLAIN), max_size=3),
    st.lists(st.tuples(one_of(sorted({name for name, _ in PLAIN} - {"Content-Length"})), free_text), max_size=2),
).map(tuple)
requests = st.builds(
    Ask,
    method=one_of(METHODS),
    target=targets,
    headers=headers,
    cookies=st.one_of(
        one_of([(("live", 0),), (("latest", 0),)]),
        st.lists(st.tuples(one_of(COOKIES), number), max_size=4).map(tuple),
    ),
    separator=one_of(["; ", ";", ", ", ",", " ;\t"]),
    tokens=st.one_of(
        st.just(()), st.just(()), st.just(()),
        st.lists(
            st.tuples(one_of(["Authorization", "Authorization", "X-Auth-Token"]), one_of(SCHEMES), one_of(BEARERS), number),
            min_size=1, max_size=2,
        ).map(tuple),
    ),
    peer=one_of(PEERS),
    via=one_of([None, 0, 0, 1, 2]),
    full_first=st.booleans(),
)
begins = st.builds(Begin, one_of(USER_IDS), one_of(GROUPS), one_of(CLAIMS), one_of(LIVES))
events = st.one_of(
    begins,
    st.builds(End, one_of([0, 0, 0, 1, 2]), one_of(["here", "elsewhere", "deleted"])),
    st.builds(Move, one_of([0.001, 0.9, 1.0, 3.0, 29.0, 60.0, 599.0, 3600.0, 90_000.0])),
)
steps = st.tuples(st.one_of(st.none(), events), requests)


@dataclass(frozen=True)
class Story:
    """What happens to one house: sessions that are there already, then each event before its request."""

    house: int
    first: tuple[Begin, ...]
    steps: tuple[tuple[Begin | End | Move | None, Ask], ...]


def stories(houses: int) -> st.SearchStrategy[Story]:
    few, many = REQUESTS
    first = st.lists(begins, min_size=1, max_size=3).map(tuple)
    return st.builds(Story, st.integers(0, houses - 1), first, st.lists(steps, min_size=few, max_size=many).map(tuple))


# --- the world ---------------------------------------------------------------------------------


@dataclass
class Outside:
    """Everybody whom the services of these tests speak with."""

    provider: FakeProvider
    clock: Held
    redis: RedisServer | None
    grants: str
    refuses: str


@dataclass
class Tried:
    """What came of the requests: how often the lane answered, with what, and what it left."""

    cases: int = 0
    answered: Counter[int] = field(default_factory=Counter)
    left: Counter[int] = field(default_factory=Counter)


class House:
    """A service with its settings, and a story's sessions. Its twin, on the same store, has no fast lane
    and remembers no session: what it says is what is true."""

    def __init__(self, settings: Mapping[str, str], outside: Outside, folder: Path) -> None:
        self.settings = dict(settings)
        self.outside = outside
        self.clock = outside.clock
        environ = self._environ(folder)
        self.app: Flask = create_app(environ, now=self.clock)
        self.twin: Flask = create_app({**environ, "SESSION_CACHE_SIZE": "0"}, now=self.clock)
        logging.getLogger("authservice").handlers[:] = [logging.NullHandler()]
        self.service = self.app.extensions["authservice"]
        self.service.start()
        self.service.provider.stop()  # no story depends on when a thread has its turn
        self.elsewhere = self.twin.extensions["authservice"].store
        self.calls: list[str] = []
        for name in ("load", "save", "delete"):
            setattr(self.service.store, name, self._counted(name, getattr(self.service.store, name)))
        self.knows_provider = settings.get("OIDC_PROVIDER") != "<nobody>"
        self.cookie = settings.get("SESSION_COOKIE_NAME", "authservice_session")
        self.jar: list[str] = []
        for app in (self.app, self.twin):
            try:
                app.extensions["authservice"].provider.ensure_known()
            except NotReady:
                assert not self.knows_provider

    def _environ(self, folder: Path) -> dict[str, str]:
        stand_ins = {
            "<nobody>": f"http://127.0.0.1:{free_port()}",
            "<grants>": self.outside.grants,
            "<refuses>": self.outside.refuses,
        }
        for name, documents in policies(self.outside.provider.issuer).items():
            stand_ins[name] = str(folder / f"{name[1:-1]}.yaml")
            Path(stand_ins[name]).write_text("\n---\n".join(map(json.dumps, documents)))
        where = {"SESSION_STORE_PATH": str(folder / "data.db")}
        if self.outside.redis:
            where = {"SESSION_STORE_TYPE": "redis", "SESSION_STORE_REDIS_ADDR": self.outside.redis.address}
        given = {
            "OIDC_PROVIDER": self.outside.provider.issuer, "CLIENT_ID": CLIENT_ID, "CLIENT_SECRET": CLIENT_SECRET,
            "AUDIENCES": "api", "KUBERNETES_AUTHN_ENABLED": "false", **where,
        }
        return {**given, **{name: stand_ins.get(value, value) for name, value in self.settings.items()}}

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        asking = threading.current_thread()

        def counted(*args: Any, **more: Any) -> Any:
            if threading.current_thread() is asking:
                self.calls.append(name)
            return call(*args, **more)

        return counted

    def stop(self) -> None:
        self.service.stop()
        self.twin.extensions["authservice"].stop()
        told = logging.getLogger("authservice")
        told.setLevel(logging.NOTSET)
        told.propagate = True  # other tests read the log at its root

    # --- one story ---

    def live_through(self, story: Story, tried: Tried) -> None:
        self.secrets: dict[str, list[str]] = {kind: [] for kind in ("live", "ended", "expired")}
        self.tokens: dict[str, str] = {}
        self.latest = new_secret()
        self.jar = []
        self.outside.provider.forget_calls()
        for begin in story.first:
            self.happen(begin)
        for event, request in story.steps:
            if event is not None:
                self.happen(event)
            try:
                self.ask(request, tried)
            except AssertionError as broken:
                raise AssertionError(f"{broken}\n{event}\n{request}\n{self.settings}") from broken

    def happen(self, event: Begin | End | Move) -> None:
        match event:
            case Begin(user_id, groups, claims, life):
                now = self.clock()
                session = Session(
                    user_id=user_id, groups=groups, claims=dict(claims), issuer=self.outside.provider.issuer,
                    subject="1", created=now, last_seen=now, expires=now + timedelta(seconds=life),
                )
                self.latest = self.service.sessions.begin(session)
                self.secrets["live" if life > 1 else "expired"].append(self.latest)
            case End(which, how) if self.secrets["live"]:
                self.latest = secret = self.secrets["live"].pop(which % len(self.secrets["live"]))
                self.secrets["ended"].append(secret)
                if how == "here":
                    self.service.sessions.end(secret)
                else:
                    self.elsewhere.delete(store_key(secret))
                    self.hear_of(secret)
            case Move(seconds):
                self.clock.moment += timedelta(seconds=seconds)
                self.tokens.clear()

    def hear_of(self, secret: str) -> None:
        """A file's writers are heard at once; word from Redis takes its way."""
        if self.outside.redis:
            until(lambda: not _is_in_memory(self.service.sessions, secret))

    # --- one request ---

    def ask(self, request: Ask, tried: Tried) -> None:
        environ = self.environ(request)
        with TAPE.keeping() as drawn:
            true = self.on_the_full_path(self.twin, environ)
        with TAPE.again(drawn):
            if request.full_first:
                self.on_the_full_path(self.app, environ)
        calls, asked = len(self.calls), len(self.outside.provider.calls())
        with TAPE.again(drawn):
            told = probe(self.app, environ)
        assert len(self.calls) == calls, f"the store was asked: {self.calls[calls:]}"
        assert len(self.outside.provider.calls()) == asked, "the provider was asked"
        with TAPE.again(drawn):
            full = self.on_the_full_path(self.app, environ)
        status, headers, body, lines, counted = full
        assert full == true, "where no lane was asked, the answer is another one"
        assert status != 500, lines
        tried.cases += 1
        (tried.answered if told.answered else tried.left)[status] += 1
        if told.answered:
            assert_same(told, status, headers, body)
            assert told_by_the_judge(told.records) == lines
            assert counted_by_the_judge(told.counted) == counted
        else:
            assert not told.left_a_trace, f"no answer, and yet: {told.records} {told.counted}"
        self.jar += [value.partition(";")[0] for name, value in headers if name.lower() == "set-cookie"]
        # What waits to be marked is written soon: before a clock that is held moves by minutes.
        marks = self.service.sessions._touches
        if marks:
            until(lambda: not marks, every=0.0005)

    @staticmethod
    def on_the_full_path(app: Flask, environ: dict[str, Any]) -> tuple[int, Any, bytes, Lines, dict[str, int]]:
        counts = app.extensions["authservice"].counts
        with listening(tells=True) as records, counting(counts, tells=True) as counted:
            chunks, status, sent = run_wsgi_app(app, dict(environ), buffered=True)
        body = b"".join(chunks)
        return int(status.split()[0]), tuple(sent), body, told_by_the_judge(records), counted_by_the_judge(counted)

    def environ(self, request: Ask) -> dict[str, Any]:
        """As servers make it: lines of one name joined by a comma, the target beside the path."""
        target, told = self.as_its_gateway(request)
        path, _, query = (target or "").partition("?")
        environ = create_environ(path="/", method="GET")
        environ.update(
            REQUEST_METHOD=request.method, PATH_INFO=path, QUERY_STRING=query, SERVER_PORT="8080",
            REMOTE_ADDR=request.peer,
        )
        if target is not None:
            environ.update(RAW_URI=target)
        lines = [*told, *request.headers, *self.cookie_lines(request)]
        lines += [(name, scheme + self.token(kind, index)) for name, scheme, kind, index in request.tokens]
        if not any(name == "Host" for name, _ in lines):
            lines.append(("Host", "app.example"))
        named: dict[str, str] = {}
        for name, value in lines:
            key = name.upper().replace("-", "_")
            if key in ("CONTENT_TYPE", "CONTENT_LENGTH"):
                named[key] = value  # no server takes two
                continue
            key = f"HTTP_{key}"
            named[key] = f"{named[key]},{value}" if key in named else value
        del environ["HTTP_HOST"]
        return {**environ, **named}

    def as_its_gateway(self, request: Ask) -> tuple[str | None, list[tuple[str, str]]]:
        """The target that this house's gateway asks with, and what it tells in headers."""
        gateways = self.settings["GATEWAY"].split(",")
        if request.via is None or request.target is None:
            return request.target, []
        prefix = urlsplit(self.settings["AUTHSERVICE_URL_PREFIX"]).path
        match gateways[request.via % len(gateways)]:
            case "envoy":
                return self.settings.get("CHECK_PATH_PREFIX", "") + request.target, []
            case "nginx":
                told = [("X-Original-Uri", request.target), ("X-Original-Method", request.method)]
                return f"{prefix}verify", [*told, ("X-Forwarded-Proto", "https")]
        told = [("X-Forwarded-Uri", request.target), ("X-Forwarded-Method", request.method)]
        return f"{prefix}forward-auth", [*told, ("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "app.example")]

    def cookie_lines(self, request: Ask) -> list[tuple[str, str]]:
        pairs = [pair for kind, index in request.cookies if (pair := self.cookie_pair(kind, index))]
        return [("Cookie", request.separator.join(pairs))] if pairs else []

    def cookie_pair(self, kind: str, index: int) -> str:
        match kind:
            case "pending":
                ours = [pair for pair in self.jar if "_login_" in pair]
                return ours[-1 - index % len(ours)] if ours else ""
            case "planted":
                return f"{self.cookie}_login_{'x' * 22}={'AQ' * (index + 1)}"
            case "rounds":
                count = f"{index}:{self.clock().timestamp():.0f}"
                return f"{self.cookie}_rounds={self.rounds_seal(count)}"
            case "other":
                return "theme=dark"
            case "nameless":
                return "=x"
        return f"{self.cookie}={self.secret(kind, index)}"

    def rounds_seal(self, text: str) -> str:
        return str(self.service.judge._entrance._rounds._sealer.seal("login-rounds", text.encode()))

    def secret(self, kind: str, index: int) -> str:
        known = self.secrets.get("live" if kind == "newest" else kind, [])
        match kind:
            case "latest":
                return self.latest
            case "newest" if known:
                return known[-1]
            case "live" | "ended" | "expired" if known:
                return known[index % len(known)]
            case "cut":
                return new_secret()[:-1]
            case "long":
                return new_secret() + "A"
            case "malformed":
                return checked("é" * 43) if index % 2 else "x" * 49
            case "empty":
                return ""
        return new_secret()

    def token(self, kind: str, index: int) -> str:
        """Made once while the clock stands still."""
        if kind in SECRETS:
            return self.secret(kind, index)
        if kind not in self.tokens:
            self.tokens[kind] = self._make_token(kind)
        return self.tokens[kind]

    def _make_token(self, kind: str) -> str:
        provider = self.outside.provider
        past = int(self.clock().timestamp()) - 3600
        match kind:
            case "id token":
                return provider.sign({**provider.good_claims("1", None), **provider.claims})
            case "access token":
                return provider.access_token("api")
            case "opaque":
                return provider.opaque_token()
            case "expired token":
                return provider.access_token("api", exp=past, iat=past - 60)
            case "wrong audience":
                return provider.access_token("somebody-else")
            case "wrong key":
                return provider.access_token("api", key=rsa_key(9))
            case "unsigned":
                return provider.access_token("api").rpartition(".")[0] + "."
        return kind.replace(" ", "-")


def _is_in_memory(sessions: Sessions, secret: str) -> bool:
    try:
        sessions.load(secret, Reach.MEMORY)
    except NeedsIO:
        return False
    return True


class Street:
    """The houses of one shard, each built when the first story comes to it."""

    def __init__(self, outside: Outside, folder: Path) -> None:
        self._outside = outside
        self._folder = folder
        self._houses: dict[int, House] = {}

    def house(self, number: int) -> House:
        if number not in self._houses:
            folder = self._folder / str(number)
            folder.mkdir()
            self._houses[number] = self._build(number, folder)
        return self._houses[number]

    def _build(self, number: int, folder: Path) -> House:
        """Some plans contradict themselves and are refused: then the next one."""
        for attempt in range(number, number + 100_000, 1000):
            try:
                return House(plan(attempt), self._outside, folder)
            except SettingsError:
                continue
        raise AssertionError("no plan can be built")

    def close(self) -> None:
        for house in self._houses.values():
            house.stop()


@pytest.fixture(scope="module")
def made_quickly(
    pages_once: Callable[[Any], Any], authorities_once: Callable[[Path | None, bool], Any]
) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(startup, "build_pages", pages_once)
        patch.setattr(outbound, "_tls_context", authorities_once)
        yield


@pytest.fixture(scope="module")
def outside(made_quickly: None) -> Iterator[Outside]:
    for number in (0, 9):
        rsa_key(number)
    clock = Held()
    with (
        FakeProvider(client_id=CLIENT_ID, client_secret=CLIENT_SECRET) as provider,
        running_authorizer() as grants,
        running_authorizer() as refuses,
    ):
        provider.clock = clock
        refuses.says(403, b"not on Sundays")
        yield Outside(provider, clock, None, grants.url, refuses.url)


def tell(street: Street, number: int, how_many: int, *, houses: int = HOUSES_PER_SHARD) -> Tried:
    """Stories about the houses of one shard."""
    tried = Tried()
    row = [street.house(number * HOUSES_PER_SHARD + which) for which in range(houses)]

    @hypothesis.seed(SEED * 1000 + number)
    @hypothesis.settings(
        max_examples=how_many, database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck),
        # A story is not made shorter, which takes minutes: the failing step says what matters.
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(stories(houses))
    def the_law_holds(story: Story) -> None:
        row[story.house].live_through(story, tried)

    the_law_holds()
    return tried


@pytest.fixture
def street(outside: Outside, tmp_path: Path) -> Iterator[Street]:
    street = Street(outside, tmp_path)
    try:
        yield street
    finally:
        street.close()


def test_the_law_in_short(street: Street) -> None:
    tried = tell(street, SHARDS, 40, houses=3)
    assert tried.cases >= 300 and tried.answered.total() >= tried.cases / 4, tried


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_the_law_of_the_two_lanes(street: Street, shard: int) -> None:
    tried = tell(street, shard, STORIES_PER_SHARD)
    assert tried.cases >= 20_000 / SHARDS and tried.answered.total() >= tried.cases / 4, tried


@pytest.mark.external
def test_the_law_with_sessions_in_redis(outside: Outside, tmp_path: Path) -> None:
    with running_redis(any_redis(), tmp_path) as redis:
        street = Street(replace(outside, redis=redis), tmp_path)
        try:
            tried = tell(street, SHARDS + 1, 40, houses=3)
        finally:
            street.close()
    assert tried.answered.total() >= tried.cases / 4, tried
