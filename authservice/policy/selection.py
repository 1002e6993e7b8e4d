"""Which policies are for which workload (M66 to M69)."""

from __future__ import annotations

from authservice.policy.resources import Resource
from authservice.policy.workloads import Workload, Workloads


def selects(resource: Resource, workload: Workload, workloads: Workloads, root_namespace: str) -> bool:
    """Whether a policy is for a workload. In the root namespace a policy without target is for those of all
    namespaces; where workloads are not told apart, each without selector and target is for the one."""
    selection = resource.selection
    if not workloads.named:
        return not selection.labels and not selection.targets
    at_home = resource.namespace == workload.namespace
    if selection.targets:
        return at_home and any(target in workload.targets for target in selection.targets)
    if not at_home and resource.namespace != root_namespace:
        return False
    return all(workload.labels.get(name) == value for name, value in selection.labels)


def unresolved(resource: Resource, workloads: Workloads, root_namespace: str) -> str:
    """Why a policy that is for no workload is not, in words."""
    selection = resource.selection
    wanted = [f"the label {name}: {value}" for name, value in selection.labels]
    wanted += [" or ".join(f"the target {target}" for target in selection.targets)] if selection.targets else []
    whose = " and ".join(wanted)
    if not workloads.named:
        return f"this is for workloads with {whose}, and POLICY_WORKLOADS names none"
    everywhere = resource.namespace == root_namespace and not selection.targets
    where = "in any namespace" if everywhere else f"in the namespace {resource.namespace}"
    having = f" with {whose}" if whose else ""
    return f"no workload in POLICY_WORKLOADS is {where}{having}, so this would count nowhere"
