"""One thread for everything that is due at a time: the deadlines of requests, and alarms.

The thread starts when the first item is added, sleeps while there is none, and looks every 50 ms. An item's
action runs in this thread, up to one tick late; it must neither wait nor fail, since all others wait for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from . import forks

_TICK = 0.05  # seconds between two looks, so also how late an item may be
_QUIET_TICKS = 40  # ticks with nothing to watch before the thread goes to sleep


class Timed(Protocol):
    """An item: `expire` is called once ``deadline`` (time.monotonic) has passed.

    The deadline may be moved while the item waits.
    """

    @property
    def deadline(self) -> float: ...

    def expire(self) -> None: ...


class Alarm:
    """Calls a function at a time (time.monotonic).

    Thread safety: all methods.
    """

    __slots__ = ("_action", "deadline")

    def __init__(self, deadline: float, action: Callable[[], None]) -> None:
        self.deadline = deadline
        self._action = action
        schedule(self)

    def expire(self) -> None:
        self._action()

    def cancel(self) -> None:
        """Takes the alarm back, unless its function is running already."""
        unschedule(self)


class _TimerThread:
    """The items that wait, and the thread that looks at them."""

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

    def _look(self) -> None:
        # A function of its own: a name left over in the loop below would keep the last answer alive.
        now = time.monotonic()
        for item in list(self.items.values()):
            if item.deadline <= now:
                self.discard(item)
                item.expire()

    def _run(self) -> None:
        quiet = 0
        while True:
            if self.items:
                quiet = 0
                self._look()
            else:
                quiet += 1
                if quiet > _QUIET_TICKS:
                    # Cleared before the last look: an `add` after that look sees `_asleep` and sets it.
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
    """Has an item expire at its deadline."""
    _thread.add(item)


def unschedule(item: Timed) -> None:
    """Takes an item back; one that does not wait is left alone."""
    _thread.discard(item)


def pending() -> tuple[Timed, ...]:
    """The items that wait now."""
    return tuple(_thread.items.values())


def _after_fork() -> None:
    # The parent's thread is not in the child, and none of the parent's requests are.
    global _thread
    _thread = _TimerThread()


forks.in_child(_after_fork)
