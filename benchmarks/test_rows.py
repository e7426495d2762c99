"""Every row of the tables, through pytest-benchmark: ``pytest benchmarks``.

With ``--benchmark-disable`` each contender runs once and its answer is checked, without timing.
pytest-benchmark measures one contender after the other; use ``python -m benchmarks.table`` for ratios,
because it interleaves the contenders.

A missing peer is skipped; with ``CI=true`` it fails.
"""

from __future__ import annotations

import os
import timeit
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest

from . import calls, gateway, hedging, instructions, limits, processes, records, routing, start
from .run import Table
from .side_by_side import (
    Comparison,
    Contender,
    MissingError,
    Row,
    Trial,
    WrongAnswerError,
    compare,
    run_trial,
)
from .table import COMPARISONS, TRIALS
from .workers import thread_failures

# Warnings in the modules of peers are ignored; others are still errors.
pytestmark = pytest.mark.filterwarnings(
    "ignore",
    "error:::fastroute",
    "error::pytest.PytestUnraisableExceptionWarning",
    "error::pytest.PytestUnhandledThreadExceptionWarning",
)

ROWS = [
    pytest.param(comparison, contender, id=f"{comparison.title} - {contender.name}")
    for comparison in COMPARISONS
    for contender in comparison.contenders
]
RUNS = [
    pytest.param(trial, name, id=f"{trial.title} - {name}")
    for trial in TRIALS
    if trial not in instructions.TRIALS  # valgrind takes a minute
    for name in trial.runs
]
SHORT = 0.1  # seconds of a trial without timing


# Too large to install for each change; recording a run checks its answers.
NOT_IN_CI = "litellm proxy"


@contextmanager
def present(name: str) -> Iterator[None]:
    """Skips a row if its peer is missing, or fails if every peer must be installed."""
    try:
        yield
    except MissingError as error:
        if os.environ.get("CI") == "true" and name != NOT_IN_CI:
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize(("comparison", "contender"), ROWS)
def test_row(benchmark: Any, comparison: Comparison, contender: Contender) -> None:
    benchmark.group = comparison.title
    with present(contender.name), thread_failures(), ExitStack() as stack:
        operation = contender.make(stack)
        operation.verify()
        with pytest.raises((WrongAnswerError, TypeError, AttributeError)):
            replace(operation, statement="object()").verify()
        timer = timeit.Timer(operation.statement, globals=dict(operation.names))
        if benchmark.disabled:
            benchmark.pedantic(timer.timeit, args=(1,))
        else:
            loops = comparison.loops or max(1, timer.autorange()[0] // 100)
            benchmark.extra_info["evaluations a round"] = loops
            benchmark.pedantic(timer.timeit, args=(loops,), rounds=comparison.rounds, warmup_rounds=1)
        operation.verify()


@pytest.mark.parametrize(("trial", "name"), RUNS)
def test_trial(benchmark: Any, trial: Trial, name: str) -> None:
    benchmark.group = trial.title
    seconds = SHORT if benchmark.disabled else trial.seconds
    with present(name), thread_failures():
        figures = benchmark.pedantic(trial.runs[name], args=(seconds,))
    assert len(figures) == len(trial.columns)
    benchmark.extra_info.update(zip(trial.columns, figures))


@pytest.mark.parametrize("name", instructions.STATEMENTS)
def test_what_instructions_are_counted_of(name: str) -> None:
    statement, check = instructions.STATEMENTS[name]
    exec(instructions.program(statement, check, 1), {})
    with pytest.raises((AssertionError, TypeError, AttributeError)):
        exec(instructions.program("object()", check, 1), {})


def test_every_module_is_in_the_table() -> None:
    for module in (limits, processes, routing, calls, records, gateway, hedging, start, instructions):
        for row in (*getattr(module, "COMPARISONS", ()), *getattr(module, "TRIALS", ())):
            assert row in COMPARISONS or row in TRIALS


def test_every_comparison_has_a_row_with_nothing_done_and_its_base() -> None:
    for comparison in COMPARISONS:
        names = [contender.name for contender in comparison.contenders]
        assert "no-op" in names
        assert comparison.base in names
        assert len(set(names)) == len(names)


def test_the_table_shows_figures_ratios_and_what_was_left_out() -> None:
    def absent(_: ExitStack) -> Any:
        raise MissingError("nowhere does not load: ImportError")

    comparison = COMPARISONS[0]
    shown = replace(comparison, contenders=(*comparison.contenders[:3], Contender("nowhere", absent)))
    rows = compare(shown, rounds=1)
    text = Table.of(shown, rows).markdown()
    assert text.count("\n|") == 6
    assert "nowhere does not load" in text
    assert rows[1].ratio == 1.0


def test_a_trial_takes_the_median_of_each_figure() -> None:
    figures = iter([(1.0, 9.0), (3.0, 5.0), (2.0, 7.0)])
    trial = Trial("t", ("a", "b"), {"x": lambda _: next(figures)}, 0.0, base="x", ratio="b")
    assert run_trial(trial) == [Row("x", (2.0, 7.0), 1.0)]
