"""Money reserved for one attempt: what becomes of it until it is settled or released.

The life of a reservation::

    Budgets.reserve(worst case)   in every budget that applies or in none, or BudgetExceeded
    .sent()                       just before the request is sent: from now on a killed worker's stays spent
    .settle(cost)                 the real cost replaces the worst case
    .release()                    nothing was sent, or nothing will be charged

A reservation that is neither settled nor released has a lease. When the lease has expired or the worker has
died, the next sweep releases it if it was not sent, and keeps its worst case as spent if it was.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define

from fastroute import _core, errors

from .scopes import Scope
from .windows import Window


@define(eq=False)
class Share:
    """One budget's part of a reservation.

    Attributes:
        ticket: negative until the money is reserved. The share exists before, so that neither an interrupt
            nor a lack of memory can lose the ticket.
    """

    scope: Scope
    counter: _core.Counter
    stamp: int
    window: Window
    ticket: int = -1


class Reservation:
    """Money reserved for one attempt, in every budget that applies to it.

    Args:
        settled: called with each share that has been settled or released.
        shares: its parts.

    Thread safety: all methods. The first `settle` or `release` counts; later ones change nothing. In a forked
        child all methods do nothing, because the reservation belongs to the parent.
    """

    __slots__ = ("_settled", "_shares")

    def __init__(self, settled: Callable[[Share], None], shares: tuple[Share, ...]) -> None:
        self._settled = settled
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

    def settle(self, cost_nano: int | None, *, recorded: bool = True) -> None:
        """Replaces the worst case by the real cost; possible until an hour after the lease.

        Args:
            cost_nano: nano-dollars; None if it is unknown: then the worst case stays.
            recorded: whether the ledger has the same amount. Otherwise a value's counter is kept until its
                window ends.
        """
        if cost_nano is not None and cost_nano < 0:
            raise ValueError(f"cost_nano must be 0 or more, not {cost_nano}")
        cost = -1 if cost_nano is None else min(cost_nano, _core.MOST_NANO)
        for share in self._shares:
            if share.counter.settle(share.ticket, cost, recorded=recorded):
                self._settled(share)

    def release(self) -> None:
        """Releases all of the money."""
        for share in self._shares:
            if share.ticket >= 0 and share.counter.settle(share.ticket, 0):
                self._settled(share)
