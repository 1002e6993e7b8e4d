"""The session cookie's two headers: reading it out of ``Cookie``, writing its ``Set-Cookie``.

Flask's and Werkzeug's reading is not used, because two ``Cookie`` lines reach us joined by a
comma. Called by the session authenticator (which must not touch Flask's session), by
`sessions.interface`, and by whoever reads pending-login cookies. Nothing here knows a store.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from werkzeug.http import dump_cookie

from authservice.sessions.seal import SECRET_LENGTH, is_secret

MOST_TRIED = 4
"""How many cookies of our name are tried; each one that is well formed costs a store read."""

_WELL_FORMED = rf"[ \t]*=[ \t]*([A-Za-z0-9_-]{{{SECRET_LENGTH}}})[ \t]*(?:[;,]|\Z)"
"""The rest of our cookie behind its name, up to the next one."""


def read_cookies(cookie_header: str) -> list[tuple[str, str]]:
    """All ``name=value`` pairs in the order sent, blanks around both dropped, else untouched.

    Splits at ``;`` (RFC 6265 §4.2.1) and at ``,``, which is what joins two lines of one header
    (RFC 9110 §5.3). A value that holds a comma is therefore cut: ours never does. Pieces without
    ``=`` or without a name are left out. Never raises.
    """
    pairs = []
    for piece in cookie_header.replace(",", ";").split(";"):
        name, equals, value = piece.partition("=")
        name = name.strip(" \t")
        if equals and name:
            pairs.append((name, value.strip(" \t")))
    return pairs


def session_secrets(cookie_header: str, name: str) -> list[str]:
    """The different well-formed values of the cookie ``name``, in the order sent, at most
    `MOST_TRIED`. Browsers send several when a sibling domain or a longer path set one too;
    only the store knows which is authentic."""
    found: list[str] = []
    for cookie, value in read_cookies(cookie_header):
        if cookie == name and is_secret(value) and value not in found:
            found.append(value)
            if len(found) == MOST_TRIED:
                break
    return found


def candidates(name: str) -> Callable[[str], str | None]:
    """Gives what finds, in a ``Cookie`` header, the first value of the cookie ``name`` that may be a
    secret: ``None`` only if there are no `session_secrets`, and else their first, or some text that is
    no secret. Searches for the name instead of reading every cookie, since most of a long header is
    other people's."""
    # Looked for as plain text, which passes over what shares no letters with the name; what stands before and
    # behind it is looked at afterwards. As browsers write it (RFC 6265 §5.4), that takes no expression.
    behind = re.compile(_WELL_FORMED).match
    length, begin = len(name), len(name) + 1
    end = begin + SECRET_LENGTH

    def first(cookie_header: str) -> str | None:
        at = cookie_header.find(name)
        if (
            (at == 0 or (at > 0 and cookie_header[at - 2 : at] == "; "))
            and cookie_header[at + length : at + begin] == "="
            and cookie_header[at + end : at + end + 1] in ("", ";")
        ):
            return cookie_header[at + begin : at + end]
        while at >= 0:
            found = behind(cookie_header, at + length)
            if found is not None:
                before = at - 1
                while before >= 0 and cookie_header[before] in " \t":
                    before -= 1
                if before < 0 or cookie_header[before] in ";,":
                    return found[1]
            at = cookie_header.find(name, at + 1)
        return None

    return first


@dataclass(frozen=True, slots=True)
class CookieRules:
    """The session cookie's name and attributes; the only maker of its ``Set-Cookie`` values.

    ``domain`` is ``None`` or empty for a host-only cookie, ``same_site`` one of ``Lax``,
    ``Strict``, ``None`` (as text), ``max_age`` the session's absolute limit. Whether it is
    ``Secure`` may depend on the request, so it is asked for each time.
    """

    name: str
    max_age: timedelta
    domain: str | None = None
    http_only: bool = True
    same_site: str = "Lax"

    def set_cookie(self, value: str, secure: bool) -> str:
        """The ``Set-Cookie`` value that gives a browser this session."""
        return self._line(value, int(self.max_age.total_seconds()), secure)

    def delete_cookie(self, secure: bool) -> str:
        """The ``Set-Cookie`` value that takes it away: the same attributes, or browsers would
        keep the cookie (RFC 6265 §5.3)."""
        return self._line("", 0, secure)

    def _line(self, value: str, seconds: int, secure: bool) -> str:
        return dump_cookie(
            self.name,
            value,
            max_age=seconds,
            expires=None if value else 0,
            path="/",
            domain=self.domain or None,
            secure=secure,
            httponly=self.http_only,
            samesite=self.same_site,
            sync_expires=False,
        )
