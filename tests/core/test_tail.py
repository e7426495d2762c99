"""The tail of the last minutes' latencies and the hedges it allows: by itself, against the twin, in crowds.

The core counts in buckets a quarter of a power of two wide, the twin every call: quantiles agree to a bucket.
"""

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
MINUTE = 60 * SECOND
T0 = 1_000_000 * MINUTE
WIDTH = 2**0.25


@pytest.fixture
def tail(core: Any, segment: Any) -> Any:
    return core.Tail(segment, "t")


def test_nothing_is_known_at_first(tail: Any) -> None:
    assert (tail.count(T0), tail.hedges(T0), tail.quantile(0.95, now=T0)) == (0, 0, 0.0)
    assert not tail.hedge(1.0, T0)


def test_a_quantile_is_where_so_many_calls_were_over(tail: Any) -> None:
    for place in range(1, 101):
        tail.record(0.01 * place, T0)
    assert tail.count(T0) == 100
    for share in (0.5, 0.95, 0.99):
        assert share / WIDTH <= tail.quantile(share, now=T0) <= share * WIDTH


def test_too_few_say_nothing(tail: Any) -> None:
    for _ in range(99):
        tail.record(1.0, T0)
    assert tail.quantile(0.95, 100, T0) == 0.0
    tail.record(1.0, T0)
    assert 1 / WIDTH <= tail.quantile(0.95, 100, T0) <= WIDTH


def test_a_minute_is_forgotten_after_five(tail: Any) -> None:
    for minute in range(5):
        tail.record(1.0, T0 + minute * MINUTE)
    assert tail.count(T0 + 5 * MINUTE - 1) == 5
    assert tail.count(T0 + 5 * MINUTE) == 4
    assert tail.count(T0 + 9 * MINUTE) == 0
    tail.record(1.0, T0 + 5 * MINUTE)  # in the first one's place
    assert tail.count(T0 + 5 * MINUTE) == 5


def test_hedges_are_a_share_of_the_calls_and_go_with_their_minute(tail: Any) -> None:
    for _ in range(40):
        tail.record(1.0, T0)
    assert [tail.hedge(0.05, T0) for _ in range(4)] == [True, True, False, False]
    assert tail.hedges(T0) == 2
    for _ in range(20):
        tail.record(1.0, T0 + MINUTE)
    assert [tail.hedge(0.05, T0 + MINUTE) for _ in range(2)] == [True, False]
    assert tail.hedges(T0 + 5 * MINUTE) == 1


def test_a_clock_read_before_the_minute_turned_changes_nothing(tail: Any) -> None:
    tail.record(1.0, T0 + 5 * MINUTE)
    tail.record(1.0, T0)
    assert not tail.hedge(1.0, T0)
    assert tail.count(T0 + 5 * MINUTE) == 1


def test_the_share_holds_while_the_minute_turns(tail: Any) -> None:
    """A process whose clock was read just before takes nothing beside one that has turned the minute."""
    for _ in range(10):
        tail.record(1.0, T0)
    assert [tail.hedge(0.2, T0 + MINUTE) for _ in range(3)] == [True, True, False]
    assert not tail.hedge(0.2, T0)
    assert tail.hedges(T0 + MINUTE) == 2


@pytest.mark.parametrize("latency", [0.0, 1e-9, 5000.0, 1e6])
def test_the_ends_of_the_scale(tail: Any, latency: float) -> None:
    tail.record(latency, T0)
    assert tail.count(T0) == 1
    assert 0.001 <= tail.quantile(1.0, now=T0) <= 2098 * WIDTH


def test_one_name_is_one_tail(core: Any, segment: Any) -> None:
    core.Tail(segment, "a").record(1.0, T0)
    assert core.Tail(segment, "a").count(T0) == 1
    assert core.Tail(segment, "b").count(T0) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda tail: tail.record(-1.0),
        lambda tail: tail.record(float("nan")),
        lambda tail: tail.record(float("inf")),
        lambda tail: tail.quantile(1.5),
        lambda tail: tail.quantile(float("nan")),
        lambda tail: tail.quantile(0.5, -1),
        lambda tail: tail.hedge(-0.1),
        lambda tail: tail.record(1.0, -5),
    ],
)
def test_what_cannot_be_is_refused(call: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        call(_core.Tail(_core.Segment(64), "t"))


def test_a_segment_that_is_full_says_so() -> None:
    segment = _core.Segment(64)
    for name in "abcd":
        _core.Tail(segment, name)
    with pytest.raises(_core.SegmentFullError):
        _core.Tail(segment, "e")


def test_a_full_counter_stays_full() -> None:
    tail = _core.Tail(_core.Segment(64), "t")
    for _ in range(0xFFFF + 5):
        tail.record(1.0, T0)
    assert tail.count(T0) == 0xFFFF
    assert 1 / WIDTH <= tail.quantile(0.95, now=T0) <= WIDTH


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("record"), st.floats(0.001, 2000.0)),
        st.tuples(st.just("quantile"), st.floats(0.01, 1.0)),
        st.tuples(st.just("hedge"), st.floats(0.0, 1.0)),
        st.tuples(st.just("pass"), st.integers(0, 3 * MINUTE)),
    ),
    max_size=60,
)


@given(STEPS)
def test_the_twin_agrees(steps: list[tuple[str, Any]]) -> None:
    native, oracle = _core.Tail(_core.Segment(64), "t"), twin.Tail(twin.Segment(), "t")
    now = T0
    for what, value in steps:
        if what == "pass":
            now += value
        elif what == "record":
            native.record(value, now)
            oracle.record(value, now)
        elif what == "hedge":
            assert native.hedge(value, now) == oracle.hedge(value, now)
        else:
            found, wanted = native.quantile(value, now=now), oracle.quantile(value, now=now)
            assert found == 0.0 if wanted == 0.0 else wanted / 1.2 <= found <= wanted * 1.2
        assert (native.count(now), native.hedges(now)) == (oracle.count(now), oracle.hedges(now))


def test_threads_take_exactly_their_share() -> None:
    tail = _core.Tail(_core.Segment(64), "t")
    for _ in range(1000):
        tail.record(1.0, T0)
    granted: list[int] = []
    together = threading.Barrier(8)

    def take() -> None:
        together.wait()
        granted.append(sum(tail.hedge(0.5, T0) for _ in range(500)))

    workers = [threading.Thread(target=take) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sum(granted) == tail.hedges(T0) == 500


def test_processes_take_exactly_their_share() -> None:
    tail = _core.Tail(_core.Segment(64), "t")
    for _ in range(20_000):
        tail.record(1.0, T0)
    reader, writer = os.pipe()
    children = []
    for _ in range(8):
        child = fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)  # all at once: until the last one that could write is gone
            for _ in range(2000):
                tail.hedge(0.25, T0)
            os._exit(0)
        children.append(child)
    os.close(writer)
    os.close(reader)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 8
    assert tail.hedges(T0) == 5000


def test_forked_processes_count_into_one() -> None:
    tail = _core.Tail(_core.Segment(64), "t")
    children = []
    for _ in range(4):
        child = fork()
        if child == 0:
            for _ in range(1000):
                tail.record(1.0, T0)
            granted = sum(tail.hedge(1.0, T0) for _ in range(100))
            os._exit(granted != 100)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    assert (tail.count(T0), tail.hedges(T0)) == (4000, 400)
