"""Caller keys and their SQLite file, which `fastroute keys` manages.

A key is ``fr-``, 12 characters that identify it, ``-`` and 256 random bits. The file contains the 12
characters and an HMAC-SHA-256 of the whole key under a pepper. The pepper is in another file or in an
environment variable, so a copy of the key file is not enough to verify guesses. A caller may have several
keys at a time, for rotation.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import quote
from zlib import crc32

from attrs import evolve, field, frozen

from fastroute import errors, json_codec
from fastroute.config import BudgetConfig
from fastroute.platform import files
from fastroute.platform.readable_rows import DAMAGE, as_text
from fastroute.types import REQUEST_ID_TAG

from .key_rows import checked_rows, shortened, structure_problems

DEFAULT_FILE = "fastroute-keys.db"
TOKEN = re.compile(rb"fr-([a-z2-7]{12})-[A-Za-z0-9_-]{43}")
TOKEN_LENGTH = 3 + 12 + 1 + 43

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TAG = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PUBLIC = re.compile(r"[a-z2-7]{12}")
_PUBLIC_SIGNS = "abcdefghijklmnopqrstuvwxyz234567"
_VERSION = 1
_BUSY = 0.5  # seconds to wait for the file's lock; a call may be waiting
_MOST_PER_MINUTE = 1_000_000_000
_MOST_AT_ONCE = 100_000
_MOST_BYTES = 2**40
_WINDOWS = ("day", "month", "total")
_OTHER_LIMITS = ("max_in_flight", "max_body_bytes")
_CHECK = "check"
_PROOF_BYTES = 32
_LATEST = 1e11  # seconds since the epoch, the year 5138
RESERVED_TAGS = frozenset({"key", REQUEST_ID_TAG})

# Each purpose has a key derived from the pepper, so that knowing one does not reveal another.
_FOR_TOKENS = b"fastroute caller key, version 1"
_FOR_CHECK = b"fastroute pepper check, version 1"

_SCHEMA = """
CREATE TABLE callers (
    name TEXT PRIMARY KEY,
    admin INTEGER NOT NULL,
    models TEXT,
    rpm INTEGER,
    tpm INTEGER,
    budgets TEXT NOT NULL,
    tags TEXT NOT NULL,
    created REAL NOT NULL,
    revoked REAL
) STRICT;
CREATE TABLE secrets (
    public TEXT PRIMARY KEY,
    caller TEXT NOT NULL REFERENCES callers (name),
    digest BLOB NOT NULL,
    created REAL NOT NULL,
    expires REAL
) STRICT;
CREATE TABLE pepper (proof BLOB NOT NULL) STRICT;
"""


@frozen
class Caller:
    """The owner of a key, and what its calls may do.

    Attributes:
        name: unique; the tag ``key`` of its calls in the ledger.
        admin: whether it may read all figures under ``/admin``; then it cannot make calls.
        models: names that it may use (models, tiers, ``auto``); None for all.
        rpm, tpm: requests and tokens per minute; None for no limit.
        max_in_flight: calls at once in each worker process, streams included; None for no limit.
        max_body_bytes: size of a request's body; None: as large as the gateway takes.
        budgets: USD by window: ``day``, ``month`` or ``total``.
        tags: tags of its calls that the caller cannot change.
        allowed_tags: tags that the caller may set, each with its values, or None for any value; ``*``
            stands for all tags.
        created, revoked: seconds since the epoch.
    """

    name: str
    admin: bool = False
    models: tuple[str, ...] | None = None
    rpm: int | None = None
    tpm: int | None = None
    budgets: Mapping[str, float] = field(factory=dict)
    tags: Mapping[str, str] = field(factory=dict)
    allowed_tags: Mapping[str, tuple[str, ...] | None] = field(factory=dict)
    max_in_flight: int | None = None
    max_body_bytes: int | None = None
    created: float = 0.0
    revoked: float | None = None

    def may_ask_for(self, model: str) -> bool:
        return self.models is None or model in self.models

    def tag_problem(self, name: str, value: str) -> str | None:
        """Why the caller may not set a tag to a value, or None if it may."""
        allowed = self.allowed_tags
        if name not in allowed:
            if "*" in allowed:
                return None
            return f"the key may not set this tag; it may set {', '.join(allowed) or 'none'}"
        values = allowed[name]
        if values is None or value in values:
            return None
        return f"the key may not set this value; it may set {', '.join(values)}"

    def budget_configs(self) -> tuple[BudgetConfig, ...]:
        """Its budgets as configuration, counted by the tag ``key``, which only the gateway sets."""
        return tuple(
            BudgetConfig(name=f"key-{window}", limit=limit, window=window, per="tag:key")
            for window, limit in self.budgets.items()
        )


@frozen
class StoredSecret:
    """One key of a caller: its hash and the time in which it is valid."""

    public: str
    caller: str
    digest: bytes = field(repr=False)
    created: float
    expires: float | None


@frozen
class Table:
    """The contents of the file.

    Attributes:
        callers: by name, including revoked ones.
        secrets: by their public part.
        problems: what is damaged and left out, one line each.
    """

    callers: Mapping[str, Caller]
    secrets: Mapping[str, StoredSecret]
    problems: tuple[str, ...] = ()


_CALLER_COLUMNS = "name, admin, models, rpm, tpm, budgets, tags, created, revoked"
_SECRET_COLUMNS = "public, caller, digest, created, expires"


def _caller_of(
    name: Any,
    admin: Any,
    models: Any,
    rpm: Any,
    tpm: Any,
    budgets: Any,
    tags: Any,
    created: Any,
    revoked: Any,
) -> tuple[str, Caller]:
    """A caller from its row, of which each value may be damaged.

    Raises:
        ConfigError: a value is impossible. Whatever it limits, the caller must not be without that limit.
    """
    _require(type(name) is str, "name: must be text")
    _require(admin in (0, 1), "admin: must be 0 or 1")
    for label, limit in (("rpm", rpm), ("tpm", tpm)):
        _require(limit is None or type(limit) is int, f"{label}: must be an integer or NULL")
    names = None if models is None else _json(models, "models", list)
    _require(names is None or all(type(each) is str for each in names), "models: must be names")
    limits, labels = _json(budgets, "budgets", dict), _json(tags, "tags", dict)
    _require(all(type(usd) in (int, float) for usd in limits.values()), "budgets: must be numbers")
    # Beside the budgets stand the limits that a file of the first release has no columns for.
    check = limits.pop(_CHECK, None)
    _require(
        check is None or check == _check_of((name, admin, models, rpm, tpm, _dumped(limits), tags)),
        "the row: its check value does not fit",
    )
    others = {name: limits.pop(name, None) for name in _OTHER_LIMITS}
    _require(all(type(each) in (int, type(None)) for each in others.values()), "limits: must be integers")
    caller = Caller(
        name=name,
        admin=bool(admin),
        models=None if names is None else tuple(names),
        rpm=rpm,
        tpm=tpm,
        budgets=limits,
        **others,
        **_unpacked(labels),
        created=_moment(created, "created"),
        revoked=None if revoked is None else _moment(revoked, "revoked"),
    )
    check_caller(caller)
    return name, caller


def _secret_of(public: Any, caller: Any, digest: Any, created: Any, expires: Any) -> tuple[str, StoredSecret]:
    """A secret from its row; ConfigError as in `_caller_of`."""
    _require(type(public) is str and _PUBLIC.fullmatch(public) is not None, "public: must be 12 characters")
    _require(type(caller) is str and _NAME.fullmatch(caller) is not None, "caller: must be a name")
    _require(type(digest) is bytes and len(digest) == 32, "digest: must be 32 bytes")
    return public, StoredSecret(
        public=public,
        caller=caller,
        digest=digest,
        created=_moment(created, "created"),
        expires=None if expires is None else _moment(expires, "expires"),
    )


def _json(text: Any, label: str, kind: type) -> Any:
    try:
        value = json_codec.loads(text)
    except (ValueError, TypeError):
        value = None
    _require(type(value) is kind, f"{label}: must be JSON of a {kind.__name__}")
    return value


def _moment(value: Any, label: str) -> float:
    _require(
        type(value) in (int, float) and 0 <= value <= _LATEST, f"{label}: must be seconds since the epoch"
    )
    return float(value)


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise errors.ConfigError(problem)


def check_caller(caller: Caller) -> None:
    """Checks a caller's values.

    Raises:
        ConfigError: lists every problem.
    """
    problems = []
    if not _NAME.fullmatch(caller.name):
        problems.append("name: must be 1 to 64 letters, digits, dots, dashes or underscores")
    for label, limit in (("rpm", caller.rpm), ("tpm", caller.tpm)):
        if limit is not None and not 0 <= limit <= _MOST_PER_MINUTE:
            problems.append(f"{label}: must be from 0 to {_MOST_PER_MINUTE}")
    if caller.max_in_flight is not None and not 0 <= caller.max_in_flight <= _MOST_AT_ONCE:
        problems.append(f"max-in-flight: must be from 0 to {_MOST_AT_ONCE}")
    if caller.max_body_bytes is not None and not 1 <= caller.max_body_bytes <= _MOST_BYTES:
        problems.append(f"max-body: must be from 1 to {_MOST_BYTES} bytes")
    for window, usd in caller.budgets.items():
        if window not in _WINDOWS:
            problems.append(f"budget: unknown window {window!r}; use one of {', '.join(_WINDOWS)}")
        elif not 1e-9 <= usd <= 1e9:
            problems.append(f"budget: must be from 1e-9 to 1e9 USD for a {window}")
    problems += _tag_problems(caller)
    if caller.models is not None and not all(0 < len(name) <= 200 for name in caller.models):
        problems.append("model: must be the name of a model, an alias, a tier or auto")
    tagged = caller.tags or caller.allowed_tags
    limited = caller.rpm or caller.tpm or caller.budgets or caller.max_in_flight or caller.max_body_bytes
    if caller.admin and (caller.models or limited or tagged):
        problems.append("admin: cannot be combined with limits, models, budgets and tags")
    if problems:
        raise errors.ConfigError(problems)


def _tag_problems(caller: Caller) -> Iterator[str]:
    fixed = {name: (value,) for name, value in caller.tags.items()}
    for option, tags in (("tag", fixed), ("allow-tag", caller.allowed_tags)):
        if len(tags) > 16:
            yield f"{option}: at most 16 are allowed"
        for name, values in tags.items():
            if (name, values, option) == ("*", None, "allow-tag"):
                continue
            if name in RESERVED_TAGS:
                yield f"{option}: {name} is set by the gateway; use another name"
            elif not _TAG.fullmatch(name) or not all(map(_is_value, values or ())):
                yield (
                    f"{option}: must be NAME=VALUE, with a name of letters, digits and _.- and a value of at "
                    "most 128 printable characters"
                )
            elif option == "allow-tag" and name in fixed:
                yield f"allow-tag: {name} is set by --tag; give one of both"
            elif values is not None and not 1 <= len(values) <= 1000:
                yield f"{option}: {name} must have 1 to 1000 values; give the name alone to allow any"


def _is_value(text: str) -> bool:
    return 0 < len(text) <= 128 and text.isprintable()


def _unpacked(labels: Mapping[str, Any]) -> dict[str, Any]:
    """Both kinds of tags from their column; ConfigError as in `_caller_of`."""
    tags: dict[str, str] = {}
    allowed: dict[str, tuple[str, ...] | None] = {}
    for name, value in labels.items():
        listed = type(value) is list and all(type(each) is str for each in value)
        _require(listed or value is None or type(value) is str, "tags: must be text, lists of text, or null")
        if type(value) is str:
            tags[name] = value
        else:
            allowed[name] = tuple(value) if listed else None
    return {"tags": tags, "allowed_tags": allowed}


def _columns_of(caller: Caller) -> tuple[Any, ...]:
    """The columns of a caller up to its tags, with a check value among the limits.

    Without it, a changed digit of a limit, or a limit that is gone, would be as good as any.
    """
    models = None if caller.models is None else _dumped(caller.models)
    others = {name: getattr(caller, name) for name in _OTHER_LIMITS}
    limits = {**caller.budgets, **{name: value for name, value in others.items() if value is not None}}
    start = (caller.name, int(caller.admin), models, caller.rpm, caller.tpm)
    check = _check_of((*start, _dumped(limits), _packed(caller)))
    return (*start, _dumped({**limits, _CHECK: check}), _packed(caller))


def _check_of(columns: tuple[Any, ...]) -> int:
    # Damaged text may have lone surrogates, which are no JSON.
    return crc32(repr(columns).encode("utf-8", "surrogatepass"))


def _dumped(value: Any) -> str:
    return json_codec.dumps(value).decode()


def _packed(caller: Caller) -> str:
    # Both kinds in one column: text is a value that the key sets; null or a list is for the caller to set.
    return _dumped({**caller.tags, **caller.allowed_tags})


class KeyFile:
    """The key file.

    Args:
        path: an SQLite file; the pepper is in ``PATH.pepper`` unless ``pepper_env`` is given.
        pepper_env: the environment variable with the pepper, 32 characters or more.
        now: seconds since the epoch.

    Raises:
        ConfigError: the file is not a key file, not private, or the pepper is missing or a different one.

    Thread safety: any number of threads and processes; every method opens the file anew.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        pepper_env: str | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self._pepper_env = pepper_env
        self._now = now
        self._token_key: bytes | None = None

    # ------------------------------------------------------------------------------------------- changing

    def create(self, caller: Caller) -> str:
        """Adds a caller and returns its key, which cannot be shown again. Creates the file if needed.

        A caller whose row is damaged is replaced; its earlier keys are valid again.

        Raises:
            ConfigError: the name is taken (also by a revoked caller), or a value is invalid.
        """
        check_caller(caller)
        self._make()
        with self._writing() as database:
            intact = checked_rows(database, "callers", _CALLER_COLUMNS, _caller_of, [])
            if caller.name in intact:
                raise errors.ConfigError(
                    f"a key named {caller.name} exists or existed, and its spending is kept under that name; "
                    "use another name, or rotate the key"
                )
            database.execute("DELETE FROM callers WHERE name = ?", (caller.name,))
            database.execute(
                "INSERT INTO callers VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                (*_columns_of(caller), self._now()),
            )
            return self._add_secret(database, caller.name)

    def allow_tags(self, name: str, allowed: Mapping[str, tuple[str, ...] | None]) -> None:
        """Replaces the tags that a caller may set.

        Raises:
            ConfigError: the caller is unknown or revoked, or a value is invalid.
        """
        with self._writing() as database:
            self._live(database, name)
            known = checked_rows(database, "callers", _CALLER_COLUMNS, _caller_of, []).get(name)
            if known is None:
                raise errors.ConfigError(f"the row of {name} is damaged; fastroute keys create replaces it")
            changed = evolve(known, allowed_tags=allowed)
            check_caller(changed)
            *_, limits, tags = _columns_of(changed)
            database.execute("UPDATE callers SET budgets = ?, tags = ? WHERE name = ?", (limits, tags, name))

    def rotate(self, name: str, overlap: float) -> str:
        """Adds a key for a caller and returns it; the caller's other keys expire after ``overlap`` seconds.

        Raises:
            ConfigError: the caller is unknown or revoked.
        """
        if not 0 <= overlap <= 365 * 86_400:
            raise errors.ConfigError("overlap: must be from 0 to 365 days")
        with self._writing() as database:
            self._live(database, name)
            ends = self._now() + overlap
            database.execute(
                "UPDATE secrets SET expires = ? WHERE caller = ? AND (expires IS NULL OR expires > ?)",
                (ends, name, ends),
            )
            database.execute("DELETE FROM secrets WHERE expires <= ?", (self._now(),))
            return self._add_secret(database, name)

    def revoke(self, name: str) -> None:
        """Revokes a caller and all its keys.

        Raises:
            ConfigError: the caller is unknown or revoked already.
        """
        with self._writing() as database:
            self._live(database, name)
            database.execute("UPDATE callers SET revoked = ? WHERE name = ?", (self._now(), name))
            database.execute("DELETE FROM secrets WHERE caller = ?", (name,))

    def _live(self, database: sqlite3.Connection, name: str) -> None:
        row = database.execute("SELECT revoked FROM callers WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise errors.ConfigError(f"no key named {name[:64]!r} exists; fastroute keys list shows all")
        if row[0] is not None:
            raise errors.ConfigError(
                f"the key {name} is already revoked; fastroute keys create makes another"
            )

    def _add_secret(self, database: sqlite3.Connection, caller: str) -> str:
        public = "".join(secrets.choice(_PUBLIC_SIGNS) for _ in range(12))
        token = f"fr-{public}-{secrets.token_urlsafe(32)}"
        database.execute(
            "INSERT INTO secrets VALUES (?, ?, ?, ?, NULL)",
            (public, caller, self.digest(token.encode()), self._now()),
        )
        return token

    # -------------------------------------------------------------------------------------------- reading

    def read(self) -> Table:
        """All callers and secrets that are intact; `Table.problems` names the others.

        Raises:
            ConfigError: the file or the pepper is invalid, or cannot be read now.
        """
        problems: list[str] = []
        with self._opened() as database:
            # In one transaction, so that callers and secrets belong together.
            database.execute("BEGIN")
            callers = checked_rows(database, "callers", _CALLER_COLUMNS, _caller_of, problems)
            found = checked_rows(database, "secrets", _SECRET_COLUMNS, _secret_of, problems)
            if self._proof_matches(database) < _PROOF_BYTES:
                problems.append("pepper: the proof of the pepper is damaged")
            problems += structure_problems(database)
        lost = {secret.caller for secret in found.values()} - callers.keys()
        problems += [f"callers: the row of {name}, which has keys, is damaged" for name in sorted(lost)]
        return Table(callers, found, shortened(problems))

    def digest(self, token: bytes) -> bytes:
        """The hash of a key that is stored."""
        if self._token_key is None:
            self._token_key = hmac.digest(self._pepper(), _FOR_TOKENS, "sha256")
        return hmac.digest(self._token_key, token, "sha256")

    # ---------------------------------------------------------------------------------------- file, pepper

    def _make(self) -> None:
        """Creates the file and the pepper as private files, unless they exist."""
        if os.path.lexists(self.path):
            return
        if self._pepper_env is None and not os.path.lexists(self.path + ".pepper"):
            _create(self.path + ".pepper", secrets.token_hex(32).encode() + b"\n")
        proof = hmac.digest(self._pepper(), _FOR_CHECK, "sha256")
        _create(self.path)
        with self._connected() as database, _transaction(database):
            for statement in _SCHEMA.split(";\n"):
                if statement.strip():
                    database.execute(statement)
            database.execute("INSERT INTO pepper VALUES (?)", (proof,))
            database.execute(f"PRAGMA user_version = {_VERSION:d}")

    def _pepper(self) -> bytes:
        if self._pepper_env is not None:
            pepper = os.environ.get(self._pepper_env, "").strip().encode()
            where = f"the environment variable {self._pepper_env}"
        else:
            where = self.path + ".pepper"
            try:
                with files.closing(files.open_file(where, os.O_RDONLY)) as fd:
                    pepper = os.read(fd, 4096).strip()
            except OSError as error:
                raise errors.ConfigError(
                    f"{where}: cannot be read ({error.strerror}); keys cannot be checked without it"
                ) from None
        if len(pepper) < 32:
            raise errors.ConfigError(f"{where}: the pepper must have 32 characters or more")
        return hashlib.sha256(pepper).digest()

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        # mode=rw: a missing file is an error; SQLite would create an empty one.
        connection = sqlite3.connect(
            f"file:{quote(self.path)}?mode=rw", uri=True, timeout=_BUSY, isolation_level=None
        )
        with closing(connection):
            connection.execute("PRAGMA trusted_schema = OFF")
            yield connection

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            files.check(self.path)
        except FileNotFoundError:
            raise errors.ConfigError(f"{self.path}: does not exist; fastroute keys create makes it") from None
        except files.UnsafeFileError as error:
            raise errors.ConfigError(f"{self.path}: cannot be used ({error.strerror})") from None
        try:
            with self._connected() as database:
                database.text_factory = as_text
                self._check(database)
                yield database
        except sqlite3.OperationalError as error:
            raise errors.ConfigError(f"{self.path}: cannot be used now ({error})") from None
        except DAMAGE as error:
            raise errors.ConfigError(
                f"{self.path}: is not a key file, or is damaged ({error}); restore it from a copy"
            ) from None

    def _check(self, database: sqlite3.Connection) -> None:
        """Checks that the file is a key file, with this pepper.

        Raises:
            ConfigError: it is not.
        """
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version != _VERSION:
            raise errors.ConfigError(f"{self.path}: is not a key file of this release")
        # Nearly the right proof is one that is damaged: another pepper has none of its bytes in common.
        if self._proof_matches(database) < _PROOF_BYTES // 2:
            raise errors.ConfigError(
                f"{self.path}: was made with another pepper; restore the pepper that it was made with"
            )

    def _proof_matches(self, database: sqlite3.Connection) -> int:
        """How many bytes of the proof in the file are those of this pepper."""
        row = database.execute("SELECT proof FROM pepper").fetchone()
        found = row[0] if row is not None and type(row[0]) is bytes else b""
        right = hmac.digest(self._pepper(), _FOR_CHECK, "sha256")
        return sum(each == other for each, other in zip(found, right))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._opened() as database, _transaction(database):
            yield database


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def _create(path: str, content: bytes = b"") -> None:
    try:
        files.create(path, content)
    except OSError as error:
        raise errors.ConfigError(f"{path}: cannot be created ({error.strerror})") from None


def budgets_of(texts: Sequence[str]) -> dict[str, float]:
    """Reads texts such as ``5/day`` as USD by window.

    Raises:
        ConfigError: a text is invalid, or two are for the same window.
    """
    found: dict[str, float] = {}
    for text in texts:
        amount, slash, window = text.partition("/")
        try:
            usd = float(amount)
        except ValueError:
            usd = -1.0
        if not slash or not re.fullmatch(r"[0-9.]{1,20}", amount) or window not in _WINDOWS or usd < 0:
            raise errors.ConfigError(
                f"budget: must be like 5/day, 100/month or 20/total (USD), not {text[:40]!r}"
            )
        if window in found:
            raise errors.ConfigError(f"budget: two are given for a {window}; give one")
        found[window] = usd
    return found


__all__ = ["DEFAULT_FILE", "Caller", "KeyFile", "StoredSecret", "Table", "budgets_of"]


def describe(caller: Caller, table: Table, now: float) -> dict[str, Any]:
    """A caller as plain values, with the public parts of its keys and no secret."""
    return {
        "name": caller.name,
        "admin": caller.admin,
        "models": None if caller.models is None else list(caller.models),
        "rpm": caller.rpm,
        "tpm": caller.tpm,
        "max_in_flight": caller.max_in_flight,
        "max_body_bytes": caller.max_body_bytes,
        "budgets": dict(caller.budgets),
        "tags": dict(caller.tags),
        "allowed_tags": dict(caller.allowed_tags),
        "created": caller.created,
        "revoked": caller.revoked,
        "keys": [
            {"begins": f"fr-{secret.public}", "created": secret.created, "expires": secret.expires}
            for secret in table.secrets.values()
            if secret.caller == caller.name and (secret.expires is None or secret.expires > now)
        ],
    }
