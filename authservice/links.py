"""Addresses that a page may carry, and their joining.

Jinja escapes text but does not know what an address is; the original's engine did. So every
address from a setting or a caller passes through here before it reaches a template. Pure; called
by `authservice.pages`.
"""

from __future__ import annotations

import posixpath
import re
import string
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

NEUTRAL = "about:invalid"
"""Takes the place of a configured address that a page must not use, such as ``javascript:…``."""

# In front of the query, browsers read a backslash as a slash.
_NEVER_IN_AN_ADDRESS = re.compile(r"[\x00-\x20\x7f]|^[^?#]*\\")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_IN_A_PATH = "/@!$&'()*+,;=%:-._~"


def usable(url: str) -> str:
    """The address when a page may link to it, else nothing: http, https or relative. Blanks,
    control characters and most backslashes are refused: browsers read them otherwise than they look."""
    if _NEVER_IN_AN_ADDRESS.search(url):
        return ""
    try:
        parts = urlsplit(url)
        parts.port  # raises when it is no number
    except ValueError:
        return ""
    if parts.scheme not in ("", "http", "https") or (parts.scheme and not parts.hostname):
        return ""
    return url


def resolve_url_ref(base: object, ref: object) -> str:
    """``ref`` as seen from ``base`` (RFC 3986 §5): the function of this name in templates. Empty
    when either is malformed, or the outcome neither http(s) nor relative; never raises."""
    for part in (base, ref):
        if not isinstance(part, str) or _BAD_ESCAPE.search(part) or (part and not usable(part)):
            return ""
    try:
        return usable(urljoin(str(base), str(ref)))
    except ValueError:
        return ""


def theme_url(themes_url: str, theme: str) -> str:
    """The base of a theme's files: the theme's name joined to the path of ``THEMES_URL``, dots and
    doubled slashes resolved; `NEUTRAL` when no page may load from there."""
    if themes_url and not usable(themes_url):
        return NEUTRAL
    parts = urlsplit(themes_url)
    folder = parts.path or ("/" if parts.netloc else "")
    path = posixpath.normpath(posixpath.join(folder, theme.lstrip("/")))
    return urlunsplit(parts._replace(path=quote(path, safe=_IN_A_PATH)))


def ascii_url(url: str) -> str:
    """The address byte for byte, but for what a header's value cannot hold: that is percent-encoded."""
    return quote(url, safe=string.punctuation)
