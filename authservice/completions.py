"""What completes an allow beyond its identity: what policies pass on, then the signed assertion.

Part of the composition root; called by `app`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

from authservice.assertion.allows import Assertions
from authservice.assertion.keys import Keys
from authservice.authn.outputs import Outputs
from authservice.authn.request import Current
from authservice.check import Allow, CheckRequest
from authservice.identity import IdentityHeaders
from authservice.sessions.seal import Keyring
from authservice.settings import Settings

Complete = Callable[[CheckRequest, Allow], Allow]


class Completions(NamedTuple):
    """``complete`` is `pipeline.Pipeline`'s ``outputs``; ``key_set`` is what is published now. ``None`` where
    there is nothing to do."""

    complete: Complete | None
    key_set: Callable[[], bytes] | None


def build(
    settings: Settings,
    policies: Current | None,
    keyring: Keyring,
    headers: IdentityHeaders,
    now: Callable[[], datetime],
) -> Completions:
    """Those that the settings describe."""
    outputs = Outputs(policies) if policies else None
    if not settings.upstream_assertion_header:
        return Completions(outputs, None)
    keys = Keys(keyring.derive)
    assertions = Assertions(
        settings.upstream_assertion_header,
        keys,
        issuer=settings.assertion_issuer,
        audience=settings.upstream_assertion_audience,
        told_user_id=headers.told_user_id,
        now=now,
    )
    return Completions(
        assertions if outputs is None else _in_turn(outputs, assertions),
        lambda: keys.published(int(now().timestamp())),
    )


def _in_turn(first: Complete, then: Complete) -> Complete:
    return lambda check, allow: then(check, first(check, allow))
