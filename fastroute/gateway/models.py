"""The models, tiers and aliases of a configuration, and which of them a caller may use."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from attrs import evolve

from fastroute import errors
from fastroute.config import AUTO, Config, catalog_of, tiers_of
from fastroute.config.catalog import Model
from fastroute.config.messages import near, show
from fastroute.config.model_names import ModelNames
from fastroute.integrations import wire_openai

from .keys import Caller
from .request_schema import request_checker

_NANO = 1e9


class ModelNotAllowed(errors.PermissionDeniedError):
    """The key may not use this model."""


class ServedModels:
    """What a configuration serves: the names of models, tiers and ``auto``, and the form of a request.

    Attributes:
        config: the configuration.
        check: checks a request's body by its schema, with the parameters that the configuration adds.
        limits: how much may be in a body.
        free: whether a model costs nothing.

    Thread safety: immutable.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        gateway = config.gateway
        self.check = request_checker(gateway.parameters)
        self.limits = evolve(
            wire_openai.STRANGERS,
            max_bytes=gateway.max_body_bytes,
            max_values=gateway.max_body_values,
            max_keys=gateway.max_body_keys,
        )
        self._catalog = catalog_of(config)
        self._tiers = frozenset(tiers_of(config, self._catalog))
        self._names = ModelNames(config, self._catalog, self._tiers)
        started = int(time.time())
        owners: dict[str, str] = {}
        for endpoint in config.endpoints:
            owners.setdefault(self._catalog.resolve(endpoint.model), endpoint.provider)
        self._served = frozenset(owners)
        models = [self._catalog.model(name) for name in owners]
        self.free = any(model.input_price == model.output_price == 0 for model in models)
        names = {AUTO: "fastroute", **dict.fromkeys(sorted(self._tiers), "fastroute"), **owners}
        self._all = [
            {
                "id": name,
                "object": "model",
                "created": started,
                "owned_by": owner,
                **(_described(self._catalog.model(name)) if name in owners else {}),
            }
            for name, owner in names.items()
        ]

    def listed(self, caller: Caller, latencies: Mapping[str, float]) -> list[dict[str, Any]]:
        """The names that this caller may use, in the form of OpenAI's list of models, with more about models.

        Args:
            latencies: the measured 95th percentile of the models' latencies, seconds, by name.
        """
        return [
            {**model, "p95_s": latencies.get(model["id"])} if "pricing" in model else model
            for model in self._all
            if caller.may_ask_for(model["id"])
        ]

    def asked_for(self, name: str, caller: Caller) -> str:
        """Checks that a caller may use a model, a tier or ``auto``; an alias counts as its model.

        Returns:
            The name.

        Raises:
            ModelNotFoundError: the name is unknown.
            ModelNotAllowed: the key may not use it.
        """
        real = name if name == AUTO or name in self._tiers else self._model(name, caller)
        if not caller.may_ask_for(real):
            raise ModelNotAllowed(
                f"this key may not use {name}; /v1/models lists what it may use",
                code="model_not_allowed",
                param="model",
            )
        return name

    def _model(self, name: str, caller: Caller) -> str:
        """The model, tier or ``auto`` that a name stands for; it may be an endpoint's, or in another case."""
        if name not in self._served and name not in self.config.aliases:
            meant = self._names.meant(name)
            if meant is not None:
                chosen = meant.name == AUTO or meant.name in self._tiers
                return meant.name if chosen else self._catalog.resolve(meant.name)
        try:
            return self._catalog.resolve(name)
        except errors.ModelNotFoundError:
            # The catalogue's near names would be models that are not served here, or not to this caller.
            served = [model["id"] for model in self._all if caller.may_ask_for(model["id"])]
            found = near(name, [*served, *self._aliases(caller)], 3)
            hint = f"near names are {', '.join(found)}" if found else "/v1/models lists the models"
            raise errors.ModelNotFoundError(
                f"unknown model {show(name)}; {hint}", suggestions=found, param="model"
            ) from None

    def _aliases(self, caller: Caller) -> list[str]:
        return [alias for alias, model in self.config.aliases.items() if caller.may_ask_for(model)]

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


def _described(model: Model) -> dict[str, Any]:
    """Prices in US dollars per million tokens, lengths in tokens; null is unknown."""
    return {
        "pricing": {
            "input": _dollars(model.input_price),
            "output": _dollars(model.output_price),
            "cached_input": _dollars(model.cached_input_price),
        },
        "context_window": model.context_window or None,
        "max_output_tokens": model.max_output_tokens or None,
        "capabilities": list(model.capability_names),
    }


def _dollars(nano: int | None) -> float | None:
    return None if nano is None else nano / _NANO
