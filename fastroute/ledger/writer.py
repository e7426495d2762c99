"""The ledger's thread: brings entries from the queue and the journals into the database.

Owns when entries are committed, what happens while the database cannot be written, and when a journal
segment may be removed. The journal's files are `journal.py`, the SQL is `sqlite.py` and `postgres.py`.

Entries are committed in batches, at most `BATCH_SECONDS` after they came in. While the database is locked,
full or away, the queue holds up to `QUEUE_LIMIT` entries; what comes then is in the journal only and is read
back from there. Segments of processes that were killed are drained on the way.
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
from .database import DatabaseCorrupt, RowsRejected
from .values import LedgerHealth

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
    """The way from one process's journal into the database.

    Thread safety: `put`, `flush`, `stop` and `health` may be called from any thread. The thread that does
    the work starts with the first of them, and belongs to one process: a forked child makes a new `Writer`.

    Args:
        storage: where the database is.
        journal: whose segments are settled here.
        hooks: hear `LedgerDegraded`.
    """

    def __init__(self, storage: LedgerStorage, journal: journals.Journal, hooks: Hooks | None) -> None:
        self.name = storage.name
        self._storage = storage
        self._journal = journal
        self._hooks = hooks
        self._queue: deque[tuple[journals.JournalSegment | None, bytes] | _Flush] = deque()
        self._batch: list[tuple[journals.JournalSegment | None, bytes]] = []
        self._flushes: list[_Flush] = []
        self._bell: SimpleQueue[None] = SimpleQueue()
        self.awake = False
        self._hurry = True  # the first round comes at once: it also drains what killed processes left
        self._stopping = False
        self._suspect = False
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._database: LedgerConnection | None = None
        self._troubles: dict[str, str] = {}
        self._orphans_at = 0.0
        self._journal_failed_at = 0.0
        self._lost = 0
        self._rejected = 0

    # ------------------------------------------------------------------------------------- any thread

    def put(self, segment: journals.JournalSegment | None, record: bytes) -> None:
        """Takes over a record, and the segment that it is in if the journal could take it."""
        if len(self._queue) < QUEUE_LIMIT:
            self._queue.append((segment, record))
        elif segment is not None:
            segment.spill()
        else:
            self._lost += 1
        if not self.awake:
            self.awake = True
            self._wake()

    def flush(self, timeout: float) -> None:
        """Returns once everything put before is in the database; errors as in `Ledger.flush`."""
        request = _Flush()
        self._queue.append(request)
        self._hurry = True
        self.awake = True
        self._wake()
        if not request.done.wait(timeout):
            reason = self._reason or "the time was up"
            raise LedgerError(
                f"the ledger {self.name} could not be brought up to date in {timeout} s: {reason}"
            )

    def stop(self) -> None:
        """Writes what waits, removes what is settled, ends the thread; what is left stays in the journal."""
        self._stopping = True
        if self._thread is None and self._queue:
            self._start()
        thread = self._thread
        if thread is None:
            self._journal.retire()
            self._journal.release()
        elif thread is not threading.current_thread():
            self._bell.put(None)
            thread.join(CLOSE_SECONDS)
        if self._troubles:
            log.error("ledger %s closed with entries still in its journal: %s", self.name, self._reason)

    @property
    def health(self) -> LedgerHealth:
        """Whether entries reach the database at present."""
        waiting = len(self._queue) + len(self._batch)
        reason = self._reason
        unsure = self._storage.unsure_until()
        return LedgerHealth(reason is None, reason, waiting, self._lost, self._rejected, unsure and unsure[0])

    def lose(self, error: OSError) -> None:
        """Counts an entry that nothing could take."""
        self._lost += 1
        self.journal_failed(error)

    def suspect(self) -> None:
        """Hears that a reader met damage; the thread looks into it, and sets the database aside if so."""
        self._suspect = True
        self._hurry = True
        self.awake = True
        self._wake()

    def journal_failed(self, error: OSError) -> None:
        """Hears that the journal could not be written."""
        self._journal_failed_at = time.monotonic()
        self.trouble("journal", f"the journal cannot be written: {error.strerror or error}")

    def connect(self) -> LedgerConnection:
        """A connection of the caller's own; errors as in `LedgerStorage.connect`."""
        return self._storage.connect()

    @property
    def held_database(self) -> LedgerConnection | None:
        """The thread's own connection, for a forked child to keep alive and never touch."""
        return self._database

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
                self.awake = False
                self.trouble("database", str(error))
                return
            self._thread = thread

    def _run(self) -> None:
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
        """Commits all that waits; False if the database would not take it."""
        try:
            if self._suspect:
                self._disconnect()
                self._database = self.connect()
                self._database.check()
                self._suspect = False
            if "database" in self._troubles and self._database is None:
                self._database = (
                    self.connect()
                )  # with nothing to write, nothing would show that it works again
            self._drain_queue()
            self._journal.rotate(SEGMENT_BYTES)
            self._settle()
            self._drain_orphans(now=bool(self._flushes))
        except DatabaseCorrupt as error:
            self.set_aside(error)
            return False
        except Exception as error:
            # Whatever it is, the entries are in the journal and this thread must live to try again.
            self._disconnect()
            self.trouble("database", f"the database cannot be written: {error}")
            return False
        self._recovered()
        flushes, self._flushes = self._flushes, []
        for flush in flushes:
            flush.done.set()
        return True

    def _drain_queue(self) -> None:
        """Commits what is in the queue now; what comes meanwhile is for the next round, or none would end."""
        count = len(self._queue)
        while count or self._batch:
            while count and len(self._batch) < BATCH_ROWS:
                item = self._queue.popleft()
                count -= 1
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
        """Commits rows to the database that the place names now."""
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
        """One row that the database refuses for good must not hold up the others."""
        assert self._database is not None
        for row in rows:
            try:
                self._database.insert([row])
            except RowsRejected as error:
                self._rejected += 1
                log.error("ledger: entry %s cannot be recorded: %s", row[0], error)

    def _drain_orphans(self, *, now: bool) -> None:
        clock = time.monotonic()
        if not now and clock < self._orphans_at:
            return
        self._orphans_at = clock + ORPHAN_SECONDS
        for segment in journals.orphans(self._journal.directory):
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

    def _insert_segment(self, segment: journals.JournalSegment) -> None:
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
                log.warning("ledger %s: closing its connection: %s", self.name, error)

    # ---------------------------------------------------------------------------------------- trouble

    @property
    def _reason(self) -> str | None:
        return "; ".join(tuple(self._troubles.values())) or None

    def trouble(self, part: str, reason: str) -> None:
        """Hears why ``part`` (``journal`` or ``database``) cannot be written; says so once."""
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
        # One entry that came through proves little for a full disk: wait, or every entry would be an event.
        if time.monotonic() > self._journal_failed_at + RECOVERY_SECONDS:
            self._troubles.pop("journal", None)
        if not self._troubles:
            log.info("ledger %s: entries reach journal and database again", self.name)

    def set_aside(self, damage: DatabaseCorrupt) -> None:
        """Has a damaged database put out of the way, so that a new one can take its place."""
        self._disconnect()
        self._suspect = False
        try:
            said = self._storage.set_aside(damage)
        except OSError as error:
            self.trouble("database", f"the database is damaged ({damage}) and cannot be set aside: {error}")
            return
        self._journal.reread()
        if said is not None:
            self._announce(said)


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
