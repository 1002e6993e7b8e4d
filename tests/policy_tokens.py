"""Tokens at random, good and bad, in right and wrong places: what the differential run sends besides.

Made from a number as the sets of `tests.policy_generator` are. At most one token of a request is good, and
``Bearer`` is spelled so: the service refuses two good ones, and takes other spellings.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jwt

from tests.policy_generator import ISSUERS, Json, Maker, PolicySet, Sent
from tests.provider import ec_key, public_jwk

FLAWS = tuple(
    "signature,issuer,expired,early,alg none,unknown kid,garbage,no dots,another's key,no issuer".split(",")
)
FLAWS_OF_SOME = ("audience", "no audience")  # only a rule with audiences minds
HARMLESS = ("", "", "", "", "no kid", "just expired", "soon valid", "no exp", "issued later")
PLACES = (
    "authorization",
    "param access_token",
    "header x-jwt",
    "header x-token",
    "cookie token",
    "param jwt",
)


@dataclass(frozen=True)
class Placed:
    """A token: the claims in it, what is the matter with it, and where it stands."""

    where: str
    claims: Mapping[str, Any]
    matter: str = ""


@lru_cache(maxsize=None)
def key_set(issuer: str) -> Json:
    """The keys of an issuer: each has its own."""
    number = 1 + ISSUERS.index(issuer)
    return {"keys": [public_jwk(ec_key(number), kid=f"key-{number}", alg="ES256", use="sig")]}


def text(token: Placed) -> str:
    """The token itself."""
    claims, matter, now = dict(token.claims), token.matter, int(time.time())
    if matter in ("garbage", "no dots"):
        return "a.b.c" if matter == "garbage" else "nothing"
    number = 1 + ISSUERS.index(claims["iss"])
    claims["exp"] = now + 600
    changes: dict[str, Json] = {
        "issuer": {"iss": "https://nobody.example"},
        "audience": {"aud": "somebody-else"},
        "expired": {"exp": now - 120},
        "early": {"nbf": now + 120},
        "just expired": {"exp": now - 20},
        "soon valid": {"nbf": now + 30},
        "issued later": {"iat": now + 600},
    }
    claims.update(changes.get(matter, {}))
    claims.pop({"no audience": "aud", "no exp": "exp", "no issuer": "iss"}.get(matter, ""), None)
    header: dict[str, Any] = {"kid": f"key-{number}"}
    if matter == "no kid":
        header = {}
    if matter == "unknown kid":
        header["kid"] = "key-9"
    if matter == "alg none":
        return jwt.encode(claims, "", algorithm="none", headers=header)
    signed = jwt.encode(
        claims, ec_key(number % 3 + 1 if matter == "another's key" else number), "ES256", header
    )
    if matter == "signature":
        head, _, signature = signed.rpartition(".")
        return f"{head}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"
    return signed


def sent_with(sent: Sent, tokens: Sequence[Placed], noise: str = "") -> Sent:
    """The request with its tokens. ``noise`` is an Authorization header that holds none."""
    headers, cookies, target = list(sent.headers), [], sent.target
    for token in tokens:
        kind, _, name = token.where.partition(" ")
        if kind == "authorization":
            headers.append(("Authorization", f"Bearer {text(token)}"))
        elif kind == "header":
            headers.append((name, ("JWT " if name == "x-token" else "") + text(token)))
        elif kind == "cookie":
            cookies.append(f"{name}={text(token)}")
        else:
            target += ("&" if "?" in target else "?") + f"{name}={text(token)}"
    if noise and not any(token.where == "authorization" for token in tokens):
        headers.append(("Authorization", noise))
    if cookies:
        headers.append(("Cookie", "; ".join(["theme=dark", *cookies])))
    return replace(sent, headers=tuple(headers), target=target, tokens=len(tokens))


def token_set(seed: int, requests: int) -> PolicySet:
    """A set whose rules look for tokens in several places, and requests with all kinds of tokens."""
    return _TokenMaker(random.Random(seed)).make(seed, requests)


class _TokenMaker(Maker):
    """Makes one set; ``places`` are where its rules look."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__(draw, key_set)
        self.places: list[str] = []

    def jwt_rule(self, issuer: str) -> Json:
        rule = super().jwt_rule(issuer)
        if self.maybe(0.1):
            rule["audiences"] = ["my-backend-client"]
        if self.maybe(0.5):
            self.places += ["authorization", "param access_token"]
            return rule
        for place in self.some(PLACES, (1, 1, 2)):
            kind, _, name = place.partition(" ")
            if kind == "authorization":
                rule.setdefault("fromHeaders", []).append({"name": "Authorization", "prefix": "Bearer "})
            elif kind == "header":
                prefix = {"prefix": "JWT "} if name == "x-token" else {}
                rule.setdefault("fromHeaders", []).append({"name": name, **prefix})
            else:
                rule.setdefault("fromParams" if kind == "param" else "fromCookies", []).append(name)
            self.places.append(place)
        return rule

    def finished(self, sent: Sent, rules: Sequence[Json]) -> Sent:
        """The request with up to two tokens, at most one of them good; some are preflights."""
        if self.maybe(0.06):
            preflight = (("Origin", "https://spa.example"), ("Access-Control-Request-Method", "GET"))
            sent = replace(
                sent, method="OPTIONS", headers=(*sent.headers, *preflight[: self.draw.choice((1, 2, 2))])
            )
        tokens: list[Placed] = []
        if not rules:
            return sent
        # The service wants to know who it is; Envoy does not.
        claims = {**(sent.claims or self.claims(rules)), "sub": self.draw.choice(("alice", "bob"))}
        for place in dict.fromkeys(self.draw.choice((*self.places, *self.places, *PLACES)) for _ in range(2)):
            good = not tokens and self.maybe(0.75)
            if tokens and not self.maybe(0.15):
                break
            flaws = FLAWS if tokens else (*FLAWS, *FLAWS_OF_SOME, *FLAWS_OF_SOME)
            matter = self.draw.choice(HARMLESS if good else flaws)
            tokens.append(Placed(place, claims, matter))
        noise = self.draw.choice(("", "", "", "Basic YTpi", "Bearer ", "Bearer", "Negotiate abc"))
        if self.maybe(0.1):
            tokens = []
        return replace(sent_with(sent, tokens, noise), claims=None)
