"""A streamed answer: its chunks, its time limits, and closing it early.

A stream keeps the permits of its attempt until it ends; `settlement.py` releases them. The wire format turns
events into chunks.

Three threads may end a stream: the one that iterates, one that calls `close`, and the timer thread at the
call's deadline. Settling happens once; which of them was first shows in `Stream._ended` and
`Stream._failure`.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from types import TracebackType
from typing import TYPE_CHECKING, Any

from attrs import evolve

from fastroute import _core, errors, events
from fastroute.config.messages import did_you_mean
from fastroute.platform.timer import Alarm
from fastroute.providers import sse
from fastroute.providers.base import StreamDecoder, check_content_type
from fastroute.transport import Exchange
from fastroute.types import Chunk, Completion, Route, Usage

from .call import Call
from .settlement import Settlement
from .upstream import Upstream


class StreamReader:
    """Reads the chunks of a stream and sets its time limits."""

    def __init__(
        self, exchange: Exchange, upstream: Upstream, call: Call, idle_timeout: float, ping_timeout: float
    ) -> None:
        self._exchange = exchange
        self._idle_timeout = idle_timeout
        self._ping_timeout = ping_timeout
        self._upstream = upstream
        self._pieces = exchange.pieces()
        self._events = sse.Decoder(exchange.limit, exchange.limit)
        self.decoder: StreamDecoder = upstream.format.stream(call.request, upstream.target)
        self._call = call
        self._progress = time.monotonic()
        self.ended = False
        self._begun = False  # content has arrived; before, only the attempt's limit and deadline count
        self.paused = False  # the program has all chunks so far; nothing is read until it asks for more
        self._failure: errors.APIError | None = None  # raised after the chunks before it
        self.said = False  # whether there was content in the head

    def head(self) -> list[Chunk]:
        """The chunks up to the first one with content; all of them if none has any."""
        if check_content_type(self._exchange.headers, True) == "json":
            self._look_at_json()
        found: list[Chunk] = []
        for chunks in self.batches():
            found += chunks
            if any(chunk.has_content for chunk in chunks):
                self.said = True
                break
        self._begun = True
        if not self.ended:
            self._pause()
        return found

    def batches(self) -> Iterator[list[Chunk]]:
        """The chunks of each piece that arrives, until the stream has properly ended.

        Raises:
            errors.APIError: if it broke, sent an error, or ended without a finish reason.
        """
        decoder = self.decoder
        while not self.ended and self._failure is None:
            # The time since was the program's and not the provider's, so the idle clock starts anew.
            if self.paused:
                self.paused = False
                self._progress = time.monotonic()
                if self._progress >= self._call.deadline:
                    raise errors.DeadlineExceeded(
                        "the call's deadline passed while its answer was being read"
                    )
                self._extend(self._progress)
            try:
                piece = next(self._pieces, None)
            except errors.APIConnectionError as error:
                yield from self._last(error)
                return
            if piece is None:
                self.ended = True
                parsed = self._events.end()
            else:
                parsed = self._events.feed(piece)
            chunks: list[Chunk] = []
            try:
                for event in parsed:
                    chunks += decoder.feed(event)
                    if decoder.done:
                        break
            except errors.APIError as error:
                # A last event that the end has cut is no error by itself: `decoder.end` decides below whether
                # enough came before it.
                if not (self.ended and isinstance(error, errors.UpstreamProtocolError)):
                    self._failure = error
            # The format's end has come before the connection's: what is left is read so that the connection
            # can be used again.
            if decoder.done and not self.ended:
                self.ended = True
                self._exchange.drain(self._pieces)
            if chunks:
                if self._begun and not self.ended:
                    self._pause()
                yield chunks  # before raising a failure: which piece it came in depends on the network
            elif not self.ended:
                now = time.monotonic()
                if any(event.event != "ping" for event in parsed):  # a ping shows life but not progress
                    self._progress = now
                if self._begun:
                    self._extend(now)
        if self._failure is not None:
            raise self._failure
        yield from self._last()

    @property
    def forgiven(self) -> list[str]:
        """Tolerated defects of a complete stream; see `events.StreamForgiven`."""
        found = {"missing_done": not self.decoder.done, "invalid_utf8": self._events.replaced}
        return [kind for kind, present in found.items() if present]

    def _last(self, broken: errors.Error | None = None) -> Iterator[list[Chunk]]:
        """The chunks that only the end brings.

        Args:
            broken: how the connection ended; it is raised if the answer is not complete, and changes nothing
                if all was said before it.
        """
        if broken is not None and self.decoder.goes_on:
            raise broken
        try:
            chunks = list(self.decoder.end() or ())  # a decoder of a registered format may return None
        except errors.UpstreamProtocolError:
            if broken is None:
                raise
            raise broken from None
        self.ended = True
        if chunks:
            yield chunks

    def _pause(self) -> None:
        # While the program has the chunks, only the call's deadline runs.
        self.paused = True
        self._exchange.extend(self._call.deadline)

    def _extend(self, now: float) -> None:
        self._exchange.extend(
            min(self._call.deadline, now + self._idle_timeout, self._progress + self._ping_timeout)
        )

    def _look_at_json(self) -> None:
        """Raises what one JSON document in place of a stream stands for: mostly an error in a 200.

        Some servers label a stream of events as JSON; what begins with neither a brace nor a bracket is one,
        and is left to be read.
        """
        begin = b""
        for piece in self._pieces:
            begin += piece
            # A byte order mark may come alone, and says nothing of what follows.
            if begin.removeprefix(sse.BOM).strip() or len(begin) > 65536:
                break
        if begin.removeprefix(sse.BOM).lstrip()[:1] not in (b"{", b"[", b""):
            self._pieces = chain([begin], self._pieces)
            return
        body = b"".join([begin, *self._pieces])
        self._upstream.format.decode(body, self._call.request, self._upstream.target)
        raise errors.UpstreamProtocolError(
            "the provider answered a streamed request in one piece", maybe_billed=True
        )


def _weak(method: Callable[[], None], otherwise: Callable[[], None]) -> Callable[[], None]:
    """Calls a bound method if its object is alive, without keeping it alive, and else another function."""
    known = weakref.WeakMethod(method)

    def call() -> None:
        found = known()
        (otherwise if found is None else found)()

    return call


def _settle_lost(settlement: Settlement, exchange: Exchange) -> None:
    """Settles the attempt of a stream that is gone and could not do so, for want of stack or memory."""
    if not settlement.settled:
        settlement.cancelled(exchange, None)


class Stream:
    """A streamed answer: iterate over its chunks, or end it early with `close` (or a ``with`` block).

    ``usage`` is set when it has ended. ``route`` names the endpoint from the start, and has all figures when
    it has ended.

    Raises while iterating:
        errors.StreamInterrupted: or a subclass, if the stream breaks after its first content.
        errors.DeadlineExceeded: if the call's deadline passes.

    Thread safety: one thread iterates; `close` may be called from any thread. A stream that is dropped
    without being closed releases its connection and permits when it is collected.
    """

    def __init__(
        self, settlement: Settlement, exchange: Exchange, reader: StreamReader, head: list[Chunk], ttft: float
    ) -> None:
        self._settlement = settlement
        self._exchange = exchange
        self._reader = reader
        self._ttft = ttft
        self._ready = iter(head)
        self._batches = reader.batches()
        self._ended = False
        self._pid = os.getpid()
        self.usage: Usage | None = None
        self.route: Route = settlement.call.route(settlement.upstream.endpoint, time.monotonic(), ttft=ttft)
        self._failure: errors.DeadlineExceeded | None = None
        # The alarm refers to the stream weakly: otherwise a stream that the program drops would live, with
        # its permits, until the deadline.
        lost = partial(_settle_lost, settlement, exchange)
        self._alarm = Alarm(settlement.call.deadline, _weak(self._deadline_passed, lost))
        self._alarm.start()
        # From here on this object settles the attempt. Last: if anything above fails, its call does.
        settlement.hand_out()

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        while True:
            chunk = next(self._ready, None)
            if chunk is not None:
                return chunk
            if self._failure is not None:
                raise self._failure
            if self._ended:
                raise StopIteration
            # Before anything is read: a stream that could not be settled here is read by a less nested call.
            _core.check_stack()
            try:
                batch = next(self._batches, None)
            except BaseException as error:
                raise self._broke(error) from None
            if batch is None:
                if not self._ended:  # else another thread has closed it
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
        settlement = getattr(self, "_settlement", None)
        if settlement is not None and not settlement.settled:
            try:
                self.close()
            except RecursionError:
                # Dropped where the stack has no room: closed by the timer thread, whose stack is empty.
                Alarm(0.0, self.close).start()
                return
        alarm = getattr(self, "_alarm", None)
        if alarm is not None:  # still set if an interrupt came while the stream was ending
            alarm.cancel()

    # Hidden from type checkers, which would take every name for an attribute.
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in ("choices", "message", "content"):
                raise AttributeError(
                    f"'Stream' has no attribute {name!r}: iterate over its chunks, or leave out stream=True"
                )
            known = [each for each in (*dir(type(self)), "usage", "route") if not each.startswith("_")]
            hint = "" if name.startswith("_") else did_you_mean(name, known)
            raise AttributeError(f"'Stream' has no attribute {name!r}{hint}")

    @property
    def deadline(self) -> float:
        """The call's deadline (time.monotonic), at which the stream ends."""
        return self._settlement.call.deadline

    @property
    def text(self) -> str:
        """The content so far, of the first choice."""
        return self._reader.decoder.text

    @property
    def snapshot(self) -> Completion:
        """The answer as far as it has arrived, which may be further than the chunks that were handed out."""
        return self._reader.decoder.completion().with_route(self.route, self.usage)

    def close(self) -> None:
        """Ends the stream early: shuts the connection and settles the attempt as ``client_cancelled``."""
        self._ready = iter(())
        if self._settlement.settled or self._pid != os.getpid():
            return  # a copy in a forked child leaves connection and permits to the parent
        _core.check_stack()
        # Before the connection is shut, which wakes a thread that is iterating: it sees that it was closed.
        self._ended = True
        self._settlement.cancelled(self._exchange, self._spent(), self._ttft)
        self._close_books("client_cancelled")

    def completion(self) -> Completion:
        """The whole answer as one completion, after the stream has ended."""
        if not self._ended or self.usage is None:
            raise errors.Error("the stream has not ended yet")
        return self._reader.decoder.completion().with_route(self.route, self.usage)

    def _finish(self) -> None:
        self._ended = True
        usage = self._reader.decoder.usage
        self.usage = usage if usage is not None else self._estimated()
        self._exchange.close()
        self._settlement.succeeded(self.usage, self._exchange, self._settlement.elapsed(), self._ttft)
        endpoint, hooks = self._settlement.upstream.endpoint, self._settlement.hooks
        for kind in self._reader.forgiven:
            endpoint.forgive(kind)
            if hooks.wanted:
                hooks.emit(events.StreamForgiven(endpoint.name, kind))
        self._close_books()

    def _deadline_passed(self) -> None:
        """Ends a stream that the program is not reading, so that it holds no permit and money any longer.

        Called by the timer thread.
        """
        settlement = self._settlement
        if settlement.settled:
            return
        if self._reader.ended:  # the whole answer has arrived; only its chunks were not taken yet
            self._finish()
            return
        if not self._reader.paused:
            return  # it is being read: its own thread fails at the same deadline
        failure = errors.DeadlineExceeded("the call's deadline passed while its answer was not being read")
        self._failure, self._ended = failure, True
        settlement.cancelled(self._exchange, self._spent(), self._ttft)
        self._close_books(type(failure).__name__)
        failure.attempts = tuple(settlement.call.attempts)

    def _broke(self, error: BaseException) -> BaseException:
        if self._failure is not None:
            return self._failure
        closed_elsewhere = self._ended  # `close` sets it before it shuts the connection
        self._ended = True
        usage = self._spent()
        shown: BaseException = error
        if isinstance(error, errors.Error) and not isinstance(error, errors.DeadlineExceeded):
            kind: type[errors.StreamInterrupted] = errors.StreamInterrupted
            if isinstance(error, errors.APITimeoutError):
                kind = errors.StreamStalled
            elif isinstance(error, errors.UpstreamTruncated):
                kind = errors.StreamTruncated
            shown = kind(
                f"the stream from {self._settlement.upstream.endpoint.name} broke off: {error.message}",
                partial_text=self.text,
                usage=usage,
                request_id=error.request_id,
            )
            if (
                isinstance(error, errors.APITimeoutError)
                and time.monotonic() >= self._settlement.call.deadline
            ):
                shown = errors.DeadlineExceeded("the call's deadline passed while the answer was streaming")
        if closed_elsewhere:
            shown = errors.StreamInterrupted(
                "the stream was closed by another thread", partial_text=self.text
            )
        else:
            # Content has arrived, so the provider may charge for it whatever the error is.
            error_billed = error
            if isinstance(error_billed, errors.APIError):
                error_billed.maybe_billed = True
            self._settlement.failed(error, self._exchange, usage=usage, ttft=self._ttft)
            self._close_books(type(shown).__name__)
        if isinstance(shown, errors.Error):
            shown.attempts = tuple(self._settlement.call.attempts)
        return shown

    def _spent(self) -> Usage:
        """The usage of a stream that ended early: the provider's figures, or estimated from its text.

        Some providers send the usage so far with every chunk. Before the end it is only an estimate.
        """
        usage = self._reader.decoder.usage
        if usage is None:
            return self._estimated()
        return usage if self._reader.decoder.finished else evolve(usage, source="estimated")

    def _estimated(self) -> Usage:
        return self._settlement.estimated_usage(self._reader.decoder.output_chars)

    def _close_books(self, error: str | None = None) -> None:
        self._alarm.cancel()
        if self.usage is None:
            self.usage = self._spent()
        self.route = self._settlement.call.route(
            self._settlement.upstream.endpoint, time.monotonic(), ttft=self._ttft
        )
        hooks = self._settlement.hooks
        if hooks.wanted:
            hooks.emit(events.CallFinished(self.route, error))
