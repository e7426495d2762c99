"""What a caller's key may use: requests and tokens a minute, and money.

Owns the counting for each key. It happens in the core's buckets and counters, in the segment of the client,
so that all workers that share the segment share the limits.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastroute import _core, errors, events
from fastroute.budget import Allowance, Budgets, Reservation, Spent
from fastroute.tokens import LEAST_OUTPUT, estimate_input

from .keys import Caller


class LimitReached(errors.RateLimitError):
    """The key's own limit; its caller may come back after ``retry_after`` seconds."""


class Permit:
    """What one call took of its key's tokens, to be put right when the call has ended."""

    __slots__ = ("_bucket", "_tokens")

    def __init__(self, bucket: _core.Bucket | None, tokens: int) -> None:
        self._bucket = bucket
        self._tokens = tokens

    def settle(self, used: int) -> None:
        """The call used so many tokens; only the first settling counts."""
        bucket, self._bucket = self._bucket, None
        if bucket is not None:
            bucket.settle(used - self._tokens)


class Limits:
    """The buckets of all callers.

    Thread safety: all methods.
    """

    def __init__(self, segment: _core.Segment) -> None:
        self._segment = segment
        self._buckets: dict[tuple[str, str, int], _core.Bucket] = {}

    def admit(self, caller: Caller, tokens: int) -> Permit:
        """Takes one request and so many tokens of what a caller may use in a minute, both or neither.

        Raises:
            LimitReached: they are not free.
            RequestTooLargeForLimit: they never will be.
        """
        asked = self._bucket(caller.name, "rpm", caller.rpm)
        if asked is not None:
            wait = asked.acquire(1)
            if wait:
                raise _reached("requests", wait)
        held = self._bucket(caller.name, "tpm", caller.tpm)
        if held is not None:
            wait = held.acquire(tokens)
            if wait:
                if asked is not None:
                    asked.settle(-1)
                if wait < 0 and caller.tpm:
                    raise errors.RequestTooLargeForLimit(
                        f"the request needs about {tokens} tokens; the key's limit is {caller.tpm} a minute"
                    )
                raise _reached("tokens", wait)
        return Permit(held, tokens)

    def _bucket(self, name: str, kind: str, limit: int | None) -> _core.Bucket | None:
        if limit is None:
            return None
        key = (name, kind, limit)
        found = self._buckets.get(key)
        if found is None:
            # Tokens of a whole minute at once, or a long prompt within the limit could never be sent.
            burst = limit if kind == "tpm" else 0
            made = _core.Bucket(self._segment, f"key\0{name}\0{kind}", limit, burst)
            found = self._buckets.setdefault(key, made)
        return found


def _reached(what: str, wait: int) -> LimitReached:
    return LimitReached(
        f"the key's limit of {what} a minute is reached",
        code="rate_limit_exceeded",
        retry_after=wait / 1e9 if wait > 0 else 60.0,
    )


def tokens_of(messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> int:
    """About how many tokens a request will take, its answer among them."""
    chars = images = 0
    for message in messages:
        content = message.get("content")
        if type(content) is str:
            chars += len(content)
        elif type(content) is list:
            for part in content:
                chars += len(part.get("text") or part.get("refusal") or "")
                images += part.get("type") == "image_url"
    wanted = params.get("max_completion_tokens") or params.get("max_tokens") or LEAST_OUTPUT
    return estimate_input(chars, chars, len(messages), images) + int(wanted)


class KeyBudgets:
    """The budgets of every caller that has some.

    Args:
        segment: where the money is counted.
        spent: what a window holds when it begins.
        hooks: hear of alerts.

    Thread safety: all methods.
    """

    def __init__(self, segment: _core.Segment, spent: Spent, hooks: events.Hooks) -> None:
        self._segment = segment
        self._spent = spent
        self._hooks = hooks
        self._budgets: dict[str, tuple[Mapping[str, float], Budgets]] = {}

    def of(self, caller: Caller) -> Budgets | None:
        """A caller's budgets, if it has any."""
        if not caller.budgets:
            return None
        known = self._budgets.get(caller.name)
        if known is None or known[0] != caller.budgets:
            made = Budgets(caller.budget_configs(), self._segment, self._spent, self._hooks)
            known = self._budgets[caller.name] = (caller.budgets, made)
        return known[1]

    def snapshot(self, callers: Iterable[Caller]) -> list[dict[str, Any]]:
        """How the budgets of these callers stand."""
        found = []
        for caller in callers:
            budgets = self.of(caller)
            if budgets is None:
                continue
            budgets.remaining({"key": caller.name})  # a budget shows a caller once it has been asked about
            found += [
                {
                    "budget": f"key {caller.name}, {status.budget.removeprefix('key-')}",
                    "value": caller.name,
                    "window": status.window,
                    "ends": status.ends,
                    "limit_nano": status.limit_nano,
                    "spent_nano": status.spent_nano,
                    "reserved_nano": status.reserved_nano,
                }
                for status in budgets.snapshot()
                if status.value == caller.name
            ]
        return found


class KeyAllowance(Allowance):
    """What one call may cost its caller: every attempt reserves in the caller's budgets and settles there."""

    def __init__(self, budgets: Budgets, caller: str, lease_s: float) -> None:
        super().__init__(0)
        self._budgets = budgets
        self._tags = {"key": caller}
        self._lease_s = lease_s
        self._held: dict[int, Reservation] = {}
        self._tickets = itertools.count()
        self._holding = threading.Lock()

    def reserve(self, amount_nano: int | None) -> int:
        """Reserves for one attempt; what it returns is what `settle` wants back."""
        reservation = self._budgets.reserve(amount_nano, self._tags, self._lease_s)
        reservation.sent()
        with self._holding:
            ticket = next(self._tickets)
            self._held[ticket] = reservation
        return ticket

    def settle(self, reserved_nano: int, cost_nano: int | None) -> None:
        """Puts what the attempt cost in the place of what was reserved."""
        with self._holding:
            reservation = self._held.pop(reserved_nano, None)
        if reservation is not None:
            reservation.settle(cost_nano)
