"""What a provider says about itself: reading its discovery document, and nothing else.

`read_metadata` turns the document into `Metadata` or refuses it with the member that is wrong.
Addresses in it are judged here: a document must not lead the service to where its issuer could
not. Addresses that the operator sets (`Overrides`) are taken as they are. Called by
`oidc.provider` and `oidc.issuers`; `oidc.source` does the fetching.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import urlsplit

from authservice.outbound import Zone

WELL_KNOWN = "/.well-known/openid-configuration"
MAX_ADDRESS = 2048
BASIC, POST, PRIVATE_KEY = "client_secret_basic", "client_secret_post", "private_key_jwt"
AUTH_METHODS = (BASIC, POST, PRIVATE_KEY)
"""The ways to authenticate at the token endpoint (OpenID Connect Core 1.0 §9) that we speak."""

_NEEDED = ("authorization_endpoint", "token_endpoint", "jwks_uri")
_OPTIONAL = ("userinfo_endpoint", "revocation_endpoint", "introspection_endpoint", "end_session_endpoint")


class MetadataWrong(Exception):
    """The document cannot be used; ``str()`` names the member and what is wrong with it, in our
    own words."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """Endpoint addresses from the settings; an empty one leaves the discovered one in place.
    ``authorization_endpoint`` may be relative: it is for browsers only."""

    authorization_endpoint: str = ""
    token_endpoint: str = ""
    jwks_uri: str = ""
    userinfo_endpoint: str = ""
    revocation_endpoint: str = ""
    introspection_endpoint: str = ""
    end_session_endpoint: str = ""

    def get(self, name: str) -> str:
        return str(getattr(self, name))

    def addresses(self) -> frozenset[str]:
        return frozenset(self.get(member.name) for member in fields(self)) - {""}


@dataclass(frozen=True, slots=True)
class Metadata:
    """A provider as we need it (OpenID Connect Discovery 1.0 §3). An endpoint that the provider
    does not have is ``None``. ``announces_iss``: its answers carry ``iss`` (RFC 9207 §3)."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None
    revocation_endpoint: str | None
    introspection_endpoint: str | None
    end_session_endpoint: str | None
    announces_iss: bool
    zone: Zone
    set_by_operator: frozenset[str]

    def farthest(self, address: str) -> Zone:
        """How far inside the network a call to this address may go: as far as the issuer itself
        lies, and anywhere where the operator sent it."""
        return Zone.LINK_LOCAL if address in self.set_by_operator else self.zone


def discovery_address(issuer: str) -> str:
    """Where the document is (OpenID Connect Discovery 1.0 §4): never with a doubled slash."""
    return issuer.removesuffix("/") + WELL_KNOWN


def read_metadata(
    document: Mapping[str, Any], issuer: str, overrides: Overrides, auth_method: str, zone: Zone
) -> Metadata:
    """Reads a discovery document. ``zone`` is where the issuer's own host lies.

    Raises `MetadataWrong` when the issuer is not exactly ours (Discovery 1.0 §4.3), a needed
    member is missing, one has a wrong type, an address breaks the rules, or the token endpoint
    does not take our way to authenticate.
    """
    if document.get("issuer") != issuer:
        raise MetadataWrong("issuer is not the configured one")
    methods = document.get("token_endpoint_auth_methods_supported")
    if methods is not None and not (isinstance(methods, list) and auth_method in methods):
        raise MetadataWrong(f"token_endpoint_auth_methods_supported lacks {auth_method}")
    announces_iss = document.get("authorization_response_iss_parameter_supported", False)
    if not isinstance(announces_iss, bool):
        raise MetadataWrong("authorization_response_iss_parameter_supported is not true or false")
    addresses: dict[str, Any] = {}
    for name in (*_NEEDED, *_OPTIONAL):
        addresses[name] = overrides.get(name) or _address(document, name, issuer, zone)
    return Metadata(
        issuer=issuer,
        announces_iss=announces_iss,
        zone=zone,
        set_by_operator=overrides.addresses(),
        **addresses,
    )


@dataclass(frozen=True, slots=True)
class KeyAddress:
    """All that is needed of an issuer whose tokens are only verified. ``zone`` is how far inside the
    network its key set may lie."""

    jwks_uri: str
    zone: Zone

    def farthest(self, address: str) -> Zone:
        return self.zone


def read_key_address(document: Mapping[str, Any], issuer: str, zone: Zone) -> KeyAddress:
    """Reads ``issuer`` and ``jwks_uri`` of a discovery document, and nothing else. ``zone`` is where
    the issuer's own host lies. Raises `MetadataWrong` as `read_metadata`."""
    if document.get("issuer") != issuer:
        raise MetadataWrong("issuer is not the configured one")
    address = _address(document, "jwks_uri", issuer, zone)
    if address is None:
        raise MetadataWrong("jwks_uri is missing")
    return KeyAddress(address, zone)


def _address(document: Mapping[str, Any], name: str, issuer: str, zone: Zone) -> str | None:
    """One discovered address: https (or http where the issuer itself is http), no credentials, no
    fragment, and not literally inside the network deeper than the issuer. What a host *name*
    leads to is checked where the connection is made."""
    value = document.get(name)
    if value is None:
        if name in _NEEDED:
            raise MetadataWrong(f"{name} is missing")
        return None
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ADDRESS or not value.isascii():
        raise MetadataWrong(f"{name} is not an address")
    if any(character <= " " or character in "\\\x7f" for character in value):
        raise MetadataWrong(f"{name} is not an address")
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise MetadataWrong(f"{name} is not an address") from None
    schemes = ("https", "http") if urlsplit(issuer).scheme == "http" else ("https",)
    if parts.scheme not in schemes:
        raise MetadataWrong(f"{name} is not {' or '.join(schemes)}")
    if not host or "@" in parts.netloc or "#" in value:
        raise MetadataWrong(f"{name} has no host, or a user or a fragment")
    if _literal_zone(host) > zone:
        raise MetadataWrong(f"{name} leads inside the network")
    return value


def _literal_zone(host: str) -> Zone:
    """The zone of a host that is an address, or plainly names this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return Zone.LOOPBACK
    try:
        return Zone.of(str(ipaddress.ip_address(host)))
    except ValueError:
        return Zone.PUBLIC
