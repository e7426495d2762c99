"""Parses Retry-After and the rate-limit headers of providers, strictly.

No clock is read: a time in a header is compared with the Date header of the same response. What follows from
the numbers is decided in `calls/retry.py` and the core.

Headers are not trusted: every parser accepts any text and returns None for what is not exactly in its
grammar. Python's ``int`` and ``float`` would accept ``nan``, ``1_000`` and digits of other scripts, and raise
on 5000 digits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timezone

from attrs import frozen

# ------------------------------------------------------------------------------------ numbers and durations

_NUMBER = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,12})?")
_COUNT = re.compile(r"-?[0-9]{1,15}")
_DURATION = re.compile(r"(?:[0-9]{1,12}(?:\.[0-9]{1,12})?(?:h|ms|m|s|us|µs|μs|ns))+")
_DURATION_PART = re.compile(r"([0-9]+)(?:\.([0-9]+))?([a-zµμ]+)")
_UNITS = {
    "h": 3_600_000_000_000,
    "m": 60_000_000_000,
    "s": 1_000_000_000,
    "ms": 1_000_000,
    "us": 1_000,
    "µs": 1_000,  # the micro sign
    "μs": 1_000,  # the Greek letter
    "ns": 1,
}
_MONTHS = "JanFebMarAprMayJunJulAugSepOctNovDec"
_HTTP_DATE = re.compile(
    r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), ([0-9]{2}) (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) "
    r"([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT"
)
_RFC3339 = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,12}))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)
_EPOCH_BEGINS = 1_000_000_000  # a bare number from here on is a time since the epoch, not a span of 31 years

_HOUR = 3600.0


def _number(text: object) -> float | None:
    """The value of decimal digits with an optional fraction; spaces and tabs around them are ignored."""
    if not isinstance(text, str):
        return None
    text = text.strip(" \t")
    return float(text) if _NUMBER.fullmatch(text) else None


def parse_duration(text: object) -> float | None:
    """Seconds in a Go duration such as ``6m0s``, ``1.5s`` or ``12ms``; None for anything else.

    A sign, a bare number, more than 12 digits in one number or 64 characters in all are not accepted.
    """
    if not isinstance(text, str) or len(text) > 64:
        return None
    # A single unit is by far the most common, and this runs for every answer.
    if text[-2:] == "ms" and len(text) <= 14 and text[:-2].isdigit() and text.isascii():
        return int(text[:-2]) / 1000
    if text[-1:] == "s" and _NUMBER.fullmatch(text, 0, len(text) - 1):
        return float(text[:-1])
    if not _DURATION.fullmatch(text):
        return None
    total = 0  # in 10**-12 nanoseconds, an integer, so that only the last step rounds
    for whole, fraction, unit in _DURATION_PART.findall(text):
        total += int(whole + fraction) * _UNITS[unit] * 10 ** (12 - len(fraction))
    return total / 10**21


def parse_http_date(text: object) -> float | None:
    """Seconds since the epoch of an HTTP date (``Sun, 06 Nov 1994 08:49:37 GMT``); None for anything else."""
    found = _HTTP_DATE.fullmatch(text.strip(" \t")) if isinstance(text, str) else None
    if found is None:
        return None
    day, month, *rest = found.groups()
    year, hour, minute, second = map(int, rest)
    return _timestamp(year, _MONTHS.index(month) // 3 + 1, int(day), hour, minute, second)


def _timestamp(year: int, month: int, day: int, hour: int, minute: int, second: int) -> float | None:
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc).timestamp()
    except ValueError:
        return None


def _rfc3339(text: str) -> float | None:
    found = _RFC3339.fullmatch(text)
    if found is None:
        return None
    *parts, fraction, sign, off_hours, off_minutes = found.groups()
    year, month, day, hour, minute, second = map(int, parts)
    moment = _timestamp(year, month, day, hour, minute, second)
    if moment is None:
        return None
    if sign:
        if int(off_hours) > 23 or int(off_minutes) > 59:
            return None
        offset = int(off_hours) * 3600 + int(off_minutes) * 60
        moment += offset if sign == "-" else -offset
    return moment + (int(fraction) / 10 ** len(fraction) if fraction else 0.0)


def parse_reset(text: object, now_wall: float | None = None) -> float | None:
    """Seconds until a limit is full again, never negative; None if unknown.

    Accepts the forms that providers send: a Go duration, seconds, RFC 3339, seconds since the epoch. The last
    two need ``now_wall``, the response's time (seconds since the epoch) from its own Date header.
    """
    if not isinstance(text, str) or len(text) > 64:
        return None
    text = text.strip(" \t")
    seconds = parse_duration(text)
    if seconds is not None:
        return seconds
    moment = _number(text)
    if moment is None:
        moment = _rfc3339(text)
    elif moment < _EPOCH_BEGINS:
        return moment
    if moment is None or now_wall is None:
        return None
    return max(0.0, moment - now_wall)


# -------------------------------------------------------------------------------------------------- headers


def _lowered(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the provider asks to wait; None if absent, malformed, zero or in the past. Never raises.

    ``retry-after-ms`` takes precedence over ``x-ms-retry-after-ms``, and that over ``retry-after`` (seconds,
    with or without a fraction, or an HTTP date); a malformed one is skipped. A date is compared with the
    response's own Date header, so that a wrong local clock does not matter, and is ignored without it.
    """
    lowered = _lowered(headers)
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        milliseconds = _number(lowered.get(name))
        if milliseconds:
            return milliseconds / 1000
    text = lowered.get("retry-after")
    seconds = _number(text)
    if seconds is None:
        moment, now = parse_http_date(text), parse_http_date(lowered.get("date"))
        if moment is None or now is None:
            return None
        seconds = moment - now
    return seconds if seconds > 0 else None


@frozen
class RateLimitHeaders:
    """A response's rate-limit headers; None for what is absent or unreliable.

    ``remaining_requests`` and ``remaining_tokens`` are for pacing limits per minute. A number that belongs to
    a limit per day is left out, whatever its header's name: it must not be taken for this minute's.

    Attributes:
        remaining_requests, remaining_tokens: what is left of the allowance.
        reset_requests, reset_tokens: seconds until it is full again, not until the next call is admitted.
    """

    remaining_requests: int | None = None
    reset_requests: float | None = None
    remaining_tokens: int | None = None
    reset_tokens: float | None = None


# Names under which providers send limit, remaining and reset; the first whose remaining is present counts.
_REQUEST_NAMES = (
    ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    (
        "anthropic-ratelimit-requests-limit",
        "anthropic-ratelimit-requests-remaining",
        "anthropic-ratelimit-requests-reset",
    ),
)
_TOKEN_NAMES = (
    ("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
    (
        "x-ratelimit-limit-tokens_usage_based",
        "x-ratelimit-remaining-tokens_usage_based",
        "x-ratelimit-reset-tokens_usage_based",
    ),
    (
        "anthropic-ratelimit-tokens-limit",
        "anthropic-ratelimit-tokens-remaining",
        "anthropic-ratelimit-tokens-reset",
    ),
    (
        "anthropic-ratelimit-input-tokens-limit",
        "anthropic-ratelimit-input-tokens-remaining",
        "anthropic-ratelimit-input-tokens-reset",
    ),
)


def parse_limits(headers: Mapping[str, str]) -> RateLimitHeaders | None:
    """The remaining allowance in a response's headers, or None if it is not in them. Never raises.

    This runs for every answer, so only the few names are looked up: they must be in lower case, as the
    transport's are, or the mapping must ignore case.
    """
    requests = _dimension(headers, _REQUEST_NAMES)
    tokens = _dimension(headers, _TOKEN_NAMES)
    if requests == tokens == (None, None, None):
        return None
    remaining = None if _beyond_a_minute(*requests) else requests[1]
    return RateLimitHeaders(remaining, requests[2], tokens[1], tokens[2])


_Dimension = tuple[int | None, int | None, float | None]


def _dimension(headers: Mapping[str, str], names: tuple[tuple[str, str, str], ...]) -> _Dimension:
    for limit_name, remaining_name, reset_name in names:
        if remaining_name not in headers:
            continue
        limit = _count(headers.get(limit_name))
        remaining = _count(headers.get(remaining_name))
        reset = headers.get(reset_name)
        seconds = parse_reset(reset)
        if seconds is None and reset is not None:
            seconds = parse_reset(reset, parse_http_date(headers.get("date")))
        if limit is not None and limit <= 0:
            limit = remaining = None
        # Azure sends -1 and 0 for unknown. A true 0 comes with the limit or a time of reset.
        if remaining is not None and (remaining < 0 or (remaining == 0 and limit is None and not seconds)):
            remaining = None
        return limit, remaining, seconds
    return None, None, None


def _count(text: object) -> int | None:
    """An integer; None for anything else, also for a duplicated header's two values joined by a comma."""
    if not isinstance(text, str):
        return None
    if not (text.isdigit() and text.isascii()):  # plain digits, the common case, skip the regular expression
        text = text.strip(" \t")
        if not _COUNT.fullmatch(text):
            return None
    return int(text) if len(text) <= 16 else None


def _beyond_a_minute(limit: int | None, remaining: int | None, reset: float | None) -> bool:
    """Whether a limit's window is much longer than a minute.

    Either its reset is more than an hour away, or it refills that slowly: if 30 of 14,400 are used and are
    back in three minutes, all of them take a day. A fixed window can look like that while little of it is
    used; its number would not limit anything then.
    """
    if reset is None:
        return False
    if reset > _HOUR:
        return True
    if limit is None or remaining is None or remaining >= limit:
        return False
    return reset * limit / (limit - remaining) > _HOUR
