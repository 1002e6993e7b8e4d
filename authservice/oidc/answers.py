"""What the provider's endpoints answer, read strictly: tokens, claims, or an error.

Each function takes one HTTP answer and believes nothing that its specification does not allow; a
refusal names what is wrong and quotes nothing. The calls are `oidc.client`'s. Whether a token or a
claim holds is decided elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from authservice.errors import ProviderWrong
from authservice.outbound import Response
from authservice.strictjson import BadJson

MAX_ACCESS_TOKEN = 64 * 1024
_LONGEST_EXPIRY = timedelta(days=3660)
_VISIBLE = re.compile(r"[ -~]+")
_ERROR_CODES = frozenset({
    "invalid_request", "invalid_client", "invalid_grant", "unauthorized_client",
    "unsupported_grant_type", "invalid_scope", "unsupported_token_type", "server_error",
    "temporarily_unavailable", "invalid_token", "insufficient_scope",
})  # fmt: skip


class EndpointRefused(ProviderWrong):
    """An endpoint answered with an error. ``answered`` is its HTTP status, ``code`` the error's
    code where it is one of the registered ones, else empty."""

    def __init__(self, endpoint: str, answered: int, code: str = "") -> None:
        super().__init__(f"{endpoint}: status {answered}" + (f", {code}" if code else ""))
        self.endpoint = endpoint
        self.answered = answered
        self.code = code


@dataclass(frozen=True, slots=True)
class Tokens:
    """A token answer (OpenID Connect Core 1.0 §3.1.3.3). What was not given is empty or ``None``."""

    access_token: str = field(repr=False)
    id_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    access_token_expires: datetime | None


def read_token_response(answer: Response, now: datetime) -> Tokens:
    """Reads the answer to a code (RFC 6749 §5.1 and §5.2, OpenID Connect Core 1.0 §3.1.3.3).
    Raises `EndpointRefused` for an error, `errors.ProviderWrong` for what is none."""
    return _tokens(_token_body(answer), now, frozenset({"access_token", "id_token"}))


def read_refresh_response(answer: Response, now: datetime, refresh_token: str) -> Tokens:
    """Reads the answer to a refresh token (RFC 6749 §6, OpenID Connect Core 1.0 §12.2). It may leave
    out the ID token, and also the refresh token: then the one that was sent stays in use. Raises as
    `read_token_response`."""
    tokens = _tokens(_token_body(answer), now, frozenset({"access_token"}))
    return tokens if tokens.refresh_token else replace(tokens, refresh_token=refresh_token)


def _token_body(answer: Response) -> dict[str, Any]:
    what = "token endpoint"
    if answer.status != 200:
        raise EndpointRefused(what, answer.status, error_code(answer))
    body = _object(answer, what)
    if "error" in body:
        raise EndpointRefused(what, answer.status, error_code(answer))
    kind = body.get("token_type", "Bearer")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise ProviderWrong(f"{what}: token_type is not Bearer")
    return body


def _tokens(body: Mapping[str, Any], now: datetime, needed: frozenset[str]) -> Tokens:
    names = ("access_token", "id_token", "refresh_token")
    present = needed | {name for name in names if body.get(name) not in (None, "")}
    given = {name: _token(body, name) if name in present else "" for name in names}
    return Tokens(access_token_expires=_expiry(body.get("expires_in"), now), **given)


def read_userinfo(answer: Response) -> dict[str, Any]:
    """Reads the answer of the userinfo endpoint: a JSON object with a ``sub`` (OpenID Connect
    Core 1.0 §5.3.2). A signed answer (``application/jwt``) was not asked for and is refused."""
    if answer.status != 200:
        raise EndpointRefused("userinfo", answer.status, error_code(answer))
    claims = _object(answer, "userinfo")
    if not isinstance(claims.get("sub"), str):
        raise ProviderWrong("userinfo: no sub")
    return claims


def is_sendable(token: str) -> bool:
    """Whether this can be an access token in a header (RFC 6750 §2.1, generously)."""
    return len(token) <= MAX_ACCESS_TOKEN and " " not in token and _VISIBLE.fullmatch(token) is not None


def _token(body: Mapping[str, Any], name: str) -> str:
    """A token fit to be sent in a header (RFC 6749 appendix A.12)."""
    token = body.get(name)
    if not isinstance(token, str) or not token:
        raise ProviderWrong(f"token endpoint: no {name}")
    limit = MAX_ACCESS_TOKEN if name == "access_token" else len(token)
    if len(token) > limit or not _VISIBLE.fullmatch(token):
        raise ProviderWrong(f"token endpoint: {name} is unusable")
    return token


def _expiry(seconds: object, now: datetime) -> datetime | None:
    """``expires_in`` is advice: some send it as text, and without it nothing is lost."""
    try:
        lifetime = timedelta(seconds=float(seconds))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return now + lifetime if timedelta(0) <= lifetime <= _LONGEST_EXPIRY else None


def _object(answer: Response, what: str) -> dict[str, Any]:
    try:
        return answer.json()
    except BadJson as error:
        raise ProviderWrong(f"{what}: {error}") from None


def error_code(answer: Response) -> str:
    """The error's code if it is a registered one: free text of the provider stays out of logs."""
    try:
        code = answer.json().get("error")
    except BadJson:
        return ""
    return code if isinstance(code, str) and code in _ERROR_CODES else ""
