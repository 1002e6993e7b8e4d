"""A client over TLS that speaks HTTP/2 (curl), and an authority whose certificates it believes."""

from __future__ import annotations

import ssl
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import trustme

from tests.e2e.wire import Answer, Headers
from tests.programs import require

# curl's words for an answer that did not come to its end, and for a certificate that is not there or is
# somebody else's.
CUT_OFF, NOT_BELIEVED = (18, 52, 55, 56, 92), (35, 60)

OF_CURL_ITSELF = ("Accept", "User-Agent", "Content-Type", "Expect")


@dataclass(frozen=True)
class Tls:
    """The files of a gateway with a certificate for ``host``, and who signed it."""

    certificate: Path
    key: Path
    authority: Path

    @property
    def client(self) -> ssl.SSLContext:
        """For a client that speaks HTTP/1.1."""
        return ssl.create_default_context(cafile=str(self.authority))


def certified(folder: Path, host: str) -> Tls:
    authority = trustme.CA()
    issued = authority.issue_cert(host)
    tls = Tls(folder / "fullchain.pem", folder / "privkey.pem", folder / "authority.pem")
    folder.mkdir(parents=True, exist_ok=True)
    tls.certificate.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(tls.key))
    authority.cert_pem.write_to_path(str(tls.authority))
    return tls


def request(
    tls: Tls,
    port: int,
    method: str,
    target: str,
    *,
    host: str,
    headers: Headers = (),
    body: bytes = b"",
    streamed: bool = False,
    seconds: float = 20,
) -> Answer:
    """One request over HTTP/2 on a connection of its own. ``streamed``: without the body's length.

    Status 0 stands for an answer that was cut off. Older curls throw away a whole one that comes before
    they have sent all of the body (RFC 9113 §8.1 says not to).
    """
    name, _, outside = host.partition(":")
    given = list(headers)
    said = {key.lower() for key, _ in given}
    command = [require("curl"), "--silent", "--http2", "--path-as-is", "--globoff", "--noproxy", "*"]
    command += ["--max-time", str(seconds), "--cacert", str(tls.authority), "--request", method]
    command += ["--connect-to", f"{name}:{outside}:127.0.0.1:{port}"]
    command += ["--head"] if method == "HEAD" else []
    # A header without a value is one that curl leaves out, and with a semicolon one that is empty.
    lines = [f"{key}: {value}" if value else f"{key};" for key, value in given]
    lines += [f"{key}:" for key in OF_CURL_ITSELF if key.lower() not in said]
    for line in lines:
        command += ["--header", line]
    if body:
        command += ["--upload-file", "-"] if streamed else ["--data-binary", "@-"]
    with tempfile.TemporaryDirectory() as folder:
        head, content = Path(folder, "head"), Path(folder, "content")
        command += ["--dump-header", str(head), "--output", str(content), f"https://{host}{target}"]
        done = subprocess.run(command, input=body, capture_output=True, timeout=seconds + 20)
        if done.returncode in NOT_BELIEVED:
            raise ssl.SSLError(f"no certificate for {name} on port {port}")
        if done.returncode in CUT_OFF:
            return Answer(0, (), b"")
        assert done.returncode == 0, f"curl says {done.returncode}"
        return _read(head.read_bytes(), content.read_bytes() if content.exists() else b"")


def _read(heads: bytes, content: bytes) -> Answer:
    """The last of the heads: before it come those of status 1xx."""
    first, *lines = heads.decode("latin-1").rstrip().split("\r\n\r\n")[-1].split("\r\n")
    version, status, *_ = first.split(" ")
    assert version == "HTTP/2", f"spoken was {version}"
    headers = tuple((key, value.strip()) for key, _, value in (line.partition(":") for line in lines))
    return Answer(int(status), headers, content)
