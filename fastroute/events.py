"""Events as immutable records, and the hooks that are called with them.

A hook runs in the thread in which the event happens, after the call's own work. An exception of a hook is
logged and otherwise ignored, so a hook cannot fail a call. If no hook is registered, events are not created
(see `Hooks.wanted`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from attrs import frozen

from .types import Attempt, Route

log = logging.getLogger("fastroute")
log.addHandler(logging.NullHandler())  # programs decide what is shown


@frozen
class Event:
    """The base class of all events."""


@frozen
class AttemptFinished(Event):
    """One request to one endpoint has ended, with or without success."""

    attempt: Attempt


@frozen
class CallFinished(Event):
    """A whole call has ended.

    Attributes:
        error: the class name of the error that was raised; ``client_cancelled`` for a stream that the caller
            closed early; None after success.
    """

    route: Route | None
    error: str | None = None


@frozen
class FailedOver(Event):
    """A call has moved from one endpoint to another."""

    call_id: str
    from_endpoint: str
    to_endpoint: str
    error: str


@frozen
class BreakerChanged(Event):
    """A circuit breaker has opened or closed: ``state`` is ``open`` or ``closed``."""

    endpoint: str
    state: str


@frozen(kw_only=True)
class HealthChecked(Event):
    """A background check of an endpoint has ended.

    Attributes:
        kind: ``models`` or ``completion``.
        outcome: ``ok``; ``failed``; or ``unclear``, if the result does not depend on the endpoint's health:
            throttled, a rejected key, no list of models available.
        seconds: duration of the check.
        error: the class name of the error, if there was one.
        state: the state of the endpoint's breaker after the check: ``closed``, ``open`` or ``half-open``.
    """

    endpoint: str
    kind: str
    outcome: str
    seconds: float
    error: str | None
    state: str


@frozen
class EndpointBlocked(Event):
    """An endpoint is not used for ``seconds``: a rejected key, a spent quota, a long Retry-After."""

    endpoint: str
    reason: str
    seconds: float


@frozen
class RetryBudgetExhausted(Event):
    """A retry at the same endpoint was not made, because of too many recent retries."""

    endpoint: str


@frozen
class StreamForgiven(Event):
    """A streamed answer was complete but had a tolerated defect.

    Attributes:
        kind: ``missing_done``: the end mark of its format is missing; ``invalid_utf8``: it contained bytes
            that are not UTF-8, which were replaced by U+FFFD.
    """

    endpoint: str
    kind: str


@frozen
class ClassifierFailed(Event):
    """A classifier failed for a request, so the default tier is used.

    Attributes:
        kind: ``raised``, ``timeout``, ``busy``, ``unknown-level``, ``bad-score``, ``tie``, or ``unreadable``
            for messages that rule sets cannot read.
        reason: a description that contains nothing of the request.
    """

    classifier: str
    kind: str
    reason: str


@frozen
class TrafficChanged(Event):
    """The classifier ``learned`` finds that the calls have become unlike those of its calibration.

    Emitted once by each process, and again only after the value was at most half as far off.

    Attributes:
        kind: ``share``: of the calls with a score, more or fewer than ``expected`` are above the threshold;
            ``unfamiliar``: many calls are unlike the calibration's prompts, so the score does not decide.
        value: the share of the calls, 0..1.
        expected: the share that was expected, 0..1.
        calls: how many calls it is a share of.
    """

    kind: str
    value: float
    expected: float
    calls: int


@frozen
class StrategyFailed(Event):
    """A registered strategy failed for a request, so the order of the configuration is used.

    Attributes:
        reason: a description that contains nothing of the request.
    """

    strategy: str
    reason: str


@frozen
class LedgerDegraded(Event):
    """The ledger cannot write to its database now; entries wait in its journal."""

    reason: str


@frozen
class SharingChanged(Event):
    """Redis, which shares limits, breakers and budgets between machines, is unavailable or available again.

    Attributes:
        shared: whether it is available now.
        reason: why it is not.
        machines: the number of machines. While Redis is unavailable, this machine uses every limit divided by
            this number.
    """

    shared: bool
    reason: str
    machines: int


@frozen
class StateDegraded(Event):
    """Limits, breakers and budgets are shared with fewer processes than configured.

    Emitted once per client, at the first call for which a hook is registered.
    """

    reason: str


@frozen(kw_only=True)
class DriftDetected(Event):
    """A rate of a model differs from its baseline, up or down (see `fastroute.quality`).

    Attributes:
        measure: ``success`` of attempts, or ``validation`` of validated answers.
        rate: 0..1, over the newest ``samples`` results.
        baseline: 0..1, over the ``baseline_samples`` results before those.
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
    """Spending in a budget's window has reached a share of its limit.

    Emitted once, in one of the processes that share the state.

    Attributes:
        value: the value of the tag, if the budget is per tag; None for a budget of all calls.
        window: the day or month (``2026-11-21``, ``2026-11``), or ``total``.
        share: the share of the limit, 0 to 1.
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
    """A budget has rejected a call at its price; with ``downgrade`` the call may continue at a cheaper tier.

    Attributes:
        value, window: as for `BudgetAlert`; the window may be ``request``.
        on_breach: the budget's setting: ``refuse`` or ``downgrade``.
        amount_nano: the worst-case cost of the call in nano-dollars; None if its price is unknown.
        spent_nano, reserved_nano, limit_nano: the state of the budget, nano-dollars.
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
    """A new configuration is in use.

    Attributes:
        source: the file, or ``mapping``, ``Config`` or ``environment``.
        changed: the names of the parts that have changed (``policy``, ``providers.openai``), without values.
            A provider with a new key counts as changed.
        kept: settings that differ in the source but cannot change until the program is restarted.
    """

    source: str
    changed: tuple[str, ...]
    kept: tuple[str, ...]


@frozen
class ConfigRefused(Event):
    """A configuration was invalid at a reload; the previous one stays in use.

    Attributes:
        problems: one line each, as in `errors.ConfigError`.
    """

    source: str
    problems: tuple[str, ...]


@frozen
class Hedged(Event):
    """A second request was sent, because the first one of the call was slow.

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
        wanted: whether any hook is registered; otherwise events need not be created.

    Thread safety: adding and removing take a lock; emitting reads one tuple and takes none.
    """

    __slots__ = ("_hooks", "_lock", "wanted")

    def __init__(self) -> None:
        self._hooks: tuple[tuple[type[Event], Callable[[Any], object]], ...] = ()
        self.wanted = False
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: replaces the lock, which a thread of the parent may have held."""
        self._lock = threading.Lock()

    def add(self, hook: Callable[[Any], object], kind: type[Event] = Event) -> Callable[[], None]:
        """Registers a hook for events of a kind; returns a function that removes it."""
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
        """Calls every hook of the event's kind; logs exceptions that they raise."""
        for kind, hook in self._hooks:
            if isinstance(event, kind):
                try:
                    hook(event)
                except Exception:
                    log.exception("a hook failed on %s", type(event).__name__)
