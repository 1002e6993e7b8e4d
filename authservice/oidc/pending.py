"""The pending login: what a browser carries from the start of a login to its end.

Two sealed values belong to one login. The ``state`` goes through the provider and comes back in
the query; the cookie, named after the state's id, stays in the browser that began. Only together
do they finish a login; the server keeps nothing. Called by `oidc.login`; nothing here speaks with
the provider, and cookies are pairs of name and value, as they come and go.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Protocol, TypeVar

import msgspec

PENDING_LIFETIME = timedelta(minutes=10)
MAX_PENDING = 6
MAX_PENDING_BYTES = 6144
MAX_DROPPED = 40
MAX_OPENED = 100
MAX_RETURN_TO = 2048
MAX_RETURN_TO_IN_STATE = 512
MAX_STATE = 4096
_SKEW = timedelta(seconds=60)
_ID = re.compile(r"[A-Za-z0-9_-]{16,64}")
_STATE_PURPOSE = "login-state"
_COOKIE_PURPOSE = "login-cookie"

Cookies = Sequence[tuple[str, str]]
Clock = Callable[[], datetime]
TokenFactory = Callable[[int], str]
"""Makes an unguessable base64url text from so many random bytes, as `secrets.token_urlsafe`."""


class Sealer(Protocol):
    """Seals bytes under the service's own key, for one purpose each."""

    def seal(self, purpose: str, plaintext: bytes) -> str: ...

    def open(self, purpose: str, sealed: str) -> bytes | None: ...


class State(msgspec.Struct, frozen=True, array_like=True):
    """What goes through the provider. ``issued`` is Unix time; a long return address stays out."""

    id: str
    issued: float
    return_to: str


class Pending(msgspec.Struct, frozen=True, array_like=True):
    """What stays in the browser."""

    id: str
    issued: float
    nonce: str
    verifier: str
    return_to: str


_Sealed = TypeVar("_Sealed", State, Pending)


class PendingLogins:
    """Seals pending logins, opens them again, and keeps their number in one browser small."""

    def __init__(self, sealer: Sealer, cookie_prefix: str, now: Clock, new_token: TokenFactory) -> None:
        """Cookies are named ``<cookie_prefix>_login_<id>``."""
        self._sealer = sealer
        self._prefix = f"{cookie_prefix}_login_"
        self._now = now
        self._new_token = new_token

    def new(self, return_to: str) -> Pending:
        """A login that begins now. A return address that is too long is left out. Nonce and
        verifier are 43 characters each (OpenID Connect Core 1.0 §15.5.2, RFC 7636 §4.1)."""
        fits = len(return_to.encode(errors="surrogatepass")) <= MAX_RETURN_TO
        return Pending(
            id=self._new_token(16),
            issued=self._now().timestamp(),
            nonce=self._new_token(32),
            verifier=self._new_token(32),
            return_to=return_to if fits else "",
        )

    def seal_state(self, pending: Pending) -> str:
        """The ``state`` parameter."""
        short = len(pending.return_to) <= MAX_RETURN_TO_IN_STATE
        state = State(pending.id, pending.issued, pending.return_to if short else "")
        return self._sealer.seal(_STATE_PURPOSE, msgspec.msgpack.encode(state))

    def seal_cookie(self, pending: Pending) -> str:
        """The cookie's value. It is worth nothing under another name."""
        return self._sealer.seal(_cookie_purpose(pending.id), msgspec.msgpack.encode(pending))

    def open_state(self, sealed: str) -> State | None:
        """The state, whatever its age; ``None`` when it is not one of ours."""
        if not sealed or len(sealed) > MAX_STATE or not sealed.isascii():
            return None
        return _decode(self._sealer.open(_STATE_PURPOSE, sealed), State)

    def find(self, state: State, cookies: Cookies) -> Pending | None:
        """This browser's own half of the login, if both halves are young enough. Several cookies
        of one name may have come (somebody may have planted one): an authentic one counts."""
        name = self.cookie_name(state)
        for given, value in cookies:
            pending = self._open_cookie(state.id, value) if given == name else None
            if pending is not None and self._is_young(pending.issued) and self._is_young(state.issued):
                return pending
        return None

    def cookie_name(self, login: State | Pending) -> str:
        return self._prefix + login.id

    def to_drop(self, cookies: Cookies, coming: str) -> tuple[str, ...]:
        """Which cookies have to go so that ``coming``, a new one's value, fits: everything that is
        not a young login of ours, then the oldest. At most `MAX_DROPPED`, the rest next time."""
        names = dict.fromkeys(name for name, _ in cookies if name.startswith(self._prefix))
        kept: list[tuple[float, int, str]] = []
        for name in list(names)[:MAX_OPENED]:
            values = [value for given, value in cookies if given == name]
            issued = self._authentic_since(name, values)
            if issued is not None:
                kept.append((issued, len(name) + sum(map(len, values)), name))
        room, size = MAX_PENDING - 1, MAX_PENDING_BYTES - len(coming) - len(self._prefix)
        stay = set()
        for issued, length, name in sorted(kept, reverse=True):
            room, size = room - 1, size - length
            if room < 0 or size < 0:
                break
            stay.add(name)
        return tuple(name for name in names if name not in stay)[:MAX_DROPPED]

    def _authentic_since(self, name: str, values: Iterable[str]) -> float | None:
        identifier = name.removeprefix(self._prefix)
        if not _ID.fullmatch(identifier):
            return None
        opened = (self._open_cookie(identifier, value) for value in values)
        times = [pending.issued for pending in opened if pending and self._is_young(pending.issued)]
        return max(times, default=None)

    def _open_cookie(self, identifier: str, value: str) -> Pending | None:
        pending = _decode(self._sealer.open(_cookie_purpose(identifier), value), Pending)
        if pending is None or not hmac.compare_digest(pending.id.encode(), identifier.encode()):
            return None
        return pending

    def _is_young(self, issued: float) -> bool:
        age = self._now().timestamp() - issued
        return -_SKEW.total_seconds() <= age < PENDING_LIFETIME.total_seconds()


def _cookie_purpose(identifier: str) -> str:
    return f"{_COOKIE_PURPOSE}:{identifier}"


def _decode(plaintext: bytes | None, kind: type[_Sealed]) -> _Sealed | None:
    if plaintext is None:
        return None
    try:
        return msgspec.msgpack.decode(plaintext, type=kind)
    except msgspec.MsgspecError:
        return None
