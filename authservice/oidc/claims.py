"""Claims of one person from two answers of the provider, as one set of claims.

Userinfo completes what an ID token or an introspection said. That both speak of the same ``sub`` is
for the caller to have checked. Called by `oidc.login` and `oidc.opaque`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from authservice.errors import ProviderWrong

_PROTOCOL_CLAIMS = frozenset({
    "iss", "sub", "aud", "exp", "iat", "nbf", "jti", "nonce", "azp", "auth_time", "acr", "amr",
    "at_hash", "c_hash", "s_hash", "sid", "events",
})  # fmt: skip
_VOUCHED_FOR = {"email": "email_verified", "phone_number": "phone_number_verified"}


def merge_claims(first: Mapping[str, Any], userinfo: Mapping[str, Any]) -> dict[str, Any]:
    """One set of claims out of two; ``first`` are the ID token's, or an introspection's.

    What the protocol itself says (``iss``, ``sub``, ``sid``, …) comes from the first alone.
    Everything else comes from userinfo where it has a value, and from the first otherwise. An
    address and whether it was verified are never taken from two sources for two addresses.
    """
    given = {
        name: value
        for name, value in userinfo.items()
        if name not in _PROTOCOL_CLAIMS and (value is not None or name not in first)
    }
    merged = {**first, **given}
    for claim, verified in _VOUCHED_FOR.items():
        if claim in given and given[claim] != first.get(claim) and verified not in given:
            merged.pop(verified, None)
    return merged


def check_address(claims: Mapping[str, Any]) -> None:
    """``email`` is text, ``email_verified`` is true, false, or one of these two as text. Raises
    `errors.ProviderWrong`."""
    if not isinstance(claims.get("email"), (str, type(None))):
        raise ProviderWrong("claims: email is not text")
    verified = claims.get("email_verified")
    if verified is not None and not isinstance(verified, bool) and verified not in ("true", "false"):
        raise ProviderWrong("claims: email_verified is neither true nor false")
