"""Who is logged in: found by what the service knows, and out everywhere once ended."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from authservice.check import NeedsIO, Reach
from authservice.errors import StoreDown
from authservice.sessions.directory import Directory
from authservice.sessions.labels import Labels
from authservice.sessions.live import Sessions
from authservice.sessions.seal import Keyring, public_id, store_key
from authservice.sessions.sqlite import SqliteStore
from tests.contracts import Clock
from tests.sample_sessions import WatchedStore, a_session
from tests.waiting import until

DAY = timedelta(days=1)
NET = Reach.NETWORK
ISSUER = "https://id.example.com/"
LABELS = Labels(Keyring([b"the service's key"]))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[WatchedStore]:
    with closing(SqliteStore(tmp_path / "sessions.db", clock)) as store:
        yield WatchedStore(store)


@pytest.fixture
def sessions(store: WatchedStore, clock: Clock) -> Sessions:
    return Sessions(store, now=clock, max_age=DAY, labels=LABELS)


@pytest.fixture
def directory(store: WatchedStore, sessions: Sessions) -> Directory:
    return Directory(store, LABELS, forget=sessions.forget)


def id_of(secret: str) -> str:
    return public_id(store_key(secret))


def test_everyone_is_listed_with_what_is_known(sessions: Sessions, directory: Directory, clock: Clock) -> None:
    first = sessions.begin(a_session(clock), address="203.0.113.7", user_agent="Firefox")
    second = sessions.begin(a_session(clock, user_id="bob"))
    sessions.spend("a used-up login", DAY)
    listed = {known.id: known for known in directory.everyone()}
    assert set(listed) == {id_of(first), id_of(second)}
    about = listed[id_of(first)].about
    assert about is not None
    assert (about.user_id, about.address, about.user_agent) == ("alice@example.com", "203.0.113.7", "Firefox")
    assert listed[id_of(first)].expires == clock() + DAY
    assert directory.show(id_of(first)) == listed[id_of(first)]


def test_sessions_are_found_by_user_by_subject_and_by_sid(
    sessions: Sessions, directory: Directory, clock: Clock
) -> None:
    def begin(**changes: str) -> str:
        clock.advance(timedelta(seconds=1))
        return id_of(sessions.begin(a_session(clock, **{"subject": "s1", "provider_sid": "p1", **changes})))

    one, two = begin(), begin(provider_sid="p2")
    other = begin(issuer="https://elsewhere")
    bob = begin(user_id="bob", subject="s2", provider_sid="p1")
    assert [known.id for known in directory.of_user("alice@example.com")] == [one, two, other]
    assert [known.id for known in directory.of_user("bob")] == [bob]
    assert directory.of_user("Bob") == directory.of_user("") == []
    assert set(directory.of_subject(ISSUER, "s1")) == {one, two}
    assert directory.of_subject("https://elsewhere", "s1") == [other]
    assert set(directory.of_provider_session(ISSUER, "p1")) == {one, bob}
    assert directory.of_provider_session(ISSUER, "p2") == [two]
    assert directory.of_provider_session(ISSUER, "") == []


def test_ids_alone(sessions: Sessions, directory: Directory, clock: Clock) -> None:
    ids = sorted(id_of(sessions.begin(a_session(clock))) for _ in range(5))
    assert sorted(directory.ids()) == ids
    assert directory.show(ids[0][:20]) is None


def test_k09_s13_who_is_ended_is_out_everywhere(
    sessions: Sessions, directory: Directory, store: WatchedStore, clock: Clock, tmp_path: Path
) -> None:
    secrets = [sessions.begin(a_session(clock)) for _ in range(3)]
    with closing(SqliteStore(tmp_path / "sessions.db", clock)) as theirs:
        elsewhere = Sessions(theirs, now=clock, max_age=DAY, cache_size=100, labels=LABELS)
        sessions = Sessions(store, now=clock, max_age=DAY, cache_size=100, labels=LABELS)
        directory = Directory(store, LABELS, forget=sessions.forget)
        for process in (sessions, elsewhere):
            process.start()
            for secret in secrets:
                until(partial(held, process, secret), every=0.001)
        assert directory.end([id_of(secrets[0]), id_of(secrets[1]), "0" * 64, "nothing"]) == 2
        for process in (sessions, elsewhere):
            assert [process.load(secret, NET) is not None for secret in secrets] == [False, False, True]
        assert directory.end([id_of(secrets[0])]) == 0
        for process in (sessions, elsewhere):
            process.stop()


def held(sessions: Sessions, secret: str) -> bool:
    """Whether a check is answered from memory by now."""
    sessions.load(secret, NET)
    try:
        return sessions.load(secret, Reach.MEMORY) is not None
    except NeedsIO:
        return False


def test_nobody_is_listed_once_ended_or_expired(sessions: Sessions, directory: Directory, clock: Clock) -> None:
    secret = sessions.begin(a_session(clock))
    sessions.begin(a_session(clock, expires=clock() + timedelta(minutes=1)))
    assert len(list(directory.everyone())) == 2
    sessions.end(secret)
    assert len(directory.of_user("alice@example.com")) == 1
    clock.advance(timedelta(minutes=1))
    assert list(directory.everyone()) == directory.of_user("alice@example.com") == []


def test_two_services_in_one_file_neither_find_nor_read_each_others_sessions(
    store: WatchedStore, clock: Clock
) -> None:
    services = []
    for key in (b"one", b"two"):
        labels = Labels(Keyring([key]))
        services.append((Sessions(store, now=clock, max_age=DAY, labels=labels), Directory(store, labels)))
    ids = [id_of(sessions.begin(a_session(clock))) for sessions, _ in services]
    for own, (_, directory) in zip(ids, services):
        assert [known.id for known in directory.of_user("alice@example.com")] == [own]
        assert directory.of_subject(ISSUER, "248289761001") == [own]
        assert {known.id: known.about is not None for known in directory.everyone()} == {
            id: id == own for id in ids
        }


@pytest.mark.parametrize("failing", ["find", "label", "labels", "delete"])
def test_k11_a_store_that_is_down_is_no_empty_directory(
    sessions: Sessions, directory: Directory, store: WatchedStore, clock: Clock, failing: str
) -> None:
    secret = sessions.begin(a_session(clock))
    store.failing = {failing}
    calls = {
        "find": lambda: directory.of_subject(ISSUER, "x"),
        "label": lambda: directory.show(id_of(secret)),
        "labels": lambda: list(directory.everyone()),
        "delete": lambda: directory.end([id_of(secret)]),
    }
    with pytest.raises(StoreDown):
        calls[failing]()
    assert sessions.load(secret, NET) is not None


def test_b29_a_reader_of_the_file_learns_nobodys_name(
    sessions: Sessions, directory: Directory, clock: Clock, tmp_path: Path
) -> None:
    sessions.begin(a_session(clock), address="203.0.113.7", user_agent="Firefox/140")
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    for hidden in (b"alice", b"example", b"203.0.113", b"Firefox", b"248289761001", b"sid &"):
        assert hidden not in content
    with closing(sqlite3.connect(tmp_path / "sessions.db")) as there:
        (tags,) = there.execute("SELECT count(*) FROM tags").fetchone()
    assert tags == 3
