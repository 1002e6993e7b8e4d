"""Which port a request came in on decides what may answer it, and nothing that a client sends."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import StartStack
from tests.e2e.person import NAVIGATION
from tests.ports import free_port
from tests.e2e.stack import Stack
from tests.e2e.wire import build, exchange, request

pytestmark = [pytest.mark.external, pytest.mark.xdist_group("e2e-envoy")]

PAGE = "/site/homepage"


def hosts(stack: Stack) -> list[str]:
    judge, site = stack.service.judge_port, stack.service.site_port
    return [
        f"127.0.0.1:{judge}",
        f"127.0.0.1:{site}",
        "127.0.0.1",
        f"judge:{judge}",
        f"site:{site}",
        "judge",
        "site",
        "",
    ]


@pytest.mark.parametrize("page", [PAGE, "/healthz", "/readyz", "/site/themes/kubeflow/styles.css"])
def test_the_judge_port_serves_no_pages_whatever_the_host(enveloped: Stack, page: str) -> None:
    for host in hosts(enveloped):
        for more in (
            [],
            [("X-Forwarded-Host", host), ("X-Forwarded-Port", str(enveloped.service.site_port))],
        ):
            answer = enveloped.service.check(page, host=host, headers=[*NAVIGATION, *more])
            assert answer.status == 302, (host, answer)
    absolute = f"http://127.0.0.1:{enveloped.service.site_port}{page}"
    answer = exchange(enveloped.service.judge_port, build("GET", absolute, "127.0.0.1", NAVIGATION))
    assert answer.status in (302, 400, 401, 403)


def test_the_site_port_judges_nothing_whatever_the_host(enveloped: Stack) -> None:
    cookies = enveloped.one_logged_in().cookies(enveloped.url + "/")
    cookie = ("Cookie", "; ".join(f"{name}={value}" for name, value in cookies.items()))
    for host in hosts(enveloped):
        for target in ("/", "/any/where", "/public/page", "/authservice/verify", "/authservice/forward-auth"):
            answer = enveloped.service.site(target, host=host, headers=[cookie, *NAVIGATION])
            assert answer.status == 404, (host, target)
            assert answer.values("kubeflow-userid") == []
        assert enveloped.service.site(PAGE, host=host).status == 200
        assert enveloped.service.site("/authservice" + PAGE, host=host).status == 200


def test_the_readiness_port_when_it_is_set(own_stack: StartStack) -> None:
    port = free_port()
    stack = own_stack("envoy", {"READINESS_PROBE_PORT": str(port)}, start=False)
    stack.service.start(until_ready=False)
    assert {request(port, method, "/").status for method in ("GET", "HEAD")} == {503}
    stack.provider.start()
    stack.service.stop()
    stack.service.start()
    assert request(port, "GET", "/").status == 200
    assert request(port, "GET", "/any/where").status == 200
