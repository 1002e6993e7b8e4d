"""Logout between us and the provider: what we ask of it, and what its notices mean.

The address to send a browser to (OpenID Connect RP-Initiated Logout 1.0), logout tokens
(Back-Channel Logout 1.0) and the parameters of the front-channel page (Front-Channel Logout 1.0).
A notice is turned into the sessions that it speaks of; finding and ending them, cookies and
answers are the site's. Notices come from anybody: nothing of one is believed before it holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from authservice.check import Reach
from authservice.oidc.issuers import KeySource
from authservice.oidc.metadata import Metadata
from authservice.oidc.tokens import LOGOUT_TOKEN, LOGOUT_TOKEN_AGE, SKEW, Expected, TokenRefused
from authservice.oidc.verifier import Verifier

LOGOUT_EVENT = "http://schemas.openid.net/event/backchannel-logout"
MAX_URL = 7 * 1024
"""Bytes of an end-session address. Servers and proxies in between commonly take 8 KiB of request line."""

MAX_FORM = 64 * 1024
MAX_JTI = 512
MAX_SID = 1024
_MAX_FIELDS = 32
_MAX_QUERY = 8 * 1024
_ORIGIN_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")


class LogoutRefused(Exception):
    """A notice that is not what it should be: nothing ends. ``check`` is the word for the check that
    failed; nothing of the notice is quoted."""

    def __init__(self, check: str) -> None:
        super().__init__(check)
        self.check = check


# --- started by us ----------------------------------------------------------------------------


def end_session_url(
    metadata: Metadata, *, client_id: str, id_token: str, return_to: str, state: str
) -> str | None:
    """Where to send the browser to log out at the provider too (RP-Initiated Logout 1.0 §2); ``None``
    when the provider has no such endpoint.

    ``id_token`` goes as it came, byte for byte, and is left out when the address would be longer than
    `MAX_URL`. ``return_to`` is an address registered at the provider. What is empty is left out. The
    endpoint's own query is kept, and what it sets itself is not set again.
    """
    endpoint = metadata.end_session_endpoint
    if endpoint is None:
        return None
    parameters = {
        "id_token_hint": id_token,
        "client_id": client_id,
        "post_logout_redirect_uri": return_to,
        "state": state if return_to else "",
    }
    own = {name for name, _ in parse_qsl(urlsplit(endpoint).query, keep_blank_values=True)}
    ours = {name: value for name, value in parameters.items() if value and name not in own}
    url = _with_query(endpoint, ours)
    if len(url) > MAX_URL:
        ours.pop("id_token_hint", None)
        url = _with_query(endpoint, ours)
    return url


def _with_query(endpoint: str, parameters: dict[str, str]) -> str:
    joint = "?" if "?" not in endpoint else "" if endpoint.endswith(("?", "&")) else "&"
    return endpoint + joint + urlencode(parameters, quote_via=quote, safe="") if parameters else endpoint


# --- back-channel -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LogoutNotice:
    """A logout token that holds. At least one of ``subject`` and ``sid`` is not empty: with both, only
    sessions end that are of this subject and this ``sid``; with one, all that are of it. The same
    ``jti`` of this issuer must not be accepted again before ``remember_until`` (aware UTC); later the
    token is too old in any case."""

    issuer: str
    subject: str = field(repr=False)
    sid: str = field(repr=False)
    jti: str = field(repr=False)
    remember_until: datetime


class BackChannel:
    """Reads one provider's logout tokens. Safe for threads: nothing is kept between calls."""

    def __init__(
        self,
        source: KeySource,
        client_id: str,
        *,
        now: Callable[[], datetime],
        algorithms: tuple[str, ...] = ("RS256",),
        trusted_audiences: frozenset[str] = frozenset(),
    ) -> None:
        """``algorithms`` and ``trusted_audiences`` are those of ID tokens (Back-Channel Logout 1.0
        §2.6). ValueError for an algorithm that is none of `oidc.keys.SIGNING_ALGORITHMS`."""
        expected = Expected(
            issuer=source.issuer,
            client_id=client_id,
            audiences=frozenset({client_id}),
            algorithms=algorithms,
            trusted_audiences=trusted_audiences,
        )
        self._verifier = Verifier(source, LOGOUT_TOKEN, expected, now)

    def read(self, token: str, reach: Reach = Reach.NETWORK) -> LogoutNotice:
        """What a logout token says, when it holds (Back-Channel Logout 1.0 §2.4, §2.6). Whether its
        ``jti`` was seen before is left to the caller. May wait for the provider's keys, as often as
        their source allows, whoever sends tokens.

        Raises `LogoutRefused`, `errors.NotReady` when the keys cannot be had now, and
        `check.NeedsIO` under `Reach.MEMORY` when they must be asked for.
        """
        try:
            claims = self._verifier.verify(token, reach)
        except TokenRefused as refused:
            raise LogoutRefused(refused.check) from None
        events = claims["events"]
        _check(isinstance(events, dict) and isinstance(events.get(LOGOUT_EVENT), dict), "events")
        subject, sid, jti = claims.get("sub", ""), claims.get("sid", ""), claims["jti"]
        _check(0 < len(jti) <= MAX_JTI, "jti")
        _check("sid" not in claims or 0 < len(sid) <= MAX_SID, "sid")
        _check(bool(subject or sid), "sub or sid")
        return LogoutNotice(claims["iss"], subject, sid, jti, _last_moment(claims))


def read_logout_form(content_type: str, body: bytes) -> str:
    """The logout token in a request's body (Back-Channel Logout 1.0 §2.5). Other fields may stand
    beside it; it may not be there twice. ``body`` is whole, or its first `MAX_FORM` + 1 bytes.

    Raises `LogoutRefused`.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    _check(media_type == "application/x-www-form-urlencoded", "content type")
    _check(len(body) <= MAX_FORM, "size")
    try:
        text = body.decode("ascii")
        fields = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS)
    except ValueError:
        raise LogoutRefused("form") from None
    tokens = [value for name, value in fields if name == "logout_token"]
    _check(len(tokens) == 1 and tokens[0] != "", "logout_token")
    return tokens[0]


def _last_moment(claims: Mapping[str, Any]) -> datetime:
    """After which the token is too old by every clock that differs from ours as far as allowed."""
    seconds = min(claims["iat"] + LOGOUT_TOKEN_AGE.total_seconds(), claims.get("exp", float("inf")))
    return datetime.fromtimestamp(seconds, timezone.utc) + 2 * SKEW


# --- front-channel ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FrontChannelNotice:
    """A front-channel request about the session whose cookie came with it. ``sids`` are the readings
    of the ``sid`` that was given; empty when none was, and then the session ends whatever it is."""

    sids: tuple[str, ...]

    def ends(self, provider_sid: str) -> bool:
        """Whether it means the session of this ``sid`` (empty for one that has none)."""
        return not self.sids or provider_sid in self.sids


def read_front_channel(query: str, issuer: str) -> FrontChannelNotice:
    """The raw query of a front-channel logout request (Front-Channel Logout 1.0 §2): ``iss``, which
    must be ``issuer``, and ``sid``, both or none, each once; other parameters are passed over.

    Some providers put a ``sid`` into the address as it is, so a plus sign in it may be one.
    Raises `LogoutRefused`.
    """
    _check(len(query) <= _MAX_QUERY and query.isascii(), "query")
    given: dict[str, list[str]] = {"iss": [], "sid": []}
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        given.get(_unquote(name), []).append(value)
    _check(len(given["iss"]) == len(given["sid"]) <= 1, "iss and sid")
    if not given["iss"]:
        return FrontChannelNotice(())
    _check(_unquote(given["iss"][0]) == issuer, "iss")
    raw = given["sid"][0]
    sids = (_unquote(raw), _unquote(raw.replace("+", "%2B")))
    _check(0 < len(sids[0]) <= MAX_SID, "sid")
    return FrontChannelNotice(tuple(dict.fromkeys(sids)))


def provider_origins(metadata: Metadata) -> tuple[str, ...]:
    """The origins that the provider's own pages come from, as a content policy writes them (CSP3
    §2.3.1): of its issuer, its authorization endpoint and its end-session endpoint."""
    addresses = (metadata.issuer, metadata.authorization_endpoint, metadata.end_session_endpoint or "")
    return tuple(dict.fromkeys(origin for origin in map(_origin, addresses) if origin))


def _origin(address: str) -> str:
    """Empty for an address that has none, or one with characters that mean something in a policy."""
    parts = urlsplit(address)
    host, _, port = parts.netloc.rpartition(":") if parts.port is not None else (parts.netloc, "", "")
    if parts.scheme not in ("https", "http") or not _ORIGIN_HOST.fullmatch(host):
        return ""
    return f"{parts.scheme}://{host.lower()}" + (f":{port}" if port else "")


def _unquote(text: str) -> str:
    try:
        return unquote(text.replace("+", " "), errors="strict")
    except UnicodeDecodeError:
        raise LogoutRefused("query") from None


def _check(holds: bool, check: str) -> None:
    if not holds:
        raise LogoutRefused(check)
