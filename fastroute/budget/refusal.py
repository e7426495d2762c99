"""Why a budget refuses a call: the refusal that a call may wait out, and the messages of all.

A message says which budget refuses, what the call could cost and from what that was computed, how the budget
stands, and what would let the call in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import frozen

from fastroute import errors, events
from fastroute.config.messages import show
from fastroute.figures import dollars

from .bank import AWAY, UNKNOWN

# Why a budget refuses a call, besides AWAY; BEHIND: others wait for the budget's money already.
OVER, UNREAD, FULL, BEHIND = "over", "unread", "full", "behind"


@frozen
class Assumption:
    """What the worst-case cost of a call was computed from.

    Attributes:
        text: what was assumed, or why there is no amount: ``64,000 output tokens are assumed because
            max_tokens is missing``. Computed when it is read, because most calls are not refused.
        cure: what the caller can change about it: ``set max_tokens or policy.default_max_tokens``.
    """

    _text: str | Callable[[], str]
    cure: str

    @property
    def text(self) -> str:
        return self._text() if callable(self._text) else self._text


class MoneyReserved(errors.BudgetExceeded):
    """A refusal only because money is reserved for other calls. Callers never see it: a call waits.

    Attributes:
        line: the name of the line to wait in.
        ready: tells whether to ask again: the money is there, or has been spent by others, or another window
            has begun. Quick; may be called from any thread.
        refused: emits the refusal to hooks, once the call does not wait any longer; None if that is unwanted.
    """

    def __init__(
        self,
        message: str,
        *,
        line: str,
        ready: Callable[[], bool],
        refused: Callable[[], None] | None,
        **rest: Any,
    ) -> None:
        super().__init__(message, **rest)
        self.line = line
        self.ready = ready
        self.refused = refused

    def final(self) -> errors.BudgetExceeded:
        """The refusal as callers see it, emitted to hooks; for a call that does not wait any longer."""
        if self.refused is not None:
            self.refused()
        return errors.BudgetExceeded(
            self.message,
            budget=self.budget,
            on_breach=self.on_breach,
            hard=self.hard,
            retry_after=self.retry_after,
        )


def of_tag(tag: str | None, value: str | None) -> str:
    """``, team 'a'`` for a message, or nothing for a budget of all calls."""
    if tag is None:
        return ""
    return f", {tag} {show(value)}" if value else f", without {tag}"


def costs(amount_nano: int | None, assumed: Assumption | None) -> tuple[str, str]:
    """What a call could cost, and what the caller can change about it, in words."""
    if amount_nano is None:
        if assumed is not None:
            return assumed.text, assumed.cure
        return "the call's price is unknown", "set the model's prices"
    cost = f"the call could cost {dollars(amount_nano, exact=True)}"
    if assumed is None:
        return cost, "lower max_tokens"
    return f"{cost} ({assumed.text})", assumed.cure


def refusal_message(
    event: events.BudgetExceededEvent,
    tag: str | None,
    failure: str,
    *,
    passing: bool = False,
    priority: str | None = None,
    assumed: Assumption | None = None,
) -> str:
    """The message of a refused call: which budget, why, and what would help."""
    where = f"budget {event.budget}"
    if event.window != "request":
        where += f", {event.window}{of_tag(tag, event.value)}"
    if failure == UNREAD:
        return f"{where}: the ledger cannot be read, so what was spent is unknown; make the ledger readable"
    if failure == AWAY:
        return f"{where}: Redis is unavailable, and this machine has spent its lease; restore Redis"
    if event.spent_nano >= UNKNOWN:
        return (
            f"{where}: its count in the shared state was damaged, and without a ledger nothing else says "
            "what was spent; set fastroute.ledger, or begin from zero with another state file"
        )
    if failure == FULL:
        return f"{where}: the state has no room left to count it; use fewer values of tags, or fewer budgets"
    limit = dollars(event.limit_nano, exact=True) + (f" for calls of {priority} priority" if priority else "")
    cost, cure = costs(event.amount_nano, assumed)
    cure += ", or raise the budget's limit" if event.amount_nano is not None else ""
    if event.window == "request":
        return f"{where}: {cost}, and a request may cost {limit}; {cure}"
    spent, reserved = dollars(event.spent_nano, exact=True), dollars(event.reserved_nano, exact=True)
    if passing:
        cure = f"wait for the calls under way, {cure}"
    return f"{where}: {cost}, and {spent} is spent and {reserved} reserved of {limit}; {cure}"
