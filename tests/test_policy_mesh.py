"""Identities in the mesh: what policies say of them, beside a real Envoy that sees clients' certificates.

Each rule is asked about each identity over a TLS connection of its own, with a certificate that names
the identity, or with none.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.e2e.processes import Program, listens
from tests.policy_envoy import configuration
from tests.policy_sets import Json, ask, policy, policy_set, sent_by, when
from tests.ports import free_port
from tests.programs import require

pytestmark = pytest.mark.external

PEERS = (
    "",
    "cluster.local/ns/shop/sa/cart",
    "cluster.local/ns/shop/sa/cart/further",
    "cluster.local/ns/shop/more/sa/cart",
    "cluster.local/ns/default/sa/cart",
    "cluster.local/ns/shop-b/sa/cart.b",
    "cluster.local/ns/other/sa/ns/shop/x",
    "td.example/ns/team-x/sa/web",
    "td.example/cart",
    "ns/shop/sa/cart",
)
PRINCIPALS = (
    "cluster.local/ns/shop/sa/cart", "cluster.local/ns/shop/*", "*/sa/cart", "*cart", "*", "td.example*", "ns/shop/sa/cart",
    "spiffe://cluster.local/ns/shop/sa/cart", "*://cluster.local/ns/shop/sa/cart", "Cluster.local/ns/shop/sa/cart", "*ns/shop/*",
)  # fmt: skip
NAMESPACES = ("shop", "sh*", "*op", "s*p", "*", "shop-b", "shop.b", "team-*sa", "Shop", "other*x", "shop/more")
ACCOUNTS = ("cart", "shop/cart", "other/cart", "cart.b", "shop-b/cart.b", "shop-b/cart-b", "shop/car", "team-x/web")
FIELDS = (
    ("principals", "notPrincipals", "source.principal", PRINCIPALS),
    ("namespaces", "notNamespaces", "source.namespace", NAMESPACES),
    ("serviceAccounts", "notServiceAccounts", "source.serviceAccount", ACCOUNTS),
)
RULES: dict[str, Json] = {
    json.dumps(rule): rule
    for field, negated, key, values in FIELDS
    for value in values
    for rule in (
        sent_by(**{field: [value]}),
        sent_by(**{negated: [value]}),
        when(key, value),
        when(key, not_values=[value]),
    )
}


class Authority:
    """Signs certificates, for the server and for identities."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mesh")])
        self.certificate = self._signed(
            self._name, self._key.public_key(), x509.BasicConstraints(ca=True, path_length=None)
        )

    def _signed(self, name: x509.Name, key: ec.EllipticCurvePublicKey, extension: x509.ExtensionType) -> bytes:
        now = datetime.now(timezone.utc)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(self._name).public_key(key)
        builder = builder.serial_number(x509.random_serial_number()).add_extension(extension, critical=True)
        builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def issue(self, name: str, subject: x509.GeneralName) -> Path:
        """A file with a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        signed = self._signed(x509.Name([]), key.public_key(), x509.SubjectAlternativeName([subject]))
        path = self._folder / f"{name}.pem"
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(signed + secret)
        return path


class Mesh:
    """A running Envoy that knows its clients, and what it says of them."""

    def __init__(self, port: int, certificates: dict[str, Path]) -> None:
        self._port = port
        self._certificates = certificates

    def allows(self, peer: str) -> dict[str, bool]:
        """By rule, whether an ALLOW policy with this rule alone lets the identity pass."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if peer:
            context.load_cert_chain(self._certificates[peer])
        connection = http.client.HTTPSConnection("127.0.0.1", self._port, timeout=20, context=context)
        found = {}
        for number, rule in enumerate(RULES):
            connection.request("GET", "/", headers={"x-set": f"r{number}"})
            answer = connection.getresponse()
            answer.read()
            assert answer.status in (200, 403)
            found[rule] = answer.status == 200
        connection.close()
        return found


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder = tmp_path_factory.mktemp("mesh")
    authority = Authority(folder)
    certificates = {
        peer: authority.issue(str(number), x509.UniformResourceIdentifier(f"spiffe://{peer}"))
        for number, peer in enumerate(PEERS)
        if peer
    }
    server = authority.issue("server", x509.DNSName("localhost"))
    port = free_port()
    config = configuration(
        {f"r{number}": [policy(rule)] for number, rule in enumerate(RULES.values())}, port, normalises=False
    )
    (listener,) = config["static_resources"]["listeners"]
    del listener["listener_filters"]
    listener["filter_chains"][0]["transport_socket"] = transport_socket(server, authority.certificate.decode())
    (folder / "envoy.json").write_text(json.dumps(config))
    command = [
        require("envoy"),
        "-c",
        str(folder / "envoy.json"),
        "--concurrency",
        "1",
        "--use-dynamic-base-id",
        "-l",
        "warn",
    ]
    program = Program("envoy", command, folder / "envoy.log")
    program.start(lambda: listens(port))
    try:
        yield Mesh(port, certificates)
    finally:
        program.stop()


def transport_socket(server: Path, authority: str) -> Json:
    """TLS in which clients may show a certificate."""
    context = {
        "tls_certificates": [
            {"certificate_chain": {"filename": str(server)}, "private_key": {"filename": str(server)}}
        ],
        "validation_context": {"trusted_ca": {"inline_string": authority}},
    }
    kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
    return {"name": "tls", "typed_config": {"@type": kind, "common_tls_context": context}}


@pytest.mark.parametrize("peer", PEERS)
def test_M34_M35_M36_M37_identities_get_the_verdicts_of_envoy(mesh: Mesh, peer: str) -> None:
    ours = {name: policy_set(policy(rule)).judge(ask(peer=peer)).allowed for name, rule in RULES.items()}
    envoys = mesh.allows(peer)
    assert {name: (ours[name], envoys[name]) for name in RULES if ours[name] is not envoys[name]} == {}
    assert set(envoys.values()) == {True, False}
