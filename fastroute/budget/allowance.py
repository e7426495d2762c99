"""The budget of one copy of a client: ``Client.with_options(budget=…)``.

It counts in this process, from the moment the copy is made, and is not in the configuration.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable

from fastroute import errors
from fastroute.figures import dollars
from fastroute.platform import forks
from fastroute.types import BudgetStatus

from .refusal import Assumption, MoneyReserved, costs

_NAME = "with_options"
_RELEASED_SECONDS = 1.0
_numbers = itertools.count()


class QueueingPurse(ABC):
    """A `fastroute.types.Purse` whose calls wait while its money is only reserved for others."""

    @abstractmethod
    def reserve(
        self,
        attempt: str,
        amount_nano: int | None,
        *,
        assumed: Assumption | None = None,
        behind: Callable[[str], bool] | None = None,
    ) -> None:
        """As a purse's, with what else `Budgets.reserve` takes.

        Raises:
            MoneyReserved, BudgetExceeded: as `Budgets.reserve`.
        """

    @abstractmethod
    def settle(self, attempt: str, cost_nano: int | None, *, recorded: bool = True) -> None:
        """As a purse's, with what else `Reservation.settle` takes."""


class Allowance(QueueingPurse):
    """Nano-dollars that may be spent in total: reserved before a request is sent, settled afterwards.

    Args:
        limit_nano: nano-dollars.
        freed: called with the name of its line whenever money is released.

    Thread safety: all methods; the lock is held for sums only. A forked child continues with its own copy.
    """

    def __init__(self, limit_nano: int, freed: Callable[[str], None] | None = None) -> None:
        self.limit_nano = limit_nano
        self._freed = freed
        self._line = f"{_NAME}\0{next(_numbers)}"
        self._spent = 0
        self._reserved: dict[str, int] = {}
        # Reentrant: a garbage collection while it is held may drop a stream, whose money is settled.
        self._lock = threading.RLock()
        _allowances.add(self)

    @property
    def committed(self) -> int:
        """Nano-dollars spent, or reserved for running calls."""
        with self._lock:
            return self._committed()

    def _committed(self) -> int:
        return self._spent + sum(self._reserved.values())

    def status(self) -> BudgetStatus:
        """What is left."""
        with self._lock:
            spent, committed = self._spent, self._committed()
        return BudgetStatus(
            name=_NAME,
            window="total",
            period="total",
            limit_nano=self.limit_nano,
            spent_nano=spent,
            reserved_nano=committed - spent,
        )

    def reserve(
        self,
        attempt: str,
        amount_nano: int | None,
        *,
        assumed: Assumption | None = None,
        behind: Callable[[str], bool] | None = None,
    ) -> None:
        """Reserves the worst-case cost of an attempt, by its id.

        Raises:
            MoneyReserved: it does not fit before other calls have released what is reserved for them.
            BudgetExceeded: it does not fit, or the price is unknown (None).
        """
        waits = behind is not None and behind(self._line)
        with self._lock:
            spent, committed = self._spent, self._committed()
            if not waits and amount_nano is not None and committed + amount_nano <= self.limit_nano:
                self._reserved[attempt] = amount_nano
                return
        cost, cure = costs(amount_nano, assumed)
        passing = amount_nano is not None and spent + amount_nano <= self.limit_nano
        if amount_nano is not None:
            cure += ", or raise the budget"
        if passing:
            cure = f"wait for the calls under way, {cure}"
        shown, limit = dollars(committed, exact=True), dollars(self.limit_nano, exact=True)
        text = f"with_options(budget=…): {cost}, and {shown} is spent or reserved of {limit}; {cure}"
        if amount_nano is not None and passing:
            amount = amount_nano

            def ready() -> bool:
                with self._lock:
                    spent, committed = self._spent, self._committed()
                return committed + amount <= self.limit_nano or spent + amount > self.limit_nano

            raise MoneyReserved(
                text,
                budget=_NAME,
                retry_after=_RELEASED_SECONDS,
                line=self._line,
                ready=ready,
                refused=None,
            )
        raise errors.BudgetExceeded(text, budget=_NAME)

    def settle(self, attempt: str, cost_nano: int | None, *, recorded: bool = True) -> None:
        """Replaces an attempt's reservation by its cost, once; None keeps the reserved amount as the cost."""
        with self._lock:
            if attempt not in self._reserved:
                return
            reserved = self._reserved[attempt]
            cost = reserved if cost_nano is None else cost_nano
            try:
                # In one statement: an interrupt between two would count it twice. The sum is read last, since
                # a settlement in a finalizer may come in between.
                _, self._spent = self._reserved.pop(attempt), self._spent + cost
            except MemoryError:
                self._reserved[attempt] = reserved
                raise
        if self._freed is not None:
            self._freed(self._line)


_allowances: weakref.WeakSet[Allowance] = weakref.WeakSet()


def _after_fork() -> None:
    for allowance in list(_allowances):
        allowance._lock = threading.RLock()  # a thread of the parent may have held the old one


forks.in_child(_after_fork)
