"""The configuration: read and checked as a whole, then frozen.

- `source`: `load` and `check`, from a file, a mapping, the environment or provider keys alone
- `environment`: environment variables over a file
- `reader`: TOML and its tables, into attrs classes; `messages`: the wording of problems
- `tables`, `policy`: every key with its type, default and validator; `validators`: the validators
- `known_providers`: defaults of well-known providers; `usable`: the part that can be used if keys are missing
- `advice`: warnings about valid settings that cannot work
- `consistency`: rules over more than one key; `urls`, `redis_url`: which addresses are allowed
- `catalog`: models and prices; `price_update`: updates of a catalogue file; `rules`: rule sets of classifiers
- `secrets`: API keys, which are never shown
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
from .source import Findings, Source, catalog_of, check, file_of, load, load_with_keys, tiers_of
from .tables import (
    AUTO,
    BudgetConfig,
    CacheConfig,
    Config,
    EndpointConfig,
    GatewayConfig,
    LearnedConfig,
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
    "GatewayConfig",
    "HealthCheckConfig",
    "HedgingConfig",
    "LearnedConfig",
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
    "load_with_keys",
    "read_key",
    "read_keys",
    "tiers_of",
]
