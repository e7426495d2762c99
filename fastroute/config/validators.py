"""Validators of single values, for attrs classes.

A table's class says which key has which validator. A validator raises `InvalidValue` with the attribute's
name, what is wrong and what would be right; the reader of a file puts the table's path in front. Types are
checked too, so a value made in Python meets the same rules as one from a file: a string is not a number,
and a bool is not an integer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from fastroute.types import PRIORITIES

from .messages import quoted, show, unknown
from .redis_url import is_redis_url, read_redis_url

Validator = Callable[[Any, Any, Any], None]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}")
_CLASSIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PARAMETER = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")
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
# Parameters by which other libraries and gateways let a body choose its destination or credentials.
STEERING = frozenset(
    {
        "api_base",
        "api_key",
        "api_type",
        "api_version",
        "azure_ad_token",
        "azure_endpoint",
        "base_url",
        "custom_llm_provider",
        "default_headers",
        "default_query",
        "extra_body",
        "extra_headers",
        "extra_query",
        "headers",
        "organization",
        "project",
        "proxies",
        "proxy",
        "vertex_credentials",
    }
)
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


class InvalidValue(ValueError):
    """A value that a validator refuses.

    Attributes:
        path: the attribute's name, and the place in its value: ``tiers.low[0]``.
        problem: what is wrong and what would be right.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


# ------------------------------------------------------------------------------------------------- any key


def number(
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    smallest: float = 0,
    unit: str = "",
) -> Validator:
    """A finite int or float within the bounds; ``smallest`` is the least amount that is not 0."""
    right = "must be a number" + _bounds(above, least, most) + (f" ({unit})" if unit else "")

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
            or (above is not None and value <= above)
            or (least is not None and value < least)
            or (most is not None and value > most)
        ):
            raise InvalidValue(attribute.name, f"{right}, not {show(value)}")
        if 0 < value < smallest:
            raise InvalidValue(
                attribute.name, f"must be 0 or at least {smallest:g} ({unit}), not {show(value)}"
            )

    return check


def seconds(*, least: float | None = None, most: float = 86_400) -> Validator:
    """A time; without ``least`` any above 0."""
    return number(above=0 if least is None else None, least=least, most=most, unit="seconds")


def integer(*, least: int, most: int) -> Validator:
    """An int within the bounds, both included."""
    right = "must be an integer" + _bounds(None, least, most)

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise InvalidValue(attribute.name, f"{right}, not {show(value)}")

    return check


def flag(instance: Any, attribute: Any, value: Any) -> None:
    """True or false; 0 and 1 are refused."""
    if not isinstance(value, bool):
        raise InvalidValue(attribute.name, f"must be true or false, not {show(value)}")


def text(*, empty: bool = False, control: bool = False) -> Validator:
    """A string, without control characters unless ``control``."""

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if not isinstance(value, str):
            raise InvalidValue(attribute.name, f"must be a string, not {show(value)}")
        if not value and not empty:
            raise InvalidValue(attribute.name, "must not be empty")
        if not control and _has_control(value):
            raise InvalidValue(attribute.name, "must not contain control characters")

    return check


def one_of(kind: str, known: Collection[str]) -> Validator:
    """One of the strings given; ``kind`` says in messages what they are."""

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if not isinstance(value, str):
            raise InvalidValue(attribute.name, f"must be one of {', '.join(known)}, not {show(value)}")
        if value not in known:
            raise InvalidValue(attribute.name, unknown(kind, value, known))

    return check


def sequence_of(
    item: Validator, *, least: int = 0, most: int | None = None, unique: bool = True
) -> Validator:
    """A tuple (a list in a file) each of whose items passes."""

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if not isinstance(value, (tuple, list)):
            raise InvalidValue(attribute.name, f"must be a list, not {show(value)}")
        if len(value) < least:
            raise InvalidValue(attribute.name, "must not be empty")
        if most is not None and len(value) > most:
            raise InvalidValue(attribute.name, f"must have at most {most} entries, not {len(value)}")
        for place, entry in enumerate(value):
            _check_inside(attribute, f"[{place}]", item, instance, entry)
        if unique and len(set(value)) != len(value):
            raise InvalidValue(attribute.name, "must not have an entry twice")

    return check


def mapping_of(item: Validator) -> Validator:
    """A mapping of non-empty strings to values that pass."""

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if not isinstance(value, Mapping):
            raise InvalidValue(attribute.name, f"must be a table, not {show(value)}")
        for key, entry in value.items():
            if not isinstance(key, str) or not key or _has_control(key):
                raise InvalidValue(
                    attribute.name,
                    f"invalid name {show(key)}; a name must be a non-empty string without control characters",
                )
            _check_inside(attribute, f".{quoted(key)}", item, instance, entry)

    return check


def anything(instance: Any, attribute: Any, value: Any) -> None:
    """Any value: for what is checked elsewhere."""


def _check_inside(attribute: Any, step: str, item: Validator, instance: Any, entry: Any) -> None:
    try:
        item(instance, attribute, entry)
    except InvalidValue as error:
        inner = error.path.removeprefix(attribute.name)
        raise InvalidValue(f"{attribute.name}{step}{inner}", error.problem) from None


def _has_control(value: str) -> bool:
    return any(ord(char) < 32 or ord(char) == 127 for char in value)


def _bounds(above: float | None, least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {_figure(least)} to {_figure(most)}"
    words = []
    if above is not None:
        words.append(f"above {_figure(above)}")
    if least is not None:
        words.append(f"at least {_figure(least)}")
    if most is not None:
        words.append(f"at most {_figure(most)}")
    return " " + " and ".join(words) if words else ""


def _figure(value: float) -> str:
    return f"{value:g}" if abs(value) < 10_000 else f"{value:,.0f}"


# ---------------------------------------------------------------------------------------- keys of one table


def model_name(instance: Any, attribute: Any, value: Any) -> None:
    """A name as callers and providers write it: letters, digits and ``._:/@+-``."""
    text()(instance, attribute, value)
    if not _NAME.fullmatch(value):
        raise InvalidValue(
            attribute.name,
            f"invalid name {show(value)}; use at most 200 letters, digits and . _ : / @ + -, "
            "beginning with a letter or digit",
        )


def is_model_name(value: object) -> bool:
    """Whether `model_name` accepts the value."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def variable_name(instance: Any, attribute: Any, value: Any) -> None:
    """The name of an environment variable, or nothing."""
    if not isinstance(value, str) or (value and not _VARIABLE.fullmatch(value)):
        # It may be the key itself, so the value is never repeated.
        raise InvalidValue(attribute.name, "must be the name of an environment variable, like OPENAI_API_KEY")


def parameter_name(instance: Any, attribute: Any, value: Any) -> None:
    """The name of a parameter that callers may send on to a provider."""
    if not isinstance(value, str) or not _PARAMETER.fullmatch(value):
        raise InvalidValue(attribute.name, f"must be the name of a parameter, like top_k, not {show(value)}")
    if value in STEERING:
        raise InvalidValue(attribute.name, f"{value} decides where a request goes; callers must not set it")


def origin(instance: Any, attribute: Any, value: Any) -> None:
    """The origin of a web page: scheme, host and port; or ``*``."""
    if not isinstance(value, str) or not (value == "*" or _ORIGIN.fullmatch(value)):
        raise InvalidValue(
            attribute.name,
            f"must be an origin like https://app.example, or *; not {show(value)}",
        )


def extra_headers(instance: Any, attribute: Any, value: Any) -> None:
    """HTTP headers to send along: none that carries a key, and none that is computed."""
    mapping_of(_header_value)(instance, attribute, value)
    for header in value:
        path = f"{attribute.name}.{quoted(header)}"
        if not _HEADER.fullmatch(header):
            raise InvalidValue(path, "invalid header name; use letters, digits and dashes")
        if header.lower() in _SECRET_HEADERS:
            raise InvalidValue(path, "this header carries a key; use api_key_env or api_key_file instead")
        if header.lower() in _OWN_HEADERS:
            raise InvalidValue(path, "fastroute sets this header itself; leave it out")


def _header_value(instance: Any, attribute: Any, value: Any) -> None:
    if not isinstance(value, str) or value != value.strip() or any(not " " <= char <= "~" for char in value):
        raise InvalidValue(
            attribute.name, "must be a string of printable ASCII characters without outer spaces"
        )


def azure_version(instance: Any, attribute: Any, value: Any) -> None:
    """A version of Azure's API."""
    if not isinstance(value, str) or not _API_VERSION.fullmatch(value):
        raise InvalidValue(
            attribute.name, f"must be a version of Azure's API, like 2024-10-21, not {show(value)}"
        )


def proxy_url(instance: Any, attribute: Any, value: Any) -> None:
    """The URL of an HTTP proxy, or ``environment``."""
    if value == "environment":
        return
    if not isinstance(value, str) or not re.fullmatch(r"https?://[!-~]+", value):
        # It may hold a password, so it is not repeated.
        raise InvalidValue(
            attribute.name,
            'must be the URL of a proxy, like http://proxy.example.com:3128, or "environment"',
        )


def cache_scope(instance: Any, attribute: Any, value: Any) -> None:
    """``all``, or a list of names of tags."""
    if isinstance(value, str) and value != "all":
        raise InvalidValue(attribute.name, f'must be "all" or a list of tag names, not {show(value)}')
    if value != "all":
        sequence_of(text())(instance, attribute, value)


def state_location(instance: Any, attribute: Any, value: Any) -> None:
    """Where live state is kept."""
    text()(instance, attribute, value)
    if value == "memory" or re.fullmatch(r"machine(:[A-Za-z0-9][A-Za-z0-9._-]{0,63})?", value):
        return
    if value.startswith("/") and not value.endswith("/"):
        return
    if is_redis_url(value):
        try:
            read_redis_url(value)
        except ValueError as error:
            raise InvalidValue(attribute.name, str(error)) from None
        return
    raise InvalidValue(
        attribute.name,
        f'unknown state {show(value)}; use "memory", "machine", "machine:NAME" (letters, digits, ".", "_" '
        'and "-"), the absolute path of a file, redis://HOST:PORT/0, or '
        "redis+sentinel://HOST:PORT,HOST:PORT/SERVICE",
    )


def ledger_location(instance: Any, attribute: Any, value: Any) -> None:
    """A file, a PostgreSQL address without a password, or nothing."""
    text(empty=True)(instance, attribute, value)
    scheme, separator, rest = value.partition("://")
    if not separator:
        return
    # It may hold a password, so no message repeats it.
    if scheme not in ("postgresql", "postgres"):
        raise InvalidValue(
            attribute.name, 'unknown kind of address; use a file, postgresql://… or "" for none'
        )
    address, _, parameters = rest.partition("?")
    user, at, _ = address.partition("/")[0].rpartition("@")
    if (at and ":" in user) or re.search(r"(?:^|&)(?:ssl)?password=", parameters):
        raise InvalidValue(
            attribute.name,
            "contains a password; set PGPASSWORD instead, or name a password file in PGPASSFILE or with "
            "passfile=",
        )


def time_zone(instance: Any, attribute: Any, value: Any) -> None:
    """A time zone that this system knows."""
    text()(instance, attribute, value)
    if value == "UTC":
        return
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidValue(
            attribute.name,
            f"unknown time zone {show(value)}; use one like Europe/Berlin "
            "(if the system has no list of time zones, install the tzdata package)",
        ) from None


def budget_per(instance: Any, attribute: Any, value: Any) -> None:
    """Nothing, or ``tag:NAME``."""
    text(empty=True)(instance, attribute, value)
    if value and not (value.startswith("tag:") and len(value) > len("tag:")):
        raise InvalidValue(attribute.name, f'must be "" or "tag:NAME", not {show(value)}')


def priority_shares(instance: Any, attribute: Any, value: Any) -> None:
    """Shares (0..1] by class of priority."""
    mapping_of(number(above=0, most=1))(instance, attribute, value)
    for priority in value:
        if priority not in PRIORITIES:
            raise InvalidValue(attribute.name, unknown("priority", priority, PRIORITIES))


def classifier_names(instance: Any, attribute: Any, value: Any) -> None:
    """A mapping by names of classifiers."""
    mapping_of(anything)(instance, attribute, value)
    for name in value:
        if not _CLASSIFIER.fullmatch(name):
            raise InvalidValue(
                f"{attribute.name}.{quoted(name)}",
                "invalid name; use at most 100 letters, digits, - and _, beginning with a letter or digit",
            )
