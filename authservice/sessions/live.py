"""Where the rest of the service asks for sessions: secrets in, records out.

Owns the life of a session (begin, load, end), its absolute and idle limits on our own clock, the
question whether a copy in memory may be used, and one-time marks. Sealing is `sessions.seal`'s
work, keeping is the `Store`'s, and knowing what changed in it its `Watch`'s. Called by the session
authenticator and by `sessions.interface`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec

from authservice.check import NeedsIO, Reach
from authservice.errors import ProviderWrong, StoreDown
from authservice.identity import AuthMethod, Identity, VerifiedClaims
from authservice.ops import Counts, Metric
from authservice.sessions import Entry, Label, Session, Store, from_microseconds
from authservice.sessions.copies import Copies, Copy, LiveSession
from authservice.sessions.labels import Labels
from authservice.sessions.seal import is_secret, mark_key, new_secret, open_record, seal_record, store_key

_LONGEST_STEP = timedelta(seconds=60)
_STEP_WITHOUT_LIMIT = timedelta(hours=1)
"""How exactly it is known when a session was last in use, where nothing depends on it."""

_RECENT = timedelta(seconds=10)
"""How exactly it is known which copies were used least recently: to note it costs more than a hit."""

_MOST_TRIES = 5
_CLAIMS = msgspec.json.Decoder(dict[str, Any])

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """A live session as a whole, tokens included, and the version in which the store holds it."""

    session: Session
    version: int


class Sessions:
    """Live sessions over one store. ``idle_timeout`` is ``None`` when there is no idle limit; without
    ``labels`` nobody finds a session but by its secret. A refresh is due ``refresh_ahead`` before the
    access token ends; with ``ends_with_token`` a session without a refresh token ends with it.

    At most ``cache_size`` sessions are kept decoded in memory, between ``start`` and ``stop``. A
    session that ended anywhere is dead here as soon as the store's `Watch` can know.
    """

    def __init__(
        self,
        store: Store,
        *,
        now: Callable[[], datetime],
        max_age: timedelta,
        idle_timeout: timedelta | None = None,
        cache_size: int = 0,
        counts: Counts | None = None,
        labels: Labels | None = None,
        refresh_ahead: timedelta = timedelta(0),
        ends_with_token: bool = False,
    ) -> None:
        self._store = store
        self._now = now
        self._max_age = max_age
        self._idle = idle_timeout
        self._labels = labels
        self._ahead = refresh_ahead
        self._ends_with_token = ends_with_token
        self._made = now()
        self._step = _STEP_WITHOUT_LIMIT if labels else None
        if idle_timeout:
            self._step = min(_LONGEST_STEP, idle_timeout / 10)
        self._decoder = msgspec.json.Decoder(Session)
        self._cache_size = cache_size
        counts = counts or Counts()
        self._count_hit = counts.adder(Metric.SESSION_HITS)
        self._count_miss = counts.adder(Metric.SESSION_MISSES)
        self._copies = Copies(cache_size, counts.adder(Metric.SESSION_INVALIDATIONS))
        counts.gauge(Metric.SESSIONS_HELD, lambda: len(self._copies))
        self._watch = store.watch(self._copies.forget)

    def start(self) -> None:
        """Begins keeping copies in this process, and again in each process forked from it."""
        self._copies.begin_anew()
        if self._cache_size:
            self._watch.start()

    def stop(self) -> None:
        """From now on every load asks the store."""
        self._watch.stop()
        self._copies.forget(None)

    def quick(self, secret: str) -> LiveSession | None:
        """The live session of this secret where a copy says so that needs no second look, and no
        refresh of it is due. ``None`` says nothing: `load` tells. Never waits."""
        stamp = self._watch.stamp()
        copy = self._copies.find(secret)  # after the stamp: what it vouches for is not forgotten then
        if copy is not None and copy.stamp == stamp and self._now() < copy.quick:
            self._count_hit()
            return copy.session
        return None

    def load(self, secret: str, reach: Reach) -> LiveSession | None:
        """The live session of this secret, or ``None``: not a secret, unknown, ended, past a
        limit, or a record that cannot be read (which is left where it is).

        Raises `errors.StoreDown`, and `check.NeedsIO` under `Reach.MEMORY` when no copy may be
        used (except for what does not even have a secret's form: that is known without waiting).
        """
        stamp = self._watch.stamp()
        copy = self._copies.find(secret)  # after the stamp: what it vouches for is not forgotten then
        if copy is not None and copy.stamp == stamp and self._now() < copy.quick:
            self._count_hit()
            return copy.session
        if not is_secret(secret):
            return None
        if copy is not None and stamp is not None and self._still_holds(copy, stamp):
            self._count_hit()
            return copy.session
        if reach is Reach.MEMORY:
            raise NeedsIO
        session = self._read(secret)
        if session is None and copy is not None:
            self._copies.forget(copy.key)  # it ended: nobody needs to hold on to whose it was
        return session

    def _still_holds(self, copy: Copy, stamp: object) -> bool:
        """The second look at a copy, which makes the next ones quick again."""
        now = self._now()
        if now >= copy.limit or (copy.stamp != stamp and not self._watch.holds(copy.key, copy.version)):
            return False
        copy.stamp = stamp
        copy.quick = _quick_until(copy.session, copy.limit, now)
        self._copies.used(copy.key)
        return True

    def _read(self, secret: str) -> LiveSession | None:
        """The session as the store holds it; kept as a copy where that may be used later."""
        self._count_miss()
        key = store_key(secret)
        with self._copies.expecting(key) as keep:
            stamp = self._watch.stamp()  # before the store is asked: what changes from here on shows
            entry = self._store.load(key)
            session = self._open(secret, entry) if entry else None
            if entry is None or session is None or self._out_of_reach(session):
                return None
            now = self._now()
            limit = self._deadline(session)
            if now >= limit:
                return None
            if self._is_due(session, now):
                return self.live(self._touch(secret, session, entry, now), key)
            live = self.live(session, key)
            if stamp is not None:
                limit = min(limit, entry.expires)
                if self._step:
                    limit = min(limit, session.last_seen + self._step)
                quick = _quick_until(live, limit, now)
                keep(secret, Copy(live, key, entry.version, limit, quick, stamp))
            return live

    def record(self, secret: str) -> Record | None:
        """The whole session as the store holds it now, or ``None`` as with `load`. Raises
        `errors.StoreDown`."""
        if not is_secret(secret):
            return None
        entry = self._store.load(store_key(secret))
        session = self._open(secret, entry) if entry else None
        if entry is None or session is None or self._out_of_reach(session):
            return None
        return Record(session, entry.version) if self._now() < self._deadline(session) else None

    def replace(self, secret: str, old: Record, session: Session) -> Record | None:
        """Keeps ``session`` in the place of ``old`` and gives what is kept now. Where it was only
        marked as seen since ``old`` was read, that mark stays. Its absolute limit never moves.

        ``None`` when it ended since, or somebody else replaced it: nothing is written then, and
        `record` tells which. Raises `errors.StoreDown` (it may then be kept or not) and
        `errors.ProviderWrong` as `begin` does.
        """
        key = store_key(secret)
        before = old
        for _ in range(_MOST_TRIES):
            kept = msgspec.structs.replace(
                session,
                created=old.session.created,
                expires=old.session.expires,
                last_seen=max(session.last_seen, before.session.last_seen),
                label_key=before.session.label_key,
                labelled=before.session.labelled,
            )
            self._copies.forget(key)
            try:
                saved = self._save_again(secret, kept, before.version)
                found = self.record(secret)
            finally:
                self._copies.forget(key)  # a check may have read the old one meanwhile
            if saved:
                return found
            if found is None or _but_for_marks(found.session) != _but_for_marks(old.session):
                return None
            before = found
        return None

    def live(self, session: Session, key: str) -> LiveSession:
        """What checks see of a record, whether a store holds it yet or not."""
        return live_session(session, key, self._refresh_due(session))

    def end_unchanged(self, secret: str, old: Record) -> bool:
        """Ends the session where it is still what ``old`` says, or was only marked as seen since;
        ``False`` when it ended before, or somebody replaced it. Raises `errors.StoreDown` (it may
        then have ended or not)."""
        key, before = store_key(secret), old
        for _ in range(_MOST_TRIES):
            self._copies.forget(key)
            try:
                # What has expired has ceased to exist; and only this version of it.
                if self._store.save(key, b"", from_microseconds(0), if_version=before.version):
                    return True
                found = self.record(secret)
            finally:
                self._copies.forget(key)
            if found is None or _but_for_marks(found.session) != _but_for_marks(old.session):
                return False
            before = found
        return False

    def begin(self, session: Session, *, address: str = "", user_agent: str = "") -> str:
        """Keeps a new session and gives its secret, which is never one that was used before.
        ``expires`` is brought down to ``SESSION_MAX_AGE`` from now when it lies beyond. ``address``
        and ``user_agent`` are the browser's, for people who look through their sessions.

        Raises `errors.StoreDown`, and `errors.ProviderWrong` when the claims hold what no
        encoding can keep (half a surrogate pair, endless nesting).
        """
        secret = new_secret()
        key = store_key(secret)
        session = msgspec.structs.replace(session, expires=min(session.expires, self._now() + self._max_age))
        label = None
        if self._labels:
            session = self._labelled(session)
            _encode(session)  # what cannot be kept has no label either
            label = self._labels.make(key, session, address, user_agent)
        self._store.save(key, seal_record(secret, _encode(session)), session.expires, label=label)
        return secret

    def forget(self, key: str) -> None:
        """Drops this process's copy of the session under a store key: it ended, or changed."""
        self._copies.forget(key)

    def end(self, secret: str) -> Session | None:
        """Removes the session, and gives it when it was live. Ending it again is no error.

        Raises `errors.StoreDown`: it may then still be there.
        """
        if not is_secret(secret):
            return None
        key = store_key(secret)
        self._copies.forget(key)
        try:
            entry = self._store.load(key)
            if entry is None:
                return None
            self._store.delete(key)
        finally:
            self._copies.forget(key)  # a check may have read it meanwhile
        session = self._open(secret, entry)
        return session if session and self._now() < self._deadline(session) else None

    def spend(self, name: str, lifetime: timedelta) -> bool:
        """Marks a name as used: ``True`` for the first caller within ``lifetime``, ``False`` for
        every other one, across all workers and replicas. Raises `errors.StoreDown`."""
        return self._store.save(mark_key(name), b"\x01", self._now() + lifetime, if_absent=True)

    def is_spent(self, name: str) -> bool:
        """Whether `spend` has marked this name. Raises `errors.StoreDown`."""
        return self._store.load(mark_key(name)) is not None

    def _open(self, secret: str, entry: Entry) -> Session | None:
        plaintext = open_record(secret, entry.value)
        if plaintext is None:
            return None
        try:
            return self._decoder.decode(plaintext)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return None

    def _deadline(self, session: Session) -> datetime:
        """When this session ends if nobody is seen again. Counted from the record's beginning as
        well as from its own limit, so that a shorter ``SESSION_MAX_AGE`` holds at once."""
        limit = min(session.expires, session.created + self._max_age)
        if self._ends_with_token and not session.refresh_token and session.access_token_expires:
            limit = min(limit, session.access_token_expires)
        return min(limit, session.last_seen + self._idle) if self._idle else limit

    def _refresh_due(self, session: Session) -> datetime | None:
        """From when on its access token is to be refreshed; a short-lived one not before half its
        life is over, so that no refresh is followed by the next at once."""
        end = session.access_token_expires
        if end is None or not session.refresh_token:
            return None
        half = (end - (session.access_token_issued or session.created)) / 2
        return end - max(min(self._ahead, half), timedelta(0))

    def _out_of_reach(self, session: Session) -> bool:
        """Whether its label is sealed under a key that was removed: nobody could find it to end it,
        so it ends with its key. A label that was made after this process began may be under a key
        that this process is yet to be told of."""
        if not self._labels or not session.label_key or self._labels.knows(session.label_key):
            return False
        return session.labelled is None or session.labelled < self._made

    def _is_due(self, session: Session, now: datetime) -> bool:
        """Whether it is to be marked as seen; at once where it was kept before there were labels."""
        if self._labels and not session.label_key:
            return True
        return self._step is not None and now - session.last_seen >= self._step

    def _touch(self, secret: str, session: Session, entry: Entry, now: datetime) -> Session:
        """Moves ``last_seen``, once in a step and not at every check. Only over the version that
        was read: a session that was ended meanwhile is not brought back, and of many checks at
        once one writes. A store that cannot be written does not fail the check."""
        seen = msgspec.structs.replace(session, last_seen=now)
        try:
            self._save_again(secret, seen, entry.version)
        except StoreDown as error:
            log.warning("session not marked as seen: %s", error)
            return session
        return seen

    def _save_again(self, secret: str, session: Session, version: int) -> bool:
        """Over this version only; with a new label, unless it bears one that cannot be read here."""
        key = store_key(secret)
        label, session = self._label_again(key, session)
        sealed = seal_record(secret, _encode(session))
        return self._store.save(key, sealed, session.expires, if_version=version, label=label)

    def _label_again(self, key: str, session: Session) -> tuple[Label | None, Session]:
        if not self._labels:
            return None, session
        there = self._store.label(key)
        about = self._labels.read(there) if there else None
        if there and not about:
            return None, session
        session = self._labelled(session)
        address, user_agent = (about.address, about.user_agent) if about else ("", "")
        return self._labels.make(key, session, address, user_agent), session

    def _labelled(self, session: Session) -> Session:
        assert self._labels
        return msgspec.structs.replace(session, label_key=self._labels.key_id, labelled=self._now())


def _but_for_marks(session: Session) -> Session:
    return msgspec.structs.replace(session, last_seen=session.created, label_key="", labelled=None)


def _quick_until(session: LiveSession, limit: datetime, now: datetime) -> datetime:
    quick = min(limit, now + _RECENT)
    return min(quick, session.refresh_due) if session.refresh_due else quick


def live_session(session: Session, key: str, refresh_due: datetime | None = None) -> LiveSession:
    """What checks see of a record, in little memory: there may be many thousands, whose groups
    are the same few."""
    groups, issuer = tuple(map(sys.intern, session.groups)), sys.intern(session.issuer)
    claims = _EncodedClaims(msgspec.json.encode(session.claims))

    def by(method: AuthMethod) -> Identity:
        return Identity(session.user_id, groups, claims, method, issuer, session.expires)

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

    def get(self, name: str, default: Any = None) -> Any:
        """Who asks for single ones asks at every check: from then on they are kept as objects."""
        try:
            claims = self._claims
        except AttributeError:
            claims = self._claims = self._decoded()
        return claims.get(name, default)


def _encode(session: Session) -> bytes:
    """The record's plaintext. JSON, because claims come from JSON: msgpack has no integers
    beyond 64 bits."""
    try:
        return msgspec.json.encode(session)
    except (TypeError, UnicodeError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise ProviderWrong(f"the claims cannot be stored ({type(error).__name__})") from None
