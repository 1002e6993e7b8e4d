"""oauth2-proxy's endpoints, for gateways and pages that ask them still (``OAUTH2_PROXY_COMPAT``).

``auth`` is a dialect of the judge (`gateways.AuthRequestDialect`); the rest is here, in front of the doors that
do the same with us. Nothing here is less strict than they are: a GET ends a session only with the browser's own
proof that a page of this origin asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs

from flask import Response, request
from msgspec.structs import replace

from authservice.account import Account, described
from authservice.browsers import Browsers, redirect, wants_page
from authservice.check import Reply, RequestParts
from authservice.entrance import NO_STORE
from authservice.identity import Identity
from authservice.judge import parts_of, response
from authservice.logout import Logout
from authservice.ops import Readiness, is_ready
from authservice.urls import ReturnAddresses

Door = Callable[[], Response]


@dataclass(frozen=True, slots=True)
class Compat:
    """``answer`` judges a check. ``after`` judges where a logout may lead; it gives nothing for what it
    refuses. ``auth_path`` is where checks are asked, and ``session_path`` the page on which a person ends
    their session."""

    answer: Callable[[RequestParts], Reply]
    log_in: Door
    logout: Logout
    account: Account
    browsers: Browsers
    after: ReturnAddresses
    readiness: Readiness
    auth_path: str
    session_path: str

    def doors(self) -> Mapping[str, Door]:
        """What answers under each name in oauth2-proxy's folder."""
        return {
            "auth": self.auth,
            "start": self.log_in,
            "sign_in": self.log_in,
            "sign_out": self.sign_out,
            "userinfo": self.userinfo,
        }

    def auth(self) -> Response:
        """A check that came to the site port. It is one however its path was spelt: taken for another path of ours,
        it would let everybody pass."""
        parts = parts_of(request.environ)
        query = (parts.target or "").partition("?")[2]
        return response(self.answer(replace(parts, target=f"{self.auth_path}?{query}")))

    def sign_out(self) -> Response:
        """Ends the session where the browser proves that it is meant; else leads to the page where people
        do that themselves."""
        if request.method == "POST":
            return self.logout.end(self._return_address())
        if request.method != "GET":
            return self.browsers.method_not_allowed("GET, POST")
        if not (wants_page() and self.browsers.proves_own_origin()):
            return redirect(self.session_path)
        return self.logout.end(self._return_address())

    def _return_address(self) -> str:
        asked = parse_qs(request.environ.get("QUERY_STRING", "")).get("rd", [])
        if len(asked) != 1:
            return ""
        host = request.headers.get("Host", "").lower()
        return self.after.for_parameter(asked[0], self.browsers.scheme(), host)

    def userinfo(self) -> Response:
        """Who somebody is, under oauth2-proxy's names."""
        return self.account.tell(_as_oauth2_proxy)

    def ping(self) -> Response:
        """Whether a worker answers."""
        return _plain(200, "OK")

    def ready(self) -> Response:
        """Whether provider and store do."""
        return _plain(200, "OK") if is_ready(self.readiness.report()) else _plain(500, "not ready")


def _as_oauth2_proxy(identity: Identity) -> Mapping[str, object]:
    told = {**described(identity), "user": identity.claims.get("sub", identity.user_id)}
    name = identity.claims.get("preferred_username")
    return {**told, "preferredUsername": name} if isinstance(name, str) and name else told


def _plain(status: int, text: str) -> Response:
    answer = Response(text, status=status, content_type="text/plain; charset=utf-8")
    answer.headers.update([NO_STORE])
    return answer
