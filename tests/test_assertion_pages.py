"""What the pages show of Istio for assertions: valid resources, about what the service really makes and publishes."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import jwt
import kubernetes_validate
import pytest
from werkzeug.serving import make_server

from authservice.errors import SettingsError
from tests import kustomize
from tests.conftest import Browser
from tests.policy_envoy import JudgingEnvoy
from tests.resource_schemas import DOCS, SPECS, problems_of, resources_of

BASE = DOCS.parent / "deploy" / "kubernetes" / "base"
PAGES = ("assertion", "gateways/istio")
SECRET, OTHER = "a-key-of-the-service-that-nobody-knows", "a-key-of-another-service-that-nobody-knows"

Json = dict[str, Any]


def settings_of(page: str) -> dict[str, str]:
    """Those that a page sets in its text or its first lines of shell."""
    text = (DOCS / f"{page}.md").read_text("utf-8")
    shell = re.search(r"^```sh\n(UPSTREAM_.*?)^```$", text, re.M | re.S)
    lines = shell[1] if shell else "\n".join(re.findall(r"`([A-Z_]+=[^`\s]+)`", text))
    return {**dict(line.split("=", 1) for line in lines.splitlines()), "SECRET_KEYS": SECRET}


def of_kind(page: str, kind: str) -> list[Json]:
    return [one for one in resources_of(page) if one["kind"] == kind]


def rule_of(page: str) -> Json:
    (resource,) = of_kind(page, "RequestAuthentication")
    (rule,) = resource["spec"]["jwtRules"]
    return dict(rule)


def logged_in(make_browser: Callable[..., Browser], page: str, **changes: str) -> Browser:
    """Somebody at the host that the page's rule is about."""
    browser = make_browser(**{**settings_of(page), **changes})
    (browser.host,) = rule_of(page)["audiences"]
    browser.log_in()
    return browser


def assertion(browser: Browser, rule: Json) -> str:
    (place,) = rule["fromHeaders"]
    answer = browser.get("/app")
    assert answer.status == 200
    return answer.header(place["name"]) or ""


def published(browser: Browser, rule: Json) -> str:
    """The keys at the rule's address: of the Service in the cluster, on a port of ours."""
    uri = urlsplit(rule["jwksUri"])
    (ports,) = [
        one["spec"]["ports"] for one in kustomize.build(BASE)
        if one["kind"] == "Service" and uri.hostname == "{name}.{namespace}.svc.cluster.local".format(**one["metadata"])
    ]  # fmt: skip
    assert uri.port in [port["port"] for port in ports]
    answer = browser.get(uri.path, port=uri.port)
    assert answer.status == 200
    return answer.body.decode()


@contextmanager
def site_of(browser: Browser) -> Iterator[str]:
    """The site's origin, served on a free port."""

    def site(environ: Json, start_response: Any) -> Any:
        return browser.app({**environ, "SERVER_PORT": str(Browser.SITE)}, start_response)

    server = make_server("127.0.0.1", 0, site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("page", PAGES)
def test_the_resources_are_valid(page: str) -> None:
    found = resources_of(page)
    assert found
    for one in found:
        if f"{one['apiVersion']}/{one['kind']}" in SPECS:
            assert problems_of(one) == []
        else:
            kubernetes_validate.validate(one, "1.37", strict=True)


@pytest.mark.parametrize("page", PAGES)
def test_the_rule_is_about_what_the_service_makes(make_browser: Callable[..., Browser], page: str) -> None:
    rule = rule_of(page)
    browser = logged_in(make_browser, page)
    token = assertion(browser, rule)
    key = jwt.PyJWKSet.from_json(published(browser, rule))[jwt.get_unverified_header(token)["kid"]]
    claims = jwt.decode(token, key, algorithms=["ES256"], audience=rule["audiences"], issuer=rule["issuer"])
    assert claims["sub"] == "alice@example.com"


def test_the_program_that_the_page_shows_verifies_it(make_browser: Callable[..., Browser]) -> None:
    """As it stands there, with the keys' address replaced by one of this machine."""
    rule = rule_of("assertion")
    browser = logged_in(make_browser, "assertion")
    text = (DOCS / "assertion.md").read_text("utf-8")
    ((address, program),) = [
        (found[1], one) for one in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
        if (found := re.search(r'PyJWKClient\("(.*?)"\)', one))
    ]  # fmt: skip
    assert address == rule["issuer"] + "/jwks.json"
    (place,) = rule["fromHeaders"]

    def claims(token: str, keys: str) -> Json:
        names: Json = {"jwt": jwt, "request": SimpleNamespace(headers={place["name"]: token})}
        exec(program.replace(address, keys), names)
        return dict(names["claims"])

    good = assertion(browser, rule)
    browser.host = "other.example"
    with site_of(browser) as site:
        keys = site + urlsplit(address).path
        assert claims(good, keys)["sub"] == "alice@example.com"
        for bad in (assertion(browser, rule), good[:-8] + "A" * 8):
            with pytest.raises(jwt.InvalidTokenError):
                claims(bad, keys)


@pytest.mark.parametrize("page", PAGES)
def test_it_is_no_policy_for_the_service_itself(
    make_browser: Callable[..., Browser], page: str, tmp_path: Path
) -> None:
    """An application could show the assertions that it is given to others, as theirs whom they are about."""
    (tmp_path / "policies.json").write_text(json.dumps(of_kind(page, "RequestAuthentication")[0]))
    with pytest.raises(SettingsError, match=re.escape(f"issuer: {rule_of(page)['issuer']} is this service")):
        make_browser(**settings_of(page), POLICY_PATH=str(tmp_path / "policies.json"))


def test_the_keys_may_be_fetched_by_istiod() -> None:
    """Policies of one pod add up: what the page's says counts beside the shipped one."""
    (shown,) = of_kind("assertion", "NetworkPolicy")
    (shipped,) = [one for one in kustomize.build(BASE) if one["kind"] == "NetworkPolicy"]
    assert shown["metadata"]["namespace"] == shipped["metadata"]["namespace"]
    assert shown["metadata"]["name"] != shipped["metadata"]["name"]
    assert shown["spec"]["podSelector"] == shipped["spec"]["podSelector"]
    (ingress,), (gateways,) = shown["spec"]["ingress"], shipped["spec"]["ingress"]
    (port,) = ingress["ports"]
    assert port in gateways["ports"] and port["port"] == "site"


@pytest.mark.external
@pytest.mark.parametrize("page", PAGES)
def test_envoy_takes_our_assertions_and_no_others(
    make_browser: Callable[..., Browser], page: str, tmp_path: Path
) -> None:
    """Istio gives Envoy the keys that it fetched, and nothing else of ours."""
    rule = rule_of(page)
    browser = logged_in(make_browser, page)
    good = assertion(browser, rule)
    head, said, signature = good.split(".")
    claims = json.loads(base64.urlsafe_b64decode(said + "=="))
    other = base64.urlsafe_b64encode(json.dumps({**claims, "sub": "root"}).encode()).rstrip(b"=").decode()
    bad = {
        "changed": f"{head}.{other}.{signature}",
        "unsigned": f"{head}.{said}.",
        "of another service": assertion(logged_in(make_browser, page, SECRET_KEYS=OTHER), rule),
    }
    keys = published(browser, rule)
    browser.host = "other.example"
    bad["for another host"] = assertion(browser, rule)
    assert all(bad.values())

    documents = of_kind(page, "RequestAuthentication") + of_kind(page, "AuthorizationPolicy")
    known = {name: value for name, value in rule.items() if name != "jwksUri"}
    documents[0]["spec"]["jwtRules"] = [{**known, "jwks": keys}]
    (place,) = rule["fromHeaders"]
    with JudgingEnvoy(tmp_path, {"shown": documents}) as envoy:

        def status(token: str) -> int:
            line = f"{place['name']}: {token}\r\n" if token else ""
            request = f"GET /app HTTP/1.1\r\nHost: {rule['audiences'][0]}\r\n{line}\r\n"
            return envoy.ask("shown", request.encode(), source="127.0.0.1", port=80).status

        assert status(good) == 200
        assert {what: status(token) for what, token in bad.items()} == {
            "changed": 401, "unsigned": 401, "of another service": 401, "for another host": 403,
        }  # fmt: skip
        if of_kind(page, "AuthorizationPolicy"):
            assert status("") == 403
