"""The kind of file system that a path is on: local, network or layered."""

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
"""Kinds whose locks and shared memory may not work between all programs that can write the file."""
_NETWORK_FUSE = re.compile(r"fuse\.(?:sshfs|s3fs|gcsfuse|goofys|rclone|glusterfs|ceph|davfs|smbnetfs|vmhgfs)")

LAYERED = frozenset({"overlay", "aufs", "unionfs", "fuse.fuse-overlayfs"})
"""Kinds where a file of a lower layer becomes another file (inode) at the first write."""


def kind_of(path: str) -> str | None:
    """The kind of file system that a path is on, as ``ext4`` or ``nfs4``; None if unknown."""
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
        # Of several mounts at one point the last hides the others.
        if inside and len(point) >= best:
            best, kind = len(point), after.split(" ")[0]
    return kind


def is_network(kind: str | None) -> bool:
    """Whether other machines may use the files too."""
    return kind is not None and (kind in NETWORK or _NETWORK_FUSE.fullmatch(kind) is not None)


_OCTAL = re.compile(r"\\([0-7]{3})")
