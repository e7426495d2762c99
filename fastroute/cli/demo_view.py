"""The live display of the demo on a terminal.

It fits 80 columns and 24 lines, and uses more lines for the latest events.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fastroute.figures import dollars, duration

from .demo_run import CLASSES, KILLED, PARTS, PREMIUM, TIERS, Demo

FRAME = 0.125  # seconds between two frames
_FIXED_LINES = 18  # all lines but the latest events
MARKS = {"closed": ("●", "green"), "half-open": ("◐", "yellow"), "open": ("✖", "red")}


def watch(demo: Demo) -> None:
    """Runs the demo and shows it until its calls have ended; the display is removed then."""
    console = Console(highlight=False)
    demo.start()
    with Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop") as live:
        while True:
            ended = demo.wait(FRAME)
            live.update(picture(demo, console.width, console.height), refresh=True)
            if ended:
                return


def picture(demo: Demo, width: int, height: int) -> RenderableType:
    """One frame."""
    return Group(
        _progress(demo, width),
        _figures(demo),
        _money(demo),
        Text(),
        _traffic(demo, width),
        Text(),
        _endpoints(demo),
        Text("calls/failed, latency; breaker ● closed ◐ half-open ✖ open", style="dim", no_wrap=True),
        Text(),
        _events(demo, max(1, min(8, height - _FIXED_LINES - 1)), width),
    )


def _progress(demo: Demo, width: int) -> Text:
    board = demo.board
    done, total, elapsed = board.done, demo.total, demo.elapsed()
    room = max(10, width - 40)
    filled = room * done // total
    line = Text(no_wrap=True, overflow="crop")
    line.append("fastroute demo ", style="bold")
    line.append("━" * filled, style="green")
    line.append("━" * (room - filled), style="bright_black")
    line.append(f" {done}/{total}  {duration(elapsed)}")
    return line


def _figures(demo: Demo) -> Text:
    board = demo.board
    p50, p95, p99 = board.percentiles()
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"answered {board.ok}", style="green")
    line.append("   ")
    line.append(f"lost {board.failed}", style="bold red" if board.failed else "")
    line.append(f"   fail-overs {board.failovers}   ")
    line.append(f"p50 {duration(p50)}  p95 {duration(p95)}  p99 {duration(p99)}", style="bold")
    return line


def _money(demo: Demo) -> Text:
    board = demo.board
    spent, alone = board.cost_nano, board.premium_nano
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append("cost ")
    line.append(dollars(spent), style="bold")
    line.append(f"   all by {PREMIUM} {dollars(alone)}")
    if alone:
        line.append(f"   {100 * (alone - spent) / alone:.0f} % saved", style="green")
    return line


def _traffic(demo: Demo, width: int) -> Table:
    """Calls by class and by model, side by side."""
    board = demo.board
    room = max(4, (width - 52) // 2)
    most = max([1, *board.by_class.values(), *board.by_model.values()])
    table = Table(box=None, pad_edge=False, show_header=True, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("class", width=9)
    table.add_column("calls", justify="right", width=5)
    table.add_column("", width=room)
    table.add_column("model", width=18)
    table.add_column("calls", justify="right", width=5)
    table.add_column("", width=room)
    models = list(TIERS.values())
    for place, level in enumerate(CLASSES):
        model = models[place] if place < len(models) else ""
        table.add_row(
            level,
            str(board.by_class[level]),
            _bar(board.by_class[level], most, room, "cyan"),
            model,
            str(board.by_model[model]) if model else "",
            _bar(board.by_model[model], most, room, "magenta"),
        )
    return table


def _bar(count: int, most: int, room: int, style: str) -> Text:
    return Text("▇" * round(room * count / most), style=style, no_wrap=True, overflow="crop")


def _endpoints(demo: Demo) -> Table:
    """A row for each provider and a column for each model: calls, failures, latency and breaker."""
    figures = demo.client.stats()["endpoints"]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("provider", no_wrap=True, width=9)
    for model in TIERS.values():
        table.add_column(model, no_wrap=True, overflow="crop", width=max(16, len(model)))
    for part in PARTS:
        style = "red" if part.name == KILLED and demo.down else ""
        served = [TIERS[tier] for tier in part.tiers]
        table.add_row(
            Text(part.name, style=style),
            *(_endpoint(demo, figures, part.name, model, model in served) for model in TIERS.values()),
        )
    return table


def _endpoint(
    demo: Demo, figures: Mapping[str, Mapping[str, Any]], provider: str, model: str, served: bool
) -> Text:
    if not served:
        return Text("·", style="bright_black")
    name = f"{provider}/{model}"
    own = figures[name]
    mark, style = MARKS[own["state"]]
    failed = demo.board.failures_of[name]
    cell = Text(no_wrap=True)
    cell.append(mark, style=style)
    cell.append(f" {demo.board.by_endpoint[name]}/")
    cell.append(str(failed), style="red" if failed else "")
    latency = own["p50_s"]
    if latency:
        cell.append(f" {duration(latency)}")
    return cell


def _events(demo: Demo, count: int, width: int) -> Text:
    lines = list(demo.board.happenings)[-count:]
    lines += [""] * (count - len(lines))
    return Text("\n".join(line[: width - 1] for line in lines), style="yellow", no_wrap=True, overflow="crop")


__all__ = ["FRAME", "picture", "watch"]
