"""What ``kubectl kustomize`` makes of a folder, as far as the shipped overlays go: resources, patches,
a namespace, images. A feature that is not understood fails, and tests compare the two."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.programs import require

Document = dict[str, Any]

_WITHOUT_NAMESPACE = {"Namespace", "ClusterRole", "ClusterRoleBinding"}
_UNDERSTOOD = {"apiVersion", "kind", "namespace", "resources", "patches", "images"}


def read(path: Path) -> list[Document]:
    """The documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text()))


def build(folder: Path) -> list[Document]:
    """The resources that the kustomization in ``folder`` stands for, in no promised order."""
    (about,) = read(folder / "kustomization.yaml")
    assert (about["apiVersion"], about["kind"]) == ("kustomize.config.k8s.io/v1beta1", "Kustomization")
    assert set(about) <= _UNDERSTOOD, folder
    found: list[Document] = []
    for name in about["resources"]:
        place = folder / name
        found += build(place) if place.is_dir() else read(place)
    for patch in about.get("patches", []):
        found = _patched(found, patch)
    for document in found:
        _move(document, about["namespace"])
        _name_images(document, about.get("images", []))
    return found


def by_kubectl(folder: Path) -> list[Document]:
    """The same by kubectl itself."""
    command = [require("kubectl"), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def _patched(documents: list[Document], patch: Mapping[str, Any]) -> list[Document]:
    target, change = patch["target"], yaml.safe_load(patch["patch"])
    (chosen,) = [
        document for document in documents
        if (document["kind"], document["metadata"]["name"]) == (target["kind"], target["name"])
    ]  # fmt: skip
    if isinstance(change, dict):
        assert change.pop("$patch") == "delete" and change["kind"] == target["kind"]
        return [document for document in documents if document is not chosen]
    for operation in change:
        apply(chosen, operation)
    return documents


def apply(document: Document, operation: Mapping[str, Any]) -> None:
    """One operation of a JSON Patch (RFC 6902 §4); what it is about has to be there, or not, as it says."""
    *way, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    place: Any = document
    for part in way:
        place = place[int(part) if isinstance(place, list) else part]
    key: Any = int(last) if isinstance(place, list) and last != "-" else last
    match operation["op"]:
        case "test":
            assert place[key] == operation["value"], operation
        case "remove":
            del place[key]
        case "replace":
            assert place[key] is not None
            place[key] = copy.deepcopy(operation["value"])
        case "add" if isinstance(place, dict):
            place[key] = copy.deepcopy(operation["value"])
        case "add" if key == "-":
            place.append(copy.deepcopy(operation["value"]))
        case unknown:
            raise AssertionError(f"{unknown} at {operation['path']}")


def _move(document: Document, namespace: str) -> None:
    if document["kind"] not in _WITHOUT_NAMESPACE:
        document["metadata"]["namespace"] = namespace
    elif document["kind"] == "Namespace":
        document["metadata"]["name"] = namespace
    for subject in document.get("subjects", []):
        subject["namespace"] = namespace


def _name_images(document: Document, images: list[dict[str, str]]) -> None:
    for container in _containers(document):
        for image in images:
            if container["image"].rpartition(":")[0] == image["name"] or container["image"] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"


def _containers(document: Document) -> Iterator[dict[str, Any]]:
    if document["kind"] == "Deployment":
        yield from document["spec"]["template"]["spec"]["containers"]
