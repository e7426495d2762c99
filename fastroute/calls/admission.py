"""Admits calls: limits, breakers, waiting, and the pause before an endpoint is asked again.

Sending is in `dispatch.py`, the order of candidates in `routing/planner.py`, the queue itself in `queue.py`.

An endpoint that was not tried is asked at once; a call waits only when there is none. Then it takes the
shorter of two waits: for the limit of an untried endpoint, or the back-off before a tried one is asked again,
which that endpoint's retry budget must allow. Failover to another endpoint needs no budget: otherwise an
outage of one provider would use up what is meant to end it.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterator

from attrs import evolve

from fastroute import _core, errors, events
from fastroute.config import Policy
from fastroute.figures import duration
from fastroute.routing.plan import Plan
from fastroute.routing.planner import Planner
from fastroute.state.endpoints import LiveEndpoint, State
from fastroute.types import Usage

from .call import Call, Grant
from .progress import NotAdmitted, Progress
from .queue import ALL, RANKS, WaitQueue
from .retry import RetryPolicy

_WAITABLE = (_core.REQUESTS, _core.TOKENS, _core.BUSY)
_SOON = 0.02  # seconds that a wait for a permit is taken to last


class Admission:
    """Lets calls in.

    Args:
        policy: queue bounds.
        planner: walks through the plans.
        retries: how long to wait before asking again.
        line: where calls wait for a limit.
        state: the permits of all endpoints together, and how often a breaker may be hurried.
        hooks: events are emitted to them.

    Thread safety: all methods; a call is one thread's.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        planner: Planner,
        retries: RetryPolicy,
        queue: WaitQueue,
        state: State,
        hooks: events.Hooks,
    ) -> None:
        self._policy = policy
        self._planner = planner
        self._retries = retries
        self._queue = queue
        self._state = state
        self._hooks = hooks
        self.random = random.Random()

    def after_fork(self) -> None:
        """In a forked child: other random choices than the parent's."""
        self.random = random.Random()

    def grant(self, call: Call, plan: Plan, progress: Progress) -> Grant:
        """The next endpoint that lets the call in, waiting if it must; raises when there is none."""
        try:
            while True:
                found = self.at_once(call, plan, progress) or self._after_waiting(call, plan, progress)
                if found is not None:
                    return found
        finally:
            if progress.waiter is not None:
                self._queue.leave(progress.waiter)
                progress.waiter = None

    def at_once(self, call: Call, plan: Plan, progress: Progress) -> Grant | None:
        """The next endpoint that lets the call in now; None if none does, for what ``refused`` says."""
        progress.refused = []
        gate = self._pass_gate(call, progress)
        if gate is None:
            untried = self._untried(call, plan, progress)
            progress.refused = [
                NotAdmitted(ALL, endpoint, tier, _core.BUSY, 0.0)
                for endpoint, tier in itertools.islice(untried, 1)
            ]
            return None
        if not plan.ranked and not call.attempts and not self._queue.waiting:
            # No call waits before it, so the core may rank and admit in one step. Until it is taken, the
            # ticket is the plan's, which gives it back should an interrupt come in between.
            entered = self._planner.admit(plan)
            if entered is not None:
                endpoint, ranked = entered
                call.tier = plan.stages[0].tier
                call.held = Grant(endpoint, ranked.take(), ranked.tokens, gate)
                return call.held
        for endpoint, tier in self._untried(call, plan, progress):
            answer = self._ask(call, progress, endpoint, gate)
            if answer >= 0 and call.held is not None:
                call.tier = tier
                return call.held
            wait = (-answer >> 3) / 1e9
            progress.refused.append(NotAdmitted(endpoint.name, endpoint, tier, -answer & 7, wait))
        self._leave_gate(call, gate)
        return None

    def beside(
        self, first: LiveEndpoint, second: Call, plan: Plan, progress: Progress, pay: Callable[[], bool]
    ) -> Grant | None:
        """Another endpoint of the stage that lets a call's hedge in at once, over no limit.

        Args:
            first: where the call's first attempt is under way.
            pay: takes one of the hedges that there may be.
        """
        paid = False
        for endpoint in self._planner.beside(plan, first):
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
            paid = paid or pay()
            if paid and endpoint.core.withdraw(half=True):
                return second.held
            self._give_back(second)
            if not paid:
                return None
        return None

    def ready_elsewhere(self, call: Call, plan: Plan, progress: Progress) -> bool:
        """Whether an endpoint that was not asked yet would let the call in now, if its attempt were cut.

        Thread safety: may be called by another thread while the call's own one waits for an answer.
        """
        if len(call.attempts) + 1 - call.rejected >= self._retries.max_attempts:
            return False
        # A plan of its own: the call's thread and its hedge may reach further stages at the same time.
        again = Plan(plan.request, plan.estimate, plan.needs, plan.judgement, plan.stages)
        for endpoint, _ in self._untried(call, again, progress):
            core, tokens = endpoint.core, self._tokens(call, endpoint)
            if core.state() == _core.CLOSED:
                ticket = core.admit(tokens)
                if ticket >= 0:
                    core.undo(ticket, tokens)
                    return True
        return False

    def clear(self, call: Call, progress: Progress) -> None:
        """Leaves nothing held by a call that has ended."""
        if progress.waiter is not None:  # interrupted while it left the line
            self._queue.leave(progress.waiter)
        self.release(call)

    def release(self, call: Call) -> None:
        """Leaves nothing held by an attempt that is over, or did not begin."""
        settlement = call.settlement
        if settlement is not None:  # whose settling an interrupt may have cut short
            settlement.abandon()
        if call.held is not None:  # interrupted between being let in and sending
            self._give_back(call)
        if settlement is None:
            self._leave_gate(call, call.gate)
        call.settlement = None  # each holds the other, which would keep both until a collection

    def _ask(self, call: Call, progress: Progress, endpoint: LiveEndpoint, gate: int) -> int:
        """As `_core.Endpoint.admit`: a ticket, which the call now holds with the gate's, or a refusal."""
        tokens = self._tokens(call, endpoint)
        answer = self._behind(call, progress, endpoint.name) if self._queue.waiting else 0
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
                self._queue.freed(grant.endpoint.name)
            self._leave_gate(call, grant.gate)
        call.held = None  # last: interrupted before, it is given back once more, which changes nothing

    def _pass_gate(self, call: Call, progress: Progress) -> int | None:
        """A permit of all endpoints together; -1 where there is no such limit, None where it is used up."""
        gate = self._state.gate
        if gate is None:
            return -1
        if self._queue.waiting and self._queue.is_behind(ALL, _rank(call), progress.waiter):
            return None
        call.gate = gate.admit()
        return call.gate if call.gate >= 0 else None

    def _leave_gate(self, call: Call, ticket: int) -> None:
        if ticket >= 0 and self._state.gate is not None:
            self._state.gate.undo(ticket, 0)
            call.gate = -1
            self._queue.freed(ALL)

    def _behind(self, call: Call, progress: Progress, name: str) -> int:
        """Negative, as a refusal of the core's, where others wait whom this call must not overtake."""
        if self._queue.is_behind(name, _rank(call), progress.waiter):
            return -_core.BUSY
        # Times that are reserved are paid, so the core would refuse: to reserve one too is the next step.
        wait = self._queue.reserved(name)
        return -(int(wait * 1e9) << 3 | _core.REQUESTS) if wait else 0

    def _untried(
        self, call: Call, plan: Plan, progress: Progress
    ) -> Iterator[tuple[LiveEndpoint, str | None]]:
        planner = self._planner
        walk = planner.walk(plan, gone=progress.gone)
        if progress.chain is not None:
            chain = planner.detour(plan, *progress.chain)
            walk = chain if progress.leaves_plan else itertools.chain(chain, walk)
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

    def _affordable(self, call: Call, plan: Plan, *endpoints: LiveEndpoint) -> bool:
        """Whether an attempt at each of these keeps the whole call under its price cap."""
        cap = self._planner.max_price(plan.request)
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

    def _tokens(self, call: Call, endpoint: LiveEndpoint) -> int:
        """Tokens to reserve: the calibrated input and the expected output."""
        estimate = call.estimate
        output = estimate.output_tokens
        most = endpoint.model.max_output_tokens
        if 0 < most < output:
            output = most
        return endpoint.calibration.apply(estimate.input_tokens) + output

    def _after_waiting(self, call: Call, plan: Plan, progress: Progress) -> Grant | None:
        """Sleeps for the shorter of: an untried endpoint's limit, a tried endpoint's back-off.

        Returns None when the untried ones should be asked again; raises when there is nothing to wait for.
        """
        left = call.deadline - time.monotonic()
        if left <= 0:
            raise errors.DeadlineExceeded("the call's deadline passed while it waited") from progress.story()
        limited = min(
            (refusal for refusal in progress.refused if refusal.reason in _WAITABLE),
            key=lambda refusal: refusal.wait or _SOON,
            default=None,
        )
        pause, endpoint = self._backoff(call, progress)
        if limited is not None and (endpoint is None or limited.wait <= pause):
            return self._wait_in_queue(call, progress, limited, left)
        if endpoint is None or pause >= left:
            found = self._hurried(call, plan, progress)
            if found is None:
                raise self.exhausted(plan, progress)
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

    def _backoff(self, call: Call, progress: Progress) -> tuple[float, LiveEndpoint | None]:
        """Seconds until an endpoint may be asked again, and which: who named no time, the longest ago."""
        if not progress.retry:
            return 0.0, None
        endpoint, error = min(progress.retry, key=lambda known: known[1].retry_after or 0.0)
        pause = self._retries.backoff(len(call.attempts) - 1, error, self.random.random())
        return (math.inf if pause is None else pause), endpoint

    def _hurried(self, call: Call, plan: Plan, progress: Progress) -> Grant | None:
        """Where nobody is left: an endpoint that may be back by now lets the call in.

        If one is left out because another endpoint found its host unreachable, it is asked. If every breaker
        is open, the one that would close first lets the call in as its probe, once a second at most in all
        processes.
        """
        if progress.primary is not None:
            return None
        refused = [(each.endpoint, each.tier) for each in progress.refused if each.reason == _core.BREAKER]
        refused += [(each.endpoint, each.tier) for each in progress.refused if each.endpoint.host_down]
        if len(refused) < len(progress.refused):
            return None
        opened = refused or list(self._planner.opened(plan))
        down = next((each for each in opened if each[0].host_down), None)
        if down is None and (not opened or self._state.panic.acquire()):
            return None
        endpoint, tier = down or min(opened, key=lambda each: each[0].core.reopens_in())
        gate = self._pass_gate(call, progress)
        if down is not None:
            endpoint.core.unblock()
        if (
            gate is not None
            and (down is not None or endpoint.core.hurry())
            and self._ask(call, progress, endpoint, gate) >= 0
        ):
            call.tier = tier
            return call.held
        self._leave_gate(call, -1 if gate is None else gate)
        return None

    def _wait_in_queue(
        self, call: Call, progress: Progress, limited: NotAdmitted, left: float
    ) -> Grant | None:
        """Waits in line for a limit: its time is reserved first, so that a waiter sleeps once."""
        policy, queue = self._policy, self._queue
        # queue_timeout is for a caller who waits for the answer, such as a web request.
        patience = left if call.request.submitted else min(left, policy.queue_timeout - call.waited)
        if patience <= 0 or (limited.wait > patience and queue.reserved(limited.name) == 0):
            raise self._limited(progress, self._why_not(call, left))
        if progress.waiter is None:
            if queue.waiting >= policy.max_queue:
                raise errors.RateLimitError(
                    f"{queue.waiting} calls wait for limits already, as many as policy.max_queue allows; "
                    "raise policy.max_queue or send fewer calls at once",
                    retry_after=max(limited.wait, _SOON),
                )
            progress.waiter = queue.waiter(_rank(call))
            queue.enter(progress.waiter)
        start = time.monotonic()
        try:
            if limited.reason == _core.BUSY:
                busy = [refusal.name for refusal in progress.refused if refusal.reason == _core.BUSY]
                waits = [refusal.wait for refusal in progress.refused if refusal.wait]
                queue.wait(progress.waiter, busy, limited.endpoint.core, min([patience, *waits]))
                return None
            return self._sleep_in_queue(call, progress, limited, patience)
        finally:
            call.waited += time.monotonic() - start

    def _sleep_in_queue(
        self, call: Call, progress: Progress, limited: NotAdmitted, patience: float
    ) -> Grant | None:
        endpoint = limited.endpoint
        tokens = self._tokens(call, endpoint)
        assert progress.waiter is not None

        def go_in() -> int:
            # In one statement, as in `_ask`.
            call.held = grant = Grant(endpoint, endpoint.core.admit(tokens, 0, True), tokens, -1)
            if grant.ticket < 0:
                call.held = None
            return grant.ticket

        answer = self._queue.sleep(progress.waiter, endpoint.name, endpoint.core, tokens, patience, go_in)
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
            raise self._limited(progress, self._why_not(call, call.deadline - time.monotonic()))
        return None  # another limit, or another call was faster: look around again

    # ------------------------------------------------------------------------------------------ giving up

    def exhausted(self, plan: Plan, progress: Progress) -> errors.Error:
        story = progress.story()
        if story is not None:
            return story
        if not progress.refused:
            return self._planner.rank(plan).refusal()
        return self._limited(progress)

    def _why_not(self, call: Call, left: float) -> str:
        """Why a call does not go on waiting for a limit, and what would let it."""
        longest = self._policy.queue_timeout
        if call.request.submitted or left < longest - call.waited:
            return f"; its deadline comes first, in {duration(max(left, 0.0))}: give it a longer timeout"
        return (
            f"; it may wait for {duration(longest)} in all (policy.queue_timeout): raise that, or submit "
            "the call, which then waits until its deadline"
        )

    def _limited(self, progress: Progress, why: str = "") -> errors.Error:
        story = progress.story()
        if story is not None:
            return story
        refused = progress.refused
        text = "; ".join(
            f"{refusal.name or 'all endpoints'}: {_REASONS[refusal.reason]}"
            + (f" for {duration(refusal.wait)}" if refusal.wait else "")
            for refusal in refused
        )
        if all(refusal.reason == _core.TOO_LARGE for refusal in refused):
            return errors.RequestTooLargeForLimit(f"no limit can ever let this request in: {text}")
        waits = [refusal.wait for refusal in refused if refusal.wait]
        soonest = min(waits) if waits else None
        if any(refusal.reason in _WAITABLE for refusal in refused):
            return errors.RateLimitError(f"every endpoint is at its limit: {text}{why}", retry_after=soonest)
        return errors.NoEndpointError(f"no endpoint lets the request in: {text}", retry_after=soonest)


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
