"""Budgets: what may still be spent, reserved before a request is sent and settled when its cost is known.

Owns which budgets a call counts in, when a window begins, what is in it at its beginning, and who is told.
Counting is the core's (`fastroute._core.Counter`: no overdraft, whatever the number of threads and
processes); what a call can cost at worst, and what to do instead of a refused one, are its caller's. Days and
months are `windows.py`, the counters of one budget `scopes.py`, values and words `values.py`.

The way of a reservation::

    reserve(worst case)      every budget that applies, all or none, or BudgetExceeded
    .sent()                  just before the request leaves: from here a killed worker's estimate stays spent
    .settle(cost)            the real cost takes the place of the estimate
    .release()               nothing was sent, or nothing will be charged

A reservation that nobody ends has a lease. When that is over (or its worker dead) the next sweep gives it
back if it was not sent, and keeps its estimate as spent if it was.
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
from .values import (
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
    sentence,
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

_SWEEP_NS = 5_000_000_000  # how often leases and dead workers are looked after
_SWEEP_ON_BREACH_NS = 1_000_000_000  # and how often because a call would be refused
_RETRY_NS = 5_000_000_000  # how long after a failure the ledger is not asked again


class Reservation:
    """Money set aside for one attempt, in every budget that it counts in.

    Thread safety: all methods. The first `settle` or `release` counts; any later one changes nothing. In a
    forked child nothing has an effect: the reservation is the parent's.
    """

    __slots__ = ("_budgets", "_shares")

    def __init__(self, budgets: Budgets, shares: tuple[Share, ...]) -> None:
        self._budgets = budgets
        self._shares = shares

    def __repr__(self) -> str:
        return f"<Reservation in {len(self._shares)} budgets>"

    def sent(self) -> None:
        """The request is about to be sent, so the money counts as spent if nobody settles.

        Raises:
            DeadlineExceeded: the lease is over and the money given back; nothing may be sent.
        """
        if [share for share in self._shares if not share.counter.sent(share.ticket)]:
            self.release()
            raise errors.DeadlineExceeded("the budget's reservation ran out before the request was sent")

    def settle(self, cost_nano: int | None) -> None:
        """Puts the real cost in the place of the estimate; after the lease too, for an hour.

        Args:
            cost_nano: nano-dollars; None if it is not known, and the estimate stays.
        """
        if cost_nano is not None and cost_nano < 0:
            raise ValueError(f"cost_nano must be 0 or more, not {cost_nano}")
        cost = -1 if cost_nano is None else min(cost_nano, _core.MOST_NANO)
        for share in self._shares:
            if share.counter.settle(share.ticket, cost):
                self._budgets.alert(share.scope, share.counter, share.stamp, share.window)

    def release(self) -> None:
        """Gives all of it back."""
        for share in self._shares:
            if share.ticket >= 0:
                share.counter.settle(share.ticket, 0)


class Budgets:
    """All budgets of one configuration.

    Args:
        configs: in the order in which they are asked.
        segment: where the money is counted; processes forked from this one share it.
        spent: what a window holds when it is first counted, usually ``spent_in(ledger)``.
        hooks: hear `BudgetAlert` and `BudgetExceededEvent`.
        now: seconds since the epoch.
        clock: ns on the core's clock, for leases.

    Thread safety: all methods, in any forked process.
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
                _core.Counter(segment, "budget")  # says at once if this processor cannot count money
            except _core.SegmentFullError as problem:
                raise errors.ConfigError(
                    f"budgets: there is no room to count them beside the endpoints ({problem}), "
                    "endpoints must be fewer"
                ) from None

    def share(self, bank: Bank) -> None:
        """Has many machines spend from these budgets. Before the first reservation."""
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
        told: bool = True,
    ) -> Reservation:
        """Sets money aside in every budget that applies, in all of them or in none.

        Args:
            amount_nano: what the attempt can cost at worst, nano-dollars; None if its price is unknown, which
                no hard budget lets in. 0 is always let in.
            tags: of the call.
            lease_s: seconds after which it may be taken back: more than the attempt can last.
            forced: ask the hard budgets only; the others are charged all the same.
            priority: the call's class, which may have a share of a budget only.
            at: the attempt's time, seconds since the epoch, which decides the window; now if left out. The
                ledger's entry should carry the same.
            told: whether hooks hear of a refusal; not of one that refuses no call.

        Raises:
            BudgetExceeded: of the first budget in the way; one that refuses goes before one that downgrades.
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
                    # Refused it will be. A budget that refuses must not look like one that downgrades.
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
                raise self._exceeded(*breach, tags, amount_nano, when, priority, told)
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
        """Adds one budget's share, if there is anything to count; or says why there is none."""
        if budget.config.window == "request":
            return OVER if most < 0 else None
        nano = min(amount or 0, _core.MOST_NANO)
        uncounted = budget.config.hard and most != ANY
        try:
            scope = budget.scope(tags)
            while True:
                window = budget.window_at(when)
                counter = self._counter(scope, window)
                stamp = self._begun(scope, counter, window)
                if stamp is None:
                    return UNREAD if uncounted else None
                bound = self._most_here(scope, window, counter, most)
                reserve = counter.reserve
                # In one line: an interrupt between two would lose the ticket.
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
                        most = ANY  # what nobody can say refuses nothing that is not hard
                        continue
                # What dead workers hold is not spent, so it must not be what refuses a call.
                if ticket == _core.OVER_LIMIT and not (most >= 0 and self._sweep_after(_SWEEP_ON_BREACH_NS)):
                    return OVER
        except _core.SegmentFullError as error:
            if uncounted:
                return FULL
            log.error("budget %s: a call is not counted: %s", budget.config.name, error)
            return None

    def _counter(self, scope: Scope, window: Window) -> _core.Counter:
        # What one machine of many commits is another number than what all do: the two never meet.
        return scope.counter(self._segment, window, "budget" if self._bank is None else "budget here")

    def _most_here(self, scope: Scope, window: Window, counter: _core.Counter, most: int) -> int:
        """How much may be committed before, on this machine."""
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
            log.error("budget %s: what has been spent cannot be read: %s", scope.budget.config.name, error)
            return AWAY

    def _begun(self, scope: Scope, counter: _core.Counter, window: Window) -> int | None:
        """The counter's stamp once it is in a window; None if what was spent before cannot be read."""
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
                    # Of what many machines share, this one has committed nothing yet; the rest is the bank's.
                    spent = 0
                    if self._bank is None:
                        spent = min(self.spent(window.start, scope.tags), _core.MOST_NANO)
                except errors.Error as error:
                    scope.unreadable_until = self._clock() + _RETRY_NS
                    log.error("budget %s: what has been spent cannot be read: %s", name, error)
                    return None
                passed = [share for amount, share in scope.budget.thresholds if spent >= amount]
                # Whoever spent it has told; another process may have begun the window meanwhile.
                if counter.begin(stamp, window.number, spent, (1 << len(passed)) - 1) and passed:
                    text = "budget %s: %s begins with %s of %s spent"
                    log.warning(text, name, window.label, dollars(spent), dollars(scope.budget.limit))
            return counter.stamp

    def window_lock(self) -> threading.Lock:
        # A thread of the parent may have held it while forking.
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
        told: bool,
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
        if told and self._hooks.wanted:
            self._hooks.emit(event)
        return errors.BudgetExceeded(
            sentence(event, config.tag, failure, priority if priority in config.shares else None),
            budget=config.name,
            on_breach=config.on_breach,
            retry_after=until,
        )

    # --------------------------------------------------------------------------------------------- alerts

    def alert(self, scope: Scope, counter: _core.Counter, stamp: int, window: Window) -> None:
        """Tells of every share of the limit that spending has reached, if nobody has yet."""
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
                self._tell(scope, window, thresholds[given][1], spent)
            given += 1
        scope.alerted = (stamp, given)

    def _elsewhere(self, scope: Scope, counter: _core.Counter, window: Window) -> int:
        return 0 if self._bank is None else self._bank.elsewhere(scope.name, window, counter)

    def _tell(self, scope: Scope, window: Window, share: float, spent: int) -> None:
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
        """Ends what dead workers hold and what has outlived its lease. `reserve` does it every 5 seconds."""
        self._swept = self._clock()
        try:
            self._segment.reap()
            _core.sweep_reservations(self._segment, self._swept)
        except _core.SegmentFullError:
            return  # one process too many; those that have a slot will do it
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

        None if there is no limit, 0 also when the ledger cannot tell what a hard budget has spent.
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
        """How every budget with a window stands; one per tag for each value that this process has seen."""
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
        """(spent, reserved) in the window of a time; None if they cannot be known."""
        window = scope.budget.window_at(when)
        try:
            counter = self._counter(scope, window)
            if self._begun(scope, counter, window) is None:
                return None
            spent, reserved = counter.figures()
            return max(0, spent + self._elsewhere(scope, counter, window)), reserved
        except _core.SegmentFullError:
            return None
