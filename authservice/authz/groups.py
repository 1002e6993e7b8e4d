"""The groups allow list (``GROUPS_ALLOWLIST``): one common group is enough, ``*`` lets everybody pass."""

from __future__ import annotations

from collections.abc import Iterable

from authservice.authz import Refusal
from authservice.check import CheckRequest, Reach
from authservice.errors import Reason
from authservice.identity import Identity

EVERYBODY = "*"


class GroupsAuthorizer:
    """Grants when the identity has any of the allowed groups, compared byte for byte."""

    name = "groups"

    def __init__(self, allowed: Iterable[str]) -> None:
        self._allowed = frozenset(allowed)
        self._everybody = EVERYBODY in self._allowed

    def authorize(self, check: CheckRequest, identity: Identity, reach: Reach) -> Refusal | None:
        if self._everybody or not self._allowed.isdisjoint(identity.groups):
            return None
        return Refusal(
            Reason.GROUPS,
            "You are logged in, but none of your groups may see this page.",
            tuple(sorted(self._allowed)),
        )
