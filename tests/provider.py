"""A fake OpenID provider on a real loopback socket.

Well-behaved and strict unless told otherwise: PKCE, redirect address, client authentication and
single use of codes are checked, and every call is recorded. `FakeProvider.misbehave` makes it
wrong in one way, by name, at run time; `FakeProvider.authorize` plays the browser's part.

::

    with FakeProvider() as provider:
        query = provider.authorize(url)          # log in at the authorization endpoint
        provider.misbehave("wrong_nonce")        # from now on
        provider.misbehave("slow_token", 5)      # seconds, until behave() or stop()
        assert len(provider.calls("token")) == 1
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import lru_cache
from http.client import HTTPConnection, HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, parse_qsl, quote, unquote_plus, urlencode, urljoin, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ENDPOINTS = ("discovery", "jwks", "authorize", "token", "userinfo", "revoke", "introspect", "end_session")

MISBEHAVIOURS: dict[str, str] = {
    # the ID token
    "wrong_issuer": "iss of the ID token has 1 appended",
    "missing_sub": "no sub",
    "empty_sub": "sub is empty",
    "numeric_sub": "sub is a number",
    "wrong_audience": "aud has 1 appended",
    "missing_aud": "no aud",
    "empty_aud": "aud is an empty list",
    "foreign_aud": "aud is a list without the client",
    "missing_iat": "no iat",
    "expired": "exp lies an hour back",
    "wrong_nonce": "nonce has 1 appended",
    "missing_nonce": "no nonce",
    "alg_none": "unsigned",
    "bad_signature": "each byte of the signature is changed",
    "no_kid": "no kid in the header, nor on the signing keys",
    "unknown_kid": "a kid that is in no key set; a new one each time",
    "wrong_at_hash": "at_hash of another access token",
    "id_token": "value: a function of (claims, header) that gives the whole token",
    "rotated_key": "new keys in the moment of signing",
    "token_id_token": "value: exactly this in place of the ID token",
    # the authorization response
    "authorize_error": "value: the error in place of a code",
    "wrong_iss_parameter": "value: iss of the response",
    "missing_iss_parameter": "no iss in the response, announced or not",
    "wrong_code": "a code that was never issued",
    # metadata and keys
    "other_issuer": "the metadata's issuer has text appended",
    "kept_discovery": "value: seconds for which a cache kept the metadata on their way",
    "dated_discovery": "value: exactly this as the Date of the metadata",
    "key_set": "value: exactly this as the key set (bytes, or an object)",
    # the token endpoint
    "token_invalid_grant": "400 invalid_grant",
    "token_invalid_client": "401 invalid_client",
    "token_200_error": "200 with an error member",
    "token_refused": "value: status and error of every answer",
    "token_no_id_token": "200 without id_token",
    "token_no_access_token": "200 without access_token",
    "token_answer": "value: members that replace those of the token answer; None removes one",
    # the token endpoint, for refresh tokens only
    "refresh_invalid_grant": "400 invalid_grant; the token is spent",
    "refresh_invalid_client": "401 invalid_client",
    "refresh_error_500": "500; nothing is spent",
    "refresh_lost": "new tokens are made, the old one is spent, and the connection closes without an answer",
    "slow_refresh": "value: seconds before the answer",
    "refresh_other_iss": "iss of the new ID token has 1 appended",
    "refresh_other_sub": "sub of the new ID token has 1 appended",
    "refresh_other_aud": "aud of the new ID token is another client",
    "refresh_other_nonce": "the new ID token has a nonce of another login",
    "refresh_same_nonce": "the new ID token has the nonce of the login",
    "refresh_other_auth_time": "auth_time of the new ID token is a second off",
    "refresh_old_iat": "iat of the new ID token lies two hours back",
    "refresh_no_id_token": "200 without id_token",
    "refresh_no_refresh_token": "200 without refresh_token; the old one stays good",
    # userinfo
    "userinfo_other_sub": "sub has text appended",
    "userinfo_missing_sub": "no sub",
    "userinfo_refused": "403 insufficient_scope",
    "userinfo_answer": "value: exactly this as the answer (bytes, or an object)",
    # revocation
    "revoke_unsupported": "400 unsupported_token_type",
    "revoke_204": "204 in place of 200",
    # introspection
    "introspect_inactive": "active is false, whatever the token",
    "introspect_wrong_aud": "aud is another service",
    "introspect_wrong_iss": "iss has 1 appended",
    "introspect_expired": "exp lies an hour back, active all the same",
    "introspect_busy": "429",
    "introspect_answer": "value: members that replace those of an active answer; None removes one",
    "introspect_body": "value: exactly these bytes as the answer",
    # the end of a session
    "end_session_other_state": "state comes back with text appended",
    "end_session_no_state": "no state comes back",
}
MISBEHAVIOURS |= {
    name.format(endpoint): meaning
    for endpoint in ENDPOINTS
    for name, meaning in {
        "slow_{}": "value: seconds before the answer",
        "drip_{}": "value: seconds between two bytes of the body",
        "endless_headers_{}": "headers without end",
        "cut_off_{}": "the connection closes in the middle of the body",
        "silent_{}": "the connection closes without an answer",
        "huge_{}": "a body without end",
        "gzip_bomb_{}": "a small compressed body that grows to a gigabyte",
        "redirect_{}": "value: where to; 302",
        "{}_error_404": "404",
        "{}_error_500": "500",
        "{}_html": "200 with a page",
        "{}_deep": "200 with JSON nested 100,000 deep",
        "{}_twice": "200 with the right JSON, its first member repeated",
        "{}_utf16": "200 with the right JSON in UTF-16",
        "{}_html_type": "200 with the right JSON, called text/html",
    }.items()
}

EVENT = "http://schemas.openid.net/event/backchannel-logout"
LOGOUT_TOKENS: dict[str, str] = {
    "alg_none": "unsigned",
    "wrong_alg": "ES256 by a published key",
    "bad_signature": "each byte of the signature is changed",
    "unknown_kid": "a kid that is in no key set; a new one each time",
    "typ_id": "typ is of another kind of token (at+jwt)",
    "no_iss": "no iss",
    "wrong_iss": "iss has 1 appended",
    "no_aud": "no aud",
    "wrong_aud": "aud has 1 appended",
    "no_iat": "no iat",
    "old_iat": "iat lies an hour back, without exp",
    "future_iat": "iat lies an hour ahead",
    "expired": "exp lies ten minutes back",
    "no_jti": "no jti",
    "no_event": "no events",
    "wrong_event": "another event",
    "events_list": "events is a list",
    "event_text": "the event's member is text",
    "with_nonce": "a nonce",
    "null_nonce": "a nonce that is null",
    "nobody": "neither sid nor sub",
}
"""Ways in which `FakeProvider.logout_token` makes a wrong one."""


def nasty_sid() -> str:
    """A new ``sid`` of 35 printable characters as the certification suite makes them (D20)."""
    return f"""{secrets.token_hex(8)} "'\\&#%41+<>;=,/?:@"""


@dataclass(frozen=True)
class Call:
    """One request that reached the provider. ``form`` has the decoded parameters of a form body."""

    endpoint: str
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    form: dict[str, str]


@dataclass
class _Grant:
    redirect_uri: str
    challenge: str
    nonce: str | None
    claims: dict[str, Any]
    sid: str | None = None


@dataclass
class _Reply:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def _json(status: int, value: object) -> _Reply:
    return _Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


@lru_cache(maxsize=None)
def rsa_key(number: int, bits: int = 2048) -> rsa.RSAPrivateKey:
    """RSA keys take long to make, so a test process makes each of them once."""
    return rsa.generate_private_key(65537, bits)


@lru_cache(maxsize=None)
def ec_key(number: int, curve: str = "secp256r1") -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(
        {"secp256r1": ec.SECP256R1, "secp256k1": ec.SECP256K1, "secp384r1": ec.SECP384R1}[curve]()
    )


def public_jwk(key: Any, **members: Any) -> dict[str, Any]:
    """The public half as a JWK with further members; one that is ``None`` is left out."""
    kinds = {rsa.RSAPrivateKey: "RS256", ec.EllipticCurvePrivateKey: "ES256"}
    algorithm = next((name for kind, name in kinds.items() if isinstance(key, kind)), "EdDSA")
    made = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    made.pop("key_ops", None)
    return {name: value for name, value in {**made, **members}.items() if value is not None}


class FakeProvider:
    """The provider. Attributes may be changed while it runs.

    ``claims`` are the person's, given by userinfo; ``id_token_claims`` stand in the ID token
    besides the protocol's, ``introspection_claims`` in an introspection. ``metadata`` replaces
    members of the discovery document (``None`` removes one). ``announces_iss`` switches RFC 9207
    on. ``clock`` gives the provider's time. ``new_sid`` makes the ``sid`` of each login; without it
    there is none. ``token_lifetime`` is an access token's, in seconds. ``has_end_session`` switches
    the end-session endpoint on; ``post_logout_addresses`` are the registered ones, and
    ``on_end_session`` runs before that endpoint answers.

    Refresh tokens rotate: each is good once. ``refreshes`` counts those that brought new tokens,
    ``spent_refreshes`` the attempts with a token that was used before.
    """

    def __init__(
        self,
        *,
        client_id: str = "authservice",
        client_secret: str = "a-client-secret",
        path: str = "",
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.client_id = client_id
        self.client_secret = client_secret
        self.client_key: Any = None
        self.claims: dict[str, Any] = {
            "sub": "248289761001",
            "email": "alice@example.com",
            "email_verified": True,
            "name": "Alice",
            "groups": ["admins", "dev"],
        }
        self.id_token_claims: dict[str, Any] = {}
        self.introspection_claims: dict[str, Any] = {}
        self.metadata: dict[str, Any] = {}
        self.announces_iss = False
        self.new_sid: Callable[[], str] | None = None
        self.token_lifetime = 3600
        self.has_end_session = False
        self.post_logout_addresses: set[str] = set()
        self.on_end_session: Callable[[Call], None] | None = None
        self.refreshes = 0
        self.spent_refreshes = 0
        self.clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc)
        self.jwks_path = "jwks"
        self.signing_algorithm = "RS256"
        self._path = path
        self._tls = tls
        self._host, self._port = host, port
        self._faults: dict[str, Any] = {}
        self._calls: list[Call] = []
        self._codes: dict[str, _Grant] = {}
        self._access_tokens: dict[str, dict[str, Any]] = {}
        self._expiries: dict[str, int] = {}
        self._refresh_tokens: dict[str, _Grant] = {}
        self._spent: set[str] = set()
        self._issued: set[str] = set()
        self._generation = 0
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._server: _Server | None = None

    # --- running ------------------------------------------------------------------------------

    def __enter__(self) -> FakeProvider:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listens; after a `stop` on the same port as before."""
        self.key_set()  # Keys take long to make, and whoever asks first would have to wait for them.
        self._stopping.clear()
        self._server = _Server((self._host, self._port), self, self._tls)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Stops listening and breaks every connection off."""
        self._stopping.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.break_connections()
            self._server = None

    @property
    def origin(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self._host}:{self._port}"

    @property
    def issuer(self) -> str:
        return self.origin + self._path

    def address(self, endpoint: str) -> str:
        """The URL of an endpoint."""
        return f"{self.origin}{self._path.rstrip('/')}/{endpoint}"

    # --- behaviour ----------------------------------------------------------------------------

    def misbehave(self, name: str, value: Any = True) -> None:
        """Be wrong in this way from now on; see `MISBEHAVIOURS` for names and values."""
        if name not in MISBEHAVIOURS:
            raise KeyError(f"{name} is no misbehaviour; there are {', '.join(sorted(MISBEHAVIOURS))}")
        self._faults[name] = value

    def behave(self, *names: str) -> None:
        """Stop being wrong, in these ways or in all."""
        for name in names or list(self._faults):
            self._faults.pop(name, None)

    def rotate_keys(self) -> None:
        """New keys under new names; the old ones are gone."""
        with self._lock:
            self._generation += 1

    @property
    def kid(self) -> str:
        return f"rsa-{self._generation}"

    @property
    def signing_key(self) -> rsa.RSAPrivateKey:
        return rsa_key(self._generation % 3)

    def calls(self, endpoint: str | None = None) -> list[Call]:
        """What reached an endpoint so far, or everything; ``"unknown"`` for paths that are none."""
        with self._lock:
            return [call for call in self._calls if endpoint in (None, call.endpoint)]

    def forget_calls(self) -> None:
        with self._lock:
            self._calls.clear()

    # --- the browser's part -------------------------------------------------------------------

    def authorize(self, url: str) -> str:
        """Follows an authorization URL as a logged-in person's browser; the callback's query."""
        return urlsplit(self.authorize_location(url)).query

    def authorize_location(self, url: str) -> str:
        """The same; the whole address that the provider sends the browser to."""
        parts = urlsplit(urljoin(self.origin, url))
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        options = {"context": ssl._create_unverified_context()} if kind is HTTPSConnection else {}
        connection = kind(parts.hostname or "", parts.port, timeout=10, **options)
        try:
            connection.request("GET", f"{parts.path}?{parts.query}")
            answer = connection.getresponse()
            body = answer.read().decode(errors="replace")
            assert answer.status == 302, f"the provider refused: {answer.status} {body}"
            return answer.getheader("Location") or ""
        finally:
            connection.close()

    # --- tokens for programs ------------------------------------------------------------------

    def opaque_token(self, lifetime: float = 300, **claims: Any) -> str:
        """An opaque access token about ``claims`` (the person's by default, with changes). Userinfo
        and introspection know it until it is revoked or ``lifetime`` seconds are over."""
        token = secrets.token_urlsafe(24)
        with self._lock:
            self._access_tokens[token] = {**self.claims, **claims}
            self._expiries[token] = int(self.clock().timestamp() + lifetime)
        return token

    def access_token(
        self, audience: str | list[str] = "api", *, key: Any = None, header: Mapping[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """A JWT access token (RFC 9068) about the person, with changed ``claims`` (`None` removes
        one). RS256 by the announced key, or by ``key``: with an EC key ES256. ``header`` replaces
        members of the header (`None` removes one)."""
        now = int(self.clock().timestamp())
        good = {
            "iss": self.issuer, "aud": audience, "iat": now, "exp": now + 300, "jti": secrets.token_hex(8),
            "client_id": "ci", "scope": "openid", **self.claims,
        }  # fmt: skip
        head = {"typ": "at+jwt", "kid": self.kid, **(header or {})}
        return jwt.encode(
            {name: value for name, value in {**good, **claims}.items() if value is not None},
            self.signing_key if key is None else key,
            algorithm="ES256" if isinstance(key, ec.EllipticCurvePrivateKey) else "RS256",
            headers={"typ": None, **{name: value for name, value in head.items() if value is not None}},
        )

    def revoke(self, token: str) -> None:
        """The token is worth nothing from now on."""
        with self._lock:
            self._access_tokens.pop(token, None)

    # --- endpoints ----------------------------------------------------------------------------

    def answer(self, call: Call) -> _Reply:
        """What a call gets, transport faults apart."""
        fault = self._faults
        endpoint = call.endpoint
        for status in (404, 500):
            if f"{endpoint}_error_{status}" in fault:
                return _json(status, {"error": "server_error", "error_description": "<b>secret detail</b>"})
        if f"redirect_{endpoint}" in fault:
            return _Reply(302, b"", {"Location": str(fault[f"redirect_{endpoint}"])})
        if f"{endpoint}_html" in fault:
            return _Reply(200, b"<!doctype html><title>Hello</title>", {"Content-Type": "text/html"})
        if f"{endpoint}_deep" in fault:
            return _Reply(
                200, b'{"a":' * 100_000 + b"1" + b"}" * 100_000, {"Content-Type": "application/json"}
            )
        answers: Mapping[str, Callable[[Call], _Reply]] = {
            "discovery": self._discovery,
            "jwks": self._jwks,
            "authorize": self._authorize,
            "token": self._token,
            "userinfo": self._userinfo,
            "revoke": self._revoke,
            "introspect": self._introspect,
            "end_session": self._end_session,
        }
        if endpoint not in answers:
            return _json(404, {"error": "not_found"})
        if endpoint == "end_session" and self.on_end_session is not None:
            self.on_end_session(call)
        with self._lock:
            return self._disguised(endpoint, answers[endpoint](call))

    def _disguised(self, endpoint: str, reply: _Reply) -> _Reply:
        if f"{endpoint}_html_type" in self._faults:
            reply.headers["Content-Type"] = "text/html"
        if f"{endpoint}_utf16" in self._faults:
            reply.body = reply.body.decode().encode("utf-16")
        if f"{endpoint}_twice" in self._faults:
            name = next(iter(json.loads(reply.body)))
            reply.body = f'{{{json.dumps(name)}: "other", '.encode() + reply.body.lstrip()[1:]
        return reply

    def _discovery(self, call: Call) -> _Reply:
        document: dict[str, Any] = {
            "issuer": self.issuer + ("/other" if "other_issuer" in self._faults else ""),
            "authorization_endpoint": self.address("authorize"),
            "token_endpoint": self.address("token"),
            "userinfo_endpoint": self.address("userinfo"),
            "revocation_endpoint": self.address("revoke"),
            "introspection_endpoint": self.address("introspect"),
            "jwks_uri": self.address(self.jwks_path),
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["none", "RS256", "ES256", "EdDSA"],
            "token_endpoint_auth_methods_supported": [
                "client_secret_basic", "client_secret_post", "private_key_jwt",
            ],
            "code_challenge_methods_supported": ["S256"],
        }  # fmt: skip
        if self.announces_iss:
            document["authorization_response_iss_parameter_supported"] = True
        if self.has_end_session:
            document["end_session_endpoint"] = self.address("end_session")
        document.update(self.metadata)
        return _json(200, {name: value for name, value in document.items() if value is not None})

    def key_set(self) -> dict[str, Any]:
        """One signing key of ours among keys of other types, curves and uses."""
        kid = None if "no_kid" in self._faults else self.kid
        others = [
            public_jwk(ec_key(0, "secp256k1"), kid="k1", use="sig", crv="secp256k1"),
            public_jwk(ec_key(0), kid="es", use="sig", alg="ES256"),
            public_jwk(_ed_key(), kid="ed", use="sig", alg="EdDSA"),
            public_jwk(rsa_key(3), kid="enc", use="enc", alg="RSA-OAEP"),
            public_jwk(ec_key(1), kid="ecenc", use="enc", alg="ECDH-ES"),
        ]
        return {"keys": [*others, public_jwk(self.signing_key, kid=kid, use="sig", alg="RS256")]}

    def _jwks(self, call: Call) -> _Reply:
        given = self._faults.get("key_set")
        if isinstance(given, bytes):
            return _Reply(200, given, {"Content-Type": "application/json"})
        return _json(200, self.key_set() if given is None else given)

    def _authorize(self, call: Call) -> _Reply:
        asked = call.query
        wrong = self._what_is_wrong_with(asked)
        if wrong:
            return _json(400, {"error": "invalid_request", "error_description": wrong})
        given: dict[str, str] = {"state": asked["state"]}
        if "authorize_error" in self._faults:
            given |= {
                "error": str(self._faults["authorize_error"]),
                "error_description": "<script>alert(1)</script>",
            }
        else:
            code = secrets.token_hex(16)
            if "wrong_code" not in self._faults:
                self._codes[code] = _Grant(
                    asked["redirect_uri"], asked["code_challenge"], asked.get("nonce"), dict(self.claims),
                    None if self.new_sid is None else self.new_sid(),
                )  # fmt: skip
            given["code"] = code
        if self.announces_iss and "missing_iss_parameter" not in self._faults:
            given["iss"] = self.issuer
        if "wrong_iss_parameter" in self._faults:
            given["iss"] = str(self._faults["wrong_iss_parameter"])
        joint = "&" if "?" in asked["redirect_uri"] else "?"
        return _Reply(302, b"", {"Location": f"{asked['redirect_uri']}{joint}{urlencode(given)}"})

    def _what_is_wrong_with(self, asked: Mapping[str, str]) -> str:
        wanted = {"response_type": "code", "client_id": self.client_id, "code_challenge_method": "S256"}
        for name, value in wanted.items():
            if asked.get(name) != value:
                return f"{name} is {asked.get(name)}"
        for name in ("state", "redirect_uri", "code_challenge", "nonce"):
            if not asked.get(name):
                return f"no {name}"
        if "openid" not in asked.get("scope", "").split():
            return "scope lacks openid"
        if "#" in asked["redirect_uri"] or "request" in asked:
            return "a fragment or a request object"
        return ""

    def _token(self, call: Call) -> _Reply:
        if "token_invalid_grant" in self._faults:
            return _json(400, {"error": "invalid_grant", "error_description": "<b>secret detail</b>"})
        if "token_invalid_client" in self._faults or not self._authenticated(call):
            return _json(401, {"error": "invalid_client"})
        if "token_refused" in self._faults:
            status, error = self._faults["token_refused"]
            return _json(status, {"error": error})
        if "token_200_error" in self._faults:
            return _json(200, {"error": "invalid_grant"})
        if call.form.get("grant_type") == "refresh_token":
            return self._refresh(call.form.get("refresh_token", ""))
        grant = self._redeemed(call)
        if grant is None:
            return _json(400, {"error": "invalid_grant"})
        return _json(200, self._tokens(grant))

    def _refresh(self, token: str) -> _Reply:
        """RFC 6749 §6 with rotation; a person's newer claims stand in the new tokens."""
        if "refresh_error_500" in self._faults:
            return _json(500, {"error": "invalid_grant"})
        if "refresh_invalid_client" in self._faults:
            return _json(401, {"error": "invalid_client"})
        self.spent_refreshes += token in self._spent
        grant = self._refresh_tokens.pop(token, None)
        if grant is None or "refresh_invalid_grant" in self._faults:
            return _json(400, {"error": "invalid_grant", "error_description": "<b>secret detail</b>"})
        self.refreshes += 1
        if self.claims.get("sub") == grant.claims["sub"]:
            grant = replace(grant, claims=dict(self.claims))
        answer = self._tokens(grant, refreshed=True)
        if "refresh_no_refresh_token" in self._faults:
            del self._refresh_tokens[answer.pop("refresh_token")]
            self._refresh_tokens[token] = grant
        else:
            self._spent.add(token)
        return _json(200, answer)

    def _redeemed(self, call: Call) -> _Grant | None:
        """The grant of a code, once, for who began and with the same redirect address."""
        grant = self._codes.pop(call.form.get("code", ""), None)
        if grant is None or call.form.get("grant_type") != "authorization_code":
            return None
        verifier = call.form.get("code_verifier", "")
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        fits = challenge == grant.challenge and call.form.get("redirect_uri") == grant.redirect_uri
        return grant if fits and 43 <= len(verifier) <= 128 else None

    def _tokens(self, grant: _Grant, refreshed: bool = False) -> dict[str, Any]:
        access, refresh = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        self._access_tokens[access] = grant.claims
        self._expiries[access] = int(self.clock().timestamp() + self.token_lifetime)
        self._refresh_tokens[refresh] = grant
        answer: dict[str, Any] = {
            "access_token": access,
            "token_type": "Bearer",
            "expires_in": self.token_lifetime,
            "refresh_token": refresh,
            "id_token": self._id_token(grant, access, refreshed),
        }
        self._issued.add(answer["id_token"])
        if refreshed and "refresh_no_id_token" in self._faults:
            del answer["id_token"]
        for name in ("id_token", "access_token"):
            if f"token_no_{name}" in self._faults:
                answer.pop(name, None)
        if "token_id_token" in self._faults:
            answer["id_token"] = self._faults["token_id_token"]
        answer.update(self._faults.get("token_answer", {}))
        return {name: value for name, value in answer.items() if value is not None}

    def _authenticated(self, call: Call) -> bool:
        """RFC 6749 §2.3.1: decoded from base64 first, from form encoding second."""
        if self.client_key is not None:
            return self._assertion_holds(call.form.get("client_assertion", ""))
        given = call.headers.get("authorization", "")
        if given.startswith("Basic "):
            name, _, secret = base64.b64decode(given[6:]).decode().partition(":")
            return (unquote_plus(name), unquote_plus(secret)) == (self.client_id, self.client_secret)
        if not self.client_secret:
            return call.form.get("client_id") == self.client_id
        return (call.form.get("client_id"), call.form.get("client_secret")) == (
            self.client_id,
            self.client_secret,
        )

    def _assertion_holds(self, assertion: str) -> bool:
        try:
            claims = jwt.decode(
                assertion, self.client_key, algorithms=["RS256", "ES256", "EdDSA"],
                audience=self.address("token"), issuer=self.client_id,
                options={"require": ["exp", "jti", "sub"]},
            )  # fmt: skip
        except jwt.PyJWTError:
            return False
        return bool(claims["sub"] == self.client_id)

    def _userinfo(self, call: Call) -> _Reply:
        token = call.headers.get("authorization", "").removeprefix("Bearer ")
        claims = self._access_tokens.get(token)
        if claims is None or self._is_over(token) or "access_token" in call.query:
            return _Reply(401, b"", {"WWW-Authenticate": 'Bearer error="invalid_token"'})
        if "userinfo_refused" in self._faults:
            return _Reply(403, b"", {"WWW-Authenticate": 'Bearer error="insufficient_scope"'})
        given = self._faults.get("userinfo_answer")
        if isinstance(given, bytes):
            return _Reply(200, given, {"Content-Type": "application/json"})
        answer = dict(claims) if given is None else given
        if "userinfo_other_sub" in self._faults:
            answer["sub"] = f"{answer['sub']}-other"
        if "userinfo_missing_sub" in self._faults:
            del answer["sub"]
        return _json(200, answer)

    def _revoke(self, call: Call) -> _Reply:
        if not self._authenticated(call):
            return _json(401, {"error": "invalid_client"})
        if "revoke_unsupported" in self._faults:
            return _json(400, {"error": "unsupported_token_type"})
        token = call.form.get("token", "")
        self._access_tokens.pop(token, None)
        self._refresh_tokens.pop(token, None)
        return _Reply(204 if "revoke_204" in self._faults else 200)

    def _introspect(self, call: Call) -> _Reply:
        fault = self._faults
        if call.method != "POST" or not self._authenticated(call):
            return _json(401, {"error": "invalid_client"})
        if "introspect_busy" in fault:
            return _json(429, {"error": "temporarily_unavailable"})
        if "introspect_body" in fault:
            return _Reply(200, fault["introspect_body"], {"Content-Type": "application/json"})
        token = call.form.get("token", "")
        person = self._access_tokens.get(token)
        if person is None or self._is_over(token) or "introspect_inactive" in fault:
            return _json(200, {"active": False})
        answer: dict[str, Any] = {
            "active": True, "iss": self.issuer, "sub": person["sub"], "aud": [self.client_id],
            "client_id": "ci", "scope": "openid", "token_type": "Bearer", "exp": self._expiries.get(token),
            **self.introspection_claims,
        }  # fmt: skip
        if "introspect_wrong_aud" in fault:
            answer["aud"] = "another-service"
        if "introspect_wrong_iss" in fault:
            answer["iss"] = f"{self.issuer}1"
        if "introspect_expired" in fault:
            answer["exp"] = int(self.clock().timestamp()) - 3600
        answer.update(fault.get("introspect_answer", {}))
        return _json(200, {name: value for name, value in answer.items() if value is not None})

    def _is_over(self, token: str) -> bool:
        expires = self._expiries.get(token)
        return expires is not None and self.clock().timestamp() >= expires

    # --- the ID token -------------------------------------------------------------------------

    def _id_token(self, grant: _Grant, access_token: str, refreshed: bool = False) -> str:
        fault = self._faults
        if "rotated_key" in fault:
            self.rotate_keys()
        # A refreshed one should have no nonce (OpenID Connect Core 1.0 §12.2).
        claims = self.good_claims(grant.claims["sub"], None if refreshed else grant.nonce, access_token)
        if grant.sid is not None:
            claims["sid"] = grant.sid
        changes: dict[str, dict[str, Any]] = {
            "wrong_issuer": {"iss": claims["iss"] + "1"},
            "missing_sub": {"sub": None},
            "empty_sub": {"sub": ""},
            "numeric_sub": {"sub": 42},
            "wrong_audience": {"aud": f"{claims['aud']}1"},
            "missing_aud": {"aud": None},
            "empty_aud": {"aud": []},
            "foreign_aud": {"aud": ["another-client"]},
            "missing_iat": {"iat": None},
            "expired": {"exp": claims["exp"] - 3900},
            "wrong_nonce": {"nonce": f"{grant.nonce}1"},
            "missing_nonce": {"nonce": None},
            "wrong_at_hash": {"at_hash": half_sha256("another access token")},
        }
        if refreshed:
            changes |= {
                "refresh_other_iss": {"iss": claims["iss"] + "1"},
                "refresh_other_sub": {"sub": f"{claims['sub']}1"},
                "refresh_other_aud": {"aud": "another-client"},
                "refresh_other_nonce": {"nonce": f"{grant.nonce}1"},
                "refresh_same_nonce": {"nonce": grant.nonce},
                "refresh_other_auth_time": {"auth_time": claims.get("auth_time", 0) + 1},
                "refresh_old_iat": {"iat": claims["iat"] - 7200},
            }
        for name, change in changes.items():
            if name in fault:
                claims = {key: value for key, value in {**claims, **change}.items() if value is not None}
        return self._signed(claims)

    def good_claims(self, sub: str, nonce: str | None, access_token: str = "") -> dict[str, Any]:
        """The claims of a correct ID token."""
        now = int(self.clock().timestamp())
        claims = {
            "iss": self.issuer,
            "sub": sub,
            "aud": self.client_id,
            "iat": now,
            "exp": now + 300,
            "nonce": nonce,
            "at_hash": half_sha256(access_token) if access_token else None,
            **self.id_token_claims,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def _signed(self, claims: dict[str, Any]) -> str:
        fault = self._faults
        header: dict[str, Any] = {"kid": self.kid}
        if "no_kid" in fault:
            header = {}
        if "unknown_kid" in fault:
            header = {"kid": secrets.token_hex(8)}
        if "id_token" in fault:
            return str(fault["id_token"](claims, header))
        token = self.sign(claims, header)
        if "alg_none" in fault:
            return jwt.encode(claims, "", algorithm="none", headers=header)
        return with_bad_signature(token) if "bad_signature" in fault else token

    def sign(self, claims: Mapping[str, Any], header: Mapping[str, Any] | None = None) -> str:
        """A token signed with the key that the key set announces for signing."""
        return jwt.encode(
            dict(claims),
            self.signing_key,
            algorithm="RS256",
            headers={"kid": self.kid} if header is None else dict(header),
        )

    # --- logout tokens ------------------------------------------------------------------------

    def logout_token(self, wrong: str = "", *, sub: str | None = None, sid: str | None = None,
                     header: Mapping[str, Any] | None = None, **claims: Any) -> str:
        """A logout token about a subject, a ``sid`` or both, as the certification suite makes them:
        without ``typ``, with ``exp`` in two minutes and a claim of no meaning. ``wrong`` is one of
        `LOGOUT_TOKENS`; ``claims`` replace (`None` removes one); ``header`` replaces members."""
        if wrong not in ("", *LOGOUT_TOKENS):
            raise KeyError(f"{wrong} is no wrong logout token; there are {', '.join(LOGOUT_TOKENS)}")
        now = int(self.clock().timestamp())
        good = {
            "iss": self.issuer, "aud": self.client_id, "iat": now, "exp": now + 120, "sub": sub, "sid": sid,
            "jti": secrets.token_hex(16), "events": {EVENT: {}}, "x-no-meaning": secrets.token_hex(4), **claims,
        }  # fmt: skip
        changes: dict[str, dict[str, Any]] = {
            "no_iss": {"iss": None}, "wrong_iss": {"iss": f"{self.issuer}1"},
            "no_aud": {"aud": None}, "wrong_aud": {"aud": f"{self.client_id}1"},
            "no_iat": {"iat": None}, "old_iat": {"iat": now - 3600, "exp": None},
            "future_iat": {"iat": now + 3600, "exp": now + 3720}, "expired": {"exp": now - 600},
            "no_jti": {"jti": None}, "no_event": {"events": None},
            "wrong_event": {"events": {"http://schemas.openid.net/event/other": {}}},
            "events_list": {"events": [EVENT]}, "event_text": {"events": {EVENT: "{}"}},
            "with_nonce": {"nonce": "n-1"}, "nobody": {"sub": None, "sid": None},
        }  # fmt: skip
        payload = {k: v for k, v in {**good, **changes.get(wrong, {})}.items() if v is not None}
        if wrong == "null_nonce":
            payload["nonce"] = None
        head: dict[str, Any] = {"typ": None, "kid": self.kid, **(header or {})}
        if wrong == "alg_none":
            return jwt.encode(payload, "", algorithm="none", headers=head)
        if wrong == "wrong_alg":
            return jwt.encode(payload, ec_key(0), algorithm="ES256", headers={**head, "kid": "es"})
        if wrong == "unknown_kid":
            head["kid"] = secrets.token_hex(8)
        if wrong == "typ_id":
            head["typ"] = "at+jwt"
        token = self.sign(payload, head)
        return with_bad_signature(token) if wrong == "bad_signature" else token

    def _end_session(self, call: Call) -> _Reply:
        """RP-Initiated Logout 1.0 §2, §3: the hint is a token that was issued here, the address one
        that is registered."""
        asked = {**call.query, **call.form}
        address = asked.get("post_logout_redirect_uri")
        hint = asked.get("id_token_hint")
        if hint is not None and hint not in self._issued:
            return _json(400, {"error": "invalid_request", "error_description": "id_token_hint"})
        if asked.get("client_id", self.client_id) != self.client_id:
            return _json(400, {"error": "invalid_request", "error_description": "client_id"})
        if address is None:
            return _Reply(200, b"<!doctype html><title>Logged out</title>", {"Content-Type": "text/html"})
        if address not in self.post_logout_addresses:
            return _json(400, {"error": "invalid_request", "error_description": "post_logout_redirect_uri"})
        state = asked.get("state")
        if state is not None and "end_session_other_state" in self._faults:
            state += "-other"
        if state is None or "end_session_no_state" in self._faults:
            return _Reply(302, b"", {"Location": address})
        joint = "&" if "?" in address else "?"
        return _Reply(302, b"", {"Location": f"{address}{joint}{urlencode({'state': state})}"})


def with_bad_signature(token: str) -> str:
    """The token with each byte of its signature changed."""
    signed, _, signature = token.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
    changed = bytes(byte ^ 0x5A for byte in raw)
    return f"{signed}.{base64.urlsafe_b64encode(changed).rstrip(b'=').decode()}"


def half_sha256(value: str) -> str:
    """``at_hash`` for RS256 and ES256."""
    return base64.urlsafe_b64encode(hashlib.sha256(value.encode()).digest()[:16]).rstrip(b"=").decode()


@lru_cache(maxsize=None)
def _ed_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], provider: FakeProvider, tls: ssl.SSLContext | None) -> None:
        self.provider = provider
        self._tls = tls
        self._open: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, peer = super().get_request()
        connection.settimeout(30)
        self._open.add(connection)
        return connection, peer

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self._tls is not None:
            try:
                request = self._tls.wrap_socket(request, server_side=True)
            except OSError:
                return
        self._open.add(request)
        try:
            super().finish_request(request, client_address)
        except OSError:
            pass
        finally:
            self._open.discard(request)

    def break_connections(self) -> None:
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        provider = self.server.provider
        call = self._read_call(provider)
        with provider._lock:
            provider._calls.append(call)
        faults, endpoint = provider._faults, call.endpoint
        if f"silent_{endpoint}" in faults:
            self.close_connection = True
            return
        if f"slow_{endpoint}" in faults:
            provider._stopping.wait(float(faults[f"slow_{endpoint}"]))
        refreshing = call.form.get("grant_type") == "refresh_token"
        if refreshing and "slow_refresh" in faults:
            provider._stopping.wait(float(faults["slow_refresh"]))
        reply = provider.answer(call)
        if refreshing and "refresh_lost" in faults:
            self.close_connection = True
            return
        try:
            self._send(provider, endpoint, reply)
        except OSError:
            self.close_connection = True

    do_POST = do_PUT = do_HEAD = do_DELETE = do_GET

    def _read_call(self, provider: FakeProvider) -> Call:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        base = provider._path.rstrip("/")
        paths = {
            f"{base}/.well-known/openid-configuration": "discovery",
            f"{base}/{provider.jwks_path}": "jwks",
            **{f"{base}/{name}": name for name in ENDPOINTS if name not in ("discovery", "jwks")},
        }
        # Parameters that come twice are no form that a client of ours sends.
        form = parse_qs(body.decode(errors="replace"), keep_blank_values=True)
        assert all(len(values) == 1 for values in form.values())
        return Call(
            endpoint=paths.get(parts.path, "unknown"),
            method=self.command,
            path=self.path,
            query=dict(parse_qsl(parts.query, keep_blank_values=True)),
            headers={name.lower(): value for name, value in self.headers.items()},
            form={name: values[0] for name, values in form.items()},
        )

    def _send(self, provider: FakeProvider, endpoint: str, reply: _Reply) -> None:
        faults = provider._faults
        kept, date = int(faults.get(f"kept_{endpoint}", 0)), faults.get(f"dated_{endpoint}")
        self.send_response_only(reply.status)
        self.send_header("Date", date or self.date_time_string(time.time() - kept))
        if kept:
            self.send_header("Age", str(kept))
        for name, value in reply.headers.items():
            self.send_header(
                name, quote(value, safe="!#$%&'()*+,/:;=?@[]~ \"") if name == "Location" else value
            )
        if f"endless_headers_{endpoint}" in faults:
            return self._send_for_ever(provider, lambda n: f"X-Header-{n}: 1\r\n".encode(), 0.02)
        if f"huge_{endpoint}" in faults:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            return self._send_for_ever(provider, lambda n: b"10000\r\n" + b" " * 0x10000 + b"\r\n", 0)
        if f"gzip_bomb_{endpoint}" in faults:
            reply.body = _gzip_bomb()
            self.send_header("Content-Encoding", "gzip")
        self.send_header(
            "Content-Length", str(len(reply.body) + (50 if f"cut_off_{endpoint}" in faults else 0))
        )
        self.end_headers()
        if f"cut_off_{endpoint}" in faults:
            self.close_connection = True
        if f"drip_{endpoint}" in faults:
            self.wfile.flush()
            return self._send_for_ever(
                provider, lambda n: reply.body[n : n + 1], float(faults[f"drip_{endpoint}"]), len(reply.body)
            )
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def _send_for_ever(
        self, provider: FakeProvider, piece: Callable[[int], bytes], pause: float, pieces: int = 1_000_000
    ) -> None:
        self.flush_headers()
        for number in range(pieces):
            if provider._stopping.wait(pause) if pause else provider._stopping.is_set():
                break
            self.wfile.write(piece(number))
            self.wfile.flush()
        self.close_connection = True


@lru_cache(maxsize=None)
def _gzip_bomb() -> bytes:
    """A gigabyte of zeros in about a megabyte, without an end (nobody should read so far)."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    first, block = (packer.compress(b"\0" * (1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + block * 1023
