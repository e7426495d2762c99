"""Files whose `flock` says that this process, and no other, is at work.

Owns opening and closing them so that no such lock outlives its process. A forked child gets copies of its
parent's descriptors, and with them a share in its locks: were they left open, a dead parent's lock would be
held for as long as its child lives. So every such descriptor is registered, and a child closes them all.

The registry's mutex is held across `fork`, so that none is ever between being opened and being registered.
(A fork that runs no hooks may find one there: its entries then wait until that child has ended too.) Objects
that the parent had open are to be dropped in the child, never closed: their descriptors are gone, and the
numbers may already mean other files.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

from . import forks

_open: set[int] = set()


def open_private(path: str, flags: int) -> int:
    """Opens a file for its owner only, never through a link, and registers the descriptor.

    Raises:
        OSError: as `os.open`.
    """
    with forks.blocked():
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        _open.add(fd)
    return fd


def close(fd: int) -> None:
    """Closes a registered descriptor, and with it gives up its lock."""
    with forks.blocked():
        _open.discard(fd)
        os.close(fd)


def claim(fd: int) -> bool:
    """Takes the file's lock for good; False if another holds it, or did and has deleted the file."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(fd).st_nlink > 0


def _close_inherited() -> None:
    """In the child, once: closes the parent's descriptors; the parent's locks stay the parent's."""
    global _open
    inherited, _open = _open, set()
    for fd in inherited:
        with suppress(OSError):  # a program that becomes a daemon has closed it
            os.close(fd)


forks.in_child(_close_inherited)
