"""Damaged and hostile contents of a ledger's journal, database and mark."""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest
from entries import NOON, Opens, attempt, until
from soak.stored import database as damage_database
from soak.stored import journal as damage_journal

from fastroute.errors import LedgerError
from fastroute.ledger import Ledger, journal, salvage

FIELDS = journal.FIELDS


def record(n: int = 0, **values: Any) -> bytes:
    """A record with any values and the right check value."""
    body = orjson.dumps(
        [values.get(name, value) for name, value in zip(FIELDS, orjson.loads(journal.encode(attempt(n))[9:]))]
    )
    return b"\n%08x%b" % (zlib.crc32(body), body)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x15]) + data[at + 1 :]


GOOD = [journal.encode(attempt(n, cost_nano=10)) for n in range(3)]
HALF = GOOD[0][: len(GOOD[0]) // 2]

# Contents of a segment, the sum of what can be read, and whether entries are missing.
SEGMENTS: dict[str, tuple[bytes, int, bool]] = {
    "whole": (b"".join(GOOD), 30, False),
    "cut off at its end": (b"".join(GOOD) + HALF, 30, False),
    "cut off, and continued": (GOOD[0] + HALF + GOOD[1], 20, False),
    "zeros of a power cut at its end": (b"".join(GOOD) + b"\n" + b"\0" * 4096, 30, False),
    "empty": (b"", 0, False),
    "a byte of a value": (GOOD[0] + flipped(GOOD[1], 60) + GOOD[2], 20, True),
    "a byte of a check value": (flipped(GOOD[0], 3) + GOOD[1], 10, True),
    "a line feed between two": (GOOD[0] + b" " + GOOD[1][1:] + GOOD[2], 10, True),
    "no record": (GOOD[0] + b"\nhello, world, this is not a record]" + GOOD[1], 20, True),
    "a line of 9 MB": (GOOD[0] + b"\n" + b"x" * 9_000_000 + GOOD[1], 20, True),
    "random": (random.Random(5).randbytes(5000), 0, True),
    "nested lists": (record(0, tags=None)[:9] + b"[" * 10_000 + b"]" * 10_000, 0, True),
    "cost as text": (GOOD[0] + record(1, cost_nano="10"), 10, True),
    "cost beyond all": (GOOD[0] + record(1, cost_nano=2**63), 10, True),
    "cost below all": (GOOD[0] + record(1, cost_nano=-(2**62)), 10, True),
    "cost as a fraction": (GOOD[0] + record(1, cost_nano=1e30), 10, True),
    "budget as a list": (GOOD[0] + record(1, budget_nano=[1]), 10, True),
    "time as text": (GOOD[0] + record(1, time="noon"), 10, True),
    "time beyond all": (GOOD[0] + record(1, time=1e308), 10, True),
    "no time": (GOOD[0] + record(1, time=None), 10, True),
    "id as a list": (GOOD[0] + record(1, id=[1]), 10, True),
    "id as an object": (GOOD[0] + record(1, id={}), 10, True),
    "tags as text": (GOOD[0] + record(1, cost_nano=5, tags="team"), 15, False),
    "tags as numbers": (GOOD[0] + record(1, cost_nano=5, tags={"team": 1}), 15, False),
    "tokens as text": (GOOD[0] + record(1, cost_nano=5, prompt_tokens="many"), 15, False),
    "tokens beyond all": (GOOD[0] + record(1, cost_nano=5, prompt_tokens=1e30), 15, False),
    "latency as an object": (GOOD[0] + record(1, cost_nano=5, latency={}), 15, False),
    "a flag as text": (GOOD[0] + record(1, cost_nano=5, stream="yes"), 15, False),
    "model as a number": (GOOD[0] + record(1, cost_nano=5, model=5), 15, False),
    "too few values": (GOOD[0] + b"\n%08x[1]" % zlib.crc32(b"[1]"), 10, True),
    "another kind of JSON": (GOOD[0] + b'\n%08x"ab"' % zlib.crc32(b'"ab"'), 10, True),
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_a_damaged_record_costs_its_own_entry_and_is_not_forgotten(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    content, total, missing = SEGMENTS[name]
    opens = Opens(tmp_path / "ledger.db")
    with opens():
        pass
    segment = opens.journal / f"1-a-1{journal.SUFFIX}"
    segment.write_bytes(content)
    with opens() as ledger:
        ledger.append(attempt(9, cost_nano=100))
        assert ledger.totals().cost_nano == total + 100
        ledger.entries()
        ledger.by("day", "model", "tag:team")
        assert not segment.exists()
        aside = Path(f"{segment}{journal.DAMAGED}")
        assert aside.exists() is missing
        if missing:
            assert aside.read_bytes() == content
            with pytest.raises(LedgerError, match="may lack entries"):
                ledger.spent(NOON - 86_400)
            assert sum("damaged record" in line for line in caplog.messages) == 1
            os.unlink(f"{ledger.path}.damaged")
        assert ledger.spent(NOON - 86_400) == total + 100
    assert (tmp_path / "ledger.db.damaged").exists() is False


def test_what_is_no_file_among_the_journals_holds_up_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opens = Opens(tmp_path / "ledger.db")
    with opens() as ledger:
        os.mkfifo(opens.journal / f"pipe{journal.SUFFIX}")
        os.mkdir(opens.journal / f"folder{journal.SUFFIX}")
        os.symlink("/dev/zero", opens.journal / f"link{journal.SUFFIX}")
        ledger.append(attempt(0, cost_nano=1))
        assert ledger.spent() == 1
        assert ledger.spent_unwritten(None, None, LedgerError("")) == 1
    for _ in range(2):
        with opens() as again:
            assert again.spent() == 1
    for kind in ("pipe", "folder", "link"):
        assert sum(f"/{kind}{journal.SUFFIX}: " in line for line in caplog.messages) == 1


def test_spending_that_is_read_from_damaged_journals_is_unknown(tmp_path: Path) -> None:
    opens = Opens(tmp_path / "ledger.db")
    with opens() as ledger:
        (opens.journal / f"1-a-1{journal.SUFFIX}").write_bytes(GOOD[0] + flipped(GOOD[1], 60))
        with pytest.raises(LedgerError, match="1 damaged record"):
            ledger.spent_unwritten(None, None, LedgerError(""))


MARKS: dict[str, Callable[[str], object]] = {
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a link": lambda path: os.symlink("/dev/zero", path),
    "true": lambda path: Path(path).write_text('{"until": true}'),
    "negative": lambda path: Path(path).write_text('{"until": -5}'),
    "huge": lambda path: Path(path).write_text('{"until": 1e300}'),
    "long": lambda path: Path(path).write_text("[" * 1_000_000),
}


@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_of_any_kind_is_a_mark(tmp_path: Path, mark: str) -> None:
    MARKS[mark](str(tmp_path / "ledger.db.damaged"))
    with Ledger(tmp_path / "ledger.db") as ledger, pytest.raises(LedgerError, match="may lack entries"):
        ledger.spent(4e9)


# ------------------------------------------------------------------------------------------ the database

VALUES: list[tuple[str, Any]] = [
    ("cost_nano", "many"),
    ("cost_nano", b"\xff"),
    ("cost_nano", 1.5),
    ("cost_nano", 2**63 - 1),
    ("cost_nano", -(2**63)),
    ("budget_nano", "x"),
    ("budget_nano", -(2**60)),
    ("time", "yesterday"),
    ("time", b"\0"),
    ("time", None),
    ("day", "x" * 1000),
    ("day", 2**62),
    ("day", None),
    ("tags", "{"),
    ("tags", "[1]"),
    ("tags", b"\xff\xfe"),
    ("tags", 5),
    ("prompt_tokens", "many"),
    ("prompt_tokens", None),
    ("latency", "slow"),
    ("latency", float("inf")),
    ("outcome", 5),
    ("model", b"\xff\xfe"),
    ("id", None),
    ("call_id", 7),
    ("stream", "yes"),
]


def overwrite(path: Path, statement: str, *values: Any) -> None:
    """Changes a row as damage does: whatever the table's types and constraints are."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        ((kept,),) = database.execute("SELECT sql FROM sqlite_master WHERE name = 'attempts'").fetchall()
        loose = kept.replace(" NOT NULL", "")
        for kind in (" TEXT", " REAL", " INTEGER NOT", " INTEGER,", " INTEGER)"):
            loose = loose.replace(kind, kind[-1] if kind[-1] in ",)" else "")
        loose = loose.replace("seq,", "seq INTEGER PRIMARY KEY,").replace(
            "seq PRIMARY", "seq INTEGER PRIMARY"
        )
        database.execute("PRAGMA writable_schema = ON")
        database.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'attempts'", (loose,))
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(statement, values)
        database.execute("PRAGMA writable_schema = ON")
        database.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'attempts'", (kept,))


@pytest.mark.parametrize(("column", "value"), VALUES, ids=lambda value: str(value)[:16])
def test_a_damaged_row_makes_no_report_fail_and_no_sum_too_low(
    tmp_path: Path, column: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger:
        for n in range(5):
            ledger.append(attempt(n, cost_nano=10, tags={"team": "blue"}))
    overwrite(path, "UPDATE attempts SET X = ? WHERE seq = 3".replace("X", column), value)
    reports: list[Callable[[Ledger], object]] = [
        lambda ledger: ledger.totals(),
        lambda ledger: ledger.by("day", "model", "tag:team"),
        lambda ledger: ledger.by("tier", "outcome", tags={"team": "blue"}),
        lambda ledger: ledger.entries(),
        lambda ledger: ledger.daily_savings(lambda _: Prices(), "m"),
    ]
    with Ledger(path) as ledger:
        for report in reports:
            for last in (False, True):
                try:
                    report(ledger)
                    break
                except LedgerError:
                    assert not last
                    until(lambda: any(".corrupt-" in name for name in os.listdir(tmp_path)))
                    until(lambda: ledger.health.ok)
        try:
            spent = ledger.spent(NOON - 86_400, {"team": "blue"})
        except LedgerError:
            spent = 50
        assert spent == 50
        ledger.append(attempt(9, cost_nano=1))
        ledger.flush(30)


class Prices:
    def cost(self, usage: Any) -> int:
        return int(usage.prompt_tokens)


# ----------------------------------------------------------------------------------------------- fuzzing


@pytest.mark.parametrize("damage", [damage_journal, damage_database], ids=["journal", "database"])
def test_any_bytes_may_be_damaged(
    tmp_path: Path, damage: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    caplog.set_level(logging.CRITICAL, "fastroute")
    assert damage(random.Random(seed), tmp_path, 15).total() >= 15


@pytest.mark.parametrize("version", [0, 1, 3, -1, 2**31 - 1])
def test_a_damaged_version_of_the_schema_is_damage_and_not_another_release(
    tmp_path: Path, version: int
) -> None:
    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger:
        ledger.append(attempt(0, cost_nano=10))
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {version}")
    with Ledger(path) as ledger:
        ledger.append(attempt(1, cost_nano=1))
        assert ledger.totals().cost_nano == 11
        with pytest.raises(LedgerError, match="may lack entries"):
            ledger.spent()


def test_the_rows_beside_a_damaged_one_are_saved(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    names = [f"entry-{n:02d}" for n in range(10)]
    with Ledger(path) as ledger:
        for n, name in enumerate(names):
            ledger.append(attempt(n, id=name))
    data = path.read_bytes()
    at = data.index(b"entry-05call-5")  # the row, not the index; its header is before it
    for offset in range(1, 30):
        path.write_bytes(data[: at - offset] + b"\xff" + data[at - offset + 1 :])
        found = {row[0] for rows in salvage.batches(str(path)) for row in rows}
        assert set(names) - found <= {"entry-05"}, offset


def test_a_journal_of_a_damaged_size_takes_no_memory(tmp_path: Path) -> None:
    opens = Opens(tmp_path / "ledger.db")
    with opens() as ledger:
        ledger.append(attempt(0, cost_nano=1, tags={"team": "a"}))
        segment = opens.journal / f"1-a-1{journal.SUFFIX}"
        segment.write_bytes(b"".join(GOOD))
        os.truncate(segment, 1 << 40)  # a terabyte of zeros, which take no room on the disk
        assert ledger.spent(tags={"team": "a"}) == 1
    with opens() as again:
        assert again.totals().cost_nano == 21  # the last record ends in the zeros
        assert not segment.exists()
    os.unlink(f"{segment}{journal.DAMAGED}")
