"""Damages state files, at rest and under calls, in every byte of every cell; each run is a child process.

    python -m tests.soak.cells --minutes 10
    python -m tests.soak.cells --minutes 10 --seed 7

A round changes each byte of each cell to 0, 255 and any value: in a file that a process has mapped, and in
one that a new process opens. Then two threads use a file for some seconds while its bytes are changed at
random, and clients with a ledger and a hard budget open damaged files and call. `tests/damage.py` and
`tests/state/damaged_clients.py` say what must hold. The exit status is 1 if anything did not. In the
sanitizer build (`.ci/asan`) the same finds reads and writes out of bounds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

_TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(_TESTS), str(_TESTS / "state")]

import damage  # noqa: E402
import damaged_clients  # noqa: E402
from children import ended, forked  # noqa: E402

Run = Callable[[Path, random.Random], damage.Found]
RUNS: dict[str, Run] = {
    "mapped": lambda path, dice: damage.mapped(path, dice, 1),
    "at rest": lambda path, dice: damage.at_rest(path, dice, 1),
    "under calls": lambda path, dice: damage.live(path, dice, 5.0),
    "clients": lambda path, dice: damaged_clients.opened(path, dice, 100),
}


def in_child(run: Run, folder: Path, seed: str) -> tuple[int, int, list[str]]:
    """How a run's child ended, how many damages it made, and what did not hold."""
    result = folder / "result"

    def work() -> None:
        found = run(folder / "state", random.Random(seed))
        result.write_text(json.dumps([found.damages, found.problems]), encoding="utf-8")

    status = ended(forked(work))
    if status:
        return status, 0, []
    count, problems = json.loads(result.read_text(encoding="utf-8"))
    return 0, count, problems


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="of the first round; default: any")
    options = parser.parse_args()
    first = int.from_bytes(os.urandom(4), "little") if options.seed is None else options.seed
    end = time.monotonic() + 60 * options.minutes
    counts = dict.fromkeys(RUNS, 0)
    crashes = problems = 0
    seed = first
    while time.monotonic() < end:
        for name, run in RUNS.items():
            with tempfile.TemporaryDirectory() as folder:
                status, count, found = in_child(run, Path(folder), f"{seed} {name}")
            counts[name] += count
            crashes += status != 0
            problems += len(found)
            for problem in ([f"ended with status {status}"] if status else []) + found[:10]:
                print(f"seed {seed}, {name}: {problem}", flush=True)
        print(f"seed {seed}: {counts}, {crashes} crashes, {problems} other problems", flush=True)
        seed += 1
    print(f"{sum(counts.values()):,} damages, {crashes} crashes, {problems} other problems, seed {first}")
    sys.exit(1 if crashes or problems else 0)


if __name__ == "__main__":
    main()
