"""The forecast against its definition, computed in another way, and against cases with known results."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from fastroute.learning.forecast import FOLDS, REPEATS, Forecast, Forecaster, interval, ranks

ROWS = 137
SHARES = (0.0, 0.1, 0.25, 0.3, 0.5, 0.77, 1.0)


def outcomes(seed: int = 1) -> tuple[list[float], list[float], list[float]]:
    """Scores of weak and strong, and gains with ties that are somewhat right."""
    draw = random.Random(seed)
    weak = [float(draw.random() < 0.5) for _ in range(ROWS)]
    strong = [float(draw.random() < 0.8) for _ in range(ROWS)]
    gains = [round(s - w + draw.gauss(0, 1), 1) for w, s in zip(weak, strong)]
    return weak, strong, gains


def twin(
    weak: list[float], strong: list[float], gains: list[float], share: float
) -> dict[str, tuple[float, float, float]]:
    """Quality, difference from all-strong, and lift, by the sentences of the definition."""
    f = [0.0] * ROWS
    for repeat in range(REPEATS):
        order = list(range(ROWS))
        random.Random(repeat).shuffle(order)
        for number in range(FOLDS):
            fold = [order[place] for place in range(ROWS) if place % FOLDS == number]
            room = share * len(fold)
            for gain in sorted({gains[row] for row in fold}, reverse=True):
                equal = [row for row in fold if gains[row] == gain]
                taken = min(room, len(equal))
                room -= taken
                for row in equal:
                    f[row] += taken / len(equal) / REPEATS
    g = [s - w for w, s in zip(weak, strong)]
    columns = {
        "quality": [w + p * x for w, p, x in zip(weak, f, g)],
        "against_strong": [w + p * x - s for w, p, x, s in zip(weak, f, g, strong)],
        "lift": [(p - share) * x for p, x in zip(f, g)],
    }
    found = {}
    for name, values in columns.items():
        mean, half = statistics.fmean(values), 1.96 * statistics.stdev(values) / math.sqrt(ROWS)
        found[name] = (mean, mean - half, mean + half)
    return found


@pytest.mark.parametrize("share", SHARES)
def test_a_row_is_what_the_definition_says(share: float) -> None:
    weak, strong, gains = outcomes()
    row = Forecaster(weak, strong, ranks(ROWS, lambda keep: gains)).row(share)
    for name, expected in twin(weak, strong, gains, share).items():
        assert getattr(row, name) == pytest.approx(expected, abs=1e-12), name


@pytest.mark.parametrize("share", SHARES)
def test_exactly_the_share_goes_to_strong(share: float) -> None:
    weak, strong, gains = outcomes()
    forecaster = Forecaster(weak, strong, ranks(ROWS, lambda keep: gains))
    assert statistics.fmean(forecaster.routed(share)) == pytest.approx(share, abs=1e-12)


def test_a_fit_that_remembers_its_labels_gains_nothing_by_it() -> None:
    """It knows the gains of the rows it may use and nothing of the others."""
    weak, strong, _ = outcomes()
    true = [s - w for w, s in zip(weak, strong)]
    row = Forecaster(
        weak, strong, ranks(ROWS, lambda keep: [gain if k else 0.0 for gain, k in zip(true, keep)])
    ).row(0.3)
    assert row.lift[0] == pytest.approx(0, abs=1e-12)


def test_every_row_is_left_out_once_in_each_repeat() -> None:
    missing: list[int] = []
    ranks(ROWS, lambda keep: missing.extend(row for row in range(ROWS) if not keep[row]) or [0.0] * ROWS)
    assert sorted(missing) == sorted(list(range(ROWS)) * REPEATS)


def test_a_perfect_fit_and_its_opposite() -> None:
    weak, strong = [0.0] * 50 + [1.0] * 50, [1.0] * 100
    true = [s - w for w, s in zip(weak, strong)]
    best = Forecaster(weak, strong, ranks(100, lambda keep: true)).row(0.2)
    worst = Forecaster(weak, strong, ranks(100, lambda keep: [-gain for gain in true])).row(0.2)
    assert best.lift[0] > 0.05
    assert best.quality[0] > worst.quality[0]
    assert best.lift[0] == pytest.approx(-worst.lift[0], abs=0.06)


def test_costs_are_of_the_calls_as_they_are_routed() -> None:
    weak, strong, gains = outcomes()
    costs = [(0.001, 0.01 + row / 10_000) for row in range(ROWS)]
    forecaster = Forecaster(weak, strong, ranks(ROWS, lambda keep: gains), costs)
    alone = [forecaster.row(share).cost[0] for share in (0.0, 1.0)]
    assert alone == pytest.approx([1.0, 1000 * statistics.fmean(strong for _, strong in costs)])
    f = forecaster.routed(0.3)
    wanted = [1000 * ((1 - p) * w + p * s) for p, (w, s) in zip(f, costs)]
    assert forecaster.row(0.3).cost == pytest.approx(interval(wanted))
    few = [pair if row < 29 else None for row, pair in enumerate(costs)]
    assert Forecaster(weak, strong, ranks(ROWS, lambda keep: gains), few).row(0.3).cost == ()


def test_kept_is_the_lower_end_of_a_paired_interval() -> None:
    weak, strong, gains = outcomes()
    forecaster = Forecaster(weak, strong, ranks(ROWS, lambda keep: gains))
    f = forecaster.routed(0.6)
    values = [w + p * (s - w) - 0.9 * s for w, s, p in zip(weak, strong, f)]
    half = 1.96 * statistics.stdev(values) / math.sqrt(ROWS)
    assert forecaster.kept(0.6, 0.9) == pytest.approx(statistics.fmean(values) - half)


def test_the_chosen_row_has_the_names_of_the_interface() -> None:
    weak, strong, gains = outcomes()
    forecaster = Forecaster(weak, strong, ranks(ROWS, lambda keep: gains))
    rows = tuple(forecaster.row(share) for share in (0.0, 0.3, 1.0))
    forecast = Forecast(rows=rows, share=0.3)
    assert (forecast.quality, forecast.quality_low, forecast.quality_high) == rows[1].quality
    assert (forecast.lift, forecast.lift_low, forecast.lift_high) == rows[1].lift
    assert forecast.against_strong == rows[1].against_strong[0]
    assert forecast.weak == pytest.approx(interval(weak))
    assert forecast.strong == pytest.approx(interval(strong))
    assert forecast.cost is None
    assert "quality=" not in repr(forecast)
