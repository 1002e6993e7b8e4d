"""The verification of one issuer's tokens of one kind, with the issuer's keys as they are now.

Joins what `oidc.tokens` decides with where keys come from: a token by an unknown key is tried once
more if the issuer has newer keys, and no more often than the source allows. One verifier knows one
issuer, so no token is ever tried with another issuer's keys. Called by the authenticators, and by
`oidc.login` for the ID token of a login.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from authservice.check import Reach
from authservice.identity import VerifiedClaims
from authservice.oidc.issuers import KeySource
from authservice.oidc.jws import Glance, Jws
from authservice.oidc.keys import KeySet
from authservice.oidc.tokens import Expected, KeyUnknown, Profile, verify


class Verifier:
    """Verifies tokens of ``source``'s issuer. ValueError when ``expected`` is of another issuer."""

    def __init__(
        self, source: KeySource, profile: Profile, expected: Expected, now: Callable[[], datetime]
    ) -> None:
        if source.issuer != expected.issuer:
            raise ValueError("tokens of one issuer are not verified with another's keys")
        self._source = source
        self._profile = profile
        self._expected = expected
        self._now = now

    def verify(
        self,
        token: str | Glance,
        reach: Reach = Reach.NETWORK,
        *,
        nonce: str | None = None,
        hashed: Mapping[str, str] | None = None,
    ) -> VerifiedClaims:
        """The token's claims, when everything holds. A `Glance` of a token saves reading it again.

        ``nonce`` and ``hashed`` are as in `oidc.tokens.verify`. Raises `oidc.tokens.TokenRefused`
        when something does not hold, `errors.NotReady` when the keys cannot be had now, and
        `check.NeedsIO` under `Reach.MEMORY` when they must be asked for.
        """
        given: str | Jws = token.jws if isinstance(token, Glance) else token

        def verified(keys: KeySet) -> VerifiedClaims:
            return verify(
                given, keys, self._profile, self._expected, self._now(), nonce=nonce, hashed=hashed
            )

        keys = self._source.keys(reach)
        try:
            return verified(keys)
        except KeyUnknown:
            newer = self._source.newer_keys(keys, reach)
            if newer is None:
                raise
            return verified(newer)
