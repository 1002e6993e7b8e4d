"""Authorizers: may this identity do that?

Asked in a fixed order (groups, policy, external) once somebody was authenticated. The first
refusal is the answer, and an authorizer that cannot judge now raises rather than grants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from authservice.check import CheckRequest, Reach
from authservice.errors import Reason
from authservice.identity import Identity


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not: a reason from the closed list, a sentence, and what would have been enough."""

    reason: Reason
    public: str
    detail: tuple[str, ...] = ()


class Authorizer(Protocol):
    """Judges an identity against one kind of rule."""

    name: str

    def authorize(self, check: CheckRequest, identity: Identity, reach: Reach) -> Refusal | None:
        """``None`` grants. Raises `errors.Unavailable` when it cannot be judged now."""
        ...
