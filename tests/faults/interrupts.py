"""Raises an exception at a chosen line of a call, as an interrupt or a killed greenlet would.

`KeyboardInterrupt` comes between two bytecodes of whatever runs, `gevent.GreenletExit` wherever a greenlet
waits: neither is an `Exception`, and both may come while other errors are being handled.
"""

from __future__ import annotations

import dis
import functools
import itertools
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from opcode_yield import real


class Interrupt(BaseException):
    """Stands for all that is no `Exception`."""


class Tracer:
    """Counts the lines of the chosen files that a call runs in this thread, and raises at one of them.

    Args:
        at: the line to raise at, counted from 1; 0 for none.
        parts: of the names of the files that count.
    """

    def __init__(self, at: int, parts: tuple[str, ...]) -> None:
        self.lines = 0
        self.where = ""
        self._at = at
        self._parts = real(parts)

    def run(self, call: Callable[[], Any]) -> bool:
        """Whether the call was interrupted; what it raised itself is raised."""
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            call()
        except Interrupt:
            return True
        finally:
            sys.settrace(before)
        return False

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "call":
            name = frame.f_code.co_filename
            return self._trace if any(part in name for part in self._parts) else None
        if event == "line" and frame.f_lasti not in _exits(frame.f_code):
            self.lines += 1
            if self.lines == self._at:
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"
                raise Interrupt
        return self._trace


@functools.cache
def _exits(code: CodeType) -> set[int]:
    """Where a `with` block is left in order, a handler begins, and the word `try`: no interrupt comes there.

    It looks for signals when a call has ended, a function begins or a loop turns, and at none of those places
    does a lock wait for its release outside the block that would release it.
    """
    starts = list(dis.findlinestarts(code))
    steps = list(dis.get_instructions(code))
    entries: set[int] = set()
    for step in steps:
        if step.opname in ("BEFORE_WITH", "SETUP_WITH"):
            entries.add(max((offset, line) for offset, line in starts if offset <= step.offset)[1])
    handlers = {step.argval for step in steps if step.opname == "SETUP_FINALLY"}  # until Python 3.10
    for step, after in itertools.pairwise(steps):
        if step.opname == "PUSH_EXC_INFO":
            handlers |= {step.offset, after.offset}
    first = {line: offset for offset, line in reversed(starts)}
    idle = {step.offset for step in steps if step.opname in ("NOP", "SETUP_FINALLY")}
    return idle | handlers | {offset for offset, line in starts if line in entries and offset != first[line]}
