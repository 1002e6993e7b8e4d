"""The table of what is measured: rows, and the groups whose rows take turns.

A row makes its request on a `Stage`; a group names the rows that the others in it are compared with.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from bench.gateways import KINDS
from bench.load import FILLING, Request, measure
from bench.policies import MANY, MANY_HOSTS
from bench.service import NAVIGATION, Service, browser
from bench.stage import IN_TURN, STRANGERS, Stage

PEOPLE_SERVICE = "authservice-people"
_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Row:
    """One thing to measure. ``heavy`` rows take long to prepare, and are left out of a quick run."""

    name: str
    title: str
    make: Callable[[Stage], Request]
    heavy: bool = False


@dataclass(frozen=True, slots=True)
class Pair:
    """Two rows that are told as one: the same thing plain, and with the check on top."""

    title: str
    plain: str
    checked: str


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that take turns. ``bases`` are those that each of the others is divided by; ``own_base``
    says for single rows what they are divided by instead. Rows of ``pairs`` are told in a table of
    their own."""

    name: str
    title: str
    rows: tuple[str, ...]
    bases: tuple[str, ...]
    own_base: dict[str, str] = field(default_factory=dict)
    pairs: tuple[Pair, ...] = ()

    def bases_of(self, row: str) -> tuple[str, ...]:
        """What this row is divided by: rows of this group, itself not among them."""
        bases = (self.own_base[row],) if row in self.own_base else self.bases
        return tuple(base for base in bases if base != row and base in self.rows)

    def only(self, rows: set[str]) -> Group:
        """The same with these rows alone."""
        return replace(self, rows=tuple(name for name in self.rows if name in rows))


def _cookie(stage: Stage) -> Request:
    service = stage.service()
    return service.request(stage.person(service))


def _browser(stage: Stage) -> Request:
    service = stage.service()
    return service.request(*browser(stage.person(service)[1]))


def _bare_browser(stage: Stage) -> Request:
    request = stage.yardstick("bare")
    return request.with_headers(*request.headers, *_browser(stage).headers[1:])


def _skipped(stage: Stage) -> Request:
    return stage.service().request(target="/public/logo.svg", tells=None)


def _redirect(stage: Stage) -> Request:
    return stage.service().request(
        *NAVIGATION, status=302, tells=("location", stage.provider.issuer)
    )


def _bearer(stage: Stage) -> Request:
    return _with_token(stage, stage.service("authservice-bearer", CACHE_ENABLED="true"))


def _jwt(stage: Stage) -> Request:
    return _with_token(stage, stage.service())


def _with_token(stage: Stage, service: Service) -> Request:
    token = stage.once("token", lambda: stage.provider.access_token("bench", exp=int(time.time()) + 3600))
    return service.request(("Authorization", f"Bearer {token}"))


def _denied(stage: Stage) -> Request:
    service = stage.service("authservice-denied", GROUPS_ALLOWLIST="nobody-is-in-it")
    return service.request(stage.person(service), status=403, tells=None)


def _rules(stage: Stage) -> Request:
    skipped = ",".join(f"/open-{number:03}/files" for number in range(100))
    service = stage.service("authservice-rules", SKIP_AUTH_URLS=skipped)
    return service.request(stage.person(service))


def _own(name: str, **changes: str) -> Callable[[Stage], Request]:
    """A cookie check at a service with settings of its own."""

    def make(stage: Stage) -> Request:
        service = stage.service(name, **changes)
        return service.request(stage.person(service))

    return make


def _policies(name: str, hosts: int) -> Callable[[Stage], Request]:
    """A cookie check that policies decide: one policy, or those of so many hosts."""

    def make(stage: Stage) -> Request:
        service = stage.service(name, **stage.policies(hosts))
        return service.request(stage.person(service))

    return make


def _redis(name: str, redis: str, *, strangers: int = 0, **changes: str) -> Callable[[Stage], Request]:
    def make(stage: Stage) -> Request:
        service = stage.service(name, strangers, **stage.redis(redis), **changes)
        return service.request(stage.person(service))

    return make


def _full(stage: Stage) -> Request:
    service = stage.service("authservice-full", strangers=STRANGERS)
    return service.request(stage.person(service))


def people_in_turn(stage: Stage) -> Request:
    """Cookie checks of `IN_TURN` people, one after the other, at a worker that sees nobody else."""
    service = stage.service(PEOPLE_SERVICE)
    request = replace(service.request(), cookies=stage.people(service))

    def meet() -> None:
        """Everybody has been there: a measurement reaches as many as it has time for."""
        for first in range(0, IN_TURN, _AT_ONCE):
            some = replace(request, cookies=request.cookies[first : first + _AT_ONCE])
            sent = 0.0
            while sent < 2 * _AT_ONCE:
                sent += measure(some, 0.5, stage.cores).rate * 0.5

    stage.once("people have been met", meet)
    return request


def _external(stage: Stage) -> Request:
    word = stage.yardstick("nginx")
    service = stage.service("authservice-external", EXTERNAL_AUTHZ_URL=f"http://127.0.0.1:{word.port}/")
    return service.request(stage.person(service))


def _yardstick(name: str) -> Callable[[Stage], Request]:
    return lambda stage: stage.yardstick(name)


def _gateway(kind: str, checked: bool) -> Callable[[Stage], Request]:
    return lambda stage: stage.gateway(kind, checked=checked)


def _load(make: Callable[[Stage], Request], connections: int, close: bool = False) -> Callable[[Stage], Request]:
    return lambda stage: make(stage).with_load(connections, close)


_BARE = _yardstick("bare")

GATEWAYS: dict[tuple[str, int], Pair] = {
    (kind, connections): Pair(f"{made.title}, {load}", f"{kind}-open{suffix}", f"{kind}-check{suffix}")
    for connections, suffix, load in ((1, "-1", "1 connection"), (FILLING, "", f"{FILLING} connections"))
    for kind, made in KINDS.items()
}
"""Each gateway under a load that leaves it idle at times, which is what a person feels, and one that fills the core."""

ROWS: tuple[Row, ...] = (
    Row("bare", "the limit: a bare responder", _BARE),
    Row("nginx", "nginx, return 200", _yardstick("nginx")),
    Row("cookie", "AuthService, cookie check", _cookie),
    Row("gthread", "AuthService, WORKER_CLASS=gthread", _own("authservice-gthread", WORKER_CLASS="gthread")),
    Row("granian", "Flask under Granian", _yardstick("granian")),
    Row("apache", "Apache, mod_auth_openidc", _yardstick("apache")),
    Row("flask", "Flask under gunicorn's gthread", _yardstick("flask")),
    Row("bare-browser", "the limit, with 15 headers and 4 KB of cookies", _bare_browser),
    Row("browser", "15 headers and 4 KB of cookies", _browser),
    Row("skip", "skipped path", _skipped),
    Row("redirect", "login redirect", _redirect),
    Row("bearer", "bearer token, cached", _bearer),
    Row("denied", "denied by group", _denied),
    Row("rules", "100 rules of skip prefixes", _rules),
    Row("redis", "sessions in Redis", _redis("authservice-redis", "redis")),
    Row("full", f"{STRANGERS:,} sessions in SQLite", _full, heavy=True),
    Row("full-redis", f"{STRANGERS:,} sessions in Redis",
        _redis("authservice-full-redis", "redis-full", strangers=STRANGERS), heavy=True),
    Row("people", f"{IN_TURN:,} people in turn", people_in_turn, heavy=True),
    Row("bare-1", "the limit, 1 connection", _load(_BARE, 1)),
    Row("cookie-1", "cookie check, 1 connection", _load(_cookie, 1)),
    Row("bare-256", "the limit, 256 connections", _load(_BARE, 256)),
    Row("cookie-256", "cookie check, 256 connections", _load(_cookie, 256)),
    Row("bare-close", "the limit, a new connection each", _load(_BARE, 16, close=True)),
    Row("cookie-close", "cookie check, a new connection each", _load(_cookie, 16, close=True)),
    Row("log", "LOG_ALLOWED=true", _own("authservice-log", LOG_ALLOWED="true")),
    Row("jwt", "JWT (RS256), not cached", _jwt),
    Row("external", "external authorizer, not cached", _external),
    Row("uncached", "SESSION_CACHE_SIZE=0, SQLite", _own("authservice-uncached", SESSION_CACHE_SIZE="0")),
    Row("uncached-redis", "SESSION_CACHE_SIZE=0, Redis",
        _redis("authservice-uncached-redis", "redis", SESSION_CACHE_SIZE="0")),
    Row("policy-one", "one policy", _policies("authservice-policy", 0)),
    Row("policy-many", f"{MANY:,} policies on {MANY_HOSTS} hosts",
        _policies("authservice-policies", MANY_HOSTS)),
    *(Row(pair.checked if checked else pair.plain, f"{pair.title}, {'with' if checked else 'without'} the check",
          _load(_gateway(kind, checked), connections))
      for (kind, connections), pair in GATEWAYS.items() for checked in (False, True)),
)  # fmt: skip

GROUPS: tuple[Group, ...] = (
    Group("beside", "Beside others: one cookie check",
          ("bare", "nginx", "cookie", "gthread", "granian", "apache", "flask"), ("bare", "cookie")),
    Group("kinds", "Kinds of checks",
          ("bare", "bare-browser", "cookie", "browser", "skip", "redirect", "bearer", "denied", "rules"),
          ("bare", "cookie")),
    Group("stores", "Stores and their size", ("cookie", "redis", "full", "full-redis", "people"), ("cookie",)),
    Group("connections", "Connections",
          ("bare", "cookie", "bare-1", "cookie-1", "bare-256", "cookie-256", "bare-close", "cookie-close"),
          ("bare",), {"cookie-1": "bare-1", "cookie-256": "bare-256", "cookie-close": "bare-close"}),
    Group("extras", "What is added on top", ("cookie", "log", "jwt", "external", "uncached", "uncached-redis"),
          ("cookie",)),
    Group("policies", "Policies", ("cookie", "policy-one", "policy-many"), ("cookie", "policy-one")),
    Group("gateways", "Through a gateway, in front of an application",
          tuple(name for pair in GATEWAYS.values() for name in (pair.plain, pair.checked)), (),
          {pair.checked: pair.plain for pair in GATEWAYS.values()}, tuple(GATEWAYS.values())),
)  # fmt: skip
