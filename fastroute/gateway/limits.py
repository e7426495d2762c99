"""Limits of a caller's key: requests and tokens per minute, and budgets.

They are counted by the core's quotas and counters in the client's segment, so all workers that share the
segment share the limits. With Redis, other machines share them too, like the limits of endpoints.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from attrs import frozen

from fastroute import _core, errors, events
from fastroute.budget import Assumption, Budgets, MoneyReserved, QueueingPurse, Reservation, Spent
from fastroute.providers.media import USUAL_TOKENS, media_of
from fastroute.state.redis import RedisBank, Shared
from fastroute.state.tokens import LEAST_OUTPUT, estimate_input

from .keys import Caller


class LimitReached(errors.RateLimitError):
    """The key's limit is reached; retry after ``retry_after`` seconds."""


class Permit:
    """The tokens that a call took from its key's limit; settled when the call has ended.

    How many a call needs is known only when its body has been read: then it takes them.
    """

    __slots__ = ("_caller", "_quota", "_tokens")

    def __init__(self, caller: Caller, quota: _core.Quota | None) -> None:
        self._caller = caller
        self._quota = quota
        self._tokens: int | None = None

    def take(self, tokens: int) -> None:
        """Takes what the call needs.

        Raises:
            LimitReached: it is not available now.
            RequestTooLargeForLimit: the request needs more tokens than the limit.
        """
        quota, limit = self._quota, self._caller.tpm
        if quota is None or limit is None:
            return
        if tokens > limit:
            raise errors.RequestTooLargeForLimit(
                f"the request needs about {tokens} tokens; the key's limit is {limit} per minute"
            )
        _paid(quota.pay(tokens), "tokens")
        self._tokens = tokens

    def settle(self, used: int) -> None:
        """Replaces the estimate by the tokens used. Idempotent; without `take` nothing was taken."""
        quota, self._quota = self._quota, None
        if quota is not None and self._tokens is not None:
            quota.settle(used - self._tokens)


@frozen
class _Quotas:
    """A key's limits as they were last read, and where they are counted; None without that limit."""

    rpm: int | None
    tpm: int | None
    requests: _core.Quota | None
    tokens: _core.Quota | None


class KeyLimits:
    """The limits per minute of all callers.

    Requests and tokens are counted apart: a request counts when it arrives, whatever becomes of it, and its
    tokens are known only when its body was read.

    Args:
        segment: where they are counted.
        shared: shares the counts with other machines; None without Redis.

    Thread safety: all methods.
    """

    def __init__(self, segment: _core.Segment, shared: Shared | None = None) -> None:
        self._segment = segment
        self._shared = shared
        self._quotas: dict[str, _Quotas] = {}

    def admit(self, caller: Caller) -> Permit:
        """Takes one request, and checks that a token is left, before the body is read.

        Raises:
            LimitReached: they are not available now.
            NoEndpointError: the state has no room to count another key, so its calls are rejected.
        """
        if caller.rpm is None and caller.tpm is None:
            return Permit(caller, None)
        quotas = self._of(caller)
        if quotas.requests is not None:
            _paid(quotas.requests.pay(), "requests")
        if quotas.tokens is not None and quotas.tokens.available_tokens() < 1:
            _paid(quotas.tokens.pay(1), "tokens")
            quotas.tokens.settle(-1)  # one has come since
        return Permit(caller, quotas.tokens)

    def _of(self, caller: Caller) -> _Quotas:
        known = self._quotas.get(caller.name)
        if known is not None and (known.rpm, known.tpm) == (caller.rpm, caller.tpm):
            return known
        # Two threads may arrive here at once. Their quotas have one name, so they count in the same cells.
        try:
            requests = tokens = None
            if caller.rpm is not None:
                requests = _core.Quota(self._segment, f"key {caller.name}", rpm=caller.rpm)
            if caller.tpm is not None:
                # A minute's tokens at once; otherwise a long prompt within the limit could never be sent.
                tokens = _core.Quota(
                    self._segment, f"key {caller.name} tokens", tpm=caller.tpm, token_burst=caller.tpm
                )
        except _core.SegmentFullError as problem:
            raise errors.NoEndpointError(f"the key's limits cannot be counted: {problem}") from None
        if self._shared is not None:
            for quota in (requests, tokens):
                if quota is not None:
                    self._shared.attach_quota(quota)
        found = self._quotas[caller.name] = _Quotas(caller.rpm, caller.tpm, requests, tokens)
        return found

    def headers(self, caller: Caller) -> list[tuple[str, str]]:
        """What is left of a caller's limits, in the headers of OpenAI's API; none where it has no limit."""
        if caller.rpm is None and caller.tpm is None:
            return []
        try:
            quotas = self._of(caller)
        except errors.NoEndpointError:
            return []
        found: list[tuple[str, str]] = []
        if quotas.requests is not None:
            burst = max((caller.rpm or 0) // 6, 1)
            found += _left("requests", caller.rpm or 0, burst, quotas.requests.available_requests())
        if quotas.tokens is not None:
            limit = caller.tpm or 0
            found += _left("tokens", limit, limit, quotas.tokens.available_tokens())
        return found


def _left(what: str, limit: int, burst: int, left: int) -> list[tuple[str, str]]:
    left = max(min(left, burst), 0) if limit else 0
    # Seconds until as much as possible is available at once.
    reset = (burst - left) * 60 / limit if limit else 0.0
    return [
        (f"x-ratelimit-limit-{what}", str(limit)),
        (f"x-ratelimit-remaining-{what}", str(left)),
        (f"x-ratelimit-reset-{what}", f"{reset:.3f}s"),
    ]


def _paid(answer: int, what: str) -> None:
    """Raises for a quota that did not pay."""
    if answer:
        # A limit of 0 never admits, so there is nothing to wait for.
        raise _reached(what, 0 if -answer & 7 == _core.TOO_LARGE else -answer >> 3)


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

    def check(self, caller: Caller) -> None:
        """Checks, before the body is read, that a call of the least cost fits a caller's budgets.

        Raises:
            BudgetExceeded: a budget is used up, also if the calls under way cost nothing.
        """
        budgets, tags = self.of(caller), {"key": caller.name}
        if budgets is None or budgets.affordable(tags) != 0:
            return
        try:
            budgets.reserve(1, tags, 1.0).release()
        except MoneyReserved:
            pass  # released since

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

    def settle(self, attempt: str, cost_nano: int | None, *, recorded: bool = True) -> None:
        """Replaces the reservation by the real cost. Idempotent."""
        with self._holding:
            reservation = self._held.pop(attempt, None)
        if reservation is not None:
            reservation.settle(cost_nano, recorded=recorded)
