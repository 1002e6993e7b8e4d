"""The pages in a real browser: what the content policy lets happen, and what it must not.

``127.0.0.1`` and ``localhost`` are two origins on one server: the site, and «elsewhere».
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest

from authservice.pages import Page, Pages, framed
from tests.test_pages import contrast, own_session
from tests.waiting import until

pytestmark = pytest.mark.external

HOSTILE = (
    "</title></style><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@dataclass
class Site:
    """Serves pages by path, and theme files; everything else is a plain 200 that is written down."""

    port: int = 0
    themes: Pages = field(default_factory=Pages)
    pages: dict[str, Page] = field(default_factory=dict)
    asked: list[dict[str, str]] = field(default_factory=list)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def requests(self, path: str) -> list[dict[str, str]]:
        return [environ for environ in list(self.asked) if environ["PATH_INFO"] == path]

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        _, themed, name = path.partition("/site/themes/")
        file = self.themes.theme_file(name) if themed else None
        if file is not None:
            start("200 OK", list(file.headers))
            return [file.body]
        if path in self.pages:
            start("200 OK", list(self.pages[path].headers))
            return [self.pages[path].body]
        asked = {key: value for key, value in environ.items() if isinstance(value, str)}
        asked["body"] = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)).decode()
        self.asked.append(asked)
        start("200 OK", [("Content-Type", "text/html")])
        return [b"<title>elsewhere</title>"]


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    server = make_server("127.0.0.1", 0, site, server_class=_Server, handler_class=_Quiet)
    site.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def tab(chromium: Any) -> Iterator[Any]:
    context = chromium.new_context(viewport={"width": 320, "height": 640})
    yield context.new_page()
    context.close()


def test_pages_load_their_theme_and_break_no_rule_of_their_policy(site: Site, tab: Any) -> None:
    pages = Pages(client_name="x" * 80)
    site.pages = {
        "/authservice/site/homepage": pages.homepage(),
        "/authservice/site/after_logout": pages.after_logout(),
        "/deep/in/an/app": pages.denied(
            user_id="y" * 200, groups=["z" * 200] * 20, logout_url="/l", home_url="/h"
        ),
        "/authservice/oidc/callback": pages.error(502, "w" * 200, request_id="r" * 100, way_on_url="/"),
    }
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    for path in site.pages:
        tab.goto(site.url(path))
        style = "getComputedStyle(document.querySelector('.wrapper')).backgroundImage"
        assert "/authservice/site/themes/kubeflow/bg.svg" in tab.evaluate(style)
        assert tab.evaluate("document.querySelector('.logo').naturalWidth") > 0
        assert tab.evaluate("document.documentElement.scrollWidth") <= 320, path  # WCAG 2.2, 1.4.10
    assert complaints == []
    assert [found["PATH_INFO"] for found in site.asked] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_the_own_session_fits_and_can_be_read_on_every_screen(
    site: Site, chromium: Any, scheme: str, width: int
) -> None:
    """WCAG 2.2, 1.4.10 (no scrolling in two directions), 1.4.3 (contrast), 2.5.8 (size of targets)."""
    site.pages = {"/authservice/site/session": own_session(
        Pages(client_name="x" * 80), user_id="y" * 200, address="2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff",
        browser="Mozilla/5.0(" + "z" * 180, others=12_345,
    )}
    context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab = context.new_page()
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.goto(site.url("/authservice/site/session"))
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    for selector in (".facts dt", ".facts dd", ".aside", "h1", ".button:not(.button-quiet)", ".button-quiet"):
        ink, ground = tab.evaluate(_COLOURS, selector)
        assert contrast_shown(ink, ground) >= 4.5, (selector, ink, ground)
    boxes = [button.bounding_box() for button in tab.query_selector_all("button")]
    assert len(boxes) == 2 and all(box["height"] >= 44 and box["x"] + box["width"] <= width for box in boxes)
    assert complaints == []
    context.close()


_COLOURS = """selector => {
  const found = document.querySelector(selector);
  let behind = found;
  while (/^rgba\\(.*, 0\\)$/.test(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
  return [getComputedStyle(found).color, getComputedStyle(behind).backgroundColor];
}"""


def contrast_shown(ink: str, ground: str) -> float:
    """Of two colours as browsers write them."""
    def spelt(colour: str) -> str:
        return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"[0-9]+", colour)[:3])

    return contrast(spelt(ink), spelt(ground))


@pytest.mark.parametrize(("label", "body"), [("Log out here", b"end=this"), ("Log out everywhere", b"end=all")])
@pytest.mark.parametrize("scripts", [True, False])
def test_the_forms_of_the_own_session_say_what_and_prove_where_they_stand(
    site: Site, chromium: Any, label: str, body: bytes, scripts: bool
) -> None:
    site.pages = {"/deep/session": own_session(Pages(), session_url="/authservice/site/session")}
    context = chromium.new_context(java_script_enabled=scripts)
    tab = context.new_page()
    tab.goto(site.url("/deep/session"))
    tab.click(f"text={label}")
    tab.wait_for_url(site.url("/authservice/site/session"))
    [request] = site.requests("/authservice/site/session")
    assert request["REQUEST_METHOD"] == "POST" and request["body"].encode() == body
    assert request["HTTP_ORIGIN"] == site.url("") and request["HTTP_SEC_FETCH_SITE"] == "same-origin"
    assert request["HTTP_SEC_FETCH_MODE"] == "navigate"
    context.close()


def test_H12_hostile_words_run_nothing_and_leak_nothing(site: Site, tab: Any) -> None:
    pages = Pages(client_name=HOSTILE)
    site.pages = {
        "/denied": pages.denied(user_id=HOSTILE, groups=[HOSTILE], sentence=HOSTILE, request_id=HOSTILE),
        "/error": pages.error(400, HOSTILE, request_id=HOSTILE, way_on_url="/next", way_on_label=HOSTILE),
    }
    for path in ("/denied", "/error"):
        tab.goto(site.url(f"{path}?code=secret&state=secret"))
        assert "owned" != tab.title() and "<script>" in tab.title()
    tab.click("a.button")
    tab.wait_for_url(site.url("/next"))
    [request] = site.requests("/next")
    assert "HTTP_REFERER" not in request


def test_the_logout_form_proves_where_it_stands(site: Site, tab: Any) -> None:
    site.pages = {"/deep/page": Pages().denied(logout_url="/authservice/logout")}
    tab.goto(site.url("/deep/page"))
    tab.keyboard.press("Tab")
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.keyboard.press("Enter")
    tab.wait_for_url(site.url("/authservice/logout"))
    [request] = site.requests("/authservice/logout")
    assert request["REQUEST_METHOD"] == "POST"
    assert request["HTTP_ORIGIN"] == site.url("")


def test_onward_reaches_another_origin(site: Site, tab: Any) -> None:
    site.pages = {"/authservice/logout": Pages().onward(site.url("/end?x=1;y=2", "localhost"))}
    tab.goto(site.url("/authservice/logout"))
    tab.wait_for_url(site.url("/end?x=1;y=2", "localhost"))
    [request] = site.requests("/end")
    assert "HTTP_REFERER" not in request


@pytest.mark.parametrize("scripts", [True, False])
def test_gitlab_automatic_variant_signs_out_by_itself_or_by_its_button(
    site: Site, chromium: Any, scripts: bool
) -> None:
    pages = Pages(template_paths=["gitlab/auto_logout"], provider_url=site.url("/group", "localhost"))
    site.pages = {"/site/after_logout": pages.after_logout()}
    context = chromium.new_context(java_script_enabled=scripts)
    tab = context.new_page()
    tab.goto(site.url("/site/after_logout"), wait_until="commit")
    if not scripts:
        tab.click("button")
    until(lambda: bool(site.requests("/users/sign_out")))
    tab.wait_for_url(site.url("/users/sign_out", "localhost"))
    [request] = site.requests("/users/sign_out")
    assert request["REQUEST_METHOD"] == "POST"
    context.close()


def test_gitlab_button_variant_waits_for_the_person(site: Site, tab: Any) -> None:
    pages = Pages(template_paths=["gitlab/button_logout"], provider_url=site.url("", "localhost"))
    site.pages = {"/site/after_logout": pages.after_logout()}
    tab.goto(site.url("/site/after_logout"))
    assert site.requests("/users/sign_out") == []
    tab.click("button")
    tab.wait_for_url(site.url("/users/sign_out", "localhost"))
    assert [request["REQUEST_METHOD"] for request in site.requests("/users/sign_out")] == ["POST"]


def test_a_theme_picture_opened_as_a_page_runs_nothing(site: Site, tab: Any, tmp_path: Any) -> None:
    folder = tmp_path / "themes" / "evil"
    folder.mkdir(parents=True)
    (folder / "logo.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg"><title>calm</title>'
        '<script>document.querySelector("title").textContent = "owned"; fetch("/stolen")</script></svg>'
    )
    site.themes = Pages(template_paths=[str(tmp_path)])
    tab.goto(site.url("/site/themes/evil/logo.svg"))
    assert tab.evaluate("document.querySelector('title').textContent") == "calm"
    assert site.requests("/stolen") == []


@pytest.mark.parametrize(("host", "shown"), [("localhost", True), ("elsewhere.localhost", False), ("127.0.0.1", False)])
def test_d21_only_the_providers_pages_can_show_the_logout_frame(site: Site, tab: Any, host: str, shown: bool) -> None:
    """The provider is ``localhost``."""
    frame = f'<iframe src="{site.url("/frontchannel-logout")}"></iframe>'.encode()
    site.pages = {
        "/frontchannel-logout": framed("You are logged out.", [site.url("", "localhost")]),
        "/goodbye": Page(frame, (("Content-Type", "text/html"),)),
    }
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.goto(site.url("/goodbye", host))
    until(lambda: len(tab.frames) == 2)
    if shown:
        tab.frames[1].wait_for_selector("text=You are logged out.")
    else:
        until(lambda: "frame-ancestors" in "".join(complaints))
        assert "logged out" not in tab.frames[1].content()
