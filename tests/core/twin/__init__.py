"""The core's state in plain Python: the same classes, methods and answers, written to be read.

The reference implementation of Bucket, Breaker, Latency, RetryBudget, Tail, Endpoint and Ranking. The tests
run it and `fastroute._core` with the same operations and compare every answer. It has no cells, worker slots
and reaping, which only exist in memory that processes share. It is not thread-safe, slow, and exact where the
core packs floats.

Units are the core's: ``now`` in integer nanoseconds (0 reads the monotonic clock), latencies in seconds,
prices in nano-dollars per million tokens. Where the core draws a random number the twin is told the outcome
(`Breaker.open_until`), or leaves the choice to the test (`Ranking` compares keys, not tie-breaks).
"""

from .breaker import Breaker
from .bucket import Bucket
from .endpoint import Endpoint
from .event_count import EventCount
from .latency import Latency, RetryBudget
from .ranking import Calibration, Ranked, Ranking
from .segment import (
    BLOCKED,
    BREAKER,
    BUSY,
    CLOSED,
    FAILURE,
    HALF_OPEN,
    IGNORED,
    IN,
    LATENCY,
    LEAST_BUSY,
    LOWEST_COST,
    LOWEST_USAGE,
    OK,
    OPEN,
    ORDERED,
    OUT_BLOCKED,
    OUT_BREAKER,
    OUT_CAPABILITY,
    OUT_PRICE_CAP,
    OUT_TOO_LARGE,
    OUT_WINDOW,
    REQUESTS,
    SOFT_LATENCY,
    SOFT_PRICE,
    SOFT_QUALITY,
    THROTTLED,
    TOKENS,
    TOO_LARGE,
    TWO_CHOICES,
    USELESS,
    VALUE,
    WEIGHTED,
    Segment,
    clock,
)
from .tail import Tail

__all__ = [
    "BLOCKED",
    "BREAKER",
    "BUSY",
    "CLOSED",
    "FAILURE",
    "HALF_OPEN",
    "IGNORED",
    "IN",
    "LATENCY",
    "LEAST_BUSY",
    "LOWEST_COST",
    "LOWEST_USAGE",
    "OK",
    "OPEN",
    "ORDERED",
    "OUT_BLOCKED",
    "OUT_BREAKER",
    "OUT_CAPABILITY",
    "OUT_PRICE_CAP",
    "OUT_TOO_LARGE",
    "OUT_WINDOW",
    "REQUESTS",
    "SOFT_LATENCY",
    "SOFT_PRICE",
    "SOFT_QUALITY",
    "THROTTLED",
    "TOKENS",
    "TOO_LARGE",
    "TWO_CHOICES",
    "USELESS",
    "VALUE",
    "WEIGHTED",
    "Breaker",
    "Bucket",
    "Calibration",
    "Endpoint",
    "EventCount",
    "Latency",
    "Ranked",
    "Ranking",
    "RetryBudget",
    "Segment",
    "Tail",
    "clock",
]
