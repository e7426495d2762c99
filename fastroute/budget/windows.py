"""Windows of a budget: calendar days and months in a time zone.

Owns when a window begins and ends, and its number. What is spent in it is counted elsewhere.
"""

from __future__ import annotations

import math
from datetime import date, datetime, timedelta, timezone, tzinfo

from attrs import frozen


@frozen
class Window:
    """A stretch of time that a limit is for.

    Attributes:
        number: no other window of its kind has it; 1 or more.
        label: the day or month, or the kind where there is only one.
        start, end: seconds since the epoch; ``end`` itself belongs to the next window.
    """

    number: int
    label: str
    start: float
    end: float


def window_at(kind: str, zone: tzinfo, when: float) -> Window:
    """The window of a kind (``day``, ``month``, ``total``) that a time falls in.

    A day begins at the first instant of its date, so it may have 23 or 25 hours. Where clocks are set back
    over midnight, the hour that comes twice belongs to the day that has begun.
    """
    if kind == "total":
        return Window(1, "total", 0.0, math.inf)
    # Whole seconds: a fraction would be rounded, and could round into the next window.
    first = datetime.fromtimestamp(math.floor(when), zone).date()
    if kind == "month":
        first = first.replace(day=1)
    while True:
        following = _next_month(first) if kind == "month" else first + timedelta(days=1)
        end = _begins(following, zone)
        if when < end:
            break
        first = following
    if kind == "month":
        return Window(first.year * 12 + first.month, f"{first:%Y-%m}", _begins(first, zone), end)
    return Window(first.toordinal(), first.isoformat(), _begins(first, zone), end)


def _next_month(first: date) -> date:
    return (first + timedelta(days=31)).replace(day=1)


def _begins(day: date, zone: tzinfo) -> float:
    # Where clocks are set forward over midnight there is no such time; its offset before the change then
    # gives the instant of the change. Where midnight comes twice, the first is meant.
    return datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()


def zone_of(name: str) -> tzinfo:
    if name == "UTC":
        return timezone.utc  # needs no list of time zones
    from zoneinfo import ZoneInfo

    return ZoneInfo(name)
