"""A call and its hedge while the program closes the client, reloads, forks or is interrupted."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from loopback import MODEL, Loopback, counted, within

import fastroute
from fastroute.testing import Answer, Fault

Start = Callable[..., Loopback]
HEDGING = {"enabled": True, "min_delay": 0.02, "min_samples": 10, "max_share": 1.0}
SLOW = Fault.slow(20.0)


class UnderWay:
    """A client of which one call and its hedge are under way, until `go` lets the hedge be answered."""

    def __init__(self, start: Start, *, slow: bool = True, **tables: Any) -> None:
        self.go, self.asked, self.sent = threading.Event(), threading.Event(), threading.Event()
        self.loop = start(2, policy={"hedging": HEDGING}, **tables)
        for stream in (False, True):
            tail = self.loop.client.runtime.generation.state.named(f"a/{MODEL}").tail(stream)
            assert tail is not None
            for _ in range(20):
                tail.record(0.001)
        if slow:
            self.loop.provider("a").script(self._slow)
        self.loop.provider("b").script(self._answer)
        self.replies: list[Any] = []

    def _slow(self, request: Any) -> Fault | None:
        first = not self.sent.is_set()
        self.sent.set()
        return SLOW if first else None

    def _answer(self, request: Any) -> None:
        assert self.sent.wait(10)  # however late the first attempt begins
        self.asked.set()
        assert self.go.wait(10)

    def begin(self, ask: Callable[[], Any] | None = None) -> threading.Thread:
        thread = threading.Thread(target=lambda: self.replies.append((ask or self.loop.ask)()))
        thread.start()
        assert self.asked.wait(10)
        return thread

    def check(self) -> None:
        (reply,) = self.replies
        assert reply.route.endpoint == f"b/{MODEL}"
        assert [each.outcome for each in reply.route.attempts] == ["hedge_lost", "ok"]


@pytest.fixture
def under_way(start: Start) -> Callable[..., UnderWay]:
    return lambda **tables: UnderWay(start, **tables)


def test_close_waits_for_the_hedge_and_both_are_in_the_ledger(under_way: Callable[..., UnderWay]) -> None:
    way = under_way(ledger=True)
    call = way.begin()
    closing = threading.Thread(target=way.loop.client.close)
    closing.start()
    way.go.set()
    closing.join()
    call.join()
    way.check()
    assert len(way.loop.attempts) == 2


@pytest.mark.parametrize("enabled", [False, True], ids=["off", "on again"])
def test_a_reload_leaves_the_call_what_it_began_under(
    under_way: Callable[..., UnderWay], enabled: bool
) -> None:
    way = under_way()
    loop = way.loop
    call = way.begin()
    config = {
        "fastroute": {"ledger": "", "timeout": 20.0},
        "cache": {"enabled": False},
        "providers": {name: {"base_url": each.base_url} for name, each in loop.providers.items()},
        "endpoints": [{"provider": name, "model": MODEL} for name in loop.providers],
        "models": {MODEL: {"input_price": 1.0, "output_price": 2.0}},
        "policy": {"strategy": "ordered", "hedging": {**HEDGING, "enabled": enabled}},
    }
    loop.client.reload(config)
    way.go.set()
    call.join()
    way.check()
    loop.provider("a").script(Fault.slow(0.3))
    reply = loop.ask()
    assert reply.route is not None
    assert len(reply.route.attempts) == 1 + enabled


def test_a_forked_child_calls_by_itself_and_cuts_nothing_of_its_parents(
    under_way: Callable[..., UnderWay],
) -> None:
    way = under_way(check=False)  # the ledger has the child's line too
    loop = way.loop
    call = way.begin()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if loop.ask("in the child").text == "in the child" else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    way.go.set()
    call.join()
    way.check()
    assert [loop.endpoint(name)["in_flight"] for name in "ab"] == [0, 0]


def test_ctrl_c_while_a_failed_call_waits_for_its_hedge(under_way: Callable[..., UnderWay]) -> None:
    way = under_way(slow=False)
    loop = way.loop
    main = threading.main_thread().ident
    assert main is not None

    def failed_when_the_other_is_asked(request: Any) -> Fault:
        way.sent.set()
        assert way.asked.wait(10)
        return Fault.status(503)

    loop.provider("a").script(failed_when_the_other_is_asked)

    def stop() -> None:
        loop.provider("a").wait_until(lambda known: known.received == 1, 10)
        while not loop.attempts:
            threading.Event().wait(0.005)
        signal.pthread_kill(main, signal.SIGINT)

    stopping = threading.Thread(target=stop)
    stopping.start()
    with within(5), pytest.raises(KeyboardInterrupt):
        loop.ask()
    stopping.join()
    way.go.set()
    assert [(each.endpoint[0], each.outcome) for each in loop.attempts] == [
        ("a", "failed"),
        ("b", "hedge_lost"),
    ]
    assert loop.client.stats()["queued"] == 0


def test_equal_calls_wait_for_one_and_its_hedge(under_way: Callable[..., UnderWay]) -> None:
    way = under_way(cache={"enabled": True})
    first = way.begin()
    others = [threading.Thread(target=lambda: way.replies.append(way.loop.ask())) for _ in range(3)]
    for each in others:
        each.start()
    way.go.set()
    for each in (first, *others):
        each.join()
    assert sorted(len(reply.route.attempts) for reply in way.replies) == [0, 0, 0, 2]
    assert sum(reply.route.cost > 0 for reply in way.replies) == 1
    assert (way.loop.provider("a").received, way.loop.provider("b").received) == (1, 1)


def test_a_pool_that_is_full_of_calls_has_room_for_their_hedges(under_way: Callable[..., UnderWay]) -> None:
    way = under_way(fastroute={"workers": 1})
    way.go.set()
    way.replies.append(
        way.loop.client.submit(model=MODEL, messages=[{"role": "user", "content": "hello"}]).result(10)
    )
    way.check()


def test_what_a_loser_cost_counts_in_every_budget_once(under_way: Callable[..., UnderWay]) -> None:
    budgets = [
        {"name": "day", "limit": 10.0, "window": "day"},
        {"name": "team", "limit": 10.0, "window": "day", "per": "tag:team"},
    ]
    way = under_way(budgets=budgets)
    way.loop.provider("b").answer = Answer(content="four words of answer", prompt_tokens=7)
    way.go.set()
    way.replies.append(way.loop.ask(route={"tags": {"team": "x"}}))
    way.check()
    spent = counted(way.loop.attempts)
    assert spent > 0
    books = way.loop.client.stats()["budgets"]
    assert {book.spent_nano for book in books} == {spent}
    assert {book.reserved_nano for book in books} == {0}


def test_an_allowance_pays_for_both(under_way: Callable[..., UnderWay]) -> None:
    way = under_way()
    way.go.set()
    copy = way.loop.client.with_options(budget=1.0)
    copy.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hello"}])
    spent = sum(each.cost_nano or 0 for each in way.loop.attempts)
    assert len(way.loop.attempts) == 2
    with pytest.raises(fastroute.BudgetExceeded):
        way.loop.client.with_options(budget=spent / 1e9 / 4).chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hello"}]
        )
