"""What applications are told beyond the identity headers: claims, each in a header of its own, and tokens.

`UpstreamHeaders` is the value of ``UPSTREAM_HEADERS``, `TokenHeaders` that of the two settings for tokens; each says what
its headers hold for an identity. That a client's own never pass is `identity.IdentityHeaders`' work, as for all headers
that tell who somebody is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from authservice.errors import IdentityUnusable
from authservice.identity import Identity, find_claim, group_value, header_value

OAUTH2_PROXY = "oauth2-proxy"
"""The word for the headers that applications behind oauth2-proxy read."""
MOST_HEADERS = 32

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

class UpstreamHeader(NamedTuple):
    """A header, and the claim that it tells (name or dotted path). Without such a claim it tells what the identity has
    under the name ``otherwise``, if anything."""

    name: str
    claim: str
    otherwise: str = ""

    def value(self, identity: Identity, claims: Mapping[str, Any]) -> str:
        """The header's value; it is not sent when that is empty. Raises `errors.IdentityUnusable`."""
        said = claim_value(find_claim(claims, self.claim)) if self.claim else ""
        return said or (claim_value(getattr(identity, self.otherwise)) if self.otherwise else "")


_OF_OAUTH2_PROXY = (
    UpstreamHeader("X-Auth-Request-User", "sub", otherwise="user_id"),  # in a cluster nobody has a subject
    UpstreamHeader("X-Auth-Request-Email", "email"),
    UpstreamHeader("X-Auth-Request-Preferred-Username", "preferred_username"),
    UpstreamHeader("X-Auth-Request-Groups", "", otherwise="groups"),
)


@dataclass(frozen=True, slots=True)
class UpstreamHeaders:
    """Some headers with claims. A `identity.FurtherHeaders`."""

    headers: tuple[UpstreamHeader, ...] = ()

    @classmethod
    def parse(cls, text: str) -> UpstreamHeaders:
        """Reads the word `OAUTH2_PROXY`, or a JSON object of header names and claims, each a claim's name or dotted
        path; an empty text has none. Raises `ValueError` with every problem, one a line."""
        if not text.strip():
            return cls()
        if text.strip() == OAUTH2_PROXY:
            return cls(_OF_OAUTH2_PROXY)
        try:
            entries = json.loads(text, object_pairs_hook=_Pairs)
        except json.JSONDecodeError as error:
            raise ValueError(f"this is not JSON (at position {error.pos})") from None
        except RecursionError:
            raise ValueError("this is nested too deeply") from None
        if not isinstance(entries, _Pairs):
            raise ValueError("this must be a JSON object of header names and claims")
        problems = list(_problems(entries))
        if problems:
            raise ValueError("\n".join(problems))
        return cls(tuple(UpstreamHeader(name, claim) for name, claim in entries))

    @property
    def names(self) -> tuple[str, ...]:
        """The headers' names as they are spelt."""
        return tuple(header.name for header in self.headers)

    def values(self, identity: Identity) -> Iterator[tuple[str, str]]:
        """The headers that there is something to say in. Raises `errors.IdentityUnusable` for what fits in none."""
        if self.headers:
            claims = identity.claims.whole()
            for header in self.headers:
                value = header.value(identity, claims)
                if value:
                    yield header.name, value


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it was written, with what is there twice."""


def _problems(entries: _Pairs) -> Iterator[str]:
    if len(entries) > MOST_HEADERS:
        yield f"more than {MOST_HEADERS} headers"
    seen: set[str] = set()
    for number, (name, claim) in enumerate(entries, start=1):
        # Applications may read "_" and "-" in a header's name as the same.
        folded = name.lower().replace("_", "-")
        if not _NAME.fullmatch(name):
            yield f"header {number}: not a header name"
        elif folded in seen:
            yield f"header {number}: its name is there already"
        elif not isinstance(claim, str) or not claim:
            yield f"header {number}: its claim must be a name or a dotted path"
        seen.add(folded)


def claim_value(value: Any) -> str:
    """A claim as a header's value, printable ASCII on one line (see `identity.header_value`).

    A list of texts, numbers and truth values is joined by commas, each as a group is in the groups header; whatever
    else is no text is written as JSON. ``null``, an empty text and an empty list are nothing.
    """
    if isinstance(value, (list, tuple)) and not any(isinstance(one, (list, tuple, Mapping)) for one in value):
        return ",".join(group_value(text) for text in map(_text, value) if text)
    return header_value(_text(value)) if value is not None else ""


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# --- tokens ----------------------------------------------------------------------------------

TOKENS = "upstream.tokens"
"""Among what was made of an identity: its `Tokens`, where they are told or on trial."""
AUTHORIZATION = "authorization"

_VISIBLE = re.compile(r"[\x21-\x7e]+")


class Tokens(NamedTuple):
    """The tokens that an identity came with; empty for what there is none of."""

    access: str = ""
    id: str = ""

    def __repr__(self) -> str:
        """Says nothing: text ends up in logs."""
        return "<Tokens>"


class HasTokens(Protocol):
    """A session, or what is about to be one."""

    @property
    def access_token(self) -> str: ...

    @property
    def id_token(self) -> str: ...


def on_trial(identity: Identity, tokens: HasTokens) -> None:
    """Gives both tokens to an identity that is rendered once, to see whether they fit, and then let go of."""
    identity.made[TOKENS] = Tokens(tokens.access_token, tokens.id_token)


@dataclass(frozen=True, slots=True)
class TokenHeaders:
    """The headers for tokens, by their names; an empty one is switched off. A `identity.FurtherHeaders`.

    In ``Authorization`` a token stands behind ``Bearer``, anywhere else by itself.
    """

    access: str = ""
    id: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The headers' names as they are spelt."""
        return tuple(filter(None, (self.access, self.id)))

    def keep(self, identity: Identity, *, access: str = "", id: str = "") -> None:
        """Leaves with an identity which tokens of its own are told, and keeps no other."""
        told = Tokens(access if self.access else "", id if self.id else "")
        if any(told):
            identity.made[TOKENS] = told

    def keep_those_of(self, identity: Identity, session: HasTokens) -> None:
        """The same for the tokens of a session."""
        self.keep(identity, access=session.access_token, id=session.id_token)

    def values(self, identity: Identity) -> Iterator[tuple[str, str]]:
        """The headers that there is a token for. Raises `errors.IdentityUnusable` for one that is no token in form
        (RFC 6749 §A.12)."""
        tokens: Tokens | None = identity.made.get(TOKENS)
        for name, token in zip((self.access, self.id), tokens or (), strict=False):
            if name and token:
                if not _VISIBLE.fullmatch(token):
                    raise IdentityUnusable("a token holds blanks, control characters or characters outside ASCII")
                yield name, f"Bearer {token}" if name.lower() == AUTHORIZATION else token
