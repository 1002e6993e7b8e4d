"""A person's own session, on the site port: a page that shows and ends it, and who they are as JSON.

`Account` answers ``<prefix>/site/session`` and ``<prefix>/userinfo``. Everybody is told about
themselves alone; other sessions of theirs are counted, and ended, by what the provider calls them
(issuer and ``sub``), since two accounts may bear one user id. Ending the browser's own session is
left to `authservice.logout`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import quote

import flask
from flask import Response, request

from authservice.browsers import Browsers, browser_session, page, request_log_fields
from authservice.check import CheckRequest, Reach
from authservice.entrance import NO_STORE
from authservice.errors import AuthServiceError, Refused
from authservice.identity import Identity
from authservice.judge import parts_of, response, told_to_log_in
from authservice.links import usable
from authservice.logs import Event
from authservice.ops import Counts, EndedBy, Metric
from authservice.pages import Pages
from authservice.sessions.copies import LiveSession
from authservice.sessions.directory import Directory, deadline
from authservice.sessions.seal import public_id
from authservice.trust import Trust

log = logging.getLogger(__name__)

MOST_LOOKED_AT = 100
"""Other sessions of a person of which each is looked at, whether it is over by its limits."""

_MAX_FORM = 1024
_WORDS = ("name", "email")
_UNKNOWN_FORM = "This form says nothing that can be done here."
_FROM_ELSEWHERE = "This form came from another site, so nothing was ended."


@dataclass(frozen=True, slots=True)
class AccountRules:
    """What the settings say about a person's own session."""

    session_path: str
    login_path: str
    session_max_age: timedelta
    idle_timeout: timedelta | None


class Account:
    """``authenticate`` finds whom a request's credentials prove, as for a check. ``log_out`` answers a
    form that ends the browser's session."""

    def __init__(
        self,
        *,
        authenticate: Callable[[CheckRequest, Reach], Identity | None],
        log_out: Callable[[], Response],
        directory: Directory,
        browsers: Browsers,
        pages: Pages,
        trust: Trust,
        rules: AccountRules,
        now: Callable[[], datetime],
        counts: Counts,
    ) -> None:
        self._authenticate = authenticate
        self._log_out = log_out
        self._directory = directory
        self._browsers = browsers
        self._pages = pages
        self._trust = trust
        self._rules = rules
        self._now = now
        self._counts = counts

    # --- the page -----------------------------------------------------------------------------

    def session(self) -> Response:
        """GET shows the session; POST ends it (``end=this``), or all of this person (``end=all``),
        with same-origin proof."""
        if request.method not in ("GET", "HEAD", "POST"):
            return self._browsers.method_not_allowed("GET, HEAD, POST")
        try:
            return self._end() if request.method == "POST" else self._show()
        except AuthServiceError as error:
            answer = self._browsers.error_page(error.status, error.public)
            answer.headers["Retry-After"] = "5"
            return answer

    def _show(self) -> Response:
        live = browser_session().record
        if live is None:
            return self._not_logged_in()
        own = self._directory.show(public_id(live.key))
        about = own.about if own else None
        identity, now = live.by_cookie, self._now()
        # The record's limit where the label is not there, or not ours to read.
        until = deadline(own, self._rules.session_max_age, None) if own else identity.expires
        made = self._pages.session(
            user_id=identity.user_id,
            since=about.created if about else None,
            until=until or now,
            now=now,
            idle_timeout=self._rules.idle_timeout,
            address=about.address if about else "",
            browser=about.user_agent if about else "",
            others=self._count_alive(self._others(live)),
            session_url=self._rules.session_path,
        )
        return page(made, 200)

    def _not_logged_in(self) -> Response:
        made = self._pages.error(
            401,
            "You are not logged in.",
            request_id=str(request_log_fields()["request_id"]),
            way_on_url=f"{self._rules.login_path}?rd={quote(self._rules.session_path, safe='')}",
            way_on_label="Log in",
        )
        answer = page(made, 401)
        answer.headers["WWW-Authenticate"] = "Bearer"  # one is required (RFC 9110 §11.6.1)
        return answer

    def _others(self, live: LiveSession) -> list[str]:
        identity = live.by_cookie
        own = public_id(live.key)
        found = self._directory.of_subject(identity.issuer, identity.claims.get("sub", ""))
        return [id for id in found if id != own]

    def _count_alive(self, ids: list[str]) -> int:
        if len(ids) > MOST_LOOKED_AT:
            return len(ids)
        now, rules = self._now(), self._rules
        known = filter(None, map(self._directory.show, ids))
        return sum(deadline(one, rules.session_max_age, rules.idle_timeout) > now for one in known)

    def _end(self) -> Response:
        if not self._browsers.proves_own_origin():
            log.info(Event.LOGOUT_REFUSED.value, extra=request_log_fields())
            return self._browsers.error_page(403, _FROM_ELSEWHERE)
        request.max_content_length = _MAX_FORM
        asked = request.form.getlist("end")
        if asked not in (["this"], ["all"]):
            return self._browsers.error_page(400, _UNKNOWN_FORM)
        live = browser_session().record
        if live is not None and asked == ["all"]:
            # The others first: when the store fails half-way, the form is still there to be sent again.
            ended = self._directory.end(self._others(live))
            if ended:
                self._counts.add(Metric.LOGOUTS, EndedBy.BROWSER.value)
                log.info(
                    Event.LOGGED_OUT.value, extra={**request_log_fields(), "by": EndedBy.BROWSER, "sessions": ended}
                )
        return self._log_out()

    # --- who they are -------------------------------------------------------------------------

    def userinfo(self) -> Response:
        """Whom the credentials prove, by every way that a check knows; nobody is asked whether they
        may. No other origin can read it: it has no CORS headers."""
        return self.tell(described)

    def tell(self, words: Callable[[Identity], Mapping[str, object]]) -> Response:
        """The same in these words."""
        if request.method not in ("GET", "HEAD"):
            return self._browsers.method_not_allowed("GET, HEAD")
        try:
            identity = self._authenticate(self._check(), Reach.NETWORK)
        except AuthServiceError as error:
            answer = _refusal(error)
        else:
            answer = flask.jsonify(words(identity)) if identity else self._told_to_log_in()
        answer.headers.update([NO_STORE, ("X-Content-Type-Options", "nosniff")])
        answer.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        answer.vary.update(("Cookie", "Authorization"))
        return answer

    def _told_to_log_in(self) -> Response:
        return response(told_to_log_in(self._browsers.origin() + self._rules.login_path))

    def _check(self) -> CheckRequest:
        parts = parts_of(request.environ)
        return CheckRequest(
            method=parts.method,
            scheme=self._trust.scheme(parts),
            host=parts.headers.get("host", "").lower(),
            target=parts.target or "",
            path=None,
            headers=parts.headers,
            client=self._trust.client(parts),
            dialect="site",
        )


def described(identity: Identity) -> Mapping[str, object]:
    """``user`` and ``groups`` as the application gets them before transformers, prefix and escapes;
    of the standard claims (OpenID Connect Core 1.0 §5.1) those that a page shows, where they are."""
    claims = identity.claims
    told: dict[str, object] = {"user": identity.user_id, "groups": list(identity.groups)}
    for name in _WORDS:
        value = claims.get(name)
        if isinstance(value, str) and value:
            told[name] = value
    picture = claims.get("picture")
    if isinstance(picture, str) and picture.startswith(("https://", "http://")) and usable(picture):
        told["picture"] = picture
    return told


def _refusal(error: AuthServiceError) -> Response:
    answer = flask.jsonify({"error": error.reason.value, "message": error.public})
    answer.status_code = error.status
    if isinstance(error, Refused):
        answer.headers["WWW-Authenticate"] = 'Bearer error="invalid_token"'
    if error.status == 503:
        answer.headers["Retry-After"] = "5"
    return answer
