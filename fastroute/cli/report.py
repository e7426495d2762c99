"""``fastroute report``: shows what was spent, from the ledger."""

from __future__ import annotations

import os
import re
import shutil
import sys
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import click

from fastroute.figures import dollars, duration

from .group import config_option, read_tags, refuse
from .output import Column, dim, optional, print_table

if TYPE_CHECKING:
    from fastroute.config import Config
    from fastroute.config.catalog import Catalog
    from fastroute.ledger import Totals
    from fastroute.ledger.report import Report
    from fastroute.types import TokenPrices

_AGO = re.compile(r"([0-9]{1,6})([mhdw])", re.ASCII)
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def read_moment(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    """A date, a date and time (UTC by default), or a time ago such as 7d."""
    if value is None:
        return None
    ago = _AGO.fullmatch(value)
    if ago is not None:
        return datetime.now(timezone.utc) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        moment = datetime.fromisoformat(value.removesuffix("Z"))
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not a time; write 2025-03-31, 2025-03-31T18:00, or 30m, 24h, 7d, 2w ago",
            ctx,
            param,
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


@click.command("report")
@config_option
@click.option(
    "--ledger",
    "path",
    type=click.Path(exists=True, dir_okay=False),
    help="The ledger's file. [default: the configuration's]",
)
@click.option(
    "--by",
    multiple=True,
    metavar="KEY",
    help="model, tier, level, endpoint, provider, day, outcome, service_tier or tag:NAME; several with "
    "commas. [default: model]",
)
@click.option(
    "--since",
    callback=read_moment,
    metavar="WHEN",
    help="Only entries from this time on: 2025-03-31, or 7d for seven days ago.",
)
@click.option("--until", callback=read_moment, metavar="WHEN", help="Only entries before this time.")
@click.option(
    "--tag",
    multiple=True,
    callback=read_tags,
    metavar="NAME=VALUE",
    help="Only entries with this tag; repeatable.",
)
@click.option("--against", multiple=True, metavar="MODEL", help="Also the cost with this model alone.")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option(
    "--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True
)
@click.option(
    "--plot",
    "page",
    type=click.Path(dir_okay=False, writable=True),
    metavar="FILE",
    help="Also draw a web page of the days: cost by model, class and --by, savings --against, latency, "
    "calls, failures.",
)
def command(
    config: str | None,
    path: str | None,
    by: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    tag: dict[str, str],
    against: tuple[str, ...],
    as_json: bool,
    form: str,
    page: str | None,
) -> None:
    """Show what was spent, from the ledger.

    Prints calls, tokens, cost and latency, grouped by --by, and with --against the cost of the same tokens
    with one model alone.

    \b
    Examples:
      fastroute report --by day --since 7d
      fastroute report --by tier,tag:user --against gpt-4.1 --format csv
    """
    from fastroute.ledger import configured_ledger, open_ledger
    from fastroute.ledger.plot import days, to_html
    from fastroute.ledger.report import report, to_csv, to_json, to_table

    catalog, settings = _source(config)
    location = path or settings.ledger_place
    if not location:
        refuse('the configuration has no ledger (ledger = ""); name one with --ledger FILE')
    if "://" not in location and not os.path.exists(location):
        refuse(f"the ledger {location} does not exist yet; the first call creates it")
    keys = tuple(key.strip() for text in by or ("model",) for key in text.split(",") if key.strip())
    names = [catalog.resolve(name) for name in against]

    def prices(name: str) -> TokenPrices:
        known = catalog.model(name).prices
        if known is None:
            refuse(f'--against {name}: the catalogue has no price for it; set one in [models."{name}"]')
        return known

    form = "json" if as_json else form
    dim(f"ledger: {location if '://' in location else os.path.abspath(location)}")
    ledger = open_ledger(location) if path else configured_ledger(settings)
    try:
        result = report(
            ledger,
            by=keys,
            since=since,
            until=until,
            tags=tag or None,
            against=names,
            prices=prices if names else None,
        )
        drawn = (
            days(
                ledger,
                since=since,
                until=until,
                tags=tag or None,
                by=("level", *keys),
                against=names,
                prices=prices if names else None,
            )
            if page
            else None
        )
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--by") from None
    finally:
        ledger.close()
    if page and drawn is not None:
        _write(page, to_html(drawn, made=datetime.now(timezone.utc)))
    text = {"table": to_table, "json": to_json, "csv": to_csv}[form](result).rstrip("\n")
    columns = shutil.get_terminal_size().columns
    if (
        form == "table"
        and sys.stdout.isatty()
        and max(map(len, text.split("\n\n")[0].splitlines())) > columns
    ):
        print_compact(result)
        _, gap, sentences = text.partition("\n\n")
        click.echo(gap[1:] + sentences, nl=bool(sentences))
    else:
        click.echo(text)


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        refuse(f"{path} cannot be written: {error.strerror}")
    dim(f"the page was written to {path}")


def print_compact(result: Report) -> None:
    """Prints the report's table with its main columns, for a narrow terminal."""
    columns = [Column(key, give=True) for key in result.keys or ("",)]
    columns += [Column(title, right=True) for title in ("calls", "failed", "in", "out", "cost", "p50", "p95")]
    scored = result.totals.score_mean is not None  # only under the learned classifier
    columns += [Column("score", right=True)] * scored
    groups = [
        [optional(key) for key in group.keys] + _figures(group, scored)
        for group in result.groups
        if result.keys
    ]
    total = ["total", *[""] * (len(result.keys) - 1), *_figures(result.totals, scored)]
    print_table(columns, [*groups, total])


def _figures(sums: Totals, scored: bool) -> list[str]:
    return [
        *(f"{n:,}" for n in (sums.calls, sums.failures, sums.prompt_tokens, sums.completion_tokens)),
        dollars(sums.cost_nano),
        *(optional(latency, duration) for latency in (sums.latency_p50, sums.latency_p95)),
        *([optional(sums.score_mean, "{:.3f}".format)] if scored else ()),
    ]


def _source(config: str | None) -> tuple[Catalog, Config]:
    """The catalogue that prices come from, and the configuration that names the ledger."""
    from fastroute.config import Config, catalog_of
    from fastroute.config.catalog import Catalog

    from .configuration import find

    loaded = find(config).config
    if loaded is None:
        # The built-in prices and the default path of the ledger.
        return Catalog.builtin(), Config()
    return catalog_of(loaded), loaded
