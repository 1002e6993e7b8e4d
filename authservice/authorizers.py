"""Who is asked whether somebody may, and in which order: one list, made once from the settings.

Groups come first, then policies, and last whoever has to be asked over the network. Part of the composition
root; called by `app`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

from authservice.authz import Authorizer, Granted, external
from authservice.authz.demands import DemandsAuthorizer
from authservice.authz.groups import EVERYBODY, GroupsAuthorizer
from authservice.authz.policy import PolicyAuthorizer
from authservice.check import AUTH_REQUEST, CheckRequest
from authservice.outbound import Http
from authservice.policy.current import Policies
from authservice.settings import Settings
from authservice.trust import Trust


class Authorizers(NamedTuple):
    """Those who judge an identity, and who judges a check without any, if somebody does."""

    all: list[Authorizer]
    admits_anonymous: Callable[[CheckRequest], Granted | None] | None


def build(settings: Settings, policies: Policies | None, trust: Trust, now: Callable[[], datetime]) -> Authorizers:
    """The authorizers in their order."""
    allowed = settings.groups_allowlist
    groups = None if EVERYBODY in allowed else GroupsAuthorizer(allowed)
    policy = None if policies is None else _policy(settings, policies, trust)
    demands = DemandsAuthorizer() if settings.oauth2_proxy_compat else None
    asked: tuple[Authorizer | None, ...] = (groups, demands, policy, _external(settings, now))
    return Authorizers(
        [one for one in asked if one is not None],
        _where_the_path_is_sure(policy) if policy is not None and settings.policy_allows_anonymous else None,
    )


def _where_the_path_is_sure(policy: PolicyAuthorizer) -> Callable[[CheckRequest], Granted | None]:
    """oauth2-proxy's ``auth`` is for people: many a configuration made for it sends no header that tells the path,
    and then a client's own would open every page to nobody in particular."""
    return lambda check: None if check.dialect == AUTH_REQUEST else policy.admits_anonymous(check)


def _policy(settings: Settings, policies: Policies, trust: Trust) -> PolicyAuthorizer:
    return PolicyAuthorizer(
        policies,
        trust.addresses,
        peer_header=settings.policy_peer_header.lower(),
        on_trial=settings.policy_dry_run,
        explains=settings.explain_denials,
    )


def _external(settings: Settings, now: Callable[[], datetime]) -> Authorizer | None:
    if not settings.external_authz_url:
        return None
    http = Http(settings.ca_bundle, external.TIMEOUT, connect_retries=external.CONNECT_RETRIES)
    remember = settings.external_authz_cache_seconds
    return external.ExternalAuthorizer(settings.external_authz_url, http, now=now, remember=remember)
