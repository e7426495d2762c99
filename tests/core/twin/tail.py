"""The latencies of the last five minutes in plain Python: every call by itself, none in a bucket."""

from __future__ import annotations

from dataclasses import dataclass, field

from .segment import MINUTE, Segment, clock

_MINUTES = 5
_LEAST, _MOST = 0.001, 0.001 * 2**21


@dataclass
class _Minute:
    number: int
    calls: list[float] = field(default_factory=list)
    hedges: int = 0


class Tail:
    """What share of its calls were over by when, and how many hedges they allow."""

    def __init__(self, segment: Segment, name: str) -> None:
        self.minutes: dict[int, _Minute] = segment.find("tail", name, dict)

    def _now(self, now: int) -> _Minute | None:
        """The minute under way; nothing if a later one has begun in its place."""
        number = (now or clock()) // MINUTE
        known = self.minutes.get(number % _MINUTES)
        if known is None or known.number < number:
            known = self.minutes[number % _MINUTES] = _Minute(number)
        return known if known.number == number else None

    def _last(self, now: int) -> list[_Minute]:
        number = (now or clock()) // MINUTE
        return [each for each in self.minutes.values() if 0 <= number - each.number < _MINUTES]

    def record(self, latency_s: float, now: int = 0) -> None:
        minute = self._now(now)
        if minute is not None:
            minute.calls.append(min(max(latency_s, _LEAST), _MOST))

    def quantile(self, share: float, least: int = 1, now: int = 0) -> float:
        calls = sorted(call for minute in self._last(now) for call in minute.calls)
        if not calls or len(calls) < least:
            return 0.0
        return next((call for place, call in enumerate(calls, 1) if place >= share * len(calls)), calls[-1])

    def hedge(self, share: float, now: int = 0) -> bool:
        minute = self._now(now)
        if minute is None or self.hedges(now) + 1 > share * self.count(now):
            return False
        if any(each.number == minute.number + 1 for each in self.minutes.values()):
            return False  # the clock was read before the minute turned
        minute.hedges += 1
        return True

    def count(self, now: int = 0) -> int:
        return sum(len(minute.calls) for minute in self._last(now))

    def hedges(self, now: int = 0) -> int:
        return sum(minute.hedges for minute in self._last(now))
