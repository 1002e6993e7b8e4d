"""What an access token is worth that only the provider can read.

Introspection where the provider has it, since it tells whether a token is for us; userinfo
otherwise, which tells only that the provider issued it. Called by the authenticator of opaque
tokens, which decides what is sent here at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from authservice.errors import ProviderWrong, Unavailable
from authservice.identity import ClaimRules, VerifiedClaims, find_claim
from authservice.oidc.claims import check_address, merge_claims
from authservice.oidc.client import Client
from authservice.oidc.tokens import TokenRefused


class OpaqueTokens:
    """Asks the provider about tokens. ``audiences`` are accepted besides the client itself;
    ``rules`` say which claims are needed."""

    def __init__(self, client: Client, audiences: frozenset[str], rules: ClaimRules) -> None:
        self._client = client
        self._audiences = audiences
        verified = "email_verified" if rules.require_verified_email else ""
        self._wanted = tuple(filter(None, (rules.userid_claim, rules.groups_claim, verified)))

    def ask(self, token: str) -> VerifiedClaims | None:
        """The token's claims, or ``None`` when the provider does not vouch for it.

        Where an introspection lacks a claim that is needed, userinfo completes it; that endpoint
        may refuse the token all the same (it is for another scope), and then it stays as it is.
        Raises `errors.Unavailable` when the provider cannot tell now, and `TokenRefused` for a token
        that is valid but not good here.
        """
        if not self._client.can_introspect:
            userinfo = self._client.bearer_userinfo(token)
            return None if userinfo is None else _claims(userinfo)
        found = self._client.introspect(token, self._audiences)
        if not found.active:
            return None
        if not self._lacks_something(found.claims):
            return _claims(found.claims)
        userinfo = self._client.bearer_userinfo(token)
        if userinfo is None:
            return _claims(found.claims)
        if userinfo["sub"] != found.claims["sub"]:
            raise TokenRefused("sub")
        return _claims(merge_claims(found.claims, userinfo))

    def _lacks_something(self, claims: VerifiedClaims) -> bool:
        """Whether asking userinfo may help. Without a ``sub`` nobody could tell whom it speaks of."""
        if "sub" not in claims or not self._client.has_userinfo:
            return False
        return any(find_claim(claims, claim) is None for claim in self._wanted)


def _claims(claims: Mapping[str, Any]) -> VerifiedClaims:
    try:
        check_address(claims)
    except ProviderWrong as error:
        raise Unavailable(str(error)) from None
    return VerifiedClaims(claims)
