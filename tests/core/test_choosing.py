"""Choices: admitted requests and their endpoints, ownership of tickets, and tokens as each model counts."""

from __future__ import annotations

from typing import Any

import pytest
from rows import DOLLAR, T0, Make, Row, calibrated, call, ranking, trip
from twin import FAILURE, IN, LATENCY, OK, ORDERED, OUT_WINDOW, VALUE

from fastroute import _core


class TestRankingChoice:
    def test_it_ranks_by_the_wishes_it_was_made_with(self, make: Make) -> None:
        ranking = make(3, qualities=[0.9, 0.5, 0.8], input_prices=[3 * DOLLAR, DOLLAR, DOLLAR])
        wishes: Row = {"max_price": 2_000_000, "quality_floor": 0.6}
        choice = ranking.choice(ORDERED, **wishes)
        for tokens in (1000, 500, 1000):
            mine = choice.rank(tokens, 100, now=T0)
            its = ranking.rank(ORDERED, tokens, 100, now=T0, **wishes)
            assert list(mine.verdicts) == list(its.verdicts)
            assert mine.order == its.order

    def test_the_first_lets_the_request_in(self, make: Make) -> None:
        ranking = make(3)
        entered = ranking.choice(ORDERED).admit(100, 50, now=T0)
        assert (entered.chosen, entered.tokens) == (0, 150)
        first = ranking.endpoints[0]
        assert first.in_flight == 1
        assert first.usage(T0) == pytest.approx(150)
        assert first.finish(entered.take(), OK, 1.0, 0, T0) == 0
        assert [endpoint.in_flight for endpoint in ranking.endpoints] == [0, 0, 0]
        assert first.counts == (1, 0)

    def test_after_a_refusal_the_next_is_asked(self, make: Make) -> None:
        endpoint: list[Row] = [{"rpm": 1}, {"tpm": 60, "token_burst": 40}, {"max_in_flight": 1}]
        choice = make(3, endpoint=endpoint).choice(ORDERED)
        entered = [choice.admit(30, now=T0) for _ in range(4)]
        assert [each.chosen for each in entered] == [0, 1, 2, -1]
        # In the verdicts nothing is said of it: the limits are looked at when the request would go in.
        with pytest.raises(ValueError):
            entered[3].take()

    @pytest.mark.parametrize("count", [5, 20])
    def test_only_as_many_as_the_limit_are_asked(self, make: Make, count: int) -> None:
        ranking = make(count, endpoint=[{"rpm": 1}] * count)
        choice = ranking.choice(ORDERED, limit=3)
        held = [choice.admit(now=T0) for _ in range(5)]
        assert [each.chosen for each in held] == [0, 1, 2, -1, -1]

    def test_who_is_left_out_is_not_asked(self, make: Make) -> None:
        ranking = make(2, capabilities=[0, 1])
        assert ranking.choice(ORDERED).admit(capabilities=1, now=T0).chosen == 1
        assert ranking.choice(ORDERED).admit(capabilities=2, now=T0).chosen == -1

    def test_a_due_probe_is_let_in_once(self, make: Make) -> None:
        ranking = make(2)
        until = trip(ranking.endpoints[1])
        choice = ranking.choice(ORDERED)
        probe = choice.admit(now=until)
        assert probe.chosen == 1
        assert choice.admit(now=until).chosen == 0
        ranking.endpoints[1].undo(probe.take(), 0, until)
        assert choice.admit(now=until).chosen == 1

    def test_a_ticket_is_taken_once(self, make: Make) -> None:
        entered = make(1).choice(ORDERED).admit(now=T0)
        assert entered.take() >= 0
        with pytest.raises(ValueError):
            entered.take()

    def test_what_is_not_taken_is_given_back(self) -> None:
        segment = _core.Segment(256)
        endpoint = _core.Endpoint(segment, "e", rpm=60, request_burst=1, tpm=6000, token_burst=500)
        choice = ranking(_core, [endpoint]).choice(ORDERED)
        entered = choice.admit(400)
        assert (entered.chosen, endpoint.in_flight, endpoint.available_requests()) == (0, 1, 0)
        del entered
        assert (endpoint.in_flight, endpoint.available_requests()) == (0, 1)
        assert endpoint.available_tokens() == 500
        assert endpoint.counts == (0, 0)
        taken = choice.admit(400)
        ticket = taken.take()
        del taken
        assert endpoint.in_flight == 1
        endpoint.finish(ticket, OK, 1.0)

    def test_a_probe_that_is_not_taken_goes_to_the_next(self) -> None:
        endpoint = _core.Endpoint(_core.Segment(256), "e", open_s=0.001)
        for _ in range(5):
            call(endpoint, FAILURE, now=_core.clock())
        assert endpoint.hurry()
        choice = ranking(_core, [endpoint]).choice(ORDERED)
        assert [choice.admit().chosen for _ in range(3)] == [0, 0, 0]

    def test_rank_lets_nothing_in(self) -> None:
        endpoint = _core.Endpoint(_core.Segment(64), "e")
        ranked = ranking(_core, [endpoint]).choice(ORDERED).rank(100)
        assert (ranked.first, ranked.chosen, endpoint.in_flight) == (0, -1, 0)
        with pytest.raises(ValueError):
            ranked.take()

    @pytest.mark.parametrize(
        "wish", [{"tokens_in": -1}, {"tokens_out": -1}, {"now": -1}, {"seed": 0.5}], ids=repr
    )
    def test_requests_are_checked(self, wish: Any) -> None:
        endpoint = _core.Endpoint(_core.Segment(64), "e")
        choice = ranking(_core, [endpoint]).choice(LATENCY)
        for door in (choice.rank, choice.admit):
            with pytest.raises((ValueError, TypeError)):
                door(**wish)
        assert endpoint.in_flight == 0


class TestCalibrations:
    def test_each_model_counts_the_tokens_its_own_way(self, core: Any, make: Make) -> None:
        calibrations = [calibrated(core, real, 200) for real in (50, 100, 150)]
        ranking = make(3, windows=[1000] * 3, calibrations=calibrations)
        ranked = ranking.rank(ORDERED, tokens_in=800, tokens_out=10, now=T0)
        assert list(ranked.verdicts) == [IN, IN, OUT_WINDOW]
        assert ranked.prices == (411_000, 810_000, 1_210_000)
        assert ranking.choice(ORDERED).admit(800, 10, now=T0).tokens == 411
        # The row is not made anew for it: what is learned counts from the next request on.
        calibrations[2].learn(100, 1)
        for _ in range(50):
            calibrations[2].learn(100, 30)
        assert ranking.rank(ORDERED, tokens_in=800, tokens_out=10, now=T0).order == (0, 1, 2)

    def test_one_that_has_learned_nothing_changes_no_figure(self, core: Any, make: Make) -> None:
        ranking = make(1, calibrations=[core.Calibration()])
        assert ranking.choice(ORDERED).admit(2**55 + 1, now=T0).tokens == 2**55 + 1

    def test_the_most_stays_the_most(self) -> None:
        calibration = calibrated(_core, 1000, 300)
        endpoint = _core.Endpoint(_core.Segment(64), "e")
        row = ranking(_core, [endpoint], calibrations=[calibration])
        assert calibration.apply(2**61) == 2**61
        assert row.choice(ORDERED).admit(2**61, 2**61, now=T0).tokens == 2**62

    @pytest.mark.parametrize("count", [1, 17, 40])
    def test_rows_of_many_models(self, core: Any, make: Make, count: int) -> None:
        """More than the core works out without memory from the heap, by value too."""
        ranking = make(
            count,
            models=list(range(count)),
            input_prices=[(count - i) * DOLLAR for i in range(count)],
            latencies=[1.0] * count,
            calibrations=[calibrated(core, 200, i) for i in range(count)],
        )
        ranked = ranking.rank(ORDERED, tokens_in=1_000_000, among_models=VALUE, now=T0)
        assert ranked.order == tuple(sorted(range(count), key=ranked.values.__getitem__))
        assert ranked.values == pytest.approx(ranked.prices)

    def test_they_are_checked(self) -> None:
        rows = [_core.Endpoint(_core.Segment(64), "e")]
        with pytest.raises(ValueError, match="calibrations"):
            ranking(_core, rows, calibrations=[])
        with pytest.raises(TypeError, match="calibrations"):
            ranking(_core, rows, calibrations=[1.0])
