"""What the gateways' pages show to put into the shipped files is taken by the gateways themselves."""

from __future__ import annotations

import re
import subprocess
import textwrap
from pathlib import Path

import pytest
import yaml

from tests.contract_table import PAGES
from tests.e2e.gateways import FILES
from tests.programs import require
from tests.test_outbound import own_certificate

pytestmark = pytest.mark.external


def blocks(page: str, language: str) -> list[str]:
    """The page's blocks of one language, without the depth of the list that they stand in."""
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", (PAGES / page).read_text("utf-8"), re.S | re.M)
    return [textwrap.dedent(block) for of, block in found if of == language]


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A file with a certificate and its key."""
    own_certificate(tmp_path)
    return tmp_path / "pair.pem"


def here(text: str, certificate: Path) -> str:
    moved, count = re.subn(r"/etc/[^;}\s]*/(fullchain|privkey)\.pem", str(certificate), text)
    assert count == 2
    return moved


def inserted(text: str, place: str, instead: str) -> str:
    assert text.count(place) == 1, place
    return text.replace(place, instead)


def run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nginx(certificate: Path, tmp_path: Path) -> None:
    tls, further = blocks("nginx.md", "nginx")
    text = (FILES / "nginx" / "authservice.conf").read_text("utf-8")
    text = inserted(text, "listen 127.0.0.1:10000;", here(tls, certificate))
    text = inserted(text, "proxy_pass http://127.0.0.1:9000;", further + "proxy_pass http://127.0.0.1:9000;")
    config = tmp_path / "nginx.conf"
    config.write_text(f"pid {tmp_path}/pid; error_log stderr; events {{}} http {{ {text} }}")
    run(require("nginx"), "-t", "-e", "stderr", "-p", tmp_path, "-c", config)


def test_envoy(certificate: Path, tmp_path: Path) -> None:
    (tls,) = blocks("envoy.md", "yaml")
    text = (FILES / "envoy" / "envoy.yaml").read_text("utf-8")
    beside_filters = textwrap.indent(here(tls, certificate), " " * 6)
    text = inserted(text, "\n  clusters:\n", f"\n{beside_filters}\n  clusters:\n")
    config = tmp_path / "envoy.yaml"
    config.write_text(text)
    run(require("envoy"), "--mode", "validate", "-l", "error", "-c", config)


def test_caddy(tmp_path: Path) -> None:
    (snippet,) = blocks("caddy.md", "")
    (tmp_path / "Caddyfile").write_text(snippet)
    run(require("caddy"), "validate", "--config", tmp_path / "Caddyfile")


def test_traefik_keeps_what_its_files_have() -> None:
    entry, certificates = (yaml.safe_load(block) for block in blocks("traefik.md", "yaml"))
    shipped = yaml.safe_load((FILES / "traefik" / "traefik.yml").read_text("utf-8"))
    assert entry["entryPoints"].keys() == shipped["entryPoints"].keys()
    assert entry["entryPoints"]["web"]["http"].items() > shipped["entryPoints"]["web"]["http"].items()
    assert set(certificates["tls"]["certificates"][0]) == {"certFile", "keyFile"}
