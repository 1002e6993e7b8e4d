"""The question and its answers, as plain values.

A gateway's dialect (`authservice.gateways`) makes a `CheckRequest` out of `RequestParts`; the
pipeline (`authservice.pipeline`) answers with exactly one of `Allow`, `Deny` or `Login`; the
dialect renders that as a `Reply`. Nothing here knows a web framework, a socket or a cookie jar.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from authservice.errors import Reason
from authservice.identity import Identity
from authservice.urls import policy_path


class Reach(Enum):
    """How far a step may go for its answer: compute in memory, or wait for the network."""

    MEMORY = "memory"
    NETWORK = "network"


class NeedsIO(Exception):
    """Raised under `Reach.MEMORY` by a step that would have to wait. It is no answer: nothing
    is recorded, and the same question is asked again with `Reach.NETWORK`."""


# Structs rather than dataclasses where each check makes one: they are made several times faster. They are never
# part of a ring of references, so the garbage collector is not told of them.


class RequestParts(msgspec.Struct, frozen=True, gc=False):
    """One HTTP request as it arrived, before anybody interprets it.

    ``target`` is the request target exactly as sent (latin-1 decoded, never percent-decoded), or
    ``None`` when the server did not keep it. ``headers`` maps lower-case names to values; lines
    of one name are joined by a comma, as every gateway and server in front does.
    ``peer`` is the address of the connection's other end, without port; ``None`` for a Unix socket.
    """

    method: str
    target: str | None
    headers: Mapping[str, str]
    peer: str | None


class CheckRequest(msgspec.Struct, frozen=True, gc=False):
    """What the gateway asks: may this pass?

    ``target`` is the original path and query exactly as the client sent them. ``path`` is its
    canonical path (see `authservice.urls.canonical_path`), or ``None`` when it cannot be made
    canonical without doubt; no rule that opens a path ever matches ``None``. ``scheme`` is
    ``"http"``, ``"https"`` or ``None`` when nothing trustworthy tells. ``host`` is lower-cased,
    with its port when one was sent; empty when unknown. ``client`` is the client's address as
    far as trusted proxies tell it, for logs only. ``forwarded`` says that the check came from a
    trusted proxy, whose ``X-Forwarded-*`` headers are believed; ``doubtful`` that the target might be
    two, a gateway's and one that a client sent; ``hearsay`` that the host might be a client's own word, good
    enough for the way back to a page and for nothing else. ``demands`` is the
    query of the check itself, in the one dialect in which it may narrow who passes.
    """

    method: str
    scheme: str | None
    host: str
    target: str
    path: str | None
    headers: Mapping[str, str]
    client: str | None
    dialect: str
    forwarded: bool = False
    doubtful: bool = False
    hearsay: bool = False
    demands: str = ""

    def header(self, name: str) -> str:
        """The value of a header by its lower-case name; empty when it was not sent."""
        return self.headers.get(name, "")

    @property
    def policy_path(self) -> str | None:
        """The path that policies compare (see `authservice.urls.policy_path`); ``None`` in doubt."""
        return None if self.doubtful else policy_path(self.target)


def _folded(name: str) -> str:
    return name.lower().replace("_", "-")


AUTH_REQUEST = "oauth2-proxy"
"""The dialect of oauth2-proxy's ``auth``. What it tells of the original request a client may have sent itself, so
nothing of that lets anybody pass who is not logged in."""

DEMANDS = ("allowed_groups", "allowed_emails", "allowed_email_domains")
"""The parameters with which `CheckRequest.demands` narrows who passes."""


def names_a_demand(query: str) -> bool:
    """Whether a query has a parameter that would count as a demand."""
    return any(name in DEMANDS for name, _ in parse_qsl(query, keep_blank_values=True))


class Remark(NamedTuple):
    """What is to be counted of an answer beside the answer itself: ``outcome`` is one of
    `ops.POLICY_OUTCOMES`. With a ``cause`` it is logged, too."""

    outcome: str
    cause: str = ""


class Variant:
    """What an `Allow` differs in from the usual one of its identity, in the form that its answers need.

    ``emptied`` are the names of ``remove_headers`` that a gateway which only sets headers sets to nothing.
    ``made`` is where those who spell answers keep what they made of this variant.
    """

    __slots__ = ("emptied", "made")

    def __init__(self, emptied: tuple[str, ...]) -> None:
        self.emptied = emptied
        self.made: dict[object, Any] = {}


class Allow(msgspec.Struct, frozen=True, gc=False):
    """The request may pass. ``set_headers`` and ``remove_headers`` never share a name, in any
    letter case: in Envoy removal wins over setting. ``remarks`` are recorded and change nothing.
    Without ``variant`` the headers depend on the identity alone."""

    identity: Identity | None
    set_headers: tuple[tuple[str, str], ...] = ()
    remove_headers: tuple[str, ...] = ()
    remarks: tuple[Remark, ...] = ()
    variant: Variant | None = None

    def unset(self) -> tuple[str, ...]:
        """The names to remove that are no other spelling of a header that is set."""
        told = {_folded(name) for name, _ in self.set_headers}
        return tuple(name for name in self.remove_headers if _folded(name) not in told)


@dataclass(frozen=True, slots=True)
class Deny:
    """The request may not pass. ``public`` is the one sentence that a person may see;
    ``challenge`` the ``WWW-Authenticate`` value of a 401; ``detail`` what the page may add
    (for example the groups that would have been enough); ``cause`` is for the log only, and ``remarks``
    are recorded."""

    status: int
    reason: Reason
    public: str
    challenge: str | None = None
    identity: Identity | None = None
    detail: tuple[str, ...] = ()
    cause: str = ""
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True, slots=True)
class Login:
    """Nobody is logged in. ``redirect`` says whether the client is sent to the login (302) or
    told to authenticate (401); the address of the login is the edge's work."""

    return_to: str
    redirect: bool


Decision = Allow | Deny | Login


# What a header's value may hold (RFC 9110 §5.5) and a name consists of (§5.1).
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True)
class Written:
    """A reply as HTTP/1.1 writes it. ``head`` is the header lines, names in lower case, each ended
    by CRLF, with ``content-length`` where HTTP wants one, and without ``date``, ``server`` and
    ``connection``."""

    status: int
    head: bytes
    body: bytes


@dataclass(frozen=True)
class Reply:
    """An HTTP answer as a plain value; the only thing that a server edge ever sees."""

    status: int
    headers: tuple[tuple[str, str], ...] = field(default=())
    body: bytes = b""

    @property
    def lines(self) -> tuple[tuple[str, str], ...]:
        """The headers to send: with the body's length, save where it has no place (RFC 9110 §8.6)."""
        if self.status == 204:
            return self.headers
        return (*self.headers, ("Content-Length", str(len(self.body))))

    @cached_property
    def written(self) -> Written:
        """The reply as bytes (RFC 9112 §5), made once. For HEAD, too, the body is given.

        Raises `ValueError` when a name or value could be read as more than one line.
        """
        lines = self.lines
        for name, value in lines:
            if not _FIELD_NAME.fullmatch(name) or not _FIELD_VALUE.fullmatch(value):
                raise ValueError("a header cannot be written on one line")
        head = "".join(f"{name.lower()}: {value}\r\n" for name, value in lines)
        return Written(self.status, head.encode("latin-1"), self.body)
