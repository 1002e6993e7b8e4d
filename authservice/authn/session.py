"""The session as a credential: its secret in ``AUTH_HEADER`` or in the session cookie.

The header is asked first, as its sender chose to send it; the cookie second. A value that is no
live session is nobody, never an error: browsers keep cookies for longer than sessions live.
"""

from __future__ import annotations

from authservice.authn.bearer import bearer_credential
from authservice.check import CheckRequest, Reach
from authservice.identity import AuthMethod, Identity, VerifiedClaims
from authservice.sessions import Session
from authservice.sessions.cookies import session_secrets
from authservice.sessions.live import Sessions


class SessionAuthenticator:
    """Finds the live session that a check's credentials open."""

    name = "session"

    def __init__(self, sessions: Sessions, *, auth_header: str, cookie_name: str) -> None:
        self._sessions = sessions
        self._auth_header = auth_header.lower()
        self._cookie_name = cookie_name

    def authenticate(self, check: CheckRequest, reach: Reach) -> Identity | None:
        secret = bearer_credential(self._auth_header, check.header(self._auth_header))
        if secret is not None:
            session = self._sessions.load(secret, reach)
            if session is not None:
                return identity_of(session, AuthMethod.HEADER)
        # Several cookies may carry our name (a planted one beside ours): an authentic one counts.
        for secret in session_secrets(check.header("cookie"), self._cookie_name):
            session = self._sessions.load(secret, reach)
            if session is not None:
                return identity_of(session, AuthMethod.COOKIE)
        return None


def identity_of(session: Session, method: AuthMethod) -> Identity:
    """The identity that was verified when the session began."""
    return Identity(
        user_id=session.user_id,
        groups=session.groups,
        claims=VerifiedClaims(session.claims),
        method=method,
        issuer=session.issuer,
        expires=session.expires,
    )
