"""A signed token's parts, as it carries them: nothing here is verified, nothing here is believed.

`take_apart` reads the compact form strictly and within limits. `glance` tells what a token says of
itself, for one purpose only: to decide whose it may be before its issuer's keys are used on it.
What a token is worth is `oidc.tokens`' to say. Called by `oidc.tokens` and by the authenticators.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from authservice.strictjson import BadJson, read_object

MAX_TOKEN = 256 * 1024
MAX_HEADER = 16 * 1024
LATEST_DATE = 253_402_300_799
"""9999-12-31T23:59:59Z; what is beyond counts milliseconds or is nonsense."""

_URL_SAFE = bytes.maketrans(b"-_+/=", b"+/!!!")
_HASHES_OF_OTHERS = frozenset({"at_hash", "c_hash", "s_hash"})
_SIGNS_OF_ACCESS = frozenset({"scope", "scp", "client_id", "cid"})
ACCESS, ID, LOGOUT, REFRESH = "access", "id", "logout", "refresh"
_TYPES = {"at+jwt": ACCESS, "logout+jwt": LOGOUT, "secevent+jwt": LOGOUT}
_WORDS = {
    # Keycloak
    "typ": {"bearer": ACCESS, "id": ID, "logout": LOGOUT, "refresh": REFRESH, "offline": REFRESH},
    # Cognito, Dex, Hydra
    "token_use": {
        "access": ACCESS, "access_token": ACCESS, "id": ID, "id_token": ID,
        "refresh": REFRESH, "refresh_token": REFRESH,
    },
}  # fmt: skip


class NotJws(Exception):
    """Not a token in this form. ``check`` is the word for what failed."""

    def __init__(self, check: str) -> None:
        super().__init__(check)
        self.check = check


class Jws:
    """A token in its parts. ``signed`` is what the signature is over. ``signature`` is still in
    base64url: nobody needs it who does not verify it."""

    __slots__ = ("_claims", "_payload", "header", "signature", "signed")

    def __init__(self, header: Mapping[str, Any], payload: bytes, signature: bytes, signed: bytes) -> None:
        self.header = header
        self.signature = signature
        self.signed = signed
        self._payload = payload
        self._claims: dict[str, Any] | None = None

    def claims(self) -> Mapping[str, Any]:
        """The claims, read at the first call. Raises `NotJws` when they are no JSON object."""
        if self._claims is None:
            self._claims = _json(self._payload, "claims")
        return self._claims

    @property
    def type(self) -> str:
        """``typ`` of the header in lower case and without ``application/`` (RFC 7515 §4.1.9);
        empty when there is none, or none that is text."""
        kind = self.header.get("typ", "")
        return kind.lower().removeprefix("application/") if isinstance(kind, str) else ""


def take_apart(token: object) -> Jws:
    """JWS Compact Serialization (RFC 7515 §7.1), the signature's spelling apart. Length and number
    of parts are looked at first. Raises `NotJws`."""
    if not isinstance(token, str) or not token.isascii() or len(token) > MAX_TOKEN:
        raise NotJws("size")
    parts = token.encode().split(b".", 3)
    if len(parts) != 3 or not parts[0] or not parts[1] or len(parts[0]) > MAX_HEADER:
        raise NotJws("parts")
    header, payload, signature = parts
    return Jws(
        header=_json(decode(header), "header"),
        payload=decode(payload),
        signature=signature,
        signed=b"%b.%b" % (header, payload),
    )


def decode(text: bytes) -> bytes:
    """base64url as RFC 7515 §2 has it: no padding, no other spelling of the same bytes. Raises
    `NotJws`."""
    standard = text.translate(_URL_SAFE) + b"=" * (-len(text) % 4)
    try:
        data = binascii.a2b_base64(standard)
    except binascii.Error:
        raise NotJws("encoding") from None
    # The decoder passes over what it does not know, so only the way back tells.
    if binascii.b2a_base64(data, newline=False) != standard:
        raise NotJws("encoding")
    return data


def _json(data: bytes, part: str) -> dict[str, Any]:
    try:
        return read_object(data)
    except BadJson:
        raise NotJws(part) from None


@dataclass(frozen=True, slots=True)
class Glance:
    """What a token says of itself, unverified. Never trust it; `oidc.tokens.verify` takes ``jws``, so
    that no token is taken apart twice.

    What is missing or of a wrong type is empty or ``None``; of ``aud`` the texts are kept.
    ``type`` is as `Jws.type`, ``kind`` as `kind_told`, ``expires`` in seconds since the epoch.
    """

    issuer: str
    subject: str
    audiences: tuple[str, ...]
    type: str
    kind: str
    expires: float | None
    jws: Jws = field(repr=False, compare=False)

    @property
    def is_logout(self) -> bool:
        """Whether it can be told to be a logout token, or another security event token."""
        return self.kind == LOGOUT

    @property
    def is_id_token(self) -> bool:
        """Whether it can be told to be an ID token. Not every ID token can."""
        return self.kind == ID


def glance(token: str) -> Glance | None:
    """What the token says of itself; ``None`` when it is no JWS in form: two parts in base64url that
    are JSON objects, and a third one, which may be anything (an unsigned token has it empty)."""
    try:
        jws = take_apart(token)
        claims = jws.claims()
    except NotJws:
        return None
    audiences = claims.get("aud")
    if isinstance(audiences, str):
        audiences = [audiences]
    expires = claims.get("exp")
    return Glance(
        issuer=_text(claims.get("iss")),
        subject=_text(claims.get("sub")),
        audiences=tuple(a for a in audiences if isinstance(a, str)) if isinstance(audiences, list) else (),
        type=jws.type,
        kind=kind_told(jws.type, claims),
        expires=float(expires) if is_date(expires) else None,
        jws=jws,
    )


def kind_told(type: str, claims: Mapping[str, Any]) -> str:
    """What kind of token this is, as far as it can be told: `ACCESS`, `ID`, `LOGOUT`, `REFRESH`, or
    empty. ``type`` is as `Jws.type`; empty for claims that come without a header.

    The explicit type counts first (RFC 9068 §2.1, OpenID Connect Back-Channel Logout 1.0 §2.4,
    RFC 8417 §2.3), then the event that only event tokens have, then the provider's own word among
    the claims. The hash of another token is in ID tokens alone (OpenID Connect Core 1.0 §3.1.3.6,
    §3.3.2.11). So is ``nonce`` by its specification (§2), but some providers repeat it in access
    tokens; these have a scope or a client.
    """
    if type in _TYPES:
        return _TYPES[type]
    if "events" in claims:
        return LOGOUT
    for name, words in _WORDS.items():
        word = claims.get(name)
        if isinstance(word, str) and word.lower() in words:
            return words[word.lower()]
    if not _HASHES_OF_OTHERS.isdisjoint(claims):
        return ID
    return ID if "nonce" in claims and _SIGNS_OF_ACCESS.isdisjoint(claims) else ""


def is_date(value: object) -> TypeGuard[float]:
    """A NumericDate; fractions of seconds are allowed (RFC 7519 §2)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= LATEST_DATE


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
