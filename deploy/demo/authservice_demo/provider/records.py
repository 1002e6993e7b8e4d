"""What the provider remembers: its one client, codes, tokens and who is logged in.

The classes carry the methods that Authlib's server asks for. Everything is lost at a restart.
"""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from authlib.oauth2.rfc6749 import ClientMixin, TokenMixin
from authlib.oidc.core import AuthorizationCodeMixin

from authservice_demo.provider.people import Person

SCOPES = ("openid", "profile", "email", "groups")
CODE_SECONDS = 60


@dataclass(frozen=True)
class Client(ClientMixin):
    """The one application that may send people here."""

    client_id: str
    client_secret: str
    redirect_uris: tuple[str, ...]
    post_logout_redirect_uris: tuple[str, ...] = ()
    backchannel_logout_uri: str = ""
    id_token_signed_response_alg = ""

    @property
    def client_metadata(self) -> dict[str, Any]:
        return {"post_logout_redirect_uris": list(self.post_logout_redirect_uris)}

    def get_client_id(self) -> str:
        return self.client_id

    def get_default_redirect_uri(self) -> str:
        return self.redirect_uris[0]

    def get_allowed_scope(self, scope: str | None) -> str:
        return " ".join(name for name in (scope or "").split() if name in SCOPES)

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return redirect_uri in self.redirect_uris

    def check_client_secret(self, client_secret: str) -> bool:
        return secrets.compare_digest(self.client_secret.encode(), client_secret.encode())

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method in ("client_secret_basic", "client_secret_post")

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type in ("authorization_code", "refresh_token")


@dataclass(frozen=True)
class Session:
    """One person logged in at the provider in one browser."""

    sid: str
    person: Person
    auth_time: int


@dataclass
class Code(AuthorizationCodeMixin):
    """An authorization code and what it was asked for."""

    code: str
    client_id: str
    redirect_uri: str
    scope: str
    session: Session
    nonce: str | None
    code_challenge: str
    code_challenge_method: str
    expires: float = field(default_factory=lambda: time.time() + CODE_SECONDS)

    def get_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.scope

    def get_nonce(self) -> str | None:
        return self.nonce

    def get_auth_time(self) -> int:
        return self.session.auth_time

    def get_acr(self) -> None:
        return None

    def get_amr(self) -> None:
        return None


@dataclass
class Token(TokenMixin):
    """An access token with its refresh token."""

    client_id: str
    session: Session
    scope: str
    access_token: str
    refresh_token: str
    issued_at: int
    expires_in: int
    revoked: bool = False
    refreshed: bool = False

    def check_client(self, client: Client) -> bool:
        return self.client_id == client.client_id

    def get_scope(self) -> str:
        return self.scope

    def get_expires_in(self) -> int:
        return self.expires_in

    def is_expired(self) -> bool:
        return time.time() >= self.issued_at + self.expires_in

    def is_revoked(self) -> bool:
        return self.revoked

    def get_client(self) -> Client | None:
        return None

    def get_user(self) -> Session:
        return self.session


class Records:
    """Everything in one place, safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._codes: dict[str, Code] = {}
        self._tokens: list[Token] = []
        self.sessions: dict[str, Session] = {}

    def log_in(self, person: Person) -> Session:
        session = Session(secrets.token_urlsafe(18), person, int(time.time()))
        with self._lock:
            self.sessions[session.sid] = session
        return session

    def log_out(self, sid: str) -> Session | None:
        """Ends the session and all its tokens."""
        with self._lock:
            session = self.sessions.pop(sid, None)
            for token in self._tokens:
                if token.session.sid == sid:
                    token.revoked = True
        return session

    def add_code(self, code: Code) -> None:
        with self._lock:
            self._codes = {key: old for key, old in self._codes.items() if old.expires > time.time()}
            self._codes[code.code] = code

    def take_code(self, code: str) -> Code | None:
        """The code, which is spent by asking (RFC 6749 §4.1.2)."""
        with self._lock:
            found = self._codes.pop(code, None)
        return found if found and found.expires > time.time() else None

    def add_token(self, token: Token) -> None:
        with self._lock:
            self._tokens = [old for old in self._tokens if not old.revoked] + [token]

    def access_token(self, value: str) -> Token | None:
        return next((token for token in self._tokens if token.access_token == value), None)

    def refresh_token(self, value: str) -> Token | None:
        return next((token for token in self._tokens if token.refresh_token == value), None)
