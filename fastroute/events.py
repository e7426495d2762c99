"""What happened, as frozen records, and the list of hooks that hear them.

Defines the records and delivers them. A hook runs in the
thread that noticed the event, after the call's own work; one that raises is logged and otherwise ignored,
so no hook can fail or lose a call. With no hook registered an event is not even made (ask `Hooks.wanted`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from attrs import frozen

from .types import Attempt, Route

log = logging.getLogger("fastroute")


@frozen
class Event:
    """Anything that happened."""


@frozen
class AttemptFinished(Event):
    """One request to one endpoint ended, well or badly."""

    attempt: Attempt


@frozen
class CallFinished(Event):
    """A whole call ended; ``error`` is the class name of what the caller got instead of an answer.

    A stream that was closed early says ``client_cancelled``.
    """

    route: Route | None
    error: str | None = None


@frozen
class FailedOver(Event):
    """A call moved from one endpoint to another."""

    call_id: str
    from_endpoint: str
    to_endpoint: str
    error: str


@frozen
class BreakerChanged(Event):
    """A circuit breaker opened or closed: ``state`` is ``open`` or ``closed``."""

    endpoint: str
    state: str


@frozen(kw_only=True)
class HealthChecked(Event):
    """A background check of an endpoint ended.

    Attributes:
        kind: ``models`` or ``completion``.
        outcome: ``ok``; ``failed``; or ``unclear``, which says nothing of the endpoint's health: throttled, a
            key refused, no list available.
        seconds: how long it took.
        error: the class name of what came instead of an answer.
        state: of the endpoint's breaker since: ``closed``, ``open`` or ``half-open``.
    """

    endpoint: str
    kind: str
    outcome: str
    seconds: float
    error: str | None
    state: str


@frozen
class EndpointBlocked(Event):
    """An endpoint is left out for ``seconds``: a key refused, a quota spent, a long Retry-After."""

    endpoint: str
    reason: str
    seconds: float


@frozen
class RetryBudgetExhausted(Event):
    """A retry on the same endpoint was not made, because too many were made lately."""

    endpoint: str


@frozen
class StreamForgiven(Event):
    """A streamed answer was complete but had a tolerated defect.

    Attributes:
        kind: ``missing_done``: it lacked its format's end mark; ``invalid_utf8``: bytes of it were no UTF-8,
            and U+FFFD stands in their place.
    """

    endpoint: str
    kind: str


@frozen
class ClassifierFailed(Event):
    """A classifier could not say what a request is, and the default tier is used.

    Attributes:
        kind: ``raised``, ``timeout``, ``busy``, ``unknown-level``, ``bad-score``, ``tie``, or ``unreadable``
            for messages that no rule set can read.
        reason: in words; holds nothing of the request.
    """

    classifier: str
    kind: str
    reason: str


@frozen
class LedgerDegraded(Event):
    """The ledger cannot write its database at present; entries wait in its journal."""

    reason: str


@frozen
class SharingChanged(Event):
    """Redis, over which machines share limits, breakers and budgets, was found away, or is back.

    Attributes:
        shared: whether it is there now.
        reason: why not.
        machines: while it is away, this machine goes on with one in so many parts of every limit.
    """

    shared: bool
    reason: str
    machines: int


@frozen
class StateDegraded(Event):
    """Limits, breakers and budgets are shared with fewer processes than the configuration asks for.

    Told once in each client, when a call begins and somebody listens.
    """

    reason: str


@frozen(kw_only=True)
class DriftDetected(Event):
    """A model's answers changed for better or worse: a rate left its baseline (see `quality`).

    Attributes:
        measure: ``success`` of attempts, or ``validation`` of the answers that were judged.
        rate, baseline: 0..1, over the newest ``samples`` results and the ``baseline_samples`` before those.
    """

    model: str
    tier: str | None
    measure: str
    rate: float
    baseline: float
    samples: int
    baseline_samples: int


@frozen(kw_only=True)
class BudgetAlert(Event):
    """Spending in a budget's window has reached a share of its limit; told once, by one of all processes.

    Attributes:
        value: of the tag that the budget is per; None for a budget of all calls.
        window: the day or month (``2026-11-21``, ``2026-11``), or ``total``.
        share: of the limit, 0 to 1.
        spent_nano, limit_nano: nano-dollars.
    """

    budget: str
    value: str | None
    window: str
    share: float
    spent_nano: int
    limit_nano: int


@frozen(kw_only=True)
class BudgetExceededEvent(Event):
    """A budget did not let a call in at the price it would have had; it may go on at a cheaper one.

    Attributes:
        value, window: as for `BudgetAlert`; the window may be ``request``.
        on_breach: what the budget asks for: ``refuse`` or ``downgrade``.
        amount_nano: what the call could have cost, nano-dollars; None if its price is unknown.
        spent_nano, reserved_nano, limit_nano: how the budget stood.
    """

    budget: str
    value: str | None
    window: str
    on_breach: str
    amount_nano: int | None
    spent_nano: int
    reserved_nano: int
    limit_nano: int


@frozen
class ConfigReloaded(Event):
    """Another configuration is in force from now on.

    Attributes:
        source: the file, or ``mapping``, ``Config`` or ``environment``.
        changed: the parts that are not as before (``policy``, ``providers.openai``), by name only; empty if
            nothing is. A provider whose key is another counts.
        kept: settings that were changed in the source and stay as they were until the program is restarted.
    """

    source: str
    changed: tuple[str, ...]
    kept: tuple[str, ...]


@frozen
class ConfigRefused(Event):
    """A configuration was not taken into force, and the one before it stays.

    Attributes:
        problems: one line each, as in `errors.ConfigError`.
    """

    source: str
    problems: tuple[str, ...]


@frozen
class Hedged(Event):
    """A second request was sent, because the call's first took longer than most.

    Attributes:
        first, second: the endpoints.
        after: seconds since the call began.
    """

    call_id: str
    first: str
    second: str
    after: float


class Hooks:
    """The callables that events are emitted to.

    Attributes:
        wanted: whether there is any; without one, events need not be built.

    Thread safety: adding and removing take a lock; emitting reads one tuple and takes none.
    """

    __slots__ = ("_hooks", "_lock", "wanted")

    def __init__(self) -> None:
        self._hooks: tuple[tuple[type[Event], Callable[[Any], object]], ...] = ()
        self.wanted = False
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: a thread that is not here may have held the lock."""
        self._lock = threading.Lock()

    def add(self, hook: Callable[[Any], object], kind: type[Event] = Event) -> Callable[[], None]:
        """Calls ``hook`` with every event of that kind from now on; the result takes it off again."""
        entry = (kind, hook)
        with self._lock:
            self._hooks = (*self._hooks, entry)
            self.wanted = True

        def remove() -> None:
            with self._lock:
                self._hooks = tuple(known for known in self._hooks if known is not entry)
                self.wanted = bool(self._hooks)

        return remove

    def emit(self, event: Event) -> None:
        """Hands the event to every hook of its kind; what a hook raises is logged."""
        for kind, hook in self._hooks:
            if isinstance(event, kind):
                try:
                    hook(event)
                except Exception:
                    log.exception("a hook failed on %s", type(event).__name__)
