"""What the live judge would answer to a request on account of policies, and why.

`Rehearsal` makes the check that a gateway would have asked, finds out who sends it, and asks the policy set
the live authorizer's question. Paths that are open, groups and the external authorizer take no part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from authservice.authz.policy import XFCC, peer_of, question
from authservice.check import CheckRequest, Reach
from authservice.errors import Reason, Refused, WrongAudience
from authservice.identity import AuthMethod, Identity, VerifiedClaims
from authservice.policy.compile import PolicySet
from authservice.policy.question import Explanation, Ground, Hit, Question, Step, Verdict
from authservice.rehearsal import tokens
from authservice.rehearsal.asked import Asked, parts_of
from authservice.rehearsal.means import Means
from authservice.urls import canonical_path

ALLOW, DENY, AUTHENTICATE = "allow", "deny", "authenticate"
NO_CREDENTIAL, BAD_TOKEN = Reason.NOT_AUTHENTICATED.value, Reason.INVALID_TOKEN.value
WRONG_AUDIENCE = Reason.WRONG_AUDIENCE.value
"""With these two, the reasons beside those of `policy.question.Ground`."""

_SPIFFE = "spiffe://"


@dataclass(frozen=True, slots=True)
class Answer:
    """``verdict`` is what the request gets. ``hit`` is the rule that decided, where one did; ``would`` what
    policies on trial would make of the verdict. ``detail`` is what is wrong with a token; ``unverified``:
    nobody looked."""

    verdict: str
    reason: str
    workload: str = ""
    hit: Hit | None = None
    steps: tuple[Step, ...] = ()
    would: Verdict | None = None
    audited: tuple[Hit, ...] = ()
    detail: str = ""
    unverified: bool = False


class Rehearsal:
    """Policies, and what else their verdicts depend on, ready to be asked."""

    def __init__(self, policies: PolicySet, means: Means, now: Callable[[], datetime]) -> None:
        self._policies = policies
        self._tokens = tokens.authenticator(policies, means, now)
        self._allows_anonymous = means.allows_anonymous
        self._peer_header = means.peer_header.lower()

    def ask(self, asked: Asked) -> Answer:
        """Raises `errors.Unavailable` when the keys for a token cannot be had."""
        check = check_of(asked)
        if asked.claims is not None:
            return self._judge(asked, check, _identity(asked.claims))
        if asked.token:
            selected = self._policies.workload(check.host, check.policy_path)
            if selected is None or not selected.jwt_rules:
                return self._unverified(asked, check)
            check = tokens.placed(check, selected.jwt_rules, asked.token)
        try:
            identity = self._tokens.authenticate(check, Reach.NETWORK)
        except Refused as error:
            return Answer(AUTHENTICATE, BAD_TOKEN, detail=str(error))
        except WrongAudience as error:
            return Answer(DENY, WRONG_AUDIENCE, detail=str(error))
        return self._judge(asked, check, identity)

    def _unverified(self, asked: Asked, check: CheckRequest) -> Answer:
        """Nobody is there to verify the token, so its claims are taken as they stand."""
        claims = tokens.unverified(asked.token)
        if claims is None:
            return Answer(AUTHENTICATE, BAD_TOKEN, detail="this is no signed token (JWT)", unverified=True)
        return replace(self._judge(asked, check, _identity(claims)), unverified=True)

    def _judge(self, asked: Asked, check: CheckRequest, identity: Identity | None) -> Answer:
        explanation = self._policies.explain(self._question(asked, check, identity))
        if identity is None and not self._admits(explanation.verdict):
            return _answer(AUTHENTICATE, explanation, NO_CREDENTIAL)
        return _answer(ALLOW if explanation.verdict.allowed else DENY, explanation)

    def _admits(self, verdict: Verdict) -> bool:
        """Whether nobody in particular may pass."""
        return self._allows_anonymous and verdict.allowed and verdict.ground is Ground.ALLOW_RULE

    def _question(self, asked: Asked, check: CheckRequest, identity: Identity | None) -> Question:
        path = check.policy_path
        selected = self._policies.workload(check.host, path)
        split: frozenset[str] = frozenset()
        if identity is not None and selected is not None:
            split = selected.split_for(identity.issuer)
        claims = identity.claims if identity is not None else None
        return question(check, path, claims, split, asked.source, asked.remote, self._peer(asked, check))

    def _peer(self, asked: Asked, check: CheckRequest) -> str | None:
        """What is said, or else what the header of a mesh says."""
        if asked.peer or not self._peer_header:
            return asked.peer.removeprefix(_SPIFFE)
        return peer_of(check.header(self._peer_header), xfcc=self._peer_header == XFCC)


def check_of(asked: Asked) -> CheckRequest:
    """The check that a trusted gateway would ask."""
    parts = parts_of(asked.url)
    return CheckRequest(
        method=asked.method,
        scheme=parts.scheme,
        host=parts.host,
        target=parts.target,
        path=canonical_path(parts.target),
        headers={"host": parts.host, **asked.headers},
        client=asked.remote,
        dialect="envoy",
        forwarded=True,
    )


def _identity(claims: Mapping[str, object]) -> Identity:
    """Somebody with these claims, taken for verified because the question says so."""
    issuer = claims.get("iss")
    return Identity(
        "", (), VerifiedClaims(claims), AuthMethod.HEADER, issuer if isinstance(issuer, str) else ""
    )


def _answer(verdict: str, explanation: Explanation, reason: str = "") -> Answer:
    found = explanation.verdict
    return Answer(
        verdict=verdict,
        reason=reason or found.ground.value,
        workload=explanation.workload,
        hit=None if reason else found.hit,
        steps=explanation.steps,
        would=found.would,
        audited=found.audited,
    )
