"""The session as a credential: its secret in ``AUTH_HEADER`` or in the session cookie.

The header is asked first, as its sender chose to send it; the cookie second. A value that is no
live session is nobody, never an error: browsers keep cookies for longer than sessions live.
"""

from __future__ import annotations

from authservice.authn.bearer import bearer_credential
from authservice.check import CheckRequest, Reach
from authservice.identity import Identity
from authservice.sessions.cookies import first_candidate, session_secrets
from authservice.sessions.live import Sessions


class SessionAuthenticator:
    """Finds the live session that a check's credentials open."""

    name = "session"

    def __init__(self, sessions: Sessions, *, auth_header: str, cookie_name: str) -> None:
        self._sessions = sessions
        self._auth_header = auth_header.lower()
        self._cookie_name = cookie_name

    def authenticate(self, check: CheckRequest, reach: Reach) -> Identity | None:
        header = check.header(self._auth_header)
        secret = bearer_credential(self._auth_header, header) if header else None
        if secret is not None:
            session = self._sessions.load(secret, reach)
            if session is not None:
                return session.by_header
        cookies = check.header("cookie")
        first = first_candidate(cookies, self._cookie_name) if cookies else None
        if first is None:
            return None
        session = self._sessions.load(first, reach)
        if session is not None:
            return session.by_cookie
        # Several cookies may carry our name (a planted one beside ours): an authentic one counts.
        for secret in session_secrets(cookies, self._cookie_name):
            session = self._sessions.load(secret, reach) if secret != first else None
            if session is not None:
                return session.by_cookie
        return None
