"""Parses Retry-After and the rate-limit headers of providers, strictly.

No clock is read: a time in a header is compared with the Date header of the same response, and with the time
that the caller passes where there is none. What an error's body and text say about waiting is read in
`waits.py`; what follows from the numbers is decided in `calls/retry.py` and the core.

Headers are not trusted: every parser accepts any text and returns None for what is not exactly in its
grammar. Python's ``int`` and ``float`` would accept ``nan``, ``1_000`` and digits of other scripts, and raise
on 5000 digits.
"""

from __future__ import annotations

import math
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
# A bare number from here on is a time since the epoch, not a span of 31 years: in seconds, milliseconds (from
# 1973 on) or microseconds.
_EPOCH_BEGINS = 1_000_000_000
_EPOCH_UNITS = ((100_000_000_000, 1.0), (100_000_000_000_000, 1e3), (math.inf, 1e6))
_EPOCH = re.compile(r"[0-9]{13,16}(?:\.[0-9]{1,6})?")

_HOUR = 3600.0
_LONGEST = 366 * 24 * _HOUR  # a longer wait is a mistake


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


def seconds_until(value: object, now: float | None = None) -> float | None:
    """Seconds from ``now`` to a time that a provider names, negative for one in the past; None if unknown.

    Accepts the forms that providers send, as text or as a number of JSON: a Go duration, seconds, an HTTP
    date, RFC 3339, and seconds, milliseconds or microseconds since the epoch. Of these, a point in time needs
    ``now`` (seconds since the epoch). More than a year ahead is unknown.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = f"{value:.6f}" if math.isfinite(value) and 0 <= value < 1e16 else ""
    if not isinstance(value, str) or len(value) > 64:
        return None
    text = value.strip(" \t")
    seconds = parse_duration(text)
    if seconds is None:
        number = float(text) if _EPOCH.fullmatch(text) else _number(text)
        if number is not None and number < _EPOCH_BEGINS:
            seconds = number
        elif now is not None:
            moment = parse_http_date(text) or _rfc3339(text)
            if number is not None:
                moment = number / next(unit for most, unit in _EPOCH_UNITS if number < most)
            seconds = None if moment is None else moment - now
    return None if seconds is None or seconds > _LONGEST else seconds


def parse_reset(text: object, now: float | None = None) -> float | None:
    """Seconds until a limit is full again, never negative; None if unknown. See `seconds_until`."""
    seconds = seconds_until(text, now)
    return None if seconds is None else max(0.0, seconds)


# -------------------------------------------------------------------------------------------------- headers


def lowered(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers with their names in lower case."""
    return {name.lower(): value for name, value in headers.items()}


def time_of(headers: Mapping[str, str], now: float | None) -> float | None:
    """When a response was sent, seconds since the epoch: by its Date header, else ``now``.

    A wrong clock of this machine does not matter as long as the server says what time it takes it to be.
    """
    sent = parse_http_date(headers.get("date"))
    return now if sent is None else sent


# Names, and how many of their units are a second; the first that can be read counts.
WAITS: tuple[tuple[str, int], ...] = (
    ("retry-after-ms", 1000),
    ("x-ms-retry-after-ms", 1000),
    ("x-amz-retry-after", 1000),
    ("retry-after", 1),
)


def parse_retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds that the provider asks to wait; None if absent, malformed, zero or in the past. Never raises.

    ``retry-after-ms`` takes precedence over ``x-ms-retry-after-ms``, and that over ``retry-after`` (forms:
    `seconds_until`); a malformed one is skipped. A point in time is compared with the Date of the same
    response, else with ``now``, and is ignored without either.
    """
    found = lowered(headers)
    for name, unit in WAITS:
        text = found.get(name)
        if text is None:
            continue
        seconds = seconds_until(text, time_of(found, now)) if unit == 1 else _number(text)
        if seconds is not None and seconds > 0:
            return seconds / unit
    return None


@frozen
class HeaderLimit:
    """One limit as a response's headers tell it; None for what is absent or unreliable.

    Attributes:
        limit: most in one window.
        remaining: what is left of it.
        reset: seconds until it is full again, not until the next call is admitted.
    """

    limit: int | None
    remaining: int | None
    reset: float | None

    @property
    def window(self) -> float:
        """Seconds in which the limit refills, from 1 to 60: a minute unless the reset shows that it is less.

        What is used is back at the reset, so all of it takes as much longer as it is more. While little is
        used, a reset in whole seconds says little, but then nothing depends on it.
        """
        if self.limit is None or self.remaining is None or self.reset is None or self.remaining >= self.limit:
            return 60.0
        return min(max(self.reset * self.limit / (self.limit - self.remaining), 1.0), 60.0)


@frozen
class RateLimitHeaders:
    """A response's rate-limit headers: those by which the calls of an endpoint can be paced.

    A limit per day is left out, whatever its headers' names: its numbers must not be taken for this minute's.

    Attributes:
        requests, tokens: the limits; None where there is none.
    """

    requests: HeaderLimit | None = None
    tokens: HeaderLimit | None = None


# Names under which providers send limit, remaining and reset; the first whose remaining is present counts.
_Names = tuple[str, str, str]


def _names(pattern: str, what: str) -> _Names:
    """The three names of a limit on ``what``."""
    limit, remaining, reset = (
        pattern.format(what=what, part=part) for part in ("limit", "remaining", "reset")
    )
    return limit, remaining, reset


_OPENAI = "x-ratelimit-{part}-{what}"
_ANTHROPIC = "anthropic-ratelimit-{what}-{part}"
_REQUEST_NAMES = (
    _names(_OPENAI, "requests"),  # OpenAI, Azure, Groq (per day), xAI, Fireworks, SambaNova, LiteLLM
    _names(_ANTHROPIC, "requests"),
    _names(_OPENAI, "req-minute"),  # Mistral
    _names(_OPENAI, "requests-minute"),  # Cerebras
)
_TOKEN_NAMES = (
    _names(_OPENAI, "tokens"),
    _names(_OPENAI, "tokens_usage_based"),
    _names(_ANTHROPIC, "tokens"),
    _names(_ANTHROPIC, "input-tokens"),
    _names(_OPENAI, "tokens-minute"),  # Mistral, Cerebras
)
# Limits whose window ends at the reset: nothing is left before, and all is there again after it.
WINDOWS: tuple[_Names, ...] = (
    _names(_OPENAI, "requests-day"),  # Cerebras, SambaNova
    _names(_OPENAI, "tokens-day"),
    ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"),  # OpenRouter, Together
    ("x-rate-limit-limit", "x-rate-limit-remaining", "x-rate-limit-reset"),
    ("ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"),  # a draft of the IETF
)


def parse_limits(headers: Mapping[str, str], now: float | None = None) -> RateLimitHeaders | None:
    """The limits in a response's headers, or None if there are none. Never raises.

    This runs for every answer, so only the few names are looked up: they must be in lower case, as the
    transport's are, or the mapping must ignore case.
    """
    requests = _limit_of(headers, _REQUEST_NAMES, now)
    tokens = _limit_of(headers, _TOKEN_NAMES, now)
    if requests is None and tokens is None:
        return None
    if requests is not None and _beyond_a_minute(requests):
        requests = None
    # Not by how slowly they refill: resets in whole seconds say little about a limit of which little is used.
    if tokens is not None and tokens.reset is not None and tokens.reset > _HOUR:
        tokens = None
    return RateLimitHeaders(requests, tokens)


def parse_spent(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds until the limit that a refusal is about lets a call in again, by the resets of spent limits.

    A window that is used up is waited for to its end. Other limits refill little by little: the reset is the
    time until they are full, which is later than when they admit one call, so it is used only while it is
    short enough to wait for.
    """
    waits = []
    for limit_name, remaining_name, reset_name in WINDOWS:
        if reset_name in headers:
            limit = _read_limit(headers, (limit_name, remaining_name, reset_name), now)
            if limit.reset and (limit.remaining == 0 or remaining_name not in headers):
                waits.append(limit.reset)
    if waits:
        return max(waits)
    for names in (_REQUEST_NAMES, _TOKEN_NAMES):
        found = _limit_of(headers, names, now)
        if found is not None and found.remaining == 0 and found.reset is not None and 0 < found.reset <= 60:
            waits.append(found.reset)
    return max(waits, default=None)


def _limit_of(headers: Mapping[str, str], names: tuple[_Names, ...], now: float | None) -> HeaderLimit | None:
    for each in names:
        if each[1] in headers:
            found = _read_limit(headers, each, now)
            if found.limit is None and found.remaining is None and found.reset is None:
                return None
            return found
    return None


def _read_limit(headers: Mapping[str, str], names: _Names, now: float | None) -> HeaderLimit:
    limit = _count(headers.get(names[0]))
    remaining = _count(headers.get(names[1]))
    reset = headers.get(names[2])
    seconds = parse_reset(reset)
    if seconds is None and reset is not None:
        seconds = parse_reset(reset, time_of(headers, now))
    if limit is not None and limit <= 0:
        limit = remaining = None
    # Azure sends -1 and 0 for unknown. A true 0 comes with the limit or a time of reset.
    if remaining is not None and (remaining < 0 or (remaining == 0 and limit is None and not seconds)):
        remaining = None
    return HeaderLimit(limit, remaining, seconds)


def _count(text: object) -> int | None:
    """An integer; None for anything else, also for a duplicated header's two values joined by a comma."""
    if not isinstance(text, str):
        return None
    if not (text.isdigit() and text.isascii()):  # plain digits, the common case, skip the regular expression
        text = text.strip(" \t")
        if not _COUNT.fullmatch(text):
            return None
    return int(text) if len(text) <= 16 else None


def _beyond_a_minute(found: HeaderLimit) -> bool:
    """Whether a limit's window is much longer than a minute.

    Either its reset is more than an hour away, or it refills that slowly: if 30 of 14,400 are used and are
    back in three minutes, all of them take a day. A fixed window can look like that while little of it is
    used; its number would not limit anything then.
    """
    limit, remaining, reset = found.limit, found.remaining, found.reset
    if reset is None:
        return False
    if reset > _HOUR:
        return True
    if limit is None or remaining is None or remaining >= limit:
        return False
    return reset * limit / (limit - remaining) > _HOUR
