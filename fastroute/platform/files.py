"""Private files, file locks, and stamps that show whether a file has changed.

Files that the package creates (shared state, keys, journals) have mode 0600 and are never opened through a
symbolic link. A file that cannot be opened safely raises `UnsafeFileError`, an `OSError` whose ``strerror``
says what is there and what would be right, so callers report it like any other failure to open a file.

Locks are those of `flock`. A forked child inherits its parent's descriptors and shares their locks: a lock
of a dead parent would be held for as long as a child lives. So every descriptor that is opened here is
registered, and a child closes them all. In the child, do not close an object that holds such a descriptor:
the number may already stand for another file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from . import forks

_POLL_SECONDS = 0.002
_NEW = os.O_CREAT | os.O_EXCL
_open: set[int] = set()
# `os.open` fails with these for something other than a regular file: a link, a folder, a pipe or socket.
_NOT_REGULAR = (errno.ELOOP, errno.EISDIR, errno.ENXIO)
_KINDS = {stat.S_IFREG: "a regular file", stat.S_IFDIR: "a folder", stat.S_IFLNK: "a symbolic link"}


class UnsafeFileError(OSError):
    """What is at a path is not a regular file, not a folder, or not private, as it must be."""


# -------------------------------------------------------------------------------------------- opening files


def open_file(path: str, flags: int, *, private: bool = True, follow: bool = False) -> int:
    """Opens a regular file; a new one has mode 0600. Close the descriptor with `close`.

    Args:
        flags: as of `os.open`.
        private: whether it must belong to this user or root and be closed to other users.
        follow: whether the path may be a symbolic link.

    Raises:
        UnsafeFileError: it is not a regular file, or not private.
        OSError: as `os.open`.
    """
    # Without O_NONBLOCK, opening a named pipe would wait for its other end.
    flags |= os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        with forks.blocked():
            fd = os.open(path, flags, 0o600)
            try:
                _open.add(fd)
            except MemoryError:
                os.close(fd)
                raise
    except OSError as error:
        if error.errno in _NOT_REGULAR:
            _require(path, os.stat(path) if follow else os.lstat(path), private=False)
        raise
    try:
        _require(path, os.fstat(fd), private=private)
    except BaseException:
        close(fd)
        raise
    return fd


def close(fd: int) -> None:
    """Closes a registered descriptor, which releases its lock."""
    with forks.blocked():
        _open.discard(fd)
        os.close(fd)


@contextmanager
def closing(fd: int) -> Iterator[int]:
    """Closes a registered descriptor at the end of the block."""
    try:
        yield fd
    finally:
        close(fd)


def check(path: str, *, private: bool = True) -> None:
    """Checks a file as `open_file` does, but does not open it.

    Closing a file drops all POSIX locks that this process has on it, such as those of SQLite.
    """
    _require(path, os.lstat(path), private=private)


def _require(path: str, found: os.stat_result, *, private: bool, kind: int = stat.S_IFREG) -> None:
    present, uid = stat.S_IFMT(found.st_mode), os.geteuid()
    if present != kind:
        reason = f"it is {_KINDS.get(present, 'a device, pipe or socket')}, not {_KINDS[kind]}"
    elif private and (found.st_uid not in (uid, 0) or found.st_mode & 0o077):
        mode = 600 if kind == stat.S_IFREG else 700
        shown = f"{stat.filemode(found.st_mode)} of user {found.st_uid}"
        reason = f"it is {shown}, must be private to user {uid} (chmod {mode})"
    else:
        return
    raise UnsafeFileError(errno.EPERM, reason, path)


def _close_inherited() -> None:
    global _open
    inherited, _open = _open, set()
    for fd in inherited:
        with suppress(OSError):  # a program that becomes a daemon has closed it
            os.close(fd)


forks.in_child(_close_inherited)

# ---------------------------------------------------------------------------------------------- making files


def create(path: str, content: bytes = b"") -> None:
    """Creates a private file and waits for the disk.

    Raises:
        FileExistsError: the path exists.
        OSError: it cannot be created or written; then it is removed.
    """
    with closing(open_file(path, _NEW | os.O_WRONLY, private=False)) as fd:
        try:
            write(fd, content)
        except BaseException:
            os.unlink(path)
            raise


@contextmanager
def replacing(path: str, scratch: str) -> Iterator[int]:
    """Replaces a file by a new private one atomically: readers see the old one or the new one.

    The block writes to the descriptor that it gets. Then the new file is synced and renamed to ``path``. If
    the block raises, the new file is removed and the old one stays.

    Args:
        scratch: path of the new file until then, in the same folder. No other process may use it: a file
            there is removed first.
    """
    with suppress(FileNotFoundError):
        os.unlink(scratch)
    with closing(open_file(scratch, _NEW | os.O_RDWR, private=False)) as fd:
        try:
            yield fd
            os.fsync(fd)
            os.replace(scratch, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(scratch)
            raise


def write(fd: int, content: bytes) -> None:
    """Writes all of ``content`` and waits for the disk."""
    with open(fd, "wb", closefd=False) as stream:
        stream.write(content)
        stream.flush()
        os.fsync(fd)


def make_private_folder(path: str) -> None:
    """Makes a folder that only this user can open, unless it exists.

    Raises:
        UnsafeFileError: the path exists and is not such a folder.
        OSError: it cannot be made.
    """
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    _require(path, os.lstat(path), private=True, kind=stat.S_IFDIR)


def sync_folder(path: str) -> None:
    """Waits until the names in a folder are on disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# ----------------------------------------------------------------------------------------------------- locks


def lock(fd: int, *, shared: bool = False, timeout: float = 0.0) -> bool:
    """Locks a file until `unlock` or `close`; False if it is not free within ``timeout`` seconds."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)


def unlock(fd: int) -> None:
    """Releases a lock, also for forked children that have a copy of the descriptor."""
    fcntl.flock(fd, fcntl.LOCK_UN)


def is_deleted(fd: int) -> bool:
    """Whether an open file has been removed."""
    return os.fstat(fd).st_nlink == 0


# --------------------------------------------------------------------------------------------------- changes


class Stamp(NamedTuple):
    """Differs after a change of the file, unless both versions are of one tick of the system's clock."""

    mtime_ns: int
    inode: int
    size: int


def stamp(path: str) -> Stamp | None:
    """The stamp of a file; None if it does not exist or cannot be examined. Follows links."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return None
    return Stamp(found.st_mtime_ns, found.st_ino, found.st_size)


def identity(path: str) -> tuple[int, int] | None:
    """Device and inode of a file, which stay the same for its life; None as in `stamp`. Follows no links."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
