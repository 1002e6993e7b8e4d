"""A stand-in for a cluster's API server: TokenReview v1 over TLS, with the cluster's own authority.

Real tokens (signed, audience-bound, expiring), real authentication of the caller by token or client
certificate, and RBAC: nobody may review tokens who is not bound to ``system:auth-delegator``.
`FakeCluster.misbehave` makes it fail in one way, by name, until `behave`.

::

    with FakeCluster() as cluster:
        folder = cluster.mount(tmp_path)              # what the kubelet mounts into our pod
        token = cluster.token("jobs", "nightly", audiences=["authservice"])
        cluster.rotate(folder)                        # as about every hour
        cluster.misbehave("slow", 5)
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import trustme
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

ISSUER = "https://kubernetes.default.svc.cluster.local"
PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
AUTHSERVICE = "system:serviceaccount:auth:authservice"
FOR_US = "istio-ingressgateway.istio-system.svc.cluster.local"
"""The default of ``AUDIENCES``."""

MISBEHAVIOURS: dict[str, str] = {
    "status_401": "the caller is not believed, whoever it is",
    "status_403": "the caller may not, whoever it is",
    "status_429": "too many requests, with Retry-After",
    "status_500": "an internal error",
    "status_503": "not available",
    "slow": "value: seconds before the answer",
    "drip": "value: seconds between two bytes of the answer",
    "reset": "value: how many connections are reset before an answer",
    "no_audiences": "authenticated, by somebody who does not know audiences",
    "other_audiences": "authenticated, for an audience that nobody asked for",
    "truthy": "authenticated is the text true",
    "error_beside_yes": "authenticated, with an error of another authenticator of the chain",
    "user": "value: exactly this user",
    "code": "value: the status of the answer that has the review",
    "body": "value: exactly these bytes as the answer",
}


@lru_cache(maxsize=4)
def _rsa_key(number: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@dataclass(frozen=True)
class Seen:
    """One request that came."""

    method: str
    path: str
    caller: str
    body: dict[str, Any] = field(repr=False)

    @property
    def spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.body["spec"]
        return spec


class FakeCluster:
    """One API server on a free port of 127.0.0.1."""

    def __init__(self) -> None:
        self.authority = trustme.CA(organization_name="kubernetes")
        self.delegators = {AUTHSERVICE}
        self.seen: list[Seen] = []
        self._numbers = itertools.count(1)
        self._revoked: set[str] = set()
        self._wrong: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._server = _Server(self)
        self.port = int(self._server.server_address[1])

    # --- life ---

    def __enter__(self) -> FakeCluster:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    @property
    def address(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    # --- tokens ---

    def token(
        self,
        namespace: str = "jobs",
        name: str = "nightly",
        *,
        audiences: Sequence[str] = (FOR_US,),
        lifetime: timedelta = timedelta(hours=1),
        key: int = 0,
        **claims: Any,
    ) -> str:
        """A service account's token, as TokenRequest gives it."""
        now = datetime.now(timezone.utc)
        number = next(self._numbers)
        content = {
            "iss": ISSUER,
            "sub": f"system:serviceaccount:{namespace}:{name}",
            "aud": list(audiences),
            "iat": now,
            "nbf": now - timedelta(minutes=1) + min(lifetime, timedelta(0)),
            "exp": now + lifetime,
            "jti": f"00000000-0000-4000-8000-{number:012}",
            "kubernetes.io": {
                "namespace": namespace,
                "serviceaccount": {"name": name, "uid": _uid(namespace, name)},
                "pod": {"name": f"{name}-0", "uid": _uid(namespace, name, "pod")},
            },
            **claims,
        }
        return jwt.encode(content, _rsa_key(key), "RS256", headers={"kid": "cluster"})

    def revoke(self, token: str) -> None:
        """Its pod is gone: the token counts no longer, expired or not."""
        self._revoked.add(token)

    def renew_authority(self, mounted: Path) -> None:
        """A new authority, told to our pod, and nothing left of connections made under the old one."""
        self.authority = trustme.CA(organization_name="kubernetes, renewed")
        self._server.serve_with(self.authority)
        (mounted / "ca.crt").write_bytes(self.authority.cert_pem.bytes())
        self._server.hang_up()

    @property
    def connections(self) -> int:
        """How many connections were opened so far."""
        return self._server.connections

    # --- what callers have ---

    def mount(self, folder: Path) -> Path:
        """Writes our pod's service account as the kubelet does, and gives the folder."""
        mounted = folder / "serviceaccount"
        mounted.mkdir(parents=True)
        (mounted / "namespace").write_text("auth")
        (mounted / "ca.crt").write_bytes(self.authority.cert_pem.bytes())
        self.rotate(mounted)
        return mounted

    def rotate(self, mounted: Path) -> str:
        """A new token in the folder; the one before counts no longer. Gives the new one."""
        file = mounted / "token"
        if file.exists():
            self.revoke(file.read_text())
        token = self.token("auth", "authservice", audiences=[ISSUER])
        with tempfile.NamedTemporaryFile("w", dir=mounted, delete=False) as fresh:
            fresh.write(token)
        Path(fresh.name).replace(file)
        return token

    def environ(self) -> dict[str, str]:
        """The variables of every pod of this cluster."""
        return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.port)}

    def kubeconfig(self, file: Path, user: Mapping[str, Any], **cluster: Any) -> Path:
        """A kubeconfig with one context: ``user`` as in its ``users``, ``cluster`` beside server and CA."""
        authority = base64.b64encode(self.authority.cert_pem.bytes()).decode()
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
            "clusters": [
                {"name": "here",
                 "cluster": {"server": self.address, "certificate-authority-data": authority, **cluster}}
            ],
            "users": [{"name": "me", "user": dict(user)}],
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(content))
        return file

    def certificate_user(self, name: str) -> dict[str, str]:
        """A kubeconfig user with a client certificate for ``name``."""
        made = self.authority.issue_cert(common_name=name)
        return {
            "client-certificate-data": base64.b64encode(made.cert_chain_pems[0].bytes()).decode(),
            "client-key-data": base64.b64encode(made.private_key_pem.bytes()).decode(),
        }

    # --- misbehaviour ---

    def misbehave(self, how: str, value: Any = True) -> None:
        assert how in MISBEHAVIOURS, how
        with self._lock:
            self._wrong[how] = value

    def behave(self) -> None:
        with self._lock:
            self._wrong.clear()

    def wrong(self, how: str) -> Any:
        with self._lock:
            return self._wrong.get(how)

    def reset_one(self) -> bool:
        """Whether this connection is one of those to reset."""
        with self._lock:
            left = self._wrong.get("reset", 0)
            self._wrong["reset"] = max(left - 1, 0)
            return bool(left)

    # --- the API server's own work ---

    def authenticate(self, token: str, audiences: Sequence[str]) -> dict[str, Any]:
        """The ``status`` of a review."""
        asked = list(audiences) or [ISSUER]
        try:
            if token in self._revoked:
                raise jwt.InvalidTokenError("the pod is gone")
            claims = jwt.decode(
                token, _rsa_key(0).public_key(), ["RS256"], audience=asked, issuer=ISSUER,
                options={"require": ["exp", "iat", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            return {"error": "[invalid bearer token, service account token has expired]", "user": {}}
        except jwt.PyJWTError:
            return {"error": "[invalid bearer token, error in cryptographic primitive]", "user": {}}
        bound = claims["kubernetes.io"]
        namespace, account = bound["namespace"], bound["serviceaccount"]
        return {
            "authenticated": True,
            "user": {
                "username": claims["sub"],
                "uid": account["uid"],
                "groups": [
                    "system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"
                ],
                "extra": {
                    "authentication.kubernetes.io/credential-id": [f"JTI={claims['jti']}"],
                    "authentication.kubernetes.io/pod-name": [bound["pod"]["name"]],
                    "authentication.kubernetes.io/pod-uid": [bound["pod"]["uid"]],
                },
            },
            "audiences": [one for one in asked if one in claims["aud"]],
        }

    def caller(self, authorization: str, certificate: bytes | None) -> str | None:
        """Who calls: by client certificate, else by token; ``None`` for a token that is bad."""
        if certificate is not None:
            subject = x509.load_der_x509_certificate(certificate).subject
            return str(subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)
        scheme, _, token = authorization.partition(" ")
        if scheme != "Bearer":
            return "system:anonymous"
        username = self.authenticate(token, []).get("user", {}).get("username")
        return str(username) if username else None


def _uid(*names: str) -> str:
    digits = hashlib.sha256("/".join(names).encode()).hexdigest()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:32]}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, cluster: FakeCluster) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.cluster = cluster
        self.stopping = threading.Event()
        self.connections = 0
        self._open: set[ssl.SSLSocket] = set()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.serve_with(cluster.authority)

    def serve_with(self, authority: trustme.CA) -> None:
        authority.issue_cert("127.0.0.1", "kubernetes.default.svc").configure_cert(self._context)
        authority.configure_trust(self._context)
        self._context.verify_mode = ssl.CERT_OPTIONAL

    def finish_request(self, request: Any, client_address: Any) -> None:
        """The handshake in the connection's own thread."""
        self.connections += 1
        if self.cluster.reset_one():
            request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.close()
            return
        request.settimeout(20)
        try:
            with self._context.wrap_socket(request, server_side=True) as wrapped:
                self._open.add(wrapped)
                try:
                    self.RequestHandlerClass(wrapped, client_address, self)  # type: ignore[arg-type]
                finally:
                    self._open.discard(wrapped)
        except OSError:
            pass  # whoever does not trust us goes away here

    def hang_up(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._status(405, "MethodNotAllowed", "the server does not allow this method")

    def do_POST(self) -> None:
        cluster = self.server.cluster
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        connection: Any = self.connection
        certificate = connection.getpeercert(binary_form=True)
        caller = cluster.caller(self.headers.get("Authorization", ""), certificate)
        cluster.seen.append(Seen(self.command, self.path, caller or "", body))
        if self._misbehaves():
            return
        if caller is None:
            return self._status(401, "Unauthorized", "Unauthorized")
        if self.path != PATH:
            return self._status(404, "NotFound", "the server could not find the requested resource")
        if caller not in cluster.delegators:
            return self._forbidden(caller)
        if self.headers.get("Content-Type") != "application/json":
            return self._status(415, "UnsupportedMediaType", "the body was in an unknown format")
        if (body.get("apiVersion"), body.get("kind")) != ("authentication.k8s.io/v1", "TokenReview"):
            return self._status(400, "BadRequest", "no kind match")
        if not body.get("spec", {}).get("token"):
            return self._status(400, "BadRequest", "token is required for TokenReview in authentication")
        self._review(body)

    do_PUT = do_DELETE = do_GET

    def _misbehaves(self) -> bool:
        """Whether an answer that is none of a review has been given."""
        cluster = self.server.cluster
        self.server.stopping.wait(cluster.wrong("slow") or 0)
        if cluster.wrong("status_401"):
            self._status(401, "Unauthorized", "Unauthorized")
        elif cluster.wrong("status_403"):
            self._forbidden("system:anonymous")
        elif cluster.wrong("status_429"):
            self._status(429, "TooManyRequests", "too many requests, please try again later", retry_after=1)
        elif cluster.wrong("status_500"):
            self._status(500, "InternalError", "Internal error occurred")
        elif cluster.wrong("status_503"):
            self._status(503, "ServiceUnavailable", "the server is currently unable to handle the request")
        elif (exactly := cluster.wrong("body")) is not None:
            self._send(201, exactly)
        else:
            return False
        return True

    def _review(self, question: dict[str, Any]) -> None:
        cluster, spec = self.server.cluster, question["spec"]
        status = cluster.authenticate(spec["token"], spec.get("audiences") or [])
        if status.get("authenticated"):
            if cluster.wrong("no_audiences"):
                del status["audiences"]
            if cluster.wrong("other_audiences"):
                status["audiences"] = ["somebody-else"]
            if cluster.wrong("truthy"):
                status["authenticated"] = "true"
            if cluster.wrong("error_beside_yes"):
                status["error"] = "[oidc: verify token: oidc: malformed jwt]"
            if cluster.wrong("user") is not None:
                status["user"] = cluster.wrong("user")
        answer = {**question, "metadata": {"creationTimestamp": None}, "status": status}
        self._send(cluster.wrong("code") or 201, json.dumps(answer).encode())

    def _forbidden(self, caller: str) -> None:
        self._status(
            403, "Forbidden",
            f'tokenreviews.authentication.k8s.io is forbidden: User "{caller}" cannot create resource '
            '"tokenreviews" in API group "authentication.k8s.io" at the cluster scope',
        )  # fmt: skip

    def _status(self, code: int, reason: str, message: str, retry_after: int | None = None) -> None:
        status = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code,
        }  # fmt: skip
        self._send(code, json.dumps(status).encode(), retry_after)

    def _send(self, code: int, body: bytes, retry_after: int | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if retry_after is not None:
            self.send_header("Retry-After", str(retry_after))
        self.end_headers()
        pause = self.server.cluster.wrong("drip")
        if not pause:
            self.wfile.write(body)
            return
        for byte in body:
            if self.server.stopping.wait(pause):
                return
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
