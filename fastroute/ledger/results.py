"""The results of a ledger: sums, comparisons and health, as frozen values."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

from fastroute.types import TokenPrices

Prices = Callable[[str], TokenPrices]
"""A function from a model's name to its prices."""


@frozen(kw_only=True)
class Totals:
    """Sums over entries.

    Attributes:
        keys: the group's values, in the order of the keys; empty for a total. A day is ``YYYY-MM-DD`` in UTC.
        calls: distinct calls; one with attempts in two groups counts in both.
        attempts: entries.
        failures: entries that failed or were cancelled.
        prompt_tokens, completion_tokens: including ``cached_tokens`` (read from a provider's cache),
            ``cache_write_tokens`` (written to it) and ``reasoning_tokens``.
        cost_nano: the exact sum of known costs, in nano-dollars.
        unknown_cost: entries without a known cost; not in ``cost_nano``.
        estimated: entries whose tokens and cost are an estimate, because the provider told no usage.
        estimated_nano: the part of ``cost_nano`` that is their estimated cost.
        budget_nano: what budgets count for all entries: the cost, or the worst case of those whose usage is
            unknown.
        latency_mean, latency_p50, latency_p95: seconds, over successful entries; None if there are none.
            The percentiles are rounded to microseconds.
        score_mean: of the entries with a learned score; None if there are none.
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
    estimated: int = 0
    estimated_nano: int = 0
    budget_nano: int = 0
    latency_mean: float | None = None
    latency_p50: float | None = None
    latency_p95: float | None = None
    score_mean: float | None = None


@frozen
class Saving:
    """What the successful entries cost, and what the same tokens cost at one model's prices.

    Attributes:
        model: the one model.
        entries: successful entries with a known cost, which are compared.
        unknown_cost: successful entries with an unknown cost, which are not.
        actual_nano: nano-dollars that they cost.
        alone_nano: nano-dollars at the one model's prices.
    """

    model: str
    entries: int
    unknown_cost: int
    actual_nano: int
    alone_nano: int

    @property
    def saved_nano(self) -> int:
        """Nano-dollars saved; negative if the one model is cheaper."""
        return self.alone_nano - self.actual_nano


@frozen(kw_only=True)
class LedgerHealth:
    """Whether entries reach the database.

    Attributes:
        ok: whether they do.
        reason: why not, or None.
        waiting: entries in memory that are not in the database yet.
        lost: entries that neither the journal nor the queue could hold.
        rejected: entries that the database can never accept.
        unsure_until: seconds since the epoch; earlier entries may be missing, because the database was
            damaged then. None if none are missing.
    """

    ok: bool
    reason: str | None
    waiting: int
    lost: int
    rejected: int
    unsure_until: float | None = None
