"""Logging out: by a person, by a program, and by the provider's notices.

`Logout` answers the door ``logout``, which exists on both ports, and the two addresses of the site port
that a provider tells of sessions that it ended. The local session ends first and always; what follows
at the provider (revocation, its own logout page) may fail without bringing it back. Protocol is
`oidc.logout`, and who is meant is found by `sessions.directory`; nothing here reads a token.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

import flask
from flask import Response, request
from werkzeug.exceptions import RequestEntityTooLarge

from authservice.authn.bearer import bearer_credential
from authservice.browsers import Browsers, browser_session, page, redirect, request_log_fields, wants_page
from authservice.check import NeedsIO, Reach
from authservice.entrance import NO_STORE, Rounds
from authservice.errors import AuthServiceError, NotReady, Refused, TooManyNotices, Unavailable
from authservice.logs import Event
from authservice.oidc.logout import (
    MAX_FORM,
    BackChannel,
    LogoutNotice,
    LogoutRefused,
    end_session_url,
    provider_origins,
    read_front_channel,
    read_logout_form,
)
from authservice.oidc.metadata import Metadata
from authservice.ops import Counts, EndedBy, Metric
from authservice.pages import Pages, framed
from authservice.sessions import Session
from authservice.sessions.directory import Directory
from authservice.sessions.live import Sessions

MOST_NOTICES_AT_ONCE = 10
"""In one process; checks need the rest of the threads."""

MOST_ASKING_AT_ONCE = 3
"""Of these, those for which the provider is asked about its keys: anybody may send what needs that."""

PATIENCE = 0.25
"""Seconds in which a notice waits for its turn: providers rarely send one again."""

_FRAMES = ("iframe", "frame")
_STATE_BYTES = 16

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LogoutRules:
    """What the settings say about logging out. ``post_logout_address`` is where the provider sends
    browsers back to; a path when the settings do not tell under which origin."""

    issuer: str
    client_id: str
    prefix_path: str
    after_logout_url: str
    post_logout_address: str
    auth_header: str


class Logout:
    """Ends sessions. ``metadata`` gives what is known of the provider, or raises `errors.NotReady`, and
    `check.NeedsIO` as `Reach` says; ``revoke`` asks it to end tokens and names the kinds that are left."""

    def __init__(
        self,
        *,
        sessions: Sessions,
        directory: Directory,
        metadata: Callable[[Reach], Metadata],
        revoke: Callable[[str, str], list[str]],
        back_channel: BackChannel,
        rounds: Rounds,
        browsers: Browsers,
        pages: Pages,
        rules: LogoutRules,
        now: Callable[[], datetime],
        counts: Counts | None = None,
    ) -> None:
        self._sessions = sessions
        self._directory = directory
        self._metadata = metadata
        self._revoke = revoke
        self._back_channel = back_channel
        self._rounds = rounds
        self._browsers = browsers
        self._pages = pages
        self._rules = rules
        self._now = now
        self._counts = counts or Counts()
        self._present = threading.BoundedSemaphore(MOST_NOTICES_AT_ONCE)
        self._asking = threading.BoundedSemaphore(MOST_ASKING_AT_ONCE)

    # --- asked for here -----------------------------------------------------------------------

    def logout(self) -> Response:
        """Ends a session: by its bearer value, or by its cookie with same-origin proof. Then leads on
        to the provider's logout, where it has one (OpenID Connect RP-Initiated Logout 1.0 §2).

        What could not be revoked (RFC 7009) is told, never a reason to stay logged in.
        """
        if request.method != "POST":
            return self._browsers.method_not_allowed("POST")
        return self.end()

    def end(self, then: str = "") -> Response:
        """The same whatever the method, and with another address to lead on to where one is given."""
        bearer = self._bearer()
        try:
            ended = self._end_session(bearer)
        except Refused:
            return self._logout_refused()
        except AuthServiceError as error:
            return self._cannot_log_out(error)
        # Another provider's session, of other settings before: its tokens are shown to nobody else.
        ours = ended if ended and ended.issuer == self._rules.issuer else None
        at_provider = self._end_session_url(ours) if ours else None
        not_revoked = self._revoke(ours.refresh_token, ours.access_token) if ours else []
        if not_revoked:
            log.warning(Event.NOT_REVOKED.value, extra={**request_log_fields(), "tokens": not_revoked})
        self._note(EndedBy.BROWSER if bearer is None else EndedBy.BEARER)
        address = then or at_provider or self._rules.after_logout_url
        if request.method == "GET":
            answer = redirect(address)
        else:
            answer = self._leave(address) if bearer is None and wants_page() else _told(address, not_revoked)
        self._browsers.drop_cookie(answer, self._rounds.cookie_name)
        return answer

    def _bearer(self) -> str | None:
        """The session's value in ``AUTH_HEADER``; empty when the header cannot be understood."""
        header = self._rules.auth_header.lower()
        try:
            return bearer_credential(header, request.headers.get(header, "")) if header else None
        except Refused:
            return ""

    def _end_session(self, bearer: str | None) -> Session | None:
        """The session that ended; ``None`` when a person's browser had none any more.

        Raises `errors.Refused` when nothing proves that the owner asks.
        """
        if bearer is not None:
            if self._sessions.load(bearer, Reach.NETWORK) is None:
                raise Refused("no session of this value")
            return browser_session().log_out(bearer=bearer)
        if not self._browsers.proves_own_origin():
            raise Refused("a cookie without same-origin proof")
        ended = browser_session().log_out()
        if ended is None and not wants_page():
            raise Refused("no session of this cookie")
        return ended

    def _end_session_url(self, ended: Session) -> str | None:
        """The provider's logout page for a session that ended here; ``None`` without one, and without
        an ID token to show there."""
        if not ended.id_token:
            return None
        try:
            metadata = self._metadata(Reach.NETWORK)
        except NotReady:
            return None
        return end_session_url(
            metadata,
            client_id=self._rules.client_id,
            id_token=ended.id_token,
            return_to=self._return_to(),
            # Nothing hangs on it: the page that it comes back to does nothing but say «logged out».
            state=secrets.token_urlsafe(_STATE_BYTES),
        )

    def _return_to(self) -> str:
        """The address to be registered at the provider; nothing where our own origin is unknown."""
        address = self._rules.post_logout_address
        if not address.startswith("/"):
            return address
        origin = self._browsers.origin()
        return origin + address if origin else ""

    def _leave(self, address: str) -> Response:
        """On from a form. A page of ours that a form's redirect leads to is the end of it; elsewhere a
        further redirect may follow, even to another origin, and browsers hold that against the form's
        own ``form-action`` (CSP3 §6.4.1): there a page leads on."""
        if address.startswith(self._rules.prefix_path + "/"):
            return redirect(address, status=303)
        return page(self._pages.onward(address, heading="You are logged out"), 201)

    def _cannot_log_out(self, error: AuthServiceError) -> Response:
        """The store did not answer: the session may still be there, so nobody is told otherwise."""
        log.warning(Event.LOGOUT_REFUSED.value, extra={**request_log_fields(), "reason": error.reason})
        answer = Response(error.public, status=error.status, content_type="text/plain; charset=utf-8")
        answer.headers.update([NO_STORE, ("Retry-After", "5")])
        return answer

    def _logout_refused(self) -> Response:
        log.info(Event.LOGOUT_REFUSED.value, extra=request_log_fields())
        return Response(status=401, headers=[NO_STORE, ("WWW-Authenticate", "Bearer")])

    # --- told by the provider -----------------------------------------------------------------

    def back_channel(self) -> Response:
        """The provider's logout token (OpenID Connect Back-Channel Logout 1.0 §2.5 to §2.8): 200 when
        no session that it means is left, 400 when it is no good notice. 503 when it cannot be judged or
        done at this moment: nothing of it is used up, and the same notice may be sent again."""
        if request.method != "POST":
            return self._browsers.method_not_allowed("POST")
        try:
            with _a_turn(self._present, PATIENCE):
                ended = self._heed(self._read_notice())
        except (LogoutRefused, Unavailable) as error:
            return self._notice_refused(EndedBy.BACK_CHANNEL, error)
        self._note(EndedBy.BACK_CHANNEL, sessions=ended)
        return Response(status=200, headers=[NO_STORE], content_type="text/plain; charset=utf-8")

    def _read_notice(self) -> LogoutNotice:
        try:
            body = request.stream.read(MAX_FORM + 1)
        except RequestEntityTooLarge:
            raise LogoutRefused("size") from None
        token = read_logout_form(request.headers.get("Content-Type", ""), body)
        return self._known_or_asked(lambda reach: self._back_channel.read(token, reach))

    def _heed(self, notice: LogoutNotice) -> int:
        """Ends whom it means, once, and says how many sessions were live."""
        mark = f"logout token {notice.issuer} {notice.jti}"
        if self._sessions.is_spent(mark):
            raise LogoutRefused("jti")
        ended = self._directory.end(self._meant(notice))
        # Not before: a notice that failed half-way is good once more.
        self._sessions.spend(mark, notice.remember_until - self._now())
        return ended

    def _meant(self, notice: LogoutNotice) -> list[str]:
        """The sessions' public ids (§2.7)."""
        found = []
        if notice.sid:
            found.append(self._directory.of_provider_session(notice.issuer, notice.sid))
        if notice.subject:
            found.append(self._directory.of_subject(notice.issuer, notice.subject))
        return [id for id in found[0] if all(id in others for others in found[1:])]

    def front_channel(self) -> Response:
        """The page that the provider shows in a frame (OpenID Connect Front-Channel Logout 1.0 §2): the
        session of the cookie that came along ends, when it is the one that is meant. 200, with an empty
        body when there was none; else as `back_channel`. Only the provider's pages may frame it."""
        if request.method != "GET":
            return self._browsers.method_not_allowed("GET")
        try:
            notice = read_front_channel(request.environ.get("QUERY_STRING", ""), self._rules.issuer)
            if not notice.sids and request.headers.get("Sec-Fetch-Dest", "iframe") not in _FRAMES:
                # Who knows the session's sid is its provider; a bare request may be anybody's link or image.
                raise LogoutRefused("frame")
            ancestors = provider_origins(self._known_or_asked(self._metadata))
            ended = browser_session().log_out_where(
                lambda session: session.issuer == self._rules.issuer and notice.ends(session.provider_sid)
            )
        except (LogoutRefused, Unavailable) as error:
            return self._notice_refused(EndedBy.FRONT_CHANNEL, error)
        if ended:
            self._note(EndedBy.FRONT_CHANNEL, sessions=ended)
        return page(framed("You are logged out." if ended else "", ancestors), 200)

    def _known_or_asked(self, question: Callable[[Reach], T]) -> T:
        """The answer from memory where it is there; else the provider is asked, by few at a time."""
        try:
            return question(Reach.MEMORY)
        except NeedsIO:
            with _a_turn(self._asking, 0):
                return question(Reach.NETWORK)

    def _notice_refused(self, by: EndedBy, error: LogoutRefused | Unavailable) -> Response:
        status, cause = (400, error.check) if isinstance(error, LogoutRefused) else (503, error.reason.value)
        self._counts.add(Metric.NOTICES_REFUSED, by.value)
        fields = {**request_log_fields(), "by": by, "status": status, "cause": cause}
        log.warning(Event.NOTICE_REFUSED.value, extra=fields)
        answer = flask.jsonify({"error": "invalid_request" if status == 400 else "temporarily_unavailable"})
        answer.status_code = status
        answer.headers.update([NO_STORE])
        if status == 503:
            answer.headers["Retry-After"] = "5"
        return answer

    def _note(self, by: EndedBy, **fields: object) -> None:
        self._counts.add(Metric.LOGOUTS, by.value)
        log.info(Event.LOGGED_OUT.value, extra={**request_log_fields(), "by": by, **fields})


@contextmanager
def _a_turn(places: threading.BoundedSemaphore, patience: float) -> Iterator[None]:
    """One of so many places at once. Raises `errors.TooManyNotices`."""
    if not places.acquire(timeout=patience):
        raise TooManyNotices
    try:
        yield
    finally:
        places.release()


def _told(address: str, not_revoked: list[str]) -> Response:
    """What scripts and programs are told, the original's dashboard among them."""
    body: dict[str, object] = {"afterLogoutURL": address}
    if not_revoked:
        body["notRevoked"] = not_revoked
    answer = flask.jsonify(body)
    # 201, as the original: behind Envoy a 200 would let the request through to the application.
    answer.status_code = 201
    answer.headers.update([NO_STORE])
    return answer
