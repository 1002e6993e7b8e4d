"""What policies say, as values: each field of the YAML that counts here, checked and typed.

Made by `policy.read`, compiled by `policy.compile`. Names are Istio's, in this project's spelling; a
field that is absent is empty. Lists keep their order, so that rule numbers are the file's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from ipaddress import IPv4Network, IPv6Network
from typing import Any

Network = IPv4Network | IPv6Network

TARGETS: Mapping[str, str] = {
    "Gateway": "gateway.networking.k8s.io",
    "HTTPRoute": "gateway.networking.k8s.io",
    "Service": "",
    "ServiceEntry": "networking.istio.io",
}
"""The kinds that a policy can be attached to, each with its API group (M68)."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something stands: ``file`` as the reader was given it, ``line`` from 1, and the path of the
    field (``spec.rules[0].to[1].operation.paths[0]``; empty for a whole document)."""

    file: str
    line: int
    field: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f": {self.field}" if self.field else "")


class Action(str, Enum):
    """What a matching rule does. ``CUSTOM`` is refused when it is read (M06)."""

    ALLOW = "ALLOW"
    DENY = "DENY"
    AUDIT = "AUDIT"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which workloads a policy is for (M66 to M68): those of its namespace that have all ``labels``, or
    what ``targets`` name as ``kind/name`` (``Service/backend``). Both empty: all of its namespace."""

    labels: tuple[tuple[str, str], ...] = ()
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """One entry of ``from`` (M31 to M38)."""

    principals: tuple[str, ...] = ()
    not_principals: tuple[str, ...] = ()
    request_principals: tuple[str, ...] = ()
    not_request_principals: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    not_namespaces: tuple[str, ...] = ()
    service_accounts: tuple[str, ...] = ()
    not_service_accounts: tuple[str, ...] = ()
    ip_blocks: tuple[Network, ...] = ()
    not_ip_blocks: tuple[Network, ...] = ()
    remote_ip_blocks: tuple[Network, ...] = ()
    not_remote_ip_blocks: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """One entry of ``to`` (M22 to M30)."""

    hosts: tuple[str, ...] = ()
    not_hosts: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    not_ports: tuple[int, ...] = ()
    methods: tuple[str, ...] = ()
    not_methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    not_paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Condition:
    """One entry of ``when`` (M38 to M47). The values are text as written; those of addresses and ports
    have been checked."""

    key: str
    values: tuple[str, ...] = ()
    not_values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule (M13, M14). All three empty: it matches every request (M09)."""

    sources: tuple[Source, ...]
    operations: tuple[Operation, ...]
    conditions: tuple[Condition, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class AuthorizationPolicy:
    """Who may call the workloads that ``selection`` names."""

    name: str
    namespace: str
    action: Action
    rules: tuple[Rule, ...]
    selection: Selection
    dry_run: bool
    place: Place

    @property
    def full_name(self) -> str:
        """``namespace/name``, as logs, metrics and explanations say it."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class JwtRule:
    """One issuer whose tokens count (M49 to M64).

    ``issuer`` may be empty when ``jwks_uri`` is set. ``jwks`` is the parsed key set, ``None`` when
    there is none inline. ``from_headers`` are pairs of a lower-case name and a prefix. With no place at all
    (headers, params, cookies) the usual ones count (M51). ``output_claims`` are pairs of a header's name as
    written and a claim's name or dotted path. ``timeout`` is for fetching the keys.
    """

    issuer: str
    audiences: tuple[str, ...]
    jwks_uri: str
    jwks: Mapping[str, Any] | None
    from_headers: tuple[tuple[str, str], ...]
    from_params: tuple[str, ...]
    from_cookies: tuple[str, ...]
    output_payload_header: str
    output_claims: tuple[tuple[str, str], ...]
    forward_original_token: bool
    space_delimited_claims: tuple[str, ...]
    timeout: timedelta
    place: Place


@dataclass(frozen=True, slots=True)
class RequestAuthentication:
    """Which tokens count for the workloads that ``selection`` names."""

    name: str
    namespace: str
    rules: tuple[JwtRule, ...]
    selection: Selection
    place: Place

    @property
    def full_name(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"


Resource = AuthorizationPolicy | RequestAuthentication


class PolicyErrors(Exception):
    """Every problem of every file, in their order: pairs of a place and a sentence."""

    def __init__(self, problems: list[tuple[Place, str]]) -> None:
        super().__init__("\n".join(f"{place}: {sentence}" for place, sentence in problems))
        self.problems = tuple(problems)
