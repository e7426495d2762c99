"""The forecast: what a router will do to quality and cost, measured on prompts that it was not fitted to.

The labels are divided into 5 folds, 4 times. Each fold is ranked by a fit to the other four, and a share
of it goes to strong: by rank within the fold, because thresholds from other folds and leave-one-out fits
are biased (by -.02 of quality). For a prompt, ``f`` is the share of the repeats in which it goes to
strong, ``w`` the weak model's score and ``g`` what the strong one gains:

    quality = mean(w + f g)    against all-strong = -mean(g (1 - f))    lift over a coin = mean(g (f - share))

The intervals are ±1.96 standard errors over the prompts and are announced as 90 %: the fits share
prompts, so ±1.645 covers too little.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Callable, Sequence

from attrs import field, frozen

from fastroute.routing.router_file import ForecastRow

FOLDS, REPEATS = 5, 4
WIDTH = 1.96
"""Standard errors on each side of an interval that is announced as 90 %."""
ACCEPTED = 1.645
"""Standard errors that the lift must exceed."""
SHARES = tuple(tenths / 10 for tenths in range(11))

Interval = tuple[float, float, float]
"""A mean, and the ends of its interval."""


def interval(values: Sequence[float]) -> Interval:
    """The mean of the values, and the ends of its interval; of one value, which says nothing, ±1."""
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    half = WIDTH * math.sqrt(squares / (len(values) - 1) / len(values)) if len(values) > 1 else 1.0
    return mean, mean - half, mean + half


@frozen
class Rank:
    """A prompt's place in its fold: after ``before`` others, among ``equal`` of its gain, itself included."""

    before: int
    equal: int
    fold: int

    def share(self, share: float) -> float:
        """How much of it goes to strong if a share of its fold does: 0, 1, or a part at the border."""
        return min(1.0, max(0.0, (share * self.fold - self.before) / self.equal))


def ranks(rows: int, fit: Callable[[bytearray], Sequence[float]], *, seed: int = 0) -> list[list[Rank]]:
    """For each repeat the rank of each row in its fold, by gains of a fit without the fold.

    Args:
        fit: gets a byte for each row, 1 if it may be used; returns the gain of each row.
    """
    found = []
    for repeat in range(REPEATS):
        order = list(range(rows))
        random.Random(seed * REPEATS + repeat).shuffle(order)
        places: list[Rank] = [Rank(0, 1, 1)] * rows
        for number in range(FOLDS):
            fold = order[number::FOLDS]
            keep = bytearray(b"\x01" * rows)
            for row in fold:
                keep[row] = 0
            gains = fit(keep)
            fold.sort(key=lambda row: -gains[row])
            start = 0
            while start < len(fold):
                end = start + 1
                while end < len(fold) and gains[fold[end]] == gains[fold[start]]:
                    end += 1
                for row in fold[start:end]:
                    places[row] = Rank(start, end - start, len(fold))
                start = end
        found.append(places)
    return found


class Forecaster:
    """Forecasts for any share.

    Args:
        weak, strong: the models' scores of each prompt.
        ranks: as `ranks` returns them.
        costs: dollars that each prompt costs with weak and with strong; None where that is unknown.
    """

    LEAST_COSTS = 30  # prompts with known costs

    def __init__(
        self,
        weak: Sequence[float],
        strong: Sequence[float],
        ranks: Sequence[Sequence[Rank]],
        costs: Sequence[tuple[float, float] | None] = (),
    ) -> None:
        self.weak = weak
        self.strong = strong
        self.gains = [s - w for w, s in zip(weak, strong)]
        self._ranks = ranks
        known = [(row, pair) for row, pair in enumerate(costs) if pair is not None]
        self.costs = known if len(known) >= self.LEAST_COSTS else []

    def routed(self, share: float) -> array[float]:
        """``f`` of each prompt."""
        shares = array("d", bytes(8 * len(self.weak)))
        for places in self._ranks:
            for row, rank in enumerate(places):
                shares[row] += rank.share(share) / len(self._ranks)
        return shares

    def row(self, share: float) -> ForecastRow:
        """The forecast for a share."""
        f, gains = self.routed(share), self.gains
        cost: tuple[float, ...] = ()
        if self.costs:
            cost = interval([1000 * (w + f[row] * (s - w)) for row, (w, s) in self.costs])
        return ForecastRow(
            share=share,
            quality=interval([w + g * part for w, g, part in zip(self.weak, gains, f)]),
            against_strong=interval([-g * (1 - part) for g, part in zip(gains, f)]),
            lift=interval([g * (part - share) for g, part in zip(gains, f)]),
            cost=cost,
        )

    def kept(self, share: float, keep: float) -> float:
        """The lower end of how much quality is above ``keep`` times that of all-strong."""
        f = self.routed(share)
        return interval(
            [w + g * part - keep * s for w, g, part, s in zip(self.weak, self.gains, f, self.strong)]
        )[1]


@frozen(kw_only=True)
class Forecast:
    """What is forecast for a pair of models; quality is the mean score, 0..1.

    Attributes:
        rows: in order of the share: 0 (the weak model alone), .1 … .9 and the chosen one, 1 (the strong one
            alone).
        share: the chosen share of calls to strong.
    """

    rows: tuple[ForecastRow, ...] = field(repr=False)
    share: float

    @property
    def chosen(self) -> ForecastRow:
        """The row of the chosen share."""
        return next(row for row in self.rows if row.share == self.share)

    @property
    def weak(self) -> Interval:
        """The mean score of the weak model alone, and the ends of its interval."""
        low, high = self.rows[0].quality[1:]
        return self.rows[0].quality[0], low, high

    @property
    def strong(self) -> Interval:
        """The mean score of the strong model alone, and the ends of its interval."""
        low, high = self.rows[-1].quality[1:]
        return self.rows[-1].quality[0], low, high

    @property
    def quality(self) -> float:
        """The mean score at that share."""
        return self.chosen.quality[0]

    @property
    def quality_low(self) -> float:
        """The lower end of its interval."""
        return self.chosen.quality[1]

    @property
    def quality_high(self) -> float:
        """The upper end of its interval."""
        return self.chosen.quality[2]

    @property
    def against_strong(self) -> float:
        """The quality's difference from all calls to strong; mostly negative."""
        return self.chosen.against_strong[0]

    @property
    def lift(self) -> float:
        """The quality's difference from the same share drawn by a coin."""
        return self.chosen.lift[0]

    @property
    def lift_low(self) -> float:
        """The lower end of its interval."""
        return self.chosen.lift[1]

    @property
    def lift_high(self) -> float:
        """The upper end of its interval."""
        return self.chosen.lift[2]

    @property
    def lift_error(self) -> float:
        """The lift's standard error."""
        return (self.lift_high - self.lift) / WIDTH

    @property
    def cost(self) -> float | None:
        """Dollars a thousand calls, about; None if it is unknown."""
        return self.chosen.cost[0] if self.chosen.cost else None


__all__ = [
    "ACCEPTED",
    "FOLDS",
    "REPEATS",
    "SHARES",
    "WIDTH",
    "Forecast",
    "Forecaster",
    "Interval",
    "Rank",
    "interval",
    "ranks",
]
