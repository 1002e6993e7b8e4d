"""``UPSTREAM_ASSERTION_HEADER``: what a signed assertion cannot do without (see `settings.rules`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from authservice.settings.addresses import join_path, path_of
from authservice.settings.derived import outside, own_issuer
from authservice.settings.issuers import BearerIssuer
from authservice.settings.secret import Secret

Lines = Iterator[str]


def assertions_have_an_issuer(upstream_assertion_header: str, redirect_url: str, authservice_url_prefix: str) -> Lines:
    if upstream_assertion_header and outside(redirect_url, authservice_url_prefix)[1] is None:
        yield (
            "UPSTREAM_ASSERTION_HEADER: an assertion says whose it is, and nothing here tells our address. Make "
            "REDIRECT_URL or AUTHSERVICE_URL_PREFIX absolute."
        )


def assertions_have_keys(upstream_assertion_header: str, secret_keys: tuple[Secret, ...]) -> Lines:
    """Who guesses or knows the secret behind a published key can be anybody; the client secret others know too."""
    if upstream_assertion_header and not secret_keys:
        yield (
            "UPSTREAM_ASSERTION_HEADER: needs SECRET_KEYS, at least 16 random characters, the same on all replicas: "
            "the keys that sign are derived from them."
        )


def key_set_has_its_path(
    upstream_assertion_header: str, authservice_url_prefix: str, redirect_url: str, verify_auth_url: str
) -> Lines:
    if not upstream_assertion_header:
        return
    taken = join_path(path_of(authservice_url_prefix), "jwks.json")
    for name, address in {"VERIFY_AUTH_URL": verify_auth_url, "REDIRECT_URL": redirect_url}.items():
        if path_of(address) == taken:
            yield f"{name}: {taken} is the path of the keys of UPSTREAM_ASSERTION_HEADER. Takes a path of its own."


def assertions_are_no_credentials(
    upstream_assertion_header: str, redirect_url: str, authservice_url_prefix: str,
    oidc_provider: str, bearer_issuers: tuple[BearerIssuer, ...],
) -> Lines:
    """An application that was told who somebody is must not become them before all others."""
    if not upstream_assertion_header:
        return
    ours = own_issuer(redirect_url, authservice_url_prefix)
    believed = {"OIDC_PROVIDER": [oidc_provider], "BEARER_ISSUERS": [one.issuer for one in bearer_issuers]}
    for name, issuers in believed.items():
        if ours in issuers:
            yield f"{name}: {ours} is who UPSTREAM_ASSERTION_HEADER is of, and its assertions log nobody in."


PROBLEMS: tuple[Callable[..., Lines], ...] = (
    assertions_have_an_issuer, assertions_have_keys, key_set_has_its_path, assertions_are_no_credentials,
)


def useless_audience(upstream_assertion_audience: str, upstream_assertion_header: str) -> Lines:
    if upstream_assertion_audience and not upstream_assertion_header:
        yield "UPSTREAM_ASSERTION_AUDIENCE: has no effect without UPSTREAM_ASSERTION_HEADER."


WARNINGS: tuple[Callable[..., Lines], ...] = (useless_audience,)
