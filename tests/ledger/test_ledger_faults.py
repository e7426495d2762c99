"""The ledger's file under every fault: full, read-only, failing, held, replaced, damaged, newer, far away."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from entries import attempt, in_child, reap, segments, until
from soak.ledger import check_sqlite, kill_loop

import fastroute
from fastroute import _core
from fastroute.errors import ConfigError, LedgerError
from fastroute.events import Hooks, LedgerDegraded
from fastroute.ledger import Ledger, damage_mark, journal, salvage, sqlite
from fastroute.platform import mounts
from fastroute.testing import Provider
from fastroute.types import TokenPrices


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "LOCK_SECONDS", 0.02)
    monkeypatch.setattr("fastroute.ledger.writer.RETRY_SECONDS", 0.01)
    monkeypatch.setattr("fastroute.ledger.writer.MAX_RETRY_SECONDS", 0.02)


@pytest.fixture
def heard() -> list[LedgerDegraded]:
    return []


@pytest.fixture
def hooks(heard: list[LedgerDegraded]) -> Hooks:
    hooks = Hooks()
    hooks.add(heard.append, LedgerDegraded)
    return hooks


# ------------------------------------------------------------------------------------------ disks (118)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB; mounting one needs root."""
    point = tmp_path / "disk"
    point.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k,nr_inodes=1k", "tmpfs", str(point)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield point
    subprocess.run(["umount", str(point)], check=True)


def test_a_full_disk_stops_no_call_and_is_caught_up_with(
    small_disk: Path, hooks: Hooks, heard: list[LedgerDegraded]
) -> None:
    path = small_disk / "ledger.db"
    with Ledger(path, hooks=hooks) as ledger:
        ledger.append(attempt(0, cost_nano=1))
        ledger.flush()
        filler = small_disk / "filler"
        with open(filler, "wb", buffering=0) as file:
            while shutil.disk_usage(small_disk).free:
                file.write(b"x" * 4096)
        for n in range(3000):
            ledger.append(attempt(n, cost_nano=1))
        until(lambda: bool(heard))
        assert not ledger.health.ok
        with pytest.raises(LedgerError, match="could not write its entries"):
            ledger.flush(0.1)
        filler.unlink()
        # What the database has no room for either is given up first: journal and log are as large as it is.
        subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
        assert ledger.spent() + ledger.health.lost == 3001
        assert ledger.health.lost == 0
        until(lambda: ledger.health.ok or not ledger.append(attempt(cost_nano=0)))
    assert segments(f"{path}.journal") == []
    check_sqlite(path)


def test_a_read_only_file_system_is_refused_at_once_unless_a_ledger_is_there(
    small_disk: Path, hooks: Hooks, heard: list[LedgerDegraded]
) -> None:
    path = small_disk / "ledger.db"
    Ledger(path).close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with Ledger(path, hooks=hooks) as ledger:  # see test_spent_unwritten.py
        assert not ledger.health.ok
        assert "Read-only file system" in heard[0].reason
    with pytest.raises(ConfigError, match="Read-only file system"):
        Ledger(small_disk / "other.db")


@pytest.mark.parametrize("code", [errno.EDQUOT, errno.EIO, errno.ENOSPC, errno.EROFS])
def test_a_journal_that_fails_leaves_entries_to_memory_and_database(
    path: Path, monkeypatch: pytest.MonkeyPatch, hooks: Hooks, heard: list[LedgerDegraded], code: int
) -> None:
    def refuse(fd: int, record: bytes) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fastroute.ledger.writer.RECOVERY_SECONDS", 0.0)
    with Ledger(path, hooks=hooks) as ledger:
        ledger.append(attempt(0, cost_nano=1))
        working = ledger.journal.write_record
        monkeypatch.setattr(ledger.journal, "write_record", refuse)
        ledger.append(attempt(1, cost_nano=10))
        assert heard[0].reason == f"the journal cannot be written: {os.strerror(code)}"
        monkeypatch.setattr(ledger.journal, "write_record", working)
        assert ledger.spent() == 11
        until(lambda: ledger.health.ok or not ledger.append(attempt(cost_nano=0)))


@pytest.mark.parametrize(
    "said", ["disk I/O error", "database or disk is full", "attempt to write a readonly database"]
)
def test_an_error_in_the_midst_of_a_commit_takes_none_or_all(
    path: Path, monkeypatch: pytest.MonkeyPatch, hooks: Hooks, heard: list[LedgerDegraded], said: str
) -> None:
    failures = iter([True, True, False])

    class Failing(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            if sql == "COMMIT" and path.exists() and next(failures, False):
                raise sqlite3.OperationalError(said)
            return super().execute(sql, *args)

    Ledger(path).close()
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Failing))
    with Ledger(path, hooks=hooks) as ledger:
        for n in range(100):
            ledger.append(attempt(n, cost_nano=1))
        until(lambda: bool(heard))
        assert ledger.spent() == 100
        assert said in heard[0].reason


# ------------------------------------------------------------------------------------------ others (117)


@pytest.mark.parametrize("wal", [True, False])
def test_long_readers_and_backups_beside_it(path: Path, wal: bool, tmp_path: Path) -> None:
    with Ledger(path, wal=wal) as ledger:
        ledger.append(attempt(0, cost_nano=1))
        ledger.flush()
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            assert reader.execute("SELECT sum(cost_nano) FROM attempts").fetchone() == (1,)
            ledger.append(attempt(1, cost_nano=10))
            if wal:
                assert ledger.spent() == 11
            else:
                until(lambda: not ledger.health.ok)  # a rollback journal lets no one write beside a reader
            assert reader.execute("SELECT sum(cost_nano) FROM attempts").fetchone() == (1,)
            reader.execute("ROLLBACK")
            with closing(sqlite3.connect(tmp_path / "backup.db")) as backup:
                reader.backup(backup, pages=1, progress=lambda *_: ledger.append(attempt(2, cost_nano=0)))
        assert ledger.spent() == 11
    check_sqlite(tmp_path / "backup.db")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12: a fork beside threads
def test_a_rollback_journal_keeps_the_same_promise(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    figures = kill_loop(
        partial(Ledger, path, wal=False),
        Path(f"{path}.journal"),
        folder,
        rounds=3,
        writers=4,
        check=partial(check_sqlite, path),
    )
    assert figures.found >= figures.acknowledged > 12
    assert not os.path.exists(f"{path}-wal")


# ------------------------------------------------------------------------------ replaced, damaged (119, 120)


def test_a_replaced_file_is_noticed_and_said(
    path: Path, tmp_path: Path, hooks: Hooks, heard: list[LedgerDegraded]
) -> None:
    with Ledger(tmp_path / "restored.db") as other:
        other.append(attempt(9, cost_nano=1000))
    with Ledger(path, hooks=hooks) as ledger:
        ledger.append(attempt(0, cost_nano=1))
        ledger.flush()
        for ending in ("-wal", "-shm"):
            os.unlink(f"{path}{ending}")
        os.rename(tmp_path / "restored.db", path)
        ledger.append(attempt(1, cost_nano=10))
        assert ledger.spent() == 1011
        assert "removed or replaced" in heard[0].reason


def unclean(path: Path, entries: int = 50) -> None:
    """A ledger as a killed process leaves it: a log beside the file, entries in the journal too."""

    def work() -> None:
        ledger = Ledger(path)
        for n in range(entries):
            ledger.append(attempt(n, cost_nano=1))
        ledger.flush()
        ledger.append(attempt(entries, cost_nano=1))

    reap(in_child(work))


@pytest.mark.parametrize(
    ("harm", "most_lost"),
    [
        (lambda path: os.unlink(f"{path}-shm"), 0),
        (lambda path: Path(f"{path}-shm").write_bytes(b"\xff" * 32768), 0),
        # What SQLite had only in its log is gone with the log; the journal's own entries are not.
        (lambda path: Path(f"{path}-wal").write_bytes(os.urandom(50_000)), 50),
        (lambda path: os.truncate(f"{path}-wal", 3000), 50),
        (lambda path: path.write_bytes(os.urandom(8192)), 50),
        (lambda path: os.truncate(path, 0), 50),
    ],
    ids=["no -shm", "garbage in -shm", "garbage in -wal", "torn -wal", "garbage in the file", "empty file"],
)
def test_after_an_unclean_end_no_harm_to_the_files_stops_the_next(
    path: Path, harm: Callable[[Path], None], most_lost: int
) -> None:
    unclean(path)
    harm(path)
    with Ledger(path) as ledger:
        ledger.append(attempt(99, cost_nano=100))
        totals = ledger.totals()
        assert totals.cost_nano == totals.attempts + 99
        assert 52 - most_lost <= totals.attempts <= 52
    check_sqlite(path)


def test_a_damaged_file_is_not_set_aside_without_its_mark(
    path: Path, monkeypatch: pytest.MonkeyPatch, hooks: Hooks, heard: list[LedgerDegraded]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    unclean(path)
    os.unlink(f"{path}-wal")
    path.write_bytes(os.urandom(8192))
    with monkeypatch.context() as patched:
        patched.setattr("fastroute.ledger.FLUSH_SECONDS_IN_TROUBLE", 0.1)
        patched.setattr(damage_mark, "leave_mark", refuse)
        with Ledger(path, hooks=hooks) as ledger:
            assert "cannot be set aside" in heard[0].reason
            assert not ledger.health.ok
            with pytest.raises(LedgerError):
                ledger.spent()
    assert [name for name in os.listdir(path.parent) if ".corrupt-" in name] == []
    with Ledger(path) as ledger:
        assert ledger.health.unsure_until is not None
        assert ledger.totals().attempts == 51  # the journal still had them all


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"until": "soon"}', "\0"])
def test_a_mark_that_cannot_be_read_is_a_mark(path: Path, text: str) -> None:
    Path(f"{path}.damaged").write_text(text)
    with Ledger(path) as ledger, pytest.raises(LedgerError, match="may lack entries"):
        ledger.spent(4e9)


def test_a_hard_budget_does_not_begin_from_zero_after_damage(path: Path) -> None:
    with Provider(models=["m"]) as provider:
        settings = {
            "fastroute": {"ledger": str(path)},
            "providers": {"p": {"base_url": provider.base_url}},
            "endpoints": [{"provider": "p", "model": "m"}],
            "models": {"m": {"input_price": 1000, "output_price": 1000}},
            "budgets": [{"name": "all", "limit": 1000, "window": "month"}],
        }
        ask = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 50}
        with fastroute.Client(settings) as client:
            client.chat.completions.create(**ask)
        path.write_bytes(os.urandom(8192))
        with fastroute.Client(settings) as client:
            with pytest.raises(fastroute.BudgetExceeded, match="the ledger cannot be read"):
                client.chat.completions.create(**ask)
            assert client.stats()["ledger"].unsure_until is not None
        os.unlink(f"{path}.damaged")
        with fastroute.Client(settings) as client:
            assert client.chat.completions.create(**ask).route.cost > 0


def test_what_a_damaged_file_still_holds_is_found_from_both_sides(path: Path) -> None:
    with Ledger(path) as ledger:
        for n in range(3000):
            ledger.append(attempt(n, cost_nano=1, request_id="x" * 200))
    whole = {row[0] for rows in salvage.batches(str(path)) for row in rows}
    assert len(whole) == 3000
    with open(path, "r+b") as file:
        for page in range(20, path.stat().st_size // 4096, 11):
            file.seek(page * 4096)
            file.write(os.urandom(4096))
    before = path.read_bytes()
    found = {row[0] for rows in salvage.batches(str(path)) for row in rows}
    assert 0.5 < len(found) / 3000 < 1
    assert found < whole
    assert path.read_bytes() == before


# ------------------------------------------------------------------------------------ two versions (121)


def test_a_newer_schema_that_comes_while_running_is_not_written_to(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.append(attempt(0, cost_nano=1))
        ledger.flush()
        with closing(sqlite3.connect(path)) as newer:
            newer.execute("PRAGMA user_version = 99")
            ledger.append(attempt(1, cost_nano=10))
            until(lambda: not ledger.health.ok)
            assert "written by a newer fastroute (schema 99" in (ledger.health.reason or "")
            assert newer.execute("SELECT count(*) FROM attempts").fetchone() == (1,)
            newer.execute(f"PRAGMA user_version = {sqlite.VERSION}")
        assert ledger.spent() == 11


def test_an_older_schema_is_brought_forward_by_one_of_many(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger(path) as ledger:
        ledger.append(attempt(0, cost_nano=1))
    monkeypatch.setattr(sqlite, "LOCK_SECONDS", 5.0)
    more = ("ALTER TABLE attempts ADD COLUMN region TEXT",)
    monkeypatch.setattr(sqlite, "MIGRATIONS", (*sqlite.MIGRATIONS, more))
    monkeypatch.setattr(sqlite, "VERSION", sqlite.VERSION + 1)
    opened: list[Ledger] = []
    threads = [threading.Thread(target=lambda: opened.append(Ledger(path))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 6
    for ledger in opened:
        ledger.append(attempt(1, cost_nano=10))
        ledger.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT sum(cost_nano) FROM attempts WHERE region IS NULL").fetchone() == (
            61,
        )


def test_a_file_from_before_cache_writes_were_counted_goes_on(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.append(attempt(0, cost_nano=1))
    with closing(sqlite3.connect(path)) as old, old:
        for column in ("cache_write_tokens", "cache_write_1h_tokens", "service_tier", "budget_nano", "score"):
            old.execute(f"ALTER TABLE attempts DROP COLUMN {column}")
        old.execute("PRAGMA user_version = 1")
    with Ledger(path) as ledger:
        ledger.append(attempt(1, cost_nano=10, cache_write_tokens=7, cache_write_1h_tokens=3))
        new, old_entry = ledger.entries()
        assert (new.cache_write_tokens, new.cache_write_1h_tokens) == (7, 3)
        assert (old_entry.cache_write_tokens, old_entry.cache_write_1h_tokens) == (0, 0)
        assert (ledger.spent(), ledger.totals().cache_write_tokens) == (11, 7)


def test_a_file_from_before_service_tiers_were_recorded_goes_on(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.append(attempt(0, cost_nano=1))
    with closing(sqlite3.connect(path)) as old, old:
        for column in ("service_tier", "budget_nano", "score"):
            old.execute(f"ALTER TABLE attempts DROP COLUMN {column}")
        old.execute("PRAGMA user_version = 2")
    with Ledger(path) as ledger:
        ledger.append(attempt(1, cost_nano=10, service_tier="flex"))
        assert [entry.service_tier for entry in ledger.entries()] == ["flex", None]
        assert [(row.keys, row.cost_nano) for row in ledger.by("service_tier")] == [
            ((None,), 1),
            (("flex",), 10),
        ]


def test_a_file_from_before_scores_were_recorded_goes_on(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.append(attempt(0, cost_nano=1))
    with closing(sqlite3.connect(path)) as old, old:
        old.execute("ALTER TABLE attempts DROP COLUMN score")
        old.execute("PRAGMA user_version = 4")
    with Ledger(path) as ledger:
        ledger.append(attempt(1, cost_nano=10, score=-1.25))
        assert [entry.score for entry in ledger.entries()] == [-1.25, None]
        assert ledger.spent() == 11


@pytest.mark.parametrize(
    "lacking", [(), ("score",), ("service_tier", "score"), ("service_tier", "cache_write_1h_tokens")]
)
def test_the_rows_of_a_damaged_file_of_an_older_release_are_saved(
    path: Path, lacking: tuple[str, ...]
) -> None:
    with Ledger(path) as ledger:
        for number in range(3):
            ledger.append(attempt(number, cost_nano=10**number))
    with closing(sqlite3.connect(path)) as old, old:
        for column in lacking:
            old.execute(f"ALTER TABLE attempts DROP COLUMN {column}")
    saved = {tuple(row) for batch in salvage.batches(str(path)) for row in map(_without_tags, batch)}
    assert len(saved) == 3
    assert sum(row[journal.FIELDS.index("cost_nano")] for row in saved) == 111


def _without_tags(row: list[Any]) -> list[Any]:
    return [None if isinstance(value, dict) else value for value in row]


def test_a_migration_that_fails_leaves_everything_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger(path) as ledger:
        ledger.append(attempt(0, cost_nano=1))
    with monkeypatch.context() as patched:
        more = ("ALTER TABLE attempts ADD COLUMN region TEXT", "ALTER TABLE absent ADD COLUMN x TEXT")
        patched.setattr(sqlite, "MIGRATIONS", (*sqlite.MIGRATIONS, more))
        patched.setattr(sqlite, "VERSION", sqlite.VERSION + 1)
        with Ledger(path) as ledger:
            assert "no such table: absent" in (ledger.health.reason or "")
    with Ledger(path) as ledger:
        assert ledger.spent() == 1


# ------------------------------------------------------------------------------------ file systems (122)


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def mount(kind: str) -> None:
        """Has the kernel say, as it were, that the test's folder is on such a file system."""
        table = tmp_path.parent / f"{tmp_path.name}-mounts"
        point = str(tmp_path).replace(" ", "\\040")
        table.write_text(
            "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
            f"23 22 0:5 / {tmp_path.parent} rw shared:1 master:2 - xfs /dev/vdb rw\n"
            f"24 23 0:6 / {point} rw - {kind} host:/export rw\n"
            "garbage\n"
        )
        monkeypatch.setattr(mounts, "MOUNTS", str(table))

    return mount


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "9p", "fuse.sshfs", "virtiofs"])
def test_network_file_systems_are_refused_unless_told_otherwise(
    path: Path, mounted: Callable[[str], None], kind: str
) -> None:
    mounted(kind)
    with pytest.raises(ConfigError, match=rf"network file system \({kind}\).* set ledger_wal to off"):
        Ledger(path)
    assert os.listdir(path.parent) == []
    with Ledger(path, wal=False) as ledger:
        ledger.append(attempt(cost_nano=3))
        assert ledger.spent() == 3
        assert not os.path.exists(f"{path}-wal")
    with pytest.raises(ConfigError, match=r"network file system .* set ledger_journal"):
        Ledger("postgresql://u@127.0.0.1:1/x", journal=path.parent / "journal")


@pytest.mark.parametrize(("kind", "wal"), [("ext4", True), ("overlay", False), ("fuse.mergerfs", True)])
def test_layered_file_systems_get_a_rollback_journal(
    path: Path, mounted: Callable[[str], None], kind: str, wal: bool
) -> None:
    mounted(kind)
    with Ledger(path) as ledger:
        ledger.append(attempt(cost_nano=3))
        assert ledger.spent() == 3
        assert os.path.exists(f"{path}-wal") is wal
    with Ledger(path, wal=True) as ledger:
        ledger.append(attempt(cost_nano=3))
        assert ledger.spent() == 6
        assert os.path.exists(f"{path}-wal")


def test_which_file_system_a_path_is_on(
    tmp_path: Path, mounted: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mounts.kind_of("/proc/self") == "proc"
    mounted("nfs")
    assert mounts.kind_of(str(tmp_path / "a" / "b")) == "nfs"
    assert mounts.kind_of(f"{tmp_path}x") == "xfs"
    assert mounts.kind_of("/") == "ext4"
    (tmp_path.parent / f"{tmp_path.name}-link").symlink_to(tmp_path)
    assert mounts.kind_of(f"{tmp_path}-link/x") == "nfs"
    monkeypatch.setattr(mounts, "MOUNTS", str(tmp_path / "absent"))
    assert mounts.kind_of("/") is None
    assert not mounts.is_network(None)


# ------------------------------------------------------------------------------------------- odd amounts


def test_sums_beyond_sixty_four_bits_are_exact(path: Path) -> None:
    with Ledger(path) as ledger:
        for n in range(9):
            ledger.append(attempt(n, cost_nano=10**18 - n))
        ledger.append(attempt(9, cost_nano=10**18 - 9, budget_nano=10**18, usage_source="estimated"))
        ledger.append(attempt(10, cost_nano=-5))
        totals = ledger.totals()
        assert totals.cost_nano == 10**19 - 45 - 5
        assert totals.estimated_nano == 10**18 - 9
        assert ledger.spent() == totals.budget_nano == 10**19 - 36 - 5
        (saving,) = ledger.savings(lambda _: TokenPrices(0, 0), ["x"])
        assert saving.actual_nano == 10**19 - 45 - 5


def test_a_cost_above_what_budgets_count_is_cut_to_that(path: Path) -> None:
    # The core's counters, both databases and the journal hold the same: see tests/budget for the counters.
    with Ledger(path) as ledger:
        for n, cost in enumerate((10**18, 10**18 + 1, 2**62, 2**63, 10**40)):
            ledger.append(attempt(n, cost_nano=cost, budget_nano=cost))
        assert [entry.cost_nano for entry in ledger.entries()] == [10**18] * 5
        assert ledger.spent() == 5 * 10**18 == 5 * _core.MOST_NANO


@pytest.mark.parametrize("cost", [-(10**18) - 1, -(2**63), 1.5, "dear"])
def test_a_cost_that_is_none_is_unknown_and_holds_nothing_up(path: Path, cost: Any) -> None:
    with Ledger(path) as ledger:
        ledger.append(attempt(0, cost_nano=cost))
        ledger.append(attempt(1, cost_nano=1, prompt_tokens=2**63))
        ledger.append(attempt(2, cost_nano=1))
        totals = ledger.totals()
        assert (totals.attempts, totals.cost_nano, totals.unknown_cost) == (2, 1, 1)
        assert ledger.health.rejected == 1
