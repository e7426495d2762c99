"""Where the samples of a run begin, so that many runs together meet every line and byte.

A test that takes one of so many lines or bytes begins at a place drawn from the run's seed. Each run has
another seed; pytest prints it at the end, and ``TESTS_SEED=…`` repeats the run.
"""

from __future__ import annotations

import os
import random

VARIABLE = "TESTS_SEED"  # not FASTROUTE_…, where it would be taken for a setting


def seed() -> int:
    """The run's seed. It is kept in the environment, so that all processes of a run have the same one."""
    return int(os.environ.setdefault(VARIABLE, str(random.randrange(2**32))))


def first(every: int, sample: str) -> int:
    """Where a sample of one in ``every`` begins: from 0 to ``every - 1``."""
    return random.Random(f"{seed()} {sample}").randrange(every)
