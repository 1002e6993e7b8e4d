"""Who somebody is, how claims become that, and how it is told to the application.

`Identity` carries everything that authorizers and header rendering need, so nobody reads
credentials twice. Claims that passed verification have their own type, `VerifiedClaims`; only
the code that verified a signature, or asked the provider over an authenticated channel, makes one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any


class AuthMethod(str, Enum):
    """How the credential came: the value of the ``AUTH_METHOD_HEADER``."""

    COOKIE = "cookie"
    HEADER = "header"


class VerifiedClaims(Mapping[str, Any]):
    """Claims whose origin was proven. A read-only mapping; made by `authservice.oidc` only
    (and from a stored session, which holds nothing else)."""

    __slots__ = ("_claims",)

    def __init__(self, claims: Mapping[str, Any]) -> None:
        self._claims = dict(claims)

    def __getitem__(self, name: str) -> Any:
        return self._claims[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._claims)

    def __len__(self) -> int:
        return len(self._claims)


@dataclass(frozen=True, slots=True)
class Identity:
    """A person or program that proved who it is.

    ``user_id`` is the claim's value before transformers and prefix. ``expires`` (aware) is when
    the proof stops being one, or ``None`` when only its carrier knows.
    """

    user_id: str
    groups: tuple[str, ...]
    claims: VerifiedClaims
    method: AuthMethod
    issuer: str
    expires: datetime | None = None
