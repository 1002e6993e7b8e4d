"""What the benchmark does among very many sessions: it fills stores, looks for one person's, and sweeps."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
import redis

from authservice.sessions import Store
from authservice.sessions.redis import RedisStore
from authservice.sessions.sqlite import SqliteStore
from bench import listing, report, strangers, sweeping
from bench.listing import Listing
from bench.rows import GROUPS
from bench.stage import STRANGERS
from tests.servers import any_redis, running_redis

pytestmark = pytest.mark.slow

COUNT = 2500


def looked_at(store: Store, tags: Sequence[str]) -> None:
    """As many sessions as were asked for, of which each is found by its tags."""
    labels = {found.key: found for found in store.labels()}
    assert len(labels) == COUNT
    entry = store.load(next(iter(labels)))
    assert entry and entry.expires == next(iter(labels.values())).expires
    assert len(tags) == 3 * COUNT and len(set(tags)) == len(tags)
    assert {*store.find(tags[0]), *store.find(tags[-1])} <= set(labels)
    assert [len(store.find(tag)) for tag in tags[::999]] == [1] * len(tags[::999])
    assert not store.inspect().problems


def schema(file: Path) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(file)) as connection:
        return sorted(connection.execute("SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_master"))


class TestFilling:
    def test_a_file_is_as_the_store_would_have_written_it(self, tmp_path: Path) -> None:
        file, empty = tmp_path / "sessions.db", tmp_path / "empty.db"
        strangers.fill_file(file, COUNT)
        SqliteStore(empty, strangers.now).close()
        assert schema(file) == schema(empty)
        with closing(sqlite3.connect(file)) as connection:
            tags = [tag for (tag,) in connection.execute("SELECT tag FROM tags")]
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        with closing(SqliteStore(file, strangers.now, create=False)) as store:
            looked_at(store, tags)
            assert store.inspect(thorough=True).facts["sessions with a label"] == COUNT

    def test_some_of_them_have_ended(self, tmp_path: Path) -> None:
        strangers.fill_file(tmp_path / "sessions.db", COUNT, expired=1000)
        with closing(SqliteStore(tmp_path / "sessions.db", strangers.now)) as store:
            assert len(list(store.labels())) == COUNT - 1000
            while store.sweep():
                pass
            assert store.inspect().facts["entries (sessions, used-up login marks)"] == COUNT - 1000

    @pytest.mark.external
    def test_and_a_redis(self, tmp_path: Path) -> None:
        with running_redis(any_redis(), tmp_path) as server:
            strangers.fill_redis(server.address, COUNT)
            written = RedisStore(server.address, now=strangers.now)
            with redis.Redis(port=server.port) as client, closing(written) as store:
                prefix = b"authservice:tag:"
                tags = [name.removeprefix(prefix).decode() for name in client.keys(prefix + b"*")]
                looked_at(store, tags)
                assert all(client.pttl(name) > 0 for name in client.keys("*"))
                for tag in tags:
                    assert all(map(store.delete, store.find(tag)))
                assert client.dbsize() == 0, "a session takes its tags with it"


class TestListing:
    @pytest.mark.external
    def test_one_persons_sessions_are_listed_among_many(self) -> None:
        any_redis()
        said: list[str] = []
        found = listing.measure(1000, 2, said.append)
        assert found.sessions == 1000 and [*found.seconds] == [listing.SQLITE, listing.REDIS], said
        assert all(len(took) == 2 and min(took) > 0 for took in found.seconds.values())

    def test_a_list_without_them_is_no_figure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(listing, "_log_in", lambda environ: {"0" * 64})
        monkeypatch.setattr(listing.shutil, "which", lambda name: None)
        said: list[str] = []
        assert listing.measure(10, 1, said.append).seconds == {}
        assert "without SQLite: sessions list --user: 1" in said[1] and "redis-server is not installed" in said[2]

    @pytest.mark.parametrize("count,verdicts", [(STRANGERS, [True, False]), (50_000, [])])
    def test_what_is_wanted_is_wanted_of_a_full_store(self, count: int, verdicts: list[bool]) -> None:
        found = Listing(count, {listing.SQLITE: [1.5, 1.9, 3.0], listing.REDIS: [1.9, 2.1, 2.2]})
        results = report.Results("a machine", GROUPS, {}, listing=found)
        assert [met for _, _, met in report.verdicts(results)] == verdicts
        ((title, lines),) = report.tables(results)
        assert title == f"One person's sessions among {count:,}"
        assert lines[1:] == [["sessions in SQLite", "1.90 (1.50–3.00)"], ["sessions in Redis", "2.10 (1.90–2.20)"]]
        assert report.as_json(results, "")["listing"]["seconds"][listing.REDIS] == [1.9, 2.1, 2.2]


class TestSweeping:
    def test_checks_are_measured_while_another_process_sweeps(self, tmp_path: Path) -> None:
        found = sweeping.measure(tmp_path, 3000, 1, 0.6, lambda line: None)
        assert (found.sessions, tuple(found.rounds)) == (3000, sweeping.KINDS)
        results = report.Results("a machine", GROUPS, {}, sweeping=found)
        assert len(report.verdicts(results)) == len(sweeping.KINDS)

    def test_what_is_wanted_is_the_median_of_the_rounds(self) -> None:
        slow, quick = sweeping.Tail(0.004, 0.009), sweeping.Tail(0.001, 0.002)
        assert sweeping.Round(quick, slow).added == pytest.approx(0.007)
        assert sweeping.Tail.of([0.001] * 98 + [0.002, 0.003]) == sweeping.Tail(0.003, 0.003)
        rounds = [sweeping.Round(quick, sweeping.Tail(0.001, 0.002 + added)) for added in (0.004, 0.006, 0.007)]
        found = sweeping.Sweeping(1, {kind: rounds for kind in sweeping.KINDS})
        verdicts = report.verdicts(report.Results("a machine", GROUPS, {}, sweeping=found))
        assert [(round(value.middle, 6), met) for _, value, met in verdicts] == [(6.0, False)] * 3
