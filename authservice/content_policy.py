"""What a page of the service may load, run and send, as a Content-Security-Policy (CSP Level 3).

A page may use the style and script elements that stand literally in its templates, admitted by
their SHA-256 digests, and nothing inline besides: text that comes in when a page is rendered can
never become code. Called by `authservice.pages`, which knows the templates; nothing here does.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from html.parser import HTMLParser
from urllib.parse import urlsplit

from authservice.links import usable

HOLE = "\ue000"
"""Stands for every place in a template's text that is filled in when a page is rendered."""

# CSP3 §2.3.1, without wildcards. It has no way to write an IPv6 address.
_HOST_SOURCE = re.compile(r"(?:[a-z0-9_-]+\.)*[a-z0-9_-]+\.?(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class InlineCode:
    """The literal style and script elements of a template, as digests ready for a policy.

    ``refused`` has one ``(line, sentence)`` for each piece of markup that browsers will ignore on
    a page with our policy.
    """

    styles: frozenset[str] = frozenset()
    scripts: frozenset[str] = frozenset()
    refused: tuple[tuple[int, str], ...] = ()

    def __or__(self, other: InlineCode) -> InlineCode:
        return InlineCode(
            self.styles | other.styles, self.scripts | other.scripts, self.refused + other.refused
        )


def inline_code(markup: str) -> InlineCode:
    """The inline code of a template's text, in which `HOLE` stands for each expression."""
    reader = _InlineReader()
    reader.feed(markup)
    reader.close()
    return InlineCode(frozenset(reader.styles), frozenset(reader.scripts), tuple(reader.refused))


def source(url: str) -> str | None:
    """The host-source that admits ``url`` (CSP3 §2.3.1): ``'self'`` for a relative address, the
    origin of an absolute http(s) one, ``None`` for anything that no policy can name."""
    if usable(url) != url:
        return None
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2].lower().encode("idna").decode("ascii")
    except ValueError:
        return None
    if not parts.scheme and not parts.netloc:
        return "'self'"
    if not _HOST_SOURCE.fullmatch(host):
        return None
    return f"{parts.scheme}://{host}" if parts.scheme else host


def content_policy(code: InlineCode, *, assets: Iterable[str], forms: Iterable[str]) -> str:
    """The policy of one page.

    ``assets`` are addresses of style sheets, images and fonts, ``forms`` those that a form is sent
    to; their origins are admitted besides the page's own.
    """
    own_and_assets = _sources(assets)
    directives = {
        "default-src": "'none'",
        "style-src": f"{own_and_assets} {' '.join(sorted(code.styles))}",
        "script-src": " ".join(sorted(code.scripts)) or "'none'",
        "img-src": f"{own_and_assets} data:",
        "font-src": f"{own_and_assets} data:",
        "form-action": _sources(forms),
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
    }
    return "; ".join(f"{name} {value}".rstrip() for name, value in directives.items())


def _sources(urls: Iterable[str]) -> str:
    named = {found for url in urls if (found := source(url)) is not None}
    return " ".join(["'self'", *sorted(named - {"'self'"})])


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


class _InlineReader(HTMLParser):
    """Collects what stands between the tags of ``style`` and ``script`` elements."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.styles: set[str] = set()
        self.scripts: set[str] = set()
        self.refused: list[tuple[int, str]] = []
        self._element: str | None = None
        self._line = 0
        self._text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {name for name, _ in attrs}
        if tag == "style" or (tag == "script" and "src" not in names):
            self._element, self._line, self._text = tag, self.getpos()[0], []
        if tag == "script" and "src" in names:
            self._refuse("a script from a file is not admitted; write it into the template")
        for name in sorted(names):
            if name == "style":
                self._refuse(
                    "a style attribute is not admitted; use a style element or styles.css"
                )
            elif name.startswith("on"):
                self._refuse(f"an {name} attribute is not admitted; use a script element")

    def handle_data(self, data: str) -> None:
        if self._element:
            self._text.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag != self._element:
            return
        self._element, text = None, "".join(self._text)
        if HOLE in text:
            self.refused.append(
                (
                    self._line,
                    f"a {tag} element with an expression in it is not admitted; "
                    "put the value into an attribute of another element",
                )
            )
        elif tag == "style":
            self.styles.add(_digest(text))
        else:
            self.scripts.add(_digest(text))

    def _refuse(self, sentence: str) -> None:
        self.refused.append((self.getpos()[0], sentence))
