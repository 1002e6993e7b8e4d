"""The manifests under deploy/kubernetes/ and deploy/kubeflow/, put together as kustomize does: valid by the
API's own schemas, at home in a namespace that demands the restricted Pod Security Standard, and in agreement
with the service, its image and the gateways."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from flask import Flask

import authservice
from authservice import startup
from authservice.kubernetes import cluster as cluster_module
from authservice.settings import Settings, load
from tests import kustomize
from tests.conftest import ask
from tests.tokenreview import FakeCluster

pytestmark = pytest.mark.slow  # real processes, or real time limits

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "deploy" / "kubernetes"
VERSIONS = ("1.27", "1.37")
"""The oldest and the newest cluster that the manifests are for."""


def documents(name: str) -> list[dict[str, Any]]:
    return kustomize.read(FOLDER / "base" / name)


OVERLAYS = {
    name: kustomize.build(ROOT / "deploy" / name)
    for name in ("kubernetes/volume", "kubernetes/redis", "kubeflow")
}
DEPLOYED = OVERLAYS["kubernetes/volume"]
IN_ALL = [(name, document) for name, found in OVERLAYS.items() for document in found]
THE_APIS_OWN = [(name, document) for name, document in IN_ALL if "istio.io/" not in document["apiVersion"]]
(SECRET,) = documents("secret.example.yaml")
(APPLICATION,) = kustomize.read(FOLDER / "application.yaml")


def the(kind: str, among: Sequence[dict[str, Any]] = DEPLOYED, name: str = "authservice") -> dict[str, Any]:
    reviews = dict.fromkeys(("ClusterRole", "ClusterRoleBinding"), "authservice-reviews-tokens")
    wanted = {**reviews, "Namespace": "auth"}.get(kind, name)
    (found,) = [
        document for document in among if (document["kind"], document["metadata"]["name"]) == (kind, wanted)
    ]
    return found


def pod_of(overlay: str) -> dict[str, Any]:
    template: dict[str, Any] = the("Deployment", OVERLAYS[overlay])["spec"]["template"]
    return template


POD = pod_of("kubernetes/volume")
(CONTAINER,) = POD["spec"]["containers"]


def named(document: Mapping[str, Any]) -> str:
    return f"{document['kind']}-{document['metadata']['name']}"


# --- valid --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "document",
    [*(document for _, document in THE_APIS_OWN), SECRET, APPLICATION],
    ids=[*(f"{overlay}-{named(document)}" for overlay, document in THE_APIS_OWN), "secret", "application"],
)
def test_the_schemas_of_the_api_accept_it(document: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.external
@pytest.mark.parametrize("overlay", [*OVERLAYS, "kubernetes/base"])
def test_kubectl_puts_the_same_together(overlay: str) -> None:
    folder = ROOT / "deploy" / overlay

    def sorted_by_name(documents: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(documents, key=named)

    assert sorted_by_name(kustomize.by_kubectl(folder)) == sorted_by_name(kustomize.build(folder))


def test_the_schemas_would_find_a_misspelt_member() -> None:
    broken = copy.deepcopy(the("Deployment"))
    broken["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


def test_everything_in_the_folders_is_deployed_but_the_example_of_a_secret() -> None:
    for folder in (FOLDER / "base", FOLDER / "volume", FOLDER / "redis", ROOT / "deploy/kubeflow"):
        (about,) = kustomize.read(folder / "kustomization.yaml")
        rest = {path.name for path in folder.iterdir()} - set(about["resources"]) - {"kustomization.yaml"}
        assert rest <= {"secret.example.yaml", "mesh-config.yaml"}
    assert {path.name for path in FOLDER.iterdir()} == {"base", "volume", "redis", "application.yaml"}
    for _, document in IN_ALL:
        assert document["kind"] != "Secret"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_image_is_of_this_version(overlay: str) -> None:
    (container,) = pod_of(overlay)["spec"]["containers"]
    assert container["image"] == f"registry.example.com/authservice:{authservice.__version__}"


# --- confined -----------------------------------------------------------------------------------


def test_its_namespace_demands_the_restricted_standard() -> None:
    for overlay in ("kubernetes/volume", "kubernetes/redis"):
        namespace = the("Namespace", OVERLAYS[overlay])
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_pod_meets_the_restricted_standard(overlay: str) -> None:
    """Every control of the Pod Security Standards' profile «restricted»."""
    spec = pod_of(overlay)["spec"]
    (of_container,) = spec["containers"]
    pod, container = spec["securityContext"], of_container["securityContext"]
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"} & set(spec)
    assert {kind for volume in spec["volumes"] for kind in volume if kind != "name"} <= {
        "persistentVolumeClaim", "secret", "emptyDir", "projected", "configMap"
    }  # fmt: skip
    assert pod["runAsNonRoot"] is True and pod["runAsUser"] > 0
    assert pod["seccompProfile"]["type"] == "RuntimeDefault"
    assert container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not any("hostPort" in port for port in of_container["ports"])
    assert of_container["resources"]["limits"]["memory"]


def test_the_pod_is_the_images_user_and_the_volume_its_groups() -> None:
    image = (ROOT / "deploy/Dockerfile").read_text()
    context = POD["spec"]["securityContext"]
    assert context["fsGroup"] == context["runAsGroup"] == 111
    assert re.findall(r"^USER (.+)$", image, re.M) == [f"{context['runAsUser']}:{context['runAsGroup']}"]


def test_only_the_gateway_reaches_it() -> None:
    policy = the("NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    (rule,) = policy["ingress"]
    (peer,) = rule["from"]
    policy_file = list(yaml.safe_load_all((ROOT / "deploy/istio/authservice.yaml").read_text()))[0]
    assert peer["podSelector"]["matchLabels"] == policy_file["spec"]["selector"]["matchLabels"]
    assert peer["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": policy_file["metadata"]["namespace"]
    }


def test_only_the_gateway_reaches_the_application() -> None:
    policy, ours = APPLICATION["spec"], the("NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert [rule["from"] for rule in policy["ingress"]] == [rule["from"] for rule in ours["ingress"]]
    routes = kustomize.read(ROOT / "deploy/ingress-nginx/ingress.yaml")
    assert APPLICATION["metadata"]["namespace"] == routes[0]["metadata"]["namespace"]


# --- of one piece -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overlay", "namespace"),
    [("kubernetes/volume", "auth"), ("kubernetes/redis", "auth"), ("kubeflow", "istio-system")],
)
def test_everything_is_in_one_namespace_and_about_the_same_pods(overlay: str, namespace: str) -> None:
    found = OVERLAYS[overlay]
    without = {"Namespace", "ClusterRole", "ClusterRoleBinding"}
    for document in found:
        assert document["metadata"].get("namespace") == (
            None if document["kind"] in without else namespace
        ), named(document)
    assert [document["metadata"]["name"] for document in found if document["kind"] == "Namespace"] == (
        [] if overlay == "kubeflow" else [namespace]
    )
    labels = pod_of(overlay)["metadata"]["labels"].items()
    for selector in (
        the("Deployment", found)["spec"]["selector"]["matchLabels"],
        the("Service", found)["spec"]["selector"],
        the("Service", found, "authservice-site")["spec"]["selector"],
        the("PodDisruptionBudget", found)["spec"]["selector"]["matchLabels"],
        the("NetworkPolicy", found)["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector and selector.items() <= labels


def test_the_pods_account_may_review_tokens_and_nothing_else() -> None:
    account, role, binding = the("ServiceAccount"), the("ClusterRole"), the("ClusterRoleBinding")
    assert role["rules"] == [
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}
    ]
    assert binding["roleRef"] == {
        "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role["metadata"]["name"]
    }  # fmt: skip
    (subject,) = binding["subjects"]
    assert (subject["kind"], subject["name"], subject["namespace"]) == (
        "ServiceAccount", account["metadata"]["name"], account["metadata"]["namespace"]
    )  # fmt: skip
    assert POD["spec"]["serviceAccountName"] == account["metadata"]["name"]
    assert POD["spec"]["automountServiceAccountToken"] is True
    assert account["automountServiceAccountToken"] is False


@pytest.mark.parametrize(
    ("overlay", "mesh"),
    [("kubernetes/volume", "istio"), ("kubernetes/redis", "istio"), ("kubeflow", "kubeflow")],
)
def test_the_services_are_those_that_istio_knows_also_before_they_are_ready(overlay: str, mesh: str) -> None:
    judge, site = (the("Service", OVERLAYS[overlay], name) for name in ("authservice", "authservice-site"))
    (config,) = kustomize.read(ROOT / "deploy" / mesh / "mesh-config.yaml")
    (provider,) = config["spec"]["meshConfig"]["extensionProviders"]
    asked = provider["envoyExtAuthzHttp"]
    file = {"istio": "istio/authservice.yaml", "kubeflow": "kubeflow/istio.yaml"}[mesh]
    routes = kustomize.read(ROOT / "deploy" / file)[-1]
    destination = routes["spec"]["http"][0]["route"][0]["destination"]
    for service, host, number, port in (
        (judge, asked["service"], asked["port"], "judge"),
        (site, destination["host"], destination["port"]["number"], "site"),
    ):
        meta = service["metadata"]
        assert host == f"{meta['name']}.{meta['namespace']}.svc.cluster.local"
        assert {one["port"]: one["targetPort"] for one in service["spec"]["ports"]} == {number: port}
        # Open paths are answered before provider and store are there: while the one pod is not ready, or by
        # pods that are ready without them.
        (container,) = pod_of(overlay)["spec"]["containers"]
        waits = container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        assert service["spec"].get("publishNotReadyAddresses", False) is waits
        # Istio takes the protocol from the port's name.
        assert all(one["name"].startswith("http-") for one in service["spec"]["ports"])


def test_a_volume_for_one_pod_is_not_waited_for_by_the_next() -> None:
    (claim,) = [volume for volume in POD["spec"]["volumes"] if "persistentVolumeClaim" in volume]
    assert claim["persistentVolumeClaim"]["claimName"] == the("PersistentVolumeClaim")["metadata"]["name"]
    assert the("PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteOnce"]
    deployment = the("Deployment")["spec"]
    assert (deployment["replicas"], deployment["strategy"]["type"]) == (1, "Recreate")
    # With one pod, minAvailable: 1 would keep its node from ever being drained.
    assert the("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_pods_that_share_a_redis_keep_nothing_and_are_replaced_without_a_gap() -> None:
    found = OVERLAYS["kubernetes/redis"]
    deployment = the("Deployment", found)["spec"]
    assert deployment["replicas"] > the("PodDisruptionBudget", found)["spec"]["maxUnavailable"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert [volume["name"] for volume in deployment["template"]["spec"]["volumes"]] == ["secrets"]
    assert not any(document["kind"] == "PersistentVolumeClaim" for document in found)


def test_no_pod_that_is_going_or_lost_is_asked_where_another_could_be() -> None:
    """A Service that publishes addresses which are not ready keeps those of pods at their end, too."""
    found = OVERLAYS["kubernetes/redis"]
    for name in ("authservice", "authservice-site"):
        assert "publishNotReadyAddresses" not in the("Service", found, name)["spec"]
    pod = pod_of("kubernetes/redis")["spec"]
    (container,) = pod["containers"]
    word, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert word == "sleep"  # which the image has
    server = (ROOT / "authservice/gunicorn_conf.py").read_text()
    (graceful,) = re.findall(r"^graceful_timeout = (\d+)$", server, re.M)
    assert int(seconds) + int(graceful) < pod["terminationGracePeriodSeconds"]


# --- with the service ---------------------------------------------------------------------------


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    """Each overlay in turn."""
    name: str = request.param
    return name


@pytest.fixture
def settings(overlay: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What the pod's service reads, with the pod's mounts moved below ``tmp_path``."""
    environ = dict(the("ConfigMap", OVERLAYS[overlay])["data"])
    assert all(isinstance(value, str) for value in environ.values())
    (container,) = pod_of(overlay)["spec"]["containers"]
    for mount in container["volumeMounts"]:
        inside = tmp_path / mount["mountPath"].lstrip("/")
        inside.mkdir(parents=True)
        if mount["name"] == "secrets":
            more = {"redis-password": "of-redis", "secret-keys": "k" * 32}
            for name, value in {**SECRET["stringData"], **more}.items():
                (inside / name).write_text(value)
        environ = {name: value.replace(mount["mountPath"], str(inside)) for name, value in environ.items()}
    with FakeCluster() as fake:
        monkeypatch.setattr(cluster_module, "MOUNTED", fake.mount(tmp_path))
        return load({**environ, **fake.environ()})


def test_the_settings_are_a_start_without_problems(overlay: str, settings: Settings, tmp_path: Path) -> None:
    assert (settings.warnings, startup.problems(settings), startup.warnings(settings)) == ((), (), ())
    assert settings.client_secret.reveal() == SECRET["stringData"]["client-secret"]
    assert settings.kubernetes_authn_enabled is True
    if overlay == "kubernetes/redis":
        assert settings.session_store_type == "redis"
        assert settings.session_store_redis_pwd.reveal() == "of-redis"
    else:
        assert settings.session_store_type == "filesystem"
        assert settings.session_store_path.is_relative_to(tmp_path / "var/lib/authservice")


def test_kubeflow_finds_its_headers_dex_and_the_callback_that_dex_knows() -> None:
    environ = dict(the("ConfigMap", OVERLAYS["kubeflow"])["data"])
    for file in ("CLIENT_SECRET_FILE", "SECRET_KEYS_FILE"):
        del environ[file]
    # The client secret of Kubeflow's own manifests is known to everybody.
    public = {"CLIENT_SECRET": "pUBnBOY80SnXgjibTYM9ZWNzY2xreNGQok"}
    settings = load({**environ, **public, "SECRET_KEYS": "k" * 32})
    assert settings.warnings == ()
    assert (settings.userid_header, settings.groups_header) == ("kubeflow-userid", "kubeflow-groups")
    assert settings.redirect_url == "/oauth2/callback"
    assert settings.skip_prefixes == ("/authservice", "/dex/")


def test_the_envFrom_and_the_volumes_name_what_is_there(overlay: str) -> None:
    spec = pod_of(overlay)["spec"]
    (container,) = spec["containers"]
    assert container["envFrom"] == [
        {"configMapRef": {"name": the("ConfigMap", OVERLAYS[overlay])["metadata"]["name"]}}
    ]
    (secret,) = [volume["secret"] for volume in spec["volumes"] if "secret" in volume]
    assert secret["secretName"] == SECRET["metadata"]["name"]
    assert secret["defaultMode"] == 0o440
    assert {volume["name"] for volume in spec["volumes"]} == {
        mount["name"] for mount in container["volumeMounts"]
    }


def test_the_ports_and_probes_are_the_services(settings: Settings, make_app: Callable[..., Flask]) -> None:
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {"judge": settings.server_port, "site": settings.web_server_port}
    app = make_app()
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        probe = CONTAINER[name]["httpGet"]
        answer = ask(app, "GET", probe["path"], port=ports[probe["port"]])
        assert answer.status in ((200, 503) if name == "readinessProbe" else (200,)), name
    assert POD["spec"]["terminationGracePeriodSeconds"] > 20  # gunicorn's own


def test_the_secret_is_no_variable(overlay: str) -> None:
    data = the("ConfigMap", OVERLAYS[overlay])["data"]
    assert not {"CLIENT_SECRET", "SESSION_STORE_REDIS_PWD"} & set(data)
    assert "env" not in pod_of(overlay)["spec"]["containers"][0]
