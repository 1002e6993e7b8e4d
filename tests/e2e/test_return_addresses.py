"""S-01: where hostile return addresses lead after a login, judged by Chromium's own URL parser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from playwright.sync_api import Browser

from tests.e2e import stack as stacks
from tests.e2e.person import NAVIGATION
from tests.e2e.stack import Stack
from tests.e2e.wire import Answer

pytestmark = [pytest.mark.external, pytest.mark.xdist_group("e2e-browser")]

CORPUS = Path(__file__).resolve().parents[1] / "data" / "open_redirects.txt"
OUTSIDE, CALLBACK = "https://our.host", "/authservice/oidc/callback"

# What `new URL()` makes of each Location, as a browser does that got it from the callback.
JUDGE = """([locations, base]) => locations.map(location => {
  try { const url = new URL(location, base); return [url.protocol, url.host, url.hostname] }
  catch { return null }
})"""


def addresses() -> list[str]:
    lines = CORPUS.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    running = stacks.start(
        "envoy",
        tmp_path_factory.mktemp("return"),
        {"ALLOWED_REDIRECT_HOSTS": "*.wild.example"},
        outside=OUTSIDE,
    )
    yield running
    running.stop()


class Returns:
    """Finds out where a login that began with some address would end, without going all the way
    each time: the second callback of a logged-in person leads to the login's own address (F04)."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        cookie = stack.logged_in().cookies(OUTSIDE + "/")["authservice_session"]
        self._session = ("Cookie", f"authservice_session={cookie}")

    def after(self, begun: Answer) -> str | None:
        """The Location at the end, or None when no login began."""
        if begun.status != 302:
            assert begun.status in (400, 401, 403, 414), begun
            return None
        state = parse_qs(urlsplit(begun.header("location")).query)["state"][0]
        ended = self._stack.service.site(
            f"{CALLBACK}?code=none&state={quote(state)}",
            host="our.host",
            headers=[self._session, *NAVIGATION],
        )
        assert ended.status == 302, ended
        return ended.header("location")

    def by_parameter(self, address: str) -> str | None:
        target = "/authservice/login?rd=" + quote(address, safe="", errors="surrogatepass")
        return self.after(self._stack.service.site(target, host="our.host", headers=NAVIGATION))

    def by_path(self, address: str) -> str | None:
        """As the original path of a check; what cannot stand in a request line is escaped."""
        target = quote(address, safe="!#$%&'()*+,/:;=?@[]~\\|^`{}\"<>", errors="surrogatepass")
        target = target if target.startswith("/") else "/" + target
        return self.after(self._stack.service.check(target, host="our.host", headers=NAVIGATION))


@pytest.mark.parametrize("way", ["by_parameter", "by_path"])
def test_S01_every_hostile_address_ends_on_an_allowed_origin(
    chromium: Browser, stack: Stack, way: str
) -> None:
    returns = Returns(stack)
    tried = addresses()
    assert len(tried) >= 500
    with ThreadPoolExecutor(4) as pool:
        locations = list(pool.map(getattr(returns, way), tried))
    page = chromium.new_page()
    judged = page.evaluate(JUDGE, [[location or "" for location in locations], OUTSIDE + CALLBACK])
    page.close()
    led_away = [
        (address, location, origin)
        for address, location, origin in zip(tried, locations, judged, strict=True)
        if location is not None and not (origin and origin[0] in ("https:",) and allowed(origin[1]))
    ]
    assert led_away == []
    assert sum(location is not None for location in locations) > len(tried) / 2


def allowed(host: str) -> bool:
    return host == "our.host" or (host.endswith(".wild.example") and ":" not in host)


def test_S01_the_shortcut_shows_what_a_whole_login_does(stack: Stack) -> None:
    """Every fortieth address, and a few good ones, all the way through the provider."""
    returns = Returns(stack)
    for address in [*addresses()[::40], "/deep?x=1", "https://our.host/a", "https://x.wild.example/y?z"]:
        person = stack.person()
        asked = f"{OUTSIDE}/authservice/login?rd=" + quote(address, safe="", errors="surrogatepass")
        finished = person.send(person.log_in(asked, until="/oidc/callback?").location)
        assert finished.answer.status == 302
        assert finished.answer.header("location") == returns.by_parameter(address), address


def test_S02_S03_good_addresses_are_kept(stack: Stack) -> None:
    returns = Returns(stack)
    for address in (
        "/a%2Fb;c=1?q=%C3%A9&n=https://o.example/&z=//w",
        "https://our.host/x?y=1",
        "https://a.wild.example/b",
    ):
        whole = address if address.startswith("https:") else OUTSIDE + address
        assert returns.by_parameter(address) in (address, whole)
