"""What results from the shipped files of Istio, Kubeflow, Envoy Gateway, Gateway API, Emissary,
ingress-nginx and Traefik in Kubernetes, run by a real Envoy, nginx and Traefik in front of the service."""

from __future__ import annotations

import getpass
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from authservice import doctor
from authservice.doctor import Part, State
from tests import resulting_envoy, resulting_others
from tests.e2e import stack as stacks
from tests.e2e.person import NAVIGATION
from tests.e2e.processes import Program, listens
from tests.e2e.stack import Stack
from tests.ports import free_port
from tests.programs import require
from tests.resulting_envoy import DEPLOY, Json, Places

pytestmark = [
    pytest.mark.external,
    pytest.mark.slow,
    pytest.mark.xdist_group("resulting"),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are watched through /proc"),
]

ENVOYS: Mapping[str, Callable[[Places], Json]] = {
    "istio": resulting_envoy.istio,
    "istio-ambient": resulting_envoy.ambient,
    "kubeflow": resulting_envoy.kubeflow,
    "envoy-gateway": resulting_envoy.envoy_gateway,
    "gateway-api": resulting_envoy.gateway_api,
    "ambassador": resulting_envoy.emissary,
}
ALL = (*ENVOYS, "ingress-nginx", "traefik-kubernetes")
OURS = ("kubeflow-userid", "kubeflow-groups", "auth-method")
EVIL = "evil-admin"


def start(kind: str, folder: Path, places: Places) -> Program:
    """Starts the gateway that results from the files of ``kind``, and returns when it listens."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind in ENVOYS:
        config = folder / "envoy.json"
        config.write_text(json.dumps(ENVOYS[kind](places)))
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
        program = Program(kind, command, folder / "log")
    elif kind == "ingress-nginx":
        # Its worker has to be able to write in our folder, also where the tests run as root.
        user = f"user {getpass.getuser()};" if os.getuid() == 0 else ""
        main = resulting_others.write_nginx(folder, places, user)
        program = Program(
            kind, [require("nginx"), "-p", str(folder), "-e", "stderr", "-c", str(main)], folder / "log"
        )
    else:
        for name, text in zip(
            ("traefik.yml", "dynamic.yml"), resulting_others.traefik_files(places), strict=True
        ):
            (folder / name).write_text(text)
        command = [require("traefik"), f"--configFile={folder / 'traefik.yml'}"]
        program = Program(kind, command, folder / "log", cwd=folder)

    def serves() -> bool:
        if not listens(places.listen):
            return False
        answer = stacks.request(places.listen, "GET", "/", host=places.host)
        return answer.status != 404

    program.start(serves)
    return program


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything behind the gateways, which take turns on one port."""
    for program in ("envoy", "nginx", "traefik"):
        require(program)
    settings = {
        "GATEWAY": "envoy,nginx,traefik",
        "ALLOW_CORS_PREFLIGHT": "true",
        "OAUTH2_PROXY_COMPAT": "true",
    }
    made = stacks.prepare("envoy", tmp_path_factory.mktemp("resulting"), settings)
    try:
        made.provider.start()
        made.service.start()
        yield made
    finally:
        made.stop()


def places_of(stack: Stack) -> Places:
    service = stack.service
    return Places(stack.port, service.judge_port, service.site_port, stack.application.port, stack.host)


@contextmanager
def running(stack: Stack, kind: str, places: Places) -> Iterator[Stack]:
    program = start(kind, stack.folder / f"{kind}-{places.judge}", places)
    try:
        yield replace(stack, kind=kind, port=places.listen)
    finally:
        program.kill_with_children()


@pytest.fixture(scope="module", params=ALL)
def gated(request: pytest.FixtureRequest, behind: Stack) -> Iterator[Stack]:
    """The service behind each of them in turn."""
    with running(behind, request.param, places_of(behind)) as stack:
        yield stack


def marked() -> tuple[str, tuple[str, str]]:
    marker = uuid.uuid4().hex
    return marker, ("X-Marker", marker)


def told(stack: Stack, marker: str) -> dict[str, list[str]]:
    """What an application would take for our headers, of the one request that reached it."""
    (seen,) = stack.reached(marker)
    return {name: [value for _, value in seen.like(name)] for name in OURS}


def test_a_login_comes_back_to_the_page_and_the_application_knows_who_it_is(gated: Stack) -> None:
    person = gated.logged_in(target="/deep/page?x=1")
    marker, line = marked()
    assert person.send(gated.url + "/deep/page?x=1", headers=[*NAVIGATION, line]).answer.status == 200
    assert told(gated, marker) == {
        "kubeflow-userid": ["alice@example.org"], "kubeflow-groups": ["a,b"], "auth-method": ["cookie"]
    }  # fmt: skip
    # An allowed check sets nothing, so nothing can go astray.
    assert all(not visit.answer.values("set-cookie") for visit in person.history[-1:])


def test_nobody_without_a_login_reaches_the_application(gated: Stack) -> None:
    marker, line = marked()
    for path in ("/app", "/authservices/x", "/public", "/%61pp", "/public/../app", "/public/..%2fapp"):
        answer = gated.request("GET", path, [*NAVIGATION, line])
        assert answer.status in (301, 302, 307, 308, 400, 401, 403, 404), (path, answer)
    assert gated.reached(marker) == []


def test_a_program_is_told_to_log_in(gated: Stack) -> None:
    answer = gated.request(
        "GET", "/api", [("Accept", "application/json"), ("X-Requested-With", "XMLHttpRequest")]
    )
    if gated.kind == "ingress-nginx":  # knows one answer for everybody; see its page
        assert answer.status == 302
        return
    assert answer.status == 401
    assert answer.values("www-authenticate")
    assert answer.json()["login_url"].endswith("/authservice/login")


@pytest.mark.usefixtures("names_as_in_browsers")
def test_the_doctor_finds_nothing(gated: Stack) -> None:
    found = list(doctor.examine(gated.service.settings, lambda: datetime.now(timezone.utc), gated.url))
    assert [one for one in found if one.state is State.PROBLEM] == []
    (wiring,) = (one for one in found if one.part is Part.WIRING and one.state is State.OK)
    # Behind ingress-nginx, which has one answer for everybody, most of it shows nowhere.
    names = ("the original address", *(("Accept", "Cookie") if gated.kind != "ingress-nginx" else ()))
    assert all(name in wiring.sentence for name in names), wiring


def test_a_bad_token_is_refused_and_never_reaches_the_application(gated: Stack) -> None:
    marker, line = marked()
    answer = gated.request("GET", "/api", [("Authorization", "Bearer of-nobody"), line])
    assert answer.status == (302 if gated.kind == "ingress-nginx" else 401)
    assert gated.reached(marker) == []


FORGED = {
    "plain": [(name.title(), EVIL) for name in OURS],
    "underscores": [(name.replace("-", "_"), EVIL) for name in OURS],
    "doubled": [(name, EVIL) for name in OURS] * 2,
}


@pytest.mark.parametrize("spelling", FORGED)
def test_forged_identity_headers_never_reach_the_application(gated: Stack, spelling: str) -> None:
    person = gated.one_logged_in()
    for path, expected in (
        (
            "/app",
            {"kubeflow-userid": ["alice@example.org"], "kubeflow-groups": ["a,b"], "auth-method": ["cookie"]},
        ),
        ("/public/x", {name: [] for name in OURS}),
    ):
        marker, line = marked()
        sender = person if path == "/app" else gated.person()
        visit = sender.send(gated.url + path, headers=[*NAVIGATION, line, *FORGED[spelling]])
        if gated.kind == "envoy-gateway" and spelling == "underscores":  # refuses such names itself
            assert (visit.answer.status, gated.reached(marker)) == (400, [])
            continue
        assert visit.answer.status == 200
        seen = {name: [value for value in values if value] for name, values in told(gated, marker).items()}
        assert seen == expected


def test_a_preflight_passes_without_the_clients_own_identity(gated: Stack) -> None:
    marker, line = marked()
    asked = [("Origin", "https://other.example.com"), ("Access-Control-Request-Method", "PUT")]
    answer = gated.request("OPTIONS", "/app", [*asked, line, *FORGED["plain"]])
    assert answer.status == 200
    assert {name: [one for one in values if one] for name, values in told(gated, marker).items()} == {
        name: [] for name in OURS
    }


def test_the_site_is_reached_below_the_prefix_with_bodies(gated: Stack) -> None:
    assert gated.request("GET", "/authservice/site/homepage", NAVIGATION).status == 200
    form = [("Content-Type", "application/x-www-form-urlencoded")]
    body = b"logout_token=no-token"
    said = len(gated.service.program.log_text())
    assert gated.request("POST", "/authservice/backchannel-logout", form, body).status == 400
    lines = gated.service.program.log_text()[said:].splitlines()
    (refused,) = [line for line in map(json.loads, lines) if line.get("event") == "logout_notice_refused"]
    # It was read, and is none: without it the cause would be that it is missing.
    assert refused["cause"] == "parts"


def test_a_logout_ends_the_session(gated: Stack) -> None:
    person = gated.logged_in()
    proof = [("Accept", "text/html"), ("Origin", gated.url), ("Sec-Fetch-Site", "same-origin")]
    assert person.send(gated.url + "/authservice/logout", "POST", headers=proof).answer.status == 201
    assert person.send(gated.url + "/app").answer.status == 302


def test_kubeflows_dashboard_logs_people_out_as_it_did_with_oauth2_proxy(behind: Stack) -> None:
    with running(behind, "kubeflow", replace(places_of(behind), listen=free_port())) as stack:
        person = stack.person()
        person.connect = {stack.host: stack.port}
        done = person.log_in(stack.url + "/")
        assert done.answer.status == 200
        link = dict(NAVIGATION) | {"Sec-Fetch-Site": "same-origin"}
        person.send(stack.url + "/oauth2/sign_out", headers=link.items())
        assert person.send(stack.url + "/app").answer.status == 302


@pytest.mark.parametrize("kind", ALL)
def test_without_an_answer_nobody_passes(behind: Stack, kind: str) -> None:
    """With the settings of the files: told apart from a refusal where the gateway can."""
    person = behind.person()
    places = replace(places_of(behind), listen=free_port(), judge=free_port())
    with running(behind, kind, places) as stack:
        marker, line = marked()
        answer = stack.request("GET", "/app", [*NAVIGATION, line])
    expected = {"ingress-nginx": 500, "traefik-kubernetes": 500, "envoy-gateway": 403, "gateway-api": 403}
    assert answer.status == expected.get(kind, 503)
    assert stack.reached(marker) == []
    assert person.jar == {}


def test_traefiks_file_names_the_line_that_its_own_configuration_needs() -> None:
    text = (DEPLOY / "traefik/kubernetes/authservice.yaml").read_text()
    static, _ = resulting_others.traefik_files(Places(1, 2, 3, 4, "app.example.com"))
    assert "--entryPoints.websecure.http.aliasHeadersStrategy=delete" in text
    assert "aliasHeadersStrategy: delete" in static
