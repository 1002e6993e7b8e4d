"""What the gateways' pages show to put into the shipped files is taken by the gateways themselves."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.e2e.gateways import FILES, blocks, caddy_file, envoy_file, inserted, nginx_file
from tests.e2e.secure import Tls, certified
from tests.programs import require

pytestmark = pytest.mark.external


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return certified(tmp_path / "tls", "app.localhost")


def run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nginx(tls: Tls, tmp_path: Path) -> None:
    _, further, _ = blocks("nginx.md", "nginx")
    text = inserted(
        nginx_file(tls), "proxy_pass http://127.0.0.1:9000;", further + "proxy_pass http://127.0.0.1:9000;"
    )
    config = tmp_path / "nginx.conf"
    config.write_text(f"pid {tmp_path}/pid; error_log stderr; events {{}} http {{ {text} }}")
    run(require("nginx"), "-t", "-e", "stderr", "-p", tmp_path, "-c", config)


def test_envoy(tls: Tls, tmp_path: Path) -> None:
    config = tmp_path / "envoy.yaml"
    config.write_text(envoy_file(tls))
    run(require("envoy"), "--mode", "validate", "-l", "error", "-c", config)


def test_caddy(tmp_path: Path) -> None:
    _, snippet = blocks("caddy.md", "")
    (tmp_path / "Caddyfile").write_text(snippet)
    run(require("caddy"), "validate", "--config", tmp_path / "Caddyfile")


def test_caddys_snippet_is_all_of_the_shipped_site() -> None:
    def lines(text: str) -> list[str]:
        return [line.strip() for line in text.splitlines() if line.strip() and line.strip()[0] != "#"]

    _, snippet = blocks("caddy.md", "")
    site = caddy_file().partition("http://:10000 {")[2]
    shared = snippet.partition("(authservice) {")[2].partition("\n}\n")[0]
    shown = [line.replace("{args[0]}", "127.0.0.1:9000") for line in lines(shared)]
    assert shown == [line for line in lines(site.rpartition("}")[0]) if line != "bind 127.0.0.1"]


def test_traefik_keeps_what_its_files_have() -> None:
    entry, certificates = (yaml.safe_load(block) for block in blocks("traefik.md", "yaml"))
    shipped = yaml.safe_load((FILES / "traefik" / "traefik.yml").read_text("utf-8"))
    assert entry["entryPoints"].keys() == shipped["entryPoints"].keys()
    assert entry["entryPoints"]["web"]["http"].items() > shipped["entryPoints"]["web"]["http"].items()
    assert set(certificates["tls"]["certificates"][0]) == {"certFile", "keyFile"}
