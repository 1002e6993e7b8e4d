"""The pages: what they say, what they escape, what they let a browser do, and how templates replace them."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from authservice.pages import GROUPS_SHOWN, Page, Pages, TemplateProblems, built_in_templates

HOSTILE = "</title></style><script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}&lt;\x00\u202e"
RID = "7f3a9c52-6b1e-4d0f-9a57-2c1f0e8d4b63"
DOCUMENTATION = Path(__file__).parents[1] / "docs" / "templates.md"
VARIANTS = ("gitlab/auto_logout", "gitlab/button_logout")


class Markup(HTMLParser):
    """A page as a browser would take it apart: tags with attributes, texts, inline code."""

    def __init__(self, page: Page) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.inline: list[tuple[str, str]] = []
        self.text = ""
        self._open: str | None = None
        self.feed(page.body.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag in ("style", "script"):
            self._open = tag
            self.inline.append((tag, ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == self._open:
            self._open = None

    def handle_data(self, data: str) -> None:
        if self._open:
            self.inline[-1] = (self._open, self.inline[-1][1] + data)
        else:
            self.text += data

    def values(self, tag: str, name: str) -> list[str]:
        return [value for found, key, value in self.attributes if (found, key) == (tag, name)]


def header(page: Page, name: str) -> str:
    [value] = [value for key, value in page.headers if key == name]
    return value


def policy(page: Page) -> dict[str, list[str]]:
    directives = (part.split() for part in header(page, "Content-Security-Policy").split(";"))
    return {name: values for name, *values in directives}


def all_pages(pages: Pages) -> dict[str, Page]:
    return {
        "homepage": pages.homepage(),
        "after_logout": pages.after_logout(),
        "denied": pages.denied(
            user_id="ada@example.org",
            groups=["a", "b"],
            logout_url="/authservice/logout",
            home_url="/authservice/site/homepage",
            request_id=RID,
        ),
        "error": pages.error(502, "A sentence.", request_id=RID, way_on_url="/", way_on_label="Start again"),
        "onward": pages.onward("/authservice/site/after_logout"),
        "session": own_session(pages, user_id="ada@example.org", address="2001:db8::7", browser="Firefox"),
    }


def own_session(pages: Pages, **changes: Any) -> Page:
    now = datetime(2026, 11, 22, 16, 13, 20, tzinfo=timezone.utc)
    values = {
        "user_id": "ada", "since": now - timedelta(hours=3), "until": now + timedelta(hours=21), "now": now,
        "idle_timeout": timedelta(minutes=30), "address": "", "browser": "", "others": 2,
        "session_url": "/authservice/site/session",
    }  # fmt: skip
    return pages.session(**{**values, **changes})


def every_shipped_page() -> list[Page]:
    found = list(all_pages(Pages(provider_url="https://gitlab.example")).values())
    found += [
        Pages(provider_url="https://gitlab.example", template_paths=[v]).after_logout() for v in VARIANTS
    ]
    return found


# What they say


def test_U50_homepage_welcomes_to_the_client_and_leads_to_the_login() -> None:
    page = Markup(Pages(client_name="Notebooks & co").homepage())
    assert "Welcome to Notebooks & co" in page.text
    assert page.values("a", "href") == ["/"]
    assert "Log in" in page.text


def test_U51_after_logout_names_the_client() -> None:
    page = Markup(Pages(client_name="Notebooks").after_logout())
    assert "You have successfully logged out from Notebooks" in page.text
    assert page.values("a", "href") == ["/"]


def test_denied_says_who_what_is_missing_and_how_to_log_in_as_somebody_else() -> None:
    page = Markup(all_pages(Pages())["denied"])
    for words in ("No access", "ada@example.org", "Log in as somebody else", RID):
        assert words in page.text
    assert page.values("form", "method") == ["post"]
    assert page.values("form", "action") == ["/authservice/logout"]
    assert page.values("a", "href") == ["/authservice/site/homepage"]


def test_denied_leaves_out_what_is_not_given() -> None:
    page = Markup(Pages().denied())
    assert "No access" in page.text
    assert not {"form", "dl", "a", "code"} & set(page.tags)


@pytest.mark.parametrize("count, left_out", [(GROUPS_SHOWN, 0), (GROUPS_SHOWN + 3, 3)])
def test_denied_shows_only_so_many_groups(count: int, left_out: int) -> None:
    page = Markup(Pages().denied(groups=[f"group{n}" for n in range(count)]))
    assert page.tags.count("li") == GROUPS_SHOWN + (1 if left_out else 0)
    assert (f"and {left_out} more" in page.text) is bool(left_out)


def test_error_has_status_sentence_request_id_and_a_way_on() -> None:
    page = Markup(all_pages(Pages())["error"])
    for words in ("The login could not be finished", "A sentence.", "Error 502", RID, "Start again"):
        assert words in page.text
    assert page.values("a", "href") == ["/"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 418, 429, 500, 502, 503, 504])
def test_every_status_has_a_page(status: int) -> None:
    page = Markup(Pages().error(status, "A sentence."))
    assert f"Error {status}" in page.text
    assert "a" not in page.tags


def test_session_says_since_when_from_where_until_when_and_how_many_more() -> None:
    page = Markup(all_pages(Pages())["session"])
    text = " ".join(page.text.split())
    assert "Since 3 hours ago 22 November 2026, 13:13 UTC" in text
    assert "Logged in from 2001:db8::7 Firefox" in text
    assert "Ends in 21 hours 23 November 2026, 13:13 UTC or 30 minutes after you were last here" in text
    assert "2 other sessions in another browser or on another device" in text
    assert page.values("time", "datetime") == ["2026-11-22T13:13:20Z", "2026-11-23T13:13:20Z"]
    assert set(page.values("form", "method")) == {"post"}
    assert page.values("form", "action") == ["/authservice/site/session"] * 2
    assert page.values("button", "value") == ["this", "all"]


def test_session_leaves_out_what_is_not_known() -> None:
    bare = Markup(own_session(Pages(), since=None, idle_timeout=None, others=0))
    text = " ".join(bare.text.split())
    assert "Since" not in text and "Logged in from" not in text and "last here" not in text
    assert "No other session" in text and bare.values("button", "value") == ["this"]
    assert "1 other session in" in " ".join(Markup(own_session(Pages(), others=1)).text.split())


def test_onward_takes_the_browser_on_by_itself_and_by_a_link() -> None:
    page = Pages().onward("https://op.example/end?a=b;c&d=é\u2028", heading="You are logged out")
    assert header(page, "Refresh") == "0; url=https://op.example/end?a=b;c&d=%C3%A9%E2%80%A8"
    assert "You are logged out" in Markup(page).text
    assert Markup(page).values("a", "href") == ["https://op.example/end?a=b;c&d=é\u2028"]


# H12, R6, B20: nothing that comes in is ever markup, code or an address that runs


def test_B20_hostile_words_stay_words_on_every_page() -> None:
    calm = all_pages(Pages(client_name="x", frontend={"K": "x"}))
    pages = Pages(client_name=HOSTILE, frontend={"K": HOSTILE})
    hostile = {
        "homepage": pages.homepage(),
        "after_logout": pages.after_logout(),
        "denied": pages.denied(
            user_id=HOSTILE,
            groups=[HOSTILE, HOSTILE],
            sentence=HOSTILE,
            logout_url="/" + HOSTILE.replace(" ", "+"),
            home_url=HOSTILE,
            request_id=HOSTILE,
        ),
        "error": pages.error(502, HOSTILE, request_id=HOSTILE, way_on_url="/", way_on_label=HOSTILE),
        "session": own_session(pages, user_id=HOSTILE, address=HOSTILE, browser=HOSTILE),
    }
    for name, page in hostile.items():
        tags = [tag for tag in Markup(calm[name]).tags]
        if name == "denied":  # neither address is fit for a page, so neither is there
            tags = [tag for tag in tags if tag not in ("form", "button", "a")]
        assert Markup(page).tags == tags, name
        assert b"{{7*7}}" in page.body
        assert policy(page)["script-src"] == ["'none'"]


@pytest.mark.parametrize("text", ["ada\x00\r\n\x1b[31m", "ada\u202egro", "ada\u2066x", "ada\ud800"])
def test_names_cannot_control_what_is_around_them(text: str) -> None:
    shown = Pages().denied(user_id=text).body.decode()
    assert not re.search("[\x00\x1b\u202a-\u202e\u2066-\u2069\ud800]", shown)
    assert "ada\ufffd" in shown


def test_a_name_without_end_is_cut() -> None:
    page = Pages().denied(user_id="x" * 1_000_000, groups=["y" * 1_000_000])
    assert len(page.body) < 20_000


def test_environment_values_that_are_not_utf8_are_shown_somehow() -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert b"Welcome to" in Pages(client_name=name).homepage().body


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        "data:text/html,x",
        "java\tscript:x",
        " javascript:x",
        "vbscript:x",
        "https://[",
        "https:evil.example",
        "\\\\evil",
    ],
)
def test_addresses_that_run_or_mislead_are_never_on_a_page(url: str) -> None:
    pages = Pages(themes_url=url, provider_url=url, template_paths=["gitlab/auto_logout"])
    pages_with_it = [
        pages.homepage(),
        pages.after_logout(),
        pages.onward(url),
        pages.denied(logout_url=url, home_url=url),
        pages.error(400, "x", way_on_url=url),
    ]
    for page in pages_with_it:
        assert url.encode() not in page.body
        assert url not in str(page.headers)
        assert dict(page.headers).get("Refresh", "0; url=/") == "0; url=/"
    assert any(line.startswith("THEMES_URL") for line in pages.warnings)


# Headers and content policy


@pytest.mark.parametrize("name", ["homepage", "after_logout", "denied", "error", "onward", "session"])
def test_H12_L14_every_page_is_unstored_unframed_and_strict(name: str) -> None:
    page = all_pages(Pages())[name]
    headers = dict(page.headers)
    assert len(headers) == len(page.headers)
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    # Under no-referrer a browser sends the logout form with «Origin: null», and the proof is gone.
    assert headers["Referrer-Policy"] == ("same-origin" if name in ("denied", "session") else "no-referrer")
    found = policy(page)
    assert (
        found["default-src"]
        == found["script-src"]
        == found["base-uri"]
        == found["frame-ancestors"]
        == ["'none'"]
    )
    assert found["form-action"] == ["'self'"]
    assert not {"'unsafe-inline'", "'unsafe-hashes'", "'unsafe-eval'", "*", "https:"} & set(
        sum(found.values(), [])
    )


def test_policy_admits_exactly_the_inline_code_that_is_there() -> None:
    for page in every_shipped_page():
        expected: dict[str, set[str]] = {"style": set(), "script": set()}
        for tag, text in Markup(page).inline:
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            expected[tag].add(f"'sha256-{digest}'")
        found = policy(page)
        assert expected["style"]
        assert {one for one in found["style-src"] if "sha256" in one} == expected["style"]
        assert {one for one in found["script-src"] if "sha256" in one} == expected["script"]


def test_only_the_automatic_variant_has_a_script() -> None:
    assert [
        len([1 for tag, _ in Markup(page).inline if tag == "script"]) for page in every_shipped_page()
    ] == [0, 0, 0, 0, 0, 0, 1, 0]


def test_text_that_becomes_a_script_in_a_careless_template_is_not_admitted(tmp_path: Path) -> None:
    (tmp_path / "homepage.html").write_text("<script>own()</script>{{ Frontend.WORDS | safe }}")
    page = Pages(template_paths=[str(tmp_path)], frontend={"WORDS": "<script>evil()</script>"}).homepage()
    assert [text for _, text in Markup(page).inline] == ["own()", "evil()"]
    assert len(policy(page)["script-src"]) == 1


def test_inline_code_is_admitted_through_includes_and_from_windows_files(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "code.html").write_bytes(b"<script>\r\nown()\r\n</script>")
    (tmp_path / "homepage.html").write_text('{% include "parts/code.html" %}')
    page = Pages(template_paths=[str(tmp_path)]).homepage()
    digest = base64.b64encode(hashlib.sha256(b"\nown()\n").digest()).decode()
    assert policy(page)["script-src"] == [f"'sha256-{digest}'"]


def test_markup_that_the_policy_stops_is_a_warning_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "homepage.html").write_text(
        "<p>\n<b style='color:red' onclick='x()'>\n<script src='a.js'></script>\n"
        "<script>x('{{ ClientName }}')</script>"
    )
    warnings = Pages(template_paths=[str(tmp_path)]).warnings
    file = tmp_path / "homepage.html"
    assert [line.partition(": ")[2].split(":")[1] for line in warnings] == ["2", "2", "3", "4"]
    assert all(f"{file}:" in line for line in warnings)


def test_theme_is_found_beside_the_page_and_from_any_path() -> None:
    pages = all_pages(Pages(site_url="/auth/site/"))
    for name, base in [
        ("homepage", ""),
        ("after_logout", ""),
        ("denied", "/auth/site/"),
        ("error", "/auth/site/"),
    ]:
        assert f"{base}themes/kubeflow/styles.css" in Markup(pages[name]).values("link", "href")
        assert Markup(pages[name]).values("img", "src") == [f"{base}themes/kubeflow/logo.svg"]


@pytest.mark.parametrize("name", ["homepage", "denied"])
@pytest.mark.parametrize(
    "themes_url, source",
    [
        ("https://cdn.example:8443/t?x=1", "https://cdn.example:8443"),
        ("//cdn.example/t", "cdn.example"),
        ("https://user:word@münchen.example/t", "https://xn--mnchen-3ya.example"),
    ],
)
def test_a_theme_elsewhere_is_admitted_by_its_origin_alone(name: str, themes_url: str, source: str) -> None:
    found = policy(all_pages(Pages(themes_url=themes_url))[name])
    assert found["style-src"][:2] == ["'self'", source]
    assert found["img-src"] == found["font-src"] == ["'self'", source, "data:"]
    assert found["form-action"] == ["'self'"]


@pytest.mark.parametrize("host", ["a;b", "*", "*.example", "a b", "a,b", "a'b", "exa\u2028mple", "a\r\nb"])
def test_no_address_can_widen_the_policy(host: str) -> None:
    expected = policy(Pages().denied())
    assert policy(Pages(themes_url=f"https://{host}/t").denied(logout_url=f"https://{host}/l")) == expected


def test_a_logout_form_to_another_origin_is_admitted_where_it_stands() -> None:
    pages = Pages()
    page = pages.denied(logout_url="https://auth.example/authservice/logout")
    assert policy(page)["form-action"] == ["'self'", "https://auth.example"]
    assert policy(pages.error(400, "x"))["form-action"] == ["'self'"]


# Readable for everybody


def test_structure_for_screen_readers() -> None:
    for page in every_shipped_page():
        markup = Markup(page)
        assert page.body.startswith(b"<!DOCTYPE html>")
        assert markup.values("html", "lang") == ["en"]
        for once in ("title", "h1", "main", "header"):
            assert markup.tags.count(once) == 1, once
        assert len(markup.values("img", "alt")) == markup.tags.count("img")
        assert len(markup.values("svg", "aria-hidden")) == markup.tags.count("svg")
        assert not [found for found in markup.attributes if found[1] in ("tabindex", "style", "autofocus")]


def _colours(css: str) -> tuple[dict[str, str], dict[str, str]]:
    light, _, dark = css.partition("@media (prefers-color-scheme: dark)")
    pattern = re.compile(r"--([a-z-]+):\s*(#[0-9a-f]{6})")
    return dict(pattern.findall(light)), dict(pattern.findall(dark))


def _luminance(colour: str) -> float:
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("themed", [False, True], ids=["page alone", "with its theme"])
def test_contrast_is_AA_everywhere(scheme: int, themed: bool) -> None:
    """WCAG 2.2, 1.4.3 (text, 4.5:1) and 1.4.11 (focus ring and signs, 3:1)."""
    folder = built_in_templates()
    colours = dict(_colours((folder / "default/style.html").read_text())[scheme])
    if themed:
        colours |= _colours((folder / "themes/kubeflow/styles.css").read_text())[scheme]
    text = [
        ("ink", "page"),
        ("ink", "card"),
        ("ink-soft", "card"),
        ("ink", "chip"),
        ("on-accent", "accent"),
        ("on-accent", "accent-hover"),
        ("accent", "card"),
        ("accent-hover", "card"),
    ]
    for ink, ground in text:
        assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for mark, ground in [
        ("accent", "page"),
        ("accent", "card"),
        ("done", "done-wash"),
        ("stop", "stop-wash"),
    ]:
        assert contrast(colours[mark], colours[ground]) >= 3, (mark, ground)


def test_layout_follows_the_direction_of_writing() -> None:
    css = (built_in_templates() / "default" / "style.html").read_text()
    assert not re.search(
        r"(margin|padding|border)-(left|right)|[^-](left|right):|text-align: (left|right)", css
    )


def test_shipped_artwork_carries_no_code_and_loads_nothing() -> None:
    for file in (built_in_templates() / "themes").rglob("*.*"):
        text = file.read_text()
        assert not re.search(r"<script|\bon[a-z]+=|href|@import|https?://(?!www\.w3\.org/2000/svg)", text), (
            file
        )
        assert set(re.findall(r"url\(\"?([^)\"]+)", text)) <= {"bg.svg"}


# Context and overriding


def test_context_is_the_original_one(tmp_path: Path) -> None:
    (tmp_path / "homepage.html").write_text(
        "{{ ClientName }}|{{ ThemeURL }}|{{ ProviderURL }}|{{ Frontend['KEY'] }}|{{ Frontend.KEY }}"
        "|{{ resolve_url_ref(ProviderURL, '/users/sign_out') }}"
        "|{{ Frontend['NOT_SET'] }}|{{ Frontend.NOT_SET }}|"
    )
    pages = Pages(
        template_paths=[str(tmp_path)],
        client_name="C",
        provider_url="https://op.example/realm",
        frontend={"KEY": "https://x/?a=b"},
    )
    assert pages.homepage().body.decode() == (
        "C|themes/kubeflow|https://op.example/realm|https://x/?a=b|https://x/?a=b"
        "|https://op.example/users/sign_out|||"
    )


def test_later_folders_win_and_the_rest_stays(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "header.html").write_text(f"<!DOCTYPE html><title>{folder.name}</title>")
    (one / "after_logout.html").write_text("bye")
    pages = Pages(template_paths=[str(one), str(two)])
    assert b"<title>two</title>" in pages.homepage().body
    assert b"Welcome" in pages.homepage().body
    assert pages.after_logout().body == b"bye"
    assert b"<title>one</title>" in Pages(template_paths=[str(two), str(one)]).homepage().body


def test_a_template_may_build_on_the_built_in_base(tmp_path: Path) -> None:
    (tmp_path / "homepage.html").write_text(
        '{% extends "base.html" %}{% set Title = "Hi" %}{% block content %}<h1>Own</h1>{% endblock %}'
    )
    page = Markup(Pages(template_paths=[str(tmp_path)]).homepage())
    assert "Hi – AuthService" in page.text and "Own" in page.text and "main" in page.tags


def test_folders_of_the_original_and_of_the_package_are_found_by_name() -> None:
    for name in (
        "default",
        "web/templates/default",
        "gitlab/auto_logout",
        "web/templates/gitlab/button_logout",
    ):
        Pages(template_paths=[name])


def test_every_fault_of_every_template_is_listed_at_once(tmp_path: Path) -> None:
    (tmp_path / "homepage.html").write_text("<p>\n{% if %}")
    (tmp_path / "after_logout.html").write_text('{{ template "header.html" . }}\n{{ .ClientName }}')
    (tmp_path / "denied.html").write_bytes(b"caf\xe9")
    (tmp_path / "unused.html").write_text("{{ x | no_such_filter }}")
    with pytest.raises(ValueError) as caught:
        Pages(template_paths=[str(tmp_path), "/does/not/exist"])
    assert isinstance(caught.value, TemplateProblems)
    problems = caught.value.problems
    assert str(caught.value) == "\n".join(problems)
    assert all(line.startswith("TEMPLATE_PATH: ") for line in problems)
    expected = [
        "no folder /does/not/exist",
        "after_logout.html:1: ",
        "denied.html: not UTF-8",
        "homepage.html:2: ",
        "unused.html:1: ",
    ]
    assert len(problems) == len(expected)
    for line, part in zip(problems, expected, strict=True):
        assert part in line
    assert "Go template" in problems[1] and "Go template" not in problems[3]


@pytest.mark.parametrize(
    "text, line",
    [
        ("<p>\n{{ ClientNane }}", 2),
        ("{{ end }}", 1),
        ("\n\n{% include 'missing.html' %}", 3),
        ("{{ 1 / 0 }}", 1),
        ("{{ 'a' + 1 }}", 1),
        ("{{ Groups.nope.x }}", 1),
    ],
)
@pytest.mark.parametrize("name", ["homepage", "error", "denied"])
def test_names_that_do_not_exist_are_found_at_start(tmp_path: Path, name: str, text: str, line: int) -> None:
    (tmp_path / f"{name}.html").write_text(text)
    with pytest.raises(TemplateProblems) as caught:
        Pages(template_paths=[str(tmp_path)])
    [problem] = caught.value.problems
    assert f"{tmp_path}/{name}.html:{line}: " in problem


def test_a_template_that_fails_on_a_person_gives_the_built_in_page(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "error.html").write_text("own{% if Status == 418 %}{{ Sentence | int / 0 }}{% endif %}")
    pages = Pages(template_paths=[str(tmp_path)])
    assert pages.error(400, "x").body == b"own"
    with caplog.at_level(logging.ERROR):
        page = pages.error(418, "A private sentence.")
    assert "A private sentence." in Markup(page).text
    assert [one for one in policy(page)["style-src"] if "sha256" in one]
    assert "error.html:1" in caplog.text and "private" not in caplog.text


def test_templates_are_read_once(tmp_path: Path) -> None:
    file = tmp_path / "error.html"
    file.write_text("first")
    pages = Pages(template_paths=[str(tmp_path)])
    file.write_text("second")
    assert pages.error(400, "x").body == b"first"
    file.unlink()
    assert pages.error(400, "x").body == b"first"


def test_a_template_carried_over_from_the_original_by_syntax_alone(tmp_path: Path) -> None:
    """The structure that the original's documentation shows, with its class names."""
    (tmp_path / "after_logout.html").write_text(
        '{% include "header.html" %}\n<body><div class="wrapper"><header class="header">'
        '<img src="{{ ThemeURL }}/logo.svg"></header><main class="main"><div class="box">'
        '<div class="box-content">Bye from {{ ClientName }}</div>'
        '<form class="button-wrapper" method="post"'
        ' action="{{ resolve_url_ref(ProviderURL, "/users/sign_out") }}">'
        '<input class="button uppercase" type="submit" value="Log out"></form></div></main></div></body>\n'
        '{% include "footer.html" %}'
    )
    page = Pages(template_paths=[str(tmp_path)], provider_url="https://gitlab.example/x").after_logout()
    markup = Markup(page)
    assert [markup.tags.count(tag) for tag in ("html", "head", "body", "header", "main")] == [1, 1, 1, 1, 1]
    assert markup.values("form", "action") == ["https://gitlab.example/users/sign_out"]
    assert "https://gitlab.example" in policy(page)["form-action"]


# GitLab


@pytest.mark.parametrize("variant", VARIANTS)
def test_gitlab_variants_post_to_the_providers_origin_and_nowhere_else(variant: str) -> None:
    page = Pages(template_paths=[variant], provider_url="https://gitlab.example:8443/sub/path").after_logout()
    markup = Markup(page)
    assert markup.values("form", "action") == ["https://gitlab.example:8443/users/sign_out"]
    assert markup.values("form", "method") == ["post"]
    assert policy(page)["form-action"] == ["'self'", "https://gitlab.example:8443"]
    assert "connect-src" not in policy(page)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gitlab_variants_without_a_usable_provider_are_plain_pages(variant: str) -> None:
    markup = Markup(Pages(template_paths=[variant], provider_url="javascript:alert(1)").after_logout())
    assert not {"form", "script"} & set(markup.tags)
    assert markup.values("a", "href") == ["/"]


# Where the files are


def test_built_in_templates_are_complete() -> None:
    folder = built_in_templates()
    for name in ("base", "header", "footer", "homepage", "after_logout", "denied", "error", "onward", "session"):
        assert (folder / "default" / f"{name}.html").is_file()
    for variant in VARIANTS:
        assert (folder / variant / "after_logout.html").is_file()


def test_an_unknown_theme_is_a_warning() -> None:
    assert Pages().warnings == ()
    [warning] = Pages(theme="mine").warnings
    assert "mine/styles.css" in warning


# The documentation


def _documented(language: str) -> list[str]:
    text = DOCUMENTATION.read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_documented_templates_work_without_a_warning(tmp_path: Path) -> None:
    examples = _documented("jinja")
    assert len(examples) == 2
    for number, text in enumerate(examples):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "homepage.html").write_text(text)
        pages = Pages(template_paths=[str(folder)], frontend={"SUPPORT": "https://help.example/"})
        assert pages.warnings == ()
        assert Markup(pages.homepage()).tags.count("h1") == 1


def test_documented_translation_of_go_constructs_works(tmp_path: Path) -> None:
    text = DOCUMENTATION.read_text()
    rows = re.findall(r"^\| `\{\{.*? \| (`\{.*`) \|$", text, re.MULTILINE)
    assert len(rows) == 16
    ours = [part.replace("\\|", "|") for row in rows for part in re.findall(r"`(\{.*?\})`", row)]
    whole = [part for part in ours if part.startswith(("{{", "{#")) and "…" not in part and "box" not in part]
    whole += [
        part.replace("elif X", "elif Frontend['X']") for part in ours if "{% end" in part or "{% set" in part
    ]
    assert len(whole) >= 12
    (tmp_path / "homepage.html").write_text("\n".join(whole))
    Pages(template_paths=[str(tmp_path)])


def test_documented_theme_has_enough_contrast() -> None:
    [css] = _documented("css")
    light, dark = _colours(css.replace("#fff;", "#ffffff;"))
    for colours in (light, dark):
        for ink, ground in [
            ("ink", "card"),
            ("ink-soft", "card"),
            ("on-accent", "accent"),
            ("accent", "card"),
        ]:
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
