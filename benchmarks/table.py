"""Measures every row and prints the table as Markdown: ``python -m benchmarks.table [WORD ...]``.

Words choose the rows whose titles contain one of them. Takes some minutes; progress goes to standard error.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Sequence

from . import calls, gateway, hedging, limits, processes, records, routing, start
from .side_by_side import Comparison, Row, Trial, compare, run_trial

COMPARISONS: tuple[Comparison, ...] = (
    *limits.COMPARISONS,
    *processes.COMPARISONS,
    *routing.COMPARISONS,
    *calls.COMPARISONS,
    *records.COMPARISONS,
    *gateway.COMPARISONS,
)
TRIALS: tuple[Trial, ...] = (
    *limits.TRIALS,
    *processes.TRIALS,
    *calls.TRIALS,
    *records.TRIALS,
    *start.TRIALS,
    *hedging.TRIALS,
)

_PACKAGES = (
    *("fastroute", "requests", "urllib3", "orjson", "cachetools"),
    *("ratelimit", "token-bucket", "limits", "pyrate-limiter", "circuitbreaker", "pybreaker"),
    *("google-re2", "hyperscan", "httpx", "openai", "litellm"),
)


def duration(seconds: float) -> str:
    """Seconds for people, three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _table(title: str, note: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    out = [f"### {title}", ""]
    if note:
        out += [f"({note})", ""]
    out.append("| " + " | ".join(head) + " |")
    out.append("|---" + "|---:" * (len(head) - 1) + "|")
    out += ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join(out)


def _name(row: Row) -> str:
    return f"**{row.name}**" if row.ours else row.name


def markdown(comparison: Comparison, rows: Sequence[Row]) -> str:
    """A comparison's rows: median, tenth to ninetieth percentile, ratio to its base."""
    head = ("", "median", "10 to 90 %", *(["added"] if comparison.added else []), "ratio")
    lines = []
    for row in rows:
        if row.skipped:
            lines.append([_name(row), f"left out: {row.skipped}", *[""] * (len(head) - 2)])
            continue
        assert row.low is not None
        assert row.high is not None
        line = [_name(row), duration(row.figures[0]), f"{duration(row.low)} to {duration(row.high)}"]
        if comparison.added:
            line.append(duration(row.added) if row.added else "")
        lines.append([*line, "" if row.ratio is None or row.name == "no-op" else _number(row.ratio)])
    return _table(comparison.title, comparison.note, head, lines)


def trial_markdown(trial: Trial, rows: Sequence[Row]) -> str:
    """A trial's figures, each the median over the rounds."""
    lines = []
    for row in rows:
        if row.skipped:
            lines.append([_name(row), f"left out: {row.skipped}", *[""] * (len(trial.columns) - 1)])
        else:
            lines.append([_name(row), *map(_number, row.figures)])
        if trial.ratio:
            lines[-1].append("" if row.ratio is None or row.name == "no-op" else _number(row.ratio))
    head = ("", *trial.columns, *(["ratio"] if trial.ratio else []))
    return _table(trial.title, trial.note, head, lines)


def machine() -> str:
    """What it was measured on, as a Markdown list."""
    cpu = platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            cpu = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    versions = []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} not installed")
    return "\n".join(
        (
            f"- {time.strftime('%Y-%m-%d')}, {platform.system()} {platform.release()}",
            f"- {os.cpu_count()} × {cpu}; load when it began: {os.getloadavg()[0]:.1f}",
            f"- {platform.python_implementation()} {platform.python_version()}",
            f"- {', '.join(versions)}",
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("word", nargs="*", help="only rows whose title contains one of these")
    parser.add_argument("--rounds", type=int, help="rounds of each comparison and trial (default: its own)")
    arguments = parser.parse_args()
    logging.getLogger("fastroute").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # the peers' own

    def wanted(title: str) -> bool:
        return not arguments.word or any(word.lower() in title.lower() for word in arguments.word)

    print(machine(), flush=True)
    begun = time.monotonic()
    for comparison in COMPARISONS:
        if wanted(comparison.title):
            print(f"{time.monotonic() - begun:4.0f} s  {comparison.title}", file=sys.stderr)
            print(f"\n{markdown(comparison, compare(comparison, arguments.rounds))}", flush=True)
    for trial in TRIALS:
        if wanted(trial.title):
            print(f"{time.monotonic() - begun:4.0f} s  {trial.title}", file=sys.stderr)
            print(f"\n{trial_markdown(trial, run_trial(trial, arguments.rounds))}", flush=True)
    print(f"{time.monotonic() - begun:4.0f} s in all", file=sys.stderr)


if __name__ == "__main__":
    main()
