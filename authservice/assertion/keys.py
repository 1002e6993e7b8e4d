"""The keys that assertions are signed with, and the key set that is published.

No key is kept anywhere: each follows from the service's own keys and its period of time (HKDF, then FIPS 186-5
§A.2.1), so all workers and replicas sign with the same one, and publish the same set, without asking anybody.
A period's key leads neither to another period's nor to what it is derived from.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePrivateKey, derive_private_key
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

PERIOD = int(timedelta(days=1).total_seconds())
"""How long a key signs. The next one is published that long before it does, and the former one that long after."""

_PURPOSE = "assertion key "
_MATERIAL = 48  # bytes: 128 bits more than the order has, so that every key is as likely as any other
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256 (SP 800-186 §3.2.1.3)
_COORDINATE = 32  # bytes

Derive = Callable[[str, int], tuple[bytes, ...]]
"""So many secret bytes for a purpose from each of the service's own keys, in their order."""


def _ecdsa() -> ECDSA:
    """One signature for one text (RFC 6979) where the library can: replicas then say the same, byte for byte."""
    try:
        return ECDSA(SHA256(), deterministic_signing=True)
    except UnsupportedAlgorithm:
        return ECDSA(SHA256())


_ECDSA = _ecdsa()


@dataclass(frozen=True, slots=True)
class Key:
    """A private key of P-256. ``public`` is its JWK (RFC 7517) and ``head`` the JOSE header of what it signs,
    in base64url."""

    _private: EllipticCurvePrivateKey = field(repr=False)
    public: dict[str, str]
    head: bytes

    @classmethod
    def of(cls, material: bytes) -> Key:
        """The key that these bytes determine."""
        private = derive_private_key(int.from_bytes(material, "big") % (_ORDER - 1) + 1, SECP256R1())
        point = private.public_key().public_numbers()
        x, y = (_text(number.to_bytes(_COORDINATE, "big")).decode() for number in (point.x, point.y))
        # Its thumbprint (RFC 7638) is its name.
        thumbprint = {"crv": "P-256", "kty": "EC", "x": x, "y": y}
        name = _text(hashlib.sha256(json.dumps(thumbprint, separators=(",", ":")).encode()).digest()).decode()
        public = {**thumbprint, "alg": "ES256", "use": "sig", "kid": name}
        return cls(private, public, _text(msgspec.json.encode({"alg": "ES256", "kid": name, "typ": "JWT"})))

    def signed(self, claims: dict[str, Any]) -> str:
        """The claims as a JWT (RFC 7515 §7.1, RFC 7518 §3.4)."""
        text = b"%b.%b" % (self.head, _text(msgspec.json.encode(claims)))
        r, s = decode_dss_signature(self._private.sign(text, _ECDSA))
        signature = r.to_bytes(_COORDINATE, "big") + s.to_bytes(_COORDINATE, "big")
        return (b"%b.%b" % (text, _text(signature))).decode()


class Keys:
    """The keys of each period. Safe for threads."""

    def __init__(self, derive: Derive) -> None:
        self._derive = derive
        self._known: dict[int, tuple[Key, ...]] = {}

    def signing(self, moment: int) -> Key:
        """What signs at a moment, in seconds since the epoch."""
        return self._of(moment // PERIOD)[0]

    def published(self, moment: int) -> bytes:
        """The JWK set (RFC 7517 §5): the present keys, those before and those after them."""
        period = moment // PERIOD
        keys = [key.public for one in (period, period - 1, period + 1) for key in self._of(one)]
        return msgspec.json.encode({"keys": keys})

    def _of(self, period: int) -> tuple[Key, ...]:
        keys = self._known.get(period)
        if keys is None:
            keys = tuple(map(Key.of, self._derive(_PURPOSE + str(period), _MATERIAL)))
            near = {one: known for one, known in self._known.items() if abs(one - period) <= 2}
            self._known = {**near, period: keys}  # never changed: another thread may be going through it
        return keys


def _text(data: bytes) -> bytes:
    """base64url without padding (RFC 7515 §2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=")
