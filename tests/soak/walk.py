"""Ends answers after each of their bytes: all formats, framings, header styles, fresh and kept connections.

    python -m tests.soak.walk
    python -m tests.soak.walk --stall-every 1 --only gemini

Every variant of an answer is cut and reset after each of its bytes, and stalls after one byte in
``--stall-every``, because each stall takes a time-out. `tests/faults/walks.py` has the expected results. At
the end no thread, file descriptor, permit or reservation may be left.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

_TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(_TESTS), str(_TESTS / "faults")]

import requests  # noqa: E402
from loopback import nothing_left  # noqa: E402
from walks import PATIENT, STALL, Variant, run, walking  # noqa: E402


def variants(only: str) -> list[Variant]:
    """All variants of an answer whose name contains ``only``."""
    found = [
        Variant(*choice)
        for choice in itertools.product(
            ("openai", "anthropic", "gemini"),
            (False, True),
            ("length", "chunked", "close"),
            (False, True),
            (False, True),
            (False, True),
        )
    ]
    return [variant for variant in found if only in str(variant)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stall-every", type=int, default=97, help="bytes between two silent ends")
    parser.add_argument("--every", type=int, default=1, help="bytes between two cuts, and two resets")
    parser.add_argument("--only", default="", help="a part of the variants' names")
    parser.add_argument("--session", action="store_true", help="through a requests.Session of the caller's")
    options = parser.parse_args()
    started = time.monotonic()
    counts = {"cut": 0, "reset": 0, "stall": 0}
    chosen = variants(options.only)
    for number, variant in enumerate(chosen, 1):
        with nothing_left(), tempfile.TemporaryDirectory() as folder, requests.Session() as session:
            through = session if options.session else None
            with walking(Path(folder), variant.format, PATIENT, through) as walk:
                counts["cut"] += run(walk, variant, "cut", options.every)
                counts["reset"] += run(walk, variant, "reset", options.every)
            with walking(Path(folder), variant.format, STALL, through) as hasty:
                counts["stall"] += run(hasty, variant, "stall", options.stall_every)
        print(f"{number}/{len(chosen)} {variant}: {counts}", flush=True)
    took = time.monotonic() - started
    print(f"{sum(counts.values()):,} ends of {len(chosen)} answers in {took:.0f} s: {counts}")


if __name__ == "__main__":
    main()
