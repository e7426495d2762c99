"""The windows of budgets: calendar days and months in a time zone."""

from __future__ import annotations

import math
from datetime import date, datetime, timedelta, timezone, tzinfo

from attrs import frozen


@frozen
class Window:
    """A period that a limit applies to.

    Attributes:
        number: unique among the windows of its kind; 1 or more.
        label: the day or month, or ``total``.
        start, end: seconds since the epoch; ``end`` itself belongs to the next window.
    """

    number: int
    label: str
    start: float
    end: float


def window_at(kind: str, zone: tzinfo, when: float) -> Window:
    """The window of a kind (``day``, ``month``, ``total``) that contains a time.

    A day begins at the first instant of its date, so it may have 23 or 25 hours. Where clocks are set back
    over midnight, the repeated hour belongs to the day that has begun.
    """
    if kind == "total":
        return Window(1, "total", 0.0, math.inf)
    # Whole seconds, because fromtimestamp rounds a fraction, perhaps into the next window.
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
    # Where clocks are set forward over midnight, midnight does not exist; with the offset before the change
    # it is the instant of the change. Where midnight is repeated, the first one counts.
    return datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()


def zone_of(name: str) -> tzinfo:
    if name == "UTC":
        return timezone.utc  # works without a list of time zones
    from zoneinfo import ZoneInfo

    return ZoneInfo(name)
