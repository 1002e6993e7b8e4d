"""The site: finishing a login, starting one on purpose, and the pages.

`Site` answers two of the doors that exist on both ports (callback, login; the third is
`authservice.logout`); the blueprint `site` serves all doors, the pages, the theme files and the probes
on the site port. Protocol is `authservice.oidc`, storage is `authservice.sessions`; this room only
passes values between the two.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import parse_qs, quote

import flask
from flask import Blueprint, Response, request

from authservice.browsers import DOOR_METHODS, Browsers, browser_session, page, redirect, request_log_fields
from authservice.check import Reach, RequestParts
from authservice.entrance import NO_STORE, ROUNDS_WINDOW, Entrance, Rounds
from authservice.errors import AuthServiceError, IdentityUnusable, LoginNotOurs, TooManyLogins
from authservice.gateways import original_uri
from authservice.identity import AuthMethod, ClaimRules, Identity, IdentityHeaders, from_claims
from authservice.judge import parts_of, response, told_to_log_in
from authservice.logs import Event
from authservice.navigation import is_navigation
from authservice.oidc.login import Finished, LoginFlow
from authservice.ops import Counts, Metric, Readiness, is_ready
from authservice.pages import Page, Pages
from authservice.scrape import CONTENT_TYPE, Ledger
from authservice.sessions import Session
from authservice.sessions.cookies import read_cookies
from authservice.trust import Trust
from authservice.upstream import on_trial
from authservice.urls import ReturnAddresses

log = logging.getLogger(__name__)

METRICS = "/metrics"
"""On the readiness listener only."""
MOST_LOGINS_AT_ONCE = 10
"""In one process. Each may wait for the provider, and checks need the rest of the threads."""


@dataclass(frozen=True, slots=True)
class SiteRules:
    """What the settings say about the site. Paths and addresses as in the settings of these names."""

    homepage_url: str
    login_path: str
    origin_header_tells: bool
    same_site_strict: bool
    session_max_age: timedelta
    redirect_header: str = ""
    """A further header that may tell the return address, by its name in lower case."""


class Site:
    """The doors of a login. Each reads the current Flask request and returns its response."""

    def __init__(
        self,
        *,
        flow: LoginFlow,
        entrance: Entrance,
        rounds: Rounds,
        claim_rules: ClaimRules,
        headers: IdentityHeaders,
        return_addresses: ReturnAddresses,
        trust: Trust,
        browsers: Browsers,
        pages: Pages,
        rules: SiteRules,
        now: Callable[[], datetime],
        counts: Counts | None = None,
        logged_in: Callable[[int], object] = lambda before: None,
    ) -> None:
        self._counts = counts or Counts()
        self._logged_in = logged_in
        self._flow = flow
        self._entrance = entrance
        self._rounds = rounds
        self._claim_rules = claim_rules
        self._headers = headers
        self._return_addresses = return_addresses
        self._trust = trust
        self._browsers = browsers
        self.pages = pages
        self.rules = rules
        self._now = now
        self._finishing = threading.BoundedSemaphore(MOST_LOGINS_AT_ONCE)

    # --- the callback -------------------------------------------------------------------------

    def callback(self) -> Response:
        """Finishes the login that this browser began (OpenID Connect Core 1.0 §3.1.2.5)."""
        if request.method != "GET":
            return self._browsers.method_not_allowed("GET")
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
            return redirect(address) if address else self._refuse_login(error, query)
        except AuthServiceError as error:
            return self._refuse_login(error, query)
        self._counts.add(Metric.LOGINS_FINISHED)
        log.info(Event.LOGGED_IN.value, extra={**request_log_fields(), "issuer": identity.issuer})
        answer = self._land(finished.return_to or self.rules.homepage_url)
        if finished.served_cookie:
            self._browsers.drop_cookie(answer, finished.served_cookie)
        rounds = self._rounds
        self._logged_in(rounds.count(cookies))
        self._browsers.keep_cookie(answer, rounds.cookie_name, rounds.one_more(cookies), ROUNDS_WINDOW)
        return answer

    def _log_in(self, finished: Finished) -> Identity:
        """Makes the session. An identity that no check could use later is refused here and now."""
        identity = from_claims(
            finished.claims, self._claim_rules, method=AuthMethod.COOKIE, issuer=finished.claims["iss"]
        )
        on_trial(identity, finished)
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
            bore=finished.bore,
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
            return redirect(address)
        return page(self.pages.onward(address), 201)

    def _refuse_login(self, error: AuthServiceError, query: str) -> Response:
        fields = request_log_fields()
        status = error.login_status if isinstance(error, IdentityUnusable) else error.status
        self._counts.add(Metric.LOGINS_REFUSED, error.reason.value)
        log.warning(
            Event.LOGIN_REFUSED.value,
            extra={**fields, "status": status, "reason": error.reason, "cause": str(error)},
        )
        answer = page(
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
            return self._browsers.method_not_allowed("GET, HEAD")
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
        if not asked and self.rules.redirect_header:
            candidate = headers.get(self.rules.redirect_header, "")
        return self._return_addresses.for_parameter(candidate, scheme, host)


def blueprint(
    pages: Pages,
    browsers: Browsers,
    readiness: Readiness,
    doors: Mapping[str, Callable[[], Response]],
    prefix: str,
    subdomain: str,
) -> Blueprint:
    """The blueprint `site`. ``doors`` are views by their paths; the pages answer with and without the
    service's own ``prefix``."""
    serving = Blueprint("site", __name__, subdomain=subdomain)
    for index, (path, door) in enumerate(doors.items()):
        serving.add_url_rule(path, f"door{index}", door, methods=DOOR_METHODS, provide_automatic_options=False)
    for index, base in enumerate(dict.fromkeys(("", prefix))):
        serving.add_url_rule(f"{base}/site/homepage", f"homepage{index}", _page_view(pages.homepage))
        serving.add_url_rule(f"{base}/site/after_logout", f"after_logout{index}", _page_view(pages.after_logout))
        serving.add_url_rule(f"{base}/site/themes/<path:name>", f"theme{index}", _theme_view(pages, browsers))
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


def _page_view(render: Callable[[], Page]) -> Callable[[], Response]:
    return lambda: page(render(), 200)


def _theme_view(pages: Pages, browsers: Browsers) -> Callable[[str], Response]:
    def theme(name: str) -> Response:
        found = pages.theme_file(name)
        if found is None:
            return browsers.error_page(404, "There is nothing at this address.")
        answer = Response(found.body)
        answer.headers.clear()
        answer.headers.extend(found.headers)
        answer.make_conditional(request)
        return answer

    return theme


def _readyz(readiness: Readiness) -> Response:
    report = readiness.report()
    answer = flask.jsonify({**report, **readiness.notes()})
    answer.status_code = 200 if is_ready(report) else 503
    answer.headers.update([NO_STORE])
    return answer
