"""What one copy of a client may spend: `Client.with_options(budget=…)`.

A budget of one program or job rather than of the configuration: it counts in this process, from the moment
the copy is made, and ends with it.
"""

from __future__ import annotations

import threading
import weakref

from fastroute import errors, forks

from .values import usd


class Allowance:
    """Nano-dollars that may be spent in all; reserved before a request is sent, settled after.

    Thread safety: all methods; the lock is held for sums only. A forked child goes on with a copy of its own.
    """

    def __init__(self, limit_nano: int) -> None:
        self.limit_nano = limit_nano
        self._committed = 0
        self._lock = threading.Lock()
        _allowances.add(self)

    def reserve(self, amount_nano: int | None) -> int:
        """Sets the worst case aside and returns it.

        Raises:
            BudgetExceeded: it does not fit, or the price is not known (None).
        """
        with self._lock:
            committed = self._committed
            if amount_nano is not None and committed + amount_nano <= self.limit_nano:
                self._committed += amount_nano
                return amount_nano
        asked = "an unknown price" if amount_nano is None else usd(amount_nano)
        raise errors.BudgetExceeded(
            f"with_options(budget=…): {usd(committed)} of {usd(self.limit_nano)} is spent or reserved, "
            f"and the call may cost {asked}",
            budget="with_options",
        )

    def settle(self, reserved_nano: int, cost_nano: int | None) -> None:
        """Puts what it cost in the place of what was set aside; None leaves that as it is."""
        if cost_nano is not None:
            with self._lock:
                self._committed += cost_nano - reserved_nano


_allowances: weakref.WeakSet[Allowance] = weakref.WeakSet()


def _after_fork() -> None:
    for allowance in list(_allowances):
        allowance._lock = threading.Lock()  # a thread that is not here may have held the old one


forks.in_child(_after_fork)
