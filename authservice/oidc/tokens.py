"""Whether a signed token is what it should be. One verification for every kind of JWT.

What differs between kinds is data (`Profile`), what differs between deployments is data
(`Expected`), and the keys are given; so nothing here fetches, waits or remembers. The order is
such that nothing of a token is believed, and little work is done for it, before its signature
holds. Called by `oidc.login` for the ID token; a refusal names the failed check and quotes
nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from joserfc.errors import JoseError
from joserfc.jws import JWSRegistry

from authservice.identity import VerifiedClaims
from authservice.oidc.keys import SIGNING_ALGORITHMS, KeySet
from authservice.strictjson import BadJson, read_object

SKEW = timedelta(seconds=60)
MAX_TOKEN = 256 * 1024
MAX_HEADER = 16 * 1024
MAX_KID = 1024
MAX_SUBJECT = 255
MAX_KEYS_TRIED = 16
_LATEST_DATE = 253_402_300_799
"""9999-12-31T23:59:59Z; what is beyond counts milliseconds or is nonsense."""

_HALF_HASHES = {"256": hashlib.sha256, "384": hashlib.sha384, "512": hashlib.sha512, "EdDSA": hashlib.sha512}


class TokenRefused(Exception):
    """A token that is not what it should be. ``check`` is the word for the check that failed."""

    def __init__(self, check: str) -> None:
        super().__init__(check)
        self.check = check


class KeyUnknown(TokenRefused):
    """No known key verifies the token; the provider may have newer ones."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What one kind of token must look like.

    ``types`` are the accepted ``typ`` headers, lower-case and without ``application/``; ``""``
    stands for none (RFC 8725 §3.11). ``forbidden`` claims are signs of another kind of token.
    ``sole_audience``: audiences besides ours need to be trusted, and ``azp`` must be us.
    ``max_age`` limits how old ``iat`` may be.
    """

    name: str
    types: frozenset[str]
    required: tuple[str, ...]
    forbidden: tuple[str, ...] = ()
    sole_audience: bool = True
    max_age: timedelta | None = None


ID_TOKEN = Profile(
    name="id_token",
    types=frozenset({"", "jwt"}),
    required=("iss", "sub", "aud", "exp", "iat"),
    forbidden=("events",),
    max_age=timedelta(hours=1),
)
"""The ID token of a login (OpenID Connect Core 1.0 §2, §3.1.3.7). An hour is far more than a
login lasts and hides the clocks of providers that put the time of authentication in ``iat``."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Who must have issued a token, for whom, signed how.

    ``audiences``: one of them must be in ``aud``. ``client_id`` is what ``azp`` must be.
    ``algorithms`` is what is allowed here; the token's own ``alg`` only selects from it.
    """

    issuer: str
    client_id: str
    audiences: frozenset[str]
    algorithms: tuple[str, ...] = ("RS256",)
    trusted_audiences: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        unknown = set(self.algorithms) - set(SIGNING_ALGORITHMS)
        if unknown or not self.algorithms:
            raise ValueError(f"not a signing algorithm: {', '.join(sorted(unknown)) or 'none given'}")


@dataclass(frozen=True, slots=True)
class _Parts:
    header: Mapping[str, Any]
    payload: bytes
    signature: bytes
    signed: bytes


def verify(
    token: object,
    keys: KeySet,
    profile: Profile,
    expected: Expected,
    now: datetime,
    *,
    nonce: str | None = None,
    hashed: Mapping[str, str] | None = None,
) -> VerifiedClaims:
    """The token's claims, when all checks hold (OpenID Connect Core 1.0 §3.1.3.7, RFC 8725).

    ``nonce`` is what the claim of this name must be. ``hashed`` maps ``at_hash`` and ``c_hash`` to
    the values that they must belong to when they are present (§3.1.3.6, §3.3.2.11). Raises
    `KeyUnknown` when newer keys may help and `TokenRefused` otherwise. That ``sub`` is the one of
    an earlier answer is left to the caller.
    """
    parts = _take_apart(token)
    algorithm = _read_header(parts.header, profile, expected)
    _check_signature(parts, algorithm, keys)
    claims = _json(parts.payload, "claims")
    _check_parties(claims, profile, expected)
    _check_times(claims, profile, now)
    if nonce is not None:
        _check(_same(claims.get("nonce"), nonce), "nonce")
    for name, value in (hashed or {}).items():
        if name in claims:
            _check(_same(claims[name], half_hash(value, algorithm)), name)
    return VerifiedClaims(claims)


def half_hash(value: str, algorithm: str) -> str:
    """What ``at_hash`` is for an access token, with the hash of the signature's algorithm."""
    function = _HALF_HASHES[algorithm if algorithm == "EdDSA" else algorithm[-3:]]
    digest = function(value.encode()).digest()
    return base64.urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=").decode()


def _take_apart(token: object) -> _Parts:
    """JWS Compact Serialization (RFC 7515 §7.1). Length and number of parts come first."""
    if not isinstance(token, str) or not token.isascii() or len(token) > MAX_TOKEN:
        raise TokenRefused("size")
    _check(token.count(".") == 2, "parts")
    header, payload, signature = token.split(".")
    _check(bool(header and payload and signature) and len(header) <= MAX_HEADER, "parts")
    return _Parts(
        header=_json(_bytes(header), "header"),
        payload=_bytes(payload),
        signature=_bytes(signature),
        signed=f"{header}.{payload}".encode(),
    )


def _bytes(text: str) -> bytes:
    """base64url as RFC 7515 §2 has it: no padding, no other spelling of the same bytes."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise TokenRefused("encoding") from None
    _check(base64.urlsafe_b64encode(data).rstrip(b"=") == text.encode(), "encoding")
    return data


def _json(data: bytes, part: str) -> dict[str, Any]:
    try:
        return read_object(data)
    except BadJson:
        raise TokenRefused(part) from None


def _read_header(header: Mapping[str, Any], profile: Profile, expected: Expected) -> str:
    """The algorithm. Keys in the header and addresses of keys (``jwk``, ``jku``, ``x5u``, ``x5c``)
    are not read; what must be understood (``crit``, ``b64``, ``zip``, ``enc``) is refused."""
    algorithm = header.get("alg")
    _check(isinstance(algorithm, str) and algorithm in expected.algorithms, "alg")
    _check(not header.keys() & {"crit", "b64", "zip", "enc"}, "crit")
    kind = header.get("typ", "")
    _check(isinstance(kind, str), "typ")
    _check(kind.lower().removeprefix("application/") in profile.types, "typ")
    if "kid" in header:
        kid = header["kid"]
        _check(isinstance(kid, str) and 0 < len(kid) <= MAX_KID, "kid")
    return str(algorithm)


def _check_signature(parts: _Parts, algorithm: str, keys: KeySet) -> None:
    kid = parts.header.get("kid")
    verifier = JWSRegistry.algorithms[algorithm]
    for tried, key in enumerate(keys.candidates(algorithm, kid)):
        _check(tried < MAX_KEYS_TRIED, "signature")
        try:
            if verifier.verify(parts.signed, parts.signature, key.public):
                return
        except (JoseError, ValueError):
            continue
    raise TokenRefused("signature") if kid is not None and keys.names(kid) else KeyUnknown("key")


def _check_parties(claims: Mapping[str, Any], profile: Profile, expected: Expected) -> None:
    """Who issued it, about whom, for whom (OpenID Connect Core 1.0 §2, §3.1.3.7 steps 2 to 5)."""
    for name in profile.required:
        _check(name in claims, name)
    for name in profile.forbidden:
        _check(name not in claims, name)
    # Compared exactly: another case, slash or port is another issuer.
    _check(claims.get("iss") == expected.issuer, "iss")
    if "sub" in claims:
        _check(_is_subject(claims["sub"]), "sub")
    _check_audience(claims, profile, expected)


def _check_audience(claims: Mapping[str, Any], profile: Profile, expected: Expected) -> None:
    given = claims.get("aud")
    _check(isinstance(given, (str, list)), "aud")
    audiences: list[Any] = [given] if isinstance(given, str) else given
    _check(all(isinstance(entry, str) for entry in audiences), "aud")
    _check(not expected.audiences.isdisjoint(audiences), "aud")
    if not profile.sole_audience:
        return
    others = set(audiences) - expected.audiences
    _check(others <= expected.trusted_audiences, "aud")
    if "azp" in claims or others:
        _check(claims.get("azp") == expected.client_id, "azp")


def _is_subject(subject: object) -> bool:
    """Text of 1 to 255 characters without control characters. The case of letters counts."""
    if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT:
        return False
    return not any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in subject)


def _check_times(claims: Mapping[str, Any], profile: Profile, now: datetime) -> None:
    """``exp``, ``nbf`` and ``iat`` (RFC 7519 §4.1), with `SKEW` for clocks that differ."""
    seconds, skew = now.timestamp(), SKEW.total_seconds()
    for name in ("exp", "nbf", "iat"):
        _check(name not in claims or _is_date(claims[name]), name)
    _check("exp" not in claims or seconds < claims["exp"] + skew, "exp")
    _check("nbf" not in claims or claims["nbf"] <= seconds + skew, "nbf")
    _check("iat" not in claims or claims["iat"] <= seconds + skew, "iat")
    if profile.max_age is not None and "iat" in claims:
        _check(seconds - claims["iat"] <= profile.max_age.total_seconds() + skew, "iat")


def _is_date(value: object) -> bool:
    """A NumericDate; fractions of seconds are allowed (RFC 7519 §2)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _LATEST_DATE


def _same(given: object, wanted: str) -> bool:
    return isinstance(given, str) and hmac.compare_digest(given.encode(), wanted.encode())


def _check(holds: bool, check: str) -> None:
    if not holds:
        raise TokenRefused(check)
