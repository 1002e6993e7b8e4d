"""The gateways in front: Envoy, nginx, Caddy and Traefik, each with its shipped configuration.

Only ports and scratch folders are replaced in the files; what a test shows of them, it shows of
what is shipped.
"""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.processes import Program, listens
from tests.e2e.wire import request
from tests.programs import require

KINDS = ("envoy", "nginx", "caddy", "traefik")

FILES = Path(__file__).resolve().parents[2] / "deploy"


UNDERSCORES_DROPPED = "common_http_protocol_options: {headers_with_underscores_action: DROP_HEADER}"


@dataclass(frozen=True)
class Ports:
    """Where the gateway listens, and whom it asks and passes to; all on 127.0.0.1."""

    listen: int
    judge: int
    site: int
    application: int


def _with_ports(text: str, ports: Ports) -> str:
    """The file with the usual ports replaced. Each of them has to be in it."""
    usual: Mapping[str, int] = {
        "10000": ports.listen,
        "8080": ports.judge,
        "8082": ports.site,
        "9000": ports.application,
    }
    for number in usual:
        assert re.search(rf"\b{number}\b", text), f"port {number} is not in the file"
    return re.sub(rf"\b({'|'.join(usual)})\b", lambda found: str(usual[found[1]]), text)


def _envoy(folder: Path, ports: Ports, *, lenient: bool = False) -> Program:
    text = (FILES / "envoy" / "envoy.yaml").read_text()
    if lenient:
        assert UNDERSCORES_DROPPED in text
        text = text.replace(UNDERSCORES_DROPPED, "")
    config = folder / "envoy.yaml"
    config.write_text(_with_ports(text, ports))
    command = [
        require("envoy"),
        "-c",
        str(config),
        "--concurrency",
        "1",
        "--use-dynamic-base-id",
        "-l",
        "warn",
    ]
    return Program("envoy", command, folder / "envoy.log")


def _nginx(folder: Path, ports: Ports) -> Program:
    server = _with_ports((FILES / "nginx" / "authservice.conf").read_text(), ports)
    scratch = "\n".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    # Its worker has to be able to write in our folder, also where the tests run as root.
    user = f"user {getpass.getuser()};" if os.getuid() == 0 else ""
    config.write_text(
        f"daemon off; worker_processes 1; {user} pid {folder}/nginx.pid; error_log stderr;\n"
        f"events {{}}\nhttp {{ access_log off;\n{scratch}\n{server}\n}}\n"
    )
    command = [require("nginx"), "-p", str(folder), "-e", "stderr", "-c", str(config)]
    return Program("nginx", command, folder / "nginx.log")


def _caddy(folder: Path, ports: Ports) -> Program:
    config = folder / "Caddyfile"
    config.write_text(_with_ports((FILES / "caddy" / "Caddyfile").read_text(), ports))
    command = [require("caddy"), "run", "--config", str(config), "--adapter", "caddyfile"]
    env = {"XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    return Program("caddy", command, folder / "caddy.log", env=env)


def _traefik(folder: Path, ports: Ports) -> Program:
    names, cut = ("traefik.yml", "dynamic.yml"), "\n# cut here\n"
    both = cut.join((FILES / "traefik" / name).read_text() for name in names)
    for name, text in zip(names, _with_ports(both, ports).split(cut), strict=True):
        (folder / name).write_text(text)
    command = [require("traefik"), f"--configFile={folder / 'traefik.yml'}"]
    return Program("traefik", command, folder / "traefik.log", cwd=folder)


def _lenient_envoy(folder: Path, ports: Ports) -> Program:
    """Envoy without its second line of defence: header names with underscores pass, as by default."""
    return _envoy(folder, ports, lenient=True)


def require_program(kind: str) -> None:
    """Skips, or fails, as `tests.programs.require` does, before anything else was started in vain."""
    require(kind.removeprefix("lenient "))


_MAKERS = {
    "envoy": _envoy,
    "lenient envoy": _lenient_envoy,
    "nginx": _nginx,
    "caddy": _caddy,
    "traefik": _traefik,
}


def start(kind: str, folder: Path, ports: Ports) -> Program:
    """Starts a gateway and returns when it serves its routes. AuthService has to answer by then:
    Traefik listens some time before it knows its routes, which only an answer from behind shows."""
    program = _MAKERS[kind](folder, ports)

    def serves() -> bool:
        return listens(ports.listen) and request(ports.listen, "GET", "/").status != 404

    program.start(serves)
    return program
