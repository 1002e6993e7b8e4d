"""What a gateway demands of a person in the address that it asks on: oauth2-proxy's ``allowed_groups``,
``allowed_emails`` and ``allowed_email_domains``.

Each narrows who may pass: one of a demand's values is enough, and every demand has to be met. A demand without
a value is a slip of the configuration, with which nobody passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl

from authservice.authz import Refusal
from authservice.check import DEMANDS, CheckRequest, Reach
from authservice.errors import Reason
from authservice.identity import Identity

_PUBLIC = "You are logged in, but you may not see this page."


class DemandsAuthorizer:
    """Grants what the check itself demands nothing of."""

    name = "demands"

    def authorize(self, check: CheckRequest, identity: Identity, reach: Reach) -> Refusal | None:
        if not check.demands:
            return None
        asked = parse_qsl(check.demands, keep_blank_values=True)
        for name, meets in _DEMANDS.items():
            lists = [_elements(value) for key, value in asked if key == name]
            if not all(lists):
                return Refusal(Reason.MISCONFIGURED, _PUBLIC, cause=f"{name} has no value")
            if lists and not any(meets(identity, wanted) for one in lists for wanted in one):
                return Refusal(Reason.GROUPS, _PUBLIC, cause=f"{name} is not met")
        return None


def _elements(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _address(identity: Identity) -> str:
    """In small letters, as oauth2-proxy compares them."""
    claim = identity.claims.get("email")
    return (claim if isinstance(claim, str) else identity.user_id).lower()


def _is_in_group(identity: Identity, group: str) -> bool:
    return group in identity.groups


def _has_address(identity: Identity, address: str) -> bool:
    return _address(identity) == address.lower()


def _is_of_domain(identity: Identity, domain: str) -> bool:
    """With a dot or ``*.`` in front, of a domain below it."""
    _, at, own = _address(identity).rpartition("@")
    domain = domain.lower().removeprefix("*")
    return bool(at) and (own.endswith(domain) if domain.startswith(".") else own == domain)


_DEMANDS: Mapping[str, Callable[[Identity, str], bool]] = dict(
    zip(DEMANDS, (_is_in_group, _has_address, _is_of_domain), strict=True)
)
