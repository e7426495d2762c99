"""Case 140: what is no `Exception` may be raised at any line of a call, and nothing stays held."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import samples
from interrupts import Tracer
from loopback import core_of, counted, held, nothing_left, waiting_timers
from raw_server import RawServer, Say
from walks import Variant

import fastroute
from fastroute import Client, Completion, _core
from fastroute.budget.allowance import Allowance
from fastroute.calls.cache import Cache, Flight
from fastroute.calls.queue import Waiter

# What is raised in a finalizer nobody can catch, and exchanges and streams have one.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

OWN = ("/fastroute/",)
BUSY = Say(b"HTTP/1.1 503 Busy\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
LATE = 3.0


class Stage:
    """A client with every limit in force, in front of two servers."""

    def __init__(
        self, servers: list[RawServer], ledger: Path, provider: dict[str, Any], limit: float, **policy: Any
    ) -> None:
        self.servers = servers
        self.client = Client(
            {
                "fastroute": {"ledger": str(ledger), "timeout": 20.0},
                "cache": {"enabled": True},
                "providers": {
                    name: {
                        "base_url": server.base_url,
                        "max_in_flight": 1,
                        "tpm": 1_000_000_000,
                        "rpm": 1_000_000,
                        "burst": 100_000,
                        **provider,
                    }
                    for name, server in zip("ab", servers, strict=False)
                },
                "endpoints": [
                    {"provider": name, "model": "m"} for name, _ in zip("ab", servers, strict=False)
                ],
                "models": {"m": {"input_price": 1.0, "output_price": 2.0}},
                "budgets": [{"name": "all", "limit": limit, "window": "total"}],
                "policy": {
                    "strategy": "ordered",
                    "max_in_flight": 5,
                    "queue_timeout": 0.03,
                    "backoff_base": 0.001,
                    "backoff_cap": 0.002,
                    "breaker": {"failures": 255, "min_calls": 10_000},
                    **policy,
                },
            }
        )
        self.turn = 0

    def ask(self) -> None:
        self.turn += 1
        messages = [{"role": "user", "content": f"Good day {self.turn}"}]
        self.client.chat.completions.create(model="m", messages=messages)

    def stream(self) -> None:
        messages = [{"role": "user", "content": "Good day"}]
        with self.client.chat.completions.create(model="m", messages=messages, stream=True) as stream:
            for _ in stream:
                pass

    def check(self, where: str) -> None:
        gc.collect()  # a stream whose `with` block was never entered
        assert held(self.client) == {}, where
        assert waiting_timers() == [], where
        end = time.monotonic() + LATE
        while any(server.open_connections > 1 for server in self.servers) and time.monotonic() < end:
            time.sleep(0.002)
        assert all(server.open_connections <= 1 for server in self.servers), where


@contextmanager
def staged(
    folder: Path,
    count: int = 1,
    provider: dict[str, Any] | None = None,
    limit: float = 1000.0,
    **policy: Any,
) -> Iterator[Stage]:
    with nothing_left(), ExitStack() as stack:
        servers = [stack.enter_context(RawServer(parallel=4)) for _ in range(count)]
        stage = Stage(servers, folder / "ledger.db", provider or {}, limit, **policy)
        stack.callback(stage.client.close)
        gc.collect()
        gc.freeze()  # what there is already need not be looked at again after each interrupt
        stack.callback(gc.unfreeze)
        yield stage
        ids = [row.id for row in stage.client.ledger.entries(None)]
        assert len(ids) == len(set(ids))


def interrupt_everywhere(
    stage: Stage, call: Callable[[], None], every: int, parts: tuple[str, ...] = OWN
) -> int:
    """Interrupts the call at one in so many of its lines; returns at how many of them."""

    def heard() -> None:
        try:
            call()
        except fastroute.Error:
            pass

    heard()  # what is made on first use is made
    begin = samples.first(every, f"{call.__qualname__} {parts}")
    whole = Tracer(0, parts)
    whole.run(heard)
    stage.check("uninterrupted")
    count = 0
    for at in range(1 + begin, whole.lines + 1, every):
        tracer = Tracer(at, parts)
        count += tracer.run(heard)
        stage.check(f"{tracer.where}, {samples.VARIABLE}={samples.seed()}")
    assert count > (whole.lines // every) * 0.5  # else it was not where it seemed to be
    return count


PLAIN = Say(Variant().answer())
STREAM = Say(Variant(stream=True, framing="chunked").answer())


def test_140_a_plain_call(tmp_path: Path) -> None:
    with staged(tmp_path) as stage:
        stage.servers[0].say = PLAIN
        interrupt_everywhere(stage, stage.ask, every=11)


def test_140_a_stream(tmp_path: Path) -> None:
    with staged(tmp_path) as stage:
        stage.servers[0].say = STREAM
        interrupt_everywhere(stage, stage.stream, every=13)


def test_140_a_failover(tmp_path: Path) -> None:
    with staged(tmp_path, 2) as stage:
        stage.servers[0].say, stage.servers[1].say = BUSY, PLAIN
        interrupt_everywhere(stage, stage.ask, every=17)


def test_140_a_streamed_failover(tmp_path: Path) -> None:
    with staged(tmp_path, 2) as stage:
        stage.servers[0].say, stage.servers[1].say = BUSY, STREAM
        interrupt_everywhere(stage, stage.stream, every=29)


WAITING = ("/calls/queue.py", "/calls/dispatch.py", "/calls/admission.py")


def test_140_a_call_that_waits_for_its_time(tmp_path: Path) -> None:
    with staged(tmp_path, provider={"rpm": 6000, "burst": 1}, queue_timeout=1.0) as stage:
        stage.servers[0].say = PLAIN
        core = core_of(stage.client)

        def ask() -> None:
            core.tighten(0)  # so that it has to wait
            stage.ask()

        interrupt_everywhere(stage, ask, every=3, parts=WAITING)


def test_140_a_call_that_waits_for_a_permit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with staged(tmp_path, queue_timeout=1.0) as stage:
        stage.servers[0].say = PLAIN
        core = core_of(stage.client)
        taken: list[int] = []

        def give_back(waiter: Waiter, seconds: float) -> None:
            while taken:
                core.undo(taken.pop(), 0)

        monkeypatch.setattr(Waiter, "sleep", give_back)

        def ask() -> None:
            taken.append(core.admit())
            try:
                stage.ask()
                assert not taken  # it has waited
            finally:
                give_back(Waiter((0, 0)), 0)

        interrupt_everywhere(stage, ask, every=3, parts=WAITING)


def test_140_a_hurried_probe(tmp_path: Path) -> None:
    breaker = {"failures": 1, "open": 300.0, "max_open": 300.0, "probes_to_close": 1, "probe_lease": 300.0}
    with staged(tmp_path, breaker=breaker) as stage:
        stage.servers[0].say = PLAIN
        state = stage.client.runtime.generation.state
        core = state.endpoints[0].core

        def ask() -> None:
            ticket = core.admit()
            if ticket >= 0:
                core.finish(ticket, _core.FAILURE)
            state.panic.settle(-1)
            stage.ask()

        def check(where: str) -> None:
            usual(where)
            if core.state() == _core.HALF_OPEN:
                ticket = core.admit()
                assert ticket >= 0, f"the probe's lease is kept: {where}"
                core.undo(ticket, 0)

        usual, stage.check = stage.check, check  # type: ignore[method-assign]
        interrupt_everywhere(stage, ask, every=13)


def test_140_a_call_with_an_allowance_keeps_nothing_of_it(tmp_path: Path) -> None:
    with staged(tmp_path) as stage:
        stage.servers[0].say = PLAIN
        allowance = Allowance(10**12)
        stage.client = stage.client.with_options(budget=allowance)

        def check(where: str) -> None:
            usual(where)
            assert allowance.committed == counted(stage.client.ledger.entries(None)), where

        usual, stage.check = stage.check, check  # type: ignore[method-assign]
        interrupt_everywhere(stage, stage.ask, every=3, parts=("/calls/settlement.py", "/allowance.py"))


def test_140_a_call_that_is_undone_before_it_is_sent(tmp_path: Path) -> None:
    """The allowance pays, then the budget refuses: permits, gate and allowance get everything back."""
    with staged(tmp_path, limit=1e-9) as stage:
        allowance = Allowance(10**12)
        stage.client = stage.client.with_options(budget=allowance)

        def check(where: str) -> None:
            usual(where)
            assert allowance.committed == 0, where

        usual, stage.check = stage.check, check  # type: ignore[method-assign]
        interrupt_everywhere(stage, stage.ask, every=1, parts=("/calls/settlement.py", "/allowance.py"))
        assert stage.servers[0].requests == []


HEDGED = (
    "/calls/dispatch.py",
    "/calls/admission.py",
    "/calls/attempt.py",
    "/calls/settlement.py",
    "/calls/hedge.py",
    "/calls/call.py",
    "/request_timer.py",
    "/platform/timer.py",
    "/platform/workers.py",
)


@pytest.mark.parametrize("stream", [False, True])
def test_140_a_call_whose_hedge_answers(tmp_path: Path, stream: bool) -> None:
    """Its second attempt ends with it, whoever has won by then."""
    hedging = {"enabled": True, "min_delay": 0.0, "min_samples": 10, "max_share": 1.0}
    with staged(tmp_path, 2, hedging=hedging) as stage:
        stage.servers[0].say, stage.servers[1].say = Say(b"", "stall"), STREAM if stream else PLAIN
        first, second = stage.client.runtime.generation.state.endpoints
        tail = first.tail(stream)
        assert tail is not None

        def ask() -> None:
            for _ in range(10):
                tail.record(0.001)
                second.core.deposit()
            (stage.stream if stream else stage.ask)()

        def check(where: str) -> None:
            end = time.monotonic() + LATE
            while True:  # the thread of the hedge needs a moment to see that nobody wants it any more
                try:
                    return usual(where)
                except AssertionError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.002)

        usual, stage.check = stage.check, check  # type: ignore[method-assign]
        interrupt_everywhere(stage, ask, every=3, parts=HEDGED)
        assert tail.hedges() > 20


def follower_interrupted(at: int, fails: bool) -> bool:
    """Whether a call was interrupted at a line while it waited for an equal one, which then ends."""
    cache = Cache()
    begun, go = threading.Event(), threading.Event()

    def lead() -> Completion:
        begun.set()
        assert go.wait(LATE)
        if fails:
            raise fastroute.APIConnectionError("gone")
        return Completion(id="id", created=1, model="m", choices=(), usage=None, route=None, raw={})

    def leader() -> None:
        with suppress(fastroute.APIConnectionError):
            cache.through(b"key", lead, time.monotonic() + LATE)

    thread = threading.Thread(target=leader)
    thread.start()
    assert begun.wait(LATE)
    tracer = Tracer(at, ("/calls/cache.py",))
    interrupted = False
    with suppress(fastroute.DeadlineExceeded):
        interrupted = tracer.run(lambda: cache.through(b"key", lead, time.monotonic() + 0.003))
    go.set()
    thread.join()
    assert cache.flights == {}, tracer.where
    return interrupted


def leader_interrupted(at: int) -> bool:
    """Whether a call was interrupted at a line while equal ones may wait for it."""
    cache = Cache()
    made = Completion(id="id", created=1, model="m", choices=(), usage=None, route=None, raw={})
    flights: list[Flight] = []

    def make() -> Completion:
        flights.extend(cache.flights.values())
        return made

    tracer = Tracer(at, ("/calls/cache.py",))
    interrupted = tracer.run(lambda: cache.through(b"key", make, time.monotonic() + LATE))
    assert cache.flights == {}, tracer.where
    assert all(flight.done.wait(0) for flight in flights), tracer.where
    assert cache.through(b"key", lambda: made, time.monotonic())[0] is made, tracer.where
    return interrupted


def test_140_a_call_that_others_wait_for() -> None:
    """At whatever line it is interrupted, nobody waits for it any more, and the next call is made."""
    lines = 0
    while leader_interrupted(lines + 1):
        lines += 1
    assert lines > 20


@pytest.mark.parametrize("fails", [False, True])
def test_140_a_call_that_waits_for_an_equal_one(fails: bool) -> None:
    """Whatever becomes of the one that is waited for, no flight is left for others to wait for."""
    lines = 0
    while follower_interrupted(lines + 1, fails):
        lines += 1
    assert lines > 20
