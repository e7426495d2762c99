"""The models, tiers and aliases of a configuration, and which of them a caller may use."""

from __future__ import annotations

import time
from typing import Any

from fastroute import errors
from fastroute.config import AUTO, Config, catalog_of, tiers_of

from .keys import Caller


class ModelNotAllowed(errors.PermissionDeniedError):
    """The key may not use this model."""


class ServedModels:
    """The names that a configuration serves: models, tiers and ``auto``.

    Thread safety: immutable.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._catalog = catalog_of(config)
        self._tiers = frozenset(tiers_of(config, self._catalog))
        started = int(time.time())
        owners: dict[str, str] = {}
        for endpoint in config.endpoints:
            owners.setdefault(self._catalog.resolve(endpoint.model), endpoint.provider)
        names = {AUTO: "fastroute", **dict.fromkeys(sorted(self._tiers), "fastroute"), **owners}
        self._all = [
            {"id": name, "object": "model", "created": started, "owned_by": owner}
            for name, owner in names.items()
        ]

    def listed(self, caller: Caller) -> list[dict[str, Any]]:
        """The names that this caller may use, in the form of OpenAI's list of models."""
        return [model for model in self._all if caller.may_ask_for(str(model["id"]))]

    def asked_for(self, name: str, caller: Caller) -> str:
        """Checks that a caller may use a model, a tier or ``auto``; an alias counts as its model.

        Returns:
            The name.

        Raises:
            ModelNotFoundError: the name is unknown.
            ModelNotAllowed: the key may not use it.
        """
        real = name if name == AUTO or name in self._tiers else self._catalog.resolve(name)
        if not caller.may_ask_for(real):
            raise ModelNotAllowed(
                f"this key may not use {name}; /v1/models lists what it may use",
                code="model_not_allowed",
                param="model",
            )
        return name

    def tier_asked_for(self, name: str, caller: Caller) -> None:
        """Checks that a caller may use the tier of its routing options, as `asked_for` does."""
        if name not in self._tiers:
            raise errors.ModelNotFoundError(
                f"unknown tier {name}; /v1/models lists the tiers", param="route.tier"
            )
        if not caller.may_ask_for(name):
            raise ModelNotAllowed(
                f"this key may not use {name}", code="model_not_allowed", param="route.tier"
            )
