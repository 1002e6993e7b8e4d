"""The manifests under deploy/kubernetes/: valid by the API's own schemas, at home in a namespace that
demands the restricted Pod Security Standard, and in agreement with the service, its image and Istio."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
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
from tests.conftest import ask
from tests.tokenreview import FakeCluster

pytestmark = pytest.mark.slow  # real processes, or real time limits

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "deploy" / "kubernetes"
VERSIONS = ("1.27", "1.37")
"""The oldest and the newest cluster that the manifests are for."""


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


KUSTOMIZATION = documents("kustomization.yaml")[0]
DEPLOYED = [document for name in KUSTOMIZATION["resources"] for document in documents(name)]
(SECRET,) = documents("secret.example.yaml")


def the(kind: str) -> dict[str, Any]:
    (found,) = [document for document in DEPLOYED if document["kind"] == kind]
    return found


POD = the("Deployment")["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]


def named(document: Mapping[str, Any]) -> str:
    return f"{document['kind']}-{document['metadata']['name']}"


# --- valid --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", [*DEPLOYED, SECRET], ids=named)
def test_the_schemas_of_the_api_accept_it(document: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_would_find_a_misspelt_member() -> None:
    broken = copy.deepcopy(the("Deployment"))
    broken["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


def test_everything_in_the_folder_is_deployed_but_the_example_of_a_secret() -> None:
    assert (KUSTOMIZATION["apiVersion"], KUSTOMIZATION["kind"]) == (
        "kustomize.config.k8s.io/v1beta1", "Kustomization"
    )  # fmt: skip
    files = {path.name for path in FOLDER.iterdir()}
    assert files - set(KUSTOMIZATION["resources"]) == {"kustomization.yaml", "secret.example.yaml"}
    (image,) = KUSTOMIZATION["images"]
    assert image["name"] == CONTAINER["image"]
    assert image["newTag"] == authservice.__version__
    assert "Secret" not in {document["kind"] for document in DEPLOYED}


# --- confined -----------------------------------------------------------------------------------


def test_the_pod_meets_the_restricted_standard_that_its_namespace_demands() -> None:
    """Every control of the Pod Security Standards' profile «restricted»."""
    assert the("Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    spec, pod, container = POD["spec"], POD["spec"]["securityContext"], CONTAINER["securityContext"]
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
    assert not any("hostPort" in port for port in CONTAINER["ports"])
    assert CONTAINER["resources"]["limits"]["memory"]


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


# --- of one piece -------------------------------------------------------------------------------


def test_everything_is_in_one_namespace_and_about_the_same_pods() -> None:
    namespace = the("Namespace")["metadata"]["name"]
    assert KUSTOMIZATION["namespace"] == namespace
    without = {"Namespace", "ClusterRoleBinding"}
    for document in [*DEPLOYED, SECRET]:
        assert document["metadata"].get("namespace") == (
            None if document["kind"] in without else namespace
        ), named(document)
    labels = POD["metadata"]["labels"].items()
    for selector in (
        the("Deployment")["spec"]["selector"]["matchLabels"],
        the("Service")["spec"]["selector"],
        the("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        the("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector and selector.items() <= labels


def test_the_pods_account_may_review_tokens_and_nothing_else() -> None:
    account, binding = the("ServiceAccount"), the("ClusterRoleBinding")
    assert binding["roleRef"] == {
        "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:auth-delegator"
    }  # fmt: skip
    (subject,) = binding["subjects"]
    assert (subject["kind"], subject["name"], subject["namespace"]) == (
        "ServiceAccount", account["metadata"]["name"], account["metadata"]["namespace"]
    )  # fmt: skip
    assert POD["spec"]["serviceAccountName"] == account["metadata"]["name"]
    assert POD["spec"]["automountServiceAccountToken"] is True
    assert account["automountServiceAccountToken"] is False


def test_the_service_is_the_one_that_istio_asks_also_before_it_is_ready() -> None:
    service = the("Service")
    meta = service["metadata"]
    (mesh,) = yaml.safe_load_all((ROOT / "deploy/istio/mesh-config.yaml").read_text())
    (provider,) = mesh["spec"]["meshConfig"]["extensionProviders"]
    asked = provider["envoyExtAuthzHttp"]
    ports = {port["port"]: port["targetPort"] for port in service["spec"]["ports"]}
    assert asked["service"] == f"{meta['name']}.{meta['namespace']}.svc.cluster.local"
    assert ports == {asked["port"]: "judge", 8082: "site"}
    assert service["spec"]["publishNotReadyAddresses"] is True
    # Istio takes the protocol from the port's name.
    assert all(port["name"].startswith("http-") for port in service["spec"]["ports"])


def test_a_volume_for_one_pod_is_not_waited_for_by_the_next() -> None:
    (claim,) = [volume for volume in POD["spec"]["volumes"] if "persistentVolumeClaim" in volume]
    assert claim["persistentVolumeClaim"]["claimName"] == the("PersistentVolumeClaim")["metadata"]["name"]
    assert the("PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteOnce"]
    deployment = the("Deployment")["spec"]
    assert (deployment["replicas"], deployment["strategy"]["type"]) == (1, "Recreate")
    # With one pod, minAvailable: 1 would keep its node from ever being drained.
    assert the("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


# --- with the service ---------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What the pod's service reads, with the pod's mounts moved below ``tmp_path``."""
    environ = dict(the("ConfigMap")["data"])
    assert all(isinstance(value, str) for value in environ.values())
    for mount in CONTAINER["volumeMounts"]:
        inside = tmp_path / mount["mountPath"].lstrip("/")
        inside.mkdir(parents=True)
        if mount["name"] == "secrets":
            for name, value in SECRET["stringData"].items():
                (inside / name).write_text(value)
        environ = {name: value.replace(mount["mountPath"], str(inside)) for name, value in environ.items()}
    with FakeCluster() as fake:
        monkeypatch.setattr(cluster_module, "MOUNTED", fake.mount(tmp_path))
        return load({**environ, **fake.environ()})


def test_the_settings_are_a_start_without_problems(settings: Settings, tmp_path: Path) -> None:
    assert (settings.warnings, startup.problems(settings), startup.warnings(settings)) == ((), (), ())
    assert settings.client_secret.reveal() == SECRET["stringData"]["client-secret"]
    assert settings.session_store_path.is_relative_to(tmp_path / "var/lib/authservice")
    assert settings.kubernetes_authn_enabled is True


def test_the_envFrom_and_the_volumes_name_what_is_there() -> None:
    assert CONTAINER["envFrom"] == [{"configMapRef": {"name": the("ConfigMap")["metadata"]["name"]}}]
    (secret,) = [volume["secret"] for volume in POD["spec"]["volumes"] if "secret" in volume]
    assert secret["secretName"] == SECRET["metadata"]["name"]
    assert secret["defaultMode"] == 0o440
    assert {volume["name"] for volume in POD["spec"]["volumes"]} == {
        mount["name"] for mount in CONTAINER["volumeMounts"]
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


def test_the_secret_is_no_variable() -> None:
    assert "CLIENT_SECRET" not in the("ConfigMap")["data"]
    assert "env" not in CONTAINER
