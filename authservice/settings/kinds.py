"""What a variable's text means: one `Kind` for each sort of value.

A kind turns text into a typed value, or raises ``ValueError`` with the reason. Reasons never quote
the text: it might be a secret in the wrong place, and who reports the problem decides what may be
shown. Kinds know nothing of each other and of no particular setting; the table gives them names.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any

from authservice.identity import Transformers
from authservice.settings.secret import Secret
from authservice.upstream import UpstreamHeaders
from authservice.urls import HostRule, canonical_prefix, is_absolute


@dataclass(frozen=True, slots=True)
class Kind:
    """``parse`` makes the value of a text; ``takes`` says in words which texts there are."""

    parse: Callable[[str], Any]
    takes: str


def optional(kind: Kind, absent: Any = "") -> Kind:
    """The same kind, with an empty text standing for ``absent``."""
    return Kind(lambda text: kind.parse(text) if text else absent, kind.takes)


def _printable(text: str) -> str:
    if re.search(r"[^\x20-\x7e]", text):
        raise ValueError("control characters or characters outside ASCII")
    return text


ANY = "any text"
TEXT = Kind(str, ANY)
SOME_TEXT = Kind(lambda text: text or _refuse("empty"), "any text but none")
HEADER_TEXT = Kind(_printable, "printable ASCII text")
SECRET = Kind(Secret, ANY)
PATH = Kind(Path, "the path of a file")
TRANSFORMERS = Kind(
    Transformers.parse,
    'a JSON list of objects {"matches": <RE2 expression>, "replaces": <replacement>}',
)


UPSTREAM_HEADERS = Kind(
    UpstreamHeaders.parse,
    'a JSON object {<header>: <claim, or dotted path to it>}, or the word `oauth2-proxy` (`X-Auth-Request-User`, '
    "`-Email`, `-Preferred-Username`, `-Groups`)",
)


def _refuse(reason: str) -> Any:
    raise ValueError(reason)


# --- numbers and switches, by the rules of Go's strconv -------------------------------------

_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})


def _switch(text: str) -> bool:
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError("neither true nor false")


SWITCH = Kind(_switch, "`true` or `false`")
SWITCH_OR_AUTO = Kind(lambda text: None if text == "auto" else _switch(text), "`auto`, `true` or `false`")

_NUMBER = re.compile(
    r"(?P<sign>[+-]?)(?:0[xX](?P<hex>(?:_?[0-9a-fA-F])+)|0[bB](?P<bin>(?:_?[01])+)"
    r"|0[oO]?(?P<oct>(?:_?[0-7])+)|(?P<dec>0|[1-9](?:_?[0-9])*))"
)
_BASES = {"hex": 16, "bin": 2, "oct": 8, "dec": 10}


def _number(text: str) -> int:
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError("not a number")
    base = next(base for base in _BASES if match[base] is not None)
    value = int(match[base].replace("_", ""), _BASES[base])
    return -value if match["sign"] == "-" else value


def whole(low: int, high: int, what: str = "a number") -> Kind:
    """Whole numbers between two bounds, both included."""

    def parse(text: str) -> int:
        value = _number(text)
        if not low <= value <= high:
            raise ValueError(f"not between {low} and {high}")
        return value

    return Kind(parse, f"{what} from {low} to {high}")


PORT = whole(1, 65535, "a port")
TEN_YEARS = 315_576_000


def seconds(low: int = 1, high: int = TEN_YEARS) -> Kind:
    """Durations, written as whole seconds without a unit."""
    number = whole(low, high, "seconds")
    return Kind(lambda text: timedelta(seconds=number.parse(text)), number.takes)


def _seconds_or_off(text: str) -> timedelta | None:
    return seconds(0).parse(text) or None


SECONDS_OR_OFF = Kind(_seconds_or_off, f"seconds from 1 to {TEN_YEARS}, or 0 to switch this off")


def _minutes(text: str) -> timedelta:
    return timedelta(minutes=whole(1, TEN_YEARS // 60).parse(text))


MINUTES = Kind(_minutes, f"minutes from 1 to {TEN_YEARS // 60}")


# --- choices and lists -----------------------------------------------------------------------


def choice(*names: str, synonyms: dict[str, str] | None = None, any_case: bool = False) -> Kind:
    """Exactly one of ``names``. ``synonyms`` maps further accepted texts to one of them."""
    accepted = {**{name: name for name in names}, **(synonyms or {})}
    if any_case:
        accepted = {text.lower(): name for text, name in accepted.items()}

    def parse(text: str) -> str:
        name = accepted.get(text.lower() if any_case else text)
        if name is None:
            raise ValueError("not one of these")
        return name

    words = ", ".join(f"`{name}`" for name in names)
    return Kind(parse, f"one of {words}" + (" in any letter case" if any_case else ""))


def split(text: str) -> tuple[str, ...]:
    """The elements of a comma-separated list, trimmed, without empty ones."""
    return tuple(element.strip() for element in text.split(",") if element.strip())


def split_words(text: str) -> tuple[str, ...]:
    """The elements of a list separated by commas, blanks or both."""
    return tuple(re.split(r"[,\s]+", text.strip(", \t\r\n"))) if text.strip(", \t\r\n") else ()


LIST = Kind(split, "a comma-separated list")
PATHS = Kind(lambda text: tuple(map(Path, split(text))), "a comma-separated list of folders")


def _skip_list(text: str) -> tuple[str, ...]:
    entries = tuple(entry for entry in split(text) if can_match(entry))
    for entry in entries:
        canonical_prefix(entry)
        if not entry.strip("/"):
            raise ValueError("/ would let everybody in everywhere")
    return entries


def can_match(entry: str) -> bool:
    """Whether an entry of ``SKIP_AUTH_URLS`` could be a path's beginning at all (the original
    compared absolute URLs and their like with paths, so they never matched)."""
    return entry.startswith("/") and not is_absolute(entry) and not {"?", "#"} & set(entry)


SKIP_LIST = Kind(_skip_list, "a comma-separated list of path prefixes, such as `/dex,/public/`")


def some_of(*names: str) -> Kind:
    """One or more of ``names``, each once, in the order given."""

    def parse(text: str) -> tuple[str, ...]:
        chosen = tuple(dict.fromkeys(split_words(text)))
        if not chosen:
            raise ValueError("none chosen")
        if not set(chosen) <= set(names):
            raise ValueError("not all of these are known")
        return chosen

    return Kind(parse, "one or several, comma-separated, of " + ", ".join(f"`{name}`" for name in names))


ASYMMETRIC = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
ABOUT_THE_PERSON = ("profile", "email", "phone", "address")


def _scopes(text: str) -> tuple[str, ...]:
    """RFC 6749 §3.3 for one scope; OpenID Connect Core 1.0 §5.4 for what asks about the person."""
    scopes = tuple(dict.fromkeys(("openid", *split_words(text))))
    if not all(re.fullmatch(r"[\x21\x23-\x5b\x5d-\x7e]+", scope) for scope in scopes):
        raise ValueError("characters that no scope has")
    if not set(scopes) & set(ABOUT_THE_PERSON):
        raise ValueError("asks nothing about the person")
    return scopes


SCOPES = Kind(
    _scopes,
    "a list separated by commas or blanks, with at least one of `profile`, `email`, `phone`, `address` "
    "(`openid` is added when it is missing)",
)


def _networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(_network(element) for element in split_words(text))


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError:
        pass
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError("not all are addresses or networks") from None
    raise ValueError(f"bits set behind the mask: the network is {network}")


NETWORKS = Kind(_networks, "a comma-separated list of IP addresses and networks, such as `10.0.0.0/8`")


# --- names -----------------------------------------------------------------------------------

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _field_name(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise ValueError("not a header name")
    return text


HEADER = Kind(_field_name, "a header name (RFC 9110 §5.1)")
HEADER_OR_OFF = optional(HEADER)


def _cookie_name(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise ValueError("not a cookie name")
    return text


COOKIE_NAME = Kind(_cookie_name, "a cookie name (RFC 6265 §4.1.1)")


def _redirect_hosts(text: str) -> tuple[str, ...]:
    hosts = tuple(dict.fromkeys(element.lower() for element in split_words(text)))
    for host in hosts:
        HostRule.parse(host)
    return hosts


REDIRECT_HOSTS = Kind(
    _redirect_hosts,
    "a comma-separated list of `host`, `host:port`, `host:*` (any port), `.example.com` or `*.example.com`",
)

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*"


def _domain(text: str) -> str:
    domain = text.lower().removeprefix(".")
    if not re.fullmatch(_HOST, domain):
        raise ValueError("not a domain name")
    if re.fullmatch(r"[0-9.]+", domain):
        raise ValueError("an IP address")
    return domain


DOMAIN = optional(Kind(_domain, "a domain name"))


def _namespace(text: str) -> str:
    """RFC 1123 §2.1, as Kubernetes has it for names of namespaces."""
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", text):
        raise ValueError("not the name of a namespace")
    return text


NAMESPACE = Kind(_namespace, "the name of a namespace")


def _bind_host(text: str) -> str:
    host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not re.fullmatch(rf"{_HOST}|[0-9a-f:.]+(?:%[\w.-]+)?", host, re.IGNORECASE):
        raise ValueError("not a host (no scheme, no port)")
    return host


BIND_HOST = optional(Kind(_bind_host, "a host name or an IP address, without port"))


_PEM_KEY = re.compile(
    r"-----BEGIN (RSA |EC |)PRIVATE KEY-----[\r\n]+([A-Za-z0-9+/=\s]+)-----END \1PRIVATE KEY-----"
)


def _pem(text: str) -> Secret:
    """RFC 7468, as far as it can be told without looking into the key."""
    if not text:
        return Secret("")
    if "ENCRYPTED" in text:
        raise ValueError("a private key with a passphrase")
    match = _PEM_KEY.search(text)
    if match is None:
        raise ValueError("no private key in PEM form, or one that lost its line breaks")
    try:
        der = b64decode("".join(match[2].split()), validate=True)
    except ValueError:
        der = b""
    if not der.startswith(b"\x30"):
        raise ValueError("a private key that was damaged")
    return Secret(text)


PRIVATE_KEY = Kind(_pem, "the whole text of a PEM file, line breaks included")


def secrets_of(length: int) -> Kind:
    """Several secrets, each of at least some length and none twice."""

    def parse(text: str) -> tuple[Secret, ...]:
        entries = split(",".join(text.splitlines()))
        if any(len(entry) < length for entry in entries):
            raise ValueError("one is too short")
        if len(set(entries)) < len(entries):
            raise ValueError("one is there twice")
        return tuple(map(Secret, entries))

    return Kind(parse, f"keys of at least {length} characters each, separated by commas or line breaks")


