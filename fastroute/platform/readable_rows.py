"""Reads the rows of an SQLite table that may be damaged.

Rows are read by row number. After an error, reading continues further on, at twice the distance each time,
until it finds readable rows. A second pass in the other direction finds rows that the first one skipped.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

# `sqlite3` raises UnicodeDecodeError where SQLite's message quotes damaged text.
DAMAGE = (sqlite3.DatabaseError, UnicodeDecodeError)
"""Errors of reading a damaged file; also those of a file that cannot be read now."""
_MOST_FAILURES = 62  # errors in a row: as the distance doubles each time, this exceeds any row number
_LAST = 2**62
_MOST_DISORDER = 100  # row numbers out of order: pages that form a circle would give rows without end


def as_text(raw: bytes) -> str:
    """A `text_factory`: SQLite checks no encoding, and its own conversion raises for the whole row."""
    return raw.decode("utf-8", "surrogateescape")


def readable_rows(
    connection: sqlite3.Connection,
    table: str,
    columns: str,
    *,
    downward: bool = False,
    passed: tuple[type[Exception], ...] = (),
) -> Iterator[tuple[Any, ...]]:
    """The readable rows in one direction: row number, then ``columns``. A row may come more than once.

    Args:
        table, columns: SQL, never from outside.
        downward: from the last row to the first.
        passed: errors that do not mean that a row is damaged, and are raised.
    """
    step, order = (-1, "DESC") if downward else (1, "ASC")
    everything = " ".join(("SELECT rowid,", columns, "FROM", table, "NOT INDEXED"))
    beyond = f"{everything} WHERE rowid {'<' if downward else '>'} ? ORDER BY rowid {order}"
    last, started = _LAST if downward else 0, False
    leap = failures = disorder = 0
    # The first time from the end of the table: a search would trust the row numbers in between.
    statement = f"{everything} ORDER BY rowid {order}"
    begin: tuple[int, ...] = ()
    singly = False
    while failures < _MOST_FAILURES and abs(last) <= _LAST:
        before = last
        try:
            for row in connection.execute(statement, begin):
                if (row[0] - last) * step > 0:
                    last, started, leap, failures = row[0], True, 0, 0
                elif (disorder := disorder + 1) > _MOST_DISORDER:
                    raise sqlite3.DatabaseError("the row numbers are out of order")
                yield row
            if not singly or last == before:
                return
            singly = False
        except passed:
            raise
        except DAMAGE:
            # `sqlite3` reads one row ahead, so an error hides the intact row before it, which is read alone.
            if singly:
                failures += 1
                leap = 2 * leap or 1
                last = last + step * leap if started or not downward else last // 2
            singly = not singly
        statement, begin = (f"{beyond} LIMIT 1" if singly else beyond), (last,)
