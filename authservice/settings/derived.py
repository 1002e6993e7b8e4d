"""`Settings`: the declared values and everything that follows from them.

This is what the rest of the service is built from. Paths here are canonical and have no trailing
slash; addresses are complete, or relative where the prefix is.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from authservice.assertion.header import AssertionHeader
from authservice.identity import FurtherHeaders
from authservice.settings import compat
from authservice.settings.addresses import join_path, path_of
from authservice.settings.table import Declared
from authservice.upstream import TokenHeaders


@dataclass(frozen=True, kw_only=True)
class Settings(Declared):
    """All settings of one process. Made by `settings.load`; attributes as in `Declared`."""

    @property
    def prefix_path(self) -> str:
        """The path of our own pages, for example ``/authservice``."""
        return path_of(self.authservice_url_prefix)

    @property
    def callback_path(self) -> str:
        """Where the provider sends browsers back to."""
        return path_of(self.redirect_url)

    @property
    def verify_path(self) -> str:
        """Where gateways that want a verdict ask."""
        return path_of(self.verify_auth_url)

    @property
    def login_path(self) -> str:
        return join_path(self.prefix_path, "login")

    @property
    def logout_path(self) -> str:
        return join_path(self.prefix_path, "logout")

    @property
    def session_path(self) -> str:
        """The page about a person's own session."""
        return join_path(self.prefix_path, "site/session")

    @property
    def userinfo_path(self) -> str:
        """Who they are, for scripts of a page."""
        return join_path(self.prefix_path, "userinfo")

    @property
    def backchannel_logout_path(self) -> str:
        """Where the provider sends logout tokens."""
        return join_path(self.prefix_path, "backchannel-logout")

    @property
    def frontchannel_logout_path(self) -> str:
        """What the provider shows in a frame."""
        return join_path(self.prefix_path, "frontchannel-logout")

    @property
    def post_logout_address(self) -> str:
        """``POST_LOGOUT_REDIRECT_URL``, absolute where the settings tell our origin."""
        address, scheme, host = self.post_logout_redirect_url, self.outside_scheme, self.outside_host
        return f"{scheme}://{host}{address}" if address.startswith("/") and scheme and host else address

    @property
    def forward_auth_path(self) -> str:
        return join_path(self.prefix_path, "forward-auth")

    def compat_paths(self, endpoint: str) -> tuple[str, ...]:
        """Where an endpoint of oauth2-proxy is answered; nowhere without ``OAUTH2_PROXY_COMPAT``."""
        if not self.oauth2_proxy_compat:
            return ()
        return tuple(join_path(folder, endpoint) for folder in compat.folders(self.authservice_url_prefix))

    @property
    def skip_prefixes(self) -> tuple[str, ...]:
        """All path prefixes that need no authentication, our own first."""
        return tuple(dict.fromkeys((self.prefix_path, *self.skip_auth_urls)))

    @property
    def outside_scheme(self) -> str | None:
        """``"http"`` or ``"https"`` when an absolute callback or prefix tells; else ``None``."""
        return outside(self.redirect_url, self.authservice_url_prefix)[0]

    @property
    def outside_host(self) -> str | None:
        """The host, with its port if one is named, under which browsers find us; else ``None``."""
        return outside(self.redirect_url, self.authservice_url_prefix)[1]

    @property
    def told_headers(self) -> tuple[str, ...]:
        """The names of all headers that tell applications about an identity; empty ones are switched off."""
        further = (name for one in self.further_headers for name in one.names)
        return (self.userid_header, self.groups_header, self.auth_method_header, *further)

    @property
    def further_headers(self) -> tuple[FurtherHeaders, ...]:
        """What is told beyond who somebody is."""
        assertion = AssertionHeader(self.upstream_assertion_header)
        return tuple(one for one in (self.upstream_headers, self.upstream_tokens, assertion) if one.names)

    @property
    def upstream_tokens(self) -> TokenHeaders:
        return TokenHeaders(self.upstream_access_token_header, self.upstream_id_token_header)

    @property
    def jwks_path(self) -> str:
        """Where the keys of assertions are published."""
        return join_path(self.prefix_path, "jwks.json")

    @property
    def assertion_issuer(self) -> str:
        """Who assertions are of: our origin and prefix."""
        return own_issuer(self.redirect_url, self.authservice_url_prefix)

    def sealing_key_material(self) -> list[bytes]:
        """What the service's own keys are derived from, the one that seals first; the same on all
        replicas, never empty."""
        if self.secret_keys:
            return [secret.reveal().encode() for secret in self.secret_keys]
        given = (self.client_secret or self.client_private_key, self.client_secret_previous)
        return list(dict.fromkeys(secret.reveal().encode() for secret in given if secret))


def outside(redirect_url: str, prefix: str) -> tuple[str | None, str | None]:
    """Scheme and host under which browsers find us, from the first address that names them."""
    for address in (redirect_url, prefix):
        parts = urlsplit(address)
        if parts.scheme and parts.netloc:
            return parts.scheme, parts.netloc.lower()
    return None, None


def own_issuer(redirect_url: str, prefix: str) -> str:
    """Who assertions are of, where the settings tell our origin."""
    scheme, host = outside(redirect_url, prefix)
    return f"{scheme}://{host}{path_of(prefix).rstrip('/')}"
