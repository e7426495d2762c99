"""What one copy of a client may spend: `Client.with_options(budget=…)`.

A budget of one program or job rather than of the configuration: it counts in this process, from the moment
the copy is made, and ends with it.
"""

from __future__ import annotations

import threading
import weakref

from fastroute import errors
from fastroute.figures import dollars
from fastroute.platform import forks


class Allowance:
    """Nano-dollars that may be spent in all; reserved before a request is sent, settled after.

    Thread safety: all methods; the lock is held for sums only. A forked child goes on with a copy of its own.
    """

    def __init__(self, limit_nano: int) -> None:
        self.limit_nano = limit_nano
        self._spent = 0
        self._reserved: dict[str, int] = {}
        self._lock = threading.Lock()
        _allowances.add(self)

    @property
    def committed(self) -> int:
        """Nano-dollars spent, or reserved for calls under way."""
        return self._spent + sum(tuple(self._reserved.values()))

    def reserve(self, attempt: str, amount_nano: int | None) -> None:
        """Sets the worst case of an attempt aside, by its id.

        Raises:
            BudgetExceeded: it does not fit, or the price is not known (None).
        """
        with self._lock:
            committed = self.committed
            if amount_nano is not None and committed + amount_nano <= self.limit_nano:
                self._reserved[attempt] = amount_nano
                return
        asked = "an unknown price" if amount_nano is None else dollars(amount_nano, exact=True)
        spent, limit = dollars(committed, exact=True), dollars(self.limit_nano, exact=True)
        raise errors.BudgetExceeded(
            f"with_options(budget=…): {spent} of {limit} is spent or reserved, and the call may cost {asked}",
            budget="with_options",
        )

    def settle(self, attempt: str, cost_nano: int | None) -> None:
        """Puts what an attempt cost in the place of what was set aside, once; None leaves that as it is."""
        with self._lock:
            cost = self._reserved.get(attempt, 0) if cost_nano is None else cost_nano
            if attempt in self._reserved:
                # In one statement: an interrupt between two would count it twice.
                self._spent, _ = self._spent + cost, self._reserved.pop(attempt)


_allowances: weakref.WeakSet[Allowance] = weakref.WeakSet()


def _after_fork() -> None:
    for allowance in list(_allowances):
        allowance._lock = threading.Lock()  # a thread that is not here may have held the old one


forks.in_child(_after_fork)
