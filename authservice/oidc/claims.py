"""Claims of one person from two answers of the provider, as one set of claims.

Userinfo completes what an ID token or an introspection said. That both speak of the same ``sub`` is
for the caller to have checked. Called by `oidc.login`, `oidc.renewal` and `oidc.opaque`.
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
_ADDRESS_OF = {verified: address for address, verified in _VOUCHED_FOR.items()}


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


def follow_claims(
    known: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[str, Any]:
    """``known`` claims, merged once of an ID token (``old``) and userinfo, as they are by a ``new`` ID
    token while userinfo does not answer. What was the old token's follows the new one, and is gone
    when the new one lacks it; what was userinfo's stays. An address is never left with what was said
    of another one."""
    followed = dict(known)
    for name in {**old, **new}:
        address = _ADDRESS_OF.get(name, name)
        is_tokens = all(known.get(either) == old.get(either) for either in (name, address))
        if not is_tokens and name not in _PROTOCOL_CLAIMS:
            continue
        followed.pop(name, None)
        if name in new:
            followed[name] = new[name]
    for address, verified in _VOUCHED_FOR.items():
        if followed.get(address) != known.get(address):
            followed.pop(verified, None)
            if verified in new:
                followed[verified] = new[verified]
    return followed


def check_address(claims: Mapping[str, Any]) -> None:
    """``email`` is text, ``email_verified`` is true, false, or one of these two as text. Raises
    `errors.ProviderWrong`."""
    if not isinstance(claims.get("email"), (str, type(None))):
        raise ProviderWrong("claims: email is not text")
    verified = claims.get("email_verified")
    if verified is not None and not isinstance(verified, bool) and verified not in ("true", "false"):
        raise ProviderWrong("claims: email_verified is neither true nor false")
