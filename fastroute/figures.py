"""The one percentile of samples, for every report, page and metric.

The same samples have the same median wherever it is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

_Number = TypeVar("_Number", int, float)


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
        raise ValueError("samples: there are none, must be at least one")
    return ordered[-(-len(ordered) * thousandths // 100_000) - 1]


__all__ = ["percentile"]
