"""Health checks: endpoints that need one get one per interval, and no caller is affected.

Most tests make the looks themselves and say what time it is; the interval is so long that the client's own
thread makes none meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from health_looks import SECOND, Looks, Start, broken, checking, lists, outcomes, posts
from loopback import MODEL, core_of
from redis_server import RedisServer

from fastroute import _core, events
from fastroute.providers import base
from fastroute.providers.openai import OpenAI
from fastroute.testing import Fault, Provider


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


# ------------------------------------------------------------------------------------------- which, and when


def test_there_are_none_unless_they_are_wanted(start: Start) -> None:
    loop = start()
    loop.ask()
    assert loop.client.runtime.health is None
    assert loop.client.stats()["health_checks"] is None
    assert "fastroute-health" not in {thread.name for thread in threading.enumerate()}


def test_an_idle_endpoint_is_checked_once_an_interval(start: Start) -> None:
    loop = start(policy=checking())
    loop.ask()
    before = loop.endpoint()
    looks = Looks(loop.client)
    looks.look()
    assert lists(loop.provider()) == []
    looks.later(0.9).look()
    assert lists(loop.provider()) == []
    for done in range(1, 4):
        looks.later(1.05).look()
        assert len(lists(loop.provider())) == done
    looks.look()
    looks.later(0.9).look()
    assert len(lists(loop.provider())) == 3
    after = loop.endpoint()
    assert after["ewma_s"] <= before["ewma_s"]
    assert after["p50_s"] == before["p50_s"]
    assert after["succeeded"] == before["succeeded"] + 3
    assert len(posts(loop.provider())) == 1
    assert loop.client.stats()["health_checks"][f"a/{MODEL}"]["checks"] == 3
    assert outcomes(loop) == [("ok", None)] * 3


def test_an_endpoint_that_callers_use_is_not_checked(start: Start) -> None:
    loop = start(policy=checking())
    looks = Looks(loop.client)
    for _ in range(3):
        loop.ask()
        looks.later(1.05).look()
    assert lists(loop.provider()) == []
    looks.later(1.05).look()
    assert len(lists(loop.provider())) == 1


@pytest.mark.parametrize(
    ("limits", "policy"),
    [
        ({"max_in_flight": 2}, {}),
        ({"rpm": 60, "burst": 2}, {}),
        ({"tpm": 6000, "token_burst": 6000}, {}),
        ({}, {"max_in_flight": 2}),
    ],
    ids=["permits", "requests", "tokens", "permits of all"],
)
def test_no_check_takes_what_a_caller_may_need(
    start: Start, limits: dict[str, int], policy: dict[str, int]
) -> None:
    loop = start(policy={**checking(), **policy}, providers={"a": limits})
    looks = Looks(loop.client)
    state = loop.client.runtime.generation.state
    core = state.gate or state.endpoints[0].core
    tokens = (4000, 0) if "burst" in limits else (4000,)
    tickets = [core.admit(count) for count in tokens]
    assert min(tickets) >= 0
    looks.later(2).look()
    assert lists(loop.provider()) == []
    for ticket, count in zip(tickets, tokens):
        core.undo(ticket, count)
    looks.look()
    assert len(lists(loop.provider())) == 1


def test_no_check_while_a_call_waits_in_line(start: Start) -> None:
    loop = start(policy=checking())
    looks = Looks(loop.client).later(2)
    queue = loop.client.runtime.queue
    waiter = queue.enter(queue.waiter(1))
    looks.look()
    queue.leave(waiter)
    assert lists(loop.provider()) == []
    looks.look()
    assert len(lists(loop.provider())) == 1


def test_a_blocked_endpoint_is_not_checked(start: Start) -> None:
    loop = start(policy=checking())
    looks = Looks(loop.client).later(2)
    core = core_of(loop.client)
    core.block(_core.clock() + 1000 * SECOND, 1)
    looks.look()
    assert lists(loop.provider()) == []
    core.unblock()
    looks.look()
    assert len(lists(loop.provider())) == 1


# ------------------------------------------------------------------------------------------- what comes of it


def test_a_check_by_answer_closes_a_breaker_before_any_caller_meets_the_endpoint(start: Start) -> None:
    loop = start(2, policy=checking("completion"), budgets=[{"name": "all", "limit": 10, "window": "total"}])
    looks = Looks(loop.client)
    broken(loop)
    looks.look()
    assert [request.json["max_tokens"] for request in posts(loop.provider())] == [1, 1]  # probes_to_close
    assert loop.endpoint()["state"] == "closed"
    looks.look()
    assert loop.provider().received == 5
    assert outcomes(loop) == [("ok", None)]
    assert loop.endpoint()["p50_s"] is None  # says nothing of how long callers' answers take
    failed = len([attempt for attempt in loop.attempts if attempt.outcome == "failed"])
    reply = loop.ask()
    assert reply.route is not None
    assert reply.route.endpoint == f"a/{MODEL}"
    assert failed == 3 == len([attempt for attempt in loop.attempts if attempt.outcome == "failed"])
    # What a check spends is entered and charged.
    rows = [row for row in loop.client.ledger.entries(None) if row.tags.get("probe") == "health-check"]
    assert len(rows) == 2
    assert all(row.cost_nano for row in rows)
    spent = loop.client.stats()["budgets"][0].spent_nano
    assert spent == sum(attempt.cost_nano or 0 for attempt in loop.attempts)


def test_over_redis_a_check_by_answer_closes_a_breaker_too(start: Start, redis: RedisServer) -> None:
    policy = checking("completion")
    loop = start(2, policy=policy, fastroute={"state": f"unix://{redis.socket}"})
    looks = Looks(loop.client)
    broken(loop)
    looks.look()
    assert loop.endpoint()["state"] == "closed"
    assert len(posts(loop.provider())) == 2


def test_a_check_that_fails_opens_the_breaker_again(start: Start) -> None:
    loop = start(2, policy=checking("completion"))
    looks = Looks(loop.client)
    broken(loop)
    loop.provider("a").script(Fault.status(503))
    looks.look()
    assert len(posts(loop.provider())) == 1
    assert loop.endpoint()["state"] == "open"
    assert outcomes(loop) == [("failed", "InternalServerError")]


def test_a_list_ends_the_opening_and_leaves_the_probe_to_a_call(start: Start) -> None:
    loop = start(2, policy=checking())
    looks = Looks(loop.client)
    broken(loop)
    looks.look()
    assert (len(lists(loop.provider())), len(posts(loop.provider()))) == (1, 0)
    assert loop.endpoint()["state"] == "half-open"
    reply = loop.ask()
    assert reply.route is not None
    assert (reply.route.endpoint, len(reply.route.attempts)) == (f"a/{MODEL}", 1)


def test_while_nobody_is_there_the_breaker_stays_open(start: Start) -> None:
    loop = start(2, policy=checking())
    looks = Looks(loop.client)
    broken(loop)
    loop.provider("a").kill()
    looks.look()
    assert loop.endpoint()["state"] == "open"
    assert outcomes(loop) == [("failed", "APIConnectionError")]
    # Its time is up: the check takes the place of the probe, and no call is spent on it.
    core = core_of(loop.client)
    assert core.hurry()
    looks.later().look()
    assert loop.endpoint()["state"] == "open"
    loop.provider("a").restart()


@pytest.mark.parametrize("kind", ["models", "completion"])
def test_an_endpoint_that_dies_while_idle_is_left_alone_before_a_caller_asks(start: Start, kind: str) -> None:
    loop = start(2, policy=checking(kind, max_tokens=3))
    looks = Looks(loop.client)
    loop.provider("a").kill()
    for _ in range(3):
        looks.later(1.05).look()
    assert loop.endpoint()["state"] == "open"
    assert len(loop.of(events.BreakerChanged)) == 1
    reply = loop.ask()
    assert reply.route is not None
    assert [attempt.endpoint for attempt in reply.route.attempts] == [f"b/{MODEL}"]
    loop.provider("a").restart()


@pytest.mark.parametrize(
    ("fault", "before", "after"),
    [
        (Fault.status(404), "unclear", "unclear"),
        (Fault.status(401), "unclear", "unclear"),
        (Fault.status(429), "unclear", "unclear"),
        (Fault.html(), "unclear", "failed"),
        (Fault.status(503), "unclear", "failed"),
        (Fault.reset(), "failed", "failed"),
        (Fault.black_hole(), "failed", "failed"),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else value,
)
def test_no_list_counts_against_an_endpoint_that_had_one(
    start: Start, fault: Fault, before: str, after: str
) -> None:
    loop = start(policy=checking(timeout=0.3))
    looks = Looks(loop.client)
    loop.provider().script(*[fault] * (2 if fault.name.startswith("reset") else 1))
    looks.later(1.05).look()
    loop.provider().clear_script()
    looks.later(1.05).look()
    loop.provider().script(*[fault] * (2 if fault.name.startswith("reset") else 1))
    looks.later(1.05).look()
    assert [outcome for outcome, _ in outcomes(loop)] == [before, "ok", after]
    figures = loop.endpoint()
    assert figures["failed"] == [before, after].count("failed")
    assert figures["blocked_s"] == 0


def test_an_answer_that_is_only_refused_counts_neither_way(start: Start) -> None:
    loop = start(2, policy=checking("completion"))
    looks = Looks(loop.client)
    broken(loop)
    loop.provider("a").script(Fault.status(400))
    looks.look()
    assert loop.endpoint()["state"] == "half-open"
    assert outcomes(loop) == [("unclear", "BadRequestError")]


def test_a_check_has_its_own_time_and_a_neighbour_does_not_wait_for_it(start: Start) -> None:
    loop = start(2, policy=checking("completion", timeout=0.4))
    looks = Looks(loop.client)
    loop.provider("a").script(Fault.black_hole())
    looks.later(1.05)
    looking = threading.Thread(target=looks.look)
    looking.start()
    loop.provider("a").wait_until(lambda known: known.in_flight == 1)
    loop.provider("b").wait_until(lambda known: known.received == 1)
    assert loop.provider("a").in_flight == 1
    looking.join()
    assert outcomes(loop) == [("failed", "APITimeoutError")]
    assert outcomes(loop, "b") == [("ok", None)]


def test_a_budget_that_is_used_up_leaves_the_check_out(start: Start) -> None:
    loop = start(policy=checking("completion"), budgets=[{"name": "all", "limit": 1e-9, "window": "total"}])
    Looks(loop.client).later(1.05).look()
    assert loop.provider().received == 0
    assert outcomes(loop) == []
    figures = loop.client.stats()["health_checks"][f"a/{MODEL}"]
    assert (figures["checks"], figures["skipped"]) == (0, 1)


@pytest.mark.parametrize("kind", ["models", "completion"])
@pytest.mark.parametrize("format", ["openai", "anthropic", "gemini", "azure"])
def test_every_format_can_be_checked(start: Start, format: str, kind: str) -> None:
    loop = start(format=format, policy=checking(kind))
    Looks(loop.client).later(1.05).look()
    assert outcomes(loop) == [("ok", None)]
    assert loop.provider().received == 1


@pytest.mark.parametrize(("kind", "count"), [("models", 0), ("completion", 1)])
def test_a_format_without_lists_is_checked_by_answer_or_not_at_all(
    start: Start, monkeypatch: pytest.MonkeyPatch, kind: str, count: int
) -> None:
    class Listless(OpenAI):
        name = "listless"

    monkeypatch.setitem(base.registered, "listless", Listless())
    loop = start({"a": Provider()}, format="listless", policy=checking(kind))
    Looks(loop.client).later(1.05).look()
    assert loop.provider().received == count
    figures = loop.client.stats()["health_checks"][f"a/{MODEL}"]
    assert (figures["checks"], figures["skipped"]) == (count, 1 - count)
