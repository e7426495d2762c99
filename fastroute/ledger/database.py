"""The interface of the ledger's two databases, SQLite and PostgreSQL, and what they share.

A `LedgerStorage` says where entries are kept and opens connections; a `LedgerConnection` is one connection,
used by one thread of one process at a time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from fastroute import json_codec
from fastroute.types import Attempt

from .journal import FIELDS, clean_tags, clean_text

Durability = Literal["process", "power"]

DAY_SECONDS = 86_400
MOST_KEYS = 4
GROUPS = ("model", "tier", "level", "endpoint", "provider", "day", "outcome", "service_tier")
"""Keys to group entries by, besides ``tag:NAME``."""
USAGE = (
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
)
"""The columns of `LedgerConnection.usages` between day and count."""
FILTERS = ("model", "tier", "endpoint", "provider", "outcome")


class DatabaseUnavailable(Exception):
    """The database cannot be reached or written now; nothing was committed."""


class RowsRejected(Exception):
    """The database can never accept one of the rows; nothing was committed."""


class DatabaseCorrupt(Exception):
    """The file is a damaged database or no database.

    Attributes:
        inode: device and inode of that file. Another process may have replaced it since.
    """

    def __init__(self, reason: str, inode: tuple[int, int] | None) -> None:
        super().__init__(reason)
        self.inode = inode


class LedgerConnection(Protocol):
    """One connection to a database with the current schema.

    Every method except `close` raises `DatabaseUnavailable`, and for a file `DatabaseCorrupt`.
    """

    def insert(self, rows: Sequence[Sequence[Any]]) -> None:
        """Commits rows, with values in the order of `FIELDS`, all or none. Rows with a known id are skipped.

        Raises:
            RowsRejected: the database can never accept one of them.
        """

    @property
    def replaced(self) -> bool:
        """Whether the storage's path now names another file than the one of this connection."""

    def check(self, *, rows: bool = False) -> None:
        """Checks for damage; about one second for a gigabyte of a file.

        Args:
            rows: whether to check the values of all entries too, which takes several times as long.

        Raises:
            DatabaseCorrupt: the database is damaged.
        """

    def close(self) -> None:
        """Closes the connection."""

    def sums(self, keys: Sequence[str], where: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """The keys' values and the sums of each group, ordered by the keys' values."""

    def index_tag(self, name: str) -> None:
        """Makes `spent` quick for entries with one value of this tag."""

    def spent(self, where: Mapping[str, Any]) -> int:
        """What budgets count, in nano-dollars: an exact sum."""

    def usages(self, where: Mapping[str, Any]) -> tuple[list[tuple[int, ...]], list[tuple[int, int]]]:
        """Successful entries with a known cost, grouped by day and tokens, with count and cost; see `USAGE`.

        The second list counts, for each day, the successful entries with an unknown cost.
        """

    def entries(self, where: Mapping[str, Any], limit: int | None) -> list[Attempt]:
        """Entries, newest first."""


class LedgerReader(Protocol):
    """A connection that only reads; see `LedgerConnection` for its methods."""

    def spent(self, where: Mapping[str, Any]) -> int: ...
    def close(self) -> None: ...


class LedgerStorage(Protocol):
    """Where a ledger keeps its entries.

    Attributes:
        name: for messages and logs; contains no secret.
        journal: the directory of this machine's journal.
    """

    name: str
    journal: str

    def prepare(self) -> str | None:
        """Checks whether the database can be a ledger.

        Returns:
            Why it is unavailable now, or None.

        Raises:
            ConfigError: it cannot be a ledger.
            DatabaseCorrupt: it is damaged.
        """

    def connect(self) -> LedgerConnection:
        """Opens a new connection.

        Raises:
            ConfigError: the database is not a ledger, or of a newer release.
            DatabaseCorrupt, DatabaseUnavailable: see there.
        """

    def read(self) -> LedgerReader:
        """Opens a connection that only reads, and needs neither a lock nor room on the disk where possible.

        Raises:
            ConfigError, DatabaseCorrupt, DatabaseUnavailable: as `connect`.
        """

    def set_aside(self, damage: DatabaseCorrupt) -> str | None:
        """Moves a damaged database away, so that a new one can be created.

        Returns:
            What was done, for the log; None if another process has done it.
        """

    def leave_mark(self, where: str) -> str:
        """Marks that entries before now may be missing; returns the path of the mark.

        Args:
            where: the damaged file.

        Raises:
            OSError: the mark cannot be written. Then the damaged file must stay where it is.
        """

    def unsure_until(self) -> tuple[float, str] | None:
        """The time before which entries may be missing, and the file that says so; None if none are."""


def filters(
    since: float | None,
    until: float | None,
    tags: Mapping[str, str] | None,
    without: Sequence[str] = (),
    **equal: str | None,
) -> dict[str, Any]:
    """The bound values of a query's conditions.

    Args:
        since, until, tags, **equal: as in `Ledger.by`.
        without: ids of entries that `LedgerConnection.spent` leaves out.
    """
    return {
        "since": -1e300 if since is None else since,
        "until": 1e300 if until is None else until,
        "tags": json_codec.dumps(clean_tags(tags)).decode() if tags else None,
        "without": json_codec.dumps(list(without)).decode(),
        **{name: equal.get(name) for name in FILTERS},
    }


_PLAIN_TAG = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def only_tag(where: Mapping[str, Any]) -> tuple[str, str] | None:
    """Name and value, if `filters` has one tag only, whose name SQL can contain as it is."""
    if where["tags"] is None or any(where[name] is not None for name in FILTERS):
        return None
    tags = json_codec.loads(where["tags"])
    name, value = next(iter(tags.items()))
    return (name, value) if len(tags) == 1 and is_plain(name) else None


def is_plain(tag: str) -> bool:
    """Whether a tag's name can be a part of an SQL statement."""
    return _PLAIN_TAG.fullmatch(tag) is not None


def check_keys(keys: Sequence[str]) -> None:
    """Raises ValueError if entries cannot be grouped by these keys."""
    for key in keys:
        if key not in GROUPS and not (key.startswith("tag:") and len(key) > 4):
            raise ValueError(f"cannot group by {key!r}; use one of {', '.join(GROUPS)} or tag:NAME")
    if len(keys) > MOST_KEYS:
        raise ValueError(f"cannot group by {len(keys)} keys; use at most {MOST_KEYS}")


def grouped(keys: Sequence[str], where: Mapping[str, Any]) -> dict[str, Any]:
    """The bound values of a query for sums: those of `filters`, and for each position a key and its tag."""
    chosen = dict(where)
    for n in range(MOST_KEYS):
        key, _, tag = clean_text(keys[n] if n < len(keys) else "").partition(":")
        chosen[f"key{n}"] = key
        chosen[f"tag{n}"] = tag
    return chosen


def as_attempt(row: Sequence[Any]) -> Attempt:
    """The entry of a row with columns in the order of `FIELDS`; tags are JSON text or None.

    Raises:
        ValueError, TypeError: the tags are damaged.
    """
    values = dict(zip(FIELDS, row))
    tags = json_codec.loads(values["tags"]) if values["tags"] else {}
    if type(tags) is not dict:
        raise ValueError("tags: must be an object")
    values["tags"] = tags
    values["stream"] = bool(values["stream"])
    values["maybe_billed"] = bool(values["maybe_billed"])
    return Attempt(**values)


def newer_schema(name: str, found: int, known: int) -> str:
    """The message for a database that a later release has written."""
    return (
        f"{name} was written by a newer fastroute (schema {found}; this release knows up to {known}); "
        "upgrade fastroute or use another ledger"
    )
