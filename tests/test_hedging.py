"""A second request for a call that takes longer than most: who wins, who is cut and charged, who has none."""

from __future__ import annotations

import contextvars
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from loopback import MODEL, Loopback, within

import fastroute
from fastroute import Attempt, _core, errors, events
from fastroute.config import HedgingConfig
from fastroute.hedging import Hedge, Hedging
from fastroute.plan import Estimate
from fastroute.race import Race
from fastroute.state import Endpoint
from fastroute.testing import Answer, Fault, Provider
from fastroute.transport.watch import Alarm, reaper
from fastroute.workers import Workers

Start = Callable[..., Loopback]
SLOW = Fault.slow(20.0)
HEDGING = {"enabled": True, "min_delay": 0.02, "min_samples": 10, "max_share": 1.0}


def hedging(**rules: Any) -> dict[str, Any]:
    return {"hedging": {**HEDGING, **rules}}


def endpoint(loop: Loopback, name: str = "a") -> Endpoint:
    return loop.client._router.snapshot.state.named(f"{name}/{MODEL}")


def known(loop: Loopback, *, latency: float = 0.001, calls: int = 10, name: str = "a") -> None:
    """As if so many calls of that latency had been answered lately, and as many streams had begun."""
    for stream in (False, True):
        tail = endpoint(loop, name).tail(stream)
        assert tail is not None
        for _ in range(calls):
            tail.record(latency)


def forgiving(loop: Loopback) -> None:
    """So many first attempts went well lately that the retry budgets bear as many hedges."""
    for name in loop.providers:
        for _ in range(200):
            endpoint(loop, name).core.deposit()


def once_hedged(loop: Loopback, fault: Fault | None) -> Callable[[Any], Fault | None]:
    """The first endpoint's answer, as soon as the second one is asked."""

    def answer(request: Any) -> Fault | None:
        loop.provider("b").wait_until(lambda known: known.received, 10)
        return fault

    return answer


def outcomes(attempts: Any) -> dict[str, str]:
    return {attempt.endpoint.split("/")[0]: attempt.outcome for attempt in attempts}


def tried(reply: fastroute.Completion) -> tuple[Attempt, ...]:
    assert reply.route is not None
    return reply.route.attempts


def lost(attempts: Any) -> list[Attempt]:
    return [attempt for attempt in attempts if attempt.outcome == "hedge_lost"]


@pytest.fixture
def loop(start: Start) -> Loopback:
    found = start(2, policy=hedging())
    known(found)
    return found


# ------------------------------------------------------------------------------------------------ who wins


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


# ----------------------------------------------------------------------------------- over no limit or budget


def refused(loop: Loopback, **params: Any) -> None:
    """A slow first attempt answers by itself: nobody is asked beside it."""
    loop.provider("a").script(Fault.slow(0.25))
    reply = loop.ask(**params)
    assert outcomes(tried(reply)) == {"a": "ok"}
    assert loop.provider("b").received == 0
    assert loop.of(events.Hedged) == []


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
    gate = loop.client._router.snapshot.state.gate
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
    with pytest.raises(errors.BadRequestError, match=r"route\.hedge: True or False is wanted"):
        loop.ask(route={"hedge": hedge})


# -------------------------------------------------------------------------------------------- going away


def test_a_client_that_is_closed_meanwhile_sends_no_hedge(start: Start) -> None:
    loop = start(2, policy=hedging())
    known(loop)
    loop.provider("a").script(Fault.slow(0.3))
    loop.client._router._hedges.close()
    assert len(tried(loop.ask())) == 1


def test_all_threads_for_hedges_are_in_use(start: Start) -> None:
    loop = start(2, policy=hedging(), fastroute={"workers": 1})
    known(loop)
    hold = threading.Event()
    assert loop.client._router._hedges.start(contextvars.copy_context(), lambda: hold.wait(10))
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


# ------------------------------------------------------------------------------------- a hedge by itself


class Later:
    """In the place of the threads: runs what it was given when the test says so."""

    def __init__(self) -> None:
        self.given: list[Callable[[], object]] = []

    def start(self, context: contextvars.Context, call: Callable[[], object]) -> bool:
        self.given.append(partial(context.run, call))
        return True


class Answered:
    """An answer that can be seen to be let go."""


def alone(send: Callable[[Hedge[Answered]], Answered | None]) -> tuple[Hedge[Answered], Later]:
    later = Later()
    return Hedge(Race(), send, later), later  # type: ignore[arg-type]


@pytest.mark.parametrize("given_up", [Hedge.end, Hedge.result])
def test_what_has_not_begun_in_time_does_not_begin(given_up: Callable[[Hedge[Answered]], Any]) -> None:
    sent: list[Any] = []
    hedge, later = alone(sent.append)
    hedge._due()
    assert given_up(hedge) is None
    (run,) = later.given
    run()
    assert sent == []


def test_its_alarm_goes_with_the_call() -> None:
    hedge, later = alone(lambda _: None)
    hedge.begin_after(60.0)
    (alarm,) = (each for each in reaper._watches.values() if isinstance(each, Alarm))
    hedge.end()
    assert alarm not in reaper._watches.values()
    assert later.given == []


@pytest.mark.parametrize("before", [True, False], ids=["before it came", "when it was there"])
def test_an_answer_that_nobody_takes_is_let_go(before: bool) -> None:
    """A stream then gives back its permits and its connection."""
    answers: list[weakref.ref[Answered]] = []

    def send(hedge: Hedge[Answered]) -> Answered:
        if before:
            hedge.end()
        answer = Answered()
        answers.append(weakref.ref(answer))
        return answer

    hedge, later = alone(send)
    hedge._due()
    later.given.pop()()
    if not before:
        assert answers[0]() is not None
        hedge.end()
    assert answers[0]() is None
    assert hedge.result() is None


@pytest.mark.parametrize(
    ("problem", "told"),
    [(errors.BudgetExceeded("spent"), ""), (ZeroDivisionError(), "a hedge failed as no attempt should")],
    ids=["refused", "broken"],
)
def test_whatever_a_hedge_fails_with_the_first_attempt_goes_on(
    caplog: pytest.LogCaptureFixture, problem: Exception, told: str
) -> None:
    def send(hedge: Hedge[Answered]) -> Answered:
        raise problem

    hedge, later = alone(send)
    hedge._due()
    later.given.pop()()
    assert hedge.result() is None
    assert told in caplog.text
    assert bool(told) == bool(caplog.text)


@pytest.mark.parametrize(
    ("stream", "input_tokens", "left", "wanted"),
    [
        (False, 0, 60.0, 2.0),
        (False, 20_000, 60.0, 2.0),  # whole answers are counted as they are
        (True, 20_000, 60.0, 6.0),  # to a first token it is longer after a long prompt
        (False, 0, 1.0, None),  # after the call's end nobody waits for it
    ],
)
def test_its_delay(stream: bool, input_tokens: int, left: float, wanted: float | None) -> None:
    tail = _core.Tail(_core.Segment(64), "t")
    for _ in range(100):
        tail.record(2.0)
    rule = HedgingConfig(enabled=True, percentile=0.999)
    call: Any = SimpleNamespace(
        request=SimpleNamespace(stream=stream, options=SimpleNamespace(hedge=None)),
        attempts=[],
        estimate=Estimate(input_tokens, 0, 30.0),
        deadline=time.monotonic() + left,
    )
    known: Any = SimpleNamespace(tail=lambda _: tail)
    delay = Hedging(rule, Workers(1, 0)).delay(call, known)
    # A bucket is a fifth of its value wide.
    assert delay is None if wanted is None else delay == pytest.approx(wanted, rel=0.2)


@pytest.mark.parametrize("problem", [RuntimeError, MemoryError, errors.Error], ids=lambda kind: kind.__name__)
def test_nothing_that_a_hedge_meets_stops_the_clocks(problem: type[Exception]) -> None:
    class Never:
        def start(self, context: contextvars.Context, call: Callable[[], object]) -> bool:
            raise problem("no thread can be started")

    Hedge(Race(), lambda _: None, Never())._due()  # type: ignore[arg-type]
