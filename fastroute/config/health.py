"""The table of background health checks, as values.

Owns its keys, defaults and checks, as `models` does for all other tables. Making the checks is
`fastroute.runtime.health`.
"""

from __future__ import annotations

from attrs import field, frozen

from .validators import flag, number, one_of, whole

HEALTH_CHECKS = ("models", "completion")


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
    kind: str = field(default="models", validator=one_of(HEALTH_CHECKS))
    interval: float = field(default=30.0, validator=number(least=0.1, most=86_400, unit="seconds"))
    timeout: float = field(default=5.0, validator=number(above=0, most=3600, unit="seconds"))
    max_tokens: int = field(default=1, validator=whole(least=1, most=10_000))
