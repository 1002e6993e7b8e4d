"""The schemas under tests/data/schemas: what Istio, Gateway API, Envoy Gateway, Emissary, Traefik and
ingress-nginx take. Every object in them is closed, so that a misspelt field is found."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

FOLDER = Path(__file__).parent / "data" / "schemas"
DOCS = Path(__file__).parent.parent / "docs"
PROJECTS = ("istio", "gateway-api", "envoy-gateway", "emissary", "traefik")


def _load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return content


_COMMON = DRAFT202012.create_resource(_load("common"))
_REGISTRY: Registry[Any] = Registry().with_resource("https://schemas.invalid/common", _COMMON)


def _with_definitions(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {**content[name], "$defs": content.get("$defs", {})}


SPECS: Mapping[str, Mapping[str, Any]] = {
    name: _with_definitions(content, name)
    for content in map(_load, PROJECTS)
    for name in content
    if name != "$defs"
}
"""The schema of ``spec`` of each kind, by apiVersion and kind."""

ANNOTATIONS = _load("ingress-nginx")["annotations"]
CONTROLLER = _load("ingress-nginx")["controller"]
COMPOSE = _load("compose")


def problems(content: Any, schema: Mapping[str, Any]) -> list[str]:
    """What is wrong with it, each with its place."""
    validator = Draft202012Validator(schema, registry=_REGISTRY)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(content)]


def problems_of(document: Mapping[str, Any]) -> list[str]:
    """What is wrong with a resource as a whole: its kind has to be known, and its metadata as well."""
    schema = {
        "type": "object",
        "additionalProperties": False,
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"$ref": "https://schemas.invalid/common#/$defs/metadata"},
            "spec": {},
        },
    }
    # An IstioOperator is a file for a command and has no name.
    if document["kind"] == "IstioOperator":
        schema["required"] = ["apiVersion", "kind", "spec"]
    spec = SPECS[f"{document['apiVersion']}/{document['kind']}"]
    return problems(document, schema) + problems(document.get("spec"), spec)


def resources_of(page: str) -> list[dict[str, Any]]:
    """The resources that a page below docs/ shows, those in lists, too."""
    found = re.findall(r"^( *)```yaml\n(.*?)^ *```$", (DOCS / f"{page}.md").read_text("utf-8"), re.M | re.S)
    texts = ["".join(line.removeprefix(indent) for line in text.splitlines(True)) for indent, text in found]
    return [one for text in texts if "apiVersion:" in text for one in yaml.safe_load_all(text)]


def objects(node: Any) -> Iterator[Mapping[str, Any]]:
    """Every schema in a schema that lists properties."""
    if isinstance(node, dict):
        if "properties" in node and node.get("type") == "object":
            yield node
        for value in node.values():
            yield from objects(value)
    elif isinstance(node, list):
        for value in node:
            yield from objects(value)
