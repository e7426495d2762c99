"""Buckets in plain Python: one theoretical arrival time."""

from __future__ import annotations

from dataclasses import dataclass

from .segment import MINUTE, Segment, ceil_div, clock


@dataclass
class _Arrival:
    tat: int = 0  # theoretical arrival time, ns: when the bucket will be full again


class Bucket:
    """GCRA: a permit pushes the theoretical arrival time on by one interval; at most `burst` ahead of now."""

    def __init__(self, segment: Segment, name: str, per_minute: int, burst: int = 0) -> None:
        self.per_minute = per_minute
        self.configured = per_minute >= 0
        self.burst = burst or max(1, per_minute // 6)
        self.told = (0, 0)  # what the provider allows, and in how many ms
        self.state = segment.find("bucket", name, _Arrival)

    @property
    def interval(self) -> int:
        """What a permit is worth, ns: rounded up to a whole one, so that no fraction is ever given away."""
        if not self.configured:
            most, window_ms = self.told
            return window_ms * 1_000_000 // most if most else 0
        return ceil_div(MINUTE, self.per_minute)

    def cost(self, n: int) -> int:
        return n * self.interval

    @property
    def tolerance(self) -> int:
        """How far ahead of now the arrival time may be, ns."""
        return self.burst * self.interval

    def _try(self, n: int, now: int) -> tuple[int, int]:
        """The arrival time after n more permits, and the ns until that is allowed (-1: never)."""
        if self.per_minute < 0 or n == 0:
            return self.state.tat, 0
        if self.per_minute == 0 or n > self.burst:
            return self.state.tat, -1
        tat = max(self.state.tat, now) + self.cost(n)
        return tat, max(0, tat - now - self.tolerance)

    def acquire(self, n: int = 1, now: int = 0) -> int:
        now = now or clock()
        tat, wait = self._try(n, now)
        if wait == 0:
            self.state.tat = tat
        return wait

    def wait(self, n: int, now: int) -> int:
        return self._try(n, now)[1]

    def reserve(self, n: int, max_wait: int, now: int = 0) -> int:
        now = now or clock()
        tat, wait = self._try(n, now)
        if wait > max_wait:
            return -2 - wait
        if wait >= 0:
            self.state.tat = tat
        return wait

    def settle(self, delta: int, now: int = 0) -> None:
        now = now or clock()
        if self.per_minute <= 0 or delta == 0:
            return
        if delta > 0:
            self.state.tat = max(self.state.tat, now) + self.cost(delta)
        else:
            self.state.tat = max(0, self.state.tat - self.cost(-delta))

    def available(self, now: int = 0) -> int:
        """Permits free now; negative in debt."""
        now = now or clock()
        if self.per_minute < 0:
            return 2**63 - 1
        if self.per_minute == 0:
            return 0
        return (self.tolerance - max(0, self.state.tat - now)) // self.interval

    def pace(self, most: int, window_s: float, now: int = 0) -> None:
        """The provider allows so many in a window; what is used stays used."""
        now = now or clock()
        if self.configured or most < 0:
            return
        window_ms = int(window_s * 1000)
        same = most == self.told[0] and abs(window_ms - self.told[1]) <= 0.2 * self.told[1]
        if same:
            return
        before, self.told = self.interval, (most, window_ms if most else 0)
        self.per_minute, self.burst = (MINUTE // self.interval, most) if most else (-1, 0)
        if before and most and self.state.tat > now:
            self.state.tat = now + int((self.state.tat - now) / before * self.interval)

    def payable(self, n: int) -> int:
        """A request that is larger than the provider's limit is let in when the bucket is full."""
        return min(n, self.burst) if not self.configured and self.per_minute >= 0 else n

    def tighten(self, remaining: int, now: int = 0) -> None:
        now = now or clock()
        if self.per_minute > 0:
            self.state.tat = max(self.state.tat, now + self.tolerance - self.cost(remaining))
