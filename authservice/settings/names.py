"""Variables that look like settings and are none: former names, borrowed names, misspelt ones.

They never stop a start and never change a value. A variable that has nothing to do with this
service must never be mentioned, so only known names and very near ones are.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator

FORMER = {
    "PORT": "SERVER_PORT",
    "STORE_PATH": "SESSION_STORE_PATH",
    "SKIP_AUTH_URI": "SKIP_AUTH_URLS, comma-separated",
    "SKIP_AUTH_URL": "SKIP_AUTH_URLS",
    "STATIC_DESTINATION_URL": "AFTER_LOGOUT_URL",
    "LOGOUT_URL": "AUTHSERVICE_URL_PREFIX: logging out is a POST to prefix + /logout",
    "TOKEN_HEADER": "ID_TOKEN_HEADER",
    "TOKEN_SCHEME": "ID_TOKEN_HEADER: the scheme is always Bearer",
    "WEB_SERVER_THEME": "THEME",
    "WEB_SERVER_THEMES_URL": "THEMES_URL",
}
"""Names that earlier versions, or their documents, used; and what serves the purpose today."""

BORROWED = {
    "OIDC_ISSUER": "OIDC_PROVIDER",
    "OIDC_ISSUER_URL": "OIDC_PROVIDER",
    "OIDC_PROVIDER_URL": "OIDC_PROVIDER",
    "OIDC_CLIENT_ID": "CLIENT_ID",
    "OIDC_CLIENT_SECRET": "CLIENT_SECRET",
    "OIDC_REDIRECT_URL": "REDIRECT_URL",
    "OIDC_TOKEN_ENDPOINT": "OIDC_TOKEN_URL",
    "OIDC_AUTHORIZATION_URL": "OIDC_AUTH_URL",
    "SERVER_HOST": "SERVER_HOSTNAME",
    "SESSION_STORE": "SESSION_STORE_TYPE",
    "SESSION_STORE_REDIS_URL": "SESSION_STORE_REDIS_ADDR",
    "SESSION_STORE_REDIS_USER": "SESSION_STORE_REDIS_USERNAME",
    "COOKIE_NAME": "SESSION_COOKIE_NAME",
    "COOKIE_DOMAIN": "SESSION_COOKIE_DOMAIN",
    "COOKIE_SECURE": "SESSION_COOKIE_SECURE",
}
"""Names that people expect because siblings of this service have them."""

# Near enough for one or two letters; Kubernetes' SERVER_SERVICE_PORT and the like stay below it.
_NEAR = 0.87


def strange_names(environ: Iterable[str], known: Collection[str], secrets: Collection[str]) -> Iterator[str]:
    """One warning for each variable that was probably meant for us and has no effect.

    ``known`` are the names of all settings and ``secrets`` those that may come from a file.
    """
    accepted = {*known, *(f"{name}_FILE" for name in secrets)}
    for name in sorted(set(environ) - accepted):
        if name in FORMER:
            yield f"{name}: not read any more. Today's setting is {FORMER[name]}."
        elif name in BORROWED:
            yield f"{name}: has no effect. The setting is called {BORROWED[name]}."
        elif name.endswith("_FILE") and name.removesuffix("_FILE") in known:
            setting = name.removesuffix("_FILE")
            yield f"{name}: has no effect. Only secrets can come from a file; set {setting}."
        else:
            near = nearest(name, accepted)
            if near:
                yield f"{name}: has no effect. Did you mean {near}?"


def nearest(name: str, known: Collection[str]) -> str | None:
    """The known name that this one is probably meant to be."""
    if name.upper() in known:
        return name.upper()
    matches = difflib.get_close_matches(name.upper(), sorted(known), n=1, cutoff=_NEAR)
    return matches[0] if matches else None
