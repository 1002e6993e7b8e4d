"""What the SQLite file is found to be like: the numbers and the faults that an operator is told.

Owns the questions and their words; reads only. SQLite's own examinations read the whole file, which
takes about a second for each 200 MB, and keep its log from starting anew meanwhile. Used by
`sessions.sqlite`.
"""

from __future__ import annotations

import sqlite3
from datetime import datetime
from pathlib import Path

from authservice.sessions import Inspection, to_microseconds
from authservice.sessions.sqlite_file import schema_version

LARGE = 1 << 30
"""Bytes from which on only the quick examination is made unless the other one is asked for."""

_MOST_PROBLEMS = 20
_SECOND = 1_000_000
_BROKEN = "stop the service, keep the file, and restore or recover it (or start with a new one)"
_BEHIND = 3600


def inspect(connection: sqlite3.Connection, file: Path, moment: datetime, thorough: bool | None) -> Inspection:
    """``thorough`` is SQLite's integrity_check, its opposite quick_check (which does not compare
    indexes with tables). Raises sqlite3.Error where the file cannot even be asked."""
    now = to_microseconds(moment)
    log = file.with_name(file.name + "-wal")
    size = file.stat().st_size
    if thorough is None:
        thorough = size < LARGE
    facts: dict[str, str | int] = {
        "file": str(file),
        "size in bytes": size,
        "log in bytes": log.stat().st_size if log.exists() else 0,
        "SQLite": sqlite3.sqlite_version,
        "schema": schema_version(connection),
        "examination": "integrity_check" if thorough else "quick_check",
    }
    problems: list[str] = []
    try:
        examine = "integrity_check" if thorough else "quick_check"
        found = [text for (text,) in connection.execute(f"PRAGMA {examine}({_MOST_PROBLEMS})").fetchall()]
        problems += [f"{text}: {_BROKEN}" for text in found if text != "ok"]
        facts["free bytes inside"] = _number(connection, "PRAGMA freelist_count") * _number(
            connection, "PRAGMA page_size"
        )
        facts["sessions with a label"] = _number(connection, "SELECT count(*) FROM labels WHERE expires > ?", now)
        facts["entries (sessions, used-up login marks)"] = _number(
            connection, "SELECT count(*) FROM entries WHERE expires > ?", now
        )
        facts["expired and not yet removed"] = _number(
            connection, "SELECT count(*) FROM entries WHERE expires <= ?", now
        )
        overdue = (now - _number(connection, "SELECT coalesce(min(expires), ?) FROM entries", now)) // _SECOND
        facts["seconds since the oldest of them expired"] = max(0, overdue)
        if overdue > _BEHIND:
            problems.append(f"entries that expired {overdue} seconds ago are still there: is the service running?")
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:  # the file is damaged in what was just read
        problems.append(f"{error}: {_BROKEN}")
    return Inspection(facts, tuple(problems))


def _number(connection: sqlite3.Connection, question: str, *values: int) -> int:
    rows: list[tuple[int]] = connection.execute(question, values).fetchall()
    return rows[0][0]
