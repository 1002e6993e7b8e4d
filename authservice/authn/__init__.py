"""Authenticators: who is asking?

An authenticator has exactly three answers: ``None`` (not mine, ask the next), an `Identity`, or
`errors.Refused` (mine, and bad: stop). A fourth outcome is not an answer: `errors.Unavailable`,
when it cannot be known now. Which authenticators exist, and in which order they are asked, is
one list built in `authservice.app`; a disabled one is simply not in it.
"""

from __future__ import annotations

from typing import Protocol

from authservice.check import CheckRequest, Reach
from authservice.identity import Identity


class Authenticator(Protocol):
    """Asks one kind of credential."""

    name: str

    def authenticate(self, check: CheckRequest, reach: Reach) -> Identity | None:
        """The identity, or ``None`` when this request has no credential of this kind.

        Raises `errors.Refused` for a bad credential of this kind, `errors.Unavailable` when it
        cannot be judged now, and `check.NeedsIO` when judging would wait under `Reach.MEMORY`.
        """
        ...


class BearerAuthenticator(Protocol):
    """Judges one kind of bearer token, given as text. `authn.bearer.FromHeader` makes an
    `Authenticator` of it, and `authn.cache` remembers its answers: both need the token apart from
    the request."""

    name: str

    def judge(self, token: str, reach: Reach) -> Identity | None:
        """The identity that a token proves, or ``None`` when it is not of this kind. Raises as
        `Authenticator.authenticate`."""
        ...
