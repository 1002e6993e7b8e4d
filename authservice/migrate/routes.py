"""Paths that need no login: oauth2-proxy's expressions, as far as they are paths."""

from __future__ import annotations

import re
from dataclasses import dataclass

from authservice.errors import AuthServiceError
from authservice.urls import canonical_path

_LITERAL = re.compile(r"(?:[A-Za-z0-9_~/-]|\\[./_-])*")


@dataclass(frozen=True, slots=True)
class Route:
    """One way past the login. ``path`` is the path itself, or what paths begin with."""

    method: str
    path: str
    whole: bool

    @property
    def skippable(self) -> bool:
        """Whether ``SKIP_AUTH_URLS`` says exactly this: any method, everything below a folder."""
        return not self.method and not self.whole and self.path.endswith("/") and self.path != "/"

    @property
    def pattern(self) -> str:
        """As policies write it."""
        return self.path if self.whole else f"{self.path}*"


def read_route(text: str, *, methods: bool) -> tuple[Route, ...] | None:
    """The routes that an entry of ``skip_auth_routes`` opens (of ``skip_auth_regex`` without ``methods``);
    ``None`` when it is no plain path, or opens everything, or everything but one."""
    method, expression = "", text
    if methods and "=" in text:
        method, _, expression = text.partition("=")
        if method.endswith("!"):
            return None
    if not re.fullmatch(r"[A-Za-z]*", method) or not expression.startswith("^/"):
        return None
    literal = _LITERAL.match(expression, 1)
    if literal is None:
        return None
    path, rest = literal[0].replace("\\", ""), expression[literal.end() :]
    if rest == "?$" and path.endswith("/"):
        paths: tuple[str, ...] = (path[:-1], path)
    elif rest in ("", ".*", ".*$", "$"):
        paths = (path,)
    else:
        return None
    whole = rest in ("$", "?$")
    if not all(map(_is_plain, paths)) or (path == "/" and not whole):
        return None
    return tuple(Route(method.upper(), one, whole) for one in paths)


def _is_plain(path: str) -> bool:
    try:
        return canonical_path(path) == path
    except AuthServiceError:
        return False
