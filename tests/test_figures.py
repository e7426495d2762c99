"""How percentiles, amounts and durations come out, whoever asks for them."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastroute import figures
from fastroute.state.tokens import OutputHistory

SAMPLES = st.lists(st.floats(0, 1e6), min_size=1, max_size=120)
PERCENTS = st.integers(1, 100_000).map(lambda thousandths: thousandths / 1000)


@given(SAMPLES, PERCENTS)
def test_a_percentile_is_the_least_sample_that_so_many_do_not_exceed(
    samples: list[float], percent: float
) -> None:
    before = list(samples)
    found = figures.percentile(samples, percent)
    assert samples == before
    wanted = Fraction(str(percent)) / 100 * len(samples)
    assert found in samples
    assert sum(sample <= found for sample in samples) >= wanted
    assert sum(sample < found for sample in samples) < wanted


@pytest.mark.parametrize(
    ("count", "percent", "rank"),
    [
        (1, 50, 1),
        (2, 50, 1),
        (3, 50, 2),
        (20, 50, 10),
        (20, 95, 19),
        (20, 99, 20),
        (100, 7, 7),
        (1000, 99.9, 999),
    ],
)
def test_ranks_known(count: int, percent: float, rank: int) -> None:
    assert figures.percentile(range(1, count + 1), percent) == rank


@pytest.mark.parametrize("percent", [0, -1, 0.0001, 100.001, 101])
def test_a_percentile_of_no_share_is_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 100"):
        figures.percentile([1.0], percent)


def test_nothing_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="at least one"):
        figures.percentile([], 50)


@given(st.lists(st.integers(257, 10_000), min_size=1, max_size=200))
def test_the_output_expected_is_the_same_percentile(outputs: list[int]) -> None:
    class Model:
        name = "m"
        max_output_tokens = 0

    history = OutputHistory()
    for output in outputs:
        history.record("m", output)
    assert history.expected_output(None, Model()) == figures.percentile(outputs, 95)
