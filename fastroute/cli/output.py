"""How results are written: tables for a terminal, aligned text for everything else, JSON for programs.

Owns the choice between these and how figures are spelled for people. What is in a table is each command's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import click
import orjson
from attrs import frozen

from .group import visible


@frozen
class Column:
    """One column of a table.

    Attributes:
        right: numbers are set flush right.
        give: gives way first where the terminal is too narrow: its text is cut there, never wrapped.
    """

    title: str
    right: bool = False
    give: bool = False


def print_json(value: Any) -> None:
    """One object, indented, in UTF-8; what JSON cannot hold becomes null."""
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode())


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output: coloured and cut to its width on a terminal, whole and plain otherwise."""
    rows = [[visible(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(columns, rows)
    else:
        click.echo(plain_table(columns, rows))


def plain_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """Aligned text, two spaces between columns."""
    lines = [[column.title for column in columns], *rows]
    widths = [max(map(len, cells)) for cells in zip(*lines)]

    def line(cells: Sequence[str]) -> str:
        placed = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(cells, widths, columns)
        ]
        return "  ".join(placed).rstrip()

    return "\n".join(map(line, lines))


def _rich_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        # Only columns that may give have no least width, so rich takes from them alone.
        widest = max([len(column.title), *(len(row[len(table.columns)]) for row in rows)])
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=None if column.give else widest,
        )
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    Console(highlight=False).print(table)


_STYLES = {"closed": "green", "half-open": "yellow", "open": "red"}


def dim(text: str) -> None:
    """One dim line on standard error; only the text where that is no terminal."""
    click.secho(visible(text), err=True, dim=True)


def dollars(usd: float | None) -> str:
    """US dollars with as many digits as a small amount needs."""
    if usd is None:
        return "cost unknown"
    if usd == 0:
        return "$0"
    return f"${usd:,.2f}" if usd >= 10 else f"${usd:.4f}" if usd >= 0.01 else f"${usd:.6f}"


def seconds(value: float) -> str:
    """A duration: milliseconds below one second."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"


def micros(value: float) -> str:
    """A short duration, given in seconds, in the unit that suits it."""
    for unit, scale in (("ns", 1e9), ("µs", 1e6), ("ms", 1e3)):
        if value * scale < 1000:
            return f"{value * scale:.3g} {unit}"
    return f"{value:.3g} s"


def optional(value: Any, spell: Callable[[Any], str] = str) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else spell(value)


__all__ = [
    "Column",
    "dim",
    "dollars",
    "micros",
    "optional",
    "plain_table",
    "print_json",
    "print_table",
    "seconds",
]
