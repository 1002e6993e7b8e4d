"""Which policies are for which workload (M66 to M69)."""

from __future__ import annotations

from authservice.policy.resources import Resource
from authservice.policy.workloads import Workloads

Mark = tuple[str, ...]


class Selections:
    """Finds the workloads that a policy is for, by what they have in common: namespace, labels, targets."""

    def __init__(self, workloads: Workloads, root_namespace: str) -> None:
        self._workloads = workloads
        self._root = root_namespace
        self._all = frozenset(workload.name for workload in workloads.all)
        self._having: dict[Mark, set[str]] = {}
        for workload in workloads.all:
            marks = [("namespace", workload.namespace), *(("target", target) for target in workload.targets)]
            for mark in (*marks, *(("label", *label) for label in workload.labels.items())):
                self._having.setdefault(mark, set()).add(workload.name)

    def of(self, resource: Resource) -> frozenset[str]:
        """The names of the workloads that a policy is for. In the root namespace one without target is for
        those of all namespaces; where workloads are not told apart, each without selector and target is for
        the one."""
        selection = resource.selection
        if not self._workloads.named:
            return frozenset() if selection.labels or selection.targets else self._all
        found = self._all
        if not self._is_everywhere(resource):
            found = found & self._with("namespace", resource.namespace)
        if selection.targets:
            found = found & frozenset().union(*(self._with("target", target) for target in selection.targets))
        for name, value in selection.labels:
            found = found & self._with("label", name, value)
        return found

    def missing(self, resource: Resource) -> str:
        """Why a policy is for no workload, in words."""
        selection = resource.selection
        wanted = [f"the label {name}: {value}" for name, value in selection.labels]
        if selection.targets:
            wanted.append(" or ".join(f"the target {target}" for target in selection.targets))
        whose = " and ".join(wanted)
        if not self._workloads.named:
            return f"this is for workloads with {whose}, and POLICY_WORKLOADS names none"
        where = "in any namespace" if self._is_everywhere(resource) else f"in the namespace {resource.namespace}"
        having = f" with {whose}" if whose else ""
        return f"no workload in POLICY_WORKLOADS is {where}{having}, so this would count nowhere"

    def _is_everywhere(self, resource: Resource) -> bool:
        return resource.namespace == self._root and not resource.selection.targets

    def _with(self, *mark: str) -> set[str]:
        return self._having.get(mark, set())
