"""The doctor: looks at a deployment from its settings to the page behind its gateway, and names remedies.

`examine` gives one `Finding` after the other: what this machine tells (`local`), what the provider says and
does (`provider`), what a browser and a program meet at the gateway (`outside`), and what the running service
noticed (`running`). Nothing that serves is changed: no session is made, nobody is logged in, and what is
written into the store is taken out again. Called by `authservice.cli_doctor`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime

from authservice.doctor import local, outside, provider, running
from authservice.doctor.findings import Finding, Part, State
from authservice.settings import examine as read_settings

__all__ = ["Finding", "Part", "State", "examine"]


def examine(environ: Mapping[str, str], now: Callable[[], datetime], url: str = "") -> Iterator[Finding]:
    """Everything that is found in a deployment with these environment variables. ``url`` is a page behind its
    gateway as browsers open it; empty: the origin that the settings name, if they do."""
    found = read_settings(environ)
    yield from local.settings(found)
    if found.settings is None:
        return
    yield from local.policy_files(found.settings)
    yield from local.store(found.settings, now)
    yield from provider.examine(found.settings, now)
    yield from outside.examine(found.settings, now, url)
    yield from running.examine(found.settings)
