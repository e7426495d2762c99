"""The figures in the pages are those of the recorded run of the benchmarks."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
MARKED = re.compile(r"<!--run:([\w ]+)-->(.*?)<!--/run-->", re.DOTALL)
# A number and what it counts, as the tables and the text around them print it.
MEASURED = re.compile(r"\d(?:[\d.,]*\d)?(?: (?:ns|µs|ms|s|MiB|%|seconds|times)\b|%)")


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`benchmarks.pages`, which is not part of the package."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import pages

    yield pages
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]


def test_the_pages_show_the_recorded_run(pages: ModuleType) -> None:
    run = pages.recorded()
    for name in pages.PAGES:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert pages.rewritten(text, run) == text, f"{name}: run python -m benchmarks.pages"


def test_every_figure_is_in_a_page_and_every_mark_is_filled(pages: ModuleType) -> None:
    found = set()
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        names = [name for name, _ in MARKED.findall(text)]
        assert text.count("<!--run:") == text.count("<!--/run-->") == len(names), page.name
        assert not names or page.relative_to(ROOT).as_posix() in pages.PAGES
        found |= set(names)
        # Markdown treats a line that begins with a comment as HTML.
        assert not re.search(r"^\s*<!--/?run\b[^\n]*-->[^\n]", text, re.MULTILINE), page.name
    assert found == set(pages.FIGURES)


def test_every_figure_in_a_page_follows_the_run(pages: ModuleType) -> None:
    run = pages.recorded()
    slower = replace(
        run,
        processors="1 × Z80",
        tables=tuple(
            replace(
                table,
                rows=tuple(
                    replace(
                        row,
                        figures=tuple(1000 * figure for figure in row.figures),
                        ratio=1000 * (row.ratio or 0.0),
                        added=1000 * (row.added or 0.0),
                    )
                    for row in table.rows
                ),
            )
            for table in run.tables
        ),
    )
    for name, figure in pages.FIGURES.items():
        if name.endswith("claim"):
            with pytest.raises(ValueError, match="change the page"):
                figure(slower)
        elif name != "aimed floor":
            assert figure(slower) != figure(run), name


def test_every_table_of_the_run_is_in_the_page(pages: ModuleType) -> None:
    text = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    for table in pages.recorded().tables:
        assert f"\n{table.markdown()}\n" in text


def test_no_figure_is_written_by_hand() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme[readme.index("## Figures") : readme.index("## What is promised")]
    for text in (section, (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")):
        by_hand = MEASURED.findall(MARKED.sub("", text))
        assert by_hand == [], by_hand


def test_the_run_says_where_it_comes_from(pages: ModuleType) -> None:
    run = pages.recorded()
    assert re.fullmatch(r"[0-9a-f]{40}", run.commit)
    assert "not installed" not in run.packages.values()
    assert not [row for table in run.tables for row in table.rows if row.skipped]
    text = pages.RECORDED.read_text(encoding="utf-8")
    assert run.dump() == text
    assert not re.search(r'"/|[/\\](home|tmp|work|root|usr)\b', text)
