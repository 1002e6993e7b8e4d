"""Sessions: their cookie, how long they last, and where they are kept."""

from __future__ import annotations

from datetime import timedelta

from authservice.migrate.options import Options
from authservice.migrate.plan import Plan

_REDIS = {
    "redis_username": "SESSION_STORE_REDIS_USERNAME",
    "redis_password": "SESSION_STORE_REDIS_PWD",
    "redis_ca_path": "SESSION_STORE_REDIS_CA_BUNDLE",
}


def cookie(options: Options, plan: Plan) -> None:
    """The cookie's attributes, and its end."""
    if "cookie_name" in options:
        plan.set("SESSION_COOKIE_NAME", options.text("cookie_name"), "cookie_name")
    domains = options.many("cookie_domains")
    if domains:
        plan.set("SESSION_COOKIE_DOMAIN", domains[0], "cookie_domains")
    if domains[1:]:
        plan.lost("cookie_domains", f"one domain only, {domains[0]}. Run a service for each.")
    if options.text("cookie_path", "/") != "/":
        plan.lost("cookie_path", "the cookie's path is always /.")
    plan.set(
        "SESSION_COOKIE_SECURE", "true" if options.flag("cookie_secure", True) else "false", "cookie_secure"
    )
    if not options.flag("cookie_httponly", True):
        plan.set("SESSION_COOKIE_HTTPONLY", "false", "cookie_httponly")
    if "cookie_samesite" in options:
        plan.set("SESSION_SAME_SITE", options.text("cookie_samesite").capitalize(), "cookie_samesite")
    _ends(options, plan)
    options.text("cookie_secret")
    options.text("cookie_secret_file")
    plan.unneeded(
        "cookie_secret",
        "each session is sealed with a key that only its own cookie has. People log in once more.",
    )


def _ends(options: Options, plan: Plan) -> None:
    age = options.duration("cookie_expire", "168h")
    if age >= timedelta(seconds=1):
        plan.set("SESSION_MAX_AGE", str(int(age.total_seconds())), "cookie_expire")
    else:
        plan.lost(
            "cookie_expire",
            "no session lasts as long as the browser is open: SESSION_MAX_AGE, a day unless set.",
        )
    if options.duration("cookie_refresh", "0"):
        plan.changed(
            "cookie_refresh",
            "tokens are fetched anew ahead of the access token's end, and not at this pace: until then, groups and "
            "closed accounts are what they were. STRICT_SESSION_VALIDATION with STRICT_SESSION_VALIDATION_SECONDS "
            "asks the provider as often as you like. The scopes have to bring a refresh token.",
        )


def store(options: Options, plan: Plan) -> None:
    """Redis, or a file on this machine."""
    if options.text("session_store_type", "cookie") != "redis":
        plan.set("SESSION_STORE_TYPE", "filesystem", "session_store_type")
        plan.changed(
            "session_store_type",
            "sessions are kept in a file on this machine (SESSION_STORE_PATH) and not in the cookie. Several "
            "machines need SESSION_STORE_TYPE=redis.",
        )
        return
    plan.set("SESSION_STORE_TYPE", "redis", "session_store_type")
    if options.flag("redis_use_sentinel"):
        plan.set("SESSION_STORE_REDIS_MODE", "sentinel", "redis_use_sentinel")
        address, origin = (
            ",".join(options.many("redis_sentinel_connection_urls")),
            "redis_sentinel_connection_urls",
        )
        if "redis_sentinel_master_name" in options:
            plan.set(
                "SESSION_STORE_REDIS_MASTER",
                options.text("redis_sentinel_master_name"),
                "redis_sentinel_master_name",
            )
        if "redis_sentinel_password" in options:
            plan.set(
                "SESSION_STORE_REDIS_SENTINEL_PWD",
                options.text("redis_sentinel_password"),
                "redis_sentinel_password",
            )
    elif options.flag("redis_use_cluster"):
        plan.set("SESSION_STORE_REDIS_MODE", "cluster", "redis_use_cluster")
        address, origin = (
            ",".join(options.many("redis_cluster_connection_urls")),
            "redis_cluster_connection_urls",
        )
    else:
        address, origin = options.text("redis_connection_url"), "redis_connection_url"
    plan.set("SESSION_STORE_REDIS_ADDR", address, origin)
    for option, name in _REDIS.items():
        if option in options:
            plan.set(name, options.text(option), option)
    if options.flag("redis_insecure_skip_tls_verify"):
        plan.lost(
            "redis_insecure_skip_tls_verify",
            "Redis' certificate is always verified: SESSION_STORE_REDIS_CA_BUNDLE.",
        )
