"""The policy authorizer (``POLICY_PATH``): asks the policies that count now about a check.

Makes the `Question` of a check: of what gateways tell only that which a trusted proxy told, and whatever is
in doubt as unknown, which no ALLOW rule matches and every DENY rule does. Never waits for anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, Protocol

from authservice.authz import Granted, Refusal
from authservice.check import CheckRequest, Reach, Remark
from authservice.errors import Reason
from authservice.identity import Identity
from authservice.policy.compile import PolicySet, Selected
from authservice.policy.question import Ground, Hit, Question, Verdict
from authservice.urls import MAX_AUTHORITY, parse_authority

XFCC = "x-forwarded-client-cert"
PUBLIC = "You are logged in, but the rules of this site do not let you do this."

Addresses = Callable[[Mapping[str, str]], tuple[str | None, str | None]]
"""Of the headers of a trusted proxy: who connected to it, and the client (see `gateways.Trust.addresses`)."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
_SPIFFE = "spiffe://"
# No two parts that follow each other take the same character: blanks without end cost no more than others.
_PAIR = re.compile(r'\s*([A-Za-z]+)=(?:"((?:[^"\\]|\\.)*)"\s*|([^",;]*))(;|,|\Z)')
_ESCAPED = re.compile(r"\\(.)")
_MOST_NAMED = 10
_NOTHING: frozenset[str] = frozenset()
_ALLOWED = Granted((Remark("allow"),))
_UNKNOWN_WORKLOAD = Verdict(False, Ground.UNKNOWN_WORKLOAD)


class Current(Protocol):
    """Where the set that counts now is found (`policy.current.Policies`)."""

    @property
    def current(self) -> PolicySet: ...


class PolicyAuthorizer:
    """Grants what ``policies`` allow. With ``on_trial`` it grants everything, and tells what it would not
    have; with ``explains`` a refusal names the policy and rule. ``peer_header`` is the lower-case name of
    the header that tells the peer's identity in the mesh; empty: none does."""

    name = "policy"

    def __init__(
        self, policies: Current, addresses: Addresses, *, peer_header: str = "", on_trial: bool = False,
        explains: bool = False,
    ) -> None:
        self._policies = policies
        self._addresses = addresses
        self._peer_header = peer_header
        self._on_trial = on_trial
        self._explains = explains

    def authorize(self, check: CheckRequest, identity: Identity, reach: Reach) -> Refusal | Granted | None:
        """What the policies say of a request in this identity's name; never needs the network."""
        verdict, selected = self._verdict(check, identity)
        if verdict.allowed and verdict.would is None and not verdict.audited and not self._on_trial:
            return _ALLOWED
        remarks = _remarks(verdict, selected, on_trial=self._on_trial)
        if verdict.allowed or self._on_trial:
            return Granted(remarks)
        public = _explained(verdict, selected) if self._explains else PUBLIC
        return Refusal(Reason.POLICY, public, cause=_cause(verdict, selected), remarks=remarks)

    def admits_anonymous(self, check: CheckRequest) -> Granted | None:
        """Whether nobody in particular may, because a rule of an ALLOW policy matches."""
        verdict, selected = self._verdict(check, None)
        if self._on_trial or not verdict.allowed or verdict.ground is not Ground.ALLOW_RULE:
            return None
        return Granted(_remarks(verdict, selected, on_trial=False))

    def _verdict(self, check: CheckRequest, identity: Identity | None) -> tuple[Verdict, Selected | None]:
        policies = self._policies.current
        path = check.policy_path
        selected = policies.workload(check.host, path)
        if selected is None:
            return _UNKNOWN_WORKLOAD, None
        source, remote, peer = None, None, None
        if check.forwarded:
            if policies.uses_addresses:
                source, remote = map(_plain_address, self._addresses(check.headers))
            if policies.uses_peers and self._peer_header:
                peer = peer_of(check.header(self._peer_header), xfcc=self._peer_header == XFCC)
        claims, split = None, _NOTHING
        if identity is not None:
            claims, split = identity.claims, selected.split_for(identity.issuer)
        return selected.judge(question(check, path, claims, split, source, remote, peer)), selected


def question(
    check: CheckRequest,
    path: str | None,
    claims: Mapping[str, Any] | None,
    split: frozenset[str] = _NOTHING,
    source: str | None = None,
    remote: str | None = None,
    peer: str | None = None,
) -> Question:
    """What policies are asked about a check, ``path`` being its `CheckRequest.policy_path`. The port is that
    of the original host, or else of its scheme (M24)."""
    return Question(
        check.method, check.host, path, _port(check.host, check.scheme), check.headers, claims, split,
        source, remote, peer,
    )


def _port(host: str, scheme: str | None) -> int | None:
    return _known_port(host, scheme) if len(host) <= MAX_AUTHORITY else None


@lru_cache(maxsize=1024)  # hosts are text of anybody's, and few in practice
def _known_port(host: str, scheme: str | None) -> int | None:
    authority = parse_authority(host)
    if authority is None:
        return None
    return authority.port or _DEFAULT_PORTS.get(scheme or "")


@lru_cache(maxsize=4096)
def _plain_address(text: str | None) -> str | None:
    """Without the name of a zone, and IPv4 as such wherever it is written in IPv6's way."""
    if text is None:
        return None
    address = ip_address(text.partition("%")[0])
    return str(getattr(address, "ipv4_mapped", None) or address)


def peer_of(value: str, *, xfcc: bool) -> str | None:
    """The identity in the mesh that a header tells, without its scheme; empty where the peer has none, ``None``
    where nobody can tell.

    Envoy's `XFCC` has an element for each hop, of which the last is the gateway's own peer's, and in it
    ``URI=``; any other header holds the identity itself.
    """
    if not xfcc:
        uris = [value] if value else []
    else:
        elements = _elements(value)
        if elements is None:
            return None
        uris = [text for key, text in elements[-1] if key == "uri" and text]
    if len(uris) > 1:
        return None
    if not uris:
        return ""
    uri = uris[0]
    if not uri.startswith(_SPIFFE) or "," in uri:
        return None
    return uri[len(_SPIFFE):]


def _elements(value: str) -> list[list[tuple[str, str]]] | None:
    """The elements of an XFCC header, each with its pairs; ``None`` for what is not of that form. A value in
    double quotes may hold commas, semicolons and equals signs, and quotes behind a backslash."""
    elements: list[list[tuple[str, str]]] = [[]]
    at = 0
    while at < len(value):
        found = _PAIR.match(value, at)
        if found is None:
            return None
        key, quoted, plain, end = found.groups()
        elements[-1].append((key.lower(), _ESCAPED.sub(r"\1", quoted) if quoted is not None else plain.strip()))
        at = found.end()
        if end == ",":
            elements.append([])
    return elements if elements[-1] or not value else None


def _remarks(verdict: Verdict, selected: Selected | None, *, on_trial: bool) -> tuple[Remark, ...]:
    """What is counted of a verdict: what it is, what it would be if the policies on trial counted, and
    what was to be audited. A refusal's own cause is told with the refusal."""
    if not on_trial:
        remarks = [Remark("allow" if verdict.allowed else "deny")]
    elif verdict.allowed:
        remarks = [Remark("trial_allow")]
    else:
        remarks = [Remark("trial_deny", _cause(verdict, selected))]
    if verdict.would is not None:
        outcome = "trial_allow" if verdict.would.allowed else "trial_deny"
        remarks.append(Remark(outcome, _cause(verdict.would, None)))
    remarks += [Remark("audit", _named(hit)) for hit in verdict.audited]
    return tuple(remarks)


def _named(hit: Hit) -> str:
    return f"policy {hit.policy} rule {hit.rule}"


def _cause(verdict: Verdict, selected: Selected | None) -> str:
    """Which policy decided, for the log."""
    if verdict.hit is not None:
        told = _named(verdict.hit)
    elif verdict.ground is Ground.UNKNOWN_WORKLOAD:
        told = "the host is no workload"
    elif verdict.ground is Ground.NO_ALLOW_RULE:
        told = "no rule of " + (", ".join(selected.allowing[:_MOST_NAMED]) if selected else "an ALLOW policy")
    else:
        told = "no policy"
    return f"{told} ({verdict.ground.value})"


def _explained(verdict: Verdict, selected: Selected | None) -> str:
    """Which policy decided, for the person."""
    if verdict.hit is not None:
        return f"Rule {verdict.hit.rule} of the policy {verdict.hit.policy} does not let you do this."
    if verdict.ground is Ground.UNKNOWN_WORKLOAD or selected is None:
        return "No policy knows this address, so nobody may do this."
    names = ", ".join(selected.allowing[:_MOST_NAMED])
    return f"No rule of these policies lets you do this: {names}."
