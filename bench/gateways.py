"""What people feel: requests through a real Envoy and a real nginx, with the check and without.

The configurations are those that are shipped under deploy/; only ports are replaced, and the one line
that asks AuthService is taken out for the figure without. Gateway, service and application share
the server's core.
"""

from __future__ import annotations

import re
from pathlib import Path

from bench import yardsticks
from bench.load import Request
from bench.programs import ROOT, Program, ask, found
from tests.servers import free_port

DEPLOY = ROOT / "deploy"
KINDS = ("envoy", "nginx")

_ENVOY_CHECK = "- name: envoy.filters.http.ext_authz\n"
_NGINX_CHECK = "auth_request /_authservice;"


def start(kind: str, folder: Path, core: int, check: Request, application: Request, *, checked: bool) -> Request:
    """A gateway in front of ``application`` that asks whom ``check`` would ask, or asks nobody."""
    port = free_port()
    usual = {"10000": port, "8080": check.port, "8082": check.port, "9000": application.port}

    def with_ports(text: str) -> str:
        return re.sub(rf"\b({'|'.join(usual)})\b", lambda match: str(usual[match[1]]), text)

    if kind == "envoy":
        text = (DEPLOY / "envoy" / "envoy.yaml").read_text("utf-8")
        if not checked:
            text = _without(text, _ENVOY_CHECK, _ENVOY_CHECK + " " * 12 + "disabled: true\n")
        folder.mkdir()
        config = folder / "envoy.yaml"
        config.write_text(with_ports(text), "utf-8")
        command = [found("envoy"), "-c", str(config), "--concurrency", "1", "--use-dynamic-base-id", "-l", "warn"]
        program = Program("envoy", command, folder, core)
    else:
        text = (DEPLOY / "nginx" / "authservice.conf").read_text("utf-8")
        if not checked:
            text = _without(text, _NGINX_CHECK, "")
        program = yardsticks.nginx_program("gateway", folder, core, with_ports(text))
    programs = (program, *application.programs, *(check.programs if checked else ()))
    program.wait(lambda: ask(port, check.target, check.headers)[0] == 200)
    return Request(port, check.target, check.headers, programs=programs)


def _without(text: str, line: str, instead: str) -> str:
    assert text.count(line) == 1, line
    return text.replace(line, instead)
