"""Counts the calls that the gateway refused without sending them to a provider, by reason.

They are in no ledger, which has attempts only. They are counted in the client's segment, so all workers that
share the segment count together.
"""

from __future__ import annotations

from typing import Any

from fastroute import _core, errors

from .limits import LimitReached
from .responses import Overloaded

REASONS = ("key_limit", "budget", "endpoint_limit", "no_endpoint", "unauthorized", "invalid")
MOST_HOURS = 168  # that are remembered: a week


class Refusals:
    """The counts of refused calls.

    Thread safety: all methods, in forked processes too.
    """

    def __init__(self, segment: _core.Segment) -> None:
        self._minutes: dict[str, _core.EventCount] = {}
        self._hours: dict[str, _core.EventCount] = {}
        for reason in REASONS:
            try:
                minutes = _core.EventCount(segment, f"refused {reason}, minutes", periods=60, period_s=60)
                hours = _core.EventCount(
                    segment, f"refused {reason}, hours", periods=MOST_HOURS, period_s=3600
                )
            except _core.SegmentFullError:
                return  # the state has room for fewer counts, or for none; calls matter more
            self._minutes[reason], self._hours[reason] = minutes, hours

    def record(self, error: errors.Error) -> None:
        """Counts a call that ended with this error, if it was sent to no provider."""
        reason = None if error.attempts else _reason(error)
        if reason in self._minutes:
            self._minutes[reason].add()
            self._hours[reason].add()

    def lately(self, seconds: float) -> dict[str, int]:
        """How many calls were refused in the last hour or hours, by reason.

        Args:
            seconds: up to an hour to the minute, above it to the hour, at most a week.
        """
        if seconds <= 3600:
            minutes = max(1, round(seconds / 60))
            return {name: events.lately(minutes) for name, events in self._minutes.items()}
        return {name: events.lately(round(seconds / 3600)) for name, events in self._hours.items()}

    def totals(self) -> dict[str, int]:
        """How many calls were refused since the state began, by reason."""
        return {name: events.total() for name, events in self._minutes.items()}


def _reason(error: errors.Error) -> str | None:
    status: Any = error.status_code
    if isinstance(error, errors.CallCancelled):
        return None  # nobody was refused: the caller has left
    if isinstance(error, LimitReached):
        return "key_limit"
    if isinstance(error, errors.BudgetExceeded):
        return "budget"
    if isinstance(error, Overloaded):
        return "endpoint_limit"
    if isinstance(error, errors.RateLimitError):
        # Also a caller that sends too many invalid keys; its status alone does not say so.
        return "unauthorized" if error.code == "too_many_wrong_keys" else "endpoint_limit"
    if status in (401, 403):
        return "unauthorized"
    if isinstance(error, (errors.NoEndpointError, errors.DeadlineExceeded)) and status != 400:
        return "no_endpoint"
    return "invalid" if status is not None and 400 <= status < 500 else None


__all__ = ["MOST_HOURS", "REASONS", "Refusals"]
