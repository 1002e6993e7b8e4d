"""Sending a browser to the login, and noticing when it goes round in circles.

Both the judge (nobody is logged in) and the site (``<prefix>/login``) begin logins here: the
redirect to the provider, the cookie of the pending login, and the cap on both. A browser that
comes back from the login again and again without ever being logged in gets a page instead of
another redirect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone

from werkzeug.http import dump_cookie

from authservice.check import Reach, Reply
from authservice.errors import Forbidden, Reason
from authservice.oidc.login import LoginFlow
from authservice.oidc.pending import Sealer
from authservice.sessions.cookies import MOST_TRIED, CookieRules, read_cookies, session_secrets
from authservice.sessions.live import Sessions
from authservice.urls import parse_authority

ROUNDS_LIMIT = 5
ROUNDS_WINDOW = timedelta(seconds=30)

NO_STORE = ("Cache-Control", "no-store")


def short_cookie(name: str, value: str, lifetime: timedelta, secure: bool) -> str:
    """The ``Set-Cookie`` value of a cookie that only a login needs; a lifetime of zero deletes it.

    Always ``SameSite=Lax`` (it must survive the way back from the provider) and host-only.
    """
    return dump_cookie(
        name,
        value,
        max_age=int(lifetime.total_seconds()),
        expires=None if value else 0,
        path="/",
        secure=secure,
        httponly=True,
        samesite="Lax",
        sync_expires=False,
    )


def origin(scheme: str | None, host: str) -> str:
    """``scheme://host``, or nothing when it is not known for sure: a host that cannot be read names none."""
    return f"{scheme}://{host}" if scheme and parse_authority(host) else ""


class LoginLoop(Forbidden):
    """Several logins in a row succeeded, and none of them stayed."""

    reason = Reason.LOGIN_LOOP
    public = (
        "You were logged in several times in a row, but your browser did not keep it."
        " Please allow cookies for this site, or tell its operator."
    )


class Rounds:
    """Counts logins that followed each other within `ROUNDS_WINDOW`, in a sealed cookie.

    The cookie appears when a login succeeds and goes with a logout. A browser that really is
    logged in never begins another login, so it never meets the limit.
    """

    _purpose = "login-rounds"

    def __init__(self, sealer: Sealer, session_cookie: str, now: Callable[[], datetime]) -> None:
        self.cookie_name = f"{session_cookie}_rounds"
        self._sealer = sealer
        self._now = now

    def count(self, cookies: Sequence[tuple[str, str]]) -> int:
        """How many logins have succeeded within the window, 0 when unknown."""
        return self._read(cookies)[0]

    def one_more(self, cookies: Sequence[tuple[str, str]]) -> str:
        """The cookie's value after another successful login."""
        count, began = self._read(cookies)
        text = f"{count + 1}:{began.timestamp():.0f}"
        return self._sealer.seal(self._purpose, text.encode())

    def _read(self, cookies: Sequence[tuple[str, str]]) -> tuple[int, datetime]:
        now = self._now()
        for name, value in cookies:
            opened = self._sealer.open(self._purpose, value) if name == self.cookie_name else None
            if opened is None:
                continue
            count, _, began = opened.decode().partition(":")
            since = datetime.fromtimestamp(int(began), timezone.utc)
            if now - since < ROUNDS_WINDOW:
                return int(count), since
        return 0, now


class Entrance:
    """Begins logins. ``secure`` says for an outside scheme whether cookies carry ``Secure``."""

    def __init__(
        self,
        flow: LoginFlow,
        rounds: Rounds,
        sessions: Sessions,
        session_cookie: CookieRules,
        secure: Callable[[str | None], bool],
    ) -> None:
        self._flow = flow
        self._rounds = rounds
        self._sessions = sessions
        self._session_cookie = session_cookie
        self._secure = secure

    def begin(self, return_to: str, cookie_header: str, scheme: str | None, host: str, reach: Reach) -> Reply:
        """A 302 to the provider, with the pending login's cookie.

        ``scheme`` and ``host`` are those that the person sees; where both are known they make a
        relative authorization address absolute. A session cookie that opens nothing any more is taken
        away (S-34). Raises `LoginLoop`, `errors.NotReady`, `errors.StoreDown` and, under
        `Reach.MEMORY`, `check.NeedsIO`.
        """
        cookies = read_cookies(cookie_header)
        if self._rounds.count(cookies) >= ROUNDS_LIMIT:
            raise LoginLoop(f"{ROUNDS_LIMIT} logins within {ROUNDS_WINDOW.seconds} s")
        dead = self._brings_a_dead_cookie(cookies, cookie_header, reach)
        begun = self._flow.begin(return_to, cookies, reach)
        secure = self._secure(scheme)
        name, value, max_age = begun.set_cookie
        lines = [short_cookie(name, value, max_age, secure)]
        lines += [short_cookie(stale, "", timedelta(0), secure) for stale in begun.drop_cookies]
        if dead:
            lines.append(self._session_cookie.delete_cookie(secure))
        location = origin(scheme, host) + begun.url if begun.url.startswith("/") else begun.url
        headers = [("Location", location), NO_STORE, *(("Set-Cookie", line) for line in lines)]
        return Reply(302, tuple(headers))

    def _brings_a_dead_cookie(
        self, cookies: Sequence[tuple[str, str]], cookie_header: str, reach: Reach
    ) -> bool:
        """Whether the store knows no session behind any cookie of our name: a live one that only does not
        count at this moment (its provider is out of reach) is kept, and so are more than are ever tried."""
        name = self._session_cookie.name
        if not 0 < sum(cookie == name for cookie, _ in cookies) <= MOST_TRIED:
            return False
        return all(self._sessions.load(secret, reach) is None for secret in session_secrets(cookie_header, name))
