"""What a browser and a program meet at the gateway, from the outside in.

Asks for a page that does not exist, as somebody who is not logged in: once as a program, once as a browser
with a cookie that is worth nothing, once with a token that is worth nothing. What comes back tells whether
the gateway asks the service at all, and what of the request it passes on; no answer lets anybody in.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import parse_qs, urlsplit

from authservice.doctor.certificates import certificate
from authservice.doctor.findings import Finding, Part, bad, good, odd, skipped
from authservice.doctor.redirects import leads_to
from authservice.errors import Reason
from authservice.judge import CHALLENGE
from authservice.oidc.pending import PendingLogins, State
from authservice.ops import Sent
from authservice.outbound import Http, OutboundFault, Response
from authservice.sessions.seal import Keyring, new_secret
from authservice.settings import Settings
from authservice.strictjson import BadJson
from authservice.wiring import NAMES, WITHOUT, lines, marked_path

PAGE = {"Accept": "text/html,application/xhtml+xml"}
PROGRAM = {"Accept": "application/json"}
_LIMIT = timedelta(seconds=10)
_SAYS_WHERE = "authservice doctor --url https://app.example"


def examine(settings: Settings, now: Callable[[], datetime], url: str = "") -> Iterator[Finding]:
    """The gateway in front of a page, which is ``url`` or the origin that the settings name."""
    if not url and settings.outside_scheme is not None:
        url = f"{settings.outside_scheme}://{settings.outside_host}"
    if not url:
        yield skipped(
            Part.GATEWAY, "Nothing tells where browsers find the gateway.", f"Name it: {_SAYS_WHERE}"
        )
        return
    page = _page(url)
    if page is None:
        # Not quoted: it may hold somebody's password.
        yield bad(
            Part.GATEWAY,
            "The address given with --url is none of a page.",
            f"Name one with http or https, and without a user: {_SAYS_WHERE}",
        )
        return
    try:
        # An authority of the provider's may be the gateway's as well.
        http = Http(settings.ca_bundle, _LIMIT)
    except OSError:  # told among the settings
        yield skipped(Part.GATEWAY, "It is not asked before CA_BUNDLE can be read.")
        return
    yield from _Outside(settings, now, http, *page).examine()


def _page(url: str) -> tuple[str, str] | None:
    """Origin and path of a page's address."""
    try:
        parts = urlsplit(url)
        named = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return None
    if not named or "@" in parts.netloc:
        return None
    return f"{parts.scheme}://{parts.netloc.lower()}", parts.path.rstrip("/")


@dataclass(frozen=True, slots=True)
class _Outside:
    """One gateway, below one path."""

    settings: Settings
    now: Callable[[], datetime]
    http: Http
    origin: str
    base: str

    def examine(self) -> Iterator[Finding]:
        if self.origin.startswith("https:"):
            yield from certificate(self.http, self.origin, self.now)
        try:
            asked = yield from self._asks()
            if asked is not None:
                yield from self._wiring(asked)
            yield from self._callback()
            yield from self._pages()
        except OutboundFault as fault:
            yield bad(
                Part.GATEWAY,
                f"The gateway does not answer: {_without_address(fault)}.",
                f"See that {self.origin} can be reached from here, and that the gateway runs.",
            )

    # --- whether it asks ----------------------------------------------------------------------

    def _asks(self) -> Generator[Finding, None, list[Sent] | None]:
        """As a program of nobody. Gives what was seen to be passed on, or ``None`` where a login is no
        question."""
        answer = self.http.get(self.origin + self._target(Sent.ACCEPT), PROGRAM)
        told = _told_reason(answer)
        redirected = self._state(answer) is not None
        refused = answer.status == 401 and _is_ours(answer)
        if refused or redirected or self._signs_in(answer) or told == Reason.POLICY.value:
            yield good(Part.GATEWAY, f"{self.origin} asks AuthService, which lets nobody in without a login.")
            if told == Reason.POLICY.value:
                return None
            if self.settings.unauthenticated_response != "auto" or self._signs_in(answer):
                return []
            if refused:
                return [Sent.ACCEPT]
            yield self._lacks(Sent.ACCEPT)
            return []
        if answer.status == 401:
            yield odd(
                Part.GATEWAY,
                "Somebody who is not logged in gets status 401, without a word of AuthService.",
                "See by AuthService's log (`check_denied`) whether it was asked at all: the application may say so "
                "itself, behind a gateway that asks nobody.",
            )
            return []
        yield self._not_understood() if told == Reason.MISCONFIGURED.value else self._does_not_ask(answer)
        return None

    def _not_understood(self) -> Finding:
        chosen = ", ".join(self.settings.gateway)
        return bad(
            Part.WIRING,
            "AuthService is asked, but cannot tell which address a check is about.",
            f"See that GATEWAY ({chosen}) names the gateway that asks, and what the log says "
            "(`gateway_misconfigured`). "
            + lines(Sent.ORIGINAL_URL, self.settings.gateway, self.settings.prefix_path),
        )

    def _does_not_ask(self, answer: Response) -> Finding:
        port = self.settings.server_port
        status = answer.status
        if status >= 500:
            return bad(
                Part.GATEWAY,
                f"The gateway answers a check with status {status}: AuthService does not answer it, or is "
                "not ready.",
                f"See that AuthService runs, that /readyz on port {self.settings.web_server_port} says ok, "
                "that the gateway "
                f"reaches it on port {port}, and that GATEWAY ({', '.join(self.settings.gateway)}) is the "
                "gateway's dialect.",
            )
        if status == 403:
            return bad(
                Part.GATEWAY,
                "The gateway refuses everybody, without a word of AuthService.",
                f"See that the gateway reaches AuthService on port {port}, what AuthService's log says of "
                "the check "
                f"(`check_denied`), and that GATEWAY ({', '.join(self.settings.gateway)}) is the gateway's "
                "dialect.",
            )
        where, here = leads_to(answer), urlsplit(self.origin)
        if where.scheme in ("http", "https") and where.scheme != here.scheme and where.hostname == here.hostname:
            return bad(
                Part.GATEWAY,
                f"{self.origin} only leads to {where.scheme}://{where.netloc}.",
                f"Name that one: authservice doctor --url {where.scheme}://{where.netloc}{self.base}",
            )
        return bad(
            Part.GATEWAY,
            f"Somebody who is not logged in gets status {status}: the gateway does not ask AuthService.",
            f"Put the check in front of the application, on port {port} of AuthService, as in deploy/; "
            "where this very path "
            "is meant to be open (SKIP_AUTH_URLS, policies), name another one: "
            f"{_SAYS_WHERE}/a/protected/path",
        )

    # --- what it passes on --------------------------------------------------------------------

    def _wiring(self, seen: list[Sent]) -> Iterator[Finding]:
        """As a browser with a worthless cookie, and as a program with a worthless token."""
        if self.settings.unauthenticated_response == "401":
            yield skipped(
                Part.WIRING, "UNAUTHENTICATED_RESPONSE=401: no redirect tells what the gateway passes on."
            )
        else:
            for sent, finding in self._as_browser():
                if finding is None:
                    seen.append(sent)
                else:
                    yield finding
        if self.settings.idtoken_authn_enabled:
            finding = self._as_somebody_with_a_token()
            if finding is None:
                seen.append(Sent.AUTHORIZATION)
            else:
                yield finding
        if seen:
            yield good(Part.WIRING, f"The gateway passes on: {', '.join(NAMES[sent] for sent in seen)}.")

    def _as_browser(self) -> Iterator[tuple[Sent, Finding | None]]:
        target = self._target(Sent.ACCEPT, Sent.COOKIE)
        cookie = f"{self.settings.session_cookie_name}={new_secret()}"
        answer = self.http.get(self.origin + target, {**PAGE, "Cookie": cookie})
        signs_in = self._signs_in(answer)
        if signs_in:
            answer = self.http.get(signs_in, PAGE)
        state = self._state(answer)
        if state is None:
            yield Sent.ORIGINAL_URL, self._no_login(answer)
            return
        if not signs_in:  # else the check's own answer, which tells it, went no further than the gateway
            taken_away = rf"(^|,\s*){re.escape(self.settings.session_cookie_name)}=;"
            came = re.search(taken_away, answer.headers.get("set-cookie", "")) is not None
            yield Sent.COOKIE, None if came else self._lacks(Sent.COOKIE)
        yield from self._where_back(state.return_to, target)

    def _no_login(self, answer: Response) -> Finding:
        if "state" in parse_qs(leads_to(answer).query):
            return bad(
                Part.WIRING,
                "The login was begun by a service with other keys than those of these settings.",
                "Run the doctor with the service's own environment; give all replicas the same SECRET_KEYS "
                "(or CLIENT_SECRET), and see that the gateway asks the service that you mean.",
            )
        return bad(
            Part.WIRING,
            f"A browser is not sent to the login, but gets status {answer.status}.",
            "See what AuthService's log says of the check, and whether the provider is ready (/readyz on "
            "port "
            f"{self.settings.web_server_port}). nginx needs `error_page 401 = $authservice_on_401;` for "
            "pages (deploy/nginx).",
        )

    def _where_back(self, return_to: str, target: str) -> Iterator[tuple[Sent, Finding | None]]:
        """Of the address that the login would end on: the page that was asked for, under the address of "
        "it."""
        if self.settings.after_login_url:
            return
        parts = urlsplit(return_to)
        path = f"{parts.path}?{parts.query}"
        here = urlsplit(self.origin)
        if path != target:
            yield Sent.ORIGINAL_URL, self._lacks(Sent.ORIGINAL_URL)
        elif (
            parts.netloc
            and parts.netloc.lower() != here.netloc.lower()
            and self.settings.outside_host is None
        ):
            yield (
                Sent.ORIGINAL_URL,
                bad(
                    Part.WIRING,
                    f"A login for {here.netloc} would end on {parts.netloc}.",
                    lines(Sent.ORIGINAL_URL, self.settings.gateway, self.settings.prefix_path),
                ),
            )
        else:
            yield Sent.ORIGINAL_URL, None
        if self.settings.outside_scheme is None:
            yield Sent.SCHEME, None if parts.scheme == here.scheme else self._lacks(Sent.SCHEME)

    def _as_somebody_with_a_token(self) -> Finding | None:
        """What is wrong; ``None`` when the token was seen."""
        token = worthless_token(self.settings.oidc_provider, self.settings.client_id, self.now())
        headers = {**PROGRAM, "Authorization": f"Bearer {token}"}
        if self.settings.id_token_header.lower() != "authorization":
            headers[self.settings.id_token_header] = token
        answer = self.http.get(self.origin + self._target(Sent.ACCEPT, Sent.AUTHORIZATION), headers)
        if "invalid_token" in answer.headers.get("www-authenticate", ""):
            return None
        if answer.status == 401 or self._state(answer) is not None:
            return self._lacks(Sent.AUTHORIZATION)
        return skipped(
            Part.WIRING,
            f"A token that is worth nothing is answered with status {answer.status}, which does not tell whether "
            "Authorization comes through.",
        )

    # --- what belongs to us -------------------------------------------------------------------

    def _callback(self) -> Iterator[Finding]:
        """The redirect address as the provider would send browsers to it, with nothing to finish."""
        path = self.settings.callback_path
        address = self.settings.redirect_url
        if address == path:
            address = self.origin + path
        try:
            answer = self.http.get(address, PAGE)
        except OutboundFault as fault:
            if address == self.origin + path:
                raise
            yield odd(
                Part.CALLBACK,
                f"It cannot be reached from here: {fault}.",
                "See that browsers reach it, and that REDIRECT_URL (or AUTHSERVICE_URL_PREFIX) names the "
                "address that people use.",
            )
            return
        uncached = "no-store" in answer.headers.get("cache-control", "")
        if answer.status == 400 and uncached:
            yield good(Part.CALLBACK, f"{address} reaches AuthService.")
            return
        if answer.status == 503 and uncached:
            yield odd(
                Part.CALLBACK,
                f"{address} answers with status 503: AuthService is not ready.",
                f"See what is said above of provider and store; /readyz on port {self.settings.web_server_port} "
                "tells it too.",
            )
            return
        remedy = (
            f"Route {path} to port {self.settings.web_server_port} of AuthService, without a check "
            "(as in deploy/)."
        )
        if self._state(answer) is not None or self._signs_in(answer):
            yield bad(
                Part.CALLBACK,
                f"{address} asks for a login itself, so that no login ever ends.",
                remedy,
            )
        else:
            yield bad(
                Part.CALLBACK,
                f"{address} answers with status {answer.status}: this is not AuthService.",
                remedy,
            )

    def _pages(self) -> Iterator[Finding]:
        path = f"{self.settings.prefix_path}/site/after_logout"
        status = self.http.get(self.origin + path, PAGE).status
        if status == 200:
            yield good(Part.PAGES, f"{self.origin}{path} shows a page of AuthService.")
        else:
            yield odd(
                Part.PAGES,
                f"{self.origin}{path} answers with status {status}.",
                f"Route {self.settings.prefix_path}/ to port {self.settings.web_server_port} of "
                "AuthService, without a check.",
            )

    # --- helpers ------------------------------------------------------------------------------

    def _target(self, *sent: Sent) -> str:
        """A page that nothing keeps for later, and that tells the service what it was asked for with; its
        query has to come through as it is."""
        return f"{self.base}{marked_path(self._keyring, sent, self.now())}/page?page=2&sort=%C3%A9"

    @property
    def _keyring(self) -> Keyring:
        return Keyring(self.settings.sealing_key_material())

    def _state(self, answer: Response) -> State | None:
        """The login that a redirect begins, when it is one of ours."""
        query = parse_qs(leads_to(answer).query)
        logins = PendingLogins(
            self._keyring,
            self.settings.session_cookie_name,
            self.now,
            secrets.token_urlsafe,
        )
        return logins.open_state("".join(query.get("state", [])))

    def _signs_in(self, answer: Response) -> str:
        """Where the gateway itself sends people to our login (`auth-signin` of ingress-nginx), on the origin that
        is looked at or that of the settings; empty where it does not."""
        where, settings = leads_to(answer), self.settings
        origins = {
            settings.outside_host: f"{settings.outside_scheme}://{settings.outside_host}",
            "": self.origin,
            urlsplit(self.origin).netloc: self.origin,
        }
        if where.path != settings.login_path or where.netloc.lower() not in origins:
            return ""
        return f"{origins[where.netloc.lower()]}{where.path}?{where.query}"

    def _lacks(self, sent: Sent) -> Finding:
        gateways, prefix = self.settings.gateway, self.settings.prefix_path
        return bad(
            Part.WIRING,
            f"The gateway does not send {NAMES[sent]} with its checks: {WITHOUT[sent]}.",
            lines(sent, gateways, prefix),
        )


def worthless_token(issuer: str, client_id: str, now: datetime) -> str:
    """In form an ID token for us, signed by nobody: what is said of it shows that it was seen."""
    moment = int(now.timestamp())
    claims = {
        "iss": issuer,
        "aud": client_id,
        "sub": "authservice-doctor",
        "iat": moment,
        "exp": moment + 60,
        "at_hash": "worthless",
    }
    signature = base64.urlsafe_b64encode(bytes(256)).rstrip(b"=").decode()
    return f"{_part({'alg': 'RS256', 'typ': 'JWT'})}.{_part(claims)}.{signature}"


def _part(members: Mapping[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(members).encode()).rstrip(b"=").decode()


def _without_address(fault: OutboundFault) -> str:
    """The long path of our own says nothing, and the remedy names the origin."""
    return str(fault).rpartition(": ")[2]


def _is_ours(answer: Response) -> bool:
    """Whether a 401 is AuthService's: by its body, or by the challenge that gateways leave of it."""
    challenges = answer.headers.get("www-authenticate", "").split(",")
    return _told_reason(answer) == Reason.NOT_AUTHENTICATED.value or CHALLENGE in map(str.strip, challenges)


def _told_reason(answer: Response) -> str:
    """AuthService's own word for a refusal, where the gateway lets it through."""
    try:
        reason = answer.json().get("error", "")
    except BadJson:
        return ""
    return reason if isinstance(reason, str) else ""
