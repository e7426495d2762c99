"""Writes values, keys and near names for messages.

A message is ``<path>: <what is wrong>; <what would be right>``. Where a value has the wrong type or is out of
range, one clause says both: ``<path>: must be an integer from 1 to 100, not 0``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from typing import Any

# Prefixes of the usual API keys, long runs of letters with digits, UUIDs, and passwords in addresses.
_KEY_LIKE = re.compile(
    r"(?i)\b(sk|pk|rk|gsk|xai|key|token)[-_][a-z0-9]|\bbearer\s|\baiza[a-z0-9]|://[^/]*@"
    r"|(?=[a-z]*[0-9])[a-z0-9_]{24,}|\b[0-9a-f]{8}-[0-9a-f]{4}-"
)
_LONGEST_SHOWN = 60
_MOST_COMPARED = 2000  # names that are looked through for a near one: about 10 ms


def show(value: Any) -> str:
    """A value for a message; of a string that may hold a secret, only that it is one."""
    if isinstance(value, str):
        if _KEY_LIKE.search(value):
            return "a string that may hold a secret (not shown)"
        return repr(value) if len(value) <= _LONGEST_SHOWN else repr(value[:_LONGEST_SHOWN]) + "…"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a huge number"
    if value is None or isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return "a table"
    return "a list" if isinstance(value, (list, tuple)) else f"a value of type {type(value).__name__}"


def hides_secret(text: str) -> bool:
    """Whether a text may hold a secret, so that no message shows it."""
    return _KEY_LIKE.search(text) is not None


def quoted(key: Any) -> str:
    """A key as in a TOML path: in quotes if it has more than letters, digits, _ and -.

    A key that may be a secret put in the wrong place is not shown.
    """
    word = str(key)
    if _KEY_LIKE.search(word):
        return "(a name that may hold a secret, not shown)"
    if word and all(char.isalnum() or char in "_-" for char in word):
        return word[:80]
    return '"' + word[:80].replace('"', "'") + '"'


def near(word: str, known: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """Known names that look like ``word``, nearest first; case is ignored. A higher cutoff finds fewer."""
    import difflib  # only once a name is wrong

    by_lower: dict[str, str] = {}
    for name in islice(known, _MOST_COMPARED):
        by_lower.setdefault(name.lower(), name)
    matches = difflib.get_close_matches(word.lower()[:100], list(by_lower), count, cutoff)
    return [by_lower[match] for match in matches]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` (did you mean X?)``, or nothing if no known name is near."""
    matches = near(word, known)
    return f" (did you mean {matches[0]}?)" if matches else ""


def unknown(kind: str, name: str, known: Collection[str]) -> str:
    """The message for a name that is not known: ``unknown strategy 'x'; use one of …``."""
    return f"unknown {kind} {show(name)}{did_you_mean(name, known)}; use one of {', '.join(known)}"
