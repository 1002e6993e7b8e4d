"""The browser in front of a door: what its request proves, and how it is answered.

What the callback, the logout and the pages about sessions have in common: pages, redirects and
refusals of the current Flask request, the short cookies beside the session's, and the origin under
which a person sees us. Decides nothing about logins and sessions; called by the doors.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import cast

import flask
from flask import Response, request

from authservice.check import Reply
from authservice.entrance import NO_STORE, origin, short_cookie
from authservice.judge import parts_of, response
from authservice.logs import request_id
from authservice.pages import Page, Pages
from authservice.same_origin import is_same_origin
from authservice.sessions.interface import BrowserSession
from authservice.trust import Trust

DOOR_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""What a door is asked with. Each says itself which of them it takes."""


class Browsers:
    """Answers browsers. ``secure`` says for an outside scheme whether cookies carry ``Secure``."""

    def __init__(
        self, *, pages: Pages, trust: Trust, secure: Callable[[str | None], bool], homepage_url: str
    ) -> None:
        self._pages = pages
        self._trust = trust
        self._secure = secure
        self._homepage_url = homepage_url

    # --- what the request tells ---------------------------------------------------------------

    def scheme(self) -> str | None:
        """``"http"`` or ``"https"`` as the person sees it, where that is known."""
        return self._trust.scheme(parts_of(request.environ))

    def origin(self) -> str:
        """Where the person sees us, as ``scheme://host``; empty when that is not known for sure."""
        return origin(self.scheme(), request.headers.get("Host", "").lower())

    def proves_own_origin(self) -> bool:
        """Whether the browser itself says that a page of this very origin asks."""
        return is_same_origin(parts_of(request.environ).headers, self.scheme())

    # --- answers ------------------------------------------------------------------------------

    def error_page(self, status: int, sentence: str) -> Response:
        """A page for what no door answers."""
        made = self._pages.error(
            status,
            sentence,
            request_id=str(request_log_fields()["request_id"]),
            way_on_url=self._homepage_url,
            way_on_label="Go to the start page",
        )
        return page(made, status)

    def method_not_allowed(self, allow: str) -> Response:
        """405, with the methods that would do."""
        answer = self.error_page(405, "This address does not take this kind of request.")
        answer.headers["Allow"] = allow
        return answer

    def keep_cookie(self, answer: Response, name: str, value: str, lifetime: timedelta) -> None:
        """Lets the browser keep a short cookie of this host only."""
        answer.headers.add("Set-Cookie", short_cookie(name, value, lifetime, self._secure(self.scheme())))

    def drop_cookie(self, answer: Response, name: str) -> None:
        """Takes such a cookie away."""
        self.keep_cookie(answer, name, "", timedelta(0))


def page(made: Page, status: int) -> Response:
    """A page with its own headers and no others."""
    answer = Response(made.body, status=status)
    answer.headers.clear()
    answer.headers.extend(made.headers)
    return answer


def redirect(address: str, status: int = 302) -> Response:
    """On to an address, byte for byte."""
    return response(Reply(status, (("Location", address), NO_STORE)))


def browser_session() -> BrowserSession:
    """``flask.session`` under its own type."""
    return cast(BrowserSession, flask.session)


def wants_page() -> bool:
    """Whether a person's browser submitted a form, rather than a program or a script calling."""
    mode = request.headers.get("Sec-Fetch-Mode")
    if mode is not None:
        return mode == "navigate"
    return "text/html" in request.headers.get("Accept", "")


def request_log_fields() -> dict[str, object]:
    """What a log line tells about the current request. One id per request."""
    if "request_id" not in flask.g:
        flask.g.request_id = request_id(request.headers.get("X-Request-Id", ""))
    return {"request_id": flask.g.request_id, "method": request.method, "path": request.path[:512]}
