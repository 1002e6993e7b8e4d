"""What a gateway demands of a person in the address that it asks on: oauth2-proxy's ``allowed_groups``,
``allowed_emails`` and ``allowed_email_domains``.

Each narrows who may pass: one of a demand's values is enough, and every demand has to be met. A demand without
a value is a slip of the configuration, with which nobody passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
            wanted = [element for one in lists for element in one]
            if wanted and not meets(identity, wanted):
                return Refusal(Reason.GROUPS, _PUBLIC, cause=f"{name} is not met")
        return None


def _elements(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _has_a_group(identity: Identity, wanted: Sequence[str]) -> bool:
    return not set(wanted).isdisjoint(identity.groups)


def _has_an_address(identity: Identity, wanted: Sequence[str]) -> bool:
    return _addresses(identity) <= {address.lower() for address in wanted}


def _is_of_a_domain(identity: Identity, wanted: Sequence[str]) -> bool:
    return all(any(_is_of(address, domain.lower()) for domain in wanted) for address in _addresses(identity))


def _is_of(address: str, domain: str) -> bool:
    """With a dot or ``*.`` in front, of a domain below it."""
    _, at, own = address.rpartition("@")
    below = domain[1:] if domain.startswith("*.") else domain
    return bool(at) and (own.endswith(below) if below.startswith(".") else own == domain)


def _addresses(identity: Identity) -> set[str]:
    """All that are known, in small letters, as oauth2-proxy compares them. Which of them people may write themselves,
    only the provider knows, so each has to do."""
    claim = identity.claims.get("email")
    told = {claim} if isinstance(claim, str) else set()
    if "@" in identity.user_id or not told:
        told.add(identity.user_id)
    return {address.lower() for address in told}


_DEMANDS: Mapping[str, Callable[[Identity, Sequence[str]], bool]] = dict(
    zip(DEMANDS, (_has_a_group, _has_an_address, _is_of_a_domain), strict=True)
)
