"""What the service did, told in numbers: counted without loss, summed over workers, in one closed table."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from authservice import pool as pool_of_threads
from authservice import scrape
from authservice.authn.cache import BearerCache
from authservice.check import Reach, RequestParts
from authservice.errors import Reason, StoreDown
from authservice.fastlane import FastLane
from authservice.ops import Counts, Metric
from authservice.pool import Pool
from authservice.scrape import Ledger
from tests.conftest import Browser, ask
from tests.served import LIMIT, Served, exchange, request, serving
from tests.waiting import until

PROBE = 8081
README = Path(__file__).parent.parent / "README.md"


def samples(text: str) -> dict[str, float]:
    """All numbers by name and label, as Prometheus's own client reads them."""
    return {
        sample.name + "".join(f'{{{name}="{value}"}}' for name, value in sample.labels.items()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def told(browser: Browser) -> dict[str, float]:
    answer = ask(browser.app, "GET", "/metrics", port=PROBE)
    assert answer.status == 200 and answer.header("Content-Type") == scrape.CONTENT_TYPE
    return samples(answer.text)


@pytest.fixture
def watched(make_browser: Callable[..., Browser]) -> Callable[..., Browser]:
    return lambda **changes: make_browser(READINESS_PROBE_PORT=str(PROBE), **changes)


class TestCounts:
    def test_threads_lose_none(self) -> None:
        counts = Counts()
        add = counts.adder(Metric.ALLOWED, "cookie")
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            threads = [threading.Thread(target=lambda: [add() for _ in range(20_000)]) for _ in range(4)]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                counts.counters()  # reading counts nothing
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
        assert counts.counters()[Metric.ALLOWED.one("cookie")] == 80_000

    def test_what_is_not_in_the_table_cannot_be_counted(self) -> None:
        with pytest.raises(KeyError):
            Counts().add(Metric.DENIED, "a client's own words")

    def test_every_number_is_told_from_the_beginning_by_its_kind_and_with_help(self) -> None:
        families = {family.name: family for family in text_string_to_metric_families(Ledger(Counts()).text())}
        assert len(families) == len(Metric)
        for metric in Metric:
            family = families[metric.full_name.removesuffix("_total")]
            assert family.type == metric.kind and family.documentation == metric.help + "."
            assert len(family.samples) == len(metric.values)
            assert all(re.fullmatch(r"authservice_[a-z_]+", sample.name) for sample in family.samples)

    def test_the_readme_has_the_table(self) -> None:
        document = README.read_text("utf-8")
        for metric in Metric:
            label = f", by `{metric.label}`" if metric.label else ""
            assert f"| `{metric.full_name}` | {metric.help}{label} |\n" in document
        assert len(re.findall(r"^\| `authservice_", document, re.MULTILINE)) == len(Metric)


class TestWhatIsCounted:
    def test_the_way_of_a_person(self, watched: Callable[..., Browser]) -> None:
        browser = watched(SKIP_AUTH_URLS="/open")
        assert browser.log_in().status == 302
        assert browser.get("/").status == browser.get("/open").status == 200
        header = {"Authorization": f"Bearer {browser.session}"}
        assert ask(browser.app, "GET", "/", port=8080, headers=header).status == 200
        assert browser.send("POST", "/authservice/logout", Authorization=header["Authorization"]).status == 201
        assert browser.send("POST", "/").status == 401
        assert browser.get("/authservice/oidc/callback?state=forged&code=1").status == 400
        numbers = told(browser)
        for name, count in {
            'checks_allowed_total{method="cookie"}': 1,
            'checks_allowed_total{method="header"}': 1,
            'checks_allowed_total{method="none"}': 1,
            'checks_denied_total{reason="not_authenticated"}': 1,
            "logins_begun_total": 1,
            "logins_finished_total": 1,
            'logins_refused_total{reason="login_not_ours"}': 1,
            'logouts_total{by="bearer"}': 1,
            "store_failures_total": 0,
            "provider_failures_total": 0,
            "unexpected_errors_total": 0,
            "workers": 1,
        }.items():
            assert numbers[f"authservice_{name}"] == count, name

    def test_a_check_counts_once_whichever_lane_answers(self, watched: Callable[..., Browser]) -> None:
        browser = watched()
        browser.log_in()
        judge = browser.app.extensions["authservice"].judge
        parts = RequestParts("GET", "/", {"cookie": f"authservice_session={browser.session}"}, "127.0.0.1")
        before = told(browser)
        answers = [FastLane(judge).ask(parts) or judge.answer(parts, Reach.NETWORK) for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 200]
        name = Metric.ALLOWED.one("cookie")
        assert told(browser)[name] - before[name] == 3

    def test_sessions_in_memory(self, watched: Callable[..., Browser]) -> None:
        browser = watched()
        browser.log_in()
        before = told(browser)
        for _ in range(3):
            assert browser.get("/").status == 200
        numbers = told(browser)

        def since(metric: Metric) -> float:
            return numbers[metric.one()] - before[metric.one()]

        assert since(Metric.SESSION_MISSES) == 1 and since(Metric.SESSION_HITS) == 2
        assert numbers[Metric.SESSIONS_HELD.one()] == 1
        browser.send("POST", "/authservice/logout", Authorization=f"Bearer {browser.session}")
        numbers = told(browser)
        assert since(Metric.SESSION_INVALIDATIONS) >= 1 and numbers[Metric.SESSIONS_HELD.one()] == 0

    def test_refusals_by_reason(self, watched: Callable[..., Browser]) -> None:
        browser = watched(GROUPS_ALLOWLIST="others")
        browser.log_in()
        assert browser.get("/").status == 403
        assert told(browser)[Metric.DENIED.one(Reason.GROUPS.value)] == 1

    def test_a_store_that_fails(self, watched: Callable[..., Browser], monkeypatch: pytest.MonkeyPatch) -> None:
        browser = watched(SESSION_CACHE_SIZE="0")
        browser.log_in()
        inner = browser.app.extensions["authservice"].store._inner

        def down(key: str) -> None:
            raise StoreDown("gone")

        monkeypatch.setattr(inner, "load", down)
        assert browser.get("/").status == 503
        numbers = told(browser)
        assert numbers[Metric.STORE_FAILURES.one()] == numbers[Metric.DENIED.one("store_down")] == 1

    def test_a_provider_that_fails(self, watched: Callable[..., Browser]) -> None:
        browser = watched()
        target = browser.begin()
        browser.provider.misbehave("token_error_500")
        assert browser.get(target).status in (502, 503, 504)
        assert told(browser)[Metric.PROVIDER_FAILURES.one()] >= 1

    def test_verdicts_about_tokens_in_memory(self) -> None:
        counts = Counts()
        cache = BearerCache(10, None, lambda: datetime.now(timezone.utc), counts=counts)
        with pytest.raises(KeyError):
            cache.find(("jwt", b"digest"))
        cache.keep(("jwt", b"digest"), None)
        assert cache.find(("jwt", b"digest")) is None
        assert counts.counters()[Metric.BEARER_HITS.one()] == 1

    def test_requests_for_which_there_is_no_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pool_of_threads, "WAITING_PER_THREAD", -1)
        counts = Counts()
        pool = Pool(lambda environ, start_response: [], 1, counts.adder(Metric.POOL_REFUSALS))
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        try:
            # In a thread of its own: in the tests' one a browser's loop may be running.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, pool({"type": "http"}, None, send)).result()
        finally:
            pool.close()
        assert sent[0]["status"] == 503 and counts.counters()[Metric.POOL_REFUSALS.one()] == 1

    def test_only_metrics_is_another_path_of_the_listener(self, watched: Callable[..., Browser]) -> None:
        app = watched().app
        until(lambda: ask(app, "GET", "/", port=PROBE).status == 200)
        for path in ("/metrics/", "/metricsx", "/x/metrics", "/"):
            answer = ask(app, "GET", path, port=PROBE)
            assert (answer.status, answer.body) == (200, b"")
        assert ask(app, "POST", "/metrics", port=PROBE).status == 405
        for port in (8080, 8082):
            assert "authservice_checks" not in ask(app, "GET", "/metrics", port=port).text


class TestSeveralProcesses:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return tmp_path

    def counted(self, folder: Path, how_often: int) -> tuple[Counts, Ledger]:
        counts = Counts()
        for _ in range(how_often):
            counts.add(Metric.LOGINS_BEGUN)
        ledger = Ledger(counts)
        ledger.join(folder)
        return counts, ledger

    def logins(self, ledger: Ledger) -> float:
        return samples(ledger.text())[Metric.LOGINS_BEGUN.one()]

    def test_the_sum_of_all_and_of_those_that_ended(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(scrape, "INTERVAL", 0.01)
        (counts, first), (_, second) = self.counted(folder, 2), self.counted(folder, 3)
        try:
            until(lambda: self.logins(first) == self.logins(second) == 5)
            counts.add(Metric.LOGINS_BEGUN)
            assert self.logins(first) == 6, "one's own numbers are told as they are now"
            until(lambda: self.logins(second) == 6)
            assert samples(first.text())[Metric.WORKERS.one()] == 2
        finally:
            first.stop()
            second.stop()
        scrape.fold(folder, os.getpid())
        scrape.fold(folder, os.getpid())
        alone = Ledger(Counts())
        alone.join(folder)
        try:
            numbers = samples(alone.text())
            assert numbers[Metric.LOGINS_BEGUN.one()] == 6 and numbers[Metric.WORKERS.one()] == 1
        finally:
            alone.stop()

    def test_a_forked_process_begins_at_nothing(self, folder: Path) -> None:
        counts, ledger = self.counted(folder, 4)
        reader, writer = multiprocessing.Pipe(duplex=False)

        def child() -> None:
            ledger.start()
            counts.add(Metric.LOGINS_BEGUN)
            writer.send((counts.counters()[Metric.LOGINS_BEGUN.one()], self.logins(ledger)))
            ledger.stop()

        process = multiprocessing.get_context("fork").Process(target=child)
        ledger.stop()
        process.start()
        try:
            assert reader.poll(LIMIT)
            assert reader.recv() == (1, 5)
        finally:
            process.join(LIMIT)

    def test_a_folder_that_goes_away_takes_no_number_of_ones_own_along(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(scrape, "INTERVAL", 0.01)
        gone = folder / "gone"
        _, ledger = self.counted(gone, 2)
        assert self.logins(ledger) == 2
        ledger.stop()

    @pytest.mark.parametrize("broken", ["gone", "nonsense"])
    def test_nothing_that_became_of_the_folder_stops_who_waits_for_workers(self, folder: Path, broken: str) -> None:
        if broken == "nonsense":
            (folder / "ended.json").write_text("{")
        else:
            folder = folder / "gone"
        scrape.fold(folder, os.getpid())

    def test_its_files_are_for_nobody_else_and_tell_numbers_only(self, folder: Path) -> None:
        shared = scrape.new_folder()
        assert shared is not None and shared.stat().st_mode & 0o777 == 0o700
        _, ledger = self.counted(shared, 1)
        ledger.stop()
        (path,) = shared.glob("live-*")
        content = json.loads(path.read_text())
        assert all(type(number) is int for numbers in content.values() for number in numbers.values())
        for left in shared.iterdir():
            left.unlink()
        shared.rmdir()


def scraped(served: Served) -> dict[str, float]:
    (answer,) = exchange(served.probe, request("/metrics", close=True))
    return samples(answer.body.decode())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fast", "gthread"])
def test_all_workers_of_one_server_tell_one_sum_and_forget_nobody(
    kind: str, environ: dict[str, str], tmp_path: Path
) -> None:
    settings = {**environ, "WEB_CONCURRENCY": "2", "WORKER_CLASS": kind, "SKIP_AUTH_URLS": "/open"}
    name = Metric.ALLOWED.one("none")

    def passed(served: Served, expected: int) -> bool:
        """Whichever worker answers."""
        return all(scraped(served)[name] == expected for _ in range(8))

    with serving(settings, tmp_path) as served:
        for _ in range(40):
            exchange(served.judge, request("/open", close=True))
        until(lambda: passed(served, 40))
        until(lambda: scraped(served)[Metric.WORKERS.one()] == 2)
        workers = served.workers()
        os.kill(min(workers), signal.SIGKILL)
        until(lambda: len(served.workers()) == 2 and served.workers() != workers)
        until(lambda: scraped(served)[Metric.WORKERS.one()] == 2)
        exchange(served.judge, request("/open", close=True))
        until(lambda: passed(served, 41))
        served.process.send_signal(signal.SIGHUP)
        until(lambda: not served.workers() & workers and len(served.workers()) == 2)
        until(lambda: passed(served, 41))
