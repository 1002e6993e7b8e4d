"""Where the service is: its addresses, its gateway, the headers it sets, and its ports."""

from __future__ import annotations

import json
import re
from urllib.parse import urlsplit

from authservice.migrate.options import Options
from authservice.migrate.people import email_claim
from authservice.migrate.plan import Plan

PRESET = "oauth2-proxy"
_ASKED = {
    "X-Auth-Request-User": "sub",
    "X-Auth-Request-Email": "email",
    "X-Auth-Request-Preferred-Username": "preferred_username",
    "X-Auth-Request-Groups": "groups",
}
_PASSED = {name.replace("X-Auth-Request", "X-Forwarded"): claim for name, claim in _ASKED.items()}


def addresses(options: Options, plan: Plan) -> None:
    """Our own paths, and where a login may lead back to."""
    prefix = "/" + options.text("proxy_prefix", "/oauth2").strip("/")
    plan.set("AUTHSERVICE_URL_PREFIX", f"{prefix}/", "proxy_prefix")
    plan.set("OAUTH2_PROXY_COMPAT", "true", "proxy_prefix")
    callback = options.text("redirect_url")
    options.flag("relative_redirect_url")
    if callback and urlsplit(callback).path in ("", "/"):
        callback = callback.rstrip("/") + f"{prefix}/callback"
    plan.set("REDIRECT_URL", callback or f"{prefix}/callback", "redirect_url")
    domains = options.many("whitelist_domains")
    if domains:
        plan.set("ALLOWED_REDIRECT_HOSTS", ",".join(domains), "whitelist_domains")
    if options.flag("force_https"):
        plan.lost("force_https", "the gateway redirects http to https.")


def gateway(options: Options, plan: Plan, chosen: str) -> bool:
    """Who asks. Gives whether a gateway of one's own has to be put in front."""
    upstreams = options.many("upstreams")
    passes_on = [upstream for upstream in upstreams if not upstream.startswith("static://")]
    static = bool(upstreams) and not passes_on
    plan.set("GATEWAY", chosen or ("envoy" if static else "nginx"), "upstreams")
    if passes_on:
        plan.lost(
            "upstreams",
            "AuthService passes nothing on: a gateway does, and asks. Configurations that are ready to copy are in "
            "deploy/.",
        )
    elif not chosen:
        why = "static:// upstreams stand behind Envoy or Istio" if static else "without upstreams, nginx asks"
        plan.changed("upstreams", f"{why}; if yours is another gateway, change GATEWAY.")
    _trusted(options, plan)
    if options.flag("force_json_errors"):
        plan.set("UNAUTHENTICATED_RESPONSE", "401", "force_json_errors")
    if "api_routes" in options:
        plan.changed(
            "api_routes",
            "what a browser does not open as a page is told 401 on every path (UNAUTHENTICATED_RESPONSE=auto); the "
            "gateway has to send Accept and Sec-Fetch-* with the check for that.",
        )
    if not options.flag("skip_provider_button"):
        plan.changed(
            "skip_provider_button", "there is no page with a button: pages lead to the login at once."
        )
    return bool(passes_on)


def _trusted(options: Options, plan: Plan) -> None:
    proxies, behind_one = options.many("trusted_proxy_ips"), options.flag("reverse_proxy")
    if proxies:
        plan.set("TRUSTED_PROXIES", ",".join(proxies), "trusted_proxy_ips")
    elif behind_one:
        plan.lost(
            "reverse_proxy",
            "nobody is trusted unless named: the gateway's addresses belong into TRUSTED_PROXIES.",
        )


def headers(options: Options, plan: Plan, passes_on: bool) -> None:
    """What the application is told. Headers that oauth2-proxy adds while passing requests on count only
    where it does."""
    told: dict[str, str] = {}
    if options.flag("set_xauthrequest"):
        told |= _ASKED
    switches = [options.flag(name, True) for name in ("pass_user_headers", "pass_basic_auth")] if passes_on else []
    if any(switches):
        told |= _PASSED
        if options.flag("prefer_email_to_user"):
            told["X-Forwarded-User"] = told.pop("X-Forwarded-Email")
        plan.changed(
            "pass_user_headers", "the gateway has to take these headers over from the check's answer."
        )
    if told:
        claims = {"email": email_claim(options), "groups": options.text("oidc_groups_claim", "groups")}
        named = {header: claims.get(claim, claim) for header, claim in told.items()}
        plan.set("UPSTREAM_HEADERS", PRESET if named == _ASKED else json.dumps(named), "set_xauthrequest")
    token = [options.flag("set_authorization_header"), passes_on and options.flag("pass_authorization_header")]
    if any(token):
        plan.set("UPSTREAM_ID_TOKEN_HEADER", "Authorization", "set_authorization_header")
    if options.flag("pass_access_token") and (passes_on or options.flag("set_xauthrequest")):
        name = "X-Forwarded-Access-Token" if passes_on else "X-Auth-Request-Access-Token"
        plan.set("UPSTREAM_ACCESS_TOKEN_HEADER", name, "pass_access_token")
    if any([options.flag("set_basic_auth"), "basic_auth_password" in options]):
        plan.lost("basic_auth_password", "no password is made up for the application.")
    if "signature_key" in options:
        plan.lost("signature_key", "requests are not signed.")


def server(options: Options, plan: Plan) -> None:
    """Addresses to listen on."""
    host, port = _host_and_port(options.text("http_address", "127.0.0.1:4180"))
    if port:
        plan.set("SERVER_HOSTNAME", host, "http_address")
        plan.set("SERVER_PORT", port, "http_address")
    else:
        plan.lost("http_address", "SERVER_HOSTNAME and SERVER_PORT: an address and a port.")
    if "metrics_address" in options:
        port = _host_and_port(options.text("metrics_address"))[1]
        if port:
            plan.set("READINESS_PROBE_PORT", port, "metrics_address")
    if "tls_cert_file" in options:
        plan.lost(
            "tls_cert_file", "the gateway speaks TLS, and reaches the service over a network of its own."
        )
    plan.changed(
        "http_address",
        "checks, the login and the callback are answered there as before. The pages, the logout by the provider "
        "and /ping are on WEB_SERVER_PORT (8082): route the prefix there, so that people can see them.",
    )


def _host_and_port(address: str) -> tuple[str, str]:
    found = re.fullmatch(r"(?:http://)?(\[[^]]*\]|[^:/]*):(\d+)/?", address)
    return (found[1].strip("[]"), found[2]) if found else ("", "")
