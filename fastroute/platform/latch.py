"""A latch: threads wait for it until it is opened, once.

It does what `threading.Event` does, with one lock of the interpreter. An event has Python code around its
lock, and a MemoryError in that code may leave the lock held: then all threads that wait would wait for ever,
whatever their time-outs are.
"""

from __future__ import annotations

import threading


class Latch:
    """Closed until `open`; then all who wait go on, and nobody waits any more.

    Thread safety: all methods.
    """

    __slots__ = ("_closed", "_lock")

    def __init__(self) -> None:
        self._closed = True
        self._lock = threading.Lock()
        self._lock.acquire()

    @property
    def is_open(self) -> bool:
        return not self._closed

    def open(self) -> None:
        """Opens it. Idempotent; needs no memory."""
        self._closed = False
        self._pass_on()

    def wait(self, seconds: float = -1) -> bool:
        """Waits until it is open, at most so many seconds if that is not negative; returns whether it is."""
        try:
            if self._closed:
                self._lock.acquire(timeout=seconds)
        finally:  # also after an interrupt that came when the lock was acquired already
            if not self._closed:
                self._pass_on()
        return not self._closed

    def _pass_on(self) -> None:
        """Lets the next thread go on that waits."""
        try:
            self._lock.release()
        except RuntimeError:
            pass  # another thread has
