"""Who looks after sessions while they live, and how the provider is asked about one.

Here sessions, which know no token endpoint, and the protocol, which knows no session, meet: a record
becomes a question, and the answer a record. Part of the composition root; called by `app`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import NamedTuple

import msgspec

from authservice.authn.session import Upkeep
from authservice.authn.strict import Ask, StrictValidation
from authservice.errors import (
    AuthServiceError,
    ClientRefused,
    IdentityUnusable,
    NotReady,
    ProviderBusy,
    ProviderDown,
    ProviderSilent,
    ProviderWrong,
    SessionOver,
)
from authservice.identity import AuthMethod, ClaimRules, IdentityHeaders, from_claims
from authservice.oidc.answers import EndpointRefused
from authservice.oidc.client import Client
from authservice.oidc.metadata import Metadata
from authservice.oidc.provider import Provider
from authservice.oidc.renewal import Held, Renewal, Renewed
from authservice.ops import Counts
from authservice.sessions import Session, Store
from authservice.sessions.lease import Leases
from authservice.sessions.live import Sessions
from authservice.sessions.refresh import Refresher, Renew
from authservice.sessions.unsaved import Revoke
from authservice.settings import Settings
from authservice.upstream import on_trial

_OF_ONE_REQUEST = frozenset({"invalid_request", "invalid_scope"})
"""Errors of the token endpoint that are about what was sent, not about who sends it."""


class Parts(NamedTuple):
    """What the upkeep is made of."""

    store: Store
    sessions: Sessions
    provider: Provider
    client: Client
    rules: ClaimRules
    headers: IdentityHeaders
    now: Callable[[], datetime]
    counts: Counts


class Keepers(NamedTuple):
    """Who is asked about a session at a check, in this order; the second only where that is wanted."""

    refresher: Refresher
    validation: StrictValidation | None
    probes: Mapping[str, Callable[[], object]]
    """What else has to be well before a session authenticates, for `ops.Readiness`."""

    @property
    def all(self) -> list[Upkeep]:
        return [self.refresher, self.validation] if self.validation else [self.refresher]


def build(settings: Settings, parts: Parts) -> Keepers:
    """Those that the settings describe."""
    leases = Leases(parts.store, parts.now)
    renewal = Renewal(
        parts.provider, parts.client, now=parts.now, algorithms=settings.oidc_signing_algs
    )
    refresher = Refresher(
        parts.sessions,
        leases,
        renewing(renewal, parts.rules, parts.headers, parts.client.revoke),
        parts.client.revoke,
        now=parts.now,
        grace=settings.provider_outage_grace_seconds,
        counts=parts.counts,
    )
    if not settings.strict_session_validation:
        return Keepers(refresher, None, {})
    ask = asking(parts.provider, parts.client)
    remember = settings.strict_session_validation_seconds
    return Keepers(
        refresher,
        StrictValidation(parts.sessions, leases, ask, now=parts.now, remember=remember, counts=parts.counts),
        {"userinfo": partial(_with_userinfo, parts.provider)},
    )


def renewing(renewal: Renewal, rules: ClaimRules, headers: IdentityHeaders, revoke: Revoke) -> Renew:
    """`sessions.refresh.Renew` by the protocol. New claims of which no identity can be made, or none
    that fits in a header, end the session, as they would have kept it from beginning."""

    def renew(session: Session, rotated: Callable[[str], object]) -> Session:
        held = Held(session.issuer, session.subject, session.claims, session.id_token, session.refresh_token)
        try:
            renewed = renewal.renew(held, rotated)
        except EndpointRefused as refused:
            raise _what_failed(refused) from None
        try:
            return _renewed(session, renewed, rules, headers)
        except IdentityUnusable as unusable:
            revoke(renewed.refresh_token, renewed.access_token)
            raise SessionOver(f"the new claims: {unusable}") from None

    return renew


def _renewed(session: Session, renewed: Renewed, rules: ClaimRules, headers: IdentityHeaders) -> Session:
    identity = from_claims(renewed.claims, rules, method=AuthMethod.COOKIE, issuer=session.issuer)
    on_trial(identity, renewed)
    headers.render(identity)
    return msgspec.structs.replace(
        session,
        user_id=identity.user_id,
        groups=identity.groups,
        claims=dict(renewed.claims),
        provider_sid=renewed.provider_sid or session.provider_sid,
        id_token=renewed.id_token,
        access_token=renewed.access_token,
        refresh_token=renewed.refresh_token,
        access_token_expires=renewed.access_token_expires,
    )


def _what_failed(refused: EndpointRefused) -> AuthServiceError:
    """Whether the provider does not work for anybody, or did not like this one request."""
    told = str(refused)
    if refused.answered >= 500 or refused.code in ("server_error", "temporarily_unavailable"):
        return ProviderDown(told)
    if refused.answered == 429:
        return ProviderBusy(told)
    if refused.code in _OF_ONE_REQUEST:
        return ProviderWrong(told)
    return ClientRefused(told) if refused.code or refused.answered in (401, 403) else ProviderDown(told)


def asking(provider: Provider, client: Client) -> Ask:
    """`authn.strict.Ask` by the userinfo endpoint, with the session's own access token."""

    def ask(session: Session) -> None:
        if session.issuer != provider.issuer:
            # Its access token is no business of the provider that is configured now.
            raise SessionOver("the session is of another issuer")
        metadata = _with_userinfo(provider)
        try:
            claims = client.userinfo(metadata, session.access_token)
        except EndpointRefused as refused:
            if refused.answered == 401:
                raise SessionOver(str(refused)) from None
            raise (ProviderBusy if refused.answered == 429 else ProviderDown)(str(refused)) from None
        except (ProviderSilent, ProviderWrong) as error:
            raise ProviderDown(str(error)) from None
        if claims["sub"] != session.subject:
            raise SessionOver("userinfo: sub is not the session's")

    return ask


def _with_userinfo(provider: Provider) -> Metadata:
    metadata = provider.metadata()
    if metadata.userinfo_endpoint is None:
        raise NotReady("STRICT_SESSION_VALIDATION: the provider has no userinfo endpoint")
    return metadata
