"""``-v``: how much of the library's log a command shows on standard error."""

from __future__ import annotations

import logging

import click

from .text import visible

log = logging.getLogger("fastroute")

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


class _TerminalHandler(logging.Handler):
    """Prints records as lines on standard error, without control characters."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            click.secho(visible(f"{record.levelname.lower()}: {record.getMessage()}"), err=True, dim=True)
        except Exception:
            self.handleError(record)


def show_log(ctx: click.Context, count: int = 0) -> None:
    """Shows the log until the command ends: warnings, with 1 information too, with 2 everything."""
    root = ctx.find_root()
    before = log.level
    if "log" not in root.meta:
        handler = root.meta["log"] = _TerminalHandler()
        log.addHandler(handler)

        def restore() -> None:
            log.removeHandler(handler)
            log.setLevel(before)

        root.call_on_close(restore)
    if count:
        log.setLevel(_LEVELS[min(count, len(_LEVELS) - 1)])


def is_verbose() -> bool:
    """Whether ``-v`` was given."""
    return log.isEnabledFor(logging.INFO)


def _chosen(ctx: click.Context, param: click.Parameter, count: int) -> None:
    show_log(ctx, count)


def verbose_option() -> click.Option:
    """``-v``, which may stand before or after the command's name."""
    return click.Option(
        ["-v", "--verbose"],
        count=True,
        expose_value=False,
        callback=_chosen,
        help="Show the log on standard error; -vv shows all of it.",
    )


__all__ = ["is_verbose", "show_log", "verbose_option"]
