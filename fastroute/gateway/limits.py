"""Limits of a caller's key: requests and tokens per minute, and budgets.

They are counted by the core's quotas and counters in the client's segment, so all workers that share the
segment share the limits. With Redis, other machines share them too, like the limits of endpoints.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fastroute import _core, errors, events
from fastroute.budget import Assumption, Budgets, QueueingPurse, Reservation, Spent
from fastroute.providers.media import USUAL_TOKENS, media_of
from fastroute.state.redis import RedisBank, Shared
from fastroute.state.tokens import LEAST_OUTPUT, estimate_input

from .keys import Caller


class LimitReached(errors.RateLimitError):
    """The key's limit is reached; retry after ``retry_after`` seconds."""


class Permit:
    """The tokens that a call took from its key's limit; settled when the call has ended."""

    __slots__ = ("_quota", "_tokens")

    def __init__(self, quota: _core.Quota | None, tokens: int) -> None:
        self._quota = quota
        self._tokens = tokens

    def settle(self, used: int) -> None:
        """Replaces the estimate by the tokens used. Idempotent."""
        quota, self._quota = self._quota, None
        if quota is not None:
            quota.settle(used - self._tokens)


class KeyLimits:
    """The limits per minute of all callers.

    Args:
        segment: where they are counted.
        shared: shares the counts with other machines; None without Redis.

    Thread safety: all methods.
    """

    def __init__(self, segment: _core.Segment, shared: Shared | None = None) -> None:
        self._segment = segment
        self._shared = shared
        self._quotas: dict[str, tuple[int | None, int | None, _core.Quota]] = {}

    def admit(self, caller: Caller, tokens: int) -> Permit:
        """Takes one request and ``tokens`` tokens from a caller's limits, both or neither.

        Raises:
            LimitReached: they are not available now.
            RequestTooLargeForLimit: the request needs more tokens than the limit.
            NoEndpointError: the state has no room to count another key, so its calls are rejected.
        """
        if caller.rpm is None and caller.tpm is None:
            return Permit(None, 0)
        if caller.tpm is None:
            tokens = 0
        quota = self._quota(caller)
        answer = quota.pay(tokens)
        if answer == 0:
            return Permit(None if caller.tpm is None else quota, tokens)
        wait, reason = -answer >> 3, -answer & 7
        if reason == _core.TOO_LARGE:
            if caller.rpm != 0 and caller.tpm:
                raise errors.RequestTooLargeForLimit(
                    f"the request needs about {tokens} tokens; the key's limit is {caller.tpm} per minute"
                )
            raise _reached("requests" if caller.rpm == 0 else "tokens", 0)
        raise _reached("requests" if reason == _core.REQUESTS else "tokens", wait)

    def _quota(self, caller: Caller) -> _core.Quota:
        known = self._quotas.get(caller.name)
        if known is not None and known[:2] == (caller.rpm, caller.tpm):
            return known[2]
        # Two threads may arrive here at once. Their quotas have one name, so they count in the same cells.
        try:
            quota = _core.Quota(
                self._segment,
                f"key {caller.name}",
                rpm=-1 if caller.rpm is None else caller.rpm,
                tpm=-1 if caller.tpm is None else caller.tpm,
                # A minute's tokens at once; otherwise a long prompt within the limit could never be sent.
                token_burst=caller.tpm or 0,
            )
        except _core.SegmentFullError as problem:
            raise errors.NoEndpointError(f"the key's limits cannot be counted: {problem}") from None
        if self._shared is not None:
            self._shared.attach_quota(quota)
        self._quotas[caller.name] = (caller.rpm, caller.tpm, quota)
        return quota

    def headers(self, caller: Caller) -> list[tuple[str, str]]:
        """What is left of a caller's limits, in the headers of OpenAI's API; none where it has no limit."""
        if caller.rpm is None and caller.tpm is None:
            return []
        try:
            quota = self._quota(caller)
        except errors.NoEndpointError:
            return []
        found = []
        for what, limit, burst, left in (
            ("requests", caller.rpm, max((caller.rpm or 0) // 6, 1), quota.available_requests()),
            ("tokens", caller.tpm, caller.tpm or 0, quota.available_tokens()),
        ):
            if limit is not None:
                left = max(min(left, burst), 0) if limit else 0
                # Seconds until as much as possible is available at once.
                reset = (burst - left) * 60 / limit if limit else 0.0
                found += [
                    (f"x-ratelimit-limit-{what}", str(limit)),
                    (f"x-ratelimit-remaining-{what}", str(left)),
                    (f"x-ratelimit-reset-{what}", f"{reset:.3f}s"),
                ]
        return found


def _reached(what: str, wait: int) -> LimitReached:
    return LimitReached(
        f"the key's limit of {what} per minute is reached",
        code="rate_limit_exceeded",
        retry_after=wait / 1e9 if wait > 0 else None,  # a limit of 0 never admits
    )


def tokens_of(messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> int:
    """An estimate of a request's tokens, including the output."""
    texts, other = [], False
    for message in messages:
        content = message.get("content")
        if type(content) is str:
            texts.append(content)
        elif type(content) is list:
            for part in content:
                text = part.get("text") or part.get("refusal")
                texts.append(text if isinstance(text, str) else "")
                other = other or part.get("type") not in ("text", "refusal")
    chars = sum(map(len, texts))
    utf8 = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    wanted = params.get("max_completion_tokens") or params.get("max_tokens") or LEAST_OUTPUT
    media = sum(USUAL_TOKENS[part.kind] for part in media_of(messages)) if other else 0
    return estimate_input(chars, utf8, len(messages)) + media + int(wanted)


class KeyBudgets:
    """The budgets of all callers.

    Args:
        segment: where the money is counted.
        spent: returns what was spent in a window before it is counted.
        hooks: alerts are emitted to them.
        freed: called with a line's name when money of it is released; see `Budgets`.
        bank: shares the budgets with other machines; None without Redis.
        recorded: whether there is a ledger; see `Budgets`.

    Thread safety: all methods.
    """

    def __init__(
        self,
        segment: _core.Segment,
        spent: Spent,
        hooks: events.Hooks,
        freed: Callable[[str], None],
        bank: RedisBank | None = None,
        *,
        recorded: bool = True,
    ) -> None:
        self._recorded = recorded
        self._segment = segment
        self._bank = bank
        self._spent = spent
        self._hooks = hooks
        self._freed = freed
        self._budgets: dict[str, tuple[Mapping[str, float], Budgets]] = {}

    def of(self, caller: Caller) -> Budgets | None:
        """A caller's budgets; None if it has none."""
        if not caller.budgets:
            return None
        known = self._budgets.get(caller.name)
        if known is None or known[0] != caller.budgets:
            made = Budgets(
                caller.budget_configs(),
                self._segment,
                self._spent,
                self._hooks,
                self._freed,
                recorded=self._recorded,
            )
            if self._bank is not None:
                made.share(self._bank)
            known = self._budgets[caller.name] = (caller.budgets, made)
        return known[1]

    def snapshot(self, callers: Iterable[Caller]) -> list[dict[str, Any]]:
        """The state of these callers' budgets."""
        found = []
        for caller in callers:
            budgets = self.of(caller)
            if budgets is None:
                continue
            found += [
                {
                    "budget": f"key {caller.name}, {status.name.removeprefix('key-')}",
                    "value": caller.name,
                    "window": status.period,
                    "ends": status.resets_at,
                    "limit_nano": status.limit_nano,
                    "spent_nano": status.spent_nano,
                    "reserved_nano": status.reserved_nano,
                }
                for status in budgets.snapshot({"key": caller.name})
            ]
        return found


class KeyAllowance(QueueingPurse):
    """Pays for a call from its caller's budgets: each attempt reserves and settles there."""

    def __init__(self, budgets: Budgets, caller: str, lease_s: float) -> None:
        self._budgets = budgets
        self._tags = {"key": caller}
        self._lease_s = lease_s
        self._held: dict[str, Reservation] = {}
        # Reentrant: a garbage collection while it is held may drop a stream, whose money is settled.
        self._holding = threading.RLock()

    def reserve(
        self,
        attempt: str,
        amount_nano: int | None,
        *,
        assumed: Assumption | None = None,
        behind: Callable[[str], bool] | None = None,
    ) -> None:
        """Reserves the worst-case cost of an attempt, by its id."""
        reservation = self._budgets.reserve(
            amount_nano, self._tags, self._lease_s, assumed=assumed, behind=behind
        )
        reservation.sent()
        with self._holding:
            self._held[attempt] = reservation

    def settle(self, attempt: str, cost_nano: int | None) -> None:
        """Replaces the reservation by the real cost. Idempotent."""
        with self._holding:
            reservation = self._held.pop(attempt, None)
        if reservation is not None:
            reservation.settle(cost_nano)
