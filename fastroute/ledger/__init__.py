"""The ledger: one line for every request sent, kept whatever happens, and its exact sums.

Owns when an entry is safe and when it reaches the database: the queue, the thread that drains it, what
happens while the database cannot be written, and what a forked child does. The journal's files are
`journal.py`, the SQL is `database.py`, turning sums into a report is `report.py`.

The way of an entry::

    append     encode, write to this process's journal (safe from here), queue      the caller's thread
    drain      up to 512 entries a transaction, every 50 ms                          the ledger's thread
    settle     a journal segment whose entries are all committed is removed          the ledger's thread

A segment left by a process that was killed is drained by any other that opens, reads or writes the
ledger; ids make a second insert of the same entry nothing.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import datetime, timezone
from functools import cache
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from attrs import frozen

from fastroute.errors import ConfigError, Error
from fastroute.events import Hooks, LedgerDegraded
from fastroute.types import Attempt, Usage

from . import journal as journals

if TYPE_CHECKING:
    from .database import Corrupt, Database, Durability

log = logging.getLogger("fastroute")

QUEUE_LIMIT = 10_000
BATCH_ROWS = 512
BATCH_SECONDS = 0.05
SEGMENT_BYTES = 1 << 20
ORPHAN_SECONDS = 30.0
RETRY_SECONDS = 0.25
MAX_RETRY_SECONDS = 5.0
RECOVERY_SECONDS = 1.0

Prices = Callable[[str], "tuple[int, int, int | None]"]
"""Model name → input, output and cached-input price in nano-dollars per million tokens."""


# ------------------------------------------------------------------------------------------------ values


@frozen
class Totals:
    """Sums over entries.

    Attributes:
        keys: the group's values, in the order asked for; empty for a total. A day is ``YYYY-MM-DD`` in UTC.
        calls: different calls; one whose attempts fall in two groups counts in both.
        attempts: entries, ``failures`` of which did not end well (cancelled ones among them).
        prompt_tokens, completion_tokens: all of them, ``cached_tokens`` and ``reasoning_tokens`` included.
        cost_nano: the exact sum of known costs, nano-dollars.
        unknown_cost: entries whose model has no known price; they are not in ``cost_nano``.
        latency_mean, latency_p50, latency_p95: seconds, over successful entries; None if there are none.
            The percentiles are to the microsecond.
    """

    keys: tuple[str | None, ...] = ()
    calls: int = 0
    attempts: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost_nano: int = 0
    unknown_cost: int = 0
    latency_mean: float | None = None
    latency_p50: float | None = None
    latency_p95: float | None = None


@frozen
class Saving:
    """What the successful entries cost, against the same tokens at one model's prices.

    Attributes:
        model: the one model.
        entries: successful entries with a known cost: those compared.
        unknown_cost: successful entries left out on both sides, because their cost is unknown.
        actual_nano: what they did cost.
        alone_nano: what they would have cost.
    """

    model: str
    entries: int
    unknown_cost: int
    actual_nano: int
    alone_nano: int

    @property
    def saved_nano(self) -> int:
        """Nano-dollars saved; negative if the one model would have been cheaper."""
        return self.alone_nano - self.actual_nano


@frozen
class LedgerHealth:
    """Whether entries reach the database.

    Attributes:
        ok: they do.
        reason: why not.
        waiting: entries in memory that are not in the database yet.
        lost: entries that neither journal nor memory could take.
        rejected: entries that the database refused for good.
    """

    ok: bool
    reason: str | None
    waiting: int
    lost: int
    rejected: int


# ------------------------------------------------------------------------------------------------ ledger


class Ledger:
    """The record of attempts in one SQLite file.

    Thread safety: every method may be called from any thread, and from any process forked from this one;
    any number of processes may use the same file. `append` takes no lock.

    Args:
        path: the database file. Beside it appear SQLite's own ``-wal`` and ``-shm`` files and a directory
            ``PATH.journal``. Its directory must exist, on a local disk.
        hooks: hear `LedgerDegraded`.
        durability: ``process``: an entry survives the process, however it ends; a power cut may take the
            last ones. ``power``: `append` also waits for the disk, milliseconds each.

    Raises:
        ConfigError: the path cannot be a ledger, or its schema is newer than this release.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        hooks: Hooks | None = None,
        durability: Durability = "process",
    ) -> None:
        if durability not in ("process", "power"):
            raise ConfigError(f"ledger: durability is {durability!r}; it must be 'process' or 'power'")
        self.path = os.path.abspath(os.fspath(path))
        self.durability: Durability = durability
        self._hooks = hooks
        self._directory = self.path + ".journal"
        self._lock_path = os.path.join(self._directory, "lock")
        self._lost = 0
        self._rejected = 0
        self._begin()
        self._prepare()
        _watch_process()
        _ledgers.add(self)

    def _begin(self) -> None:
        """State that belongs to one process; none of it may cross a fork."""
        self._pid = os.getpid()
        self._journal = journals.Journal(self._directory, sync=self.durability == "power")
        self._queue: deque[tuple[journals.Segment | None, bytes] | _Flush] = deque()
        self._flushes: list[_Flush] = []
        self._batch: list[tuple[journals.Segment | None, bytes]] = []
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._awake = False
        self._closed = False
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._database: Database | None = None
        self._troubles: dict[str, str] = {}
        self._orphans_at = 0.0
        self._journal_failed_at = 0.0

    def _prepare(self) -> None:
        """Finds out at once whether the file can be a ledger; being busy is no reason to fail."""
        import sqlite3

        from .database import Corrupt

        parent = os.path.dirname(self.path)
        if not os.path.isdir(parent):
            raise ConfigError(f"ledger: {self.path}: there is no directory {parent}")
        used_before = os.path.isdir(self._directory)
        try:
            with closing(self._connect()) as database:
                if used_before and self._has_orphans():
                    database.check()
        except Corrupt as error:
            if not used_before:
                self._remove_directory()
                raise ConfigError(f"ledger: {self.path} is no SQLite database; name another file") from None
            self._set_aside(error)
        except ConfigError:
            if not used_before:
                self._remove_directory()
            raise
        except (sqlite3.OperationalError, TimeoutError) as error:
            if not os.access(self.path, os.W_OK) and os.path.exists(self.path):
                raise ConfigError(f"ledger: {self.path} cannot be written: {error}") from None
            self._trouble("database", str(error))
        except OSError as error:
            raise ConfigError(f"ledger: {self.path} cannot be used: {error.strerror or error}") from None

    def _remove_directory(self) -> None:
        with suppress(OSError):
            os.unlink(self._lock_path)
            os.rmdir(self._directory)

    def _connect(self) -> Database:
        from .database import Database

        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        return Database(self.path, self._lock_path, self.durability)

    # ------------------------------------------------------------------------------------------- writing

    def append(self, attempt: Attempt) -> None:
        """Records one attempt; it is safe from the end of this process when this returns.

        Never raises and never waits for the database: while that cannot be written, entries stay in the
        journal and `health` says so.
        """
        record = journals.encode(attempt)
        if self._pid != os.getpid():
            self._leave_to_parent()
        if self._closed:
            self._append_closed(record)
            return
        try:
            segment: journals.Segment | None = self._journal.write(record)
        except OSError as error:
            segment = None
            self._journal_failed(error)
        if len(self._queue) < QUEUE_LIMIT:
            self._queue.append((segment, record))
        elif segment is not None:
            segment.spill()
        else:
            self._lost += 1
        if not self._awake:
            self._awake = True
            self._wake()

    def _append_closed(self, record: bytes) -> None:
        try:
            self._journal.write_alone(record)
        except OSError as error:
            self._lost += 1
            self._journal_failed(error)

    def flush(self, timeout: float = 5.0) -> None:
        """Returns once all entries that this process has appended are in the database.

        Args:
            timeout: seconds.

        Raises:
            Error: they are not in the database in that time; they stay in the journal.
        """
        if self._pid != os.getpid():
            self._leave_to_parent()
        if self._closed:
            return
        request = _Flush()
        self._queue.append(request)
        self._awake = True
        self._wake()
        if not request.done.wait(timeout):
            reason = self._reason or "the time was up"
            raise Error(f"the ledger {self.path} could not be brought up to date in {timeout} s: {reason}")

    def close(self) -> None:
        """Brings the database up to date and lets go of thread and files; closing twice is nothing.

        If the database cannot be written, the entries stay in the journal for the next to open it.
        """
        if self._pid != os.getpid():
            self._leave_to_parent()
        if self._closed:
            return
        self._closed = True
        _ledgers.discard(self)
        thread = self._thread
        if thread is None:
            if not self._queue:
                self._journal.retire()
                self._journal.release()
                return
            self._start()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._bell.put(None)
            thread.join(2 * MAX_RETRY_SECONDS)
        if self._troubles:
            log.error(
                "ledger %s closed with entries still in its journal: %s",
                self.path,
                self._reason,
            )

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def health(self) -> LedgerHealth:
        """Whether entries reach the database at present."""
        waiting = len(self._queue) + len(self._batch)
        reason = self._reason
        return LedgerHealth(reason is None, reason, waiting, self._lost, self._rejected)

    # ------------------------------------------------------------------------------------------ its thread

    def _wake(self) -> None:
        if self._thread is None:
            self._start()
        self._bell.put(None)

    def _start(self) -> None:
        with self._starting:
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._run, name="fastroute-ledger", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                # The interpreter is going down: what the journal has, the next process will find.
                self._awake = False
                self._trouble("database", str(error))
                return
            self._thread = thread

    def _run(self) -> None:
        retry = RETRY_SECONDS
        hurried = True  # the first round comes at once: it also drains what killed processes left
        while True:
            if not hurried and not self._closed:
                self._listen(BATCH_SECONDS)
            closing_down = self._closed
            done = self._round()
            if closing_down:
                self._finish(done)
                return
            if not done:
                hurried = self._listen(retry)
                retry = min(retry * 2, MAX_RETRY_SECONDS)
                continue
            retry = RETRY_SECONDS
            self._awake = False
            if not self._queue:
                self._listen(None)
            self._awake = True
            hurried = any(isinstance(item, _Flush) for item in tuple(self._queue))

    def _listen(self, seconds: float | None) -> bool:
        try:
            self._bell.get(timeout=seconds)
        except Empty:
            return False
        return True

    def _round(self) -> bool:
        """Commits all that waits; False if the database would not take it."""
        from .database import Corrupt

        try:
            self._drain_queue()
            self._journal.rotate(SEGMENT_BYTES)
            self._settle()
            self._drain_orphans(now=bool(self._flushes))
        except Corrupt as error:
            self._set_aside(error)
            return False
        except Exception as error:
            # Whatever it is, the entries are in the journal and this thread must live to try again.
            self._disconnect()
            self._trouble("database", f"the database cannot be written: {error}")
            return False
        self._recovered()
        flushes, self._flushes = self._flushes, []
        for flush in flushes:
            flush.done.set()
        return True

    def _drain_queue(self) -> None:
        while self._queue or self._batch:
            while self._queue and len(self._batch) < BATCH_ROWS:
                item = self._queue.popleft()
                if isinstance(item, _Flush):
                    self._flushes.append(item)
                else:
                    self._batch.append(item)
            self._commit_batch()

    def _commit_batch(self) -> None:
        if not self._batch:
            return
        rows = [row for _, record in self._batch if (row := journals.decode(record)) is not None]
        self._insert(rows)
        for segment, _ in self._batch:
            if segment is not None:
                segment.settled += 1
        self._batch.clear()

    def _insert(self, rows: Sequence[Sequence[Any]]) -> None:
        """Commits rows to the file that the path names now."""
        import sqlite3

        while True:
            if self._database is None:
                self._database = self._connect()
            try:
                self._database.insert(rows)
            except (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError, OverflowError):
                self._insert_singly(rows)
            if not self._database.replaced:
                return
            self._disconnect()
            self._announce(f"the database file {self.path} was removed or replaced; a new one is in use")

    def _insert_singly(self, rows: Sequence[Sequence[Any]]) -> None:
        """One row that the database refuses for good must not hold up the others."""
        import sqlite3

        assert self._database is not None
        for row in rows:
            try:
                self._database.insert([row])
            except (
                sqlite3.IntegrityError,
                sqlite3.ProgrammingError,
                sqlite3.InterfaceError,
                OverflowError,
            ) as error:
                self._rejected += 1
                log.error("ledger: entry %s cannot be recorded: %s", row[0], error)

    def _drain_orphans(self, *, now: bool) -> None:
        clock = time.monotonic()
        if not now and clock < self._orphans_at:
            return
        self._orphans_at = clock + ORPHAN_SECONDS
        for segment in journals.orphans(self._directory):
            try:
                self._insert_segment(segment)
            except BaseException:
                segment.release()
                raise
            segment.remove()

    def _settle(self) -> None:
        for segment in self._journal.retired():
            if segment.spilled:
                self._insert_segment(segment)
            if segment.complete:
                self._journal.remove(segment)

    def _insert_segment(self, segment: journals.Segment) -> None:
        for rows in _chunks(journals.read(segment.path), BATCH_ROWS):
            self._insert(rows)

    def _finish(self, done: bool) -> None:
        self._journal.retire()
        if done:
            self._round()
        self._journal.release()
        self._disconnect()
        self._thread = None

    def _disconnect(self) -> None:
        if self._database is not None:
            database, self._database = self._database, None
            try:
                database.close()
            except Exception as error:
                log.warning("ledger %s: closing its connection: %s", self.path, error)

    # -------------------------------------------------------------------------------------------- trouble

    @property
    def _reason(self) -> str | None:
        return "; ".join(tuple(self._troubles.values())) or None

    def _journal_failed(self, error: OSError) -> None:
        self._journal_failed_at = time.monotonic()
        self._trouble("journal", f"the journal cannot be written: {error.strerror or error}")

    def _trouble(self, part: str, reason: str) -> None:
        if self._troubles.get(part) != reason:
            self._troubles[part] = reason
            self._announce(reason)

    def _announce(self, reason: str) -> None:
        log.error("ledger %s: %s", self.path, reason)
        if self._hooks is not None and self._hooks.wanted:
            self._hooks.emit(LedgerDegraded(reason))

    def _recovered(self) -> None:
        if not self._troubles:
            return
        self._troubles.pop("database", None)
        # One entry that came through proves little for a full disk: wait, or every entry would be an event.
        if time.monotonic() > self._journal_failed_at + RECOVERY_SECONDS:
            self._troubles.pop("journal", None)
        if not self._troubles:
            log.info("ledger %s: entries reach journal and database again", self.path)

    def _set_aside(self, damage: Corrupt) -> None:
        from .database import set_aside

        self._disconnect()
        target = set_aside(self.path, self._lock_path, damage.inode)
        if target is not None:
            self._announce(f"the database is damaged ({damage}); it is now {target}, and a new one is begun")

    def _has_orphans(self) -> bool:
        found = False
        for segment in journals.orphans(self._directory):
            segment.release()
            found = True
        return found

    def _leave_to_parent(self) -> None:
        """In a forked child: starts afresh; everything that waits is the parent's to write."""
        self._journal.release()
        if self._database is not None:
            _leaked.append(self._database.leave_to_parent())
        closed = self._closed
        self._begin()
        self._closed = closed

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
            tags: entries must carry all of these.
            model, tier, endpoint, provider, outcome: entries must have this value.

        Raises:
            ValueError: a key that is not one of those, or a datetime without a zone.
            Error: this process's own entries cannot be brought into the database.
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
        from . import database

        where = database.filters(_seconds(since), _seconds(until), tags)
        with self._reading() as reader:
            usages, unpriced = reader.usages(where)
        entries = sum(usage[3] for usage in usages)
        actual = sum(usage[4] for usage in usages)
        result = []
        for model in models:
            price = prices(model)
            alone = sum(
                Usage(prompt, completion, cached).cost_nano(*price) * count
                for prompt, completion, cached, count, _ in usages
            )
            result.append(Saving(model, entries, unpriced, actual, alone))
        return result

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
        """The exact sum of known costs since a time, nano-dollars; arguments as in `by`."""
        from . import database

        where = database.filters(_seconds(since), None, tags)
        with self._reading() as reader:
            return reader.spent(where)

    @contextmanager
    def _reading(self) -> Iterator[Database]:
        import sqlite3

        from .database import Corrupt

        self.flush()
        try:
            with closing(self._connect()) as database:
                yield database
        except (sqlite3.Error, OSError, Corrupt) as error:
            raise Error(f"the ledger {self.path} cannot be read: {error}") from error


class _Flush:
    """A place in the queue; ``done`` is set when everything before it is in the database."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = threading.Event()


def _chunks(rows: Iterable[list[Any]], size: int) -> Iterator[list[list[Any]]]:
    chunk: list[list[Any]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


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
_leaked: list[object] = []
"""Connections that belong to a parent process: neither closed nor collected here."""


def _after_fork() -> None:
    for ledger in tuple(_ledgers):
        ledger._leave_to_parent()


def _at_exit() -> None:
    for ledger in tuple(_ledgers):
        ledger.close()


@cache
def _watch_process() -> None:
    os.register_at_fork(after_in_child=_after_fork)
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

    def entries(self, limit: int | None = 100, **where: Any) -> list[Attempt]:
        """None."""
        return []

    def spent(self, since: float | datetime | None = None, tags: Mapping[str, str] | None = None) -> int:
        """Zero."""
        return 0


def open_ledger(
    setting: str | os.PathLike[str], hooks: Hooks | None = None, durability: Durability = "process"
) -> Ledger:
    """The ledger that a configuration's ``ledger`` setting names.

    Args:
        setting: a path, or "" for none.
        hooks: hear `LedgerDegraded`.
        durability: see `Ledger`.

    Raises:
        ConfigError: it names something that cannot be a ledger.
    """
    text = os.fspath(setting)
    if not text:
        return NullLedger()
    scheme, separator, _ = text.partition("://")
    if separator:
        raise ConfigError(
            f'ledger: {scheme}:// is not supported in this version; name a file, or use "" for no ledger'
        )
    return Ledger(text, hooks=hooks, durability=durability)


__all__ = ["Ledger", "LedgerHealth", "NullLedger", "Prices", "Saving", "Totals", "open_ledger"]
