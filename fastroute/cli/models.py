"""``fastroute models``: lists models and their endpoints, updates prices, checks a provider."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from fastroute.figures import dollars

from .group import config_option, json_option, refuse, visible
from .output import Column, dim, no_warnings, optional, print_json, print_table

if TYPE_CHECKING:
    from fastroute.config import Config
    from fastroute.config.catalog import Catalog, Model

_PER_MILLION = 1_000_000_000  # nano-dollars per million tokens → dollars per million tokens


@click.command("models")
@config_option
@click.option("--all", "everything", is_flag=True, help="Also list models without an endpoint.")
@click.option("--update", is_flag=True, help="Write the newest prices into your own catalogue file.")
@click.option(
    "--from",
    "origin",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="With --update: the catalogue file to read prices from. [default: the genai-prices package]",
)
@click.option(
    "--to",
    "target",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="With --update: the file to write. [default: the configuration's catalog, else ./catalog.toml]",
)
@click.option("--provider", metavar="NAME", help="Read this provider's own list, and check the key.")
@json_option
def command(
    config: str | None,
    provider: str | None,
    everything: bool,
    update: bool,
    origin: str | None,
    target: str | None,
    as_json: bool,
) -> None:
    """List the models, their prices and their endpoints.

    Prices are US dollars per million tokens. With a configuration the models that it serves are listed;
    without one, or with --all, the whole catalogue. Capabilities: s streaming, t tools, v vision, j answers
    by JSON schema.

    With --provider it prints the models that the provider lists, whether the key is valid, and which
    endpoints use a model that is not listed; the exit status is 0 only if everything is in order. It sends no
    prompt and costs nothing.

    \b
    Examples:
      fastroute models --all
      fastroute models --provider openai
      fastroute models --update
    """
    from fastroute.config import catalog_of
    from fastroute.config.catalog import Catalog

    from .configuration import find

    found = find(config)
    loaded = found.config
    if provider is not None:
        if everything or update or origin or target:
            raise click.UsageError("--provider can be combined with --config and --json only")
        _ask(loaded if loaded is not None else refuse(found.missing), provider, as_json)
        return
    if update:
        configured = loaded.catalog if loaded is not None else ""
        _update(origin, target or configured or "catalog.toml", configured, as_json)
        return
    if origin or target:
        raise click.UsageError("--from and --to need --update")
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
            optional(model.input_price, dollars),
            optional(model.cached_input_price, dollars),
            optional(model.output_price, dollars),
            _window(model.context_window),
            "".join(name[0] for name in model.capability_names),
            f"{model.quality:.2f}",
        ]
        if endpoints:
            row.append(", ".join(endpoints.get(model.name, ())))
        row.append(", ".join(aliases.get(model.name, ())))
        rows.append(row)
    print_table(columns, rows)
    if loaded is None:
        click.echo("\nNo configuration was found, so no model has an endpoint.")


def _ask(config: Config, name: str, as_json: bool) -> None:
    """Shows what a provider lists; ends with status 1 unless everything is in order."""
    from fastroute.runtime.discovery import models

    with no_warnings():
        found = models(config, name)
    endpoints: dict[str, list[str]] = {}
    for entry in config.endpoints:
        if entry.provider == name:
            endpoints.setdefault(entry.upstream, []).append(entry.name)
    if as_json:
        print_json(
            {
                "provider": found.provider,
                "format": found.format,
                "base_url": found.base_url,
                "status": found.status,
                "error": None if found.error is None else str(found.error),
                "compared": found.compared,
                "models": found.models,
                "lacking": [
                    {"endpoint": lack.endpoint, "upstream": lack.upstream, "near": lack.near}
                    for lack in found.lacking
                ],
            }
        )
    else:
        if found.models:
            rows = [[model, ", ".join(endpoints.get(model, ()))] for model in found.models]
            print_table([Column("model"), Column("endpoints", give=True)], rows)
            click.echo()
        asked = config.providers[name]
        keyless = found.status == "valid" and not asked.api_key_env and not asked.api_key_file
        said = "no key is configured, and none is needed" if keyless else _SAID[found.status]
        click.echo(visible(f"{found.provider} ({found.format}, {found.base_url}): {said}"))
        if found.error is not None:
            click.echo(visible(f"  {found.error}"))
        elif not found.models:
            click.echo(visible(f"  {found.provider} lists no models, so nothing was compared"))
        for lack in found.lacking:
            near = f"; similar names: {', '.join(lack.near)}" if lack.near else ""
            click.echo(visible(f"not listed  {lack.endpoint} uses {lack.upstream}{near}"))
        if found.models and not found.compared:
            dim("the endpoints name deployments, which cannot be listed, so they were not compared")
    if not found.ok:
        click.get_current_context().exit(1)


_SAID = {
    "valid": "the key is valid",
    "refused": "the key was refused",
    "open": "the list is public, so it does not show whether the key is valid",
    "unreachable": "the provider did not answer",
    "unknown": "the answer does not show whether the key is valid",
}


def _update(origin: str | None, target: str, configured: str, as_json: bool) -> None:
    """Updates a catalogue file and prints what changed."""
    from fastroute.config import price_update

    done = price_update.update(
        target, price_update.from_file(origin) if origin else price_update.from_package()
    )
    if as_json:
        print_json(
            {
                "path": done.path,
                "date": done.date.isoformat(),
                "source": done.source,
                "updated": done.updated,
                "unknown": done.unknown,
                "own": done.own,
                "changes": [
                    {
                        "model": change.model,
                        "figure": change.figure,
                        "before": change.before,
                        "after": change.after,
                    }
                    for change in done.changes
                ],
            }
        )
        return
    if done.changes:
        columns = [
            Column("model"),
            Column("figure"),
            Column("before", right=True),
            Column("after", right=True),
        ]
        print_table(
            columns,
            [
                [
                    change.model,
                    change.figure,
                    optional(change.before, _figure),
                    optional(change.after, _figure),
                ]
                for change in done.changes
            ],
        )
        click.echo()
    click.echo(
        f"{done.path}: prices of {done.date.isoformat()} from {done.source} for {len(done.updated)} models, "
        f"{len(done.changes) or 'no'} figures changed"
    )
    for names, why in ((done.unknown, "not in the source"), (done.own, "your own, without providers")):
        if names:
            dim(f"unchanged ({why}): {', '.join(names)}")
    if os.path.realpath(done.path) != os.path.realpath(configured or ""):
        dim(f'to use it, set catalog = "{done.path}" in [fastroute]')


def _figure(number: float) -> str:
    return f"{number:,.10g}"


def _aliases(catalog: Catalog) -> dict[str, list[str]]:
    from fastroute.errors import ModelNotFoundError

    found: dict[str, list[str]] = {}
    for alias in catalog.aliases:
        try:
            found.setdefault(catalog.resolve(alias), []).append(alias)
        except ModelNotFoundError:
            continue  # the configuration has removed its model
    return found


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
        "cache_write_price_usd": usd(model.cache_write_price),
        "cache_write_1h_price_usd": usd(model.cache_write_1h_price),
        "audio_input_price_usd": usd(model.audio_input_price),
        "audio_output_price_usd": usd(model.audio_output_price),
        "search_price_usd": usd(model.search_price),
        "price_factors": {name: dict(factors) for name, factors in model.price_factors.items()},
        "long_context": model.long_context or None,
        "long_input_price_usd": usd(model.long_input_price),
        "long_output_price_usd": usd(model.long_output_price),
        "context_window": model.context_window or None,
        "max_output_tokens": model.max_output_tokens or None,
        "capabilities": list(model.capability_names),
        "sampling": model.sampling,
        "quality": model.quality,
        "latency_s": model.latency or None,
        "aliases": aliases,
        "endpoints": endpoints,
    }
