"""Measures all tables and writes their figures into the pages: ``python -m benchmarks.record``.

The tables are printed, and written to ``benchmarks/results/run.json`` when all are measured.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from importlib.util import find_spec

from . import pages
from .run import RECORDED, Run
from .table import measure


def missing(run: Run) -> list[str]:
    """What is missing to record a run, each with how to provide it."""
    found = [
        f"{name} is not installed: pip install -e '.[bench]'"
        for name, version in run.packages.items()
        if version == "not installed"
    ]
    if find_spec("fastapi") is None:
        found.append("litellm's proxy is not installed: pip install 'litellm[proxy]'")
    if shutil.which("valgrind") is None:
        found.append("valgrind is not installed: apt-get install valgrind")
    if not run.commit:
        found.append("the source tree differs from its commit: commit or stash the changes")
    return found


def main() -> None:
    run = Run.here()
    if problems := missing(run):
        raise SystemExit("benchmarks.record: " + "\n".join(problems))
    print(run.heading(), flush=True)
    tables = []
    for table in measure():
        print(f"\n{table.markdown()}", flush=True)
        for row in table.rows:
            if row.skipped:
                raise SystemExit(f"benchmarks.record: {table.title} - {row.name}: {row.skipped}")
        tables.append(table)
    run = replace(run, tables=tuple(tables))
    RECORDED.parent.mkdir(exist_ok=True)
    RECORDED.write_text(run.dump(), encoding="utf-8")
    pages.rewrite(run)


if __name__ == "__main__":
    main()
