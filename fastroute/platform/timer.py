"""The timer thread: runs what is due at a time, such as the deadlines of requests.

The thread starts with the first item, sleeps while there is none, and checks all items every 50 ms. An item
expires in this thread, up to one tick late. Its `expire` must neither block nor raise, because it delays
every other item.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from . import forks

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
        self._wake = threading.Event()
        self._asleep = False
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, item: Timed) -> None:
        self.items[id(item)] = item
        if self._thread is None:
            with self._start:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="fastroute-timer", daemon=True)
                    self._thread.start()
        elif self._asleep:
            self._wake.set()

    def discard(self, item: Timed) -> None:
        self.items.pop(id(item), None)

    def _expire_due(self) -> None:
        # Not inlined into the loop of `_run`: a name left over there would keep the last item alive.
        now = time.monotonic()
        for item in list(self.items.values()):
            # Not removed before and added again after: its owner may remove it for good in between.
            if item.deadline <= now and not item.expire():
                self.discard(item)

    def _run(self) -> None:
        quiet = 0
        while True:
            if self.items:
                quiet = 0
                self._expire_due()
            else:
                quiet += 1
                if quiet > _QUIET_TICKS:
                    # Cleared before the last check of `items`: an `add` after it sees `_asleep` and wakes.
                    self._wake.clear()
                    self._asleep = True
                    if not self.items:
                        self._wake.wait()
                    self._asleep = False
                    quiet = 0
                    continue
            time.sleep(_TICK)


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
