"""The service with hooks that make it slow on purpose, for tests of what the server does then.

Served by gunicorn as ``tests.load_app:make()``. A request for `HOLD` keeps one thread until the file that the
environment variable `GATE` names exists; one for `STUCK` keeps the event loop for ever. Senders are given
`SECONDS` for a head or a body, which is enough for honest ones here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flask import Flask

from authservice import fastlane, protocol
from authservice.app import create_app
from authservice.check import RequestParts
from tests.waiting import until

GATE = "GATE"
HOLD = "/hold"
STUCK = "/stuck"
SECONDS = 4


def make() -> Flask:
    """The application, with its background work started."""
    protocol.HEAD_SECONDS = protocol.BODY_SECONDS = SECONDS
    ask = fastlane.FastLane.ask

    def hooked(lane: fastlane.FastLane, parts: RequestParts) -> fastlane.Answer | None:
        while parts.target == STUCK:
            time.sleep(60)
        return None if parts.target == HOLD else ask(lane, parts)

    fastlane.FastLane.ask = hooked  # type: ignore[method-assign]
    app = create_app()
    serve = app.wsgi_app

    def held(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["RAW_URI"] == HOLD:
            until(Path(os.environ[GATE]).exists, 60)
        return serve(environ, start_response)

    app.wsgi_app = held  # type: ignore[method-assign]
    app.extensions["authservice"].start()
    return app
