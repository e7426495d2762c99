"""The list of commands, their common options, and the translation of errors into messages and exit statuses.

The one-line descriptions are here, so that ``--help`` imports no command.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import click

from fastroute import __version__
from fastroute.errors import Error

from .text import visible
from .verbosity import show_log, verbose_option

COMMANDS: Mapping[str, str] = {
    "chat": "Ask one question, or have a conversation.",
    "explain": "Show how a prompt would be routed, without sending it.",
    "init": "Write a configuration file for the keys in the environment.",
    "check": "List every problem of a configuration, and where each key goes.",
    "models": "List the models, their prices and their endpoints.",
    "probe": "Measure the speed and reliability of each endpoint.",
    "report": "Show what was spent, from the ledger.",
    "calibrate": "Make a learned router from your own outcomes, or refuse to.",
    "serve": "Serve an OpenAI-compatible API over HTTP.",
    "keys": "Create, list, change and revoke keys of the gateway's callers.",
    "demo": "Watch fastroute route calls to local providers that fail.",
    "bench": "Measure fastroute on this machine.",
}

INTERRUPTED = 130  # 128 + SIGINT, as in shells

_Command = TypeVar("_Command", bound=Callable[..., Any])


class CommandError(click.ClickException):
    """A fastroute error, shown as a message of the command line."""

    def __init__(self, error: Error) -> None:
        super().__init__(str(error))

    def format_message(self) -> str:
        return visible(self.message)


class Commands(click.Group):
    """The commands by name, each imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f".{cmd_name}", __package__).command
        inner = command.commands.values() if isinstance(command, click.Group) else ()
        for each in (command, *inner):
            if not any("-v" in param.opts for param in each.params):
                each.params.append(verbose_option())
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(COMMANDS)}"
            raise click.UsageError(f"unknown command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        show_log(ctx)
        try:
            return super().invoke(ctx)
        except Error as error:
            raise CommandError(error) from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    params=[verbose_option()],
    epilog='\b\nExamples:\n  fastroute init\n  fastroute check\n  fastroute chat "Say hello"',
)
@click.version_option(__version__, "-V", "--version", prog_name="fastroute")
def cli() -> None:
    """Routes LLM calls to the right model at the right endpoint, and keeps routing when providers fail."""


# ------------------------------------------------------------------------------------------ shared options


def config_option(command: _Command) -> _Command:
    """``--config``: the configuration to use instead of the default one."""
    return click.option(
        "-c",
        "--config",
        type=click.Path(exists=True, dir_okay=False),
        help="Configuration file. [default: FASTROUTE_CONFIG, else ./fastroute.toml, else the provider keys "
        "in the environment]",
    )(command)


def json_option(command: _Command) -> _Command:
    """``--json``: one object on standard output instead of text."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)


def read_tags(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, str]:
    """The values of ``--tag NAME=VALUE`` as a mapping."""
    tags = {}
    for text in value:
        name, equals, content = text.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{text!r} is not a tag; write NAME=VALUE", ctx, param)
        tags[name] = content
    return tags


def refuse(message: str) -> NoReturn:
    """Ends the command with a message and status 1."""
    raise click.ClickException(message)


__all__ = ["COMMANDS", "INTERRUPTED", "cli", "config_option", "json_option", "read_tags", "refuse", "visible"]
