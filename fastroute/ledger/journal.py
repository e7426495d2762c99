"""The write-ahead journal of the ledger, which keeps an entry safe until the database has it.

Each process appends to a segment file of its own, with one `write` for each record. The record is then in
the kernel's page cache, so it survives a kill of the process. The process holds an exclusive `flock` on its
segment. A segment that another process can lock is an orphan: its owner has ended, and it must be drained.

A record is a line feed, eight hexadecimal digits of CRC-32, and a JSON array of the attempt's fields in
their order. The line feed comes first, so a record that was cut off by a kill or a full disk does not
damage the next one.
"""

from __future__ import annotations

import errno
import itertools
import logging
import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from operator import attrgetter
from typing import IO, Any
from zlib import crc32

import attrs

from fastroute import json_codec
from fastroute.platform import files
from fastroute.types import Attempt

log = logging.getLogger("fastroute")

FIELDS: tuple[str, ...] = tuple(field.name for field in attrs.fields(Attempt))
"""The order of a record's values.

A release that adds a field to `Attempt` adds it at the end and changes `SUFFIX`, so that older releases leave
its segments alone. It adds the suffix before to `_SUFFIXES`, so that older segments are still drained.
"""

SUFFIX = ".v5"
_SUFFIXES = (".v2", ".v3", ".v4", SUFFIX)
_DEFAULTS = [field.default for field in attrs.fields(Attempt)]
_FEWEST = FIELDS.index("service_tier")  # values of a record of the oldest of these
MAX_TEXT = 1024
MAX_TAGS = 64
MAX_COUNT = 2**40  # tokens; a sum of millions of entries still fits 64 bits
MAX_COST = 10**18
"""Nano-dollars: a cost above this, a thousand million dollars, is entered as this; budgets count no more."""
_PLAIN_RECORD = 4096
# More than `MAX_TAGS` names and values of `MAX_TEXT` characters take, each escaped as six bytes.
_LONGEST_LINE = 1 << 20
_MOST_SKIPPED = 64 << 20  # bytes of a line that is no record
DAMAGED = ".damaged"
"""Added to the name of a segment that is kept because records in it cannot be read."""

_values = attrgetter(*FIELDS)
_TIME, _LATENCY, _COST, _TAGS = (FIELDS.index(name) for name in ("time", "latency", "cost_nano", "tags"))
_ID, _BUDGET = FIELDS.index("id"), FIELDS.index("budget_nano")
_MOST_TIME = 1e300  # queries have no upper limit beyond it
FLOATS = frozenset({"time", "latency", "ttft", "score"})
INTS = frozenset(
    {
        *(
            "status_code",
            "cost_nano",
            "budget_nano",
            "prompt_tokens",
            "completion_tokens",
            "reasoning_tokens",
        ),
        *("cached_tokens", "cache_write_tokens", "cache_write_1h_tokens"),
    }
)
FLAGS = frozenset({"stream", "maybe_billed"})
OPTIONAL = frozenset(
    {
        *("tier", "level", "status_code", "error", "cost_nano", "ttft", "request_id"),
        *("service_tier", "budget_nano", "score"),
    }
)


# ----------------------------------------------------------------------------------------------- records


def encode(attempt: Attempt) -> bytes:
    """Encodes an attempt as a record that the database can accept, whatever the attempt's fields contain.

    Text is cut at `MAX_TEXT` characters; lone surrogates and NUL are escaped. A cost above `MAX_COST` is cut
    to that, and numbers of tokens are cut too.
    """
    values = _values(attempt)
    try:
        body = json_codec.dumps(values) if _is_plain(values) else b""
    except TypeError:
        body = b""
    if not body or len(body) > _PLAIN_RECORD or b"\\u0000" in body:
        body = json_codec.dumps([_tame(name, value) for name, value in zip(FIELDS, values)])
    return b"\n%08x%b" % (crc32(body), body)


def _is_plain(values: tuple[Any, ...]) -> bool:
    """Whether JSON can represent the values without loss, as far as `orjson` does not check that itself."""
    tags = values[_TAGS]
    return (
        ((cost := values[_COST]) is None or (type(cost) is int and -MAX_COST <= cost <= MAX_COST))
        and ((cost := values[_BUDGET]) is None or (type(cost) is int and -MAX_COST <= cost <= MAX_COST))
        and type(tags) is dict
        and math.isfinite(values[_TIME] + values[_LATENCY])
        and (not tags or all(type(value) is str for value in tags.values()))
    )


def _tame(name: str, value: Any) -> Any:
    """The nearest value that the database column can hold."""
    if name == "tags":
        return clean_tags(value) if isinstance(value, Mapping) else {}
    if value is None and name in OPTIONAL:
        return None
    if name in INTS:
        if isinstance(value, int):
            most = MAX_COST if name.endswith("_nano") else MAX_COUNT
            if value >= -most:
                return min(int(value), most)
        return None if name in OPTIONAL else 0
    if name in FLOATS:
        if isinstance(value, (int, float)) and math.isfinite(value):
            return float(value)
        return None if name in OPTIONAL else 0.0
    if name in FLAGS:
        return bool(value)
    return clean_text("" if value is None else value)


def clean_tags(tags: Mapping[Any, Any]) -> dict[str, str]:
    """Tags as the ledger stores them: at most `MAX_TAGS`, all text."""
    pairs = itertools.islice(dict(tags).items(), MAX_TAGS)
    return {clean_text(key): clean_text(item) for key, item in pairs}


def clean_text(value: Any) -> str:
    """Text as the ledger stores it."""
    text = value if isinstance(value, str) else str(value)
    if len(text) > MAX_TEXT:
        text = text[: MAX_TEXT - 1] + "…"
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")


def decode(record: bytes) -> list[Any] | None:
    """The values of a record, with or without its line feed; None if it is incomplete or impossible.

    Fields that the release which wrote it did not have get their defaults. Values of a wrong type become the
    nearest that the database can hold. An entry whose id, time or cost is impossible is none.
    """
    line = record.strip(b"\n")
    body = line[8:]
    try:
        if len(line) < 10 or int(line[:8], 16) != crc32(body):
            return None
        values = json_codec.loads(body)
    except ValueError:
        return None
    if not isinstance(values, list) or not _FEWEST <= len(values) <= len(FIELDS):
        return None
    if len(values) < len(FIELDS):
        values += _DEFAULTS[len(values) :]
    # Records have few combinations of types, so those that were found to be right are looked up.
    types = tuple(map(type, values))
    if types not in _right_types:
        values = [
            _tame(name, value) if _is_wrong(name, value) else value for name, value in zip(FIELDS, values)
        ]
        if type(values[_ID]) is not str or types[_ID] is not str or not _is_number(types[_TIME]):
            return None
        if types[_COST] not in _MONEY or types[_BUDGET] not in _MONEY:
            return None
        if len(_right_types) < _MOST_TYPES and tuple(map(type, values)) == types:
            _right_types.add(types)
    tags = values[_TAGS]
    if tags:
        for value in tags.values():
            if type(value) is not str:
                values[_TAGS] = clean_tags(tags)
                break
    cost, budget = values[_COST], values[_BUDGET]
    if cost is not None and not -MAX_COST <= cost <= MAX_COST:
        return None
    if budget is not None and not -MAX_COST <= budget <= MAX_COST:
        return None
    return values if -_MOST_TIME <= values[_TIME] <= _MOST_TIME else None


_MONEY = (int, type(None))
_MOST_TYPES = 64
_right_types: set[tuple[type, ...]] = set()


def _is_number(kind: type) -> bool:
    return kind in (int, float)


def _is_wrong(name: str, value: Any) -> bool:
    """Whether a value is of a type that the database's column cannot hold."""
    if value is None:
        return name not in OPTIONAL
    if name == "tags":
        return type(value) is not dict
    if name in FLAGS:
        return type(value) not in (bool, int)
    if name in FLOATS:
        return type(value) not in (int, float)
    return type(value) is not (int if name in INTS else str)


def is_cut_off(line: bytes) -> bool:
    """Whether a line that is no record is the beginning of one, as a kill or a full disk leaves it.

    The caller of such an entry has not been told that it was recorded.
    """
    line = line.strip(b"\n")
    if not line.strip(b"\0"):
        return True
    # A complete record ends with the only bracket that closes a list.
    return len(line) < 9 or (_BEGINNING.match(line) is not None and not line.endswith(b"]"))


_BEGINNING = re.compile(rb"[0-9a-f]{8}\[")


# ---------------------------------------------------------------------------------------------- segments


class _Tally:
    """A counter that many threads increment and one reads, without a lock.

    `next` of an iterator in C is atomic.
    """

    __slots__ = ("_count", "_reads", "add")

    def __init__(self) -> None:
        self._count = itertools.count()
        self._reads = 0
        self.add = self._count.__next__

    def value(self) -> int:
        seen = next(self._count) - self._reads
        self._reads += 1
        return seen


class JournalSegment:
    """One file of records, with counts that show when it can be removed.

    Every append increments `begun` before it checks whether the segment is retired. It ends in `skipped`, or
    as a queued entry, which the ledger's thread counts in `settled` once it is committed. If a retired
    segment has ``begun == settled + skipped``, no record can follow and all are in the database.

    Attributes:
        begun: appends that have started.
        skipped: appends that do not come through the queue.
        settled: queued entries that are in the database; used by the ledger's thread only.
        spilled: whether some records are in the file only, so that it must be read before it is removed.
        retired: whether a newer segment is in use.
    """

    __slots__ = ("begun", "fd", "path", "retired", "settled", "skipped", "spilled")

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.begun = _Tally()
        self.skipped = _Tally()
        self.settled = 0
        self.spilled = False
        self.retired = False

    @property
    def complete(self) -> bool:
        """Whether all records are in the database and none can follow; for the ledger's thread only."""
        # The order matters: an append that starts and is skipped between the two reads must make them
        # differ, so `skipped` is read first.
        skipped = self.skipped.value()
        return self.retired and self.begun.value() == self.settled + skipped

    def spill(self) -> None:
        """Marks that the record just written is in the file only."""
        self.spilled = True
        self.skipped.add()

    def remove(self) -> None:
        """Deletes the file and releases its lock."""
        with suppress(FileNotFoundError):
            os.unlink(self.path)
        self.release()

    def keep(self) -> str:
        """Sets the file aside under a name that is not drained, and returns that name."""
        aside = self.path + DAMAGED
        with suppress(FileNotFoundError):
            os.rename(self.path, aside)
        self.release()
        return aside

    def release(self) -> None:
        """Releases the lock, so that another process can drain the file."""
        if self.fd >= 0:
            files.close(self.fd)
            self.fd = -1


@cache
def _page_cache_write() -> Callable[[int, bytes], None]:
    """A `write` that does not release the interpreter lock.

    Copying a few hundred bytes into the page cache takes a microsecond. `os.write` releases the interpreter
    lock for it, and among busy threads acquiring it again takes milliseconds at the 99th percentile.
    """
    import ctypes

    system_write = ctypes.PyDLL(None, use_errno=True).write
    system_write.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t)
    system_write.restype = ctypes.c_ssize_t

    def write(fd: int, record: bytes) -> None:
        size = len(record)
        try:
            written = system_write(fd, record, size)
        except ctypes.ArgumentError:  # the types are right, so there was no memory to convert a value
            raise MemoryError from None
        if written != size:
            code = ctypes.get_errno() if written < 0 else errno.ENOSPC
            raise OSError(code, os.strerror(code))

    return write


def _write_through(fd: int, record: bytes) -> None:
    """Writes and waits for the disk."""
    if os.write(fd, record) != len(record):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fdatasync(fd)


class Journal:
    """The segments of this process for one ledger.

    Thread safety: `write` may be called from any thread, and takes a lock only to create the first segment.
    The other methods are for one thread.

    Args:
        directory: where segments are kept; created with mode 0700.
        sync: whether to wait for the disk with every record.
    """

    def __init__(self, directory: str, *, sync: bool = False) -> None:
        self.directory = directory
        self._sync = sync
        self.write_record = _page_cache_write()
        self._lock = threading.Lock()
        self._segment: JournalSegment | None = None
        self._retired: list[JournalSegment] = []
        self._prefix = f"{os.getpid()}-{os.urandom(8).hex()}"
        self._numbers = itertools.count(1)

    def write(self, record: bytes) -> JournalSegment:
        """Writes a record, which then survives a kill. The caller settles, spills or skips it.

        Raises:
            OSError: the record is not safe. It counts as skipped.
        """
        while True:
            segment = self._segment
            if segment is None:
                segment = self._open_first()
            try:
                segment.begun.add()
                if segment.retired:
                    segment.skipped.add()
                    continue
                if self._sync:
                    _write_through(segment.fd, record)
                else:
                    self.write_record(segment.fd, record)
            except OSError:
                segment.skipped.add()
                raise
            except BaseException:  # memory is short, and the record may be in the file
                segment.spill()
                raise
            return segment

    def write_alone(self, record: bytes) -> None:
        """Writes a record to a new segment and unlocks it, for a ledger that is closed already."""
        segment = self._create()
        try:
            _write_through(segment.fd, record)
        finally:
            segment.release()

    def _open_first(self) -> JournalSegment:
        with self._lock:
            if self._segment is None:
                self._segment = self._create()
            return self._segment

    def _create(self) -> JournalSegment:
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        while True:
            path = os.path.join(self.directory, f"{self._prefix}-{next(self._numbers)}{SUFFIX}")
            segment = _claim(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL)
            # Between opening and locking, another process may have taken the file for an orphan.
            if segment is not None:
                break
        if self._sync:
            files.sync_folder(self.directory)
        return segment

    def rotate(self, size: int) -> None:
        """Retires the current segment if it is larger than ``size`` bytes or has records that are not queued.

        Also if its file has been deleted, because then its records are not safe.
        """
        current = self._segment
        if current is None:
            return
        found = os.fstat(current.fd)
        if current.spilled or found.st_size > size or not found.st_nlink:
            self._segment = self._create()
            self._retire(current)

    def retire(self) -> None:
        """Retires the current segment; the next record creates another."""
        with self._lock:
            current, self._segment = self._segment, None
        if current is not None:
            self._retire(current)

    def _retire(self, segment: JournalSegment) -> None:
        segment.retired = True
        self._retired.append(segment)

    def reread(self) -> None:
        """Marks the records of all segments as not in the database, because it was replaced."""
        for segment in (*self._retired, self._segment):
            if segment is not None:
                segment.spilled = True

    def retired(self) -> tuple[JournalSegment, ...]:
        """The retired segments."""
        return tuple(self._retired)

    def remove(self, segment: JournalSegment) -> None:
        """Deletes a retired segment whose records are all in the database."""
        self._retired.remove(segment)
        segment.remove()

    def forget(self, segment: JournalSegment) -> None:
        """Drops a retired segment that has been set aside."""
        self._retired.remove(segment)

    def release(self) -> None:
        """Releases the locks of all segments and leaves their files for other processes to drain."""
        segments = [*self._retired, self._segment]
        self._retired, self._segment = [], None
        for segment in segments:
            if segment is not None:
                segment.release()


def _claim(path: str, flags: int) -> JournalSegment | None:
    """Opens and locks a segment; None if another process holds it, or held it and has removed the file."""
    # Not private: root may read any user's ledger, and some file systems have no permissions.
    fd = files.open_file(path, flags, private=False)
    if files.lock(fd) and not files.is_deleted(fd):
        return JournalSegment(path, fd)
    files.close(fd)
    return None


# ----------------------------------------------------------------------------------------------- orphans


def orphans(directory: str) -> Iterator[JournalSegment]:
    """Segments whose process has ended. Each is locked until the caller removes or releases it."""
    for path in paths(directory):
        try:
            segment = _claim(path, os.O_RDWR)
        except FileNotFoundError:
            continue
        except OSError as error:
            _report(path, f"it cannot be opened ({error.strerror}), so its entries are not in the ledger")
            continue
        if segment is not None:
            yield segment


def paths(directory: str) -> list[str]:
    """The files of all segments."""
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    return [os.path.join(directory, name) for name in names if name.endswith(_SUFFIXES)]


_reported: set[str] = set()


def _report(path: str, problem: str) -> None:
    """Logs a problem of a file once in this process."""
    if path not in _reported and len(_reported) < 1000:
        _reported.add(path)
        log.error("%s: %s; make it a readable file of this user, or remove it", path, problem)


class DamagedJournalError(Exception):
    """A segment has a record that cannot be read, so an entry is missing."""


def records(directory: str) -> Iterator[list[Any]]:
    """The values of all complete records of all processes, also of those that run and go on writing.

    A segment that is removed meanwhile is skipped: its records are in the database by then.

    Raises:
        OSError: a segment cannot be read.
        DamagedJournalError: a record in it cannot be read.
    """
    for path in paths(directory):
        damage = [0]
        try:
            # The last record may be half written: its call has not returned.
            yield from read(path, damage)
        except FileNotFoundError:
            continue
        except files.UnsafeFileError as error:
            _report(path, f"{error.strerror}, so it has no entries")
        if damage[0]:
            raise DamagedJournalError(f"{path} has {damage[0]} damaged record(s)")


def read(path: str, damage: list[int]) -> Iterator[list[Any]]:
    """The values of every complete record of a segment, skipping what was cut off.

    Args:
        path: the segment's file.
        damage: its first item is increased by the number of damaged records.

    Raises:
        OSError: the file cannot be read.
    """
    with (
        files.closing(files.open_file(path, os.O_RDONLY, private=False)) as fd,
        open(fd, "rb", closefd=False) as file,
    ):
        for line in _lines(file):
            if line != b"\n":
                values = decode(line)
                if values is not None:
                    yield values
                elif len(line) >= _LONGEST_LINE or not is_cut_off(line):
                    damage[0] += 1


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file; of one that is longer than any record, only the beginning.

    Nothing after a line that does not end for long: a damaged size may be of any number of zeros.
    """
    while line := file.readline(_LONGEST_LINE):
        rest, skipped = line, 0
        while len(rest) == _LONGEST_LINE and not rest.endswith(b"\n") and skipped < _MOST_SKIPPED:
            rest = file.readline(_LONGEST_LINE)
            skipped += len(rest)
        yield line
        if skipped >= _MOST_SKIPPED:
            return


def counted(rows: Iterable[Sequence[Any]], since: float | None, tags: Mapping[str, str] | None) -> int:
    """What budgets count of entries since a time with these tags, in nano-dollars, as the database sums it.

    Args:
        rows: the values of records.
        since: seconds since the epoch; None for any time.
        tags: as in `Ledger.by`.
    """
    wanted = clean_tags(tags or {})
    total = 0
    for row in rows:
        cost = row[_COST] if row[_BUDGET] is None else row[_BUDGET]
        if cost is not None and matches(row, since, wanted):
            total += cost
    return total


def matches(row: Sequence[Any], since: float | None, tags: Mapping[str, str]) -> bool:
    """Whether a record is of a time and has these tags, which are as `clean_tags` returns them."""
    if since is not None and row[_TIME] < since:
        return False
    held = tags_of(row)
    return all((held.get(name) or "") == value for name, value in tags.items())


def tags_of(row: Sequence[Any]) -> Mapping[str, str]:
    """The tags of a record."""
    return row[_TAGS] or {}


def has_orphans(directory: str) -> bool:
    """Whether a process has ended without closing its ledger."""
    found = False
    for segment in orphans(directory):
        segment.release()
        found = True
    return found
