"""The ledger: one line for every request sent, kept whatever happens, and its exact sums.

Owns when an entry is safe, and what happens to a ledger on fork and exit. The journal's files are
`journal.py`, the thread that empties them `writer.py`, the SQL `sqlite.py` and `postgres.py`, what those two
have in common `database.py`, reports `report.py`.

The way of an entry::

    append     encode, write to this process's journal (safe from here), queue      the caller's thread
    drain      one transaction for many entries, every 50 ms                        the ledger's thread
    settle     a journal segment whose entries are all committed is removed         the ledger's thread

A segment left by a process that was killed is drained by any other that reads or writes the ledger; ids
make a second insert of the same entry nothing.
"""

from __future__ import annotations

import atexit
import logging
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, cast

from fastroute import _core
from fastroute.errors import ConfigError, LedgerError
from fastroute.events import Hooks
from fastroute.platform import forks
from fastroute.types import Attempt, Usage

from . import journal as journals
from .database import DatabaseCorrupt, DatabaseUnavailable, RowsRejected
from .values import LedgerHealth, Prices, Saving, Totals
from .writer import Writer

if TYPE_CHECKING:
    from fastroute.config import Config

    from .database import Durability, LedgerConnection, LedgerStorage

log = logging.getLogger("fastroute")

FLUSH_SECONDS = 5.0
FLUSH_SECONDS_IN_TROUBLE = 1.0


class Ledger:
    """The record of attempts, in one SQLite file or one PostgreSQL database.

    Thread safety: every method may be called from any thread, and from any process forked from this one;
    any number of processes may use the same ledger. `append` takes no lock.

    Attributes:
        path: the file, or the database's address without its secrets.
        durability: as given.

    Args:
        path: the file, or an address ``postgresql://USER@HOST/DATABASE``. Beside the file appear SQLite's own
            ``-wal`` and ``-shm`` files and a directory ``PATH.journal``; its directory must exist.
        hooks: hear `LedgerDegraded`.
        durability: ``process``: an entry survives the process, however it ends; a power cut may take the
            last ones. ``power``: `append` also waits for the disk, milliseconds each.
        journal: for PostgreSQL, the local directory in which entries are safe until the server has them; None
            is one below ``~/.local/state/fastroute`` (or ``$XDG_STATE_HOME``).
        wal: for SQLite, whether it keeps a write-ahead log; None decides by the file system.

    Raises:
        ConfigError: the path cannot be a ledger, its schema is newer than this release, or psycopg is
            missing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        hooks: Hooks | None = None,
        durability: Durability = "process",
        journal: str | os.PathLike[str] | None = None,
        wal: bool | None = None,
    ) -> None:
        if durability not in ("process", "power"):
            raise ConfigError(f"ledger: durability is {durability!r}; it must be 'process' or 'power'")
        self.storage = _storage(path, durability, journal, wal)
        self.path = self.storage.name
        self.durability: Durability = durability
        self._hooks = hooks
        self._closed = False
        self._begin()
        self._prepare()
        _ledgers.add(self)

    def _begin(self) -> None:
        """Makes all that belongs to one process; none of it may cross a fork."""
        self.journal = journals.Journal(self.storage.journal, sync=self.durability == "power")
        self.writer = Writer(self.storage, self.journal, self._hooks)

    def _prepare(self) -> None:
        """Finds out at once whether the place can be a ledger; being busy is no reason to fail."""
        try:
            reason = self.storage.prepare()
        except DatabaseCorrupt as damage:
            self.writer.set_aside(damage)
            return
        if reason is not None:
            self.writer.trouble("database", f"the database cannot be opened: {reason}")
        unsure = self.storage.unsure_until()
        if unsure is not None:
            log.warning(
                "ledger %s: it was damaged, and entries from before that may be missing: see %s",
                self.path,
                unsure[1],
            )

    def _own(self) -> Writer:
        """The writer of this process; after a fork that ran no hooks, made now."""
        if _core.fork_count() != forks.handled:
            forks.ensure()
        return self.writer

    def _restart(self) -> None:
        database = self.writer.held_database
        if database is not None:
            # Closed or collected here, it would drop the locks that the parent has on the file.
            inherited_connections.append(database)
        self._begin()

    # ------------------------------------------------------------------------------------------- writing

    def append(self, attempt: Attempt) -> None:
        """Records one attempt; it is safe from the end of this process when this returns.

        Never raises and never waits for the database: while that cannot be written, entries stay in the
        journal and `health` says so. After `close`, an entry waits in the journal for the next to open it.
        """
        writer = self._own()
        record = journals.encode(attempt)
        segment: journals.JournalSegment | None = None
        try:
            if self._closed:
                self.journal.write_alone(record)
                return
            segment = self.journal.write(record)
        except OSError as error:
            if self._closed:
                writer.lose(error)
                return
            writer.journal_failed(error)
        writer.put(segment, record)

    def flush(self, timeout: float = 5.0) -> None:
        """Returns once all entries that this process has appended are in the database.

        Args:
            timeout: seconds.

        Raises:
            LedgerError: they are not in the database in that time; they stay in the journal.
        """
        writer = self._own()
        if not self._closed:
            writer.flush(timeout)

    def close(self) -> None:
        """Brings the database up to date and lets go of thread and files; closing twice is nothing.

        If the database cannot be written, the entries stay in the journal for the next to open it.
        """
        writer = self._own()
        if not self._closed:
            self._closed = True
            writer.stop()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def health(self) -> LedgerHealth:
        """Whether entries reach the database at present."""
        return self._own().health

    # ------------------------------------------------------------------------------------------- reading

    def totals(self, **where: Any) -> Totals:
        """Sums over all entries that match.

        Args:
            **where: as in `by`.
        """
        rows = self.by(**where)
        return rows[0] if rows else Totals()

    def by(
        self,
        *keys: str,
        since: float | datetime | None = None,
        until: float | datetime | None = None,
        tags: Mapping[str, str] | None = None,
        model: str | None = None,
        tier: str | None = None,
        endpoint: str | None = None,
        provider: str | None = None,
        outcome: str | None = None,
    ) -> list[Totals]:
        """Sums of every group of entries, in the order of the groups' values.

        Args:
            *keys: up to four of ``model``, ``tier``, ``level``, ``endpoint``, ``provider``, ``day``,
                ``outcome`` and ``tag:NAME``.
            since, until: seconds since the epoch or aware datetimes; ``until`` itself is not included.
            tags: entries must carry all of these; an empty value stands for entries without that tag.
            model, tier, endpoint, provider, outcome: entries must have this value.

        Raises:
            ValueError: a key that is not one of those, or a datetime without a zone.
            LedgerError: this process's own entries cannot be brought into the database, or it cannot be read.
        """
        from . import database

        database.check_keys(keys)
        where = database.filters(
            _seconds(since),
            _seconds(until),
            tags,
            model=model,
            tier=tier,
            endpoint=endpoint,
            provider=provider,
            outcome=outcome,
        )
        with self._reading() as reader:
            rows = reader.sums(keys, where)
        count = len(keys)
        return [
            Totals(tuple(_shown(key, value) for key, value in zip(keys, row)), *row[count:]) for row in rows
        ]

    def savings(
        self,
        prices: Prices,
        models: Iterable[str],
        *,
        since: float | datetime | None = None,
        until: float | datetime | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> list[Saving]:
        """What the successful entries would have cost with one model only, for each model.

        Args:
            prices: what a model costs; what it raises on an unknown name comes through.
            models: their catalogue names.
            since, until, tags: as in `by`.
        """
        return [
            self._compared(prices, model, since, until, tags).get(None, Saving(model, 0, 0, 0, 0))
            for model in models
        ]

    def daily_savings(
        self,
        prices: Prices,
        model: str,
        *,
        since: float | datetime | None = None,
        until: float | datetime | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> dict[str, Saving]:
        """As `savings`, of one model, for each day (``YYYY-MM-DD``, UTC) that has successful entries."""
        found = self._compared(prices, model, since, until, tags)
        return {day: saving for day, saving in found.items() if day is not None}

    def _compared(
        self,
        prices: Prices,
        model: str,
        since: float | datetime | None,
        until: float | datetime | None,
        tags: Mapping[str, str] | None,
    ) -> dict[str | None, Saving]:
        """The comparison with one model by day, and over all of them under None."""
        from . import database

        price = prices(model)
        where = database.filters(_seconds(since), _seconds(until), tags)
        with self._reading() as reader:
            usages, unpriced = reader.usages(where)
        sums: dict[int | None, list[int]] = {}
        for day, *tokens, count, cost in usages:
            counts: dict[str, Any] = dict(zip(database.USAGE, tokens))
            usage = Usage(**counts)
            for key in (day, None):
                total = sums.setdefault(key, [0, 0, 0, 0])
                total[0] += count
                total[2] += cost
                total[3] += price.cost(usage) * count
        for day, count in unpriced:
            for key in (day, None):
                sums.setdefault(key, [0, 0, 0, 0])[1] += count
        return {_shown("day", key): Saving(model, *total) for key, total in sums.items()}

    def entries(
        self,
        limit: int | None = 100,
        *,
        since: float | datetime | None = None,
        until: float | datetime | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> list[Attempt]:
        """Entries, newest first.

        Args:
            limit: at most so many; None for all.
            since, until, tags: as in `by`.
        """
        from . import database

        if limit is not None and limit < 0:
            raise ValueError(f"limit is {limit}; it must be 0 or more, or None for all")
        where = database.filters(_seconds(since), _seconds(until), tags)
        with self._reading() as reader:
            return reader.entries(where, limit)

    def spent(self, since: float | datetime | None = None, tags: Mapping[str, str] | None = None) -> int:
        """The exact sum of known costs since a time, nano-dollars; arguments as in `by`.

        Raises:
            LedgerError: the ledger cannot be read, or entries since then may be missing because the database
                was damaged: what was spent is then not known, and must not be taken for less than it was.
        """
        from . import database

        start = _seconds(since)
        unsure = self.storage.unsure_until()
        if unsure is not None and (start is None or start < unsure[0]):
            raise LedgerError(
                f"the ledger {self.path} was damaged, and entries may be missing: what was spent cannot be "
                f"told for sure. Delete {unsure[1]} to count on with what is there"
            )
        where = database.filters(start, None, tags)
        with self._reading() as reader:
            return reader.spent(where)

    @contextmanager
    def _reading(self) -> Iterator[LedgerConnection]:
        # A database known to be in trouble has been waited for before, and a call may be waiting for the sum.
        self.flush(FLUSH_SECONDS if self.health.ok else FLUSH_SECONDS_IN_TROUBLE)
        try:
            with closing(self.writer.connect()) as database:
                yield database
        except (DatabaseUnavailable, RowsRejected, DatabaseCorrupt, ConfigError) as error:
            if isinstance(error, DatabaseCorrupt) and not self._closed:
                self.writer.suspect()
            raise LedgerError(f"the ledger {self.path} cannot be read: {error}") from error


def _seconds(when: float | datetime | None) -> float | None:
    if isinstance(when, datetime):
        if when.tzinfo is None:
            raise ValueError(f"{when} has no time zone; use datetime(..., tzinfo=timezone.utc)")
        return when.timestamp()
    return when


def _shown(key: str, value: Any) -> str | None:
    if key == "day" and value is not None:
        return datetime.fromtimestamp(value * 86_400, timezone.utc).strftime("%Y-%m-%d")
    return None if value is None else str(value)


# ------------------------------------------------------------------------------------------- fork and exit

_ledgers: weakref.WeakSet[Ledger] = weakref.WeakSet()
inherited_connections: list[object] = []
"""Connections that belong to a parent process: neither closed nor collected here."""


def _restart_in_child() -> None:
    for ledger in tuple(_ledgers):
        ledger._restart()


forks.in_child(_restart_in_child)


def _at_exit() -> None:
    for ledger in tuple(_ledgers):
        ledger.close()


atexit.register(_at_exit)

# ----------------------------------------------------------------------------------------------- choosing


class NullLedger(Ledger):
    """A ledger that keeps nothing, for those who want none; every sum is zero."""

    def __init__(self) -> None:
        self.path = ""
        self.durability = "process"

    def append(self, attempt: Attempt) -> None:
        """Does nothing."""

    def flush(self, timeout: float = 5.0) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""

    @property
    def health(self) -> LedgerHealth:
        """Always well."""
        return LedgerHealth(True, None, 0, 0, 0)

    def by(self, *keys: str, **where: Any) -> list[Totals]:
        """No groups; the keys are checked all the same."""
        from .database import check_keys

        check_keys(keys)
        return []

    def savings(self, prices: Prices, models: Iterable[str], **where: Any) -> list[Saving]:
        """Nothing spent, nothing saved."""
        return [Saving(model, 0, 0, 0, 0) for model in models]

    def daily_savings(self, prices: Prices, model: str, **where: Any) -> dict[str, Saving]:
        """None."""
        return {}

    def entries(self, limit: int | None = 100, **where: Any) -> list[Attempt]:
        """None."""
        return []

    def spent(self, since: float | datetime | None = None, tags: Mapping[str, str] | None = None) -> int:
        """Zero."""
        return 0


def open_ledger(
    setting: str | os.PathLike[str],
    hooks: Hooks | None = None,
    durability: Durability = "process",
    journal: str | os.PathLike[str] | None = None,
    wal: bool | None = None,
) -> Ledger:
    """The ledger that a configuration's ``ledger`` setting names.

    Args:
        setting: a path, a ``postgresql://`` address, or "" for none.
        hooks, durability, journal, wal: see `Ledger`.

    Raises:
        ConfigError: it names something that cannot be a ledger.
    """
    if not os.fspath(setting):
        return NullLedger()
    return Ledger(setting, hooks=hooks, durability=durability, journal=journal, wal=wal)


def configured_ledger(config: Config, hooks: Hooks | None = None) -> Ledger:
    """The ledger of a configuration; errors as in `open_ledger`."""
    return open_ledger(
        config.ledger,
        hooks,
        cast("Durability", config.ledger_durability),
        config.ledger_journal or None,
        {"on": True, "off": False}.get(config.ledger_wal),
    )


def _storage(
    path: str | os.PathLike[str],
    durability: Durability,
    journal: str | os.PathLike[str] | None,
    wal: bool | None,
) -> LedgerStorage:
    scheme, separator, _ = os.fspath(path).partition("://")
    if separator and scheme in ("postgresql", "postgres"):
        from .postgres import PostgresStorage

        if wal is not None:
            raise ConfigError("ledger: wal says how an SQLite file is kept; PostgreSQL has no use for it")
        return PostgresStorage(os.fspath(path), journal)
    if separator:
        raise ConfigError(
            f'ledger: {scheme}:// is no ledger known here; name a file, postgresql://…, or "" for no ledger'
        )
    from .sqlite import SQLiteStorage

    if journal is not None:
        raise ConfigError("ledger: a journal is named for a PostgreSQL ledger; a file has its own beside it")
    return SQLiteStorage(path, durability, wal)


__all__ = [
    "Ledger",
    "LedgerHealth",
    "NullLedger",
    "Prices",
    "Saving",
    "Totals",
    "configured_ledger",
    "open_ledger",
]
