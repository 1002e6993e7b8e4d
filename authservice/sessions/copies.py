"""Copies of live sessions in one process: how many, which go first, and which must not come in.

Owns the memory and its lock. Whether a copy may still be used is `sessions.live`'s question to the
store's `Watch`; a `forget` always wins over a load that began before it. Nothing here does I/O.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from cachetools import LRUCache

from authservice.identity import AuthMethod, Identity, VerifiedClaims
from authservice.sessions import Session

KeepTokens = Callable[[Identity, Session], object]

_CLAIMS = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True)
class LiveSession:
    """What checks need to know of a session: who it proves, by the way its secret came, when it was
    last marked as seen, its store key, when its access token ends if that is known, whether there is a
    refresh token, and when a refresh is due if ever. One object for one copy, so what others make of an
    identity can be kept with it. Holds no tokens but those that checks pass on: the others are in the
    `Record`, which is read when they are needed."""

    by_cookie: Identity
    by_header: Identity
    last_seen: datetime
    key: str
    access_token_expires: datetime | None
    refreshable: bool
    refresh_due: datetime | None

    def __repr__(self) -> str:
        """Says when, never who: text ends up in logs."""
        return f"<LiveSession until {self.by_cookie.expires}>"


@dataclass(slots=True, eq=False)
class Copy:
    """A session as the store held it under ``stamp`` in ``version``. ``limit`` is the moment from
    which it says nothing any more, ``ends`` the one that no use of it moves. From ``due`` on its next
    use is to be marked; until ``quick`` (in seconds since 1970, never later than either) nothing about
    it needs a second look."""

    session: LiveSession
    key: str
    version: int
    ends: datetime
    limit: datetime
    due: datetime
    quick: float
    stamp: object


class Copies:
    """At most ``size`` copies, by the secret that opens them. ``dropped`` is told when one was
    forgotten, or all at once. Safe for threads."""

    def __init__(self, size: int, dropped: Callable[[], object] = lambda: None) -> None:
        self._size = size
        self._dropped = dropped
        self._copies: dict[str, Copy] = {}
        self._loading: dict[str, set[object]] = {}
        self.begin_anew()
        self.find: Callable[[str], Copy | None] = self._copies.get
        """The copy for a secret. Takes no lock: it is asked at every check."""

    def __len__(self) -> int:
        return len(self._copies)

    @contextmanager
    def expecting(self, key: str) -> Iterator[Callable[[str, Copy], None]]:
        """Gives the function that keeps what is loaded meanwhile, under its secret. It keeps
        nothing when ``key`` was forgotten since this began."""
        load = object()

        def keep(secret: str, copy: Copy) -> None:
            with self._lock:
                if load in self._loading.get(key, ()):
                    self._recent[key] = secret
                    self._copies[secret] = copy

        with self._lock:
            self._loading.setdefault(key, set()).add(load)
        try:
            yield keep
        finally:
            with self._lock:
                loads = self._loading.get(key)
                if loads is not None:
                    loads.discard(load)
                    if not loads:
                        del self._loading[key]

    def used(self, key: str) -> None:
        """This one is not the next to go."""
        with self._lock:
            self._recent.get(key)

    def forget(self, key: str | None) -> None:
        """Drops the copy of a store key, or all of them, and whatever is being loaded for it."""
        with self._lock:
            if key is None:
                if self._copies:
                    self._dropped()
                self._empty()
            else:
                self._loading.pop(key, None)
                secret = self._recent.pop(key, None)
                if secret is not None:
                    self._dropped()
                    self._copies.pop(secret, None)

    def begin_anew(self) -> None:
        """Empties everything, also after a fork in the middle of another thread's call."""
        self._lock = threading.Lock()
        self._empty()

    def _empty(self) -> None:
        self._loading.clear()
        self._copies.clear()
        self._recent = _Recent(self._size, lambda secret: self._copies.pop(secret, None))


class _Recent(LRUCache[str, str]):
    """Secrets by store key, the one used least recently first to go; says which one goes."""

    def __init__(self, size: int, gone: Callable[[str], object]) -> None:
        super().__init__(size)
        self._gone = gone

    def popitem(self) -> tuple[str, str]:
        key, secret = super().popitem()
        self._gone(secret)
        return key, secret


def live_session(
    session: Session, key: str, refresh_due: datetime | None = None, keep_tokens: KeepTokens | None = None
) -> LiveSession:
    """What checks see of a record, in little memory: there may be many thousands, whose groups
    are the same few. ``keep_tokens`` leaves with each identity the tokens that checks pass on."""
    groups, issuer = tuple(map(sys.intern, session.groups)), sys.intern(session.issuer)
    claims = _EncodedClaims(msgspec.json.encode(session.claims))

    def by(method: AuthMethod) -> Identity:
        identity = Identity(session.user_id, groups, claims, method, issuer, session.expires)
        if keep_tokens is not None:
            keep_tokens(identity, session)
        return identity

    return LiveSession(
        by(AuthMethod.COOKIE),
        by(AuthMethod.HEADER),
        session.last_seen,
        key,
        session.access_token_expires,
        bool(session.refresh_token),
        refresh_due,
    )


class _EncodedClaims(VerifiedClaims):
    """A stored session's claims, decoded when somebody asks for them: few do, and as objects they
    take three times the memory."""

    __slots__ = ("_encoded",)

    def __init__(self, encoded: bytes) -> None:
        self._encoded = encoded

    def _decoded(self) -> dict[str, Any]:
        return _CLAIMS.decode(self._encoded)

    def __getitem__(self, name: str) -> Any:
        return self._decoded()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decoded())

    def __len__(self) -> int:
        return len(self._decoded())

    def whole(self) -> dict[str, Any]:
        return self._decoded()

    def get(self, name: str, default: Any = None) -> Any:
        """Who asks for single ones asks at every check: from then on they are kept as objects."""
        try:
            claims = self._claims
        except AttributeError:
            claims = self._claims = self._decoded()
        return claims.get(name, default)
