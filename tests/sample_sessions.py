"""A session record with something in every field, and a store that fails when it is told to."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from authservice.errors import StoreDown
from authservice.sessions import Entry, Forget, Inspection, Labelled, Session, Store, Watch


def a_session(clock: Callable[[], datetime], **changes: Any) -> Session:
    fields: dict[str, Any] = {
        "user_id": "alice@example.com",
        "groups": ("admins", "a,b", "ünïcode"),
        "claims": {"email": "alice@example.com", "n": 2**70, "nested": {"roles": ["x", None, 1.5, True]}},
        "issuer": "https://id.example.com/",
        "subject": "248289761001",
        "provider_sid": "sid &#%<'\"",
        "id_token": "eyJhbGciOiJSUzI1NiJ9.payload.signature",
        "access_token": "the-access-token",
        "refresh_token": "the-refresh-token",
        "access_token_expires": clock() + timedelta(minutes=5),
        "created": clock(),
        "last_seen": clock(),
        "expires": clock() + timedelta(days=1),
    }
    return Session(**{**fields, **changes})


class WatchedStore:
    """Passes everything on to a real store; counts, and fails where it is told to."""

    notices: tuple[str, ...] = ()

    def __init__(self, store: Store) -> None:
        self._store = store
        self.calls: list[str] = []
        self.failing: set[str] = set()
        self.after_load: Callable[[], object] = lambda: None

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.failing:
            raise StoreDown("told to fail")

    def load(self, key: str) -> Entry | None:
        self._called("load")
        entry = self._store.load(key)
        self.after_load()
        return entry

    def save(self, key: str, value: bytes, expires: datetime, **conditions: Any) -> bool:
        self._called("save")
        return self._store.save(key, value, expires, **conditions)

    def delete(self, key: str) -> bool:
        self._called("delete")
        return self._store.delete(key)

    def find(self, tag: str) -> list[str]:
        self._called("find")
        return self._store.find(tag)

    def label(self, key: str) -> Labelled | None:
        self._called("label")
        return self._store.label(key)

    def labels(self) -> Iterator[Labelled]:
        self._called("labels")
        return self._store.labels()

    def inspect(self, *, thorough: bool | None = None) -> Inspection:
        return self._store.inspect(thorough=thorough)

    def watch(self, forget: Forget) -> Watch:
        return self._store.watch(forget)

    def sweep(self) -> int:
        return self._store.sweep()

    def ping(self) -> None:
        self._store.ping()

    def close(self) -> None:
        self._store.close()


def checked(body: str) -> str:
    """The value whose random part is ``body``, as `new_secret` would have made it."""
    digest = hashlib.sha256(b"authservice session: check 1\0" + body.encode()).digest()
    return body + base64.urlsafe_b64encode(digest).decode()[:6]
