"""Detects when to read the configuration again: after SIGHUP, or after a change of its files.

A thread waits for either and calls the client, which reads the configuration and returns the files to watch.
A file counts as changed when it does not change any more.

The signal handler only puts an item into a queue, because it interrupts the main thread anywhere, also while
that holds a lock.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any

from fastroute.errors import ConfigError
from fastroute.platform.files import Stamp, stamp

log = logging.getLogger("fastroute")

INTERVAL = 2.0  # seconds between two checks of the files
SETTLE = 0.2  # seconds until a changed file is checked again, since it may be incomplete


# ------------------------------------------------------------------------------------------------- the files


class Changes:
    """Whether files have changed since they were last read, by time, inode and size.

    A change counts when two checks in a row find the same, so that a file is not read while it is being
    written. That a file does not exist is a state like any other.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self._read = _stamps(files)
        self._last = self._read

    @property
    def moving(self) -> bool:
        """Whether the last check found a change that the next one must confirm."""
        return self._last != self._read

    def look(self) -> bool:
        """Checks the files; returns whether they should be read now, once for each change."""
        seen = _stamps(self._read)
        settled = seen == self._last
        self._last = seen
        if not settled or seen == self._read:
            return False
        self._read = seen
        return True

    def follow(self, files: Sequence[str]) -> None:
        """Sets the files to check; files that were checked before are compared with their last read state."""
        fresh = _stamps([file for file in files if file not in self._read])
        self._read = {file: fresh[file] if file in fresh else self._read[file] for file in files}
        self._last = {file: fresh[file] if file in fresh else self._last[file] for file in files}


def _stamps(paths: Iterable[str]) -> dict[str, Stamp | None]:
    return {path: stamp(path) for path in paths}


# ------------------------------------------------------------------------------------------------ the watch


class FileWatch:
    """Calls ``act`` in a separate thread whenever the configuration should be read again.

    Args:
        mode: ``signal`` or ``change``.
        files: the files to check.
        act: a bound method, referred to weakly: reads the configuration and returns the files to check from
            then on. The watch ends when the method's object is garbage-collected.

    Raises:
        ConfigError: signals cannot be handled in this thread.

    Thread safety: all methods; `wake` may be called from a signal handler.
    """

    def __init__(self, mode: str, files: Sequence[str], act: Callable[[], Sequence[str]]) -> None:
        self._changes = Changes(files) if mode == "change" else None
        self._act: weakref.WeakMethod[Any] = weakref.WeakMethod(act, lambda _: self.stop())
        self.stopped = False
        self.after_fork()
        if mode == "signal":
            _listen(self)

    def after_fork(self) -> None:
        """In a forked child: has no thread until `ensure` starts one."""
        self._queue: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def ensure(self) -> None:
        """Starts the thread unless this process has one."""
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None and not self.stopped:
                self._thread = threading.Thread(
                    target=self._run, args=(self._queue,), name="fastroute-reload", daemon=True
                )
                self._thread.start()

    def wake(self) -> None:
        """Makes the thread read the configuration again, whether or not the files have changed."""
        self._queue.put(True)

    def stop(self) -> None:
        """Ends the thread after its current work. Idempotent."""
        self.stopped = True
        self._queue.put(False)

    def _run(self, asked: queue.SimpleQueue[bool]) -> None:
        while not self.stopped:
            try:
                go = asked.get(timeout=self._pause())
            except queue.Empty:
                go = self._changes is not None and self._changes.look()
            if not go or self.stopped:
                continue
            act = self._act()
            if act is None:
                return
            files = act()
            del act  # otherwise an unused client would live until the next wait ends
            if self._changes is not None:
                self._changes.follow(files)

    def _pause(self) -> float | None:
        if self._changes is None:
            return None
        return SETTLE if self._changes.moving else INTERVAL


# ----------------------------------------------------------------------------------------------- the signal

_listeners: tuple[weakref.ref[FileWatch], ...] = ()
_previous: Any = signal.SIG_DFL  # the handler that was installed before


def _listen(watch: FileWatch) -> None:
    global _listeners, _previous
    present = signal.getsignal(signal.SIGHUP)
    if present is not _on_hangup:
        try:
            signal.signal(signal.SIGHUP, _on_hangup)
        except ValueError:
            raise ConfigError(
                'fastroute.reload: "signal" needs a client that is created in the main thread, where '
                'Python handles signals; create it there, or use "change" or "off"'
            ) from None
        _previous = present
    _listeners = (*(known for known in _listeners if known() is not None), weakref.ref(watch))


def _on_hangup(number: int, frame: FrameType | None) -> None:
    heard = False
    for known in _listeners:
        watch = known()
        if watch is not None and not watch.stopped:
            watch.wake()
            heard = True
    if callable(_previous):
        _previous(number, frame)
    elif _previous == signal.SIG_DFL and not heard:
        # No client is left: restore the handler from before.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGHUP)
