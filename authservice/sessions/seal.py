"""Encryption at rest: the service's own keys, and the keys that only a session's cookie gives.

`Keyring` seals what the service itself must be able to open again (pending-login cookies, labels). The
functions below it work from the 32 random bytes in one browser's cookie: they give the key under
which a store keeps the record, and seal the record itself, so that a copy of the store shows
nothing and logs nobody in. Called by `sessions.live` and `oidc.login`; nothing here does I/O.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import re
import secrets as randomness
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

SECRET_LENGTH = 49
"""Characters of a session's secret: 43 of chance and 6 that follow from them."""

MAX_SEALED = 16384
"""Characters; anything longer is not opened, so nobody makes us decrypt megabytes."""

_KEYRING_VERSION = 1
_RECORD_VERSION = 1
_SECRET_BYTES = 32
_SECRET_CHARS = 43
_CHECK_CHARS = SECRET_LENGTH - _SECRET_CHARS
_SESSION = "session-"
_PUBLIC_ID = re.compile(r"[0-9a-f]{64}")
_KEY_ID = 4
_SALT = 12
_NONCE = 12
_TAG = 16
_HASH = 16
_HEADER = 1 + _KEY_ID


@functools.lru_cache(maxsize=8)
def _root_key(secret: bytes) -> bytes:
    """Slow on purpose (about 0.1 s and 32 MiB, RFC 7914), so once in a process for each secret.
    Everybody who begins a login gets a sealed value, with which guesses of the secret can be tried
    elsewhere, and the secret may be one that a person thought up."""
    return Scrypt(salt=b"authservice keyring", length=32, n=2**15, r=8, p=1).derive(secret)


class _ServiceKey:
    """One secret's root key and the short public name of it."""

    __slots__ = ("key_id", "_root")

    def __init__(self, secret: bytes) -> None:
        self._root = _root_key(secret)
        self.key_id = HKDFExpand(SHA256(), _KEY_ID, info=b"key id").derive(self._root)

    def cipher(self, purpose: bytes, salt: bytes) -> AESGCM:
        """A fresh key for one purpose and one value. The salt in the derivation makes 24 random
        bytes out of GCM's 12, so that a flood of sealed values never nears its nonce limit."""
        info = b"seal" + len(purpose).to_bytes(4, "big") + purpose + salt
        return AESGCM(HKDFExpand(SHA256(), 32, info=info).derive(self._root))

    def hash(self, purpose: bytes, text: bytes) -> str:
        """HMAC-SHA-256 (RFC 2104) cut to 16 bytes, as 22 characters of base64url; a key for each purpose."""
        info = b"hash" + len(purpose).to_bytes(4, "big") + purpose
        key = HKDFExpand(SHA256(), 32, info=info).derive(self._root)
        return _to_text(hmac.digest(key, text, "sha256")[:_HASH])

    def derive(self, purpose: bytes, length: int) -> bytes:
        """Secret bytes for one purpose (HKDF, RFC 5869)."""
        info = b"derive" + len(purpose).to_bytes(4, "big") + purpose
        return HKDFExpand(SHA256(), length, info=info).derive(self._root)


class Keyring:
    """Seals under the first secret, opens under each. A secret's strength is its caller's care.

    A sealed value is base64url (RFC 4648 §5, no padding) of: version (1 byte), key id (4), salt
    (12), nonce (12), AES-256-GCM ciphertext and tag (NIST SP 800-38D). Version, key id and
    purpose are authenticated with it, and the purpose is part of the key (HKDF, RFC 5869), whose
    root comes from the secret by scrypt.
    """

    def __init__(self, secrets: Sequence[bytes]) -> None:
        """ValueError when there is no secret, or an empty one."""
        if not secrets or not all(secrets):
            raise ValueError("a keyring needs at least one secret, and no empty one")
        self._keys = tuple(_ServiceKey(secret) for secret in secrets)

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The short public names of the keys, as hexadecimal text, in their order."""
        return tuple(key.key_id.hex() for key in self._keys)

    def hashes(self, purpose: str, text: str) -> tuple[str, ...]:
        """One name for this text under each key, in their order: the same each time, and without the
        key it leads neither to the text nor to the names of others."""
        name, told = purpose.encode(), text.encode(errors="surrogatepass")
        return tuple(key.hash(name, told) for key in self._keys)

    def derive(self, purpose: str, length: int) -> tuple[bytes, ...]:
        """So many secret bytes under each key, in their order: the same each time, and with them nobody finds
        those of another purpose."""
        return tuple(key.derive(purpose.encode(), length) for key in self._keys)

    def seal(self, purpose: str, plaintext: bytes) -> str:
        """The text form, at most `MAX_SEALED` characters; ValueError when it would be longer."""
        key = self._keys[0]
        header = bytes([_KEYRING_VERSION]) + key.key_id
        salt = randomness.token_bytes(_SALT)
        nonce = randomness.token_bytes(_NONCE)
        name = purpose.encode()
        sealed = key.cipher(name, salt).encrypt(nonce, plaintext, header + name)
        text = _to_text(header + salt + nonce + sealed)
        if len(text) > MAX_SEALED:
            raise ValueError("too long to be sealed")
        return text

    def open(self, purpose: str, sealed: str) -> bytes | None:
        """The plaintext, or ``None`` for everything that was not sealed for this purpose under
        one of the secrets, whatever it is."""
        raw = _from_text(sealed) if len(sealed) <= MAX_SEALED else None
        if raw is None or len(raw) < _HEADER + _SALT + _NONCE + _TAG or raw[0] != _KEYRING_VERSION:
            return None
        header, rest = raw[:_HEADER], raw[_HEADER:]
        salt, nonce, ciphertext = rest[:_SALT], rest[_SALT : _SALT + _NONCE], rest[_SALT + _NONCE :]
        name = purpose.encode()
        for key in self._keys:
            if key.key_id != header[1:]:
                continue
            try:
                return key.cipher(name, salt).decrypt(nonce, ciphertext, header + name)
            except InvalidTag:
                continue
        return None


def new_secret() -> str:
    """A new session's secret, the cookie's whole value: 32 random bytes as 43 characters, and 6
    that follow from them. By those a session's value is told from the tokens of others, of which
    some are 43 characters too: it must never be sent to a provider, and theirs must."""
    text = randomness.token_urlsafe(_SECRET_BYTES)
    return text + _check(text)


def is_secret(text: str) -> bool:
    """Whether this has the form of `new_secret`; says nothing about a session behind it."""
    return _secret_bytes(text) is not None


def store_key(secret: str) -> str:
    """The key under which a store keeps this session. It does not lead back to the secret, and
    does not have a secret's form."""
    return _SESSION + _derive(secret, b"authservice session: store key 1").hex()


def public_id(key: str) -> str:
    """How people name the session under this store key: 64 hexadecimal digits."""
    return key.removeprefix(_SESSION)


def session_key(public_id: str) -> str | None:
    """The store key of the session that people call so; ``None`` for what names none."""
    return _SESSION + public_id if _PUBLIC_ID.fullmatch(public_id) else None


def mark_key(name: str) -> str:
    """The key under which a store keeps the one-time mark of this name."""
    return "spent-" + hashlib.sha256(b"authservice spent mark 1\0" + name.encode()).hexdigest()


def seal_record(secret: str, plaintext: bytes) -> bytes:
    """Version (1 byte), nonce (12), AES-256-GCM ciphertext and tag; bound to the store key."""
    nonce = randomness.token_bytes(_NONCE)
    version = bytes([_RECORD_VERSION])
    return version + nonce + _record_cipher(secret).encrypt(nonce, plaintext, _bound_to(secret))


def open_record(secret: str, sealed: bytes) -> bytes | None:
    """What `seal_record` was given for the same secret, or ``None``."""
    if len(sealed) < 1 + _NONCE + _TAG or sealed[0] != _RECORD_VERSION:
        return None
    try:
        return _record_cipher(secret).decrypt(sealed[1 : 1 + _NONCE], sealed[1 + _NONCE :], _bound_to(secret))
    except InvalidTag:
        return None


def _record_cipher(secret: str) -> AESGCM:
    return AESGCM(_derive(secret, b"authservice session: record key 1"))


def _bound_to(secret: str) -> bytes:
    return bytes([_RECORD_VERSION]) + store_key(secret).encode()


def _derive(secret: str, label: bytes) -> bytes:
    """32 bytes that depend on secret and label (the secret is uniformly random, so one HMAC is
    a sound key derivation); ValueError for what is not a secret."""
    raw = _secret_bytes(secret)
    if raw is None:
        raise ValueError("not a session secret")
    return hmac.digest(raw, label, "sha256")


def _secret_bytes(text: str) -> bytes | None:
    if len(text) != SECRET_LENGTH or not text.isascii():
        return None
    secret, check = text[:_SECRET_CHARS], text[_SECRET_CHARS:]
    return _from_text(secret) if check == _check(secret) else None


def _check(secret: str) -> str:
    return _to_text(hashlib.sha256(b"authservice session: check 1\0" + secret.encode()).digest())[:_CHECK_CHARS]


def _to_text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _from_text(text: str) -> bytes | None:
    """Only the one canonical spelling of some bytes is accepted: encoding them again must give
    the same text, so stray characters and unused last bits never make a second valid value."""
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (ValueError, binascii.Error):
        return None
    return raw if _to_text(raw) == text else None
