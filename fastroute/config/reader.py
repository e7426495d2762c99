"""Reads TOML files, and their tables into attrs classes, with every problem and its path.

Nothing is coerced: a string stays a string and a number a number. Each key is checked by its own validator
while it is read, so one bad key does not hide the next.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import attrs

from fastroute import errors

from .messages import did_you_mean, quoted, show
from .validators import InvalidValue, Validator, anything, mapping_of

T = TypeVar("T")

_LARGEST_FILE = 4 * 1024 * 1024
_MOST_PARTS = 64  # of a dotted key
_STRINGS = re.compile(
    r'''"""(?:[^\\]|\\.)*?"""|\'{3}.*?\'{3}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|#[^\n]*''', re.DOTALL
)
_BETWEEN_KEYS = re.compile(r"[,=\[\]{}\n]")
# Names of keys under which a literal API key would be written.
_LITERAL_KEY = re.compile(r"(?i)^(api[_-]?key|key|token|api[_-]?token|secret|password|authorization|bearer)$")

# What other libraries call a key.
_OTHER_WORDS = {
    "api_base": "base_url",
    "url": "base_url",
    "host": "base_url",
    "endpoint": "base_url",
    "azure_endpoint": "base_url",
    "key_env": "api_key_env",
    "env_key": "api_key_env",
    "type": "format",
    "model_name": "model",
    "engine": "upstream",
    "deployment": "upstream",
    "azure_deployment": "upstream",
    "requests_per_minute": "rpm",
    "rate_limit": "rpm",
    "tokens_per_minute": "tpm",
    "concurrency": "max_in_flight",
    "max_concurrency": "max_in_flight",
    "max_parallel_requests": "max_in_flight",
    "retries": "max_attempts",
    "max_retries": "max_attempts",
    "num_retries": "max_attempts",
    "routing_strategy": "strategy",
    "period": "window",
    "budget_duration": "window",
    "max_budget": "limit",
    "amount": "limit",
    "database": "ledger",
    "input_cost": "input_price",
    "output_cost": "output_price",
}


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        ValueError: if it is not TOML; duplicate keys are not allowed.
    """
    # Imported by name, so that a packager that reads the code (PyInstaller) finds the module.
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    if _deepest_key(text) > _MOST_PARTS:
        # `tomllib` takes time with the square of the parts: minutes for the largest file.
        raise ValueError(f"a key has more than {_MOST_PARTS} parts")
    try:
        tables: dict[str, Any] = tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return tables


def _deepest_key(text: str) -> int:
    """The most dots in a key, about; exact only where it matters."""
    if not any(line.count(".") > _MOST_PARTS for line in text.splitlines()):
        return 0
    return max(piece.count(".") for piece in _BETWEEN_KEYS.split(_STRINGS.sub("", text)))


def read_shipped(name: str) -> dict[str, Any]:
    """The tables of one of the package's own TOML files, also where a packager has moved them."""
    return parse_toml((files(__package__) / "data" / name).read_text("utf-8"))


def read_text(path: Path) -> str:
    """The text of a TOML file.

    Raises:
        ConfigError: if it cannot be read, is larger than 4 MiB, or is not UTF-8.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_LARGEST_FILE + 1)
    except FileNotFoundError:
        raise errors.ConfigError(
            f"{path}: cannot be read, because it does not exist; use the path of a TOML file "
            "(fastroute init writes a configuration)"
        ) from None
    except OSError as error:
        raise errors.ConfigError(f"{path}: cannot be read ({error.strerror}); use a readable file") from None
    except ValueError:
        raise errors.ConfigError("a path must not contain a NUL character") from None
    if len(data) > _LARGEST_FILE:
        raise errors.ConfigError(f"{path}: must be at most {_LARGEST_FILE >> 20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise errors.ConfigError(f"{path}: is not UTF-8 text; use a TOML file") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: if it cannot be read, is larger than 4 MiB, or is not TOML in UTF-8.
    """
    text = read_text(path)
    try:
        return parse_toml(text)
    except ValueError as error:
        right = "correct it there: text needs quotes, and each key and [table] comes once"
        if path.suffix.lower() in (".json", ".yaml", ".yml"):
            right = f"write the file in TOML, not {path.suffix[1:].upper()}"
        raise errors.ConfigError(f"{path}: is not valid TOML: {error}; {right}") from None


def read_table(kind: type[T], raw: Any, path: str, problems: list[str]) -> T | None:
    """One table as a value of ``kind``; None if anything in it is wrong.

    Args:
        kind: an attrs class. Its attributes are the keys; those with a default may be left out. They may be
            tables too, or tuples or mappings of tables. A class with ``from_text`` is written as a string.
        raw: the table, as TOML or a mapping gives it.
        path: of the table, for messages; empty for a whole file.
        problems: what is wrong is added here.
    """
    if not isinstance(raw, Mapping):
        problems.append(f"{path}: must be a table, not {show(raw)}")
        return None
    before = len(problems)
    attributes = attributes_of(kind)
    for key in raw:
        if key not in attributes:
            problems.append(f"{_below(path, quoted(key))}: {unknown_key(str(key), attributes)}")
    values = {}
    for name, attribute in attributes.items():
        if name in raw:
            values[name] = read_key(attribute, raw[name], path, problems)
        elif attribute.default is attrs.NOTHING:
            problems.append(f"{_below(path, name)}: is missing; {_right(attribute)}")
    return kind(**values) if len(problems) == before else None


def read_entries(attribute: attrs.Attribute[Any], raw: Any, path: str, problems: list[str]) -> dict[Any, Any]:
    """The entries of a list or table that could be read, by place or name.

    Args:
        attribute: a ``tuple`` of tables, or a ``Mapping`` to tables or to values that its validator checks.
        raw: as TOML or a mapping gives it.
        path: of the table that the attribute belongs to.
        problems: what is wrong with the other entries is added here.
    """
    at = _below(path, attribute.name)
    kind, listed = _table_in(attribute.type), get_origin(attribute.type) is tuple
    if not isinstance(raw, (list, tuple) if listed else Mapping):
        right = "a list of tables" if listed else "a table of tables" if kind else "a table"
        hint = f"; write [[{at}]]" if listed and isinstance(raw, Mapping) else ""
        problems.append(f"{at}: must be {right}, not {show(raw)}{hint}")
        return {}
    check = attribute.validator or mapping_of(anything)
    found = {}
    entries: Iterable[tuple[Any, Any]] = raw.items() if isinstance(raw, Mapping) else enumerate(raw)
    for key, entry in entries:
        if listed or _passes(check, attribute, {key: entry}, path, problems):
            step = f"[{key}]" if listed else f".{quoted(key)}"
            value = _read_one(kind, entry, at + step, problems) if kind else _frozen(entry)
            if value is not None:
                found[key] = value
    return found


def read_key(attribute: attrs.Attribute[Any], raw: Any, path: str, problems: list[str]) -> Any:
    """The value of one key of the table at ``path``; None if it is wrong. Arguments as for `read_entries`."""
    kind, container = _table_in(attribute.type), get_origin(attribute.type)
    at = _below(path, attribute.name)
    if raw is None:
        problems.append(f"{at}: must not be None; leave the key out instead")
        return None
    if kind is None:
        value, check = _frozen(raw), attribute.validator
        return value if check is None or _passes(check, attribute, value, path, problems) else None
    if container is tuple or container is Mapping:
        entries = read_entries(attribute, raw, path, problems)
        return tuple(entries.values()) if container is tuple else entries
    return _read_one(kind, raw, at, problems)


def _right(attribute: attrs.Attribute[Any]) -> str:
    """What a required key must be, as its validator says it."""
    try:
        (attribute.validator or anything)(None, attribute, None)
    except InvalidValue as error:
        return error.problem.removesuffix(", not None")
    return "this key is required"


def _read_one(kind: Any, raw: Any, path: str, problems: list[str]) -> Any:
    """One table, or one value of a class that is written as a string."""
    if not hasattr(kind, "from_text"):
        return read_table(kind, raw, path, problems)
    try:
        return kind.from_text(raw)
    except ValueError as error:
        problems.append(f"{path}: {error}")
        return None


def _passes(
    check: Validator, attribute: attrs.Attribute[Any], value: Any, path: str, problems: list[str]
) -> bool:
    try:
        check(None, attribute, value)
    except InvalidValue as error:
        problems.append(_below(path, str(error)))
        return False
    return True


def attributes_of(kind: Any) -> Mapping[str, attrs.Attribute[Any]]:
    """The attributes of a class by name, with their types."""
    return attrs.fields_dict(attrs.resolve_types(kind))


def _table_in(kind: Any) -> Any:
    """The attrs class that a type is, or is a tuple, mapping or option of; None if there is none."""
    return next((each for each in (kind, *get_args(kind)) if attrs.has(each)), None)


def _frozen(value: Any) -> Any:
    """Lists as tuples and mappings as copies, so that later changes of the source change no configuration."""
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, Mapping):
        return {key: _frozen(item) for key, item in value.items()}
    return value


def _below(path: str, step: str) -> str:
    return f"{path}.{step}" if path else step


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The message for a key that the table does not have."""
    if _LITERAL_KEY.match(key):
        return (
            "a configuration must not contain keys; use api_key_env (the name of an environment variable) or "
            "api_key_file (the path of a file)"
        )
    known = list(known)
    meant = _OTHER_WORDS.get(key.lower().replace("-", "_"))
    hint = f" (did you mean {meant}?)" if meant in known else did_you_mean(key, known)
    return f"unknown key{hint}; use one of {', '.join(known)}"
