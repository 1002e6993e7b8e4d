"""What policies are asked with: the few settings that change what they say, read without all others.

They come from options, from a file of cases and from the environment; the first one that names a setting
counts. Gives `Means`, of which a `PolicySet` is loaded as a start of the service loads it.
"""

from __future__ import annotations

import json
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from authservice.errors import SettingsError
from authservice.policy import workloads as workload_map
from authservice.policy.compile import PolicySet, compile
from authservice.policy.outputs import output_problems
from authservice.policy.read import read
from authservice.policy.resources import PolicyErrors, RequestAuthentication, Resource
from authservice.settings.read import some

TOLD = (
    "USERID_HEADER", "GROUPS_HEADER", "AUTH_METHOD_HEADER", "UPSTREAM_ACCESS_TOKEN_HEADER", "UPSTREAM_ID_TOKEN_HEADER",
    "UPSTREAM_ASSERTION_HEADER",
)  # fmt: skip
"""What names one header that applications are told something in."""
NAMES = (
    "POLICY_PATH", "POLICY_WORKLOADS", "POLICY_ROOT_NAMESPACE", "POLICY_PEER_HEADER", "POLICY_ALLOWS_ANONYMOUS",
    "POLICY_DRY_RUN", "USERID_CLAIM", "UPSTREAM_HEADERS", "CA_BUNDLE", *TOLD,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Means:
    """Where policies are, and what else they depend on."""

    paths: tuple[Path, ...]
    workloads: str
    root_namespace: str
    peer_header: str
    allows_anonymous: bool
    dry_run: bool
    userid_claim: str
    identity_headers: tuple[str, ...]
    ca_bundle: Path | None

    @property
    def tells_hosts_apart(self) -> bool:
        """Whether any workload is named, so that selections can be resolved."""
        return bool(self.workloads.strip())


def gather(environ: Mapping[str, str], *before: Mapping[str, str], policies: Sequence[Path] = ()) -> Means:
    """The settings of ``environ``, and ``before`` them those of options and files. ``policies`` take the
    place of ``POLICY_PATH``. Raises `errors.SettingsError` with every problem."""
    values = some(NAMES, ChainMap(*map(dict, before), dict(environ)))
    path: Path | None = values["policy_path"]
    return Means(
        tuple(policies) or ((path,) if path else ()),
        values["policy_workloads"],
        values["policy_root_namespace"],
        values["policy_peer_header"],
        values["policy_allows_anonymous"],
        values["policy_dry_run"],
        values["userid_claim"],
        (
            *(values[name.lower()] for name in TOLD),
            *values["upstream_headers"].names,
        ),
        values["ca_bundle"],
    )


def load(means: Means) -> PolicySet:
    """The policies, compiled. What a deployment knows of addresses and peers is not asked: whoever asks
    about a request says them. Raises `PolicyErrors` and `errors.SettingsError`."""
    problems: list[str] = []
    workloads = workload_map.Workloads.single()
    try:
        workloads = workload_map.parse(means.workloads)
    except ValueError as error:
        problems = [f"POLICY_WORKLOADS: {line}." for line in str(error).splitlines()]
    try:
        resources = read(means.paths)
    except PolicyErrors as errors:
        if not problems:
            raise
        problems += [f"{place}: {sentence}" for place, sentence in errors.problems]
    if problems:
        raise SettingsError(problems)
    return _compiled(resources, workloads, means)


def load_anywhere(means: Means) -> PolicySet:
    """The same where no workload is named: each selection finds a workload of its own."""
    resources = read(means.paths)
    stand_ins = {
        f"policy-{number}.invalid": _selected_by(resource) for number, resource in enumerate(resources)
    }
    return _compiled(resources, workload_map.parse(json.dumps(stand_ins)), means)


def _compiled(resources: Sequence[Resource], workloads: workload_map.Workloads, means: Means) -> PolicySet:
    """Raises `PolicyErrors` for all that keeps the service from starting with them."""
    rules = (rule for one in resources if isinstance(one, RequestAuthentication) for rule in one.rules)
    problems = output_problems(rules, means.identity_headers)
    try:
        policies = compile(
            resources, workloads, root_namespace=means.root_namespace, knows_addresses=True, knows_peers=True
        )
    except PolicyErrors as errors:
        raise PolicyErrors([*errors.problems, *problems]) from None
    if problems:
        raise PolicyErrors(problems)
    return policies


def _selected_by(resource: Resource) -> Mapping[str, object]:
    """A workload that this policy selects."""
    return {
        "namespace": resource.namespace,
        "labels": dict(resource.selection.labels),
        "targets": list(resource.selection.targets),
    }
