"""An application that speaks HTTP/2 alone, as gRPC does, behind nginx with the lines that its page shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract_table import FORGED, PAGE, SCRIPT
from tests.e2e import gateways
from tests.e2e import stack as stacks
from tests.e2e.processes import listens
from tests.e2e.stack import Stack
from tests.ports import free_port

pytestmark = [pytest.mark.external, pytest.mark.slow, pytest.mark.xdist_group("e2e-grpc")]

APPLICATION = """
server {
  listen 127.0.0.1:%d http2;
  location / {
    default_type text/plain;
    return 200 "$http_kubeflow_userid,$http_auth_method,$request_uri";
  }
}
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = stacks.prepare("nginx", tmp_path_factory.mktemp("grpc"), tls=True)
    try:
        made.provider.start()
        made.service.start()
        made.gateway = nginx(made, made.folder)
        yield made
    finally:
        made.stop()


def nginx(stack: Stack, folder: Path) -> gateways.Program:
    before, location = gateways.nginx_file(stack.tls).rsplit("  location / {\n", 1)
    location = re.sub(r"^ *proxy_.*\n", "", location, flags=re.M)
    shown = gateways.blocks("nginx.md", "nginx")[2]
    text = f"{before}  location / {{\n{shown}\n{location}"
    ports = gateways.Ports(stack.port, stack.service.judge_port, stack.service.site_port, free_port())
    program = gateways.nginx_with(text, folder, ports, APPLICATION % ports.application)
    program.start(lambda: listens(ports.listen))
    return program


def test_it_is_told_who_asks_whatever_the_client_says(stack: Stack) -> None:
    person = stack.logged_in(target="/a%2Fb?x=1")
    answer = person.send(stack.url + "/a%2Fb?x=1", headers=PAGE + FORGED).answer
    assert answer.text == "alice@example.org,cookie,/a%2Fb?x=1"


def test_it_is_told_nobody_where_everybody_may_pass(stack: Stack) -> None:
    assert stack.request("GET", "/public/page", PAGE + FORGED).text == ",,/public/page"


def test_a_stranger_does_not_reach_it(stack: Stack) -> None:
    assert stack.request("POST", "/service/Method", SCRIPT + FORGED, b"message").status == 401
