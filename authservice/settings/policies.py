"""The settings of policies: what their texts mean, and rules between them (see `settings.rules`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from authservice.policy import workloads
from authservice.settings.kinds import HEADER, Kind, optional

Lines = Iterator[str]


def _workloads(text: str) -> str:
    """The text as it is. A file that it names is read together with the policies, whenever they are."""
    if workloads.file_of(text) is None:
        workloads.parse(text)
    return text


WORKLOADS = Kind(
    _workloads,
    'a map (JSON or YAML) of hosts, with an optional path prefix, to {"namespace": …, "labels": {…}}, or the '
    "path of a file that holds it",
)


def _peer_header(text: str) -> str:
    """Headers with ``_`` in their names are dropped on the way: nobody would ever have an identity."""
    if "_" in HEADER.parse(text):
        raise ValueError("a header with _ in its name does not get here")
    return text


PEER_HEADER = optional(Kind(_peer_header, HEADER.takes + " without _"))


def policies_are_somewhere(
    texts: Mapping[str, str], policy_path: Path | None, policy_allows_anonymous: bool, policy_dry_run: bool,
    explain_denials: bool,
) -> Lines:
    if policy_path is not None:
        return
    wanted: dict[str, object] = {
        **{name: texts.get(name) for name in ("POLICY_WORKLOADS", "POLICY_ROOT_NAMESPACE", "POLICY_PEER_HEADER")},
        "POLICY_ALLOWS_ANONYMOUS": policy_allows_anonymous,
        "POLICY_DRY_RUN": policy_dry_run,
        "EXPLAIN_DENIALS": explain_denials,
    }
    for name in wanted:
        if wanted[name]:
            yield f"{name}: has no effect without POLICY_PATH."


def nobody_passes_on_trial(policy_path: Path | None, policy_allows_anonymous: bool, policy_dry_run: bool) -> Lines:
    if policy_path is not None and policy_allows_anonymous and policy_dry_run:
        yield "POLICY_ALLOWS_ANONYMOUS: has no effect with POLICY_DRY_RUN."


def somebody_is_believed_about_peers(
    policy_path: Path | None, policy_peer_header: str, trusted_proxies: tuple[IPv4Network | IPv6Network, ...]
) -> Lines:
    if policy_path is not None and policy_peer_header and not trusted_proxies:
        yield (
            "POLICY_PEER_HEADER: has no effect without TRUSTED_PROXIES, since anybody could send "
            f"{policy_peer_header}."
        )


WARNINGS: tuple[Callable[..., Lines], ...] = (
    policies_are_somewhere,
    nobody_passes_on_trial,
    somebody_is_believed_about_peers,
)
