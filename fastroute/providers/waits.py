"""Reads how long a provider asks to wait, by tables of fields and wordings.

Headers come first (`limit_headers.py`), then the error's fields, its text, and the resets of spent limits. A
recorded answer for each line of the tables is in ``tests/providers/waits.jsonl``; to add a wording, add an
answer there and a line here. `calls/retry.py` decides what to do about a wait.

Only temporary refusals are read for this. A permanent one may quote the caller's text, and one caller who
writes "try again in 10 hours" must not make all others wait.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from . import limit_headers
from .limit_headers import seconds_until

# Paths into an error object, each with its units per second; "*" stands for every item of a list. The first
# that gives a time is used.
FIELDS: tuple[tuple[tuple[str, ...], int], ...] = (
    (("details", "*", "retryDelay"), 1),  # Google's RetryInfo
    (("details", "*", "retry_delay", "seconds"), 1),
    (("details", "retry_after"), 1),
    (("details", "retry_after_seconds"), 1),
    (("metadata", "retry_after_seconds"), 1),  # OpenRouter
    (("metadata", "retry_after_ms"), 1000),
    (("retry_after_ms",), 1000),
    (("retry_after_seconds",), 1),
    (("retry_after",), 1),
    (("retryAfter",), 1),
    (("resets_in_seconds",), 1),  # OpenAI's plans, and relays of them
    (("resets_at",), 1),
)
# Where a relay keeps headers in the body of an error: OpenRouter.
HEADERS = (("metadata", "headers"), ("headers",))

UNITS: tuple[tuple[str, float], ...] = (
    (r"ms|msecs?|milli(?:second)?s?|毫秒", 0.001),
    (r"s|secs?|seconds?|秒钟?", 1.0),
    (r"m|mins?|minutes?|分钟?", 60.0),
    (r"h|hrs?|hours?|(?:个)?小时", 3600.0),
    (r"d|days?|天", 86400.0),
)
_UNIT = "|".join(pattern for pattern, _ in UNITS)
_PART = re.compile(rf"([0-9]{{1,9}}(?:\.[0-9]{{1,12}})?) ?({_UNIT})(?![a-z])", re.IGNORECASE | re.ASCII)
_SPAN = rf"((?:[0-9]{{1,9}}(?:\.[0-9]{{1,12}})? ?(?:{_UNIT})(?![a-z])(?:,? (?:and )?)?)+)"
# Go writes "7m12s", with neither a blank nor the end of a word between the parts.
_GO = r"((?:[0-9]{1,9}(?:\.[0-9]{1,12})?(?:h|ms|m|s)){1,4})(?![a-z])"
_CLOCK = r"([0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,12})?)?) ?(?:Z|UTC|GMT|\+00:00)"
_DAY = rf"([0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}})[Tt ](?:at )?{_CLOCK}"

# Words before a duration.
BEFORE_SPANS = (
    r"(?:try|come) again (?:in|after|within)",
    r"retry(?:ing)?(?: (?:your|the) request| again)? (?:in|after)",
    r"retry[-_ ]after\W{1,4}",
    r"please wait(?: for)?",
    r"(?<!connection )resets? (?:in|after)",
    r"available(?: again)? in",
    r"请(?:在|等待|于)?",
)
# Words before a point in time.
BEFORE_MOMENTS = (
    r"(?:try again|retry) (?:at|after|on)",
    r"resets? (?:at|on)",
    r"regain access (?:at|on)",
    r"available(?: again)? (?:at|on)",
)
_ABOUT = r" ?(?:about |approximately |at least |another )?"
_SPANS = tuple(
    re.compile(rf"(?:{'|'.join(BEFORE_SPANS)}){_ABOUT}{span}", re.IGNORECASE | re.ASCII)
    for span in (_GO, _SPAN)
)
_MOMENT = re.compile(rf"(?:{'|'.join(BEFORE_MOMENTS)}) {_DAY}", re.IGNORECASE | re.ASCII)
_TEXT_LIMIT = 4_000  # characters of a message that are read


def wait_in_error(fields: Mapping[str, Any], text: str, now: float) -> float | None:
    """Seconds that an error's fields or its text ask to wait; None if they name no time.

    Args:
        fields: the error object.
        text: the error's message.
        now: when it was sent, seconds since the epoch.
    """
    for path, unit in FIELDS:
        for value in at_path(fields, path):
            seconds = seconds_until(value, now)
            if seconds is not None and seconds > 0:
                return seconds / unit
    for path in HEADERS:
        for value in at_path(fields, path):
            if isinstance(value, dict):
                told = {str(name).lower(): str(item) for name, item in value.items()}
                seconds = limit_headers.parse_retry_after(told, now) or limit_headers.parse_spent(told, now)
                if seconds is not None:
                    return seconds
    return wait_in_text(text, now)


def wait_in_headers(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds until a limit that a 429 reports as spent is reset; None if there is none.

    Args:
        headers: with names in lower case.
        now: the time where the headers have no Date, seconds since the epoch.
    """
    if headers.get("anthropic-ratelimit-unified-status", "").strip().lower() == "rejected":
        # A subscription's limits, with the time of their reset, which is often hours away.
        moment = limit_headers.time_of(headers, now)
        seconds = limit_headers.parse_reset(headers.get("anthropic-ratelimit-unified-reset"), moment)
        if seconds:
            return seconds
    return limit_headers.parse_spent(headers, now)


def wait_in_text(text: str, now: float) -> float | None:
    """Seconds that a message asks to wait, such as "try again in 7m12s" or "retry after 20 seconds"."""
    text = text[:_TEXT_LIMIT]
    for pattern in _SPANS:
        found = pattern.search(text)
        if found is not None:
            seconds = _span(found[1])
            if seconds > 0:
                return seconds
    found = _MOMENT.search(text)
    if found is None:
        return None
    day, time = found.groups()
    left = seconds_until(f"{day}T{time}{':00' if len(time) == 5 else ''}Z", now)
    return left if left is not None and left > 0 else None


def _span(text: str) -> float:
    seconds = limit_headers.parse_duration(text)
    if seconds is not None:
        return seconds
    total = 0.0
    for number, unit in _PART.findall(text):
        total += float(number) * next(
            seconds for pattern, seconds in UNITS if re.fullmatch(pattern, unit, re.IGNORECASE)
        )
    return total


def at_path(value: Any, path: tuple[str, ...]) -> Iterator[Any]:
    """The values at a path of an error object."""
    if not path:
        yield value
        return
    step, rest = path[0], path[1:]
    if step == "*":
        for item in value[:20] if isinstance(value, list) else ():
            yield from at_path(item, rest)
    elif isinstance(value, dict) and step in value:
        yield from at_path(value[step], rest)
