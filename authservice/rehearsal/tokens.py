"""A token in a rehearsal: put where a policy's rule looks for it, and judged by the live authenticator.

Where no rule is for the workload, what the token says of itself can be had unverified; who asks for that has
to say so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from msgspec.structs import replace

from authservice.authn.cache import BearerCache
from authservice.authn.places import CookiePlace, HeaderPlace, ParameterPlace, Place, places_of
from authservice.authn.request import RequestAuthenticator, Sources
from authservice.check import CheckRequest
from authservice.errors import SettingsError
from authservice.identity import ClaimRules
from authservice.oidc.issuers import FurtherIssuer
from authservice.oidc.jws import NotJws, take_apart
from authservice.outbound import Http
from authservice.pipeline import is_preflight
from authservice.policy.compile import PolicySet
from authservice.policy.resources import JwtRule
from authservice.rehearsal.means import Means

_MOST_KEPT = 1000


@dataclass(slots=True)
class _Unchanging:
    """A set that nobody reloads."""

    current: PolicySet


def authenticator(policies: PolicySet, means: Means, now: Callable[[], datetime]) -> RequestAuthenticator:
    """The live authenticator over these policies, which fetches keys when a token needs them."""

    def make(rule: JwtRule) -> FurtherIssuer:
        try:
            http = Http(means.ca_bundle, rule.timeout)
        except OSError as error:
            raise SettingsError([f"CA_BUNDLE: the file cannot be used ({error.strerror})."]) from None
        return FurtherIssuer(rule.issuer, http, now=now, jwks_url=rule.jwks_uri)

    return RequestAuthenticator(
        _Unchanging(policies),
        BearerCache(_MOST_KEPT, None, now),
        Sources({}, make),
        ClaimRules(means.userid_claim, ""),
        now=now,
        skips=is_preflight,
    )


def placed(check: CheckRequest, rules: Sequence[JwtRule], token: str) -> CheckRequest:
    """The check with the token where the first rule for its issuer looks first, or else the first of all."""
    issuer = (unverified(token) or {}).get("iss")
    fitting = [rule for rule in rules if rule.issuer in ("", issuer)]
    return _in_place(check, places_of((fitting or list(rules))[0])[0], token)


def _in_place(check: CheckRequest, place: Place, token: str) -> CheckRequest:
    match place:
        case HeaderPlace(name, prefix):
            return _with_header(check, name, prefix + token)
        case ParameterPlace(name):
            pair = f"{quote(name, safe='')}={quote(token, safe='')}"
            return replace(check, target=f"{check.target}{'&' if '?' in check.target else '?'}{pair}")
        case CookiePlace(name):
            others = check.header("cookie")
            return _with_header(check, "cookie", f"{others}; {name}={token}" if others else f"{name}={token}")


def _with_header(check: CheckRequest, name: str, value: str) -> CheckRequest:
    return replace(check, headers={**check.headers, name: value})


def unverified(token: str) -> Mapping[str, Any] | None:
    """The claims that a token carries, whoever wrote them; ``None`` when it is no signed token in form."""
    try:
        return take_apart(token).claims()
    except NotJws:
        return None
