"""Latencies, health and the retry budget in plain Python: the formulas, kept in full precision."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from .segment import FAILURE, IGNORED, OK, SECOND, THROTTLED, USELESS, Segment, clock


@dataclass
class _FirstToken:
    mean: float = 0.0
    deviation: float = 0.0
    samples: int = 0
    timeouts: int = 0


@dataclass
class _Times:
    ewma: float = 0.0
    spread: float = 0.0
    ewma_at: int = 0
    failing: float = 0.0  # moving failure rate
    failing_at: int = 0
    samples: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    outcomes: deque[bool] = field(default_factory=lambda: deque(maxlen=50))
    lost: float = 0.0  # points of health, in whole tenths, as the core keeps them
    ok: int = 0
    failed: int = 0
    # Times to first token: without reasoning, and with.
    ttft: tuple[_FirstToken, _FirstToken] = field(default_factory=lambda: (_FirstToken(), _FirstToken()))


class Latency:
    """What an endpoint's answers have been like, the recent ones most."""

    def __init__(self, segment: Segment, name: str, *, tau_s: float = 10.0) -> None:
        self.tau = tau_s
        self.state = segment.find("latency", name, _Times)

    def fade(self, since: int, now: int) -> float:
        return math.exp(-max(0, now - since) / SECOND / self.tau)

    def record(self, outcome: int, latency_s: float = 0.0, now: int = 0) -> None:
        now, s = now or clock(), self.state
        if outcome == IGNORED:
            return
        lost = self.lost(now)
        if outcome == OK:
            lost = max(lost - 2, 0.0)
        elif outcome != THROTTLED:
            lost = min(lost + 15, 100.0)
        s.lost = math.floor(lost * 10) / 10
        s.failing = 0.9 * s.failing * self.fade(s.failing_at, now) + (0.0 if outcome == OK else 0.1)
        s.failing_at = now
        if outcome == OK:
            s.ok += 1
            s.outcomes.append(True)
            if latency_s > 0:  # 0: it went well, but nobody measured how long it took
                self._measure(latency_s, now)
        elif outcome in (FAILURE, USELESS):
            s.failed += outcome == FAILURE
            s.outcomes.append(False)

    def _measure(self, x: float, now: int) -> None:
        s = self.state
        before, w = s.ewma, self.fade(s.ewma_at, now)
        s.ewma = x if x > before else w * before + (1 - w) * x
        s.spread = 0.75 * s.spread + 0.25 * abs(x - before) if s.samples else x / 2
        s.ewma_at = now
        s.samples.appendleft(x)

    def ewma(self, now: int = 0) -> float:
        return self.state.ewma * self.fade(self.state.ewma_at, now or clock())

    @property
    def spread(self) -> float:
        return self.state.spread

    def success_rate(self, now: int = 0) -> float:
        return 1 - self.state.failing * self.fade(self.state.failing_at, now or clock())

    @property
    def count(self) -> int:
        return self.state.ok

    @property
    def failures(self) -> int:
        return self.state.failed

    def window(self) -> float:
        weights = [1 / (1 + 0.1 * i) for i in range(len(self.state.samples))]
        if not weights:
            return 0.0
        return math.fsum(w * x for w, x in zip(weights, self.state.samples)) / math.fsum(weights)

    def samples(self) -> list[float]:
        return list(self.state.samples)

    def lost(self, now: int) -> float:
        """Points of health lost; after 5 s without a result they fade with a time constant of 20 s."""
        return self.state.lost * math.exp(-max(0, now - self.state.failing_at - 5 * SECOND) / SECOND / 20)

    def health(self, now: int = 0) -> tuple[int, float]:
        seen = self.state.outcomes
        score = 100 - math.floor(self.lost(now or clock()) + 0.5)
        return score, (seen.count(False) / len(seen) if seen else 0.0)

    def unhealthy(self, now: int) -> bool:
        return self.lost(now) >= 30.1

    def mend(self) -> None:
        self.state.lost = 0.0

    def record_ttft(self, x: float, reasoning: bool = False) -> None:
        s = self.state.ttft[reasoning]
        if s.samples == 0:
            s.mean, s.deviation = x, x / 2
        else:
            s.deviation = 0.75 * s.deviation + 0.25 * abs(s.mean - x)
            s.mean = 0.875 * s.mean + 0.125 * x
        s.samples += 1
        s.timeouts = 0

    def record_ttft_timeout(self, reasoning: bool = False) -> None:
        self.state.ttft[reasoning].timeouts += 1

    def ttft_timeout(self, reasoning: bool = False) -> float:
        s = self.state.ttft[reasoning]
        if s.samples < 20:
            return 0.0
        return min(600.0, max(5.0, 1.5 * (s.mean + 4 * s.deviation)) * 2.0 ** min(s.timeouts, 16))


@dataclass
class _Balance:
    value: float = 0.0  # above or below the resting balance
    stamp: int = 0


class RetryBudget:
    """First attempts pay `ratio` in, a retry takes 1 out; the balance drifts back to its resting value."""

    CAP = 100  # times the resting balance

    def __init__(
        self,
        segment: Segment,
        name: str,
        *,
        ratio: float = 0.2,
        reserve_per_s: float = 1.0,
        ttl_s: float = 10.0,
    ) -> None:
        self.ratio, self.ttl, self.rest = ratio, ttl_s, reserve_per_s * ttl_s
        self.state = segment.find("retry", name, _Balance)

    def balance(self, now: int = 0) -> float:
        now, s = now or clock(), self.state
        return self.rest + s.value * math.exp(-max(0, now - s.stamp) / SECOND / self.ttl)

    def _set(self, balance: float, now: int) -> None:
        self.state.value, self.state.stamp = balance - self.rest, now

    def deposit(self, now: int = 0) -> None:
        now = now or clock()
        self._set(min(self.balance(now) + self.ratio, self.CAP * max(1.0, self.rest)), now)

    def withdraw(self, now: int = 0, half: bool = False) -> bool:
        now = now or clock()
        balance = self.balance(now)
        if balance - 1 < (0.5 * self.rest if half else 0):
            return False
        self._set(balance - 1, now)
        return True
