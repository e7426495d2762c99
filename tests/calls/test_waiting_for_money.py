"""Calls that fail only because money is reserved for others wait for it: all of them, in order."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from client_processes import forked
from loopback import held
from opcode_yield import run_yielding

import fastroute
from fastroute import _core, errors, events
from fastroute.budget import Allowance, Budgets, MoneyReserved
from fastroute.calls.queue import Waiter, WaitQueue
from fastroute.config import BudgetConfig
from fastroute.testing import Answer, Fault, Provider

MESSAGES = [{"role": "user", "content": "Hello there"}]
PRICES = {"input_price": 1.0, "output_price": 1.0, "context_window": 100_000}
LONG = 10.0
Client = Callable[..., fastroute.Client]


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider(models=["m", "dear"], answer=Answer("hi", prompt_tokens=5, completion_tokens=5)) as each:
        yield each


def tables(provider: Provider, *budgets: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "fastroute": {"ledger": "", "timeout": 30.0, **more.pop("fastroute", {})},
        "cache": {"enabled": False},
        "providers": {"p": {"base_url": provider.base_url}},
        "endpoints": [{"provider": "p", "model": "m"}, {"provider": "p", "model": "dear"}],
        "models": {"m": PRICES, "dear": {**PRICES, "output_price": 100.0}},
        "tiers": {"budget": ["m"], "premium": ["dear"]},
        "budgets": list(budgets),
        "policy": {"queue_timeout": LONG, **more.pop("policy", {})},
        **more,
    }


def budget(limit: float, **more: Any) -> dict[str, Any]:
    return {"name": "all", "limit": limit, "window": "total", **more}


def ask(client: fastroute.Client, tokens: int = 1000, **more: Any) -> fastroute.Completion:
    reply = client.chat.completions.create(
        **{"model": "m", "messages": MESSAGES, "max_tokens": tokens, **more}
    )
    assert isinstance(reply, fastroute.Completion)
    return reply


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """What each call returned or raised, all of them begun at the same time."""
    found: list[Any] = [None] * len(calls)
    together = threading.Barrier(len(calls))

    def run(place: int) -> None:
        together.wait(LONG)
        try:
            found[place] = calls[place]()
        except fastroute.Error as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


# ----------------------------------------------------------------------------------- whole calls, on loopback


@pytest.mark.parametrize("payer", ["budget", "soft budget", "budget of a tag", "with_options", "two budgets"])
@pytest.mark.parametrize("stream", [False, True])
def test_all_are_served_where_the_money_is_only_reserved(
    provider: Provider, payer: str, stream: bool
) -> None:
    # The worst case of one call is 0.00104; two fit beside each other, and each costs 0.00001.
    limit = 0.0022
    found = {
        "budget": [budget(limit)],
        "soft budget": [budget(0.001, hard=False)],
        "budget of a tag": [budget(limit, per="tag:team")],
        "two budgets": [budget(1.0, name="wide"), budget(limit)],
    }.get(payer, [])
    provider.script(*[Fault.slow(0.02)] * 16)
    with fastroute.Client(tables(provider, *found)) as client:
        paying = client.with_options(budget=limit) if payer == "with_options" else client

        def call() -> None:
            if not stream:
                ask(paying)
                return
            with paying.chat.completions.create(
                model="m", messages=MESSAGES, max_tokens=1000, stream=True
            ) as answer:
                for _ in answer:
                    pass

        outcomes = at_once([call] * 16)
        assert [each for each in outcomes if each is not None] == []
        assert len(provider.requests) == 16
        assert held(client) == {}


def test_a_call_that_waits_holds_no_permit(provider: Provider) -> None:
    settings = tables(provider, budget(0.0015, per="tag:team"))
    settings["providers"]["p"]["max_in_flight"] = 2
    with fastroute.Client(settings) as client:
        provider.script(Fault.slow(1.0))
        running = client.submit(
            model="m", messages=MESSAGES, max_tokens=1000, route={"tags": {"team": "red"}}
        )
        provider.wait_until(lambda known: known.in_flight == 1)
        waiting = client.submit(
            model="m", messages=MESSAGES, max_tokens=1000, route={"tags": {"team": "red"}}
        )
        deadline = time.monotonic() + LONG
        while not client.stats()["queued"] and time.monotonic() < deadline:
            time.sleep(0.005)
        ask(client, route={"tags": {"team": "blue"}})  # which would find both permits in use
        assert not running.done()
        assert waiting.result(LONG).route.waited > 0
        assert running.result(LONG)


def test_money_that_others_spend_meanwhile_ends_the_wait(provider: Provider) -> None:
    provider.answer = Answer("x", prompt_tokens=5, completion_tokens=1000)
    provider.script(*[Fault.slow(0.05)] * 8)
    with fastroute.Client(tables(provider, budget(0.0032))) as client:
        outcomes = at_once([lambda: ask(client)] * 8)
        refused = [each for each in outcomes if isinstance(each, fastroute.BudgetExceeded)]
        # Each costs what it could at most, but for a few tokens of the prompt.
        assert (len(provider.requests), len(refused)) == (3, 5)
        assert all(type(each) is fastroute.BudgetExceeded for each in refused)
        assert all(each.retry_after is None for each in refused)  # a total has no next window


@pytest.mark.parametrize(
    ("policy", "call"),
    [({"queue_timeout": 0.05}, {}), ({"max_queue": 0}, {}), ({}, {"timeout": 0.3})],
    ids=["queue_timeout", "max_queue", "deadline"],
)
def test_the_wait_is_bounded_as_others_are(
    provider: Provider, policy: dict[str, Any], call: dict[str, Any]
) -> None:
    heard: list[events.BudgetExceededEvent] = []
    with fastroute.Client(tables(provider, budget(0.0015, window="day"), policy=policy)) as client:
        client.on(heard.append, events.BudgetExceededEvent)
        provider.script(Fault.slow(2.0))
        running = client.submit(model="m", messages=MESSAGES, max_tokens=1000)
        provider.wait_until(lambda known: known.in_flight == 1)
        with pytest.raises(fastroute.BudgetExceeded) as caught:
            ask(client, **call)
        assert type(caught.value) is fastroute.BudgetExceeded
        assert caught.value.retry_after == 1.0  # not until midnight: the money comes back in seconds
        assert "wait for the calls under way" in str(caught.value)
        assert len(heard) == 1  # one refusal, however often it was looked at
        running.result(LONG)
        assert held(client) == {}


def test_a_submitted_call_waits_for_money_until_its_deadline(provider: Provider) -> None:
    with fastroute.Client(tables(provider, budget(0.0015), policy={"queue_timeout": 0.01})) as client:
        provider.script(Fault.slow(0.3))
        first, second = (client.submit(model="m", messages=MESSAGES, max_tokens=1000) for _ in range(2))
        assert first.result(LONG)
        assert second.result(LONG)


def test_a_larger_call_is_not_starved_by_smaller_ones(provider: Provider) -> None:
    with fastroute.Client(tables(provider, budget(0.0025))) as client:
        provider.script(*[Fault.slow(0.05)] * 40)
        stop = threading.Event()
        served: list[int] = []

        def small() -> None:
            while not stop.is_set():
                ask(client)
                served.append(1)

        threads = [threading.Thread(target=small) for _ in range(4)]
        for thread in threads:
            thread.start()
        provider.wait_until(lambda known: known.in_flight == 2)
        reply = ask(client, 2400)  # fits only while no other call is under way
        before = len(served)
        stop.set()
        for thread in threads:
            thread.join(LONG)
        assert reply.route is not None
        assert before < 20


def test_a_higher_class_goes_first(provider: Provider) -> None:
    order: list[str] = []
    with fastroute.Client(tables(provider, budget(0.0015))) as client:
        provider.script(*[Fault.slow(0.1)] * 5)

        def call(priority: str) -> None:
            ask(client, route={"priority": priority})
            order.append(priority)

        first = client.submit(model="m", messages=MESSAGES, max_tokens=1000)
        provider.wait_until(lambda known: known.in_flight == 1)
        threads = []
        for number, priority in enumerate(("low", "normal", "high"), 1):
            threads.append(threading.Thread(target=call, args=(priority,)))
            threads[-1].start()
            deadline = time.monotonic() + LONG
            while client.stats()["queued"] < number and time.monotonic() < deadline:
                time.sleep(0.002)
        first.result(LONG)
        for thread in threads:
            thread.join(LONG)
    assert order == ["high", "normal", "low"]


@pytest.mark.parametrize("hard", [True, False])
def test_a_budget_that_downgrades_does_so_rather_than_wait(provider: Provider, hard: bool) -> None:
    heard: list[events.BudgetExceededEvent] = []
    spending = budget(0.11, hard=hard, on_breach="downgrade")
    with fastroute.Client(tables(provider, spending)) as client:
        client.on(heard.append, events.BudgetExceededEvent)
        provider.script(Fault.slow(1.0))
        running = client.submit(model="dear", messages=MESSAGES, max_tokens=1000 if hard else 1200)
        provider.wait_until(lambda known: known.in_flight == 1)
        reply = ask(client, model="dear")
        assert reply.route is not None
        assert (reply.route.model, reply.route.downgraded) == ("m", "all")
        assert not running.done()
        assert len(heard) == 1
        running.result(LONG)


def test_a_soft_budget_that_downgrades_serves_a_call_that_has_nowhere_cheaper_to_go(
    provider: Provider,
) -> None:
    spending = budget(0.00001, hard=False, on_breach="downgrade")
    with fastroute.Client(tables(provider, spending)) as client:
        for _ in range(3):
            reply = ask(client, model="budget")
            assert reply.route is not None
            assert (reply.route.model, reply.route.downgraded) == ("m", None)
        assert client.budgets()[0].spent_nano == 30_000  # what is served is counted


def test_a_failure_before_is_the_call_s_error_and_the_refusal_its_cause(provider: Provider) -> None:
    settings = tables(provider, budget(0.0021, hard=True), policy={"backoff_base": 0.001})
    with fastroute.Client(settings) as client:
        provider.script(Fault.truncated(), Fault.truncated())  # each may be charged
        with pytest.raises(fastroute.UpstreamTruncated) as caught:
            ask(client)
        causes = [caught.value.__cause__, getattr(caught.value.__cause__, "__cause__", None)]
        assert any(isinstance(cause, fastroute.BudgetExceeded) for cause in causes)


# ---------------------------------------------------------------------------------------- between processes


def test_workers_of_one_state_wait_for_each_other(provider: Provider, tmp_path: Path) -> None:
    settings = tables(provider, budget(0.0022), fastroute={"state": str(tmp_path / "state")})
    provider.script(*[Fault.slow(0.02)] * 16)

    def work() -> int:
        with fastroute.Client(settings) as client:
            outcomes = at_once([lambda: ask(client)] * 4)
            assert [each for each in outcomes if isinstance(each, BaseException)] == []
        return len(outcomes)

    with fastroute.Client(settings) as client:
        ask(client)  # the state is there
        results = [forked(work) for _ in range(4)]
        assert sum(result() for result in results) == 16
        assert len(provider.requests) == 17
        (left,) = client.budgets()
        assert (left.spent_nano, left.reserved_nano) == (17 * 10_000, 0)


# ----------------------------------------------------------------------- exact, with a switch at any bytecode

yields = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="tracing in 3.10 writes old closure values back"
)
MONEY = (
    "/budget/__init__.py",
    "/budget/reservation.py",
    "/budget/scopes.py",
    "/budget/allowance.py",
    "/calls/queue.py",
)


@yields
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("payer", ["budget", "allowance"])
def test_no_wake_up_is_lost(seed: int, payer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of one nano-dollar each and a limit of one: all go in, one at a time, woken by each other."""
    doze = Waiter.sleep

    def sleep(waiter: Waiter, seconds: float) -> None:
        assert doze(waiter, seconds), "nobody woke it"

    # In one process nobody needs to look again by the clock: whoever sleeps must be woken.
    monkeypatch.setattr("fastroute.calls.queue.POLL_INTERVAL", LONG)
    monkeypatch.setattr(Waiter, "sleep", sleep)
    queue = WaitQueue()
    config = BudgetConfig(name="all", limit=1e-9, window="total")
    segment = _core.Segment(256)
    budgets = Budgets([config], segment, lambda since, tags: 0, events.Hooks(), queue.freed)
    allowance = Allowance(1, queue.freed)
    counting = threading.Lock()
    under = most = 0

    def enter(name: str, waiter: Waiter) -> Callable[[], None]:
        def behind(line: str) -> bool:
            return queue.is_behind(line, 1, waiter)

        if payer == "budget":
            reservation = budgets.reserve(1, {}, 60.0, behind=behind)
            return lambda: reservation.settle(0)
        allowance.reserve(name, 1, behind=behind)
        return lambda: allowance.settle(name, 0)

    def call(number: int) -> int:
        nonlocal under, most
        for turn in range(4):
            waiter = queue.waiter(1)
            while True:
                try:
                    leave = enter(f"{number} {turn}", waiter)
                    break
                except MoneyReserved as error:
                    refusal = error
                queue.enter(waiter)
                assert queue.wait_until(waiter, refusal.line, refusal.ready, LONG)
            queue.leave(waiter)
            with counting:
                under += 1
                most = max(most, under)
            with counting:
                under -= 1
            leave()
        return 4

    calls = [lambda number=number: call(number) for number in range(6)]
    assert run_yielding(calls, MONEY, seed=seed, share=0.1) == [4] * 6
    assert most == 1
    assert queue.waiters == {}
    assert allowance.committed == 0
    assert [left.reserved_nano for left in budgets.snapshot()] == [0]


def test_money_that_is_released_between_a_look_and_the_sleep_wakes_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    doze = Waiter.sleep

    def sleep(waiter: Waiter, seconds: float) -> None:
        assert doze(waiter, seconds), "nobody woke it"

    monkeypatch.setattr("fastroute.calls.queue.POLL_INTERVAL", LONG)
    monkeypatch.setattr(Waiter, "sleep", sleep)
    queue = WaitQueue()
    waiter = queue.enter(queue.waiter(1))
    looks: list[int] = []

    def ready() -> bool:
        looks.append(1)
        if len(looks) < 3:
            queue.freed("money\0")  # just after it was looked for
            return False
        return True

    assert queue.wait_until(waiter, "money\0", ready, LONG)
    queue.leave(waiter)
    assert queue.waiters == {}


@yields
@pytest.mark.parametrize("seed", range(3))
def test_first_come_first_served(seed: int) -> None:
    """Nobody overtakes who waits already, also not with a smaller amount."""
    queue = WaitQueue()
    config = BudgetConfig(name="all", limit=10e-9, window="total")
    budgets = Budgets([config], _core.Segment(256), lambda *_: 0, events.Hooks(), queue.freed)
    order: list[int] = []
    started = [threading.Event() for _ in range(4)]
    held = budgets.reserve(10, {}, 60.0)

    def call(number: int, amount: int) -> None:
        if number:
            assert started[number - 1].wait(LONG)
        waiter = queue.waiter(1)
        while True:
            try:
                taken = budgets.reserve(
                    amount, {}, 60.0, behind=lambda line: queue.is_behind(line, 1, waiter)
                )
                break
            except MoneyReserved as error:
                refusal = error
            queue.enter(waiter)
            # In the line before the next one comes.
            queue.wait_until(waiter, refusal.line, lambda: True, 0.0)
            started[number].set()
            if number == 3:
                held.release()
            assert queue.wait_until(waiter, refusal.line, refusal.ready, LONG)
        order.append(number)
        queue.leave(waiter)
        taken.release()

    amounts = (10, 1, 10, 1)
    calls = [lambda each=each: call(*each) for each in enumerate(amounts)]
    run_yielding(calls, MONEY, seed=seed, share=0.05)
    assert order == [0, 1, 2, 3]


def test_a_refusal_tells_whether_the_money_comes_back() -> None:
    config = BudgetConfig(name="all", limit=10e-9, window="total")
    budgets = Budgets([config], _core.Segment(256), lambda *_: 0, events.Hooks())
    held = budgets.reserve(8, {}, 60.0)
    with pytest.raises(MoneyReserved) as caught:
        budgets.reserve(3, {}, 60.0)
    assert not caught.value.ready()
    held.settle(8)  # nothing changes of the sum of what is spent and reserved
    assert caught.value.ready()
    with pytest.raises(errors.BudgetExceeded) as final:
        budgets.reserve(3, {}, 60.0)
    assert not isinstance(final.value, MoneyReserved)
