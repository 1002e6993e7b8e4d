"""The files for gateways that do not run here, held against the schemas of their APIs, and against each
other: all send what Envoy's file sends, take over what it takes over, and leave nothing open."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from authservice.settings import examine
from tests import kustomize, resource_schemas
from tests.resource_schemas import (
    ANNOTATIONS,
    COMPOSE,
    CONTROLLER,
    SPECS,
    problems,
    problems_of,
)

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
IDENTITY = {"kubeflow-userid", "kubeflow-groups", "auth-method"}
FILES = (
    "istio/mesh-config.yaml",
    "istio/authservice.yaml",
    "istio/sidecar.yaml",
    "istio/ambient.yaml",
    "kubeflow/istio.yaml",
    "kubeflow/mesh-config.yaml",
    "envoy-gateway/authservice.yaml",
    "gateway-api/authservice.yaml",
    "ambassador/authservice.yaml",
    "traefik/kubernetes/authservice.yaml",
)
ISTIO, ROUTES = "istio/authservice.yaml", "gateway-api/authservice.yaml"
DOCUMENTS = [(file, document) for file in FILES for document in kustomize.read(DEPLOY / file)]


def of_kind(file: str, kind: str) -> list[dict[str, Any]]:
    return [document for name, document in DOCUMENTS if (name, document["kind"]) == (file, kind)]


def one(file: str, kind: str, name: str = "") -> dict[str, Any]:
    (found,) = [
        document for document in of_kind(file, kind) if not name or document["metadata"]["name"] == name
    ]
    return found


# --- valid --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [document for _, document in DOCUMENTS],
    ids=[
        f"{file}-{document['kind']}-{document.get('metadata', {}).get('name')}"
        for file, document in DOCUMENTS
    ],
)
def test_the_schema_of_its_api_accepts_it(document: dict[str, Any]) -> None:
    assert problems_of(document) == []


def test_every_schema_is_used_and_closed() -> None:
    shown = resource_schemas.resources_of("gateways/istio")
    used = {f"{one['apiVersion']}/{one['kind']}" for one in (*(document for _, document in DOCUMENTS), *shown)}
    assert used == set(SPECS)
    for schema in (*SPECS.values(), ANNOTATIONS, CONTROLLER, COMPOSE):
        for part in resource_schemas.objects(schema):
            assert part.get("additionalProperties") is False, part


def mappings(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from mappings(value)
    elif isinstance(node, list):
        for value in node:
            yield from mappings(value)


FREE = {"matchLabels"}
"""Where any name may stand."""


@pytest.mark.parametrize("file", FILES)
def test_a_misspelt_field_anywhere_is_found(file: str) -> None:
    for document in kustomize.read(DEPLOY / file):
        free = [id(place[name]) for place in mappings(document) for name in FREE & set(place)]
        for number, place in enumerate(mappings(document)):
            if id(place) in free:
                continue
            broken = copy.deepcopy(document)
            list(mappings(broken))[number]["mispelt"] = "x"
            assert problems_of(broken), place


@pytest.mark.parametrize(
    ("file", "kind", "way", "value"),
    [
        (ISTIO, "AuthorizationPolicy", ("rules", 0, "from"), [{"source": {"principals": ["*"]}}]),
        (ISTIO, "AuthorizationPolicy", ("rules", 0, "when"), [{"key": "request.auth.claims[a]"}]),
        (ISTIO, "AuthorizationPolicy", ("provider",), None),
        (ISTIO, "AuthorizationPolicy", ("targetRef",), {"kind": "Gateway", "name": "web"}),
        ("istio/sidecar.yaml", "AuthorizationPolicy", ("provider",), {"name": "authservice"}),
        ("envoy-gateway/authservice.yaml", "SecurityPolicy", ("extAuth", "http"), None),
        (ROUTES, "HTTPRoute", ("rules", 0, "filters", 0, "externalAuth", "protocol"), "GRPC"),
        (ROUTES, "HTTPRoute", ("rules", 0, "filters", 0, "type"), "RequestMirror"),
        ("ambassador/authservice.yaml", "AuthService", ("status_on_error",), "503"),
    ],
)  # fmt: skip
def test_what_the_apis_refuse_is_refused(file: str, kind: str, way: tuple[Any, ...], value: Any) -> None:
    broken = copy.deepcopy(of_kind(file, kind)[0])
    *path, last = way
    place = broken["spec"]
    for part in path:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    assert problems_of(broken)


# --- what is sent and taken over ----------------------------------------------------------------


def sent_by_envoy() -> set[str]:
    (config,) = kustomize.read(DEPLOY / "envoy/envoy.yaml")
    authz = next(
        place for place in mappings(config) if str(place.get("@type", "")).endswith("ext_authz.v3.ExtAuthz")
    )
    return {
        matcher.get("exact") or matcher["prefix"] + "*" for matcher in authz["allowed_headers"]["patterns"]
    }


def assert_sends_what_envoy_sends(names: list[str]) -> None:
    """By exact names, of which those that Envoy takes by prefix are spelt out."""
    assert not any("*" in name for name in names)
    for name in sent_by_envoy():
        begins = name.rstrip("*")
        assert name in names or (name != begins and any(sent.startswith(begins) for sent in names)), name


def check_of(file: str) -> tuple[dict[str, Any], list[str], list[str]]:
    """Of a file: the service that is asked, the headers that are sent, and those that are taken over."""
    if file.startswith("envoy-gateway"):
        auth = one(file, "SecurityPolicy")["spec"]["extAuth"]
        assert auth["failOpen"] is False
        (asked,) = auth["http"]["backendRefs"]
        return asked, auth["headersToExtAuth"], auth["http"]["headersToBackend"]
    (step,) = one(file, "HTTPRoute", "app")["spec"]["rules"][0]["filters"]
    auth = step["externalAuth"]
    return auth["backendRef"], auth["http"]["allowedHeaders"], auth["http"]["allowedResponseHeaders"]


WITH_ROUTES = ("envoy-gateway/authservice.yaml", "gateway-api/authservice.yaml", "istio/ambient.yaml")


@pytest.mark.parametrize("file", WITH_ROUTES[:2])
def test_the_check_asks_the_judge_sends_what_envoy_sends_and_takes_the_identity_over(file: str) -> None:
    asked, sent, taken = check_of(file)
    assert asked == {"name": "authservice", "namespace": "auth", "port": 8080}
    assert_sends_what_envoy_sends(sent)
    assert set(taken) == IDENTITY


@pytest.mark.parametrize("file", WITH_ROUTES[:2])
def test_the_service_lets_itself_be_asked_from_another_namespace(file: str) -> None:
    grant = one(file, "ReferenceGrant")
    asking = (
        one(file, "SecurityPolicy") if file.startswith("envoy-gateway") else one(file, "HTTPRoute", "app")
    )
    assert grant["metadata"]["namespace"] == check_of(file)[0]["namespace"]
    assert grant["spec"] == {
        "from": [
            {
                "group": asking["apiVersion"].partition("/")[0],
                "kind": asking["kind"],
                "namespace": asking["metadata"]["namespace"],
            }
        ],
        "to": [{"group": "", "kind": "Service", "name": "authservice"}],
    }


@pytest.mark.parametrize("file", WITH_ROUTES)
def test_people_reach_the_site_below_the_prefix_of_the_applications_host(file: str) -> None:
    site, app = one(file, "HTTPRoute", "authservice"), one(file, "HTTPRoute", "app")
    assert site["spec"]["hostnames"] == app["spec"]["hostnames"]
    assert site["spec"]["parentRefs"] == app["spec"]["parentRefs"]
    (rule,) = site["spec"]["rules"]
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/authservice"}}]
    assert rule["backendRefs"] == [{"name": "authservice-site", "port": 8082}]
    # Its Service is in its own namespace, so no further grant is needed.
    assert site["metadata"]["namespace"] == "auth"


def test_what_is_not_checked_loses_the_clients_own_identity_headers() -> None:
    (rule,) = one("gateway-api/authservice.yaml", "HTTPRoute", "authservice")["spec"]["rules"]
    (step,) = rule["filters"]
    assert set(step["requestHeaderModifier"]["remove"]) == IDENTITY


@pytest.mark.parametrize("file", ["envoy-gateway/authservice.yaml", "istio/ambient.yaml"])
def test_the_whole_gateway_is_checked(file: str) -> None:
    gateway = one(file, "Gateway")
    kind = "SecurityPolicy" if file.startswith("envoy-gateway") else "AuthorizationPolicy"
    name = "authservice"
    policy = one(file, kind, name)
    assert policy["metadata"]["namespace"] == gateway["metadata"]["namespace"]
    assert policy["spec"]["targetRefs"] == [
        {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": gateway["metadata"]["name"]}
    ]
    if kind == "AuthorizationPolicy":
        assert (policy["spec"]["action"], policy["spec"]["rules"]) == ("CUSTOM", [{}])
        (mesh,) = kustomize.read(DEPLOY / "istio/mesh-config.yaml")
        assert (
            policy["spec"]["provider"]["name"] == mesh["spec"]["meshConfig"]["extensionProviders"][0]["name"]
        )


def test_applications_in_a_mesh_take_requests_from_the_gateway_alone() -> None:
    ingress = "cluster.local/ns/istio-system/sa/istio-ingressgateway-service-account"
    gateway = one("istio/ambient.yaml", "Gateway")
    account = f"{gateway['metadata']['name']}-{gateway['spec']['gatewayClassName']}"
    for file, principal in (
        ("istio/sidecar.yaml", ingress),
        ("istio/ambient.yaml", f"cluster.local/ns/{gateway['metadata']['namespace']}/sa/{account}"),
    ):
        policy = one(file, "AuthorizationPolicy", "from-the-gateway")
        assert policy["spec"] == {
            "action": "ALLOW", "rules": [{"from": [{"source": {"principals": [principal]}}]}]
        }  # fmt: skip
    assert one("istio/sidecar.yaml", "PeerAuthentication")["spec"]["mtls"]["mode"] == "STRICT"


def test_kubeflows_mesh_asks_as_every_mesh_does_and_about_everything() -> None:
    (kubeflow,), (istio,) = (
        kustomize.read(DEPLOY / f"{name}/mesh-config.yaml") for name in ("kubeflow", "istio")
    )
    ours = kubeflow["spec"]["meshConfig"]["extensionProviders"][0]["envoyExtAuthzHttp"]
    theirs = istio["spec"]["meshConfig"]["extensionProviders"][0]["envoyExtAuthzHttp"]
    assert ours == {**theirs, "service": "authservice.istio-system.svc.cluster.local"}
    assert one("kubeflow/istio.yaml", "AuthorizationPolicy")["spec"] == {
        "selector": {"matchLabels": {"app": "istio-ingressgateway"}},
        "action": "CUSTOM",
        "provider": {"name": "authservice"},
        "rules": [{}],
    }


# --- Traefik in Kubernetes ----------------------------------------------------------------------


def test_traefik_asks_in_kubernetes_as_it_does_on_one_machine() -> None:
    (dynamic,) = kustomize.read(DEPLOY / "traefik/dynamic.yml")
    local = dict(dynamic["http"]["middlewares"]["auth"]["forwardAuth"])
    there = dict(one("traefik/kubernetes/authservice.yaml", "Middleware")["spec"]["forwardAuth"])
    for asked, host in ((local, "127.0.0.1"), (there, "authservice.auth.svc.cluster.local")):
        assert asked.pop("address") == f"http://{host}:8080/authservice/forward-auth"
    assert there == local


def test_traefiks_routes_are_checked_but_the_services_own() -> None:
    file = "traefik/kubernetes/authservice.yaml"
    middleware = one(file, "Middleware")["metadata"]
    app, site = one(file, "IngressRoute", "app"), one(file, "IngressRoute", "authservice")
    # A Middleware of another namespace is only found where Traefik is told to look there.
    assert app["metadata"]["namespace"] == middleware["namespace"]
    assert [route["middlewares"] for route in app["spec"]["routes"]] == [[{"name": middleware["name"]}]]
    (route,) = site["spec"]["routes"]
    assert route["match"].endswith("(Path(`/authservice`) || PathPrefix(`/authservice/`))")
    assert route["services"] == [{"name": "authservice-site", "port": 8082}]


# --- ingress-nginx ------------------------------------------------------------------------------

INGRESSES = kustomize.read(DEPLOY / "ingress-nginx/ingress.yaml")
(CONTROLLERS_OWN,) = kustomize.read(DEPLOY / "ingress-nginx/controller.yaml")


@pytest.mark.parametrize("version", ["1.27", "1.37"])
@pytest.mark.parametrize(
    "document", [*INGRESSES, CONTROLLERS_OWN], ids=lambda document: document["metadata"]["name"]
)
def test_the_api_accepts_ingresses_and_settings(document: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def test_the_controller_knows_the_annotations_and_settings() -> None:
    for document in INGRESSES:
        assert problems(document["metadata"]["annotations"], ANNOTATIONS) == []
    assert problems(CONTROLLERS_OWN["data"], CONTROLLER) == []
    assert problems({"nginx.ingress.kubernetes.io/auth-ulr": "http://x/"}, ANNOTATIONS)
    assert problems({"enable-underscores": "false"}, CONTROLLER)


def test_the_ingress_asks_the_judge_and_leads_to_the_login_on_the_site() -> None:
    app, site = INGRESSES
    told = {name.partition("/")[2]: value for name, value in app["metadata"]["annotations"].items()}
    assert told == {
        "auth-url": "http://authservice.auth.svc.cluster.local:8080/authservice/verify",
        "auth-signin": "https://$host/authservice/login?rd=$escaped_request_uri",
        "auth-response-headers": "kubeflow-userid,kubeflow-groups,Auth-Method",
        "proxy-buffer-size": "32k",
        "proxy-body-size": "16m",
    }
    assert [rule["host"] for rule in app["spec"]["rules"]] == [rule["host"] for rule in site["spec"]["rules"]]
    (path,) = site["spec"]["rules"][0]["http"]["paths"]
    # By elements, not by letters: /authservices is not meant.
    assert (path["path"], path["pathType"]) == ("/authservice", "Prefix")
    assert path["backend"]["service"] == {"name": "authservice-site", "port": {"number": 8082}}
    assert not any("auth-url" in name for name in site["metadata"]["annotations"])


# --- Docker -------------------------------------------------------------------------------------


def test_the_composition_is_valid_and_of_files_that_exist() -> None:
    path = DEPLOY / "docker/compose.yaml"
    compose = yaml.safe_load(path.read_text())
    assert problems(compose, COMPOSE) == []
    service = compose["services"]["authservice"]
    assert problems({**compose, "services": {"authservice": {**service, "privileged": True}}}, COMPOSE)
    assert (path.parent / service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]).is_file()
    assert (path.parent / service["env_file"]).is_file()
    assert {volume.split(":")[0] for volume in service["volumes"]} == set(compose["volumes"])
    assert set(service["secrets"]) == set(compose["secrets"])


def test_the_container_is_confined_and_its_settings_are_a_start_without_problems(tmp_path: Path) -> None:
    service = yaml.safe_load((DEPLOY / "docker/compose.yaml").read_text())["services"]["authservice"]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["volumes"] == ["sessions:/var/lib/authservice"]
    (secret,) = service["secrets"]
    assert service["environment"]["CLIENT_SECRET_FILE"] == f"/run/secrets/{secret}"
    lines = (DEPLOY / "docker" / service["env_file"]).read_text().splitlines()
    environ = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    (tmp_path / secret).write_text("of-a-file-of-its-own\n")
    found = examine({**environ, "CLIENT_SECRET_FILE": str(tmp_path / secret)})
    assert (list(found.problems), list(found.warnings)) == ([], [])
    assert found.settings is not None and found.settings.server_hostname == "127.0.0.1"
