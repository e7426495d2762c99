"""The live endpoints: one set of figures for a process and what it forks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from children import ended, forked

from fastroute import Client, _core, errors, events
from fastroute.budget import Budgets
from fastroute.config import BudgetConfig, catalog_of, load
from fastroute.state.endpoints import State
from fastroute.state.segment_file import Home


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


def test_a_child_takes_from_the_same_limits() -> None:
    state = made(rpm=1, burst=2)
    core = state.endpoints[0].core
    assert core.admit(0) >= 0

    def take() -> None:
        assert core.admit(0) >= 0

    assert ended(forked(take)) == 0
    assert core.admit(0) < 0


@pytest.mark.parametrize("name", ["all", "(all)", "panic", "(panic)"])
def test_no_name_of_an_endpoint_is_that_of_the_limit_of_all(name: str) -> None:
    config = load(
        {
            "policy": {"max_in_flight": 2},
            "providers": {"p": {"base_url": "http://127.0.0.1:1/v1"}},
            "endpoints": [{"provider": "p", "model": "m", "name": name}],
        },
        formats=("openai",),
    )
    state = State(config, catalog_of(config))
    assert state.endpoints[0].core.admit(0) >= 0
    assert state.gate is not None
    assert (state.gate.in_flight, state.endpoints[0].core.in_flight) == (0, 1)


class TestTooSmall:
    """Cells are 64 here; an endpoint with one permit takes nine, their list one, and their panic rule one."""

    @pytest.fixture(autouse=True)
    def tiny(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.segment = _core.Segment(64)
        self.path: str | None = None
        monkeypatch.setattr(
            "fastroute.state.endpoints.open_home", lambda *_: Home(self.segment, "file", self.path)
        )

    def made(self, count: int, **policy: Any) -> State:
        config = load(
            {
                "providers": {"p": {"base_url": "http://127.0.0.1:1/v1", "max_in_flight": 1}},
                "endpoints": [{"provider": "p", "model": f"m{number}"} for number in range(count)],
                "policy": policy,
            },
            formats=("openai",),
        )
        return State(config, catalog_of(config))

    def test_as_many_as_there_is_room_for(self) -> None:
        state = self.made(5, max_in_flight=1)
        assert state.gate is not None
        assert [at.core.admit() >= 0 for at in (*state.endpoints, state.endpoints[0])] == [True] * 5 + [False]

    def test_endpoints_beyond_that(self) -> None:
        with pytest.raises(
            errors.ConfigError, match=r"^endpoints: only 7 of 9 fit into .* of 64 cells .* fewer"
        ):
            self.made(9)

    @pytest.mark.parametrize(("count", "policy"), [(7, {}), (6, {"max_in_flight": 1})], ids=["panic", "gate"])
    def test_what_counts_all_of_them_together(self, count: int, policy: dict[str, Any]) -> None:
        self.path = "/run/app.state"
        with pytest.raises(
            errors.ConfigError, match=rf"^endpoints: {count} leave no room .* after removing /run/app.state"
        ):
            self.made(count, **policy)

    def test_the_budgets(self) -> None:
        self.made(6)
        for number in range(self.segment.cells - self.segment.used):
            _core.Bucket(self.segment, f"another {number}", 1, 1)
        config = BudgetConfig(name="all", limit=1.0, window="day")
        with pytest.raises(errors.ConfigError, match=r"^budgets: the state has no room left to count them"):
            Budgets([config], self.segment, lambda start, tags: 0, events.Hooks())

    def test_a_process_for_which_no_slot_is_left_says_so(self, tmp_path: Path) -> None:
        with open(tmp_path / "segment", "w+b") as file:
            os.posix_fallocate(file.fileno(), 0, _core.Segment.size(64))
            self.segment = _core.Segment.in_file(file.fileno(), True)
            others = [_core.Segment.in_file(file.fileno()) for _ in range(255)]
        settings = {
            "fastroute": {"ledger": ""},
            "providers": {"p": {"base_url": "http://127.0.0.1:1/v1", "max_in_flight": 1}},
            "endpoints": [{"provider": "p", "model": "m"}],
        }
        assert len({other.slot() for other in others}) == 255
        with Client(settings) as client, pytest.raises(errors.NoEndpointError, match="255 worker slots"):
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
