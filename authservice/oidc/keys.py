"""A provider's key set: which of its keys may verify a signature of which algorithm.

Whatever is wrong with one key puts that key aside and no other; a key that could be misused
(symmetric, weak, for encryption) is never in the set. Made by `oidc.source` from what it
fetched, asked by `oidc.tokens`; fetching is not done here.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey

SIGNING_ALGORITHMS: Mapping[str, tuple[str, str]] = {
    "RS256": ("RSA", ""),
    "RS384": ("RSA", ""),
    "RS512": ("RSA", ""),
    "PS256": ("RSA", ""),
    "PS384": ("RSA", ""),
    "PS512": ("RSA", ""),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
"""The algorithms that can be allowed at all (RFC 7518 §3.1, RFC 8037 §3.1), each with the key
type and curve that it needs. Neither ``none`` nor a symmetric one will ever be here."""

RSA_BITS = range(2048, 8193)
MAX_KEYS = 2000
_KEY_CLASSES = {"RSA": RSAKey, "EC": ECKey, "OKP": OKPKey}
_PUBLIC_MEMBERS = {"RSA": ("kty", "n", "e"), "EC": ("kty", "crv", "x", "y"), "OKP": ("kty", "crv", "x")}

PublicKey = RSAKey | ECKey | OKPKey


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """One public key, its ``kid`` (``None`` when it has none) and the algorithms it is good for."""

    kid: str | None
    algorithms: frozenset[str]
    public: PublicKey


class KeySet:
    """The usable keys of one fetch, in the provider's order."""

    def __init__(self, keys: tuple[VerificationKey, ...]) -> None:
        self._keys = keys
        self._names = frozenset(key.kid for key in keys)
        # Asked for each token, so it is sorted out once: by algorithm, and by algorithm and name.
        self._fitting: dict[str, tuple[VerificationKey, ...]] = {}
        self._named: dict[tuple[str, str | None], tuple[VerificationKey, ...]] = {}
        for algorithm in SIGNING_ALGORITHMS:
            fitting = [key for key in keys if algorithm in key.algorithms]
            self._fitting[algorithm] = tuple(fitting)
            for key in fitting:
                self._named[algorithm, key.kid] = (*self._named.get((algorithm, key.kid), ()), key)

    def __len__(self) -> int:
        return len(self._keys)

    def candidates(self, algorithm: str, kid: str | None) -> tuple[VerificationKey, ...]:
        """The keys that may have signed: those of this ``kid``, else those without any; for a
        token without ``kid`` every key that is good for the algorithm."""
        if kid is None:
            return self._fitting.get(algorithm, ())
        return self._named.get((algorithm, kid)) or self._named.get((algorithm, None), ())

    def names(self, kid: str) -> bool:
        """Whether any key carries this ``kid``."""
        return kid in self._names

    def same_as(self, other: KeySet) -> bool:
        """Whether both hold the same keys under the same names."""
        return self._identities() == other._identities()

    def _identities(self) -> set[tuple[str | None, str]]:
        return {(key.kid, key.public.thumbprint()) for key in self._keys}


def read_key_set(document: Mapping[str, Any]) -> KeySet:
    """The usable keys of a JWK Set (RFC 7517 §5). ValueError when it is no JWK Set; a set with no
    usable key is an empty one."""
    keys = document.get("keys")
    if not isinstance(keys, list):
        raise ValueError("no list of keys")
    read = (_read_key(key) for key in keys[:MAX_KEYS])
    return KeySet(tuple(key for key in read if key is not None))


def _read_key(jwk: object) -> VerificationKey | None:
    """``None`` for a key of another kind or use, a broken or a weak one. Private members are not
    even looked at."""
    if not isinstance(jwk, dict) or not _may_verify(jwk):
        return None
    kid, alg, kind = jwk.get("kid"), jwk.get("alg"), jwk.get("kty")
    if not isinstance(kid, (str, type(None))) or not isinstance(kind, str) or kind not in _KEY_CLASSES:
        return None
    curve = "" if kind == "RSA" else jwk.get("crv")
    algorithms = {name for name, needs in SIGNING_ALGORITHMS.items() if needs == (kind, curve)}
    if alg is not None:
        algorithms &= {alg} if isinstance(alg, str) else set()
    if not algorithms:
        return None
    public = _import(kind, jwk)
    return VerificationKey(kid, frozenset(algorithms), public) if public is not None else None


def _may_verify(jwk: dict[str, Any]) -> bool:
    """RFC 7517 §4.2 and §4.3."""
    if jwk.get("use", "sig") != "sig":
        return False
    operations = jwk.get("key_ops", ["verify"])
    return isinstance(operations, list) and "verify" in operations


def _import(kind: str, jwk: dict[str, Any]) -> PublicKey | None:
    members: dict[str, Any] = {name: jwk.get(name) for name in _PUBLIC_MEMBERS[kind]}
    if not all(isinstance(value, str) for value in members.values()):
        return None
    try:
        if kind == "RSA" and not _is_strong(_number(members["n"]), _number(members["e"])):
            return None
        return _KEY_CLASSES[kind].import_key(members)
    except (JoseError, ValueError, TypeError, OverflowError):
        return None


def _is_strong(modulus: int, exponent: int) -> bool:
    """Not breakable, not so large that verifying takes long (RFC 7518 §3.3), a sound exponent."""
    return modulus.bit_length() in RSA_BITS and exponent % 2 == 1 and 3 <= exponent < 1 << 33


def _number(text: str) -> int:
    """Base64urlUInt (RFC 7518 §2)."""
    return int.from_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), "big")
