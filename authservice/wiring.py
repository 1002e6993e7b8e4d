"""What a gateway does not send with its checks: noticed, said once, with the line of configuration to add.

`Wiring` looks at checks after they were answered, and never changes an answer. What came once is taken to
come always; what never came is missed only where something tells that the client must have sent it. The
words are a closed list (`ops.Sent`), the same in the log, the metrics and what ``authservice doctor`` says;
the lines are those of the files in ``deploy/``. Called by the judge and the callback.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Protocol

import msgspec

from authservice.check import CheckRequest
from authservice.logs import Event
from authservice.ops import Counts, Metric, Sent

log = logging.getLogger(__name__)

SIGNS = 3
"""How often something has to be missed before it is said. A program may leave out what browsers never do."""

MARK = "/authservice-doctor-"
_MARK_LIFETIME = timedelta(minutes=1)
_PURPOSE = "doctor-request"


NAMES = {
    Sent.COOKIE: "Cookie",
    Sent.ACCEPT: "Accept",
    Sent.SCHEME: "X-Forwarded-Proto",
    Sent.AUTHORIZATION: "Authorization",
    Sent.ORIGINAL_URL: "the original address",
}
"""As people call them."""

WITHOUT = {
    Sent.COOKIE: "no session is ever found: people are sent to the login again and again",
    Sent.ACCEPT: "programs are sent to the login page in place of a 401",
    Sent.SCHEME: "cookies are made without Secure, and nothing tells where a login has to return to",
    Sent.AUTHORIZATION: "no bearer token is ever seen",
    Sent.ORIGINAL_URL: "nobody knows which page is asked for: checks are refused, or logins end elsewhere",
}
"""What comes of it."""

_LISTED = (
    "Envoy: `- {{exact: {name}, ignore_case: true}}` below `allowed_headers.patterns` of its ext_authz "
    "filter. Istio: "
    "`{name}` in `includeRequestHeadersInCheck`. Envoy Gateway: `{name}` in `headersToExtAuth`. Gateway "
    "API: `{name}` "
    "in `allowedHeaders`."
)
_TRAEFIK = "Traefik: leave `authRequestHeaders` of forwardAuth away, or list `{name}` in it."
_CADDY = "Caddy: no `header_up -{name}` in `forward_auth`."
_NGINX = (
    "nginx: no `proxy_pass_request_headers off;` and no `proxy_set_header {name} ...;` in the check's "
    "location."
)
_TRUST = (
    " Name the gateway's address in TRUSTED_PROXIES: only then it is believed. Behind another proxy that ends "
    "TLS, name scheme and host in AUTHSERVICE_URL_PREFIX instead."
)

_LINES: dict[str, dict[Sent, str]] = {
    "envoy": {
        Sent.COOKIE: _LISTED.format(name="cookie"),
        Sent.ACCEPT: _LISTED.format(name="accept") + " Emissary: `accept` in `allowed_request_headers`.",
        Sent.SCHEME: _LISTED.format(name="x-forwarded-proto")
        + " `use_remote_address: true` makes Envoy set it."
        + _TRUST,
        Sent.AUTHORIZATION: "Envoy: no `disallowed_headers` that match `authorization`. Istio: "
        "`authorization` in "
        "`includeRequestHeadersInCheck`.",
        Sent.ORIGINAL_URL: "Envoy: no `path_override` on the ext_authz filter, and a `path_prefix` only "
        "together with "
        "the same CHECK_PATH_PREFIX here. No rewriting of path or Host before the check.",
    },
    "nginx": {
        Sent.COOKIE: _NGINX.format(name="Cookie"),
        Sent.ACCEPT: _NGINX.format(name="Accept"),
        Sent.SCHEME: "nginx: `proxy_set_header X-Forwarded-Proto $scheme;` in the check's location, "
        "in @authservice_login and in @authservice_verdict." + _TRUST,
        Sent.AUTHORIZATION: _NGINX.format(name="Authorization"),
        Sent.ORIGINAL_URL: "nginx: `proxy_set_header X-Original-URI $request_uri;`, "
        "`proxy_set_header X-Original-Method "
        "$request_method;` and `proxy_set_header Host $http_host;` in the check's location, in "
        "@authservice_login and in @authservice_verdict.",
    },
    "traefik": {
        Sent.COOKIE: _TRAEFIK.format(name="Cookie"),
        Sent.ACCEPT: _TRAEFIK.format(name="Accept"),
        Sent.SCHEME: "Traefik sends it by itself, and its own." + _TRUST,
        Sent.AUTHORIZATION: _TRAEFIK.format(name="Authorization"),
        Sent.ORIGINAL_URL: "Traefik: `address` of forwardAuth ends with `<prefix>/forward-auth`, and "
        "`trustForwardHeader: false`.",
    },
    "caddy": {
        Sent.COOKIE: _CADDY.format(name="Cookie"),
        Sent.ACCEPT: _CADDY.format(name="Accept"),
        Sent.SCHEME: "Caddy sends it by itself: no `header_up -X-Forwarded-Proto` in `forward_auth`." + _TRUST,
        Sent.AUTHORIZATION: _CADDY.format(name="Authorization"),
        Sent.ORIGINAL_URL: "Caddy: `forward_auth` with `uri <prefix>/forward-auth`, and no `header_up` "
        "of X-Forwarded-*.",
    },
}


def lines(sent: Sent, gateways: Sequence[str], prefix: str = "<prefix>") -> str:
    """What to write into the configuration of each gateway of ``GATEWAY``. ``prefix`` is the service's own "
    "path."""
    return " ".join(_LINES[gateway][sent] for gateway in gateways).replace("<prefix>", prefix)


class Sealer(Protocol):
    """Seals bytes under the service's own keys, for one purpose each."""

    def seal(self, purpose: str, plaintext: bytes) -> str: ...

    def open(self, purpose: str, sealed: str) -> bytes | None: ...


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """In the path of a request of the doctor's: what was sent with it, and when (Unix time)."""

    issued: float
    sent: tuple[str, ...]
    unique: str


def marked_path(sealer: Sealer, sent: Iterable[Sent], now: datetime) -> str:
    """A path that tells the service, and nobody else, what it was asked for with."""
    mark = Mark(now.timestamp(), tuple(one.value for one in sent), secrets.token_hex(8))
    return MARK + sealer.seal(_PURPOSE, msgspec.msgpack.encode(mark))


class Wiring:
    """What one process has seen of its gateways. Safe for threads; looking takes no lock.

    ``wants_scheme``: nothing but the gateway tells whether browsers come over https.
    """

    def __init__(
        self,
        gateways: Sequence[str],
        prefix: str,
        *,
        sealer: Sealer,
        session_cookie: str,
        wants_scheme: bool,
        now: Callable[[], datetime],
        counts: Counts,
    ) -> None:
        self._gateways = tuple(gateways)
        self._prefix = prefix
        self._sealer = sealer
        self._session_cookie = session_cookie
        self._now = now
        self._counts = counts
        self._signs: Counter[Sent] = Counter()
        self._told: set[Sent] = set()
        self._telling = threading.Lock()
        self._logins = self._logins_again = 0
        looks: dict[Sent, Callable[[CheckRequest], bool]] = {
            Sent.COOKIE: self._cookie,
            Sent.ACCEPT: self._accept,
        }
        if wants_scheme:
            looks[Sent.SCHEME] = self._scheme
        self._looks = tuple(looks.values())
        self._read = False

    def look(self, check: CheckRequest) -> None:
        """Looks at a check that was answered."""
        self._read = True
        if MARK in check.target:
            self._asked_by_the_doctor(check)
        for settled in self._looks:
            if settled(check):
                # Two threads may both take one out; then the second one is looked for once more.
                self._looks = tuple(look for look in self._looks if look != settled)

    def not_understood(self) -> None:
        """A check came that lacks what tells the original request."""
        if not self._read:
            self._miss(Sent.ORIGINAL_URL)

    def logged_in(self, before: int) -> None:
        """A browser finished a login, after ``before`` others in a row: what it was given then did not come
        back."""
        self._logins += 1
        self._logins_again += before > 0

    # --- what may come: each says whether that is settled, as it came or as its lack has been told -------------

    def _cookie(self, check: CheckRequest) -> bool:
        if "cookie" in check.headers:
            return True
        return bool(self._logins_again) and "authorization" not in check.headers and self._miss(Sent.COOKIE)

    def _accept(self, check: CheckRequest) -> bool:
        if "accept" in check.headers:
            return True
        # Scanners call themselves Mozilla and send no Accept; a gateway that passes on next to nothing hides
        # even that a browser asks. Both are taken for people only where there are any.
        people = self._logins > 0 or f"{self._session_cookie}=" in check.header("cookie")
        asks = "sec-fetch-mode" in check.headers or (people and not _is_program(check))
        return asks and self._miss(Sent.ACCEPT)

    def _scheme(self, check: CheckRequest) -> bool:
        if check.scheme is not None or "x-forwarded-proto" in check.headers:
            return True
        # A program that tries the port itself passes no gateway.
        return not _is_program(check) and self._miss(Sent.SCHEME)

    def _asked_by_the_doctor(self, check: CheckRequest) -> None:
        """Of this one it is known what was sent with it."""
        sealed = check.target.partition(MARK)[2].partition("/")[0].partition("?")[0]
        opened = self._sealer.open(_PURPOSE, sealed)
        if opened is None:
            return
        try:
            mark = msgspec.msgpack.decode(opened, type=Mark)
        except msgspec.MsgspecError:
            return
        age = self._now().timestamp() - mark.issued
        if not -_MARK_LIFETIME.total_seconds() <= age <= _MARK_LIFETIME.total_seconds():
            return
        for sent in (Sent.COOKIE, Sent.ACCEPT, Sent.AUTHORIZATION):
            if sent.value in mark.sent and sent.value not in check.headers:
                self._tell(sent)

    # --- what is missed -----------------------------------------------------------------------

    def _miss(self, sent: Sent) -> bool:
        """Whether it has been missed often enough, and is told."""
        self._signs[sent] += 1
        if self._signs[sent] < SIGNS:
            return False
        self._tell(sent)
        return True

    def _tell(self, sent: Sent) -> None:
        with self._telling:
            if sent in self._told:
                return
            self._told.add(sent)
        self._counts.add(Metric.GATEWAY_LACKS, sent.value)
        log.warning(
            Event.GATEWAY_LACKS.value,
            extra={
                "what": sent,
                "note": f"The gateway does not send {NAMES[sent]} with its checks: {WITHOUT[sent]}.",
                "remedy": lines(sent, self._gateways, self._prefix),
            },
        )


def _is_program(check: CheckRequest) -> bool:
    """By its own name: probes, scripts, everything that is no browser and does not pretend to be one."""
    name = check.header("user-agent")
    return bool(name) and not name.startswith("Mozilla/")
