"""What writing down an attempt costs its caller, beside a commit of the same row."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import orjson

from fastroute.ledger import Ledger, journal
from fastroute.types import Attempt

from .side_by_side import NO_OP, Comparison, Contender, Operation

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
        cost_nano=3_544_000,
        latency=1.25,
        tags={"team": "search", "user": "u-17"},
    )


class Direct:
    """One commit for each entry, on a connection of the thread's own, as a ledger without a journal would."""

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

    def close(self) -> None:
        for connection in self._opened:
            connection.close()


class Nothing:
    def append(self, entry: Attempt) -> None:
        pass

    def close(self) -> None:
        pass


MAKERS: dict[str, Callable[[Path], Any]] = {
    "no-op": lambda _: Nothing(),
    "sqlite-commit": Direct,
    "ledger": Ledger,
    "ledger-power": lambda path: Ledger(path, durability="power"),
}


def _appending(make: Callable[[Path], Any]) -> Callable[[ExitStack], Operation]:
    def prepare(stack: ExitStack) -> Operation:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fastroute-bench-"))
        target = make(Path(folder) / "ledger.db")
        stack.callback(target.close)
        return Operation("append(attempt(0))", {"append": target.append, "attempt": attempt})

    return prepare


COMPARISONS = (
    Comparison(
        "An entry in the ledger, calling thread",
        (
            NO_OP,
            Contender("making the entry", _appending(MAKERS["no-op"])),
            Contender("fastroute Ledger.append", _appending(MAKERS["ledger"]), ours=True),
            Contender("one SQLite commit (WAL, synchronous NORMAL)", _appending(MAKERS["sqlite-commit"])),
        ),
        base="one SQLite commit (WAL, synchronous NORMAL)",
        loops=50,
        rounds=30,
        clock=time.perf_counter,
        note="time on the wall, making the entry included",
    ),
)
