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
from fastroute.ledger import Ledger  # noqa: E402
from fastroute.ledger import journal as journals  # noqa: E402
from fastroute.types import Attempt  # noqa: E402


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


def journal(chance: random.Random, folder: Path, rounds: int) -> Counter[str]:
    """Damages a segment of a ledger's journal; entries that are read are those that were written.

    If one is missing, what was spent is unknown.
    """
    total = 20
    good = b"".join(journals.encode(_attempt(n)) for n in range(total))
    counts: Counter[str] = Counter()
    path = folder / "ledger.db"
    for number in range(rounds):
        with Ledger(path):
            pass
        segment = Path(f"{path}.journal/1-{number}-1{journals.SUFFIX}")
        segment.write_bytes(damaged(good, chance))
        with Ledger(path) as ledger:
            found = {entry.id: entry.cost_nano for entry in ledger.entries(None)}
            assert all(found[name] == int(name) for name in found), found
            try:
                spent = ledger.spent()
                counts["read"] += 1
                counts["cut off"] += len(found) < total
                assert spent == sum(found.values())
            except errors.LedgerError:
                counts["said to be damaged"] += 1
            ledger.append(_attempt(total))
        for left in (*folder.glob("ledger.db*"), *folder.glob("ledger.db.journal/*")):
            if left.is_file():
                left.unlink()
    return counts


def database(chance: random.Random, folder: Path, rounds: int) -> Counter[str]:
    """Damages a ledger's database; reports succeed, or fail as errors of the ledger; entries can be added."""
    path = folder / "ledger.db"
    with Ledger(path) as ledger:
        for n in range(200):
            ledger.append(_attempt(n))
    good = path.read_bytes()
    counts: Counter[str] = Counter()
    for _ in range(rounds):
        path.write_bytes(damaged(good, chance))
        reports: tuple[Callable[[Ledger], object], ...] = (
            lambda ledger: ledger.spent(),
            lambda ledger: ledger.totals(),
            lambda ledger: ledger.by("day", "model", "tag:team"),
            lambda ledger: ledger.entries(),
            lambda ledger: ledger.append(_attempt(1000)),
        )
        try:
            with Ledger(path) as ledger:
                for report in reports:
                    try:
                        report(ledger)
                        counts["read"] += 1
                    except errors.LedgerError:
                        counts["said to be damaged"] += 1
        except errors.ConfigError:
            counts["refused"] += 1
        for left in folder.glob("ledger.db*"):
            if left.is_file():
                left.unlink()
    return counts


def _attempt(n: int) -> Attempt:
    return Attempt(
        id=str(n),
        call_id=f"call-{n}",
        time=1_700_000_000.0 + n,
        endpoint="openai/gpt-4.1",
        provider="openai",
        model="gpt-4.1",
        cost_nano=n,
        prompt_tokens=10,
        latency=0.1,
        tags={"team": f"t{n % 3}"},
    )


PARTS: dict[str, Callable[[random.Random, Path, int], Counter[str]]] = {
    "keys": keys,
    "journal": journal,
    "database": database,
}


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
