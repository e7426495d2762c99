"""What Anthropic alone does to a router: its errors, its pings, the order of its events.

The numbers are the catalogue's. What holds for every format is in `test_stream_faults`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from loopback import MODEL, Loopback, within
from spoken import Anthropic, framed, streamed

import fastroute
from fastroute.testing import Fault, Received

Start = Callable[..., Loopback]

LONG = "the first words and many more of them"
SPOKEN = Anthropic()
PING = b'event: ping\ndata: {"type": "ping"}\n\n'


@pytest.fixture
def start(start: Start) -> Start:
    return partial(start, format="anthropic")


def text_of(stream: fastroute.Stream) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def event(kind: str, **fields: Any) -> bytes:
    return framed([SPOKEN.event(kind, **fields)])


# ------------------------------------------------------------------------------------------------ answers


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize(
    ("fault", "error", "status"),
    [
        pytest.param(Fault.error("overloaded"), "InternalServerError", 529, id="023-overloaded"),
        pytest.param(Fault.error("server_error"), "InternalServerError", 500, id="023-server-error"),
        pytest.param(Fault.error("rate_limit_exceeded"), "RateLimitError", 429, id="076-throttled"),
        pytest.param(Fault.error("insufficient_quota"), "QuotaExceededError", 429, id="077-spend-limit"),
        pytest.param(Fault.error("credit_balance_exhausted"), "QuotaExceededError", 400, id="077-credit"),
        pytest.param(Fault.status(402), "QuotaExceededError", 402, id="077-billing"),
        pytest.param(Fault.error("invalid_api_key"), "AuthenticationError", 401, id="019-key"),
        pytest.param(Fault.status(403), "PermissionDeniedError", 403, id="019-permission"),
        pytest.param(Fault.status(504), "InternalServerError", 504, id="023-timeout"),
    ],
)
def test_another_endpoint_takes_over(
    start: Start, fault: Fault, error: str, status: int, stream: bool
) -> None:
    loop = start(2)
    loop.provider("a").script(fault)
    if stream:
        made = loop.stream(LONG)
        assert text_of(made) == LONG
        route = made.route
    else:
        reply = loop.ask(LONG)
        assert reply.text == LONG
        assert reply.route is not None
        route = reply.route
    assert route.endpoint == f"b/{MODEL}"
    failed = route.attempts[0]
    assert (failed.error, failed.status_code) == (error, status)
    assert str(failed.request_id).startswith("req_")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        pytest.param(
            Fault.error("context_length_exceeded"), fastroute.ContextLengthExceeded, id="021-context"
        ),
        pytest.param(Fault.error("content_filter"), fastroute.ContentFilterError, id="022-filter"),
        pytest.param(Fault.status(400), fastroute.BadRequestError, id="400"),
        pytest.param(Fault.status(413), fastroute.ContextLengthExceeded, id="025-too-large"),
    ],
)
def test_the_caller_s_own_making_goes_no_further(
    start: Start, fault: Fault, kind: type[fastroute.Error]
) -> None:
    loop = start(2)
    loop.provider("a").script(fault)
    with pytest.raises(kind) as caught:
        loop.ask(LONG)
    assert type(caught.value) is kind
    assert loop.provider("b").received == 0
    assert loop.endpoint("a")["failed"] == 0


def test_067_limits_in_anthropic_s_headers_are_heeded(start: Start) -> None:
    headers = {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": "2025-08-21T12:40:59Z",
        "date": "Thu, 21 Aug 2025 12:40:39 GMT",
    }
    loop = start(2, providers={"a": {"rpm": 600, "burst": 100}})
    loop.provider("a").script(Fault.headers(headers))
    assert loop.endpoint("a")["available_requests"] >= 99
    loop.ask(LONG)
    assert loop.endpoint("a")["available_requests"] <= 1


# ------------------------------------------------------------------------------------------------ streams


def test_042_pings_as_events_are_no_progress_either(start: Start) -> None:
    loop = start(2, policy={"ping_timeout": 0.2})
    loop.provider("a").script(
        Fault.pings(0.02, data=PING), Fault.pings(0.02, after=3, data=PING), Fault.pings(0.02, 5, data=PING)
    )
    stream = loop.stream(LONG)
    assert text_of(stream) == LONG
    assert [attempt.error for attempt in stream.route.attempts] == ["APITimeoutError", None]
    with within(0.2), pytest.raises(fastroute.StreamStalled):
        text_of(loop.stream(LONG))
    assert text_of(loop.stream(LONG)) == LONG


@pytest.mark.parametrize("after", [0, 1])
def test_047_overloaded_before_the_first_word(start: Start, after: int) -> None:
    loop = start(2)
    loop.provider("a").script(Fault.stream_error(after, "overloaded"))
    stream = loop.stream(LONG)
    assert text_of(stream) == LONG
    failed, _ = stream.route.attempts
    assert (failed.error, failed.status_code) == ("InternalServerError", 529)


def test_048_overloaded_after_it(start: Start) -> None:
    loop = start(2)
    loop.provider("a").script(Fault.stream_error(3, "overloaded"))
    with pytest.raises(fastroute.StreamInterrupted, match="overloaded_error") as caught:
        text_of(loop.stream(LONG))
    assert caught.value.partial_text == LONG[:8]
    assert loop.provider("b").received == 0


OUT_OF_ORDER = [
    pytest.param(
        event("content_block_delta", index=5, delta={"type": "text_delta", "text": "x"}), id="delta"
    ),
    pytest.param(event("content_block_start", index=7, content_block={"type": "text"}), id="gap"),
    pytest.param(event("content_block_stop", index=3), id="stop"),
]


@pytest.mark.parametrize("wrong", OUT_OF_ORDER)
def test_055_events_out_of_order(start: Start, wrong: bytes) -> None:
    loop = start(2)
    begun = framed(SPOKEN.begin())
    rest = framed(SPOKEN.finish(), SPOKEN.end())
    loop.provider("a").script(
        streamed(wrong),
        streamed(begun + wrong + rest),
        Fault.events(begun + framed(SPOKEN.text("said")), wrong + rest),
    )
    for _ in range(2):
        stream = loop.stream(LONG)
        assert text_of(stream) == LONG
        assert [attempt.error for attempt in stream.route.attempts] == ["UpstreamProtocolError", None]
    with pytest.raises(fastroute.StreamInterrupted) as caught:
        text_of(loop.stream(LONG))
    assert caught.value.partial_text == "said"


def test_055_a_missing_message_stop_is_a_cut_stream(start: Start) -> None:
    loop = start(1)
    loop.provider().script(Fault.no_done())
    with pytest.raises(fastroute.StreamTruncated) as caught:
        text_of(loop.stream(LONG))
    assert caught.value.partial_text == LONG
    (attempt,) = loop.attempts
    assert attempt.usage_source == "provider"  # what was counted is paid for
    assert loop.endpoint()["failed"] == 1


def test_055_usage_is_replaced_not_added(start: Start) -> None:
    loop = start(1)
    counts = [
        event("message_delta", delta={"stop_reason": None}, usage={"output_tokens": tokens})
        for tokens in (4, 9)
    ]
    body = framed(SPOKEN.begin(20), SPOKEN.text("said")) + b"".join(counts)
    loop.provider().script(streamed(body + framed(SPOKEN.finish(20, 12), SPOKEN.end())))
    stream = loop.stream(LONG)
    assert text_of(stream) == "said"
    assert stream.usage is not None
    assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (20, 12)


def test_063_events_and_deltas_of_the_future_are_passed_over(start: Start) -> None:
    loop = start(1)
    odd = event("of_the_future", x=1)
    odd += event("content_block_delta", index=0, delta={"type": "of_the_future_delta", "x": 1})
    body = framed(SPOKEN.begin()) + odd + framed(SPOKEN.text("said")) + odd
    loop.provider().script(streamed(body + framed(SPOKEN.finish(), SPOKEN.end())))
    assert text_of(loop.stream(LONG)) == "said"


def test_036_usage_that_is_none_is_estimated(start: Start) -> None:
    loop = start(1)
    loop.provider().script(
        *[Fault.usage(value) for value in (None, {"input_tokens": -1, "output_tokens": 2})]
    )
    for _ in range(2):
        reply = loop.ask(LONG)
        assert reply.usage is not None
        assert reply.usage.source == "estimated"
        assert reply.usage.completion_tokens > 0


def test_no_key_is_repeated(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "local-" + "x" * 30
    monkeypatch.setenv("LOCAL_KEY", key)

    def repeat(request: Received) -> Fault:
        error = {
            "type": "authentication_error",
            "message": f"invalid x-api-key: {request.headers['x-api-key']}",
        }
        return Fault.status(401, {"type": "error", "error": error})

    loop = start(1, providers={"a": {"api_key_env": "LOCAL_KEY"}})
    loop.provider().script(repeat)
    with pytest.raises(fastroute.Error) as caught:
        loop.ask(LONG)
    assert key not in str(caught.value)
    assert key not in repr(caught.value)
