"""The configuration: read once, checked whole, frozen.

Owns the configuration file, its overlay from the environment, zero configuration from provider keys, and the
reading of API keys. What is known of models is `catalog`; building live objects from it all is `state`.

- `models`: every key with its type, default and check; `health`: those of the health checks
- `relations`: how keys must fit each other
- `urls`: which addresses a provider may have
- `keys`: API keys that do not show
- `convert`: raw tables to values, errors to paths
- `environment`: variables over a file
- `source`: `load` and `check`
"""

from __future__ import annotations

from fastroute.catalog import ModelOverride

from .health import HEALTH_CHECKS, HealthCheckConfig
from .hedging import HedgingConfig
from .keys import Secret, read_key, read_keys
from .models import (
    AUTO,
    CLASSIFIERS,
    STRATEGIES,
    BreakerConfig,
    BudgetConfig,
    CacheConfig,
    Config,
    EndpointConfig,
    Limits,
    Policy,
    ProviderConfig,
    QualityConfig,
)
from .source import Findings, Source, catalog_of, check, file_of, load, tiers_of
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
