"""Counts of events, lately and in all: by themselves, against the twin, from threads and processes."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
import twin
from forking import fork
from hypothesis import given
from hypothesis import strategies as st

from fastroute import _core

SECOND = 1_000_000_000
T0 = 1_000_000 * 60 * SECOND


@pytest.fixture
def events(core: Any, segment: Any) -> Any:
    return core.EventCount(segment, "t", periods=10, period_s=60)


def test_events_are_counted_in_all_and_lately(events: Any) -> None:
    assert (events.total(), events.lately(10, T0)) == (0, 0)
    for minute in range(12):
        events.add(T0 + minute * 60 * SECOND)
    now = T0 + 11 * 60 * SECOND
    assert (events.total(), events.lately(1, now), events.lately(3, now)) == (12, 1, 3)
    assert events.lately(10, now) == events.lately(1000, now) == 10  # no more are remembered
    assert events.lately(10, now + 9 * 60 * SECOND) == 1
    assert events.lately(10, now + 3600 * SECOND) == 0


def test_a_late_event_does_not_replace_a_later_period(events: Any) -> None:
    events.add(T0 + 600 * SECOND)
    events.add(T0)
    assert (events.total(), events.lately(1, T0 + 600 * SECOND), events.lately(1, T0)) == (2, 1, 0)


def test_those_of_one_name_are_one(core: Any, segment: Any) -> None:
    core.EventCount(segment, "a").add(T0)
    assert core.EventCount(segment, "a").total() == 1
    assert core.EventCount(segment, "b").total() == 0


@pytest.mark.parametrize("wrong", [{"periods": 0}, {"periods": 169}, {"period_s": 0}, {"period_s": 10**7}])
def test_wrong_periods_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="period"):
        _core.EventCount(_core.Segment(64), "t", **wrong)


def test_a_full_segment_is_told() -> None:
    segment = _core.Segment(64)
    for name in "ab":
        _core.EventCount(segment, name, periods=168)
    with pytest.raises(_core.SegmentFullError):
        _core.EventCount(segment, "c", periods=168)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 1000)), max_size=80))
def test_like_the_twin(steps: list[tuple[bool, int]]) -> None:
    native = _core.EventCount(_core.Segment(64), "t", periods=5, period_s=60)
    oracle = twin.EventCount(twin.Segment(), "t", periods=5, period_s=60)
    for adds, seconds in steps:
        now = T0 + seconds * SECOND
        if adds:
            native.add(now)
            oracle.add(now)
        else:
            for periods in (1, 3, 5):
                assert native.lately(periods, now) == oracle.lately(periods, now)
        assert native.total() == oracle.total()


def test_no_event_of_threads_is_lost() -> None:
    events = _core.EventCount(_core.Segment(64), "t", periods=2, period_s=1)

    def count() -> None:
        for place in range(2000):
            events.add(T0 + place % 3 * SECOND // 2)  # over the edge of a period and back

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert events.total() == 8000
    assert events.lately(2, T0 + SECOND) == 8000


def test_no_event_of_processes_is_lost() -> None:
    events = _core.EventCount(_core.Segment(64), "t", periods=2, period_s=1)

    def count() -> None:
        for place in range(2000):
            events.add(T0 + place % 3 * SECOND // 2)

    children = []
    for _ in range(3):
        child = fork()
        if child == 0:
            try:
                count()
            finally:
                os._exit(0)
        children.append(child)
    count()
    for child in children:
        os.waitpid(child, 0)
    assert events.total() == 8000
    assert events.lately(2, T0 + SECOND) == 8000
