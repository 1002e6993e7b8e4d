"""The files of the themes, read into memory once.

Only regular files of known kinds that really lie below a ``themes`` folder are ever read, so a
request can name nothing else: there is no file system behind the lookup. The ``site`` blueprint
serves what `ThemeFiles.get` returns; `authservice.pages` decides which folders there are.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".avif": "image/avif",
    ".ico": "image/x-icon",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".ttf": "font/ttf",
    ".otf": "font/otf",
}
"""Every kind of file that a theme can have, and how it is announced."""

MAX_BYTES = 4 * 1024 * 1024
"""A larger file is not served: every worker keeps all of them in memory."""

_HEADERS = (
    # An SVG opened as a page of its own must not run anything; style sheets and images ignore this.
    (
        "Content-Security-Policy",
        "default-src 'none'; style-src 'unsafe-inline'; sandbox",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "public, max-age=300"),
)


class ThemeFile(NamedTuple):
    """One file: its bytes, its ``Content-Type`` and its strong ``ETag`` (quotes included)."""

    body: bytes
    content_type: str
    etag: str

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """Everything that a 200 answer with this file carries, ``Content-Length`` excepted."""
        return (("Content-Type", self.content_type), ("ETag", self.etag), *_HEADERS)


class ThemeFiles:
    """All theme files of a list of folders, later folders winning file by file.

    ``warnings`` has a sentence for each file that lies there and is not served.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._files: dict[str, ThemeFile] = {}
        self.warnings: list[str] = []
        for folder in folders:
            root = Path(os.path.realpath(folder))
            for name, path in _walk(root):
                self._read(root, name, path)

    def get(self, path: str) -> ThemeFile | None:
        """The file under its path below the themes, such as ``kubeflow/styles.css``."""
        return self._files.get(path)

    def __contains__(self, path: str) -> bool:
        return path in self._files

    def _read(self, root: Path, name: str, path: Path) -> None:
        content_type = CONTENT_TYPES.get(path.suffix.lower())
        if content_type is None:
            self.warnings.append(f"{path}: not served, a theme has no files of this kind")
            return
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(root):
            self.warnings.append(f"{path}: not served, it leads out of {root}")
            return
        if not real.is_file():
            self.warnings.append(f"{path}: not served, it is not a regular file")
            return
        try:
            with real.open("rb") as file:
                body = file.read(MAX_BYTES + 1)
        except OSError as error:
            self.warnings.append(f"{path}: not served, {error.strerror}")
            return
        if len(body) > MAX_BYTES:
            self.warnings.append(f"{path}: not served, it is larger than {MAX_BYTES} bytes")
            return
        self._files[name] = ThemeFile(body, content_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')


def _walk(root: Path) -> Iterator[tuple[str, Path]]:
    """Every name below ``root`` but hidden ones, folders that are links excepted. A mounted
    ConfigMap keeps its files in a hidden folder and links to them: the links are found here."""
    for folder, folders, files in os.walk(root, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                path = Path(folder, name)
                yield path.relative_to(root).as_posix(), path
