"""The part of orjson's interface that the package uses, over the standard library's `json`.

It is for builds of Python that orjson has no wheel for, such as free-threaded ones. Values and errors are
equal. It is several times slower, and bytes may differ where JSON allows it: ``1e+16`` for ``1e16``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import is_dataclass
from enum import Enum
from json import JSONDecodeError
from typing import Any
from uuid import UUID

OPT_INDENT_2 = 1
OPT_NON_STR_KEYS = 4
OPT_SORT_KEYS = 32
OPT_PASSTHROUGH_DATETIME = 512
OPT_PASSTHROUGH_DATACLASS = 2048

_DEEPEST_READ = 1024
_DEEPEST_WRITTEN = 254
_FEWEST, _MOST = -(2**63), 2**64 - 1


class JSONEncodeError(TypeError):
    """A value cannot be written."""


class Fragment:
    """A document that is written as it is."""

    def __init__(self, contents: bytes | str) -> None:
        self.contents = contents


def loads(data: bytes | bytearray | memoryview | str) -> Any:
    """The value of a document.

    Raises:
        JSONDecodeError: as orjson raises it, in its words where these tell what is wrong.
    """
    if isinstance(data, str):
        text = data
        if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
            raise JSONDecodeError(_NOT_UTF8, "", 0)
    else:
        raw = bytes(data)
        if raw.startswith(b"\xef\xbb\xbf"):
            raise JSONDecodeError("UTF-8 byte order mark (BOM) is not supported", "", 0)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            raise JSONDecodeError(_NOT_UTF8, "", 0) from None
    if not text:
        raise JSONDecodeError("Input is a zero-length, empty document", "", 0)
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite, parse_int=_integer)
    except JSONDecodeError as error:
        ended = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        raise JSONDecodeError("unexpected end of data" if ended else error.msg, text, error.pos) from None
    except _Refused as refused:
        raise JSONDecodeError(refused.args[0], "", 0) from None
    except RecursionError:
        raise JSONDecodeError("depth limit exceeded", "", 0) from None
    if "\\u" in text and _has_surrogate(value):
        raise JSONDecodeError("no low surrogate in string", "", 0)
    return value


_NOT_UTF8 = "str is not valid UTF-8: surrogates not allowed"


class _Refused(Exception):
    """What `json` reads and orjson does not."""


def _no_constant(name: str) -> Any:
    raise _Refused("unexpected character, expected a JSON value")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise _Refused("number is infinity when parsed as double")
    return number


def _integer(text: str) -> int | float:
    number = int(text) if len(text) < 21 else _MOST + 1
    return number if _FEWEST <= number <= _MOST else _finite(text)


def _has_surrogate(value: Any) -> bool:
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, str):
            if not part.isascii() and any("\ud800" <= char <= "\udfff" for char in part):
                return True
        elif isinstance(part, dict):
            pending += part.keys()
            pending += part.values()
        elif isinstance(part, list):
            pending += part
    return False


def dumps(value: Any, default: Callable[[Any], Any] | None = None, option: int | None = None) -> bytes:
    """The document of a value.

    Raises:
        JSONEncodeError: as orjson.
    """
    wanted = option or 0
    plain = _plain(value, default, wanted, 0, 0)
    indent = 2 if wanted & OPT_INDENT_2 else None
    text = json.dumps(
        plain,
        ensure_ascii=False,
        separators=(",", ": " if indent else ":"),
        indent=indent,
        sort_keys=bool(wanted & OPT_SORT_KEYS),
    )
    return text.encode()


def _plain(value: Any, default: Callable[[Any], Any] | None, option: int, depth: int, stood_in: int) -> Any:
    """The value as `json` writes it like orjson."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return _plain(value.value, default, option, depth, stood_in)
    if isinstance(value, str):
        return _checked(value)
    if isinstance(value, int):
        if not _FEWEST <= value <= _MOST:
            raise JSONEncodeError("Integer exceeds 64-bit range")
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if depth >= _DEEPEST_WRITTEN:
        raise JSONEncodeError("Recursion limit reached")
    if isinstance(value, dict):
        found = {}
        for key, item in value.items():
            if not isinstance(key, str):
                if not option & OPT_NON_STR_KEYS:
                    raise JSONEncodeError("Dict key must be str")
                key = json.dumps(key) if key is None or isinstance(key, (bool, int, float)) else str(key)
            found[_checked(key)] = _plain(item, default, option, depth + 1, stood_in)
        return found
    if isinstance(value, (list, tuple)):
        return [_plain(item, default, option, depth + 1, stood_in) for item in value]
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Fragment):
        return json.loads(value.contents)
    if is_dataclass(value) and not isinstance(value, type) and not option & OPT_PASSTHROUGH_DATACLASS:
        return _plain(vars(value), default, option, depth, stood_in)
    if default is None:
        raise JSONEncodeError(f"Type is not JSON serializable: {type(value).__name__}")
    if stood_in >= _DEEPEST_WRITTEN:
        raise JSONEncodeError("default serializer exceeds recursion limit")
    try:
        instead = default(value)
    except Exception as error:
        raise JSONEncodeError(f"Type is not JSON serializable: {type(value).__name__}") from error
    return _plain(instead, default, option, depth, stood_in + 1)


def _checked(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise JSONEncodeError(_NOT_UTF8) from None
    return str(text)


__all__ = [
    "OPT_INDENT_2",
    "OPT_NON_STR_KEYS",
    "OPT_PASSTHROUGH_DATACLASS",
    "OPT_PASSTHROUGH_DATETIME",
    "OPT_SORT_KEYS",
    "Fragment",
    "JSONDecodeError",
    "JSONEncodeError",
    "dumps",
    "loads",
]
