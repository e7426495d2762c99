"""Compares ways to do the same thing in interleaved rounds, so that the machine's load affects all alike.

The other modules define each `Comparison` (operations that are short enough to repeat) and `Trial` (runs that
take seconds and have several figures). The tests run each once and check its answer; `benchmarks.table`
measures them and prints the tables.

A contender is a Python expression and its names. The expression is compiled into the timing loop, so that no
Python function around a native call is measured. Each round runs every contender once; the figure is the
median of the rounds. The row ``no-op`` is the empty loop.

A contender that gives a wrong answer fails the run, and so does an exception of its threads or processes.
"""

from __future__ import annotations

import gc
import time
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from fastroute.figures import percentile

from .workers import thread_failures

Clock = Callable[[], float]


class MissingError(Exception):
    """A contender cannot run here; the text says why."""


class WrongAnswerError(Exception):
    """A contender gave a wrong answer."""


@dataclass(frozen=True)
class Operation:
    """The operation that one contender repeats.

    Attributes:
        statement: a Python expression over ``names``.
        names: the objects that the expression uses.
        check: returns whether a result of the expression is right.
        per: the units (chunks, bytes) of one evaluation.
    """

    statement: str
    names: Mapping[str, Any]
    check: Callable[[Any], bool]
    per: float = 1.0

    def verify(self) -> None:
        """Evaluates the statement once and checks the result.

        Raises:
            WrongAnswerError: the answer is not that of a working contender.
        """
        answer = eval(self.statement, dict(self.names))
        if not self.check(answer):
            raise WrongAnswerError(f"{self.statement} gave {answer!r:.300}")


Maker = Callable[[ExitStack], Operation]


@dataclass(frozen=True)
class Contender:
    """A named contender; ``make`` prepares it, and puts on the stack what must be closed."""

    name: str
    make: Maker
    ours: bool = False


@dataclass(frozen=True)
class Comparison:
    """Ways to do the same thing, measured in interleaved rounds.

    Attributes:
        title: the table's title.
        base: the contender that ratios refer to.
        added: whether to show the difference to ``base``.
        loops: evaluations per timing; None: chosen for each contender, so that a timing takes 2 ms.
        rounds: timings of each contender.
        clock: returns seconds. The default is the thread's CPU time, which other processes do not affect; use
            the wall clock if waiting is part of the comparison.
    """

    title: str
    contenders: tuple[Contender, ...]
    base: str
    added: bool = False
    loops: int | None = None
    rounds: int = 25
    clock: Clock = time.thread_time
    note: str = ""


@dataclass(frozen=True)
class Trial:
    """Runs with several figures each, in interleaved rounds; each figure is the median of the rounds.

    Attributes:
        columns: the figures' names, in order.
        runs: for each contender a function from the seconds to run to the figures. It checks the contender's
            answers and raises `WrongAnswerError`.
        ratio: the column whose ratio to ``base`` is shown; None for no ratios.
    """

    title: str
    columns: tuple[str, ...]
    runs: Mapping[str, Callable[[float], Sequence[float]]]
    seconds: float
    rounds: int = 3
    base: str = ""
    ratio: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One contender's figures; times in seconds. ``skipped`` is the reason if there are none.

    Attributes:
        figures: a comparison's median, or a trial's figures.
        ratio: the ratio of the first or the chosen figure to that of the base.
        added: the difference of the median to that of the base, if shown.
        low, high: tenth and ninetieth percentile of a comparison.
    """

    name: str
    figures: tuple[float, ...] = ()
    ratio: float | None = None
    added: float | None = None
    low: float | None = None
    high: float | None = None
    skipped: str = ""
    ours: bool = False


def no_op(_: ExitStack) -> Operation:
    return Operation("None", {}, lambda nothing: nothing is None)


NO_OP = Contender("no-op", no_op)


def clock(_: ExitStack) -> Operation:
    from fastroute import _core

    return Operation("clock()", {"clock": _core.clock}, lambda now: now > 0)


# With the time of this, figures of different machines can be compared.
FLOOR = Contender("floor: method call, one clock read", clock)


def need(module: str) -> Any:
    """Imports a peer's module.

    Raises:
        MissingError: it is not installed or cannot be imported.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except Exception as error:
        raise MissingError(f"{module} does not load: {type(error).__name__}") from error


@contextmanager
def quiet_gc() -> Iterator[None]:
    """Runs the garbage collector before the timing and disables it meanwhile, like timeit."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _loops_for(timer: timeit.Timer, target: float) -> int:
    loops = 1
    while True:
        took = timer.timeit(loops)
        if took >= target or loops >= 1_000_000:
            return loops
        loops = min(1_000_000, max(loops * 2, int(loops * target / max(took, 1e-9) * 0.8)))


def compare(comparison: Comparison, rounds: int | None = None) -> list[Row]:
    """Measures all contenders in interleaved rounds, and checks their answers before and after.

    Raises:
        WrongAnswerError: an answer is not that of a working contender.
    """
    samples: dict[str, list[float]] = {}
    skipped: dict[str, str] = {}
    with thread_failures(), ExitStack() as stack:
        timers: list[tuple[str, timeit.Timer, int, float]] = []
        operations: list[Operation] = []
        for contender in comparison.contenders:
            try:
                operation = contender.make(stack)
            except MissingError as error:
                skipped[contender.name] = str(error)
                continue
            operation.verify()
            operations.append(operation)
            timer = timeit.Timer(operation.statement, timer=comparison.clock, globals=dict(operation.names))
            timer.timeit(2)
            loops = comparison.loops or _loops_for(
                timeit.Timer(operation.statement, globals=dict(operation.names)), 0.002
            )
            timers.append((contender.name, timer, loops, operation.per))
            samples[contender.name] = []
        for turn in range(rounds or comparison.rounds):
            # Each round starts with another contender, because the caches depend on the one before.
            shift = turn % len(timers)
            with quiet_gc():
                for name, timer, loops, per in (*timers[shift:], *timers[:shift]):
                    samples[name].append(timer.timeit(loops) / loops / per)
        for operation in operations:
            operation.verify()
    base = percentile(samples[comparison.base], 50) if samples.get(comparison.base) else 0.0
    rows = []
    for contender in comparison.contenders:
        if contender.name in skipped:
            rows.append(Row(contender.name, skipped=skipped[contender.name], ours=contender.ours))
            continue
        taken = samples[contender.name]
        median = percentile(taken, 50)
        rows.append(
            Row(
                contender.name,
                (median,),
                median / base if base else None,
                median - base if comparison.added and base and contender is not NO_OP else None,
                percentile(taken, 10),
                percentile(taken, 90),
                ours=contender.ours,
            )
        )
    return rows


def run_trial(trial: Trial, rounds: int | None = None, seconds: float | None = None) -> list[Row]:
    """Runs all contenders in interleaved rounds; a `MissingError` is recorded and not raised."""
    found: dict[str, list[Sequence[float]]] = {name: [] for name in trial.runs}
    skipped: dict[str, str] = {}
    with thread_failures():
        for _ in range(rounds or trial.rounds):
            for name, run in trial.runs.items():
                if name not in skipped:
                    try:
                        found[name].append(run(seconds or trial.seconds))
                    except MissingError as error:
                        skipped[name] = str(error)
    medians = {
        name: tuple(percentile(column, 50) for column in zip(*figures))
        for name, figures in found.items()
        if name not in skipped
    }
    place = trial.columns.index(trial.ratio) if trial.ratio else 0
    base = medians[trial.base][place] if trial.ratio and trial.base in medians else 0.0
    return [
        Row(name, skipped=skipped[name])
        if name in skipped
        else Row(
            name,
            medians[name],
            medians[name][place] / base if base else None,
            ours=name.startswith("fastroute"),
        )
        for name in trial.runs
    ]
