"""The OAuth 2 and OpenID Connect rules, on Authlib: grants, tokens and the endpoints around them."""

from __future__ import annotations

import time
from typing import Any

from authlib.integrations.flask_oauth2 import AuthorizationServer, ResourceProtector
from authlib.oauth2.rfc6749 import InvalidRequestError
from authlib.oauth2.rfc6749.grants import AuthorizationCodeGrant, RefreshTokenGrant
from authlib.oauth2.rfc6750 import BearerTokenValidator
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc7662 import IntrospectionEndpoint
from authlib.oauth2.rfc9207 import IssuerParameter
from authlib.oidc.core import OpenIDCode
from authlib.oidc.rpinitiated import EndSessionEndpoint
from flask import Flask
from joserfc.jwk import KeySet, RSAKey

from authservice_demo.provider.keys import ALGORITHM, SigningKeys
from authservice_demo.provider.records import SCOPES, Client, Code, Records, Session, Token

ACCESS_TOKEN_SECONDS = 300
CLIENT_AUTHENTICATION = ["client_secret_basic", "client_secret_post"]


class S256Only(CodeChallenge):
    """PKCE for every client, and only in its strong form (RFC 7636 §4.2)."""

    SUPPORTED_CODE_CHALLENGE_METHOD = ["S256"]

    def validate_code_challenge(self, grant: Any, redirect_uri: str) -> None:
        data = grant.request.payload.data
        if not data.get("code_challenge") or data.get("code_challenge_method") != "S256":
            raise InvalidRequestError("PKCE with S256 is required", redirect_uri=redirect_uri)
        super().validate_code_challenge(grant, redirect_uri)


def create_server(
    app: Flask, issuer: str, client: Client, records: Records, keys: SigningKeys
) -> tuple[AuthorizationServer, ResourceProtector]:
    """The authorization server with all its endpoints, and the guard of the userinfo endpoint."""
    app.config.update(
        OAUTH2_REFRESH_TOKEN_GENERATOR=True,
        OAUTH2_TOKEN_EXPIRES_IN={
            "authorization_code": ACCESS_TOKEN_SECONDS,
            "refresh_token": ACCESS_TOKEN_SECONDS,
        },
        OAUTH2_SCOPES_SUPPORTED=list(SCOPES),
    )
    server = AuthorizationServer(
        app,
        query_client=lambda client_id: client if client_id == client.client_id else None,
        save_token=lambda token, request: records.add_token(_token_record(token, request)),
    )
    id_tokens = _id_tokens(issuer, client, keys)
    server.register_grant(_code_grant(records), [id_tokens, S256Only(required=True)])
    server.register_grant(_refresh_grant(records), [id_tokens])
    server.register_endpoint(_revocation(records))
    server.register_endpoint(_introspection(issuer, records))
    server.register_endpoint(_end_session(records, keys))
    server.register_extension(_issuer_parameter(issuer)())
    guard = ResourceProtector()
    guard.register_token_validator(_bearer(records)())
    return server, guard


def _token_record(token: dict[str, Any], request: Any) -> Token:
    return Token(
        client_id=request.client.client_id,
        session=request.user,
        scope=token["scope"],
        access_token=token["access_token"],
        refresh_token=token.get("refresh_token", ""),
        issued_at=int(time.time()),
        expires_in=token["expires_in"],
    )


def _id_tokens(issuer: str, client: Client, keys: SigningKeys) -> OpenIDCode:
    class IDTokens(OpenIDCode):
        """ID tokens (OpenID Connect Core 1.0 §2), with ``sid`` for back-channel logout."""

        def exists_nonce(self, nonce: str, request: Any) -> bool:
            return False

        def resolve_client_private_key(self, client: Client) -> RSAKey:
            return keys.current

        def get_client_algorithm(self, client: Client) -> str:
            return ALGORITHM

        def get_encode_header(self, client: Client) -> dict[str, str]:
            return {"alg": ALGORITHM, "kid": keys.current.kid or ""}

        def get_client_claims(self, client: Client) -> dict[str, Any]:
            now = int(time.time())
            return {"iss": issuer, "aud": client.client_id, "iat": now, "exp": now + ACCESS_TOKEN_SECONDS}

        def generate_user_info(self, user: Session, scope: str) -> dict[str, Any]:
            return user.person.claims(scope) | {"sid": user.sid, "auth_time": user.auth_time}

    return IDTokens(require_nonce=False)


def _code_grant(records: Records) -> type[AuthorizationCodeGrant]:
    class CodeGrant(AuthorizationCodeGrant):
        TOKEN_ENDPOINT_AUTH_METHODS = CLIENT_AUTHENTICATION

        def save_authorization_code(self, code: str, request: Any) -> None:
            data = request.payload.data
            records.add_code(
                Code(
                    code=code,
                    client_id=request.client.client_id,
                    redirect_uri=request.payload.redirect_uri,
                    scope=request.scope,
                    session=request.user,
                    nonce=data.get("nonce"),
                    code_challenge=data["code_challenge"],
                    code_challenge_method=data["code_challenge_method"],
                )
            )

        def query_authorization_code(self, code: str, client: Client) -> Code | None:
            found = records.take_code(code)
            return found if found and found.client_id == client.client_id else None

        def delete_authorization_code(self, authorization_code: Code) -> None:
            """Already gone: asking for a code spends it."""

        def authenticate_user(self, authorization_code: Code) -> Session | None:
            return records.sessions.get(authorization_code.session.sid)

    return CodeGrant


def _refresh_grant(records: Records) -> type[RefreshTokenGrant]:
    class RefreshGrant(RefreshTokenGrant):
        """Every refresh token works once; a second use ends the session (RFC 9700 §4.14.2)."""

        TOKEN_ENDPOINT_AUTH_METHODS = CLIENT_AUTHENTICATION
        INCLUDE_NEW_REFRESH_TOKEN = True

        def authenticate_refresh_token(self, refresh_token: str) -> Token | None:
            token = records.refresh_token(refresh_token)
            if token is None or token.revoked:
                return None
            if token.refreshed:
                records.log_out(token.session.sid)
                return None
            return token

        def authenticate_user(self, refresh_token: Token) -> Session | None:
            return records.sessions.get(refresh_token.session.sid)

        def revoke_old_credential(self, refresh_token: Token) -> None:
            refresh_token.refreshed = True

    return RefreshGrant


def _find(records: Records, value: str) -> Token | None:
    return records.access_token(value) or records.refresh_token(value)


def _revocation(records: Records) -> type[RevocationEndpoint]:
    class Revocation(RevocationEndpoint):
        """RFC 7009: access and refresh token of one grant go together."""

        CLIENT_AUTH_METHODS = CLIENT_AUTHENTICATION

        def query_token(self, token_string: str, token_type_hint: str | None) -> Token | None:
            return _find(records, token_string)

        def revoke_token(self, token: Token, request: Any) -> None:
            token.revoked = True

    return Revocation


def _introspection(issuer: str, records: Records) -> type[IntrospectionEndpoint]:
    class Introspection(IntrospectionEndpoint):
        """RFC 7662 for access tokens."""

        CLIENT_AUTH_METHODS = CLIENT_AUTHENTICATION

        def check_permission(self, token: Token, client: Client, request: Any) -> bool:
            return token.check_client(client)

        def query_token(self, token_string: str, token_type_hint: str | None) -> Token | None:
            return records.access_token(token_string)

        def introspect_token(self, token: Token) -> dict[str, Any]:
            return token.session.person.claims(token.scope) | {
                "iss": issuer,
                "aud": token.client_id,
                "client_id": token.client_id,
                "token_type": "Bearer",
                "scope": token.scope,
                "iat": token.issued_at,
                "exp": token.issued_at + token.expires_in,
            }

    return Introspection


def _end_session(records: Records, keys: SigningKeys) -> type[EndSessionEndpoint]:
    class EndSession(EndSessionEndpoint):
        """OpenID Connect RP-Initiated Logout 1.0; the application around it ends the session."""

        def get_server_jwks(self) -> KeySet:
            return keys.all()

        def get_algorithms(self) -> list[str]:
            return [ALGORITHM]

        def end_session(self, end_session_request: Any) -> None:
            claims = end_session_request.id_token_claims or {}
            records.log_out(str(claims.get("sid", "")))

    return EndSession


def _issuer_parameter(issuer: str) -> type[IssuerParameter]:
    class Issuer(IssuerParameter):
        """``iss`` in every authorization response (RFC 9207)."""

        def get_issuer(self) -> str:
            return issuer

    return Issuer


def _bearer(records: Records) -> type[BearerTokenValidator]:
    class Bearer(BearerTokenValidator):
        def authenticate_token(self, token_string: str) -> Token | None:
            return records.access_token(token_string)

    return Bearer
