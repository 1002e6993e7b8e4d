"""Policies from YAML: files, or a text, become resources, or every problem of all of them at once.

Owns which files of a folder count and what every resource has: ``apiVersion``, ``kind``, ``metadata`` and the
selection. What stands in ``spec`` is read by `read_authorization` and `read_request`. Taken is what Istio
takes, as people write it or ``kubectl get -o yaml`` prints it, less what a check service cannot do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from authservice.policy.fields import Problems, Spot, namespace_name, shown
from authservice.policy.read_authorization import AUTHORIZATION_FIELDS, authorization
from authservice.policy.read_request import REQUEST_FIELDS, request_authentication
from authservice.policy.resources import TARGETS, Place, PolicyErrors, Resource, Selection
from authservice.policy.yaml_lines import Kind, Node, Unreadable, content, documents

GROUP = "security.istio.io"
VERSIONS = (f"{GROUP}/v1", f"{GROUP}/v1beta1")
AUTHORIZATION, REQUEST = "AuthorizationPolicy", "RequestAuthentication"
KINDS = (AUTHORIZATION, REQUEST)
SUFFIXES = (".yaml", ".yml", ".json")
DRY_RUN = "istio.io/dry-run"
DEFAULT_NAMESPACE = "default"

_RESOURCE_FIELDS = ("apiVersion", "kind", "metadata", "spec", "status")
_LIST_FIELDS = ("apiVersion", "kind", "metadata", "items")
_METADATA_FIELDS = (
    "name", "namespace", "labels", "annotations", "generateName", "uid", "resourceVersion", "generation",
    "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "ownerReferences",
    "finalizers", "managedFields",
)  # fmt: skip
_TARGET_FIELDS = ("group", "kind", "name", "namespace")
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


def files_of(path: Path) -> list[Path]:
    """The files that ``POLICY_PATH`` stands for: the file itself, or those of a folder with one of the
    `SUFFIXES`, by name. Raises `PolicyErrors` for a folder that cannot be listed, or has none.

    Hidden entries do not count: among them are the folders (``..data``) in which Kubernetes keeps the
    versions of a ConfigMap that the visible links lead to. A link that leads nowhere counts, and fails.
    """
    if not os.path.isdir(path):
        return [path]
    try:
        found = sorted(entry for entry in path.iterdir() if _counts(entry))
    except OSError as error:
        sentence = f"this folder cannot be listed ({error.strerror})"
        raise PolicyErrors([(Place(str(path), 1), sentence)]) from None
    if not found:
        raise PolicyErrors([(Place(str(path), 1), "this folder has no file *.yaml, *.yml or *.json")])
    return found


def _counts(entry: Path) -> bool:
    return entry.suffix in SUFFIXES and not entry.name.startswith(".") and not os.path.isdir(entry)


def read(paths: Sequence[Path]) -> list[Resource]:
    """The resources of all files, in order; of a folder all that `files_of` finds. Raises `PolicyErrors`
    with every problem of every file. One without any policy is a problem: it may be half written, and
    what it said before must not be forgotten."""
    resources: list[Resource] = []
    problems: list[tuple[Place, str]] = []
    for path in paths:
        try:
            files = files_of(path)
        except PolicyErrors as errors:
            problems += errors.problems
            continue
        for file in files:
            try:
                found = read_text(content(file), str(file))
            except PolicyErrors as errors:
                problems += errors.problems
            except Unreadable as unreadable:
                fault = unreadable.fault
                problems.append((Place(str(file), fault.line), fault.sentence))
            else:
                resources += found
                if not found:
                    problems.append((Place(str(file), 1), "there is no policy in this file"))
    if problems:
        raise PolicyErrors(problems)
    return resources


def read_text(text: str, file: str) -> list[Resource]:
    """The resources of one file's text. Raises `PolicyErrors` with every problem, by line."""
    trees, faults = documents(text)
    problems = Problems(file)
    for fault in faults:
        problems.add(fault.line, "", fault.sentence)
    found = [resource for tree in trees for resource in _resources(Spot(tree, "", problems))]
    if problems.found:
        once = list(dict.fromkeys(problems.found))
        raise PolicyErrors(sorted(once, key=lambda problem: problem[0].line))
    return [resource for resource in found if resource is not None]


def _resources(document: Spot) -> list[Resource | None]:
    """A document's resource, or those of a list as ``kubectl`` prints it."""
    if not document.is_a(Kind.MAPPING):
        return []
    if document.node.members.get("kind") is None or document.text("kind") != "List":
        return [_resource(document)]
    document.refuse_others(_LIST_FIELDS, may_be_nothing=True)
    if document.text("apiVersion") != "v1":
        document.refuse('the apiVersion of a List is "v1"')
    return [_resource(entry) for entry in document.mappings("items")]


def _resource(document: Spot) -> Resource | None:
    """One resource; ``None`` when it cannot be told which kind it is. Of what has problems the value is
    nonsense, and nobody gets to see it."""
    kind = _kind(document)
    if not kind:
        return None
    name, namespace, dry_run = _metadata(document, kind)
    known = AUTHORIZATION_FIELDS if kind == AUTHORIZATION else REQUEST_FIELDS
    hints = {field: "it belongs into spec" for field in known}
    document.refuse_others(_RESOURCE_FIELDS, hints, may_be_nothing=True)
    spec = document.mapping("spec")
    if spec is None:
        spec = Spot(Node(Kind.MAPPING, document.node.line), "spec", document.problems)
    spec.refuse_others(known)
    selection = _selection(spec, namespace)
    if kind == AUTHORIZATION:
        return authorization(spec, name, namespace, selection, dry_run, document.place)
    return request_authentication(spec, name, namespace, selection, document.place)


def _kind(document: Spot) -> str:
    """The resource's kind; empty, and a problem, when it is none of ours."""
    document.required_value("apiVersion", _one_of(VERSIONS))
    return document.required_value("kind", _one_of(KINDS)) or ""


def _one_of(taken: Sequence[str]) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text not in taken:
            raise ValueError(f"{shown(text)} is not taken here; taken are {', '.join(taken)}")
        return text

    return check


def _metadata(document: Spot, kind: str) -> tuple[str, str, bool]:
    """Name, namespace, and whether the policy is on trial."""
    metadata = document.mapping("metadata")
    if metadata is None:
        if document.member("metadata") is None:
            document.refuse("metadata is missing, and with it the name")
        return "", DEFAULT_NAMESPACE, False
    metadata.refuse_others(_METADATA_FIELDS, may_be_nothing=True)
    name = metadata.required_value("name", _name) or ""
    namespace = metadata.value("namespace", namespace_name) or DEFAULT_NAMESPACE
    return name, namespace, _dry_run(metadata, kind)


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(f"{shown(text)} is no name: at most 253 lower-case letters, digits, - and .")
    return text


def _dry_run(metadata: Spot, kind: str) -> bool:
    """The annotation (M10). Istio ignores what is no boolean, and enforces what was meant as a trial."""
    labels, annotations = metadata.mapping("labels"), metadata.mapping("annotations")
    for mapping in (labels, annotations):
        for _, value in mapping.members() if mapping is not None else ():
            value.is_a(Kind.TEXT)
    spot = annotations.member(DRY_RUN) if annotations is not None else None
    if spot is None or spot.node.kind is not Kind.TEXT:
        return False
    if spot.node.text not in _TRUE | _FALSE:
        spot.refuse('"true" or "false" is taken here')
    elif spot.node.text in _TRUE and kind != AUTHORIZATION:
        spot.refuse(f"only an {AUTHORIZATION} can be on trial")
    return spot.node.text in _TRUE


def _selection(spec: Spot, namespace: str) -> Selection:
    """Which workloads are meant (M66 to M68)."""
    selector = spec.mapping("selector")
    targets = [target for target in (spec.mapping("targetRef"),) if target is not None]
    several = spec.mappings("targetRefs")
    if sum(map(bool, (selector is not None, targets, several))) > 1:
        spec.refuse("only one of selector, targetRef and targetRefs can be there")
    labels = _labels(selector) if selector is not None else ()
    return Selection(labels, tuple(_target(target, namespace) for target in targets + several))


def _labels(selector: Spot) -> tuple[tuple[str, str], ...]:
    selector.refuse_others(("matchLabels",), {"matchExpressions": "Istio's selectors have only matchLabels"})
    wanted = selector.mapping("matchLabels")
    labels = []
    for name, spot in wanted.members() if wanted is not None else ():
        if not name:
            spot.refuse("a label's key cannot be empty")
        elif "*" in name or "*" in spot.node.text:
            spot.refuse("* stands for nothing in labels: a label is compared as a whole")
        elif spot.is_a(Kind.TEXT):
            labels.append((name, spot.node.text))
    return tuple(labels)


def _target(target: Spot, namespace: str) -> str:
    """A target as ``kind/name``."""
    target.refuse_others(_TARGET_FIELDS)
    kind = target.required_value("kind", _one_of(tuple(TARGETS)))
    name = target.required_value("name", _name)
    group = target.text("group")
    if kind and group != TARGETS[kind] and (kind, group) != ("Service", "core"):
        target.at("group").refuse(f"the group of a {kind} is {shown(TARGETS[kind])}")
    if target.text("namespace") not in ("", namespace):
        target.at("namespace").refuse("a target is in the policy's own namespace")
    return f"{kind}/{name}"
