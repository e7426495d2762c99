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
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b

from attrs import frozen

from fastroute import _core, errors
from fastroute.config import Config
from fastroute.platform import files

log = logging.getLogger("fastroute")

_MEMORY_FOLDER = "/dev/shm"
_PATIENCE = 10.0  # seconds to wait for another process that makes the same file
_ABANDONED = 3600.0  # seconds unused after which a file of a machine's state is removed
_LOCK, _ASIDE, _NEW = ".lock", ".aside", ".new"  # what follows a file's name in those beside it
_KEEP = ".keep"  # nobody but the file knows what was spent: there is no ledger
_MACHINE_FILE = re.compile(r"(.+\.[0-9]+-[0-9a-f]+(?:\.[0-9a-f]+)?)(?:\.lock|\.aside|\.new|\.keep)?")
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
                with _judging(found + _KEEP), suppress(FileExistsError):
                    files.create(found + _KEEP)
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
    base = _MEMORY_FOLDER if os.path.isdir(_MEMORY_FOLDER) else tempfile.gettempdir()
    folder = os.path.join(base, f"fastroute-{os.geteuid()}")
    try:
        files.make_private_folder(folder)
    except files.UnsafeFileError as problem:
        raise _refusal(folder, problem) from None
    except OSError as problem:
        raise _UnavailableError(f"{folder} cannot be made: {problem.strerror}") from None
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
        found = [path for path in paths if path not in (lock, keep)]
        if keep in paths and base in found:
            continue
        try:
            with _locked(lock, 0.0):
                left = [path for path in found if not _remove_if_abandoned(path)]
                if not left:
                    for path in (keep, lock):
                        with suppress(FileNotFoundError):
                            os.unlink(path)
        except (OSError, _UnavailableError):
            continue  # another process holds it, or it is not a file of ours


def _remove_if_abandoned(path: str) -> bool:
    """Removes a file, under its lock, if it is abandoned; whether it is gone."""
    try:
        fd = files.open_private(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    with files.closing(fd):
        if time.time() - os.fstat(fd).st_mtime < _ABANDONED or not files.lock(fd):
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
    segment = _locked_join(path)
    if segment is None:
        path = f"{path}.{_pid_namespace():x}"
        segment = _locked_join(path)
        if segment is None:
            raise errors.ConfigError(f"fastroute.state: {path} is in use in two pid namespaces")
    return path, segment


def _locked_join(path: str) -> _core.Segment | None:
    with _judging(path), _locked(path + _LOCK, _PATIENCE):
        return _join(path)


def _join(path: str) -> _core.Segment | None:
    """The segment in a file, made if there is none that fits; None if another pid namespace uses it."""
    try:
        fd = files.open_private(path, os.O_RDWR)
    except FileNotFoundError:
        return _make(path)
    with files.closing(fd):
        try:
            segment = _core.Segment.in_file(fd)
        except _core.SegmentMisfitError as misfit:
            elsewhere = misfit.reason in ("boot", "namespace")
            if elsewhere and not files.lock(fd):
                if misfit.reason == "namespace":
                    return None
                raise errors.ConfigError(
                    f"fastroute.state: {path} is in use on another machine; "
                    "must be a path of this machine's own, or a Redis server that both can ask"
                ) from None
            aside = path + _ASIDE
            level = logging.INFO if elsewhere else logging.WARNING
            log.log(level, "state: %s %s; it is set aside as %s", path, misfit, os.path.basename(aside))
        else:
            files.lock(fd, shared=True)
            os.utime(fd)  # writing to mapped memory does not change the file's time
            return segment
    os.replace(path, aside)
    return _make(path)


def _make(path: str) -> _core.Segment:
    # The scratch name may be left over from a process that was killed here. This one holds the lock.
    with files.replacing(path, path + _NEW) as fd:
        # All of its space now: a full disk would later kill the process that touches a page without space.
        os.posix_fallocate(fd, 0, _core.Segment.size())
        segment = _core.Segment.in_file(fd, fresh=True)
        files.lock(fd, shared=True)
    return segment


@contextmanager
def _locked(path: str, timeout: float) -> Iterator[None]:
    """Keeps other processes from making, setting aside or removing the file beside this one."""
    end = time.monotonic() + timeout
    locked = False
    while not locked:
        with files.closing(files.open_private(path, os.O_RDWR | os.O_CREAT)) as fd:
            if not files.lock(fd, timeout=end - time.monotonic()):
                raise _UnavailableError(f"another process has held {path} for too long")
            # One that was removed with abandoned files locks nothing: others open a new file of its name.
            locked = not files.is_deleted(fd)
            if locked:
                try:
                    yield
                finally:
                    files.unlock(fd)  # a child forked without hooks may keep a copy of the descriptor open


@contextmanager
def _judging(path: str) -> Iterator[None]:
    """Turns a failure at a file into what it means for the state."""
    try:
        yield
    except OSError as problem:
        raise _refusal(problem.filename or path, problem) from None


def _refusal(path: str, problem: OSError) -> Exception:
    if problem.errno in _SCARCE:
        return _UnavailableError(f"{path}: {problem.strerror}")
    reason = problem.strerror
    if isinstance(problem, FileNotFoundError):
        reason = "its folder does not exist, must be made first"
    elif not isinstance(problem, files.UnsafeFileError):
        reason = f"{reason}, must be a file that user {os.geteuid()} can make and write"
    return errors.ConfigError(f"fastroute.state: {path} cannot be used: {reason}")
