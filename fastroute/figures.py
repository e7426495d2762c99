"""Percentiles, and the text of amounts of money and durations.

Reports, pages, metrics and messages all use these functions, so that the same samples have the same median
and the same amount has the same text everywhere. The dashboard uses the same rules in `gateway/figures.js`; a
test compares the two.

Money is integer nano-dollars (1 USD = 10**9), durations are seconds. Texts are rounded half up, in integers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

_Number = TypeVar("_Number", int, float)

_NANO = 10**9
# Each unit, its nanoseconds, and the count from which the next unit is used.
_UNITS = (
    ("ns", 1, 1000),
    ("µs", 10**3, 1000),
    ("ms", 10**6, 1000),
    ("s", 10**9, 120),
    ("min", 60 * 10**9, 120),
    ("h", 3600 * 10**9, 48),
)
_DAY = 86_400 * 10**9


def percentile(samples: Iterable[_Number], percent: float) -> _Number:
    """The nearest-rank percentile: the least sample that ``percent`` % of all samples do not exceed.

    It is always one of the samples, never a value between two of them: definition 1 in R. J. Hyndman and
    Y. Fan, Sample Quantiles in Statistical Packages, The American Statistician 50 (4), 1996. The rank is
    computed in integers, because 0.07 * 100 as a float is more than 7.

    Args:
        samples: in any order; they are not changed.
        percent: above 0, at most 100; 99.9 is possible, thousandths are the finest step.

    Raises:
        ValueError: there are no samples, or ``percent`` is out of range.
    """
    thousandths = round(percent * 1000)
    if not 1 <= thousandths <= 100_000:
        raise ValueError(f"percent: {percent!r} is out of range, must be above 0 and at most 100")
    ordered = sorted(samples)
    if not ordered:
        raise ValueError("samples: must not be empty")
    return ordered[-(-len(ordered) * thousandths // 100_000) - 1]


def dollars(nano: int, *, exact: bool = False) -> str:
    """An amount as text: ``$0``, ``$0.0000018``, ``$0.0125``, ``$1.234``, ``$5.00``, ``$1,234.57``.

    Rounded to cents from 10 dollars on, below that to four significant digits; at least two decimals.

    Args:
        exact: whether to print all digits, for amounts that are compared.
    """
    if nano == 0:
        return "$0"
    size = abs(nano)
    step = 1 if exact else 10**7 if size >= 10 * _NANO else 10 ** max(0, len(str(size)) - 4)
    whole, rest = divmod(_rounded(size, step) * step, _NANO)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nano < 0 else ''}${whole:,}.{decimals}"


def decimal_dollars(nano: int) -> str:
    """The exact amount as text for programs, with nine decimals: ``0.012500000``."""
    whole, rest = divmod(abs(nano), _NANO)
    return f"{'-' if nano < 0 else ''}{whole}.{rest:09d}"


def duration(seconds: float) -> str:
    """A duration as text, with three digits: ``0 s``, ``850 µs``, ``12.5 ms``, ``1.05 s``, ``2.5 min``.

    Seconds and minutes are used up to 120, hours up to 48. The finest step is a nanosecond.

    Args:
        seconds: 0 or more.
    """
    nanoseconds = int(seconds * 1e9 + 0.5)
    if nanoseconds == 0:
        return "0 s"
    for unit, size, limit in _UNITS:
        decimals = max(0, 3 - len(str(nanoseconds // size)))
        number = _rounded(nanoseconds * 10**decimals, size)
        # Compared after rounding: 999.6 ms is written as 1 s.
        if number < limit * 10**decimals:
            return f"{_plain(number, decimals)} {unit}"
    decimals = max(0, 3 - len(str(nanoseconds // _DAY)))
    return f"{_plain(_rounded(nanoseconds * 10**decimals, _DAY), decimals)} days"


def _rounded(amount: int, step: int) -> int:
    """An amount divided by a step, rounded half up."""
    return (2 * amount + step) // (2 * step)


def _plain(number: int, decimals: int) -> str:
    """A number with the given decimals, without trailing zeros."""
    whole, rest = divmod(number, 10**decimals)
    text = f"{rest:0{decimals}d}".rstrip("0") if decimals else ""
    return f"{whole:,}.{text}" if text else f"{whole:,}"


__all__ = ["decimal_dollars", "dollars", "duration", "percentile"]
