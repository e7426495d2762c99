"""Breakers in plain Python: a state, an epoch, and a list of what happened lately."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from .segment import CLOSED, FAILURE, HALF_OPEN, IGNORED, OK, OPEN, SECOND, Segment, clock


@dataclass
class _Circuit:
    open: bool = False
    half_open: bool = False
    until: int = 0  # open: when the first probe may go
    epoch: int = 0
    consecutive: int = 0
    openings: int = 0  # k of the open time
    closed_at: int = 0
    window: deque[tuple[int, bool]] = field(default_factory=deque)  # (bucket of time, failed)
    lease: int = 0  # half-open: when the probe under way is given up; 0: none under way
    probes_passed: int = 0
    blocked_until: int = 0
    blocked_reason: int = 0


class Breaker:
    """Closed, open, half-open; a ticket carries the epoch it was given in."""

    def __init__(
        self,
        segment: Segment,
        name: str,
        *,
        failures: int = 5,
        rate: float = 0.5,
        min_calls: int = 20,
        window_s: float = 30.0,
        open_s: float = 5.0,
        max_open_s: float = 300.0,
        reset_s: float = 60.0,
        probe_lease_s: float = 35.0,
        probes_to_close: int = 2,
        ramp_s: float = 10.0,
    ) -> None:
        self.failures, self.rate, self.min_calls = failures, rate, min_calls
        self.bucket_ns = int(window_s * SECOND) // 10
        self.open_ns, self.max_open_ns = int(open_s * SECOND), int(max_open_s * SECOND)
        self.reset_ns, self.lease_ns = int(reset_s * SECOND), int(probe_lease_s * SECOND)
        self.probes_to_close, self.ramp_ns = probes_to_close, int(ramp_s * SECOND)
        self.state_ = segment.find("breaker", name, _Circuit)

    # A ticket here is epoch * 2 + probe bit; the epoch moves with every state change and every probe.

    def allow(self, now: int = 0) -> int:
        now, s = now or clock(), self.state_
        if not s.open and not s.half_open:
            return s.epoch * 2
        if s.open:
            if now < s.until:
                return -(s.until - now)
            s.open, s.half_open, s.probes_passed, s.lease = False, True, 0, 0
        if now < s.lease:
            return -(s.lease - now)
        s.lease = now + self.lease_ns
        s.epoch += 1
        return s.epoch * 2 + 1

    def would_allow(self, now: int) -> bool:
        s = self.state_
        return now >= s.until if s.open else not s.half_open or now >= s.lease

    def probe_due(self, now: int) -> bool:
        """A probe could go now and none is under way."""
        s = self.state_
        return (s.open or s.half_open) and self.would_allow(now)

    def record(self, ticket: int, outcome: int, now: int = 0) -> int:
        now, s = now or clock(), self.state_
        if ticket // 2 != s.epoch or s.open:
            return -1
        if s.half_open:
            if not ticket & 1 or s.lease == 0:  # 0: this probe has reported already
                return -1
            s.lease = 0
            if outcome == FAILURE:
                return self._open(now)
            if outcome != OK:
                return -1
            s.probes_passed += 1
            if s.probes_passed < self.probes_to_close:
                return -1
            s.half_open, s.closed_at = False, now
            s.consecutive = 0
            s.window.clear()
            s.epoch += 1
            return CLOSED
        if outcome not in (OK, FAILURE):
            return -1
        bucket = now // self.bucket_ns
        s.window.append((bucket, outcome == FAILURE))
        s.consecutive = s.consecutive + 1 if outcome == FAILURE else 0
        if s.consecutive >= self.failures or (outcome == FAILURE and self._too_many(bucket)):
            return self._open(now)
        return -1

    def extend(self, ticket: int, lease_ns: int, now: int) -> None:
        s = self.state_
        if ticket & 1 and ticket // 2 == s.epoch and s.half_open and s.lease:
            s.lease = max(s.lease, now + lease_ns)

    def cancel(self, ticket: int, now: int = 0) -> None:
        self.record(ticket, IGNORED, now)

    def _too_many(self, bucket: int) -> bool:
        live = [failed for at, failed in self.state_.window if bucket - 10 < at <= bucket]
        return len(live) >= self.min_calls and sum(live) >= self.rate * len(live)

    def _open(self, now: int) -> int:
        s = self.state_
        if not s.half_open and now - s.closed_at >= self.reset_ns:
            s.openings = 0
        self.last_open_ns = min(self.max_open_ns, self.open_ns << min(s.openings, 40))
        s.openings += 1
        s.open, s.half_open, s.until = True, False, now + self.last_open_ns
        s.consecutive, s.lease = 0, 0
        s.window.clear()
        s.epoch += 1
        return OPEN

    def open_until(self, until: int) -> None:
        """Take over the end of the open time that the core drew, after checking that it may draw it."""
        s = self.state_
        assert s.open
        opened = s.until - self.last_open_ns
        assert opened + self.last_open_ns // 2 <= until <= s.until, "open time outside [d/2, d]"
        s.until = until

    def state(self, now: int = 0) -> int:
        now, s = now or clock(), self.state_
        if s.open:
            return OPEN if now < s.until else HALF_OPEN
        return HALF_OPEN if s.half_open else CLOSED

    def hurry(self, now: int = 0) -> bool:
        now, s = now or clock(), self.state_
        if s.open and s.until > now:
            s.until = now // 1_000_000 * 1_000_000
        return s.open

    def reopens_in(self, now: int = 0) -> int:
        now, s = now or clock(), self.state_
        return max(0, s.until - now) if s.open else 0

    def block(self, until_ns: int, reason: int) -> None:
        if until_ns > self.state_.blocked_until:
            self.state_.blocked_until, self.state_.blocked_reason = until_ns, reason

    def unblock(self) -> None:
        self.state_.blocked_until = self.state_.blocked_reason = 0

    def blocked(self, now: int = 0) -> tuple[int, int]:
        now, s = now or clock(), self.state_
        return (s.blocked_until - now, s.blocked_reason) if now < s.blocked_until else (0, 0)

    def ramp(self, now: int = 0) -> float:
        now, s = now or clock(), self.state_
        if s.open or s.half_open or s.closed_at == 0 or self.ramp_ns == 0:
            return 1.0
        return min(1.0, 0.1 + 0.9 * max(0, now - s.closed_at) / self.ramp_ns)
