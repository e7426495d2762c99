"""A local provider's rate limits: two token buckets, of requests and of tokens per minute.

The clock is passed in. Limits that fastroute itself keeps are in the core.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


def go_duration(seconds: float) -> str:
    """Seconds as a Go duration, to the millisecond, as in OpenAI's headers: ``6m0s``, ``1.5s``, ``12ms``."""
    millis = max(0, math.ceil(round(seconds * 1000, 6)))
    if millis == 0:
        return "0s"
    if millis < 1000:
        return f"{millis}ms"
    whole, rest = divmod(millis, 60_000)
    text = f"{rest // 1000}.{rest % 1000:03d}".rstrip("0").rstrip(".") + "s"
    hours, minutes = divmod(whole, 60)
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


@dataclass(slots=True)
class TokenBucket:
    """A limit per minute that is refilled evenly; a minute's worth may be taken at once.

    Attributes:
        limit: amount per minute; 0 refuses everything.
        level: the amount left at the time ``updated``.
    """

    limit: int
    level: float = field(init=False)
    updated: float | None = None

    def __post_init__(self) -> None:
        self.level = float(self.limit)

    def refill(self, now: float) -> None:
        if self.updated is not None and now > self.updated:
            self.level = min(float(self.limit), self.level + (now - self.updated) * self.limit / 60)
        self.updated = now

    def wait(self, cost: float) -> float:
        """Seconds until ``cost`` is available; a minute if it never will be."""
        if self.level >= cost:
            return 0.0
        if cost > self.limit:
            return 60.0
        return (cost - self.level) * 60 / self.limit

    @property
    def reset(self) -> float:
        """Seconds until it is full again."""
        return (self.limit - self.level) * 60 / self.limit if self.limit else 60.0


@dataclass(frozen=True, slots=True)
class LimitExceeded:
    """A request that exceeds a limit.

    Attributes:
        kind: ``requests`` or ``tokens``.
        limit: amount per minute.
        retry_after: seconds until the request would be admitted.
    """

    kind: str
    limit: int
    retry_after: float


class RateLimits:
    """Both limits of one provider, taken together or not at all. Not thread-safe."""

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        self._buckets = {
            kind: TokenBucket(limit)
            for kind, limit in (("requests", requests_per_minute), ("tokens", tokens_per_minute))
            if limit is not None
        }

    def __bool__(self) -> bool:
        return bool(self._buckets)

    def take(self, tokens: int, now: float) -> LimitExceeded | None:
        """Count one request and its tokens, or return the limit it exceeds; ``now`` is monotonic seconds."""
        costs = {"requests": 1, "tokens": tokens}
        for kind, bucket in self._buckets.items():
            bucket.refill(now)
            seconds = bucket.wait(costs[kind])
            if seconds > 0:
                return LimitExceeded(kind, bucket.limit, seconds)
        for kind, bucket in self._buckets.items():
            bucket.level -= costs[kind]
        return None

    def state(self, now: float) -> dict[str, tuple[int, int, float]]:
        """For each kind the limit, what is left of it, and seconds until it is full again."""
        for bucket in self._buckets.values():
            bucket.refill(now)
        return {
            kind: (bucket.limit, int(bucket.level), bucket.reset) for kind, bucket in self._buckets.items()
        }
