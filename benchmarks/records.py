"""The time that recording an attempt takes in the calling thread, compared with a commit of the same row."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import orjson

from fastroute.figures import percentile
from fastroute.ledger import Ledger, journal
from fastroute.types import Attempt

from .side_by_side import NO_OP, Comparison, Contender, Operation, Trial, WrongAnswerError
from .workers import load

_COLUMNS = (*journal.FIELDS, "day")
_INSERT = " ".join(
    (
        "INSERT INTO attempts (",
        ",".join(_COLUMNS),
        ") VALUES (",
        ",".join(f":{name}" for name in _COLUMNS),
        ")",
    )
)


COST = 3_544_000  # nano-dollars


def attempt(n: int) -> Attempt:
    return Attempt(
        id=os.urandom(16).hex(),
        call_id=f"call-{n}",
        time=1.7e9 + n,
        endpoint="openai/gpt-4.1",
        provider="openai",
        model="gpt-4.1",
        tier="standard",
        level="moderate",
        status_code=200,
        prompt_tokens=812,
        completion_tokens=240,
        usage_source="provider",
        cost_nano=COST,
        latency=1.25,
        tags={"team": "search", "user": "u-17"},
    )


class Direct:
    """One commit per entry on a connection of the thread, like a ledger without a journal."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []
        Ledger(path).close()  # for the schema and the write-ahead log

    def append(self, entry: Attempt) -> None:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(
                self._path, isolation_level=None, check_same_thread=False, timeout=30
            )
            connection.execute("PRAGMA synchronous = NORMAL")
            self._local.connection = connection
            self._opened.append(connection)
        values = dict(attrs.asdict(entry, recurse=False), day=0, tags=orjson.dumps(entry.tags).decode())
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(_INSERT, values)
        connection.execute("COMMIT")

    def flush(self) -> None:
        pass

    def by(self, *columns: str) -> list[SimpleNamespace]:
        with closing(sqlite3.connect(self._path)) as connection:
            sums = connection.execute("SELECT model, day, sum(cost_nano) FROM attempts GROUP BY 1, 2")
            return [SimpleNamespace(cost_nano=row[2]) for row in sums]

    def close(self) -> None:
        for connection in self._opened:
            connection.close()


class Memory:
    """Keeps the entries in memory."""

    def __init__(self) -> None:
        self.entries: list[Attempt] = []
        self.append = self.entries.append

    def close(self) -> None:
        pass


def _power(path: Path) -> Ledger:
    return Ledger(path, durability="power")


_KEPT = """
SELECT count(*), sum(cost_nano = ? AND call_id LIKE 'call-%' AND json_extract(tags, '$.team') = 'search')
FROM attempts
"""


def kept(target: Any, path: Path) -> int:
    """The number of entries in the target; -1 if one of them differs from what was written."""
    if isinstance(target, Memory):
        return len(target.entries)
    target.flush()
    with closing(sqlite3.connect(path)) as connection:
        count, whole = connection.execute(_KEPT, (COST,)).fetchone()
    return int(count) if count == whole else -1


Make = Callable[[Path], Any]


def _path(stack: ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastroute-bench-"))) / "ledger.db"


def appending(make: Make) -> Callable[[ExitStack], Operation]:
    def prepare(stack: ExitStack) -> Operation:
        path = _path(stack)
        target = make(path)
        stack.callback(target.close)
        before = 0

        def is_kept(answer: bool | None) -> bool:
            nonlocal before
            earlier, before = before, kept(target, path)
            return answer is not False and before > earlier

        return Operation("append(attempt(0))", {"append": target.append, "attempt": attempt}, is_kept)

    return prepare


COMPARISONS = (
    Comparison(
        "An entry in the ledger, calling thread",
        (
            NO_OP,
            Contender("making the entry", appending(lambda _: Memory())),
            Contender("fastroute Ledger.append", appending(Ledger), ours=True),
            Contender("fastroute Ledger.append, durability power", appending(_power), ours=True),
            Contender("one SQLite commit (WAL, synchronous NORMAL)", appending(Direct)),
        ),
        base="one SQLite commit (WAL, synchronous NORMAL)",
        loops=50,
        rounds=30,
        clock=time.perf_counter,
        note="wall-clock time, including making the entry",
    ),
)


# ------------------------------------------------------------------------------- many threads, many entries

THREADS = 16
ROWS = 5_000


def busy(make: Make) -> Callable[[float], list[float]]:
    """The median and 99th percentile of an append in µs, in threads that compute and sleep like calls.

    Most of the time is spent on acquiring the interpreter lock again.
    """

    def run(seconds: float) -> list[float]:
        with ExitStack() as stack:
            path = _path(stack)
            target = make(path)
            stack.callback(target.close)
            took: list[float] = []

            def call() -> None:
                entry = attempt(0)
                busy = time.perf_counter() + 150e-6
                while time.perf_counter() < busy:
                    pass
                time.sleep(0.001)
                start = time.perf_counter()
                target.append(entry)
                took.append(time.perf_counter() - start)

            _all_kept(target, path, load(THREADS, seconds, lambda _: call).total)
            return [percentile(took, percent) * 1e6 for percent in (50, 99)]

    return run


def through(make: Make) -> Callable[[float], list[float]]:
    """Thousands of entries per second: written to the file, and summed by model and day."""

    def run(_: float) -> list[float]:
        with ExitStack() as stack:
            path = _path(stack)
            target = make(path)
            stack.callback(target.close)
            begun = time.perf_counter()
            for number in range(ROWS):
                target.append(attempt(number))
            target.flush()
            written = time.perf_counter()
            sums = target.by("model", "day")
            summed = time.perf_counter()
            _all_kept(target, path, ROWS)
            if sum(group.cost_nano for group in sums) != ROWS * COST:
                raise WrongAnswerError(f"the sums are {sums!r:.300}")
            return [ROWS / (written - begun) / 1e3, ROWS / (summed - written) / 1e3]

    return run


def _all_kept(target: Any, path: Path, entries: int) -> None:
    found = kept(target, path)
    if found != entries:
        raise WrongAnswerError(f"{found} of {entries} entries are in the file as they were written")


TRIALS = (
    Trial(
        f"An entry in the ledger, calling thread, {THREADS} busy threads",
        ("median, µs", "99 %, µs"),
        {"fastroute Ledger.append": busy(Ledger), "one SQLite commit each": busy(Direct)},
        seconds=0.5,
        rounds=5,
        note="wall-clock time of the append only",
    ),
    Trial(
        "Entries written by the ledger, thousands per second",
        ("written", "summed by model and day"),
        {"fastroute Ledger": through(Ledger), "one SQLite commit each, one SELECT": through(Direct)},
        seconds=0.0,
        rounds=5,
        note=f"{ROWS:,} entries of one thread, until the last is in the file",
    ),
)
