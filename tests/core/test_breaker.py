"""Breakers: when they open, who probes, when they close, what is too late; then native against twin."""

from __future__ import annotations

from typing import Any

import pytest
import twin
from hypothesis import given, settings
from hypothesis import strategies as st
from twin import CLOSED, FAILURE, HALF_OPEN, IGNORED, OK, OPEN, THROTTLED, USELESS

from fastroute import _core

MS = 1_000_000
SECOND = 1000 * MS
DAY = 86_400 * SECOND
T0 = 1_000_000 * SECOND  # the core keeps whole ms; so do these tests unless they mean to check that
NEVER = 2**53


def call(breaker: Any, outcome: int, now: int) -> int:
    """One call let through and ended at one instant."""
    ticket = breaker.allow(now)
    assert ticket >= 0
    change: int = breaker.record(ticket, outcome, now)
    return change


def trip(breaker: Any, now: int, failures: int = 5) -> int:
    """Opens a closed breaker; the moment at which it lets a probe through."""
    for _ in range(failures - 1):
        assert call(breaker, FAILURE, now) == -1
    assert call(breaker, FAILURE, now) == OPEN
    until: int = now + breaker.reopens_in(now)
    return until


def close(breaker: Any, now: int, probes: int = 2) -> None:
    for _ in range(probes - 1):
        assert call(breaker, OK, now) == -1
    assert call(breaker, OK, now) == CLOSED


@pytest.fixture
def breaker(core: Any, segment: Any) -> Any:
    return core.Breaker(segment, "b")


class TestOpening:
    def test_by_failures_in_a_row_exactly(self, breaker: Any) -> None:
        for _ in range(3):
            for _ in range(4):
                assert call(breaker, FAILURE, T0) == -1
            assert call(breaker, OK, T0) == -1  # one good result and the row starts anew
        assert breaker.state(T0) == CLOSED
        # 12 of 15 failed so far: only the row counts while the window has fewer than 20.
        for _ in range(4):
            assert call(breaker, FAILURE, T0) == -1
        assert call(breaker, FAILURE, T0) == OPEN
        assert breaker.state(T0) == OPEN
        assert breaker.allow(T0) < 0

    @pytest.mark.parametrize(
        ("calls", "failures", "opens"),
        [
            (20, 9, False),
            (20, 10, True),
            (19, 10, False),
            (400, 199, False),
            (400, 200, True),
            (401, 200, False),
        ],
    )
    def test_by_rate_exactly(self, core: Any, segment: Any, calls: int, failures: int, opens: bool) -> None:
        """At the threshold it opens; below it, or with too few results, it does not. A failure comes last."""
        breaker = core.Breaker(segment, "b", failures=255, min_calls=20)
        changes = {call(breaker, OK, T0) for _ in range(calls - failures)}
        changes |= {call(breaker, FAILURE, T0) for _ in range(failures - 1)}
        assert changes == {-1}
        assert call(breaker, FAILURE, T0) == (OPEN if opens else -1)

    @pytest.mark.parametrize("rate", [0.1, 0.3, 0.7, 1.0])
    def test_other_rates(self, core: Any, segment: Any, rate: float) -> None:
        breaker = core.Breaker(segment, "b", failures=255, rate=rate, min_calls=10)
        failures = round(rate * 10)
        assert {call(breaker, OK, T0) for _ in range(10 - failures)} <= {-1}
        assert {call(breaker, FAILURE, T0) for _ in range(failures - 1)} <= {-1}
        assert call(breaker, FAILURE, T0) == OPEN

    def test_failures_leave_the_window(self, core: Any, segment: Any) -> None:
        breaker = core.Breaker(segment, "b", failures=255, min_calls=20)
        for _ in range(15):
            call(breaker, FAILURE, T0)
        later = T0 + 30 * SECOND
        for _ in range(11):
            assert call(breaker, OK, later) == -1
        for _ in range(9):
            assert call(breaker, FAILURE, later) == -1
        assert call(breaker, FAILURE, later + SECOND) == -1  # 10 of 21

    def test_window_without_traffic_says_nothing(self, breaker: Any) -> None:
        call(breaker, FAILURE, T0)
        for idle in (SECOND, 31 * SECOND, DAY):
            assert breaker.state(T0 + idle) == CLOSED
            assert breaker.allow(T0 + idle) >= 0
        assert call(breaker, OK, T0 + DAY) == -1

    @pytest.mark.parametrize("up", [1, 9, 12, 15, 100, 290, 300, 400, 600, 1000])
    @pytest.mark.parametrize("window_s", [0.1, 1.0, 30.0])
    def test_window_counts_at_any_uptime(self, core: Any, segment: Any, up: int, window_s: float) -> None:
        breaker = core.Breaker(segment, "b", failures=255, min_calls=20, window_s=window_s)
        now = up * DAY
        changes = {call(breaker, OK, now) for _ in range(10)} | {
            call(breaker, FAILURE, now) for _ in range(9)
        }
        assert changes == {-1}
        assert call(breaker, FAILURE, now) == OPEN

    @pytest.mark.parametrize("idle", [DAY, 12 * DAY, 15 * DAY, 300 * DAY, 400 * DAY])
    def test_window_counts_after_any_idle_time(self, core: Any, segment: Any, idle: int) -> None:
        breaker = core.Breaker(segment, "b", failures=255, min_calls=20, window_s=1.0)
        for _ in range(30):
            call(breaker, OK, T0)
        now = T0 + idle
        assert {call(breaker, FAILURE, now) for _ in range(19)} == {-1}
        assert call(breaker, FAILURE, now) == OPEN

    @pytest.mark.parametrize("windows", [1, 2, 7])
    def test_a_result_that_comes_whole_windows_late_does_not_erase_newer_ones(
        self, core: Any, segment: Any, windows: int
    ) -> None:
        """A thread may stop between the reading of its clock and its result, which then has an old time."""
        breaker = core.Breaker(segment, "b", failures=255, min_calls=20)
        late = breaker.allow(T0)
        now = T0 + windows * 30 * SECOND  # the same bucket of the ring
        changes = {call(breaker, OK, now) for _ in range(10)} | {
            call(breaker, FAILURE, now) for _ in range(9)
        }
        assert breaker.record(late, OK, T0) == -1
        assert changes == {-1}
        assert call(breaker, FAILURE, now) == OPEN

    def test_throttled_and_ignored_do_not_count(self, breaker: Any) -> None:
        for outcome in (THROTTLED, USELESS, IGNORED):
            for _ in range(300):
                assert call(breaker, outcome, T0) == -1
        assert breaker.state(T0) == CLOSED
        trip(breaker, T0)  # and they did not shorten the way either

    def test_throttled_does_not_break_a_row(self, breaker: Any) -> None:
        for _ in range(4):
            call(breaker, FAILURE, T0)
            call(breaker, THROTTLED, T0)
        assert call(breaker, FAILURE, T0) == OPEN


class TestOpen:
    def test_refusal_says_how_long(self, breaker: Any) -> None:
        until = trip(breaker, T0)
        assert breaker.allow(T0) == -(until - T0)
        assert breaker.allow(until - 1) == -1
        assert breaker.state(until - 1) == OPEN
        assert breaker.state(until) == HALF_OPEN
        assert breaker.reopens_in(until) == 0
        assert breaker.allow(until) >= 0

    def test_late_results_neither_prolong_nor_close(self, breaker: Any) -> None:
        early = [breaker.allow(T0) for _ in range(100)]
        until = trip(breaker, T0)
        for i, ticket in enumerate(early):
            assert breaker.record(ticket, FAILURE if i % 2 else OK, T0 + SECOND) == -1
        assert breaker.state(T0 + SECOND) == OPEN
        assert breaker.allow(T0 + SECOND) == -(until - T0 - SECOND)

    def test_late_results_do_not_decide_a_probe(self, breaker: Any) -> None:
        early = [breaker.allow(T0) for _ in range(3)]
        until = trip(breaker, T0)
        probe = breaker.allow(until)
        for ticket, outcome in zip(early, (OK, FAILURE, IGNORED), strict=True):
            assert breaker.record(ticket, outcome, until) == -1
        assert breaker.state(until) == HALF_OPEN
        assert breaker.allow(until) < 0  # the probe is still the only one
        assert breaker.record(probe, OK, until) == -1
        close(breaker, until, probes=1)
        # Nor do results of the time before count against the breaker now closed.
        for _ in range(5):
            assert breaker.record(early[0], FAILURE, until) == -1
        assert breaker.state(until) == CLOSED

    def test_native_open_times_are_drawn_from_half_to_all(self) -> None:
        segment = _core.Segment(1024)
        drawn = []
        for i in range(200):
            breaker = _core.Breaker(segment, f"b{i}", open_s=8.0)
            drawn.append((trip(breaker, T0) - T0) / SECOND)
        assert 4.0 <= min(drawn) < 4.4
        assert 7.6 < max(drawn) <= 8.0
        assert 5.7 < sum(drawn) / len(drawn) < 6.3

    @pytest.mark.parametrize("offset", [0, 1, 999_999])
    def test_native_open_time_is_whole_ms_at_most(self, offset: int) -> None:
        breaker = _core.Breaker(_core.Segment(64), "b", open_s=0.004)
        opened = T0 + offset
        assert 2 * MS <= trip(breaker, opened) - opened <= 5 * MS

    def test_open_time_grows_to_its_limit_and_starts_anew_when_healthy(self, core: Any, segment: Any) -> None:
        breaker = core.Breaker(segment, "b", open_s=5.0, max_open_s=60.0, reset_s=60.0, probes_to_close=1)
        now = T0
        until = trip(breaker, now)
        for d in (10, 20, 40, 60, 60, 60):
            now = until
            assert call(breaker, FAILURE, now) == OPEN  # a failed probe
            until = now + breaker.reopens_in(now)
            assert d * SECOND // 2 <= until - now <= d * SECOND
        # Closed for less than reset_s: still part of the same trouble.
        now = until
        close(breaker, now, probes=1)
        call(breaker, OK, now + 59 * SECOND)
        now += 60 * SECOND - MS
        assert 30 * SECOND <= trip(breaker, now) - now <= 60 * SECOND
        # Closed for reset_s: forgotten.
        now += breaker.reopens_in(now)
        close(breaker, now, probes=1)
        now += 60 * SECOND
        assert 2.5 * SECOND <= trip(breaker, now) - now <= 5 * SECOND

    def test_flapping_at_half_grows_the_open_time(self, core: Any, segment: Any) -> None:
        breaker = core.Breaker(segment, "b", failures=1, probes_to_close=1)
        now, lengths = T0, []
        for _ in range(9):
            assert call(breaker, FAILURE, now) == OPEN
            lengths.append(breaker.reopens_in(now))
            now += lengths[-1]
            close(breaker, now, probes=1)
        assert 150 * SECOND <= lengths[-1] <= 300 * SECOND
        for i, length in enumerate(lengths):
            d = min(300, 5 * 2**i) * SECOND
            assert d // 2 <= length <= d


class TestProbes:
    def test_one_at_a_time(self, breaker: Any) -> None:
        until = trip(breaker, T0)
        probe = breaker.allow(until)
        assert probe >= 0
        assert [breaker.allow(until + i) < 0 for i in range(50)] == [True] * 50
        assert breaker.record(probe, OK, until) == -1
        second = breaker.allow(until)
        assert second >= 0
        assert breaker.allow(until) < 0
        assert breaker.record(second, OK, until) == CLOSED
        assert all(breaker.allow(until) >= 0 for _ in range(50))

    def test_failed_probe_opens_again_for_longer(self, breaker: Any) -> None:
        until = trip(breaker, T0)
        assert call(breaker, OK, until) == -1
        assert call(breaker, FAILURE, until) == OPEN
        assert 5 * SECOND <= breaker.reopens_in(until) <= 10 * SECOND
        # The first probe's success is forgotten: two are needed again.
        until += breaker.reopens_in(until)
        assert call(breaker, OK, until) == -1
        assert call(breaker, OK, until) == CLOSED

    @pytest.mark.parametrize("end", ["cancel", IGNORED, THROTTLED, USELESS])
    def test_undecided_probe_gives_its_place_back(self, breaker: Any, end: Any) -> None:
        until = trip(breaker, T0)
        for _ in range(5):
            probe = breaker.allow(until)
            assert probe >= 0
            if end == "cancel":
                breaker.cancel(probe, until)
            else:
                assert breaker.record(probe, end, until) == -1
            assert breaker.state(until) == HALF_OPEN
        close(breaker, until)

    def test_lost_probe_is_replaced_when_its_lease_ends(self, breaker: Any) -> None:
        until = trip(breaker, T0)
        lost = breaker.allow(until)
        assert breaker.allow(until + SECOND) == -34 * SECOND
        assert breaker.allow(until + 35 * SECOND - MS) == -MS
        again = until + 35 * SECOND
        probe = breaker.allow(again)
        assert probe >= 0
        # What the lost one says at last is too late: it neither opens nor closes nor takes the other's place.
        for outcome in (FAILURE, OK, IGNORED):
            assert breaker.record(lost, outcome, again) == -1
        assert breaker.state(again) == HALF_OPEN
        assert breaker.allow(again) < 0
        assert breaker.record(probe, OK, again) == -1
        close(breaker, again, probes=1)

    def test_a_probe_counts_once(self, breaker: Any) -> None:
        until = trip(breaker, T0)
        probe = breaker.allow(until)
        assert breaker.record(probe, OK, until) == -1
        assert breaker.record(probe, OK, until) == -1
        assert breaker.record(probe, FAILURE, until) == -1
        assert breaker.state(until) == HALF_OPEN

    def test_closing_clears_the_window(self, core: Any, segment: Any) -> None:
        breaker = core.Breaker(segment, "b", failures=255, min_calls=20, open_s=0.01, probes_to_close=1)
        until = trip(breaker, T0, failures=20)
        close(breaker, until, probes=1)
        for _ in range(19):
            assert call(breaker, FAILURE, until) == -1
        assert call(breaker, FAILURE, until) == OPEN


class TestAround:
    def test_ramp_rises_after_closing(self, breaker: Any) -> None:
        assert breaker.ramp(T0) == 1.0
        until = trip(breaker, T0)
        close(breaker, until)
        assert breaker.ramp(until) == pytest.approx(0.1)
        assert breaker.ramp(until + 5 * SECOND) == pytest.approx(0.55)
        assert breaker.ramp(until + 10 * SECOND) == 1.0
        assert breaker.ramp(until + DAY) == 1.0

    def test_block_extends_only_and_leaves_the_state_alone(self, breaker: Any) -> None:
        assert breaker.blocked(T0) == (0, 0)
        breaker.block(T0 + 10 * SECOND, 7)
        breaker.block(T0 + 5 * SECOND, 9)
        assert breaker.blocked(T0) == (10 * SECOND, 7)
        breaker.block(T0 + 20 * SECOND, 9)
        assert breaker.blocked(T0 + SECOND) == (19 * SECOND, 9)
        assert breaker.state(T0) == CLOSED
        assert breaker.blocked(T0 + 20 * SECOND) == (0, 0)
        breaker.unblock()
        assert breaker.blocked(T0) == (0, 0)

    def test_objects_of_one_name_are_one_breaker(self, core: Any, segment: Any) -> None:
        one, other = core.Breaker(segment, "b"), core.Breaker(segment, "b", failures=2)
        call(one, FAILURE, T0)
        assert call(other, FAILURE, T0) == OPEN
        assert one.state(T0) == OPEN
        assert core.Breaker(segment, "c").state(T0) == CLOSED

    @pytest.mark.parametrize(
        "rules",
        [
            {"failures": 0},
            {"rate": 0.0},
            {"rate": 1.1},
            {"rate": float("nan")},
            {"min_calls": 0},
            {"window_s": 0.0},
            {"window_s": float("inf")},
            {"open_s": -1.0},
            {"open_s": 10.0, "max_open_s": 5.0},
            {"probe_lease_s": 0.0},
            {"probes_to_close": 0},
            {"ramp_s": float("nan")},
            {"reset_s": -1.0},
        ],
        ids=repr,
    )
    def test_impossible_rules_are_refused_by_name(self, rules: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=list(rules)[-1]):
            _core.Breaker(_core.Segment(64), "b", **rules)

    @pytest.mark.parametrize("outcome", [-1, 5, 100])
    def test_unknown_outcomes_are_refused(self, outcome: int) -> None:
        breaker = _core.Breaker(_core.Segment(64), "b")
        with pytest.raises(ValueError, match="outcome"):
            breaker.record(breaker.allow(T0), outcome, T0)


RULES = st.fixed_dictionaries(
    {
        "failures": st.integers(1, 6),
        "rate": st.sampled_from([0.1, 1 / 3, 0.5, 0.9, 1.0]),
        "min_calls": st.integers(1, 12),
        "window_s": st.sampled_from([0.1, 1.0, 30.0]),
        "open_s": st.sampled_from([0.01, 1.0, 5.0]),
        "max_open_s": st.sampled_from([5.0, 300.0]),
        "reset_s": st.sampled_from([0.0, 2.0, 60.0]),
        "probe_lease_s": st.sampled_from([0.05, 35.0]),
        "probes_to_close": st.integers(1, 3),
        "ramp_s": st.sampled_from([0.0, 10.0]),
    }
)
# What happens, which of the calls under way it happens to, and how many ms later.
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["allow", "allow", "ok", "ok", "failure", "failure", "failure", "other", "cancel"]),
        st.integers(0, 7),
        st.one_of(st.just(0), st.integers(0, 200), st.sampled_from([1000, 3000, 5000, 35_000, 400_000, -1])),
    ),
    min_size=10,
    max_size=120,
)


@given(rules=RULES, steps=STEPS)
@settings(deadline=None, max_examples=120)
def test_native_answers_as_the_twin(rules: dict[str, Any], steps: list[tuple[str, int, int]]) -> None:
    native = _core.Breaker(_core.Segment(64), "b", **rules)
    oracle = twin.Breaker(twin.Segment(), "b", **rules)
    under_way: list[tuple[int, int]] = []
    now = T0
    for step, (what, which, pause) in enumerate(steps):
        # A pause of -1: to the very end of the opening, where the probe is due.
        now += pause * MS if pause >= 0 else oracle.reopens_in(now)
        where = (step, what, now - T0)
        if what == "allow" or not under_way:
            tickets = native.allow(now), oracle.allow(now)
            assert (tickets[0] >= 0) == (tickets[1] >= 0), where
            if tickets[0] < 0:
                assert tickets[0] == tickets[1], where
            else:
                assert tickets[0] & 1 == tickets[1] & 1, where
                under_way.append(tickets)
        else:
            mine, its = under_way[which % len(under_way)]
            if which % 3:  # else it stays and reports again some day
                under_way.remove((mine, its))
            if what == "cancel":
                native.cancel(mine, now)
                oracle.cancel(its, now)
            else:
                outcome = {"ok": OK, "failure": FAILURE, "other": (THROTTLED, IGNORED, USELESS)[which % 3]}[
                    what
                ]
                changes = native.record(mine, outcome, now), oracle.record(its, outcome, now)
                assert changes[0] == changes[1], where
                if changes[0] == OPEN:
                    oracle.open_until(now + native.reopens_in(now))
        assert native.state(now) == oracle.state(now), where
        assert native.reopens_in(now) == oracle.reopens_in(now), where
        assert native.ramp(now) == pytest.approx(oracle.ramp(now)), where
