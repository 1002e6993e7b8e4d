"""The pages of the gateways in Kubernetes, of Kubernetes itself, Kubeflow, one machine and containers: what
they tell people to copy is there and valid."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from authservice.settings.table import ROWS
from tests import kustomize

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "gateways"
PAGES = (
    "istio", "envoy-gateway", "ambassador", "ingress-nginx", "kubernetes", "kubeflow", "vm", "docker"
)  # fmt: skip


def text_of(page: str) -> str:
    return (FOLDER / f"{page}.md").read_text()


def blocks(page: str, language: str) -> list[str]:
    """The blocks of one language, without the indentation that they have in lists."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text_of(page), re.M | re.S)
    return ["".join(line.removeprefix(indent) for line in text.splitlines(True)) for indent, text in found]


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page: str) -> None:
    named = set(re.findall(r"(?<![\w/.])deploy/[\w./-]*\w", text_of(page)))
    assert named or page == "kubernetes"
    # The one is put there by whoever follows the page, the other is kubectl's way to name a Deployment.
    made = {"deploy/docker/client-secret", "deploy/authservice"}
    assert [path for path in named - made if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_settings_that_a_page_names_exist(page: str) -> None:
    known = {row.name for row in ROWS} | {f"{row.name}_FILE" for row in ROWS if row.secret}
    named = set(re.findall(r"`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)(?:[=:][^`]*)?`", text_of(page)))
    assert named - known - {"CUSTOM", "MERGE_SLASHES", "NAME_FILE"} == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_page_says_what_to_do_and_what_may_go_wrong(page: str) -> None:
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.M)
    assert headings[0].startswith("AuthService ")
    assert "Set it up" in headings


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_of_well_formed_shell(page: str) -> None:
    for block in blocks(page, "sh"):
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_yaml_is_well_formed(page: str) -> None:
    for block in blocks(page, "yaml"):
        assert yaml.safe_load(block)


def overlay_of_the_page(folder: Path) -> list[dict[str, Any]]:
    """The overlay that the page about Kubernetes shows, with its patches for others that may call."""
    example, *more = blocks("kubernetes", "yaml")
    about = yaml.safe_load(example)
    for further in more:
        about["patches"] += yaml.safe_load(further)["patches"]
    folder.mkdir()
    (folder / "authservice").symlink_to(ROOT)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(about))
    return kustomize.build(folder)


def test_the_overlay_that_the_page_shows_can_be_built(tmp_path: Path) -> None:
    found = overlay_of_the_page(tmp_path / "mine")
    for document in found:
        kubernetes_validate.validate(document, "1.37", strict=True)
    by_kind = {document["kind"]: document for document in found}
    (container,) = by_kind["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.my-company.example/authservice:0.1.0"
    assert by_kind["ConfigMap"]["data"]["OIDC_PROVIDER"] == "https://login.my-company.example"
    gateway, prometheus = by_kind["NetworkPolicy"]["spec"]["ingress"]
    (peer,) = gateway["from"]
    assert peer["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "ingress-nginx"}}
    opened = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert [opened[port["port"]] for port in prometheus["ports"]] == [8081]
    assert "READINESS_PROBE_PORT=8081" in (ROOT / "deploy/Dockerfile").read_text()


@pytest.mark.external
def test_kubectl_builds_the_overlay_that_the_page_shows(tmp_path: Path) -> None:
    def by_name(documents: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
        return {(one["kind"], one["metadata"]["name"]): one for one in documents}

    ours = overlay_of_the_page(tmp_path / "mine")
    assert by_name(kustomize.by_kubectl(tmp_path / "mine")) == by_name(ours)
