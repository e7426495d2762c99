"""Rows of endpoints for the tests of ranking and choosing, of the core and of its twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twin import FAILURE, OK

MS = 1_000_000
SECOND = 1000 * MS
T0 = 1_000_000 * SECOND
DOLLAR = 10**9  # per million tokens: a dollar for a million

Make = Callable[..., Any]
Row = dict[str, Any]


def ranking(core: Any, endpoints: list[Any], **columns: list[Any]) -> Any:
    n = len(endpoints)
    row: Row = {
        "models": [0] * n,
        "windows": [0] * n,
        "max_outputs": [0] * n,
        "capabilities": [0] * n,
        "input_prices": [DOLLAR] * n,
        "output_prices": [DOLLAR] * n,
        "qualities": [1.0] * n,
        "latencies": [0.0] * n,
    }
    return core.Ranking(endpoints, **(row | columns))


def call(endpoint: Any, outcome: int = OK, latency: float = 0.0, tokens: int = 0, now: int = T0) -> None:
    ticket = endpoint.admit(tokens, now)
    assert ticket >= 0
    endpoint.finish(ticket, outcome, latency, 0, now)


def trip(endpoint: Any, now: int = T0) -> int:
    for _ in range(5):
        call(endpoint, FAILURE, now=now)
    until: int = now + endpoint.reopens_in(now)
    assert until > now
    return until


def calibrated(core: Any, real: int, times: int) -> Any:
    calibration = core.Calibration()
    for _ in range(times):
        calibration.learn(100, real)
    return calibration
