"""The order of attempts, compared with a simple implementation of its rules over random faults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import MODEL, Loopback

import fastroute
from fastroute import _core
from fastroute.testing import Fault, Provider

NAMES = "abc"

# What an endpoint answers, by what the rules make of it.
KINDS = {
    "ok": None,
    "retry": Fault.status(503),
    "throttled": Fault.status(429),
    "blocked": Fault.status(401),
    "empty": Fault.status(200, b'{"choices": []}'),
    "elsewhere": Fault.status(500, headers={"x-should-retry": "false"}),
    "stop": Fault.status(400),
}


@dataclass
class Outcome:
    order: list[str]
    answered: bool


def reference(scripts: dict[str, list[str]], most: int) -> Outcome:
    """Who is asked in which order: the untried first, then again those that may be, the longest ago first."""
    left = {name: list(script) for name, script in scripts.items()}
    order: list[str] = []
    untried, again, emptied = sorted(scripts), [], []
    while untried or again:
        name = untried.pop(0) if untried else again.pop(0)
        order.append(name)
        kind = left[name].pop(0) if left[name] else "ok"
        if kind == "ok":
            return Outcome(order, True)
        if (kind == "stop" and name == order[0]) or len(order) == most:
            return Outcome(order, False)
        if kind in ("retry", "throttled") or (kind == "empty" and name not in emptied):
            again.append(name)
        if kind == "empty":
            emptied.append(name)
    return Outcome(order, False)


@pytest.fixture(scope="module")
def loop() -> Iterator[Loopback]:
    providers = {name: Provider(answer="x").start() for name in NAMES}
    breaker = {"failures": 255, "min_calls": 10_000}
    with Loopback(providers, None, {"policy": {"max_attempts": 5, "breaker": breaker}}).client as client:
        made = Loopback.__new__(Loopback)
        made.providers, made.client, made.events = providers, client, []
        yield made
    for provider in providers.values():
        provider.stop()


@settings(max_examples=40, deadline=None)
@given(st.fixed_dictionaries({name: st.lists(st.sampled_from(sorted(KINDS)), max_size=3) for name in NAMES}))
def test_attempts_go_in_the_order_of_the_rules(loop: Loopback, scripts: dict[str, list[str]]) -> None:
    for endpoint in loop.client.runtime.generation.state.endpoints:
        endpoint.core.unblock()
        while endpoint.core.health()[0] < 100:  # what earlier examples took would change the order
            endpoint.core.finish(endpoint.core.admit(), _core.OK)
    for name, script in scripts.items():
        loop.provider(name).clear_script()
        loop.provider(name).script(*[KINDS[kind] for kind in script])
    expected = reference(scripts, 5)
    try:
        reply = loop.ask()
    except fastroute.Error as error:
        answered, attempts = False, error.attempts
    else:
        assert reply.route is not None
        answered, attempts = True, reply.route.attempts
    asked = [attempt.provider for attempt in attempts]
    exhausted = not answered and asked == expected.order[: len(asked)] and len(asked) < len(expected.order)
    # The retry budget may end it sooner, which the reference does not know; only retries are budgeted.
    if not (exhausted and len(asked) >= len(NAMES)):
        assert (asked, answered) == (expected.order, expected.answered)
    assert {name: loop.endpoint(name)["in_flight"] for name in NAMES} == dict.fromkeys(NAMES, 0)


def test_the_reference_is_not_trivial() -> None:
    assert reference({"a": ["retry"], "b": ["elsewhere"], "c": []}, 5).order == ["a", "b", "c"]
    assert reference({"a": ["retry"], "b": ["blocked"]}, 5).order == ["a", "b", "a"]
    assert reference({"a": ["empty"] * 3, "b": ["stop"]}, 5) == Outcome(["a", "b", "a"], False)
    assert reference({"a": ["stop"], "b": []}, 5) == Outcome(["a"], False)
    assert MODEL
