"""Policies that change while the service runs: a good set takes the old one's place as a whole, a bad one never."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from authservice.ops import Counts, Metric
from authservice.policies import KeptPolicies
from authservice.policy import current
from authservice.policy.compile import compile
from authservice.policy.current import Policies
from authservice.policy.question import Question
from authservice.policy.read import files_of, read
from authservice.policy.resources import PolicyErrors
from authservice.policy.workloads import Workloads
from authservice.settings import load as load_settings
from tests.conftest import Browser, Clock
from tests.lanes import listening
from tests.policy_sets import policy
from tests.sample_sessions import a_session
from tests.served import LIMIT, Served, exchange, request, serving
from tests.test_settings import REQUIRED
from tests.waiting import until

Json = dict[str, Any]
MANY = 200
WORKERS = 2


def text(*documents: Json) -> str:
    return "\n---\n".join(json.dumps(document, indent=1) for document in documents)


def on(method: str, name: str = "p") -> Json:
    """A policy that lets requests of this method pass."""
    return policy({"to": [{"operation": {"methods": [method]}}]}, name=name)


def allowed(policies: Policies) -> set[str]:
    """The methods that may."""
    def question(method: str) -> Question:
        return Question(method=method, host="app.example", path="/", port=443, headers={})

    return {method for method in ("GET", "PUT", "POST") if policies.current.judge(question(method)).allowed}


class Watched:
    """The policies of one path, loaded as the service does, and looked at by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loads = 0
        self.while_loading: Callable[[], object] = lambda: None
        self.counts = Counts()
        self.policies = Policies(self._load, lambda: files_of(path), counts=self.counts)

    def _load(self) -> Any:
        self.loads += 1
        resources = read([self.path])
        self.while_loading()
        return compile(resources, Workloads.single(), knows_addresses=False, knows_peers=False)

    def look(self, times: int = 2) -> None:
        for _ in range(times):
            self.policies.look()

    @property
    def allowed(self) -> set[str]:
        return allowed(self.policies)

    def reloads(self, outcome: str) -> int:
        return self.counts.counters()[Metric.POLICY_RELOADS.one(outcome)]

    @property
    def refused(self) -> int:
        return self.counts.gauges()[Metric.POLICIES_REFUSED.one()]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "policies.yaml"
    path.write_text(text(on("GET")))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "policies"
    path.mkdir()
    (path / "a.yaml").write_text(text(on("GET", "a")))
    (path / "b.yaml").write_text(text(on("PUT", "b")))
    return path


# --- what is taken -----------------------------------------------------------------------------------


def test_a_good_change_is_taken_when_it_was_the_same_twice(file: Path) -> None:
    watched = Watched(file)
    file.write_text(text(on("PUT"), on("POST", "q")))
    watched.look(1)
    assert watched.allowed == {"GET"}
    watched.look(1)
    assert watched.allowed == {"PUT", "POST"}
    assert watched.counts.gauges()[Metric.POLICIES.one()] == 2
    assert (watched.reloads("taken"), watched.reloads("refused"), watched.policies.problem) == (1, 0, "")


def test_nothing_is_read_again_that_did_not_change(file: Path) -> None:
    watched = Watched(file)
    watched.look(5)
    file.touch()
    watched.look(5)
    assert watched.loads == 1


def test_a_file_whose_stamp_is_old_is_not_even_opened(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(file)
    watched.look(1)
    monkeypatch.setattr(time, "time", lambda: file.stat().st_ctime + 60)
    monkeypatch.setattr(Policies, "_content", lambda policies: pytest.fail("it was opened"))
    watched.look(3)


def test_a_change_that_keeps_size_and_time_is_seen(file: Path) -> None:
    watched = Watched(file)
    watched.look(1)
    before = file.stat()
    file.write_text(text(on("PUT")))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    watched.look()
    assert watched.allowed == {"PUT"}


def test_a_file_that_is_still_being_written_is_not_taken(file: Path) -> None:
    watched = Watched(file)
    whole = text(on("PUT"), policy({}, action="DENY", name="d"))
    for end in range(10, len(whole), 7):
        file.write_text(whole[:end])  # now and then a whole document is there, without the one that denies
        watched.look(1)
        assert watched.allowed == {"GET"}
    file.write_text(whole)
    watched.look()
    assert watched.allowed == set()
    assert watched.reloads("refused") == 0


def test_what_changes_while_it_is_read_is_left_until_it_stands_still(folder: Path) -> None:
    watched = Watched(folder)
    (folder / "a.yaml").write_text(text(on("POST", "a")))
    watched.while_loading = lambda: (folder / "b.yaml").write_text(text(on("POST", f"b{watched.loads}")))
    watched.look(6)
    assert watched.allowed == {"GET", "PUT"} and watched.loads > 1
    watched.while_loading = lambda: None
    watched.look(3)
    assert watched.allowed == {"POST"}


def test_files_that_come_and_go_are_a_change(folder: Path) -> None:
    watched = Watched(folder)
    assert watched.allowed == {"GET", "PUT"}
    (folder / "c.yml").write_text(text(on("POST", "c")))
    (folder / "notes.txt").write_text("nothing")
    watched.look()
    assert watched.allowed == {"GET", "PUT", "POST"}
    (folder / "a.yaml").unlink()
    watched.look()
    assert watched.allowed == {"PUT", "POST"}
    (folder / "b.yaml").rename(folder / "b2.yaml")
    watched.look()
    assert watched.allowed == {"PUT", "POST"}


def config_map(folder: Path, version: str, **files: str) -> None:
    """As the kubelet writes one: a new folder of versions, then one rename of the link that all files go by."""
    fresh = folder / f"..{version}"
    fresh.mkdir()
    for name, content in files.items():
        (fresh / f"{name}.yaml").write_text(content)
        link = folder / f"{name}.yaml"
        if not link.is_symlink():
            link.symlink_to(f"..data/{name}.yaml")
    old = folder / "..data"
    former = old.resolve() if old.is_symlink() else None
    (folder / "..data_tmp").symlink_to(f"..{version}")
    (folder / "..data_tmp").rename(old)
    if former is not None:
        shutil.rmtree(former)


def test_a_config_map_is_swapped(tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    config_map(folder, "1", a=text(on("GET", "a")), b=text(on("PUT", "b")))
    watched = Watched(folder)
    assert watched.allowed == {"GET", "PUT"}
    config_map(folder, "2", a=text(on("POST", "a")), b=text(on("PUT", "b")))
    watched.look()
    assert watched.allowed == {"POST", "PUT"}
    config_map(folder, "3", a="nonsense", b=text(on("PUT", "b")))
    watched.look()
    assert watched.allowed == {"POST", "PUT"} and watched.policies.problem
    config_map(folder, "4", a=text(on("GET", "a")), b=text(on("PUT", "b")))
    watched.look()
    assert watched.allowed == {"GET", "PUT"} and not watched.policies.problem


# --- what is refused ---------------------------------------------------------------------------------


def spoil(folder: Path, how: str) -> None:
    match how:
        case "nonsense":
            (folder / "b.yaml").write_text("a: [")
        case "unknown field":
            (folder / "b.yaml").write_text(text(policy({"too": []}, name="b")))
        case "two of one name":
            (folder / "b.yaml").write_text(text(on("PUT", "a")))
        case "no workload":
            (folder / "b.yaml").write_text(text(policy({}, name="b", selector={"matchLabels": {"app": "x"}})))
        case "empty folder":
            for file in folder.iterdir():
                file.unlink()
        case "no folder":
            shutil.rmtree(folder)
        case "a link that leads nowhere":
            (folder / "b.yaml").unlink()
            (folder / "b.yaml").symlink_to("nowhere.yaml")
        case "a pipe":
            os.mkfifo(folder / "c.yaml")
        case "a loop of links":
            (folder / "b.yaml").unlink()
            (folder / "b.yaml").symlink_to("b.yaml")
        case "a folder of that name":
            shutil.rmtree(folder)
            folder.write_bytes(b"\xff\xfe\x00")


SPOILT = [
    "nonsense", "unknown field", "two of one name", "no workload", "empty folder", "no folder",
    "a link that leads nowhere", "a pipe", "a loop of links", "a folder of that name",
]  # fmt: skip


@pytest.mark.parametrize("how", SPOILT)
def test_a_bad_change_is_refused_once_and_the_old_policies_stay(folder: Path, how: str) -> None:
    watched = Watched(folder)
    spoil(folder, how)
    with listening(tells=True) as records:
        watched.look(6)
    assert watched.allowed == {"GET", "PUT"}
    assert (watched.reloads("taken"), watched.reloads("refused"), watched.refused) == (0, 1, 1)
    assert watched.policies.problem.startswith(f"refused, the old policies stay: {folder}")
    (line,) = [record for record in records if record.getMessage() == "policies_refused"]
    assert line.levelname == "ERROR" and str(folder) in vars(line)["cause"]

    if folder.is_file():
        folder.unlink()
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    (folder / "c.yaml").write_text(text(on("POST", "c")))
    watched.look()
    assert watched.allowed == {"POST"}
    assert (watched.policies.problem, watched.refused, watched.reloads("taken")) == ("", 0, 1)


def test_going_back_to_the_old_policies_takes_the_complaint_away(file: Path) -> None:
    watched = Watched(file)
    good = file.read_text()
    file.write_text("nonsense")
    watched.look()
    assert watched.policies.problem
    file.write_text(good)
    watched.look()
    assert not watched.policies.problem and watched.allowed == {"GET"}


def test_all_problems_are_counted_and_the_first_is_shown(folder: Path) -> None:
    watched = Watched(folder)
    (folder / "a.yaml").write_text(text(policy({"too": []}, name="a"), policy({"fro": []}, name="b")))
    (folder / "b.yaml").write_text("a: [")
    watched.look()
    assert f"{folder / 'a.yaml'}:" in watched.policies.problem
    assert watched.policies.problem.endswith(" more)")


def test_a_fault_of_ours_is_no_reason_to_stop_looking(file: Path) -> None:
    watched = Watched(file)

    def fault() -> None:
        raise RecursionError

    watched.while_loading = fault
    file.write_text(text(on("PUT")))
    watched.look()
    assert watched.policies.problem.endswith("cannot be judged (RecursionError)") and watched.allowed == {"GET"}
    watched.while_loading = lambda: None
    file.write_text(text(on("POST")))
    watched.look()
    assert watched.allowed == {"POST"}


def test_the_first_set_has_to_be_good(tmp_path: Path) -> None:
    with pytest.raises(PolicyErrors):
        Watched(tmp_path / "missing.yaml")


# --- the thread --------------------------------------------------------------------------------------


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(current, "INTERVAL", 0.02)


def test_the_thread_looks_until_it_is_told_to_stop_and_can_begin_anew(file: Path, quickly: None) -> None:
    watched = Watched(file)
    file.write_text(text(on("PUT")))
    watched.policies.start()
    watched.policies.start()
    until(lambda: watched.allowed == {"PUT"})
    assert [thread.name for thread in threading.enumerate()].count("policies") == 1
    watched.policies.stop()
    watched.policies.stop()
    assert "policies" not in [thread.name for thread in threading.enumerate()]
    file.write_text(text(on("GET")))
    watched.policies.start()
    until(lambda: watched.allowed == {"GET"})
    watched.policies.stop()


def test_a_forked_process_looks_for_itself(file: Path, quickly: None) -> None:
    watched = Watched(file)
    watched.policies.start()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            watched.policies.start()
            os.write(write_end, b"r")
            until(lambda: watched.allowed == {"PUT"})
            status = 0
        finally:
            os._exit(status)
    try:
        assert os.read(read_end, 1) == b"r"
        file.write_text(text(on("PUT")))
        until(lambda: watched.allowed == {"PUT"})
    finally:
        _, status = os.waitpid(child, 0)
        watched.policies.stop()
        os.close(read_end)
        os.close(write_end)
    assert status == 0


# --- the service -------------------------------------------------------------------------------------

SITE = Browser.SITE


@pytest.fixture
def serviced(make_browser: Callable[..., Browser], file: Path, quickly: None) -> Browser:
    browser = make_browser(POLICY_PATH=str(file))
    browser.app.extensions["authservice"].provider.ensure_known()
    assert browser.log_in("/").status == 302
    return browser


def test_readyz_tells_of_refused_policies_and_stays_ready(serviced: Browser, file: Path) -> None:
    ready = serviced.get("/readyz", port=SITE)
    assert (ready.status, ready.json) == (200, {"provider": "ok", "store": "ok", "policies": "ok"})
    file.write_text("kind: Deployment\n")
    told = until(lambda: (answer := serviced.get("/readyz", port=SITE)).json["policies"] != "ok" and answer)
    assert told.status == 200
    assert told.json["policies"].startswith(f"refused, the old policies stay: {file}:1: ")
    ledger = serviced.app.extensions["authservice"].ledger.text()
    assert "\nauthservice_policies_refused 1\n" in ledger and "\nauthservice_policies 1\n" in ledger
    assert '\nauthservice_policy_reloads_total{outcome="refused"} 1\n' in ledger
    assert serviced.get("/x").status == 200
    file.write_text(text(on("PUT")))
    until(lambda: serviced.get("/readyz", port=SITE).json["policies"] == "ok")
    assert serviced.get("/x").status == 403
    assert serviced.send("PUT", "/x").status == 200


def test_workloads_in_a_file_are_read_again_with_the_policies(
    make_browser: Callable[..., Browser], tmp_path: Path, file: Path, quickly: None
) -> None:
    workloads = tmp_path / "workloads.yaml"
    workloads.write_text("app.example: {}\n")
    browser = make_browser(POLICY_PATH=str(file), POLICY_WORKLOADS=str(workloads))
    browser.app.extensions["authservice"].provider.ensure_known()
    assert browser.log_in("/").status == 302
    assert (browser.get("/").status, browser.get("/", Host="other.example").status) == (200, 403)
    workloads.write_text("app.example: {}\nother.example: {}\n")
    until(lambda: browser.get("/", Host="other.example").status == 200)
    workloads.write_text("app.example: {nonsense: 1}\n")
    told = until(lambda: (answer := browser.get("/readyz", port=SITE)).json["policies"] != "ok" and answer)
    assert str(workloads) in told.json["policies"]
    assert browser.get("/", Host="other.example").status == 200


def test_the_probe_stays_ready_with_refused_policies(
    make_browser: Callable[..., Browser], file: Path, quickly: None
) -> None:
    browser = make_browser(POLICY_PATH=str(file), READINESS_PROBE_PORT="8081")
    until(lambda: browser.get("/", port=8081).status == 200)
    file.write_text("nonsense")
    until(lambda: browser.app.extensions["authservice"].policies.problem)
    assert browser.get("/", port=8081).status == 200


# --- under load --------------------------------------------------------------------------------------


def swapping_sets(number: int) -> str:
    """Sets that agree about /always, /never and /x/never, and about nothing else. In each a DENY policy
    stands at the end, and so do many that are there for their size only."""
    fillers = [
        policy({"to": [{"operation": {"paths": [f"/filler/{number}/{one}"]}}]}, name=f"filler-{one}")
        for one in range(MANY)
    ]
    return text(
        policy({"to": [{"operation": {"paths": ["/always/*", "/x/*", f"/only/{number}"]}}]}, name=f"allow-{number}"),
        *fillers,
        policy({"to": [{"operation": {"paths": ["/never/*", "/x/never"]}}]}, name="deny", action="DENY"),
    )


@pytest.fixture(params=["fast", "gthread"])
def served(
    request: pytest.FixtureRequest, environ: dict[str, str], tmp_path: Path
) -> Iterator[tuple[Served, Path]]:
    folder = tmp_path / "mounted"
    folder.mkdir()
    config_map(folder, "0", policies=swapping_sets(0))
    changes = {
        "WEB_CONCURRENCY": str(WORKERS), "LOG_LEVEL": "INFO", "WORKER_CLASS": request.param, "POLICY_PATH": str(folder),
    }
    with serving({**environ, **changes}, tmp_path) as started:
        # Each worker: one that begins later has read its policies by itself, and has nothing to take.
        until(partial(is_told, started, "provider_ready", WORKERS), LIMIT)
        until(lambda: exchange(started.site, request_of("/readyz", ""))[0].status == 200, LIMIT)
        yield started, folder


def request_of(target: str, cookie: str) -> bytes:
    fields = [f"Cookie: authservice_session={cookie}"] if cookie else []
    return request(target, *fields, close=True)


@pytest.mark.slow
@pytest.mark.xdist_group("load")
def test_a_reload_under_load_gives_no_wrong_and_no_failed_answer(
    served: tuple[Served, Path], make_app: Callable[..., Flask], clock: Clock
) -> None:
    server, folder = served
    cookie = make_app().extensions["authservice"].sessions.begin(a_session(clock))
    expected = {"/always/1": 200, "/x/1": 200, "/never/1": 403, "/x/never": 403, "/other": 403}
    wrong: list[str] = []
    counted: list[int] = [0, 0, 0]
    over = threading.Event()

    def hammer(which: int) -> None:
        chance = random.Random(which)
        while not over.is_set():
            targets = chance.choices(list(expected), k=20)
            asked = b"".join(request(target, f"Cookie: authservice_session={cookie}") for target in targets)
            try:
                answers = exchange(server.judge, asked + request_of("/always/1", cookie))
            except (OSError, AssertionError) as error:
                wrong.append(repr(error))
                continue
            got = [answer.status for answer in answers]
            if got != [*(expected[target] for target in targets), 200]:
                wrong.append(f"{targets} {got}")
            counted[which] += len(answers)

    hammers = [threading.Thread(target=hammer, args=(which,)) for which in range(len(counted))]
    for thread in hammers:
        thread.start()
    try:
        for number in range(1, 5):
            before = sum(counted)
            outcome, times = ("refused", 1) if number == 3 else ("taken", number - (number > 3))
            config_map(folder, str(number), policies="nonsense: [" if number == 3 else swapping_sets(number))
            until(partial(is_told, server, f"policies_{outcome}", WORKERS * times), LIMIT)
            assert passes(server, cookie, f"/only/{2 if number == 3 else number}")
            until(partial(have_gone_on, counted, before + 200), LIMIT)
    finally:
        over.set()
        for thread in hammers:
            thread.join()
    assert not wrong, wrong[:3]
    assert "Traceback" not in server.log.read_text()


def is_told(server: Served, event: str, times: int) -> bool:
    return server.log.read_text().count(f'"{event}"') == times


def have_gone_on(counted: list[int], upto: int) -> bool:
    return sum(counted) > upto


def passes(server: Served, cookie: str, target: str) -> bool:
    """Whether this target is let pass again and again."""
    return all(exchange(server.judge, request_of(target, cookie))[0].status == 200 for _ in range(12))


# --- workers that come later -------------------------------------------------------------------------


@pytest.mark.slow
def test_a_worker_that_begins_with_faulty_policies_has_those_of_the_others(
    environ: dict[str, str], tmp_path: Path, make_app: Callable[..., Flask], clock: Clock
) -> None:
    policies, workloads = tmp_path / "policies.txt", tmp_path / "workloads"
    policies.write_text(swapping_sets(1))
    workloads.write_text("app.example: {}\n")
    cookie = make_app().extensions["authservice"].sessions.begin(a_session(clock))
    changes = {"WEB_CONCURRENCY": "1", "POLICY_PATH": str(policies), "POLICY_WORKLOADS": str(workloads)}
    with serving({**environ, **changes}, tmp_path) as server:
        policies.write_text(swapping_sets(2))
        until(lambda: passes(server, cookie, "/only/2"), LIMIT)
        policies.write_text("nonsense: [")
        workloads.unlink()
        until(lambda: '"policies_refused"' in server.log.read_text(), LIMIT)
        (before,) = server.workers()
        os.kill(before, signal.SIGKILL)
        until(lambda: server.workers() and before not in server.workers() and server.ready(), LIMIT)
        assert passes(server, cookie, "/only/2")
        assert exchange(server.judge, request_of("/never/1", cookie))[0].status == 403
        (told,) = exchange(server.site, request_of("/readyz", ""))
        assert told.status in (200, 503) and b"refused, the old policies stay" in told.body
        workloads.write_text("app.example: {}\n")
        policies.write_text(swapping_sets(3))
        until(lambda: passes(server, cookie, "/only/3"), LIMIT)
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("settled", [True, False])
def test_only_what_stood_still_is_kept_and_only_one_copy_is(file: Path, tmp_path: Path, settled: bool) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    settings = load_settings({**REQUIRED, "POLICY_PATH": str(file)})
    kept = KeptPolicies(settings, shared)
    assert kept.load() is None
    kept.save([file], lambda: True)
    file.write_text(text(on("PUT"), on("POST", "q")))
    kept.save([file], lambda: settled)
    found = kept.load()
    assert found is not None and found.policies == (2 if settled else 1)
    assert len(list(shared.glob("policies-*"))) == 1


def test_that_nothing_can_be_kept_is_no_fault(file: Path) -> None:
    settings = load_settings({**REQUIRED, "POLICY_PATH": str(file)})
    kept = KeptPolicies(settings, file)
    kept.save([file], lambda: True)
    assert kept.load() is None
