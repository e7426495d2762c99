"""What kind of file system a path is on.

Owns reading the kernel's list of mounts and which kinds count as another machine's or as layers. What a
ledger does about it is `sqlite.py`'s and `postgres.py`'s.
"""

from __future__ import annotations

import os
import re

MOUNTS = "/proc/self/mountinfo"

NETWORK = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "davfs",
        "drvfs",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "prl_fs",
        "smb2",
        "smb3",
        "smbfs",
        "vboxsf",
        "virtiofs",
        "vmhgfs",
    }
)
"""Kinds whose locks and shared memory do not reach every program that can write the file."""
_NETWORK_FUSE = re.compile(r"fuse\.(?:sshfs|s3fs|gcsfuse|goofys|rclone|glusterfs|ceph|davfs|smbnetfs|vmhgfs)")

LAYERED = frozenset({"overlay", "aufs", "unionfs", "fuse.fuse-overlayfs"})
"""Kinds where a file that comes from a lower layer changes its identity at the first write."""


def kind_of(path: str) -> str | None:
    """The name of the file system that a path is on, as ``ext4`` or ``nfs4``; None where it is not known."""
    try:
        with open(MOUNTS, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.readlines()
    except OSError:
        return None
    real = os.path.realpath(path)
    best, kind = -1, None
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 5 or not after:
            continue
        point = _OCTAL.sub(lambda match: chr(int(match.group(1), 8)), fields[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        # The last of equals hides those before it.
        if inside and len(point) >= best:
            best, kind = len(point), after.split(" ")[0]
    return kind


def is_network(kind: str | None) -> bool:
    """Whether files there may be another machine's."""
    return kind is not None and (kind in NETWORK or _NETWORK_FUSE.fullmatch(kind) is not None)


_OCTAL = re.compile(r"\\([0-7]{3})")
