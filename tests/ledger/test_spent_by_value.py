"""What one value of a tag has spent: found by an index, and with what is only in a journal yet."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from entries import attempt

from fastroute.ledger import Ledger
from fastroute.ledger import sqlite as of_sqlite
from fastroute.ledger.database import filters

VALUES = [
    "x",
    "xy",
    "x y",
    'a"b',
    'x","user":"y',
    "\\",
    "\\u0041",
    "%",
    "ü" * 70,
    "z" * 70,
    "z" * 70 + "1",
    "\U0010ffff",
    "5",
]


def test_awkward_values_are_told_apart(ledger: Ledger) -> None:
    ledger.index_tags(("user", "not'plain"))
    for many, value in enumerate(VALUES, 1):
        for _ in range(many):
            ledger.append(attempt(cost_nano=1, tags={"a": 'b"user":"x', "user": value, "user2": "x"}))
            ledger.append(attempt(cost_nano=1000, tags={"user2": value}))
            ledger.append(attempt(cost_nano=10**6, tags={"not'plain": value}))
    counts = list(range(1, len(VALUES) + 1))
    # From the journal, from the database, and without the time.
    for _ in range(2):
        assert [ledger.spent(tags={"user": value}) for value in VALUES] == counts
        assert [ledger.spent(tags={"not'plain": value}) for value in VALUES] == [10**6 * n for n in counts]
        ledger.flush()
    assert ledger.spent(tags={"user": "y"}) == 0
    assert ledger.spent(tags={"user": ""}) == sum(counts) * (1000 + 10**6)
    assert [ledger.spent(tags={"user": value, "user2": "x"}) for value in VALUES] == counts


def test_the_index_is_used(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.index_tags(("user",))
        ledger.append(attempt(cost_nano=1, tags={"user": "x"}))
        ledger.flush()
        with closing(sqlite3.connect(path)) as connection:
            bound = {**filters(0.0, None, {"user": "x"}), **of_sqlite.tag_bounds("x")}
            plan = connection.execute(f"EXPLAIN QUERY PLAN {of_sqlite.spent_by('user')}", bound).fetchall()
        assert "USING INDEX attempts_tag_" in plan[0][-1]


def test_an_entry_of_another_process_counts_before_it_is_in_the_database(path: Path) -> None:
    with Ledger(path) as one, Ledger(path) as other:
        assert other.spent(tags={"user": "x"}) == 0
        for number in range(1, 50):
            one.append(attempt(cost_nano=1, tags={"user": "x"}))
            assert other.spent(tags={"user": "x"}) == number
