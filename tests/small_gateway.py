"""A gateway of a few lines, which asks an application in this process as Envoy does, and can be set up
wrongly.

It passes on what it is told to, routes the service's own prefix past the check, and shows a page of an
application to whoever is let in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

from flask import Flask

from tests.conftest import Answer, Browser, ask

Change = Callable[[str], str]


class SmallGateway:
    """Listens on a free port of loopback. Attributes may be changed while it runs.

    ``drops`` are the lower-case names of headers that no check gets; ``path`` changes the target of a check.
    With ``protects`` false nobody is asked, with ``routes`` false the prefix is checked like any other path,
    and with ``answers`` there is only this answer to a check. With ``signs_in`` it asks as ingress-nginx does:
    whom a check refuses, it sends to the login itself, on ``login_origin`` where that is set.
    """

    def __init__(self) -> None:
        self.app: Flask | None = None
        self.drops: set[str] = set()
        self.path: Change = lambda target: target
        self.protects = True
        self.routes = True
        self.answers: Answer | None = None
        self.signs_in = False
        self.login_origin = ""
        self.sends_scheme = True
        self.checks = 0
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = gateway.answer(
                    self.path, {name.lower(): value for name, value in self.headers.items()}
                )
                self.send_response(answer.status)
                for name, value in answer.headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> SmallGateway:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, target: str, headers: dict[str, str]) -> Answer:
        """What a client gets."""
        assert self.app is not None
        if self.sends_scheme:
            headers["x-forwarded-proto"] = "http"
        if self.routes and target.startswith("/authservice/"):
            return ask(self.app, "GET", target, port=Browser.SITE, headers=headers)
        page = Answer(200, (("Content-Type", "text/html"),), b"the application")
        if not self.protects:
            return page
        self.checks += 1
        passed = {name: value for name, value in headers.items() if name not in self.drops}
        if self.signs_in:
            passed |= {"x-original-url": self.origin + target, "x-original-method": "GET"}
            target = "/authservice/verify"
        answer = self.answers or ask(self.app, "GET", self.path(target), port=Browser.JUDGE, headers=passed)
        if self.signs_in and answer.status == 401:
            asked = passed["x-original-url"].removeprefix(self.origin)
            where = quote(f"{self.origin}{asked}", safe="")
            login = f"{self.login_origin or self.origin}/authservice/login?rd={where}"
            return Answer(302, (("Location", login), ("Content-Type", "text/html")), b"")
        return page if answer.status in (200, 204) else answer
