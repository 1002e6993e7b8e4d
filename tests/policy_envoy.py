"""Policies as Envoy's own configuration, and a real Envoy that says what it makes of requests.

The translation is Istio's: a jwt_authn filter, then one rbac filter for each of AUDIT (``LOG``), DENY and
ALLOW. It starts at the YAML's plain values and shares no code with the service, because it is there to
judge it. One Envoy holds many policy sets: the header ``x-set`` chooses the route, and with it the set.

Envoy sits behind PROXY protocol, which tells it the port that a request was sent to; it takes the client's
address from X-Forwarded-For as a sidecar does, and normalises no path.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple

from tests.e2e.processes import Program, listens
from tests.ports import free_port
from tests.programs import require

Json = dict[str, Any]

_TYPE = "type.googleapis.com/envoy.extensions."
_JWT = "envoy.filters.http.jwt_authn"
_FILTERS = {"AUDIT": "rbac.audit", "DENY": "rbac.deny", "ALLOW": "rbac.allow"}
_TRUE = {"1", "t", "T", "TRUE", "true", "True"}
_ANYTHING: Json = {"any": True}
_NON_EMPTY: Json = {"safe_regex": {"regex": ".+"}}


# ---- values


def _string(value: str) -> Json:
    """A value's form (M16, M17)."""
    if value == "*":
        return _NON_EMPTY
    if value.startswith("*"):
        return {"suffix": value[1:]}
    if value.endswith("*"):
        return {"prefix": value[:-1]}
    return {"exact": value}


def _header(name: str, value: str, *, any_case: bool = False) -> Json:
    if value == "*":
        return {"header": {"name": name, "present_match": True}}
    match = _string(value)
    return {"header": {"name": name, "string_match": {**match, "ignore_case": True} if any_case else match}}


def _path(value: str) -> Json:
    if "{*}" not in value and "{**}" not in value:
        return {"url_path": {"path": _string(value)}}
    template = value.replace("{*}", "*").replace("{**}", "**")
    config = {
        "@type": _TYPE + "path.match.uri_template.v3.UriTemplateMatchConfig",
        "path_template": template,
    }
    return {
        "uri_template": {
            "name": "envoy.path.match.uri_template.uri_template_matcher",
            "typed_config": config,
        }
    }


def _network(field: str) -> Callable[[str], Json]:
    def translate(value: str) -> Json:
        network = ipaddress.ip_network(value, strict=False)
        return {field: {"address_prefix": str(network.network_address), "prefix_len": network.prefixlen}}

    return translate


def _identity(match: Json) -> Json:
    return {"authenticated": {"principal_name": match}}


def _peer(value: str) -> Json:
    """A mesh identity (M34): ``spiffe://`` stands in front, unless the value begins with a wildcard."""
    plain = _string(value)
    return _identity(
        {how: what if how in ("suffix", "safe_regex") else f"spiffe://{what}" for how, what in plain.items()}
    )


def _namespace(value: str) -> Json:
    parts = ".*".join(re.escape(part) for part in value.split("*"))
    return _identity({"safe_regex": {"regex": f".*/ns/{parts}/.*"}})


def _account(value: str) -> Json:
    namespace, _, name = value.rpartition("/")
    pattern = f"spiffe://.+/ns/{re.escape(namespace or 'default')}/(.+/|)sa/{re.escape(name)}(/.+)?"
    return _identity({"safe_regex": {"regex": pattern}})


def _metadata(path: Sequence[str], value: Json) -> Json:
    keys = [{"key": key} for key in ("payload", *path)]
    return {"sourced_metadata": {"metadata_matcher": {"filter": _JWT, "path": keys, "value": value}}}


def _claim(path: Sequence[str]) -> Callable[[str], Json]:
    """A claim's value, or one in its list (M41)."""

    def translate(value: str) -> Json:
        plain = {"string_match": _string(value)}
        either = {"or_match": {"value_matchers": [{"list_match": {"one_of": plain}}, plain]}}
        return _metadata(path, either)

    return translate


def _request_principal(value: str) -> Json:
    """The forms of ``<iss>/<sub>``, a row of the table each."""
    issuer, slash, subject = value.rpartition("/")
    match: tuple[Json, Json]
    if value == "*":
        match = _NON_EMPTY, _NON_EMPTY
    elif value.startswith("*"):
        issuer = issuer if slash else "*"
        ends: Json = {"suffix": subject[1:]} if not slash else {"exact": subject}
        match = _string(issuer), ends
    elif value.endswith("*"):
        match = ({"exact": issuer}, _string(subject)) if slash else ({"prefix": value[:-1]}, _NON_EMPTY)
    elif slash:
        match = {"exact": issuer}, {"exact": subject}
    else:
        match = {"exact": value}, {"exact": ""}
    both = [_metadata([name], {"string_match": one}) for name, one in zip(("iss", "sub"), match, strict=True)]
    return {"and_ids": {"ids": both}}


# ---- rules


class _Side(NamedTuple):
    """Permissions or principals: how Envoy spells their connectives."""

    all_of: str
    any_of: str
    none_of: str
    list_of: str

    def any(self, entries: Sequence[Json]) -> Json:
        return entries[0] if len(entries) == 1 else {self.any_of: {self.list_of: list(entries)}}

    def all(self, entries: Sequence[Json]) -> Json:
        if not entries:
            return _ANYTHING
        return entries[0] if len(entries) == 1 else {self.all_of: {self.list_of: list(entries)}}

    def conjuncts(
        self, translate: Callable[[str], Json], yes: Iterable[str], no: Iterable[str]
    ) -> list[Json]:
        """A field's values and those of its ``not…`` (M15)."""
        wanted, unwanted = [translate(v) for v in yes], [translate(v) for v in no]
        found = [self.any(wanted)] if wanted else []
        return found + ([{self.none_of: self.any(unwanted)}] if unwanted else [])


_PERMISSION = _Side("and_rules", "or_rules", "not_rule", "rules")
_PRINCIPAL = _Side("and_ids", "or_ids", "not_id", "ids")

_OPERATION: dict[str, Callable[[str], Json]] = {
    "hosts": lambda value: _header(":authority", value, any_case=True),
    "ports": lambda value: {"destination_port": int(value)},
    "methods": lambda value: _header(":method", value),
    "paths": _path,
}
_SOURCE: dict[str, Callable[[str], Json]] = {
    "requestPrincipals": _request_principal,
    "ipBlocks": _network("direct_remote_ip"),
    "remoteIpBlocks": _network("remote_ip"),
    "principals": _peer,
    "namespaces": _namespace,
    "serviceAccounts": _account,
}
_KEYS: dict[str, Callable[[str], Json]] = {
    "request.auth.principal": _request_principal,
    "request.auth.audiences": _claim(["aud"]),
    "request.auth.presenter": _claim(["azp"]),
    "source.ip": _network("direct_remote_ip"),
    "remote.ip": _network("remote_ip"),
    "source.principal": _peer,
    "source.namespace": _namespace,
    "source.serviceAccount": _account,
}


def claim_names(key: str) -> list[str]:
    """The names in ``[a][b]``; all between the outer brackets as one when they are not well formed (M40)."""
    if re.fullmatch(r"(\[[^\[\]]*])+", key):
        return re.findall(r"\[([^\[\]]*)]", key)
    return [key[1:-1]]


def _condition(condition: Json) -> tuple[_Side, list[Json]]:
    key, yes, no = condition["key"], condition.get("values", ()), condition.get("notValues", ())
    if key == "destination.port":
        return _PERMISSION, _PERMISSION.conjuncts(_OPERATION["ports"], yes, no)
    if key.startswith("request.headers["):
        name = key[len("request.headers[") : -1]
        return _PRINCIPAL, _PRINCIPAL.conjuncts(lambda value: _header(name, value), yes, no)
    if key.startswith("request.auth.claims["):
        names = claim_names(key.removeprefix("request.auth.claims"))
        return _PRINCIPAL, _PRINCIPAL.conjuncts(_claim(names), yes, no)
    return _PRINCIPAL, _PRINCIPAL.conjuncts(_KEYS[key], yes, no)


def _negated(name: str) -> str:
    return f"not{name[0].upper()}{name[1:]}"


def _entries(
    side: _Side,
    fields: Mapping[str, Callable[[str], Json]],
    entries: Sequence[Json],
    conditions: Sequence[Json],
) -> list[Json]:
    """One side of a rule: each entry of ``to`` or ``from`` with the conditions of its side."""
    found = []
    for entry in entries or [{}]:
        conjuncts: list[Json] = []
        for name, translate in fields.items():
            conjuncts += side.conjuncts(translate, entry.get(name, ()), entry.get(_negated(name), ()))
        found.append(side.all([*conjuncts, *conditions]))
    return found


def _rule(rule: Json) -> Json:
    conditions: dict[_Side, list[Json]] = {_PERMISSION: [], _PRINCIPAL: []}
    for condition in rule.get("when", ()):
        side, conjuncts = _condition(condition)
        conditions[side] += conjuncts
    operations = [entry["operation"] for entry in rule.get("to", ())]
    sources = [entry["source"] for entry in rule.get("from", ())]
    return {
        "permissions": _entries(_PERMISSION, _OPERATION, operations, conditions[_PERMISSION]),
        "principals": _entries(_PRINCIPAL, _SOURCE, sources, conditions[_PRINCIPAL]),
    }


_NEVER = {"permissions": [{"not_rule": _ANYTHING}], "principals": [{"not_id": _ANYTHING}]}


def is_on_trial(document: Json) -> bool:
    """Whether a policy is annotated as not to be enforced (M10)."""
    return document["metadata"].get("annotations", {}).get("istio.io/dry-run") in _TRUE


def _rbac(documents: Iterable[Json], action: str, *, trial: bool) -> Json | None:
    """The filter of an action; none when no enforced policy has it. ``trial`` enforces all of them."""
    rules: Json = {}
    for document in documents:
        spec = document["spec"]
        if document["kind"] != "AuthorizationPolicy" or spec.get("action", "ALLOW") != action:
            continue
        if is_on_trial(document) and not trial:
            continue
        name = f"{document['metadata']['namespace']}/{document['metadata']['name']}"
        named = {f"{name}#{number}": _rule(rule) for number, rule in enumerate(spec.get("rules", ()))}
        rules.update(named or {f"{name}#never": _NEVER})
    if not rules:
        return None
    wanted = {"action": "LOG" if action == "AUDIT" else action, "policies": rules}
    return {"@type": _TYPE + "filters.http.rbac.v3.RBACPerRoute", "rbac": {"rules": wanted}}


# ---- tokens


def _provider(rule: Json) -> Json:
    delimited = {"permission", "scope", *rule.get("spaceDelimitedClaims", ())}
    provider: Json = {
        "issuer": rule.get("issuer", ""),
        "audiences": rule.get("audiences", []),
        "forward": rule.get("forwardOriginalToken", False),
        "payload_in_metadata": "payload",
        "normalize_payload_in_metadata": {"space_delimited_claims": sorted(delimited)},
        "local_jwks": {"inline_string": rule["jwks"]},
        "from_headers": [
            {"name": place["name"], "value_prefix": place.get("prefix", "")}
            for place in rule.get("fromHeaders", ())
        ],
        "from_params": rule.get("fromParams", []),
        "from_cookies": rule.get("fromCookies", []),
    }
    return {name: value for name, value in provider.items() if value not in ("", [])}


def _requirement(names: Sequence[str]) -> Json:
    """Any token may be missing, none may be bad; of several rules one is enough (M54, M55)."""
    plain = [{"provider_name": name} for name in names]
    missing: Json = {"allow_missing": {}}
    if len(plain) == 1:
        return {"requires_any": {"requirements": [plain[0], missing]}}
    lenient = [{"requires_any": {"requirements": [one, missing]}} for one in plain]
    return {"requires_any": {"requirements": [*plain, {"requires_all": {"requirements": lenient}}]}}


def _jwt_rules(documents: Iterable[Json]) -> list[Json]:
    found = [
        rule
        for document in documents
        if document["kind"] == "RequestAuthentication"
        for rule in document["spec"].get("jwtRules", ())
    ]
    return sorted(found, key=lambda rule: str(rule.get("issuer", "")))


# ---- the whole configuration


def _typed(name: str, kind: str, **fields: Any) -> Json:
    return {"name": name, "typed_config": {"@type": _TYPE + kind, **fields}}


def _route(name: str, documents: Sequence[Json], *, trial: bool, has_tokens: bool) -> Json:
    settings: Json = {}
    for action, its_filter in _FILTERS.items():
        rbac = _rbac(documents, action, trial=trial)
        if rbac is not None:
            settings[its_filter] = rbac
    tokens = {"requirement_name": name.removesuffix("+")} if has_tokens else {"disabled": True}
    settings[_JWT] = {"@type": _TYPE + "filters.http.jwt_authn.v3.PerRouteConfig", **tokens}
    chosen = {"name": "x-set", "string_match": {"exact": name}}
    return {
        "match": {"prefix": "/", "headers": [chosen]},
        "direct_response": {"status": 200},
        "typed_per_filter_config": settings,
    }


def _tell() -> Json:
    """What each answer says of how it came about."""
    told = {
        "x-details": "%RESPONSE_CODE_DETAILS%",
        "x-audited": "%DYNAMIC_METADATA(envoy.common:access_log_hint)%",
    }
    comparison = {"op": "GE", "value": {"default_value": 0, "runtime_key": "none"}}
    added = [{"header": {"key": key, "value": value}} for key, value in told.items()]
    return {
        "mappers": [{"filter": {"status_code_filter": {"comparison": comparison}}, "headers_to_add": added}]
    }


def configuration(sets: Mapping[str, Sequence[Json]], port: int, *, normalises: bool) -> Json:
    """Envoy's configuration for policy sets by their names. A set is there a second time under its name with
    a ``+``: with the policies that are on trial enforced, too. ``normalises`` resolves dot segments first."""
    providers: Json = {}
    requirements: Json = {}
    routes = []
    for name, documents in sets.items():
        own = {f"{name}-{number}": _provider(rule) for number, rule in enumerate(_jwt_rules(documents))}
        providers.update(own)
        if own:
            requirements[name] = _requirement(list(own))
        routes += [
            _route(name, documents, trial=False, has_tokens=bool(own)),
            _route(f"{name}+", documents, trial=True, has_tokens=bool(own)),
        ]
    jwt = {"providers": providers, "requirement_map": requirements, "bypass_cors_preflight": True}
    filters = [
        _typed(_JWT, "filters.http.jwt_authn.v3.JwtAuthentication", **jwt),
        *[_typed(name, "filters.http.rbac.v3.RBAC") for name in _FILTERS.values()],
        _typed("router", "filters.http.router.v3.Router"),
    ]
    manager = _typed(
        "http",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="http",
        use_remote_address=False,
        normalize_path=normalises,
        http_filters=filters,
        local_reply_config=_tell(),
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
    )
    listener = {
        "name": "all",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "listener_filters": [_typed("proxy", "filters.listener.proxy_protocol.v3.ProxyProtocol")],
        "filter_chains": [{"filters": [manager]}],
    }
    return {"static_resources": {"listeners": [listener]}}


# ---- the running program


@dataclass(frozen=True)
class Said:
    """Envoy's answer: its status, whether an AUDIT rule matched, and the DENY rule's name that refused
    (``none`` when no ALLOW rule matched, ``token`` when a token was no good, empty when nothing refused)."""

    status: int
    audited: bool
    refused_by: str


class JudgingEnvoy:
    """A real Envoy with policy sets. A context manager: it runs inside of ``with``."""

    def __init__(self, folder: Path, sets: Mapping[str, Sequence[Json]], *, normalises: bool = False) -> None:
        self.port = free_port()
        path = folder / "envoy.json"
        path.write_text(json.dumps(configuration(sets, self.port, normalises=normalises)))
        command = [
            require("envoy"),
            "-c",
            str(path),
            "--concurrency",
            "1",
            "--use-dynamic-base-id",
            "-l",
            "warn",
        ]
        self.program = Program("envoy", command, folder / "envoy.log")
        self._connections: dict[tuple[str, int], socket.socket] = {}

    def __enter__(self) -> JudgingEnvoy:
        self.program.start(lambda: listens(self.port))
        return self

    def __exit__(self, *exc: object) -> None:
        for connection in self._connections.values():
            connection.close()
        self.program.stop()

    def _connection(self, source: str, port: int) -> socket.socket:
        """A connection of its own for each address that asks and each port that it means."""
        found = self._connections.get((source, port))
        if found is None:
            found = socket.create_connection(("127.0.0.1", self.port), timeout=20, source_address=(source, 0))
            found.sendall(f"PROXY TCP4 {source} 127.0.0.1 40000 {port}\r\n".encode())
            self._connections[source, port] = found
        return found

    def ask(self, name: str, request: bytes, *, source: str, port: int) -> Said:
        """Envoy's answer to a request, given as its bytes with an empty line at the end."""
        connection = self._connection(source, port)
        connection.sendall(request[:-2] + f"x-set: {name}\r\n\r\n".encode())
        answer = HTTPResponse(connection, method=request.split(b" ", 1)[0].decode("latin-1"))
        answer.begin()
        answer.read()
        if answer.will_close:
            self._connections.pop((source, port)).close()
        details = answer.getheader("x-details", "")
        rule = re.fullmatch(r"rbac_access_denied_matched_policy\[(.*)]", details)
        refused_by = rule[1] if rule else "token" if details.startswith("jwt_authn") else ""
        return Said(answer.status, answer.getheader("x-audited", "") == "true", refused_by)
