"""Where a browser goes when an answer says ``Location: …``: the part of the URL Standard
(https://url.spec.whatwg.org/, "basic URL parser") that decides the origin.

Made for tests of return addresses: it follows the standard where an address gets its host, and
leaves out what comes after. Names are mapped as UTS 46 does as far as attackers use it. Where the
standard gives up on an odd host, this may still name one: it errs towards "led away".
"""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote

_DEFAULT_PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443", "ftp": "21"}
_IGNORED = re.compile("[\u00ad\u034f\u180b-\u180f\u200b-\u200d\u2060\u2064\ufe00-\ufe0f\ufeff]")
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f#%/<>?@\\^|]")

Origin = tuple[str, str]


def browser_origin(location: str, base: Origin) -> Origin | None:
    """``(scheme, host[:port])`` where a browser on the page ``base`` goes; the host is empty for
    schemes without one. ``None`` when the address does not parse: the browser then stays."""
    text = re.sub(r"[\t\n\r]", "", location.strip("".join(map(chr, range(0x21)))))
    scheme_match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", text)
    if scheme_match:
        scheme, rest = scheme_match.group(1).lower(), text[scheme_match.end() :]
        if scheme not in _DEFAULT_PORTS:
            return (scheme, "")
        if scheme == base[0] and not rest.startswith("//"):
            return _relative(rest, base)  # "special relative or authority state"
        return _authority(scheme, rest)
    return _relative(text, base)


def _relative(text: str, base: Origin) -> Origin | None:
    return _authority(base[0], text) if re.match(r"[/\\]{2}", text) else base


def _authority(scheme: str, text: str) -> Origin | None:
    authority = re.split(r"[/\\?#]", text.lstrip("/\\"), maxsplit=1)[0]
    host_and_port = authority.rpartition("@")[2]
    host, port = host_and_port, ""
    port_match = re.fullmatch(r"(.*):([0-9]*)", host_and_port, re.DOTALL)
    if port_match and not host_and_port.endswith("]"):
        host, port = port_match.groups()
    host = _host(host)
    if host is None:
        return None
    port = str(int(port)) if port else ""
    return (scheme, host if port in ("", _DEFAULT_PORTS[scheme]) else f"{host}:{port}")


def _host(text: str) -> str | None:
    if text.startswith("["):
        return text.lower()
    mapped = _IGNORED.sub("", unicodedata.normalize("NFKC", unquote(text))).lower()
    mapped = re.sub("[\u3002\uff0e\uff61]", ".", mapped)
    return None if not mapped or _FORBIDDEN.search(mapped) else mapped
