"""Assertions in allows: what they say, to whom, and for how long.

`Assertions` completes every allow of the pipeline after policies did. Time goes in steps: within one, and for
one identity and host, the assertion is the same, so it is signed once.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from authservice.assertion.keys import Keys
from authservice.check import Allow, CheckRequest, Variant
from authservice.errors import IdentityUnusable
from authservice.identity import MAX_HEADER, Identity

LIFE = 300
"""Seconds from when an assertion was signed to its end."""
STEP = LIFE // 2
"""An assertion is as old as this at most when it is passed on."""
MOST_HOSTS = 32
"""Of one identity are kept. A client may name any host, and what it names is said by the gateway to be asked for."""
MOST_HOST = 261
"""Characters: the longest name in DNS with a port, and some room."""


class _Completion(NamedTuple):
    """What an allow becomes: all of it but the identity and the remarks."""

    set_headers: tuple[tuple[str, str], ...]
    remove_headers: tuple[str, ...]
    variant: Variant


class Assertions:
    """Completes allows; `pipeline.Pipeline` calls it for each. Safe for threads.

    ``told_user_id`` gives the user id as applications are told it. ``audience`` is for whom all assertions are;
    when empty, each is for the host that was asked.
    """

    def __init__(
        self,
        header: str,
        keys: Keys,
        *,
        issuer: str,
        audience: str,
        told_user_id: Callable[[Identity], str],
        now: Callable[[], datetime],
    ) -> None:
        self._header = header
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._told_user_id = told_user_id
        self._now = now

    def __call__(self, check: CheckRequest, allow: Allow) -> Allow:
        """The same allow with an assertion; nothing changes for nobody in particular, and where the host is
        unknown, as an assertion for nobody could be shown to everybody, and one for whom the client names to
        them. Raises `errors.IdentityUnusable`."""
        identity = allow.identity
        audience = self._audience or ("" if check.hearsay else check.host)
        if identity is None or not audience or len(audience) > MOST_HOST:
            return allow
        step = int(self._now().timestamp()) // STEP
        kept = identity.made.get(self)
        if kept is None or kept[0] != step:
            kept = identity.made[self] = (step, {})
        made: dict[tuple[str, Variant | None], _Completion] = kept[1]
        done = made.get((audience, allow.variant))
        if done is None:
            if len(made) >= MOST_HOSTS:
                made.clear()
            done = made[audience, allow.variant] = self._completed(allow, identity, audience, step * STEP)
        return Allow(identity, done.set_headers, done.remove_headers, allow.remarks, done.variant)

    def _completed(self, allow: Allow, identity: Identity, audience: str, moment: int) -> _Completion:
        try:
            token = self._keys.signing(moment).signed(self._claims(identity, audience, moment))
        except UnicodeEncodeError:
            raise IdentityUnusable("an identity holds half of a surrogate pair") from None
        if len(token) > MAX_HEADER:
            raise IdentityUnusable(
                f"{self._header} would have more than {MAX_HEADER} bytes",
                public="Your account has more groups, or longer names, than this site can pass on.",
            )
        headers = (*allow.set_headers, (self._header, token))
        kept = tuple(name for name in allow.remove_headers if name.lower() != self._header.lower())
        if allow.variant is None:
            emptied = Allow(identity, headers, kept).unset()
        else:
            emptied = tuple(name for name in allow.variant.emptied if _folded(name) != _folded(self._header))
        return _Completion(headers, kept, Variant(emptied))

    def _claims(self, identity: Identity, audience: str, moment: int) -> dict[str, Any]:
        """It ends with the identity at the latest."""
        ends = moment + LIFE
        if identity.expires is not None:
            ends = min(ends, int(identity.expires.timestamp()))
        claims: dict[str, Any] = {
            "iss": self._issuer,
            "sub": self._told_user_id(identity),
            "aud": audience,
            "iat": moment,
            "exp": ends,
            "groups": identity.groups,
        }
        email = identity.claims.whole().get("email")
        return {**claims, "email": email} if isinstance(email, str) and email else claims


def _folded(name: str) -> str:
    return name.lower().replace("_", "-")
