"""``authservice doctor``: what works, what does not, and what to do about it.

Prints what `authservice.doctor` finds, as it finds it. Called by `authservice.cli`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime

from authservice import doctor
from authservice.clock import utc_now
from authservice.doctor import Finding, State
from authservice.terminal import carried_out, shown

OK, PROBLEMS = 0, 1

_INDENT = 34
_WIDTH = 118


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``doctor`` to the command line."""
    command = commands.add_parser(
        "doctor",
        help="look at everything from the settings to a page behind the gateway, and name remedies",
        description="Run it with the service's own environment, also while the service runs. It looks at "
        "settings, "
        "policies, the session store, the provider (certificate, clock, metadata, keys, endpoints, our "
        "credentials) and, "
        "through the gateway, at what that passes on. Nobody is logged in and nothing is changed. Exit "
        "status: 0 when "
        "there is no problem, 1 otherwise.",
    )
    command.add_argument(
        "--url",
        default="",
        metavar="URL",
        help="a page behind the gateway, as browsers open it; by default the origin that REDIRECT_URL or "
        "AUTHSERVICE_URL_PREFIX names",
    )
    command.add_argument("--json", action="store_true", help="for programs: one JSON object a line")


def run(
    arguments: argparse.Namespace, environ: Mapping[str, str], now: Callable[[], datetime] = utc_now
) -> int:
    """Examines and prints; gives the exit status."""
    # What the service would write into its log, the findings say.
    logging.getLogger("authservice").addHandler(logging.NullHandler())
    return carried_out(lambda: _run(arguments, environ, now))


def _run(arguments: argparse.Namespace, environ: Mapping[str, str], now: Callable[[], datetime]) -> int:
    states: Counter[State] = Counter()
    for finding in doctor.examine(environ, now, arguments.url):
        states[finding.state] += 1
        print(_as_json(finding) if arguments.json else _as_text(finding))
        sys.stdout.flush()
    if not arguments.json:
        print(
            f"\n{_counted(states[State.PROBLEM], 'problem')}, {_counted(states[State.WARNING], 'warning')}, "
            f"{states[State.OK]} ok."
        )
    return PROBLEMS if states[State.PROBLEM] else OK


def _as_json(finding: Finding) -> str:
    return json.dumps({
        "part": finding.part.value, "state": finding.state.name.lower(), "found": finding.sentence,
        "remedy": finding.remedy,
    })  # fmt: skip


def _as_text(finding: Finding) -> str:
    head = f"{finding.state.value:<9}{finding.part.value:<{_INDENT - 9}}"
    told = _wrapped(shown(finding.sentence), head)
    if not finding.remedy:
        return told
    return f"{told}\n{_wrapped(shown(finding.remedy), ' ' * (_INDENT - 3) + '-> ')}"


def _wrapped(text: str, head: str) -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=head,
        subsequent_indent=" " * _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
