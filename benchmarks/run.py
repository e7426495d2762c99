"""The results of one run of the benchmarks and its machine, stored as JSON and shown as Markdown."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .side_by_side import Comparison, Row, Trial

RECORDED = Path(__file__).parent / "results" / "run.json"

_PACKAGES = (
    *("fastroute", "requests", "urllib3", "orjson", "cachetools"),
    *("ratelimit", "token-bucket", "limits", "pyrate-limiter", "circuitbreaker", "pybreaker"),
    *("google-re2", "hyperscan", "httpx", "openai", "litellm", "waitress", "gunicorn"),
)


def duration(seconds: float) -> str:
    """A duration as text, with three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def number(value: float) -> str:
    """A number with three digits, or a whole number."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class Table:
    """The rows of a comparison or a trial.

    Attributes:
        columns: names of the rows' figures; empty for a comparison, which has a median in seconds.
        ratio: whether to show ratios.
        added: whether to show the difference to the base.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    ratio: bool
    added: bool
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, measured: Comparison | Trial, rows: Sequence[Row]) -> Table:
        columns: tuple[str, ...]
        if isinstance(measured, Comparison):
            columns, ratio, added = (), True, measured.added
        else:
            columns, ratio, added = measured.columns, measured.ratio is not None, False
        return cls(
            title=measured.title,
            note=measured.note,
            columns=columns,
            ratio=ratio,
            added=added,
            rows=tuple(rows),
        )

    def row(self, name: str) -> Row:
        """The row of a contender."""
        return next(row for row in self.rows if row.name == name)

    def markdown(self) -> str:
        """A heading and the table; a comparison has the median and the tenth to ninetieth percentile."""
        head = ["", *(self.columns or ("median", "10 to 90 %"))]
        head += [name for name, shown in (("added", self.added), ("ratio", self.ratio)) if shown]
        out = [f"### {self.title}", ""]
        if self.note:
            out += [f"({self.note})", ""]
        out += [_line(head), "|---" + "|---:" * (len(head) - 1) + "|"]
        for row in self.rows:
            cells = [f"left out: {row.skipped}"] if row.skipped else self._cells(row)
            name = f"**{row.name}**" if row.ours else row.name
            out.append(_line([name, *cells, *[""] * (len(head) - 1 - len(cells))]))
        return "\n".join(out)

    def _cells(self, row: Row) -> list[str]:
        if self.columns:
            cells = [number(figure) for figure in row.figures]
        else:
            cells = [duration(row.figures[0]), f"{duration(row.low or 0)} to {duration(row.high or 0)}"]
        if self.added:
            cells.append(duration(row.added) if row.added else "")
        if self.ratio:
            cells.append("" if row.ratio is None or row.name == "no-op" else number(row.ratio))
        return cells


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


@dataclass(frozen=True)
class Run:
    """The tables of one run, and the machine and versions.

    Attributes:
        date: ISO 8601.
        commit: the commit of the source tree; empty if unknown, or if the tree differs from it.
        processors: their number and name.
        load: the load average of a minute at the start of the run.
        python: implementation and version.
        optimized: whether Python was built with profile-guided optimization.
        packages: versions of fastroute, its dependencies, and the peers.
    """

    date: str
    commit: str
    system: str
    processors: str
    load: float
    python: str
    optimized: bool
    packages: dict[str, str]
    tables: tuple[Table, ...] = field(default=())

    @classmethod
    def here(cls) -> Run:
        """A run without tables, on this machine and now."""
        versions = {}
        for name in _PACKAGES:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                versions[name] = "not installed"
        return cls(
            date=time.strftime("%Y-%m-%d"),
            commit=_commit(),
            system=platform.system(),
            processors=f"{os.cpu_count()} × {_processor()}",
            load=round(os.getloadavg()[0], 1),
            python=f"{platform.python_implementation()} {platform.python_version()}",
            optimized="--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or ""),
            packages=versions,
        )

    def row(self, title: str, name: str) -> Row:
        """A contender's figures in a table.

        Raises:
            LookupError: the table or the row is unknown.
        """
        for table in self.tables:
            for row in table.rows:
                if (table.title, row.name) == (title, name) and row.figures:
                    return row
        raise LookupError(f"{title} - {name}: not in this run; record one with python -m benchmarks.record")

    def heading(self) -> str:
        """Date, machine and versions as a Markdown list."""
        built = (
            "" if self.optimized else ", built without profile-guided optimization, which slows Python code"
        )
        return "\n".join(
            (
                f"- {self.date}, {self.system}, commit {self.commit[:12] or 'not known'}",
                f"- {self.processors}; load when it began: {self.load}",
                f"- {self.python}{built}",
                f"- {', '.join(f'{name} {version}' for name, version in self.packages.items())}",
            )
        )

    def dump(self) -> str:
        """The run as JSON, with one row per line."""
        head = json.dumps(asdict(replace(self, tables=())), ensure_ascii=False, indent=1)
        tables = []
        for table in self.tables:
            about = json.dumps(asdict(replace(table, rows=())), ensure_ascii=False)
            rows = ",\n   ".join(json.dumps(_sparse(row), ensure_ascii=False) for row in table.rows)
            tables.append(about.replace('"rows": []', f'"rows": [\n   {rows}\n  ]'))
        return head.replace('"tables": []', '"tables": [\n  ' + ",\n  ".join(tables) + "\n ]") + "\n"

    @classmethod
    def load_from(cls, text: str) -> Run:
        """The run that `dump` wrote."""
        found = json.loads(text)
        tables = tuple(
            Table(
                **{
                    **table,
                    "columns": tuple(table["columns"]),
                    "rows": tuple(Row(**{**row, "figures": tuple(row["figures"])}) for row in table["rows"]),
                }
            )
            for table in found["tables"]
        )
        return cls(**{**found, "tables": tables})


def _sparse(row: Row) -> dict[str, Any]:
    """The row's values except empty ones, with six digits."""
    found: dict[str, Any] = {"name": row.name, "figures": [_rounded(figure) for figure in row.figures]}
    for name in ("ratio", "added", "low", "high"):
        value = getattr(row, name)
        if value is not None:
            found[name] = _rounded(value)
    if row.skipped:
        found["skipped"] = row.skipped
    if row.ours:
        found["ours"] = True
    return found


def _rounded(figure: float) -> float:
    return float(f"{figure:.6g}")


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def _commit() -> str:
    """The commit of the source tree; empty if there is none or the tree differs from it."""
    root = Path(__file__).parent.parent
    try:
        # The files that a recording writes are ignored, because they do not affect its results.
        changed = _git(root, "status", "--porcelain", "-uno", "--", ".", ":!*.md", ":!benchmarks/results")
        return "" if changed else _git(root, "rev-parse", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(root: Path, *arguments: str) -> str:
    ended = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    return ended.stdout.strip()
