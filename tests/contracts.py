"""What every implementation of a contract must do, as test classes to subclass.

`StoreContract` is the contract of `authservice.sessions.Store`, `WatchContract` that of its
`Watch`. Not a test file itself: a class
here runs only where a test file subclasses it and says how its subject is made.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from threading import Barrier

import pytest

from authservice.sessions import Label, Labelled, Store, Watch
from tests.waiting import until

MINUTE = timedelta(minutes=1)
MICROSECOND = timedelta(microseconds=1)
ROOT = Path(__file__).resolve().parent.parent


class Clock:
    """A clock that moves when it is told to. Starts at the real time, because a store's server
    has a clock of its own that nobody can move."""

    def __init__(self) -> None:
        self.time = datetime.now(timezone.utc)

    def __call__(self) -> datetime:
        return self.time

    def advance(self, by: timedelta) -> datetime:
        self.time += by
        return self.time


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Starts Python on ``code`` in the checkout, as a process of its own."""
    environ = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environ, cwd=ROOT)


def output(process: subprocess.Popen[str], send: str | None = None) -> str:
    """What the process printed, once it ended; AssertionError with its complaint when it failed."""
    try:
        printed, complaint = process.communicate(send, timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == 0, complaint
    return printed.strip()


def at_once(count: int, work: Callable[[int], bool]) -> int:
    """Calls ``work`` in ``count`` threads at the same moment; how many said True."""
    barrier = Barrier(count)

    def one(number: int) -> bool:
        barrier.wait(10)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return sum(pool.map(one, range(count)))


class StoreContract:
    """Subclasses give the fixtures ``open_store`` (clock → a new store over the same data) and
    ``recipe`` (the same as Python source: statements that bind ``store``, given ``now``)."""

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def store(self, open_store: Callable[[Clock], Store], clock: Clock) -> Iterator[Store]:
        with closing(open_store(clock)) as store:
            yield store

    @pytest.fixture
    def script(self, recipe: str) -> str:
        return (
            "import os, sys\n"
            "from datetime import datetime, timedelta, timezone\n"
            "now = lambda: datetime.now(timezone.utc)\n"
            "soon = now() + timedelta(minutes=1)\n" + recipe + "\n"
        )

    def test_nothing_is_there_at_first(self, store: Store) -> None:
        assert store.load("key") is None
        assert store.delete("key") is False

    @pytest.mark.parametrize("value", [b"", b"\0", bytes(range(256)), b"1 2 3\n", b"\n", "ünï".encode()])
    def test_bytes_and_expiry_come_back_exactly(self, store: Store, clock: Clock, value: bytes) -> None:
        expires = clock() + MINUTE + MICROSECOND
        assert store.save("key", value, expires) is True
        entry = store.load("key")
        assert entry is not None
        assert (entry.value, entry.expires) == (value, expires)
        assert entry.expires.tzinfo is not None

    def test_a_large_value_comes_back_exactly(self, store: Store, clock: Clock) -> None:
        value = os.urandom(1024 * 1024)
        store.save("key", value, clock() + MINUTE)
        entry = store.load("key")
        assert entry is not None and entry.value == value

    def test_keys_are_apart(self, store: Store, clock: Clock) -> None:
        for key in ("key", "KEY", "key ", "key*", "k" * 200):
            store.save(key, key.encode(), clock() + MINUTE)
        assert store.delete("key*") is True
        assert {
            key: entry.value for key in ("key", "KEY", "key ", "k" * 200) if (entry := store.load(key))
        } == {
            "key": b"key",
            "KEY": b"KEY",
            "key ": b"key ",
            "k" * 200: b"k" * 200,
        }

    def test_saving_again_replaces_value_and_expiry(self, store: Store, clock: Clock) -> None:
        store.save("key", b"old", clock() + MINUTE)
        assert store.save("key", b"new", clock() + 2 * MINUTE) is True
        entry = store.load("key")
        assert entry is not None
        assert (entry.value, entry.expires) == (b"new", clock() + 2 * MINUTE)

    def test_every_save_gives_another_version(self, store: Store, clock: Clock) -> None:
        versions = set()
        for _ in range(5):
            store.save("key", b"same", clock() + MINUTE)
            entry = store.load("key")
            assert entry is not None
            versions.add(entry.version)
        store.delete("key")
        store.save("key", b"same", clock() + MINUTE)
        entry = store.load("key")
        assert entry is not None
        assert len(versions | {entry.version}) == 6

    def test_an_entry_ends_at_its_expiry_on_our_clock(self, store: Store, clock: Clock) -> None:
        store.save("key", b"value", clock() + MINUTE)
        clock.advance(MINUTE - MICROSECOND)
        assert store.load("key") is not None
        clock.advance(MICROSECOND)
        assert store.load("key") is None
        assert store.delete("key") is False

    def test_an_expired_entry_is_absent_and_has_no_version(self, store: Store, clock: Clock) -> None:
        store.save("key", b"old", clock() + MINUTE)
        old = store.load("key")
        assert old is not None
        clock.advance(MINUTE)
        assert store.save("key", b"new", clock() + MINUTE, if_version=old.version) is False
        assert store.load("key") is None
        assert store.save("key", b"new", clock() + MINUTE, if_absent=True) is True
        entry = store.load("key")
        assert entry is not None and entry.value == b"new"

    def test_saving_what_has_expired_leaves_nothing(self, store: Store, clock: Clock) -> None:
        store.save("key", b"old", clock() + MINUTE)
        assert store.save("key", b"new", clock() - MICROSECOND) is True
        assert store.load("key") is None

    def test_if_absent_writes_only_when_nothing_is_there(self, store: Store, clock: Clock) -> None:
        assert store.save("key", b"first", clock() + MINUTE, if_absent=True) is True
        assert store.save("key", b"second", clock() + MINUTE, if_absent=True) is False
        entry = store.load("key")
        assert entry is not None and entry.value == b"first"
        store.delete("key")
        assert store.save("key", b"third", clock() + MINUTE, if_absent=True) is True

    def test_if_absent_has_one_winner_among_threads(
        self, open_store: Callable[[Clock], Store], clock: Clock
    ) -> None:
        with closing(open_store(clock)) as one, closing(open_store(clock)) as other:
            expires = clock() + MINUTE
            for key in ("a", "b", "c"):
                stores = (one, other)
                won = at_once(20, lambda n, k=key: stores[n % 2].save(k, b"%d" % n, expires, if_absent=True))
                assert won == 1

    def test_if_version_writes_over_that_version_only(self, store: Store, clock: Clock) -> None:
        expires = clock() + MINUTE
        assert store.save("key", b"none", expires, if_version=1) is False
        assert store.load("key") is None
        store.save("key", b"first", expires)
        first = store.load("key")
        assert first is not None
        assert store.save("key", b"wrong", expires, if_version=first.version + 1) is False
        assert store.save("key", b"second", expires, if_version=first.version) is True
        assert store.save("key", b"late", expires, if_version=first.version) is False
        entry = store.load("key")
        assert entry is not None and entry.value == b"second"

    def test_if_version_has_one_winner_among_threads(self, store: Store, clock: Clock) -> None:
        store.save("key", b"first", clock() + MINUTE)
        first = store.load("key")
        assert first is not None
        won = at_once(20, lambda n: store.save("key", b"%d" % n, clock() + MINUTE, if_version=first.version))
        assert won == 1

    def test_a_deleted_entry_is_not_brought_back(self, store: Store, clock: Clock) -> None:
        store.save("key", b"value", clock() + MINUTE)
        entry = store.load("key")
        assert entry is not None
        assert store.delete("key") is True
        assert store.save("key", b"value", clock() + MINUTE, if_version=entry.version) is False
        assert store.load("key") is None
        assert store.delete("key") is False

    def test_the_two_conditions_exclude_each_other(self, store: Store, clock: Clock) -> None:
        with pytest.raises(ValueError):
            store.save("key", b"value", clock() + MINUTE, if_absent=True, if_version=1)
        assert store.load("key") is None

    def test_sweeping_leaves_what_lives(self, store: Store, clock: Clock) -> None:
        for number in range(10):
            store.save(f"old-{number}", b"old", clock() + MINUTE)
        store.save("young", b"young", clock() + 5 * MINUTE)
        clock.advance(2 * MINUTE)
        while store.sweep():
            pass
        entry = store.load("young")
        assert entry is not None and entry.value == b"young"
        assert not any(store.load(f"old-{number}") for number in range(10))

    def test_an_entry_is_found_under_each_of_its_tags(self, store: Store, clock: Clock) -> None:
        expires = clock() + MINUTE + MICROSECOND
        store.save("one", b"value", expires, label=Label(b"\0about one", ("alice", "sid-1")))
        store.save("two", b"value", expires, label=Label(b"about two", ("alice", "sid-2")))
        store.save("three", b"value", expires, label=Label(b"", ("ALICE", "alic", "alice_")))
        store.save("four", b"value", expires)
        assert sorted(store.find("alice")) == ["one", "two"]
        assert (store.find("sid-1"), store.find("sid-2")) == (["one"], ["two"])
        assert store.find("bob") == []
        assert store.label("one") == Labelled("one", b"\0about one", expires)
        assert store.label("three") == Labelled("three", b"", expires)
        assert store.label("four") is None and store.label("five") is None
        assert {one.key: one.metadata for one in store.labels()} == {
            "one": b"\0about one", "two": b"about two", "three": b"",
        }

    def test_a_label_may_have_no_tags(self, store: Store, clock: Clock) -> None:
        store.save("key", b"value", clock() + MINUTE, label=Label(b"about", ()))
        assert [one.key for one in store.labels()] == ["key"]

    def test_a_new_label_takes_the_old_ones_place_and_none_leaves_it(self, store: Store, clock: Clock) -> None:
        store.save("key", b"value", clock() + MINUTE, label=Label(b"old", ("old", "both")))
        store.save("key", b"new", clock() + 2 * MINUTE)
        assert store.label("key") == Labelled("key", b"old", clock() + 2 * MINUTE)
        assert store.find("old") == ["key"]
        entry = store.load("key")
        assert entry is not None
        assert store.save(
            "key", b"newer", entry.expires, if_version=entry.version, label=Label(b"new", ("both", "new"))
        )
        assert store.label("key") == Labelled("key", b"new", entry.expires)
        assert (store.find("old"), store.find("both"), store.find("new")) == ([], ["key"], ["key"])
        later = store.load("key")
        assert later is not None
        assert store.save("key", b"newest", clock() + 3 * MINUTE, if_version=later.version)
        assert store.find("new") == ["key"]
        assert store.label("key") == Labelled("key", b"new", clock() + 3 * MINUTE)
        assert [one.key for one in store.labels()] == ["key"]

    def test_an_entry_without_a_label_may_get_one(self, store: Store, clock: Clock) -> None:
        store.save("key", b"value", clock() + MINUTE)
        store.save("key", b"value", clock() + MINUTE, label=Label(b"about", ("tag",)))
        assert store.find("tag") == ["key"]

    def test_what_was_not_written_labels_nothing(self, store: Store, clock: Clock) -> None:
        expires, other = clock() + MINUTE, Label(b"other", ("other",))
        assert not store.save("none", b"value", expires, if_version=1, label=other)
        store.save("key", b"value", expires, label=Label(b"about", ("tag",)))
        entry = store.load("key")
        assert entry is not None
        assert not store.save("key", b"late", expires, if_version=entry.version + 1, label=other)
        assert not store.save("key", b"late", expires, if_absent=True, label=other)
        assert store.label("none") is None
        assert store.label("key") == Labelled("key", b"about", expires)
        assert [one.metadata for one in store.labels()] == [b"about"]

    def test_a_label_ends_with_its_entry(self, store: Store, clock: Clock) -> None:
        def gone(key: str) -> bool:
            return store.label(key) is None and not store.find(f"tag-{key}") and key not in listed()

        def listed() -> set[str]:
            return {one.key for one in store.labels()}

        for key in ("deleted", "expired", "never", "lives"):
            store.save(
                key, b"value", clock() + MINUTE * (2 if key == "lives" else 1), label=Label(b"about", (f"tag-{key}",))
            )
        assert store.save("never", b"value", clock() - MICROSECOND)
        assert store.delete("deleted")
        assert gone("deleted") and gone("never") and not gone("expired")
        clock.advance(MINUTE)
        assert gone("expired") and not gone("lives")
        for key in ("deleted", "expired", "never"):
            store.save(key, b"value", clock() + MINUTE, if_absent=key == "expired")
            assert gone(key), "the label of one that was there before"
        while store.sweep():
            pass
        assert listed() == {"lives"}

    def test_many_labels_are_all_listed_and_none_twice(self, store: Store, clock: Clock) -> None:
        for number in range(1100):
            store.save(f"key-{number}", b"", clock() + MINUTE, label=Label(b"%d" % number, ("all", f"n{number}")))
        listed = [(one.key, one.metadata) for one in store.labels()]
        assert len(listed) == 1100
        assert set(listed) == {(f"key-{number}", b"%d" % number) for number in range(1100)}
        assert len(store.find("all")) == 1100

    def test_others_may_write_while_labels_are_listed(self, store: Store, clock: Clock) -> None:
        for number in range(600):
            store.save(f"key-{number}", b"", clock() + MINUTE, label=Label(b"about", ()))
        seen: list[str] = []
        for turn, one in enumerate(store.labels()):
            seen.append(one.key)
            if turn % 100 == 0:
                store.save(f"key-{turn}", b"", clock() + MINUTE, label=Label(b"other", ("tag",)))
                store.delete(f"key-{turn + 1}")
        assert len(set(seen)) == len(seen)
        assert {f"key-{number}" for number in range(600) if number % 100 != 1} <= set(seen)

    def test_a_session_that_can_be_loaded_can_be_found(
        self, open_store: Callable[[Clock], Store], clock: Clock
    ) -> None:
        """Whoever ends all that bears a tag misses none that was already in use."""
        with closing(open_store(clock)) as one, closing(open_store(clock)) as other:

            def work(number: int) -> bool:
                if number % 2:
                    for turn in range(40):
                        one.save(f"{number}-{turn}", b"", clock() + MINUTE, label=Label(b"about", (f"tag-{number}",)))
                    return True
                for turn in range(40):
                    key = f"{number + 1}-{turn}"
                    until(lambda key=key: other.load(key), every=0.001)
                    assert key in other.find(f"tag-{number + 1}") and other.label(key)
                return True

            assert at_once(6, work) == 6

    def test_a_deleted_entry_leaves_no_label_behind_whoever_saves_meanwhile(
        self, open_store: Callable[[Clock], Store], clock: Clock
    ) -> None:
        with closing(open_store(clock)) as one, closing(open_store(clock)) as other:
            for turn in range(10):
                key = f"key-{turn}"
                one.save(key, b"", clock() + MINUTE, label=Label(b"about", ("tag",)))
                entry = one.load(key)
                assert entry is not None

                def work(number: int, key: str = key, version: int = entry.version) -> bool:
                    if number == 0:
                        return one.delete(key)
                    return other.save(
                        key, b"", clock() + MINUTE, if_version=version, label=Label(b"new", ("tag", "new"))
                    )

                at_once(2, work)
                if one.load(key):
                    one.delete(key)
                assert one.label(key) is None
            assert (one.find("tag"), one.find("new"), list(one.labels())) == ([], [], [])

    def test_an_inspection_finds_nothing_wrong_and_tells_how_many_there_are(
        self, store: Store, clock: Clock
    ) -> None:
        for number in range(5):
            store.save(f"key-{number}", b"value", clock() + MINUTE, label=Label(b"about", ("tag",)))
        for thorough in (None, True, False):
            inspection = store.inspect(thorough=thorough)
            assert inspection.problems == ()
            assert 5 in inspection.facts.values()

    def test_threads_share_one_store(self, store: Store, clock: Clock) -> None:
        def work(number: int) -> bool:
            for turn in range(25):
                key, value = f"{number}-{turn % 3}", f"{number} {turn}".encode()
                store.save(key, value, clock() + MINUTE)
                entry = store.load(key)
                assert entry is not None and entry.value == value
            return store.delete(f"{number}-0")

        assert at_once(8, work) == 8

    def test_processes_see_each_other(self, store: Store, clock: Clock, script: str) -> None:
        store.save("ours", b"from here", clock() + MINUTE)
        code = script + (
            "print(store.load('ours').value.decode())\n"
            "store.save('theirs', b'from there', soon)\n"
            "print(store.delete('ours'))\n"
        )
        assert output(run_python(code)).splitlines() == ["from here", "True"]
        assert store.load("ours") is None
        entry = store.load("theirs")
        assert entry is not None and entry.value == b"from there"

    def test_if_absent_has_one_winner_among_processes(self, script: str) -> None:
        code = script + (
            "store.ping()\n"
            "sys.stdin.readline()\n"
            "print(sum(store.save(f'mark-{n}', b'x', soon, if_absent=True) for n in range(50)))\n"
        )
        processes = [run_python(code) for _ in range(3)]
        assert sum(int(output(process, "go\n")) for process in processes) == 50

    def test_a_store_works_on_both_sides_of_a_fork(self, script: str) -> None:
        code = script + (
            "store.save('before', b'before', soon)\n"
            "child = os.fork()\n"
            "for turn in range(30):\n"
            "    store.save(f'{child == 0}-{turn}', b'%d' % turn, soon)\n"
            "    assert store.load(f'{child == 0}-{turn}').value == b'%d' % turn\n"
            "    assert store.load('before').value == b'before'\n"
            "store.close()\n"
            "if child == 0:\n"
            "    os._exit(0)\n"
            "assert os.waitpid(child, 0)[1] == 0\n"
            "keys = [f'{side}-{turn}' for side in (True, False) for turn in range(30)]\n"
            "print(sum(store.load(key) is not None for key in keys))\n"
        )
        assert output(run_python(code)) == "60"

    def test_ping_says_nothing_when_all_is_well(self, store: Store) -> None:
        store.ping()
        store.ping()
        assert store.notices == ()

    def test_a_closed_store_opens_again(self, store: Store, clock: Clock) -> None:
        store.save("key", b"value", clock() + MINUTE)
        store.close()
        store.close()
        entry = store.load("key")
        assert entry is not None and entry.value == b"value"


class Watched:
    """A watch, what it was told to forget, and one entry that was copied under its stamp."""

    def __init__(self, store: Store, key: str) -> None:
        self.told: list[str | None] = []
        self.watch: Watch = store.watch(self.told.append)
        self._store = store
        self._key = key

    def __enter__(self) -> Watched:
        self.watch.start()
        self.copy()
        return self

    def __exit__(self, *_: object) -> None:
        self.watch.stop()

    def copy(self) -> None:
        """Copies the entry, as whoever keeps copies does: stamp first, then the store."""
        self.stamp = until(self._stamp_from_here, every=0.001)
        entry = self._store.load(self._key)
        assert entry is not None
        self.version = entry.version

    def _stamp_from_here(self) -> object | None:
        self.told.clear()
        return self.watch.stamp()

    def usable(self) -> bool:
        """Whether the copy may be used now."""
        stamp = self.watch.stamp()
        if stamp is None or self._key in self.told or None in self.told:
            return False
        return bool(stamp == self.stamp) or self.watch.holds(self._key, self.version)


class WatchContract:
    """Subclasses give the fixtures of `StoreContract`."""

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def store(self, open_store: Callable[[Clock], Store], clock: Clock) -> Iterator[Store]:
        with closing(open_store(clock)) as store:
            store.save("key", b"value", clock() + MINUTE)
            yield store

    def test_nothing_is_known_before_the_start_and_after_the_end(self, store: Store) -> None:
        watched = Watched(store, "key")
        assert watched.watch.stamp() is None
        entry = store.load("key")
        assert entry is not None
        assert not watched.watch.holds("key", entry.version)
        watched.watch.stop()
        for _ in range(2):
            with watched:
                assert until(watched.usable, every=0.001)
            watched.watch.stop()
            assert watched.watch.stamp() is None
            assert not watched.watch.holds("key", watched.version)

    def test_a_copy_stays_usable_while_nothing_happens(self, store: Store) -> None:
        with Watched(store, "key") as watched:
            assert sum(until(watched.usable, every=0.001) for _ in range(200)) == 200

    def test_another_entrys_change_leaves_a_copy_usable(self, store: Store, clock: Clock) -> None:
        with Watched(store, "key") as watched:
            store.save("other", b"value", clock() + MINUTE)
            for _ in range(20):
                until(watched.usable, every=0.001)

    @pytest.mark.parametrize("change", ["save", "delete", "if_version"])
    def test_a_change_by_anybody_makes_a_copy_unusable(
        self, open_store: Callable[[Clock], Store], store: Store, clock: Clock, change: str
    ) -> None:
        with closing(open_store(clock)) as elsewhere, Watched(store, "key") as watched:
            for writer in (store, elsewhere):
                store.save("key", b"value", clock() + MINUTE)
                until(lambda: (watched.copy(), watched.usable())[1], every=0.001)
                if change == "delete":
                    assert writer.delete("key")
                elif change == "save":
                    writer.save("key", b"value", clock() + MINUTE)
                else:
                    assert writer.save("key", b"new", clock() + MINUTE, if_version=watched.version)
                until(lambda: not watched.usable(), every=0.001)
                for _ in range(20):
                    assert not watched.usable()

    def test_a_change_during_a_load_makes_its_copy_unusable(self, store: Store, clock: Clock) -> None:
        with Watched(store, "key") as watched:
            until(watched.usable, every=0.001)
            watched.stamp = until(watched.watch.stamp, every=0.001)  # and now the store is asked
            store.save("key", b"newer", clock() + MINUTE)
            until(lambda: not watched.usable(), every=0.001)

    def test_another_process_may_make_the_change(self, store: Store, recipe: str) -> None:
        code = (
            "from datetime import datetime, timezone\n"
            "now = lambda: datetime.now(timezone.utc)\n" + recipe + "\nprint(store.delete('key'))\n"
        )
        with Watched(store, "key") as watched:
            process = run_python(code)
            assert output(process) == "True"
            until(lambda: not watched.usable(), every=0.001)
