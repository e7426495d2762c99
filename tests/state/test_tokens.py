"""Token estimates lean high, learn within bounds, and never ask for more than a model gives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastroute._core import Calibration
from fastroute.config.catalog import Model
from fastroute.state.tokens import OutputHistory, estimate_input, reasoning_tokens

LIMITED = Model(name="limited", max_output_tokens=4096)
UNLIMITED = Model(name="unlimited")


@pytest.mark.parametrize(
    ("chars", "utf8", "messages", "images", "tokens"),
    [
        (0, 0, 1, 0, 8),
        (3, 3, 1, 0, 9),
        (4, 4, 1, 0, 10),
        (300, 300, 2, 0, 116),
        (300, 1200, 1, 0, 308),
        (0, 0, 1, 2, 2008),
    ],
)
def test_estimate_follows_the_formula(chars, utf8, messages, images, tokens):
    assert estimate_input(chars, utf8, messages, images) == tokens


@pytest.mark.parametrize(
    ("params", "tokens"),
    [
        ({}, None),
        *(
            ({"reasoning_effort": effort}, tokens)
            for effort, tokens in {
                "none": 0,
                "minimal": 1_000,
                "low": 2_000,
                "medium": 8_000,
                "high": 24_000,
                "xhigh": 48_000,
                "max": 64_000,
                "some day": None,
            }.items()
        ),
        ({"reasoning_effort": True}, None),
        ({"reasoning": {"effort": "low"}}, 2_000),
        ({"reasoning": {"max_tokens": 5_000}}, 5_000),
        ({"reasoning": {"enabled": False, "effort": "low"}}, 0),
        ({"reasoning": {"enabled": True, "effort": "low"}}, 2_000),
        ({"reasoning": "low"}, None),
        ({"reasoning": {}}, None),
        ({"thinking": {"type": "disabled", "budget_tokens": 5_000}}, 0),
        ({"thinking": {"type": "enabled", "budget_tokens": 5_000}}, 5_000),
        ({"thinking": {"type": "adaptive"}}, 8_000),
        ({"thinking": "much"}, None),
        ({"thinking": {"budget_tokens": -5}}, 0),
        ({"thinking": {"budget_tokens": 10**9}}, 1_000_000),
        # The first that says something counts.
        ({"reasoning_effort": "high", "reasoning": {"effort": "low"}, "thinking": {}}, 24_000),
        ({"reasoning": {"effort": "low"}, "thinking": {"budget_tokens": 5_000}}, 2_000),
        ({"reasoning": {}, "thinking": {"budget_tokens": 5_000}}, 5_000),
    ],
)
def test_the_reasoning_that_a_request_asks_for(params, tokens):
    assert reasoning_tokens(params) == tokens


def test_calibration_moves_towards_what_was_seen_and_rounds_up():
    calibration = Calibration()
    assert calibration.apply(100) == 100
    calibration.learn(100, 50)
    assert calibration.ratio == pytest.approx(0.95)
    assert calibration.apply(101) == 96
    for _ in range(200):
        calibration.learn(100, 50)
    assert calibration.ratio == pytest.approx(0.5)


@given(st.lists(st.tuples(st.integers(-5, 10**9), st.integers(-5, 10**18)), max_size=60))
def test_no_usage_whatever_takes_the_ratio_out_of_bounds(observations):
    calibration = Calibration()
    for estimate, real in observations:
        calibration.learn(estimate, real)
    assert 0.3 <= calibration.ratio <= 3.0


def test_impossible_figures_teach_nothing():
    calibration = Calibration()
    calibration.learn(0, 100)
    calibration.learn(100, 0)
    calibration.learn(100, -3)
    assert calibration.ratio == 1.0


def test_expected_output_is_what_was_allowed_within_the_models_limit():
    history = OutputHistory()
    assert history.expected_output(100, LIMITED) == 100
    assert history.expected_output(0, LIMITED) == 0
    assert history.expected_output(10_000, LIMITED) == 4096
    assert history.expected_output(10_000, UNLIMITED) == 10_000


def test_expected_output_without_a_limit_is_the_95th_percentile_and_at_least_256():
    history = OutputHistory()
    assert history.expected_output(None, LIMITED) == 256
    for tokens in range(1, 101):
        history.record("limited", tokens * 10)
    assert history.expected_output(None, LIMITED) == 950
    assert history.expected_output(None, UNLIMITED) == 256
    history.record("small", 0)
    assert history.expected_output(None, Model(name="small", max_output_tokens=100)) == 100


def test_old_outputs_are_forgotten():
    history = OutputHistory()
    for _ in range(200):
        history.record("limited", 4000)
    for _ in range(200):
        history.record("limited", 300)
    assert history.expected_output(None, LIMITED) == 300
