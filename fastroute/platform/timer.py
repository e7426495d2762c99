"""The timer thread: runs what is due at a time, such as the deadlines of requests.

The thread starts with the first item, sleeps while there is none, and checks all items every 50 ms. An item
expires in this thread, up to one tick late. Its `expire` must not block, because it delays every other item.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol

from . import forks

log = logging.getLogger("fastroute")

_TICK = 0.05  # seconds between two checks; the most that an item may be late
_QUIET_TICKS = 40  # ticks without items until the thread sleeps


class Timed(Protocol):
    """An item: `expire` is called once ``deadline`` (time.monotonic) has passed.

    The deadline may change while the item is scheduled.
    """

    @property
    def deadline(self) -> float: ...

    def expire(self) -> bool: ...


class Alarm:
    """Calls a function at a time (time.monotonic).

    Thread safety: all methods.
    """

    __slots__ = ("_action", "deadline")

    def __init__(self, deadline: float, action: Callable[[], None]) -> None:
        self.deadline = deadline
        self._action = action

    def start(self) -> None:
        """Begins to wait. Apart from the constructor, so that its owner can cancel it however this ends."""
        schedule(self)

    def expire(self) -> bool:
        self._action()
        return False

    def cancel(self) -> None:
        """Cancels the alarm, unless its function is running already."""
        unschedule(self)


class _TimerThread:
    """The scheduled items and the thread that checks them."""

    def __init__(self) -> None:
        self.items: dict[int, Timed] = {}
        # A queue in C and not an event: a MemoryError in the methods of an event, which are in Python, may
        # leave its lock held for ever.
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._asleep = False
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, item: Timed) -> None:
        self.items[id(item)] = item
        if self._thread is None:
            with self._start:
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name="fastroute-timer", daemon=True)
                    thread.start()
                    # Not before: the system may refuse another thread, and then the next item tries again.
                    self._thread = thread
        elif self._asleep:
            self._bell.put(None)

    def discard(self, item: Timed) -> None:
        self.items.pop(id(item), None)

    def _expire_due(self) -> None:
        # Not inlined into the loop of `_run`: a name left over there would keep the last item alive.
        now = time.monotonic()
        for item in list(self.items.values()):
            # Not removed before and added again after: its owner may remove it for good in between.
            if item.deadline <= now and not _expired(item):
                self.discard(item)

    def _run(self) -> None:
        quiet = 0
        while True:
            try:
                quiet = self._check(quiet)
            except MemoryError:
                time.sleep(_TICK)  # without this thread no request of this process would have a deadline

    def _check(self, quiet: int) -> int:
        """Expires what is due and waits; returns how many times in a row there was nothing to look at."""
        if self.items:
            quiet = 0
            self._expire_due()
        else:
            quiet += 1
            if quiet > _QUIET_TICKS:
                while not self._bell.empty():
                    self._bell.get()
                # Set before the last check of `items`: an `add` after it sees `_asleep` and rings.
                self._asleep = True
                try:
                    if not self.items:
                        self._bell.get()
                finally:
                    self._asleep = False
                return 0
        time.sleep(_TICK)
        return quiet


def _expired(item: Timed) -> bool:
    """Whether the item has a later deadline now; False if it has expired."""
    try:
        return item.expire()
    except MemoryError:
        return True  # again at the next check
    except Exception:
        # The other items must not wait for ever because of this one.
        log.exception("an action that was due has failed")
        return False


_thread = _TimerThread()


def schedule(item: Timed) -> None:
    """Schedules an item to expire at its deadline."""
    _thread.add(item)


def unschedule(item: Timed) -> None:
    """Removes an item. Idempotent."""
    _thread.discard(item)


def pending() -> tuple[Timed, ...]:
    """The items scheduled now."""
    return tuple(_thread.items.values())


def _after_fork() -> None:
    # Neither the parent's thread nor its requests exist in the child.
    global _thread
    _thread = _TimerThread()


forks.in_child(_after_fork)
