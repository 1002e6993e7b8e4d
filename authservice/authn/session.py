"""The session as a credential: its secret in ``AUTH_HEADER`` or in the session cookie.

The header is asked first, as its sender chose to send it; the cookie second. A value that is no
live session is nobody, never an error: browsers keep cookies for longer than sessions live. Whether
a live session authenticates now is also for its upkeep to say: refresh, then strict validation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from authservice.authn.bearer import bearer_credential
from authservice.check import CheckRequest, Reach
from authservice.identity import Identity
from authservice.sessions.cookies import candidates, session_secrets
from authservice.sessions.copies import LiveSession
from authservice.sessions.live import Sessions


class Upkeep(Protocol):
    """Looks after live sessions. One that is not ``at_every_check`` has nothing to say of a session
    before its ``refresh_due``."""

    @property
    def at_every_check(self) -> bool: ...

    def keep(self, secret: str, live: LiveSession, reach: Reach) -> LiveSession | None:
        """The session as it is to be used, or ``None`` when it does not authenticate now. Raises
        `check.NeedsIO` under `Reach.MEMORY`, and `errors.Unavailable`."""


class SessionAuthenticator:
    """Finds the live session that a check's credentials open."""

    name = "session"

    def __init__(
        self, sessions: Sessions, *, auth_header: str, cookie_name: str, upkeep: Sequence[Upkeep] = ()
    ) -> None:
        self._sessions = sessions
        self._auth_header = auth_header.lower()
        self._cookie_name = cookie_name
        self._candidate = candidates(cookie_name)
        self._upkeep = tuple(upkeep)
        self._quick: Callable[[str], LiveSession | None] = sessions.quick
        if any(one.at_every_check for one in upkeep):
            self._quick = lambda secret: None

    def authenticate(self, check: CheckRequest, reach: Reach) -> Identity | None:
        headers = check.headers
        header = headers.get(self._auth_header)
        secret = bearer_credential(self._auth_header, header) if header else None
        if secret is not None:
            session = self._quick(secret) or self._find(secret, reach)
            if session is not None:
                return session.by_header
        cookies = headers.get("cookie")
        first = self._candidate(cookies) if cookies else None
        if cookies is None or first is None:
            return None
        session = self._quick(first) or self._find(first, reach)
        if session is not None:
            return session.by_cookie
        # Several cookies may carry our name (a planted one beside ours): an authentic one counts.
        for secret in session_secrets(cookies, self._cookie_name):
            session = self._find(secret, reach) if secret != first else None
            if session is not None:
                return session.by_cookie
        return None

    def _find(self, secret: str, reach: Reach) -> LiveSession | None:
        session = self._sessions.load(secret, reach)
        for one in self._upkeep:
            if session is None:
                return None
            session = one.keep(secret, session, reach)
        return session
