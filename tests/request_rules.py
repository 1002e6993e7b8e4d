"""RequestAuthentications for tests: issuers with keys of their own, rules as YAML, and what a check gets.

::

    anna = Issuer("anna", 11)
    front = Front(anna.rule(audiences=["api"]))
    front.decide(bearer(anna.token(aud="api")))        # an Allow, with her identity
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import jwt

from authservice.authn import Authenticator
from authservice.authn.cache import BearerCache
from authservice.authn.outputs import Outputs
from authservice.authn.request import RequestAuthenticator, Sources
from authservice.authz import Authorizer
from authservice.check import Allow, CheckRequest, Decision, Deny, Login, Reach
from authservice.identity import AuthMethod, ClaimRules, Identity, IdentityHeaders, VerifiedClaims
from authservice.oidc.issuers import FurtherIssuer, KeySource
from authservice.outbound import Http
from authservice.pipeline import Pipeline, is_preflight
from authservice.policy.compile import PolicySet
from authservice.policy.resources import JwtRule
from authservice.urls import PathPrefixes, ReturnAddresses, canonical_path
from tests.policy_sets import authentication, policy_set
from tests.provider import public_jwk, rsa_key

IDENTITY_HEADERS = IdentityHeaders("kubeflow-userid", "kubeflow-groups", "Auth-Method")


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


@dataclass
class Issuer:
    """One who signs tokens, with its own RSA key."""

    name: str
    number: int
    kid: str | None = "key"

    @property
    def issuer(self) -> str:
        return f"https://{self.name}.example"

    @property
    def jwks(self) -> str:
        return json.dumps({"keys": [public_jwk(rsa_key(self.number), kid=self.kid)]})

    def token(self, *, key: Any = None, header: Mapping[str, Any] | None = None, algorithm: str = "RS256",
              now: datetime | None = None, **claims: Any) -> str:
        """Good for five minutes; ``claims`` change what it says, and ``None`` removes."""
        issued = int((now or utc_now()).timestamp())
        said = {"iss": self.issuer, "sub": f"person@{self.name}", "exp": issued + 300, **claims}
        return jwt.encode(
            {name: value for name, value in said.items() if value is not None},
            rsa_key(self.number) if key is None else key,
            algorithm=algorithm,
            headers={"kid": self.kid} if header is None else dict(header),
        )

    def rule(self, **fields: Any) -> dict[str, Any]:
        """A jwtRule with these keys inline; ``fields`` change it, and ``None`` removes."""
        rule = {"issuer": self.issuer, "jwks": self.jwks, **fields}
        return {name: value for name, value in rule.items() if value is not None}


def bearer(token: str, target: str = "/app", **headers: str) -> CheckRequest:
    return check(target, authorization=f"Bearer {token}", **headers)


def check(target: str = "/app", *, method: str = "GET", host: str = "app.example", **headers: str) -> CheckRequest:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return CheckRequest(method, "https", host, target, canonical_path(target), named, "203.0.113.9", "envoy")


@dataclass
class Holder:
    """What `policy.current.Policies` is to those who ask."""

    current: PolicySet


@dataclass
class Session:
    """An authenticator in the place of the session's: whoever is not asked about otherwise is this one."""

    identity: Identity | None = None
    asked: int = 0
    name: str = "session"

    def authenticate(self, check: CheckRequest, reach: Reach) -> Identity | None:
        self.asked += 1
        return self.identity


def person(issuer: str, **claims: Any) -> Identity:
    """Somebody with a cookie session."""
    told = {"iss": issuer, "sub": "alice", **claims}
    return Identity("alice@example.com", (), VerifiedClaims(told), AuthMethod.COOKIE, issuer)


@dataclass
class Front:
    """A pipeline with the rules of one RequestAuthentication, or of a whole set, and the session behind them."""

    rule: Mapping[str, Any] | None = None
    policies: PolicySet | None = None
    session: Session = field(default_factory=Session)
    now: Callable[[], datetime] = utc_now
    known: Mapping[tuple[str, str], KeySource] = field(default_factory=dict)
    lifetime: timedelta | None = timedelta(minutes=5)
    others: Sequence[Authenticator] = ()
    authorizers: Sequence[Authorizer] = ()
    userid_claim: str = "email"

    def __post_init__(self) -> None:
        given = self.policies or policy_set(authentication(*([dict(self.rule)] if self.rule else [])))
        self.holder = Holder(given)
        self.made: list[JwtRule] = []
        self.sources = Sources(self.known, self._make)
        self.authenticator = RequestAuthenticator(
            self.holder,
            BearerCache(100, self.lifetime, self.now),
            self.sources,
            ClaimRules(self.userid_claim, "groups"),
            now=self.now,
            skips=is_preflight,
        )
        self.pipeline = Pipeline(
            open_paths=PathPrefixes(["/public"]),
            preflights_pass=False,
            authenticators=(self.authenticator, *self.others, self.session),
            authorizers=tuple(self.authorizers),
            headers=IDENTITY_HEADERS,
            ready=lambda reach: None,
            redirects=lambda check: False,
            return_addresses=ReturnAddresses("https", "app.example", (), default="/home"),
            outputs=Outputs(self.holder),
            policies=lambda: self.holder.current,
        )

    def _make(self, rule: JwtRule) -> KeySource:
        self.made.append(rule)
        return FurtherIssuer(rule.issuer, Http(None, rule.timeout), now=self.now, jwks_url=rule.jwks_uri)

    def decide(self, check: CheckRequest, reach: Reach = Reach.NETWORK) -> Decision:
        return self.pipeline.decide(check, reach)

    def user(self, check: CheckRequest) -> str:
        """Who passes, as whom; fails when nobody does."""
        decision = self.decide(check)
        assert isinstance(decision, Allow) and decision.identity is not None, decision
        return decision.identity.user_id

    def outcome(self, check: CheckRequest) -> int:
        """200 for whoever passes, the status of a denial, and 302 for whoever is asked to authenticate."""
        match self.decide(check):
            case Allow():
                return 200
            case Deny(status=status):
                return status
            case Login():
                return 302
