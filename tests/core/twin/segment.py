"""What all parts of the twin share: the core's constants, its clock, and a segment that is a dictionary."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

OK, FAILURE, IGNORED, THROTTLED, USELESS = range(5)
CLOSED, OPEN, HALF_OPEN = range(3)
BLOCKED, BREAKER, BUSY, REQUESTS, TOKENS, TOO_LARGE = range(1, 7)
LATENCY, WEIGHTED, LEAST_BUSY, LOWEST_COST, LOWEST_USAGE, TWO_CHOICES, ORDERED, VALUE = range(8)

IN = 0
OUT_CAPABILITY, OUT_WINDOW, OUT_PRICE_CAP, OUT_BLOCKED, OUT_BREAKER, OUT_TOO_LARGE = range(1, 7)
SOFT_QUALITY, SOFT_LATENCY, SOFT_PRICE = range(7, 10)

SECOND = 1_000_000_000
MINUTE = 60 * SECOND

S = TypeVar("S")


def clock() -> int:
    """The monotonic clock, in nanoseconds."""
    return time.monotonic_ns()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


class Segment:
    """Where state lives: two objects of one kind with one name share it."""

    def __init__(self, cells: int = 16384) -> None:
        self.cells = cells
        self._states: dict[tuple[str, str], Any] = {}

    def find(self, kind: str, name: str, make: Callable[[], S]) -> S:
        state: S = self._states.setdefault((kind, name), make())
        return state
