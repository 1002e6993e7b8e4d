"""Issuers whose tokens are accepted, as sources of keys.

The provider is one such source; `FurtherIssuer` is every other one (``BEARER_ISSUERS``, policies):
another provider, a CI system, a cluster's own issuer. Such an issuer only signs tokens, so it need not
be an OpenID provider: of its discovery document two members are read, and with the address of its key
set it needs none. `GivenKeys` are an issuer's keys that somebody wrote down. Made by
`authservice.authenticators` and `authn.request`, asked by `oidc.verifier`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Protocol

from authservice.check import Reach
from authservice.oidc.keys import KeySet
from authservice.oidc.metadata import KeyAddress, read_key_address
from authservice.oidc.source import IssuerSource
from authservice.outbound import Http, Zone


class KeySource(Protocol):
    """Where one issuer's keys come from. `oidc.source.IssuerSource` says what the methods promise."""

    issuer: str

    def keys(self, reach: Reach) -> KeySet: ...

    def newer_keys(self, than: KeySet, reach: Reach) -> KeySet | None: ...


class FurtherIssuer(IssuerSource[KeyAddress]):
    """An issuer besides the provider. Nothing is asked before a token needs it.

    ``jwks_url`` is the address of its key set; empty: the one in its discovery document. With the
    address, ``issuer`` may be empty: keys that are not one issuer's.
    """

    def __init__(self, issuer: str, http: Http, *, now: Callable[[], datetime], jwks_url: str = "") -> None:
        self._jwks_url = jwks_url
        super().__init__(issuer, http, now=now)

    def _describe(self, timeout: timedelta | None) -> KeyAddress:
        if self._jwks_url:
            # Where the operator sent us, we may go.
            return KeyAddress(self._jwks_url, Zone.LINK_LOCAL)
        document, zone = self._discover(timeout)
        return read_key_address(document, self.issuer, zone)


class GivenKeys:
    """Keys that are written down, as a policy's inline ``jwks``: nobody is asked, and there are no newer ones."""

    def __init__(self, issuer: str, keys: KeySet) -> None:
        self.issuer = issuer
        self._keys = keys

    def keys(self, reach: Reach) -> KeySet:
        return self._keys

    def newer_keys(self, than: KeySet, reach: Reach) -> KeySet | None:
        return None
