"""Reads TOML of bounded size, with errors fit for people.

Owns the choice of the parser (from Python 3.11 on the standard library's); what tables mean is for others.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from fastroute import errors

_LARGEST_FILE = 4 * 1024 * 1024


def parse(text: str) -> dict[str, Any]:
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


def read(path: Path) -> dict[str, Any]:
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
        return parse(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise errors.ConfigError(f"{path}: is not text in UTF-8, must be a TOML file") from None
    except ValueError as error:
        raise errors.ConfigError(f"{path}: is not valid TOML: {error}") from None
