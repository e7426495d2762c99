"""Checks what Redis answers: whatever is there, it may be another server, or have been changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MOST = 1 << 59
"""The largest number of permits, tokens, nanoseconds or nano-dollars that is believed."""
_LONGEST = 30  # characters of a number


class UnexpectedAnswerError(ValueError):
    """An answer is not what the script returns."""


def whole(word: Any, least: int = 0, most: int = MOST) -> int:
    """An integer of an answer.

    Raises:
        UnexpectedAnswerError: it is none, or out of range.
    """
    text = str(word) if isinstance(word, (str, int)) else ""
    digits = text.removeprefix("-")
    if not 0 < len(text) <= _LONGEST or not (digits.isascii() and digits.isdecimal()):
        raise UnexpectedAnswerError("not an integer")
    value = int(text)
    if not least <= value <= most:
        raise UnexpectedAnswerError("a number out of range")
    return value


def words(answer: Any, count: int) -> list[str]:
    """The words of an answer that is one line of text.

    Raises:
        UnexpectedAnswerError: it is none, or has another number of words.
    """
    found = answer.split(" ", count) if isinstance(answer, str) else []
    if len(found) != count:
        raise UnexpectedAnswerError("another number of words")
    return found


def items(answer: Any, least: int) -> Sequence[Any]:
    """The items of an answer that is a list.

    Raises:
        UnexpectedAnswerError: it is none, or is too short.
    """
    if not isinstance(answer, list) or len(answer) < least:
        raise UnexpectedAnswerError("not a list")
    return answer
