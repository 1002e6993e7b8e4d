"""The whole way in headless Chromium: deep link, many tabs, logout, back button, pages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.e2e import stack as stacks
from tests.e2e.conftest import SHARED
from tests.e2e.stack import Stack

pytestmark = [pytest.mark.external, pytest.mark.xdist_group("e2e-browser")]

TABS = 30


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    settings = {**SHARED, "SESSION_COOKIE_SECURE": "true", "CLIENT_NAME": "Notebooks of Example & Sons"}
    running = stacks.start("envoy", tmp_path_factory.mktemp("browser"), settings)
    yield running
    running.stop()


@pytest.fixture
def context(chromium: Browser, stack: Stack) -> Iterator[BrowserContext]:
    """A browser with nothing in it."""
    fresh = chromium.new_context()
    fresh.set_default_timeout(60_000)  # thirty tabs on a busy machine
    yield fresh
    for cookie in fresh.cookies(stack.url):
        stack.more_secrets.add(cookie["value"])
    fresh.close()


def fill_in(page: Page, name: str, button: str = "Log in") -> None:
    """The provider's form, on a page that shows it."""
    page.get_by_label("Name").fill(name)
    page.get_by_role("button", name=button).click()


def log_in(page: Page, url: str, name: str = "alice") -> None:
    page.goto(url)
    fill_in(page, name)
    page.wait_for_url(url)


def our_cookies(context: BrowserContext, stack: Stack) -> list[str]:
    return [cookie["name"] for cookie in context.cookies(stack.url)]


def pending(context: BrowserContext, stack: Stack) -> list[str]:
    return [
        n
        for n in our_cookies(context, stack)
        if n not in ("authservice_session", "authservice_session_rounds")
    ]


def test_login_from_a_deep_link_with_a_query(context: BrowserContext, stack: Stack) -> None:
    page = context.new_page()
    deep = stack.url + "/notebooks/a%2Fb;v=1/?q=%C3%A9&next=https://other.example/x%26y&z=//w&empty="
    log_in(page, deep)
    expect(page.locator("#who")).to_have_text("alice@example.org")
    assert stack.url + (page.locator("#target").text_content() or "") == deep
    assert our_cookies(context, stack) and pending(context, stack) == []
    (session,) = [c for c in context.cookies(stack.url) if c["name"] == "authservice_session"]
    assert session["httpOnly"] and session["secure"] and session["sameSite"] == "Lax"
    assert page.evaluate("document.cookie") == ""


def open_tabs(context: BrowserContext, stack: Stack) -> list[Page]:
    """All tabs at once, from one page, as a bookmark folder opens them."""
    first = context.new_page()
    first.goto(stack.url + "/public/start")
    first.evaluate(
        """count => { for (let n = 0; n < count; n++)
                        window.open(`/tab/${n}?n=${n}&x=%2F`, '_blank', 'noopener') }""",
        TABS,
    )
    while len(context.pages) < TABS + 1:
        first.wait_for_timeout(20)
    return [page for page in context.pages if page != first]


def numbers_arrived(pages: list[Page], stack: Stack) -> list[int]:
    prefix = f"{stack.url}/tab/"
    return sorted(
        int(page.url.removeprefix(prefix).partition("?")[0]) for page in pages if page.url.startswith(prefix)
    )


def test_S31_30_tabs_each_come_back_to_their_own_page(context: BrowserContext, stack: Stack) -> None:
    tabs = open_tabs(context, stack)
    for tab in tabs:
        tab.wait_for_url(f"{stack.provider.issuer}/login/**")
    assert 1 <= len(pending(context, stack)) <= 6
    before = stack.provider.calls("/token")
    for tab in tabs:
        tab.bring_to_front()  # browsers slow the hidden ones down
        fill_in(tab, "alice")
        tab.wait_for_url(f"{stack.url}/**")
        expect(tab.locator("#who"), tab.url).to_have_text("alice@example.org")
    assert numbers_arrived(tabs, stack) == list(range(TABS))
    assert all(tab.url.endswith("&x=%2F") for tab in tabs)
    assert stack.provider.calls("/token") - before <= 6
    assert len(pending(context, stack)) <= 6


def test_S31_30_tabs_while_the_provider_still_knows_the_person(context: BrowserContext, stack: Stack) -> None:
    log_in(context.new_page(), stack.url + "/first")
    context.clear_cookies(domain="app.localhost")
    context.pages[0].close()
    tabs = open_tabs(context, stack)
    for tab in tabs:
        tab.wait_for_url(f"{stack.url}/tab/**")
        expect(tab.locator("#who"), tab.url).to_have_text("alice@example.org")
    assert numbers_arrived(tabs, stack) == list(range(TABS))
    assert len(pending(context, stack)) <= 6


def test_S31_500_background_calls_leave_no_login_cookie(context: BrowserContext, stack: Stack) -> None:
    page = context.new_page()
    page.goto(stack.url + "/public/start")
    answers = page.evaluate(
        """() => Promise.all([...Array(500).keys()].map(async n => {
             const answer = await fetch(`/api/${n}`, {method: n % 2 ? 'GET' : 'POST'});
             return [answer.status, answer.redirected, Object.keys(await answer.json()).sort().join()];
           }))"""
    )
    assert {tuple(answer) for answer in answers} == {(401, False, "error,login_url")}
    assert context.cookies(stack.url) == []


def test_F21_images_and_frames_of_other_kinds_start_no_login(context: BrowserContext, stack: Stack) -> None:
    page = context.new_page()
    page.goto(stack.url + "/public/start")
    page.evaluate("""() => Promise.all(['img', 'script'].map(kind => new Promise(done => {
        const part = document.createElement(kind); part.onerror = done; part.onload = done;
        part.src = '/protected/' + kind; document.body.append(part); })))""")
    assert context.cookies(stack.url) == []


def test_the_login_url_of_a_401_leads_back_to_the_page(context: BrowserContext, stack: Stack) -> None:
    """What a page's own script does when its session is over (B49)."""
    page = context.new_page()
    page.goto(stack.url + "/public/start")
    told = page.evaluate("async () => (await (await fetch('/api/x')).json()).login_url")
    page.goto(f"{told}?rd=%2Fpublic%2Fstart%3Fagain%3D1")
    fill_in(page, "alice")
    page.wait_for_url(stack.url + "/public/start?again=1")
    assert page.evaluate("async () => (await fetch('/api/x')).status") == 200


def test_L14_logout_and_the_back_button(context: BrowserContext, stack: Stack) -> None:
    page = context.new_page()
    log_in(page, stack.url + "/private?page=1")
    other = context.new_page()
    other.goto(stack.url + "/private?page=1")
    other.goto(stack.url + "/public/start")
    answer = page.evaluate(
        """async () => { const answer = await fetch('/authservice/logout', {method: 'POST'});
                         return [answer.status, await answer.json()] }"""
    )
    assert answer[0] == 201 and list(answer[1]) == ["afterLogoutURL"]
    assert "authservice_session" not in our_cookies(context, stack)
    page.goto(answer[1]["afterLogoutURL"])
    page.get_by_role("button", name="Yes, sign me out").click()
    page.wait_for_url(f"{stack.url}/authservice/site/after_logout?state=*")
    expect(page.get_by_role("heading", level=1)).to_contain_text("logged out")
    # Nobody logs in again without a word (B43): the provider has forgotten the person, too.
    other.go_back()
    other.wait_for_url(f"{stack.provider.issuer}/login/**")
    assert "alice" not in other.content()
    page.goto(stack.url + "/private?page=1")
    page.wait_for_url(f"{stack.provider.issuer}/login/**")


def test_S27_another_site_cannot_log_a_person_out(context: BrowserContext, stack: Stack) -> None:
    page = context.new_page()
    log_in(page, stack.url + "/private")
    target = f"{stack.url}/authservice/logout"
    page.goto(f"{stack.provider.issuer}/.well-known/openid-configuration")  # a page of another site
    page.evaluate("url => fetch(url, {method: 'POST', mode: 'no-cors', credentials: 'include'})", target)
    page.evaluate(
        "url => new Promise(done => { const i = new Image(); i.onerror = done; i.src = url })", target
    )
    with page.expect_response(target) as refused:
        page.evaluate(
            """url => { const form = document.createElement('form'); form.method = 'POST'; form.action = url;
                        document.documentElement.append(form); form.submit() }""",
            target,
        )
    assert refused.value.status == 401
    page.close()
    page = context.new_page()
    page.goto(stack.url + "/private")
    expect(page.locator("#who")).to_have_text("alice@example.org")


def test_the_denied_page_and_somebody_else(context: BrowserContext, stack: Stack) -> None:
    page = context.new_page()
    page.goto(stack.url + "/private")
    fill_in(page, "carol")
    page.wait_for_url(stack.url + "/private")
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    shown = page.locator("body").inner_text()
    assert "carol@example.org" in shown and "system:serviceaccounts" in shown
    page.get_by_role("button", name="Log in as somebody else").click()
    page.get_by_role("button", name="Yes, sign me out").click()
    page.wait_for_url(f"{stack.url}/authservice/site/after_logout?state=*")
    assert "authservice_session" not in our_cookies(context, stack)


def test_the_error_page_leads_on(context: BrowserContext, stack: Stack) -> None:
    page = context.new_page()
    answer = page.goto(
        f"{stack.url}/authservice/oidc/callback?error=x&error_description=<script>alert(1)</script>"
    )
    assert answer is not None and answer.status == 400
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "alert(1)" not in page.content()
    page.get_by_role("link", name="Log in again").click()
    fill_in(page, "alice")
    page.wait_for_url(f"{stack.url}/**")
    assert "authservice_session" in our_cookies(context, stack)


def test_B28_a_strict_host_cookie_survives_the_way_back_from_the_provider(
    chromium: Browser, tmp_path: Path
) -> None:
    settings = {
        **SHARED,
        "SESSION_SAME_SITE": "Strict",
        "SESSION_COOKIE_SECURE": "true",
        "SESSION_COOKIE_NAME": "__Host-session",
    }
    stack = stacks.start("envoy", tmp_path / "strict", settings)
    try:
        context = chromium.new_context()
        page = context.new_page()
        log_in(page, stack.url + "/deep?x=1&y=%2F")
        expect(page.locator("#who")).to_have_text("alice@example.org")
        (session,) = [c for c in context.cookies(stack.url) if c["name"] == "__Host-session"]
        assert session["sameSite"] == "Strict" and session["secure"] and session["httpOnly"]
        stack.more_secrets |= {cookie["value"] for cookie in context.cookies(stack.url)}
        context.close()
    finally:
        stack.stop()


def test_login_works_without_scripts(chromium: Browser, stack: Stack) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    log_in(page, stack.url + "/plain")
    page.goto(stack.url + "/authservice/site/homepage")
    expect(page.get_by_role("link", name="Log in")).to_be_visible()
    stack.more_secrets |= {cookie["value"] for cookie in context.cookies(stack.url)}
    context.close()


# --- how the pages look ----------------------------------------------------------------------

PAGES = ("homepage", "after_logout", "denied", "error")
SIZES = {"phone": (360, 740), "desktop": (1280, 800)}


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pictures go: the folder named by SCREENSHOTS, for people who want to look."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PAGES)
def test_pages_are_right_on_every_screen(
    chromium: Browser, stack: Stack, screenshots: Path, name: str, size: str, scheme: str
) -> None:
    width, height = SIZES[size]
    context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda line: complaints.append(line.text) if "status of 4" not in line.text else None)
    page.on("requestfailed", lambda request: complaints.append(f"{request.url}: {request.failure}"))
    if name == "denied":
        page.goto(stack.url + "/private")
        fill_in(page, "bob")
        page.wait_for_url(stack.url + "/private")
    else:
        page.goto(
            stack.url
            + {
                "homepage": "/authservice/site/homepage",
                "after_logout": "/authservice/site/after_logout",
                "error": "/authservice/oidc/callback?code=x&state=y",
            }[name]
        )
    page.screenshot(path=str(screenshots / f"{name}-{size}-{scheme}.png"), full_page=True)
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "scrolls sideways"
    assert page.locator("h1").count() == 1
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.title()
    for link in page.locator("a.button, button").all():
        box = link.bounding_box()
        assert box is not None and box["height"] >= 40 and box["x"] >= 0 and box["x"] + box["width"] <= width
    background, colour = page.evaluate(
        "() => { const style = getComputedStyle(document.body); return [style.backgroundColor, style.color] }"
    )
    assert contrast(background, colour) >= 7
    assert (luminance(background) < 0.2) == (scheme == "dark")
    stack.more_secrets |= {cookie["value"] for cookie in context.cookies(stack.url)}
    context.close()


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(…)`` (WCAG 2.2)."""
    parts = [float(part) / 255 for part in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)
