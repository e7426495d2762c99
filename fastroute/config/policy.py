"""The table of the policy and the tables in it, as values."""

from __future__ import annotations

from collections.abc import Mapping

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
HEALTH_CHECKS = ("models", "completion")
MOST_IN_FLIGHT = 4096


@frozen(kw_only=True)
class BreakerConfig:
    """``[policy.breaker]``: when an endpoint is left alone, and for how long.

    Attributes:
        failures: consecutive failures that open the breaker.
        rate: share of failures in the window that opens it.
        min_calls: results the window must hold before the rate counts.
        window: seconds of the window.
        open: seconds it stays open the first time; doubled each time it opens again.
        max_open: most seconds it stays open.
        reset: seconds of health after which the doubling starts anew.
        probe_lease: seconds a probe may take before another goes; or its attempt's time-out, if longer.
        probes_to_close: successful probes, one after the other, that close it.
        ramp: seconds over which a closed endpoint gets its full share back.
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
    """``[policy.health_check]``: endpoints that nobody calls, or that are left alone, are looked at.

    Attributes:
        enabled: whether there are any.
        kind: ``models`` asks the provider for its list of models, which costs nothing; ``completion`` asks
            the endpoint for a short answer, which costs its tokens and shows more.
        interval: seconds between two checks of an endpoint, at least, whichever process makes them.
        timeout: seconds after which a check has failed.
        max_tokens: the longest answer that ``completion`` asks for.
    """

    enabled: bool = field(default=False, validator=flag)
    kind: str = field(default="models", validator=one_of("kind", HEALTH_CHECKS))
    interval: float = field(default=30.0, validator=seconds(least=0.1))
    timeout: float = field(default=5.0, validator=seconds(most=3600))
    max_tokens: int = field(default=1, validator=integer(least=1, most=10_000))


@frozen(kw_only=True)
class HedgingConfig:
    """``[policy.hedging]``: a second request, to another endpoint, for a call that takes longer than most.

    Attributes:
        enabled: whether there are any.
        unasked: whether they are sent for calls that do not say ``route={"hedge": True}``.
        percentile: the share (0..1) of an endpoint's calls of the last five minutes that took less time.
        min_delay: seconds after which one is sent at the earliest.
        min_samples: calls that an endpoint must have answered in these five minutes.
        max_share: hedges for each of these calls at most.
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
        fixed_model: turns routing off: this model serves every call, whatever is asked for; empty: routing.
        classifier: the rule set that gives a request its level: a built-in one, or one of ``classifiers``.
        classifier_timeout: seconds that a function given to the client as classifier may take.
        strategy: how to choose among the endpoints of a model.
        confidence_threshold: under this confidence the standard tier is used.
        quality_floor: the least quality (0..1) a model should have.
        max_latency: seconds an endpoint should be expected to take at most.
        price_ceiling: USD a call should cost at most by estimate; dearer models come last.
        max_cost: USD a call may cost at most by estimate; dearer models are not taken.
        classes: level to tier; levels not named spread evenly over the tiers.
        max_attempts: requests sent for one call at most.
        backoff_base, backoff_cap: seconds of the first and the longest pause after an error.
        throttle_base, throttle_cap: the same after a 429 that says no time.
        max_retry_after: seconds of Retry-After waited for at most; for more, the endpoint is left out.
        max_in_flight: calls under way at once at all endpoints together; none: no such limit.
        adaptive: whether each endpoint's limit on calls at once follows what it bears: it begins at 20,
            shrinks when calls are throttled or fail, grows as they succeed; never above ``max_in_flight``.
        queue_timeout: seconds a call may wait for a limit.
        max_queue: calls that may wait at once.
        timeout_base: seconds one attempt may take, and
        timeout_per_1k: so many more for each 1000 output tokens asked for, times 1, 1.5 or 2.5 by its class.
        idle_timeout: seconds without a byte after which a stream that has begun is given up.
        ping_timeout: seconds with nothing but keep-alives after which any stream is given up.
        drop_sampling: whether temperature, top_p and top_k are left out for a model that refuses them; if
            not, a request with one of them goes to other models.
        cascade: whether a tier that cannot serve at all is followed by the next cheaper one.
        breaker: the circuit breaker of each endpoint.
        health_check: looking at endpoints that nobody calls.
        hedging: a second request for a call that takes longer than most.
    """

    fixed_model: str = field(default="", validator=text(empty=True))
    classifier: str = field(default="five-level", validator=text())
    classifier_timeout: float = field(default=0.05, validator=seconds(most=60))
    strategy: str = field(default="latency", validator=one_of("strategy", STRATEGIES))
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
    drop_sampling: bool = field(default=False, validator=flag)
    cascade: bool = field(default=True, validator=flag)
    breaker: BreakerConfig = field(factory=BreakerConfig)
    health_check: HealthCheckConfig = field(factory=HealthCheckConfig)
    hedging: HedgingConfig = field(factory=HedgingConfig)
