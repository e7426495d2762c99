"""What budgets exchange with a ledger, and with the other machines that share them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from fastroute import _core

from .windows import Window

Spent = Callable[[float, Mapping[str, str]], int]
"""Called with seconds since the epoch and tags; returns the nano-dollars spent since by entries with these
tags.

An empty value stands for entries without the tag.
"""


GRANTED, REFUSED, AWAY = "granted", "refused", "away"  # the answers of Bank.lease


class Bank(Protocol):
    """Divides budgets among many machines: each may commit what it was granted, and no more.

    ``name`` is that of a budget and the value of its tag; ``counter`` counts what is committed on this
    machine.
    """

    def grant(self, name: str, window: Window, counter: _core.Counter) -> int:
        """Nano-dollars that this machine may commit."""

    def elsewhere(self, name: str, window: Window, counter: _core.Counter) -> int:
        """Nano-dollars committed on the other machines."""

    def lease(
        self,
        name: str,
        window: Window,
        counter: _core.Counter,
        limit: int,
        need: int,
        now: float,
        spent: Callable[[bool], int],
    ) -> str:
        """Asks for a larger grant.

        Args:
            spent: called if the bank does not know what was spent, with whether its count is damaged.

        Returns:
            GRANTED: read the grant again. REFUSED: the budget is spent. AWAY: the bank is unavailable.
        """


UNKNOWN = _core.MOST_NANO
"""Counted as spent where what was spent is unknown for good: more than any limit."""


class Sums(Protocol):
    """The part of a ledger that budgets read."""

    def spent(self, since: float, tags: Mapping[str, str]) -> int: ...


def spent_in(ledger: Sums) -> Spent:
    """The ``spent`` of a ledger, for `Budgets`; it is looked up at each call."""

    def spent(since: float, tags: Mapping[str, str]) -> int:
        return ledger.spent(since, tags)

    return spent
