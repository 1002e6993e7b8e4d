"""Where the tokens of a RequestAuthentication's rules stand in a request (M51 to M53).

A place gives what stands there, good or bad: whether it is worth anything is `authn.request`'s to find out.
What has the form of a session's secret is left to the session wherever it stands. `authn.outputs` asks which
headers held a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote_plus

from authservice.authn.bearer import AUTHORIZATION, bearer_credential
from authservice.check import CheckRequest
from authservice.errors import Refused
from authservice.policy.resources import JwtRule
from authservice.sessions.cookies import read_cookies
from authservice.sessions.seal import is_secret

_BEARER = "bearer"
_LONGER_THAN_SECRETS = 256
_PARAMETER = "access_token"  # RFC 6750 §2.3


@dataclass(frozen=True, slots=True)
class HeaderPlace:
    """A header by its lower-case name, and what stands in front of the token."""

    name: str
    prefix: str

    def tokens(self, check: CheckRequest) -> list[str]:
        """The token, if there is one. Raises `errors.Refused` for what might be two."""
        value = check.headers.get(self.name)
        if value is None:
            return []
        token = self._token(value)
        return [] if token is None or is_secret(token.rpartition(" ")[2]) else [token]

    def holds_token(self, check: CheckRequest) -> bool:
        """Whether a token was found here. For a check whose tokens were verified: what is longer than any
        session's secret, and begins as it should, was one of them."""
        value = check.headers.get(self.name, "")
        return (len(value) > _LONGER_THAN_SECRETS and value.startswith(self.prefix)) or bool(self.tokens(check))

    def _token(self, value: str) -> str | None:
        """``Bearer`` is a scheme, and schemes have no case (RFC 9110 §11.1); any other prefix is itself."""
        is_bearer = self.prefix.strip().lower() == _BEARER
        if is_bearer and self.name == AUTHORIZATION:
            return bearer_credential(AUTHORIZATION, value)
        at = value.find(self.prefix)
        if at < 0 and is_bearer and value.lower().startswith(self.prefix.lower()):
            at = 0
        if at < 0:
            return None
        token = value[at + len(self.prefix):].strip()
        if "," in token:
            raise Refused(f"more than one {self.name} header")
        return token


@dataclass(frozen=True, slots=True)
class ParameterPlace:
    """A parameter of the query."""

    name: str

    def tokens(self, check: CheckRequest) -> list[str]:
        """Its values: nobody can tell which of several the application would believe."""
        _, mark, query = check.target.partition("?")
        if not mark or (self.name not in query and "%" not in query and "+" not in query):
            return []
        found = []
        for piece in query.split("&"):
            name, _, value = piece.partition("=")
            if name == self.name or (("%" in name or "+" in name) and unquote_plus(name) == self.name):
                found.append(unquote_plus(value))
        return [token for token in found if not is_secret(token)]


@dataclass(frozen=True, slots=True)
class CookiePlace:
    """A cookie."""

    name: str

    def tokens(self, check: CheckRequest) -> list[str]:
        """Its values, as of a parameter."""
        cookies = check.header("cookie")
        if self.name not in cookies:
            return []
        values = [_unquoted(value) for name, value in read_cookies(cookies) if name == self.name]
        return [token for token in values if not is_secret(token)]


Place = HeaderPlace | ParameterPlace | CookiePlace

_USUAL: tuple[Place, ...] = (HeaderPlace(AUTHORIZATION, "Bearer "), ParameterPlace(_PARAMETER))


def places_of(rule: JwtRule) -> tuple[Place, ...]:
    """Where a rule looks; the usual two when it names none (M51)."""
    named: tuple[Place, ...] = (
        *(HeaderPlace(name, prefix) for name, prefix in rule.from_headers),
        *map(ParameterPlace, rule.from_params),
        *map(CookiePlace, rule.from_cookies),
    )
    return named or _USUAL


def _unquoted(value: str) -> str:
    """A cookie's value may stand in double quotes (RFC 6265 §4.1.1)."""
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
