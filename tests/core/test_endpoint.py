"""Endpoints: admission of all or nothing, release of everything at the end; then native against twin."""

from __future__ import annotations

import heapq
import math
import mmap
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import twin
from hypothesis import given, settings
from hypothesis import strategies as st
from twin import (
    BLOCKED,
    BREAKER,
    BUSY,
    CLOSED,
    FAILURE,
    HALF_OPEN,
    IGNORED,
    OK,
    OPEN,
    REQUESTS,
    THROTTLED,
    TOKENS,
    TOO_LARGE,
    USELESS,
)

from fastroute import _core

MS = 1_000_000
SECOND = 1000 * MS
MINUTE = 60 * SECOND
T0 = 1_000_000 * SECOND

Make = Callable[..., Any]


def refusal(answer: int) -> tuple[int, int]:
    """(reason, wait in ns) of a negative answer."""
    assert answer < 0
    return -answer & 7, -answer >> 3


def taken(endpoint: Any, now: int) -> tuple[Any, ...]:
    """All that an admission takes."""
    return (
        endpoint.in_flight,
        endpoint.available_requests(now),
        endpoint.available_tokens(now),
        endpoint.usage(now),
    )


@pytest.fixture
def make(core: Any, segment: Any) -> Make:
    def make(name: str = "e", **settings: Any) -> Any:
        return core.Endpoint(segment, name, **settings)

    return make


class TestAdmit:
    def test_takes_permit_request_and_tokens(self, make: Make) -> None:
        endpoint = make(rpm=60, request_burst=10, tpm=6000, token_burst=1000)
        ticket = endpoint.admit(300, T0)
        assert ticket >= 0
        assert taken(endpoint, T0) == (1, 9, 700, pytest.approx(300))
        assert endpoint.finish(ticket, OK, 0.5, -100, T0) == 0
        assert taken(endpoint, T0) == (0, 9, 800, pytest.approx(200))
        assert endpoint.counts == (1, 0)
        assert endpoint.ewma(T0) == pytest.approx(0.5)

    def test_without_limits_everything_fits(self, make: Make) -> None:
        endpoint = make()
        for _ in range(20):
            assert endpoint.finish(endpoint.admit(2**40, T0), OK, 0.1, 2**40, T0) == 0

    @pytest.mark.parametrize("tokens", [0, 1, 100])
    def test_requests_refused_take_no_tokens(self, make: Make, tokens: int) -> None:
        endpoint = make(rpm=60, request_burst=2, tpm=6000, token_burst=1000)
        endpoint.admit(0, T0)
        endpoint.admit(0, T0)
        before = taken(endpoint, T0)
        assert refusal(endpoint.admit(tokens, T0)) == (REQUESTS, SECOND)
        assert taken(endpoint, T0) == before

    def test_tokens_refused_take_no_request(self, make: Make) -> None:
        endpoint = make(rpm=60, request_burst=10, tpm=60, token_burst=100)
        endpoint.admit(90, T0)
        before = taken(endpoint, T0)
        for _ in range(20):
            assert refusal(endpoint.admit(15, T0)) == (TOKENS, 5 * SECOND)
        assert taken(endpoint, T0) == before
        assert endpoint.admit(15, T0 + 5 * SECOND) >= 0

    def test_each_limit_comes_back_in_its_own_time(self, make: Make) -> None:
        """One that is full again does nothing for the other, and one that is empty takes nothing from it."""
        endpoint = make(rpm=60, request_burst=2, tpm=60, token_burst=100)
        for _ in range(2):
            endpoint.finish(endpoint.admit(50, T0), OK, 0.1, 0, T0)
        assert (endpoint.available_requests(T0), endpoint.available_tokens(T0)) == (0, 0)
        later = T0 + 10 * SECOND
        assert (endpoint.available_requests(later), endpoint.available_tokens(later)) == (2, 10)
        assert refusal(endpoint.admit(50, later)) == (TOKENS, 40 * SECOND)
        assert [endpoint.admit(0, later) >= 0 for _ in range(2)] == [True, True]
        assert refusal(endpoint.admit(0, later)) == (REQUESTS, SECOND)
        latest = T0 + 100 * SECOND
        assert (endpoint.available_requests(latest), endpoint.available_tokens(latest)) == (2, 100)

    @pytest.mark.parametrize(
        ("settings", "tokens"),
        [
            ({"tpm": 6000, "token_burst": 100}, 101),
            ({"rpm": 0}, 0),
            ({"tpm": 0}, 1),
            ({"max_in_flight": 0}, 0),
        ],
        ids=repr,
    )
    def test_never_is_said_at_once(self, make: Make, settings: dict[str, int], tokens: int) -> None:
        endpoint = make(**settings)
        for answer in (
            endpoint.admit(tokens, T0),
            endpoint.wait(tokens, T0),
            endpoint.reserve(tokens, MINUTE, T0),
        ):
            assert refusal(answer) == (TOO_LARGE, 0)
        assert endpoint.in_flight == 0

    def test_no_tokens_pass_where_none_are_allowed(self, make: Make) -> None:
        assert make(tpm=0).admit(0, T0) >= 0

    @pytest.mark.parametrize("limit", [1, 2, 27, 28, 29, 200])
    def test_in_flight_is_exact(self, make: Make, limit: int) -> None:
        endpoint = make(max_in_flight=limit)
        tickets = [endpoint.admit(0, T0) for _ in range(limit)]
        assert min(tickets) >= 0
        assert len(set(tickets)) == limit
        assert endpoint.in_flight == limit
        assert refusal(endpoint.admit(0, T0)) == (BUSY, 0)
        assert refusal(endpoint.wait(0, T0)) == (BUSY, 0)
        endpoint.finish(tickets[limit // 2], OK, 0.1, 0, T0)
        assert endpoint.admit(0, T0) >= 0
        assert refusal(endpoint.admit(0, T0)) == (BUSY, 0)

    def test_busy_takes_nothing(self, make: Make) -> None:
        endpoint = make(rpm=60, request_burst=10, tpm=6000, token_burst=1000, max_in_flight=1)
        endpoint.admit(10, T0)
        before = taken(endpoint, T0)
        assert refusal(endpoint.admit(10, T0)) == (BUSY, 0)
        assert taken(endpoint, T0) == before

    def test_blocked_says_how_long(self, make: Make) -> None:
        endpoint = make(rpm=60, request_burst=10)
        endpoint.block(T0 + 300 * SECOND, 3)
        assert refusal(endpoint.admit(0, T0)) == (BLOCKED, 300 * SECOND)
        assert endpoint.blocked(T0) == (300 * SECOND, 3)
        assert taken(endpoint, T0)[:2] == (0, 10)
        assert endpoint.state(T0) == CLOSED
        assert endpoint.admit(0, T0 + 300 * SECOND) >= 0
        endpoint.block(T0 + 900 * SECOND, 3)
        endpoint.unblock()
        assert endpoint.admit(0, T0 + 300 * SECOND) >= 0

    def test_wait_takes_nothing(self, make: Make) -> None:
        endpoint = make(rpm=60, request_burst=1, tpm=60, token_burst=10, max_in_flight=1)
        before = taken(endpoint, T0)
        assert [endpoint.wait(10, T0) for _ in range(5)] == [0] * 5
        assert taken(endpoint, T0) == before


class TestBreakerAtTheDoor:
    def trip(self, endpoint: Any, now: int) -> int:
        flags = [endpoint.finish(endpoint.admit(0, now), FAILURE, 0.0, 0, now) for _ in range(5)]
        assert flags == [0, 0, 0, 0, 1]
        until: int = now + endpoint.reopens_in(now)
        return until

    def test_opening_and_closing_are_told_once(self, make: Make) -> None:
        endpoint = make()
        until = self.trip(endpoint, T0)
        assert refusal(endpoint.admit(0, T0)) == (BREAKER, until - T0)
        assert endpoint.state(until) == HALF_OPEN
        probe = endpoint.admit(0, until)
        assert refusal(endpoint.admit(0, until))[0] == BREAKER
        assert endpoint.in_flight == 1
        assert endpoint.finish(probe, OK, 0.1, 0, until) == 0
        assert endpoint.finish(endpoint.admit(0, until), OK, 0.1, 0, until) == 2
        assert endpoint.state(until) == CLOSED
        assert endpoint.finish(endpoint.admit(0, until), OK, 0.1, 0, until) == 0

    @pytest.mark.parametrize(
        ("settings", "reason"),
        [
            ({"max_in_flight": 1}, BUSY),
            ({"rpm": 60, "request_burst": 5}, REQUESTS),
            ({"rpm": 600, "request_burst": 100, "tpm": 1, "token_burst": 5}, TOKENS),
        ],
        ids=["busy", "requests", "tokens"],
    )
    def test_a_refused_probe_leaves_the_place_free(self, make: Make, settings: Any, reason: int) -> None:
        """A caller let through by the breaker but turned away by a limit holds no probe."""
        endpoint = make(open_s=0.002, probes_to_close=1, **settings)
        late = endpoint.admit(5, T0)
        if reason != BUSY:
            endpoint.finish(late, FAILURE, 0.0, 0, T0)
        else:  # its one permit is held while other objects of that name fail
            other = make(open_s=0.002, probes_to_close=1, max_in_flight=2)
            for _ in range(5):
                other.finish(other.admit(0, T0), FAILURE, 0.0, 0, T0)
        for _ in range(4 if reason != BUSY else 0):
            endpoint.finish(endpoint.admit(0, T0), FAILURE, 0.0, 0, T0)
        now = T0 + 2 * MS
        assert endpoint.state(now) == HALF_OPEN
        for _ in range(3):
            assert refusal(endpoint.admit(5, now))[0] == reason
        if reason == BUSY:
            endpoint.finish(late, IGNORED, 0.0, 0, now)
        now += 5 * MINUTE
        assert endpoint.finish(endpoint.admit(5, now), OK, 0.1, 0, now) == 2

    @pytest.mark.parametrize("outcome", [THROTTLED, USELESS, IGNORED])
    def test_throttling_does_not_open(self, make: Make, outcome: int) -> None:
        endpoint = make()
        for _ in range(50):
            assert endpoint.finish(endpoint.admit(0, T0), outcome, 0.0, 0, T0) == 0
        assert endpoint.state(T0) == CLOSED
        assert endpoint.counts == (0, 0)

    def test_undone_probe_decides_nothing(self, make: Make) -> None:
        endpoint = make()
        until = self.trip(endpoint, T0)
        for _ in range(3):
            endpoint.undo(endpoint.admit(0, until), 0, until)
        assert endpoint.state(until) == HALF_OPEN
        assert endpoint.in_flight == 0
        assert endpoint.admit(0, until) >= 0

    def test_a_probe_has_the_time_that_its_attempt_has_and_no_more(self, make: Make) -> None:
        endpoint = make(failures=1, probe_lease_s=35.0, probes_to_close=2)
        closed = endpoint.admit(0, T0)
        endpoint.extend(closed, 1000.0, T0)  # no probe: nothing to extend
        endpoint.finish(closed, FAILURE, 0.0, 0, T0)
        now = T0 + endpoint.reopens_in(T0)
        lost = endpoint.admit(0, now)
        endpoint.extend(lost, 20.0, now)  # never shorter
        assert refusal(endpoint.admit(0, now)) == (BREAKER, 35 * SECOND)
        endpoint.extend(lost, 95.0, now)
        assert refusal(endpoint.admit(0, now)) == (BREAKER, 95 * SECOND)
        later = now + 95 * SECOND
        probe = endpoint.admit(0, later)  # the first one hangs
        assert probe >= 0
        endpoint.extend(lost, 500.0, later)  # it is no longer the probe
        assert refusal(endpoint.admit(0, later)) == (BREAKER, 35 * SECOND)
        assert (endpoint.began(lost, later), endpoint.began(probe, later)) == (0, 0)
        last = endpoint.admit(0, later)
        assert endpoint.began(last, later) == 2
        assert endpoint.state(later) == CLOSED
        for ticket in (lost, probe, last):
            assert endpoint.finish(ticket, FAILURE, 0.0, 0, later) == 0  # too late to matter
        assert endpoint.state(later) == CLOSED

    @pytest.mark.parametrize("outcome", [OK, IGNORED])
    def test_a_probe_that_has_reported_has_no_lease_to_extend(self, make: Make, outcome: int) -> None:
        endpoint = make(failures=1, probe_lease_s=35.0, probes_to_close=2)
        endpoint.finish(endpoint.admit(0, T0), FAILURE, 0.0, 0, T0)
        now = T0 + endpoint.reopens_in(T0)
        probe = endpoint.admit(0, now)
        endpoint.finish(probe, outcome, 0.1, 0, now)
        endpoint.extend(probe, 95.0, now)  # its place stays free for the next one
        assert endpoint.admit(0, now) >= 0

    def test_an_opening_may_be_ended_early_and_has_one_probe_then(self, make: Make) -> None:
        endpoint = make()
        assert not endpoint.hurry(T0)
        self.trip(endpoint, T0)
        now = T0 + SECOND
        assert endpoint.hurry(now)
        assert endpoint.state(now) == HALF_OPEN
        assert endpoint.admit(0, now) >= 0
        assert refusal(endpoint.admit(0, now))[0] == BREAKER
        assert not endpoint.hurry(now)


class TestAdaptive:
    def burden(self, endpoint: Any, now: int) -> list[int]:
        """As many tickets as it gives."""
        tickets = []
        while (ticket := endpoint.admit(0, now)) >= 0:
            tickets.append(ticket)
        assert refusal(ticket) == (BUSY, 0) == refusal(endpoint.wait(0, now))
        return tickets

    def test_begins_at_twenty_and_grows_by_what_succeeds(self, make: Make) -> None:
        endpoint = make(adaptive=True, max_in_flight=50)
        tickets = self.burden(endpoint, T0)
        assert len(tickets) == 20
        for ticket in tickets:
            endpoint.finish(ticket, OK, 0.1, 0, T0)
        # Only those that ended with more than half of the limit in use: ten of them.
        assert endpoint.bearable == pytest.approx(20 + 10 / 20.25, abs=0.001)

    def test_shrinks_by_a_tenth_once_a_second(self, make: Make) -> None:
        endpoint = make(adaptive=True)
        for after, limit in ((0, 18.0), (999, 18.0), (1000, 16.2), (1500, 16.2), (2000, 14.58)):
            now = T0 + after * MS
            endpoint.finish(endpoint.admit(0, now), THROTTLED, 0.0, 0, now)
            assert endpoint.bearable == pytest.approx(limit)
        assert len(self.burden(endpoint, T0 + 2000 * MS)) == 14

    def test_never_below_one_nor_above_the_limit(self, make: Make) -> None:
        endpoint = make(adaptive=True, max_in_flight=20, failures=255)
        tickets = self.burden(endpoint, T0)
        for ticket in tickets:
            endpoint.finish(ticket, OK, 0.1, 0, T0)
        assert endpoint.bearable == 20
        for second in range(60):
            now = T0 + second * SECOND
            endpoint.finish(endpoint.admit(0, now), THROTTLED, 0.0, 0, now)
        assert endpoint.bearable == 1
        assert len(self.burden(endpoint, T0 + 60 * SECOND)) == 1

    @staticmethod
    def crowd(endpoint: Any, latency: Callable[[int, int], float], seconds: float, now: int = T0) -> int:
        """As many calls as are let in, for so long, in simulated time; the time at its end."""
        ends: list[tuple[int, int, int, float]] = []
        number, end = 0, now + int(seconds * SECOND)
        while now < end:
            while (ticket := endpoint.admit(0, now)) >= 0:
                number += 1
                x = latency(endpoint.in_flight, number)
                heapq.heappush(ends, (now + int(x * SECOND), number, ticket, x))
            now, _, ticket, x = heapq.heappop(ends)
            endpoint.finish(ticket, OK, x, 0, now)
        for _, _, ticket, x in ends:
            endpoint.finish(ticket, OK, x, 0, now)
        return now

    def test_keeps_near_the_number_of_calls_from_which_latency_grows(self, make: Make) -> None:
        """Eight are served at once in 20 ms; with more, each takes longer in proportion."""
        endpoint = make(adaptive=True, max_in_flight=1000, tau_s=10.0)
        self.crowd(endpoint, lambda calls, _: 0.02 * max(1.0, calls / 8), 90)
        assert 6 <= endpoint.bearable <= 16
        assert max(endpoint.latencies()) <= 0.045

    def test_grows_where_latency_does_not(self, make: Make) -> None:
        endpoint = make(adaptive=True, max_in_flight=1000)
        self.crowd(endpoint, lambda calls, number: 0.2 + 0.2 * (number % 7), 120)
        assert endpoint.bearable > 60

    def test_answers_of_very_different_length_do_not_make_it_collapse(self, make: Make) -> None:
        lengths = random.Random(1)
        endpoint = make(adaptive=True, max_in_flight=1000)
        self.crowd(endpoint, lambda calls, _: 0.1 + lengths.expovariate(0.5), 600)
        assert endpoint.bearable > 20

    def test_what_the_caller_cut_short_says_nothing(self, make: Make) -> None:
        endpoint = make(adaptive=True)
        endpoint.finish(endpoint.admit(0, T0), IGNORED, 0.0, 0, T0)
        assert endpoint.bearable == 20
        assert make().bearable is None


class TestEnds:
    def test_finishing_twice_is_harmless(self, make: Make) -> None:
        endpoint = make(rpm=60, request_burst=10, tpm=6000, token_burst=1000, max_in_flight=2)
        first, second = endpoint.admit(100, T0), endpoint.admit(100, T0)
        endpoint.finish(first, FAILURE, 0.0, 50, T0)
        after = (*taken(endpoint, T0), endpoint.counts, endpoint.health(T0))
        for _ in range(5):
            assert endpoint.finish(first, FAILURE, 0.0, 50, T0) == 0
            endpoint.undo(first, 100, T0)
        assert (*taken(endpoint, T0), endpoint.counts, endpoint.health(T0)) == after
        # Nor does the old ticket give back the permit of who came next.
        third = endpoint.admit(0, T0)
        endpoint.finish(first, OK, 0.1, 0, T0)
        assert endpoint.in_flight == 2
        assert refusal(endpoint.admit(0, T0)) == (BUSY, 0)
        endpoint.finish(second, OK, 0.1, 0, T0)
        endpoint.finish(third, OK, 0.1, 0, T0)
        assert endpoint.in_flight == 0

    def test_undo_gives_all_back_and_counts_nothing(self, make: Make) -> None:
        endpoint = make(rpm=60, request_burst=10, tpm=6000, token_burst=1000)
        endpoint.undo(endpoint.admit(700, T0), 700, T0)
        assert taken(endpoint, T0) == (0, 10, 1000, pytest.approx(0, abs=1e-3))
        assert (endpoint.counts, endpoint.health(T0), endpoint.success_rate(T0)) == ((0, 0), (100, 0.0), 1.0)

    def test_more_tokens_than_estimated_are_a_debt(self, make: Make) -> None:
        endpoint = make(tpm=60, token_burst=100)
        endpoint.finish(endpoint.admit(100, T0), OK, 1.0, 50, T0)
        assert endpoint.available_tokens(T0) == -50
        assert refusal(endpoint.admit(1, T0)) == (TOKENS, 51 * SECOND)
        assert endpoint.admit(0, T0) >= 0

    def test_usage_fades_over_a_minute(self, make: Make) -> None:
        endpoint = make()
        endpoint.finish(endpoint.admit(1000, T0), OK, 1.0, 200, T0)
        assert endpoint.usage(T0) == pytest.approx(1200)
        assert endpoint.usage(T0 + MINUTE) == pytest.approx(1200 / math.e, rel=1e-4)


class TestReserve:
    def test_pays_both_or_neither(self, make: Make) -> None:
        endpoint = make(rpm=60, request_burst=1, tpm=60, token_burst=100)
        assert endpoint.reserve(100, 0, T0) == 0
        assert endpoint.reserve(100, 200 * SECOND, T0) == 100 * SECOND
        assert endpoint.available_requests(T0) == -1
        assert endpoint.available_tokens(T0) == -100
        assert refusal(endpoint.reserve(100, 100 * SECOND, T0)) == (TOKENS, 200 * SECOND)
        assert refusal(endpoint.reserve(0, SECOND, T0)) == (REQUESTS, 2 * SECOND)
        assert endpoint.available_requests(T0) == -1
        assert endpoint.available_tokens(T0) == -100

    def test_admits_what_was_paid_for(self, make: Make) -> None:
        endpoint = make(rpm=60, request_burst=1, tpm=60, token_burst=100)
        assert endpoint.reserve(100, 0, T0) == 0
        assert endpoint.admit(100, T0) < 0
        ticket = endpoint.admit(100, T0, True)
        assert ticket >= 0
        assert endpoint.available_tokens(T0) == 0
        endpoint.undo(ticket, 100, T0)
        assert taken(endpoint, T0)[:3] == (0, 1, 100)

    def test_unreserve_gives_both_back(self, make: Make) -> None:
        endpoint = make(rpm=60, request_burst=1, tpm=60, token_burst=100)
        endpoint.reserve(80, 0, T0)
        endpoint.unreserve(80, T0)
        assert taken(endpoint, T0)[:3] == (0, 1, 100)


class TestSettings:
    def test_tighten_takes_what_the_provider_says(self, make: Make) -> None:
        endpoint = make(rpm=60, request_burst=10, tpm=6000, token_burst=1000)
        endpoint.tighten(-1, 50, T0)
        assert taken(endpoint, T0)[1:3] == (10, 50)
        endpoint.tighten(2, -1, T0)
        assert taken(endpoint, T0)[1:3] == (2, 50)
        endpoint.tighten(9, 900, T0)
        assert taken(endpoint, T0)[1:3] == (2, 50)

    def test_what_the_provider_allows_paces_where_nothing_is_configured(self, make: Make) -> None:
        endpoint = make(tpm=6000, token_burst=1000)
        assert not endpoint.paced
        endpoint.pace(30, 60.0, 500, 60.0, T0)
        assert endpoint.paced
        assert taken(endpoint, T0)[1:3] == (30, 1000)  # tokens are configured
        endpoint.tighten(2, -1, T0)
        for _ in range(2):
            assert endpoint.admit(0, T0) >= 0
        assert refusal(endpoint.admit(0, T0)) == (REQUESTS, 2 * SECOND)
        assert endpoint.reserve(0, 3 * SECOND, T0) == 2 * SECOND
        endpoint.unreserve(0, T0)
        assert endpoint.admit(0, T0 + 2 * SECOND) >= 0

    def test_another_limit_keeps_what_was_used(self, make: Make) -> None:
        endpoint = make()
        endpoint.pace(30, 60.0, now=T0)
        for _ in range(10):
            endpoint.admit(0, T0)
        endpoint.pace(60, 60.0, now=T0)
        assert endpoint.available_requests(T0) == 50
        endpoint.pace(60, 10.0, now=T0)
        assert endpoint.available_requests(T0) == 50
        assert endpoint.available_requests(T0 + SECOND) == 56
        endpoint.pace(60, 11.0, now=T0)  # within what rounding makes of it
        assert endpoint.available_requests(T0 + SECOND) == 56
        endpoint.pace(-1, now=T0)
        assert endpoint.paced
        endpoint.pace(0, 60.0, 0, 60.0, T0)
        assert not endpoint.paced
        assert endpoint.available_requests(T0) == 2**63 - 1

    def test_a_request_above_the_provider_s_tokens_is_let_in_by_a_full_bucket(self, make: Make) -> None:
        endpoint = make()
        endpoint.pace(tokens=1000, now=T0)
        assert endpoint.wait(5000, T0) == 0
        assert endpoint.admit(5000, T0) >= 0
        assert refusal(endpoint.admit(5000, T0)) == (TOKENS, 60 * SECOND)

    def test_what_one_is_told_holds_for_all(self) -> None:
        segment = _core.Segment(64)
        first, second = (_core.Endpoint(segment, "e") for _ in range(2))
        first.pace(30, 60.0, now=T0)
        first.tighten(0, now=T0)
        assert refusal(second.admit(0, T0)) == (REQUESTS, 2 * SECOND)
        assert second.rpm == 30
        second.configure(rpm=600, request_burst=100)
        assert second.admit(0, T0 + 60 * SECOND) >= 0
        assert not second.paced

    def test_endpoints_of_one_name_are_one(self, make: Make) -> None:
        one, other = (
            make(max_in_flight=2, rpm=60, request_burst=3),
            make(max_in_flight=2, rpm=60, request_burst=3),
        )
        one.admit(0, T0)
        other.admit(0, T0)
        assert refusal(one.admit(0, T0)) == (BUSY, 0)
        assert one.in_flight == other.in_flight == 2
        assert one.available_requests(T0) == 1
        assert make("another").in_flight == 0

    def test_retry_budget_and_first_token_are_its_own(self, make: Make) -> None:
        endpoint = make()
        assert sum(endpoint.withdraw(T0) for _ in range(20)) == 10
        for _ in range(5):
            endpoint.deposit(T0)
        for _ in range(30):
            endpoint.record_ttft(8.0)
        assert endpoint.ttft_timeout() > 0.0
        assert make("another").withdraw(T0)

    def test_new_limits_apply_at_once_and_forget_nothing(self) -> None:
        endpoint = _core.Endpoint(_core.Segment(64), "e", rpm=60, request_burst=10, max_in_flight=100)
        tickets = [endpoint.admit(0, T0) for _ in range(8)]
        endpoint.configure(rpm=60, request_burst=5)
        assert refusal(endpoint.admit(0, T0))[0] == REQUESTS
        endpoint.configure(request_burst=20)
        assert endpoint.available_requests(T0) == 12
        assert endpoint.in_flight == len(tickets)

    def test_a_smaller_limit_counts_what_is_under_way(self) -> None:
        endpoint = _core.Endpoint(_core.Segment(64), "e", max_in_flight=100)
        tickets = [endpoint.admit(0, T0) for _ in range(100)]
        endpoint.configure(max_in_flight=50)
        for left, ticket in zip(range(99, 49, -1), tickets, strict=False):
            endpoint.finish(ticket, OK, 0.1, 0, T0)
            assert endpoint.in_flight == left
            assert refusal(endpoint.admit(0, T0)) == (BUSY, 0)
        endpoint.finish(tickets[50], OK, 0.1, 0, T0)
        assert endpoint.admit(0, T0) >= 0
        assert refusal(endpoint.admit(0, T0)) == (BUSY, 0)
        for ticket in tickets[51:]:
            endpoint.finish(ticket, OK, 0.1, 0, T0)
        assert endpoint.in_flight == 1

    @pytest.mark.parametrize(
        "settings",
        [
            {"max_in_flight": -1},
            {"max_in_flight": 4097},
            {"weight": 0.0},
            {"weight": -1.0},
            {"weight": math.nan},
            {"weight": math.inf},
            {"rpm": 10**9 + 1},
            {"failures": 0},
            {"tau_s": 0.0},
        ],
        ids=repr,
    )
    def test_impossible_settings_are_refused_and_change_nothing(self, settings: dict[str, Any]) -> None:
        segment = _core.Segment(64)
        with pytest.raises(ValueError):
            _core.Endpoint(segment, "new", **settings)
        endpoint = _core.Endpoint(segment, "e", rpm=60, request_burst=3, max_in_flight=2)
        with pytest.raises(ValueError):
            endpoint.configure(tpm=1, **settings)
        assert endpoint.admit(10**6, T0) >= 0

    @pytest.mark.parametrize(
        "call",
        [
            lambda e: e.admit(-1, T0),
            lambda e: e.admit(0, -1),
            lambda e: e.reserve(-1, 0, T0),
            lambda e: e.reserve(0, -1, T0),
            lambda e: e.unreserve(-1, T0),
            lambda e: e.finish(-1, OK, 0.0, 0, T0),
            lambda e: e.finish(0, 9, 0.0, 0, T0),
            lambda e: e.finish(0, OK, math.nan, 0, T0),
            lambda e: e.finish(0, OK, -1.0, 0, T0),
            lambda e: e.undo(-1, 0, T0),
            lambda e: e.tighten(-2, -1, T0),
        ],
    )
    def test_bad_arguments_are_refused(self, call: Any) -> None:
        endpoint = _core.Endpoint(_core.Segment(64), "e")
        with pytest.raises(ValueError):
            call(endpoint)
        assert endpoint.in_flight == 0
        assert endpoint.counts == (0, 0)

    def test_tickets_never_given_are_nobodys(self) -> None:
        endpoint = _core.Endpoint(_core.Segment(64), "e", max_in_flight=5)
        held = endpoint.admit(0, T0)
        for ticket in (0, 1, held + 1, held ^ 1, 2**40, 2**62, 2**63 - 1):
            assert endpoint.finish(ticket, FAILURE, 0.0, 0, T0) == 0
        assert endpoint.in_flight == 1
        assert endpoint.counts == (0, 0)

    def test_snapshot_is_plain_values(self) -> None:
        endpoint = _core.Endpoint(_core.Segment(64), "e", rpm=60)
        endpoint.finish(endpoint.admit(10, T0), OK, 0.25, 0, T0)
        figures = endpoint.snapshot(T0)
        assert figures["name"] == "e"
        assert all(isinstance(value, str | int | float | None) for value in figures.values())


SETTINGS = st.fixed_dictionaries(
    {
        "rpm": st.sampled_from([-1, 0, 60, 600, 600, 60_000]),
        "request_burst": st.sampled_from([0, 1, 5]),
        "tpm": st.sampled_from([-1, 0, 600, 6000, 6000]),
        "token_burst": st.sampled_from([0, 50, 200]),
        "max_in_flight": st.sampled_from([0, 1, 3, 30, 200, 200]),
        "adaptive": st.booleans(),
        "failures": st.sampled_from([2, 5]),
        "min_calls": st.sampled_from([3, 20]),
        "probes_to_close": st.integers(1, 2),
        "probe_lease_s": st.sampled_from([0.5, 35.0]),
        "open_s": st.sampled_from([0.1, 5.0]),
    }
)
TOKENS_ASKED = st.sampled_from([0, 1, 10, 40, 201])
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *["admit"] * 5,
                *["finish"] * 5,
                "undo",
                "reserve",
                "redeem",
                "unreserve",
                "block",
                "unblock",
                "tighten",
                "pace",
                "hurry",
                "extend",
                "began",
            ]
        ),
        TOKENS_ASKED,
        st.integers(0, 30),
        st.sampled_from([OK, OK, FAILURE, FAILURE, THROTTLED, USELESS, IGNORED]),
        st.one_of(st.just(0), st.integers(0, 100), st.sampled_from([1000, 6000, 70_000, -1])),
    ),
    max_size=80,
)


@given(settings_=SETTINGS, steps=STEPS)
@settings(deadline=None, max_examples=120)
def test_native_answers_as_the_twin(
    settings_: dict[str, Any], steps: list[tuple[str, int, int, int, int]]
) -> None:
    native = _core.Endpoint(_core.Segment(64), "e", **settings_)
    oracle = twin.Endpoint(twin.Segment(), "e", **settings_)
    both: tuple[Any, Any] = (native, oracle)
    held: list[tuple[tuple[int, int], int]] = []
    paid: list[int] = []
    now = T0

    def admit(tokens: int, reserved: bool) -> bool:
        mine, its = (endpoint.admit(tokens, now, reserved) for endpoint in both)
        assert (mine >= 0) == (its >= 0), where
        if mine >= 0:
            held.append(((mine, its), tokens))
            return True
        assert mine == its, where
        return False

    for step, (what, tokens, which, outcome, pause) in enumerate(steps):
        now += pause * MS if pause >= 0 else oracle.reopens_in(now)
        where = (step, what, tokens, now - T0)
        assert native.wait(tokens, now) == oracle.wait(tokens, now), where
        if what == "admit":
            admit(tokens, False)
        elif what == "finish" and held:
            tickets, _ = held.pop(which % len(held))
            arguments = (outcome, 0.01 * (which + 1), which - 10, now)
            mine, its = (e.finish(t, *arguments) for e, t in zip(both, tickets, strict=True))
            assert mine == its, where
            if mine == 1:
                oracle.breaker.open_until(now + native.reopens_in(now))
        elif what == "undo" and held:
            tickets, tokens = held.pop(which % len(held))
            for endpoint, ticket in zip(both, tickets, strict=True):
                endpoint.undo(ticket, tokens, now)
        elif what == "reserve":
            mine, its = (endpoint.reserve(tokens, which * SECOND // 3, now) for endpoint in both)
            assert mine == its, where
            if mine >= 0:
                paid.append(tokens)
        elif what == "redeem" and paid:
            if admit(paid[-1], True):
                paid.pop()
        elif what == "unreserve" and paid:
            tokens = paid.pop()
            for endpoint in both:
                endpoint.unreserve(tokens, now)
        elif what == "block":
            for endpoint in both:
                endpoint.block(now + which * SECOND, which)
        elif what == "unblock":
            for endpoint in both:
                endpoint.unblock()
        elif what == "tighten":
            for endpoint in both:
                endpoint.tighten(which - 1, tokens - 1, now)
        elif what == "pace":
            window = (1.0, 60.0, 55.0)[which % 3]
            for endpoint in both:
                endpoint.pace(which - 1, window, max(10 * which - 11, -1), 60.0, now)
            assert native.paced == oracle.paced, where
        elif what == "extend" and held:
            tickets, _ = held[which % len(held)]
            for endpoint, ticket in zip(both, tickets, strict=True):
                endpoint.extend(ticket, float(which), now)
        elif what == "began" and held:
            tickets, _ = held[which % len(held)]
            mine, its = (e.began(ticket, now) for e, ticket in zip(both, tickets, strict=True))
            assert mine == its, where
        elif what == "hurry":
            assert native.hurry(now) == oracle.hurry(now), where
        assert (native.bearable or 0) == pytest.approx(oracle.bearable or 0, rel=1e-4), where
        assert native.in_flight == oracle.in_flight == len(held), where
        assert native.state(now) == oracle.state(now), where
        assert native.blocked(now) == oracle.blocked(now), where
        assert native.available_requests(now) == oracle.available_requests(now), where
        assert native.available_tokens(now) == oracle.available_tokens(now), where
        assert native.usage(now) == pytest.approx(oracle.usage(now), rel=1e-4, abs=0.01), where
        assert native.counts == oracle.counts, where
        assert native.success_rate(now) == pytest.approx(oracle.success_rate(now), abs=1e-5), where
        assert native.ewma(now) == pytest.approx(oracle.ewma(now), rel=1e-5), where
    if native.state(now) == OPEN:
        assert native.reopens_in(now) == oracle.reopens_in(now)


# Counts that no process writes: more than the largest rate, not a number, none.
@pytest.mark.parametrize("count", [9e18, 1.1e9, math.inf, math.nan, -5.0, 0.5])
def test_a_reported_limit_that_cannot_be_one_counts_as_unknown(tmp_path: Path, count: float) -> None:
    with open(tmp_path / "state", "w+b") as file:
        file.truncate(_core.Segment.size(256))
        segment = _core.Segment.in_file(file.fileno(), True)
        memory = mmap.mmap(file.fileno(), 0)
    endpoint = _core.Endpoint(segment, "a")
    endpoint.pace(requests=60, tokens=6000, now=T0)
    assert (endpoint.rpm, endpoint.tpm) == (60, 6000)
    sane = [struct.pack("<If", 60_000, told) for told in (60.0, 6000.0)]
    for place in [memory.find(word) for word in sane]:
        memory[place : place + 8] = struct.pack("<If", 60_000, count)
    assert (endpoint.rpm, endpoint.tpm) == (-1, -1)
    assert endpoint.admit(10**9, T0) >= 0
