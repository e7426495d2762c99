"""Draws a forecast: quality against cost, or against the share if costs are unknown.

The curve has its 90 % interval as a band; the straight line between the two models alone is what a coin
gives; the chosen share is marked. `to_text` is for a terminal, `to_html` a page of one file without
scripts.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from attrs import frozen

from fastroute.routing.router_file import ForecastRow, RouterHeader

from .forecast import Forecast

_CURVE, _BAND, _COIN, _CHOSEN, _ALONE = "●", "░", "·", "◆", "○"
_WIDTH, _HEIGHT = 720.0, 400.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 60.0, 20.0, 20.0, 50.0


@frozen
class _Axes:
    """The range of the axes."""

    left: float
    right: float
    bottom: float
    top: float
    priced: bool

    def across(self, x: float) -> float:
        return (x - self.left) / (self.right - self.left)

    def up(self, y: float) -> float:
        return (y - self.bottom) / (self.top - self.bottom)

    def spelt(self, x: float) -> str:
        return f"${x:,.2f}" if self.priced else f"{x:.0%}"

    @property
    def title(self) -> str:
        return "dollars a thousand calls, about" if self.priced else "share of calls to strong"


def _x(row: ForecastRow) -> float:
    return row.cost[0] if row.cost else row.share


def _axes(rows: Sequence[ForecastRow]) -> _Axes:
    xs = [_x(row) for row in rows]
    lows, highs = [row.quality[1] for row in rows], [row.quality[2] for row in rows]
    margin = 0.05 * (max(highs) - min(lows)) or 0.05
    wide = max(xs) - min(xs) or 1.0
    return _Axes(min(xs), min(xs) + wide, min(lows) - margin, max(highs) + margin, bool(rows[0].cost))


def _between(rows: Sequence[ForecastRow], x: float) -> tuple[float, float, float]:
    """Quality and interval at a place of the axis, on straight lines between the rows."""
    for row, after in pairwise(rows):
        start, end = _x(row), _x(after)
        if min(start, end) <= x <= max(start, end):
            part = (x - start) / (end - start) if end != start else 0.0
            low, middle, high = (
                row.quality[k] + part * (after.quality[k] - row.quality[k]) for k in (1, 0, 2)
            )
            return middle, low, high
    quality = rows[-1].quality
    return quality[0], quality[1], quality[2]


def to_text(forecast: Forecast, *, width: int = 64, height: int = 16) -> str:
    """The drawing in characters, with its axes and a line that explains them."""
    rows = forecast.rows
    axes = _axes(rows)
    cells = [[" "] * width for _ in range(height)]

    def level(y: float) -> int:
        return min(height - 1, max(0, round((1 - axes.up(y)) * (height - 1))))

    def column(x: float) -> int:
        return min(width - 1, max(0, round(axes.across(x) * (width - 1))))

    first, last = rows[0], rows[-1]
    for place in range(width):
        x = axes.left + (axes.right - axes.left) * place / (width - 1)
        middle, low, high = _between(rows, x)
        for each in range(level(high), level(low) + 1):
            cells[each][place] = _BAND
        span = _x(last) - _x(first)
        part = (x - _x(first)) / span if span else 0.0
        cells[level(first.quality[0] + part * (last.quality[0] - first.quality[0]))][place] = _COIN
        cells[level(middle)][place] = _CURVE
    for row, mark in ((first, _ALONE), (last, _ALONE), (forecast.chosen, _CHOSEN)):
        cells[level(row.quality[0])][column(_x(row))] = mark
    lines = []
    for place, line in enumerate(cells):
        y = axes.top - (axes.top - axes.bottom) * place / (height - 1)
        label = f"{y:.3f}" if place % 5 == 0 or place == height - 1 else ""
        lines.append(f"{label:>7} ┤{''.join(line).rstrip()}")
    left, right = axes.spelt(axes.left), axes.spelt(axes.right)
    lines.append(" " * 8 + "└" + "─" * width)
    lines.append(" " * 9 + left + right.rjust(width - len(left)))
    lines.append(" " * 9 + axes.title.center(width).rstrip())
    lines.append(
        f"{_CURVE} quality  {_BAND} 90 % interval  {_COIN} a coin  {_CHOSEN} chosen  {_ALONE} one model alone"
    )
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------- page


def to_html(header: RouterHeader) -> str:
    """A page about a router file, of its header alone.

    Raises:
        ValueError: the header has no forecast.
    """
    if not header.forecast:
        raise ValueError("forecast: is missing, because the router was made without labels")
    forecast = Forecast(rows=header.forecast, share=header.share)
    title = f"{header.weak} and {header.strong}"
    verdict = "Accepted" if header.accepted else "Refused"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        # The page may load nothing and run no script.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><main>\n"
        f"<h1>{escape(title)}</h1>\n<p><strong>{verdict}</strong>: {escape(header.reason)}.</p>\n"
        f"{_svg(forecast)}\n{_table(forecast)}\n"
        f'<p class="quiet">{header.labels:,} labels, {header.prompts:,} prompts, {escape(header.date)}. '
        "The intervals "
        "are of 90 %. They do not contain what other traffic than the labels', or errors of a judge, "
        "would change."
        "</p>\n</main></body></html>\n"
    )


def _svg(forecast: Forecast) -> str:
    rows = forecast.rows
    axes = _axes(rows)

    def point(x: float, y: float) -> str:
        return f"{across(x):.1f},{up(y):.1f}"

    def across(x: float) -> float:
        return _LEFT + axes.across(x) * (_WIDTH - _LEFT - _RIGHT)

    def up(y: float) -> float:
        return _TOP + (1 - axes.up(y)) * (_HEIGHT - _TOP - _BOTTOM)

    band = [point(_x(row), row.quality[2]) for row in rows]
    band += [point(_x(row), row.quality[1]) for row in reversed(rows)]
    curve = [point(_x(row), row.quality[0]) for row in rows]
    ends = [rows[0], rows[-1]]
    coin = [point(_x(row), row.quality[0]) for row in ends]
    chosen = forecast.chosen
    parts = [
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" aria-label="Quality against {axes.title}">'
    ]
    for step in range(5):
        y = axes.bottom + (axes.top - axes.bottom) * step / 4
        x = axes.left + (axes.right - axes.left) * step / 4
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{up(y):.1f}" y2="{up(y):.1f}"/>'
            f'<text x="{_LEFT - 8}" y="{up(y) + 4:.1f}" text-anchor="end">{y:.3f}</text>'
            f'<text x="{across(x):.1f}" y="{_HEIGHT - _BOTTOM + 18}" '
            f'text-anchor="middle">{axes.spelt(x)}</text>'
        )
    parts += [
        f'<polygon class="band" points="{" ".join(band)}"/>',
        f'<polyline class="coin" points="{" ".join(coin)}"/>',
        f'<polyline class="curve" points="{" ".join(curve)}"/>',
        *(_dot(point(_x(row), row.quality[0]), "dot", 3, row, axes) for row in rows),
        _dot(point(_x(chosen), chosen.quality[0]), "chosen", 7, chosen, axes),
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{_HEIGHT - 10}" '
        f'text-anchor="middle">{axes.title}</text>',
        f'<text x="14" y="{_HEIGHT / 2:.0f}" text-anchor="middle" transform="rotate(-90 14 '
        f'{_HEIGHT / 2:.0f})">quality'
        "</text></svg>",
        '<p class="quiet">Line: the router. Band: its 90 % interval. Dashes: a coin between the two '
        "models. Large dot: the "
        "chosen share.</p>",
    ]
    return "\n".join(parts)


def _dot(place: str, kind: str, radius: int, row: ForecastRow, axes: _Axes) -> str:
    x, y = place.split(",")
    said = f"{row.share:.0%} to strong: quality {row.quality[0]:.3f}, {axes.spelt(_x(row))}"
    return f'<circle class="{kind}" cx="{x}" cy="{y}" r="{radius}"><title>{escape(said)}</title></circle>'


def _table(forecast: Forecast) -> str:
    head = "".join(f"<th>{title}</th>" for title in TITLES)
    body = "".join(
        f"<tr{' class=mark' if row.share == forecast.share else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells(row))
        + "</tr>"
        for row in forecast.rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


TITLES = (
    "share",
    "quality",
    "90 %",
    "against all-strong",
    "90 %",
    "lift over a coin",
    "90 %",
    "$ / 1,000 calls",
)


def cells(row: ForecastRow) -> list[str]:
    """A row's figures as text, for the columns of `TITLES`."""
    said = [f"{row.share:.0%}"]
    for figure, form in ((row.quality, ".3f"), (row.against_strong, "+.3f"), (row.lift, "+.3f")):
        said += [f"{figure[0]:{form}}", f"{figure[1]:{form}} … {figure[2]:{form}}"]
    cost = f"{row.cost[0]:,.2f} ({row.cost[1]:,.2f} … {row.cost[2]:,.2f})" if row.cost else "unknown"
    return [*said, cost]


_STYLE = (
    ":root{color-scheme:light dark;--line:#2563eb;--band:#2563eb33;--quiet:#6b7280;--grid:#8884}"
    "body{font:16px/1.5 system-ui,sans-serif;margin:0}main{max-width:70rem;margin:2rem auto;padding:0 1rem}"
    "svg{width:100%;height:auto}text{font-size:12px;fill:currentColor}.grid{stroke:var(--grid)}"
    ".band{fill:var(--band)}.curve{fill:none;stroke:var(--line);stroke-width:2.5}"
    ".coin{fill:none;stroke:currentColor;stroke-dasharray:6 5}.dot,.chosen{fill:var(--line)}"
    ".quiet{color:var(--quiet);font-size:.9rem}table{border-collapse:collapse;width:100%;font-size:.9rem}"
    "th,td{padding:.25rem .5rem;text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}"
    "thead th{border-bottom:1px solid var(--grid)}.mark{font-weight:700;background:var(--band)}"
)


__all__ = ["TITLES", "cells", "to_html", "to_text"]
