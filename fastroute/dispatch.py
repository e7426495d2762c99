"""Carries out a plan: attempts, failover, retries, waiting for limits, and the one deadline over all of it.

Owns the order of events between a plan and its answer. One attempt is `attempt.py`'s; what an error means is
`retry.py`'s; who is in a plan is `plan.py`'s.

After a failure the next endpoint that has not been tried goes at once: waiting is for when there is none.
Then the shorter of two waits is taken: for a limit of an untried endpoint, or the back-off before asking a
tried one again, which the endpoint's retry budget must allow. Failover to another endpoint is never budgeted,
or an outage of one provider would use up what is meant to end it.
"""

from __future__ import annotations

import itertools
import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeVar

from attrs import evolve, frozen

from . import _core, errors, events
from .attempt import Attempts
from .call import Call, Grant, Wire
from .catalog import Model
from .config import Policy, QualityConfig
from .hedging import Hedge, Hedging
from .line import ALL, RANKS, Line, Place
from .plan import Plan
from .quality import with_feedback
from .race import Race
from .retry import Action, RetryPolicy
from .state import Endpoint, State
from .stream import Stream
from .types import Completion, Usage

log = logging.getLogger("fastroute")

_Answer = TypeVar("_Answer", Completion, Stream)
_Either = TypeVar("_Either", bound="Completion | Stream")

_WAITABLE = (_core.REQUESTS, _core.TOKENS, _core.BUSY)
_SOON = 0.02  # seconds that a wait for a permit is taken to last


@frozen
class _Refusal:
    """Why the core did not let a call in, and for how long (seconds; 0 if it cannot say)."""

    name: str
    endpoint: Endpoint
    tier: str | None
    reason: int
    wait: float


class _Progress:
    """One call's way through its plan."""

    __slots__ = (
        "chain",
        "excluded",
        "failed",
        "failed_slowly",
        "place",
        "primary",
        "refused",
        "retry",
        "too_small",
        "tried",
        "wider_than",
        "without_usage",
    )

    def __init__(self) -> None:
        self.tried: set[str] = set()
        self.excluded: set[str] = set()
        # Tried, and may be asked again: with what each failed last, the longest ago first.
        self.retry: list[tuple[Endpoint, errors.APIError]] = []
        self.refused: list[_Refusal] = []
        self.place: Place | None = None  # in line, while it waits
        self.primary: errors.Error | None = None
        self.failed: Endpoint | None = None
        self.failed_slowly = False
        self.too_small: set[str] = set()  # models whose window the request does not fit
        self.without_usage: set[str] = set()  # endpoints that were to be asked again without stream_options
        self.wider_than = 0  # only models with a larger window than this are left to ask
        self.chain: tuple[str, Model] | None = None  # the chain that took the plan's place, and whose it is

    def detour(self, chain: str, model: Model) -> None:
        """Leaves the plan for a chain of models that can take what this one could not, if it has one."""
        if getattr(model, chain):
            self.chain = (chain, model)


class Dispatcher:
    """Runs calls.

    Args:
        policy: attempts, queue bounds.
        quality: what is done about answers that fail their check.
        retries: what may be done about an error.
        wires: by endpoint name.
        line: where calls wait for a limit.
        state: the permits of all endpoints together, and how often a breaker may be hurried.
        hedging: which calls get a second request and when, if any do.

    Thread safety: all methods; a call runs in its caller's thread.
    """

    def __init__(
        self,
        policy: Policy,
        quality: QualityConfig,
        retries: RetryPolicy,
        wires: Mapping[str, Wire],
        attempts: Attempts,
        line: Line,
        state: State,
        hedging: Hedging | None = None,
    ) -> None:
        self._policy = policy
        self._quality = quality
        self._retries = retries
        self._wires = wires
        self._attempts = attempts
        self._random = random.Random()
        self._line = line
        self._state = state
        self._hedging = hedging

    def after_fork(self) -> None:
        """In a forked child: other random choices than the parent's."""
        self._random = random.Random()

    def complete(self, call: Call, plan: Plan) -> Completion:
        """The answer of the first endpoint that gives one.

        Raises:
            errors.Error: of the primary attempt, with all attempts attached, when every way is used up.
        """
        return self._run(call, plan, self._attempts.complete)

    def stream(self, call: Call, plan: Plan) -> Stream:
        """As `complete`, with the stream of the first endpoint whose content begins."""
        return self._run(call, plan, self._attempts.stream)

    def once(self, call: Call, plan: Plan, *, wait: bool) -> Completion | Stream:
        """One attempt at the first endpoint of the plan that lets the call in, and no other after it.

        Only to a provider that knows no stream_options the same goes out again, without.

        Args:
            call: the call.
            plan: who may be asked.
            wait: whether it may wait for a limit, in line with all others.

        Raises:
            errors.NoEndpointError, errors.RateLimitError: nobody lets it in; nothing was sent.
            errors.Error: what the attempt failed with.
        """
        attempt = self._attempts.stream if call.request.stream else self._attempts.complete
        progress = _Progress()
        try:
            while True:
                progress = _Progress()
                grant = self._admit(call, plan, progress) if wait else self._at_once(call, plan, progress)
                if grant is None:
                    raise self._exhausted(plan, progress)
                wire = self._wires[grant.endpoint.name]
                asked = wire.target.include_usage
                try:
                    return self._judged(call, attempt(call, wire, grant))
                except errors.APIError:
                    verdict = call.verdict
                    if verdict is None or verdict.action is not Action.WITHOUT_USAGE or not asked:
                        raise
                    wire.forget_usage()
                    call.sending = call.verdict = None
        except errors.Error as error:
            error.attempts = tuple(call.attempts)
            raise
        except _core.SegmentFullError as problem:
            raise _left_out(problem) from None
        finally:
            self._clear(call, progress)

    # ------------------------------------------------------------------------------------------- the loop

    def _run(self, call: Call, plan: Plan, attempt: Callable[[Call, Wire, Grant], _Answer]) -> _Answer:
        progress = _Progress()
        try:
            while True:
                call.sending = None  # what it was has been settled
                grant = self._admit(call, plan, progress)
                endpoint = grant.endpoint
                first = endpoint.name not in progress.tried
                if first:
                    progress.tried.add(endpoint.name)
                    endpoint.core.deposit()
                if progress.failed is not None and progress.failed is not endpoint and self._hooks.wanted:
                    kind = type(progress.primary).__name__
                    self._hooks.emit(events.FailedOver(call.id, progress.failed.name, endpoint.name, kind))
                try:
                    answer = self._attempted(call, plan, progress, grant, attempt)
                    if answer is not None:
                        return self._judged(call, answer)
                except errors.ValidationError as error:
                    plan = self._rejected(call, plan, error)
                    progress = _Progress()
                    progress.primary = error  # with its answer, if there is no way to a better one
                except errors.BudgetExceeded as error:
                    plan = self._downgraded(call, plan, error)
                    progress = _Progress()
        except errors.Error as error:
            error.attempts = tuple(call.attempts)
            raise
        except _core.SegmentFullError as problem:
            raise _left_out(problem) from None
        finally:
            self._clear(call, progress)

    def _clear(self, call: Call, progress: _Progress) -> None:
        """Leaves nothing held by a call that has ended."""
        if progress.place is not None:  # interrupted while it left the line
            self._line.leave(progress.place)
        self._let_go(call)

    def _let_go(self, call: Call) -> None:
        if call.sending is not None:  # whose settling an interrupt may have cut short
            call.sending.abandon()
        if call.held is not None:  # interrupted between being let in and sending
            self._give_back(call)
        if call.sending is None:
            self._leave_gate(call, call.gate)

    def _judged(self, call: Call, answer: _Either) -> _Either:
        """The answer, held to the caller's check if it has one."""
        if isinstance(answer, Completion):
            self._attempts.judge(call, answer)
        return answer

    # ------------------------------------------------------------------------------------------- one attempt

    def _attempted(
        self,
        call: Call,
        plan: Plan,
        progress: _Progress,
        grant: Grant,
        attempt: Callable[[Call, Wire, Grant], _Answer],
    ) -> _Answer | None:
        """The answer of an attempt, or of its hedge; None when it failed and another may be made."""
        endpoint = grant.endpoint
        wire = self._wires[endpoint.name]
        delay = None if self._hedging is None else self._hedging.delay(call, endpoint)
        if self._hedging is None or delay is None:
            try:
                return attempt(call, wire, grant)
            except errors.APIError as error:
                self._failed(call, progress, endpoint, error)
                return None
        call.race = race = Race()
        hedge = self._hedging.hedge(race, partial(self._hedged, call, plan, progress, endpoint, attempt))
        try:
            hedge.begin_after(delay)
            return attempt(call, wire, grant)
        except errors.APIError as error:
            # None is no failure of the endpoint's: the hedge has won.
            final = call.verdict is not None and call.verdict.action is Action.STOP
            answer = None if final else hedge.result()
            if answer is None:
                self._failed(call, progress, endpoint, error)
                if hedge.failure is not None:
                    self._failed(*hedge.failure)
            return answer
        finally:
            hedge.end()
            call.race = None

    def _hedged(
        self,
        call: Call,
        plan: Plan,
        progress: _Progress,
        first: Endpoint,
        attempt: Callable[[Call, Wire, Grant], _Answer],
        hedge: Hedge[_Answer],
    ) -> _Answer | None:
        """The answer of a second attempt beside the one under way; None if nobody lets it in or it fails.

        Plan and progress are its own meanwhile: the first attempt's thread waits for it before it goes on.
        """
        second = call.hedged(first.name)
        try:
            grant = self._second_grant(second, plan, progress, first)
            if grant is None:
                return None
            endpoint = grant.endpoint
            progress.tried.add(endpoint.name)
            try:
                return attempt(second, self._wires[endpoint.name], grant)
            except errors.APIError as error:
                hedge.failure = (second, progress, endpoint, error)
                return None
        finally:
            self._let_go(second)

    def _second_grant(self, second: Call, plan: Plan, progress: _Progress, first: Endpoint) -> Grant | None:
        """Another endpoint that lets a hedge in at once, over no limit, budget or share of hedges."""
        paid = False
        for endpoint, tier in plan.beside(first):
            if endpoint.name in progress.excluded or endpoint.core.state() != _core.CLOSED:
                continue
            if not self._affordable(second, plan, endpoint, first):
                continue
            gate = self._pass_gate(second, progress)
            if gate is None:
                return None
            if self._ask(second, progress, endpoint, gate) < 0:
                self._leave_gate(second, gate)
                continue
            # The share first: it is what mostly refuses, and a retry budget should not be spent on that.
            paid = paid or (self._hedging is not None and self._hedging.pay(second, first))
            if paid and endpoint.core.withdraw(half=True):
                second.tier = tier
                return second.held
            self._give_back(second)
            if not paid:
                return None
        return None

    # ------------------------------------------------------------------------------------------ another way

    def _rejected(self, call: Call, plan: Plan, error: errors.ValidationError) -> Plan:
        """The plan for another answer after one that failed its check; raises when that was the last."""
        quality = self._quality
        completion = error.completion
        call.rejected += 1
        if call.rejected > quality.retries or completion is None:
            raise error
        if time.monotonic() >= call.deadline:
            raise errors.DeadlineExceeded(f"the call's deadline passed, and {error}") from error
        if any(choice.finish_reason == "length" for choice in completion.choices):
            return self._lengthened(call, plan, completion, error)
        if quality.feedback:
            messages = with_feedback(call.request.messages, completion, error.reason)
            call.request = evolve(call.request, messages=messages)
        return (plan.higher() if quality.escalate else None) or plan

    def _lengthened(
        self, call: Call, plan: Plan, completion: Completion, error: errors.ValidationError
    ) -> Plan:
        """The plan for the same answer with more room, after one that was cut; raises where there is none.

        Asked as before, it would be cut as before and paid for again; and neither a dearer model nor being
        told what is missing makes an answer shorter.
        """
        wanted = call.request.max_tokens
        route = completion.route
        most = 0 if route is None else self._wires[route.endpoint].endpoint.model.max_output_tokens
        if not self._quality.lengthen:
            why = "quality.lengthen is off"
        elif wanted is None:
            why = "the model itself gave no more"
        elif 0 < most <= wanted:
            why = f"the model gives {most} tokens at most"
        else:
            longer = min(2 * wanted, most or 2 * wanted)
            params = call.request.params
            name = "max_tokens" if params.get("max_completion_tokens") is None else "max_completion_tokens"
            call.request = evolve(call.request, params={**params, name: longer})
            plan = plan.lengthened(call.request)
            call.estimate = plan.estimate
            return plan
        raise errors.ValidationError(
            f"{error}; it was not asked for again: {why}", completion=completion, reason=error.reason
        ) from None

    def _downgraded(self, call: Call, plan: Plan, error: errors.BudgetExceeded) -> Plan:
        """The plan for the cheapest tier, where a budget asks for that; else raises its refusal."""
        cheapest = None
        if error.on_breach == "downgrade" and call.downgraded is None:
            cheapest = None if call.request.options.force_premium else plan.cheapest()
        if cheapest is None:
            raise error
        call.downgraded = error.budget
        return cheapest

    @property
    def _hooks(self) -> events.Hooks:
        return self._attempts.sinks.hooks

    def _failed(self, call: Call, progress: _Progress, endpoint: Endpoint, error: errors.APIError) -> None:
        """Takes note of a failed attempt; raises when it was the last."""
        verdict, call.verdict = call.verdict, None
        progress.primary = progress.primary or error
        if verdict is None:
            # Nothing was sent: this endpoint's format cannot say it. Another's may; else this is the answer.
            progress.excluded.add(endpoint.name)
            return
        progress.failed = endpoint
        if time.monotonic() >= call.deadline:
            raise errors.DeadlineExceeded(
                f"the call's deadline passed after {len(call.attempts)} attempts; the first failed with: "
                f"{progress.primary}"
            ) from progress.primary
        action = verdict.action
        if isinstance(error, errors.ContentFilterError) and endpoint.model.content_fallbacks:
            action = Action.FAIL_OVER
            progress.primary = error
            progress.detour("content_fallbacks", endpoint.model)
        if action is Action.STOP:
            raise error
        if action is Action.WITHOUT_USAGE:
            self._wires[endpoint.name].forget_usage()
        if len(call.attempts) - call.rejected >= self._retries.max_attempts or (
            verdict.once and progress.failed_slowly
        ):
            raise progress.primary
        progress.failed_slowly = progress.failed_slowly or verdict.once
        progress.retry = [known for known in progress.retry if known[0] is not endpoint]
        if action is Action.RETRY:
            progress.retry.append((endpoint, error))
        elif action is Action.WITHOUT_USAGE and endpoint.name not in progress.without_usage:
            # The provider knows no stream_options: ask the same endpoint again at once, without. Once for
            # each call, since calls of other threads may have been under way with it too.
            progress.without_usage.add(endpoint.name)
            progress.tried.discard(endpoint.name)
        elif action is Action.FALL_BACK:
            progress.too_small.add(endpoint.model.name)
            progress.wider_than = max(progress.wider_than, endpoint.model.context_window)
            progress.primary = error
            progress.detour("context_fallbacks", endpoint.model)
        else:
            progress.excluded.add(endpoint.name)

    # --------------------------------------------------------------------------------------- being let in

    def _admit(self, call: Call, plan: Plan, progress: _Progress) -> Grant:
        """The next endpoint that lets the call in, waiting if it must; raises when there is none."""
        try:
            while True:
                found = self._at_once(call, plan, progress) or self._after_waiting(call, plan, progress)
                if found is not None:
                    return found
        finally:
            if progress.place is not None:
                self._line.leave(progress.place)
                progress.place = None

    def _at_once(self, call: Call, plan: Plan, progress: _Progress) -> Grant | None:
        progress.refused = []
        untried = self._untried(call, plan, progress)
        gate = self._pass_gate(call, progress)
        if gate is None:
            progress.refused = [
                _Refusal(ALL, endpoint, tier, _core.BUSY, 0.0)
                for endpoint, tier in itertools.islice(untried, 1)
            ]
            return None
        if not plan.ranked and not call.attempts and not self._line.waiting:
            # Nobody waits before it, so the core may rank and let it in at one go. Until it is taken the
            # ticket is the plan's, which gives it back should an interrupt come in between.
            entered = plan.admit()
            if entered is not None:
                endpoint, ranked = entered
                call.tier = plan.tier
                call.held = Grant(endpoint, ranked.take(), ranked.tokens, gate)
                return call.held
        for endpoint, tier in untried:
            answer = self._ask(call, progress, endpoint, gate)
            if answer >= 0 and call.held is not None:
                call.tier = tier
                return call.held
            wait = (-answer >> 3) / 1e9
            progress.refused.append(_Refusal(endpoint.name, endpoint, tier, -answer & 7, wait))
        self._leave_gate(call, gate)
        return None

    def _ask(self, call: Call, progress: _Progress, endpoint: Endpoint, gate: int) -> int:
        """As `_core.Endpoint.admit`: a ticket, which the call now holds with the gate's, or a refusal."""
        tokens = self._tokens(call, endpoint)
        answer = self._behind(call, progress, endpoint.name) if self._line.waiting else 0
        if answer >= 0:
            # In one statement: an interrupt between two would lose the ticket.
            call.held = grant = Grant(endpoint, endpoint.core.admit(tokens), tokens, gate)
            answer = grant.ticket
            if answer < 0:
                call.held = None
        return answer

    def _give_back(self, call: Call) -> None:
        """Undoes what let a call in that does not go on."""
        grant = call.held
        if grant is not None:
            if grant.ticket >= 0:
                grant.endpoint.core.undo(grant.ticket, grant.tokens)
                self._line.freed(grant.endpoint.name)
            self._leave_gate(call, grant.gate)
        call.held = None  # last: interrupted before, it is given back once more, which changes nothing

    def _pass_gate(self, call: Call, progress: _Progress) -> int | None:
        """A permit of all endpoints together; -1 where there is no such limit, None where it is used up."""
        gate = self._state.gate
        if gate is None:
            return -1
        if self._line.waiting and self._line.is_behind(ALL, _rank(call), progress.place):
            return None
        call.gate = gate.admit()
        return call.gate if call.gate >= 0 else None

    def _leave_gate(self, call: Call, ticket: int) -> None:
        if ticket >= 0 and self._state.gate is not None:
            self._state.gate.undo(ticket, 0)
            call.gate = -1
            self._line.freed(ALL)

    def _behind(self, call: Call, progress: _Progress, name: str) -> int:
        """Negative, as a refusal of the core's, where others wait whom this call must not overtake."""
        if self._line.is_behind(name, _rank(call), progress.place):
            return -_core.BUSY
        # Times that are reserved are paid, so the core would refuse: to reserve one too is the next step.
        wait = self._line.reserved(name)
        return -(int(wait * 1e9) << 3 | _core.REQUESTS) if wait else 0

    def _untried(self, call: Call, plan: Plan, progress: _Progress) -> Iterator[tuple[Endpoint, str | None]]:
        if progress.chain is not None:
            walk = plan.detour(*progress.chain)
        else:
            walk = ((endpoint, stage.tier) for endpoint, stage in plan.walk())
        for endpoint, tier in walk:
            if endpoint.name in progress.tried or endpoint.name in progress.excluded:
                continue
            if endpoint.model.name in progress.too_small:
                continue
            if progress.wider_than and 0 < endpoint.model.context_window <= progress.wider_than:
                continue
            if call.attempts and not self._affordable(call, plan, endpoint):
                continue
            yield endpoint, tier

    def _affordable(self, call: Call, plan: Plan, *endpoints: Endpoint) -> bool:
        """Whether an attempt at each of these keeps the whole call under its price cap."""
        cap = plan.max_price
        if cap < 0:
            return True
        estimate = call.estimate
        wanted = Usage(estimate.input_tokens, estimate.output_tokens)
        cost = sum(attempt.cost_nano or 0 for attempt in call.attempts)
        for endpoint in endpoints:
            prices = endpoint.model.prices
            if prices is None:
                return False
            cost += prices.cost(wanted)
        return cost <= cap

    def _tokens(self, call: Call, endpoint: Endpoint) -> int:
        """Tokens to reserve: the calibrated input and the expected output."""
        estimate = call.estimate
        output = estimate.output_tokens
        most = endpoint.model.max_output_tokens
        if 0 < most < output:
            output = most
        return endpoint.calibration.apply(estimate.input_tokens) + output

    def _after_waiting(self, call: Call, plan: Plan, progress: _Progress) -> Grant | None:
        """Sleeps for the shorter of: an untried endpoint's limit, a tried endpoint's back-off.

        Returns None when the untried ones should be asked again; raises when there is nothing to wait for.
        """
        left = call.deadline - time.monotonic()
        if left <= 0:
            raise errors.DeadlineExceeded("the call's deadline passed while it waited") from progress.primary
        limited = min(
            (refusal for refusal in progress.refused if refusal.reason in _WAITABLE),
            key=lambda refusal: refusal.wait or _SOON,
            default=None,
        )
        pause, endpoint = self._backoff(call, progress)
        if limited is not None and (endpoint is None or limited.wait <= pause):
            return self._queue(call, progress, limited, left)
        if endpoint is None or pause >= left:
            found = self._hurried(call, plan, progress)
            if found is None:
                raise self._exhausted(plan, progress)
            return found
        progress.retry = [known for known in progress.retry if known[0] is not endpoint]
        if not self._affordable(call, plan, endpoint):
            return None
        if not endpoint.core.withdraw():
            if self._hooks.wanted:
                self._hooks.emit(events.RetryBudgetExhausted(endpoint.name))
            return None
        time.sleep(pause)
        call.waited += pause
        gate = self._pass_gate(call, progress)
        answer = -_core.BUSY if gate is None else self._ask(call, progress, endpoint, gate)
        if answer >= 0:
            return call.held
        self._leave_gate(call, -1 if gate is None else gate)
        if -answer & 7 in _WAITABLE:
            progress.tried.discard(endpoint.name)  # at its limit by now: it may be waited for like any other
        return None

    def _backoff(self, call: Call, progress: _Progress) -> tuple[float, Endpoint | None]:
        """Seconds until an endpoint may be asked again, and which: who named no time, the longest ago."""
        if not progress.retry:
            return 0.0, None
        endpoint, error = min(progress.retry, key=lambda known: known[1].retry_after or 0.0)
        pause = self._retries.backoff(len(call.attempts) - 1, error, self._random.random())
        return (math.inf if pause is None else pause), endpoint

    def _hurried(self, call: Call, plan: Plan, progress: _Progress) -> Grant | None:
        """Where every breaker is open: the one that would close first lets the call in as its probe.

        Once a second at most, whichever process asks: what has recovered should not wait for its time while
        nobody at all can be served.
        """
        if progress.primary is not None or any(each.reason != _core.BREAKER for each in progress.refused):
            return None
        opened = [(refusal.endpoint, refusal.tier) for refusal in progress.refused] or list(plan.opened())
        if not opened or self._state.panic.acquire():
            return None
        endpoint, tier = min(opened, key=lambda each: each[0].core.reopens_in())
        gate = self._pass_gate(call, progress)
        if gate is not None and endpoint.core.hurry() and self._ask(call, progress, endpoint, gate) >= 0:
            call.tier = tier
            return call.held
        self._leave_gate(call, -1 if gate is None else gate)
        return None

    def _queue(self, call: Call, progress: _Progress, limited: _Refusal, left: float) -> Grant | None:
        """Waits in line for a limit: its time is reserved first, so that a waiter sleeps once."""
        policy, line = self._policy, self._line
        patience = min(left, policy.queue_timeout - call.waited)
        if patience <= 0 or (limited.wait > patience and line.reserved(limited.name) == 0):
            raise self._limited(progress)
        if progress.place is None:
            if line.waiting >= policy.max_queue:
                raise errors.RateLimitError(
                    f"{line.waiting} calls wait for limits already (policy.max_queue)",
                    retry_after=max(limited.wait, _SOON),
                )
            progress.place = line.place(_rank(call))
            line.enter(progress.place)
        start = time.monotonic()
        try:
            if limited.reason == _core.BUSY:
                busy = [refusal.name for refusal in progress.refused if refusal.reason == _core.BUSY]
                waits = [refusal.wait for refusal in progress.refused if refusal.wait]
                line.wait(progress.place, busy, limited.endpoint.core, min([patience, *waits]))
                return None
            return self._sleep_in_line(call, progress, limited, patience)
        finally:
            call.waited += time.monotonic() - start

    def _sleep_in_line(
        self, call: Call, progress: _Progress, limited: _Refusal, patience: float
    ) -> Grant | None:
        endpoint = limited.endpoint
        tokens = self._tokens(call, endpoint)
        assert progress.place is not None

        def go_in() -> int:
            # In one statement, as in `_ask`.
            call.held = grant = Grant(endpoint, endpoint.core.admit(tokens, 0, True), tokens, -1)
            if grant.ticket < 0:
                call.held = None
            return grant.ticket

        answer = self._line.sleep(progress.place, endpoint.name, endpoint.core, tokens, patience, go_in)
        if answer >= 0:
            gate = self._pass_gate(call, progress)
            if gate is None:
                self._give_back(call)
                return None
            call.tier = limited.tier
            call.held = Grant(endpoint, answer, tokens, gate)
            return call.held
        wait = (-answer >> 3) / 1e9
        if -answer & 7 in (_core.REQUESTS, _core.TOKENS) and wait > patience:
            progress.refused = [
                evolve(limited, wait=wait) if refusal is limited else refusal for refusal in progress.refused
            ]
            raise self._limited(progress)
        return None  # another limit, or another call was faster: look around again

    # ------------------------------------------------------------------------------------------ giving up

    def _exhausted(self, plan: Plan, progress: _Progress) -> errors.Error:
        if progress.primary is not None:
            return progress.primary
        if not progress.refused:
            return plan.refusal()
        return self._limited(progress)

    def _limited(self, progress: _Progress) -> errors.Error:
        if progress.primary is not None:
            return progress.primary
        refused = progress.refused
        text = "; ".join(
            f"{refusal.name or 'all endpoints'}: {_REASONS[refusal.reason]}"
            + (f" for {refusal.wait:.2f} s" if refusal.wait else "")
            for refusal in refused
        )
        if all(refusal.reason == _core.TOO_LARGE for refusal in refused):
            return errors.RequestTooLargeForLimit(f"no limit can ever let this request in: {text}")
        waits = [refusal.wait for refusal in refused if refusal.wait]
        soonest = min(waits) if waits else None
        if any(refusal.reason in _WAITABLE for refusal in refused):
            return errors.RateLimitError(f"every endpoint is at its limit: {text}", retry_after=soonest)
        return errors.NoEndpointError(f"no endpoint lets the request in: {text}", retry_after=soonest)


def _left_out(problem: _core.SegmentFullError) -> errors.NoEndpointError:
    """The error of a forked child for which no worker's slot is left."""
    return errors.NoEndpointError(f"this process cannot take part in what others count: {problem}")


def _rank(call: Call) -> int:
    return RANKS[call.request.options.priority]


_REASONS = {
    _core.BLOCKED: "blocked",
    _core.BREAKER: "breaker open",
    _core.BUSY: "all its permits are in use",
    _core.REQUESTS: "requests a minute used up",
    _core.TOKENS: "tokens a minute used up",
    _core.TOO_LARGE: "larger than its limit",
}
