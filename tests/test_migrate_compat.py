"""oauth2-proxy's endpoints: their answers, on both ports, and what of theirs is not as loose with us."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from authservice.settings import examine
from tests.conftest import Browser, path_of

FOLDERS = ("/oauth2", "/authservice")
PORTS = (Browser.JUDGE, Browser.SITE)
PAGE = {"Accept": "text/html", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
MakeBrowser = Callable[..., Browser]


@pytest.fixture
def compat(make_browser: MakeBrowser) -> Browser:
    return make_browser(OAUTH2_PROXY_COMPAT="true")


@pytest.fixture
def logged_in(compat: Browser, provider: Any) -> Browser:
    provider.claims = {
        **provider.claims,
        "email": "Ann@Example.com",
        "groups": ["staff", "ops"],
        "preferred_username": "ann",
    }
    compat.log_in()
    return compat


def auth(browser: Browser, query: str = "", *, port: int = Browser.JUDGE, **headers: str) -> int:
    return browser.send("GET", f"/oauth2/auth{query}", port=port, **headers).status


def test_without_the_setting_none_of_it_is_there(browser: Browser) -> None:
    for folder in FOLDERS:
        assert browser.get(f"{folder}/auth", port=Browser.SITE).status == 404
    browser.log_in()
    assert browser.get("/oauth2/auth").status == 200  # the application's own path
    assert browser.get("/ping", port=Browser.SITE).status == 404


def test_a_gateway_that_still_asks_without_the_setting_lets_nobody_pass(make_browser: MakeBrowser) -> None:
    """Below our own prefix every path is open: there the question must not be taken for the path itself."""
    browser = make_browser(AUTHSERVICE_URL_PREFIX="/oauth2/", REDIRECT_URL="/oauth2/callback")
    assert auth(browser) == auth(browser, "?allowed_groups=a") == 403


# --- auth -------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_auth_says_202_with_the_identity_and_401_without_a_redirect(
    folder: str, port: int, compat: Browser
) -> None:
    nobody = compat.send("GET", f"{folder}/auth", port=port, **PAGE)
    assert nobody.status == 401 and nobody.header("Location") is None
    assert nobody.all("Set-Cookie") == []
    compat.log_in()
    for method in ("GET", "HEAD", "POST"):
        answer = compat.send(method, f"{folder}/auth", port=port, **PAGE)
        assert (answer.status, answer.body) == (202, b"")
        assert answer.header("kubeflow-userid") and answer.all("Set-Cookie") == []


@pytest.mark.parametrize("compat", ["true", "false"])
@pytest.mark.parametrize("prefix", ["/oauth2/", "/authservice/"])
def test_no_spelling_of_its_path_makes_a_check_an_open_page_of_ours(
    prefix: str, compat: str, make_browser: MakeBrowser
) -> None:
    """Below our own prefix, Envoy's checks pass: what any other gateway asks there must not be taken for one."""
    browser = make_browser(
        OAUTH2_PROXY_COMPAT=compat,
        GATEWAY="envoy,nginx",
        AUTHSERVICE_URL_PREFIX=prefix,
        REDIRECT_URL=f"{prefix}callback",
    )
    for port in PORTS:
        for path in ("auth", "auth/", "/auth", "%61uth", "auth%2f", "./auth", "x/../auth", "auth;x", "auth//"):
            for query in ("", "?allowed_groups=staff"):
                answer = browser.send("GET", f"{prefix}{path}{query}", port=port)
                assert answer.status >= 300, (port, path, query)
        assert browser.send("GET", f"/{prefix}auth", port=port).status >= 300
        assert browser.send("GET", f"{prefix}forward-auth/", port=port).status >= 300


def test_a_slash_at_the_end_asks_the_same(logged_in: Browser) -> None:
    for port in PORTS:
        for query, status in (("", 202), ("?allowed_groups=staff", 202), ("?allowed_groups=other", 403)):
            assert logged_in.send("GET", f"/oauth2/auth/{query}", port=port).status == status


@pytest.mark.parametrize(
    "query,status",
    [
        ("", 202),
        ("?allowed_groups=staff", 202),
        ("?allowed_groups=other,ops", 202),
        ("?allowed_groups=other&allowed_groups=ops", 202),
        ("?allowed_groups=other", 403),
        ("?allowed_groups=Staff", 403),
        ("?allowed_emails=ann@example.com", 202),
        ("?allowed_emails=bob@example.com", 403),
        ("?allowed_email_domains=example.com", 202),
        ("?allowed_email_domains=.com", 202),
        ("?allowed_email_domains=*.com", 202),
        ("?allowed_email_domains=ample.com", 403),
        ("?allowed_email_domains=.example.com", 403),
        ("?allowed_groups=staff&allowed_emails=bob@example.com", 403),
        ("?allowed_groups=staff&allowed_email_domains=example.com", 202),
        ("?allowed_groups=", 403),
        ("?allowed_groups", 403),
        ("?allowed_groups=,", 403),
        ("?allowed_groups=%20,%20", 403),
        ("?allowed_groups=staff&allowed_groups=", 403),
        ("?allowed%5Fgroups=other", 403),
        ("?x=1", 202),
    ],
)
def test_auth_narrows_by_its_own_query(query: str, status: int, logged_in: Browser) -> None:
    assert auth(logged_in, query) == status


def test_a_person_who_is_not_logged_in_is_401_whatever_is_demanded(compat: Browser) -> None:
    assert auth(compat, "?allowed_groups=staff") == auth(compat, "?allowed_groups=") == 401


def test_a_client_cannot_put_a_demand_of_its_own_beside_the_gateways(logged_in: Browser) -> None:
    """Caddy puts the client's query behind its own, where a second value would be one more way to pass."""
    asked = "?allowed_groups=other&allowed_groups=staff"
    assert auth(logged_in, asked, X_Forwarded_Uri="/page?allowed_groups=staff") == 403
    assert auth(logged_in, asked, X_Forwarded_Uri="/page?allowed%5fgroups=staff") == 403
    assert auth(logged_in, "?allowed_groups=staff", X_Forwarded_Uri="/page?x=1") == 202


def test_no_header_opens_a_path(make_browser: MakeBrowser) -> None:
    browser = make_browser(OAUTH2_PROXY_COMPAT="true", SKIP_AUTH_URLS="/public/")
    for name in ("X-Forwarded-Uri", "X-Original-URI", "X-Original-URL"):
        headers = {name.replace("-", "_"): "/public/x", "X_Original_Method": "GET"}
        assert auth(browser, **headers) == 401
        headers[name.replace("-", "_")] = "/authservice/x"
        assert auth(browser, **headers) == 401


POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: default}
spec:
  action: ALLOW
  rules:
  - to:
    - operation: {methods: [GET], paths: [/open/*]}
"""


@pytest.mark.parametrize("anonymous", ["true", "false"])
def test_policies_need_the_original_request(
    anonymous: str, make_browser: MakeBrowser, tmp_path: Path
) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY)
    browser = make_browser(
        OAUTH2_PROXY_COMPAT="true",
        POLICY_PATH=str(tmp_path / "policy.yaml"),
        POLICY_ALLOWS_ANONYMOUS=anonymous,
    )
    told = {"X_Forwarded_Uri": "/open/1", "X_Forwarded_Method": "GET"}
    assert auth(browser, **told) == 401
    assert auth(browser, "?allowed_groups=a", **told) == 401
    browser.log_in()
    assert auth(browser) == 403
    assert auth(browser, X_Forwarded_Uri="/open/1") == 403
    assert auth(browser, **told) == 202
    assert auth(browser, **{**told, "X_Forwarded_Method": "POST"}) == 403
    assert auth(browser, **{**told, "X_Forwarded_Uri": "/other"}) == 403
    assert auth(browser, **told, X_Original_URI="/open/1", X_Original_URL="/open/1") == 403
    assert auth(browser, **told, X_Original_URL="https://other.example/open/1") == 403
    assert auth(browser, **told, X_Original_URL="https://app.example/open/1") == 202


@pytest.mark.parametrize("with_policy", [True, False])
def test_nothing_that_is_told_lets_somebody_pass_without_a_login(
    with_policy: bool, make_browser: MakeBrowser, tmp_path: Path
) -> None:
    """nginx passes a client's own headers on where its configuration does not set them."""
    (tmp_path / "policy.yaml").write_text(POLICY)
    policy = {"POLICY_PATH": str(tmp_path / "policy.yaml"), "POLICY_ALLOWS_ANONYMOUS": "true"}
    browser = make_browser(
        OAUTH2_PROXY_COMPAT="true",
        GATEWAY="nginx",
        ALLOW_CORS_PREFLIGHT="true",
        SKIP_AUTH_URLS="/public/",
        **(policy if with_policy else {}),
    )
    preflight = {"Origin": "https://evil.example", "Access_Control_Request_Method": "GET"}
    for target in ("/open/1", "/public/x"):
        for method in ("GET", "OPTIONS"):
            told = {"X_Forwarded_Uri": target, "X_Forwarded_Method": method}
            assert auth(browser, **told) == auth(browser, **told, **preflight) == 401
            told = {"X_Original_URI": target, "X_Original_Method": method}
            assert auth(browser, **told) == auth(browser, **told, **preflight) == 401


@pytest.mark.parametrize(
    "query,status",
    [
        ("?allowed_emails=boss@example.com", 403),
        ("?allowed_emails=ann@corp.example", 403),
        ("?allowed_emails=boss@example.com,ann@corp.example", 202),
        ("?allowed_email_domains=example.com", 403),
        ("?allowed_email_domains=corp.example", 403),
        ("?allowed_email_domains=example.com&allowed_email_domains=*.corp.example,corp.example", 202),
        ("?allowed_email_domains=*corp.example,*example.com", 403),
    ],
)
def test_an_address_that_people_may_write_themselves_is_not_enough(
    query: str, status: int, make_browser: MakeBrowser, provider: Any
) -> None:
    """With oidc_email_claim=upn, oauth2-proxy never looks at the claim email."""
    provider.claims = {**provider.claims, "upn": "ann@corp.example", "email": "boss@example.com"}
    browser = make_browser(OAUTH2_PROXY_COMPAT="true", USERID_CLAIM="upn")
    browser.log_in()
    assert auth(browser, query) == status


def test_groups_count_before_what_is_demanded(make_browser: MakeBrowser, provider: Any) -> None:
    provider.claims = {**provider.claims, "groups": ["staff"]}
    browser = make_browser(OAUTH2_PROXY_COMPAT="true", GROUPS_ALLOWLIST="ops")
    browser.log_in()
    assert auth(browser) == auth(browser, "?allowed_groups=staff") == 403


# --- start and sign_in ------------------------------------------------------------------------


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("name", ["start", "sign_in"])
def test_a_login_begins_and_comes_back_to_where_it_was_asked_to(
    name: str, port: int, compat: Browser
) -> None:
    sent = compat.send("GET", f"/oauth2/{name}?rd={quote('/page?x=1', safe='')}", port=port, **PAGE)
    assert sent.status == 302
    done = compat.get(compat.at_provider(sent))
    assert path_of(done.header("Location")) == "/page?x=1"


def test_nginx_tells_the_page_in_a_header(compat: Browser) -> None:
    sent = compat.send("GET", "/oauth2/sign_in", X_Auth_Request_Redirect="/page?x=1", **PAGE)
    assert path_of(compat.get(compat.at_provider(sent)).header("Location")) == "/page?x=1"


@pytest.mark.parametrize(
    "address", ["https://evil.example/", "//evil.example/", "/\\evil.example", "javascript:x"]
)
@pytest.mark.parametrize("by_header", [True, False])
def test_no_login_leads_elsewhere(address: str, by_header: bool, compat: Browser) -> None:
    if by_header:
        sent = compat.send("GET", "/oauth2/start", X_Auth_Request_Redirect=address, **PAGE)
    else:
        sent = compat.send("GET", f"/oauth2/start?rd={quote(address, safe='')}", **PAGE)
    assert "evil" not in (compat.get(compat.at_provider(sent)).header("Location") or "")


def test_the_header_tells_nothing_without_the_setting(browser: Browser) -> None:
    sent = browser.send("GET", "/authservice/login", X_Auth_Request_Redirect="/page", **PAGE)
    assert path_of(browser.get(browser.at_provider(sent)).header("Location")) != "/page"


def test_sign_in_ends_no_session(logged_in: Browser) -> None:
    logged_in.send("GET", "/oauth2/sign_in", **PAGE)
    assert auth(logged_in) == 202


# --- sign_out ---------------------------------------------------------------------------------


def sign_out(
    browser: Browser, rd: str = "", method: str = "GET", port: int = Browser.SITE, **headers: str
) -> Any:
    query = f"?rd={quote(rd, safe='')}" if rd else ""
    return browser.send(method, f"/oauth2/sign_out{query}", port=port, **{**PAGE, **headers})


@pytest.mark.parametrize("port", PORTS)
def test_sign_out_ends_the_session_when_a_page_of_this_origin_asks(port: int, logged_in: Browser) -> None:
    answer = sign_out(logged_in, "/bye", port=port, Sec_Fetch_Site="same-origin")
    assert answer.status == 302 and path_of(answer.header("Location")) == "/bye"
    assert auth(logged_in) == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "none"},
        {},
        {"Sec_Fetch_Site": "same-origin", "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "image"},
    ],
)
def test_without_proof_people_are_asked_first(headers: dict[str, str], logged_in: Browser) -> None:
    answer = sign_out(logged_in, **headers)
    assert answer.status == 302 and path_of(answer.header("Location")) == "/authservice/site/session"
    assert answer.all("Set-Cookie") == [] and auth(logged_in) == 202


@pytest.mark.parametrize("rd", ["https://evil.example/", "//evil.example/", "/\\evil.example"])
def test_no_logout_leads_elsewhere(rd: str, logged_in: Browser) -> None:
    answer = sign_out(logged_in, rd, Sec_Fetch_Site="same-origin")
    assert answer.status == 302 and "evil" not in urlsplit(answer.header("Location") or "").netloc
    assert auth(logged_in) == 401


def test_a_logout_may_lead_to_an_allowed_host(make_browser: MakeBrowser) -> None:
    browser = make_browser(OAUTH2_PROXY_COMPAT="true", ALLOWED_REDIRECT_HOSTS="login.example.org")
    browser.log_in()
    address = "https://login.example.org/logout?x=1"
    assert sign_out(browser, address, Sec_Fetch_Site="same-origin").header("Location") == address


def test_sign_out_by_post_needs_the_same_proof(logged_in: Browser) -> None:
    assert sign_out(logged_in, method="POST", Sec_Fetch_Site="cross-site").status == 401
    assert auth(logged_in) == 202
    assert sign_out(logged_in, method="POST", Sec_Fetch_Site="same-origin").status in (201, 303)
    assert auth(logged_in) == 401
    assert sign_out(logged_in, method="PUT").status == 405


def test_where_the_provider_has_a_logout_it_comes_first(logged_in: Browser, provider: Any) -> None:
    location = sign_out(logged_in, Sec_Fetch_Site="same-origin").header("Location") or ""
    if location.startswith(provider.issuer):
        assert "id_token_hint" in parse_qs(urlsplit(location).query)
    else:
        assert path_of(location) == "/authservice/site/after_logout"


# --- userinfo, ping, ready --------------------------------------------------------------------


@pytest.mark.parametrize(
    "port,gateway", [(Browser.SITE, "envoy"), (Browser.SITE, "nginx"), (Browser.JUDGE, "nginx")]
)
def test_userinfo_has_oauth2_proxys_names(
    port: int, gateway: str, make_browser: MakeBrowser, provider: Any
) -> None:
    compat = make_browser(OAUTH2_PROXY_COMPAT="true", GATEWAY=gateway)
    assert compat.get("/oauth2/userinfo", port=port).status == 401
    provider.claims = {
        **provider.claims,
        "email": "ann@example.com",
        "groups": ["staff"],
        "preferred_username": "ann",
    }
    compat.get(compat.at_provider(compat.send("GET", "/oauth2/start", **PAGE)))
    told = compat.get("/oauth2/userinfo", port=port).json
    assert told.items() >= {
        "user": provider.claims["sub"], "email": "ann@example.com", "groups": ["staff"], "preferredUsername": "ann"
    }.items()  # fmt: skip


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("name", ["start", "sign_in", "sign_out", "userinfo", "auth"])
def test_behind_envoy_a_200_is_an_allow_and_nothing_but_that(
    folder: str, name: str, logged_in: Browser
) -> None:
    for method in ("GET", "POST", "HEAD", "OPTIONS"):
        for site in ("same-origin", "cross-site"):
            answer = logged_in.send(method, f"{folder}/{name}", **{**PAGE, "Sec_Fetch_Site": site})
            told = {header.lower() for header, _ in answer.headers}
            removed = (answer.header("x-envoy-auth-headers-to-remove") or "").split(",")
            assert answer.status != 200 or "kubeflow-userid" in told | set(removed)


def test_probes_are_on_the_site_port(compat: Browser, provider: Any) -> None:
    for path in ("/ping", "/ready"):
        answer = compat.get(path, port=Browser.SITE)
        assert (answer.status, answer.body) == (200, b"OK")
        assert compat.get(path).status != 200


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name,address",
    [
        ("REDIRECT_URL", "/oauth2/auth"),
        ("REDIRECT_URL", "/authservice/sign_out"),
        ("VERIFY_AUTH_URL", "/oauth2/auth"),
        ("REDIRECT_URL", "/ping"),
    ],
)
def test_no_other_address_may_be_there(name: str, address: str, environ: dict[str, str]) -> None:
    taken = {**environ, name: address}
    assert not examine(taken).problems
    assert [
        line for line in examine({**taken, "OAUTH2_PROXY_COMPAT": "true"}).problems if line.startswith(name)
    ]


def test_oauth2_proxys_own_prefix_and_callback(make_browser: MakeBrowser) -> None:
    """As the migration sets them: one folder for both."""
    browser = make_browser(
        OAUTH2_PROXY_COMPAT="true", AUTHSERVICE_URL_PREFIX="/oauth2/", REDIRECT_URL="/oauth2/callback"
    )
    sent = browser.send("GET", "/notebooks/7", **PAGE)
    callback = f"/oauth2/callback?{browser.at_provider(sent).partition('?')[2]}"
    assert path_of(browser.get(callback).header("Location")) == "/notebooks/7"
    assert auth(browser) == 202
