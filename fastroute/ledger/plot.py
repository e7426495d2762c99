"""A ledger's days as an HTML page with SVG charts: cost, savings, latency, calls and failures over time.

The page is one file without scripts or external resources. It has a light and a dark scheme and fits wide
screens and phones.

The SVG contains only shapes, because it is stretched to the available width. Text is HTML next to it, so
that it keeps its size. The figures of a day show on hover, and a table at the end has all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, timezone
from html import escape
from itertools import accumulate

from attrs import frozen

from fastroute.figures import decimal_dollars, dollars, duration

from .days import Breakdown, Day, Days, days, spelt

_MOST_COLOURS = 7  # that can be told apart; the rest share the last one
_ROUTED = "as routed"
_MOST_DATES = 5
_MOST_WITHOUT_YEAR = 300
_MOST_APART = 92  # days with gaps between their bars; with more days the page would be mostly gaps
_SLOT = 10.0  # width of one day in the SVG's units
_HEIGHT = 100.0


def to_html(found: Days, *, title: str = "Spending", made: datetime | None = None) -> str:
    """Renders the page.

    Args:
        found: the result of `days`.
        title: the heading.
        made: the time of creation, shown at the end; default: none.
    """
    body = [f"<h1>{_text(title)}</h1>"]
    if found.days:
        first, last = found.days[0].day, found.days[-1].day
        span = f"{first}" if first == last else f"{first} to {last}"
        body += [f'<p class="quiet">{span}, days in UTC</p>', _tiles(found), *_charts(found), _table(found)]
    else:
        body.append("<p>The ledger has no entries in this time range.</p>")
    if made is not None:
        body.append(f'<p class="quiet">Created {made.astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC.</p>')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        # The page may load nothing and run no script.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


# -------------------------------------------------------------------------------------------------- charts


@frozen
class _Scale:
    """A vertical axis from 0 to ``top`` with a line at every ``step``."""

    top: float
    step: float

    def y(self, value: float) -> float:
        return _HEIGHT * (1 - value / self.top)

    @property
    def ticks(self) -> list[float]:
        return [self.step * count for count in range(round(self.top / self.step) + 1)]


def scale_of(values: Iterable[float | None], *, least: float = 0.0) -> _Scale:
    """An axis for the values with up to five steps of 1, 2 or 5 times a power of ten, at least ``least``."""
    most = max((value for value in values if value is not None), default=0.0) or least or 1.0
    step = 10.0 ** math.floor(math.log10(most))
    for factor in (0.2, 0.5, 1.0):
        if most <= 5 * factor * step:
            step *= factor
            break
    else:
        step *= 2
    step = max(step, least)
    return _Scale(step * max(1, math.ceil(most / step - 1e-9)), step)


def _charts(found: Days) -> list[str]:
    days = found.days
    daily = [sum(day.costs.values()) for day in days]
    running = list(accumulate(daily))
    p50 = [day.totals.latency_p50 for day in days]
    p95 = [day.totals.latency_p95 for day in days]
    calls = [float(day.totals.calls) for day in days]
    failed = [day.totals.failures / day.totals.attempts if day.totals.attempts else None for day in days]

    money, total, latency = scale_of(daily, least=1), scale_of(running, least=1), scale_of([*p50, *p95])
    count, share = scale_of(calls, least=1), scale_of(failed, least=0.01)
    return [
        _stacked(
            "Cost per day", found, Breakdown("model", found.models, tuple(day.costs for day in days)), money
        ),
        *(
            _stacked(f"Cost per day by {spelt(each.key)[0]}", found, each, money)
            for each in found.breakdowns
            if any(not name.startswith("(no ") for name in each.names)
        ),
        _chart(
            "Cumulative cost",
            days,
            total,
            _dollars,
            _line(running, total, 0, filled=True),
            [[f"{dollars(cost)} by the end of the day"] for cost in running],
        ),
        *([_against(found)] if found.comparisons else []),
        _chart(
            "Latency",
            days,
            latency,
            duration,
            _line(p50, latency, 0) + _line(p95, latency, 1),
            [
                [
                    "no successful attempts"
                    if low is None or high is None
                    else f"p50 {duration(low)}, p95 {duration(high)}"
                ]
                for low, high in zip(p50, p95)
            ],
            ("p50", "p95"),
        ),
        _chart(
            "Calls per day",
            days,
            count,
            _count,
            _bars([calls], count),
            [[f"{day.totals.calls:,} calls, {day.totals.attempts:,} attempts"] for day in days],
        ),
        _chart(
            "Attempts that failed or were cancelled",
            days,
            share,
            _percent,
            _line(failed, share, 5),
            [
                [
                    "no attempts"
                    if rate is None
                    else f"{day.totals.failures:,} of {day.totals.attempts:,}: {_percent(rate)}"
                ]
                for day, rate in zip(days, failed)
            ],
        ),
    ]


def _stacked(title: str, found: Days, parts: Breakdown, scale: _Scale) -> str:
    """Each day's cost as one bar with a colour for each part."""
    shown, rest = parts.names, f"other {spelt(parts.key)[1]}"
    if len(shown) > _MOST_COLOURS:
        shown = (*shown[: _MOST_COLOURS - 1], rest)
    costs = [_merged(cost, shown, rest) for cost in parts.costs]
    return _chart(
        title,
        found.days,
        scale,
        _dollars,
        _bars([[cost.get(name, 0) for cost in costs] for name in shown], scale),
        [
            [
                dollars(sum(cost.values())),
                *(f"{name}: {dollars(cost[name])}" for name in shown if name in cost),
            ]
            for cost in costs
        ],
        shown,
    )


def _against(found: Days) -> str:
    """The cumulative cost, and what one model alone would have cost for the same tokens."""
    shown = found.comparisons[: _MOST_COLOURS - 1]
    names = (_ROUTED, *(f"{each.model} alone" for each in shown))
    lines = [list(accumulate(shown[0].actual_nano)), *(list(accumulate(each.alone_nano)) for each in shown)]
    scale = scale_of([value for line in lines for value in line], least=1)
    labels = []
    for values in zip(*lines):
        paid, *others = values
        labels.append([f"{_ROUTED}: {dollars(paid)}"])
        for each, alone in zip(shown, others):
            saved = f"saved {dollars(alone - paid)}" if alone >= paid else f"{dollars(paid - alone)} less"
            labels[-1].append(f"{each.model} alone: {dollars(alone)}, {saved}")
    return _chart(
        "Cumulative cost, and with one model alone",
        found.days,
        scale,
        _dollars,
        "".join(_line(line, scale, colour) for colour, line in enumerate(lines)),
        labels,
        names,
    )


def _merged(costs: Mapping[str, int], shown: Sequence[str], rest: str) -> dict[str, int]:
    merged: dict[str, int] = {}
    for value, cost in costs.items():
        name = value if value in shown else rest
        merged[name] = merged.get(name, 0) + cost
    return merged


def _chart(
    title: str,
    days: Sequence[Day],
    scale: _Scale,
    spell: Callable[[float], str],
    shapes: str,
    labels: Sequence[Sequence[str]],
    names: Sequence[str] = (),
) -> str:
    """One figure: heading, legend, axes, shapes, and a strip for each day with its figures on hover."""
    width = _SLOT * len(days)
    grid = "".join(f"M0 {_n(scale.y(tick))}h{_n(width)}" for tick in scale.ticks)
    strips = "".join(
        f'<rect x="{_n(place * _SLOT)}" width="{_n(_SLOT)}" height="{_n(_HEIGHT)}">'
        f"<title>{_text(chr(10).join([_day(day.day, year=True), *lines]))}</title></rect>"
        for place, (day, lines) in enumerate(zip(days, labels))
    )
    upright = "".join(
        f'<span style="top:{_n(scale.y(tick))}%">{_text(spell(tick))}</span>' for tick in scale.ticks
    )
    legend = "".join(f'<li><i class="c{place}"></i>{_text(name)}</li>' for place, name in enumerate(names))
    return (
        f"<figure><figcaption>{_text(title)}</figcaption>"
        + (f"<ul>{legend}</ul>" if legend else "")
        + f'<div class="plot"><div class="y">{upright}</div>'
        f'<svg viewBox="0 0 {_n(width)} {_n(_HEIGHT)}" preserveAspectRatio="none" role="img" '
        f'aria-label="{_text(title)}; the figures are in the table below">'
        f'<path class="grid" d="{grid}"/>{shapes}<g class="strips">{strips}</g></svg>'
        f'<div class="x">{_across(days)}</div></div></figure>'
    )


def _across(days: Sequence[Day]) -> str:
    """At most five dates below a chart: more would overlap on a phone."""
    count = len(days)
    every = max(1, -(-count // _MOST_DATES))
    spell = _month if count > _MOST_WITHOUT_YEAR else _day
    return "".join(
        f'<span style="left:{_n(100 * (place + 0.5) / count)}%">{spell(days[place].day)}</span>'
        for place in range((every - 1) // 2 if count > _MOST_DATES else 0, count, every)
    )


def _bars(stacks: Sequence[Sequence[float]], scale: _Scale) -> str:
    """One vertical bar for each day, with a part for each stack; the first stack is the lowest."""
    count = len(stacks[0]) if stacks else 0
    gap = _SLOT * (0.12 if count <= _MOST_APART else 0.0)
    below = [0.0] * count
    drawn = []
    for colour, heights in enumerate(stacks):
        path = []
        for place, height in enumerate(heights):
            if height > 0:
                low, high = scale.y(below[place]), scale.y(below[place] + height)
                path.append(
                    f"M{_n(place * _SLOT + gap)} {_n(low)}V{_n(high)}h{_n(_SLOT - 2 * gap)}V{_n(low)}z"
                )
                below[place] += height
        drawn.append(f'<path class="bar f{colour}" d="{"".join(path)}"/>')
    return "".join(drawn)


def _line(values: Sequence[float | None], scale: _Scale, colour: int, *, filled: bool = False) -> str:
    """A line through the middles of the days, with gaps where there is no value."""
    path, last = [], False
    for place, value in enumerate(values):
        if value is not None:
            # A single day is a line of length 0, which its round ends make a dot.
            path.append(
                f"{'L' if last else 'M'}{_n((place + 0.5) * _SLOT)} {_n(scale.y(value))}"
                + ("" if last else "h0")
            )
        last = value is not None
    line = "".join(path)
    alone = " alone" if len(values) == 1 else ""
    area = ""
    if filled and len(values) > 1:
        left, right = _n(_SLOT / 2), _n((len(values) - 0.5) * _SLOT)
        area = f'<path class="area f{colour}" d="{line}L{right} {_n(_HEIGHT)}L{left} {_n(_HEIGHT)}z"/>'
    return f'{area}<path class="line{alone} s{colour}" d="{line}"/>'


# ----------------------------------------------------------------------------------------- figures and text


def _tiles(found: Days) -> str:
    sums = found.totals
    tiles = [
        ("spent", dollars(sums.cost_nano), f"{len(found.models):,} models"),
        ("calls", f"{sums.calls:,}", f"{sums.prompt_tokens + sums.completion_tokens:,} tokens"),
        (
            "failed or cancelled",
            _percent(sums.failures / sums.attempts if sums.attempts else 0.0),
            f"{sums.failures:,} of {sums.attempts:,}",
        ),
    ]
    for each in found.comparisons[:2]:
        paid, alone = sum(each.actual_nano), sum(each.alone_nano)
        word, amount = ("saved", alone - paid) if alone >= paid else ("paid more", paid - alone)
        share = f"{_percent(amount / alone)} {'less' if alone >= paid else 'more'} than " if alone else ""
        tiles.append((word, dollars(amount), f"{share}{_text(each.model)} alone ({dollars(alone)})"))
    if sums.latency_p50 is not None and sums.latency_p95 is not None:
        tiles.append(
            (
                "median latency",
                duration(sums.latency_p50),
                f"95 % within {duration(sums.latency_p95)}",
            )
        )
    drawn = "".join(
        f"<div><dt>{name}</dt><dd>{value}</dd><dd>{more}</dd></div>" for name, value, more in tiles
    )
    note = ""
    if sums.unknown_cost:
        note = f"<p>Attempts with an unknown price, not in the cost: {sums.unknown_cost:,}.</p>"
    return f"<dl>{drawn}</dl>{note}"


def _table(found: Days) -> str:
    heads = ["day", "cost USD", "calls", "attempts", "failed", "p50", "p95"]
    heads += [f"{_text(each.model)} alone USD" for each in found.comparisons]
    rows = "".join(
        f"<tr><th scope=row>{day.day}</th>"
        + "".join(
            f"<td>{cell}</td>"
            for cell in (
                decimal_dollars(day.totals.cost_nano),
                f"{day.totals.calls:,}",
                f"{day.totals.attempts:,}",
                f"{day.totals.failures:,}",
                *(
                    "-" if latency is None else duration(latency)
                    for latency in (day.totals.latency_p50, day.totals.latency_p95)
                ),
                *(decimal_dollars(each.alone_nano[place]) for each in found.comparisons),
            )
        )
        + "</tr>"
        for place, day in enumerate(found.days)
    )
    head = "".join(f"<th scope=col>{name}</th>" for name in heads)
    return (
        "<details><summary>All figures</summary>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def _text(text: str) -> str:
    return escape(
        "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)
    )


def _n(number: float) -> str:
    """A coordinate with at most two decimals."""
    return f"{number:.2f}".rstrip("0").rstrip(".")


def _day(day: date, *, year: bool = False) -> str:
    return f"{day.day} {_MONTHS[day.month - 1]}" + (f" {day.year}" if year else "")


def _month(day: date) -> str:
    return f"{_MONTHS[day.month - 1]} {day.year}"


def _dollars(nano: float) -> str:
    """The label of a value in nano-dollars."""
    return dollars(round(nano))


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# Distinct for the common kinds of colour blindness, on a light and on a dark background.
_LIGHT = ("#2a78d6", "#1baf7a", "#eda100", "#4a3aa7", "#e87ba4", "#e34948", "#8b8a84")
_DARK = ("#3987e5", "#199e70", "#c98500", "#9085e9", "#d55181", "#e66767", "#8b8a84")


def _colours(colours: Sequence[str]) -> str:
    return "".join(f"--c{place}: {colour}; " for place, colour in enumerate(colours))


_STYLE = (
    f":root {{ {_colours(_LIGHT)} }}\n"
    f"@media (prefers-color-scheme: dark) {{ :root {{ {_colours(_DARK)} }} }}\n"
    + "\n".join(
        f".c{n} {{ background: var(--c{n}) }} .f{n} {{ fill: var(--c{n}) }} .s{n} {{ stroke: var(--c{n}) }}"
        for n in range(len(_LIGHT))
    )
    + """
:root { color-scheme: light dark;
  --page: #f6f6f4; --card: #fff; --ink: #1c1c1a; --quiet: #63625d; --grid: #e4e3df }
@media (prefers-color-scheme: dark) { :root {
  --page: #121211; --card: #1d1d1b; --ink: #f1f0ec; --quiet: #a3a29b; --grid: #343430 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
main { max-width: 66rem; margin: auto; padding: 1.25rem 1rem 3rem; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)) }
main > * { grid-column: 1 / -1; margin: 0 }
main > figure { grid-column: auto; display: flex; flex-direction: column }
main > figure:first-of-type { grid-column: 1 / -1 }
h1 { font-size: 1.5rem; line-height: 1.2 }
.quiet { color: var(--quiet) }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 1rem }
dl > div, figure, details { background: var(--card); border: 1px solid var(--grid);
  border-radius: 10px; padding: .9rem 1rem }
dt, dd + dd { color: var(--quiet); font-size: .85rem }
dd { margin: 0; font-size: 1.55rem; font-weight: 600; line-height: 1.3 }
dd + dd { font-weight: 400 }
figcaption { font-weight: 600 }
ul { list-style: none; margin: .3rem 0 0; padding: 0; display: flex; flex-wrap: wrap;
  gap: .1rem .9rem; font-size: .85rem; color: var(--quiet) }
li { overflow-wrap: anywhere }
li i { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .4em }
.plot { display: grid; grid-template: 11rem 1.4rem / 3.9rem 1fr; margin-top: auto; padding: 1rem .8rem 0 0;
  font-size: .75rem; color: var(--quiet); font-variant-numeric: tabular-nums }
.y, .x { position: relative }
.x { grid-column: 2 }
.y span { position: absolute; right: .5rem; transform: translateY(-50%); white-space: nowrap }
.x span { position: absolute; top: .35rem; transform: translateX(-50%); white-space: nowrap }
svg { width: 100%; height: 100%; display: block; overflow: visible }
path { vector-effect: non-scaling-stroke }
.grid { stroke: var(--grid); stroke-width: 1; fill: none }
.line { fill: none; stroke-width: 2; stroke-linecap: round; stroke-linejoin: round }
.line.alone { stroke-width: 6 }
.area { opacity: .14 }
.strips rect { fill: transparent }
.strips rect:hover { fill: var(--ink); fill-opacity: .07 }
summary { cursor: pointer; font-weight: 600 }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; margin-top: .6rem; font-size: .85rem;
  font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--grid) }
th { font-weight: 400 }
th:first-child { text-align: left; padding-left: 0 }
thead th { color: var(--quiet) }
"""
)

__all__ = ["days", "to_html"]
