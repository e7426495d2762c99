"""A wrong answer of a contender, and an exception of its threads or processes, fail the run."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fastroute.testing import Provider

from . import calls, hedging, limits, processes, records, start
from .side_by_side import NO_OP, Comparison, Contender, Operation, Trial, WrongAnswerError, compare, run_trial
from .workers import ChildError, beside, forked, in_threads, load, spawned, thread_failures


class DiedError(Exception):
    pass


def die(*_: object) -> Any:
    raise DiedError


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_a_thread() -> None:
    thread = threading.Thread(target=die)
    thread.start()
    thread.join()


def only_the_third(place: int) -> Callable[[], None]:
    return die if place == 2 else lambda: None


# --------------------------------------------------------------------------------------------- the mechanism


@pytest.mark.parametrize(
    ("run", "error"),
    [
        pytest.param(lambda: load(4, 60.0, die), DiedError, id="threads before the clock starts"),
        pytest.param(lambda: load(4, 60.0, lambda _: die), DiedError, id="threads"),
        pytest.param(lambda: load(4, 60.0, only_the_third), DiedError, id="one thread of four"),
        pytest.param(lambda: in_threads(4, die, range(9)), DiedError, id="threads with items"),
        pytest.param(lambda: forked(2, die), ChildError, id="forked processes"),
        pytest.param(lambda: forked(2, be_killed), ChildError, id="forked processes that are killed"),
        pytest.param(lambda: spawned(die), DiedError, id="a new interpreter"),
    ],
)
def test_what_a_worker_raises_is_raised(run: Callable[[], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        run()


@pytest.mark.parametrize("work", [die, be_killed])
def test_a_process_beside_must_live_as_long_as_the_run(work: Callable[[], None]) -> None:
    def run() -> None:
        with beside(work) as child:
            assert child.wait()

    with pytest.raises(ChildError):
        run()
    with beside(lambda: None) as child:
        assert not child.wait(0.0)


def test_what_threads_did_is_counted() -> None:
    found = load(3, 0.01, lambda _: lambda: None)
    assert len(found.counts) == 3
    assert found.total >= sum(found.counts) > 0
    assert found.seconds >= 0.01
    assert forked(2, lambda: 7) == [7, 7]
    assert spawned(abs, -3) == 3
    assert in_threads(2, abs, [-1, -2]) == [1, 2]


def test_a_thread_that_nobody_here_started_fails_the_run() -> None:
    def run() -> None:
        with thread_failures():
            die_in_a_thread()

    with pytest.raises(DiedError):
        run()


def row(statement: str, **names: Any) -> Comparison:
    make = lambda _: Operation(statement, names, lambda answer: answer in (None, 1))  # noqa: E731
    return Comparison("t", (NO_OP, Contender("x", make)), base="no-op", loops=1, rounds=1)


def test_a_comparison_fails_with_a_contender() -> None:
    answers = iter([1, 1, 1, 1, 2])
    assert [found.name for found in compare(row("1"))] == ["no-op", "x"]
    for statement, names, error in (
        ("2", {}, WrongAnswerError),
        ("next(answers)", {"answers": answers}, WrongAnswerError),
        ("die()", {"die": die}, DiedError),
        ("die()", {"die": die_in_a_thread}, DiedError),
    ):
        with pytest.raises(error):
            compare(row(statement, **names))
    assert next(answers, None) is None


@pytest.mark.parametrize("run", [die, lambda _: die_in_a_thread() or [1.0]])
def test_a_trial_fails_with_a_contender(run: Callable[[float], list[float]]) -> None:
    with pytest.raises(DiedError):
        run_trial(Trial("t", ("a",), {"x": run}, seconds=0.0))


# ------------------------------------------------------------------------------------------------- the rows


def no_provider(_: ExitStack, url: str) -> Callable[[], Any]:
    return lambda: b'{"choices": [{"message": {"content": "another answer"}}]}'


def dead(_: ExitStack, url: str) -> Callable[[], Any]:
    return die


def refused(_: ExitStack) -> Operation:
    return Operation("take()", {"take": lambda: False}, lambda granted: granted is True)


def broken(_: ExitStack) -> Operation:
    return Operation("take()", {"take": die}, lambda granted: granted is True)


class Forgetful(records.Memory):
    """A ledger that loses every other entry and has wrong sums."""

    def __init__(self, _: Path) -> None:
        super().__init__()
        self.flush = self.close
        self.append = lambda entry: self.entries.extend([entry] * (len(self.entries) == 0))

    def by(self, *_: str) -> list[Any]:
        return self.entries


@pytest.mark.parametrize(
    ("run", "error"),
    [
        pytest.param(limits.waiting(lambda _: die, 1), DiedError, id="waiting, its threads die"),
        pytest.param(limits.waiting(lambda _: lambda: 1, 1), WrongAnswerError, id="waiting, not limited"),
        pytest.param(limits.alone_and_together(broken), DiedError, id="acquiring, its threads die"),
        pytest.param(limits.alone_and_together(refused), WrongAnswerError, id="acquiring, refused"),
        pytest.param(processes.bound(lambda _: die), ChildError, id="forked, its processes die"),
        pytest.param(processes.bound(lambda _: lambda: 10**9), WrongAnswerError, id="forked, not limited"),
        pytest.param(processes.bound(lambda _: lambda: False), WrongAnswerError, id="forked, never granted"),
        pytest.param(calls.cpu(no_provider), WrongAnswerError, id="CPU of a call, another answer"),
        pytest.param(calls.cpu_threads(no_provider), WrongAnswerError, id="CPU in threads, another answer"),
        pytest.param(calls.rates(no_provider), WrongAnswerError, id="calls a second, another answer"),
        pytest.param(calls.rates(dead), DiedError, id="calls a second, its threads die"),
        pytest.param(records.busy(Forgetful), WrongAnswerError, id="busy ledger, entries lost"),
        pytest.param(records.through(Forgetful), WrongAnswerError, id="full ledger, entries lost"),
        pytest.param(start.fresh("pass", {"fastroute"}), WrongAnswerError, id="import, nothing imported"),
        pytest.param(start.fresh("import nowhere", set()), WrongAnswerError, id="import, it raises"),
    ],
)
def test_a_run_fails_with_its_contender(run: Callable[[float], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        run(0.05)


@pytest.mark.parametrize("make", [refused, broken])
def test_a_row_fails_with_the_process_beside_it(make: Callable[[ExitStack], Operation]) -> None:
    def run() -> None:
        with ExitStack() as stack:
            assert processes.contended(make)(stack).names["child"].wait()

    with pytest.raises(ChildError):
        run()


def test_the_server_of_the_calls_is_checked_too() -> None:
    with Provider(answer="another answer") as provider, pytest.raises(WrongAnswerError):
        calls.raw_client(provider.port, 1, 0.05)


def test_every_call_with_hedging_is_checked() -> None:
    with pytest.raises(WrongAnswerError):
        hedging.run(False, 1, threads=1, stuck=0.0, warm=1, answer="another answer")


def test_nothing_else_starts_threads_or_processes() -> None:
    starts = re.compile(
        r"threading\.Thread|ThreadPool|ProcessPool|os\.fork\b|multiprocessing\.Process|\bProcess\("
    )
    for file in Path(__file__).parent.glob("*.py"):
        if file.name not in ("workers.py", Path(__file__).name):
            assert not starts.search(file.read_text(encoding="utf-8")), file.name
