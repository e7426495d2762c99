"""``fastroute check``: prints everything that is wrong with a configuration."""

from __future__ import annotations

import click

from .group import visible


@click.command("check")
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False))
def command(file: str | None) -> None:
    """List every problem of a configuration.

    Reads FILE, or the configuration that is used without --config, and the FASTROUTE_… variables of the
    environment. Every problem and warning is printed with its path. The exit status is 1 if there is a
    problem, otherwise 0.
    """
    from fastroute.config import check
    from fastroute.providers import names

    findings = check(file, formats=names())
    for problem in findings.problems:
        click.echo(f"{click.style('problem', fg='red', bold=True)}  {visible(problem)}")
    for warning in findings.warnings:
        click.echo(f"{click.style('warning', fg='yellow')}  {visible(warning)}")
    config = findings.config
    if config is None:
        count = len(findings.problems)
        click.echo(f"{count} problem{'' if count == 1 else 's'}, {_warnings(len(findings.warnings))}")
        raise SystemExit(1)
    click.echo(
        f"ok: {_count(len(config.providers), 'provider')}, {_count(len(config.endpoints), 'endpoint')}, "
        f"{_count(len(config.served), 'model')}, {_warnings(len(findings.warnings))}"
    )
    for tier, models in config.tiers.items():
        click.echo(f"  tier {visible(tier)}: {visible(', '.join(models))}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _warnings(number: int) -> str:
    return _count(number, "warning") if number else "no warnings"
