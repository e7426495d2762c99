"""One limit for several processes: forked workers on a shared segment, compared with other ways."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace

from fastroute import _core

from .side_by_side import NO_OP, Comparison, Contender, Operation, Trial, WrongAnswerError
from .workers import beside, forked

WORKERS = 4
_PLENTY = 1_000_000_000  # per minute; a burst covers faster loops


def _shared(_: ExitStack) -> Operation:
    bucket = _core.Bucket(_core.Segment(64), "shared", _PLENTY, 1_000_000_000)
    return Operation("take()", {"take": bucket.acquire}, lambda wait: wait == 0)


def value_taker(per_second: float, burst: float) -> Callable[[], bool]:
    """A token bucket in two shared numbers under one lock."""
    context = multiprocessing.get_context("fork")
    tokens = context.Value("d", burst)
    stamp = context.Value("d", time.monotonic(), lock=False)

    def take() -> bool:
        with tokens.get_lock():
            now = time.monotonic()
            left = min(burst, tokens.value + (now - stamp.value) * per_second)
            stamp.value = now
            if left < 1.0:
                tokens.value = left
                return False
            tokens.value = left - 1.0
            return True

    return take


def _value(_: ExitStack) -> Operation:
    return Operation("take()", {"take": value_taker(1e9, 1e7)}, lambda granted: granted is True)


def sqlite_taker(path: str, per_second: float, burst: float) -> Callable[[], bool]:
    """A token bucket in one row; each process has its own connection."""
    with closing(sqlite3.connect(path, isolation_level=None)) as first:
        first.execute("PRAGMA journal_mode = WAL")
        first.execute("CREATE TABLE bucket (tokens REAL, stamp REAL)")
        first.execute("INSERT INTO bucket VALUES (?, ?)", (burst, time.monotonic()))
    opened: dict[int, sqlite3.Connection] = {}

    def take() -> bool:
        connection = opened.get(os.getpid())
        if connection is None:
            connection = opened[os.getpid()] = sqlite3.connect(path, isolation_level=None, timeout=30)
            connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN IMMEDIATE")
        tokens, stamp = connection.execute("SELECT tokens, stamp FROM bucket").fetchone()
        now = time.monotonic()
        left = min(burst, tokens + (now - stamp) * per_second)
        granted = left >= 1.0
        connection.execute("UPDATE bucket SET tokens = ?, stamp = ?", (left - granted, now))
        connection.execute("COMMIT")
        return bool(granted)

    def close() -> None:
        for connection in opened.values():
            connection.close()

    take.close = close  # type: ignore[attr-defined]
    return take


def _sqlite(stack: ExitStack) -> Operation:
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fastroute-bench-"))
    take = sqlite_taker(os.path.join(folder, "bucket.db"), 1e9, 1e7)
    stack.callback(take.close)  # type: ignore[attr-defined]
    return Operation("take()", {"take": take}, lambda granted: granted is True)


def contended(make: Callable[[ExitStack], Operation]) -> Callable[[ExitStack], Operation]:
    """The same while another process acquires as fast as it can."""

    def prepare(stack: ExitStack) -> Operation:
        operation = make(stack)
        take, check = operation.names["take"], operation.check

        def other() -> None:
            for _ in range(1000):
                answer = take()
            if not check(answer):
                raise WrongAnswerError(f"in the other process {operation.statement} gave {answer!r}")

        child = stack.enter_context(beside(other))
        return replace(operation, names={**operation.names, "child": child})

    return prepare


_WAYS = {
    "fastroute Bucket on the forked segment": _shared,
    "multiprocessing.Value under its lock": _value,
    "SQLite, one row": _sqlite,
}

COMPARISONS = (
    Comparison(
        "A bucket shared by forked processes, used by one",
        (
            NO_OP,
            *(Contender(name, make, ours=name.startswith("fastroute")) for name, make in _WAYS.items()),
        ),
        base="fastroute Bucket on the forked segment",
    ),
    *(
        Comparison(
            f"The same, used by two: {name}",
            (NO_OP, Contender(name, contended(make), ours=name.startswith("fastroute"))),
            base="no-op",
            note="in its own table, because the other process would slow down other rows",
        )
        for name, make in _WAYS.items()
        if name != "SQLite, one row"  # the other process may hold the lock for an unlimited time
    ),
)


# --------------------------------------------------------------------------------------------- the bound

RATE = 20_000
BURST = 200


def bound(make: Callable[[ExitStack], Callable[[], bool]]) -> Callable[[float], list[float]]:
    """Forked workers that acquire as fast as they can: the share of the bound that is granted.

    Fails if one permit more than the bound is granted.
    """

    def run(seconds: float) -> list[float]:
        with ExitStack() as stack:
            begun = time.monotonic()  # before the bucket exists, so that the bound is not too small
            take = make(stack)

            def work() -> tuple[int, int, float]:
                granted = asked = 0
                while True:
                    for _ in range(20):
                        asked += 1
                        granted += take()
                    if (now := time.monotonic()) >= begun + seconds:
                        return granted, asked, now

            answers = forked(WORKERS, work)
            granted = sum(answer[0] for answer in answers)
            asked = sum(answer[1] for answer in answers)
            most = BURST + RATE * (max(answer[2] for answer in answers) - begun)
            if not 0 < granted <= most:
                raise WrongAnswerError(f"{granted} permits were given, not between 1 and {most:.0f}")
            return [granted / most, asked / granted]

    return run


def _ours(_: ExitStack) -> Callable[[], bool]:
    bucket = _core.Bucket(_core.Segment(64), "bound", RATE * 60, BURST)
    acquire = bucket.acquire
    return lambda: acquire() == 0


def _theirs(_: ExitStack) -> Callable[[], bool]:
    return value_taker(RATE, BURST)


TRIALS = (
    Trial(
        f"{WORKERS} forked processes with one bucket of {RATE} per second",
        ("share of the bound", "calls per permit"),
        {
            "fastroute Bucket on the forked segment": bound(_ours),
            "multiprocessing.Value under its lock": bound(_theirs),
        },
        seconds=1.0,
        rounds=3,
        note="the run fails if one permit more than the bound is granted",
    ),
)
