"""What the provider's introspection endpoint says of a token, and whether that holds here.

An introspection is the provider's word over a channel on which the client proved who it is; its
claims are as good as a signed token's, and checked as those are (RFC 7662 §2.2, §4). The request is
`oidc.client`'s, what becomes of the claims is `oidc.opaque`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from authservice.errors import ProviderWrong
from authservice.identity import VerifiedClaims
from authservice.oidc.jws import ACCESS, kind_told
from authservice.oidc.tokens import TokenRefused, check_subject, check_times
from authservice.outbound import Response
from authservice.strictjson import BadJson

_BEARER_TYPES = frozenset({"bearer", "access_token", "urn:ietf:params:oauth:token-type:access_token"})


@dataclass(frozen=True, slots=True)
class Introspection:
    """A verdict about a token. ``claims`` are empty when it is not active; ``expires`` (aware) is
    ``None`` when the provider does not say."""

    active: bool
    claims: VerifiedClaims
    expires: datetime | None


INACTIVE = Introspection(False, VerifiedClaims({}), None)


def read_introspection(
    answer: Response, *, issuer: str, audiences: frozenset[str], now: datetime
) -> Introspection:
    """Reads an answer of status 200 (RFC 7662 §2.2).

    ``audiences``: one of them must be in ``aud``, or be the client that the token was issued to where
    the answer has no ``aud``: else tokens of any application of that provider would do. Raises
    `errors.ProviderWrong` for what is no introspection (``active`` must be true or false), and
    `TokenRefused` for a token that is active but not good here: expired, of another issuer, for
    somebody else, not a bearer token, or not an access token.
    """
    try:
        claims = answer.json()
    except BadJson as error:
        raise ProviderWrong(f"introspection: {error}") from None
    active = claims.pop("active", None)
    if active is False:
        return INACTIVE
    if active is not True:
        raise ProviderWrong("introspection: active is neither true nor false")
    _check_kind(claims)
    _check("iss" not in claims or claims["iss"] == issuer, "iss")
    if "aud" in claims:
        _check(_is_for(claims["aud"], audiences), "aud")
    else:
        _check(_is_for(claims.get("client_id"), audiences), "client_id")
    check_subject(claims)
    check_times(claims, now)
    expires = claims.get("exp")
    return Introspection(
        active=True,
        claims=VerifiedClaims(claims),
        expires=None if expires is None else datetime.fromtimestamp(expires, timezone.utc),
    )


def _check_kind(claims: Mapping[str, Any]) -> None:
    """The hint that we ask about an access token is only a hint (RFC 7662 §2.1): refresh tokens are
    active too. One that is bound to a key (``cnf``) is no bearer token (RFC 9449 §7.2)."""
    kind = claims.get("token_type", "Bearer")
    _check(isinstance(kind, str) and kind.lower() in _BEARER_TYPES, "token_type")
    _check(kind_told("", claims) in ("", ACCESS), "kind")
    _check("cnf" not in claims, "cnf")


def _is_for(given: object, audiences: frozenset[str]) -> bool:
    named = [given] if isinstance(given, str) else given
    if not isinstance(named, list) or not all(isinstance(entry, str) for entry in named):
        return False
    return not audiences.isdisjoint(named)


def _check(holds: bool, check: str) -> None:
    if not holds:
        raise TokenRefused(check)
