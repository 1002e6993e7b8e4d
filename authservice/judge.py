"""The judge: a gateway's check in, its answer out.

`Judge.answer` reads a request in its gateway's dialect, asks the pipeline, and spells the decision
as a `Reply`; it records what it answered, once. The blueprint `judge` serves it for any path and
any method. What the service does besides judging (callback, logout, login) is behind `doors`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from flask import Blueprint, Response, request
from flask.blueprints import BlueprintSetupState
from werkzeug.datastructures import Headers
from werkzeug.routing import Rule

from authservice.check import Allow, CheckRequest, Deny, Login, Reach, Remark, Reply, RequestParts
from authservice.entrance import NO_STORE, Entrance, origin
from authservice.errors import AuthServiceError, Misdirected, NotSent, Reason
from authservice.gateways import PASSES_ANSWERS_ON, Dialect, Gateways, Place, Style
from authservice.identity import AuthMethod
from authservice.logs import Event, request_fields, request_id
from authservice.navigation import is_navigation
from authservice.ops import OPEN, POLICY_OUTCOMES, Counts, Metric
from authservice.pages import Page, Pages
from authservice.pipeline import Pipeline
from authservice.wiring import Wiring

log = logging.getLogger(__name__)

CHALLENGE = "Bearer"
"""The challenge when no credential came at all: no error code (RFC 6750 §3.1)."""

NOT_READY_TEXT = b"OIDC Setup is not complete yet."
REMOVE = "x-envoy-auth-headers-to-remove"
RETRY_AFTER = ("Retry-After", "5")


class Judge:
    """Answers checks. ``login_path`` and ``logout_path`` are the service's own, for its pages. What
    is let pass is logged only with ``log_allowed``. ``wiring`` is shown every check that was answered."""

    def __init__(
        self,
        gateways: Gateways,
        pipeline: Pipeline,
        entrance: Entrance,
        pages: Pages,
        *,
        login_path: str,
        logout_path: str,
        homepage_url: str,
        counts: Counts | None = None,
        log_allowed: bool = False,
        wiring: Wiring | None = None,
    ) -> None:
        self.gateways = gateways
        self._pipeline = pipeline
        self._entrance = entrance
        self._pages = pages
        self._login_path = login_path
        self._logout_path = logout_path
        self._homepage_url = homepage_url
        self._counts = counts or Counts()
        self._count_allowed: dict[str, Callable[[], object]] = {
            OPEN: self._counts.adder(Metric.ALLOWED, OPEN),
            **{method: self._counts.adder(Metric.ALLOWED, method.value) for method in AuthMethod},
        }
        self._count_remark = {word: self._counts.adder(Metric.POLICY_VERDICTS, word) for word in POLICY_OUTCOMES}
        self._log_allowed = log_allowed
        self._wiring = wiring
        self._made_for_nobody: dict[object, Any] = {}

    def answer(self, parts: RequestParts, reach: Reach = Reach.NETWORK, place: Place | None = None) -> Reply:
        """The answer to one check. ``place`` is that of its target, for who has it already.

        Under `Reach.MEMORY` raises `check.NeedsIO`, with nothing recorded, when it cannot be
        given without waiting.
        """
        try:
            dialect = place.dialect if place is not None else None
            if dialect is None:
                dialect = self.gateways.dialect(parts)
            check = dialect.read(parts)
        except Misdirected as error:
            return self._misdirected(parts, error)
        decision = self._pipeline.decide(check, reach)
        if isinstance(decision, Allow):
            reply = self._allowed(decision, dialect, check, parts)
        else:
            reply = self._not_allowed(decision, dialect, check, parts, reach)
        if self._wiring is not None:
            self._wiring.look(check)
        return reply

    def _not_allowed(
        self, decision: Login | Deny, dialect: Dialect, check: CheckRequest, parts: RequestParts, reach: Reach
    ) -> Reply:
        identifier = _request_id(parts)
        match decision:
            case Login() as login if login.redirect and dialect.style.redirects:
                return self._sent_to_log_in(login, check, identifier, reach)
            case Login() as login:
                return self._told_to_log_in(login, check, identifier)
            case Deny() as deny:
                return self._denied(deny, check, identifier)

    def _allowed(self, allow: Allow, dialect: Dialect, check: CheckRequest, parts: RequestParts) -> Reply:
        """Looked up, once it was made for this identity and dialect."""
        identity = allow.identity
        if identity is None:
            method, made = OPEN, self._made_for_nobody
        else:
            method, made = identity.method, identity.made
        if allow.variant is not None:
            made = allow.variant.made
        reply = made.get(dialect)
        if reply is None:
            reply = made[dialect] = allowed(allow, dialect.style, dialect.name)
        self._count_allowed[method]()
        told = self._counted(allow.remarks) if allow.remarks else []
        if told or self._log_allowed:
            identifier = _request_id(parts)
            self._tell(told, check, identifier)
            if self._log_allowed:
                self._record(check, identifier, Event.ALLOWED, auth_method=method)
        return reply

    def _sent_to_log_in(self, login: Login, check: CheckRequest, identifier: str, reach: Reach) -> Reply:
        try:
            reply = self._entrance.begin(
                login.return_to, check.header("cookie"), check.scheme, check.host, reach
            )
        except AuthServiceError as error:
            deny = Deny(error.status, error.reason, error.public, cause=str(error))
            return self._denied(deny, check, identifier)
        self._counts.add(Metric.LOGINS_BEGUN)
        self._record(check, identifier, Event.LOGIN_BEGUN)
        return reply

    def _told_to_log_in(self, login: Login, check: CheckRequest, identifier: str) -> Reply:
        self._counts.add(Metric.DENIED, Reason.NOT_AUTHENTICATED.value)
        self._record(check, identifier, Event.DENIED, status=401, reason=Reason.NOT_AUTHENTICATED)
        start = origin(check.scheme, check.host) + self._login_path
        with_page = ("X-Login-URL", f"{start}?rd={quote(login.return_to, safe='')}")
        return told_to_log_in(start, with_page)

    def _denied(self, deny: Deny, check: CheckRequest, identifier: str) -> Reply:
        self._counts.add(Metric.DENIED, deny.reason.value)
        self._tell(self._counted(deny.remarks), check, identifier)
        self._record(check, identifier, Event.DENIED, status=deny.status, reason=deny.reason, cause=deny.cause)
        extra: tuple[tuple[str, str], ...] = ()
        if deny.challenge:
            extra += (("WWW-Authenticate", deny.challenge),)
        if deny.status == 503:
            text = NOT_READY_TEXT if deny.reason is Reason.NOT_READY else deny.public.encode()
            return Reply(503, (("Content-Type", "text/plain; charset=utf-8"), NO_STORE, RETRY_AFTER), text)
        if deny.status == 401 or not is_navigation(check.method, check.headers):
            return _json(deny.status, {"error": deny.reason.value, "message": deny.public}, extra)
        page = self._denial_page(deny, identifier)
        return Reply(deny.status, (*page.headers, *extra), page.body)

    def _counted(self, remarks: Sequence[Remark]) -> list[Remark]:
        """Counts them, and gives those that are to be logged."""
        for remark in remarks:
            self._count_remark[remark.outcome]()
        return [remark for remark in remarks if remark.cause]

    def _tell(self, remarks: Sequence[Remark], check: CheckRequest, identifier: str) -> None:
        for remark in remarks:
            event = Event.POLICY_AUDIT if remark.outcome == "audit" else Event.POLICY_TRIAL
            self._record(check, identifier, event, outcome=remark.outcome, cause=remark.cause)

    def _denial_page(self, deny: Deny, identifier: str) -> Page:
        if deny.identity is None:
            return self._pages.error(
                deny.status,
                deny.public,
                request_id=identifier,
                way_on_url=self._homepage_url,
                way_on_label="Go to the start page",
            )
        return self._pages.denied(
            user_id=deny.identity.user_id,
            groups=deny.detail,
            sentence=deny.public,
            logout_url=self._logout_path,
            home_url=self._homepage_url,
            request_id=identifier,
        )

    def _misdirected(self, parts: RequestParts, error: Misdirected) -> Reply:
        if isinstance(error, NotSent) and self._wiring is not None:
            self._wiring.not_understood()
        self._counts.add(Metric.DENIED, error.reason.value)
        log.warning(
            Event.DENIED.value,
            extra={
                "request_id": _request_id(parts), "status": error.status, "reason": error.reason, "cause": str(error),
            },
        )
        return _json(error.status, {"error": error.reason.value, "message": error.public})

    @staticmethod
    def _record(check: CheckRequest, identifier: str, event: Event, **fields: object) -> None:
        if log.isEnabledFor(logging.INFO):
            log.info(event.value, extra={**request_fields(check, identifier), **fields})


def _request_id(parts: RequestParts) -> str:
    """Needed only where something is recorded or shown: a new one costs more than an allowed check."""
    return request_id(parts.headers.get("x-request-id", ""))


def allowed(allow: Allow, style: Style, dialect: str) -> Reply:
    """The answer that lets a request pass: identity headers and nothing else, not even a type.

    Every identity header that the client might have sent itself is neutralised. Envoy is told to
    remove it; Traefik and Caddy copy an empty one over it; in front of nginx the configuration
    sets each header from this answer, and an absent one is removed.
    """
    headers = allow.set_headers
    if allow.remove_headers and style is PASSES_ANSWERS_ON:
        # Always: with several dialects chosen, Envoy may be the one that asks on any path.
        headers += (_removal(allow.remove_headers),)
        if dialect != "envoy":
            headers += tuple((name, "") for name in dict.fromkeys(map(str.lower, _emptied(allow))))
    return Reply(style.allow_status, headers)


def _emptied(allow: Allow) -> tuple[str, ...]:
    """What is to reach the application as nothing. Where identity headers are set, their other spellings are
    left to gateways that remove."""
    return allow.unset() if allow.variant is None else allow.variant.emptied


@lru_cache(maxsize=256)
def _removal(names: tuple[str, ...]) -> tuple[str, str]:
    """One header for everybody: the names come from the settings and policies, and thousands of replies
    are kept."""
    return REMOVE, ",".join(names)


def told_to_log_in(login_url: str, *extra: tuple[str, str]) -> Reply:
    """The 401 for whoever cannot be redirected: a challenge, and where a login would start."""
    body = {"error": Reason.NOT_AUTHENTICATED.value, "login_url": login_url}
    return _json(401, body, (("WWW-Authenticate", CHALLENGE), *extra))


def _json(status: int, body: Mapping[str, str], extra: tuple[tuple[str, str], ...] = ()) -> Reply:
    headers = (("Content-Type", "application/json"), NO_STORE, *extra)
    return Reply(status, headers, json.dumps(body).encode() + b"\n")


def parts_of(environ: Mapping[str, Any]) -> RequestParts:
    """The request as it arrived, out of a WSGI environ (PEP 3333).

    ``RAW_URI`` (gunicorn) or ``REQUEST_URI`` (others) is the target as sent; ``PATH_INFO`` is
    decoded and therefore useless for judging.
    """
    headers = {
        name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name.startswith("HTTP_")
    }
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(name):
            headers[name.replace("_", "-").lower()] = environ[name]
    return RequestParts(
        method=environ["REQUEST_METHOD"],
        target=environ.get("RAW_URI") or environ.get("REQUEST_URI"),
        headers=headers,
        peer=environ.get("REMOTE_ADDR") or None,
    )


class ExactResponse(Response):
    """A response whose ``Location`` leaves as it was given. Werkzeug writes it anew (``?q=[1]``
    becomes ``?q=%5B1%5D``) and fails where it cannot read it, and a deep link must come back byte
    for byte."""

    def get_wsgi_headers(self, environ: dict[str, Any]) -> Headers:
        location = self.headers.pop("Location", None)
        headers = super().get_wsgi_headers(environ)
        if location is not None:
            self.headers["Location"] = headers["Location"] = location
        return headers


def response(reply: Reply) -> Response:
    """A reply as Flask's response: its headers and no others (a bare allow has no type)."""
    flask_response = ExactResponse(reply.body, status=reply.status)
    flask_response.headers.clear()
    for name, value in reply.lines:
        flask_response.headers.add(name, value)
    return flask_response


def blueprint(judge: Judge, doors: Mapping[str, Callable[[], Response]], subdomain: str) -> Blueprint:
    """The blueprint `judge`: any method, never a redirect or an error of the framework. On its port
    the application routes every path to ``/``; the target as sent is read here."""
    judging = Blueprint("judge", __name__)

    def every() -> Response:
        parts = parts_of(request.environ)
        door = judge.gateways.place(parts.target or "").door
        return doors[door]() if door else response(judge.answer(parts))

    def serve_every_method(state: BlueprintSetupState) -> None:
        # Flask's own routes have a closed list of methods; a bare rule takes any.
        state.app.view_functions["judge.every"] = every
        state.app.url_map.add(Rule("/", endpoint="judge.every", methods=None, subdomain=subdomain))

    judging.record(serve_every_method)
    return judging
