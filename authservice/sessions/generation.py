"""A number beside the database that is another one after every change, read without a system call.

Owns one small file, which each writer of ours overwrites with random bytes once its change is
committed and before it says so, and which each watching process maps into its memory. It is a
hint: whoever cannot write it changes nothing here, and the database itself shows what was missed.
Used by `sessions.sqlite` and `sessions.sqlite_watch`; knows no database.
"""

from __future__ import annotations

import functools
import mmap
import os
import stat
from collections.abc import Sequence
from pathlib import Path

SUFFIX = "-generation"

_BYTES = 8
_FLAGS = os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

FileId = tuple[int, int]


@functools.lru_cache(maxsize=8)
def beside(database: Path) -> Path:
    """Where the number of this database is."""
    return database.with_name(database.name + SUFFIX)


def advance(database: Path) -> bool:
    """Makes it another number; ``False`` when that cannot be done, as on a full disk.

    Opened anew each time, because somebody may have put another file in its place. Random rather
    than counted: two who add one to the same number would lose one of two changes. Written by
    call and not through a mapping: without room for it that is an error, and no signal.
    """
    try:
        descriptor = os.open(beside(database), os.O_WRONLY | _FLAGS, 0o600)
        try:
            there = os.fstat(descriptor)
            if there.st_size == 0:
                # As SQLite does with its own files: who may use the one may use the other, also when
                # it is root who makes it.
                model = database.stat()
                if os.geteuid() == 0:
                    os.fchown(descriptor, model.st_uid, model.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(model.st_mode))
            return os.pwrite(descriptor, os.urandom(_BYTES), 0) == _BYTES
        finally:
            os.close(descriptor)
    except OSError:
        return False


def follow(database: Path) -> tuple[Sequence[int], FileId] | None:
    """The number as item 0 of a sequence that is always up to date, and which file it is in, made
    if there was none; ``None`` when it cannot be had.

    The file stays mapped for as long as the sequence is there, in forked children too. Whoever cuts
    it short under us kills us by a signal, as with SQLite's own index (``-shm``): to put a backup
    in place, stop the service first.
    """
    for _ in range(2):
        try:
            descriptor = os.open(beside(database), os.O_RDONLY | _FLAGS & ~os.O_CREAT)
            try:
                there = os.fstat(descriptor)
                if there.st_size >= _BYTES:
                    mapped = mmap.mmap(descriptor, _BYTES, access=mmap.ACCESS_READ)
                    return memoryview(mapped).cast("Q"), (there.st_dev, there.st_ino)
            finally:
                os.close(descriptor)
        except (OSError, ValueError):
            pass
        if not advance(database):
            return None
    return None
