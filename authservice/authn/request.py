"""Tokens as the rules of RequestAuthentications want them (M49 to M60, M64, M65).

On a workload with rules, what stands in a place of theirs is theirs to judge, whatever other authenticators would
say of it: verified by the keys of the rule that names its issuer, or refused. Without a token, and on workloads
without rules, others are asked. Each rule verifies as `oidc.verifier` does for all tokens, and what it finds is
remembered as `authn.cache` remembers all of them.

Where Envoy does not say which of two good tokens counts, both are refused here. A rule for whose token keys cannot
be had now refuses nothing: that is 503, unless another rule knows the token as good.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Protocol

from authservice.authn.cache import BearerCache, CachedAuthenticator
from authservice.authn.jwt import identity_from
from authservice.authn.places import Place, places_of
from authservice.check import CheckRequest, Reach
from authservice.errors import AuthServiceError, Refused, Unavailable, WrongAudience
from authservice.identity import ClaimRules, Identity, VerifiedClaims, find_claim
from authservice.oidc.issuers import GivenKeys, KeySource
from authservice.oidc.jws import Glance, glance
from authservice.oidc.keys import SIGNING_ALGORITHMS, read_key_set
from authservice.oidc.tokens import POLICY_TOKEN, Expected, TokenRefused, plain_audience
from authservice.oidc.verifier import Verifier
from authservice.policy.compile import PolicySet, Selected
from authservice.policy.resources import JwtRule

KeepToken = Callable[[Identity, str, Glance], object]

VERIFIED_BY = "authn.request"
"""Among what was made of an identity: the `verification` of the rule that verified its token."""


class Current(Protocol):
    """Where the set of policies is found that counts now: `policy.current.Policies`."""

    current: PolicySet


def verification(rule: JwtRule) -> str:
    """A name for what a rule takes for a good token. Rules that only differ in where they look, and in what
    they pass on, have the same."""
    text = json.dumps([rule.issuer, sorted(rule.audiences), rule.jwks_uri, rule.jwks], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Sources:
    """Where the keys of rules come from. What was fetched outlives a reload for as long as some rule needs it.

    ``known`` are sources that the service has anyway, by issuer and address of the keys (empty: the issuer's
    own word); ``make`` makes one for any other rule that has no keys written in it.
    """

    def __init__(
        self, known: Mapping[tuple[str, str], KeySource], make: Callable[[JwtRule], KeySource]
    ) -> None:
        self._known = dict(known)
        self._make = make
        self._made: dict[tuple[str, str, timedelta], KeySource] = {}

    def of(self, rule: JwtRule) -> KeySource:
        """The source of one rule."""
        if rule.jwks is not None:
            return GivenKeys(rule.issuer, read_key_set(rule.jwks))
        known = self._known.get((rule.issuer, rule.jwks_uri))
        if known is not None:
            return known
        key = _address(rule)
        return self._made.get(key) or self._made.setdefault(key, self._make(rule))

    def keep_only(self, rules: Iterable[JwtRule]) -> None:
        """Lets go of those that none of these rules needs."""
        needed = set(map(_address, rules))
        self._made = {key: source for key, source in list(self._made.items()) if key in needed}


def _address(rule: JwtRule) -> tuple[str, str, timedelta]:
    return rule.issuer, rule.jwks_uri, rule.timeout


class _Verification:
    """What one rule makes of a token."""

    def __init__(
        self, rule: JwtRule, source: KeySource, claim_rules: ClaimRules, now: Callable[[], datetime], keep: KeepToken
    ) -> None:
        self.name = verification(rule)
        self._keep = keep
        self._issuer = rule.issuer
        self._place = f"policy {rule.place}"
        self._claim_rules = claim_rules
        self._by_subject = replace(claim_rules, userid_claim="sub")
        expected = Expected(
            issuer=rule.issuer,
            client_id="",
            audiences=frozenset(map(plain_audience, rule.audiences)),
            algorithms=tuple(SIGNING_ALGORITHMS),
        )
        self._verifier = Verifier(source, POLICY_TOKEN, expected, now)

    def names(self, seen: Glance) -> bool:
        """Whether the token says that it is of this rule's issuer. Keys of a rule without issuer are for
        tokens of any."""
        return self._issuer in ("", seen.issuer)

    def identity(self, token: str, seen: Glance, reach: Reach) -> Identity:
        """Whom the token proves, of which ``seen`` is what it says. Raises `errors.Refused`, `errors.WrongAudience`
        and `errors.Unavailable`, and `check.NeedsIO` under `Reach.MEMORY`."""
        try:
            claims = self._verifier.verify(seen, reach)
        except TokenRefused as refused:
            problem = f"{self._place}: {refused.check}"
            raise (WrongAudience(problem) if refused.check == "aud" else Refused(problem)) from None
        identity = identity_from(claims, self._rules_for(claims), seen.issuer, self._place)
        identity.made[VERIFIED_BY] = self.name
        self._keep(identity, token, seen)
        return identity

    def _rules_for(self, claims: VerifiedClaims) -> ClaimRules:
        """``USERID_CLAIM`` says who it is, and ``sub`` for a program that has no such claim."""
        named = find_claim(claims, self._claim_rules.userid_claim) not in (None, "")
        return self._claim_rules if named else self._by_subject


class _Judge:
    """Several rules, judging a token that was found for each of them: one that verifies it is enough (M55)."""

    def __init__(self, rules: Sequence[_Verification]) -> None:
        self.name = "policy:" + ",".join(rule.name for rule in rules)
        self._rules = tuple(rules)

    def judge(self, token: str, reach: Reach) -> Identity:
        seen = glance(token)
        if seen is None:
            raise Refused("policy: no token in this form")
        problems: list[AuthServiceError | None] = []
        unknown: Unavailable | None = None
        for rule in self._rules:
            if not rule.names(seen):
                problems.append(None)
                continue
            try:
                return rule.identity(token, seen, reach)
            except (Refused, WrongAudience) as problem:
                problems.append(problem)
            except Unavailable as unavailable:
                unknown = unknown or unavailable
        raise unknown or _told(problems)


def _told(problems: Sequence[AuthServiceError | None]) -> AuthServiceError:
    """Of what each rule objects to (``None``: the token is another issuer's) the one that Envoy tells."""
    if problems and problems[0] is not None:
        return problems[0]
    real = [problem for problem in problems if problem is not None]
    return real[-1] if real else Refused("policy: of an issuer that no rule names")


class _WorkloadRules:
    """The rules of one workload: where they look, and who judges what is found there."""

    def __init__(
        self, rules: Sequence[_Verification], places: Sequence[Sequence[Place]], cache: BearerCache
    ) -> None:
        self._rules = tuple(rules)
        self._cache = cache
        looking: dict[Place, frozenset[int]] = {}
        for number, its_places in enumerate(places):
            for place in its_places:
                looking[place] = looking.get(place, frozenset()) | {number}
        self._places = tuple(looking.items())
        self._judges = {numbers: self._make_judge(numbers) for numbers in looking.values()}

    def authenticate(self, check: CheckRequest, reach: Reach) -> Identity | None:
        """As `RequestAuthenticator.authenticate`."""
        found: dict[str, frozenset[int]] = {}
        for place, numbers in self._places:
            for token in place.tokens(check):
                found[token] = found[token] | numbers if token in found else numbers
        if not found:
            return None
        if len(found) > 1:
            return self._one_of_several(found, reach)
        ((token, numbers),) = found.items()
        return self._judge(numbers, token, reach)

    def _one_of_several(self, found: Mapping[str, frozenset[int]], reach: Reach) -> Identity:
        """A rule holds when it verifies every token that was found for it (M54), and one that holds is enough
        (M55)."""
        good: dict[str, Identity] = {}
        problems: list[AuthServiceError] = []
        for number in sorted(frozenset[int]().union(*found.values())):
            verified: dict[str, Identity] = {}
            try:
                for token, numbers in found.items():
                    if number in numbers:
                        verified[token] = self._judge(frozenset({number}), token, reach)
            except (Refused, WrongAudience) as problem:
                problems.append(problem)
            else:
                good = {**verified, **good}
        if not good:
            raise _told(problems)
        if len(good) > 1:
            raise Refused("policy: more than one good token")
        return next(iter(good.values()))

    def _judge(self, numbers: frozenset[int], token: str, reach: Reach) -> Identity:
        judge = self._judges.get(numbers) or self._make_judge(numbers)
        identity = judge.judge(token, reach)
        if identity is None:
            raise Refused("policy: no rule's token")
        return identity

    def _make_judge(self, numbers: frozenset[int]) -> CachedAuthenticator:
        return CachedAuthenticator(_Judge([self._rules[number] for number in sorted(numbers)]), self._cache)


class _SetRules:
    """The rules of one policy set, workload by workload. Each is made ready when it is asked for first: to read
    all key sets of a large set at once would keep checks waiting."""

    def __init__(self, policies: PolicySet, verify: Callable[[JwtRule], _Verification], cache: BearerCache) -> None:
        self.policies = policies
        self._verify = verify
        self._cache = cache
        self.made: dict[str, _WorkloadRules] = {}
        """By the name of the workload."""

    def make(self, selected: Selected) -> _WorkloadRules:
        """The rules of a workload, ready to be asked."""
        verifications = [self._verify(rule) for rule in selected.jwt_rules]
        places = [places_of(rule) for rule in selected.jwt_rules]
        rules = self.made[selected.name] = _WorkloadRules(verifications, places, self._cache)
        return rules


class RequestAuthenticator:
    """An authenticator for the tokens that policies' rules name. Safe for threads.

    ``skips`` says of an OPTIONS request whether no token is looked at: it is a CORS preflight (M64). ``keep`` leaves
    with an identity what is to be kept of its token.
    """

    name = "policy"

    def __init__(
        self,
        policies: Current,
        cache: BearerCache,
        sources: Sources,
        claim_rules: ClaimRules,
        *,
        now: Callable[[], datetime],
        skips: Callable[[CheckRequest], bool] = lambda check: False,
        keep: KeepToken = lambda identity, token, seen: None,
    ) -> None:
        self._policies = policies
        self._cache = cache
        self._sources = sources
        self._claim_rules = claim_rules
        self._now = now
        self._skips = skips
        self._keep = keep
        self._renewing = threading.Lock()
        self._rules = _SetRules(policies.current, self._verification, cache)

    def authenticate(self, check: CheckRequest, reach: Reach) -> Identity | None:
        """The identity that a token in a place of the workload's rules proves, or ``None`` without such a token.

        Raises `errors.Refused` for a bad one (M50) and for several of which nobody says which counts,
        `errors.WrongAudience` for a good one that is for somebody else, `errors.Unavailable` where its keys
        cannot be had, and `check.NeedsIO` under `Reach.MEMORY`.
        """
        policies = self._policies.current
        if not policies.jwt_rules:
            return None
        selected = policies.workload(check.host, check.policy_path)
        if selected is None or not selected.jwt_rules or (check.method == "OPTIONS" and self._skips(check)):
            return None
        rules = self._rules
        if rules.policies is not policies:
            rules = self._renewed(policies)
        on_workload = rules.made.get(selected.name) or rules.make(selected)
        return on_workload.authenticate(check, reach)

    def _renewed(self, policies: PolicySet) -> _SetRules:
        with self._renewing:
            if self._rules.policies is not policies:
                self._sources.keep_only(policies.jwt_rules)
                self._rules = _SetRules(policies, self._verification, self._cache)
            return self._rules

    def _verification(self, rule: JwtRule) -> _Verification:
        return _Verification(rule, self._sources.of(rule), self._claim_rules, self._now, self._keep)
