"""``authservice sessions``: what is told of whom, what ends, and the words for everything else."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from authservice import cli_sessions
from authservice.app import build_store
from authservice.cli import _parser, main
from authservice.sessions import Label, Session
from authservice.sessions.directory import Directory
from authservice.sessions.labels import Labels
from authservice.sessions.live import Sessions
from authservice.sessions.seal import Keyring, public_id, store_key
from authservice.sessions.sqlite import SqliteStore
from authservice.settings import load
from tests.conftest import Clock
from tests.sample_sessions import a_session
from tests.served import ROOT, exchange, request, serving
from tests.servers import any_redis, running_redis
from tests.test_settings import REQUIRED
from tests.waiting import until

AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
HOSTILE = "\x1b]0;owned\x07\x1b[31mred\u202eder\nbob"

Environ = dict[str, str]


@pytest.fixture
def here(tmp_path: Path) -> Environ:
    return {**REQUIRED, "SESSION_STORE_PATH": str(tmp_path / "data.db")}


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.external)])
def anywhere(request: pytest.FixtureRequest, here: Environ, tmp_path: Path) -> Iterator[Environ]:
    if request.param == "sqlite":
        yield here
        return
    with running_redis(any_redis(), tmp_path) as server:
        yield {**here, "SESSION_STORE_TYPE": "redis", "SESSION_STORE_REDIS_ADDR": server.address}


class House:
    """What a service with these settings would have kept."""

    def __init__(self, environ: Environ, clock: Callable[[], datetime]) -> None:
        self._settings = load(environ)
        self._clock = clock
        self.secrets: list[str] = []

    def begin(self, user: str = "alice@example.com", *, ago: float = 0, **more: Any) -> str:
        """Logs somebody in, some seconds ago, and gives the session's id."""
        address, agent = more.pop("address", "203.0.113.7"), more.pop("user_agent", AGENT)
        moment = self._clock() - timedelta(seconds=ago)
        session: Session = a_session(lambda: moment, user_id=user, **more)
        with closing(build_store(self._settings, self._clock)) as store:
            sessions = self._sessions(store)
            secret = sessions.begin(session, address=address, user_agent=agent)
        self.secrets.append(secret)
        return public_id(store_key(secret))

    def alive(self) -> list[bool]:
        """Which of the sessions are live, in the order of their beginning."""
        with closing(build_store(self._settings, self._clock)) as store:
            sessions = self._sessions(store)
            return [sessions.record(secret) is not None for secret in self.secrets]

    def _sessions(self, store: Any) -> Sessions:
        return Sessions(
            store,
            now=self._clock,
            max_age=self._settings.session_max_age,
            idle_timeout=self._settings.session_idle_timeout,
            labels=Labels(Keyring(self._settings.sealing_key_material())),
        )


class Ran:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def call(environ: Environ, *argv: str) -> Ran:
        capsys.readouterr()
        try:
            status = main(["sessions", *argv], environ)
        except SystemExit as ended:
            status = int(ended.code or 0)
        printed = capsys.readouterr()
        return Ran(status, printed.out, printed.err)

    return call


Run = Callable[..., Ran]


class TestList:
    def test_a_table_for_people_the_oldest_first(self, anywhere: Environ, run: Run, clock: Clock) -> None:
        house = House(anywhere, clock)
        young, old = house.begin("bob@example.com", ago=60), house.begin("ålice@example.com", ago=7200)
        told = run(anywhere, "list")
        assert (told.status, told.err) == (0, "")
        heading, first, second, blank, count = told.out.splitlines()
        assert heading.split("  ")[0] == "ID" and "SINCE (UTC)" in heading and "ENDS (UTC)" in heading
        assert first.startswith(f"{old[:12]}  ålice@example.com") and second.startswith(f"{young[:12]}  bob@")
        since = f"{clock() - timedelta(seconds=7200):%Y-%m-%d %H:%M}"
        assert heading.index("SINCE") == first.index(since) and first.count(since) >= 1
        assert heading.index("FROM") == second.index("203.0.113.7")
        assert (blank, count) == ("", "2 sessions")

    def test_only_one_users(self, anywhere: Environ, run: Run, clock: Clock) -> None:
        house = House(anywhere, clock)
        mine = {house.begin("alice@example.com") for _ in range(3)}
        house.begin("alice@example.com.evil")
        house.begin("Alice@example.com")
        told = run(anywhere, "list", "--user", "alice@example.com", "--json")
        assert {json.loads(line)["id"] for line in told.out.splitlines()} == mine

    def test_lines_for_programs(self, anywhere: Environ, run: Run, clock: Clock) -> None:
        created = datetime(2026, 1, 2, 3, 4, 5, 678, timezone.utc)
        id = House(anywhere, clock).begin(created=created, expires=clock() + timedelta(days=1))
        told = run({**anywhere, "SESSION_MAX_AGE": "315576000"}, "list", "--json").json
        assert told["id"] == id and told["created"] == "2026-01-02T03:04:05Z"
        assert set(told) == {"id", "user", "issuer", "created", "last_seen", "ends", "address", "user_agent"}
        assert (told["user"], told["issuer"]) == ("alice@example.com", "https://id.example.com/")
        assert (told["address"], told["user_agent"]) == ("203.0.113.7", AGENT)

    def test_older_than_counts_from_the_login(self, here: Environ, run: Run, clock: Clock) -> None:
        house = House(here, clock)
        old = house.begin(ago=7200, last_seen=clock())
        house.begin(ago=60)
        assert run(here, "list", "--older-than", "3600", "--json").json["id"] == old
        assert run(here, "list", "--older-than", "86000").status == 1

    def test_nobody(self, here: Environ, run: Run, clock: Clock) -> None:
        House(here, clock).begin()
        told = run(here, "list", "--user", "nobody\x1b[2J")
        assert (told.status, told.out, told.err) == (1, "", "authservice sessions: no such session\n")

    def test_who_is_over_by_the_limits_is_not_there(self, here: Environ, run: Run, clock: Clock) -> None:
        House(here, clock).begin(ago=600)
        assert run({**here, "SESSION_IDLE_TIMEOUT": "900"}, "list").status == 0
        assert run({**here, "SESSION_IDLE_TIMEOUT": "300"}, "list").status == 1
        assert run({**here, "SESSION_MAX_AGE": "300"}, "list").status == 1

    def test_what_another_key_sealed_is_there_without_a_name(self, here: Environ, run: Run, clock: Clock) -> None:
        id = House({**here, "SECRET_KEYS": "another-key-of-16-characters"}, clock).begin()
        told = run(here, "list")
        assert told.status == 0 and id[:12] in told.out and "sealed under a key" in told.out
        assert run(here, "list", "--json").json["user"] is None
        assert "sealed under a key" in run(here, "show", id).out
        assert run(here, "end", id[:8]).status == 0

    def test_H12_nothing_that_people_send_reaches_the_terminal_as_it_is(
        self, here: Environ, run: Run, clock: Clock
    ) -> None:
        id = House(here, clock).begin(HOSTILE, address=HOSTILE, user_agent=HOSTILE)
        for argv in (["list"], ["show", id], ["list", "--user", HOSTILE], ["end", "--all-of", HOSTILE]):
            told = run(here, *argv)
            assert told.status == 0
            assert not {"\x1b", "\x07", "\u202e"} & set(told.out + told.err), argv

    def test_more_than_are_put_in_order_at_once(
        self, here: Environ, run: Run, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cli_sessions, "AT_ONCE", 2)
        house = House(here, clock)
        ids = [house.begin(ago=number) for number in range(5)]
        told = run(here, "list").out.splitlines()
        assert {line[:12] for line in told[1:6]} == {id[:12] for id in ids} and told[-1] == "5 sessions"
        assert sum(line.startswith("ID") for line in told) == 1

    def test_wide_characters_stay_in_their_columns(self, here: Environ, run: Run, clock: Clock) -> None:
        house = House(here, clock)
        house.begin("田中さん", ago=10)
        house.begin("bob")
        heading, wide, narrow, *_ = run(here, "list").out.splitlines()
        assert wide.index("203.") == narrow.index("203.") - 4 == heading.index("FROM") - 4

    def test_whoever_reads_may_stop_reading(self, here: Environ, clock: Clock) -> None:
        House(here, clock).begin()
        read, write = os.pipe()
        os.close(read)
        ran = subprocess.run(
            [sys.executable, "-m", "authservice.cli", "sessions", "list"], cwd=ROOT, env=_process(here),
            stdout=write, stderr=subprocess.PIPE, check=False, timeout=60,
        )
        os.close(write)
        assert (ran.returncode, ran.stderr) == (0, b"")

    def test_where_only_ascii_can_be_printed(self, here: Environ, clock: Clock) -> None:
        House(here, clock).begin("Çelik")
        ran = subprocess.run(
            [sys.executable, "-m", "authservice.cli", "sessions", "list"], cwd=ROOT, check=False, timeout=60,
            env={**_process(here), "PYTHONIOENCODING": "ascii"}, capture_output=True,
        )
        assert ran.returncode == 0 and b"\\xc7elik" in ran.stdout


class TestShow:
    def test_everything_that_is_known(self, anywhere: Environ, run: Run, clock: Clock) -> None:
        id = House(anywhere, clock).begin(ago=7260)
        told = run(anywhere, "show", id[:8].upper())
        assert told.status == 0
        facts = dict(line.split("  ", 1) for line in told.out.splitlines())
        assert {key: value.strip() for key, value in facts.items() if key in ("id", "user", "from", "with")} == {
            "id": id, "user": "alice@example.com", "from": "203.0.113.7", "with": AGENT,
        }
        assert "UTC (2 hours ago)" in facts["since"] and "UTC (in 21 hours)" in facts["ends"]
        assert run(anywhere, "show", id, "--json").json["id"] == id

    @pytest.mark.parametrize(
        ("id", "status"), [("0" * 64, 1), ("0" * 8, 1), ("g" * 64, 1), ("0" * 7, 2), ("", 2), ("%" * 9, 1)]
    )
    def test_names_that_name_nothing(self, here: Environ, run: Run, clock: Clock, id: str, status: int) -> None:
        House(here, clock).begin()
        told = run(here, "show", id)
        assert (told.status, told.out) == (status, "") and told.err

    def test_a_beginning_of_several_is_refused(self, here: Environ, run: Run, clock: Clock) -> None:
        labels = Labels(Keyring(load(here).sealing_key_material()))
        with closing(SqliteStore(here["SESSION_STORE_PATH"], clock)) as store:
            for number in (1, 2):
                key = f"session-{'ab' * 31}{number:02}"
                label = labels.make(key, a_session(clock), "", "")
                store.save(key, b"x", clock() + timedelta(days=1), label=label)
        for argv in (["show", "ab" * 20], ["end", "ab" * 20, "ab" * 31 + "01"]):
            told = run(here, *argv)
            assert told.status == 2 and "2 sessions begin so" in told.err and not told.out
        assert run(here, "list").out.endswith("\n2 sessions\n")


class TestEnd:
    def test_by_id_and_by_how_it_begins(self, anywhere: Environ, run: Run, clock: Clock) -> None:
        house = House(anywhere, clock)
        one, other, _ = house.begin(), house.begin(), house.begin()
        told = run(anywhere, "end", one, other[:10], other)
        assert (told.status, told.out) == (0, "2 sessions ended.\n")
        assert "Tokens that the provider issued" in told.err
        assert house.alive() == [False, False, True]
        again = run(anywhere, "end", one, "--json")
        assert (again.status, again.json) == (1, {"ended": 0}) and "no such session" in again.err

    def test_what_is_there_ends_also_when_something_is_not(self, here: Environ, run: Run, clock: Clock) -> None:
        house = House(here, clock)
        told = run(here, "end", house.begin(), "0" * 64)
        assert (told.status, told.out) == (1, "1 session ended.\n") and "000: no such session" in told.err
        assert house.alive() == [False]

    def test_all_of_a_user(self, anywhere: Environ, run: Run, clock: Clock) -> None:
        house = House(anywhere, clock)
        for user in ("alice", "bob", "alice"):
            house.begin(user)
        assert run(anywhere, "end", "--all-of", "alice").out == "2 sessions ended.\n"
        assert house.alive() == [False, True, False]
        assert run(anywhere, "end", "--all-of", "alice").status == 1

    def test_all_that_began_long_ago(self, here: Environ, run: Run, clock: Clock) -> None:
        house = House(here, clock)
        for user, ago in (("alice", 7200), ("bob", 7200), ("alice", 60)):
            house.begin(user, ago=ago)
        assert run(here, "end", "--all-of", "alice", "--older-than", "3600", "--json").json == {"ended": 1}
        assert house.alive() == [False, True, True]
        assert run(here, "end", "--older-than", "3600").out == "1 session ended.\n"
        assert house.alive() == [False, False, True]

    @pytest.mark.parametrize("argv", [[], ["0" * 64, "--all-of", "x"], ["0" * 64, "--older-than", "1"],
                                      ["--older-than", "soon"], ["--older-than", "-1"], ["--all-of"]])
    def test_usage(self, here: Environ, run: Run, argv: list[str]) -> None:
        told = run(here, "end", *argv)
        assert told.status == 2 and "usage: authservice sessions end" in told.err

    @pytest.mark.parametrize(("answer", "argv", "left"), [
        ("y\n", [], 0), ("yes\n", [], 0), ("\n", [], 2), ("n\n", [], 2), ("", ["--yes"], 0),
    ])
    def test_on_a_terminal_it_asks_first_unless_told_not_to(
        self, here: Environ, run: Run, clock: Clock, monkeypatch: pytest.MonkeyPatch,
        answer: str, argv: list[str], left: int,
    ) -> None:
        house = House(here, clock)
        house.begin("bob")
        house.begin("bob")
        typed = io.StringIO(answer)
        monkeypatch.setattr(typed, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", typed)
        told = run(here, "end", "--all-of", "bob", *argv)
        assert ("End 2 sessions of bob? [y/N]" in told.err) is not bool(argv)
        assert sum(house.alive()) == left and told.status == (1 if left else 0)

    def test_named_ones_are_never_asked_about(
        self, here: Environ, run: Run, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        house = House(here, clock)
        id = house.begin()
        typed = io.StringIO("")
        monkeypatch.setattr(typed, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", typed)
        assert run(here, "end", id).status == 0 and house.alive() == [False]

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["sqlite", pytest.param("redis", marks=pytest.mark.external)])
    def test_running_workers_refuse_it_at_once(
        self, environ: Environ, tmp_path: Path, run: Run, clock: Clock, kind: str
    ) -> None:
        def refused_everywhere(settings: Environ) -> None:
            house = House(settings, clock)
            with serving({**settings, "WEB_CONCURRENCY": "2"}, tmp_path) as served:
                for argv in (["end"], ["end", "--all-of", "carol"]):
                    id = house.begin("carol")
                    cookie = f"Cookie: authservice_session={house.secrets[-1]}"
                    check = request("/", cookie, "Sec-Fetch-Mode: cors", close=True)
                    statuses = {exchange(served.judge, check)[0].status for _ in range(40)}
                    assert statuses == {200}
                    assert run(settings, *argv, *([id] if len(argv) == 1 else [])).status == 0
                    # Redis tells the workers; for less than 50 ms they may not have heard of it yet.
                    until(lambda: {exchange(served.judge, check)[0].status for _ in range(40)} == {401})

        if kind == "sqlite":
            refused_everywhere(environ)
            return
        with running_redis(any_redis(), tmp_path) as server:
            refused_everywhere(
                {**environ, "SESSION_STORE_TYPE": "redis", "SESSION_STORE_REDIS_ADDR": server.address}
            )


class TestCheck:
    def test_what_is_in_it_and_that_it_is_well(self, anywhere: Environ, run: Run, clock: Clock) -> None:
        House(anywhere, clock).begin()
        told = run(anywhere, "check")
        assert told.status == 0 and told.out.endswith("\nNothing is wrong with it.\n")
        found = run(anywhere, "check", "--json").json
        assert found["problems"] == [] and 1 in found["facts"].values()

    @pytest.mark.parametrize(("option", "examination"), [("--quick", "quick_check"), ("--thorough", "integrity_check")])
    def test_how_long_it_looks(
        self, here: Environ, run: Run, clock: Clock, option: str, examination: str
    ) -> None:
        House(here, clock).begin()
        assert run(here, "check", option, "--json").json["facts"]["examination"] == examination

    def test_a_damaged_file(self, here: Environ, run: Run, clock: Clock) -> None:
        house = House(here, clock)
        for number in range(30):
            house.begin(f"user{number}")
        file = Path(here["SESSION_STORE_PATH"])
        data = bytearray(file.read_bytes())
        data[8192:-4096] = b"\xa5" * (len(data) - 12288)
        file.write_bytes(data)
        told = run(here, "check")
        assert told.status == 3 and "malformed" in told.out + told.err


class TestTrouble:
    def test_faulty_settings(self, run: Run, here: Environ) -> None:
        told = run({**here, "SECRET_KEYS": "hidden-7Q", "SERVER_PORT": "0"}, "list")
        assert (told.status, told.out) == (2, "")
        assert "  - SECRET_KEYS: " in told.err and "  - SERVER_PORT: " in told.err and "7Q" not in told.err

    @pytest.mark.parametrize(
        "argv", [["list"], ["show", "0" * 64], ["end", "0" * 64], ["end", "--all-of", "x"], ["check"]]
    )
    def test_no_file_yet_and_none_is_made(self, here: Environ, run: Run, tmp_path: Path, argv: list[str]) -> None:
        path = tmp_path / "not" / "there.db"
        told = run({**here, "SESSION_STORE_PATH": str(path)}, *argv)
        assert told.status == 3 and str(path) in told.err
        assert list(tmp_path.iterdir()) == []

    def test_beside_a_file_of_the_former_service_none_is_made(self, here: Environ, run: Run, tmp_path: Path) -> None:
        (tmp_path / "data.db").write_bytes(bytes(16) + b"\xed\xda\x0c\xed" + bytes(1000))
        assert run(here, "list").status == 3
        assert [file.name for file in tmp_path.iterdir()] == ["data.db"]

    def test_no_redis(self, here: Environ, run: Run) -> None:
        there = {**here, "SESSION_STORE_TYPE": "redis", "SESSION_STORE_REDIS_ADDR": "127.0.0.1:1",
                 "SESSION_STORE_REDIS_PWD": "hidden-value-7Q"}
        for argv in (["list"], ["check"], ["end", "--all-of", "x"]):
            told = run(there, *argv)
            assert told.status == 3 and "127.0.0.1:1" in told.err and "hidden" not in told.out + told.err

    def test_a_store_that_fails_half_way(
        self, here: Environ, run: Run, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        house = House(here, clock)
        ids = [house.begin(), house.begin()]
        end = Directory.end

        def once(self: Directory, named: Any) -> int:
            ended = end(self, named)
            Path(here["SESSION_STORE_PATH"]).rename(here["SESSION_STORE_PATH"] + ".away")
            return ended

        monkeypatch.setattr(Directory, "end", once)
        told = run(here, "end", *ids)
        assert (told.status, told.out) == (3, "1 session ended.\n")

    def test_S33_no_secret_is_ever_told(self, anywhere: Environ, run: Run, clock: Clock) -> None:
        house = House(anywhere, clock)
        id = house.begin(access_token="access-7Q", refresh_token="refresh-7Q", id_token="identity-7Q")
        texts = ""
        for argv in (["list"], ["list", "--json"], ["show", id], ["show", id, "--json"], ["check"], ["end", id]):
            told = run(anywhere, *argv)
            texts += told.out + told.err
        for secret in ("7Q", house.secrets[0], REQUIRED["CLIENT_SECRET"]):
            assert secret and secret not in texts

    def test_no_thread_is_started(self, anywhere: Environ, run: Run, clock: Clock) -> None:
        House(anywhere, clock).begin()
        before = set(threading.enumerate())
        run(anywhere, "list")
        run(anywhere, "check")
        assert set(threading.enumerate()) <= before

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
    def test_roots_use_leaves_the_services_files_the_services(
        self, here: Environ, run: Run, clock: Clock, tmp_path: Path
    ) -> None:
        house = House(here, clock)
        id, _ = house.begin(), house.begin()
        for file in tmp_path.iterdir():
            os.chown(file, 12345, 12346)
        (tmp_path / "data.db-generation").unlink(missing_ok=True)
        with closing(SqliteStore(here["SESSION_STORE_PATH"], clock)) as service:
            service.ping()  # keeps the log and its index there
            for argv in (["list"], ["end", id], ["end", "--all-of", "alice@example.com"], ["check"]):
                assert run(here, *argv).status == 0, argv
            found = {file.name: file.stat() for file in tmp_path.iterdir()}
        assert set(found) == {"data.db", "data.db-wal", "data.db-shm", "data.db-generation"}
        owners = {(one.st_uid, one.st_gid, stat.S_IMODE(one.st_mode)) for one in found.values()}
        assert owners == {(12345, 12346, 0o600)}


def test_an_option_of_the_address_that_is_none_is_a_faulty_setting(here: Environ, run: Run) -> None:
    """And not exit status 1, which says that there is no such session."""
    address = {"SESSION_STORE_TYPE": "redis", "SESSION_STORE_REDIS_ADDR": "redis://127.0.0.1:1?no_such=1"}
    told = run({**here, **address}, "list")
    assert told.status == 2 and "SESSION_STORE_REDIS_ADDR: an option" in told.err and not told.out


def test_it_goes_on_when_nobody_listens_how_far_it_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in ``authservice sessions end --all-of USER 2>&1 | head -1``."""
    ticks = iter(range(0, 10_000, 60))
    gone, ours = os.pipe()
    os.close(gone)
    with open(ours, "w", encoding="utf-8") as nowhere, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", nowhere)
        progress = cli_sessions._Progress(clock=lambda: float(next(ticks)))
        assert list(progress.over(range(250))) == list(range(250))
        os.dup2(os.open(os.devnull, os.O_WRONLY), ours)  # for what is left to be written at the end


def test_it_says_how_far_it_has_come_on_a_terminal_and_wipes_it_away(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ticks = iter(range(1000))
    ours, theirs = pty.openpty()
    with open(theirs, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        progress = cli_sessions._Progress(clock=lambda: float(next(ticks)))
        assert list(progress.over(range(250))) == list(range(250))
        progress.clear()
        progress.clear()
        said = b""
        while not said.endswith(b"K"):
            said += os.read(ours, 1000)
    os.close(ours)
    assert said.decode() == "\r100 sessions …\r200 sessions …\r\x1b[K"


def test_elsewhere_it_says_so_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    ticks = iter(range(0, 10_000, 6))
    progress = cli_sessions._Progress(clock=lambda: float(next(ticks)))
    assert len(list(progress.over(range(400)))) == 400
    progress.clear()
    assert capsys.readouterr().err == "200 sessions …\n400 sessions …\n"


def _process(environ: Environ) -> Environ:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "LANG": "C.UTF-8", **environ}


def test_a_label_is_all_that_is_needed(here: Environ, run: Run, clock: Clock) -> None:
    """What has none, as everything kept by an earlier version until it is used again, is not there."""
    with closing(SqliteStore(here["SESSION_STORE_PATH"], clock)) as store:
        store.save("session-" + "0" * 64, b"x", clock() + timedelta(days=1))
        store.save("session-" + "1" * 64, b"x", clock() + timedelta(days=1), label=Label(b"rubbish", ()))
    assert [json.loads(line)["id"] for line in run(here, "list", "--json").out.splitlines()] == ["1" * 64]


@pytest.mark.parametrize("document", ["README.md", "docs/sessions.md"])
def test_documented_commands_are_commands(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    commands = re.findall(r"^(?:\| `)?(authservice sessions [^`#|\n]*)", text, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        _parser().parse_args(command.split()[1:])


def test_the_command_beside_systemd(here: Environ, clock: Clock, tmp_path: Path) -> None:
    """As shipped, with this test's paths in the place of those of a machine."""
    assert "sudo authservice sessions list" in (ROOT / "docs/sessions.md").read_text("utf-8")
    lines = (ROOT / "deploy/systemd/authservice.sh").read_text()
    (tmp_path / "secret").write_text(REQUIRED["CLIENT_SECRET"])
    given = (ROOT / "deploy/systemd/authservice.env").read_text()
    (tmp_path / "env").write_text(f"{given}\nSESSION_STORE_PATH={here['SESSION_STORE_PATH']}\n")
    for shipped, ours in (
        ("/etc/authservice/authservice.env", str(tmp_path / "env")),
        ("/etc/authservice/client-secret", str(tmp_path / "secret")),
        ("/opt/authservice/bin/authservice", f"{sys.executable} -m authservice.cli"),
    ):
        assert shipped in lines
        lines = lines.replace(shipped, ours)
    House(here, clock).begin()
    ran = subprocess.run(
        ["sh", "-c", lines, "authservice", "sessions", "list"],
        cwd=ROOT, env=_process({}), capture_output=True, text=True, check=False, timeout=60,
    )
    assert (ran.returncode, ran.stderr) == (0, "") and "alice@example.com" in ran.stdout
