"""The ledger in an SQLite file: what happens to the file, and what that does to the entries."""

from __future__ import annotations

import fcntl
import os
import re
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
from entries import NOON, attempt, in_child, reap, segments, until

from fastroute import ledger as ledger_module
from fastroute.config import Config
from fastroute.errors import ConfigError, LedgerError
from fastroute.events import Hooks, LedgerDegraded
from fastroute.ledger import (
    Ledger,
    NullLedger,
    Totals,
    configured_ledger,
    journal,
    open_ledger,
    sqlite,
)
from fastroute.ledger.report import report

# --------------------------------------------------------------------------------------- kills and forks


def test_many_processes_and_threads_write_at_once(path: Path) -> None:
    def work() -> None:
        ledger = Ledger(path)
        threads = [
            threading.Thread(target=lambda: [ledger.append(attempt(n, cost_nano=7)) for n in range(100)])
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    children = [in_child(work) for _ in range(4)]
    with Ledger(path) as ledger:
        for n in range(200):
            ledger.append(attempt(n, cost_nano=7))
        ledger.flush()
        for child in children:
            reap(child)
        totals = ledger.totals()
        assert (totals.attempts, totals.cost_nano) == (1400, 9800)
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


SEPARATE = """
import sys, os
from fastroute.ledger import Ledger
from fastroute.types import Attempt
ledger = Ledger(sys.argv[1])
for n in range(300):
    ledger.append(Attempt(
        id=os.urandom(16).hex(), call_id="c", time=1.7e9 + n,
        endpoint="e", provider="p", model="m", cost_nano=n))
if sys.argv[2] == "exit":
    os._exit(0)
"""


def test_processes_that_share_nothing_write_at_once(path: Path) -> None:
    command = [sys.executable, "-c", SEPARATE, str(path)]
    children = [subprocess.Popen([*command, how]) for how in ("exit", "return")]
    for child in children:
        assert child.wait(30) == 0
    with Ledger(path) as ledger:
        assert ledger.totals().attempts == 600
        assert ledger.spent() == 2 * sum(range(300))


def test_a_fork_takes_nothing_of_what_the_parent_holds(path: Path) -> None:
    ledger = Ledger(path)
    ledger.append(attempt(0, cost_nano=1))
    ledger.flush()

    def work() -> None:
        [inherited] = ledger_module.inherited_connections  # neither closed nor collected
        assert isinstance(inherited, sqlite.SQLiteConnection)
        ledger.close()  # a child that never used it must not write, remove or unlock the parent's

    reap(in_child(work))
    assert list(journal.orphans(f"{path}.journal")) == []
    assert ledger.spent() == 1
    ledger.close()


# ---------------------------------------------------------------------------------- a database in trouble


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "LOCK_SECONDS", 0.02)
    monkeypatch.setattr("fastroute.ledger.writer.RETRY_SECONDS", 0.01)
    monkeypatch.setattr("fastroute.ledger.writer.MAX_RETRY_SECONDS", 0.02)


@pytest.mark.usefixtures("impatient")
def test_a_locked_database_stops_no_call(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastroute.ledger.writer.QUEUE_LIMIT", 50)
    heard: list[LedgerDegraded] = []
    hooks = Hooks()
    hooks.add(heard.append, LedgerDegraded)
    with Ledger(path, hooks=hooks) as ledger, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for n in range(2000):
            ledger.append(attempt(n, cost_nano=n))
        until(lambda: not ledger.health.ok)
        assert "locked" in (ledger.health.reason or "")
        assert ledger.health.waiting <= 50 + 512
        until(lambda: bool(heard))  # the hook hears of it just after the health says so
        with pytest.raises(LedgerError, match=r"could not write its entries within 0.05 s.*locked"):
            ledger.flush(0.05)
        other.execute("ROLLBACK")
        totals = ledger.totals()
        assert (totals.attempts, totals.cost_nano) == (2000, sum(range(2000)))
        assert ledger.health == attrs.evolve(ledger.health, ok=True, reason=None, waiting=0, lost=0)


@pytest.mark.usefixtures("impatient")
def test_closing_beside_a_lock_leaves_entries_to_the_next(path: Path) -> None:
    ledger = Ledger(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        ledger.append(attempt(cost_nano=5))
        ledger.close()
        assert len(segments(f"{path}.journal")) == 1
        held_up = Ledger(path)  # opening is not held up either
        other.execute("ROLLBACK")
    assert held_up.spent() == 5
    held_up.close()


DISK_FULL = """
import os, resource, sys, logging
logging.disable(logging.CRITICAL)
from fastroute.ledger import Ledger
from fastroute.types import Attempt
ledger = Ledger(sys.argv[1])
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
for n in range(1000):
    ledger.append(Attempt(
        id=os.urandom(16).hex(), call_id="c", time=1.7e9 + n,
        endpoint="e", provider="p", model="m", cost_nano=n))
try:
    ledger.flush(0.3)
except Exception as error:
    print(type(error).__name__)
print(ledger.health.ok, ledger.health.lost)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
ledger.flush(30)
print(ledger.totals().attempts, ledger.spent())
ledger.close()
print(os.listdir(sys.argv[1] + ".journal"))
"""


def test_a_full_disk_loses_nothing_that_memory_can_hold(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == ["LedgerError", "False 0", f"1000 {sum(range(1000))}", "['lock']"]


def test_without_journal_and_memory_the_loss_is_counted(
    path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    def refuse(fd: int, record: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastroute.ledger.writer.QUEUE_LIMIT", 10)
    with Ledger(path) as ledger, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        ledger.append(attempt(0, cost_nano=1))
        until(lambda: not ledger.health.ok)
        monkeypatch.setattr(ledger.journal, "write_record", refuse)
        for n in range(2000):
            ledger.append(attempt(n, cost_nano=1))
        assert "No space left" in (ledger.health.reason or "")
        other.execute("ROLLBACK")
        assert ledger.spent() + ledger.health.lost == 2001
        assert ledger.health.lost > 0


def test_a_deleted_database_is_noticed_before_entries_are_forgotten(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.append(attempt(0, cost_nano=1))
        ledger.flush()
        for ending in ("", "-wal", "-shm"):
            os.unlink(f"{path}{ending}")
        ledger.append(attempt(1, cost_nano=10))
        assert ledger.spent() == 11  # what the journal still has is told again
    with Ledger(path) as again:
        assert again.spent() == 11


def damage(path: Path, first_page: int, pages: int) -> None:
    with open(path, "r+b") as file:
        file.seek(first_page * 4096)
        file.write(b"\xff" * 4096 * pages)


def killed_after_one_more(path: Path, **fields: Any) -> None:
    """Leaves an unclean end: a process killed with an entry in its journal."""

    def work() -> None:
        Ledger(path).append(attempt(1, **fields))

    reap(in_child(work))


def test_a_damaged_database_is_set_aside_and_what_can_be_read_is_saved(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = [attempt(n, cost_nano=1, tags={"n": str(n)}) for n in range(1500)]
    with Ledger(path) as ledger:
        for entry in entries:
            ledger.append(entry)
    killed_after_one_more(path, cost_nano=10)
    size = path.stat().st_size // 4096
    damage(path, size // 3, 3)
    damage(path, size // 2, 1)
    heard: list[LedgerDegraded] = []
    hooks = Hooks()
    hooks.add(heard.append, LedgerDegraded)
    with Ledger(path, hooks=hooks) as ledger:
        kept = ledger.entries(None)
        lost = {entry.id for entry in entries} - {entry.id for entry in kept}
        # No more than the few damaged pages can have held, and all that is there is as it was.
        assert len(lost) < 200
        known = {entry.id: entry for entry in entries}
        assert [entry for entry in kept if entry.cost_nano == 1 and known[entry.id] != entry] == []
        assert ledger.totals().attempts == 1501 - len(lost)
    (aside,) = [name for name in os.listdir(path.parent) if re.search(r"\.corrupt-\d+$", name)]
    assert "is damaged" in caplog.text
    assert aside in heard[0].reason


def test_after_damage_what_was_spent_is_not_told_for_less_than_it_was(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Ledger(path) as ledger:
        ledger.append(attempt(cost_nano=100))
    path.write_bytes(b"\0" * 8192)
    with Ledger(path) as ledger:
        assert ledger.health.unsure_until == pytest.approx(time.time(), abs=60)
        ledger.append(attempt(cost_nano=3, time=time.time() + 60))
        for since in (None, NOON, time.time() - 60):
            with pytest.raises(LedgerError, match=r"may lack entries.*delete .*ledger\.db\.damaged"):
                ledger.spent(since)
        assert ledger.spent(time.time() + 30) == 3  # a window that began after the damage
        assert ledger.totals().cost_nano == 3
    caplog.clear()
    with Ledger(path) as ledger:
        assert "may be missing; see" in caplog.text
        os.unlink(f"{path}.damaged")
        assert ledger.spent() == 3
        assert ledger.health.unsure_until is None


def test_damage_found_while_running_is_set_aside(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.append(attempt(0, cost_nano=1))
    with Ledger(path) as ledger:
        ledger.append(attempt(1, cost_nano=10))
        ledger.flush()
        path.write_bytes(b"no longer a database" * 1000)
        os.truncate(f"{path}-wal", 0)
        ledger.append(attempt(2, cost_nano=100))
        with pytest.raises(LedgerError, match="cannot be read: file is not a database"):
            ledger.totals()
        until(lambda: ledger.health.unsure_until is not None)
        assert ledger.totals().cost_nano == 110  # the journal of this process still had its own
        assert not ledger.health.lost


# ------------------------------------------------------------------------------------------- bad settings


def test_another_programs_files_are_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database, and longer than nothing" * 100)
    with pytest.raises(ConfigError, match=r"notes\.txt is not an SQLite database"):
        Ledger(text)
    foreign = tmp_path / "foreign.db"
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    with pytest.raises(ConfigError, match="another program's database"):
        Ledger(foreign)
    assert sorted(os.listdir(tmp_path)) == ["foreign.db", "notes.txt"]


def test_a_newer_schema_is_not_written_to(path: Path) -> None:
    Ledger(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match=r"newer fastroute \(schema 99"):
        Ledger(path)


def test_links_and_places_that_are_no_files_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "target.db"
    (tmp_path / "link.db").symlink_to(target)
    with pytest.raises(ConfigError, match="symbolic link"):
        Ledger(tmp_path / "link.db")
    assert not target.exists()
    with pytest.raises(ConfigError, match="not a regular file"):
        Ledger(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        Ledger(tmp_path / "absent" / "x.db")
    with pytest.raises(ConfigError, match="durability"):
        Ledger(tmp_path / "x.db", durability="eternal")  # type: ignore[arg-type]


def test_files_are_their_owners_only(path: Path) -> None:
    ledger = Ledger(path)
    ledger.append(attempt())
    ledger.flush()
    for name in os.listdir(path.parent):
        mode = stat.S_IMODE(os.stat(path.parent / name).st_mode)
        assert mode == (0o700 if name.endswith(".journal") else 0o600), name
    for name in os.listdir(f"{path}.journal"):
        assert stat.S_IMODE(os.stat(f"{path}.journal/{name}").st_mode) == 0o600
    ledger.close()


def test_open_ledger(tmp_path: Path) -> None:
    off = open_ledger("")
    off.append(attempt())
    off.flush()
    assert isinstance(off, NullLedger)
    assert (off.totals(), off.by("model"), off.entries(), off.spent()) == (Totals(), [], [], 0)
    assert off.health.ok
    assert report(off, against=["m"], prices=lambda _: (1, 1, 1)).savings[0].saved_nano == 0
    off.close()
    with pytest.raises(ConfigError, match="unknown scheme mysql://"):
        open_ledger("mysql://user:secret@host/db")
    with open_ledger(tmp_path / "x.db") as ledger:
        ledger.append(attempt(cost_nano=4))
        assert ledger.spent() == 4


@pytest.mark.parametrize(("word", "wal"), [("auto", True), ("on", True), ("off", False)])
def test_a_configuration_says_how_its_ledger_is_kept(path: Path, word: str, wal: bool) -> None:
    config = Config(ledger=str(path), ledger_durability="power", ledger_wal=word)
    with configured_ledger(config) as ledger:
        assert ledger.durability == "power"
        ledger.append(attempt(cost_nano=3))
        assert ledger.spent() == 3
        assert os.path.exists(f"{path}-wal") is wal
    with pytest.raises(ConfigError, match="it applies to PostgreSQL only"):
        configured_ledger(Config(ledger=str(path), ledger_journal=str(path.parent)))


def test_power_durability_waits_for_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fdatasync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append(fd), fdatasync(fd)))
    with Ledger(path, durability="power") as ledger:
        ledger.append(attempt(cost_nano=2))
        assert len(synced) == 1
        assert ledger.spent() == 2


@pytest.mark.parametrize(
    ("version", "needed"),
    [
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((4, 0, 0), False),
    ],
)
def test_which_sqlite_needs_one_checkpointer(version: tuple[int, int, int], needed: bool) -> None:
    assert sqlite.one_checkpointer_needed(version) is needed


@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.parametrize("alone", [True, False])
def test_how_each_connection_is_set(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    alone: bool,
    durability: sqlite.Durability,
) -> None:
    monkeypatch.setattr(sqlite, "one_checkpointer_needed", lambda _: alone)
    sqlite.log_single_checkpointer.cache_clear()
    caplog.set_level("INFO", "fastroute")
    for _ in range(2):
        with closing(sqlite.SQLiteStorage(path, durability).connect()) as database:
            names = [
                "journal_mode",
                "synchronous",
                "busy_timeout",
                "wal_autocheckpoint",
                "journal_size_limit",
            ]
            names += ["mmap_size", "foreign_keys", "trusted_schema"]
            found = [database.connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]
        full = 2 if durability == "power" else 1
        assert found == ["wal", full, 5000, 0 if alone else 1000, 64 << 20, 0, 1, 0]
    said = [message for message in caplog.messages if "checkpoint" in message]
    assert len(said) == alone  # once a process


def test_no_checkpoint_while_another_process_writes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "one_checkpointer_needed", lambda _: True)
    monkeypatch.setattr(sqlite, "CHECKPOINT_BYTES", 1)
    with Ledger(path) as ledger, open(f"{path}.journal/lock") as lock:

        def grown() -> int:
            before = path.stat().st_size
            for n in range(50):
                ledger.append(attempt(n, request_id="x" * 500))
            ledger.flush()
            return path.stat().st_size - before

        assert grown() > 0
        fcntl.flock(lock, fcntl.LOCK_SH)  # as who commits holds it
        assert grown() == 0  # all of it is in the log
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert grown() > 0


@pytest.mark.parametrize(("threshold", "short"), [(50_000, True), (1 << 40, False)])
def test_one_checkpointer_keeps_the_log_short(
    path: Path, monkeypatch: pytest.MonkeyPatch, threshold: int, short: bool
) -> None:
    monkeypatch.setattr(sqlite, "one_checkpointer_needed", lambda _: True)
    monkeypatch.setattr(sqlite, "CHECKPOINT_BYTES", threshold)
    with Ledger(path) as ledger:
        for n in range(20):
            for m in range(100):
                ledger.append(attempt(100 * n + m, cost_nano=1))
            ledger.flush()
        assert (os.stat(f"{path}-wal").st_size < 400_000) is short
        assert ledger.spent() == 2000
