"""The part of a configuration that can be used where some providers' keys are missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import evolve

from fastroute import errors

from .catalog import Catalog
from .tables import AUTO, Config


def usable(config: Config, missing: Mapping[str, str], catalog_of: Callable[[Config], Catalog]) -> Config:
    """The configuration without the endpoints of the providers in ``missing``.

    Tiers lose the models that no endpoint is left for, and classes of requests the tiers that are empty; such
    a class is spread over the other tiers like one that is not configured. Providers stay, because a reload
    may find their keys.

    Args:
        config: a configuration that is valid as a whole.
        missing: the problem of each provider's key, by the provider's name.
        catalog_of: gives the catalogue of a configuration.

    Raises:
        ConfigError: no endpoint is left, or none for a model that the configuration cannot do without.
    """
    endpoints = tuple(entry for entry in config.endpoints if entry.provider not in missing)
    if not endpoints:
        raise errors.ConfigError(list(missing.values()))
    served = {entry.model for entry in endpoints}
    tiers = {
        tier: kept
        for tier, models in config.tiers.items()
        if (kept := tuple(model for model in models if model in served))
    }
    providers = {
        name: evolve(provider, models=()) if name in missing else provider
        for name, provider in config.providers.items()
    }
    changes: dict[str, Any] = {"providers": providers, "endpoints": endpoints, "tiers": tiers}
    left = evolve(config, **changes)
    catalog = catalog_of(left)
    there = set(tiers or catalog.default_tiers(left.served))
    classes = {level: tier for level, tier in config.policy.classes.items() if tier in there}
    problems = list(_indispensable(left, catalog, there, missing.values()))
    if problems:
        raise errors.ConfigError(problems)
    return evolve(left, policy=evolve(left.policy, classes=classes))


def _indispensable(
    config: Config, catalog: Catalog, tiers: set[str], missing: Iterable[str]
) -> Iterable[str]:
    """The problems of settings that name a model or tier without an endpoint."""
    for path, name in (
        ("fastroute.default_model", config.default_model),
        ("policy.fixed_model", config.policy.fixed_model),
    ):
        if not name or name == AUTO or name in tiers:
            continue
        try:
            meant = catalog.resolve(name)
        except errors.ModelNotFoundError:
            meant = name
        if meant not in config.served:
            yield f"{path}: {name!r} is left without an endpoint, because keys are missing; set them"
            yield from missing
