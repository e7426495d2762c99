"""The ledger's SQLite file: schema, connection, inserts and sums.

Owns everything that is SQL. One `Database` is one connection and is used by one thread of one process at
a time; who that is, is `writer.py`'s business, as is what to do when a write fails.

All SQL is constant text with bound values: grouping and filters are chosen by parameters. All sums are
SQLite integers, so they are exact.

A batch is inserted with many rows to a statement: the interpreter lock is given away once a statement, and
in a busy process getting it back may cost milliseconds.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal

import orjson

from fastroute.errors import ConfigError
from fastroute.types import Attempt

from . import locks
from .journal import FIELDS, clean_tags, clean_text

log = logging.getLogger("fastroute")

Durability = Literal["process", "power"]

LOCK_SECONDS = 5.0
_CHECKPOINT_BYTES = 4 << 20
_JOURNAL_SIZE_LIMIT = 64 << 20
_DAY = 86_400
_KEYS = 4

GROUPS = ("model", "tier", "level", "endpoint", "provider", "day", "outcome")
"""What entries may be grouped by, beside ``tag:NAME``."""

_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE attempts (
            seq INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            call_id TEXT NOT NULL,
            time REAL NOT NULL,
            day INTEGER NOT NULL,
            endpoint TEXT NOT NULL,
            provider TEXT NOT NULL,
            model TEXT NOT NULL,
            tier TEXT,
            level TEXT,
            outcome TEXT NOT NULL,
            status_code INTEGER,
            error TEXT,
            prompt_tokens INTEGER NOT NULL,
            completion_tokens INTEGER NOT NULL,
            cached_tokens INTEGER NOT NULL,
            reasoning_tokens INTEGER NOT NULL,
            usage_source TEXT NOT NULL,
            cost_nano INTEGER,
            latency REAL NOT NULL,
            ttft REAL,
            stream INTEGER NOT NULL,
            maybe_billed INTEGER NOT NULL,
            request_id TEXT,
            tags TEXT
        )
        """,
        "CREATE INDEX attempts_time ON attempts (time)",
    ),
)
VERSION = len(_MIGRATIONS)

_COLUMNS = (*FIELDS, "day")
# Rows a statement, largest first. SQLite takes 32766 values a statement since 3.32, 999 before.
_SIZES = (512, 64, 8, 1) if sqlite3.sqlite_version_info >= (3, 32) else (32, 8, 1)
_ROW = "(" + ",".join("?" * len(_COLUMNS)) + ")"
_TIME, _TAGS = FIELDS.index("time"), FIELDS.index("tags")

_INTO = " ".join(("INSERT INTO attempts (", ",".join(_COLUMNS), ") VALUES"))
_UNLESS_THERE = "ON CONFLICT (id) DO NOTHING"  # OR IGNORE would also swallow rows it refuses
_INSERTS = tuple((size, " ".join((_INTO, ",".join([_ROW] * size), _UNLESS_THERE))) for size in _SIZES)

_MATCHING = """
    FROM attempts
    WHERE time >= :since AND time < :until
      AND (:model IS NULL OR model = :model)
      AND (:tier IS NULL OR tier = :tier)
      AND (:endpoint IS NULL OR endpoint = :endpoint)
      AND (:provider IS NULL OR provider = :provider)
      AND (:outcome IS NULL OR outcome = :outcome)
      AND (:tags IS NULL OR NOT EXISTS (
            SELECT 1 FROM json_each(:tags) AS wanted
            WHERE (SELECT held.atom FROM json_each(attempts.tags) AS held WHERE held.key = wanted.key)
                  IS NOT wanted.atom))
"""
_FILTERS = ("model", "tier", "endpoint", "provider", "outcome")


_TAG_VALUE = "(SELECT atom FROM json_each(attempts.tags) WHERE key = :tag"


def _group_column(n: int) -> str:
    columns = " ".join(f"WHEN '{name}' THEN {name}" for name in GROUPS)
    return f"CASE :key{n} {columns} WHEN 'tag' THEN {_TAG_VALUE}{n}) END AS k{n}"


_GROUP_NAMES = ", ".join(f"k{n}" for n in range(_KEYS))
# The latencies of a group come as one text of microseconds: sorting them here is several times faster than
# SQLite's window functions, and fetching them row by row would pass the interpreter lock around each time.
_SUMS = " ".join(
    (
        "SELECT",
        ", ".join(_group_column(n) for n in range(_KEYS)),
        """,
        count(DISTINCT call_id), count(*), sum(outcome <> 'ok'),
        sum(prompt_tokens), sum(completion_tokens), sum(cached_tokens), sum(reasoning_tokens),
        coalesce(sum(cost_nano), 0), sum(cost_nano IS NULL),
        avg(CASE WHEN outcome = 'ok' THEN latency END),
        group_concat(CASE WHEN outcome = 'ok' THEN CAST(latency * 1000000 + 0.5 AS INTEGER) END)
        """,
        _MATCHING,
        "GROUP BY",
        _GROUP_NAMES,
        "ORDER BY",
        _GROUP_NAMES,
    )
)
_SPENT = " ".join(("SELECT coalesce(sum(cost_nano), 0)", _MATCHING))
_USAGES = " ".join(
    (
        "SELECT prompt_tokens, completion_tokens, cached_tokens, count(*), coalesce(sum(cost_nano), 0)",
        _MATCHING,
        "AND outcome = 'ok' AND cost_nano IS NOT NULL GROUP BY 1, 2, 3",
    )
)
_UNPRICED = " ".join(("SELECT count(*)", _MATCHING, "AND outcome = 'ok' AND cost_nano IS NULL"))
_ENTRIES = " ".join(("SELECT", ",".join(FIELDS), _MATCHING, "ORDER BY time DESC, seq DESC LIMIT :limit"))

_warned = False


def one_checkpointer_needed(version: tuple[int, ...]) -> bool:
    """Whether this SQLite may damage the WAL when two connections check-point and write at once."""
    backported = ((3, 50, 7), (3, 44, 6))
    mended = any(version[:2] == fix[:2] and version >= fix for fix in backported)
    return version < (3, 51, 3) and not mended


class Corrupt(Exception):
    """The file is a damaged database, or none at all.

    Attributes:
        inode: which file was found so, for another process may have replaced it since.
    """

    def __init__(self, reason: str, inode: tuple[int, int] | None) -> None:
        super().__init__(reason)
        self.inode = inode


class Database:
    """One connection to the ledger's file, its schema brought up to date.

    Args:
        path: the file, absolute; created with mode 0600.
        lock_path: a file beside it; commits hold its `flock` shared, check-points, schema changes and
            setting the file aside exclusively.
        durability: ``power`` waits for the disk at every commit.

    Raises:
        ConfigError: the path is no ledger of ours, or of a newer version.
        Corrupt: it is damaged.
        sqlite3.OperationalError, OSError, TimeoutError: it cannot be had at present.
    """

    def __init__(self, path: str, lock_path: str, durability: Durability) -> None:
        self.path = path
        self._alone = one_checkpointer_needed(sqlite3.sqlite_version_info)
        self._inode: tuple[int, int] | None = None
        self._lock_fd = locks.open_private(lock_path, os.O_RDWR | os.O_CREAT)
        self.connection: sqlite3.Connection | None = None
        try:
            with self._locked(fcntl.LOCK_EX):
                self._inode = _create_file(path)
                self.connection = self._connect(durability)
                self._migrate()
        except sqlite3.DatabaseError as error:
            self._abandon()
            raise self._judged(error) from error
        except BaseException:
            self._abandon()
            raise

    def _connect(self, durability: Durability) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA mmap_size = 0")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'power' else 'NORMAL'}")
            connection.execute(f"PRAGMA journal_size_limit = {_JOURNAL_SIZE_LIMIT}")
            if self._alone:
                _warn_once()
                connection.execute("PRAGMA wal_autocheckpoint = 0")
        except BaseException:
            connection.close()
            raise
        return connection

    def _migrate(self) -> None:
        """Brings the schema up to this version, all of it or nothing."""
        connection = self._open
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == VERSION:
            return
        if version > VERSION:
            raise ConfigError(
                f"ledger: {self.path} was written by a newer fastroute (schema {version}; this one knows "
                f"up to {VERSION}); upgrade fastroute or name another file"
            )
        if version == 0 and connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise ConfigError(f"ledger: {self.path} is some other program's database; name another file")
        with self._transaction():
            for statements in _MIGRATIONS[version:]:
                for statement in statements:
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {VERSION}")

    @property
    def _open(self) -> sqlite3.Connection:
        if self.connection is None:
            raise sqlite3.ProgrammingError("the ledger's connection is closed")
        return self.connection

    # ------------------------------------------------------------------------------------------- writing

    def insert(self, rows: Sequence[Sequence[Any]]) -> None:
        """Commits rows in the order of `FIELDS`; one whose id is there already is passed over.

        Raises:
            sqlite3.Error, TimeoutError: nothing was committed.
            Corrupt: the same, and the file is damaged.
        """
        prepared = [_prepared(row) for row in rows]
        done = 0
        try:
            with self._locked(fcntl.LOCK_SH), self._transaction():
                for size, statement in _INSERTS:
                    while len(prepared) - done >= size:
                        values = [value for row in prepared[done : done + size] for value in row]
                        self._open.execute(statement, values)
                        done += size
        except sqlite3.DatabaseError as error:
            raise self._judged(error) from error
        if self._alone:
            self._checkpoint()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        connection = self._open
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise

    def _checkpoint(self) -> None:
        try:
            due = os.stat(self.path + "-wal").st_size >= _CHECKPOINT_BYTES
        except FileNotFoundError:
            return
        if due:
            with suppress(TimeoutError), self._locked(fcntl.LOCK_EX, 0):
                self._open.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    @contextmanager
    def _locked(self, kind: int, seconds: float | None = None) -> Iterator[None]:
        deadline = time.monotonic() + (LOCK_SECONDS if seconds is None else seconds)
        while True:
            try:
                fcntl.flock(self._lock_fd, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise TimeoutError("another process holds the ledger's lock") from None
                time.sleep(0.002)
        try:
            yield
        finally:
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    # -------------------------------------------------------------------------------------------- state

    @property
    def replaced(self) -> bool:
        """Whether the path no longer names the file that this connection writes to."""
        try:
            found = os.lstat(self.path)
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != self._inode

    def check(self) -> None:
        """Reads the whole file for damage; takes about a second a gigabyte.

        Raises:
            Corrupt: it is damaged.
        """
        try:
            (verdict,) = self._open.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            raise self._judged(error) from error
        if verdict != "ok":
            raise Corrupt(verdict, self._inode)

    def _judged(self, error: sqlite3.DatabaseError) -> Exception:
        # SQLITE_CORRUPT and SQLITE_NOTADB are the two that come as the bare class.
        return Corrupt(str(error), self._inode) if type(error) is sqlite3.DatabaseError else error

    def close(self) -> None:
        """Closes the connection; the last one on the file check-points it."""
        if self.connection is None:
            return
        with suppress(TimeoutError), self._locked(fcntl.LOCK_EX, 1.0 if self._alone else 0.0):
            self.connection.close()
        self._abandon()

    def _abandon(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        if self._lock_fd >= 0:
            locks.close(self._lock_fd)
            self._lock_fd = -1

    # ------------------------------------------------------------------------------------------- reading

    def sums(self, keys: Sequence[str], where: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """The values of ``keys`` and the sums of every group, in the order of the keys' values."""
        chosen: dict[str, Any] = dict(where)
        for n in range(_KEYS):
            key, _, tag = clean_text(keys[n] if n < len(keys) else "").partition(":")
            chosen[f"key{n}"] = key
            chosen[f"tag{n}"] = tag
        rows = self._open.execute(_SUMS, chosen).fetchall()
        return [(*row[: len(keys)], *row[_KEYS:-1], *_percentiles(row[-1])) for row in rows]

    def spent(self, where: Mapping[str, Any]) -> int:
        """The exact sum of known costs, nano-dollars."""
        (spent,) = self._open.execute(_SPENT, where).fetchone()
        return int(spent)

    def usages(self, where: Mapping[str, Any]) -> tuple[list[tuple[int, int, int, int, int]], int]:
        """Successful entries by (prompt, completion, cached) tokens, with their count and cost.

        Beside them, how many successful entries have no known cost and are therefore left out.
        """
        (unpriced,) = self._open.execute(_UNPRICED, where).fetchone()
        return self._open.execute(_USAGES, where).fetchall(), unpriced

    def entries(self, where: Mapping[str, Any], limit: int | None) -> list[Attempt]:
        """Entries, newest first."""
        rows = self._open.execute(_ENTRIES, {**where, "limit": -1 if limit is None else limit})
        return [_attempt(row) for row in rows]


def filters(
    since: float | None,
    until: float | None,
    tags: Mapping[str, str] | None,
    **equal: str | None,
) -> dict[str, Any]:
    """The bound values of a reading's conditions."""
    return {
        "since": -1e300 if since is None else since,
        "until": 1e300 if until is None else until,
        "tags": orjson.dumps(clean_tags(tags)).decode() if tags else None,
        **{name: equal.get(name) for name in _FILTERS},
    }


def check_keys(keys: Sequence[str]) -> None:
    """Refuses what entries cannot be grouped by."""
    for key in keys:
        if key not in GROUPS and not (key.startswith("tag:") and len(key) > 4):
            raise ValueError(f"cannot group by {key!r}: use one of {', '.join(GROUPS)} or tag:NAME")
    if len(keys) > _KEYS:
        raise ValueError(f"cannot group by {len(keys)} keys at once: use {_KEYS} at most")


def set_aside(path: str, lock_path: str, inode: tuple[int, int] | None) -> str | None:
    """Renames a damaged file and its WAL to ``….corrupt-TIME``; None if another process was faster."""
    fd = locks.open_private(lock_path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        found = identity(path)
        if found is None or (inode is not None and found != inode):
            return None
        target = f"{path}.corrupt-{time.time_ns()}"
        for ending in ("-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                os.rename(path + ending, target + ending)
        return target
    finally:
        locks.close(fd)


def identity(path: str) -> tuple[int, int] | None:
    """Device and inode of a file; None if there is none."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _create_file(path: str) -> tuple[int, int]:
    """Makes the file if there is none, readable by its owner only, and never through a link."""
    # An existing file is not opened here: closing it would drop the POSIX locks of every other
    # connection that this process has on it.
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        pass
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "no regular file"
        raise ConfigError(f"ledger: {path} is {what}; name a file")
    return found.st_dev, found.st_ino


def _percentiles(microseconds: str | None) -> tuple[float | None, float | None]:
    """The 50th and 95th percentile by nearest rank, in seconds."""
    if not microseconds:
        return None, None
    values = sorted(orjson.loads(f"[{microseconds}]"))
    median, high = (values[(len(values) * percent + 99) // 100 - 1] / 1e6 for percent in (50, 95))
    return median, high


def _prepared(row: Sequence[Any]) -> tuple[Any, ...]:
    tags = row[_TAGS]
    packed = orjson.dumps(tags).decode() if tags else None
    return (*row[:_TAGS], packed, *row[_TAGS + 1 :], int(row[_TIME] // _DAY))


def _attempt(row: Sequence[Any]) -> Attempt:
    values = dict(zip(FIELDS, row))
    values["tags"] = orjson.loads(values["tags"]) if values["tags"] else {}
    values["stream"] = bool(values["stream"])
    values["maybe_billed"] = bool(values["maybe_billed"])
    return Attempt(**values)


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        # Not a warning: nothing is left for the user to do about it.
        log.info(
            "SQLite %s can damage a database that several processes check-point at once (mended in 3.51.3): "
            "the ledger lets one process at a time do it; a newer SQLite needs no such care",
            sqlite3.sqlite_version,
        )
