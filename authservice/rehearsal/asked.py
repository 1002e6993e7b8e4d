"""One request that policies are asked about, as a person writes it down: in a command or in a file of cases.

Each function reads one text and raises `ValueError` with a sentence about what is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, NamedTuple

from authservice.urls import parse_authority


@dataclass(frozen=True, slots=True)
class Asked:
    """What is known of the request, and of who sends it: verified ``claims``, or a ``token``, or neither.

    ``headers`` have lower-case names. ``source`` is the address of the gateway's peer, ``remote`` the
    client's; ``peer`` is the peer's identity in the mesh, empty where it has none.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    claims: Mapping[str, Any] | None = None
    token: str = ""
    source: str | None = None
    remote: str | None = None
    peer: str = ""


class Parts(NamedTuple):
    """A URL as a gateway tells about it: ``host`` with its port when one was written, ``target`` with the
    query."""

    scheme: str
    host: str
    target: str


_URL = re.compile(r"(https?)://([^/?#]*)([^#]*)(?:#.*)?", re.IGNORECASE)
_UNFIT = re.compile(r"[^\x21-\x7e]")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.6.2
_VALUE = re.compile(r"[\t\x20-\x7e]*")


def parts_of(url: str) -> Parts:
    """The parts of an absolute URL, its path and query as written."""
    match = _URL.fullmatch(url)
    if _UNFIT.search(url):
        raise ValueError("a URL has no blanks and nothing but ASCII; write other characters as %XX")
    if match is None:
        raise ValueError("a URL with scheme and host is taken here, such as https://app.example.com/path")
    scheme, host, target = match.groups()
    if parse_authority(host) is None:
        raise ValueError("the URL's host cannot be read")
    return Parts(scheme.lower(), host.lower(), target if target.startswith("/") else "/" + target)


def url(text: str) -> str:
    """A URL, once it is known to be one."""
    parts_of(text)
    return text


def method(text: str) -> str:
    """An HTTP method; case counts."""
    if not _TOKEN.fullmatch(text):
        raise ValueError("an HTTP method is taken here, such as GET")
    return text


def address(text: str) -> str:
    """An IP address; IPv4 as such wherever it is written in IPv6's way."""
    try:
        read = ip_address(text)
    except ValueError:
        raise ValueError("an IP address is taken here") from None
    return str(getattr(read, "ipv4_mapped", None) or read)


def header(name: str, value: str) -> tuple[str, str]:
    """A header's name in lower case, and its value without the blanks around it."""
    if not _TOKEN.fullmatch(name):
        raise ValueError("this is no header's name")
    if not _VALUE.fullmatch(value):
        raise ValueError("a header's value is one line of ASCII")
    return name.lower(), value.strip()


def joined(headers: list[tuple[str, str]]) -> dict[str, str]:
    """Lines of one name as gateways join them."""
    values: dict[str, str] = {}
    for name, value in headers:
        values[name] = f"{values[name]},{value}" if name in values else value
    return values
