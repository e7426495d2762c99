"""Calls that run out of stack, memory, descriptors or disk, at every single point: all kinds, all faults.

    python -m tests.soak.exhaustion
    python -m tests.soak.exhaustion --fault memory --kind plain --kind stream

`tests/faults/exhaustion.py` makes the calls and checks what they leave; the suite runs a sample of it. Lack
of memory is left out for hedged and submitted calls: they use the standard library's futures, whose locks a
MemoryError may leave held.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

_TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(_TESTS), str(_TESTS / "faults")]

from exhaustion import FAULTS, KINDS, run  # noqa: E402

LEFT_OUT = {("hedged", "memory"), ("submit", "memory")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=KINDS, action="append", help="of calls; default: all")
    parser.add_argument("--fault", choices=FAULTS, action="append", help="default: all")
    parser.add_argument("--every", type=int, default=1, help="points between two faults")
    options = parser.parse_args()
    started, calls, hit = time.monotonic(), 0, 0
    for fault in options.fault or FAULTS:
        for kind in options.kind or KINDS:
            if (kind, fault) in LEFT_OUT:
                continue
            with tempfile.TemporaryDirectory() as folder:
                counts = run(kind, fault, Path(folder), every=options.every)
            calls += counts["calls"]
            hit += counts["hit"]
            print(f"{fault}, {kind}: {counts}", flush=True)
    print(f"{calls:,} calls in {time.monotonic() - started:.0f} s; nothing was left or lost")


if __name__ == "__main__":
    main()
