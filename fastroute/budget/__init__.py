"""Budgets: money is reserved before a request is sent, and settled when its cost is known.

The native core counts (`fastroute._core.Counter`), and never allows an overdraft, whatever the number of
threads and processes. Windows of time are in `windows.py`, the counters of one budget in `scopes.py`,
messages in `status.py`.

The life of a reservation::

    reserve(worst case)      in every budget that applies or in none, or BudgetExceeded
    .sent()                  just before the request is sent: from now on a killed worker's estimate stays
    spent .settle(cost)            the real cost replaces the estimate
    .release()               nothing was sent, or nothing will be charged

A reservation that is neither settled nor released has a lease. When the lease has expired or the worker has
died, the next sweep releases it if it was not sent, and keeps its estimate as spent if it was.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from fastroute import _core, errors, events
from fastroute.config import BudgetConfig
from fastroute.figures import dollars

from .allowance import Allowance
from .scopes import ANY, Budget, Scope, Share
from .status import (
    AWAY,
    FULL,
    GRANTED,
    OVER,
    REFUSED,
    UNREAD,
    Bank,
    BudgetStatus,
    Spent,
    of_tag,
    refusal_message,
    spent_in,
)
from .windows import Window, window_at

__all__ = [
    "AWAY",
    "GRANTED",
    "REFUSED",
    "Allowance",
    "Bank",
    "BudgetStatus",
    "Budgets",
    "Reservation",
    "Spent",
    "Window",
    "spent_in",
    "window_at",
]

log = logging.getLogger("fastroute")

_SWEEP_NS = 5_000_000_000  # between two sweeps for expired leases and dead workers
_SWEEP_ON_BREACH_NS = 1_000_000_000  # the same, when a call would be refused
_RETRY_NS = 5_000_000_000  # after the ledger failed, before it is read again


class Reservation:
    """Money reserved for one attempt, in every budget that applies to it.

    Thread safety: all methods. The first `settle` or `release` counts; later ones change nothing. In a
        forked child
    all methods do nothing, because the reservation belongs to the parent.
    """

    __slots__ = ("_budgets", "_shares")

    def __init__(self, budgets: Budgets, shares: tuple[Share, ...]) -> None:
        self._budgets = budgets
        self._shares = shares

    def __repr__(self) -> str:
        return f"<Reservation in {len(self._shares)} budgets>"

    def sent(self) -> None:
        """Marks the request as sent: without a `settle`, the money counts as spent.

        Raises:
            DeadlineExceeded: the lease has expired and the money was released; nothing may be sent.
        """
        if [share for share in self._shares if not share.counter.sent(share.ticket)]:
            self.release()
            raise errors.DeadlineExceeded("the budget's reservation expired before the request was sent")

    def settle(self, cost_nano: int | None) -> None:
        """Replaces the estimate by the real cost; possible until an hour after the lease.

        Args:
            cost_nano: nano-dollars; None if it is unknown: then the estimate stays.
        """
        if cost_nano is not None and cost_nano < 0:
            raise ValueError(f"cost_nano must be 0 or more, not {cost_nano}")
        cost = -1 if cost_nano is None else min(cost_nano, _core.MOST_NANO)
        for share in self._shares:
            if share.counter.settle(share.ticket, cost):
                self._budgets.alert(share.scope, share.counter, share.stamp, share.window)

    def release(self) -> None:
        """Releases all of the money."""
        for share in self._shares:
            if share.ticket >= 0:
                share.counter.settle(share.ticket, 0)


class Budgets:
    """All budgets of one configuration.

    Args:
        configs: in the order in which they are checked.
        segment: contains the counters; processes forked from this one share it.
        spent: returns what was spent in a window before it is first counted; usually ``spent_in(ledger)``.
        hooks: `BudgetAlert` and `BudgetExceededEvent` are emitted to them.
        now: returns seconds since the epoch.
        clock: returns nanoseconds on the core's clock, for leases.

    Thread safety: all methods, in forked processes too.
    """

    def __init__(
        self,
        configs: Iterable[BudgetConfig],
        segment: _core.Segment,
        spent: Spent,
        hooks: events.Hooks,
        now: Callable[[], float] = time.time,
        clock: Callable[[], int] = _core.clock,
    ) -> None:
        self._budgets = tuple(Budget(config) for config in configs)
        self._segment = segment
        self.spent = spent
        self._hooks = hooks
        self._now = now
        self._clock = clock
        self._swept = clock()
        self._pid = os.getpid()
        self._beginning = threading.Lock()
        self._bank: Bank | None = None
        if any(budget.config.window != "request" for budget in self._budgets):
            try:
                _core.Counter(segment, "budget")  # raises at once if the processor cannot count money
            except _core.SegmentFullError as problem:
                raise errors.ConfigError(
                    f"budgets: the state has no room left to count them ({problem}); use fewer endpoints"
                ) from None

    def share(self, bank: Bank) -> None:
        """Shares these budgets with other machines. Call it before the first reservation."""
        self._bank = bank

    def __bool__(self) -> bool:
        return bool(self._budgets)

    # ------------------------------------------------------------------------------------------ reserving

    def reserve(
        self,
        amount_nano: int | None,
        tags: Mapping[str, str],
        lease_s: float,
        *,
        forced: bool = False,
        priority: str = "normal",
        at: float | None = None,
        emit: bool = True,
    ) -> Reservation:
        """Reserves money in every budget that applies: in all of them or in none.

        Args:
            amount_nano: the worst-case cost of the attempt, nano-dollars; None if its price is unknown,
                which hard budgets refuse. 0 is always admitted.
            tags: of the call.
            lease_s: seconds after which the money may be released; longer than the attempt can take.
            forced: only hard budgets may refuse; the others are charged too.
            priority: the call's class; a budget may limit it to a share.
            at: the time of the attempt, seconds since the epoch, which decides the window; by default now.
                The ledger's entry should have the same time.
            emit: whether a refusal is emitted to hooks; False where the call goes on without the attempt.

        Raises:
            BudgetExceeded: of the first budget that is exceeded; one that refuses goes before one that
                downgrades.
        """
        if amount_nano is not None and amount_nano < 0:
            raise ValueError(f"amount_nano must be 0 or more, or None, not {amount_nano}")
        if not 0 < lease_s < 1e9:
            raise ValueError(f"lease_s must be above 0 and below 1e9 seconds, not {lease_s}")
        if not self._budgets:
            return Reservation(self, ())
        self._sweep_after(_SWEEP_NS)
        when = self._now() if at is None else at
        lease = self._clock() + int(lease_s * 1e9)
        shares: list[Share] = []
        breach: tuple[Budget, str] | None = None
        try:
            for budget in self._budgets:
                most = budget.most(amount_nano, forced, priority)
                if breach is not None:
                    # The call is refused anyway; a budget that refuses must not be hidden by one that
                    # downgrades.
                    if budget.config.on_breach == "refuse" and self._is_over(budget, tags, most, when):
                        breach = (budget, OVER)
                        break
                    continue
                found = self._take(budget, tags, amount_nano, most, lease, when, shares)
                if found is not None:
                    breach = (budget, found)
                    if budget.config.on_breach == "refuse":
                        break
            if breach is not None:
                raise self._exceeded(*breach, tags, amount_nano, when, priority, emit)
            return Reservation(self, tuple(shares))
        except BaseException:
            Reservation(self, tuple(shares)).release()
            raise

    def _take(
        self,
        budget: Budget,
        tags: Mapping[str, str],
        amount: int | None,
        most: int,
        lease: int,
        when: float,
        shares: list[Share],
    ) -> str | None:
        """Adds one budget's share, if the budget counts; returns why the budget refuses, or None."""
        if budget.config.window == "request":
            return OVER if most < 0 else None
        nano = min(amount or 0, _core.MOST_NANO)
        must_count = budget.config.hard and most != ANY
        try:
            scope = budget.scope(tags)
            # Again after a window began or was replaced, the bank granted more, or a sweep freed money.
            while True:
                window = budget.window_at(when)
                counter = self._counter(scope, window)
                stamp = self._begun(scope, counter, window)
                if stamp is None:
                    return UNREAD if must_count else None
                bound = self._most_here(scope, window, counter, most)
                reserve = counter.reserve
                # In one statement: an interrupt between two would lose the ticket.
                shares.append(Share(scope, counter, stamp, reserve(stamp, nano, bound, lease), window))
                ticket = shares[-1].ticket
                if ticket >= 0:
                    return None
                shares.pop()
                if ticket == _core.OVER_LIMIT and self._bank is not None and most >= 0:
                    answer = self._lease(self._bank, scope, window, counter, most)
                    if answer == GRANTED:
                        continue
                    if answer == AWAY:
                        if budget.config.hard:
                            return AWAY
                        most = ANY  # an unknown rest refuses a call under hard budgets only
                        continue
                # Reservations of dead workers must not refuse a call, so they are swept first.
                if ticket == _core.OVER_LIMIT and not (most >= 0 and self._sweep_after(_SWEEP_ON_BREACH_NS)):
                    return OVER
        except _core.SegmentFullError as error:
            if must_count:
                return FULL
            log.error("budget %s: a call is not counted: %s", budget.config.name, error)
            return None

    def _counter(self, scope: Scope, window: Window) -> _core.Counter:
        # What one machine commits and what all machines commit are counted in separate cells.
        return scope.counter(self._segment, window, "budget" if self._bank is None else "budget here")

    def _most_here(self, scope: Scope, window: Window, counter: _core.Counter, most: int) -> int:
        """How much may be committed on this machine before a call with ``most``."""
        if self._bank is None or most in (ANY, -1):
            return most
        return self._bank.grant(scope.name, window, counter) - (scope.budget.limit - most)

    def _lease(self, bank: Bank, scope: Scope, window: Window, counter: _core.Counter, most: int) -> str:
        limit = scope.budget.limit

        def spent() -> int:
            return min(self.spent(window.start, scope.tags), _core.MOST_NANO)

        try:
            return bank.lease(scope.name, window, counter, limit, limit - most, self._now(), spent)
        except errors.Error as error:
            log.error(
                "budget %s: the ledger cannot be read, so what was spent is unknown: %s",
                scope.budget.config.name,
                error,
            )
            return AWAY

    def _begun(self, scope: Scope, counter: _core.Counter, window: Window) -> int | None:
        """The counter's stamp, after beginning its window if needed; None if the ledger cannot be read."""
        stamp = counter.stamp
        if counter.window == window.number:
            return stamp
        with self.window_lock():
            stamp = counter.stamp
            if counter.window != window.number:
                if self._clock() < scope.unreadable_until:
                    return None
                name = scope.budget.config.name
                try:
                    # Of a shared budget, this machine has committed nothing yet; the bank knows the rest.
                    spent = 0
                    if self._bank is None:
                        spent = min(self.spent(window.start, scope.tags), _core.MOST_NANO)
                except errors.Error as error:
                    scope.unreadable_until = self._clock() + _RETRY_NS
                    log.error(
                        "budget %s: the ledger cannot be read, so what was spent is unknown: %s", name, error
                    )
                    return None
                passed = [share for amount, share in scope.budget.thresholds if spent >= amount]
                # Alerts below this amount were emitted when it was spent. begin() fails if another process
                # began the window first.
                if counter.begin(stamp, window.number, spent, (1 << len(passed)) - 1) and passed:
                    text = "budget %s: %s begins with %s of %s already spent"
                    log.warning(text, name, window.label, dollars(spent), dollars(scope.budget.limit))
            return counter.stamp

    def window_lock(self) -> threading.Lock:
        # After a fork: a thread of the parent may have held the lock.
        if self._pid != os.getpid():
            self._beginning, self._pid = threading.Lock(), os.getpid()
        return self._beginning

    def _is_over(self, budget: Budget, tags: Mapping[str, str], most: int, when: float) -> bool:
        if budget.config.window == "request":
            return most < 0
        figures = self._figures(budget.scope(tags), when)
        return figures is not None and sum(figures) > most

    def _exceeded(
        self,
        budget: Budget,
        failure: str,
        tags: Mapping[str, str],
        amount: int | None,
        when: float,
        priority: str,
        emit: bool,
    ) -> errors.BudgetExceeded:
        config = budget.config
        name, value, until = config.window, None, None
        spent, reserved = 0, 0
        if config.window != "request":
            window, scope = budget.window_at(when), budget.scope(tags)
            name, value = window.label, scope.shown
            until = None if math.isinf(window.end) else max(0.0, window.end - when)
            if failure == OVER:
                spent, reserved = self._figures(scope, when) or (0, 0)
        event = events.BudgetExceededEvent(
            budget=config.name,
            value=value,
            window=name,
            on_breach=config.on_breach,
            amount_nano=amount,
            spent_nano=spent,
            reserved_nano=reserved,
            limit_nano=budget.limit_for(priority),
        )
        if emit and self._hooks.wanted:
            self._hooks.emit(event)
        return errors.BudgetExceeded(
            refusal_message(event, config.tag, failure, priority if priority in config.shares else None),
            budget=config.name,
            on_breach=config.on_breach,
            retry_after=until,
        )

    # --------------------------------------------------------------------------------------------- alerts

    def alert(self, scope: Scope, counter: _core.Counter, stamp: int, window: Window) -> None:
        """Emits an alert for every share of the limit that spending has reached, once for all processes."""
        thresholds = scope.budget.thresholds
        known, given = scope.alerted
        if known != stamp:
            given = 0
        elsewhere = self._elsewhere(scope, counter, window)
        if given >= len(thresholds) or counter.committed + elsewhere < thresholds[given][0]:
            return
        if counter.stamp != stamp:
            return
        spent = counter.figures()[0] + elsewhere
        while given < len(thresholds) and spent >= thresholds[given][0]:
            if counter.alert(stamp, given):
                self._emit_alert(scope, window, thresholds[given][1], spent)
            given += 1
        scope.alerted = (stamp, given)

    def _elsewhere(self, scope: Scope, counter: _core.Counter, window: Window) -> int:
        return 0 if self._bank is None else self._bank.elsewhere(scope.name, window, counter)

    def _emit_alert(self, scope: Scope, window: Window, share: float, spent: int) -> None:
        budget = scope.budget
        log.warning(
            "budget %s%s: %g %% of %s for %s is spent (%s)",
            budget.config.name,
            of_tag(budget.config.tag, scope.shown),
            share * 100,
            dollars(budget.limit),
            window.label,
            dollars(spent),
        )
        if self._hooks.wanted:
            self._hooks.emit(
                events.BudgetAlert(
                    budget=budget.config.name,
                    value=scope.shown,
                    window=window.label,
                    share=share,
                    spent_nano=spent,
                    limit_nano=budget.limit,
                )
            )

    # ------------------------------------------------------------------------------------------- sweeping

    def sweep(self) -> None:
        """Ends reservations of dead workers and those whose lease expired; `reserve` calls it every 5 s."""
        self._swept = self._clock()
        try:
            self._segment.reap()
            _core.sweep_reservations(self._segment, self._swept)
        except _core.SegmentFullError:
            return  # the segment has no slot for this process; those with a slot do it
        for budget in self._budgets:
            window = budget.window
            if window is None:
                continue
            for scope in tuple(budget.scopes.values()):
                counter = scope.counters.get(window.number & 1)
                if counter is not None and counter.window == window.number:
                    self.alert(scope, counter, counter.stamp, window)

    def _sweep_after(self, interval: int) -> bool:
        if self._clock() - self._swept < interval:
            return False
        self.sweep()
        return True

    # -------------------------------------------------------------------------------------------- reading

    def remaining(self, tags: Mapping[str, str]) -> int | None:
        """What a call with these tags may still commit in the tightest budget, nano-dollars.

        None if there is no limit. 0 also if the ledger cannot be read and a hard budget depends on it.
        """
        when = self._now()
        rest: list[int] = []
        for budget in self._budgets:
            if budget.config.window == "request":
                rest.append(budget.limit)
                continue
            figures = self._figures(budget.scope(tags), when)
            if figures is not None:
                rest.append(max(0, budget.limit - sum(figures)))
            elif budget.config.hard:
                rest.append(0)
        return min(rest, default=None)

    def snapshot(self) -> list[BudgetStatus]:
        """The status of every budget with a window, for each value of its tag that this process has seen."""
        when = self._now()
        found = []
        for budget in self._budgets:
            config = budget.config
            if config.window == "request":
                continue
            if config.tag is None:
                budget.scope({})
            window = budget.window_at(when)
            for scope in tuple(budget.scopes.values()):
                spent, reserved = self._figures(scope, when) or (None, None)
                found.append(
                    BudgetStatus(
                        budget=config.name,
                        value=scope.shown,
                        window=window.label,
                        ends=None if math.isinf(window.end) else window.end,
                        limit_nano=budget.limit,
                        spent_nano=spent,
                        reserved_nano=reserved,
                        hard=config.hard,
                        on_breach=config.on_breach,
                    )
                )
        return found

    def _figures(self, scope: Scope, when: float) -> tuple[int, int] | None:
        """(spent, reserved) in the window of a time; None if they are unknown."""
        window = scope.budget.window_at(when)
        try:
            counter = self._counter(scope, window)
            if self._begun(scope, counter, window) is None:
                return None
            spent, reserved = counter.figures()
            return max(0, spent + self._elsewhere(scope, counter, window)), reserved
        except _core.SegmentFullError:
            return None
