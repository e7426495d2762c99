"""Prints the table of docs/quality.md: false alarms of drift, and how late a real one is reported.

    python tools/drift_windows.py

Results are drawn at random with a fixed seed and go through `fastroute.quality.Rates`, as those of calls do.
"""

from __future__ import annotations

import random
import statistics

from fastroute.config import QualityConfig
from fastroute.events import DriftDetected, Hooks
from fastroute.quality import Rates

WINDOWS = (100, 300, 500, 1000)
SHARES = (0.99, 0.95, 0.90, 0.80)
RESULTS = 400_000  # at a constant rate
FALL = 0.10
FALLS = 100  # repetitions of the measured delay


def rates(window: int) -> tuple[Rates, list[DriftDetected]]:
    hooks = Hooks()
    events: list[DriftDetected] = []
    hooks.add(events.append, DriftDetected)
    return Rates(QualityConfig(window=window), hooks), events


def false_alarms(share: float, window: int, chance: random.Random) -> int:
    """How many drifts are reported for a constant rate."""
    series, events = rates(window)
    for _ in range(RESULTS):
        series.record("model", None, chance.random() < share)
    return len(events)


def delay(share: float, window: int, chance: random.Random) -> int:
    """How many results after a fall a drift is reported."""
    series, events = rates(window)
    for _ in range(11 * window):  # a window and its baseline
        series.record("model", None, chance.random() < share)
    events.clear()
    results = 0
    while not events:
        series.record("model", None, chance.random() < share - FALL)
        results += 1
    return results


def main() -> None:
    chance = random.Random(1)
    print("| rate |" + "".join(f" window {window} |" for window in WINDOWS))
    print("|---|" + "---:|" * len(WINDOWS))
    for share in SHARES:
        counts = [false_alarms(share, window, chance) for window in WINDOWS]
        print(f"| {share:.0%} |".replace("%", " %") + "".join(f" {count} |" for count in counts))
    print("| results until a fall is reported |", end="")
    for window in WINDOWS:
        delays = [delay(share, window, chance) for share in SHARES[:3] for _ in range(FALLS)]
        print(f" {statistics.median(delays):.0f} |", end="")
    print()


if __name__ == "__main__":
    main()
