"""Damages what is stored and read again: bytes at random places become 0, 255 or random, parts are cut off.

    python -m tests.soak.stored --rounds 20000
    python -m tests.soak.stored --only keys --seed 7

Each round makes one to four damages. What is read may be an error of fastroute or what is still intact, never
another exception. The seed is printed; it repeats the run.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

_TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(_TESTS)]

from fastroute import errors  # noqa: E402
from fastroute.gateway.keyring import Keyring, KeysUnavailable  # noqa: E402
from fastroute.gateway.keys import Caller, KeyFile  # noqa: E402


def damaged(data: bytes, chance: random.Random) -> bytes:
    """The data with one to four damages."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        kind = chance.randrange(6)
        at = chance.randrange(max(len(found), 1))
        if kind < 3 and found:
            found[at] = (0, 255, chance.randrange(256))[kind]
        elif kind == 3:
            length = chance.choice((1, 8, 100, 4096))
            found[at : at + length] = chance.randbytes(len(found[at : at + length]))
        elif kind == 4 and chance.random() < 0.2:
            del found[at:]
        else:
            source = chance.randrange(max(len(found), 1))
            found[at : at + 16] = found[source : source + len(found[at : at + 16])]
    return bytes(found)


def keys(chance: random.Random, folder: Path, rounds: int) -> Counter[str]:
    """Damages a key file; who is found has the settings that it was made with, or some that are possible."""
    file = KeyFile(folder / "keys.db")
    callers = [
        Caller(
            f"caller-{number}",
            rpm=number * 10 or None,
            budgets={"day": 5.0},
            tags={"team": f"t{number}"},
            models=("auto", f"model-{number}") if number % 2 else None,
        )
        for number in range(20)
    ]
    tokens = [file.create(caller).encode() for caller in callers]
    good = Path(file.path).read_bytes()
    counts: Counter[str] = Counter()
    for _ in range(rounds):
        Path(file.path).write_bytes(damaged(good, chance))
        try:
            keyring = Keyring(file)
        except errors.ConfigError:
            counts["file refused"] += 1
            continue
        for token in tokens:
            try:
                counts["refused" if keyring.find(token) is None else "found"] += 1
            except KeysUnavailable:
                counts["damaged"] += 1
    return counts


PARTS: dict[str, Callable[[random.Random, Path, int], Counter[str]]] = {"keys": keys}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20_000, help="damages of each part")
    parser.add_argument("--only", choices=PARTS, help="only this part")
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    for name, part in PARTS.items():
        if options.only in (None, name):
            started = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                counts = part(random.Random(seed), Path(folder), options.rounds)
            took = time.monotonic() - started
            shown = ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items()))
            print(f"{name}: {options.rounds:,} damages in {took:.0f} s: {shown}", flush=True)


if __name__ == "__main__":
    main()
