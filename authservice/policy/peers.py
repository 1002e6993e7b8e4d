"""What policies say of identities in the mesh: ``<trust domain>/ns/<namespace>/sa/<account>`` (M34 to M37).

An empty identity is none: it is no value's, and so it is every ``not…``. Expressions are a mesh's own, and
as there they take linear time, whatever the identity.
"""

from __future__ import annotations

from collections.abc import Sequence

import re2

from authservice.policy.match import TextTest, texts

SCHEME = "spiffe://"


def peer_principals(values: Sequence[str]) -> TextTest:
    """Whether an identity is any of the principals, compared with ``spiffe://`` in front of both (M34)."""
    matches = texts([value if value.startswith("*") else SCHEME + value for value in values])
    return lambda peer: bool(peer) and matches(SCHEME + peer)


def peer_namespaces(values: Sequence[str]) -> TextTest:
    """Whether an identity's namespace is any of the values, in which ``*`` stands for any characters
    wherever it is, as in the expression that a mesh makes of it (M35)."""
    names = "|".join(".*".join(map(re2.escape, value.split("*"))) for value in values)
    matches = re2.compile(f".*/ns/(?:{names})/.*").fullmatch
    return lambda peer: bool(peer) and matches(SCHEME + peer) is not None


def peer_accounts(values: Sequence[str], namespace: str) -> TextTest:
    """Whether an identity is any of the service accounts, ``<account>`` being one of ``namespace`` (M36)."""
    named = [value.split("/", 1) if "/" in value else [namespace, value] for value in values]
    pairs = "|".join(f"/ns/{re2.escape(space)}/(?:.+/|)sa/{re2.escape(account)}" for space, account in named)
    matches = re2.compile(f"{SCHEME}.+(?:{pairs})(?:/.+)?").fullmatch
    return lambda peer: bool(peer) and matches(SCHEME + peer) is not None
