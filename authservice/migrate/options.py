"""oauth2-proxy's options, from its file (TOML), its environment variables and its command line.

The command line outranks the environment, and that the file, as oauth2-proxy itself has it. Every option is
known by the name that it has in the file: ``--email-domain`` and ``OAUTH2_PROXY_EMAIL_DOMAINS`` are
``email_domains``.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENVIRONMENT = "OAUTH2_PROXY_"
_OURS = "OAUTH2_PROXY_COMPAT"
_OF_KUBERNETES = re.compile(
    r"OAUTH2_PROXY_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
"""What Kubernetes itself tells every container about a Service of the name oauth2-proxy."""
MOST_READ = 1 << 20

LISTS: Mapping[str, str] = {
    name: name.removesuffix("s")
    for name in (
        "allowed_groups",
        "allowed_roles",
        "api_routes",
        "cookie_domains",
        "email_domains",
        "entra_id_allowed_tenants",
        "github_users",
        "gitlab_groups",
        "gitlab_projects",
        "google_groups",
        "htpasswd_user_groups",
        "keycloak_groups",
        "oidc_audience_claims",
        "oidc_enabled_signing_algs",
        "oidc_extra_audiences",
        "oidc_public_key_files",
        "provider_ca_files",
        "redis_cluster_connection_urls",
        "redis_sentinel_connection_urls",
        "skip_auth_routes",
        "tls_cipher_suites",
        "trusted_ips",
        "trusted_proxy_ips",
        "upstreams",
        "whitelist_domains",
    )
} | {"extra_jwt_issuers": "extra_jwt_issuers", "skip_auth_regex": "skip_auth_regex"}
"""Options that may be given several times, with their names on the command line. Elsewhere they are lists,
or texts separated by commas."""

SWITCHES = frozenset(
    (
        "allow_query_semicolons",
        "auth_logging",
        "bearer_token_login_fallback",
        "config_test",
        "convert_config_to_alpha",
        "cookie_csrf_per_request",
        "cookie_httponly",
        "cookie_secure",
        "display_htpasswd_form",
        "encode_state",
        "entra_id_federated_token_auth",
        "errors_to_info_log",
        "force_https",
        "force_json_errors",
        "gcp_healthchecks",
        "insecure_oidc_allow_unverified_email",
        "insecure_oidc_skip_issuer_verification",
        "insecure_oidc_skip_nonce",
        "logging_compress",
        "logging_local_time",
        "pass_access_token",
        "pass_authorization_header",
        "pass_basic_auth",
        "pass_host_header",
        "pass_user_headers",
        "prefer_email_to_user",
        "proxy_websockets",
        "redis_insecure_skip_tls_verify",
        "redis_use_cluster",
        "redis_use_sentinel",
        "relative_redirect_url",
        "request_logging",
        "reverse_proxy",
        "session_cookie_minimal",
        "set_authorization_header",
        "set_basic_auth",
        "set_xauthrequest",
        "show_debug_on_error",
        "silence_ping_logging",
        "skip_auth_preflight",
        "skip_auth_strip_headers",
        "skip_claims_from_profile_url",
        "skip_jwt_bearer_tokens",
        "skip_oidc_discovery",
        "skip_provider_button",
        "ssl_insecure_skip_verify",
        "ssl_upstream_insecure_skip_verify",
        "standard_logging",
        "use_system_trust_store",
        "version",
    )
)
"""Options that take no word of their own on the command line: ``--cookie-secure false`` switches it on."""

_BY_FLAG = {flag: name for name, flag in LISTS.items()}
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False", ""})
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"[+-]?(?:\d+(?:\.\d*)?(?:ns|us|µs|ms|s|m|h))+")


class OptionsError(Exception):
    """A source cannot be read, or an option's value means nothing."""


class Options:
    """What was found, by name. `unread` tells which options nobody asked about."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, ...]] = {}
        self._read: set[str] = set()

    def add(self, found: Mapping[str, tuple[str, ...]]) -> None:
        """Adds what a source says, over what was there."""
        self._found.update(found)

    def __contains__(self, name: str) -> bool:
        """Whether it is set to something."""
        self._read.add(name)
        return any(self._found.get(name, ()))

    def text(self, name: str, default: str = "") -> str:
        """An option of one value."""
        self._read.add(name)
        return ",".join(self._found.get(name, (default,)))

    def many(self, name: str) -> tuple[str, ...]:
        """An option of several values."""
        self._read.add(name)
        return tuple(value for value in self._found.get(name, ()) if value)

    def flag(self, name: str, default: bool = False) -> bool:
        """A switch. Raises `OptionsError`."""
        text = self.text(name, str(default))
        if text not in _TRUE | _FALSE:
            raise OptionsError(f"{name}: neither true nor false")
        return text in _TRUE

    def duration(self, name: str, default: str) -> timedelta:
        """A duration as Go has it; a bare number is nanoseconds. Raises `OptionsError`."""
        text = self.text(name, default)
        if re.fullmatch(r"\d+", text):
            return timedelta(microseconds=int(text) / 1000)
        if not _DURATION.fullmatch(text):
            raise OptionsError(f"{name}: no duration")
        parts = re.findall(r"(\d+(?:\.\d*)?)(ns|us|µs|ms|s|m|h)", text)
        total = sum(float(number) * _UNITS[unit] for number, unit in parts)
        return timedelta(seconds=-total if text.startswith("-") else total)

    def unread(self) -> Iterable[tuple[str, str]]:
        """Names and values of options that are set and that nobody asked about."""
        return [
            (name, ",".join(values)) for name, values in sorted(self._found.items()) if name not in self._read
        ]


def from_file(path: Path) -> dict[str, tuple[str, ...]]:
    """The options in a configuration file. Raises `OptionsError`."""
    try:
        text = read_text(path)
    except OSError as error:
        raise OptionsError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise OptionsError(f"{path}: not UTF-8 text") from None
    try:
        read = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        also = " (oauth2-proxy's structured configuration in YAML is not read)" if _is_yaml(text) else ""
        raise OptionsError(f"{path}: not TOML: {error}{also}") from None
    return {_name(key): _values(_name(key), value, f"{path}: {key}") for key, value in read.items()}


def read_text(path: Path) -> str:
    """All of a file: half of one would be another configuration. Raises `OptionsError`, too."""
    with path.open("rb") as file:
        text = file.read(MOST_READ + 1)
    if len(text) > MOST_READ:
        raise OptionsError(f"{path}: larger than {MOST_READ} bytes")
    return text.decode()


def _is_yaml(text: str) -> bool:
    return re.search(r"(?m)^\s*(- )?\w+:(\s|$)", text) is not None


def from_environment(environ: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The options in environment variables. One that is set to nothing counts as not set."""
    return {
        _name(key.removeprefix(ENVIRONMENT)): _values(_name(key.removeprefix(ENVIRONMENT)), value, key)
        for key, value in environ.items()
        if key.startswith(ENVIRONMENT) and key != _OURS and value and not _OF_KUBERNETES.fullmatch(key)
    }


def from_flags(line: str) -> dict[str, tuple[str, ...]]:
    """The options of a command line. Raises `OptionsError`."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise OptionsError(f"the command line cannot be read: {error}") from None
    found: dict[str, tuple[str, ...]] = {}
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            raise OptionsError("the command line has a word that belongs to no option (switches take --name=false)")
        flag, equals, value = word.lstrip("-").partition("=")
        name = _BY_FLAG.get(_name(flag), _name(flag))
        if not equals:
            value = "true" if name in SWITCHES else _next(words, flag)
        values = _values(name, value, f"--{flag}")
        found[name] = found.get(name, ()) + values if name in LISTS else values
    return found


def _next(words: list[str], flag: str) -> str:
    """An option's value, whatever it begins with."""
    if not words:
        raise OptionsError(f"--{flag}: has no value")
    return words.pop(0)


def _name(key: str) -> str:
    return key.lower().replace("-", "_")


def _values(name: str, value: Any, place: str) -> tuple[str, ...]:
    if isinstance(value, list):
        return _without_blanks([_scalar(element, place) for element in value], place)
    text = _scalar(value, place)
    if name in LISTS:
        return _without_blanks([part for part in text.split(",") if part], place)
    return (text,)


def _without_blanks(values: Sequence[str], place: str) -> tuple[str, ...]:
    """To oauth2-proxy a blank beside a comma is a part of the value, which it compares as it is: without the blank it
    would allow what it never did."""
    if any(value != value.strip() for value in values):
        raise OptionsError(f"{place}: blanks around a value, which oauth2-proxy takes for a part of it")
    return tuple(values)


def _scalar(value: Any, place: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, (str, int, float)):
        raise OptionsError(f"{place}: neither a text, a number nor a list of such")
    return str(value)
