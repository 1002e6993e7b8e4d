"""Reading the credential of a bearer header (RFC 6750 §2.1), in one place for all who need it."""

from __future__ import annotations

import re
from collections.abc import Callable

from authservice.authn import BearerAuthenticator
from authservice.check import CheckRequest, Reach
from authservice.errors import Refused
from authservice.identity import Identity
from authservice.sessions.seal import is_secret

AUTHORIZATION = "authorization"

# A comma alone may stand between the parameters of one scheme (Digest, Negotiate).
_SECOND_SCHEME = re.compile(r",\s*(?:bearer|basic|digest|negotiate|dpop)\s", re.IGNORECASE)


def bearer_credential(header: str, value: str) -> str | None:
    """The credential in a header, or ``None`` when there is none of this kind.

    ``header`` is the lower-case name. ``Authorization`` must name the scheme ``Bearer``, in any
    letter case (RFC 9110 §11.1); any other header may carry the bare value too. Two header lines
    arrive joined by a comma, which no bearer credential contains: they raise `errors.Refused`,
    since nobody can tell which of the two the application would believe.
    """
    if value[:7] == "Bearer " and "," not in value:
        return value[7:].strip() or None  # as almost everybody writes it
    if header == AUTHORIZATION and _SECOND_SCHEME.search(value):
        raise Refused(f"more than one {header} header")
    scheme, _, rest = value.strip().partition(" ")
    if scheme.lower() == "bearer":
        credential = rest.strip()
    elif header == AUTHORIZATION:
        return None
    else:
        credential = value.strip()
    if "," in credential:
        raise Refused(f"more than one {header} header")
    return credential or None


class WithToken:
    """Another `BearerAuthenticator`, of the same name, with whose identities ``keep`` leaves the token."""

    def __init__(self, inner: BearerAuthenticator, keep: Callable[[Identity, str], object]) -> None:
        self.name = inner.name
        self._inner = inner
        self._keep = keep

    def judge(self, token: str, reach: Reach) -> Identity | None:
        """As the inner one."""
        identity = self._inner.judge(token, reach)
        if identity is not None:
            self._keep(identity, token)
        return identity


class FromHeader:
    """A `BearerAuthenticator` as an `Authenticator`: takes the token out of ``header``.

    What has the form of a session's secret is left to the session, and never sent anywhere.
    """

    def __init__(self, inner: BearerAuthenticator, header: str) -> None:
        self.name = inner.name
        self._inner = inner
        self._header = header.lower()

    def authenticate(self, check: CheckRequest, reach: Reach) -> Identity | None:
        value = check.headers.get(self._header)
        token = bearer_credential(self._header, value) if value else None
        if token is None or is_secret(token):
            return None
        return self._inner.judge(token, reach)
