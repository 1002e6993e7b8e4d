"""The ``spec`` of an `AuthorizationPolicy`: its action and its rules, checked as Istio checks them.

Called by `policy.read`. Templates of paths are read by `policy.templates`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_network

from authservice.policy.fields import Spot, seen_header_name, shown
from authservice.policy.resources import (
    Action,
    AuthorizationPolicy,
    Condition,
    Network,
    Operation,
    Place,
    Rule,
    Selection,
    Source,
)
from authservice.policy.templates import is_template, template
from authservice.policy.yaml_lines import Kind

AUTHORIZATION_FIELDS = ("selector", "targetRef", "targetRefs", "action", "rules", "provider")
_RULE_FIELDS = ("from", "to", "when")
_CONDITION_FIELDS = ("key", "values", "notValues")


def _with_not(*names: str) -> tuple[str, ...]:
    """Each name, and the one of its opposite."""
    return tuple(form for name in names for form in (name, f"not{name[0].upper()}{name[1:]}"))


_SOURCE_FIELDS = _with_not(
    "principals", "requestPrincipals", "namespaces", "serviceAccounts", "ipBlocks", "remoteIpBlocks"
)
_OPERATION_FIELDS = _with_not("hosts", "ports", "methods", "paths")
_ACCOUNT_FIELDS, _PEER_FIELDS = _with_not("serviceAccounts"), _with_not("principals", "namespaces")
_MISPLACED = {
    **{field: "it belongs into a source under from" for field in _SOURCE_FIELDS},
    **{field: "it belongs into an operation under to" for field in _OPERATION_FIELDS},
    **{field: "it belongs into an entry under when" for field in _CONDITION_FIELDS},
    "source": "it belongs into an entry under from",
    "operation": "it belongs into an entry under to",
}
"""What to say of a field that stands in a rule itself."""

CUSTOM_REFUSED = (
    "CUSTOM asks another service, and this service is the custom authorizer: write what it is to decide as "
    "ALLOW and DENY policies, or have EXTERNAL_AUTHZ_URL asked"
)

_ADDRESS = re.compile(r"[0-9A-Fa-f.:]+(?:/[0-9]{1,3})?")
_PORT = re.compile(r"[0-9]{1,5}")
_ACCOUNT = re.compile(r"[^/]+(?:/[^/]+)?")

_PLAIN_KEYS = (
    "request.auth.principal", "request.auth.audiences", "request.auth.presenter", "source.ip", "remote.ip",
    "source.principal", "source.namespace", "source.serviceAccount", "destination.port",
)  # fmt: skip
_NAMED_KEYS = ("request.headers", "request.auth.claims")
_TAKEN_KEYS = ", ".join([*(f"{key}[name]" for key in _NAMED_KEYS), *_PLAIN_KEYS])
_UNSEEN_KEYS = {
    "destination.ip": "a check service does not see which address of the application is called",
    "connection.sni": "a check service does not see the TLS handshake of the request's connection; use hosts",
}
_RETIRED_KEYS = {
    "destination.labels": "use the policy's selector",
    "destination.namespace": "use the policy's namespace",
    "destination.name": "use the policy's selector",
    "destination.user": "use the policy's selector",
}
_FILTERS = "experimental.envoy.filters."


def authorization(
    spec: Spot, name: str, namespace: str, selection: Selection, dry_run: bool, place: Place
) -> AuthorizationPolicy:
    """The policy that a ``spec`` describes; its problems are the spot's."""
    action = _action(spec)
    listed = spec.member("rules")
    entries = listed.items() if listed is not None else []
    if action is Action.DENY and not entries and (listed is None or listed.node.kind is Kind.LIST):
        (listed or spec).refuse("a DENY policy without rules denies nothing; rules: [{}] denies everything")
    rules = tuple(_rule(entry) for entry in entries)
    return AuthorizationPolicy(name, namespace, action or Action.ALLOW, rules, selection, dry_run, place)


def _action(spec: Spot) -> Action | None:
    """The action (M07); ``None``, and a problem, when it is none of ours."""
    if spec.member("provider") is not None and spec.at("action").node.text != "CUSTOM":
        spec.at("provider").refuse("a provider belongs to CUSTOM alone, which is not taken here")
    return Action.ALLOW if spec.member("action") is None else spec.value("action", _action_of)


def _action_of(text: str) -> Action:
    if text == "CUSTOM":
        raise ValueError(CUSTOM_REFUSED)
    if text not in Action.__members__:
        raise ValueError(f"{shown(text)} is no action; taken are {', '.join(Action.__members__)}")
    return Action(text)


def _rule(rule: Spot) -> Rule:
    sources: tuple[Source, ...] = ()
    operations: tuple[Operation, ...] = ()
    conditions: tuple[Condition, ...] = ()
    if rule.node.kind is Kind.NOTHING:
        rule.refuse("this rule is empty; {} is the rule that matches every request")
    elif rule.is_a(Kind.MAPPING):
        rule.refuse_others(_RULE_FIELDS, _MISPLACED)
        sources = tuple(_source(inner) for inner in _inner(rule, "from", "source", _SOURCE_FIELDS))
        operations = tuple(_operation(inner) for inner in _inner(rule, "to", "operation", _OPERATION_FIELDS))
        when = rule.member("when")
        conditions = tuple(_condition(entry) for entry in (when.items() if when is not None else ()))
    return Rule(sources, operations, conditions, rule.place)


def _inner(rule: Spot, side: str, name: str, known: tuple[str, ...]) -> list[Spot]:
    """The sources of ``from``, or the operations of ``to``: each with a field that says something."""
    listed = rule.member(side)
    if listed is None:
        return []
    if listed.node.kind is Kind.LIST and not listed.node.items:
        listed.refuse(f"{side} is an empty list; leave it out where it does not matter")
    found = []
    for entry in listed.items():
        if not entry.is_a(Kind.MAPPING):
            continue
        strange = entry.refuse_others((name,), {field: f"it belongs into {name}" for field in known})
        inner = entry.member(name)
        if inner is None and not strange:
            entry.refuse(f"{name} is missing")
        elif inner is not None and inner.is_a(Kind.MAPPING):
            strange = inner.refuse_others(known)
            if not strange and not any(_says_something(inner, field) for field in known):
                inner.refuse(f"this {name} has no field that says something")
            found.append(inner)
    return found


def _says_something(spot: Spot, name: str) -> bool:
    member = spot.member(name)
    return member is not None and (member.node.kind is not Kind.LIST or bool(member.node.items))


def _source(source: Spot) -> Source:
    accounts = [field for field in _ACCOUNT_FIELDS if _says_something(source, field)]
    others = [field for field in _PEER_FIELDS if _says_something(source, field)]
    if accounts and others:
        source.refuse(f"{accounts[0]} and {others[0]} cannot stand in one source")
    return Source(
        principals=source.texts("principals"),
        not_principals=source.texts("notPrincipals"),
        request_principals=source.texts("requestPrincipals"),
        not_request_principals=source.texts("notRequestPrincipals"),
        namespaces=source.texts("namespaces"),
        not_namespaces=source.texts("notNamespaces"),
        service_accounts=source.values("serviceAccounts", _account),
        not_service_accounts=source.values("notServiceAccounts", _account),
        ip_blocks=source.values("ipBlocks", network),
        not_ip_blocks=source.values("notIpBlocks", network),
        remote_ip_blocks=source.values("remoteIpBlocks", network),
        not_remote_ip_blocks=source.values("notRemoteIpBlocks", network),
    )


def _operation(operation: Spot) -> Operation:
    return Operation(
        hosts=operation.texts("hosts"),
        not_hosts=operation.texts("notHosts"),
        ports=operation.values("ports", port),
        not_ports=operation.values("notPorts", port),
        methods=operation.texts("methods"),
        not_methods=operation.texts("notMethods"),
        paths=operation.values("paths", _path),
        not_paths=operation.values("notPaths", _path),
    )


def _condition(entry: Spot) -> Condition:
    if not entry.is_a(Kind.MAPPING):
        return Condition("")
    strange = entry.refuse_others(_CONDITION_FIELDS)
    key = entry.required_value("key", _known_key) or ""
    check = _check_of(key)
    if not strange and not _says_something(entry, "values") and not _says_something(entry, "notValues"):
        entry.refuse("values or notValues has to be there, with at least one value")
    return Condition(key, entry.values("values", check), entry.values("notValues", check))


def _check_of(key: str) -> Callable[[str], str]:
    """What a value of this key has to be; gives it back as written."""
    reader = _READERS.get(key)

    def check(text: str) -> str:
        if reader is not None:
            reader(text)
        return text

    return check


def _known_key(key: str) -> str:
    """The key, as it is. Raises `ValueError` for one that is unknown, malformed, retired, or beyond what a
    check service sees (M18, M47)."""
    base, bracket, rest = key.partition("[")
    if key in _UNSEEN_KEYS or key.startswith(_FILTERS):
        reason = _UNSEEN_KEYS.get(key, "what Envoy's filters know does not reach a check service")
        raise ValueError(f"{shown(key)} is not taken here: {reason}")
    if base in _RETIRED_KEYS:
        raise ValueError(f"{shown(key)} is retired; {_RETIRED_KEYS[base]}")
    if base in _NAMED_KEYS:
        _check_name(base, rest[:-1] if bracket and rest.endswith("]") else "")
    elif key not in _PLAIN_KEYS:
        raise ValueError(f"there is no key {shown(key)}; taken are {_TAKEN_KEYS}")
    return key


def _check_name(base: str, name: str) -> None:
    if not name:
        raise ValueError(f"{base} needs a name in brackets: {base}[name]")
    if base == "request.headers" and name.startswith(":"):
        raise ValueError(f"{shown(name)} is no header here; use an operation's hosts, methods and paths")
    if base == "request.headers":
        seen_header_name(name)


def network(text: str) -> Network:
    """An address, or a block of addresses; bits behind the prefix do not matter (M31)."""
    sentence = f"{shown(text)} is neither an address nor a block of them, such as 10.0.0.0/8 or 2001:db8::/32"
    if not _ADDRESS.fullmatch(text):
        raise ValueError(sentence)
    try:
        return ip_network(text, strict=False)
    except ValueError:
        raise ValueError(sentence) from None


def port(text: str) -> int:
    """A destination port (M24)."""
    if not _PORT.fullmatch(text) or int(text) > 65535:
        raise ValueError(f"{shown(text)} is no port; a port is a number from 0 to 65535")
    return int(text)


def _path(text: str) -> str:
    if is_template(text):
        template(text)
    return text


def _account(text: str) -> str:
    if "*" in text or not _ACCOUNT.fullmatch(text):
        raise ValueError(f"{shown(text)} is no service account: account or namespace/account, without *")
    return text


_READERS: dict[str, Callable[[str], object]] = {
    "source.ip": network,
    "remote.ip": network,
    "destination.port": port,
    "source.serviceAccount": _account,
}
