"""gunicorn's worker class: uvicorn's server on uvloop, with checks answered on the loop itself.

`CheckWorker` connects what others keep: gunicorn's settings and signals, uvicorn's server, our protocol,
and the application on its threads. It owns how a worker lives and ends: a heartbeat each second from the
loop (who hangs is killed and replaced), ``max_requests``, and an end that refuses no request.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import sys

import uvloop
from gunicorn.arbiter import Arbiter
from uvicorn.config import Config
from uvicorn.server import Server
from uvicorn_worker import UvicornWorker

from authservice.fastlane import FastLane
from authservice.ops import Metric
from authservice.pool import Pool
from authservice.protocol import CheckProtocol, Serving

log = logging.getLogger(__name__)

MARGIN_SECONDS = 2
"""How long before gunicorn's ``graceful_timeout`` a worker ends by itself."""

MOST_FILES = 65536
"""Open files that a worker asks its system for, so that idle connections cannot take the last one."""

KEPT_FILES = 256
"""How many of them connections leave to everything else."""


class CheckServer(Server):
    """uvicorn's server with another end: it stops accepting, and goes when its connections have gone."""

    def __init__(self, config: Config, serving: Serving, worker: CheckWorker) -> None:
        super().__init__(config)
        self.server_state = serving
        self._serving = serving
        self._worker = worker
        self._ending = asyncio.Event()
        self._at_once = asyncio.Event()

    def end(self, *, at_once: bool = False) -> None:
        """Begins the end; ``at_once`` leaves out the patience with idle connections."""
        self.should_exit = True
        self._ending.set()
        if at_once:
            self._at_once.set()

    async def main_loop(self) -> None:
        """Until somebody calls `end`."""
        self._second()
        await self._ending.wait()

    def _second(self) -> None:
        asyncio.get_running_loop().call_later(1, self._second)
        self._worker.notify()
        self._serving.sweep()
        limit = self.limit_max_requests
        if limit is not None and self._serving.total_requests >= limit and not self.should_exit:
            self._worker.log.info("%s requests answered: this worker ends", limit)
            self.end()
        if os.getppid() != self._worker.ppid:
            # The arbiter is gone, and nobody would end this worker.
            self.end()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accepts nobody any more; answers what still comes on open connections with ``connection:
        close``; waits until they have gone, or until gunicorn's patience is nearly at its end."""
        for server in self.servers:
            server.close()
        for sock in sockets or []:
            sock.close()
        serving = self._serving
        serving.draining = True
        for connection in tuple(serving.connections):
            connection.shutdown()
        patience = max(1.0, self._worker.cfg.graceful_timeout - MARGIN_SECONDS)
        loop = asyncio.get_running_loop()
        until = loop.time() + patience
        while (serving.connections or serving.tasks) and loop.time() < until:
            if self._at_once.is_set() and not serving.tasks:
                break
            await asyncio.sleep(0.05)
        for connection in tuple(serving.connections):
            connection.transport.close()


class CheckWorker(UvicornWorker):
    """``worker_class = "authservice.worker.CheckWorker"``."""

    CONFIG_KWARGS = {
        "loop": "uvloop",
        "http": CheckProtocol,
        "ws": "none",
        "lifespan": "off",
        "interface": "asgi3",
        "access_log": False,
        # A client reaches us through its gateway: nothing that it sends changes peer or scheme.
        "proxy_headers": False,
        "server_header": False,
    }

    def run(self) -> None:
        """Serves until the end."""
        busy = uvloop.run(self._live())
        if busy:
            # The interpreter would wait for its threads, and they for whatever holds them.
            self.log.warning("%s requests did not end in time", busy)
            self.wsgi.extensions["authservice"].ledger.stop()
            os._exit(0)

    async def _live(self) -> int:
        counts = self.wsgi.extensions["authservice"].counts
        pool = Pool(self.wsgi, self.cfg.threads, counts.adder(Metric.POOL_REFUSALS))
        self.config.app = pool
        server = CheckServer(self.config, self._serving(), self)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, server.end)
        for quick in (signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(quick, lambda: server.end(at_once=True))
        await server._serve(self.sockets)
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        pool.close()
        return pool.in_flight

    def _serving(self) -> Serving:
        service = self.wsgi.extensions["authservice"]
        access = self._access if self.cfg.accesslog else None
        connections = max(KEPT_FILES, open_files() - KEPT_FILES)
        return Serving(FastLane(service.judge), self.wsgi.judges, self.cfg.keepalive, access, connections)

    def _access(self, method: str, target: str, status: int) -> None:
        """One line of the access log: never the query."""
        self.log.access_log.info("%s %s %s", method, target.partition("?")[0], status)


def open_files() -> int:
    """How many files this process may open, after asking for `MOST_FILES`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(MOST_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
