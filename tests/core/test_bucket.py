"""Buckets: exact grants, correct waits, debt, and extreme values; then native against twin."""

from __future__ import annotations

from typing import Any, cast

import pytest
import twin
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastroute import _core

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
T0 = 1_000_000 * SECOND  # a machine that has been up for 11 days

RATES = st.one_of(
    st.integers(1, 10_000), st.sampled_from([1, 7, 60, 61, 599, 700_000_000, 999_999_999, 1_000_000_000])
)


def drain(bucket: Any, now: int, at_most: int = 10_000) -> int:
    """How many single permits are granted at one instant."""
    granted = 0
    while granted < at_most and bucket.acquire(1, now) == 0:
        granted += 1
    return granted


@pytest.mark.parametrize("per_minute", [1, 7, 59, 60, 61, 997, 700_000_001, 10**9])
@pytest.mark.parametrize("burst", [1, 2, 10, 1000])
def test_fresh_bucket_grants_exactly_its_burst(core: Any, segment: Any, per_minute: int, burst: int) -> None:
    bucket = core.Bucket(segment, "b", per_minute, burst)
    assert bucket.available(T0) == burst
    assert drain(bucket, T0) == burst
    assert bucket.available(T0) == 0


@pytest.mark.parametrize("per_minute", [1, 6, 60, 997, 10**9])
def test_default_burst_is_a_sixth_of_the_rate(core: Any, segment: Any, per_minute: int) -> None:
    assert core.Bucket(segment, "b", per_minute).available(T0) == max(1, per_minute // 6)


def test_one_a_minute_is_exact_to_the_nanosecond(core: Any, segment: Any) -> None:
    bucket = core.Bucket(segment, "b", 1)
    assert bucket.acquire(1, T0) == 0
    assert bucket.acquire(1, T0) == MINUTE
    assert bucket.acquire(1, T0 + MINUTE - 1) == 1
    assert bucket.acquire(1, T0 + MINUTE) == 0
    assert bucket.acquire(1, T0 + MINUTE) == MINUTE


def test_a_billion_a_minute_does_not_overflow(core: Any, segment: Any) -> None:
    bucket = core.Bucket(segment, "b", 10**9, 10**9)
    assert bucket.acquire(10**9, T0) == 0
    assert bucket.acquire(10**9, T0) == MINUTE
    assert bucket.acquire(1, T0) == 60
    assert bucket.acquire(10**9, T0 + MINUTE) == 0


def test_rate_zero_lets_nothing_through(core: Any, segment: Any) -> None:
    bucket = core.Bucket(segment, "b", 0, 5)
    assert bucket.acquire(1, T0) == -1
    assert bucket.reserve(1, 10 * MINUTE, T0) == -1
    assert bucket.acquire(0, T0) == 0
    assert bucket.available(T0) == 0


def test_no_limit_lets_everything_through(core: Any, segment: Any) -> None:
    bucket = core.Bucket(segment, "b", -1)
    for _ in range(5):
        assert bucket.acquire(10**12, T0) == 0
        bucket.settle(10**12, T0)
    assert bucket.reserve(10**12, 0, T0) == 0


def test_no_limit_may_be_said_with_none() -> None:
    assert _core.Bucket(_core.Segment(64), "b", None).acquire(10**12, T0) == 0


def test_more_than_the_burst_is_never_and_takes_nothing(core: Any, segment: Any) -> None:
    bucket = core.Bucket(segment, "b", 60, 10)
    assert bucket.acquire(11, T0) == -1
    assert bucket.reserve(11, 10 * MINUTE, T0) == -1
    assert bucket.available(T0) == 10
    assert bucket.acquire(10, T0) == 0


def test_a_refusal_takes_nothing_and_its_wait_is_true(core: Any, segment: Any) -> None:
    bucket = core.Bucket(segment, "b", 60, 10)
    assert bucket.acquire(8, T0) == 0
    wait = bucket.acquire(5, T0)
    assert wait == 3 * SECOND
    assert bucket.available(T0) == 2
    assert bucket.acquire(5, T0 + wait - 1) == 1
    assert bucket.acquire(5, T0 + wait) == 0


def test_debt_makes_later_callers_wait(core: Any, segment: Any) -> None:
    bucket = core.Bucket(segment, "b", 60, 10)
    assert bucket.acquire(10, T0) == 0
    bucket.settle(15, T0)
    assert bucket.available(T0) == -15
    assert bucket.acquire(1, T0) == 16 * SECOND
    assert bucket.acquire(0, T0) == 0
    assert bucket.available(T0 + 5 * SECOND) == -10


def test_giving_back_never_fills_above_the_burst(core: Any, segment: Any) -> None:
    bucket = core.Bucket(segment, "b", 60, 10)
    bucket.settle(-100, T0)
    assert drain(bucket, T0) == 10
    bucket.settle(-3, T0)
    assert drain(bucket, T0) == 3
    bucket.settle(-100, T0)
    assert drain(bucket, T0) == 10


def test_reservations_queue_in_order_with_one_sleep_each(core: Any, segment: Any) -> None:
    bucket = core.Bucket(segment, "b", 60, 2)
    waits = [bucket.reserve(1, MINUTE, T0) for _ in range(6)]
    assert waits == [0, 0, SECOND, 2 * SECOND, 3 * SECOND, 4 * SECOND]
    assert bucket.reserve(1, 4 * SECOND, T0) == -2 - 5 * SECOND
    assert bucket.available(T0) == -4


def test_tighten_only_ever_lowers(core: Any, segment: Any) -> None:
    bucket = core.Bucket(segment, "b", 60, 10)
    bucket.tighten(3, T0)
    assert bucket.available(T0) == 3
    bucket.tighten(7, T0)
    assert bucket.available(T0) == 3
    bucket.tighten(0, T0)
    assert bucket.acquire(1, T0) == SECOND
    bucket.settle(5, T0)
    bucket.tighten(0, T0)
    assert bucket.available(T0) == -5


def test_objects_of_one_name_share_what_was_taken_but_not_the_limit(core: Any, segment: Any) -> None:
    before = core.Bucket(segment, "b", 60, 10)
    assert before.acquire(4, T0) == 0
    assert core.Bucket(segment, "b", 60, 10).available(T0) == 6
    assert core.Bucket(segment, "b", 60, 5).available(T0) == 1
    assert core.Bucket(segment, "other", 60, 10).available(T0) == 10


def test_without_now_the_clock_is_read(core: Any, segment: Any) -> None:
    bucket = core.Bucket(segment, "b", 1)
    before = core.clock()
    assert bucket.acquire() == 0
    wait = bucket.acquire()
    assert MINUTE - (core.clock() - before) <= wait <= MINUTE


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda b: b.acquire(-1, T0), ValueError),
        (lambda b: b.acquire(1, -1), ValueError),
        (lambda b: b.acquire(1.5, T0), TypeError),
        (lambda b: b.acquire("1", T0), TypeError),
        (lambda b: b.acquire(float("nan"), T0), (TypeError, ValueError)),
        (lambda b: b.reserve(-1, 0, T0), ValueError),
        (lambda b: b.reserve(1, -1, T0), ValueError),
        (lambda b: b.tighten(-1, T0), ValueError),
        (lambda b: _core.Bucket(_core.Segment(64), "b", 10**9 + 1), ValueError),
        (lambda b: _core.Bucket(_core.Segment(64), "b", 60, -1), ValueError),
        (lambda b: _core.Bucket(_core.Segment(64), "", 60), ValueError),
        (lambda b: _core.Bucket(cast(Any, None), "b", 60), TypeError),
    ],
)
def test_bad_arguments_are_refused_and_take_nothing(call: Any, error: Any) -> None:
    bucket = _core.Bucket(_core.Segment(64), "kept", 60, 10)
    with pytest.raises(error):
        call(bucket)
    assert bucket.available(T0) == 10


@pytest.mark.parametrize("huge", [2**40, 2**60, 2**61])
def test_huge_amounts_saturate(huge: int) -> None:
    bucket = _core.Bucket(_core.Segment(64), "b", 1, 1)
    assert bucket.acquire(huge, T0) == -1
    bucket.settle(huge, T0)
    bucket.settle(huge, T0)
    assert bucket.available(T0) < 0
    assert bucket.acquire(1, T0) > 0
    assert bucket.reserve(1, huge, T0) not in (0, -1)
    bucket.settle(-huge, T0)
    bucket.settle(-huge, T0)
    assert bucket.available(T0) <= 1


@pytest.mark.parametrize("over", [2**61 + 1, 2**63, -(2**64)])
def test_more_than_can_be_reckoned_with_is_refused(over: int) -> None:
    bucket = _core.Bucket(_core.Segment(64), "b", 60, 10)
    for method in (bucket.acquire, bucket.settle, bucket.tighten):
        with pytest.raises((ValueError, OverflowError)):
            method(over, T0)
    with pytest.raises((ValueError, OverflowError)):
        bucket.acquire(1, over)
    assert bucket.available(T0) == 10


@given(
    per_minute=RATES,
    burst=st.integers(1, 40),
    steps=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), min_size=1, max_size=80),
)
@settings(deadline=None, max_examples=100)
def test_no_window_grants_more_than_burst_and_rate(
    per_minute: int, burst: int, steps: list[tuple[int, int]]
) -> None:
    """From any moment to any other: granted <= burst + rate * time; and all comes back."""
    bucket = _core.Bucket(_core.Segment(64), "b", per_minute, burst)
    now, grants = T0, []
    for n, pause in steps:
        now += pause * MINUTE // (2 * per_minute)
        if bucket.acquire(n, now) == 0:
            grants.append((now, n))
    for i, (start, _) in enumerate(grants):
        total = 0
        for end, n in grants[i:]:
            total += n
            assert (total - burst) * MINUTE <= (end - start) * per_minute
    # The other way: after a full refill time all of the burst is there again.
    assert drain(bucket, now + burst * (MINUTE // per_minute + 1)) == burst


OPS = st.one_of(
    st.tuples(st.just("acquire"), st.integers(0, 12)),
    st.tuples(st.just("reserve"), st.integers(0, 12), st.sampled_from([0, SECOND, MINUTE, 2**60])),
    st.tuples(st.just("settle"), st.integers(-15, 15)),
    st.tuples(st.just("available")),
    st.tuples(st.just("tighten"), st.integers(0, 12)),
)


@given(
    per_minute=st.one_of(st.just(-1), st.just(0), RATES),
    burst=st.integers(0, 10),
    steps=st.lists(st.tuples(OPS, st.integers(0, 4 * SECOND)), max_size=60),
)
@example(per_minute=60, burst=10, steps=[(("settle", 15), 0), (("settle", -15), 0), (("available",), 0)])
@settings(deadline=None, max_examples=120)
def test_native_answers_as_the_twin(
    per_minute: int, burst: int, steps: list[tuple[tuple[Any, ...], int]]
) -> None:
    native = _core.Bucket(_core.Segment(64), "b", per_minute, burst)
    oracle = twin.Bucket(twin.Segment(), "b", per_minute, burst)
    now = T0
    for (op, *arguments), pause in steps:
        now += pause
        answers = [getattr(bucket, op)(*arguments, now) for bucket in (native, oracle)]
        assert answers[0] == answers[1], (op, arguments, now - T0)
