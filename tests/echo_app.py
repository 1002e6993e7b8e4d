"""The service with its two lanes replaced by ones that only say what they were asked.

Served by gunicorn as ``tests.echo_app:make()``, so that a test sees what a request became on its way through the
server. Every answer is 200 with `HEARD`, the base64 of a JSON object: on the judge port what the fast lane was
asked, elsewhere (and for targets that end in ``/2``) the WSGI environ and the body. `SEEN` gives back, and forgets,
everything that was heard until then, in its order.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask

from authservice import fastlane
from authservice.app import create_app
from authservice.check import RequestParts

HEARD = "x-heard"
SEEN = "/seen"
KEYS = frozenset({"CONTENT_TYPE", "CONTENT_LENGTH", "REQUEST_METHOD", "RAW_URI", "PATH_INFO", "QUERY_STRING",
                  "SCRIPT_NAME", "SERVER_PROTOCOL", "SERVER_NAME", "SERVER_PORT", "REMOTE_ADDR", "wsgi.url_scheme"})

_lock = threading.Lock()
_heard: list[dict[str, Any]] = []
_running = 0


def of_environ(environ: dict[str, Any], body: bytes) -> dict[str, Any]:
    """What an application can see of a request. An empty type is none (PEP 3333)."""
    seen = {key: value for key, value in environ.items() if key in KEYS or key.startswith("HTTP_")}
    if not seen.get("CONTENT_TYPE"):
        seen.pop("CONTENT_TYPE", None)
    return {"lane": "full", "body": body.decode("latin-1"), **seen}


def of_parts(parts: RequestParts) -> dict[str, Any]:
    """What the fast lane can see of one."""
    return {"lane": "fast", "method": parts.method, "target": parts.target, "headers": dict(parts.headers),
            "peer": parts.peer}


def _hear(heard: dict[str, Any]) -> str:
    with _lock:
        _heard.append(heard)
    return base64.b64encode(json.dumps(heard).encode()).decode()


def _ask(self: fastlane.FastLane, parts: RequestParts) -> fastlane.Answer | None:
    if (parts.target or "").endswith("/2"):
        return None
    told = _hear(of_parts(parts))
    return fastlane.Answer(200, f"{HEARD}: {told}\r\ncontent-length: 4\r\n".encode(), b"fast")


def _serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    global _running
    if environ["RAW_URI"] == SEEN:
        with _lock:
            # What is still under way may yet be heard, unless it fails.
            body = json.dumps({"running": _running, "heard": _heard if not _running else []}).encode()
            if not _running:
                _heard.clear()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]
    with _lock:
        _running += 1
    try:
        told = _hear(of_environ(environ, environ["wsgi.input"].read()))
    finally:
        with _lock:
            _running -= 1
    start_response("200 OK", [("X-Heard", told), ("Content-Length", "4")])
    return [b"full"]


def make() -> Flask:
    """The application, in whose process the fast lane too only says what it was asked."""
    fastlane.FastLane.ask = _ask  # type: ignore[method-assign]
    app = create_app()
    app.wsgi_app = _serve  # type: ignore[method-assign]
    return app
