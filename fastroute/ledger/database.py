"""What a ledger needs of a database, whichever it is: its failures, its readings, its connections.

A `LedgerStorage` says where entries are kept and opens connections; a `LedgerConnection` is one connection,
used by one thread of one process at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import orjson

from fastroute.types import Attempt

from .journal import FIELDS, clean_tags, clean_text

Durability = Literal["process", "power"]

DAY_SECONDS = 86_400
MOST_KEYS = 4
GROUPS = ("model", "tier", "level", "endpoint", "provider", "day", "outcome")
"""What entries may be grouped by, beside ``tag:NAME``."""
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
    """The database cannot be had or written at present; nothing was committed."""


class RowsRejected(Exception):
    """The database will never take one of the rows; nothing was committed."""


class DatabaseCorrupt(Exception):
    """The file is a damaged database, or none at all.

    Attributes:
        inode: which file was found so, for another process may have replaced it since.
    """

    def __init__(self, reason: str, inode: tuple[int, int] | None) -> None:
        super().__init__(reason)
        self.inode = inode


class LedgerConnection(Protocol):
    """One connection, its schema brought up to date.

    Every method but `close` raises `DatabaseUnavailable`; those of a file `DatabaseCorrupt` too.
    """

    def insert(self, rows: Sequence[Sequence[Any]]) -> None:
        """Commits rows in the order of `FIELDS`, all or none; one whose id is there already is passed over.

        Raises:
            RowsRejected: one of them can never be taken.
        """

    @property
    def replaced(self) -> bool:
        """Whether the place now names another database than the one this connection writes to."""

    def check(self) -> None:
        """Looks for damage; in a file that takes about a second a gigabyte.

        Raises:
            DatabaseCorrupt: there is some.
        """

    def close(self) -> None:
        """Closes the connection."""

    def sums(self, keys: Sequence[str], where: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """The values of ``keys`` and the sums of every group, in the order of the keys' values."""

    def spent(self, where: Mapping[str, Any]) -> int:
        """The exact sum of known costs, nano-dollars."""

    def usages(self, where: Mapping[str, Any]) -> tuple[list[tuple[int, ...]], list[tuple[int, int]]]:
        """Successful entries by day and tokens, with their count and cost; see `USAGE`.

        Beside them, by day, how many successful entries have no known cost and are therefore left out.
        """

    def entries(self, where: Mapping[str, Any], limit: int | None) -> list[Attempt]:
        """Entries, newest first."""


class LedgerStorage(Protocol):
    """Where a ledger's entries are kept.

    Attributes:
        name: for people and logs; it holds no secret.
        journal: the directory of this machine's journal.
    """

    name: str
    journal: str

    def prepare(self) -> str | None:
        """Finds out at once whether this can be a ledger; being busy or away is no reason to fail.

        Returns:
            Why it cannot be used at present, or None.

        Raises:
            ConfigError: it cannot be a ledger.
            DatabaseCorrupt: it is one, and damaged.
        """

    def connect(self) -> LedgerConnection:
        """A new connection.

        Raises:
            ConfigError: what is there is no ledger, or of a newer release.
            DatabaseCorrupt, DatabaseUnavailable: as the names say.
        """

    def set_aside(self, damage: DatabaseCorrupt) -> str | None:
        """Puts a damaged database out of the way, so that a new one can take its place.

        Returns:
            What was done, for the log; None if another process was faster.
        """

    def unsure_until(self) -> tuple[float, str] | None:
        """The time before which entries may be missing, and where that is written; None if all are there."""


def filters(
    since: float | None,
    until: float | None,
    tags: Mapping[str, str] | None,
    **equal: str | None,
) -> dict[str, Any]:
    """The bound values of a reading's conditions."""
    return {
        "since": -1e300 if since is None else since,
        "until": 1e300 if until is None else until,
        "tags": orjson.dumps(clean_tags(tags)).decode() if tags else None,
        **{name: equal.get(name) for name in FILTERS},
    }


def check_keys(keys: Sequence[str]) -> None:
    """Refuses what entries cannot be grouped by."""
    for key in keys:
        if key not in GROUPS and not (key.startswith("tag:") and len(key) > 4):
            raise ValueError(f"cannot group by {key!r}: use one of {', '.join(GROUPS)} or tag:NAME")
    if len(keys) > MOST_KEYS:
        raise ValueError(f"cannot group by {len(keys)} keys at once: use {MOST_KEYS} at most")


def grouped(keys: Sequence[str], where: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of sums by these keys: `filters`' own, and for each place a key and the tag it names."""
    chosen = dict(where)
    for n in range(MOST_KEYS):
        key, _, tag = clean_text(keys[n] if n < len(keys) else "").partition(":")
        chosen[f"key{n}"] = key
        chosen[f"tag{n}"] = tag
    return chosen


def as_attempt(row: Sequence[Any]) -> Attempt:
    """An entry as it was recorded, from its columns in the order of `FIELDS`; tags are JSON text or None."""
    values = dict(zip(FIELDS, row))
    values["tags"] = orjson.loads(values["tags"]) if values["tags"] else {}
    values["stream"] = bool(values["stream"])
    values["maybe_billed"] = bool(values["maybe_billed"])
    return Attempt(**values)


def newer_schema(name: str, found: int, known: int) -> str:
    """What to say of a database that a later release has written."""
    return (
        f"{name} was written by a newer fastroute (schema {found}; this one knows up to {known}); "
        "upgrade fastroute or name another ledger"
    )
