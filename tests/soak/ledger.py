"""The kill loop: processes that write to one ledger are killed repeatedly, and no entry may be missing.

    python -m tests.soak.ledger --rounds 500
    python -m tests.soak.ledger --rounds 500 --postgres

In each round several processes write from two threads each, and all are killed with SIGKILL at a random
moment: while they open the ledger, create its tables, commit, checkpoint, change journal segments, or drain
the journals of killed processes. An entry is acknowledged when `append` has returned; the writer then writes
its id to a file. Afterwards every acknowledged entry must be in the ledger, once and as it was written, the
ledger's sum must be that of its entries, and the database's integrity check must pass.

With ``--postgres`` the server is killed and restarted every 25 rounds.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastroute.ledger import Ledger, journal
from fastroute.ledger import writer as ledger_writer
from fastroute.types import Attempt

START = 1_700_000_000  # the time of round 0; a round is a second, so it can be read by itself
LONGEST_LIFE = 0.12  # seconds
VERIFY_EVERY = 5  # rounds; in between it is the next writers who find what the killed have left
CHECK_EVERY = 50


@dataclass
class Figures:
    rounds: int = 0
    kills: int = 0
    acknowledged: int = 0
    found: int = 0
    spent: int = 0
    segments_left: int = 0
    server_kills: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.rounds} rounds, {self.kills} processes and {self.server_kills} servers killed, "
            f"{self.segments_left} journal segments left behind and drained; {self.acknowledged:,} entries "
            f"acknowledged, {self.found:,} found, 0 lost, 0 twice, sum exact ({self.spent:,} nano-dollars); "
            f"{self.seconds:.0f} s"
        )


def cost_of(number: int) -> int:
    return 1 + number * 7919 % 1_000_003


def _attempt(round_: int, name: str, number: int) -> Attempt:
    return Attempt(
        id=f"{name}-{number}",
        call_id=name,
        time=START + round_ + 0.5,
        endpoint="p/m",
        provider="p",
        model="m",
        cost_nano=cost_of(number),
        tags={"writer": name},
    )


def _write(opens: Callable[[], Ledger], round_: int, name: str, folder: Path, seed: int) -> None:
    ledger_writer.SEGMENT_BYTES = 20_000  # so that many rotations come to pass in a short life
    ledger = opens()

    def pour(thread: str) -> None:
        chance = random.Random(f"{seed}{thread}")
        notes = os.open(folder / f"{name}{thread}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        number = 0
        while True:
            attempt = _attempt(round_, f"{name}{thread}", number)
            ledger.append(attempt)
            os.write(notes, attempt.id.encode() + b"\n")
            number += 1
            if chance.random() < 0.3:
                time.sleep(0.002)
            elif chance.random() < 0.005:
                ledger.flush()

    threading.Thread(target=pour, args=("b",), daemon=True).start()
    pour("a")


def _start(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return pid


def kill_loop(
    opens: Callable[[], Ledger],
    directory: Path,
    folder: Path,
    *,
    rounds: int,
    writers: int = 8,
    seed: int = 0,
    check: Callable[[], None] = lambda: None,
    disturb: Callable[[int], int] = lambda _: 0,
) -> Figures:
    """Runs the loop; what does not hold is an `AssertionError`.

    Args:
        opens: opens the ledger, which nobody else uses.
        directory: of its journal.
        folder: an empty one, for what writers note.
        check: asks the database whether it is sound.
        disturb: called with each round's number while its writers work; how many servers it killed.
    """
    chance = random.Random(seed)
    figures = Figures()
    began = time.monotonic()
    acknowledged: set[str] = set()
    for round_ in range(rounds):
        names = [f"{round_}-{writer}" for writer in range(writers)]
        pids = [
            _start(partial(_write, opens, round_, name, folder, chance.getrandbits(30))) for name in names
        ]
        start = time.monotonic()
        deaths = sorted((chance.random() * LONGEST_LIFE, pid) for pid in pids)
        figures.server_kills += disturb(round_)
        for moment, pid in deaths:
            time.sleep(max(0.0, start + moment - time.monotonic()))
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            _, status = os.waitpid(pid, 0)
            assert status == signal.SIGKILL, "a writer failed"
        figures.rounds += 1
        figures.kills += writers
        figures.segments_left += sum(name.endswith(journal.SUFFIX) for name in _names(directory))
        for note in folder.iterdir():
            *lines, torn = note.read_text().split("\n")
            assert not torn
            acknowledged.update(lines)
            note.unlink()
        last = round_ == rounds - 1
        if last or round_ % VERIFY_EVERY == VERIFY_EVERY - 1:
            first = 0 if last else round_ - VERIFY_EVERY + 1
            _verify(opens, acknowledged, first, figures)
            left = [name for name in _names(directory) if name.endswith(journal.SUFFIX)]
            assert left == [], "segments of the dead were not drained"
        if last or round_ % CHECK_EVERY == CHECK_EVERY - 1:
            check()
    figures.acknowledged = len(acknowledged)
    figures.seconds = time.monotonic() - began
    return figures


def _names(directory: Path) -> list[str]:
    return os.listdir(directory) if directory.exists() else []


def _verify(opens: Callable[[], Ledger], acknowledged: set[str], first: int, figures: Figures) -> None:
    """Compares what the ledger holds of all rounds since ``first`` with what was acknowledged in them."""
    with opens() as ledger:
        since = float(START + first)
        entries = ledger.entries(None, since=since)
        ids = {entry.id for entry in entries}
        lost = {id_ for id_ in acknowledged if int(id_.partition("-")[0]) >= first} - ids
        assert not lost, f"{len(lost)} acknowledged entries are lost: {sorted(lost)[:5]}"
        assert len(ids) == len(entries), "an entry is there twice"
        for entry in entries:
            name, _, number = entry.id.rpartition("-")
            assert entry == _attempt(int(name.partition("-")[0]), name, int(number)), entry
        spent = ledger.spent(since)
        assert spent == sum(entry.cost_nano or 0 for entry in entries)
        assert ledger.totals(since=since).attempts == len(entries)
        assert ledger.health.rejected == 0
        figures.found, figures.spent = len(entries), spent


def check_sqlite(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows, distinct = connection.execute("SELECT count(*), count(DISTINCT id) FROM attempts").fetchone()
        assert rows == distinct


def _sqlite(top: Path, rounds: int, seed: int) -> Iterator[Figures]:
    """A fresh file every hundred rounds, so that it is made under fire too."""
    for part in range(0, rounds, 100):
        path, folder = top / f"{part}.db", top / f"notes{part}"
        folder.mkdir()
        yield kill_loop(
            partial(Ledger, path),
            Path(f"{path}.journal"),
            folder,
            rounds=min(100, rounds - part),
            seed=seed + part,
            check=partial(check_sqlite, path),
        )


def _postgres(top: Path, rounds: int, seed: int) -> Iterator[Figures]:
    sys.path.append(str(Path(__file__).parents[1]))
    from postgres_server import PostgresServer

    server = PostgresServer()
    try:
        server.start()
        for part in range(0, rounds, 100):
            yield postgres_loop(server, top / f"part{part}", min(100, rounds - part), seed + part)
    finally:
        server.close()


def postgres_loop(
    server: Any, top: Path, rounds: int, seed: int, writers: int = 8, kill_server_every: int = 25
) -> Figures:
    url = server.new_schema()
    (top / "notes").mkdir(parents=True)

    def disturb(round_: int) -> int:
        if round_ % kill_server_every != kill_server_every - 1:
            return 0
        time.sleep(LONGEST_LIFE / 2)
        server.kill()
        server.start()
        return 1

    def check() -> None:
        ((rows, distinct),) = server.run("SELECT count(*), count(DISTINCT id) FROM fastroute_attempts", url)
        assert rows == distinct

    return kill_loop(
        lambda: Ledger(url, journal=top / "journal"),
        top / "journal",
        top / "notes",
        rounds=rounds,
        writers=writers,
        seed=seed,
        check=check,
        disturb=disturb,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--postgres", action="store_true", help="into PostgreSQL; needs initdb and postgres")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # a server that is killed is spoken of by all who write to it
    top = Path(tempfile.mkdtemp(prefix="fastroute-soak-"))
    total = Figures()
    parts = _postgres if options.postgres else _sqlite
    try:
        for part in parts(top, options.rounds, options.seed):
            print(part, flush=True)
            for name in vars(total):
                setattr(total, name, getattr(total, name) + getattr(part, name))
        print("in all:", total)
    finally:
        shutil.rmtree(top)


if __name__ == "__main__":
    main()
