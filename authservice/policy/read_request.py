"""The ``spec`` of a `RequestAuthentication`: whose tokens count, where they are found, and what is passed on.

Called by `policy.read`. Whether an inline key set has usable keys is `oidc.keys`' to say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from authservice.oidc.keys import SIGNING_ALGORITHMS, read_key_set
from authservice.oidc.tokens import plain_audience
from authservice.policy.fields import Spot, header_name, seen_header_name, shown
from authservice.policy.resources import JwtRule, Place, RequestAuthentication, Selection
from authservice.policy.yaml_lines import Kind
from authservice.strictjson import read_object

REQUEST_FIELDS = ("selector", "targetRef", "targetRefs", "jwtRules")
DEFAULT_TIMEOUT = timedelta(seconds=5)
"""For fetching keys, as Istio's (M57)."""
MAX_TIMEOUT = timedelta(hours=1)

_JWT_FIELDS = (
    "issuer", "audiences", "jwksUri", "jwks_uri", "jwks", "fromHeaders", "fromParams", "fromCookies",
    "outputPayloadToHeader", "outputClaimToHeaders", "forwardOriginalToken", "spaceDelimitedClaims",
    "timeout",
)  # fmt: skip
_PARTS = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{0,9})?(?:h|m|s|ms))+")
_PART = re.compile(r"([0-9.]+)(h|ms|m|s)")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def request_authentication(
    spec: Spot, name: str, namespace: str, selection: Selection, place: Place
) -> RequestAuthentication:
    """The resource that a ``spec`` describes; its problems are the spot's."""
    rules = tuple(_jwt_rule(entry) for entry in spec.mappings("jwtRules"))
    return RequestAuthentication(name, namespace, rules, selection, place)


def _jwt_rule(rule: Spot) -> JwtRule:
    rule.refuse_others(_JWT_FIELDS)
    issuer, address = rule.text("issuer"), _address(rule)
    if not issuer and not address:
        rule.refuse("issuer or jwksUri has to be there")
    elif not address and rule.member("jwks") is None and not _is_web(issuer):
        rule.at("issuer").refuse(
            f"{shown(issuer)} is no http or https URL at which keys could be found; add jwksUri or jwks"
        )
    return JwtRule(
        issuer=issuer,
        audiences=rule.values("audiences", _audience),
        jwks_uri=address,
        jwks=rule.value("jwks", _key_set),
        from_headers=tuple(_from_header(entry) for entry in rule.mappings("fromHeaders")),
        from_params=rule.texts("fromParams"),
        from_cookies=rule.texts("fromCookies"),
        output_payload_header=rule.value("outputPayloadToHeader", header_name) or "",
        output_claims=tuple(_output_claim(entry) for entry in rule.mappings("outputClaimToHeaders")),
        forward_original_token=rule.boolean("forwardOriginalToken"),
        space_delimited_claims=rule.texts("spaceDelimitedClaims"),
        timeout=rule.value("timeout", _duration) or DEFAULT_TIMEOUT,
        place=rule.place,
    )


def _address(rule: Spot) -> str:
    """Where the keys are. Istio has two spellings of this field."""
    both = [spot for spot in (rule.member("jwksUri"), rule.member("jwks_uri")) if spot is not None]
    if len(both) > 1:
        both[1].refuse("jwksUri and jwks_uri are the same field, and one is enough")
    for spot in both:
        if spot.is_a(Kind.TEXT) and spot.node.text and not _is_web(spot.node.text):
            spot.refuse(f"{shown(spot.node.text)} is no http or https URL")
    return both[0].node.text if both else ""


def _is_web(address: str) -> bool:
    if not address.isascii() or not address.isprintable() or " " in address:
        return False
    try:
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _audience(text: str) -> str:
    if not plain_audience(text):
        raise ValueError("nothing is left of this without its scheme and its last slash")
    return text


def _key_set(text: str) -> Mapping[str, Any]:
    try:
        document = read_object(text.encode())
        usable = len(read_key_set(document))
    except ValueError as error:
        raise ValueError(f"this is no key set: {error}") from None
    if not usable:
        algorithms = ", ".join(SIGNING_ALGORITHMS)
        raise ValueError(f"no key of this set can be used; what can are public keys for {algorithms}")
    return document


def _from_header(entry: Spot) -> tuple[str, str]:
    entry.refuse_others(("name", "prefix"))
    name = entry.required_value("name", seen_header_name) or ""
    return name.lower(), entry.text("prefix")


def _output_claim(entry: Spot) -> tuple[str, str]:
    entry.refuse_others(("header", "claim"))
    return entry.required_value("header", header_name) or "", entry.required_value("claim", str) or ""


def _duration(text: str) -> timedelta:
    """A duration as Istio reads it: seconds (``5s``, ``1.5s``), and the other units of Go."""
    if len(text) <= 40 and _PARTS.fullmatch(text):
        found = timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text)))
        if timedelta(milliseconds=1) <= found <= MAX_TIMEOUT:
            return found
    raise ValueError(f"{shown(text)} is no duration from 1ms to 1h, such as 5s or 1.5s")
