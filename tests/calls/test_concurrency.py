"""Simultaneous calls, priorities, breakers that are all open, and calls that are interrupted in admission."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from loopback import MODEL, Loopback, core_of

import fastroute
from fastroute import events
from fastroute.calls.call import Call
from fastroute.calls.queue import ReservedTime, ReservedTimes
from fastroute.calls.settlement import Settlement
from fastroute.calls.stream import Stream
from fastroute.testing import Fault, Provider
from fastroute.transport import Exchange

LONG = 30.0
ANSWER = {
    "id": "x",
    "object": "chat.completion",
    "created": 0,
    "model": MODEL,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "done"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


class Door:
    """A provider that holds every request until it is let through, and knows how many stood there at once.

    A thread a connection, since an answer of `fastroute.testing.Provider` must not block.
    """

    def __init__(self) -> None:
        self._open = threading.Semaphore(0)
        self._counting = threading.Condition()
        self.here = self.most = 0
        self.texts: list[str] = []
        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                door.pass_through(body["messages"][-1]["content"])
                answer = json.dumps(ANSWER).encode()
                head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                self.wfile.write(f"{head}content-length: {len(answer)}\r\n\r\n".encode() + answer)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def pass_through(self, text: str) -> None:
        with self._counting:
            self.here += 1
            self.most = max(self.most, self.here)
            self.texts.append(text)
            self._counting.notify_all()
        assert self._open.acquire(timeout=LONG)
        with self._counting:
            self.here -= 1

    def open(self, times: int = 1) -> None:
        self._open.release(times)

    def wait(self, count: int) -> None:
        """Until so many stand there."""
        with self._counting:
            assert self._counting.wait_for(lambda: self.here == count, LONG)

    def client(self, endpoints: int = 1, **policy: Any) -> fastroute.Client:
        at_once = policy.pop("at_each", 200)
        names = "abc"[:endpoints]
        return fastroute.Client(
            {
                "fastroute": {"ledger": ""},
                "providers": {name: {"base_url": self.base_url, "max_in_flight": at_once} for name in names},
                "endpoints": [{"provider": name, "model": MODEL} for name in names],
                "models": {MODEL: {}},
                "cache": {"enabled": False},
                "policy": policy,
            }
        )

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def ask(client: fastroute.Client, text: str, **more: Any) -> fastroute.Completion:
    return client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": text}], **more)


def queued(client: fastroute.Client, count: int) -> None:
    """Waits until so many calls stand in line."""
    for _ in range(int(LONG * 1000)):
        if client.stats()["queued"] == count:
            return
        threading.Event().wait(0.001)
    raise AssertionError(f"{client.stats()['queued']} calls wait, not {count}")


def check(client: fastroute.Client) -> None:
    """Nothing is held, and nobody waits."""
    stats = client.stats()
    assert {name: at["in_flight"] for name, at in stats["endpoints"].items() if at["in_flight"]} == {}
    assert stats["queued"] == 0
    gate = client.runtime.generation.state.gate
    assert gate is None or gate.in_flight == 0


@pytest.fixture
def door() -> Iterator[Door]:
    made = Door()
    yield made
    made.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as made:
        yield made


def test_no_more_than_allowed_are_under_way_at_all_endpoints_together(
    door: Door, pool: ThreadPoolExecutor
) -> None:
    with door.client(2, max_in_flight=3) as client:
        calls = [pool.submit(ask, client, f"call {number}") for number in range(12)]
        door.wait(3)
        queued(client, 9)
        door.open(12)
        assert [call.result(LONG).choices[0].message.content for call in calls] == ["done"] * 12
        assert door.most == 3
        check(client)


def test_a_higher_class_goes_first_where_calls_wait(door: Door, pool: ThreadPoolExecutor) -> None:
    with door.client(at_each=1) as client:
        calls = [pool.submit(ask, client, "first")]
        door.wait(1)
        for place, priority in enumerate(("low", "normal", "high", "low", "normal", "high")):
            calls.append(pool.submit(ask, client, f"{priority} {place}", route={"priority": priority}))
            queued(client, place + 1)
        door.open(7)
        for call in calls:
            call.result(LONG)
        assert door.texts == ["first", "high 2", "high 5", "normal 1", "normal 4", "low 0", "low 3"]
        check(client)


def test_a_call_that_gives_up_waiting_lets_the_next_go(door: Door, pool: ThreadPoolExecutor) -> None:
    with door.client(at_each=1) as client:
        first = pool.submit(ask, client, "first")
        door.wait(1)
        with pytest.raises(fastroute.Error):
            ask(client, "impatient", timeout=0.01)
        second = pool.submit(ask, client, "second")
        queued(client, 1)
        door.open(2)
        first.result(LONG)
        second.result(LONG)
        assert door.texts == ["first", "second"]
        check(client)


def test_an_unknown_class_is_refused_by_name(start: Callable[..., Loopback]) -> None:
    with pytest.raises(fastroute.BadRequestError, match=r"route\.priority: must be one of high, normal, low"):
        start().ask(route={"priority": "urgent"})


@pytest.mark.parametrize("count", [1, 2])
def test_with_every_breaker_open_one_call_a_second_tries_and_the_rest_are_told_when(
    start: Callable[..., Loopback], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller, sleep = threading.get_ident(), time.sleep

    def others_may(seconds: float) -> None:
        assert threading.get_ident() != caller, "it is told at once"
        sleep(seconds)

    breaker = {"failures": 1, "open": 300.0, "max_open": 300.0, "probes_to_close": 1}
    loop = start(count, policy={"breaker": breaker, "max_attempts": count})
    names = "ab"[:count]
    for name in names:
        loop.provider(name).script(Fault.status(500), Fault.status(500))
    with pytest.raises(fastroute.APIError):
        loop.ask()
    assert {loop.endpoint(name)["state"] for name in names} == {"open"}
    soonest = min(names, key=lambda name: loop.endpoint(name)["reopens_in_s"])
    with pytest.raises(fastroute.APIError):  # the probe of this second, which fails
        loop.ask()
    asked = {name: len(loop.provider(name).requests) for name in names}
    assert asked == {name: 1 + (name == soonest) for name in names}
    monkeypatch.setattr(time, "sleep", others_may)
    for _ in range(20):
        with pytest.raises(fastroute.NoEndpointError, match="breaker open") as caught:
            loop.ask()
        assert caught.value.status_code == 503
        assert caught.value.retry_after is not None
        assert 100 < caught.value.retry_after <= 300
    assert {name: len(loop.provider(name).requests) for name in names} == asked
    monkeypatch.undo()
    for name in names:
        loop.provider(name).clear_script()
    panic = loop.client.runtime.generation.state.panic
    panic.settle(-1)  # a second has passed
    assert loop.ask().choices
    loop.check()


def test_a_call_waits_for_the_limit_of_all_endpoints_only_as_long_as_it_may(
    start: Callable[..., Loopback],
) -> None:
    loop = start(2, policy={"max_in_flight": 1, "queue_timeout": 0.05})
    gate = loop.client.runtime.generation.state.gate
    assert gate is not None
    ticket = gate.admit()
    with pytest.raises(fastroute.RateLimitError) as caught:
        loop.ask()
    assert str(caught.value) == (
        "every endpoint is at its limit: all endpoints: all its permits are in use; it may wait for 50 ms in "
        "all (policy.queue_timeout): raise that, or submit the call, which then waits until its deadline"
    )
    assert caught.value.attempts == ()
    assert caught.value.retry_after is None  # nobody knows when one of them ends
    assert [list(loop.provider(name).requests) for name in "ab"] == [[], []]
    assert gate.in_flight == 1
    gate.undo(ticket, 0)
    assert loop.ask().route.waited == 0
    loop.check()


@pytest.mark.parametrize(("shorter", "longer"), ["ab", "ba"])
def test_of_two_lines_a_call_joins_the_shorter(
    start: Callable[..., Loopback], shorter: str, longer: str
) -> None:
    loop = start(2, providers={"all": {"rpm": 6000}})
    queue = loop.client.runtime.queue
    others = queue.enter(queue.waiter(1))
    for name, seconds in ((longer, 100.0), (shorter, 1.0)):
        times = queue.times[f"{name}/{MODEL}"] = ReservedTimes()
        times.insert(ReservedTime(others, time.monotonic() + seconds, 1))
    try:
        assert loop.ask().route.endpoint == f"{shorter}/{MODEL}"
    finally:
        queue.times.clear()
        queue.leave(others)
    loop.check()


def test_a_line_is_compared_with_a_limit_by_its_seconds(start: Callable[..., Loopback]) -> None:
    loop = start(2, providers={"a": {"rpm": 6000}, "b": {"rpm": 6, "burst": 1}})
    core_of(loop.client, f"b/{MODEL}").tighten(0)  # ten seconds
    queue = loop.client.runtime.queue
    others = queue.enter(queue.waiter(1))
    times = queue.times[f"a/{MODEL}"] = ReservedTimes()
    times.insert(ReservedTime(others, time.monotonic() + 7.0, 1))
    try:
        assert loop.ask().route.endpoint == f"a/{MODEL}"
    finally:
        queue.times.clear()
        queue.leave(others)


def test_a_call_cut_off_between_the_door_and_the_wire_holds_nothing(start: Callable[..., Loopback]) -> None:
    loop = start(2, policy={"max_in_flight": 5})
    loop.provider("a").script(Fault.status(503))

    def interrupt(event: events.FailedOver) -> None:
        raise KeyboardInterrupt

    loop.client.on(interrupt, events.FailedOver)
    with pytest.raises(KeyboardInterrupt):
        loop.ask()
    assert list(loop.provider("b").requests) == []
    state = loop.client.runtime.generation.state
    assert state.gate is not None
    assert state.gate.in_flight == 0
    loop.check()


def test_an_endpoint_takes_as_many_at_once_as_it_has_borne(door: Door) -> None:
    with door.client(adaptive=True) as client, ThreadPoolExecutor(24) as pool:
        assert client.stats()["endpoints"][f"a/{MODEL}"]["bearable"] == 20
        calls = [pool.submit(ask, client, f"call {number}") for number in range(24)]
        door.wait(20)
        queued(client, 4)
        door.open(24)
        for call in calls:
            call.result(LONG)
        assert 20 < client.stats()["endpoints"][f"a/{MODEL}"]["bearable"] < 22
        assert door.most <= 21  # it grows as calls succeed
        check(client)


@pytest.mark.parametrize("stream", [False, True])
def test_the_tokens_of_a_good_answer_replace_the_estimate(
    start: Callable[..., Loopback], stream: bool
) -> None:
    loop = start(
        1,
        answer=fastroute.testing.Answer("hi", prompt_tokens=100, completion_tokens=50),
        providers={"a": {"tpm": 1, "token_burst": 10_000}},
    )
    if stream:
        assert list(loop.stream())
    else:
        loop.ask()
    assert loop.endpoint()["available_tokens"] == 9850


def test_throttling_makes_it_take_fewer(start: Callable[..., Loopback]) -> None:
    loop = start(policy={"adaptive": True, "max_attempts": 1})
    loop.provider().script(Fault.status(429))
    with pytest.raises(fastroute.RateLimitError):
        loop.ask()
    assert loop.endpoint()["bearable"] == 18


class TestBudgetShares:
    """A class may bring the spending up to its share of the limit, and no further."""

    PRICE = 2_000_000  # nano-dollars a call, at worst and in fact

    @pytest.fixture
    def client(self) -> Iterator[fastroute.Client]:
        model = {"input_price": 0, "output_price": 20, "max_output_tokens": 100, "context_window": 8000}
        budget = {"name": "day", "limit": 0.02, "window": "day", "shares": {"low": 0.5, "normal": 0.8}}
        with Provider(answer=fastroute.testing.Answer("x", completion_tokens=100)) as provider:
            config = {
                "fastroute": {"ledger": ""},
                "providers": {"p": {"base_url": provider.base_url}},
                "endpoints": [{"provider": "p", "model": MODEL}],
                "models": {MODEL: model},
                "cache": {"enabled": False},
                "budgets": [budget],
            }
            with fastroute.Client(config) as client:
                yield client

    def test_each_class_stops_at_its_share(self, client: fastroute.Client) -> None:
        def asked(priority: str) -> int:
            answered = 0
            while True:
                try:
                    client.chat.completions.create(
                        model=MODEL,
                        messages=[{"role": "user", "content": "x"}],
                        max_tokens=100,
                        route={"priority": priority},
                    )
                except fastroute.BudgetExceeded as error:
                    self.said = str(error)
                    return answered
                answered += 1

        assert asked("low") == 5
        assert "of $0.01 for calls of low priority" in self.said
        assert asked("normal") == 3
        assert asked("low") == 0
        assert asked("high") == 2
        assert client.stats()["budgets"][0].spent_nano == 10 * self.PRICE

    def test_a_share_of_no_class_is_refused(self) -> None:
        budget = {"name": "day", "limit": 1, "window": "day", "shares": {"urgent": 0.5}}
        with pytest.raises(fastroute.ConfigError, match="use one of high, normal, low"):
            fastroute.Client({"budgets": [budget]})


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_has_ended_is_gone_without_a_collection(
    start: Callable[..., Loopback], stream: bool
) -> None:
    """Else each call would bring the next collection nearer, which stops all threads."""
    loop = start()
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            if stream:
                for _ in loop.stream():
                    pass
            else:
                loop.ask()
        left = [each for each in gc.get_objects() if isinstance(each, (Call, Settlement, Exchange, Stream))]
        assert left == []
    finally:
        gc.enable()
