"""What was spent is known though the database cannot be written: it is read, and the journals with it.

A hard budget asks for it when its window begins: at a start, and at midnight. The disks and locks are real.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from entries import Opens, attempt, in_child, reap, until
from postgres_server import PostgresServer

import fastroute
from fastroute import _core, errors, events
from fastroute.budget import Budgets, spent_in
from fastroute.config import BudgetConfig
from fastroute.ledger import Ledger, journal, sqlite
from fastroute.testing import Answer, Provider

DAY = 86_400
MIDNIGHT = 20_000.0 * DAY


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "LOCK_SECONDS", 0.02)
    monkeypatch.setattr("fastroute.ledger.SPENT_SECONDS", 0.05)
    monkeypatch.setattr("fastroute.ledger.writer.RETRY_SECONDS", 0.01)
    monkeypatch.setattr("fastroute.ledger.writer.MAX_RETRY_SECONDS", 0.02)


# ------------------------------------------------------------------------ what may happen to the database

HOLD = """
import sqlite3, sys
other = sqlite3.connect(sys.argv[1], isolation_level=None)
other.execute(sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_by_another_process(path: Path, statement: str) -> Iterator[None]:
    command = [sys.executable, "-c", HOLD, str(path), statement]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        try:
            yield
        finally:
            other.stdin.close()
            other.wait(10)


def mounted(*command: str) -> bool:
    return not subprocess.run(["mount", *command], capture_output=True, check=False).returncode


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB; mounting one needs root."""
    point = tmp_path / "disk"
    point.mkdir()
    if os.geteuid() or not mounted("-t", "tmpfs", "-o", "size=2m", "tmpfs", str(point)):
        pytest.skip("mounting a small file system is not permitted here")
    yield point
    subprocess.run(["umount", str(point)], check=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with held_by_another_process(path, "BEGIN EXCLUSIVE"):
        yield


@contextmanager
def full(path: Path) -> Iterator[None]:
    filler = path.parent / "filler"
    with open(filler, "wb", buffering=0) as file:
        while shutil.disk_usage(path.parent).free:
            file.write(b"x" * 4096)
    yield
    filler.unlink()


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    # A file that is open for writing keeps a file system from becoming read-only; a second mount point is.
    point = str(path.parent)
    assert mounted("--bind", point, point)
    assert mounted("-o", "remount,bind,ro", point)
    try:
        yield
    finally:
        subprocess.run(["umount", point], check=True)


TROUBLES = {"locked": locked, "full": full, "read-only": read_only}
TROUBLED = pytest.mark.parametrize("trouble", list(TROUBLES))
# A file system with files that are open for writing cannot become read-only: that is met at a start only.
RUNNING = pytest.mark.parametrize("trouble", ["locked", "full"])


# An exclusive lock of a rollback journal keeps readers out too, which is tested below.
@pytest.mark.parametrize(("trouble", "wal"), [("locked", True), ("full", True), ("full", False)])
def test_the_sum_is_exact_while_nothing_can_be_written(trouble: str, wal: bool, disk: Path) -> None:
    path = disk / "ledger.db"
    with Ledger(path, wal=wal) as ledger:
        for n in range(3):
            ledger.append(attempt(n, cost_nano=10**n, tags={"team": "red"}))
        ledger.flush()
        # Another process was killed before its entries came to the database.
        reap(in_child(lambda: Ledger(path, wal=wal).append(attempt(3, cost_nano=1000))))
        with TROUBLES[trouble](path):
            ledger.append(attempt(4, cost_nano=10_000, budget_nano=20_000, usage_source="estimated"))
            ledger.append(attempt(5, cost_nano=None))
            until(lambda: not ledger.health.ok)
            assert ledger.spent() == 21_111
            assert ledger.spent(tags={"team": "red"}) == 111
            assert ledger.spent(tags={"team": ""}) == 21_000
            assert ledger.spent(since=attempt(1).time) == 21_110
        until(lambda: ledger.health.ok or not ledger.append(attempt(cost_nano=0)))
        assert ledger.spent() == 21_111
        assert ledger.totals().budget_nano == 21_111


@TROUBLED
def test_a_restart_under_the_same_trouble_knows_the_sum(trouble: str, disk: Path) -> None:
    path = disk / "ledger.db"
    with Ledger(path) as ledger:
        ledger.append(attempt(0, cost_nano=1))
    with TROUBLES[trouble](path), Ledger(path) as ledger:
        ledger.append(attempt(1, cost_nano=10))
        assert ledger.spent() == 11
        until(lambda: not ledger.health.ok)
    with Ledger(path) as ledger:
        # On a read-only or full disk the entry was in memory alone, which docs/ledger.md says.
        assert ledger.spent() == (11 if trouble == "locked" else 1)


def test_a_lock_that_keeps_readers_out_leaves_the_sum_unknown(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger(path, wal=False) as ledger:
        ledger.append(attempt(0, cost_nano=1))
        ledger.flush()
        with held_by_another_process(path, "BEGIN EXCLUSIVE"):
            ledger.append(attempt(1, cost_nano=10))
            with pytest.raises(fastroute.LedgerError, match="locked"):
                ledger.spent()
            # But not that of a time since which the database was out of reach: all of it is in the journal.
            ledger.append(attempt(2, cost_nano=100, time=time.time() + 60))
            until(lambda: not ledger.health.ok)
            assert ledger.spent(since=time.time() + 30) == 100
        until(lambda: ledger.health.ok)
        assert ledger.spent() == 111


def test_a_newer_or_damaged_file_leaves_the_sum_unknown(tmp_path: Path) -> None:
    for statement in ("PRAGMA user_version = 99", "DROP TABLE attempts"):
        path = tmp_path / f"{len(statement)}.db"
        with Ledger(path) as ledger:
            ledger.append(attempt(0, cost_nano=1))
            ledger.flush()
            with closing(sqlite3.connect(path)) as other, other:
                other.execute(statement)
            ledger.append(attempt(1, cost_nano=10))
            with pytest.raises(fastroute.LedgerError, match="cannot be read"):
                ledger.spent()


def test_a_file_of_an_older_release_is_read_too(disk: Path) -> None:
    path = disk / "ledger.db"
    with Ledger(path) as ledger:
        ledger.append(attempt(0, cost_nano=1))
    with closing(sqlite3.connect(path)) as old, old:
        old.execute("ALTER TABLE attempts DROP COLUMN budget_nano")
        old.execute("PRAGMA user_version = 3")
    with read_only(path), Ledger(path) as ledger:
        ledger.append(attempt(1, cost_nano=10))
        assert ledger.spent() == 11


def test_a_place_that_was_never_a_ledger_is_still_refused(disk: Path) -> None:
    with read_only(disk / "x"), pytest.raises(fastroute.ConfigError, match="Read-only file system"):
        Ledger(disk / "new.db")


def test_a_limit_to_the_size_of_files_fails_no_sum(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger:
        for n in range(200):
            ledger.append(attempt(n, cost_nano=1))

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        ledger = Ledger(path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        for n in range(300):
            ledger.append(attempt(n, cost_nano=10))
        assert ledger.spent() == 3200
        assert ledger.health.lost == 0

    reap(in_child(work))


def test_entries_that_move_meanwhile_count_once(tmp_path: Path) -> None:
    """The journals are read before the database, so what is committed in between is in neither twice."""
    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger:
        for n in range(50):
            ledger.append(attempt(n, cost_nano=1))
        problem = errors.LedgerError("as if it had not been written in time")
        for _ in range(20):
            ledger.append(attempt(99, cost_nano=1))
            assert ledger.spent_unwritten(None, None, problem) == ledger.spent()


# ------------------------------------------------------------------------------------------ budgets and calls


class At:
    """A clock that is set by hand."""

    def __init__(self, time: float) -> None:
        self.time = time

    def __call__(self) -> float:
        return self.time


@RUNNING
def test_at_midnight_a_hard_budget_goes_on(trouble: str, disk: Path) -> None:
    path = disk / "ledger.db"
    clock = At(MIDNIGHT - 60)
    config = BudgetConfig(name="day", limit=1e-6, window="day")  # a thousand nano-dollars
    with Ledger(path) as ledger:
        budgets = Budgets([config], _core.Segment(256), spent_in(ledger), events.Hooks(), now=clock)
        ledger.append(attempt(0, time=clock.time, cost_nano=900))
        ledger.flush()
        budgets.reserve(100, {}, 60.0).release()
        with pytest.raises(errors.BudgetExceeded):
            budgets.reserve(101, {}, 60.0)
        with TROUBLES[trouble](path):
            clock.time = MIDNIGHT + 60
            ledger.append(attempt(1, time=clock.time, cost_nano=600))
            budgets.reserve(400, {}, 60.0).release()
            with pytest.raises(errors.BudgetExceeded, match=r"\$0.0000006 is spent"):
                budgets.reserve(401, {}, 60.0)


@TROUBLED
def test_calls_are_served_after_a_restart(trouble: str, disk: Path) -> None:
    path = disk / "ledger.db"
    with Provider(models=["m"], answer=Answer("hi", prompt_tokens=10, completion_tokens=10)) as provider:
        settings = {
            "fastroute": {"ledger": str(path)},
            "cache": {"enabled": False},
            "providers": {"p": {"base_url": provider.base_url}},
            "endpoints": [{"provider": "p", "model": "m"}],
            "models": {"m": {"input_price": 1.0, "output_price": 1.0}},
            "budgets": [{"name": "day", "limit": 0.0001, "window": "day"}],
        }

        def ask(client: fastroute.Client) -> None:
            client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "Hello"}], max_tokens=10
            )

        with fastroute.Client(settings) as client:
            ask(client)
        with TROUBLES[trouble](path), fastroute.Client(settings) as client:
            ask(client)
            ask(client)
            assert client.budgets()[0].spent_nano == 60_000
            for _ in range(2):  # the budget is as exact as ever: two more would pass it
                with pytest.raises(fastroute.BudgetExceeded, match=r"\$0.00006 is spent|\$0.00008 is spent"):
                    [ask(client) for _ in range(3)]


def test_postgresql_away_since_before_midnight_stops_no_budget(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastroute.ledger.postgres.CONNECT_SECONDS", 1)
    opens = Opens(server.new_schema(), tmp_path / "journal")
    now = time.time()
    clock = At(now)
    config = BudgetConfig(name="day", limit=1e-6, window="day")
    with opens() as ledger:
        budgets = Budgets(
            [config],
            _core.Segment(256),
            spent_in(ledger),
            events.Hooks(),
            now=clock,
            clock=lambda: int(clock.time * 1e9),
        )
        ledger.append(attempt(0, time=now, cost_nano=900))
        ledger.flush()
        server.kill()
        try:
            ledger.append(attempt(1, time=now, cost_nano=50))
            until(lambda: not ledger.health.ok)
            # The day that is: what the server has of it is unknown, so nothing is let in.
            with pytest.raises(errors.BudgetExceeded, match="the ledger cannot be read") as caught:
                budgets.reserve(1, {}, 60.0)
            assert caught.value.retry_after == 5.0
            # The next day: all of it is in this machine's journals.
            clock.time = now + DAY
            ledger.append(attempt(2, time=clock.time, cost_nano=600))
            budgets.reserve(400, {}, 60.0).release()
            with pytest.raises(errors.BudgetExceeded, match=r"\$0.0000006 is spent"):
                budgets.reserve(401, {}, 60.0)
        finally:
            server.start()
        until(lambda: ledger.health.ok)
        assert ledger.spent() == 1550


def test_counters_that_outlive_the_process_need_no_server_at_a_restart(
    server: PostgresServer, tmp_path: Path
) -> None:
    with Provider(models=["m"], answer=Answer("hi", prompt_tokens=10, completion_tokens=10)) as provider:
        settings = {
            "fastroute": {
                "ledger": server.new_schema(),
                "ledger_journal": str(tmp_path / "journal"),
                "state": str(tmp_path / "state"),
            },
            "cache": {"enabled": False},
            "providers": {"p": {"base_url": provider.base_url}},
            "endpoints": [{"provider": "p", "model": "m"}],
            "models": {"m": {"input_price": 1.0, "output_price": 1.0}},
            "budgets": [{"name": "month", "limit": 0.0001, "window": "month"}],
        }

        def ask(client: fastroute.Client) -> None:
            client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "Hello"}], max_tokens=10
            )

        with fastroute.Client(settings) as client:
            ask(client)
        server.kill()
        try:
            with fastroute.Client(settings) as client:
                assert not client.ledger.health.ok
                ask(client)
                assert client.budgets()[0].spent_nano == 40_000
        finally:
            server.start()
        with fastroute.Client(settings) as client:
            assert client.ledger.spent() == 40_000


def test_the_sum_outside_the_database_is_what_the_database_would_say(tmp_path: Path) -> None:
    rows = [
        attempt(0, cost_nano=1, tags={"team": "red", "x": "1"}),
        attempt(1, cost_nano=10, budget_nano=20, tags={"team": "blue"}),
        attempt(2, cost_nano=None, budget_nano=None),
        attempt(3, cost_nano=None, budget_nano=400, tags={"team": "red"}),
        attempt(4, cost_nano=5000, tags={"team": ""}),
    ]
    encoded = [journal.decode(journal.encode(row)) for row in rows]
    with Ledger(tmp_path / "ledger.db") as ledger:
        for row in rows:
            ledger.append(row)
        for since in (None, rows[2].time, rows[4].time + 1):
            for tags in (None, {"team": "red"}, {"team": ""}, {"team": "red", "x": "1"}, {"none": ""}):
                assert journal.counted([row for row in encoded if row], since, tags) == ledger.spent(
                    since, tags
                )
