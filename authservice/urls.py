"""What a path is, which prefixes cover it, and where a browser may be sent after a login.

Three callers must agree on what a path *is*: the skip list, policies and the return address.
Everything here is pure: strings in, strings out, no request, no settings, no clock. A path that
two upstreams could read differently has no canonical form, and an address that a browser could
take for another site is replaced by the default one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address
from typing import NamedTuple
from urllib.parse import quote, unquote, unquote_to_bytes

MAX_PATH = 8192  # bytes of a path that is worth making canonical; longer ones are protected
MAX_AUTHORITY = 299  # characters of a host with its port that is worth reading; a name has at most 253
MAX_RETURN_ADDRESS = 2048  # bytes; a longer address gives way to the default one

# RFC 3986 §3.3 pchar without ";" (a parameter to some servers): what a canonical path has unescaped.
_LITERAL = "/!$&'()*+,=:@-._~"
_PLAIN = re.compile(r"/(?:[A-Za-z0-9!$&'()*,=:@_~-][A-Za-z0-9!$&'()*+,=:@._~-]*(?:/|\Z))*")
_NEVER_SENT = re.compile(r"[\x00-\x20\x7f#]")
_AMBIGUOUS = re.compile(
    r"[\\;\x80-\U0010ffff]"  # a slash to some; a parameter to some; bytes of unknown encoding
    r"|//"  # merged by some
    r"|%(?:2[35Ff]|3[BFbf]|5[Cc]|[01]|7[Ff])"  # %23 %25 %2F %3B %3F %5C and control characters
    r"|%(?![0-9A-Fa-f]{2})"
)
# Segments of dots, and those that become such where blanks (or "+") are trimmed.
_DOT_SEGMENT = re.compile(r"/\+*[. ][. +]*(?:/|\Z)")
# What Windows code pages ("best fit") turn into a slash or backslash though NFKC does not.
_BEST_FIT_SLASHES = frozenset("\u2044\u2215\u2216\u00a5\u20a9")


@lru_cache(maxsize=128)  # for one check's several questions; small, as targets are text of anybody's
def canonical_path(target: str) -> str | None:
    """The one path that every upstream will see for this request target, or ``None`` in doubt.

    ``target`` is path and query as sent, latin-1 decoded. Percent-escapes are decoded exactly
    once and written back in one way (RFC 3986 §6.2.2); case and a trailing slash are kept. There
    is no canonical form, and so no rule that opens a path may match, with: a first character
    other than ``/`` (absolute form, ``*``), a fragment, blanks, control characters, ``\\``,
    ``;``, ``//`` or dot segments, each raw or escaped; escaped ``/ ? # %``; an invalid escape;
    raw non-ASCII or invalid UTF-8; characters that Unicode or Windows folds to ASCII; more than
    `MAX_PATH` bytes.
    """
    path, _, _ = target.partition("?")
    if len(path) > MAX_PATH or _NEVER_SENT.search(target):
        return None
    if _PLAIN.fullmatch(path):
        return path
    if not path.startswith("/") or _AMBIGUOUS.search(path):
        return None
    try:
        decoded = unquote_to_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        return None
    if _DOT_SEGMENT.search(decoded) or any(map(_is_doubtful, decoded)):
        return None
    return quote(decoded, safe=_LITERAL)


_ESCAPED_DOT = re.compile("%2[Ee]")


@lru_cache(maxsize=128)
def policy_path(target: str) -> str | None:
    """The path that policies compare: dot segments resolved and ``\\`` read as ``/``, as Istio's
    normalisation ``BASE`` does, then as `canonical_path`; ``None`` in doubt.

    What a dot segment removes must be beyond doubt, too, since others might resolve it otherwise
    (``/a//../b``, ``/a;x/../b``), and so is a path that climbs above its root.
    """
    path = target.partition("?")[0]
    if _PLAIN.fullmatch(path):
        return canonical_path(target)
    first, *segments = _ESCAPED_DOT.sub(".", path.replace("\\", "/")).split("/")
    if not segments:
        return None
    named: list[str] = []
    kept: list[str] = []
    for segment in segments:
        if segment == "..":
            if not kept:
                return None
            kept.pop()
        elif segment != ".":
            named.append(segment)
            kept.append(segment)
    if segments[-1] in (".", ".."):
        # What it leads to is a folder.
        named.append("")
        kept.append("")
    query = target[len(path):]
    if canonical_path(f"{first}/{'/'.join(named)}{query}") is None:
        return None
    return canonical_path(f"/{'/'.join(kept)}{query}")


def _is_doubtful(character: str) -> bool:
    """A character that is invisible, or that some upstream reads as an ASCII one."""
    if character.isascii():
        return False
    return (
        unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Zs")
        or character in _BEST_FIT_SLASHES
        or any(map(str.isascii, unicodedata.normalize("NFKC", character)))
    )


def is_absolute(entry: str) -> bool:
    """Whether a list entry is an absolute URL: it names no path of ours and never matches one."""
    return "://" in entry


def canonical_prefix(entry: str) -> str:
    """The canonical form of a prefix given in a setting. Raises `ValueError` with a sentence
    that says what is wrong when it has none: a rule must not be open to interpretation."""
    if not entry.startswith("/"):
        raise ValueError("a path prefix must begin with /")
    if "?" in entry or "#" in entry:
        raise ValueError("a path prefix has no query and no fragment")
    path = canonical_path(quote(entry, safe=_LITERAL + "%;\\"))
    if path is None:
        raise ValueError("gateways and applications could read this path in different ways")
    return path


class PathPrefixes:
    """Path prefixes that end at segment boundaries (B6).

    ``/dex`` covers ``/dex`` and ``/dex/…`` but not ``/dexter``; ``/dex/`` covers ``/dex/…`` but
    not ``/dex``; ``/`` covers every path that has a canonical form. Case counts. Absolute URLs
    are passed over; any other entry that is not a path raises `ValueError`.
    """

    def __init__(self, prefixes: Iterable[str]) -> None:
        paths = {canonical_prefix(entry) for entry in prefixes if not is_absolute(entry)}
        self._whole = frozenset(path for path in paths if not path.endswith("/"))
        self._below = frozenset(path if path.endswith("/") else path + "/" for path in paths)
        self._depth = max((path.count("/") for path in self._below), default=0)
        self._beginnings = frozenset(path[: path.find("/", 1)] for path in self._below)
        self._everything = "/" in self._below

    def matches(self, path: str | None) -> bool:
        """Whether a canonical path is covered. ``None`` (no canonical form) never is. Looks at the first
        segment, which most paths share with no prefix, and then once at each that a prefix could
        end with, however many prefixes there are."""
        if path is None:
            return False
        end = path.find("/", 1)
        if (path if end < 0 else path[:end]) not in self._beginnings:
            return self._everything
        if path in self._whole:
            return True
        end = 0
        for _ in range(self._depth):
            end = path.find("/", end) + 1
            if not end:
                return False
            if path[:end] in self._below:
                return True
        return False


class Authority(NamedTuple):
    """A host name, lower-cased and without a trailing dot, and its port when one was named."""

    host: str
    port: int | None


_AUTHORITY = re.compile(r"(?:\[([0-9a-f:.]{2,45})\]|([a-z0-9_-]+(?:\.[a-z0-9_-]+)*)\.?)(?::([0-9]{1,5}))?")


def parse_authority(text: str) -> Authority | None:
    """``host[:port]`` in one spelling, or ``None``. IPv6 stands in brackets and is compressed;
    internationalised names must come in their ``xn--`` form, as browsers send them; user
    information, escapes and empty labels are refused (RFC 3986 §3.2)."""
    match = _AUTHORITY.fullmatch(text.lower()) if text.isascii() and len(text) <= MAX_AUTHORITY else None
    if match is None:
        return None
    literal, name, digits = match.groups()
    port = int(digits) if digits else None
    if port is not None and not 0 < port < 65536:
        return None
    if literal:
        try:
            name = f"[{IPv6Address(literal).compressed}]"
        except AddressValueError:
            return None
    return Authority(name, port)


_DEFAULT_PORTS = {"http": 80, "https": 443}


class HostRule(NamedTuple):
    """One entry of the allowed hosts. ``port`` is ``None`` for the scheme's default port only
    and ``0`` for any; with ``below`` the sub-domains are meant as well as the host itself."""

    host: str
    port: int | None
    below: bool

    @classmethod
    def parse(cls, entry: str) -> HostRule:
        """``host``, ``host:8443``, ``host:*``; with a leading ``.`` or ``*.`` also what is below.
        Raises `ValueError` with a sentence that says what is wrong."""
        if "/" in entry:
            raise ValueError("a host is named without scheme and path")
        if not entry.isascii():
            raise ValueError("an internationalised host is named in its xn-- form")
        below = entry.startswith((".", "*."))
        text = entry.lstrip("*")[1:] if below else entry
        any_port = text.endswith(":*")
        authority = parse_authority(text[:-2] if any_port else text)
        if authority is None or (any_port and authority.port is not None):
            raise ValueError("a host looks like app.example.com, .example.com, host:8443 or host:*")
        if below and authority.host.startswith("["):
            raise ValueError("an address has no sub-domains")
        return cls(authority.host, 0 if any_port else authority.port, below)

    def covers(self, scheme: str, authority: Authority) -> bool:
        """Whether this entry allows an origin; no port means the scheme's default one."""
        default = _DEFAULT_PORTS[scheme]
        if self.port != 0 and (self.port or default) != (authority.port or default):
            return False
        return authority.host == self.host or (self.below and authority.host.endswith("." + self.host))


_ABSOLUTE = re.compile(r"(https?)://([^/?#\\]+)(.*)", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


def _local_target(text: str, encoding: str) -> str | None:
    """Path, query and fragment that a browser resolves to the same host, byte for byte as given
    (blanks and non-ASCII escaped, as browsers send them), or ``None`` when it might not."""
    if not text.startswith("/") or len(text) > MAX_RETURN_ADDRESS or _CONTROL.search(text):
        return None
    try:
        target = quote(text, safe=_PRINTABLE, encoding=encoding, errors="strict")
    except UnicodeEncodeError:
        return None
    path = re.split(r"[?#]", target, maxsplit=1)[0]
    for _ in range(3):  # as it stands, decoded once, decoded twice
        if _leads_away(path):
            return None
        path = unquote(path)
    return target


def _leads_away(path: str) -> bool:
    """Whether some reader takes the beginning of this path for a host: two slashes of any kind
    in front, also after blanks are dropped, and at any moment while dot segments are resolved.
    Control characters have no business in a path either."""
    flat = unicodedata.normalize("NFKC", path).replace("\\", "/")
    if _CONTROL.search(flat) or not flat.startswith("/"):
        return True
    kept: list[str] = []
    for segment in map(str.strip, flat.split("/")[1:]):
        if kept and not kept[0]:
            return True  # an empty first segment, and more behind it
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    return False


class ReturnAddresses:
    """Decides where a login leads in the end (O01 to O12, S-01 to S-04).

    ``own_scheme`` and ``own_host`` are the origin that the settings name, both ``None`` when they
    name none: results for the own host are then paths only, so that the browser stays on the
    host of the callback. ``default`` takes the place of every address that is refused. With
    ``after_login_url`` every login leads there, with the path and query asked for as ``next``.
    Raises `ValueError` for a host that cannot be read.
    """

    def __init__(
        self,
        own_scheme: str | None,
        own_host: str | None,
        allowed_hosts: Iterable[str],
        default: str,
        after_login_url: str = "",
    ) -> None:
        self._own_scheme = own_scheme if own_scheme in _DEFAULT_PORTS else None
        self._own: str | None = None
        self._own_rule: HostRule | None = None
        if own_host and self._own_scheme:
            authority = parse_authority(own_host)
            if authority is None:
                raise ValueError("the own host cannot be read")
            self._own = _origin(self._own_scheme, authority)
            self._own_rule = HostRule(authority.host, authority.port, below=False)
        self._allowed = tuple(map(HostRule.parse, allowed_hosts))
        self._default = default
        self._after_login_url = after_login_url

    def for_check(self, scheme: str | None, host: str, target: str) -> str:
        """Where to come back to after a login begun by this check.

        ``scheme`` (``None`` = not known), ``host`` and ``target`` (latin-1 decoded) are those of
        the request that was checked. Its origin is kept when it is the own or an allowed one;
        otherwise the path leads to the own host.
        """
        local = _local_target(target, "latin-1")
        return self._address(self._origin_of(scheme, host), local)

    def for_parameter(self, candidate: str, scheme: str | None, host: str) -> str:
        """The same for an address that a client names, for example in ``<prefix>/login?rd=``.

        ``candidate`` is the parameter's decoded text; ``scheme`` and ``host`` are those of the
        request that carried it. An absolute address must be of the own host, an allowed one, or
        the host of that very request.
        """
        absolute = _ABSOLUTE.fullmatch(candidate)
        if absolute is None:
            return self._address(self._origin_of(scheme, host), _local_target(candidate, "utf-8"))
        named_scheme, named_host, rest = absolute.group(1).lower(), absolute.group(2), absolute.group(3)
        local = _local_target(rest if rest.startswith("/") else "/" + rest, "utf-8")
        origin = self._known_origin(named_scheme, named_host, secure=scheme == "https")
        asked_at = _endpoint(named_scheme, host)
        if origin is None and asked_at is not None and asked_at == _endpoint(named_scheme, named_host):
            origin = self._own or ""
        return self._address(origin, local)

    def _address(self, origin: str | None, local: str | None) -> str:
        if origin is None or local is None:
            return self._after_login_url or self._default
        address = _with_next(self._after_login_url, local) if self._after_login_url else origin + local
        if len(address) > MAX_RETURN_ADDRESS:
            return self._after_login_url or self._default
        return address

    def _origin_of(self, scheme: str | None, host: str) -> str:
        """The origin of a request when it is a known one, else the own; empty = path only."""
        return self._known_origin(scheme or self._own_scheme, host) or self._own or ""

    def _known_origin(self, scheme: str | None, host: str, *, secure: bool = False) -> str | None:
        """The own or an allowed origin, as it is to be written; ``None`` for any other."""
        if scheme not in _DEFAULT_PORTS:
            return None
        authority = _endpoint(scheme, host)
        if authority is None:
            return None
        if self._own_rule and self._own_rule.covers(self._own_scheme or scheme, authority):
            return self._own
        if secure or self._own_scheme == "https":
            scheme = "https"  # nobody is sent from https to http (S-04)
        if any(rule.covers(scheme, authority) for rule in self._allowed):
            return _origin(scheme, authority)
        return None


def _endpoint(scheme: str, host: str) -> Authority | None:
    """A host as read, its port left out when it is the scheme's default."""
    authority = parse_authority(host)
    if authority is not None and authority.port == _DEFAULT_PORTS[scheme]:
        return Authority(authority.host, None)
    return authority


def _origin(scheme: str, authority: Authority) -> str:
    if authority.port in (None, _DEFAULT_PORTS[scheme]):
        return f"{scheme}://{authority.host}"
    return f"{scheme}://{authority.host}:{authority.port}"


def _with_next(url: str, local: str) -> str:
    """``url`` with the parameter ``next`` added; its own query and fragment are kept as written."""
    base, hash_mark, fragment = url.partition("#")
    joint = "" if base.endswith(("?", "&")) else "&" if "?" in base else "?"
    return f"{base}{joint}next={quote(local, safe='')}{hash_mark}{fragment}"
