"""Opaque access tokens: the provider is asked what they are worth.

By introspection (RFC 7662) where the provider has it, which tells for whom a token was issued;
by userinfo otherwise, as the original did, which cannot. Only what may be such a token leaves the
house: never a session's secret, never a token of another known issuer, never an ID token.
"""

from __future__ import annotations

from collections.abc import Callable

from authservice.authn.jwt import identity_from
from authservice.check import NeedsIO, Reach
from authservice.errors import Refused
from authservice.identity import ClaimRules, Identity, VerifiedClaims
from authservice.oidc.jws import Glance, glance
from authservice.oidc.tokens import TokenRefused


class OpaqueAuthenticator:
    """Asks the provider about a token. ``ask`` gives its verified claims, or ``None`` for a token
    that the provider does not vouch for; it raises `errors.Unavailable` when it cannot be asked,
    and `oidc.tokens.TokenRefused` for one that is valid but not for us. ``may_be_ours`` says of a
    token in JWT form whether it is worth asking about."""

    name = "opaque"

    def __init__(
        self,
        ask: Callable[[str], VerifiedClaims | None],
        may_be_ours: Callable[[Glance], bool],
        rules: ClaimRules,
        issuer: str,
    ) -> None:
        self._ask = ask
        self._may_be_ours = may_be_ours
        self._rules = rules
        self._issuer = issuer

    def judge(self, token: str, reach: Reach) -> Identity | None:
        seen = glance(token)
        if seen is not None and not self._may_be_ours(seen):
            return None
        if reach is Reach.MEMORY:
            raise NeedsIO
        try:
            claims = self._ask(token)
        except TokenRefused as refused:
            raise Refused(f"{self.name}: {refused.check}") from None
        if claims is not None:
            return identity_from(claims, self._rules, self._issuer, self.name)
        if seen is not None:
            return None
        raise Refused(f"{self.name}: the provider does not know it as active")
