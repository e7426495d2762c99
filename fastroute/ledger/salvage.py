"""Reads what is readable of a damaged ledger file.

Rows are read upward and then downward, since each direction skips some rows beyond a damaged one.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any
from urllib.parse import quote

from fastroute.platform.readable_rows import DAMAGE, as_text, readable_rows

from . import journal
from .database import as_attempt

log = logging.getLogger("fastroute")

_BATCH = 512

_ID, _TIME = journal.FIELDS.index("id"), journal.FIELDS.index("time")
# What columns have that later releases added, in a file that was damaged before it had them.
_LATER = {
    "cache_write_tokens": "0",
    "cache_write_1h_tokens": "0",
    "service_tier": "NULL",
    "budget_nano": "NULL",
    "score": "NULL",
}


def batches(path: str) -> Iterator[list[list[Any]]]:
    """The readable rows of a damaged file, in the order of `journal.FIELDS`; most of them come twice."""
    batch: list[list[Any]] = []
    try:
        # Read-only, so that the damaged file stays as it is for an investigation.
        connection = sqlite3.connect(
            f"file:{quote(path)}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
    except sqlite3.Error as error:
        log.error("ledger: %s cannot be opened: %s", path, error)
        return
    with closing(connection):
        connection.text_factory = as_text
        columns = _columns(connection)
        for downward in (False, True):
            for _, *row in readable_rows(connection, "attempts", columns, downward=downward):
                values = _cleaned(row)
                if values is not None:
                    batch.append(values)
                if len(batch) == _BATCH:
                    yield batch
                    batch = []
    if batch:
        yield batch


def _columns(connection: sqlite3.Connection) -> str:
    """The columns to read, in the order of `journal.FIELDS`; a constant for each that the file lacks."""
    try:
        found = {name for (name,) in connection.execute("SELECT name FROM pragma_table_info('attempts')")}
    except DAMAGE:
        found = set()
    absent = _LATER if found else {}
    return ", ".join(
        absent[name] if name in absent and name not in found else name for name in journal.FIELDS
    )


def _cleaned(row: Sequence[Any]) -> list[Any] | None:
    """The row as the journal would contain it; None if it cannot be an entry."""
    if not isinstance(row[_ID], str) or not isinstance(row[_TIME], float):
        return None
    try:
        return journal.decode(journal.encode(as_attempt(row)))
    except (ValueError, TypeError):
        return None
