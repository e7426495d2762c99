"""The values that budgets exchange with a ledger and with other machines, and their messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from attrs import frozen

from fastroute import _core, events
from fastroute.config.messages import show
from fastroute.figures import dollars

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
        spent: Callable[[], int],
    ) -> str:
        """Asks for a larger grant.

        Returns:
            GRANTED: read the grant again. REFUSED: the budget is spent. AWAY: the bank is unavailable.
        """


class Sums(Protocol):
    """The part of a ledger that budgets read."""

    def spent(self, since: float, tags: Mapping[str, str]) -> int: ...


def spent_in(ledger: Sums) -> Spent:
    """The ``spent`` of a ledger, for `Budgets`; it is looked up at each call."""

    def spent(since: float, tags: Mapping[str, str]) -> int:
        return ledger.spent(since, tags)

    return spent


@frozen(kw_only=True)
class BudgetStatus:
    """The status of a budget.

    Attributes:
        budget: its name.
        value: of its tag; None for a budget of all calls.
        window: the day or month, or ``total``.
        ends: seconds since the epoch; None for ``total``.
        limit_nano, spent_nano, reserved_nano: nano-dollars; the last two are None if the ledger cannot be
            read.
        hard, on_breach: as configured.
    """

    budget: str
    value: str | None
    window: str
    ends: float | None
    limit_nano: int
    spent_nano: int | None
    reserved_nano: int | None
    hard: bool
    on_breach: str


OVER, UNREAD, FULL = "over", "unread", "full"  # why a budget refuses a call


def of_tag(tag: str | None, value: str | None) -> str:
    """``, team 'a'`` for a message, or nothing for a budget of all calls."""
    if tag is None:
        return ""
    return f", {tag} {show(value)}" if value else f", without {tag}"


def refusal_message(
    event: events.BudgetExceededEvent, tag: str | None, failure: str, priority: str | None = None
) -> str:
    """The message of a refused call: which budget, why, and what would help."""
    where = f"budget {event.budget}"
    if event.window != "request":
        where += f", {event.window}{of_tag(tag, event.value)}"
    if failure == UNREAD:
        return f"{where}: the ledger cannot be read, so what was spent is unknown; make the ledger readable"
    if failure == AWAY:
        return f"{where}: Redis is unavailable, and this machine has spent its lease; restore Redis"
    if failure == FULL:
        return f"{where}: the state has no room left to count it; use fewer values of tags, or fewer budgets"
    limit = dollars(event.limit_nano, exact=True) + (f" for calls of {priority} priority" if priority else "")
    if event.amount_nano is None:
        cost, right = "the call's price is unknown", "set the model's prices"
    else:
        cost = f"the call could cost {dollars(event.amount_nano, exact=True)}"
        right = "lower max_tokens, or raise the budget's limit"
    if event.window == "request":
        return f"{where}: {cost}, and a request may cost {limit}; {right}"
    spent, reserved = dollars(event.spent_nano, exact=True), dollars(event.reserved_nano, exact=True)
    return f"{where}: {cost}, and {spent} is spent and {reserved} reserved of {limit}; {right}"
