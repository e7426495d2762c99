"""Sends one request, and settles its attempt exactly once, however it ends.

Settling releases the permit, records the outcome in breaker and latency, charges budgets and writes one entry
to the ledger. Several threads may want to settle at once: the attempt's own, the one whose attempt won, and
the timer thread. A flag under a lock decides which of them does. An interrupt (Ctrl-C, a killed greenlet) may
come between any two lines, so each step can be repeated without counting twice.

What the attempts of a call share is in `call.py`; decoding answers is in `attempt.py` and `stream.py`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from attrs import evolve, frozen

from fastroute import _core, errors, events
from fastroute.budget import Budgets, QueueingPurse, Reservation
from fastroute.figures import duration
from fastroute.providers.base import check_content_type, request_id_of
from fastroute.providers.charges import CHARGING, LISTED_BILLING
from fastroute.providers.limit_headers import HeaderLimit, parse_limits
from fastroute.quality import Rates
from fastroute.state.endpoints import BlockReason, LiveEndpoint
from fastroute.state.tokens import OutputHistory
from fastroute.transport import Exchange
from fastroute.transport.request_timer import RequestTimer
from fastroute.types import Attempt, Outcome, Request, Usage

from .call import LARGE_BODY, Call, Grant, Superseded, ids
from .pricing import charged
from .queue import RANKS, WaitQueue
from .retry import RetryPolicy, Verdict
from .upstream import Upstream
from .worst_case import WorstCase, bounded, choices_of, is_bounded, with_output, worst_case

_LEASE_SLACK = 30.0  # seconds that a budget's reservation outlives its call's deadline
_PROBE_SLACK = 5.0  # seconds that a breaker's probe is leased beyond the end of its attempt


log = logging.getLogger("fastroute")


class Recorder(Protocol):
    """The ledger, as far as an attempt needs it."""

    def append(self, attempt: Attempt) -> bool: ...


@frozen(eq=False, kw_only=True)
class Sinks:
    """What an attempt is reported to.

    Attributes:
        retries: classifies errors.
        ledger: gets one entry for each attempt.
        hooks: get the events.
        outputs: the lengths of answers.
        rates: success and validation rates of the models.
        budgets: None if no budget is configured.
        gate: the limit of calls at all endpoints together, if there is one.
        queue: the calls that wait for a permit.
        affected: returns the endpoints for which a failure of one of them holds too.
    """

    retries: RetryPolicy
    ledger: Recorder
    hooks: events.Hooks
    outputs: OutputHistory
    rates: Rates
    budgets: Budgets | None
    gate: _core.Endpoint | None
    queue: WaitQueue
    affected: Callable[[LiveEndpoint, errors.Blame], tuple[LiveEndpoint, ...]]


class Settlement:
    """An attempt under way: from its permits to its one entry in the ledger.

    Attributes:
        moved: whether it was cut because another endpoint was ready.
        settled: whether it has ended; only the thread that sets this settles it.
    """

    __slots__ = (
        "_call",
        "_exchange",
        "_grant",
        "_guessed",
        "_handed_out",
        "_id",
        "_lock",
        "_reservation",
        "_sent",
        "_sinks",
        "_started",
        "_time",
        "_timer",
        "_told",
        "_upstream",
        "_usage",
        "_worst",
        "moved",
        "settled",
    )

    def __init__(self, sinks: Sinks, call: Call, upstream: Upstream, grant: Grant) -> None:
        self._sinks = sinks
        self._call = call
        self._upstream = upstream
        self._grant = grant
        self._id = ids.next()
        self._exchange: Exchange | None = None
        self._handed_out = False
        self._guessed = False  # the provider reported no usage, not even in part
        self.moved = False  # cut because another endpoint was ready
        self.settled = False
        self._sent = False
        self._told = False
        self._reservation: Reservation | None = None
        self._worst: WorstCase | None = None  # where a budget or an allowance pays
        self._usage: Usage | None = None  # once it is known
        self._timer: RequestTimer | None = None
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._time = time.time()

    @property
    def call(self) -> Call:
        return self._call

    @property
    def upstream(self) -> Upstream:
        return self._upstream

    @property
    def hooks(self) -> events.Hooks:
        return self._sinks.hooks

    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def open(self, stream: bool, limit: float, *, movable: bool) -> Exchange:
        """Encodes and sends the request. A failure is settled before it is raised.

        Args:
            limit: seconds after which the attempt is cut.
            movable: whether it is cut then only if another endpoint is ready to take over; otherwise the
                attempt has until the call's deadline.
        """
        call, upstream = self._call, self._upstream
        try:
            # From here on this attempt gives the permits back, no longer the call. In this order: interrupted
            # between the two lines, both give them back, and the second time changes nothing.
            call.settlement = self
            call.held = None
            call.gate = -1
            request = upstream.accepted(call.request) if upstream.refuses_sampling else call.request
            if upstream.default_output and request.max_tokens is None:
                request = with_output(request, upstream.default_output)
            paid = self._sinks.budgets is not None or request.allowance is not None
            if paid:
                request = self._bounded(request)
            if request is not call.request:
                call.output_limit = request.max_tokens
            body = upstream.format.encode(request, upstream.target)
            if paid:
                self._reserve(request, body)
            if len(body) > LARGE_BODY:
                call.uploads.append(len(body))
            end = min(call.deadline, self._started + limit)
            # A probe's lease must outlast its attempt, or its result would come too late to count.
            upstream.endpoint.core.extend(self._grant.ticket, end - self._started + _PROBE_SLACK)
            self._timer = timer = RequestTimer(end)
            # The socket's own time-out must not end an attempt that the timer may still give more time.
            if movable and end < call.deadline:
                timer.extension = self._extension
                read_timeout = call.deadline - self._started
            else:
                read_timeout = end - self._started
            # The last moment at which the attempt can be called off for nothing: from `_sent` on it may be
            # billed, and is settled instead of undone.
            if call.race is not None:
                call.race.enter(self)
            self._sent = True
            if call.beside is not None and self.hooks.wanted:
                after = self._started - call.started
                self.hooks.emit(events.Hedged(call.id, call.beside, upstream.endpoint.name, after))
            prepared = upstream.stream if stream else upstream.plain
            if call.request.extras is not None:
                prepared = upstream.with_extras(prepared, call.request.extras)
            self._exchange = upstream.transport.send(prepared, body, timer, read_timeout=read_timeout)
            return self._exchange
        except BaseException as error:
            self.failed(error, None)
            raise

    def _extension(self) -> float:
        """What the attempt may do at its limit: run to the call's deadline, or 0: be cut.

        The timer thread calls this, and it runs all timers: it must neither wait nor fail.
        """
        call = self._call
        try:
            if call.elsewhere is not None and call.elsewhere():
                self.moved = True
                return 0.0
            lease = call.deadline - self._started + _PROBE_SLACK
            self._upstream.endpoint.core.extend(self._grant.ticket, lease)
        except Exception:
            log.exception("an attempt keeps its time")
        return call.deadline

    def begun(self) -> None:
        """Records that content has arrived: no other endpoint can take over any more."""
        if self._timer is not None:
            self._timer.extension = None  # breaks a reference cycle: it is a method of this object

    def _bounded(self, request: Request) -> Request:
        """The request with a limit of its answer, if a hard budget pays and nothing else limits it."""
        call, budgets = self._call, self._sinks.budgets
        allowance, model, options = request.allowance, self._upstream.endpoint.model, request.options
        if is_bounded(request, model):
            return request
        affordable = None if budgets is None else budgets.affordable(options.tags, options.priority)
        if affordable is None and allowance is None:
            return request
        return bounded(request, call.estimate, model, affordable)

    def _reserve(self, request: Request, body: bytes) -> None:
        """Reserves the worst case in the allowance and all budgets; raises if it does not fit."""
        call, sinks = self._call, self._sinks
        budgets, allowance, options = sinks.budgets, request.allowance, request.options
        asked = call.request.max_tokens is not None
        self._worst = worst = worst_case(request, call.estimate, self._upstream, body, asked=asked)
        # Only if calls wait can there be one that must not be overtaken.
        behind = self._behind if sinks.queue.waiting else None
        if isinstance(allowance, QueueingPurse):
            allowance.reserve(self._id, worst.nano, assumed=worst.assumed, behind=behind)
        elif allowance is not None:
            allowance.reserve(self._id, worst.nano)
        if budgets is not None:
            self._reservation = budgets.reserve(
                worst.nano,
                options.tags,
                max(call.deadline - self._started, 0.0) + _LEASE_SLACK,
                forced=options.force_premium,
                served=call.served,
                priority=options.priority,
                at=self._time,
                emit=call.beside is None,
                assumed=worst.assumed,
                behind=behind,
            )
            # Before anything is sent: if this process is killed from now on, the worst case stays spent.
            self._reservation.sent()
        if call.turn is not None:
            sinks.queue.leave(call.turn)  # the next call in the queue may fit as well

    def _behind(self, line: str) -> bool:
        call = self._call
        return self._sinks.queue.is_behind(line, RANKS[call.request.options.priority], call.turn)

    def _pay(self, cost: int | None, *, recorded: bool = True) -> None:
        """Settles the reservations with the real cost; None keeps the worst case."""
        if self._reservation is not None:
            self._reservation.settle(cost, recorded=recorded)
        allowance = self._call.request.allowance
        if isinstance(allowance, QueueingPurse):
            allowance.settle(self._id, cost, recorded=recorded)
        elif allowance is not None:
            allowance.settle(self._id, cost)

    def check_status(self, exchange: Exchange, body: bytes) -> None:
        """Raises if the status is not 200, the body is empty or the content type is wrong."""
        if exchange.status != 200:
            raise self._upstream.format.decode_error(
                exchange.status, exchange.headers, body, self._upstream.target
            )
        if not body.strip():
            raise errors.EmptyResponse("the answer is empty", maybe_billed=True)
        check_content_type(exchange.headers, False)

    def estimated_usage(self, answer_chars: int) -> Usage:
        """Usage estimated by the lengths of prompt and answer, if the provider sent no usable figures."""
        self._guessed = True
        return Usage(self._call.estimate.input_tokens, (answer_chars + 2) // 3, source="estimated")

    def _expected_usage(self) -> Usage:
        """The usage of an answer that did not arrive but may have been written and charged in full."""
        estimate, most = self._call.estimate, self._upstream.endpoint.model.max_output_tokens
        output = min(estimate.output_tokens, most) if most > 0 else estimate.output_tokens
        return Usage(estimate.input_tokens, output, source="estimated")

    def _credible(self, usage: Usage | None) -> Usage | None:
        """The usage, or None if it is beyond what the model can have read or written.

        A provider's mistake of a factor of a million must not spend a budget, nor block a token limit for
        years. The bound is generous: windows in a catalogue may be old, and tools may take several rounds.
        """
        model, most = self._upstream.endpoint.model, self._upstream.most_tokens
        if usage is None or (usage.prompt_tokens <= most and usage.completion_tokens <= most):
            return usage
        answers = choices_of(self._call.request)
        if usage.prompt_tokens <= most and usage.completion_tokens <= answers * most:
            return usage
        if self._upstream.doubt():
            log.warning(
                "%s: says that a request took %d input and %d output tokens, which is impossible for %s; the "
                "cost of such calls is unknown, and budgets keep their worst case",
                self._upstream.endpoint.name,
                usage.prompt_tokens,
                usage.completion_tokens,
                model.name,
            )
        return None

    def win(self, usage: Usage | None) -> None:
        """Claims that this attempt answers the call, and ends the other one if the call is hedged.

        Called before `succeeded`, so that only one of two attempts settles as the answer.

        Args:
            usage: the attempt's usage; None if it is not known yet.

        Raises:
            Superseded: if the other attempt was first; this one is charged and settled.
        """
        race = self._call.race
        if race is None:
            return
        self._usage = usage
        if not race.win(self):
            self.lose(None)
            raise Superseded("another attempt was quicker", maybe_billed=True)
        race.end(None if usage is None else usage.completion_tokens)

    def lose(self, output_tokens: int | None) -> None:
        """Settles and cuts the attempt: another attempt of the call was quicker, or the call is over.

        The attempt's own thread then fails on its closed connection and finds it settled.

        Args:
            output_tokens: length of the other answer, which this provider may have written and charged too;
                None if unknown. An attempt of which no byte was sent is not charged.
        """
        if self.settled:
            return
        latency = self.elapsed()
        usage, spent = self._credible(self._usage), 0
        if usage is None and not self._unsent:
            usage = self._expected_usage()
            if output_tokens is not None:
                usage = evolve(usage, completion_tokens=output_tokens)
        if usage is not None:
            spent = max(self._grant.tokens, usage.total_tokens)
        if self._call.beside is None:
            self.took(latency)
        try:
            # Before it is cut: otherwise its own thread could take the cut for a failure and settle that.
            self._settle(
                _core.IGNORED,
                self._entry("hedge_lost", latency, usage, self._exchange),
                spent,
            )
        finally:
            if self._timer is not None:
                self._timer.cut()

    def took(self, latency: float) -> None:
        """Records the seconds until the answer or the first token came, or was no longer waited for.

        The delay of later hedges is computed from these.
        """
        call = self._call
        endpoint, stream = self._upstream.endpoint, call.request.stream
        tail = endpoint.begun if stream else endpoint.whole
        if tail is not None and call.timed:
            tail.record(latency / call.estimate.prompt_scale if stream else latency)

    def succeeded(self, usage: Usage, exchange: Exchange, latency: float, ttft: float | None = None) -> float:
        """Settles a good answer; returns time.monotonic."""
        estimate = self._call.estimate.input_tokens
        most, known = self._upstream.most_tokens, not self._guessed
        beyond = usage.prompt_tokens > most or usage.completion_tokens > most
        if beyond and self._credible(usage) is None:
            usage, known = self._expected_usage(), False
        else:
            beyond = False
        if usage.source == "provider":
            if not self._call.estimate.media:  # what is no text would distort the estimates of text
                self._upstream.endpoint.calibration.learn(estimate, usage.prompt_tokens)
            if self._call.request.max_tokens is None:
                self._sinks.outputs.record(self._upstream.endpoint.model.name, usage.completion_tokens)
        spent = usage.prompt_tokens + usage.completion_tokens
        entry = self._entry("ok", latency, usage, exchange, ttft, known=known)
        if beyond:
            entry = evolve(entry, cost_nano=None)
        self._settle(_core.OK, entry, spent, exchange.headers)
        return time.monotonic()

    def failed(
        self,
        error: BaseException,
        exchange: Exchange | None,
        *,
        usage: Usage | None = None,
        ttft: float | None = None,
    ) -> None:
        """Settles an attempt that ended with an error, an interrupt or a caller that left."""
        latency = self.elapsed()
        # First: nothing below may fail or wait while the provider still sends.
        if exchange is not None:
            exchange.close()
        if self.settled:
            return
        if not self._sent:
            self._undo()
            return
        left = isinstance(error, errors.DeadlineExceeded) or self._call.cancelled
        if left or not isinstance(error, errors.Error):
            # An interrupt, a killed greenlet, a bug in fastroute, a slow reader: not the endpoint's fault.
            self.cancelled(exchange, usage, ttft)
            return
        call = self._call
        verdict = self._sinks.retries.classify(error)
        if self.moved:
            verdict = evolve(verdict, once=False)  # it was cut only because another endpoint was ready
        outcome = int(verdict.outcome)
        if isinstance(error, errors.APITimeoutError):
            if call.request.stream and ttft is None and (exchange is not None or error.maybe_billed):
                # The real time to the first token is at least this long. Without this record the learned
                # limit would only contain attempts below it, and could never grow.
                core, reasoning = self._upstream.endpoint.core, call.estimate.reasoning
                core.record_ttft(latency / call.estimate.prompt_scale, reasoning)
                core.record_ttft_timeout(reasoning)
            if self._cut_by_caller(latency):
                outcome = _core.IGNORED
        call.verdict = verdict
        endpoint = self._upstream.endpoint
        error.endpoint = endpoint.name
        if isinstance(error, errors.AuthenticationError):
            error.message += f" (the key comes from {endpoint.provider.key_source})"
        billed = bool(getattr(error, "maybe_billed", False))
        usage = self._credible(usage)
        if usage is None and billed:
            usage = self._expected_usage()
        spent = self._grant.tokens if billed else 0
        if usage is not None:
            spent = max(spent, usage.total_tokens)
        headers = None if exchange is None else exchange.headers
        self._settle(outcome, self._entry("failed", latency, usage, exchange, ttft, error), spent, headers)
        # After settling, so that no permit is held while blocks are published and logged.
        if verdict.block_seconds and (verdict.strikes == 1 or self._upstream.strike() >= verdict.strikes):
            self._block(verdict)

    def cancelled(self, exchange: Exchange | None, usage: Usage | None, ttft: float | None = None) -> None:
        """Settles an attempt whose caller left. The provider may charge for all of it, once it is sent."""
        if exchange is not None:
            exchange.close()
        usage, spent = self._credible(usage), 0
        if usage is None and not self._unsent:
            usage = self._expected_usage()
        if usage is not None:
            spent = max(self._grant.tokens, usage.total_tokens)
        self._settle(
            _core.IGNORED, self._entry("client_cancelled", self.elapsed(), usage, exchange, ttft), spent
        )

    def began(self) -> None:
        """Records the first content of a stream: a probe has succeeded with that."""
        flags = self._upstream.endpoint.core.began(self._grant.ticket)
        if flags:
            self._breaker_changed(flags, None)

    def hand_out(self) -> None:
        """Records that the stream settles the attempt from now on."""
        self._handed_out = True

    def abandon(self) -> None:
        """Settles it, for instance after an interrupt, unless its stream will do so. Idempotent."""
        if self._exchange is not None and not self._handed_out:
            self._exchange.close()
        if not self._handed_out and not self.settled:
            if self._sent:
                self.cancelled(self._exchange, None)
            else:
                self._undo()

    def cut(self) -> None:
        """Ends what it sends and receives; its own thread settles it then. From any thread."""
        timer = self._timer
        if timer is not None:
            timer.cut()

    @property
    def _unsent(self) -> bool:
        """Whether no byte of the request can have reached the provider, so that it costs nothing."""
        return self._timer is not None and self._timer.unsent

    def _cut_by_caller(self, latency: float) -> bool:
        """Whether the caller's deadline ended it so early that a time-out says nothing about the endpoint."""
        call = self._call
        return time.monotonic() >= call.deadline and latency < 0.5 * call.estimate.timeout

    def _limits(self, headers: Mapping[str, str], *, served: bool) -> None:
        """Applies the rate limits in an answer's headers.

        Args:
            served: whether it is a good answer, which reports all limits: one that is missing has ended. A
                refusal often reports only the limit that it is about.
        """
        core = self._upstream.endpoint.core
        limits = parse_limits(headers, self._time)
        if limits is None:
            if served and core.paced:
                core.pace(0, 60.0, 0, 60.0)
            return
        requests, tokens = limits.requests or _UNTOLD, limits.tokens or _UNTOLD
        nothing = 0 if served else -1
        core.pace(
            requests.limit or (nothing if requests is _UNTOLD else -1),
            requests.window,
            tokens.limit or (nothing if tokens is _UNTOLD else -1),
            tokens.window,
        )
        core.tighten(
            -1 if requests.remaining is None else requests.remaining,
            -1 if tokens.remaining is None else tokens.remaining,
        )

    def _block(self, verdict: Verdict) -> None:
        """Blocks all endpoints for which the failure holds."""
        seconds, code, hooks = verdict.block_seconds, verdict.block_code, self._sinks.hooks
        endpoints = self._sinks.affected(self._upstream.endpoint, verdict.blame)
        if code is BlockReason.HOST_DOWN:
            # Not this one: its retries and its breaker find out when the host is back.
            endpoints = tuple(other for other in endpoints if other is not self._upstream.endpoint)
        until = _core.clock() + int(seconds * 1e9)
        for endpoint in endpoints:
            endpoint.core.block(until, int(code))
            if hooks.wanted:
                hooks.emit(events.EndpointBlocked(endpoint.name, verdict.reason, seconds))
        if endpoints:
            # Waiting is routine. A key, a quota or a model name needs someone to correct it.
            level = logging.INFO if code in _ROUTINE else logging.WARNING
            names = ", ".join(endpoint.name for endpoint in endpoints)
            be = "is" if len(endpoints) == 1 else "are"
            log.log(level, "%s %s left out for %s: %s", names, be, duration(seconds), verdict.reason)

    def _undo(self) -> None:
        # Nothing was sent: the limits get everything back, as if the attempt had not been made.
        self.begun()
        try:
            with self._lock:
                if self.settled:
                    return
                self.settled = True
            self._upstream.endpoint.core.undo(self._grant.ticket, self._grant.tokens)
            self._pay(0)
            self._freed()
        except BaseException:
            # An interrupt: once more. If `undo` was not done, `finish` frees the permit.
            if self.settled:
                self._upstream.endpoint.core.finish(self._grant.ticket, _core.IGNORED)
                self._pay(0)
                self._freed()
            raise

    def _freed(self) -> None:
        """Gives back the gate's permit and wakes calls that wait for it or for the endpoint's."""
        sinks, grant = self._sinks, self._grant
        if grant.gate >= 0 and sinks.gate is not None:
            sinks.gate.undo(grant.gate, 0)
        if sinks.queue.waiting:
            sinks.queue.freed(grant.endpoint.name)

    def _entry(
        self,
        outcome: Outcome,
        latency: float,
        usage: Usage | None,
        exchange: Exchange | None,
        ttft: float | None = None,
        error: errors.Error | None = None,
        *,
        known: bool | None = None,
    ) -> Attempt:
        """The attempt as it ended: its entry in the ledger.

        Args:
            known: whether the provider charges exactly this usage. Default: whether the provider reported it;
                an answer that ended early may have been written to its end all the same.
        """
        call, endpoint = self._call, self._upstream.endpoint
        cost: int | None = 0
        kept: int | None = None
        service_tier = None
        if usage is not None:
            prices = endpoint.model.prices
            upstream, billing = self._upstream, usage.billing
            listed = billing is None or billing is LISTED_BILLING
            if listed and not upstream.charges_more and CHARGING.isdisjoint(call.request.params):
                cost = None if prices is None else prices.cost(usage)
                service_tier = None if billing is None else billing.modifiers["service_tier"]
            else:
                headers = None if exchange is None else exchange.headers
                cost, service_tier = charged(usage, call.request, upstream, headers)
            cost = None if cost is None else min(cost, _core.MOST_NANO)
            if known is None:
                known = usage.source == "provider"
            if (cost is None or not known) and self._worst is not None and self._worst.nano is not None:
                kept = max(min(self._worst.nano, _core.MOST_NANO), cost or 0)
        else:
            usage = _NOTHING
        status = exchange.status if exchange is not None else None
        request_id = request_id_of(exchange.headers) if exchange is not None else None
        if error is not None:
            status = error.status_code if isinstance(error, errors.APIStatusError) else status
            request_id = error.request_id or request_id
        return Attempt(
            id=self._id,
            call_id=call.id,
            time=self._time,
            endpoint=endpoint.name,
            provider=endpoint.config.provider,
            model=endpoint.model.name,
            tier=call.tier,
            level=call.level,
            outcome=outcome,
            status_code=status,
            error=type(error).__name__ if error is not None else None,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            usage_source=usage.source,
            cost_nano=cost,
            latency=latency,
            ttft=ttft,
            stream=call.request.stream,
            maybe_billed=bool(getattr(error, "maybe_billed", False))
            or (outcome in ("hedge_lost", "client_cancelled") and usage is not _NOTHING)
            or (self._timer is not None and self._timer.resent),
            request_id=request_id,
            tags=call.request.options.tags,
            cache_write_tokens=usage.cache_write_tokens,
            cache_write_1h_tokens=usage.cache_write_1h_tokens,
            service_tier=service_tier,
            budget_nano=kept,
            score=call.judgement.score,
        )

    def _settle(
        self,
        core_outcome: int,
        attempt: Attempt,
        spent_tokens: int,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.begun()
        try:
            with self._lock:
                if self.settled:
                    return
                # Under the lock, so that the call's attempts are complete once it is settled. It may be there
                # already, if an interrupt came before the next line the first time.
                known = self._call.attempts
                if not known or all(each.id != attempt.id for each in known):
                    known.append(attempt)
                self.settled = True
            self._record(core_outcome, attempt, spent_tokens, headers)
        except BaseException:
            # An interrupt, at whatever line: once more. Each step counts once, however often it is done.
            if self.settled:
                self._record(core_outcome, attempt, spent_tokens, headers)
            raise

    def _record(
        self, core_outcome: int, attempt: Attempt, spent_tokens: int, headers: Mapping[str, str] | None
    ) -> None:
        sinks, call, grant = self._sinks, self._call, self._grant
        shown = attempt.latency if call.timed else 0.0
        # The permit first: calls that wait for it should not wait for the ledger as well.
        finish = self._upstream.endpoint.core.finish
        flags = finish(grant.ticket, core_outcome, shown, spent_tokens - grant.tokens)
        if headers is not None:
            # After `finish`, which gives back what was estimated too much and so would raise the limits above
            # what the provider reports; and before other calls are admitted.
            self._limits(headers, served=core_outcome == _core.OK)
        self._freed()
        # What the caller's request caused, or ended early, says nothing about the model. `_told` is set
        # first: an interrupt may lose an event, but never repeats one.
        told, self._told = self._told, True
        outcome = attempt.outcome
        if core_outcome != _core.IGNORED and (outcome == "failed" or attempt.stream) and not told:
            sinks.rates.record(attempt.model, attempt.tier, outcome == "ok")
        # The ledger before the budget: killed between the two, the process leaves a reservation that counts
        # at the worst case. In the other order it could leave money spent that no ledger knows. And a value's
        # counter may be given away once nothing is reserved in it: its sum must be in the ledger by then.
        recorded = sinks.ledger.append(attempt)
        spent = attempt.cost_nano if attempt.budget_nano is None else attempt.budget_nano
        self._pay(spent, recorded=recorded)
        if told:
            return
        hooks = sinks.hooks
        if hooks.wanted:
            hooks.emit(events.AttemptFinished(attempt))
        if flags:
            self._breaker_changed(flags, attempt.error)

    def _breaker_changed(self, flags: int, error: str | None) -> None:
        name, hooks = self._upstream.endpoint.name, self._sinks.hooks
        state = "open" if flags & 1 else "closed"
        log.warning("the breaker of %s is %s%s", name, state, f": {error}" * (flags & 1))
        if hooks.wanted:
            hooks.emit(events.BreakerChanged(name, state))


_UNTOLD = HeaderLimit(None, None, None)
_NOTHING = Usage(source="none")
_ROUTINE = (BlockReason.RETRY_AFTER, BlockReason.HOST_DOWN)
