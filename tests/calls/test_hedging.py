"""Hedging: which request wins, which is cancelled and charged, and which calls are not hedged."""

from __future__ import annotations

import contextvars
import threading
from typing import Any

import pytest
from hedged import (
    SLOW,
    Start,
    endpoint,
    forgiving,
    hedging,
    known,
    lost,
    once_hedged,
    outcomes,
    refused,
    tried,
)
from loopback import MODEL, Loopback, within

import fastroute
from fastroute import errors, events
from fastroute.testing import Answer, Fault, Provider


@pytest.fixture
def loop(start: Start) -> Loopback:
    found = start(2, policy=hedging())
    known(found)
    return found


# ------------------------------------------------------------------------------------------------ who wins


def test_a_first_attempt_that_fails_before_its_hedge_begins_is_a_usual_failover(start: Start) -> None:
    loop = start(2, policy=hedging(min_delay=10.0))
    known(loop)
    loop.provider("a").script(Fault.status(503))
    assert [(each.endpoint[0], each.outcome) for each in tried(loop.ask())] == [("a", "failed"), ("b", "ok")]
    assert loop.of(events.Hedged) == []


def test_both_fail_and_each_failure_is_handled(start: Start) -> None:
    """The hedge's endpoint refuses the key, the first one is busy: it alone is asked again."""
    loop = start(2, policy=hedging())
    known(loop)
    loop.provider("a").script(Fault.slow(0.25) | Fault.status(503))
    loop.provider("b").script(Fault.status(401), repeat=True)
    reply = loop.ask()
    found = [(each.endpoint[0], each.outcome) for each in tried(reply)]
    assert sorted(found[:2]) == [("a", "failed"), ("b", "failed")]
    assert found[2:] == [("a", "ok")]
    assert loop.provider("b").received == 1


def test_a_slow_call_is_answered_by_its_hedge_and_the_first_is_cut_and_charged(loop: Loopback) -> None:
    a, b = loop.provider("a"), loop.provider("b")
    a.script(SLOW)
    with within(5):
        reply = loop.ask("Say hello to all of us")
    assert reply.route is not None
    assert reply.choices[0].message.content == "Say hello to all of us"
    assert reply.route.endpoint == f"b/{MODEL}"
    assert outcomes(reply.route.attempts) == {"a": "hedge_lost", "b": "ok"}
    a.wait_until(lambda known: known.open_connections == 0, 5)  # closed, not left to its twenty seconds
    (loser,) = lost(loop.attempts)
    assert reply.usage is not None
    assert (loser.usage_source, loser.maybe_billed, loser.error) == ("estimated", True, None)
    assert loser.prompt_tokens > 0
    assert loser.completion_tokens == reply.usage.completion_tokens  # the provider will have written as much
    assert reply.route.cost == pytest.approx(sum((each.cost_nano or 0) for each in loop.attempts) / 1e9)
    (event,) = loop.of(events.Hedged)
    assert (event.first, event.second) == (f"a/{MODEL}", f"b/{MODEL}")
    assert event.after >= 0.02
    assert (a.received, b.received) == (1, 1)


def test_the_first_wins_where_it_answers_after_all(loop: Loopback) -> None:
    loop.provider("a").script(once_hedged(loop, None))
    loop.provider("b").script(SLOW)
    with within(5):
        reply = loop.ask()
    assert outcomes(tried(reply)) == {"a": "ok", "b": "hedge_lost"}


def test_a_first_that_fails_waits_for_its_hedge(loop: Loopback) -> None:
    """The hedge is a second attempt: no third one is made while it is under way."""
    loop.provider("a").script(once_hedged(loop, Fault.status(500)))
    loop.provider("b").script(Fault.slow(0.3))
    reply = loop.ask()
    assert reply.route is not None
    assert outcomes(reply.route.attempts) == {"a": "failed", "b": "ok"}
    assert (loop.provider("a").received, loop.provider("b").received) == (1, 1)
    assert endpoint(loop).core.counts == (0, 1)


def test_a_hedge_that_fails_leaves_the_first_alone(loop: Loopback) -> None:
    loop.provider("a").script(once_hedged(loop, Fault.slow(0.1)))
    loop.provider("b").script(Fault.status(500))
    reply = loop.ask()
    assert outcomes(tried(reply)) == {"a": "ok", "b": "failed"}
    assert endpoint(loop, "b").core.counts == (0, 1)


def test_both_fail_and_a_third_answers(start: Start) -> None:
    loop = start(3, policy=hedging())
    known(loop)
    loop.provider("a").script(once_hedged(loop, Fault.status(503)))
    loop.provider("b").script(Fault.status(500))
    reply = loop.ask()
    assert outcomes(tried(reply)) == {"a": "failed", "b": "failed", "c": "ok"}


def test_both_fail_and_they_were_all_that_was_allowed(start: Start) -> None:
    loop = start(3, policy={**hedging(), "max_attempts": 2})
    known(loop)
    loop.provider("a").script(once_hedged(loop, Fault.status(503)))
    loop.provider("b").script(Fault.status(500))
    with pytest.raises(fastroute.InternalServerError) as caught:
        loop.ask()
    assert caught.value.status_code == 503  # of the first
    assert outcomes(caught.value.attempts) == {"a": "failed", "b": "failed"}


def test_an_error_of_the_callers_own_making_waits_for_nobody(loop: Loopback) -> None:
    loop.provider("a").script(once_hedged(loop, Fault.status(400)))
    loop.provider("b").script(SLOW)
    with within(3), pytest.raises(fastroute.BadRequestError):
        loop.ask()
    assert {attempt.outcome for attempt in loop.attempts} == {"failed", "hedge_lost"}


def test_the_deadline_holds_for_both(loop: Loopback) -> None:
    for provider in loop.providers.values():
        provider.script(SLOW)
    with within(0.3), pytest.raises(fastroute.DeadlineExceeded):
        loop.ask(timeout=0.3)
    assert len(loop.attempts) == 2


def test_a_check_judges_the_winner_in_the_callers_thread(start: Start) -> None:
    loop = start(2, policy=hedging(), quality={"retries": 1, "escalate": False})
    known(loop)
    judged: list[tuple[str, int]] = []

    def judge(completion: Any) -> bool:
        judged.append((completion.choices[0].message.content, threading.get_ident()))
        return len(judged) > 1

    loop.provider("a").script(SLOW)
    loop.provider("b").answer = "from b"
    loop.provider("a").answer = "from a"
    reply = loop.ask(route={"validate": judge})
    assert judged == [("from b", threading.get_ident()), ("from a", threading.get_ident())]
    assert reply.choices[0].message.content == "from a"
    assert loop.of(events.Hedged) == loop.of(events.Hedged)[:1]  # one hedge a call


# ------------------------------------------------------------------------------------------------- streams


def test_a_stream_comes_from_whoever_begins_first(loop: Loopback) -> None:
    loop.provider("a").script(SLOW)
    loop.provider("b").answer = "one two three"
    with within(5), loop.stream() as stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == "one two three"
    assert stream.route.endpoint == f"b/{MODEL}"
    assert outcomes(stream.route.attempts) == {"a": "hedge_lost", "b": "ok"}
    (loser,) = lost(loop.attempts)
    assert (loser.usage_source, loser.maybe_billed) == ("estimated", True)
    loop.provider("a").wait_until(lambda known: known.open_connections == 0, 5)


def test_a_stream_that_has_begun_is_not_hedged(loop: Loopback) -> None:
    loop.provider("a").script(Fault.stream_stall(after=2, seconds=0.3))
    with loop.stream("one two three four") as stream:
        assert len([chunk for chunk in stream if chunk.choices]) > 2
    assert loop.provider("b").received == 0


def test_a_lost_stream_says_nothing_of_the_time_to_a_first_token(loop: Loopback) -> None:
    core = endpoint(loop).core
    for _ in range(20):
        core.record_ttft(2.0)
    before = core.ttft_timeout()
    loop.provider("a").script(SLOW)
    with loop.stream() as stream:
        list(stream)
    assert core.ttft_timeout() == before  # a time-out would double it


@pytest.mark.parametrize("stream", [False, True])
def test_both_answer_at_the_same_moment(start: Start, stream: bool) -> None:
    """Case 62: exactly one wins, the other is shut and its cost recorded; whichever it is."""
    gate = threading.Barrier(2, timeout=10)

    def answer(request: Any) -> Answer:
        gate.wait()
        return Answer(content="the same", prompt_tokens=7)

    loop = start(2, policy=hedging(min_delay=0.0), answer=answer)
    forgiving(loop)
    winners = set()
    for _ in range(25):
        known(loop)
        before = len(loop.attempts)
        if stream:
            with loop.stream() as chunks:
                text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            route: Any = chunks.route
        else:
            reply = loop.ask()
            text, route = reply.choices[0].message.content or "", reply.route
        assert text == "the same"
        assert sorted(outcomes(route.attempts).values()) == ["hedge_lost", "ok"]
        assert route.cost > 0
        assert all(attempt.cost_nano for attempt in loop.attempts[before:])
        winners.add(route.endpoint)
        loop.check()
    assert loop.client.stats()["endpoints"][f"a/{MODEL}"]["in_flight"] == 0
    assert winners


# ------------------------------------------------------------------------------------------------- whether


def test_not_by_itself(start: Start) -> None:
    loop = start(2)
    assert endpoint(loop).tail(False) is None
    assert loop.endpoint()["hedges"] is None
    refused(loop)
    refused(loop, route={"hedge": True})


def test_not_before_enough_is_known(start: Start) -> None:
    loop = start(2, policy=hedging())
    known(loop, calls=9)
    refused(loop)


def test_calls_teach_what_is_slow(start: Start) -> None:
    loop = start(2, policy=hedging())
    for _ in range(10):
        loop.ask()
    with loop.stream() as stream:
        list(stream)
    whole, begun = endpoint(loop).tail(False), endpoint(loop).tail(True)
    assert whole is not None
    assert begun is not None
    assert (whole.count(), begun.count()) == (10, 1)
    loop.provider("a").script(SLOW)
    loop.ask()
    assert (whole.count(), whole.hedges()) == (11, 1)  # one more, that took longer than it was waited for
    assert whole.quantile(1.0) > 0.02
    assert (loop.endpoint("a")["hedges"], loop.endpoint("b")["hedges"]) == (1, 0)


def test_not_where_the_call_does_not_want_it(loop: Loopback) -> None:
    refused(loop, route={"hedge": False})


def test_only_where_the_call_wants_it(start: Start) -> None:
    loop = start(2, policy=hedging(unasked=False))
    known(loop)
    refused(loop)
    loop.provider("a").script(SLOW)
    assert len(tried(loop.ask(route={"hedge": True}))) == 2


def test_not_where_most_take_as_long(start: Start) -> None:
    """The delay is the percentile's, not the least one."""
    loop = start(2, policy=hedging())
    known(loop, latency=5.0)
    refused(loop)


def test_not_after_the_deadline_of_the_call(loop: Loopback) -> None:
    loop.provider("a").script(Fault.slow(1.0))
    with pytest.raises(fastroute.DeadlineExceeded):
        loop.ask(timeout=0.02)
    assert loop.provider("b").received == 0


def test_not_once_an_attempt_has_failed(start: Start) -> None:
    """Both requests are a call's first two: a third place to ask is for when these have failed."""
    loop = start(3, policy=hedging())
    known(loop, name="b")
    loop.provider("a").script(Fault.status(503))
    loop.provider("b").script(Fault.slow(0.25))
    assert outcomes(tried(loop.ask())) == {"a": "failed", "b": "ok"}
    assert loop.provider("c").received == 0


def test_a_probe_is_not_hedged(loop: Loopback) -> None:
    loop.provider("a").script(Fault.slow(0.2))
    loop.client.probe(f"a/{MODEL}")
    assert loop.provider("b").received == 0


@pytest.mark.parametrize("hedge", ["yes", 1, 0])
def test_what_the_word_takes(loop: Loopback, hedge: Any) -> None:
    with pytest.raises(errors.BadRequestError, match=r"route\.hedge: must be True or False"):
        loop.ask(route={"hedge": hedge})


# -------------------------------------------------------------------------------------------- going away


def test_a_client_that_is_closed_meanwhile_sends_no_hedge(start: Start) -> None:
    loop = start(2, policy=hedging())
    known(loop)
    loop.provider("a").script(Fault.slow(0.3))
    loop.client.runtime.hedge_workers.close()
    assert len(tried(loop.ask())) == 1


def test_all_threads_for_hedges_are_in_use(start: Start) -> None:
    loop = start(2, policy=hedging(), fastroute={"workers": 1})
    known(loop)
    hold = threading.Event()
    assert loop.client.runtime.hedge_workers.start(contextvars.copy_context(), lambda: hold.wait(10))
    try:
        refused(loop)
    finally:
        hold.set()


def test_many_threads_at_once(start: Start) -> None:
    """Every call has one answer, every attempt one line, and nothing is held."""
    loop = start(
        {name: Provider(answer="done") for name in "abc"}, policy={**hedging(), "strategy": "latency"}
    )
    for name in "abc":
        known(loop, name=name, calls=100)
    forgiving(loop)
    for name in "ab":
        loop.provider(name).script(None, Fault.slow(0.1), None, Fault.slow(0.3), repeat=True)
    answers: list[Any] = []

    def ask() -> None:
        for _ in range(10):
            answers.append(loop.ask())

    workers = [threading.Thread(target=ask) for _ in range(12)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(answers) == 120
    assert all(answer.choices[0].message.content == "done" for answer in answers)
    by_call: dict[str, list[str]] = {}
    for attempt in loop.attempts:
        by_call.setdefault(attempt.call_id, []).append(attempt.outcome)
    assert len(by_call) == 120
    assert {tuple(sorted(each)) for each in by_call.values()} <= {("ok",), ("hedge_lost", "ok")}
    assert len(lost(loop.attempts)) == len(loop.of(events.Hedged)) > 0
