"""Renewing a session at the provider: a refresh token becomes new tokens and new claims, or an end.

`Renewal` keeps the order of a login: an ID token that comes with the answer must hold and be about
the same login before userinfo is asked. What the provider rotated is never thrown away because
something after it failed. When to renew, once for all who ask, and what becomes of the session is
not known here; protocol only, no store. Called through `sessions.refresh`, as a function.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from authservice.errors import NotReady, ProviderSilent, ProviderWrong, SessionOver
from authservice.identity import VerifiedClaims
from authservice.oidc.answers import Tokens
from authservice.oidc.claims import check_address, follow_claims, merge_claims
from authservice.oidc.client import Client
from authservice.oidc.jws import NotJws, is_date, take_apart
from authservice.oidc.metadata import Metadata
from authservice.oidc.provider import Provider
from authservice.oidc.tokens import REFRESHED_ID_TOKEN, SKEW, Expected, KeyUnknown, TokenRefused
from authservice.oidc.verifier import Verifier

log = logging.getLogger(__name__)

USERINFO_TIMEOUT = timedelta(seconds=5)
"""Short, because the rotated tokens are in nobody's hands but ours until it is over."""

_OF_ANOTHER = frozenset({"iss", "sub", "aud", "azp", "client_id", "cid", "nonce", "auth_time"})
"""Failed checks that say: this token is about another login, or for another client."""

_OF_THE_LOGIN = ("nonce", "auth_time", "acr", "amr", "sid")
"""What the first ID token says of the login itself. Later ones may leave it out, and it stays so."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a session holds of its login. ``id_token`` is the newest one, byte for byte; ``claims`` are
    those of ID token and userinfo, merged."""

    issuer: str
    subject: str
    claims: Mapping[str, Any] = field(repr=False)
    id_token: str = field(repr=False)
    refresh_token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Renewed:
    """What the session holds from now on. ``id_token`` and ``refresh_token`` are the old ones where no
    new ones came; ``access_token_expires`` is aware, ``None`` when the provider did not tell.
    ``provider_sid`` is empty when the provider gives none."""

    claims: VerifiedClaims = field(repr=False)
    id_token: str = field(repr=False)
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    access_token_expires: datetime | None
    provider_sid: str


class Renewal:
    """Renews sessions of one provider. Safe for threads: nothing is kept between calls."""

    def __init__(
        self,
        provider: Provider,
        client: Client,
        *,
        now: Callable[[], datetime],
        algorithms: tuple[str, ...] = ("RS256",),
        trusted_audiences: frozenset[str] = frozenset(),
    ) -> None:
        """ValueError for an algorithm that is none of `oidc.keys.SIGNING_ALGORITHMS`."""
        self._provider = provider
        self._client = client
        expected = Expected(
            issuer=provider.issuer,
            client_id=client.client_id,
            audiences=frozenset({client.client_id}),
            algorithms=algorithms,
            trusted_audiences=trusted_audiences,
        )
        self._verifier = Verifier(provider, REFRESHED_ID_TOKEN, expected, now)

    def renew(self, held: Held, rotated: Callable[[str], object] = lambda refresh_token: None) -> Renewed:
        """Refreshes (RFC 6749 §6; OpenID Connect Core 1.0 §12.2, §5.3). May wait for the provider.
        ``rotated`` is told the refresh token to use from now on, before anything else is done with the
        answer.

        Raises `errors.SessionOver` when the provider refuses the refresh token or answers for somebody
        else: the session is to be ended, and nothing of the answer is used. Raises
        `errors.ProviderSilent`, `errors.ProviderWrong` or `errors.Unavailable` when there are no new
        tokens, or none that can be believed: nothing is known of the session then. Once there are new
        tokens they are returned, with the claims that are known, even when userinfo or the keys are
        not to be had.
        """
        if held.issuer != self._provider.issuer:
            # Its refresh token is no business of the provider that is configured now.
            raise SessionOver("the session is of another issuer")
        metadata = self._provider.metadata()
        tokens = self._client.refresh(metadata, held.refresh_token)
        rotated(tokens.refresh_token)
        old = _claims_inside(held.id_token) or held.claims
        new: Mapping[str, Any] | None = None
        if tokens.id_token:
            new = self._check_id_token(tokens, held, old)
            if new is None:
                # Not to be checked at the moment: neither believed nor asked any further.
                return _renewed(held, tokens, held.claims, held.id_token)
        id_token = tokens.id_token or held.id_token
        return _renewed(held, tokens, self._claims(metadata, tokens, held, old, new), id_token)

    def _check_id_token(
        self, tokens: Tokens, held: Held, old: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        """The new ID token's claims; ``None`` when the keys for it are not to be had now, and it does
        not say itself that it is of somebody else."""
        try:
            claims = self._verifier.verify(tokens.id_token, hashed={"at_hash": tokens.access_token})
            _check_same_login(claims, held, old)
        except (KeyUnknown, NotReady) as unknown:
            told = _claims_inside(tokens.id_token)
            if told.get("iss") != held.issuer or told.get("sub") != held.subject:
                raise SessionOver("refreshed ID token: of another issuer or subject") from None
            log.warning("renewed_in_part", extra={"cause": f"ID token: {unknown}"})
            return None
        except TokenRefused as refused:
            error = SessionOver if refused.check in _OF_ANOTHER else ProviderWrong
            raise error(f"refreshed ID token: {refused.check}") from None
        check_address(claims)
        return claims

    def _claims(
        self,
        metadata: Metadata,
        tokens: Tokens,
        held: Held,
        old: Mapping[str, Any],
        new: Mapping[str, Any] | None,
    ) -> Mapping[str, Any]:
        """The claims by the new tokens, merged as a login merges them; while userinfo does not answer,
        what is known of it stays."""
        of_the_login = {name: held.claims[name] for name in _OF_THE_LOGIN if name in held.claims}
        by_token = {**of_the_login, **(old if new is None else new)}
        try:
            if metadata.userinfo_endpoint is not None:
                merged = merge_claims(by_token, self._userinfo(metadata, tokens, held))
            else:
                merged = dict(held.claims) if new is None else by_token
            check_address(merged)
        except (ProviderSilent, ProviderWrong) as error:
            log.warning("renewed_in_part", extra={"cause": str(error)})
            return held.claims if new is None else follow_claims(held.claims, old, by_token)
        return merged

    def _userinfo(self, metadata: Metadata, tokens: Tokens, held: Held) -> dict[str, Any]:
        userinfo = self._client.userinfo(metadata, tokens.access_token, USERINFO_TIMEOUT)
        if userinfo["sub"] != held.subject:
            raise SessionOver("userinfo: sub is not the session's")
        return userinfo


def _check_same_login(claims: Mapping[str, Any], held: Held, old: Mapping[str, Any]) -> None:
    """OpenID Connect Core 1.0 §12.2; ``iss``, ``aud`` and ``azp`` were checked before. Raises
    `oidc.tokens.TokenRefused`."""
    if claims["sub"] != held.subject:
        raise TokenRefused("sub")
    if "nonce" in claims and claims["nonce"] != held.claims.get("nonce"):
        raise TokenRefused("nonce")
    if "auth_time" in claims and claims["auth_time"] != held.claims.get("auth_time", claims["auth_time"]):
        raise TokenRefused("auth_time")
    before = old.get("iat")
    if is_date(before) and claims["iat"] < before - SKEW.total_seconds():
        raise TokenRefused("iat")


def _claims_inside(id_token: str) -> Mapping[str, Any]:
    """What a token says, unverified: of one that was verified when it came, or to refuse by it."""
    try:
        return take_apart(id_token).claims()
    except NotJws:
        return {}


def _renewed(held: Held, tokens: Tokens, claims: Mapping[str, Any], id_token: str) -> Renewed:
    sid = claims.get("sid", "")
    return Renewed(
        claims=VerifiedClaims(claims),
        id_token=id_token,
        access_token=tokens.access_token,
        refresh_token=tokens.refresh_token,
        access_token_expires=tokens.access_token_expires,
        provider_sid=sid if isinstance(sid, str) else "",
    )
