"""Whether a file is on a network file system, as the kernel tells (proc(5), /proc/PID/mountinfo).

Such file systems lack the locks or the shared memory that SQLite's WAL mode rests on. Where the
kernel tells nothing, nothing is said. Used by `sessions.sqlite_file`.
"""

from __future__ import annotations

import os
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_MOUNT_POINT, _FIRST_OPTIONAL = 4, 6

_NETWORK = frozenset({
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs", "ncpfs", "coda",
    "virtiofs", "gfs2", "ocfs2", "glusterfs", "s3fs", "sshfs",
})
"""Names of types; those behind ``fuse.`` are looked up without it."""


def network_file_system(file: Path, mounts: Path = _MOUNTS) -> str:
    """The type of the network file system that holds this file; empty when it is another one."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    found, longest = "", -1
    for line in lines:
        fields = line.split(" ")
        if len(fields) <= _FIRST_OPTIONAL or "-" not in fields[_FIRST_OPTIONAL:-1]:
            continue
        point = _unescaped(fields[_MOUNT_POINT])
        # Of several mounts on one point the last one counts.
        if len(point) >= longest and Path(os.path.abspath(file)).is_relative_to(point):
            found, longest = fields[fields.index("-", _FIRST_OPTIONAL) + 1], len(point)
    name = found.removeprefix("fuse.")
    return name if name in _NETWORK else ""


def _unescaped(point: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, character)
    return point
