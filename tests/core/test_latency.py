"""Latency, health, time to first token, retry budget: each formula read directly, then against the twin.

The core packs averages as 32-bit floats beside a stamp in whole ms: values agree to 1e-5, times are whole ms.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import twin
from hypothesis import given, settings
from hypothesis import strategies as st
from twin import FAILURE, IGNORED, OK, THROTTLED, USELESS

from fastroute import _core

MS = 1_000_000
SECOND = 1000 * MS
T0 = 1_000_000 * SECOND
NEAR = 1e-5


def near(value: float) -> Any:
    return pytest.approx(value, rel=NEAR, abs=1e-7)


@pytest.fixture
def latency(core: Any, segment: Any) -> Any:
    return core.Latency(segment, "l")


class TestAverage:
    def test_nothing_measured(self, latency: Any) -> None:
        assert (latency.ewma(T0), latency.spread, latency.window(), latency.samples()) == (0.0, 0.0, 0.0, [])
        assert latency.success_rate(T0) == 1.0
        assert latency.health(T0) == (100, 0.0)
        assert (latency.count, latency.failures) == (0, 0)

    def test_first_call_is_the_average(self, latency: Any) -> None:
        latency.record(OK, 2.0, T0)
        assert latency.ewma(T0) == near(2.0)
        assert latency.spread == near(1.0)

    def test_a_slower_call_lifts_it_at_once(self, latency: Any) -> None:
        latency.record(OK, 1.0, T0)
        latency.record(OK, 9.0, T0 + MS)
        assert latency.ewma(T0 + MS) == near(9.0)
        assert latency.spread == near(0.75 * 0.5 + 0.25 * 8.0)

    @pytest.mark.parametrize("pause_s", [0.1, 1.0, 10.0, 50.0])
    def test_a_quicker_call_weighs_by_the_time_passed(self, latency: Any, pause_s: float) -> None:
        later = T0 + int(pause_s * SECOND)
        latency.record(OK, 4.0, T0)
        latency.record(OK, 1.0, later)
        w = math.exp(-pause_s / 10)
        assert latency.ewma(later) == near(w * 4.0 + (1 - w) * 1.0)
        assert latency.spread == near(0.75 * 2.0 + 0.25 * 3.0)

    @pytest.mark.parametrize("outcome", [FAILURE, THROTTLED, USELESS, IGNORED])
    def test_only_good_calls_bring_a_latency(self, latency: Any, outcome: int) -> None:
        latency.record(OK, 1.0, T0)
        latency.record(outcome, 50.0, T0)
        assert latency.ewma(T0) == near(1.0)
        assert latency.samples() == [near(1.0)]

    def test_it_fades(self, latency: Any) -> None:
        latency.record(OK, 3.0, T0)
        assert latency.ewma(T0 + 10 * SECOND) == near(3.0 / math.e)
        assert latency.ewma(T0 + 20 * SECOND) == near(3.0 / math.e**2)

    def test_a_clock_read_a_moment_earlier_is_no_time(self, latency: Any) -> None:
        latency.record(OK, 3.0, T0)
        latency.record(OK, 1.0, T0 - 5 * MS)
        assert latency.ewma(T0 - 5 * MS) == near(3.0)

    def test_tau_is_a_parameter(self, core: Any, segment: Any) -> None:
        latency = core.Latency(segment, "l", tau_s=2.0)
        latency.record(OK, 1.0, T0)
        assert latency.ewma(T0 + 2 * SECOND) == near(1 / math.e)


class TestSuccess:
    @pytest.mark.parametrize("outcome", [FAILURE, THROTTLED, USELESS])
    def test_failure_rate_moves_by_a_tenth(self, latency: Any, outcome: int) -> None:
        failing = 0.0
        for bad in (1, 1, 0, 1, 0, 0, 1):
            latency.record(outcome if bad else OK, 1.0, T0)
            failing += 0.1 * (bad - failing)
            assert latency.success_rate(T0) == near(1 - failing)

    def test_ignored_moves_nothing(self, latency: Any) -> None:
        latency.record(FAILURE, 0.0, T0)
        latency.record(IGNORED, 0.0, T0 + 5 * SECOND)
        assert latency.success_rate(T0 + 10 * SECOND) == near(1 - 0.1 / math.e)
        assert (latency.count, latency.failures) == (0, 1)

    def test_a_failure_rate_that_has_faded_stays_so(self, latency: Any) -> None:
        for _ in range(20):
            latency.record(FAILURE, 0.0, T0)
        later = T0 + 60 * SECOND
        before = latency.success_rate(later)
        latency.record(OK, 1.0, later)
        assert before > 0.99
        assert latency.success_rate(later) >= before


class TestWindow:
    @pytest.mark.parametrize("n", [1, 2, 49, 50, 51, 120])
    def test_formula_over_the_last_fifty(self, latency: Any, n: int) -> None:
        seen = [0.01 + (i * 37 % 101) / 10 for i in range(n)]
        for i, x in enumerate(seen):
            latency.record(OK, x, T0 + i * MS)
        newest_first = seen[::-1][:50]
        assert latency.samples() == pytest.approx(newest_first, rel=1e-6)
        weights = [1 / (1 + 0.1 * i) for i in range(len(newest_first))]
        mean = sum(w * x for w, x in zip(weights, newest_first, strict=True)) / sum(weights)
        assert latency.window() == near(mean)
        assert latency.count == n

    def test_recent_calls_weigh_more(self, latency: Any) -> None:
        for i in range(50):
            latency.record(OK, 1.0 if i < 25 else 3.0, T0)
        assert latency.window() > 2.2


class TestHealth:
    def test_score_steps_and_ends(self, latency: Any) -> None:
        scores = []
        for outcome in [OK, FAILURE, OK, FAILURE, FAILURE, OK] + [FAILURE] * 7 + [OK] * 60:
            latency.record(outcome, 1.0, T0)
            scores.append(latency.health(T0)[0])
        assert scores[:6] == [100, 85, 87, 72, 57, 59]
        assert scores[6:13] == [44, 29, 14, 0, 0, 0, 0]
        assert scores[13:16] == [2, 4, 6]
        assert scores[-1] == 100

    def test_error_rate_over_the_last_fifty(self, latency: Any) -> None:
        outcomes = [FAILURE if i % 7 == 0 else OK for i in range(130)]
        for i, outcome in enumerate(outcomes, 1):
            latency.record(outcome, 1.0, T0)
            last = outcomes[max(0, i - 50) : i]
            assert latency.health(T0)[1] == near(last.count(FAILURE) / len(last))

    def test_lost_points_fade_only_without_results(self, latency: Any) -> None:
        for i in range(10):
            latency.record(FAILURE, 0.0, T0 + i * 4 * SECOND)
        last = T0 + 36 * SECOND
        assert latency.health(last + 5 * SECOND)[0] == 0
        assert latency.health(last + 25 * SECOND)[0] == round(100 - 100 / math.e)
        latency.record(OK, 1.0, last + 25 * SECOND)
        assert latency.health(last + 25 * SECOND)[0] == round(102 - 100 / math.e)

    @pytest.mark.parametrize("outcome", [THROTTLED, IGNORED])
    def test_throttled_and_ignored_are_no_illness(self, latency: Any, outcome: int) -> None:
        for _ in range(30):
            latency.record(outcome, 0.0, T0)
        assert latency.health(T0) == (100, 0.0)


class TestFirstToken:
    @pytest.mark.parametrize("reasoning", [False, True])
    def test_no_limit_until_twenty_of_its_kind_were_seen(self, latency: Any, reasoning: bool) -> None:
        for _ in range(19):
            latency.record_ttft(4.0, reasoning)
            assert latency.ttft_timeout(reasoning) == 0.0
        latency.record_ttft(4.0, reasoning)
        assert latency.ttft_timeout(reasoning) > 0.0
        assert latency.ttft_timeout(not reasoning) == 0.0

    def test_mean_and_deviation(self, latency: Any) -> None:
        mean, deviation = 4.0, 2.0
        latency.record_ttft(4.0)
        for i in range(40):
            x = 3.0 + i % 5
            deviation = 0.75 * deviation + 0.25 * abs(mean - x)
            mean = 0.875 * mean + 0.125 * x
            latency.record_ttft(x)
        assert latency.ttft_timeout() == near(1.5 * (mean + 4 * deviation))

    @pytest.mark.parametrize(("x", "limit"), [(0.01, 5.0), (500.0, 600.0)])
    def test_its_ends(self, latency: Any, x: float, limit: float) -> None:
        for _ in range(60):
            latency.record_ttft(x)
        assert latency.ttft_timeout() == limit

    def test_doubles_per_timeout_until_a_token_comes(self, latency: Any) -> None:
        for _ in range(100):
            latency.record_ttft(0.5)
        seen = []
        for _ in range(40):
            seen.append(latency.ttft_timeout())
            latency.record_ttft_timeout()
        assert seen[:4] == [5.0, 10.0, 20.0, 40.0]
        assert seen[-1] == 600.0
        latency.record_ttft(0.5)
        assert latency.ttft_timeout() == 5.0


class TestRetryBudget:
    def test_starts_at_its_reserve(self, core: Any, segment: Any) -> None:
        budget = core.RetryBudget(segment, "r")
        assert [budget.withdraw(T0) for _ in range(12)] == [True] * 10 + [False] * 2

    def test_a_hedge_leaves_half_of_it_to_retries(self, core: Any, segment: Any) -> None:
        budget = core.RetryBudget(segment, "r")
        assert [budget.withdraw(T0, half=True) for _ in range(7)] == [True] * 5 + [False] * 2
        assert [budget.withdraw(T0) for _ in range(6)] == [True] * 5 + [False]

    def test_first_attempts_earn_retries(self, core: Any, segment: Any) -> None:
        budget = core.RetryBudget(segment, "r", ratio=0.25, reserve_per_s=0.0)
        granted = 0
        for _ in range(400):
            budget.deposit(T0)
            granted += budget.withdraw(T0)
        assert granted == 100

    def test_spent_reserve_comes_back_with_time(self, core: Any, segment: Any) -> None:
        budget = core.RetryBudget(segment, "r")
        while budget.withdraw(T0):
            pass
        later = T0 + 10 * SECOND
        granted = sum(budget.withdraw(later) for _ in range(20))
        assert granted == math.floor(10 * (1 - 1 / math.e))

    def test_what_was_earned_fades(self, core: Any, segment: Any) -> None:
        budget = core.RetryBudget(segment, "r")
        for _ in range(1000):
            budget.deposit(T0)
        later = T0 + 30 * SECOND
        granted = sum(budget.withdraw(later) for _ in range(300))
        assert granted == math.floor(10 + 200 * math.exp(-3))

    def test_it_cannot_be_hoarded(self, core: Any, segment: Any) -> None:
        budget = core.RetryBudget(segment, "r", ratio=1000.0)
        for _ in range(10):
            budget.deposit(T0)
        assert sum(budget.withdraw(T0) for _ in range(2000)) == 1000

    def test_an_outage_is_not_multiplied(self, core: Any, segment: Any) -> None:
        """Ten times as many calls as the reserve allows, all failing: retries stay near a fifth of them."""
        budget = core.RetryBudget(segment, "r")
        retries = 0
        for i in range(6000):  # a minute at 100 calls a second
            now = T0 + i * 10 * MS
            budget.deposit(now)
            retries += budget.withdraw(now)
        assert retries <= 6000 * 0.2 + 60 * 1.0 + 10 + 1
        assert retries >= 6000 * 0.2


class TestBadInput:
    @pytest.mark.parametrize("x", [-1.0, math.nan, math.inf, -math.inf])
    def test_impossible_latencies_are_refused(self, x: float) -> None:
        latency = _core.Latency(_core.Segment(64), "l")
        with pytest.raises(ValueError):
            latency.record(OK, x, T0)
        with pytest.raises(ValueError):
            latency.record_ttft(x)
        assert (latency.count, latency.samples()) == (0, [])

    @pytest.mark.parametrize("tau", [0.0, -1.0, math.nan, math.inf])
    def test_impossible_time_constants_are_refused(self, tau: float) -> None:
        with pytest.raises(ValueError, match="tau_s"):
            _core.Latency(_core.Segment(64), "l", tau_s=tau)

    @pytest.mark.parametrize(
        "rules", [{"ratio": -1.0}, {"ratio": math.nan}, {"reserve_per_s": -1.0}, {"ttl_s": 0.0}]
    )
    def test_impossible_retry_rules_are_refused(self, rules: dict[str, float]) -> None:
        with pytest.raises(ValueError, match=next(iter(rules))):
            _core.RetryBudget(_core.Segment(64), "r", **rules)

    @pytest.mark.parametrize("outcome", [-1, 5])
    def test_unknown_outcomes_are_refused(self, outcome: int) -> None:
        with pytest.raises(ValueError, match="outcome"):
            _core.Latency(_core.Segment(64), "l").record(outcome, 1.0, T0)


RESULTS = st.lists(
    st.tuples(
        st.sampled_from([OK, OK, OK, FAILURE, THROTTLED, USELESS, IGNORED]),
        st.floats(2.0**-13, 900.0, width=32),
        st.one_of(st.integers(0, 500), st.sampled_from([5000, 60_000, 3_600_000])),
    ),
    max_size=100,
)


@given(results=RESULTS, tau=st.sampled_from([0.5, 10.0, 300.0]))
@settings(deadline=None, max_examples=100)
def test_native_answers_as_the_twin(results: list[tuple[int, float, int]], tau: float) -> None:
    native = _core.Latency(_core.Segment(64), "l", tau_s=tau)
    oracle = twin.Latency(twin.Segment(), "l", tau_s=tau)
    now = T0
    for outcome, x, pause in results:
        now += pause * MS
        for latency in (native, oracle):
            latency.record(outcome, x, now)
        assert native.ewma(now) == near(oracle.ewma(now))
        assert native.success_rate(now) == near(oracle.success_rate(now))
        assert native.spread == pytest.approx(oracle.spread, rel=1e-4)
        assert native.health(now) == (oracle.health(now)[0], near(oracle.health(now)[1]))
        later = now + 13 * SECOND
        assert native.health(later)[0] == pytest.approx(oracle.health(later)[0], abs=1)
        assert (native.count, native.failures) == (oracle.count, oracle.failures)
    assert native.window() == near(oracle.window())
    assert native.samples() == pytest.approx(oracle.samples(), rel=1e-6)
    assert native.ewma(now + 7 * SECOND) == near(oracle.ewma(now + 7 * SECOND))


@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 3000)), max_size=120))
@settings(deadline=None, max_examples=100)
def test_native_budget_answers_as_the_twin(steps: list[tuple[bool, int]]) -> None:
    native = _core.RetryBudget(_core.Segment(64), "r")
    oracle = twin.RetryBudget(twin.Segment(), "r")
    now = T0
    for take, pause in steps:
        now += pause * MS
        balance = oracle.balance(now)
        assert native.balance(now) == near(balance)
        if not take:
            native.deposit(now)
            oracle.deposit(now)
        elif abs(balance - 1) > 1e-4:  # nearer than that a 32-bit float may fall on either side
            assert native.withdraw(now) == oracle.withdraw(now)


@given(
    xs=st.lists(
        st.tuples(st.one_of(st.none(), st.floats(2.0**-7, 100.0, width=32)), st.booleans()), max_size=80
    )
)
@settings(deadline=None, max_examples=100)
def test_native_first_token_limit_is_the_twins(xs: list[tuple[float | None, bool]]) -> None:
    native = _core.Latency(_core.Segment(64), "l")
    oracle = twin.Latency(twin.Segment(), "l")
    for x, reasoning in xs:
        before = native.ttft_timeout(reasoning)
        for latency in (native, oracle):
            if x is None:
                latency.record_ttft_timeout(reasoning)
            else:
                latency.record_ttft(x, reasoning)
        for kind in (False, True):
            assert native.ttft_timeout(kind) == near(oracle.ttft_timeout(kind))
        assert x is not None or native.ttft_timeout(reasoning) >= before
