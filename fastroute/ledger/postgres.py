"""The ledger in a PostgreSQL database: address, schema, connections, inserts and sums.

psycopg is imported only when a ledger has such an address. The tables are `fastroute_attempts` and
`fastroute_ledger`, in the first schema of the role's search path.

An entry is safe in this machine's journal before it is sent to the server, so a server that is slow,
unavailable or restarted only delays it. If the server dies after a commit and before it confirms it, the
entry is sent again, which is idempotent.

All SQL is constant text with bound values. Sums of money are `numeric`, so they are exact.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any
from zlib import crc32

from fastroute import json_codec
from fastroute.errors import ConfigError
from fastroute.platform import forks, mounts
from fastroute.platform.state_folder import state_folder
from fastroute.types import Attempt

from . import damage_mark
from .database import (
    DAY_SECONDS,
    FILTERS,
    GROUPS,
    MOST_KEYS,
    USAGE,
    DatabaseCorrupt,
    DatabaseUnavailable,
    RowsRejected,
    as_attempt,
    grouped,
    is_plain,
    newer_schema,
    only_tag,
)
from .journal import FIELDS, MAX_COST

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger("fastroute")

CONNECT_SECONDS = 5
LOCK_SECONDS = 5.0
WRITE_SECONDS = 10.0
READ_SECONDS = 60.0

_MIGRATION_LOCK = 0x666173746C656467  # must be the same in every release
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE fastroute_ledger (version integer NOT NULL)",
        """
        CREATE TABLE fastroute_attempts (
            seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            id text NOT NULL UNIQUE,
            call_id text NOT NULL,
            time double precision NOT NULL,
            day bigint NOT NULL,
            endpoint text NOT NULL,
            provider text NOT NULL,
            model text NOT NULL,
            tier text,
            level text,
            outcome text NOT NULL,
            status_code bigint,
            error text,
            prompt_tokens bigint NOT NULL,
            completion_tokens bigint NOT NULL,
            cached_tokens bigint NOT NULL,
            reasoning_tokens bigint NOT NULL,
            usage_source text NOT NULL,
            cost_nano bigint,
            latency double precision NOT NULL,
            ttft double precision,
            stream smallint NOT NULL,
            maybe_billed smallint NOT NULL,
            request_id text,
            tags jsonb
        )
        """,
        "CREATE INDEX fastroute_attempts_time ON fastroute_attempts (time)",
        "INSERT INTO fastroute_ledger (version) VALUES (0)",
    ),
    (
        """
        ALTER TABLE fastroute_attempts
            ADD COLUMN cache_write_tokens bigint NOT NULL DEFAULT 0,
            ADD COLUMN cache_write_1h_tokens bigint NOT NULL DEFAULT 0
        """,
    ),
    ("ALTER TABLE fastroute_attempts ADD COLUMN service_tier text",),
    ("ALTER TABLE fastroute_attempts ADD COLUMN budget_nano bigint",),
    ("ALTER TABLE fastroute_attempts ADD COLUMN score double precision",),
)
VERSION = len(MIGRATIONS)

_COLUMNS = (*FIELDS, "day")
_TIME = FIELDS.index("time")
_FLOATS = frozenset({"time", "latency", "ttft", "score"})
_INTEGERS = frozenset(
    {
        *("day", "status_code", "cost_nano", "budget_nano", "stream", "maybe_billed"),
        *("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"),
        *("cache_write_tokens", "cache_write_1h_tokens"),
    }
)


def _array(column: str) -> str:
    if column == "tags":
        return "%s::text[]::jsonb[]"
    return "%s::float8[]" if column in _FLOATS else "%s::bigint[]" if column in _INTEGERS else "%s::text[]"


# One array for each column, so that the statement is the same for any number of rows.
_INSERT = " ".join(
    (
        "INSERT INTO fastroute_attempts (",
        ", ".join(_COLUMNS),
        ") SELECT * FROM unnest(",
        ", ".join(map(_array, _COLUMNS)),
        ") ON CONFLICT (id) DO NOTHING",
    )
)
_VERSION = "SELECT version FROM fastroute_ledger"
_SET_VERSION = "UPDATE fastroute_ledger SET version = %s"
_BEGIN_SESSION = """
    SELECT set_config('statement_timeout', %(statement)s, false),
           set_config('lock_timeout', %(lock)s, false),
           set_config('idle_in_transaction_session_timeout', %(statement)s, false),
           set_config('synchronous_commit',
                      CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'
                      ELSE current_setting('synchronous_commit') END, false)
"""
# Not `to_regclass`: it uses a cache, which may not contain yet what another process has created while this
# one waited for the migration lock.
_LOOK = """
    SELECT current_setting('server_encoding'),
           count(*) FILTER (WHERE relname = 'fastroute_ledger') > 0,
           count(*) FILTER (WHERE relname = 'fastroute_attempts') > 0
    FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = current_schema() AND relname IN ('fastroute_ledger', 'fastroute_attempts')
"""

_MATCHING = """
    FROM fastroute_attempts
    WHERE time >= %(since)s::float8 AND time < %(until)s::float8
      AND (%(model)s::text IS NULL OR model = %(model)s::text)
      AND (%(tier)s::text IS NULL OR tier = %(tier)s::text)
      AND (%(endpoint)s::text IS NULL OR endpoint = %(endpoint)s::text)
      AND (%(provider)s::text IS NULL OR provider = %(provider)s::text)
      AND (%(outcome)s::text IS NULL OR outcome = %(outcome)s::text)
      AND NOT EXISTS (
            SELECT 1 FROM jsonb_each_text(%(tags)s::text::jsonb) AS wanted
            WHERE coalesce(tags ->> wanted.key, '') <> wanted.value)
"""
assert all(f"%({name})s" in _MATCHING for name in FILTERS)


def _group_column(n: int) -> str:
    columns = " ".join(f"WHEN '{name}' THEN {name}::text" for name in GROUPS)
    return f"CASE %(key{n})s::text {columns} WHEN 'tag' THEN tags ->> %(tag{n})s::text END AS k{n}"


# The nearest rank, as in `figures.percentile`, over latencies in whole microseconds, as in a file.
_MICROSECONDS = "floor(least(greatest(latency, 0), 9e12) * 1e6 + 0.5)::bigint"
_LATENCIES = f"array_agg({_MICROSECONDS} ORDER BY latency) FILTER (WHERE outcome = 'ok')"
_SUMS = " ".join(
    (
        "SELECT",
        ", ".join(_group_column(n) for n in range(MOST_KEYS)),
        """,
        count(DISTINCT call_id), count(*), count(*) FILTER (WHERE outcome NOT IN ('ok', 'hedge_lost')),
        sum(prompt_tokens), sum(completion_tokens), sum(cached_tokens), sum(reasoning_tokens),
        sum(cache_write_tokens),
        coalesce(sum(cost_nano), 0), count(*) FILTER (WHERE cost_nano IS NULL),
        count(*) FILTER (WHERE usage_source = 'estimated'),
        coalesce(sum(cost_nano) FILTER (WHERE usage_source = 'estimated'), 0),
        coalesce(sum(coalesce(budget_nano, cost_nano)), 0),
        avg(latency) FILTER (WHERE outcome = 'ok'),
        """,
        ", ".join(
            f"({_LATENCIES})[(count(*) FILTER (WHERE outcome = 'ok') * {percent} + 99) / 100]"
            for percent in (50, 95)
        ),
        ", avg(score)",
        _MATCHING,
        "GROUP BY k0, k1, k2, k3",
    )
)
_SPENT = " ".join(
    (
        "SELECT coalesce(sum(coalesce(budget_nano, cost_nano)), 0),",
        # NaN and infinity are sorted after all numbers, so the index finds them at once.
        "EXISTS (SELECT 1 FROM fastroute_attempts WHERE time >= 1e300)",
        f"OR count(*) FILTER (WHERE abs(coalesce(budget_nano, cost_nano)::numeric) > {MAX_COST}) > 0",
        _MATCHING,
        "AND NOT (id = ANY (ARRAY(SELECT jsonb_array_elements_text(%(without)s::text::jsonb))))",
    )
)


@cache
def _of_tag(name: str) -> str:
    # The expression of the index must be the same.
    return f"coalesce(tags ->> '{name}', '')"


@cache
def _spent_by(name: str) -> str:
    """`_SPENT` for one value of a tag, with which an index can be used."""
    head, _, tail = _SPENT.partition(_MATCHING)
    return " ".join(
        (
            head,
            "FROM fastroute_attempts WHERE",
            _of_tag(name),
            "= %(value)s::text AND time >= %(since)s::float8 AND time < %(until)s::float8",
            tail,
        )
    )


_USAGES = " ".join(
    (
        "SELECT day,",
        ", ".join(USAGE),
        ", count(*), coalesce(sum(cost_nano), 0)",
        _MATCHING,
        "AND outcome = 'ok' AND cost_nano IS NOT NULL GROUP BY 1, 2, 3, 4, 5, 6",
    )
)
_UNPRICED = " ".join(
    ("SELECT day, count(*)", _MATCHING, "AND outcome = 'ok' AND cost_nano IS NULL GROUP BY day")
)
_ENTRIES = " ".join(
    (
        "SELECT",
        ", ".join("tags::text" if name == "tags" else name for name in FIELDS),
        _MATCHING,
        "ORDER BY time DESC, seq DESC LIMIT %(limit)s::bigint",
    )
)


class PostgresStorage:
    """A ledger in a PostgreSQL database.

    Attributes:
        name: user, host, port and database of the address.
        journal: the local directory of the journal.

    Args:
        url: ``postgresql://USER@HOST:PORT/DATABASE?PARAMETER=…``, as libpq reads it. Missing parts come from
            libpq's environment variables: ``PGPASSWORD``, ``PGPASSFILE``, ``PGSSLMODE`` and so on.
        journal: see `Ledger`.

    Raises:
        ConfigError: psycopg is missing, the address cannot be read, or the journal's directory is on a
            network file system.
    """

    def __init__(self, url: str, journal: str | os.PathLike[str] | None) -> None:
        try:
            import psycopg
            from psycopg.conninfo import conninfo_to_dict
        except ImportError as error:
            raise ConfigError(
                f"ledger: a PostgreSQL ledger needs psycopg ({error}); run pip install 'fastroute[postgres]'"
            ) from None
        try:
            given = conninfo_to_dict(url)
        except psycopg.Error:
            # libpq's message contains the address, which may contain a password.
            raise ConfigError(
                "ledger: the address is not valid; use the form postgresql://user@db.example.com:5432/name"
            ) from None
        self._secret = str(given.get("password") or "")
        user, host, port, database = (str(given.get(key) or "") for key in ("user", "host", "port", "dbname"))
        self.name = f"postgresql://{user}{'@' if user else ''}{host}{':' if port else ''}{port}/{database}"
        self._parameters: dict[str, Any] = {
            "connect_timeout": CONNECT_SECONDS,
            "tcp_user_timeout": int(WRITE_SECONDS * 1000),
            "keepalives_idle": 30,
            "application_name": "fastroute",
            **given,
            "client_encoding": "UTF8",
        }
        if journal is None:
            journal = _journal_of({key: value for key, value in given.items() if key != "password"})
        self.journal = os.path.abspath(os.fspath(journal))
        self._mark = os.path.join(self.journal, "damaged")
        kind = mounts.kind_of(self.journal)
        if mounts.is_network(kind):
            raise ConfigError(
                f"ledger: the journal {self.journal} would be on a network file system ({kind}); "
                "set ledger_journal to a directory on a local disk"
            )

    def prepare(self) -> str | None:
        try:
            os.makedirs(self.journal, mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"ledger: the journal {self.journal} cannot be created: {error.strerror}; "
                "set ledger_journal to a writable directory"
            ) from None
        try:
            self.connect().close()
        except DatabaseUnavailable as error:
            return str(error)
        return None

    def connect(self) -> PostgresConnection:
        import psycopg

        # No fork in between: the child could not take itself out of a connection that is not registered.
        with self.judging(), forks.blocked():
            connection = psycopg.connect(autocommit=True, prepare_threshold=None, **self._parameters)
            session = PostgresConnection(self, connection)
        try:
            session.begin()
        except BaseException:
            session.close()
            raise
        return session

    def read(self) -> PostgresConnection:
        return self.connect()

    def set_aside(self, damage: DatabaseCorrupt) -> str | None:
        """Does nothing: the server handles damage."""
        return None

    def leave_mark(self, where: str) -> str:
        damage_mark.leave_mark(self._mark, time.time(), where)
        return self._mark

    def unsure_until(self) -> tuple[float, str] | None:
        # Of this machine's journal only: the server takes care of its own files.
        until = damage_mark.read_mark(self._mark)
        return None if until is None else (until, self._mark)

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Translates psycopg's errors into those of `.database`, without values or secrets."""
        import psycopg

        try:
            yield
        except (psycopg.IntegrityError, psycopg.DataError) as error:
            raise RowsRejected(self._reason(error)) from None
        except psycopg.Error as error:
            raise DatabaseUnavailable(self._reason(error)) from None

    def _reason(self, error: psycopg.Error) -> str:
        # Only the primary message: the detail may contain the row.
        text = error.diag.message_primary or " ".join(str(error).split()) or type(error).__name__
        return text.replace(self._secret, "***") if self._secret else text


class PostgresConnection:
    """One connection to the server; see `fastroute.ledger.database.LedgerConnection`."""

    def __init__(self, storage: PostgresStorage, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self._storage = storage
        self.connection = connection
        self._cutting = threading.Lock()
        _sessions.add(self)

    def begin(self) -> None:
        """Sets up the session and updates the schema.

        Raises:
            ConfigError: the database is not a ledger, cannot become one, or is of a newer release.
            DatabaseUnavailable: the server is unavailable now.
        """
        milliseconds = {"statement": f"{READ_SECONDS * 1000:.0f}", "lock": f"{LOCK_SECONDS * 1000:.0f}"}
        with self._bounded(WRITE_SECONDS):
            self.connection.execute(_BEGIN_SESSION, milliseconds)
            encoding, is_ledger, has_attempts = self._one(_LOOK)
            if encoding != "UTF8":
                raise ConfigError(
                    f"ledger: {self._storage.name} is encoded in {encoding}; use a database created with UTF8"
                )
            if has_attempts and not is_ledger:
                raise ConfigError(
                    f"ledger: {self._storage.name} has a table fastroute_attempts of another program; "
                    "use another database, or another schema in the role's search_path"
                )
            version = self._one(_VERSION)[0] if is_ledger else 0
        if version < VERSION:
            self._migrate()
        elif version > VERSION:
            raise ConfigError(f"ledger: {newer_schema(self._storage.name, version, VERSION)}")

    def _migrate(self) -> None:
        """Updates the schema to this version in one transaction, in one process at a time."""
        import psycopg

        with self._bounded(READ_SECONDS):
            try:
                with self.connection.transaction():
                    self.connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
                    _, is_ledger, _ = self._one(_LOOK)
                    version = self._one(_VERSION)[0] if is_ledger else 0
                    for statements in MIGRATIONS[version:]:
                        for statement in statements:
                            self.connection.execute(statement)
                    if version < VERSION:
                        self.connection.execute(_SET_VERSION, (VERSION,))
            except psycopg.ProgrammingError as error:
                raise ConfigError(
                    f"ledger: {self._storage.name} cannot hold a ledger: {error.diag.message_primary}"
                ) from None

    def insert(self, rows: Sequence[Sequence[Any]]) -> None:
        if not rows:
            return
        try:
            columns = [_column(name, values) for name, values in zip(_COLUMNS, zip(*map(_prepared, rows)))]
        except (TypeError, ValueError) as error:
            raise RowsRejected(str(error)) from None
        with self._bounded(WRITE_SECONDS), self.connection.transaction():
            # A process of a newer release may have changed the tables since this one connected.
            version = self._one(_VERSION)[0]
            if version != VERSION:
                raise DatabaseUnavailable(newer_schema(self._storage.name, version, VERSION))
            self.connection.execute(_INSERT, columns)

    @property
    def replaced(self) -> bool:
        return False

    def check(self, *, rows: bool = False) -> None:
        """Does nothing: the server checks its own files."""

    def close(self) -> None:
        with self._cutting:
            self.connection.close()

    def point_at(self, descriptor: int) -> None:
        """Replaces the connection's socket by another file, in this process only."""
        import psycopg

        with suppress(psycopg.Error, OSError):
            os.dup2(descriptor, self.connection.fileno(), inheritable=False)

    # ------------------------------------------------------------------------------------------- reading

    def sums(self, keys: Sequence[str], where: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        chosen = grouped(keys, where)
        found = []
        for row in self._all(_SUMS, chosen):
            groups = [
                int(value) if key == "day" and value is not None else value for key, value in zip(keys, row)
            ]
            *counts, mean, median, high, score = row[MOST_KEYS:]
            percentiles = (None if value is None else value / 1e6 for value in (median, high))
            found.append((*groups, *map(int, counts), mean, *percentiles, score))
        # Not in the server, whose order of text depends on its locale.
        found.sort(key=lambda row: [(value is not None, value) for value in row[: len(keys)]])
        return found

    def index_tag(self, name: str) -> None:
        """Makes an index of the tag's values, unless it is there."""
        if is_plain(name):
            index = f"fastroute_attempts_tag_{crc32(name.encode()):08x}"
            on = "ON fastroute_attempts ((", _of_tag(name), "), time)"
            with self._bounded(WRITE_SECONDS):
                self.connection.execute(" ".join(("CREATE INDEX IF NOT EXISTS", index, *on)))

    def spent(self, where: Mapping[str, Any]) -> int:
        tag = only_tag(where)
        query = _SPENT if tag is None else _spent_by(tag[0])
        bound = where if tag is None else {**where, "value": tag[1]}
        spent, impossible = self._all(query, bound)[0]
        if impossible:
            raise DatabaseUnavailable(
                "entries of fastroute_attempts have impossible costs or times; correct or delete them"
            )
        return int(spent)

    def usages(self, where: Mapping[str, Any]) -> tuple[list[tuple[int, ...]], list[tuple[int, int]]]:
        unpriced = [(int(day), int(count)) for day, count in self._all(_UNPRICED, where)]
        return [tuple(map(int, row)) for row in self._all(_USAGES, where)], unpriced

    def entries(self, where: Mapping[str, Any], limit: int | None) -> list[Attempt]:
        rows = self._all(_ENTRIES, {**where, "limit": limit})
        try:
            return [as_attempt(row) for row in rows]
        except (ValueError, TypeError) as error:
            raise DatabaseUnavailable(f"an entry has impossible values ({error})") from None

    def _all(self, statement: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        with self._bounded(READ_SECONDS):
            return self.connection.execute(statement, values).fetchall()

    def _one(self, statement: str) -> tuple[Any, ...]:
        row = self.connection.execute(statement).fetchone()
        if row is None:
            raise DatabaseUnavailable("the ledger's version is missing")
        return row

    # --------------------------------------------------------------------------------------------- bounds

    @contextmanager
    def _bounded(self, seconds: float) -> Iterator[None]:
        """Shuts the connection if the block takes longer.

        The server's own timeouts work only if the server does; a client of a stopped one would wait forever.
        """
        timer = threading.Timer(seconds, self._cut)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:  # no thread can start while the interpreter shuts down
            timer.finished.set()
        try:
            with self._storage.judging():
                yield
        finally:
            timer.cancel()
            if timer.ident is not None:
                timer.join()

    def _cut(self) -> None:
        with self._cutting:
            if self.connection.closed:
                return
            log.error("ledger %s: no response in time; the connection is closed", self._storage.name)
            with suppress(OSError), socket.socket(fileno=os.dup(self.connection.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)


def _prepared(row: Sequence[Any]) -> tuple[Any, ...]:
    return (*row, row[_TIME] // DAY_SECONDS)


def _column(name: str, values: Sequence[Any]) -> list[Any]:
    """A column's values, converted to one type; TypeError or ValueError if that is impossible."""
    if name == "tags":
        return [json_codec.dumps(value).decode() if value else None for value in values]
    kind = float if name in _FLOATS else int if name in _INTEGERS else str
    return [None if value is None else kind(value) for value in values]


def _journal_of(parameters: Mapping[str, Any]) -> str:
    """The default directory of the journal for a database, the same for every process of a user."""
    folder = state_folder()
    if folder is None:
        raise ConfigError("fastroute.ledger_journal: this user has no home directory; name a local directory")
    digest = hashlib.sha256(json_codec.dumps(sorted((key, str(value)) for key, value in parameters.items())))
    return os.path.join(folder, f"ledger-{digest.hexdigest()[:16]}.journal")


# ------------------------------------------------------------------------------------------------- forks

_sessions: weakref.WeakSet[PostgresConnection] = weakref.WeakSet()


def _leave_to_parent() -> None:
    """In a forked child: closes the child's copies of the parent's sockets, but not the connections.

    While any process has a socket open, the server keeps the session and its locks, even if the parent was
    killed in a transaction. Closing the connection would end the session, which is the parent's.
    """
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for session in tuple(_sessions):
        session.point_at(nothing)
    os.close(nothing)


forks.in_child(_leave_to_parent)
