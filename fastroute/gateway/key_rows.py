"""Reads the rows of the key file one by one, so that a damaged row costs its own key and no other.

A defective disk, a partial copy or another program may have changed any byte. A row that cannot be read, or
whose values are impossible, is left out and named.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from fastroute import errors
from fastroute.platform.readable_rows import DAMAGE, readable_rows

_MOST_NAMED = 10  # problems that are named one by one

Read = TypeVar("Read")


def checked_rows(
    database: sqlite3.Connection,
    table: str,
    columns: str,
    read: Callable[..., tuple[str, Read]],
    problems: list[str],
) -> dict[str, Read]:
    """The rows of a table by name, without those that are damaged.

    Args:
        database: in a transaction, with `as_text` as its text factory.
        table, columns: SQL.
        read: makes a name and a value of a row's columns; raises ConfigError if they are impossible.
        problems: what is damaged is added here.

    Raises:
        sqlite3.OperationalError: the file cannot be read now.
    """
    found: dict[str, Read] = {}
    twice: set[str] = set()
    for number, *row in _both_ways(database, table, columns):
        try:
            name, value = read(*row)
        except errors.ConfigError as error:
            shown = ascii(row[0][:64]) if type(row[0]) is str else "?"
            problems.append(f"{table} row {number}, {shown}: {'; '.join(error.problems)}")
            continue
        if name in found:
            twice.add(name)
        found[name] = value
    for name in sorted(twice):
        # Only one of the rows can be right, and nothing says which.
        del found[name]
        problems.append(f"{table}: {name} has two rows")
    return found


def _both_ways(database: sqlite3.Connection, table: str, columns: str) -> Iterator[tuple[Any, ...]]:
    """Each readable row once."""
    seen: set[tuple[Any, ...]] = set()
    for downward in (False, True):
        for row in readable_rows(
            database, table, columns, downward=downward, passed=(sqlite3.OperationalError,)
        ):
            if row not in seen:
                seen.add(row)
                yield row


def structure_problems(database: sqlite3.Connection) -> list[str]:
    """What SQLite finds wrong with the file itself: rows that cannot be read any more leave traces here.

    Raises:
        sqlite3.OperationalError: the file cannot be read now.
    """
    try:
        # It visits each page once, so it also ends in a file whose pages form a circle.
        rows = database.execute("PRAGMA integrity_check(20)").fetchall()
    except sqlite3.OperationalError:
        raise
    except DAMAGE as error:
        rows = [(str(error),)]
    lines = [line for (text,) in rows for line in str(text).splitlines()]
    found = [line for line in lines if line and line != "ok" and not line.startswith("***")]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return [f"the file: {ascii(found[0])[1:-1]}{more}"] if found else []


def shortened(problems: list[str]) -> tuple[str, ...]:
    """The first problems, and how many more there are."""
    more = len(problems) - _MOST_NAMED
    return (*problems[:_MOST_NAMED], f"and {more} more") if more > 0 else tuple(problems)
