"""Whether a signed token is what it should be. One verification for every kind of JWT.

What differs between kinds is data (`Profile`), what differs between deployments is data
(`Expected`), and the keys are given; so nothing here fetches, waits or remembers. The order is
such that nothing of a token is believed, and little work is done for it, before its signature
holds. Called by `oidc.verifier`; a refusal names the failed check and quotes nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from joserfc.errors import JoseError
from joserfc.jws import JWSRegistry

from authservice.identity import VerifiedClaims
from authservice.oidc.jws import ACCESS, ID, Jws, NotJws, decode, is_date, kind_told, take_apart
from authservice.oidc.keys import SIGNING_ALGORITHMS, KeySet

SKEW = timedelta(seconds=60)
MAX_KID = 1024
MAX_SUBJECT = 255
MAX_KEYS_TRIED = 16
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
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
    stands for none (RFC 8725 §3.11), ``None`` for any. ``forbidden`` claims are signs of another kind of token.
    ``texts`` must be text when they are there. ``kinds``: what `oidc.jws.kind_told` may tell of it;
    ``None`` for whatever it tells. ``sole_audience``: audiences besides ours need to be trusted,
    and ``azp`` must be us. ``times`` are looked at when they are there, and ``max_age`` limits how old ``iat``
    may be. ``where_expected``: issuer and audience count only where one is expected. Audiences are compared
    in the form that ``audience_form`` gives them, those that are expected being in it already.
    """

    name: str
    types: frozenset[str] | None
    required: tuple[str, ...]
    forbidden: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    kinds: frozenset[str] | None = None
    sole_audience: bool = True
    times: tuple[str, ...] = ("exp", "nbf", "iat")
    max_age: timedelta | None = None
    where_expected: bool = False
    audience_form: Callable[[str], str] = str


ID_TOKEN = Profile(
    name="id_token",
    types=frozenset({"", "jwt"}),
    required=("iss", "sub", "aud", "exp", "iat"),
    forbidden=("events",),
    max_age=timedelta(hours=1),
)
"""The ID token of a login (OpenID Connect Core 1.0 §2, §3.1.3.7). An hour is far more than a
login lasts and hides the clocks of providers that put the time of authentication in ``iat``."""

BEARER_ID_TOKEN = replace(ID_TOKEN, name="bearer_id_token", kinds=frozenset({"", ID}), max_age=None)
"""An ID token that a program sends to prove who it is: as old as its ``exp`` allows, and nothing else
in disguise."""

LOGOUT_TOKEN_AGE = timedelta(minutes=5)
REFRESHED_ID_TOKEN = replace(ID_TOKEN, name="refreshed_id_token", max_age=None)
"""The ID token of a refresh answer (OpenID Connect Core 1.0 §12.2). That it is about the same login, and
no older than the one that it replaces, is `oidc.renewal`'s to compare."""

LOGOUT_TOKEN = Profile(
    name="logout_token",
    types=frozenset({"", "jwt", "logout+jwt"}),
    required=("iss", "aud", "iat", "jti", "events"),
    forbidden=("nonce",),
    texts=("jti", "sid"),
    max_age=LOGOUT_TOKEN_AGE,
)
"""A logout token (OpenID Connect Back-Channel Logout 1.0 §2.4). Some providers leave ``exp`` out, so its
age is limited by ``iat``. What it says is `oidc.logout`'s to read."""

ACCESS_TOKEN = Profile(
    name="access_token",
    types=frozenset({"", "jwt", "at+jwt"}),
    required=("iss", "aud", "exp"),
    forbidden=("events", "cnf"),
    texts=("client_id", "jti"),
    kinds=frozenset({"", ACCESS}),
    sole_audience=False,
)
"""A JWT access token (RFC 9068 §2.2, §4). Of the claims required there, those that providers leave
out are checked only when they are present. A token that is bound to a key (``cnf``, RFC 7800) is no
bearer token: whether its sender has that key cannot be seen from here (RFC 9449 §7.2, RFC 8705 §3)."""


def plain_audience(audience: str) -> str:
    """An audience as Envoy compares it: without ``http://`` or ``https://``, and without one slash at its end."""
    for scheme in ("http://", "https://"):
        if audience.startswith(scheme):
            audience = audience[len(scheme):]
            break
    return audience.removesuffix("/")


POLICY_TOKEN = Profile(
    name="policy_token",
    types=None,
    required=(),
    forbidden=("events", "cnf"),
    sole_audience=False,
    times=("exp", "nbf"),
    where_expected=True,
    audience_form=plain_audience,
)
"""A token that a rule of a RequestAuthentication verifies: of any kind that proves who sends it, which leaves out
logout tokens and those that are bound to a key. A mesh looks at issuer, audience, ``exp`` and ``nbf``, and so does
this; what the rule does not name may be anything."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Who must have issued a token, for whom, signed how.

    ``audiences``: one of them must be in ``aud``. ``client_id`` is what ``azp`` must be. Only for a profile
    with ``where_expected`` issuer or audiences may be empty: then any will do.
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

    ``token`` is its text, or a `Jws` for one that was taken apart already. ``nonce`` is what the
    claim of this name must be. ``hashed`` maps ``at_hash`` and ``c_hash`` to the values that they
    must belong to when they are present (§3.1.3.6, §3.3.2.11). Raises `KeyUnknown` when newer keys
    may help and `TokenRefused` otherwise. That ``sub`` is the one of an earlier answer is left to
    the caller.
    """
    try:
        jws = token if isinstance(token, Jws) else take_apart(token)
        algorithm = _read_header(jws, profile, expected)
        _check_signature(jws, algorithm, keys)
        claims = jws.claims()
    except NotJws as error:
        raise TokenRefused(error.check) from None
    _check_parties(claims, profile, expected)
    _check(profile.kinds is None or kind_told(jws.type, claims) in profile.kinds, "kind")
    check_times(claims, now, profile.max_age, profile.times)
    _check_audience(claims, profile, expected)
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


def _read_header(jws: Jws, profile: Profile, expected: Expected) -> str:
    """The algorithm. Keys in the header and addresses of keys (``jwk``, ``jku``, ``x5u``, ``x5c``)
    are not read; what must be understood (``crit``, ``b64``, ``zip``, ``enc``) is refused."""
    header = jws.header
    algorithm = header.get("alg")
    _check(isinstance(algorithm, str) and algorithm in expected.algorithms, "alg")
    _check(not header.keys() & {"crit", "b64", "zip", "enc"}, "crit")
    if profile.types is not None:
        _check(isinstance(header.get("typ", ""), str) and jws.type in profile.types, "typ")
    if "kid" in header:
        kid = header["kid"]
        _check(isinstance(kid, str) and 0 < len(kid) <= MAX_KID, "kid")
    return str(algorithm)


def _check_signature(jws: Jws, algorithm: str, keys: KeySet) -> None:
    kid = jws.header.get("kid")
    _check(jws.signature != b"", "parts")
    signature = decode(jws.signature)
    verifier = JWSRegistry.algorithms[algorithm]
    for tried, key in enumerate(keys.candidates(algorithm, kid)):
        _check(tried < MAX_KEYS_TRIED, "signature")
        try:
            if verifier.verify(jws.signed, signature, key.public):
                return
        except (JoseError, ValueError):
            continue
    raise TokenRefused("signature") if kid is not None and keys.names(kid) else KeyUnknown("key")


def _check_parties(claims: Mapping[str, Any], profile: Profile, expected: Expected) -> None:
    """Who issued it, and about whom (OpenID Connect Core 1.0 §2, §3.1.3.7 step 2)."""
    for name in profile.required:
        _check(name in claims, name)
    for name in profile.forbidden:
        _check(name not in claims, name)
    # Compared exactly: another case, slash or port is another issuer.
    if expected.issuer or not profile.where_expected:
        _check(claims.get("iss") == expected.issuer, "iss")
    for name in profile.texts:
        _check(isinstance(claims.get(name, ""), str), name)
    check_subject(claims)


def _check_audience(claims: Mapping[str, Any], profile: Profile, expected: Expected) -> None:
    """For whom it is (OpenID Connect Core 1.0 §3.1.3.7 steps 3 to 5)."""
    if profile.where_expected and not expected.audiences:
        return
    given = claims.get("aud")
    audiences = [given] if isinstance(given, str) else given
    if not isinstance(audiences, list):
        raise TokenRefused("aud")
    _check(all(isinstance(entry, str) for entry in audiences), "aud")
    _check(not expected.audiences.isdisjoint(map(profile.audience_form, audiences)), "aud")
    if not profile.sole_audience:
        return
    others = set(audiences) - expected.audiences
    _check(others <= expected.trusted_audiences, "aud")
    if "azp" in claims or others:
        _check(claims.get("azp") == expected.client_id, "azp")
    # Not in an ID token's own vocabulary, but it says for whom a token was issued all the same.
    for name in ("client_id", "cid"):
        _check(claims.get(name, expected.client_id) == expected.client_id, name)


def check_subject(claims: Mapping[str, Any]) -> None:
    """``sub``, when it is there, is text of 1 to 255 characters without control characters. The case
    of letters counts. Raises `TokenRefused`."""
    if "sub" not in claims:
        return
    subject = claims["sub"]
    _check(isinstance(subject, str) and 0 < len(subject) <= MAX_SUBJECT, "sub")
    if not subject.isprintable():
        _check(not any(unicodedata.category(letter) in _UNPRINTABLE for letter in subject), "sub")


def check_times(
    claims: Mapping[str, Any],
    now: datetime,
    max_age: timedelta | None = None,
    names: tuple[str, ...] = ("exp", "nbf", "iat"),
) -> None:
    """``exp``, ``nbf`` and ``iat``, those of them that are named, each when it is there (RFC 7519 §4.1),
    with `SKEW` for clocks that differ. Raises `TokenRefused`."""
    seconds, skew = now.timestamp(), SKEW.total_seconds()
    given = [name for name in names if name in claims]
    for name in given:
        _check(is_date(claims[name]), name)
    _check("exp" not in given or seconds < claims["exp"] + skew, "exp")
    _check("nbf" not in given or claims["nbf"] <= seconds + skew, "nbf")
    _check("iat" not in given or claims["iat"] <= seconds + skew, "iat")
    if max_age is not None and "iat" in claims:
        _check(seconds - claims["iat"] <= max_age.total_seconds() + skew, "iat")


def _same(given: object, wanted: str) -> bool:
    return isinstance(given, str) and hmac.compare_digest(given.encode(), wanted.encode())


def _check(holds: bool, check: str) -> None:
    if not holds:
        raise TokenRefused(check)
