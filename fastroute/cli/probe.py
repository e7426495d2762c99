"""``fastroute probe``: measures the speed and reliability of each endpoint.

The calls are made and counted in `probe_run.py`.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import click

from fastroute.figures import dollars, duration

from .group import INTERRUPTED, config_option, json_option, refuse, visible
from .output import Column, dim, no_warnings, optional, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastroute.config import Config

    from .probe_run import Asked, EndpointTally, Measurement

ASK_ABOVE_USD = 0.05
ASK_ABOVE_TOKENS = 50_000  # for models without a known price


@click.command("probe")
@config_option
@click.option(
    "-n", "--calls", type=click.IntRange(1, 10_000), default=10, help="Calls per endpoint. [default: 10]"
)
@click.option(
    "-e",
    "--endpoint",
    "names",
    multiple=True,
    metavar="NAME",
    help="Only this endpoint; repeatable. [default: all]",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    default=1,
    metavar="K",
    help="Calls at once per endpoint. [default: 1]",
)
@click.option("--prompt", metavar="TEXT", help="The prompt. [default: a few words]")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=16, help="Longest answer, in tokens. [default: 16]"
)
@click.option("--stream", is_flag=True, help="Stream the answers, and measure the time to the first token.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, 86_400, min_open=True),
    metavar="SECONDS",
    help="Time limit of each call. [default: the configuration's]",
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask before spending money.")
@json_option
def command(
    config: str | None,
    calls: int,
    names: tuple[str, ...],
    concurrency: int,
    prompt: str | None,
    max_tokens: int,
    stream: bool,
    timeout: float | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Measure the speed and reliability of each endpoint.

    Makes small calls to each endpoint, without cache, retries or fallbacks. They count for limits, breakers
    and budgets, and are in the ledger with the tag probe=command. The exit status is 1 if an endpoint gave no
    good answer.

    \b
    Examples:
      fastroute probe
      fastroute probe -e openai/gpt-4.1 --calls 50 --stream
    """
    from .configuration import find
    from .probe_run import Asked

    found = find(config)
    loaded = found.config if found.config is not None else refuse(found.missing)
    chosen = _chosen(loaded, names)
    from fastroute.runtime.health import PROMPT

    if prompt is not None and not prompt.strip():
        raise click.BadParameter("is empty; must be some text", param_hint="--prompt")
    asked = Asked(
        calls=calls,
        at_once=concurrency,
        prompt=prompt or PROMPT,
        max_tokens=max_tokens,
        stream=stream,
        timeout=timeout,
    )
    _agree(loaded, chosen, asked, yes)

    from fastroute.client import Client

    from .probe_run import Measurement

    with no_warnings(), Client(_measured_by(loaded)) as client:
        measurement = Measurement(client, chosen, asked, loaded.policy.breaker.probes_to_close)
        interrupted = _interrupted(measurement, calls * len(chosen))
        tallies = list(measurement.tallies.values())
        if as_json:
            print_json(_object(loaded, asked, tallies, interrupted))
        else:
            _show(tallies, stream)
        if interrupted:
            dim("interrupted; waiting for the running calls (Ctrl-C again to leave them)")
        with suppress(KeyboardInterrupt):
            measurement.wait()
    if interrupted:
        click.get_current_context().exit(INTERRUPTED)
    if any(tally.ok == 0 for tally in tallies):
        click.get_current_context().exit(1)


def _chosen(config: Config, names: Sequence[str]) -> tuple[str, ...]:
    from fastroute.config.messages import did_you_mean, show

    known = [entry.name for entry in config.endpoints]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) or f"; use one of {', '.join(known)}"
            raise click.BadParameter(visible(f"unknown endpoint {show(name)}{hint}"), param_hint="--endpoint")
    return tuple(dict.fromkeys(names)) or tuple(known)


def _agree(config: Config, names: Sequence[str], asked: Asked, yes: bool) -> None:
    """Prints the estimated cost, and asks for confirmation if it is more than a little."""
    from fastroute.config import catalog_of
    from fastroute.state.tokens import estimate_input
    from fastroute.types import NANO, Usage

    catalog = catalog_of(config)
    entries = {entry.name: entry for entry in config.endpoints}
    tokens_in = estimate_input(len(asked.prompt), len(asked.prompt.encode("utf-8", "replace")), 1)
    total, unknown = 0, 0
    for name in names:
        model = catalog.model(entries[name].model)
        out = min(asked.max_tokens, model.max_output_tokens or asked.max_tokens)
        if model.prices is None:
            unknown += asked.calls * (tokens_in + out)
        else:
            total += asked.calls * model.prices.cost(Usage(tokens_in, out))
    cost = f"at most about {dollars(total)}"
    if unknown:
        cost += f" and {unknown:,} tokens at unknown prices"
    said = f"{asked.calls * len(names)} calls to {len(names)} endpoint{'s' * (len(names) > 1)}, {cost}"
    if yes or (total <= ASK_ABOVE_USD * NANO and unknown <= ASK_ABOVE_TOKENS):
        dim(said)
    elif sys.stdin.isatty():
        click.confirm(f"{said}. Continue?", abort=True, err=True)
    else:
        raise click.UsageError(f"{said}; add --yes to confirm")


def _measured_by(config: Config) -> Config:
    """The configuration for measuring.

    Breakers still open after failures in a row, so that few calls go to a dead endpoint. They do not open by
    the failure rate, since that would stop the measurement of an unreliable endpoint.
    """
    from attrs import evolve

    from fastroute.config import HealthCheckConfig

    policy = config.policy
    breaker = evolve(policy.breaker, rate=1.0, min_calls=10_000)
    policy = evolve(policy, breaker=breaker, health_check=HealthCheckConfig())
    return evolve(config, policy=policy, reload="off")


def _interrupted(measurement: Measurement, total: int) -> bool:
    """Makes the calls and shows the progress; returns whether it was interrupted."""
    try:
        with ExitStack() as stack:
            bar = None
            if sys.stderr.isatty():
                bar = stack.enter_context(click.progressbar(length=total, label="probing", file=sys.stderr))
            for done in measurement.run():
                if bar is not None:
                    bar.update(done - bar.pos)
    except KeyboardInterrupt:
        return True
    return False


# ------------------------------------------------------------------------------------------------- showing


def _show(tallies: Sequence[EndpointTally], stream: bool) -> None:
    figures = [Column(name, right=True) for name in ("p50", "p95", "p99", "mean")]
    columns = [
        Column("endpoint"),
        Column("calls", right=True),
        Column("ok", right=True),
        Column("errors", right=True),
        *figures,
        *([Column("first token", right=True)] if stream else []),
        Column("cost", right=True),
        Column("why", give=True),
    ]
    print_table(columns, [_line(tally, stream) for tally in tallies])
    for tally in tallies:
        for failure in tally.failures.values():
            click.echo(visible(f"{tally.endpoint}: {failure.kind}: {failure.message}"))
        if tally.stopped is not None:
            click.echo(visible(f"{tally.endpoint}: {tally.calls - tally.sent} not sent: {tally.stopped}"))


def _line(tally: EndpointTally, stream: bool) -> list[str]:
    why = [f"{failure.kind} {failure.count}" for failure in tally.failures.values()]
    if tally.stopped is not None:
        why.append(f"not sent {tally.calls - tally.sent}")
    return [
        tally.endpoint,
        str(tally.sent),
        str(tally.ok),
        optional(tally.error_rate, "{:.0%}".format),
        *(optional(tally.percentile(percent), duration) for percent in (50, 95, 99)),
        optional(tally.mean, duration),
        *([optional(tally.ttft, duration)] if stream else []),
        "unknown" if tally.cost is None else dollars(tally.cost),
        ", ".join(why),
    ]


def _usd(tally: EndpointTally) -> float | None:
    return None if tally.cost is None else tally.cost / 1e9


def _object(
    config: Config, asked: Asked, tallies: Sequence[EndpointTally], interrupted: bool
) -> dict[str, Any]:
    entries = {entry.name: entry for entry in config.endpoints}
    costs = [_usd(tally) for tally in tallies]
    return {
        "calls": asked.calls,
        "concurrency": asked.at_once,
        "max_tokens": asked.max_tokens,
        "stream": asked.stream,
        "interrupted": interrupted,
        "cost_usd": None if None in costs else sum(cost or 0 for cost in costs),
        "endpoints": [
            {
                "endpoint": tally.endpoint,
                "model": entries[tally.endpoint].model,
                "provider": entries[tally.endpoint].provider,
                "sent": tally.sent,
                "ok": tally.ok,
                "failed": tally.failed,
                "error_rate": tally.error_rate,
                "p50_s": tally.percentile(50),
                "p95_s": tally.percentile(95),
                "p99_s": tally.percentile(99),
                "mean_s": tally.mean,
                "ttft_p50_s": tally.ttft,
                "cost_usd": cost,
                "errors": [
                    {"error": failure.error, "count": failure.count, "message": failure.message}
                    for failure in tally.failures.values()
                ],
                "stopped": tally.stopped,
            }
            for tally, cost in zip(tallies, costs)
        ],
    }
