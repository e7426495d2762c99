"""What the processes of this machine have written to their journals, read on from where it was read before.

An entry reaches the database a moment after its call. A sum that must not miss one takes both: the entries in
the journals, and those in the database that are not among them.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from fastroute.platform import files

from . import journal as journals

_PART = 4 << 20  # bytes that are read at once; more than any record has


class JournalTails:
    """The records of all segments of a journal.

    Only what was added since the last look is read, so a look costs a few system calls for each process. A
    segment is removed once the database has its records, so what is remembered is bounded.

    Thread safety: all methods.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._segments: dict[str, _ReadSegment] = {}

    def matching(self, since: float | None, tags: Mapping[str, str]) -> list[list[Any]]:
        """The values of the records since a time with these tags.

        A record that cannot be read is left out: its own process has it in memory too, and writes it to the
        database, or reports it when it drains the journal.

        Raises:
            OSError: the folder or a segment cannot be read.
        """
        with self._lock:
            self._look()
            wanted = journals.clean_tags(tags)
            return [row for row in self._rows(wanted) if journals.matches(row, since, wanted)]

    def _rows(self, tags: Mapping[str, str]) -> Iterator[list[Any]]:
        """Those that may have these tags."""
        tagged = next((item for item in tags.items() if item[1]), None)
        for segment in self._segments.values():
            yield from segment.rows if tagged is None else segment.by_tag.get(tagged, ())

    def _look(self) -> None:
        paths = journals.paths(self._directory)
        for gone in self._segments.keys() - paths:
            del self._segments[gone]
        for path in paths:
            # Removed meanwhile: its records are in the database by then.
            with suppress(FileNotFoundError, files.UnsafeFileError):
                self._segments.setdefault(path, _ReadSegment()).read_on(path)


class _ReadSegment:
    __slots__ = ("by_tag", "read", "rows")

    def __init__(self) -> None:
        self.read = 0  # bytes
        self.rows: list[list[Any]] = []
        self.by_tag: dict[tuple[str, str], list[list[Any]]] = {}

    def read_on(self, path: str) -> None:
        with files.closing(files.open_file(path, os.O_RDONLY, private=False)) as fd:
            before = -1
            while before < self.read:
                before = self.read
                # In parts: a damaged size must not decide how much memory is taken.
                self._take(os.pread(fd, _PART, self.read))

    def _take(self, text: bytes) -> None:
        for line in io.BytesIO(text):
            values = None if line == b"\n" else journals.decode(line)
            if values is not None:
                self.rows.append(values)
                for tag in journals.tags_of(values).items():
                    self.by_tag.setdefault(tag, []).append(values)
            elif not line.endswith(b"\n"):
                break  # half written: it is read once it is complete
            self.read += len(line)
