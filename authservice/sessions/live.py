"""Where the rest of the service asks for sessions: secrets in, records out.

Owns the life of a session (begin, load, end), its absolute and idle limits on our own clock, the
question whether a copy in memory may be used, and one-time marks. Sealing is `sessions.records`'
work, keeping is the `Store`'s, knowing what changed in it its `Watch`'s, and waiting until it takes a
mark of last use that of `sessions.touches`. Called by the session authenticator and by
`sessions.interface`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import msgspec

from authservice.check import NeedsIO, Reach
from authservice.clock import seconds_of
from authservice.errors import StoreDown
from authservice.ops import Counts, Metric
from authservice.sessions import Entry, Label, Session, Store, from_microseconds
from authservice.sessions.copies import Copies, Copy, KeepTokens, LiveSession, live_session
from authservice.sessions.labels import Labels
from authservice.sessions.records import but_for_marks, encode, opened, sealed, seen_at
from authservice.sessions.seal import is_secret, mark_key, new_secret, store_key
from authservice.sessions.touches import Noted, Touch, Touches

_LONGEST_STEP = timedelta(seconds=60)
_STEP_WITHOUT_LIMIT = timedelta(hours=1)
"""How exactly it is known when a session was last in use, where nothing depends on it."""

_LATE = timedelta(seconds=10)
"""How long before an idle limit, or half of it, a mark is written before the check is answered:
other processes must not end meanwhile what was let pass here."""

_RECENT = timedelta(seconds=10)
"""How exactly it is known which copies were used least recently: to note it costs more than a hit."""

_MOST_TRIES = 5

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
        keep_tokens: KeepTokens | None = None,
    ) -> None:
        self._store = store
        self._now = now
        self._seconds = seconds_of(now)
        self._max_age = max_age
        self._idle = idle_timeout
        self._labels = labels
        self._ahead = refresh_ahead
        self._ends_with_token = ends_with_token
        self._keep_tokens = keep_tokens
        self._made = now()
        self._step = _STEP_WITHOUT_LIMIT if labels else None
        if idle_timeout:
            self._step = min(_LONGEST_STEP, idle_timeout / 10)
        self._cache_size = cache_size
        counts = counts or Counts()
        self._count_hit = counts.adder(Metric.SESSION_HITS)
        self._count_miss = counts.adder(Metric.SESSION_MISSES)
        self._copies = Copies(cache_size, counts.adder(Metric.SESSION_INVALIDATIONS))
        counts.gauge(Metric.SESSIONS_HELD, lambda: len(self._copies))
        self._watch = store.watch(self._copies.forget)
        self._stamp, self._find = self._watch.stamp, self._copies.find
        self._touches = Touches(self._write_touch, self._renew, counts)

    def start(self) -> None:
        """Begins keeping copies in this process, and marking sessions as seen without having checks
        wait for it; again in each process forked from it."""
        self._copies.begin_anew()
        if self._cache_size:
            self._watch.start()
        if self._step:
            self._touches.start()

    def stop(self) -> None:
        """From now on every load asks the store, and marks as it goes. Waits a while for marks that are
        not written yet."""
        self._touches.stop()
        self._watch.stop()
        self._copies.forget(None)

    def quick(self, secret: str) -> LiveSession | None:
        """The live session of this secret where a copy says so that needs no second look, and no
        refresh of it is due. ``None`` says nothing: `load` tells. Never waits."""
        stamp = self._stamp()
        copy = self._find(secret)  # after the stamp: what it vouches for is not forgotten then
        if copy is not None and copy.stamp == stamp and self._seconds() < copy.quick:
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
        if copy is not None and copy.stamp == stamp and self._seconds() < copy.quick:
            self._count_hit()
            return copy.session
        if not is_secret(secret):
            return None
        if copy is not None and stamp is not None and self._still_holds(secret, copy, stamp):
            self._count_hit()
            return copy.session
        if reach is Reach.MEMORY:
            raise NeedsIO
        session = self._read(secret)
        if session is None and copy is not None:
            self._copies.forget(copy.key)  # it ended: nobody needs to hold on to whose it was
        return session

    def _still_holds(self, secret: str, copy: Copy, stamp: object) -> bool:
        """The second look at a copy, which makes the next ones quick again and notes that the session is
        in use where that is due. ``False`` also where that has to be written first."""
        now = self._now()
        if now >= copy.limit or (copy.stamp != stamp and not self._watch.holds(copy.key, copy.version)):
            return False
        if now >= copy.due:
            noted = self._note(secret, copy.key, copy.session.last_seen, now)
            if noted is Noted.REFUSED:
                return False
            if noted is Noted.TAKEN:
                copy.session = replace(copy.session, last_seen=max(copy.session.last_seen, now))
                copy.limit, copy.due = self._limits(copy.session.last_seen, copy.ends)
        copy.stamp = stamp
        copy.quick = _quick_until(copy, now)
        self._copies.used(copy.key)
        return True

    def _read(self, secret: str, *, in_use: bool = True) -> LiveSession | None:
        """The session as the store holds it; kept as a copy where that may be used later. With ``in_use``
        it is marked as seen where that is due."""
        self._count_miss()
        key = store_key(secret)
        with self._copies.expecting(key) as keep:
            # Both before the store is asked: what changes from here on shows, and what is written is not missed.
            stamp, touch = self._watch.stamp(), self._touches.waiting(key)
            entry = self._store.load(key)
            session = opened(secret, entry.value) if entry else None
            if entry is None or session is None or self._out_of_reach(session):
                return None
            session = self._as_seen(session, touch)
            now = self._now()
            if now >= self._deadline(session):
                return None
            due = in_use and self._is_due(session, now)
            if due:
                noted = self._note(secret, key, session.last_seen, now)
                if noted is Noted.REFUSED:
                    return self.live(self._touch(secret, session, entry, now), key)
                if noted is Noted.TAKEN:
                    session, due = seen_at(session, now), False
            live = self.live(session, key)
            if stamp is not None:
                ends = min(self._end(session), entry.expires)
                limit, next_due = self._limits(session.last_seen, ends)
                copy = Copy(live, key, entry.version, ends, limit, now if due else next_due, 0.0, stamp)
                copy.quick = _quick_until(copy, now)
                keep(secret, copy)
            return live

    def record(self, secret: str) -> Record | None:
        """The whole session as the store holds it now, or ``None`` as with `load`. Raises
        `errors.StoreDown`."""
        if not is_secret(secret):
            return None
        key = store_key(secret)
        touch = self._touches.waiting(key)
        entry = self._store.load(key)
        session = opened(secret, entry.value) if entry else None
        if entry is None or session is None or self._out_of_reach(session):
            return None
        session = self._as_seen(session, touch)
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
            if found is None or but_for_marks(found.session) != but_for_marks(old.session):
                return None
            before = found
        return None

    def live(self, session: Session, key: str) -> LiveSession:
        """What checks see of a record, whether a store holds it yet or not."""
        return live_session(session, key, self._refresh_due(session), self._keep_tokens)

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
            if found is None or but_for_marks(found.session) != but_for_marks(old.session):
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
            encode(session)  # what cannot be kept has no label either
            label = self._labels.make(key, session, address, user_agent)
        self._store.save(key, sealed(secret, session), session.expires, label=label)
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
            touch = self._touches.waiting(key)
            entry = self._store.load(key)
            if entry is None:
                return None
            self._store.delete(key)
        finally:
            self._copies.forget(key)  # a check may have read it meanwhile
        session = opened(secret, entry.value)
        session = self._as_seen(session, touch) if session else None
        return session if session and self._now() < self._deadline(session) else None

    def spend(self, name: str, lifetime: timedelta) -> bool:
        """Marks a name as used: ``True`` for the first caller within ``lifetime``, ``False`` for
        every other one, across all workers and replicas. Raises `errors.StoreDown`."""
        return self._store.save(mark_key(name), b"\x01", self._now() + lifetime, if_absent=True)

    def is_spent(self, name: str) -> bool:
        """Whether `spend` has marked this name. Raises `errors.StoreDown`."""
        return self._store.load(mark_key(name)) is not None

    def _end(self, session: Session) -> datetime:
        """When this session ends however much it is used. Counted from the record's beginning as
        well as from its own limit, so that a shorter ``SESSION_MAX_AGE`` holds at once."""
        end = min(session.expires, session.created + self._max_age)
        if self._ends_with_token and not session.refresh_token and session.access_token_expires:
            end = min(end, session.access_token_expires)
        return end

    def _deadline(self, session: Session) -> datetime:
        """When this session ends if nobody is seen again."""
        return self._limits(session.last_seen, self._end(session))[0]

    def _limits(self, last_seen: datetime, ends: datetime) -> tuple[datetime, datetime]:
        """When a session that ``ends`` then ends if nobody is seen again, and from when on its next use
        is to be marked."""
        limit = min(ends, last_seen + self._idle) if self._idle else ends
        return limit, last_seen + self._step if self._step else limit

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

    # --- marking as seen ------------------------------------------------------------------------

    def _as_seen(self, session: Session, touch: Touch | None) -> Session:
        """The session as it is with what waited to be written before the store was asked for it: a mark
        that is written meanwhile is then in one of the two."""
        if touch is None or touch.first >= self._deadline(session):
            return session
        return seen_at(session, touch.last)

    def _note(self, secret: str, key: str, last_seen: datetime, now: datetime) -> Noted:
        """Leaves it to the thread to mark a session as seen, unless there is too little time for that."""
        if self._idle and now >= last_seen + self._idle - min(self._idle / 2, _LATE):
            return Noted.REFUSED
        return self._touches.note(key, secret, now)

    def _write_touch(self, touch: Touch) -> bool:
        """Moves ``last_seen`` to when it was, in the session as the store holds it now, and says whether
        there is a copy of it. One that ended meanwhile stays so, and somebody else's mark is as good."""
        key, kept = store_key(touch.secret), self._copies.find(touch.secret) is not None
        for _ in range(_MOST_TRIES):
            if self._idle and self._now() >= touch.last + self._idle:
                return False
            entry = self._store.load(key)
            session = opened(touch.secret, entry.value) if entry else None
            if entry is None or session is None or self._out_of_reach(session):
                return False
            if touch.first >= self._deadline(session) or not self._is_due(session, touch.last):
                return False
            if self._save_again(touch.secret, seen_at(session, touch.last), entry.version):
                if kept:
                    self._renew(touch.secret)
                return kept
        raise StoreDown("others keep changing the session")

    def _renew(self, secret: str) -> None:
        """Reads a session anew after our own mark, so that the next check need not. That is no use of it."""
        stamp, copy = self._watch.stamp(), self._copies.find(secret)
        if stamp is None or (copy and (copy.stamp == stamp or self._watch.holds(copy.key, copy.version))):
            return
        with suppress(StoreDown):  # whoever asks next is told
            self._read(secret, in_use=False)

    def _touch(self, secret: str, session: Session, entry: Entry, now: datetime) -> Session:
        """Moves ``last_seen`` at once. Only over the version that was read: a session that was ended
        meanwhile is not brought back, and of many checks at once one writes. A store that cannot be
        written does not fail the check."""
        seen = seen_at(session, now)
        try:
            if not self._save_again(secret, seen, entry.version):
                self._touches.note(store_key(secret), secret, now)  # for over what somebody wrote meanwhile
        except StoreDown as error:
            if self._touches.note(store_key(secret), secret, now) is not Noted.TAKEN:
                log.warning("session not marked as seen: %s", error)
                return session
        return seen

    def _save_again(self, secret: str, session: Session, version: int) -> bool:
        """Over this version only; with a new label, unless it bears one that cannot be read here."""
        key = store_key(secret)
        label, session = self._label_again(key, session)
        return self._store.save(key, sealed(secret, session), session.expires, if_version=version, label=label)

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


def _quick_until(copy: Copy, now: datetime) -> float:
    quick = min(copy.limit, copy.due, now + _RECENT)
    return (min(quick, copy.session.refresh_due) if copy.session.refresh_due else quick).timestamp()
