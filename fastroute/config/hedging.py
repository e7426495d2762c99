"""The table of hedging, as values.

Owns its keys, defaults and checks, as `models` does for all other tables. Hedging calls is
`fastroute.calls.hedge`.
"""

from __future__ import annotations

from attrs import field, frozen

from .validators import flag, number, whole


@frozen
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
    min_delay: float = field(default=0.2, validator=number(least=0, most=600, unit="seconds"))
    min_samples: int = field(default=100, validator=whole(least=10, most=1_000_000))
    max_share: float = field(default=0.05, validator=number(above=0, most=1))
