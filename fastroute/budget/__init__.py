"""Budgets: money is reserved before a request is sent, and settled when its cost is known.

The native core counts (`fastroute._core.Counter`), and never allows an overdraft, whatever the number of
threads and processes. Windows of time are in `windows.py`, the counters of one budget in `scopes.py`,
reservations in `reservation.py`, refusals and their messages in `refusal.py`.

A refusal is final if the money is spent. If it is only reserved for other calls, `MoneyReserved` is raised
instead: it names the line in which the call may wait, and says when it is worth to ask again.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from attrs import frozen

from fastroute import _core, errors, events
from fastroute.config import BudgetConfig
from fastroute.figures import dollars
from fastroute.types import BudgetStatus, Request

from .allowance import Allowance, QueueingPurse
from .bank import AWAY, GRANTED, REFUSED, UNKNOWN, Bank, Spent, spent_in
from .refusal import BEHIND, FULL, OVER, UNREAD, Assumption, MoneyReserved, of_tag, refusal_message
from .reservation import Reservation, Share
from .scopes import ANY, CROWDED_MINUTES, Budget, Scope, crowding
from .windows import Window, window_at

__all__ = [
    "AWAY",
    "CROWDED_MINUTES",
    "GRANTED",
    "REFUSED",
    "Allowance",
    "Assumption",
    "Bank",
    "Budgets",
    "MoneyReserved",
    "QueueingPurse",
    "Reservation",
    "Spent",
    "Window",
    "crowding",
    "spent_in",
    "window_at",
]

log = logging.getLogger("fastroute")

_SWEEP_NS = 5_000_000_000  # between two sweeps for expired leases and dead workers
_SWEEP_ON_BREACH_NS = 1_000_000_000  # the same, when a call would be refused
_RETRY_NS = 5_000_000_000  # after the ledger failed, before it is read again
_RETRY_SECONDS = 5.0  # what a caller is told then, and while Redis is unavailable
_GRANTED_SECONDS = 60.0  # what a caller is told at most while other machines share a budget
_RELEASED_SECONDS = 1.0  # the same while money is reserved for other calls, which take seconds, not hours


@frozen
class Breach:
    """Why a budget refuses a call.

    Attributes:
        failure: one of the words of `refusal.py` and `bank.py`.
        most: nano-dollars that may be committed before the call; negative: it never fits.
        spent, reserved: of the budget in its window; 0 where they play no part.
    """

    budget: Budget
    failure: str
    most: int
    spent: int = 0
    reserved: int = 0

    @property
    def passing(self) -> bool:
        """Whether it would fit if nothing was reserved for others: then it may wait for that."""
        return self.failure in (OVER, BEHIND) and self.spent <= self.most

    @property
    def rank(self) -> int:
        """0 for the worst: a budget that refuses is not hidden by one that downgrades or is waited for."""
        return 2 * (self.budget.config.on_breach != "refuse") + self.passing


class Budgets:
    """All budgets of one configuration.

    Args:
        configs: in the order in which they are checked.
        segment: contains the counters; processes forked from this one share it.
        spent: returns what was spent in a window before it is first counted; usually ``spent_in(ledger)``.
        hooks: `BudgetAlert` and `BudgetExceededEvent` are emitted to them.
        freed: called with the name of a line (`MoneyReserved.line`) whenever money of it is released.
        now: returns seconds since the epoch.
        clock: returns nanoseconds on the core's clock, for leases.
        recorded: False without a ledger, where ``spent`` knows of nothing. A hard budget whose count was
            damaged then refuses until its window ends.

    Thread safety: all methods, in forked processes too.
    """

    def __init__(
        self,
        configs: Iterable[BudgetConfig],
        segment: _core.Segment,
        spent: Spent,
        hooks: events.Hooks,
        freed: Callable[[str], None] | None = None,
        now: Callable[[], float] = time.time,
        clock: Callable[[], int] = _core.clock,
        recorded: bool = True,
    ) -> None:
        self._recorded = recorded
        self._budgets = tuple(Budget(config) for config in configs)
        self._segment = segment
        self.spent = spent
        self._hooks = hooks
        self._freed = freed
        self._now = now
        self._clock = clock
        self._swept = clock()
        self._pid = os.getpid()
        self._beginning = threading.Lock()
        self._bank: Bank | None = None
        self._kind = "budget"  # the beginning of the names of counters
        self._warned: dict[tuple[str, str], int] = {}
        self._full: dict[str, _core.EventCount] = {}
        counted = [budget.config for budget in self._budgets if budget.config.window != "request"]
        if counted:
            try:
                _core.Counter(segment, "budget")  # raises at once if the processor cannot count money
                for config in counted:
                    if config.tag is not None:
                        self._full[config.name] = crowding(segment, config.name)
            except _core.SegmentFullError as problem:
                raise errors.ConfigError(
                    f"budgets: the state has no room left to count them ({problem}); use fewer endpoints"
                ) from None

    def share(self, bank: Bank) -> None:
        """Shares these budgets with other machines. Call it before the first reservation."""
        # What one machine commits and what all machines commit are counted in separate cells.
        self._bank, self._kind = bank, "budget here"

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
        served: bool = False,
        priority: str = "normal",
        at: float | None = None,
        emit: bool = True,
        assumed: Assumption | None = None,
        behind: Callable[[str], bool] | None = None,
    ) -> Reservation:
        """Reserves money in every budget that applies: in all of them or in none.

        Args:
            amount_nano: the worst-case cost of the attempt, nano-dollars; None if its price is unknown,
                which hard budgets refuse. 0 is always admitted.
            tags: of the call.
            lease_s: seconds after which the money may be released; longer than the attempt can take.
            forced: only hard budgets may refuse; the others are charged too.
            served: the call is at the cheapest tier there is for it, so budgets that downgrade and are not
                hard admit it; they are charged.
            priority: the call's class; a budget may limit it to a share.
            at: the time of the attempt, seconds since the epoch, which decides the window; by default now.
                The ledger's entry should have the same time.
            emit: whether a refusal is emitted to hooks; False where the call goes on without the attempt.
            assumed: what the amount was computed from, for the message.
            behind: says of a line whether other calls wait in it that must not be overtaken.

        Raises:
            MoneyReserved: it would fit, but for what is reserved for other calls.
            BudgetExceeded: it does not fit. Of several budgets, the one is named that refuses rather than
                downgrades.
        """
        if amount_nano is not None and amount_nano < 0:
            raise ValueError(f"amount_nano must be 0 or more, or None, not {amount_nano}")
        if not 0 < lease_s < 1e9:
            raise ValueError(f"lease_s must be above 0 and below 1e9 seconds, not {lease_s}")
        if not self._budgets:
            return Reservation(self._settled, ())
        self._sweep_after(_SWEEP_NS)
        when = self._now() if at is None else at
        lease = self._clock() + int(lease_s * 1e9)
        shares: list[Share] = []
        breach: Breach | None = None
        try:
            for budget in self._budgets:
                most = budget.most(amount_nano, forced, served, priority)
                if breach is None:
                    failure = self._take(budget, tags, amount_nano, most, lease, when, shares, behind)
                else:
                    # It is refused or waits anyway: only a worse reason is looked for.
                    failure = OVER if self._is_over(budget, tags, most, when) else None
                if failure is not None:
                    found = self._breach(budget, failure, tags, most, when)
                    if breach is None or found.rank < breach.rank:
                        breach = found
                    if breach.rank == 0:
                        break
            if breach is not None:
                raise self._exceeded(breach, tags, amount_nano, when, priority, emit, assumed)
            return Reservation(self._settled, tuple(shares))
        except BaseException:
            Reservation(self._settled, tuple(shares)).release()
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
        behind: Callable[[str], bool] | None,
    ) -> str | None:
        """Adds one budget's share, if the budget counts; returns why the budget refuses, or None."""
        if budget.config.window == "request":
            return OVER if most < 0 else None
        nano = min(amount or 0, _core.MOST_NANO)
        must_count = budget.config.hard and most != ANY
        scope: Scope | None = None
        try:
            # Again after a window began or was replaced, the counter was given to another value, the bank
            # granted more, or a sweep freed money.
            while True:
                window = budget.window_at(when)
                found, counter = self._counted(budget, tags, window)
                if found is not scope:
                    scope = found
                    # Before the first look at the counter: money that is free belongs to the first in line.
                    if behind is not None and 0 <= most < ANY and behind(scope.name):
                        return BEHIND
                stamp = self._begun(scope, counter, window)
                if stamp is None:
                    return UNREAD if must_count else None
                bound = self._most_here(scope, window, counter, most)
                share = Share(scope, counter, stamp, window)
                shares.append(share)
                share.ticket = ticket = counter.reserve(stamp, nano, bound, lease)
                if ticket >= 0:
                    return None
                shares.pop()
                if ticket == _core.OVER_LIMIT and self._bank is not None and most >= 0:
                    answer = self._lease(self._bank, scope, window, counter, most)
                    if answer == GRANTED:
                        continue
                    if answer in (AWAY, UNREAD):
                        if budget.config.hard:
                            return answer
                        most = ANY  # an unknown rest refuses a call under hard budgets only
                        continue
                # Reservations of dead workers must not refuse a call, so they are swept first.
                if ticket == _core.OVER_LIMIT and not (most >= 0 and self._sweep_after(_SWEEP_ON_BREACH_NS)):
                    return OVER
        except _core.SegmentFullError as error:
            if must_count:
                return FULL
            self._warn(budget, window, "a call is not counted: %s", error)
            return None

    def _counted(
        self, budget: Budget, tags: Mapping[str, str], window: Window
    ) -> tuple[Scope, _core.Counter]:
        """Where a call with these tags is counted: by its own value, or with others if there is no room.

        Raises:
            SegmentFullError: there is no room for either.
        """
        scope = budget.scope(tags)
        counter = scope.known_counter(self._segment, window, self._kind)
        if counter is None:
            shared, when, clock = self._bank is not None, self._now(), self._clock()
            counter = scope.claimed_counter(
                self._segment, window, self._kind, shared=shared, when=when, clock=clock
            )
        if counter is None:
            text = "there is no room to count another value of %s; new values are counted together, as others"
            self._warn(budget, window, text, budget.config.tag)
            full = self._full.get(budget.config.name)
            if full is not None:
                full.add()
            scope = budget.scope_of_others(scope.group)
            counter = scope.known_counter(self._segment, window, self._kind)
            assert counter is not None
        return scope, counter

    def _warn(self, budget: Budget, window: Window, text: str, *values: object) -> None:
        """Logs that a budget cannot count as it should, once in a window for each cause."""
        told = (budget.config.name, text)
        if self._warned.get(told) != window.number:
            self._warned[told] = window.number
            log.warning("budget %s, %s: " + text, budget.config.name, window.label, *values)

    def crowded(self) -> dict[str, tuple[int, int]]:
        """Of each budget with a tag: how often a value had no counter of its own, in all and of late.

        Of late is within the last five minutes. Such a value was counted together with others.
        """
        return {name: (full.total(), full.lately(CROWDED_MINUTES)) for name, full in self._full.items()}

    def _most_here(self, scope: Scope, window: Window, counter: _core.Counter, most: int) -> int:
        """How much may be committed on this machine before a call with ``most``."""
        if self._bank is None or most in (ANY, -1):
            return most
        return self._bank.grant(scope.name, window, counter) - (scope.budget.limit - most)

    def _lease(self, bank: Bank, scope: Scope, window: Window, counter: _core.Counter, most: int) -> str:
        limit = scope.budget.limit

        def spent(damaged: bool) -> int:
            if damaged and scope.budget.config.hard and not self._recorded:
                known = UNKNOWN
            else:
                known = min(self.spent(window.start, scope.tags), _core.MOST_NANO)
            if damaged:
                text = "budget %s: its count in Redis was damaged; %s begins anew with %s spent"
                shown = "all" if known == UNKNOWN else dollars(known)
                log.error(text, scope.budget.config.name, window.label, shown)
            return known

        try:
            return bank.lease(scope.name, window, counter, limit, limit - most, self._now(), spent)
        except errors.Error as error:
            log.error(
                "budget %s: the ledger cannot be read, so what was spent is unknown: %s",
                scope.budget.config.name,
                error,
            )
            return UNREAD

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
                damaged = counter.damaged
                try:
                    if self._bank is not None:
                        # This machine has committed nothing yet; the bank knows the rest. After damage it
                        # may have committed all that it was granted.
                        spent = self._bank.grant(scope.name, window, counter) if damaged else 0
                    elif damaged and scope.budget.config.hard and (scope.others or not self._recorded):
                        spent = UNKNOWN
                    elif scope.others:
                        spent = 0  # the ledger does not say which values were counted here
                    else:
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
                begun = counter.begin(stamp, window.number, spent, (1 << len(passed)) - 1)
                if begun and damaged:
                    text = (
                        "budget %s: its count in the shared state was damaged; %s begins anew with %s spent"
                    )
                    log.error(text, name, window.label, "all" if spent == UNKNOWN else dollars(spent))
                elif begun and passed:
                    text = "budget %s: %s begins with %s of %s already spent"
                    # A value begins whenever it gets a cell again, and callers may choose how often that is.
                    level = logging.INFO if scope.is_value else logging.WARNING
                    log.log(level, text, name, window.label, dollars(spent), dollars(scope.budget.limit))
            return counter.stamp

    def window_lock(self) -> threading.Lock:
        # After a fork: a thread of the parent may have held the lock.
        if self._pid != os.getpid():
            self._beginning, self._pid = threading.Lock(), os.getpid()
        return self._beginning

    def _is_over(self, budget: Budget, tags: Mapping[str, str], most: int, when: float) -> bool:
        if budget.config.window == "request":
            return most < 0
        figures = self._figures(budget, tags, when)
        return figures is not None and sum(figures) > most

    def _breach(
        self, budget: Budget, failure: str, tags: Mapping[str, str], most: int, when: float
    ) -> Breach:
        spent = reserved = 0
        if failure in (OVER, BEHIND) and budget.config.window != "request":
            spent, reserved = self._figures(budget, tags, when) or (0, 0)
        return Breach(budget, failure, most, spent, reserved)

    def _exceeded(
        self,
        breach: Breach,
        tags: Mapping[str, str],
        amount: int | None,
        when: float,
        priority: str,
        emit: bool,
        assumed: Assumption | None,
    ) -> errors.BudgetExceeded:
        """The refusal for a breach; it is emitted unless the call may wait."""
        budget, config = breach.budget, breach.budget.config
        name, value, window = config.window, None, None
        if config.window != "request":
            window = budget.window_at(when)
            scope = self._placed(budget, tags, window)
            name, value = window.label, scope.shown
        event = events.BudgetExceededEvent(
            budget=config.name,
            value=value,
            window=name,
            on_breach=config.on_breach,
            amount_nano=amount,
            spent_nano=breach.spent,
            reserved_nano=breach.reserved,
            limit_nano=budget.limit_for(priority),
        )
        text = refusal_message(
            event,
            config.tag,
            breach.failure,
            passing=breach.passing,
            priority=priority if priority in config.shares else None,
            assumed=assumed,
        )
        if window is not None and breach.passing:
            return MoneyReserved(
                text,
                budget=config.name,
                on_breach=config.on_breach,
                hard=config.hard,
                retry_after=_RELEASED_SECONDS,
                line=scope.name,
                ready=self._ready(budget, tags, window, breach.most),
                refused=(lambda: self._emit(event)) if emit else None,
            )
        if emit:
            self._emit(event)
        retry_after = None
        if breach.failure in (UNREAD, AWAY):
            retry_after = _RETRY_SECONDS
        elif window is not None and breach.failure == OVER and breach.most >= 0 and window.end < math.inf:
            # A call that fits no window at all is not told to wait for the next one.
            retry_after = max(0.0, window.end - when)
            if self._bank is not None:
                # What other machines were granted counts as spent here, until they return what is left of it.
                retry_after = min(retry_after, _GRANTED_SECONDS)
        return errors.BudgetExceeded(
            text,
            budget=config.name,
            on_breach=config.on_breach,
            hard=config.hard,
            retry_after=retry_after,
        )

    def _ready(
        self, budget: Budget, tags: Mapping[str, str], window: Window, most: int
    ) -> Callable[[], bool]:
        """See `MoneyReserved.ready`."""

        def ready() -> bool:
            self._sweep_after(_SWEEP_ON_BREACH_NS)
            if not window.start <= self._now() < window.end:
                return True
            try:
                scope, counter = self._counted(budget, tags, window)
            except _core.SegmentFullError:
                return True
            # Nothing is reserved any more if it has lost its cell since.
            if counter.window != window.number:
                return True
            if counter.committed <= self._most_here(scope, window, counter, most):
                return True
            # Others may have spent what was only reserved, also without a change of the sum of both.
            return counter.figures()[0] + self._elsewhere(scope, counter, window) > most

        return ready

    def _emit(self, event: events.Event) -> None:
        if self._hooks.wanted:
            self._hooks.emit(event)

    def _settled(self, share: Share) -> None:
        """Called by a reservation for each share that was settled."""
        self.alert(share.scope, share.counter, share.stamp, share.window)
        if self._freed is not None:
            self._freed(share.scope.name)

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
            for scope in budget.all_scopes():
                counter = scope.known_counter(self._segment, window, self._kind)
                stamp = 0 if counter is None else counter.stamp
                if counter is not None and stamp >> 24 == window.number:
                    self.alert(scope, counter, stamp, window)

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
            figures = self._figures(budget, tags, when)
            if figures is not None:
                rest.append(max(0, budget.limit - sum(figures)))
            elif budget.config.hard:
                rest.append(0)
        return min(rest, default=None)

    def affordable(self, tags: Mapping[str, str], priority: str = "normal") -> int | None:
        """The most that a call with these tags may cost, nano-dollars, once the calls under way cost nothing.

        Of the tightest hard budget; None if there is no hard budget. 0 also if the ledger cannot be read.
        """
        when = self._now()
        rest: list[int] = []
        for budget in self._budgets:
            if not budget.config.hard:
                continue
            spent = 0
            if budget.config.window != "request":
                figures = self._figures(budget, tags, when)
                spent = budget.limit if figures is None else figures[0]
            rest.append(max(0, budget.limit_for(priority) - spent))
        return min(rest, default=None)

    def snapshot(self, tags: Mapping[str, str] | None = None) -> tuple[BudgetStatus, ...]:
        """What is left of every budget with a window.

        Args:
            tags: for a call with these tags. Default: for each value of a tag that this process has seen.
        """
        when = self._now()
        found = []
        for budget in self._budgets:
            if budget.config.window == "request":
                continue
            window = budget.window_at(when)
            if tags is not None or budget.config.tag is None:
                figures = self._figures(budget, tags or {}, when) or (None, None)
                found.append(_status(self._placed(budget, tags or {}, window), window, figures))
                continue
            # By value, for those of two keys are counted together.
            known = {scope.value: scope for scope in tuple(budget.scopes.values())}
            for scope in (*known.values(), *tuple(budget.others.values())):
                counter = scope.known_counter(self._segment, window, self._kind)
                if counter is not None and counter.window == window.number:
                    found.append(_status(scope, window, self._sums(scope, counter, window)))
                elif scope.unreadable_until > self._clock():
                    found.append(_status(scope, window, (None, None)))
        return tuple(found)

    def left_for(self, request: Request) -> Callable[[], tuple[BudgetStatus, ...]] | None:
        """Tells what is left of the budgets that a request counts in, when called; None if there are none."""
        allowance = request.allowance if isinstance(request.allowance, Allowance) else None
        if allowance is None and not self._budgets:
            return None
        return partial(self._left, request.options.tags, allowance)

    def _left(self, tags: Mapping[str, str], allowance: Allowance | None) -> tuple[BudgetStatus, ...]:
        found = self.snapshot(tags)
        return found if allowance is None else (*found, allowance.status())

    def _placed(self, budget: Budget, tags: Mapping[str, str], window: Window) -> Scope:
        """The scope in which a call with these tags is counted."""
        try:
            return self._counted(budget, tags, window)[0]
        except _core.SegmentFullError:
            return budget.scope(tags)

    def _figures(self, budget: Budget, tags: Mapping[str, str], when: float) -> tuple[int, int] | None:
        """(spent, reserved) where a call is counted, in the window of a time; None if they are unknown."""
        window = budget.window_at(when)
        try:
            scope, counter = self._counted(budget, tags, window)
            if self._begun(scope, counter, window) is None:
                return None
            return self._sums(scope, counter, window)
        except _core.SegmentFullError:
            return None

    def _sums(self, scope: Scope, counter: _core.Counter, window: Window) -> tuple[int, int]:
        spent, reserved = counter.figures()
        return max(0, spent + self._elsewhere(scope, counter, window)), reserved


def _status(scope: Scope, window: Window, figures: tuple[int, int] | tuple[None, None]) -> BudgetStatus:
    budget = scope.budget
    config = budget.config
    return BudgetStatus(
        name=config.name,
        tag=config.tag,
        value=scope.shown,
        others=scope.others,
        window=config.window,
        period=window.label,
        resets_at=None if math.isinf(window.end) else window.end,
        limit_nano=budget.limit,
        spent_nano=figures[0],
        reserved_nano=figures[1],
        hard=config.hard,
        on_breach=config.on_breach,
    )
