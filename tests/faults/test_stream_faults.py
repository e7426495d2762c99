"""Cases 46 to 59: what can happen to a streamed answer, in every wire format.

The numbers are the catalogue's. What is a format's alone is in a file of its own, what the bytes are is in
`test_stream_bytes`, and which clock cuts when in `test_stream_clocks`.
"""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable
from functools import partial

import pytest
from loopback import MODEL, Loopback, counted, within
from spoken import ALL, BY_FORMAT, Anthropic, OpenAI, Spoken, framed, streamed

import fastroute
from fastroute import events
from fastroute.integrations import wire_openai
from fastroute.testing import Answer, Fault, Provider, Received, StreamStyle

Start = Callable[..., Loopback]

LONG = "the first words and many more of them"
LIMITS = {"tpm": 1, "token_burst": 100_000}
BOOKS = [{"name": "books", "limit": 1000.0, "window": "total"}]
PATIENT = {"failures": 255, "min_calls": 10_000}


def text_of(stream: fastroute.Stream) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


@pytest.fixture(params=ALL, ids=lambda spoken: spoken.format)
def spoken(request: pytest.FixtureRequest) -> Spoken:
    made: Spoken = request.param
    return made


@pytest.fixture
def start(start: Start, spoken: Spoken) -> Start:
    """As everywhere, with providers of the format that the test runs with."""
    return partial(start, format=spoken.format)


def only(format: str) -> pytest.MarkDecorator:
    """For a test of what one format alone has."""
    return pytest.mark.parametrize("spoken", [BY_FORMAT[format]], ids=[format])


# ------------------------------------------------------------------------- before the first content: silence

BEFORE = [
    pytest.param(Fault.status(503), "InternalServerError", id="023-status"),
    pytest.param(Fault.malformed_event(0), "UpstreamTruncated", id="046-half-an-event-first"),
    pytest.param(Fault.malformed_event(1), "UpstreamTruncated", id="046-half-an-event-after-the-role"),
    pytest.param(Fault.insert_event("{nonsense}"), "UpstreamProtocolError", id="046-first-event-broken"),
    pytest.param(Fault.insert_event("{nonsense}", 1), "UpstreamProtocolError", id="046-after-the-role"),
    pytest.param(Fault.stream_error(0), "InternalServerError", id="047-error-first"),
    pytest.param(Fault.stream_error(1), "InternalServerError", id="047-error-after-the-role"),
    pytest.param(Fault.stream_error(0, "rate_limit_exceeded"), "RateLimitError", id="047-throttled"),
    pytest.param(Fault.error_in_200("overloaded"), "InternalServerError", id="017-error-in-200"),
    pytest.param(Fault.html(), "UpstreamProtocolError", id="016-html"),
    pytest.param(Fault.stream_cut(0), "UpstreamTruncated", id="050-nothing"),
    pytest.param(Fault.stream_cut(1), "UpstreamTruncated", id="050-only-the-role"),
    pytest.param(Fault.stream_cut(1, "reset"), "APIConnectionError", id="050-reset-after-the-role"),
    pytest.param(Fault.cut_headers(27), "UpstreamProtocolError", id="006-cut-in-headers"),
    pytest.param(Fault.stream_stall(1), "APITimeoutError", id="058-stall-after-the-role"),
    pytest.param(Fault.black_hole(), "APITimeoutError", id="004-black-hole"),
    pytest.param(Fault.drip(1, 0.05, "headers"), "APITimeoutError", id="005-headers-drip"),
    pytest.param(Fault.stall("headers"), "APITimeoutError", id="004-silent-after-the-headers"),
    pytest.param(Fault.reset("headers"), "APIConnectionError", id="009-reset-after-the-headers"),
]


@pytest.mark.parametrize(("fault", "error"), BEFORE)
def test_the_caller_sees_only_the_winner(start: Start, fault: Fault, error: str) -> None:
    loop = start(
        2,
        providers={"all": LIMITS, "a": {"timeout": 0.4}},
        policy={"idle_timeout": 0.3},
        budgets=BOOKS,
        fastroute={"connect_timeout": 0.4},
    )
    loop.provider("a").script(fault)
    before = loop.endpoint("a")["available_tokens"]
    with within(0.4):
        stream = loop.stream(LONG, max_tokens=1000)
    assert text_of(stream) == LONG
    assert stream.route.endpoint == f"b/{MODEL}"
    failed, answered = stream.route.attempts
    assert (failed.outcome, failed.error) == ("failed", error)
    assert answered.outcome == "ok"
    assert answered.ttft is not None
    loop.provider("a").wait_until(
        lambda provider: provider.received > 0
    )  # which may be slower than the clock
    assert (loop.provider("a").received, loop.provider("b").received) == (1, 1)
    assert loop.endpoint("a")["failed"] == (error != "RateLimitError")
    kept = before - loop.endpoint("a")["available_tokens"]
    # Without a word of the provider's that it failed, it may have worked for all that was asked.
    billed = error not in ("InternalServerError", "RateLimitError")
    assert (failed.maybe_billed, kept >= 1000, kept == 0) == (billed, billed, not billed)
    assert failed.completion_tokens == (1000 if billed else 0)
    (book,) = loop.client.stats()["budgets"]
    assert (book.reserved_nano, book.spent_nano) == (0, counted(stream.route.attempts))


# ---------------------------------------------------------------------------- after it: an error, no failover

AFTER = [
    pytest.param(Fault.malformed_event(3), "StreamTruncated", id="046-half-an-event"),
    pytest.param(Fault.insert_event("{nonsense}", 3), "StreamInterrupted", id="046-broken-event"),
    pytest.param(Fault.stream_error(3), "StreamInterrupted", id="048-error-event"),
    pytest.param(Fault.stream_cut(3), "StreamTruncated", id="050-orderly-end"),
    pytest.param(Fault.stream_cut(3, "close"), "StreamTruncated", id="050-closed"),
    pytest.param(Fault.stream_cut(3, "reset"), "StreamInterrupted", id="050-reset"),
    pytest.param(Fault.stream_stall(3), "StreamStalled", id="058-silence"),
]


@pytest.mark.parametrize(("fault", "error"), AFTER)
def test_what_was_handed_out_is_not_taken_back(start: Start, fault: Fault, error: str) -> None:
    loop = start(2, providers={"all": LIMITS}, policy={"idle_timeout": 0.25}, budgets=BOOKS)
    loop.provider("a").script(fault)
    before = loop.endpoint("a")["available_tokens"]
    stream = loop.stream(LONG, max_tokens=1000)
    got: list[str] = []
    with within(0.3), pytest.raises(fastroute.StreamInterrupted) as caught:  # noqa: PT012
        for piece in stream:
            got += [choice.delta.content or "" for choice in piece.choices]
    assert type(caught.value).__name__ == error
    assert "".join(got) == LONG[:8]
    assert caught.value.partial_text == LONG[:8]
    assert caught.value.usage is not None
    assert caught.value.usage.source == "estimated"
    assert caught.value.usage.completion_tokens > 0
    assert (loop.provider("a").received, loop.provider("b").received) == (1, 0)
    (attempt,) = caught.value.attempts
    assert (attempt.outcome, attempt.maybe_billed, attempt.usage_source) == ("failed", True, "estimated")
    assert attempt.cost_nano
    (book,) = loop.client.stats()["budgets"]
    assert (book.reserved_nano, book.spent_nano) == (0, attempt.budget_nano)  # it may have been written whole
    assert before - loop.endpoint("a")["available_tokens"] >= 1000
    assert loop.endpoint("a")["failed"] == 1
    with pytest.raises(StopIteration):
        next(stream)
    assert [event.error for event in loop.of(events.CallFinished)] == [error]


def test_050_more_than_was_reserved_is_charged_too(start: Start, spoken: Spoken) -> None:
    loop = start(1, providers={"a": LIMITS})
    loop.provider().script(streamed(framed(spoken.begin(), spoken.text("many words " * 200))))
    before = loop.endpoint()["available_tokens"]
    with pytest.raises(fastroute.StreamTruncated) as caught:
        text_of(loop.stream(LONG, max_tokens=1))
    assert caught.value.usage is not None
    assert caught.value.usage.total_tokens > 300
    assert before - loop.endpoint()["available_tokens"] == caught.value.usage.total_tokens


def test_050_a_cut_stream_is_kept_for_nobody(start: Start) -> None:
    loop = start(1, cache={"enabled": True})
    loop.provider().script(Fault.stream_cut(3))
    with pytest.raises(fastroute.StreamTruncated):
        text_of(loop.stream(LONG))
    assert loop.ask(LONG).text == text_of(loop.stream(LONG)) == LONG
    assert loop.provider().received == 3


def test_048_the_deadline_of_the_call_is_its_own_error(start: Start) -> None:
    loop = start(1)
    loop.provider().script(Fault.stream_stall(3))
    with within(0.4), pytest.raises(fastroute.DeadlineExceeded):
        text_of(loop.stream(LONG, timeout=0.4))


def test_048_truncated_and_stalled_streams_open_the_breaker(start: Start) -> None:
    loop = start(1, policy={"idle_timeout": 0.1, "breaker": {"failures": 3}})
    loop.provider().script(Fault.stream_cut(3), Fault.stream_cut(3, "reset"), Fault.stream_stall(3))
    for _ in range(3):
        with pytest.raises(fastroute.StreamInterrupted):
            text_of(loop.stream(LONG))
    assert loop.endpoint()["state"] == "open"


# --------------------------------------------------------------------------------------------- the end


@only("openai")
def test_037_a_stream_without_a_choice(start: Start) -> None:
    loop = start(2)
    loop.provider("a").script(Fault.events(b"data: [DONE]\n\n"))
    stream = loop.stream(LONG)
    assert text_of(stream) == LONG
    assert [attempt.error for attempt in stream.route.attempts] == ["EmptyResponse", None]


@only("openai")
def test_049_a_missing_done_is_forgiven(start: Start) -> None:
    loop = start(1)
    loop.provider().script(Fault.no_done())
    stream = loop.stream(LONG)
    assert text_of(stream) == LONG
    assert stream.usage is not None
    assert stream.usage.source == "provider"
    assert stream.completion().choices[0].finish_reason == "stop"
    assert text_of(loop.stream(LONG)) == LONG
    assert [(event.endpoint, event.kind) for event in loop.of(events.StreamForgiven)] == [
        (f"a/{MODEL}", "missing_done")
    ]
    assert loop.endpoint()["streams_forgiven"] == {"missing_done": 1, "invalid_utf8": 0}
    assert [attempt.outcome for attempt in loop.attempts] == ["ok", "ok"]


def test_050_the_end_mark_alone_makes_no_answer_whole(start: Start, spoken: Spoken) -> None:
    loop = start(1)
    loop.provider().script(streamed(framed(spoken.begin(), spoken.text("some"), spoken.end())))
    with pytest.raises(fastroute.StreamTruncated):
        text_of(loop.stream(LONG))


def test_051_what_comes_after_done_is_ignored_and_reaches_nobody(start: Start, spoken: Spoken) -> None:
    loop = start(1)
    loop.provider().script(Fault.after_done())
    # Gemini has no end mark, and goes on after a finish reason.
    assert text_of(loop.stream(LONG)) == LONG + ("late" if spoken.format == "gemini" else "")
    assert loop.ask("next").text == "next"


@pytest.mark.parametrize("spoken", [OpenAI(), Anthropic()], ids=["openai", "anthropic"])
@pytest.mark.parametrize("more", [b"data: more\n\n", b"data: [DONE]\n\n"], ids=["data", "a-second-mark"])
def test_051_a_connection_that_goes_on_after_the_end_mark_is_not_used_again(
    start: Start, spoken: Spoken, more: bytes
) -> None:
    loop = start(1, policy={"max_attempts": 1})
    body = framed(spoken.begin(), spoken.text("x"), spoken.finish(), spoken.end())
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    first, second = (b"%x\r\n%s\r\n" % (len(part), part) for part in (body, more))
    loop.provider().script(
        Fault.raw(head + first, 0.05, second, then="hang"),
        Fault.raw(head + first, 0.05, second + b"0\r\n\r\n", then="keep"),  # which was read to its end
    )
    for _ in range(2):
        assert text_of(loop.stream()) == "x"
    assert loop.ask("next").text == "next"
    assert [request.connection for request in loop.provider().requests] == [1, 2, 2]
    assert {attempt.outcome for attempt in loop.attempts} == {"ok"}


def test_052_an_end_mark_without_its_blank_line(start: Start, spoken: Spoken) -> None:
    loop = start(1)
    body = framed(spoken.begin(), spoken.text("x"), spoken.finish(), spoken.end())
    loop.provider().script(streamed(body[:-1]), streamed(body[:-2]))
    assert text_of(loop.stream()) == "x"
    assert text_of(loop.stream()) == "x"


@only("openai")
@pytest.mark.parametrize("left", range(len(b"data: [DONE]")))
def test_052_a_cut_in_the_end_mark_after_the_last_word_changes_nothing(
    start: Start, spoken: Spoken, left: int
) -> None:
    loop = start(1)
    mark = framed(spoken.end())
    body = framed(spoken.begin(), spoken.text("x"), spoken.finish())
    loop.provider().script(streamed(body + mark[:left]))
    assert text_of(loop.stream()) == "x"
    loop.provider().script(streamed(framed(spoken.begin(), spoken.text("x")) + mark[:left]))
    with pytest.raises(fastroute.StreamTruncated):
        text_of(loop.stream())


@pytest.mark.parametrize("end", ["reset", "hang"])
def test_049_how_the_connection_ends_after_the_last_word_changes_nothing(
    start: Start, spoken: Spoken, end: str
) -> None:
    loop = start(1, policy={"idle_timeout": 0.2})
    body = framed(spoken.begin(), spoken.text("x"), spoken.finish())
    if spoken.format == "anthropic":
        body += framed(spoken.end())  # which belongs to the last word there
    loop.provider().script(streamed(body, end))
    stream = loop.stream()
    assert text_of(stream) == "x"
    assert loop.endpoint()["failed"] == 0
    assert [attempt.outcome for attempt in loop.attempts] == ["ok"]


def test_053_usage_is_the_last_and_shown_only_to_who_asked(start: Start, spoken: Spoken) -> None:
    style = StreamStyle(usage_in_every_chunk=True)
    plain = Provider(answer=LONG, format=spoken.format)
    loop = start({"a": plain, "b": Provider(answer=LONG, format=spoken.format, style=style)})
    for name in ("a", "b"):
        if name == "b":
            loop.provider("a").kill()
        unasked = loop.stream("question")
        chunks = list(unasked)
        assert all(piece.usage is None and piece.choices for piece in chunks)
        assert all("usage" not in piece.to_dict() for piece in chunks)
        assert unasked.usage is not None
        assert unasked.usage.source == "provider"
        assert unasked.usage.completion_tokens == -(-len(LONG) // 4)
        asked = loop.stream("question", stream_options={"include_usage": True})
        *_, last = list(asked)
        assert last.usage == asked.usage == unasked.usage


def test_053_a_settled_stream_costs_what_it_used(start: Start) -> None:
    loop = start(1, providers={"a": LIMITS})
    before = loop.endpoint()["available_tokens"]
    stream = loop.stream(LONG, max_tokens=5000)
    assert before - loop.endpoint()["available_tokens"] > 5000  # reserved while it runs
    text_of(stream)
    assert stream.usage is not None
    assert before - loop.endpoint()["available_tokens"] == stream.usage.total_tokens
    (row,) = loop.attempts
    assert (row.prompt_tokens, row.completion_tokens) == (
        stream.usage.prompt_tokens,
        stream.usage.completion_tokens,
    )
    assert row.stream
    assert row.ttft is not None
    assert stream.route.cost_nano == row.cost_nano == row.prompt_tokens * 1000 + row.completion_tokens * 2000


@only("openai")
@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": -7, "completion_tokens": 3}, {"prompt_tokens": "7"}]
)
def test_036_usage_in_a_stream_that_is_none_is_estimated(start: Start, spoken: Spoken, usage: object) -> None:
    loop = start(1)
    said = ("", {"id": "chatcmpl-1", "choices": [], "usage": usage})
    body = framed(spoken.begin(), spoken.text("six characters"), [OpenAI.chunk("stop"), said], spoken.end())
    loop.provider().script(streamed(body))
    stream = loop.stream()
    assert text_of(stream) == "six characters"
    assert stream.usage is not None
    assert (stream.usage.source, stream.usage.completion_tokens) == ("estimated", 5)
    assert [attempt.usage_source for attempt in loop.attempts] == ["estimated"]


def refuse_stream_options(request: Received) -> Fault | None:
    if "stream_options" not in request.json:
        return None
    error = {
        "message": "Unknown parameter: 'stream_options'.",
        "type": "invalid_request_error",
        "param": "stream_options",
    }
    return Fault.status(400, {"error": error})


@only("openai")
@pytest.mark.parametrize("attempts", [1, 3])
def test_054_a_provider_that_knows_no_stream_options(start: Start, attempts: int) -> None:
    loop = start(1, policy={"max_attempts": attempts})
    loop.provider().script(refuse_stream_options)
    stream = loop.stream(LONG)
    assert text_of(stream) == LONG
    assert stream.usage is not None
    assert stream.usage.source == "estimated"
    assert stream.usage.completion_tokens > 0
    assert text_of(loop.stream("again")) == "again"
    assert ["stream_options" in request.json for request in loop.provider().requests] == [True, False, False]
    assert [attempt.error for attempt in loop.attempts] == ["BadRequestError", None, None]
    assert loop.endpoint()["failed"] == 0


@only("openai")
def test_054_many_threads_find_it_out_at_once(start: Start) -> None:
    loop = start(1)
    loop.provider().script(refuse_stream_options)
    loop.provider().latency = 0.05  # all are under way before the first is refused
    found: list[str] = []
    workers = [threading.Thread(target=lambda: found.append(text_of(loop.stream(LONG)))) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [LONG] * 6


def test_057_tool_calls_are_put_together_by_index(start: Start, spoken: Spoken) -> None:
    loop = start(1)
    body = framed(
        spoken.begin(),
        spoken.call(0, "call_a", "first"),
        spoken.call(1, "call_b", "second"),
        spoken.arguments(1, '{"b": "'),
        spoken.arguments(0, '{"a": "\\'),
        spoken.arguments(1, 'y"}'),
        spoken.arguments(0, 'n"}'),
        spoken.finish_calls(),
        spoken.end(),
    )
    loop.provider().script(streamed(body))
    stream = loop.stream()
    list(stream)
    assert stream.completion().choices[0].finish_reason == "tool_calls"
    calls = stream.completion().choices[0].message.tool_calls
    assert calls is not None
    assert [(found.id, found.function.name, json.loads(found.function.arguments)) for found in calls] == [
        ("call_a", "first", {"a": "\n"}),
        ("call_b", "second", {"b": "y"}),
    ]


@only("openai")
def test_057_two_calls_on_one_index_are_two_calls(start: Start) -> None:
    loop = start(1)
    spoken = OpenAI()
    first = framed(spoken.call(0, "call_a", "f"))
    second = framed(spoken.call(0, "call_b", "f"), spoken.finish_calls())
    loop.provider().script(streamed(first, second), streamed(first + second))
    for _ in range(2):
        stream = loop.stream()
        list(stream)
        calls = stream.completion().choices[0].message.tool_calls or ()
        assert [call.id for call in calls] == ["call_a", "call_b"]


@only("openai")
def test_what_came_before_a_fault_is_handed_out_however_the_network_cuts_the_stream(start: Start) -> None:
    loop = start(1)
    spoken = OpenAI()
    first, broken = framed(spoken.call(0, "call_a", "f")), b'data: {"choices": 5}\n\n'
    loop.provider().script(streamed(first, "hang"), streamed(first, broken), streamed(first + broken))
    with loop.stream() as stream:
        assert next(stream).choices[0].delta.tool_calls
    for _ in range(2):
        stream = loop.stream()
        assert next(stream).choices[0].delta.tool_calls
        with pytest.raises(fastroute.StreamInterrupted, match="choices is not a list"):
            list(stream)


@only("openai")
def test_063_what_nobody_here_knows_passes_through_untouched(start: Start, spoken: Spoken) -> None:
    delta = {"content": "a", "reasoning_content": "why", "refusal": "no", "of_the_future": {"x": [1, None]}}
    choice = {"index": 0, "delta": delta, "finish_reason": None, "logprobs": None}
    said = {"id": "c", "created": 1, "model": "up", "choices": [choice], "obfuscation": "Zq3", "service": 1}
    loop = start(1)
    body = framed(spoken.begin(), [("", said)], spoken.finish(), spoken.end())
    loop.provider().script(streamed(body), streamed(body))
    chunk = list(loop.stream())[1]
    assert chunk.to_dict() == said
    assert (chunk.obfuscation, chunk.choices[0].delta.of_the_future) == ("Zq3", {"x": [1, None]})
    written = json.loads(list(wire_openai.events(loop.stream()))[1].removeprefix(b"data: "))
    assert written["obfuscation"] == "Zq3"
    assert written["choices"][0]["delta"] == delta


# ------------------------------------------------------------------------------------- who leaves early


def leave_by_close(stream: fastroute.Stream) -> None:
    next(stream)
    stream.close()


def leave_by_with(stream: fastroute.Stream) -> None:
    with stream:
        next(stream)


def leave_by_raising(stream: fastroute.Stream) -> None:
    with pytest.raises(KeyError), stream:  # noqa: PT012
        for _ in stream:
            raise KeyError


def leave_by_dropping(stream: fastroute.Stream) -> None:
    next(stream)


def leave_in_another_thread(stream: fastroute.Stream) -> None:
    thread = threading.Thread(target=stream.close)
    thread.start()
    thread.join()


@pytest.mark.parametrize(
    "leave",
    [
        leave_by_close,
        leave_by_with,
        leave_by_raising,
        leave_by_dropping,
        leave_in_another_thread,
    ],
    ids=lambda leave: leave.__name__,
)
def test_059_who_leaves_early_gives_everything_back(
    start: Start, leave: Callable[[fastroute.Stream], None]
) -> None:
    loop = start(1, providers={"a": LIMITS}, budgets=BOOKS)
    loop.provider().script(Fault.stream_stall(3))
    before = loop.endpoint()["available_tokens"]
    stream = loop.stream(LONG, max_tokens=1000)
    assert loop.endpoint()["in_flight"] == 1
    leave(stream)
    del stream
    gc.collect()
    assert loop.endpoint()["in_flight"] == 0
    loop.provider().wait_until(lambda provider: provider.abandoned == 1)  # it would stall for ever
    (attempt,) = loop.attempts
    assert (attempt.outcome, attempt.error, attempt.usage_source) == ("client_cancelled", None, "estimated")
    assert attempt.cost_nano
    (book,) = loop.client.stats()["budgets"]
    assert (book.reserved_nano, book.spent_nano) == (0, attempt.budget_nano)
    assert before - loop.endpoint()["available_tokens"] >= 1000  # the provider may charge for all of it
    assert (loop.endpoint()["failed"], loop.endpoint()["succeeded"]) == (0, 0)
    assert [event.error for event in loop.of(events.CallFinished)] == ["client_cancelled"]


def test_059_what_another_thread_drops_is_given_back_too(start: Start) -> None:
    loop = start(1)
    loop.provider().script(Fault.stream_stall(3))
    held = [loop.stream(LONG)]
    next(held[0])
    where: list[str] = []
    loop.client.on(lambda event: where.append(threading.current_thread().name), events.AttemptFinished)
    thread = threading.Thread(target=held.clear, name="the other")
    thread.start()
    thread.join()
    assert where == ["the other"]
    loop.provider().wait_until(lambda provider: provider.abandoned == 1)
    assert loop.endpoint()["in_flight"] == 0
    assert [attempt.outcome for attempt in loop.attempts] == ["client_cancelled"]


def test_059_a_close_from_another_thread_wakes_the_reader(start: Start) -> None:
    loop = start(1)
    loop.provider().script(Fault.stream_stall(3))
    stream = loop.stream(LONG)
    reading = threading.Event()

    def close() -> None:
        reading.wait()
        stream.close()

    closer = threading.Thread(target=close)
    closer.start()
    with within(1.0), pytest.raises(fastroute.StreamInterrupted):  # noqa: PT012
        for piece in stream:
            if piece.choices[0].delta.content == LONG[4:8]:
                reading.set()
    closer.join()
    assert [attempt.outcome for attempt in loop.attempts] == ["client_cancelled"]


def test_059_a_closed_stream_gives_nothing_more(start: Start) -> None:
    loop = start(1)
    stream = loop.stream(LONG)
    next(stream)
    stream.close()
    assert list(stream) == []
    stream.close()
    assert len(loop.attempts) == 1


def test_a_finished_stream_leaves_its_connection_for_the_next(start: Start, spoken: Spoken) -> None:
    loop = start({"a": Provider(answer=Answer(content=LONG), format=spoken.format)})
    for _ in range(5):
        assert text_of(loop.stream()) == LONG
    assert loop.provider().connections == 1
