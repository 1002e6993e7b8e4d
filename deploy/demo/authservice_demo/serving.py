"""Serving one of the demo's own Flask applications on the loopback address."""

from __future__ import annotations

import signal
import sys

from flask import Flask
from werkzeug.serving import WSGIRequestHandler, make_server


class Quiet(WSGIRequestHandler):
    """Says nothing about each request: the demo's terminal is for people."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Nothing."""


def serve(app: Flask, port: int) -> None:
    """Answers on 127.0.0.1 until SIGTERM or Ctrl-C."""
    server = make_server("127.0.0.1", port, app, threaded=True, request_handler=Quiet)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
