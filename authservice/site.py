"""The site: finishing a login, logging out, starting one on purpose, and the pages.

`Site` answers the three doors that exist on both ports (callback, login, logout); the blueprint
`site` serves them, the pages, the theme files and the probes on the site port. Protocol is
`authservice.oidc`, storage is `authservice.sessions`; this room only passes values between the two.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast
from urllib.parse import parse_qs, quote

import flask
from flask import Blueprint, Response, request

from authservice.authn.bearer import bearer_credential
from authservice.check import Reach, Reply, RequestParts
from authservice.entrance import NO_STORE, ROUNDS_WINDOW, Entrance, Rounds, short_cookie
from authservice.errors import AuthServiceError, IdentityUnusable, LoginNotOurs, Refused, TooManyLogins
from authservice.gateways import Trust, original_uri
from authservice.identity import AuthMethod, ClaimRules, Identity, IdentityHeaders, from_claims
from authservice.judge import parts_of, response, told_to_log_in
from authservice.logs import Event, request_id
from authservice.navigation import is_navigation
from authservice.oidc.login import Finished, LoginFlow
from authservice.ops import Counts, Metric, Readiness, is_ready
from authservice.pages import Page, Pages
from authservice.same_origin import is_same_origin
from authservice.scrape import CONTENT_TYPE, Ledger
from authservice.sessions import Session
from authservice.sessions.cookies import read_cookies
from authservice.sessions.interface import BrowserSession
from authservice.sessions.live import Sessions
from authservice.urls import ReturnAddresses

log = logging.getLogger(__name__)

METRICS = "/metrics"
"""On the readiness listener only."""
DOOR_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
MOST_LOGINS_AT_ONCE = 10
"""In one process. Each may wait for the provider, and checks need the rest of the threads."""


@dataclass(frozen=True, slots=True)
class SiteRules:
    """What the settings say about the site. Paths and addresses as in the settings of these names."""

    prefix_path: str
    homepage_url: str
    after_logout_url: str
    login_path: str
    auth_header: str
    origin_header_tells: bool
    same_site_strict: bool
    session_max_age: timedelta


class Site:
    """The doors. Each reads the current Flask request and returns its response."""

    def __init__(
        self,
        *,
        flow: LoginFlow,
        entrance: Entrance,
        rounds: Rounds,
        sessions: Sessions,
        revoke: Callable[[str, str], list[str]],
        claim_rules: ClaimRules,
        headers: IdentityHeaders,
        return_addresses: ReturnAddresses,
        trust: Trust,
        secure: Callable[[str | None], bool],
        pages: Pages,
        rules: SiteRules,
        now: Callable[[], datetime],
        counts: Counts | None = None,
    ) -> None:
        self._counts = counts or Counts()
        self._flow = flow
        self._entrance = entrance
        self._rounds = rounds
        self._sessions = sessions
        self._revoke = revoke
        self._claim_rules = claim_rules
        self._headers = headers
        self._return_addresses = return_addresses
        self._trust = trust
        self._secure = secure
        self.pages = pages
        self.rules = rules
        self._now = now
        self._finishing = threading.BoundedSemaphore(MOST_LOGINS_AT_ONCE)

    # --- the callback -------------------------------------------------------------------------

    def callback(self) -> Response:
        """Finishes the login that this browser began (OpenID Connect Core 1.0 §3.1.2.5)."""
        if request.method != "GET":
            return self._method_not_allowed("GET")
        query = request.environ.get("QUERY_STRING", "")
        if not self._finishing.acquire(blocking=False):
            # Refused before anything of the login is used up, so that the same address works again.
            answer = self._refuse_login(TooManyLogins(), query)
            answer.headers["Refresh"] = "2"
            return answer
        try:
            return self._finish(query, read_cookies(request.headers.get("Cookie", "")))
        finally:
            self._finishing.release()

    def _finish(self, query: str, cookies: list[tuple[str, str]]) -> Response:
        try:
            finished = self._flow.finish(query, cookies)
            identity = self._log_in(finished)
        except LoginNotOurs as error:
            address = self._already_logged_in(query, cookies)
            return self._redirect(address) if address else self._refuse_login(error, query)
        except AuthServiceError as error:
            return self._refuse_login(error, query)
        self._counts.add(Metric.LOGINS_FINISHED)
        log.info(Event.LOGGED_IN.value, extra={**request_log_fields(), "issuer": identity.issuer})
        answer = self._land(finished.return_to or self.rules.homepage_url)
        if finished.served_cookie:
            self._drop_cookie(answer, finished.served_cookie)
        self._keep_cookie(answer, self._rounds.cookie_name, self._rounds.one_more(cookies), ROUNDS_WINDOW)
        return answer

    def _log_in(self, finished: Finished) -> Identity:
        """Makes the session. An identity that no check could use later is refused here and now."""
        identity = from_claims(
            finished.claims, self._claim_rules, method=AuthMethod.COOKIE, issuer=finished.claims["iss"]
        )
        self._headers.render(identity)
        now = self._now()
        browser_session().log_in(
            Session(
                user_id=identity.user_id,
                groups=identity.groups,
                claims=dict(finished.claims),
                issuer=identity.issuer,
                subject=finished.claims["sub"],
                provider_sid=finished.provider_sid,
                id_token=finished.id_token,
                access_token=finished.access_token,
                refresh_token=finished.refresh_token,
                access_token_expires=finished.access_token_expires,
                created=now,
                last_seen=now,
                expires=now + self.rules.session_max_age,
            ),
            address=self._trust.client(parts_of(request.environ)) or "",
            user_agent=request.headers.get("User-Agent", ""),
        )
        return identity

    def _already_logged_in(self, query: str, cookies: list[tuple[str, str]]) -> str | None:
        """Where a second callback of somebody who is logged in by now leads (reload, back button,
        a tab whose own pending login had to make room)."""
        address = self._flow.return_address(query, cookies)
        if address is None:
            return None
        try:
            return (address or self.rules.homepage_url) if browser_session().record is not None else None
        except AuthServiceError:
            return None

    def _land(self, address: str) -> Response:
        """On to the return address. A ``SameSite=Strict`` cookie is not sent on a redirect that
        began at the provider, so there a page of our own makes the last step; 201, because
        behind Envoy a 200 would be an allow."""
        if not self.rules.same_site_strict:
            return self._redirect(address)
        return self._page(self.pages.onward(address), 201)

    def _refuse_login(self, error: AuthServiceError, query: str) -> Response:
        fields = request_log_fields()
        status = error.login_status if isinstance(error, IdentityUnusable) else error.status
        self._counts.add(Metric.LOGINS_REFUSED, error.reason.value)
        log.warning(
            Event.LOGIN_REFUSED.value,
            extra={**fields, "status": status, "reason": error.reason, "cause": str(error)},
        )
        answer = self._page(
            self.pages.error(
                status,
                error.public,
                request_id=str(fields["request_id"]),
                way_on_url=self._start_again(query),
                way_on_label="Log in again",
            ),
            status,
        )
        if status == 503:
            answer.headers["Retry-After"] = "5"
        return answer

    def _start_again(self, query: str) -> str:
        """The start of another login, to the same page where the refused one tells it."""
        address = self._flow.return_address(query) if query else None
        return f"{self.rules.login_path}?rd={quote(address, safe='')}" if address else self.rules.login_path

    # --- starting a login ---------------------------------------------------------------------

    def login(self) -> Response:
        """Starts a login on purpose. The return address comes from the gateway's header (nginx's
        ``error_page``) or from ``rd``, and is judged like every other."""
        if request.method not in ("GET", "HEAD"):
            return self._method_not_allowed("GET, HEAD")
        parts = parts_of(request.environ)
        if not is_navigation(request.method, parts.headers):
            return response(told_to_log_in(self.rules.login_path))
        scheme, host = self._trust.scheme(parts), parts.headers.get("host", "").lower()
        try:
            return_to = self._asked_return_address(parts, scheme, host)
            cookie_header = parts.headers.get("cookie", "")
            reply = self._entrance.begin(return_to, cookie_header, scheme, host, Reach.NETWORK)
        except AuthServiceError as error:
            return self._refuse_login(error, "")
        self._counts.add(Metric.LOGINS_BEGUN)
        log.info(Event.LOGIN_BEGUN.value, extra=request_log_fields())
        return response(reply)

    def _asked_return_address(self, parts: RequestParts, scheme: str | None, host: str) -> str:
        headers = parts.headers
        if self.rules.origin_header_tells and ("x-original-uri" in headers or "x-original-url" in headers):
            target, told_scheme, told_host = original_uri(headers)
            return self._return_addresses.for_check(scheme or told_scheme, told_host or host, target)
        asked = parse_qs(request.environ.get("QUERY_STRING", "")).get("rd", [])
        # Given twice, nobody can tell which was meant.
        candidate = asked[0] if len(asked) == 1 else ""
        return self._return_addresses.for_parameter(candidate, scheme, host)

    # --- logout -------------------------------------------------------------------------------

    def logout(self) -> Response:
        """Ends a session: by its bearer value, or by its cookie with same-origin proof.

        The local session ends first and always; revocation at the provider (RFC 7009) follows,
        and what could not be revoked is told, never a reason to stay logged in.
        """
        if request.method != "POST":
            return self._method_not_allowed("POST")
        bearer = self._bearer()
        try:
            ended = self._end_session(bearer)
        except Refused:
            return self._logout_refused()
        except AuthServiceError as error:
            return self._cannot_log_out(error)
        not_revoked = self._revoke(ended.refresh_token, ended.access_token) if ended else []
        answer = self._logged_out(not_revoked, page=bearer is None and _wants_page())
        self._drop_cookie(answer, self._rounds.cookie_name)
        self._counts.add(Metric.LOGOUTS)
        log.info(Event.LOGGED_OUT.value, extra=request_log_fields())
        return answer

    def _bearer(self) -> str | None:
        """The session's value in ``AUTH_HEADER``; empty when the header cannot be understood."""
        header = self.rules.auth_header.lower()
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
        if not self._proves_own_origin():
            raise Refused("a cookie without same-origin proof")
        ended = browser_session().log_out()
        if ended is None and not _wants_page():
            raise Refused("no session of this cookie")
        return ended

    def _proves_own_origin(self) -> bool:
        parts = parts_of(request.environ)
        return is_same_origin(parts.headers, self._trust.scheme(parts))

    def _logged_out(self, not_revoked: list[str], *, page: bool) -> Response:
        if not_revoked:
            log.warning(Event.NOT_REVOKED.value, extra={**request_log_fields(), "tokens": not_revoked})
        if page:
            return self._leave(self.rules.after_logout_url)
        body: dict[str, object] = {"afterLogoutURL": self.rules.after_logout_url}
        if not_revoked:
            body["notRevoked"] = not_revoked
        answer = flask.jsonify(body)
        # 201, as the original: behind Envoy a 200 would let the request through to the application.
        answer.status_code = 201
        answer.headers.update([NO_STORE])
        return answer

    def _leave(self, address: str) -> Response:
        """On to the after-logout address. A page of ours that a form's redirect leads to is the
        end of it; elsewhere a further redirect may follow, even to another origin, and browsers
        hold that against the form's own ``form-action`` (CSP3 §6.4.1): there a page leads on."""
        if address.startswith(self.rules.prefix_path + "/"):
            return self._redirect(address, status=303)
        return self._page(self.pages.onward(address, heading="You are logged out"), 201)

    def _cannot_log_out(self, error: AuthServiceError) -> Response:
        """The store did not answer: the session may still be there, so nobody is told otherwise."""
        log.warning(Event.LOGOUT_REFUSED.value, extra={**request_log_fields(), "reason": error.reason})
        answer = Response(error.public, status=error.status, content_type="text/plain; charset=utf-8")
        answer.headers.update([NO_STORE, ("Retry-After", "5")])
        return answer

    def _logout_refused(self) -> Response:
        log.info(Event.LOGOUT_REFUSED.value, extra=request_log_fields())
        return Response(status=401, headers=[NO_STORE, ("WWW-Authenticate", "Bearer")])

    # --- answers ------------------------------------------------------------------------------

    def error_page(self, status: int, sentence: str) -> Response:
        """A page for what no door answers."""
        page = self.pages.error(
            status,
            sentence,
            request_id=str(request_log_fields()["request_id"]),
            way_on_url=self.rules.homepage_url,
            way_on_label="Go to the start page",
        )
        return self._page(page, status)

    def _method_not_allowed(self, allow: str) -> Response:
        answer = self.error_page(405, "This address does not take this kind of request.")
        answer.headers["Allow"] = allow
        return answer

    @staticmethod
    def _page(page: Page, status: int) -> Response:
        answer = Response(page.body, status=status)
        answer.headers.clear()
        answer.headers.extend(page.headers)
        return answer

    @staticmethod
    def _redirect(address: str, status: int = 302) -> Response:
        return response(Reply(status, (("Location", address), NO_STORE)))

    def _keep_cookie(self, answer: Response, name: str, value: str, lifetime: timedelta) -> None:
        secure = self._secure(self._trust.scheme(parts_of(request.environ)))
        answer.headers.add("Set-Cookie", short_cookie(name, value, lifetime, secure))

    def _drop_cookie(self, answer: Response, name: str) -> None:
        self._keep_cookie(answer, name, "", timedelta(0))


def blueprint(site: Site, readiness: Readiness, paths: Mapping[str, str], prefix: str, subdomain: str) -> Blueprint:
    """The blueprint `site`. ``paths`` maps ``callback``, ``login`` and ``logout`` to their paths;
    the pages answer with and without the service's own ``prefix``."""
    serving = Blueprint("site", __name__, subdomain=subdomain)
    for name, door in (("callback", site.callback), ("login", site.login), ("logout", site.logout)):
        serving.add_url_rule(paths[name], name, door, methods=DOOR_METHODS, provide_automatic_options=False)
    for index, base in enumerate(dict.fromkeys(("", prefix))):
        serving.add_url_rule(f"{base}/site/homepage", f"homepage{index}", _page_view(site, site.pages.homepage))
        serving.add_url_rule(f"{base}/site/after_logout", f"after_logout{index}",
                             _page_view(site, site.pages.after_logout))
        serving.add_url_rule(f"{base}/site/themes/<path:name>", f"theme{index}", _theme_view(site))
    serving.add_url_rule("/healthz", "healthz", lambda: Response("alive\n", content_type="text/plain"))
    serving.add_url_rule("/readyz", "readyz", lambda: _readyz(readiness))
    return serving


def probe_blueprint(readiness: Readiness, ledger: Ledger, subdomain: str) -> Blueprint:
    """The original's readiness listener: any path (routed to ``/``), 200 or 503, no body. Only
    `METRICS` is another: this listener is for those who run the service, as the numbers are."""
    probing = Blueprint("probe", __name__, subdomain=subdomain)

    def probe() -> Response:
        return Response(status=200 if is_ready(readiness.report()) else 503)

    probing.add_url_rule("/", "any", probe, methods=DOOR_METHODS)
    probing.add_url_rule(METRICS, "metrics", lambda: Response(ledger.text(), content_type=CONTENT_TYPE))
    return probing


def _page_view(site: Site, render: Callable[[], Page]) -> Callable[[], Response]:
    return lambda: site._page(render(), 200)


def _theme_view(site: Site) -> Callable[[str], Response]:
    def theme(name: str) -> Response:
        found = site.pages.theme_file(name)
        if found is None:
            return site.error_page(404, "There is nothing at this address.")
        answer = Response(found.body)
        answer.headers.clear()
        answer.headers.extend(found.headers)
        answer.make_conditional(request)
        return answer

    return theme


def _readyz(readiness: Readiness) -> Response:
    report = readiness.report()
    answer = flask.jsonify(report)
    answer.status_code = 200 if is_ready(report) else 503
    answer.headers.update([NO_STORE])
    return answer


def browser_session() -> BrowserSession:
    """``flask.session`` under its own type."""
    return cast(BrowserSession, flask.session)


def _wants_page() -> bool:
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
