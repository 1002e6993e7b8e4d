"""Who is asked for an identity, and in which order: one list, made once from the settings.

The order is the original's: the cluster, opaque access tokens, signed access tokens, the session,
ID tokens. Before them come the rules of policies, for the workloads that have some. What is switched off is
not in the list. Part of the composition root; called by `app`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

from authservice.authn import Authenticator, BearerAuthenticator, kubernetes
from authservice.authn.bearer import AUTHORIZATION, FromHeader, WithToken
from authservice.authn.cache import BearerCache, CachedAuthenticator
from authservice.authn.jwt import JwtAuthenticator, Trusted
from authservice.authn.opaque import OpaqueAuthenticator
from authservice.authn.request import Current, RequestAuthenticator, Sources
from authservice.authn.session import SessionAuthenticator, Upkeep
from authservice.identity import ClaimRules, Identity
from authservice.oidc.client import Client
from authservice.oidc.issuers import FurtherIssuer, KeySource
from authservice.oidc.jws import ACCESS, Glance
from authservice.oidc.opaque import OpaqueTokens
from authservice.oidc.provider import Provider
from authservice.oidc.tokens import ACCESS_TOKEN, BEARER_ID_TOKEN, Expected, Profile
from authservice.oidc.verifier import Verifier
from authservice.ops import Counts
from authservice.outbound import Http
from authservice.pipeline import is_preflight
from authservice.policy.read_request import DEFAULT_TIMEOUT
from authservice.policy.resources import JwtRule
from authservice.sessions.live import Sessions
from authservice.settings import Settings
from authservice.settings.issuers import BearerIssuer


class Parts(NamedTuple):
    """What the authenticators are made of. ``policies`` are those that are enforced, if any are."""

    sessions: Sessions
    provider: Provider
    client: Client
    rules: ClaimRules
    now: Callable[[], datetime]
    counts: Counts
    upkeep: Sequence[Upkeep] = ()
    policies: Current | None = None


def build(settings: Settings, parts: Parts) -> list[Authenticator]:
    """The authenticators in their order."""
    lifetime = settings.cache_expiration_minutes if settings.cache_enabled else None
    cache = BearerCache(settings.cache_max_entries, lifetime, parts.now, counts=parts.counts)

    tells = settings.upstream_tokens

    def from_header(header: str, inner: BearerAuthenticator | None, *, id_token: bool = False) -> list[Authenticator]:
        if not inner or not header:
            return []
        if id_token and tells.id:
            inner = WithToken(inner, lambda identity, token: tells.keep(identity, id=token))
        elif not id_token and tells.access:
            inner = WithToken(inner, lambda identity, token: tells.keep(identity, access=token))
        return [FromHeader(CachedAuthenticator(inner, cache), header)]

    kinds = {"jwt": ("jwt",), "opaque": ("opaque",), "both": ("jwt", "opaque")}[settings.access_token_authn]
    wanted = kinds if settings.access_token_authn_enabled else ()
    header = settings.id_token_header
    further = [_further_issuer(settings, parts, one) for one in settings.bearer_issuers]
    return [
        *_policies(settings, parts, cache, further),
        *from_header(AUTHORIZATION, _kubernetes(settings)),
        *from_header(header, _opaque(settings, parts, jwts_too="jwt" not in wanted) if "opaque" in wanted else None),
        *from_header(header, _access_tokens(settings, parts, further, ours="jwt" in wanted)),
        SessionAuthenticator(
            parts.sessions,
            auth_header=settings.auth_header,
            cookie_name=settings.session_cookie_name,
            upkeep=parts.upkeep,
        ),
        *from_header(
            header, _id_tokens(settings, parts) if settings.idtoken_authn_enabled else None, id_token=True
        ),
    ]


def _policies(
    settings: Settings, parts: Parts, cache: BearerCache, further: Sequence[KeySource]
) -> list[Authenticator]:
    """The rules of RequestAuthentications. An issuer that the service knows is asked for its keys in one place."""
    if parts.policies is None:
        return []
    known: dict[tuple[str, str], KeySource] = {}
    addresses = [settings.oidc_jwks_url, *(one.jwks_url for one in settings.bearer_issuers)]
    for source, address in zip((parts.provider, *further), addresses, strict=True):
        known.setdefault((source.issuer, address), source)
        known.setdefault((source.issuer, ""), source)

    @lru_cache(maxsize=8)  # to read the authorities takes long, and most rules have the usual time-out
    def http(timeout: timedelta) -> Http:
        return Http(settings.ca_bundle, timeout, settings.provider_max_bytes)

    def make(rule: JwtRule) -> KeySource:
        return FurtherIssuer(rule.issuer, http(rule.timeout), now=parts.now, jwks_url=rule.jwks_uri)

    http(DEFAULT_TIMEOUT)  # now, and not within somebody's check
    sources = Sources(known, make)
    tells = settings.upstream_tokens

    def keep(identity: Identity, token: str, seen: Glance) -> None:
        tells.keep(identity, **{"id" if seen.is_id_token else "access": token})

    return [
        RequestAuthenticator(
            parts.policies, cache, sources, parts.rules, now=parts.now, skips=is_preflight, keep=keep
        )
    ]


def _kubernetes(settings: Settings) -> BearerAuthenticator | None:
    return kubernetes.build(
        settings.kubernetes_authn_enabled,
        settings.kubernetes_environ,
        audiences=settings.audiences,
        known_issuers=(settings.oidc_provider, *(one.issuer for one in settings.bearer_issuers)),
        timeout=settings.provider_timeout_seconds,
    )


def _opaque(settings: Settings, parts: Parts, *, jwts_too: bool) -> BearerAuthenticator:
    """``jwts_too``: the provider is also asked about access tokens of its own that are JWTs in form,
    which nobody else here judges then."""

    def may_be_ours(seen: Glance) -> bool:
        if not jwts_too or seen.issuer != settings.oidc_provider:
            return False
        # What cannot be told apart, and is for us, is left to the authenticator of ID tokens.
        left = settings.idtoken_authn_enabled and settings.client_id in seen.audiences
        return seen.kind == ACCESS or (seen.kind == "" and not left)

    tokens = OpaqueTokens(parts.client, frozenset(settings.audiences), parts.rules)
    return OpaqueAuthenticator(tokens.ask, may_be_ours, parts.rules, settings.oidc_provider)


def _access_tokens(
    settings: Settings, parts: Parts, further: Sequence[KeySource], *, ours: bool
) -> BearerAuthenticator | None:
    """Signed access tokens of the provider (``ours``) and of every further issuer."""
    trusted = []
    if ours and settings.audiences:
        trusted.append(_trusted(settings, parts, ACCESS_TOKEN, parts.provider, settings.audiences, parts.rules))
    for one, source in zip(settings.bearer_issuers, further, strict=True):
        rules = ClaimRules(
            one.userid_claim or settings.userid_claim,
            one.groups_claim or settings.groups_claim,
            settings.userid_lowercase,
            settings.require_verified_email,
        )
        trusted.append(_trusted(settings, parts, ACCESS_TOKEN, source, one.audiences, rules))
    if not trusted:
        return None
    return JwtAuthenticator("jwt", trusted, lambda seen: seen.is_id_token or seen.is_logout)


def _further_issuer(settings: Settings, parts: Parts, one: BearerIssuer) -> FurtherIssuer:
    http = Http(one.ca_bundle or settings.ca_bundle, settings.provider_timeout_seconds, settings.provider_max_bytes)
    return FurtherIssuer(one.issuer, http, now=parts.now, jwks_url=one.jwks_url)


def _id_tokens(settings: Settings, parts: Parts) -> BearerAuthenticator:
    trusted = _trusted(
        settings, parts, BEARER_ID_TOKEN, parts.provider, (settings.client_id,), parts.rules
    )
    return JwtAuthenticator("id_token", [trusted])


def _trusted(
    settings: Settings,
    parts: Parts,
    profile: Profile,
    source: KeySource,
    audiences: tuple[str, ...],
    rules: ClaimRules,
) -> Trusted:
    expected = Expected(
        issuer=source.issuer,
        client_id=settings.client_id,
        audiences=frozenset(audiences),
        algorithms=settings.oidc_signing_algs,
    )
    return Trusted(source.issuer, frozenset(audiences), Verifier(source, profile, expected, parts.now), rules)

