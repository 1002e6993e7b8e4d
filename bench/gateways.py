"""What people feel: requests through the real gateways, with the check and without.

The configurations are those that are shipped under deploy/; only ports are replaced, and what asks
AuthService is taken out for the figure without. Gateway, service and application share the
server's core. Each works with one thread at a time: Envoy and nginx are told so, and the Go
programs have as many as there are cores for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import yardsticks
from bench.load import Request
from bench.programs import ROOT, Program, ask, found
from tests.servers import free_port

DEPLOY = ROOT / "deploy"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a gateway runs: its own folder, its core, and the ports in place of the usual ones."""

    folder: Path
    core: int
    ports: Mapping[str, int]
    checked: bool

    def shipped(self, file: str) -> str:
        """The text of a file under deploy/ with these ports."""
        text = (DEPLOY / file).read_text("utf-8")
        return re.sub(rf"\b({'|'.join(self.ports)})\b", lambda match: str(self.ports[match[1]]), text)

    def asking(self, text: str, check: str, instead: str = "") -> str:
        """The text, which has the check in it once; where nobody is asked, ``instead`` stands there."""
        assert text.count(check) == 1, check
        return text if self.checked else text.replace(check, instead)

    def write(self, name: str, text: str) -> Path:
        self.folder.mkdir(exist_ok=True)
        file = self.folder / name
        file.write_text(text, "utf-8")
        return file


def _envoy(place: Place) -> Program:
    program = found("envoy")
    check = "- name: envoy.filters.http.ext_authz\n"
    text = place.asking(place.shipped("envoy/envoy.yaml"), check, check + " " * 12 + "disabled: true\n")
    config = place.write("envoy.yaml", text)
    command = [program, "-c", str(config), "--concurrency", "1", "--use-dynamic-base-id", "-l", "warn"]
    return Program("envoy", command, place.folder, place.core)


def _nginx(place: Place) -> Program:
    servers = place.asking(place.shipped("nginx/authservice.conf"), "auth_request /_authservice;")
    return yardsticks.nginx_program("gateway", place.folder, place.core, servers)


def _traefik(place: Place) -> Program:
    program = found("traefik")
    place.write("dynamic.yml", place.asking(place.shipped("traefik/dynamic.yml"), ", middlewares: [auth]"))
    config = place.write("traefik.yml", place.shipped("traefik/traefik.yml"))
    return Program("traefik", [program, f"--configFile={config}"], place.folder, place.core)


def _caddy(place: Place) -> Program:
    program = found("caddy")
    text = place.shipped("caddy/Caddyfile")
    begin, end = "\t\tforward_auth ", "\n\t\t}\n"
    check = begin + text.partition(begin)[2].partition(end)[0] + end
    config = place.write("Caddyfile", place.asking(text, check))
    command = [program, "run", "--config", str(config), "--adapter", "caddyfile"]
    scratch = {"XDG_CONFIG_HOME": str(place.folder), "XDG_DATA_HOME": str(place.folder)}
    return Program("caddy", command, place.folder, place.core, scratch)


@dataclass(frozen=True, slots=True)
class Kind:
    """A gateway: its name, and how it is started."""

    title: str
    program: Callable[[Place], Program]


KINDS: Mapping[str, Kind] = {
    "envoy": Kind("Envoy", _envoy),
    "nginx": Kind("nginx", _nginx),
    "traefik": Kind("Traefik", _traefik),
    "caddy": Kind("Caddy", _caddy),
}
"""By the value of GATEWAY that the service behind it has."""


def start(kind: str, folder: Path, core: int, check: Request, application: Request, *, checked: bool) -> Request:
    """A gateway in front of ``application`` that asks whom ``check`` would ask, or asks nobody."""
    port = free_port()
    ports = {"10000": port, "8080": check.port, "8082": check.port, "9000": application.port}
    program = KINDS[kind].program(Place(folder, core, ports, checked))
    programs = (program, *application.programs, *(check.programs if checked else ()))
    strangers = tuple(header for header in check.headers if header[0] != "Cookie")

    def lets_in(headers: Sequence[tuple[str, str]]) -> bool:
        return ask(port, check.target, headers)[0] == 200

    program.wait(lambda: lets_in(check.headers) and lets_in(strangers) is not checked)
    return Request(port, check.target, check.headers, programs=programs)
