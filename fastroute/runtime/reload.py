"""Notices that the configuration should be read again: a hang-up signal, or a change of its files.

A thread waits for either and calls the client, which reads the configuration and returns the files to look
at. A file counts as changed once it stands still.

The signal's handler only puts an item into a queue: it runs between any two steps of the main thread, which
may hold any lock.
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

INTERVAL = 2.0  # seconds between two looks at the files
SETTLE = 0.2  # seconds after which a file that has changed is looked at again, for it may be half written


# ------------------------------------------------------------------------------------------------- the files


class Changes:
    """Whether files have changed since they were last read, by time, inode and size.

    A change counts once two looks in a row have seen the same, so that a file is not read while it is being
    written. A file that is missing counts like any other state of it.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self._read = _stamps(files)
        self._last = self._read

    @property
    def moving(self) -> bool:
        """Whether the last look saw something new, which the next one is to confirm."""
        return self._last != self._read

    def look(self) -> bool:
        """Looks at the files; True if they should be read now. Says so once for each change."""
        seen = _stamps(self._read)
        settled = seen == self._last
        self._last = seen
        if not settled or seen == self._read:
            return False
        self._read = seen
        return True

    def follow(self, files: Sequence[str]) -> None:
        """Looks at these from now on; those it knows are compared with what they were when last read."""
        fresh = _stamps([file for file in files if file not in self._read])
        self._read = {file: fresh[file] if file in fresh else self._read[file] for file in files}
        self._last = {file: fresh[file] if file in fresh else self._last[file] for file in files}


def _stamps(paths: Iterable[str]) -> dict[str, Stamp | None]:
    return {path: stamp(path) for path in paths}


# ------------------------------------------------------------------------------------------------ the watch


class FileWatch:
    """Calls ``act`` in a thread of its own whenever there is cause to read the configuration again.

    Args:
        mode: ``signal`` or ``change``.
        files: those to look at.
        act: a bound method, held weakly: reads the configuration again and returns the files to look at from
            then on. The watch ends when its object is gone.

    Raises:
        ConfigError: the signal cannot be listened to from here.

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
        """In a forked child: there is no thread yet; `ensure` starts one."""
        self._queue: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def ensure(self) -> None:
        """Starts the thread, if this process has none."""
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None and not self.stopped:
                self._thread = threading.Thread(
                    target=self._run, args=(self._queue,), name="fastroute-reload", daemon=True
                )
                self._thread.start()

    def wake(self) -> None:
        """Has the configuration read again, whatever the files look like."""
        self._queue.put(True)

    def stop(self) -> None:
        """Ends the thread once it is done with what it is at. May be called again."""
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
_previous: Any = signal.SIG_DFL  # what stood in the handler's place


def _listen(watch: FileWatch) -> None:
    global _listeners, _previous
    present = signal.getsignal(signal.SIGHUP)
    if present is not _on_hangup:
        try:
            signal.signal(signal.SIGHUP, _on_hangup)
        except ValueError:
            raise ConfigError(
                'fastroute.reload: "signal" is set, but this client is not made in the main thread, where '
                'Python listens to signals; must be made there, or be "change" or "off"'
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
