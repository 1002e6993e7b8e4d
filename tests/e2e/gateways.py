"""The gateways in front: Envoy, nginx, Caddy and Traefik, each with its shipped configuration.

Only ports and scratch folders are replaced in the files; what a test shows of them, it shows of
what is shipped. With a certificate, the lines that the gateway's page shows for it are in their place.
"""

from __future__ import annotations

import getpass
import os
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from ssl import SSLError

from tests.e2e import secure
from tests.e2e.processes import Program, listens
from tests.e2e.secure import Tls
from tests.e2e.wire import request
from tests.programs import require

KINDS = ("envoy", "nginx", "caddy", "traefik")

FILES = Path(__file__).resolve().parents[2] / "deploy"
PAGES = FILES.parent / "docs" / "gateways"

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


def blocks(page: str, language: str) -> list[str]:
    """The page's blocks of one language, without the depth of the list that they stand in."""
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", (PAGES / page).read_text("utf-8"), re.S | re.M)
    return [textwrap.dedent(block) for of, block in found if of == language]


def inserted(text: str, place: str, instead: str) -> str:
    assert text.count(place) == 1, place
    return text.replace(place, instead)


def _certified(text: str, tls: Tls) -> str:
    """What a page shows, with the files of ``tls`` in the place of those that it names."""
    for name, path in (("fullchain", tls.certificate), ("privkey", tls.key)):
        text, count = re.subn(rf"/etc/[^;}}\s]*/{name}\.pem", str(path), text)
        assert count == 1, name
    return text


def envoy_file(tls: Tls | None = None) -> str:
    text = (FILES / "envoy" / "envoy.yaml").read_text("utf-8")
    if tls is None:
        return text
    (shown,) = blocks("envoy.md", "yaml")
    beside_filters = textwrap.indent(_certified(shown, tls), " " * 6)
    return inserted(text, "\n  clusters:\n", f"\n{beside_filters}\n  clusters:\n")


def nginx_file(tls: Tls | None = None) -> str:
    text = (FILES / "nginx" / "authservice.conf").read_text("utf-8")
    if tls is None:
        return text
    place, entry = "listen 443 ssl http2;", "listen 127.0.0.1:10000 ssl http2;"
    shown = inserted(_certified(blocks("nginx.md", "nginx")[0], tls), place, entry)
    return inserted(text, "listen 127.0.0.1:10000;", shown)


def caddy_file(tls: Tls | None = None) -> str:
    text = (FILES / "caddy" / "Caddyfile").read_text("utf-8")
    if tls is None:
        return text
    shown = _certified(blocks("caddy.md", "")[0], tls)
    return inserted(
        text,
        "http://:10000 {\n",
        inserted(shown, "https://app.example.com {", "https://app.localhost:10000 {"),
    )


def traefik_files(tls: Tls | None = None) -> tuple[str, str]:
    """The static configuration, and the other."""
    static, dynamic = (
        (FILES / "traefik" / name).read_text("utf-8") for name in ("traefik.yml", "dynamic.yml")
    )
    if tls is None:
        return static, dynamic
    entry, certificates = blocks("traefik.md", "yaml")
    (before, _, rest) = static.partition("entryPoints:\n")
    entry = inserted(entry, '":443"', '"127.0.0.1:10000"')
    static = f"{before}{entry}\n{rest[rest.index('providers:') :]}"
    return static, f"{dynamic}\n{_certified(certificates, tls)}"


def _envoy(folder: Path, ports: Ports, tls: Tls | None = None, *, lenient: bool = False) -> Program:
    text = envoy_file(tls)
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


def _nginx(folder: Path, ports: Ports, tls: Tls | None = None) -> Program:
    return nginx_with(nginx_file(tls), folder, ports)


def nginx_with(text: str, folder: Path, ports: Ports, further: str = "") -> Program:
    """A whole configuration around the shipped file, and ``further`` servers."""
    server = f"{_with_ports(text, ports)}\n{further}"
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


def _caddy(folder: Path, ports: Ports, tls: Tls | None = None) -> Program:
    config = folder / "Caddyfile"
    config.write_text(_with_ports(caddy_file(tls), ports))
    command = [require("caddy"), "run", "--config", str(config), "--adapter", "caddyfile"]
    env = {"XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    return Program("caddy", command, folder / "caddy.log", env=env)


def _traefik(folder: Path, ports: Ports, tls: Tls | None = None) -> Program:
    names, cut = ("traefik.yml", "dynamic.yml"), "\n# cut here\n"
    both = cut.join(traefik_files(tls))
    for name, text in zip(names, _with_ports(both, ports).split(cut), strict=True):
        (folder / name).write_text(text)
    command = [require("traefik"), f"--configFile={folder / 'traefik.yml'}"]
    return Program("traefik", command, folder / "traefik.log", cwd=folder)


def _lenient_envoy(folder: Path, ports: Ports, tls: Tls | None = None) -> Program:
    """Envoy without its second line of defence: header names with underscores pass, as by default."""
    return _envoy(folder, ports, tls, lenient=True)


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


def start(kind: str, folder: Path, ports: Ports, tls: Tls | None = None) -> Program:
    """Starts a gateway and returns when it serves its routes. AuthService has to answer by then:
    Traefik listens some time before it knows its routes, which only an answer from behind shows."""
    program = _MAKERS[kind](folder, ports, tls)

    def status() -> int:
        if tls is None:
            return request(ports.listen, "GET", "/").status
        try:
            return secure.request(tls, ports.listen, "GET", "/", host=f"app.localhost:{ports.listen}").status
        except SSLError:  # Traefik has none, and then one of its own, until it has read its files
            return 0

    def serves() -> bool:
        return listens(ports.listen) and status() not in (0, 404)

    program.start(serves)
    return program
