"""Success and validation rates of models, and `DriftDetected` when one changes.

Drift is a change, not a level: the last ``window`` results of a rate are compared with the ten windows
before them. A model that is always right 80 % of the time never drifts; one that falls from 99 to 90 %
drifts once, and after ten windows at 90 % that is its baseline.
"""

from __future__ import annotations

import threading
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

from attrs import frozen

from fastroute.events import DriftDetected, Hooks

if TYPE_CHECKING:
    from fastroute.config import QualityConfig

_BASELINE_WINDOWS = 10

Measure = Literal["success", "validation"]


@frozen(kw_only=True)
class Rate:
    """One rate of one model in one tier.

    Attributes:
        model, tier: what the rate is of.
        measure: ``success`` (of all attempts) or ``validation`` (of the answers that were validated).
        rate: 0..1 over the last ``samples`` results; None without any.
        baseline: 0..1 over the ``baseline_samples`` results before those; None without any.
        drifting: whether a drift was emitted and has not ended.
    """

    model: str
    tier: str | None
    measure: Measure
    rate: float | None
    samples: int
    baseline: float | None
    baseline_samples: int
    drifting: bool


class Rates:
    """Success and validation rates by model and tier, with an event when one drifts.

    A rate drifts when its window and its baseline have ``min_samples`` results each and differ by more than
    ``drift``, up or down. That is emitted once, and again only after they have differed by at most half of
    ``drift``.

    Thread safety: all methods. Hooks run after the lock is released.

    Args:
        config: ``[quality]``: drift, window, min_samples.
        hooks: `DriftDetected` is emitted to them.

    Attributes:
        window, min_samples: results in a window, and results needed before rates are compared.
        series: the results so far, by model, tier and measure, under `lock`.
    """

    def __init__(self, config: QualityConfig, hooks: Hooks) -> None:
        self.window = config.window
        self.min_samples = min(config.min_samples or config.window, config.window)
        # Shares are compared as integers, so that "more than 5 points" is exact.
        self._drift = Decimal(str(config.drift)).as_integer_ratio()
        self._hooks = hooks
        self.series: dict[tuple[str, str | None, Measure], _Series] = {}
        self.lock = threading.Lock()

    def record(self, model: str, tier: str | None, ok: bool, valid: bool | None = None) -> None:
        """Counts one attempt.

        Args:
            model: the model that served the attempt.
            tier: the tier that the model was chosen from, if any.
            ok: whether an answer came. Do not record an attempt that the caller cancelled.
            valid: whether the answer passed its validation; None if it was not validated.
        """
        found: list[DriftDetected] = []
        with self.lock:
            self._count(model, tier, "success", ok, found)
            if valid is not None:
                self._count(model, tier, "validation", valid, found)
        for event in found:
            self._hooks.emit(event)

    def _count(
        self, model: str, tier: str | None, measure: Measure, good: bool, found: list[DriftDetected]
    ) -> None:
        key = (model, tier, measure)
        series = self.series.get(key)
        if series is None:
            series = self.series[key] = _Series(self.window)
        series.add(good)
        if series.moved(self._drift, self.min_samples):
            recent, baseline = series.samples, series.baseline_samples
            found.append(
                DriftDetected(
                    model=model,
                    tier=tier,
                    measure=measure,
                    rate=series.good / recent,
                    baseline=series.baseline_good / baseline,
                    samples=recent,
                    baseline_samples=baseline,
                )
            )

    def snapshot(self) -> tuple[Rate, ...]:
        """All rates at this moment, in the order in which they first appeared."""
        with self.lock:
            return tuple(series.rate(*key) for key, series in self.series.items())

    def after_fork(self) -> None:
        """For a forked child: a thread of the parent may have held the lock, in the middle of a count."""
        self.lock = threading.Lock()
        for series in self.series.values():
            series.recount()


class _Series:
    """The last results of one rate: a ring of the window and the baseline before it, and both sums."""

    __slots__ = ("_ring", "_side", "_total", "_window", "baseline_good", "good")

    def __init__(self, window: int) -> None:
        self._window = window
        self._ring = bytearray(window * (1 + _BASELINE_WINDOWS))
        self._total = 0  # results ever; the newest is at (total - 1) modulo the ring's length
        self._side = 0  # the direction of the drift that was emitted: -1, 1, or 0 for none
        self.good = 0
        self.baseline_good = 0

    @property
    def samples(self) -> int:
        total, window = self._total, self._window
        return total if total < window else window

    @property
    def baseline_samples(self) -> int:
        total, size, window = self._total, len(self._ring), self._window
        return 0 if total < window else (total if total < size else size) - window

    def add(self, good: bool) -> None:
        ring, total = self._ring, self._total
        place = total % len(ring)
        if total >= self._window:
            leaving = ring[(total - self._window) % len(ring)]
            self.good -= leaving
            self.baseline_good += leaving
        if total >= len(ring):
            self.baseline_good -= ring[place]
        ring[place] = good
        self.good += good
        self._total = total + 1

    def moved(self, drift: tuple[int, int], least: int) -> bool:
        """Whether a drift of more than this fraction begins with the newest result."""
        recent, baseline = self.samples, self.baseline_samples
        if recent < least or baseline < least:
            return False
        apart = (self.good * baseline - self.baseline_good * recent) * drift[1]
        limit = drift[0] * recent * baseline
        side = 1 if apart > limit else -1 if apart < -limit else 0
        if side:
            begins = side != self._side
            self._side = side
            return begins
        if 2 * abs(apart) <= limit:
            self._side = 0
        return False

    def recount(self) -> None:
        """Computes both sums from the ring."""
        size = len(self._ring)
        kept = min(self._total, size)
        newest = [self._ring[(self._total - 1 - back) % size] for back in range(kept)]
        self.good = sum(newest[: self._window])
        self.baseline_good = sum(newest[self._window :])

    def rate(self, model: str, tier: str | None, measure: Measure) -> Rate:
        recent, baseline = self.samples, self.baseline_samples
        return Rate(
            model=model,
            tier=tier,
            measure=measure,
            rate=self.good / recent if recent else None,
            samples=recent,
            baseline=self.baseline_good / baseline if baseline else None,
            baseline_samples=baseline,
            drifting=bool(self._side),
        )
