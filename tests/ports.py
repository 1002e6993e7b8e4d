"""Ports for programs that the tests start: never one port for two of them, in whichever process.

Kept apart from the ports that the kernel gives to outgoing connections, so that none is gone by the
time it is used.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path
from typing import IO

# Below the range from which the kernel takes the ports of outgoing connections (Linux: 32768).
# A cluster's node also takes the one 10 000 above.
_PORTS = range(20_000, 32_000)
_reserved: list[IO[str]] = []


def free_port() -> int:
    """A port that nobody listens on, and that no other test process will be given.

    The programs bind it themselves, some time after this returned, and may be stopped and started
    again on it. So it stays reserved, by a lock on a small file, until this process ends.
    """
    folder = Path(tempfile.gettempdir()) / f"authservice-test-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for port in random.sample(_PORTS, 200):
        lock = (folder / str(port)).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            lock.close()
            continue
        _reserved.append(lock)
        return port
    raise RuntimeError("no free port found")
