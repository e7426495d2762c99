"""The ledger in an SQLite file: schema, connections, inserts, sums, and setting a damaged file aside.

All SQL is constant text with bound values; parameters choose grouping and filters. All sums are SQLite
integers, so they are exact.

A statement inserts many rows: SQLite releases the interpreter lock once for each statement, and in a busy
process acquiring it again may take milliseconds.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from functools import cache
from typing import Any
from urllib.parse import quote
from zlib import crc32

from fastroute import json_codec
from fastroute.errors import ConfigError
from fastroute.figures import percentile
from fastroute.platform import files, greenlets, mounts
from fastroute.types import Attempt

from . import damage_mark, journal, salvage
from .database import (
    DAY_SECONDS,
    GROUPS,
    MOST_KEYS,
    USAGE,
    DatabaseCorrupt,
    DatabaseUnavailable,
    Durability,
    RowsRejected,
    as_attempt,
    grouped,
    is_plain,
    newer_schema,
    only_tag,
)
from .journal import FIELDS, FLAGS, FLOATS, INTS, MAX_COST, MAX_COUNT, OPTIONAL

log = logging.getLogger("fastroute")

LOCK_SECONDS = 5.0
SET_ASIDE_SECONDS = 30.0
CHECKPOINT_BYTES = 4 << 20
_JOURNAL_SIZE_LIMIT = 64 << 20

MIGRATIONS: tuple[tuple[str, ...], ...] = (
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
    (
        "ALTER TABLE attempts ADD COLUMN cache_write_tokens INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE attempts ADD COLUMN cache_write_1h_tokens INTEGER NOT NULL DEFAULT 0",
    ),
    ("ALTER TABLE attempts ADD COLUMN service_tier TEXT",),
    ("ALTER TABLE attempts ADD COLUMN budget_nano INTEGER",),
    ("ALTER TABLE attempts ADD COLUMN score REAL",),
)
VERSION = len(MIGRATIONS)
_IMPOSSIBLE_VERSION = 10_000

_COLUMNS = (*FIELDS, "day")
# Rows for each statement, largest first. SQLite allows 32766 values for each since 3.32, 999 before.
_SIZES = (512, 64, 8, 1) if sqlite3.sqlite_version_info >= (3, 32) else (32, 8, 1)
_ROW = "(" + ",".join("?" * len(_COLUMNS)) + ")"
_TIME, _TAGS = FIELDS.index("time"), FIELDS.index("tags")

_INTO = " ".join(("INSERT INTO attempts (", ",".join(_COLUMNS), ") VALUES"))
_UNLESS_THERE = "ON CONFLICT (id) DO NOTHING"  # OR IGNORE also ignores violations of other constraints
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
            WHERE coalesce(
                (SELECT held.atom FROM json_each(attempts.tags) AS held WHERE held.key = wanted.key), '')
                <> wanted.atom))
"""

_TAG_VALUE = "(SELECT atom FROM json_each(attempts.tags) WHERE key = :tag"


def _group_column(n: int) -> str:
    columns = " ".join(f"WHEN '{name}' THEN {name}" for name in GROUPS)
    return f"CASE :key{n} {columns} WHEN 'tag' THEN {_TAG_VALUE}{n}) END AS k{n}"


def _money(amount: str) -> str:
    """The columns of an exact sum: its upper and its lower half.

    A sum in SQLite fails above 2^63, which a few entries with wrong prices may reach.
    """
    return f"coalesce(sum(({amount}) >> 32), 0), coalesce(sum(({amount}) & 4294967295), 0)"


def _whole(high: int, low: int) -> int:
    return (int(high) << 32) + int(low)


_ESTIMATED = "CASE WHEN usage_source = 'estimated' THEN cost_nano END"
_COUNTED = "coalesce(budget_nano, cost_nano)"  # what budgets count

_GROUP_NAMES = ", ".join(f"k{n}" for n in range(MOST_KEYS))
# The latencies of a group come as one text of microseconds. Sorting them in Python is several times faster
# than SQLite's window functions, and fetching them row by row would release the interpreter lock each time.
_SUMS = " ".join(
    (
        "SELECT",
        ", ".join(_group_column(n) for n in range(MOST_KEYS)),
        """,
        count(DISTINCT call_id), count(*), sum(outcome NOT IN ('ok', 'hedge_lost')),
        """,
        # A sum fails above 2^63, which two damaged numbers may reach.
        ", ".join(
            f"sum(min({kind}_tokens, {MAX_COUNT}))"
            for kind in ("prompt", "completion", "cached", "reasoning", "cache_write")
        ),
        f", {_money('cost_nano')}, sum(cost_nano IS NULL), sum(usage_source = 'estimated'),",
        f"{_money(_ESTIMATED)}, {_money(_COUNTED)},",
        """
        avg(CASE WHEN outcome = 'ok' THEN latency END),
        group_concat(CASE WHEN outcome = 'ok' THEN CAST(latency * 1000000 + 0.5 AS INTEGER) END),
        avg(score)
        """,
        _MATCHING,
        "GROUP BY",
        _GROUP_NAMES,
        "ORDER BY",
        _GROUP_NAMES,
    )
)
# Besides the sum, how many amounts cannot be summed, and whether times cannot be compared: such entries would
# be missing in the sum. NULL is sorted before all numbers, text and blobs after them, so the index finds them
# at once. `time IS NULL` would not: SQLite believes the NOT NULL of the schema.
_IN_RANGE = (
    f"{_COUNTED} IS NULL OR "
    f"(typeof({_COUNTED}) = 'integer' AND {_COUNTED} BETWEEN -{MAX_COST} AND {MAX_COST})"
)
_SPENT = " ".join(
    (
        "SELECT",
        _money(_COUNTED),
        f", coalesce(sum(NOT ({_IN_RANGE})), 0),",
        "(SELECT typeof(time) FROM attempts ORDER BY time LIMIT 1),",
        "(SELECT typeof(time) FROM attempts ORDER BY time DESC LIMIT 1)",
        _MATCHING,
        "AND id NOT IN (SELECT value FROM json_each(:without))",
    )
)


# SQLite allows no function of JSON in an index of a file it does not trust. So the index has the beginning
# of what follows the tag's name in the text, and `_MATCHING` decides.
_INDEXED = 64


@cache
def _of_tag(name: str) -> str:
    # The expression of the index must be the same to the letter.
    return f'substr(tags, instr(tags, \'"{name}":"\') + {len(name) + 4}, {_INDEXED})'


@cache
def spent_by(name: str) -> str:
    """`_SPENT` with which the index of a tag is used."""
    head, _, tail = _SPENT.partition(_MATCHING)
    # A plus sign keeps SQLite from using the index of times instead.
    matching = _MATCHING.replace("WHERE time >= :since AND time <", "AND +time >= :since AND +time <")
    found = matching.replace("FROM attempts", f"FROM attempts WHERE {_of_tag(name)} BETWEEN :low AND :high")
    return " ".join((head, found, tail))


def tag_bounds(value: str) -> dict[str, str]:
    """Between which texts a tag's value is in its index."""
    text = json_codec.dumps(value).decode()[1:]
    low = text[:_INDEXED]
    return {"low": low, "high": low if len(text) >= _INDEXED else low + chr(0x10FFFF)}


_USAGES = " ".join(
    (
        "SELECT day,",
        ", ".join(USAGE),
        ", count(*),",
        _money("cost_nano"),
        _MATCHING,
        "AND outcome = 'ok' AND cost_nano IS NOT NULL GROUP BY 1, 2, 3, 4, 5, 6",
    )
)
_UNPRICED = " ".join(
    ("SELECT day, count(*)", _MATCHING, "AND outcome = 'ok' AND cost_nano IS NULL GROUP BY day")
)
_ENTRIES = " ".join(("SELECT", ",".join(FIELDS), _MATCHING, "ORDER BY time DESC, seq DESC LIMIT :limit"))


def _type_check(name: str) -> str:
    """A condition that holds for entries whose value in this column is impossible."""
    if name == "tags":
        return (
            "CASE WHEN tags IS NULL THEN 0 WHEN json_valid(tags) THEN json_type(tags) <> 'object' ELSE 1 END"
        )
    kind = "real" if name in FLOATS else "integer" if name in INTS or name in FLAGS else "text"
    kinds = f"'{kind}', 'null'" if name in OPTIONAL else f"'{kind}'"
    return f"typeof({name}) NOT IN ({kinds})"


_IMPOSSIBLE = " ".join(
    (
        "SELECT count(*) FROM attempts WHERE",
        " OR ".join(map(_type_check, FIELDS)),
        f"OR NOT ({_IN_RANGE}) OR typeof(day) <> 'integer' OR abs(day + 0.5 - time / {DAY_SECONDS}) > 0.501",
    )
)

# Errors about a value, not about the file. The last two come from binding it.
_REFUSALS = (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError, OverflowError)


def one_checkpointer_needed(version: tuple[int, ...]) -> bool:
    """Whether this SQLite may damage the WAL if two connections checkpoint and write at once."""
    backported = ((3, 50, 7), (3, 44, 6))
    mended = any(version[:2] == fix[:2] and version >= fix for fix in backported)
    return version < (3, 51, 3) and not mended


class SQLiteStorage:
    """A ledger in one file. Next to it are the journal's directory and, after damage, a mark that says so.

    Attributes:
        name: the file's absolute path.
        journal: the directory of the journal.

    Args:
        path: the file; its directory must exist.
        durability: ``power`` waits for the disk at every commit.
        wal: whether SQLite keeps a write-ahead log. Default: a write-ahead log on local file systems, a
            rollback journal on layered ones, and an error on network file systems.

    Raises:
        ConfigError: the file is on a network file system and ``wal`` is not given.
    """

    def __init__(self, path: str | os.PathLike[str], durability: Durability, wal: bool | None = None) -> None:
        self.name = os.path.abspath(os.fspath(path))
        self.journal = self.name + ".journal"
        self.mark = self.name + ".damaged"
        self._durability: Durability = durability
        self._lock_path = os.path.join(self.journal, "lock")
        kind = mounts.kind_of(os.path.dirname(self.name))
        if wal is None and mounts.is_network(kind):
            raise ConfigError(
                f"ledger: {self.name} is on a network file system ({kind}), where file locks and a "
                "write-ahead log are unreliable; use a file on a local disk or a PostgreSQL database, or, if "
                "no other machine ever writes the file, set ledger_wal to off (slower) or on"
            )
        self._wal = kind not in mounts.LAYERED if wal is None else wal

    def prepare(self) -> str | None:
        parent = os.path.dirname(self.name)
        if not os.path.isdir(parent):
            raise ConfigError(f"ledger: {self.name} cannot be created: the directory {parent} does not exist")
        # The journal's directory distinguishes a damaged ledger from another file named by mistake.
        ours = os.path.isdir(self.journal)
        try:
            with closing(self.connect()) as database:
                if ours and journal.has_orphans(self.journal):
                    database.check()
        except DatabaseCorrupt:
            if ours:
                raise
            _remove_directory(self.journal)
            raise ConfigError(f"ledger: {self.name} is not an SQLite database; use another file") from None
        except ConfigError:
            if not ours:
                _remove_directory(self.journal)
            raise
        except DatabaseUnavailable as error:
            # A ledger that was in use before, and whose disk cannot be written now, fails no call: entries
            # wait in memory, and what was spent can be read.
            if ours and self._is_readable():
                return str(error)
            if isinstance(error.__cause__, OSError) and error.__cause__.errno not in _PASSING:
                raise ConfigError(f"ledger: {self.name} cannot be used: {error}") from None
            if os.path.exists(self.name) and not os.access(self.name, os.W_OK):
                raise ConfigError(f"ledger: {self.name} cannot be written: {error}") from None
            return str(error)
        return None

    def connect(self) -> SQLiteConnection:
        try:
            os.makedirs(self.journal, mode=0o700, exist_ok=True)
            return SQLiteConnection(self.name, self._lock_path, self._durability, wal=self._wal)
        except files.UnsafeFileError as error:
            raise ConfigError(f"ledger: {error.filename} cannot be used: {error.strerror}") from None
        except OSError as error:
            raise DatabaseUnavailable(error.strerror or str(error)) from error

    def read(self) -> SQLiteReader:
        return SQLiteReader(self.name)

    def _is_readable(self) -> bool:
        try:
            self.read().close()
        except (ConfigError, DatabaseCorrupt, DatabaseUnavailable):
            return False
        return True

    def set_aside(self, damage: DatabaseCorrupt) -> str | None:
        """Renames the damaged file to ``….corrupt-TIME`` and copies the readable entries to a new file.

        The mark that entries may be missing is written first, so that no sum is returned without it.
        """
        with files.closing(files.open_file(self._lock_path, os.O_RDWR | os.O_CREAT, private=False)) as fd:
            # Whoever holds it commits, which takes at most a few seconds, or has been stopped.
            if not files.lock(fd, timeout=SET_ASIDE_SECONDS):
                raise OSError(errno.ETIMEDOUT, "another process holds the ledger's lock", self._lock_path)
            found = files.identity(self.name)
            if found is None or (damage.inode is not None and found != damage.inode):
                return None
            now = time.time_ns()
            target = f"{self.name}.corrupt-{now}"
            damage_mark.leave_mark(self.mark, now / 1e9, target)
            for ending in ("-wal", "-shm", "-journal", ""):
                with suppress(FileNotFoundError):
                    os.rename(self.name + ending, target + ending)
        saved = self._save(target)
        return (
            f"the database is damaged ({damage}); it was renamed to {target}, and a new one has the {saved} "
            "entries that could be read. Entries may be missing, so what was spent before now is unknown; "
            f"delete {self.mark} to accept the entries that are left"
        )

    def _save(self, target: str) -> int:
        saved = 0
        try:
            with closing(self.connect()) as database:
                for rows in salvage.batches(target):
                    saved += database.insert_what_fits(rows)
        except (DatabaseUnavailable, DatabaseCorrupt, ConfigError) as error:
            log.error("ledger %s: not all entries of %s could be copied: %s", self.name, target, error)
        return saved

    def leave_mark(self, where: str) -> str:
        damage_mark.leave_mark(self.mark, time.time(), where)
        return self.mark

    def unsure_until(self) -> tuple[float, str] | None:
        until = damage_mark.read_mark(self.mark)
        return None if until is None else (until, self.mark)


_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors of the system that may be temporary."""


@contextmanager
def _judging(inode: tuple[int, int] | None) -> Iterator[None]:
    """Translates SQLite's errors into those of `.database`."""
    try:
        yield
    except sqlite3.Error as error:
        # Only SQLITE_CORRUPT and SQLITE_NOTADB are raised as the base class itself.
        if type(error) is sqlite3.DatabaseError or str(error).startswith(_OF_VALUES):
            raise DatabaseCorrupt(str(error), inode) from error
        raise DatabaseUnavailable(str(error)) from error
    except UnicodeDecodeError as error:  # SQLite's own message has damaged text in it
        raise DatabaseCorrupt("text in it is damaged", inode) from error


_OF_VALUES = (
    *("malformed JSON", "integer overflow", "Could not decode"),
    *("duplicate column", "table attempts already exists"),
)
"""Beginnings of SQLite's messages about what a query has met, and not about the moment."""


@contextmanager
def _reading(inode: tuple[int, int] | None) -> Iterator[None]:
    """As `_judging`; also for values that are not what the columns should hold."""
    try:
        with _judging(inode):
            yield
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise DatabaseCorrupt(f"an entry has impossible values ({type(error).__name__})", inode) from error


def _replaced(raw: bytes) -> str:
    """A `text_factory`: text that is no UTF-8 must not make a whole report fail."""
    return raw.decode("utf-8", "replace")


def _spent(connection: sqlite3.Connection, where: Mapping[str, Any], inode: tuple[int, int] | None) -> int:
    with _reading(inode):
        tag = only_tag(where)
        # Entries without the tag are not found by an index of its values.
        by_value = tag is not None and tag[1] != ""
        query = spent_by(tag[0]) if tag is not None and by_value else _SPENT
        bound = {**where, **tag_bounds(tag[1])} if tag is not None and by_value else where
        high, low, impossible, first, last = connection.execute(query, bound).fetchone()
        if impossible or {first, last} - {"real", None}:
            raise DatabaseCorrupt("entries have impossible costs or times", inode)
        return _whole(high, low)


class SQLiteReader:
    """A connection that only reads the ledger's file: it takes no lock of ours and writes nothing.

    A write-ahead log is read with its index. If the index is missing and cannot be made, because the disk is
    full or read-only, the file alone is read, unless the log holds something that is not in the file yet.

    Args:
        path: the file's absolute path.

    Raises:
        ConfigError: the file is of a newer release.
        DatabaseCorrupt: it is damaged.
        DatabaseUnavailable: it cannot be read now, or is not there.
    """

    def __init__(self, path: str) -> None:
        self._inode = files.identity(path)
        self.connection: sqlite3.Connection | None = None
        try:
            self._open_as(path, "mode=ro")
        except DatabaseUnavailable as error:
            # Beside a writer the file alone may be half written, and a log has entries that it lacks.
            if "locked" in str(error) or _is_filled(path + "-wal") or _is_filled(path + "-journal"):
                raise
            self._open_as(path, "mode=ro&immutable=1")

    def _open_as(self, path: str, how: str) -> None:
        with _judging(self._inode):
            connection = sqlite3.connect(
                f"file:{quote(path)}?{how}",
                uri=True,
                timeout=LOCK_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                connection.execute("PRAGMA trusted_schema = OFF")
                connection.execute("PRAGMA mmap_size = 0")
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                if version > VERSION:
                    raise ConfigError(f"ledger: {newer_schema(path, version, VERSION)}")
                columns = [name for (name,) in connection.execute(_COLUMN_NAMES)]
                if not columns:
                    raise DatabaseUnavailable("the file holds no ledger yet")
                if "budget_nano" not in columns:  # of an older release, and it cannot be brought forward now
                    connection.execute("PRAGMA temp_store = MEMORY")
                    connection.execute(_OLDER)
            except BaseException:
                connection.close()
                raise
        self.connection = connection

    def spent(self, where: Mapping[str, Any]) -> int:
        if self.connection is None:
            raise DatabaseUnavailable("the connection is closed")
        return _spent(self.connection, where, self._inode)

    def close(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()


_COLUMN_NAMES = "SELECT name FROM pragma_table_info('attempts')"
_OLDER = "CREATE TEMP VIEW attempts AS SELECT *, NULL AS budget_nano FROM main.attempts"


def _is_filled(path: str) -> bool:
    try:
        return os.stat(path).st_size > 0
    except OSError:
        return False


class SQLiteConnection:
    """One connection to the ledger's file; see `fastroute.ledger.database.LedgerConnection`.

    Args:
        path: the file's absolute path; created with mode 0600.
        lock_path: a file whose `flock` is held shared for commits, and exclusively for checkpoints, schema
            changes and setting the ledger's file aside.
        durability: ``power`` waits for the disk at every commit.
        wal: whether to keep a write-ahead log, otherwise a rollback journal.

    Raises:
        ConfigError: the file is not a ledger, or of a newer release.
        DatabaseCorrupt: it is damaged.
        DatabaseUnavailable, OSError: it is unavailable now.
    """

    def __init__(self, path: str, lock_path: str, durability: Durability, *, wal: bool = True) -> None:
        self.path = path
        self._alone = wal and one_checkpointer_needed(sqlite3.sqlite_version_info)
        self._inode: tuple[int, int] | None = None
        self._lock_fd = files.open_file(lock_path, os.O_RDWR | os.O_CREAT, private=False)
        self.connection: sqlite3.Connection | None = None
        try:
            with self._judging(), self._locked():
                # An existing file is not opened: closing it would drop the POSIX locks of every other
                # connection that this process has on it.
                with suppress(FileExistsError):
                    files.create(path)
                files.check(path, private=False)
                self._inode = files.identity(path)
                self.connection = self._connect(durability, wal)
                self._migrate()
        except BaseException:
            self._abandon()
            raise

    def _connect(self, durability: Durability, wal: bool) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            connection.text_factory = _replaced
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA mmap_size = 0")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(f"PRAGMA journal_mode = {'WAL' if wal else 'TRUNCATE'}")
            connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'power' else 'NORMAL'}")
            connection.execute(f"PRAGMA journal_size_limit = {_JOURNAL_SIZE_LIMIT}")
            if self._alone:
                log_single_checkpointer()
                connection.execute("PRAGMA wal_autocheckpoint = 0")
        except BaseException:
            connection.close()
            raise
        return connection

    def _judging(self) -> AbstractContextManager[None]:
        return _judging(self._inode)

    def _migrate(self) -> None:
        """Updates the schema to this version in one transaction."""
        connection = self._open
        version = self._version()
        if version == VERSION:
            return
        if version > VERSION:
            raise ConfigError(f"ledger: {newer_schema(self.path, version, VERSION)}")
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if version < 0 or (version == 0 and "attempts_time" in tables):
            raise DatabaseCorrupt("the version of its schema is damaged", self._inode)
        if version == 0 and tables:
            raise ConfigError(f"ledger: {self.path} is another program's database; use another file")
        with self._transaction():
            for statements in MIGRATIONS[version:]:
                for statement in statements:
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {VERSION}")

    def _version(self) -> int:
        (version,) = self._open.execute("PRAGMA user_version").fetchone()
        # A number that no release will have would refuse every start, as if a newer one had written the file.
        return int(version) if version < _IMPOSSIBLE_VERSION else -1

    @property
    def _open(self) -> sqlite3.Connection:
        if self.connection is None:
            raise sqlite3.ProgrammingError("the ledger's connection is closed")
        return self.connection

    # ------------------------------------------------------------------------------------------- writing

    def insert(self, rows: Sequence[Sequence[Any]]) -> None:
        # SQLite blocks in C code: for the disk, and for commits of other processes.
        greenlets.apart(self._insert, rows)

    def _insert(self, rows: Sequence[Sequence[Any]]) -> None:
        prepared = [_prepared(row) for row in rows]
        done = 0
        with self._judging(), self._locked(shared=True), self._transaction():
            # A process of a newer release may have changed the tables since this one connected.
            if self._version() != VERSION:
                raise DatabaseUnavailable(newer_schema(self.path, self._version(), VERSION))
            try:
                for size, statement in _INSERTS:
                    while len(prepared) - done >= size:
                        values = [value for row in prepared[done : done + size] for value in row]
                        self._open.execute(statement, values)
                        done += size
            except _REFUSALS as error:
                raise RowsRejected(str(error)) from error
        if self._alone:
            self._checkpoint()

    def index_tag(self, name: str) -> None:
        """Makes an index of the tag's values, unless it is there."""
        if is_plain(name):
            number = crc32(name.encode())
            statement = " ".join(
                (
                    f"CREATE INDEX IF NOT EXISTS attempts_tag_{number:08x} ON attempts (",
                    _of_tag(name),
                    ", time)",
                )
            )
            with self._judging(), self._locked(), self._transaction():
                self._open.execute(statement)

    def insert_what_fits(self, rows: Sequence[Sequence[Any]]) -> int:
        """Commits the rows that the database accepts; returns how many."""
        try:
            self.insert(rows)
            return len(rows)
        except RowsRejected:
            if len(rows) == 1:
                return 0
        return sum(self.insert_what_fits([row]) for row in rows)

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
            due = os.stat(self.path + "-wal").st_size >= CHECKPOINT_BYTES
        except FileNotFoundError:
            return
        if due:
            with suppress(DatabaseUnavailable), self._judging(), self._locked(timeout=0.0):
                self._open.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    @contextmanager
    def _locked(self, *, shared: bool = False, timeout: float | None = None) -> Iterator[None]:
        if not files.lock(self._lock_fd, shared=shared, timeout=LOCK_SECONDS if timeout is None else timeout):
            raise DatabaseUnavailable("another process holds the ledger's lock")
        try:
            yield
        finally:
            files.unlock(self._lock_fd)

    # -------------------------------------------------------------------------------------------- state

    @property
    def replaced(self) -> bool:
        return files.identity(self.path) != self._inode

    def check(self, *, rows: bool = False) -> None:
        with self._judging():
            (verdict,) = self._open.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise DatabaseCorrupt(verdict, self._inode)
        if rows:
            with self._judging():
                (count,) = self._open.execute(_IMPOSSIBLE).fetchone()
            if count:
                raise DatabaseCorrupt(f"{count} entries have impossible values", self._inode)

    def close(self) -> None:
        """Closes the connection; the last one on the file checkpoints it."""
        if self.connection is None:
            return
        try:
            with suppress(DatabaseUnavailable), self._locked(timeout=1.0 if self._alone else 0.0):
                self.connection.close()
        finally:
            self._abandon()

    def _abandon(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        if self._lock_fd >= 0:
            files.close(self._lock_fd)
            self._lock_fd = -1

    # ------------------------------------------------------------------------------------------- reading

    def sums(self, keys: Sequence[str], where: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        chosen = grouped(keys, where)
        found = []
        with _reading(self._inode):
            for row in self._open.execute(_SUMS, chosen).fetchall():
                *row, mean, latencies, score = row
                *counts, high, low, unknown, estimated, high_e, low_e, high_b, low_b = row
                sums = (_whole(high, low), unknown, estimated, _whole(high_e, low_e), _whole(high_b, low_b))
                counted = map(int, counts[MOST_KEYS:])
                found.append((*row[: len(keys)], *counted, *sums, mean, *_percentiles(latencies), score))
        return found

    def spent(self, where: Mapping[str, Any]) -> int:
        return _spent(self._open, where, self._inode)

    def usages(self, where: Mapping[str, Any]) -> tuple[list[tuple[int, ...]], list[tuple[int, int]]]:
        with _reading(self._inode):
            unpriced = [(int(day), count) for day, count in self._open.execute(_UNPRICED, where)]
            rows = self._open.execute(_USAGES, where).fetchall()
            return [(*map(int, row[:-2]), _whole(*row[-2:])) for row in rows], unpriced

    def entries(self, where: Mapping[str, Any], limit: int | None) -> list[Attempt]:
        with _reading(self._inode):
            rows = self._open.execute(_ENTRIES, {**where, "limit": -1 if limit is None else limit})
            return [as_attempt(row) for row in rows]


def _remove_directory(directory: str) -> None:
    with suppress(OSError):
        os.unlink(os.path.join(directory, "lock"))
        os.rmdir(directory)


def _percentiles(microseconds: str | None) -> tuple[float | None, float | None]:
    """The 50th and 95th percentile, in seconds; None without values."""
    if not microseconds:
        return None, None
    values = sorted(json_codec.loads(f"[{microseconds}]"))  # `percentile` sorts sorted values quickly
    return percentile(values, 50) / 1e6, percentile(values, 95) / 1e6


def _prepared(row: Sequence[Any]) -> tuple[Any, ...]:
    tags = row[_TAGS]
    packed = json_codec.dumps(tags).decode() if tags else None
    return (*row[:_TAGS], packed, *row[_TAGS + 1 :], int(row[_TIME] // DAY_SECONDS))


@cache
def log_single_checkpointer() -> None:
    """Logs, once in a process, that one process at a time makes checkpoints."""
    # Not a warning: the user need not do anything.
    log.info(
        "SQLite %s can damage a database that several processes checkpoint at once (fixed in 3.51.3): "
        "the ledger lets one process at a time do it",
        sqlite3.sqlite_version,
    )
