"""How people are told when something was or will be: in UTC, which is said, and how far away it is.

Pages work without scripts and a server's terminal belongs to nobody's place, so no time zone of a
person is known; the distance needs none. Called by `pages` and by the command line.
"""

from __future__ import annotations

from datetime import datetime, timedelta


def spelt(moment: datetime) -> str:
    """An aware UTC moment as ``22 November 2026, 16:13 UTC``."""
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def iso(moment: datetime) -> str:
    """The same for programs, to the second (RFC 3339)."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def in_words(span: timedelta) -> str:
    """How long that is, in the largest unit that it fills, rounded down."""
    seconds = int(span.total_seconds())
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            return counted(seconds // length, unit)
    return counted(max(0, seconds), "second")


def counted(number: int, noun: str) -> str:
    """``1 hour``, ``2 hours``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
