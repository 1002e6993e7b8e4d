"""Fixtures for everything that needs the whole service: settings, a clock, a provider, a browser."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import hypothesis
import pytest
from flask import Flask
from werkzeug.test import create_environ, run_wsgi_app

from authservice.errors import NotReady
from authservice.logs import JsonLines
from tests.lanes import on_both_lanes
from tests.programs import require
from tests.waiting import until

if TYPE_CHECKING:
    from tests.provider import FakeProvider

CLIENT_ID = "authservice"
CLIENT_SECRET = "a-client-secret-that-nobody-may-see"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: real processes or real time limits; not in the quick part")
    config.addinivalue_line("markers", "external: needs a program that pip or apt brings")
    # How long an example takes says more about the machine than about the code.
    hypothesis.settings.register_profile("any-machine", deadline=None)
    hypothesis.settings.load_profile("any-machine")


class Clock:
    """The service's clock, moved by hand."""

    def __init__(self) -> None:
        self.offset = timedelta(0)
        self._held = threading.local()

    def __call__(self) -> datetime:
        held: datetime | None = getattr(self._held, "moment", None)
        return held or datetime.now(timezone.utc) + self.offset

    @contextmanager
    def held(self) -> Iterator[None]:
        """For this thread it stands still."""
        self._held.moment = self()
        try:
            yield
        finally:
            self._held.moment = None

    def advance(self, **by: float) -> None:
        self.offset += timedelta(**by)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as a gateway or browser gets it."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """The only value of a header; fails when it is there twice."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} is there {len(values)} times"
        return values[0] if values else None

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(app: Flask, method: str, target: str, *, port: int, headers: Mapping[str, str] | None = None,
        peer: str = "127.0.0.1", body: bytes = b"") -> Answer:
    """One request straight into the WSGI application, with the target exactly as given.

    On the judge's port the fast lane is asked first: what it answers must be the application's answer.
    """
    path, _, query = target.partition("?")
    environ = create_environ(path="/", method=method, headers=dict(headers or {}), data=body or None)
    environ.update(
        PATH_INFO=path, QUERY_STRING=query, RAW_URI=target, REQUEST_URI=target,
        SERVER_PORT=str(port), REMOTE_ADDR=peer,
    )
    with on_both_lanes(app, environ) as told:
        chunks, status, sent = run_wsgi_app(app, environ, buffered=True)
        answer = Answer(int(status.split()[0]), tuple(sent), b"".join(chunks))
        told(answer.status, answer.headers, answer.body)
    app.extensions.setdefault("answers", []).append(answer)
    return answer


class Told(logging.Handler):
    """What applications logged, before known secrets are taken out of it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(JsonLines())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def assert_nothing_secret_was_told(app: Flask, lines: list[str]) -> None:
    """No client secret and no cookie's value stands in the log, on a page or in an error (S-33)."""
    answers: list[Answer] = app.extensions.get("answers", [])
    cookies = (line.partition(";")[0].partition("=")[2] for answer in answers for line in answer.all("Set-Cookie"))
    secrets = {CLIENT_SECRET, *filter(lambda value: len(value) > 20, cookies)}
    texts = "\n".join([*lines, *(answer.body.decode("utf-8", "replace") for answer in answers)])
    assert not [secret for secret in secrets if secret in texts], "S-33: a secret was told"


@dataclass
class Browser:
    """Just enough of a browser: a cookie jar, and the steps of a login."""

    app: Flask
    provider: FakeProvider
    host: str = "app.example"
    jar: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)

    JUDGE = 8080
    SITE = 8082

    def send(self, method: str, target: str, *, port: int = JUDGE, **headers: str) -> Answer:
        named = {"Host": self.host, **{name.replace("_", "-"): value for name, value in headers.items()}}
        if self.jar and "Cookie" not in named:
            named["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.jar.items())
        answer = ask(self.app, method, target, port=port, headers=named)
        self._keep(answer)
        return answer

    def get(self, target: str, **more: Any) -> Answer:
        return self.send("GET", target, **more)

    def _keep(self, answer: Answer) -> None:
        for line in answer.all("Set-Cookie"):
            pair, _, rest = line.partition(";")
            name, _, value = pair.partition("=")
            self.attributes[name] = rest
            if "max-age=0" in rest.lower():
                self.jar.pop(name, None)
            else:
                self.jar[name] = value

    def begin(self, target: str = "/notebooks/7?x=1", **more: Any) -> str:
        """Asks for a page, is sent to the provider, and logs in there: the callback's target."""
        until(self._provider_is_known)  # by whoever asks it; on a busy machine that may take its time
        sent = self.get(target, **more)
        assert sent.status == 302, (sent.status, sent.text)
        return self.at_provider(sent)

    def _provider_is_known(self) -> bool:
        try:
            self.app.extensions["authservice"].provider.ensure_known()
        except NotReady:
            return False
        return True

    def at_provider(self, sent: Answer) -> str:
        location = sent.header("Location") or ""
        query = self.provider.authorize(location)
        return f"{self.callback_path}?{query}"

    @property
    def callback_path(self) -> str:
        return "/authservice/oidc/callback"

    def log_in(self, target: str = "/notebooks/7?x=1", **more: Any) -> Answer:
        """A whole login; gives the callback's answer."""
        return self.get(self.begin(target), **more)

    @property
    def session(self) -> str | None:
        return self.jar.get("authservice_session")

    @property
    def pending(self) -> list[str]:
        return [name for name in self.jar if name.startswith("authservice_session_login_")]


def path_of(location: str | None) -> str:
    """The path and query of an address."""
    parts = urlsplit(location or "")
    return parts.path + (f"?{parts.query}" if parts.query else "")


@pytest.fixture
def names_as_in_browsers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name below localhost is this machine (RFC 6761 §6.3); not every system's look-up knows it."""
    look_up = socket.getaddrinfo

    def here(host: Any, *more: Any, **named: Any) -> Any:
        return look_up("127.0.0.1" if str(host).endswith(".localhost") else host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", here)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def provider(clock: Callable[[], datetime]) -> Iterator[FakeProvider]:
    """The provider, on the service's clock: what it issues is new whenever it is asked."""
    from tests.provider import FakeProvider, rsa_key

    # Made before the first request, which has its time limit: keys take long on a busy machine.
    for number in (0, 3):
        rsa_key(number)
    with FakeProvider(client_id=CLIENT_ID, client_secret=CLIENT_SECRET) as fake:
        fake.clock = clock
        yield fake


@pytest.fixture
def environ(provider: FakeProvider, tmp_path: Path) -> dict[str, str]:
    """Settings that log in at the fake provider and keep sessions in this test's folder."""
    return {
        "OIDC_PROVIDER": provider.issuer,
        "CLIENT_ID": CLIENT_ID,
        "CLIENT_SECRET": CLIENT_SECRET,
        "AUTHSERVICE_URL_PREFIX": "/authservice/",
        "SESSION_STORE_PATH": str(tmp_path / "sessions" / "data.db"),
        "LOG_LEVEL": "DEBUG",
    }


@pytest.fixture(scope="session")
def pages_once() -> Callable[[Any], Any]:
    """Builds pages once for all applications that look alike: compiling templates takes longer than
    most tests. Where the provider is, no page tells by itself."""
    from authservice.startup import build_pages

    made: dict[Any, Any] = {}

    def build(settings: Any) -> Any:
        key = (settings.template_path, settings.client_name, settings.themes_url, settings.theme,
               settings.prefix_path, tuple(settings.template_context.items()))
        if key not in made:
            made[key] = build_pages(settings)
        return made[key]

    return build


@pytest.fixture(scope="session")
def authorities_once() -> Callable[[Path | None, bool], Any]:
    """Reads the system's authorities once for all applications, for the same reason."""
    from authservice.outbound import _tls_context

    system = _tls_context(None, True)
    return lambda bundle, wanted: system if bundle is None and wanted else _tls_context(bundle, wanted)


@pytest.fixture
def make_app(
    environ: dict[str, str], clock: Clock, pages_once: Callable[[Any], Any],
    authorities_once: Callable[[Path | None, bool], Any], monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., Flask]]:
    """Makes applications with changed settings, and ends their background work afterwards."""
    from authservice import outbound, startup
    from authservice.app import create_app

    monkeypatch.setattr(startup, "build_pages", pages_once)
    monkeypatch.setattr(outbound, "_tls_context", authorities_once)
    made: list[Flask] = []
    told = Told()

    def make(**changes: str) -> Flask:
        app = create_app({**environ, **changes}, now=clock)
        app.extensions["clock"] = clock
        logging.getLogger("authservice").addHandler(told)
        made.append(app)
        app.extensions["authservice"].start()
        return app

    yield make
    for app in made:
        app.extensions["authservice"].stop()
    logging.getLogger("authservice").removeHandler(told)
    for app in made:
        assert_nothing_secret_was_told(app, told.lines)


@pytest.fixture
def make_browser(make_app: Callable[..., Flask], provider: FakeProvider) -> Callable[..., Browser]:
    """A browser in front of an application with changed settings."""

    def make(app: Flask | None = None, **changes: str) -> Browser:
        return Browser(app or make_app(**changes), provider)

    return make


@pytest.fixture
def browser(make_browser: Callable[..., Browser]) -> Browser:
    """In front of an application that knows its provider: on a busy machine that may take longer than a request
    waits for it."""
    browser = make_browser()
    until(lambda: browser.app.extensions["authservice"].provider.ready)
    return browser


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless Chromium (`playwright.sync_api.Browser`), one for the whole process."""
    program = require("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
