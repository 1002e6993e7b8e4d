"""The Envoy configuration that results from the shipped files of Istio, Envoy Gateway, Gateway API and
Emissary: their own control planes do not run here, but what they tell Envoy does.

Each translation follows its project: the same filters, the same fields, the same defaults of the
connection manager. Services are told apart by their names in the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]

DEPLOY = Path(__file__).parent.parent / "deploy"
_TYPE = "type.googleapis.com/envoy.extensions.filters."
_EXT_AUTHZ = "envoy.filters.http.ext_authz"
HOST = "app.example.com"
"""The host that all files are about."""


@dataclass(frozen=True)
class Places:
    """Where everything is on 127.0.0.1, and the host, as clients write it, in the place of `HOST`."""

    listen: int
    judge: int
    site: int
    application: int
    host: str


def documents(file: str, host: str) -> list[Json]:
    """The documents of a shipped file, about another host."""
    return list(yaml.safe_load_all((DEPLOY / file).read_text().replace(HOST, host)))


def _kinds(found: Sequence[Json], kind: str) -> list[Json]:
    return [document for document in found if document["kind"] == kind]


# --- headers ------------------------------------------------------------------------------------


def _pattern(name: str) -> Json:
    if name.endswith("*"):
        return {"prefix": name[:-1], "ignore_case": True}
    if name.startswith("*"):
        return {"suffix": name[1:], "ignore_case": True}
    return {"exact": name, "ignore_case": True}


def _patterns(names: Sequence[str]) -> Json:
    return {"patterns": [_pattern(name) for name in names]}


# --- what is asked ------------------------------------------------------------------------------


def _istio_check(mesh_file: str, places: Places) -> Json:
    """``envoyExtAuthzHttp``."""
    (mesh,) = documents(mesh_file, places.host)
    (provider,) = mesh["spec"]["meshConfig"]["extensionProviders"]
    told = provider["envoyExtAuthzHttp"]
    response: Json = {"allowed_upstream_headers": _patterns(told["headersToUpstreamOnAllow"])}
    if "headersToDownstreamOnDeny" in told:
        response["allowed_client_headers"] = _patterns(told["headersToDownstreamOnDeny"])
    return {
        "@type": f"{_TYPE}http.ext_authz.v3.ExtAuthz",
        "transport_api_version": "V3",
        "failure_mode_allow": told.get("failOpen", False),
        "status_on_error": {"code": int(told.get("statusOnError", "403"))},
        "allowed_headers": _patterns(told["includeRequestHeadersInCheck"]),
        "http_service": {
            "server_uri": {
                "uri": f"http://{told['service']}",
                "cluster": _cluster(told["service"]),
                "timeout": told["timeout"],
            },
            "authorization_response": response,
        },
    }


def _istio_rules(policy: Json) -> Json:
    """The rules of a CUSTOM policy, as the rules of an rbac filter that only takes note."""
    return {
        "action": "DENY",
        "policies": {
            f"istio-ext-authz-policy-rule[{number}]": {
                "permissions": [_operation(to["operation"]) for to in rule.get("to", [{"operation": {}}])],
                "principals": [{"any": True}],
            }
            for number, rule in enumerate(policy["spec"]["rules"])
        },
    }


def _operation(operation: Mapping[str, Sequence[str]]) -> Json:
    def host(value: str) -> Json:
        return {"header": {"name": ":authority", "string_match": {"exact": value, "ignore_case": True}}}

    def path(value: str) -> Json:
        match = {"prefix": value[:-1]} if value.endswith("*") else {"exact": value}
        return {"url_path": {"path": match}}

    rules: list[Json] = []
    for name, values in operation.items():
        one_of = {"hosts": host, "paths": path}[name.removeprefix("not").lower()]
        either = {"or_rules": {"rules": [one_of(value) for value in values]}}
        rules.append({"not_rule": either} if name.startswith("not") else either)
    return {"and_rules": {"rules": rules}} if rules else {"any": True}


def _istio_filters(policy: Json, check: Json) -> list[Json]:
    """An rbac filter notes whether a rule matches, and the check is asked where it says so."""
    noted = {
        "filter": "envoy.filters.http.rbac",
        "path": [{"key": "istio_ext_authz_shadow_effective_policy_id"}],
        "value": {"string_match": {"prefix": "istio-ext-authz"}},
    }
    return [
        {
            "name": "envoy.filters.http.rbac",
            "typed_config": {
                "@type": f"{_TYPE}http.rbac.v3.RBAC",
                "shadow_rules": _istio_rules(policy),
                "shadow_rules_stat_prefix": "istio_ext_authz_",
            },
        },
        {"name": _EXT_AUTHZ, "typed_config": {**check, "filter_enabled_metadata": noted}},
    ]


def _gateway_check(sent: Sequence[str], taken: Sequence[str], *, fail_open: bool) -> Json:
    """Envoy Gateway's ``extAuth``, and Gateway API's ``ExternalAuth`` as it is carried out with Envoy."""
    return {
        "@type": f"{_TYPE}http.ext_authz.v3.ExtAuthz",
        "transport_api_version": "V3",
        "failure_mode_allow": fail_open,
        "allowed_headers": _patterns(sent),
        "http_service": {
            "server_uri": {"uri": "http://authservice.auth", "cluster": "authservice", "timeout": "10s"},
            "authorization_response": {"allowed_upstream_headers": _patterns(taken)},
        },
    }


_EMISSARY_SENDS = (
    "authorization", "cookie", "from", "proxy-authorization", "user-agent",
    "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto",
)  # fmt: skip
_EMISSARY_TAKES = ("location", "authorization", "proxy-authenticate", "set-cookie", "www-authenticate")


def _emissary_check(spec: Json) -> Json:
    """``AuthService``: one list of answer headers for both directions."""
    both = _patterns([*_EMISSARY_TAKES, *spec["allowed_authorization_headers"]])
    return {
        "@type": f"{_TYPE}http.ext_authz.v3.ExtAuthz",
        "transport_api_version": "V3",
        "failure_mode_allow": spec.get("failure_mode_allow", False),
        "status_on_error": {"code": spec.get("status_on_error", {}).get("code", 403)},
        "clear_route_cache": True,
        "allowed_headers": _patterns([*_EMISSARY_SENDS, *spec["allowed_request_headers"]]),
        "http_service": {
            "server_uri": {
                "uri": f"http://{spec['auth_service']}",
                "cluster": _cluster(spec["auth_service"]),
                "timeout": f"{spec['timeout_ms'] / 1000}s",
            },
            "authorization_response": {"allowed_upstream_headers": both, "allowed_client_headers": both},
        },
    }


# --- routes -------------------------------------------------------------------------------------


def _cluster(service: str) -> str:
    """The cluster of a service: the first part of its name."""
    return service.partition(":")[0].partition(".")[0]


def _virtual_service_routes(found: Sequence[Json]) -> list[Json]:
    routes = []
    for service in _kinds(found, "VirtualService"):
        for told in service["spec"]["http"]:
            (way,) = told["route"]
            removed = told.get("headers", {}).get("request", {}).get("remove", [])
            for match in told.get("match", [{"uri": {"prefix": "/"}}]):
                uri = {{"exact": "path"}.get(how, how): value for how, value in match["uri"].items()}
                routes.append(_route(uri, _cluster(way["destination"]["host"]), removed))
    return routes


def _http_routes(found: Sequence[Json], checked: str) -> list[Json]:
    """HTTPRoutes, the longest prefix first. ``checked`` names the filter that is off unless a route of
    Envoy Gateway's policy, or with the filter ExternalAuth, turns it on; empty: there is none such."""
    routes = []
    for document in _kinds(found, "HTTPRoute"):
        for rule in document["spec"]["rules"]:
            (match,), (way,) = rule["matches"], rule["backendRefs"]
            steps = {step["type"]: step for step in rule.get("filters", [])}
            removed = (
                steps.get("RequestHeaderModifier", {}).get("requestHeaderModifier", {}).get("remove", [])
            )
            prefix = match["path"]["value"]
            uri = {"prefix": "/"} if prefix == "/" else {"path_separated_prefix": prefix}
            route = _route(uri, way["name"], removed)
            if checked and (_kinds(found, "SecurityPolicy") or "ExternalAuth" in steps):
                on = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {}}
                route["typed_per_filter_config"] = {checked: on}
            routes.append((len(prefix), route))
    return [route for _, route in sorted(routes, key=lambda item: -item[0])]


def _mapping_routes(found: Sequence[Json]) -> list[Json]:
    routes = []
    for mapping in _kinds(found, "Mapping"):
        spec = mapping["spec"]
        how = "path" if spec.get("prefix_exact") else "prefix"
        route = _route(
            {how: spec["prefix"]}, _cluster(spec["service"]), spec.get("remove_request_headers", [])
        )
        if spec.get("bypass_auth"):
            off = {"@type": f"{_TYPE}http.ext_authz.v3.ExtAuthzPerRoute", "disabled": True}
            route["typed_per_filter_config"] = {_EXT_AUTHZ: off}
        routes.append(route)
    return routes


def _route(match: Json, cluster: str, removed: Sequence[str]) -> Json:
    return {"match": match, "route": {"cluster": cluster}, "request_headers_to_remove": list(removed)}


TO_THE_APPLICATION = _route({"prefix": "/"}, "app", ())

# --- whole configurations -----------------------------------------------------------------------

_ISTIO = {"normalize_path": True, "merge_slashes": True}
_ENVOY_GATEWAY = {
    "normalize_path": True,
    "merge_slashes": True,
    "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT",
    "common_http_protocol_options": {"headers_with_underscores_action": "REJECT_REQUEST"},
}
_EMISSARY = {"normalize_path": True}


def istio(places: Places) -> Json:
    """The ingress gateway of deploy/istio/authservice.yaml."""
    found = documents("istio/authservice.yaml", places.host)
    (policy,) = _kinds(found, "AuthorizationPolicy")
    filters = _istio_filters(policy, _istio_check("istio/mesh-config.yaml", places))
    return _config(places, filters, _virtual_service_routes(found), _ISTIO, places.host)


def ambient(places: Places) -> Json:
    """The Gateway of deploy/istio/ambient.yaml."""
    found = documents("istio/ambient.yaml", places.host)
    (policy,) = [one for one in _kinds(found, "AuthorizationPolicy") if one["spec"]["action"] == "CUSTOM"]
    filters = _istio_filters(policy, _istio_check("istio/mesh-config.yaml", places))
    return _config(places, filters, _http_routes(found, ""), _ISTIO, places.host)


def kubeflow(places: Places) -> Json:
    """Kubeflow's ingress gateway with deploy/kubeflow; the application is one of Kubeflow's own routes."""
    found = documents("kubeflow/istio.yaml", places.host)
    (policy,) = _kinds(found, "AuthorizationPolicy")
    filters = _istio_filters(policy, _istio_check("kubeflow/mesh-config.yaml", places))
    routes = [*_virtual_service_routes(found), TO_THE_APPLICATION]
    return _config(places, filters, routes, _ISTIO, "*")


def envoy_gateway(places: Places) -> Json:
    """The Gateway of deploy/envoy-gateway: a filter that is off, and on again on each route."""
    found = documents("envoy-gateway/authservice.yaml", places.host)
    (policy,) = _kinds(found, "SecurityPolicy")
    told = policy["spec"]["extAuth"]
    check = _gateway_check(
        told["headersToExtAuth"], told["http"]["headersToBackend"], fail_open=told["failOpen"]
    )
    name = f"{_EXT_AUTHZ}/securitypolicy/gateways/authservice"
    filters = [{"name": name, "disabled": True, "typed_config": check}]
    return _config(places, filters, _http_routes(found, name), _ENVOY_GATEWAY, places.host)


def gateway_api(places: Places) -> Json:
    """The routes of deploy/gateway-api behind an Envoy."""
    found = documents("gateway-api/authservice.yaml", places.host)
    (rule,) = next(one for one in _kinds(found, "HTTPRoute") if one["metadata"]["name"] == "app")["spec"][
        "rules"
    ]
    told = rule["filters"][0]["externalAuth"]["http"]
    check = _gateway_check(told["allowedHeaders"], told["allowedResponseHeaders"], fail_open=False)
    name = f"{_EXT_AUTHZ}/httproute/default/app"
    filters = [{"name": name, "disabled": True, "typed_config": check}]
    return _config(places, filters, _http_routes(found, name), _ISTIO, places.host)


def emissary(places: Places) -> Json:
    """Emissary with deploy/ambassador; the application has a Mapping of its own."""
    found = documents("ambassador/authservice.yaml", places.host)
    (auth,) = _kinds(found, "AuthService")
    filters = [{"name": _EXT_AUTHZ, "typed_config": _emissary_check(auth["spec"])}]
    routes = [*_mapping_routes(found), TO_THE_APPLICATION]
    return _config(places, filters, routes, _EMISSARY, "*")


def _config(
    places: Places, filters: Sequence[Json], routes: Sequence[Json], manager: Mapping[str, Any], host: str
) -> Json:
    """A listener with these filters, and the clusters of the Services."""
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{_TYPE}http.router.v3.Router"},
    }
    connection_manager = {
        "@type": f"{_TYPE}network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "people",
        "use_remote_address": True,
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        **manager,
        "http_filters": [*filters, router],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": [host], "routes": list(routes)}]},
    }
    chain = {
        "filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": connection_manager}
        ]
    }
    services = {"authservice": places.judge, "authservice-site": places.site, "app": places.application}
    return {
        "static_resources": {
            "listeners": [{"name": "people", "address": _address(places.listen), "filter_chains": [chain]}],
            "clusters": [_upstream(name, port) for name, port in services.items()],
        }
    }


def _upstream(name: str, port: int) -> Json:
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(port)}}]}],
        },
    }


def _address(port: int) -> Json:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
