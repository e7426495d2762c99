"""One request on its way: what it was given, and settling all of it once, whichever way it ends.

Owns what the attempts of a call share (`Call`), what never changes between the attempts at one endpoint
(`Wire`), and the settling: permits go back, breaker and latency hear of it, the ledger gets its one line.
What is done with the answer is `attempt.py`'s and `stream.py`'s.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import requests
from attrs import evolve, frozen

from . import _core, errors, events, forks
from .budget import Budgets, Reservation
from .catalog import sampling_bit
from .limit_headers import parse_limits
from .plan import Estimate
from .providers.base import Format, Target, check_content_type, request_id_of
from .quality import Rates, Validator
from .retry import BlockReason, RetryPolicy, Verdict
from .state import Endpoint
from .tokens import OutputHistory
from .transport import Exchange, Transport
from .types import (
    SAMPLING_PARAMETERS,
    Attempt,
    Classification,
    Outcome,
    Request,
    Route,
    Usage,
    UsageSource,
)

_LEASE_SLACK = 30.0  # seconds that a budget's reservation outlives its call's deadline
_PROBE_SLACK = 5.0  # seconds that a breaker's probe keeps its place beyond the end of its attempt


log = logging.getLogger("fastroute")


class Recorder(Protocol):
    """Where attempts are written down."""

    def append(self, attempt: Attempt) -> None: ...


class _Ids:
    """Ids unique among processes: a random prefix per process and a count."""

    def __init__(self) -> None:
        self._count = itertools.count()
        self.renew()

    def renew(self) -> None:
        """In a forked child: ids of its own."""
        self._prefix = os.urandom(8).hex()

    def next(self) -> str:
        return f"{self._prefix}-{next(self._count):x}"


_ids = _Ids()
forks.in_child(_ids.renew)
next_id = _ids.next


class Call:
    """What the attempts of one call share.

    Attributes:
        deadline: time.monotonic by which the call must have ended.
        attempts: those that were sent, oldest first.
        validator: what the answer is held to, if anything.
        rejected: answers that failed it so far.
        waited: seconds spent waiting for limits and back-off.
        verdict: what the retry policy said of the last failure.
        gate: its ticket of the limit over all endpoints, the last one it had; -1 without one.
        held: what let it in, until its attempt answers for that.
        sending: the attempt that answers for it since.
        downgraded: the budget that sent it to the cheapest tier, if one did.
        timed: whether its latency counts where endpoints are compared by theirs.
    """

    __slots__ = (
        "attempts",
        "classify",
        "deadline",
        "downgraded",
        "estimate",
        "gate",
        "held",
        "id",
        "level",
        "rejected",
        "request",
        "sending",
        "started",
        "tier",
        "timed",
        "validator",
        "verdict",
        "waited",
    )

    def __init__(
        self,
        request: Request,
        estimate: Estimate,
        level: str | None,
        classify: Callable[[], Classification],
        started: float,
        deadline: float,
    ) -> None:
        self.id = next_id()
        self.request = request
        self.estimate = estimate
        self.level = level
        self.classify = classify
        self.tier: str | None = None
        self.started = started
        self.deadline = deadline
        self.attempts: list[Attempt] = []
        rule = request.options.validate
        self.validator = None if rule is None else Validator.of(rule)
        self.rejected = 0
        self.waited = 0.0
        self.verdict: Verdict | None = None
        self.gate = -1
        self.held: Grant | None = None
        self.sending: Sending | None = None
        self.downgraded: str | None = None
        self.timed = True

    def route(self, wire: Wire, now: float, *, ttft: float | None = None) -> Route:
        """How the call was served, once its last attempt has ended."""
        cost: int | None = 0
        for attempt in self.attempts:
            cost = None if cost is None or attempt.cost_nano is None else cost + attempt.cost_nano
        endpoint = wire.endpoint
        return Route(
            endpoint.model.name,
            endpoint.name,
            endpoint.config.provider,
            self.tier,
            self.classify,
            cost,
            now - self.started,
            ttft,
            tuple(self.attempts),
            False,
            self.waited,
            self.attempts[-1].request_id if self.attempts else None,
            self.downgraded,
        )


class Wire:
    """One endpoint's format, address and connections; what never changes is prepared once.

    Thread safety: all threads share it. `forget_usage` is one attribute store.
    """

    def __init__(self, endpoint: Endpoint, format: Format, target: Target, transport: Transport) -> None:
        self.endpoint = endpoint
        self.format = format
        self.target = target
        self.transport = transport
        self._plain = transport.prepare(format.url(target, False), format.headers(target, False))
        self._stream = transport.prepare(format.url(target, True), format.headers(target, True))

    def prepared(self, stream: bool) -> requests.PreparedRequest:
        return self._stream if stream else self._plain

    def taken(self, request: Request) -> Request:
        """The request as the model takes it: without sampling parameters where it refuses them.

        Those that come this far say what leaving them out says, or are to be dropped: some refuse even that.
        """
        params = request.params
        if self.endpoint.model.capabilities & sampling_bit(params):
            return request
        if not any(name in params for name in SAMPLING_PARAMETERS):
            return request
        kept = {name: value for name, value in params.items() if name not in SAMPLING_PARAMETERS}
        return evolve(request, params=kept)

    def forget_usage(self) -> None:
        """The provider refuses stream_options: ask for no usage from now on, and estimate it."""
        self.target = evolve(self.target, include_usage=False)


@frozen
class Grant:
    """What let a call in, to be handed back.

    Attributes:
        ticket, tokens: of the endpoint's limits.
        gate: the ticket of the limit over all endpoints; -1 where there is none.
    """

    endpoint: Endpoint
    ticket: int
    tokens: int
    gate: int


@frozen(eq=False)
class Sinks:
    """Where attempts are judged, written down and made known.

    Attributes:
        retries: says what may be done about an error.
        ledger: gets one line an attempt.
        hooks: hear of it.
        outputs: learn how long answers are.
        rates: success and validation rates of the models.
        budgets: what may still be spent.
        gate: the permits of all endpoints together, if there is such a limit.
        freed: is told whose permit was given back.
    """

    retries: RetryPolicy
    ledger: Recorder
    hooks: events.Hooks
    outputs: OutputHistory
    rates: Rates
    budgets: Budgets
    gate: _core.Endpoint | None
    freed: Callable[[str], None]


class Sending:
    """An attempt under way: from its permits to its one line in the ledger."""

    __slots__ = (
        "_call",
        "_exchange",
        "_grant",
        "_handed_out",
        "_id",
        "_lock",
        "_reservation",
        "_sent",
        "_settled",
        "_sinks",
        "_started",
        "_time",
        "_told",
        "_wire",
    )

    def __init__(self, sinks: Sinks, call: Call, wire: Wire, grant: Grant) -> None:
        self._sinks = sinks
        self._call = call
        self._wire = wire
        self._grant = grant
        self._id = next_id()
        self._exchange: Exchange | None = None
        self._handed_out = False
        self._settled = False
        self._sent = False
        self._told = False
        self._reservation: Reservation | None = None
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._time = time.time()

    @property
    def call(self) -> Call:
        return self._call

    @property
    def wire(self) -> Wire:
        return self._wire

    @property
    def hooks(self) -> events.Hooks:
        return self._sinks.hooks

    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def open(self, stream: bool, limit: float, read_timeout: float) -> Exchange:
        """Encodes and sends; on a failure everything is settled before it is raised."""
        call, wire = self._call, self._wire
        try:
            call.sending = self
            call.held = None  # from here on it is this attempt's to give back
            call.gate = -1
            body = wire.format.encode(wire.taken(call.request), wire.target)
            budgets = self._sinks.budgets
            allowance = call.request.allowance
            worst = self._worst_cost(body) if allowance is not None or budgets else None
            if allowance is not None:
                allowance.reserve(self._id, worst)
            if budgets:
                options = call.request.options
                self._reservation = budgets.reserve(
                    worst,
                    options.tags,
                    max(call.deadline - self._started, 0.0) + _LEASE_SLACK,
                    forced=options.force_premium,
                    priority=options.priority,
                    at=self._time,
                )
                self._reservation.sent()
            end = min(call.deadline, self._started + limit)
            wire.endpoint.core.extend(self._grant.ticket, end - self._started + _PROBE_SLACK)
            self._sent = True
            self._exchange = wire.transport.send(
                wire.prepared(stream),
                body,
                deadline=end,
                read_timeout=read_timeout,
            )
            return self._exchange
        except BaseException as error:
            self.failed(error, None)
            raise

    def _worst_cost(self, body: bytes) -> int | None:
        """Nano-dollars that the attempt can cost at most, or None if the model's price is unknown."""
        call, model = self._call, self._wire.endpoint.model
        if model.prices is None:
            return None
        # The estimate takes three characters a token; hardly any text has more than one in two.
        prompt = -(-3 * call.estimate.input_tokens // 2)
        output = call.request.max_tokens
        most = model.max_output_tokens or max(model.context_window - prompt, 0)
        if output is None:
            output = most or call.estimate.output_tokens
        elif model.max_output_tokens:
            output = min(output, model.max_output_tokens)
        choices = call.request.params.get("n")
        if isinstance(choices, int) and choices > 1:
            output *= choices
        # Keeping the prompt for an hour is the dearest that can be asked for, and is asked for by this word.
        return model.prices.worst(prompt, output, hour=b'"1h"' in body)

    def _pay(self, cost: int | None) -> None:
        """Settles what was set aside with the real cost; None keeps the worst case."""
        if self._reservation is not None:
            self._reservation.settle(cost)
        allowance = self._call.request.allowance
        if allowance is not None:
            allowance.settle(self._id, cost)

    def check_status(self, exchange: Exchange, body: bytes) -> None:
        """Raises what an answer means that is no 200, or one without content or of another type."""
        if exchange.status != 200:
            raise self._wire.format.decode_error(exchange.status, exchange.headers, body, self._wire.target)
        if not body.strip():
            raise errors.EmptyResponse("the answer is empty", maybe_billed=True)
        check_content_type(exchange.headers, False)

    def estimated_usage(self, answer_chars: int) -> Usage:
        """For a provider that gave no usable figures: by the lengths of prompt and answer."""
        return Usage(self._call.estimate.input_tokens, (answer_chars + 2) // 3, source="estimated")

    def _expected_usage(self) -> Usage:
        """For an answer that may have been written and charged in full, and that nobody has seen."""
        estimate, most = self._call.estimate, self._wire.endpoint.model.max_output_tokens
        output = min(estimate.output_tokens, most) if most > 0 else estimate.output_tokens
        return Usage(estimate.input_tokens, output, source="estimated")

    def succeeded(self, usage: Usage, exchange: Exchange, latency: float, ttft: float | None = None) -> float:
        """Settles a good answer; returns time.monotonic."""
        estimate = self._call.estimate.input_tokens
        if usage.source == "provider":
            self._wire.endpoint.calibration.learn(estimate, usage.prompt_tokens)
            if self._call.request.max_tokens is None:
                self._sinks.outputs.record(self._wire.endpoint.model.name, usage.completion_tokens)
        self._limits(exchange.headers)
        self._settle(
            _core.OK,
            latency,
            usage.prompt_tokens + usage.completion_tokens,
            "ok",
            usage,
            usage.source,
            None,
            exchange,
            ttft,
        )
        return time.monotonic()

    def failed(
        self,
        error: BaseException,
        exchange: Exchange | None,
        *,
        usage: Usage | None = None,
        ttft: float | None = None,
    ) -> None:
        """Settles an attempt that ended with an error, an interrupt or a caller who went away."""
        latency = self.elapsed()
        if exchange is not None:
            exchange.close()
        if self._settled:
            return
        if not self._sent:
            self._undo()
            return
        if exchange is not None:
            self._limits(exchange.headers)
        if not isinstance(error, errors.Error):
            # KeyboardInterrupt, a killed greenlet, a bug of ours: nothing that the endpoint did.
            self.cancelled(exchange, usage, ttft)
            return
        call = self._call
        verdict = self._sinks.retries.classify(error)
        outcome = int(verdict.outcome)
        if isinstance(error, errors.APITimeoutError) and self._cut_by_caller(latency):
            outcome = _core.IGNORED
        call.verdict = verdict
        endpoint = self._wire.endpoint
        error.endpoint = endpoint.name
        if isinstance(error, errors.AuthenticationError):
            error.message += f" (the key comes from {endpoint.provider.key_source})"
        billed = bool(getattr(error, "maybe_billed", False))
        if usage is None and billed:
            usage = self._expected_usage()
        spent = self._grant.tokens if billed else 0
        if usage is not None:
            spent = max(spent, usage.total_tokens)
        self._settle(
            outcome,
            latency,
            spent,
            "failed",
            usage,
            usage.source if usage is not None else "none",
            error,
            exchange,
            ttft,
        )
        if verdict.block_seconds:
            self._block(verdict)

    def cancelled(self, exchange: Exchange | None, usage: Usage | None, ttft: float | None = None) -> None:
        """Settles an attempt whose caller went away: the provider may charge for all of it."""
        if exchange is not None:
            exchange.close()
        if usage is None:
            usage = self._expected_usage()
        self._settle(
            _core.IGNORED,
            self.elapsed(),
            max(self._grant.tokens, usage.total_tokens),
            "client_cancelled",
            usage,
            usage.source,
            None,
            exchange,
            ttft,
        )

    def began(self) -> None:
        """The first content of a stream is there: as a probe it has shown enough."""
        flags = self._wire.endpoint.core.began(self._grant.ticket)
        if flags:
            self._breaker_changed(flags, None)

    def hand_out(self) -> None:
        """From here on the attempt is its stream's to settle."""
        self._handed_out = True

    def abandon(self) -> None:
        """Settles it if nobody else has or will, as after an interrupt while it was being settled."""
        if self._exchange is not None and not self._handed_out:
            self._exchange.close()
        if not self._handed_out and not self._settled:
            if self._sent:
                self.cancelled(self._exchange, None)
            else:
                self._undo()

    @property
    def settled(self) -> bool:
        return self._settled

    def _cut_by_caller(self, latency: float) -> bool:
        """Whether the caller's own deadline left the endpoint too little time to be blamed."""
        call = self._call
        return time.monotonic() >= call.deadline and latency < 0.5 * call.estimate.timeout

    def _limits(self, headers: Mapping[str, str]) -> None:
        limits = parse_limits(headers)
        if limits is None:
            return
        core = self._wire.endpoint.core
        requests_left, tokens_left = limits.remaining_requests, limits.remaining_tokens
        core.tighten(
            -1 if requests_left is None else requests_left, -1 if tokens_left is None else tokens_left
        )

    def _block(self, verdict: Verdict) -> None:
        endpoint = self._wire.endpoint
        endpoint.core.block(_core.clock() + int(verdict.block_seconds * 1e9), int(verdict.block_code))
        # To wait for a while is routine; a key or a quota is for somebody to mend.
        level = logging.INFO if verdict.block_code is BlockReason.RETRY_AFTER else logging.WARNING
        log.log(level, "%s is left out for %.0f s: %s", endpoint.name, verdict.block_seconds, verdict.reason)
        hooks = self._sinks.hooks
        if hooks.wanted:
            hooks.emit(events.EndpointBlocked(endpoint.name, verdict.reason, verdict.block_seconds))

    def _undo(self) -> None:
        try:
            with self._lock:
                if self._settled:
                    return
                self._settled = True
            self._wire.endpoint.core.undo(self._grant.ticket, self._grant.tokens)
            self._pay(0)
            self._freed()
        except BaseException:
            if self._settled:
                self._wire.endpoint.core.finish(self._grant.ticket, _core.IGNORED)
                self._pay(0)
                self._freed()
            raise

    def _freed(self) -> None:
        """Lets others in: the endpoint's permit is back already."""
        sinks, grant = self._sinks, self._grant
        if grant.gate >= 0 and sinks.gate is not None:
            sinks.gate.undo(grant.gate, 0)
        sinks.freed(grant.endpoint.name)

    def _settle(
        self,
        core_outcome: int,
        latency: float,
        spent_tokens: int,
        outcome: Outcome,
        usage: Usage | None,
        source: UsageSource,
        error: errors.Error | None,
        exchange: Exchange | None,
        ttft: float | None,
    ) -> None:
        try:
            with self._lock:
                if self._settled:
                    return
                self._settled = True
            self._record(core_outcome, latency, spent_tokens, outcome, usage, source, error, exchange, ttft)
        except BaseException:
            # An interrupt, at whatever line: once more. Each step counts once, however often it is taken.
            if self._settled:
                self._record(
                    core_outcome, latency, spent_tokens, outcome, usage, source, error, exchange, ttft
                )
            raise

    def _record(
        self,
        core_outcome: int,
        latency: float,
        spent_tokens: int,
        outcome: Outcome,
        usage: Usage | None,
        source: UsageSource,
        error: errors.Error | None,
        exchange: Exchange | None,
        ttft: float | None,
    ) -> None:
        sinks, call, wire, grant = self._sinks, self._call, self._wire, self._grant
        endpoint = wire.endpoint
        shown = latency if call.timed else 0.0
        flags = endpoint.core.finish(grant.ticket, core_outcome, shown, spent_tokens - grant.tokens)
        self._freed()
        cost: int | None = 0
        if usage is not None:
            prices = endpoint.model.prices
            cost = None if prices is None else prices.cost(usage)
        else:
            usage = _NOTHING
        status = exchange.status if exchange is not None else None
        request_id = request_id_of(exchange.headers) if exchange is not None else None
        if error is not None:
            status = error.status_code if isinstance(error, errors.APIStatusError) else status
            request_id = error.request_id or request_id
        attempt = Attempt(
            self._id,
            call.id,
            self._time,
            endpoint.name,
            endpoint.config.provider,
            endpoint.model.name,
            call.tier,
            call.level,
            outcome,
            status,
            type(error).__name__ if error is not None else None,
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.cached_tokens,
            usage.reasoning_tokens,
            source,
            cost,
            latency,
            ttft,
            call.request.stream,
            bool(getattr(error, "maybe_billed", False)) or (exchange is not None and exchange.resent),
            request_id,
            call.request.options.tags,
            usage.cache_write_tokens,
            usage.cache_write_1h_tokens,
        )
        if not call.attempts or call.attempts[-1].id != self._id:
            call.attempts.append(attempt)
        # What the caller's own request brought about, or cut short, says nothing about the model.
        told, self._told = self._told, True
        if core_outcome != _core.IGNORED and (outcome == "failed" or attempt.stream) and not told:
            sinks.rates.record(attempt.model, attempt.tier, outcome == "ok")
        sinks.ledger.append(attempt)
        self._pay(cost)
        if told:
            return
        hooks = sinks.hooks
        if hooks.wanted:
            hooks.emit(events.AttemptFinished(attempt))
        if flags:
            self._breaker_changed(flags, attempt.error)

    def _breaker_changed(self, flags: int, error: str | None) -> None:
        name, hooks = self._wire.endpoint.name, self._sinks.hooks
        state = "open" if flags & 1 else "closed"
        log.warning("the breaker of %s is %s%s", name, state, f": {error}" * (flags & 1))
        if hooks.wanted:
            hooks.emit(events.BreakerChanged(name, state))


_NOTHING = Usage(source="none")
