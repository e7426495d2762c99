"""Carries out a plan: attempts, failover, retries, hedges, and the one deadline over all of it.

Admission is in `admission.py`, one attempt in `attempt.py`, the meaning of an error in `retry.py`, the order
of candidates in `routing/planner.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from attrs import evolve

from fastroute import _core, errors, events
from fastroute.budget import MoneyReserved
from fastroute.config import QualityConfig
from fastroute.quality import with_feedback
from fastroute.routing.plan import Plan
from fastroute.routing.planner import Planner
from fastroute.state.endpoints import LiveEndpoint
from fastroute.types import Completion

from .admission import Admission
from .attempt import Attempts
from .call import Call, Grant
from .hedge import Hedge, Hedging
from .progress import Progress
from .retry import Action, RetryPolicy, Verdict
from .stream import Stream
from .upstream import Upstream

_Answer = TypeVar("_Answer", Completion, Stream)


class Dispatcher:
    """Runs calls.

    Args:
        quality: what to do with answers that fail their check.
        planner: makes another plan for a call that needs one.
        retries: classifies errors.
        upstreams: by endpoint name.
        attempts: makes attempts.
        admission: admits calls.
        hedging: decides which calls are hedged and when; None if hedging is off.

    Thread safety: all methods; a call runs in its caller's thread.
    """

    def __init__(
        self,
        *,
        quality: QualityConfig,
        planner: Planner,
        retries: RetryPolicy,
        upstreams: Mapping[str, Upstream],
        attempts: Attempts,
        admission: Admission,
        hedging: Hedging | None = None,
    ) -> None:
        self._quality = quality
        self._planner = planner
        self._retries = retries
        self._upstreams = upstreams
        self._attempts = attempts
        self._admission = admission
        self._hedging = hedging

    def complete(self, call: Call, plan: Plan) -> Completion:
        """The answer of the first endpoint that gives one.

        Raises:
            errors.Error: the error of the endpoint that was tried first, with all attempts attached, if none
                answers.
        """
        return self._run(call, plan, self._attempts.complete)

    def stream(self, call: Call, plan: Plan) -> Stream:
        """As `complete`, but returns the stream of the first endpoint that sends content."""
        return self._run(call, plan, self._attempts.stream)

    def once(self, call: Call, plan: Plan, *, wait: bool) -> Completion | Stream:
        """One attempt, at the first endpoint of the plan that admits the call, without failover.

        The same endpoint is tried again only if it needs another spelling of the request.

        Args:
            call: the call.
            plan: the endpoints that may be tried.
            wait: whether it may wait for a limit, in the queue with all others.

        Raises:
            errors.NoEndpointError, errors.RateLimitError: if no endpoint admits it; nothing was sent.
            errors.Error: the error of the attempt.
        """
        attempt = self._attempts.stream if call.request.stream else self._attempts.complete
        enter = self._admission.grant if wait else self._admission.at_once
        progress = spelled = Progress()
        try:
            while True:
                progress = Progress()
                call.settlement = None  # that of the attempt before is settled
                grant = enter(call, plan, progress)
                if grant is None:
                    raise self._admission.exhausted(plan, progress)
                try:
                    answer = attempt(call, self._upstreams[grant.endpoint.name], grant)
                    return self._attempts.judged(call, answer)
                except errors.BudgetExceeded as error:
                    self._wait_for_money(call, progress, error, wait)
                except errors.APIError as error:
                    verdict = call.verdict
                    if (
                        verdict is None
                        or verdict.action is not Action.RESPELL
                        or not self._respelled(spelled, grant.endpoint, error)
                    ):
                        raise
                    call.verdict = None
        except errors.Error as error:
            error.attempts = tuple(call.attempts)
            raise
        except _core.SegmentFullError as problem:
            raise _left_out(problem) from None
        finally:
            # Also after Ctrl-C at any line above: whatever the call still holds goes back.
            self._admission.clear(call, progress)

    # ------------------------------------------------------------------------------------------- the loop

    def _run(self, call: Call, plan: Plan, attempt: Callable[[Call, Upstream, Grant], _Answer]) -> _Answer:
        progress = Progress()
        try:
            while True:
                call.settlement = None  # that of the attempt before is settled
                grant = self._admission.grant(call, plan, progress)
                endpoint = grant.endpoint
                progress.tried.add(endpoint.name)
                # Only a first attempt adds to the retry budget, or retries would pay for more retries.
                if endpoint.name not in progress.counted:
                    progress.counted.add(endpoint.name)
                    endpoint.core.deposit()
                if progress.failed is not None and progress.failed is not endpoint and self._hooks.wanted:
                    kind = type(progress.primary).__name__
                    self._hooks.emit(events.FailedOver(call.id, progress.failed.name, endpoint.name, kind))
                try:
                    answer = self._attempted(call, plan, progress, grant, attempt)
                    if answer is not None:
                        return self._attempts.judged(call, answer)
                # Both of these begin a new walk through a plan: the endpoints tried so far did not fail.
                except errors.ValidationError as error:
                    plan = self._rejected(call, plan, error)
                    progress = Progress()
                    progress.primary = error  # raised, with the rejected answer, if no other answer comes
                except errors.BudgetExceeded as error:
                    cheaper = self._downgraded(call, plan, error)
                    if cheaper is None:
                        self._wait_for_money(call, progress, error)
                        progress.tried.discard(endpoint.name)  # nothing was sent, so it may be asked
                    else:
                        plan, progress = cheaper, Progress()
        except errors.Error as error:
            error.attempts = tuple(call.attempts)
            raise
        except _core.SegmentFullError as problem:
            raise _left_out(problem) from None
        finally:
            self._admission.clear(call, progress)

    # ------------------------------------------------------------------------------------------- one attempt

    def _attempted(
        self,
        call: Call,
        plan: Plan,
        progress: Progress,
        grant: Grant,
        attempt: Callable[[Call, Upstream, Grant], _Answer],
    ) -> _Answer | None:
        """The answer of an attempt, or of its hedge; None if it failed and another attempt may be made."""
        endpoint = grant.endpoint
        upstream = self._upstreams[endpoint.name]
        hedge = None
        if self._hedging is not None:
            send = partial(self._hedged, call, plan, progress, endpoint, attempt)
            hedge = self._hedging.hedge(call, endpoint, send)
        call.elsewhere = partial(self._admission.ready_elsewhere, call, plan, progress)
        try:
            if hedge is not None:
                call.race = hedge.race
                hedge.begin()
            return attempt(call, upstream, grant)
        except errors.APIError as error:
            # Without a verdict the endpoint has not failed: the hedge has won. An error that ends the call
            # ends it at once; after any other the hedge may still answer, and only if it does not is the
            # failure handled.
            final = call.cancelled or (call.verdict is not None and call.verdict.action is Action.STOP)
            answer = None if hedge is None or final else hedge.result()
            if answer is None:
                self._failed(call, progress, endpoint, error)
                if hedge is not None and hedge.failure is not None:
                    self._failed(*hedge.failure)
            return answer
        finally:
            call.elsewhere = None  # breaks a reference cycle: it refers to the call
            if hedge is not None:
                hedge.end()
                call.race = None

    def _hedged(
        self,
        call: Call,
        plan: Plan,
        progress: Progress,
        first: LiveEndpoint,
        attempt: Callable[[Call, Upstream, Grant], _Answer],
        hedge: Hedge[_Answer],
    ) -> _Answer | None:
        """The answer of a second attempt beside the one under way; None if no endpoint admits it or it fails.

        Only this thread changes plan and progress: the thread of the first attempt waits for this one before
        it uses them again.
        """
        second = call.hedged(hedge.race, first.name)
        try:
            assert self._hedging is not None
            pay = partial(self._hedging.pay, second, first)
            grant = self._admission.beside(first, second, plan, progress, pay)
            if grant is None:
                return None
            endpoint = grant.endpoint
            progress.tried.add(endpoint.name)
            try:
                return attempt(second, self._upstreams[endpoint.name], grant)
            except errors.APIError as error:
                hedge.failure = (second, progress, endpoint, error)
                return None
        finally:
            # Not `clear`: a hedge never waits in the queue.
            self._admission.release(second)

    # ------------------------------------------------------------------------------------------ another way

    def _rejected(self, call: Call, plan: Plan, error: errors.ValidationError) -> Plan:
        """The plan for another answer after one that failed its check; raises if there is none."""
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
        return (self._planner.higher(plan) if quality.escalate else None) or plan

    def _lengthened(
        self, call: Call, plan: Plan, completion: Completion, error: errors.ValidationError
    ) -> Plan:
        """The plan for the same request with a larger ``max_tokens``, after an answer that was cut.

        The same request would be cut again and paid for again, and neither a dearer model nor feedback makes
        an answer shorter.

        Raises:
            errors.ValidationError: if no longer answer can be asked for.
        """
        wanted = call.request.max_tokens
        if wanted is None:
            wanted = call.output_limit
        route = completion.route
        most = 0 if route is None else self._upstreams[route.endpoint].endpoint.model.max_output_tokens
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
            plan = self._planner.lengthened(plan, call.request)
            call.estimate = plan.estimate
            return plan
        raise errors.ValidationError(
            f"{error}; it was not asked for again: {why}", completion=completion, reason=error.reason
        ) from None

    def _downgraded(self, call: Call, plan: Plan, error: errors.BudgetExceeded) -> Plan | None:
        """The plan for the cheapest tier, if the budget says so; None if there is nothing to change.

        A soft budget serves the call there, even if there is no cheaper tier.
        """
        # Once a call: if the cheapest tier is over the budget too, there is nothing cheaper to move to.
        if error.on_breach != "downgrade" or call.served or call.request.options.force_premium:
            return None
        cheapest = self._planner.cheapest(plan)
        if cheapest is None and error.hard:
            return None
        call.served = True
        if isinstance(error, MoneyReserved):
            error.final()  # emits it: the call does not wait for the money
        if cheapest is None:
            return plan
        call.downgraded = error.budget
        return cheapest

    def _wait_for_money(
        self, call: Call, progress: Progress, error: errors.BudgetExceeded, wait: bool = True
    ) -> None:
        """Waits until a refused call may fit its budgets; raises the refusal if it does not in time.

        If an attempt has failed before, its error is raised, with the refusal as the reason why no other
        attempt was made.
        """
        if isinstance(error, MoneyReserved):
            if wait and self._admission.wait_for_money(call, error):
                return
            error = error.final()
        if progress.primary is None:
            raise error from None
        progress.others.append(error)
        raise progress.story() or error

    @property
    def _hooks(self) -> events.Hooks:
        return self._attempts.sinks.hooks

    def _failed(self, call: Call, progress: Progress, endpoint: LiveEndpoint, error: errors.APIError) -> None:
        """Records a failed attempt; raises if no other may be made."""
        if call.cancelled:
            raise error
        verdict, call.verdict = call.verdict, None
        if verdict is None:
            # Nothing was sent: this endpoint's format cannot express the request, but another's may.
            progress.unsaid = progress.unsaid or error
            progress.excluded.add(endpoint.name)
            return
        if verdict.action is Action.RESPELL:
            if self._respelled(progress, endpoint, error):
                call.uncounted.append(endpoint.name)
                return
            verdict = evolve(verdict, action=Action.FAIL_OVER)
        # Recorded before anything can raise, so that the error raised in the end names all that failed.
        progress.failure(endpoint, error)
        progress.failed = endpoint
        if time.monotonic() >= call.deadline:
            story = progress.story()
            raise errors.DeadlineExceeded(
                f"the call's deadline passed after {len(call.attempts)} attempts; the first failed with: "
                f"{story}"
            ) from story
        action = verdict.action
        chain = _DETOURS.get(type(error))
        if chain is not None and getattr(endpoint.model, chain):
            progress.detour(chain, endpoint.model, alone=progress.first is endpoint)
            action = Action.FAIL_OVER if action is Action.STOP else action
        if action is Action.STOP:
            if progress.first is endpoint:
                # It refuses the request itself, whatever its earlier error was.
                progress.refused_by_first(error)
                raise progress.story() or error
            # A later endpoint refuses it. That does not end the call: the first one, which may be tried
            # again, may still accept it.
            action = Action.FAIL_OVER
        self._check_attempts(call, progress, endpoint, verdict, error)
        progress.retry = [known for known in progress.retry if known[0] is not endpoint]
        # RETRY: tried again after a pause. FALL_BACK: only models with a larger window. Else: not tried
        # again.
        if action is Action.ONCE_MORE:
            action = Action.FAIL_OVER if endpoint.name in progress.twice else Action.RETRY
            progress.twice.add(endpoint.name)
        if action is Action.RETRY:
            progress.retry.append((endpoint, error))
        elif action is Action.FALL_BACK:
            progress.too_small.add(endpoint.model.name)
            progress.wider_than = max(progress.wider_than, endpoint.model.context_window)
        else:
            progress.excluded.add(endpoint.name)

    def _respelled(self, progress: Progress, endpoint: LiveEndpoint, error: errors.APIError) -> bool:
        """Respells the endpoint's requests as the error says; returns whether to try it again at once.

        Once for each call and parameter. Not once for all calls, since this one may have been under way in
        the old spelling when another call changed it; and not more often, since a provider that refuses both
        spellings would keep a call going for ever.
        """
        changes = error.respell if isinstance(error, errors.APIStatusError) else {}
        news = {(endpoint.name, change) for change in changes} - progress.respelled
        # A provider that refuses one field after the other must not keep a call for ever.
        if not news or len(progress.respelled) + len(news) > _MOST_SPELLINGS:
            return False
        progress.respelled |= news
        self._upstreams[endpoint.name].respell(changes)
        progress.tried.discard(endpoint.name)
        return True

    def _check_attempts(
        self, call: Call, progress: Progress, endpoint: LiveEndpoint, verdict: Verdict, error: errors.APIError
    ) -> None:
        """Raises the call's error if no further attempt may be made."""
        if verdict.free:
            call.uncounted.append(endpoint.name)
            progress.gone = True
        made = len(call.attempts) - call.rejected - len(call.uncounted)
        most, extras = self._retries.max_attempts, call.request.extras
        if extras is not None and extras.max_retries is not None:
            most = min(most, extras.max_retries + 1)
        last = made >= most or (verdict.once and progress.failed_slowly)
        progress.failed_slowly = progress.failed_slowly or verdict.once
        if isinstance(error, (errors.RequestTooLargeError, errors.ContextLengthExceeded)):
            progress.too_large += 1
            last = last or (progress.too_large > 1 and isinstance(error, errors.RequestTooLargeError))
        # A large body that was too large for one endpoint is sent to one other at most: uploads are slow.
        last = last or (progress.too_large > 0 and len(call.uploads) > 1)
        if last:
            raise progress.story() or error


_MOST_SPELLINGS = 24  # in one call

_DETOURS: Mapping[type[errors.APIError], str] = {
    errors.ContextLengthExceeded: "context_fallbacks",
    errors.ContentFilterError: "content_fallbacks",
}


def _left_out(problem: _core.SegmentFullError) -> errors.NoEndpointError:
    """The error of a forked process for which no worker slot is left."""
    return errors.NoEndpointError(f"this process cannot share limits with the other processes: {problem}")
