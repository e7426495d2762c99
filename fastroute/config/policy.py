"""The ``[policy]`` table and the tables in it, as frozen values. Times are in seconds, money is in USD."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from attrs import field, frozen
from attrs.validators import optional

from .validators import flag, integer, mapping_of, number, one_of, seconds, text

STRATEGIES = (
    "latency",
    "weighted",
    "least-busy",
    "lowest-cost",
    "lowest-usage",
    "two-choices",
    "ordered",
)
registered_strategies: dict[str, Any] = {}
"""Strategies that `routing.strategies.register` added, by name."""


class _Names(Collection[str]):
    """Names of strategies, those that are registered later among them."""

    def __init__(self, *built_in: str) -> None:
        self._built_in = built_in

    def __contains__(self, name: object) -> bool:
        return name in self._built_in or name in registered_strategies

    def __iter__(self) -> Iterator[str]:
        return iter((*self._built_in, *registered_strategies))

    def __len__(self) -> int:
        return len(self._built_in) + len(registered_strategies)


TIER_STRATEGIES: Collection[str] = _Names("value", *STRATEGIES)
HEALTH_CHECKS = ("models", "completion")
MOST_IN_FLIGHT = 4096


@frozen(kw_only=True)
class BreakerConfig:
    """``[policy.breaker]``: when an endpoint's circuit breaker opens, and for how long.

    Attributes:
        failures: consecutive failures that open the breaker.
        rate: share (0..1] of failures in the window that opens it.
        min_calls: results that the window must contain before the rate counts.
        window: length of the window, seconds.
        open: seconds that it stays open the first time; doubled each time it opens again.
        max_open: most seconds that it stays open.
        reset: seconds without opening after which the doubling starts again from ``open``.
        probe_lease: seconds after which another probe may be sent, or the attempt's time-out if that is
            longer.
        probes_to_close: consecutive successful probes that close it.
        ramp: seconds over which an endpoint gets its full share of calls back after closing.
    """

    failures: int = field(default=5, validator=integer(least=1, most=255))
    rate: float = field(default=0.5, validator=number(above=0, most=1))
    min_calls: int = field(default=20, validator=integer(least=1, most=10_000))
    window: float = field(default=30.0, validator=seconds(least=0.01, most=3600))
    open: float = field(default=5.0, validator=seconds(least=0.001, most=3600))
    max_open: float = field(default=300.0, validator=seconds())
    reset: float = field(default=60.0, validator=seconds())
    probe_lease: float = field(default=35.0, validator=seconds(least=0.001, most=3600))
    probes_to_close: int = field(default=2, validator=integer(least=1, most=100))
    ramp: float = field(default=10.0, validator=seconds(least=0, most=3600))


@frozen
class HealthCheckConfig:
    """``[policy.health_check]``: background checks of endpoints that are idle or whose breaker is open.

    Attributes:
        enabled: whether checks are made.
        kind: ``models`` asks the provider for its list of models, which costs nothing; ``completion`` asks
            the endpoint for a short answer, which costs its tokens and shows more.
        interval: least seconds between two checks of an endpoint, by all processes together.
        timeout: seconds after which a check has failed.
        max_tokens: ``max_tokens`` of the request that ``completion`` sends.
    """

    enabled: bool = field(default=False, validator=flag)
    kind: str = field(default="models", validator=one_of("kind", HEALTH_CHECKS))
    interval: float = field(default=30.0, validator=seconds(least=0.1))
    timeout: float = field(default=5.0, validator=seconds(most=3600))
    max_tokens: int = field(default=1, validator=integer(least=1, most=10_000))


@frozen(kw_only=True)
class HedgingConfig:
    """``[policy.hedging]``: a second request (hedge) to another endpoint, for a call that takes longer than
    most.

    Attributes:
        enabled: whether hedges are sent.
        unasked: whether also for calls without ``route={"hedge": True}``.
        percentile: a hedge is sent when a call has taken longer than this share (0..1) of the endpoint's
            calls of the last five minutes.
        min_delay: least seconds before a hedge is sent.
        min_samples: calls that the endpoint must have answered in these five minutes.
        max_share: most hedges, as a share of these calls.
    """

    enabled: bool = field(default=False, validator=flag)
    unasked: bool = field(default=True, validator=flag)
    percentile: float = field(default=0.95, validator=number(least=0.5, most=0.999))
    min_delay: float = field(default=0.2, validator=seconds(least=0, most=600))
    min_samples: int = field(default=100, validator=integer(least=10, most=1_000_000))
    max_share: float = field(default=0.05, validator=number(above=0, most=1))


@frozen(kw_only=True)
class Policy:
    """``[policy]``: how a model and an endpoint are chosen, and what happens on failure.

    Attributes:
        fixed_model: turns routing off: this model serves every call, whatever it asks for. Empty: routing
            is on.
        classifier: the rule set that finds a request's level: a built-in one, or one of ``classifiers``.
        classifier_timeout: most seconds for a function that is the classifier.
        strategy: how one of a model's endpoints is chosen.
        tier_strategy: how one of a tier's models is chosen: by ``value`` (price / (quality × speed)) or by a
            strategy.
        confidence_threshold: below this confidence, the standard tier is used.
        quality_floor: least quality (0..1) wanted.
        max_latency: most expected seconds wanted.
        price_ceiling: most estimated USD for a call wanted. If no model meets all three wishes, the best
            quality available is used.
        max_cost: most estimated USD for a call; more expensive models are not used.
        classes: level to tier; levels not named are spread evenly over the tiers, cheapest first.
        max_attempts: most requests sent for one call.
        backoff_base, backoff_cap: the first and the longest pause after an error, seconds.
        throttle_base, throttle_cap: the same after a 429 without Retry-After.
        max_retry_after: the longest Retry-After to wait for, seconds; beyond it, the endpoint is not used.
        max_in_flight: most calls at once at all endpoints together; None is unlimited.
        adaptive: whether each endpoint's limit on calls at once adapts: it begins at 20, shrinks when calls
            are throttled or fail or when more of them at once make them slower, grows as they succeed, and
            never exceeds ``max_in_flight``.
        queue_timeout: most seconds that a call waits for a limit; a submitted call waits until its deadline.
        max_queue: most calls that wait at once.
        timeout_base, timeout_per_1k: the estimated time of one attempt, after which a call moves to another
            endpoint that is ready: ``timeout_base`` seconds, and ``timeout_per_1k`` for each 1000 output
                tokens,
            times 1, 1.5 or 2.5 by the request's level.
        idle_timeout: seconds without a byte after which a stream whose content has begun ends with an error.
        ping_timeout: seconds with keep-alives only after which such a stream ends with an error.
        default_max_tokens: ``max_tokens`` of requests that name none, lowered to what the model can give;
            None sends none.
        drop_sampling: whether temperature, top_p and top_k are dropped for a model that refuses them; if not,
            a request with one of them goes to other models.
        cascade: whether the next cheaper tier follows one that cannot serve the request.
        breaker: the circuit breaker of each endpoint.
        health_check: background checks of endpoints.
        hedging: second requests for slow calls.
    """

    fixed_model: str = field(default="", validator=text(empty=True))
    classifier: str = field(default="five-level", validator=text())
    classifier_timeout: float = field(default=0.05, validator=seconds(most=60))
    strategy: str = field(default="latency", validator=one_of("strategy", _Names(*STRATEGIES)))
    tier_strategy: str = field(default="value", validator=one_of("strategy", TIER_STRATEGIES))
    confidence_threshold: float = field(default=0.7, validator=number(least=0, most=1))
    quality_floor: float = field(default=0.0, validator=number(least=0, most=1))
    max_latency: float | None = field(default=None, validator=optional(seconds()))
    price_ceiling: float | None = field(
        default=None, validator=optional(number(least=0, most=1e6, unit="USD"))
    )
    max_cost: float | None = field(default=None, validator=optional(number(least=0, most=1e6, unit="USD")))
    classes: Mapping[str, str] = field(factory=dict, validator=mapping_of(text()))
    max_attempts: int = field(default=3, validator=integer(least=1, most=100))
    backoff_base: float = field(default=0.5, validator=seconds(most=3600))
    backoff_cap: float = field(default=8.0, validator=seconds(most=3600))
    throttle_base: float = field(default=1.0, validator=seconds(most=3600))
    throttle_cap: float = field(default=20.0, validator=seconds(most=3600))
    max_retry_after: float = field(default=60.0, validator=seconds(least=0, most=3600))
    max_in_flight: int | None = field(default=None, validator=optional(integer(least=1, most=MOST_IN_FLIGHT)))
    adaptive: bool = field(default=False, validator=flag)
    queue_timeout: float = field(default=30.0, validator=seconds(least=0))
    max_queue: int = field(default=1000, validator=integer(least=0, most=1_000_000))
    timeout_base: float = field(default=30.0, validator=seconds())
    timeout_per_1k: float = field(default=10.0, validator=seconds(least=0))
    idle_timeout: float = field(default=30.0, validator=seconds(most=3600))
    ping_timeout: float = field(default=120.0, validator=seconds(most=3600))
    default_max_tokens: int | None = field(
        default=None, validator=optional(integer(least=1, most=100_000_000))
    )
    drop_sampling: bool = field(default=False, validator=flag)
    cascade: bool = field(default=True, validator=flag)
    breaker: BreakerConfig = field(factory=BreakerConfig)
    health_check: HealthCheckConfig = field(factory=HealthCheckConfig)
    hedging: HedgingConfig = field(factory=HedgingConfig)
