"""How long a local provider takes: distributions as frozen values.

Owns the draws only; waiting is the server's. A distribution is a callable that takes the provider's own
random generator (seeded, so that a run can be repeated) and returns seconds; a user's function of that
shape serves as well.
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
        ValueError: if it is no finite number of 0 or more.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{name}: {value!r}; use a number of seconds, 0 or more")
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
    """Evenly spread from ``low`` to ``high`` seconds."""

    low: float
    high: float

    def __post_init__(self) -> None:
        check_seconds("Uniform.low", self.low)
        check_seconds("Uniform.high", self.high)
        if self.low > self.high:
            raise ValueError(f"Uniform: low {self.low!r} is above high {self.high!r}")

    def __call__(self, rng: random.Random) -> float:
        return rng.uniform(self.low, self.high)


@dataclass(frozen=True, slots=True)
class Lognormal:
    """The shape of real services: half of all answers within ``median`` seconds, and a long tail.

    Attributes:
        median: seconds.
        sigma: spread of the logarithm; with 0.5 one answer in a hundred takes 3.2 medians, with 1.0 ten.
        limit: no draw is longer than this many seconds.
    """

    median: float
    sigma: float = 0.5
    limit: float = 3600.0

    def __post_init__(self) -> None:
        if check_seconds("Lognormal.median", self.median) == 0:
            raise ValueError("Lognormal.median: 0; use a number of seconds above 0")
        check_seconds("Lognormal.sigma", self.sigma)
        check_seconds("Lognormal.limit", self.limit)

    def __call__(self, rng: random.Random) -> float:
        return min(self.limit, rng.lognormvariate(math.log(self.median), self.sigma))
