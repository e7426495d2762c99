"""The ledger's thread, which commits entries from the queue and the journals to the database.

Entries are committed in batches, `BATCH_SECONDS` after the first of a batch. While the database is locked,
full or unavailable, the queue holds up to `QUEUE_LIMIT` entries; further ones are in the journal only and
are read from there later. Every `ORPHAN_SECONDS` the segments of killed processes are drained.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from fastroute.errors import LedgerError
from fastroute.events import Hooks, LedgerDegraded

from . import journal as journals
from .database import DatabaseCorrupt, DatabaseUnavailable, RowsRejected
from .results import LedgerHealth

if TYPE_CHECKING:
    from .database import LedgerConnection, LedgerStorage

log = logging.getLogger("fastroute")

QUEUE_LIMIT = 10_000
BATCH_ROWS = 512
BATCH_SECONDS = 0.05
SEGMENT_BYTES = 1 << 20
ORPHAN_SECONDS = 30.0
RETRY_SECONDS = 0.25
MAX_RETRY_SECONDS = 5.0
CLOSE_SECONDS = 10.0
RECOVERY_SECONDS = 1.0


class Writer:
    """Writes the entries of one process to the database, in a thread of its own.

    Thread safety: `put`, `flush`, `stop` and `health` may be called from any thread. The writer's thread
    starts with the first of these calls and does not survive a fork: a child makes a new `Writer`.

    Args:
        storage: where the database is.
        journal: the process's journal, whose segments are removed once they are in the database.
        hooks: `LedgerDegraded` is emitted to them.
    """

    def __init__(self, storage: LedgerStorage, journal: journals.Journal, hooks: Hooks | None) -> None:
        self.name = storage.name
        self._storage = storage
        self._journal = journal
        self._hooks = hooks
        self._queue: deque[tuple[journals.JournalSegment | None, bytes] | _Flush] = deque()
        self._batch: list[tuple[journals.JournalSegment | None, bytes]] = []
        self._flushes: list[_Flush] = []
        self._unindexed: deque[str] = deque()
        self._bell: SimpleQueue[None] = SimpleQueue()
        self.awake = False
        self._hurry = True  # the first round starts at once: it also drains the journals of killed processes
        self._stopping = False
        self._suspect = False
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._database: LedgerConnection | None = None
        self._troubles: dict[str, str] = {}
        self._failing_since: float | None = None
        self._orphans_at = 0.0
        self._journal_failed_at = 0.0
        self._lost = 0
        self._rejected = 0

    # ------------------------------------------------------------------------------------- any thread

    def put(self, segment: journals.JournalSegment | None, record: bytes) -> None:
        """Queues a record, with its segment unless the journal could not be written."""
        if len(self._queue) < QUEUE_LIMIT:
            try:
                self._queue.append((segment, record))
            except MemoryError:
                if segment is not None:
                    segment.spill()
                raise
        elif segment is not None:
            segment.spill()
        else:
            self._lost += 1
        if not self.awake:
            self.awake = True
            self._wake()

    def flush(self, timeout: float) -> None:
        """Waits until everything queued before is in the database; errors as in `Ledger.flush`."""
        request = _Flush()
        self._queue.append(request)
        self._hurry = True
        self.awake = True
        self._wake()
        if not request.done.wait(timeout):
            reason = self._reason or "the time is up"
            raise LedgerError(
                f"the ledger {self.name} could not write its entries within {timeout} s: {reason}"
            )

    def stop(self) -> None:
        """Writes the queue, removes settled segments and ends the thread; the rest stays in the journal."""
        thread = self.end()
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSE_SECONDS)
        if self._troubles:
            log.error("ledger %s closed with entries still in its journal: %s", self.name, self._reason)

    def end(self) -> threading.Thread | None:
        """Like `stop`, but does not wait for the thread, which it returns; None if it has none."""
        self._stopping = True
        if self._thread is None and self._queue:
            self._start()
        thread = self._thread
        if thread is None:
            self._journal.retire()
            self._journal.release()
        else:
            self._bell.put(None)
        return thread

    @property
    def health(self) -> LedgerHealth:
        """Whether entries reach the database now."""
        waiting = len(self._queue) + len(self._batch)
        reason = self._reason
        unsure = self._storage.unsure_until()
        return LedgerHealth(
            ok=reason is None,
            reason=reason,
            waiting=waiting,
            lost=self._lost,
            rejected=self._rejected,
            unsure_until=unsure and unsure[0],
        )

    def lose(self, error: OSError) -> None:
        """Counts an entry that could be neither written nor queued."""
        self._lost += 1
        self.journal_failed(error)

    def suspect(self) -> None:
        """Has the thread check the database for damage, which a reader has met."""
        self._suspect = True
        self._hurry = True
        self.awake = True
        self._wake()

    def journal_failed(self, error: OSError) -> None:
        """Records that the journal could not be written."""
        self._journal_failed_at = time.monotonic()
        self.trouble("journal", f"the journal cannot be written: {error.strerror or error}")

    def waiting(self) -> Iterator[list[Any]]:
        """The values of the entries in memory that may not be in the database yet."""
        # The queue first: an entry that is taken from it meanwhile is in the batch, or in the database by the
        # time that is read. Copies are one step in C, so no thread can append in between.
        for item in self._queue.copy():
            if not isinstance(item, _Flush) and (row := journals.decode(item[1])) is not None:
                yield row
        for _, record in self._batch.copy():
            if (row := journals.decode(record)) is not None:
                yield row

    @property
    def failing_since(self) -> float | None:
        """Seconds since the epoch since when the database cannot be reached or written; None if it can."""
        return self._failing_since

    def connect(self) -> LedgerConnection:
        """Opens a connection for the caller; errors as in `LedgerStorage.connect`."""
        return self._storage.connect()

    @property
    def held_database(self) -> LedgerConnection | None:
        """The thread's connection, which a forked child must neither use nor close."""
        return self._database

    def _wake(self) -> None:
        try:
            if self._thread is None:
                self._start()
            self._bell.put(None)
        except MemoryError:
            self.awake = False  # the next entry rings again
            raise

    def _start(self) -> None:
        with self._starting:
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._run, name="fastroute-ledger", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                # The interpreter is shutting down. The next process drains the journal.
                self.awake = False
                self.trouble("database", str(error))
                return
            self._thread = thread

    def _run(self) -> None:
        while True:
            try:
                return self._serve()
            except MemoryError:
                self._hurry = True  # entries wait in the journal, and only this thread brings them further
                time.sleep(BATCH_SECONDS)

    def _serve(self) -> None:
        """Commits entries until the ledger is closed."""
        retry = RETRY_SECONDS
        while True:
            if not self._hurry and not self._stopping:
                self._listen(BATCH_SECONDS)
            self._hurry = False
            closing_down = self._stopping
            done = self._round()
            if closing_down:
                self._finish(done)
                return
            if not done:
                self._listen(retry)
                self._hurry = True
                retry = min(retry * 2, MAX_RETRY_SECONDS)
                continue
            retry = RETRY_SECONDS
            self.awake = False
            if not self._queue:
                self._listen(None)
            self.awake = True

    def _listen(self, seconds: float | None) -> None:
        with suppress(Empty):
            self._bell.get(timeout=seconds)

    def _round(self) -> bool:
        """Commits all queued entries; False if the database cannot be written."""
        try:
            if self._suspect:
                self._disconnect()
                self._database = self.connect()
                self._database.check(rows=True)
                self._suspect = False
            if "database" in self._troubles and self._database is None:
                # Without entries to write, nothing else would show that the database works again.
                self._database = self.connect()
            self._index()
            self._drain_queue()
            self._journal.rotate(SEGMENT_BYTES)
            self._settle()
            self._drain_orphans(now=bool(self._flushes))
        except DatabaseCorrupt as error:
            self.set_aside(error)
            return False
        except Exception as error:
            # Whatever happened, the entries are in the journal, and this thread must survive to retry.
            self._disconnect()
            self.trouble("database", f"the database cannot be written: {error}")
            return False
        self._recovered()
        flushes, self._flushes = self._flushes, []
        for flush in flushes:
            flush.done.set()
        return True

    def index_tags(self, names: Iterable[str]) -> None:
        """Has the thread make the indexes of tags with its next round."""
        self._unindexed.extend(names)

    def _index(self) -> None:
        while self._unindexed:
            name = self._unindexed.popleft()
            if self._database is None:
                self._database = self.connect()
            try:
                self._database.index_tag(name)
            except (DatabaseUnavailable, RowsRejected) as error:
                log.warning(
                    "ledger %s: no index of the tag %s can be made, so its sums are slow: %s",
                    self.name,
                    name,
                    error,
                )

    def _drain_queue(self) -> None:
        """Commits what is in the queue at the start; a round that also took later entries might never end."""
        count = len(self._queue)
        while count or self._batch:
            while count and len(self._batch) < BATCH_ROWS:
                item = self._queue[0]
                if isinstance(item, _Flush):
                    self._flushes.append(item)
                else:
                    self._batch.append(item)
                self._queue.popleft()  # last: if memory is short above, it is still there
                count -= 1
            self._commit_batch()

    def _commit_batch(self) -> None:
        if not self._batch:
            return
        rows = [row for _, record in self._batch if (row := journals.decode(record)) is not None]
        self._insert(rows)
        # The sums first, which need memory: what follows cannot fail, or entries would be counted twice.
        sums: dict[journals.JournalSegment, int] = {}
        for segment, _ in self._batch:
            if segment is not None:
                sums[segment] = sums.get(segment, segment.settled) + 1
        for segment, settled in sums.items():
            segment.settled = settled
        self._batch.clear()

    def _insert(self, rows: Sequence[Sequence[Any]]) -> None:
        """Commits rows to the database that the storage names now."""
        while True:
            if self._database is None:
                self._database = self.connect()
            try:
                self._database.insert(rows)
            except RowsRejected:
                self._insert_singly(rows)
            if not self._database.replaced:
                return
            self._disconnect()
            self._journal.reread()
            self._announce(f"the database {self.name} was removed or replaced; a new one is in use")

    def _insert_singly(self, rows: Sequence[Sequence[Any]]) -> None:
        """Commits rows one by one, so that a row which the database rejects does not block the others."""
        assert self._database is not None
        for row in rows:
            try:
                self._database.insert([row])
            except RowsRejected as error:
                self._rejected += 1
                log.error("ledger: the database rejects entry %s: %s", row[0], error)

    def _drain_orphans(self, *, now: bool) -> None:
        clock = time.monotonic()
        if not now and clock < self._orphans_at:
            return
        self._orphans_at = clock + ORPHAN_SECONDS
        for segment in journals.orphans(self._journal.directory):
            try:
                damaged = self._insert_segment(segment)
                if damaged:
                    self._set_segment_aside(segment, damaged)
            except BaseException:
                segment.release()
                raise
            if not damaged:
                segment.remove()

    def _settle(self) -> None:
        """Removes the retired segments whose records are all in the database."""
        for segment in self._journal.retired():
            damaged = self._insert_segment(segment) if segment.spilled else 0
            if segment.complete and damaged:
                self._set_segment_aside(segment, damaged)
                self._journal.forget(segment)
            elif segment.complete:
                self._journal.remove(segment)

    def _insert_segment(self, segment: journals.JournalSegment) -> int:
        """Commits the entries of a segment; returns how many of its records are damaged."""
        damage = [0]
        for rows in _chunks(journals.read(segment.path, damage), BATCH_ROWS):
            self._insert(rows)
        return damage[0]

    def _set_segment_aside(self, segment: journals.JournalSegment, damaged: int) -> None:
        """Keeps a segment with damaged records, and marks that entries may be missing.

        The mark comes first: no sum may be returned as if it were complete.
        """
        aside = segment.path + journals.DAMAGED
        mark = self._storage.leave_mark(aside)
        segment.keep()
        self._announce(
            f"the journal {segment.path} has {damaged} damaged record(s); it was renamed to {aside}. Entries "
            "may be missing, so what was spent before now is unknown; "
            f"delete {mark} to accept the entries that are left"
        )

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
                log.warning("ledger %s: the connection cannot be closed: %s", self.name, error)

    # ---------------------------------------------------------------------------------------- trouble

    @property
    def _reason(self) -> str | None:
        return "; ".join(tuple(self._troubles.values())) or None

    def trouble(self, part: str, reason: str) -> None:
        """Records why ``part`` (``journal`` or ``database``) cannot be written, and reports it once."""
        if part == "database" and self._failing_since is None:
            self._failing_since = time.time()
        if self._troubles.get(part) != reason:
            self._troubles[part] = reason
            self._announce(reason)

    def _announce(self, reason: str) -> None:
        log.error("ledger %s: %s", self.name, reason)
        if self._hooks is not None and self._hooks.wanted:
            self._hooks.emit(LedgerDegraded(reason))

    def _recovered(self) -> None:
        if not self._troubles:
            return
        self._troubles.pop("database", None)
        self._failing_since = None
        # On a full disk a single entry may still fit. Without a pause each such entry would be an event.
        if time.monotonic() > self._journal_failed_at + RECOVERY_SECONDS:
            self._troubles.pop("journal", None)
        if not self._troubles:
            log.info("ledger %s: entries reach the journal and the database again", self.name)

    def set_aside(self, damage: DatabaseCorrupt) -> None:
        """Moves a damaged database away, so that a new one can be created."""
        self._disconnect()
        self._suspect = False
        try:
            report = self._storage.set_aside(damage)
        except OSError as error:
            self.trouble("database", f"the database is damaged ({damage}) and cannot be set aside: {error}")
            return
        self._journal.reread()
        if report is not None:
            self._announce(report)


class _Flush:
    """A mark in the queue; ``done`` is set once everything before it is in the database."""

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
