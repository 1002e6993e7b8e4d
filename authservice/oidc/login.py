"""One login: sending a browser to the provider, and believing what comes back, or not.

`LoginFlow` keeps the order that makes the difference: nothing is called before the answer is
known to belong to a login that this very browser began, the code is redeemed at most once, and
userinfo is not asked before the ID token holds. What a session is, and what a cookie line looks
like, is not known here. Called by the judge and the site.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import unquote_to_bytes

from authservice.check import Reach
from authservice.errors import LoginNotOurs, NotReady, ProviderBusy, ProviderSaidNo, ProviderWrong
from authservice.identity import VerifiedClaims
from authservice.oidc.claims import check_address, merge_claims
from authservice.oidc.client import Client, Tokens
from authservice.oidc.metadata import Metadata
from authservice.oidc.pending import (
    MAX_STATE,
    PENDING_LIFETIME,
    Cookies,
    Pending,
    PendingLogins,
    Sealer,
)
from authservice.oidc.provider import Provider
from authservice.oidc.tokens import ID_TOKEN, Expected, TokenRefused
from authservice.oidc.verifier import Verifier

MAX_QUERY = 131072
MAX_CODE = 4096
_READ = frozenset({"state", "code", "error", "iss"})
_ONCE = _READ | {"error_description", "error_uri", "session_state"}


@dataclass(frozen=True, slots=True)
class Begun:
    """Where to send the browser, the cookie (name, value, lifetime) to give it, the names of those
    to take away. ``url`` may be relative to the own host, as the authorization endpoint may."""

    url: str
    set_cookie: tuple[str, str, timedelta]
    drop_cookies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """A login that holds. ``claims`` are those of ID token and userinfo, merged; ``id_token`` is
    kept byte for byte; ``return_to`` is empty for the default page; the cookie named
    ``served_cookie`` can go (``None``: another login still needs it); ``bore`` says of a session's secret whether
    the browser may have had it when the login began. Times are aware; what the provider did not give is empty or
    ``None``."""

    claims: VerifiedClaims
    id_token: str = field(repr=False)
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    access_token_expires: datetime | None
    provider_sid: str
    return_to: str
    served_cookie: str | None
    bore: Callable[[str], bool] = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Answer:
    """The callback's query. ``flaw`` says what is wrong with it, in our words."""

    parameters: Mapping[str, str]
    flaw: str = ""

    def get(self, name: str) -> str:
        return self.parameters.get(name, "")


class LoginFlow:
    """Begins and finishes logins at one provider.

    ``spend(name, lifetime)`` says whether it is the first to use up a name, across all workers
    and replicas. ``cookie_prefix`` is the session cookie's name.
    """

    def __init__(
        self,
        provider: Provider,
        client: Client,
        sealer: Sealer,
        *,
        spend: Callable[[str, timedelta], bool],
        now: Callable[[], datetime],
        cookie_prefix: str,
        algorithms: tuple[str, ...] = ("RS256",),
        trusted_audiences: frozenset[str] = frozenset(),
        new_token: Callable[[int], str] = secrets.token_urlsafe,
    ) -> None:
        """ValueError for an algorithm that is none of `oidc.keys.SIGNING_ALGORITHMS`."""
        self._provider = provider
        self._client = client
        self._spend = spend
        self._logins = PendingLogins(sealer, cookie_prefix, now, new_token)
        expected = Expected(
            issuer=provider.issuer,
            client_id=client.client_id,
            audiences=frozenset({client.client_id}),
            algorithms=algorithms,
            trusted_audiences=trusted_audiences,
        )
        self._verifier = Verifier(provider, ID_TOKEN, expected, now)

    def begin(self, return_to: str, cookies: Cookies, reach: Reach = Reach.NETWORK) -> Begun:
        """Begins a login that comes back to ``return_to``, an address that was checked before.

        Raises `errors.NotReady`, and `check.NeedsIO` under `Reach.MEMORY`.
        """
        metadata = self._provider.metadata(reach)
        pending = self._logins.new(return_to, cookies)
        url = self._client.authorization_url(
            metadata, state=self._logins.seal_state(pending), nonce=pending.nonce, verifier=pending.verifier
        )
        name = self._logins.cookie_name(pending)
        return Begun(
            url=url,
            set_cookie=(name, self._logins.seal_cookie(pending), PENDING_LIFETIME),
            drop_cookies=self._logins.to_drop(cookies, name),
        )

    def finish(self, query: str, cookies: Cookies) -> Finished:
        """Finishes the login that a callback's raw query and the browser's cookies belong to.

        In this order: the provider is known; the state is ours and young, and so is this browser's
        cookie; the login was not used yet; the query is sound; the answer is this provider's
        (RFC 9207); it is no error; the code is redeemed; the ID token holds; userinfo is about the
        same person. Raises `errors.LoginRefused` in its kinds and `errors.Unavailable`.
        """
        metadata = self._provider.metadata(Reach.NETWORK)
        answer = _read_query(query)
        state = self._logins.open_state(answer.get("state"))
        if state is None:
            raise LoginNotOurs("state is missing or not ours")
        pending = self._logins.find(state, cookies)
        if pending is None:
            raise LoginNotOurs("no pending login of this state in this browser")
        if not self._spend(f"login:{state.id}", PENDING_LIFETIME):
            raise LoginNotOurs("this login was used already")
        _check_answer(answer, metadata)
        tokens = self._client.redeem(metadata, answer.get("code"), pending.verifier)
        claims = self._check_id_token(tokens, pending, answer.get("code"))
        return self._finished(self._with_userinfo(metadata, claims, tokens), tokens, pending)

    def return_address(self, query: str, cookies: Cookies = ()) -> str | None:
        """Where a callback's login would have led, for somebody who is logged in by now; empty for
        the default page, ``None`` when the query's state is not ours. Age does not matter here."""
        state = self._logins.open_state(_read_query(query).get("state"))
        if state is None:
            return None
        pending = self._logins.find(state, cookies)
        return pending.return_to if pending is not None else state.return_to

    def _check_id_token(self, tokens: Tokens, pending: Pending, code: str) -> VerifiedClaims:
        hashed = {"at_hash": tokens.access_token, "c_hash": code}
        try:
            return self._verifier.verify(tokens.id_token, nonce=pending.nonce, hashed=hashed)
        except TokenRefused as refused:
            raise ProviderWrong(f"ID token: {refused.check}") from None
        except NotReady as unknown:
            # The code is spent: trying the same address again would not help.
            raise ProviderWrong(f"ID token: {unknown}") from None

    def _with_userinfo(self, metadata: Metadata, claims: VerifiedClaims, tokens: Tokens) -> VerifiedClaims:
        userinfo: dict[str, Any] = {}
        if metadata.userinfo_endpoint is not None:
            userinfo = self._client.userinfo(metadata, tokens.access_token)
            if userinfo.get("sub") != claims["sub"]:
                raise ProviderWrong("userinfo: sub is not the ID token's")
        merged = merge_claims(claims, userinfo)
        check_address(merged)
        return VerifiedClaims(merged)

    def _finished(self, claims: VerifiedClaims, tokens: Tokens, pending: Pending) -> Finished:
        sid = claims.get("sid", "")
        return Finished(
            claims=claims,
            id_token=tokens.id_token,
            access_token=tokens.access_token,
            refresh_token=tokens.refresh_token,
            access_token_expires=tokens.access_token_expires,
            provider_sid=sid if isinstance(sid, str) else "",
            return_to=pending.return_to,
            served_cookie=None if pending.keeps_others else self._logins.cookie_name(pending),
            bore=pending.bore,
        )


def _read_query(query: str) -> _Answer:
    """The parameters of a raw query (OpenID Connect Core 1.0 §3.1.2.5). Names that nobody knows
    are passed over. What came twice counts as the first (RFC 6749 §3.1 forbids it: a flaw)."""
    if len(query) > MAX_QUERY:
        return _Answer({}, "the query is too long")
    parameters: dict[str, str] = {}
    flaw = ""
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        known = _decode(name)
        if known not in _ONCE:
            continue
        text = _decode(value)
        if known in parameters:
            flaw = f"{known} appears twice"
        elif text is None and known in _READ:
            flaw = f"{known} is not text"
        parameters.setdefault(known, text or "")
    return _Answer(parameters, flaw or _flaw(parameters))


def _flaw(parameters: Mapping[str, str]) -> str:
    code, error = parameters.get("code"), parameters.get("error")
    if len(parameters.get("state", "")) > MAX_STATE:
        return "state is too long"
    if (code is None) == (error is None):
        return "both code and error" if code is not None else "neither code nor error"
    if code is not None and not 0 < len(code) <= MAX_CODE:
        return "code is empty or too long"
    if error == "":
        return "error is empty"
    return ""


def _decode(text: str) -> str | None:
    """Form decoding; ``None`` for what is no printable ASCII, which is all that is ever sent here
    (RFC 6749 appendix A)."""
    try:
        decoded = unquote_to_bytes(text.replace("+", " ").encode("latin-1")).decode("ascii")
    except UnicodeError:
        return None
    return decoded if decoded.isprintable() else None


def _check_answer(answer: _Answer, metadata: Metadata) -> None:
    """Whether an answer that belongs to a login of this browser has a code to redeem."""
    if answer.flaw:
        raise LoginNotOurs(answer.flaw)
    if "iss" in answer.parameters:
        if answer.get("iss") != metadata.issuer:
            raise LoginNotOurs("iss is another provider's")
    elif metadata.announces_iss:
        raise LoginNotOurs("iss is missing though announced")
    error = answer.parameters.get("error")
    if error == "server_error":
        raise ProviderWrong("the provider answered server_error")
    if error == "temporarily_unavailable":
        raise ProviderBusy("the provider answered temporarily_unavailable")
    if error is not None:
        raise ProviderSaidNo(f"the provider answered {error if error in _ERRORS else 'an error'}")


_ERRORS = frozenset({
    "access_denied", "invalid_request", "unauthorized_client", "unsupported_response_type",
    "invalid_scope", "login_required", "interaction_required", "consent_required",
    "account_selection_required",
})  # fmt: skip
