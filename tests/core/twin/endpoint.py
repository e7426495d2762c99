"""Endpoints in plain Python: a bucket or two, a breaker, latencies, and the tickets that are out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from .breaker import Breaker
from .bucket import Bucket
from .latency import Latency, RetryBudget
from .segment import (
    BLOCKED,
    BREAKER,
    BUSY,
    CLOSED,
    FAILURE,
    MINUTE,
    OK,
    OPEN,
    REQUESTS,
    SECOND,
    THROTTLED,
    TOKENS,
    TOO_LARGE,
    Segment,
    clock,
)


@dataclass
class _Flight:
    tickets: dict[int, int] = field(default_factory=dict)  # ticket -> breaker ticket
    issued: int = 0
    used: float = 0.0  # tokens of the last minute, decayed
    used_at: int = 0
    bearable: float | None = None  # calls at once it has borne; None: not known yet
    shrunk_at: int = 0
    # Latency without a queue: its mean over so many calls, with so many at once, since a quarter of a second.
    reference: tuple[float, int, int, int] | None = None


class Endpoint:
    """One model at one provider: limits, breaker and latency, admitted to and finished in one step each."""

    def __init__(
        self,
        segment: Segment,
        name: str,
        *,
        rpm: int = -1,
        request_burst: int = 0,
        tpm: int = -1,
        token_burst: int = 0,
        max_in_flight: int = 200,
        weight: float = 1.0,
        tau_s: float = 10.0,
        adaptive: bool = False,
        **breaker: Any,
    ) -> None:
        self.name, self.max_in_flight, self.weight = name, max_in_flight, weight
        self.adaptive = adaptive
        self.requests = Bucket(segment, f"{name}/requests", rpm, request_burst)
        self.tokens = Bucket(segment, f"{name}/tokens", tpm, token_burst)
        self.breaker = Breaker(segment, name, **breaker)
        self.latency = Latency(segment, name, tau_s=tau_s)
        self.retry = RetryBudget(segment, name)
        self.flight = segment.find("flight", name, _Flight)

    def reopens_in(self, now: int = 0) -> int:
        return self.breaker.reopens_in(now)

    @property
    def in_flight(self) -> int:
        return len(self.flight.tickets)

    @property
    def borne(self) -> float:
        known = self.flight.bearable
        return min(20.0 if known is None else known, self.max_in_flight)

    @property
    def bearable(self) -> float | None:
        return self.borne if self.adaptive else None

    @property
    def held(self) -> float:
        """Calls at once that are let in now: fewer while the latency without a queue is measured."""
        reference = self.flight.reference
        return min(self.borne, reference[2]) if reference and reference[1] < 15 else self.borne

    def _measure(self, x: float, now: int) -> None:
        limit, tick = self.borne, now // 250_000_000 & 0xFFFF
        if self.flight.reference is None:
            self.flight.reference = (0.0, 0, int(max(limit, 1)), tick)
            return
        mean, count, most, begun = self.flight.reference
        since = 0.25 * ((tick - begun) & 0xFFFF)
        if count < 15:
            if count > 0 or since >= 2 * mean:
                mean = x if count == 0 else mean + (x - mean) / (count + 1)
                self.flight.reference = (mean, count + 1, most, begun)
        elif since >= min(max(20 * mean, 10), 600) and self.in_flight + 1 >= limit / 2:
            self.flight.reference = (mean, 0, int(max(limit / 2, 1)), tick)

    def _queueing(self) -> bool:
        latest = self.latency.samples()[:20]
        reference = self.flight.reference
        if reference is None or reference[1] < 15 or len(latest) < 15:
            return False
        return sum(latest) / len(latest) > 1.5001 * reference[0]

    def _adapt(self, outcome: int, latency_s: float, now: int) -> None:
        limit, flight = self.borne, self.flight
        since = now // 1_000_000 - flight.shrunk_at
        queueing = False
        if outcome == OK and latency_s > 0:
            self._measure(latency_s, now)
            queueing = self._queueing()
        if queueing:
            if flight.bearable is None or since >= 1000:
                least = max(flight.reference[2] if flight.reference else 1, 1)
                flight.bearable, flight.shrunk_at = max(limit * 0.9, min(limit, least)), now // 1_000_000
        elif outcome == OK and self.in_flight + 1 >= limit / 2:
            flight.bearable = min(limit + 1 / limit, self.max_in_flight)
        elif outcome in (FAILURE, THROTTLED) and (flight.bearable is None or since >= 1000):
            flight.bearable, flight.shrunk_at = max(limit * 0.9, 1.0), now // 1_000_000

    def hurry(self, now: int = 0) -> bool:
        return self.breaker.hurry(now)

    def _refusal(self, tokens: int, now: int, reserved: bool) -> tuple[int, int]:
        """(reason, wait in ns), or (0, 0): it would be admitted now."""
        if self.never(0 if reserved else tokens):
            return TOO_LARGE, 0
        if now < self.breaker.state_.blocked_until:
            return BLOCKED, self.breaker.state_.blocked_until - now
        s = self.breaker.state_
        if not self.breaker.would_allow(now):
            return BREAKER, (s.until if s.open else s.lease) - now
        if self.in_flight >= self.max_in_flight or (self.adaptive and self.in_flight >= int(self.held)):
            return BUSY, 0
        if not reserved and (wait := self.requests.wait(1, now)):
            return REQUESTS, wait
        if not reserved and (wait := self.tokens.wait(self.tokens.payable(tokens), now)):
            return TOKENS, wait
        return 0, 0

    def never(self, tokens: int) -> bool:
        """No waiting would let such a request in."""
        return (
            self.max_in_flight == 0
            or self.requests.wait(1, 1) < 0
            or self.tokens.wait(self.tokens.payable(tokens), 1) < 0
        )

    def wait(self, tokens: int = 0, now: int = 0) -> int:
        reason, wait = self._refusal(tokens, now or clock(), False)
        return -(wait << 3 | reason)

    def admit(self, tokens: int = 0, now: int = 0, reserved: bool = False) -> int:
        now, flight = now or clock(), self.flight
        reason, wait = self._refusal(tokens, now, reserved)
        if reason:
            return -(wait << 3 | reason)
        if not reserved:
            assert self.requests.acquire(1, now) == 0
            assert self.tokens.acquire(self.tokens.payable(tokens), now) == 0
        flight.issued += 1
        flight.tickets[flight.issued] = self.breaker.allow(now)
        self._use(tokens, now)
        return flight.issued

    def reserve(self, tokens: int, max_wait: int, now: int = 0) -> int:
        now = now or clock()
        if self.never(tokens):
            return -TOO_LARGE
        tokens = self.tokens.payable(tokens)
        waits = {REQUESTS: self.requests.wait(1, now), TOKENS: self.tokens.wait(tokens, now)}
        for reason, wait in waits.items():
            if wait > max_wait:
                return -(wait << 3 | reason)
        self.requests.reserve(1, max_wait, now)
        self.tokens.reserve(tokens, max_wait, now)
        return max(waits.values())

    def unreserve(self, tokens: int, now: int = 0) -> None:
        self.requests.settle(-1, now)
        self.tokens.settle(-self.tokens.payable(tokens), now)

    def finish(
        self, ticket: int, outcome: int, latency_s: float = 0.0, token_delta: int = 0, now: int = 0
    ) -> int:
        now = now or clock()
        if ticket not in self.flight.tickets:
            return 0
        change = self.breaker.record(self.flight.tickets.pop(ticket), outcome, now)
        self.latency.record(outcome, latency_s, now)
        if change == CLOSED:
            self.latency.mend()
        if self.adaptive:
            self._adapt(outcome, latency_s, now)
        self.tokens.settle(token_delta, now)
        self._use(token_delta, now)
        return {OPEN: 1, CLOSED: 2}.get(change, 0)

    def extend(self, ticket: int, lease_s: float, now: int = 0) -> None:
        if ticket in self.flight.tickets:
            self.breaker.extend(self.flight.tickets[ticket], int(lease_s * SECOND), now or clock())

    def began(self, ticket: int, now: int = 0) -> int:
        its = self.flight.tickets.get(ticket, 0)
        change = self.breaker.record(its, OK, now or clock()) if its & 1 else -1
        if change == CLOSED:
            self.latency.mend()
        return {OPEN: 1, CLOSED: 2}.get(change, 0)

    def undo(self, ticket: int, tokens: int, now: int = 0) -> None:
        now = now or clock()
        if ticket not in self.flight.tickets:
            return
        self.breaker.cancel(self.flight.tickets.pop(ticket), now)
        self.unreserve(tokens, now)
        self._use(-tokens, now)

    def _use(self, tokens: int, now: int) -> None:
        self.flight.used, self.flight.used_at = max(0.0, self.usage(now) + tokens), now

    def usage(self, now: int = 0) -> float:
        age = ((now or clock()) - self.flight.used_at) / MINUTE
        return self.flight.used * math.exp(-max(0.0, age))

    def state(self, now: int = 0) -> int:
        return self.breaker.state(now)

    def blocked(self, now: int = 0) -> tuple[int, int]:
        return self.breaker.blocked(now)

    def block(self, until_ns: int, reason: int) -> None:
        self.breaker.block(until_ns, reason)

    def unblock(self) -> None:
        self.breaker.unblock()

    def deposit(self, now: int = 0) -> None:
        self.retry.deposit(now)

    def withdraw(self, now: int = 0) -> bool:
        return self.retry.withdraw(now)

    def record_ttft(self, x: float, reasoning: bool = False) -> None:
        self.latency.record_ttft(x, reasoning)

    def record_ttft_timeout(self, reasoning: bool = False) -> None:
        self.latency.record_ttft_timeout(reasoning)

    def ttft_timeout(self, reasoning: bool = False) -> float:
        return self.latency.ttft_timeout(reasoning)

    def latencies(self) -> list[float]:
        return self.latency.samples()

    def health(self, now: int = 0) -> tuple[int, float]:
        return self.latency.health(now)

    def ewma(self, now: int = 0) -> float:
        return self.latency.ewma(now)

    def window(self) -> float:
        return self.latency.window()

    def success_rate(self, now: int = 0) -> float:
        return self.latency.success_rate(now)

    @property
    def counts(self) -> tuple[int, int]:
        return self.latency.count, self.latency.failures

    def available_requests(self, now: int = 0) -> int:
        return self.requests.available(now)

    def available_tokens(self, now: int = 0) -> int:
        return self.tokens.available(now)

    def pace(
        self,
        requests: int = -1,
        requests_window_s: float = 60.0,
        tokens: int = -1,
        tokens_window_s: float = 60.0,
        now: int = 0,
    ) -> None:
        self.requests.pace(requests, requests_window_s, now)
        self.tokens.pace(tokens, tokens_window_s, now)

    @property
    def paced(self) -> bool:
        return self.requests.told[0] > 0 or self.tokens.told[0] > 0

    def tighten(self, remaining_requests: int = -1, remaining_tokens: int = -1, now: int = 0) -> None:
        for bucket, remaining in ((self.requests, remaining_requests), (self.tokens, remaining_tokens)):
            if remaining >= 0:
                bucket.tighten(remaining, now)

    def load(self, now: int = 0) -> float:
        """What a call more would meet here; smaller is better.

        Unmeasured: nothing while idle and not known to fail, so that it gets tried; else as good as a call of
        a million seconds, so that one call tries it and what only ever fails does not stay first.
        """
        now, times = now or clock(), self.latency
        failing = 1 - times.success_rate(now)
        unhealthy = times.unhealthy(now)
        if times.state.samples:
            seconds = (times.state.ewma + times.spread) * times.fade(times.state.ewma_at, now)
        elif self.in_flight or failing >= 0.05 or unhealthy:
            seconds = 1e6
        else:
            return 0.0
        trust = max(1 - failing, 0.01) ** 2 * self.weight * self.breaker.ramp(now)
        return seconds * (self.in_flight + 1) / trust * (1e6 if unhealthy else 1)
