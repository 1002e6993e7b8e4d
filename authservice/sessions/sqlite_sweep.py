"""Removing expired entries from the SQLite file without anybody noticing.

SQLite has one writer at a time, and who finds the file taken asks again after 1, 2, 5, … ms. So a
step holds it for about `STEP` at most, which is measured and decides the next step's size, and then
lets go for longer than that: whoever waits comes next. Used by `sessions.sqlite`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator

from authservice.sessions.sqlite_file import AUTOCHECKPOINT

STEP = 0.0015
"""Seconds for which a step should hold the file."""

REST = 0.004
"""Seconds between steps at least, so that a third try always succeeds; longer after a longer step."""

TURN = 0.5
"""Seconds for which one sweep goes on at most, about."""

MOST = 200
"""Entries that one step removes at most."""

_FIRST = 4
_LEASE = 5_000_000
"""Microseconds for which a process that sweeps is left to it, were it to die on the way."""

_CHECKPOINT_AFTER = 48
"""Entries removed: about 600 pages of the log. More than that and a commit of somebody else's, who
waits for it, would have to carry the log into the database."""

_STEP = (
    "DELETE FROM entries WHERE rowid IN"
    " (SELECT rowid FROM entries WHERE expires <= ? ORDER BY expires LIMIT ?)"
)


class Pace:
    """How much a step may remove, learned from what the last ones took."""

    def __init__(self) -> None:
        self.size = _FIRST
        self._took = self._carried = 0.0
        self._in_the_log = 0

    def steps(self) -> Iterator[None]:
        """Once for each step of one turn, with rests in between."""
        end = time.monotonic() + TURN
        while True:
            yield
            if time.monotonic() >= end:
                return
            time.sleep(max(REST, 2 * self._took, 4 * self._carried))

    def learn(self, removed: int, took: float) -> bool:
        """What a step did, in seconds, waiting included; whether the log is to be carried over now."""
        self._took, self._carried = took, 0.0
        if took > STEP:
            self.size = max(1, self.size * 2 // 3)
        elif took < STEP / 2:
            self.size = min(MOST, self.size + 1)
        self._in_the_log += removed
        return self._in_the_log >= _CHECKPOINT_AFTER

    def carried_over(self, took: float) -> None:
        """The disk was kept busy for so many seconds, in which commits are slow on some file systems."""
        self._carried = took
        self._in_the_log = 0


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
    """One step; how many entries it removed. Raises sqlite3.Error.

    One statement, so that nothing of Python comes between the moments in which the file is taken and
    let go. What it wrote goes into the database afterwards, by a call that holds nobody up.
    """
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    began = time.monotonic()
    removed = connection.execute(_STEP, (now, pace.size)).rowcount
    took = time.monotonic() - began
    connection.execute(f"PRAGMA wal_autocheckpoint = {AUTOCHECKPOINT}")
    if pace.learn(removed, took):
        began = time.monotonic()
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        pace.carried_over(time.monotonic() - began)
    return removed
