"""Ranking: who is left out and why, in what order the rest come, and where traffic goes over time."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import twin
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import DOLLAR, MS, SECOND, T0, Make, Row, calibrated, call, ranking, trip
from twin import (
    FAILURE,
    IN,
    LATENCY,
    LEAST_BUSY,
    LOWEST_COST,
    LOWEST_USAGE,
    OK,
    ORDERED,
    OUT_BLOCKED,
    OUT_BREAKER,
    OUT_CAPABILITY,
    OUT_PRICE_CAP,
    OUT_TOO_LARGE,
    OUT_WINDOW,
    SOFT_LATENCY,
    SOFT_PRICE,
    SOFT_QUALITY,
    THROTTLED,
    TWO_CHOICES,
    USELESS,
    VALUE,
    WEIGHTED,
)

from fastroute import _core


class TestVerdicts:
    @pytest.mark.parametrize(
        ("columns", "wish", "verdicts"),
        [
            ({"capabilities": [0b11, 0b01, 0b10]}, {"capabilities": 0b01}, [IN, IN, OUT_CAPABILITY]),
            (
                {"windows": [0, 1000, 1001]},
                {"tokens_in": 601, "tokens_out": 400},
                [IN, OUT_WINDOW, IN],
            ),
            (
                {"windows": [1000, 1000, 1000], "max_outputs": [0, 100, 399]},
                {"tokens_in": 601, "tokens_out": 400},
                [OUT_WINDOW, IN, IN],
            ),
            (
                {"input_prices": [DOLLAR, 2 * DOLLAR, -1]},
                {"tokens_in": 1000, "max_price": 1_000_000},
                [IN, OUT_PRICE_CAP, OUT_PRICE_CAP],
            ),
            ({"qualities": [0.9, 0.8, 0.7]}, {"quality_floor": 0.8}, [IN, IN, SOFT_QUALITY]),
            ({"latencies": [1.0, 3.0, 0.0]}, {"max_latency": 2.0}, [IN, SOFT_LATENCY, IN]),
            (
                {"input_prices": [DOLLAR, 2 * DOLLAR, -1]},
                {"tokens_in": 1000, "price_ceiling": 1_000_000},
                [IN, SOFT_PRICE, SOFT_PRICE],
            ),
        ],
        ids=["capability", "window", "max-output", "price-cap", "quality", "latency", "ceiling"],
    )
    def test_filters(self, make: Make, columns: Any, wish: Any, verdicts: list[int]) -> None:
        ranked = make(3, **columns).rank(ORDERED, now=T0, **wish)
        assert list(ranked.verdicts) == verdicts
        assert ranked.order == tuple(i for i in range(3) if verdicts[i] == IN)
        assert not ranked.relaxed

    def test_what_cannot_be_had_now_is_out(self, make: Make) -> None:
        rows = [{}, {}, {"tpm": 6000, "token_burst": 100}, {"rpm": 0}, {"max_in_flight": 0}, {}]
        ranking = make(6, endpoint=rows)
        ranking.endpoints[0].block(T0 + SECOND, 1)
        until = trip(ranking.endpoints[1])
        expected = [OUT_BLOCKED, OUT_BREAKER, OUT_TOO_LARGE, OUT_TOO_LARGE, OUT_TOO_LARGE, IN]
        assert list(ranking.rank(ORDERED, tokens_in=60, tokens_out=41, now=T0).verdicts) == expected
        later = max(until, T0 + SECOND)
        probe = ranking.endpoints[1].admit(0, later)
        expected[0] = IN
        expected[2] = IN
        assert list(ranking.rank(ORDERED, tokens_in=60, tokens_out=40, now=later).verdicts) == expected
        ranking.endpoints[1].undo(probe, 0, later)
        expected[1] = IN
        assert list(ranking.rank(ORDERED, tokens_in=60, tokens_out=40, now=later).verdicts) == expected

    def test_the_first_reason_is_the_verdict(self, make: Make) -> None:
        ranking = make(1, capabilities=[0], windows=[10], qualities=[0.1])
        ranking.endpoints[0].block(T0 + SECOND, 1)
        wish = {"quality_floor": 0.5, "now": T0}
        assert list(ranking.rank(ORDERED, 20, 0, 1, 0, **wish).verdicts) == [OUT_CAPABILITY]
        assert list(ranking.rank(ORDERED, 20, 0, 0, 0, **wish).verdicts) == [OUT_WINDOW]
        assert list(ranking.rank(ORDERED, 5, 0, 0, 0, **wish).verdicts) == [OUT_PRICE_CAP]
        assert list(ranking.rank(ORDERED, 5, 0, 0, -1, **wish).verdicts) == [OUT_BLOCKED]
        ranking.endpoints[0].unblock()
        assert list(ranking.rank(ORDERED, 5, 0, 0, -1, **wish).verdicts) == [SOFT_QUALITY]

    def test_soft_filters_give_way_to_the_best_quality(self, make: Make) -> None:
        ranking = make(4, models=[0, 1, 2, 3], qualities=[0.5, 0.7, 0.6, 0.9])
        ranking.endpoints[3].block(T0 + SECOND, 1)
        ranked = ranking.rank(ORDERED, quality_floor=0.8, now=T0)
        assert ranked.relaxed
        assert ranked.order == (1, 2, 0)
        assert list(ranked.verdicts) == [SOFT_QUALITY, SOFT_QUALITY, SOFT_QUALITY, OUT_BLOCKED]
        assert ranking.rank(ORDERED, quality_floor=0.8, limit=2, now=T0).order == (1, 2)

    def test_hard_filters_never_give_way(self, make: Make) -> None:
        ranked = make(2).rank(ORDERED, capabilities=1, now=T0)
        assert (ranked.order, ranked.relaxed) == ((), False)

    def test_a_slow_past_does_not_fail_the_latency_budget_for_ever(self, make: Make) -> None:
        ranking = make(2, latencies=[0.0, 1.0])
        call(ranking.endpoints[0], OK, 60.0)
        assert list(ranking.rank(ORDERED, max_latency=10.0, now=T0).verdicts) == [SOFT_LATENCY, IN]
        later = T0 + 100 * SECOND
        assert list(ranking.rank(ORDERED, max_latency=10.0, now=later).verdicts) == [IN, IN]

    def test_a_measured_latency_fades_into_the_prior(self, make: Make) -> None:
        ranking = make(1, latencies=[1.0])
        call(ranking.endpoints[0], OK, 60.0)
        assert list(ranking.rank(ORDERED, max_latency=10.0, now=T0).verdicts) == [SOFT_LATENCY]
        assert list(ranking.rank(ORDERED, max_latency=10.0, now=T0 + 60 * SECOND).verdicts) == [IN]

    def test_codes_are_the_cores(self) -> None:
        names = [name for name in dir(twin) if name.startswith(("OUT_", "SOFT_"))]
        names += [
            "LATENCY",
            "WEIGHTED",
            "LEAST_BUSY",
            "LOWEST_COST",
            "LOWEST_USAGE",
            "TWO_CHOICES",
            "ORDERED",
            "VALUE",
        ]
        names += ["OK", "FAILURE", "IGNORED", "THROTTLED", "USELESS", "CLOSED", "OPEN", "HALF_OPEN"]
        names += ["BLOCKED", "BREAKER", "BUSY", "REQUESTS", "TOKENS", "TOO_LARGE"]
        assert len(names) == 31
        assert {name: getattr(_core, name) for name in names} == {name: getattr(twin, name) for name in names}


class TestOrder:
    def test_prices_are_rounded_up(self, make: Make) -> None:
        columns = {"input_prices": [1, 999_999, -1, 0], "output_prices": [1, 0, DOLLAR, -1]}
        ranking = make(4, **columns)
        assert ranking.rank(ORDERED, tokens_in=1, tokens_out=1, now=T0).prices == (1, 1, -1, -1)
        assert ranking.rank(ORDERED, tokens_out=10, now=T0).prices == (1, 0, 10_000, -1)
        assert ranking.rank(ORDERED, tokens_in=2**40, now=T0).prices == (1099512, 1099510528265, -1, 0)

    def test_prices_saturate(self, make: Make) -> None:
        ranked = make(1, input_prices=[2**61], output_prices=[2**61]).rank(ORDERED, 2**60, 2**60, now=T0)
        assert ranked.prices == (2**63 - 1,)

    def test_lowest_cost_puts_unknown_last(self, make: Make) -> None:
        ranking = make(4, input_prices=[3 * DOLLAR, -1, DOLLAR, 2 * DOLLAR])
        assert ranking.rank(LOWEST_COST, tokens_in=1000, now=T0).order == (2, 3, 0, 1)

    def test_least_busy_by_weight(self, make: Make) -> None:
        ranking = make(3, endpoint=[{"weight": 1.0}, {"weight": 4.0}, {"weight": 2.0}])
        for i, calls in enumerate((1, 3, 4)):
            for _ in range(calls):
                ranking.endpoints[i].admit(0, T0)
        ranked = ranking.rank(LEAST_BUSY, now=T0)
        assert ranked.keys == pytest.approx((1.0, 0.75, 2.0))
        assert ranked.order == (1, 0, 2)

    def test_lowest_usage(self, make: Make) -> None:
        ranking = make(3)
        for i, tokens in enumerate((500, 100, 300)):
            call(ranking.endpoints[i], tokens=tokens)
        assert ranking.rank(LOWEST_USAGE, now=T0).order == (1, 2, 0)

    def test_latency_reads_load(self, make: Make) -> None:
        ranking = make(3)
        for endpoint, latency in zip(ranking.endpoints, (0.3, 0.1, 0.2), strict=True):
            call(endpoint, OK, latency)
        assert ranking.rank(LATENCY, now=T0).order == (1, 2, 0)
        ranking.endpoints[1].admit(0, T0)
        ranking.endpoints[1].admit(0, T0)
        ranking.endpoints[1].admit(0, T0)
        ranked = ranking.rank(LATENCY, now=T0)
        assert ranked.keys == pytest.approx((0.45, 0.6, 0.3), rel=1e-5)  # times the calls, this one too
        assert ranked.order == (2, 0, 1)

    def test_ordered_is_the_given_order(self, make: Make) -> None:
        ranking = make(5)
        for seed in range(7):
            assert ranking.rank(ORDERED, seed=seed, now=T0).order == (0, 1, 2, 3, 4)

    def test_models_by_their_number(self, make: Make) -> None:
        ranking = make(5, models=[7, 3, 7, -2, 3])
        assert ranking.rank(ORDERED, now=T0).order == (3, 1, 4, 0, 2)

    def test_models_by_value(self, make: Make) -> None:
        """price / (quality * speed): 8/0.8*2 = 20, 2/0.5*1 = 4, 3/0.9*6 = 20, unknown last."""
        ranking = make(
            4,
            models=[0, 1, 2, 3],
            input_prices=[8 * DOLLAR, 2 * DOLLAR, 3 * DOLLAR, -1],
            qualities=[0.8, 0.5, 0.9, 1.0],
            latencies=[2.0, 1.0, 6.0, 0.1],
        )
        ranked = ranking.rank(ORDERED, tokens_in=1_000_000, among_models=VALUE, now=T0)
        assert ranked.values == pytest.approx((20e9, 4e9, 20e9, math.inf))
        assert ranked.order in ((1, 0, 2, 3), (1, 2, 0, 3))

    def test_a_model_is_as_quick_as_its_quickest_endpoint(self, make: Make) -> None:
        ranking = make(3, models=[0, 0, 1], qualities=[1.0, 1.0, 1.0], latencies=[0.0, 0.0, 2.0])
        call(ranking.endpoints[0], OK, 8.0)
        call(ranking.endpoints[1], OK, 0.4)
        ranked = ranking.rank(LATENCY, tokens_in=1_000_000, among_models=VALUE, now=T0)
        assert ranked.values == pytest.approx((0.6e9, 0.6e9, 2e9), rel=1e-5)
        assert ranked.order == (1, 0, 2)

    @pytest.mark.parametrize("strategy", [LATENCY, LEAST_BUSY, LOWEST_COST, LOWEST_USAGE, TWO_CHOICES])
    def test_ties_are_not_always_for_the_first(self, make: Make, strategy: int) -> None:
        ranking = make(4)
        firsts = Counter(
            ranking.rank(strategy, seed=seed * 7919, limit=1, now=T0).order[0] for seed in range(200)
        )
        assert set(firsts) == {0, 1, 2, 3}
        assert max(firsts.values()) < 100

    @pytest.mark.parametrize("strategy", range(7))
    def test_a_due_probe_goes_first(self, make: Make, strategy: int) -> None:
        ranking = make(3, models=[0, 0, 0])
        for endpoint in ranking.endpoints[:2]:
            call(endpoint, OK, 0.1)
        until = trip(ranking.endpoints[2])
        for seed in range(5):
            assert 2 not in ranking.rank(strategy, seed=seed, now=until - MS).order
            assert ranking.rank(strategy, seed=seed, now=until).order[0] == 2
            if strategy != TWO_CHOICES:
                assert ranking.pick(strategy, seed=seed, decay=True, now=until) == 2
        # Two choices look at no more than two; it is found as often as it is drawn.
        picks = {ranking.pick(strategy, seed=seed, decay=True, now=until) for seed in range(40)}
        assert 2 in picks
        ranking.endpoints[2].admit(0, until)
        assert 2 not in ranking.rank(strategy, now=until).order

    @pytest.mark.parametrize("strategy", range(7))
    def test_limit_is_the_head_of_the_whole(self, make: Make, strategy: int) -> None:
        ranking = make(9, models=[0, 1, 2] * 3)
        for i, endpoint in enumerate(ranking.endpoints):
            call(endpoint, OK, 0.1 + (i * 5 % 9) / 10)
        whole = ranking.rank(strategy, seed=3, now=T0).order
        assert sorted(whole) == list(range(9))
        for limit in range(1, 12):
            assert ranking.rank(strategy, seed=3, limit=limit, now=T0).order == whole[:limit]

    @pytest.mark.parametrize("count", [16, 17, 60])
    def test_a_long_row_is_in_the_order_of_its_keys(self, make: Make, count: int) -> None:
        ranking = make(count)
        for i, endpoint in enumerate(ranking.endpoints):
            call(endpoint, OK, 0.1 + i * 37 % count)
        ranked = ranking.rank(LATENCY, now=T0)
        assert ranked.order == tuple(sorted(range(count), key=ranked.keys.__getitem__))
        assert ranking.rank(LATENCY, limit=20, now=T0).order == ranked.order[:20]
        assert ranked.first == ranked.order[0]

    @pytest.mark.parametrize("outcome", [FAILURE, USELESS])
    @pytest.mark.parametrize("strategy", range(7))
    def test_an_unhealthy_endpoint_comes_last_and_returns(
        self, make: Make, strategy: int, outcome: int
    ) -> None:
        """It is quicker, cheaper, of more weight and written first."""
        weights = [{"weight": 50.0}, {}, {}]
        ranking = make(3, endpoint=weights, input_prices=[1, DOLLAR, DOLLAR], models=[0, 0, 1])
        quick, *others = ranking.endpoints
        for endpoint in others:
            call(endpoint, OK, 1.0, tokens=1000)
        for _ in range(3):
            call(quick, outcome, 0.001)
        call(quick, OK, 0.001)

        def places(now: int) -> set[int]:
            ranked = [ranking.rank(strategy, seed=seed, among_models=VALUE, now=now) for seed in range(20)]
            return {each.order.index(0) for each in ranked}

        assert quick.health(T0)[0] == 57
        assert places(T0) == {2}
        assert places(T0 + 5 * SECOND) == {2}
        assert max(places(T0 + 15 * SECOND)) < 2
        for _ in range(7):
            call(quick, OK, 0.001)
        assert max(places(T0)) < 2

    def test_when_all_are_unhealthy_the_strategy_decides(self, make: Make) -> None:
        ranking = make(3)
        for endpoint in ranking.endpoints:
            for _ in range(3):
                call(endpoint, USELESS)
        assert ranking.rank(ORDERED, now=T0).order == (0, 1, 2)

    def test_a_breaker_that_closes_makes_an_endpoint_healthy(self, make: Make) -> None:
        ranking = make(2)
        until = trip(ranking.endpoints[0])
        for _ in range(2):
            assert ranking.rank(ORDERED, now=until).order == (0, 1)  # for the probe
            call(ranking.endpoints[0], OK, 0.1, now=until)
        assert ranking.endpoints[0].health(until)[0] == 100
        assert ranking.rank(ORDERED, now=until).order == (0, 1)

    def test_nothing_to_rank(self, make: Make) -> None:
        ranking = make(0)
        assert ranking.rank(LATENCY, now=T0).order == ()
        assert ranking.rank(LATENCY, now=T0).first == -1
        assert ranking.pick(LATENCY, decay=True, now=T0) == -1

    def test_one_endpoint_with_an_open_breaker_is_no_crash(self, make: Make) -> None:
        ranking = make(1)
        trip(ranking.endpoints[0])
        assert list(ranking.rank(LATENCY, now=T0).verdicts) == [OUT_BREAKER]
        assert ranking.pick(LATENCY, decay=True, now=T0) == -1


class TestDraws:
    """Only the core draws; held to what chance allows (five standard deviations)."""

    def many(self, ranking: Any, strategy: int, n: int = 4000) -> Counter[int]:
        return Counter(
            ranking.rank(strategy, seed=seed, limit=1, now=T0).order[0] for seed in range(1, n + 1)
        )

    def test_weighted_draws_in_proportion(self) -> None:
        segment = _core.Segment(256)
        weights = [1.0, 2.0, 5.0]
        rows = [_core.Endpoint(segment, f"e{i}", weight=weight) for i, weight in enumerate(weights)]
        firsts = self.many(ranking(_core, rows), WEIGHTED)
        for i, weight in enumerate(weights):
            share = weight / sum(weights)
            assert abs(firsts[i] / 4000 - share) < 5 * math.sqrt(share * (1 - share) / 4000)

    def test_weighted_order_is_a_shuffle(self) -> None:
        segment = _core.Segment(256)
        row = ranking(_core, [_core.Endpoint(segment, f"e{i}") for i in range(3)])
        orders = Counter(row.rank(WEIGHTED, seed=seed, now=T0).order for seed in range(3000))
        assert len(orders) == 6
        assert all(abs(count - 500) < 5 * math.sqrt(3000 * 5 / 36) for count in orders.values())

    def test_two_choices_take_the_better_of_two(self) -> None:
        """With loads in order, the i-th best of n wins when it is drawn with a worse one: 2(n-1-i)/n(n-1)."""
        segment = _core.Segment(1024)
        rows = [_core.Endpoint(segment, f"e{i}") for i in range(6)]
        for i, endpoint in enumerate(rows):
            call(endpoint, OK, 0.1 * (i + 1))
        row = ranking(_core, rows)
        firsts = self.many(row, TWO_CHOICES)
        for i in range(6):
            share = 2 * (5 - i) / 30
            assert abs(firsts[i] / 4000 - share) <= 5 * math.sqrt(share * (1 - share) / 4000)
        for seed in range(50):
            first, *rest = row.rank(TWO_CHOICES, seed=seed, now=T0).order
            assert rest == [i for i in range(6) if i != first]

    @pytest.mark.parametrize("strategy", range(7))
    @pytest.mark.parametrize("decay", [True, False])
    def test_pick_is_the_head_of_rank(self, strategy: int, decay: bool) -> None:
        segment = _core.Segment(1024)
        rows = [_core.Endpoint(segment, f"e{i}", weight=1.0 + i % 3) for i in range(8)]
        for i, endpoint in enumerate(rows[:6]):
            call(endpoint, OK, 0.1 + i % 4 / 10, tokens=i * 7 % 50)
        rows[1].block(T0 + SECOND, 1)
        trip(rows[2])
        for models in ([0] * 8, [1, 1, 1, 0, 0, 0, 1, 1]):
            row = ranking(_core, rows, models=models)
            for seed in range(60):
                head = row.rank(strategy, seed=seed, decay=decay, limit=1, now=T0).order[0]
                pick = row.pick(strategy, seed=seed, decay=decay, now=T0)
                assert pick == head or (strategy == TWO_CHOICES and pick not in (1, 2))

    @pytest.mark.parametrize("decay", [True, False])
    def test_pick_of_two_is_the_head_of_rank_when_all_can_be_had(self, decay: bool) -> None:
        segment = _core.Segment(1024)
        rows = [_core.Endpoint(segment, f"e{i}") for i in range(7)]
        for i, endpoint in enumerate(rows):
            call(endpoint, OK, 0.1 + i * 3 % 7)
        row = ranking(_core, rows)
        for seed in range(100):
            head = row.rank(TWO_CHOICES, seed=seed, decay=decay, limit=1, now=T0).order[0]
            assert row.pick(TWO_CHOICES, seed=seed, decay=decay, now=T0) == head


class TestBadInput:
    @pytest.mark.parametrize(
        "columns",
        [
            {"models": [0]},
            {"windows": [-1, 0]},
            {"max_outputs": [-1, 0]},
            {"input_prices": [-2, 0]},
            {"qualities": [math.nan, 1.0]},
            {"qualities": [-1.0, 1.0]},
            {"latencies": [math.inf, 0.0]},
            {"latencies": [-1.0, 0.0]},
        ],
        ids=repr,
    )
    def test_columns_are_checked(self, columns: Any) -> None:
        segment = _core.Segment(256)
        with pytest.raises(ValueError, match=next(iter(columns))):
            ranking(_core, [_core.Endpoint(segment, name) for name in "ab"], **columns)

    def test_only_endpoints_are_ranked(self) -> None:
        with pytest.raises(TypeError):
            ranking(_core, ["a"])

    @pytest.mark.parametrize(
        "wish",
        [
            {"strategy": 7},
            {"strategy": -1},
            {"tokens_in": -1},
            {"tokens_out": -1},
            {"limit": -1},
            {"quality_floor": math.nan},
            {"max_latency": math.nan},
            {"now": -1},
        ],
        ids=repr,
    )
    def test_wishes_are_checked(self, wish: Any) -> None:
        row = ranking(_core, [_core.Endpoint(_core.Segment(64), "e")])
        with pytest.raises(ValueError):
            row.rank(**({"strategy": LATENCY} | wish))

    def test_figures_read_later_are_those_of_the_rankings_time(self) -> None:
        rows = [_core.Endpoint(_core.Segment(64), "e")]
        call(rows[0], OK, 1.0)
        ranked = ranking(_core, rows).rank(LATENCY, now=T0 + 10 * SECOND)
        assert ranked.keys == pytest.approx((1.5 * math.exp(-1),), rel=1e-5)
        assert ranked.keys == ranked.keys

    def test_a_ranked_outlives_its_ranking(self) -> None:
        segment = _core.Segment(64)
        ranked = ranking(_core, [_core.Endpoint(segment, "e")]).rank(LATENCY, now=T0)
        del segment
        assert (ranked.order, ranked.verdicts, ranked.prices) == ((0,), b"\0", (2 * DOLLAR,))


def ranked_alike(native: Any, oracle: twin.Ranking, wish: Row) -> None:
    mine, its = native.rank(**wish), oracle.rank(**wish)
    assert list(mine.verdicts) == list(its.verdicts)
    assert mine.relaxed == its.relaxed
    assert mine.first == next(iter(mine.order), -1)
    assert mine.prices == its.prices
    assert mine.values == pytest.approx(its.values, rel=1e-4)
    assert sorted(mine.order) == sorted(its.order) or wish["limit"]
    if wish["strategy"] != WEIGHTED:
        assert mine.keys == pytest.approx(its.keys, rel=1e-4)
    if {wish["strategy"], wish["among_models"]} & {WEIGHTED, TWO_CHOICES}:
        return
    # Where two keys are all but equal, the core's 32-bit floats may order them the other way round.
    assert len(mine.order) == len(its.order)
    for i, j in zip(mine.order, its.order, strict=True):
        if i != j:
            *ours, _ = oracle.place(i)
            *theirs, _ = oracle.place(j)
            assert ours == pytest.approx(theirs, rel=1e-4)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["ok", "ok", "ok", "failure", "useless", "throttled", "hold", "release", "block"]),
        st.integers(0, 5),
        st.integers(1, 40),
        st.sampled_from([0, 1, 50, 1000, 6000]),
    ),
    max_size=50,
)
PRICES = st.sampled_from([-1, 0, DOLLAR // 10, DOLLAR, 3 * DOLLAR])
COLUMNS = st.fixed_dictionaries(
    {
        name: st.lists(values, min_size=6, max_size=6)
        for name, values in {
            "models": st.integers(0, 2),
            "windows": st.sampled_from([0, 0, 1000, 5000]),
            "max_outputs": st.sampled_from([0, 0, 100, 500]),
            "capabilities": st.sampled_from([0b111, 0b111, 0b101, 0]),
            "input_prices": PRICES,
            "output_prices": PRICES,
            "qualities": st.sampled_from([0.0, 0.5, 0.8, 0.97]),
            "latencies": st.sampled_from([0.0, 0.5, 2.0]),
        }.items()
    }
)
WISHES = st.fixed_dictionaries(
    {
        "strategy": st.integers(0, 6),
        "tokens_in": st.sampled_from([0, 1, 700, 3000]),
        "tokens_out": st.sampled_from([0, 300, 2001]),
        "capabilities": st.sampled_from([0, 0, 0b001, 0b110]),
        "max_price": st.sampled_from([-1, -1, 1_000_000, 10_000_000]),
        "price_ceiling": st.sampled_from([-1, -1, 500_000]),
        "quality_floor": st.sampled_from([0.0, 0.0, 0.8, 1.0]),
        "max_latency": st.sampled_from([0.0, 0.0, 0.3, 1.0]),
        "among_models": st.integers(0, 7),
        "limit": st.sampled_from([0, 0, 1, 3]),
        "seed": st.integers(0, 2**32),
    }
)


LEARNED = st.lists(st.tuples(st.sampled_from([50, 100, 170]), st.integers(0, 20)), min_size=3, max_size=3)


@given(columns=COLUMNS, events=EVENTS, wishes=st.lists(WISHES, min_size=1, max_size=6), learned=LEARNED)
@settings(deadline=None, max_examples=80)
def test_native_chooses_as_the_twin(
    columns: Row, events: list[tuple[str, int, int, int]], wishes: list[Row], learned: list[tuple[int, int]]
) -> None:
    segments = _core.Segment(256), twin.Segment()
    limits: list[Row] = [
        {},
        {"tpm": 6000, "token_burst": 3000},
        {"weight": 3.0},
        {},
        {"rpm": 60},
        {},
    ]
    rows = [
        [core.Endpoint(segment, f"e{i}", open_s=1.0, **limit) for i, limit in enumerate(limits)]
        for core, segment in zip((_core, twin), segments, strict=True)
    ]
    native, oracle = (
        ranking(core, row, **columns, calibrations=[models[number] for number in columns["models"]])
        for core, row in zip((_core, twin), rows, strict=True)
        for models in [[calibrated(core, *each) for each in learned]]
    )
    held: list[tuple[int, list[int]]] = []
    now = T0
    for what, i, size, pause in events:
        now += pause * MS
        pair = [row[i] for row in rows]
        if what == "block":
            for endpoint in pair:
                endpoint.block(now + size * SECOND // 20, 1)
        elif what == "release":
            if held:
                j, tickets = held.pop()
                for row, ticket in zip(rows, tickets, strict=True):
                    row[j].undo(ticket, size, now)
        else:
            tickets = [endpoint.admit(size, now) for endpoint in pair]
            if min(tickets) < 0:
                assert tickets[0] == tickets[1]
            elif what == "hold":
                held.append((i, tickets))
            else:
                outcome = {"ok": OK, "failure": FAILURE, "useless": USELESS, "throttled": THROTTLED}[what]
                flags = [e.finish(t, outcome, size / 40, 0, now) for e, t in zip(pair, tickets, strict=True)]
                assert flags[0] == flags[1]
                if flags[0] == 1:
                    pair[1].breaker.open_until(now + pair[0].reopens_in(now))
    for wish in wishes:
        ranked_alike(native, oracle, wish | {"now": now})
    for seconds in (3, 9, 40):
        ranked_alike(native, oracle, wishes[0] | {"now": now + seconds * SECOND})
    for wish in wishes:
        admitted_alike(native, oracle, wish, now)


def admitted_alike(native: Any, oracle: Any, wish: Row, now: int) -> None:
    """Both let the same request in, at the same endpoint for the same tokens; there it stays under way."""
    request = {name: wish[name] for name in ("tokens_in", "tokens_out", "capabilities", "seed")}
    wishes = {name: value for name, value in wish.items() if name not in request}
    if native.rank(**wish, now=now).order != oracle.rank(**wish, now=now).order:
        return  # drawn lots, or keys that differ in the last bit
    mine, its = (row.choice(**wishes).admit(**request, now=now) for row in (native, oracle))
    assert (mine.chosen, mine.tokens) == (its.chosen, its.tokens)
    if mine.chosen >= 0:
        mine.take()
    for one, other in zip(native.endpoints, oracle.endpoints, strict=True):
        assert one.in_flight == other.in_flight
        assert one.available_requests(now) == other.available_requests(now)
        assert one.available_tokens(now) == other.available_tokens(now)
