"""One attempt at one endpoint: send, decode, settle, for plain and for streamed answers.

`dispatch.py` decides whether there is another attempt. `settlement.py` releases what an attempt holds.
"""

from __future__ import annotations

from typing import TypeVar

from fastroute import errors
from fastroute.config import Policy
from fastroute.providers.wordings import BROKEN_OFF, FILTERED, broken_off
from fastroute.transport import Exchange
from fastroute.types import Completion, Extras, Usage

from .call import Call, Grant
from .settlement import Settlement, Sinks
from .stream import Stream, StreamReader
from .upstream import Upstream

_Answer = TypeVar("_Answer", bound="Completion | Stream")


class Attempts:
    """Makes attempts.

    Thread safety: all methods; it has no mutable state.
    """

    def __init__(self, policy: Policy, sinks: Sinks) -> None:
        self._policy = policy
        self.sinks = sinks

    # ------------------------------------------------------------------------------------------ plain answers

    def complete(self, call: Call, upstream: Upstream, grant: Grant) -> Completion:
        """Sends the request and returns the complete answer, with its route.

        Raises:
            errors.APIError: the attempt failed; ``call.verdict`` says what may be tried next.
            Superseded: another attempt of the call finished first.
        """
        settlement = Settlement(self.sinks, call, upstream, grant)
        # A configured limit ends the attempt even if no other endpoint is ready.
        own = upstream.endpoint.provider.timeout
        exchange = None
        usage: Usage | None = None
        try:
            exchange = settlement.open(False, own or call.estimate.timeout, movable=own is None)
            body = exchange.body()
            settlement.check_status(exchange, body)
            completion = upstream.format.decode(body, call.request, upstream.target)
            # The usage before the check: an answer that fails it is charged all the same.
            usage = completion.usage
            if usage is None:
                usage = settlement.estimated_usage(_answer_chars(completion))
            # The check before `win`: an empty answer must not end a hedge that may bring a good one. And the
            # latency before it, because `win` settles the other attempt, which takes time.
            _check(completion)
            latency = settlement.elapsed()
            settlement.win(usage)
            settlement.took(latency)
            if call.request.extras is not None:
                _show_head(call.request.extras, exchange)
            now = settlement.succeeded(usage, exchange, latency)
        except BaseException as error:  # Ctrl-C and killed greenlets too: the permit must go back
            settlement.failed(error, exchange, usage=usage)
            raise
        return completion.with_route(call.route(upstream.endpoint, now), usage)

    def judged(self, call: Call, completion: _Answer) -> _Answer:
        """The answer, after the caller's check if there is one; a stream is not checked.

        Call it after the attempt is settled, since validation may take long.

        Raises:
            errors.ValidationError: the answer failed; the error has the answer.
        """
        if isinstance(completion, Stream):
            return completion
        validator = call.validator
        route = completion.route
        assert route is not None
        model, tier = route.model, route.tier
        if validator is None:
            self.sinks.rates.record(model, tier, True)
            return completion
        reason = validator.judge(completion)
        self.sinks.rates.record(model, tier, True, reason is None)
        if reason is not None:
            raise errors.ValidationError(
                f"the answer failed validation: {reason}", completion=completion, reason=reason
            )
        return completion

    # ------------------------------------------------------------------------------------------------ streams

    def stream(self, call: Call, upstream: Upstream, grant: Grant) -> Stream:
        """Sends the request and returns the stream when its first content has arrived.

        Until then the caller has received nothing, so a failure is that of an ordinary attempt.

        Raises:
            errors.APIError, Superseded: as for `complete`.
        """
        settlement = Settlement(self.sinks, call, upstream, grant)
        scale = call.estimate.prompt_scale
        core, own = upstream.endpoint.core, upstream.endpoint.provider.timeout
        reasoning = call.estimate.reasoning
        limit = own or core.ttft_timeout(reasoning) * scale or call.estimate.timeout
        policy = self._policy
        exchange = None
        usage: Usage | None = None
        try:
            exchange = settlement.open(True, limit, movable=own is None)
            if exchange.status != 200:
                settlement.check_status(exchange, exchange.body())
            reader = StreamReader(exchange, upstream, call, policy.idle_timeout, policy.ping_timeout)
            head = reader.head()
            if not reader.said:
                usage = reader.decoder.usage
                _check(reader.decoder.completion())
            ttft = settlement.elapsed()
            settlement.win(None)
            settlement.took(ttft)
            if call.request.extras is not None:
                _show_head(call.request.extras, exchange)
        except BaseException as error:
            settlement.failed(error, exchange, usage=usage)
            raise
        settlement.begun()
        # Now and not at the stream's end, which may be minutes away: other calls wait for a probe's result.
        settlement.began()
        core.record_ttft(ttft / scale, reasoning)
        return Stream(settlement, exchange, reader, head, ttft)


def _show_head(extras: Extras, exchange: Exchange) -> None:
    """Gives the caller status and headers of the response, if the call asks for them."""
    if extras.answered is not None:
        extras.answered(exchange.status, exchange.headers)


def _check(completion: Completion) -> None:
    """Raises if the answer is unusable: broken off by the provider, or empty.

    An empty answer that reached the output limit is valid: the model used its tokens for hidden reasoning.
    """
    usage, filtered = completion.usage, False
    for choice in completion.choices:
        reason = choice.finish_reason
        if reason and reason.lower() in BROKEN_OFF:
            raise broken_off(reason)
    for choice in completion.choices:
        reason = choice.finish_reason
        if choice.message.content or not choice.message.is_empty:
            return
        if reason == "length" and usage is not None and usage.completion_tokens:
            return
        filtered = filtered or (reason or "").lower() in FILTERED
    if filtered:
        raise errors.ContentFilterError(
            "the content filter removed the whole answer", code="content_filter", maybe_billed=True
        )
    raise errors.EmptyResponse("the answer is empty", maybe_billed=True)


def _answer_chars(completion: Completion) -> int:
    """Characters that the model wrote, in all choices, including tool arguments."""
    chars = 0
    for choice in completion.choices:
        message = choice.message
        chars += len(message.content or "") + len(message.refusal or "")
        for call in message.tool_calls or ():
            chars += len(call.function.arguments if call.custom is None else call.custom.input)
    return chars
