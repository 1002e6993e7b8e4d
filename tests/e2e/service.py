"""AuthService as it is run in production: gunicorn from the checkout, settings from the environment."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.e2e.processes import Program, children
from tests.ports import free_port
from tests.e2e.wire import Answer, Headers, request
from tests.waiting import until

CHECKOUT = Path(__file__).resolve().parents[2]


class Service:
    """A running AuthService. ``judge_port`` is asked by gateways, ``site_port`` by people."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.settings = {
            "SERVER_HOSTNAME": "127.0.0.1",
            "SERVER_PORT": str(free_port()),
            "WEB_SERVER_PORT": str(free_port()),
            "SESSION_STORE_PATH": str(folder / "sessions.db"),
            "WEB_CONCURRENCY": "2",
            "WORKER_CLASS": os.environ.get("WORKER_CLASS", "fast"),  # make test-gthread
            "LOG_LEVEL": "DEBUG",  # the most talkative: what is searched for secrets
            **settings,
        }
        self.judge_port, self.site_port = int(self.settings["SERVER_PORT"]), int(self.settings["WEB_SERVER_PORT"])
        gunicorn = str(Path(sys.executable).with_name("gunicorn"))
        command = [gunicorn, "-c", str(CHECKOUT / "gunicorn.conf.py"), "wsgi:app"]
        # Python's own switches (unbuffered, no byte code) go the same way as the settings.
        env = {"PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": os.environ.get("TMPDIR", "/tmp"), **self.settings}
        self.program = Program("authservice", command, folder / "authservice.log", env=env, cwd=CHECKOUT)

    def start(self, *, until_ready: bool = True) -> None:
        """Starts it and waits for ``/readyz``, or just until it is alive."""
        page = "/readyz" if until_ready else "/healthz"
        self.program.start(lambda: self.probe(page) == 200)
        until(lambda: len(self.workers()) == int(self.settings["WEB_CONCURRENCY"]))

    def stop(self) -> None:
        self.program.stop()

    def probe(self, page: str) -> int:
        """The status of a page of the site port; 0 when nobody answers."""
        try:
            return request(self.site_port, "GET", page, seconds=5).status
        except OSError:
            return 0

    def workers(self) -> list[int]:
        return children(self.program.pid)

    def kill_workers(self) -> None:
        """SIGKILL to every worker, and returns when new ones answer."""
        old = self.workers()
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(set(self.workers()) - set(old)) == len(old))
        until(lambda: self.probe("/healthz") == 200)

    def check(
        self,
        target: str,
        *,
        method: str = "GET",
        host: str = "127.0.0.1",
        headers: Headers = (),
    ) -> Answer:
        """Asks the judge port itself, as a gateway would."""
        return request(self.judge_port, method, target, host=host, headers=headers)

    def site(
        self, target: str, *, method: str = "GET", host: str = "127.0.0.1", headers: Headers = ()
    ) -> Answer:
        """Asks the site port itself."""
        return request(self.site_port, method, target, host=host, headers=headers)
