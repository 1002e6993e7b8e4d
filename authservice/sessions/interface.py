"""Flask-Session's interface over `Sessions`: what ``flask.session`` is inside a request.

Owns nothing but the moment: it reads the browser's cookie when a view asks for the record, and
writes Set-Cookie when a view logged somebody in or out. Flask opens and saves a session around
every request, so opening costs no store call. Flask-Session's own reading and writing, with its
serializer that falls back to pickle, is replaced as a whole: it never sees a stored byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from flask import Flask, Request, Response
from flask.sessions import SessionMixin
from flask_session.base import ServerSideSessionInterface

from authservice.check import Reach
from authservice.sessions import Session
from authservice.sessions.cookies import CookieRules, session_secrets
from authservice.sessions.copies import LiveSession
from authservice.sessions.live import Sessions
from authservice.sessions.seal import store_key

_NOT_A_DICTIONARY = "flask.session keeps a login and nothing else: use .record, .log_in() and .log_out()"


class BrowserSession(SessionMixin):
    """One request's ``flask.session``. Its use as a dictionary raises TypeError.

    Everything here may raise `errors.StoreDown`; then no Set-Cookie is made, so a browser keeps
    its cookie until the store can be asked about it.
    """

    def __init__(self, sessions: Sessions, secrets: list[str]) -> None:
        self._sessions = sessions
        self._secrets = secrets
        self._record: LiveSession | None = None
        self._asked = False
        self.issued: str | None = None
        """The secret of a login that happened in this request, until it is ended again."""
        self.dropped = False
        """Whether the browser is to forget its cookie."""

    @property
    def asked(self) -> bool:
        """Whether the answer depends on the request's cookie."""
        return self._asked

    @property
    def record(self) -> LiveSession | None:
        """The browser's live session. Of several cookies with our name the first authentic one
        counts. Asked for at the first use only."""
        if not self._asked:
            found = (self._sessions.load(secret, Reach.NETWORK) for secret in self._secrets)
            self._record = next((session for session in found if session), None)
            self._asked = True
        return self._record

    def log_in(
        self, record: Session, *, address: str = "", user_agent: str = "",
        bore: Callable[[str], bool] = lambda secret: True,
    ) -> None:  # fmt: skip
        """Begins a session under a new secret and ends those that the browser came with. The new
        one is kept first: when the store fails half-way nobody has lost a session.

        ``bore`` says of a secret whether the browser may have had it before this login began. One that came
        since, of the same person, is another tab's: it stays, as requests that bear it are under way."""
        secret = self._sessions.begin(record, address=address, user_agent=user_agent)
        for borne in self._secrets:
            if bore(borne) or not self._is_of(borne, record):
                self._sessions.end(borne)
        self._secrets, self.issued, self.dropped = [secret], secret, False
        self._record, self._asked = self._sessions.live(record, store_key(secret)), True

    def log_out(self, bearer: str | None = None) -> Session | None:
        """Ends the browser's session and takes its cookie; gives the session when it was live.
        With ``bearer`` that secret's session is ended, and the cookies' are not."""
        ended = self._end_all() if bearer is None else self._sessions.end(bearer)
        self._record, self._asked = None, True
        # Another session's cookie stays: only its own browser may lose it.
        self.issued, self.dropped = None, bearer is None or not self._secrets or bearer in self._secrets
        return ended

    def log_out_where(self, meant: Callable[[Session], bool]) -> int:
        """Ends those of the browser's sessions that are meant, and says how many; with one of them
        goes the cookie."""
        ended = 0
        for secret in self._secrets:
            found = self._sessions.record(secret)
            if found is not None and meant(found.session):
                self._sessions.end(secret)
                ended += 1
        if ended:
            self._record, self._asked, self.issued, self.dropped = None, True, None, True
        return ended

    def _is_of(self, secret: str, record: Session) -> bool:
        found = self._sessions.record(secret)
        return found is not None and (found.session.issuer, found.session.subject) == (record.issuer, record.subject)

    def _end_all(self) -> Session | None:
        ended = [self._sessions.end(secret) for secret in self._secrets]
        return next((session for session in ended if session), None)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(_NOT_A_DICTIONARY)

    __getitem__ = __setitem__ = __delitem__ = __contains__ = __len__ = __bool__ = __eq__ = _refuse
    get = pop = popitem = clear = update = setdefault = keys = items = values = _refuse
    __hash__ = object.__hash__

    def __iter__(self) -> Iterator[str]:
        self._refuse()

    def __repr__(self) -> str:
        return "<BrowserSession>"


class SessionInterface(ServerSideSessionInterface):
    """``app.session_interface``. ``secure`` says whether the current request came over https as
    the browser sees it; it is asked only when a cookie is written."""

    session_class = BrowserSession

    def __init__(
        self, app: Flask, sessions: Sessions, rules: CookieRules, secure: Callable[[], bool]
    ) -> None:
        super().__init__(app)
        self.serializer = None
        self._sessions = sessions
        self._rules = rules
        self._secure = secure

    def open_session(self, app: Flask, request: Request) -> BrowserSession:
        header = request.environ.get("HTTP_COOKIE", "")
        return BrowserSession(self._sessions, session_secrets(header, self._rules.name))

    def save_session(self, app: Flask, session: BrowserSession, response: Response) -> None:
        """Adds at most one Set-Cookie, and only after a login or logout; stores nothing."""
        if session.asked:
            response.vary.add("Cookie")
        if session.issued:
            response.headers.add("Set-Cookie", self._rules.set_cookie(session.issued, self._secure()))
        elif session.dropped:
            response.headers.add("Set-Cookie", self._rules.delete_cookie(self._secure()))

    def _retrieve_session_data(self, store_id: str) -> NoReturn:
        raise TypeError(_NOT_A_DICTIONARY)

    def _delete_session(self, store_id: str) -> NoReturn:
        raise TypeError(_NOT_A_DICTIONARY)

    def _upsert_session(self, session_lifetime: Any, session: Any, store_id: str) -> NoReturn:
        raise TypeError(_NOT_A_DICTIONARY)

    def regenerate(self, session: Any) -> NoReturn:
        raise TypeError(_NOT_A_DICTIONARY)
