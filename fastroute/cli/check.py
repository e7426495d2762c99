"""``fastroute check``: prints what is wrong with a configuration, and where its keys go."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from fastroute.figures import duration

from .group import visible
from .output import Column, no_warnings, print_table

if TYPE_CHECKING:
    from fastroute.config import Config, Findings

_TIMEOUT = 15.0  # seconds for one provider's list of models
_AT_ONCE = 8


@click.command("check")
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option("--online", is_flag=True, help="Also ask each provider for its models, which costs nothing.")
@click.option(
    "--keys",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="Also read the gateway's callers' keys. [default: fastroute-keys.db, if there is one]",
)
@click.option("--pepper-env", metavar="NAME", help="Environment variable with the keys' pepper.")
def command(file: str | None, online: bool, keys: str | None, pepper_env: str | None) -> None:
    """List every problem of a configuration, and where each key goes.

    Reads FILE, or the configuration that is used without --config, and the FASTROUTE_… variables of the
    environment. Every problem and warning is printed with its path, then the host that each provider's key
    and prompts go to. The exit status is 1 if there is a problem, if a key of the gateway's callers is
    damaged, or if a provider that is asked does not answer or refuses the key; otherwise 0.

    \b
    Examples:
      fastroute check
      fastroute check fastroute.toml --online
    """
    from fastroute.config import check
    from fastroute.providers import names
    from fastroute.state.segment_file import describe as describe_state

    findings = check(file, formats=names())
    for problem in findings.problems:
        click.echo(f"{click.style('problem', fg='red', bold=True)}  {visible(problem)}")
    for warning in findings.warnings:
        click.echo(f"{click.style('warning', fg='yellow')}  {visible(warning)}")
    config = findings.config
    if config is None:
        where = f" in {findings.file}" if findings.file else ""
        count = _count(len(findings.problems), "problem")
        click.echo(visible(f"{count}{where}, {_warnings(len(findings.warnings))}"))
        raise SystemExit(1)
    click.echo(
        f"ok: {_count(len(config.providers), 'provider')}, {_count(len(config.endpoints), 'endpoint')}, "
        f"{_count(len(config.served), 'model')}, {_warnings(len(findings.warnings))}"
    )
    for tier, models in config.tiers.items():
        click.echo(f"  tier {visible(tier)}: {visible(', '.join(models))}")
    click.echo(
        visible(f"  configuration: {findings.file or 'no file; the provider keys in the environment'}")
    )
    click.echo(visible(f"  ledger: {_ledger(config)}"))
    click.echo(visible(f"  state: {describe_state(config)}"))
    reached = _print_network(config)
    _print_providers(config, findings)
    _print_crowded(config)
    fine = _router_usable(config)
    fine = _keys_intact(keys, pepper_env) and reached and fine
    if online:
        fine = _ask(config, findings) and fine
    if not fine:
        raise SystemExit(1)


def _router_usable(config: Config) -> bool:
    """Prints how the learned classifier would route, if it is configured; whether its file can be used."""
    from fastroute.config.rules import LEARNED
    from fastroute.errors import ConfigError
    from fastroute.events import Hooks
    from fastroute.routing.learned import LearnedClassifier, advice
    from fastroute.state.segment_file import present_segment

    if config.policy.classifier != LEARNED and not config.learned.file:
        return True
    try:
        found = LearnedClassifier(config.learned, present_segment(config), Hooks())
    except ConfigError as error:
        for problem in error.problems:
            click.echo(f"{click.style('problem', fg='red', bold=True)}  {visible(problem)}")
        return False
    figures = found.figures()
    source = config.learned.file or "the shipped prior"
    seen = f", {figures['calls']:,} calls counted" if figures["calls"] else ""
    click.echo(visible(f"  learned: {source}, {found.share:.0%} of the calls to strong{seen}"))
    row = found.forecast
    if row is not None:
        quality, low, high = row.quality
        cost = f", about ${row.cost[0]:.2f} a thousand calls" if row.cost else ""
        click.echo(f"  forecast for {row.share:.0%}: quality {quality:.3f} ({low:.3f} to {high:.3f}){cost}")
    for warning in advice(config, found):
        click.echo(f"{click.style('warning', fg='yellow')}  {visible(warning)}")
    return True


def _keys_intact(path: str | None, pepper_env: str | None) -> bool:
    """Reads the gateway's key file and prints what is damaged in it; whether it can be used."""
    from fastroute.errors import ConfigError
    from fastroute.gateway.keys import DEFAULT_FILE, KeyFile

    if path is None and not os.path.lexists(DEFAULT_FILE):
        return True
    try:
        table = KeyFile(path or DEFAULT_FILE, pepper_env=pepper_env).read()
    except ConfigError as error:
        # A file that was not named may be one whose pepper is known to the gateway only.
        what, colour = ("warning", "yellow") if path is None else ("problem", "red")
        click.echo(f"{click.style(what, fg=colour, bold=path is not None)}  keys: {visible(str(error))}")
        return path is None
    for problem in table.problems:
        click.echo(f"{click.style('problem', fg='red', bold=True)}  keys: {visible(problem)}")
    return not table.problems


def _print_crowded(config: Config) -> None:
    """Warns of budgets that have no room for new values of their tags, in processes that run now."""
    from fastroute._core import SegmentFullError
    from fastroute.budget import CROWDED_MINUTES, crowding
    from fastroute.state.segment_file import known_segment

    segment = known_segment(config)
    if segment is None:
        return
    for budget in config.budgets:
        with suppress(SegmentFullError):
            calls = crowding(segment, budget.name).lately(CROWDED_MINUTES) if budget.tag else 0
            if calls:
                text = (
                    f"budgets.{budget.name}: no room for new values of {budget.tag}; "
                    f"{_count(calls, 'call')} of the last {CROWDED_MINUTES} minutes counted as others"
                )
                click.echo(f"{click.style('warning', fg='yellow')}  {visible(text)}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _warnings(number: int) -> str:
    return _count(number, "warning") if number else "no warnings"


def _ledger(config: Config) -> str:
    place = config.ledger_place
    if place and "://" not in place:
        place = os.path.abspath(place)
    return (place or "none") + (" (the default)" if config.ledger is None else "")


def _print_network(config: Config) -> bool:
    """Prints proxies and certificates that are not the usual ones; whether those can be used."""
    from fastroute.transport.network import ENVIRONMENT, network_to

    lines: dict[str, list[str]] = {}
    fine = True
    for name, provider in config.providers.items():
        network = network_to(provider.base_url, provider.proxy, provider.ca_bundle)
        if network.proxy:
            said = f"  proxy: {network.proxy_host}, from {network.proxy_source}"
            lines.setdefault(said, []).append(name)
        if network.unused_proxy:
            said = (
                f"{click.style('warning', fg='yellow')}  {network.unused_proxy} is set, but not used; if "
                f'these providers are reached through it, set their proxy = "{ENVIRONMENT}"'
            )
            lines.setdefault(said, []).append(name)
        problem = network.problem()
        if problem is not None:
            fine = False
            lines.setdefault(f"{click.style('problem', fg='red', bold=True)}  {problem}", []).append(name)
        elif network.ca_bundle:
            said = f"  certificates: {network.ca_bundle}, from {network.ca_source}"
            lines.setdefault(said, []).append(name)
    for line, names in lines.items():
        click.echo(f"{line} ({visible(', '.join(names))})")
    return fine


def _print_providers(config: Config, findings: Findings) -> None:
    """Where each key goes."""
    rows = []
    for name, provider in config.providers.items():
        key = provider.api_key_env or provider.api_key_file or "none"
        count = sum(endpoint.provider == name for endpoint in config.endpoints)
        rows.append(
            [name, provider.base_url, key + (" (missing)" if name in findings.missing else ""), str(count)]
        )
    print_table(
        [
            Column("provider"),
            Column("key and prompts go to", give=True),
            Column("key"),
            Column("endpoints", right=True),
        ],
        rows,
    )


# ------------------------------------------------------------------------------------------------- --online


def _ask(config: Config, findings: Findings) -> bool:
    """Asks every provider for its models and prints what it says; whether all of them answered well."""

    def ask(name: str) -> tuple[list[str], bool, list[str]]:
        return _answer(config, name, name in findings.missing)

    with no_warnings(), ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = list(pool.map(ask, config.providers))
    print_table(
        [
            Column("provider"),
            Column("status", right=True),
            Column("time", right=True),
            Column("answer", give=True),
        ],
        [row for row, _, _ in answers],
    )
    for _, _, lacking in answers:
        for line in lacking:
            click.echo(f"{click.style('warning', fg='yellow')}  {visible(line)}")
    return all(fine for _, fine, _ in answers)


def _answer(config: Config, name: str, keyless: bool) -> tuple[list[str], bool, list[str]]:
    """The line about one provider, whether it is in order, and warnings."""
    from fastroute.errors import APIStatusError, ConfigError
    from fastroute.runtime.discovery import models

    if keyless:
        return [name, "-", "-", "not asked, because its key is missing"], True, []
    began = time.monotonic()
    try:
        found = models(config, name, timeout=_TIMEOUT)
    except ConfigError as problem:
        return [name, "-", "-", f"not asked: {problem}"], True, []
    took = duration(time.monotonic() - began)
    error = found.error
    if error is None:
        said = _SAID.get(found.status, "") + _count(len(found.models), "model")
        lacking = [
            f"endpoint {lack.endpoint}: {name} does not list {lack.upstream}"
            + (f"; near names are {', '.join(lack.near)}" if lack.near else "")
            for lack in found.lacking
        ]
        return [name, "200", took, said], True, lacking
    status = str(error.status_code) if isinstance(error, APIStatusError) else "-"
    refused = "the key is refused: " if found.status == "refused" else ""
    return [name, status, took, f"{refused}{error}"], False, []


_SAID = {"valid": "", "open": "the list is public, which does not show whether the key is valid; "}
