"""``fastroute calibrate``: makes a learned router from labels, or labels from prompts, and forecasts it.

The exit status is 0 if the router is accepted, 3 if it is refused, 2 for wrong usage or labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from .group import config_option, json_option, refuse, visible
from .output import Column, dim, no_warnings, print_json, print_table

if TYPE_CHECKING:
    from fastroute.config.catalog import Catalog
    from fastroute.learning import CalibrationResult, Forecast
    from fastroute.routing.router_file import RouterHeader
    from fastroute.types import TokenPrices

REFUSED = 3
_FILE = click.Path(exists=True, dir_okay=False)
_OUT = click.Path(dir_okay=False, writable=True)
_PART = click.FloatRange(0, 1, min_open=True, max_open=True)
_DOLLARS = click.FloatRange(0, min_open=True)


def read_columns(ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, str] | None:
    """The value of ``--columns prompt=COLUMN,MODEL=COLUMN`` as a mapping."""
    if value is None:
        return None
    columns = {}
    for text in value.split(","):
        name, equals, column = text.partition("=")
        if not name.strip() or not equals or not column.strip():
            raise click.BadParameter(
                f"{text!r} is not a column; write prompt=COLUMN,MODEL=COLUMN,…", ctx, param
            )
        columns[name.strip()] = column.strip()
    return columns


def read_model(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A model's name, which is written into the file."""
    if value is not None and (not value.isprintable() or not value.strip()):
        raise click.BadParameter("is empty or has control characters; write the model's name", ctx, param)
    return value


@click.command("calibrate")
@click.argument("labels", required=False, type=_FILE)
@click.option("--weak", callback=read_model, metavar="MODEL", help="The cheaper model.")
@click.option("--strong", callback=read_model, metavar="MODEL", help="The better model.")
@click.option("--share", type=_PART, metavar="PART", help="Part of the calls to strong. [default: 0.5]")
@click.option(
    "--keep",
    type=_PART,
    metavar="PART",
    help="Instead: the smallest share that surely keeps this part of the strong model's quality.",
)
@click.option(
    "--cost",
    type=_DOLLARS,
    metavar="USD",
    help="Instead: the largest share at this cost of a thousand calls.",
)
@click.option("-o", "--output", type=_OUT, metavar="FILE", help="Write the router, or with --ask the labels.")
@click.option("--force", is_flag=True, help="Write a router that was refused; the file says so.")
@click.option(
    "--traffic", type=_FILE, metavar="FILE", help="Prompts to set the threshold by; labels may lack."
)
@click.option(
    "--columns",
    callback=read_columns,
    metavar="NAMES",
    help="LABELS is CSV with these columns: prompt=COLUMN,MODEL=COLUMN,…",
)
@click.option("--pairs", is_flag=True, help="Forecast every pair of the labels' models; write nothing.")
@click.option("--ask", "prompts", type=_FILE, metavar="FILE", help="Make labels of these prompts.")
@click.option("--judge", metavar="COMMAND", help="With --ask: reads a question, prints two numbers of 0..1.")
@click.option("--spend", type=_DOLLARS, metavar="USD", help="With --ask: the most that all answers may cost.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    help="With --ask: the longest answer.",
)
@click.option(
    "--at-once", type=click.IntRange(1, 64), default=4, show_default=True, help="With --ask: prompts at once."
)
@click.option("--show", type=_FILE, metavar="FILE", help="Show a router's file.")
@click.option("--html", type=_OUT, metavar="FILE", help="Also write the plot and the table as a web page.")
@config_option
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    labels: str | None,
    weak: str | None,
    strong: str | None,
    share: float | None,
    keep: float | None,
    cost: float | None,
    output: str | None,
    force: bool,
    traffic: str | None,
    columns: dict[str, str] | None,
    pairs: bool,
    prompts: str | None,
    judge: str | None,
    spend: float | None,
    max_tokens: int,
    at_once: int,
    show: str | None,
    html: str | None,
    config: str | None,
    as_json: bool,
) -> None:
    """Make a learned router from your own outcomes, or refuse to.

    Reads LABELS, JSON lines or CSV with the scores (0..1) of a weak and a strong model on the same prompts,
    fits the router, and forecasts quality and cost for each share of calls to strong, on prompts that it was
    not fitted to. The exit status is 0 if it is accepted, 3 if it is refused; then nothing is written without
    --force.

    With --ask it makes the labels: it asks both models each prompt, and your judge about the answers. A
    stopped run is continued by the same command.

    \b
    Examples:
      fastroute calibrate --ask prompts.jsonl --judge ./judge --spend 20 --weak a --strong b -o labels.jsonl
      fastroute calibrate labels.jsonl --weak a --strong b --keep 0.95 -o router.frl
      fastroute calibrate --traffic prompts.jsonl --share 0.3 -o router.frl
      fastroute calibrate labels.jsonl --pairs
      fastroute calibrate --show router.frl --html router.html
    """
    if sum(value is not None for value in (share, keep, cost)) > 1:
        raise click.UsageError("give only one of --share, --keep and --cost")
    if sum((labels is not None, prompts is not None, show is not None)) > 1:
        raise click.UsageError("give only one of LABELS, --ask and --show")
    if show is not None:
        _show(show, html, as_json)
        return
    with _wrong_usage():
        if prompts is not None:
            _ask(ctx, prompts, config, weak, strong, judge, spend, output, max_tokens, at_once)
        elif pairs:
            if labels is None:
                raise click.UsageError("--pairs needs LABELS")
            _pairs(labels, columns, share, config, as_json)
        else:
            result = _calibrate(labels, traffic, columns, config, weak, strong, share, keep, cost)
            _finish(ctx, result, output, force, html, as_json)


class UnusableLabels(click.ClickException):
    """The labels or prompts cannot be used."""

    exit_code = 2


@contextmanager
def _wrong_usage() -> Iterator[None]:
    """Labels that cannot be used end the command with the status of wrong usage."""
    from fastroute.learning import LabelError

    try:
        yield
    except LabelError as error:
        raise UnusableLabels(visible(str(error))) from error


def _catalog(config: str | None) -> Catalog:
    from fastroute.config import catalog_of
    from fastroute.config.catalog import Catalog

    from .configuration import find

    found = find(config).config
    return Catalog.builtin() if found is None else catalog_of(found)


class _Prices(dict[str, "TokenPrices | None"]):
    """The prices of a catalogue by model or alias; None for one that it does not have."""

    def __init__(self, catalog: Catalog) -> None:
        super().__init__()
        self._catalog = catalog

    def get(self, name: str, default: TokenPrices | None = None) -> TokenPrices | None:  # type: ignore[override]
        from fastroute.errors import ModelNotFoundError

        try:
            return self._catalog.model(name).prices
        except ModelNotFoundError:
            return default


# ------------------------------------------------------------------------------------------- calibrating


def _calibrate(
    labels: str | None,
    traffic: str | None,
    columns: Mapping[str, str] | None,
    config: str | None,
    weak: str | None,
    strong: str | None,
    share: float | None,
    keep: float | None,
    cost: float | None,
) -> CalibrationResult:
    from fastroute.learning import LabelSet, by_share, calibrate, read_labels

    calls = None if traffic is None else LabelSet(read_labels(traffic))
    if labels is None:
        if calls is None:
            raise click.UsageError("name a file of LABELS, or prompts with --traffic, --ask or --show")
        if share is None:
            raise click.UsageError(
                "--traffic without labels needs --share: quality and cost are unknown then"
            )
        return by_share(calls, share=share, weak=weak or "", strong=strong or "")
    found = LabelSet(read_labels(labels, columns=columns))
    if weak is None or strong is None:
        raise click.UsageError(
            "--weak and --strong are needed; the labels have scores of "
            f"{', '.join(found.models) or 'no model'}"
        )
    if weak == strong:
        raise click.UsageError("--weak and --strong must be two models")
    return calibrate(
        found,
        weak=weak,
        strong=strong,
        share=share,
        keep=keep,
        cost=cost,
        traffic=calls,
        prices=_Prices(_catalog(config)),
    )


def _finish(
    ctx: click.Context,
    result: CalibrationResult,
    output: str | None,
    force: bool,
    html: str | None,
    as_json: bool,
) -> None:
    header = result.file.header
    unlabelled = result.forecast is None
    written = output is not None and (result.accepted or force or unlabelled)
    if output is not None and written:
        try:
            result.save(output, force=force)
        except OSError as error:
            refuse(f"{output} cannot be written: {error.strerror}")
    if html and result.forecast is not None:
        _write_page(html, header)
    if as_json:
        print_json({**_object(header), "left_out": result.left_out, "written": output if written else None})
    else:
        _print(header, result.forecast)
        for reason in result.left_out:
            click.echo(visible(f"note: {reason}"))
        click.echo(_ending(result, output, written))
    if not (result.accepted or unlabelled):
        ctx.exit(REFUSED)


def _ending(result: CalibrationResult, output: str | None, written: bool) -> str:
    if output is None:
        return "nothing was written; -o FILE writes the router"
    if not written:
        return visible(f"{output} was not written; --force writes it anyway")
    return visible(
        f'written to {output}: set classifier = "learned" in [policy] and file = "{output}" in [learned]; '
        "keep the file as confidential as your prompts"
    )


def _object(header: RouterHeader) -> dict[str, Any]:
    import attrs

    return attrs.asdict(header, filter=lambda attribute, value: attribute.name not in ("quantiles", "kind"))


def _print(header: RouterHeader, forecast: Forecast | None) -> None:
    pair = f"{header.weak} (weak), {header.strong} (strong)" if header.weak else "any weak and strong model"
    click.echo(visible(f"{pair}: {header.labels:,} labels, {header.prompts:,} prompts\n"))
    if forecast is not None:
        from fastroute.learning.curve import TITLES, cells, to_text

        columns = [Column(""), *(Column(title, right=True) for title in TITLES)]
        mark = {0.0: "weak alone", 1.0: "strong alone", header.share: "chosen"}
        print_table(columns, [[mark.get(row.share, ""), *cells(row)] for row in forecast.rows])
        click.echo(f"\n{to_text(forecast)}\n")
        click.echo("Intervals are of 90 %, for traffic like the labels' and scores that are right.")
    word, colour = ("accepted", "green") if header.accepted else ("refused", "red")
    if forecast is None:
        word, colour = "unknown quality", "yellow"
    elif header.forced:
        word = "refused, but written by --force"
    click.echo(f"{click.style(word, fg=colour, bold=True)}: {visible(header.reason)}")


def _write_page(path: str, header: RouterHeader) -> None:
    from fastroute.learning.curve import to_html

    try:
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(to_html(header))
    except OSError as error:
        refuse(f"{path} cannot be written: {error.strerror}")
    dim(f"the page was written to {path}")


def _show(path: str, html: str | None, as_json: bool) -> None:
    from fastroute.learning import Forecast
    from fastroute.routing.router_file import read_router

    header = read_router(path).header
    forecast = Forecast(rows=header.forecast, share=header.share) if header.forecast else None
    if html:
        if forecast is None:
            refuse(f"{path}: has no forecast, because it was made without labels")
        _write_page(html, header)
    if as_json:
        print_json(_object(header))
        return
    click.echo(visible(f"{path}: made {header.date} by fastroute {header.fastroute}"))
    _print(header, forecast)


def _pairs(
    labels: str, columns: Mapping[str, str] | None, share: float | None, config: str | None, as_json: bool
) -> None:
    import attrs

    from fastroute.learning import LabelSet, forecast_pairs, read_labels

    found = LabelSet(read_labels(labels, columns=columns))
    pairs = forecast_pairs(found, share=0.5 if share is None else share, prices=_Prices(_catalog(config)))
    if as_json:
        print_json({"pairs": [attrs.asdict(pair) for pair in pairs]})
        return
    columns_ = [Column("weak", give=True), Column("strong", give=True)]
    columns_ += [
        Column(title, right=True)
        for title in ("labels", "weak alone", "strong alone", "quality", "lift", "90 %", "$ / 1,000")
    ]
    rows = []
    for pair in pairs:
        forecast = pair.forecast
        rows.append(
            [
                pair.weak,
                pair.strong,
                f"{pair.labels:,}",
                f"{forecast.weak[0]:.3f}",
                f"{forecast.strong[0]:.3f}",
                f"{forecast.quality:.3f}",
                f"{forecast.lift:+.3f}",
                f"{forecast.lift_low:+.3f} … {forecast.lift_high:+.3f}",
                "unknown" if forecast.cost is None else f"{forecast.cost:,.2f}",
                "accepted" if pair.accepted else "refused",
            ]
        )
    click.echo(f"At a share of {pairs[0].forecast.share:.0%} to strong:\n")
    print_table([*columns_, Column("")], rows)


# ------------------------------------------------------------------------------------------- making labels


def _ask(
    ctx: click.Context,
    prompts: str,
    config: str | None,
    weak: str | None,
    strong: str | None,
    judge: str | None,
    spend: float | None,
    output: str | None,
    max_tokens: int,
    at_once: int,
) -> None:
    from fastroute.client import Client
    from fastroute.figures import dollars
    from fastroute.learning import ask, read_labels

    needed = {"--weak": weak, "--strong": strong, "--judge": judge, "--spend": spend, "-o": output}
    if weak is None or strong is None or judge is None or spend is None or output is None:
        missing = ", ".join(name for name, value in needed.items() if value is None)
        raise click.UsageError(f"--ask also needs {missing}")
    if weak == strong:
        raise click.UsageError("--weak and --strong must be two models")
    with no_warnings(), Client(config) as client:
        report = ask(
            read_labels(prompts),
            client,
            weak=weak,
            strong=strong,
            judge=judge,
            spend=spend,
            to=output,
            max_tokens=max_tokens,
            at_once=at_once,
            say=dim,
        )
    click.echo(
        visible(
            f"{output}: {report.before + report.labelled:,} labels, {report.labelled:,} of them new; "
            f"{dollars(report.spent_nano)} spent on answers"
        )
    )
    if report.left:
        click.echo(
            visible(
                f"{report.left:,} prompts are left: {report.stopped or 'they failed'}. Run it again to go on."
            ),
            err=True,
        )
        ctx.exit(1)


__all__ = ["REFUSED", "command", "read_columns", "read_model"]
