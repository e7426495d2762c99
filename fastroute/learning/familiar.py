"""The guard's figures: which words and which structure the calibration's prompts have.

The limits are measured on the prompts themselves: each half is compared with a guard made of the other
one, and 99 % of the distances are below the limit.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Sequence

from attrs import frozen

from fastroute import _core
from fastroute.figures import percentile
from fastroute.routing.router_file import prior

COUNTS = 32
_BITS = 1 << 17
_SHRUNK = 0.1
_LEAST = 20
"""Prompts below which there is no guard: half of them would know too few words."""
_SD_AT = (8 + 2 * COUNTS) * 4  # of the counts' standard deviations in the prior
_FLOOR = 0.1
"""The least standard deviation of a count, in that of the prior: one that never varied may vary a little."""


@frozen(kw_only=True)
class GuardFigures:
    """A guard and its limits, see `fastroute._core.LearnedRules`."""

    guard: bytes
    most_words: float
    most_structure: float
    most_turns: int


class _Moments:
    """Sums of the counts and of their products, and the bitmap of hashes, over prompts."""

    def __init__(self) -> None:
        self.rows = 0
        self.known = bytearray(_BITS // 8)
        self.sums = [0.0] * COUNTS
        self.products = [[0.0] * COUNTS for _ in range(COUNTS)]  # the lower triangle

    def add(self, text: bytes) -> None:
        hashes, found = _core.learned_parts(text)
        for value in memoryview(hashes).cast("I"):
            bit = value >> 15
            self.known[bit >> 3] |= 1 << (bit & 7)
        counts = memoryview(found).cast("f").tolist()
        self.rows += 1
        for j, (value, row) in enumerate(zip(counts, self.products)):
            self.sums[j] += value
            if value:
                row[: j + 1] = [total + value * other for total, other in zip(row, counts[: j + 1])]

    def over(self, other: _Moments) -> _Moments:
        """Both together."""
        both = _Moments()
        both.rows = self.rows + other.rows
        both.known = bytearray(a | b for a, b in zip(self.known, other.known))
        both.sums = [a + b for a, b in zip(self.sums, other.sums)]
        both.products = [[a + b for a, b in zip(*rows)] for rows in zip(self.products, other.products)]
        return both

    def guard(self, floors: Sequence[float]) -> bytes:
        """In the form that `LearnedModel` takes."""
        means = [total / self.rows for total in self.sums]
        matrix = [[0.0] * COUNTS for _ in range(COUNTS)]
        for j in range(COUNTS):
            for k in range(j + 1):
                covariance = self.products[j][k] / self.rows - means[j] * means[k]
                matrix[j][k] = matrix[k][j] = (1 - _SHRUNK) * covariance
            spread = max(self.products[j][j] / self.rows - means[j] ** 2, floors[j] ** 2)
            matrix[j][j] = spread
        inverse = inverted(matrix)
        numbers = [*means, *(value for row in inverse for value in row)]
        return struct.pack(f"<{len(numbers)}f", *numbers) + bytes(self.known)


def inverted(matrix: Sequence[Sequence[float]]) -> list[list[float]]:
    """The inverse of a positive definite matrix, by Gauss and Jordan with pivots.

    Raises:
        ZeroDivisionError: it is singular.
    """
    size = len(matrix)
    work = [[*row, *(float(i == j) for j in range(size))] for i, row in enumerate(matrix)]
    for column in range(size):
        best = max(range(column, size), key=lambda row: abs(work[row][column]))
        work[column], work[best] = work[best], work[column]
        scale = 1 / work[column][column]
        pivot = work[column] = [value * scale for value in work[column]]
        for row in range(size):
            factor = work[row][column]
            if row != column and factor:
                work[row] = [value - factor * other for value, other in zip(work[row], pivot)]
    return [row[size:] for row in work]


def guard_of(texts: Sequence[bytes], turns: Sequence[int]) -> GuardFigures | None:
    """The guard of scored bytes, each with its messages of role user; None if there are too few."""
    if len(texts) < _LEAST:
        return None
    floors = [_FLOOR * sd for sd in struct.unpack_from(f"<{COUNTS}f", prior(), _SD_AT)]
    order = list(range(len(texts)))
    random.Random(0).shuffle(order)
    halves = order[::2], order[1::2]
    moments = _Moments(), _Moments()
    for half, found in zip(halves, moments):
        for row in half:
            found.add(texts[row])
    words, structure = [], []
    for half, other in zip(halves, reversed(moments)):
        model = _core.LearnedModel(prior(), None, other.guard(floors))
        for row in half:
            share, distance = model.unknown(texts[row])
            words.append(share)
            structure.append(distance)
    return GuardFigures(
        guard=moments[0].over(moments[1]).guard(floors),
        most_words=percentile(words, 99),
        most_structure=min(percentile(structure, 99), 1e9) if all(map(math.isfinite, structure)) else 1e9,
        most_turns=percentile(turns, 99),
    )


__all__ = ["GuardFigures", "guard_of", "inverted"]
