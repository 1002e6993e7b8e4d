"""Is this a person opening a page, or a program calling?

One question with one rule, asked by the judge (redirect or 401), by the pages (HTML or JSON) and
by the start of a login. Browsers say so themselves where gateways pass it on; without any sign,
GET and HEAD count as a page.
"""

from __future__ import annotations

from collections.abc import Mapping

_PAGES = ("", "document", "iframe", "frame")


def is_navigation(method: str, headers: Mapping[str, str]) -> bool:
    """Judged by what plainly says that it is no page; ``headers`` by their lower-case names.

    ``Sec-Fetch-Mode: navigate`` (Fetch Metadata) makes a page of any method, and a bearer token a
    program of any request that does not have it: browsers never send one by themselves.
    """
    # Traefik drops Upgrade from its checks, but not the handshake's key (RFC 6455 §4.1).
    if "websocket" in headers.get("upgrade", "").lower() or headers.get("sec-websocket-key"):
        return False
    if headers.get("content-type", "").lower().startswith("application/grpc"):
        return False
    if headers.get("x-requested-with") or _wants_data(headers.get("accept", "").lower()):
        return False
    mode = headers.get("sec-fetch-mode", "").lower()
    if mode:
        return mode == "navigate"
    if headers.get("sec-fetch-dest", "").lower() not in _PAGES:
        return False
    if headers.get("authorization", "")[:7].lower() == "bearer ":
        return False
    return method in ("GET", "HEAD")


def _wants_data(accept: str) -> bool:
    """Accepts JSON or an event stream and no page: a program. ``*/*`` alone says nothing."""
    if "text/html" in accept or "application/xhtml" in accept:
        return False
    return "json" in accept or "text/event-stream" in accept
