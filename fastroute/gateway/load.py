"""Counts what is under way in this process: calls, in all and of each key, and the bytes of their bodies.

All of it is what a thread and its memory are occupied with, so it is counted for each process by itself, and
asked before a body is read.
"""

from __future__ import annotations

import threading
from collections import deque

from .limits import LimitReached
from .responses import Overloaded

_SOON = 1.0  # seconds after which a caller may try again; calls end all the time


class Load:
    """The calls and the bytes of bodies that are under way.

    Thread safety: all methods.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._bytes = 0
        self._of_keys: dict[str, int] = {}
        # Key and bytes of calls that have ended, until they are counted. A garbage collection may end a call
        # while this thread holds the lock, so the end of a call takes none.
        self._ended: deque[tuple[str, int]] = deque()

    def enter(self, key: str, most_of_key: int | None, most: int | None) -> Place:
        """Counts a call until its place is left.

        Args:
            key: the caller's name.
            most_of_key: the most calls of this key at once; None for any number.
            most: the most calls of all keys at once.

        Raises:
            LimitReached: the key has as many calls under way as it may have.
            Overloaded: all keys together have.
        """
        with self._lock:
            self._count_ended()
            own = self._of_keys.get(key, 0)
            if most_of_key is not None and own >= most_of_key:
                raise LimitReached(
                    f"the key has {own} calls at once, streams included, which is its limit; end one first",
                    code="too_many_calls_at_once",
                    retry_after=_SOON if most_of_key else None,
                )
            if most is not None and self._calls >= most:
                raise Overloaded(f"it serves {most} calls at once", "too_many_calls")
            self._calls += 1
            self._of_keys[key] = own + 1
        return Place(self, key)

    def check(self, size: int, most: int) -> None:
        """Checks whether another body may be read.

        Raises:
            Overloaded: with its bytes it would be more than ``most``.
        """
        with self._lock:
            self._check(size, most)

    def _check(self, size: int, most: int) -> None:
        self._count_ended()
        if self._bytes + size > most:
            raise Overloaded("requests of too many bytes are under way", "too_many_bytes")

    def add(self, size: int, most: int) -> None:
        """Counts bytes of a body, or raises as `check` does."""
        with self._lock:
            self._check(size, most)
            self._bytes += size

    def leave(self, key: str, size: int) -> None:
        """Ends a call with a body of ``size`` bytes; only its place calls this."""
        self._ended.append((key, size))

    def _count_ended(self) -> None:
        while self._ended:
            key, size = self._ended.popleft()
            self._calls -= 1
            self._bytes -= size
            left = self._of_keys[key] - 1
            if left:
                self._of_keys[key] = left
            else:
                del self._of_keys[key]  # so that only keys with calls take memory

    @property
    def figures(self) -> tuple[int, int]:
        """Calls, and bytes of bodies."""
        with self._lock:
            self._count_ended()
            return self._calls, self._bytes


class Place:
    """One call that is under way, and the bytes of its body.

    Thread safety: one thread adds bytes; `leave` may be called by any thread.
    """

    __slots__ = ("_key", "_left", "_load", "size")

    def __init__(self, load: Load, key: str) -> None:
        self._load = load
        self._key = key
        self._left = threading.Lock()
        self.size = 0

    def check(self, size: int, most: int) -> None:
        """Checks whether a body of ``size`` bytes may be read; see `Load.check`."""
        self._load.check(size, most)

    def add(self, size: int, most: int) -> None:
        """Counts bytes that have arrived; see `Load.add`."""
        self._load.add(size, most)
        self.size += size

    def leave(self) -> None:
        """Ends the call. Idempotent, also if two threads do it at once."""
        if self._left.acquire(blocking=False):
            self._load.leave(self._key, self.size)


__all__ = ["Load", "Place"]
