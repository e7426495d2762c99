"""Latency distributions for local providers, as frozen values.

A distribution is a callable that gets the provider's random generator (seeded, so that a run can be repeated)
and returns seconds. Any function of that signature can be used.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

Latency = float | Callable[[random.Random], float]


def check_seconds(name: str, value: object) -> float:
    """The value as seconds.

    Raises:
        ValueError: if it is not a finite number, 0 or more.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{name}: must be a number of seconds, 0 or more, not {value!r}")
    return float(value)


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same number of seconds."""

    seconds: float

    def __post_init__(self) -> None:
        check_seconds("Fixed.seconds", self.seconds)

    def __call__(self, rng: random.Random) -> float:
        return self.seconds


@dataclass(frozen=True, slots=True)
class Uniform:
    """Uniformly distributed from ``low`` to ``high`` seconds."""

    low: float
    high: float

    def __post_init__(self) -> None:
        check_seconds("Uniform.low", self.low)
        check_seconds("Uniform.high", self.high)
        if self.low > self.high:
            raise ValueError(f"Uniform.low: must be at most high ({self.high!r}), not {self.low!r}")

    def __call__(self, rng: random.Random) -> float:
        return rng.uniform(self.low, self.high)


@dataclass(frozen=True, slots=True)
class Lognormal:
    """The distribution of real services: half of all answers within ``median`` seconds, and a long tail.

    Attributes:
        median: seconds.
        sigma: standard deviation of the logarithm; with 0.5 one answer in a hundred takes 3.2 medians or
            longer, with 1.0 ten medians.
        limit: the longest draw in seconds.
    """

    median: float
    sigma: float = 0.5
    limit: float = 3600.0

    def __post_init__(self) -> None:
        if check_seconds("Lognormal.median", self.median) == 0:
            raise ValueError("Lognormal.median: must be a number of seconds above 0, not 0")
        check_seconds("Lognormal.sigma", self.sigma)
        check_seconds("Lognormal.limit", self.limit)

    def __call__(self, rng: random.Random) -> float:
        return min(self.limit, rng.lognormvariate(math.log(self.median), self.sigma))
