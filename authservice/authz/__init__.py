"""Authorizers: may this identity do that?

Asked in a fixed order (groups, policy, external) once somebody was authenticated. The first
refusal is the answer, and an authorizer that cannot judge now raises rather than grants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from authservice.check import CheckRequest, Reach, Remark
from authservice.errors import Reason
from authservice.identity import Identity


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not: a reason from the closed list, a sentence, and what would have been enough; ``cause`` is for
    the log only."""

    reason: Reason
    public: str
    detail: tuple[str, ...] = ()
    cause: str = ""
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True, slots=True)
class Granted:
    """A yes with something to be recorded."""

    remarks: tuple[Remark, ...]


class Authorizer(Protocol):
    """Judges an identity against one kind of rule."""

    name: str

    def authorize(self, check: CheckRequest, identity: Identity, reach: Reach) -> Refusal | Granted | None:
        """``None`` grants. Raises `errors.Unavailable` when it cannot be judged now. Records nothing
        itself: the same check may be asked about again."""
        ...
