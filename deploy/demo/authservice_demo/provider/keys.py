"""The signing keys: the newest one signs, the one before it stays published."""

from __future__ import annotations

from joserfc.jwk import KeySet, RSAKey

ALGORITHM = "RS256"


class SigningKeys:
    """At most two RSA keys, the newest first."""

    def __init__(self) -> None:
        self._keys = [_new_key()]

    @property
    def current(self) -> RSAKey:
        return self._keys[0]

    def rotate(self) -> None:
        """Signs with a new key from now on; what the old one signed can still be verified."""
        self._keys = [_new_key(), self._keys[0]]

    def all(self) -> KeySet:
        return KeySet(list(self._keys))

    def public(self) -> dict[str, object]:
        """The document behind ``jwks_uri`` (RFC 7517 §5)."""
        return {"keys": [key.as_dict(private=False) for key in self._keys]}


def _new_key() -> RSAKey:
    return RSAKey.generate_key(2048, {"use": "sig", "alg": ALGORITHM}, private=True, auto_kid=True)
