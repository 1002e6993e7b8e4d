"""Which peers are believed about the outside, and what they tell of it.

`Trust` knows ``TRUSTED_PROXIES`` and reads the two headers that only such a proxy may fill in:
``X-Forwarded-Proto`` and ``X-Forwarded-For``. Asked by the dialects, by the pages and by policies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address

from authservice.check import RequestParts

Networks = Sequence[IPv4Network | IPv6Network]

_MOST_PEERS = 4096
_LONGEST_CHAIN_KEPT = 256
_LONGEST_ADDRESS = 64  # characters of an IPv6 address with an IPv4 tail (45) and the name of a zone


class Trust:
    """Which peers are believed about the outside, and what is known of it from the settings.

    ``outside_scheme`` is the scheme of an absolute ``REDIRECT_URL`` or prefix, if there is one; it
    outranks whatever a header says.
    """

    def __init__(self, proxies: Networks, outside_scheme: str | None) -> None:
        self._proxies = tuple(proxies)
        self._outside_scheme = outside_scheme
        # The same few come again and again. Bounded: hops are text of anybody's.
        self._is_proxy = lru_cache(_MOST_PEERS)(self._look_up)
        self._kept_ends = lru_cache(_MOST_PEERS)(self._ends)

    def trusts(self, peer: str | None) -> bool:
        """Whether the connection's other end is in ``TRUSTED_PROXIES``."""
        if not self._proxies or peer is None or len(peer) > _LONGEST_ADDRESS:
            return False
        return self._is_proxy(peer)

    def _look_up(self, peer: str) -> bool:
        try:
            address = ip_address(peer.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._proxies)

    def trusts_nobody_yet(self) -> bool:
        """Whether no proxies are named at all."""
        return not self._proxies

    def outside(self, parts: RequestParts) -> tuple[str | None, str | None, bool]:
        """What `scheme` and `client` tell, and whether the peer is a trusted proxy."""
        if not self._proxies or not self.trusts(parts.peer):
            return self._outside_scheme, parts.peer, False
        scheme = self._outside_scheme or scheme_told(parts.headers.get("x-forwarded-proto", ""))
        return scheme, self.addresses(parts.headers)[1] or parts.peer, True

    def scheme(self, parts: RequestParts) -> str | None:
        """``"http"`` or ``"https"`` as the person sees it; ``None`` when nothing trustworthy tells."""
        return self.outside(parts)[0]

    def client(self, parts: RequestParts) -> str | None:
        """The client's address: the last one in ``X-Forwarded-For`` that no trusted proxy added."""
        return self.outside(parts)[1]

    def addresses(self, headers: Mapping[str, str]) -> tuple[str | None, str | None]:
        """What ``X-Forwarded-For`` of a trusted proxy tells: who connected to it, and the client, which is the
        last one that no trusted proxy added. ``None`` for what is not there, or is no address."""
        chain = headers.get("x-forwarded-for", "")
        return self._kept_ends(chain) if len(chain) <= _LONGEST_CHAIN_KEPT else self._ends(chain)

    def _ends(self, chain: str) -> tuple[str | None, str | None]:
        hops = [hop.strip() for hop in chain.split(",") if hop.strip()]
        if not hops:
            return None, None
        client = next((hop for hop in reversed(hops) if not self.trusts(hop)), hops[0])
        return (hops[-1] if _is_address(hops[-1]) else None), (client if _is_address(client) else None)


def scheme_told(value: str) -> str | None:
    """The scheme that a header's value names; ``None`` for anything but the two."""
    value = value.strip().lower()
    return value if value in ("http", "https") else None


def _is_address(text: str) -> bool:
    return len(text) <= _LONGEST_ADDRESS and _reads_as_address(text)


@lru_cache(_MOST_PEERS)
def _reads_as_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
