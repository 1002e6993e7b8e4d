"""gunicorn's settings, made from ours: two ports, limits as wide as gateways', graceful ends.

Used as ``gunicorn -c gunicorn.conf.py wsgi:app`` in a checkout and as
``gunicorn -c python:authservice.gunicorn_conf "authservice.wsgi:app"`` from an installed package. With faulty
settings gunicorn does not start: all problems are listed and the exit status is 2.
"""

from __future__ import annotations

import gc
import os
import shutil
import socket
import struct
import sys
from typing import Any

from authservice import scrape
from authservice.errors import SettingsError
from authservice.startup import checked, explain

try:
    settings = checked()
except SettingsError as error:
    sys.stderr.write(explain(error))
    sys.exit(2)


def _address(port: int) -> str:
    host = settings.server_hostname
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


bind = [_address(settings.server_port), _address(settings.web_server_port)]
if settings.readiness_probe_port:
    # On all interfaces, as the original's: the kubelet asks the pod's own address.
    bind.append(f":{settings.readiness_probe_port}")

workers = settings.web_concurrency
worker_class = "authservice.worker.CheckWorker" if settings.worker_class == "fast" else "gthread"
threads = 16
# Longer than any proxy in front keeps a connection idle, so that it never meets a closed one.
keepalive = 75
timeout = 60
graceful_timeout = 20

# A check carries the person's whole address and all their cookies. The sum of all header lines
# is limited by the application.
limit_request_line = 8190
limit_request_field_size = 65536
limit_request_fields = 200

# A client reaches us through its gateway: nothing that it sends may change scheme, path or peer.
forwarded_allow_ips = ""
secure_scheme_headers: dict[str, str] = {}
forwarder_headers = ""
header_map = "drop"

# How long a connection may stay silent in the middle of a request's head, with gunicorn's own
# threads: accepted connections take it over from the listener; a whole request is short. The event
# loop of the other worker keeps its own time, and waits for nobody.
HEAD_SILENCE_SECONDS = 10


def when_ready(server: Any) -> None:
    """Called by gunicorn in the master, before it starts workers."""
    if worker_class != "gthread":
        return
    for listener in server.LISTENERS:
        listener.sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", HEAD_SILENCE_SECONDS, 0)
        )


def on_starting(server: Any) -> None:
    """Called in the master, once: makes the place where workers put their numbers together, and the last
    good policies."""
    server.numbers = scrape.new_folder(server.cfg.uid, server.cfg.gid)
    if server.numbers is not None:
        os.environ[scrape.SHARED_FOLDER] = str(server.numbers)


def post_fork(server: Any, worker: Any) -> None:
    """Called in each worker before it loads the application."""
    worker.numbers = server.numbers


def post_worker_init(worker: Any) -> None:
    """Called in each worker when the application is loaded."""
    # What is there now stays: looking through it is half of what each full collection takes.
    gc.collect()
    gc.freeze()
    if worker.numbers is not None:
        worker.wsgi.extensions["authservice"].ledger.join(worker.numbers)


def worker_exit(server: Any, worker: Any) -> None:
    """Called in each worker at its end."""
    if worker.booted:
        service = worker.wsgi.extensions["authservice"]
        service.refresher.stop()
        service.sessions.stop()
        service.ledger.stop()


def child_exit(server: Any, worker: Any) -> None:
    """Called in the master when a worker has ended, however it did."""
    if server.numbers is not None:
        scrape.fold(server.numbers, worker.pid)


def on_exit(server: Any) -> None:
    """Called in the master at its end."""
    if server.numbers is not None:
        shutil.rmtree(server.numbers, ignore_errors=True)


control_socket_disable = True
accesslog = None
proc_name = "authservice"
