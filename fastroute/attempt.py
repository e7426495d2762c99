"""One request to one endpoint: encode, send, decode, settle.

Owns what an attempt does with the permits it was given: whatever way it ends, they are given back once, the
breaker and the latency hear of it once, and the ledger gets one line. Whether there is another attempt is
`dispatch.py`'s decision.

A stream is an attempt that stays open: `Stream` holds its permits until its end.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Protocol

import requests
from attrs import evolve, frozen

from . import _core, errors, events, sse
from .config import Policy
from .plan import Estimate
from .providers.base import Format, StreamDecoder, Target, check_content_type
from .retry import RetryPolicy, Verdict, parse_limits
from .state import Endpoint
from .tokens import OutputHistory
from .transport import Exchange, Transport
from .types import Attempt, Chunk, Classification, Completion, Outcome, Request, Route, Usage, UsageSource


class Recorder(Protocol):
    """Where attempts are written down."""

    def append(self, attempt: Attempt) -> None: ...


class _Ids:
    """Ids unique among processes: a random prefix per process and a count."""

    def __init__(self) -> None:
        self._pid = 0
        self._prefix = ""
        self._count = itertools.count()

    def next(self) -> str:
        if self._pid != os.getpid():
            self._prefix, self._pid = os.urandom(8).hex(), os.getpid()
        return f"{self._prefix}-{next(self._count):x}"


next_id = _Ids().next


class Call:
    """What the attempts of one call share.

    Attributes:
        deadline: time.monotonic by which the call must have ended.
        attempts: those that were sent, oldest first.
        waited: seconds spent waiting for limits and back-off.
        verdict: what the retry policy said of the last failure.
    """

    __slots__ = (
        "attempts",
        "classify",
        "deadline",
        "estimate",
        "id",
        "level",
        "request",
        "started",
        "tier",
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
        self.waited = 0.0
        self.verdict: Verdict | None = None

    def route(self, wire: Wire, now: float, *, ttft: float | None = None, relaxed: bool = False) -> Route:
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
            self.classify(),
            cost,
            now - self.started,
            ttft,
            tuple(self.attempts),
            False,
            self.waited,
            self.attempts[-1].request_id if self.attempts else None,
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

    def forget_usage(self) -> None:
        """The provider refuses stream_options: ask for no usage from now on, and estimate it."""
        self.target = evolve(self.target, include_usage=False)


@frozen
class Grant:
    """What the core let in: the ticket to hand back, and the tokens reserved with it."""

    ticket: int
    tokens: int


class Attempts:
    """Makes attempts.

    Thread safety: all methods; it holds no state of its own.
    """

    def __init__(
        self,
        policy: Policy,
        retries: RetryPolicy,
        ledger: Recorder,
        hooks: events.Hooks,
        outputs: OutputHistory,
        freed: Callable[[], None],
    ) -> None:
        self.policy = policy
        self.retries = retries
        self.outputs = outputs
        self.ledger = ledger
        self.hooks = hooks
        self.freed = freed

    # ------------------------------------------------------------------------------------------ plain answers

    def complete(self, call: Call, wire: Wire, grant: Grant) -> Completion:
        """Sends the request and returns the whole answer, with its route.

        Raises:
            errors.APIError: the attempt failed; ``call.verdict`` says what may be done about it.
        """
        sending = _Sending(self, call, wire, grant)
        limit = wire.endpoint.provider.timeout or call.estimate.timeout
        exchange = sending.open(False, limit, limit)
        try:
            body = exchange.body()
            sending.check_status(exchange, body)
            completion = wire.format.decode(body, call.request, wire.target)
        except BaseException as error:
            sending.failed(error, exchange)
            raise
        usage = completion.usage
        if usage is None:
            usage = sending.estimated_usage(_answer_chars(completion))
        now = sending.succeeded(usage, exchange, sending.elapsed())
        return completion.with_route(call.route(wire, now), usage)

    # ------------------------------------------------------------------------------------------------ streams

    def stream(self, call: Call, wire: Wire, grant: Grant) -> Stream:
        """Sends the request and returns the stream once its first content is there.

        Until then nothing has been handed out, so a failure is an ordinary failed attempt.

        Raises:
            errors.APIError: as for `complete`.
        """
        sending = _Sending(self, call, wire, grant)
        scale = 1.0 + call.estimate.input_tokens / 10_000
        limit = wire.endpoint.core.ttft_timeout() * scale
        policy = self.policy
        exchange = sending.open(True, limit, max(limit, policy.idle_timeout))
        reader = None
        try:
            if exchange.status != 200:
                sending.check_status(exchange, exchange.body())
            reader = _StreamReader(exchange, wire, call, policy.idle_timeout, policy.ping_timeout)
            head = reader.head()
        except BaseException as error:
            if isinstance(error, errors.APITimeoutError):
                wire.endpoint.core.record_ttft_timeout()
            sending.failed(error, exchange)
            raise
        ttft = sending.elapsed()
        wire.endpoint.core.record_ttft(ttft / scale)
        return Stream(sending, exchange, reader, head, ttft)


class _Sending:
    """An attempt under way: from its permits to its one line in the ledger."""

    __slots__ = ("_attempts", "_call", "_grant", "_lock", "_settled", "_started", "_time", "_wire")

    def __init__(self, attempts: Attempts, call: Call, wire: Wire, grant: Grant) -> None:
        self._attempts = attempts
        self._call = call
        self._wire = wire
        self._grant = grant
        self._settled = False
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._time = time.time()

    @property
    def call(self) -> Call:
        return self._call

    @property
    def wire(self) -> Wire:
        return self._wire

    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def open(self, stream: bool, limit: float, read_timeout: float) -> Exchange:
        """Encodes and sends; on a failure everything is settled before it is raised."""
        call, wire = self._call, self._wire
        try:
            body = wire.format.encode(call.request, wire.target)
        except BaseException:
            self._undo()
            raise
        try:
            return wire.transport.send(
                wire.prepared(stream),
                body,
                deadline=min(call.deadline, self._started + limit),
                read_timeout=read_timeout,
            )
        except BaseException as error:
            if isinstance(error, errors.APITimeoutError) and stream and error.maybe_billed:
                wire.endpoint.core.record_ttft_timeout()
            self.failed(error, None)
            raise

    def check_status(self, exchange: Exchange, body: bytes) -> None:
        """Raises what a status other than 200 means; also what a 200 of another content type means."""
        status = exchange.status
        if status >= 400:
            raise self._wire.format.decode_error(status, exchange.headers, body, self._wire.target)
        if 300 <= status < 400:
            raise errors.APIStatusError(
                f"{self._wire.endpoint.name} answered with a redirect, which is never followed: "
                "base_url should name the final address",
                status_code=status,
            )
        if status == 204 or (status == 200 and not body.strip()):
            raise errors.EmptyResponse("the answer is empty", maybe_billed=True)
        if status != 200:
            raise errors.UpstreamProtocolError(
                f"the answer has the unknown status {status}", status_code=status, maybe_billed=True
            )
        check_content_type(exchange.headers, False)

    def estimated_usage(self, answer_chars: int) -> Usage:
        """For a provider that gave no usable figures: by the lengths of prompt and answer."""
        return Usage(self._call.estimate.input_tokens, (answer_chars + 2) // 3, source="estimated")

    def succeeded(self, usage: Usage, exchange: Exchange, latency: float, ttft: float | None = None) -> float:
        """Settles a good answer; returns time.monotonic."""
        estimate = self._call.estimate.input_tokens
        if usage.source == "provider":
            self._wire.endpoint.calibration.learn(estimate, usage.prompt_tokens)
            if self._call.request.max_tokens is None:
                self._attempts.outputs.record(self._wire.endpoint.model.name, usage.completion_tokens)
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
            self._limits(exchange.headers)
        if not isinstance(error, errors.Error):
            # KeyboardInterrupt, a killed greenlet, a bug of ours: nothing that the endpoint did.
            self.cancelled(exchange, usage, ttft)
            return
        attempts, call = self._attempts, self._call
        verdict = attempts.retries.classify(error)
        outcome = int(verdict.outcome)
        if isinstance(error, errors.APITimeoutError) and self._cut_by_caller(latency):
            outcome = _core.IGNORED
        call.verdict = verdict
        billed = bool(getattr(error, "maybe_billed", False))
        if usage is None and billed:
            usage = Usage(call.estimate.input_tokens, 0, source="estimated")
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
            usage = Usage(self._call.estimate.input_tokens, 0, source="estimated")
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
        hooks = self._attempts.hooks
        if hooks.wanted:
            hooks.emit(events.EndpointBlocked(endpoint.name, verdict.reason, verdict.block_seconds))

    def _undo(self) -> None:
        with self._lock:
            if self._settled:
                return
            self._settled = True
        self._wire.endpoint.core.undo(self._grant.ticket, self._grant.tokens)
        self._attempts.freed()

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
        with self._lock:
            if self._settled:
                return
            self._settled = True
        attempts, call, wire, grant = self._attempts, self._call, self._wire, self._grant
        endpoint = wire.endpoint
        flags = endpoint.core.finish(grant.ticket, core_outcome, latency, spent_tokens - grant.tokens)
        attempts.freed()
        cost: int | None = 0
        if usage is not None:
            model = endpoint.model
            if model.input_price is None or model.output_price is None:
                cost = None
            else:
                cost = usage.cost_nano(model.input_price, model.output_price, model.cached_input_price)
        else:
            usage = _NOTHING
        status = exchange.status if exchange is not None else None
        request_id = exchange.headers.get("x-request-id") if exchange is not None else None
        if error is not None:
            status = error.status_code if isinstance(error, errors.APIStatusError) else status
            request_id = error.request_id or request_id
        attempt = Attempt(
            next_id(),
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
            bool(getattr(error, "maybe_billed", False)),
            request_id,
            call.request.options.tags,
        )
        call.attempts.append(attempt)
        attempts.ledger.append(attempt)
        hooks = attempts.hooks
        if hooks.wanted:
            hooks.emit(events.AttemptFinished(attempt))
            if flags:
                hooks.emit(events.BreakerChanged(endpoint.name, "open" if flags & 1 else "closed"))


_NOTHING = Usage(source="none")


def _answer_chars(completion: Completion) -> int:
    """Characters that the model wrote, in all choices, tool arguments among them."""
    chars = 0
    for choice in completion.choices:
        message = choice.message
        chars += len(message.content or "") + len(message.refusal or "")
        chars += sum(len(call.function.arguments) for call in message.tool_calls or ())
    return chars


class _StreamReader:
    """Chunks out of an exchange, with the stream's clocks."""

    def __init__(
        self, exchange: Exchange, wire: Wire, call: Call, idle_timeout: float, ping_timeout: float
    ) -> None:
        self._exchange = exchange
        self._idle_timeout = idle_timeout
        self._ping_timeout = ping_timeout
        self._wire = wire
        self._pieces = exchange.pieces()
        self._events = sse.Decoder()
        self.decoder: StreamDecoder = wire.format.stream(call.request, wire.target)
        self._call = call
        self._progress = time.monotonic()
        self._ended = False

    def head(self) -> list[Chunk]:
        """The chunks up to the first one with content."""
        if check_content_type(self._exchange.headers, True) == "json":
            self._not_a_stream()
        found: list[Chunk] = []
        for chunks in self.batches():
            found += chunks
            if any(chunk.has_content for chunk in chunks):
                return found
        return found

    def batches(self) -> Iterator[list[Chunk]]:
        """The chunks of each piece that arrives, until the stream has properly ended.

        Raises:
            errors.APIError: it broke, or sent an error, or ended without a finish reason.
        """
        decoder = self.decoder
        while not self._ended:
            piece = next(self._pieces, None)
            now = time.monotonic()
            if piece is None:
                self._ended = True
                parsed = self._events.end()
            else:
                parsed = self._events.feed(piece)
            chunks: list[Chunk] = []
            for event in parsed:
                chunks += decoder.feed(event)
                if decoder.done:
                    break
            if parsed:
                self._progress = now
            self._extend(now)
            if decoder.done and not self._ended:
                self._ended = True
                self._exchange.drain(self._pieces)
            if chunks:
                yield chunks
        decoder.end()

    def _extend(self, now: float) -> None:
        self._exchange.extend(
            min(self._call.deadline, now + self._idle_timeout, self._progress + self._ping_timeout)
        )

    def _not_a_stream(self) -> None:
        """Raises what one JSON document in place of a stream stands for: mostly an error in a 200."""
        self._wire.format.decode(self._exchange.body(), self._call.request, self._wire.target)
        raise errors.UpstreamProtocolError(
            "the provider answered a streamed request in one piece", maybe_billed=True
        )


class Stream:
    """A streamed answer: iterate over its chunks, or leave early with `close` (or a ``with`` block).

    ``usage`` and ``route`` are set once it has ended; ``route`` says where it is served from the start.

    Raises while iterating:
        errors.StreamInterrupted: or one of its kinds, when the stream breaks after content was handed out.
        errors.DeadlineExceeded: when the call's own deadline cuts it.

    Thread safety: one thread iterates; `close` may be called from any, and a stream that is dropped without
    being closed gives its connection and permits back when it is collected.
    """

    def __init__(
        self, sending: _Sending, exchange: Exchange, reader: _StreamReader, head: list[Chunk], ttft: float
    ) -> None:
        self._sending = sending
        self._exchange = exchange
        self._reader = reader
        self._ttft = ttft
        self._ready = iter(head)
        self._batches = reader.batches()
        self._ended = False
        self.usage: Usage | None = None
        self.route: Route = sending.call.route(sending.wire, time.monotonic(), ttft=ttft)

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        while True:
            chunk = next(self._ready, None)
            if chunk is not None:
                return chunk
            if self._ended:
                raise StopIteration
            try:
                batch = next(self._batches, None)
            except BaseException as error:
                raise self._broke(error) from None
            if batch is None:
                self._finish()
                raise StopIteration
            self._ready = iter(batch)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        sending = getattr(self, "_sending", None)
        if sending is not None and not sending.settled:
            self.close()

    @property
    def text(self) -> str:
        """The content so far, of the first choice."""
        return self._reader.decoder.text

    def close(self) -> None:
        """Ends it early: the connection is shut, permits go back, the ledger says ``client_cancelled``."""
        if self._sending.settled:
            return
        self._ended = True
        self._sending.cancelled(self._exchange, self._spent(), self._ttft)
        self._close_books()

    def completion(self) -> Completion:
        """The whole answer as one completion, once the stream has ended."""
        if not self._ended or self.usage is None:
            raise errors.Error("the stream has not ended yet")
        return self._reader.decoder.completion().with_route(self.route, self.usage)

    def _finish(self) -> None:
        self._ended = True
        usage = self._reader.decoder.usage
        self.usage = (
            usage if usage is not None else self._sending.estimated_usage(self._reader.decoder.output_chars)
        )
        self._exchange.close()
        self._sending.succeeded(self.usage, self._exchange, self._sending.elapsed(), self._ttft)
        self._close_books()

    def _broke(self, error: BaseException) -> BaseException:
        closed_elsewhere = self._sending.settled
        self._ended = True
        usage = self._spent()
        shown: BaseException = error
        if isinstance(error, errors.Error):
            kind: type[errors.StreamInterrupted] = errors.StreamInterrupted
            if isinstance(error, errors.APITimeoutError):
                kind = errors.StreamStalled
            elif isinstance(error, errors.UpstreamTruncated):
                kind = errors.StreamTruncated
            shown = kind(
                f"the stream from {self._sending.wire.endpoint.name} broke off: {error}",
                partial_text=self.text,
                usage=usage,
                request_id=error.request_id,
            )
            if isinstance(error, errors.APITimeoutError) and time.monotonic() >= self._sending.call.deadline:
                shown = errors.DeadlineExceeded("the call's deadline passed while the answer was streaming")
        if closed_elsewhere:
            shown = errors.StreamInterrupted(
                "the stream was closed by another thread", partial_text=self.text
            )
        else:
            error_billed = error
            if isinstance(error_billed, errors.APIError):
                error_billed.maybe_billed = True
            self._sending.failed(error, self._exchange, usage=usage, ttft=self._ttft)
            self._close_books()
        if isinstance(shown, errors.Error):
            shown.attempts = tuple(self._sending.call.attempts)
        return shown

    def _spent(self) -> Usage:
        """What a stream that ended early has cost, by its own figures or by the text that came."""
        usage = self._reader.decoder.usage
        return (
            usage if usage is not None else self._sending.estimated_usage(self._reader.decoder.output_chars)
        )

    def _close_books(self) -> None:
        if self.usage is None:
            self.usage = self._spent()
        self.route = self._sending.call.route(self._sending.wire, time.monotonic(), ttft=self._ttft)
