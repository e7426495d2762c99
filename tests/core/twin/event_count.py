"""Counts of events in plain Python: the moment of each."""

from __future__ import annotations

from .segment import Segment, clock


class EventCount:
    """Every event by its period."""

    def __init__(self, segment: Segment, name: str, *, periods: int = 60, period_s: int = 60) -> None:
        self.seen: dict[int, tuple[int, int]] = segment.find("events", name, dict)
        self.periods = periods
        self.span = period_s * 1_000_000_000
        self.all: list[int] = segment.find("events in all", name, list)

    def add(self, now: int = 0) -> None:
        self.all.append(now)
        period = (now or clock()) // self.span
        known, count = self.seen.get(period % self.periods, (-1, 0))
        if known <= period or known - period > self.periods:  # a period that far ahead is of no clock
            self.seen[period % self.periods] = (period, count + 1 if known == period else 1)

    def total(self) -> int:
        return len(self.all)

    def lately(self, periods: int, now: int = 0) -> int:
        period = (now or clock()) // self.span
        return sum(count for at, count in self.seen.values() if 0 <= period - at < min(periods, self.periods))
