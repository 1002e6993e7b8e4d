"""Who is logged in: sessions listed, found and ended without the cookies that open them.

Works on the labels of a store's entries, so it knows what `sessions.labels` tells, and no tokens:
a session that is ended here ends at once for every check, but its tokens cannot be revoked at the
provider. Called by the command line, by the logout notices of the provider, and by people who end
all sessions of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from authservice.sessions import Labelled, Store
from authservice.sessions.labels import About, Labels
from authservice.sessions.seal import public_id, session_key


@dataclass(frozen=True, slots=True)
class Known:
    """A live session. ``id`` is its public name, which opens nothing; ``about`` is ``None`` when its
    label was sealed under a key that is no longer there. ``expires`` is its absolute limit (the idle
    limit may end it sooner)."""

    id: str
    expires: datetime
    about: About | None


class Directory:
    """The sessions of one store. ``forget`` is told the store key of each session that is ended here,
    before and after (`Sessions.forget` in a process that keeps copies). Every method raises
    `errors.StoreDown`."""

    def __init__(self, store: Store, labels: Labels, *, forget: Callable[[str], object] = lambda key: None) -> None:
        self._store = store
        self._labels = labels
        self._forget = forget

    def everyone(self) -> Iterator[Known]:
        """All sessions, in no order; read in batches, so that memory does not follow their number."""
        return map(self._known, self._store.labels())

    def of_user(self, user_id: str) -> list[Known]:
        """The sessions of exactly this user id, the oldest first."""
        found = filter(None, map(self._store.label, self._keys(self._labels.of_user(user_id))))
        return sorted(map(self._known, found), key=_age)

    def of_subject(self, issuer: str, subject: str) -> list[str]:
        """The ids of the sessions that came of this provider's ``sub``."""
        return [public_id(key) for key in self._keys(self._labels.of_subject(issuer, subject))]

    def of_provider_session(self, issuer: str, sid: str) -> list[str]:
        """The ids of the sessions that came of this provider's ``sid``."""
        return [public_id(key) for key in self._keys(self._labels.of_provider_session(issuer, sid))]

    def show(self, id: str) -> Known | None:
        """The session of this very id, or ``None``."""
        key = session_key(id)
        found = self._store.label(key) if key else None
        return self._known(found) if found else None

    def ids(self) -> Iterator[str]:
        """The ids of all sessions, as `everyone` and faster: no label is opened."""
        return (public_id(found.key) for found in self._store.labels())

    def end(self, ids: Iterable[str]) -> int:
        """Ends these sessions for good, wherever they are in use, and says how many were live. When
        it raises, some may be left; ending again is no error."""
        return sum(self._end(key) for key in map(session_key, ids) if key)

    def _end(self, key: str) -> bool:
        self._forget(key)
        try:
            return self._store.delete(key)
        finally:
            self._forget(key)  # a check may have read it meanwhile

    def _keys(self, tags: Iterable[str]) -> list[str]:
        return list(dict.fromkeys(key for tag in tags for key in self._store.find(tag)))

    def _known(self, labelled: Labelled) -> Known:
        return Known(public_id(labelled.key), labelled.expires, self._labels.read(labelled))


def deadline(known: Known, max_age: timedelta, idle_timeout: timedelta | None) -> datetime:
    """When the session ends if nobody is seen again, by the limits of `sessions.live`."""
    if known.about is None:
        return known.expires
    limit = min(known.expires, known.about.created + max_age)
    return min(limit, known.about.last_seen + idle_timeout) if idle_timeout else limit


def _age(known: Known) -> tuple[datetime, str]:
    return known.about.created if known.about else known.expires, known.id
