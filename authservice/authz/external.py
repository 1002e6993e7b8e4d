"""The external authorizer (``EXTERNAL_AUTHZ_URL``): one POST to a service of the deployment's own.

Owns the question's JSON, which is the original's, what the answer's status means, and the short
memory of answers (``EXTERNAL_AUTHZ_CACHE_SECONDS``). Whatever is not a clear yes or no is
`errors.AuthorizerDown`: nobody passes because nobody could be asked.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import unquote

from cachetools import TTLCache

from authservice.authz import Refusal
from authservice.check import CheckRequest, NeedsIO, Reach
from authservice.errors import AuthorizerDown, Forbidden, Reason
from authservice.identity import Identity
from authservice.outbound import Http, OutboundFault
from authservice.urls import Authority, parse_authority

TIMEOUT = timedelta(seconds=5)
"""How long one whole exchange may take: everybody's page waits for it."""

CONNECT_RETRIES = 2
"""Further tries when no connection came about, so that nothing was asked yet."""

MOST_REMEMBERED = 10_000
MAX_REASON = 1000  # characters

_UNCLEAR_ADDRESS = Refusal(
    Reason.AUTHORIZER_REFUSED, "This address can be understood in more than one way, so it cannot be judged."
)


class ExternalAuthorizer:
    """Asks ``url`` about each identity and request; 2xx grants, 401 and 403 refuse.

    ``http`` follows no redirect and has limits on time and size; it is best made with `TIMEOUT`
    and `CONNECT_RETRIES`. With ``remember`` both answers are kept for so long, by everything that
    was asked except the time. Safe for threads.
    """

    name = "external"

    def __init__(self, url: str, http: Http, *, now: Callable[[], datetime], remember: timedelta | None = None) -> None:
        self._url = url
        self._http = http
        self._now = now
        self._answers: TTLCache[bytes, Refusal | None] | None = (
            TTLCache(MOST_REMEMBERED, remember, timer=now) if remember else None  # type: ignore[arg-type]
        )
        self._lock = threading.Lock()

    def authorize(self, check: CheckRequest, identity: Identity, reach: Reach) -> Refusal | None:
        """``None`` grants. Raises `errors.AuthorizerDown`, which is never remembered, and
        `check.NeedsIO` under `Reach.MEMORY` for what is not remembered."""
        request = request_info(check)
        if request is None:
            return _UNCLEAR_ADDRESS
        question = {"user": user_info(identity), "request": request}
        if self._answers is None:
            return self._ask(question, reach)
        key = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).digest()
        try:
            with self._lock:
                return self._answers[key]
        except KeyError:
            pass
        answer = self._ask(question, reach)
        with self._lock:
            self._answers[key] = answer
        return answer

    def _ask(self, question: dict[str, Any], reach: Reach) -> Refusal | None:
        if reach is Reach.MEMORY:
            raise NeedsIO
        asked_at = self._now().astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        body = json.dumps({"timestamp": asked_at, **question}).encode()
        try:
            answer = self._http.post(self._url, body, {"Content-Type": "application/json"})
        except OutboundFault as fault:
            raise AuthorizerDown(f"the external authorizer: {fault}") from None
        if 200 <= answer.status <= 299:
            return None
        if answer.status in (401, 403):
            return Refusal(Reason.AUTHORIZER_REFUSED, _reason(answer.body) or Forbidden.public)
        raise AuthorizerDown(f"the external authorizer answered {answer.status}")


def user_info(identity: Identity) -> dict[str, Any]:
    """The member ``user``: the id before transformers and prefix, and the claims that were
    verified for this very identity (``null`` when there are none), wherever they came from."""
    return {
        "name": identity.user_id,
        "id": identity.uid,
        "groups": list(identity.groups),
        "extra": {"auth-method": [identity.method.value]},
        "claims": dict(identity.claims) or None,
    }


def request_info(check: CheckRequest) -> dict[str, Any] | None:
    """The member ``request``: the original's host (an IPv6 address without brackets), port (the
    scheme's own when none was sent; 80 when the scheme is not known either), decoded path without
    query, and method.

    ``None`` for a path or host that the authorizer and the application could read differently. A
    gateway that tells no path at all (a bare check on the verify endpoint) gives an empty one.
    """
    authority = parse_authority(check.host) if check.host else Authority("", None)
    if authority is None or (check.path is None and check.target):
        return None
    return {
        "host": authority.host.strip("[]"),
        "port": authority.port or (443 if check.scheme == "https" else 80),
        "path": unquote(check.path or ""),
        "method": check.method,
    }


def _reason(body: bytes) -> str:
    """The authorizer's words as one plain line. Pages escape it and replace what controls."""
    text = " ".join(body[: 4 * MAX_REASON].decode("utf-8", "replace").split())
    return text if len(text) <= MAX_REASON else text[:MAX_REASON] + "…"
