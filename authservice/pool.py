"""The WSGI application behind the event loop: threads, and a bounded queue in front of them.

`Pool` is an ASGI application over a2wsgi. It gives the application the environ that gunicorn's own
workers give it (target as sent, real addresses, one port per listener), and answers 503 with
``Retry-After`` when more requests wait than its queue holds. It parses nothing and judges nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from a2wsgi import WSGIMiddleware

Wsgi = Callable[[Any, Callable[..., Any]], Iterable[bytes]]

WAITING_PER_THREAD = 4
RETRY_AFTER_SECONDS = 1


class Pool:
    """``threads`` run the application; beyond `WAITING_PER_THREAD` more for each, requests are
    refused, of which ``refused`` is told."""

    def __init__(self, application: Wsgi, threads: int, refused: Callable[[], object] = lambda: None) -> None:
        self._application = application
        self._middleware = WSGIMiddleware(self._run, workers=threads)
        self._most = threads * (1 + WAITING_PER_THREAD)
        self._in_flight = 0
        self._refused = refused

    @property
    def in_flight(self) -> int:
        """How many requests are running or waiting for a thread. To be asked on the loop's thread."""
        return self._in_flight

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._in_flight >= self._most:
            self._refused()
            await _busy(send)
            return
        self._in_flight += 1
        try:
            await self._middleware(scope, receive, send)
        finally:
            self._in_flight -= 1

    def close(self) -> None:
        """Takes no more work, and waits for none."""
        self._middleware.executor.shutdown(wait=False, cancel_futures=True)

    def _run(self, environ: Any, start_response: Callable[..., Any]) -> Iterable[bytes]:
        scope = environ.pop("asgi.scope")
        target = scope["extensions"]["authservice.target"]
        # A path that begins with // is none of urlsplit's hosts (as in gunicorn).
        parts = urlsplit("." + target) if target.startswith("//") else urlsplit(target)
        path = parts.path[1:] if target.startswith("//") else parts.path
        environ["RAW_URI"] = target
        environ["PATH_INFO"] = unquote_to_bytes(path).decode("latin-1")
        environ["QUERY_STRING"] = parts.query
        environ["SERVER_PORT"] = str(scope["server"][1]) if scope["server"] and scope["server"][1] else ""
        environ.setdefault("REMOTE_ADDR", "")
        environ["wsgi.errors"] = sys.stderr
        environ["wsgi.input_terminated"] = True
        return self._application(environ, start_response)


async def _busy(send: Any) -> None:
    text = b"Too many requests are waiting."
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(text)).encode()),
        (b"cache-control", b"no-store"),
        (b"retry-after", str(RETRY_AFTER_SECONDS).encode()),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": text, "more_body": False})
