"""The calls to the provider: redeeming a code, asking about tokens and people, revoking tokens.

Authlib makes the requests and authenticates the client; `oidc.answers` and `oidc.introspection` read
what comes back and trust nothing in it. All of it travels through `authservice.outbound`. Whether
an ID token is good is `oidc.tokens`' to say; who calls what in which order is `oidc.login`'s for
people, and `oidc.opaque`'s for programs.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote_plus

from authlib.common.urls import url_encode
from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.client import OAuth2Client
from authlib.oauth2.rfc7523 import PrivateKeyJWT
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from joserfc.jwk import ECKey, OKPKey, RSAKey

from authservice.check import NeedsIO, Reach
from authservice.errors import NotReady, ProviderBusy, ProviderSilent, ProviderWrong, SessionOver, Unavailable
from authservice.oidc.answers import (
    EndpointRefused,
    Tokens,
    error_code,
    is_sendable,
    read_refresh_response,
    read_token_response,
    read_userinfo,
)
from authservice.oidc.introspection import INACTIVE, Introspection, read_introspection
from authservice.oidc.keys import RSA_BITS
from authservice.oidc.metadata import AUTH_METHODS, BASIC, POST, PRIVATE_KEY, Metadata
from authservice.oidc.provider import Provider
from authservice.outbound import Http, NoAnswer, OutboundFault, Response

log = logging.getLogger(__name__)

REVOCATION_TIMEOUT = timedelta(seconds=3)
_EC_ALGORITHMS = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


@dataclass(frozen=True, slots=True)
class Credentials:
    """How the client proves who it is (OpenID Connect Core 1.0 §9). ``private_key`` is PEM, for
    ``private_key_jwt``. Without a secret the other two methods only name a public client."""

    client_id: str
    client_secret: str = field(default="", repr=False)
    auth_method: str = BASIC
    private_key: str = field(default="", repr=False)


class Client:
    """The service as a client of its provider. Safe for threads: nothing is kept between calls."""

    def __init__(
        self,
        provider: Provider,
        http: Http,
        credentials: Credentials,
        *,
        redirect_uri: str,
        scopes: tuple[str, ...],
        now: Callable[[], datetime],
    ) -> None:
        """ValueError when the private key of ``private_key_jwt`` cannot be read."""
        self._provider = provider
        self._http = http
        self._credentials = credentials
        self._authentication = _authentication(credentials)
        self._redirect_uri = redirect_uri
        self._scope = " ".join(scopes)
        self._now = now

    @property
    def client_id(self) -> str:
        return self._credentials.client_id

    def authorization_url(self, metadata: Metadata, *, state: str, nonce: str, verifier: str) -> str:
        """Where to send the browser (OpenID Connect Core 1.0 §3.1.2.1, RFC 7636 §4.3). A relative
        authorization endpoint stays relative; a query that it has is kept."""
        url, _ = self._oauth(metadata).create_authorization_url(
            metadata.authorization_endpoint,
            state=state,
            nonce=nonce,
            code_verifier=verifier,
            redirect_uri=self._redirect_uri,
            scope=self._scope,
        )
        return str(url)

    def redeem(self, metadata: Metadata, code: str, verifier: str) -> Tokens:
        """Exchanges the code (RFC 6749 §4.1.3, RFC 7636 §4.5). The ID token is not checked here.

        Raises `errors.ProviderSilent`, `errors.ProviderWrong`, `EndpointRefused`.
        """
        answer = self._authenticated_call(
            "token endpoint",
            metadata,
            lambda oauth: oauth.fetch_token(
                metadata.token_endpoint,
                grant_type="authorization_code",
                code=code,
                redirect_uri=self._redirect_uri,
                code_verifier=verifier,
            ),
        )
        return read_token_response(answer, self._now())

    def refresh(self, metadata: Metadata, refresh_token: str) -> Tokens:
        """Exchanges a refresh token for new tokens (RFC 6749 §6), for the scope that it has. Where
        the provider gives no new refresh token, the answer holds the one that was sent. The ID token
        is not checked here. Raises `errors.SessionOver` when the provider refuses this very token
        (``invalid_grant``), and otherwise as `redeem`."""
        answer = self._authenticated_call(
            "token endpoint",
            metadata,
            lambda oauth: oauth.fetch_token(
                metadata.token_endpoint, grant_type="refresh_token", refresh_token=refresh_token
            ),
        )
        try:
            return read_refresh_response(answer, self._now(), refresh_token)
        except EndpointRefused as error:
            # A server error is about the server, whatever its body says.
            if error.code == "invalid_grant" and error.answered < 500:
                raise SessionOver(str(error)) from None
            raise

    def userinfo(
        self, metadata: Metadata, access_token: str, timeout: timedelta | None = None
    ) -> dict[str, Any]:
        """The claims of the userinfo endpoint, which must exist (OpenID Connect Core 1.0 §5.3).
        That ``sub`` is the ID token's is left to the caller. Raises as `redeem`."""
        address = metadata.userinfo_endpoint or ""
        headers = {"Authorization": f"Bearer {access_token}"}
        try:
            answer = self._http.get(
                address, headers, farthest=metadata.farthest(address), timeout=timeout
            )
        except OutboundFault as fault:
            raise _refusal("userinfo", fault) from None
        return read_userinfo(answer)

    @property
    def can_introspect(self) -> bool:
        """Whether there is an introspection endpoint. Raises `errors.NotReady`."""
        return self._provider.metadata().introspection_endpoint is not None

    @property
    def has_userinfo(self) -> bool:
        """Whether there is a userinfo endpoint. Raises `errors.NotReady`."""
        return self._provider.metadata().userinfo_endpoint is not None

    def introspect(self, token: str, audiences: frozenset[str] = frozenset()) -> Introspection:
        """What the provider says of an access token that somebody sent (RFC 7662), at the
        introspection endpoint, which must exist.

        ``audiences`` are accepted besides the client itself. What can be no access token is sent
        nowhere and is not active. Raises `errors.Unavailable` when the provider does not tell, and
        `oidc.tokens.TokenRefused` as `oidc.introspection.read_introspection`.
        """
        if not is_sendable(token):
            return INACTIVE
        metadata = self._provider.metadata()
        what, address = "introspection", metadata.introspection_endpoint
        if address is None:
            raise Unavailable("the provider has no introspection endpoint any more")
        try:
            answer = self._authenticated_call(
                what, metadata, lambda oauth: oauth.introspect_token(address, token, "access_token")
            )
            if answer.status != 200:
                raise EndpointRefused(what, answer.status, error_code(answer))
            return read_introspection(
                answer, issuer=metadata.issuer, audiences=audiences | {self.client_id}, now=self._now()
            )
        except (ProviderWrong, ProviderSilent) as error:
            raise _unavailable(error) from None

    def bearer_userinfo(self, token: str) -> dict[str, Any] | None:
        """The claims that an access token opens which somebody sent, at the userinfo endpoint;
        ``None`` when the provider refuses the token (RFC 6750 §3.1). What can be no access token
        is sent nowhere. Raises `errors.Unavailable` when the provider does not tell."""
        if not is_sendable(token):
            return None
        metadata = self._provider.metadata()
        if metadata.userinfo_endpoint is None:
            raise Unavailable("the provider has neither introspection nor userinfo")
        try:
            return self.userinfo(metadata, token)
        except EndpointRefused as error:
            if error.answered in (401, 403) or error.code == "invalid_token":
                return None
            raise _unavailable(error) from None
        except (ProviderWrong, ProviderSilent) as error:
            raise _unavailable(error) from None

    def revoke(self, refresh_token: str, access_token: str) -> list[str]:
        """Asks the provider to end the tokens (RFC 7009), the refresh token first; empty ones are
        passed over. The kinds that may still be valid afterwards; never raises. A provider without
        a revocation endpoint is not asked, and nothing is said to be left."""
        try:
            metadata = self._provider.metadata(Reach.MEMORY)
        except (NotReady, NeedsIO):
            return [kind for kind, token in _kinds(refresh_token, access_token) if token]
        if metadata.revocation_endpoint is None:
            return []
        kinds = _kinds(refresh_token, access_token)
        return [kind for kind, token in kinds if token and not self._revoke(metadata, kind, token)]

    def _revoke(self, metadata: Metadata, kind: str, token: str) -> bool:
        try:
            answer = self._authenticated_call(
                "revocation",
                metadata,
                lambda oauth: oauth.revoke_token(metadata.revocation_endpoint, token, kind),
                timeout=REVOCATION_TIMEOUT,
            )
        except (ProviderWrong, ProviderSilent) as error:
            log.warning("revocation_failed", extra={"token": kind, "cause": str(error)})
            return False
        return _is_revoked(answer, kind)

    def _authenticated_call(
        self,
        what: str,
        metadata: Metadata,
        call: Callable[[OAuth2Client], object],
        timeout: timedelta | None = None,
    ) -> Response:
        transport = _Transport(self._http, metadata, timeout)
        try:
            call(self._oauth(metadata, transport))
        except OutboundFault as fault:
            raise _refusal(what, fault) from None
        return transport.answered()

    def _oauth(self, metadata: Metadata, transport: _Transport | None = None) -> OAuth2Client:
        """Authlib's client for one call: it remembers the tokens it saw, so it is never shared."""
        method = self._credentials.auth_method
        oauth = _OAuth2(
            transport,
            client_id=self._credentials.client_id,
            client_secret=self._credentials.client_secret,
            token_endpoint_auth_method=method,
            revocation_endpoint_auth_method=method,
            code_challenge_method="S256",
        )
        authentication = self._authentication(metadata.token_endpoint)
        oauth.register_client_auth_method((method, authentication))
        return oauth


class _OAuth2(OAuth2Client):
    """Authlib's client, reading no answers: that is done here, strictly."""

    def parse_response_token(self, resp: Response) -> Response:
        return resp


class _Transport:
    """What Authlib takes for its HTTP session: posts through `Http` and keeps the answer."""

    def __init__(self, http: Http, metadata: Metadata, timeout: timedelta | None) -> None:
        self._http = http
        self._metadata = metadata
        self._timeout = timeout
        self._answer: Response | None = None

    def post(
        self, url: str, data: Mapping[str, str], headers: Mapping[str, str], auth: ClientAuth
    ) -> Response:
        form = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        address, sent, body = auth.prepare("POST", url, form, url_encode(list(data.items())))
        self._answer = self._http.post(
            address, body.encode(), sent, farthest=self._metadata.farthest(url), timeout=self._timeout
        )
        return self._answer

    def answered(self) -> Response:
        if self._answer is None:
            raise ProviderWrong("nothing was asked")
        return self._answer


Authentication = Callable[[ClientAuth, str, str, dict[str, str], str], tuple[str, dict[str, str], str]]


def _authentication(credentials: Credentials) -> Callable[[str], Authentication]:
    """How a request to a token endpoint at an address is authenticated, in Authlib's form."""
    if credentials.auth_method == PRIVATE_KEY:
        return _assertion(credentials.private_key)
    methods = {BASIC: _basic, POST: ClientAuth.DEFAULT_AUTH_METHODS[POST]}
    if credentials.auth_method not in methods:
        raise ValueError(f"client authentication is one of {', '.join(AUTH_METHODS)}")
    method = methods[credentials.auth_method] if credentials.client_secret else _public
    return lambda token_endpoint: method


def _assertion(private_key: str) -> Callable[[str], Authentication]:
    """``private_key_jwt`` (RFC 7523 §2.2), signed with the algorithm that the key is made for."""
    key, algorithm = read_private_key(private_key)

    def for_endpoint(token_endpoint: str) -> Authentication:
        method = PrivateKeyJWT(token_endpoint, alg=algorithm)

        def authenticate(
            auth: ClientAuth, verb: str, url: str, headers: dict[str, str], body: str
        ) -> tuple[str, dict[str, str], str]:
            signer = ClientAuth(auth.client_id, key, "none")
            return method(signer, verb, url, headers, body)

        return authenticate

    return for_endpoint


def read_private_key(pem: str) -> tuple[RSAKey | ECKey | OKPKey, str]:
    """The key and its algorithm. ValueError when it is no usable private key without passphrase."""
    try:
        native = load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("not a PEM private key without passphrase") from None
    if isinstance(native, RSAPrivateKey) and native.key_size >= min(RSA_BITS):
        return RSAKey.import_key(pem), "RS256"
    if isinstance(native, Ed25519PrivateKey):
        return OKPKey.import_key(pem), "EdDSA"
    if isinstance(native, EllipticCurvePrivateKey) and native.curve.name in _EC_ALGORITHMS:
        return ECKey.import_key(pem), _EC_ALGORITHMS[native.curve.name]
    raise ValueError("not a private key that can sign: RSA from 2048 bits, P-256, P-384, P-521, Ed25519")


def _public(
    auth: ClientAuth, method: str, url: str, headers: dict[str, str], body: str
) -> tuple[str, dict[str, str], str]:
    """A client without a secret names itself in the body (RFC 6749 §3.2.1)."""
    return ClientAuth(auth.client_id, "", "none").prepare(method, url, headers, body)


def _basic(
    auth: ClientAuth, method: str, url: str, headers: dict[str, str], body: str
) -> tuple[str, dict[str, str], str]:
    """RFC 6749 §2.3.1: id and secret are form-encoded before they are joined, which Authlib's own
    method leaves out."""
    joined = f"{quote_plus(auth.client_id)}:{quote_plus(auth.client_secret)}"
    headers["Authorization"] = "Basic " + base64.b64encode(joined.encode()).decode()
    return url, headers, body


def _is_revoked(answer: Response, kind: str) -> bool:
    """RFC 7009 §2.2. An access token that the provider cannot revoke runs out by itself."""
    code = error_code(answer)
    if 200 <= answer.status < 300 or (kind == "access_token" and code == "unsupported_token_type"):
        return True
    log.warning("revocation_failed", extra={"token": kind, "cause": f"status {answer.status} {code}".strip()})
    return False


def _kinds(refresh_token: str, access_token: str) -> tuple[tuple[str, str], ...]:
    return (("refresh_token", refresh_token), ("access_token", access_token))


def _refusal(what: str, fault: OutboundFault) -> ProviderSilent | ProviderWrong:
    if isinstance(fault, NoAnswer):
        return ProviderSilent(f"{what}: {fault}")
    return ProviderWrong(f"{what}: {fault}")


def _unavailable(error: ProviderSilent | ProviderWrong) -> Unavailable:
    """At a check nobody logs in: that the provider does not tell means that nobody knows."""
    busy = isinstance(error, EndpointRefused) and error.answered == 429
    return (ProviderBusy if busy else Unavailable)(str(error))
