"""State that threads share, with a thread switch after any bytecode: nothing is lost, exceeded or left held.

The schedules are drawn with a seed; each test runs a few of them. Its claims are exact, and it fails when a
lock of the code under test is left out, or a step of it is.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from loopback import Loopback, core_of, held
from opcode_yield import run_yielding

from fastroute import _core, errors, events
from fastroute.budget import Allowance, Budgets
from fastroute.calls.cache import Cache
from fastroute.calls.queue import Waiter, WaitQueue
from fastroute.config import BudgetConfig
from fastroute.ledger import Ledger, journal, writer
from fastroute.testing import Fault
from fastroute.types import Attempt, Choice, Completion, Message, Usage

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="tracing in 3.10 writes old closure values back"
)
SEEDS = pytest.mark.parametrize("seed", range(3))
LONG = 10.0
WAY = (
    "/calls/dispatch.py",
    "/calls/admission.py",
    "/calls/queue.py",
    "/calls/attempt.py",
    "/calls/settlement.py",
    "/runtime/runtime.py",
    "/calls/hedge.py",
    "/calls/call.py",
)


class Crowd:
    """An answer that notes how many ask for it at once.

    Attributes:
        most: so many at once so far.
    """

    def __init__(self) -> None:
        self.most = 0
        self._inside = 0
        self._lock = threading.Lock()

    def __call__(self, question: Any) -> str:
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)
        time.sleep(0.001)  # whoever should not be let in has the time to come
        with self._lock:
            self._inside -= 1
        return "done"


# ------------------------------------------------------------------------------------------------- the line


@pytest.mark.parametrize("seed", range(8))
def test_permits_go_to_those_who_wait_and_none_is_lost_by_who_goes_away(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    doze = Waiter.sleep

    def sleep(waiter: Waiter, seconds: float) -> None:
        assert doze(waiter, seconds), "nobody woke it"

    # In one process nobody needs to look again by the clock.
    monkeypatch.setattr("fastroute.calls.queue.POLL_INTERVAL", LONG)
    monkeypatch.setattr(Waiter, "sleep", sleep)
    core = _core.Endpoint(_core.Segment(64), "a", max_in_flight=2)
    queue = WaitQueue()
    counting = threading.Lock()
    under, most = 0, 0

    def call(rank: int) -> int:
        nonlocal under, most
        for turn in range(6):
            if turn % 2:  # waits, and goes away when its turn has come
                waiter = queue.enter(queue.waiter(rank))
                if core.wait():
                    queue.wait(waiter, ["a"], core, LONG)
                queue.leave(waiter)
            waiter = queue.enter(queue.waiter(rank))
            try:
                while queue.is_behind("a", rank, waiter) or (ticket := core.admit()) < 0:
                    queue.wait(waiter, ["a"], core, LONG)
            finally:
                queue.leave(waiter)
            with counting:
                under += 1
                most = max(most, under)
            with counting:
                under -= 1
            core.finish(ticket, _core.OK)
            queue.freed("a")
        return 6

    calls = [lambda rank=rank % 3: call(rank) for rank in range(6)]
    done = run_yielding(calls, ["/calls/queue.py", __file__], seed=seed)
    assert sum(done) == 36
    assert core.snapshot()["succeeded"] == 36
    assert most <= 2
    assert (queue.waiting, queue.waiters, core.in_flight) == (0, {}, 0)


class Paid:
    """An endpoint that keeps account of what was paid ahead, what went in for it and what was given back."""

    def __init__(self, core: _core.Endpoint) -> None:
        self._core = core
        self._counting = threading.Lock()
        self.paid = self.went_in = self.given_back = 0

    def reserve(self, tokens: int, patience: int) -> int:
        wait = self._core.reserve(tokens, patience)
        with self._counting:
            self.paid += wait >= 0
        return wait

    def admit(self, tokens: int, now: int, reserved: bool) -> int:
        ticket = self._core.admit(tokens, now, reserved)
        with self._counting:
            self.went_in += ticket >= 0
        return ticket

    def unreserve(self, tokens: int) -> None:
        self._core.unreserve(tokens)
        with self._counting:
            self.given_back += 1


class Restless(Waiter):
    """One whose call goes away when it should sleep."""

    def __init__(self, waiter: Waiter) -> None:
        super().__init__(waiter.key)

    def sleep(self, seconds: float) -> None:
        raise KeyboardInterrupt


@SEEDS
def test_times_are_paid_once_and_given_back_by_who_goes_away(seed: int) -> None:
    """Of nine that pay for their time, three have no permit to go in with, and those of one class go away."""
    core = _core.Endpoint(_core.Segment(64), "a", rpm=6000, request_burst=1, max_in_flight=4)
    queue = WaitQueue()
    assert core.admit() >= 0
    account: Any = Paid(core)

    def call(rank: int) -> int:
        waiter = queue.enter(queue.waiter(rank))
        try:
            return queue.sleep(
                Restless(waiter) if rank == 2 else waiter,
                "a",
                account,
                0,
                LONG,
                lambda: account.admit(0, 0, True),
            )
        except KeyboardInterrupt:
            return -1
        finally:
            queue.leave(waiter)

    calls = [lambda rank=rank % 3: call(rank) for rank in range(9)]
    answers = run_yielding(calls, ["/calls/queue.py"], seed=seed)
    assert account.went_in == sum(answer >= 0 for answer in answers) == 3
    assert account.paid == account.went_in + account.given_back == 9
    assert (queue.waiting, queue.waiters, queue.times) == (0, {}, {})
    assert core.in_flight == 4


# ------------------------------------------------------------------------------------------ the way of a call


@SEEDS
def test_calls_that_wait_for_permits_times_and_the_gate(
    seed: int, start: Callable[..., Loopback], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastroute.calls.queue.POLL_INTERVAL", 0.2)
    crowd = Crowd()
    loop = start(
        2,
        answer=crowd,
        providers={"a": {"max_in_flight": 1}, "b": {"max_in_flight": 2, "rpm": 1200, "burst": 1}},
        policy={"max_in_flight": 2},
        budgets=[{"name": "all", "limit": 1000.0, "window": "total"}],
    )
    loop.ask()

    def call(number: int) -> int:
        route = {"priority": ("high", "normal", "low")[number % 3]}
        return sum(bool(loop.ask(f"{number} {turn}", route=route).choices) for turn in range(2))

    calls = [lambda number=number: call(number) for number in range(6)]
    assert run_yielding(calls, WAY, seed=seed, share=0.1) == [2] * 6
    assert crowd.most <= 2
    assert len(loop.attempts) == 13
    assert sum(loop.endpoint(name)["succeeded"] for name in "ab") == 13
    assert held(loop.client) == {}


@pytest.mark.parametrize("end", ["success", "callers own fault", "not encodable", "over budget"])
def test_one_probe_at_a_time_and_its_lease_comes_back_however_it_ends(
    end: str, start: Callable[..., Loopback]
) -> None:
    crowd = Crowd()
    breaker = {
        "failures": 1,
        "open": 0.02,
        "max_open": 0.02,
        "probes_to_close": 5,
        "probe_lease": 300.0,
        "ramp": 0,
    }
    tables: dict[str, Any] = {"policy": {"breaker": breaker, "max_attempts": 1, "queue_timeout": 0.001}}
    if end == "over budget":
        tables["budgets"] = [{"name": "small", "limit": 0.000001, "window": "total"}]
    loop = start(1, answer=crowd, **tables)
    core = core_of(loop.client)
    core.finish(core.admit(), _core.FAILURE)
    while core.reopens_in():
        pass
    params: dict[str, Any] = {}
    if end == "callers own fault":
        loop.provider().script(Fault.status(422), repeat=True)
    elif end == "not encodable":
        params["metadata"] = {1, 2}

    def call() -> str:
        try:
            loop.ask(**params)
        except errors.Error as error:
            return type(error).__name__
        return "ok"

    found = Counter(run_yielding([call] * 6, WAY, seed=1, share=0.1))
    expected = {
        "success": {"ok", "NoEndpointError"},
        "callers own fault": {"UnprocessableEntityError", "NoEndpointError"},
        "not encodable": {"BadRequestError", "NoEndpointError"},
        "over budget": {"BudgetExceeded", "NoEndpointError"},
    }[end]
    assert set(found) <= expected
    assert set(found) != {"NoEndpointError"}
    assert crowd.most == (end in ("success", "callers own fault"))
    assert held(loop.client) == {}
    assert loop.endpoint()["state"] in ("half-open", "closed")
    ticket = core.admit()
    assert ticket >= 0  # nobody keeps the lease
    core.undo(ticket, 0)
    loop.check()


# ---------------------------------------------------------------------------------------------------- money

MONEY = ("/budget/__init__.py", "/scopes.py", "/allowance.py")


# ------------------------------------------------------------------------------------------------- hedges


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("fails", [False, True])
def test_of_two_that_end_together_one_answers_and_both_are_settled(
    start: Callable[..., Loopback], seed: int, fails: bool
) -> None:
    together = threading.Barrier(2, timeout=LONG)

    hedging = {"enabled": True, "min_delay": 0.0, "min_samples": 10, "max_share": 1.0}
    loop = start(2, policy={"hedging": hedging, "breaker": {"failures": 255, "min_calls": 10_000}})
    for name, provider in loop.providers.items():
        fault = Fault.status(500) if fails and name == "b" else None
        provider.script(lambda question, fault=fault: (together.wait(), fault)[1])
    for each in loop.client.runtime.generation.state.endpoints:
        assert each.whole is not None
        for _ in range(50):
            each.whole.record(0.001)
            each.core.deposit()
    replies = run_yielding([lambda: [loop.ask() for _ in range(4)]], WAY, seed=seed)[0]
    assert len(replies) == 4
    for reply in replies:
        assert reply.route is not None
        outcomes = sorted(attempt.outcome for attempt in reply.route.attempts)
        assert outcomes in ([["hedge_lost", "ok"], ["failed", "ok"]] if fails else [["hedge_lost", "ok"]])
    assert held(loop.client) == {}


@SEEDS
def test_a_budget_for_ten_lets_ten_in(seed: int) -> None:
    config = BudgetConfig(name="all", limit=10e-9, window="total", alerts=(0.5, 1.0))
    asked: list[Any] = []
    alerts: list[Any] = []
    hooks = events.Hooks()
    hooks.add(alerts.append, events.BudgetAlert)

    def spent(start: Any, tags: Any) -> int:
        asked.append(start)
        return 0

    budgets = Budgets([config], _core.Segment(256), spent, hooks)

    def call() -> int:
        granted = 0
        for turn in range(3):
            try:
                reservation = budgets.reserve(1, {}, 60.0)
            except errors.BudgetExceeded:
                continue
            reservation.sent()
            if turn == 0:
                reservation.release()  # nothing was charged: another may have it
            else:
                reservation.settle(1)
                granted += 1
        return granted

    assert sum(run_yielding([call] * 8, MONEY, seed=seed)) <= 10
    while True:  # what was held at the moment of a refusal is free by now
        try:
            budgets.reserve(1, {}, 60.0).settle(1)
        except errors.BudgetExceeded:
            break
    (status,) = budgets.snapshot()
    assert (status.spent_nano, status.reserved_nano) == (10, 0)
    assert asked == [asked[0]]  # the ledger is read once for a window
    assert sorted(alert.share for alert in alerts) == [0.5, 1.0]  # once each; who tells is quicker or slower


@SEEDS
def test_an_allowance_for_ten_lets_ten_in(seed: int) -> None:
    allowance = Allowance(10)

    def call(name: str) -> int:
        granted = 0
        for turn in range(6):
            try:
                allowance.reserve(f"{name} {turn}", 2)
            except errors.BudgetExceeded:
                continue
            for _ in range(2):
                allowance.settle(f"{name} {turn}", 1)
            granted += 1
        return granted

    calls = [partial(call, name) for name in "abcd"]
    granted = sum(run_yielding(calls, MONEY, seed=seed))
    assert granted == allowance.committed == 9  # the tenth could have cost two


# ---------------------------------------------------------------------------------------------------- cache


def completion(text: str) -> Completion:
    raw = {"choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}]}
    return Completion(
        id="id",
        created=1,
        model="m",
        choices=(Choice(0, Message("assistant", text), "stop"),),
        usage=Usage(1, 1),
        route=None,
        raw=raw,
    )


@SEEDS
@pytest.mark.parametrize("failures", [0, 1])
def test_equal_questions_are_asked_once_or_once_again_after_a_failure(seed: int, failures: int) -> None:
    cache = Cache()
    lock = threading.Lock()
    asked = dict.fromkeys((b"one", b"two"), 0)

    def make(key: bytes) -> Completion:
        with lock:
            asked[key] += 1
            number = asked[key]
        if number <= failures:
            raise errors.APIConnectionError("gone")
        return completion(key.decode())

    def call(key: bytes) -> str | None:
        try:
            made, _ = cache.through(key, lambda: make(key), time.monotonic() + LONG)
        except errors.APIConnectionError:
            return "failed"
        return made.choices[0].message.content

    calls = [lambda key=key: call(key) for key in (b"one", b"two") * 4]
    found = Counter(run_yielding(calls, ["/calls/cache.py"], seed=seed))
    assert asked == dict.fromkeys(asked, 1 + failures)
    assert found["failed"] == 2 * failures
    assert found["one"] == found["two"] == 4 - failures
    assert cache.flights == {}
    stats = cache.stats()
    assert stats["misses"] == 2 * (1 + failures)
    assert stats["hits"] + stats["joined"] == 8 - stats["misses"]


# --------------------------------------------------------------------------------------------------- ledger


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything changes hands all the time: segments, batches, a queue that is soon full."""
    monkeypatch.setattr(writer, "SEGMENT_BYTES", 600)
    monkeypatch.setattr(writer, "BATCH_ROWS", 3)
    monkeypatch.setattr(writer, "BATCH_SECONDS", 0.001)
    monkeypatch.setattr(writer, "QUEUE_LIMIT", 4)


@SEEDS
def test_every_entry_reaches_the_database_once(seed: int, small: None, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")

    def call(number: int) -> int:
        for turn in range(8):
            ledger.append(
                Attempt(
                    id=f"{number} {turn}",
                    call_id="call",
                    time=1e9,
                    endpoint="p/m",
                    provider="p",
                    model="m",
                    cost_nano=1,
                )
            )
            if turn % 4 == 3:
                ledger.flush(LONG)
        return 8

    calls = [lambda number=number: call(number) for number in range(4)]
    assert sum(run_yielding(calls, ["/journal.py", "/writer.py"], seed=seed)) == 32
    ids = [row.id for row in ledger.entries(None)]
    assert len(ids) == len(set(ids)) == 32
    ledger.close()
    assert ledger.health.lost == 0
    assert [name for name in os.listdir(ledger.journal.directory) if name.endswith(journal.SUFFIX)] == []
