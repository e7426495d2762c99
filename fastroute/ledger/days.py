"""A ledger's sums for each day: cost by model and other keys, and the cost with one model alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta

from attrs import frozen

from . import Ledger, Prices, Saving, Totals

# Days. A longer span comes from an entry with a wrong clock; days without entries are then left out.
_LONGEST_SPAN = 3660
_NAMES = {"model": ("model", "models"), "level": ("class", "classes"), "tier": ("tier", "tiers")}


@frozen
class Day:
    """One day's sums.

    Attributes:
        day: in UTC.
        totals: over the whole day; zeros without entries.
        costs: nano-dollars by model, if not zero.
    """

    day: date
    totals: Totals
    costs: Mapping[str, int]


@frozen
class Breakdown:
    """The cost of the days by the values of one key.

    Attributes:
        key: as in `Ledger.by`.
        names: the values with a cost, highest first.
        costs: nano-dollars by value, for each day.
    """

    key: str
    names: tuple[str, ...]
    costs: tuple[Mapping[str, int], ...]


@frozen
class Comparison:
    """What the successful entries cost, and would have cost with one model only; see `Saving`.

    Attributes:
        actual_nano, alone_nano: nano-dollars, for each day.
    """

    model: str
    actual_nano: tuple[int, ...]
    alone_nano: tuple[int, ...]


@frozen
class Days:
    """The data of the charts.

    Attributes:
        days: consecutive days, oldest first, including those without entries.
        totals: sums over all days.
        models: those with a cost, highest first.
        breakdowns: of the cost, for each key asked for.
        comparisons: with one model alone, for each model in question.
    """

    days: tuple[Day, ...]
    totals: Totals
    models: tuple[str, ...]
    breakdowns: tuple[Breakdown, ...] = ()
    comparisons: tuple[Comparison, ...] = ()


def days(
    ledger: Ledger,
    *,
    since: float | datetime | None = None,
    until: float | datetime | None = None,
    tags: Mapping[str, str] | None = None,
    by: Sequence[str] = ("level",),
    against: Sequence[str] = (),
    prices: Prices | None = None,
) -> Days:
    """The sums of each day.

    Args:
        ledger: open or closed.
        since, until, tags: which entries count, as in `Ledger.by`.
        by: keys of `Ledger.by` to break the cost down by, besides the model.
        against: models to compare with, as in `Ledger.savings`.
        prices: required with ``against``; its exceptions are passed on.

    Raises:
        ValueError: an unknown key, a datetime without a time zone, or ``against`` without ``prices``.
        Error: the ledger cannot be read.
    """
    totals: dict[date, Totals] = {}
    for row in ledger.by("day", since=since, until=until, tags=tags):
        if row.keys[0] is not None:
            totals[date.fromisoformat(row.keys[0])] = row
    whole = tuple(_span(sorted(totals)))

    def costs_by(key: str) -> Breakdown:
        costs: dict[date, dict[str, int]] = {}
        spent: dict[str, int] = {}
        for row in ledger.by("day", key, since=since, until=until, tags=tags):
            if row.keys[0] is not None and row.cost_nano:
                name = row.keys[1] or f"(no {spelt(key)[0]})"
                costs.setdefault(date.fromisoformat(row.keys[0]), {})[name] = row.cost_nano
                spent[name] = spent.get(name, 0) + row.cost_nano
        names = tuple(sorted(spent, key=lambda name: (-spent[name], name)))
        return Breakdown(key, names, tuple(costs.get(day, {}) for day in whole))

    def compared(model: str) -> Comparison:
        if prices is None:
            raise ValueError("prices: required with against=; pass a function from a model to its prices")
        found = ledger.daily_savings(prices, model, since=since, until=until, tags=tags)
        days = [found.get(str(day), Saving(model, 0, 0, 0, 0)) for day in whole]
        return Comparison(
            model, tuple(day.actual_nano for day in days), tuple(day.alone_nano for day in days)
        )

    models = costs_by("model")
    return Days(
        tuple(Day(day, totals.get(day, Totals()), cost) for day, cost in zip(whole, models.costs)),
        ledger.totals(since=since, until=until, tags=tags),
        models.names,
        tuple(costs_by(key) for key in dict.fromkeys(by) if key not in ("day", "model")),
        tuple(compared(model) for model in dict.fromkeys(against)),
    )


def spelt(key: str) -> tuple[str, str]:
    """A key's name in the singular and in the plural."""
    name = key.removeprefix("tag:")
    return _NAMES.get(key, (name, f"values of {name}" if key != name else f"{name}s"))


def _span(known: Sequence[date]) -> Sequence[date]:
    if not known or (known[-1] - known[0]).days > _LONGEST_SPAN:
        return known
    return [known[0] + timedelta(count) for count in range((known[-1] - known[0]).days + 1)]


__all__ = ["Breakdown", "Comparison", "Day", "Days", "days", "spelt"]
