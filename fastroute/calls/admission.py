"""Admits calls: limits, breakers, waiting for limits and money, and the pause before another try.

Sending is in `dispatch.py`, the order of candidates in `routing/planner.py`, the queue itself in `queue.py`.

A call waits only if no untried endpoint admits it at once. Then it takes the shorter of two waits: for the
limit of an untried endpoint, or the back-off before a tried one is tried again, which that endpoint's retry
budget must allow. Failover to another endpoint needs no budget: during an outage of one provider it is what
helps.

Permits are kept in the call (`Call.held`, `Call.gate`) from the statement in which they are acquired. An
interrupt may come between any two statements, and `clear` gives back what it finds there.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterator

from attrs import evolve

from fastroute import _core, errors, events
from fastroute.budget import MoneyReserved
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
_SOON = 0.02  # seconds, the assumed wait for a permit


class Admission:
    """Admits calls.

    Args:
        policy: bounds of the queue.
        planner: iterates over the endpoints of plans.
        retries: how long to wait before an endpoint is tried again.
        queue: the calls that wait for a limit.
        state: the limit of all endpoints together, and of early probes.
        hooks: get the events.

    Thread safety: all methods; a call belongs to one thread.
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
        """Makes a forked child draw other random numbers than its parent."""
        self.random = random.Random()

    def grant(self, call: Call, plan: Plan, progress: Progress) -> Grant:
        """Permits at the next endpoint that admits the call, waiting if need be; raises if none will."""
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
        """Permits at the next endpoint that admits the call now; None if none does, see ``refused``."""
        progress.refused = []
        # The gate first: a permit of an endpoint that is taken and given back again for want of the gate's
        # would keep other calls out for nothing.
        gate = self._pass_gate(call, progress)
        if gate is None:
            untried = self._untried(call, plan, progress)
            progress.refused = [
                NotAdmitted(ALL, endpoint, tier, _core.BUSY, 0.0)
                for endpoint, tier in itertools.islice(untried, 1)
            ]
            return None
        if not plan.ranked and not call.attempts and not self._queue.waiting:
            # No call waits before this one, so the core may rank and admit in one step. Until the ticket is
            # taken, the plan holds it and gives it back if an interrupt comes in between.
            entered = self._planner.admit(plan)
            if entered is not None:
                endpoint, ranked = entered
                call.tier = plan.stages[0].tier
                call.held = grant = Grant(endpoint, -1, ranked.tokens, gate)
                grant.ticket = ranked.take()
                return grant
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
        """Permits for a call's hedge at another endpoint of the stage; None if none admits it at once.

        Args:
            first: the endpoint of the first attempt.
            pay: takes one hedge from the allowed share; returns whether there was one.
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
            # The share of hedges first: it refuses more often, and then no retry budget should be spent.
            paid = paid or pay()
            if paid and endpoint.core.withdraw(half=True):
                return second.held
            self._give_back(second)
            if not paid:
                return None
        return None

    def ready_elsewhere(self, call: Call, plan: Plan, progress: Progress) -> bool:
        """Whether an untried endpoint would admit the call now, if its attempt were cut.

        Thread safety: the timer thread calls this while the call's own thread waits for an answer.
        """
        if len(call.attempts) + 1 - call.rejected >= self._retries.max_attempts:
            return False
        # A plan of its own, since ranking a stage changes a plan, and the hedge's thread may do so now.
        again = Plan(plan.request, plan.estimate, plan.needs, plan.judgement, plan.stages)
        for endpoint, _ in self._untried(call, again, progress):
            core, tokens = endpoint.core, self._tokens(call, endpoint)
            if core.state() == _core.CLOSED:
                ticket = core.admit(tokens)
                if ticket >= 0:
                    core.undo(ticket, tokens)
                    return True
        return False

    def wait_for_money(self, call: Call, refusal: MoneyReserved) -> bool:
        """Waits in the queue until money that is reserved for other calls is released; returns whether it is.

        The call holds no permit while it waits. Afterwards it stays in the queue, so that no other call takes
        the money before this one has a permit again. `queue_timeout` and the deadline limit the wait.
        """
        policy, queue = self._policy, self._queue
        patience = self._patience(call)
        if patience <= 0:
            return False
        if call.turn is None:
            if queue.waiting >= policy.max_queue:
                return False
            call.turn = queue.waiter(_rank(call))
        queue.enter(call.turn)
        start = time.monotonic()
        try:
            return queue.wait_until(call.turn, refusal.line, refusal.ready, patience)
        finally:
            call.waited += time.monotonic() - start

    def _patience(self, call: Call) -> float:
        """Seconds that the call may still wait."""
        left = call.deadline - time.monotonic()
        # queue_timeout is for a caller that waits for the answer, such as a web request.
        return left if call.request.submitted else min(left, self._policy.queue_timeout - call.waited)

    def clear(self, call: Call, progress: Progress) -> None:
        """Gives back everything that a call still holds at its end. Idempotent."""
        if call.turn is not None:
            self._queue.leave(call.turn)
        if progress.waiter is not None:  # an interrupt came while it left the queue
            self._queue.leave(progress.waiter)
        self.release(call)

    def release(self, call: Call) -> None:
        """Gives back what an attempt still holds that has ended, or has not begun. Idempotent."""
        settlement = call.settlement
        if settlement is not None and not settlement.settled:  # an interrupt came before
            settlement.abandon()
        if call.held is not None:  # an interrupt came between admission and sending
            self._give_back(call)
        if settlement is None:
            self._leave_gate(call, call.gate)
        call.settlement = None  # breaks a reference cycle: it refers to the call

    def _ask(self, call: Call, progress: Progress, endpoint: LiveEndpoint, gate: int) -> int:
        """As `_core.Endpoint.admit`: a ticket, which the call now holds with the gate's, or a refusal."""
        tokens = self._tokens(call, endpoint)
        answer = self._behind(call, progress, endpoint.name) if self._queue.waiting else 0
        if answer >= 0:
            call.held = grant = Grant(endpoint, -1, tokens, gate)
            grant.ticket = answer = endpoint.core.admit(tokens)
            if answer < 0:
                call.held = None
        return answer

    def _give_back(self, call: Call) -> None:
        """Gives back the permits of an admitted call that is not sent."""
        grant = call.held
        if grant is not None:
            if grant.ticket >= 0:
                grant.endpoint.core.undo(grant.ticket, grant.tokens)
                self._queue.freed(grant.endpoint.name)
            self._leave_gate(call, grant.gate)
        call.held = None  # last: after an interrupt it is given back once more, which changes nothing

    def _pass_gate(self, call: Call, progress: Progress) -> int | None:
        """A ticket of the limit of all endpoints together; -1 without such a limit, None if it is used up."""
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
        """A refusal as the core's if calls wait that this one must not overtake, else 0."""
        if self._queue.is_behind(name, _rank(call), progress.waiter):
            return -_core.BUSY
        # The reserved times are paid for, so the core would refuse as well. With this wait the call goes on
        # to reserve a time too.
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
        """Whether the whole call stays under its price limit with an attempt at each of these."""
        # Attempts that have failed count too: the limit is for the call.
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
        """Waits for an untried endpoint's limit or a tried endpoint's back-off, whichever is shorter.

        Returns None if the untried endpoints should be asked again; raises if there is nothing to wait for.
        """
        left = call.deadline - time.monotonic()
        if left <= 0:
            raise errors.DeadlineExceeded("the call's deadline passed while it waited") from progress.story()
        if call.turn is not None:
            # Waiting for a limit may take long, and the next call in the queue can use the money until then.
            # This call keeps its place.
            self._queue.leave(call.turn)
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
        # Removed first: whatever is found below, this endpoint gets another turn only if it fails once more.
        progress.retry = [known for known in progress.retry if known[0] is not endpoint]
        if not self._affordable(call, plan, endpoint):
            return None
        # Before the pause: of many calls that pause at once, no more than the budget allows are sent.
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
            progress.tried.discard(endpoint.name)  # now at its limit: may be waited for
        return None

    def _backoff(self, call: Call, progress: Progress) -> tuple[float, LiveEndpoint | None]:
        """Seconds until a tried endpoint may be tried again, and which: by Retry-After, then the oldest."""
        if not progress.retry:
            return 0.0, None
        endpoint, error = min(progress.retry, key=lambda known: known[1].retry_after or 0.0)
        pause = self._retries.backoff(len(call.attempts) - 1, error, self.random.random())
        return (math.inf if pause is None else pause), endpoint

    def _hurried(self, call: Call, plan: Plan, progress: Progress) -> Grant | None:
        """Permits at an endpoint that may have recovered, if every endpoint is excluded for its health.

        An endpoint that is blocked because another one found its host unreachable is tried. If every breaker
        is open, the one that would close first admits the call as its probe, at most once a second in all
        processes.
        """
        # A call that was tried somewhere has an error to raise. This is for calls that would fail untried.
        if progress.primary is not None:
            return None
        refused = [(each.endpoint, each.tier) for each in progress.refused if each.reason == _core.BREAKER]
        refused += [(each.endpoint, each.tier) for each in progress.refused if each.endpoint.host_down]
        # Some endpoint refused for a reason that a probe does not change, for example the request's size.
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
        """Waits in the queue for a limit. For a rate a time is reserved, so that the call sleeps once."""
        policy, queue = self._policy, self._queue
        patience = self._patience(call)
        # Where times are reserved, this call's class may give it an earlier one than the core's answer says.
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
            # A permit of any endpoint will do. A rate that is free again before that ends the wait too.
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
            call.held = grant = Grant(endpoint, -1, tokens, -1)
            grant.ticket = answer = endpoint.core.admit(tokens, 0, True)
            if answer < 0:
                call.held = None
            return answer

        answer = self._queue.sleep(progress.waiter, endpoint.name, endpoint.core, tokens, patience, go_in)
        if answer >= 0:
            gate = self._pass_gate(call, progress)
            if gate is None:
                self._give_back(call)
                return None
            call.tier = limited.tier
            assert call.held is not None
            call.held.gate = gate
            return call.held
        wait = (-answer >> 3) / 1e9
        if -answer & 7 in (_core.REQUESTS, _core.TOKENS) and wait > patience:
            progress.refused = [
                evolve(limited, wait=wait) if refusal is limited else refusal for refusal in progress.refused
            ]
            raise self._limited(progress, self._why_not(call, call.deadline - time.monotonic()))
        return None  # another limit, or another call was quicker: ask all endpoints again

    # ------------------------------------------------------------------------------------------ giving up

    def exhausted(self, plan: Plan, progress: Progress) -> errors.Error:
        story = progress.story()
        if story is not None:
            return story
        if not progress.refused:
            return self._planner.rank(plan).refusal()
        return self._limited(progress)

    def _why_not(self, call: Call, left: float) -> str:
        """Why a call does not wait any longer for a limit, and what would change that."""
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
