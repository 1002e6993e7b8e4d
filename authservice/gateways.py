"""How each gateway asks, and how it reads the answer.

A dialect is a pair: ``read`` turns `RequestParts` into a `CheckRequest`, and the attributes of
its `Style` say how a decision is spelt. Which dialects exist is decided by ``GATEWAY``; one that
was not chosen is not there. The service's own doors (callback, login, logout) on the judge port are
found here too, because only the dialect knows which path a gateway really asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import urlsplit

from authservice.check import AUTH_REQUEST, CheckRequest, RequestParts, names_a_demand
from authservice.errors import Misdirected, NotSent
from authservice.trust import Trust, scheme_told
from authservice.urls import canonical_path


@dataclass(frozen=True, slots=True)
class Style:
    """How a gateway wants its answers: the status of an allow, and whether the browser sees a redirect."""

    allow_status: int
    redirects: bool


PASSES_ANSWERS_ON = Style(allow_status=200, redirects=True)
"""Envoy, Traefik, Caddy: 200 allows, any other answer goes to the client as it is."""

VERDICTS_ONLY = Style(allow_status=204, redirects=False)
"""nginx and the original's verify endpoint: 204, 401 or 403; a redirect would be an error."""


ACCEPTED = Style(allow_status=202, redirects=False)
"""oauth2-proxy's ``auth``: 202, 401 or 403."""


TELL_THE_ORIGINAL = frozenset(
    ("x-forwarded-method", "x-forwarded-uri", "x-original-method", "x-original-uri", "x-original-url")
)
"""What the gateways besides Envoy tell the original request in, and Envoy's family never sends."""


class EnvoyDialect:
    """Envoy, Istio, Ambassador, Envoy Gateway: the check's own method, path and Host are the original's.

    ``check_prefix`` (``CHECK_PATH_PREFIX``) is cut off exactly; nothing that a client could add to
    the request (``X-Forwarded-Uri`` and its like) is looked at.
    """

    name = "envoy"
    style = PASSES_ANSWERS_ON

    def __init__(self, trust: Trust, check_prefix: str = "") -> None:
        self._trust = trust
        self._check_prefix = check_prefix

    def original_target(self, target: str) -> str | None:
        """The target behind ``CHECK_PATH_PREFIX``, or ``None`` when this is not a check of ours."""
        if not target.startswith(self._check_prefix):
            return None
        rest = target[len(self._check_prefix):]
        if rest[:1] not in ("", "/", "?"):
            return None
        return rest if rest.startswith("/") else "/" + rest

    def read(self, parts: RequestParts) -> CheckRequest:
        target: str | None = parts.target or ""
        if self._check_prefix:
            target = self.original_target(parts.target or "")
        if target is None:
            raise Misdirected("the check's path does not begin with CHECK_PATH_PREFIX")
        scheme, client, forwarded = self._trust.outside(parts)
        return CheckRequest(
            method=parts.method,
            scheme=scheme,
            host=parts.headers.get("host", "").lower(),
            target=target,
            path=canonical_path(target),
            headers=parts.headers,
            client=client,
            dialect=self.name,
            forwarded=forwarded,
        )


class VerifyDialect:
    """The original's verify endpoint, and nginx's ``auth_request`` on the same path.

    What follows the endpoint's path is the original path. With ``GATEWAY=nginx``, and nothing
    following, ``X-Original-URI`` (or ``X-Original-URL``, or ``X-Forwarded-Uri``) and
    ``X-Original-Method`` (or ``X-Forwarded-Method``) tell, and both must be there exactly once.
    """

    style = VERDICTS_ONLY

    def __init__(self, trust: Trust, verify_path: str, *, nginx: bool) -> None:
        self._trust = trust
        self._verify_path = verify_path
        self._nginx = nginx
        self.name = "nginx" if nginx else "verify"

    def read(self, parts: RequestParts) -> CheckRequest:
        behind = _behind(parts.target or "", self._verify_path)
        scheme, client, forwarded = self._trust.outside(parts)
        host, method = parts.headers.get("host", ""), parts.method
        target = behind or ""
        if self._nginx and not behind:
            _require_trusted(self._trust, parts)
            target, told_scheme, told_host = original_uri(parts.headers)
            method = _method(parts.headers, "x-original-method", "x-forwarded-method")
            scheme = scheme or told_scheme or scheme_told(parts.headers.get("x-forwarded-proto", ""))
            host = told_host or host
        return CheckRequest(
            method=method,
            scheme=scheme,
            host=host.lower(),
            target=target,
            path=canonical_path(target) if behind else _path(target),
            headers=parts.headers,
            client=client,
            dialect=self.name,
            forwarded=forwarded,
            doubtful=not behind and _might_be_two(target),
        )


class ForwardAuthDialect:
    """Traefik's ForwardAuth and Caddy's forward_auth: ``X-Forwarded-Method/Proto/Host/Uri`` tell.

    All four must be there exactly once. The check's own path and query are never looked at: Caddy
    appends the client's query to them.
    """

    style = PASSES_ANSWERS_ON

    def __init__(self, name: str, trust: Trust) -> None:
        self.name = name
        self._trust = trust

    def read(self, parts: RequestParts) -> CheckRequest:
        _require_trusted(self._trust, parts)
        headers = parts.headers
        target = _target(_once(headers, "x-forwarded-uri"), "x-forwarded-uri")
        scheme = scheme_told(_once(headers, "x-forwarded-proto"))
        if scheme is None:
            raise Misdirected("X-Forwarded-Proto is neither http nor https")
        _, client, forwarded = self._trust.outside(parts)
        return CheckRequest(
            method=_method(headers, "x-forwarded-method"),
            scheme=scheme,
            host=_once(headers, "x-forwarded-host").lower(),
            target=target,
            path=_path(target),
            headers=headers,
            client=client,
            dialect=self.name,
            forwarded=forwarded,
            doubtful=_might_be_two(target),
        )


class AuthRequestDialect:
    """oauth2-proxy's ``auth``: is this person logged in, and does the check's own query let them pass?

    Nothing is open here to whoever is not logged in, whatever headers say: many a configuration made for oauth2-proxy
    sends no header that tells the original path, and then a client's own would. Where rules look at path or method
    (``needs_original``), both must be told, as nginx tells them.
    """

    name = AUTH_REQUEST
    style = ACCEPTED

    def __init__(self, trust: Trust, *, needs_original: bool) -> None:
        self._trust = trust
        self._needs_original = needs_original

    def read(self, parts: RequestParts) -> CheckRequest:
        headers, method = parts.headers, parts.method
        demands = (parts.target or "").partition("?")[2]
        if self._needs_original:
            _require_trusted(self._trust, parts)
            target, told_scheme, told_host = original_uri(headers)
            method = _method(headers, "x-original-method", "x-forwarded-method")
        else:
            target, told_scheme, told_host = _told_for_the_way_back(headers)
        if demands and names_a_demand(target.partition("?")[2]):
            # Some gateways put the client's query behind their own.
            raise Misdirected("the original query names what the check demands")
        scheme, client, forwarded = self._trust.outside(parts)
        return CheckRequest(
            method=method,
            scheme=scheme or told_scheme,
            host=(told_host or headers.get("host", "")).lower(),
            target=target,
            path=None,
            headers=headers,
            client=client,
            dialect=self.name,
            forwarded=forwarded,
            doubtful=_might_be_two(target),
            hearsay=bool(told_host) and not self._needs_original,
            demands=demands,
        )


Dialect = EnvoyDialect | VerifyDialect | ForwardAuthDialect | AuthRequestDialect


@dataclass(frozen=True, slots=True)
class OwnPaths:
    """The service's own paths on the judge port, canonical."""

    callback: str
    login: str
    logout: str
    verify: str
    forward_auth: str
    further: Mapping[str, str] = field(default_factory=dict)
    """More doors, by their paths."""
    auth: frozenset[str] = frozenset()
    """oauth2-proxy's endpoint for checks, under all its paths."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a request's target alone tells: the ``door`` that it leads to, if it does (``"callback"``, ``"login"``,
    ``"logout"`` or one of `OwnPaths.further`), and the dialect, unless only the request as a whole tells it."""

    door: str | None
    dialect: Dialect | None


class Gateways:
    """The dialects that ``GATEWAY`` chose, and the way from a request to the one that reads it."""

    def __init__(
        self,
        chosen: Sequence[str],
        trust: Trust,
        own: OwnPaths,
        check_prefix: str = "",
        *,
        auth_needs_original: bool = False,
    ) -> None:
        self.trust = trust
        self._own = own
        self._envoy = EnvoyDialect(trust, check_prefix) if "envoy" in chosen else None
        self._behind_prefix = self._envoy if check_prefix else None
        self._verify = VerifyDialect(trust, own.verify, nginx="nginx" in chosen)
        forwarding = [name for name in ("traefik", "caddy") if name in chosen]
        self._forward_auth = ForwardAuthDialect("+".join(forwarding), trust) if forwarding else None
        self._below_verify = own.verify + "/"
        self._own_prefix = own.forward_auth.rpartition("/")[0] + "/"
        self._auth = AuthRequestDialect(trust, needs_original=auth_needs_original)
        self._auth_paths = own.auth | {f"{path}/" for path in own.auth}
        self._doors = {own.callback: "callback", own.login: "login", own.logout: "logout", **own.further}
        # How every path begins that might be asked about otherwise than Envoy asks.
        self._beginnings = (own.verify, own.forward_auth, self._own_prefix[:-1], *own.auth)
        self.place: Callable[[str], Place] = lru_cache(maxsize=128)(self._place)
        """The `Place` of a target. The same few come again and again; few are kept, as they are text of anybody's."""

    def _place(self, target: str) -> Place:
        path = canonical_path(target)
        usual = path is not None and not path.startswith(self._beginnings)
        return Place(self._door(target), self._envoy if usual else None)

    def _door(self, target: str) -> str | None:
        """As sent, or behind the check prefix."""
        path = canonical_path(target)
        door = self._doors.get(path) if path is not None else None
        if door is None and self._behind_prefix is not None:
            original = self._behind_prefix.original_target(target)
            path = canonical_path(original) if original is not None else None
            door = self._doors.get(path) if path is not None else None
        return door

    def dialect(self, parts: RequestParts) -> Dialect:
        """The dialect that this request speaks.

        Raises `errors.Misdirected` when no chosen one does.
        """
        target = parts.target or ""
        known = self.place(target).dialect
        if known is not None:
            return known
        path = canonical_path(target)
        if path is not None:
            if path.startswith(self._own.verify) and (path + "/").startswith(self._below_verify):
                return self._verify
            if self._forward_auth is not None and path == self._own.forward_auth:
                return self._forward_auth
            if path in self._auth_paths:
                return self._auth
        elif _behind(target, self._own.verify):
            return self._verify
        if self._envoy is None:
            raise Misdirected("no dialect of GATEWAY asks on this path")
        if path is not None and (path + "/").startswith(self._own_prefix) and self._asks_otherwise(path, parts):
            raise Misdirected("this gateway does not ask as Envoy does, and GATEWAY does not name it")
        return self._envoy

    def _asks_otherwise(self, path: str, parts: RequestParts) -> bool:
        """Whether a check on one of our own paths, which are open, is really one about another path: by a
        gateway whose dialect was not chosen, or on a misspelt endpoint. Taken for Envoy's it would let
        everybody pass."""
        if path.rstrip("/") in (f"{self._own_prefix}auth", self._own.forward_auth):
            return True  # the first one is oauth2-proxy's, without OAUTH2_PROXY_COMPAT
        return not TELL_THE_ORIGINAL.isdisjoint(parts.headers)


def original_uri(headers: Mapping[str, str]) -> tuple[str, str | None, str]:
    """The target, scheme and host that nginx or ingress-nginx tell about.

    ``X-Original-URI`` is a path with query, ``X-Original-URL`` an absolute address. Only one of
    the two may be there, and ``X-Forwarded-Uri`` besides must say the same: another one would be the
    client's own. It tells no host, so beside it an address has to be at the one that was asked: a gateway that
    tells ``X-Forwarded-Uri`` passes a client's ``X-Original-URL`` on. Raises `errors.Misdirected`.
    """
    given = [name for name in ("x-original-uri", "x-original-url") if name in headers]
    if len(given) > 1:
        raise Misdirected("both X-Original-URI and X-Original-URL were sent")
    name = given[0] if given else "x-forwarded-uri"
    value = _once(headers, name)
    scheme: str | None = None
    host = ""
    if name == "x-original-url" and not value.startswith("/"):
        try:
            address = urlsplit(value)
        except ValueError:
            raise Misdirected("X-Original-URL is not an address") from None
        if address.scheme not in ("http", "https") or not address.netloc:
            raise Misdirected("X-Original-URL is not an address")
        scheme, host = address.scheme, address.netloc
        value = value.partition("://")[2][len(host):] or "/"
    if headers.get("x-forwarded-uri", value).strip() != value:
        raise Misdirected(f"X-Forwarded-Uri and {name} tell different addresses")
    if host and "x-forwarded-uri" in headers and host.lower() != headers.get("host", "").lower():
        raise Misdirected("X-Forwarded-Uri is there, and X-Original-URL names another host")
    return _target(value, name), scheme, host


def _told_for_the_way_back(headers: Mapping[str, str]) -> tuple[str, str | None, str]:
    """What `original_uri` gives, where it can be had: only the page to come back to hangs on it."""
    try:
        return original_uri(headers)
    except Misdirected:
        return "/", None, ""


def _require_trusted(trust: Trust, parts: RequestParts) -> None:
    """In dialects that live on forwarded headers, named proxies are the only ones to be believed."""
    if not trust.trusts_nobody_yet() and not trust.trusts(parts.peer):
        raise Misdirected("the check did not come from an address in TRUSTED_PROXIES")


def _once(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name, "").strip()
    if not value:
        raise NotSent(f"the gateway did not send {name}")
    if name not in ("x-forwarded-uri", "x-original-uri", "x-original-url") and "," in value:
        raise Misdirected(f"{name} was sent more than once")
    return value


def _target(value: str, name: str) -> str:
    """A path with query. A second copy begins with a slash or a scheme again, behind a comma."""
    first, *later = (copy.strip() for copy in value.split(","))
    if _might_be_two(value.partition("?")[0]) or first in later:
        raise Misdirected(f"{name} was sent more than once")
    if not value.startswith("/"):
        raise Misdirected(f"{name} is not a path")
    return value


def _path(target: str) -> str | None:
    """The canonical path of a target that a header told. A query may hold what looks like a second
    copy of the header (``?urls=/a,/b``): it is judged, but no rule that opens a path may match."""
    return None if _might_be_two(target) else canonical_path(target)


def _might_be_two(value: str) -> bool:
    return any(later.lstrip().startswith(("/", "http://", "https://")) for later in value.split(",")[1:])


def _method(headers: Mapping[str, str], *names: str) -> str:
    """The method, on which all headers that tell one must agree. Lower case is refused as it is on our own
    request lines: to some applications it is another method, to others the same."""
    given = [name for name in names if name in headers] or [names[0]]
    method, *others = {_once(headers, name) for name in given}
    if others:
        raise Misdirected(f"{' and '.join(given)} tell different methods")
    if method != method.upper():
        raise Misdirected(f"{given[0]} is not in upper case")
    return method


def _behind(target: str, verify_path: str) -> str:
    """What follows the verify path, with its query: ``/authservice/verify/app?q`` gives ``/app?q``."""
    rest = target[len(verify_path):] if target.startswith(verify_path) else ""
    return rest if rest.startswith("/") else ""
