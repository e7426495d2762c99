"""Raw tables to configuration values, with every problem and its path.

Owns the one cattrs converter and the translation of its nested errors into lines that begin with a path.
cattrs is imported when the first table is read, because a program that configures itself in Python, or by
provider keys alone, does not need it.

Nothing is coerced: text stays text and a number a number, except that a whole number may stand where a
fraction may. Each key's own check runs while the key is read, so one bad key does not hide the next.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import attrs

from fastroute import errors

from .messages import did_you_mean, quoted, show

T = TypeVar("T")

_LARGEST_FILE = 4 * 1024 * 1024
# What people write where the key itself would go; a literal key is refused and never repeated.
_LITERAL_KEY = re.compile(r"(?i)^(api[_-]?key|key|token|api[_-]?token|secret|password|authorization|bearer)$")


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        ValueError: if it is not TOML; duplicate keys are not TOML either.
    """
    parser = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        tables: dict[str, Any] = parser.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return tables


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: if it cannot be read, is larger than 4 MiB, or is not TOML in UTF-8.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise errors.ConfigError(
            f"{path}: cannot be read ({error.strerror}), must be a readable file"
        ) from None
    except ValueError:
        raise errors.ConfigError("the file's name holds a NUL character, must be a path") from None
    if len(data) > _LARGEST_FILE:
        raise errors.ConfigError(f"{path}: is larger than {_LARGEST_FILE >> 20} MiB, must be smaller")
    try:
        return parse_toml(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise errors.ConfigError(f"{path}: is not text in UTF-8, must be a TOML file") from None
    except ValueError as error:
        raise errors.ConfigError(f"{path}: is not valid TOML: {error}") from None


def read_table(kind: type[T], raw: Any, path: str, problems: list[str]) -> T | None:
    """One table as a value of ``kind``; None if anything is wrong, and ``problems`` says what."""
    from cattrs.errors import BaseValidationError

    try:
        value: T = _converter().structure(raw, kind)
        return value
    except BaseValidationError as error:
        problems += _lines(error, path)
        return None
    except ValueError as error:
        problems.append(f"{path}: {error}")
        return None


@lru_cache(maxsize=1)
def _converter() -> Any:
    import cattrs
    from cattrs.gen import make_dict_structure_fn, override

    converter = cattrs.Converter(detailed_validation=True, forbid_extra_keys=True)
    converter.register_structure_hook_func(lambda kind: not attrs.has(kind), lambda value, _: _frozen(value))

    def for_class(kind: type) -> Any:
        hooks: dict[str, Any] = {}
        for attribute in attrs.fields(attrs.resolve_types(kind)):
            if not attrs.has(attribute.type):
                hooks[attribute.name] = override(struct_hook=_checked(attribute))
        function: Any = make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=True, **hooks)

        def structure(value: Any, _: Any) -> Any:
            if not isinstance(value, Mapping):
                raise ValueError(f"{show(value)} is not a table, must be a table")
            return function(value, kind)

        return structure

    converter.register_structure_hook_factory(attrs.has, for_class)
    return converter


def _checked(attribute: attrs.Attribute[Any]) -> Any:
    """Reads one key: its own check decides about type and range, while the path is known."""

    def read(value: Any, _: Any) -> Any:
        if value is None:
            raise ValueError("is nothing, must be given a value or left out")
        value = _frozen(value)
        if attribute.validator is not None:
            attribute.validator(None, attribute, value)
        return value

    return read


def _frozen(value: Any) -> Any:
    """Lists become tuples and mappings copies, so that nobody changes a configuration from behind."""
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, Mapping):
        return {key: _frozen(item) for key, item in value.items()}
    return value


def _lines(error: Any, path: str) -> Iterable[str]:
    from cattrs.errors import AttributeValidationNote, BaseValidationError, ForbiddenExtraKeysError

    for inner in error.exceptions:
        notes = [
            note for note in getattr(inner, "__notes__", ()) if isinstance(note, AttributeValidationNote)
        ]
        at = f"{path}.{notes[0].name}" if notes else path
        if isinstance(inner, BaseValidationError):
            yield from _lines(inner, at)
        elif isinstance(inner, ForbiddenExtraKeysError):
            known = [field.name for field in attrs.fields(inner.cl)]
            for key in sorted(map(str, inner.extra_fields)):
                yield f"{path}.{quoted(key)}: {unknown_key(key, known)}"
        elif isinstance(inner, KeyError) and not notes:
            yield f"{path}: {inner.args[0]} is missing, must be given"
        elif isinstance(inner, KeyError):
            yield f"{at}: is missing, must be given"
        else:
            yield f"{at}: {inner}"


def unknown_key(key: str, known: Iterable[str]) -> str:
    """What to say of a key that nothing reads."""
    if _LITERAL_KEY.match(key):
        return (
            "keys do not stand in a configuration, must be api_key_env (the name of an environment "
            "variable) or api_key_file (the path of a file)"
        )
    known = list(known)
    return f"unknown key{did_you_mean(key, known)}, must be one of {', '.join(known)}"
