"""Addresses in settings: which URLs are accepted where, and what is made of the URL prefix.

The rules are the original's where it had any sense in them, and stricter where a value could never
have worked: an address without a host, a path that no request can have, credentials inside a URL.
`derive` is the original's path-join.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from authservice.settings.kinds import Kind, optional, whole
from authservice.settings.secret import Secret
from authservice.urls import canonical_path, parse_authority


def split_url(text: str) -> SplitResult:
    """A URL's parts. Raises ValueError for what no client would read the same way."""
    parts = _printable_parts(text)
    try:
        parts.port  # noqa: B018 - reading it is what checks it
    except ValueError:
        raise ValueError("not a URL") from None
    return parts


def _printable_parts(text: str) -> SplitResult:
    if re.search(r"[^\x21-\x7e]|\\", text):
        raise ValueError("blanks, backslashes, control characters or characters outside ASCII")
    try:
        return urlsplit(text)
    except ValueError:
        raise ValueError("not a URL") from None


def _absolute(text: str) -> SplitResult:
    parts = split_url(text)
    if parts.scheme not in ("http", "https"):
        raise ValueError("not an http or https URL")
    if not parts.hostname:
        raise ValueError("a URL without a host")
    if "@" in parts.netloc:
        raise ValueError("a URL with credentials inside")
    return parts


def _path_or_absolute(text: str) -> SplitResult:
    if text.startswith("//"):
        raise ValueError("neither a path nor a full URL")
    return split_url(text) if text.startswith("/") else _absolute(text)


def _issuer(text: str) -> str:
    """OpenID Connect Discovery 1.0 §3: no query, no fragment. A trailing slash is kept: it counts."""
    parts = _absolute(text)
    if parts.query or parts.fragment or text.endswith(("?", "#")):
        raise ValueError("a query or fragment")
    return text


def _endpoint(text: str) -> str:
    if _absolute(text).fragment:
        raise ValueError("a fragment")
    return text


def _browser_endpoint(text: str) -> str:
    if _path_or_absolute(text).fragment:
        raise ValueError("a fragment")
    return text


def _page(text: str) -> str:
    _path_or_absolute(text)
    return text


def _theme_base(text: str) -> str:
    parts = split_url(text)
    if parts.scheme not in ("", "http", "https") or (parts.scheme and not parts.hostname):
        raise ValueError("neither relative nor an http or https URL")
    return text


def _route(text: str) -> str:
    """An address of our own, whose path every gateway and browser must spell in one way only."""
    parts = _path_or_absolute(text)
    if parts.fragment:
        raise ValueError("a fragment")
    if parts.netloc and parse_authority(parts.netloc) is None:
        raise ValueError("a host that browsers would spell differently")
    path = join_path(parts.path)
    if path in ("", ".", "/"):
        raise ValueError("no path, or only /")
    if {".", ".."} & set(parts.path.split("/")) or canonical_path(path) != path:
        raise ValueError("a path that could be spelt in several ways")
    return text


URL = "an http or https URL"
ISSUER = Kind(_issuer, f"{URL} without query")
ENDPOINT = optional(Kind(_endpoint, URL))
BROWSER_ENDPOINT = optional(Kind(_browser_endpoint, f"{URL}, or a path beginning with /"))
PAGE = optional(Kind(_page, f"{URL}, or a path beginning with /"))
THEME_BASE = Kind(_theme_base, f"{URL}, or a relative one")
ROUTE = Kind(_route, f"a path such as `/authservice/`, or {URL} with a path; never only `/`")
OPTIONAL_ROUTE = optional(ROUTE)


def _check_prefix(text: str) -> str:
    """What a gateway puts before the original path; kept to the letter, since it is cut off exactly."""
    if not text.startswith("/") or text.startswith("//") or text == "/":
        raise ValueError("not a path")
    if "?" in text or canonical_path(text) != text:
        raise ValueError("a path that could be spelt in several ways")
    return text


CHECK_PREFIX = optional(Kind(_check_prefix, "a path such as `/check`"))


def _theme_name(text: str) -> str:
    if not all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", segment) for segment in text.split("/")):
        raise ValueError("not the name of a folder")
    return text


THEME_NAME = optional(Kind(_theme_name, "the name of a theme's folder"))


# --- derived addresses -----------------------------------------------------------------------


def join_path(*parts: str) -> str:
    """Go's path.Join: doubled slashes collapse, dot segments are resolved, no trailing slash."""
    joined = posixpath.normpath("/".join(part for part in parts if part))
    return "/" + joined.lstrip("/") if joined.startswith("/") else joined


def derive(base: str, tail: str) -> str:
    """``base`` with its path joined with ``tail``; scheme, host and query of ``base`` stay."""
    parts = urlsplit(base)
    return urlunsplit(parts._replace(path=join_path(parts.path, tail)))


def path_of(address: str) -> str:
    """The path of a route, without a trailing slash: all of an address that routing looks at."""
    return join_path(urlsplit(address).path)


# --- Redis -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """An address freed of what has settings of its own, so that it can be shown."""

    address: str
    username: str = ""
    password: Secret = Secret("")
    db: int | None = None


REDIS_DB = whole(0, 65535, "a database number")


def _redis_prefix(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._:/-]{1,64}", text):
        raise ValueError("empty, too long, or with other characters")
    return text


REDIS_PREFIX = Kind(_redis_prefix, "1 to 64 letters, digits or `.` `_` `:` `/` `-`")


def _redis(text: str) -> RedisAddress:
    text = re.sub(" *, *", ",", text)
    if "://" not in text:
        for host in text.split(","):
            parts = split_url(f"redis://{host}")
            if not parts.hostname or parts.port is None or parts.path or parts.query or "@" in parts.netloc:
                raise ValueError("neither host:port nor a URL")
        return RedisAddress(text)
    scheme = text.partition("://")[0]
    parts = _printable_parts(text.replace(f",{scheme}://", ","))
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if scheme not in ("redis", "rediss", "unix"):
        raise ValueError("a URL of another scheme")
    credentials, _, hosts = parts.netloc.rpartition("@")
    if scheme == "unix" and not parts.path.startswith("/"):
        raise ValueError("a URL without the socket's path")
    if scheme != "unix" and not all(split_url(f"redis://{host}").hostname for host in hosts.split(",")):
        raise ValueError("a URL without a host")
    in_path = "" if scheme == "unix" else parts.path.strip("/")
    db = query.pop("db", None) or in_path or None
    user, _, secret = credentials.partition(":")
    username = query.pop("username", None) or unquote(user)
    password = query.pop("password", None) or unquote(secret)
    place = parts.path if scheme == "unix" else hosts
    address = f"{scheme}://{place}" + (f"?{urlencode(query)}" if query else "")
    number = None if db is None else REDIS_DB.parse(db)
    return RedisAddress(address, username, Secret(password), number)


REDIS = optional(
    Kind(
        _redis,
        "host:port, or a `redis://`, `rediss://` (TLS) or `unix://` URL; several hosts separated by commas for "
        "Sentinels or a cluster",
    ),
    absent=RedisAddress(""),
)
