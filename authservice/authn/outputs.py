"""What rules of RequestAuthentications pass on to the application, and what they take away (M61 to M63).

`Outputs` completes every allow of the pipeline. A header that any rule of the set names for its output is set for
identities of that rule's issuer on workloads that the rule is for, and cannot be sent by anybody: in every other
case, on every host, Envoy is told to remove it, and Traefik and Caddy copy an empty one over it. They copy what they
are told to (``authResponseHeaders``, ``copy_headers``), so the names have to be listed there; in front of nginx
the configuration sets each of them from the answer, and an absent one is removed.

The header that a verified token came in is taken away in the same manner, unless its rule says
``forwardOriginalToken``. For nginx this, too, is its configuration's to do. A token in a query or cookie stays:
no answer to a check changes these.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from authservice.authn.places import HeaderPlace, places_of
from authservice.authn.request import VERIFIED_BY, Current, verification
from authservice.check import Allow, CheckRequest, Variant
from authservice.identity import Identity
from authservice.policy.compile import PolicySet
from authservice.policy.outputs import output_headers, output_names
from authservice.policy.resources import JwtRule

MOST_VARIANTS = 32
"""Of one identity are kept: as many as there are workloads with outputs of their own that somebody goes to and fro
between."""
MOST_CHOICES = 4096
"""Of one set are kept: issuers may be text of anybody's whose tokens a rule without issuer takes."""


class _Choice(NamedTuple):
    """The rules that count for some identities on a workload: those that pass something on, and the places of
    those that do not forward the token. Choices of the same rules have the same ``key``."""

    telling: tuple[JwtRule, ...]
    taking: tuple[HeaderPlace, ...]
    key: tuple[int, ...]


class _Completion(NamedTuple):
    """What an allow becomes: all of it but the identity and the remarks."""

    set_headers: tuple[tuple[str, str], ...]
    remove_headers: tuple[str, ...]
    variant: Variant


_NO_CHOICE = _Choice((), (), ())


class Outputs:
    """Completes allows; `pipeline.Pipeline` calls it for each. Safe for threads."""

    def __init__(self, policies: Current) -> None:
        self._policies = policies
        self._plan = _Plan(policies.current)

    def __call__(self, check: CheckRequest, allow: Allow) -> Allow:
        """The same allow with what policies pass on and take away. Raises `errors.IdentityUnusable` for what
        fits in no header."""
        policies = self._policies.current
        if not policies.jwt_rules:
            return allow
        plan = self._plan
        if plan.policies is not policies:
            plan = self._plan = _Plan(policies)
        identity = allow.identity
        if identity is None:
            done = plan.nobodys or plan.complete_for_nobody(allow)
        else:
            done = self._completion(plan, check, allow, identity)
        return Allow(identity, done.set_headers, done.remove_headers, allow.remarks, done.variant)

    def _completion(self, plan: _Plan, check: CheckRequest, allow: Allow, identity: Identity) -> _Completion:
        """Made once for each identity and what it depends on besides: the rules that count, and the headers
        that held the token."""
        choice = plan.choice(check, identity)
        taken = tuple([place.name for place in choice.taking if place.holds_token(check)]) if choice.taking else ()
        kept = identity.made.get(self)
        if kept is None or kept[0] is not plan.token:
            kept = identity.made[self] = (plan.token, {})
        made: dict[object, _Completion] = kept[1]
        key = (choice.key, taken)
        done = made.get(key)
        if done is None:
            if len(made) >= MOST_VARIANTS:
                made.clear()
            told = output_headers(choice.telling, identity.claims)
            done = made[key] = _completed(allow, told, (*allow.unset(), *plan.names, *taken))
        return done


class _Plan:
    """What the rules of one policy set ask for. ``token`` tells plans apart without keeping their set alive."""

    def __init__(self, policies: PolicySet) -> None:
        self.policies = policies
        self.token = object()
        self.names = output_names(policies.jwt_rules)
        self.nobodys: _Completion | None = None
        self._choices: dict[tuple[str, str, str | None], _Choice] = {}

    def choice(self, check: CheckRequest, identity: Identity) -> _Choice:
        """The rules that count for this identity on the check's workload."""
        selected = self.policies.workload(check.host, check.policy_path)
        if selected is None or not selected.jwt_rules:
            return _NO_CHOICE
        verified_by: str | None = identity.made.get(VERIFIED_BY)
        key = (selected.name, identity.issuer, verified_by)
        choice = self._choices.get(key)
        if choice is None:
            if len(self._choices) >= MOST_CHOICES:
                self._choices.clear()
            choice = self._choices[key] = _choice(selected.jwt_rules, identity.issuer, verified_by)
        return choice

    def complete_for_nobody(self, allow: Allow) -> _Completion:
        """One for all, as an allow without identity has always the same headers."""
        self.nobodys = _completed(allow, (), (*allow.remove_headers, *self.names))
        return self.nobodys


def _choice(rules: Iterable[JwtRule], issuer: str, verified_by: str | None) -> _Choice:
    """A token's own rule counts for it; for whoever came otherwise, as with a session, the rules of the issuer."""
    if verified_by is None:
        counting = [rule for rule in rules if rule.issuer and rule.issuer == issuer]
        taking: list[HeaderPlace] = []
    else:
        counting = [rule for rule in rules if verification(rule) == verified_by]
        places = [place for rule in counting if not rule.forward_original_token for place in places_of(rule)]
        taking = [place for place in places if isinstance(place, HeaderPlace)]
    telling = [rule for rule in counting if rule.output_payload_header or rule.output_claims]
    return _Choice(tuple(telling), tuple(dict.fromkeys(taking)), tuple(map(id, telling)))


def _completed(allow: Allow, told: tuple[tuple[str, str], ...], unwanted: tuple[str, ...]) -> _Completion:
    """``told`` is set besides, and whatever is ``unwanted`` and not set is removed: in Envoy removal wins over
    setting, whatever the case."""
    headers = (*allow.set_headers, *told)
    names = {name.lower() for name, _ in headers}
    emptied = tuple(name for name in dict.fromkeys(unwanted) if name.lower() not in names)
    kept = (name for name in allow.remove_headers if name.lower() not in names)
    return _Completion(headers, tuple(dict.fromkeys((*kept, *emptied))), Variant(emptied))
