"""Where traffic goes over time when every call is sent to the endpoint with the least load."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from twin import FAILURE, LATENCY, LEAST_BUSY, LOWEST_USAGE, OK, THROTTLED, USELESS

MS = 1_000_000
SECOND = 1000 * MS
T0 = 1_000_000 * SECOND

Make = Callable[[int], Any]


@pytest.fixture
def make(core: Any) -> Make:
    """A ranking over so many endpoints of one model, all alike."""

    def make(count: int) -> Any:
        segment = core.Segment(1024)
        columns = ("windows", "max_outputs", "capabilities", "input_prices", "output_prices")
        return core.Ranking(
            [core.Endpoint(segment, f"e{i}") for i in range(count)],
            **{name: [0] * count for name in ("models", *columns)},
            qualities=[1.0] * count,
            latencies=[0.0] * count,
        )

    return make


def call(endpoint: Any, outcome: int, latency: float) -> None:
    endpoint.finish(endpoint.admit(0, T0), outcome, latency, 0, T0)


class Traffic:
    """Calls that arrive evenly and end when they end, in simulated time; the next endpoint by `pick`."""

    def __init__(self, ranking: Any, answer: Callable[[int, float], tuple[int, float]], per_s: int) -> None:
        self.ranking, self.answer, self.step = ranking, answer, SECOND // per_s
        self.now, self.calls = T0, 0
        self.ends: list[tuple[int, int, int, int, int, float]] = []

    def run(self, seconds: float) -> Counter[int]:
        """How many calls each endpoint got in the next so many seconds."""
        got: Counter[int] = Counter()
        end = self.now + int(seconds * SECOND)
        while self.now < end:
            while self.ends and self.ends[0][0] <= self.now:
                at, _, i, ticket, outcome, latency = heapq.heappop(self.ends)
                self.ranking.endpoints[i].finish(ticket, outcome, latency if outcome == OK else 0.0, 0, at)
            self.calls += 1
            i = self.ranking.pick(LATENCY, seed=self.calls * 2654435761 % 2**32, decay=True, now=self.now)
            got[i] += 1
            ticket = self.ranking.endpoints[i].admit(0, self.now)
            if ticket >= 0:
                outcome, latency = self.answer(i, (self.now - T0) / SECOND)
                ends_at = self.now + int(latency * 1000) * MS
                heapq.heappush(self.ends, (ends_at, self.calls, i, ticket, outcome, latency))
            self.now += self.step
        return got


class TestTraffic:
    def test_a_hundred_picks_at_once_do_not_land_on_one(self, make: Make) -> None:
        ranking = make(10)
        for endpoint in ranking.endpoints:
            call(endpoint, OK, 0.2)
        got: Counter[int] = Counter()
        for seed in range(100):
            i = ranking.pick(LATENCY, seed=seed * 7919, decay=True, now=T0)
            assert ranking.endpoints[i].admit(0, T0) >= 0
            got[i] += 1
        assert got == dict.fromkeys(range(10), 10)

    def test_load_spreads_by_speed(self, make: Make) -> None:
        ranking = make(3)
        traffic = Traffic(ranking, lambda i, _: (OK, (0.1, 0.2, 0.4)[i]), per_s=100)
        traffic.run(5)
        got = traffic.run(10)
        assert got[0] > got[1] > got[2] > 0
        assert got[0] > 450

    def test_fast_failing_endpoint_is_left_alone(self, make: Make) -> None:
        """It answers in 1 ms, wrongly; the others take 200 ms. Latency alone would send everything there."""
        ranking = make(4)
        for endpoint in ranking.endpoints:
            call(endpoint, OK, 0.2)
        traffic = Traffic(ranking, lambda i, _: (FAILURE, 0.001) if i == 2 else (OK, 0.2), per_s=100)
        assert traffic.run(5)[2] <= 10
        assert traffic.run(10)[2] < 0.01 * 1000

    @pytest.mark.parametrize("outcome", [FAILURE, THROTTLED])
    def test_endpoint_that_never_succeeded_is_left_alone(self, make: Make, outcome: int) -> None:
        ranking = make(4)
        traffic = Traffic(ranking, lambda i, _: (outcome, 0.001) if i == 2 else (OK, 0.2), per_s=100)
        traffic.run(5)
        assert traffic.run(10)[2] < 0.01 * 1000

    @pytest.mark.parametrize("outcome", [FAILURE, USELESS])
    @pytest.mark.parametrize("strategy", range(7))
    def test_most_calls_begin_at_the_healthy_one_of_two(self, core: Any, strategy: int, outcome: int) -> None:
        """One is quicker, cheaper and preferred, and fails at every fourth call; then it is mended."""
        segment = core.Segment(1024)
        settings = {"failures": 255, "min_calls": 10_000}  # the breaker does not see it
        rows = [core.Endpoint(segment, "a", weight=10.0, **settings), core.Endpoint(segment, "b")]
        row = core.Ranking(
            rows,
            **{name: [0, 0] for name in ("models", "windows", "max_outputs", "capabilities")},
            input_prices=[1, 10**9],
            output_prices=[1, 10**9],
            qualities=[1.0, 1.0],
            latencies=[0.0, 0.0],
        )
        now, asked = T0, [0, 0]

        def run(calls: int, fails: bool) -> int:
            """How many of so many calls, one after the other, ask the flaky one first."""
            nonlocal now
            first = 0
            for number in range(calls):
                now += 50 * MS
                i = row.rank(strategy, seed=number * 7919, now=now).first
                first += i == 0
                asked[i] += 1
                failed = i == 0 and fails and asked[0] % 4 == 0
                ticket = rows[i].admit(100, now)
                rows[i].finish(ticket, outcome if failed else OK, (0.02, 0.04)[i], 0, now)
            return first

        assert run(600, fails=True) < 120
        run(400, fails=False)
        healed = run(200, fails=False)
        assert healed > (80 if strategy in (LEAST_BUSY, LOWEST_USAGE) else 100)

    def test_new_endpoint_gets_one_probe_then_its_share(self, make: Make) -> None:
        ranking = make(4)
        for endpoint in ranking.endpoints[:3]:
            call(endpoint, OK, 0.2)
        got: Counter[int] = Counter()
        tickets = []
        for seed in range(40):
            i = ranking.pick(LATENCY, seed=seed, decay=True, now=T0)
            tickets.append((i, ranking.endpoints[i].admit(0, T0)))
            got[i] += 1
        assert got[3] == 1
        for i, ticket in tickets:
            ranking.endpoints[i].finish(ticket, OK, 0.2, 0, T0 + 200 * MS)
        traffic = Traffic(ranking, lambda *_: (OK, 0.2), per_s=100)
        traffic.now += SECOND
        assert 0.8 * 125 <= traffic.run(5)[3] <= 1.2 * 125

    @pytest.mark.parametrize(
        ("outcome", "outage"), [(FAILURE, 2.0), (THROTTLED, 10.0)], ids=["breaker", "throttled"]
    )
    def test_healed_endpoint_gets_its_share_back_within_two_tau(
        self, make: Make, outcome: int, outage: float
    ) -> None:
        def answer(i: int, at: float) -> tuple[int, float]:
            return (outcome, 0.001) if i == 1 and 5 <= at < 5 + outage else (OK, 0.2)

        traffic = Traffic(make(4), answer, per_s=60)
        traffic.run(5)
        sick = traffic.run(outage)[1]
        assert sick < 0.15 * 60 * outage
        traffic.run(20)
        assert traffic.run(10)[1] >= 0.75 * 150
