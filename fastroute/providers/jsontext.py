"""Reads and writes JSON for providers, and decides the cases that orjson refuses or gets wrong.

Reading: NaN, the infinities, numbers that overflow, and nesting deeper than `MAX_DEPTH` are errors. So are
more values than a bound, which are counted before any object is made: three bytes of JSON may become 80 bytes
of objects. Of equal keys the last one counts. A lone surrogate, which models emit when a token boundary falls
inside a character, stays in the string. Bytes that are not UTF-8 become U+FFFD.

Writing: NaN and the infinities are refused, since JSON has no such numbers and orjson would silently write
null. Keys that are not strings are refused, since 1 and "1" would become equal. A lone surrogate is written
as the ``\\u`` escape it was read from. Integers may be of any size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from enum import Enum
from typing import Any
from uuid import UUID

from fastroute import errors, json_codec
from fastroute._core import json_check

# Far deeper than any answer, and shallow enough for recursive code on a thread's stack.
MAX_DEPTH = 128
# The most values of an answer, unless a setting says otherwise: the log probabilities of 11,000 tokens with
# 20 alternatives each, or of 200,000 without alternatives.
MAX_VALUES = 2_000_000
# The most bytes of one key. Models use whole sentences as keys of a tool's arguments.
MAX_KEY_LENGTH = 65536
# The deepest nesting that orjson writes.
_MAX_WRITTEN_DEPTH = 250
_OPTIONS = json_codec.OPT_PASSTHROUGH_DATACLASS | json_codec.OPT_PASSTHROUGH_DATETIME


class TruncatedJSON(ValueError):
    """The JSON stops before its end."""


def check(data: bytes | str, max_values: int = MAX_VALUES) -> int:
    """Checks how deep a document is nested, and how many values and how long keys it has, without parsing it.

    Returns:
        The number of its values.

    Raises:
        JSONBoundsError: a bound is exceeded.
    """
    # A value has at most one key, so the number of keys needs no bound of its own.
    values, _ = json_check(data, MAX_DEPTH, max_values, max_values, MAX_KEY_LENGTH)
    return values


def loads(data: bytes | str, max_values: int = MAX_VALUES) -> Any:
    """The value of a JSON document.

    Raises:
        TruncatedJSON: if it stops before its end.
        JSONBoundsError: if it is nested too deep, or has too many values or too long a key.
        ValueError: if it is not JSON or breaks the rules above. No message contains any of the data.
    """
    check(data, max_values)
    return unbounded(data)


def unbounded(data: bytes | str) -> Any:
    """As `loads`, for a document whose bounds were checked already."""
    try:
        return json_codec.loads(data)
    except json_codec.JSONDecodeError as error:
        return _reread(data, error)


def _reread(data: bytes | str, error: json_codec.JSONDecodeError) -> Any:
    """Reads what only orjson refuses, with `json`: lone surrogates, a BOM, bytes that are not UTF-8."""
    reason = error.msg
    if "unexpected end of data" in reason or not data.strip():
        raise TruncatedJSON("JSON that stops in the middle") from None
    text = data if isinstance(data, str) else data.decode("utf-8", "replace").removeprefix("\ufeff")
    if "surrogate" not in reason and "BOM" not in reason and "UTF-8" not in reason:
        raise ValueError(f"not JSON: {reason}") from None
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_bounded)
    except RecursionError:
        raise ValueError(f"JSON nested more than {MAX_DEPTH} deep") from None
    except json.JSONDecodeError as second:
        if second.pos >= len(text.rstrip()) or second.msg.startswith("Unterminated string"):
            raise TruncatedJSON("JSON that stops in the middle") from None
        raise ValueError(f"not JSON: {second.msg}") from None
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"not JSON: {name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("not JSON: a number out of range")
    return number


def _bounded(text: str) -> int | float:
    # As in orjson, an integer that does not fit into 64 bits becomes a float.
    return int(text) if len(text) < 19 else _finite(text)


def dumps(value: Mapping[str, Any]) -> bytes:
    """The bytes of a request's body.

    Accepts mappings of any kind, tuples, enum members (written as their value) and objects with a
    ``to_dict``, such as a message of an earlier completion.

    Raises:
        BadRequestError: if part of it cannot be written; the message gives the place and the type, never
            the value.
    """
    try:
        encoded = json_codec.dumps(value, _stand_in, _OPTIONS)
    except (TypeError, RecursionError):
        _check(value)
        try:
            return json.dumps(
                value, ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=_stand_in
            ).encode("ascii")
        except (TypeError, ValueError, RecursionError):
            raise errors.BadRequestError("the request cannot be written as JSON") from None
    # orjson writes NaN and the infinities as null, so only output with a null needs the search for them.
    if b"null" in encoded:
        _check(value)
    return encoded


def _stand_in(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Enum):
        return value.value
    to_dict = getattr(value, "to_dict", None)
    if callable(to_dict):
        return to_dict()
    raise TypeError


def _check(root: Any) -> None:
    """Raises for the first value that JSON cannot represent, with its place."""
    pending: list[tuple[str, Any, int]] = [("", root, 0)]
    while pending:
        path, value, depth = pending.pop()
        if depth > _MAX_WRITTEN_DEPTH:
            raise _refused(path, f"is nested more than {_MAX_WRITTEN_DEPTH} deep or contains itself")
        if value is None or isinstance(value, (str, int, UUID)):
            continue
        if isinstance(value, float):
            if not math.isfinite(value):
                raise _refused(path, "must be a finite number")
        elif isinstance(value, Mapping):
            for key, item in value.items():
                if not isinstance(key, str):
                    raise _refused(path, f"has a key of type {type(key).__name__}; keys must be strings")
                pending.append((f"{path}.{key}" if path else key, item, depth + 1))
        elif isinstance(value, (list, tuple)):
            pending += [(f"{path}[{place}]", item, depth + 1) for place, item in enumerate(value)]
        else:
            try:
                pending.append((path, _stand_in(value), depth + 1))
            except TypeError:
                raise _refused(path, f"must be a JSON value, not {type(value).__name__}") from None


def _refused(path: str, why: str) -> errors.BadRequestError:
    shown = path if len(path) <= 80 else path[:77] + "..."
    param = path.partition(".")[0].partition("[")[0]
    return errors.BadRequestError(f"{shown or 'the request'}: {why}", param=param or None)
