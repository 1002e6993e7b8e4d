"""What this machine tells: the settings, the files that they name, and the session store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

from authservice import policies, startup
from authservice.app import build_store
from authservice.doctor.findings import Finding, Part, bad, good, odd, skipped
from authservice.errors import StoreDown
from authservice.policy.resources import PolicyErrors
from authservice.sessions import Store
from authservice.sessions.seal import new_secret, store_key
from authservice.sessions.sqlite_file import foreign_content
from authservice.settings import Examined, Settings

EXPLAINS = "`authservice settings` explains it."
_POLICIES = ("POLICY_PATH", "POLICY_WORKLOADS")
_SLOW = 0.25
"""Seconds for one write and its reading. A login waits for several of them."""


def settings(found: Examined) -> Iterator[Finding]:
    """The environment, and the files that it names; policies are looked at by themselves."""
    told, warnings = list(found.problems), list(found.warnings)
    if found.settings is not None:
        told += [line for line in startup.problems(found.settings) if not line.startswith(_POLICIES)]
        warnings += startup.warnings(found.settings)
    for line in warnings:
        yield odd(Part.SETTINGS, line, _explained(line))
    for line in told:
        yield bad(Part.SETTINGS, line, _explained(line))
    if not told:
        yield good(Part.SETTINGS, "All settings can be used.")


def _explained(line: str) -> str:
    return f"Change {line.partition(':')[0].split(' ')[0]}. {EXPLAINS}"


def policy_files(settings: Settings) -> Iterator[Finding]:
    """The policies as a start would read them."""
    if settings.policy_path is None:
        yield skipped(Part.POLICIES, "POLICY_PATH is not set: there are no policies.")
        return
    try:
        policies.load(settings)
    except PolicyErrors as errors:
        for line in policies.told(errors, settings):
            yield bad(
                Part.POLICIES,
                line,
                "Mend the file. `authservice policy check` reads it again, and docs/policies.md says what "
                "it may hold.",
            )
    else:
        trial = ", on trial: POLICY_DRY_RUN=true enforces none of them" if settings.policy_dry_run else ""
        yield good(Part.POLICIES, f"The policies in {settings.policy_path} can be read{trial}.")


def store(settings: Settings, now: Callable[[], datetime]) -> Iterator[Finding]:
    """One entry written, read and deleted, as a login does."""
    part, remedy = Part.STORE, _store_remedy(settings)
    made_later = _made_later(settings.session_store_path) if settings.session_store_type == "filesystem" else None
    if made_later is not None:
        yield skipped(part, f"{made_later} is not there yet; the first start of the service makes it.")
        return
    try:
        with closing(build_store(settings, now, create=False)) as opened:
            began = time.monotonic()
            wrong = _round_trip(opened, now)
            took = time.monotonic() - began
    except ValueError as error:
        yield bad(part, f"The address of the store cannot be used: {error}.", remedy)
    except StoreDown as error:
        yield bad(part, f"The store does not answer: {error}.", remedy)
    else:
        if wrong:
            yield bad(part, wrong, remedy)
        elif took > _SLOW:
            yield odd(
                part,
                f"The store works, but needs {took * 1000:.0f} ms to write, read and delete one entry.",
                "Bring the store nearer, or look at what keeps it busy.",
            )
        else:
            yield good(part, f"Written, read and deleted one entry in {took * 1000:.0f} ms.")


def _made_later(asked: Path) -> Path | None:
    """The file that the first start will make; ``None`` where it is there, or cannot be looked at."""
    try:
        if not asked.exists():
            return None if asked.is_symlink() else asked
        if asked.is_file():
            with asked.open("rb") as opened:
                head = opened.read(64)
            if not head or not foreign_content(head):
                return None
        beside = asked.with_name(asked.name + ".sqlite")
        return None if beside.exists() else beside
    except OSError:
        return None


def _round_trip(store: Store, now: Callable[[], datetime]) -> str:
    """What is wrong with a store that answers; empty when nothing is."""
    key, value = store_key(new_secret()), b"written by authservice doctor"
    store.ping()
    written = store.save(key, value, now() + timedelta(minutes=1), if_absent=True)
    entry = store.load(key)
    deleted = store.delete(key)
    if not written or entry is None or entry.value != value:
        return "The store answers, but does not give back what was written into it."
    if not deleted or store.load(key) is not None:
        return "The store answers, but keeps what was deleted."
    return ""


def _store_remedy(settings: Settings) -> str:
    if settings.session_store_type == "redis":
        return (
            "See that the servers in SESSION_STORE_REDIS_ADDR run, can be reached from here and take writes "
            "(no replica, memory left), and that SESSION_STORE_REDIS_MODE, -USERNAME, -PWD and -CA_BUNDLE are "
            "theirs (docs/redis.md)."
        )
    return (
        f"Let the service's user read and write {settings.session_store_path} and its folder, see that the "
        "disk has room, and look at the file with `authservice sessions check` (docs/sqlite.md)."
    )
