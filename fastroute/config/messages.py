"""How a value, a key or a near name stands in a message."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

# Prefixes of the usual API keys, long runs of letters with digits, UUIDs, and passwords in addresses.
_KEY_LIKE = re.compile(
    r"(?i)\b(sk|pk|rk|gsk|xai|key|token)[-_][a-z0-9]|\bbearer\s|\baiza[a-z0-9]|://[^/]*@"
    r"|(?=[a-z]*[0-9])[a-z0-9_]{24,}|\b[0-9a-f]{8}-[0-9a-f]{4}-"
)
_LONGEST_SHOWN = 60


def show(value: Any) -> str:
    """The value for a message; anything that might be a secret is named by its kind only."""
    if isinstance(value, str):
        if _KEY_LIKE.search(value):
            return "the text given (not shown: it might hold a secret)"
        return repr(value) if len(value) <= _LONGEST_SHOWN else repr(value[:_LONGEST_SHOWN]) + "…"
    if value is None or isinstance(value, (bool, int, float)):
        text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a huge number"
        return {"None": "nothing", "True": "true", "False": "false"}.get(text, text)
    return f"a value of type {type(value).__name__}"


def quoted(key: Any) -> str:
    """A key as it would stand in a TOML path: in quotes if it holds more than letters, digits, _ and -.

    A key that might be a secret put in the wrong place is not shown.
    """
    word = str(key)
    if _KEY_LIKE.search(word):
        return "(a name not shown: it might hold a secret)"
    if word and all(char.isalnum() or char in "_-" for char in word):
        return word[:80]
    return '"' + word[:80].replace('"', "'") + '"'


def near(word: str, known: Iterable[str], count: int = 1) -> list[str]:
    """Known names that look like ``word``, nearest first, whatever the case."""
    import difflib  # only once a name is wrong

    by_lower: dict[str, str] = {}
    for name in known:
        by_lower.setdefault(name.lower(), name)
    matches = difflib.get_close_matches(word.lower()[:100], list(by_lower), count, 0.6)
    return [by_lower[match] for match in matches]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` or nothing."""
    matches = near(word, known)
    return f"; did you mean {matches[0]}?" if matches else ""
