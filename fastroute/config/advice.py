"""Warnings about valid settings that cannot work, or probably not as intended; for `check`.

Each warning is ``<path>: <what is wrong>; <what would be right>``, like a problem.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from .catalog import Catalog
from .known_providers import known_providers
from .messages import did_you_mean, quoted, show
from .tables import Config, ProviderConfig

# Endings of base URLs that were copied from the documentation of a single operation.
_OPERATION = re.compile(
    r"/(?:chat/completions|completions|responses|messages|embeddings|models(?:/[^/]+:\w+)?|deployments/.+)$"
)


def advice(config: Config, catalog: Catalog, environ: Mapping[str, str]) -> list[str]:
    """The warnings for a valid configuration.

    Args:
        catalog: the configuration's.
        environ: the environment, which may have keys of providers that the configuration does not use.
    """
    return [
        *_addresses(config),
        *_providers(config, environ),
        *_models(config, catalog),
        *_prices(config, catalog),
        *_ledger(config),
    ]


def operation_problems(config: Config) -> Iterable[str]:
    """Base URLs that end with the path of a single operation, so that every call would fail."""
    for name, provider in config.providers.items():
        url = provider.base_url.rstrip("/")
        operation = _OPERATION.search(urlsplit(url).path)
        if operation is not None:
            yield (
                f"providers.{quoted(name)}.base_url: ends with {operation.group()}, which fastroute appends "
                f"itself, so every call will fail; use {url[: -len(operation.group())]}"
            )


def _addresses(config: Config) -> Iterable[str]:
    for name, provider in config.providers.items():
        path, url = f"providers.{quoted(name)}.base_url", provider.base_url.rstrip("/")
        if provider.format == "openai" and not urlsplit(url).path.strip("/"):
            known = next((known for known in known_providers().values() if known.is_at(url)), None)
            right = f"{url}/v1" if known is None else url + urlsplit(known.base_url).path
            yield f"{path}: has no path, but most servers answer below /v1; if calls fail (404), use {right}"
        elif provider.format == "gemini" and url.endswith("/openai"):
            yield f'{path}: is Google\'s OpenAI-compatible API; set format = "openai", or use {url[:-7]}'


def _providers(config: Config, environ: Mapping[str, str]) -> Iterable[str]:
    used = {endpoint.provider for endpoint in config.endpoints}
    for name, provider in config.providers.items():
        path = f"providers.{quoted(name)}"
        if name not in used:
            yield f'{path}: has no endpoint, so no call goes there; add models = ["…"] to it, or remove it'
        elif name in known_providers() and not (provider.api_key_env or provider.api_key_file):
            yield from _unsent(path, name, provider, environ)


def _unsent(path: str, name: str, provider: ProviderConfig, environ: Mapping[str, str]) -> Iterable[str]:
    variable = known_providers()[name].key_variable(environ)
    if environ.get(variable):
        yield (
            f"{path}: the key in {variable} is not sent to {urlsplit(provider.base_url).netloc}, which is "
            f'not the provider\'s own host; if the key is for it, set api_key_env = "{variable}"'
        )


def _models(config: Config, catalog: Catalog) -> Iterable[str]:
    """Models named as a provider or an alias names them: they are other models than the catalogue's."""
    own = Catalog.builtin()
    for model in config.served:
        if catalog.model(model).known:
            continue
        meant = own.aliases.get(model) or next(
            (name for name, each in own.models.items() if model in each.providers.values()), None
        )
        if meant is not None:
            yield (
                f"endpoints: {show(model)} is not a model of the catalogue, so its price and quality are "
                f"unknown; use model = {show(meant)}, and upstream for the provider's name if it is another"
            )


def _prices(config: Config, catalog: Catalog) -> Iterable[str]:
    hard = [budget.name for budget in config.budgets if budget.hard]
    reasons = [f'the hard budget "{name}"' for name in hard[:1]]
    if config.policy.max_cost is not None:
        reasons.append("policy.max_cost")
    if not reasons:
        return
    described = [name for name, model in catalog.models.items() if model.prices is not None]
    for name in config.served:
        if catalog.model(name).prices is None:
            hint = did_you_mean(name, described)
            yield (
                f'models."{name}": has no price{hint}, so it is not used under {" and ".join(reasons)}; '
                "set input_price and output_price (0 if it costs nothing)"
            )


def _ledger(config: Config) -> Iterable[str]:
    if config.ledger is None:
        if config.ledger_place and config.budgets:
            yield (
                f"fastroute.ledger: budgets count what all programs of this user spend that share "
                f'{config.ledger_place}; set ledger = "NAME.db" for a ledger of its own'
            )
    elif config.ledger and "://" not in config.ledger and not Path(config.ledger).absolute().parent.is_dir():
        directory = Path(config.ledger).absolute().parent
        yield f"fastroute.ledger: the directory {directory} does not exist; create it"
