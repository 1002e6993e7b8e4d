"""Removing expired entries from the SQLite file without anybody noticing.

SQLite has one writer at a time, and who finds the file taken asks again after 1, 2, 5, … ms. So a
step holds it for about `STEP` at most, which is measured and decides the next step's size, and then
lets go for longer than that: whoever waits comes next. Used by `sessions.sqlite`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator

from authservice.sessions.sqlite_file import transaction

STEP = 0.0015
"""Seconds for which a step should hold the file."""

REST = 0.006
"""Seconds between steps at least; longer after a step that took longer."""

TURN = 0.5
"""Seconds for which one sweep goes on at most, about."""

MOST = 200
"""Entries that one step removes at most."""

_FIRST = 8
_LEASE = 5_000_000
"""Microseconds for which a process that sweeps is left to it, were it to die on the way."""

_CHECKPOINT_EVERY = 16
"""Steps. What they wrote goes into the database then, before it is so much that another writer's
commit would have to do it."""

_STEP = (
    "DELETE FROM entries WHERE rowid IN"
    " (SELECT rowid FROM entries WHERE expires <= ? ORDER BY expires LIMIT ?)"
)


class Pace:
    """How much a step may remove, learned from what the last ones took."""

    def __init__(self) -> None:
        self.size = _FIRST
        self._took = 0.0
        self._number = 0

    def steps(self) -> Iterator[int]:
        """One number for each step of one turn, with rests in between."""
        end = time.monotonic() + TURN
        while True:
            self._number += 1
            yield self._number
            if time.monotonic() >= end:
                return
            time.sleep(max(REST, 3 * self._took))

    def checkpoint_is_due(self) -> bool:
        return self._number % _CHECKPOINT_EVERY == 0

    def learn(self, took: float) -> None:
        self._took = took
        self.size = max(1, min(MOST, 2 * self.size, int(self.size * STEP / max(took, 1e-6))))


def take_turn(connection: sqlite3.Connection, now: int) -> int | None:
    """The turn of whoever sweeps now; ``None`` when nothing has expired, or another process is at it.
    ``now`` is in microseconds. Writes nothing when there is nothing to do."""
    if not connection.execute("SELECT 1 FROM entries WHERE expires <= ? LIMIT 1", (now,)).fetchall():
        return None
    turn = now + _LEASE
    taken = connection.execute(
        "UPDATE state SET value = :turn WHERE name = 'sweeping until' AND (value <= :now OR value > :turn)",
        {"now": now, "turn": turn},
    )
    return turn if taken.rowcount == 1 else None


def end_turn(connection: sqlite3.Connection, turn: int) -> None:
    """Lets the next one sweep; a turn that was not ended is over by itself after a few seconds."""
    connection.execute("UPDATE state SET value = 0 WHERE name = 'sweeping until' AND value = ?", (turn,))


def sweep_step(connection: sqlite3.Connection, now: int, pace: Pace) -> int:
    """One step; how many entries it removed. Raises sqlite3.Error."""
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    with transaction(connection):
        began = time.monotonic()
        removed = connection.execute(_STEP, (now, pace.size)).rowcount
    pace.learn(time.monotonic() - began)
    connection.execute("PRAGMA wal_autocheckpoint = 1000")
    if pace.checkpoint_is_due():
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    return removed
