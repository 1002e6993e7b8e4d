"""The header of assertions, as the identity headers know it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from authservice.identity import Identity


@dataclass(frozen=True, slots=True)
class AssertionHeader:
    """A `identity.FurtherHeaders`: whoever has no assertion must not send one either. An empty name is none."""

    name: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,) if self.name else ()

    def values(self, identity: Identity) -> Iterable[tuple[str, str]]:
        """None yet: an assertion depends on more than the identity (see `assertion.allows`)."""
        return ()
