"""``fastroute keys``: the keys of the gateway's callers.

Owns the options and how keys are shown; the file is `fastroute.gateway.keys`'. Keys are made here only, on
the machine, and never over HTTP.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, TypeVar

import click

from .group import json_option, read_tags
from .output import Column, dim, optional, print_json, print_table

_DURATION = re.compile(r"([0-9]{1,6})([smhd])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

_Command = TypeVar("_Command", bound=Callable[..., Any])


def read_duration(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """``30m``, ``24h`` and the like, or 0, in seconds."""
    found = _DURATION.fullmatch(value)
    if found is None:
        if value == "0":
            return 0.0
        raise click.BadParameter(f"{value!r} is no duration; write 0, 30m, 24h or 7d", ctx, param)
    return float(int(found[1]) * _SECONDS[found[2]])


def _file_options(command: _Command) -> _Command:
    for option in (
        click.option("--pepper-env", metavar="NAME", help="Environment variable with the keys' pepper."),
        click.option(
            "-f",
            "--file",
            "path",
            type=click.Path(dir_okay=False),
            default="fastroute-keys.db",
            show_default=True,
            help="The file of keys.",
        ),
    ):
        command = option(command)
    return command


@click.group("keys")
def command() -> None:
    """Make, list, rotate and revoke the keys of the gateway's callers.

    A key is shown once, when it is made; the file holds its hash. A running gateway hears of changes within
    two seconds.
    """


@command.command("create")
@click.argument("name")
@click.option("--admin", is_flag=True, help="A key that sees the figures under /admin and makes no calls.")
@click.option(
    "-m",
    "--model",
    multiple=True,
    metavar="NAME",
    help="May ask for this only: model, tier or auto; repeatable.",
)
@click.option("--rpm", type=click.IntRange(0), help="Requests a minute.")
@click.option("--tpm", type=click.IntRange(0), help="Tokens a minute.")
@click.option(
    "--budget", multiple=True, metavar="USD/WINDOW", help="Such as 5/day, 100/month or 20/total; repeatable."
)
@click.option(
    "--tag", multiple=True, callback=read_tags, metavar="NAME=VALUE", help="Label of its calls; repeatable."
)
@_file_options
@json_option
def create(
    name: str,
    admin: bool,
    model: tuple[str, ...],
    rpm: int | None,
    tpm: int | None,
    budget: tuple[str, ...],
    tag: dict[str, str],
    path: str,
    pepper_env: str | None,
    as_json: bool,
) -> None:
    """Make a key for NAME and print it, this once."""
    from fastroute.gateway.keys import Caller, KeyFile, budgets_of

    caller = Caller(name, admin, model or None, rpm, tpm, budgets_of(budget), tag)
    _show_key(name, KeyFile(path, pepper_env=pepper_env).create(caller), as_json)


@command.command("rotate")
@click.argument("name")
@click.option(
    "--overlap",
    default="24h",
    show_default=True,
    callback=read_duration,
    metavar="TIME",
    help="How long the present key goes on working: 0, 30m, 24h, 7d.",
)
@_file_options
@json_option
def rotate(name: str, overlap: float, path: str, pepper_env: str | None, as_json: bool) -> None:
    """Make another key for NAME and print it; the present one ends after the overlap."""
    from fastroute.gateway.keys import KeyFile

    _show_key(name, KeyFile(path, pepper_env=pepper_env).rotate(name, overlap), as_json)


@command.command("revoke")
@click.argument("name")
@_file_options
def revoke(name: str, path: str, pepper_env: str | None) -> None:
    """End all keys of NAME; a running gateway refuses them within two seconds."""
    from fastroute.gateway.keys import KeyFile

    KeyFile(path, pepper_env=pepper_env).revoke(name)
    dim(f"{name} is revoked")


@command.command("list")
@_file_options
@json_option
def list_keys(path: str, pepper_env: str | None, as_json: bool) -> None:
    """Show who may call, and how much."""
    from fastroute.gateway.keys import KeyFile, describe

    table = KeyFile(path, pepper_env=pepper_env).read()
    now = time.time()
    shown = [describe(caller, table, now) for caller in table.callers.values()]
    if as_json:
        print_json({"keys": shown})
        return
    columns = [
        Column("name"),
        Column("rpm", right=True),
        Column("tpm", right=True),
        Column("budgets (USD)", give=True),
        Column("models", give=True),
        Column("tags", give=True),
        Column("created"),
        Column("keys", give=True),
    ]
    print_table(columns, [_row(caller) for caller in shown])


def _row(caller: dict[str, Any]) -> list[str]:
    keys = [
        key["begins"] + (f" until {_moment(key['expires'])}" if key["expires"] else "")
        for key in caller["keys"]
    ]
    revoked = caller["revoked"]
    return [
        caller["name"],
        optional(caller["rpm"]),
        optional(caller["tpm"]),
        ", ".join(f"{usd:g}/{window}" for window, usd in caller["budgets"].items()) or "-",
        "admin" if caller["admin"] else optional(caller["models"], ", ".join),
        ", ".join(f"{name}={value}" for name, value in caller["tags"].items()) or "-",
        _moment(caller["created"]),
        ", ".join(keys) if revoked is None else f"revoked {_moment(revoked)}",
    ]


def _moment(when: float) -> str:
    return datetime.fromtimestamp(when, timezone.utc).strftime("%Y-%m-%d %H:%M")


def _show_key(name: str, token: str, as_json: bool) -> None:
    if as_json:
        print_json({"name": name, "key": token})
        return
    click.echo(token)
    dim("This is the only time that it is shown.")
