"""Where the core's state lives: in this process and what it forks, or in a file that others share.

Owns the file: its place and name, who may use it, making it whole before anybody sees it, and setting aside
what does not fit. What is in it is the core's (`fastroute._core.Segment`); which objects work on it is
`state.py`.

A file is made under another name, with all its space, and then renamed; one that does not fit is renamed
away. It is never made shorter or longer and never written over, since other processes have it mapped.
Making and renaming are done under the lock of a file beside it. Whoever works in a file holds a shared
lock on it for as long, which the kernel takes away from the dead: so a file of another pid namespace is
either in use there, or left over.

What ``machine`` leaves in memory is removed by whoever starts there later, once nobody has used it for an
hour. A file that nobody works in could be about to be opened; so it is removed under the lock under which it
would be, and that lock's own file goes last: whoever gets hold of one without a name tries again.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b

from attrs import frozen

from fastroute import _core, errors
from fastroute.config import Config

log = logging.getLogger("fastroute")

_MEMORY_FOLDER = "/dev/shm"
_PATIENCE = 10.0  # seconds to wait for another process that makes the same file
_ABANDONED = 3600.0  # seconds unused after which a file of a machine's state is removed
_LOCK, _ASIDE, _NEW = ".lock", ".aside", ".new"  # what follows a file's name in those beside it
_KEEP = ".keep"  # nobody but the file knows what was spent: there is no ledger
_MACHINE_FILE = re.compile(r"(.+\.[0-9]+-[0-9a-f]+(?:\.[0-9a-f]+)?)(?:\.lock|\.aside|\.new|\.keep)?")
_PRIVATE = 0o077  # permission bits that nobody but the owner may have
# What a machine that is in order may bring: it costs the sharing and not the service.
_SCARCE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EFBIG)


@frozen(eq=False)
class Home:
    """A segment, and where it is.

    Attributes:
        kind: ``memory``, ``machine`` or ``file``: what was asked for.
        path: of the file, or None if the segment is this process's and that of its forks.
        reason: why fewer processes share it than was asked for, or None.
    """

    segment: _core.Segment
    kind: str = "memory"
    path: str | None = None
    reason: str | None = None


class _UnavailableError(Exception):
    """There can be no shared file at present; the message says why."""


def open_home(config: Config) -> Home:
    """The segment that ``config.local_state`` asks for, made or joined.

    A machine without room for it costs the sharing: the segment is then this process's own, which is logged
    and told in `Home.reason`.

    Raises:
        ConfigError: the place is wrong, or somebody else could read or change the state there.
    """
    state = config.local_state
    if state == "memory":
        return Home(_core.Segment())
    kind = "machine" if state.partition(":")[0] == "machine" else "file"
    try:
        path = machine_path(config) if kind == "machine" else state
        found, segment = _open(path)
        segment.slot()
        if kind == "machine":
            if not config.ledger:
                _mark(found + _KEEP)
            remove_abandoned(os.path.dirname(path))
    except _UnavailableError as problem:
        return _alone(kind, str(problem))
    except _core.SegmentFullError as problem:
        return _alone(kind, str(problem))
    reason = None
    if found != path:
        reason = f"{path} is in use in another pid namespace; what is counted there is not counted here"
        log.warning("state: %s", reason)
    return Home(segment, kind, found, reason)


def machine_path(config: Config) -> str:
    """The file of ``state = "machine"``: in a folder of this user's own, named after the configuration.

    The name stands for the providers (not for limits and models, which may change while others are at work),
    the ledger and the budgets' names; or for the name that was given.

    Raises:
        ConfigError: the folder is there, but is not this user's alone.
    """
    uid = os.geteuid()
    base = _MEMORY_FOLDER if os.path.isdir(_MEMORY_FOLDER) else tempfile.gettempdir()
    folder = os.path.join(base, f"fastroute-{uid}")
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    except OSError as problem:
        raise _UnavailableError(f"{folder} cannot be made: {problem.strerror}") from None
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != uid or status.st_mode & _PRIVATE:
        raise errors.ConfigError(
            f"fastroute.state: {folder} must be a folder of user {uid} that nobody else can open (mode 0700)"
        )
    name = config.local_state.partition(":")[2] or _fingerprint(config)
    return os.path.join(folder, f"{name}.{_core.LAYOUT}-{_pid_namespace():x}")


def remove_abandoned(folder: str) -> None:
    """Removes the files of a machine's state that nobody uses and nobody has used for an hour."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    bases: dict[str, list[str]] = {}
    for name in names:
        match = _MACHINE_FILE.fullmatch(name)
        if match:
            bases.setdefault(os.path.join(folder, match[1]), []).append(os.path.join(folder, name))
    for base, paths in bases.items():
        lock, keep = base + _LOCK, base + _KEEP
        files = [path for path in paths if path not in (lock, keep)]
        if keep in paths and base in files:
            continue
        try:
            with _locked(lock, 0.0):
                left = [path for path in files if not _remove_if_abandoned(path)]
                if not left:
                    for path in (keep, lock):
                        with suppress(FileNotFoundError):
                            os.unlink(path)
        except (OSError, errors.ConfigError, _UnavailableError):
            continue  # in the hands of somebody else, or nothing of ours


def _remove_if_abandoned(path: str) -> bool:
    """Removes a file, under its lock, if it is abandoned; whether it is gone."""
    fd = _open_private(path, os.O_RDWR)
    if fd is None:
        return True
    try:
        if time.time() - os.fstat(fd).st_mtime < _ABANDONED or _in_use(fd):
            return False
        try:
            segment = _core.Segment.in_file(fd)
        except _core.SegmentMisfitError:
            pass  # of an earlier start, a container that is gone, or no segment at all
        else:
            # A daemon that has closed all descriptors has lost its lock, but still works in it.
            segment.reap()
            unused = segment.tended == 0 or _core.clock() - segment.tended > _ABANDONED * 1e9
            if segment.workers_known or not unused:
                return False
        os.unlink(path)
        return True
    finally:
        os.close(fd)


def _mark(path: str) -> None:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except OSError as problem:
        raise _refusal(path, problem) from None


def _fingerprint(config: Config) -> str:
    providers = sorted(
        (name, at.format, at.base_url, at.api_key_env, at.api_key_file)
        for name, at in config.providers.items()
    )
    ledger = config.ledger
    if ledger and "://" not in ledger:
        ledger = os.path.abspath(ledger)
    text = repr((providers, ledger, sorted(budget.name for budget in config.budgets)))
    return blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


def _alone(kind: str, why: str) -> Home:
    reason = f"limits, breakers and budgets are this process's own, shared with no other: {why}"
    log.warning("state: %s", reason)
    return Home(_core.Segment(), kind, None, reason)


def _pid_namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _open(path: str) -> tuple[str, _core.Segment]:
    """The segment of a path and where it was found: beside the path, if that is another pid namespace's."""
    if not os.path.exists("/proc/sys/kernel/random/boot_id"):
        raise _UnavailableError("whether a file is of this start of the machine can be told on Linux only")
    with _locked(path + _LOCK):
        segment = _join(path)
    if segment is None:
        path = f"{path}.{_pid_namespace():x}"
        with _locked(path + _LOCK):
            segment = _join(path)
        if segment is None:
            raise errors.ConfigError(f"fastroute.state: {path} is in use in two pid namespaces")
    return path, segment


def _join(path: str) -> _core.Segment | None:
    """The segment in a file, made if there is none that fits; None if another pid namespace uses it."""
    fd = _open_private(path, os.O_RDWR)
    if fd is None:
        return _make(path)
    try:
        segment = _core.Segment.in_file(fd)
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.utime(fd)  # what is written to its memory does not show in its time
        return segment
    except _core.SegmentMisfitError as misfit:
        if misfit.reason in ("boot", "namespace") and _in_use(fd):
            if misfit.reason == "namespace":
                return None
            raise errors.ConfigError(
                f"fastroute.state: {path} is in use on another machine; "
                "must be a path of this machine's own, or a Redis server that both can ask"
            ) from None
        level = logging.INFO if misfit.reason in ("boot", "namespace") else logging.WARNING
        log.log(level, "state: %s %s; it is set aside as %s%s", path, misfit, os.path.basename(path), _ASIDE)
    except OSError as problem:
        raise _refusal(path, problem) from None
    finally:
        os.close(fd)
    try:
        os.replace(path, path + _ASIDE)
    except OSError as problem:
        raise _refusal(path, problem) from None
    return _make(path)


def _make(path: str) -> _core.Segment:
    new = path + _NEW
    try:
        with _removed_on_failure(new):
            if os.path.lexists(new):
                os.unlink(new)  # of a process that was killed here: we hold the lock
            fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                # All of its space now: memory that a full disk cannot give later ends whoever touches it.
                os.posix_fallocate(fd, 0, _core.Segment.size())
                segment = _core.Segment.in_file(fd, fresh=True)
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            finally:
                os.close(fd)
            os.rename(new, path)
    except OSError as problem:
        raise _refusal(path, problem) from None
    return segment


@contextmanager
def _removed_on_failure(path: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        try:
            os.unlink(path)
        except OSError:
            pass
        raise


def _in_use(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


@contextmanager
def _locked(path: str, patience: float = _PATIENCE) -> Iterator[None]:
    """Keeps other processes from making, setting aside or removing the file beside this one."""
    fd = _open_private(path, os.O_RDWR | os.O_CREAT)
    assert fd is not None
    try:
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise _UnavailableError(f"another process has held {path} for too long") from None
                time.sleep(0.005)
                continue
            except OSError as problem:
                raise _refusal(path, problem) from None
            if os.fstat(fd).st_nlink:
                break
            # It was removed with what was abandoned here, and others go by a new one.
            named = _open_private(path, os.O_RDWR | os.O_CREAT)
            assert named is not None
            os.close(fd)
            fd = named
        yield
        # Not only by closing: a child that was forked meanwhile has a copy of the descriptor.
        fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def _open_private(path: str, flags: int) -> int | None:
    """Opens a regular file that is this user's alone, never through a link; None if it is not there.

    Raises:
        ConfigError: it is something else.
    """
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    except FileNotFoundError:
        if flags & os.O_CREAT:
            raise errors.ConfigError(
                f"fastroute.state: the folder of {path} is not there, must be made first"
            ) from None
        return None
    except OSError as problem:
        raise _refusal(path, problem) from None
    status = os.fstat(fd)
    uid = os.geteuid()
    if stat.S_ISREG(status.st_mode) and status.st_uid == uid and not status.st_mode & _PRIVATE:
        return fd
    os.close(fd)
    raise errors.ConfigError(
        f"fastroute.state: {path} must be a file of user {uid} that nobody else can open (mode 0600); "
        f"it is {stat.filemode(status.st_mode)} of user {status.st_uid}"
    )


def _refusal(path: str, problem: OSError) -> Exception:
    if problem.errno in _SCARCE:
        return _UnavailableError(f"{path}: {problem.strerror}")
    if problem.errno == errno.ELOOP:
        return errors.ConfigError(f"fastroute.state: {path} is a symbolic link, must be a file of its own")
    return errors.ConfigError(
        f"fastroute.state: {path} cannot be used: {problem.strerror}; "
        f"must be a file that user {os.geteuid()} can make and write"
    )
