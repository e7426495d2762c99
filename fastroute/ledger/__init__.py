"""The ledger: a durable record of every request sent, and exact sums over it.

An entry passes through these steps::

    append     encode, write to this process's journal (safe from here), queue      the caller's thread
    drain      commit many entries in one transaction, every 50 ms                  the ledger's thread
    settle     remove a journal segment once all its entries are committed          the ledger's thread

If a process is killed, the next process that reads or writes the ledger drains its journal. Entries have
unique ids, so inserting one again is idempotent.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, cast

from attrs import fields

from fastroute import _core
from fastroute.errors import ConfigError, LedgerError
from fastroute.events import Hooks
from fastroute.platform import forks, interpreters
from fastroute.platform.notices import notice
from fastroute.types import Attempt, Usage

from . import journal as journals
from .database import DatabaseCorrupt, DatabaseUnavailable, RowsRejected
from .results import LedgerHealth, Prices, Saving, Totals
from .tails import JournalTails
from .writer import Writer

if TYPE_CHECKING:
    from fastroute.config import Config

    from .database import Durability, LedgerConnection, LedgerStorage

_SUMS = tuple(field.name for field in fields(Totals) if field.name != "keys")

FLUSH_SECONDS = 5.0
FLUSH_SECONDS_IN_TROUBLE = 1.0
SPENT_SECONDS = 1.0  # a call waits for the sum of what was spent
_ID = journals.FIELDS.index("id")
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896  # since 1970: 1 January of the year 1, 31 December 9999


class Ledger:
    """The record of attempts, in one SQLite file or one PostgreSQL database.

    Thread safety: all methods, from any thread and from any process forked from this one. Any number of
    processes may use the same ledger. `append` takes no lock.

    Attributes:
        path: the file, or the database's address without its secrets; empty: nothing is recorded.
        durability: as given.

    Args:
        path: the file, or an address ``postgresql://USER@HOST/DATABASE``. The file's directory must exist.
            Next to the file SQLite keeps ``-wal`` and ``-shm`` files, and the ledger a directory
            ``PATH.journal``.
        hooks: `LedgerDegraded` is emitted to them.
        durability: ``process``: an entry survives the process, however it ends, but a power cut may lose the
            last ones. ``power``: `append` also waits for the disk, which takes milliseconds.
        journal: for PostgreSQL, the local directory that holds entries until the server has them. Default: a
            directory in ``~/.local/state/fastroute`` (or ``$XDG_STATE_HOME/fastroute``).
        wal: for SQLite, whether to use a write-ahead log. Default: as the file system allows.

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
            raise ConfigError(f"ledger: unknown durability {durability!r}; use 'process' or 'power'")
        self.storage = _storage(path, durability, journal, wal)
        self.path = self.storage.name
        self.durability: Durability = durability
        self._hooks = hooks
        self._closed = False
        self._begin()
        self._prepare()
        _ledgers.add(self)

    def _begin(self) -> None:
        """Makes the parts that belong to one process and that a forked child must not use."""
        self.journal = journals.Journal(self.storage.journal, sync=self.durability == "power")
        self._tails = JournalTails(self.storage.journal)
        self.writer = Writer(self.storage, self.journal, self._hooks)
        # The thread refers to the writer only, so a ledger that nobody closes is collected, and ends it.
        self._dropped = weakref.finalize(self, _end, self.writer)
        self._dropped.atexit = False  # `_at_exit` closes those that are alive, and waits

    def _prepare(self) -> None:
        """Fails at once if the path cannot be a ledger; a database that is only unavailable is logged."""
        try:
            reason = self.storage.prepare()
        except DatabaseCorrupt as damage:
            self.writer.set_aside(damage)
            return
        if reason is not None:
            self.writer.trouble("database", f"the database cannot be opened: {reason}")
        unsure = self.storage.unsure_until()
        if unsure is not None:
            notice(
                f"ledger {self.path}: the database was damaged, and earlier entries may be missing; "
                f"see {unsure[1]}"
            )

    def _own(self) -> Writer:
        """The writer of this process, made anew after a fork that ran no Python hooks."""
        if _core.fork_count() != forks.handled:
            forks.ensure()
        return self.writer

    def _restart(self) -> None:
        database = self.writer.held_database
        if database is not None:
            # To close or collect it here would release the locks that the parent has on the file.
            inherited_connections.append(database)
        self._dropped.detach()
        self._begin()

    # ------------------------------------------------------------------------------------------- writing

    def append(self, attempt: Attempt) -> bool:
        """Records one attempt, which survives the end of this process once this returns.

        Never raises and never waits for the database: while that cannot be written, entries stay in the
        journal, and `health` says so. After `close`, an entry stays in the journal until a ledger is opened
        there again.

        Returns:
            Whether it is where every process finds it; False: only in the memory of this one, or lost.
        """
        writer = self._own()
        record = journals.encode(attempt)
        segment: journals.JournalSegment | None = None
        try:
            if self._closed:
                self.journal.write_alone(record)
                return True
            segment = self.journal.write(record)
        except OSError as error:
            if self._closed:
                writer.lose(error)
                return False
            writer.journal_failed(error)
        writer.put(segment, record)
        return segment is not None

    def flush(self, timeout: float = 5.0) -> None:
        """Waits until all entries that this process has appended are in the database.

        Args:
            timeout: seconds.

        Raises:
            LedgerError: the time is up; the entries stay in the journal.
        """
        writer = self._own()
        if not self._closed:
            writer.flush(timeout)

    def close(self) -> None:
        """Writes all entries to the database, ends the thread and closes the files. Idempotent.

        If the database cannot be written, the entries stay in the journal until a ledger is opened there.
        """
        writer = self._own()
        if not self._closed:
            self._closed = True
            self._dropped.detach()
            writer.stop()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def health(self) -> LedgerHealth:
        """Whether entries reach the database now."""
        return self._own().health

    # ------------------------------------------------------------------------------------------- reading

    def totals(self, **where: Any) -> Totals:
        """Sums over all matching entries.

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
        """Sums of each group of entries, ordered by the groups' values.

        Args:
            *keys: up to four of ``model``, ``tier``, ``level``, ``endpoint``, ``provider``, ``day``,
                ``outcome``, ``service_tier`` and ``tag:NAME``.
            since, until: seconds since the epoch or aware datetimes; ``until`` is exclusive.
            tags: only entries with all of these tags; an empty value selects entries without that tag.
            model, tier, endpoint, provider, outcome: only entries with this value.

        Raises:
            ValueError: an unknown key, or a datetime without a time zone.
            LedgerError: this process's entries cannot be written to the database, or it cannot be read.
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
            Totals(
                keys=tuple(_shown(key, value) for key, value in zip(keys, row)),
                **dict(zip(_SUMS, row[count:])),
            )
            for row in rows
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
        """What the successful entries would have cost with one model only, for each of the models.

        Args:
            prices: a function from a model to its prices; its exceptions are passed on.
            models: catalogue names.
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
        """As `savings`, for one model and each day (``YYYY-MM-DD``, UTC) with successful entries."""
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
        """The comparison with one model for each day, and for all days under None."""
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
            limit: the most to return; None for all.
            since, until, tags: as in `by`.
        """
        from . import database

        if limit is not None and limit < 0:
            raise ValueError(f"limit: must be 0 or more, or None for all, not {limit}")
        where = database.filters(_seconds(since), _seconds(until), tags)
        with self._reading() as reader:
            return reader.entries(where, limit)

    def spent(self, since: float | datetime | None = None, tags: Mapping[str, str] | None = None) -> int:
        """What budgets count since a time, in nano-dollars: an exact sum; arguments as in `by`.

        That is the known costs, and the worst case of attempts under a budget whose usage is unknown.

        Raises:
            LedgerError: the ledger cannot be read, or entries since that time may be missing because the
                database was damaged, so that the sum could be too low. A database that can be read but not
                written is read, with what waits for it in the journals.
        """
        from . import database

        start = _seconds(since)
        self._be_sure(start)
        healthy = self.health.ok
        patience = SPENT_SECONDS if healthy else 0.0
        try:
            if tags and healthy:
                spent = self._spent_by_now(start, tags)
            else:
                with self._reading(patience) as reader:
                    spent = reader.spent(database.filters(start, None, tags))
        except LedgerError as error:
            spent = self.spent_unwritten(start, tags, error)
        # Again: damage may have been found meanwhile, and then the sum is that of a new file, which is empty
        # at first. Its mark is written before the damaged file is renamed.
        self._be_sure(start)
        return spent

    def _be_sure(self, start: float | None) -> None:
        """Raises if entries since that time may be missing."""
        unsure = self.storage.unsure_until()
        if unsure is not None and (start is None or start < unsure[0]):
            raise LedgerError(
                f"the ledger {self.path} was damaged and may lack entries, so what was spent is unknown; "
                f"delete {unsure[1]} to accept the entries that are left"
            )

    def _spent_by_now(self, start: float | None, tags: Mapping[str, str]) -> int:
        """What was spent with these tags, of all processes of this machine to the last entry.

        The counter of a tag's value is given away and begun again while its calls go on in other processes,
        so their entries must count before they are in the database.
        """
        from . import database

        try:
            outside = self._tails.matching(start, tags)
        except OSError as error:
            raise LedgerError(f"the journal of {self.path} cannot be read: {error.strerror}") from error
        # In this order: an entry that moves to the database in between is counted once.
        ids = tuple(row[_ID] for row in outside)
        with self._connected() as reader:
            return journals.counted(outside, start, tags) + reader.spent(
                database.filters(start, None, tags, ids)
            )

    def index_tags(self, names: Iterable[str]) -> None:
        """Has the database find the entries of a value of these tags at once, for budgets that count them.

        It is done before the next entries are written. While it cannot be done, sums are slower.
        """
        self._own().index_tags(names)

    def spent_unwritten(
        self, start: float | None, tags: Mapping[str, str] | None, problem: LedgerError
    ) -> int:
        """What was spent if the database cannot be written: its sum, and that of the entries it lacks.

        These are the entries in the journals of this machine's processes, and those in the memory of this
        process. They are collected before the database is read and left out of its sum, so an entry that is
        moved there in between is counted once.

        Raises:
            LedgerError: caused by ``problem``, if the database or a journal cannot be read.
        """
        from . import database

        try:
            outside = {row[_ID]: row for row in journals.records(self.storage.journal)}
        except (OSError, journals.DamagedJournalError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise LedgerError(f"the journal of {self.path} cannot be read: {reason}") from problem
        outside.update((row[_ID], row) for row in self._own().waiting())
        rest = journals.counted(outside.values(), start, tags)
        since = self.writer.failing_since
        try:
            with closing(self.storage.read()) as reader:
                return rest + reader.spent(database.filters(start, None, tags, tuple(outside)))
        except (DatabaseUnavailable, DatabaseCorrupt, ConfigError) as error:
            away = isinstance(error, DatabaseUnavailable)
            if away and since is not None and start is not None and start >= since:
                # It has been unavailable since before that time, so it has none of the entries since.
                return rest
            raise LedgerError(f"the ledger {self.path} cannot be read: {error}") from problem

    @contextmanager
    def _reading(self, patience: float | None = None) -> Iterator[LedgerConnection]:
        if patience is None:
            # Shorter for a database that is known to fail.
            patience = FLUSH_SECONDS if self.health.ok else FLUSH_SECONDS_IN_TROUBLE
        self.flush(patience)
        with self._connected() as database:
            yield database

    @contextmanager
    def _connected(self) -> Iterator[LedgerConnection]:
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
            raise ValueError(f"{when}: has no time zone; use datetime(..., tzinfo=timezone.utc)")
        return when.timestamp()
    return when


def _shown(key: str, value: Any) -> str | None:
    if key == "day" and value is not None:
        # Of an entry that is damaged, or whose clock was wrong, it may be no day at all.
        if type(value) is not int or not _FIRST_DAY <= value <= _LAST_DAY:
            return None
        return datetime.fromtimestamp(value * 86_400, timezone.utc).strftime("%Y-%m-%d")
    return None if value is None else str(value)


# ------------------------------------------------------------------------------------------- fork and exit

_ledgers: weakref.WeakSet[Ledger] = weakref.WeakSet()


def _end(writer: Writer) -> None:
    """Ends the writer of a dropped ledger. Does not wait, because any thread may collect garbage."""
    # After a fork that ran no Python hooks, the writer is the parent's.
    if _core.fork_count() == forks.handled:
        writer.end()


inherited_connections: list[object] = []
"""Connections of a parent process, which a child must neither close nor collect."""


def _restart_in_child() -> None:
    for ledger in tuple(_ledgers):
        ledger._restart()


forks.in_child(_restart_in_child)


def _at_exit() -> None:
    for ledger in tuple(_ledgers):
        ledger.close()


interpreters.at_end(_at_exit)

# ----------------------------------------------------------------------------------------------- choosing


class NullLedger(Ledger):
    """A ledger that records nothing, for an empty ``ledger`` setting; every sum is zero."""

    def __init__(self) -> None:
        self.path = ""
        self.durability = "process"

    def index_tags(self, names: Iterable[str]) -> None:
        """Does nothing."""

    def append(self, attempt: Attempt) -> bool:
        """Does nothing."""
        return False

    def flush(self, timeout: float = 5.0) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""

    @property
    def health(self) -> LedgerHealth:
        """Always ok."""
        return LedgerHealth(ok=True, reason=None, waiting=0, lost=0, rejected=0)

    def by(self, *keys: str, **where: Any) -> list[Totals]:
        """No groups; unknown keys are still an error."""
        from .database import check_keys

        check_keys(keys)
        return []

    def savings(self, prices: Prices, models: Iterable[str], **where: Any) -> list[Saving]:
        """Zero for each model."""
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
    """Opens the ledger of a configuration's ``ledger`` setting.

    Args:
        setting: a path, a ``postgresql://`` address, or "" for no ledger.
        hooks, durability, journal, wal: see `Ledger`.

    Raises:
        ConfigError: as `Ledger`.
    """
    if not os.fspath(setting):
        return NullLedger()
    return Ledger(setting, hooks=hooks, durability=durability, journal=journal, wal=wal)


def configured_ledger(config: Config, hooks: Hooks | None = None) -> Ledger:
    """Opens the ledger of a configuration.

    The default ledger is opened if it can be; otherwise nothing is recorded, and a warning says so.

    Raises:
        ConfigError: as `open_ledger`, for a ledger that the configuration names.
    """
    place = config.ledger_place
    try:
        if config.ledger is None:
            if not place:
                raise ConfigError("this user has no home directory")
            os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)
        return open_ledger(
            place,
            hooks,
            cast("Durability", config.ledger_durability),
            config.ledger_journal or None,
            {"on": True, "off": False}.get(config.ledger_wal),
        )
    except (ConfigError, OSError) as error:
        if config.ledger is not None or config.ledger_journal:
            raise
        reason = str(error.strerror if isinstance(error, OSError) else error).removeprefix("ledger: ")
    if place and place not in reason:
        reason = f"{place}: {reason}"
    notice(
        f"fastroute.ledger: nothing is recorded, because the default ledger cannot be used ({reason}); "
        "set FASTROUTE_LEDGER to a file that can be written, or to nothing for no ledger"
        + (". Budgets begin at 0 with every start" if config.budgets else "")
    )
    return NullLedger()


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
            raise ConfigError("ledger: wal is set for a PostgreSQL ledger; it applies to SQLite files only")
        return PostgresStorage(os.fspath(path), journal)
    if separator:
        raise ConfigError(
            f'ledger: unknown scheme {scheme}://; use a file, postgresql://…, or "" for no ledger'
        )
    from .sqlite import SQLiteStorage

    if journal is not None:
        raise ConfigError("ledger: journal is set for an SQLite file; it applies to PostgreSQL only")
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
