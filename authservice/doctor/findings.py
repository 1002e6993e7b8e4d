"""What an examination finds: a closed list of things looked at, how each of them stands, and what to do.

Examinations give `Finding` after `Finding`; nobody prints here. A remedy says what to change and where, so
that somebody who never read the code can do it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Part(str, Enum):
    """What is looked at."""

    SETTINGS = "settings"
    POLICIES = "policies"
    STORE = "session store"
    PROVIDER = "provider"
    TLS = "certificate"
    CLOCK = "clock"
    KEYS = "keys"
    ENDPOINTS = "endpoints"
    AUTHORIZATION = "authorization request"
    CLIENT = "client credentials"
    ISSUERS = "further issuers"
    CALLBACK = "redirect address"
    PAGES = "pages"
    GATEWAY = "gateway"
    WIRING = "wiring"
    NOTICED = "running service"


class State(str, Enum):
    """How it stands. Only a problem keeps people from logging in, or lets them in who should not be."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "PROBLEM"
    SKIPPED = "-"


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence about one part, and the remedy where there is something to mend."""

    part: Part
    state: State
    sentence: str
    remedy: str = ""


def good(part: Part, sentence: str) -> Finding:
    """Nothing to do."""
    return Finding(part, State.OK, sentence)


def odd(part: Part, sentence: str, remedy: str = "") -> Finding:
    """Works, and may not be what somebody wanted."""
    return Finding(part, State.WARNING, sentence, remedy)


def bad(part: Part, sentence: str, remedy: str) -> Finding:
    """Has to be mended."""
    return Finding(part, State.PROBLEM, sentence, remedy)


def skipped(part: Part, sentence: str, remedy: str = "") -> Finding:
    """Could not be looked at, or there is nothing to look at."""
    return Finding(part, State.SKIPPED, sentence, remedy)
