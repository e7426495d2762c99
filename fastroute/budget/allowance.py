"""The budget of one copy of a client: ``Client.with_options(budget=…)``.

It counts in this process, from the moment the copy is made, and is not in the configuration.
"""

from __future__ import annotations

import threading
import weakref

from fastroute import errors
from fastroute.figures import dollars
from fastroute.platform import forks


class Allowance:
    """Nano-dollars that may be spent in total: reserved before a request is sent, settled afterwards.

    Thread safety: all methods; the lock is held for sums only. A forked child continues with its own copy.
    """

    def __init__(self, limit_nano: int) -> None:
        self.limit_nano = limit_nano
        self._spent = 0
        self._reserved: dict[str, int] = {}
        self._lock = threading.Lock()
        _allowances.add(self)

    @property
    def committed(self) -> int:
        """Nano-dollars spent, or reserved for running calls."""
        return self._spent + sum(tuple(self._reserved.values()))

    def reserve(self, attempt: str, amount_nano: int | None) -> None:
        """Reserves the worst-case cost of an attempt, by its id.

        Raises:
            BudgetExceeded: it does not fit, or the price is unknown (None).
        """
        with self._lock:
            committed = self.committed
            if amount_nano is not None and committed + amount_nano <= self.limit_nano:
                self._reserved[attempt] = amount_nano
                return
        cost, right = "the call's price is unknown", "set the model's prices"
        if amount_nano is not None:
            cost = f"the call could cost {dollars(amount_nano, exact=True)}"
            right = "lower max_tokens, or raise the budget"
        spent, limit = dollars(committed, exact=True), dollars(self.limit_nano, exact=True)
        raise errors.BudgetExceeded(
            f"with_options(budget=…): {cost}, and {spent} is spent or reserved of {limit}; {right}",
            budget="with_options",
        )

    def settle(self, attempt: str, cost_nano: int | None) -> None:
        """Replaces an attempt's reservation by its cost, once; None keeps the reserved amount as the cost."""
        with self._lock:
            cost = self._reserved.get(attempt, 0) if cost_nano is None else cost_nano
            if attempt in self._reserved:
                # In one statement: an interrupt between two would count it twice.
                self._spent, _ = self._spent + cost, self._reserved.pop(attempt)


_allowances: weakref.WeakSet[Allowance] = weakref.WeakSet()


def _after_fork() -> None:
    for allowance in list(_allowances):
        allowance._lock = threading.Lock()  # a thread of the parent may have held the old one


forks.in_child(_after_fork)
