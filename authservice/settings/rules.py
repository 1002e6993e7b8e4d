"""Rules between settings: what is refused, and what is only said.

A rule is a generator of finished lines. Its parameters are names of settings (in lower case), and
it is asked only when all of these could be read; ``texts`` are the raw texts of those that are set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network

from authservice.identity import MOST_JOINTS, has_too_many_spellings
from authservice.settings import assertion, compat, policies, redis_rules
from authservice.settings.addresses import join_path, path_of
from authservice.settings.derived import outside
from authservice.settings.issuers import BearerIssuer
from authservice.settings.kinds import can_match, split
from authservice.settings.secret import Secret
from authservice.upstream import UpstreamHeaders
from authservice.urls import parse_authority

Lines = Iterator[str]

# --- problems --------------------------------------------------------------------------------


def ports_differ(server_port: int, web_server_port: int, readiness_probe_port: int | None) -> Lines:
    ports = {"SERVER_PORT": server_port, "WEB_SERVER_PORT": web_server_port}
    if readiness_probe_port is not None:
        ports["READINESS_PROBE_PORT"] = readiness_probe_port
    seen: dict[int, str] = {}
    for name, port in ports.items():
        if port in seen:
            yield f"{name}: {port} is also {seen[port]}. Takes a port of its own."
        seen.setdefault(port, name)


_TAKEN = re.compile(
    # What frames a message, or what browsers and applications decide by.
    r"accept(-.*)?|access-control-.*|cache-control|connection|content-.*|cookie|date|expect|host|if-.*|"
    r"keep-alive|location|origin|proxy-.*|range|referer|sec-.*|set-cookie|te|trailer|transfer-encoding|"
    r"upgrade|user-agent|www-authenticate|x-http-method.*|x-method-override|x-requested-with|"
    # What proxies tell each other about the request, and we believe of those that are trusted.
    r"cf-connecting-ip|forwarded|true-client-ip|via|x-client-ip|x-cluster-client-ip|x-envoy-.*|"
    # Some tell applications about the person (X-Forwarded-User): those are free to be ours.
    r"x-forwarded|x-forwarded-(?!(?:user|email|groups|preferred-username|access-token)$).*|x-original-.*|x-real-ip|"
    r"x-request-id|x-rewrite-url|x-scheme"
)

_NO_TOKENS = ("UPSTREAM_HEADERS", "UPSTREAM_ASSERTION_HEADER")


def headers_differ(
    userid_header: str, groups_header: str, auth_method_header: str, auth_header: str, id_token_header: str,
    upstream_headers: UpstreamHeaders, upstream_access_token_header: str, upstream_id_token_header: str,
    upstream_assertion_header: str,
) -> Lines:
    """Applications may read ``_`` and ``-`` in a header's name as the same. A token may take the place of the
    one that came in ``Authorization``."""
    came = {_folded(id_token_header): "ID_TOKEN_HEADER", _folded(auth_header): "AUTH_HEADER"}
    told = [
        ("USERID_HEADER", userid_header),
        ("GROUPS_HEADER", groups_header),
        ("AUTH_METHOD_HEADER", auth_method_header),
        *(("UPSTREAM_HEADERS", header) for header in upstream_headers.names),
        ("UPSTREAM_ACCESS_TOKEN_HEADER", upstream_access_token_header),
        ("UPSTREAM_ID_TOKEN_HEADER", upstream_id_token_header),
        ("UPSTREAM_ASSERTION_HEADER", upstream_assertion_header),
    ]
    seen: dict[str, str] = {}
    for name, header in told:
        folded = _folded(header)
        bears = folded == "authorization" and name.endswith("_TOKEN_HEADER")
        others = seen if bears else {**seen, **came}
        if not header:
            continue
        if _TAKEN.fullmatch(folded) or (folded == "authorization" and name in _NO_TOKENS):
            yield f"{name}: {header} already means something in HTTP. Takes a header of its own."
        elif folded in others:
            yield f"{name}: {header} is also {others[folded]}. Takes a header of its own."
        elif has_too_many_spellings(header):
            yield f"{name}: {header} has too many spellings to be taken off. Takes a name of at most {MOST_JOINTS} dashes."
        seen.setdefault(folded, name)


def _folded(header: str) -> str:
    return header.lower().replace("_", "-")


def routes_differ(authservice_url_prefix: str, redirect_url: str, verify_auth_url: str) -> Lines:
    prefix = path_of(authservice_url_prefix)
    taken = {
        join_path(prefix, "login"): "the login",
        join_path(prefix, "logout"): "the logout",
        join_path(prefix, "forward-auth"): "forward-auth",
        join_path(prefix, "backchannel-logout"): "back-channel logout",
        join_path(prefix, "frontchannel-logout"): "front-channel logout",
        "/healthz": "the health check",
        "/readyz": "the readiness check",
    }
    # They answer without the prefix too.
    pages = (join_path(prefix, "site"), "/site/homepage", "/site/after_logout", "/site/themes")
    for name, address in {"VERIFY_AUTH_URL": verify_auth_url, "REDIRECT_URL": redirect_url}.items():
        path = path_of(address)
        if path in taken or path == prefix:
            owner = taken.get(path, "our own pages")
            yield f"{name}: {path} is the path of {owner}. Takes a path of its own."
        elif any(_at_or_below(path, page) for page in pages):
            yield f"{name}: {path} is where our own pages are. Takes a path of its own."
        taken.setdefault(path, name)
    callback, verify = path_of(redirect_url), path_of(verify_auth_url)
    if callback.startswith(f"{verify}/"):
        yield f"REDIRECT_URL: {callback} is below {verify}, where gateways ask. Takes a path elsewhere."


def _at_or_below(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder}/")


def a_key_of_our_own(
    client_secret: Secret, client_private_key: Secret, secret_keys: tuple[Secret, ...]
) -> Lines:
    if not (client_secret or client_private_key or secret_keys):
        yield (
            "SECRET_KEYS: not set, and CLIENT_SECRET is empty, so that there is nothing to derive the service's "
            "own key from. Set SECRET_KEYS to at least 16 random characters, the same on all replicas."
        )


def private_key_is_there(oidc_client_auth_method: str, client_private_key: Secret) -> Lines:
    if oidc_client_auth_method == "private_key_jwt" and not client_private_key:
        yield (
            "CLIENT_PRIVATE_KEY: not set. private_key_jwt needs a private key (PEM); CLIENT_PRIVATE_KEY_FILE "
            "may name its file."
        )


def cookie_name_keeps_its_promise(
    session_cookie_name: str,
    session_cookie_secure: bool | None,
    session_cookie_domain: str,
    redirect_url: str,
    authservice_url_prefix: str,
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...],
) -> Lines:
    """RFC 6265bis §4.1.3: browsers drop a cookie whose name promises more than it holds."""
    name = session_cookie_name.lower()
    if not name.startswith(("__host-", "__secure-")):
        return
    scheme = outside(redirect_url, authservice_url_prefix)[0]
    secure = session_cookie_secure or (
        session_cookie_secure is None and (scheme == "https" or (scheme is None and bool(trusted_proxies)))
    )
    if not secure:
        yield (
            f"SESSION_COOKIE_NAME: {session_cookie_name} needs a Secure cookie, and browsers would drop this "
            "one. Set SESSION_COOKIE_SECURE=true (and reach the site over https), or take another name."
        )
    if name.startswith("__host-") and session_cookie_domain:
        yield (
            f"SESSION_COOKIE_NAME: {session_cookie_name} allows no Domain, but SESSION_COOKIE_DOMAIN is set. "
            "Leave one of them out."
        )


def same_site_none_is_secure(
    session_same_site: str, session_cookie_secure: bool | None, redirect_url: str, authservice_url_prefix: str
) -> Lines:
    scheme = outside(redirect_url, authservice_url_prefix)[0]
    if session_same_site == "None" and (
        session_cookie_secure is False or (session_cookie_secure is None and scheme == "http")
    ):
        yield (
            "SESSION_SAME_SITE: None needs a Secure cookie, and browsers would drop this one. Set "
            "SESSION_COOKIE_SECURE=true (and reach the site over https), or take Lax."
        )


def cookie_domain_covers_us(
    session_cookie_domain: str, redirect_url: str, authservice_url_prefix: str
) -> Lines:
    authority = parse_authority(outside(redirect_url, authservice_url_prefix)[1] or "")
    if not session_cookie_domain or authority is None:
        return
    if authority.host != session_cookie_domain and not authority.host.endswith("." + session_cookie_domain):
        yield (
            f"SESSION_COOKIE_DOMAIN: {session_cookie_domain} does not cover {authority.host}, where the "
            "callback sets the cookie: browsers would drop it."
        )


def the_store_has_a_place(
    session_store_type: str, session_store_redis_addr: str, texts: Mapping[str, str]
) -> Lines:
    if session_store_type == "redis" and not session_store_redis_addr:
        yield (
            "SESSION_STORE_REDIS_ADDR: set to nothing, but SESSION_STORE_TYPE is redis. Takes host:port or "
            "a URL."
        )
    if session_store_type == "filesystem" and texts.get("SESSION_STORE_PATH") == "":
        yield "SESSION_STORE_PATH: set to nothing. Takes the path of a file in a folder that we can write to."


def check_prefix_is_not_ours(
    check_path_prefix: str, authservice_url_prefix: str, redirect_url: str, verify_auth_url: str
) -> Lines:
    """With a prefix above, at or below one of our own paths, a check could not be told from a visit to
    that path; below AUTHSERVICE_URL_PREFIX itself there is room."""
    if not check_path_prefix:
        return
    check, prefix = check_path_prefix.rstrip("/"), path_of(authservice_url_prefix)
    ours = {
        "REDIRECT_URL": path_of(redirect_url),
        "VERIFY_AUTH_URL": path_of(verify_auth_url),
        "the login": join_path(prefix, "login"),
        "the logout": join_path(prefix, "logout"),
        "forward-auth": join_path(prefix, "forward-auth"),
        "our own pages": join_path(prefix, "site"),
        "the health check": "/healthz",
        "the readiness check": "/readyz",
    }
    above = {"AUTHSERVICE_URL_PREFIX": prefix, **ours}
    for name, path in above.items():
        if _at_or_below(path, check):
            yield (
                f"CHECK_PATH_PREFIX: {check_path_prefix} is the beginning of {path} ({name}). "
                "Takes a path that nothing else has."
            )
            return
    for name, path in ours.items():
        if _at_or_below(check, path):
            yield (
                f"CHECK_PATH_PREFIX: {check_path_prefix} is below {path} ({name}). "
                "Takes a path that nothing else has."
            )
            return


def further_issuers_are_others(bearer_issuers: tuple[BearerIssuer, ...], oidc_provider: str) -> Lines:
    if any(further.issuer == oidc_provider for further in bearer_issuers):
        yield "BEARER_ISSUERS: OIDC_PROVIDER is one of them. Takes others only; its audiences belong into AUDIENCES."


PROBLEMS: tuple[Callable[..., Lines], ...] = (
    ports_differ,
    headers_differ,
    routes_differ,
    a_key_of_our_own,
    private_key_is_there,
    cookie_name_keeps_its_promise,
    same_site_none_is_secure,
    cookie_domain_covers_us,
    the_store_has_a_place,
    check_prefix_is_not_ours,
    further_issuers_are_others,
    *assertion.PROBLEMS,
    *compat.PROBLEMS,
    *redis_rules.PROBLEMS,
)

# --- warnings --------------------------------------------------------------------------------


def without_effect(texts: Mapping[str, str]) -> Lines:
    if texts.get("OIDC_STATE_STORE_PATH"):
        yield (
            "OIDC_STATE_STORE_PATH: accepted, without effect. A login on its way is kept in the browser, "
            "sealed."
        )
    if texts.get("USERID_TOKEN_HEADER"):
        yield (
            "USERID_TOKEN_HEADER: accepted, without effect. UPSTREAM_ID_TOKEN_HEADER names the header that "
            "carries the ID token to the application."
        )


def the_old_store(texts: Mapping[str, str]) -> Lines:
    if texts.get("SESSION_STORE_TYPE") == "boltdb":
        yield "SESSION_STORE_TYPE: boltdb now means filesystem, one SQLite file at SESSION_STORE_PATH."


def never_matching(texts: Mapping[str, str]) -> Lines:
    never = [entry for entry in split(texts.get("SKIP_AUTH_URLS", "")) if not can_match(entry)]
    if never:
        shown = ", ".join(repr(entry.partition("?")[0]) for entry in never if "@" not in entry) or "some"
        yield f"SKIP_AUTH_URLS: {shown} never matches: entries are path prefixes that begin with /."


def nobody_passes(groups_allowlist: tuple[str, ...]) -> Lines:
    if not groups_allowlist:
        yield "GROUPS_ALLOWLIST: empty, so nobody may pass. Everybody who is logged in may pass with *."


def everybody_is_trusted(trusted_proxies: tuple[IPv4Network | IPv6Network, ...]) -> Lines:
    if any(network.prefixlen == 0 for network in trusted_proxies):
        yield (
            "TRUSTED_PROXIES: every address is trusted, so every client can say what scheme and address it "
            "has."
        )


def whole_top_level(allowed_redirect_hosts: tuple[str, ...]) -> Lines:
    for host in allowed_redirect_hosts:
        if re.fullmatch(r"\*?\.[^.:]+(:.*)?", host):
            yield f"ALLOWED_REDIRECT_HOSTS: {host} covers every host below that one word."


def empty_client_id(client_id: str) -> Lines:
    if not client_id:
        yield "CLIENT_ID: set to nothing. No provider that we know logs anybody in for such a client."


def stray_line_breaks(client_id: str, client_secret: Secret, session_store_redis_pwd: Secret) -> Lines:
    texts = {
        "CLIENT_ID": client_id,
        "CLIENT_SECRET": client_secret.reveal(),
        "SESSION_STORE_REDIS_PWD": session_store_redis_pwd.reveal(),
    }
    for name, text in texts.items():
        if text != text.strip():
            yield f"{name}: begins or ends with a blank or line break, which is taken as part of it."


_PUBLISHED = frozenset({
    "pUBnBOY80SnXgjibTYM9ZWNzY2xreNGQok",  # Kubeflow's manifests
    "ZXhhbXBsZS1hcHAtc2VjcmV0",  # Dex's example
})


def guessable_key(client_secret: Secret, secret_keys: tuple[Secret, ...]) -> Lines:
    """Whoever begins a login gets a value sealed under this key, and can try guesses on it unseen."""
    secret = client_secret.reveal()
    if secret_keys or not secret:
        return
    if secret in _PUBLISHED:
        weakness = "an example that everybody can look up"
    elif len(secret) < 16:
        weakness = "shorter than 16 characters"
    else:
        return
    yield (
        f"CLIENT_SECRET: {weakness}, and the service's own key is derived from it: strangers can try guesses on "
        "the cookie of a login that they began, and who finds it forges such cookies. Set SECRET_KEYS to at "
        "least 16 random characters, the same on all replicas."
    )


def previous_secret_of_nothing(client_secret_previous: Secret, secret_keys: tuple[Secret, ...]) -> Lines:
    if client_secret_previous and secret_keys:
        yield (
            "CLIENT_SECRET_PREVIOUS: has no effect with SECRET_KEYS. To keep what was sealed under a client "
            "secret's key, put that client secret at the end of SECRET_KEYS."
        )


def two_hosts(redirect_url: str, authservice_url_prefix: str) -> Lines:
    callback, prefix = outside(redirect_url, "")[1], outside("", authservice_url_prefix)[1]
    if callback and prefix and callback != prefix:
        yield (
            "REDIRECT_URL: names another host than AUTHSERVICE_URL_PREFIX; the cookie is set on the "
            "callback's host."
        )


def same_site_none_may_fail(
    session_same_site: str,
    session_cookie_secure: bool | None,
    redirect_url: str,
    authservice_url_prefix: str,
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...],
) -> Lines:
    unknown = outside(redirect_url, authservice_url_prefix)[0] is None and not trusted_proxies
    if session_same_site == "None" and session_cookie_secure is None and unknown:
        yield (
            "SESSION_SAME_SITE: None needs a Secure cookie, and nothing here tells that the outside is "
            "https. Set SESSION_COOKIE_SECURE=true."
        )


def secure_on_http(
    session_cookie_secure: bool | None, redirect_url: str, authservice_url_prefix: str
) -> Lines:
    if session_cookie_secure and outside(redirect_url, authservice_url_prefix)[0] == "http":
        yield (
            "SESSION_COOKIE_SECURE: true, but the site's address is http: browsers drop the cookie on every "
            "host but localhost."
        )


def idle_longer_than_age(session_idle_timeout: timedelta | None, session_max_age: timedelta) -> Lines:
    if session_idle_timeout is not None and session_idle_timeout >= session_max_age:
        yield "SESSION_IDLE_TIMEOUT: not shorter than SESSION_MAX_AGE, so it has no effect."


def an_answer_to_no_question(
    strict_session_validation: bool, strict_session_validation_seconds: timedelta | None
) -> Lines:
    if strict_session_validation_seconds is not None and not strict_session_validation:
        yield "STRICT_SESSION_VALIDATION_SECONDS: has no effect without STRICT_SESSION_VALIDATION."


def strict_in_an_outage(
    texts: Mapping[str, str], strict_session_validation: bool, provider_outage_grace_seconds: timedelta
) -> Lines:
    """Only for who has asked for a grace in so many words."""
    if strict_session_validation and "PROVIDER_OUTAGE_GRACE_SECONDS" in texts and provider_outage_grace_seconds:
        yield (
            "PROVIDER_OUTAGE_GRACE_SECONDS: has no effect with STRICT_SESSION_VALIDATION: while the provider does "
            "not answer, nobody passes with a session."
        )


def refreshed_for_ever(refresh_ahead_seconds: timedelta, session_max_age: timedelta) -> Lines:
    if refresh_ahead_seconds >= session_max_age:
        yield (
            "REFRESH_AHEAD_SECONDS: not shorter than SESSION_MAX_AGE, so every token is refreshed when half its "
            "life is over."
        )


def prefix_for_nobody(check_path_prefix: str, gateway: tuple[str, ...]) -> Lines:
    if check_path_prefix and "envoy" not in gateway:
        yield "CHECK_PATH_PREFIX: has no effect without envoy in GATEWAY."


WARNINGS: tuple[Callable[..., Lines], ...] = (
    without_effect,
    the_old_store,
    never_matching,
    nobody_passes,
    everybody_is_trusted,
    whole_top_level,
    empty_client_id,
    stray_line_breaks,
    guessable_key,
    previous_secret_of_nothing,
    two_hosts,
    same_site_none_may_fail,
    secure_on_http,
    idle_longer_than_age,
    an_answer_to_no_question,
    strict_in_an_outage,
    refreshed_for_ever,
    prefix_for_nobody,
    *policies.WARNINGS,
    *assertion.WARNINGS,
    *redis_rules.WARNINGS,
)
