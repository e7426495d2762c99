"""The live endpoints: one set of figures for a process and what it forks."""

from __future__ import annotations

import os
from typing import Any

import pytest

from fastroute.config import catalog_of, load
from fastroute.state import State


def made(**provider: Any) -> State:
    config = load(
        {
            "providers": {"p": {"base_url": "http://127.0.0.1:1/v1", **provider}},
            "endpoints": [
                {"provider": "p", "model": "m", "name": "one"},
                {"provider": "p", "model": "m", "name": "two", "rpm": 7, "burst": 3},
                {"provider": "p", "model": "n", "name": "three"},
            ],
        },
        formats=("openai",),
    )
    return State(config, catalog_of(config))


def test_endpoints_by_model_with_their_own_limits_over_the_providers() -> None:
    state = made(rpm=60, burst=10)
    assert {model: [at.name for at in group] for model, group in state.by_model.items()} == {
        "m": ["one", "two"],
        "n": ["three"],
    }
    shown = state.snapshot()
    assert [shown[name]["available_requests"] for name in ("one", "two", "three")] == [10, 3, 10]
    assert {figures["state"] for figures in shown.values()} == {"closed"}


def test_endpoints_of_one_model_learn_its_tokens_together() -> None:
    one, two, three = made().endpoints
    assert one.calibration is two.calibration
    assert one.calibration is not three.calibration


def test_no_limit_is_not_a_limit_of_nothing() -> None:
    assert made().endpoints[0].core.admit(10**9) >= 0
    assert made(rpm=0).endpoints[0].core.admit(0) < 0


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_child_takes_from_the_same_limits() -> None:
    state = made(rpm=1, burst=2)
    core = state.endpoints[0].core
    assert core.admit(0) >= 0
    child = os.fork()
    if child == 0:
        os._exit(0 if core.admit(0) >= 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert core.admit(0) < 0
