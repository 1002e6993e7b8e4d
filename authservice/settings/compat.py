"""``OAUTH2_PROXY_COMPAT``: where oauth2-proxy's endpoints are, and what may not be there (see `settings.rules`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from authservice.settings.addresses import join_path, path_of

Lines = Iterator[str]

FOLDER = "/oauth2"
"""Where oauth2-proxy has its endpoints unless told otherwise."""

ENDPOINTS = ("auth", "start", "sign_in", "sign_out", "userinfo")


def folders(prefix: str) -> tuple[str, ...]:
    """The folders that the endpoints are in, canonical: the usual one, and the prefix."""
    return tuple(dict.fromkeys((FOLDER, path_of(prefix))))


def endpoints_are_free(
    oauth2_proxy_compat: bool, authservice_url_prefix: str, redirect_url: str, verify_auth_url: str
) -> Lines:
    if not oauth2_proxy_compat:
        return
    taken = {join_path(folder, name) for folder in folders(authservice_url_prefix) for name in ENDPOINTS}
    taken |= {"/ping", "/ready"}
    for name, address in {"VERIFY_AUTH_URL": verify_auth_url, "REDIRECT_URL": redirect_url}.items():
        if path_of(address) in taken:
            yield f"{name}: {path_of(address)} is an endpoint of OAUTH2_PROXY_COMPAT. Takes a path of its own."


PROBLEMS: tuple[Callable[..., Lines], ...] = (endpoints_are_free,)
