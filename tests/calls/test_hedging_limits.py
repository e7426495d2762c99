"""A hedge never exceeds a limit, a budget, a share or `max_cost`."""

from __future__ import annotations

import pytest
from hedged import (
    SLOW,
    Start,
    endpoint,
    hedging,
    known,
    outcomes,
    refused,
    tried,
)
from loopback import MODEL, Loopback

import fastroute
from fastroute import events
from fastroute.testing import Fault


@pytest.fixture
def loop(start: Start) -> Loopback:
    found = start(2, policy=hedging())
    known(found)
    return found


@pytest.mark.parametrize("limits", [{"rpm": 0}, {"tpm": 1}, {"max_in_flight": 0}], ids=str)
def test_not_where_the_other_is_at_its_limit(start: Start, limits: dict[str, int]) -> None:
    loop = start(2, policy=hedging(), providers={"b": limits})
    known(loop)
    refused(loop)


def test_not_over_the_limit_of_all_endpoints_together(start: Start) -> None:
    loop = start(2, policy={**hedging(), "max_in_flight": 1})
    known(loop)
    refused(loop)


def test_not_past_an_open_breaker(loop: Loopback) -> None:
    core = endpoint(loop, "b").core
    for _ in range(5):
        core.finish(core.admit(1), fastroute._core.FAILURE)
    assert core.state() == fastroute._core.OPEN
    refused(loop)


@pytest.mark.parametrize("on_breach", ["refuse", "downgrade"])
def test_not_over_a_budget_and_nobody_is_told_of_a_refusal(start: Start, on_breach: str) -> None:
    budget = {"name": "small", "limit": 0.00013, "window": "total", "on_breach": on_breach}
    loop = start(2, policy=hedging(), budgets=[budget])
    known(loop)
    refused(loop, max_tokens=50)  # its worst case is 0.00011 USD
    assert loop.of(events.BudgetExceededEvent) == []


def test_not_over_the_allowance_of_a_copy_of_the_client(loop: Loopback) -> None:
    loop.provider("a").script(Fault.slow(0.25))
    copy = loop.client.with_options(budget=0.00013)
    reply = copy.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Say hello"}], max_tokens=50
    )
    assert outcomes(tried(reply)) == {"a": "ok"}


def test_not_over_the_price_cap_of_the_call(loop: Loopback) -> None:
    refused(loop, max_tokens=50, route={"max_cost": 0.00015})
    loop.provider("a").script(SLOW)
    reply = loop.ask(max_tokens=50, route={"max_cost": 0.0005})
    assert "hedge_lost" in outcomes(tried(reply)).values()


def test_not_where_retries_have_used_up_half_the_budget_for_them(loop: Loopback) -> None:
    core = endpoint(loop, "b").core
    for _ in range(5):
        assert core.withdraw()
    refused(loop)


def test_whoever_lets_it_in_is_paid_for_once(start: Start) -> None:
    """Of two endpoints beside the first, one has no retry budget left for it: the other gets it."""
    loop = start(3, policy=hedging())
    known(loop)
    core = endpoint(loop, "b").core
    for _ in range(5):
        assert core.withdraw()
    loop.provider("a").script(SLOW)
    assert outcomes(tried(loop.ask())) == {"a": "hedge_lost", "c": "ok"}
    tail = endpoint(loop).tail(False)
    assert tail is not None
    assert tail.hedges() == 1


def test_where_nobody_lets_it_in_it_keeps_no_permit(start: Start) -> None:
    loop = start(3, policy={**hedging(), "max_in_flight": 5}, providers={"all": {"max_in_flight": 1}})
    known(loop)
    held = [(core, core.admit(1)) for core in (endpoint(loop, name).core for name in "bc")]
    refused(loop)
    for core, ticket in held:
        core.undo(ticket, 1)
    gate = loop.client.runtime.generation.state.gate
    assert gate is not None
    assert gate.in_flight == 0


def test_not_more_than_their_share_of_the_calls(start: Start) -> None:
    loop = start(2, policy=hedging(max_share=0.1))
    known(loop, calls=20)
    for place in range(4):
        loop.provider("a").script(Fault.slow(0.25))
        reply = loop.ask()
        assert len(tried(reply)) == (2 if place < 2 else 1)


def test_not_to_another_stage_than_the_first(start: Start) -> None:
    """A fallback is for when there is no other way, not for haste."""
    loop = start(
        1,
        policy=hedging(),
        models={MODEL: {"fallbacks": ["spare"]}, "spare": {}},
        more_endpoints=[{"provider": "a", "model": "spare"}],
    )
    known(loop)
    loop.provider("a").script(Fault.slow(0.25))
    assert outcomes(tried(loop.ask())) == {"a": "ok"}
