"""Finds what a caller means by a name of a model that is not written as the configuration has it.

``openai/gpt-4.1`` is the name of an endpoint and stands for its model at its provider. A name in another case
is found, unless two names differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Collection

from attrs import frozen

from fastroute.errors import ModelNotFoundError

from .catalog import Catalog
from .tables import AUTO, Config


@frozen
class Meant:
    """What a name stands for.

    Attributes:
        name: a model, an alias, a tier or ``auto``, as the configuration has it.
        provider: the only provider that may serve it, if the name says so.
    """

    name: str
    provider: str | None = None


class ModelNames:
    """The names of one configuration. Immutable, so all threads share it.

    Args:
        config: the configuration.
        catalog: its models.
        tiers: the names of its tiers.
    """

    def __init__(self, config: Config, catalog: Catalog, tiers: Collection[str]) -> None:
        self._catalog = catalog
        self._providers = config.providers
        self._pinned: dict[str, Meant] = {}
        models = set()
        for endpoint in config.endpoints:
            model = catalog.resolve(endpoint.model)
            models.add(model)
            meant = Meant(model, endpoint.provider)
            self._pinned[f"{endpoint.provider}/{model}"] = meant
            self._pinned[endpoint.name] = meant
        known = {name: Meant(name) for name in (*models, *config.aliases, *tiers, AUTO)}
        found: dict[str, set[Meant]] = {}
        for name, meant in (*self._pinned.items(), *known.items()):
            found.setdefault(name.lower(), set()).add(meant)
        self._by_lower = {name: meants.pop() for name, meants in found.items() if len(meants) == 1}

    def meant(self, name: str) -> Meant | None:
        """What a name stands for that is no model, alias or tier as it is written; None if it is unknown."""
        return self._pinned.get(name) or self._by_lower.get(name.lower()) or self._alias_at_provider(name)

    def _alias_at_provider(self, name: str) -> Meant | None:
        provider, _, model = name.partition("/")
        if provider not in self._providers:
            return None
        try:
            return self._pinned.get(f"{provider}/{self._catalog.resolve(model)}")
        except ModelNotFoundError:
            return None
