"""Writes results: tables on a terminal, aligned text elsewhere, JSON for programs."""

from __future__ import annotations

import logging
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from attrs import frozen

from fastroute import json_codec

from .group import visible


@frozen
class Column:
    """One column of a table.

    Attributes:
        right: whether it is right-aligned, for numbers.
        give: whether its text may be cut, or moved to a line of its own, if the terminal is too narrow.
    """

    title: str
    right: bool = False
    give: bool = False


Line = Sequence[str]


def print_json(value: Any) -> None:
    """Prints one object, indented, in UTF-8; NaN and infinities become null."""
    click.echo(json_codec.dumps(value, option=json_codec.OPT_INDENT_2 | json_codec.OPT_NON_STR_KEYS).decode())


def print_table(columns: Sequence[Column], rows: Sequence[Line]) -> None:
    """Prints a table: coloured and fitted to the width of a terminal, otherwise complete and plain."""
    shown = [[visible(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        click.echo(plain_table(columns, shown))
        return
    for place, line in enumerate(fitted(columns, shown, shutil.get_terminal_size().columns)):
        click.echo(click.style(line, bold=True) if place == 0 else _coloured(line))


def plain_table(columns: Sequence[Column], rows: Sequence[Line]) -> str:
    """Aligned text, two spaces between columns."""
    return "\n".join(fitted(columns, rows, sys.maxsize))


def fitted(columns: Sequence[Column], rows: Sequence[Line], width: int) -> list[str]:
    """The lines of a table, not longer than ``width`` if shortening the ``give`` columns is enough.

    These columns are cut to share the space that is left; if that is too little, they go below their row.
    """
    lines = [[column.title for column in columns], *rows]
    widths = [max(map(len, cells)) for cells in zip(*lines)]
    gaps = 2 * (len(columns) - 1)
    giving = [place for place, column in enumerate(columns) if column.give]
    if giving and sum(widths) + gaps > width:
        room = width - gaps - sum(widths[place] for place in range(len(columns)) if place not in giving)
        if room < _LEAST * len(giving):
            return _folded(columns, rows, giving, width)
        while sum(widths[place] for place in giving) > room:
            widths[max(giving, key=lambda place: widths[place])] -= 1

    def line(cells: Line) -> str:
        placed = []
        for cell, size, column in zip(cells, widths, columns):
            text = cut(cell, size)
            placed.append(text.rjust(size) if column.right else text.ljust(size))
        return "  ".join(placed).rstrip()

    return [line(cells) for cells in lines]


_LEAST = 12  # the fewest characters to which a text is cut


def _folded(columns: Sequence[Column], rows: Sequence[Line], giving: Sequence[int], width: int) -> list[str]:
    kept = [place for place in range(len(columns)) if place not in giving]
    head, *lines = fitted(
        [columns[place] for place in kept], [[row[place] for place in kept] for row in rows], width
    )
    folded = [head]
    for line, row in zip(lines, rows):
        folded.append(line)
        more = "; ".join(row[place] for place in giving if row[place])
        if more:
            folded.append("     " + cut(more, max(_LEAST, width - 5)))
    return folded


def cut(text: str, size: int) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= size else text[: size - 1] + "…"


def _coloured(line: str) -> str:
    for word, colour in _COLOURS.items():
        line = re.sub(rf"(?<=  ){word}(?=  |$)", click.style(word, fg=colour), line)
    return line


_COLOURS = {"closed": "green", "half-open": "yellow", "open": "red"}


def dim(text: str) -> None:
    """Prints one dim line on standard error; without colour if that is not a terminal."""
    click.secho(visible(text), err=True, dim=True)


@contextmanager
def no_warnings() -> Iterator[None]:
    """Hides the library's warnings, which are meant for services and would disturb the output."""
    log = logging.getLogger("fastroute")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def optional(value: Any, spell: Callable[[Any], str] = str) -> str:
    """The value as text, or a dash for None."""
    return "-" if value is None else spell(value)


__all__ = [
    "Column",
    "cut",
    "dim",
    "fitted",
    "no_warnings",
    "optional",
    "plain_table",
    "print_json",
    "print_table",
]
