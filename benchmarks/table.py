"""Measures tables and prints them as Markdown: ``python -m benchmarks.table [WORD ...]``.

Words select the tables whose titles contain one of them. Progress goes to standard error.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator

from . import calls, gateway, hedging, instructions, limits, processes, records, routing, start
from .run import Run, Table
from .side_by_side import Comparison, Trial, compare, run_trial

COMPARISONS: tuple[Comparison, ...] = (
    *limits.COMPARISONS,
    *processes.COMPARISONS,
    *routing.COMPARISONS,
    *calls.COMPARISONS,
    *records.COMPARISONS,
    *gateway.COMPARISONS,
)
TRIALS: tuple[Trial, ...] = (
    *limits.TRIALS,
    *processes.TRIALS,
    *calls.TRIALS,
    *records.TRIALS,
    *start.TRIALS,
    *hedging.TRIALS,
    *instructions.TRIALS,
)


def measure(wanted: Callable[[str], bool] = lambda title: True, rounds: int | None = None) -> Iterator[Table]:
    """Measures the selected tables, one after the other."""
    logging.getLogger("fastroute").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # warnings of the peers
    begun = time.monotonic()
    for each in (*COMPARISONS, *TRIALS):
        if wanted(each.title):
            print(f"{time.monotonic() - begun:4.0f} s  {each.title}", file=sys.stderr, flush=True)
            rows = compare(each, rounds) if isinstance(each, Comparison) else run_trial(each, rounds)
            yield Table.of(each, rows)
    print(f"{time.monotonic() - begun:4.0f} s in all", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("word", nargs="*", help="only tables whose title contains one of these")
    parser.add_argument("--rounds", type=int, help="rounds of each comparison and trial (default: its own)")
    arguments = parser.parse_args()
    words = [word.lower() for word in arguments.word]
    print(Run.here().heading(), flush=True)
    for table in measure(
        lambda title: not words or any(word in title.lower() for word in words), arguments.rounds
    ):
        print(f"\n{table.markdown()}", flush=True)


if __name__ == "__main__":
    main()
