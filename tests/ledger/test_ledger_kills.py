"""The kill loop in short; `tests/soak/ledger.py` runs it for long and tells what it shows."""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from children import ended, forked
from entries import Opens, attempt, segments
from postgres_server import PostgresServer
from soak.ledger import check_sqlite, kill_loop, postgres_loop

from fastroute.ledger import Ledger

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12: a fork beside threads


def test_writers_killed_at_random_lose_nothing_and_write_nothing_twice(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    figures = kill_loop(
        partial(Ledger, path), Path(f"{path}.journal"), folder, rounds=7, check=partial(check_sqlite, path)
    )
    assert figures.kills == 56
    assert figures.found >= figures.acknowledged > 56
    assert figures.segments_left > 0


def test_writers_and_server_killed_at_random_lose_nothing(server: PostgresServer, tmp_path: Path) -> None:
    figures = postgres_loop(server, tmp_path, rounds=5, seed=1, writers=6, kill_server_every=3)
    assert (figures.kills, figures.server_kills) == (30, 1)
    assert figures.found >= figures.acknowledged > 30


# ------------------------------------------------------------------------------------------------- endings

ENDING = """
import os, signal, sys
from fastroute.ledger import Ledger
from fastroute.types import Attempt

def terminated(*_):
    raise SystemExit(0)  # as a worker of gunicorn ends

place, journal, how = sys.argv[1:4]
ledger = Ledger(place, journal=journal or None)
if how == "handled SIGTERM":
    signal.signal(signal.SIGTERM, terminated)
for n in range(500):
    ledger.append(Attempt(
        id=f"{how}-{n}", call_id="c", time=1.7e9 + n, endpoint="e", provider="p", model="m", cost_nano=1))
if "SIGTERM" in how:
    os.kill(os.getpid(), signal.SIGTERM)
elif how == "os._exit":
    os._exit(0)
elif how == "exception":
    sys.excepthook = lambda *_: None
    raise RuntimeError
"""


@pytest.mark.parametrize("how", ["return", "exception", "handled SIGTERM", "SIGTERM", "os._exit"])
def test_five_hundred_entries_survive_any_ending(opens: Opens, how: str) -> None:
    place = str(opens.place)
    journal = str(opens.journal) if "://" in place else ""
    done = subprocess.run([sys.executable, "-c", ENDING, place, journal, how], timeout=60, check=False)
    assert done.returncode == {"SIGTERM": -signal.SIGTERM, "exception": 1}.get(how, 0)
    # Those who end in order leave the database up to date, the others a journal that the next one drains.
    in_order = how in ("return", "exception", "handled SIGTERM")
    assert bool(segments(opens.journal)) is not in_order
    with opens() as ledger:
        assert (ledger.totals().attempts, ledger.spent()) == (500, 500)
        assert segments(opens.journal) == []


def test_a_child_that_exits_in_order_leaves_the_parents_ledger_alone(opens: Opens) -> None:
    with opens() as ledger:
        ledger.append(attempt(0, cost_nano=1))
        ledger.flush()

        def write() -> None:
            ledger.append(attempt(1, cost_nano=10))
            ledger.close()

        assert ended(forked(write)) == 0
        ledger.append(attempt(2, cost_nano=100))
        assert ledger.spent() == 111
        assert ledger.health.ok
