"""Which names a caller may ask for, and whether there is something behind them.

Owns the list of models as the gateway shows it, for one configuration; resolving names is the catalogue's.
"""

from __future__ import annotations

import time
from typing import Any

from fastroute import errors
from fastroute.config import AUTO, Config, catalog_of, tiers_of

from .keys import Caller


class ModelNotAllowed(errors.PermissionDeniedError):
    """The key is not for this model."""


class ServedModels:
    """What one configuration serves: models, tiers and ``auto``.

    Thread safety: nothing in it changes.
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
        """What this caller may ask for, in the form of OpenAI's list."""
        return [model for model in self._all if caller.may_ask_for(str(model["id"]))]

    def asked_for(self, name: str, caller: Caller) -> str:
        """The name, if the caller may ask for it, by its own name or by the one that it stands for.

        Raises:
            ModelNotFoundError: there is nothing of this name.
            ModelNotAllowed: it is not among the key's.
        """
        real = name if name == AUTO or name in self._tiers else self._catalog.resolve(name)
        if not caller.may_ask_for(real):
            raise ModelNotAllowed(f"this key may not use {name}", code="model_not_allowed", param="model")
        return name

    def tier_asked_for(self, name: str, caller: Caller) -> None:
        """As `asked_for`, of the tier among the routing words."""
        if name not in self._tiers:
            raise errors.ModelNotFoundError(f"there is no tier {name}", param="route.tier")
        if not caller.may_ask_for(name):
            raise ModelNotAllowed(
                f"this key may not use {name}", code="model_not_allowed", param="route.tier"
            )
