"""``fastroute keys``: creates and lists the keys of the gateway's callers.

Keys are created only here, on the machine, and never over HTTP.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, TypeVar

import click

from .group import json_option, read_tags, visible
from .output import Column, dim, optional, print_json, print_table

_DURATION = re.compile(r"([0-9]{1,6})([smhd])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

_SIZE = re.compile(r"([0-9]{1,12})([kKmM]?)", re.ASCII)
_BYTES = {"": 1, "K": 1024, "M": 1024 * 1024}

_Command = TypeVar("_Command", bound=Callable[..., Any])


def read_duration(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """Seconds of a duration such as ``30m`` or ``24h``, or of 0."""
    found = _DURATION.fullmatch(value)
    if found is None:
        if value == "0":
            return 0.0
        raise click.BadParameter(f"{value!r} is not a duration; write 0, 30m, 24h or 7d", ctx, param)
    return float(int(found[1]) * _SECONDS[found[2]])


def read_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Bytes of a size such as ``500000``, ``200K`` or ``2M``."""
    if value is None:
        return None
    found = _SIZE.fullmatch(value)
    if found is None:
        raise click.BadParameter(f"{value!r} is not a size; write 500000, 200K or 2M (bytes)", ctx, param)
    return int(found[1]) * _BYTES[found[2].upper()]


def read_allowed_tags(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> dict[str, tuple[str, ...] | None]:
    """The values of ``--allow-tag NAME`` and ``--allow-tag NAME=VALUE``, by name."""
    tags: dict[str, tuple[str, ...] | None] = {}
    for text in value:
        name, equals, content = text.partition("=")
        known = tags.get(name, ())
        if not name or (name in tags and (known is None) == bool(equals)):
            text = f"{text!r} does not fit; write NAME for any value, or NAME=VALUE for each value"
            raise click.BadParameter(text, ctx, param)
        tags[name] = (*(known or ()), content) if equals else None
    return tags


_allow_tags = click.option(
    "--allow-tag",
    "allowed",
    multiple=True,
    callback=read_allowed_tags,
    metavar="NAME[=VALUE]",
    help="A tag that the caller may set, to any value or to this one; * for all tags; repeatable.",
)


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
    """Create, list, change and revoke keys of the gateway's callers.

    A key is shown once, when it is created; the file contains only its hash. A running gateway applies
    changes within two seconds.

    \b
    Examples:
      fastroute keys create web --rpm 600 --budget 5/day
      fastroute keys list
      fastroute keys rotate web --overlap 24h
    """


@command.command("create")
@click.argument("name")
@click.option("--admin", is_flag=True, help="A key for the figures under /admin that cannot make calls.")
@click.option(
    "-m", "--model", multiple=True, metavar="NAME", help="Allow only this model, tier or auto; repeatable."
)
@click.option("--rpm", type=click.IntRange(0), help="Requests a minute.")
@click.option("--tpm", type=click.IntRange(0), help="Tokens a minute.")
@click.option(
    "--max-in-flight",
    type=click.IntRange(0),
    metavar="N",
    help="Calls at once in each worker process, streams included.",
)
@click.option(
    "--max-body",
    callback=read_size,
    metavar="SIZE",
    help="Size of a request's body: 500000, 200K or 2M; default: what the gateway takes.",
)
@click.option(
    "--budget", multiple=True, metavar="USD/WINDOW", help="Such as 5/day, 100/month or 20/total; repeatable."
)
@click.option(
    "--tag", multiple=True, callback=read_tags, metavar="NAME=VALUE", help="Label of its calls; repeatable."
)
@_allow_tags
@_file_options
@json_option
def create(
    name: str,
    admin: bool,
    model: tuple[str, ...],
    rpm: int | None,
    tpm: int | None,
    max_in_flight: int | None,
    max_body: int | None,
    budget: tuple[str, ...],
    tag: dict[str, str],
    allowed: dict[str, tuple[str, ...] | None],
    path: str,
    pepper_env: str | None,
    as_json: bool,
) -> None:
    """Create a key for NAME and print it once.

    \b
    Examples:
      fastroute keys create web --rpm 600 --budget 5/day --model auto
      fastroute keys create app --allow-tag user --allow-tag plan=free --allow-tag plan=paid
      fastroute keys create boss --admin
    """
    from fastroute.gateway.keys import Caller, KeyFile, budgets_of

    caller = Caller(
        name=name,
        admin=admin,
        models=model or None,
        rpm=rpm,
        tpm=tpm,
        max_in_flight=max_in_flight,
        max_body_bytes=max_body,
        budgets=budgets_of(budget),
        tags=tag,
        allowed_tags=allowed,
    )
    _show_key(name, KeyFile(path, pepper_env=pepper_env).create(caller), as_json)


@command.command("tags")
@click.argument("name")
@_allow_tags
@_file_options
def tags(name: str, allowed: dict[str, tuple[str, ...] | None], path: str, pepper_env: str | None) -> None:
    """Replace the tags that the caller NAME may set; without --allow-tag it may set none.

    \b
    Examples:
      fastroute keys tags web --allow-tag user --allow-tag plan=free
    """
    from fastroute.gateway.keys import KeyFile

    KeyFile(path, pepper_env=pepper_env).allow_tags(name, allowed)
    dim(f"{name} may set {_allowed(allowed)}")


@command.command("rotate")
@click.argument("name")
@click.option(
    "--overlap",
    default="24h",
    show_default=True,
    callback=read_duration,
    metavar="TIME",
    help="How long the current key stays valid: 0, 30m, 24h, 7d.",
)
@_file_options
@json_option
def rotate(name: str, overlap: float, path: str, pepper_env: str | None, as_json: bool) -> None:
    """Create another key for NAME and print it; the current one expires after the overlap.

    \b
    Examples:
      fastroute keys rotate web --overlap 7d
    """
    from fastroute.gateway.keys import KeyFile

    _show_key(name, KeyFile(path, pepper_env=pepper_env).rotate(name, overlap), as_json)


@command.command("revoke")
@click.argument("name")
@_file_options
def revoke(name: str, path: str, pepper_env: str | None) -> None:
    """Revoke all keys of NAME; a running gateway refuses them within two seconds.

    \b
    Examples:
      fastroute keys revoke web
    """
    from fastroute.gateway.keys import KeyFile

    KeyFile(path, pepper_env=pepper_env).revoke(name)
    dim(f"{name} is revoked")


@command.command("list")
@_file_options
@json_option
def list_keys(path: str, pepper_env: str | None, as_json: bool) -> None:
    """Show the callers and their limits, and what is damaged in the file.

    \b
    Examples:
      fastroute keys list --json
    """
    from fastroute.gateway.keys import KeyFile, describe

    table = KeyFile(path, pepper_env=pepper_env).read()
    now = time.time()
    shown = [describe(caller, table, now) for caller in table.callers.values()]
    if as_json:
        print_json({"keys": shown, "problems": table.problems})
        return
    columns = [
        Column("name"),
        Column("rpm", right=True),
        Column("tpm", right=True),
        Column("at once", right=True),
        Column("budgets (USD)", give=True),
        Column("models", give=True),
        Column("tags", give=True),
        Column("may set", give=True),
        Column("created"),
        Column("keys", give=True),
    ]
    print_table(columns, [_row(caller) for caller in shown])
    for problem in table.problems:
        click.echo(f"{click.style('damaged', fg='red', bold=True)}  {visible(problem)}", err=True)
    if table.problems:
        dim("Damaged keys are refused. keys create NAME writes one anew, or restore the file from a copy.")


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
        optional(caller["max_in_flight"]),
        ", ".join(f"{usd:g}/{window}" for window, usd in caller["budgets"].items()) or "-",
        "admin" if caller["admin"] else optional(caller["models"], ", ".join),
        ", ".join(f"{name}={value}" for name, value in caller["tags"].items()) or "-",
        _allowed(caller["allowed_tags"]),
        _moment(caller["created"]),
        ", ".join(keys) if revoked is None else f"revoked {_moment(revoked)}",
    ]


def _allowed(tags: dict[str, tuple[str, ...] | None]) -> str:
    shown = (name if values is None else f"{name}={'|'.join(values)}" for name, values in tags.items())
    return ", ".join(shown) or "-"


def _moment(when: float) -> str:
    return datetime.fromtimestamp(when, timezone.utc).strftime("%Y-%m-%d %H:%M")


def _show_key(name: str, token: str, as_json: bool) -> None:
    if as_json:
        print_json({"name": name, "key": token})
        return
    click.echo(token)
    dim("The key is not shown again.")
