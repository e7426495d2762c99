"""Strategies: those of the core by name, and those that a program registers.

A registered strategy is a function that gives each endpoint a number; the least is asked first. It is named
in ``policy.strategy`` or ``policy.tier_strategy`` like a built-in one. Filters, health and limits are applied
by the core as for every strategy: the function sees only endpoints that may serve the request.
"""

from __future__ import annotations

import inspect
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from attrs import frozen

from fastroute import _core
from fastroute.config.policy import STRATEGIES, TIER_STRATEGIES, registered_strategies
from fastroute.events import Hooks, StrategyFailed
from fastroute.types import NANO, Request

from .stage import Stage

log = logging.getLogger("fastroute")

NUMBERS: Mapping[str, int] = {
    "latency": _core.LATENCY,
    "weighted": _core.WEIGHTED,
    "least-busy": _core.LEAST_BUSY,
    "lowest-cost": _core.LOWEST_COST,
    "lowest-usage": _core.LOWEST_USAGE,
    "two-choices": _core.TWO_CHOICES,
    "ordered": _core.ORDERED,
    "value": _core.VALUE,
}
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_LOG_AGAIN = 60.0  # seconds between two log lines about one strategy


@frozen(kw_only=True)
class Option:
    """An endpoint that may serve a request, as a strategy sees it.

    Attributes:
        endpoint, provider, model: names.
        tier: the tier from which it is chosen; None if a model was asked for.
        weight: its configured weight.
        price: estimated USD; None if unknown.
        quality: 0 to 1; 0 if unknown.
        latency: expected seconds; 0 if never measured.
        success_rate: 0 to 1, of the last seconds.
        health: 0 to 100.
        in_flight: calls under way, in all processes.
        usage: tokens of the last minute.
    """

    endpoint: str
    provider: str
    model: str
    tier: str | None
    weight: float
    price: float | None
    quality: float
    latency: float
    success_rate: float
    health: int
    in_flight: int
    usage: float


Scores = Callable[[Sequence[Option], Request], Sequence[float]]
"""The options of a request, in the order of the configuration, and the request → a number for each."""


def register(name: str, scores: Scores, *, replace: bool = False) -> None:
    """Registers a strategy under a name that ``policy.strategy`` and ``policy.tier_strategy`` may then use.

    Register it before the configuration is read. ``scores`` is called for every call and plan that uses it,
    in the caller's thread and from many threads at once, so it must be thread-safe and quick: microseconds,
    and no I/O. It must not change the request. A lower number is asked earlier; of equal numbers the endpoint
    comes first that is written first. Among models (``tier_strategy``), the lowest number of its endpoints is
    a model's. If the function raises or does not return one number for each option, the endpoints keep the
    order of the configuration and the models that of ``value``; `events.StrategyFailed` is emitted.

    Args:
        name: lower-case letters, digits, ``-`` and ``_``.
        scores: the function.
        replace: allow a registered name to be used again; configurations in force keep the function that they
            started with.

    Raises:
        ValueError: if the name is invalid or taken.
        TypeError: if ``scores`` is not a plain function.

    Thread safety: may be called from any thread.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"name: {name!r} is invalid; use lower-case letters, digits, - and _")
    if name in NUMBERS:
        raise ValueError(f"name: {name!r} is a built-in strategy; use another name")
    if not callable(scores) or inspect.iscoroutinefunction(scores):
        raise TypeError(f"scores: must be a plain function of options and request, not {scores!r}")
    if not replace and registered_strategies.get(name, scores) is not scores:
        raise ValueError(f"name: {name!r} is already registered; pass replace=True to replace it")
    registered_strategies[name] = scores


def names() -> tuple[str, ...]:
    """The names that ``policy.strategy`` may have."""
    return (*STRATEGIES, *registered_strategies)


class FunctionOrder:
    """Orders a ranked stage by registered strategies.

    Args:
        endpoints: the strategy of ``policy.strategy`` if it is a registered one, with its name.
        models: the same of ``policy.tier_strategy``.
        hooks: failures are emitted to them.

    Thread safety: all methods.
    """

    def __init__(
        self, endpoints: tuple[str, Scores] | None, models: tuple[str, Scores] | None, hooks: Hooks
    ) -> None:
        self._endpoints = endpoints
        self._models = models
        self._hooks = hooks
        self._lock = threading.Lock()
        self._logged: dict[str, float] = {}

    @classmethod
    def of(cls, strategy: str, tier_strategy: str, hooks: Hooks) -> FunctionOrder | None:
        """For the strategies of a configuration; None if both are built-in."""
        found = [
            None if name in NUMBERS else (name, registered_strategies[name])
            for name in (strategy, tier_strategy)
        ]
        return cls(found[0], found[1], hooks) if any(found) else None

    def after_fork(self) -> None:
        """In a forked child: a thread that does not exist there may have held the lock."""
        self._lock = threading.Lock()

    def apply(self, stage: Stage, ranked: _core.Ranked, request: Request) -> None:
        """Orders the endpoints that passed the filters."""
        models = self._models if stage.tier is not None else None
        if ranked.first < 0 or (self._endpoints is None and models is None):
            return
        places = sorted(ranked.order)
        prices = ranked.prices
        now = _core.clock()
        options = [_option(stage, place, prices[place], now) for place in places]
        ranked.order_by(
            self._figures(self._endpoints, options, places, stage, request),
            self._figures(models, options, places, stage, request),
        )

    def _figures(
        self,
        strategy: tuple[str, Scores] | None,
        options: Sequence[Option],
        places: Sequence[int],
        stage: Stage,
        request: Request,
    ) -> list[float] | None:
        """One number for each endpoint of the stage; None to leave the order as it is."""
        if strategy is None:
            return None
        name, scores = strategy
        try:
            given = [float(number) for number in scores(options, request)]
        except Exception as error:
            # Its message may quote the request, so only its kind is reported.
            self._failed(name, f"it raised {type(error).__name__}")
            return None
        if len(given) != len(options):
            self._failed(name, f"it returned {len(given)} numbers for {len(options)} endpoints")
            return None
        if any(number != number for number in given):
            self._failed(name, "it returned a number that is NaN")
            return None
        figures = [math.inf] * len(stage.endpoints)
        for place, number in zip(places, given):
            figures[place] = number
        return figures

    def _failed(self, name: str, reason: str) -> None:
        now = time.monotonic()
        with self._lock:
            say = now - self._logged.get(name, -math.inf) >= _LOG_AGAIN
            if say:
                self._logged[name] = now
        if say:
            log.warning("the strategy %s failed: %s; the order of the configuration is used", name, reason)
        if self._hooks.wanted:
            self._hooks.emit(StrategyFailed(name, reason))


def _option(stage: Stage, place: int, price: int, now: int) -> Option:
    endpoint = stage.endpoints[place]
    core, model = endpoint.core, endpoint.model
    return Option(
        endpoint=endpoint.name,
        provider=endpoint.config.provider,
        model=model.name,
        tier=stage.tier,
        weight=endpoint.config.weight,
        price=None if price < 0 else price / NANO,
        quality=model.quality,
        latency=core.ewma(now) or model.latency,
        success_rate=core.success_rate(now),
        health=core.health(now)[0],
        in_flight=core.in_flight,
        usage=core.usage(now),
    )


__all__ = ["NUMBERS", "TIER_STRATEGIES", "FunctionOrder", "Option", "Scores", "names", "register"]
