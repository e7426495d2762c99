"""What a ledger answers with: sums, comparisons and its own health, as frozen values.

Reading them out of the database is `sqlite.py` and `postgres.py`; writing them for people is `report.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

from fastroute.types import TokenPrices

Prices = Callable[[str], TokenPrices]
"""Model name → what its tokens cost."""


@frozen
class Totals:
    """Sums over entries.

    Attributes:
        keys: the group's values, in the order asked for; empty for a total. A day is ``YYYY-MM-DD`` in UTC.
        calls: different calls; one whose attempts fall in two groups counts in both.
        attempts: entries, ``failures`` of which did not end well (cancelled ones among them).
        prompt_tokens, completion_tokens: all of them, ``cached_tokens`` and ``cache_write_tokens`` (read from
            a provider's cache, written to one) and ``reasoning_tokens`` included.
        cost_nano: the exact sum of known costs, nano-dollars.
        unknown_cost: entries whose model has no known price; they are not in ``cost_nano``.
        latency_mean, latency_p50, latency_p95: seconds, over successful entries; None if there are none.
            The percentiles are to the microsecond.
    """

    keys: tuple[str | None, ...] = ()
    calls: int = 0
    attempts: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_tokens: int = 0
    cost_nano: int = 0
    unknown_cost: int = 0
    latency_mean: float | None = None
    latency_p50: float | None = None
    latency_p95: float | None = None


@frozen
class Saving:
    """What the successful entries cost, against the same tokens at one model's prices.

    Attributes:
        model: the one model.
        entries: successful entries with a known cost: those compared.
        unknown_cost: successful entries left out on both sides, because their cost is unknown.
        actual_nano: what they did cost.
        alone_nano: what they would have cost.
    """

    model: str
    entries: int
    unknown_cost: int
    actual_nano: int
    alone_nano: int

    @property
    def saved_nano(self) -> int:
        """Nano-dollars saved; negative if the one model would have been cheaper."""
        return self.alone_nano - self.actual_nano


@frozen
class LedgerHealth:
    """Whether entries reach the database.

    Attributes:
        ok: they do.
        reason: why not.
        waiting: entries in memory that are not in the database yet.
        lost: entries that neither journal nor memory could take.
        rejected: entries that the database refused for good.
        unsure_until: seconds since the epoch; entries before it may be missing, because the database was
            damaged then. None if there is no such time.
    """

    ok: bool
    reason: str | None
    waiting: int
    lost: int
    rejected: int
    unsure_until: float | None = None
