"""One attempt at one endpoint: send, decode, settle, for whole and for streamed answers.

Whether there is another attempt is decided in `dispatch.py`; what an attempt gives back is in
`settlement.py`.
"""

from __future__ import annotations

from fastroute import errors
from fastroute.config import Policy
from fastroute.providers.wordings import BROKEN_OFF, FILTERED, broken_off
from fastroute.types import Completion, Usage

from .call import Call, Grant
from .settlement import Settlement, Sinks
from .stream import Stream, StreamReader
from .upstream import Upstream


class Attempts:
    """Makes attempts.

    Thread safety: all methods; it holds no state of its own.
    """

    def __init__(self, policy: Policy, sinks: Sinks) -> None:
        self._policy = policy
        self.sinks = sinks

    # ------------------------------------------------------------------------------------------ plain answers

    def complete(self, call: Call, upstream: Upstream, grant: Grant) -> Completion:
        """Sends the request and returns the whole answer, with its route.

        Raises:
            errors.APIError: the attempt failed; ``call.verdict`` says what may be done about it.
            Superseded: another attempt of the call was quicker.
        """
        settlement = Settlement(self.sinks, call, upstream, grant)
        own = upstream.endpoint.provider.timeout  # configured, so it ends the attempt in any case
        exchange = None
        usage: Usage | None = None
        try:
            exchange = settlement.open(False, own or call.estimate.timeout, movable=own is None)
            body = exchange.body()
            settlement.check_status(exchange, body)
            completion = upstream.format.decode(body, call.request, upstream.target)
            usage = completion.usage
            if usage is None:
                usage = settlement.estimated_usage(_answer_chars(completion))
            _check(completion)
            latency = settlement.elapsed()
            settlement.win(usage)
            settlement.took(latency)
            now = settlement.succeeded(usage, exchange, latency)
        except BaseException as error:
            settlement.failed(error, exchange, usage=usage)
            raise
        return completion.with_route(call.route(upstream.endpoint, now), usage)

    def judge(self, call: Call, completion: Completion) -> None:
        """Holds an answer to the caller's check, once its attempt is settled: no permit should wait for that.

        Raises:
            errors.ValidationError: it failed; the error carries the answer.
        """
        validator = call.validator
        route = completion.route
        assert route is not None
        model, tier = route.model, route.tier
        if validator is None:
            self.sinks.rates.record(model, tier, True)
            return
        reason = validator.judge(completion)
        self.sinks.rates.record(model, tier, True, reason is None)
        if reason is not None:
            raise errors.ValidationError(
                f"the answer failed its check: {reason}", completion=completion, reason=reason
            )

    # ------------------------------------------------------------------------------------------------ streams

    def stream(self, call: Call, upstream: Upstream, grant: Grant) -> Stream:
        """Sends the request and returns the stream once its first content is there.

        Until then nothing has been handed out, so a failure is an ordinary failed attempt.

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
        except BaseException as error:
            late = isinstance(error, errors.APITimeoutError) and (exchange is not None or error.maybe_billed)
            if late and not settlement.settled:  # it is, where another attempt of the call has cut it
                # It would have taken at least that long: else the limit could not learn from what it cuts.
                core.record_ttft(settlement.elapsed() / scale, reasoning)
                core.record_ttft_timeout(reasoning)
            settlement.failed(error, exchange, usage=usage)
            raise
        settlement.begun()
        settlement.began()
        core.record_ttft(ttft / scale, reasoning)
        return Stream(settlement, exchange, reader, head, ttft)


def _check(completion: Completion) -> None:
    """Raises if the answer is none: broken off by the provider, or with nothing in it.

    An answer of which the output limit left nothing is one: the model was at work, on what it does not show.
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
            "the content filter left nothing of the answer", code="content_filter", maybe_billed=True
        )
    raise errors.EmptyResponse("the answer has nothing in it", maybe_billed=True)


def _answer_chars(completion: Completion) -> int:
    """Characters that the model wrote, in all choices, tool arguments among them."""
    chars = 0
    for choice in completion.choices:
        message = choice.message
        chars += len(message.content or "") + len(message.refusal or "")
        chars += sum(len(call.function.arguments) for call in message.tool_calls or ())
    return chars
