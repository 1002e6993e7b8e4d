"""The pages that a person sees, as finished bytes with their headers.

Jinja templates from ``TEMPLATE_PATH`` over the built-in ones, under the original's names and with
its context. Everything is read, compiled and tried when `Pages` is built, so a faulty template is
a start-up problem and not a person's. Knows no web framework: `judge` and `site` choose the page
and its status.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from traceback import extract_tb
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, meta
from jinja2.exceptions import TemplateError, TemplateNotFound, TemplateSyntaxError

from authservice.content_policy import HOLE, InlineCode, content_policy, inline_code
from authservice.links import NEUTRAL, ascii_url, resolve_url_ref, theme_url, usable
from authservice.moments import in_words, iso, spelt
from authservice.themes import ThemeFile, ThemeFiles

GROUPS_SHOWN = 12
"""A denied person sees at most this many names of groups; the rest is a number."""

PAGE_NAMES = ("homepage", "after_logout", "denied", "error", "onward", "session")

_SESSION_TEXTS = (
    *("Since", "SinceISO", "SinceAgo", "Until", "UntilISO", "UntilIn", "IdleLimit"),
    *("Address", "Browser", "SessionURL"),
)
_TEXT_LIMIT = 512
_HEADINGS = {
    400: "That did not work",
    401: "Please log in",
    403: "No access",
    404: "Page not found",
    405: "That is not possible here",
    502: "The login could not be finished",
    503: "Not possible at the moment",
    504: "No answer in time",
}
_GO_CONSTRUCT = re.compile(r"\{\{-?\s*(?:\.|\$|(?:template|index|range|with|define|block|if|else|end)\b)")
_BIDI_CONTROLS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
# What a template's author can get wrong in an expression, beside Jinja's own errors.
_TEMPLATE_FAULTS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
_log = logging.getLogger(__name__)


class TemplateProblems(ValueError):
    """The templates cannot be used. ``problems`` has one line for each fault, naming its file and line."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Page:
    """A page without its status: UTF-8 bytes, and every header but ``Content-Length``."""

    body: bytes
    headers: tuple[tuple[str, str], ...]


class Pages:
    """All pages of one deployment.

    ``template_paths`` is ``TEMPLATE_PATH``: folders, later ones winning; a relative one is looked
    for in the working directory and then among the built-in ones (``gitlab/auto_logout``).
    ``site_url`` is the address of the site blueprint's pages as the outside sees it, usually
    ``<prefix>/site/``: pages that can appear at any path of any host find their theme through it.
    ``frontend`` holds the ``TEMPLATE_CONTEXT_`` values by the rest of their names.

    Raises `TemplateProblems` (a ``ValueError``) listing every fault of every template.
    ``warnings`` has a line for whatever is odd but no reason not to start.
    """

    def __init__(
        self,
        *,
        template_paths: Sequence[str] = (),
        client_name: str = "AuthService",
        themes_url: str = "themes",
        theme: str = "kubeflow",
        provider_url: str = "",
        frontend: Mapping[str, str] | None = None,
        site_url: str = "/authservice/site/",
    ) -> None:
        built_in = built_in_templates()
        folders, problems = _find_folders(template_paths, built_in)
        self._provider_url = usable(provider_url) or NEUTRAL
        self._theme_url = theme_url(themes_url, theme)
        self._rooted_theme_url = resolve_url_ref(site_url, self._theme_url) or NEUTRAL
        context = {
            "ClientName": client_name,
            "ThemeURL": self._theme_url,
            "ProviderURL": self._provider_url,
            "Frontend": _Frontend(frontend or {}),
            "resolve_url_ref": resolve_url_ref,
        }
        self._templates = _TemplateSet([built_in / "default", *folders], context)
        self._fallback = _TemplateSet([built_in / "default"], context) if folders else self._templates
        self._theme_files = ThemeFiles(folder / "themes" for folder in [built_in, *folders])
        problems += self._templates.problems or self._try_all()
        if problems:
            raise TemplateProblems(problems)
        self.warnings = (
            *self._templates.warnings,
            *self._theme_files.warnings,
            *self._theme_warnings(themes_url, theme),
        )
        self._homepage = self._render("homepage", {}, forms=(self._provider_url,))
        self._after_logout = self._render("after_logout", {}, forms=(self._provider_url,))

    def homepage(self) -> Page:
        """«Welcome to …», with a way to log in."""
        return self._homepage

    def after_logout(self) -> Page:
        """«You have successfully logged out from …»."""
        return self._after_logout

    def denied(
        self,
        *,
        user_id: str = "",
        groups: Sequence[str] = (),
        sentence: str = "You are logged in, but you may not see this page.",
        logout_url: str = "",
        home_url: str = "",
        request_id: str = "",
    ) -> Page:
        """The page of a refused person, for a 403 at any path of any host.

        ``groups`` are those of which one would have been enough. ``logout_url`` is where the form
        «Log in as somebody else» is POSTed; without it there is no such form.

        Its referrer policy is ``same-origin``: under ``no-referrer`` browsers send that form with
        ``Origin: null`` (Fetch §3.2), which proves nothing about where it came from.
        """
        values = {
            "Sentence": _plain(sentence),
            "UserID": _plain(user_id),
            "Groups": [_plain(group) for group in groups[:GROUPS_SHOWN]],
            "GroupsLeftOut": max(0, len(groups) - GROUPS_SHOWN),
            "LogoutURL": usable(logout_url),
            "HomeURL": usable(home_url),
            "RequestID": _plain(request_id),
        }
        return self._anywhere("denied", values, forms=(logout_url,), referrer="same-origin")

    def error(
        self,
        status: int,
        sentence: str,
        *,
        request_id: str = "",
        way_on_url: str = "",
        way_on_label: str = "Try again",
    ) -> Page:
        """The page of any other refusal: what happened in one sentence, and a link to go on."""
        values = {
            "Status": status,
            "Heading": _HEADINGS.get(status, "Something went wrong"),
            "Sentence": _plain(sentence),
            "RequestID": _plain(request_id),
            "WayOnURL": usable(way_on_url),
            "WayOnLabel": _plain(way_on_label),
        }
        return self._anywhere("error", values)

    def onward(self, url: str, *, heading: str = "One moment") -> Page:
        """A page that takes the browser on to ``url`` by itself, where a redirect would not do.

        After a POSTed form, browsers hold a redirect to another origin against the form's page
        and its ``form-action`` (CSP3 §6.4.1). After a redirect from another site, they leave a
        ``SameSite=Strict`` cookie out. An address that no page may link to becomes ``/``.
        """
        target = usable(url) or "/"
        page = self._anywhere("onward", {"WayOnURL": target, "Heading": _plain(heading)})
        return Page(page.body, (*page.headers, ("Refresh", f"0; url={ascii_url(target)}")))

    def session(
        self,
        *,
        user_id: str,
        since: datetime | None,
        until: datetime,
        now: datetime,
        idle_timeout: timedelta | None,
        address: str,
        browser: str,
        others: int,
        session_url: str,
    ) -> Page:
        """A person's own session, and the forms that end it, or all of theirs: POSTed to
        ``session_url`` with ``end=this`` or ``end=all``. Its referrer policy is as with `denied`."""
        values = {
            "UserID": _plain(user_id),
            "Since": spelt(since) if since else "",
            "SinceISO": iso(since) if since else "",
            "SinceAgo": in_words(now - since) if since else "",
            "Until": spelt(until),
            "UntilISO": iso(until),
            "UntilIn": in_words(until - now),
            "IdleLimit": in_words(idle_timeout) if idle_timeout else "",
            "Address": _plain(address),
            "Browser": _plain(browser),
            "Others": others,
            "SessionURL": usable(session_url),
        }
        return self._anywhere("session", values, forms=(session_url,), referrer="same-origin")

    def theme_file(self, path: str) -> ThemeFile | None:
        """A theme's file by its path below ``…/site/themes/``, or ``None``."""
        return self._theme_files.get(path)

    def _anywhere(
        self,
        name: str,
        values: Mapping[str, Any],
        *,
        forms: Iterable[str] = (),
        referrer: str = "no-referrer",
    ) -> Page:
        values = {"ThemeURL": self._rooted_theme_url, **values}
        return self._render(name, values, forms=forms, referrer=referrer)

    def _render(
        self,
        name: str,
        values: Mapping[str, Any],
        *,
        forms: Iterable[str] = (),
        referrer: str = "no-referrer",
    ) -> Page:
        """A template that fails after all, on values that were not tried, is replaced by the
        built-in one: a refusal stays a refusal, with its page."""
        templates = self._templates
        try:
            text = templates.render(name, values)
        except _TEMPLATE_FAULTS as error:
            _log.error("template %s failed, the built-in one is shown instead: %s", name, _place(error))
            templates = self._fallback
            text = templates.render(name, values)
        policy = content_policy(
            templates.inline_code[name], assets=(values.get("ThemeURL", self._theme_url),), forms=forms
        )
        return Page(text.encode("utf-8", "replace"), _headers(policy, referrer))

    def _try_all(self) -> list[str]:
        """Render every page with all values and with none: what a template gets wrong about
        names, it gets wrong here."""
        full = {
            "Sentence": "A sentence.",
            "UserID": "someone",
            "Groups": ["a", "b"],
            "GroupsLeftOut": 1,
            "LogoutURL": "/logout",
            "HomeURL": "/",
            "RequestID": "1",
            "Status": 403,
            "Heading": "A heading",
            "WayOnURL": "/",
            "WayOnLabel": "Go on",
            **dict.fromkeys(_SESSION_TEXTS, "a text"),
            "Others": 2,
        }
        bare = {**dict.fromkeys(full, ""), "Groups": [], "GroupsLeftOut": 0, "Status": 500, "Others": 0}
        problems = []
        for name in PAGE_NAMES:
            for values in (full, bare):
                try:
                    self._templates.render(name, values)
                except TemplateNotFound as error:
                    problems.append(f"TEMPLATE_PATH: {_place(error)}: there is no template {error.name}")
                    break
                except _TEMPLATE_FAULTS as error:
                    problems.append(f"TEMPLATE_PATH: {_place(error)}: {error}")
                    break
        return problems

    def _theme_warnings(self, themes_url: str, theme: str) -> list[str]:
        if self._theme_url == NEUTRAL:
            return ["THEMES_URL: not an address that a page can load from; pages are shown without a theme"]
        if themes_url == "themes" and f"{theme}/styles.css" not in self._theme_files:
            return [f"THEME: no folder of themes has {theme}/styles.css; pages are shown without it"]
        return []


class _TemplateSet:
    """The templates of a list of folders, later folders winning file by file."""

    def __init__(self, folders: Sequence[Path], context: Mapping[str, Any]) -> None:
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self._loader = FileSystemLoader([str(folder) for folder in reversed(folders)])
        self._environment = Environment(
            loader=self._loader,
            autoescape=True,
            undefined=StrictUndefined,
            auto_reload=False,
            cache_size=-1,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals.update(context)
        self._inline: dict[str, InlineCode] = {}
        self._includes: dict[str, set[str]] = {}
        for folder in folders:
            for file in sorted(folder.glob("*.html")):
                self._read(file.name, file)
        while parts := set().union(*self._includes.values()) - self._includes.keys():
            for name in sorted(parts):
                self._read_part(name)
        self.inline_code = {name: self._inline_code(name) for name in PAGE_NAMES}

    def render(self, name: str, values: Mapping[str, Any]) -> str:
        """The page's text. Raises whatever the template's author got wrong."""
        return self._environment.get_template(f"{name}.html").render(values)

    def _inline_code(self, name: str) -> InlineCode:
        """The inline code of a template and of all those that it is made of."""
        seen: set[str] = set()
        waiting = {f"{name}.html"}
        while waiting:
            seen |= waiting
            waiting = set().union(*(self._includes.get(one, set()) for one in waiting)) - seen
        found = InlineCode()
        for one in sorted(seen):
            found |= self._inline.get(one, InlineCode())
        return found

    def _read_part(self, name: str) -> None:
        """A template in a sub-folder, named by another one. Whether it may be missing is known
        when that one is rendered."""
        self._includes[name] = set()
        try:
            _, file, _ = self._loader.get_source(self._environment, name)
        except TemplateNotFound:
            return
        self._read(name, Path(file))

    def _read(self, name: str, file: Path) -> None:
        self._includes[name] = set()
        try:
            text = file.read_text("utf-8")
            tree = self._environment.parse(text, name, str(file))
            self._environment.compile(tree, name, str(file))
        except TemplateSyntaxError as error:
            hint = " (this looks like a Go template: docs/templates.md)" if _GO_CONSTRUCT.search(text) else ""
            self.problems.append(f"TEMPLATE_PATH: {file}:{error.lineno}: {error.message}{hint}")
            return
        except UnicodeDecodeError:
            self.problems.append(f"TEMPLATE_PATH: {file}: not UTF-8 text")
            return
        except OSError as error:
            self.problems.append(f"TEMPLATE_PATH: {file}: {error.strerror}")
            return
        literal = "".join(
            value if kind == "data" else HOLE + "\n" * value.count("\n")
            for _, kind, value in self._environment.lex(text, name)
        )
        code = inline_code(literal)
        self._inline[name] = code
        self._includes[name] = {one for one in meta.find_referenced_templates(tree) if one}
        self.warnings += [f"TEMPLATE_PATH: {file}:{line}: {sentence}" for line, sentence in code.refused]


class _Frontend(dict[str, str]):
    """The ``Frontend`` map. As in the original, a key that was not set reads as nothing."""

    def __missing__(self, key: str) -> str:
        return ""


def framed(text: str, ancestors: Sequence[str]) -> Page:
    """A page that only pages of these origins may show in a frame, and that loads nothing at all."""
    allowed = " ".join(ancestors) or "'none'"
    policy = f"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors {allowed}"
    body = f"<!doctype html><meta charset=utf-8><title>{text}</title><p>{text}" if text else ""
    # Without X-Frame-Options, which knows no origins; browsers that know frame-ancestors pass over it.
    lines = _headers(policy, "no-referrer")
    return Page(body.encode(), tuple(line for line in lines if line[0] != "X-Frame-Options"))


def built_in_templates() -> Path:
    """The folder of the built-in templates: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "templates"
    return inside if (inside / "default").is_dir() else package.parent / "templates"


def _plain(text: str) -> str:
    """Text from outside, fit to be shown: not without end, and no characters that control what
    is around them (bidirectional overrides make one name look like another)."""
    shown = "".join("\ufffd" if _controls(char) else char for char in text[:_TEXT_LIMIT])
    return shown + "…" if len(text) > _TEXT_LIMIT else shown


def _controls(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cs") or unicodedata.bidirectional(char) in _BIDI_CONTROLS


def _headers(policy: str, referrer: str) -> tuple[tuple[str, str], ...]:
    return (
        ("Content-Type", "text/html; charset=utf-8"),
        ("Cache-Control", "no-store"),
        ("Content-Security-Policy", policy),
        ("Referrer-Policy", referrer),
        ("X-Content-Type-Options", "nosniff"),
        ("X-Frame-Options", "DENY"),
    )


def _place(error: BaseException) -> str:
    """File and line of the template in which ``error`` arose, without its text."""
    frames = [frame for frame in extract_tb(error.__traceback__) if frame.filename.endswith(".html")]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else type(error).__name__


def _find_folders(paths: Sequence[str], built_in: Path) -> tuple[list[Path], list[str]]:
    folders, problems = [], []
    for path in paths:
        candidates = (Path(path), built_in / path.removeprefix("web/templates/"))
        found = next((folder for folder in candidates if folder.is_dir()), None)
        if found is None:
            problems.append(f"TEMPLATE_PATH: there is no folder {path}")
        else:
            folders.append(found)
    return folders, problems
