"""What rules of RequestAuthentications tell the application of a verified token (M62, M63).

Names and values of headers, out of rules and claims; for whom they are set, and what becomes of the same headers
when somebody else sends them, is `authn.outputs`' to say. Nothing here knows a request.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from authservice.errors import IdentityUnusable
from authservice.identity import (
    MAX_HEADER, MOST_JOINTS, find_claim, has_too_many_spellings, header_value, other_spellings,
)
from authservice.policy.resources import JwtRule, Place

_NEVER_SET = frozenset({
    # what HTTP itself goes by (RFC 9110 §6 to §8)
    "host", "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "expect",
    "content-length", "content-type", "content-encoding", "date", "via",
    # what proves who somebody is
    "authorization", "proxy-authorization", "cookie", "set-cookie",
})  # fmt: skip
_GATEWAYS_OWN = ("x-envoy-", "x-forwarded-", "x-original-")
_NUMBERS_OF_64_BITS = 1 << 64


def output_problems(rules: Iterable[JwtRule], taken: Iterable[str]) -> list[tuple[Place, str]]:
    """What is wrong with the headers that rules name, each with its place. ``taken`` are the names of identity
    headers. Two spellings that an application may take for one name count as one."""
    identity = frozenset(map(_normal, taken))
    problems = []
    for rule in rules:
        seen: set[str] = set()
        for field, name in _named(rule):
            normal = _normal(name)
            sentence = ""
            if normal in identity:
                sentence = "is an identity header, which nothing else may set"
            elif normal in _NEVER_SET or normal.startswith(_GATEWAYS_OWN):
                sentence = "is a header that gateways and applications go by, and no policy's to set"
            elif normal in seen:
                sentence = "is set by this rule already"
            elif has_too_many_spellings(name):
                sentence = f"has more than {MOST_JOINTS} dashes, and so too many spellings to be taken off"
            seen.add(normal)
            if sentence:
                place = Place(rule.place.file, rule.place.line, f"{rule.place.field}.{field}")
                problems.append((place, f"{name} {sentence}"))
    return problems


def output_names(rules: Iterable[JwtRule]) -> tuple[str, ...]:
    """Every header that any of the rules names, in lower case, and its other spellings."""
    names = tuple(dict.fromkeys(name.lower() for rule in rules for _, name in _named(rule)))
    return (*names, *other_spellings(names))


def output_headers(rules: Sequence[JwtRule], claims: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The headers that rules set for these claims, each name once: the first rule that names it says what it
    is. A claim that is absent, ``null`` or an empty text sets none.

    Values are printable ASCII (see `identity.header_value`). Raises `errors.IdentityUnusable` for one of more
    than `identity.MAX_HEADER` bytes: to cut it would change what it says.
    """
    headers: dict[str, tuple[str, str]] = {}
    for rule in rules:
        for name, value in _values(rule, claims):
            if value and name.lower() not in headers:
                headers[name.lower()] = (name, _fitting(name, value))
    return tuple(headers.values())


def _named(rule: JwtRule) -> Iterator[tuple[str, str]]:
    """The field and the name of each header."""
    if rule.output_payload_header:
        yield "outputPayloadToHeader", rule.output_payload_header
    for number, (name, _) in enumerate(rule.output_claims):
        yield f"outputClaimToHeaders[{number}].header", name


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")


def _values(rule: JwtRule, claims: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if rule.output_payload_header:
        payload = base64.urlsafe_b64encode(_json(dict(claims))).rstrip(b"=")
        yield rule.output_payload_header, payload.decode()
    for name, claim in rule.output_claims:
        yield name, _text(find_claim(claims, claim))


def _fitting(name: str, value: str) -> str:
    value = header_value(value)
    if len(value) > MAX_HEADER:
        raise IdentityUnusable(f"{name} would have more than {MAX_HEADER} bytes")
    return value


def _text(value: Any) -> str:
    """A claim's value as Envoy writes it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        whole = 0 <= value < _NUMBERS_OF_64_BITS and value == int(value)
        return str(int(value)) if whole else f"{value:f}"
    if isinstance(value, (list, tuple, Mapping)):
        return base64.b64encode(_json(value)).decode()
    return ""


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise IdentityUnusable("an identity holds half of a surrogate pair") from None
