"""Checks of single values for the configuration and the catalogue; messages say what would be right.

Owns the attrs validators and how a value may be shown in a message. Which key has which check is said
where the key is defined; how keys relate to each other is `config`'s business.

Every validator raises `ValueError` with "what is wrong, what would be right" and no path: the reader of
the file knows the path. Types are checked too, so that a value made in Python is held to the same rules
as one from a file: no number is made of a string, and a bool is no int.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from .messages import did_you_mean, show

Validator = Callable[[Any, Any, Any], None]


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
