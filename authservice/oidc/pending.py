"""The pending login: what there is between the start of a login and its end.

Two sealed values finish a login together, and the server keeps neither. The ``state`` belongs to
one login: it goes through the provider and comes back in the query, with the address to return to.
The cookie belongs to one browser: every login that the browser begins within minutes is bound to
the same one, so any number of tabs need one cookie, and each comes back to its own page. Called by
`oidc.login`; nothing here speaks with the provider, and cookies are pairs of name and value.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol, TypeVar

import msgspec

PENDING_LIFETIME = timedelta(minutes=10)
MAX_COOKIES = 6
MAX_DROPPED = 40
MAX_OPENED = 100
MAX_RETURN_TO = 2048
MAX_RETURN_TO_IN_STATE = 512
MAX_KEPT_BYTES = 2560
MAX_STATE = 4096
MAX_BORNE = 4
_SKEW = timedelta(seconds=60)
_BINDING = re.compile(r"[A-Za-z0-9_-]{22}")
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
    """What goes through the provider. ``issued`` is Unix time, ``binding`` names the browser; a
    long return address stays out, because providers limit the length of an address. ``borne`` are the
    session cookies that the browser bore as it began, in brief."""

    id: str
    issued: float
    binding: str
    return_to: str
    borne: tuple[str, ...] = ()


class BrowserHalf(msgspec.Struct, frozen=True, array_like=True):
    """What stays in the browser: a secret, and the long return addresses of its latest logins."""

    secret: str
    issued: float
    kept: tuple[tuple[str, str], ...] = ()

    def derive(self, label: str) -> str:
        """43 base64url characters that depend on the secret and a label."""
        digest = hmac.digest(self.secret.encode(), label.encode(), "sha256")
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

    @property
    def binding(self) -> str:
        """The cookie's name in public: it does not lead back to the secret."""
        return self.derive("binding")[:22]


_Sealed = TypeVar("_Sealed", State, BrowserHalf)


@dataclass(frozen=True, slots=True)
class Pending:
    """One login on its way, both halves together. ``nonce`` and ``verifier`` are 43 characters
    (OpenID Connect Core 1.0 §15.5.2, RFC 7636 §4.1), derived from the browser's secret and the
    login's id: never two logins with the same ones, and nothing more to carry."""

    state: State
    browser: BrowserHalf = field(repr=False)

    @property
    def nonce(self) -> str:
        return self.browser.derive(f"nonce {self.state.id}")

    @property
    def verifier(self) -> str:
        return self.browser.derive(f"verifier {self.state.id}")

    def bore(self, secret: str) -> bool:
        """Whether the browser may have had this session already when the login began."""
        return len(self.state.borne) == MAX_BORNE or _brief(secret) in self.state.borne

    @property
    def keeps_others(self) -> bool:
        """Whether the cookie also holds the return address of another login."""
        return any(identifier != self.state.id for identifier, _ in self.browser.kept)

    @property
    def return_to(self) -> str:
        """The address to come back to; empty for the default page."""
        return self.state.return_to or dict(self.browser.kept).get(self.state.id, "")


class PendingLogins:
    """Makes and finds pending logins, and keeps the number of their cookies in one browser small."""

    def __init__(self, sealer: Sealer, cookie_prefix: str, now: Clock, new_token: TokenFactory) -> None:
        """Cookies are named ``<cookie_prefix>_login_<binding>``; the session's is ``cookie_prefix``."""
        self._sealer = sealer
        self._session_cookie = cookie_prefix
        self._prefix = f"{cookie_prefix}_login_"
        self._now = now
        self._new_token = new_token

    def new(self, return_to: str, cookies: Cookies) -> Pending:
        """A login that begins now, bound to the cookie that this browser has already, or to a new
        one. A return address that is too long is left out."""
        now = self._now().timestamp()
        known = max(self._authentic(cookies), key=lambda half: half.issued, default=None)
        secret, kept = (known.secret, known.kept) if known else (self._new_token(32), ())
        identifier = self._new_token(16)
        length = len(return_to.encode(errors="surrogatepass"))
        in_state = return_to if length <= MAX_RETURN_TO_IN_STATE else ""
        if MAX_RETURN_TO_IN_STATE < length <= MAX_RETURN_TO:
            kept = _latest(((identifier, return_to), *kept))
        browser = BrowserHalf(secret, now, kept)
        borne = tuple(_brief(value) for name, value in cookies if name == self._session_cookie)[:MAX_BORNE]
        return Pending(State(identifier, now, browser.binding, in_state, borne), browser)

    def seal_state(self, pending: Pending) -> str:
        """The ``state`` parameter."""
        return self._sealer.seal(_STATE_PURPOSE, msgspec.msgpack.encode(pending.state))

    def seal_cookie(self, pending: Pending) -> str:
        """The cookie's value. It is worth nothing under another name."""
        purpose = _cookie_purpose(pending.browser.binding)
        return self._sealer.seal(purpose, msgspec.msgpack.encode(pending.browser))

    def cookie_name(self, pending: Pending) -> str:
        return self._prefix + pending.browser.binding

    def open_state(self, sealed: str) -> State | None:
        """The state, whatever its age; ``None`` when it is not one of ours."""
        if not sealed or len(sealed) > MAX_STATE or not sealed.isascii():
            return None
        return _decode(self._sealer.open(_STATE_PURPOSE, sealed), State)

    def find(self, state: State, cookies: Cookies) -> Pending | None:
        """The login, if this browser has its own half of it and both are young enough. Several
        cookies of one name may have come (somebody may have planted one): an authentic one counts."""
        if not self._is_young(state.issued):
            return None
        own = [pair for pair in cookies if pair[0] == self._prefix + state.binding]
        for half in self._authentic(own):
            if hmac.compare_digest(half.binding, state.binding):
                return Pending(state, half)
        return None

    def to_drop(self, cookies: Cookies, staying: str) -> tuple[str, ...]:
        """The names of this browser's cookies that have to go beside ``staying``: all that are no
        young ones of ours, then the oldest. At most `MAX_DROPPED`, the rest next time."""
        issued = {self._prefix + half.binding: half.issued for half in self._authentic(cookies)}
        newest = sorted(issued, key=lambda name: issued[name], reverse=True)
        stay = {staying, *[name for name in newest if name != staying][: MAX_COOKIES - 1]}
        names = dict.fromkeys(name for name, _ in cookies if name.startswith(self._prefix))
        return tuple(name for name in names if name not in stay)[:MAX_DROPPED]

    def _authentic(self, cookies: Cookies) -> Iterable[BrowserHalf]:
        """The young halves among the cookies, each sealed for the name that it came under."""
        ours = [pair for pair in cookies if pair[0].startswith(self._prefix)]
        for name, value in ours[:MAX_OPENED]:
            binding = name.removeprefix(self._prefix)
            if _BINDING.fullmatch(binding):
                half = _decode(self._sealer.open(_cookie_purpose(binding), value), BrowserHalf)
                if half is not None and self._is_young(half.issued):
                    yield half

    def _is_young(self, issued: float) -> bool:
        age = self._now().timestamp() - issued
        return -_SKEW.total_seconds() <= age < PENDING_LIFETIME.total_seconds()


def _latest(kept: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """As many of the latest return addresses as fit into a cookie."""
    fitting: list[tuple[str, str]] = []
    room = MAX_KEPT_BYTES
    for identifier, return_to in kept:
        room -= len(identifier) + len(return_to.encode(errors="surrogatepass"))
        if room < 0:
            break
        fitting.append((identifier, return_to))
    return tuple(fitting)


def _cookie_purpose(binding: str) -> str:
    return f"{_COOKIE_PURPOSE}:{binding}"


def _decode(plaintext: bytes | None, kind: type[_Sealed]) -> _Sealed | None:
    if plaintext is None:
        return None
    try:
        return msgspec.msgpack.decode(plaintext, type=kind)
    except msgspec.MsgspecError:
        return None


def _brief(value: str) -> str:
    """A cookie's value, told from others by 12 characters that do not lead back to it."""
    return hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()[:12]
