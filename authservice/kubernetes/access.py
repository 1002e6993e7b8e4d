"""What opens an API server, as plain values, wherever it was found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


class NoAccess(Exception):
    """Credentials for the cluster cannot be read. The text never quotes them."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of a TLS client; without ``authorities`` the system's count. ``stamps`` change with
    the files, so that equal values mean equal contents."""

    authorities: Path | None
    certificate: Path | None
    key: Path | None
    stamps: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(
        cls, authorities: Path | None = None, certificate: Path | None = None, key: Path | None = None
    ) -> TlsFiles:
        """These files as they are now. Raises OSError when one is not there."""
        found = [path.stat() for path in (authorities, certificate, key) if path is not None]
        return cls(authorities, certificate, key, tuple((s.st_ino, s.st_mtime_ns, s.st_size) for s in found))


@dataclass(frozen=True, slots=True)
class Access:
    """What opens an API server now. ``authorization`` is the header's value, empty where a client
    certificate says who we are."""

    address: str
    authorization: str = field(repr=False)
    files: TlsFiles


class Credentials(Protocol):
    """Who we are to one API server."""

    def access(self) -> Access:
        """What opens it now. Raises `NoAccess` when that cannot be read."""
        ...

    def forget(self) -> None:
        """The API server did not accept it: whatever is kept of it must be read anew."""
        ...
