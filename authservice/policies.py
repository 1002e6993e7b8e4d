"""The policies of a deployment: what the settings name, read and compiled. Part of the composition root.

A start, ``check-config`` and every later look at the files load them in the same way, so that all of them
find the same problems.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from authservice.ops import Counts
from authservice.policy import workloads
from authservice.policy.compile import PolicySet, compile
from authservice.policy.current import Policies
from authservice.policy.outputs import output_problems
from authservice.policy.read import files_of, read
from authservice.policy.resources import Place, PolicyErrors, RequestAuthentication
from authservice.settings import Settings


def build(settings: Settings, counts: Counts) -> Policies | None:
    """The policies of ``POLICY_PATH``, if there are any. Raises `PolicyErrors`."""
    if settings.policy_path is None:
        return None
    return Policies(lambda: load(settings), lambda: files(settings), counts=counts)


def load(settings: Settings) -> PolicySet:
    """What is in ``POLICY_PATH`` now, for the workloads that are named now. Raises `PolicyErrors`."""
    path = settings.policy_path or Path()
    resources = read([path])
    if not resources:
        raise PolicyErrors([(Place(str(path), 1), "there is no policy here, so that everything would be allowed")])
    try:
        named = workloads.parse(settings.policy_workloads)
    except ValueError as error:
        place = Place(str(workloads.file_of(settings.policy_workloads) or "POLICY_WORKLOADS"), 1)
        raise PolicyErrors([(place, line) for line in str(error).splitlines()]) from None
    trusts = bool(settings.trusted_proxies)
    taken = (settings.userid_header, settings.groups_header, settings.auth_method_header)
    rules = (rule for one in resources if isinstance(one, RequestAuthentication) for rule in one.rules)
    clashes = output_problems(rules, taken)
    try:
        compiled = compile(
            resources,
            named,
            root_namespace=settings.policy_root_namespace,
            knows_addresses=trusts,
            knows_peers=trusts and bool(settings.policy_peer_header),
        )
    except PolicyErrors as errors:
        raise PolicyErrors([*errors.problems, *clashes]) from None
    if clashes:
        raise PolicyErrors(clashes)
    return compiled


def files(settings: Settings) -> list[Path]:
    """The files that `load` reads. Raises `PolicyErrors` for a folder that cannot be listed."""
    named = workloads.file_of(settings.policy_workloads)
    found = [] if settings.policy_path is None else files_of(settings.policy_path)
    return found if named is None else [*found, named]


def problems(settings: Settings) -> Iterator[str]:
    """What keeps policies from being taken, each with its place."""
    try:
        if settings.policy_path is not None:
            load(settings)
    except PolicyErrors as errors:
        yield from told(errors)


def told(errors: PolicyErrors) -> Iterator[str]:
    """Each problem in the form of a setting's."""
    for place, sentence in errors.problems:
        yield f"POLICY_PATH: {place}: {sentence}."
