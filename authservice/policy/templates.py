"""How policies spell paths: in the letters of canonical paths, and with ``{*}`` and ``{**}`` (M27 to M30).

The grammar of templates is what every Envoy release that knows them takes in one and the same way;
anything else is refused in words, since Envoy would not start on it or would take it for a literal.
"""

from __future__ import annotations

import re

from authservice.urls import canonical_path

ONE, ANY = "{*}", "{**}"

_OPERATOR = re.compile(r"\{\*\*?\}")
_CHARACTERS = "A-Za-z0-9._~!$&'()*+,;=:@%-"  # pchar of RFC 3986 §3.3, and the percent sign by itself
_LITERAL = re.compile(f"[{_CHARACTERS}]*")
_PATTERNS = {ONE: f"[{_CHARACTERS}]+", ANY: f"[/{_CHARACTERS}]*"}
_ESCAPE_OR_CHARACTER = re.compile(r"%[0-9A-Fa-f]{2}|[^%]", re.DOTALL)


def is_template(text: str) -> bool:
    """Whether a path's value is to be read as a template: braces have no other meaning there."""
    return "{" in text or "}" in text


def template(text: str) -> re.Pattern[str]:
    """What a whole path has to match. Raises `ValueError` with a sentence for what is no template (M30)."""
    if not text.startswith("/"):
        raise ValueError("a path template begins with /")
    segments = text[1:].split("/")
    pattern = ""
    seen_any = False
    for number, segment in enumerate(segments):
        last = number == len(segments) - 1
        if not segment and not last:
            raise ValueError("a path template has no empty segment (//)")
        operator = _operator_of(segment)
        rest = segment[len(operator) :]
        if operator and rest and not last:
            raise ValueError(f"text after {operator} can only stand in the last segment of a path template")
        if operator and seen_any:
            raise ValueError("nothing but literal text can follow {**} in a path template")
        _check_literal(rest)
        seen_any = seen_any or operator == ANY
        pattern += "/" + _PATTERNS.get(operator, "") + re.escape(canonical_text(rest))
    return re.compile(pattern)


def canonical_text(text: str) -> str:
    """Part of a path with each character as canonical paths spell it: ``%7e`` is ``~`` there, ``|`` is
    ``%7C``. Written otherwise, a path that is to be denied would never be met. What no canonical path
    holds (``%2F``) stays as it is, and so never matches."""
    if canonical_path(text) == text:
        return text
    return _ESCAPE_OR_CHARACTER.sub(lambda found: _canonical_character(found.group()), text)


def _canonical_character(text: str) -> str:
    if text == " " or not text.isascii():  # never sent like this, so it can only mean its escaped form
        return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))
    path = canonical_path(f"/x{text}x")
    if path is None:
        return text.upper() if text.startswith("%") else text
    return path[2:-1]


def _operator_of(segment: str) -> str:
    """The operator that a segment begins with, or nothing."""
    found = _OPERATOR.match(segment)
    return found.group() if found else ""


def _check_literal(text: str) -> None:
    if _OPERATOR.search(text):
        raise ValueError("{*} and {**} can only stand at the beginning of a segment of a path template")
    if "{" in text or "}" in text:
        raise ValueError("a path template knows only {*} and {**}; other braces have no meaning in a path")
    if "*" in text:
        raise ValueError("beside {*} or {**} a path template has no other *")
    if not _LITERAL.fullmatch(text):
        raise ValueError("a path template holds only letters, digits, % and -._~!$&'()+,;=:@ besides / and operators")
