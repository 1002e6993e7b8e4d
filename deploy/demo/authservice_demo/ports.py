"""Which ports the demo uses: the usual ones, or free ones where those are taken."""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Ports:
    """One port for each listener. The defaults are those that the files under deploy/ name."""

    gateway: int = 10000
    judge: int = 8080
    site: int = 8082
    application: int = 9000
    provider: int = 5556

    def replace_in(self, text: str) -> str:
        """A configuration file's text with these ports in place of the usual ones."""
        usual = asdict(Ports())
        return replace_ports(text, {usual[name]: port for name, port in asdict(self).items()})


def replace_ports(text: str, new: Mapping[int, int]) -> str:
    """The text with each whole number that is a key of ``new`` replaced, all in one pass."""
    numbers = "|".join(str(port) for port in new)
    return re.sub(rf"(?<![\d.])(?:{numbers})(?!\d)", lambda found: str(new[int(found[0])]), text)


def choose_ports(avoid_usual: bool = False) -> Ports:
    """The usual ports where they are free, or just free ones, so that two demos can start at
    once. Nothing is reserved: start listening soon."""
    chosen: dict[str, int] = {}
    for name, usual in asdict(Ports()).items():
        port = any_free() if avoid_usual else usual
        while port in chosen.values() or not _free(port):
            port = any_free()
        chosen[name] = port
    return Ports(**chosen)


def _free(port: int) -> bool:
    """Nobody listens there, on either loopback address: browsers try both for ``localhost``."""
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as attempt:
                attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                attempt.bind((address, port))
        except OSError:
            if family == socket.AF_INET or _listens(port):
                return False
    return True


def _listens(port: int) -> bool:
    """Somebody answers on the IPv6 loopback address (a machine may have none to bind to)."""
    try:
        with socket.create_connection(("::1", port), timeout=0.2):
            return True
    except OSError:
        return False


def any_free() -> int:
    """A free port below those that the system gives to outgoing connections: one of these could
    take it before anybody listens."""
    while not _free(port := 20_000 + secrets.randbelow(12_000)):
        pass
    return port
