"""``fastroute models``: the catalogue in force, and which of its models somebody serves.

Owns the showing; the data is `fastroute.catalog`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .group import config_option, json_option
from .output import Column, optional, print_json, print_table

if TYPE_CHECKING:
    from fastroute.catalog import Catalog, Model

_PER_MILLION = 1_000_000_000  # nano-dollars per million tokens → dollars per million tokens


@click.command("models")
@config_option
@click.option("--all", "everything", is_flag=True, help="Also the models that no endpoint serves.")
@json_option
def command(config: str | None, everything: bool, as_json: bool) -> None:
    """List the models, their prices and who serves them.

    Prices are US dollars per million tokens. With a configuration, the models that it serves; without one, or
    with --all, the whole catalogue. Capabilities: s streaming, t tools, v vision, j answers by JSON schema.
    """
    from fastroute.catalog import Catalog
    from fastroute.config import catalog_of

    from .configuration import find

    loaded = find(config).config
    catalog = Catalog.builtin() if loaded is None else catalog_of(loaded)
    endpoints: dict[str, list[str]] = {}
    for endpoint in loaded.endpoints if loaded is not None else ():
        endpoints.setdefault(catalog.resolve(endpoint.model), []).append(endpoint.name)
    shown = [
        model for name, model in catalog.models.items() if everything or loaded is None or name in endpoints
    ]
    aliases = _aliases(catalog)
    if as_json:
        print_json(
            {
                "version": catalog.version,
                "date": catalog.date.isoformat(),
                "source": catalog.source,
                "models": [
                    _object(model, endpoints.get(model.name, []), aliases.get(model.name, []))
                    for model in shown
                ],
            }
        )
        return
    click.echo(
        f"catalogue of {catalog.date.isoformat()} (version {catalog.version}, {catalog.source}), "
        f"{len(shown)} of {len(catalog.models)} models"
    )
    columns = [
        Column("model"),
        Column("tier"),
        Column("in", right=True),
        Column("cached", right=True),
        Column("out", right=True),
        Column("window", right=True),
        Column("can"),
        Column("quality", right=True),
    ]
    if endpoints:
        columns.append(Column("endpoints", give=True))
    columns.append(Column("aliases", give=True))
    rows = []
    for model in shown:
        row = [
            model.name,
            model.tier or "-",
            _usd(model.input_price),
            _usd(model.cached_input_price),
            _usd(model.output_price),
            _window(model.context_window),
            "".join(name[0] for name in _capabilities(model)),
            f"{model.quality:.2f}",
        ]
        if endpoints:
            row.append(", ".join(endpoints.get(model.name, ())))
        row.append(", ".join(aliases.get(model.name, ())))
        rows.append(row)
    print_table(columns, rows)
    if loaded is None:
        click.echo("\nNo configuration was found, so nothing is served yet.")


def _aliases(catalog: Catalog) -> dict[str, list[str]]:
    from fastroute.errors import ModelNotFoundError

    found: dict[str, list[str]] = {}
    for alias in catalog.aliases:
        try:
            found.setdefault(catalog.resolve(alias), []).append(alias)
        except ModelNotFoundError:
            continue  # its model was taken off by the configuration
    return found


def _capabilities(model: Model) -> list[str]:
    from fastroute.catalog import CAPABILITIES

    return [name for name, bit in CAPABILITIES.items() if model.capabilities & bit]


def _usd(nano: int | None) -> str:
    return optional(nano, lambda price: f"{price / _PER_MILLION:.4g}")


def _window(tokens: int) -> str:
    if not tokens:
        return "-"
    return f"{tokens / 1e6:.3g}M" if tokens >= 1_000_000 else f"{tokens / 1000:.0f}k"


def _object(model: Model, endpoints: list[str], aliases: list[str]) -> dict[str, Any]:
    def usd(nano: int | None) -> float | None:
        return None if nano is None else nano / _PER_MILLION

    return {
        "name": model.name,
        "tier": model.tier,
        "input_price_usd": usd(model.input_price),
        "cached_input_price_usd": usd(model.cached_input_price),
        "output_price_usd": usd(model.output_price),
        "context_window": model.context_window or None,
        "max_output_tokens": model.max_output_tokens or None,
        "capabilities": _capabilities(model),
        "quality": model.quality,
        "latency_s": model.latency or None,
        "aliases": aliases,
        "endpoints": endpoints,
    }
