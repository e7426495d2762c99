"""Percentiles, amounts and durations."""

from __future__ import annotations

import re
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
    with pytest.raises(ValueError, match="must not be empty"):
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


# --------------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (0, "$0"),
        (1, "$0.000000001"),
        (1800, "$0.0000018"),
        (19_100, "$0.0000191"),
        (123_456, "$0.0001235"),
        (12_500_000, "$0.0125"),
        (200_000_000, "$0.20"),
        (1_234_500_000, "$1.235"),
        (9_999_499_999, "$9.999"),
        (9_999_500_000, "$10.00"),
        (12_345_000_000, "$12.35"),
        (1_234_500_000_000, "$1,234.50"),
        (10**18, "$1,000,000,000.00"),
        (-1_500_000_000, "-$1.50"),
    ],
)
def test_amounts_for_people(nano: int, text: str) -> None:
    assert figures.dollars(nano) == text


@given(st.integers(-(10**20), 10**20))
def test_amounts_that_are_compared_keep_every_digit(nano: int) -> None:
    text = figures.dollars(nano, exact=True)
    assert Fraction(text.replace("$", "").replace(",", "")) * 10**9 == nano
    assert text.endswith("0") <= bool(re.search(r"\.\d\d$|^\$0$", text))


@given(st.integers(-(10**20), 10**20))
def test_an_amount_is_exact_to_four_digits_or_a_cent(nano: int) -> None:
    shown = Fraction(figures.dollars(nano).replace("$", "").replace(",", "")) * 10**9
    assert abs(shown - nano) <= (Fraction(abs(nano), 2000) if abs(nano) < 10**10 else 5 * 10**6)
    assert (shown < 0) == (nano < 0)


@pytest.mark.parametrize(
    ("nano", "text"), [(0, "0.000000000"), (1, "0.000000001"), (-1_500_000_000, "-1.500000000")]
)
def test_amounts_for_programs(nano: int, text: str) -> None:
    assert figures.decimal_dollars(nano) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (4e-10, "0 s"),
        (2.5e-7, "250 ns"),
        (2.84e-6, "2.84 µs"),
        (0.00101, "1.01 ms"),
        (0.0009996, "1 ms"),
        (0.25, "250 ms"),
        (0.9994, "999 ms"),
        (0.9995, "1 s"),
        (1.125, "1.13 s"),
        (12.34, "12.3 s"),
        (119.4, "119 s"),
        (119.6, "1.99 min"),
        (150, "2.5 min"),
        (7199, "2 h"),
        (86_400, "24 h"),
        (172_800, "2 days"),
        (9e8, "10,417 days"),
    ],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert figures.duration(seconds) == text


UNITS = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "days": 86_400.0}


@given(st.floats(0, 1e9))
def test_a_duration_is_exact_to_three_digits_or_a_nanosecond(seconds: float) -> None:
    number, unit = figures.duration(seconds).split(" ")
    shown = float(number.replace(",", "")) * UNITS[unit]
    assert abs(shown - seconds) <= max(seconds * 0.005, 5.1e-10) * (1 + 1e-9)
