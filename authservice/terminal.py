"""Printing for people: what texts from elsewhere may do to a terminal, and what becomes of a command that
nobody reads to its end. Used by the commands of the ``authservice`` command line."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress

OK, INTERRUPTED = 0, 130


def shown(text: str) -> str:
    """Fit for a terminal: nothing in it moves the cursor, changes colours or turns text around."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


def say(text: str) -> None:
    """On standard error, at once."""
    with suppress(BrokenPipeError):  # that nobody listens is no reason to end one session and leave the next
        print(text, end="", file=sys.stderr, flush=True)


def carried_out(action: Callable[[], int]) -> int:
    """The action's exit status, or that of a person who has enough of it."""
    _let_through_what_cannot_be_encoded(sys.stdout, sys.stderr)
    try:
        status = action()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever reads, `head` for one, has seen enough; nothing more is to be said at the end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        say("\n")
        return INTERRUPTED


def _let_through_what_cannot_be_encoded(*streams: object) -> None:
    """As ``\\xe9``, where the environment's encoding has no such character."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
