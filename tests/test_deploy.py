"""The files under deploy/: each is loaded by the program it is for, and they agree with each other
and with the service's settings."""

from __future__ import annotations

import ipaddress
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import requests
import yaml
from authservice_demo.ports import Ports, any_free, replace_ports
from authservice_demo.stack import Stack

from authservice.settings import examine
from authservice.settings.table import ROWS
from tests.programs import require
from tests.waiting import until

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
IDENTITY = {"kubeflow-userid", "kubeflow-groups", "auth-method"}
# What Envoy sends with every check, whatever is listed.
ALWAYS_SENT_BY_ENVOY = {"authorization"}
ALWAYS_SENT_BY_AMBASSADOR = {"authorization", "cookie", "user-agent", "x-forwarded-for", "x-forwarded-proto"}


def documents(path: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / path).read_text()))


def walk(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a document."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# --- loaded by their programs -------------------------------------------------------------------


@pytest.mark.external
def test_envoy_loads_its_file() -> None:
    said = run(require("envoy"), "--mode", "validate", "-c", DEPLOY / "envoy/envoy.yaml")
    assert "OK" in said
    assert "deprecated" not in said.lower()


def test_envoy_cuts_no_answer_of_the_application_short() -> None:
    """Its limit is for an answer as a whole, a download or a stream of events as well."""
    (listener,) = yaml.safe_load((DEPLOY / "envoy/envoy.yaml").read_text())["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    routes = [route["route"] for route in manager["route_config"]["virtual_hosts"][0]["routes"]]
    assert {route["cluster"]: route["timeout"] for route in routes}["application"] == "0s"
    # Silent ones end after Envoy's own five minutes.
    assert "stream_idle_timeout" not in manager


@pytest.mark.external
def test_caddy_loads_its_file() -> None:
    run(require("caddy"), "validate", "--config", DEPLOY / "caddy/Caddyfile", "--adapter", "caddyfile")


@pytest.mark.external
def test_nginx_loads_its_file(tmp_path: Path) -> None:
    main = tmp_path / "nginx.conf"
    main.write_text(
        f"pid {tmp_path}/pid; error_log stderr; events {{}}\n"
        f"http {{ include {DEPLOY}/nginx/authservice.conf; }}\n"
    )
    said = run(require("nginx"), "-t", "-p", tmp_path, "-c", main)
    assert "warn" not in said


@pytest.mark.external
def test_traefik_starts_with_its_files(tmp_path: Path) -> None:
    """There is no validating command: the routes are there when its own site route answers for
    a service that is not (502), and the guarded route does not let anybody through (500)."""
    ports = Ports(*(any_free() for _ in fields(Ports)))
    for name in ("traefik.yml", "dynamic.yml"):
        (tmp_path / name).write_text(ports.replace_in((DEPLOY / "traefik" / name).read_text()))
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [require("traefik"), "--configFile=traefik.yml"], cwd=tmp_path, stdout=output, stderr=output
        )
    try:
        def status(path: str) -> int:
            assert process.poll() is None, log.read_text()
            try:
                return requests.get(f"http://127.0.0.1:{ports.gateway}{path}", timeout=5).status_code
            except requests.ConnectionError:
                return 0

        until(lambda: status("/authservice/site/homepage") == 502, 20)
        assert status("/anything") == 500
        problems = [line for line in log.read_text().splitlines() if "WRN" in line or "level=warn" in line]
        assert not problems
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.external
def test_systemd_accepts_the_unit_and_finds_it_confined(tmp_path: Path) -> None:
    analyze = require("systemd-analyze")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("gunicorn", "authservice"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    unit = tmp_path / "authservice.service"
    text = (DEPLOY / "systemd/authservice.service").read_text()
    unit.write_text(text.replace("/opt/authservice/bin", str(programs)))
    done = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, timeout=60)
    about_ours = [line for line in done.stderr.splitlines() if "authservice" in line]
    assert not about_ours, done.stderr
    # 0 is confined from everything, 100 from nothing; an ordinary unit has more than 90.
    run(analyze, "security", "--offline=true", "--threshold=15", unit)


# --- they agree with each other -----------------------------------------------------------------


def envoy_filter() -> dict[str, Any]:
    (config,) = documents("envoy/envoy.yaml")
    return next(
        node for node in walk(config) if str(node.get("@type", "")).endswith("ext_authz.v3.ExtAuthz")
    )


def names(matchers: list[dict[str, Any]]) -> set[str]:
    return {matcher.get("exact") or matcher["prefix"] + "*" for matcher in matchers}


def test_envoy_never_lets_pass_without_an_answer() -> None:
    authz = envoy_filter()
    assert authz["failure_mode_allow"] is False
    assert authz["status_on_error"]["code"] == "ServiceUnavailable"
    assert authz["http_service"]["server_uri"]["timeout"] == "5s"


def test_istio_sends_and_takes_over_what_envoy_does() -> None:
    (mesh,) = documents("istio/mesh-config.yaml")
    (provider,) = mesh["spec"]["meshConfig"]["extensionProviders"]
    authz = provider["envoyExtAuthzHttp"]
    assert set(authz["includeRequestHeadersInCheck"]) == (
        names(envoy_filter()["allowed_headers"]["patterns"]) | ALWAYS_SENT_BY_ENVOY
    )
    assert set(authz["headersToUpstreamOnAllow"]) == IDENTITY
    assert authz["failOpen"] is False
    assert authz["statusOnError"] == "503"
    assert authz["timeout"] == "5s"
    assert authz["port"] == 8080


def istio_checks(rules: list[dict[str, Any]], host: str, path: str) -> bool:
    """Whether a CUSTOM policy with such rules sends the request to the check: any one rule is enough."""

    def among(value: str, patterns: list[str]) -> bool:
        return any(value.startswith(p[:-1]) if p.endswith("*") else value == p for p in patterns)

    def matches(operation: dict[str, list[str]]) -> bool:
        assert set(operation) <= {"hosts", "notHosts", "paths", "notPaths"}
        return (
            among(host, operation.get("hosts", ["*"]))
            and among(path, operation.get("paths", ["*"]))
            and not among(host, operation.get("notHosts", []))
            and not among(path, operation.get("notPaths", []))
        )

    return any(matches(to["operation"]) for rule in rules for to in rule.get("to", [{"operation": {}}]))


def test_istio_asks_about_everything_but_the_service_itself() -> None:
    policy, site = documents("istio/authservice.yaml")
    (mesh,) = documents("istio/mesh-config.yaml")
    assert (policy["kind"], policy["spec"]["action"]) == ("AuthorizationPolicy", "CUSTOM")
    assert policy["spec"]["provider"]["name"] == mesh["spec"]["meshConfig"]["extensionProviders"][0]["name"]
    rules = policy["spec"]["rules"]
    assert site["kind"] == "VirtualService"
    (host,) = site["spec"]["hosts"]
    for path in ("/", "/app", "/authservice", "/authservices/", "/app/authservice/"):
        assert istio_checks(rules, host, path), path
    assert not istio_checks(rules, host, "/authservice/oidc/callback")
    first, *_ = site["spec"]["http"]
    assert first["match"] == [{"uri": {"prefix": "/authservice/"}}, {"uri": {"exact": "/authservice"}}]
    assert first["route"][0]["destination"]["port"]["number"] == 8082
    assert set(first["headers"]["request"]["remove"]) == IDENTITY


def test_istio_exempts_nothing_that_another_route_may_get() -> None:
    """Elsewhere the application would believe the client's own identity headers."""
    policy, site = documents("istio/authservice.yaml")
    (host,) = site["spec"]["hosts"]
    assert "*" not in host
    for other in ("other.example.com", f"{host}:8443", f"{host}.", f"www.{host}", "10.0.0.1", ""):
        for path in ("/authservice/", "/authservice/x", "/authservice/..%2Fapp", "/"):
            assert istio_checks(policy["spec"]["rules"], other, path), (other, path)
    # What is exempted is what the first route takes, by the same prefix, whatever is behind it.
    exempted = [path for rule in policy["spec"]["rules"] for to in rule["to"]
                for path in to["operation"].get("notPaths", [])]
    first, *others = site["spec"]["http"]
    assert [match["uri"]["prefix"] + "*" for match in first["match"] if "prefix" in match["uri"]] == exempted
    assert all("match" not in route for route in others)


def test_ambassador_sends_and_takes_over_what_envoy_does() -> None:
    """Its lists know exact names only, so those that Envoy takes by prefix are spelt out."""
    auth, mapping, root = documents("ambassador/authservice.yaml")
    assert (auth["kind"], mapping["kind"]) == ("AuthService", "Mapping")
    assert {auth["apiVersion"], mapping["apiVersion"]} == {"getambassador.io/v3alpha1"}
    sent = set(auth["spec"]["allowed_request_headers"]) | ALWAYS_SENT_BY_AMBASSADOR
    for name in names(envoy_filter()["allowed_headers"]["patterns"]):
        begins = name.rstrip("*")
        assert name in sent or (name != begins and any(one.startswith(begins) for one in sent)), name
    assert IDENTITY <= set(auth["spec"]["allowed_authorization_headers"])
    assert auth["spec"]["status_on_error"] == {"code": 503}
    assert not auth["spec"].get("failure_mode_allow", False)
    assert auth["spec"]["auth_service"].endswith(":8080")
    assert mapping["spec"]["bypass_auth"] is True
    assert mapping["spec"]["prefix"] == "/authservice/"
    assert mapping["spec"]["rewrite"] == ""
    assert mapping["spec"]["service"].endswith(":8082")
    assert set(mapping["spec"]["remove_request_headers"]) == IDENTITY
    # Checked, so that forged headers are taken off it without being listed.
    assert root["spec"] == {
        "hostname": "*",
        "prefix": "/authservice",
        "prefix_exact": True,
        "rewrite": "",
        "service": mapping["spec"]["service"],
    }


def test_every_gateway_takes_over_every_identity_header() -> None:
    upstream = envoy_filter()["http_service"]["authorization_response"]["allowed_upstream_headers"]
    assert names(upstream["patterns"]) == IDENTITY
    nginx = (DEPLOY / "nginx/authservice.conf").read_text().lower()
    guarded = nginx[nginx.rindex("location / {"):]
    assert set(re.findall(r"proxy_set_header (\S+) \$authservice_", guarded)) == IDENTITY
    caddy = (DEPLOY / "caddy/Caddyfile").read_text().lower()
    assert set(re.search(r"copy_headers (.+)", caddy)[1].split()) == IDENTITY  # type: ignore[index]
    (traefik,) = documents("traefik/dynamic.yml")
    forward = traefik["http"]["middlewares"]["auth"]["forwardAuth"]
    assert {name.lower() for name in forward["authResponseHeaders"]} == IDENTITY
    assert forward["trustForwardHeader"] is False


@pytest.mark.parametrize(
    "path", ["envoy/envoy.yaml", "nginx/authservice.conf", "caddy/Caddyfile", "traefik/dynamic.yml"]
)
def test_gateways_ask_on_one_port_and_lead_people_to_the_other(path: str) -> None:
    text = (DEPLOY / path).read_text()
    for port in (8080, 8082, 9000):
        assert re.search(rf"\b{port}\b", text), port


def test_gateways_listen_on_this_machine_only() -> None:
    """Whoever starts a file unread opens nothing to the network."""
    (envoy,) = documents("envoy/envoy.yaml")
    addresses = [node["address"] for node in walk(envoy) if "port_value" in node]
    (traefik,) = documents("traefik/traefik.yml")
    addresses += [entry["address"].rpartition(":")[0] for entry in traefik["entryPoints"].values()]
    addresses += re.findall(r"listen (.+):\d+;", (DEPLOY / "nginx/authservice.conf").read_text())
    addresses += re.findall(r"bind (.+)", (DEPLOY / "caddy/Caddyfile").read_text())
    assert len(addresses) == 4 + 1 + 1 + 1
    assert all(ipaddress.ip_address(address).is_loopback for address in addresses)


def test_ports_are_replaced_whole_and_all_at_once() -> None:
    assert replace_ports("a:8080 b:8082 c:80801 d:18080 e:1.8080", {8080: 8082, 8082: 8080}) == (
        "a:8082 b:8080 c:80801 d:18080 e:1.8080"
    )


# --- they agree with the service ----------------------------------------------------------------

SETTINGS = {row.name for row in ROWS} | {f"{row.name}_FILE" for row in ROWS if row.secret}
NOT_OURS = {"PATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "GUNICORN_CMD_ARGS", "PYTHON", "CMD"}


def deployed_files() -> list[Path]:
    return sorted(
        path for path in DEPLOY.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".html", ".pyc")
    )


_API = "test_deploy_gateways.py::test_the_schema_of_its_api_accepts_it"
_CLUSTER = "test_deploy_kubernetes.py::test_the_schemas_of_the_api_accept_it"
_BUILT = "test_deploy_kubernetes.py::test_kubectl_puts_the_same_together"
_INGRESS = "test_deploy_gateways.py::test_the_api_accepts_ingresses_and_settings"
LOADED_BY = {
    "Dockerfile": "test_deploy.py::test_the_image_is_built_from_what_is_there",
    "ambassador/authservice.yaml": _API,
    "caddy/Caddyfile": "test_deploy.py::test_caddy_loads_its_file",
    "docker/compose.yaml": "test_deploy_gateways.py::test_the_composition_is_valid_and_of_files_that_exist",
    "envoy-gateway/authservice.yaml": _API,
    "envoy/envoy.yaml": "test_deploy.py::test_envoy_loads_its_file",
    "gateway-api/authservice.yaml": _API,
    "ingress-nginx/controller.yaml": _INGRESS,
    "ingress-nginx/ingress.yaml": _INGRESS,
    "istio/ambient.yaml": _API,
    "istio/authservice.yaml": _API,
    "istio/mesh-config.yaml": _API,
    "istio/sidecar.yaml": _API,
    "kubeflow/istio.yaml": _API,
    "kubeflow/kustomization.yaml": _BUILT,
    "kubeflow/mesh-config.yaml": _API,
    "kubernetes/application.yaml": _CLUSTER,
    "kubernetes/base/kustomization.yaml": _BUILT,
    "kubernetes/base/namespace.yaml": _CLUSTER,
    "kubernetes/base/network.yaml": _CLUSTER,
    "kubernetes/base/rbac.yaml": _CLUSTER,
    "kubernetes/base/secret.example.yaml": _CLUSTER,
    "kubernetes/base/settings.yaml": _CLUSTER,
    "kubernetes/base/workload.yaml": _CLUSTER,
    "kubernetes/redis/kustomization.yaml": _BUILT,
    "kubernetes/volume/claim.yaml": _CLUSTER,
    "kubernetes/volume/kustomization.yaml": _BUILT,
    "nginx/authservice.conf": "test_deploy.py::test_nginx_loads_its_file",
    "systemd/authservice.env": "test_deploy.py::test_the_units_settings_are_a_start_without_problems",
    "systemd/authservice.sh": "test_vm_page.py::test_the_page_leads_to_a_protected_page",
    "systemd/authservice.service": "test_deploy.py::test_systemd_accepts_the_unit_and_finds_it_confined",
    "traefik/dynamic.yml": "test_deploy.py::test_traefik_starts_with_its_files",
    "traefik/kubernetes/authservice.yaml": _API,
    "traefik/traefik.yml": "test_deploy.py::test_traefik_starts_with_its_files",
}
"""Every file that somebody may copy, and the test that loads or validates it."""


def test_every_file_is_loaded_or_validated_by_a_test() -> None:
    files = {str(path.relative_to(DEPLOY)) for path in deployed_files()}
    assert files == set(LOADED_BY)
    for file, test in LOADED_BY.items():
        module, _, function = test.partition("::")
        assert f"def {function}(" in (ROOT / "tests" / module).read_text(), file


@pytest.mark.parametrize("path", deployed_files(), ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_setting_that_a_file_names_exists(path: Path) -> None:
    named = set(re.findall(r"(?<![\w$])([A-Z][A-Z0-9_]{3,})=", path.read_text()))
    named |= set(re.findall(r"\b((?:USERID|GROUPS|AUTH_METHOD|OIDC|SESSION)_[A-Z_]+)\b", path.read_text()))
    assert named - SETTINGS - NOT_OURS == set()


def env_file(path: Path) -> dict[str, str]:
    lines = (line for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_the_units_settings_are_a_start_without_problems(tmp_path: Path) -> None:
    environ = env_file(DEPLOY / "systemd/authservice.env")
    secret = tmp_path / "client-secret"
    secret.write_text("of-the-credential\n")
    found = examine({**environ, "CLIENT_SECRET_FILE": str(secret)})
    assert (list(found.problems), list(found.warnings)) == ([], [])
    unit = (DEPLOY / "systemd/authservice.service").read_text()
    assert "CLIENT_SECRET" not in environ
    assert "Environment=CLIENT_SECRET_FILE=/run/credentials/%n/client-secret" in unit
    assert found.settings is not None
    # The default path of the session file is in the unit's state directory.
    assert found.settings.session_store_path.parent == Path("/var/lib/authservice")
    assert "StateDirectory=authservice" in unit


def test_the_demos_settings_are_a_start_without_problems(tmp_path: Path) -> None:
    found = examine(Stack(Ports(), tmp_path, print).authservice_settings())
    assert (list(found.problems), list(found.warnings)) == ([], [])


# --- the image ----------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "Dockerfile").read_text()
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.M).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def test_the_image_runs_as_nobody_special_on_a_read_only_root() -> None:
    final = instructions()
    start = max(index for index, (word, _) in enumerate(final) if word == "FROM")
    final = final[start:]
    words = dict(final)
    assert words["USER"] == "111:111"
    assert words["VOLUME"] == "/var/lib/authservice"
    assert "/dev/shm" in words["ENV"]
    assert "READINESS_PROBE_PORT=8081" in words["ENV"]
    assert set(words["EXPOSE"].split()) == {"8080", "8081", "8082"}
    made = next(rest for word, rest in final if word == "RUN")
    # A volume with fsGroup 111 belongs to the group: the folder must take its files.
    assert "--owner=111 --group=111 --mode=2770 /var/lib/authservice" in made
    assert "pip" not in made


def test_the_image_is_built_from_what_is_there() -> None:
    """Everything that is copied exists and is let through to the builder."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = [line[1:] for line in lines if line.startswith("!")]
    copied = [rest for word, rest in instructions() if word == "COPY" and "--from" not in rest]
    assert copied
    for line in copied:
        *sources, _ = shlex.split(line)
        for source in sources:
            assert (ROOT / source).exists(), source
            assert any(source == top or source.startswith(f"{top}/") for top in let_through), source


def test_the_builder_is_not_given_the_client_secret() -> None:
    """It is beside the file of the composition, below a folder of which some is copied."""
    (secret,) = re.findall(r"^/(\S*secret\S*)$", (ROOT / ".gitignore").read_text(), re.M)
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[0] == "*"
    for line in lines[1:]:
        assert not line.startswith("!") or not f"{secret}/".startswith(f"{line[1:]}/"), line


def test_on_the_machines_own_network_the_container_opens_no_port_to_others() -> None:
    (service,) = yaml.safe_load((DEPLOY / "docker/compose.yaml").read_text())["services"].values()
    assert service["network_mode"] == "host"
    image = re.findall(r"\b([A-Z_]+_PORT)=", dict(instructions())["ENV"])
    secret = {"CLIENT_SECRET_FILE": "", "CLIENT_SECRET": "what the file has, which is longer"}
    found = examine({**env_file(DEPLOY / "systemd/authservice.env"), **service["environment"], **secret})
    assert (list(found.problems), list(found.warnings)) == ([], [])
    assert image == ["READINESS_PROBE_PORT"] and found.settings is not None
    assert found.settings.readiness_probe_port is None
    assert found.settings.server_hostname == "127.0.0.1"
    run = (ROOT / "docs/gateways/docker.md").read_text()
    assert "--env READINESS_PROBE_PORT= " in run


def test_image_and_unit_start_the_same_application() -> None:
    command = "-c python:authservice.gunicorn_conf authservice.wsgi:app"
    in_image = yaml.safe_load(dict(instructions())["CMD"])
    assert " ".join(in_image) == f"gunicorn {command}"
    assert f"/bin/gunicorn {command}\n" in (DEPLOY / "systemd/authservice.service").read_text()


# --- what people read and type ------------------------------------------------------------------


def read_documents() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("document", read_documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.S)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    local = [link.partition("#")[0] for link in links if "://" not in link and not link.startswith("#")]
    assert [link for link in local if not (document.parent / link).exists()] == []


def test_commands_in_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"\bmake ([a-z][a-z-]+)", (ROOT / "README.md").read_text()))
    assert {"demo", "test", "demo-check", "test-quick"} <= named <= targets


def test_the_ci_script_can_be_run() -> None:
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111
    run("bash", "-n", script)


def test_the_picture_is_well_formed_and_described() -> None:
    picture = ElementTree.parse(ROOT / "docs/how-it-works.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert picture.tag == f"{space}svg"
    assert picture.findtext(f"{space}title") and picture.findtext(f"{space}desc")
    assert "prefers-color-scheme: dark" in (picture.findtext(f"{space}style") or "")
