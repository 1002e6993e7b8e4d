"""The life of a session: begin, load, end; its limits on our own clock; a store in bad times."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest

from authservice.check import NeedsIO, Reach
from authservice.errors import ProviderWrong, StoreDown
from authservice.identity import AuthMethod, Identity, VerifiedClaims
from authservice.sessions import Session
from authservice.sessions.directory import Directory
from authservice.sessions.labels import About, Labels
from authservice.sessions.copies import live_session
from authservice.sessions.live import Sessions
from authservice.sessions.redis import RedisStore
from authservice.sessions.seal import Keyring, new_secret, open_record, public_id, seal_record, store_key
from authservice.sessions.sqlite import SqliteStore
from tests.contracts import MICROSECOND, MINUTE, Clock, at_once, output, run_python
from tests.sample_sessions import WatchedStore, a_session, checked
from tests.servers import any_redis, running_redis

DAY = timedelta(days=1)
NET = Reach.NETWORK


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[WatchedStore]:
    with closing(SqliteStore(tmp_path / "sessions.db", clock)) as store:
        yield WatchedStore(store)


@pytest.fixture
def sessions(store: WatchedStore, clock: Clock) -> Sessions:
    return Sessions(store, now=clock, max_age=DAY)


@pytest.fixture
def idle_sessions(store: WatchedStore, clock: Clock) -> Sessions:
    return Sessions(store, now=clock, max_age=DAY, idle_timeout=timedelta(minutes=30))


# --- begin, load, end -------------------------------------------------------------------------


def test_a_session_comes_back_exactly(sessions: Sessions, clock: Clock) -> None:
    least = Session(
        user_id="a", issuer="i", subject="s", created=clock(), last_seen=clock(), expires=clock() + MINUTE
    )
    for session in (a_session(clock), least):
        secret = sessions.begin(session)
        loaded = sessions.load(secret, NET)
        assert loaded is not None
        assert loaded.last_seen == session.last_seen
        claims = VerifiedClaims(session.claims)
        for method, identity in ((AuthMethod.COOKIE, loaded.by_cookie), (AuthMethod.HEADER, loaded.by_header)):
            assert identity == Identity(
                session.user_id, session.groups, claims, method, session.issuer, session.expires
            )
        assert len(loaded.by_cookie.claims) == len(claims)
        assert sessions.end(secret) == session


def test_every_session_has_a_new_secret(sessions: Sessions, clock: Clock) -> None:
    secrets = {sessions.begin(a_session(clock)) for _ in range(20)}
    assert len(secrets) == 20
    assert all(sessions.load(secret, NET) for secret in secrets)


def test_an_unknown_secret_is_nobody(sessions: Sessions, clock: Clock) -> None:
    sessions.begin(a_session(clock))
    assert sessions.load(new_secret(), NET) is None


@pytest.mark.parametrize("text", ["", "x", "A" * 43, "A" * 48, "A" * 50, "é" * 49, "B" * 49, "\0" * 49, "A" * 100_000])
def test_k08_b42_garbage_costs_the_store_nothing(sessions: Sessions, store: WatchedStore, text: str) -> None:
    assert sessions.load(text, NET) is None
    assert sessions.load(text, Reach.MEMORY) is None
    assert sessions.end(text) is None
    assert store.calls == []


def test_under_memory_a_load_asks_for_io_and_touches_nothing(
    sessions: Sessions, store: WatchedStore, clock: Clock
) -> None:
    secret = sessions.begin(a_session(clock))
    store.calls.clear()
    with pytest.raises(NeedsIO):
        sessions.load(secret, Reach.MEMORY)
    assert store.calls == []


def test_one_load_is_one_read(sessions: Sessions, store: WatchedStore, clock: Clock) -> None:
    secret = sessions.begin(a_session(clock))
    store.calls.clear()
    for _ in range(3):
        clock.advance(timedelta(hours=1))
        sessions.load(secret, NET)
    assert store.calls == ["load"] * 3


def test_k09_s13_an_ended_session_is_gone_everywhere(
    sessions: Sessions, store: WatchedStore, clock: Clock, tmp_path: Path
) -> None:
    secret = sessions.begin(a_session(clock))
    ended = sessions.end(secret)
    assert ended is not None
    assert ended.refresh_token == "the-refresh-token"
    assert sessions.load(secret, NET) is None
    assert store.load(store_key(secret)) is None
    with closing(SqliteStore(tmp_path / "sessions.db", clock)) as another_worker:
        assert Sessions(another_worker, now=clock, max_age=DAY).load(secret, NET) is None
    assert sessions.end(secret) is None


def test_ending_one_session_leaves_the_others(sessions: Sessions, clock: Clock) -> None:
    one, other = sessions.begin(a_session(clock)), sessions.begin(a_session(clock))
    sessions.end(one)
    assert sessions.load(other, NET) is not None


def test_text_made_of_a_session_shows_nothing_of_it(clock: Clock) -> None:
    session = a_session(clock)
    live = live_session(session, "session-1")
    for text in (repr(session), str(session), f"{session}", repr([session]), repr(live), f"{live}"):
        for hidden in ("alice", "token", "eyJ", "example", "248289761001"):
            assert hidden not in text


# --- records ----------------------------------------------------------------------------------


def test_a_record_is_the_whole_session(sessions: Sessions, clock: Clock) -> None:
    session = a_session(clock)
    secret = sessions.begin(session)
    record = sessions.record(secret)
    assert record is not None and record.session == session
    assert sessions.record(new_secret()) is sessions.record("no secret") is None
    live = sessions.load(secret, NET)
    assert live is not None
    assert (live.key, live.access_token_expires, live.refreshable) == (
        store_key(secret), session.access_token_expires, True,
    )
    clock.advance(DAY)
    assert sessions.record(secret) is None


def test_a_replaced_record_is_what_is_loaded_and_its_limit_never_moves(sessions: Sessions, clock: Clock) -> None:
    secret = sessions.begin(a_session(clock))
    old = sessions.record(secret)
    assert old is not None
    newer = a_session(clock, access_token="newer", groups=("others",), expires=clock() + 9 * DAY)
    kept = sessions.replace(secret, old, newer)
    assert kept is not None and kept == sessions.record(secret)
    assert (kept.session.access_token, kept.session.expires) == ("newer", old.session.expires)
    live = sessions.load(secret, NET)
    assert live is not None and live.by_cookie.groups == ("others",)


def test_s21_of_two_who_replace_the_same_record_one_does(sessions: Sessions, clock: Clock) -> None:
    secret = sessions.begin(a_session(clock))
    old = sessions.record(secret)
    assert old is not None
    kept = at_once(
        8, lambda n: sessions.replace(secret, old, a_session(clock, access_token=str(n), refresh_token="")) is not None
    )
    assert kept == 1
    live = sessions.load(secret, NET)
    assert live is not None and not live.refreshable


def test_a_session_that_was_seen_meanwhile_is_replaced_and_stays_seen(idle_sessions: Sessions, clock: Clock) -> None:
    secret = idle_sessions.begin(a_session(clock))
    old = idle_sessions.record(secret)
    assert old is not None
    seen = clock.advance(timedelta(minutes=2))
    idle_sessions.load(secret, NET)
    kept = idle_sessions.replace(secret, old, msgspec.structs.replace(old.session, access_token="newer"))
    assert kept is not None
    assert (kept.session.access_token, kept.session.last_seen) == ("newer", seen)


def test_s13_a_session_ended_meanwhile_is_not_brought_back_by_its_replacement(
    sessions: Sessions, clock: Clock
) -> None:
    secret = sessions.begin(a_session(clock))
    old = sessions.record(secret)
    assert old is not None
    sessions.end(secret)
    assert sessions.replace(secret, old, old.session) is None
    assert sessions.load(secret, NET) is None


@pytest.mark.parametrize("failing", ["save", "load"])
def test_k11_a_replacement_that_may_not_be_kept_is_told(
    sessions: Sessions, store: WatchedStore, clock: Clock, failing: str
) -> None:
    secret = sessions.begin(a_session(clock))
    old = sessions.record(secret)
    assert old is not None
    store.failing = {failing}
    with pytest.raises(StoreDown):
        sessions.replace(secret, old, old.session)


# --- labels -----------------------------------------------------------------------------------

OLD, NEW = b"the old key", b"the new key"


@pytest.fixture
def known_by(store: WatchedStore, clock: Clock) -> Callable[..., tuple[Sessions, Directory]]:
    """A service with these keys, its clock's hour being that of its start."""

    def service(*keys: bytes, **limits: Any) -> tuple[Sessions, Directory]:
        labels = Labels(Keyring(keys))
        return Sessions(store, now=clock, max_age=DAY, labels=labels, **limits), Directory(store, labels)

    return service


def about(directory: Directory, secret: str) -> About | None:
    known = directory.show(public_id(store_key(secret)))
    return known.about if known else None


@pytest.mark.parametrize(("limits", "step"), [({}, 60), ({"idle_timeout": timedelta(minutes=30)}, 1)])
def test_a_label_follows_who_was_seen_and_keeps_where_from(
    known_by: Callable[..., tuple[Sessions, Directory]],
    store: WatchedStore,
    clock: Clock,
    limits: dict[str, timedelta],
    step: int,
) -> None:
    sessions, directory = known_by(NEW, **limits)
    secret = sessions.begin(a_session(clock), address="203.0.113.7", user_agent="Firefox")
    began = clock()
    clock.advance(step * MINUTE - MICROSECOND)
    sessions.load(secret, NET)
    said = about(directory, secret)
    assert said is not None and said.last_seen == began
    seen = clock.advance(MICROSECOND)
    sessions.load(secret, NET)
    said = about(directory, secret)
    assert said is not None
    assert (said.created, said.last_seen, said.address, said.user_agent) == (began, seen, "203.0.113.7", "Firefox")
    store.calls.clear()
    sessions.load(secret, NET)
    assert store.calls == ["load"]


def test_a_replacement_that_is_another_user_is_found_as_that_one(
    known_by: Callable[..., tuple[Sessions, Directory]], clock: Clock
) -> None:
    sessions, directory = known_by(NEW)
    secret = sessions.begin(a_session(clock), user_agent="Firefox")
    old = sessions.record(secret)
    assert old is not None
    assert sessions.replace(secret, old, msgspec.structs.replace(old.session, user_id="alice@new.example"))
    assert directory.of_user("alice@example.com") == []
    (known,) = directory.of_user("alice@new.example")
    assert known.about and known.about.user_agent == "Firefox"


def test_a_session_from_before_there_were_labels_gets_one_when_it_is_seen(
    known_by: Callable[..., tuple[Sessions, Directory]], sessions: Sessions, store: WatchedStore, clock: Clock
) -> None:
    secret = sessions.begin(a_session(clock))
    labelling, directory = known_by(NEW)
    assert directory.of_user("alice@example.com") == []
    assert labelling.load(secret, NET) is not None
    (known,) = directory.of_user("alice@example.com")
    assert known.about and (known.about.created, known.about.address) == (clock(), "")
    store.calls.clear()
    labelling.load(secret, NET)
    assert store.calls == ["load"]


def test_s34_an_old_key_ends_only_its_own_sessions_when_it_is_removed(
    known_by: Callable[..., tuple[Sessions, Directory]], clock: Clock
) -> None:
    one = known_by(OLD)[0]
    unused, used = one.begin(a_session(clock)), one.begin(a_session(clock))
    clock.advance(MINUTE)
    both, _ = known_by(NEW, OLD)
    assert both.load(unused, NET) and both.load(used, NET), "nobody is logged out by a new key"
    begun = both.begin(a_session(clock))
    clock.advance(timedelta(hours=1))
    assert both.load(used, NET), "and this one's label is under the new key from now on"
    clock.advance(MINUTE)
    without, directory = known_by(NEW)
    assert without.load(unused, NET) is None and without.record(unused) is None
    assert without.load(used, NET) and without.load(begun, NET)
    assert len(directory.of_user("alice@example.com")) == 2
    assert both.load(unused, NET), "it is still there for whoever has the key"


def test_s34_a_replica_that_is_not_restarted_yet_knows_sessions_under_a_key_it_was_never_told(
    known_by: Callable[..., tuple[Sessions, Directory]], clock: Clock
) -> None:
    not_yet, _ = known_by(OLD, idle_timeout=timedelta(hours=1))
    clock.advance(MINUTE)
    restarted, directory = known_by(NEW, OLD, idle_timeout=timedelta(hours=1))
    secret = restarted.begin(a_session(clock), user_agent="Firefox")
    for _ in range(3):
        clock.advance(5 * MINUTE)
        assert not_yet.load(secret, NET) is not None
    said = about(directory, secret)
    assert said is not None and said.user_agent == "Firefox", "what it cannot read it leaves as it is"
    assert restarted.load(secret, NET) is not None


@pytest.mark.parametrize("failing", ["label", "save"])
def test_a_label_that_cannot_be_written_does_not_fail_the_check(
    known_by: Callable[..., tuple[Sessions, Directory]], store: WatchedStore, clock: Clock, failing: str
) -> None:
    sessions, _ = known_by(NEW, idle_timeout=timedelta(hours=1))
    secret = sessions.begin(a_session(clock))
    store.failing = {failing}
    clock.advance(2 * MINUTE)
    assert sessions.load(secret, NET) is not None

def test_only_what_nobody_changed_is_ended(sessions: Sessions, store: WatchedStore, clock: Clock) -> None:
    marking = Sessions(store, now=clock, max_age=DAY, idle_timeout=timedelta(minutes=30))
    secret = marking.begin(a_session(clock))
    old = marking.record(secret)
    assert old is not None
    assert marking.replace(secret, old, a_session(clock, refresh_token="new")) is not None
    assert not marking.end_unchanged(secret, old)
    now = marking.record(secret)
    assert now is not None and now.session.refresh_token == "new"
    clock.advance(5 * MINUTE)
    assert marking.load(secret, NET) is not None  # seen: a new version, and nothing else
    assert marking.end_unchanged(secret, now)
    assert marking.load(secret, NET) is None
    assert store.load(store_key(secret)) is None
    assert not marking.end_unchanged(secret, now)


# --- limits -----------------------------------------------------------------------------------


def test_k09_b36_the_absolute_limit_is_max_age_on_our_clock(sessions: Sessions, clock: Clock) -> None:
    secret = sessions.begin(a_session(clock, expires=clock() + 30 * DAY))
    loaded = sessions.load(secret, NET)
    assert loaded is not None
    assert loaded.by_cookie.expires == clock() + DAY
    clock.advance(DAY - MICROSECOND)
    assert sessions.load(secret, NET) is not None
    clock.advance(MICROSECOND)
    assert sessions.load(secret, NET) is None
    assert sessions.end(secret) is None


def test_a_session_may_end_before_max_age(sessions: Sessions, clock: Clock) -> None:
    secret = sessions.begin(a_session(clock, expires=clock() + MINUTE))
    clock.advance(MINUTE)
    assert sessions.load(secret, NET) is None


def test_a_shorter_max_age_holds_for_sessions_that_were_begun_before(
    sessions: Sessions, store: WatchedStore, clock: Clock
) -> None:
    secret = sessions.begin(a_session(clock))
    stricter = Sessions(store, now=clock, max_age=timedelta(hours=1))
    assert stricter.load(secret, NET) is not None
    clock.advance(timedelta(hours=1))
    assert stricter.load(secret, NET) is None
    assert stricter.end(secret) is None
    assert sessions.load(secret, NET) is None  # ended all the same


def test_k09_the_idle_limit_ends_an_unused_session(idle_sessions: Sessions, clock: Clock) -> None:
    secret = idle_sessions.begin(a_session(clock))
    clock.advance(timedelta(minutes=30) - MICROSECOND)
    assert idle_sessions.load(secret, NET) is not None
    clock.advance(timedelta(minutes=30))
    assert idle_sessions.load(secret, NET) is None
    assert idle_sessions.load(secret, NET) is None


def test_the_idle_limit_slides_and_the_absolute_one_does_not(idle_sessions: Sessions, clock: Clock) -> None:
    secret = idle_sessions.begin(a_session(clock))
    for _ in range(24 * 3 - 1):
        clock.advance(timedelta(minutes=20))
        assert idle_sessions.load(secret, NET) is not None
    clock.advance(timedelta(minutes=20))
    assert idle_sessions.load(secret, NET) is None


def test_without_an_idle_limit_nothing_is_written(
    sessions: Sessions, store: WatchedStore, clock: Clock
) -> None:
    secret = sessions.begin(a_session(clock))
    clock.advance(timedelta(hours=23))
    store.calls.clear()
    assert sessions.load(secret, NET) is not None
    assert store.calls == ["load"]


@pytest.mark.parametrize(
    ("idle", "step"),
    [
        (timedelta(hours=8), MINUTE),
        (timedelta(minutes=10), MINUTE),
        (timedelta(seconds=30), timedelta(seconds=3)),
    ],
)
def test_last_seen_moves_in_steps(
    store: WatchedStore, clock: Clock, idle: timedelta, step: timedelta
) -> None:
    sessions = Sessions(store, now=clock, max_age=DAY, idle_timeout=idle)
    begun = clock()
    secret = sessions.begin(a_session(clock))
    store.calls.clear()
    clock.advance(step - MICROSECOND)
    for _ in range(5):
        loaded = sessions.load(secret, NET)
        assert loaded is not None
        assert loaded.last_seen == begun
    assert store.calls == ["load"] * 5
    clock.advance(MICROSECOND)
    store.calls.clear()
    for _ in range(5):
        loaded = sessions.load(secret, NET)
        assert loaded is not None
        assert loaded.last_seen == clock()
    assert sorted(store.calls) == ["load"] * 5 + ["save"]


def test_marking_as_seen_changes_nothing_else(
    idle_sessions: Sessions, store: WatchedStore, clock: Clock
) -> None:
    session = a_session(clock)
    secret = idle_sessions.begin(session)
    before = store.load(store_key(secret))
    clock.advance(5 * MINUTE)
    idle_sessions.load(secret, NET)
    after = store.load(store_key(secret))
    assert before is not None
    assert after is not None
    assert after.expires == before.expires
    seen = msgspec.structs.replace(session, last_seen=clock())
    assert idle_sessions.load(secret, NET) == idle_sessions.live(seen, store_key(secret))
    assert idle_sessions.end(secret) == seen


def test_a_session_ended_during_a_check_is_not_brought_back(
    idle_sessions: Sessions, store: WatchedStore, clock: Clock
) -> None:
    secret = idle_sessions.begin(a_session(clock))
    clock.advance(5 * MINUTE)
    store.after_load = lambda: store.delete(store_key(secret))
    idle_sessions.load(secret, NET)
    assert "save" in store.calls
    store.after_load = lambda: None
    assert idle_sessions.load(secret, NET) is None


def test_many_checks_at_once_are_all_answered(
    idle_sessions: Sessions, store: WatchedStore, clock: Clock
) -> None:
    secret = idle_sessions.begin(a_session(clock))
    clock.advance(5 * MINUTE)
    assert at_once(12, lambda _: idle_sessions.load(secret, NET) is not None) == 12
    loaded = idle_sessions.load(secret, NET)
    assert loaded is not None
    assert loaded.last_seen == clock()


def test_a_clock_that_went_back_ends_nothing(idle_sessions: Sessions, clock: Clock) -> None:
    secret = idle_sessions.begin(a_session(clock))
    clock.advance(-timedelta(hours=2))
    assert idle_sessions.load(secret, NET) is not None


# --- a store in bad times ---------------------------------------------------------------------


def test_k11_a_store_that_is_down_is_no_answer(sessions: Sessions, store: WatchedStore, clock: Clock) -> None:
    secret = sessions.begin(a_session(clock))
    store.failing = {"load", "save", "delete"}
    for call in (
        lambda: sessions.load(secret, NET),
        lambda: sessions.begin(a_session(clock)),
        lambda: sessions.end(secret),
        lambda: sessions.spend("state", MINUTE),
    ):
        with pytest.raises(StoreDown):
            call()
    store.failing = set()
    assert sessions.load(secret, NET) is not None


def test_a_store_that_cannot_be_written_does_not_fail_the_check(
    idle_sessions: Sessions, store: WatchedStore, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    begun = clock()
    secret = idle_sessions.begin(a_session(clock))
    store.failing = {"save"}
    clock.advance(20 * MINUTE)
    loaded = idle_sessions.load(secret, NET)
    assert loaded is not None
    assert loaded.last_seen == begun
    assert "not marked as seen" in caplog.text
    assert secret not in caplog.text
    clock.advance(10 * MINUTE)
    assert idle_sessions.load(secret, NET) is None  # and the limit still holds


def test_an_end_that_cannot_be_kept_is_told(sessions: Sessions, store: WatchedStore, clock: Clock) -> None:
    secret = sessions.begin(a_session(clock))
    store.failing = {"delete"}
    with pytest.raises(StoreDown):
        sessions.end(secret)
    store.failing = set()
    assert sessions.load(secret, NET) is not None


@pytest.mark.parametrize(
    "damage",
    [
        lambda value, secret: b"",
        lambda value, secret: b"\x80\x04\x95garbage",
        lambda value, secret: value[:-1],
        lambda value, secret: bytes([value[0] ^ 1]) + value[1:],
        lambda value, secret: value[:-1] + bytes([value[-1] ^ 1]),
        lambda value, secret: seal_record(new_secret(), open_record(secret, value) or b""),
        lambda value, secret: seal_record(secret, b""),
        lambda value, secret: seal_record(secret, b"null"),
        lambda value, secret: seal_record(secret, b"{}"),
        lambda value, secret: seal_record(secret, b'{"user_id":"a\xff"}'),
        lambda value, secret: seal_record(secret, b"[" * 100_000),
        lambda value, secret: seal_record(secret, (open_record(secret, value) or b"").replace(b"Z", b"")),
        lambda value, secret: seal_record(
            secret, (open_record(secret, value) or b"").replace(b'"alice', b'1,"')
        ),
    ],
)
def test_k05_a_record_that_cannot_be_read_is_nobody_and_is_kept(
    sessions: Sessions, store: WatchedStore, clock: Clock, damage: Callable[[bytes, str], bytes]
) -> None:
    secret = sessions.begin(a_session(clock))
    key = store_key(secret)
    entry = store.load(key)
    assert entry is not None
    damaged = damage(entry.value, secret)
    assert damaged != entry.value
    store.save(key, damaged, entry.expires)
    assert sessions.load(secret, NET) is None
    kept = store.load(key)
    assert kept is not None
    assert kept.value == damaged
    assert sessions.end(secret) is None
    assert store.load(key) is None


def test_one_sessions_record_under_anothers_key_is_nobody(
    sessions: Sessions, store: WatchedStore, clock: Clock
) -> None:
    mallory, alice = sessions.begin(a_session(clock, user_id="mallory")), sessions.begin(a_session(clock))
    theirs = store.load(store_key(alice))
    assert theirs is not None
    store.save(store_key(mallory), theirs.value, theirs.expires)
    assert sessions.load(mallory, NET) is None


def test_a_field_of_a_newer_version_is_passed_over(
    sessions: Sessions, store: WatchedStore, clock: Clock
) -> None:
    """During a rolling update old and new workers read the same store."""
    secret = sessions.begin(a_session(clock))
    entry = store.load(store_key(secret))
    assert entry is not None
    newer = msgspec.json.decode(open_record(secret, entry.value) or b"") | {"added_later": [1]}
    store.save(store_key(secret), seal_record(secret, msgspec.json.encode(newer)), entry.expires)
    assert sessions.load(secret, NET) == sessions.live(a_session(clock), store_key(secret))


@pytest.mark.parametrize("value", ["\ud800", {"a": "\udfff"}, [[["\ud800"]]]])
def test_claims_that_no_encoding_keeps_are_the_providers_fault(
    sessions: Sessions, store: WatchedStore, clock: Clock, value: object
) -> None:
    with pytest.raises(ProviderWrong) as wrong:
        sessions.begin(a_session(clock, claims={"name": value}))
    assert "alice" not in str(wrong.value)
    assert store.calls == []


# --- one-time marks ---------------------------------------------------------------------------


def test_f04_a_mark_is_spent_once(sessions: Sessions, clock: Clock) -> None:
    assert sessions.spend("state-1", MINUTE) is True
    assert sessions.spend("state-1", MINUTE) is False
    assert sessions.spend("state-2", MINUTE) is True
    clock.advance(MINUTE - MICROSECOND)
    assert sessions.spend("state-1", MINUTE) is False
    clock.advance(MICROSECOND)
    assert sessions.spend("state-1", MINUTE) is True


def test_f05_of_many_at_once_one_spends_the_mark(sessions: Sessions) -> None:
    assert at_once(20, lambda _: sessions.spend("state", MINUTE)) == 1


def test_a_mark_is_no_session_and_a_session_no_mark(sessions: Sessions, clock: Clock) -> None:
    secret = sessions.begin(a_session(clock))
    assert sessions.spend(secret, MINUTE) is True
    assert sessions.spend(store_key(secret), MINUTE) is True
    assert sessions.load(secret, NET) is not None
    other = new_secret()
    sessions.spend(other, MINUTE)
    assert sessions.load(other, NET) is None


# --- what a copy of the store is worth --------------------------------------------------------

HIDDEN = [
    b"alice",
    b"example",
    b"admins",
    b"248289761001",
    b"eyJhbGciOiJSUzI1NiJ9",
    b"payload.signature",
    b"the-access-token",
    b"the-refresh-token",
    b"nested",
    b"issuer",
    b"user_id",
]


def nothing_shows(copy: bytes, secret: str) -> None:
    raw = base64.urlsafe_b64decode(secret[:43] + "=")
    for hidden in [*HIDDEN, secret.encode(), secret[:20].encode(), raw, raw.hex().encode()]:
        assert hidden not in copy
        assert base64.b64encode(hidden).rstrip(b"=")[:-1] not in copy


def nobody_gets_in(sessions: Sessions, copy: bytes, keys: list[str]) -> None:
    """Everything that a thief could make out of what the store holds, tried as a cookie."""
    for key in keys:
        digest = bytes.fromhex(key.removeprefix("session-"))
        for cookie in (key, checked(key[-43:]), checked(base64.urlsafe_b64encode(digest).decode()[:43])):
            assert sessions.load(cookie, NET) is None
    for at in range(0, len(copy) - 32, 7):
        cookie = checked(base64.urlsafe_b64encode(copy[at : at + 32]).decode()[:43])
        if any(copy[at : at + 32]):
            assert sessions.load(cookie, NET) is None


def test_b29_b30_a_copy_of_the_database_shows_nothing_and_logs_nobody_in(
    tmp_path: Path, clock: Clock
) -> None:
    with closing(SqliteStore(tmp_path / "sessions.db", clock)) as store:
        sessions = Sessions(store, now=clock, max_age=DAY, idle_timeout=timedelta(hours=1))
        secret = sessions.begin(a_session(clock))
        clock.advance(2 * MINUTE)
        assert sessions.load(secret, NET) is not None
        assert sessions.end(sessions.begin(a_session(clock))) is not None
        sessions.spend("alice's state", MINUTE)
        copy = b"".join(one.read_bytes() for one in sorted(tmp_path.iterdir()))
        assert store_key(secret).encode() in copy
        nothing_shows(copy, secret)
        with closing(sqlite3.connect(store.path)) as thief:
            rows = thief.execute("SELECT key, value FROM entries WHERE key LIKE 'session-%'").fetchall()
        assert [key for key, _ in rows] == [store_key(secret)]
        nobody_gets_in(sessions, rows[0][1], [key for key, _ in rows])
        assert sessions.load(secret, NET) is not None


@pytest.mark.external
def test_b29_b30_a_copy_of_redis_shows_nothing_and_logs_nobody_in(tmp_path: Path, clock: Clock) -> None:
    with running_redis(any_redis(), tmp_path, durable=True) as server:
        store = RedisStore(server.address, now=clock)
        sessions = Sessions(store, now=clock, max_age=DAY)
        secret = sessions.begin(a_session(clock))
        copy = b"".join(one.read_bytes() for one in sorted(tmp_path.rglob("*")) if one.is_file())
        assert store_key(secret).encode() in copy
        nothing_shows(copy, secret)
        entry = store.load(store_key(secret))
        assert entry is not None
        nobody_gets_in(sessions, entry.value, [store_key(secret)])


@pytest.mark.external
def test_s24_after_redis_was_killed_and_restarted_the_same_secret_works(tmp_path: Path, clock: Clock) -> None:
    with running_redis(any_redis(), tmp_path, durable=True) as server:
        sessions = Sessions(
            RedisStore(server.address, now=clock), now=clock, max_age=DAY, idle_timeout=timedelta(hours=1)
        )
        secret = sessions.begin(a_session(clock))
        assert sessions.spend("state", MINUTE) is True
        server.kill()
        for call in (
            lambda: sessions.load(secret, NET),
            lambda: sessions.load(new_secret(), NET),
            lambda: sessions.spend("state", MINUTE),
            lambda: sessions.end(secret),
        ):
            with pytest.raises(StoreDown):
                call()
        server.start()
        assert sessions.load(secret, NET) is not None
        assert sessions.load(new_secret(), NET) is None
        assert sessions.spend("state", MINUTE) is False


FULL_DISK = """
import os, resource, sys
from datetime import datetime, timedelta, timezone
from authservice.check import Reach
from authservice.errors import StoreDown
from authservice.identity import AuthMethod, Identity, VerifiedClaims
from authservice.sessions import Session
from authservice.sessions.directory import Directory
from authservice.sessions.labels import About, Labels
from authservice.sessions.live import Sessions
from authservice.sessions.sqlite import SqliteStore
time = datetime.now(timezone.utc)
now = lambda: time
store = SqliteStore(sys.argv[1], now)
sessions = Sessions(store, now=now, max_age=timedelta(days=1), idle_timeout=timedelta(hours=1))
limit = now() + timedelta(days=1)
record = Session(user_id="a", issuer="i", subject="s", created=now(), last_seen=now(), expires=limit)
secret = sessions.begin(record)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (os.stat(sys.argv[1] + "-wal").st_size, hard))
refused, minute = 0, timedelta(minutes=1)
for call in (lambda: sessions.begin(record), lambda: sessions.spend("state", minute), store.ping):
    try:
        call()
    except StoreDown:
        refused += 1
time += timedelta(minutes=30)
print(refused, sessions.load(secret, Reach.NETWORK) is not None)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
time += timedelta(minutes=29)
print(sessions.load(secret, Reach.NETWORK) is not None, sessions.spend("state", timedelta(minutes=1)))
time += timedelta(minutes=59)
print(sessions.load(secret, Reach.NETWORK) is not None, sessions.end(secret) is not None)
"""


def test_on_a_full_disk_nobody_gets_in_and_nobody_is_logged_out(tmp_path: Path) -> None:
    printed = output(run_python(FULL_DISK, str(tmp_path / "sessions.db"))).splitlines()
    assert printed == ["3 True", "True True", "True True"]


def test_times_are_kept_as_moments_not_as_wall_clock_text(sessions: Sessions, clock: Clock) -> None:
    east = timezone(timedelta(hours=9))
    session = a_session(clock, created=clock().astimezone(east), last_seen=clock().astimezone(east))
    secret = sessions.begin(session)
    loaded = sessions.load(secret, NET)
    assert loaded is not None
    assert loaded.last_seen == clock()
    ended = sessions.end(secret)
    assert ended is not None
    assert ended.created == clock()
    with pytest.raises(TypeError):
        sessions.begin(a_session(clock, expires=clock().replace(tzinfo=None)))
