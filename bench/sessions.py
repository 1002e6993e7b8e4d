"""``python -m bench.sessions``: what very many sessions cost those who look for one, and what sweeping costs checks.

Fills a SQLite file and a Redis with strangers' sessions, asks the command line for one person's, and asks
for sessions of the file while another process removes expired ones (`bench.sweeping`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from authservice import app, settings
from bench import sweeping
from bench.programs import INSTALL, ROOT, BenchError, Missing
from bench.report import Spread
from bench.service import USER, new_session
from bench.strangers import ISSUER, fill_file, fill_redis
from tests.servers import running_redis

MANY, FEW = 1_000_000, 50_000
OF_ONE = 3
"""Sessions of the person who is looked for."""

LIST_SECONDS = 2.0

_LIST = "import sys; from authservice.cli import main; sys.exit(main(sys.argv[1:]))"


@dataclass(frozen=True, slots=True)
class Found:
    """One thing that is wanted: ``seconds`` over the rounds, and at most ``bound`` of them."""

    text: str
    seconds: Spread
    bound: float

    @property
    def met(self) -> bool:
        return self.seconds.middle <= self.bound

    def __str__(self) -> str:
        verdict = "met    " if self.met else "NOT met"
        return f"{verdict}  {self.text}: {_ms(self.seconds)}, wanted {self.bound * 1e3:g} ms at most"


def _ms(spread: Spread) -> str:
    return f"{spread.middle * 1e3:.2f} ms ({spread.low * 1e3:.2f}–{spread.high * 1e3:.2f})"


def environment(folder: Path, **changes: str) -> dict[str, str]:
    """Settings of a service that is looked into and not served."""
    return {
        "OIDC_PROVIDER": ISSUER,
        "CLIENT_ID": "bench",
        "CLIENT_SECRET": "a-secret-of-the-benchmark",
        "AUTHSERVICE_URL_PREFIX": "/authservice/",
        "SESSION_STORE_PATH": str(folder / "sessions.db"),
        **changes,
    }


def log_in(environ: Mapping[str, str], count: int) -> list[str]:
    """Cookies' values of one person's sessions, made as the service makes them."""
    service = app.build(settings.load(environ))
    try:
        return [service.sessions.begin(new_session(ISSUER)) for _ in range(count)]
    finally:
        service.stop()


# --- one person's sessions among many -------------------------------------------------------------


def list_user(environ: Mapping[str, str], rounds: int) -> Spread:
    """Seconds of ``authservice sessions list --user``, from the start of its process to its end."""
    command = [sys.executable, "-c", _LIST, "sessions", "list", "--user", USER, "--json"]
    took = []
    for _ in range(rounds):
        began = time.monotonic()
        done = subprocess.run(
            command, cwd=ROOT, env={**environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        took.append(time.monotonic() - began)
        listed = [json.loads(line) for line in done.stdout.splitlines()]
        if done.returncode or len(listed) != OF_ONE or any(line["user"] != USER for line in listed):
            raise BenchError(f"sessions list --user: {done.returncode}, {done.stdout[:300]} {done.stderr[-300:]}")
    return Spread.of(took)


def in_a_file(folder: Path, count: int, rounds: int) -> list[Found]:
    environ = environment(folder)
    fill_file(folder / "sessions.db", count)
    log_in(environ, OF_ONE)
    return [Found(f"list --user among {count:,} sessions in SQLite", list_user(environ, rounds), LIST_SECONDS)]


def in_redis(folder: Path, count: int, rounds: int) -> list[Found]:
    program = next(filter(None, map(shutil.which, ("redis-server", "valkey-server"))), None)
    if program is None:
        raise Missing(f"redis-server is not installed: {INSTALL['redis-server']}")
    with running_redis(program, folder) as server:
        environ = environment(folder, SESSION_STORE_TYPE="redis", SESSION_STORE_REDIS_ADDR=server.address)
        fill_redis(server.address, count)
        log_in(environ, OF_ONE)
        return [Found(f"list --user among {count:,} sessions in Redis", list_user(environ, rounds), LIST_SECONDS)]


def sweeps(folder: Path, count: int, rounds: int, seconds: float, say: Callable[[str], None]) -> list[Found]:
    found = sweeping.measure(folder, count, rounds, seconds, say)
    made = []
    for kind, taken in found.rounds.items():
        for name, tails in (("without", [one.quiet for one in taken]), ("with", [one.swept for one in taken])):
            p99, longest = (Spread.of(values) for values in zip(*((tail.p99, tail.longest) for tail in tails)))
            say(f"    a check {kind}, {name} sweeping: p99 {_ms(p99)}, longest {_ms(longest)}")
        added = Spread.of([one.added for one in taken])
        made.append(Found(f"what sweeping {count:,} sessions adds to the longest check {kind}", added, sweeping.MOST_SECONDS))
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 1 under ``--check`` when something wanted is not met."""
    parser = argparse.ArgumentParser(prog="python -m bench.sessions", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"with {FEW:,} sessions instead of {MANY:,}, and shorter")
    parser.add_argument("--check", action="store_true", help="exit status 1 when something wanted is not met")
    given = parser.parse_args(arguments)
    count, rounds = (FEW, 3) if given.quick else (MANY, 5)
    found: list[Found] = []
    for name, measure in (
        ("SQLite", in_a_file),
        ("Redis", in_redis),
        ("Sweeping", lambda folder, count, rounds: sweeps(folder, count, 4 * rounds, 1.0, _say)),
    ):
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="authservice-bench-") as folder:
            try:
                found += measure(Path(folder), count, rounds)
            except (Missing, BenchError) as error:
                _say(f"  without {name}: {error}")
        _say(f"  {name}: measured in {time.monotonic() - began:.0f} s")
    _say("\nWanted")
    for one in found:
        _say(f"  {one}")
    return int(given.check and not all(one.met for one in found))


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
