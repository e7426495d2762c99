"""The cost report: a ledger's sums as one frozen value, written as text, JSON or CSV.

Amounts in JSON and CSV are exact: nano-dollars as integers, US dollars with nine decimals.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from attrs import frozen

from fastroute import json_codec
from fastroute.figures import decimal_dollars, dollars, duration

from . import Ledger, Prices, Saving, Totals


@frozen(kw_only=True)
class Report:
    """The sums of a ledger over a time range.

    Attributes:
        keys: the keys of the groups, as in `Ledger.by`.
        totals: sums over all entries.
        groups: sums of each group, highest cost first; by day, oldest first.
        savings: what one model alone would have cost, for each model in question.
        since, until: the range, ISO 8601 in UTC; None where it is open.
        tags: the tags of every entry counted.
    """

    keys: tuple[str, ...]
    totals: Totals
    groups: tuple[Totals, ...]
    savings: tuple[Saving, ...] = ()
    since: str | None = None
    until: str | None = None
    tags: Mapping[str, str] | None = None


def report(
    ledger: Ledger,
    *,
    by: Sequence[str] = ("model",),
    since: float | datetime | None = None,
    until: float | datetime | None = None,
    tags: Mapping[str, str] | None = None,
    against: Iterable[str] = (),
    prices: Prices | None = None,
) -> Report:
    """Makes the report of a ledger.

    Args:
        ledger: open or closed.
        by: the keys of the groups, as in `Ledger.by`.
        since, until, tags: which entries count, as in `Ledger.by`.
        against: models to compare with, as in `Ledger.savings`.
        prices: required with ``against``; its exceptions are passed on.

    Raises:
        ValueError: an unknown key, a datetime without a time zone, or ``against`` without ``prices``.
        Error: the ledger cannot be read.
    """
    models = tuple(against)
    if models and prices is None:
        raise ValueError("prices: required with against=; pass a function from a model to its prices")
    groups = ledger.by(*by, since=since, until=until, tags=tags)
    if "day" not in by:
        groups.sort(key=lambda group: -group.cost_nano)
    return Report(
        keys=tuple(by),
        totals=ledger.totals(since=since, until=until, tags=tags),
        groups=tuple(groups),
        savings=tuple(ledger.savings(prices, models, since=since, until=until, tags=tags))
        if prices is not None
        else (),
        since=_iso(since),
        until=_iso(until),
        tags=dict(tags) if tags else None,
    )


# ---------------------------------------------------------------------------------------------- renderers

_SUMS: tuple[tuple[str, Callable[[Totals], Any]], ...] = (
    ("calls", lambda sums: sums.calls),
    ("attempts", lambda sums: sums.attempts),
    ("failures", lambda sums: sums.failures),
    ("prompt_tokens", lambda sums: sums.prompt_tokens),
    ("completion_tokens", lambda sums: sums.completion_tokens),
    ("cached_tokens", lambda sums: sums.cached_tokens),
    ("reasoning_tokens", lambda sums: sums.reasoning_tokens),
    ("cache_write_tokens", lambda sums: sums.cache_write_tokens),
    ("cost_nano", lambda sums: sums.cost_nano),
    ("cost_usd", lambda sums: decimal_dollars(sums.cost_nano)),
    ("unknown_cost", lambda sums: sums.unknown_cost),
    ("estimated", lambda sums: sums.estimated),
    ("estimated_nano", lambda sums: sums.estimated_nano),
    ("estimated_usd", lambda sums: decimal_dollars(sums.estimated_nano)),
    ("budget_nano", lambda sums: sums.budget_nano),
    ("budget_usd", lambda sums: decimal_dollars(sums.budget_nano)),
    ("latency_mean", lambda sums: sums.latency_mean),
    ("latency_p50", lambda sums: sums.latency_p50),
    ("latency_p95", lambda sums: sums.latency_p95),
    ("score_mean", lambda sums: sums.score_mean),
)


def to_json(report: Report) -> str:
    """The report as a JSON object, with amounts as ``…_nano`` integers and as ``…_usd`` decimal text."""
    value = {
        "since": report.since,
        "until": report.until,
        "tags": report.tags or {},
        "by": report.keys,
        "totals": _sums(report.totals),
        "groups": [{"group": dict(zip(report.keys, group.keys)), **_sums(group)} for group in report.groups],
        "savings": [
            {
                "model": saving.model,
                "entries": saving.entries,
                "unknown_cost": saving.unknown_cost,
                "actual_nano": saving.actual_nano,
                "actual_usd": decimal_dollars(saving.actual_nano),
                "alone_nano": saving.alone_nano,
                "alone_usd": decimal_dollars(saving.alone_nano),
                "saved_nano": saving.saved_nano,
                "saved_usd": decimal_dollars(saving.saved_nano),
            }
            for saving in report.savings
        ],
    }
    return json_codec.dumps(value, option=json_codec.OPT_INDENT_2).decode()


def to_csv(report: Report) -> str:
    """A header and a line for each group, without totals and comparisons.

    Text that a spreadsheet would read as a formula gets a leading apostrophe.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*map(_cell, report.keys), *(name for name, _ in _SUMS)])
    for group in report.groups:
        writer.writerow([*map(_cell, group.keys), *(read(group) for _, read in _SUMS)])
    return out.getvalue()


def to_table(report: Report) -> str:
    """Plain text: the groups, the total and the comparisons."""
    heads: tuple[str, ...] = ("calls", "attempts", "failed", "in", "out", "cached", "cost", "p50", "p95")
    figures = _figures
    if report.totals.score_mean is not None:  # only under the learned classifier
        heads, figures = (*heads, "score"), _scored
    labels = report.keys or ("",)
    rows = [(*labels, *heads)]
    rows += [
        (*(_visible(key) for key in group.keys), *figures(group)) for group in report.groups if report.keys
    ]
    rows.append(("total", *("" for _ in labels[1:]), *figures(report.totals)))
    lines = _aligned(rows, text_columns=len(labels))
    if report.totals.unknown_cost:
        lines += ["", f"{report.totals.unknown_cost} attempt(s) with an unknown price are not in the cost."]
    if report.totals.estimated:
        lines += ["", _estimate(report.totals)]
    for saving in report.savings:
        lines += ["", _sentence(saving)]
    return "\n".join(lines) + "\n"


def _sums(sums: Totals) -> dict[str, Any]:
    return {name: read(sums) for name, read in _SUMS}


def _figures(sums: Totals) -> tuple[str, ...]:
    counts = (
        sums.calls,
        sums.attempts,
        sums.failures,
        sums.prompt_tokens,
        sums.completion_tokens,
        sums.cached_tokens,
    )
    latencies = (sums.latency_p50, sums.latency_p95)
    return (
        *(f"{count:,}" for count in counts),
        dollars(sums.cost_nano),
        *("-" if latency is None else duration(latency) for latency in latencies),
    )


def _scored(sums: Totals) -> tuple[str, ...]:
    return (*_figures(sums), "-" if sums.score_mean is None else f"{sums.score_mean:.3f}")


def _estimate(sums: Totals) -> str:
    text = (
        f"{sums.estimated:,} attempt(s) ended without a usage: {dollars(sums.estimated_nano)} of the cost is "
        "estimated"
    )
    if sums.budget_nano > sums.cost_nano:
        text += f"; budgets keep the worst case of them and count {dollars(sums.budget_nano)} in all"
    return f"{text}."


def _sentence(saving: Saving) -> str:
    amount, word = abs(saving.saved_nano), "saved" if saving.saved_nano >= 0 else "more"
    share = f" ({100 * amount / saving.alone_nano:.1f} %)" if saving.alone_nano else ""
    left_out = f"; {saving.unknown_cost} with an unknown price are not counted" if saving.unknown_cost else ""
    return (
        f"With {_visible(saving.model)} alone, the {saving.entries:,} successful attempts would have cost "
        f"{dollars(saving.alone_nano)}; they cost {dollars(saving.actual_nano)}: "
        f"{dollars(amount)} {word}{share}{left_out}."
    )


def _aligned(rows: Sequence[Sequence[str]], *, text_columns: int) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "  ".join(
            cell.ljust(width) if n < text_columns else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
    rule = "-" * max(map(len, lines))
    return [lines[0], rule, *lines[1:-1], rule, lines[-1]] if len(lines) > 2 else [lines[0], rule, lines[-1]]


def _visible(text: str | None) -> str:
    """Text without control characters, which could change the terminal."""
    if text is None:
        return "-"
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def _cell(text: str | None) -> str:
    if text is None:
        return ""
    return "'" + text if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _iso(when: float | datetime | None) -> str | None:
    if when is None:
        return None
    moment = when if isinstance(when, datetime) else datetime.fromtimestamp(when, timezone.utc)
    return moment.astimezone(timezone.utc).isoformat()


__all__ = ["Report", "report", "to_csv", "to_json", "to_table"]
