"""What a gateway has to send with a check, and the line of its configuration that makes it do so.

The words are a closed list (`Sent`), the same in the log, the metrics and what ``authservice doctor`` says;
the lines are those of the files in ``deploy/``.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum


class Sent(str, Enum):
    """What a check has to bring of the request that it is about."""

    COOKIE = "cookie"
    ACCEPT = "accept"
    SCHEME = "x_forwarded_proto"
    AUTHORIZATION = "authorization"
    ORIGINAL_URL = "original_url"


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
_TRUST = " Name the gateway's address in TRUSTED_PROXIES: only then it is believed."

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
        Sent.SCHEME: "nginx: `proxy_set_header X-Forwarded-Proto $scheme;` in the check's location "
        "and in @login." + _TRUST,
        Sent.AUTHORIZATION: _NGINX.format(name="Authorization"),
        Sent.ORIGINAL_URL: "nginx: `proxy_set_header X-Original-URI $request_uri;`, "
        "`proxy_set_header X-Original-Method "
        "$request_method;` and `proxy_set_header Host $http_host;` in the check's location and in @login.",
    },
    "traefik": {
        Sent.COOKIE: _TRAEFIK.format(name="Cookie"),
        Sent.ACCEPT: _TRAEFIK.format(name="Accept"),
        Sent.SCHEME: "Traefik sends it by itself; behind another proxy, name that one in "
        "`forwardedHeaders.trustedIPs` of "
        "the entry point." + _TRUST,
        Sent.AUTHORIZATION: _TRAEFIK.format(name="Authorization"),
        Sent.ORIGINAL_URL: "Traefik: `address` of forwardAuth ends with `<prefix>/forward-auth`, and "
        "`trustForwardHeader: false`.",
    },
    "caddy": {
        Sent.COOKIE: _CADDY.format(name="Cookie"),
        Sent.ACCEPT: _CADDY.format(name="Accept"),
        Sent.SCHEME: "Caddy sends it by itself; behind another proxy, name that one in `trusted_proxies`."
        + _TRUST,
        Sent.AUTHORIZATION: _CADDY.format(name="Authorization"),
        Sent.ORIGINAL_URL: "Caddy: `forward_auth` with `uri <prefix>/forward-auth`, and no `header_up` "
        "of X-Forwarded-*.",
    },
}


def lines(sent: Sent, gateways: Sequence[str], prefix: str = "<prefix>") -> str:
    """What to write into the configuration of each gateway of ``GATEWAY``. ``prefix`` is the service's own "
    "path."""
    return " ".join(_LINES[gateway][sent] for gateway in gateways).replace("<prefix>", prefix)
