"""What budgets ask of a ledger, how they stand, and how that is said to people.

Owns plain values and words only; counting is the package's `Budgets`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from attrs import frozen

from fastroute import _core, events
from fastroute.config.messages import show
from fastroute.figures import dollars

from .windows import Window

Spent = Callable[[float, Mapping[str, str]], int]
"""Seconds since the epoch and tags → nano-dollars since; an empty value means entries without the tag."""


GRANTED, REFUSED, AWAY = "granted", "refused", "away"  # what a bank answers


class Bank(Protocol):
    """Where many machines share budgets: each may commit what it was granted of them, and no more.

    ``name`` is a budget's, with the value of its tag; ``counter`` counts what is committed on this machine.
    """

    def grant(self, name: str, window: Window, counter: _core.Counter) -> int:
        """Nano-dollars that this machine may commit."""

    def elsewhere(self, name: str, window: Window, counter: _core.Counter) -> int:
        """With what is committed here, the sum of what all machines have committed."""

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
        """Asks for a larger grant: GRANTED (look again), REFUSED or AWAY (nobody can say)."""


class Sums(Protocol):
    """The part of a ledger that budgets begin from."""

    def spent(self, since: float, tags: Mapping[str, str]) -> int: ...


def spent_in(ledger: Sums) -> Spent:
    """A ledger as `Budgets` asks it: a tag with an empty value means entries without that tag."""

    def spent(since: float, tags: Mapping[str, str]) -> int:
        return ledger.spent(since, tags)

    return spent


@frozen(kw_only=True)
class BudgetStatus:
    """How a budget stands.

    Attributes:
        budget: its name.
        value: of the tag that it is per; None for a budget of all calls.
        window: the day or month, or ``total``.
        ends: seconds since the epoch; None for ``total``.
        limit_nano, spent_nano, reserved_nano: nano-dollars; the last two are None when the ledger, which
            knows what was spent before, cannot be read.
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


OVER, UNREAD, FULL = "over", "unread", "full"  # why a budget does not let a call in


def of_tag(tag: str | None, value: str | None) -> str:
    if tag is None:
        return ""
    return f", {tag} {show(value)}" if value else f", without {tag}"


def sentence(
    event: events.BudgetExceededEvent, tag: str | None, failure: str, priority: str | None = None
) -> str:
    cost = "the call's price is unknown"
    limit = dollars(event.limit_nano, exact=True) + (f" for calls of {priority} priority" if priority else "")
    if event.amount_nano is not None:
        cost = f"the call could cost {dollars(event.amount_nano, exact=True)}"
    if event.window == "request":
        return f"budget {event.budget}: {cost}, and a request may cost {limit}"
    where = f"budget {event.budget}, {event.window}{of_tag(tag, event.value)}"
    if failure == UNREAD:
        return f"{where}: what has been spent cannot be read from the ledger"
    if failure == AWAY:
        return f"{where}: Redis is away, and what this machine had leased is spent"
    if failure == FULL:
        return f"{where}: there is no room left to count it"
    spent, reserved = dollars(event.spent_nano, exact=True), dollars(event.reserved_nano, exact=True)
    return f"{where}: {spent} spent and {reserved} reserved of {limit}; {cost}"
