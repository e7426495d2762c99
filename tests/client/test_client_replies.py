"""The client's interface: answers, errors and deadlines."""

from __future__ import annotations

import json
import logging
import socket
import threading
from contextlib import ExitStack

import pytest
from client_setups import Start
from loopback import MODEL, core_of, within

import fastroute
from fastroute import events
from fastroute.testing import Answer, Fault, Provider


def test_the_route_says_how_it_was_served(start: Start) -> None:
    loop = start(1, answer=Answer(content="x", prompt_tokens=1000, completion_tokens=10))
    reply = loop.ask(route={"tags": {"team": "red"}})
    route = reply.route
    assert route is not None
    assert (route.model, route.endpoint, route.provider) == (MODEL, f"a/{MODEL}", "a")
    assert route.cost_nano == 1000 * 1000 + 10 * 2000
    assert route.cost == pytest.approx(0.00102)
    assert route.latency is not None
    assert 0 < route.latency < 5
    assert not route.cached
    assert route.request_id
    (row,) = loop.client.ledger.entries()
    assert row.tags == {"team": "red"}
    assert row.cost_nano == route.cost_nano


def test_a_price_nobody_knows_is_no_price(start: Start) -> None:
    loop = start(1, endpoints=[{"provider": "a", "model": "nameless"}])
    route = loop.ask(model="nameless").route
    assert route is not None
    assert route.cost is None


def test_with_options_shares_all_but_the_defaults(start: Start) -> None:
    loop = start(1, cache={"enabled": True})
    tagged = loop.client.with_options(tags={"team": "red"}, timeout=5.0).with_options(tags={"job": "x"})
    question = [{"role": "user", "content": "hi"}]
    tagged.chat.completions.create(model=MODEL, messages=question, route={"tags": {"job": "y"}})
    assert loop.attempts[-1].tags == {"team": "red", "job": "y"}
    assert tagged.ledger is loop.client.ledger
    with pytest.raises(fastroute.BadRequestError):
        loop.client.with_options(timeout=0)
    fresh = loop.client.with_options(cache=False)
    for _ in range(2):
        fresh.chat.completions.create(model=MODEL, messages=question)
    assert loop.provider().received == 3


def test_a_cached_answer_says_so_and_costs_nothing(start: Start) -> None:
    loop = start(1, cache={"enabled": True})
    first, second = loop.ask(), loop.ask()
    assert first.route is not None
    assert second.route is not None
    assert (first.route.cached, second.route.cached) == (False, True)
    assert second.route.cost_nano == 0
    assert second.route.attempts == ()
    assert second.text == first.text
    assert loop.provider().received == len(loop.attempts) == 1
    assert loop.ask(route={"cache": False}).route.cached is False  # type: ignore[union-attr]
    assert loop.ask(temperature=0).route.cached is False  # type: ignore[union-attr]
    assert loop.ask(route={"tags": {"tenant": "b"}}).route.cached is False  # type: ignore[union-attr]
    assert loop.client.stats()["cache"]["hits"] == 1


def test_equal_questions_in_flight_are_asked_once(start: Start) -> None:
    loop = start({"a": Provider(latency=0.2)}, cache={"enabled": True})
    barrier = threading.Barrier(8)
    replies = []

    def ask() -> None:
        barrier.wait()
        replies.append(loop.ask())

    workers = [threading.Thread(target=ask) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert loop.provider().received == 1
    assert sorted(reply.route.cached for reply in replies if reply.route) == [False] + [True] * 7
    assert sum(reply.route.cost_nano or 0 for reply in replies if reply.route) == loop.attempts[0].cost_nano


def test_every_call_ends_with_one_event(start: Start) -> None:
    loop = start(1, cache={"enabled": True}, policy={"max_attempts": 1})
    loop.ask()
    loop.ask()
    loop.provider().script(Fault.status(500))
    with pytest.raises(fastroute.InternalServerError):
        loop.ask("another")
    list(loop.stream())
    ends = loop.of(events.CallFinished)
    assert [event.error for event in ends] == [None, None, "InternalServerError", None]
    assert len(loop.attempts) == 3


def test_a_hook_that_raises_loses_no_call(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    loop = start(1)
    remove = loop.client.on(lambda event: 1 / 0, events.AttemptFinished)
    with caplog.at_level(logging.CRITICAL + 1, "fastroute"):
        assert loop.ask().text == "Say hello"
    remove()


def test_every_deadline_is_kept_with_threads_waiting(start: Start) -> None:
    loop = start(1, providers={"a": {"max_in_flight": 2}})
    loop.provider().script(Fault.black_hole(), repeat=True)
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            loop.ask(timeout=0.3)
        except fastroute.Error as error:
            failures.append(error)

    workers = [threading.Thread(target=ask) for _ in range(6)]
    with within(0.6):
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert len(failures) == 6
    assert {type(error) for error in failures} <= {fastroute.DeadlineExceeded, fastroute.RateLimitError}


def test_a_stream_that_has_ended_leaves_its_connection_to_the_next(start: Start) -> None:
    loop = start(1)
    loop.provider().script(*[Fault.drip(1, 0.0001)] * 3)  # so that the framing's end comes by itself
    for _ in range(3):
        with loop.client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hello"}], stream=True
        ) as stream:
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert loop.provider().connections == 1


@pytest.mark.parametrize("fault", [Fault.stall(), Fault.black_hole()], ids=["headers only", "nothing"])
def test_a_stream_that_does_not_begin_in_time_gives_the_next_one_more(start: Start, fault: Fault) -> None:
    loop = start(1, providers={"a": {"timeout": 0.2}}, policy={"max_attempts": 1})
    (endpoint,) = loop.client.runtime.generation.state.endpoints
    for _ in range(30):
        endpoint.core.record_ttft(0.1)
    before = endpoint.core.ttft_timeout()
    loop.provider().script(fault)
    with pytest.raises(fastroute.APITimeoutError):
        loop.client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hello"}], stream=True
        )
    assert endpoint.core.ttft_timeout() == 2 * before


def test_a_plain_answer_that_is_late_says_nothing_of_first_tokens(start: Start) -> None:
    loop = start(1, providers={"a": {"timeout": 0.2}}, policy={"max_attempts": 1})
    core = core_of(loop.client)
    for _ in range(30):
        core.record_ttft(0.1)
    before = core.ttft_timeout()
    loop.provider().script(Fault.stall())
    with pytest.raises(fastroute.APITimeoutError):
        loop.ask()
    assert core.ttft_timeout() == before


def test_a_stream_whose_connection_is_never_made_says_nothing_of_first_tokens(start: Start) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # its line of those that wait is full
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        loop = start(1, providers={"a": {"base_url": url}}, policy={"max_attempts": 1})
        (endpoint,) = loop.client.runtime.generation.state.endpoints
        for _ in range(30):
            endpoint.core.record_ttft(0.1)
        before = endpoint.core.ttft_timeout()
        with pytest.raises(fastroute.APITimeoutError):
            loop.stream()
        assert endpoint.core.ttft_timeout() == before


def test_every_answer_counts_for_its_models_rate(start: Start) -> None:
    loop = start(1)
    loop.ask()
    (rate,) = loop.client.stats()["rates"]
    assert (rate.model, rate.measure, rate.rate) == (MODEL, "success", 1.0)


def test_without_usage_the_arguments_of_tools_count_as_what_was_written(start: Start) -> None:
    loop = start(1)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": json.dumps("x" * 300)}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    body = {"id": "c", "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    loop.provider().script(Fault.status(200, json.dumps(body).encode()))
    usage = loop.ask().usage
    assert usage is not None
    assert usage.source == "estimated"
    assert usage.completion_tokens > 100
