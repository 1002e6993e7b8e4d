"""One check, from question to decision.

`Pipeline.decide` is the only place where the order of the steps is written: paths that are open,
true preflights, who is asking, what they may. It knows no HTTP framework, writes no log and makes
no cookie, so that every edge (Flask, tests, a faster server) asks exactly the same rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from msgspec.structs import replace

from authservice.authn import Authenticator
from authservice.authz import Authorizer, Granted, Refusal
from authservice.check import AUTH_REQUEST, Allow, CheckRequest, Decision, Deny, Login, Reach, Remark
from authservice.errors import AuthServiceError, Refused
from authservice.identity import Identity, IdentityHeaders
from authservice.urls import PathPrefixes, ReturnAddresses

INVALID_TOKEN = 'Bearer error="invalid_token"'
"""The challenge for a credential that was recognised and is bad (RFC 6750 §3.1)."""


class Pipeline:
    """The rules of one service, in their order.

    ``ready`` raises `errors.NotReady` while nobody could log in. ``redirects`` says for a check
    whether an unauthenticated client is sent to the login rather than told to authenticate. ``outputs``
    completes each allow by what policies tell the application besides. ``admits_anonymous`` says of a
    check without any credential whether nobody in particular may. ``policies`` gives the set that counts
    now, which several of these ask: no decision is half of one set and half of another.
    """

    def __init__(
        self,
        *,
        open_paths: PathPrefixes,
        preflights_pass: bool,
        authenticators: Sequence[Authenticator],
        authorizers: Sequence[Authorizer],
        headers: IdentityHeaders,
        ready: Callable[[Reach], object],
        redirects: Callable[[CheckRequest], bool],
        return_addresses: ReturnAddresses,
        outputs: Callable[[CheckRequest, Allow], Allow] | None = None,
        admits_anonymous: Callable[[CheckRequest], Granted | None] | None = None,
        policies: Callable[[], object] | None = None,
    ) -> None:
        self._open_paths = open_paths
        self._preflights_pass = preflights_pass
        self._authenticators = tuple(authenticators)
        self._authorizers = tuple(authorizers)
        self._headers = headers
        self._ready = ready
        self._redirects = redirects
        self._return_addresses = return_addresses
        self._outputs = outputs
        self._admits_anonymous = admits_anonymous
        self.decide: Callable[[CheckRequest, Reach], Decision] = self._decide
        """Exactly one of allow, deny and login.

        Raises `check.NeedsIO` (only under `Reach.MEMORY`) when a step would have to wait; every
        failure of the closed family becomes a `Deny`, here and nowhere else.
        """
        if policies is not None:
            self.decide = partial(self._by_one_set, policies)
        self._nobody = Allow(None, *headers.render(None))

    def _by_one_set(self, policies: Callable[[], object], check: CheckRequest, reach: Reach) -> Decision:
        while True:
            before = policies()
            decision = self._decide(check, reach)
            if policies() is before:
                return decision

    def _decide(self, check: CheckRequest, reach: Reach) -> Decision:
        if self._open_paths.matches(check.path) or (
            self._preflights_pass and check.method == "OPTIONS" and is_preflight(check)
        ):
            return self._nobody if self._outputs is None else self._outputs(check, self._nobody)
        try:
            identity = self.authenticate(check, reach)
            if identity is None:
                granted = self._admits_anonymous(check) if self._admits_anonymous else None
                if granted is not None:
                    nobody = replace(self._nobody, remarks=granted.remarks)
                    return nobody if self._outputs is None else self._outputs(check, nobody)
                self._ready(reach)
                return self._login(check)
            return self._authorize(check, identity, reach)
        except Refused as error:
            return Deny(
                error.status, error.reason, error.public, challenge=INVALID_TOKEN, cause=str(error)
            )
        except AuthServiceError as error:
            return Deny(error.status, error.reason, error.public, cause=str(error))

    def authenticate(self, check: CheckRequest, reach: Reach) -> Identity | None:
        """Who asks, if anybody; whether they may is another question. Raises `errors.Refused` and
        `errors.Unavailable`, and `check.NeedsIO` under `Reach.MEMORY`."""
        for authenticator in self._authenticators:
            identity = authenticator.authenticate(check, reach)
            if identity is not None:
                return identity
        return None

    def _authorize(self, check: CheckRequest, identity: Identity, reach: Reach) -> Decision:
        remarks: tuple[Remark, ...] = ()
        for authorizer in self._authorizers:
            word = authorizer.authorize(check, identity, reach)
            if word is None:
                continue
            remarks += word.remarks
            if isinstance(word, Refusal):
                return Deny(
                    403, word.reason, word.public, identity=identity, detail=word.detail, cause=word.cause,
                    remarks=remarks,
                )
        # Rendered once for each identity. (What is kept is not the Allow, which leads back to the identity: such
        # rings are not freed at once.)
        rendered = identity.made.get(self)
        if rendered is None:
            rendered = identity.made[self] = self._headers.render(identity)
        allow = Allow(identity, rendered[0], rendered[1], remarks)
        return allow if self._outputs is None else self._outputs(check, allow)

    def _login(self, check: CheckRequest) -> Login:
        return_to = self._return_addresses.for_check(check.scheme, check.host, check.target)
        return Login(return_to, redirect=self._redirects(check))


def is_preflight(check: CheckRequest) -> bool:
    """A true CORS preflight: OPTIONS with both headers that make it one (Fetch §4.8). None on oauth2-proxy's ``auth``,
    to which a client may have told the method itself."""
    return (
        check.method == "OPTIONS"
        and check.dialect != AUTH_REQUEST
        and check.header("origin") != ""
        and check.header("access-control-request-method") != ""
    )
