"""Opens the memory segment of the core's state: this process's own, or a file that processes share.

A new file is created under another name with all its space, and then renamed. A file that does not fit (an
earlier boot, another layout) is renamed away. A file is never resized or overwritten, since other processes
have it mapped. Creating and renaming are done under the lock of a second file beside it. Each process that
uses a file holds a shared lock on it, which the kernel releases when the process dies. So a file of another
pid namespace is either in use or left over, and the lock tells which.

Files of ``machine`` that nothing has used for an hour are removed when a later process starts. Another
process could be about to open one, so it is removed under the same lock as it is opened. The lock's file is
removed last; a process that has locked a lock file without a name tries again with a new one.
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

from attrs import fields, frozen

from fastroute import _core, errors
from fastroute.config import Config, ProviderConfig
from fastroute.platform import files, hosting
from fastroute.platform.notices import notice

log = logging.getLogger("fastroute")

MEMORY_FOLDER = "/dev/shm"
"""Folder of the machine's state; the folder for temporary files is used where it does not exist."""
MACHINE = "machine"
_PATIENCE = 10.0  # seconds to wait for another process that creates the same file
ABANDONED = 3600.0
"""Seconds unused after which a file of a machine's state is removed."""
_LOCK, _ASIDE, _NEW = ".lock", ".aside", ".new"  # suffixes of the files beside a segment file
_KEEP = ".keep"  # marks a file that is not removed: without a ledger only it knows what was spent
_MACHINE_FILE = re.compile(r"(.+\.[0-9]+-[0-9a-f]+(?:\.[0-9a-f]+)?)(?:\.lock|\.aside|\.new|\.keep)?")
# What a process has said of its host, so that many clients say it once.
_shared_under_host: set[str] = set()
_alone_under_host: set[str] = set()
# Errors of a machine without resources: the state is then not shared, but calls are served.
_SCARCE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EFBIG)


@frozen(eq=False)
class Home:
    """A segment, and where it is.

    Attributes:
        kind: ``memory``, ``machine`` or ``file``, as configured.
        path: the file, or None if only this process and its forks use the segment.
        reason: why fewer processes share it than configured, or None.
    """

    segment: _core.Segment
    kind: str = "memory"
    path: str | None = None
    reason: str | None = None


def known_segment(config: Config) -> _core.Segment | None:
    """The segment in the file of the configured state, if processes of this machine use one now."""
    state = config.local_state
    if state in (None, "memory"):
        return None
    try:
        path = machine_path(config) if state.partition(":")[0] == "machine" else state
        with files.closing(files.open_file(path, os.O_RDWR)) as fd:
            return _core.Segment.in_file(fd)
    except (OSError, _UnavailableError, _core.SegmentMisfitError, errors.ConfigError):
        return None


class _UnavailableError(Exception):
    """A shared file is not possible at present; the message says why."""


def open_home(config: Config, default_state: str | None = None) -> Home:
    """The segment that ``config.local_state`` names, created or opened.

    If the machine has no room for a file, the segment is this process's own; a warning is logged and the
    reason is in `Home.reason`.

    Args:
        default_state: what the program uses if the configuration does not say. None: ``machine`` under a host
            that runs the program in several processes (`platform/hosting.py`), otherwise ``memory``.

    Raises:
        ConfigError: if the path cannot be used, or other users could read or change the state there. A state
            that neither the configuration nor the program has asked for is no error, but this process's own.
    """
    state, host = config.local_state or default_state, None
    if state is None:
        host = hosting.prefork_host()
        state = "memory" if host is None else MACHINE
    if state == "memory":
        return Home(_core.Segment())
    kind = MACHINE if state.partition(":")[0] == MACHINE else "file"
    try:
        path = machine_path(config) if kind == MACHINE else state
        found, segment = _open(path)
        # Claimed now, so that a file in which all slots are taken shows here and not in the middle of a call.
        segment.slot()
        if kind == MACHINE:
            if not config.ledger_place and (host is None or config.budgets):
                with _judging(found + _KEEP), suppress(FileExistsError):
                    files.create(found + _KEEP)
            remove_abandoned(os.path.dirname(path))
    except (_UnavailableError, _core.SegmentFullError) as problem:
        return _alone(kind, str(problem), config, host)
    except errors.ConfigError as problem:
        if host is None:
            raise
        return _alone(kind, str(problem), config, host)
    reason = None
    if found != path:
        reason = f"{path} is in use in another pid namespace; its counts are not shared with this process"
        notice(f"state: {reason}")
    if host is not None and found not in _shared_under_host:
        _shared_under_host.add(found)
        log.info(
            "state: %s runs several processes, so limits, breakers and budgets are shared by all processes "
            "with this configuration on this machine, in %s; set [fastroute] state to choose another place",
            host,
            found,
        )
    return Home(segment, kind, found, reason)


def describe(config: Config, default_state: str | None = None) -> str:
    """Which state a program with this configuration joins, for people; creates nothing.

    Args:
        default_state: as for `open_home`.
    """
    state = config.local_state or default_state
    shared = f"{_machine_file(config)} ({MACHINE}: all programs of this user with "
    named = (config.local_state or "").partition(":")[2]
    shared += "this name)" if named else "these providers, ledger and budgets)"
    if state is None:
        elsewhere = ", ".join(("Flask", "the gateway", *hosting.HOSTS))
        text = f"memory (this process and its forks); in {elsewhere}: {shared}"
    elif state == "memory":
        text = "memory (this process and its forks)"
    else:
        text = shared if state.partition(":")[0] == MACHINE else f"{state} (all programs that open this file)"
    if config.over_redis:
        text = f"{config.state} (many machines); on this machine {text}"
    return text


def present_segment(config: Config) -> _core.Segment:
    """The segment of a configured state whose file exists; otherwise an empty one. Creates no file."""
    state = config.local_state
    if state is not None and state != "memory":
        path = _machine_file(config) if state.partition(":")[0] == MACHINE else state
        with suppress(OSError, _core.SegmentMisfitError):
            fd = files.open_file(path, os.O_RDWR)
            with files.closing(fd):
                return _core.Segment.in_file(fd)
    return _core.Segment(cells=64)


def machine_path(config: Config) -> str:
    """The file of ``state = "machine"``, in a directory that only this user can open.

    Its name is the configured one, or a hash of the providers, the ledger and the budgets' names. Limits and
    models are not part of the hash, since they may change while other processes run. Nor is the working
    directory, so that a web application and a cron job with one configuration meet.

    Raises:
        ConfigError: if the directory exists but other users could open it.
    """
    path = _machine_file(config)
    folder = os.path.dirname(path)
    try:
        files.make_private_folder(folder)
    except files.UnsafeFileError as problem:
        raise _refusal(folder, problem) from None
    except OSError as problem:
        raise _UnavailableError(f"{folder} cannot be created: {problem.strerror}") from None
    return path


def _machine_file(config: Config) -> str:
    base = MEMORY_FOLDER if os.path.isdir(MEMORY_FOLDER) else tempfile.gettempdir()
    name = (config.local_state or "").partition(":")[2] or _fingerprint(config)
    file = f"{name}.{_core.LAYOUT}-{pid_namespace():x}"
    return os.path.join(base, f"fastroute-{os.geteuid()}", file)


def remove_abandoned(folder: str) -> None:
    """Removes the files of ``machine`` states that no process uses and none has used for an hour."""
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
        # Without waiting: a process that holds the lock is opening the file, so it is not abandoned.
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
    """Removes a file, under its lock, if it is abandoned; returns whether it is gone."""
    try:
        fd = files.open_file(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    with files.closing(fd):
        # The file's time is that of the last process that joined. The exclusive lock cannot be had while any
        # process holds its shared one.
        if time.time() - os.fstat(fd).st_mtime < ABANDONED or not files.lock(fd):
            return False
        try:
            segment = _core.Segment.in_file(fd)
        except _core.SegmentMisfitError:
            pass  # of an earlier boot, of a container that is gone, or not a segment
        else:
            # A daemon that closed all its descriptors has lost the lock but still uses the mapping: it has a
            # slot, or has looked for dead workers lately.
            segment.reap()
            unused = segment.tended == 0 or _core.clock() - segment.tended > ABANDONED * 1e9
            if segment.workers_known or not unused:
                return False
        os.unlink(path)
        return True


def _fingerprint(config: Config) -> str:
    providers = sorted(
        (name, at.format, at.base_url, at.api_key_env, _spelled_once(at.api_key_file))
        for name, at in config.providers.items()
    )
    ledger = config.ledger_place
    if "://" not in ledger:
        ledger = _spelled_once(ledger)
    text = repr((providers, ledger, sorted(budget.name for budget in config.budgets)))
    return blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


def _spelled_once(path: str) -> str:
    """An absolute path without links in its directories; what is relative to nothing known stays as it is.

    A working directory is known by its real path, while a setting may name the same file through a link. The
    last part is kept: secrets are often links to files that a rotation replaces.
    """
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name) if os.path.isabs(path) else path


def _alone(kind: str, why: str, config: Config, host: str | None) -> Home:
    """A segment of this process's own, in place of one that could not be shared.

    A state that nobody has asked for is missed only where something is counted, and warned of once.
    """
    reason = f"limits, breakers and budgets are not shared with other processes: {why}"
    if host is None:
        notice(f"state: {reason}")
    elif _counts(config) and why not in _alone_under_host:
        _alone_under_host.add(why)
        notice(
            f"state: {host} runs several processes, and each has the whole of every limit and budget: {why}; "
            "set [fastroute] state to a file or a Redis server that they can share"
        )
    return Home(_core.Segment(), kind, None, reason)


def _counts(config: Config) -> bool:
    """Whether the configuration limits or budgets anything; a provider's default in flight does not count."""
    usual = fields(ProviderConfig).max_in_flight.default
    limits = [config.limits(entry) for entry in config.endpoints]
    return (
        bool(config.budgets)
        or config.policy.max_in_flight is not None
        or any((each.rpm, each.tpm, each.max_in_flight) != (None, None, usual) for each in limits)
    )


def pid_namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _open(path: str) -> tuple[str, _core.Segment]:
    """The segment of a path, and its actual path: one beside it if another pid namespace uses that."""
    if not os.path.exists("/proc/sys/kernel/random/boot_id"):
        raise _UnavailableError(
            "a state file needs the boot id in /proc/sys/kernel/random, which only Linux has"
        )
    segment = _locked_join(path)
    if segment is None:
        path = f"{path}.{pid_namespace():x}"
        segment = _locked_join(path)
        if segment is None:
            raise errors.ConfigError(
                f"fastroute.state: {path} is in use in two pid namespaces; use another path"
            )
    return path, segment


def _locked_join(path: str) -> _core.Segment | None:
    with _judging(path), _locked(path + _LOCK, _PATIENCE):
        return _join(path)


def _join(path: str) -> _core.Segment | None:
    """The segment in a file, created if none fits; None if another pid namespace uses the file."""
    try:
        fd = files.open_file(path, os.O_RDWR)
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
                    "use a local path, or a Redis server for both machines"
                ) from None
            aside = path + _ASIDE
            level = logging.INFO if elsewhere else logging.WARNING
            log.log(level, "state: %s %s; it is renamed to %s", path, misfit, os.path.basename(aside))
        else:
            files.lock(fd, shared=True)
            os.utime(fd)  # writing to mapped memory does not change the file's time
            return segment
    # Renamed, not removed or overwritten: a process that has it mapped keeps working on it.
    os.replace(path, aside)
    return _make(path)


def _make(path: str) -> _core.Segment:
    # Complete before it gets its name, so that no process can open it half made. The scratch name may be left
    # over from a killed process; this one holds the lock.
    with files.replacing(path, path + _NEW) as fd:
        # Allocate all space now: on a full disk, touching an unallocated page would kill the process.
        os.posix_fallocate(fd, 0, _core.Segment.size())
        segment = _core.Segment.in_file(fd, fresh=True)
        files.lock(fd, shared=True)
    return segment


@contextmanager
def _locked(path: str, timeout: float) -> Iterator[None]:
    """Holds a lock file, under which the segment file beside it is created, renamed or removed."""
    end = time.monotonic() + timeout
    locked = False
    while not locked:
        with files.closing(files.open_file(path, os.O_RDWR | os.O_CREAT)) as fd:
            if not files.lock(fd, timeout=end - time.monotonic()):
                raise _UnavailableError(f"another process holds the lock {path}")
            # A lock file that was removed as abandoned locks nothing: others open a new one of its name.
            locked = not files.is_deleted(fd)
            if locked:
                try:
                    yield
                finally:
                    files.unlock(fd)  # a child forked without hooks may keep a copy of the descriptor open


@contextmanager
def _judging(path: str) -> Iterator[None]:
    """Translates an OSError of a file into an error of the state."""
    try:
        yield
    except OSError as problem:
        raise _refusal(problem.filename or path, problem) from None


def _refusal(path: str, problem: OSError) -> Exception:
    if problem.errno in _SCARCE:
        return _UnavailableError(f"{path}: {problem.strerror}")
    reason = problem.strerror
    if isinstance(problem, FileNotFoundError):
        reason = "its directory does not exist; create it first"
    elif not isinstance(problem, files.UnsafeFileError):
        reason = f"{reason}; must be a file that user {os.geteuid()} can create and write"
    return errors.ConfigError(f"fastroute.state: {path} cannot be used: {reason}")
