"""Ends a call whose answer nobody wants any more, such as one whose caller has closed its connection."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from fastroute import errors
from fastroute.platform.timer import schedule, unschedule
from fastroute.routing.plan import Plan
from fastroute.types import Completion

from .call import Call
from .stream import Stream

_LOOK = 0.5  # seconds between two looks

_Answer = TypeVar("_Answer", bound="Completion | Stream")


class _Watch:
    """Asks at each look, in the timer thread, whether the answer is still wanted."""

    def __init__(self, cancelled: Callable[[], bool], call: Call) -> None:
        self._cancelled = cancelled
        self._call = call
        self.deadline = time.monotonic() + _LOOK

    def expire(self) -> bool:
        """See `platform.timer.Timed`: this one goes on until the call is cancelled."""
        if self._cancelled():
            self._call.cancel()
            return False
        self.deadline = time.monotonic() + _LOOK
        return True


def watched(
    cancelled: Callable[[], bool], call: Call, plan: Plan, run: Callable[[Call, Plan], _Answer]
) -> _Answer:
    """Runs the call, and ends it once ``cancelled`` returns True.

    Raises:
        errors.CallCancelled: that was so before there was an answer.
        errors.Error: as ``run``.
    """
    watch = _Watch(cancelled, call)
    try:
        schedule(watch)
        return run(call, plan)
    except errors.Error as error:
        if not call.cancelled:
            raise
        raise errors.CallCancelled(
            "the call was cancelled: cancelled() returned True", attempts=call.attempts
        ) from error
    finally:
        unschedule(watch)
