"""How long the command line takes to find one person's sessions among very many, in a file and in Redis.

The person's are written by the service's own classes, the strangers' in bulk (`bench.strangers`). What is
asked is what somebody would type, from the start of its process to its end.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from authservice import app, settings
from authservice.sessions.seal import public_id, store_key
from bench.machine import Cores, on_core
from bench.programs import INSTALL, ROOT, BenchError, Missing
from bench.service import USER, new_session
from bench.strangers import ISSUER, fill_file, fill_redis
from tests.servers import running_redis

SQLITE, REDIS = "SQLite", "Redis"
MOST_SECONDS = 2.0

_OF_THE_PERSON = 3
_ADDRESS, _AGENT = "203.0.113.7", "Mozilla/5.0 (X11; Linux x86_64) Chrome/142.0"
_COMMAND = (
    sys.executable, "-c", "import sys; from authservice.cli import main; sys.exit(main(sys.argv[1:]))",
    "sessions", "list", "--user", USER, "--json",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Listing:
    """What one run found: seconds of each time, by store, among so many sessions."""

    sessions: int
    seconds: Mapping[str, list[float]]


def measure(count: int, times: int, say: Callable[[str], None], cores: Cores | None = None) -> Listing:
    """With ``cores``, a server runs on the one for servers. A store that cannot be measured is left out."""
    found: dict[str, list[float]] = {}
    for name, filled in ((SQLITE, _file), (REDIS, _redis)):
        began = time.monotonic()
        try:
            with filled(count, cores) as environ:
                say(f"  {count:,} sessions in {name}: {time.monotonic() - began:.0f} s")
                ids = _log_in(environ)
                found[name] = [_listed(environ, ids) for _ in range(times)]
            say(f"    listed one person's in {', '.join(f'{took:.2f}' for took in found[name])} s")
        except (Missing, BenchError) as error:
            say(f"  without {name}: {error}")
    return Listing(count, found)


@contextmanager
def _file(count: int, cores: Cores | None) -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="authservice-bench-") as folder:
        file = Path(folder) / "sessions.db"
        fill_file(file, count)
        yield _environment(SESSION_STORE_PATH=str(file))


@contextmanager
def _redis(count: int, cores: Cores | None) -> Iterator[dict[str, str]]:
    program = next(filter(None, map(shutil.which, ("redis-server", "valkey-server"))), None)
    if program is None:
        raise Missing(f"redis-server is not installed: {INSTALL['redis-server']}")
    with tempfile.TemporaryDirectory(prefix="authservice-bench-") as folder, ExitStack() as ending:
        with on_core(cores.server) if cores else ExitStack():
            server = ending.enter_context(running_redis(program, Path(folder)))
        fill_redis(server.address, count)
        yield _environment(SESSION_STORE_TYPE="redis", SESSION_STORE_REDIS_ADDR=server.address)


def _environment(**changes: str) -> dict[str, str]:
    """Settings of a service that is looked into and not served."""
    return {
        "OIDC_PROVIDER": ISSUER,
        "CLIENT_ID": "bench",
        "CLIENT_SECRET": "a-secret-of-the-benchmark",
        "AUTHSERVICE_URL_PREFIX": "/authservice/",
        **changes,
    }


def _log_in(environ: Mapping[str, str]) -> set[str]:
    """The ids of the person's sessions, made as the service makes them."""
    service = app.build(settings.load(environ))
    try:
        secrets = [
            service.sessions.begin(new_session(ISSUER), address=_ADDRESS, user_agent=_AGENT)
            for _ in range(_OF_THE_PERSON)
        ]
    finally:
        service.stop()
    return {public_id(store_key(secret)) for secret in secrets}


def _listed(environ: Mapping[str, str], ids: set[str]) -> float:
    """The seconds it took. `BenchError` when it did not name the person's sessions and no others."""
    began = time.monotonic()
    done = subprocess.run(
        _COMMAND, cwd=ROOT, env={**environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    took = time.monotonic() - began
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    about = {(line["user"], line["address"], line["user_agent"]) for line in lines}
    if done.returncode or {line["id"] for line in lines} != ids or about != {(USER, _ADDRESS, _AGENT)}:
        raise BenchError(f"sessions list --user: {done.returncode}, {done.stdout[:300]} {done.stderr[-300:]}")
    return took
