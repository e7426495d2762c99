"""What the ledger costs: the calling thread's part, the drain, and a report.

Run with ``pytest benchmarks/test_ledger.py``. Rows of the group ``append`` belong together: a no-op of the
same shape, one direct SQLite commit of the same row (what a ledger without a journal would cost), and the
ledger's own append. The busy rows do it from 16 threads that compute and sleep as calls do, where giving the
interpreter lock away is what costs; they report the time of the append alone.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fastroute.ledger import Ledger
from fastroute.types import Attempt

from .records import MAKERS, attempt

THREADS = 16
CALLS = 50
ROWS = 5_000


@pytest.fixture(params=MAKERS)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    made = MAKERS[request.param](tmp_path / "ledger.db")
    yield made
    made.close()


@pytest.mark.benchmark(group="append, one thread")
def test_append(benchmark: Any, target: Any) -> None:
    def entry() -> tuple[tuple[Attempt], dict[str, Any]]:
        return (attempt(0),), {}

    benchmark.pedantic(target.append, setup=entry, rounds=300, warmup_rounds=20)


@pytest.mark.benchmark(group=f"append, {THREADS} busy threads")
def test_append_busy(benchmark: Any, target: Any) -> None:
    took: list[float] = []

    def calls() -> None:
        for n in range(CALLS):
            entry = attempt(n)
            busy = time.perf_counter() + 150e-6
            while time.perf_counter() < busy:
                pass
            time.sleep(0.001)
            start = time.perf_counter()
            target.append(entry)
            took.append(time.perf_counter() - start)

    def run() -> None:
        threads = [threading.Thread(target=calls) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    benchmark.pedantic(run, rounds=3)
    took.sort()
    for name, share in (("p50_us", 0.50), ("p99_us", 0.99)):
        benchmark.extra_info[name] = round(took[int(len(took) * share)] * 1e6, 1)


@pytest.mark.benchmark(group=f"drain of {ROWS} entries")
def test_drain(benchmark: Any, tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:

        def fill() -> None:
            for n in range(ROWS):
                ledger.append(attempt(n))

        benchmark.pedantic(ledger.flush, setup=fill, rounds=5)


@pytest.mark.benchmark(group=f"sums by model and day over {ROWS} entries")
@pytest.mark.parametrize("what", ["no-op", "rows-only", "by"])
def test_sums(benchmark: Any, tmp_path: Path, what: str) -> None:
    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger, closing(sqlite3.connect(path)) as bare:
        for n in range(ROWS):
            ledger.append(attempt(n))
        ledger.flush()
        readings: dict[str, Callable[[], Any]] = {
            "no-op": lambda: None,
            "rows-only": lambda: bare.execute(
                "SELECT model, day, sum(cost_nano) FROM attempts GROUP BY 1, 2"
            ).fetchall(),
            "by": lambda: ledger.by("model", "day"),
        }
        benchmark.pedantic(readings[what], rounds=10, warmup_rounds=1)
