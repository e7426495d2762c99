"""The configuration: read once, checked whole, frozen.

Owns the configuration file, its overlay from the environment, zero configuration from provider keys, and the
reading of API keys. Building live objects from it is in `state` and `runtime`.

- `tables`, `policy`: every key with its type, default and check; `validators`: the checks
- `catalog`: what is known of models; `price_update`: new prices for it; `rules`: rule sets of classifiers
- `consistency`: how keys must fit each other; `urls`, `redis_url`: which addresses are allowed
- `secrets`: API keys, which never show in text
- `reader`, `toml`: raw tables to values, errors to paths
- `environment`: variables over a file
- `source`: `load` and `check`
"""

from __future__ import annotations

from .catalog import ModelOverride
from .policy import (
    HEALTH_CHECKS,
    STRATEGIES,
    BreakerConfig,
    HealthCheckConfig,
    HedgingConfig,
    Policy,
)
from .rules import CLASSIFIERS
from .secrets import Secret, read_key, read_keys
from .source import Findings, Source, catalog_of, check, file_of, load, tiers_of
from .tables import (
    AUTO,
    BudgetConfig,
    CacheConfig,
    Config,
    EndpointConfig,
    Limits,
    ProviderConfig,
    QualityConfig,
)
from .urls import address_problem, is_loopback_url

__all__ = [
    "AUTO",
    "CLASSIFIERS",
    "HEALTH_CHECKS",
    "STRATEGIES",
    "BreakerConfig",
    "BudgetConfig",
    "CacheConfig",
    "Config",
    "EndpointConfig",
    "Findings",
    "HealthCheckConfig",
    "HedgingConfig",
    "Limits",
    "ModelOverride",
    "Policy",
    "ProviderConfig",
    "QualityConfig",
    "Secret",
    "Source",
    "address_problem",
    "catalog_of",
    "check",
    "file_of",
    "is_loopback_url",
    "load",
    "read_key",
    "read_keys",
    "tiers_of",
]
