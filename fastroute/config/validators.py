"""Checks of single values for the configuration and the catalogue; messages say what would be right.

Owns the attrs validators and how a value may be shown in a message. Which key has which check is said
where the key is defined; how keys relate to each other is `config`'s business.

Every validator raises `ValueError` with "what is wrong, what would be right" and no path: the reader of
the file knows the path. Types are checked too, so that a value made in Python is held to the same rules
as one from a file: no number is made of a string, and a bool is no int.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from fastroute.types import PRIORITIES

from .messages import did_you_mean, show
from .redis_url import is_redis_url, read_redis_url

Validator = Callable[[Any, Any, Any], None]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_API_VERSION = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(-preview)?|v1|latest|preview")
_SECRET_HEADERS = frozenset(
    {
        "authorization",
        "proxy-authorization",
        "x-api-key",
        "api-key",
        "x-goog-api-key",
        "cookie",
        "x-amz-security-token",
    }
)
# The transport writes these itself; a configured one could contradict the body that is sent.
_OWN_HEADERS = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "host",
        "te",
        "transfer-encoding",
        "upgrade",
    }
)


def number(
    *, above: float | None = None, least: float | None = None, most: float | None = None, unit: str = ""
) -> Validator:
    """An int or float, finite and within the bounds."""
    right = "must be a number" + _bounds(above, least, most, unit)

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{show(value)} is not a number, {right}")
        if not math.isfinite(value) or not _within(value, above, least, most):
            raise ValueError(f"{show(value)} is out of range, {right}")

    return check


def whole(*, least: int, most: int) -> Validator:
    """An int within the bounds, both included."""
    right = "must be a whole number" + _bounds(None, least, most, "")

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{show(value)} is not a whole number, {right}")
        if not least <= value <= most:
            raise ValueError(f"{show(value)} is out of range, {right}")

    return check


def flag(instance: Any, attribute: Any, value: Any) -> None:
    """True or false, nothing that merely looks like it."""
    if not isinstance(value, bool):
        raise ValueError(f"{show(value)} is neither true nor false, must be true or false")


def text(*, empty: bool = False) -> Validator:
    """A string without control characters."""

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if not isinstance(value, str):
            raise ValueError(f"{show(value)} is not text, must be a string in quotes")
        if not value and not empty:
            raise ValueError("is empty, must be some text")
        if any(ord(char) < 32 or ord(char) == 127 for char in value):
            raise ValueError("holds control characters, must be plain text")

    return check


def one_of(known: Collection[str]) -> Validator:
    """One of the words given."""

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if not isinstance(value, str):
            raise ValueError(f"{show(value)} is not text, must be one of {', '.join(known)}")
        if value not in known:
            raise ValueError(
                f"{show(value)} is none of the words known{did_you_mean(value, known)}, "
                f"must be one of {', '.join(known)}"
            )

    return check


def sequence_of(item: Validator, *, unique: bool = True) -> Validator:
    """A tuple (a list in a file) each of whose items passes."""

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if not isinstance(value, (tuple, list)):
            raise ValueError(f"{show(value)} is not a list, must be a list in brackets")
        for entry in value:
            item(instance, attribute, entry)
        if unique and len(set(value)) != len(value):
            raise ValueError("names something twice, must name each only once")

    return check


def mapping_of(item: Validator) -> Validator:
    """A mapping of non-empty strings to values that pass."""
    key_check = text()

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if not isinstance(value, Mapping):
            raise ValueError(f"{show(value)} is not a table, must be a table of names and values")
        for key, entry in value.items():
            key_check(instance, attribute, key)
            try:
                item(instance, attribute, entry)
            except ValueError as error:
                raise ValueError(f"{show(key)}: {error}") from None

    return check


def _within(value: float, above: float | None, least: float | None, most: float | None) -> bool:
    return (
        (above is None or value > above)
        and (least is None or value >= least)
        and (most is None or value <= most)
    )


def _bounds(above: float | None, least: float | None, most: float | None, unit: str) -> str:
    words = []
    if above is not None:
        words.append(f"above {above:g}")
    if least is not None:
        words.append(f"at least {least:g}" if abs(least) < 1e6 else f"at least {least:,}")
    if most is not None:
        words.append(f"at most {most:g}" if abs(most) < 1e6 else f"at most {most:,}")
    return (" " + " and ".join(words) if words else "") + (f" ({unit})" if unit else "")


def seconds(*, least: float | None = None, most: float = 86_400) -> Validator:
    """A time; without ``least`` any above 0."""
    return number(above=0 if least is None else None, least=least, most=most, unit="seconds")


def name(instance: Any, attribute: Any, value: Any) -> None:
    """A name as callers and providers write it: letters, digits and ``._:/@+-``."""
    text()(instance, attribute, value)
    if len(value) > 200 or not _NAME.fullmatch(value):
        raise ValueError(f"{show(value)} is no usable name, must be letters, digits and any of . _ : / @ + -")


def variable(instance: Any, attribute: Any, value: Any) -> None:
    if not isinstance(value, str) or (value and not _VARIABLE.fullmatch(value)):
        # Somebody may have put the key itself here, so the value is never repeated.
        raise ValueError("is not the name of an environment variable, must be like OPENAI_API_KEY")


def headers(instance: Any, attribute: Any, value: Any) -> None:
    mapping_of(_header_value)(instance, attribute, value)
    for header in value:
        if not _HEADER.fullmatch(header):
            raise ValueError(f"{show(header)} is no header name, must be letters, digits and dashes")
        if header.lower() in _SECRET_HEADERS:
            raise ValueError(f"{header} carries a key, must not be set here: use api_key_env or api_key_file")
        if header.lower() in _OWN_HEADERS:
            raise ValueError(f"{header} is set by fastroute itself, must be left out")


def _header_value(instance: Any, attribute: Any, value: Any) -> None:
    if not isinstance(value, str) or value != value.strip() or any(not " " <= char <= "~" for char in value):
        raise ValueError("has a value that cannot be sent, must be printable ASCII without outer spaces")


def api_version(instance: Any, attribute: Any, value: Any) -> None:
    if not isinstance(value, str) or not _API_VERSION.fullmatch(value):
        raise ValueError(f"{show(value)} is no version of Azure's API, must be like 2024-10-21")


def proxy(instance: Any, attribute: Any, value: Any) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"https?://[!-~]+", value):
        # It may hold a password, so it is not repeated.
        raise ValueError("is no proxy's address, must be like http://proxy.example.com:3128")


def scope(instance: Any, attribute: Any, value: Any) -> None:
    if value == "all":
        return
    if isinstance(value, str):
        raise ValueError(f'{show(value)} is no scope, must be "all" or a list of tag names')
    sequence_of(text())(instance, attribute, value)


def state(instance: Any, attribute: Any, value: Any) -> None:
    text()(instance, attribute, value)
    if value == "memory" or re.fullmatch(r"machine(:[A-Za-z0-9][A-Za-z0-9._-]{0,63})?", value):
        return
    if value.startswith("/") and not value.endswith("/") and "\0" not in value:
        return
    if is_redis_url(value):
        read_redis_url(value)
        return
    raise ValueError(
        f'{show(value)} is no state, must be "memory", "machine", "machine:NAME" (letters, digits, ".", "_", '
        '"-"), the absolute path of a file, redis://HOST:PORT/0, or redis+sentinel://HOST:PORT,HOST:PORT/SERVICE'
    )


def ledger(instance: Any, attribute: Any, value: Any) -> None:
    text(empty=True)(instance, attribute, value)
    scheme, separator, rest = value.partition("://")
    if not separator:
        return
    if scheme not in ("postgresql", "postgres"):
        raise ValueError('is an address of no kind known here, must be a file, postgresql://… or "" for none')
    # It may hold a password, so it is not repeated.
    address, _, parameters = rest.partition("?")
    user, at, _ = address.partition("/")[0].rpartition("@")
    if (at and ":" in user) or re.search(r"(?:^|&)(?:ssl)?password=", parameters):
        raise ValueError(
            "holds a password, must not: set PGPASSWORD, or name a file of passwords in PGPASSFILE or with "
            "passfile="
        )


def dollars(instance: Any, attribute: Any, value: Any) -> None:
    number(least=0, most=1e9, unit="USD")(instance, attribute, value)
    if 0 < value < 1e-9:
        raise ValueError(f"{show(value)} is less than can be counted, must be 0 or at least 1e-9 (USD)")


def zone(instance: Any, attribute: Any, value: Any) -> None:
    text()(instance, attribute, value)
    if value == "UTC":
        return
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"{show(value)} is no time zone known here, must be like Europe/Berlin "
            "(where the system has no list of them, the tzdata package brings one)"
        ) from None


def per(instance: Any, attribute: Any, value: Any) -> None:
    text(empty=True)(instance, attribute, value)
    if value and not (value.startswith("tag:") and len(value) > len("tag:")):
        raise ValueError(f'{show(value)} is nothing to count by, must be "" or "tag:NAME"')


def alerts(instance: Any, attribute: Any, value: Any) -> None:
    sequence_of(number(above=0, most=1))(instance, attribute, value)
    if len(value) > 8:
        raise ValueError(f"has {len(value)} entries, must have at most 8")


def shares(instance: Any, attribute: Any, value: Any) -> None:
    mapping_of(number(above=0, most=1))(instance, attribute, value)
    for name in value:
        if name not in PRIORITIES:
            raise ValueError(f"has {show(name)}, which is no class; there are {', '.join(PRIORITIES)}")
