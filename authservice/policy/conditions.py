"""What sources, operations and ``when`` ask for, each field as one `conjuncts.Conjunct` (M15, M22 to M47).

Takes values of `resources` and where they stand in their rule, for the words of explanations.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_network
from operator import attrgetter
from typing import Any

from authservice.policy import claims, match, peers
from authservice.policy.conjuncts import Conjunct, Label, Subject, ValueTest, conjunct, is_secret
from authservice.policy.header_lines import header_values
from authservice.policy.match import Spellings
from authservice.policy.question import Question
from authservice.policy.resources import Condition, Operation, Source

ADDRESS_KEYS = frozenset({"source.ip", "remote.ip"})
PEER_KEYS = frozenset({"source.principal", "source.namespace", "source.serviceAccount"})

_Field = tuple[str, Subject, Sequence[Any], Sequence[Any]]
"""Its name in the YAML, what it looks at, its values and those of its ``not…``."""

_HEADERS, _CLAIMS = "request.headers", "request.auth.claims"
_NO_PEER = "the caller's identity in the mesh is not known"


def _numbers(values: Sequence[Any]) -> ValueTest:
    return frozenset(map(int, values)).__contains__


def _ranges(values: Sequence[Any]) -> ValueTest:
    return match.networks([ip_network(value, strict=False) for value in values])


def _source(question: Question) -> Spellings | None:
    return match.read_address(question.source) if question.source is not None else None


def _remote(question: Question) -> Spellings | None:
    return match.read_address(question.remote) if question.remote is not None else None


def _address_text(spellings: Spellings) -> str:
    version, number = spellings[0]
    return str(IPv4Address(number) if version == 4 else IPv6Address(number))


_METHOD = Subject(attrgetter("method"), match.lines, "there is no method", settled_by="method")
_HOST = Subject(attrgetter("host"), match.hosts, "there is no host", settled_by="host")
_PORT = Subject(attrgetter("port"), _numbers, "the port is not known", doubtful=True)
_PATH = Subject(
    attrgetter("path"), match.paths, "the path can be read in more than one way, or is not known", doubtful=True
)
_SOURCE_IP = Subject(
    _source, _ranges, "the address of the gateway's peer is not known", doubtful=True, told=_address_text
)
_REMOTE_IP = Subject(_remote, _ranges, "the client's address is not known", doubtful=True, told=_address_text)
_PRINCIPAL = Subject(
    claims.principal_of, claims.principals, "there is no token with an issuer and a subject", told="/".join
)
_PEER = Subject(attrgetter("peer"), peers.peer_principals, _NO_PEER, doubtful=True)
_NAMESPACE = Subject(attrgetter("peer"), peers.peer_namespaces, _NO_PEER, doubtful=True)


def _account(namespace: str) -> Subject:
    compare = partial(peers.peer_accounts, namespace=namespace)
    return Subject(attrgetter("peer"), compare, _NO_PEER, doubtful=True)


def _claim(path: tuple[str, ...]) -> Subject:
    return Subject(claims.claim_at(path), claims.claim_values, "there is no such claim")


def _header(name: str) -> Subject:
    if name == "host":  # clients and gateways keep it apart from the others
        return Subject(attrgetter("host"), match.hosts, "there is no host", settled_by="host")

    def look(question: Question) -> str | None:
        return question.headers.get(name)

    return Subject(look, header_values, "there is no such header", hidden=is_secret(name))


_PLAIN_KEYS = {
    "source.ip": _SOURCE_IP,
    "remote.ip": _REMOTE_IP,
    "source.principal": _PEER,
    "source.namespace": _NAMESPACE,
    "request.auth.principal": _PRINCIPAL,
    "request.auth.audiences": _claim(("aud",)),
    "request.auth.presenter": _claim(("azp",)),
    "destination.port": _PORT,
}


def subject_of_key(key: str, namespace: str) -> Subject:
    """What a condition's key looks at. Raises `ValueError` with a sentence for one that has no meaning."""
    if key == "source.serviceAccount":
        return _account(namespace)
    if key in _PLAIN_KEYS:
        return _PLAIN_KEYS[key]
    for prefix in (_HEADERS, _CLAIMS):
        brackets = key.removeprefix(prefix)
        if key.startswith(prefix) and len(brackets) > 2 and brackets.startswith("[") and brackets.endswith("]"):
            return _header(brackets[1:-1].lower()) if prefix == _HEADERS else _claim(claims.claim_path(brackets))
    raise ValueError(f"{key} is no key that is known here")


def of_operation(operation: Operation, place: str, doubt: bool) -> tuple[Conjunct, ...]:
    """What one entry of ``to`` asks for."""
    fields: tuple[_Field, ...] = (
        ("methods", _METHOD, operation.methods, operation.not_methods),
        ("hosts", _HOST, operation.hosts, operation.not_hosts),
        ("ports", _PORT, operation.ports, operation.not_ports),
        ("paths", _PATH, operation.paths, operation.not_paths),
    )
    return _conjuncts(fields, place, doubt)


def of_source(source: Source, namespace: str, place: str, doubt: bool) -> tuple[Conjunct, ...]:
    """What one entry of ``from`` asks for, in a policy of ``namespace``."""
    fields: tuple[_Field, ...] = (
        ("requestPrincipals", _PRINCIPAL, source.request_principals, source.not_request_principals),
        ("principals", _PEER, source.principals, source.not_principals),
        ("namespaces", _NAMESPACE, source.namespaces, source.not_namespaces),
        ("serviceAccounts", _account(namespace), source.service_accounts, source.not_service_accounts),
        ("ipBlocks", _SOURCE_IP, source.ip_blocks, source.not_ip_blocks),
        ("remoteIpBlocks", _REMOTE_IP, source.remote_ip_blocks, source.not_remote_ip_blocks),
    )
    return _conjuncts(fields, place, doubt)


def _conjuncts(fields: Sequence[_Field], place: str, doubt: bool) -> tuple[Conjunct, ...]:
    return tuple(
        conjunct(subject, values, not_values, _label(place, name), doubt=doubt)
        for name, subject, values, not_values in fields
        if values or not_values
    )


def _label(place: str, name: str) -> Label:
    return Label(f"{place}.{name}", f"{place}.not{name[0].upper()}{name[1:]}")


def of_condition(condition: Condition, namespace: str, place: str, doubt: bool) -> Conjunct:
    """What one entry of ``when`` asks for."""
    label = Label(f"{place} {condition.key}", f"{place} {condition.key} (notValues)")
    subject = subject_of_key(condition.key, namespace)
    return conjunct(subject, condition.values, condition.not_values, label, doubt=doubt)


def asks_for_addresses(source: Source) -> bool:
    """Whether an entry of ``from`` needs to know who called from where (M33)."""
    return bool(source.ip_blocks or source.not_ip_blocks or source.remote_ip_blocks or source.not_remote_ip_blocks)


def asks_for_peers(source: Source) -> bool:
    """Whether an entry of ``from`` needs identities in the mesh (M37)."""
    wanted = source.principals or source.namespaces or source.service_accounts
    return bool(wanted or source.not_principals or source.not_namespaces or source.not_service_accounts)
