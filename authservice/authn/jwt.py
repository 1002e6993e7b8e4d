"""Signed tokens as credentials: the provider's ID tokens, and access tokens of known issuers.

A token names its issuer and audience itself; that is read unverified, only to decide whose token
it may be. From then on it is verified in full with that one issuer's keys, or refused: a token
for one issuer is never tried with another's keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone

from authservice.check import Reach
from authservice.errors import IdentityUnusable, Refused
from authservice.identity import AuthMethod, ClaimRules, Identity, VerifiedClaims, from_claims
from authservice.oidc.jws import Glance, glance, is_date
from authservice.oidc.tokens import TokenRefused
from authservice.oidc.verifier import Verifier


@dataclass(frozen=True, slots=True)
class Trusted:
    """One issuer whose tokens are accepted: for which audiences, verified how, read how."""

    issuer: str
    audiences: frozenset[str]
    verifier: Verifier
    rules: ClaimRules

    def names(self, seen: Glance) -> bool:
        """Whether a token says that it is of this issuer and for us."""
        return seen.issuer == self.issuer and not self.audiences.isdisjoint(seen.audiences)


class JwtAuthenticator:
    """Tokens of one kind. ``is_other_kind`` says of a token that names us whether it can be told
    to be something else, and is left to whom it belongs."""

    def __init__(
        self, name: str, trusted: Iterable[Trusted], is_other_kind: Callable[[Glance], bool] = lambda seen: False
    ) -> None:
        self.name = name
        self._trusted = tuple(trusted)
        self._is_other_kind = is_other_kind

    def judge(self, token: str, reach: Reach) -> Identity | None:
        seen = glance(token)
        if seen is None:
            return None
        issuer = next((one for one in self._trusted if one.names(seen)), None)
        if issuer is None or self._is_other_kind(seen):
            return None
        try:
            claims = issuer.verifier.verify(seen, reach)
        except TokenRefused as refused:
            raise Refused(f"{self.name}: {refused.check}") from None
        return identity_from(claims, issuer.rules, issuer.issuer, self.name)


def identity_from(claims: VerifiedClaims, rules: ClaimRules, issuer: str, kind: str) -> Identity:
    """The identity that a token's verified claims prove, until the token expires.

    Raises `errors.Refused` for claims from which no identity can be made.
    """
    expires = claims.get("exp")
    until = datetime.fromtimestamp(expires, timezone.utc) if is_date(expires) else None
    try:
        return from_claims(claims, rules, method=AuthMethod.HEADER, issuer=issuer, expires=until)
    except IdentityUnusable as unusable:
        raise Refused(f"{kind}: {unusable}") from None
