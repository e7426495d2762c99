"""`Hedge` alone: when it begins, its result, and the objects that it keeps alive."""

from __future__ import annotations

import contextvars
import logging
import time
import weakref
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from fastroute import _core, errors
from fastroute.calls.hedge import Hedge, Hedging
from fastroute.config import HedgingConfig
from fastroute.platform import timer
from fastroute.platform.timer import Alarm
from fastroute.platform.workers import Workers
from fastroute.routing.stage import Estimate


class Later:
    """In the place of the threads: runs what it was given when the test says so."""

    def __init__(self) -> None:
        self.given: list[Callable[[], object]] = []

    def start(self, context: contextvars.Context, call: Callable[[], object]) -> bool:
        self.given.append(partial(context.run, call))
        return True


class Answered:
    """An answer that can be seen to be let go."""


def alone(send: Callable[[Hedge[Answered]], Answered | None]) -> tuple[Hedge[Answered], Later]:
    later = Later()
    return Hedge(60.0, send, later), later  # type: ignore[arg-type]


@pytest.mark.parametrize("given_up", [Hedge.end, Hedge.result])
def test_what_has_not_begun_in_time_does_not_begin(given_up: Callable[[Hedge[Answered]], Any]) -> None:
    sent: list[Any] = []
    hedge, later = alone(sent.append)
    hedge.launch()
    assert given_up(hedge) is None
    (run,) = later.given
    run()
    assert sent == []


def test_its_alarm_goes_with_the_call() -> None:
    hedge, later = alone(lambda _: None)
    hedge.begin()
    (alarm,) = (each for each in timer.pending() if isinstance(each, Alarm))
    hedge.end()
    assert alarm not in timer.pending()
    assert later.given == []


@pytest.mark.parametrize("before", [True, False], ids=["before it came", "when it was there"])
def test_an_answer_that_nobody_takes_is_let_go(before: bool) -> None:
    """A stream then gives back its permits and its connection."""
    answers: list[weakref.ref[Answered]] = []

    def send(hedge: Hedge[Answered]) -> Answered:
        if before:
            hedge.end()
        answer = Answered()
        answers.append(weakref.ref(answer))
        return answer

    hedge, later = alone(send)
    hedge.launch()
    later.given.pop()()
    if not before:
        assert answers[0]() is not None
        hedge.end()
    assert answers[0]() is None
    assert hedge.result() is None


@pytest.mark.parametrize(
    ("problem", "told"),
    [(errors.BudgetExceeded("spent"), ""), (ZeroDivisionError(), "a hedge failed with an unexpected error")],
    ids=["refused", "broken"],
)
def test_whatever_a_hedge_fails_with_the_first_attempt_goes_on(
    caplog: pytest.LogCaptureFixture, problem: Exception, told: str
) -> None:
    def send(hedge: Hedge[Answered]) -> Answered:
        raise problem

    hedge, later = alone(send)
    hedge.launch()
    later.given.pop()()
    assert hedge.result() is None
    assert told in caplog.text
    assert [each.levelname for each in caplog.records if each.levelno > logging.INFO] == ["ERROR"] * bool(
        told
    )


@pytest.mark.parametrize(
    ("stream", "input_tokens", "left", "wanted"),
    [
        (False, 0, 60.0, 2.0),
        (False, 20_000, 60.0, 2.0),  # whole answers are counted as they are
        (True, 20_000, 60.0, 6.0),  # to a first token it is longer after a long prompt
        (False, 0, 1.0, None),  # after the call's end nobody waits for it
    ],
)
def test_its_delay(stream: bool, input_tokens: int, left: float, wanted: float | None) -> None:
    tail = _core.Tail(_core.Segment(64), "t")
    for _ in range(100):
        tail.record(2.0)
    rule = HedgingConfig(enabled=True, percentile=0.999)
    call: Any = SimpleNamespace(
        request=SimpleNamespace(stream=stream, options=SimpleNamespace(hedge=None)),
        attempts=[],
        estimate=Estimate(input_tokens, 0, 30.0),
        deadline=time.monotonic() + left,
    )
    known: Any = SimpleNamespace(tail=lambda _: tail)
    delay = Hedging(rule, Workers(1, 0)).delay(call, known)
    # A bucket is a fifth of its value wide.
    assert delay is None if wanted is None else delay == pytest.approx(wanted, rel=0.2)


@pytest.mark.parametrize("problem", [RuntimeError, MemoryError, errors.Error], ids=lambda kind: kind.__name__)
def test_nothing_that_a_hedge_meets_stops_the_clocks(problem: type[Exception]) -> None:
    class Never:
        def start(self, context: contextvars.Context, call: Callable[[], object]) -> bool:
            raise problem("no thread can be started")

    Hedge(60.0, lambda _: None, Never()).launch()  # type: ignore[arg-type]
