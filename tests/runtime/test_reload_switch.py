"""One setting turns routing off and on."""

from __future__ import annotations

import pytest
from served import MESSAGES, Serve

import fastroute
from fastroute import errors
from fastroute.testing import Fault

TWO = '[[endpoints]]\nprovider = "a"\nmodel = "big"\n[tiers]\nbudget = ["test-model"]\npremium = ["big"]'


def test_one_setting_turns_routing_off(serve: Serve) -> None:
    served = serve(tables=TWO)
    assert served.ask(model="test-model").route.model == "test-model"
    served.write(tables=TWO, policy='fixed_model = "big"')
    served.client.reload()
    for asked in ("auto", "test-model", "budget", "big", "never-heard-of", None):
        route = served.ask(model=asked).route
        assert route.model == "big"
        assert route.classification.level == "trivial"
    assert served.ask(model="auto", route={"tier": "budget"}).route.model == "big"
    plan = served.client.plan(messages=MESSAGES, model="auto")
    assert "fixed_model" in str(plan)
    assert {candidate.model for candidate in plan.candidates} == {"big"}
    served.write(tables=TWO)
    served.client.reload()
    assert served.ask(model="budget").route.model == "test-model"


def test_one_variable_turns_routing_off_and_on(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(tables=TWO)
    monkeypatch.setenv("FASTROUTE_POLICY__FIXED_MODEL", "big")
    served.client.reload()
    assert served.ask(model="budget").route.model == "big"
    served.write(tables=TWO, policy='fixed_model = "big"')
    monkeypatch.setenv("FASTROUTE_POLICY__FIXED_MODEL", "")
    served.client.reload()
    assert served.ask(model="budget").route.model == "test-model"


def test_without_routing_there_is_failover_among_endpoints_but_not_to_other_models(serve: Serve) -> None:
    more = (
        '[[endpoints]]\nprovider = "a"\nmodel = "big"\nupstream = "first"\nname = "one"\n'
        '[[endpoints]]\nprovider = "a"\nmodel = "big"\nupstream = "second"\nname = "two"\n'
        '[models.big]\nfallbacks = ["test-model"]\n'
    )
    served = serve(tables=more, policy='fixed_model = "big"')
    served.provider.script(Fault.status(500))
    assert served.ask(model="test-model").route.endpoint == "two"
    served.provider.script(*(Fault.status(500) for _ in range(9)))
    with pytest.raises(fastroute.InternalServerError):
        served.ask()
    assert {received.json["model"] for received in served.provider.requests} == {"first", "second"}


@pytest.mark.parametrize("name", ["nobody", "auto", "budget"])
def test_a_fixed_model_must_have_an_endpoint(serve: Serve, name: str) -> None:
    served = serve(tables=TWO)
    served.write(tables=TWO, policy=f'fixed_model = "{name}"')
    with pytest.raises(errors.ConfigError, match=r"policy\.fixed_model"):
        served.client.reload()
